"""95% confidence intervals of shares, over independent draws.

Rows are often not independent: `units` names for each row what it counts as, and rows of one unit are
answered right or wrong together.
"""

from collections import Counter

import numpy as np
from scipy.stats import beta

FEW = 20  # units; an interval from fewer is shown with their number


def share(right: list[bool], units: list[str]) -> tuple[float, float, float, float]:
    """The share of rows, the low and high end of its interval, and the number of units that it counts.

    The interval is Clopper and Pearson's, of the effective number of units (Korn and Graubard 1998).
    """
    sizes = Counter(units).values()
    value, n = sum(right) / len(right), len(units) ** 2 / sum(size**2 for size in sizes)
    low = beta.ppf(0.025, n * value, n - n * value + 1) if value else 0.0
    high = beta.ppf(0.975, n * value + 1, n - n * value) if value < 1 else 1.0
    return value, float(low), float(high), n


def gain(right: list[bool], others: list[bool], units: list[str]) -> tuple[float, float, float, float]:
    """As `share`: by how much the first share is higher, -1 to 1.

    The interval joins those of the rows that only one has right (Zou and Donner, Stat. Med. 27, 2008).
    """
    p, *more, count = share([a > b for a, b in zip(right, others, strict=True)], units)
    q, *less, _ = share([a < b for a, b in zip(right, others, strict=True)], units)
    # No row is in both shares, so one is high if the other is low.
    tied = p * q and np.sqrt(p * q / ((1 - p) * (1 - q)))
    x, y = np.array([p - more[0], more[1] - p]), np.array([less[1] - q, q - less[0]])
    low, high = p - q + np.array([-1, 1]) * np.sqrt(x**2 + y**2 + 2 * tied * x * y)
    return p - q, float(low), float(high), count

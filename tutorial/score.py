"""How good the answers are."""


def exact_match(answers: list[str], targets: list[str]) -> float:
    """Strict exact match: the share of answers, from 0 to 1, equal to their target but for white space
    around them. Order of attributes, spelling and case count.

    Raises:
        ValueError: not one answer a target, or none at all.
    """
    if len(answers) != len(targets) or not targets:
        raise ValueError(f"{len(answers)} answers for {len(targets)} targets")
    return sum(a.strip() == t.strip() for a, t in zip(answers, targets, strict=True)) / len(targets)

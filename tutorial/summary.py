"""What a run had and its scores, in short: above the notebook that it wrote, and at the end of `make run`."""

from typing import Any

import pandas as pd


def about(results: dict[str, Any]) -> str:
    """Which data, model and profile a run had, as a paragraph of Markdown; `results` is results.json."""
    data, used = results["data"], results["data"]["used"]
    rows = f"{used['train']} to train, {used['val']} to validate, {used['test']} to test"
    return (
        f"**This run.** Task `{results['task']}`, rows of `{data['file']['train']}` ({rows}), answers of the "
        f"kind `{results['batch']['kind']}`, model `{results['model']}`, profile `{results['profile']}`. The "
        "outputs are of this run. The text around them was written for ViGGO. `(none)` stands for a figure "
        "that this run does not have."
    )


def scores(results: dict[str, Any]) -> str:
    """A column of scores for each system, with the 95% interval of the first score: a table in Markdown."""
    table = {}
    for system, found in results["batch"]["scores"].items():
        column = {metric: f"{each['value']:.0%}" for metric, each in found.items()}
        name, first = next(iter(found.items()))
        interval = f"{first['low']:.0%} to {first['high']:.0%}"
        table[system] = {name: column.pop(name), "95% interval": interval} | column
    frame = pd.DataFrame(table).rename_axis(f"{results['data']['used']['test']} test rows")
    return frame.to_markdown(disable_numparse=True)

"""Are the answers over HTTP those of the batch stage? From the project's root:

    RUN_NAME=... RESUME=1 python -m benchmarks.answers

Runs README.ipynb up to its serving stage with the settings of the environment (with `RUN_NAME` and `RESUME`
of a run that is over, nothing is trained or answered again), and asks the endpoint for every test row at
temperature 0: guided by the grammar or not, streamed or not, by OpenAI's client and by curl. Prints, and
writes to benchmarks/answers.json, the exact match of each way, and in how many rows the answer is another
than the batch stage's: the engine adds up in another order where other rows are in a step, so that of two
tokens that are as likely either may win.
"""

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from nbformat.v4 import new_code_cell
from tabulate import tabulate

from tutorial import data, run, score
from tutorial.settings import ROOT

AT_ONCE = 8  # requests
ASK = """
from benchmarks import answers
asked = f"{{url}}/chat/completions", api_keys[0], f"{{model_id}}:{{adapter}}"
found = answers.compare(ask, *asked, SAMPLING, GUIDE, table, used["test"])
results.write(Path("{path}"), {{
    "stamp": results.stamp(cluster),
    "profile": profile.name,
    "data": task.name,
    "model": model_id,
    "rows": len(used["test"]),
    "asked": len(found) * len(used["test"]),
    "other answers": sum(way["other answers"] for way in found),
    "ways": found,
}})
"""


def streamed(chunks) -> str:
    """The text of a streamed answer."""
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def curl(url: str, key: str, body: dict[str, Any]) -> str:
    """The text of an answer, by curl; the key is in no command line, where others could read it.

    Raises:
        CalledProcessError: curl failed, or the answer was an error.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(body, file)
        file.flush()
        config = f"""url = "{url}"
            header = "Authorization: Bearer {key}"
            header = "Content-Type: application/json"
            data = "@{file.name}"
            silent
            fail"""
        command = ["curl", "--config", "-"]
        said = subprocess.run(command, input=config, check=True, capture_output=True, text=True).stdout
    return json.loads(said)["choices"][0]["message"]["content"]


def compare(  # noqa: PLR0917  what the notebook knows
    ask: Callable[..., Any],
    url: str,
    key: str,
    model: str,
    sampling: dict[str, Any],
    guide: dict[str, Any],
    table: pd.DataFrame,
    rows: list[dict[str, str]],
) -> list[dict[str, Any]]:
    """Ask for all rows in every way.

    Args:
        ask: the notebook's, from a row, a model and options to the client's reply.
        url: of the chat completions.
        key: that the service knows.
        model: to ask for.
        sampling: the batch stage's.
        guide: what a guided request has beside it.
        table: the batch stage's answers, of all systems.
        rows: the test rows, in the order of the table.

    Returns:
        One dictionary for each way: strict exact match over HTTP and of the batch stage, rows that differ.
    """
    found = []
    for system, options in {"fine-tuned": {}, **({"fine-tuned, guided": guide} if guide else {})}.items():
        batch = list(table[table["system"] == system].sort_values("id")["answer"])

        def body(row: dict, options: dict = options) -> dict[str, Any]:
            return {"model": model, "messages": data.messages(row)} | sampling | options

        extra = {"extra_body": options}
        ways = {
            "OpenAI's client": lambda row, extra=extra: ask(row, model, **extra).choices[0].message.content,
            "OpenAI's client, streamed": lambda row, extra=extra: streamed(
                ask(row, model, stream=True, **extra)
            ),
            "curl": lambda row, body=body: curl(url, key, body(row)),
        }
        for way, one in ways.items():
            with ThreadPoolExecutor(AT_ONCE) as pool:
                answers = list(pool.map(one, rows))
            targets = [row["output"] for row in rows]
            found.append(
                {
                    "system": system,
                    "way": way,
                    "exact match": score.exact_match(answers, targets),
                    "batch stage": score.exact_match(batch, targets),
                    "other answers": sum(a != b for a, b in zip(answers, batch, strict=True)),
                }
            )
    return found


def main() -> None:
    """Run the notebook that far, ask, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    out = parser.parse_args().out.resolve()

    notebook = nbformat.read(ROOT / "README.ipynb", as_version=4)
    [asks] = [i for i, cell in enumerate(notebook.cells) if "def ask(row" in cell.source]
    [ends] = [cell for cell in notebook.cells if 'clock.stage("clean up")' in cell.source]
    notebook.cells[asks + 1 :] = [
        new_code_cell(ASK.format(path=out)),
        ends,
        new_code_cell("store.close(); scratch.cleanup()"),
    ]
    run.execute(notebook)
    print(tabulate(json.loads(out.read_text())["ways"], headers="keys", tablefmt="github", floatfmt=".4g"))


if __name__ == "__main__":
    main()

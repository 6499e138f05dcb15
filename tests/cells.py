"""Cells of README.ipynb as a program: `python -m tests.cells '["environment", "print(1)"]'`.

Each item is the id of a code cell, or code of a test's own that runs between them, among the same names. A
`TutorialError` ends the program with its one line, as `make run` does.
"""

import json
import sys

from tutorial import TutorialError, run

SET_UP = ["environment", "ray", "model", "rows"]
PREPARE = ["row", "recipe"]
TRAIN = [*SET_UP, *PREPARE, "publish-data", "train-loop", "trainer", "train", "trained"]
UNTRAINED = ["adapter = 'none'", "run.storage.publish('.', 'adapters', [])"]  # the base model alone answers
ASK = [
    *UNTRAINED,
    "processor",
    "questions",
    "systems",
    "questions = [question for question in questions if question['system'] == 'base model']",
    "ask",
    "answer",
]
BATCH = [*SET_UP, *PREPARE, *ASK]
END = ["with run.stage('end'): ray.shutdown()", "run.storage.close()"]


def main() -> None:
    """Run what the command line names."""
    sources = run.cells()
    names = {"__name__": "__main__"}  # what is defined there goes to Ray's workers by value
    try:
        for item in json.loads(sys.argv[1]):
            exec(compile(sources.get(item, item), item, "exec"), names)  # noqa: S102  the project's own cells
    except TutorialError as error:
        sys.stdout.flush()  # the error stands last, also where both go to one file
        sys.exit(f"TutorialError: {error}")


if __name__ == "__main__":
    main()

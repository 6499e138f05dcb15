"""The kind of a task's answers: what its file says, or what the training rows show."""

from contextlib import suppress

from tutorial import TutorialError, schema
from tutorial.labels import Labels, look_like
from tutorial.meanings import Meanings
from tutorial.objects import Objects
from tutorial.score import Kind, exact_match
from tutorial.tasks import Row, Task
from tutorial.text import Text

__all__ = ["exact_match", "of"]


def of(task: Task, rows: dict[str, list[Row]]) -> Kind:
    """The kind of the answers in column `output`.

    If the rows decide it, a line says so. Another one says what test rows have and training rows do not.

    Raises:
        TutorialError: a training row's answer is not of the kind that the task file says.
    """
    if task.meaning:
        return Meanings(task.meaning)
    train, test = ([row["output"].strip() for row in rows[split]] for split in ("train", "test"))
    kind = task.kind or _found(train)
    if not task.kind:
        print(f"kind of answers, found from the training rows: {kind}")
    if kind == "label":
        if unknown := sorted(set(test) - set(train)):
            shown = ", ".join(f"{label!r} in {test.count(label)}" for label in unknown)
            print(f"labels that no training row has: {shown} of {len(test)} test rows")
        return Labels(task.labels or sorted(set(train)))
    if kind == "JSON":
        try:
            found = task.json_schema or schema.of(schema.parse(text) for text in train)
            kind = Objects(found, schema.separators(train))
        except ValueError as error:
            raise TutorialError(f"{task.name}.yaml: answers: JSON does not fit the rows: {error}") from None
        if strange := [text for text in test if not kind.compare(text, text).valid]:
            print(f"{len(strange)} of {len(test)} test rows have an answer unlike those of the training rows")
        return kind
    return Text()


def _found(train: list[str]) -> str:
    with suppress(ValueError):
        for text in train:
            schema.parse(text)
        return "JSON"
    return "label" if look_like(train) else "text"

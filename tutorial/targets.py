"""What a task's file says of its answers: their kind, and what they may hold."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from tutorial import schema
from tutorial.meaning import Description, check, parse

Label = Annotated[str, Field(pattern=r"^\S(.*\S)?$")]


class Targets(BaseModel):
    """If none of the four is set, the training rows say what kind the answers are of."""

    model_config = ConfigDict(extra="forbid")

    answers: Literal["label", "JSON", "text"] | None = Field(None, description="their kind")
    meaning: Description | None = Field(None, description="functions and attributes of an answer")
    labels: Annotated[list[Label], Field(min_length=2)] | None = Field(
        None, description="the labels that an answer may be"
    )
    json_schema: Annotated[dict[str, Any], AfterValidator(schema.check_schema)] | None = Field(
        None, description="JSON Schema of an answer"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> "Targets":
        if len({*self._given(), self.answers} - {None}) > 1:
            raise ValueError("answers, meaning, labels and json_schema say different kinds; set one of them")
        return self

    @property
    def kind(self) -> str | None:
        """`meaning`, `label`, `JSON` or `text`; None if the file does not say it."""
        return next(iter(self._given()), self.answers)

    def check(self, answer: str) -> None:
        """Whether an answer of a row can be one of this task.

        Raises:
            ValueError: it is not of the kind that the file says, or the file does not allow it.
        """
        if self.meaning:
            check(parse(answer), self.meaning)
        elif self.labels and answer.strip() not in self.labels:
            raise ValueError(f"{answer.strip()[:60]!r} is none of the task's labels")
        elif self.kind == "JSON":
            schema.check(schema.parse(answer), self.json_schema or {})

    def _given(self) -> list[str]:
        kinds = {"meaning": self.meaning, "label": self.labels, "JSON": self.json_schema}
        return [kind for kind, given in kinds.items() if given is not None]

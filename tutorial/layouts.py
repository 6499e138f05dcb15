"""How a row is laid out, found by its columns: from a row as people have it to the row that a run uses.

That row has `instruction` (the system turn, or ""), `input` (the user turn), `output` (the answer to learn)
and, of a conversation, `history`: its earlier questions and answers, a list of pairs.
"""

import json
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from pydantic import BaseModel, Field, model_validator

from tutorial import TutorialError

Row = dict[str, Any]
SYSTEMS = ("system", "system_prompt")
PROMPTS = ("prompt", "question", "query", "instruction", "input", "text", "sentence", "request")
RESPONSES = ("response", "completion", "answer", "output", "target", "label")
CONVERSATIONS = {  # by the name of the column
    "messages": "OpenAI messages",
    "conversations": "ShareGPT conversations",
    "conversation": "ShareGPT conversations",
}
SPEAKERS = {"system": "system", "developer": "system", "user": "user", "human": "user"}
SPEAKERS |= {"assistant": "assistant", "gpt": "assistant"}
TOOLS = ("tool", "function", "function_call", "observation")
JSON = json.JSONEncoder(ensure_ascii=False, default=lambda v: float(v) if isinstance(v, Decimal) else str(v))
HOW = "write a yaml file with the line `columns: {prompt: NAME, response: NAME}` and set TASK to its path"


class Columns(BaseModel, extra="forbid"):
    """The names of a row's columns: a prompt and a response, or a conversation."""

    system: str | None = Field(None, description="the system turn; without it, the task's system_prompt")
    prompt: str | None = Field(None, description="the user turn")
    query: str | None = Field(None, description="a second line of the user turn; it may be empty")
    response: str | None = Field(None, description="the answer to learn")
    history: str | None = Field(None, description="earlier questions and answers, a list of pairs")
    messages: str | None = Field(None, description="a conversation, a list of turns with role and content")
    _layout: str = ""

    @model_validator(mode="after")
    def _one_layout(self) -> "Columns":
        parts = [name for name in ("prompt", "query", "response", "history") if getattr(self, name)]
        if bool(self.messages) == bool(parts) or (parts and not (self.prompt and self.response)):
            raise ValueError("set prompt and response, or messages")
        return self

    @property
    def layout(self) -> str:
        """The name of the layout that `find` found; "" if a task file names the columns."""
        return self._layout

    def taken(self) -> str:
        """What is taken of a row, in one line."""
        return ", ".join(f"{name} → {part}" for part, name in self if name)

    def read(self, raw: dict[str, Any]) -> Row:
        """The row that a run uses. Raises ValueError: what is wrong with which column."""
        history, system = [], ""
        if self.system:  # each row must have one if a task file names the column
            system = _text(raw, self.system, blank=bool(self.layout))
        if self.messages:
            own, history, prompt, response = _conversation(raw, self.messages)
            system = own or system
        else:
            if isinstance(answer := raw.get(self.response), dict):  # keys stay in their order
                raw = raw | {self.response: JSON.encode(answer)}
            prompt, response = _text(raw, self.prompt), _text(raw, self.response)
            query = _text(raw, self.query, blank=True) if self.query else ""
            prompt = f"{prompt}\n{query}" if query.strip() else prompt
            history = _pairs(raw, self.history) if self.history else []
        row = {"instruction": system if system.strip() else "", "input": prompt, "output": response}
        return row | ({"history": history} if history else {})


def find(names: Iterable[str]) -> Columns:
    """The columns that rows with these `names` have. TutorialError if they fit no layout, or two, or one in
    two ways."""
    known = {name.strip().casefold(): name for name in names}
    found = [(CONVERSATIONS[name], {"messages": known[name]}) for name in CONVERSATIONS if name in known]
    rest = dict(known)
    if "instruction" in known and "output" in known:
        parts = {"prompt": "instruction", "query": "input", "response": "output"}
        found.append(("alpaca", {part: rest.pop(name) for part, name in parts.items() if name in rest}))
    found += [
        ("prompt and response", {"prompt": rest[prompt], "response": rest[response]})
        for prompt in PROMPTS
        for response in RESPONSES
        if prompt in rest and response in rest
    ]
    shown = ", ".join(repr(name[:40]) for name in [*known.values()][:20]) + (", …" if len(known) > 20 else "")
    if not found:
        raise TutorialError(f"the columns {shown} do not say what is prompt and response; {HOW}")
    if len(found) > 1:
        two = " and as ".join(f"{name} ({', '.join(parts.values())})" for name, parts in found[:2])
        raise TutorialError(
            f"the columns {shown} can be read as {two}; {HOW}, or `columns: {{messages: NAME}}`"
        )
    layout, parts = found[0]
    if system := next((known[name] for name in SYSTEMS if name in known), None):
        parts["system"] = system
    if "history" in known and "messages" not in parts:
        parts["history"] = known["history"]
    columns = Columns(**parts)
    columns._layout = layout
    return columns


def _text(raw: dict, column: str, blank: bool = False) -> str:
    """A column's text; of a whole or decimal number its digits. A column may be missing or empty if `blank`.

    Raises:
        ValueError: the column is missing or empty, or its value has no one text that is exactly the same.
    """
    value = _value(raw, column, blank)
    return "" if blank and value is None else _exact(value, f"column {column!r}", blank)


def _value(raw: dict, column: str, blank: bool) -> object:
    if column not in raw and not blank:
        raise ValueError(f"column {column!r}: it is missing; there are {', '.join(map(repr, raw))}")
    return raw.get(column)


def _exact(value: object, where: str, blank: bool = False) -> str:
    if isinstance(value, int | Decimal) and not isinstance(value, bool) and "E" not in str(value):
        value = str(value)
    if not isinstance(value, str):
        kind = "empty" if value is None else type(value).__name__
        shown = f"the number {value!r}, which is not exact" if isinstance(value, float | Decimal) else kind
        raise ValueError(f"{where}: a text is needed, and this is {shown}")
    if not value.strip() and not blank:
        raise ValueError(f"{where}: a text is needed, and this one is empty")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(f"{where}: half of a surrogate pair, which is not text")
    return value


def _list(raw: dict, column: str, blank: bool = False) -> list:
    """A column's list, also one that is written as JSON, as tables have to."""
    value, wrong = _value(raw, column, blank), f"column {column!r}: a list is needed"
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError(f"{wrong}, and this text is not one in JSON") from None
    if not isinstance(value, list) and (value or not blank):
        raise ValueError(wrong)
    return value or []


def _pairs(raw: dict, column: str) -> list[list[str]]:
    pairs = []
    for number, pair in enumerate(_list(raw, column, blank=True), start=1):
        where = f"column {column!r}, pair {number}"
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"{where}: a question and its answer are needed")
        pairs.append([_exact(each, where) for each in pair])
    return pairs


def _conversation(raw: dict, column: str) -> tuple[str, list[list[str]], str, str]:
    """Its system text or "", its earlier questions and answers, its last question, and the answer to it."""
    if raw.get("tools") not in (None, "", "[]", []):
        raise ValueError("column 'tools': tool calls cannot be trained here")
    system, said = "", []
    for number, turn in enumerate(_list(raw, column), start=1):
        where = f"column {column!r}, turn {number}"
        speaker, content = _turn(turn, where)
        if speaker == "system" and number == 1:
            system = content
        elif speaker == "system":
            raise ValueError(f"{where}: the system's turn must be the first")
        elif speaker == ("user", "assistant")[len(said) % 2]:
            said.append(content)
        else:
            wrong = f"two {speaker} turns in a row" if said else "the user must begin, not the assistant"
            raise ValueError(f"{where}: {wrong}")
    if len(said) < 2 or len(said) % 2:
        wrong = "the last turn is the user's, and must be an answer" if len(said) > 1 else "no assistant turn"
        raise ValueError(f"column {column!r}: {wrong}")
    *earlier, prompt, response = said
    return system, [earlier[i : i + 2] for i in range(0, len(earlier), 2)], prompt, response


def _turn(turn: object, where: str) -> tuple[str, str]:
    """Who speaks, and what is said."""
    if not isinstance(turn, dict):
        raise ValueError(f"{where}: an object with role and content is needed")
    role = turn.get("role") or turn.get("from")
    if role in TOOLS or turn.get("tool_calls") or turn.get("function_call"):
        raise ValueError(f"{where}: tool calls cannot be trained here")
    if not isinstance(role, str) or role not in SPEAKERS:
        raise ValueError(f"{where}: the role {str(role)[:40]!r} is none of {', '.join(SPEAKERS)}")
    content = turn.get("content")
    return SPEAKERS[role], _exact(turn.get("value") if content is None else content, where)

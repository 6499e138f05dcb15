"""One prompt: training, batch inference and the endpoint send the same tokens, and `Chat.check` proves it.

Three programs turn a row into tokens. LLaMA-Factory encodes the pieces of a template of its own. ray.data.llm
renders the model's chat template and tokenizes the text, which adds the tokenizer's special tokens. vLLM's
endpoint renders the chat template too, and adds none. Nothing else compares them.
"""

from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from textwrap import shorten
from typing import Any

from tutorial import TutorialError, one_line, recipe
from tutorial.layouts import Row
from tutorial.tasks import Task
from tutorial.template import SYSTEM, ChatTemplate, trainer, turns

PROBE = {"instruction": "Be brief.", "input": " two  words \n", "output": "one[two]"}
PROBES = [PROBE, PROBE | {"history": [["Which one?\n", " the[first] "]]}]


class Chat:
    """How one model is asked, decided from its tokenizer, its chat template and the recipe.

    LLaMA-Factory gets the rows as turns if it makes the same tokens of them as the chat template, else as
    text that the chat template has rendered. Thoughts are off if the template can switch them, unless the
    recipe sets `enable_thinking`.

    Args:
        model_path: the base model's folder.
        recipe_args: LLaMA-Factory's arguments, from `recipe.load`.

    Attributes:
        recipe_args: the arguments to train with.
        columns: LLaMA-Factory's names for the keys of `rows`.
        engine_kwargs: what ray.serve.llm's engine needs besides its other arguments.
        template_stage: what ray.data.llm's chat_template_stage needs besides its other arguments.

    Raises:
        TutorialError: the tokenizer or the chat template cannot be used; says why.
    """

    def __init__(self, model_path: str | Path, recipe_args: dict[str, Any]):
        path, named = Path(model_path), recipe_args.get("template")
        self._rendered, named = named == "empty", None if named == "empty" else named
        thinks, self.system = bool(recipe_args.get("enable_thinking")), recipe_args.get("default_system")
        self.template = ChatTemplate(path, thinks, lambda: named and trainer(path, recipe_args)[1])
        self._has_system = self.template.has_system
        # Of a conversation, its last answer is learned.
        turns_args = {"mask_history": not recipe_args.get("train_on_prompt")} | recipe_args
        turns_args |= self.template.options
        text_args = turns_args | {"template": "empty", "default_system": None}
        self.recipe_args = text_args if self._rendered else turns_args
        try:
            self._encode, _ = trainer(path, self.recipe_args)
            if not named:
                for probe, asked in zip(PROBES, self._asked(PROBES), strict=True):
                    self._compare(probe, asked)
        except Exception as error:  # LLaMA-Factory takes the chat template apart, and fails in many ways
            if named:
                raise self.template.unusable(f"template: {named}: {one_line(error)}") from None
            self._rendered, self.recipe_args = True, text_args
            self._encode, _ = trainer(path, text_args)
        self.columns = {"prompt": "input", "response": "output"}
        self.columns |= {} if self._rendered else {"system": "instruction", "history": "history"}
        self.template_stage = self.template.told(self.template.batch_text, "chat_template_kwargs")
        self.engine_kwargs = self.template.told(self.template.text, "default_chat_template_kwargs")
        # Else vLLM hands lists of parts to a template that looks into them.
        self.engine_kwargs["chat_template_content_format"] = "string"

    def __getstate__(self) -> dict[str, Any]:  # Ray's workers need `messages` only
        return {"system": self.system, "_has_system": self._has_system}

    def messages(self, row: Row, examples: Sequence[Row] = ()) -> list[dict[str, str]]:
        """The turns that ask for a row's answer, after those of `examples` and the row's own history. The
        system text begins the first user turn if the chat template has no system turn."""
        said = [turn for example in examples for turn in turns(example)] + turns(row)[:-1]
        if system := row["instruction"] or self.system:
            if self._has_system:
                return [SYSTEM | {"content": system}, *said]
            said[0]["content"] = f"{system}\n\n{said[0]['content']}"
        return said

    def rows(self, rows: Sequence[Row]) -> list[Row]:
        """The rows as LLaMA-Factory gets them, with the keys that `columns` names."""
        return [self._row(row) for row in rows]

    def side_by_side(self, row: Row) -> tuple[str, str]:
        """The text that training makes of a row, and the text that the engines are asked."""
        return self.template.say(self._encode(self._row(row))), self.template.say(self._asked([row])[0])

    def check(
        self, splits: dict[str, Sequence[Row]], examples: list[Row], task: Task, max_model_len: int
    ) -> dict[str, int]:
        """The most tokens of a training row, of a test answer, and of a test question after its examples.

        Of every row, LLaMA-Factory's tokens must be the endpoint's, the answer's, and one at which the engine
        stops. The endpoint's must be ray.data.llm's, without and with `examples`.

        If the task does not say `max_tokens`, it gets what the longest answer needs. If it does not say
        `few_shot`, `examples` loses those for which there is no room.

        Raises:
            TutorialError: they differ, a row holds the model's markup, or something exceeds the recipe's
                cutoff_len, the task's max_tokens or the engine's `max_model_len`; names the row or its text.
        """
        longest, found = 0, {"training row": [], "answer": [], "question": []}
        for split, rows in splits.items():
            for number, (row, asked) in enumerate(zip(rows, self._asked(rows), strict=True), start=1):
                try:
                    trained, answer = self._compare(row, asked)
                except ValueError as error:
                    raise TutorialError(f"{split}, row {number}: {error}") from None
                longest = max(longest, answer)
                if split == "test":
                    found["answer"].append((answer, row["output"]))
                else:
                    found["training row"].append((trained, row["input"]))
        task.max_tokens = task.max_tokens or longest + 1  # the token that ends it
        wanted, room = len(examples), max_model_len - task.max_tokens
        while True:
            asked = map(len, self._asked(splits["test"], examples))
            found["question"] = list(zip(asked, (row["input"] for row in splits["test"]), strict=True))
            if max(found["question"])[0] <= room or "few_shot" in task.model_fields_set or not examples:
                break
            examples.pop()
        if len(examples) < wanted:
            print(f"few-shot prompts have {len(examples)} examples: {wanted} do not fit into max_model_len")
        more = "max_model_len in the profile to more, or few_shot or max_tokens in the task to less"
        for kind, limit, change in (
            ("training row", recipe.longest_row(self.recipe_args), "cutoff_len in the recipe to more"),
            ("answer", task.max_tokens, "max_tokens in the task to more"),
            ("question", room, more),
        ):
            tokens, text = max(found[kind])
            if tokens > limit:
                start = shorten(text, 60, placeholder="…")
                raise TutorialError(f"the {kind} {start!r} has {tokens} tokens, {limit} fit; set {change}")
        return {kind: max(counts)[0] for kind, counts in found.items()}

    def _row(self, row: Row) -> Row:
        said = self.messages(row)
        if self._rendered:
            return {"input": self.template.render(said), "output": row["output"] + self.template.end}
        texts = [turn["content"] for turn in said if turn["role"] != "system"]
        system = said[0]["content"] if len(said) > len(texts) else ""
        found = {"instruction": system, "input": texts[-1], "output": row["output"]}
        history = [texts[place : place + 2] for place in range(0, len(texts) - 1, 2)]
        return found | ({"history": history} if history else {})

    def _asked(self, rows: Sequence[Row], examples: Sequence[Row] = ()) -> list[list[int]]:
        """The tokens that the engines are asked, by the endpoint and by ray.data.llm."""
        template, said = self.template, [self.messages(row, examples) for row in rows]
        texts = [template.render(each) for each in said]
        batch_texts = [template.render(each, template.batch_text) for each in said]
        batch = template.tokenizer(batch_texts)["input_ids"]
        endpoint = template.tokenizer(texts, add_special_tokens=False)["input_ids"]
        for one, other in zip(batch, endpoint, strict=True):
            if one != other:
                raise template.unusable(f"ray.data.llm would ask {self._parted(one, other)}")
        return endpoint

    def _compare(self, row: Row, asked: list[int]) -> tuple[int, int]:
        """How many tokens a row and its answer have. Raises ValueError if they are not what is asked."""
        for key, value in row.items():
            for text in [value] if isinstance(value, str) else chain.from_iterable(value):
                if mark := self.template.markup.search(text):
                    wrong = f"its {key} holds {mark[0]!r}, markup for the model"
                    raise ValueError(f"{wrong}; delete it from the row")
        change = "change the row" if self._rendered else "set template: empty in the recipe"
        trained, template = self._encode(self._row(row)), self.template
        answer = trained[len(asked) :]
        if trained[: len(asked)] != asked:
            raise ValueError(f"LLaMA-Factory trains on {self._parted(trained, asked)}; {change}")
        end = next((place for place, token in enumerate(answer) if token in template.stops), None)
        said = template.tokenizer.decode(answer[:end], skip_special_tokens=True)
        if end is None or said.strip() != row["output"].strip() or template.say(answer[end + 1 :]).strip():
            stops = " or ".join(sorted(template.names(template.stops)))
            wrong = f"the answer {template.say(answer)!r}, not {row['output']!r} and {stops}"
            raise ValueError(f"LLaMA-Factory trains on {wrong}; {change}")
        return len(trained), end

    def _parted(self, ids: list[int], asked: list[int]) -> str:
        """Both texts around the first token that differs."""
        place = next(i for i, (one, other) in enumerate(zip_longest(ids, asked)) if one != other)
        one, other = (self.template.say(each[max(0, place - 10) : place + 10]) for each in (ids, asked))
        return f"…{one!r}… and the endpoint is asked …{other!r}… (token {place + 1})"

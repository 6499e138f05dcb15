"""One prompt: training, ray.data.llm and the endpoint send the model the same tokens, and `Chat.check` proves it.

Three programs turn a row into tokens. LLaMA-Factory encodes the pieces of a template of its own. ray.data.llm
renders the model's chat template and tokenizes the text, which adds the tokenizer's special tokens. vLLM's endpoint
renders the chat template too, and adds none. Nothing else compares them.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from textwrap import shorten
from typing import Any

from tutorial import TutorialError, one_line, recipe
from tutorial.tasks import Task

Row, Turns = dict[str, str], list[dict[str, str]]

PLAIN = (  # for a base model, whose tokenizer has no chat template
    "{% for turn in messages %}{% if turn.role == 'user' %}### Input:\n{{ turn.content }}\n\n### Response:\n"
    "{% elif turn.role == 'assistant' %}{{ turn.content + eos_token }}\n\n"
    "{% else %}{{ turn.content }}\n\n{% endif %}{% endfor %}"
)
# A template that asks the clock would send another prompt each day. Llama's falls back on this one.
DAY = {f"%{code}": datetime(2024, 7, 26).strftime(f"%{code}") for code in "YymBbdAajHIMSp"}
CLOCK = (
    "{% macro strftime_now(format) %}{% set day = namespace(text=format.replace('%-', '%')) %}"
    f"{{% for code, value in {DAY}.items() %}}{{% set day.text = day.text.replace(code, value) %}}{{% endfor %}}"
    "{{ day.text }}{% endmacro %}"
)
PROBE = {"instruction": "Be brief.", "input": " two  words \n", "output": "one[two]"}
PROCESSORS = ("processor_config.json", "preprocessor_config.json", "chat_template.json")


class Chat:
    """How one model is asked, decided from its tokenizer, its chat template and the recipe.

    LLaMA-Factory gets the rows as turns if it makes the same tokens of them as the chat template, else as text that
    the chat template has rendered. Thoughts are off if the chat template can switch them, unless the recipe sets
    `enable_thinking`.

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
        self.recipe_args, self._path = dict(recipe_args), Path(model_path)
        self._named, self._system = recipe_args.get("template"), recipe_args.get("default_system")
        self._tokenizer, self._stops = _load(self._path)
        own = self._own_template()
        self._options = {}
        if "enable_thinking" in own:
            self._options = {"enable_thinking": bool(recipe_args.get("enable_thinking"))}
            self.recipe_args |= self._options
        self._template = CLOCK + own if "strftime_now" in own else own
        self._fit_template()
        self._rendered = self._named == "empty"
        if self._named is None:
            try:
                self._encode, _ = self._trainer()
                self._compare(PROBE, self._asked([PROBE])[0])
            except Exception:  # LLaMA-Factory takes the chat template apart, and fails in many ways
                self._rendered = True
        if self._rendered:
            self.recipe_args |= {"template": "empty", "default_system": None}
        self._encode, _ = self._trainer()
        self.columns = {"prompt": "input", "response": "output"}
        self.columns |= {} if self._rendered else {"system": "instruction"}
        known = self._tokenizer.chat_template
        if any((self._path / file).exists() for file in PROCESSORS):
            known = None  # the engines would take the processor's chat template
        self.engine_kwargs = {"chat_template": self._template} if self._template != known else {}
        self.template_stage = {"chat_template": self._batch} if self._batch != known else {}
        if self._options:
            self.engine_kwargs["default_chat_template_kwargs"] = self._options
            self.template_stage["chat_template_kwargs"] = self._options
        if re.search(r"\.type\b|\[['\"]type['\"]\]", self._template):  # vLLM would hand it lists of parts
            self.engine_kwargs["chat_template_content_format"] = "string"

    def __getstate__(self) -> dict[str, Any]:  # Ray's workers need `messages` alone
        return {key: self.__dict__[key] for key in ("_folds", "_system")}

    def messages(self, row: Row, examples: Sequence[Row] = ()) -> Turns:
        """The turns that ask for a row's answer, after the questions and answers of `examples`. The system text
        begins the first user turn if the chat template has no system turn."""
        turns = []
        for example in examples:
            turns += [_turn("user", example["input"]), _turn("assistant", example["output"])]
        turns.append(_turn("user", row["input"]))
        system = row["instruction"] or self._system
        if not system:
            return turns
        if self._folds:
            return [_turn("user", f"{system}\n\n{turns[0]['content']}"), *turns[1:]]
        return [_turn("system", system), *turns]

    def rows(self, rows: Sequence[Row]) -> list[Row]:
        """The rows as LLaMA-Factory gets them, with the keys that `columns` names."""
        return [self._row(row) for row in rows]

    def side_by_side(self, row: Row) -> tuple[str, str]:
        """The text that training makes of a row, and the text that the engines are asked."""
        return self._say(self._encode(self._row(row))), self._say(self._asked([row])[0])

    def check(
        self, splits: dict[str, Sequence[Row]], examples: Sequence[Row], task: Task, max_model_len: int
    ) -> dict[str, int]:
        """The most tokens of a training row, of a test question after its examples, and of an answer.

        Of every row, LLaMA-Factory's tokens must be the endpoint's, the answer's, and one at which the engine stops.
        The endpoint's must be ray.data.llm's, without and with `examples`.

        Raises:
            TutorialError: they differ, a row holds the model's markup, or something is longer than the recipe's
                cutoff_len, the task's max_tokens or the engine's `max_model_len`; names the row, and what to set.
        """
        found = {"training row": (0, ""), "answer": (0, ""), "question": (0, "")}

        def count(kind: str, tokens: int, text: str) -> None:
            found[kind] = max(found[kind], (tokens, shorten(text, 60, placeholder="…")))

        self._check_markup(splits)
        for split, rows in splits.items():
            for number, (row, asked) in enumerate(zip(rows, self._asked(rows), strict=True), start=1):
                try:
                    trained, answer = self._compare(row, asked)
                except ValueError as error:
                    raise TutorialError(f"{split}, row {number}: {error}; {self._change()}") from None
                if split == "test":
                    count("answer", answer, row["output"])
                else:
                    count("training row", trained, row["input"])
        for row, asked in zip(splits["test"], self._asked(splits["test"], examples), strict=True):
            count("question", len(asked), row["input"])
        more = "max_model_len in the profile to more, or few_shot or max_tokens in the task to less"
        limits = {
            "training row": (recipe.longest_row(self.recipe_args), "cutoff_len in the recipe to more"),
            "answer": (task.max_tokens, "max_tokens in the task to more"),
            "question": (max_model_len - task.max_tokens, more),
        }
        for kind, (limit, change) in limits.items():
            if found[kind][0] > limit:
                tokens, text = found[kind]
                raise TutorialError(f"the {kind} {text!r} has {tokens} tokens, and {limit} fit; set {change}")
        return {kind: tokens for kind, (tokens, _) in found.items()}

    def _compare(self, row: Row, asked: list[int]) -> tuple[int, int]:
        """The tokens of a row in training, and of its answer. Raises ValueError if they are not what is asked."""
        trained = self._encode(self._row(row))
        if trained[: len(asked)] != asked:
            raise ValueError(f"LLaMA-Factory trains on {self._parted(trained, asked)}")
        answer = trained[len(asked) :]
        end = next((place for place, token in enumerate(answer) if token in self._stops), None)
        if end is None:
            stops = " or ".join(map(self._say, self._stops))
            raise ValueError(
                f"training ends with {self._say(answer[-5:])!r}, and the engine stops at {stops}"
            )
        said = self._tokenizer.decode(answer[:end], skip_special_tokens=True)
        if said.strip() != row["output"].strip() or self._say(answer[end + 1 :]).strip():
            raise ValueError(
                f"LLaMA-Factory trains on the answer {self._say(answer)!r}, not {row['output']!r}"
            )
        return len(trained), end

    def _change(self) -> str:
        if self._rendered:
            return "change the row"
        return (
            f"delete template: {self._named} from the recipe"
            if self._named
            else "set template: empty in the recipe"
        )

    def _parted(self, trained: list[int], asked: list[int]) -> str:
        """Both texts around the place from which their tokens differ."""
        pairs = zip(trained, asked, strict=False)
        place = next(
            (i for i, (one, other) in enumerate(pairs) if one != other), min(len(trained), len(asked))
        )
        one, other = (self._say(ids[max(0, place - 10) : place + 10]) for ids in (trained, asked))
        return f"…{one!r}… and the engine is asked …{other!r}… (token {place + 1})"

    def _check_markup(self, splits: dict[str, Sequence[Row]]) -> None:
        for split, rows in splits.items():
            for key in ("input", "output", "instruction"):
                tokens = self._tokenizer([row[key] for row in rows], add_special_tokens=False)["input_ids"]
                for number, ids in enumerate(tokens, start=1):
                    if found := self._markup.intersection(ids):
                        raise TutorialError(
                            f"{split}, row {number}: its {key} holds {self._say(min(found))!r}, which is markup for "
                            "the model; delete it from the row"
                        )

    def _text(self, turns: Turns, template: str | None = None, ask: bool = True) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                turns,
                chat_template=template or self._template,
                tokenize=False,
                add_generation_prompt=ask,
                **self._options,
            )
        except Exception as error:  # Jinja's, the template's own words, or what Python says of its text
            raise self._unusable(f"its chat template fails: {one_line(error)}") from None

    def _asked(self, rows: Sequence[Row], examples: Sequence[Row] = ()) -> list[list[int]]:
        """The tokens that the engines are asked, by the endpoint and by ray.data.llm."""
        turns, ids = [self.messages(row, examples) for row in rows], self._tokenizer
        endpoint = ids([self._text(each) for each in turns], add_special_tokens=False)["input_ids"]
        batch = ids([self._text(each, self._batch) for each in turns])["input_ids"]
        for one, other in zip(batch, endpoint, strict=True):
            if one != other:
                raise self._unusable(f"ray.data.llm would ask {self._parted(one, other)}")
        return endpoint

    def _own_template(self) -> str:
        """The model's chat template. A base model has none: LLaMA-Factory's, if the recipe names one, or `PLAIN`."""
        if not self._tokenizer.chat_template:
            return PLAIN if self._named in (None, "empty") else self._trainer()[1] or PLAIN
        try:
            return self._tokenizer.get_chat_template()
        except ValueError:
            names = ", ".join(self._tokenizer.chat_template)
            raise self._unusable(f"its chat templates are {names}; name one of them default") from None

    def _fit_template(self) -> None:
        """Learn what the template does with a system turn and where a turn ends; fit the tokenizer's first token."""
        user, ids = _turn("user", "usertext"), self._tokenizer
        alone = self._text([user])
        if "usertext" not in alone:
            raise self._unusable("its chat template leaves out the user turn")
        try:
            self._folds = "systemtext" not in self._text([_turn("system", "systemtext"), user])
        except TutorialError:
            self._folds = True
        bare, full = (ids("text", add_special_tokens=add)["input_ids"] for add in (False, True))
        first = full[: len(full) - len(bare)]
        if full[len(first) :] != bare:
            raise self._unusable(
                "its tokenizer adds a token behind each text; set add_eos_token: false in its files"
            )
        begin = self._say(first)
        if not alone.startswith(begin):
            self._template = f"{{{{ {begin!r} }}}}{self._template}"
        self._batch = self._template
        if begin:  # ray.data.llm's tokenizer adds it to the rendered text
            inner = self._template.removesuffix("\n")
            self._batch = f"{{% set text +%}}{inner}{{%+ endset %}}{{{{ text[{len(begin)}:] }}}}"
        try:
            talk = self._text([user, _turn("assistant", "answertext")], ask=False)
            marks = ids(self._text([user, _turn("assistant", "answertext"), user]), add_special_tokens=False)
        except TutorialError:
            talk, marks = "", {"input_ids": []}
        after = ids(talk.rpartition("answertext")[2], add_special_tokens=False)["input_ids"]
        self._end = self._say([next((token for token in after if token in self._stops), ids.eos_token_id)])
        added = ids.added_tokens_decoder
        markup = {number for number, token in added.items() if token.special or number in marks["input_ids"]}
        markup = (markup | self._stops | set(ids.all_special_ids)) - {ids.unk_token_id}
        self._markup = {number for number in markup if len(self._say([number]).strip()) > 2}

    def _row(self, row: Row) -> Row:
        turns = self.messages(row)
        if self._rendered:
            return {"input": self._text(turns), "output": row["output"] + self._end}
        system = turns[0]["content"] if len(turns) > 1 else ""
        return {"instruction": system, "input": turns[-1]["content"], "output": row["output"]}

    def _trainer(self) -> tuple[Callable[[Row], list[int]], str | None]:
        """LLaMA-Factory's encoder of a row, and the chat template that it gives its tokenizer."""
        from llamafactory.data import get_template_and_fix_tokenizer
        from llamafactory.hparams import DataArguments, ModelArguments
        from llamafactory.model import load_tokenizer

        model_args, data_args = (
            kind(
                **{
                    field.name: args[field.name]
                    for field in fields(kind)
                    if field.init and field.name in args
                }
            )
            for kind, args in (
                (ModelArguments, self.recipe_args | {"model_name_or_path": str(self._path)}),
                (DataArguments, self.recipe_args),
            )
        )
        tokenizer = load_tokenizer(model_args)["tokenizer"]
        template = get_template_and_fix_tokenizer(tokenizer, data_args)
        last_only = data_args.mask_history and not template.preserve_thinking

        def encode(row: Row) -> list[int]:
            turns = [_turn("user", row["input"]), _turn("assistant", row["output"])]
            pairs = template.encode_multiturn(tokenizer, turns, row.get("instruction"), None, last_only)
            end = [tokenizer.eos_token_id] if template.efficient_eos else []
            return [token for pair in pairs for part in pair for token in part] + end

        return encode, tokenizer.chat_template

    def _say(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids))

    def _unusable(self, why: str) -> TutorialError:
        return TutorialError(f"MODEL={self._path.name}: {why}")


def _load(path: Path) -> tuple[Any, set[int]]:
    """The model's tokenizer, and the tokens at which the engines stop: its own, and those of the model's files."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:
        raise TutorialError(f"MODEL={path.name}: its tokenizer cannot be loaded: {one_line(error)}") from None
    if tokenizer.eos_token_id is None:
        raise TutorialError(
            f"MODEL={path.name}: its tokenizer has no eos_token; set it in tokenizer_config.json"
        )
    try:
        config = GenerationConfig.from_pretrained(path)
    except OSError:
        config = AutoConfig.from_pretrained(path)
    stops = config.eos_token_id if config.eos_token_id is not None else []
    return tokenizer, {tokenizer.eos_token_id, *(stops if isinstance(stops, list) else [stops])}


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}

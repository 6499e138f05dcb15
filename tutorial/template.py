"""The chat template of the model in use, fitted so that the endpoint and ray.data.llm make the same of it."""

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from tutorial import TutorialError, one_line
from tutorial.layouts import Row

PLAIN = (  # for a base model, whose tokenizer has no chat template
    "{% for turn in messages %}{% if turn.role == 'user' %}### Input:\n{{ turn.content }}\n\n### Response:\n"
    "{% elif turn.role == 'assistant' %}{{ turn.content + eos_token }}\n\n"
    "{% else %}{{ turn.content }}\n\n{% endif %}{% endfor %}"
)
# A template that asks the clock would send another prompt each day. This is the day Llama's falls back on.
DAY = {f"%{code}": datetime(2024, 7, 26).strftime(f"%{code}") for code in "YymBbdAajHIMSp"}
CLOCK = (
    "{% macro strftime_now(format) %}{% set day = namespace(text=format.replace('%-', '%')) %}"
    f"{{% for code, text in {DAY}.items() %}}{{% set day.text = day.text.replace(code, text) %}}"
    "{% endfor %}{{ day.text }}{% endmacro %}"
)
PROCESSORS = ("processor_config.json", "preprocessor_config.json", "chat_template.json")
SYSTEM, USER, ANSWER = ({"role": role, "content": f"{role} text"} for role in ("system", "user", "assistant"))


class ChatTemplate:
    """A model's tokenizer and chat template.

    Args:
        path: the model's folder.
        thinks: for a chat template that can switch thoughts, whether they are on.
        of_trainer: LLaMA-Factory's own chat template for a model that has none, or None.

    Attributes:
        tokenizer: as the engines load it.
        text: the chat template for the endpoint, which adds no special token to what it renders.
        batch_text: the chat template for ray.data.llm, which adds the tokenizer's first token.
        options: further arguments of the template.
        first: the text of the tokens that the tokenizer puts before each text, "" if there are none.
        has_system: whether it writes a system turn; if not, the text belongs into the first user turn.
        end: the text that ends an answer, a token at which the engines stop.
        stops: the ids of all such tokens.
        markup: finds text that is a special token, or one that separates turns.

    Raises:
        TutorialError: the tokenizer or the template cannot be used; says why.
    """

    def __init__(self, path: Path, thinks: bool, of_trainer: Callable[[], str | None]):
        self.path, self.options = path, {}
        self._load()
        self.text = own = self._own() or of_trainer() or PLAIN
        if "enable_thinking" in own:
            self.options = {"enable_thinking": thinks}
        if "strftime_now" in own:
            self.text = CLOCK + own
        alone = self.render([USER])
        if USER["content"] not in alone:
            raise self.unusable("its chat template leaves out the user turn")
        try:
            self.has_system = SYSTEM["content"] in self.render([SYSTEM, USER])
        except TutorialError:
            self.has_system = False
        self._fit_first_token(alone)
        self._find_end()

    def render(self, turns: list[dict[str, str]], text: str | None = None, ask: bool = True) -> str:
        """The conversation as text, with the beginning of an answer if `ask`. `text`: another template."""
        options = {"chat_template": text or self.text, "tokenize": False, "add_generation_prompt": ask}
        try:
            return self.tokenizer.apply_chat_template(turns, **options, **self.options)
        except Exception as error:  # Jinja's, or the template's own words
            raise self.unusable(f"its chat template fails: {one_line(error)}") from None

    def say(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones too."""
        return self.tokenizer.decode(list(ids))

    def names(self, ids: Sequence[int]) -> list[str]:
        """Special tokens as they are written; `decode` may change characters in them."""
        return self.tokenizer.convert_ids_to_tokens(list(ids))

    def told(self, text: str, key: str) -> dict[str, Any]:
        """What a program has to be told of the template `text`: nothing that it finds in the model's folder.
        `key`: its name for the template's further arguments."""
        found = {} if text == self._known else {"chat_template": text}
        return found | ({key: self.options} if self.options else {})

    def unusable(self, why: str) -> TutorialError:
        return TutorialError(f"MODEL={self.path.name}: {why}")

    def _load(self) -> None:
        from transformers import AutoConfig, AutoTokenizer, GenerationConfig  # it takes seconds

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(self.path, trust_remote_code=False)
            config = AutoConfig.from_pretrained(self.path, trust_remote_code=False)
        except Exception as error:
            raise self.unusable(f"its tokenizer cannot be loaded: {one_line(error)}") from None
        # As the engines do. Otherwise Llama 3's tokenizer drops the space before ? and !
        self.tokenizer.clean_up_tokenization_spaces = False
        if self.tokenizer.eos_token_id is None:
            raise self.unusable("its tokenizer has no eos_token; set one in tokenizer_config.json")
        with suppress(OSError):  # as vLLM does, whatever its own generation_config is
            config = GenerationConfig.from_pretrained(self.path)
        stops = getattr(config, "eos_token_id", None)
        self.stops = {self.tokenizer.eos_token_id, *(stops if isinstance(stops, list) else [stops])} - {None}
        has_processor = any((self.path / file).exists() for file in PROCESSORS)  # with a template of its own
        self._known = None if has_processor else self.tokenizer.chat_template

    def _own(self) -> str | None:
        if not self.tokenizer.chat_template:
            return None
        try:
            return self.tokenizer.get_chat_template()
        except ValueError:
            names = ", ".join(sorted(self.tokenizer.chat_template))
            raise self.unusable(f"its chat templates are {names}; name one of them default") from None

    def _fit_first_token(self, alone: str) -> None:
        encode = self.tokenizer
        bare, full = (encode("text", add_special_tokens=add)["input_ids"] for add in (False, True))
        self.first = first = "".join(self.names(full[: len(full) - len(bare)]))
        if full[len(full) - len(bare) :] != bare:
            why = "its tokenizer ends each text with a token; set add_eos_token: false in its files"
            raise self.unusable(why)
        self.batch_text = self.text
        if first:
            skip = len(first) if alone.startswith(first) else 0
            begin = "{% set text +%}" + self.text.removesuffix("\n") + "{%+ endset %}"
            self.batch_text = f"{begin}{{{{ text[{skip}:] }}}}"
            if not skip:
                self.text = f"{{{{ {first!r} }}}}{self.text}"
            asked = encode(self.render([USER], self.batch_text))["input_ids"]
            if asked != encode(self.render([USER]), add_special_tokens=False)["input_ids"]:
                # SentencePiece puts a space before a text, but not if a special token begins it.
                self.text = f"{begin}{{{{ {first + ' '!r} + text[{skip}:] }}}}"

    def _find_end(self) -> None:
        def tokens(text: str) -> list[int]:
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]

        try:
            tail = self.render([USER, ANSWER], ask=False).rpartition(ANSWER["content"])[2]
            between = set(tokens(self.render([USER, ANSWER, USER])))
        except TutorialError:  # a template may refuse such a conversation
            tail, between = "", set()
        ends = (token for token in tokens(tail) if token in self.stops)
        (self.end,) = self.names([next(ends, self.tokenizer.eos_token_id)])
        added = self.tokenizer.added_tokens_decoder
        markup = {number for number, token in added.items() if token.special or number in between}
        texts = self.names((markup | self.stops) - {self.tokenizer.unk_token_id})
        words = [re.escape(text) for text in texts if len(text.strip()) > 2]
        self.markup = re.compile("|".join(words) or "(?!)")


def turns(row: Row) -> list[dict[str, str]]:
    """A row's conversation, from its first question to its answer."""
    history = row.get("history", [])
    history = json.loads(history) if isinstance(history, str) else history  # see batch.questions
    pairs = [*history, (row["input"], row.get("output", ""))]
    return [
        kind | {"content": each} for pair in pairs for kind, each in zip((USER, ANSWER), pair, strict=True)
    ]


def trainer(path: Path, recipe_args: dict[str, Any]) -> tuple[Callable[[Row], list[int]], str | None]:
    """LLaMA-Factory's encoder of a row, and the chat template that it gives to its tokenizer."""
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments, ModelArguments
    from llamafactory.model import load_tokenizer
    from transformers import HfArgumentParser

    parser = HfArgumentParser((ModelArguments, DataArguments))
    args = recipe_args | {"model_name_or_path": str(path)}
    model_args, data_args = parser.parse_dict(args, allow_extra_keys=True)
    tokenizer = load_tokenizer(model_args)["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    last_only = data_args.mask_history and not template.preserve_thinking

    def encode(row: Row) -> list[int]:
        pairs = template.encode_multiturn(tokenizer, turns(row), row.get("instruction"), None, last_only)
        end = [tokenizer.eos_token_id] if template.efficient_eos else []
        return [token for pair in pairs for part in pair for token in part] + end

    return encode, tokenizer.chat_template

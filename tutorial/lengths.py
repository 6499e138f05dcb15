"""Whether prompts and answers fit, in tokens: the trainer would cut what does not, the engine refuse it."""

import textwrap
from pathlib import Path

from tutorial import TutorialError
from tutorial.data import Rows, messages
from tutorial.task import Task


def check(
    rows: dict[str, Rows],
    examples: Rows,
    task: Task,
    model_path: Path,
    *,
    cutoff_len: int,
    max_model_len: int,
) -> dict[str, int]:
    """The most tokens of a training row, of a test question with its examples, and of an answer.

    Args:
        rows: by split.
        examples: of the few-shot prompts.
        task: says how long an answer may be.
        model_path: the folder of the base model, for its tokenizer and chat template.
        cutoff_len: the recipe's; LLaMA-Factory cuts longer rows without a word.
        max_model_len: the engine's, for prompt and answer together.

    Raises:
        TutorialError: something does not fit; says what, and which of the settings to raise.
    """
    from transformers import AutoTokenizer  # imported here: it takes seconds

    tokenizer = AutoTokenizer.from_pretrained(model_path)

    def tokens(conversations: list, **options: bool) -> list[int]:
        return list(map(len, tokenizer.apply_chat_template(conversations, return_dict=False, **options)))

    def longest(counts: list[int], texts: list[str]) -> tuple[int, str]:
        most, text = max(zip(counts, texts, strict=True))
        return most, textwrap.shorten(text, 60, placeholder="…")

    trained, test = [*rows["train"], *rows["val"]], rows["test"]
    said = tokens([[*messages(row), {"role": "assistant", "content": row["output"]}] for row in trained])
    asked = tokens([messages(row, examples) for row in test], add_generation_prompt=True)
    answers = [row["output"] for row in test]
    ids = tokenizer(answers, add_special_tokens=False)["input_ids"]
    row_tokens, row = longest(said, [row["input"] for row in trained])
    question_tokens, question = longest(asked, [row["input"] for row in test])
    answer_tokens, answer = longest(list(map(len, ids)), answers)

    if row_tokens > cutoff_len:
        _refuse(
            f"{row!r} has {row_tokens} tokens with its answer, and cutoff_len={cutoff_len} cuts there",
            "cutoff_len in the recipe to more",
        )
    if answer_tokens > task.max_tokens:
        _refuse(
            f"the answer {answer!r} has {answer_tokens} tokens, and max_tokens={task.max_tokens} cuts there",
            "max_tokens in the task to more",
        )
    if question_tokens + task.max_tokens > max_model_len:
        _refuse(
            f"{question!r} has {question_tokens} tokens with its {len(examples)} examples, and an answer of "
            f"max_tokens={task.max_tokens} does not fit beside it in max_model_len={max_model_len}",
            "max_model_len in the profile to more, or few_shot or max_tokens in the task to less",
        )
    return {"training row": row_tokens, "question": question_tokens, "answer": answer_tokens}


def _refuse(what: str, change: str) -> None:
    raise TutorialError(f"{what}; set {change}")

import pytest

from tutorial import TutorialError, lengths, sample, task

VIGGO = task.load("viggo")
ROWS = {split: part[:5] for split, part in sample.rows().items()}
LONG = {**ROWS["test"][0], "input": "Is it " + "very " * 300 + "fun?"}


def test_what_fits_is_counted(model_path):
    found = lengths.check(ROWS, ROWS["train"][:4], VIGGO, model_path, cutoff_len=512, max_model_len=1024)
    assert found["answer"] < found["training row"] < found["question"]


@pytest.mark.parametrize(
    ("rows", "limits", "message"),
    [
        (
            ROWS,
            (32, 1024),
            r"tokens with its answer, and cutoff_len=32 cuts there; set cutoff_len in the rec",
        ),
        (ROWS | {"val": [LONG]}, (256, 4096), r"^'Is it very .*…' has \d+ tokens with its answer"),
        (
            ROWS | {"test": [LONG]},
            (512, 512),
            r"with its 4 examples, and an answer of max_tokens=96 does not",
        ),
        (
            ROWS | {"test": [LONG | {"output": "inform(" + "name[a], " * 40 + "esrb[])"}]},
            (512, 4096),
            r"^the answer 'inform\(name.*…' has \d+ tokens, and max_tokens=96 cuts there; set max_tokens",
        ),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(model_path, rows, limits, message):
    with pytest.raises(TutorialError, match=message) as error:
        lengths.check(
            rows, ROWS["train"][:4], VIGGO, model_path, cutoff_len=limits[0], max_model_len=limits[1]
        )
    assert "\n" not in str(error.value)

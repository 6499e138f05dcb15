"""The kinds of answers: each is found or said, scored by its own metrics, and shows none of another's."""

import json

import pandas as pd
import pytest
import xgrammar
from ray.serve.llm.openai_api_models import ChatCompletionRequest
from transformers import AutoTokenizer
from vllm.sampling_params import SamplingParams
from vllm.v1.structured_output.backend_xgrammar import validate_xgrammar_grammar

from tests.test_meaning import accepts
from tests.test_plots import cells
from tests.test_score import ANSWERS, TARGETS
from tests.test_tasks import GOOD, mine, refused
from tutorial import TutorialError, answers, data, kind, plots, score, tasks
from tutorial.answers import Labels, Text
from tutorial.schema import Objects

MEANING = {"functions": ["a", "b"], "attributes": {"x": "text", "y": "list", "z": ["yes", "no"]}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
SENTENCES = ["The cat sat.", "A dog ran home.", "It rains.", "No.", "Who knows?", "Perhaps tomorrow."]
LABELLED = ["Billing", "Delivery & returns", "Öl/Gas"] * 4
JSON_ROWS = ['{"id": 1, "First Name": "Ann"}', '{"id": 2, "First Name": "Bo", "tags": ["x"]}']


def task(folder, **change):
    return tasks.load(mine(folder, change))


def rows(train, test=None):
    splits = {"train": train, "val": train, "test": test or train}
    return {split: drawn(part, part) for split, part in splits.items()}


def drawn(texts, of):
    """Rows with some of the answers that there were to draw from."""
    part = data.Drawn([{"input": f"q{i}", "output": text} for i, text in enumerate(texts)])
    part.seen = kind.Seen(text.strip() for text in of)
    return part


def part(said, targets):
    table = {"input": [f"q{i}" for i in range(len(targets))], "answer": said, "target": targets}
    return pd.DataFrame(table, dtype=object)


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_answer_that_is_broken_json_among_others_is_one_line(tmp_path, split):
    """Not a traceback when it is scored, and not another kind for all the others."""
    whole = [f'{{"a": {number}}}' for number in range(9)]
    given = {"train": whole, "test": whole[:3]}
    given[split] = [*given[split], '{"a": 1']
    with pytest.raises(
        TutorialError, match=r"^DATA: 1 of 10 .*such as '\{\"a\": 1': not JSON .* `answers: JSON`"
    ) as error:
        answers.of(task(tmp_path), rows(given["train"], given["test"]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("train", "name"),
    [
        (LABELLED, "label"),
        (["yes ", "no"] * 3, "label"),
        (JSON_ROWS, "JSON"),
        (['{"intent": "x"}'] * 9, "JSON"),  # objects that repeat are objects
        (SENTENCES, "text"),
        (SENTENCES * 2, "text"),  # each twice is not often
        (["OK"] * 9, "text"),  # one answer to everything tells nothing apart
        (["two\nlines", "one line"] * 5, "text"),
        (["x" * 61, "y"] * 5, "text"),
        (["[1]", "[2]"] * 1, "text"),
        ([*JSON_ROWS, "none"], "text"),
    ],
)
def test_a_kind_is_found_from_the_training_rows(tmp_path, capsys, train, name):
    assert answers.of(task(tmp_path), rows(train)).name == name
    assert capsys.readouterr().out == f"kind of answers, found from the training rows: {name}\n"


@pytest.mark.parametrize(
    ("train", "name"),
    [(LABELLED * 5, "label"), ([f"No. {n}" for n in range(60)], "text"), (JSON_ROWS * 20, "JSON")],
)
def test_a_run_on_few_rows_finds_the_kind_of_all(tmp_path, capsys, train, name):
    (tmp_path / "mine.jsonl").write_text(
        "".join(json.dumps({"prompt": f"q{n}", "response": text}) + "\n" for n, text in enumerate(train))
    )
    made = task(tmp_path, columns={"prompt": "prompt", "response": "response"})
    found = []
    for counts in (None, {"train": 3, "val": 1, "test": 1}):
        splits = data.load(made, str(tmp_path / "mine.jsonl"), counts=counts)
        found.append(answers.of(made, splits))
    assert [each.name for each in found] == [name, name]
    assert found[0].guide == found[1].guide, "labels, and the schema of objects, of all rows too"


def test_of_many_different_answers_the_first_are_kept():
    seen = kind.Seen()
    texts = [f" {n}" for n in [*range(kind.DIFFERENT + 9), *range(9)]]
    assert [row["output"] for row in seen.through({"output": text} for text in texts)] == texts
    assert (len(seen), seen["0"], seen.total()) == (kind.DIFFERENT, 2, kind.DIFFERENT + 9)


@pytest.mark.parametrize(
    ("change", "train", "name"),
    [
        ({"answers": "text"}, LABELLED, "text"),
        ({"answers": "label"}, SENTENCES, "label"),
        ({"labels": sorted(set(LABELLED))}, LABELLED, "label"),
        ({"answers": "JSON"}, JSON_ROWS, "JSON"),
        ({"answers": "JSON", "json_schema": SCHEMA}, JSON_ROWS, "JSON"),
        ({"meaning": MEANING}, TARGETS, "meaning"),
    ],
)
def test_what_the_task_file_says_counts(tmp_path, capsys, change, train, name):
    assert answers.of(task(tmp_path, **change), rows(train)).name == name
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": "number"}, "mine.yaml: answers: Input should be 'label', 'JSON' or 'text'"),
        ({"labels": ["one"]}, "mine.yaml: labels: List should have at least 2 items"),
        ({"labels": [True, False]}, "mine.yaml: labels.0: Input should be a valid string"),
        ({"labels": ["a", " b"]}, "mine.yaml: labels.1: String should match pattern"),
        ({"json_schema": {"type": "list"}}, "mine.yaml: json_schema: "),
        ({"answers": "text", "labels": ["a", "b"]}, "mine.yaml: "),
        ({"meaning": MEANING, "json_schema": SCHEMA}, "mine.yaml: "),
    ],
)
def test_a_wrong_word_about_answers_is_one_line(tmp_path, change, message):
    refused(message, tasks.load, mine(tmp_path, change))


@pytest.mark.parametrize(
    ("change", "good", "bad", "message"),
    [
        ({"labels": ["a", "b c"]}, "b c", "c", "column 'a': 'c' is none of the task's labels"),
        ({"answers": "JSON"}, '{"a": 1}', "[1]", "column 'a': a JSON object is needed"),
        ({"json_schema": SCHEMA}, '{"a": 1}', '{"a": "x"}', "column 'a': a: 'x' is not of type 'integer'"),
    ],
)
def test_a_row_that_the_task_does_not_allow_is_refused(tmp_path, change, good, bad, message):
    made = task(tmp_path, **change)
    assert made.read({"q": "s", "a": good}, made.columns)["output"] == good
    with pytest.raises(ValueError) as error:  # noqa: PT011  the message is compared whole
        made.read({"q": "s", "a": bad}, made.columns)
    assert str(error.value) == message


def test_labels_that_no_training_row_has_are_said(tmp_path, capsys):
    kind = answers.of(task(tmp_path, answers="label"), rows(["a", "b"], ["a", "c", "c", "d"]))
    said = "labels that no training row has: 'c' in 2, 'd' in 1 of 4 test rows\n"
    assert capsys.readouterr().out == said
    assert kind.guide == {"structured_outputs": {"choice": ["a", "b"]}}


def test_objects_unlike_those_of_the_training_rows_are_said(tmp_path, capsys):
    answers.of(task(tmp_path, answers="JSON"), rows(['{"a": 1}'], ['{"a": 1}', '{"a": "x"}', '{"b": 1}']))
    said = "2 of 3 test rows have an answer unlike those of the training rows\n"
    assert capsys.readouterr().out == said


# Worked by hand: labels a and b; three of five are right.
LABEL_TARGETS, LABEL_ANSWERS = ["a", "a", "a", "b", "b"], ["a", "a\n", "b", "b", "It is b."]


def test_known_scores_of_labels():
    kind = Labels(["a", "b"])
    found = score.scores(LABEL_ANSWERS, LABEL_TARGETS, kind)["value"]
    # a: precision 2/2, recall 2/3, F1 4/5. b: precision 1/2, recall 1/2, F1 1/2.
    assert found.to_dict() == pytest.approx({"accuracy": 3 / 5, "valid answers": 4 / 5, "macro F1": 0.65})
    by_label = kind.views(LABEL_ANSWERS, LABEL_TARGETS)["by_label"]
    assert by_label.loc["a"].tolist() == pytest.approx([3, 1, 2 / 3, 4 / 5])
    counts = score.count_kinds(LABEL_ANSWERS, LABEL_TARGETS, kind).to_dict()
    assert counts == {"not a label": 1, "another label": 1}


def test_a_label_s_interval_counts_questions_and_not_labels():
    """Rows of one label are independent; one question in several rows is one."""
    targets = ["a", "b"] * 10
    kind = Labels(["a", "b"])
    assert score.scores(targets, targets, kind).loc["accuracy", "questions"] == 20
    asked = [f"q{i // 2}" for i in range(20)]
    assert score.scores(targets, targets, kind, asked).loc["accuracy", "questions"] == 10
    assert score.gain(targets, ["a"] * 20, targets, kind, asked)["questions"] == 10


def test_the_confusion_matrix_holds_every_row():
    kind = Labels(["a", "b", "$x$ y_1"])
    picture = kind.picture(part([*LABEL_ANSWERS, "a"], [*LABEL_TARGETS, "$x$ y_1"]))
    [axes] = picture.figure.axes
    assert axes.images[0].get_array().tolist() == [[0, 1, 0, 0], [0, 2, 1, 0], [0, 0, 1, 1]]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [r"\$x\$ y_1", "a", "b", answers.OTHER]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [r"\$x\$ y_1", "a", "b"]
    assert "3 of 6 rows are right" in picture.alt
    assert "a answered as b in 1" in picture.alt
    assert picture._repr_mimebundle_()[0]["image/png"]


def test_of_many_labels_the_matrix_shows_the_worst():
    names = [f"label {i:02}" for i in range(40)]
    said = [*names[:38], names[0], names[1]]  # the last two are wrong
    [axes] = Labels(names).picture(part(said, names)).figure.axes
    shown = [tick.get_text() for tick in axes.get_yticklabels()]
    assert len(shown) == 20
    assert {"label 38", "label 39"} <= set(shown)
    assert axes.get_title() == "Confusion matrix: 20 of 40 labels"


# Worked by hand. fields: said, meant, right
OBJECTS = [
    ('{"a": 1, "b": {"c": "x"}}', '{"b": {"c": "x"}, "a": 1.0}'),  # same object, 2 2 2
    ('{"a": 1, "l": ["p", "q"]}', '{"a": 1, "l": ["q", "p"]}'),  # wrong value, 3 3 3
    ('{"a": 1, "l": ["p"]}', '{"a": 2, "l": ["p"]}'),  # wrong value, 2 2 1
    ('{"a": 1}', '{"a": 1, "n": null}'),  # invented field, 2 1 1
    ('{"a": 1, "l": ["p"]}', '{"a": 1}'),  # missing field, 1 2 1
    ('{"a": 1}', '{"a": 1'),  # not a JSON object, 0 1 0
    ('{"a": 1}', ' {"a": 1}\n'),  # right, 1 1 1; sums 11 12 9
]
OBJECT_TARGETS, OBJECT_ANSWERS = ([pair[side] for pair in OBJECTS] for side in (0, 1))
KIND = Objects(
    {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "object"}, "l": {"type": "array"}},
        "additionalProperties": False,
    },
    (", ", ": "),
)


def test_known_scores_of_objects():
    found = score.scores(OBJECT_ANSWERS, OBJECT_TARGETS, KIND)
    assert found["value"].to_dict() == pytest.approx(
        {
            "exact match": 1 / 7,
            "same object": 2 / 7,
            "field precision": 9 / 11,
            "field recall": 9 / 12,
            "field F1": 18 / 23,
            "answers that parse": 6 / 7,
            "valid answers": 5 / 7,
        }
    )
    # Seven rows: one object in three of them, one in two, and two in one each.
    assert found.loc["exact match", "objects"] == 49 / 15
    counts = score.count_kinds(OBJECT_ANSWERS, OBJECT_TARGETS, KIND)
    assert counts.tolist() == [1, 1, 1, 2, 1]
    assert list(counts.index) == list(Objects.mistaken)
    by_field = KIND.views(OBJECT_ANSWERS, OBJECT_TARGETS)["by_field"]
    assert by_field["support"].to_dict() == {"a": 7, "b.c": 1, "l[]": 4}
    assert by_field.loc["l[]"].tolist() == pytest.approx([4, 1, 3 / 4, 6 / 7])


def test_names_of_fields_as_data_sets_have_them():
    name = 'First Name-2 (Größe) "x" \\xf6'
    target = json.dumps({name: {"a.b": 1}}, ensure_ascii=False)
    kind = Objects({"type": "object", "properties": {name: {"type": "object"}}}, (", ", ": "))
    assert accepts(kind.guide["structured_outputs"]["grammar"], target)
    assert kind.views([target], [target])["by_field"].index.to_list() == [f"{name}.a.b"]


@pytest.mark.parametrize(
    "answer", ["", "nonsense", "{", '{"a": 1} {"a": 1}', "[1]", "\ud800\x00**|", '{"a": NaN}']
)
def test_an_answer_that_is_no_object_scores_nothing(answer):
    assert not score.scores([answer], ['{"a": 1}'], KIND)["value"].any()
    assert score.count_kinds([answer], ['{"a": 1}'], KIND)["not a JSON object"] == 1


def test_an_answer_that_is_nested_too_deeply_for_its_schema_is_not_valid():
    kind = Objects({"type": "object", "properties": {"a": {"$ref": "#"}}}, (", ", ": "))
    found = score.scores(['{"a": ' * 300 + "{}" + "}" * 300], ['{"a": {}}'], kind)["value"]
    assert (found["answers that parse"], found["valid answers"]) == (1, 0)


@pytest.mark.parametrize(
    ("answer", "target", "known"),
    [
        ("It rains today.", "It rains today.", (1, 1, 1, 1)),
        ("it  rains, today", "It rains today.", (0, 1, 1, 1)),
        ("today it rains", "It rains today.", (0, 0, 1, 2 / 3)),
        ("rains rains rains", "It rains today.", (0, 0, 1 / 3, 1 / 3)),
        ("", "It rains today.", (0, 0, 0, 0)),
        ("\uff21\uff22", "ab", (0, 1, 1, 1)),
        ("雨が降る", "雨が降った", (0, 0, 6 / 9, 6 / 9)),
        ("?!", "!?", (0, 0, 0, 0)),
        ("?!", "?!", (1, 1, 1, 1)),
    ],
)
def test_known_scores_of_text(answer, target, known):
    """Exact match, normalised match, token F1, ROUGE-L."""
    found = score.scores([answer], [target], Text())["value"].tolist()
    assert found == pytest.approx(known)


def test_the_longest_common_sequence_of_words():
    assert answers.common(list("abcbdab"), list("bdcaba")) == 4
    assert answers.common([], list("ab")) == 0


def test_kinds_of_mistakes_in_text():
    targets = ["It rains."] * 3
    found = score.kinds(["it rains", "it snows", "no"], targets, Text())
    assert found.tolist() == ["case or punctuation", "some words right", "no word right"]


def made():
    """One kind each, with answers that it scores."""
    meanings = tasks.Task(**GOOD, meaning=MEANING)
    return [
        (answers.of(meanings, {}), ANSWERS, TARGETS),
        (Labels(["a", "b"]), LABEL_ANSWERS, LABEL_TARGETS),
        (KIND, OBJECT_ANSWERS, OBJECT_TARGETS),
        (Text(), ["it rains"], ["It rains."]),
    ]


@pytest.mark.parametrize("name", ["viggo", "tickets", "orders"])
def test_vllm_takes_the_guide_and_it_allows_every_target(name, model_path):
    """As the endpoint reads it and as an engine checks it, with the model's own tokens."""
    task = tasks.load(name)
    rows = data.load(task, "sample")
    guide = answers.of(task, rows).guide
    request = ChatCompletionRequest(model="m", messages=[{"role": "user", "content": "q"}], **guide)
    params = SamplingParams(structured_outputs=request.structured_outputs)
    validate_xgrammar_grammar(params)

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer)
    compiled = xgrammar.GrammarCompiler(info).compile_grammar(params.structured_outputs.grammar)
    for row in rows["test"]:
        matcher = xgrammar.GrammarMatcher(compiled)
        for token in [*tokenizer(row["output"])["input_ids"], tokenizer.eos_token_id]:
            assert matcher.accept_token(token), row


@pytest.mark.parametrize(("kind", "said", "targets"), made(), ids=lambda each: getattr(each, "name", ""))
def test_each_kind_shows_its_own_and_none_of_anothers(kind, said, targets):
    answered = {"base": part(said, targets), "tuned": part(targets, targets)}
    shown = cells(plots.scores(kind.scores(answered)))
    assert shown[0] == ["system", *kind.shown]
    assert [row[0] for row in shown[1:]] == ["base", "tuned"]
    assert shown[2][1].startswith("1.000 (")
    mistakes = kind.mistakes(answered["base"], most=3)
    assert set(mistakes["kind"]) <= set(kind.mistaken)
    assert 1 <= len(mistakes) <= 3
    assert (kind.picture(answered["base"]) is not None) == (kind.name == "label")

    report = kind.report(answered)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["kind"] == kind.name
    own = {
        "meaning": {"by_function", "by_attribute"},
        "label": {"by_label"},
        "JSON": {"by_field"},
        "text": set(),
    }
    assert set(report) - {"kind", "scores", "mistakes", "gains"} == own[kind.name]
    headline = next(iter(report["scores"]["tuned"].values()))
    assert (headline["value"], list(headline)) == (1, ["value", "low", "high", kind.unit])
    assert set(report["gains"]) == {"tuned over base"}
    with pytest.raises(ValueError, match="answers for"):
        score.scores(said, targets[:-1], kind)

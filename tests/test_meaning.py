import functools
import json
import re
import runpy

import pytest
import xgrammar
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.conftest import ROOT
from tutorial import score, tasks
from tutorial.meaning import (
    ATTRIBUTE,
    FUNCTION,
    Description,
    Meaning,
    Meanings,
    canonical,
    check,
    grammar,
    parse,
    render,
)

VIGGO = ROOT.parent / "shared" / "viggo"
TASK = tasks.load("viggo").meaning
MODULE = runpy.run_path(str(ROOT / "tasks" / "viggo_rows.py"))
SMALL = {"functions": ["f"], "attributes": {"a": "text"}}
SAMPLE = [row["output"] for part in MODULE["rows"]().values() for row in part]
repeatable = settings(derandomize=True, deadline=None, database=None)

any_text = st.characters(exclude_categories=["Cs"])
plain_names = st.from_regex(r"[a-z_][a-z0-9_]{0,9}", fullmatch=True)
functions = plain_names | st.from_regex(FUNCTION, fullmatch=True, alphabet=any_text)
names = plain_names | st.from_regex(ATTRIBUTE, fullmatch=True, alphabet=any_text)
values = st.text(
    st.characters(exclude_characters="[]\r\n", exclude_categories=["Cs"]), min_size=1, max_size=80
)


def closed(items):
    return st.lists(items, min_size=1, max_size=4, unique=True)


@st.composite
def described(draw):
    """A description and a meaning that it allows."""
    kinds = st.sampled_from(["text", "list"]) | closed(values)
    attributes = draw(st.dictionaries(names, kinds, min_size=1, max_size=4))
    description = Description(functions=draw(closed(functions)), attributes=attributes)
    chosen = draw(closed(st.sampled_from(sorted(attributes))))
    said = [
        (name, draw(st.just("") | (st.sampled_from(kind) if isinstance(kind, list) else values)))
        for name, kind in ((name, attributes[name]) for name in chosen)
    ]
    return description, Meaning(draw(st.sampled_from(description.functions)), tuple(said))


@functools.cache
def compiled(text):
    vocabulary = [bytes([byte]) for byte in range(256)] + ["</s>"]
    info = xgrammar.TokenizerInfo(vocabulary, stop_token_ids=[256])
    return xgrammar.GrammarCompiler(info).compile_grammar(text)


def accepts(grammar, text):
    matcher = xgrammar.GrammarMatcher(compiled(grammar), terminate_without_stop_token=True)
    return matcher.accept_string(text) and matcher.is_terminated()


def allowed(text):
    """What `grammar` promises of TASK, said with `parse` and `check`: an attribute may come twice in it."""
    try:
        meaning = parse(text)
        for attribute in meaning.attributes:
            check(Meaning(meaning.function, (attribute,)), TASK)
    except ValueError:
        return False
    return text == text.strip()


@pytest.fixture(scope="module")
def viggo():
    if not VIGGO.is_dir():
        pytest.skip(f"ViGGO's rows are not in {VIGGO}")
    files = [VIGGO / f"{split}.jsonl" for split in ("train", "val", "test")]
    return [json.loads(line)["output"] for file in files for line in file.open(encoding="utf-8")]


def round_trip(targets):
    for target in targets:
        meaning = parse(target)
        assert render(meaning) == target
        check(meaning, TASK)
        assert accepts(grammar(TASK), target)


def test_the_sample_round_trips():
    assert list(TASK.functions) == list(MODULE["FUNCTIONS"])
    assert tuple(TASK.attributes) == MODULE["ATTRIBUTES"]
    round_trip(SAMPLE)


def test_viggo_round_trips(viggo):
    assert len(viggo) == 6900
    round_trip(viggo)


def test_a_closed_list_is_what_viggo_holds(viggo):
    attributes = [attribute for target in viggo for attribute in parse(target).attributes]
    for name, kind in TASK.attributes.items():
        if isinstance(kind, list):
            assert {value for n, value in attributes if n == name} - {""} == set(kind)


def test_a_meaning_as_data():
    meaning = parse(" inform(name[Tom Clancy's: A+ (B), C], genres[sport, driving/racing], esrb[])\n")
    assert meaning == Meaning(
        "inform", (("name", "Tom Clancy's: A+ (B), C"), ("genres", "sport, driving/racing"), ("esrb", ""))
    )
    assert canonical(meaning, TASK).attributes == (
        ("esrb", ""),
        ("genres", "driving/racing, sport"),
        ("name", "Tom Clancy's: A+ (B), C"),
    )


@given(functions, st.lists(st.tuples(names, st.just("") | values), min_size=1, max_size=5))
@repeatable
def test_any_meaning_round_trips(function, attributes):
    meaning = Meaning(function, tuple(attributes))
    assert parse(render(meaning)) == meaning


@given(described())
@repeatable
def test_what_a_description_allows_its_grammar_accepts(case):
    description, meaning = case
    check(meaning, description)
    again = canonical(meaning, description)
    assert canonical(again, description) == again
    assert accepts(grammar(description), render(meaning))


@given(st.sampled_from(SAMPLE), st.data())
@settings(repeatable, max_examples=1000)
def test_the_grammar_and_the_parser_agree(target, data):
    """On the sample's targets with one piece replaced."""
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(target))] * 2)))
    piece = data.draw(
        st.sampled_from(
            ["", "[", "]", "(", ")", ", ", " ", "\n", "x", "é", "yes", target, "x" * 80, "é" * 81]
        )
    )
    text = target[:start] + piece + target[end:]
    assert accepts(grammar(TASK), text) == allowed(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "column 1: a function expected, not the end"),
        (" \n", "column 1: a function expected, not the end"),
        ("inform", "column 7: '(' expected, not the end"),
        ("inform()", "column 8: attribute[value] expected, not ')'"),
        ("inform(name[Portal 2]", "column 22: ', ' or ')' expected, not the end"),
        ("inform(name[Portal 2)", "column 8: attribute[value] expected, not 'name[Portal 2)'"),
        ("inform(name[Portal 2]))", "column 23: the end expected, not ')'"),
        ("inform(name[Portal 2]) x", "column 23: the end expected, not ' x'"),
        ("inform(name[Portal 2])inform(x[])", "column 23: the end expected, not 'inform(x[])'"),
        ("inform(name[Portal 2],esrb[])", "column 22: ', ' or ')' expected, not ',esrb[])'"),
        ("inform(name[[Portal 2]])", "column 8: attribute[value] expected, not 'name[[Portal 2]])'"),
        ("inform(name[Portal\n2])", "column 8: attribute[value] expected, not 'name[Portal\\n2])'"),
        ("[inform(name[Portal 2])]", "column 1: a function expected, not '[inform(name[Portal 2])]'"),
        ("It is (name[Portal 2])", "column 6: '(' expected, not ' (name[Portal 2])'"),
        ("inform(name [Portal 2])", "column 8: attribute[value] expected, not 'name [Portal 2])'"),
        ("inform(name[a], " + "x" * 99, f"column 17: attribute[value] expected, not '{'x' * 30}'"),
    ],
)
def test_what_is_no_meaning_is_told_in_one_line(text, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011  the message is compared whole
        parse(text)
    assert str(error.value) == message
    assert not accepts(grammar(TASK), text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("praise(name[Portal 2])", "unknown function 'praise'"),
        ("Inform(name[Portal 2])", "unknown function 'Inform'"),
        ("inform(Name[Portal 2])", "unknown attribute 'Name'"),
        ("inform(title[Portal 2])", "unknown attribute 'title'"),
        ("inform(rating[splendid])", "'rating' cannot be 'splendid', only one of excellent, good"),
        ("inform(has_multiplayer[yes, no])", "'has_multiplayer' cannot be 'yes, no'"),
    ],
)
def test_what_the_task_lacks_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        check(parse(text), TASK)
    assert not accepts(grammar(TASK), text)


def test_only_check_refuses_an_attribute_given_twice():
    text = "inform(esrb[], esrb[])"
    with pytest.raises(ValueError, match="'esrb' is given twice"):
        check(parse(text), TASK)
    assert accepts(grammar(TASK), text)


@pytest.mark.parametrize("longest", [1, 80, 300])
@pytest.mark.parametrize("kind", ["text", "list"])
def test_a_free_value_is_as_long_for_check_as_for_the_grammar(longest, kind):
    description = Description(functions=["f"], attributes={"a": kind, "b": ["x" * 400]}, longest=longest)
    for size in (longest, longest + 1):
        text = f"f(a[{'é' * size}], b[{'x' * 400}])"
        assert accepts(grammar(description), text) == (size == longest)
        if size == longest:
            check(parse(text), description)
        else:
            message = f"attribute 'a' has {size} characters, meaning.longest is {longest}"
            with pytest.raises(ValueError, match=message):
                check(parse(text), description)


ODD = [
    "priceRange",
    "customer rating",
    "date-of-birth",
    "Größe",
    "价格",
    "IN:GET_EVENT",
    "a.b/c",
    "7",
    "it's",
    '"x\\"',
]


@pytest.mark.parametrize("name", [*ODD, "price (EUR)", "x(", "a)"])
def test_names_as_data_sets_have_them(name):
    """In parser, check, canonical form, grammar and scores."""
    function = re.sub(r"[()]", "", name)
    description = Description(functions=["other", function], attributes={name: "list", "near": ["yes"]})
    text = f"{function}({name}[b, a], near[yes])"
    assert parse(text) == Meaning(function, ((name, "b, a"), ("near", "yes")))
    assert render(parse(text)) == text
    check(parse(text), description)
    assert dict(canonical(parse(text), description).attributes) == {name: "a, b", "near": "yes"}
    assert accepts(grammar(description), text)
    assert not accepts(grammar(description), text.replace("near", "Near"))

    kind = Meanings(description)
    table = score.scores([f"{function}(near[yes], {name}[a, b])"], [text], kind)["value"]
    views = kind.views([text], [text])
    assert (table["exact match"], table["canonical match"], table["attribute F1"]) == (0, 1, 1)
    assert views["by_function"].index.to_list() == [function]
    assert views["by_attribute"]["F1"].to_dict() == {name: 1, "near": 1}


@pytest.mark.parametrize(
    "change",
    [
        {"functions": []},
        {"functions": ["f", "f"]},
        {"functions": [""]},
        {"functions": [" f"]},
        {"functions": ["f()"]},
        {"functions": ["f, g"]},
        {"functions": ["f\n"]},
        {"attributes": {}},
        {"attributes": {"a ": "text"}},
        {"attributes": {"a\nb": "text"}},
        {"attributes": {"a[]": "text"}},
        {"attributes": {"(a": "text"}},
        {"attributes": {"a": "number"}},
        {"attributes": {"a": []}},
        {"attributes": {"a": [""]}},
        {"attributes": {"a": ["x", "x"]}},
        {"attributes": {"a": ["x]"]}},
        {"attributes": {"a": ["x\ny"]}},
        {"attributes": {"a": [True, False]}},  # an unquoted yes and no in yaml
        {"values": {}},
        {"longest": 0},
    ],
)
def test_refused_descriptions(change):
    Description(**SMALL)
    with pytest.raises(ValidationError):
        Description(**SMALL | change)

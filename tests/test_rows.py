import hashlib
import json
import re
import runpy
from collections import Counter
from types import SimpleNamespace

import pytest

from tests.conftest import ROOT

sample, trains = (
    SimpleNamespace(**runpy.run_path(str(ROOT / "tasks" / f"{name}_rows.py"))) for name in ("viggo", "trains")
)


def function(row):
    return row["output"].split("(")[0]


def attributes(row):
    return re.findall(r"(\w+)\[", row["output"])


def test_sizes_and_distinct_sentences():
    rows = sample.rows()
    assert {split: len(part) for split, part in rows.items()} == sample.SIZES
    for part in rows.values():
        assert len({row["input"] for row in part}) == len(part)


@pytest.mark.parametrize(
    ("module", "known"),
    [
        (
            sample,
            "df26294786e639753c12fe1217afbee57f9a3a93602a697afc01280ecdf397b4",
        ),  # pragma: allowlist secret
        (
            trains,
            "293a0019c46ded7b67907d78e10f9127b395c786110e958a575a08571ed5801a",
        ),  # pragma: allowlist secret
    ],
    ids=["viggo", "trains"],
)
def test_the_same_on_every_machine(module, known):
    """Also on every Python: the hash is of the rows and their order, not of this process."""
    assert hashlib.sha256(json.dumps(module.rows()).encode()).hexdigest() == known
    assert module.rows(seed=1) != module.rows(seed=0) == module.rows()


def test_nine_functions_in_viggos_proportions_and_fourteen_attributes():
    train = sample.rows()["train"]
    share = Counter(function(row) for row in train)
    assert set(share) == set(sample.FUNCTIONS)
    for name, expected in sample.FUNCTIONS.items():
        assert share[name] / len(train) == pytest.approx(expected, abs=0.01)
    assert {a for row in train for a in attributes(row)} == set(sample.ATTRIBUTES)
    assert max(len(attributes(row)) for row in train) <= 8


def test_attributes_stand_in_one_order():
    order = {name: place for place, name in enumerate(sample.ATTRIBUTES)}
    for row in sample.rows()["test"]:
        places = [order[a] for a in attributes(row)]
        assert places == sorted(set(places))


def test_several_phrasings_a_meaning():
    counts = Counter(row["output"] for row in sample.rows()["train"])
    assert sum(n > 1 for n in counts.values()) / len(counts) > 0.6


def test_test_games_are_unseen():
    rows = sample.rows()
    names = {
        split: {n for row in part for n in re.findall(r"name\[([^]]*)\]", row["output"])}
        for split, part in rows.items()
    }
    assert names["test"]
    assert not names["test"] & (names["train"] | names["val"])
    assert not names["val"] & names["train"]
    for name in names["test"]:
        assert not any(name in row["input"] for row in rows["train"])


def test_the_second_task_has_its_own_columns_and_unseen_cities():
    rows = trains.rows()
    assert {split: len(part) for split, part in rows.items()} == trains.SIZES
    assert set(rows["train"][0]) == {"request", "call"}
    cities = {
        split: {city for row in part for city in re.findall(r"(?:from|to)\[(.*?)\]", row["call"])}
        for split, part in rows.items()
    }
    assert not cities["test"] & (cities["train"] | cities["val"])
    assert len({row["request"] for row in rows["train"]}) == len(rows["train"])

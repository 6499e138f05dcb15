import hashlib
import json
import re
from collections import Counter

import pytest

from tutorial import sample


def function(row):
    return row["output"].split("(")[0]


def attributes(row):
    return re.findall(r"(\w+)\[", row["output"])


def test_sizes_and_distinct_sentences():
    rows = sample.rows()
    assert {split: len(part) for split, part in rows.items()} == sample.SIZES
    for part in rows.values():
        assert len({row["input"] for row in part}) == len(part)


def test_the_same_on_every_machine():
    """Also on every Python: the hash is of the rows, not of this process."""
    text = json.dumps(sample.rows(), sort_keys=True)
    known = "d3fb65491af1c30ddc988ad1edb3c817481fc19567c08588a57b0a6144bc5d16"  # pragma: allowlist secret
    assert hashlib.sha256(text.encode()).hexdigest() == known
    assert sample.rows(seed=1) != sample.rows(seed=0)


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

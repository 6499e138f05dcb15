import hashlib
import json
import re
import runpy
from collections import Counter
from types import SimpleNamespace

import pytest

from tests.conftest import ROOT

sample, trains, tickets, orders = (
    SimpleNamespace(**runpy.run_path(str(ROOT / "tasks" / f"{name}_rows.py")))
    for name in ("viggo", "trains", "tickets", "orders")
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
        (
            tickets,
            "9fd415b51f3e6a8bb45b9ed9d605b16d0151ecdeb55868fec8dcdab918fdb79f",
        ),  # pragma: allowlist secret
        (
            orders,
            "98c61e58bc61a6a4d07a002e13244a361b715d11646d9ceb9a0ff7889c1821ae",
        ),  # pragma: allowlist secret
    ],
    ids=["viggo", "trains", "tickets", "orders"],
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


@pytest.mark.parametrize(("module", "question"), [(tickets, "ticket"), (orders, "said")])
def test_a_question_stands_once_and_in_one_split(module, question):
    rows = module.rows()
    assert {split: len(part) for split, part in rows.items()} == module.SIZES
    asked = [row[question] for part in rows.values() for row in part]
    assert len(set(asked)) == len(asked)


def test_queues_of_tickets_in_their_proportions():
    """What is asked in passing does not tell the queue: it comes with every queue."""
    rows = tickets.rows()
    for part in rows.values():
        share = Counter(row["queue"] for row in part)
        assert set(share) == set(tickets.QUEUES)
        for queue, (expected, *_) in tickets.QUEUES.items():
            assert share[queue] / len(part) == pytest.approx(expected, abs=0.02)
    passing = tickets.QUEUES["Billing"][2][1].split("{thing}")[1]
    assert {row["queue"] for row in rows["train"] if passing in row["ticket"]} == set(tickets.QUEUES)


def test_some_ways_to_ask_and_all_things_of_the_test_tickets_are_unseen():
    rows = tickets.rows()
    train = " ".join(row["ticket"] for row in rows["train"])
    assert not [thing for thing in tickets.THINGS["test"] if thing in train]
    asked = [wanted[-2:] for _, wanted, _ in tickets.QUEUES.values()]
    unseen = [each.replace("{thing}", "").split("{day}")[0][:15] for pair in asked for each in pair]
    assert sum(any(each in row["ticket"] for each in unseen) for row in rows["test"]) > 20


def test_an_order_holds_what_was_said():
    for part in orders.rows().values():
        for row in part:
            order = json.loads(row["order"])
            assert list(order) == [key for key in ("name", "items", "takeaway", "time") if key in order]
            for item in order["items"]:
                assert item["product"] in row["said"].lower()
                assert all(extra in row["said"] for extra in item.get("extras", []))
            assert order.get("name", "") in row["said"]
            assert order["takeaway"] == bool(re.search("to take away|to go", row["said"]))


def test_names_and_half_of_the_products_in_test_orders_are_unseen():
    rows = {split: [json.loads(row["order"]) for row in part] for split, part in orders.rows().items()}
    names, products = (
        {split: {get(order) for order in part} for split, part in rows.items()}
        for get in (lambda order: order.get("name"), lambda order: order["items"][0]["product"])
    )
    assert names["test"] & names["train"] == {None}
    assert products["test"] - products["train"]
    assert products["test"] & products["train"]

"""Rows of the second task, tasks/trains.yaml: requests of train travellers, made here.

A row has two columns: `request`, a sentence, and `call`, its meaning. Cities and extras are real words, the
journeys are drawn at random. No city stands in two splits, so that a score on `test` is a score on names
that training never saw. The rows depend on the seed alone and are the same on every machine.
"""

import random

from tutorial.meaning import Meaning, render

SIZES = {"train": 1200, "val": 90, "test": 180}
PHRASINGS = 3  # sentences a meaning
CITIES = {
    "train": """Amsterdam Antwerp Athens Barcelona Basel Belgrade Bergen Berlin Bern Bologna Bordeaux Bremen
        Brussels Bucharest Budapest Cologne Copenhagen Dresden Dublin Edinburgh Florence Frankfurt Geneva
        Genoa Ghent Glasgow Granada Hamburg Helsinki Innsbruck Krakow Leipzig Lille Lisbon Ljubljana London
        Lyon Madrid Malaga Manchester Marseille Milan Munich Naples Nice Oslo Paris Porto Prague Rome
        Rotterdam Salzburg Seville Sofia Stockholm Turin Utrecht Valencia Venice Verona Vienna Warsaw Zagreb
        Zurich""".split(),
    "val": "Bilbao Cardiff Graz Hanover Nantes Pisa Riga Tampere".split(),
    "test": "Aarhus Bratislava Dortmund Gdansk Grenoble Liverpool Lausanne Padua Strasbourg Toledo".split(),
}
FUNCTIONS = {"book": 0.4, "price": 0.25, "times": 0.2, "cancel": 0.15}  # share of the rows
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
EXTRAS = {
    "bicycle": ("a bicycle", "a bike"),
    "dog": ("a dog", "my dog"),
    "wheelchair": ("a wheelchair", "a wheelchair space"),
    "pram": ("a pram", "a baby carriage"),
    "meal": ("a meal", "something to eat"),
}
NUMBERS = {"1": "one", "2": "two", "3": "three", "4": "four", "5": "five", "6": "six"}


def rows(seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """The splits, `SIZES` rows each, as dictionaries of `request` and `call`."""
    return {
        split: _split(CITIES[split], size, random.Random(f"{seed} {split}")) for split, size in SIZES.items()
    }


def _split(cities: list[str], size: int, rng: random.Random) -> list[dict[str, str]]:
    found: dict[str, str] = {}  # request -> call: a sentence has one meaning and stands once
    for function, share in FUNCTIONS.items():
        want = len(found) + round(share * size)
        while len(found) < want:
            attributes = _attributes(function, cities, rng)
            call = render(Meaning(function, tuple(attributes.items())))
            for _ in range(PHRASINGS):
                if len(found) < want:
                    found.setdefault(_sentence(function, attributes, rng), call)
    result = [{"request": request, "call": call} for request, call in found.items()]
    rng.shuffle(result)
    return result


def _attributes(function: str, cities: list[str], rng: random.Random) -> dict[str, str]:
    start, end = rng.sample(cities, 2)
    chosen = {"from": start, "to": end}
    if function != "price" or rng.random() < 0.5:
        chosen["day"] = rng.choice(DAYS)
    if function == "book":
        chosen["seats"] = rng.choice(list(NUMBERS))
    if function in ("book", "price") and rng.random() < 0.5:
        chosen["class"] = rng.choice(("first", "second"))
    if function == "book" and rng.random() < 0.5:
        chosen["extras"] = ", ".join(sorted(rng.sample(list(EXTRAS), rng.randint(1, 2))))
    return chosen


def _sentence(function: str, attributes: dict[str, str], rng: random.Random) -> str:
    """One phrasing of a meaning."""
    a = attributes
    way = rng.choice((f"from {a['from']} to {a['to']}", f"to {a['to']} from {a['from']}"))
    day = f" on {a['day']}" if "day" in a else ""
    travel = f" in {a['class']} class" if "class" in a else ""
    if function == "book":
        seats = rng.choice((a["seats"], NUMBERS[a["seats"]])) + (" seat" if a["seats"] == "1" else " seats")
        extras = " and ".join(rng.choice(EXTRAS[extra]) for extra in a.get("extras", "").split(", ") if extra)
        extras = rng.choice((f", with {extras}", f", and I bring {extras}")) if extras else ""
        frames = (
            f"I need {seats}{travel} {way}{day}{extras}.",
            f"Please book {seats} {way}{day}{travel}{extras}.",
            f"Can I get {seats}{travel}{day} {way}{extras}?",
        )
    elif function == "price":
        frames = (
            f"How much is a ticket {way}{day}{travel}?",
            f"What does it cost to go {way}{travel}{day}?",
            f"Tell me the price{travel} {way}{day}.",
        )
    elif function == "times":
        frames = (
            f"When do trains leave {way}{day}?",
            f"Which trains are there{day} {way}?",
            f"Show me the timetable {way}{day}.",
        )
    else:
        frames = (
            f"Cancel my trip {way}{day}.",
            f"I can't travel {way}{day} after all.",
            f"Please drop the booking{day} {way}.",
        )
    return rng.choice(frames)

"""Rows of a JSON task, tasks/orders.yaml: orders in a café, made here.

A row has two columns: `said`, a sentence or two, and `order`, the same as a JSON object with numbers, a truth
value, a list of objects, and fields that may be missing. Half of the products in test, and all names, are in
no other split. Some orders are corrected while they are given: "two, no, three teas". The rows depend on the
seed alone and are the same on every machine.
"""

import json
import random

SIZES = {"train": 1200, "val": 90, "test": 180}
PRODUCTS = {
    "train": """espresso,espressos latte,lattes cappuccino,cappuccinos tea,teas lemonade,lemonades
        muffin,muffins bagel,bagels croissant,croissants sandwich,sandwiches brownie,brownies
        salad,salads milkshake,milkshakes waffle,waffles soup,soups""".split(),
    "val": "mocha,mochas scone,scones".split(),
    "test": "macchiato,macchiatos smoothie,smoothies wrap,wraps pancake,pancakes pretzel,pretzels".split(),
}
DRINKS = "espresso latte cappuccino tea lemonade milkshake mocha macchiato smoothie".split()
EXTRAS = ("oat milk", "honey", "ice", "cinnamon", "cream", "lemon")
FILLINGS = ("cheese", "butter", "jam", "chocolate", "egg", "salmon")
NAMES = {
    "train": """Alice Bruno Carla Daniel Elena Felix Greta Hugo Irene Jakob Karin Luca Maria Nils Olga Paul
        Rosa Simon Tara Victor Wanda Yusuf""".split(),
    "val": "Amir Beate Cem Dunja".split(),
    "test": "Aiko Bengt Chiara Dimitri Esra Fatou Gustavo Heidi".split(),
}
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 10: "ten", 12: "a dozen"}
TIMES = {
    "8:00": ("at eight in the morning", "at 8 am"),
    "8:30": ("at half past eight in the morning", "at 8:30"),
    "9:15": ("at a quarter past nine", "at 9:15"),
    "10:45": ("at a quarter to eleven", "at 10:45"),
    "12:00": ("at noon", "at twelve o'clock"),
    "13:30": ("at half past one", "at 1:30 pm"),
    "15:00": ("at three in the afternoon", "at 3 pm"),
    "17:15": ("at a quarter past five in the evening", "at 5:15 pm"),
    "18:00": ("at six in the evening", "at 6 pm"),
}


def rows(seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """The splits, `SIZES` rows each, as dictionaries of `said` and `order`."""
    taken: set[str] = set()  # a sentence stands once, and in one split
    return {
        split: _split(split, size, taken, random.Random(f"{seed} {split}")) for split, size in SIZES.items()
    }


def _split(split: str, size: int, taken: set[str], rng: random.Random) -> list[dict[str, str]]:
    result = []
    while len(result) < size:
        order, said = _order(split, rng)
        if said not in taken:
            taken.add(said)
            result.append({"said": said, "order": json.dumps(order)})
    return result


def _order(split: str, rng: random.Random) -> tuple[dict, str]:
    known = PRODUCTS["train"] if split == "train" or rng.random() < 0.5 else PRODUCTS[split]
    chosen = rng.sample(known, rng.choice((1, 1, 2)))
    parts = [_item(product.split(","), rng) for product in chosen]
    items, wanted = [item for item, _ in parts], " and ".join(words for _, words in parts)
    name = rng.choice(NAMES[split]) if rng.random() < 0.6 else None
    takeaway = rng.random() < 0.5
    time = rng.choice(list(TIMES)) if rng.random() < 0.4 else None
    order = {"name": name} if name else {}
    order |= {"items": items, "takeaway": takeaway} | ({"time": time} if time else {})
    return order, _sentence(wanted, name, takeaway, time, rng)


def _item(product: list[str], rng: random.Random) -> tuple[dict, str]:
    quantity = rng.choice(list(NUMBERS))
    item = {"product": product[0], "quantity": quantity}
    if product[0] in DRINKS and rng.random() < 0.6:
        item["size"] = rng.choice(("small", "medium", "large"))
    if rng.random() < 0.4:
        item["extras"] = rng.sample(EXTRAS if product[0] in DRINKS else FILLINGS, rng.choice((1, 1, 2)))
    count = rng.choice((str(quantity), NUMBERS[quantity]))
    if rng.random() < 0.12:  # a correction: what is said first does not count
        other = rng.choice([number for number in NUMBERS if number != quantity])
        count = f"{NUMBERS[other]}, no, {NUMBERS[quantity]}"
    size = {"large": rng.choice(("large ", "big ")), None: ""}.get(item.get("size"), f"{item.get('size')} ")
    extras = f" with {' and '.join(item['extras'])}" if "extras" in item else ""
    return item, f"{count} {size}{product[quantity > 1]}{extras}"


def _sentence(wanted: str, name: str | None, takeaway: bool, time: str | None, rng: random.Random) -> str:
    where = rng.choice(("to take away", "to go") if takeaway else ("to have here", "to eat in"))
    when = f" {rng.choice(TIMES[time])}" if time else ""
    frames = (
        f"I'd like {wanted}, {where}{when}.",
        f"Can I have {wanted} {where}{when}?",
        f"{wanted[0].upper()}{wanted[1:]}, please, {where}{when}.",
        f"We are going to need {wanted}{when}, {where}.",
    )
    said = rng.choice(frames)
    if name:
        said += rng.choice((f" My name is {name}.", f" The order is for {name}.", f" {name} will pay."))
    return said

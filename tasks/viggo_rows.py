"""The embedded sample: ViGGO-like rows, made here, for work without a network.

Every row pairs a sentence about a video game with its meaning representation, as ViGGO does
(Juraska, Bowden and Walker, INLG 2019), with that paper's nine functions and fourteen attributes. The
sentences are this module's own: phrase templates over the facts in `games.csv`. Opinions (`rating`),
expected release dates and specifiers are drawn at random; they are no statement about a game.

No game stands in two splits, so that a score on `test` is a score on names that training never saw.
The rows depend on the seed alone and are the same on every machine.
"""

import csv
import random
from pathlib import Path

from tutorial.meaning import Meaning, render

GAMES = Path(__file__).with_name("games.csv")
SIZES = {"train": 1500, "val": 120, "test": 240}
PHRASINGS = 3  # sentences a meaning, as in ViGGO

# Share of each function among ViGGO's 5,103 training rows.
FUNCTIONS = {
    "inform": 0.466,
    "give_opinion": 0.104,
    "verify_attribute": 0.104,
    "request": 0.065,
    "recommend": 0.062,
    "request_explanation": 0.061,
    "confirm": 0.061,
    "suggest": 0.059,
    "request_attribute": 0.018,
}
# In the order in which a meaning representation lists them.
ATTRIBUTES = (
    "name",
    "exp_release_date",
    "release_year",
    "developer",
    "esrb",
    "rating",
    "genres",
    "player_perspective",
    "has_multiplayer",
    "platforms",
    "available_on_steam",
    "has_linux_release",
    "has_mac_release",
    "specifier",
)
INSTRUCTION = "Give the meaning of the sentence as function(attribute[value])."

VERBS = {"excellent": "love", "good": "like", "average": "don't mind", "poor": "dislike"}  # by rating
SPECIFIERS = (
    "addictive beautiful boring bloody challenging cheap clever colorful difficult easy emotional "
    "exciting expensive famous fast-paced funny hardest innovative longest newest oldest original "
    "overrated popular realistic recent relaxing scary short stylish underrated unusual violent"
).split()
MONTHS = "January February March April May June July August September October November December".split()
SPOKEN = {
    "sport": "sports",
    "M (for Mature)": "M",
    "T (for Teen)": "T",
    "E (for Everyone)": "E",
    "E 10+ (for Everyone 10 and Older)": "E 10+",
}
QUESTIONS = {  # what a request_attribute asks about
    "release_year": "the year a game came out",
    "developer": "who developed a game",
    "esrb": "a game's ESRB rating",
    "genres": "a game's genre",
    "player_perspective": "the player perspective",
    "has_multiplayer": "having a multiplayer mode",
    "platforms": "the platform a game is on",
    "available_on_steam": "finding a game on Steam",
    "has_linux_release": "a game running on Linux",
    "has_mac_release": "a game running on a Mac",
}
DETAILS = ("genres", "player_perspective", "has_multiplayer", "platforms", "developer")
EXTRAS = (
    "release_year",
    "esrb",
    "available_on_steam",
    "has_linux_release",
    "has_mac_release",
)


def rows(seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """The sample's splits, `SIZES` rows each, as dictionaries of `instruction`, `input` and `output`."""
    with GAMES.open(encoding="utf-8", newline="") as file:
        games = list(csv.DictReader(file))
    return {
        split: _split([g for g in games if g["split"] == split], size, random.Random(f"{seed} {split}"))
        for split, size in SIZES.items()
    }


def _split(games: list[dict], size: int, rng: random.Random) -> list[dict[str, str]]:
    found: dict[str, str] = {}  # sentence -> meaning: a sentence has one meaning and stands once
    for function, share in FUNCTIONS.items():
        want = len(found) + round(share * size)
        if function == "request_attribute":  # the last one takes what rounding left
            want = size
        while len(found) < want:
            attributes = _meaning(function, rng.choice(games), rng)
            said = tuple((name, attributes[name]) for name in ATTRIBUTES if name in attributes)
            output = render(Meaning(function, said))
            for _ in range(PHRASINGS):
                sentence = _sentence(function, attributes, rng)
                if len(found) < want:
                    found.setdefault(sentence[0].upper() + sentence[1:], output)
    result = [{"instruction": INSTRUCTION, "input": s, "output": o} for s, o in found.items()]
    rng.shuffle(result)
    return result


def _meaning(function: str, game: dict, rng: random.Random) -> dict[str, str]:
    """The attributes of one meaning, drawn from a game's facts: at most eight, as in ViGGO."""

    def some(names, low, high):
        return {a: game[a] for a in rng.sample(names, rng.randint(low, high))}

    name, rating = {"name": game["name"]}, {"rating": rng.choice(list(VERBS))}
    if function == "inform":
        chosen = name | some(DETAILS, 1, 2) | some(EXTRAS, 0, 2)
        if rng.random() < 0.4:
            chosen |= rating
        if rng.random() < 0.05:
            chosen.pop("release_year", None)
            day = f"{rng.choice(MONTHS)} {rng.randint(1, 28)}, {rng.randint(2027, 2029)}"
            chosen["exp_release_date"] = day
        return chosen
    if function == "request":
        return {"specifier": rng.choice(SPECIFIERS)} | some(DETAILS, 0, 1)
    if function == "request_attribute":
        return {rng.choice(list(QUESTIONS)): ""}
    if function == "request_explanation":
        return rating | some((*DETAILS, "release_year"), 1, 2)
    if function in ("give_opinion", "verify_attribute"):
        return name | rating | some((*DETAILS, "release_year"), 1, 2)
    return name | some((*DETAILS, "release_year", "esrb"), 1, 2)  # confirm, recommend, suggest


def _listed(values: str) -> str:
    parts = [SPOKEN.get(value, value) for value in values.split(", ")]
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else parts[0]


def _article(phrase: str) -> str:
    vowel = phrase[0] in "aeiouAEIOU" or phrase[:2] in ("M ", "M-")
    return f"{'an' if vowel else 'a'} {phrase}"


def _noun(attributes: dict[str, str], rng: random.Random, plural: bool = False) -> str:
    """`third person shooter game by Valve from 2004`: the attributes around one noun."""
    before, after = [], []
    a = attributes
    if "rating" in a:
        before.append(a["rating"])
    if "esrb" in a:
        before.append(f"{_listed(a['esrb'])} rated")
    if "has_multiplayer" in a:
        before.append("multiplayer" if a["has_multiplayer"] == "yes" else "single-player")
    if "player_perspective" in a:
        before.append(_listed(a["player_perspective"]))
    if "genres" in a:
        before.append(" ".join(SPOKEN.get(genre, genre) for genre in a["genres"].split(", ")))
    if "developer" in a:
        after.append(f"by {a['developer']}")
    if "release_year" in a:
        after.append(f"from {a['release_year']}")
    if "platforms" in a:
        after.append(f"for {_listed(a['platforms'])}")
    rng.shuffle(after)
    return " ".join([*before, "games" if plural else "game", *after])


def _clause(attribute: str, value: str) -> str:
    """What a further sentence of an `inform` says of one attribute, after `it`."""
    yes = value == "yes"
    return {
        "release_year": f"came out in {value}",
        "developer": f"was developed by {value}",
        "esrb": f"is rated {_listed(value)}",
        "exp_release_date": f"is expected on {value}",
        "player_perspective": f"is played from {_article(_listed(value))} perspective",
        "platforms": f"is available for {_listed(value)}",
        "has_multiplayer": "has multiplayer" if yes else "is single-player only",
        "available_on_steam": "is available on Steam" if yes else "is not available on Steam",
        "has_linux_release": "has a Linux release" if yes else "has no Linux release",
        "has_mac_release": "has a Mac release" if yes else "has no Mac release",
    }[attribute]


def _inform(attributes: dict[str, str], rng: random.Random) -> str:
    name, rest = attributes["name"], {k: v for k, v in attributes.items() if k != "name"}
    always = [k for k in rest if k in ("rating", "genres")]
    movable = [k for k in rest if k in ("esrb", "has_multiplayer", "player_perspective")]
    movable += [k for k in rest if k in ("developer", "release_year", "platforms")]
    first = always + rng.sample(movable, min(len(movable), rng.randint(1, 3)))
    left = [k for k in rest if k not in first]
    rng.shuffle(left)
    text = f"{name} is {_article(_noun({k: rest[k] for k in first}, rng))}."
    while left:
        pair, left = left[:2], left[2:]
        clauses = [_clause(k, rest[k]) for k in pair]
        text += f" {rng.choice(('It', 'The game', 'This game'))} {' and '.join(clauses)}."
    return text


def _sentence(function: str, attributes: dict[str, str], rng: random.Random) -> str:
    """One phrasing of a meaning."""
    a = attributes
    name = a.get("name")
    noun = _noun({k: v for k, v in a.items() if k not in ("name", "rating")}, rng)
    if function == "inform":
        return _inform(a, rng)
    if function == "confirm":
        frames = (
            f"Do you mean {name}, the {noun}?",
            f"You're talking about {name}, the {noun}, right?",
            f"Just to be sure, is that {name}, the {noun}?",
        )
    elif function == "recommend":
        frames = (
            f"Have you heard of {name}? It's {_article(noun)} you might like.",
            f"You should try {name}, {_article(noun)}.",
            f"I think {name} would be right for you, it's {_article(noun)}.",
        )
    elif function == "suggest":
        others = _noun({k: v for k, v in a.items() if k != "name"}, rng, plural=True)
        frames = (
            f"Do you ever play {others}, like {name}?",
            f"Have you played any {others}, such as {name}?",
            f"Are you into {others}, for example {name}?",
        )
    elif function == "give_opinion":
        word, verb = a["rating"], VERBS[a["rating"]]
        frames = (
            f"I {verb} {name}. To me it is {_article(f'{word} {noun}')}.",
            f"In my opinion {name} is {_article(f'{word} {noun}')}.",
            f"{name} is {_article(f'{word} {noun}')}, if you ask me. I {verb} it.",
        )
    elif function == "verify_attribute":
        others = _noun({k: v for k, v in a.items() if k not in ("name", "rating")}, rng, plural=True)
        verb = VERBS[a["rating"]]
        frames = (
            f"You said that you {verb} {name}. Do you feel the same about other {others}?",
            f"I remember that you {verb} {name}. Is it like that with all {others}?",
            f"So you {verb} {name}. Is that how you see most {others}?",
        )
    elif function == "request_explanation":
        others = _noun({k: v for k, v in a.items() if k != "rating"}, rng, plural=True)
        word, verb = a["rating"], VERBS[a["rating"]]
        frames = (
            f"Why is it that you {verb} {others}?",
            f"What makes {others} so {word} for you?",
            f"What is it about {others} that you find {word}?",
        )
    elif function == "request":
        kind = _noun({k: v for k, v in a.items() if k != "specifier"}, rng)
        word = a["specifier"]
        if word.endswith("est"):
            frames = (
                f"What's the {word} {kind} you have played?",
                f"Which is the {word} {kind} that you know?",
            )
        else:
            frames = (
                f"Do you know {_article(f'{word} {kind}')}?",
                f"Can you think of {_article(f'{word} {kind}')}?",
                f"What's the most {word} {kind} you have played?",
            )
    else:  # request_attribute
        asked = QUESTIONS[next(iter(a))]
        frames = (
            f"Does {asked} matter to you?",
            f"Is {asked} important when you pick a game?",
            f"How much do you care about {asked}?",
            f"Do you pay attention to {asked}?",
        )
    return rng.choice(frames)

"""Rows of a label task, tasks/tickets.yaml: messages to an online shop, made here.

A row has two columns: `ticket`, some sentences, and `queue`, one of eight labels. Most messages also speak of
something that another queue would answer, but that needs no answer: "The parcel came quickly. I was charged
twice." What is bought differs between the splits, and so do some of the ways to say what is wanted. The rows
depend on the seed alone and are the same on every machine.
"""

import random

SIZES = {"train": 1200, "val": 90, "test": 180}
SEEN = {"train": 6, "val": 6, "test": 8}  # of a queue's requests: the last two stand in test alone
QUEUES = {  # label: share of the rows, what is wanted, and what is said in passing
    "Delivery": (
        0.22,
        (
            "Where is my {thing}? It should have been here on {day}.",
            "The tracking page has not changed since {day}.",
            "The courier left the {thing} at the wrong house.",
            "Can you tell me when the {thing} will arrive?",
            "My parcel is shown as delivered, and I have nothing.",
            "Nobody rang the bell, and now the {thing} is on its way back to you.",
            "It is {day} and there is still no van in sight with my {thing}.",
            "The {thing} seems to be stuck at a depot.",
        ),
        ("The {thing} arrived on {day}, very quickly.", "Your courier was friendly, by the way."),
    ),
    "Billing": (
        0.18,
        (
            "I was charged twice for the {thing}.",
            "Please send me an invoice for the {thing}.",
            "The amount on my card is not the one that I agreed to.",
            "The discount is missing from my bill.",
            "Our company's name is wrong on the receipt.",
            "Why did you take money from my account on {day}?",
            "There is a payment to you on my statement that I cannot explain.",
            "I need a document for my tax office that shows what the {thing} cost.",
        ),
        ("I paid for the {thing} by card on {day}.", "The price of the {thing} was fair."),
    ),
    "Returns & refunds": (
        0.16,
        (
            "I would like to send the {thing} back.",
            "How do I get my money back for the {thing}?",
            "I sent the {thing} back on {day} and have not been refunded.",
            "The {thing} does not suit me, please take it back.",
            "I need a return label for the {thing}.",
            "Can I exchange the {thing} for a smaller one?",
            "The {thing} was a present that nobody wants, what now?",
            "I have changed my mind about the {thing} that came on {day}.",
        ),
        ("Last year I returned a {thing}, and that was easy.", "I do not want to send the {thing} back."),
    ),
    "Technical fault": (
        0.16,
        (
            "The {thing} does not turn on.",
            "My {thing} makes a loud noise and then stops.",
            "The {thing} shows an error and restarts.",
            "Since {day} the {thing} loses its connection.",
            "The screen of the {thing} stays black.",
            "The {thing} gets so hot that I cannot touch it.",
            "After two minutes the {thing} just dies.",
            "There is smoke coming out of my {thing}.",
        ),
        ("The {thing} works very well.", "I have had a {thing} for years without a fault."),
    ),
    "Account": (
        0.1,
        (
            "I cannot log in.",
            "Please change the email address of my account.",
            "The link to set a new password has expired.",
            "My account has been locked since {day}.",
            "I want to delete my account.",
            "The code for signing in never reaches my phone.",
            "Your site says that it does not know who I am.",
            "Somebody else seems to be using my login.",
        ),
        ("I have been a customer with an account for years.", "I could log in without a problem."),
    ),
    "Order change": (
        0.08,
        (
            "Please cancel my order of the {thing}.",
            "I ordered two of the {thing} by mistake and need only one.",
            "Can I still add a {thing} to my order?",
            "Please send my order to another address.",
            "I chose the wrong colour of the {thing}, can you change it before you pack it?",
            "I would like to have my order on {day} instead.",
            "Stop, do not pack the {thing} yet, I need a different model.",
            "Is it too late to take the {thing} out of my basket that I paid for?",
        ),
        ("I ordered a {thing} on {day}.", "My order was complete."),
    ),
    "Product question": (
        0.06,
        (
            "Does the {thing} come with a cable?",
            "How heavy is the {thing}?",
            "Will the {thing} fit into a small kitchen?",
            "Is the {thing} made of metal or plastic?",
            "Can I use the {thing} abroad?",
            "Which {thing} would you recommend for a beginner?",
            "What is the difference between your two kinds of {thing}?",
            "Could a child handle the {thing}?",
        ),
        ("I read all about the {thing} on your site.", "The description of the {thing} was very clear."),
    ),
    "Praise & complaints": (
        0.04,
        (
            "Your staff on the phone were rude to me on {day}.",
            "Thank you for the wonderful service.",
            "I waited for an hour in your queue, that is a shame.",
            "I want to tell your manager how well I was treated.",
            "I am very disappointed with your shop.",
            "You are the best shop that I know.",
            "Nobody in your store could be bothered to help me.",
            "Please pass my compliments on to the team.",
        ),
        ("I am happy with your shop.", "I had a bad day, so please bear with me."),
    ),
}
THINGS = {
    "train": """kettle toaster lamp headset keyboard printer tablet camera drill blender heater fan radio
        speaker monitor router scale mixer iron projector""".split(),
    "val": "freezer scanner microphone razor".split(),
    "test": "dishwasher smartwatch vacuum turntable telescope humidifier".split(),
}
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
GREETINGS = ("", "", "Hello, ", "Hi there, ", "Good morning. ", "Dear team, ")
ENDINGS = ("", "", " Thanks!", " Please help.", " Kind regards, {name}", " I look forward to your answer.")
NAMES = "Ada Boris Chen Dora Emre Farah Goran Hana Ines Jonas".split()


def rows(seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """The splits, `SIZES` rows each, as dictionaries of `ticket` and `queue`."""
    taken: set[str] = set()  # a message stands once, and in one split
    return {
        split: _split(split, size, taken, random.Random(f"{seed} {split}")) for split, size in SIZES.items()
    }


def _split(split: str, size: int, taken: set[str], rng: random.Random) -> list[dict[str, str]]:
    result, share = [], 0.0
    for queue, (more, *_) in QUEUES.items():
        share += more
        while len(result) < round(share * size):
            if (ticket := _ticket(queue, split, rng)) not in taken:
                taken.add(ticket)
                result.append({"ticket": ticket, "queue": queue})
    rng.shuffle(result)
    return result


def _ticket(queue: str, split: str, rng: random.Random) -> str:
    wanted = rng.choice(QUEUES[queue][1][: SEEN[split]])
    sentences = [wanted]
    if rng.random() < 0.7:  # something in passing, which is another queue's or this one's
        passing = rng.choice(QUEUES[rng.choice(list(QUEUES))][2])
        sentences.insert(rng.randrange(2), passing)
    text = rng.choice(GREETINGS) + " ".join(sentences) + rng.choice(ENDINGS)
    text = text.replace("{thing}", rng.choice(THINGS[split])).replace("{day}", rng.choice(DAYS))
    return text.replace("{name}", rng.choice(NAMES))

"""The diagrams of README.ipynb and its badge, each as SVG. From the project's root:

    python -m images.draw

Lengths are CSS pixels, y grows downwards. tutorial/plots.mplstyle says what each colour means. A box that
is not always there is dashed.
"""

import sys
from pathlib import Path
from textwrap import wrap

from matplotlib import colors, style
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon
from matplotlib.path import Path as Line

from tutorial.plots import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, STYLE, VERMILLION

WIDTH, SIZE = 700, 17  # of a picture; of its text
LEADING, BASELINE = 1.4, 0.36  # from line to line, and from a line's middle to its baseline, in sizes
ROW = {  # the example of README.ipynb
    "instruction": "Give the meaning of the sentence as function(attribute[value]).",
    "input": "Portal 2 is a fun puzzle game for PC.",
    "output": "inform(name[Portal 2], rating[good], genres[puzzle], platforms[PC])",
}


def tint(color: str, share: float) -> tuple:
    """The colour, mixed with white."""
    return tuple(1 - share * (1 - part) for part in colors.to_rgb(color))


class Picture:
    """A light card, so that it reads on dark pages too, and what is drawn on it."""

    def __init__(self, height: float, width: float = WIDTH, size: float = SIZE, card: bool = True):
        self.size, self.leading = size, LEADING * size
        self.figure = Figure(figsize=(width / 96, height / 96))
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        self.axes.axis("off")
        if card:
            self.box(1, 1, width - 2, height - 2, color=GREY, edge=0.4, fill=0.02, radius=16)

    def box(self, x, y, w, h, *lines, color=BLUE, fill=0.0, edge=1.0, radius=10, dashed=False, bold=True):
        """A rounded box with centred lines, the first of them bold."""
        shape = f"round,pad=0,rounding_size={radius}"
        dashes = (0, (4, 3)) if dashed else "-"
        look = {"facecolor": tint(color, fill), "edgecolor": tint(color, edge), "linewidth": 1.3}
        self.axes.add_patch(FancyBboxPatch((x, y), w, h, boxstyle=shape, linestyle=dashes, **look))
        self.lines(x + w / 2, y + h / 2, *lines, bold=bold)

    def lines(self, x, y, *lines, bold=True, align="center"):
        """Lines around the height y, the first of them bold."""
        top = y - (len(lines) - 1) / 2 * self.leading
        for number, line in enumerate(lines):
            self.text(x, top + number * self.leading, line, align=align, bold=bold and number == 0)

    def text(self, x, y, line, *, align="center", bold=False, color=INK, font=None):
        """One line; y is its middle."""
        look = {"size": self.size * 0.75, "weight": "bold" if bold else "normal", "family": font}
        self.axes.text(x, y + BASELINE * self.size, line, ha=align, color=color, **look)

    def badge(self, x, y, number):
        """The number of one section of the notebook."""
        self.axes.add_patch(Circle((x, y), 0.82 * self.size, color=BLUE))
        self.text(x, y, str(number), bold=True, color="white")

    def stage(self, x, y, w, h, number, *lines, color=BLUE, fill=0.0):
        """What one section of the notebook does, with the section's number."""
        self.box(x, y, w, h, color=color, fill=fill)
        self.badge(x + 1.6 * self.size, y + h / 2 - (len(lines) - 1) / 2 * self.leading, number)
        self.lines(x + 2.9 * self.size, y + h / 2, *lines, align="left")

    def storage(self, x, y, w, h):
        """The place of the run's files."""
        self.box(x, y, w, h, color=GREEN, fill=0.1)
        self.text(x + w / 2, y + 24, "Storage", bold=True)

    def arrow(self, *points, color=INK, both=False):
        """A line from point to point with a head at its end, or at both ends."""
        look = {"arrowstyle": "<|-|>" if both else "-|>", "mutation_scale": 13, "linewidth": 1.8}
        self.axes.add_patch(FancyArrowPatch(path=Line(points), color=color, zorder=2, **look))

    def adapter(self, x, y, w, h):
        """LoRA's two matrices, B over A: wide as the layer outside, narrow as the rank between them."""
        waist = w * 0.3
        for name, edge, middle in (("B", y, y + h / 2 - 2), ("A", y + h, y + h / 2 + 2)):
            corners = [(x, edge), (x + w, edge), (x + w - waist, middle), (x + waist, middle)]
            self.axes.add_patch(Polygon(corners, facecolor=tint(ORANGE, 0.35), edgecolor=ORANGE, lw=1.3))
            self.text(x + w / 2, (edge + middle) / 2, name, bold=True)


def workflow() -> Picture:
    """The stages from data to scores and to a client, all on one Ray cluster."""
    picture = Picture(400, width=960, size=25)
    picture.box(20, 20, 770, 316, fill=0.06)
    picture.badge(62, 50, 1)
    picture.text(94, 50, "Set up: a Ray cluster", align="left", bold=True)
    picture.stage(36, 80, 264, 88, 2, "Data", "checked rows")
    picture.stage(36, 202, 264, 120, 3, "Fine-tune", "Ray Train +", "LLaMA-Factory")
    picture.box(338, 202, 148, 120, color=ORANGE, fill=0.15)
    picture.badge(412, 238, 4)
    picture.text(412, 284, "Adapter", bold=True)
    picture.stage(524, 80, 252, 88, 5, "Evaluate", "ray.data.llm")
    picture.stage(524, 202, 252, 120, 6, "Serve", "ray.serve.llm")
    picture.box(818, 80, 124, 88, "Scores", color=GREY)
    picture.box(818, 202, 124, 120, "OpenAI", "client", color=GREY)
    picture.arrow((168, 168), (168, 202))
    picture.arrow((300, 106), (524, 106))
    picture.arrow((300, 262), (338, 262))
    picture.arrow((412, 202), (412, 146), (524, 146), color=ORANGE)
    picture.arrow((486, 262), (524, 262), color=ORANGE)
    picture.arrow((776, 124), (818, 124))
    picture.arrow((776, 262), (818, 262), both=True)
    picture.badge(62, 368, 7)
    picture.text(94, 368, "To production:", align="left", bold=True)
    picture.text(318, 368, "a Ray job trains, a Ray service answers", align="left")
    return picture


def cluster() -> Picture:
    """Which process of which stage runs on which machine of a Ray cluster."""
    picture = Picture(600)
    for back in (2, 1):  # the other machines, of which no more than the edge is seen
        picture.box(402 + 8 * back, 24 - 6 * back, 274 - 8 * back, 12, fill=0.08)
    for x, w, name in ((154, 232, "Head machine"), (402, 274, "Machines 1 to N")):
        picture.box(x, 24, w, 412, fill=0.08)
        picture.text(x + w / 2, 50, name, bold=True)
    picture.box(168, 76, 204, 66, "Driver", "the notebook")
    for x in (416, 546):
        picture.box(x, 76, 116, 346, color=GREY, fill=0.2)
        picture.text(x + 58, 102, "GPU", bold=True)
    rows = (
        (3, "Training", ("Controller", "restarts workers"), ("Training", "worker")),
        (5, "Batch", ("Ray Data", "in the driver"), ("vLLM", "engine")),
        (6, "Serving", ("HTTP proxy", "takes requests"), ("vLLM", "replica")),
    )
    for number, (stage, name, ahead, process) in enumerate(rows):
        top = 156 + 90 * number
        picture.badge(38, top + 38, stage)
        picture.text(60, top + 38, name, align="left", bold=True)
        picture.box(168, top, 204, 76, *ahead)
        for x in (426, 556):
            picture.box(x, top, 96, 76, *process)
    picture.storage(154, 490, 522, 86)
    picture.text(415, 546, "rows, checkpoints, adapters, answers")
    for x in (270, 539):
        picture.arrow((x, 436), (x, 490), both=True)
    return picture


def prompts() -> Picture:
    """The prompt of a row: training and inference share every token up to the answer."""
    picture = Picture(536)
    start, end = "<|im_start|>", "<|im_end|>"
    turns = (("system", ROW["instruction"] + end), ("user", ROW["input"] + end), ("assistant", ""))
    asked = [line for role, text in turns for line in (start + role, *wrap(text, 52))]
    picture.box(24, 24, 652, 248, fill=0.08)
    picture.text(42, 52, "Training and inference: the same tokens", align="left", bold=True)
    for number, line in enumerate(asked):
        picture.text(42, 92 + 29 * number, line, align="left")
    for x, name, count, dashed, *lines in (
        (24, "Training", "The loss counts these tokens.", False, *wrap(ROW["output"] + end, 32)),
        (362, "Inference", "Scored against the target.", True, "the model's answer,", "up to and with", end),
    ):
        picture.arrow((x + 157, 272), (x + 157, 306))
        picture.box(x, 306, 314, 206)
        picture.text(x + 157, 332, name, bold=True)
        picture.box(x + 14, 354, 286, 104, *lines, color=GREY, dashed=dashed, bold=False)
        picture.text(x + 157, 484, count)
    return picture


def training() -> Picture:
    """Ray Train's processes in one step of training, and what goes to the storage and back."""
    picture = Picture(738)
    picture.box(24, 24, 272, 80, "Driver: the notebook", "TorchTrainer.fit()")
    picture.arrow((296, 64), (356, 64))
    picture.box(356, 24, 320, 80, "Controller", "starts and restarts workers")
    picture.arrow((516, 104), (516, 148))
    picture.box(24, 148, 652, 358, fill=0.08)
    for x, name in ((42, "Worker 1"), (244, "Worker 2"), (474, "Worker N")):
        picture.box(x, 166, 184, 212)
        picture.text(x + 92, 190, name, bold=True)
        picture.box(x + 14, 212, 156, 36, "its own rows", color=GREY, radius=6, bold=False)
        picture.box(
            x + 14, 262, 86, 100, "base", "model,", "frozen", color=GREY, fill=0.2, radius=6, bold=False
        )
        picture.adapter(x + 110, 262, 60, 100)
        picture.arrow((x + 140, 378), (x + 140, 416), both=True)
    picture.text(451, 270, "…", bold=True)
    lines = "Gradients of LoRA's A and B, averaged", "NCCL on GPUs, gloo on CPUs"
    picture.box(42, 416, 616, 72, *lines, color=ORANGE, fill=0.15)
    picture.arrow((114, 652), (114, 506))
    picture.text(128, 559, "rows", align="left")
    picture.arrow((240, 506), (240, 652))
    picture.text(254, 547, "checkpoints,", align="left")
    picture.text(254, 547 + picture.leading, "metrics", align="left")
    picture.arrow((470, 652), (470, 506), color=VERMILLION)
    picture.text(484, 547, "after a failure:", align="left")
    picture.text(484, 547 + picture.leading, "the last checkpoint", align="left")
    picture.storage(24, 612, 652, 102)
    picture.box(42, 652, 144, 46, "data/", color=GREEN)
    picture.box(204, 652, 454, 46, "training/", color=GREEN)
    return picture


def batch() -> Picture:
    """Ray Data's pipeline, from questions to answers."""
    picture = Picture(676)
    columns = (36, 264, 492)
    picture.box(36, 24, 172, 92, "Questions", "test rows,", "four systems", color=GREY)
    picture.box(264, 24, 172, 92, "Chat template", "turns become", "one prompt")
    picture.box(492, 24, 172, 92, "Tokenize", "gpu profile only", dashed=True)
    for x in columns[:2]:
        picture.arrow((x + 172, 70), (x + 228, 70))
    picture.arrow((578, 116), (578, 174))
    picture.text(562, 145, "blocks of rows, streamed", align="right")
    for back in (2, 1):  # the other replicas, of which no more than the upper edge is seen
        picture.box(24 + 8 * back, 188 - 7 * back, 652 - 16 * back, 20, fill=0.08)
    picture.box(24, 188, 652, 160, fill=0.08)
    picture.text(36, 216, "vLLM engine", align="left", bold=True)
    picture.text(664, 216, "N replicas", align="right")
    inside = [
        (GREY, "Base model", "all rows"),
        (ORANGE, "Adapter", "rows that name it"),
        (PURPLE, "Grammar mask", "guided rows"),
    ]
    for x, (color, *lines) in zip(columns, inside, strict=True):
        picture.box(x, 244, 172, 84, *lines, color=color, fill=0.2)
    for x in columns[:2]:
        picture.text(x + 200, 286, "+", bold=True)
    picture.arrow((578, 348), (578, 394))
    picture.box(492, 394, 172, 92, "Detokenize", "gpu profile only", dashed=True)
    picture.storage(252, 526, 424, 126)
    picture.box(264, 566, 172, 74, "adapters/", "LoRA adapter", color=ORANGE, fill=0.15)
    picture.box(492, 566, 172, 74, "answers/", "Parquet files", color=GREEN)
    picture.box(36, 566, 172, 74, "Shared folder", "base model", color=GREY)
    picture.arrow((578, 486), (578, 566))
    picture.arrow((122, 566), (122, 348))
    picture.text(136, 437, "at start", align="left")
    picture.arrow((350, 566), (350, 348))
    picture.text(364, 437, "at first use", align="left")
    return picture


def serving() -> Picture:
    """A request's way through Ray Serve to an engine, and where the engine's models come from."""
    picture = Picture(740)
    picture.box(24, 24, 652, 80, color=GREY)
    picture.text(48, 64, "OpenAI client", align="left", bold=True)
    picture.text(300, 64, "asks for", align="right")
    picture.box(316, 43, 116, 42, "model", color=GREY, fill=0.2, radius=6, bold=False)
    picture.text(454, 64, "or")
    picture.box(476, 43, 176, 42, "model:adapter", color=ORANGE, fill=0.2, radius=6, bold=False)
    picture.box(24, 140, 652, 408, fill=0.08)
    picture.text(350, 166, "Ray Serve", bold=True)
    picture.arrow((134, 104), (134, 192), both=True)
    picture.box(42, 192, 210, 78, "HTTP proxy", "127.0.0.1:8000")
    picture.arrow((252, 231), (316, 231))
    picture.box(316, 192, 342, 78, "Ingress, 1 to N", "checks the key, picks a replica")
    picture.arrow((487, 270), (487, 296), (134, 296), (134, 324))
    picture.arrow((350, 296), (350, 324))
    picture.arrow((487, 296), (566, 296), (566, 324))
    for x, name, adapters in ((42, "Replica 1", ("viggo", "earlier")), (258, "Replica 2", ("viggo",))):
        picture.box(x, 324, 184, 206)
        picture.text(x + 92, 350, name, bold=True)
        picture.text(x + 92, 350 + picture.leading, "vLLM engine")
        picture.box(x + 14, 398, 156, 52, "base model", color=GREY, fill=0.2, radius=6, bold=False)
        for number, adapter in enumerate(adapters):
            place = x + 14 + 82 * number
            picture.box(place, 462, 74, 52, adapter, color=ORANGE, fill=0.2, radius=6, bold=False)
    picture.box(474, 324, 184, 206, "Replica N", "added as", "requests grow", dashed=True)
    picture.storage(246, 602, 430, 114)
    picture.box(42, 642, 184, 62, "Shared folder", "base model", color=GREY)
    picture.box(258, 642, 406, 62, "adapters/", "viggo, earlier", color=ORANGE, fill=0.15)
    picture.arrow((134, 642), (134, 548))
    picture.text(148, 579, "at start", align="left")
    picture.arrow((350, 642), (350, 548))
    picture.text(364, 579, "at first use", align="left")
    return picture


def devcontainer() -> Picture:
    """Open in Dev Container"""
    picture = Picture(30, width=206, size=14, card=False)
    picture.box(1, 1, 204, 28, fill=1, radius=6)
    picture.text(103, 15, devcontainer.__doc__, bold=True, color="white")
    return picture


def main(folder: Path = Path(__file__).parent) -> None:
    """Draw all pictures into the folder."""
    style.use(["default", STYLE])
    for draw in (*DIAGRAMS, devcontainer):
        figure, path = draw().figure, folder / draw.__name__
        # No date and no version: the same picture is the same bytes.
        named = {"Title": draw.__doc__, "Date": None, "Creator": None}
        figure.savefig(path.with_suffix(".svg"), transparent=True, metadata=named)


DIAGRAMS = (workflow, cluster, prompts, training, batch, serving)

if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

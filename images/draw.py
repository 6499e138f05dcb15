"""The diagrams of README.ipynb, each as SVG and as PNG of twice the size. From the project's root:

    python -m images.draw

Lengths are CSS pixels, y grows downwards. A colour means the same in all of them: what Ray runs is blue, the
storage green, the adapter orange, the base model and what comes from outside grey, the way after a failure
vermillion. A dashed box is not always there.
"""

import sys
from pathlib import Path

from matplotlib import colors, style
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon
from matplotlib.path import Path as Line

from tutorial.plots import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, STYLE, VERMILLION

WIDTH, MARGIN, SIZE, LEADING = 700, 24, 17, 24  # of a picture; of its text and lines
BASELINE = 0.36 * SIZE  # from a line's middle down to its baseline


def tint(color: str, share: float) -> tuple:
    """The colour, mixed with white."""
    return tuple(1 - share * (1 - part) for part in colors.to_rgb(color))


class Picture:
    """A light card, so that it reads on dark pages too, and what is drawn on it."""

    def __init__(self, height: float):
        self.figure = Figure(figsize=(WIDTH / 96, height / 96))
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0))
        self.axes.axis("off")
        self.box(1, 1, WIDTH - 2, height - 2, color=GREY, edge=0.4, fill=0.02, radius=16)

    def box(self, x, y, w, h, *lines, color=BLUE, fill=0.0, edge=1.0, radius=10, dashed=False, bold=True):
        """A rounded box with centred lines, the first of them bold."""
        shape = f"round,pad=0,rounding_size={radius}"
        dashes = (0, (4, 3)) if dashed else "-"
        look = {"facecolor": tint(color, fill), "edgecolor": tint(color, edge), "linewidth": 1.3}
        self.axes.add_patch(FancyBboxPatch((x, y), w, h, boxstyle=shape, linestyle=dashes, **look))
        top = y + h / 2 - (len(lines) - 1) / 2 * LEADING
        for number, line in enumerate(lines):
            self.text(x + w / 2, top + number * LEADING, line, bold=bold and number == 0)

    def text(self, x, y, line, *, align="center", bold=False, color=INK):
        """One line; y is its middle."""
        weight = "bold" if bold else "normal"
        self.axes.text(x, y + BASELINE, line, size=SIZE * 0.75, weight=weight, ha=align, color=color)

    def stage(self, x, y, w, h, number, *lines):
        """What one section of the notebook does, with the section's number."""
        self.box(x, y, w, h)
        top = y + h / 2 - (len(lines) - 1) / 2 * LEADING
        self.axes.add_patch(Circle((x + 30, top), 14, color=BLUE))
        self.text(x + 30, top, str(number), bold=True, color="white")
        for row, line in enumerate(lines):
            self.text(x + 56, top + row * LEADING, line, align="left", bold=row == 0)

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
    """The stages, and what each leaves in the storage for the next."""
    picture = Picture(838)
    left, width, height, pitch = 52, 290, 92, 116
    store, chip = 388, 400
    read, write = 24, 68  # where arrows meet a stage, from its top
    rows = [MARGIN + number * pitch for number in range(7)]
    picture.storage(store, MARGIN, 288, 515)
    stages = [
        (2, "Data ingestion", "ViGGO or your rows,", "each one checked"),
        (3, "LoRA fine-tuning", "Ray Train, N workers,", "LLaMA-Factory"),
        (4, "Save the artifacts", "two files, no pickles"),
        (5, "Batch inference", "Ray Data LLM, vLLM:", "test rows, four ways"),
        (5, "Scoring", "exact match, F1", "in results.json"),
        (6, "Online serving", "Ray Serve LLM, vLLM,", "autoscaled replicas"),
    ]
    for top, lines in zip(rows, stages, strict=False):
        picture.stage(left, top, width, height, *lines)
    chips = [
        ("data/", "train.jsonl, val.jsonl,", "test.jsonl"),
        ("training/", "checkpoints, metrics"),
        ("adapters/", "adapter_config.json", "adapter_model.safetensors"),
        ("answers/", "Parquet files"),
    ]
    for number, lines in enumerate(chips):
        top, bottom = rows[number] + write, rows[number + 1] + read
        color, fill = (ORANGE, 0.15) if number == 2 else (GREEN, 0)
        wide = 196 if number == 3 else 264  # leaves room for the adapter's way down
        picture.box(chip, top - 15, wide, bottom - top + 30, *lines, color=color, fill=fill)
        picture.arrow((left + width, top), (chip, top))
        picture.arrow((chip, bottom), (left + width, bottom))
    picture.arrow((left, rows[0] + 46), (32, rows[0] + 46), (32, rows[3] + 46), (left, rows[3] + 46))
    picture.arrow((636, rows[3] + read + 15), (636, rows[5] + read), (left + width, rows[5] + read))
    picture.box(chip, rows[5] + write - 24, 276, 48, "OpenAI client", color=GREY)
    picture.arrow((left + width, rows[5] + write), (chip, rows[5] + write), both=True)
    picture.stage(left, rows[6], WIDTH - MARGIN - left, height, 7, "Production", "Ray Jobs, Ray Serve")
    picture.text(chip, rows[6] + 34, "the notebook as a job,", align="left")
    picture.text(chip, rows[6] + 34 + LEADING, "the endpoint as a service", align="left")
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
        picture.box(x + 14, 212, 156, 36, "1/N of a batch", color=GREY, radius=6, bold=False)
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
    picture.text(254, 547 + LEADING, "metrics", align="left")
    picture.arrow((470, 652), (470, 506), color=VERMILLION)
    picture.text(484, 547, "after a failure:", align="left")
    picture.text(484, 547 + LEADING, "the last checkpoint", align="left")
    picture.storage(24, 612, 652, 102)
    picture.box(42, 652, 144, 46, "data/", color=GREEN)
    picture.box(204, 652, 454, 46, "training/", color=GREEN)
    return picture


def batch() -> Picture:
    """Ray Data's pipeline, from questions to answers."""
    picture = Picture(676)
    columns = (36, 264, 492)
    picture.box(36, 24, 172, 92, "Questions", "test rows", "in four ways", color=GREY)
    picture.box(264, 24, 172, 92, "Chat template", "turns become", "one prompt")
    picture.box(492, 24, 172, 92, "Tokenize", "CPU profile:", "in the engine", dashed=True)
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
    picture.box(492, 394, 172, 92, "Detokenize", "CPU profile:", "in the engine", dashed=True)
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
    picture.box(316, 192, 342, 78, "Ingress, 1 to N", "asks for a key, picks a replica")
    picture.arrow((487, 270), (487, 296), (134, 296), (134, 324))
    picture.arrow((350, 296), (350, 324))
    picture.arrow((487, 296), (566, 296), (566, 324))
    for x, name, adapters in ((42, "Replica 1", ("viggo", "trains")), (258, "Replica 2", ("viggo",))):
        picture.box(x, 324, 184, 206)
        picture.text(x + 92, 350, name, bold=True)
        picture.text(x + 92, 350 + LEADING, "vLLM engine")
        picture.box(x + 14, 398, 156, 52, "base model", color=GREY, fill=0.2, radius=6, bold=False)
        for number, adapter in enumerate(adapters):
            place = x + 14 + 82 * number
            picture.box(place, 462, 74, 52, adapter, color=ORANGE, fill=0.2, radius=6, bold=False)
    picture.box(474, 324, 184, 206, "Replica N", "added as", "requests grow", dashed=True)
    picture.storage(246, 602, 430, 114)
    picture.box(42, 642, 184, 62, "Shared folder", "base model", color=GREY)
    picture.box(258, 642, 406, 62, "adapters/", "viggo, trains", color=ORANGE, fill=0.15)
    picture.arrow((134, 642), (134, 548))
    picture.text(148, 579, "at start", align="left")
    picture.arrow((350, 642), (350, 548))
    picture.text(364, 579, "at first use", align="left")
    return picture


def main(folder: Path = Path(__file__).parent) -> None:
    """Draw all pictures into the folder."""
    style.use(["default", STYLE])
    for draw in PICTURES:
        figure, path = draw().figure, folder / draw.__name__
        # No date and no version: the same picture is the same bytes.
        named = {"Title": draw.__doc__, "Date": None, "Creator": None}
        figure.savefig(path.with_suffix(".svg"), transparent=True, metadata=named)


PICTURES = (workflow, training, batch, serving)

if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

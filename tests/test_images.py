"""The diagrams: as their script draws them, and nothing in them in each other's way."""

import re
import subprocess
import sys
from itertools import combinations

import nbformat
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path

from images import draw
from tests.conftest import ROOT
from tutorial import prompt, recipe

ROOM = 6  # pixels around a word


def test_the_pictures_are_those_of_the_script(tmp_path):
    subprocess.run([sys.executable, "-m", "images.draw", str(tmp_path)], cwd=ROOT, check=True)
    made_here = list(tmp_path.iterdir())
    assert {made.name for made in made_here} == {path.name for path in (ROOT / "images").glob("*.svg")}
    for made in made_here:
        kept = ROOT / "images" / made.name
        assert kept.is_file(), f"missing: run `python -m images.draw` for {made.name}"
        assert made.read_bytes() == kept.read_bytes(), "stale: run `python -m images.draw`"


@pytest.mark.parametrize("picture", draw.DIAGRAMS, ids=lambda picture: picture.__name__)
def test_no_word_meets_a_word_a_border_or_an_arrow(picture):
    axes = picture().axes
    renderer = FigureCanvasAgg(axes.figure).get_renderer()
    words = {text: text.get_window_extent(renderer) for text in axes.texts}
    assert len(words) > 10
    for one, other in combinations(words, 2):
        assert not words[one].overlaps(words[other]), (one, other)
    boxes = [p.get_window_extent() for p in axes.patches if isinstance(p, FancyBboxPatch)]
    arrows = [p for p in axes.patches if isinstance(p, FancyArrowPatch)]
    paths = [axes.transData.transform_path(arrow.get_path()) for arrow in arrows]
    lines = [Path(points) for path in paths for points in path.to_polygons(closed_only=False)]
    for text, extent in words.items():
        around = extent.padded(ROOM)
        for box in boxes:
            inside = box.containsx(around.x0) and box.containsx(around.x1)
            inside = inside and box.containsy(around.y0) and box.containsy(around.y1)
            assert inside or not box.overlaps(around), text
        assert not [line for line in lines if line.intersects_bbox(around, filled=False)], text


def test_the_prompts_are_those_that_training_and_the_engines_get(model_path):
    recipe_args, _ = recipe.load(ROOT / "lora_sft_ray_cpu.yaml", gpus=0)
    trained, asked = prompt.Chat(model_path, recipe_args).side_by_side(draw.ROW)
    drawn = " ".join(text.get_text() for text in draw.prompts().axes.texts)
    for text in (asked, trained.removeprefix(asked)):
        assert " ".join(text.split()) in drawn
    assert not recipe_args.get("train_on_prompt"), "the loss would count all tokens"


def test_every_picture_that_the_notebook_names_is_there():
    cells = nbformat.read(ROOT / "README.ipynb", as_version=4).cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    named = re.findall(r"\]\((images/[^)\s]+)\)", prose)
    assert named
    for path in named:
        assert (ROOT / path).is_file(), path

"""README.ipynb as a page: tidy, without secrets, and README.md made from it."""

import ast
import copy
import inspect
import json
import re
import subprocess

import nbformat
import pytest

from docs import page
from tests.conftest import ROOT
from tutorial import callbacks, settings

NOTEBOOK = nbformat.read(ROOT / "README.ipynb", as_version=4)
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
PROSE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "markdown"]
STAGES = (
    "Set up",
    "Data",
    "Fine-tune on several workers",
    "Publish the adapter",
    "Batch inference and evaluation",
    "Serve",
    "To production",
    "Clean up",
)


def text_of(cell):
    parts = []
    for output in cell.outputs:
        parts.append(output.get("text", ""))
        parts += [value for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
    return "".join(parts)


def test_the_stages_in_order():
    openings = [
        c.source for c in NOTEBOOK.cells if c.cell_type == "markdown" and re.match(r"## \d", c.source)
    ]
    assert [re.match(r"## \d\. (.*)", source)[1] for source in openings] == list(STAGES)


def test_no_cell_without_a_sentence_before_it():
    for before, cell in zip(NOTEBOOK.cells, NOTEBOOK.cells[1:], strict=False):
        assert cell.cell_type == "markdown" or before.cell_type == "markdown", cell.source[:80]


def test_what_a_reader_came_for_stands_in_the_cells():
    source = "\n".join(cell.source for cell in CODE)
    for name in (
        "def train_loop",
        "run_exp(",
        "TorchTrainer(",
        "vLLMEngineProcessorConfig(",
        "build_processor(",
        "LLMConfig(",
        "endpoint.build(",
        "client.chat.completions.create(",
    ):
        assert name in source


def test_the_outputs_are_those_of_one_whole_run():
    assert [cell.execution_count for cell in CODE] == list(range(1, len(CODE) + 1))
    assert not [o for cell in CODE for o in cell.outputs if o.output_type == "error"]
    assert sum(bool(cell.outputs) for cell in CODE) > len(CODE) / 2


@pytest.mark.parametrize("cell", CODE, ids=lambda cell: cell.source[:30])
def test_outputs_are_tidy(cell):
    shown = text_of(cell)
    assert len(shown) < 6000
    assert not [o for o in cell.outputs if o.get("name") == "stderr"], shown[:500]
    assert not re.search(r"(?<![\w.:/])/(home|root|tmp|work|Users|mnt)/", shown), shown[:500]
    assert not re.search(r"AKIA|SECRET|hf_\w{8}|\b(pid|ip)=\d", shown)
    assert not re.search(r"\b\d{12}\b|[\w.]+@[\w-]+\.\w+", shown), "an account or an address"
    assert not re.search(r"\b(?!127\.0\.0\.1)\d{1,3}(\.\d{1,3}){3}\b", shown), "a machine's address"
    assert "\x1b[" not in shown


def test_readme_md_is_made_from_the_notebook(tmp_path):
    command = ["jupyter", "nbconvert", "--to", "markdown", str(ROOT / "README.ipynb"), "--log-level", "ERROR"]
    command += ["--template-file", str(ROOT / "docs" / "readme.md.j2"), "--output-dir", str(tmp_path)]
    command += ["--NbConvertApp.output_files_dir=images/outputs"]
    subprocess.run(command, check=True)
    assert (tmp_path / "README.md").read_text() == (ROOT / "README.md").read_text(), "stale: run `make page`"
    for made in (tmp_path / "images" / "outputs").iterdir():
        assert made.read_bytes() == (ROOT / "images" / "outputs" / made.name).read_bytes()


def test_how_to_start_is_on_the_first_screen():
    first = (ROOT / "README.md").read_text()[:3000]
    assert "git clone" in first
    assert "make run" in first


def test_figures_in_the_prose_are_those_of_the_results():
    filled = copy.deepcopy(NOTEBOOK)
    page.fill_notebook(filled, page.measured(ROOT / "results.json"))
    assert [cell.source for cell in filled.cells] == [cell.source for cell in NOTEBOOK.cells], (
        "run `make page`"
    )
    assert "(none)" not in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("cell", PROSE, ids=lambda cell: cell.id)
def test_no_figure_is_typed(cell):
    """A number of two digits or a share is measured, or on the list of those that no run measures."""
    text = re.sub(r"```.*?```|`[^`]*`|!?\[[^\]]*\]\([^)]*\)|^\|.*\|$", "", cell.source, flags=re.S | re.M)
    for sentence in (*page.sentences(), *settings.read_yaml(page.FIGURES)["typed"]):
        text = page.pattern(sentence).sub("", text)
    assert not re.search(r"\d\d|\d[%.]\d|\d%", text), "bind it in docs/figures.yaml"


def test_what_is_typed_stands_in_the_prose():
    prose = "\n".join(cell.source for cell in PROSE)
    for sentence in settings.read_yaml(page.FIGURES)["typed"]:
        assert page.pattern(sentence).search(prose), sentence
    share = inspect.signature(callbacks.KillWorker).parameters["share"].default
    assert f"after {share:.0%} of the steps" in " ".join(prose.split())


def test_the_lesson_is_short():
    """Words without code, links' addresses and pictures' texts; lines of code that are not blank."""
    words, before = 0, None
    for cell in NOTEBOOK.cells:
        before = words if cell.id == "train-loop" else before
        if cell.cell_type == "markdown":
            words += len(re.sub(r"```.*?```|!\[[^\]]*\]|\]\([^)]*\)", "", cell.source, flags=re.S).split())
    lines = [sum(bool(line.strip()) for line in cell.source.splitlines()) for cell in CODE]
    assert words <= 2500
    assert before <= 900, "words before the training loop"
    assert sum(lines) <= 180
    assert max(lines) <= 20
    loop = ast.parse(next(cell.source for cell in CODE if cell.id == "train-loop")).body[-1]
    assert loop.end_lineno - loop.lineno < 15


@pytest.mark.parametrize("name", ["README.ipynb", "README.md"])
def test_no_comment_stands_in_the_prose(name):
    assert "<!--" not in (ROOT / name).read_text()


def test_the_results_are_those_of_the_outputs():
    """One run made both: the notebook's last output says how long results.json's run took."""
    results = json.loads((ROOT / "results.json").read_text())
    assert f"{results['total_s']} s in all: {results['seconds']}" in text_of(CODE[-1])


def test_every_column_of_a_table_has_a_name():
    """A screen reader would announce an empty one as nothing."""
    tables = [
        o.data["text/markdown"] for c in CODE for o in c.outputs if "text/markdown" in o.get("data", {})
    ]
    tables = [text for text in tables if text.startswith("|")]
    assert len(tables) > 2
    for text in tables:
        assert all(name.strip() for name in text.splitlines()[0].strip("|").split("|")), text.splitlines()[0]

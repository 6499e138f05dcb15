"""The pages that `make docs` makes, in a real browser. Runs in .venv-docs and not in .venv."""

import os
import re
import shutil
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urldefrag, urljoin

import nbformat
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "out" / "docs"
NOTEBOOK = nbformat.read(ROOT / "README.ipynb", as_version=4)
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
WRITTEN = [f"docs/{page.stem}.html" for page in sorted((ROOT / "docs").glob("*.md"))]
PAGES = [*sorted(page.name for page in DOCS.glob("*.html")), *WRITTEN, "search.html?q=adapter"]
WIDTHS = (360, 768, 1600)
expect.set_options(timeout=60_000)  # milliseconds, on a machine that does much else


@pytest.fixture(scope="session")
def browser_type_launch_args():
    """Debian's browser: Playwright's own would have to be downloaded."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium on PATH; on Debian: apt-get install chromium")
    return {"executable_path": found, "args": ["--no-sandbox"] if os.geteuid() == 0 else []}


@pytest.fixture(scope="session")
def site():
    """The page's address. It is served, as a browser's clipboard and a site's own search need."""
    assert (DOCS / "index.html").is_file(), "out/docs is missing: run `make docs`"

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=DOCS)) as server:
        Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.parametrize("name", PAGES)
def test_loads_whole_without_errors_and_from_this_host_alone(page: Page, site, name):
    errors, requests = [], []
    page.on("console", lambda message: message.type in ("error", "warning") and errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(site + name, wait_until="networkidle")
    expect(page.locator("h1").first).to_be_visible()
    assert page.locator("img").evaluate_all("all => all.filter(i => !i.naturalWidth).map(i => i.src)") == []
    assert errors == []
    assert [url for url in requests if not url.startswith((site, "data:"))] == []


@pytest.mark.parametrize("width", WIDTHS)
def test_the_table_of_contents_leads_to_every_stage(page: Page, site, width):
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(site)
    stages = [c.source for c in NOTEBOOK.cells if c.cell_type == "markdown" and c.source.startswith("## ")]
    assert len(stages) >= 8
    for title in (source.splitlines()[0].removeprefix("## ") for source in stages):
        entry = page.locator("#pst-page-toc-nav").get_by_role("link", name=title)
        if not entry.is_visible():
            page.get_by_role("button", name="On this page").click()
        entry.click()
        expect(page.get_by_role("heading", name=title)).to_be_in_viewport()


@pytest.mark.parametrize("name", ["", *WRITTEN])
def test_every_link_leads_somewhere(page: Page, site, name):
    page.goto(site + name)
    links = set(page.locator("a[href]").evaluate_all("all => all.map(a => a.getAttribute('href'))"))
    assert any(link.startswith("#") for link in links)
    own = {urljoin(page.url, link) for link in links if urljoin(page.url, link).startswith(site)}
    for address, fragment in map(urldefrag, own):
        answer = page.request.get(address)
        assert answer.ok, address
        assert not fragment or f'id="{fragment}"' in answer.text(), fragment
    assert {link.split(":")[0] for link in links if urljoin(page.url, link) not in own} <= {"https"}


def test_the_navigation_leads_to_every_page(page: Page, site):
    page.set_viewport_size({"width": 1440, "height": 800})
    page.goto(site)
    links = page.locator("header .navbar-nav a").evaluate_all("all => all.map(a => a.getAttribute('href'))")
    assert sorted(link for link in links if link.startswith("docs/")) == WRITTEN
    for link in WRITTEN:
        page.locator(f"header .navbar-nav a[href$='{link.removeprefix('docs/')}']").click()
        expect(page).to_have_url(site + link)
        expect(page.locator("header .navbar-nav .current")).to_be_visible()


def test_the_notebook_can_be_downloaded(page: Page, site):
    page.goto(site)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download README.ipynb").click()
    assert download.value.path().read_bytes() == (ROOT / "README.ipynb").read_bytes()


def test_a_copy_button_copies_its_cell_and_nothing_more(page: Page, site):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(site)
    cells = page.locator(".cell_input")
    assert cells.count() == len(CODE)
    for number in (0, len(CODE) // 2, len(CODE) - 1):
        cells.nth(number).hover()
        cells.nth(number).get_by_role("button", name="Copy").click()
        assert page.evaluate("navigator.clipboard.readText()") == CODE[number].source
    expect(page.locator(".cell_output .copybtn")).to_have_count(0)


def test_pictures_say_what_they_show(page: Page, site):
    page.goto(site)
    pictures = [
        o.metadata["image/png"] for c in CODE for o in c.outputs if "image/png" in o.get("metadata", {})
    ]
    prose = "".join(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "markdown")
    said = {picture["alt"] for picture in pictures} | set(re.findall(r"!\[(.+?)\]\(images/", prose))
    assert said <= set(page.locator("article img").evaluate_all("all => all.map(i => i.alt)"))


def test_pictures_keep_their_shape(page: Page, site):
    page.goto(site, wait_until="networkidle")
    shapes = "all => all.map(i => i.width / i.height * i.naturalHeight / i.naturalWidth)"
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        found = page.locator("article img").evaluate_all(shapes)
        assert found == pytest.approx([1] * len(found), abs=0.02)


def test_the_search_finds_the_page(page: Page, site):
    page.goto(site)
    page.keyboard.press("Control+k")
    page.locator("dialog input[name=q]").fill("interval")
    page.keyboard.press("Enter")
    expect(page.locator("#search-results a[href*='README.html']").first).to_be_visible()


@pytest.mark.parametrize(("theme", "width"), [("light", 360), ("dark", 1600)])
@pytest.mark.parametrize("name", ["", *WRITTEN])
def test_accessible(page: Page, site, name, theme, width):
    page.emulate_media(color_scheme=theme)
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(site + name)
    expect(page.locator("html")).to_have_attribute("data-theme", theme)
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_the_theme_can_be_changed(page: Page, site):
    page.emulate_media(color_scheme="light")
    page.goto(site)
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.get_by_role("button", name="Color mode").click()
    page.get_by_role("button", name="Dark").click()
    assert page.evaluate(background) != light


@pytest.mark.parametrize("name", ["", *WRITTEN])
def test_a_page_never_scrolls_sideways(page: Page, site, name):
    page.goto(site + name)
    tables = page.locator(".pst-scrollable-table-container")
    assert tables.count() == page.locator("article table").count() > 1
    elsewhere = page.locator("article :not(.pst-scrollable-table-container *, pre *)")
    beyond = "all => all.filter(e => e.getBoundingClientRect().right > innerWidth).map(e => e.outerHTML)"
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert elsewhere.evaluate_all(beyond) == []


def test_a_table_that_is_wider_than_its_box_is_scrolled(page: Page, site):
    page.set_viewport_size({"width": 360, "height": 800})
    page.goto(site)
    tables = page.locator(".pst-scrollable-table-container")
    wide = tables.evaluate_all("all => all.findIndex(box => box.scrollWidth > box.clientWidth)")
    tables.nth(wide).hover()
    page.mouse.wheel(50, 0)
    page.wait_for_function("box => box.scrollLeft > 0", arg=tables.nth(wide).element_handle())


def test_a_known_repository_is_linked_to(tmp_path):
    """As GitHub names it where it builds the page. Without it, as above, files are downloads."""
    name = {"SERVER_URL": "https://github.com", "REPOSITORY": "someone/notebook", "SHA": "0123abc"}
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-Wqc",
        "docs",
        "-d",
        tmp_path / "doctrees",
        ".",
        tmp_path / "docs",
    ]
    environment = os.environ | {f"GITHUB_{key}": value for key, value in name.items()}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    html = (tmp_path / "docs" / "README.html").read_text()
    for file in ("README.ipynb", "profiles/cpu.yaml", "containerfile", ".env.example"):
        assert f'href="https://github.com/someone/notebook/blob/0123abc/{file}"' in html
    assert 'href="https://github.com/codespaces/new/someone/notebook"' in html
    assert "_downloads" not in html

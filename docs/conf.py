"""`make docs`: README.ipynb, with the outputs that it holds, and docs/*.md as web pages. Nothing is executed.

Sphinx's source folder is the project's root, so that the links and images of all pages are found.
"""

import os
import posixpath
from pathlib import Path

import nbformat
from docutils import nodes
from nbformat.v4 import new_markdown_cell
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

ROOT = Path(__file__).resolve().parents[1]
PAGES = {  # of docs/: the name of each in the navigation
    "your-data": "Your data",
    "evaluation": "Evaluation",
    "benchmarks": "Benchmarks",
    "reliability": "Reliability",
    "deployment": "Deployment",
    "configuration": "Configuration",
}

# Where GitHub builds the page it says what repository this is, and what commit.
SERVER, REPOSITORY, COMMIT = (
    os.environ.get(f"GITHUB_{name}") for name in ("SERVER_URL", "REPOSITORY", "SHA")
)
FILES = f"{SERVER}/{REPOSITORY}/blob/{COMMIT}"

project = html_title = "Fine-tune, evaluate and serve an LLM on Ray"
extensions = ["myst_nb", "sphinx_copybutton"]
include_patterns = ["README.ipynb", "CONTRIBUTING.md", *(f"docs/{name}.md" for name in PAGES)]
exclude_patterns = [".*", "out"]  # large folders, which need not be searched
root_doc = "README"
suppress_warnings = ["toc.not_included"]  # CONTRIBUTING.md is linked to, and not in the navigation

nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "gfm"  # CommonMark, the default, has no tables
myst_heading_anchors = 3  # the notebook's own links, as #1-set-up

copybutton_selector = ".highlight pre:not(.cell_output *)"

html_theme = "pydata_sphinx_theme"
html_static_path = ["custom.css"]
html_css_files = ["custom.css"]
templates_path = ["_templates"]
html_sourcelink_suffix = ""  # README.ipynb and not README.ipynb.txt
html_sidebars = {"**": []}
html_use_index = False
html_context = {"default_mode": "auto", "server": SERVER, "repository": REPOSITORY, "files": FILES}
html_favicon = "favicon.svg"
html_theme_options = {
    "logo": {"text": "LLM on Ray"},  # the whole title is wider than a telephone
    "header_links_before_dropdown": len(PAGES),
    "article_header_start": [],
    "article_header_end": ["source-links"],
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": [],
    "footer_end": [],
}


class RepositoryLinks(SphinxTransform):
    """A link to a file that is no page leads to the repository. Where that is not known it is a download, as
    MyST-Parser made it, and a folder's name is no link at all."""

    default_priority = 999

    def apply(self, **kwargs) -> None:
        folder, pages = posixpath.dirname(self.env.docname), [*self.document.findall(addnodes.pending_xref)]
        for link in [*self.document.findall(addnodes.download_reference), *pages]:
            target = posixpath.normpath(posixpath.join(folder, link["reftarget"]))
            if link in pages and not (ROOT / target).is_dir():
                continue
            if REPOSITORY:
                link.replace_self(nodes.reference("", "", *link.children, refuri=f"{FILES}/{target}"))
            elif link in pages:
                link.replace_self(link.children)


def prepare(app, docname: str, source: list[str]) -> None:
    """Add what the notebook need not hold, where MyST-NB reads it: the navigation, each plot's alternative
    text."""
    if docname != "README":
        return
    notebook = nbformat.reads(source[0], as_version=4)
    links = [f"{title} <docs/{name}>" for name, title in PAGES.items()]
    notebook.cells.append(new_markdown_cell("\n".join(["```{toctree}", ":hidden:", *links, "```"])))
    for cell in notebook.cells:
        for output in cell.get("outputs", []):  # MyST-NB reads an image's size there, and not its text
            if alt := output.get("metadata", {}).get("image/png", {}).get("alt"):
                cell.metadata.mystnb = {"image": {"alt": alt}}
    source[0] = nbformat.writes(notebook)


def setup(app) -> None:
    app.add_transform(RepositoryLinks)
    app.connect("source-read", prepare)

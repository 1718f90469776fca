"""Settings of the documentation site, which `make docs` builds with Sphinx from the Markdown files in docs/."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

project = "winnow"
release = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text(encoding="utf-8"))[
    "project"
]["version"]
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "winnow"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
suppress_warnings = ["myst.xref_missing"]
"""Links to files of the repository, such as params.yaml, lead out of the site; tests/test_docs.py checks them."""


ROOT_FILES = {"contributing": "CONTRIBUTING.md", "changelog": "CHANGELOG.md"}
"""Page of the site -> the file in the repository's root that it shows."""


def _show_root_files(app: Any, docname: str, source: list[str]) -> None:
    """Replace the text of these pages by that of their files, and point links to the files at the pages."""
    if docname in ROOT_FILES:
        path = Path(__file__).resolve().parent.parent / ROOT_FILES[docname]
        app.env.note_dependency(str(path))
        text = re.sub(r"\]\((?!\w+://|#)", "](../", path.read_text(encoding="utf-8"))
        source[0] = text.replace("](../docs/", "](")
    up = "../" * docname.count("/")
    for page, file in ROOT_FILES.items():
        source[0] = source[0].replace(f"]({up}../{file}", f"]({up}{page}.md")


def setup(app: Any) -> None:
    """Connect the function above to Sphinx."""
    app.connect("source-read", _show_root_files)

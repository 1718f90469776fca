"""Settings of the documentation site, which `make docs` builds with Sphinx from the Markdown files in docs/."""

from __future__ import annotations

import tomllib
from pathlib import Path

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
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
suppress_warnings = ["myst.xref_missing"]
"""Links to files of the repository, such as params.yaml, lead out of the site; tests/test_docs.py checks them."""

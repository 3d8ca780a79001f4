"""Sphinx settings of the documentation's site; build.py beside this file gives the pages."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

project = "oneContainer"
author = "the oneContainer authors"
release = version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
html_title = f"{project} {release}"
html_theme = "furo"
html_show_copyright = False
html_show_sphinx = False
# The commands and not their answers are what a reader copies.
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True

extensions = ["myst_parser", "sphinx_copybutton"]
root_doc = "index"
exclude_patterns: list[str] = []
# Links to a heading of a page, `page.md#its-words`, as GitHub makes them.
myst_heading_anchors = 4
suppress_warnings = [
    # Pages are read on GitHub too, where a table may come first and a section may be missing between two levels.
    "myst.header",
    # `console` blocks have answers in them, and `text` ones anything.
    "misc.highlighting_failure",
]

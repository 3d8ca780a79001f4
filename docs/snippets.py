"""Code in pages, taken from programs that tests run.

A page names a region of a source file in a comment, and the fenced block below it is kept equal to that region by `make docs`:

    <!-- snippet: tests/clients/go/scenario/main.go watch -->

A region lies between the comments `region watch` and `endregion` of the source file.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SNIPPET = re.compile(r"(<!-- snippet: (\S+) (\S+) -->\n```[^\n]*\n)(.*?)(^```$)", re.MULTILINE | re.DOTALL)
COMMENT = r"^[ \t]*(?://|#) {}[ \t]*\n"


def with_snippets(page: Path) -> str:
    """The page's text with its snippets as their sources have them. Raises ValueError for a region that is not there."""
    return SNIPPET.sub(
        lambda found: f"{found[1]}{region(ROOT / found[2], found[3])}{found[5]}", page.read_text(encoding="utf-8")
    )


def region(source: Path, name: str) -> str:
    """The lines of a region, without what all of them are indented by. Raises ValueError if it is not there."""
    text = source.read_text(encoding="utf-8")
    begin, end = COMMENT.format(f"region {re.escape(name)}"), COMMENT.format("endregion")
    found = re.search(f"{begin}(.*?){end}", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"{source.relative_to(ROOT)} has no region {name}")
    return textwrap.dedent(found[1]).strip("\n") + "\n"

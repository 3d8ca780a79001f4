"""Code in pages comes from programs that tests run (docs/snippets.py)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs import snippets

STUBS = snippets.ROOT / "docs/stubs.md"
SOURCE = """# region first
def first() -> int:
    return 1
    # endregion


# region second
x = 2
# endregion
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(snippets, "ROOT", tmp_path)
    (tmp_path / "source.py").write_text(SOURCE)
    return tmp_path / "page.md"


def test_a_block_becomes_the_region_it_names(place: Path) -> None:
    block = "<!-- snippet: source.py {} -->\n```python\n{}```\n"
    place.write_text(block.format("first", "old = 0\n") + "text\n" + block.format("second", ""))
    filled = snippets.with_snippets(place)
    assert filled == (
        block.format("first", "def first() -> int:\n    return 1\n") + "text\n" + block.format("second", "x = 2\n")
    )
    place.write_text(filled)
    assert snippets.with_snippets(place) == filled


def test_a_region_that_is_not_there_is_told(place: Path) -> None:
    place.write_text("<!-- snippet: source.py third -->\n```python\n```\n")
    with pytest.raises(ValueError, match=r"source.py has no region third"):
        snippets.with_snippets(place)


def test_the_page_on_stubs_shows_only_code_that_is_run() -> None:
    text = STUBS.read_text()
    shown = re.findall(r"^```(go|ts|python|java|rust)$", text, re.MULTILINE)
    assert len(shown) == 5 * 4
    without = snippets.SNIPPET.sub("", text)
    assert not re.search(r"^```(go|ts|python|java|rust)$", without, re.MULTILINE)

"""Values of options: durations, pairs, JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from onecontainer.cli.options import DURATION, JSON, JSON_PAIR, PAIR


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90.0), ("1.5s", 1.5), ("200ms", 0.2), ("5m", 300.0), ("2h", 7200.0), ("7d", 604_800.0), (3.0, 3.0)],
)
def test_durations(text: Any, seconds: float) -> None:
    assert DURATION.convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1", "5 minutes", "1e3"])
def test_what_is_no_duration_is_told_how_to_write_one(text: str) -> None:
    with pytest.raises(click.BadParameter, match="200ms"):
        DURATION.convert(text, None, None)


def test_pairs_keep_text_or_read_json() -> None:
    assert PAIR.convert("a=b=c", None, None) == ("a", "b=c")
    assert JSON_PAIR.convert("threads=4", None, None) == ("threads", 4)
    assert JSON_PAIR.convert("name=cat", None, None) == ("name", "cat")
    assert JSON_PAIR.convert('hosts=["a"]', None, None) == ("hosts", ["a"])
    for wrong in ("a", "=b"):
        with pytest.raises(click.BadParameter, match="KEY=VALUE"):
            PAIR.convert(wrong, None, None)


def test_json_comes_from_the_argument_or_a_file_one_value_or_several(tmp_path: Path) -> None:
    assert JSON.convert('{"a": 1}', None, None) == [{"a": 1}]
    file = tmp_path / "items.jsonl"
    file.write_text('{"a": 1}\n{"a": 2}\n\n')
    assert JSON.convert(f"@{file}", None, None) == [{"a": 1}, {"a": 2}]
    with pytest.raises(click.BadParameter, match="line 1, column 2"):
        JSON.convert("{a}", None, None)
    with pytest.raises(click.BadParameter, match="No such file"):
        JSON.convert("@/nowhere/x", None, None)

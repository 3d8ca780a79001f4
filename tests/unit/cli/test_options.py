"""Values of options: durations, pairs, JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from onecontainer.api.type.v1.job_options_pb2 import JobOptions
from onecontainer.cli.job import options_of
from onecontainer.cli.options import DURATION, JSON, JSON_PAIR, PAIR, TARGET, job_options


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


@pytest.mark.parametrize("text", ["127.0.0.1:7000", "host.internal:1", "[::1]:65535", "unix:/run/x.sock", "unix:x"])
def test_targets(text: str) -> None:
    assert TARGET.convert(text, None, None) == text


@pytest.mark.parametrize(
    "text", ["", "foo", "foo:", ":7000", "foo:0", "foo:65536", "foo:x", "unix:", "http://h:1", "::1"]
)
def test_what_nothing_can_listen_on_is_no_target(text: str) -> None:
    with pytest.raises(click.BadParameter, match="neither HOST:PORT nor unix:PATH"):
        TARGET.convert(text, None, None)


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


def test_every_option_of_a_job_can_be_given() -> None:
    numbers = {"max-attempts": 7, "backoff-multiplier": 1.5}
    times = {"queue-timeout": 1, "attempt-timeout": 2, "total-timeout": 3, "stall-timeout": 4, "result-ttl": 5}
    times |= {"initial-backoff": 6, "max-backoff": 60}
    texts = {"request-id": "r", "priority": "high", "label": "a=b"}
    words = [f"--{name}={value}" for name, value in (numbers | times | texts).items()]
    made: list[JobOptions] = []

    @click.command()
    @job_options
    def command(**values: Any) -> None:
        made.append(options_of(values))
        assert not values, "what is left over would go to the command itself"

    result = CliRunner().invoke(command, ["--retry-unsafe", "--keep-result", *words])
    assert result.exit_code == 0, result.output
    [options] = made
    assert {field.name for field, _value in options.ListFields()} == set(options.DESCRIPTOR.fields_by_name)
    policy = options.retry_policy
    assert {field.name for field, _value in policy.ListFields()} == set(policy.DESCRIPTOR.fields_by_name)
    for name, seconds in times.items():
        owner = policy if name.endswith("backoff") else options
        assert getattr(owner, name.replace("-", "_")).ToSeconds() == seconds, name
    assert (policy.max_attempts, policy.backoff_multiplier) == (7, 1.5)

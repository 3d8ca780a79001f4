"""Each command line of `oca` in the documentation is one that `oca` understands, also where no test can run it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from onecontainer.cli.main import cli

ROOT = Path(__file__).resolve().parents[3]
BLOCK = re.compile(r"^```(?:console|text|sh|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^(?:\$ )?(?:[A-Z_]+=\S* )*(oca [a-z-].*)$", re.MULTILINE)
# What a shell does with the rest is its own business.
END_OF_COMMAND = {"|", ">", ">>", "<", "<<<", "&&", "||", "&", ";"}


def command_lines() -> Iterator[tuple[str, str]]:
    """Page and command line, continued lines put together."""
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "drivers").glob("*/README.md")]:
        if page.parent.name == "reference":
            continue
        for block in BLOCK.findall(page.read_text()):
            for line in COMMAND.findall(block.replace("\\\n", " ")):
                yield str(page.relative_to(ROOT)), line


def words(line: str) -> list[str]:
    """Its words; a quoted one that goes on over lines (JSON) is closed at the end of its first."""
    if line.count("'") % 2:
        line += "'"
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
    lexer.whitespace_split = True
    found = []
    for word in lexer:
        if word in END_OF_COMMAND:
            break
        found.append(word)
    return found


def parsed(command: click.Command, arguments: list[str], parent: click.Context | None, name: str) -> click.Command:
    """The command that the words lead to. Raises click's own errors for one that is not there, or an option that it has not."""
    context = click.Context(command, parent=parent, info_name=name)
    _, rest, _ = command.make_parser(context).parse_args(list(arguments))
    if not isinstance(command, click.Group):
        most = sum(
            argument.nargs if argument.nargs > 0 else 1000
            for argument in command.params
            if isinstance(argument, click.Argument)
        )
        given = len(rest)
        if given > most:
            raise click.UsageError(f"{name} takes {most} arguments, not {given}")
        return command
    if not rest:
        return command
    found, below, below_rest = command.resolve_command(context, rest)
    assert below is not None
    return parsed(below, below_rest, context, found or "")


def test_there_are_some() -> None:
    assert len(list(command_lines())) > 80


@pytest.mark.parametrize(("page", "line"), list(command_lines()))
def test_each_is_understood(page: str, line: str) -> None:
    try:
        parsed(cli, words(line)[1:], None, "oca")
    except click.UsageError as error:
        pytest.fail(f"{page}: {line}\n{error.format_message()}")

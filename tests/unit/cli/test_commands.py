"""The tree of commands: help for each, fast, and usage errors before anybody is called."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from onecontainer.cli.main import COMMANDS, cli
from onecontainer.errors import StateInvalid
from onecontainer.gateway.lock import DataFolder


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    with click.Context(group) as ctx:
        for name in group.list_commands(ctx):
            command = group.get_command(ctx, name)
            assert command is not None
            yield (*path, name), command
            if isinstance(command, click.Group):
                yield from commands(command, (*path, name))


ALL = dict(commands(cli))


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_each_command_has_help_and_each_option_too(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(cli, [*path, "--help"])
    assert result.exit_code == 0
    command = ALL[path]
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{' '.join(path)} {parameter.opts}"


@pytest.mark.parametrize(
    "path", [path for path, command in ALL.items() if isinstance(command, click.Group)], ids=" ".join
)
def test_each_group_shows_examples_that_parse(path: tuple[str, ...]) -> None:
    """An example in a help text names a command that is there, with options that it has."""
    examples = [line.strip() for line in (ALL[path].help or "").splitlines() if line.strip().startswith("oca ")]
    assert examples
    for example in examples:
        words = example.split("  ")[0].split()[1:]
        target = tuple(words[:2])
        assert target in ALL, example
        options = {name for parameter in ALL[target].params for name in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in words[2:] if word.startswith("-") and len(word) > 1} <= options, example


def test_the_root_lists_all_commands_without_loading_what_they_need() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from onecontainer.cli.main import cli; "
        "print(CliRunner().invoke(cli, ['--help']).output); "
        "heavy = {'grpc', 'sqlalchemy', 'rich', 'google.protobuf', 'pydantic'} & set(sys.modules); "
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for name, (_path, text) in COMMANDS.items():
        assert name in result.stdout
        assert text in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nope"], "No such command"),
        (["job", "create", "x", "A/B", "{"], "no JSON"),
        (["db", "delete", "x", "t"], "--where or --all"),
        (["db", "create-table", "x", "t", "-c", "id=serial8"], "the types are bool"),
        (["driver", "match"], "either a SERVICE or --app"),
        (["service", "update", "x"], "nothing to change"),
        (["ai", "predict", "x"], "no input"),
        (["ai", "predict", "x", "/no/such.png"], "is no file"),
        (["media", "probe", "x", "nowhere.mp4"], "no file here"),
        (["media", "frame", "x", "artifacts/1", "--to", "a.gif"], ".jpg, .png or .webp"),
        (["media", "transcode", "x", "artifacts/1", "--preset", "nope", "--to", "a.mp4"], "web-mp4"),
        (["media", "transcode", "x", "artifacts/1", "--preset", "web-mp4", "--to", "a.mkv"], "must end in .mp4"),
        (
            ["media", "transcode", "x", "artifacts/1", "--preset", "archive", "--to", "a.mkv", "--quality", "3"],
            "--quality",
        ),
        (["media", "transcode", "x", "artifacts/1", "--preset", "archive", "--to", "a.mkv", "--width", "3"], "--width"),
        (["media", "transcode", "x", "artifacts/1", "--preset", "audio-only", "--to", "a.mp4"], "must end in .m4a"),
        (["media", "transcode", "x", "artifacts/1", "--preset", "thumbnail", "--to", "a.gif"], ".jpg, .png or .webp"),
        (["media", "transcode", "x", "artifacts/1", "--preset", "hls-abr", "--to", "a.m3u8"], "must be a folder"),
        (["media", "stream", "x", "artifacts/1", "http://a/b"], "no udp://"),
        (["up", "--listen", "0.0.0.0:1"], "not loopback"),
        (["status", "--timeout", "soon"], "no duration"),
        (["worker", "x", "--driver", "foo"], "neither HOST:PORT nor unix:PATH"),
        (["worker", "x", "--driver", "h:1", "--gateway", "foo"], "neither HOST:PORT nor unix:PATH"),
        (["worker", "x", "--driver", "h:1"], "--driver-ca-file"),
        (["worker", "x", "--driver", "unix:/x", "--gateway", "h:1"], "--gateway-ca-file"),
        (["service", "update", "x", "--max-running", "-1"], "--max-running"),
    ],
)
def test_usage_errors_say_what_is_wrong_and_exit_with_2(arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2, result.output
    assert says in result.output


@pytest.mark.parametrize(
    "arguments", [["ai", "predict", "x"], ["job", "create", "x", "A/B", "{"], ["up", "--listen", "0.0.0.0:1"]]
)
def test_programs_get_usage_errors_as_json_too(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli, ["-o", "json", *arguments])
    assert result.exit_code == 2, result.output
    assert json.loads(result.stderr)["error"]["code"] == "INVALID_ARGUMENT"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_program(shell: str) -> None:
    result = CliRunner().invoke(cli, ["completion", shell])
    assert result.exit_code == 0
    assert "_OCA_COMPLETE" in result.output


def test_tab_knows_commands_and_options_without_loading_them() -> None:
    def complete(words: str) -> list[str]:
        environment = {
            "_OCA_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        }
        result = CliRunner().invoke(cli, [], prog_name="oca", env=environment)
        return [line.partition(",")[2] for line in result.output.splitlines()]

    assert complete("oca s") == ["status", "service", "sidecar"]
    assert complete("oca job w") == ["wait", "watch"]
    assert "--finish" in complete("oca job cancel --f")


def test_a_package_that_is_missing_is_named() -> None:
    code = "import sys; sys.modules['sqlalchemy'] = None; from onecontainer.cli.main import cli; cli(['up'])"
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"ONECONTAINER_DATA_DIR": folder, "ONECONTAINER_LISTEN": "127.0.0.1:0"},
        )
    assert result.returncode == 1
    assert "needs the package sqlalchemy: pip install" in result.stderr


def test_what_only_calls_a_gateway_needs_none_of_its_packages() -> None:
    gone = ("sqlalchemy", "alembic", "docker", "aiokafka")
    code = f"import sys; sys.modules.update(dict.fromkeys({gone!r})); from onecontainer.cli.main import cli; cli(['service', 'list'])"
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"ONECONTAINER_DATA_DIR": folder, "ONECONTAINER_ADDRESS": "127.0.0.1:1"},
        )
    assert result.returncode == 4, result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["driver", "new", "onnx", "--scope", "ai"], "onnx is the name of a driver that comes with oneContainer"),
        (["driver", "install", "."], "has no metadata.json: it is no driver's folder"),
        (["driver", "install", ""], "SOURCE is empty"),
        (["driver", "install", "/dev/zero"], "is no folder and no file"),
    ],
)
def test_what_is_no_driver_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_address_is_the_only_thing_that_is_told(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["up", "--detach", "--data-dir", str(tmp_path), "--listen", "foo"])
    assert result.exit_code == 2
    assert "listen" in result.output
    assert "default factory" not in result.output


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil._ntuple_diskusage(1 << 30, 1 << 30, 4096)  # type: ignore[attr-defined]
    monkeypatch.setattr("onecontainer.gateway.lock.shutil.disk_usage", lambda _path: full)
    with pytest.raises(StateInvalid, match=r"is full \(4096 bytes are free\): make room on it"), DataFolder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_second_gateway_is_refused_before_anything_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onecontainer.gateway.app", None)
    with DataFolder(tmp_path):
        result = CliRunner().invoke(cli, ["up", "--data-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert "another gateway (it is just starting) uses the data folder" in result.output
    # Nobody holds it any more: now it goes on, as far as that is possible here.
    assert isinstance(CliRunner().invoke(cli, ["up", "--data-dir", str(tmp_path)]).exception, ImportError)

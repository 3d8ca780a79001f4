"""Checks of the machine, each seen good and bad."""

from __future__ import annotations

import socket
from pathlib import Path

from onecontainer.cli.doctor import BAD, NOTE, OK, data_folder, drivers, packages, port, python, secrets
from onecontainer.settings import Settings


def test_python() -> None:
    assert python((3, 11, 0)).level == OK
    old = python((3, 10, 9))
    assert (old.level, "3.11" in old.hint) == (BAD, True)


def test_packages_missing_old_and_of_other_extras() -> None:
    requirements = ["click>=8", "no-such-thing-at-all>=1", "rich>=9999", "absent-too; extra == 'other'"]
    (found,) = packages(requirements, ("cli",), "onecontainer[cli]")
    assert found.level == BAD
    assert "no-such-thing-at-all is missing" in found.detail
    assert "rich is" in found.detail
    assert "absent-too" not in found.detail
    (good,) = packages(["click>=8"], (), "x")
    assert good.level == OK


def test_a_broken_driver_is_named_and_the_others_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "metadata.json").write_text("{")
    findings = list(drivers(tmp_path, []))
    assert [(finding.level, finding.what) for finding in findings] == [(BAD, "driver broken")]
    assert next(iter(drivers(None, []))).level == BAD


def test_data_folder(tmp_path: Path) -> None:
    fresh = list(data_folder(tmp_path / "new" / "data"))
    assert [finding.level for finding in fresh[:1]] == [OK]
    assert "first start" in fresh[0].detail
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    found = next(iter(data_folder(shared)))
    assert (found.level, "chmod 700" in found.hint) == (NOTE, True)


def test_secrets_that_others_can_read(tmp_path: Path) -> None:
    for name, mode in (("open", 0o644), ("closed", 0o600)):
        (tmp_path / name).write_text("x")
        (tmp_path / name).chmod(mode)
    (found,) = secrets(tmp_path)
    assert found.hint == f"chmod 600 {tmp_path / 'open'}"


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        number = other.getsockname()[1]
        assert port(Settings(data_dir=tmp_path, listen=f"127.0.0.1:{number}")).level == BAD
    assert port(Settings(data_dir=tmp_path, listen="127.0.0.1:0")).level == OK

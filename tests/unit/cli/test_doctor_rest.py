"""What `oca doctor` says of REST, in each state that a machine can be in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import onecontainer
from onecontainer.cli import doctor_rest, rest_program
from onecontainer.cli.doctor_rest import rest
from onecontainer.cli.finding import BAD, NOTE, OK
from onecontainer.cli.rest_program import about, digest, source_root
from onecontainer.settings import Settings

ROOT = Path(__file__).resolve().parents[3]

Script = Callable[[str, str], Path]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """A program of this name that says this, whatever it is asked."""

    def write(name: str, says: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\necho '{says}'\n")
        path.chmod(0o755)
        return path

    return write


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with nothing on PATH but `bin`, and nothing in the user's cache."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("onecontainer.cli.golang.USUAL", tmp_path / "no-go")
    return tmp_path


def settings(bare: Path, program: Path | None = None) -> Settings:
    return Settings(data_dir=bare / "data", rest_program=program)


def present(sources: str | None = None, version: str = onecontainer.__version__) -> str:
    return f"onecontainer-rest {version} sources {digest(ROOT) if sources is None else sources}"


def test_a_program_that_is_up_to_date(bare: Path, script: Script) -> None:
    named = script("elsewhere/program", present())
    found = rest(settings(bare, named))
    assert (found.level, found.detail) == (OK, f"{onecontainer.__version__}, up to date ({named})")
    on_path = script("bin/onecontainer-rest", present())
    assert (rest(settings(bare)).level, str(on_path) in rest(settings(bare)).detail) == (OK, True)


def test_a_program_of_other_sources_or_another_version(bare: Path, script: Script) -> None:
    stale = rest(settings(bare, script("stale", present("0123456789abcdef"))))
    assert (stale.level, "is stale" in stale.detail, "make rest" in stale.hint) == (NOTE, True, True)
    old = rest(settings(bare, script("old", present(version="0.0.9"))))
    assert (old.level, "is 0.0.9, oneContainer " in old.detail) == (NOTE, True)


def test_a_program_that_is_none(bare: Path, script: Script) -> None:
    named = rest(settings(bare, bare / "nowhere"))
    assert (named.level, "ONECONTAINER_REST_PROGRAM" in named.hint) == (BAD, True)
    assert rest(settings(bare, script("other", "something else 1"))).level == BAD
    script("bin/onecontainer-rest", "something else 1")
    # Nobody has asked for that one.
    assert rest(settings(bare)).level == NOTE


def test_one_that_was_built_on_first_use(bare: Path, script: Script) -> None:
    script("bin/go", "go1.99.1")
    kept = "cache/onecontainer/rest/onecontainer-rest"
    path = script(kept, present())
    fresh = rest(settings(bare))
    assert (fresh.level, str(path) in fresh.detail) == (OK, True)
    script(kept, present("0123456789abcdef"))
    stale = rest(settings(bare))
    assert (stale.level, "is built anew" in stale.detail) == (OK, True)
    assert "with Go 1.99.1" in stale.detail


def test_without_a_program_it_tells_of_go(bare: Path, script: Script) -> None:
    none = rest(settings(bare))
    assert (none.level, "no Go" in none.detail) == (NOTE, True)
    assert none.hint.startswith("Install Go 1.26 or newer.")
    assert "ONECONTAINER_REST_PROGRAM" in none.hint
    assert "docs/compose.md" in none.hint
    script("bin/go", "go1.25.9")
    old = rest(settings(bare))
    assert (old.level, "Go 1.25.9" in old.detail, "1.26 or newer" in old.hint) == (NOTE, True, True)
    script("bin/go", "go1.26")
    assert rest(settings(bare)).detail.startswith("is built by the next `oca up --rest`, with Go 1.26 (")


def test_without_what_generates_the_go_code(bare: Path, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    script("bin/go", "go1.26.1")
    monkeypatch.setattr(doctor_rest, "BUILT_WITH", ("grpc_tools", "no_such_module"))
    found = rest(settings(bare))
    assert (found.level, "no_such_module" in found.detail, "onecontainer[rest]" in found.hint) == (NOTE, True, True)


def test_without_sources(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest_program, "source_root", lambda: None)
    found = rest(settings(bare))
    assert (found.level, "no sources" in found.detail) == (NOTE, True)


def test_the_digest_is_another_for_other_sources(tmp_path: Path) -> None:
    assert source_root() == ROOT
    for name in ("deploy/rest/build.py", "deploy/rest/main.go", "protos/a.proto"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("one")
    before = digest(tmp_path)
    (tmp_path / "protos/a.proto").write_text("two")
    changed = digest(tmp_path)
    (tmp_path / "protos/a.proto").rename(tmp_path / "protos/b.proto")
    assert len({before, changed, digest(tmp_path)}) == 3
    (tmp_path / "deploy/rest/notes.txt").write_text("of no account")
    assert about(tmp_path / "deploy/rest/notes.txt") is None

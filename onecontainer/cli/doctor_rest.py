"""What `oca doctor` says of REST: the program that is there, or what would build it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import onecontainer
from onecontainer.cli import rest_program
from onecontainer.cli.finding import BAD, NOTE, OK, Finding
from onecontainer.cli.golang import find_go, go_version
from onecontainer.settings import Settings

WHAT = "REST"
ONLY = f"Only for `oca up --rest`: {rest_program.ELSEWISE}."
BUILT_WITH = ("grpc_tools", "buf")
"""Of the extra `rest`: a module, and a program."""


def rest(settings: Settings) -> Finding:
    """Whether there is a program for `oca up --rest`, of this version and these sources; else whether it can be built."""
    root = rest_program.source_root()
    program = rest_program.installed(settings)
    if program is not None:
        return _installed(program, root, named=settings.rest_program is not None)
    if root is None:
        return Finding(NOTE, WHAT, f"no {rest_program.PROGRAM}, and no sources of it here", ONLY)
    cached = rest_program.cached()
    found = rest_program.about(cached)
    if found is not None and found.sources == rest_program.digest(root):
        return Finding(OK, WHAT, f"{found.version}, up to date ({cached})")
    return _can_be_built(root, "built anew, for its sources have changed," if found is not None else "built")


def _installed(program: Path, root: Path | None, *, named: bool) -> Finding:
    """Of one that `oca up --rest` takes as it is; `named`: because a setting says so."""
    found = rest_program.about(program)
    if found is None:
        wrong = f"{program} is not there, or does not run here"
        return (
            Finding(BAD, WHAT, wrong, "Correct ONECONTAINER_REST_PROGRAM.")
            if named
            else Finding(NOTE, WHAT, wrong, "Remove it, or put there one that `make rest` builds in a checkout.")
        )
    anew = "`make rest` builds one in a checkout; put it there, or remove it: `oca up --rest` then builds its own."
    if found.version != onecontainer.__version__:
        return Finding(NOTE, WHAT, f"{program} is {found.version}, oneContainer {onecontainer.__version__}", anew)
    if found.sources and root is not None and found.sources != rest_program.digest(root):
        return Finding(NOTE, WHAT, f"{program} is stale: {found.version}, but not of the sources in {root}", anew)
    return Finding(OK, WHAT, f"{found.version}, up to date ({program})")


def _can_be_built(root: Path, built: str) -> Finding:
    wanted = rest_program.wanted_go(root)
    text = ".".join(map(str, wanted))
    tool = find_go()
    if tool is None:
        return Finding(
            NOTE, WHAT, f"no {rest_program.PROGRAM}, and no Go to build it", f"Install Go {text} or newer. {ONLY}"
        )
    version = go_version(tool)
    shown = ".".join(map(str, version)) or "of an unknown version"
    if version < wanted:
        return Finding(NOTE, WHAT, f"Go {shown} ({tool}) is too old to build it", f"Install Go {text} or newer. {ONLY}")
    if missing := [name for name in BUILT_WITH if not _is_there(name)]:
        lacks = f"Go {shown} is there, {' and '.join(missing)} to build it not"
        return Finding(NOTE, WHAT, lacks, f"pip install 'onecontainer[rest]'. {ONLY}")
    return Finding(OK, WHAT, f"is {built} by the next `oca up --rest`, with Go {shown} ({tool})")


def _is_there(name: str) -> bool:
    if name == "buf":
        return rest_program.beside("buf") is not None
    return importlib.util.find_spec(name) is not None

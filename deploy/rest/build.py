"""make rest: the REST front as one static binary, build/rest/onecontainer-rest.

    python deploy/rest/build.py [--out FILE] [--quick]      --quick: only if it is not up to date

Go and the packages of the extra `rest` (buf, protoc) are needed. What is generated from the contracts (the Go code and the OpenAPI
document) lies in a folder `source` beside the binary, with a copy of what is here, and is not committed. The plugins are those of go.mod.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onecontainer
from onecontainer.cli.golang import find_go, go_environment
from onecontainer.cli.rest_program import PROGRAM, SUFFIXES, about, digest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


class BuildError(Exception):
    """It cannot be built here. The message is for people."""


def go() -> str:
    """The Go tool. Raises BuildError."""
    found = find_go()
    if found is None:
        raise BuildError("Go is not installed; it builds the REST front (Go 1.26 or newer)")
    return found


def build(out: Path, sources: str, say: Callable[[str], None]) -> None:
    """Builds the program, which then tells `sources` as the digest of what it is made of; what is done is said line by line.

    Raises BuildError.
    """
    tool = go()
    source = out.parent / "source"
    source.mkdir(exist_ok=True)
    for stale in source.iterdir():
        if stale.is_file():
            stale.unlink()
    for path in HERE.iterdir():
        if path.suffix in SUFFIXES:
            shutil.copyfile(path, source / path.name)
    say("generating Go from the contracts …")
    generate(source, tool)
    say("compiling …")
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    flags = f"-s -w -X main.version={onecontainer.__version__} -X main.sources={sources}"
    run([tool, "build", "-ldflags", flags, "-o", str(temporary), "."], source, tool)
    # In one step: somebody may be running the old one.
    temporary.replace(out)


def generate(source: Path, tool: str) -> None:
    """Writes source/gen."""
    sys.path.insert(0, str(ROOT / "protos"))
    try:
        import generate as contracts
    except ImportError as error:
        raise BuildError(f"{error.name} is not installed: pip install 'onecontainer[rest]'") from None
    finally:
        sys.path.pop(0)
    try:
        image = contracts.compile_image(source_info=True)
        buf = contracts.tool("buf")
    except contracts.GenerationError as error:
        raise BuildError(f"{error}; pip install 'onecontainer[rest]' brings what it needs") from None
    (source / "image.binpb").write_bytes(image.SerializeToString())
    shutil.rmtree(source / "gen", ignore_errors=True)
    left_out = ("google", contracts.THIRD_PARTY_PATH)
    excluded = [option for path in left_out for option in ("--exclude-path", path)]
    run([buf, "generate", "image.binpb", "--template", "buf.gen.yaml", *excluded], source, tool)


def run(command: list[str], folder: Path, tool: str) -> None:
    environment = {**os.environ, **go_environment(tool)}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BuildError(f"{' '.join(command)}\n{result.stdout}{result.stderr}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "rest" / PROGRAM, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    out: Path = arguments.out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    # Two at once would write into each other's sources; the second finds what the first has built.
    with out.with_name(f".{out.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            sources = digest(ROOT)
            found = about(out) if arguments.quick else None
            if found is None or found.sources != sources:
                build(out, sources, lambda line: print(line, file=sys.stderr, flush=True))
        except BuildError as error:
            print(error, file=sys.stderr)
            return 1
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""make rest: the REST front as one static binary, build/rest/onecontainer-rest.

    python deploy/rest/build.py [--out FILE] [--quick]      --quick: only if it is not up to date

Go and the packages of the extra `dev` (buf, protoc) are needed. What is generated from the contracts (the Go code and the OpenAPI document)
lies in build/rest/source beside a copy of what is here, and is not committed. The plugins are those of go.mod.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "rest"
PROGRAM = "onecontainer-rest"
SUFFIXES = {".go", ".mod", ".sum", ".yaml"}


class BuildError(Exception):
    """It cannot be built here. The message is for people."""


def sources() -> list[Path]:
    """What the binary is made of, contracts included."""
    own = [path for path in HERE.iterdir() if path.suffix in SUFFIXES]
    return sorted([*own, Path(__file__), *(ROOT / "protos").rglob("*.proto")])


def digest() -> str:
    """Another one if anything the binary is made of is another."""
    found = hashlib.sha256()
    for path in sources():
        found.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


def go() -> str:
    """The Go tool. Raises BuildError."""
    usual = Path("/usr/local/go/bin/go")
    found = shutil.which("go") or (str(usual) if usual.exists() else None)
    if found is None:
        raise BuildError("Go is not installed; it builds the REST front (Go 1.26 or newer)")
    return found


def build(out: Path, say: Callable[[str], None]) -> Path:
    """Builds the program; what it does is said line by line. Raises BuildError."""
    tool = go()
    source = BUILD / "source"
    source.mkdir(parents=True, exist_ok=True)
    for stale in source.iterdir():
        if stale.is_file():
            stale.unlink()
    for path in HERE.iterdir():
        if path.suffix in SUFFIXES:
            shutil.copyfile(path, source / path.name)
    say("generating Go from the contracts …")
    generate(source, tool)
    say("compiling …")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    flags = f"-s -w -X main.version={version}"
    run([tool, "build", "-trimpath", "-ldflags", flags, "-o", str(temporary), "."], source, tool)
    # In one step: somebody may be running the old one.
    temporary.replace(out)
    return out


def generate(source: Path, tool: str) -> None:
    """Writes source/gen."""
    sys.path.insert(0, str(ROOT / "protos"))
    try:
        import generate as contracts
    except ImportError as error:
        raise BuildError(f"{error.name} is not installed: run `make setup`") from None
    finally:
        sys.path.pop(0)
    image = source / "image.binpb"
    image.write_bytes(contracts.compile_image(source_info=True).SerializeToString())
    shutil.rmtree(source / "gen", ignore_errors=True)
    left_out = ("google", contracts.THIRD_PARTY_PATH)
    excluded = [option for path in left_out for option in ("--exclude-path", path)]
    run([contracts.tool("buf"), "generate", str(image), "--template", "buf.gen.yaml", *excluded], source, tool)


def run(command: list[str], folder: Path, tool: str) -> None:
    environment = {
        **os.environ,
        "CGO_ENABLED": "0",
        "PATH": f"{Path(tool).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BuildError(f"{' '.join(command)}\n{result.stdout}{result.stderr}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=BUILD / PROGRAM, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    out: Path = arguments.out.resolve()
    note = out.with_name(f"{out.name}.digest")
    try:
        present = digest()
        if not (arguments.quick and out.exists() and note.exists() and note.read_text() == present):
            build(out, lambda line: print(line, file=sys.stderr, flush=True))
            note.write_text(present)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

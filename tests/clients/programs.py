"""Builds the scenario of each language, as a user would who has the package of stubs: with it as a dependency, and nothing else of ours.

Each function takes the folder with the package, and an empty one to build in; it returns the command that runs the scenario, to which
its arguments are added.
"""

from __future__ import annotations

import json
import shutil
import sys
import venv
from collections.abc import Callable
from pathlib import Path

from deploy.stubs import tools
from deploy.stubs.packages import ROOT, version
from onecontainer.cli.golang import go_environment

HERE = Path(__file__).parent
GO_MODULE = "github.com/onecontainer/onecontainer/gen/go"


def go(stubs: Path, out: Path) -> list[str]:
    """`go mod edit -replace`, as long as the module is not published."""
    shutil.copytree(HERE / "go/scenario", out, dirs_exist_ok=True)
    return [str(build_go(stubs, out, "scenario"))]


def build_go(stubs: Path, folder: Path, name: str) -> Path:
    """Builds the Go program in a folder, with the stubs from where they are; returns it."""
    go = tools.program("go")
    tools.run([go, "mod", "edit", "-replace", f"{GO_MODULE}={stubs}"], folder)
    tools.run([go, "build", "-o", name, "."], folder, **go_environment(go))
    return folder / name


def node(stubs: Path, out: Path) -> list[str]:
    """`npm pack`, `npm install`, `tsc`."""
    npm = tools.program("npm")
    shutil.copytree(HERE / "node", out, dirs_exist_ok=True)
    (packed,) = json.loads(tools.run([npm, "pack", "--json", f"--pack-destination={out}", stubs], out))
    quiet = ["--no-audit", "--no-fund", "--loglevel=error", "--prefer-offline"]
    tools.run([npm, "install", *quiet, f"./{packed['filename'].replace('@', '').replace('/', '-')}"], out)
    tools.run([tools.program("node"), "node_modules/typescript/bin/tsc"], out)
    return [tools.program("node"), str(out / "dist/scenario.js")]


def python(stubs: Path, out: Path) -> list[str]:
    """An environment with the wheel and what it requires; ours is not in it."""
    (wheel,) = (stubs / "dist").glob("*.whl")
    venv.create(out, symlinks=True, with_pip=False)
    interpreter = out / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", interpreter, "install", "--quiet", "--disable-pip-version-check"]
    tools.run([*pip, "--no-compile", "--constraint", ROOT / ".ci/constraints.txt", wheel], out)
    return [str(interpreter), str(HERE / "python/scenario.py")]


def java(stubs: Path, out: Path) -> list[str]:
    """`mvn install` into a local repository of the tests' own, then the program with its jars beside it."""
    shutil.copytree(stubs, out / "stubs")
    shutil.copytree(HERE / "java", out / "scenario")
    with tools.locked("maven-clients") as repository:
        mvn = [tools.program("mvn"), "--quiet", "--batch-mode", f"-Dmaven.repo.local={repository}", "-Dmaven.test.skip"]
        tools.run([*mvn, "install"], out / "stubs")
        options = [f"-Donecontainer.version={version()}", "-DoutputDirectory=target/lib", "-DincludeScope=runtime"]
        tools.run([*mvn, *options, "package", "dependency:copy-dependencies"], out / "scenario")
    target = out / "scenario/target"
    return [tools.program("java"), "-cp", f"{target}/classes:{target}/lib/*", "dev.onecontainer.scenario.Scenario"]


def rust(stubs: Path, out: Path) -> list[str]:
    """The crate by its path, as long as it is not published. What it needs is compiled once, and kept."""
    with tools.locked("clients-rust") as place:
        # At one path always: cargo would keep a compiled crate for each.
        shutil.rmtree(place / "stubs", ignore_errors=True)
        shutil.copytree(stubs, place / "stubs")
        shutil.copytree(HERE / "rust", place / "scenario", dirs_exist_ok=True)
        patch = f"patch.crates-io.onecontainer-api.path='{place / 'stubs'}'"
        command = [tools.program("cargo"), "build", "--quiet", "--config", patch]
        tools.run(command, place / "scenario", CARGO_TARGET_DIR=str(place / "target"))
        program = shutil.copy(place / "target/debug/scenario", out / "program")
    return [str(program)]


BUILDERS: dict[str, Callable[[Path, Path], list[str]]] = {
    builder.__name__: builder for builder in (go, node, python, java, rust)
}
"""The languages that there are packages of stubs for."""

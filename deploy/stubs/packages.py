"""Packages of stubs: one folder for each language, ready to be used from where it is or to be published.

Each begins as a copy of the folder beside this file that has the language's name, with the version and the description of the
project put in; `buf generate` by that folder's buf.gen.yaml then adds the code.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from deploy.stubs import tools
from protos import generate

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TEMPLATE = "buf.gen.yaml"
OWN = "onecontainer/api"
FOREIGN = generate.THIRD_PARTY_PATH
"""Somebody else's contract, whose owners have clients for it."""


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def _requirement(name: str) -> str:
    """What the project requires of a Python package."""
    dependencies: list[str] = _project()["dependencies"]
    return next(one for one in dependencies if one.startswith(f"{name}>="))


def version() -> str:
    """The project's, which is that of all packages."""
    return str(_project()["version"])


def _copy(language: str, folder: Path) -> None:
    """The package without its code."""
    shutil.rmtree(folder, ignore_errors=True)
    words = {
        "@VERSION@": version(),
        "@DESCRIPTION@": _project()["description"],
        "@GRPCIO@": _requirement("grpcio"),
        "@PROTOBUF@": _requirement("protobuf"),
        "@COMMON_PROTOS@": _requirement("googleapis-common-protos"),
        "@PROTOC_JAVA@": tools.PROTOC_JAVA,
        "@GRPC_JAVA@": tools.PROTOC_GEN_GRPC_JAVA,
        "@PROTOC_GEN_ES@": tools.PROTOC_GEN_ES,
    }
    for source in sorted(path for path in (HERE / language).rglob("*") if path.is_file() and path.name != TEMPLATE):
        text = source.read_text()
        for word, value in words.items():
            text = text.replace(word, value)
        target = (folder / source.relative_to(HERE / language)).with_name(source.name.removesuffix(".in"))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    shutil.copy(ROOT / "LICENSE", folder / "LICENSE")


def _generate(language: str, plugins: Path, folder: Path, *more: str) -> None:
    """Adds the code of our contracts, and of the files `more` of google/*, which is what a language has no package of."""
    image = generate.compile_image(source_info=True, more=("google/rpc/error_details.proto",))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "image.binpb"
        path.write_bytes(image.SerializeToString())
        template = shutil.copy(HERE / language / TEMPLATE, scratch)
        chosen = [word for one in (OWN, *more) for word in ("--path", one)]
        search = f"{plugins}{os.pathsep}{os.environ['PATH']}"
        command = [generate.tool("buf"), "generate", str(path), "--template", str(template), "--output", str(folder)]
        tools.run([*command, *chosen, "--exclude-path", FOREIGN], Path(scratch), PATH=search)


def go(folder: Path) -> None:
    """A Go module."""
    plugins = tools.go_plugins()
    _copy("go", folder)
    _generate("go", plugins, folder)


def node(folder: Path) -> None:
    """An npm package: JavaScript modules and their types."""
    plugins = tools.node_plugins()
    _copy("node", folder)
    _generate("node", plugins, folder, "google/rpc", "google/api")


def java(folder: Path) -> None:
    """A Maven project: `mvn install` makes the jar."""
    plugins = tools.java_plugins()
    _copy("java", folder)
    _generate("java", plugins, folder)


def rust(folder: Path) -> None:
    """A crate, with its code in it: no build script, no protoc."""
    plugins = tools.rust_plugins()
    _copy("rust", folder)
    _generate("rust", plugins, folder)
    names = sorted(path.stem for path in (folder / "src/gen").glob("*.v1.rs"))
    modules = "\n".join(_rust_module(name) for name in names)
    with (folder / "src/lib.rs").open("a") as library:
        library.write(f"\n{modules}")


def _rust_module(package: str) -> str:
    """The module of a proto package, such as `onecontainer.api.job.v1`."""
    area, v1 = package.removeprefix("onecontainer.api.").split(".")
    name = {"type": "r#type"}.get(area, area)
    return f'pub mod {name} {{\n    pub mod {v1} {{\n        include!("gen/{package}.rs");\n    }}\n}}\n'


def python(folder: Path) -> None:
    """A wheel of `onecontainer.api` alone, for programs that want neither our client nor our SDK."""
    _copy("python", folder)
    generate.write_stubs(folder / "src")
    shutil.rmtree(folder / "src" / FOREIGN)
    (folder / "src" / OWN / "py.typed").touch()
    tools.run([sys.executable, "-m", "hatchling", "build", "--target", "wheel"], folder)


LANGUAGES: dict[str, Callable[[Path], None]] = {writer.__name__: writer for writer in (go, node, java, rust, python)}
"""Each writes the package into a folder, which it empties first. They raise ToolMissing, GenerationError and RuntimeError."""


def write(out: Path, names: Collection[str] = tuple(LANGUAGES)) -> dict[str, Path]:
    """Writes the packages of these languages below `out`; returns where each is."""
    folders = {name: out / name for name in names}
    for name, folder in folders.items():
        LANGUAGES[name](folder)
    return folders

"""`oca driver build`: what is made from a driver's metadata.json and from its own protos."""

from __future__ import annotations

import importlib
import importlib.util
import json
import pkgutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

import onecontainer.api
from onecontainer.catalog.contracts import add_with_imports
from onecontainer.catalog.packing import driver_files
from onecontainer.cli.readme import with_options
from onecontainer.errors import DataInvalid, StateInvalid
from onecontainer.rpc.manifest import METADATA_FILE, load_manifest

WELL_KNOWN = ("any", "duration", "empty", "field_mask", "struct", "timestamp", "wrappers")
COMPILER = "grpcio-tools"


def contracts() -> FileDescriptorSet:
    """All that a driver's proto may import: our contracts, what they import, and protobuf's well-known types."""
    found: dict[str, FileDescriptorProto] = {}
    modules = [f"google.protobuf.{name}_pb2" for name in WELL_KNOWN]
    for module in pkgutil.walk_packages(onecontainer.api.__path__, f"{onecontainer.api.__name__}."):
        if module.name.endswith("_pb2"):
            modules.append(module.name)
    for name in modules:
        add_with_imports(importlib.import_module(name).DESCRIPTOR, found)
    return FileDescriptorSet(file=found.values())


def has_compiler() -> bool:
    return importlib.util.find_spec("grpc_tools") is not None


def build_driver(folder: Path) -> list[Path]:
    """Makes, from the .proto files in a driver's folder, a `_pb2.py` and `_pb2.pyi` beside each, and its descriptor set.

    The table of options in its README is brought up to date, too. Returns what was written. Raises StateInvalid if it has
    protos and there is no grpcio-tools, and DataInvalid with what the compiler says.
    """
    root = folder.resolve()
    manifest = load_manifest(root)
    readme, changed = folder / "README.md", []
    if readme.is_file():
        text = readme.read_text(encoding="utf-8")
        filled = with_options(text, json.loads((root / METADATA_FILE).read_text(encoding="utf-8")))
        if filled != text:
            readme.write_text(filled, encoding="utf-8")
            changed.append(readme)
    protos = [path.relative_to(root) for path in driver_files(root) if path.suffix == ".proto"]
    if not protos:
        return changed
    if not has_compiler():
        raise StateInvalid(
            f"compiling protos needs {COMPILER}: pip install {COMPILER}, then `oca driver build {folder}`"
        )
    written = [path.with_name(f"{path.stem}_pb2{suffix}") for path in protos for suffix in (".py", ".pyi")]
    written.append(Path(manifest.descriptor_set))
    with tempfile.TemporaryDirectory() as scratch:
        imports = Path(scratch) / "contracts.binpb"
        imports.write_bytes(contracts().SerializeToString())
        result = subprocess.run(
            [
                *(sys.executable, "-m", "grpc_tools.protoc"),
                *("-I.", f"--descriptor_set_in={imports}", "--include_imports"),
                *("--python_out=.", "--pyi_out=.", f"--descriptor_set_out={manifest.descriptor_set}"),
                *(path.as_posix() for path in protos),
            ],
            cwd=root,
            check=False,
            capture_output=True,
            text=True,
        )
    if result.returncode:
        raise DataInvalid("protos", result.stderr.strip() or f"the compiler ended with {result.returncode}")
    return [*changed, *(folder / path for path in written)]


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=Path())
def build(folder: Path) -> None:
    """Bring what is generated in a driver's FOLDER up to date.

    From its .proto files: the Python messages beside each, and the descriptor set by which the gateway knows the methods; that needs
    grpcio-tools. They may import our contracts (onecontainer/api/…) and protobuf's well-known types. From its metadata.json: the
    table of options in its README.
    """
    written = build_driver(folder)
    for path in written:
        click.echo(f"wrote {path}")
    if not written:
        click.echo("all is up to date")

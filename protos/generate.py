"""Generates what the repository keeps of the contracts, and checks that it is up to date.

    python protos/generate.py            writes onecontainer/api and drivers/*/descriptors.binpb (make protos)
    python protos/generate.py check      buf lint, buf breaking, and would the above change a file? (make check-protos)
    python protos/generate.py baseline   today's contracts become what `breaking` compares to (make protos-baseline)

What lies under protos/third_party is the contract of somebody else, which the SDK serves: it is compiled as onecontainer/api/third_party/,
and neither linted nor held to a baseline. google/* comes from the googleapis-common-protos and grpcio-tools wheels: not compiled into
our package, not fetched.
"""

from __future__ import annotations

import argparse
import filecmp
import importlib.resources
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import google.api
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
THIRD_PARTY = PROTOS / "third_party"
THIRD_PARTY_PATH = "onecontainer/api/third_party"
BASELINE = PROTOS / "baseline.binpb"
GOOGLE_APIS = Path(next(iter(google.api.__path__))).parent.parent
WELL_KNOWN = Path(str(importlib.resources.files("grpc_tools"))) / "_proto"
PACKAGE_DOC = '"""Generated from protos/ by `make protos`. Never edited."""\n'
GENERATED_SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


class GenerationError(Exception):
    """The contracts do not compile, or a driver names a service that is in none of them. The message is for people."""


def tool(name: str) -> str:
    """Path of a program of this very environment; only if it has none, of PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise GenerationError(f"{name} is not installed: run `make setup`")
    return found


def sources() -> list[str]:
    return sorted(_import_path(path) for path in PROTOS.rglob("*.proto"))


def _import_path(path: Path) -> str:
    """The name by which other files import it."""
    if path.is_relative_to(THIRD_PARTY):
        return f"{THIRD_PARTY_PATH}/{path.relative_to(THIRD_PARTY).as_posix()}"
    return path.relative_to(PROTOS).as_posix()


def run_protoc(*options: str, more: Sequence[str] = ()) -> None:
    """protoc on all our files, and on `more` of those they may import. Raises GenerationError with what it says."""
    files = sources()
    if not files:
        raise GenerationError("no .proto file under protos/")
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"-I{PROTOS}",
        f"-I{THIRD_PARTY_PATH}={THIRD_PARTY}",
        f"-I{GOOGLE_APIS}",
        f"-I{WELL_KNOWN}",
        *options,
        *files,
        *more,
    ]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    # Its warnings (an unused import, for one) are defects of a contract like any other.
    problems = "\n".join(
        line for line in result.stderr.splitlines() if line and not line.startswith(("Writing mypy", "Generated"))
    )
    if result.returncode or problems:
        raise GenerationError(problems or f"protoc ended with {result.returncode}")


def compile_image(*, source_info: bool, more: Sequence[str] = ()) -> FileDescriptorSet:
    """All our files, `more` of google/*, and what they import, in an order in which each comes after its imports."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.binpb"
        wanted = ["--include_imports", f"--descriptor_set_out={path}"]
        run_protoc(*wanted, *(["--include_source_info"] if source_info else []), more=more)
        return FileDescriptorSet.FromString(path.read_bytes())


def write_stubs(out: Path) -> None:
    """Python, its types, and the gRPC stubs of all contracts, as the package out/onecontainer/api."""
    out.mkdir(parents=True, exist_ok=True)
    run_protoc(
        f"--plugin=protoc-gen-mypy={tool('protoc-gen-mypy')}",
        f"--plugin=protoc-gen-mypy_grpc={tool('protoc-gen-mypy_grpc')}",
        f"--python_out={out}",
        f"--mypy_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_grpc_out={out}",
    )
    package = out / "onecontainer" / "api"
    # A file without services still gets a _pb2_grpc.py, which would be an empty module that nobody imports.
    with_services = {file.name for file in compile_image(source_info=False).file if file.service}
    for stub in (*package.rglob("*_pb2_grpc.py"), *package.rglob("*_pb2_grpc.pyi")):
        proto = stub.relative_to(out).as_posix().rsplit("_pb2_grpc", 1)[0] + ".proto"
        if proto not in with_services:
            stub.unlink()
    for folder in [package, *(path for path in package.rglob("*") if path.is_dir())]:
        (folder / "__init__.py").write_text(PACKAGE_DOC)


def descriptors_of(image: FileDescriptorSet, services: list[str], driver: str) -> bytes:
    """The files that define `services` and all they import, imports first, as a serialised FileDescriptorSet."""
    files: dict[str, FileDescriptorProto] = {file.name: file for file in image.file}
    owners = {f"{file.package}.{service.name}": file.name for file in image.file for service in file.service}
    wanted: set[str] = set()

    def want(name: str) -> None:
        if name not in wanted:
            wanted.add(name)
            for dependency in files[name].dependency:
                want(dependency)

    for service in services:
        if service not in owners:
            raise GenerationError(
                f"drivers/{driver}/metadata.json names the service {service!r}, which no .proto defines"
            )
        want(owners[service])
    chosen = FileDescriptorSet(file=[file for file in image.file if file.name in wanted])
    return chosen.SerializeToString(deterministic=True)


def write_driver_descriptors(out: Path) -> None:
    """`descriptors.binpb` of each driver whose metadata.json lists services."""
    image = compile_image(source_info=False)
    for metadata in sorted((ROOT / "drivers").glob("*/metadata.json")):
        content = json.loads(metadata.read_text())
        if services := content.get("services"):
            target = out / "drivers" / metadata.parent.name / "descriptors.binpb"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(descriptors_of(image, services, metadata.parent.name))


def write_all(out: Path) -> None:
    write_stubs(out)
    write_driver_descriptors(out)


def generated_files(root: Path) -> set[str]:
    """The generated files under a root, relative to it."""
    package = root / "onecontainer" / "api"
    found = [
        path
        for path in package.rglob("*")
        if path.is_file()
        and "__pycache__" not in path.parts
        and (path.name.endswith(GENERATED_SUFFIXES) or path.name == "__init__.py")
    ]
    found += (root / "drivers").glob("*/descriptors.binpb")
    return {path.relative_to(root).as_posix() for path in found}


def update() -> None:
    """Brings the repository's generated files up to date. Touches only files that change."""
    with tempfile.TemporaryDirectory() as folder:
        new = Path(folder)
        write_all(new)
        for name in sorted(generated_files(ROOT) - generated_files(new)):
            (ROOT / name).unlink()
            sys.stdout.write(f"removed {name}\n")
        for name in sorted(generated_files(new)):
            source, target = new / name, ROOT / name
            if not target.exists() or not filecmp.cmp(source, target, shallow=False):
                target.parent.mkdir(parents=True, exist_ok=True)
                # In one step: somebody may be importing it right now.
                temporary = target.with_name(f".{target.name}.{os.getpid()}")
                shutil.copyfile(source, temporary)
                temporary.replace(target)
                sys.stdout.write(f"wrote {name}\n")


def stale_files() -> list[str]:
    """What `make protos` would change."""
    with tempfile.TemporaryDirectory() as folder:
        new = Path(folder)
        write_all(new)
        names = generated_files(ROOT) | generated_files(new)
        return sorted(
            name
            for name in names
            if not (
                (ROOT / name).exists() and (new / name).exists() and filecmp.cmp(ROOT / name, new / name, shallow=False)
            )
        )


def buf(*arguments: str) -> bool:
    """Runs buf and says whether it is content. It finds its own faults: nothing is passed over."""
    return (
        subprocess.run(
            [tool("buf"), *arguments, "--config", str(PROTOS / "buf.yaml")], check=False, cwd=ROOT
        ).returncode
        == 0
    )


def check() -> int:
    """Everything that can be wrong with the contracts, all of it said. Returns the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.binpb"
        image.write_bytes(compile_image(source_info=True).SerializeToString())
        good = buf("lint", str(image))
        if BASELINE.exists():
            good = buf("breaking", str(image), "--against", str(BASELINE)) and good
        else:
            sys.stderr.write("protos/baseline.binpb is missing: run `make protos-baseline`\n")
            good = False
    for name in stale_files():
        sys.stderr.write(f"{name} is not what the contracts say: run `make protos`\n")
        good = False
    return 0 if good else 1


def write_baseline() -> None:
    BASELINE.write_bytes(compile_image(source_info=False).SerializeToString(deterministic=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", nargs="?", default="update", choices=["update", "check", "baseline"])
    try:
        match parser.parse_args().action:
            case "check":
                return check()
            case "baseline":
                write_baseline()
            case _:
                update()
    except GenerationError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The programs that make stubs: pinned here, brought by each language's own package manager the first time, kept in the user's cache."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from onecontainer.cli.golang import find_go, go_environment

PROTOC_GEN_GO = "1.36.10"
PROTOC_GEN_GO_GRPC = "1.6.0"
PROTOC_GEN_ES = "2.12.1"
PROTOC_JAVA = "4.35.1"
"""Also the oldest protobuf-java that takes what it makes: deploy/stubs/java/pom.xml."""
PROTOC_GEN_GRPC_JAVA = "1.79.0"
PROTOC_GEN_PROST = "0.5.0"
PROTOC_GEN_TONIC = "0.5.0"


class ToolMissing(Exception):
    """A program is missing that nothing here can bring. The message says which, and who installs it."""


def cache() -> Path:
    """The folder of what was fetched or built once, made if it is not there."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "onecontainer-ci"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def program(name: str) -> str:
    """Path of a toolchain's program. Raises ToolMissing."""
    found = find_go() if name == "go" else shutil.which(name)
    if found is None and name == "cargo" and (usual := Path.home() / ".cargo/bin/cargo").exists():
        found = str(usual)
    if found is None:
        raise ToolMissing(f"{name} is not on PATH: install the language's toolchain")
    return found


def run(command: Sequence[str | Path], folder: Path, **environment: str) -> str:
    """Runs a command, returns what it says on stdout. Raises RuntimeError with all it said if it fails."""
    result = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise RuntimeError(f"$ {' '.join(map(str, command))}\n{result.stdout}{result.stderr}")
    return result.stdout


@contextlib.contextmanager
def locked(name: str) -> Iterator[Path]:
    """A folder of the cache that this process alone works in meanwhile."""
    folder = cache() / name
    folder.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


@contextlib.contextmanager
def first_time(name: str) -> Iterator[tuple[Path, bool]]:
    """A folder of the cache, and whether it has to be filled. What was left half full is made anew."""
    with locked(name) as folder:
        done = folder / ".done"
        new = not done.exists()
        if new:
            shutil.rmtree(folder)
            folder.mkdir()
        yield folder, new
        done.touch()


def go_plugins() -> Path:
    """The folder with protoc-gen-go and protoc-gen-go-grpc."""
    with first_time(f"stubs-go-{PROTOC_GEN_GO}-{PROTOC_GEN_GO_GRPC}") as (folder, new):
        if new:
            for package in (
                f"google.golang.org/protobuf/cmd/protoc-gen-go@v{PROTOC_GEN_GO}",
                f"google.golang.org/grpc/cmd/protoc-gen-go-grpc@v{PROTOC_GEN_GO_GRPC}",
            ):
                go_install(package, folder)
    return folder


def go_install(package: str, folder: Path) -> None:
    """Builds a program in Go, MODULE/PATH@VERSION, into a folder. Raises ToolMissing, and RuntimeError with what Go says."""
    go = program("go")
    run([go, "install", package], folder, **go_environment(go), GOBIN=str(folder))


def node_plugins() -> Path:
    """The folder with protoc-gen-es."""
    with first_time(f"stubs-node-{PROTOC_GEN_ES}") as (folder, new):
        if new:
            quiet = ["--no-audit", "--no-fund", "--no-save", "--loglevel=error", f"--prefix={folder}"]
            run([program("npm"), "install", *quiet, f"@bufbuild/protoc-gen-es@{PROTOC_GEN_ES}"], folder)
    return folder / "node_modules/.bin"


def java_plugins() -> Path:
    """The folder with protoc, whose own generator Java's is, and protoc-gen-grpc-java."""
    with first_time(f"stubs-java-{PROTOC_JAVA}-{PROTOC_GEN_GRPC_JAVA}") as (folder, new):
        if new:
            for name, group, version in (
                ("protoc", "com.google.protobuf", PROTOC_JAVA),
                ("protoc-gen-grpc-java", "io.grpc", PROTOC_GEN_GRPC_JAVA),
            ):
                artifact = f"-Dartifact={group}:{name}:{version}:exe:{_maven_platform()}"
                quiet = ["--quiet", "--batch-mode", f"-DoutputDirectory={folder}", "-Dmdep.stripVersion=true"]
                run([program("mvn"), *quiet, "dependency:copy", artifact], folder)
                plugin = (folder / f"{name}-{_maven_platform()}.exe").rename(folder / name)
                plugin.chmod(0o755)
    return folder


def rust_plugins() -> Path:
    """The folder with protoc-gen-prost and protoc-gen-tonic."""
    with first_time(f"stubs-rust-{PROTOC_GEN_PROST}-{PROTOC_GEN_TONIC}") as (folder, new):
        if new:
            crates = [f"protoc-gen-prost@{PROTOC_GEN_PROST}", f"protoc-gen-tonic@{PROTOC_GEN_TONIC}"]
            build = folder / "target"
            command = [program("cargo"), "install", "--quiet", "--debug", "--locked", "--root", str(folder), *crates]
            run(command, folder, CARGO_TARGET_DIR=str(build))
            shutil.rmtree(build)
    return folder / "bin"


def _maven_platform() -> str:
    """This machine by the name that programs on Maven Central have."""
    system = {"Linux": "linux", "Darwin": "osx"}.get(platform.system())
    machine = {"x86_64": "x86_64", "aarch64": "aarch_64", "arm64": "aarch_64"}.get(platform.machine())
    if system is None or machine is None:
        raise ToolMissing(f"protoc is not made for {platform.system()} on {platform.machine()}: use Linux or macOS")
    return f"{system}-{machine}"

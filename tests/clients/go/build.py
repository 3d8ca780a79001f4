"""Builds the Go driver: its stubs are made from the contracts, by the pinned generators that `.ci/run` installs."""

from __future__ import annotations

import importlib.resources
import os
import shutil
import subprocess
import sys
from pathlib import Path

import google.api

from tests.drivers import build

HERE = Path(__file__).parent
MODULE = "onecontainer.test/godriver"
PACKAGES = {
    "onecontainer/api/driver/v1/driver.proto": "driverv1",
    "onecontainer/api/job/v1/job.proto": "jobv1",
    "onecontainer/api/job/v1/job_lease_service.proto": "jobv1",
    "onecontainer/api/options/v1/options.proto": "optionsv1",
    "onecontainer/api/type/v1/job_options.proto": "typev1",
    "onecontainer/api/type/v1/progress.proto": "typev1",
    "echo.proto": "echov1",
}
"""Proto file → Go package below `gen`. What these import besides is in Go modules of others."""
TOOLS = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "onecontainer-ci/bin"


def missing() -> str:
    """What this machine lacks for it; empty: nothing."""
    programs = {name: _program(name) for name in ("go", "protoc-gen-go", "protoc-gen-go-grpc")}
    return ", ".join(name for name, path in programs.items() if path is None)


def build_go_driver(out: Path) -> Path:
    """Builds the driver below ``out``; returns the program."""
    folder = out / "godriver"
    shutil.copytree(HERE / "driver", folder)
    gen = folder / "gen"
    gen.mkdir()
    includes = [
        build.HERE / "echo",
        build.PROTOS,
        Path(next(iter(google.api.__path__))).parent.parent,
        Path(str(importlib.resources.files("grpc_tools"))) / "_proto",
    ]
    packages = [f"M{proto}={MODULE}/gen/{package}" for proto, package in PACKAGES.items()]
    options = [
        f"--{plugin}_{kind}={value}"
        for plugin in ("go", "go-grpc")
        for kind, value in (("out", folder), ("opt", ",".join([f"module={MODULE}", *packages])))
    ]
    plugins = [f"--plugin={name}={_program(name)}" for name in ("protoc-gen-go", "protoc-gen-go-grpc")]
    _run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc"),
            *(f"-I{include}" for include in includes),
            *plugins,
            *options,
            *PACKAGES,
        ],
        folder,
    )
    program = out / "go-driver"
    _run([str(_program("go")), "build", "-o", str(program), "."], folder)
    return program


def _program(name: str) -> Path | None:
    for found in (TOOLS / name, shutil.which(name), Path("/usr/local/go/bin") / name):
        if found is not None and Path(found).exists():
            return Path(found)
    return None


def _run(command: list[str], folder: Path) -> None:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stdout}{result.stderr}")

"""Builds the Go driver, with the Go module that `make stubs` makes and stubs of its own service."""

from __future__ import annotations

import importlib.resources
import shutil
import sys
from pathlib import Path

import google.api

from deploy.stubs import tools
from tests.clients.programs import build_go
from tests.drivers import build

HERE = Path(__file__).parent
MODULE = "onecontainer.test/godriver"


def build_go_driver(stubs: Path, out: Path) -> Path:
    """Builds the driver below ``out`` with the Go module ``stubs``; returns the program. Raises ToolMissing without Go."""
    folder = out / "godriver"
    shutil.copytree(HERE / "driver", folder)
    includes = [
        build.HERE / "echo",
        build.PROTOS,
        Path(next(iter(google.api.__path__))).parent.parent,
        Path(str(importlib.resources.files("grpc_tools"))) / "_proto",
    ]
    plugins = tools.go_plugins()
    options = [
        f"--{plugin}_{kind}={value}"
        for plugin in ("go", "go-grpc")
        for kind, value in (("out", folder), ("opt", f"module={MODULE},Mecho.proto={MODULE}/gen/echov1"))
    ]
    programs = [f"--plugin={plugins / name}" for name in ("protoc-gen-go", "protoc-gen-go-grpc")]
    command = [sys.executable, "-m", "grpc_tools.protoc", *(f"-I{include}" for include in includes)]
    tools.run([*command, *programs, *options, "echo.proto"], folder)
    return build_go(stubs, folder, "go-driver")

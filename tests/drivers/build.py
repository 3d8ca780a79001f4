"""Builds a test driver's folder: its code, with stubs and descriptors made from its proto."""

from __future__ import annotations

import importlib.resources
import shutil
import subprocess
import sys
from pathlib import Path

import google.api

HERE = Path(__file__).parent
PROTOS = HERE.parent.parent / "protos"


def build_driver(name: str, out: Path) -> Path:
    """Copies the driver ``name`` of this folder below ``out`` and generates what it needs; returns the new folder."""
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(HERE / name, folder, ignore=shutil.ignore_patterns("__pycache__"))
    proto = folder / f"{name}.proto"
    package = folder / f"onecontainer_driver_{name}"
    includes = [
        folder,
        PROTOS,
        Path(next(iter(google.api.__path__))).parent.parent,
        Path(str(importlib.resources.files("grpc_tools"))) / "_proto",
    ]
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc"),
            *(f"-I{include}" for include in includes),
            f"--python_out={package}",
            f"--descriptor_set_out={folder / 'descriptors.binpb'}",
            "--include_imports",
            str(proto),
        ],
        check=True,
        capture_output=True,
    )
    return folder

"""What docker builds images from: files in memory, named by their content. Nothing here speaks to docker.

The SDK's image is made from the installation that the gateway itself runs from, be it a wheel or a checkout, with the same versions
of what it requires. A driver's image is made from the driver's folder alone, on top of it: bundled drivers and plug-ins alike.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import io
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import onecontainer
from onecontainer.catalog.packing import driver_files
from onecontainer.rpc.manifest import requirements_of

DOCKERFILE = "Dockerfile"
CONSTRAINTS = "constraints.txt"
SDK_PARTS = (
    "api",
    "client",
    "driver",
    "rpc",
    "clock.py",
    "errors.py",
    "ids.py",
    "settings.py",
    "py.typed",
    "__init__.py",
)
"""What of the package is in the base install: a change of the gateway alone makes no new images."""
SDK_EXTRA = "kafka"
_IMAGES = Path(__file__).parent / "images"
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class BuildFile:
    """A file of a build context."""

    data: bytes
    executable: bool = False


Context = Mapping[str, BuildFile]


def digest_of(context: Context, *more: str) -> str:
    """Names a context, and texts that matter for the image too: 16 hexadecimal digits."""
    total = hashlib.sha256()
    for text in more:
        total.update(hashlib.sha256(text.encode()).digest())
    for name, file in sorted(context.items()):
        total.update(
            hashlib.sha256(name.encode()).digest() + hashlib.sha256(file.data).digest() + bytes([file.executable])
        )
    return total.hexdigest()[:16]


def tar_of(context: Context) -> io.BytesIO:
    """The same bytes for the same files, so that docker's own cache of layers holds."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, file in sorted(context.items()):
            entry = tarfile.TarInfo(name)
            entry.size = len(file.data)
            entry.mode = 0o755 if file.executable else 0o644
            tar.addfile(entry, io.BytesIO(file.data))
    out.seek(0)
    return out


def driver_context(folder: Path) -> Context:
    """A driver's folder; without a Dockerfile it gets the one for drivers in Python.

    Unless it brings constraints of its own, what it requires is installed in the versions that are installed here: the runtime
    `process` runs it with those.
    """
    context = {
        path.relative_to(folder).as_posix(): BuildFile(path.read_bytes(), bool(path.stat().st_mode & 0o100))
        for path in driver_files(folder)
    }
    context.setdefault(DOCKERFILE, BuildFile((_IMAGES / "driver.Dockerfile").read_bytes()))
    context.setdefault(
        CONSTRAINTS, BuildFile("".join(f"{one}\n" for one in versions_of(requirements_of(folder))).encode())
    )
    return context


def sdk_context() -> Context:
    """The SDK as a wheel, what it requires, and the versions of that here."""
    name = f"onecontainer-{onecontainer.__version__}-py3-none-any.whl"
    required = installed_requirements("onecontainer", {"", SDK_EXTRA})
    return {
        DOCKERFILE: BuildFile((_IMAGES / "sdk.Dockerfile").read_bytes()),
        "requirements.txt": BuildFile("".join(f"{one}\n" for one in required).encode()),
        CONSTRAINTS: BuildFile("".join(f"{one}\n" for one in versions_of(required)).encode()),
        name: BuildFile(_wheel()),
    }


def installed_requirements(distribution: str, extras: set[str]) -> list[str]:
    """Without their markers' extra; those of other extras and other platforms are left out."""
    found = []
    for text in importlib.metadata.requires(distribution) or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
            requirement.marker = None
            found.append(str(requirement))
    return sorted(found)


def versions_of(required: Sequence[str]) -> list[str]:
    """`name==version` of all that is needed in the end, as far as it is installed here; but for ourselves."""
    found: dict[str, str] = {}
    waiting = [Requirement(text) for text in required]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found or name == "onecontainer":
            continue
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # pip picks one
        found[name] = f"{name}=={version}"
        waiting += [Requirement(text) for text in installed_requirements(name, {"", *requirement.extras})]
    return sorted(found.values())


def _wheel() -> bytes:
    package = Path(onecontainer.__file__).parent
    files: dict[str, bytes] = {}
    for part in SDK_PARTS:
        path = package / part
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and file.suffix in {".py", ".typed", ".binpb", ".json"}:
                files[f"onecontainer/{file.relative_to(package).as_posix()}"] = file.read_bytes()
    info = f"onecontainer-{onecontainer.__version__}.dist-info"
    metadata = importlib.metadata.distribution("onecontainer").read_text("METADATA") or ""
    files[f"{info}/METADATA"] = metadata.encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: onecontainer\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    lines = [f"{name},sha256={_record_hash(data)},{len(data)}" for name, data in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,", ""]).encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in files.items():
            wheel.writestr(zipfile.ZipInfo(name, _EPOCH), data, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def _record_hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()

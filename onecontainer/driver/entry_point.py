"""Finds a driver's class, and tells people what is missing when it cannot be imported."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import shlex
import sys
import traceback
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from onecontainer.driver.driver import Driver
from onecontainer.rpc.manifest import METADATA_FILE, Manifest, requirements_of


class DriverUnusable(Exception):
    """The driver cannot be started. The message is for people, and says what to do."""


class PackagesMissing(DriverUnusable):
    """It needs packages that this environment does not have; in another one it may be right."""


def load_driver_class(folder: Path, manifest: Manifest) -> type[Driver]:
    """The class that `entry_point` names; the folder is put on the import path. Raises DriverUnusable."""
    path = str(folder.resolve())
    if path not in sys.path:
        sys.path.insert(0, path)
    module_name, _, class_name = manifest.entry_point.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        lacks = missing_requirements(folder) or _is_foreign(error, folder)
        raise (PackagesMissing if lacks else DriverUnusable)(_explain(error, folder, manifest)) from error
    except (Exception, SystemExit) as error:
        # Whatever the driver's code raises while it is imported: its own lines, without those of the import machinery.
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(path)]
        where = "".join(traceback.format_list(own)).rstrip()
        what = "".join(traceback.format_exception_only(error)).strip()
        raise DriverUnusable(
            "\n".join(filter(None, (f"the driver {manifest.name} failed while it was imported:", where, what)))
        ) from error
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, Driver)):
        raise DriverUnusable(
            f"{METADATA_FILE} of {manifest.name}: entry_point {manifest.entry_point!r} is no subclass of onecontainer.driver.Driver"
        )
    return found


def _is_foreign(error: ImportError, folder: Path) -> bool:
    """Whether it is about a module that is not here, and not the driver's own."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return False
    top = error.name.partition(".")[0]
    return not any((folder / name).exists() for name in (top, f"{top}.py")) and importlib.util.find_spec(top) is None


def _explain(error: ImportError, folder: Path, manifest: Manifest) -> str:
    wanted = missing_requirements(folder)
    if wanted:
        listed = " ".join(f"'{requirement}'" for requirement in wanted)
        pip = f"{shlex.quote(sys.executable)} -m pip install {listed}"
        return f"the driver {manifest.name} needs packages that the Python it runs with does not have: {pip}\n({error})"
    if "_pb2" in str(error) and not (folder / manifest.descriptor_set).exists():
        return f"the contracts of the driver {manifest.name} are not built yet: oca driver build {folder}\n({error})"
    return f"the driver {manifest.name} cannot be imported from {manifest.entry_point!r}: {error}"


def missing_requirements(folder: Path) -> list[str]:
    """Requirements of the driver's pyproject.toml that this environment does not meet."""
    missing = []
    for text in requirements_of(folder):
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(text)
        else:
            if not requirement.specifier.contains(version, prereleases=True):
                missing.append(text)
    return missing


def folder_of(driver_class: type[Driver]) -> Path:
    """The driver's folder: the nearest one with a metadata.json, from the class's module upwards. Raises DriverUnusable."""
    source = getattr(sys.modules[driver_class.__module__], "__file__", None)
    if source is not None:
        for folder in Path(source).resolve().parents:
            if (folder / METADATA_FILE).is_file():
                return folder
    raise DriverUnusable(f"no {METADATA_FILE} in the folder of {driver_class.__name__} or above")

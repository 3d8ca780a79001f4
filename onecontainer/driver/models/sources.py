"""Files that come with a model and are kept: artifacts in the store, names of classes, paths inside the folder that is allowed."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from onecontainer.api.ai.v1 import inference_service_pb2, model_pb2
from onecontainer.driver import errors
from onecontainer.driver.models import labels
from onecontainer.driver.models.store import Store
from onecontainer.driver.models.version import Material, Report

if TYPE_CHECKING:
    from onecontainer.driver.artifacts import Artifacts


async def label_names(
    config: model_pb2.ModelConfig, previous: Material | None, artifacts: Artifacts | None
) -> tuple[tuple[str, ...], bool]:
    """The names of the classes, and whether they came from an artifact, so that they must be recorded.

    Raises:
        FieldInvalid, DataInvalid, DataCorrupt: there are no such names.
    """
    source = config.classification.labels
    match source.WhichOneof("source"):
        case "list":
            return tuple(source.list.names), False
        case "well_known":
            return await asyncio.to_thread(labels.well_known, source.well_known), False
        case "artifact" if previous is not None and previous.labels:
            return previous.labels, True
        case "artifact" if artifacts is not None:
            found = await artifacts.get(source.artifact)
            if found.size_bytes > labels.MAX_FILE_BYTES:
                raise errors.DataInvalid(
                    "config.classification.labels.artifact",
                    f"has {found.size_bytes} bytes; {labels.MAX_FILE_BYTES} are allowed",
                )
            data = await artifacts.read_bytes(source.artifact, labels.MAX_FILE_BYTES)
            return await asyncio.to_thread(labels.parse, data), True
        case "artifact":
            raise errors.DataCorrupt("the names of the classes were not kept; serve the model again")
    return (), False


async def kept_artifact(
    store: Store,
    name: str,
    field: str,
    kept: str,
    artifacts: Artifacts | None,
    report: Report,
    max_bytes: int,
) -> str:
    """Takes an artifact into the store, and returns its digest there; the caller lets go of it.

    Args:
        field: that names the artifact.
        kept: digest of an earlier copy. Empty: there is none.
        artifacts: None: it can only be the earlier copy.

    Raises:
        DataInvalid: too long.
        DataCorrupt: the copy is gone, or the artifact arrived damaged.
        ResourceNotFound: no such artifact.
    """
    if kept and store.hold(kept):
        return kept
    if artifacts is None:
        raise errors.DataCorrupt("the sidecar's copy of the model is gone; serve the model again")
    artifact = await artifacts.get(name)
    if artifact.size_bytes > max_bytes:
        raise errors.DataInvalid(field, f"has {artifact.size_bytes} bytes; {max_bytes} are allowed")
    part = store.part(uuid.uuid4().hex)
    try:
        fetched = 0
        await asyncio.to_thread(part.touch)
        async for piece in artifacts.read(name):
            await asyncio.to_thread(_append, part, piece)
            fetched += len(piece)
            report(inference_service_pb2.SERVE_MODEL_PHASE_FETCHING, "", fetched, artifact.size_bytes)
        digest = await asyncio.to_thread(store.adopt, part)
    finally:
        await asyncio.to_thread(part.unlink, missing_ok=True)
    if artifact.sha256 and artifact.sha256.hex() != digest:
        store.let_go(digest)
        raise errors.DataCorrupt(f"{name} arrived with another digest than it is stored with")
    return digest


LOCAL = "local"
"""In the state folder: where the folders are that an operator puts files into."""


def allowed_folder(name: str | None, state: Path, option: str) -> Path | None:
    """The folder that an option allows. A relative one is in `local` in the service's state folder, and is made if it is not there:
    so a sidecar in a container, too, sees what somebody puts there later. None: no folder is allowed. Blocks.

    Raises:
        FieldInvalid: no folder, or a relative path that leaves its place.
    """
    if not name:
        return None
    path = f"options.{option}"
    if "\0" in name or ".." in Path(name).parts:
        raise errors.FieldInvalid(path, "must be the path of a folder, without `..`")
    folder = Path(name)
    if not folder.is_absolute():
        folder = state / LOCAL / folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise errors.FieldInvalid(path, f"cannot be made in the state folder: {error.strerror}") from error
    if not folder.is_dir():
        raise errors.FieldInvalid(
            path,
            f"there is no folder {name} where the sidecar runs; in a container it sees its state folder only: a relative path is in"
            f" `{LOCAL}` there, and is made",
        )
    return folder


def inside(name: str, folder: Path | None, field: str, option: str) -> Path:
    """The real path of a file or folder inside the one that the driver's option allows; it need not be there. `./x` is in that
    folder. Blocks.

    Raises:
        SourceNotAllowed: no folder is allowed, or it is outside, also by a link.
        FieldInvalid: not an absolute path.
    """
    if folder is None:
        raise errors.SourceNotAllowed(field, f"no folder is allowed here; set the driver's option `{option}`")
    if name.startswith("./"):
        name = str(folder / name)
    if "\0" in name or not Path(name).is_absolute():
        raise errors.FieldInvalid(field, f"must be an absolute path, or `./NAME` in the folder that `{option}` names")
    path = Path(name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise errors.SourceNotAllowed(field, f"is not inside the folder that the driver's option `{option}` allows")
    return path


def _append(path: Path, piece: bytes) -> None:
    """No file is open between two pieces: a load that is cancelled there has none to close."""
    with path.open("ab") as file:
        file.write(piece)

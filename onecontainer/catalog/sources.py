"""Where plug-in drivers come from: a folder, an archive that was uploaded, a git repository; what is not allowed is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from onecontainer.catalog import git, packing
from onecontainer.errors import DataInvalid, FieldInvalid, SourceNotAllowed
from onecontainer.rpc.manifest import METADATA_FILE

ReadArtifact = Callable[[str, int], Awaitable[bytes]]
"""All bytes of `artifacts/{artifact}`; raises ResourceNotFound, and LimitExceeded if there are more than so many."""


@dataclass(frozen=True, slots=True)
class FolderSource:
    """A folder on the gateway's machine."""

    path: str


@dataclass(frozen=True, slots=True)
class ArtifactSource:
    """A tar archive, plain or gzip: `artifacts/{artifact}`."""

    name: str


@dataclass(frozen=True, slots=True)
class GitSource:
    """A folder of a git repository; an empty ref is the default branch, an empty folder the top."""

    url: str
    ref: str = ""
    folder: str = ""


Source = FolderSource | ArtifactSource | GitSource


@dataclass(frozen=True, slots=True)
class Fetched:
    """A driver's files as an archive that `packing.pack` made, and where exactly they are from."""

    archive: bytes
    origin: str


class Sources:
    """Brings drivers from where they are allowed to come from.

    Args:
        folders: a folder source has to be one of these, or below it.
        git_urls: a repository's URL has to be one of these, or below it.
        uploads: whether artifacts may be drivers.
        max_bytes: of a driver's files, and of an archive.
        git_timeout: for a whole fetch, in seconds.
    """

    def __init__(
        self,
        read_artifact: ReadArtifact,
        *,
        folders: Sequence[Path] = (),
        git_urls: Sequence[str] = (),
        uploads: bool = True,
        max_bytes: int,
        git_timeout: float,
    ) -> None:
        self._read_artifact = read_artifact
        self._folders = tuple(folder.resolve() for folder in folders)
        self._git_urls = tuple(git_urls)
        self._uploads = uploads
        self.max_bytes = max_bytes
        self._git_timeout = git_timeout

    async def fetch(self, source: Source, scratch: Path) -> Fetched:
        """The driver that a source holds; `scratch` is an empty folder to work in.

        Raises SourceNotAllowed, FieldInvalid, DataInvalid, LimitExceeded, ResourceNotFound, BackendUnreachable and
        DeadlineExceeded.
        """
        match source:
            case FolderSource():
                folder, origin = await asyncio.to_thread(self._folder, source), source.path
            case ArtifactSource():
                folder, origin = await self._artifact(source, scratch), source.name
            case GitSource():
                folder, origin = await self._git(source, scratch)
        return Fetched(await asyncio.to_thread(packing.pack, folder, self.max_bytes), origin)

    def _folder(self, source: FolderSource) -> Path:
        # Links are followed first: what counts is where the files really are.
        folder = Path(source.path).resolve() if Path(source.path).is_absolute() else None
        if folder is None:
            raise FieldInvalid("folder", "is not an absolute path on the gateway's machine")
        if not any(folder.is_relative_to(allowed) for allowed in self._folders):
            raise SourceNotAllowed(
                "folder",
                f"{source.path} is not below a folder of ONECONTAINER_PLUGIN_FOLDERS, which the gateway's operator sets; "
                "`oca driver install` uploads a folder of yours",
            )
        return _with_metadata(folder, "folder")

    async def _artifact(self, source: ArtifactSource, scratch: Path) -> Path:
        if not self._uploads:
            raise SourceNotAllowed(
                "artifact", "uploaded drivers are switched off by the gateway's operator (ONECONTAINER_PLUGIN_UPLOADS)"
            )
        data = await self._read_artifact(source.name, self.max_bytes)
        unpacked = scratch / "archive"
        await asyncio.to_thread(packing.unpack, data, unpacked, self.max_bytes)
        return await asyncio.to_thread(_top_of, unpacked)

    async def _git(self, source: GitSource, scratch: Path) -> tuple[Path, str]:
        git.check_source(source.url, source.ref, source.folder, self._git_urls)
        clone = scratch / "git"
        commit = await git.fetch(
            source.url, source.ref, clone, part=source.folder, timeout=self._git_timeout, max_bytes=self.max_bytes
        )
        folder = _with_metadata(clone / source.folder, "git.folder")
        # `oca driver install` takes this as it is: it names the same files for ever.
        origin = f"git+{source.url}@{commit}" + (f"#{source.folder}" if source.folder else "")
        return folder, origin


def _with_metadata(folder: Path, field: str) -> Path:
    if not (folder / METADATA_FILE).is_file():
        raise DataInvalid(field, f"there is no {METADATA_FILE} in it: that is what makes a folder a driver")
    return folder


def _top_of(unpacked: Path) -> Path:
    """The driver's folder in an archive: its top, or the only folder there."""
    if (unpacked / METADATA_FILE).is_file():
        return unpacked
    folders = [child for child in unpacked.iterdir() if (child / METADATA_FILE).is_file()]
    if len(folders) != 1:
        raise DataInvalid(
            "artifact",
            f"the archive has no {METADATA_FILE} at its top, nor in exactly one folder there: `oca driver pack` makes one that has",
        )
    return folders[0]

"""Images of drivers, built when they are needed and named by what they are made of: an unchanged driver is built once."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onecontainer
from onecontainer.errors import DriverNotAvailable
from onecontainer.sidecars.logs import LogBuffer
from onecontainer.sidecars.model import Target
from onecontainer.sidecars.runtimes import docker_context
from onecontainer.sidecars.runtimes.docker_context import Context
from onecontainer.sidecars.runtimes.docker_threads import in_thread

if TYPE_CHECKING:
    from docker import DockerClient

log = logging.getLogger(__name__)

SDK_REPOSITORY = "onecontainer/sdk"
DRIVER_REPOSITORY = "onecontainer/driver-"
LABEL = "dev.onecontainer"
ERROR_LINES = 20
SUPERSEDED_KEPT = 2
"""Images of a driver, the newest first, that stay when a new one has been built: for a way back."""

Tell = Callable[[str], None]


@dataclass(slots=True)
class _Build:
    """One that is under way: all who wait for the image see all of its log."""

    task: asyncio.Task[None] | None = None
    lines: list[str] = field(default_factory=list)
    readers: list[LogBuffer] = field(default_factory=list)

    def tell(self, line: str) -> None:
        self.lines.append(line)
        for reader in self.readers:
            reader.write(line, stderr=False)

    def join(self, reader: LogBuffer) -> None:
        for line in self.lines:
            reader.write(line, stderr=False)
        self.readers.append(reader)


class Images:
    """Makes images. `client` answers in a thread; building happens in threads too."""

    def __init__(self, base_image: str, timeout: float) -> None:
        """`timeout`: seconds that a build may take."""
        self._base_image = base_image
        self._timeout = timeout
        self._builds: dict[str, _Build] = {}

    def plan(self, target: Target) -> tuple[Recipe, Recipe]:
        """What the SDK's image and the driver's are made of, as their folders are now. Blocks for a moment: reads files.

        Raises DriverNotAvailable if the driver's folder is not here.
        """
        if target.folder is None:
            raise DriverNotAvailable(f"{target.driver} is not installed here; only the runtime `attached` can use it")
        sdk = sdk_recipe(self._base_image)
        try:
            return sdk, driver_recipe(Path(target.folder), target.manifest.name, target.manifest.version, sdk)
        except (OSError, ValueError) as error:
            raise DriverNotAvailable(f"{target.driver} cannot be read: {error}") from error

    async def make(self, client: DockerClient, recipes: tuple[Recipe, ...], logs: LogBuffer) -> str:
        """Builds those that are not there, in this order, and returns the tag of the last one; what docker says goes to the log.

        Raises DriverNotAvailable with the last lines if a build fails.
        """
        wanted = recipes[-1].tag
        if await in_thread(has, client, wanted):
            return wanted
        for recipe in recipes:
            await self._make_one(client, recipe, logs)
        return wanted

    async def missing(self, client: DockerClient, recipes: tuple[Recipe, ...]) -> bool:
        """Whether `make` would have something to build."""
        return not await in_thread(has, client, recipes[-1].tag)

    async def _make_one(self, client: DockerClient, recipe: Recipe, logs: LogBuffer) -> None:
        build = self._builds.get(recipe.tag)
        if build is None:
            build = self._builds[recipe.tag] = _Build()
            build.task = asyncio.create_task(self._build(client, recipe, build), name=f"build of {recipe.tag}")
            build.task.add_done_callback(lambda _task: self._builds.pop(recipe.tag, None))
        build.join(logs)
        assert build.task is not None
        # Whoever waits may give up; the others, and the next start, have use for the image all the same.
        await asyncio.shield(build.task)

    async def _build(self, client: DockerClient, recipe: Recipe, build: _Build) -> None:
        loop = asyncio.get_running_loop()

        def tell(line: str) -> None:
            loop.call_soon_threadsafe(build.tell, line)

        if await in_thread(has, client, recipe.tag):
            return
        begin = time.monotonic()
        tell(f"building the image {recipe.tag} on {recipe.base}")
        await in_thread(build_image, client, recipe, tell, self._timeout)
        tell(f"built {recipe.tag} in {time.monotonic() - begin:.1f} s")
        log.info("built %s in %.1f s", recipe.tag, time.monotonic() - begin)
        if not recipe.aliases:
            await in_thread(_remove_superseded, client, recipe.tag)


@dataclass(frozen=True, slots=True)
class Recipe:
    """An image to be: its tag, what it is built from, and on top of which other image. `aliases` are further tags."""

    tag: str
    context: Context
    base: str
    aliases: tuple[str, ...] = ()


def sdk_recipe(base_image: str) -> Recipe:
    """The SDK's image on a base image."""
    files = docker_context.sdk_context()
    digest = docker_context.digest_of(files, base_image)
    version = onecontainer.__version__
    return Recipe(_tag(SDK_REPOSITORY, version, digest), files, base_image, (f"{SDK_REPOSITORY}:{_tag_text(version)}",))


def driver_recipe(folder: Path, name: str, version: str, sdk: Recipe) -> Recipe:
    """The image of a driver's folder on the SDK's. Raises OSError or ValueError if the folder cannot be read."""
    files = docker_context.driver_context(folder)
    return Recipe(_tag(f"{DRIVER_REPOSITORY}{name}", version, docker_context.digest_of(files, sdk.tag)), files, sdk.tag)


def _tag(repository: str, version: str, digest: str) -> str:
    return f"{repository}:{_tag_text(version)}-{digest}"


def _tag_text(version: str) -> str:
    # A PEP 440 version may have `+` and `!`, which a tag may not.
    return re.sub(r"[^A-Za-z0-9_.-]", "_", version)


def has(client: DockerClient, tag: str) -> bool:
    from docker.errors import ImageNotFound

    try:
        client.images.get(tag)
    except ImageNotFound:
        return False
    return True


def build_image(client: DockerClient, recipe: Recipe, tell: Tell, timeout: float) -> None:
    """Builds it, in the caller's thread; each line that docker says is told.

    Raises DriverNotAvailable with the last lines if it fails.
    """
    deadline = time.monotonic() + timeout
    last: list[str] = []
    stream = client.api.build(
        fileobj=docker_context.tar_of(recipe.context),
        custom_context=True,
        tag=recipe.tag,
        buildargs={"BASE_IMAGE": recipe.base},
        labels={LABEL: "image"},
        rm=True,
        forcerm=True,
        decode=True,
        timeout=max(1, int(timeout)),
    )
    for event in stream:
        for line in _lines(event):
            tell(line)
            last = [*last, line][-ERROR_LINES:]
        if "error" in event:
            raise _failed(recipe, "\n".join(last) or str(event["error"]))
        if time.monotonic() > deadline:
            stream.close()  # docker ends a build that nobody listens to
            raise _failed(recipe, "\n".join([*last, f"(not done in {timeout:g} s: ONECONTAINER_DOCKER_BUILD_TIMEOUT)"]))
    image = client.images.get(recipe.tag)
    for alias in recipe.aliases:
        image.tag(alias)


def _lines(event: Mapping[str, Any]) -> list[str]:
    text = str(event.get("stream") or event.get("error") or event.get("status") or "")
    # A progress bar of a pull is told by its status alone, again and again.
    return [] if event.get("progressDetail") else [line for line in text.splitlines() if line.strip()]


def _failed(recipe: Recipe, lines: str) -> DriverNotAvailable:
    hint = ""
    if (
        "manifest unknown" in lines
        or "pull access denied" in lines
        or "failed to resolve" in lines
        or "lookup " in lines
    ):
        hint = f"\nIs {recipe.base} there? ONECONTAINER_DOCKER_BASE_IMAGE names another one; deploy/images/base-image.sh makes one"
    return DriverNotAvailable(f"the image {recipe.tag} could not be built; docker's last lines:\n{lines}{hint}")


def _remove_superseded(client: DockerClient, tag: str) -> None:
    """Older images of the same driver, but for the newest of them; those that containers use stay."""
    from docker.errors import APIError

    images = client.images.list(name=tag.rpartition(":")[0])
    for image in sorted(images, key=lambda one: str(one.attrs["Created"]), reverse=True)[SUPERSEDED_KEPT + 1 :]:
        for old in image.tags:
            try:
                client.images.remove(old)
            except APIError as error:
                log.debug("%s stays: %s", old, error)

"""Images of backends: those that are here, else pulled or built, with docker's own words as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from onecontainer.cli.backends.catalog import Backend, digest_of_folder
from onecontainer.errors import BackendExecutionFailed, StateInvalid

if TYPE_CHECKING:
    from docker import DockerClient

Say = Callable[[str], object]
ERROR_LINES = 20


def image_of(backend: Backend) -> str:
    """The image's name. One that is built here is named by what it is built of: an unchanged one is not built again."""
    assert backend.container is not None
    folder = backend.build_folder
    if folder is None:
        return str(backend.container.image)
    return f"onecontainer/backend-{backend.name}:{digest_of_folder(folder, backend.base_image)}"


def ensure_image(client: DockerClient, backend: Backend, say: Say) -> str:
    """Makes sure that the image is on this host, and gives its name.

    Raises StateInvalid if it cannot be pulled, BackendExecutionFailed if it cannot be built.
    """
    from docker.errors import ImageNotFound

    image = image_of(backend)
    try:
        client.images.get(image)
    except ImageNotFound:
        if backend.build_folder is None:
            _pull(client, backend, image, say)
        else:
            _build(client, backend, image, say)
    return image


def _pull(client: DockerClient, backend: Backend, image: str, say: Say) -> None:
    from docker.errors import APIError
    from docker.utils import parse_repository_tag

    say(f"pulling {image}")
    repository, tag = parse_repository_tag(image)
    try:
        last = _follow(client.api.pull(repository, tag or "latest", stream=True, decode=True), say)
        failure = last[-1] if last and last[-1].startswith(_ERROR) else ""
    except APIError as error:
        failure = str(error.explanation or error)
    if failure:
        problem = StateInvalid(
            f"the image {image} is not on this host and cannot be pulled: {failure.removeprefix(_ERROR)}"
        )
        problem.add_note(
            "Bring it here (`docker load`, `docker tag`), or name another one: "
            f"""ONECONTAINER_BACKEND_IMAGES='{{"{backend.name}": "IMAGE"}}'."""
        )
        raise problem


def _build(client: DockerClient, backend: Backend, image: str, say: Say) -> None:
    say(f"building {image}")
    stream = client.api.build(
        path=str(backend.build_folder),
        tag=image,
        buildargs={"BASE_IMAGE": backend.base_image} if backend.base_image else {},
        rm=True,
        forcerm=True,
        decode=True,
    )
    last = _follow(stream, say)
    if last and last[-1].startswith(_ERROR):
        lines = "\n".join(line.removeprefix(_ERROR) for line in last)
        problem = BackendExecutionFailed(f"the image {image} could not be built; docker's last lines:\n{lines}")
        problem.add_note(
            "Without a registry name a Debian that is on this host: ONECONTAINER_BACKEND_BASE_IMAGE=IMAGE. "
            f'Or take a finished image: ONECONTAINER_BACKEND_IMAGES=\'{{"{backend.name}": "IMAGE"}}\'.'
        )
        raise problem


_ERROR = "error: "


def _follow(stream: Iterable[Mapping[str, Any]], say: Say) -> list[str]:
    """Says each line; returns the last ones. Of a failure the very last begins with `error: `."""
    last: list[str] = []
    for event in stream:
        if event.get("progressDetail"):
            continue  # a bar that moves: its status is told once, by the events before and after it
        text = str(event.get("stream") or event.get("status") or "")
        if event.get("id") and event.get("status"):
            text = f"{event['id']}: {event['status']}"
        for line in text.splitlines():
            if line.strip():
                say(line)
                last = [*last, line][-ERROR_LINES:]
        if "error" in event:
            return [*last, f"{_ERROR}{event['error']}"][-ERROR_LINES:]
    return last

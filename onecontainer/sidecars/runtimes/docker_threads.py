"""Where docker is waited for: its SDK blocks. And what it raises, as typed errors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import ParamSpec, TypeVar

from onecontainer.errors import DriverUnreachable, OneContainerError

P = ParamSpec("P")
T = TypeVar("T")

# Not the loop's own threads: a build takes minutes, and others than docker's callers need those.
_THREADS = ThreadPoolExecutor(32, thread_name_prefix="docker")

HOW_TO_GET_IT = (
    "install Docker, start it and let this user in (group `docker`, or DOCKER_HOST); `oca doctor` tells what is missing. "
    "Without it: the runtime `process`"
)


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls it in one of docker's threads. What docker raises, or the way to it, becomes a DriverUnreachable that tells what to do."""
    return await asyncio.get_running_loop().run_in_executor(_THREADS, partial(_typed, function, *args, **kwargs))


def _typed(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    with _typed_errors():
        return function(*args, **kwargs)


@contextmanager
def _typed_errors() -> Iterator[None]:
    # Here, in a thread: it takes a moment, and a gateway without containers goes without.
    from docker.errors import APIError, DockerException
    from requests.exceptions import RequestException

    try:
        yield
    except OneContainerError:
        raise
    except APIError as error:
        raise DriverUnreachable(f"docker refused: {error.explanation or error}") from error
    except (DockerException, RequestException) as error:
        raise DriverUnreachable(f"docker does not answer ({error}): {HOW_TO_GET_IT}") from error

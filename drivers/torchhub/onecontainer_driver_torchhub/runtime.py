"""PyTorch as it is installed here, found out by a process of its own: the sidecar never imports it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onecontainer.driver import errors

PACKAGES = Path(__file__).parents[1]
INSPECT_SECONDS = 120.0
_LINES = 3


@dataclass(frozen=True, slots=True)
class Torch:
    version: str
    devices: Sequence[str]
    """What a model may run on, the default first."""


def environment(home: Path, threads: int | None = None) -> dict[str, str]:
    """What a process with PyTorch in it sees: nothing of the sidecar's own settings, and a home that it may write in."""
    found = {name: value for name, value in os.environ.items() if not name.startswith("ONECONTAINER_")}
    found |= {
        "PYTHONPATH": str(PACKAGES),
        # Bytecode beside the repository's files would change a folder that is not ours.
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "TORCH_HOME": str(home / "torch"),
    }
    if threads is not None:
        # Libraries beside PyTorch read these when they are loaded.
        found |= {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "OPENBLAS_NUM_THREADS": str(threads),
        }
    return found


class Runtime:
    """Asks once; asks again if that failed, as what is missing may be installed meanwhile."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables
        self._asked: asyncio.Task[Torch] | None = None
        self._failure: BaseException | None = None

    def ask(self) -> asyncio.Task[Torch]:
        task = self._asked
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._asked = asyncio.create_task(self._inspect())
            task.add_done_callback(self._heard)
        return task

    def _heard(self, task: asyncio.Task[Torch]) -> None:
        # Looked at even if nobody waits.
        self._failure = None if task.cancelled() else task.exception()

    def known(self) -> Torch | None:
        """None while it is asked for the first time. Raises why it did not work the last time, and asks again."""
        failure, task = self._failure, self.ask()
        if failure is not None:
            raise failure
        return task.result() if task.done() else None

    async def torch(self) -> Torch:
        """Raises BackendUnreachable with what Python said."""
        return await asyncio.shield(self.ask())

    async def close(self) -> bool:
        """Ends what is under way. False: it has not got an answer, and needs to be made anew."""
        if self._asked is None:
            return False
        self._asked.cancel()
        (found,) = await asyncio.gather(self._asked, return_exceptions=True)
        return isinstance(found, Torch)

    async def _inspect(self) -> Torch:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "onecontainer_driver_torchhub.process.inspection"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(self._variables),
        )
        try:
            async with asyncio.timeout(INSPECT_SECONDS):
                out, said = await process.communicate()
        except TimeoutError:
            raise errors.BackendUnreachable(
                f"PyTorch was not imported in {INSPECT_SECONDS:.0f} s", retry_after=30.0
            ) from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            last = " ".join(said.decode(errors="replace").strip().splitlines()[-_LINES:])
            raise errors.BackendUnreachable(
                f"PyTorch does not work here ({last}): install Debian's python3-torch and python3-torchvision or PyPI's torch and"
                f" torchvision for {sys.executable}, or run the driver as a container",
                retry_after=30.0,
            )
        facts = json.loads(out)
        return Torch(facts["version"], facts["devices"])

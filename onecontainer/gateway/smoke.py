"""The smoke test of plug-ins: the quick part of the conformance kit, in a process of its own, once for each content."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onecontainer
from onecontainer import __version__
from onecontainer.catalog.model import DriverRecord
from onecontainer.errors import DriverMisimplemented, OneContainerError

log = logging.getLogger(__name__)

KIT = "onecontainer.driver.conformance"
WARDEN = Path(onecontainer.__file__).parent / "driver" / "processes" / "warden.py"
"""A program of its own, under which nothing that a driver starts outlives its test."""
CALL_SECONDS, WHOLE_SECONDS = 30.0, 90.0
STOP_SECONDS = 2.0
TESTED = (0, 1)
"""Exit codes of the kit with a report."""
ELSEWHERE = 3
"""The kit's exit code for a driver that needs packages which this environment does not have."""
MOST_TOLD = 3
"""Failed checks that the error tells in full; the others by name."""
STDERR_CHARS = 1500


class SmokeTest:
    """Tells whether a driver passes: the error to put it into quarantine with, None if it does.

    What passed is remembered by the driver's digest, for all gateways of this user. One that needs packages which this environment
    does not have is not judged: it may be made for a container. What it lacks its sidecar will tell.
    """

    def __init__(self, remembered: Path, *, seconds: float = WHOLE_SECONDS) -> None:
        """`remembered`: a folder for what passed; if it cannot be written, every start tests anew."""
        self._remembered = remembered
        self._seconds = seconds

    async def __call__(self, driver: DriverRecord) -> OneContainerError | None:
        if driver.folder is None or await asyncio.to_thread(self._mark(driver).is_file):
            return None
        code, out, err = await self._run(driver)
        told = err.decode(errors="replace").strip()[-STDERR_CHARS:]
        if code == ELSEWHERE:
            log.warning("%s has had no smoke test: %s", driver.name, told)
            return None
        if code not in TESTED:
            why = f"did not end within {self._seconds:g} s" if code is None else "could not be begun"
            return DriverMisimplemented(
                f"the smoke test of the driver {why}, so no service gets it (`oca driver check FOLDER --smoke` shows it): {told}"
            )
        report = json.loads(out)
        if not report["passed"]:
            return failed(report)
        await asyncio.to_thread(self._remember, driver)
        return None

    def _mark(self, driver: DriverRecord) -> Path:
        # Another SDK or interpreter may run the same files otherwise.
        key = "\n".join((driver.digest, __version__, sys.version, sys.prefix))
        return self._remembered / hashlib.sha256(key.encode()).hexdigest()

    def _remember(self, driver: DriverRecord) -> None:
        try:
            self._remembered.mkdir(parents=True, exist_ok=True)
            self._mark(driver).touch()
        except OSError as error:
            log.info("that %s has passed its smoke test cannot be remembered: %s", driver.name, error)

    async def _run(self, driver: DriverRecord) -> tuple[int | None, bytes, bytes]:
        """The kit's exit code (None: it did not end in time), and what it wrote to stdout and stderr."""
        kit = (sys.executable, "-m", KIT, str(driver.folder), "--smoke", "--json", "--timeout", str(CALL_SECONDS))
        handle = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(WARDEN), str(os.getpid()), str(STOP_SECONDS), str(handle), *kit),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                # Our own variables are the gateway's settings and secrets.
                env={name: value for name, value in os.environ.items() if not name.startswith("ONECONTAINER_")},
                pass_fds=(handle,),
                start_new_session=True,
            )
        finally:
            os.close(handle)
        ending = asyncio.ensure_future(child.communicate())
        try:
            await asyncio.wait((ending,), timeout=self._seconds)
            in_time = ending.done()
        finally:
            if child.returncode is None:
                child.terminate()  # it ends all that it has started, too
            out, err = await ending
        return (child.returncode if in_time else None), out, err


def failed(report: Mapping[str, Any]) -> DriverMisimplemented:
    """The error of a report (`oca driver check --json`) with failures."""
    failures = [check for check in report["checks"] if check["result"] == "FAIL"]
    told = [
        f"{check['check']} ({check['title']}): sent {check['sent']}; came {check['came']}; to do: {check['todo']}"
        for check in failures[:MOST_TOLD]
    ]
    more = [check["check"] for check in failures[MOST_TOLD:]]
    if more:
        told.append(f"and {', '.join(more)}")
    return DriverMisimplemented(
        f"the driver fails {len(failures)} checks of its smoke test, so no service gets it "
        f"(`oca driver check FOLDER --smoke` shows them): {'; '.join(told)}",
        metadata={"failed_checks": " ".join(check["check"] for check in failures)},
    )

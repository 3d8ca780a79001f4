"""The smoke test of plug-ins: the quick part of the conformance kit, in a process of its own, once for each content."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onecontainer import __version__
from onecontainer.catalog.model import DriverRecord
from onecontainer.errors import DriverMisimplemented, OneContainerError

log = logging.getLogger(__name__)

KIT = "onecontainer.driver.conformance"
CALL_SECONDS, WHOLE_SECONDS = 10.0, 90.0
TESTED = (0, 1)
"""Exit codes of the kit with a report."""
MOST_TOLD = 3
"""Failed checks that the error tells in full; the others by name."""
STDERR_CHARS = 1500


class SmokeTest:
    """Tells whether a driver passes: the error to put it into quarantine with, None if it does.

    What passed is remembered by the driver's digest, for all gateways of this user. One that cannot be started as a process of this
    environment is not judged: it may be made for a container, or for another language. What it lacks its sidecar will tell.
    """

    def __init__(self, remembered: Path, *, seconds: float = WHOLE_SECONDS) -> None:
        """`remembered`: a folder for what passed; if it cannot be written, every start tests anew."""
        self._remembered = remembered
        self._seconds = seconds

    async def __call__(self, driver: DriverRecord) -> OneContainerError | None:
        if driver.folder is None or await asyncio.to_thread(self._mark(driver).is_file):
            return None
        report = await self._report(driver)
        if report is None:
            return None
        if report["passed"]:
            await asyncio.to_thread(self._remember, driver)
            return None
        return failed(report)

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

    async def _report(self, driver: DriverRecord) -> Mapping[str, Any] | None:
        """What the kit says of it; None if it could not be tested."""
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", KIT, str(driver.folder), "--smoke", "--json", "--timeout", str(CALL_SECONDS)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # Our own variables are the gateway's settings and secrets.
            env={name: value for name, value in os.environ.items() if not name.startswith("ONECONTAINER_")},
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(self._seconds):
                out, err = await child.communicate()
        except TimeoutError:
            log.warning("the smoke test of %s did not end within %g s", driver.name, self._seconds)
            return None
        finally:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                await child.wait()
        if child.returncode in TESTED:
            found: Mapping[str, Any] = json.loads(out)
            return found
        text = err.decode(errors="replace").strip()[-STDERR_CHARS:]
        log.warning("%s could not be started for its smoke test: %s", driver.name, text)
        return None


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

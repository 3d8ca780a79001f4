"""A driver all of whose handlers are isolated, for tests: it blocks, crashes and leaves processes behind on request.

It is made anew in each child, so tests talk to it through files: `text` is `WHAT` or `WHAT FOLDER`.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, cast

from google.protobuf import wrappers_pb2

from onecontainer.driver import Attachment, Context, Driver, errors, isolated
from tests.contract.driver.echo import SERVICE, EchoResponse, WorkResult


class IsolatedDriver(Driver):
    services = (SERVICE,)

    def __init__(self, in_sidecar: bool = False) -> None:
        self.in_sidecar = in_sidecar
        self.made_in = os.getpid()
        self.runs = 0

    async def attach(self, attachment: Attachment) -> None:
        self.attachment = attachment
        if attachment.options["mode"] == "soft" and not self.in_sidecar:
            raise errors.FieldInvalid("options.mode", "is not for children")

    def detach(self) -> None:
        if hasattr(self, "attachment"):
            with (self.attachment.state_dir / "detached").open("a") as file:
                file.write(f"{os.getpid()}\n")

    @isolated
    def echo_blocking(self, request: Any, context: Context) -> Any:
        self.runs += 1
        what, _, folder = request.text.partition(" ")
        return EchoResponse(
            text=str(getattr(self, what.replace("-", "_"))(Path(folder), context)), number=request.number
        )

    @isolated
    async def echo(self, request: Any, context: Context) -> Any:
        what, _, folder = request.text.partition(" ")
        try:
            _tell(folder)
            if what == "block-the-loop":
                threading.Event().wait()
            await asyncio.Event().wait()
        finally:
            (Path(folder) / "finally").touch()

    @isolated
    async def work(self, request: Any, context: Context) -> Any:
        for number in range(request.number):
            context.progress(number + 1, request.number, unit="steps")
        resumed = 0
        match request.text.partition(" "):
            case ("finish", _, folder):
                _tell(folder)
                await context.wait_finishing()
            case ("declare", _, _):
                await context.declare(idempotent=False)
            case ("checkpoint", _, folder):
                context.checkpoint(wrappers_pb2.Int64Value(value=41))
                _tell(folder)
                await asyncio.Event().wait()
            case ("artifact", _, _):
                path = context.scratch / "out.txt"
                path.write_bytes(b"made by an attempt")
                return WorkResult(text=(await context.artifacts.put(path, media_type="text/plain")).name)
            case ("partial", _, name):
                kept = name or (await context.artifacts.put_bytes(b"made before it failed")).name
                own = wrappers_pb2.StringValue(value="x" * 20_000)
                raise errors.DataInvalid("text", "is half good").with_details(own, kept_artifacts=[kept])
        if context.job is not None and context.job.resume_details is not None:
            value = wrappers_pb2.Int64Value()
            context.job.resume_details.Unpack(value)
            resumed = value.value
        facts = f"{context.principal} {context.request_id} {context.job.name if context.job else ''}"
        return WorkResult(text="finished early" if context.finishing else facts, number=resumed)

    @isolated
    def work_blocking(self, request: Any, context: Context) -> Any:
        """Asked where, it gives another method's message."""
        what, _, folder = request.text.partition(" ")
        getattr(self, what.replace("-", "_"))(Path(folder), context)
        return EchoResponse() if what == "where" else WorkResult(text="done")

    # --- what a request may ask for ------------------------------------------------------------------------------------

    def where(self, folder: Path, context: Context) -> str:
        return f"{os.getpid()} {self.made_in} {self.runs}"

    def options(self, folder: Path, context: Context) -> str:
        a = self.attachment
        return (
            f"{a.service} {a.options['greeting']} {a.options['patience']} {a.options['password']} {dict(a.endpoints)}"
        )

    def limits(self, folder: Path, context: Context) -> str:
        remaining = context.time_remaining()
        return "none" if remaining is None else f"{remaining:.3f}"

    def block(self, folder: Path, context: Context) -> None:
        _tell(folder)
        threading.Event().wait()

    def hold_the_interpreter(self, folder: Path, context: Context) -> None:
        """No other thread of this process runs any more, and no signal handler written in Python."""
        _tell(folder)
        re.match(r"(a+)+$", "a" * 64 + "b")

    def family(self, folder: Path, context: Context) -> None:
        """A child in our group, one that left it, and a grandchild whose parent has gone."""
        ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        stubborn = [sys.executable, "-I", "-S", "-c", ignore]
        own = subprocess.Popen(stubborn)
        away = subprocess.Popen(stubborn, start_new_session=True)
        orphan = subprocess.check_output(["setsid", "sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!"], text=True)
        _tell(folder, own.pid, away.pid, int(orphan))
        threading.Event().wait()

    def leave_behind(self, folder: Path, context: Context) -> int:
        return subprocess.Popen(["sleep", "600"], start_new_session=True).pid

    def crash(self, folder: Path, context: Context) -> None:
        sys.stderr.write("about to read what is not there\n")
        sys.stderr.flush()
        ctypes.string_at(0)

    def starve(self, folder: Path, context: Context) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def stop(self, folder: Path, context: Context) -> None:
        os._exit(3)

    def hang_up(self, folder: Path, context: Context) -> None:
        """Closes every file, as a daemon does, and stays."""
        _tell(folder)
        os.closerange(3, 256)
        threading.Event().wait()

    def typed(self, folder: Path, context: Context) -> None:
        raise errors.BackendExecutionFailed(
            "the backend said no", code=errors.Code.RESOURCE_EXHAUSTED, retry_after=7.0, metadata={"why": "full"}
        )

    def surrogate(self, folder: Path, context: Context) -> None:
        raise errors.DataInvalid("inputs", "a\udc80b is no image")

    def misshapen(self, folder: Path, context: Context) -> None:
        raise errors.BackendUnreachable("gone", retry_after=cast(Any, "soon"))

    def unforeseen(self, folder: Path, context: Context) -> None:
        raise ValueError("a password is in here")

    def exit(self, folder: Path, context: Context) -> None:
        sys.exit(7)

    def scratch(self, folder: Path, context: Context) -> Path:
        (context.scratch / "file").write_text("x")
        _tell(folder)
        (folder / "scratch").write_text(str(context.scratch))
        threading.Event().wait()
        return context.scratch


def _tell(folder: str | Path, *others: int) -> None:
    """Leaves our number, and others, in a file that is there when it is whole."""
    path = Path(folder) / "pids"
    path.with_suffix(".part").write_text(" ".join(map(str, (os.getpid(), *others))))
    path.with_suffix(".part").replace(path)

"""The REST front beside a gateway: started with it, started again if it dies, ended with it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO

from onecontainer.cli.process import POLL_SECONDS, is_alive, last_lines
from onecontainer.cli.rest_program import PROGRAM
from onecontainer.errors import DeadlineExceeded, FieldInvalid, FieldViolation, StateInvalid
from onecontainer.gateway.lock import Note
from onecontainer.settings import Settings, reachable
from onecontainer.sidecars.policy import Policy, restart_delay

log = logging.getLogger(__name__)

DEFAULT_LISTEN = "127.0.0.1:8000"
NOTE_FILE = "rest.json"
START_SECONDS = 10.0
STOP_SECONDS = 40.0
"""Longer than the front gives its running requests."""
LAST_WORDS = 5
"""Lines that are told again when it has ended."""
STOPPED = "stopped"
"""What it says at its end when all is well."""
MANY_ENDS = 5
"""So many ends in a row are an error, no mere warning."""


def check_free(address: str) -> None:
    """Whether `HOST:PORT` can be listened on, as the REST front will. Raises FieldInvalid."""
    host, _, port = address.rpartition(":")
    try:
        family, kind, _, _, place = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            probe.listen(1)
    except OSError as error:
        why = f"cannot listen on {address}: {error.strerror}; give an address of this machine that nobody has"
        hint = "such as 127.0.0.1:8000; port 0 takes a free one"
        raise FieldInvalid(violations=[FieldViolation("rest_listen", f"{why}, {hint}")]) from None


class _Run:
    """One start of the program, with its last lines. Whatever becomes of us, it ends too: its standard input does."""

    def __init__(self, command: list[str]) -> None:
        """Raises OSError."""
        self.child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # Ctrl-C is for the gateway, which ends it when its own calls have ended.
            process_group=0,
        )
        self.words: deque[str] = deque(maxlen=LAST_WORDS)
        self.begin = time.monotonic()

    @property
    def _lines(self) -> IO[str]:
        assert self.child.stdout is not None
        return self.child.stdout

    def url(self) -> str:
        """Where it listens, as soon as it does; empty: it has ended, or was, for it said nothing in time."""
        too_late = threading.Timer(START_SECONDS, self.child.kill)
        too_late.start()
        try:
            for line in self._lines:
                if line.startswith(f"{PROGRAM} listens on "):
                    return line.split()[3]
                self._hear(line)
            return ""
        finally:
            too_late.cancel()

    def end(self) -> str:
        """Waits for its end, and logs what it says until then. How it has ended, with its last words."""
        with self._lines:
            for line in self._lines:
                self._hear(line)
        code = self.child.wait()
        if self.child.stdin is not None:
            with contextlib.suppress(OSError):
                self.child.stdin.close()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"{how}; its last words:\n{self.last_words}" if self.words else f"{how} and said nothing"

    @property
    def last_words(self) -> str:
        return "\n".join(f"  {line}" for line in self.words)

    def _hear(self, line: str) -> None:
        self.words.append(line.rstrip("\n"))
        log.log(logging.INFO if self.words[-1] == STOPPED else logging.WARNING, "REST: %s", self.words[-1])


class RestFront:
    """The child that serves REST for a gateway of this process, and the thread that starts it again when it dies.

    As long as that lasts the gateway goes on without it.
    """

    def __init__(self, settings: Settings, *, random: Callable[[], float] = random.random) -> None:
        self._settings = settings
        self._policy = Policy.of(settings)
        self._random = random
        self._note = settings.data_dir / NOTE_FILE
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._run: _Run | None = None
        self._keeper: threading.Thread | None = None

    def start(self, address: str) -> str:
        """Starts it for the gateway at this address, and waits until it listens; returns its URL.

        Raises:
            StateInvalid: it does not start; with what it has said.
        """
        listen = self._settings.rest_listen
        try:
            run = self._begin(self._command(address, listen))
        except OSError as error:
            raise StateInvalid(f"{self._settings.rest_program} cannot be run: {error.strerror}") from None
        assert run is not None
        url = run.url()
        if not url:
            raise StateInvalid(f"REST on {listen} did not start: the program {run.end()}")
        # Its clients know it by this address, also if it has chosen the port itself.
        command = self._command(address, url.partition("://")[2])
        self._note.write_text(json.dumps({"url": url, "pid": os.getpid()}))
        self._keeper = threading.Thread(target=self._keep, args=(run, command, url), name="keeper of REST")
        self._keeper.start()
        return url

    def _command(self, address: str, listen: str) -> list[str]:
        settings = self._settings
        certificate = settings.tls_cert_file
        return [
            *(str(settings.rest_program), "--end-with-stdin", "--gateway", reachable(address)),
            *("--listen", listen, "--max-message-bytes", str(settings.max_message_bytes)),
            # Always said: a variable is about other gateways.
            *("--ca-file", "" if certificate is None else str(certificate)),
        ]

    def _begin(self, command: list[str]) -> _Run | None:
        """Starts the program; None: there is to be none any more. Raises OSError."""
        with self._lock:
            self._run = None if self._stopping.is_set() else _Run(command)
            return self._run

    def _keep(self, run: _Run | None, command: list[str], url: str) -> None:
        """Starts it again whenever it has ended, later each time, until `stop`."""
        failures, told = 0, ""
        while True:
            if run is not None:
                told = run.end()
                failures = 0 if time.monotonic() - run.begin >= self._policy.backoff_reset else failures
            if self._stopping.is_set():
                return
            failures += 1
            delay = restart_delay(self._policy, failures, self._random)
            if failures < MANY_ENDS:
                log.warning("REST on %s: the program %s\n  next start in %.1f s", url, told, delay)
            else:
                log.error(
                    "REST on %s has ended %d times in a row: the program %s\n"
                    "  the gateway goes on without REST; next start in %.1f s",
                    url,
                    failures,
                    told,
                    delay,
                )
            if self._stopping.wait(delay):
                return
            try:
                run = self._begin(command)
            except OSError as error:
                run, told = None, f"cannot be run: {error.strerror}"
                continue
            if run is not None and run.url():
                log.info("REST is back on %s", url)

    def stop(self) -> None:
        """Lets its running requests end; it takes nothing new."""
        self._note.unlink(missing_ok=True)
        with self._lock:
            self._stopping.set()
            run = self._run
        if run is not None:
            run.child.terminate()
            try:
                run.child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                run.child.kill()
                run.child.wait()
        if self._keeper is not None:
            self._keeper.join()


def rest_of(data_dir: Path, note: Note) -> str:
    """The URL of the REST front of a running gateway; empty: it has none."""
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        found = json.loads((data_dir / NOTE_FILE).read_text())
        if found["pid"] == note.pid:
            return str(found["url"])
    return ""


def wait_for_note(data_dir: Path, note: Note, *, timeout: float) -> None:
    """Waits until the REST front of a gateway that was started in the background listens.

    Raises:
        StateInvalid: the gateway has ended, for instance because the address is taken.
        DeadlineExceeded: it does not listen in time.
    """
    end = time.monotonic() + timeout
    while not rest_of(data_dir, note):
        if not is_alive(note.pid):
            raise StateInvalid(f"the gateway did not start with REST:\n{last_lines(Path(note.log_file), 0)}")
        if time.monotonic() > end:
            raise DeadlineExceeded(f"REST did not listen after {timeout:g} s; see {note.log_file}")
        time.sleep(POLL_SECONDS)

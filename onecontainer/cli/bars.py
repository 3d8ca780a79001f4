"""Progress as it goes: of transfers and of jobs. On a terminal a live bar, elsewhere a line when the
state changes or another quarter is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from google.protobuf import duration_pb2
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.type.v1 import progress_pb2
from onecontainer.client import job_state
from onecontainer.client.names import short_name


@contextmanager
def transfer(console: Console, title: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar for bytes; gives the callback that moves it."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=not console.is_terminal, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)

        def move(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        yield move


class JobBar:
    """Shows a job as it goes on; call it with each record."""

    def __init__(self, console: Console, title: str = "") -> None:
        self._console = console
        self._title = title
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[amount]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._last = ("", 0, "")

    def __enter__(self) -> JobBar:
        self._progress.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._progress.stop()

    def __call__(self, record: job_pb2.Job, why: str = "") -> None:
        """`why`: what keeps it from going on."""
        state = job_state(record)
        title = f"{self._title or short_name(record.name)}  {state}"
        progress = record.progress
        total = progress.total if progress.HasField("total") else None
        finished = record.state == job_pb2.JOB_STATE_SUCCEEDED
        words = ", ".join(filter(None, (note(record), why)))
        if self._task is None:
            self._task = self._progress.add_task(title, total=None, amount="", note="")
        self._progress.update(
            self._task,
            description=title,
            # Something that has succeeded is whole, whatever its last report said.
            completed=(total or 1) if finished else progress.done,
            total=(total or 1) if finished else total,
            amount=amount(progress),
            note=words,
        )
        quarter = int(4 * progress.done / total) if total else 0
        if not self._console.is_terminal and (state, quarter, why) != self._last:
            self._last = (state, quarter, why)
            self._console.print(f"{title}  {amount(progress)} {words}".rstrip(), markup=False)


def amount(progress: progress_pb2.Progress) -> str:
    """`12.5 / 24 seconds  52%`."""
    if not progress.done and not progress.HasField("total"):
        return ""
    if not progress.HasField("total"):
        return f"{progress.done:.4g} {progress.unit}".rstrip()
    share = progress.done / progress.total if progress.total else 1.0
    return f"{progress.done:.4g} / {progress.total:.4g} {progress.unit}  {share:.0%}".replace("  ", " ")


def note(record: job_pb2.Job) -> str:
    """What a person may want to know besides: what it does, how long it will take, which attempt it is, why it failed."""
    parts = []
    if record.error.message:
        parts.append(record.error.message.partition("\n")[0])
    elif record.progress.message:
        parts.append(record.progress.message)
    if record.progress.HasField("eta") and record.state == job_pb2.JOB_STATE_RUNNING:
        parts.append(f"{duration(record.progress.eta)} left")
    if record.HasField("queue_position"):
        parts.append(f"{record.queue_position} before it")
    if record.attempt_count > 1:
        parts.append(f"attempt {record.attempt_count}")
    return ", ".join(parts)


def duration(value: duration_pb2.Duration) -> str:
    """`1:05`, `3.2 s`."""
    seconds = value.ToMilliseconds() / 1000
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"

"""Changes of jobs, told to the other gateways and taken from them: each a line of text, small enough for many in one notice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from sqlalchemy.engine import Connection

from onecontainer.cluster.notices import Notices
from onecontainer.jobs.changes import Changes
from onecontainer.jobs.ledger import Changed
from onecontainer.jobs.model import State

CHANGED = "jobs"
WORK = "work"
_NONE = "-"


class JobNotices:
    """Spreads committed changes between gateways, as `Changes` does inside one."""

    def __init__(self, notices: Notices, changes: Changes, look: Callable[[], None]) -> None:
        """``look`` is called when something may have been missed."""
        self._notices = notices
        self._changes = changes
        self._look = look
        notices.subscribe(CHANGED, self._changed)
        notices.subscribe(WORK, self._work)

    def tell(self, connection: Connection, changed: Iterable[Changed], work: Iterable[str]) -> None:
        """Tells of what a transaction has changed, and of services (uids) that may have jobs to take, when it commits."""
        for change in changed:
            self._notices.add(connection, CHANGED, change_to_line(change))
        for service_uid in work:
            self._notices.add(connection, WORK, service_uid)

    def _changed(self, lines: Sequence[str] | None) -> None:
        if lines is None:
            self._look()
        else:
            self._changes.publish(change_from_line(line) for line in lines)

    def _work(self, services: Sequence[str] | None) -> None:
        if services is None:
            self._look()
        else:
            for service_uid in services:
                self._changes.work(service_uid)


def change_to_line(change: Changed) -> str:
    """A change in one line; its parts have no spaces."""
    flags = change.left_lease + 2 * change.lost + 4 * change.orders
    old_state = _NONE if change.old_state is None else int(change.old_state)
    return (
        f"{change.id} {change.service_uid} {int(change.state)} {change.sequence} {change.attempt} {change.fence} "
        f"{change.instance or _NONE} {change.cancel_mode} {flags} {old_state}"
    )


def change_from_line(line: str) -> Changed:
    """The change of such a line."""
    job, service_uid, state, sequence, attempt, fence, instance, cancel_mode, flags, old_state, *_ = line.split(" ")
    marks = int(flags)
    return Changed(
        *(job, service_uid, State(int(state)), int(sequence), int(attempt), int(fence)),
        "" if instance == _NONE else instance,
        cancel_mode=int(cancel_mode),
        left_lease=bool(marks & 1),
        lost=bool(marks & 2),
        old_state=None if old_state == _NONE else State(int(old_state)),
        orders=bool(marks & 4),
    )

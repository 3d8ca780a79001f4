"""Waiting with a spinner for services to be READY, and telling meanwhile what keeps them from it."""

from __future__ import annotations

import click
from rich.markup import escape

from onecontainer.api.management.v1 import resources_pb2
from onecontainer.cli.session import Session
from onecontainer.cli.waiting import cause
from onecontainer.client.management import SETTLED, service_error
from onecontainer.errors import DeadlineExceeded, Draining


def wait_ready(session: Session, *names: str) -> resources_pb2.Service:
    """Waits until all are READY, and tells meanwhile what keeps them from it; returns the first."""
    console = session.screen.console
    title = f"waiting for {', '.join(names)} to be READY"
    told: dict[str, str] = {}
    with console.status(title) as spinner:

        def tell(found: resources_pb2.Service) -> None:
            why = cause(found) if found.error.message else ""
            if told.get(found.name, "") == why:
                return
            told[found.name] = why
            if console.is_terminal:
                spinner.update(escape("; ".join([title, *filter(None, told.values())])))
            elif why:
                click.echo(why, err=True)

        try:
            return session.client.services.wait_ready(*names, timeout=session.timeout or 120.0, on_progress=tell)[0]
        except DeadlineExceeded as error:
            error.add_note("It goes on trying. Look: `oca service get NAME`, `oca sidecar logs NAME`.")
            raise


def wait_replaced(session: Session, name: str, old: list[str]) -> resources_pb2.Service:
    """Waits with a spinner until another sidecar than `old` serves. Raises the service's error if the new one does not come up."""
    timeout = session.timeout or 120.0
    with session.screen.console.status(f"waiting for the new sidecar of {name}"):
        try:
            for event in session.client.services.watch(timeout=timeout):
                found = event.service
                if found.name != name:
                    continue
                ready = found.state == resources_pb2.SERVICE_STATE_READY
                if ready and list(found.sidecars[:1]) != old:
                    return found
                if found.error.code and (ready or found.state in SETTLED):
                    raise service_error(found)
        except DeadlineExceeded:
            late = DeadlineExceeded(
                f"the new sidecar of {name} is not ready after {timeout:g} s; an old one that was goes on serving"
            )
            late.add_note("It goes on trying. Look: `oca sidecar list`, `oca sidecar logs NAME`.")
            raise late from None
    raise Draining("the gateway ended the watch; ask again", retry_after=1.0)

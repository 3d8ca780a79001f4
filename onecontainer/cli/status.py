"""`oca status`: what is there, at a glance."""

from __future__ import annotations

from typing import Any

import click

from onecontainer.api.management.v1 import resources_pb2
from onecontainer.cli.render import enum_name
from onecontainer.cli.service import COLUMNS as SERVICE_COLUMNS
from onecontainer.cli.session import Session, connected
from onecontainer.cli.sidecar import COLUMNS as SIDECAR_COLUMNS
from onecontainer.client.names import filter_of

COUNTED = 1000
LIVE_STATES = ("QUEUED", "RUNNING", "RETRY_WAIT", "CANCELLING")


@click.command()
@connected
def status(session: Session) -> None:
    """Gateway, services, sidecars and queue depth. Fails if no gateway answers."""
    client, timeout = session.client, session.timeout
    services = client.services.list(timeout=timeout)
    sidecars = [
        sidecar
        for sidecar in client.sidecars.list(timeout=timeout)
        if sidecar.state != resources_pb2.SIDECAR_STATE_STOPPED
    ]
    jobs = {
        state: len(client.jobs.list(filter=filter_of({"state": state}), limit=COUNTED, timeout=timeout))
        for state in LIVE_STATES
    }
    screen = session.screen
    if screen.is_json:
        screen.data(
            {
                "address": session.address,
                "services": [screen.to_json(service) for service in services],
                "sidecars": [screen.to_json(sidecar) for sidecar in sidecars],
                "jobs": jobs,
            }
        )
        return
    ready = sum(service.state == resources_pb2.SERVICE_STATE_READY for service in services)
    screen.say(f"gateway on {session.address}: {ready} of {len(services)} services READY")
    screen.say("jobs: " + ", ".join(f"{count_text(count)} {state}" for state, count in jobs.items()))
    section(session, services, SERVICE_COLUMNS)
    section(session, sidecars, SIDECAR_COLUMNS)
    for service in services:
        if service.error.message:
            screen.say(
                f"\n{service.name} is {enum_name(resources_pb2.ServiceState, service.state)}: {service.error.message}"
            )


def section(session: Session, found: Any, columns: Any) -> None:
    if found:
        session.screen.say("")
        session.screen.messages(found, {name: cell for name, cell in columns.items() if name != "error"})


def count_text(count: int) -> str:
    return f"{count}" if count < COUNTED else f"{COUNTED} or more"

"""Waiting for jobs and services, and knowing meanwhile why they do not go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing

from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.management.v1 import resources_pb2
from onecontainer.cli.render import in_a_line
from onecontainer.client import AsyncClient
from onecontainer.client.jobs import AsyncJob
from onecontainer.client.management import SETTLED, service_error, state_name
from onecontainer.client.names import short_name
from onecontainer.errors import OneContainerError

WAITING = (job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_RETRY_WAIT)

OnChange = Callable[[job_pb2.Job, str], None]
"""Told of a job, and why it waits; empty: nothing is wrong."""


def cause(service: resources_pb2.Service) -> str:
    """Why a service is not READY, in one line: `services/cats is UNAVAILABLE: …`. Empty: it is."""
    if service.state == resources_pb2.SERVICE_STATE_READY:
        return ""
    message = in_a_line(service.error.message)
    return f"{service.name} is {state_name(service)}" + (f": {message}" if message else "")


async def wait_job(
    client: AsyncClient, running: AsyncJob, *, on_progress: OnChange | None = None, timeout: float | None = None
) -> job_pb2.Job:
    """Waits for a job's end, and looks after its service meanwhile.

    Raises:
        the service's own error: the job waits, and the service cannot work before somebody changes something. The job stays.
        DeadlineExceeded: after `timeout` seconds.
    """
    why = ""
    known = asyncio.Event()

    def tell() -> None:
        if on_progress is not None and running.record.state:
            on_progress(running.record, why if running.record.state in WAITING else "")

    def job_changed(_record: job_pb2.Job) -> None:
        known.set()
        tell()

    async def look_after() -> None:
        nonlocal why
        # A handle by name does not know its service before the first answer.
        await known.wait()
        service = running.record.service
        try:
            async with aclosing(client.services.watch()) as events:
                async for event in events:
                    if event.service.name != service:
                        continue
                    why = cause(event.service)
                    tell()
                    if event.service.state in SETTLED and running.record.state in WAITING:
                        raise _given_up(running, event.service)
        except OneContainerError as error:
            if getattr(error, "__notes__", None):
                raise
            # Who may see the job need not see the services; then it waits without a cause.

    job = asyncio.ensure_future(running.wait(on_progress=job_changed, timeout=timeout))
    looking = asyncio.ensure_future(look_after())
    try:
        await asyncio.wait((job, looking), return_when=asyncio.FIRST_COMPLETED)
        if not job.done():
            looking.result()
        return await job
    finally:
        for task in (job, looking):
            task.cancel()
        await asyncio.gather(job, looking, return_exceptions=True)


def _given_up(running: AsyncJob, service: resources_pb2.Service) -> OneContainerError:
    error = service_error(service)
    job, name = short_name(running.name), short_name(service.name)
    error.metadata.setdefault("job", running.name)
    error.add_note(
        f"{running.name} stays queued and runs when the service works. Mend it: `oca service get {name}`; then"
        f" `oca job wait {job}`, or `oca job cancel {job}`."
    )
    return error

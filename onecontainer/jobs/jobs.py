"""Jobs as the gateway offers them: made from calls, watched, cancelled, run again."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

from google.protobuf.message import DecodeError

from onecontainer.api.job.v1 import job_service_pb2
from onecontainer.api.type.v1 import job_options_pb2, route_pb2
from onecontainer.clock import Clock
from onecontainer.errors import (
    CapabilityMissing,
    DataInvalid,
    FieldInvalid,
    FieldRequired,
    LimitExceeded,
    NotFinishable,
    OneContainerError,
    QueueUnreachable,
    StateInvalid,
)
from onecontainer.ids import new_id
from onecontainer.jobs import options as job_options
from onecontainer.jobs.changes import Changes
from onecontainer.jobs.directory import CatalogMethod, Directory, Entry, method_of
from onecontainer.jobs.ledger import Created, JobView, Ledger, not_found
from onecontainer.jobs.model import TERMINAL, CancelMode, Method, NewJob, State

ARTIFACT_NAME = re.compile(rb"artifacts/([0-9a-f]{32})")
QUEUE_COUNT_AGE = 2_000_000
"""Microseconds for which the length of a queue is reckoned on instead of counted."""


class Payloads(Protocol):
    """Keeps requests that are too large for the ledger."""

    async def put(self, job: str, data: bytes, principal: str, keep: int) -> str:
        """Stores a job's request, for as long as the job may live (``keep`` microseconds) and its record is kept; its name."""
        ...

    async def get(self, name: str) -> bytes: ...


class Jobs:
    """The job half of the gateway, whatever the dispatch."""

    def __init__(
        self,
        ledger: Ledger,
        changes: Changes,
        directory: Directory,
        payloads: Payloads,
        clock: Clock,
        *,
        inline_bytes: int = 256 * 1024,
        reachable: Callable[[], bool] = lambda: True,
    ) -> None:
        """``reachable`` tells whether what brings jobs to workers answers."""
        self.ledger = ledger
        self.changes = changes
        self._directory = directory
        self._payloads = payloads
        self._clock = clock
        self._inline_bytes = inline_bytes
        self._reachable = reachable
        self._lengths: dict[str, tuple[int, int, bool]] = {}

    # --- making them -------------------------------------------------------------------------------------------------

    async def call(
        self, service: str, full_name: str, request: bytes, principal: str, traceparent: str
    ) -> JobView | NewJob:
        """Turns a call of a long-running method into a job."""
        entry = self._directory.entry(service)
        method = method_of(entry, full_name)
        try:
            sent = route_pb2.LongRunningRoute.FromString(request).job_options
        except DecodeError:
            raise DataInvalid("", "the request does not decode") from None
        new = await self._prepare(entry, method, request, sent, "job_options", principal, traceparent)
        return await self._created(new)

    async def create(
        self, request: job_service_pb2.CreateJobRequest, principal: str, traceparent: str
    ) -> JobView | NewJob:
        """CreateJob: the new job, or the one that the same request_id made before, as it is now."""
        return await self._created(await self._from_request(request, principal, traceparent))

    async def check(self, request: job_service_pb2.CreateJobRequest, principal: str) -> NewJob:
        """CreateJob with validate_only: the job as it would be."""
        return await self._from_request(request, principal, "", store=False)

    async def create_batch(
        self, requests: Sequence[job_service_pb2.CreateJobRequest], principal: str, traceparent: str
    ) -> list[JobView | NewJob | OneContainerError]:
        """BatchCreateJobs: each by itself, all that are right in one transaction."""
        made: list[NewJob | OneContainerError] = []
        good: list[NewJob] = []
        for request in requests:
            try:
                good.append(await self._from_request(request, principal, traceparent, ahead=good))
                made.append(good[-1])
            except OneContainerError as error:
                made.append(error)
        stored = iter(await self._store(good))
        created = [(one, next(stored) if isinstance(one, NewJob) else Created("", error=one)) for one in made]
        replayed = await self._views([answer.id for _, answer in created if answer.replayed])
        return [
            answer.error or replayed.get(answer.id) or (not_found(answer.id) if answer.replayed else one)
            for one, answer in created
        ]

    async def _views(self, jobs: Sequence[str]) -> dict[str, JobView]:
        return await self.ledger.views(jobs) if jobs else {}

    async def _created(self, new: NewJob) -> JobView | NewJob:
        created = (await self._store([new]))[0]
        if created.error is not None:
            raise created.error
        return await self.ledger.get(created.id) if created.replayed else new

    async def _from_request(
        self,
        request: job_service_pb2.CreateJobRequest,
        principal: str,
        traceparent: str,
        *,
        store: bool = True,
        ahead: Sequence[NewJob] = (),
    ) -> NewJob:
        """``ahead`` are those of the same batch that are not in the ledger yet."""
        if not request.service or not request.method:
            raise FieldRequired("method" if request.service else "service")
        if not request.HasField("request"):
            raise FieldRequired("request")
        packed = request.request
        entry = self._directory.entry(request.service)
        method = method_of(entry, request.method.removeprefix("/"))
        if method.client_streaming or method.server_streaming:
            raise CapabilityMissing(f"{method.full_name} is a streaming method; only unary ones run as jobs")
        given = packed.type_url.rpartition("/")[2]
        if given != method.request_type:
            raise DataInvalid(
                "request", f"is a {given or 'message without a type'}; {method.full_name} takes {method.request_type}"
            )
        payload, inside = _addressed(packed.value, entry.name, method)
        if inside is not None and request.HasField("options"):
            raise FieldInvalid("options", "must not be set together with request.job_options")
        sent, path = (request.options, "options") if inside is None else (inside, "request.job_options")
        return await self._prepare(entry, method, payload, sent, path, principal, traceparent, store=store, ahead=ahead)

    async def _prepare(
        self,
        entry: Entry,
        method: CatalogMethod,
        payload: bytes,
        sent: job_options_pb2.JobOptions,
        path: str,
        principal: str,
        traceparent: str,
        retry_of: str = "",
        *,
        store: bool = True,
        ahead: Sequence[NewJob] = (),
    ) -> NewJob:
        checked = job_options.check(sent, path, default_max_attempts=entry.limits.default_max_attempts)
        if store:
            await self._make_room(entry, ahead)
        now = self._clock.now()
        job = new_id()
        inline: bytes | None = payload
        artifact = ""
        if len(payload) > self._inline_bytes and store:
            artifact, inline = await self._payloads.put(job, payload, principal, checked.total_timeout), None
        return NewJob(
            id=job,
            service=entry.name,
            service_uid=entry.uid,
            method=_as_kept(method),
            principal=principal,
            options=checked.serialized,
            policy=checked.policy,
            priority=checked.priority,
            payload=inline,
            payload_artifact=artifact,
            create_time=now,
            queue_deadline=now + checked.queue_timeout if checked.queue_timeout else 0,
            total_deadline=now + checked.total_timeout,
            request_id=checked.message.request_id,
            request_hash=(_request_hash(entry, method, payload, sent, retry_of) if checked.message.request_id else b""),
            traceparent=traceparent,
            retry_of=retry_of,
            labels=checked.labels,
            inputs=_inputs(payload, artifact),
        )

    async def _store(self, new: Sequence[NewJob]) -> list[Created]:
        services = {job.service_uid for job in new}
        for service_uid in services:
            # As soon as the write is queued: claims go the same way, and are behind it.
            asyncio.get_running_loop().call_soon(self.changes.coming, service_uid)
        answers = await self.ledger.create(new) if new else []
        for service_uid in services:
            self.changes.came(service_uid)
        return answers

    async def _make_room(self, entry: Entry, ahead: Sequence[NewJob]) -> None:
        count, counted, exact = self._lengths.get(entry.uid, (0, 0, False))
        now, most = self._clock.now(), entry.limits.max_queued
        if now - counted > QUEUE_COUNT_AGE or (count >= most and not exact):
            # Reckoned, it would count those that have been started since: nobody is refused on a guess.
            count, counted, exact = await self.ledger.queued(entry.uid), now, True
            count += sum(job.service_uid == entry.uid for job in ahead)
        if count >= most:
            self._lengths[entry.uid] = (count, counted, exact)
            raise self._full(entry.name, most)
        self._lengths[entry.uid] = (count + 1, counted, False)

    def _full(self, service: str, most: int) -> OneContainerError:
        facts = {"service": service, "limit": str(most)}
        text = f"{most} jobs of {service} wait already (its job_limits.max_queued)"
        if self._reachable():
            return LimitExceeded(text, metadata=facts, retry_after=5.0)
        return QueueUnreachable(f"the broker does not answer, and {text}", metadata=facts, retry_after=5.0)

    # --- and what becomes of them ------------------------------------------------------------------------------------

    async def get(self, job: str) -> JobView:
        """A job; its result, if it has result_ttl 0, is gone after this delivery."""
        view = await self.ledger.get(job, place=True)
        await self._delivered(view)
        return view

    async def _delivered(self, view: JobView) -> None:
        row = view.row
        # Whoever is told of artifacts has still to fetch them: then it is the minute that counts.
        if row.state == State.SUCCEEDED and not row.result_expired and not view.artifacts and not row.result_artifact:
            options = job_options_pb2.JobOptions.FromString(row.options)
            if not options.keep_result and options.result_ttl.ToMicroseconds() == 0:
                await self.ledger.expire(row.id)

    async def watch(self, job: str, from_sequence: int) -> AsyncIterator[JobView]:
        """The job as it is if it has changed since ``from_sequence``, then after each change until it is terminal."""
        with self.changes.of_job(job) as bell:
            last = from_sequence
            while True:
                view = await self.ledger.get(job)
                if view.row.sequence > last:
                    last = view.row.sequence
                    yield view
                    if view.row.state in TERMINAL:
                        await self._delivered(view)
                if view.row.state in TERMINAL:
                    return
                # The ring is only a hint.
                await self.changes.next_of(bell, 5.0)

    async def wait(self, job: str, timeout: float | None) -> JobView:
        """The job once it is terminal, or as it is after ``timeout`` seconds."""
        with self.changes.of_job(job) as bell:
            end = None if timeout is None else self._clock.now() + int(timeout * 1_000_000)
            while True:
                view = await self.ledger.get(job)
                left = None if end is None else (end - self._clock.now()) / 1_000_000
                if view.row.state in TERMINAL or (left is not None and left <= 0):
                    await self._delivered(view)
                    return view
                await self.changes.next_of(bell, 5.0 if left is None else min(5.0, left))

    async def wait_all(self, jobs: Sequence[str]) -> AsyncIterator[tuple[list[JobView], list[str]]]:
        """Each of the jobs once it is terminal, as many at a time as have ended; besides them the ids of those that are not there."""
        with self.changes.of_jobs(jobs) as roll:
            look: Sequence[str] = list(roll.left)
            while True:
                views, missing = await self.ledger.ended(look) if look else ([], [])
                if views or missing:
                    roll.left.difference_update(missing, (view.row.id for view in views))
                    yield views, missing
                    for view in views:
                        await self._delivered(view)
                if not roll.left:
                    return
                # The ring is only a hint: a change through another gateway rings here late, or not at all.
                rang = await self.changes.next_of(roll.bell, 5.0)
                look = roll.touched() if rang else list(roll.left)

    async def cancel(self, job: str, mode: CancelMode) -> JobView:
        """Asks a job to end; the job as it is then."""
        view = await self.ledger.get(job)
        if mode == CancelMode.FINISH and not view.row.finishable and view.row.state not in TERMINAL:
            raise NotFinishable(f"{view.row.method} cannot end early and keep its work; cancel it with mode ABORT")
        outcome = await self.ledger.cancel(job, mode)
        self.changes.publish(outcome.changed)
        return await self.ledger.get(job)

    async def delete(self, job: str) -> None:
        """Removes a terminal job, its result and the artifacts it made."""
        await self.ledger.delete(job)
        # Its watchers find it gone.
        self.changes.touch(job)

    async def retry(
        self, job: str, options: job_options_pb2.JobOptions | None, principal: str, traceparent: str
    ) -> JobView | NewJob:
        """A new job with the old one's request."""
        return await self._created(await self._again(job, options, principal, traceparent))

    async def _again(
        self, job: str, options: job_options_pb2.JobOptions | None, principal: str, traceparent: str
    ) -> NewJob:
        row: Any = await self.ledger.payload(job)
        if State(row.state) not in TERMINAL:
            raise StateInvalid(f"jobs/{job} has not ended (it is {State(row.state).name}); cancel it or wait")
        entry = self._directory.entry(row.service)
        if entry.uid != row.service_uid:
            raise StateInvalid(f"{row.service} was deleted and made again since; create a new job")
        method = method_of(entry, row.method)
        if options is None:
            options = job_options_pb2.JobOptions.FromString(row.options)
            options.ClearField("request_id")
        payload = row.payload if row.payload is not None else await self._payloads.get(row.payload_artifact)
        return await self._prepare(entry, method, payload, options, "options", principal, traceparent, retry_of=job)

    async def redrive(self, letter: str, principal: str, traceparent: str) -> JobView | NewJob:
        """A new job from a dead letter, or the one that was made of it before."""
        row = await self.ledger.dead_letter(letter)
        if row.redriven_as:
            return await self.ledger.get(row.redriven_as)
        if not row.job:
            raise StateInvalid(f"deadLetters/{letter} is a record that is no job of ours; it cannot be run")
        # The request_id makes two redrives at once give one job.
        options = job_options_pb2.JobOptions.FromString((await self.ledger.payload(row.job)).options)
        options.request_id = f"redrive-{letter}"
        job = await self._created(await self._again(row.job, options, principal, traceparent))
        await self.ledger.redriven(letter, job.id if isinstance(job, NewJob) else job.row.id)
        return job


def _as_kept(method: CatalogMethod) -> Method:
    finishable = method.long_running is not None and method.long_running.finishable
    return Method(method.full_name, method.idempotent, finishable, method.result_type)


def _inputs(payload: bytes, artifact: str) -> tuple[str, ...]:
    """The artifacts that a request names, and the one that it is, if any."""
    found = {artifact} if artifact else set()
    if b"artifacts/" in payload:
        found |= {f"artifacts/{match.decode()}" for match in ARTIFACT_NAME.findall(payload)}
    return tuple(sorted(found))


def _addressed(payload: bytes, service: str, method: CatalogMethod) -> tuple[bytes, job_options_pb2.JobOptions | None]:
    """The request with its service filled in, and the options inside it, if there are any."""
    if method.route is not None:
        # Field 1 is not the service: the sidecar knows what it is attached to.
        return payload, None
    try:
        route = route_pb2.LongRunningRoute() if method.long_running is not None else route_pb2.Route()
        route.ParseFromString(payload)
    except DecodeError:
        raise DataInvalid("request", "does not decode") from None
    if route.service and route.service != service:
        raise DataInvalid("request.service", f"is {route.service!r}, the job is for {service!r}")
    named, inside = bool(route.service), None
    if isinstance(route, route_pb2.LongRunningRoute) and route.HasField("job_options"):
        inside = job_options_pb2.JobOptions()
        inside.CopyFrom(route.job_options)
    # It holds a copy of all fields that it does not know, which is nearly all of a large request.
    del route
    if not named:
        # Fields may come in any order on the wire, so that a field can be added at the end.
        payload += route_pb2.Route(service=service).SerializeToString()
    return payload, inside


def _request_hash(
    entry: Entry, method: CatalogMethod, payload: bytes, options: job_options_pb2.JobOptions, retry_of: str
) -> bytes:
    digest = hashlib.sha256()
    for part in (
        entry.uid.encode(),
        method.full_name.encode(),
        retry_of.encode(),
        payload,
        options.SerializeToString(deterministic=True),
    ):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()

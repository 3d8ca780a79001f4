"""One sidecar from its start to its end: started, identified, attached, probed, watched, drained, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import grpc

from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.clock import Clock
from onecontainer.errors import Code, DriverUnreachable, InternalError, OneContainerError, Reason
from onecontainer.rpc.channel import open_channel
from onecontainer.rpc.options import secret_names
from onecontainer.sidecars.conversation import ANSWER_TIMEOUT, Conversation
from onecontainer.sidecars.folders import Folders, InstanceFolders
from onecontainer.sidecars.logs import LogBuffer
from onecontainer.sidecars.model import Adopted, Endpoint, InstanceIdentity, Sidecar, SidecarEvent, SidecarState, Target
from onecontainer.sidecars.policy import Policy
from onecontainer.sidecars.registrations import Presence, Registrations
from onecontainer.sidecars.runtime import (
    FOR_GOOD,
    OutlivingRuntime,
    OutlivingSidecar,
    RunningSidecar,
    Runtime,
    StartSpec,
)
from onecontainer.sidecars.secrets import SecretStore
from onecontainer.sidecars.tokens import InstanceTokens

log = logging.getLogger(__name__)

KILL_GRACE = 1.0
DRAIN_SLACK = 5.0
CHANNEL_GRACE = 2.0
DOUBT_PAUSE = 0.5
EXIT_PRECEDENCE = 0.5
"""Seconds that a broken connection waits for the news of the process's end, which tells more."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all instances of a supervisor share."""

    folders: Folders
    secrets: SecretStore
    tokens: InstanceTokens
    clock: Clock
    policy: Policy
    start_gate: asyncio.Semaphore
    job_source: Callable[[Target], driver_pb2.JobSource | None]
    open_channel: Callable[[str], grpc.aio.Channel]
    trouble: Callable[[str], Awaitable[OneContainerError | None]]
    """Why there is no connection with an address, if that will not pass by itself."""
    sleep: Callable[[float], Awaitable[None]]
    new_token: Callable[[], str]
    registrations: Registrations


class Instance:
    """One start of a sidecar. `record` is its state for others; `introduced` (whoever has its token is known),
    `ready` and `ended` are set once, in this order if at all."""

    def __init__(
        self,
        name: str,
        target: Target,
        runtime: Runtime,
        restart_count: int,
        around: Surroundings,
        on_change: Callable[[], None],
        *,
        adopted: Adopted = Adopted.NO,
    ) -> None:
        self.target = target
        self.runtime = runtime
        self.record = Sidecar(
            name=name,
            service=target.service,
            service_uid=target.uid,
            driver=target.driver,
            runtime=runtime.kind,
            restart_count=restart_count,
            create_time=around.clock.now(),
        )
        self._adopted = adopted
        if adopted is not Adopted.NO:
            # All of its log comes once more.
            around.folders.log(name).unlink(missing_ok=True)
        self.logs = LogBuffer(around.clock, around.folders.log(name) if runtime.owns else None)
        self.endpoint: Endpoint | None = None
        self.conversation: Conversation | None = None
        self.introduced = asyncio.Event()
        self.ready = asyncio.Event()
        self.ended = asyncio.Event()
        self.refused = False
        self.presence: Presence | None = None
        """Its registration, of one that has registered itself."""
        if target.runtime.registers:
            self.presence = around.registrations.presence(target.uid, target.driver)
        self._around = around
        self._on_change = on_change
        self._token: str | None = None
        # None: it runs no jobs; without a token it cannot fetch any.
        self._jobs: driver_pb2.JobSource | None = None
        self._folders: InstanceFolders | None = None
        self._running: RunningSidecar | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._leaving = False
        self._hurry = asyncio.Event()
        self._release_gate: Callable[[], None] = lambda: None

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def adopted(self) -> bool:
        """Whether it runs since an earlier gateway."""
        return self._adopted is not Adopted.NO

    def begin(self, tasks: asyncio.TaskGroup) -> None:
        """Starts it, as a task of the group."""
        self._task = tasks.create_task(self._run(), name=self.name)

    async def stop(self, grace: float | None = None) -> None:
        """Ends it; answers when it has ended. Idempotent."""
        self._stopping = True
        self.endpoint = None
        if self._running is not None:
            await self._running.stop(self._around.policy.stop_grace if grace is None else grace)
        elif self._task is not None:
            self._task.cancel()
        await self.ended.wait()

    async def leave(self) -> None:
        """Lets go of it, as it is, if it can go on without this gateway; otherwise it ends. Answers when that is done. Idempotent."""
        adopted = self._running is None and self.adopted
        if not (adopted or isinstance(self._running, OutlivingSidecar)):
            await self.stop()
            return
        self._stopping = self._leaving = True
        if isinstance(self._running, OutlivingSidecar):
            await self._running.leave()
        elif self._task is not None:
            self._task.cancel()
        await self.ended.wait()

    def superseded(self, successor: Instance) -> None:
        """Another start has followed it."""
        if successor.name != self.name and not self.runtime.owns:
            self.disown()  # our own is done with when it has ended: until then it reports
        if self.record.state is SidecarState.BACKOFF:
            self.record = self.record.after(SidecarEvent.STOP, next_start_time=0)

    def disown(self) -> None:
        """Its token does not stand for it any more: it belongs to the service no longer."""
        if self._token is not None:
            self._around.tokens.revoke(self._token, self.name)

    def hurry(self) -> None:
        """What still runs in it is not waited for any longer."""
        self._hurry.set()

    async def wait_leaving(self) -> None:
        """Returns when it has said that it drains, so that another one may take its place."""
        await (asyncio.Event() if self.presence is None else self.presence.draining).wait()

    async def retire(self, drain_timeout: float) -> None:
        """Takes nothing new, lets what runs end, then stops; somebody else's sidecar is detached instead."""
        if self.ended.is_set():
            return
        self._become(SidecarEvent.DRAIN)
        if self.conversation is not None:
            leave = (
                self.conversation.drain(drain_timeout, drain_timeout + DRAIN_SLACK)
                if self.runtime.owns
                else self.conversation.detach(drain_timeout)
            )
            await first_of(leave, self._hurry.wait(), self.ended.wait())
        await self.stop()

    # --- its life ----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            await self._live()
        except asyncio.CancelledError:
            # A stop before there was anything to stop cancels the task; any other cancellation is the group's.
            if not self._stopping:
                raise
        except OneContainerError as error:
            self._fail(error)
        except Exception as error:
            log.exception("%s: a defect of the supervisor", self.name)
            self._fail(InternalError(f"the gateway failed to look after the sidecar: {error}"))
        finally:
            try:
                await self._clean_up()
            except Exception:
                log.exception("%s: what is left of it could not be removed", self.name)
            finally:
                self.ended.set()
                self._on_change()

    async def _live(self) -> None:
        running = await self._start()
        exit_news = asyncio.ensure_future(running.wait())
        steps = asyncio.ensure_future(self._steps(running))
        try:
            await asyncio.wait((exit_news, steps), return_when=asyncio.FIRST_COMPLETED)
            if not exit_news.done():
                await asyncio.wait((exit_news,), timeout=EXIT_PRECEDENCE)
            if self._stopping:
                return
            if exit_news.done():
                # A sidecar that has been ready was right: what ended it then may pass.
                self.refused = exit_news.result() in FOR_GOOD and not self.ready.is_set()
                raise self._with_log(f"the sidecar {exit_news.result()}")
            await steps
        finally:
            exit_news.cancel()
            steps.cancel()
            await asyncio.gather(exit_news, steps, return_exceptions=True)

    async def _start(self) -> RunningSidecar:
        around, target = self._around, self.target
        if not self.runtime.owns and target.runtime.token_secret:
            # Before all waiting: it may run jobs since before this gateway was started, and must not be taken for a stranger.
            self._token = around.secrets.read(target.runtime.token_secret.removeprefix("secrets/"))
            self._introduce(self._token)
        if self.adopted:
            # It may run jobs, too.
            self._folders, token = await asyncio.to_thread(around.folders.open, self.name, target.uid)
            self._token = token
            self._introduce(token)
        self.introduced.set()
        await self._enter_gate()
        outlives = isinstance(self.runtime, OutlivingRuntime)
        if self.adopted:
            self._jobs = self._job_source()
        elif self.runtime.owns:
            self._token = around.new_token()
            self._jobs = self._job_source()
            # The settings of the dispatch (a broker's password, say) may refer to secrets too.
            settings = dict(self._jobs.kafka.client_settings) if self._jobs is not None else {}
            secrets = around.secrets.read_all({*target.secrets, *secret_names(settings)})
            self._folders = around.folders.make(self.name, target.uid, self._token, secrets, outlives=outlives)
            self._introduce(self._token)
        else:
            if self.presence is not None:
                self._token = self.presence.token  # whom it stands for is the registrations' to say
            self._jobs = self._job_source() if self._token is not None else None
        spec = StartSpec(
            instance=self.name,
            target=target,
            folders=self._folders,
            logs=self.logs,
            max_message_bytes=around.policy.max_message_bytes,
            log_level=around.policy.log_level,
            doing=self._doing,
            adopted=self.adopted,
        )
        try:
            self._running = await self.runtime.start(spec)
        except OneContainerError as error:
            self.refused = error.code is Code.INVALID_ARGUMENT
            raise
        self.record = replace(self.record, target=self._running.target, runtime_id=self._running.runtime_id)
        self._on_change()
        return self._running

    def _doing(self, what: str) -> None:
        error = DriverUnreachable(what, metadata={"sidecar": self.name}) if what else None
        self.record = replace(self.record, error=error)
        self._on_change()

    def _job_source(self) -> driver_pb2.JobSource | None:
        source = self._around.job_source(self.target)
        if source is not None and isinstance(self.runtime, OutlivingRuntime):
            source.internal_target = self.runtime.internal_target
        return source

    def _introduce(self, token: str) -> None:
        identity = InstanceIdentity(self.name, self.target.service, self.target.uid, self.target.slots)
        self._around.tokens.register(token, identity)

    async def _enter_gate(self) -> None:
        """Only so many start at once, but one that hangs holds its place for a bounded time only."""
        gate = self._around.start_gate
        await gate.acquire()
        held = [True]

        def release() -> None:
            if held:
                held.clear()
                gate.release()

        asyncio.get_running_loop().call_later(self._around.policy.start_slot, release)
        self._release_gate = release

    async def _steps(self, running: RunningSidecar) -> None:
        policy, target = self._around.policy, self.target
        server = running.tls if isinstance(running, OutlivingSidecar) else None
        channel = (
            self._around.open_channel(running.target)
            if server is None
            else open_channel(
                running.target,
                max_message_bytes=policy.max_message_bytes,
                ca_file=server.ca_file,
                server_name=server.name,
            )
        )
        talk = Conversation(channel, running.target, self._token, target, self.name, policy, self._around.sleep)
        self.conversation = talk
        try:
            async with asyncio.timeout(policy.start_timeout):
                as_it_is = self._adopted is Adopted.AS_IT_IS
                info = await talk.wait_for_answer(
                    # The certificates of our own are not in question.
                    check_identity=not as_it_is,
                    trouble=None if server is not None else lambda: self._around.trouble(running.target),
                )
        except TimeoutError:
            raise self._with_log(f"the sidecar did not answer in {policy.start_timeout:g} s") from None
        self._release_gate()
        try:
            if as_it_is:
                talk.resume(info)
                told = info.manifest
                self.record = replace(self.record, driver=f"drivers/{told.name}-{told.version}")
            else:
                await talk.attach(info, self._jobs)
        except OneContainerError as error:
            self.refused = error.code is Code.INVALID_ARGUMENT
            raise
        self._become(SidecarEvent.ATTACHED)
        await self._probe_until_ready(talk)
        self.endpoint = Endpoint(
            instance=self.name,
            channel=channel,
            metadata=talk.metadata,
            methods=frozenset(info.methods),
            max_message_bytes=info.max_message_bytes or policy.max_message_bytes,
        )
        self._become(SidecarEvent.BACKEND_READY, error=None, ready_time=self._around.clock.now())
        self.ready.set()
        await self._watch(talk)

    async def _probe_until_ready(self, talk: Conversation) -> None:
        interval = self._around.policy.first_probe_interval
        while True:
            ready, error = await talk.probe()
            if ready:
                return
            if self.record.state is SidecarState.PROBING and not _same(error, self.record.error):
                self._become(SidecarEvent.BACKEND_BROKEN, error=error)
            await self._around.sleep(interval)
            interval = min(interval * 1.5, self._around.policy.probe_interval)

    async def _watch(self, talk: Conversation) -> None:
        """Asks again and again whether it still answers, and whether its backend does. Raises when it hangs."""
        policy = self._around.policy
        silent = 0
        while True:
            doubted = await self._pause(policy.probe_interval)
            if self.record.state is SidecarState.DRAINING:
                continue  # the drain has its own limit, and a draining sidecar may well be busy
            error = await talk.check_health(ANSWER_TIMEOUT if doubted else None, patient=not doubted)
            if doubted and error is not None:
                raise self._with_log(f"the stream of its registration has broken, and it does not answer: {error}")
            silent = 0 if error is None else silent + 1
            if silent >= policy.health_failures:
                raise self._with_log(f"the sidecar does not answer: {error}")
            if error is not None:
                continue
            ready, error = await talk.probe()
            if error is not None and error.reason is Reason.NOT_ATTACHED:
                # Whoever started it has started it anew, and it knows nothing of us.
                raise DriverUnreachable("the sidecar has been started anew", metadata={"sidecar": self.name})
            if self.record.state not in (SidecarState.READY, SidecarState.PROBING):
                continue
            if ready and self.record.state is SidecarState.PROBING:
                self._become(SidecarEvent.BACKEND_READY, error=None)
            elif not ready and not (self.record.state is SidecarState.PROBING and _same(error, self.record.error)):
                self._become(SidecarEvent.BACKEND_BROKEN, error=error)

    async def _pause(self, seconds: float) -> bool:
        """Sleeps, but for a shorter time if its registration's stream breaks (then True), or a call found its backend away."""
        doubt = None if self.presence is None or self.presence.doubt.is_set() else self.presence.doubt
        waits: list[Awaitable[object]] = [self._around.sleep(seconds)]
        if doubt is not None:
            waits.append(doubt.wait())
        # Once it is known, further calls that fail tell nothing new.
        found = self.endpoint.doubt if self.endpoint is not None and self.record.state is SidecarState.READY else None
        if found is not None:
            waits.append(found.wait())
        await first_of(*waits)
        if found is not None and found.is_set():
            # Many calls may fail at once, and go on failing though the probe is well: one probe answers for all of them.
            await self._around.sleep(DOUBT_PAUSE)
            found.clear()
        return doubt is not None and doubt.is_set()

    # --- its end -----------------------------------------------------------------------------------------------------

    def _fail(self, error: OneContainerError) -> None:
        if self._stopping:
            return
        self._become(SidecarEvent.REFUSED if self.refused else SidecarEvent.FAILED, error=error)

    def _with_log(self, text: str) -> DriverUnreachable:
        lines = self.logs.last_errors()
        text = f"{text}; its last lines:\n{lines}" if lines else text
        return DriverUnreachable(text, metadata={"sidecar": self.name, "sidecar_state": self.record.state.value})

    async def _clean_up(self) -> None:
        self._release_gate()
        self.endpoint = None
        if self._running is not None and not self._leaving:
            await self._running.stop(KILL_GRACE if not self._stopping else self._around.policy.stop_grace)
        elif isinstance(self.runtime, OutlivingRuntime) and self.adopted and not self._leaving:
            await self.runtime.discard(self.name)
        if self.runtime.owns and not self._leaving:
            self.disown()
        if self.conversation is not None:
            # Calls in flight end by themselves, for the other side is gone; close() would cancel them, and with them the callers' tasks.
            with contextlib.suppress(Exception):
                await self.conversation.channel.close(CHANNEL_GRACE)
        if self._folders is not None and not self._leaving:
            self._around.folders.remove(self._folders)
        self.logs.end()
        if not self._leaving and self.record.state not in (SidecarState.BACKOFF, SidecarState.STOPPED):
            self._become(SidecarEvent.STOP)

    def _become(self, event: SidecarEvent, **changes: object) -> None:
        if self._stopping and event is not SidecarEvent.STOP:
            return  # news of a step that was under way when the stop came
        self.record = self.record.after(event, **changes)
        if self.record.state in (SidecarState.DRAINING, SidecarState.STOPPED, SidecarState.BACKOFF):
            self.endpoint = None
        self._on_change()


def _same(one: OneContainerError | None, other: OneContainerError | None) -> bool:
    return (one is None) == (other is None) and str(one) == str(other)


async def first_of(*waits: Awaitable[object]) -> None:
    """Waits for the first of them and cancels the others. What they raise is dropped."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

"""RegistrationService, as registration.proto describes it: who may register, what it is worth, and when it ends."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from onecontainer.errors import (
    Code,
    CredentialsInvalid,
    FieldInvalid,
    FieldRequired,
    QueueUnreachable,
    ResourceNotFound,
    StateInvalid,
)
from onecontainer.sidecars.registrations import Registrations
from onecontainer.sidecars.tokens import registration_token
from tests.contract.worker.conftest import LEASE, TOKEN, Desk, post, refusal, register


async def until(desk: Desk, condition: Callable[[], bool]) -> None:
    """Returns when the condition holds, asked again in each turn of the loop."""
    async with asyncio.timeout(120):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0)


async def test_a_worker_is_told_all_that_it_needs(desk: Desk, channel: grpc.aio.Channel) -> None:
    answer = await register(channel).announce(slots=5)
    assert answer.sidecar.startswith("sidecars/echo-")
    assert answer.service_uid == "uid-1"
    assert answer.lease_duration.ToSeconds() == LEASE
    assert (answer.job_source.slots, answer.job_source.WhichOneof("dispatch")) == (5, "embedded")
    identity = desk.workers.authenticate(answer.instance_token)
    assert identity is not None
    assert (identity.instance, identity.service, identity.service_uid) == (answer.sidecar, "services/echo", "uid-1")
    assert desk.workers.slots("uid-1") == 5
    assert desk.states == ["READY"]


async def test_without_slots_it_gets_those_of_the_driver(channel: grpc.aio.Channel) -> None:
    assert (await register(channel).announce()).job_source.slots == 3


@pytest.mark.parametrize("token", ["", "wrong", f"{TOKEN}x"])
async def test_a_wrong_token_is_refused(desk: Desk, channel: grpc.aio.Channel, token: str) -> None:
    assert isinstance(await refusal(register(channel, token or "none").announce()), CredentialsInvalid)
    assert desk.states == []


async def test_what_cannot_be_registered_is_refused(desk: Desk, channel: grpc.aio.Channel) -> None:
    async def refused(**fields: object) -> Exception:
        return await refusal(register(channel).announce(**fields))  # type: ignore[arg-type]

    assert isinstance(await refused(service="services/none"), ResourceNotFound)
    assert isinstance(await refused(endpoint="nowhere"), FieldInvalid)
    assert isinstance(await refused(instance_id="Not A Name"), FieldInvalid)
    assert isinstance(await refused(slots=1001), FieldInvalid)
    assert isinstance(await refused(slots=-1), FieldInvalid)
    missing = await refused(service="", instance_id="")
    assert isinstance(missing, FieldRequired)
    assert [violation.field for violation in missing.violations] == ["service", "instance_id"]
    desk.posts["services/echo"] = post(driver="other")
    assert isinstance(await refused(), StateInvalid)
    assert desk.states == []


async def test_leaving_ends_it_at_once(desk: Desk, channel: grpc.aio.Channel) -> None:
    call = register(channel)
    answer = await call.announce()
    await call.leave()
    assert desk.states == []
    with pytest.raises(QueueUnreachable) as caught:
        desk.workers.authenticate(answer.instance_token)
    assert caught.value.retry_after


async def test_a_stream_that_breaks_leaves_the_lease(desk: Desk, channel: grpc.aio.Channel) -> None:
    call = register(channel)
    answer = await call.announce()
    call.break_off()
    await until(desk, lambda: desk.states == ["PROBING"])
    assert desk.workers.authenticate(answer.instance_token) is not None
    again = await register(channel).announce()
    assert (again.sidecar, again.instance_token) == (answer.sidecar, answer.instance_token)
    assert desk.states == ["READY"]


async def test_the_lease_ends_if_nobody_renews_it(folder: Path) -> None:
    desk = Desk(lease=0.05)
    registration = desk.workers.register("services/echo", "echo", "one", 1)
    await until(desk, lambda: desk.states == [])
    with pytest.raises(StateInvalid) as caught:
        desk.workers.renew(registration)
    assert caught.value.code is Code.ABORTED


async def test_a_message_renews_it(desk: Desk, channel: grpc.aio.Channel) -> None:
    call = register(channel)
    answer = await call.announce()
    renewed = await call.say()
    assert (renewed.sidecar, renewed.instance_token, renewed.retired) == (answer.sidecar, "", False)


async def test_a_newer_stream_of_the_instance_replaces_the_older_one(desk: Desk, channel: grpc.aio.Channel) -> None:
    older, newer = register(channel), register(channel)
    await older.announce()
    answer = await newer.announce()
    error = await refusal(older.say())
    assert isinstance(error, StateInvalid)
    assert error.code is Code.ABORTED
    # The end of the older one is not the end of the newer.
    assert desk.workers.authenticate(answer.instance_token) is not None
    assert desk.states == ["READY"]


async def test_instances_have_names_and_tokens_of_their_own(desk: Desk, channel: grpc.aio.Channel) -> None:
    one, other = await register(channel).announce("one"), await register(channel).announce("other")
    assert one.sidecar != other.sidecar
    assert one.instance_token != other.instance_token
    assert desk.workers.slots("uid-1") == 6


async def test_another_driver_retires_it(desk: Desk, channel: grpc.aio.Channel) -> None:
    call = register(channel)
    answer = await call.announce()
    desk.posts["services/echo"] = post(driver="other")
    assert (await call.say()).retired
    assert desk.states == ["DRAINING"]
    # What runs may still be reported.
    assert desk.workers.authenticate(answer.instance_token) is not None


async def test_a_service_that_is_deleted_ends_it(desk: Desk, channel: grpc.aio.Channel) -> None:
    call = register(channel)
    await call.announce()
    desk.posts.clear()
    assert isinstance(await refusal(call.say()), ResourceNotFound)


async def test_name_and_token_survive_a_restart_of_the_gateway(desk: Desk) -> None:
    before = desk.workers.register("services/echo", "echo", "one", 1)
    desk.start()
    # It keeps what it runs, and registers again.
    with pytest.raises(QueueUnreachable):
        desk.workers.authenticate(before.token)
    after = desk.workers.register("services/echo", "echo", "one", 1)
    assert (after.token, after.identity) == (before.token, before.identity)


async def test_tokens_that_were_not_made_here_stand_for_nobody(desk: Desk) -> None:
    registration = desk.workers.register("services/echo", "echo", "one", 1)
    stranger = Registrations(
        "another secret",
        post_of=lambda _service: post(),
        clock=desk.workers._clock,
        lease=1,
        on_change=lambda _uid: None,
    )
    assert stranger.authenticate(registration.token) is None
    for token in ("", "worker", "worker.uid-1.one", registration.token + "0", registration.token.replace("one", "two")):
        assert desk.workers.authenticate(token) is None


def test_the_registration_token_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "registration.token"
    made = registration_token(path)
    assert len(made) > 20
    assert registration_token(path) == made
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    with pytest.raises(StateInvalid):
        registration_token(path)
    path.chmod(0o600)
    path.write_text("\n")
    with pytest.raises(StateInvalid):
        registration_token(path)

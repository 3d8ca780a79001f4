"""RegistrationService for sidecars that serve calls: one instance has a service's place, and when another one may take it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import grpc
import pytest

from onecontainer.api.driver.v1 import driver_pb2, registration_pb2
from onecontainer.errors import Code, DriverNotAvailable, QueueUnreachable, ResourceInUse, StateInvalid
from onecontainer.sidecars.registrations import Presence
from tests.contract.worker.conftest import Desk, RegisterCall, post, refusal, register

ENDPOINT = "127.0.0.1:7000"
DRIVER = "drivers/echo-1.0.0"


async def serve(channel: grpc.aio.Channel, instance_id: str = "one", **fields: object):  # type: ignore[no-untyped-def]
    call = register(channel)
    return call, await call.announce(instance_id, **{"endpoint": ENDPOINT, **fields})


def present(desk: Desk) -> Presence:
    presence = desk.workers.presence("uid-1", DRIVER)
    assert presence is not None
    return presence


async def broken(call: RegisterCall, presence: Presence) -> None:
    call.break_off()
    async with asyncio.timeout(120):
        await presence.doubt.wait()


async def test_it_is_told_its_name_and_token_and_is_there(desk: Desk, channel: grpc.aio.Channel) -> None:
    arrival = desk.workers.arrival("uid-1")
    _, answer = await serve(channel)
    assert arrival.is_set()
    presence = present(desk)
    assert (presence.name, presence.token, presence.endpoint) == (answer.sidecar, answer.instance_token, ENDPOINT)
    assert not answer.HasField("job_source")  # Attach has it
    identity = desk.workers.authenticate(answer.instance_token)
    assert identity is not None
    assert (identity.instance, identity.service, identity.service_uid) == (answer.sidecar, "services/echo", "uid-1")
    # It is no worker: neither its record nor its slots are counted as one's.
    assert desk.states == []
    assert desk.workers.slots("uid-1") == 0
    record = desk.workers.record(answer.sidecar)
    assert record is not None
    assert (record.worker_only, record.target) == (False, ENDPOINT)


async def test_a_worker_and_a_sidecar_of_one_instance_id_are_two(desk: Desk, channel: grpc.aio.Channel) -> None:
    _, sidecar = await serve(channel)
    worker = await register(channel).announce("one")
    assert sidecar.instance_token != worker.instance_token
    assert sidecar.sidecar != worker.sidecar


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (post(driver="other"), "is 'other'"),
        (post(version="2.0.0"), "version 2.0.0"),
        (post(serves=False), "waits for no sidecar"),
    ],
)
async def test_one_that_does_not_fit_is_refused(
    desk: Desk, channel: grpc.aio.Channel, wanted: object, says: str
) -> None:
    desk.posts["services/echo"] = wanted  # type: ignore[assignment]
    error = await refusal(register(channel).announce(endpoint=ENDPOINT))
    assert isinstance(error, StateInvalid)
    assert says in error.message
    assert desk.workers.presence("uid-1", DRIVER) is None


async def test_while_one_is_alive_another_one_is_refused_and_told_who(desk: Desk, channel: grpc.aio.Channel) -> None:
    _, first = await serve(channel)
    error = await refusal(register(channel).announce("two", endpoint="127.0.0.1:7001"))
    assert isinstance(error, ResourceInUse)
    assert first.sidecar in error.message
    assert error.resource is not None
    assert error.resource[1] == first.sidecar
    assert error.retry_after
    assert present(desk).name == first.sidecar


async def test_the_same_instance_comes_back_as_what_it_was(desk: Desk, channel: grpc.aio.Channel) -> None:
    call, first = await serve(channel)
    presence = present(desk)
    await broken(call, presence)
    # The lease runs on, but nobody begins with one that may be dead.
    assert not presence.ended.is_set()
    assert desk.workers.presence("uid-1", DRIVER) is None
    _, again = await serve(channel)
    assert (again.sidecar, again.instance_token) == (first.sidecar, first.instance_token)
    assert present(desk) is presence
    assert not presence.doubt.is_set()
    assert not presence.ended.is_set()


async def test_at_another_address_it_is_met_anew(desk: Desk, channel: grpc.aio.Channel) -> None:
    call, _ = await serve(channel)
    presence = present(desk)
    await broken(call, presence)
    await serve(channel, endpoint="127.0.0.1:7001")
    assert presence.ended.is_set()
    assert present(desk).endpoint == "127.0.0.1:7001"


async def test_one_whose_stream_has_broken_loses_its_place_to_another(desk: Desk, channel: grpc.aio.Channel) -> None:
    call, first = await serve(channel)
    presence = present(desk)
    await broken(call, presence)
    _, second = await serve(channel, "two", endpoint="127.0.0.1:7001")
    assert presence.ended.is_set()
    assert second.sidecar in presence.end
    assert present(desk).name == second.sidecar
    # What the first one still runs may be reported until its lease ends, but its place is taken.
    assert desk.workers.authenticate(first.instance_token) is not None
    assert isinstance(await refusal(register(channel).announce(endpoint=ENDPOINT)), ResourceInUse)


async def test_one_that_drains_leaves_its_place_and_keeps_its_token(desk: Desk, channel: grpc.aio.Channel) -> None:
    call, first = await serve(channel)
    presence = present(desk)
    await call.say(draining=True)
    assert presence.draining.is_set()
    assert not presence.ended.is_set()
    assert desk.workers.presence("uid-1", DRIVER) is None
    _, second = await serve(channel, "two", endpoint="127.0.0.1:7001")
    assert present(desk).name == second.sidecar
    assert desk.workers.authenticate(first.instance_token) is not None
    await call.leave()
    assert presence.ended.is_set()
    assert present(desk).name == second.sidecar
    with pytest.raises(QueueUnreachable):
        desk.workers.authenticate(first.instance_token)


async def test_one_that_drains_registers_again_without_taking_the_place(desk: Desk, channel: grpc.aio.Channel) -> None:
    call, _ = await serve(channel)
    await call.say(draining=True)
    call.break_off()
    _, second = await serve(channel, "two", endpoint="127.0.0.1:7001")
    _, again = await serve(channel, draining=True)
    assert present(desk).name == second.sidecar
    assert desk.workers.authenticate(again.instance_token) is not None


async def test_leaving_ends_it_at_once(desk: Desk, channel: grpc.aio.Channel) -> None:
    call, answer = await serve(channel)
    presence = present(desk)
    await call.leave()
    assert presence.ended.is_set()
    assert presence.end == "has taken leave"
    assert desk.workers.presence("uid-1", DRIVER) is None
    assert desk.ends == [(answer.sidecar, True)]


async def test_the_end_of_its_lease_is_no_leave(folder: object) -> None:
    desk = Desk(lease=0.05)
    registration = desk.workers.register("services/echo", "echo", "one", version="1.0.0", endpoint=ENDPOINT)
    presence = present(desk)
    async with asyncio.timeout(120):
        await presence.ended.wait()
    assert "lost its lease" in presence.end
    # It may be at another gateway by now: what it runs is for the leases of its attempts to tell.
    assert desk.ends == [(registration.identity.instance, False)]
    assert desk.workers.presence("uid-1", DRIVER) is None


async def test_another_driver_retires_it(desk: Desk, channel: grpc.aio.Channel) -> None:
    call, _ = await serve(channel)
    presence = present(desk)
    desk.posts["services/echo"] = post(version="2.0.0")
    assert (await call.say()).retired
    assert presence.draining.is_set()


async def test_one_whose_service_was_made_anew_registers_again(desk: Desk, channel: grpc.aio.Channel) -> None:
    call, first = await serve(channel)
    desk.posts["services/echo"] = replace(post(), uid="uid-2")
    error = await refusal(call.say())
    assert isinstance(error, StateInvalid)
    assert error.code is Code.ABORTED
    _, again = await serve(channel)
    assert again.service_uid == "uid-2"
    assert again.sidecar != first.sidecar


async def test_a_driver_that_it_brings_is_announced_first(desk: Desk, channel: grpc.aio.Channel) -> None:
    await serve(channel, descriptor_set=b"descriptors")
    assert desk.announced == [("services/echo", "echo", b"descriptors")]
    await register(channel).announce("worker", descriptor_set=b"descriptors")
    assert len(desk.announced) == 1


async def test_a_service_without_a_driver_is_told(desk: Desk, channel: grpc.aio.Channel) -> None:
    def none(_service: str) -> object:
        raise DriverNotAvailable("it has none")

    desk.workers._post_of = none  # type: ignore[assignment]
    assert isinstance(await refusal(register(channel).announce(endpoint=ENDPOINT)), DriverNotAvailable)


async def test_another_gateway_that_serves_it_is_told(desk: Desk, channel: grpc.aio.Channel) -> None:
    desk.elsewhere = ResourceInUse("sidecars/echo-2 serves it at gateways/b")
    assert isinstance(await refusal(register(channel).announce(endpoint=ENDPOINT)), ResourceInUse)
    desk.elsewhere = None
    await serve(channel)


async def test_a_newer_stream_replaces_the_older_one(desk: Desk, channel: grpc.aio.Channel) -> None:
    older, _ = await serve(channel)
    presence = present(desk)
    await serve(channel)
    error = await refusal(older.say())
    assert isinstance(error, StateInvalid)
    assert error.code is Code.ABORTED
    assert present(desk) is presence
    assert not presence.doubt.is_set()


async def test_the_first_message_names_all_that_is_missing(channel: grpc.aio.Channel) -> None:
    call = register(channel)
    error = await refusal(call.say(endpoint=ENDPOINT, manifest=driver_pb2.DriverManifest()))
    assert [violation.field for violation in error.violations] == ["service", "instance_id", "manifest.name"]  # type: ignore[attr-defined]
    assert registration_pb2.RegisterRequest().draining is False

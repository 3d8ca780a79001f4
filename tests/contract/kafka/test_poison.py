"""Records that are no jobs: each becomes one dead letter, whatever it is and however often it is read, and the consumer goes on."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest

from onecontainer.api.event.v1 import event_pb2
from onecontainer.api.job.v1 import job_pb2
from onecontainer.errors import Reason, StateInvalid
from onecontainer.rpc.status import from_status
from tests.contract.dispatch.scene import ECHO
from tests.contract.kafka.scene import PARTITIONS, Headers, Scene, headers
from tests.fixtures.waiting import until

JOB = "jobs/01m89xq42sjbm8ggvzev46b89b"
LARGE = bytes(range(256)) * 40_000


def record(**changes: str) -> bytes:
    fields = {"job": JOB, "service": "services/echo", "method": f"{ECHO}/Echo"} | changes
    return event_pb2.JobDispatch(attempt=1, fence=1, **fields).SerializeToString()


POISON: dict[str, tuple[bytes, Headers]] = {
    "no protobuf": (b"\xff\xfe no protobuf", headers(JOB)),
    "nothing": (b"", []),
    "another type": (record(), headers(JOB, kind="com.example.other")),
    "another schema": (record(), headers(JOB, schema="com.example.Other")),
    "no header": (record(), []),
    "another service": (record(service="services/other"), headers(JOB)),
    "a method nobody has": (record(method="com.example.Nothing/Do"), headers("jobs/another")),
    "no job": (record(job="artifacts/1"), headers(JOB)),
    "a job nobody knows": (record(job="jobs/unknown"), headers(JOB)),
    "10 MB": (LARGE, []),
}


def letters(scene: Scene) -> list[job_pb2.DeadLetter]:
    return [letter for letter in scene.client.jobs.dead_letters(limit=500) if letter.HasField("origin")]


@pytest.fixture(scope="module")
def poisoned(scene: Scene) -> Scene:
    scene.job().wait(timeout=180)  # the topic is there
    scene.produce(*POISON.values())
    until(lambda: len(letters(scene)) >= len(POISON), "a letter for each record")
    return scene


def test_each_record_has_one_letter_that_says_where_it_stands(poisoned: Scene) -> None:
    found = letters(poisoned)
    assert {from_status(letter.error).reason for letter in found} == {Reason.RECORD_INVALID}
    assert all(from_status(letter.error).message and letter.service == "services/echo" for letter in found)
    places = Counter((letter.origin.topic, letter.origin.partition, letter.origin.offset) for letter in found)
    assert len(places) == len(POISON)
    assert {topic for topic, _, _ in places} == {poisoned.topic}
    digests = Counter(letter.origin.sha256 for letter in found)
    assert digests == Counter(hashlib.sha256(value).digest() for value, _ in POISON.values())
    (large,) = [letter for letter in found if letter.origin.size_bytes > 1_000_000]
    assert (large.origin.size_bytes, large.origin.head) == (len(LARGE), LARGE[:4096])


def test_the_consumer_goes_on(poisoned: Scene) -> None:
    jobs = [poisoned.job(payload=b"x") for _ in range(20)]
    assert {job.wait(timeout=180).state for job in jobs} == {job_pb2.JOB_STATE_SUCCEEDED}


def test_a_foreign_record_cannot_be_run(poisoned: Scene) -> None:
    answers = poisoned.client.jobs.redrive([letter.name for letter in letters(poisoned)])
    assert {type(answer) for answer in answers} == {StateInvalid}
    assert all("no job of ours" in str(answer) for answer in answers)


def test_a_letter_is_not_doubled_when_everything_is_read_again(poisoned: Scene) -> None:
    before = {letter.name for letter in letters(poisoned)}
    runs = {job.name: job.attempt_count for job in poisoned.client.jobs.list()}
    poisoned.gateway.stop()
    poisoned.read_all_again()
    poisoned.gateway.start()
    poisoned.client.services.wait_ready("echo", timeout=180)
    # Behind all the others in each partition: once they have their letters, all has been read again.
    last = [(f"last {number}".encode(), headers(JOB)) for number in range(PARTITIONS)]
    for number, poison in enumerate(last):
        poisoned.produce(poison, partition=number)
    until(lambda: len(letters(poisoned)) >= len(before) + len(last), "the last letters")
    assert len(letters(poisoned)) == len(before) + len(last)
    assert before < {letter.name for letter in letters(poisoned)}
    assert {job.name: job.attempt_count for job in poisoned.client.jobs.list()} == runs

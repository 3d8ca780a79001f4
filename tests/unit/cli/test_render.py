"""What results look like."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2

from onecontainer.api.db.v1 import record_pb2
from onecontainer.api.job.v1 import job_pb2
from onecontainer.api.management.v1 import resources_pb2
from onecontainer.cli.bars import amount, note
from onecontainer.cli.render import Screen, enum_name, in_a_line, moment, size


def test_states_lose_the_name_of_their_enum() -> None:
    assert enum_name(resources_pb2.ServiceState, resources_pb2.SERVICE_STATE_READY) == "READY"
    assert enum_name(job_pb2.JobState, job_pb2.JOB_STATE_RETRY_WAIT) == "RETRY_WAIT"


def test_an_error_in_a_line_has_what_a_program_said_last() -> None:
    assert in_a_line("the sidecar exited with code 1; its last lines:\nTraceback\nValueError: no") == (
        "the sidecar exited with code 1; its last lines: ValueError: no"
    )
    assert in_a_line("it is away\nmore of it") == "it is away"
    assert in_a_line("") == ""


def test_moments_and_sizes_are_for_people() -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    stamp = timestamp_pb2.Timestamp(seconds=int(now.timestamp()) - 200)
    assert moment(stamp, now) == "3 min ago"
    stamp.seconds += 400
    assert moment(stamp, now) == "in 3 min"
    assert moment(timestamp_pb2.Timestamp(), now) == ""
    assert [size(count) for count in (17, 1536, 3 * 1024**3)] == ["17 B", "1.5 KiB", "3.0 GiB"]


def test_rows_are_a_table_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": 1, "price": Decimal("9.90"), "raw": b"\x00\xff"}, {"id": 2, "price": None, "raw": b""}]
    Screen("table").rows(rows)
    assert capsys.readouterr().out == "ID  PRICE  RAW\n1   9.90   00ff\n2\n"
    Screen("json").rows(rows)
    assert json.loads(capsys.readouterr().out)[0] == {"id": 1, "price": "9.90", "raw": "AP8="}


def test_whole_numbers_of_options_stay_whole() -> None:
    service = resources_pb2.Service()
    service.options.update({"threads": 2, "share": 0.5, "sizes": [1, 1e300], "on": True})
    assert json.dumps(Screen("json").to_json(service)["options"], sort_keys=True) == (
        '{"on": true, "share": 0.5, "sizes": [1, 1e+300], "threads": 2}'
    )


def test_a_double_is_shown_as_one() -> None:
    record = record_pb2.Record()
    record.fields["price"].double_value, record.fields["zero"].double_value = 2.0, -0.0
    # Sorted, for the order of a map's entries is not defined.
    assert json.dumps(Screen("json").to_json(record), sort_keys=True) == (
        '{"fields": {"price": {"double_value": 2.0}, "zero": {"double_value": -0.0}}}'
    )


def test_text_for_people_keeps_out_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    Screen("json").say("deleted")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "deleted\n")


def test_a_plug_ins_result_is_resolved_by_asking() -> None:
    file = descriptor_pb2.FileDescriptorProto(name="plug.proto", package="plug.v1", syntax="proto3")
    field = file.message_type.add(name="Energy").field.add(name="joules", number=1, label=1, type=5)
    assert field.number == 1
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    energy = message_factory.GetMessageClass(pool.FindMessageTypeByName("plug.v1.Energy"))(joules=7)
    job = job_pb2.Job(name="jobs/1")
    job.result.type_url, job.result.value = "type.googleapis.com/plug.v1.Energy", energy.SerializeToString()
    asked: list[str] = []

    def find(*names: str) -> descriptor_pool.DescriptorPool:
        asked.extend(names)
        return pool

    assert Screen("json", find).to_json(job)["result"] == {"@type": "type.googleapis.com/plug.v1.Energy", "joules": 7}
    assert "plug.v1.Energy" in asked


def test_a_result_that_nobody_knows_is_shown_as_bytes() -> None:
    job = job_pb2.Job()
    job.result.type_url, job.result.value = "type.googleapis.com/gone.v1.Thing", b"\x08\x01"
    shown = Screen("json", lambda *_names: descriptor_pool.DescriptorPool()).to_json(job)
    assert shown["result"] == {"@type": "type.googleapis.com/gone.v1.Thing", "value": "CAE="}


def test_progress_tells_amount_share_and_what_else_matters() -> None:
    job = job_pb2.Job(state=job_pb2.JOB_STATE_RUNNING, attempt_count=2)
    job.progress.done, job.progress.unit, job.progress.message = 6.0, "seconds", "output a"
    assert amount(job.progress) == "6 seconds"
    job.progress.total = 24.0
    job.progress.eta.seconds = 65
    assert amount(job.progress) == "6 / 24 seconds 25%"
    assert note(job) == "output a, 1:05 left, attempt 2"
    job.error.message = "broken\nat line 3"
    assert note(job).startswith("broken, ")

"""The REST front before a gateway of our own making: what it passes on, and what it makes of answers that a real one rarely gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from onecontainer.api.job.v1 import job_pb2, job_service_pb2
from tests.fixtures.processes import free_port, running
from tests.fixtures.rest import RestProcess, in_front_of, problem

UNKNOWN = "type.googleapis.com/nobody.knows.This"


class Jobs(grpc.GenericRpcHandler):
    """JobService with what a test has put into it; keeps the metadata of the last call. And a PredictStream that answers nothing."""

    def __init__(self) -> None:
        self.answer = job_pb2.Job()
        self.error: status_pb2.Status | None = None
        self.asked: dict[str, Any] = {}
        self.request: Any = None

    def service(self, details: Any) -> Any:
        if details.method == "/onecontainer.api.job.v1.JobService/GetJob":
            kind = job_service_pb2.GetJobRequest
        elif details.method == "/onecontainer.api.job.v1.JobService/CreateJob":
            kind = job_service_pb2.CreateJobRequest
        elif details.method == "/onecontainer.api.ai.v1.InferenceService/PredictStream":
            # Answers nothing before it has heard all.
            return grpc.stream_stream_rpc_method_handler(lambda requests, _context: (one for one in requests if False))
        else:
            return None  # no reflection: types stay unknown
        return grpc.unary_unary_rpc_method_handler(
            self._get, request_deserializer=kind.FromString, response_serializer=job_pb2.Job.SerializeToString
        )

    def _get(self, request: Any, context: Any) -> job_pb2.Job:
        self.asked = dict(context.invocation_metadata())
        self.request = request
        context.send_initial_metadata((("traceparent", "00-back"), ("x-internal", "hidden")))
        if self.error is not None:
            context.set_trailing_metadata((("grpc-status-details-bin", self.error.SerializeToString()),))
            code = next(one for one in grpc.StatusCode if one.value[0] == self.error.code)
            context.abort(code, self.error.message)
        return self.answer


@pytest.fixture(scope="module")
def address() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def both(address: str) -> Iterator[tuple[Jobs, RestProcess]]:
    jobs = Jobs()
    with in_front_of(jobs, address=address) as rest:
        yield jobs, rest


@pytest.fixture
def jobs(both: tuple[Jobs, RestProcess]) -> Jobs:
    both[0].error, both[0].answer = None, job_pb2.Job(name="jobs/x")
    return both[0]


@pytest.fixture
def rest(both: tuple[Jobs, RestProcess]) -> RestProcess:
    return both[1]


def test_headers_are_passed_on_both_ways(jobs: Jobs, rest: RestProcess) -> None:
    sent = {
        "Authorization": "Bearer t",
        "traceparent": "00-there",
        "tracestate": "a=b",
        "Onecontainer-Service": "services/s",
        "Grpc-Metadata-Secret": "smuggled",
        "X-Other": "1",
    }
    answer = rest("GET", "/v1/jobs/x", headers=sent)
    assert jobs.asked["authorization"] == "Bearer t"
    assert jobs.asked["traceparent"] == "00-there"
    assert jobs.asked["tracestate"] == "a=b"
    assert jobs.asked["onecontainer-service"] == "services/s"
    assert not {"secret", "x-other"} & set(jobs.asked)
    assert answer.headers["traceparent"] == "00-back"
    assert not [name for name in answer.headers if "internal" in name.lower()]


def test_a_front_of_strangers_says_so_in_every_call(jobs: Jobs, rest: RestProcess, address: str) -> None:
    rest("GET", "/v1/jobs/x")
    assert "onecontainer-strangers" not in jobs.asked
    with running(RestProcess(address, "--behind-proxy")) as front:
        assert isinstance(front, RestProcess)
        front("GET", "/v1/jobs/x", headers={"Authorization": "Bearer t"})
    assert jobs.asked["onecontainer-strangers"] == "true"


def test_what_is_too_large_for_grpc_is_a_large_body(jobs: Jobs, rest: RestProcess) -> None:
    jobs.error = status_pb2.Status(code=8, message="SERVER: Received message larger than max (9 vs. 8)")
    assert "artifact" in problem(rest("GET", "/v1/jobs/x"), 413, "BODY_TOO_LARGE")["detail"]


def test_what_the_caller_is_told_is_not_in_the_log(jobs: Jobs, rest: RestProcess) -> None:
    problem(rest("POST", "/v1/services/s/ai:predictStream", data='{"x": 1}'), 400, "BODY_INVALID")
    assert not [line for line in rest.lines if "decode" in line]


def test_an_any_of_a_type_that_nobody_knows_is_its_bytes(jobs: Jobs, rest: RestProcess) -> None:
    jobs.answer.result.CopyFrom(any_pb2.Any(type_url=UNKNOWN, value=b"\x01\xff"))
    assert rest("GET", "/v1/jobs/x").json()["result"] == {"@type": UNKNOWN, "value": "Af8="}
    # Within an Any that is known.
    jobs.answer.result.Pack(job_pb2.Job(name="jobs/y", result=any_pb2.Any(type_url=UNKNOWN, value=b"\x02")))
    shown = rest("GET", "/v1/jobs/x").json()["result"]
    assert shown["name"] == "jobs/y"
    assert shown["result"] == {"@type": UNKNOWN, "value": "Ag=="}
    # Of a known type, but with bytes that are none of it.
    jobs.answer.result.CopyFrom(any_pb2.Any(type_url="type.googleapis.com/onecontainer.api.job.v1.Job", value=b"\xff"))
    assert rest("GET", "/v1/jobs/x").json()["result"]["value"] == "/w=="
    jobs.answer.result.CopyFrom(any_pb2.Any(value=b"\x03"))
    assert rest("GET", "/v1/jobs/x").json()["result"]["value"] == "Aw=="


def test_such_an_any_is_taken_as_it_is_given(jobs: Jobs, rest: RestProcess) -> None:
    sent = {"service": "services/s", "method": "a.B/C", "request": {"@type": UNKNOWN, "value": "Af8="}}
    assert rest("POST", "/v1/jobs", json=sent).status_code == 200
    assert jobs.request.request == any_pb2.Any(type_url=UNKNOWN, value=b"\x01\xff")
    sent["request"] = {"@type": UNKNOWN, "name": "x"}
    problem(rest("POST", "/v1/jobs", json=sent), 400, "BODY_INVALID")


STATUSES = {
    1: 499, 2: 500, 3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 9: 409, 10: 409, 11: 400, 12: 501, 13: 500, 14: 503, 15: 500, 16: 401,
}  # fmt: skip


@pytest.mark.parametrize(("code", "http_status"), STATUSES.items())
def test_each_code_has_its_status(jobs: Jobs, rest: RestProcess, code: int, http_status: int) -> None:
    jobs.error = status_pb2.Status(code=code, message="why")
    jobs.error.details.add().Pack(error_details_pb2.ErrorInfo(reason="A_REASON", domain="d"))
    told = problem(rest("GET", "/v1/jobs/x"), http_status, "A_REASON")
    assert told["domain"] == "d"
    assert told["title"] == "A reason"
    assert told["detail"] == "why"
    # Also where gRPC itself has made the status, without details. CANCELLED is then how its server ends calls while it stops.
    if code == 1:
        http_status, told["code"] = 503, "UNAVAILABLE"
    jobs.error = status_pb2.Status(code=code, message="bare")
    bare = rest("GET", "/v1/jobs/x")
    assert bare.status_code == http_status
    assert bare.json()["domain"] == "rest.onecontainer.dev"
    assert bare.json()["code"] == told["code"]


def test_when_to_try_again_is_a_header_too(jobs: Jobs, rest: RestProcess) -> None:
    jobs.error = status_pb2.Status(code=14, message="busy")
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(1500)
    jobs.error.details.add().Pack(error_details_pb2.ErrorInfo(reason="DRIVER_UNREACHABLE", domain="onecontainer.dev"))
    jobs.error.details.add().Pack(retry)
    answer = rest("GET", "/v1/jobs/x")
    assert problem(answer, 503, "DRIVER_UNREACHABLE")["retryAfter"] == 1.5
    assert answer.headers["retry-after"] == "2"

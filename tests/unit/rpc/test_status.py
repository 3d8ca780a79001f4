"""Typed errors to `google.rpc.Status` and back."""

from __future__ import annotations

import re

import pytest
from google.protobuf import any_pb2, wrappers_pb2
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from onecontainer import errors
from onecontainer.api.error.v1 import reason_pb2
from onecontainer.errors import BY_REASON, Code, FieldInvalid, FieldViolation, OneContainerError, Reason
from onecontainer.rpc import status
from onecontainer.rpc.status import MAX_JOB_STATUS_BYTES, MAX_STATUS_BYTES, bounded, from_status, to_status
from tests.fixtures.protos import comments_of

CLASSES = sorted(BY_REASON.values(), key=lambda cls: cls.__name__)


def make(cls: type[OneContainerError]) -> OneContainerError:
    error = cls.__new__(cls)
    OneContainerError.__init__(
        error,
        "what happened, and what to do",
        metadata={"service": "services/s", "job": "jobs/j"},
        violations=[FieldViolation("a.b[0]", "is odd"), FieldViolation("c", "is even")],
        retry_after=1.5,
        resource=("onecontainer.dev/Job", "jobs/j"),
        hop="backend",
    )
    return error


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_class_comes_back_as_it_was(cls: type[OneContainerError]) -> None:
    error = make(cls)
    back = from_status(to_status(error))
    assert type(back) is cls
    assert (back.code, back.message, back.hop) == (error.code, error.message, "backend")
    assert back.metadata.items() >= error.metadata.items()
    assert back.metadata.get("legacy_code") == (str(cls.legacy_code) if cls.legacy_code else None)
    assert (back.violations, back.retry_after, back.resource) == (error.violations, 1.5, error.resource)
    assert to_status(back) == to_status(error)


def test_texts_that_protobuf_cannot_hold_are_written_as_their_escapes() -> None:
    """Python's names of files that are not UTF-8 have lone surrogates, and drivers' errors have names of files."""
    bad, good = "a\udc80b", "a\\udc80b"
    error = errors.DataInvalid(
        message=bad,
        metadata={bad: bad},
        violations=[FieldViolation(bad, bad)],
        resource=(bad, bad),
        hop=bad,
    )
    back = from_status(to_status(error, metadata={"file": bad}))
    assert (type(back), back.message, back.hop) == (errors.DataInvalid, good, good)
    assert (back.violations, back.resource) == ((FieldViolation(good, good),), (good, good))
    assert back.metadata.items() >= {good: good, "file": good}.items()


def test_the_backends_own_code_is_kept() -> None:
    error = errors.BackendExecutionFailed("no", code=Code.NOT_FOUND)
    assert from_status(to_status(error)).code is Code.NOT_FOUND


def test_there_is_a_class_for_every_reason_of_the_contract() -> None:
    names = {name.removeprefix("REASON_") for name, _ in reason_pb2.Reason.items()} - {"UNSPECIFIED"}
    assert names == set(Reason.__members__)
    assert set(BY_REASON) == set(Reason)


@pytest.mark.parametrize("reason", list(Reason))
def test_each_class_has_the_code_and_the_old_number_of_the_contract(reason: Reason) -> None:
    comment = comments_of("error/v1/reason.proto")[f"REASON_{reason.name}"]
    cls = BY_REASON[reason]
    named = re.findall(rf"\b({'|'.join(Code.__members__)})\b", comment)
    if reason is Reason.BACKEND_EXECUTION_FAILED:
        assert "code is mapped" in comment
    elif reason is Reason.QUEUE_JOB_FAILED:
        assert named == [], "only in Job.error, and with the attempt's own code"
    else:
        assert named[0] == cls.default_code.name
    old = re.search(r"\[(\d+)\]", comment)
    if old is not None:
        assert cls.legacy_code == int(old[1])
    else:
        assert cls.legacy_code is None or cls is errors.EtagMismatch


def test_an_unforeseen_error_is_internal_and_keeps_its_text_to_itself(caplog: pytest.LogCaptureFixture) -> None:
    back = from_status(to_status(ValueError("password=hunter2")))
    assert back.reason is Reason.INTERNAL
    assert "hunter2" not in back.message
    reference = back.metadata["log_reference"]
    assert reference in back.message
    assert reference in caplog.text


def test_facts_of_the_error_win_over_those_of_the_translator() -> None:
    error = errors.StateInvalid("no", metadata={"job": "jobs/1"})
    back = from_status(to_status(error, hop="sidecar", metadata={"job": "jobs/2", "driver": "d"}))
    assert back.metadata == {"job": "jobs/1", "driver": "d", "hop": "sidecar"}


# --- bounds -----------------------------------------------------------------------------------------------------------------

text = st.text(max_size=4000)


@given(
    message=text,
    metadata=st.dictionaries(st.text(min_size=1, max_size=700), text, max_size=30),
    violations=st.lists(st.builds(FieldViolation, text, text), max_size=60),
    resource=st.none() | st.tuples(text, text),
    retry_after=st.none() | st.floats(allow_nan=False),
)
def test_a_status_is_bounded_and_never_without_its_reason(
    message: str,
    metadata: dict[str, str],
    violations: list[FieldViolation],
    resource: tuple[str, str] | None,
    retry_after: float | None,
) -> None:
    error = FieldInvalid(
        message=message, metadata=metadata, violations=violations, resource=resource, retry_after=retry_after
    )
    made = to_status(error)
    assert made.ByteSize() <= MAX_STATUS_BYTES
    back = from_status(made)
    assert type(back) is FieldInvalid
    assert back.violations, "at least how many there are is told"


def test_what_is_left_out_is_said() -> None:
    error = FieldInvalid(violations=[FieldViolation(f"items[{n}].name", "x" * 100) for n in range(500)])
    back = from_status(to_status(error))
    *kept, rest = back.violations
    assert kept == list(error.violations[: len(kept)])
    assert rest.description == f"and {500 - len(kept)} more"


def test_a_foreign_status_is_bounded_too() -> None:
    big = status_pb2.Status(code=13, message="m" * 100_000)
    big.details.add().Pack(error_details_pb2.DebugInfo(detail="d" * 100_000))
    big.details.append(any_pb2.Any(type_url="type.googleapis.com/google.rpc.BadRequest", value=b"\xff" * 9000))
    big.details.add().Pack(error_details_pb2.RetryInfo())
    small = bounded(big)
    assert small.ByteSize() <= MAX_STATUS_BYTES
    assert small.message.startswith("mmm")
    assert [detail.type_url.rpartition(".")[2] for detail in small.details] == ["RetryInfo"]


def test_a_message_of_the_methods_own_goes_with_an_error_as_far_as_there_is_room() -> None:
    error = FieldInvalid("a", "is wrong").with_details(wrappers_pb2.StringValue(value="x" * 10_000))
    job = to_status(error, most=MAX_JOB_STATUS_BYTES)
    back = from_status(job)
    assert back.detail(wrappers_pb2.StringValue) == wrappers_pb2.StringValue(value="x" * 10_000)
    assert to_status(back, most=MAX_JOB_STATUS_BYTES).ByteSize() == job.ByteSize(), "once more through a process"
    call = from_status(to_status(error))
    assert (call.detail(wrappers_pb2.StringValue), call.violations) == (None, error.violations), "a trailer is small"
    large = FieldInvalid("a", "is wrong").with_details(wrappers_pb2.StringValue(value="x" * MAX_JOB_STATUS_BYTES))
    small = from_status(to_status(large, most=MAX_JOB_STATUS_BYTES))
    assert (small.details, small.violations) == ((), error.violations)


def test_in_brief_there_is_nothing_of_the_methods_own() -> None:
    error = FieldInvalid("a", "is wrong", retry_after=2.0).with_details(wrappers_pb2.Int64Value(value=3))
    back = from_status(status.brief(to_status(error)))
    assert (back.detail(wrappers_pb2.Int64Value), back.violations, back.retry_after) == (None, error.violations, 2.0)


def test_a_detail_that_does_not_decode_or_is_another_one_is_none() -> None:
    broken = any_pb2.Any(type_url="type.googleapis.com/google.protobuf.StringValue", value=b"\xff\xff")
    error = FieldInvalid("a").with_details(broken, wrappers_pb2.Int64Value(value=3))
    assert error.detail(wrappers_pb2.StringValue) is None
    assert error.detail(wrappers_pb2.Int64Value) == wrappers_pb2.Int64Value(value=3)


def test_only_artifacts_are_kept() -> None:
    with pytest.raises(TypeError):
        FieldInvalid("a").with_details(kept_artifacts=["/etc/passwd"])


# --- what others send -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [*range(17), 17, 99, -3])
def test_a_status_without_our_info_gets_a_class_that_fits_its_code(code: int) -> None:
    error = from_status(status_pb2.Status(code=code, message="theirs"))
    assert error.code == (code if 0 <= code <= 16 else Code.UNKNOWN)
    assert error.message == "theirs"


def test_details_that_do_not_decode_are_passed_over() -> None:
    broken = status_pb2.Status(code=5, message="gone")
    broken.details.append(any_pb2.Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff"))
    assert from_status(broken).code is Code.NOT_FOUND


def test_a_reason_of_another_domain_is_not_ours() -> None:
    theirs = status_pb2.Status(code=9, message="no")
    theirs.details.add().Pack(error_details_pb2.ErrorInfo(reason="DRAINING", domain="example.com"))
    assert from_status(theirs).reason is Reason.STATE_INVALID


def test_trailers_that_are_no_status_are_none() -> None:
    assert status.details_of([("other", b"x")]) is None
    assert status.details_of([(status.STATUS_DETAILS_KEY, b"\xff\xff\xff")]) is None

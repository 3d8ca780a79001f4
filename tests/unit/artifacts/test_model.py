from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onecontainer.artifacts.model import Attempt, Upload, artifact_id, check_bytes, check_upload
from onecontainer.errors import DataInvalid, FieldInvalid, FieldRequired


@pytest.mark.parametrize(
    ("upload", "field"),
    [
        (Upload(filename="a/b"), "header.filename"),
        (Upload(filename=".."), "header.filename"),
        (Upload(filename="a\nb"), "header.filename"),
        (Upload(filename="a\x00"), "header.filename"),
        (Upload(filename="x" * 256), "header.filename"),
        (Upload(media_type="png"), "header.media_type"),
        (Upload(media_type="image/png\r\nX: y"), "header.media_type"),
        (Upload(size_bytes=-1), "header.size_bytes"),
        (Upload(sha256=b"x"), "header.sha256"),
        (Upload(ttl=-1), "header.ttl"),
        (Upload(request_id="x" * 129), "header.request_id"),
        (Upload(request_id="a\0b"), "header.request_id"),
        (Upload(media_type="image/png\0"), "header.media_type"),
        (Upload(labels={"team": "\0"}), "header.labels['team']"),
        (Upload(attempt=Attempt("jobs/\0", 1, 1)), "header.attempt.job"),
        (Upload(labels={"Team": "x"}), "header.labels['Team']"),
        (Upload(labels={"team": "x" * 257}), "header.labels['team']"),
        (Upload(labels={f"k{n}": "" for n in range(33)}), "header.labels"),
        (Upload(attempt=Attempt("job", 1, 1)), "header.attempt.job"),
        (Upload(attempt=Attempt("jobs/x", 0, 1)), "header.attempt.attempt"),
    ],
)
def test_wrong_header(upload: Upload, field: str) -> None:
    with pytest.raises(FieldInvalid) as caught:
        check_upload(upload)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_right_headers() -> None:
    check_upload(Upload())
    check_upload(
        Upload("Käse & Brot.tar.gz", 'text/plain; charset="utf-8"', 0, b"x" * 32, {"a.b-c_d": ""}, 1, "r" * 128)
    )


def test_all_violations_at_once() -> None:
    with pytest.raises(FieldInvalid) as caught:
        check_upload(Upload(filename="/", ttl=-1))
    assert [violation.field for violation in caught.value.violations] == ["header.filename", "header.ttl"]


@pytest.mark.parametrize(
    ("filename", "media_type", "effective"),
    [
        ("cat.png", "", "image/png"),
        ("cat.png", "image/x-other", "image/x-other"),
        ("cat.tar.gz", "", "application/octet-stream"),
        ("cat", "", "application/octet-stream"),
        ("", "", "application/octet-stream"),
    ],
)
def test_media_type(filename: str, media_type: str, effective: str) -> None:
    assert Upload(filename, media_type).effective_media_type == effective


def test_bytes_are_checked() -> None:
    check_bytes(Upload(), 3, b"x" * 32)
    check_bytes(Upload(size_bytes=3, sha256=b"x" * 32), 3, b"x" * 32)
    with pytest.raises(DataInvalid, match="size_bytes"):
        check_bytes(Upload(size_bytes=0), 3, b"x" * 32)
    with pytest.raises(DataInvalid, match="sha256"):
        check_bytes(Upload(sha256=b"y" * 32), 3, b"x" * 32)


def test_artifact_id() -> None:
    assert artifact_id("artifacts/" + "a" * 32) == "a" * 32
    with pytest.raises(FieldRequired):
        artifact_id("")
    for wrong in [
        "a" * 32,
        "artifacts/x",
        "artifacts/../" + "a" * 29,
        "jobs/" + "a" * 32,
        "artifacts/" + "a" * 32 + "\n",
    ]:
        with pytest.raises(FieldInvalid):
            artifact_id(wrong)


@given(st.text(), st.text(), st.text(min_size=1), st.text(min_size=1))
def test_a_request_id_is_unique_within_its_principal(one: str, other: str, first: str, second: str) -> None:
    same = (one, first) == (other, second)
    assert (Upload(request_id=first).request_key(one) == Upload(request_id=second).request_key(other)) is same
    assert Upload(request_id=first).request_key(one) != Upload(
        request_id=first, attempt=Attempt("jobs/x", 1, 1)
    ).request_key(one)

"""Raw bytes by REST: artifacts go up and come down as files."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
from pathlib import Path

import pytest

from tests.fixtures.rest import RestProcess, problem

CONTENT = bytes(range(256)) * 10_000
"""2.5 MB: more than two messages of the stream behind it."""


@pytest.fixture(scope="module")
def stored(rest: RestProcess) -> str:
    """The path of an artifact with CONTENT."""
    answer = rest("POST", "/v1/artifacts?filename=all.bin&ttl=600s", data=CONTENT)
    assert answer.status_code == 201, answer.text
    return answer.headers["location"]


def test_bytes_come_back_as_they_were(rest: RestProcess, stored: str) -> None:
    told = rest("GET", stored).json()
    digest = hashlib.sha256(CONTENT).digest()
    assert told["filename"] == "all.bin"
    assert told["sizeBytes"] == str(len(CONTENT))
    assert told["sha256"] == base64.b64encode(digest).decode()
    assert "expireTime" in told
    answer = rest("GET", f"{stored}:download")
    # Not a byte between the chunks of the stream behind it.
    assert answer.content == CONTENT
    assert answer.headers["content-length"] == str(len(CONTENT))
    assert answer.headers["etag"] == f'"{digest.hex()}"'
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-disposition"] == "attachment; filename=all.bin"
    assert answer.headers["x-content-type-options"] == "nosniff"
    head = rest("HEAD", f"{stored}:download")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(CONTENT))


@pytest.mark.parametrize(
    ("asked", "begin", "end"),
    [
        ("bytes=0-9", 0, 10),
        ("bytes=1048570-1048590", 1048570, 1048591),
        (f"bytes={len(CONTENT) - 5}-", len(CONTENT) - 5, len(CONTENT)),
        ("bytes=-7", len(CONTENT) - 7, len(CONTENT)),
        ("bytes=2000000-9999999999", 2000000, len(CONTENT)),
    ],
)
def test_a_part_is_what_was_asked_for(rest: RestProcess, stored: str, asked: str, begin: int, end: int) -> None:
    answer = rest("GET", f"{stored}:download", headers={"Range": asked})
    assert answer.status_code == 206
    assert answer.headers["content-range"] == f"bytes {begin}-{end - 1}/{len(CONTENT)}"
    assert answer.content == CONTENT[begin:end]


def test_several_parts_come_as_one_body(rest: RestProcess, stored: str) -> None:
    answer = rest("GET", f"{stored}:download", headers={"Range": "bytes=0-3,1500000-1500003"})
    assert answer.status_code == 206
    assert answer.headers["content-type"].startswith("multipart/byteranges")
    assert CONTENT[:4] in answer.content
    assert CONTENT[1500000:1500004] in answer.content


def test_conditions_are_kept(rest: RestProcess, stored: str) -> None:
    path = f"{stored}:download"
    etag = rest("HEAD", path).headers["etag"]
    assert rest("GET", path, headers={"If-None-Match": etag}).status_code == 304
    assert rest("GET", path, headers={"Range": "bytes=0-1", "If-Range": etag}).status_code == 206
    assert rest("GET", path, headers={"Range": "bytes=0-1", "If-Range": '"other"'}).status_code == 200
    problem(rest("GET", path, headers={"If-Match": '"other"'}), 412, "PRECONDITION_FAILED")
    beyond = rest("GET", path, headers={"Range": "bytes=99999999-"})
    problem(beyond, 416, "RANGE_NOT_SATISFIABLE")
    assert beyond.headers["content-range"] == f"bytes */{len(CONTENT)}"
    for nonsense in ("bytes=abc", "bytes=5-2"):
        refused = rest("GET", path, headers={"Range": nonsense})
        problem(refused, 416, "RANGE_NOT_SATISFIABLE")
        assert refused.headers["content-range"] == f"bytes */{len(CONTENT)}"
    problem(rest("GET", f"{path}?offset=3"), 400, "QUERY_INVALID")
    problem(rest("GET", f"/v1/artifacts/{32 * '0'}:download"), 404, "RESOURCE_NOT_FOUND")


def test_the_stream_of_messages_is_there_too(rest: RestProcess, stored: str) -> None:
    answer = rest("GET", f"{stored}:download?offset=5&limitBytes=3", headers={"Accept": "application/x-ndjson"})
    parts = [json.loads(line)["result"] for line in answer.text.splitlines()]
    assert b"".join(base64.b64decode(part.get("data", "")) for part in parts) == CONTENT[5:8]


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_an_empty_file_is_a_file(rest: RestProcess, method: str) -> None:
    stored = rest(method, "/v1/artifacts?filename=empty.txt", data=b"")
    assert stored.status_code == 201, stored.text
    assert rest("GET", f"{stored.headers['location']}:download").content == b""


def test_a_form_brings_a_file(rest: RestProcess) -> None:
    fields = [("labels[kind]", (None, "sound")), ("file", ("tone.wav", b"RIFF", "audio/wav"))]
    stored = rest("POST", "/v1/artifacts", files=fields)
    assert stored.status_code == 201, stored.text
    told = stored.json()
    assert (told["filename"], told["mediaType"], told["labels"]) == ("tone.wav", "audio/wav", {"kind": "sound"})
    problem(rest("POST", "/v1/artifacts", files={"filename": (None, "x")}), 400, "BODY_INVALID")
    two = [("file", ("a", b"1")), ("file", ("b", b"2"))]
    problem(rest("POST", "/v1/artifacts", files=two), 400, "BODY_INVALID")


def test_json_and_what_curl_says_are_bytes_like_others(rest: RestProcess) -> None:
    for kind, stored_as in (
        ("application/json", "application/json"),
        ("application/x-www-form-urlencoded", "text/plain"),
    ):
        path = "/v1/artifacts?filename=note.txt"
        answer = rest("POST", path, data=b'{"a": 1}', headers={"Content-Type": kind})
        assert answer.json()["mediaType"] == stored_as
        assert rest("GET", f"{answer.headers['location']}:download").content == b'{"a": 1}'


def test_what_is_checked_is_checked(rest: RestProcess) -> None:
    wrong = base64.b64encode(bytes(32)).decode()
    problem(rest("POST", "/v1/artifacts", params={"sha256": wrong}, data=b"x"), 400, "DATA_INVALID")
    problem(rest("POST", "/v1/artifacts?filename=a/b", data=b"x"), 400, "FIELD_INVALID")
    problem(rest("POST", "/v1/artifacts?file=a", data=b"x"), 400, "QUERY_INVALID")
    problem(rest("POST", "/v1/artifacts?attempt.job=jobs/x", data=b"x"), 400, "QUERY_INVALID")
    key = {"Idempotency-Key": "once"}
    names = {rest("POST", "/v1/artifacts", data=b"same", headers=key).json()["name"] for _ in range(2)}
    assert len(names) == 1
    problem(rest("POST", "/v1/artifacts", data=b"other", headers=key), 409, "REQUEST_ID_REUSED")


def test_an_upload_that_breaks_off_leaves_nothing(rest: RestProcess) -> None:
    host = rest.url.removeprefix("http://")
    connection = http.client.HTTPConnection(host)
    connection.putrequest("POST", "/v1/artifacts?filename=broken.bin")
    connection.putheader("Content-Length", "10000000")
    connection.endheaders(b"x" * 3_000_000)
    connection.close()
    assert rest("GET", "/v1/artifacts", params={"filter": 'filename = "broken.bin"'}).json() == {}


def test_it_is_not_held_in_memory(rest: RestProcess, tmp_path: Path) -> None:
    size = 192 * 1024 * 1024
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(size)
    before = most_memory(rest.pid)
    with large.open("rb") as file:
        stored = rest("PUT", "/v1/artifacts?filename=large", data=file)
    assert stored.json()["sizeBytes"] == str(size)
    got = 0
    with rest("GET", f"{stored.headers['location']}:download", stream=True) as answer:
        for part in answer.iter_content(1024 * 1024):
            got += len(part)
    assert got == size
    assert most_memory(rest.pid) - before < size / 2
    assert rest("DELETE", stored.headers["location"]).json() == {}


def most_memory(pid: int) -> int:
    """The most memory that a process has had, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024

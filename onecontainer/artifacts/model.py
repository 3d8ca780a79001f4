"""What an artifact is, and what has to be true of one. Pure: no clock, no database, no wire.

Times are microseconds since 1970-01-01 UTC.
"""

from __future__ import annotations

import hashlib
import json
import mimetypes
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from onecontainer.errors import DataInvalid, FieldInvalid, FieldRequired, FieldViolation
from onecontainer.rpc.labels import label_violations, request_id_violations
from onecontainer.rpc.texts import control_problem

COLLECTION = "artifacts/"
CHUNK_BYTES = 1024 * 1024
"""Bytes of a Download message, and of a write to the store."""
MAX_PART_BYTES = 4 * 1024 * 1024
"""Most bytes of an Upload message."""
DEFAULT_MEDIA_TYPE = "application/octet-stream"
MAX_FILENAME = 255
SHA256_BYTES = 32

_ID = re.compile(r"[0-9a-f]{32}")
# RFC 9110: type/subtype, then parameters.
_MEDIA_TYPE = re.compile(
    r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+"
    r"(?:\s*;\s*[!#$%&'*+.^_`|~0-9A-Za-z-]+=(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+|\"[ !#-\[\]-~]*\"))*"
)


class State(StrEnum):
    """Where an artifact stands; named as in `ArtifactState`, without its prefix."""

    STAGED = "STAGED"
    """Uploaded by an attempt whose outcome is not accepted yet."""
    READY = "READY"


@dataclass(frozen=True, slots=True)
class Attempt:
    """The attempt that makes an artifact. `job` is `jobs/{job}`."""

    job: str
    attempt: int
    fence: int


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact as it is recorded."""

    id: str
    filename: str
    media_type: str
    size_bytes: int
    sha256: bytes
    state: State
    labels: Mapping[str, str]
    principal: str
    attempt: Attempt | None
    create_time: int
    expire_time: int | None

    @property
    def name(self) -> str:
        return COLLECTION + self.id

    def expired(self, now: int) -> bool:
        return self.expire_time is not None and self.expire_time <= now


@dataclass(frozen=True, slots=True)
class Upload:
    """What is known of an upload before its bytes.

    Attributes:
        size_bytes: announced length; None: not known.
        sha256: announced digest, 32 bytes; empty: not known.
        ttl: microseconds from the upload's end until it goes; 0: it stays. Without effect on an attempt's artifacts.
    """

    filename: str = ""
    media_type: str = ""
    size_bytes: int | None = None
    sha256: bytes = b""
    labels: Mapping[str, str] = field(default_factory=dict)
    ttl: int = 0
    request_id: str = ""
    attempt: Attempt | None = None

    @property
    def effective_media_type(self) -> str:
        """The media type given, else what the file name tells, else `application/octet-stream`."""
        if self.media_type:
            return self.media_type
        # `strict` tables only: they do not depend on what is installed. An encoding (.gz) makes it opaque bytes.
        guessed, encoding = mimetypes.guess_type(self.filename)
        return guessed if guessed and not encoding else DEFAULT_MEDIA_TYPE

    def request_key(self, principal: str) -> str | None:
        """What a `request_id` is unique within: the principal, and the very attempt. None without a request_id."""
        if not self.request_id:
            return None
        attempt = self.attempt
        scope = [attempt.job, attempt.fence] if attempt else []
        return hashlib.sha256(json.dumps([principal, self.request_id, *scope]).encode()).hexdigest()

    def request_hash(self, sha256: bytes) -> str:
        """What must be equal in a replay: the bytes and all that is said of them."""
        said = [self.filename, self.effective_media_type, sorted(self.labels.items()), self.ttl, sha256.hex()]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def check_upload(upload: Upload) -> None:
    """Raises FieldInvalid with every violation, by paths below `header`."""
    found: list[FieldViolation] = []

    def wrong(path: str, text: str) -> None:
        found.append(FieldViolation(f"header.{path}", text))

    if problem := _filename_problem(upload.filename):
        wrong("filename", problem)
    if upload.media_type and not (len(upload.media_type) <= 255 and _MEDIA_TYPE.fullmatch(upload.media_type)):
        wrong("media_type", "is not a media type such as image/png")
    if upload.size_bytes is not None and upload.size_bytes < 0:
        wrong("size_bytes", "must not be negative")
    if upload.sha256 and len(upload.sha256) != SHA256_BYTES:
        wrong("sha256", f"has {len(upload.sha256)} bytes; a SHA-256 has {SHA256_BYTES}")
    if upload.ttl < 0:
        wrong("ttl", "must not be negative")
    found.extend(request_id_violations(upload.request_id, "header.request_id"))
    found.extend(label_violations(upload.labels, "header.labels"))
    if upload.attempt is not None:
        if not upload.attempt.job.startswith("jobs/") or control_problem(upload.attempt.job):
            wrong("attempt.job", "is not jobs/{job}")
        if upload.attempt.attempt < 1:
            wrong("attempt.attempt", "must be 1 or more")
    if found:
        raise FieldInvalid(violations=found)


def _filename_problem(filename: str) -> str:
    if len(filename) > MAX_FILENAME:
        return f"has more than {MAX_FILENAME} characters"
    if "/" in filename or filename in {".", ".."}:
        return "must be a name without folders"
    # Cc are control characters; a lone surrogate (Cs) cannot be written anywhere.
    if any(unicodedata.category(character) in {"Cc", "Cs"} for character in filename):
        return "has control characters"
    return ""


def check_bytes(upload: Upload, size_bytes: int, sha256: bytes) -> None:
    """Raises DataInvalid if the bytes are not what the header announced."""
    if upload.size_bytes is not None and size_bytes != upload.size_bytes:
        raise DataInvalid("header.size_bytes", f"announced {upload.size_bytes} bytes, but {size_bytes} came")
    if upload.sha256 and sha256 != upload.sha256:
        raise DataInvalid("header.sha256", f"announced {upload.sha256.hex()}, but the bytes have {sha256.hex()}")


def artifact_id(name: str) -> str:
    """The id in `artifacts/{artifact}`. Raises FieldRequired or FieldInvalid, of the field `name`."""
    if not name:
        raise FieldRequired("name")
    found = name.removeprefix(COLLECTION)
    if found == name or not _ID.fullmatch(found):
        raise FieldInvalid("name", "is not artifacts/{artifact}, with the 32 hexadecimal digits that Upload gave it")
    return found


def is_artifact_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None

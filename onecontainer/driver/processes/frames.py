"""What a sidecar and its children say to each other on a socket pair: frames of a kind, a few facts and bytes.

Requests, results, progress and errors go as the protobuf messages that they are on the wire elsewhere; no Python object crosses.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

_HEAD = struct.Struct(">BIQ")
READ_AHEAD_BYTES = 1024 * 1024


class Kind(IntEnum):
    """In brackets the message in `data`."""

    # To the child.
    ATTACH = 1
    """Become this driver, and attach; the first frame. Facts: a Recipe."""
    RUN = 2
    """Run a handler [job.v1.Grant]. Facts: what a grant does not have."""
    FINISH = 3
    """End early."""
    RECORDED = 4
    """The answer to STARTED [google.rpc.Status, empty if it is recorded]."""
    # From the child.
    READY = 11
    """It is attached."""
    PROGRESS = 12
    """[type.v1.Progress]"""
    CHECKPOINT = 13
    """[google.protobuf.Any]"""
    STARTED = 14
    """[job.v1.Started]"""
    DONE = 15
    """The handler's result [the method's result]. Facts: `reusable`."""
    FAILED = 16
    """The handler's error, or that of attaching [google.rpc.Status]. Facts: `reusable`, `kept_artifacts`."""


@dataclass(frozen=True, slots=True)
class Frame:
    kind: Kind
    data: bytes = field(default=b"", repr=False)
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)


def send(writer: asyncio.StreamWriter, frame: Frame) -> None:
    """Hands a frame to the socket; it is on its way when the loop turns."""
    facts = json.dumps(frame.facts).encode() if frame.facts else b""
    writer.write(_HEAD.pack(frame.kind, len(facts), len(frame.data)) + facts)
    if frame.data:
        writer.write(frame.data)


async def receive(reader: asyncio.StreamReader) -> Frame | None:
    """The next frame; None at the end, also one that comes in the middle of a frame: then the other side has died."""
    try:
        kind, facts_size, data_size = _HEAD.unpack(await reader.readexactly(_HEAD.size))
        facts = await reader.readexactly(facts_size)
        data = await reader.readexactly(data_size)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    return Frame(Kind(kind), data, json.loads(facts) if facts else {})

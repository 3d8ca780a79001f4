"""What a sidecar and a model's process say to each other: messages of facts, in JSON, and arrays.

A message is two lengths (facts uint32, data uint64, big-endian), the facts, and the arrays one after the other as numpy has them; the
fact `arrays` lists name, type and shape of each.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Facts = dict[str, Any]

HEAD = struct.Struct(">IQ")


def encode(facts: Mapping[str, Any], arrays: Mapping[str, Array] | None = None) -> list[bytes | memoryview]:
    """Pieces to be sent one after the other. The arrays are numbers or booleans."""
    given = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in (arrays or {}).items()}
    listed = [[name, array.dtype.str, list(array.shape)] for name, array in given.items()]
    head = json.dumps({**facts, "arrays": listed}).encode()
    data = [array.reshape(-1).view(np.uint8).data for array in given.values() if array.size]
    return [HEAD.pack(len(head), sum(map(len, data))) + head, *data]


def decode(facts: bytes, data: bytes | bytearray) -> tuple[Facts, dict[str, Array]]:
    """The arrays share `data`."""
    found: Facts = json.loads(facts)
    arrays: dict[str, Array] = {}
    at = 0
    for name, kind, shape in found.pop("arrays"):
        dtype, count = np.dtype(kind), math.prod(shape)
        arrays[name] = np.frombuffer(data, dtype, count, at).reshape(shape)
        at += count * dtype.itemsize
    return found, arrays

"""The items of a BatchPredict: artifacts, files in an archive, or lines of JSON. Reading blocks and belongs in a thread."""

from __future__ import annotations

import mimetypes
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import json_format

from onecontainer.api.ai.v1 import inference_pb2
from onecontainer.api.ai.v1 import inference_service_pb2 as pb
from onecontainer.driver import errors

MAX_LINE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class BatchItem:
    """One question. `error`: it could not even be read; the others go on."""

    name: str
    request: pb.PredictStreamRequest
    error: errors.OneContainerError | None = None


def artifacts(names: list[str], input_name: str) -> Iterator[BatchItem]:
    """One item each, in this order."""
    for name in names:
        value = inference_pb2.Input(name=input_name, artifact=name)
        yield BatchItem(name, pb.PredictStreamRequest(inputs=[value]))


def archive(path: Path, input_name: str, max_bytes: int) -> Iterator[BatchItem]:
    """One item per file, in the archive's order; folders, links and macOS's own files are left out.

    Raises:
        DataInvalid: neither a zip nor a tar file.
    """
    if zipfile.is_zipfile(path):
        yield from _zip(path, input_name, max_bytes)
    elif tarfile.is_tarfile(path):
        yield from _tar(path, input_name, max_bytes)
    else:
        raise errors.DataInvalid("source.archive", "is neither a zip nor a tar file (plain, gzip or xz)")


def _zip(path: Path, input_name: str, max_bytes: int) -> Iterator[BatchItem]:
    with zipfile.ZipFile(path) as files:
        for info in files.infolist():
            if info.is_dir() or _left_out(info.filename):
                continue
            try:
                with files.open(info) as file:
                    # The announced length may be a lie.
                    data = file.read(max_bytes + 1)
            except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
                yield _unreadable(info.filename, f"cannot be unpacked: {error}")
            else:
                yield _file(info.filename, data, input_name, max_bytes)


def _tar(path: Path, input_name: str, max_bytes: int) -> Iterator[BatchItem]:
    try:
        with tarfile.open(path) as files:
            for info in files:
                if not info.isfile() or _left_out(info.name):
                    continue
                if info.size > max_bytes:
                    yield _unreadable(info.name, f"has {info.size} bytes; {max_bytes} are allowed")
                    continue
                file = files.extractfile(info)
                if file is not None:
                    yield _file(info.name, file.read(), input_name, max_bytes)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise errors.DataInvalid("source.archive", f"is damaged or truncated: {error}") from error


def _left_out(name: str) -> bool:
    parts = Path(name).parts
    return "__MACOSX" in parts or (bool(parts) and parts[-1] in {".DS_Store", "Thumbs.db"})


def _file(name: str, data: bytes, input_name: str, max_bytes: int) -> BatchItem:
    if len(data) > max_bytes:
        return _unreadable(name, f"has more than {max_bytes} bytes")
    value = inference_pb2.Input(name=input_name)
    kind = mimetypes.guess_type(name)[0] or ""
    try:
        if kind == "application/json":
            json_format.Parse(data, value.json)
        elif kind.startswith("text/"):
            value.text = data.decode()
        else:
            value.image = data
    except (json_format.ParseError, UnicodeDecodeError) as error:
        return _unreadable(name, f"is not the {kind} that its name says: {error}")
    return BatchItem(name, pb.PredictStreamRequest(inputs=[value]))


def lines(path: Path) -> Iterator[BatchItem]:
    """One PredictStreamRequest in proto3 JSON per line; empty lines are left out."""
    with path.open("rb") as file:
        for number in range(1, 1 << 62):
            line = file.readline(MAX_LINE_BYTES + 1)
            if not line:
                return
            if len(line) > MAX_LINE_BYTES:
                raise errors.DataInvalid("source.json_lines", f"line {number} has more than {MAX_LINE_BYTES} bytes")
            if not line.strip():
                continue
            try:
                request = json_format.Parse(line, pb.PredictStreamRequest())
            except (json_format.ParseError, UnicodeDecodeError) as error:
                yield _unreadable(f"line {number}", f"is no PredictStreamRequest: {error}")
            else:
                yield BatchItem(request.item_id or f"line {number}", request)


def _unreadable(name: str, what: str) -> BatchItem:
    return BatchItem(name, pb.PredictStreamRequest(), errors.DataInvalid("source", f"{name} {what}"))

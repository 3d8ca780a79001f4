"""Reads `-progress` of ffmpeg and adds outputs up. Whatever ffmpeg says, no number here goes down but rates and estimates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from google.protobuf.duration_pb2 import Duration

from onecontainer.api.media.v1 import pipeline_pb2 as pb
from onecontainer_driver_ffmpeg.media_info import to_duration

_ENDED = frozenset({pb.OUTPUT_STATE_SUCCEEDED, pb.OUTPUT_STATE_FAILED, pb.OUTPUT_STATE_CANCELLED})
# An estimate from less than this says nothing.
_LEAST_FRACTION, _LEAST_SECONDS = 0.02, 0.5


class ProgressReader:
    """Splits what ffmpeg writes into blocks of keys and values, and gives each whole block to `on_block`."""

    def __init__(self, on_block: Callable[[dict[str, str]], None]) -> None:
        self._on_block = on_block
        self._block: dict[str, str] = {}
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            key, _, value = line.decode(errors="replace").partition("=")
            self._block[key.strip()] = value.strip()
            if key == "progress":
                block, self._block = self._block, {}
                self._on_block(block)


class OutputMeter:
    """How far one output is. `expected` in seconds, None: not known. Of several passes only the last one writes media."""

    def __init__(self, key: str, expected: float | None, clock: Callable[[], float], *, passes: int = 1) -> None:
        self.expected = expected
        self.done = 0.0
        """Seconds of media written."""
        self._passes = passes
        self._pass = 0
        self.progress = pb.OutputProgress(key=key, state=pb.OUTPUT_STATE_PENDING)
        self.note = ""
        """What is being stored, and how far, for people."""
        self._clock = clock
        self._started: float | None = None

    def start(self) -> None:
        self._started = self._clock()
        self.progress.state = pb.OUTPUT_STATE_RUNNING

    @property
    def worked(self) -> float:
        """Seconds of media, each pass counting its part of them."""
        if self.expected and self.progress.HasField("fraction"):
            return self.progress.fraction * self.expected
        return self.done

    def begin_pass(self, number: int) -> None:
        self._pass = number

    def count_bytes(self, size: int) -> None:
        if size > self.progress.size_bytes:
            self.progress.size_bytes = size

    def update(self, block: dict[str, str]) -> bool:
        """Takes one block of `-progress`. Tells whether anything has moved since the last one."""
        before = (self.worked, self.progress.frame, self.progress.size_bytes)
        now = _number(block.get("out_time_us")) / 1_000_000
        if self._pass == self._passes - 1:
            self.done = max(self.done, now)
            frame = int(_number(block.get("frame")))
            if frame > self.progress.frame:
                self.progress.frame = frame
            self.count_bytes(int(_number(block.get("total_size"))))
        for name in ("fps", "speed"):
            rate = _number(block.get(name, "").rstrip("x"))
            if rate > 0:
                setattr(self.progress, name, rate)
        if self.done > 0:
            self.progress.media_time.CopyFrom(to_duration(self.done) or Duration())
        if self.expected:
            reached = (self._pass + min(now / self.expected, 1.0)) / self._passes
            fraction = max(self.progress.fraction, reached)
            self.progress.fraction = fraction
            _set_eta(self.progress, fraction, self._elapsed())
        return before != (self.worked, self.progress.frame, self.progress.size_bytes)

    def end(self, state: pb.OutputState.ValueType, *, early: bool = False) -> None:
        """`early`: by whoever had enough of it, so it is as far as it is."""
        self.progress.state = state
        self.progress.ClearField("eta")
        if state == pb.OUTPUT_STATE_SUCCEEDED and not early:
            self.progress.fraction = 1.0
            self.done = max(self.done, self.expected or 0.0)

    def _elapsed(self) -> float:
        return 0.0 if self._started is None else self._clock() - self._started


class PipelineMeter:
    """How far all outputs are."""

    def __init__(self, outputs: Sequence[OutputMeter], clock: Callable[[], float]) -> None:
        self._outputs = outputs
        self._clock = clock
        self._started = clock()
        self._fraction = 0.0

    @property
    def done(self) -> float:
        """Seconds of media over all outputs."""
        return sum(meter.worked for meter in self._outputs)

    @property
    def total(self) -> float | None:
        lengths = [meter.expected for meter in self._outputs]
        return sum(length for length in lengths if length) if all(lengths) else None

    def details(self) -> pb.PipelineProgress:
        details = pb.PipelineProgress(outputs=[meter.progress for meter in self._outputs])
        if self.total:
            self._fraction = max(self._fraction, min(self.done / self.total, 1.0))
            details.fraction = self._fraction
            if not all(meter.progress.state in _ENDED for meter in self._outputs):
                _set_eta(details, self._fraction, self._clock() - self._started)
        return details

    def message(self) -> str:
        """One line for people."""
        running = [meter.progress for meter in self._outputs if meter.progress.state == pb.OUTPUT_STATE_RUNNING]
        storing = [
            meter.progress.key + (f" ({meter.note})" if meter.note else "")
            for meter in self._outputs
            if meter.progress.state == pb.OUTPUT_STATE_STORING
        ]
        parts = [f"{one.key}" + (f" {one.speed:.1f}x" if one.HasField("speed") else "") for one in running]
        if storing:
            parts.append("storing " + ", ".join(storing))
        return "; ".join(parts)[:256]


def _set_eta(progress: pb.OutputProgress | pb.PipelineProgress, fraction: float, elapsed: float) -> None:
    if fraction >= _LEAST_FRACTION and elapsed >= _LEAST_SECONDS:
        progress.eta.CopyFrom(to_duration(elapsed * (1 - fraction) / fraction) or Duration())


def _number(text: str | None) -> float:
    """0 for what is no number, as `N/A`."""
    try:
        number = float(text or 0)
    except ValueError:
        return 0.0
    return number if math.isfinite(number) and number > 0 else 0.0

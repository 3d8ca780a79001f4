"""What a model has done since the sidecar started: counts and times, as Triton reports them."""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass, field

from onecontainer.api.ai.v1 import inference_pb2, model_pb2


@dataclass(slots=True)
class Duration:
    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds

    def to_proto(self) -> model_pb2.StatisticDuration:
        message = model_pb2.StatisticDuration(count=self.count)
        message.total.FromNanoseconds(round(self.seconds * 1e9))
        return message


@dataclass(slots=True)
class CallTimes:
    """Where one call's time went, in seconds."""

    queue: float = 0.0
    compute_input: float = 0.0
    compute_infer: float = 0.0
    compute_output: float = 0.0
    runs: list[tuple[int, float]] = field(default_factory=list)
    """Batch size and time of each run of the model that was this call's alone."""
    shared_items: int = 0
    """Items that went through the model together with those of others."""
    shared_size: int = 0
    """Items of the largest of those runs."""

    @property
    def items(self) -> int:
        return self.shared_items + sum(size for size, _ in self.runs)

    def to_proto(self) -> inference_pb2.Timing:
        timing = inference_pb2.Timing(batch_size=max((self.shared_size, *(size for size, _ in self.runs))))
        for name in ("queue", "compute_input", "compute_infer", "compute_output"):
            getattr(timing, name).FromNanoseconds(round(getattr(self, name) * 1e9))
        return timing


@dataclass(slots=True)
class _Batch:
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


class Statistics:
    """Counters of one version. All methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0.0
        self._items = 0
        self._parts = {
            name: Duration()
            for name in ("success", "failure", "cancelled", "queue", "compute_input", "compute_infer", "compute_output")
        }
        self._batches: dict[int, _Batch] = defaultdict(_Batch)
        self._loads = 0
        self._unloads = 0

    def succeeded(self, seconds: float, times: CallTimes, now: float) -> None:
        """A call that answered after `seconds`; `now` in seconds since 1970."""
        with self._lock:
            self._last = now
            self._items += times.items
            self._parts["success"].add(seconds)
            for name in ("queue", "compute_input", "compute_infer", "compute_output"):
                self._parts[name].add(getattr(times, name))
            for size, infer in times.runs:
                batch = self._batches[size]
                # Input and output are made per call; a run has its share by items.
                share = size / times.items
                batch.compute_input.add(times.compute_input * share)
                batch.compute_infer.add(infer)
                batch.compute_output.add(times.compute_output * share)
            if times.shared_size:
                batch = self._batches[times.shared_size]
                batch.compute_input.add(times.compute_input)
                batch.compute_output.add(times.compute_output)

    def ran(self, size: int, seconds: float) -> None:
        """A run that several calls may have shared."""
        with self._lock:
            self._batches[size].compute_infer.add(seconds)

    def failed(self, seconds: float, now: float) -> None:
        with self._lock:
            self._last = now
            self._parts["failure"].add(seconds)

    def cancelled(self, seconds: float, now: float) -> None:
        with self._lock:
            self._last = now
            self._parts["cancelled"].add(seconds)

    def loaded(self) -> None:
        with self._lock:
            self._loads += 1

    def unloaded(self) -> None:
        with self._lock:
            self._unloads += 1

    @property
    def last_use(self) -> float:
        """Seconds since 1970; 0: never."""
        return self._last

    def to_proto(self) -> model_pb2.ModelStatistics:
        """Everything but the names, what is in flight, and the memory."""
        with self._lock:
            message = model_pb2.ModelStatistics(
                inference_count=self._items,
                execution_count=sum(batch.compute_infer.count for batch in self._batches.values()),
                inference=model_pb2.InferenceStatistics(
                    **{name: part.to_proto() for name, part in self._parts.items()}
                ),
                batches=[
                    model_pb2.BatchStatistics(
                        batch_size=size,
                        compute_input=batch.compute_input.to_proto(),
                        compute_infer=batch.compute_infer.to_proto(),
                        compute_output=batch.compute_output.to_proto(),
                    )
                    for size, batch in sorted(self._batches.items())
                ],
                load_count=self._loads,
                unload_count=self._unloads,
            )
            if self._last:
                message.last_inference_time.FromNanoseconds(round(self._last * 1e9))
            return message

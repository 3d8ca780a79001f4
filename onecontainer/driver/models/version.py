"""One version of a model: where it stands, and the errors that say so."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from onecontainer.api.ai.v1 import inference_service_pb2, model_pb2, tensor_pb2
from onecontainer.driver import errors
from onecontainer.driver.models.served import Served
from onecontainer.driver.models.statistics import Statistics


@dataclass(frozen=True, slots=True)
class Material:
    """What a load reads: the model's file, and names of classes."""

    path: Path | None
    """None: what runs it fetches it itself."""
    labels: tuple[str, ...] = ()
    sha256: str = ""
    """Set: the file is the store's."""
    weights_sha256: str = ""
    """Set: weights of their own, a file in the store."""
    label_artifact: bool = False
    """The names came from an artifact, so that they must be recorded."""

    @property
    def digests(self) -> tuple[str, ...]:
        """Of the files in the store."""
        return tuple(one for one in (self.sha256, self.weights_sha256) if one)


class Report(Protocol):
    """Is told how far a load is."""

    def __call__(
        self,
        phase: inference_service_pb2.ServeModelPhase.ValueType,
        message: str = "",
        fetched: int = 0,
        total: int | None = None,
    ) -> None: ...


def no_report(
    phase: inference_service_pb2.ServeModelPhase.ValueType,
    message: str = "",
    fetched: int = 0,
    total: int | None = None,
) -> None:
    """For loads that nobody asked for."""


class Fetch(Protocol):
    """Gets the material of a load. What it raises is the reason that the version is FAILED for.

    `previous` is the material of the last load with the same config, None if there was none.
    """

    async def __call__(self, config: model_pb2.ModelConfig, previous: Material | None, report: Report) -> Material: ...


class Open(Protocol):
    """Makes material into a model that runs, and checks the config against it. What it raises is the reason that the version is FAILED
    for; cancelled, it leaves nothing behind."""

    async def __call__(self, material: Material, config: model_pb2.ModelConfig, report: Report) -> Served: ...


@dataclass(slots=True, eq=False)
class Version:
    """One version of a model. Only the repository changes it."""

    model: str
    version: str
    state: model_pb2.ModelState.ValueType = model_pb2.MODEL_STATE_LOADING
    config: model_pb2.ModelConfig = field(default_factory=model_pb2.ModelConfig)
    loading: model_pb2.ModelConfig | None = None
    """The config of the load that runs. None: none does."""
    phase: str = ""
    fetched: int = 0
    to_fetch: int | None = None
    error: errors.OneContainerError | None = None
    unload_reason: model_pb2.UnloadReason.ValueType = model_pb2.UNLOAD_REASON_UNSPECIFIED
    served: Served | None = None
    """Set: it answers, unless `draining`. Also while another load of it runs."""
    draining: bool = False
    brought: model_pb2.ModelConfig | None = None
    """Set: the driver brings this version along, served like this."""
    recorded: bool = False
    """It comes back after a restart."""
    loads: int = 0
    """Loads that have come to an end, well or not."""
    material: Material | None = None
    inputs: list[tensor_pb2.TensorSpec] = field(default_factory=list)
    outputs: list[tensor_pb2.TensorSpec] = field(default_factory=list)
    platform: str = ""
    memory_bytes: int = 0
    ready_time: float = 0.0
    load_seconds: float = 0.0
    statistics: Statistics = field(default_factory=Statistics)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the load that runs or is to come has ended, well or not, or will not be; another one then stands here for the next."""

    def load_ended(self, seconds: float | None = None) -> None:
        """Those who wait for the load look again. `seconds`: that it took; None: there was none."""
        if seconds is not None:
            self.load_seconds = seconds
        self.loading, self.phase = None, ""
        self.moved.set()
        self.moved = asyncio.Event()

    async def wait_loaded(self) -> None:
        """Returns when no load of it runs or is to come, or when it answers. The caller's deadline is the bound."""
        while self.served is None and self.state == model_pb2.MODEL_STATE_LOADING:
            await self.moved.wait()

    @property
    def stays_out(self) -> bool:
        """UnloadModel took it out of memory; only ServeModel brings it back."""
        return self.state == model_pb2.MODEL_STATE_UNLOADED and not self.comes_back

    @property
    def comes_back(self) -> bool:
        """It went because nobody called it, or to make room; the next call brings it back."""
        return self.unload_reason in {model_pb2.UNLOAD_REASON_IDLE, model_pb2.UNLOAD_REASON_EVICTED}

    @property
    def last_use(self) -> float:
        """When it was called last, or became ready after that; seconds since 1970."""
        return max(self.statistics.last_use, self.ready_time)

    @property
    def worth_recording(self) -> bool:
        """A version that never became READY did not come to be; one that comes along unchanged comes along next time, too."""
        if self.stays_out:
            return True
        return self.recorded and self.config != self.brought

    def became_ready(self, served: Served, material: Material, config: model_pb2.ModelConfig, now: float) -> None:
        self.served, self.material, self.config, self.error = served, material, config, None
        self.state, self.unload_reason = model_pb2.MODEL_STATE_READY, model_pb2.UNLOAD_REASON_UNSPECIFIED
        self.inputs, self.outputs = list(served.session.inputs), list(served.session.outputs)
        self.platform, self.memory_bytes = served.session.platform, served.session.memory_bytes
        self.ready_time, self.recorded = now, True
        self.statistics.loaded()

    def not_ready(self) -> errors.ModelNotReady:
        name = f"version {self.version!r} of {self.model!r}"
        state = model_pb2.ModelState.Name(self.state).removeprefix("MODEL_STATE_")
        if self.draining:
            message = f"{name} is being unloaded"
        elif self.state == model_pb2.MODEL_STATE_LOADING:
            message = f"{name} is loading ({self.phase or 'it waits for its turn'}); wait for its job"
        elif self.state == model_pb2.MODEL_STATE_FAILED:
            message = f"{name} has failed: {self.error}"
        else:
            message = f"{name} is not in memory; load it with ServeModel"
        return errors.ModelNotReady(message, metadata={"model_state": state})

    def refuse_conflict(self, config: model_pb2.ModelConfig) -> None:
        """Raises ResourceConflict if the version is there, or being loaded, with another config."""
        there = self.loading
        if there is None and (self.served is not None or self.state == model_pb2.MODEL_STATE_UNLOADED):
            there = self.config
        if there is not None and there != config:
            raise errors.ResourceConflict(
                f"version {self.version!r} of {self.model!r} is there with another config; set `replace`, or take another version",
                resource=("onecontainer.dev/Model", self.model),
            )

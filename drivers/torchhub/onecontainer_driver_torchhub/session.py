"""A loaded model: the session of the repository is a process of its own."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onecontainer.api.ai.v1 import inference_service_pb2, model_pb2, tensor_pb2
from onecontainer.driver import errors
from onecontainer.driver.models.preprocess import ImagePipeline
from onecontainer.driver.models.served import Served, image_input, pixel_dtype, served_of
from onecontainer.driver.models.session import Array, Lost, Session
from onecontainer.driver.models.tensors import tensor_from_array
from onecontainer.driver.models.version import Material, Report
from onecontainer_driver_torchhub.archive import unpack
from onecontainer_driver_torchhub.config import HUB, keywords
from onecontainer_driver_torchhub.model_process import ModelProcess, own_bytes
from onecontainer_driver_torchhub.process.wire import Facts
from onecontainer_driver_torchhub.runtime import environment


class TorchSession(Session):
    """A model in its process. Closing it kills the process, and so gives back all that it had."""

    def __init__(self, process: ModelProcess, facts: Facts, threads: int, folder: Path) -> None:
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._names: list[str] = facts["names"]
        self._required: list[str] = facts["required"]
        self._pid: int = facts["pid"]
        self._folder = folder
        self._closed: asyncio.Task[int] | None = None
        self.threads = threads
        self.platform = facts["platform"]

    @property
    def memory_bytes(self) -> int:
        return own_bytes(self._pid)

    @property
    def input_names(self) -> Sequence[str]:
        return self._names

    @property
    def required(self) -> Sequence[str]:
        return self._required

    def declare(self, spec: tensor_pb2.TensorSpec) -> None:
        """What a config says of an input, of which the model itself says only the name."""
        self.inputs = [spec]

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        for name, array in feeds.items():
            if array.dtype.kind not in "bifu":
                raise errors.DataInvalid("inputs", f"{name!r} takes numbers, not {array.dtype}")
        question = self._process.ask({"outputs": list(outputs)}, feeds)
        _, found = asyncio.run_coroutine_threadsafe(question, self._loop).result()
        if not self.outputs and not outputs:
            batched = any(spec.batched for spec in self.inputs)
            self.outputs = [_spec(name, array, batched) for name, array in found.items()]
        return found

    def watch(self, lost: Lost) -> None:
        self._process.watch(lost)

    async def close(self) -> int:
        if self._closed is None:
            self._closed = asyncio.create_task(self._close())
        return await asyncio.shield(self._closed)

    async def _close(self) -> int:
        released = self.memory_bytes if self._process.running else 0
        await self._process.kill()
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
        return released


def _spec(name: str, array: Array, batched: bool) -> tensor_pb2.TensorSpec:
    """What an output is, by one that was seen."""
    dtype = tensor_from_array(array[:0] if array.ndim else array).dtype
    batched = batched and array.ndim > 0
    shape = [-1, *array.shape[1:]] if batched else list(array.shape)
    return tensor_pb2.TensorSpec(name=name, dtype=dtype, shape=shape, batched=batched)


@dataclass(frozen=True, slots=True)
class Opener:
    """Makes sessions of material.

    Attributes:
        folder: of the driver in the state folder: PyTorch's caches, and what is unpacked.
        hub_dir: where repositories from GitHub and their weights are kept.
        threads: within one run of a model, where its config does not tell.
        max_bytes: of a repository that is unpacked.
    """

    folder: Path
    hub_dir: Path
    threads: int
    max_bytes: int

    @property
    def work(self) -> Path:
        """Folders of the models in memory, one each."""
        return self.folder / "work"

    def clean(self) -> None:
        """Makes the folders, and drops what a crash has left. Blocks."""
        shutil.rmtree(self.work, ignore_errors=True)
        for path in (self.work, self.hub_dir):
            path.mkdir(parents=True, exist_ok=True)

    async def open(self, material: Material, config: model_pb2.ModelConfig, report: Report) -> Served:
        """Starts a process and loads the model in it. Cancelled, it ends that first.

        Raises:
            what `error_of` makes of the process's failures; DataInvalid, FieldInvalid: the config does not fit the model.
        """
        folder = Path(await asyncio.to_thread(tempfile.mkdtemp, dir=self.work))
        process: ModelProcess | None = None
        try:
            repo = await asyncio.to_thread(self._repo, material, config.source.torch_hub, folder)
            threads = config.execution.intra_op_threads or self.threads

            def progress(message: str, done: int, total: int | None) -> None:
                report(inference_service_pb2.SERVE_MODEL_PHASE_LOADING, message, done, total)

            process = await ModelProcess.start(environment(self.folder, threads), progress)
            facts, _ = await process.ask(self._wanted(repo, material, config, threads))
            session = TorchSession(process, facts, threads, folder)
            if config.HasField("image"):
                session.declare(_image_spec(session, config.image))
            # A module keeps state of a call in itself, as a rule: one at a time, unless the config says otherwise.
            return served_of(session, config, material.labels, default_concurrency=1)
        except BaseException:
            if process is not None:
                await asyncio.shield(process.kill())
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            raise

    def _repo(self, material: Material, hub: model_pb2.TorchHubSource, folder: Path) -> str:
        if hub.repo_artifact:
            assert material.path is not None
            return str(unpack(material.path, folder, self.max_bytes, f"{HUB}.repo_artifact"))
        return hub.repo if material.path is None else str(material.path)

    def _wanted(self, repo: str, material: Material, config: model_pb2.ModelConfig, threads: int) -> Facts:
        """`process.load.Wanted`, and how many calls at the same time."""
        hub, execution = config.source.torch_hub, config.execution
        weights = self.folder / "files" / material.weights_sha256 if material.weights_sha256 else ""
        return {
            "repo": repo,
            "local": material.path is not None,
            "entrypoint": hub.entrypoint,
            "kwargs": keywords(hub.kwargs),
            "force_reload": hub.force_reload,
            "weights": str(weights),
            "hub_dir": str(self.hub_dir),
            "device": execution.device,
            "threads": threads,
            "inter_op_threads": execution.inter_op_threads,
            "concurrency": execution.max_concurrency or 1,
        }


def _image_spec(session: TorchSession, spec: model_pb2.ImagePreprocess) -> tensor_pb2.TensorSpec:
    """A hub model does not declare its inputs: the config does."""
    name = image_input(session, spec)
    dtype = spec.dtype or tensor_pb2.DATA_TYPE_FLOAT32
    pipeline = ImagePipeline(spec, pixel_dtype(dtype, name))
    shape = [-1, *pipeline.shape[1:]] if pipeline.batched else list(pipeline.shape)
    return tensor_pb2.TensorSpec(name=name, dtype=dtype, shape=shape, batched=pipeline.batched)

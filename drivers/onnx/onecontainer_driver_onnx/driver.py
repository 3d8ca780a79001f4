"""The driver: ONNX Runtime behind the contract of the AI vertical."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnxruntime  # type: ignore[import-untyped]
import platformdirs

from onecontainer.api.ai.v1 import model_pb2, usage_pb2
from onecontainer.driver import Attachment
from onecontainer.driver.models.batch import Batches
from onecontainer.driver.models.calls import Calls
from onecontainer.driver.models.config import Rules, checked
from onecontainer.driver.models.driver import ModelBackend, ModelDriver, check_options, cores
from onecontainer.driver.models.repository import FIRST_VERSION, Repository
from onecontainer.driver.models.request import Limits
from onecontainer.driver.models.sources import allowed_folder
from onecontainer.driver.models.store import Store
from onecontainer_driver_onnx import built_in
from onecontainer_driver_onnx.config import rules
from onecontainer_driver_onnx.session import limit_arenas, opener
from onecontainer_driver_onnx.sources import Sources
from onecontainer_driver_onnx.usage import usage


class OnnxDriver(ModelDriver):
    """Serves ONNX models in its own process."""

    async def attach(self, attachment: Attachment) -> None:
        options = attachment.options
        check_options(options)
        folder = await asyncio.to_thread(allowed_folder, options["model_dir"], attachment.state_dir, "model_dir")
        limit_arenas()
        workers = options["concurrency"] or cores()
        threads = options["threads"] or min(cores(), 8)
        store = Store(attachment.state_dir, ".onnx")
        sources = Sources(
            store=store,
            cache=Path(options["cache_dir"] or platformdirs.user_cache_path("onecontainer") / "onnx"),
            weights=Path(options["weights"]) if options["weights"] else None,
            folder=folder,
            max_bytes=options["max_model_bytes"],
        )
        repository = Repository(store, opener(threads), sources.fetch(None), options["max_loaded_models"])
        wanted = repository.restore(await asyncio.to_thread(store.open))
        if options["default_model"] == built_in.NAME:
            config = checked(built_in.config(), rules())
            found = repository.announce(built_in.NAME, FIRST_VERSION, config)
            found.brought = config
            if found not in wanted and found.state != model_pb2.MODEL_STATE_UNLOADED:
                wanted.append(found)
            repository.default_model = repository.default_model or built_in.NAME
        calls = Calls(
            repository,
            ThreadPoolExecutor(workers, thread_name_prefix="onnx"),
            workers,
            Limits(options["max_image_bytes"], options["max_image_pixels"]),
        )
        batches = Batches(calls, attachment.state_dir / "batches", options["max_model_bytes"])
        await asyncio.to_thread(batches.clean)
        self.start(ModelBackend(repository, calls, batches, options["max_model_bytes"], sources.fetch, wanted))

    async def rules(self) -> Rules:
        return rules()

    async def runtime_version(self) -> str:
        """The runtime is this process."""
        return str(onnxruntime.__version__)

    async def usage(self, backend: ModelBackend, service: str) -> usage_pb2.Usage:
        return usage(backend, service)

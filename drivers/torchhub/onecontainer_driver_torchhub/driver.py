"""The driver: PyTorch Hub behind the contract of the AI vertical."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from onecontainer.api.ai.v1 import usage_pb2
from onecontainer.driver import Attachment, ProbeResult, errors
from onecontainer.driver.models.batch import Batches
from onecontainer.driver.models.calls import Calls
from onecontainer.driver.models.config import Rules
from onecontainer.driver.models.driver import ModelBackend, ModelDriver, check_options, cores
from onecontainer.driver.models.repository import Repository
from onecontainer.driver.models.request import Limits
from onecontainer.driver.models.store import Store
from onecontainer_driver_torchhub.config import Allowed, allowed_of, rules
from onecontainer_driver_torchhub.runtime import Runtime, environment
from onecontainer_driver_torchhub.session import Opener
from onecontainer_driver_torchhub.sources import Sources
from onecontainer_driver_torchhub.usage import usage


class TorchHubDriver(ModelDriver):
    """Serves models of PyTorch Hub, each in a process of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._runtime: Runtime | None = None
        self._allowed = Allowed()

    async def attach(self, attachment: Attachment) -> None:
        options = attachment.options
        check_options(options)
        if 0 < options["idle_timeout"] < 1 or options["idle_timeout"] < 0:
            raise errors.FieldInvalid("options.idle_timeout", "must be 1 s or more, or 0")
        state = attachment.state_dir
        self._allowed = await asyncio.to_thread(allowed_of, options, state)
        cache = Path(options["cache_dir"]) if options["cache_dir"] else state / "hub"
        if not cache.is_absolute():
            raise errors.FieldInvalid("options.cache_dir", "must be an absolute path")
        workers = options["concurrency"] or cores()
        opener = Opener(state, cache, options["threads"] or cores(), options["max_model_bytes"])
        await asyncio.to_thread(opener.clean)
        # What PyTorch is here stays so: another attachment need not find it out again.
        self._runtime = self._runtime or Runtime(environment(state))
        self._runtime.ask()
        store = Store(state)
        sources = Sources(store, self._allowed, options["max_model_bytes"])
        repository = Repository(
            store,
            opener.open,
            sources.fetch(None),
            options["max_loaded_models"],
            idle_timeout=options["idle_timeout"],
        )
        wanted = repository.restore(await asyncio.to_thread(store.open))
        calls = Calls(
            repository,
            ThreadPoolExecutor(workers, thread_name_prefix="torchhub"),
            workers,
            Limits(options["max_image_bytes"], options["max_image_pixels"]),
        )
        batches = Batches(calls, state / "batches", options["max_model_bytes"])
        await asyncio.to_thread(batches.clean)
        self.start(ModelBackend(repository, calls, batches, options["max_model_bytes"], sources.fetch, wanted))

    async def detach(self) -> None:
        await super().detach()
        if self._runtime is not None and not await self._runtime.close():
            self._runtime = None

    @property
    def _torch(self) -> Runtime:
        if self._runtime is None or self._backend is None:
            raise errors.NotAttached("the driver is not attached to a service")
        return self._runtime

    async def probe(self) -> ProbeResult:
        # Importing PyTorch may take longer than a probe.
        if self._torch.known() is None:
            return ProbeResult(ready=False, message="looks for PyTorch")
        return await super().probe()

    async def rules(self) -> Rules:
        return rules(self._allowed, (await self._torch.torch()).devices)

    async def runtime_version(self) -> str:
        return (await self._torch.torch()).version

    async def usage(self, backend: ModelBackend, service: str) -> usage_pb2.Usage:
        return usage(backend, service, self._allowed, await self._torch.torch())

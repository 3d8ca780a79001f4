"""The models of the service: which there are, where each version stands, and who may use, load or unload it.

All of it runs in the event loop's thread; loading and freeing, which block, go to other threads. One lock per version puts loads
and unloads of it in order: who waits for a running load of the same config has joined it.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable

from onecontainer.api.ai.v1 import inference_service_pb2, model_pb2
from onecontainer.driver import errors
from onecontainer.driver.models.recording import material_of, record_of
from onecontainer.driver.models.served import Served
from onecontainer.driver.models.store import Catalog, Store
from onecontainer.driver.models.trial import try_out
from onecontainer.driver.models.version import Fetch, Material, Open, Report, Version, no_report

Clock = Callable[[], float]
WarmUp = Callable[[Served], None]
FIRST_VERSION = "1"
MAX_VERSIONS = 1000


class Repository:
    """Models by name, and their versions in the order in which they were served."""

    def __init__(
        self,
        store: Store,
        opener: Open,
        reload: Fetch,
        max_loaded: int = 0,
        clock: Clock = time.time,
        idle_timeout: float = 0.0,
    ) -> None:
        """`opener` makes material into a model that runs; `reload` gets the material of versions that are loaded again. At most
        `max_loaded` versions are in memory; 0: no cap. `idle_timeout`: seconds, for versions that are served without one and not pinned;
        0: they stay.
        """
        self._store = store
        self._open = opener
        self._reload = reload
        self.max_loaded = max_loaded
        self._clock = clock
        self._idle_timeout = idle_timeout
        self._models: dict[str, dict[str, Version]] = {}
        self._default_version: dict[str, str] = {}
        self.default_model = ""
        self._saving = asyncio.Lock()
        self._room = asyncio.Lock()
        self._coming: set[Version] = set()
        """Versions that have got room and are being loaded into it."""
        self._retiring: set[asyncio.Task[int]] = set()
        """Models that nobody gets any more, and that go when the calls inside have ended."""

    # --- looking -------------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        return sorted(self._models)

    def versions(self, model: str) -> list[Version]:
        """Latest served first. Raises ModelNotFound."""
        if model not in self._models:
            raise errors.ModelNotFound(f"there is no model {model!r}; ListModels tells which there are")
        return list(reversed(self._models[model].values()))

    def default_version(self, model: str) -> str:
        return self._default_version[model]

    def find(self, model: str, version: str) -> Version:
        """Empty: the default. Raises ModelNotFound."""
        model = model or self.default_model
        if not model:
            raise errors.ModelNotFound("the service has no default model; name one, or serve one with ServeModel")
        self.versions(model)
        found = self._models[model].get(version or self._default_version[model])
        if found is None:
            raise errors.ModelNotFound(f"the model {model!r} has no version {version!r}; GetModel tells which it has")
        return found

    async def enter(self, model: str, version: str) -> tuple[Version, Served]:
        """A version that answers; one that went for idleness or for the cap comes back first. It is not unloaded before the caller says
        `served.leave()`.

        Raises:
            ModelNotFound, ModelNotReady, and what the load raises.
        """
        found = self.find(model, version)
        if found.comes_back:
            await self.load_again(found)
        if found.served is None or found.draining:
            raise found.not_ready()
        found.served.enter()
        return found, found.served

    # --- restart -------------------------------------------------------------------------------------------------------

    def restore(self, catalog: Catalog) -> list[Version]:
        """Takes up what was recorded; returns the versions that are to be loaded again, with `load_again`."""
        wanted = []
        for record in catalog.records:
            found = self.announce(record.model, record.version, record.config)
            found.recorded = True
            found.material = material_of(record, self._store)
            if record.default_version:
                self._default_version[record.model] = record.version
            if record.loaded:
                wanted.append(found)
            else:
                found.state = model_pb2.MODEL_STATE_UNLOADED
                found.unload_reason = model_pb2.UNLOAD_REASON_REQUESTED
        if catalog.default_model in self._models:
            self.default_model = catalog.default_model
        return wanted

    def announce(self, model: str, version: str, config: model_pb2.ModelConfig) -> Version:
        """Makes a version known, as LOADING, if it is not yet. Raises LimitExceeded."""
        versions = self._models.get(model, {})
        if version not in versions:
            if sum(map(len, self._models.values())) >= MAX_VERSIONS:
                raise errors.LimitExceeded(f"{MAX_VERSIONS} versions are known; forget some with UnloadModel")
            versions[version] = Version(model, version, config=config)
            self._models[model] = versions
            self._default_version.setdefault(model, version)
        return versions[version]

    async def load_again(self, found: Version) -> None:
        """Loads a version as it was. Raises what the load raises; the version is FAILED with it."""
        async with found.lock:
            if found.served is None and (found.comes_back or found.state != model_pb2.MODEL_STATE_UNLOADED):
                await self._load(found, found.config, self._reload, no_report, try_out)
                self._let_go(found)

    # --- loading -------------------------------------------------------------------------------------------------------

    async def serve(
        self,
        model: str,
        version: str,
        config: model_pb2.ModelConfig | None,
        fetch: Fetch,
        report: Report,
        *,
        replace: bool = False,
        make_default_version: bool = False,
        make_default_model: bool = False,
        warm_up: WarmUp = try_out,
    ) -> tuple[Version, bool]:
        """Serves a version; the second value is true if it was READY already.

        Raises:
            ModelNotFound: no config, and the version is not known.
            ResourceConflict: the version is there with another config, and `replace` is false.
            what `fetch` and the load raise.
        """
        version = version or self._default_version.get(model, FIRST_VERSION)
        found = self._models.get(model, {}).get(version)
        if config is None:
            if found is None:
                raise errors.ModelNotFound(f"{model!r} has no version {version!r}; give a config to serve it")
            config = found.config
        if found is None:
            found = self.announce(model, version, config)
        elif not replace:
            found.refuse_conflict(config)
        # A load of the same config that runs now is joined: its failure is this call's failure too.
        joined = found.loads if found.loading == config else None
        if found.lock.locked():
            report(inference_service_pb2.SERVE_MODEL_PHASE_JOINED, "waits for another load or unload of this version")
        async with found.lock:
            old = None
            already = found.served is not None and found.config == config
            if not already:
                if joined is not None and found.loads > joined and found.error is not None:
                    raise found.error
                if not replace:
                    found.refuse_conflict(config)
                # It may have been forgotten while this call waited.
                self._models.setdefault(model, {})[version] = found
                self._default_version.setdefault(model, version)
                old = await self._load(found, config, fetch, report, warm_up)
            try:
                self._make_default(found, of_model=make_default_version, of_service=make_default_model)
                await self.save()
            finally:
                if not already:
                    self._let_go(found)
            if old is not None:
                # Calls that began with the old model end with it.
                await asyncio.shield(self._retire(old))
        return found, already

    def _make_default(self, found: Version, *, of_model: bool, of_service: bool) -> None:
        current = self._models[found.model].get(self._default_version[found.model])
        if of_model or current is None or (current.served is None and current.state == model_pb2.MODEL_STATE_FAILED):
            self._default_version[found.model] = found.version
        if of_service or not self.default_model:
            self.default_model = found.model

    async def _load(
        self, found: Version, config: model_pb2.ModelConfig, fetch: Fetch, report: Report, warm_up: WarmUp
    ) -> Served | None:
        """Returns what the version answered with before. The store's file is held until `_let_go`."""
        previous = found.material if found.config == config else None
        state = found.state
        started = time.monotonic()
        found.loading, found.state = config, model_pb2.MODEL_STATE_LOADING
        if found.served is None:
            found.error = None
        material: Material | None = None
        served: Served | None = None

        def told(
            phase: inference_service_pb2.ServeModelPhase.ValueType,
            message: str = "",
            fetched: int = 0,
            total: int | None = None,
        ) -> None:
            name = inference_service_pb2.ServeModelPhase.Name(phase).removeprefix("SERVE_MODEL_PHASE_")
            found.phase, found.fetched, found.to_fetch = message or name.lower().replace("_", " "), fetched, total
            report(phase, message, fetched, total)

        try:
            told(inference_service_pb2.SERVE_MODEL_PHASE_FETCHING)
            if found.served is None:
                await self._make_room(found)
            material = await fetch(config, previous, told)
            told(inference_service_pb2.SERVE_MODEL_PHASE_LOADING)
            served = await self._open(material, config, told)
            told(inference_service_pb2.SERVE_MODEL_PHASE_WARMING_UP)
            await asyncio.to_thread(warm_up, served)
        except BaseException as error:
            if served is not None:
                self._retire(served)
            if isinstance(error, errors.OneContainerError):
                found.error = error
                found.loads += 1
            else:
                found.error = errors.Cancelled("the load was cancelled; serve the model again")
            if found.served is not None:
                found.state = model_pb2.MODEL_STATE_READY
            elif state == model_pb2.MODEL_STATE_UNLOADED and not isinstance(error, errors.OneContainerError):
                # Cancelled, or a defect: nothing was learnt about the model.
                found.state, found.error = state, None
            else:
                found.state = model_pb2.MODEL_STATE_FAILED
            if not found.recorded:
                found.config = config
            for digest in material.digests if material is not None else ():
                self._store.let_go(digest)
            raise
        finally:
            self._coming.discard(found)
            found.load_ended(time.monotonic() - started)
        old = found.served
        found.became_ready(served, material, config, self._clock())
        found.loads += 1
        served.session.watch(functools.partial(self._lost, found, served))
        return old

    def _lost(self, found: Version, served: Served, error: errors.OneContainerError) -> None:
        """A model has ended by itself: it is FAILED, and whoever wants it serves it again."""
        if found.served is served:
            found.served, found.error, found.memory_bytes = None, error, 0
            found.statistics.unloaded()
            if found.loading is None:
                found.state = model_pb2.MODEL_STATE_FAILED
            self._retire(served)

    def _retire(self, served: Served) -> asyncio.Task[int]:
        """Closes a model when the calls inside have ended, whether or not somebody waits for that."""

        async def retire() -> int:
            await served.wait_idle()
            return await served.session.close()

        task = asyncio.create_task(retire())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        return task

    def _let_go(self, found: Version) -> None:
        for digest in found.material.digests if found.material is not None else ():
            self._store.let_go(digest)

    async def _make_room(self, wanted: Version) -> None:
        """Unloads the least recently used versions until there is room for this one. Raises LimitExceeded."""
        async with self._room:
            while self.max_loaded:
                inside = [found for found in self._all() if found.served is not None or found in self._coming]
                if len(inside) < self.max_loaded:
                    break
                # One whose lock is held is being loaded or unloaded, and may wait for room itself.
                free = [v for v in inside if v.served and not v.config.residency.pinned and not v.lock.locked()]
                if not free:
                    raise errors.LimitExceeded(
                        f"{len(inside)} models are in memory, and none of them may go now:"
                        " unload one, or raise `max_loaded_models`",
                        retry_after=1.0,
                    )
                victim = min(free, key=lambda v: (v.served is not None and v.served.in_flight > 0, v.last_use))
                async with victim.lock:
                    await self._unload(victim, model_pb2.UNLOAD_REASON_EVICTED)
            self._coming.add(wanted)

    def _all(self) -> list[Version]:
        return [found for versions in self._models.values() for found in versions.values()]

    # --- unloading -----------------------------------------------------------------------------------------------------

    async def unload(self, model: str, version: str, *, forget: bool) -> int:
        """Takes one version, or all (empty), out of memory, and returns the bytes that went back. Waits for the calls inside;
        cancelled meanwhile, the version goes on answering.

        Raises:
            ModelNotFound, ModelNotReady (it is LOADING)
        """
        chosen = [self.find(model, version)] if version else self.versions(model)
        for found in chosen:
            if found.loading is not None:
                raise found.not_ready()
        released = 0
        try:
            for found in chosen:
                async with found.lock:
                    released += await self._unload(found, model_pb2.UNLOAD_REASON_REQUESTED)
                    if forget and found.brought is None:
                        self._forget(found)
        finally:
            await self.save()
        return released

    async def unload_idle(self) -> None:
        """Unloads the versions that nobody has called for their `idle_timeout`."""
        for found in self._all():
            residency = found.config.residency
            timeout = 0.0 if residency.pinned else self._idle_timeout
            if residency.HasField("idle_timeout"):
                timeout = residency.idle_timeout.ToNanoseconds() / 1e9
            if timeout and self._is_idle(found, timeout) and not found.lock.locked():
                async with found.lock:
                    if self._is_idle(found, timeout):
                        await self._unload(found, model_pb2.UNLOAD_REASON_IDLE)

    def _is_idle(self, found: Version, timeout: float) -> bool:
        return found.served is not None and not found.served.in_flight and self._clock() - found.last_use >= timeout

    async def _unload(self, found: Version, reason: model_pb2.UnloadReason.ValueType) -> int:
        served = found.served
        if served is not None:
            found.draining = True
            try:
                await served.wait_idle()
            finally:
                found.draining = False
            if found.served is served:
                found.served = None
                found.statistics.unloaded()
        found.state = model_pb2.MODEL_STATE_UNLOADED
        found.unload_reason = reason
        found.memory_bytes, found.error = 0, None
        found.load_ended()
        return 0 if served is None else await asyncio.shield(self._retire(served))

    def _forget(self, found: Version) -> None:
        found.recorded = False
        versions = self._models.get(found.model, {})
        versions.pop(found.version, None)
        if not versions:
            self._models.pop(found.model, None)
            self._default_version.pop(found.model, None)
            if self.default_model == found.model:
                self.default_model = ""
        elif self._default_version[found.model] == found.version:
            self._default_version[found.model] = next(reversed(versions))

    async def close(self) -> None:
        """Frees all models. No call runs any more."""
        for found in self._all():
            served, found.served = found.served, None
            if served is not None:
                self._retire(served)
        await asyncio.gather(*self._retiring, return_exceptions=True)

    # --- recording -----------------------------------------------------------------------------------------------------

    async def save(self) -> None:
        """Records what is served, for the next start."""
        async with self._saving:
            records = [
                record_of(found, default_version=self._default_version.get(found.model) == found.version)
                for found in self._all()
                if found.worth_recording
            ]
            catalog = Catalog(records, self.default_model)
            await asyncio.to_thread(self._store.save, catalog)

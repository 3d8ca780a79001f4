"""The models of the service: which there are, where each version stands, and who may use, load or unload it.

All of it runs in the event loop's thread; loading and freeing, which block, go to other threads. One lock per version puts loads
and unloads of it in order: who waits for a running load of the same config has joined it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from onecontainer.api.ai.v1 import inference_service_pb2, model_pb2
from onecontainer.driver import errors
from onecontainer_driver_onnx.served import Served, open_served, try_out
from onecontainer_driver_onnx.session import check_model_file
from onecontainer_driver_onnx.store import Catalog, Record, Store
from onecontainer_driver_onnx.version import Fetch, Material, Report, Version

Clock = Callable[[], float]
WarmUp = Callable[[Served], None]
FIRST_VERSION = "1"
MAX_VERSIONS = 1000


def _no_report(
    phase: inference_service_pb2.ServeModelPhase.ValueType,
    message: str = "",
    fetched: int = 0,
    total: int | None = None,
) -> None:
    """For loads that nobody asked for."""


class Repository:
    """Models by name, and their versions in the order in which they were served."""

    def __init__(self, store: Store, default_threads: int, clock: Clock = time.time) -> None:
        self._store = store
        self._threads = default_threads
        self._clock = clock
        self._models: dict[str, dict[str, Version]] = {}
        self._default_version: dict[str, str] = {}
        self.default_model = ""
        self._saving = asyncio.Lock()

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

    def enter(self, model: str, version: str) -> tuple[Version, Served]:
        """A version that answers. It is not unloaded before the caller says `served.leave()`.

        Raises:
            ModelNotFound, ModelNotReady
        """
        found = self.find(model, version)
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
            found.material = Material(
                self._store.path(record.sha256),
                record.labels,
                record.sha256,
                record.config.classification.labels.HasField("artifact"),
            )
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

    async def load_again(self, found: Version, fetch: Fetch) -> None:
        """Loads a version as it was. Raises what the load raises; the version is FAILED with it."""
        async with found.lock:
            if found.served is None and found.state != model_pb2.MODEL_STATE_UNLOADED:
                self._store.let_go(await self._load(found, found.config, fetch, _no_report, try_out))

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
            held = ""
            already = found.served is not None and found.config == config
            if not already:
                if joined is not None and found.loads > joined and found.error is not None:
                    raise found.error
                if not replace:
                    found.refuse_conflict(config)
                # It may have been forgotten while this call waited.
                self._models.setdefault(model, {})[version] = found
                self._default_version.setdefault(model, version)
                held = await self._load(found, config, fetch, report, warm_up)
            try:
                self._make_default(found, of_model=make_default_version, of_service=make_default_model)
                await self.save()
            finally:
                self._store.let_go(held)
        return found, already

    def _make_default(self, found: Version, *, of_model: bool, of_service: bool) -> None:
        current = self._models[found.model].get(self._default_version[found.model])
        if of_model or current is None or (current.served is None and current.state == model_pb2.MODEL_STATE_FAILED):
            self._default_version[found.model] = found.version
        if of_service or not self.default_model:
            self.default_model = found.model

    async def _load(
        self, found: Version, config: model_pb2.ModelConfig, fetch: Fetch, report: Report, warm_up: WarmUp
    ) -> str:
        """Returns the digest of the store's file that is held until it is recorded; empty: none is."""
        previous = found.material if found.config == config else None
        state = found.state
        started = time.monotonic()
        found.loading, found.state = config, model_pb2.MODEL_STATE_LOADING
        if found.served is None:
            found.error = None
        material: Material | None = None

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
            material = await fetch(config, previous, told)
            told(inference_service_pb2.SERVE_MODEL_PHASE_LOADING)
            served = await asyncio.to_thread(_open, material, config, self._threads)
            told(inference_service_pb2.SERVE_MODEL_PHASE_WARMING_UP)
            await asyncio.to_thread(warm_up, served)
        except BaseException as error:
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
            if material is not None:
                self._store.let_go(material.sha256)
            raise
        finally:
            found.loading, found.phase = None, ""
            found.load_seconds = time.monotonic() - started
        old = found.served
        found.became_ready(served, material, config, self._clock())
        found.loads += 1
        if old is not None:
            # Calls that began with the old model end with it.
            await old.wait_idle()
            await asyncio.to_thread(old.session.close)
        return material.sha256

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
                    released += await self._unload(found)
                    if forget and found.brought is None:
                        self._forget(found)
        finally:
            await self.save()
        return released

    async def _unload(self, found: Version) -> int:
        served = found.served
        if served is not None:
            found.draining = True
            try:
                await served.wait_idle()
            finally:
                found.draining = False
            found.served = None
            found.statistics.unloaded()
        found.state = model_pb2.MODEL_STATE_UNLOADED
        found.unload_reason = model_pb2.UNLOAD_REASON_REQUESTED
        found.memory_bytes, found.error = 0, None
        return 0 if served is None else await asyncio.to_thread(served.session.close)

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
        for versions in self._models.values():
            for found in versions.values():
                served, found.served = found.served, None
                if served is not None:
                    await asyncio.to_thread(served.session.close)

    # --- recording -----------------------------------------------------------------------------------------------------

    async def save(self) -> None:
        """Records what is served, for the next start."""
        async with self._saving:
            catalog = Catalog(default_model=self.default_model)
            for versions in self._models.values():
                catalog.records += [self._record(found) for found in versions.values() if found.worth_recording]
            await asyncio.to_thread(self._store.save, catalog)

    def _record(self, found: Version) -> Record:
        material = found.material
        return Record(
            model=found.model,
            version=found.version,
            config=found.config,
            loaded=found.state != model_pb2.MODEL_STATE_UNLOADED,
            default_version=self._default_version.get(found.model) == found.version,
            sha256=material.sha256 if material is not None else "",
            labels=material.labels if material is not None and material.label_artifact else (),
        )


def _open(material: Material, config: model_pb2.ModelConfig, threads: int) -> Served:
    check_model_file(material.path, external_data=config.source.HasField("path"))
    return open_served(material.path, config, material.labels, threads)

"""Records ⇄ protos of management.v1."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf import timestamp_pb2

from onecontainer.api.management.v1 import management_service_pb2
from onecontainer.api.management.v1 import resources_pb2 as pb
from onecontainer.catalog.model import DriverRecord, DriverSource, DriverState, JobLimits, ServiceRecord
from onecontainer.catalog.sources import ArtifactSource, FolderSource, GitSource, Source
from onecontainer.errors import FieldRequired, OneContainerError
from onecontainer.rpc.manifest import manifest_to_proto
from onecontainer.rpc.options import secret_name
from onecontainer.rpc.status import duration, to_status
from onecontainer.rpc.structs import struct_from_dict, struct_to_dict
from onecontainer.sidecars.model import (
    Heartbeat,
    HeartbeatLayer,
    HeartbeatState,
    LayerHeartbeat,
    LogLine,
    RuntimeKind,
    RuntimeSpec,
    ServiceState,
    Sidecar,
    SidecarState,
)

HIDDEN = "***"

_KINDS: dict[pb.RuntimeKind.ValueType, RuntimeKind | None] = {
    pb.RUNTIME_KIND_UNSPECIFIED: None,
    pb.RUNTIME_KIND_PROCESS: RuntimeKind.PROCESS,
    pb.RUNTIME_KIND_DOCKER: RuntimeKind.DOCKER,
    pb.RUNTIME_KIND_ATTACHED: RuntimeKind.ATTACHED,
}
_KINDS_BACK = {kind: number for number, kind in _KINDS.items()}


def timestamp(micros: int) -> timestamp_pb2.Timestamp:
    return timestamp_pb2.Timestamp(seconds=micros // 1_000_000, nanos=micros % 1_000_000 * 1000)


# --- services --------------------------------------------------------------------------------------------------------


def service_from_proto(message: pb.Service) -> ServiceRecord:
    """What a caller may set of a service; name, uid and all that the gateway sets are left empty.

    A runtime kind that this version does not know is taken as docker's number would be: the validation refuses it.
    """
    runtime, limits = message.runtime, message.job_limits
    return ServiceRecord(
        name=message.name,
        uid="",
        app=message.app,
        app_version=message.app_version,
        description=message.description,
        endpoints=dict(sorted(message.endpoints.items())),
        options=struct_to_dict(message.options),
        labels=dict(message.labels),
        driver=message.driver,
        runtime=RuntimeSpec(
            kind=_KINDS.get(runtime.kind, RuntimeKind.DOCKER),
            endpoint=runtime.endpoint,
            token_secret=runtime.token_secret,
            devices=tuple(runtime.devices),
            memory_bytes=runtime.resources.memory_bytes,
            cpus=runtime.resources.cpus,
            pids=runtime.resources.pids,
            private_network=runtime.private_network,
        ),
        job_limits=JobLimits(
            max_running=limits.max_running,
            max_queued=limits.max_queued,
            default_max_attempts=limits.default_max_attempts,
            drain_timeout=limits.drain_timeout.ToNanoseconds() / 1e9 if limits.HasField("drain_timeout") else None,
        ),
    )


def service_to_proto(
    record: ServiceRecord,
    driver: DriverRecord | None,
    state: ServiceState,
    error: OneContainerError | None,
    sidecars: Iterable[Sidecar],
) -> pb.Service:
    """A service as callers see it: sensitive options hidden, the state of its sidecars laid over it."""
    message = pb.Service(
        name=record.name,
        uid=record.uid,
        description=record.description,
        app=record.app,
        app_version=record.app_version,
        endpoints=record.endpoints,
        labels=record.labels,
        driver=record.driver,
        scope=driver.manifest.scope if driver is not None and driver.manifest is not None else "",
        state=pb.ServiceState.Value(f"SERVICE_STATE_{state.value}"),
        assigned_driver=record.assigned_driver,
        sidecars=[sidecar.name for sidecar in sidecars],
        etag=record.etag,
        create_time=timestamp(record.create_time),
        update_time=timestamp(record.update_time),
    )
    if record.options:
        message.options.CopyFrom(struct_from_dict(hidden_options(record.options, driver)))
    if record.runtime != RuntimeSpec():
        message.runtime.CopyFrom(_runtime_to_proto(record.runtime))
    if record.job_limits != JobLimits():
        message.job_limits.CopyFrom(_limits_to_proto(record.job_limits))
    if error is not None:
        message.error.CopyFrom(to_status(error))
    return message


def hidden_options(options: Mapping[str, Any], driver: DriverRecord | None) -> dict[str, Any]:
    """Options with `***` for sensitive values; references to secrets are shown. Without a driver nobody knows which ones
    are sensitive, so all are hidden."""
    manifest = driver.manifest if driver is not None else None
    open_names = None if manifest is None else {option.name for option in manifest.options if not option.sensitive}
    return {
        name: value if secret_name(value) is not None or (open_names is not None and name in open_names) else HIDDEN
        for name, value in options.items()
    }


def _runtime_to_proto(runtime: RuntimeSpec) -> pb.Runtime:
    message = pb.Runtime(
        kind=_KINDS_BACK[runtime.kind],
        endpoint=runtime.endpoint,
        token_secret=runtime.token_secret,
        devices=runtime.devices,
        private_network=runtime.private_network,
    )
    if runtime.memory_bytes or runtime.cpus or runtime.pids:
        message.resources.memory_bytes = runtime.memory_bytes
        message.resources.cpus = runtime.cpus
        message.resources.pids = runtime.pids
    return message


def _limits_to_proto(limits: JobLimits) -> pb.JobLimits:
    message = pb.JobLimits(
        max_running=limits.max_running,
        max_queued=limits.max_queued,
        default_max_attempts=limits.default_max_attempts,
    )
    if limits.drain_timeout is not None:
        message.drain_timeout.CopyFrom(duration(limits.drain_timeout))
    return message


# --- drivers ---------------------------------------------------------------------------------------------------------

_SOURCES = {
    DriverSource.BUNDLED: pb.DRIVER_SOURCE_BUNDLED,
    DriverSource.PLUGIN: pb.DRIVER_SOURCE_PLUGIN,
    DriverSource.REGISTERED: pb.DRIVER_SOURCE_REGISTERED,
}
_DRIVER_STATES = {
    DriverState.READY: pb.DRIVER_STATE_READY,
    DriverState.BROKEN: pb.DRIVER_STATE_BROKEN,
    DriverState.QUARANTINED: pb.DRIVER_STATE_QUARANTINED,
}


def driver_to_proto(record: DriverRecord, services: Iterable[str]) -> pb.Driver:
    message = pb.Driver(
        name=record.name,
        source=_SOURCES[record.source],
        state=_DRIVER_STATES[record.state],
        digest=record.digest,
        descriptor_digest=record.descriptor_digest,
        origin=record.origin,
        services=services,
        create_time=timestamp(record.create_time),
    )
    if record.manifest is not None:
        message.manifest.CopyFrom(manifest_to_proto(record.manifest))
    if record.error is not None:
        message.error.CopyFrom(to_status(record.error))
    for method in record.methods.methods.values() if record.methods is not None else ():
        message.methods.add(
            name=method.full_name,
            long_running=method.long_running is not None,
            finishable=method.long_running is not None and method.long_running.finishable,
            idempotent=method.idempotent,
            client_streaming=method.client_streaming,
            server_streaming=method.server_streaming,
        )
    return message


def source_from_proto(request: management_service_pb2.InstallDriverRequest) -> Source:
    """Raises FieldRequired."""
    match request.WhichOneof("source"):
        case "folder" if request.folder:
            return FolderSource(request.folder)
        case "artifact" if request.artifact:
            return ArtifactSource(request.artifact)
        case "git":
            if not request.git.url:
                raise FieldRequired("git.url")
            return GitSource(request.git.url, request.git.ref, request.git.folder)
        case kind:
            raise FieldRequired(kind or "source")


# --- sidecars --------------------------------------------------------------------------------------------------------

_SIDECAR_STATES = {state: pb.SidecarState.Value(f"SIDECAR_STATE_{state.value}") for state in SidecarState}
_LAYERS = {layer: pb.HeartbeatLayer.Value(f"HEARTBEAT_LAYER_{layer.value}") for layer in HeartbeatLayer}
_BEATS = {state: pb.HeartbeatState.Value(f"HEARTBEAT_STATE_{state.value}") for state in HeartbeatState}


def sidecar_to_proto(record: Sidecar) -> pb.Sidecar:
    message = pb.Sidecar(
        name=record.name,
        service=record.service,
        driver=record.driver,
        runtime=_KINDS_BACK[record.runtime],
        state=_SIDECAR_STATES[record.state],
        target=record.target,
        runtime_id=record.runtime_id,
        restart_count=record.restart_count,
        create_time=timestamp(record.create_time),
    )
    if record.error is not None:
        message.error.CopyFrom(to_status(record.error))
    if record.next_start_time:
        message.next_start_time.CopyFrom(timestamp(record.next_start_time))
    if record.ready_time:
        message.ready_time.CopyFrom(timestamp(record.ready_time))
    return message


def heartbeat_state(heartbeat: Heartbeat) -> pb.HeartbeatState.ValueType:
    """OK if all layers are, else the state of the first that is not."""
    return next(
        (_BEATS[layer.state] for layer in heartbeat.layers if layer.state is not HeartbeatState.OK),
        pb.HEARTBEAT_STATE_OK,
    )


def layer_to_proto(layer: LayerHeartbeat) -> pb.LayerHeartbeat:
    message = pb.LayerHeartbeat(layer=_LAYERS[layer.layer], state=_BEATS[layer.state], message=layer.message)
    if layer.latency is not None:
        message.latency.CopyFrom(duration(layer.latency))
    if layer.error is not None:
        message.error.CopyFrom(to_status(layer.error))
    return message


def log_line_parts(line: LogLine) -> dict[str, Any]:
    return {"time": timestamp(line.time), "stderr": line.stderr, "text": line.text}

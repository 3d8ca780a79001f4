"""How a sidecar's container is made: what it is given, and above all what it is not. Pure; docs/docker.md tells it to people."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from google.protobuf.json_format import MessageToDict

from onecontainer.errors import FieldInvalid, FieldViolation
from onecontainer.settings import is_loopback
from onecontainer.sidecars.folders import InstanceFolders
from onecontainer.sidecars.model import Target
from onecontainer.sidecars.runtime import StartSpec

NOBODY = 65532
"""User and group of containers where the gateway is root; elsewhere they have the gateway's own."""
HOST_NAME = "host.docker.internal"

RUN = PurePosixPath("/run/onecontainer")
STATE = PurePosixPath("/var/lib/onecontainer")
SCRATCH = PurePosixPath("/var/tmp/onecontainer")  # noqa: S108 - in the container, a folder of its own
GATEWAY_SOCKET = "s"
PORT = 50061
"""Where a sidecar on TCP listens in its container; it is published on the host's loopback."""

INSTALLATION_LABEL = "dev.onecontainer.installation"
UID_LABEL = "dev.onecontainer.service-uid"
SERVICE_LABEL = "dev.onecontainer.service"
INSTANCE_LABEL = "dev.onecontainer.instance"
SETTINGS_LABEL = "dev.onecontainer.settings"
DRIVER_LABEL = "dev.onecontainer.driver"
IMAGE_LABEL = "dev.onecontainer.image"

LOG_BYTES, LOG_FILES = "10m", "3"
TMP_OPTIONS = "rw,noexec,nosuid,nodev,size=64m,mode=1777"


@dataclass(frozen=True, slots=True)
class Defaults:
    """Limits where neither the service nor its driver sets one."""

    memory_bytes: int
    cpus: float
    pids: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What a container may use."""

    memory_bytes: int
    cpus: float
    pids: int


def limits_of(target: Target, defaults: Defaults, host_cpus: int) -> Limits:
    """The service's own, else the driver's, else the defaults; no more processors than there are, which docker would refuse."""
    own, driver = target.runtime, target.manifest.resources
    cpus = own.cpus or driver.cpus or defaults.cpus
    return Limits(
        memory_bytes=own.memory_bytes or driver.memory_bytes or defaults.memory_bytes,
        cpus=min(cpus, float(host_cpus)),
        pids=own.pids or driver.pids or defaults.pids,
    )


def container_user(uid: int, gid: int) -> tuple[int, int]:
    """Never root."""
    return (uid, gid) if uid else (NOBODY, NOBODY)


def settings_digest(target: Target, image: str, extra: Mapping[str, object]) -> str:
    """Names all that a container was made and attached with: another one is another container."""
    facts = {
        "uid": target.uid,
        "service": target.service,
        "app": [target.app, target.app_version],
        "endpoints": dict(target.endpoints),
        "options": dict(target.options),
        "driver": target.driver,
        "manifest": MessageToDict(target.manifest),
        "runtime": [
            target.runtime.devices,
            target.runtime.memory_bytes,
            target.runtime.cpus,
            target.runtime.pids,
            target.runtime.private_network,
        ],
        "slots": target.slots,
        "generation": target.generation,
        "image": image,
        **extra,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def check(target: Target) -> None:
    """Raises FieldInvalid for what cannot work in a container."""
    found = [
        FieldViolation(
            f"endpoints.{node}",
            f"{address} is the container itself; for a backend on this host say {HOST_NAME}, and let the backend listen on "
            "docker's bridge, not on loopback only (docs/docker.md)",
        )
        for node, address in target.endpoints.items()
        if is_loopback(_host_and_port(address))
    ]
    found += [
        FieldViolation("runtime.devices", f"{device!r} is neither `gpu` nor a path below /dev")
        for device in target.runtime.devices
        if device != "gpu" and not (device.startswith("/dev/") and ".." not in device)
    ]
    if found:
        raise FieldInvalid(violations=found)


def _host_and_port(address: str) -> str:
    if "://" in address:
        parts = urlsplit(address)
        return f"{parts.hostname or ''}:{parts.port or 0}"
    return address


def tls_folder(folders: InstanceFolders) -> Path:
    """Where the certificate and the key of a sidecar on TCP are."""
    return folders.run / "tls"


def server_name(instance: str) -> str:
    """What the certificate of an instance is for."""
    return f"{instance.rpartition('/')[2][-12:]}.sidecars.onecontainer.internal"


def environment_of(spec: StartSpec, folders: InstanceFolders, tcp: bool) -> dict[str, str]:
    """The sidecar's settings. Nothing of the gateway's own environment goes in."""
    environment = {
        "ONECONTAINER_LISTEN": f"unix:{RUN / 'sidecar' / folders.socket.name}",
        "ONECONTAINER_INSTANCE": spec.instance,
        "ONECONTAINER_STATE_DIR": str(STATE),
        "ONECONTAINER_SCRATCH_DIR": str(SCRATCH),
        "ONECONTAINER_MAX_MESSAGE_BYTES": str(spec.max_message_bytes),
        "ONECONTAINER_LOG_LEVEL": spec.log_level,
        "ONECONTAINER_TOKEN_FILE": str(RUN / "token"),
    }
    if tcp:
        environment["ONECONTAINER_LISTEN"] = f"0.0.0.0:{PORT}"
        for name, file in (("CERT", "cert"), ("KEY", "key"), ("CA", "ca")):
            environment[f"ONECONTAINER_TLS_{name}_FILE"] = str(RUN / "tls" / f"{file}.pem")
    if folders.secrets is not None:
        environment["ONECONTAINER_SECRETS_DIR"] = str(RUN / "secrets")
    return environment


def folders_of(folders: InstanceFolders, gateway: Path, tcp: bool) -> list[tuple[Path, PurePosixPath, bool]]:
    """What is mounted: from where, to where, and whether the container may write there."""
    mounted = [(folders.state, STATE, True), (folders.scratch, SCRATCH, True)]
    if tcp:
        mounted.append((tls_folder(folders), RUN / "tls", False))
    else:
        mounted += [(folders.socket.parent, RUN / "sidecar", True), (gateway, RUN / "gateway", False)]
    if folders.token_file is not None:
        mounted.append((folders.token_file, RUN / "token", False))
    if folders.secrets is not None:
        mounted.append((folders.secrets, RUN / "secrets", False))
    return mounted


def container_options(
    *,
    spec: StartSpec,
    folders: InstanceFolders,
    gateway: Path,
    image: str,
    network: str,
    user: tuple[int, int],
    limits: Limits,
    labels: Mapping[str, str],
    tcp: bool,
) -> dict[str, Any]:
    """Arguments of docker's `containers.create`."""
    from docker.types import DeviceRequest, LogConfig, Mount

    devices = [device for device in spec.target.runtime.devices if device != "gpu"]
    return {
        "image": image,
        "name": f"onecontainer-{spec.instance.rpartition('/')[2]}",
        "detach": True,
        "environment": environment_of(spec, folders, tcp),
        "labels": dict(labels),
        # Who it is, and what it may do.
        "user": f"{user[0]}:{user[1]}",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "read_only": True,
        "tmpfs": {"/tmp": TMP_OPTIONS},  # noqa: S108 - in the container
        "ipc_mode": "private",
        # Reaps what a handler's processes leave behind, and passes signals on to Python.
        "init": True,
        # What it may use.
        "mem_limit": limits.memory_bytes,
        "memswap_limit": limits.memory_bytes,
        "nano_cpus": int(limits.cpus * 1e9),
        "pids_limit": limits.pids,
        "log_config": LogConfig(type="json-file", config={"max-size": LOG_BYTES, "max-file": LOG_FILES}),
        # What it sees.
        "mounts": [
            Mount(str(inside), str(outside), type="bind", read_only=not writable)
            for outside, inside, writable in folders_of(folders, gateway, tcp)
        ],
        "network": network,
        "ports": {f"{PORT}/tcp": ("127.0.0.1", None)} if tcp else {},
        "extra_hosts": {HOST_NAME: "host-gateway"},
        "devices": [f"{device}:{device}:rw" for device in devices],
        "group_add": sorted({group for device in devices for group in _groups(Path(device))}),
        "device_requests": (
            [DeviceRequest(count=-1, capabilities=[["gpu"]])] if "gpu" in spec.target.runtime.devices else None
        ),
    }


def _groups(device: Path) -> list[str]:
    """Groups that may use a device, or those in a folder of devices: `render` and `video` of /dev/dri."""
    nodes = sorted(device.rglob("*")) if device.is_dir() else [device]
    found = []
    for node in nodes:
        try:
            facts = node.stat()
        except OSError:
            continue  # docker tells that it is not there
        if stat.S_ISCHR(facts.st_mode) and facts.st_gid:
            found.append(str(facts.st_gid))
    return found

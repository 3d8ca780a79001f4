"""Encoding in hardware: which devices are here and really work, and what ffmpeg is told to use one.

Whether a device works is never guessed: a frame is encoded on it first, once per encoder and device, and the answer is kept.
Decoding and filters stay in software, so that every filter works with every encoder.
Sources: https://trac.ffmpeg.org/wiki/Hardware/VAAPI, .../Hardware/QuickSync, .../HWAccelIntro (NVENC).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onecontainer.api.media.v1 import stream_pb2
from onecontainer.driver import errors

APIS = {
    "vaapi": stream_pb2.HARDWARE_API_VAAPI,
    "nvenc": stream_pb2.HARDWARE_API_NVENC,
    "qsv": stream_pb2.HARDWARE_API_QSV,
}
"""By the suffix of their encoders, in the order in which they are tried."""
_SOFTWARE = (stream_pb2.HARDWARE_MODE_UNSPECIFIED, stream_pb2.HARDWARE_MODE_OFF)
_SURFACES = {"vaapi": ("nv12", "p010")}
"""Formats that can be uploaded, the usual one first; the other interfaces take frames from memory, and convert by themselves."""

Works = Callable[[Sequence[str]], Awaitable[bool]]
"""Runs ffmpeg with these arguments. Whether it came to a good end."""


def devices_here(root: Path = Path("/dev")) -> dict[str, tuple[str, ...]]:
    """Devices that might do, by interface: render nodes by their paths, NVIDIA's by their numbers."""
    nodes = tuple(sorted(str(path) for path in root.glob("dri/renderD*")))
    numbers = sorted(int(path.name[6:]) for path in root.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name))
    return {"vaapi": nodes, "nvenc": tuple(map(str, numbers)), "qsv": nodes}


@dataclass(frozen=True)
class Use:
    """One encoder on one device."""

    encoder: str
    api: str
    device: str

    def general(self) -> list[str]:
        """Arguments before the inputs: the device, by a name that the upload filter finds."""
        if self.api == "vaapi":
            return ["-init_hw_device", f"vaapi=gpu:{self.device}", "-filter_hw_device", "gpu"]
        if self.api == "qsv":
            return ["-init_hw_device", f"qsv=gpu,child_device={self.device}"]
        return []

    def takes(self, pixel_format: str) -> bool:
        return self.api not in _SURFACES or pixel_format in _SURFACES[self.api]

    def upload(self, pixel_format: str) -> tuple[str, ...]:
        """Filters at the end of the chain that bring frames to the device. `pixel_format` empty: the usual one."""
        if self.api not in _SURFACES:
            return ()
        return (f"format={pixel_format or _SURFACES[self.api][0]}", "hwupload")

    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Options of the encoder."""
        return (("-gpu", self.device),) if self.api == "nvenc" else ()


@dataclass
class Hardware:
    """The hardware of this machine, as this ffmpeg can use it."""

    encoders: frozenset[str]
    works: Works
    devices: Mapping[str, tuple[str, ...]] = field(default_factory=devices_here)
    _known: dict[Use, bool] = field(default_factory=dict)

    async def find(self, codec: str, api: str, device: str) -> tuple[Use | None, str]:
        """The first that encodes `codec` here, and why there is none. `api` and `device` empty: any."""
        reasons = []
        for name in (api,) if api else APIS:
            encoder = f"{codec}_{name}"
            if encoder not in self.encoders:
                reasons.append(f"this build has no encoder {encoder}")
                continue
            if not self.devices[name]:
                reasons.append(f"no {name} device is here")
                continue
            if device and device not in self.devices[name]:
                reasons.append(f"{device!r} is none of the {name} devices {', '.join(self.devices[name])}")
                continue
            for candidate in (device,) if device else self.devices[name]:
                use = Use(encoder, name, candidate)
                if await self._try(use):
                    return use, ""
                reasons.append(f"{encoder} does not work on {name} device {candidate}")
        return None, "; ".join(reasons)

    async def working_devices(self, api: str) -> list[str]:
        """Devices on which at least one encoder of the interface works."""
        encoders = sorted(name for name in self.encoders if name.endswith(f"_{api}"))
        # H.264 is what nearly all of them can: it answers at once.
        encoders.sort(key=lambda name: not name.startswith("h264"))
        found = []
        for device in self.devices[api]:
            for encoder in encoders:
                if await self._try(Use(encoder, api, device)):
                    found.append(device)
                    break
        return found

    async def _try(self, use: Use) -> bool:
        if use not in self._known:
            chain = ",".join(["format=yuv420p", *use.upload("")])
            options = [word for pair in use.pairs() for word in pair]
            self._known[use] = await self.works(
                [*use.general(), "-f", "lavfi", "-i", "color=size=256x256:rate=25:duration=0.2", "-vf", chain,
                 "-c:v", use.encoder, *options, "-frames:v", "2", "-f", "null", "-"]
            )  # fmt: skip
        return self._known[use]


async def choose(asked: stream_pb2.Hardware, encoder: str, codec: str, hardware: Hardware, at: str) -> Use | str | None:
    """What `asked` comes to for a stream: a use, a reason for software (PREFERRED), or None: software was asked for.

    `encoder` is what the request names; one of hardware tells the interface. `at` is the path of the stream's message. Raises
    BackendCapabilityMissing if hardware is REQUIRED and none does it, or if `encoder` needs hardware that was not asked for.
    """
    named = next((name for name in APIS if encoder.endswith(f"_{name}")), "")
    if asked.mode in _SOFTWARE:
        if named:
            raise errors.BackendCapabilityMissing(
                f"{at}.codec",
                f"{encoder!r} needs hardware: ask for it with `hardware.mode`, or name a software encoder",
            )
        return None
    wanted = next((name for name, api in APIS.items() if api == asked.api), "")
    if named and wanted and named != wanted:
        raise errors.FieldInvalid(f"{at}.hardware.api", f"is {wanted}, and the encoder {encoder!r} is of {named}")
    use, reason = await hardware.find(codec, named or wanted, asked.device)
    if use is not None:
        return use
    if asked.mode == stream_pb2.HARDWARE_MODE_REQUIRED:
        raise errors.BackendCapabilityMissing(
            f"{at}.hardware.mode", f"no hardware here encodes {codec}: {reason}; use PREFERRED to fall back to software"
        )
    return reason

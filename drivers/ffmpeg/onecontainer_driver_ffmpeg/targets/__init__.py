"""The targets that an output may have, one module per kind. `target.py` tells what all of them do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from onecontainer.api.media.v1 import output_pb2
from onecontainer.driver import errors
from onecontainer_driver_ffmpeg.capabilities import Capabilities
from onecontainer_driver_ffmpeg.settings import Settings
from onecontainer_driver_ffmpeg.targets import dash, file, hls, pictures
from onecontainer_driver_ffmpeg.targets.target import Target

Check = Callable[[output_pb2.Output, Capabilities, Settings, str], Awaitable[Target]]
"""Checks the target's own fields: of which output, and `at` its path in the request. FieldRequired, FieldInvalid,
BackendCapabilityMissing or SourceNotAllowed."""

TARGETS: dict[str, Check] = {
    "file": file.check,
    "hls": hls.check,
    "dash": dash.check,
    "frames": pictures.check_frames,
    "sprites": pictures.check_sprites,
}
"""By the name of the field in `Output.target`, in the order in which ListCapabilities tells them."""


async def check_target(output: output_pb2.Output, capabilities: Capabilities, settings: Settings, at: str) -> Target:
    """The target of an output, its own fields checked."""
    name = output.WhichOneof("target")
    if name is None:
        raise errors.FieldRequired(f"{at}.file", "a target is required")
    if name not in TARGETS:
        raise errors.BackendCapabilityMissing(
            f"{at}.{name}", f"only {', '.join(TARGETS)} are within this driver (ListCapabilities.targets)"
        )
    return await TARGETS[name](output, capabilities, settings, at)

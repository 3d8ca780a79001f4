"""What can be checked of a RunPipelineRequest without sources, and without the targets' own fields, which are the targets' business."""

from __future__ import annotations

import re

from onecontainer.api.media.v1 import input_pb2, media_pb2, output_pb2
from onecontainer.driver import errors
from onecontainer_driver_ffmpeg import allowed
from onecontainer_driver_ffmpeg.media_info import seconds

_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
MOST_INPUTS, MOST_STREAMS, MOST_OUTPUTS = 16, 64, 32
MOST_THREADS = 256
LEAST_MEMORY = 256 * 1024**2


def check_request(request: media_pb2.RunPipelineRequest) -> None:
    """Raises FieldRequired or FieldInvalid."""
    _check_counts(request)
    only_live = all(output.WhichOneof("target") == "live" for output in request.outputs)
    for index, one in enumerate(request.inputs):
        _check_input(one, f"inputs[{index}]", only_live=only_live)
    for index, stream in enumerate(request.elementary_streams):
        for position, selector in enumerate(stream.sources):
            where = f"elementary_streams[{index}].sources[{position}]"
            if not 0 <= selector.input < len(request.inputs):
                raise errors.FieldInvalid(f"{where}.input", f"is not between 0 and {len(request.inputs) - 1}")
            if selector.index < 0:
                raise errors.FieldInvalid(f"{where}.index", "is below 0")
    for index, output in enumerate(request.outputs):
        _check_output(output, f"outputs[{index}]")


def _check_counts(request: media_pb2.RunPipelineRequest) -> None:
    if not request.inputs:
        raise errors.FieldRequired("inputs")
    if not request.outputs:
        raise errors.FieldRequired("outputs", "no outputs specified")
    for name, most in (("inputs", MOST_INPUTS), ("elementary_streams", MOST_STREAMS), ("outputs", MOST_OUTPUTS)):
        if len(getattr(request, name)) > most:
            raise errors.FieldInvalid(name, f"has more than {most} entries")
    for name in ("elementary_streams", "outputs"):
        seen: set[str] = set()
        for index, one in enumerate(getattr(request, name)):
            if not _KEY.fullmatch(one.key):
                raise errors.FieldInvalid(f"{name}[{index}].key", "is not of the form [a-z][a-z0-9_-]{0,62}")
            if one.key in seen:
                raise errors.FieldInvalid(f"{name}[{index}].key", f"{one.key!r} is there twice")
            seen.add(one.key)
    for name in ("max_output_bytes", "threads", "max_memory_bytes"):
        if getattr(request.limits, name) < 0:
            raise errors.FieldInvalid(f"limits.{name}", "is below 0")
    if request.limits.threads > MOST_THREADS:
        raise errors.FieldInvalid("limits.threads", f"is above {MOST_THREADS}")
    if 0 < request.limits.max_memory_bytes < LEAST_MEMORY:
        raise errors.FieldInvalid(
            "limits.max_memory_bytes", f"is below {LEAST_MEMORY}, without which ffmpeg cannot start"
        )
    if request.limits.HasField("max_media_duration") and seconds(request.limits.max_media_duration) <= 0:
        raise errors.FieldInvalid("limits.max_media_duration", "is not more than 0")


def _check_input(one: input_pb2.Input, at: str, *, only_live: bool) -> None:
    if seconds(one.start_offset) < 0:
        raise errors.FieldInvalid(f"{at}.start_offset", "is below 0")
    if one.HasField("duration") and seconds(one.duration) <= 0:
        raise errors.FieldInvalid(f"{at}.duration", "is not more than 0")
    if not 0 <= one.extra_plays <= 100_000:
        raise errors.FieldInvalid(f"{at}.extra_plays", "is not between 0 and 100000")
    if one.loop_forever and not one.HasField("duration") and not only_live:
        raise errors.FieldRequired(f"{at}.duration", "is required with loop_forever, unless all outputs are live sinks")


def _check_output(output: output_pb2.Output, at: str) -> None:
    if seconds(output.start_offset) < 0:
        raise errors.FieldInvalid(f"{at}.start_offset", "is below 0")
    if output.HasField("duration") and seconds(output.duration) <= 0:
        raise errors.FieldInvalid(f"{at}.duration", "is not more than 0")
    for key, value in output.tags.items():
        if not allowed.TAG_KEY.fullmatch(key):
            raise errors.FieldInvalid(f'{at}.tags["{key}"]', "is no key of the form [A-Za-z][A-Za-z0-9_]{0,62}")
        if len(value) > 1024 or any(ord(character) < 32 for character in value):
            raise errors.FieldInvalid(f'{at}.tags["{key}"]', "has control characters or more than 1024 characters")

"""Filters: checked against the build and the allow-list, and written as a filter graph with everything escaped.

FFmpeg unescapes twice, first the graph, then the arguments of each filter (ffmpeg-filters, "Notes on filtergraph escaping"); so we
escape twice, in the other order.
"""

from __future__ import annotations

from collections.abc import Sequence

from onecontainer.api.media.v1.stream_pb2 import Filter
from onecontainer.driver import errors
from onecontainer_driver_ffmpeg import allowed
from onecontainer_driver_ffmpeg.capabilities import Capabilities
from onecontainer_driver_ffmpeg.listing import OptionEntry
from onecontainer_driver_ffmpeg.values import check_option, write_value

MOST_FILTERS = 64


def escape(value: str) -> str:
    """`value` as one value inside a filter graph, whatever is in it."""
    # Blanks at either end would be trimmed, by both.
    first, last = len(value) - len(value.lstrip()), len(value.rstrip())
    escaped = []
    for index, character in enumerate(value):
        blank = character.isspace() and not first <= index < last
        argument = f"\\{character}" if blank or character in "\\':" else character
        escaped += [f"\\{one}" if (blank and one == character) or one in "\\'[],;" else one for one in argument]
    return "".join(escaped)


async def write_chain(
    filters: Sequence[Filter], kind: str, sources: int, capabilities: Capabilities, at: str
) -> list[str]:
    """The filters of a stream of `kind` that begins with so many sources, one text each.

    BackendCapabilityMissing for a filter or an option that this build does not have or requests may not use, FieldInvalid for one that
    does not fit where it stands.
    """
    if len(filters) > MOST_FILTERS:
        raise errors.FieldInvalid(at, f"has more than {MOST_FILTERS} filters")
    chain = []
    for position, one in enumerate(filters):
        field = f"{at}[{position}]"
        entry = capabilities.filters.get(one.name)
        if entry is None or one.name not in allowed.FILTERS:
            raise errors.BackendCapabilityMissing(
                f"{field}.name", f"{one.name!r} is no filter that this service has for requests"
            )
        wanted = sources if position == 0 else 1
        if entry.inputs is not None and (len(entry.inputs) != wanted or set(entry.inputs) != {kind}):
            takes = " and ".join(entry.inputs) or "nothing"
            raise errors.FieldInvalid(f"{field}.name", f"{one.name!r} takes {takes}, but here come {wanted} of {kind}")
        if entry.outputs is not None and entry.outputs != (kind,):
            gives = " and ".join(entry.outputs) or "nothing"
            raise errors.FieldInvalid(f"{field}.name", f"{one.name!r} gives {gives}, and one of {kind} is needed")
        chain.append(_write_filter(one, await capabilities.filter_options(one.name), field))
    if sources > 1 and not filters:
        raise errors.FieldRequired(at, f"must begin with one that takes {sources} of {kind}")
    return chain


def _write_filter(one: Filter, options: dict[str, OptionEntry], at: str) -> str:
    words = []
    named = False
    for position, argument in enumerate(one.arguments):
        field = f"{at}.arguments[{position}]"
        if not argument.name:
            if named:
                raise errors.FieldInvalid(f"{field}.name", "is missing: positional arguments come before named ones")
            declared = list(options.values())
            if position >= len(declared):
                raise errors.FieldInvalid(field, f"{one.name!r} takes no {position + 1} arguments")
            # Which option a position means is known to the build only, and aliases count there but once. So all options that it could be
            # must be allowed, which they are unless the filter has one that names a file.
            if not all(map(allowed.filter_option_allowed, options)):
                raise errors.FieldInvalid(
                    f"{field}.name", f"is missing: the arguments of {one.name!r} have to be named"
                )
            words.append(escape(write_value(argument.value, f"{field}.value")))
            continue
        named = True
        entry = OptionEntry("enable", "string") if argument.name == "enable" else options.get(argument.name)
        if entry is None or not allowed.filter_option_allowed(argument.name):
            raise errors.BackendCapabilityMissing(
                f"{field}.name", f"{one.name!r} has no option {argument.name!r} for requests"
            )
        text = write_value(argument.value, f"{field}.value")
        if entry.type != "string" and argument.value.WhichOneof("value") != "text":
            text = check_option(argument.value, entry, f"{field}.value")
        words.append(f"{argument.name}={escape(text)}")
    return f"{one.name}={':'.join(words)}" if words else one.name

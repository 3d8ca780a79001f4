"""What an update mask does to a service. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from onecontainer.catalog.mapping import HIDDEN
from onecontainer.catalog.model import JobLimits, ServiceRecord
from onecontainer.errors import FieldInvalid, FieldViolation

PATHS = ("description", "app", "app_version", "endpoints", "options", "labels", "driver", "runtime", "job_limits")
REMATCHING = ("app", "app_version", "endpoints", "options", "driver", "runtime")
"""A change of one of these matches the driver anew and replaces the sidecar."""
OPTION_PREFIX = "options."
LIMIT_PATHS = {f"job_limits.{field.name}": field.name for field in fields(JobLimits)}


def updated(old: ServiceRecord, sent: ServiceRecord, mask: Iterable[str]) -> ServiceRecord:
    """The record with the fields of `sent` that the mask names; without a mask, those that are set in `sent`.

    An option sent as `***` keeps its value. Raises FieldInvalid for paths that do not exist or cannot be changed.
    """
    paths = list(mask)
    if not paths:
        empty = ServiceRecord(name="", uid="", app="")
        paths = [path for path in PATHS if getattr(sent, path) != getattr(empty, path)]
    elif "*" in paths:
        paths = list(PATHS)
    wrong = [
        path for path in paths if path not in PATHS and path not in LIMIT_PATHS and not path.startswith(OPTION_PREFIX)
    ]
    if wrong:
        known = ", ".join((*PATHS, *LIMIT_PATHS, "options.KEY", "*"))
        raise FieldInvalid(
            violations=[
                FieldViolation(
                    "update_mask",
                    f"{path} cannot be changed: send only what changes, or name it here; there are: {known}",
                )
                for path in wrong
            ]
        )
    changes = {path: getattr(sent, path) for path in paths if path in PATHS}
    if "options" in changes:
        changes["options"] = kept_hidden(old.options, sent.options)
    options = dict(changes.get("options", old.options))
    for path in paths:
        if path.startswith(OPTION_PREFIX):
            name = path.removeprefix(OPTION_PREFIX)
            options.pop(name, None)
            if name in sent.options:
                options |= kept_hidden(old.options, {name: sent.options[name]})
    limits = {LIMIT_PATHS[path]: getattr(sent.job_limits, LIMIT_PATHS[path]) for path in paths if path in LIMIT_PATHS}
    if limits:
        changes["job_limits"] = replace(changes.get("job_limits", old.job_limits), **limits)
    return replace(old, **changes | {"options": options})


def kept_hidden(old: Mapping[str, Any], sent: Mapping[str, Any]) -> dict[str, Any]:
    """Options as sent, but with the stored value where `***` came back."""
    return {name: old[name] if value == HIDDEN and name in old else value for name, value in sent.items()}


def needs_rematch(old: ServiceRecord, new: ServiceRecord) -> bool:
    """Whether the driver is to be matched anew and the sidecar replaced."""
    return any(getattr(old, name) != getattr(new, name) for name in REMATCHING)

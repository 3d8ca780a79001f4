"""Filters and pages over the catalog's records. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from packaging.version import InvalidVersion, Version

from onecontainer.catalog.model import DriverRecord, DriverSource, DriverState, ServiceRecord
from onecontainer.errors import FieldInvalid
from onecontainer.rpc.filters import LABEL_PREFIX, Term, parse_filter
from onecontainer.rpc.pages import page_position, page_size, page_token
from onecontainer.sidecars.model import ServiceState, Sidecar, SidecarState

Record = TypeVar("Record")
Key = tuple[object, ...]


def page(
    method: str,
    records: Iterable[Record],
    key: Callable[[Record], str],
    order: Callable[[str], Key],
    *,
    size: int,
    token: str,
    filter_text: str,
) -> tuple[list[Record], str]:
    """One page, sorted by the order of the records' keys, and the token of the next one (empty: there is none).

    A page goes on behind the last key, whether its record is still there or not.
    """
    limit = page_size(size)
    position = page_position(token, method, filter_text)
    found = sorted(records, key=lambda record: order(key(record)))
    if position is not None:
        behind = order(position)
        found = [record for record in found if order(key(record)) > behind]
    more = len(found) > limit
    found = found[:limit]
    return found, page_token(method, filter_text, key(found[-1])) if more else ""


# --- services --------------------------------------------------------------------------------------------------------


def service_filter(text: str) -> list[Term]:
    terms = parse_filter(text, ("app", "scope", "state", "assigned_driver"), labels=True)
    return [_state_term(term, "SERVICE_STATE_", [state.value for state in ServiceState]) for term in terms]


def service_fits(terms: Sequence[Term], record: ServiceRecord, scope: str, state: ServiceState) -> bool:
    values = {"app": record.app, "scope": scope, "state": state.value, "assigned_driver": record.assigned_driver}
    return all(
        record.labels.get(term.field.removeprefix(LABEL_PREFIX)) == term.value
        if term.field.startswith(LABEL_PREFIX)
        else values[term.field] == term.value
        for term in terms
    )


def by_name(key: str) -> Key:
    return (key,)


# --- drivers ---------------------------------------------------------------------------------------------------------


def driver_filter(text: str) -> list[Term]:
    terms = parse_filter(text, ("app", "scope", "state", "source"))
    terms = [_state_term(term, "DRIVER_STATE_", [state.value for state in DriverState]) for term in terms]
    return [
        _state_term(term, "DRIVER_SOURCE_", [source.value for source in DriverSource], field="source") for term in terms
    ]


def driver_fits(terms: Sequence[Term], record: DriverRecord) -> bool:
    manifest = record.manifest
    values = {
        "app": manifest.app if manifest is not None else "",
        "scope": manifest.scope if manifest is not None else "",
        "state": record.state.value,
        "source": record.source.value,
    }
    return all(values[term.field] == term.value for term in terms)


def driver_key(record: DriverRecord) -> str:
    name, version = ("", "0") if record.manifest is None else (record.manifest.name, record.manifest.version)
    return f"{name or record.id}\n{version}\n{record.name}"


def by_version(key: str) -> Key:
    try:
        name, version, last = key.split("\n")
        return (name, Version(version), last)
    except (ValueError, InvalidVersion):
        raise FieldInvalid("page_token", "is not a token of ours: pass the last page's next_page_token") from None


# --- sidecars --------------------------------------------------------------------------------------------------------


def sidecar_filter(text: str) -> list[Term]:
    terms = parse_filter(text, ("service", "driver", "state"))
    return [_state_term(term, "SIDECAR_STATE_", [state.value for state in SidecarState]) for term in terms]


def sidecar_fits(terms: Sequence[Term], record: Sidecar) -> bool:
    values = {"service": record.service, "driver": record.driver, "state": record.state.value}
    return all(values[term.field] == term.value for term in terms)


def sidecar_key(record: Sidecar) -> str:
    return f"{record.create_time}\n{record.name}"


def newest_first(key: str) -> Key:
    try:
        time, name = key.split("\n")
        return (-int(time), name)
    except ValueError:
        raise FieldInvalid("page_token", "is not a token of ours: pass the last page's next_page_token") from None


def _state_term(term: Term, prefix: str, known: Sequence[str], field: str = "state") -> Term:
    """States may be written as in the proto or without the prefix; another word is a mistake, not an empty list."""
    if term.field != field:
        return term
    value = term.value.upper().removeprefix(prefix)
    if value not in known:
        raise FieldInvalid("filter", f"{field}: there is no {term.value!r}; there are: {', '.join(known)}")
    return term._replace(value=value)

"""Validation, update masks and what callers see of a service: pure."""

from __future__ import annotations

from dataclasses import replace

import pytest
from google.protobuf import struct_pb2

from onecontainer.api.management.v1 import resources_pb2
from onecontainer.catalog import listing, mapping
from onecontainer.catalog.model import DriverRecord, DriverSource, DriverState, JobLimits, ServiceRecord
from onecontainer.catalog.update import needs_rematch, updated
from onecontainer.catalog.validation import raise_violations, service_violations
from onecontainer.errors import FieldInvalid, FieldRequired
from onecontainer.rpc.manifest import Manifest
from onecontainer.rpc.options import Option
from onecontainer.sidecars.model import RuntimeKind, RuntimeSpec, ServiceState

MANIFEST = Manifest(
    name="cas",
    version="1.0",
    app="cassandra",
    scope="db",
    entry_point="m:C",
    services=["x.v1.Y"],
    options=[
        Option(name="url", type="string", description="Where.", sensitive=True),
        Option(name="threads", type="int", description="How many.", default=1),
        Option(name="mode", type="string", description="How.", allowed_values=["fast", "safe"], required=True),
    ],
)
DRIVER = DriverRecord("drivers/cas-1.0", DriverSource.BUNDLED, DriverState.READY, MANIFEST, methods=None)
GOOD = ServiceRecord(
    name="services/a",
    uid="u",
    app="cassandra:latest",
    app_version="3.11.9",
    endpoints={"node1": "10.0.0.1:9042", "node2": "cassandra://host/x"},
    options={"url": "secrets/url", "threads": 4, "mode": "fast"},
    labels={"team": "a"},
)


class Secrets:
    def problem(self, name: str) -> str:
        return "" if name == "url" else f"there is no secrets/{name}"


def violations(record: ServiceRecord) -> dict[str, str]:
    found = service_violations(record, DRIVER, {"process", "attached"}, Secrets())
    return {violation.field: violation.description for violation in found}


def test_a_good_service_has_no_violations() -> None:
    assert violations(GOOD) == {}


def test_control_characters_are_refused_and_a_description_may_have_lines() -> None:
    assert violations(replace(GOOD, description="one\n\ttwo")) == {}
    found = violations(replace(GOOD, description="a\0b", labels={"a": "\0"}))
    assert set(found) == {"service.description", "service.labels['a']"}


def test_all_violations_come_at_once_with_their_paths() -> None:
    bad = replace(
        GOOD,
        app="",
        app_version="latest",
        description="x" * 5000,
        endpoints={"node 1": "nowhere", "n2": "h:0", "n3": "http://", "n4": "h:99999"},
        options={"url": "secrets/none", "threads": 1.5, "mode": "slow", "colour": "red"},
        labels={"Team": "a", "b": "x" * 300},
        driver="cas",
        runtime=RuntimeSpec(kind=RuntimeKind.DOCKER, endpoint="h:1", devices=("gpu",)),
        job_limits=JobLimits(max_running=-1, drain_timeout=-2.0),
    )
    found = violations(bad)
    assert found["service.options.colour"] == "the driver has no such option; it has: mode, threads, url"
    assert found["service.options.mode"] == 'must be one of "fast", "safe"'
    assert found["service.options.threads"] == "must be a whole number"
    assert found["service.options.url"] == "there is no secrets/none"
    assert found["service.runtime.kind"] == "this installation has no runtime docker; it has: attached, process"
    assert set(found) == {
        "service.app",
        "service.app_version",
        "service.description",
        "service.driver",
        "service.endpoints.node 1",
        "service.endpoints.n2",
        "service.endpoints.n3",
        "service.endpoints.n4",
        "service.job_limits.drain_timeout",
        "service.job_limits.max_running",
        "service.labels['Team']",
        "service.labels['b']",
        "service.options.colour",
        "service.options.mode",
        "service.options.threads",
        "service.options.url",
        "service.runtime.endpoint",
        "service.runtime.kind",
    }
    with pytest.raises(FieldInvalid) as caught:
        raise_violations(service_violations(bad, DRIVER, {"process"}, Secrets()))
    assert {violation.field for violation in caught.value.violations} == set(found)


def test_numbers_that_json_does_not_have_are_refused() -> None:
    without_driver = service_violations(replace(GOOD, options={"x": float("nan")}), None, {"process"}, Secrets())
    assert [violation.field for violation in without_driver] == ["service.options"]


def test_missing_fields_alone_are_field_required() -> None:
    with pytest.raises(FieldRequired) as caught:
        raise_violations(service_violations(replace(GOOD, app="", options={}), DRIVER, {"process"}, Secrets()))
    assert [violation.field for violation in caught.value.violations] == ["service.app", "service.options.mode"]
    raise_violations([])


def test_attached_needs_an_address_and_elsewhere_than_here_a_token() -> None:
    def of(**values: object) -> dict[str, str]:
        return violations(replace(GOOD, runtime=RuntimeSpec(kind=RuntimeKind.ATTACHED, **values)))

    assert of(endpoint="unix:/run/x.sock") == {}
    assert of(endpoint="127.0.0.1:5000") == {}
    assert of() == {}  # it waits for a sidecar that registers
    assert list(of(token_secret="secrets/url")) == ["service.runtime.token_secret"]
    assert list(of(endpoint="10.1.2.3:5000")) == ["service.runtime.token_secret"]
    assert of(endpoint="10.1.2.3:5000", token_secret="secrets/url") == {}
    assert list(of(endpoint="http://x")) == ["service.runtime.endpoint"]
    assert list(of(endpoint="h:1", token_secret="plain")) == ["service.runtime.token_secret"]


# --- update masks ----------------------------------------------------------------------------------------------------

EMPTY = ServiceRecord(name="services/a", uid="", app="")


def test_only_masked_fields_change() -> None:
    sent = replace(EMPTY, app="redis", description="new", labels={"x": "y"})
    new = updated(GOOD, sent, ["description", "labels"])
    assert new == replace(GOOD, description="new", labels={"x": "y"})
    assert not needs_rematch(GOOD, new)
    assert needs_rematch(GOOD, updated(GOOD, sent, ["app"]))


def test_without_a_mask_what_is_set_changes_and_a_star_changes_all() -> None:
    sent = replace(EMPTY, app="redis", job_limits=JobLimits(max_running=3))
    assert updated(GOOD, sent, []) == replace(GOOD, app="redis", job_limits=JobLimits(max_running=3))
    assert updated(GOOD, sent, ["*"]) == replace(
        sent, uid="u", name="services/a", create_time=GOOD.create_time, revision=GOOD.revision
    )


def test_one_option_is_set_or_removed() -> None:
    sent = replace(EMPTY, options={"threads": 8, "mode": "safe"})
    assert updated(GOOD, sent, ["options.threads"]).options == {"url": "secrets/url", "threads": 8, "mode": "fast"}
    assert updated(GOOD, EMPTY, ["options.threads"]).options == {"url": "secrets/url", "mode": "fast"}


def test_one_limit_is_changed_and_the_others_stay() -> None:
    old = replace(GOOD, job_limits=JobLimits(max_running=2, max_queued=10, drain_timeout=5.0))
    sent = replace(EMPTY, job_limits=JobLimits(max_running=8, max_queued=99))
    new = updated(old, sent, ["job_limits.max_running"])
    assert new == replace(old, job_limits=JobLimits(max_running=8, max_queued=10, drain_timeout=5.0))
    assert updated(old, EMPTY, ["job_limits.drain_timeout"]).job_limits == JobLimits(max_running=2, max_queued=10)
    with pytest.raises(FieldInvalid, match=r"job_limits\.colour cannot be changed"):
        updated(old, sent, ["job_limits.colour"])


def test_hidden_values_that_come_back_are_kept() -> None:
    old = replace(GOOD, options={"url": "postgres://u:p@h/d", "mode": "fast"})
    shown = mapping.hidden_options(old.options, DRIVER)
    assert shown == {"url": "***", "mode": "fast"}
    assert updated(old, replace(EMPTY, options=shown | {"threads": 2}), ["options"]).options == {
        "url": "postgres://u:p@h/d",
        "mode": "fast",
        "threads": 2,
    }
    assert updated(old, replace(EMPTY, options={"url": "***"}), ["options.url"]).options == old.options
    assert violations(replace(GOOD, options={"url": "***", "mode": "fast"}))["service.options.url"].startswith("***")


def test_wrong_paths_are_all_told() -> None:
    with pytest.raises(FieldInvalid) as caught:
        updated(GOOD, EMPTY, ["name", "etag", "description", "colour"])
    assert [violation.description.split()[0] for violation in caught.value.violations] == ["name", "etag", "colour"]


# --- protos ----------------------------------------------------------------------------------------------------------


def test_a_service_comes_back_from_its_proto() -> None:
    record = replace(
        GOOD,
        runtime=RuntimeSpec(kind=RuntimeKind.ATTACHED, endpoint="h:1", token_secret="secrets/url"),
        job_limits=JobLimits(2, 3, 4, 1.5),
        description="d",
        driver="drivers/cas",
    )
    message = mapping.service_to_proto(record, DRIVER, ServiceState.READY, None, [])
    assert message.scope == "db"
    assert message.state == resources_pb2.SERVICE_STATE_READY
    back = mapping.service_from_proto(message)
    assert replace(back, uid="u") == replace(record, options=record.options)
    assert not message.HasField("error")


def test_sensitive_values_are_hidden_and_without_a_driver_all_are() -> None:
    options = {"url": "postgres://u:p@h/d", "threads": 4, "password": "secrets/x"}
    assert mapping.hidden_options(options, DRIVER) == {"url": "***", "threads": 4, "password": "secrets/x"}
    assert mapping.hidden_options(options, None) == {"url": "***", "threads": "***", "password": "secrets/x"}


def test_numbers_of_a_struct_are_whole_where_they_are() -> None:
    struct = struct_pb2.Struct()
    struct.update({"a": 4, "b": 4.5, "c": [1, None, {"d": True}]})
    assert mapping.service_from_proto(resources_pb2.Service(options=struct)).options == {
        "a": 4,
        "b": 4.5,
        "c": [1, None, {"d": True}],
    }


# --- pages -----------------------------------------------------------------------------------------------------------


def test_pages_go_on_behind_a_record_that_is_gone() -> None:
    names = ["a", "b", "c", "d", "e"]

    def page(records: list[str], token: str) -> tuple[list[str], str]:
        return listing.page("L", records, lambda name: name, listing.by_name, size=2, token=token, filter_text="f")

    first, token = page(names, "")
    assert first == ["a", "b"]
    second, token = page(["a", "c", "d", "e"], token)
    assert second == ["c", "d"]
    assert page(names, token) == (["e"], "")


def test_versions_sort_as_versions() -> None:
    records = [
        replace(DRIVER, name=f"drivers/cas-{v}", manifest=MANIFEST.model_copy(update={"version": v}))
        for v in ("1.10", "1.9")
    ]
    found, token = listing.page("D", records, listing.driver_key, listing.by_version, size=1, token="", filter_text="")
    assert [record.id for record in found] == ["cas-1.9"]
    found, token = listing.page(
        "D", records, listing.driver_key, listing.by_version, size=1, token=token, filter_text=""
    )
    assert ([record.id for record in found], token) == (["cas-1.10"], "")


def test_states_in_filters_are_checked() -> None:
    [term] = listing.service_filter("state = SERVICE_STATE_READY")
    assert term.value == "READY"
    with pytest.raises(FieldInvalid, match="there is no 'OK'"):
        listing.service_filter('state = "OK"')
    terms = listing.service_filter('labels.team = "a" AND scope = "db"')
    assert listing.service_fits(terms, GOOD, "db", ServiceState.READY)
    assert not listing.service_fits(terms, replace(GOOD, labels={}), "db", ServiceState.READY)

"""The published JSON schema and the code that reads metadata.json say the same."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onecontainer.catalog.drivers import bundled_folder
from onecontainer.errors import DataInvalid
from onecontainer.rpc.manifest import metadata_schema, parse_manifest

ROOT = Path(__file__).resolve().parents[3]
FULL = {
    "name": "full",
    "version": "1.0",
    "app": "full",
    "app_version": ">=1",
    "scope": "hpc",
    "entry_point": "full:Driver",
    "description": "All that there is.",
    "descriptor_set": "full.binpb",
    "services": ["full.v1.Service"],
    "options": [
        {"name": "text", "type": "string", "description": "d", "default": "x", "allowed_values": ["x", "y"]},
        {"name": "number", "type": "int", "description": "d", "default": 1},
        {"name": "ratio", "type": "float", "description": "d", "default": 0.5},
        {"name": "flag", "type": "bool", "description": "d", "default": True, "sensitive": False},
        {"name": "wait", "type": "duration", "description": "d", "default": "1.5s", "allowed_values": [3, "1m"]},
        {"name": "many", "type": "list", "description": "d", "default": [1]},
        {"name": "table", "type": "map", "description": "d", "default": {"a": 1}},
        {"name": "needed", "type": "string", "description": "d", "required": True},
    ],
    "replicable": False,
    "exclusive_state": False,
    "job_slots": 2,
    "resources": {"memory_bytes": 1, "cpus": 0.5, "pids": 1, "devices": ["/dev/dri"]},
    "backends": [{"name": "One", "features": ["Predict.batch"]}, {"name": "Other"}],
}
VALIDATOR = jsonschema.Draft202012Validator(metadata_schema())
ONLY_CODE = ("version", "app_version", "app")
"""Fields about which the code says more than a schema can."""


def schema_paths(metadata: object) -> set[str]:
    return {error.json_path.replace("$", "metadata", 1) for error in VALIDATOR.iter_errors(metadata)}


def code_takes(metadata: object) -> bool:
    try:
        parse_manifest(json.dumps(metadata))
    except DataInvalid:
        return False
    return True


def test_the_schema_is_a_schema_and_takes_every_driver_of_ours() -> None:
    jsonschema.Draft202012Validator.check_schema(metadata_schema())
    for place in ("docs/reference", "onecontainer/rpc"):
        assert json.loads((ROOT / place / "driver-metadata.schema.json").read_text()) == metadata_schema()
    folder = bundled_folder()
    assert folder is not None
    for metadata in [FULL, *(json.loads(path.read_text()) for path in folder.glob("*/metadata.json"))]:
        assert schema_paths(metadata) == set()
        assert code_takes(metadata)


def places(value: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


PLACES = [place for place in places(FULL) if place and place[0] not in ONLY_CODE]
JUNK = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        1,
        -1,
        2.5,
        4000,
        "",
        "x",
        "X y",
        "5m",
        "a:b",
        "ai",
        "int",
        [],
        ["x"],
        [2],
        {},
        {"a": 1},
        "DELETE",
    ]
)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(PLACES), JUNK)
def test_what_the_schema_takes_the_code_takes_and_the_other_way_round(place, junk) -> None:
    metadata = copy.deepcopy(FULL)
    target = metadata
    for key in place[:-1]:
        target = target[key]
    if junk == "DELETE":
        del target[place[-1]]
    else:
        target[place[-1]] = junk
    assert (schema_paths(metadata) == set()) == code_takes(metadata), (place, junk, schema_paths(metadata))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"version": "one"}, "metadata.version"),
        ({"app_version": "about 3"}, "metadata.app_version"),
        ({"app": "cassandra:latest"}, "metadata.app"),
        ({"options": [FULL["options"][0], FULL["options"][0]]}, "metadata.options"),
        ({"backends": [FULL["backends"][0], FULL["backends"][0]]}, "metadata.backends"),
    ],
)
def test_what_only_the_code_sees_is_refused_by_it(change, field) -> None:
    with pytest.raises(DataInvalid) as caught:
        parse_manifest(json.dumps(FULL | change))
    assert [violation.field for violation in caught.value.violations] == [field]


def test_all_that_is_wrong_is_told_at_once_with_full_paths() -> None:
    metadata = FULL | {
        "scope": "games",
        "colour": "red",
        "options": [*FULL["options"][:2], {"name": "BAD", "type": "colour", "description": ""}],
        "resources": {"cpus": -1},
    }
    del metadata["entry_point"]
    expected = {
        "metadata.scope",
        "metadata.colour",
        "metadata.entry_point",
        "metadata.options[2].name",
        "metadata.options[2].type",
        "metadata.options[2].description",
        "metadata.resources.cpus",
    }
    with pytest.raises(DataInvalid) as caught:
        parse_manifest(json.dumps(metadata))
    assert {violation.field for violation in caught.value.violations} == expected

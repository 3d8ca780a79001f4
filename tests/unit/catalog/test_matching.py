from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from onecontainer.catalog.matching import match_drivers, rejection_cause
from onecontainer.catalog.model import DriverRecord, DriverSource, DriverState
from onecontainer.errors import DataInvalid
from onecontainer.rpc.manifest import Manifest, bare_app


def driver(name: str = "cas", version: str = "1.0", app: str = "cassandra", app_version: str = "") -> DriverRecord:
    manifest = Manifest(
        name=name,
        version=version,
        app=app,
        app_version=app_version,
        scope="db",
        entry_point="m:C",
        services=["x.v1.Y"],
    )
    return DriverRecord(
        f"drivers/{name}-{manifest.version}", DriverSource.BUNDLED, DriverState.READY, manifest, methods=None
    )


@pytest.mark.parametrize(
    ("app", "bare"),
    [
        ("cassandra:latest", "cassandra"),
        ("cassandra", "cassandra"),
        ("library/cassandra:3.11@sha256:00ff", "library/cassandra"),
        ("registry:5000/team/app", "registry:5000/team/app"),
        ("registry:5000/team/app:1", "registry:5000/team/app"),
    ],
)
def test_image_tag_and_digest_do_not_count(app: str, bare: str) -> None:
    assert bare_app(app) == bare
    assert rejection_cause(driver(app=bare), app, "") == ""


def test_the_named_one_then_the_highest_version_then_the_name() -> None:
    drivers = [driver("b", "1.9"), driver("a", "1.10"), driver("c", "1.10"), driver("old", "0.1")]
    names = [one.id for one in match_drivers(drivers, "cassandra").candidates]
    assert names == ["a-1.10", "c-1.10", "b-1.9", "old-0.1"]
    assert match_drivers(drivers, "cassandra", wanted="drivers/old-0.1").candidates[0].id == "old-0.1"
    assert match_drivers(drivers, "cassandra", wanted="drivers/b").candidates[0].id == "b-1.9"


def test_each_rejection_says_why() -> None:
    broken = replace(driver("broken"), state=DriverState.BROKEN, error=DataInvalid("metadata.app", "is required"))
    drivers = [driver("pg", app="postgresql"), driver("new", app_version=">=4,<6"), broken]
    match = match_drivers(drivers, "cassandra:latest", "3.11.9")
    assert match.candidates == ()
    assert {rejection.driver: rejection.cause for rejection in match.rejections} == {
        "drivers/broken-1.0": "it is BROKEN: metadata.app: is required",
        "drivers/new-1.0": 'app_version is ">=4,<6", the service has "3.11.9"',
        "drivers/pg-1.0": 'app is "postgresql", the service has "cassandra"',
    }
    assert "drivers/pg-1.0" in match.why_none("cassandra")
    assert "no driver is installed" in match_drivers([], "x").why_none("x")


def test_an_unknown_version_fits_every_range() -> None:
    assert match_drivers([driver(app_version=">=4")], "cassandra").candidates


def test_a_name_does_not_make_a_driver_fit() -> None:
    assert not match_drivers([driver(app="redis")], "cassandra", wanted="drivers/cas").candidates


versions = st.builds(
    lambda parts, pre: ".".join(map(str, parts)) + pre,
    st.lists(st.integers(0, 20), min_size=1, max_size=3),
    st.sampled_from(["", "a1", "rc2", ".post1", ".dev3"]),
)
specifiers = st.builds(
    lambda clauses: ",".join(operator + version for operator, version in clauses),
    st.lists(st.tuples(st.sampled_from([">=", "<=", ">", "<", "==", "!="]), versions), max_size=3),
)
records = st.builds(driver, st.sampled_from(["a", "b", "c"]), versions, st.sampled_from(["x", "y"]), specifiers)


@given(st.lists(records, max_size=8), versions, st.sampled_from(["", "drivers/a", "drivers/b"]))
def test_matching_is_complete_ordered_and_true(drivers: list[DriverRecord], version: str, wanted: str) -> None:
    match = match_drivers(drivers, "x:tag", version, wanted)
    assert len(match.candidates) + len(match.rejections) == len(drivers)
    for candidate in match.candidates:
        manifest = candidate.manifest
        assert manifest is not None
        assert manifest.app == "x"
        assert SpecifierSet(manifest.app_version).contains(Version(version), prereleases=True)
    assert all(rejection.cause for rejection in match.rejections)
    order = [
        (f"drivers/{one.manifest.name}" != wanted, one.manifest.name)
        for one in match.candidates
        if one.manifest is not None
    ]
    assert [first for first, _ in order] == sorted(first for first, _ in order)
    for group in (False, True):
        ranks = [
            Version(one.manifest.version)
            for one in match.candidates
            if one.manifest is not None and (f"drivers/{one.manifest.name}" != wanted) == group
        ]
        assert ranks == sorted(ranks, reverse=True)

"""Options and endpoints: where the cluster is, and how its keyspace is made."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
from onecontainer_driver_cassandra.settings import read_settings

from onecontainer.driver import errors

ONE = {"one": "h:9042"}
SECRET = "hunter2"


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("cassandra.internal", ("cassandra.internal", 9042)),
        ("10.0.0.1:9999", ("10.0.0.1", 9999)),
        ("cassandra://h:1", ("h", 1)),
        ("[::1]:9043", ("::1", 9043)),
        ("[fe80::1]", ("fe80::1", 9042)),
    ],
)
def test_contact_points(endpoint: str, expected: tuple[str, int]) -> None:
    found = read_settings({"keyspace": "k"}, {"one": endpoint, "two": "other"})
    assert found.contact_points == (expected, ("other", 9042))


def test_replication() -> None:
    def made(given: Any) -> Any:
        return dict(read_settings({"keyspace": "k", "replication": given}, ONE).replication)

    assert made(None) == {"class": "NetworkTopologyStrategy", "replication_factor": "1"}
    assert made({"dc1": 3, "dc-2": 2.0}) == {"class": "NetworkTopologyStrategy", "dc1": "3", "dc-2": "2"}
    simple = {"class": "SimpleStrategy", "replication_factor": "2"}
    assert made(simple) == simple


@pytest.mark.parametrize(
    ("options", "endpoints", "path"),
    [
        ({}, ONE, "options.keyspace"),
        ({"keyspace": "k'"}, ONE, "options.keyspace"),
        ({"keyspace": "k" * 49}, ONE, "options.keyspace"),
        ({}, {}, "endpoints"),
        ({}, {"a": "h:port"}, "endpoints"),
        ({}, {"a": "h:99999"}, "endpoints"),
        ({}, {"a": "http://h"}, "endpoints"),
        ({"replication": {"dc'": 1}}, ONE, "options.replication"),
        ({"replication": {"dc1": "1'}"}}, ONE, "options.replication"),
        ({"replication": {"dc1": 1.5}}, ONE, "options.replication"),
        ({"replication": {"dc1": True}}, ONE, "options.replication"),
        ({"replication": {"class": "Evil", "dc1": 1}}, ONE, "options.replication"),
        ({"replication": {"class": "SimpleStrategy"}}, ONE, "options.replication"),
        ({"local_datacenter": "a b"}, ONE, "options.local_datacenter"),
        ({"password": SECRET}, ONE, "options.user"),
        ({"request_timeout": 0.0}, ONE, "options.request_timeout"),
        ({"connect_timeout": 0.0}, ONE, "options.connect_timeout"),
        ({"tls_ca": SECRET}, ONE, "options.tls_ca"),
        ({"tls": True, "tls_ca": SECRET}, ONE, "options.tls_ca"),
        ({"tls": True, "tls_key": SECRET}, ONE, "options.tls_certificate"),
    ],
)
def test_wrong_settings_are_named_without_their_value(options: Any, endpoints: Any, path: str) -> None:
    if "keyspace" not in options and path != "options.keyspace":
        options = options | {"keyspace": "k"}
    with pytest.raises((errors.FieldInvalid, errors.FieldRequired)) as raised:
        read_settings(options, endpoints)
    assert raised.value.violations[0].field == path
    assert SECRET not in str(raised.value)


def test_tls_checks_certificates_and_names_unless_told_otherwise() -> None:
    on = read_settings({"keyspace": "k", "tls": True}, ONE).tls
    assert on is not None
    assert (on.verify_mode, on.check_hostname) == (ssl.CERT_REQUIRED, True)
    off = read_settings({"keyspace": "k", "tls": True, "tls_verify_hostname": False}, ONE).tls
    assert off is not None
    assert (off.verify_mode, off.check_hostname) == (ssl.CERT_REQUIRED, False)
    assert read_settings({"keyspace": "k"}, ONE).tls is None
    assert SECRET not in repr(read_settings({"keyspace": "k", "user": "u", "password": SECRET}, ONE))

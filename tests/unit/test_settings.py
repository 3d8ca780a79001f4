from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from pydantic import ValidationError

from onecontainer.settings import (
    UNIX_PATH_LIMIT,
    Settings,
    is_loopback,
    private_folder,
    reachable,
    runtime_dir,
    socket_path,
)


def test_every_setting_is_documented_with_its_default() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert "Default:" in field.description, name


def test_paths_follow_the_data_folder(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    assert settings.database_url == f"sqlite:///{tmp_path}/onecontainer.db"
    assert settings.artifact_url == f"file://{tmp_path}/artifacts"
    assert settings.internal_listen == f"unix:{tmp_path}/internal.sock"
    assert settings.secrets_dir == tmp_path / "secrets"


def test_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONECONTAINER_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("ONECONTAINER_LEASE_DURATION", "2.5")
    monkeypatch.setenv("ONECONTAINER_DRIVER_PATHS", f"/opt/a{os.pathsep}/opt/b")
    monkeypatch.setenv("ONECONTAINER_TOKENS", '{"t0ken": "alice"}')
    monkeypatch.setenv("ONECONTAINER_BACKENDS", "cassandra, web-rtmp,")
    settings = Settings()
    assert settings.backends == ["cassandra", "web-rtmp"]
    assert settings.data_dir == tmp_path
    assert settings.lease_duration == 2.5
    assert settings.driver_paths == [Path("/opt/a"), Path("/opt/b")]
    assert settings.bearer_tokens() == {"t0ken": "alice"}
    assert "t0ken" not in repr(settings)


def test_socket_path_stays_within_the_limit_of_unix(tmp_path: Path) -> None:
    assert socket_path(Path("/srv/oc"), "internal.sock") == Path("/srv/oc/internal.sock")
    fits = Path("/" + "d" * (UNIX_PATH_LIMIT - len("/internal.sock") - 1))
    assert socket_path(fits, "internal.sock") == fits / "internal.sock"
    too_long = Path(f"{fits}d")
    path = socket_path(too_long, "internal.sock")
    assert path == runtime_dir(too_long) / "internal.sock"
    assert len(os.fsencode(path)) <= UNIX_PATH_LIMIT
    assert runtime_dir(too_long) == runtime_dir(too_long) != runtime_dir(fits)
    # Bytes count, not characters.
    assert socket_path(Path("/" + "ü" * 50), "internal.sock").parent == runtime_dir(Path("/" + "ü" * 50))


def test_private_folder(tmp_path: Path) -> None:
    folder = private_folder(tmp_path / "a" / "b")
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)
    assert private_folder(folder).stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(PermissionError):
        private_folder(tmp_path / "link")


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.8.9.1:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("unix:/x/y", True),
        ("ipv4:127.0.0.1:1,127.0.0.2:2", True),
        ("ipv4:127.0.0.1:1,10.0.0.1:2", False),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("example.org:1", False),
    ],
)
def test_is_loopback(address: str, loopback: bool) -> None:
    assert is_loopback(address) is loopback


def test_the_internal_listeners_addresses_are_checked() -> None:
    for wrong in ("50052", "host:", "http://x"):
        with pytest.raises(ValidationError, match="internal_listen"):
            Settings(internal_listen=wrong)
        with pytest.raises(ValidationError, match="internal_advertise"):
            Settings(internal_advertise=wrong)
    Settings(internal_listen="0.0.0.0:50052", internal_advertise="gateway.internal:50052")


def test_others_reach_a_listener_on_all_addresses_by_the_machines_name() -> None:
    assert reachable("0.0.0.0:1") == reachable("[::]:1") == f"{socket.gethostname()}:1"
    assert reachable("10.0.0.1:1") == "10.0.0.1:1"


def test_listening_elsewhere_needs_tls_and_a_principal() -> None:
    with pytest.raises(ValidationError, match="not loopback"):
        Settings(listen="0.0.0.0:1")
    with pytest.raises(ValidationError, match="not loopback"):
        Settings(listen="0.0.0.0:1", tokens={"t": "p"})
    with pytest.raises(ValidationError, match="not loopback"):
        Settings(listen="0.0.0.0:1", tls_cert_file=Path("c"), tls_key_file=Path("k"))
    with pytest.raises(ValidationError, match="go together"):
        Settings(tls_cert_file=Path("c"))
    Settings(listen="0.0.0.0:1", tls_cert_file=Path("c"), tls_key_file=Path("k"), tokens={"t": "p"})


@pytest.mark.parametrize(
    "listen", ["50051", "host", "host:", ":1", "host:99999", "host:port", "host:²", "::1:80", "a:b:80"]
)
def test_listen_is_host_and_port(listen: str) -> None:
    for setting in ("listen", "rest_listen"):
        with pytest.raises(ValidationError, match="HOST:PORT"):
            Settings.model_validate({setting: listen})


def test_rest_listens_on_any_port_that_there_is_or_not_at_all() -> None:
    for address in ("", "127.0.0.1:0", "[::1]:65535", "host:80"):
        assert Settings(rest_listen=address).rest_listen == address


def test_tokens_file(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("# who token\nalice  abc # her laptop\n\nbob def\n")
    settings = Settings(tokens_file=path, tokens={"xyz": "carol"})
    path.chmod(0o644)
    with pytest.raises(ValueError, match="chmod 600"):
        settings.bearer_tokens()
    path.chmod(0o600)
    assert settings.bearer_tokens() == {"abc": "alice", "def": "bob", "xyz": "carol"}
    path.write_text("alice\n")
    with pytest.raises(ValueError, match="line 1"):
        settings.bearer_tokens()

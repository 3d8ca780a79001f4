"""Small parts of the SDK: context outside of jobs, requirements of a driver, settings, threads."""

from __future__ import annotations

import asyncio
import contextvars
from pathlib import Path

import pytest
from google.protobuf.wrappers_pb2 import Int64Value
from pydantic import ValidationError

from onecontainer import errors
from onecontainer.driver import Context, to_status
from onecontainer.driver.auth import SidecarAuthenticator
from onecontainer.driver.context import CallFacts
from onecontainer.driver.entry_point import missing_requirements
from onecontainer.driver.isolation import run_in_thread
from onecontainer.driver.settings import SidecarSettings
from onecontainer.errors import Code, CredentialsInvalid, NotAttached
from onecontainer.rpc.status import from_status


async def test_in_a_direct_call_telling_is_without_effect(tmp_path: Path) -> None:
    context = Context(CallFacts(service="services/s"), asyncio.get_running_loop(), scratch_root=tmp_path / "scratch")
    context.progress(1, 2)
    context.checkpoint(Int64Value(value=1))
    await context.declare(idempotent=False)
    assert context.job is None
    assert context.time_remaining() is None
    with pytest.raises(errors.StateInvalid, match="internal_target"):
        _ = context.artifacts
    assert context.scratch == context.scratch
    assert context.scratch.parent == tmp_path / "scratch"


async def test_run_sync_in_the_loop_would_wait_for_itself() -> None:
    context = Context(CallFacts(service="services/s"), asyncio.get_running_loop())
    with pytest.raises(RuntimeError, match="plain `def`"):
        context.run_sync(context.declare())
    assert await asyncio.to_thread(lambda: context.run_sync(asyncio.sleep(0, "there"))) == "there"


async def test_wait_finishing_returns_for_both_ways_of_being_told() -> None:
    for tell in (Context._finish, Context._cancel):
        context = Context(CallFacts(service="services/s"), asyncio.get_running_loop())
        waiting = asyncio.create_task(context.wait_finishing())
        await asyncio.sleep(0)
        assert not waiting.done()
        tell(context)
        await asyncio.wait_for(waiting, 120)
        await asyncio.wait_for(context.wait_finishing(), 120)


VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE")


async def test_a_thread_has_the_callers_context_variables_and_its_errors_come_back() -> None:
    VARIABLE.set("here")
    assert await run_in_thread(VARIABLE.get) == "here"
    with pytest.raises(KeyError):
        await run_in_thread({}.__getitem__, "x")


def test_requirements_that_are_not_met(tmp_path: Path) -> None:
    assert missing_requirements(tmp_path) == []
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["grpcio>=1", "grpcio>=999", "no-such-package", "other; python_version < \'3\'", "%%"]\n'
    )
    assert missing_requirements(tmp_path) == ["grpcio>=999", "no-such-package"]


def test_settings_come_from_the_starters_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONECONTAINER_LISTEN", "unix:/x")
    monkeypatch.setenv("ONECONTAINER_LOG_LEVEL", "WARNING")
    monkeypatch.setenv("ONECONTAINER_TOKEN_FILE", "")
    monkeypatch.setenv("ONECONTAINER_MAX_MESSAGE_BYTES", "2048")
    settings = SidecarSettings()
    assert (settings.listen, settings.log_level, settings.max_message_bytes) == ("unix:/x", "warning", 2048)
    assert settings.token() is None
    for listen in ("0.0.0.0:1", "sidecar:1"):
        with pytest.raises(ValueError, match="not loopback"):
            SidecarSettings(listen=listen)
    with pytest.raises(ValueError, match="go together"):
        SidecarSettings(tls_cert_file=tmp_path)


REGISTERING = {"gateway": "127.0.0.1:1", "service": "services/x", "registration_token_file": "token"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"service": ""}, "needs service"),
        ({"registration_token_file": None}, "needs service and registration_token_file"),
        ({"token_file": "t"}, "leave out instance and token_file"),
        ({"gateway": "gateway.internal:1"}, "needs tls_ca_file"),
        ({"listen": "0.0.0.0:1"}, "needs tls_cert_file"),
    ],
)
def test_what_registering_needs_is_told(changes: dict[str, object], says: str) -> None:
    SidecarSettings(**REGISTERING)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match=says):
        SidecarSettings(**REGISTERING | changes)  # type: ignore[arg-type]


def test_one_that_registers_lets_nobody_in_before_it_has_its_token() -> None:
    authenticator = SidecarAuthenticator(None, registers=True)
    with pytest.raises(NotAttached) as caught:
        authenticator.authenticate([("authorization", "Bearer x")])
    assert (caught.value.code, caught.value.retry_after is not None) == (Code.UNAVAILABLE, True)
    authenticator.admit("x")
    authenticator.authenticate([("authorization", "Bearer x")])
    with pytest.raises(CredentialsInvalid):
        authenticator.authenticate([])


def test_a_secrets_name_does_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "outside").write_text("x")
    settings = SidecarSettings(secrets_dir=tmp_path / "secrets")
    assert settings.secrets({"../outside"}) == {}


def test_a_call_for_another_instance_or_service() -> None:
    authenticator = SidecarAuthenticator(None, "sidecars/a")
    authenticator.authenticate((("onecontainer-instance", "sidecars/a"), ("onecontainer-service", "services/any")))
    with pytest.raises(errors.WrongInstance):
        authenticator.authenticate((("onecontainer-instance", "sidecars/b"),))
    authenticator.service = "services/mine"
    with pytest.raises(errors.WrongInstance):
        authenticator.authenticate((("onecontainer-service", "services/any"),))


@pytest.mark.parametrize(
    ("error", "hop"),
    [
        (errors.DataInvalid("rows[1]", "is odd"), "sidecar"),
        (errors.BackendUnreachable("nobody there"), "backend"),
        (errors.BackendUnreachable("nobody there", hop="gateway"), "gateway"),
        (ValueError("secret"), "sidecar"),
    ],
)
def test_the_status_of_an_item_says_where_it_arose(error: Exception, hop: str) -> None:
    status = to_status(error)
    assert from_status(status).metadata["hop"] == hop
    assert "secret" not in status.message

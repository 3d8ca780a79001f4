"""What a command that talks to a gateway gets: the client, and how to show things."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click
from google.protobuf import descriptor_pool

from onecontainer.cli.options import connection_options
from onecontainer.cli.render import Screen
from onecontainer.client import DEFAULT_ADDRESS, Client, RetryPolicy, Tls
from onecontainer.client.reflection import Reflection
from onecontainer.errors import OneContainerError

DEFAULT_TIMEOUT = 60.0
WORTH_A_WORD = 0.5
"""Seconds of a wait from which on it is told."""


class Session:
    """One run of a command against a gateway.

    Attributes:
        address: where the gateway is.
        timeout: seconds that the user gave. None: the defaults.
        screen: shows results, as the user wants them.
    """

    def __init__(self, address: str, token: str | None, tls: Tls | None, timeout: float | None, output: str) -> None:
        self.address = address
        self.timeout = timeout
        self._token = token
        self._tls = tls
        self._client: Client | None = None
        self._told = False
        self.screen = Screen(output, self.find_types)

    @property
    def client(self) -> Client:
        """The client; made on first use."""
        if self._client is None:
            self._client = Client(
                self.address,
                token=self._token,
                tls=self._tls,
                timeout=self.timeout or DEFAULT_TIMEOUT,
                retry=RetryPolicy(on_retry=self._tell_retry),
            )
        return self._client

    def _tell_retry(self, error: OneContainerError, wait: float) -> None:
        """Says once why nothing seems to happen. Short breaks are not worth a word."""
        if not self._told and wait > WORTH_A_WORD:
            self._told = True
            click.echo(f"not available yet, trying again (Ctrl-C ends it): {error.message}", err=True)

    def use_pool(self, pool: descriptor_pool.DescriptorPool) -> None:
        """Shows messages of this pool, too."""
        self.screen.pool = pool

    def find_types(self, *names: str) -> Any:
        """A descriptor pool with these messages, asked from the gateway: for what plug-ins put into an Any."""

        async def load() -> Any:
            reflection = Reflection(self.client.inner.caller)
            for name in names:
                await reflection.load_symbol(name)
            return reflection.pool

        return self.client.portal.run(load)

    def close(self) -> None:
        """Ends the connection; a further use of `client` makes a new one."""
        if self._client is not None:
            self._client.close()
            self._client = None


def connected(function: Callable[..., None]) -> Callable[..., None]:
    """Makes a command's function get a Session first, and adds the options that describe it. Put it below `command`."""

    @connection_options
    @functools.wraps(function)
    def run(**kwargs: Any) -> None:
        ctx = click.get_current_context()
        given = ctx.find_root().params
        chosen = {
            name: _chosen(kwargs.pop(name), given.get(name))
            for name in ("address", "token", "ca_file", "tls", "timeout", "output")
        }
        address = chosen["address"] or running_address() or DEFAULT_ADDRESS
        tls = Tls(ca_file=chosen["ca_file"]) if chosen["ca_file"] or chosen["tls"] else None
        session = Session(address, chosen["token"], tls, chosen["timeout"], chosen["output"] or "table")
        ctx.meta["onecontainer.output"] = session.screen.output
        ctx.meta["onecontainer.address"] = address
        ctx.call_on_close(session.close)
        function(session, **kwargs)

    return run


def session_at(address: str, output: str) -> Session:
    """A session with the gateway there, for a command without these options of its own: the root's are taken."""
    given = click.get_current_context().find_root().params
    ca_file, token = given.get("ca_file"), given.get("token")
    tls = Tls(ca_file=ca_file) if ca_file or given.get("tls") else None
    return Session(address, token, tls, given.get("timeout"), output)


def connection_variables() -> dict[str, str]:
    """The root's options as variables, for an `oca` of our own."""
    given = click.get_current_context().find_root().params
    return {f"ONECONTAINER_{name.upper()}": str(given[name]) for name in ("token", "ca_file") if given.get(name)}


def connection_flags() -> list[str]:
    """The root's options that no variable stands for."""
    return ["--tls"] if click.get_current_context().find_root().params.get("tls") else []


def _chosen(own: Any, of_root: Any) -> Any:
    return own if own is not None else of_root


def running_address() -> str | None:
    """Address of the gateway that runs on the default data folder (or ONECONTAINER_DATA_DIR) of this machine."""
    from onecontainer.cli.process import note_of, settings_of

    note = note_of(settings_of(None).data_dir)
    return note.address if note is not None else None

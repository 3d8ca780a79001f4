"""Channels and their options: one place for message limits and keepalive of both sides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import grpc

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Largest message by default, in bytes. What is larger goes as an artifact."""
KEEPALIVE_SECONDS = 20
# The limit is checked by us, with a typed error that names the way out. gRPC's own bound, whose error cannot, lies so far above
# that only what is more than twice too large meets it.
RECEIVE_HEADROOM = 2

Options = Sequence[tuple[str, int | str]]


def server_options(max_message_bytes: int = MAX_MESSAGE_BYTES) -> list[tuple[str, int | str]]:
    """Options of a server. A second one on the same port is refused (SO_REUSEPORT off): a recycled address must not answer for another."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes * RECEIVE_HEADROOM),
        ("grpc.max_send_message_length", max_message_bytes * RECEIVE_HEADROOM),
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.max_metadata_size", 64 * 1024),
    ]


def channel_options(max_message_bytes: int = MAX_MESSAGE_BYTES) -> list[tuple[str, int | str]]:
    """Options of a client's channel. Retries are not gRPC's: each hop has one owner of them."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes * RECEIVE_HEADROOM),
        ("grpc.max_send_message_length", max_message_bytes * RECEIVE_HEADROOM),
        ("grpc.enable_retries", 0),
        ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        # Not a wait between attempts but the time that one may take: a busy peer needs more than an instant for its first frame.
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_metadata_size", 64 * 1024),
    ]


def open_channel(
    target: str,
    *,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    ca_file: Path | None = None,
    roots: bytes | None = None,
    tls: bool = False,
    server_name: str = "",
) -> grpc.aio.Channel:
    """A channel to ``target`` (``host:port`` or ``unix:/path``), with TLS if ``tls`` is set or authorities are given: a CA file, or
    ``roots``, both PEM. ``server_name`` is what the server's certificate is to be for, if not the target's host."""
    options = channel_options(max_message_bytes)
    if target.startswith("unix:"):
        # Without it gRPC takes the percent-encoded path as the authority, which some servers refuse.
        options.append(("grpc.default_authority", "localhost"))
    if server_name:
        options += [("grpc.ssl_target_name_override", server_name), ("grpc.default_authority", server_name)]
    if ca_file is not None:
        roots = ca_file.read_bytes()
    if tls or roots is not None:
        return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(roots), options=options)
    return grpc.aio.insecure_channel(target, options=options)

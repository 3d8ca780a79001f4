"""The relay to RTMP servers: the key goes to the server alone, wherever the bytes are cut."""

from __future__ import annotations

import asyncio
import itertools
import os

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onecontainer_driver_ffmpeg import relay as relays
from onecontainer_driver_ffmpeg.relay import KeySwap, Receiver, rtmp_relay

HANDSHAKE = 1 + 2 * 1536


def message(name: str, transaction: int, text: str) -> bytes:
    """An AMF0 command with a string, as a publisher sends it (RTMP 1.0, section 7.2)."""

    def string(value: str) -> bytes:
        return b"\x02" + len(value).to_bytes(2, "big") + value.encode()

    return string(name) + b"\x00" + bytes([0x40, transaction, 0, 0, 0, 0, 0, 0]) + b"\x05" + string(text)


def chunked(body: bytes, size: int = 128, channel: int = 3) -> bytes:
    head = bytes([channel, 0, 0, 0]) + len(body).to_bytes(3, "big") + bytes([20, 0, 0, 0, 0])
    return head + bytes([0xC0 | channel]).join(body[start : start + size] for start in range(0, len(body), size))


def publisher(text: str, handshake: bytes, media: bytes) -> bytes:
    commands = [
        message("connect", 1, "rtmp://a/publish"),
        message("releaseStream", 2, text),
        message("FCPublish", 3, text),
    ]
    return (
        handshake
        + b"".join(map(chunked, commands))
        + chunked(message("createStream", 4, "") + b"\x02")
        + chunked(message("publish", 5, text) + b"\x02\x00\x04live", channel=8)
        + media
    )


@example(key="0000", cuts=[HANDSHAKE + 180])
@example(key="0000", cuts=list(range(HANDSHAKE, HANDSHAKE + 2500)))
@settings(max_examples=100, deadline=None)
@given(
    key=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7D), min_size=4, max_size=300),
    cuts=st.lists(st.integers(0, HANDSHAKE + 2500), max_size=12),
)
def test_the_key_stands_where_its_stand_in_stood(key: str, cuts: list[int]) -> None:
    stand_in = Receiver("", "", 1935, key=key).stand_in
    assert len(stand_in) == len(key)
    # The handshake and the media are any bytes, also those of the stand-in: they go through as they are.
    trap = b"\x02" + len(key).to_bytes(2, "big") + stand_in.encode()
    handshake = (b"\x03" + os.urandom(100) + trap + os.urandom(HANDSHAKE))[:HANDSHAKE]
    media = trap + os.urandom(300)
    sent, wanted = (publisher(text, handshake, media) for text in (stand_in, key))
    swap = KeySwap(key)
    got = b""
    edges = sorted({0, len(sent), *(min(cut, len(sent)) for cut in cuts)})
    for start, end in itertools.pairwise(edges):
        got += swap.feed(sent[start:end])
    got += swap.flush()
    assert got == wanted


@pytest.mark.parametrize("key", ["", "abcd"])
def test_what_is_complete_is_not_kept_back(key: str) -> None:
    swap = KeySwap(key)
    assert len(swap.feed(bytes(HANDSHAKE))) == HANDSHAKE
    command = chunked(message("connect", 1, "live"))
    assert swap.feed(command) == command
    assert not swap.holds


async def test_a_slow_receiver_gets_the_end_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """ffmpeg ends when the relay has its last bytes, which are then still on their way."""
    monkeypatch.setattr(relays, "_LAST_BYTES_TIMEOUT", 120.0)
    sent, got = os.urandom(8 << 20), bytearray()
    slow, whole = asyncio.Event(), asyncio.Event()

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            got.extend(data)
            if not slow.is_set():
                await asyncio.sleep(0.002)
        writer.close()
        whole.set()

    server = await asyncio.start_server(receive, "127.0.0.1", 0, limit=1 << 16)
    async with server:
        async with rtmp_relay(Receiver("127.0.0.1", "localhost", server.sockets[0].getsockname()[1])) as relay:
            _, ffmpeg = await asyncio.open_connection("127.0.0.1", relay.port)
            ffmpeg.write(sent)
            await ffmpeg.drain()
            ffmpeg.close()
            await ffmpeg.wait_closed()
        slow.set()
        await asyncio.wait_for(whole.wait(), 120)
    assert bytes(got) == sent

"""`Output.live`: MPEG-TS over UDP or SRT, FLV over RTMP. What is said to ffmpeg only when it starts is in `started`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import ClassVar
from urllib.parse import urlencode

from onecontainer.api.media.v1 import media_pb2, output_pb2, pipeline_pb2
from onecontainer.driver import errors
from onecontainer_driver_ffmpeg.capabilities import Capabilities
from onecontainer_driver_ffmpeg.containers import CONTAINERS, Container
from onecontainer_driver_ffmpeg.media_info import seconds
from onecontainer_driver_ffmpeg.relay import Receiver, rtmp_relay
from onecontainer_driver_ffmpeg.secrets import HIDDEN
from onecontainer_driver_ffmpeg.settings import Settings
from onecontainer_driver_ffmpeg.stream_plan import StreamDraft
from onecontainer_driver_ffmpeg.targets.target import (
    Known,
    Pick,
    Started,
    Target,
    Written,
)
from onecontainer_driver_ffmpeg.values import muxer_params

# What every receiver and every browser behind it plays, instead of the muxers' own defaults of long ago.
_DEFAULTS = (("video", "h264"), ("audio", "aac"))
# A viewer who comes later waits no longer for a key frame, and HLS servers cut there.
_KEY_FRAMES = 2.0  # seconds
TS = replace(CONTAINERS["ts"], defaults=_DEFAULTS, key_frames=_KEY_FRAMES)
FLV = replace(CONTAINERS["flv"], defaults=_DEFAULTS, key_frames=_KEY_FRAMES, holds=frozenset({"h264", "aac", "mp3"}))
_DEFAULT_VIDEO = (("-pix_fmt", "yuv420p"),)
_QUICK = {"libx264": (("-preset", "veryfast"),)}

_DATAGRAM = 7 * 188  # whole packets of MPEG-TS that fit into an Ethernet frame
_APP, _STREAM_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}"), re.compile(r"[A-Za-z0-9_-]{1,128}")
_KEY, _PASSPHRASE = re.compile(r"[\x21-\x7d]{4,512}"), re.compile(r"[\x20-\x7e]{10,64}")
_LEAST_LATENCY, _MOST_LATENCY, _LATENCY = 0.02, 8.0, 0.12
_CONNECT_TIMEOUT = 5.0
# Longest that a receiver may take nothing and say nothing.
_SILENCE_TIMEOUT = 10.0
_NOT_THERE = re.compile(
    r"Connection (to \S+ failed|refused|reset|timed out|was broken|does not exist)|Broken pipe"
    r"|Input/output error|timed out|unreachable|No route to host|End of file"
)


class LiveTarget(Target):
    """`address` is what is shown of the sink's address in the command, and `live_url` what is told of it."""

    makes_files: ClassVar[bool] = False
    total_size_told: ClassVar[bool] = True
    kind: ClassVar[str]

    def __init__(
        self,
        output: output_pb2.Output,
        at: str,
        container: Container,
        *,
        capabilities: Capabilities,
        settings: Settings,
        muxing: Sequence[str],
    ) -> None:
        super().__init__(output, at, container)
        self._capabilities = capabilities
        self._settings = settings
        self._muxing = muxing
        self._host_at = f"{at}.live.{self.kind}.host"

    async def draft_default(self, kind: str, capabilities: Capabilities) -> StreamDraft | None:
        draft = await super().draft_default(kind, capabilities)
        if draft is None or kind != "video":
            return draft
        return replace(draft, pairs=(*draft.pairs, *_QUICK.get(draft.encoder, ()), *_DEFAULT_VIDEO))

    def _unreachable(self, why: str) -> errors.OneContainerError:
        return errors.BackendUnreachable(
            f"{self._host_at}: the receiver cannot be reached: {why}",
            violations=[errors.FieldViolation(self._host_at, f"cannot be reached: {why}")],
            retry_after=5.0,
            hop="backend",
        )

    def _failure(self, lines: Sequence[str]) -> errors.OneContainerError | None:
        """What the log of a failed process says about the receiver; None: nothing."""
        if any("Address already in use" in line for line in lines):
            port = self._host_at.removesuffix("host") + "port"
            return errors.ResourceConflict(f"{port}: another process of the sidecar's machine has this port")
        told = [line for line in lines if _NOT_THERE.search(line)]
        return self._unreachable(told[0]) if told else None


class UdpTarget(LiveTarget):
    kind = "udp"

    def write(self, known: Known) -> Written:
        return Written([*self._muxing, "-f", "mpegts", self._address(self._sink.host)], live_url=self._url)

    @property
    def _sink(self) -> output_pb2.UdpSink:
        return self.output.live.udp

    @property
    def _url(self) -> str:
        return f"udp://{_bracketed(self._sink.host)}:{self._sink.port}"

    def _address(self, host: str) -> str:
        # `ttl` is of multicast datagrams alone.
        options = {"pkt_size": _DATAGRAM, "ttl": self._sink.multicast_ttl or 1}
        return f"udp://{_bracketed(host)}:{self._sink.port}?{urlencode(options)}"

    @contextlib.asynccontextmanager
    async def started(self) -> AsyncIterator[Started]:
        address = await self._settings.sinks.resolve(self._sink.host, self._sink.port, self._host_at)
        yield Started({self._address(self._sink.host): self._address(address)}, failure=self._failure)


class SrtTarget(LiveTarget):
    kind = "srt"
    _STAND_IN = "{passphrase}"

    @property
    def _sink(self) -> output_pb2.SrtSink:
        return self.output.live.srt

    @property
    def _listens(self) -> bool:
        return self._sink.mode == output_pb2.SRT_MODE_LISTENER

    @property
    def _host(self) -> str:
        return self._sink.host or "127.0.0.1"

    def _passphrase(self) -> str:
        reference = self._sink.passphrase_secret
        return _text(
            self._settings, reference, _PASSPHRASE, "10 to 64 characters", f"{self.at}.live.srt.passphrase_secret"
        )

    def write(self, known: Known) -> Written:
        sink = self._sink
        words = list(self._muxing)
        hidden = {}
        if sink.stream_id:
            words += ["-srt_streamid", sink.stream_id]
        if sink.passphrase_secret:
            words += ["-passphrase", self._STAND_IN]
            hidden[self._passphrase()] = HIDDEN
        words += ["-f", "mpegts", self._address(self._host)]
        return Written(words, hidden=hidden, live_url=f"srt://{_bracketed(self._host)}:{sink.port}")

    def _address(self, host: str) -> str:
        sink = self._sink
        latency = seconds(sink.latency) if sink.HasField("latency") else _LATENCY
        options: dict[str, object] = {
            "mode": "listener" if self._listens else "caller",
            "latency": round(latency * 1_000_000),
            "pkt_size": _DATAGRAM,
        }
        if not self._listens:
            options["connect_timeout"] = round(_CONNECT_TIMEOUT * 1000)
        return f"srt://{_bracketed(host)}:{sink.port}?{urlencode(options)}"

    @contextlib.asynccontextmanager
    async def started(self) -> AsyncIterator[Started]:
        sink = self._sink
        host = self._host
        if not self._listens:
            host = await self._settings.sinks.resolve(host, sink.port, self._host_at)
        words = {self._address(self._host): self._address(host)}
        stdin = b""
        warnings = []
        if sink.passphrase_secret:
            if await self._capabilities.takes_options_from_files():
                words |= {"-passphrase": "-fpre", self._STAND_IN: "/dev/stdin"}
                stdin = f"passphrase={self._passphrase()}\n".encode("ascii")
            else:
                words[self._STAND_IN] = self._passphrase()
                seen = (
                    "was on ffmpeg's command line, which others on the sidecar's machine can see: this build takes it from "
                    "nowhere else (Debian 12's does: option ffmpeg_path)"
                )
                warnings.append((f"{self.at}.live.srt.passphrase_secret", seen))
        yield Started(words, stdin, failure=self._failure, warnings=warnings)


class RtmpTarget(LiveTarget):
    kind = "rtmp"

    @property
    def _sink(self) -> output_pb2.RtmpSink:
        return self.output.live.rtmp

    @property
    def _port(self) -> int:
        return self._sink.port or (443 if self._sink.tls else 1935)

    @property
    def _url(self) -> str:
        """Of the application, as the server knows it."""
        scheme = "rtmps" if self._sink.tls else "rtmp"
        return f"{scheme}://{_bracketed(self._sink.host)}:{self._port}/{self._sink.app}"

    def _receiver(self, address: str = "") -> Receiver:
        key = ""
        if self._sink.stream_key_secret:
            at = f"{self.at}.live.rtmp.stream_key_secret"
            key = _text(self._settings, self._sink.stream_key_secret, _KEY, "4 to 512 characters without spaces", at)
        return Receiver(address, self._sink.host, self._port, self._sink.tls, key)

    def check_drafts(self, drafts: Sequence[tuple[Pick, StreamDraft]]) -> None:
        kinds: set[str] = set()
        for pick, draft in drafts:
            if draft.kind == "subtitle" or draft.kind in kinds:
                raise errors.FieldInvalid(pick.at, "is too much: RTMP takes one video and one audio stream")
            kinds.add(draft.kind)

    def write(self, known: Known) -> Written:
        receiver = self._receiver()
        name = self._sink.stream_name or receiver.stand_in
        hidden = {receiver.key: HIDDEN, receiver.stand_in: "{stream_key}"} if receiver.key else {}
        words = ["-rtmp_playpath", name, "-rtmp_tcurl", self._url, "-rw_timeout", f"{_SILENCE_TIMEOUT * 1_000_000:.0f}"]
        # A live stream has no header that could be set right at its end.
        words += ["-flvflags", "no_duration_filesize", "-f", "flv", self._address]
        return Written(
            [*self._muxing, *words], hidden=hidden, live_url=f"{self._url}/{self._sink.stream_name}".rstrip("/")
        )

    @property
    def _address(self) -> str:
        """What stands in the command for the relay's address."""
        return f"{self._url}/"

    @contextlib.asynccontextmanager
    async def started(self) -> AsyncIterator[Started]:
        address = await self._settings.sinks.resolve(self._sink.host, self._port, self._host_at)
        async with rtmp_relay(self._receiver(address)) as relay:

            def failure(lines: Sequence[str]) -> errors.OneContainerError | None:
                if relay.trouble:
                    return self._unreachable(relay.trouble)
                if relay.silent:
                    return self._unreachable("it does not answer as RTMP servers do")
                return self._failure(lines)

            yield Started({self._address: f"rtmp://127.0.0.1:{relay.port}/{self._sink.app}"}, failure=failure)


_TARGETS: dict[str, tuple[type[LiveTarget], Container]] = {
    "udp": (UdpTarget, TS),
    "srt": (SrtTarget, TS),
    "rtmp": (RtmpTarget, FLV),
}
PROTOCOLS = frozenset(_TARGETS)
"""Names of ffmpeg's protocols that live sinks need."""


async def check(output: output_pb2.Output, capabilities: Capabilities, settings: Settings, at: str) -> Target:
    kind = output.live.WhichOneof("sink")
    if kind is None:
        raise errors.FieldRequired(f"{at}.live.udp", "a sink is required")
    if kind not in capabilities.output_protocols:
        raise errors.BackendCapabilityMissing(
            f"{at}.live.{kind}",
            f"this build of ffmpeg does not speak {kind}; one that does is set by the option ffmpeg_path",
        )
    where = f"{at}.live.{kind}"
    if kind == "udp":
        _check_udp(output.live.udp, settings, where)
    elif kind == "srt":
        _check_srt(output.live.srt, settings, where)
    else:
        _check_rtmp(output.live.rtmp, settings, where)
    target, container = _TARGETS[kind]
    own = await capabilities.muxer_options(container.muxer)
    muxing = muxer_params(output.muxer_params, container.muxer, own, f"{at}.muxer_params")
    made = target(output, at, container, capabilities=capabilities, settings=settings, muxing=muxing)
    if isinstance(made, SrtTarget) and made.output.live.srt.passphrase_secret:
        made._passphrase()
    elif isinstance(made, RtmpTarget):
        made._receiver()
    return made


def _check_udp(sink: output_pb2.UdpSink, settings: Settings, at: str) -> None:
    _check_port(sink.port, f"{at}.port")
    if not 0 <= sink.multicast_ttl <= 255:
        raise errors.FieldInvalid(f"{at}.multicast_ttl", "is not between 1 and 255")
    settings.sinks.check_host(sink.host, sink.port, f"{at}.host")


def _check_srt(sink: output_pb2.SrtSink, settings: Settings, at: str) -> None:
    _check_port(sink.port, f"{at}.port")
    if sink.mode == output_pb2.SRT_MODE_LISTENER:
        settings.sinks.check_listener(sink.host or "127.0.0.1", sink.port, f"{at}.host")
    else:
        settings.sinks.check_host(sink.host, sink.port, f"{at}.host")
    if sink.HasField("latency") and not _LEAST_LATENCY <= seconds(sink.latency) <= _MOST_LATENCY:
        raise errors.FieldInvalid(f"{at}.latency", "is not between 20 ms and 8 s")
    if len(sink.stream_id) > 512 or not sink.stream_id.isprintable():
        raise errors.FieldInvalid(f"{at}.stream_id", "has control characters or more than 512 characters")


def _check_rtmp(sink: output_pb2.RtmpSink, settings: Settings, at: str) -> None:
    if not 0 <= sink.port <= 65535:
        raise errors.FieldInvalid(f"{at}.port", "is not between 1 and 65535")
    if not sink.app:
        raise errors.FieldRequired(f"{at}.app")
    if not _APP.fullmatch(sink.app):
        raise errors.FieldInvalid(f"{at}.app", "is not of the form [A-Za-z0-9_-]{1,64}")
    if not (sink.stream_name or sink.stream_key_secret):
        raise errors.FieldRequired(f"{at}.stream_name", "or stream_key_secret is required")
    if sink.stream_name and not _STREAM_NAME.fullmatch(sink.stream_name):
        raise errors.FieldInvalid(f"{at}.stream_name", "is not of the form [A-Za-z0-9_-]{1,128}")
    settings.sinks.check_host(sink.host, sink.port or (443 if sink.tls else 1935), f"{at}.host")


def _check_port(port: int, at: str) -> None:
    if not 1024 <= port <= 65535:
        raise errors.FieldInvalid(at, "is not between 1024 and 65535")


def _text(settings: Settings, reference: str, form: re.Pattern[str], told: str, at: str) -> str:
    """The text of a secret, of that form."""
    text = settings.secrets.lookup(reference, at)
    if not form.fullmatch(text):
        raise errors.FieldInvalid(at, f"is a secret that cannot be used here: it takes {told}")
    return text


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def check_lives(request: media_pb2.RunPipelineRequest, settings: Settings) -> list[pipeline_pb2.Warning]:
    """What is only seen of all outputs together. LimitExceeded if some would wait for the end of others; warnings of advice."""
    live = [index for index, output in enumerate(request.outputs) if output.WhichOneof("target") == "live"]
    if len(live) > settings.processes:
        raise errors.LimitExceeded(
            f"outputs[{live[settings.processes]}].live: {len(live)} live sinks at a time, and this service runs {settings.processes} "
            "processes (option processes)"
        )
    if not live:
        return []
    return [
        pipeline_pb2.Warning(
            field=f"inputs[{index}].real_time",
            message="is not set: a file is sent to a live sink as fast as it can be read, and most receivers cannot take that",
        )
        for index, one in enumerate(request.inputs)
        if one.source.WhichOneof("source") in ("artifact", "path") and not one.real_time
    ]

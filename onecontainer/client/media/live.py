"""Live sinks: from the URLs that people know to the contract's messages."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from onecontainer.api.media.v1 import input_pb2, output_pb2, stream_pb2
from onecontainer.api.media.v1 import media_pb2 as pb
from onecontainer.client.media import SourceLike, to_source
from onecontainer.client.names import full_name, seconds

_OPTIONS = {"udp": {"ttl"}, "srt": {"mode", "latency", "streamid", "passphrase_secret"}, "rtmp": set(), "rtmps": set()}


def live_output(url: str) -> output_pb2.LiveOutput:
    """The sink for `udp://host:port[?ttl=]`, `srt://host:port[?mode=caller|listener&latency=MS&streamid=&passphrase_secret=]`,
    `rtmp://host[:port]/app/name` or `rtmps://…`. ValueError, with what is wrong, for anything else.

    Passphrases and stream keys are the service's secrets and have no place in a URL: `passphrase_secret` is a secret's name.
    """
    parts = urlsplit(url)
    if parts.scheme not in _OPTIONS:
        raise ValueError("is no udp://, srt://, rtmp:// or rtmps:// URL")
    if not parts.hostname or parts.username is not None or parts.fragment:
        raise ValueError("needs a host, and takes no user name and no fragment")
    options = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    if unknown := sorted(set(options) - _OPTIONS[parts.scheme]):
        raise ValueError(f"{parts.scheme} takes no {unknown[0]!r}")
    if parts.scheme.startswith("rtmp"):
        app, _, name = parts.path.strip("/").partition("/")
        if not app or not name or "/" in name:
            raise ValueError("needs a path of the form /APP/NAME")
        return output_pb2.LiveOutput(
            rtmp=output_pb2.RtmpSink(
                host=parts.hostname, port=parts.port or 0, app=app, stream_name=name, tls=parts.scheme == "rtmps"
            )
        )
    if parts.port is None or parts.path.strip("/"):
        raise ValueError("needs a port and takes no path")
    if parts.scheme == "udp":
        ttl = _number(options, "ttl")
        return output_pb2.LiveOutput(udp=output_pb2.UdpSink(host=parts.hostname, port=parts.port, multicast_ttl=ttl))
    modes = {"caller": output_pb2.SRT_MODE_CALLER, "listener": output_pb2.SRT_MODE_LISTENER}
    if options.get("mode", "caller") not in modes:
        raise ValueError("has a mode that is neither caller nor listener")
    return output_pb2.LiveOutput(
        srt=output_pb2.SrtSink(
            host=parts.hostname,
            port=parts.port,
            mode=modes[options.get("mode", "caller")],
            latency=seconds(_number(options, "latency") / 1000) if "latency" in options else None,
            stream_id=options.get("streamid", ""),
            passphrase_secret=full_name("secrets", options.get("passphrase_secret", "")),
        )
    )


def _number(options: dict[str, str], name: str) -> int:
    text = options.get(name, "0")
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"has a {name} that is no whole number: {text!r}")
    return int(text)


def live_request(
    source: SourceLike, sink: output_pb2.LiveOutput, *, copy: bool = False, loop: bool = False
) -> pb.RunPipelineRequest:
    """Sends a source to a sink at the pace of playing, in H.264 and AAC with a key frame every two seconds; `copy`: as it is."""
    video = stream_pb2.VideoStream(codec="copy")
    audio = stream_pb2.AudioStream(codec="copy")
    if not copy:
        video = stream_pb2.VideoStream(
            codec="h264", preset="veryfast", tune="zerolatency", pixel_format="yuv420p", keyframe_interval=seconds(2.0)
        )
        audio = stream_pb2.AudioStream(codec="aac")
    one = input_pb2.Input(source=to_source(source), real_time=True)
    if loop:
        one.loop_forever = True
    return pb.RunPipelineRequest(
        inputs=[one],
        elementary_streams=[
            stream_pb2.ElementaryStream(key="video", video=video, skip_if_missing=True),
            stream_pb2.ElementaryStream(key="audio", audio=audio, skip_if_missing=True),
        ],
        outputs=[output_pb2.Output(key="main", streams=["video", "audio"], live=sink)],
    )

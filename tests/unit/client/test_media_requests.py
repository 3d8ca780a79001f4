"""Requests that are built for people: presets, and live sinks from URLs."""

from __future__ import annotations

import pytest

from onecontainer.api.media.v1 import media_info_pb2, media_pb2, output_pb2
from onecontainer.client.media import presets
from onecontainer.client.media.live import live_output, live_request


@pytest.mark.parametrize("name", sorted(presets.NAMES))
def test_each_preset_is_a_request_with_one_output(name: str) -> None:
    request = presets.NAMES[name]("artifacts/a")
    assert isinstance(request, media_pb2.RunPipelineRequest)
    assert request.inputs[0].source.artifact == "artifacts/a"
    assert [output.key for output in request.outputs] == [presets.KEY]
    assert request.outputs[0].WhichOneof("target")
    assert presets.NAMES[name].__doc__


def test_ladders_do_not_blow_pictures_up() -> None:
    def info(height: int) -> media_info_pb2.MediaInfo:
        video = media_info_pb2.VideoInfo(width=100, height=height)
        stream = media_info_pb2.StreamInfo(kind=media_info_pb2.STREAM_KIND_VIDEO, video=video)
        return media_info_pb2.MediaInfo(streams=[stream])

    assert [rung.height for rung in presets.rungs_for(info(720))] == [720, 480, 360, 240]
    assert [rung.height for rung in presets.rungs_for(info(100))] == [240]
    assert [rung.height for rung in presets.rungs_for(media_info_pb2.MediaInfo())] == [240]
    request = presets.hls_abr("a.mp4", rungs=presets.rungs_for(info(400)), segment=4)
    hls = request.outputs[0].hls
    assert [(variant.name, variant.video, variant.audio) for variant in hls.variants] == [
        ("360p", "v360", "audio"),
        ("240p", "v240", "audio"),
    ]
    assert hls.segment_duration.seconds == 4
    assert not request.outputs[0].streams


def test_sound_alone() -> None:
    assert presets.audio_only("a", container="mp3").elementary_streams[0].audio.codec == "mp3"
    assert not presets.audio_only("a", container="flac").elementary_streams[0].audio.HasField("rate_control")
    with pytest.raises(ValueError, match="none of m4a"):
        presets.audio_only("a", container="exe")


def test_sinks_from_urls() -> None:
    assert live_output("udp://10.0.0.1:5000?ttl=4").udp == output_pb2.UdpSink(
        host="10.0.0.1", port=5000, multicast_ttl=4
    )
    srt = live_output("srt://example.com:6000?mode=listener&latency=200&streamid=a&passphrase_secret=secrets/key").srt
    assert (srt.mode, srt.latency.ToMilliseconds(), srt.stream_id) == (output_pb2.SRT_MODE_LISTENER, 200, "a")
    assert srt.passphrase_secret == "secrets/key"
    assert live_output("srt://a:6000?passphrase_secret=key").srt.passphrase_secret == "secrets/key"
    rtmp = live_output("rtmps://example.com/live/show").rtmp
    assert (rtmp.host, rtmp.port, rtmp.app, rtmp.stream_name, rtmp.tls) == ("example.com", 0, "live", "show", True)
    request = live_request("a.mp4", output_pb2.LiveOutput(rtmp=rtmp), loop=True)
    assert request.inputs[0].real_time
    assert request.inputs[0].loop_forever
    assert request.outputs[0].live.rtmp == rtmp


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://a/b", "no udp://"),
        ("udp://a", "needs a port"),
        ("udp://a:5000/x", "no path"),
        ("udp://a:5000?pkt_size=1", "takes no 'pkt_size'"),
        ("udp://a:5000?ttl=far", "ttl that is no whole number"),
        ("srt://a:5000?latency=-1", "latency that is no whole number"),
        ("srt://a:5000?mode=both", "neither caller nor listener"),
        ("srt://a:5000?passphrase=secret", "takes no 'passphrase'"),
        ("rtmp://a/live", "/APP/NAME"),
        ("rtmp://user@a/live/x", "no user name"),
        ("rtmp://a:99999/live/x", "ort"),
    ],
)
def test_urls_that_are_no_sinks(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        live_output(url)

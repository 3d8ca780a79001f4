"""The containers that FileOutput takes: muxer, media type, and which codecs fit.

`holds` lists FFmpeg's codec names and is kept to what players read; None means that the muxer itself decides when it writes the
header, as for Matroska and AVI, which hold nearly everything.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

_MP4_VIDEO = "h264 hevc av1 vp9 vvc mpeg4 mpeg2video mpeg1video mjpeg png"
_MP4_AUDIO = "aac mp3 mp2 ac3 eac3 alac flac opus dts truehd vorbis"
_MPEG_PS = "mpeg1video mpeg2video h264 mp2 mp3 ac3 dts pcm_s16be pcm_dvd dvd_subtitle"


@dataclass(frozen=True)
class Container:
    """`fast_start`: its index can be put in front. `key_frames`: seconds between key frames unless a stream says otherwise; None: the
    encoder's business. `defaults`: codec by kind, before the muxer's own default."""

    name: str
    muxer: str
    media_type: str
    holds: frozenset[str] | None = None
    fast_start: bool = False
    key_frames: float | None = None
    defaults: tuple[tuple[str, str], ...] = ()
    sample_rate: int = 0
    """The only one that its sound may have; 0: any."""


def _container(name: str, muxer: str, media_type: str, holds: str | None = None, fast_start: bool = False) -> Container:
    return Container(name, muxer, media_type, frozenset(holds.split()) if holds else None, fast_start)


CONTAINERS: dict[str, Container] = {
    container.name: container
    for container in (
        _container("mkv", "matroska", "video/x-matroska"),
        _container("mka", "matroska", "audio/x-matroska"),
        _container("mp4", "mp4", "video/mp4", f"{_MP4_VIDEO} {_MP4_AUDIO} mov_text dvd_subtitle", fast_start=True),
        _container(
            "mov",
            "mov",
            "video/quicktime",
            f"{_MP4_VIDEO} {_MP4_AUDIO} prores dnxhd qtrle rawvideo v210 ffv1 dvvideo mov_text pcm_s16le pcm_s16be pcm_s24le pcm_s24be "
            "pcm_s32le pcm_s32be pcm_f32le pcm_f32be pcm_f64le pcm_f64be pcm_alaw pcm_mulaw pcm_u8",
            fast_start=True,
        ),
        _container("m4a", "ipod", "audio/mp4", "h264 mpeg4 aac alac ac3 eac3 mp3 mov_text png mjpeg", fast_start=True),
        # The muxer's own default for sound, AMR, is for 8 kHz and one channel only.
        replace(
            _container("3gp", "3gp", "video/3gpp", "h263 h264 mpeg4 aac amr_nb amr_wb mov_text", fast_start=True),
            defaults=(("audio", "aac"),),
        ),
        _container("webm", "webm", "video/webm", "vp8 vp9 av1 vorbis opus webvtt"),
        _container("avi", "avi", "video/x-msvideo"),
        _container("wmv", "asf", "video/x-ms-wmv"),
        _container("wma", "asf", "audio/x-ms-wma"),
        _container("flv", "flv", "video/x-flv"),
        _container("vob", "vob", "video/mpeg", _MPEG_PS),
        _container("mpg", "mpeg", "video/mpeg", _MPEG_PS),
        _container(
            "ts",
            "mpegts",
            "video/mp2t",
            "mpeg1video mpeg2video mpeg4 h264 hevc vvc dirac aac aac_latm mp2 mp3 ac3 eac3 dts truehd opus s302m dvb_subtitle dvb_teletext",
        ),
        replace(_container("mxf", "mxf", "application/mxf"), sample_rate=48_000),
        _container("ogg", "ogg", "application/ogg", "theora vp8 vorbis opus flac speex"),
        _container("ogv", "ogv", "video/ogg", "theora vp8 vorbis opus flac speex"),
        _container("oga", "oga", "audio/ogg", "vorbis opus flac speex"),
        _container("opus", "opus", "audio/opus", "opus"),
        _container("wav", "wav", "audio/wav"),
        _container("aiff", "aiff", "audio/aiff"),
        _container("caf", "caf", "audio/x-caf"),
        _container("flac", "flac", "audio/flac", "flac png mjpeg"),
        _container("mp3", "mp3", "audio/mpeg", "mp3 png mjpeg"),
        _container("mp2", "mp2", "audio/mpeg", "mp2"),
        _container("aac", "adts", "audio/aac", "aac"),
        _container("ac3", "ac3", "audio/ac3", "ac3"),
        _container("eac3", "eac3", "audio/eac3", "eac3"),
        _container("au", "au", "audio/basic"),
        _container("gif", "gif", "image/gif", "gif"),
        _container("srt", "srt", "application/x-subrip", "subrip text srt"),
        _container("vtt", "webvtt", "text/vtt", "webvtt"),
        _container("ass", "ass", "text/x-ssa", "ass ssa"),
    )
}
SUBTITLES = {"mp4": "mov_text", "mov": "mov_text", "m4a": "mov_text", "3gp": "mov_text"}
"""What subtitles become by default where the muxer names nothing, and there is one form only that players read."""
AUDIO_ONLY = frozenset(
    {"mka", "m4a", "wma", "oga", "opus", "wav", "aiff", "caf", "flac", "mp3", "mp2", "aac", "ac3", "eac3", "au"}
)
"""Containers that take no video by default; a picture is a cover there."""


def media_type_of(name: str) -> str:
    return CONTAINERS[name].media_type if name in CONTAINERS else "application/octet-stream"

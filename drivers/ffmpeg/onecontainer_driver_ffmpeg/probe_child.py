"""Loads FFmpeg's libraries, then answers each connection in a fork with what the libraries see, as ffprobe would say it.

Standard input is a socket over which connections come. A fork first sends its pidfd, with which it can be killed, then reads a line of
JSON, and writes one. See `probe_server.py`, which is the other side.
"""

import ctypes
import json
import os
import signal
import socket
import sys
from fractions import Fraction
from typing import Any

sys.path.append(sys.argv[1])  # the folder of the packages; started without `site`

import av
import av.error

PR_SET_PDEATHSIG = 1

# FFmpeg's names for the numbers of its enums (libavutil/pixfmt.h, libavcodec/defs.h), as ffprobe prints them.
COLOR_RANGES = {1: "tv", 2: "pc"}
COLOR_SPACES = {
    0: "gbr",
    1: "bt709",
    4: "fcc",
    5: "bt470bg",
    6: "smpte170m",
    7: "smpte240m",
    8: "ycgco",
    9: "bt2020nc",
    10: "bt2020c",
}
COLOR_TRANSFERS = {
    1: "bt709",
    4: "bt470m",
    5: "bt470bg",
    6: "smpte170m",
    7: "smpte240m",
    8: "linear",
    13: "iec61966-2-1",
}
COLOR_TRANSFERS |= {14: "bt2020-10", 15: "bt2020-12", 16: "smpte2084", 18: "arib-std-b67"}
COLOR_PRIMARIES = {
    1: "bt709",
    4: "bt470m",
    5: "bt470bg",
    6: "smpte170m",
    7: "smpte240m",
    8: "film",
    9: "bt2020",
    12: "smpte432",
}
FIELD_ORDERS = {1: "progressive", 2: "tt", 3: "bb", 4: "tb", 5: "bt"}


def rational(value: Fraction | None) -> str | None:
    return None if value is None else f"{value.numerator}/{value.denominator}"


def seconds(value: int | None, time_base: Fraction | None) -> str | None:
    return None if value is None or time_base is None else f"{float(value * time_base):.6f}"


def flags(disposition: Any) -> dict[str, int]:
    kind: Any = type(disposition)
    return {member.name: int(bool(disposition & member)) for member in kind if member.name}


def stream_facts(stream: Any) -> dict[str, Any]:
    codec = stream.codec_context
    facts: dict[str, Any] = {
        "index": stream.index,
        "codec_type": stream.type,
        "profile": stream.profile if codec is not None else None,
        "time_base": rational(stream.time_base),
        "start_time": seconds(stream.start_time, stream.time_base),
        "duration": seconds(stream.duration, stream.time_base),
        "nb_frames": str(stream.frames) if stream.frames else None,
        "disposition": flags(stream.disposition),
        "tags": dict(stream.metadata),
    }
    if codec is None:
        return facts
    facts |= {
        "codec_name": codec.codec.canonical_name if codec.codec is not None else codec.name,
        "codec_long_name": codec.codec.long_name if codec.codec is not None else None,
        "codec_tag_string": codec.codec_tag.rstrip("\0") or None,
        "bit_rate": str(codec.bit_rate) if codec.bit_rate else None,
    }
    if stream.type == "video":
        facts |= {
            "width": codec.width,
            "height": codec.height,
            "pix_fmt": codec.pix_fmt,
            "avg_frame_rate": rational(stream.average_rate),
            "r_frame_rate": rational(stream.base_rate),
            "sample_aspect_ratio": rational(stream.sample_aspect_ratio),
            "display_aspect_ratio": rational(stream.display_aspect_ratio),
            "has_b_frames": int(codec.has_b_frames),
            "level": codec.level,
            "color_range": COLOR_RANGES.get(int(codec.color_range)),
            "color_space": COLOR_SPACES.get(int(codec.colorspace)),
            "color_transfer": COLOR_TRANSFERS.get(int(codec.color_trc)),
            "color_primaries": COLOR_PRIMARIES.get(int(codec.color_primaries)),
            "field_order": FIELD_ORDERS.get(int(codec.field_order)),
        }
    elif stream.type == "audio":
        facts |= {
            "sample_rate": str(codec.sample_rate),
            "channels": codec.channels,
            "channel_layout": codec.layout.name,
            "sample_fmt": codec.format.name if codec.format else None,
        }
    return facts


def rotation(container: Any) -> tuple[int, int] | None:
    """Index of the first video track and its rotation, which PyAV tells of decoded frames only. None: there is none."""
    if not container.streams.video or not {"mov", "matroska"} & set(container.format.name.split(",")):
        return None
    try:
        frame = next(container.decode(video=0))
    except (StopIteration, av.error.FFmpegError):
        return None
    return (container.streams.video[0].index, frame.rotation) if frame.rotation else None


def probe(request: dict[str, Any]) -> dict[str, Any]:
    opened: Any = av.open(
        request["address"],
        mode="r",
        format=request["demuxer"] or None,
        options=request["options"],
        timeout=(request["timeout"], request["timeout"]),
        metadata_errors="replace",
    )
    with opened as container:
        base = Fraction(1, 1_000_000)
        streams = [stream_facts(stream) for stream in container.streams]
        if turned := rotation(container):
            streams[turned[0]]["side_data_list"] = [{"side_data_type": "Display Matrix", "rotation": turned[1]}]
        return {
            "streams": streams,
            "chapters": [
                {
                    "id": chapter["id"],
                    "start_time": seconds(chapter["start"], chapter["time_base"]),
                    "end_time": seconds(chapter["end"], chapter["time_base"]),
                    "tags": dict(chapter["metadata"]),
                }
                for chapter in container.chapters()
            ],
            "format": {
                "format_name": container.format.name,
                "format_long_name": container.format.long_name,
                "start_time": seconds(container.start_time, base),
                "duration": seconds(container.duration, base),
                "size": str(container.size) if container.size > 0 else None,
                "bit_rate": str(container.bit_rate) if container.bit_rate else None,
                "tags": dict(container.metadata),
            },
            "prober": "libavformat " + ".".join(str(part) for part in av.library_versions["libavformat"]),
        }


def answer(connection: socket.socket) -> None:
    socket.send_fds(connection, [b"\0"], [os.pidfd_open(os.getpid())])
    with connection.makefile("rb") as lines:
        line = lines.readline()
    if not line.endswith(b"\n"):  # nobody asks any more
        return
    request = json.loads(line)
    # What libavformat's proxy settings are read from.
    os.environ.update(request["environment"])
    try:
        os.chdir(request["folder"])
        facts = probe(request)
    except (OSError, av.error.FFmpegError, ValueError) as error:
        facts = {"error": getattr(error, "strerror", None) or str(error)}
    connection.sendall(json.dumps(facts).encode())


def fork(connection: socket.socket, control: socket.socket, libc: ctypes.CDLL) -> None:
    server = os.getpid()
    try:
        if os.fork():
            return
    except OSError as error:  # the bound on processes, or on memory: that is no reason to end the others
        sys.stderr.write(f"probe: {error}\n")
        return
    # Killed with the server, and so with the sidecar, however that ends.
    if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0 or os.getppid() != server:
        os._exit(127)
    status = 1
    try:
        control.close()
        answer(connection)
        status = 0
    except OSError:  # whoever asked has gone
        pass
    finally:
        os._exit(status)


def main() -> None:
    libc = ctypes.CDLL(None)
    # Forks are reaped by the kernel.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    control_fd = os.dup(0)
    with open(os.devnull) as nothing:  # noqa: PTH123 - pathlib takes long to load
        os.dup2(nothing.fileno(), 0)
    with socket.socket(fileno=control_fd) as control:
        while True:
            _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
            if not descriptors:
                break
            with socket.socket(fileno=descriptors[0]) as connection:
                fork(connection, control, libc)
    # Forks die with this process: those under way are let finish.
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


if __name__ == "__main__":
    main()

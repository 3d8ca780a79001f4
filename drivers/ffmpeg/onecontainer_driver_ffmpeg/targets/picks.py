"""`FramePick`: which frames of a video, as a filter that lets only those through."""

from __future__ import annotations

from dataclasses import dataclass

from onecontainer.api.media.v1 import output_pb2
from onecontainer.driver import errors
from onecontainer_driver_ffmpeg.filters import escape
from onecontainer_driver_ffmpeg.media_info import seconds

_DEFAULT_COUNT = 10
_DEFAULT_MOST = 1000
# Time stamps of frames are rounded to the source's clock: a frame may come so much before the time that it stands for.
_EARLY = 0.001


@dataclass(frozen=True)
class FrameChoice:
    """A checked FramePick; `at` is its path in the request. Exactly one of the four ways is set."""

    at: str
    most: int
    interval: float = 0.0
    count: int = 0
    times: tuple[float, ...] = ()
    key_frames: bool = False

    @property
    def asked(self) -> int | None:
        """How many frames there should be, None: as many as it comes to."""
        return self.count or len(self.times) or None

    def filters(self, expected: float | None) -> list[str]:
        """`expected`: length in seconds, None: not known, which is FieldInvalid for a count."""
        if self.key_frames:
            expression = "key"
        elif self.times:
            # `selected_n`, the number of frames that went through, says which time is the next one.
            targets = "+".join(f"eq(selected_n,{n})*{max(time - _EARLY, 0):.6f}" for n, time in enumerate(self.times))
            expression = f"lt(selected_n,{len(self.times)})*gte(t,{targets})"
        else:
            step = self.interval
            if not step:
                if expected is None:
                    raise errors.FieldInvalid(
                        f"{self.at}.count", "needs a source whose length is known; give an interval or times"
                    )
                step = expected / self.count
            # The first frame of each part: one whose part is another than that of the last frame that went through.
            part = "floor(({time}+{early})/{step:.6f})"
            now = part.format(time="t", early=_EARLY, step=step)
            before = part.format(time="prev_selected_t", early=_EARLY, step=step)
            expression = f"isnan(prev_selected_t)+gt({now},{before})"
        return [f"select=expr={escape(expression)}"]


def check_pick(pick: output_pb2.FramePick, at: str) -> FrameChoice:
    """FieldInvalid or FieldRequired."""
    if not 0 <= pick.max_frames <= 10_000:
        raise errors.FieldInvalid(f"{at}.max_frames", "is not between 1 and 10000")
    most = pick.max_frames or _DEFAULT_MOST
    which = pick.WhichOneof("pick")
    if which == "interval":
        interval = seconds(pick.interval)
        if interval < 0.01:
            raise errors.FieldInvalid(f"{at}.interval", "is below 10 ms")
        return FrameChoice(at, most, interval=interval)
    if which == "count":
        if not 1 <= pick.count <= 1000:
            raise errors.FieldInvalid(f"{at}.count", "is not between 1 and 1000")
        return FrameChoice(at, most, count=pick.count)
    if which == "times":
        times = tuple(seconds(offset) for offset in pick.times.offsets)
        if not times:
            raise errors.FieldRequired(f"{at}.times.offsets")
        if len(times) > 1000:
            raise errors.FieldInvalid(f"{at}.times.offsets", "has more than 1000 entries")
        for index, time in enumerate(times):
            if time < 0:
                raise errors.FieldInvalid(f"{at}.times.offsets[{index}]", "is below 0")
            if index and time <= times[index - 1]:
                raise errors.FieldInvalid(f"{at}.times.offsets[{index}]", "is not after the one before")
        return FrameChoice(at, most, times=times)
    if which == "key_frames" and pick.key_frames:
        return FrameChoice(at, most, key_frames=True)
    return FrameChoice(at, most, count=_DEFAULT_COUNT)

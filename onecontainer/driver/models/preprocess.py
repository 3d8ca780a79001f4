"""From an encoded image to the tensor that a model was trained on, as its ImagePreprocess declares.

``ImagePipeline.run`` is what serves. ``ImagePipeline.reference`` does the same step by step, as torchvision and Pillow do it, and is
what the tests hold the other against.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from onecontainer.api.ai.v1 import model_pb2
from onecontainer.driver import errors
from onecontainer.driver.models.images import flatten, open_image

Array = npt.NDArray[Any]

_FILTERS = {
    model_pb2.INTERPOLATION_UNSPECIFIED: Image.Resampling.BILINEAR,
    model_pb2.INTERPOLATION_NEAREST: Image.Resampling.NEAREST,
    model_pb2.INTERPOLATION_BILINEAR: Image.Resampling.BILINEAR,
    model_pb2.INTERPOLATION_BICUBIC: Image.Resampling.BICUBIC,
    model_pb2.INTERPOLATION_LANCZOS: Image.Resampling.LANCZOS,
    model_pb2.INTERPOLATION_AREA: Image.Resampling.BOX,
}
_WITHOUT_ANTIALIAS = {Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC}
_CHANNELS_FIRST = {model_pb2.TENSOR_LAYOUT_UNSPECIFIED, model_pb2.TENSOR_LAYOUT_NCHW, model_pb2.TENSOR_LAYOUT_CHW}
_BATCHED = {model_pb2.TENSOR_LAYOUT_UNSPECIFIED, model_pb2.TENSOR_LAYOUT_NCHW, model_pb2.TENSOR_LAYOUT_NHWC}

# A JPEG may be decoded at half its size or less, as long as it stays so many times larger than what the resize makes of it:
# then probabilities move by less than 0.01 (with 3 it is 0.017, with 2 0.025).
DRAFT_FACTOR = 4


@dataclass(frozen=True, slots=True)
class _Geometry:
    """Where the output's pixels lie: the resized image, and the part of it that is kept."""

    width: int
    height: int
    left: int
    top: int
    out_width: int
    out_height: int

    @property
    def inside(self) -> bool:
        return (
            self.left >= 0
            and self.top >= 0
            and self.left + self.out_width <= self.width
            and self.top + self.out_height <= self.height
        )


@dataclass(frozen=True, slots=True)
class ImagePipeline:
    """A checked ImagePreprocess.

    Raises (on construction, with ``path`` in front of the field):
        FieldInvalid: a value that is out of range or contradicts another one.
    """

    spec: model_pb2.ImagePreprocess
    dtype: np.dtype[Any]
    path: str = "config.image"
    channels: int = field(init=False)
    _scale: npt.NDArray[np.float64] = field(init=False)
    _offset: npt.NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        spec = self.spec
        for name, table in (
            ("color", model_pb2.ColorSpace),
            ("layout", model_pb2.TensorLayout),
            ("resize.interpolation", model_pb2.Interpolation),
        ):
            value = spec.resize.interpolation if "." in name else getattr(spec, name)
            if value not in table.values():
                raise errors.FieldInvalid(f"{self.path}.{name}", f"is no {table.DESCRIPTOR.name}: {value}")
        channels = 1 if spec.color == model_pb2.COLOR_SPACE_GREY else 3
        for name in ("mean", "std"):
            if len(getattr(spec, name)) not in {0, 1, channels}:
                raise errors.FieldInvalid(f"{self.path}.{name}", f"must have 1 value or {channels}")
        if not all(np.isfinite(v) and v != 0 for v in spec.std) or not all(
            np.isfinite(v) for v in [*spec.mean, spec.scale]
        ):
            raise errors.FieldInvalid(f"{self.path}.std", "scale, mean and std must be finite, and std not 0")
        if len(spec.background) not in {0, channels} or not all(0 <= v <= 255 for v in spec.background):
            raise errors.FieldInvalid(f"{self.path}.background", f"must have {channels} values from 0 to 255")
        self._check_sizes()
        mean = np.broadcast_to(np.array(spec.mean or [0.0]), channels)
        std = np.broadcast_to(np.array(spec.std or [1.0]), channels)
        # (pixel × scale − mean) / std = pixel × (scale / std) − mean / std
        object.__setattr__(self, "channels", channels)
        object.__setattr__(self, "_scale", (spec.scale or 1.0) / std)
        object.__setattr__(self, "_offset", mean / std)

    def _check_sizes(self) -> None:
        spec, path = self.spec, self.path
        sizes: list[tuple[str, int]] = []
        if spec.HasField("center_crop"):
            sizes += [("center_crop.width", spec.center_crop.width), ("center_crop.height", spec.center_crop.height)]
        if spec.HasField("resize"):
            target = spec.resize.WhichOneof("target")
            if target is None:
                raise errors.FieldRequired(f"{path}.resize", "needs one of shorter_side, exact and fit")
            if target == "shorter_side":
                sizes.append(("resize.shorter_side", spec.resize.shorter_side))
            else:
                size = getattr(spec.resize, target)
                sizes += [(f"resize.{target}.width", size.width), (f"resize.{target}.height", size.height)]
            if spec.resize.no_antialias and _FILTERS[spec.resize.interpolation] not in _WITHOUT_ANTIALIAS:
                raise errors.FieldInvalid(f"{path}.resize.no_antialias", "goes with nearest, bilinear and bicubic only")
        for name, value in sizes:
            if not 1 <= value <= 8192:
                raise errors.FieldInvalid(f"{path}.{name}", "must be 1 to 8192 pixels")

    @property
    def batched(self) -> bool:
        """True: `run` gives a batch of one; False: the model takes single items."""
        return self.spec.layout in _BATCHED

    @property
    def output_size(self) -> tuple[int, int] | None:
        """Width and height of every output; None: it depends on the image."""
        spec = self.spec
        if spec.HasField("center_crop"):
            return spec.center_crop.width, spec.center_crop.height
        target = spec.resize.WhichOneof("target")
        if target in {"exact", "fit"}:
            size = getattr(spec.resize, target)
            return size.width, size.height
        return None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor of one image; -1: it depends on the image."""
        width, height = self.output_size or (-1, -1)
        inner = (
            (self.channels, height, width) if self.spec.layout in _CHANNELS_FIRST else (height, width, self.channels)
        )
        return (1, *inner) if self.batched else inner

    def run(self, data: bytes, *, max_pixels: int) -> Array:
        """Decodes and prepares one image.

        Raises:
            ImageError: as `open_image`.
        """
        draft = None
        if self.spec.HasField("resize") and not self.spec.resize.no_antialias:
            shorter = self._shorter_target() * DRAFT_FACTOR
            draft = (shorter, shorter)
        image = open_image(data, max_pixels=max_pixels, draft=draft, upright=not self.spec.ignore_orientation)
        return self.prepare(image)

    def reference(self, data: bytes, *, max_pixels: int) -> Array:
        """The same, one step after the other in full precision."""
        image = self._in_colour(open_image(data, max_pixels=max_pixels, upright=not self.spec.ignore_orientation))
        plan = self._geometry(image.size)
        image = self._resized(image, (plan.width, plan.height))
        box = (plan.left, plan.top, plan.left + plan.out_width, plan.top + plan.out_height)
        pixels = np.asarray(image.crop(box), np.float64).reshape(plan.out_height, plan.out_width, self.channels)
        if self.spec.color == model_pb2.COLOR_SPACE_BGR:
            pixels = pixels[:, :, ::-1]
        values = pixels * self._scale - self._offset
        if self.spec.layout in _CHANNELS_FIRST:
            values = values.transpose(2, 0, 1)
        return np.ascontiguousarray(values if not self.batched else values[None]).astype(self.dtype)

    def prepare(self, image: Image.Image) -> Array:
        """Everything after decoding."""
        image = self._in_colour(image)
        plan = self._geometry(image.size)
        image = self._cut(image, plan)
        planes = [np.asarray(plane) for plane in (image.split() if self.channels > 1 else [image])]
        if self.spec.color == model_pb2.COLOR_SPACE_BGR:
            planes.reverse()
        # Planes are contiguous, which makes this several times faster than to normalise pixels and transpose.
        work = self.dtype if self.dtype in (np.float32, np.float64) else np.dtype(np.float32)
        values = np.empty((self.channels, plan.out_height, plan.out_width), work)
        for channel, plane in enumerate(planes):
            out, scale, offset = values[channel], self._scale[channel], self._offset[channel]
            out[...] = plane
            if scale != 1:
                out *= work.type(scale)
            if offset != 0:
                out -= work.type(offset)
        if self.spec.layout not in _CHANNELS_FIRST:
            values = np.ascontiguousarray(values.transpose(1, 2, 0))
        return (values[None] if self.batched else values).astype(self.dtype, copy=False)

    def _in_colour(self, image: Image.Image) -> Image.Image:
        background = tuple(round(v) for v in self.spec.background)
        if self.spec.color == model_pb2.COLOR_SPACE_BGR:
            background = background[::-1]
        return flatten(image, "L" if self.channels == 1 else "RGB", background or None)

    def _shorter_target(self) -> int:
        resize = self.spec.resize
        if resize.WhichOneof("target") == "shorter_side":
            return resize.shorter_side
        size = resize.exact if resize.HasField("exact") else resize.fit
        return max(size.width, size.height)

    def _geometry(self, size: tuple[int, int]) -> _Geometry:
        width, height = size
        spec = self.spec
        out_width, out_height = 0, 0
        match spec.resize.WhichOneof("target"):
            case "shorter_side":
                # The longer side is cut off, not rounded, as torchvision does.
                shorter, wanted = min(width, height), spec.resize.shorter_side
                width, height = (max(1, wanted * side // shorter) for side in (width, height))
            case "exact":
                width, height = spec.resize.exact.width, spec.resize.exact.height
            case "fit":
                out_width, out_height = spec.resize.fit.width, spec.resize.fit.height
                factor = min(out_width / width, out_height / height)
                width, height = max(1, round(width * factor)), max(1, round(height * factor))
        if spec.HasField("center_crop"):
            out_width, out_height = spec.center_crop.width, spec.center_crop.height
        out_width, out_height = out_width or width, out_height or height
        left, top = _middle(width - out_width), _middle(height - out_height)
        return _Geometry(width, height, left, top, out_width, out_height)

    def _cut(self, image: Image.Image, plan: _Geometry) -> Image.Image:
        """Resizes only the part that is kept: Pillow's filter looks over the edge of its box, so the pixels are the same."""
        if (plan.width, plan.height) == (plan.out_width, plan.out_height):
            return self._resized(image, (plan.width, plan.height))
        if not plan.inside or self.spec.resize.no_antialias:
            box = (plan.left, plan.top, plan.left + plan.out_width, plan.top + plan.out_height)
            return self._resized(image, (plan.width, plan.height)).crop(box)
        x, y = image.width / plan.width, image.height / plan.height
        source = (plan.left * x, plan.top * y, (plan.left + plan.out_width) * x, (plan.top + plan.out_height) * y)
        # Rounding may put the far corner a hair outside.
        source = (source[0], source[1], min(source[2], image.width), min(source[3], image.height))
        return image.resize((plan.out_width, plan.out_height), _FILTERS[self.spec.resize.interpolation], box=source)

    def _resized(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        if image.size == size:
            return image
        kind = _FILTERS[self.spec.resize.interpolation]
        if self.spec.resize.no_antialias:
            extent = (0.0, 0.0, float(image.width), float(image.height))
            return image.transform(size, Image.Transform.EXTENT, extent, Image.Resampling(kind))
        return image.resize(size, kind)


def _middle(excess: int) -> int:
    """Half of it, rounded half to even as torchvision's centre crop does."""
    return round(excess / 2)

"""The fast way from image to tensor against the step-by-step one, and what it means for the model's answer."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onecontainer.api.ai.v1 import model_pb2
from onecontainer.driver import errors
from onecontainer.driver.models.images import ImageError, open_image
from onecontainer.driver.models.png import plain_png
from onecontainer.driver.models.preprocess import ImagePipeline
from onecontainer.driver.models.served import Served

PIXELS = 50_000_000
TORCHVISION: dict[str, Any] = {
    "scale": 1 / 255,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
SPECS: dict[str, model_pb2.ImagePreprocess] = {
    "torchvision": model_pb2.ImagePreprocess(
        resize=model_pb2.Resize(shorter_side=256), center_crop=model_pb2.Size(width=224, height=224), **TORCHVISION
    ),
    "nothing": model_pb2.ImagePreprocess(),
    "exact": model_pb2.ImagePreprocess(
        resize=model_pb2.Resize(
            exact=model_pb2.Size(width=100, height=200), interpolation=model_pb2.INTERPOLATION_LANCZOS
        )
    ),
    "fit": model_pb2.ImagePreprocess(
        resize=model_pb2.Resize(fit=model_pb2.Size(width=320, height=320), interpolation=model_pb2.INTERPOLATION_AREA),
        layout=model_pb2.TENSOR_LAYOUT_NHWC,
    ),
    "crop beyond the edges": model_pb2.ImagePreprocess(center_crop=model_pb2.Size(width=500, height=500)),
    "off centre crop": model_pb2.ImagePreprocess(
        resize=model_pb2.Resize(shorter_side=97, interpolation=model_pb2.INTERPOLATION_BICUBIC),
        center_crop=model_pb2.Size(width=31, height=64),
    ),
    "bgr": model_pb2.ImagePreprocess(
        color=model_pb2.COLOR_SPACE_BGR, mean=[1, 2, 3], layout=model_pb2.TENSOR_LAYOUT_HWC
    ),
    "grey": model_pb2.ImagePreprocess(
        color=model_pb2.COLOR_SPACE_GREY, resize=model_pb2.Resize(shorter_side=28), std=[255.0]
    ),
    "no antialias": model_pb2.ImagePreprocess(
        resize=model_pb2.Resize(shorter_side=64, no_antialias=True), center_crop=model_pb2.Size(width=60, height=60)
    ),
    "nearest": model_pb2.ImagePreprocess(
        resize=model_pb2.Resize(shorter_side=64, interpolation=model_pb2.INTERPOLATION_NEAREST)
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("name", SPECS)
def test_fast_is_like_the_reference(cat: bytes, name: str, dtype: str) -> None:
    if dtype == "uint8" and (SPECS[name].mean or SPECS[name].std):
        spec = model_pb2.ImagePreprocess()
        spec.CopyFrom(SPECS[name])
        spec.ClearField("mean")
        spec.ClearField("std")
        spec.ClearField("scale")
    else:
        spec = SPECS[name]
    pipeline = ImagePipeline(spec, np.dtype(dtype))
    fast, slow = pipeline.run(cat, max_pixels=PIXELS), pipeline.reference(cat, max_pixels=PIXELS)
    assert fast.dtype == slow.dtype == dtype
    assert fast.shape == slow.shape
    assert all(declared in {-1, real} for declared, real in zip(pipeline.shape, fast.shape, strict=True))
    difference = np.abs(fast.astype(np.float64) - slow.astype(np.float64))
    # A box that starts at a fraction of a pixel may round a value to its neighbour, here and there.
    step = float(spec.scale or 1) / min([float(v) for v in spec.std] or [1.0])
    assert difference.max() <= 1.01 * step
    assert (difference > 0.01 * step).mean() < 0.02


@pytest.mark.parametrize("size", [(451, 300), (300, 451), (257, 256), (224, 224), (40, 30), (3000, 17)])
@pytest.mark.parametrize("crop", [(224, 224), (223, 100), (1, 1)])
def test_any_size_of_image(cat: bytes, size: tuple[int, int], crop: tuple[int, int]) -> None:
    out = io.BytesIO()
    Image.open(io.BytesIO(cat)).resize(size).save(out, "PNG")
    spec = model_pb2.ImagePreprocess(
        resize=model_pb2.Resize(shorter_side=256), center_crop=model_pb2.Size(width=crop[0], height=crop[1])
    )
    pipeline = ImagePipeline(spec, np.dtype("float32"))
    fast = pipeline.run(out.getvalue(), max_pixels=PIXELS)
    assert fast.shape == (1, 3, crop[1], crop[0])
    assert np.abs(fast - pipeline.reference(out.getvalue(), max_pixels=PIXELS)).max() <= 1


def jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=92)
    return out.getvalue()


@pytest.mark.parametrize("width", [451, 800, 1600, 2600, 4000])
def test_probabilities_are_those_of_the_reference(lite0: Served, cat: bytes, width: int) -> None:
    """Large JPEGs are decoded at a fraction of their size: the answer must not change by it."""
    assert lite0.image is not None
    picture = Image.open(io.BytesIO(cat)).convert("RGB")
    resized = picture.resize((width, width * 300 // 451), Image.Resampling.LANCZOS)
    for data in (cat, jpeg(resized)):
        probabilities = []
        for array in (lite0.image.run(data, max_pixels=PIXELS), lite0.image.reference(data, max_pixels=PIXELS)):
            scores = lite0.session.run({"images": array}, ["logits"])["logits"][0].astype(np.float64)
            powers = np.exp(scores - scores.max())
            probabilities.append(powers / powers.sum())
        fast, slow = probabilities
        assert np.abs(fast - slow).max() < 0.01
        # The same best class, but for two kinds of cat that are as good as equal.
        assert slow[fast.argmax()] > slow.max() - 0.02


def test_transparent_pixels_lie_on_the_background() -> None:
    out = io.BytesIO()
    Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(out, "PNG")
    for color, background, expected in (
        (model_pb2.COLOR_SPACE_RGB, [], [10, 20, 30]),
        (model_pb2.COLOR_SPACE_RGB, [200, 100, 50], [200, 100, 50]),
        (model_pb2.COLOR_SPACE_BGR, [200, 100, 50], [200, 100, 50]),
        (model_pb2.COLOR_SPACE_GREY, [77], [77]),
    ):
        pipeline = ImagePipeline(model_pb2.ImagePreprocess(color=color, background=background), np.dtype("float32"))
        assert pipeline.run(out.getvalue(), max_pixels=PIXELS)[0, :, 0, 0].tolist() == expected


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"mean": [1, 2]}, "mean"),
        ({"std": [0]}, "std"),
        ({"scale": float("nan")}, "std"),
        ({"background": [1]}, "background"),
        ({"background": [1, 2, 256]}, "background"),
        ({"color": 9}, "color"),
        ({"layout": 9}, "layout"),
        ({"resize": model_pb2.Resize(shorter_side=5, interpolation=9)}, "resize.interpolation"),  # type: ignore[arg-type]
        ({"resize": model_pb2.Resize()}, "resize"),
        ({"resize": model_pb2.Resize(shorter_side=-3)}, "resize.shorter_side"),
        ({"resize": model_pb2.Resize(exact=model_pb2.Size(width=5))}, "resize.exact.height"),
        ({"center_crop": model_pb2.Size(width=9000, height=5)}, "center_crop.width"),
        (
            {
                "resize": model_pb2.Resize(
                    shorter_side=5, no_antialias=True, interpolation=model_pb2.INTERPOLATION_LANCZOS
                )
            },
            "resize.no_antialias",
        ),
    ],
)
def test_wrong_declarations(spec: dict[str, Any], field: str) -> None:
    with pytest.raises((errors.FieldInvalid, errors.FieldRequired)) as caught:
        ImagePipeline(model_pb2.ImagePreprocess(**spec), np.dtype("float32"))
    assert caught.value.violations[0].field == f"config.image.{field}"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize(
    "extra",
    [b"", chunk(b"gAMA", struct.pack(">I", 100_000)), chunk(b"sRGB", b"\0"), chunk(b"tEXt", b"Title\0a cat")],
    ids=["plain", "gamma", "srgb", "text"],
)
def test_a_plain_png_has_the_pixels_that_pillow_gives(mode: str, extra: bytes) -> None:
    channels = len(mode)
    pixels = np.random.default_rng(1).integers(0, 256, (37, 53, channels), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(out, "PNG")
    data = out.getvalue()[:33] + extra + out.getvalue()[33:]
    found = plain_png(data, max_pixels=PIXELS)
    assert found is not None
    assert found.mode == mode
    assert np.array_equal(np.asarray(found), np.asarray(Image.open(io.BytesIO(data))))
    assert np.array_equal(np.asarray(found), pixels.squeeze())


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"tRNS", bytes(6)),
        chunk(b"eXIf", b"MM\0*"),
        chunk(b"tEXt", b"Title\0a cat")[:-1] + b"?",
        chunk(b"tEXt", b"Raw profile type exif\0"),
        chunk(b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(b"x")),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"x")),
    ],
    ids=["transparency", "orientation", "damage", "exif as text", "packed xmp", "packed xmp of any language"],
)
def test_a_png_that_is_more_than_its_pixels_is_pillows(cat: bytes, extra: bytes) -> None:
    assert plain_png(cat, max_pixels=PIXELS) is not None
    assert plain_png(cat[:33] + extra + cat[33:], max_pixels=PIXELS) is None


@pytest.mark.parametrize("kind", [b"iTXt", b"tEXt"])
def test_an_orientation_in_xmp_turns_a_png(kind: bytes) -> None:
    """As Pillow has it: whatever way a picture is decoded, it is upright."""
    out = io.BytesIO()
    Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3)).save(out, "PNG")
    head = b"XML:com.adobe.xmp\0" + (b"\0\0\0\0" if kind == b"iTXt" else b"")
    extra = chunk(kind, head + b"<x><tiff:Orientation>6</tiff:Orientation></x>")
    data = out.getvalue()[:33] + extra + out.getvalue()[33:]
    assert np.asarray(open_image(data, max_pixels=PIXELS)).tolist() == [[3, 0], [4, 1], [5, 2]]


@pytest.mark.parametrize("image", ["P", "LA", "RGBA", "I;16", "1"])
def test_other_pngs_are_pillows(image: str) -> None:
    out = io.BytesIO()
    Image.new(image, (5, 7)).save(out, "PNG")
    assert plain_png(out.getvalue(), max_pixels=PIXELS) is None
    assert open_image(out.getvalue(), max_pixels=PIXELS).size == (5, 7)


def test_a_png_that_is_cut_off_or_too_large_is_not_decoded(cat: bytes) -> None:
    assert all(plain_png(cat[:length], max_pixels=PIXELS) is None for length in (0, 8, 40, 5000, len(cat) - 1))
    assert plain_png(cat, max_pixels=451 * 300 - 1) is None


def test_damage_anywhere_is_an_image_error_or_an_image(cat: bytes) -> None:
    """Never another exception, whatever byte is wrong."""
    generator = np.random.default_rng(1)
    picture = Image.open(io.BytesIO(cat)).resize((60, 40))
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        out = io.BytesIO()
        picture.save(out, kind)
        good = np.frombuffer(out.getvalue(), np.uint8)
        for _ in range(60):
            bad = good.copy()
            places = generator.integers(0, len(bad), 4)
            bad[places] = generator.integers(0, 256, 4)
            try:
                image = open_image(bad.tobytes(), max_pixels=100_000)
            except ImageError:
                continue
            assert image.width * image.height <= 100_000


def test_assets_are_small_and_real() -> None:
    folder = Path(__file__).parents[1] / "onecontainer_driver_onnx" / "assets"
    with Image.open(folder / "chelsea.png") as picture:
        assert picture.size == (451, 300)
    assert (folder / "cat.webp").stat().st_size < 10_000

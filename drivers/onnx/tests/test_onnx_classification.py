"""The built-in model on a real picture, in every form in which a picture may come."""

from __future__ import annotations

import asyncio
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from onecontainer_driver_onnx.usage import example_image
from PIL import Image, ImageOps

from onecontainer.api.ai.v1 import inference_pb2, inference_service_pb2, tensor_pb2
from onecontainer.driver import InferenceDriver, errors
from onecontainer.driver.models.served import Served
from onecontainer.driver.models.tensors import tensor_from_array

PIXELS = 50_000_000
CATS = {"tabby", "tiger cat", "Egyptian cat"}


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def classes(response: inference_service_pb2.PredictResponse, index: int = 0) -> list[tuple[str, float]]:
    return [(c.label, c.probability) for c in response.predictions[index].classification.classes]


@pytest.fixture
def picture(cat: bytes) -> Image.Image:
    return Image.open(io.BytesIO(cat)).convert("RGB")


async def test_the_cat_is_a_cat(cats: Any, cat: bytes) -> None:
    response = await cats.predict(inference_pb2.Input(image=cat))
    assert response.model == "services/cats/models/efficientnet-lite0"
    assert response.version == "1"
    # What PyTorch gives for the same weights, with torchvision's resize and crop.
    assert classes(response)[:3] == [
        ("tiger cat", pytest.approx(0.395, abs=0.002)),
        ("Egyptian cat", pytest.approx(0.355, abs=0.002)),
        ("tabby", pytest.approx(0.170, abs=0.002)),
    ]
    found = response.predictions[0].classification.classes
    assert [c.index for c in found][:3] == [282, 285, 281]
    assert len(found) == 5
    assert response.timing.compute_infer.ToNanoseconds() > 0
    assert response.timing.batch_size == 1


def rotated(picture: Image.Image) -> bytes:
    """As a phone held upright writes it: pixels lying down, and a note which way is up."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(picture.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif)


def rgba(picture: Image.Image) -> Image.Image:
    return Image.merge("RGBA", (*picture.split(), Image.linear_gradient("L").resize(picture.size)))


FORMS: dict[str, Any] = {
    "jpeg": lambda p: encode(p, "JPEG", quality=90),
    "progressive jpeg": lambda p: encode(p, "JPEG", quality=90, progressive=True),
    "cmyk jpeg": lambda p: encode(p.convert("CMYK"), "JPEG", quality=90),
    "exif rotated jpeg": rotated,
    "rgba png": lambda p: encode(rgba(p), "PNG"),
    "palette png": lambda p: encode(p.quantize(256), "PNG"),
    "palette png with transparency": lambda p: encode(p.quantize(255), "PNG", transparency=254),
    "interlaced gif": lambda p: encode(p.quantize(256), "GIF"),
    "webp": lambda p: encode(p, "WEBP", quality=90),
    "bmp": lambda p: encode(p, "BMP"),
    "tiff": lambda p: encode(p, "TIFF", compression="tiff_lzw"),
    "over 4 MiB": lambda p: encode(p.resize((2255, 1500), Image.Resampling.LANCZOS), "BMP"),
    "a 12 megapixel jpeg": lambda p: encode(p.resize((4510, 3000), Image.Resampling.LANCZOS), "JPEG", quality=90),
}


@pytest.mark.parametrize("form", FORMS)
async def test_forms(cats: Any, picture: Image.Image, form: str) -> None:
    data = FORMS[form](picture)
    if form == "over 4 MiB":
        assert len(data) > 4 * 1024 * 1024
    response = await cats.predict(inference_pb2.Input(image=data))
    best = classes(response)
    assert best[0][0] in CATS
    assert sum(p for label, p in best if label in CATS) > 0.75


async def test_grey(cats: Any, picture: Image.Image) -> None:
    grey = picture.convert("L")
    eight = await cats.predict(inference_pb2.Input(image=encode(grey, "PNG")))
    assert classes(eight)[0][0] in CATS
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    sixteen = await cats.predict(inference_pb2.Input(image=encode(deep, "PNG")))
    assert classes(sixteen) == classes(eight)
    la = Image.merge("LA", (grey, Image.new("L", grey.size, 255)))
    assert classes(await cats.predict(inference_pb2.Input(image=encode(la, "PNG")))) == classes(eight)


@pytest.mark.parametrize("mode", ["I", "F"])
async def test_grey_that_nobody_knows_the_white_of_is_refused(cats: Any, picture: Image.Image, mode: str) -> None:
    data = encode(picture.convert("L").convert(mode), "TIFF")
    with pytest.raises(errors.DataInvalid, match="convert it to 8 or 16 bits") as caught:
        await cats.predict(inference_pb2.Input(image=data))
    assert caught.value.violations[0].field == "inputs[0].image"


async def test_grey_of_16_bits_in_a_tiff(cats: Any, picture: Image.Image) -> None:
    grey = picture.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    found = [await cats.predict(inference_pb2.Input(image=encode(one, "TIFF"))) for one in (grey, deep)]
    assert classes(found[1]) == classes(found[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
async def test_numbers_that_are_none_are_the_callers(cats: Any, value: float) -> None:
    pixels = np.zeros((1, 3, 224, 224), np.float32)
    pixels[0, 1, 5, 7] = value
    with pytest.raises(errors.DataInvalid, match="NaN or infinite") as caught:
        await cats.predict(inference_pb2.Input(tensor=tensor_from_array(pixels)))
    assert caught.value.violations[0].field == "inputs[0].tensor"


async def test_orientation_is_applied(cats: Any, picture: Image.Image) -> None:
    upright = encode(ImageOps.exif_transpose(Image.open(io.BytesIO(rotated(picture)))), "PNG")
    turned, straight = [
        classes(await cats.predict(inference_pb2.Input(image=data))) for data in (rotated(picture), upright)
    ]
    assert [label for label, _ in turned] == [label for label, _ in straight]
    assert [p for _, p in turned] == pytest.approx([p for _, p in straight], abs=0.02)


def without_end(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: b"", "is empty"),
        (lambda p: b"a cat sits on a mat", "is not an image"),
        (lambda p: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not an image"),
        (lambda p: b"%!PS-Adobe-3.0 EPSF-3.0\n", "is not an image"),
        (lambda p: without_end(encode(p, "PNG"), 0.5), "truncated"),
        (lambda p: encode(p, "PNG")[:20], "image"),
        (lambda p: without_end(encode(p, "JPEG"), 0.5), "truncated"),
        (lambda p: without_end(encode(p, "WEBP"), 0.5), "image"),
        (lambda p: without_end(encode(p, "TIFF"), 0.5), "image"),
        (lambda p: encode(p.convert("L").convert("F"), "TIFF"), "16 bits"),
    ],
)
async def test_what_is_no_image_is_invalid(cats: Any, picture: Image.Image, make: Any, says: str) -> None:
    with pytest.raises(errors.DataInvalid, match=says) as caught:
        await cats.predict(inference_pb2.Input(image=make(picture)))
    assert [v.field for v in caught.value.violations] == ["inputs[0].image"]


async def test_a_decompression_bomb_is_not_decoded(cats: Any) -> None:
    # A header that promises 4 gigapixels; there is nothing behind it to decode.
    small = encode(Image.new("L", (1, 1)), "PNG")
    header = b"IHDR" + struct.pack(">II", 65500, 65500) + small[24:29]
    bomb = small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]
    with pytest.raises(errors.DataInvalid, match="65500 × 65500 pixels"):
        await cats.predict(inference_pb2.Input(image=bomb))
    with pytest.raises(errors.DataInvalid, match="pixels"):
        await cats.predict(inference_pb2.Input(image=encode(Image.new("1", (8000, 7000)), "PNG")))


async def test_too_long_an_image_is_not_read(cats: Any, cat: bytes) -> None:
    await cats.restart(max_image_bytes=1000)
    await cats.ready()
    for value in (inference_pb2.Input(image=cat), inference_pb2.Input(artifact=cats.artifacts.add(cat))):
        with pytest.raises(errors.DataInvalid, match="1000 are allowed"):
            await cats.predict(value)


async def test_an_artifact(cats: Any, cat: bytes) -> None:
    for media_type in ("image/png", "", "application/octet-stream"):
        response = await cats.predict(inference_pb2.Input(artifact=cats.artifacts.add(cat, media_type)))
        assert classes(response)[0][0] == "tiger cat"
    with pytest.raises(errors.ResourceNotFound):
        await cats.predict(inference_pb2.Input(artifact="artifacts/none"))
    with pytest.raises(errors.DataInvalid) as caught:
        await cats.predict(inference_pb2.Input(artifact=cats.artifacts.add(b"no image")))
    assert caught.value.violations[0].field == "inputs[0].artifact"


async def test_a_tensor_gives_what_the_image_gives(cats: Any, cat: bytes, lite0: Served) -> None:
    assert lite0.image is not None
    array = lite0.image.run(cat, max_pixels=PIXELS)
    by_image = await cats.predict(inference_pb2.Input(image=cat))
    by_tensor = await cats.predict(inference_pb2.Input(tensor=tensor_from_array(array)))
    assert classes(by_tensor) == classes(by_image)
    stored = tensor_pb2.Tensor(
        dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=array.shape, artifact=cats.artifacts.add(array.tobytes())
    )
    assert classes(await cats.predict(inference_pb2.Input(tensor=stored))) == classes(by_image)
    two = await cats.predict(inference_pb2.Input(tensor=tensor_from_array(np.concatenate([array, -array]))))
    assert len(two.predictions) == 2
    assert classes(two) == [(label, pytest.approx(p, abs=1e-4)) for label, p in classes(by_image)]
    assert classes(two, 1) != classes(two)


async def test_several_images_keep_their_order(cats: Any, picture: Image.Image) -> None:
    noise = Image.effect_noise((300, 300), 80).convert("RGB")
    forms = [picture, noise, ImageOps.mirror(picture)] * 4
    together = await cats.predict(*(inference_pb2.Input(image=encode(form, "PNG")) for form in forms))
    assert len(together.predictions) == 12
    for index, form in enumerate(forms):
        alone = await cats.predict(inference_pb2.Input(image=encode(form, "PNG")))
        assert [label for label, _ in classes(together, index)][:2] == [label for label, _ in classes(alone)][:2]
        assert [p for _, p in classes(together, index)] == pytest.approx([p for _, p in classes(alone)], abs=1e-4)


async def test_concurrent_calls_are_not_swapped(cats: Any, picture: Image.Image) -> None:
    noise = Image.effect_noise((300, 300), 80).convert("RGB")
    data = [encode(picture, "PNG"), encode(noise, "PNG"), encode(ImageOps.flip(picture), "PNG")]
    expected = [classes(await cats.predict(inference_pb2.Input(image=one))) for one in data]
    answers = await asyncio.gather(*(cats.predict(inference_pb2.Input(image=data[i % 3])) for i in range(200)))
    assert [classes(answer) for answer in answers] == [expected[i % 3] for i in range(200)]


async def test_output_options(cats: Any, cat: bytes) -> None:
    async def ask(**options: Any) -> inference_pb2.Prediction:
        output = inference_pb2.OutputOptions(**options)
        return (await cats.predict(inference_pb2.Input(image=cat), output=output)).predictions[0]

    assert len((await ask(top_k=1)).classification.classes) == 1
    everything = (await ask(top_k=1000)).classification.classes
    assert len(everything) == 1000
    assert sum(c.probability for c in everything) == pytest.approx(1)
    assert [c.label for c in (await ask(min_probability=0.3)).classification.classes] == ["tiger cat", "Egyptian cat"]
    assert len((await ask(min_probability=1.0)).classification.classes) == 1
    (tensor,) = (await ask(kind=inference_pb2.OUTPUT_KIND_TENSORS)).tensors.tensors
    assert (tensor.name, list(tensor.tensor.shape), len(tensor.tensor.data)) == ("logits", [1, 1000], 4000)
    rows = (await ask(kind=inference_pb2.OUTPUT_KIND_JSON)).json.struct_value["logits"]
    assert len(rows[0]) == 1000
    for wrong, field in (
        ({"top_k": 1001}, "output.top_k"),
        ({"top_k": -1}, "output.top_k"),
        ({"min_probability": 1.5}, "output.min_probability"),
        ({"kind": inference_pb2.OUTPUT_KIND_TENSORS, "names": ["nothing"]}, "output.names[0]"),
    ):
        with pytest.raises(errors.FieldInvalid) as caught:
            await ask(**wrong)
        assert caught.value.violations[0].field == field


@pytest.mark.parametrize(
    ("inputs", "kind", "field"),
    [
        ([], errors.FieldRequired, "inputs"),
        ([inference_pb2.Input()], errors.FieldRequired, "inputs[0]"),
        ([inference_pb2.Input(name="nothing", image=b"x")], errors.FieldInvalid, "inputs[0].name"),
        ([inference_pb2.Input(text="a cat")], errors.FieldInvalid, "inputs[0].text"),
        ([inference_pb2.Input(image=b"x")] * 257, errors.FieldInvalid, "inputs"),
        (
            [inference_pb2.Input(tensor=tensor_pb2.Tensor(shape=[1], data=b"1234"))],
            errors.FieldRequired,
            "inputs[0].tensor.dtype",
        ),
        (
            [inference_pb2.Input(tensor=tensor_from_array(np.zeros((1, 3, 224, 224))))],
            errors.DataInvalid,
            "inputs[0].tensor.dtype",
        ),
        (
            [inference_pb2.Input(tensor=tensor_from_array(np.zeros((1, 3, 224, 223), np.float32)))],
            errors.DataInvalid,
            "inputs[0].tensor.shape",
        ),
        (
            [
                inference_pb2.Input(
                    tensor=tensor_pb2.Tensor(
                        dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=[1, 3, 224, 224], data=b"\0" * 100
                    )
                )
            ],
            errors.DataInvalid,
            "inputs[0].tensor.data",
        ),
    ],
)
async def test_wrong_inputs(cats: Any, inputs: list[inference_pb2.Input], kind: type[Exception], field: str) -> None:
    with pytest.raises(kind) as caught:
        await cats.predict(*inputs)
    assert isinstance(caught.value, errors.OneContainerError)
    assert caught.value.violations[0].field == field


async def test_parameters_and_names(cats: Any, cat: bytes) -> None:
    value = inference_pb2.Input(image=cat)
    with pytest.raises(errors.FieldInvalid, match=r"parameters\.temperature"):
        await cats.predict(value, parameters={"temperature": 0.1})
    with pytest.raises(errors.ModelNotFound):
        await cats.predict(value, model="dogs")
    with pytest.raises(errors.ModelNotFound):
        await cats.predict(value, version="7")
    with pytest.raises(errors.FieldInvalid, match="another service"):
        await cats.predict(value, model="services/dogs/models/efficientnet-lite0")
    named = await cats.predict(value, model="services/cats/models/efficientnet-lite0", version="1")
    assert classes(named)[0][0] == "tiger cat"


async def test_usage_tells_what_works(cats: Any) -> None:
    context = cats.context()
    usage = await cats.driver.get_usage(inference_service_pb2.GetUsageRequest(service="services/cats"), context)
    assert [model.name for model in usage.models] == ["services/cats/models/efficientnet-lite0"]
    predict = next(f for f in usage.functions if f.method.endswith("/Predict"))
    request = inference_service_pb2.PredictRequest()
    assert predict.examples[0].request.Unpack(request)
    assert classes(await cats.driver.predict(request, context))[0][0] in CATS
    assert request.inputs[0].image == example_image()
    cls = type(cats.driver)
    implemented = {
        name for name, method in vars(InferenceDriver).items() if callable(method) and getattr(cls, name) is not method
    }
    told = {f.method.rpartition("/")[2] for f in usage.functions}
    assert {"".join(part.title() for part in name.split("_")) for name in implemented} == told

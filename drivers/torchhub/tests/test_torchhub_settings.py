"""What needs no PyTorch: what the settings allow, archives, and what processes and sidecar say to each other."""

from __future__ import annotations

import asyncio
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import struct_pb2
from onecontainer_driver_torchhub.archive import unpack
from onecontainer_driver_torchhub.config import Allowed, allowed_of, keywords
from onecontainer_driver_torchhub.driver import TorchHubDriver
from onecontainer_driver_torchhub.model_process import error_of, own_bytes
from onecontainer_driver_torchhub.process.failures import Failure, Kind, of_load
from onecontainer_driver_torchhub.process.wire import HEAD, decode, encode
from onecontainer_driver_torchhub.runtime import Runtime, environment
from onecontainer_driver_torchhub.session import Opener
from onecontainer_driver_torchhub.sources import Sources

from onecontainer.api.ai.v1 import model_pb2
from onecontainer.driver import Attachment, errors
from onecontainer.driver.models.store import Store
from onecontainer.driver.models.version import Material
from onecontainer.rpc.manifest import load_manifest

FOLDER = Path(__file__).parents[1]
HUBCONF = b"def model(): ...\n"


def config(repo: str = "", entrypoint: str = "model", **fields: Any) -> model_pb2.ModelConfig:
    hub = model_pb2.TorchHubSource(repo=repo, entrypoint=entrypoint, **fields)
    return model_pb2.ModelConfig(source=model_pb2.ModelSource(torch_hub=hub))


@pytest.mark.parametrize("repo", ["acme/models", "acme/models:v1", "Open_1/any.thing:feature/x-1", "pinned/one:abc123"])
def test_repositories_that_are_allowed(repo: str) -> None:
    Allowed(["acme/models", "Open_1/*", "pinned/one:abc123"]).check(config(repo))


@pytest.mark.parametrize("repo", ["acme/other", "acme/models2", "other/models:v1", "pinned/one", "pinned/one:abc124"])
def test_repositories_that_are_not(repo: str) -> None:
    with pytest.raises(errors.SourceNotAllowed, match="allowed_repos"):
        Allowed(["acme/models", "pinned/one:abc123"]).check(config(repo))
    with pytest.raises(errors.SourceNotAllowed, match="none are"):
        Allowed().check(config(repo))


@pytest.mark.parametrize(
    "repo",
    [
        "acme",
        "acme/",
        "acme/models/more",
        "../models",
        "acme/..",
        "acme/models:../../x",
        "acme/models:a//b",
        "acme/models:",
        "acme/models:-x",
        "acme/models:v1/..",
        "acme/mo dels",
        "acme/models:v1\n",
        "acme/models?x=1",
        "acme/models#x",
        "https://x/acme/models",
        "acme\\models",
        "acme/models:v1@{0}",
    ],
)
def test_names_that_are_none(repo: str) -> None:
    with pytest.raises((errors.FieldInvalid, errors.SourceNotAllowed)) as caught:
        Allowed(["acme/*", "acme/models"]).check(config(repo))
    # An absolute path is looked at when it is read.
    assert isinstance(caught.value, errors.FieldInvalid), repo


def test_what_a_config_must_have() -> None:
    allowed = Allowed(["acme/models"])
    for wrong, error, field in (
        (config(), errors.FieldRequired, "repo"),
        (config("acme/models", repo_artifact="artifacts/a"), errors.FieldRequired, "repo"),
        (config("acme/models", ""), errors.FieldRequired, "entrypoint"),
        (config("acme/models", "os.system"), errors.FieldInvalid, "entrypoint"),
        (config("acme/models", "_load"), errors.FieldInvalid, "entrypoint"),
        (config(repo_artifact="artifacts/a"), errors.SourceNotAllowed, "repo_artifact"),
    ):
        with pytest.raises(error) as caught:
            allowed.check(wrong)
        assert caught.value.violations[0].field == f"config.source.torch_hub.{field}"
    kwargs = struct_pb2.Struct()
    kwargs["skip_validation"] = True
    with pytest.raises(errors.FieldInvalid, match=r"kwargs\.skip_validation"):
        allowed.check(config("acme/models", kwargs=kwargs))


def test_settings_that_are_wrong(tmp_path: Path) -> None:
    given = {"allowed_repos": None, "hub_dir": None, "allow_repo_artifacts": False}
    assert allowed_of(given, tmp_path) == Allowed([], None, False)
    for name, value in (
        ("allowed_repos", ["acme"]),
        ("allowed_repos", ["*/*"]),
        ("allowed_repos", [1]),
        ("hub_dir", "../outside"),
        ("hub_dir", "/tmp/../etc"),
        ("hub_dir", str(tmp_path / "absent")),
    ):
        with pytest.raises(errors.FieldInvalid, match=f"options.{name}"):
            allowed_of({**given, name: value}, tmp_path)


async def test_a_relative_folder_is_made_in_the_state_folder(tmp_path: Path) -> None:
    given = {"allowed_repos": None, "hub_dir": "repos", "allow_repo_artifacts": False}
    allowed = allowed_of(given, tmp_path)
    folder = tmp_path / "local" / "repos"
    assert allowed.folder == folder
    # Files come later, and stay when the driver is attached again.
    (folder / "mynet").mkdir(parents=True)
    (folder / "mynet" / "hubconf.py").write_bytes(HUBCONF)
    assert allowed_of(given, tmp_path) == allowed
    found = await Sources(Store(tmp_path), allowed, 1000).fetch(None)(config("./mynet"), None, lambda *_, **__: None)
    assert found.path == folder / "mynet"


def test_keywords_are_as_they_are_written() -> None:
    kwargs = struct_pb2.Struct()
    kwargs.update({"classes": 10, "rate": 0.5, "pretrained": False, "sizes": [1, 2.5], "more": {"n": 3, "none": None}})
    found = keywords(kwargs)
    assert found == {"classes": 10, "rate": 0.5, "pretrained": False, "sizes": [1, 2.5], "more": {"n": 3, "none": None}}
    assert [type(one) for one in (found["classes"], found["rate"], found["sizes"][0])] == [int, float, int]


async def test_local_repositories_stay_in_their_folder(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    (hub / "good").mkdir(parents=True)
    (hub / "good" / "hubconf.py").write_bytes(HUBCONF)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "hubconf.py").write_bytes(HUBCONF)
    (hub / "link").symlink_to("../secret")
    (hub / "nested").mkdir()
    (hub / "nested" / "link").symlink_to("../../secret")
    (hub / "empty").mkdir()
    fetch = Sources(Store(tmp_path / "state"), Allowed(folder=hub), 1000).fetch(None)

    def report(*_: Any) -> None: ...

    assert (await fetch(config(f"{hub}/good"), None, report)).path == hub / "good"
    assert (await fetch(config("./good"), None, report)).path == hub / "good"
    for name in (f"{hub}/link", "./link", "./../secret", f"{hub}/nested", f"{hub}/../secret", str(tmp_path), "/"):
        with pytest.raises(errors.SourceNotAllowed, match="hub_dir"):
            await fetch(config(name), None, report)
    with pytest.raises(errors.ResourceNotFound):
        await fetch(config(f"{hub}/absent"), None, report)
    with pytest.raises(errors.DataInvalid, match=r"no hubconf\.py"):
        await fetch(config(f"{hub}/empty"), None, report)
    # What was served before the settings were changed is not loaded again.
    later = Sources(Store(tmp_path / "state"), Allowed(), 1000).fetch(None)
    with pytest.raises(errors.SourceNotAllowed):
        await later(config(f"{hub}/good"), None, report)


def tarred(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def unpacked(tmp_path: Path, data: bytes, max_bytes: int = 10_000) -> Path:
    archive, target = tmp_path / "archive", tmp_path / "target"
    archive.write_bytes(data)
    target.mkdir()
    return unpack(archive, target, max_bytes, "field")


@pytest.mark.parametrize(
    "data",
    [
        HUBCONF,
        tarred((tarfile.TarInfo("hubconf.py"), HUBCONF)),
        tarred((tarfile.TarInfo("models-main/hubconf.py"), HUBCONF), (tarfile.TarInfo("models-main/a/b.py"), b"")),
        zipped({"models-main/": b"", "models-main/hubconf.py": HUBCONF, "models-main/a/b.py": b""}),
    ],
)
def test_archives(tmp_path: Path, data: bytes) -> None:
    assert (unpacked(tmp_path, data) / "hubconf.py").read_bytes() == HUBCONF


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not: python at all (",
        b"\0" * 100,
        tarred((tarfile.TarInfo("other.py"), HUBCONF)),
        tarred((tarfile.TarInfo("../hubconf.py"), HUBCONF)),
        tarred((tarfile.TarInfo("hubconf.py"), HUBCONF), (link("out", "../../etc"), b"")),
        tarred((tarfile.TarInfo("hubconf.py"), HUBCONF), (tarfile.TarInfo("large"), b"0" * 20_000)),
        tarred((tarfile.TarInfo("hubconf.py"), HUBCONF))[:-20],
        zipped({"../hubconf.py": HUBCONF}),
        zipped({"hubconf.py": HUBCONF, "..\\out.py": b""}),
        zipped({"/hubconf.py": HUBCONF}),
        zipped({"hubconf.py": HUBCONF, "large": b"0" * 20_000}),
    ],
)
def test_archives_that_are_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(errors.DataInvalid, match="field"):
        unpacked(tmp_path, data)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "target"]


def test_messages_cross_whole() -> None:
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array(True),
        "c": np.zeros((0, 4), np.int64),
        "d": np.arange(6, dtype=np.uint8).reshape(2, 3).T,
    }
    data = b"".join(encode({"kind": "answer", "id": 7}, arrays))
    facts_size, data_size = HEAD.unpack(data[: HEAD.size])
    assert len(data) == HEAD.size + facts_size + data_size
    facts, found = decode(data[HEAD.size : HEAD.size + facts_size], data[HEAD.size + facts_size :])
    assert facts == {"kind": "answer", "id": 7}
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert (found[name] == array).all()


def test_why_a_load_failed() -> None:
    for raised, kind in (
        (RuntimeError("Cannot find callable x in hubconf"), Kind.MISSING),
        (RuntimeError("Missing dependencies: timm"), Kind.CAPABILITY),
        (RuntimeError("It looks like there is no internet connection and …"), Kind.UNREACHABLE),
        (ConnectionResetError("gone"), Kind.UNREACHABLE),
        (ModuleNotFoundError("No module named 'timm'"), Kind.CAPABILITY),
        (MemoryError(), Kind.MEMORY),
        (KeyError("x"), Kind.INVALID),
        (Failure(Kind.FAILED, "as it is"), Kind.FAILED),
    ):
        assert of_load(raised, "acme/models", "x").kind == kind
    for why, error in (
        ("missing", errors.ResourceNotFound),
        ("unreachable", errors.BackendUnreachable),
        ("capability", errors.BackendCapabilityMissing),
        ("invalid", errors.DataInvalid),
        ("memory", errors.LimitExceeded),
        ("failed", errors.BackendExecutionFailed),
    ):
        assert isinstance(error_of({"why": why, "message": "m", "field": "repo"}), error)


def attachment(tmp_path: Path, **options: Any) -> Attachment:
    manifest = load_manifest(FOLDER)
    defaults = {option.name: option.default for option in manifest.options}
    return Attachment("services/vision", "torchhub", "", {}, defaults | options, tmp_path, manifest)


async def test_without_pytorch_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found_out = tmp_path / "found-out"
    waits = f"import os, time\nwhile not os.path.exists({str(found_out)!r}): time.sleep(0.01)\n"
    monkeypatch.setattr("onecontainer_driver_torchhub.runtime.PACKAGES", _without_torch(tmp_path, waits))
    driver = TorchHubDriver()
    await driver.attach(attachment(tmp_path / "state"))
    try:
        assert not (await driver.probe()).ready
        found_out.touch()
        with pytest.raises(errors.BackendUnreachable, match="python3-torch"):
            await driver.rules()
        with pytest.raises(errors.BackendUnreachable):
            await driver.probe()
    finally:
        await driver.detach()


def _without_torch(tmp_path: Path, first: str = "") -> Path:
    """The driver's package where a `torch` that cannot be imported comes first; `first`: what it does before it says so."""
    folder = tmp_path / "packages"
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "__init__.py").write_text(f"{first}raise ImportError('no torch here')")
    (folder / "onecontainer_driver_torchhub").symlink_to(FOLDER / "onecontainer_driver_torchhub")
    return folder


async def test_a_process_without_pytorch_fails_the_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way to a model's process and back, to its typed error; nothing of it is left."""
    monkeypatch.setattr("onecontainer_driver_torchhub.runtime.PACKAGES", _without_torch(tmp_path))
    repo = tmp_path / "repo"
    repo.mkdir()
    (repo / "hubconf.py").write_bytes(HUBCONF)
    opener = Opener(tmp_path / "state", tmp_path / "state" / "hub", 1, 10_000)
    await asyncio.to_thread(opener.clean)

    def report(*_: Any) -> None: ...

    wanted = config(str(repo))
    wanted.execution.device, wanted.execution.inter_op_threads = "cpu", 1
    with pytest.raises(errors.BackendCapabilityMissing, match="no torch here"):
        await opener.open(Material(repo), wanted, report)
    assert list(opener.work.iterdir()) == []


async def test_processes_do_not_see_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONECONTAINER_TOKEN", "secret")
    found = environment(tmp_path, 3)
    assert not [name for name in found if name.startswith("ONECONTAINER_")]
    assert (found["HOME"], found["OMP_NUM_THREADS"]) == (str(tmp_path), "3")
    runtime = Runtime(found)
    await runtime.close()


async def test_options_that_are_wrong(tmp_path: Path) -> None:
    for name, value in (("threads", -1), ("idle_timeout", 0.5), ("cache_dir", "relative"), ("max_model_bytes", 0)):
        driver = TorchHubDriver()
        with pytest.raises(errors.FieldInvalid, match=f"options.{name}"):
            await driver.attach(attachment(tmp_path, **{name: value}))
        await driver.detach()


def test_memory_is_measured() -> None:
    assert own_bytes(os.getpid()) > 10e6
    assert own_bytes(2**22 + 1) == 0


def test_examples_are_for_the_hub_that_comes_along() -> None:
    given = json.loads((FOLDER / "examples.json").read_text())
    assert (FOLDER / given["artifacts"]["line"]).is_file()

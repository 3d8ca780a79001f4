"""The catalog of backends: what comes along is sound, what is wrong in one's own is named, settings go over it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from onecontainer.cli.backends.catalog import Backend, bundled_catalog, choose, digest_of_folder, load
from onecontainer.errors import FieldInvalid, ResourceNotFound
from onecontainer.settings import Settings

ROOT = Path(__file__).resolve().parents[3]


def tiny() -> dict[str, Any]:
    """A sound entry with a container and a service."""
    return {
        "container": {
            "image": "tiny:1",
            "ports": {"web": {"container": 8000, "host": 18000}},
            "memory": "64m",
            "ready": {"port": "web"},
        },
        "service": {"id": "tiny", "app": "tiny", "endpoints": {"node1": "http://{web}/x", "node2": "other:1"}},
    }


def loaded(tmp_path: Path, catalog: object = None, **settings: Any) -> dict[str, Backend]:
    if catalog is not None:
        path = tmp_path / "catalog.json"
        path.write_text(json.dumps(catalog))
        settings["backend_catalog"] = path
    return load(Settings(data_dir=tmp_path, **settings))


def test_the_bundled_catalog_has_the_default_backends_on_loopback_and_their_own_ports(tmp_path: Path) -> None:
    catalog = loaded(tmp_path)
    assert {"cassandra", "torchhub", "ffmpeg", "web-rtmp"} <= catalog.keys()
    places = [address for backend in catalog.values() for address in backend.addresses.values()]
    assert len(places) == len(set(places))
    assert all(place.startswith("127.0.0.1:") for place in places)
    assert catalog["cassandra"].endpoints("process") == {"node1": "127.0.0.1:9042"}
    assert catalog["web-rtmp"].addresses == {"http": "127.0.0.1:5553", "rtmp": "127.0.0.1:5554"}
    assert catalog["torchhub"].container is None


def test_a_users_entry_comes_to_the_bundled_ones_and_replaces_one_of_its_name(tmp_path: Path) -> None:
    catalog = loaded(tmp_path, {"tiny": tiny(), "cassandra": tiny()})
    assert catalog["tiny"].container == catalog["cassandra"].container
    assert "ffmpeg" in catalog


def test_endpoints_are_where_the_services_sidecar_reaches_them(tmp_path: Path) -> None:
    backend = loaded(tmp_path, {"tiny": tiny()})["tiny"]
    assert backend.endpoints("process") == {"node1": "http://127.0.0.1:18000/x", "node2": "other:1"}
    assert backend.endpoints("docker") == {"node1": "http://host.docker.internal:18000/x", "node2": "other:1"}


def test_settings_give_other_images_and_ports(tmp_path: Path) -> None:
    catalog = loaded(
        tmp_path,
        {"tiny": tiny()},
        backend_images={"tiny": "mine:2", "web-rtmp": "rtmp:3"},
        backend_ports={"tiny.web": 19000},
        backend_base_image="debian:mine",
    )
    container, rtmp = catalog["tiny"].container, catalog["web-rtmp"].container
    assert container is not None
    assert rtmp is not None
    assert (container.image, catalog["tiny"].addresses) == ("mine:2", {"web": "127.0.0.1:19000"})
    assert (rtmp.image, rtmp.build, catalog["web-rtmp"].build_folder) == ("rtmp:3", None, None)
    assert catalog["tiny"].base_image == "debian:mine"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"backend_ports": {"tiny.wbe": 1}}, "backend_ports.tiny.wbe: is not known; there are cassandra.cql, tiny.web"),
        (
            {"backend_images": {"ffmpeg": "x"}},
            "backend_images.ffmpeg: is not known; there are cassandra, tiny, web-rtmp",
        ),
    ],
)
def test_a_setting_for_what_is_not_there_is_no_silent_no(tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(FieldInvalid) as caught:
        loaded(tmp_path, {"tiny": tiny()}, **settings)
    assert says in str(caught.value)


def without(entry: dict[str, Any], part: str, key: str) -> dict[str, Any]:
    del entry[part][key]
    return entry


def changed(part: str, key: str, value: object) -> dict[str, Any]:
    entry = tiny()
    entry[part][key] = value
    return entry


@pytest.mark.parametrize(
    ("entry", "place", "says"),
    [
        ({}, "tiny", "give a `container`, a `service`, or both"),
        (without(tiny(), "container", "memory"), "tiny.container.memory", "required"),
        (without(tiny(), "container", "image"), "tiny.container", "either `image` or `build`"),
        (changed("container", "build", "folder"), "tiny.container", "either `image` or `build`"),
        (changed("container", "memory", "lots"), "tiny.container.memory", "pattern"),
        (changed("container", "privileged", True), "tiny.container.privileged", "not permitted"),
        (changed("container", "ready", {"port": "cql"}), "tiny.container", "none of `ports`"),
        (
            changed("container", "ports", {"web": {"container": 0, "host": 1}}),
            "tiny.container.ports.web.container",
            "1",
        ),
        (changed("container", "volumes", {"data": "relative"}), "tiny.container.volumes.data", "pattern"),
        (changed("service", "endpoints", {"n": "{cql}"}), "tiny", "service.endpoints.n names 'cql'"),
        (changed("service", "endpoints", {"n": "{"}), "tiny", "service.endpoints.n"),
        (changed("service", "runtime", "attached"), "tiny.service.runtime", "process"),
    ],
)
def test_what_is_wrong_in_a_catalog_is_named(tmp_path: Path, entry: dict[str, Any], place: str, says: str) -> None:
    with pytest.raises(FieldInvalid) as caught:
        loaded(tmp_path, {"tiny": entry})
    assert any(found.field.startswith(place) and says in found.description for found in caught.value.violations), (
        caught.value
    )
    assert str(tmp_path / "catalog.json") in str(caught.value)


def test_a_catalog_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(FieldInvalid, match="cannot be read"):
        loaded(tmp_path, backend_catalog=tmp_path / "missing.json")
    with pytest.raises(FieldInvalid, match="stands for each backend"):
        loaded(tmp_path, {"all": tiny()})
    entry = changed("container", "build", "nowhere")
    del entry["container"]["image"]
    with pytest.raises(FieldInvalid, match="nowhere/Dockerfile"):
        loaded(tmp_path, {"tiny": entry})


def test_names_are_chosen_once_each_and_all_stands_for_each(tmp_path: Path) -> None:
    catalog = loaded(tmp_path)
    assert [backend.name for backend in choose(catalog, ["onnx", "ffmpeg", "onnx"])] == ["onnx", "ffmpeg"]
    assert {backend.name for backend in choose(catalog, ["all"])} == catalog.keys()
    with pytest.raises(ResourceNotFound, match="casandra") as caught:
        choose(catalog, ["casandra"])
    assert "cassandra" in caught.value.__notes__[0]


def test_the_page_on_backends_says_what_is_so(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "backends.md").read_text()
    (example,) = re.findall(r"^```json\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert loaded(tmp_path, json.loads(example))["search"].endpoints("process") == {"node1": "http://127.0.0.1:9200"}
    bundled = loaded(tmp_path)
    rows = {name: row for name, row in re.findall(r"^\| `([a-z-]+)` \| (.*)\|$", page, re.MULTILINE) if name in bundled}
    assert rows.keys() == bundled.keys()
    for name, backend in bundled.items():
        for address in backend.addresses.values():
            assert f"{address.rpartition(':')[2]} " in rows[name]
        assert (backend.service is None) == ("none: " in rows[name])


def test_a_folders_digest_is_that_of_its_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = digest_of_folder(tmp_path, "base")
    assert digest_of_folder(tmp_path, "base") == first
    assert digest_of_folder(tmp_path, "other") != first
    (tmp_path / "a").chmod(0o755)
    executable = digest_of_folder(tmp_path, "base")
    (tmp_path / "a").rename(tmp_path / "b")
    assert len({first, executable, digest_of_folder(tmp_path, "base")}) == 3


def test_the_catalog_and_its_images_travel_in_the_wheel(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "site")
    code = (
        "from onecontainer.cli.backends.catalog import bundled_catalog, load; "
        "from onecontainer.settings import Settings; print(bundled_catalog()); load(Settings())"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    assert shown == str(tmp_path / "site/onecontainer/_bundled/backends/catalog.json")
    ours = {
        path.relative_to(bundled_catalog().parent) for path in bundled_catalog().parent.rglob("*") if path.is_file()
    }
    theirs = {path.relative_to(Path(shown).parent) for path in Path(shown).parent.rglob("*") if path.is_file()}
    assert ours == theirs

"""Containers of backends at a real docker: how they are made, what a further start changes, and what is said when they cannot be."""

from __future__ import annotations

import secrets
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onecontainer.cli.backends import readiness
from onecontainer.cli.backends.catalog import Backend, load
from onecontainer.cli.backends.containers import INSTALLATION_LABEL, Containers, ContainerState
from onecontainer.errors import BackendExecutionFailed, DeadlineExceeded, ResourceConflict, StateInvalid
from onecontainer.settings import Settings
from tests.fixtures.backends import BackendsOf, backends_of, tiny_entry, write_catalog
from tests.fixtures.docker import base_image
from tests.fixtures.processes import free_port


class Scene:
    """Containers of an installation of its own, and what they said meanwhile."""

    def __init__(self, installation: str, there: BackendsOf, containers: Containers, folder: Path) -> None:
        self.installation = installation
        self.there = there
        self.containers = containers
        self.folder = folder
        self.said: list[str] = []

    def backend(self, entry: dict[str, Any], name: str = "tiny", **settings: Any) -> Backend:
        catalog = write_catalog(self.folder / "catalog.json", **{name: entry})
        return load(Settings(data_dir=self.folder, backend_catalog=catalog, **settings))[name]

    def start(self, backend: Backend, runtime: Any = "process") -> str:
        return self.containers.start(backend, runtime, self.said.append)

    def starts(self, backend: Backend) -> int:
        """How often it has started with the data that it has now."""
        with urllib.request.urlopen(f"http://{backend.addresses['web']}/starts", timeout=60) as answer:
            return len(answer.read().split())


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    base_image()
    installation = f"test{secrets.token_hex(4)}"
    with backends_of(installation) as there, Containers(installation) as containers:
        yield Scene(installation, there, containers, tmp_path)


def test_a_start_changes_nothing_that_is_so_already_and_data_stays_until_it_is_asked_for(scene: Scene) -> None:
    entry = tiny_entry()
    backend = scene.backend(entry)
    assert scene.containers.state(backend) is ContainerState.ABSENT
    assert scene.start(backend) == "created"
    assert scene.containers.state(backend) is ContainerState.READY
    first = scene.there.container("tiny")
    assert scene.start(backend) == "running"
    assert (scene.there.container("tiny").id, scene.starts(backend)) == (first.id, 1)

    assert scene.containers.stop(backend)
    assert not scene.containers.stop(backend)
    assert scene.containers.state(backend) is ContainerState.STOPPED
    assert scene.start(backend) == "started"
    assert (scene.there.container("tiny").id, scene.starts(backend)) == (first.id, 2)

    entry["container"]["environment"] = {"CHANGED": "yes"}
    changed = scene.backend(entry)
    assert scene.start(changed) == "replaced"
    assert scene.there.container("tiny").id != first.id
    assert scene.starts(changed) == 3

    was_there, kept = scene.containers.remove(changed, data=False)
    assert was_there
    assert scene.there.left() == kept
    assert scene.start(changed) == "created"
    assert scene.starts(changed) == 4

    assert scene.containers.remove(changed, data=True) == (True, [])
    assert scene.there.left() == []
    assert scene.containers.remove(changed, data=True) == (False, [])


def test_a_container_gets_no_more_than_its_entry_says(scene: Scene) -> None:
    command = "cd /tmp && touch starts && exec python3 -m http.server 8000"
    backend = scene.backend(tiny_entry(command, user="65534:65534", read_only=True, tmpfs={"/tmp": "1m"}, volumes={}))
    assert scene.start(backend) == "created"
    facts = scene.there.container("tiny").attrs
    host = facts["HostConfig"]
    assert facts["Config"]["User"] == "65534:65534"
    assert (host["CapDrop"], host["CapAdd"], host["Privileged"]) == (["ALL"], None, False)
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["ReadonlyRootfs"]
    assert host["Tmpfs"] == {"/tmp": "rw,noexec,nosuid,nodev,size=1m,mode=1777"}
    assert (host["Memory"], host["MemorySwap"], host["PidsLimit"]) == (64 << 20, 64 << 20, 4096)
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}}
    number = backend.addresses["web"].rpartition(":")[2]
    assert host["PortBindings"] == {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": number}]}
    (network,) = facts["NetworkSettings"]["Networks"]
    assert scene.there.client.networks.get(network).attrs["Options"] == {
        "com.docker.network.bridge.enable_icc": "false"
    }


def test_sidecars_in_containers_reach_it_by_the_hosts_name_if_its_service_has_them(scene: Scene) -> None:
    entry = tiny_entry()
    entry["service"] = {"id": "tiny", "app": "tiny", "endpoints": {"node1": "http://{web}/starts"}}
    backend = scene.backend(entry)
    client = scene.there.client
    label = scene.there._ours.split("=")
    network = client.networks.create(f"sidecars-{label[1]}", labels=dict([label]))

    def asked_from_a_sidecar() -> str:
        url = backend.endpoints("docker")["node1"]
        code = f"import urllib.request; print(urllib.request.urlopen('{url}', timeout=60).read())"
        output = client.containers.run(
            base_image(),
            ["sh", "-c", f'python3 -c "{code}" 2>&1 || true'],
            network=network.name,
            extra_hosts={"host.docker.internal": "host-gateway"},
            labels=dict([label]),
            remove=True,
        )
        return str(output.decode())

    scene.start(backend, "process")
    assert "Connection refused" in asked_from_a_sidecar()
    assert scene.start(backend, "docker") == "replaced"
    assert "started" in asked_from_a_sidecar()
    hosts = [one["HostIp"] for one in scene.there.container("tiny").attrs["HostConfig"]["PortBindings"]["8000/tcp"]]
    assert hosts[0] == "127.0.0.1"
    assert "0.0.0.0" not in hosts
    assert scene.start(backend, "docker") == "running"


def test_a_port_that_is_taken_is_named_with_the_way_to_another(scene: Scene) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", free_port()))  # nobody is given it by the kernel between now and the last start
        other.listen()
        number = other.getsockname()[1]
        backend = scene.backend(tiny_entry(ports={"web": {"container": 8000, "host": number}}))
        with pytest.raises(ResourceConflict, match=f"port {number} of this host, for web of tiny") as caught:
            scene.start(backend)
    assert """ONECONTAINER_BACKEND_PORTS='{"tiny.web": NUMBER}'""" in caught.value.__notes__[0]
    assert scene.containers.state(backend) is ContainerState.ABSENT
    assert scene.start(scene.backend(tiny_entry(), backend_ports={"tiny.web": number})) == "created"


def test_one_that_ends_is_stopped_and_its_last_words_are_told(scene: Scene) -> None:
    backend = scene.backend(tiny_entry("echo no licence found >&2; exit 3"))
    with pytest.raises(BackendExecutionFailed, match="no licence found") as caught:
        scene.start(backend)
    assert "docker logs" in caught.value.__notes__[0]
    assert scene.containers.state(backend) is ContainerState.STOPPED


def test_one_that_is_not_ready_in_time_goes_on_starting(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    # On a machine that stands still docker's listener takes longer to close what nobody in the container takes.
    monkeypatch.setattr(readiness, "LISTEN_TIME", 60.0)
    backend = scene.backend(tiny_entry("echo still loading; exec sleep 600", ready={"port": "web", "timeout": 5}))
    with pytest.raises(DeadlineExceeded, match="still loading"):
        scene.start(backend)
    assert scene.containers.state(backend) is ContainerState.STARTING


def test_ready_is_what_the_log_says_since_the_last_start(scene: Scene) -> None:
    ready = {"port": "web", "log": "now serving", "timeout": 10}
    command = "test -e /data/starts || echo now serving; touch /data/starts; exec python3 -m http.server 8000 -d /data"
    backend = scene.backend(tiny_entry(command, ready=ready))
    assert scene.start(backend) == "created"
    scene.containers.stop(backend)
    with pytest.raises(DeadlineExceeded):
        scene.start(backend)


def test_an_image_that_cannot_be_had_is_named_with_the_way_to_another(scene: Scene) -> None:
    backend = scene.backend(tiny_entry(image="localhost:1/nowhere:7"))
    with pytest.raises(
        StateInvalid, match=r"localhost:1/nowhere:7 is not on this host and cannot be pulled: .+"
    ) as caught:
        scene.start(backend)
    assert "ONECONTAINER_BACKEND_IMAGES" in caught.value.__notes__[0]
    assert "pulling localhost:1/nowhere:7" in scene.said


def test_an_image_is_built_once_and_a_build_that_fails_shows_its_end(scene: Scene) -> None:
    mark = secrets.token_hex(4)
    recipe = scene.folder / "tiny-image" / "Dockerfile"
    recipe.parent.mkdir()
    recipe.write_text(f"ARG BASE_IMAGE\nFROM ${{BASE_IMAGE}}\nRUN echo {mark} broke && exit 9\n")
    entry = tiny_entry(build="tiny-image")
    del entry["container"]["image"]
    backend = scene.backend(entry, backend_base_image=base_image())
    with pytest.raises(BackendExecutionFailed, match=rf"(?s){mark} broke\n.*code: 9") as caught:
        scene.start(backend)
    assert "ONECONTAINER_BACKEND_BASE_IMAGE" in caught.value.__notes__[0]

    recipe.write_text(recipe.read_text().replace(" && exit 9", ""))
    assert scene.start(backend) == "created"
    image = scene.there.container("tiny").image
    assert image is not None
    try:
        assert any(line.startswith("Step 3/3 : RUN echo") for line in scene.said)
        scene.said.clear()
        scene.containers.remove(backend, data=True)
        assert scene.start(backend) == "created"
        assert scene.said == []
    finally:
        scene.there.clear()
        scene.there.client.images.remove(image.tags[0])


def test_without_docker_it_says_what_to_do(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = scene.backend(tiny_entry())
    # By TCP: docker's SDK leaves a UNIX socket open that it could not connect.
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{free_port()}")
    with pytest.raises(StateInvalid, match="docker does not answer") as caught:
        scene.start(backend)
    assert "group `docker`" in caught.value.__notes__[0]


def test_a_network_that_was_made_twice_is_no_trouble(scene: Scene) -> None:
    """Docker takes two networks of one name, from two starts at the same moment."""
    backend = scene.backend(tiny_entry())
    for _ in range(2):
        scene.there.client.networks.create(
            f"onecontainer-backend-{scene.installation}", labels={INSTALLATION_LABEL: scene.installation}
        )
    assert scene.start(backend) == "created"
    assert scene.containers.remove(backend, data=True) == (True, [])
    assert scene.there.left() == []

"""What the kit is run on: the drivers that come along, fresh scaffolds and those of the tests, each as its service would be set up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from onecontainer.cli.driver_new import SCOPES, new_driver
from onecontainer.driver.conformance import Folder, Kit, Result, ServiceSpec, Starter
from onecontainer.driver.conformance.examples import examples_of
from tests.conformance.containers import Container, relayed
from tests.drivers import build
from tests.fixtures.cassandra import private_cassandra
from tests.fixtures.open_inference.place import MLServer
from tests.fixtures.postgresql import private_postgresql
from tests.fixtures.processes import running
from tests.fixtures.torch_image import torch_image

ROOT = Path(__file__).parents[2]
NOWHERE = "127.0.0.1:1"

Reach = Callable[[str], AbstractContextManager[str]]
"""Given a backend's `HOST:PORT` on loopback, the address at which a driver reaches it."""
Service = Callable[[Reach], AbstractContextManager[ServiceSpec]]
"""Brings the backend up, and tells the service that it is for."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """How a driver's folder is brought up, and how its driver reaches backends of the tests."""

    starter: Callable[[Path], Starter]
    reach: Reach


RUNTIMES: Mapping[str, Runtime] = {"process": Runtime(Folder, nullcontext), "docker": Runtime(Container, relayed)}


def given(spec: ServiceSpec) -> Service:
    """A service without a backend of its own."""
    return lambda _reach: nullcontext(spec)


NOTHING = given(ServiceSpec())


@dataclass(frozen=True, slots=True)
class Subject:
    """A driver and its service. `runtimes`: those in which it can be; `quick`: those in which `make test` has it too."""

    name: str
    folder: Callable[[Path], Path]
    """Given a folder to build in."""
    service: Service = NOTHING
    quick: frozenset[str] = frozenset({"process"})
    runtimes: Mapping[str, Runtime] = field(default_factory=lambda: RUNTIMES)

    @contextmanager
    def kit(self, runtime: str, scratch: Path, tell: Callable[[Result], None]) -> Iterator[Kit]:
        """The kit for it, while its backend is up."""
        folder = self.folder(scratch)
        with self.service(self.runtimes[runtime].reach) as spec:
            starter = self.runtimes[runtime].starter(folder)
            yield Kit(starter, spec, examples_of(folder), tell=tell)


def bundled(name: str) -> Callable[[Path], Path]:
    return lambda _scratch: ROOT / "drivers" / name


def built(name: str) -> Callable[[Path], Path]:
    return lambda scratch: build.build_driver(name, scratch)


def scaffold(scope: str) -> Callable[[Path], Path]:
    def make(scratch: Path) -> Path:
        folder = scratch / f"fresh-{scope}"
        new_driver(folder.name, scope, folder)
        return folder

    return make


@contextmanager
def _postgresql(reach: Reach) -> Iterator[ServiceSpec]:
    with private_postgresql() as place:
        user, _, rest = place.partition("@")
        address, _, database = rest.partition("/")
        with reach(address) as reached:
            url = f"postgresql://{user}@{reached}/{database}"
            yield ServiceSpec(options={"url": url}, broken_options={"url": GONE})


@contextmanager
def _cassandra(reach: Reach) -> Iterator[ServiceSpec]:
    with private_cassandra() as node, reach(node.address) as reached:
        yield ServiceSpec(
            app_version="5.0",
            endpoints={"node1": reached},
            options={"keyspace": "conformance"},
            broken_endpoints={"node1": NOWHERE},
        )


@contextmanager
def _inference_server(reach: Reach) -> Iterator[ServiceSpec]:
    with TemporaryDirectory() as folder:
        server = MLServer(Path(folder))
        with running(server), reach(server.address) as reached:
            yield ServiceSpec(
                endpoints={"one": reached},
                options={"default_model": "double"},
                broken_endpoints={"one": NOWHERE},
            )


GONE = f"postgresql://nobody@{NOWHERE}/none"
BOTH, NEITHER = frozenset({"process", "docker"}), frozenset[str]()

SUBJECTS = (
    Subject(
        "sql-sqlite",
        bundled("sql"),
        given(ServiceSpec(broken_options={"url": GONE, "connect_timeout": "2s"})),
        quick=BOTH,
    ),
    Subject("sql-postgresql", bundled("sql"), _postgresql, quick=NEITHER),
    Subject("cassandra", bundled("cassandra"), _cassandra, quick=NEITHER),
    Subject("onnx", bundled("onnx"), given(ServiceSpec(options={"default_model": "none"}))),
    # Debian's PyTorch is for Debian's Python: in an image there is one.
    Subject(
        "torchhub",
        bundled("torchhub"),
        given(ServiceSpec(options={"allow_repo_artifacts": True, "threads": 1})),
        quick=NEITHER,
        runtimes={"docker": Runtime(partial(Container, image=torch_image), relayed)},
    ),
    Subject("oip", bundled("oip"), _inference_server, quick=NEITHER),
    Subject("ffmpeg", bundled("ffmpeg"), given(ServiceSpec(broken_options={"ffmpeg_path": "/bin/false"}))),
    *(Subject(f"scaffold-{scope}", scaffold(scope)) for scope in SCOPES),
    # As the reference of the faults it is tested in any case.
    Subject("echo", built("echo"), given(ServiceSpec(broken_options={"broken": True})), quick=NEITHER),
    Subject("stuck", built("stuck"), quick=NEITHER),
)

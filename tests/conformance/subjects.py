"""What the kit is run on: the drivers that come along and those of the tests, each as its service would be set up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onecontainer.driver.conformance import Examples, Folder, Kit, Result, ServiceSpec, Starter, read_examples
from tests.drivers import build
from tests.fixtures.postgresql import private_postgresql

ROOT = Path(__file__).parents[2]
NOWHERE = "127.0.0.1:1"

RUNTIMES: Mapping[str, Callable[[Path], Starter]] = {"process": Folder}
"""How a driver's folder is brought up. One more entry runs all subjects on one more runtime."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A driver and its service. `backend` brings it up and gives its URL."""

    name: str
    folder: Callable[[Path], Path]
    """Given a folder to build in."""
    spec: ServiceSpec = field(default_factory=ServiceSpec)
    examples: Path | None = None
    backend: Callable[[], Any] | None = None
    slow: bool = False
    """Not in `make test`."""

    @contextmanager
    def kit(self, runtime: str, scratch: Path, tell: Callable[[Result], None]) -> Iterator[Kit]:
        """The kit for it, while its backend is up."""
        folder = self.folder(scratch)
        examples = Examples() if self.examples is None else read_examples(self.examples)
        starter = RUNTIMES[runtime](folder)
        if self.backend is None:
            yield Kit(starter, self.spec, examples, tell=tell)
            return
        with self.backend() as url:
            yield Kit(starter, ServiceSpec(options={"url": url}, **_broken(self.spec)), examples, tell=tell)


def _broken(spec: ServiceSpec) -> dict[str, Any]:
    return {"broken_options": spec.broken_options, "broken_endpoints": spec.broken_endpoints}


def bundled(name: str) -> Callable[[Path], Path]:
    return lambda _scratch: ROOT / "drivers" / name


def built(name: str) -> Callable[[Path], Path]:
    return lambda scratch: build.build_driver(name, scratch)


@contextmanager
def _postgresql() -> Iterator[str]:
    with private_postgresql() as place:
        yield f"postgresql://{place}"


GONE = f"postgresql://nobody@{NOWHERE}/none"

SUBJECTS = (
    Subject("sql-sqlite", bundled("sql"), ServiceSpec(broken_options={"url": GONE, "connect_timeout": "2s"})),
    Subject(
        "sql-postgresql", bundled("sql"), ServiceSpec(broken_options={"url": GONE}), backend=_postgresql, slow=True
    ),
    Subject("onnx", bundled("onnx"), ServiceSpec(options={"default_model": "none"})),
    Subject("ffmpeg", bundled("ffmpeg"), ServiceSpec(broken_options={"ffmpeg_path": "/bin/false"})),
    Subject(
        "echo",
        built("echo"),
        ServiceSpec(broken_options={"broken": True}),
        build.HERE / "echo" / "examples.json",
        slow=True,  # as the reference of the faults it is tested in any case
    ),
    Subject("stuck", built("stuck"), examples=build.HERE / "stuck" / "examples.json", slow=True),
)

"""The well-behaved driver that faults are put upon, and how the kit gets at it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from onecontainer.driver.conformance import Examples, Kit, Place, Report, ServiceSpec, read_examples
from onecontainer.driver.driver import Driver
from onecontainer.driver.serve import serving
from onecontainer.driver.settings import SidecarSettings
from onecontainer.rpc.manifest import Manifest
from onecontainer.rpc.options import Option
from tests.contract.conformance.proxy import Faults, Proxy

HERE = Path(__file__).parent
ECHO = "onecontainer.test.echo.v1.EchoService"
TOKEN = "the-token"
LIMIT = 128 * 1024
TIMEOUT = 8.0
MODE = Option(
    name="mode", type="string", description="How it echoes.", default="plain", allowed_values=["plain", "loud"]
)


EXAMPLES = read_examples(HERE.parents[1] / "drivers" / "echo" / "examples.json")
BROKEN = ServiceSpec(broken_options={"broken": True})


@dataclass
class InProcess:
    """A `Starter`: the sidecar in this process, behind a proxy on each side."""

    make: Callable[[], Driver]
    manifest: Manifest
    faults: Faults
    inner: Faults
    """Between its worker and the kit."""
    descriptors: bytes

    @asynccontextmanager
    async def start(self) -> AsyncIterator[Place]:
        folder = Path(tempfile.mkdtemp(prefix="oc-"))
        try:
            (folder / "token").write_text(TOKEN)
            settings = SidecarSettings(
                listen=f"unix:{folder}/s",
                token_file=folder / "token",
                state_dir=folder / "state",
                scratch_dir=folder / "scratch",
                max_message_bytes=LIMIT,
                stop_timeout=0.0,
            )
            (folder / "scratch").mkdir()
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(serving(self.make(), self.manifest, settings))
                await stack.enter_async_context(Proxy(f"unix:{folder}/p", settings.listen, self.faults))
                await stack.enter_async_context(Proxy(f"unix:{folder}/i", f"unix:{folder}/d", self.inner))
                yield Place(
                    f"unix:{folder}/p",
                    TOKEN,
                    desk=f"unix:{folder}/d",
                    desk_target=f"unix:{folder}/i",
                    descriptors=self.descriptors,
                )
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def examined(
    starter: InProcess, spec: ServiceSpec = BROKEN, examples: Examples = EXAMPLES, *, timeout: float = TIMEOUT
) -> Report:
    """The kit's report on it."""
    return await Kit(starter, spec, examples, timeout=timeout).run()

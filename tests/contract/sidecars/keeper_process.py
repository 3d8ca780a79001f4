"""A stand-in for a gateway: keeps the bundled sql driver running until it is killed. Prints the sidecar's process id."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from onecontainer.catalog.drivers import bundled_folder
from onecontainer.clock import SystemClock
from onecontainer.rpc.manifest import load_manifest, manifest_to_proto
from onecontainer.sidecars.folders import Folders
from onecontainer.sidecars.model import RuntimeSpec, ServiceState, Target
from onecontainer.sidecars.policy import Policy
from onecontainer.sidecars.runtimes.process import ProcessRuntime
from onecontainer.sidecars.secrets import SecretStore
from onecontainer.sidecars.supervisor import Supervisor


async def main(root: Path) -> None:
    supervisor = Supervisor(
        [ProcessRuntime()],
        folders=Folders(root / "data", root / "r"),
        secrets=SecretStore(root / "secrets"),
        clock=SystemClock(),
        policy=Policy(),
        job_source=lambda _target: None,
    )
    folder = bundled_folder() / "sql"
    target = Target(
        uid="u1",
        service="services/sql",
        app="sql",
        app_version="",
        endpoints={},
        options={},
        secrets=(),
        driver="drivers/sql",
        manifest=manifest_to_proto(load_manifest(folder)),
        folder=folder,
        runtime=RuntimeSpec(),
        slots=1,
        drain_timeout=1,
        generation=1,
    )
    changed = asyncio.Event()
    supervisor.subscribe(lambda _uid: changed.set())
    async with supervisor:
        await supervisor.apply(target)
        while supervisor.state("u1")[0] is not ServiceState.READY:
            await changed.wait()
            changed.clear()
        print(supervisor.sidecars("u1")[0].runtime_id, flush=True)
        await asyncio.Event().wait()


asyncio.run(main(Path(sys.argv[1])))

"""A sidecar of the process runtime does not outlive its gateway, however that ends."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("keeper_process.py")


async def test_a_driver_of_the_sdk_dies_with_its_gateway(tmp_path: Path) -> None:
    gateway = await asyncio.create_subprocess_exec(
        sys.executable, str(SCRIPT), str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(180):
            pid = int(await gateway.stdout.readline())
        watch = os.pidfd_open(pid)
        try:
            gone = asyncio.Event()
            asyncio.get_running_loop().add_reader(watch, gone.set)
            gateway.kill()
            async with asyncio.timeout(60):
                await gone.wait()
            asyncio.get_running_loop().remove_reader(watch)
        finally:
            os.close(watch)
    finally:
        if gateway.returncode is None:
            gateway.kill()
        await gateway.wait()
        gateway._transport.close()

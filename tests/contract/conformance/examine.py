"""Runs the kit on many broken drivers: several at a time, for most of a run is waiting, and on all processors."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from onecontainer.driver.conformance import Report
from onecontainer.driver.entry_point import load_driver_class
from onecontainer.rpc.manifest import load_manifest
from tests.contract.conformance.faults import FAULTS
from tests.contract.conformance.proxy import Faults
from tests.contract.conformance.reference import MODE, TIMEOUT, InProcess, examined

AT_ONCE = 8
PATIENCE = 30.0
"""Seconds that a call gets when a driver is looked at again, or is looked at once only."""
GOOD = "a driver that behaves"


def all_reports(folder: Path) -> Mapping[str, Report]:
    """The reports on the driver of a folder as it is, and with each fault."""
    names = [GOOD, *FAULTS]
    processes = min(4, os.cpu_count() or 1)
    shares = [names[start::processes] for start in range(processes)]
    # Spawned: a fork would take gRPC's threads with it half-way.
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.map(_reports, [folder] * processes, shares)
        reports = {name: report for share in found for name, report in share.items()}
    # The kit tells "at once" from "too late": what it found while all processors were busy is looked at again, by itself.
    for _ in range(2):
        for name in [name for name, report in reports.items() if not is_as_meant(name, report)]:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                reports |= pool.submit(_reports, folder, [name], PATIENCE).result()
    return reports


def is_as_meant(name: str, report: Report) -> bool:
    """Whether the driver that behaves passes, or a broken one fails the check that is meant for it, and no other."""
    return [result.id for result in report.failures] == ([FAULTS[name]().check] if name in FAULTS else [])


def _reports(folder: Path, names: Sequence[str], timeout: float = TIMEOUT) -> dict[str, Report]:
    logging.disable(logging.CRITICAL)  # what broken drivers write is not what is tested
    manifest = load_manifest(folder)
    manifest = manifest.model_copy(update={"options": [*manifest.options, MODE]})
    made = load_driver_class(folder, manifest)
    descriptors = (folder / manifest.descriptor_set).read_bytes()

    async def one(name: str, places: asyncio.Semaphore) -> Report:
        async with places:
            fault = FAULTS[name]() if name in FAULTS else None
            outside = fault if fault is not None and not fault.inner else Faults()
            inside = fault if fault is not None and fault.inner else Faults()
            return await examined(InProcess(made, manifest, outside, inside, descriptors), timeout=timeout)

    async def examine() -> dict[str, Report]:
        places = asyncio.Semaphore(AT_ONCE)
        return dict(zip(names, await asyncio.gather(*(one(name, places) for name in names)), strict=True))

    return asyncio.run(examine())

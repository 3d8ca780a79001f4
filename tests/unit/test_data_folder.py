"""The lock of a data folder: one gateway has it, whoever looks only."""

from __future__ import annotations

import fcntl
import threading
from pathlib import Path

import pytest

from onecontainer.errors import StateInvalid
from onecontainer.gateway.lock import LOCK_FILE, DataFolder, read_note


def test_a_start_goes_on_when_somebody_just_looks_whether_a_gateway_runs(tmp_path: Path) -> None:
    """`oca up --detach` does so again and again, while the gateway that it waits for takes the lock."""
    with DataFolder(tmp_path):
        pass
    with (tmp_path / LOCK_FILE).open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)  # as in `read_note`, which has it for a moment
        end = threading.Timer(0.2, fcntl.flock, (looking, fcntl.LOCK_UN))
        end.start()
        try:
            with DataFolder(tmp_path), pytest.raises(StateInvalid, match="uses the data folder"):
                DataFolder(tmp_path).__enter__()
        finally:
            end.join()
    assert read_note(tmp_path) is None

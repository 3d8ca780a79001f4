"""A sidecar that was started by a gateway does not outlive it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


class ParentGone(Exception):
    """The process that this sidecar belongs to has ended already."""


def bind_to_parent(parent_pid: int) -> None:
    """Makes the kernel kill this process when its parent dies, however that dies (Linux; elsewhere only the check).

    Raises:
        ParentGone: it had died before the kernel was asked, and somebody else has adopted this process.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    if os.getppid() != parent_pid:
        raise ParentGone(f"process {parent_pid}, which started this sidecar, has ended")

"""Started as `python -I -S child.py PARENT_PID MEMORY FILE_SIZE CPU_SECONDS PROGRAM [ARGUMENT …]`: bounds itself, then becomes PROGRAM.

A program of its own instead of a `preexec_fn`, because code between fork and exec in a process that runs gRPC's threads may hang. It
imports nothing but the standard library, and little of that.
"""

import ctypes
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38


def main() -> None:
    parent, memory, file_size, cpu_seconds, program, *arguments = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    # Killed with the sidecar, however that ends. The parent may already have died before the call: then nobody would kill us.
    if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0 or os.getppid() != int(parent):
        os._exit(127)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if int(memory):
        resource.setrlimit(resource.RLIMIT_DATA, (int(memory), int(memory)))
    if int(file_size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(file_size), int(file_size)))
        # Without the signal a write over the bound fails with EFBIG, and ffmpeg says so.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if int(cpu_seconds):
        # The first bound asks (ffmpeg takes it as SIGTERM), the second kills what does not listen.
        resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_seconds), int(cpu_seconds) + 2))
    os.execv(program, [program, *arguments])  # noqa: S606 - no shell is what we want


if __name__ == "__main__":
    main()

"""Started as `python -I -S warden.py PARENT_PID GRACE FD PROGRAM [ARGUMENT …]`: runs PROGRAM, and sees that nothing is left of it.

PROGRAM leads a process group of its own and inherits FD. SIGTERM to the warden, or the death of its parent, sends SIGTERM to that group
and SIGKILL after GRACE seconds. Once PROGRAM has ended, by itself or so, everything that it started goes, also what left the group.
Then the warden ends the way PROGRAM did: whoever waits for the warden waits for all of it.

A program of its own, of one thread, that imports only a little of the standard library: it works whatever the driver's process does,
it survives the SIGKILL that the sidecar may get, and it is there in milliseconds.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys
import time
from typing import NoReturn

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
WATCHED = (signal.SIGCHLD, signal.SIGTERM)
OOM_SCORE = "500"
"""Makes the kernel take the child, and not the sidecar beside it, when memory is short."""


def main() -> None:
    parent, grace, handle, *command = sys.argv[1:]
    # Blocked and waited for, signals cannot come between a check and what follows from it.
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    libc = ctypes.CDLL(None)
    # What loses its parent becomes ours, not init's.
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != int(parent):
        os._exit(3)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    me = os.getpid()
    child = os.fork()
    if child == 0:
        become(command, libc, me)
    with contextlib.suppress(OSError):
        os.setpgid(child, child)  # by both, so that it is done whoever runs first
    os.close(int(handle))  # or its other end would not see that the child has closed it
    watch(child, float(grace))
    # Unreaped, the child keeps its number, and so its group's: it is no other process that this signal meets.
    signal_group(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    end_descendants()
    end_like(status)


def become(command: list[str], libc: ctypes.CDLL, warden: int) -> NoReturn:
    """The child's side of the fork."""
    try:
        os.setpgid(0, 0)
        libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() == warden:
            with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:  # noqa: PTH123 - no pathlib here
                score.write(OOM_SCORE)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.execv(command[0], command)  # noqa: S606 - no shell is what we want
    except OSError as error:
        sys.stderr.write(f"{command[0]} cannot be started: {error}\n")
        sys.stderr.flush()
    os._exit(127)


def watch(child: int, grace: float) -> None:
    """Returns when the child has ended; it is not reaped yet."""
    deadline: float | None = None
    while not has_ended(child):
        if deadline is None:
            if signal.sigwaitinfo(WATCHED).si_signo == signal.SIGTERM:
                signal_group(child, signal.SIGTERM)
                deadline = time.monotonic() + grace
        elif signal.sigtimedwait(WATCHED, max(0.0, deadline - time.monotonic())) is None:
            signal_group(child, signal.SIGKILL)
            os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
            return


def has_ended(child: int) -> bool:
    """Whether it has; orphans that have ended meanwhile are reaped."""
    while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
        if ended.si_pid == child:
            return True
        os.waitpid(ended.si_pid, 0)
    return False


def signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def end_descendants() -> None:
    """Kills what is left: each that ends hands us its own children, until there are none."""
    while True:
        for pid in children():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def children() -> list[int]:
    """Our children. Until we wait for them their numbers are theirs."""
    me, found = os.getpid(), []
    for name in os.listdir("/proc"):  # noqa: PTH208 - no pathlib here
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as stat:  # noqa: PTH123
                if int(stat.read().rpartition(b")")[2].split()[1]) == me:
                    found.append(int(name))
    return found


def end_like(status: int) -> NoReturn:
    """Ends with the exit code, or by the signal, that a process ended with."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


if __name__ == "__main__":
    main()

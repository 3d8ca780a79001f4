"""What it means when an ffmpeg process fails, or complains."""

from __future__ import annotations

import re
import signal

from onecontainer.driver import errors

# ffmpeg exits with the low byte of its (negative) error number.
_REFUSED = frozenset({256 - 22, 8})  # EINVAL, and AVERROR(*_NOT_FOUND): a value that it does not take
# Before version 6 it exits with 1, whatever the error is.
_REFUSED_WORDS = ("Invalid argument", "Option not found")
_TOO_LARGE, _NO_MEMORY = "File too large", "Cannot allocate memory"
_OUT_OF_TIME = "received signal 24"  # SIGXCPU, which ffmpeg ends upon
_LEVEL = re.compile(r"\[(fatal|error)\]")


def too_large(at: str) -> errors.LimitExceeded:
    return errors.LimitExceeded(
        f"{at} grew over the bound on size (options max_output_bytes and max_scratch_bytes, limits.max_output_bytes)"
    )


def complaints(lines: list[str]) -> str:
    """What a process that ended well still had to say about errors, as in a source that breaks off. Empty: nothing."""
    return " | ".join([line for line in lines if _LEVEL.search(line)][-3:])


def process_failure(return_code: int, lines: list[str], at: str) -> errors.OneContainerError:
    """The error for an output whose process ended with `return_code` after these last lines."""
    text = "\n".join(lines)
    if _TOO_LARGE in text or return_code == 256 - 27:
        return too_large(at)
    if _NO_MEMORY in text or return_code == 256 - 12:
        return errors.LimitExceeded(
            f"{at} needs more memory than the bound (option max_memory_bytes, limits.max_memory_bytes)"
        )
    if _OUT_OF_TIME in text or return_code == -signal.SIGXCPU:
        return errors.LimitExceeded(f"{at} needs more processor time than the bound (option max_cpu_time)")
    told = [line for line in lines if _LEVEL.search(line)] or lines
    # The first ones tell the cause, the last ones what came of it.
    told = told if len(told) <= 5 else [*told[:3], *told[-2:]]
    refused = return_code in _REFUSED or (return_code == 1 and any(word in text for word in _REFUSED_WORDS))
    how = f"was killed by signal {-return_code}" if return_code < 0 else f"ended with code {return_code}"
    if return_code == -signal.SIGKILL:
        how += " (by its bound on processor time, option max_cpu_time, or by a machine without memory)"
    return errors.BackendExecutionFailed(
        f"{at}: ffmpeg {how}: {' | '.join(told) or 'it said nothing'}",
        code=errors.Code.INVALID_ARGUMENT if refused else errors.Code.INTERNAL,
        metadata={"return_code": str(return_code)},
        hop="backend",
    )

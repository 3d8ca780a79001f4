"""What it means when an ffmpeg process fails, or complains, and what a pipeline says when outputs of it did."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Sequence

from onecontainer.api.media.v1 import pipeline_pb2 as pb
from onecontainer.driver import errors

# ffmpeg exits with the low byte of its (negative) error number.
_REFUSED = frozenset({256 - 22, 8})  # EINVAL, and AVERROR(*_NOT_FOUND): a value that it does not take
# Before version 6 it exits with 1, whatever the error is. An encoder that is a library of its own has its own error (AVERROR_EXTERNAL).
_REFUSED_WORDS = ("Invalid argument", "Option not found", "Error while opening encoder")
_UNSPECIFIC = frozenset({1, 0xBB})
_TOO_LARGE = "File too large"
_NO_MEMORY = re.compile(
    r"Cannot allocate memory|malloc of size \d+ failed|(pthread_create|opening \w+coder).*Resource temporarily unavailable"
)
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
    if _NO_MEMORY.search(text) or return_code == 256 - 12:
        return errors.LimitExceeded(
            f"{at} needs more memory, or with its threads more stacks, than the bound (option max_memory_bytes, "
            "limits.max_memory_bytes, limits.threads)"
        )
    if _OUT_OF_TIME in text or return_code == -signal.SIGXCPU:
        return errors.LimitExceeded(f"{at} needs more processor time than the bound (option max_cpu_time)")
    told = [line for line in lines if _LEVEL.search(line)] or lines
    # The first ones tell the cause, the last ones what came of it.
    told = told if len(told) <= 5 else [*told[:3], *told[-2:]]
    refused = return_code in _REFUSED or (return_code in _UNSPECIFIC and any(word in text for word in _REFUSED_WORDS))
    how = f"was killed by signal {-return_code}" if return_code < 0 else f"ended with code {return_code}"
    if return_code == -signal.SIGKILL:
        how += " (by its bound on processor time, option max_cpu_time, or by a machine without memory)"
    if return_code == -signal.SIGSEGV:
        how += " (as encoders do that get no more memory: option max_memory_bytes, limits.max_memory_bytes)"
    return errors.BackendExecutionFailed(
        f"{at}: ffmpeg {how}: {' | '.join(told) or 'it said nothing'}",
        code=errors.Code.INVALID_ARGUMENT if refused else errors.Code.INTERNAL,
        metadata={"return_code": str(return_code)},
        hop="backend",
    )


def pipeline_failure(
    failed: Sequence[errors.OneContainerError], result: pb.RunPipelineResult, *, all_or_nothing: bool
) -> errors.OneContainerError:
    """The error of a pipeline some of whose outputs failed: their own if it is one for all of them.

    `result` is in the details as far as it fits. The artifacts of the outputs that SUCCEEDED are kept; with `all_or_nothing` none is,
    and those outputs are CANCELLED in the details.
    """
    told = pb.RunPipelineResult()
    told.CopyFrom(result)
    if all_or_nothing:
        for output in told.outputs:
            if output.state == pb.OUTPUT_STATE_SUCCEEDED:
                output.state = pb.OUTPUT_STATE_CANCELLED
                output.ClearField("files")
    kept = [
        file.artifact
        for output in told.outputs
        if output.state == pb.OUTPUT_STATE_SUCCEEDED
        for file in output.files
        if file.artifact
    ]
    error = failed[0]
    if len(failed) > 1:
        message = (
            f"{len(failed)} of {len(told.outputs)} outputs failed: " + "; ".join(str(one) for one in failed)[:4000]
        )
        if len({(one.code, one.reason) for one in failed}) == 1:
            error.message = message
            error.violations = tuple(violation for one in failed for violation in one.violations)
        else:
            codes = {one.code for one in failed}
            code = codes.pop() if len(codes) == 1 else errors.Code.INTERNAL
            error = errors.BackendExecutionFailed(message, code=code, hop="backend")
    return error.with_details(fitting(told, errors.MAX_DETAILS_BYTES), kept_artifacts=kept)


def fitting(result: pb.RunPipelineResult, most: int) -> pb.RunPipelineResult:
    """The result in at most so many bytes: log lines are left out first, then what the files tell too, then all files of an output but
    the first."""

    def leave_out(name: str, only: Callable[[pb.OutputResult], bool] = lambda _output: True) -> None:
        for output in small.outputs:
            if only(output):
                output.ClearField(name)  # type: ignore[arg-type]

    def shorten_lists() -> None:
        for output in small.outputs:
            del output.files[1:]
            for upload in output.uploads:
                del upload.urls[1:]
        del small.warnings[10:]
        small.warnings.add(
            message="files and warnings are left out here, for there are too many: see the job's artifacts"
        )

    small = pb.RunPipelineResult()
    small.CopyFrom(result)
    steps: list[Callable[[], None]] = [
        lambda: leave_out("last_lines", lambda output: output.state == pb.OUTPUT_STATE_SUCCEEDED),
        lambda: leave_out("last_lines"),
        lambda: leave_out("media_info"),
        lambda: leave_out("command"),
        lambda: leave_out("streams"),
        shorten_lists,
    ]
    for step in steps:
        if small.ByteSize() <= most:
            break
        step()
    return small

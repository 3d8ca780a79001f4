"""What a pipeline says when outputs of it failed."""

from __future__ import annotations

import pytest
from onecontainer_driver_ffmpeg.failures import fitting, pipeline_failure

from onecontainer.api.media.v1 import pipeline_pb2 as pb
from onecontainer.driver import errors


def result(files: int = 1, lines: int = 20) -> pb.RunPipelineResult:
    """Two outputs that were made, and one that was not."""
    made = [
        pb.OutputResult(
            key=key,
            state=pb.OUTPUT_STATE_SUCCEEDED,
            command=["ffmpeg"] * 200,
            last_lines=["x" * 400] * lines,
            files=[
                pb.OutputFile(name=f"{number:05}.ts", artifact=f"artifacts/{key}{number}") for number in range(files)
            ],
        )
        for key in ("a", "b")
    ]
    lost = pb.OutputResult(key="c", state=pb.OUTPUT_STATE_FAILED, last_lines=["y" * 400] * lines)
    return pb.RunPipelineResult(outputs=[*made, lost])


def test_one_failure_is_the_pipelines_own_with_all_that_is_known() -> None:
    cause = errors.LimitExceeded("too large")
    error = pipeline_failure([cause], result(files=2), all_or_nothing=False)
    assert error is cause
    assert error.detail(pb.RunPipelineResult) == result(files=2)
    assert error.kept_artifacts == ("artifacts/a0", "artifacts/a1", "artifacts/b0", "artifacts/b1")


def test_all_or_nothing_keeps_nothing_and_promises_nothing() -> None:
    error = pipeline_failure([errors.LimitExceeded("too large")], result(), all_or_nothing=True)
    told = error.detail(pb.RunPipelineResult)
    assert told is not None
    assert [output.state for output in told.outputs[:2]] == [pb.OUTPUT_STATE_CANCELLED] * 2
    assert (error.kept_artifacts, [len(output.files) for output in told.outputs]) == ((), [0, 0, 0])


def test_several_failures_are_one_error_with_the_code_they_share() -> None:
    same = [errors.ResourceNotFound("a"), errors.ResourceNotFound("b")]
    assert pipeline_failure(same, result(), all_or_nothing=False).code is errors.Code.NOT_FOUND
    mixed = [errors.ResourceNotFound("a"), errors.LimitExceeded("b")]
    error = pipeline_failure(mixed, result(), all_or_nothing=False)
    assert (error.code, "a; b" in error.message) == (errors.Code.INTERNAL, True)


@pytest.mark.parametrize(
    ("most", "lines_of_good", "lines_of_bad", "commands"),
    [(60_000, 20, 20, 200), (14_000, 0, 20, 200), (6_000, 0, 0, 200), (1_000, 0, 0, 0)],
)
def test_what_is_too_much_is_left_out_log_lines_first(
    most: int, lines_of_good: int, lines_of_bad: int, commands: int
) -> None:
    small = fitting(result(files=3), most)
    assert small.ByteSize() <= most
    good, _, bad = small.outputs
    assert (len(good.last_lines), len(bad.last_lines), len(good.command)) == (lines_of_good, lines_of_bad, commands)
    assert [output.state for output in small.outputs] == [output.state for output in result().outputs]
    assert (len(good.files), len(small.warnings)) == (3, 0)


def test_of_too_many_files_the_first_stays_and_the_rest_is_said() -> None:
    small = fitting(result(files=500), 1_000)
    assert small.ByteSize() <= 1_000
    assert [len(output.files) for output in small.outputs] == [1, 1, 0]
    assert "left out" in small.warnings[0].message

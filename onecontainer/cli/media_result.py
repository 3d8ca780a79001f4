"""How `oca media` shows what became of a pipeline: each output, its files and uploads, and what went wrong."""

from __future__ import annotations

from onecontainer.api.media.v1 import pipeline_pb2
from onecontainer.cli.bars import duration
from onecontainer.cli.render import enum_name, size
from onecontainer.cli.session import Session
from onecontainer.client.names import short_name


def show_result(session: Session, result: pipeline_pb2.RunPipelineResult) -> None:
    if session.screen.is_json:
        session.screen.message(result)
        return
    session.screen.rows([row for output in result.outputs for row in rows_of(output)])
    for output in result.outputs:
        if output.HasField("error"):
            session.screen.say(f"{output.key}: {output.error.message}")
        for upload in output.uploads:
            first = f" to {upload.urls[0]}" if upload.urls else ""
            more = f" and {len(upload.urls) - 1} more" if len(upload.urls) > 1 else ""
            session.screen.say(f"{output.key}: upload {enum_name(pipeline_pb2.UploadState, upload.state)}{first}{more}")
    for warning in result.warnings:
        session.screen.say(f"warning: {warning.field}: {warning.message}".replace(": :", ":"))


def rows_of(output: pipeline_pb2.OutputResult) -> list[dict[str, object]]:
    """A row for each file of an output, and one for an output without any."""
    return [
        {
            "output": output.key,
            "state": enum_name(pipeline_pb2.OutputState, output.state),
            "file": file.name,
            "size": size(file.size_bytes) if file.name else "",
            "duration": duration(output.media_duration) if output.HasField("media_duration") else "",
            "artifact": short_name(file.artifact) if file.artifact else "",
        }
        for file in output.files or [pipeline_pb2.OutputFile()]
    ]

"""The scenario in Python, with the stubs alone: python scenario.py ADDRESS PICTURE CLIP. Says what came of it as JSON.

It is the same in each language: registers two services, uploads and downloads a clip, classifies a picture, transcodes the clip and
watches that job to its end, gets an error and cancels a job.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
from google.rpc import error_details_pb2, status_pb2

from onecontainer.api.ai.v1 import inference_pb2, inference_service_pb2
from onecontainer.api.ai.v1.inference_service_pb2_grpc import InferenceServiceStub
from onecontainer.api.artifact.v1 import artifact_pb2
from onecontainer.api.artifact.v1.artifact_pb2_grpc import ArtifactServiceStub
from onecontainer.api.error.v1 import reason_pb2
from onecontainer.api.job.v1 import job_pb2, job_service_pb2
from onecontainer.api.job.v1.job_service_pb2_grpc import JobServiceStub
from onecontainer.api.management.v1 import management_service_pb2, resources_pb2
from onecontainer.api.management.v1.management_service_pb2_grpc import ManagementServiceStub
from onecontainer.api.media.v1 import input_pb2, media_pb2, output_pb2, pipeline_pb2
from onecontainer.api.media.v1.media_pb2_grpc import MediaServiceStub

CHUNK_BYTES = 64 * 1024
CLASSIFIER = "services/python-classifier"
FILMS = "services/python-films"
PATIENCE = 180.0
"""Seconds that a call may take, at most."""


# region register
def register(channel: grpc.Channel, name: str, app: str) -> None:
    """Creates a service and waits until it is READY."""
    management = ManagementServiceStub(channel)
    service = resources_pb2.Service(app=app)
    request = management_service_pb2.CreateServiceRequest(service=service, service_id=name.removeprefix("services/"))
    management.CreateService(request, timeout=PATIENCE)
    events = management.WatchServices(management_service_pb2.WatchServicesRequest(), timeout=PATIENCE)
    for event in events:
        if event.service.name == name and event.service.state == resources_pb2.SERVICE_STATE_READY:
            events.cancel()
            return
        if event.service.name == name and event.service.state == resources_pb2.SERVICE_STATE_FAILED:
            raise RuntimeError(f"{name} has FAILED: {event.service.error.message}")
    raise RuntimeError(f"the stream ended before {name} was READY")
    # endregion


# region upload
def upload(channel: grpc.Channel, path: Path) -> artifact_pb2.Artifact:
    """Stores a file, piece by piece; the gateway refuses it if the digest is another."""
    content = path.read_bytes()
    digest = hashlib.sha256(content).digest()

    def parts() -> Iterator[artifact_pb2.UploadRequest]:
        header = artifact_pb2.UploadHeader(filename=path.name, size_bytes=len(content), sha256=digest)
        yield artifact_pb2.UploadRequest(header=header)
        for start in range(0, len(content), CHUNK_BYTES):
            yield artifact_pb2.UploadRequest(data=content[start : start + CHUNK_BYTES])

    return ArtifactServiceStub(channel).Upload(parts(), timeout=PATIENCE)
    # endregion


# region download
def download(channel: grpc.Channel, name: str) -> str:
    """Reads an artifact; returns its SHA-256, which is compared with what the gateway says."""
    digest, promised = hashlib.sha256(), b""
    request = artifact_pb2.DownloadRequest(name=name)
    for part in ArtifactServiceStub(channel).Download(request, timeout=PATIENCE):
        promised = part.artifact.sha256 or promised
        digest.update(part.data)
    if digest.digest() != promised:
        raise RuntimeError(f"{name} came with other bytes than it has")
    return digest.hexdigest()
    # endregion


# region predict
def predict(channel: grpc.Channel, service: str, picture: Path) -> str:
    """Classifies a picture; returns the best label."""
    inputs = [inference_pb2.Input(image=picture.read_bytes())]
    request = inference_service_pb2.PredictRequest(service=service, inputs=inputs)
    answer = InferenceServiceStub(channel).Predict(request, timeout=PATIENCE)
    return answer.predictions[0].classification.classes[0].label
    # endregion


def transcode(channel: grpc.Channel, clip: str, *, plays: int = 1) -> job_pb2.Job:
    """Starts a job that makes an MKV of a clip, at the pace of playing."""
    source = input_pb2.MediaSource(artifact=clip)
    request = media_pb2.RunPipelineRequest(
        service=FILMS,
        inputs=[input_pb2.Input(source=source, extra_plays=plays - 1, real_time=True)],
        outputs=[output_pb2.Output(key="main", file=output_pb2.FileOutput(container="mkv"))],
    )
    return MediaServiceStub(channel).RunPipeline(request, timeout=PATIENCE)


# region watch
def watch(channel: grpc.Channel, name: str) -> tuple[job_pb2.Job, int]:
    """Watches a job to its end; returns it, and how many updates told of progress."""
    told = 0
    request = job_service_pb2.WatchJobRequest(name=name)
    for answer in JobServiceStub(channel).WatchJob(request, timeout=PATIENCE):
        job = answer.update.job
        if job.HasField("progress"):
            told += 1
            print(f"{job.progress.done:.1f} {job.progress.unit}", file=sys.stderr)
    # The stream ends with the job.
    return job, told
    # endregion


# region error
def reason_of(error: grpc.RpcError) -> error_details_pb2.ErrorInfo:
    """What went wrong, for programs: the ErrorInfo in the details of the status."""
    metadata = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    if not any(detail.Unpack(info) for detail in status.details):
        raise error
    return info
    # endregion


def call_nobody(channel: grpc.Channel) -> error_details_pb2.ErrorInfo:
    """Calls a service that is not there."""
    request = inference_service_pb2.PredictRequest(service="services/nobody", inputs=[inference_pb2.Input(text="?")])
    try:
        InferenceServiceStub(channel).Predict(request, timeout=PATIENCE)
    except grpc.RpcError as error:
        return reason_of(error)
    raise RuntimeError("a service that is not there has answered")


# region cancel
def cancel(channel: grpc.Channel, name: str) -> job_pb2.Job:
    """Waits until a job runs, and cancels it; returns it as it ended."""
    jobs = JobServiceStub(channel)
    updates = jobs.WatchJob(job_service_pb2.WatchJobRequest(name=name), timeout=PATIENCE)
    for answer in updates:
        if answer.update.job.state == job_pb2.JOB_STATE_RUNNING:
            break
    jobs.CancelJob(job_service_pb2.CancelJobRequest(name=name, mode=job_pb2.CANCEL_MODE_ABORT), timeout=PATIENCE)
    for answer in updates:
        job = answer.update.job
    return job
    # endregion


def main(address: str, picture: Path, clip: Path) -> None:
    with grpc.insecure_channel(address) as channel:
        register(channel, CLASSIFIER, "onnx")
        register(channel, FILMS, "ffmpeg")
        stored = upload(channel, clip)
        watched, told = watch(channel, transcode(channel, stored.name).name)
        result = pipeline_pb2.RunPipelineResult()
        if not watched.result.Unpack(result):
            raise RuntimeError(f"{watched.name} has ended without a result: {watched.error.message}")
        made = result.outputs[0].files[0].artifact
        info = call_nobody(channel)
        if info.reason != reason_pb2.Reason.Name(reason_pb2.REASON_RESOURCE_NOT_FOUND).removeprefix("REASON_"):
            raise RuntimeError(f"another reason than expected: {info.reason}")
        cancelled = cancel(channel, transcode(channel, stored.name, plays=1000).name)
        report = {
            "label": predict(channel, CLASSIFIER, picture),
            "uploaded": stored.name,
            "uploaded_sha256": download(channel, stored.name),
            "job": watched.name,
            "job_state": job_pb2.JobState.Name(watched.state),
            "progress_updates": told,
            "made": made,
            "made_sha256": download(channel, made),
            "reason": info.reason,
            "domain": info.domain,
            "cancelled": cancelled.name,
            "cancelled_state": job_pb2.JobState.Name(cancelled.state),
        }
        for name in (CLASSIFIER, FILMS):
            request = management_service_pb2.DeleteServiceRequest(name=name)
            ManagementServiceStub(channel).DeleteService(request, timeout=PATIENCE)
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))

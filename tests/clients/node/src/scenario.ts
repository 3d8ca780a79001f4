// The scenario in TypeScript: node scenario.js ADDRESS PICTURE CLIP. Says what came of it as JSON.
//
// It is the same in each language: registers two services, uploads and downloads a clip, classifies a picture, transcodes the clip
// and watches that job to its end, gets an error and cancels a job.
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { basename } from "node:path";

import type { MessageInitShape } from "@bufbuild/protobuf";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import { ConnectError, createClient, type Transport } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { type ErrorInfo, ErrorInfoSchema } from "@onecontainer/api/google/rpc/error_details_pb";
import { InferenceService } from "@onecontainer/api/ai/v1/inference_service_pb";
import { type Artifact, ArtifactService, type UploadRequestSchema } from "@onecontainer/api/artifact/v1/artifact_pb";
import { CancelMode, type Job, JobState } from "@onecontainer/api/job/v1/job_pb";
import { JobService } from "@onecontainer/api/job/v1/job_service_pb";
import { ManagementService } from "@onecontainer/api/management/v1/management_service_pb";
import { ServiceState } from "@onecontainer/api/management/v1/resources_pb";
import { MediaService } from "@onecontainer/api/media/v1/media_pb";
import { RunPipelineResultSchema } from "@onecontainer/api/media/v1/pipeline_pb";

const CHUNK_BYTES = 64 * 1024;
const CLASSIFIER = "services/node-classifier";
const FILMS = "services/node-films";
/** Milliseconds that a call may take, at most. */
const PATIENCE = 180_000;

// region register
/** Creates a service and waits until it is READY. */
async function register(transport: Transport, name: string, app: string): Promise<void> {
  const management = createClient(ManagementService, transport);
  await management.createService({ serviceId: name.replace("services/", ""), service: { app } });
  const enough = new AbortController();
  // Not the transport's time-out: of a call that is left early, its timer would keep the process alive.
  const signal = AbortSignal.any([enough.signal, AbortSignal.timeout(PATIENCE)]);
  try {
    for await (const { event } of management.watchServices({}, { signal, timeoutMs: 0 })) {
      if (event.case !== "service" || event.value.name !== name) {
        continue;
      }
      if (event.value.state === ServiceState.READY) {
        return;
      }
      if (event.value.state === ServiceState.FAILED) {
        throw new Error(`${name} has FAILED: ${event.value.error?.message}`);
      }
    }
  } finally {
    // Leaving the loop does not end the call.
    enough.abort();
  }
  throw new Error(`the stream ended before ${name} was READY`);
}
// endregion

// region upload
/** Stores a file, piece by piece; the gateway refuses it if the digest is another. */
async function upload(transport: Transport, path: string): Promise<Artifact> {
  const content = await readFile(path);
  const sha256 = createHash("sha256").update(content).digest();
  async function* parts(): AsyncGenerator<MessageInitShape<typeof UploadRequestSchema>> {
    const header = { filename: basename(path), sizeBytes: BigInt(content.length), sha256 };
    yield { part: { case: "header", value: header } };
    for (let start = 0; start < content.length; start += CHUNK_BYTES) {
      yield { part: { case: "data", value: content.subarray(start, start + CHUNK_BYTES) } };
    }
  }
  return await createClient(ArtifactService, transport).upload(parts());
}
// endregion

// region download
/** Reads an artifact; returns its SHA-256, which is compared with what the gateway says. */
async function download(transport: Transport, name: string): Promise<string> {
  const hash = createHash("sha256");
  let promised: Uint8Array | undefined;
  for await (const part of createClient(ArtifactService, transport).download({ name })) {
    promised = part.artifact?.sha256 ?? promised;
    hash.update(part.data);
  }
  const digest = hash.digest();
  if (promised === undefined || !digest.equals(promised)) {
    throw new Error(`${name} came with other bytes than it has`);
  }
  return digest.toString("hex");
}
// endregion

// region predict
/** Classifies a picture; returns the best label. */
async function predict(transport: Transport, service: string, picture: string): Promise<string | undefined> {
  const image = await readFile(picture);
  const answer = await createClient(InferenceService, transport).predict({
    service,
    inputs: [{ value: { case: "image", value: image } }],
  });
  const result = answer.predictions[0]?.result;
  return result?.case === "classification" ? result.value.classes[0]?.label : undefined;
}
// endregion

/** Starts a job that makes an MKV of a clip, at the pace of playing. */
async function transcode(transport: Transport, clip: string, plays: number): Promise<Job> {
  return await createClient(MediaService, transport).runPipeline({
    service: FILMS,
    inputs: [
      {
        source: { source: { case: "artifact", value: clip } },
        loop: { case: "extraPlays", value: plays - 1 },
        realTime: true,
      },
    ],
    outputs: [{ key: "main", target: { case: "file", value: { container: "mkv" } } }],
  });
}

// region watch
/** Watches a job to its end; returns it, and how many updates told of progress. */
async function watch(transport: Transport, name: string): Promise<{ job: Job; told: number }> {
  let job: Job | undefined;
  let told = 0;
  for await (const { update } of createClient(JobService, transport).watchJob({ name })) {
    job = update?.job;
    if (job?.progress !== undefined) {
      told += 1;
      console.error(`${job.progress.done.toFixed(1)} ${job.progress.unit}`);
    }
  }
  if (job === undefined) {
    throw new Error(`nothing was told of ${name}`);
  }
  // The stream ends with the job.
  return { job, told };
}
// endregion

// region error
/** What went wrong, for programs: the ErrorInfo in the details of the status. */
function reasonOf(error: unknown): ErrorInfo {
  const [info] = ConnectError.from(error).findDetails(ErrorInfoSchema);
  if (info === undefined) {
    throw error;
  }
  return info;
}
// endregion

/** Calls a service that is not there. */
async function callNobody(transport: Transport): Promise<ErrorInfo> {
  try {
    await createClient(InferenceService, transport).predict({
      service: "services/nobody",
      inputs: [{ value: { case: "text", value: "?" } }],
    });
  } catch (error) {
    return reasonOf(error);
  }
  throw new Error("a service that is not there has answered");
}

// region cancel
/** Waits until a job runs, and cancels it; returns it as it ended. */
async function cancel(transport: Transport, name: string): Promise<Job> {
  const jobs = createClient(JobService, transport);
  let job: Job | undefined;
  let asked = false;
  for await (const { update } of jobs.watchJob({ name })) {
    job = update?.job;
    if (job?.state === JobState.RUNNING && !asked) {
      await jobs.cancelJob({ name, mode: CancelMode.ABORT });
      asked = true;
    }
  }
  if (job === undefined) {
    throw new Error(`nothing was told of ${name}`);
  }
  return job;
}
// endregion

async function main(address: string, picture: string, clip: string): Promise<void> {
  const transport = createGrpcTransport({ baseUrl: `http://${address}`, defaultTimeoutMs: PATIENCE });
  await register(transport, CLASSIFIER, "onnx");
  await register(transport, FILMS, "ffmpeg");
  const stored = await upload(transport, clip);
  const { job, told } = await watch(transport, (await transcode(transport, stored.name, 1)).name);
  const result = job.result && anyUnpack(job.result, RunPipelineResultSchema);
  const made = result?.outputs[0]?.files[0]?.artifact;
  if (made === undefined) {
    throw new Error(`${job.name} has ended without a result: ${job.error?.message}`);
  }
  const info = await callNobody(transport);
  const cancelled = await cancel(transport, (await transcode(transport, stored.name, 1000)).name);
  const report = {
    label: await predict(transport, CLASSIFIER, picture),
    uploaded: stored.name,
    uploaded_sha256: await download(transport, stored.name),
    job: job.name,
    job_state: `JOB_STATE_${JobState[job.state]}`,
    progress_updates: told,
    made,
    made_sha256: await download(transport, made),
    reason: info.reason,
    domain: info.domain,
    cancelled: cancelled.name,
    cancelled_state: `JOB_STATE_${JobState[cancelled.state]}`,
  };
  for (const name of [CLASSIFIER, FILMS]) {
    await createClient(ManagementService, transport).deleteService({ name });
  }
  console.log(JSON.stringify(report));
}

const [address, picture, clip] = process.argv.slice(2);
if (address === undefined || picture === undefined || clip === undefined) {
  throw new Error("usage: node scenario.js ADDRESS PICTURE CLIP");
}
await main(address, picture, clip);

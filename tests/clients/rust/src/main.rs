//! The scenario in Rust: scenario ADDRESS PICTURE CLIP. Says what came of it as JSON.
//!
//! It is the same in each language: registers two services, uploads and downloads a clip, classifies a picture, transcodes the clip
//! and watches that job to its end, gets an error and cancels a job.

use std::env;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::time::Duration;

use onecontainer_api::ai::v1::inference_service_client::InferenceServiceClient;
use onecontainer_api::ai::v1::{input, prediction, Input, PredictRequest};
use onecontainer_api::artifact::v1::artifact_service_client::ArtifactServiceClient;
use onecontainer_api::artifact::v1::upload_request::Part;
use onecontainer_api::artifact::v1::{Artifact, DownloadRequest, UploadHeader, UploadRequest};
use onecontainer_api::job::v1::job_service_client::JobServiceClient;
use onecontainer_api::job::v1::{CancelJobRequest, CancelMode, Job, JobState, WatchJobRequest};
use onecontainer_api::management::v1::management_service_client::ManagementServiceClient;
use onecontainer_api::management::v1::watch_services_response::Event;
use onecontainer_api::management::v1::{
    CreateServiceRequest, DeleteServiceRequest, Service, ServiceState, WatchServicesRequest,
};
use onecontainer_api::media::v1::media_service_client::MediaServiceClient;
use onecontainer_api::media::v1::{self as media, RunPipelineRequest, RunPipelineResult};
use serde_json::json;
use sha2::{Digest, Sha256};
use tonic::transport::{Channel, Endpoint};
use tonic::Status;
use tonic_types::{ErrorInfo, StatusExt};

const CHUNK_BYTES: usize = 64 * 1024;
const CLASSIFIER: &str = "services/rust-classifier";
const FILMS: &str = "services/rust-films";
const PATIENCE: Duration = Duration::from_secs(180);

type Outcome<T> = Result<T, Box<dyn Error>>;

// region register
/// Creates a service and waits until it is READY.
async fn register(channel: &Channel, name: &str, app: &str) -> Outcome<()> {
    let mut management = ManagementServiceClient::new(channel.clone());
    management
        .create_service(CreateServiceRequest {
            service_id: name.trim_start_matches("services/").into(),
            service: Some(Service { app: app.into(), ..Default::default() }),
            ..Default::default()
        })
        .await?;
    let mut events = management.watch_services(WatchServicesRequest::default()).await?.into_inner();
    while let Some(event) = events.message().await? {
        match event.event {
            Some(Event::Service(service)) if service.name == name => match service.state() {
                ServiceState::Ready => return Ok(()),
                ServiceState::Failed => return Err(format!("{name} has FAILED: {:?}", service.error).into()),
                _ => (),
            },
            _ => (),
        }
    }
    Err(format!("the stream ended before {name} was READY").into())
}
// endregion

// region upload
/// Stores a file, piece by piece; the gateway refuses it if the digest is another.
async fn upload(channel: &Channel, path: &Path) -> Outcome<Artifact> {
    let content = fs::read(path)?;
    let header = UploadHeader {
        filename: path.file_name().unwrap_or_default().to_string_lossy().into(),
        size_bytes: Some(content.len() as i64),
        sha256: Sha256::digest(&content).to_vec(),
        ..Default::default()
    };
    let mut parts = vec![UploadRequest { part: Some(Part::Header(header)) }];
    parts.extend(content.chunks(CHUNK_BYTES).map(|chunk| UploadRequest { part: Some(Part::Data(chunk.to_vec())) }));
    let mut artifacts = ArtifactServiceClient::new(channel.clone());
    Ok(artifacts.upload(tokio_stream::iter(parts)).await?.into_inner())
}
// endregion

// region download
/// Reads an artifact; returns its SHA-256, which is compared with what the gateway says.
async fn download(channel: &Channel, name: &str) -> Outcome<String> {
    let request = DownloadRequest { name: name.into(), ..Default::default() };
    let mut parts = ArtifactServiceClient::new(channel.clone()).download(request).await?.into_inner();
    let (mut hash, mut promised) = (Sha256::new(), Vec::new());
    while let Some(part) = parts.message().await? {
        if let Some(artifact) = part.artifact {
            promised = artifact.sha256;
        }
        hash.update(&part.data);
    }
    if hash.finalize().as_slice() != promised {
        return Err(format!("{name} came with other bytes than it has").into());
    }
    Ok(promised.iter().map(|byte| format!("{byte:02x}")).collect())
}
// endregion

// region predict
/// Classifies a picture; returns the best label.
async fn predict(channel: &Channel, service: &str, picture: &Path) -> Outcome<String> {
    let image = Input { value: Some(input::Value::Image(fs::read(picture)?)), ..Default::default() };
    let request = PredictRequest { service: service.into(), inputs: vec![image], ..Default::default() };
    let answer = InferenceServiceClient::new(channel.clone()).predict(request).await?.into_inner();
    match answer.predictions.into_iter().next().and_then(|first| first.result) {
        Some(prediction::Result::Classification(found)) if !found.classes.is_empty() => {
            Ok(found.classes[0].label.clone())
        }
        other => Err(format!("no classes: {other:?}").into()),
    }
}
// endregion

/// Starts a job that makes an MKV of a clip, at the pace of playing.
async fn transcode(channel: &Channel, clip: &str, plays: i32) -> Outcome<Job> {
    let source = media::MediaSource { source: Some(media::media_source::Source::Artifact(clip.into())) };
    let file = media::FileOutput { container: "mkv".into(), ..Default::default() };
    let request = RunPipelineRequest {
        service: FILMS.into(),
        inputs: vec![media::Input {
            source: Some(source),
            r#loop: Some(media::input::Loop::ExtraPlays(plays - 1)),
            real_time: true,
            ..Default::default()
        }],
        outputs: vec![media::Output {
            key: "main".into(),
            target: Some(media::output::Target::File(file)),
            ..Default::default()
        }],
        ..Default::default()
    };
    Ok(MediaServiceClient::new(channel.clone()).run_pipeline(request).await?.into_inner())
}

// region watch
/// Watches a job to its end; returns it, and how many updates told of progress.
async fn watch(channel: &Channel, name: &str) -> Outcome<(Job, usize)> {
    let request = WatchJobRequest { name: name.into(), ..Default::default() };
    let mut updates = JobServiceClient::new(channel.clone()).watch_job(request).await?.into_inner();
    let (mut last, mut told) = (None, 0);
    while let Some(answer) = updates.message().await? {
        let job = answer.update.and_then(|update| update.job).ok_or("an update without a job")?;
        if let Some(progress) = &job.progress {
            told += 1;
            eprintln!("{:.1} {}", progress.done, progress.unit);
        }
        last = Some(job);
    }
    // The stream ends with the job.
    Ok((last.ok_or("a stream without an update")?, told))
}
// endregion

// region error
/// What went wrong, for programs: the ErrorInfo in the details of the status.
fn reason_of(status: &Status) -> Option<ErrorInfo> {
    status.get_details_error_info()
}
// endregion

/// Calls a service that is not there.
async fn call_nobody(channel: &Channel) -> Outcome<ErrorInfo> {
    let text = Input { value: Some(input::Value::Text("?".into())), ..Default::default() };
    let request = PredictRequest { service: "services/nobody".into(), inputs: vec![text], ..Default::default() };
    match InferenceServiceClient::new(channel.clone()).predict(request).await {
        Ok(_) => Err("a service that is not there has answered".into()),
        Err(status) => Ok(reason_of(&status).ok_or(status)?),
    }
}

// region cancel
/// Waits until a job runs, and cancels it; returns it as it ended.
async fn cancel(channel: &Channel, name: &str) -> Outcome<Job> {
    let mut jobs = JobServiceClient::new(channel.clone());
    let request = WatchJobRequest { name: name.into(), ..Default::default() };
    let mut updates = jobs.watch_job(request).await?.into_inner();
    let (mut last, mut asked) = (None, false);
    while let Some(answer) = updates.message().await? {
        let job = answer.update.and_then(|update| update.job).ok_or("an update without a job")?;
        if job.state() == JobState::Running && !asked {
            jobs.cancel_job(CancelJobRequest { name: name.into(), mode: CancelMode::Abort.into() }).await?;
            asked = true;
        }
        last = Some(job);
    }
    Ok(last.ok_or("a stream without an update")?)
}
// endregion

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [address, picture, clip] = arguments.as_slice() else {
        return Err("usage: scenario ADDRESS PICTURE CLIP".into());
    };
    let channel = Endpoint::new(format!("http://{address}"))?.timeout(PATIENCE).connect().await?;
    register(&channel, CLASSIFIER, "onnx").await?;
    register(&channel, FILMS, "ffmpeg").await?;
    let stored = upload(&channel, Path::new(clip)).await?;
    let (job, told) = watch(&channel, &transcode(&channel, &stored.name, 1).await?.name).await?;
    let result =
        job.result.as_ref().ok_or_else(|| format!("{} has ended without a result: {:?}", job.name, job.error))?;
    let made = result.to_msg::<RunPipelineResult>()?.outputs[0].files[0].artifact.clone();
    let info = call_nobody(&channel).await?;
    let cancelled = cancel(&channel, &transcode(&channel, &stored.name, 1000).await?.name).await?;
    let report = json!({
        "label": predict(&channel, CLASSIFIER, Path::new(picture)).await?,
        "uploaded": stored.name,
        "uploaded_sha256": download(&channel, &stored.name).await?,
        "job": job.name,
        "job_state": job.state().as_str_name(),
        "progress_updates": told,
        "made": made,
        "made_sha256": download(&channel, &made).await?,
        "reason": info.reason,
        "domain": info.domain,
        "cancelled": cancelled.name,
        "cancelled_state": cancelled.state().as_str_name(),
    });
    for name in [CLASSIFIER, FILMS] {
        let request = DeleteServiceRequest { name: name.into(), ..Default::default() };
        ManagementServiceClient::new(channel.clone()).delete_service(request).await?;
    }
    println!("{report}");
    Ok(())
}

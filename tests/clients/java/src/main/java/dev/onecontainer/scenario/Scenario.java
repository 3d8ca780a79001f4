package dev.onecontainer.scenario;

import com.google.gson.Gson;
import com.google.protobuf.Any;
import com.google.protobuf.ByteString;
import com.google.rpc.ErrorInfo;
import dev.onecontainer.api.ai.v1.InferenceServiceGrpc;
import dev.onecontainer.api.ai.v1.PredictRequest;
import dev.onecontainer.api.artifact.v1.Artifact;
import dev.onecontainer.api.artifact.v1.ArtifactServiceGrpc;
import dev.onecontainer.api.artifact.v1.DownloadRequest;
import dev.onecontainer.api.artifact.v1.DownloadResponse;
import dev.onecontainer.api.artifact.v1.UploadHeader;
import dev.onecontainer.api.artifact.v1.UploadRequest;
import dev.onecontainer.api.job.v1.CancelJobRequest;
import dev.onecontainer.api.job.v1.CancelMode;
import dev.onecontainer.api.job.v1.Job;
import dev.onecontainer.api.job.v1.JobServiceGrpc;
import dev.onecontainer.api.job.v1.JobState;
import dev.onecontainer.api.job.v1.WatchJobRequest;
import dev.onecontainer.api.job.v1.WatchJobResponse;
import dev.onecontainer.api.management.v1.CreateServiceRequest;
import dev.onecontainer.api.management.v1.DeleteServiceRequest;
import dev.onecontainer.api.management.v1.ManagementServiceGrpc;
import dev.onecontainer.api.management.v1.Service;
import dev.onecontainer.api.management.v1.ServiceState;
import dev.onecontainer.api.management.v1.WatchServicesRequest;
import dev.onecontainer.api.management.v1.WatchServicesResponse;
import dev.onecontainer.api.media.v1.FileOutput;
import dev.onecontainer.api.media.v1.Input;
import dev.onecontainer.api.media.v1.MediaServiceGrpc;
import dev.onecontainer.api.media.v1.MediaSource;
import dev.onecontainer.api.media.v1.Output;
import dev.onecontainer.api.media.v1.RunPipelineRequest;
import dev.onecontainer.api.media.v1.RunPipelineResult;
import io.grpc.Context;
import io.grpc.Deadline;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.StreamObserver;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.HexFormat;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;

/**
 * The scenario in Java: Scenario ADDRESS PICTURE CLIP. Says what came of it as JSON.
 *
 * <p>It is the same in each language: registers two services, uploads and downloads a clip, classifies a picture, transcodes the
 * clip and watches that job to its end, gets an error and cancels a job.
 */
public final class Scenario {
  private static final int CHUNK_BYTES = 64 * 1024;
  private static final String CLASSIFIER = "services/java-classifier";
  private static final String FILMS = "services/java-films";
  private static final long PATIENCE_SECONDS = 180;

  private final ManagedChannel channel;

  private Scenario(ManagedChannel channel) {
    this.channel = channel;
  }

  // region register
  /** Creates a service and waits until it is READY. */
  void register(String name, String app) {
    var management = ManagementServiceGrpc.newBlockingStub(channel);
    management.createService(
        CreateServiceRequest.newBuilder()
            .setServiceId(name.replace("services/", ""))
            .setService(Service.newBuilder().setApp(app))
            .build());
    try (var watching = Context.current().withCancellation()) {
      // Closing the context ends the stream.
      watching.run(() -> awaitReady(management.watchServices(WatchServicesRequest.getDefaultInstance()), name));
    }
  }

  private static void awaitReady(Iterator<WatchServicesResponse> events, String name) {
    while (events.hasNext()) {
      Service service = events.next().getService();
      if (service.getName().equals(name) && service.getState() == ServiceState.SERVICE_STATE_READY) {
        return;
      }
      if (service.getName().equals(name) && service.getState() == ServiceState.SERVICE_STATE_FAILED) {
        throw new IllegalStateException(name + " has FAILED: " + service.getError().getMessage());
      }
    }
    throw new IllegalStateException("the stream ended before " + name + " was READY");
  }
  // endregion

  // region upload
  /** Stores a file, piece by piece; the gateway refuses it if the digest is another. */
  Artifact upload(Path path) throws Exception {
    byte[] content = Files.readAllBytes(path);
    var header =
        UploadHeader.newBuilder()
            .setFilename(path.getFileName().toString())
            .setSizeBytes(content.length)
            .setSha256(ByteString.copyFrom(MessageDigest.getInstance("SHA-256").digest(content)));
    var stored = new CompletableFuture<Artifact>();
    StreamObserver<UploadRequest> parts =
        ArtifactServiceGrpc.newStub(channel)
            .upload(
                new StreamObserver<>() {
                  @Override
                  public void onNext(Artifact artifact) {
                    stored.complete(artifact);
                  }

                  @Override
                  public void onError(Throwable error) {
                    stored.completeExceptionally(error);
                  }

                  @Override
                  public void onCompleted() {}
                });
    parts.onNext(UploadRequest.newBuilder().setHeader(header).build());
    for (int start = 0; start < content.length; start += CHUNK_BYTES) {
      int size = Math.min(CHUNK_BYTES, content.length - start);
      parts.onNext(UploadRequest.newBuilder().setData(ByteString.copyFrom(content, start, size)).build());
    }
    parts.onCompleted();
    return stored.get(PATIENCE_SECONDS, TimeUnit.SECONDS);
  }
  // endregion

  // region download
  /** Reads an artifact; returns its SHA-256, which is compared with what the gateway says. */
  String download(String name) throws Exception {
    var digest = MessageDigest.getInstance("SHA-256");
    var promised = ByteString.EMPTY;
    var request = DownloadRequest.newBuilder().setName(name).build();
    Iterator<DownloadResponse> parts = ArtifactServiceGrpc.newBlockingStub(channel).download(request);
    while (parts.hasNext()) {
      DownloadResponse part = parts.next();
      promised = part.hasArtifact() ? part.getArtifact().getSha256() : promised;
      digest.update(part.getData().asReadOnlyByteBuffer());
    }
    if (!promised.equals(ByteString.copyFrom(digest.digest()))) {
      throw new IllegalStateException(name + " came with other bytes than it has");
    }
    return HexFormat.of().formatHex(promised.toByteArray());
  }
  // endregion

  // region predict
  /** Classifies a picture; returns the best label. */
  String predict(String service, Path picture) throws Exception {
    var image = ByteString.copyFrom(Files.readAllBytes(picture));
    var input = dev.onecontainer.api.ai.v1.Input.newBuilder().setImage(image);
    var request = PredictRequest.newBuilder().setService(service).addInputs(input).build();
    var answer = InferenceServiceGrpc.newBlockingStub(channel).predict(request);
    return answer.getPredictions(0).getClassification().getClasses(0).getLabel();
  }
  // endregion

  /** Starts a job that makes an MKV of a clip, at the pace of playing. */
  Job transcode(String clip, int plays) {
    var request =
        RunPipelineRequest.newBuilder()
            .setService(FILMS)
            .addInputs(
                Input.newBuilder()
                    .setSource(MediaSource.newBuilder().setArtifact(clip))
                    .setExtraPlays(plays - 1)
                    .setRealTime(true))
            .addOutputs(Output.newBuilder().setKey("main").setFile(FileOutput.newBuilder().setContainer("mkv")))
            .build();
    return MediaServiceGrpc.newBlockingStub(channel).runPipeline(request);
  }

  /** A job at its end, and how many updates told of progress. */
  record Watched(Job job, int told) {}

  // region watch
  /** Watches a job to its end. */
  Watched watch(String name) {
    var job = Job.getDefaultInstance();
    int told = 0;
    var request = WatchJobRequest.newBuilder().setName(name).build();
    Iterator<WatchJobResponse> updates = JobServiceGrpc.newBlockingStub(channel).watchJob(request);
    while (updates.hasNext()) {
      job = updates.next().getUpdate().getJob();
      if (job.hasProgress()) {
        told++;
        System.err.printf("%.1f %s%n", job.getProgress().getDone(), job.getProgress().getUnit());
      }
    }
    // The stream ends with the job.
    return new Watched(job, told);
  }
  // endregion

  // region error
  /** What went wrong, for programs: the ErrorInfo in the details of the status. */
  static ErrorInfo reasonOf(StatusRuntimeException error) throws Exception {
    for (Any detail : StatusProto.fromThrowable(error).getDetailsList()) {
      if (detail.is(ErrorInfo.class)) {
        return detail.unpack(ErrorInfo.class);
      }
    }
    throw error;
  }
  // endregion

  /** Calls a service that is not there. */
  ErrorInfo callNobody() throws Exception {
    var text = dev.onecontainer.api.ai.v1.Input.newBuilder().setText("?");
    var request = PredictRequest.newBuilder().setService("services/nobody").addInputs(text).build();
    try {
      InferenceServiceGrpc.newBlockingStub(channel).predict(request);
    } catch (StatusRuntimeException error) {
      return reasonOf(error);
    }
    throw new IllegalStateException("a service that is not there has answered");
  }

  // region cancel
  /** Waits until a job runs, and cancels it; returns it as it ended. */
  Job cancel(String name) {
    var jobs = JobServiceGrpc.newBlockingStub(channel);
    var job = Job.getDefaultInstance();
    boolean asked = false;
    Iterator<WatchJobResponse> updates = jobs.watchJob(WatchJobRequest.newBuilder().setName(name).build());
    while (updates.hasNext()) {
      job = updates.next().getUpdate().getJob();
      if (job.getState() == JobState.JOB_STATE_RUNNING && !asked) {
        jobs.cancelJob(CancelJobRequest.newBuilder().setName(name).setMode(CancelMode.CANCEL_MODE_ABORT).build());
        asked = true;
      }
    }
    return job;
  }
  // endregion

  private Map<String, Object> run(Path picture, Path clip) throws Exception {
    register(CLASSIFIER, "onnx");
    register(FILMS, "ffmpeg");
    Artifact stored = upload(clip);
    Watched watched = watch(transcode(stored.getName(), 1).getName());
    String made =
        watched.job().getResult().unpack(RunPipelineResult.class).getOutputs(0).getFiles(0).getArtifact();
    ErrorInfo info = callNobody();
    Job cancelled = cancel(transcode(stored.getName(), 1000).getName());
    var report = new LinkedHashMap<String, Object>();
    report.put("label", predict(CLASSIFIER, picture));
    report.put("uploaded", stored.getName());
    report.put("uploaded_sha256", download(stored.getName()));
    report.put("job", watched.job().getName());
    report.put("job_state", watched.job().getState().name());
    report.put("progress_updates", watched.told());
    report.put("made", made);
    report.put("made_sha256", download(made));
    report.put("reason", info.getReason());
    report.put("domain", info.getDomain());
    report.put("cancelled", cancelled.getName());
    report.put("cancelled_state", cancelled.getState().name());
    for (String name : List.of(CLASSIFIER, FILMS)) {
      var request = DeleteServiceRequest.newBuilder().setName(name).build();
      ManagementServiceGrpc.newBlockingStub(channel).deleteService(request);
    }
    return report;
  }

  public static void main(String[] arguments) throws Exception {
    if (arguments.length != 3) {
      throw new IllegalArgumentException("usage: Scenario ADDRESS PICTURE CLIP");
    }
    ManagedChannel channel = Grpc.newChannelBuilder(arguments[0], InsecureChannelCredentials.create()).build();
    var timer = Executors.newSingleThreadScheduledExecutor();
    try {
      // All calls of it share one deadline.
      var context = Context.current().withDeadline(Deadline.after(PATIENCE_SECONDS, TimeUnit.SECONDS), timer);
      var scenario = new Scenario(channel);
      var report = context.call(() -> scenario.run(Path.of(arguments[1]), Path.of(arguments[2])));
      System.out.println(new Gson().toJson(report));
    } finally {
      timer.shutdownNow();
      channel.shutdownNow().awaitTermination(10, TimeUnit.SECONDS);
    }
  }
}

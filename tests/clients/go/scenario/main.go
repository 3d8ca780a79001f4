// The scenario in Go: scenario ADDRESS PICTURE CLIP. Says what came of it as JSON.
//
// It is the same in each language: registers two services, uploads and downloads a clip, classifies a picture, transcodes the clip
// and watches that job to its end, gets an error and cancels a job.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	aiv1 "github.com/onecontainer/onecontainer/gen/go/onecontainer/api/ai/v1"
	artifactv1 "github.com/onecontainer/onecontainer/gen/go/onecontainer/api/artifact/v1"
	jobv1 "github.com/onecontainer/onecontainer/gen/go/onecontainer/api/job/v1"
	managementv1 "github.com/onecontainer/onecontainer/gen/go/onecontainer/api/management/v1"
	mediav1 "github.com/onecontainer/onecontainer/gen/go/onecontainer/api/media/v1"
)

const (
	chunkBytes = 64 << 10
	classifier = "services/go-classifier"
	films      = "services/go-films"
	patience   = 180 * time.Second
)

// region register

// register creates a service and waits until it is READY.
func register(ctx context.Context, conn *grpc.ClientConn, name, app string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	management := managementv1.NewManagementServiceClient(conn)
	_, err := management.CreateService(ctx, &managementv1.CreateServiceRequest{
		ServiceId: strings.TrimPrefix(name, "services/"),
		Service:   &managementv1.Service{App: app},
	})
	if err != nil {
		return err
	}
	events, err := management.WatchServices(ctx, &managementv1.WatchServicesRequest{})
	if err != nil {
		return err
	}
	for {
		event, err := events.Recv()
		if err != nil {
			return err
		}
		service := event.GetService()
		if service.GetName() != name {
			continue
		}
		switch service.GetState() {
		case managementv1.ServiceState_SERVICE_STATE_READY:
			return nil
		case managementv1.ServiceState_SERVICE_STATE_FAILED:
			return fmt.Errorf("%s has FAILED: %s", name, service.GetError().GetMessage())
		}
	}
}

// endregion

// region upload

// upload stores a file, piece by piece; the gateway refuses it if the digest is another.
func upload(ctx context.Context, conn *grpc.ClientConn, path string) (*artifactv1.Artifact, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	digest, size := sha256.Sum256(content), int64(len(content))
	stream, err := artifactv1.NewArtifactServiceClient(conn).Upload(ctx)
	if err != nil {
		return nil, err
	}
	header := &artifactv1.UploadHeader{Filename: filepath.Base(path), SizeBytes: &size, Sha256: digest[:]}
	err = stream.Send(&artifactv1.UploadRequest{Part: &artifactv1.UploadRequest_Header{Header: header}})
	for chunk := range slices.Chunk(content, chunkBytes) {
		if err != nil {
			// The gateway has ended the call, and CloseAndRecv tells why.
			break
		}
		err = stream.Send(&artifactv1.UploadRequest{Part: &artifactv1.UploadRequest_Data{Data: chunk}})
	}
	return stream.CloseAndRecv()
}

// endregion

// region download

// download reads an artifact; returns its SHA-256, which is compared with what the gateway says.
func download(ctx context.Context, conn *grpc.ClientConn, name string) (string, error) {
	stream, err := artifactv1.NewArtifactServiceClient(conn).Download(ctx, &artifactv1.DownloadRequest{Name: name})
	if err != nil {
		return "", err
	}
	digest, promised := sha256.New(), []byte(nil)
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", err
		}
		if part.GetArtifact() != nil {
			promised = part.GetArtifact().GetSha256()
		}
		digest.Write(part.GetData())
	}
	if !bytes.Equal(digest.Sum(nil), promised) {
		return "", fmt.Errorf("%s came with other bytes than it has", name)
	}
	return hex.EncodeToString(promised), nil
}

// endregion

// region predict

// predict classifies a picture; returns the best label.
func predict(ctx context.Context, conn *grpc.ClientConn, service, picture string) (string, error) {
	image, err := os.ReadFile(picture)
	if err != nil {
		return "", err
	}
	answer, err := aiv1.NewInferenceServiceClient(conn).Predict(ctx, &aiv1.PredictRequest{
		Service: service,
		Inputs:  []*aiv1.Input{{Value: &aiv1.Input_Image{Image: image}}},
	})
	if err != nil {
		return "", err
	}
	return answer.GetPredictions()[0].GetClassification().GetClasses()[0].GetLabel(), nil
}

// endregion

// transcode starts a job that makes an MKV of a clip, at the pace of playing.
func transcode(ctx context.Context, conn *grpc.ClientConn, clip string, plays int32) (*jobv1.Job, error) {
	return mediav1.NewMediaServiceClient(conn).RunPipeline(ctx, &mediav1.RunPipelineRequest{
		Service: films,
		Inputs: []*mediav1.Input{{
			Source:   &mediav1.MediaSource{Source: &mediav1.MediaSource_Artifact{Artifact: clip}},
			Loop:     &mediav1.Input_ExtraPlays{ExtraPlays: plays - 1},
			RealTime: true,
		}},
		Outputs: []*mediav1.Output{{
			Key:    "main",
			Target: &mediav1.Output_File{File: &mediav1.FileOutput{Container: "mkv"}},
		}},
	})
}

// region watch

// watch watches a job to its end; returns it, and how many updates told of progress.
func watch(ctx context.Context, conn *grpc.ClientConn, name string) (job *jobv1.Job, told int, err error) {
	updates, err := jobv1.NewJobServiceClient(conn).WatchJob(ctx, &jobv1.WatchJobRequest{Name: name})
	if err != nil {
		return nil, 0, err
	}
	for {
		answer, err := updates.Recv()
		if errors.Is(err, io.EOF) {
			// The stream ends with the job.
			return job, told, nil
		}
		if err != nil {
			return nil, 0, err
		}
		job = answer.GetUpdate().GetJob()
		if progress := job.GetProgress(); progress != nil {
			told++
			log.Printf("%.1f %s", progress.GetDone(), progress.GetUnit())
		}
	}
}

// endregion

// region error

// reasonOf says what went wrong, for programs: the ErrorInfo in the details of the status. Nil: there is none.
func reasonOf(err error) *errdetails.ErrorInfo {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return info
		}
	}
	return nil
}

// endregion

// callNobody calls a service that is not there.
func callNobody(ctx context.Context, conn *grpc.ClientConn) (*errdetails.ErrorInfo, error) {
	_, err := aiv1.NewInferenceServiceClient(conn).Predict(ctx, &aiv1.PredictRequest{
		Service: "services/nobody",
		Inputs:  []*aiv1.Input{{Value: &aiv1.Input_Text{Text: "?"}}},
	})
	if info := reasonOf(err); info != nil {
		return info, nil
	}
	return nil, fmt.Errorf("a service that is not there has answered, or without a reason: %w", err)
}

// region cancel

// cancelRunning waits until a job runs, and cancels it; returns it as it ended.
func cancelRunning(ctx context.Context, conn *grpc.ClientConn, name string) (job *jobv1.Job, err error) {
	jobs := jobv1.NewJobServiceClient(conn)
	updates, err := jobs.WatchJob(ctx, &jobv1.WatchJobRequest{Name: name})
	if err != nil {
		return nil, err
	}
	cancelled := false
	for {
		answer, err := updates.Recv()
		if errors.Is(err, io.EOF) {
			return job, nil
		}
		if err != nil {
			return nil, err
		}
		job = answer.GetUpdate().GetJob()
		if job.GetState() == jobv1.JobState_JOB_STATE_RUNNING && !cancelled {
			request := &jobv1.CancelJobRequest{Name: name, Mode: jobv1.CancelMode_CANCEL_MODE_ABORT}
			if _, err := jobs.CancelJob(ctx, request); err != nil {
				return nil, err
			}
			cancelled = true
		}
	}
}

// endregion

func run(address, picture, clip string) error {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()

	if err := register(ctx, conn, classifier, "onnx"); err != nil {
		return err
	}
	if err := register(ctx, conn, films, "ffmpeg"); err != nil {
		return err
	}
	stored, err := upload(ctx, conn, clip)
	if err != nil {
		return err
	}
	storedDigest, err := download(ctx, conn, stored.GetName())
	if err != nil {
		return err
	}
	label, err := predict(ctx, conn, classifier, picture)
	if err != nil {
		return err
	}

	job, err := transcode(ctx, conn, stored.GetName(), 1)
	if err != nil {
		return err
	}
	watched, told, err := watch(ctx, conn, job.GetName())
	if err != nil {
		return err
	}
	var result mediav1.RunPipelineResult
	if err := watched.GetResult().UnmarshalTo(&result); err != nil {
		return fmt.Errorf("%s has ended without a result: %s: %w", watched.GetName(), watched.GetError().GetMessage(), err)
	}
	made := result.GetOutputs()[0].GetFiles()[0].GetArtifact()
	madeDigest, err := download(ctx, conn, made)
	if err != nil {
		return err
	}

	info, err := callNobody(ctx, conn)
	if err != nil {
		return err
	}
	if job, err = transcode(ctx, conn, stored.GetName(), 1000); err != nil {
		return err
	}
	cancelled, err := cancelRunning(ctx, conn, job.GetName())
	if err != nil {
		return err
	}
	for _, name := range []string{classifier, films} {
		request := &managementv1.DeleteServiceRequest{Name: name}
		if _, err := managementv1.NewManagementServiceClient(conn).DeleteService(ctx, request); err != nil {
			return err
		}
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"label":            label,
		"uploaded":         stored.GetName(),
		"uploaded_sha256":  storedDigest,
		"job":              watched.GetName(),
		"job_state":        watched.GetState().String(),
		"progress_updates": told,
		"made":             made,
		"made_sha256":      madeDigest,
		"reason":           info.GetReason(),
		"domain":           info.GetDomain(),
		"cancelled":        cancelled.GetName(),
		"cancelled_state":  cancelled.GetState().String(),
	})
}

func main() {
	log.SetFlags(0)
	if len(os.Args) != 4 {
		log.Fatal("usage: scenario ADDRESS PICTURE CLIP")
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		log.Fatal(err)
	}
}

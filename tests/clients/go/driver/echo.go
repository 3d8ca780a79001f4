package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	jobv1 "github.com/onecontainer/onecontainer/gen/go/onecontainer/api/job/v1"
	echov1 "onecontainer.test/godriver/gen/echov1"
)

const service = "onecontainer.test.echo.v1.EchoService/"

// handler runs one attempt of a method.
type handler func(*attempt) (proto.Message, error)

var handlers = map[string]handler{
	service + "Echo":     echoJob,
	service + "EchoOnce": echoJob,
	service + "Work":     work,
	service + "WorkOnce": work,
}

var finishable = map[string]bool{service + "Work": true}

func methods() []string {
	var names []string
	for name := range handlers {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// echo serves the unary methods of the test driver's service to direct callers.
type echo struct {
	echov1.UnimplementedEchoServiceServer
}

func (*echo) Echo(ctx context.Context, request *echov1.EchoRequest) (*echov1.EchoResponse, error) {
	return answer(ctx, request)
}

func (*echo) EchoOnce(ctx context.Context, request *echov1.EchoRequest) (*echov1.EchoResponse, error) {
	return answer(ctx, request)
}

func (*echo) Work(context.Context, *echov1.WorkRequest) (*jobv1.Job, error) {
	return nil, typed(codes.FailedPrecondition, "NEEDS_GATEWAY", "Work runs as a job: call it through the gateway")
}

func (*echo) WorkOnce(context.Context, *echov1.WorkRequest) (*jobv1.Job, error) {
	return nil, typed(codes.FailedPrecondition, "NEEDS_GATEWAY", "WorkOnce runs as a job: call it through the gateway")
}

func answer(ctx context.Context, request *echov1.EchoRequest) (*echov1.EchoResponse, error) {
	if err := pause(ctx, request.Delay); err != nil {
		return nil, err
	}
	if request.Behaviour == "typed" {
		return nil, typed(codes.InvalidArgument, "DATA_INVALID", "the payload is not what was hoped for")
	}
	return &echov1.EchoResponse{Payload: request.Payload}, nil
}

func pause(ctx context.Context, seconds float64) error {
	select {
	case <-time.After(time.Duration(seconds * float64(time.Second))):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func decode(one *attempt, request proto.Message) error {
	if err := proto.Unmarshal(one.grant.GetRequest(), request); err != nil {
		return typed(codes.InvalidArgument, "DATA_INVALID", "the request does not decode")
	}
	return nil
}

func echoJob(one *attempt) (proto.Message, error) {
	request := &echov1.EchoRequest{}
	if err := decode(one, request); err != nil {
		return nil, err
	}
	return answer(one.ctx, request)
}

// mark adds a line to the request's file: one write of a short line in append mode is atomic.
func mark(request *echov1.WorkRequest, line string) error {
	if request.MarkFile == "" {
		return nil
	}
	file, err := os.OpenFile(request.MarkFile, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = file.WriteString(line + "\n")
	return err
}

// awaitFile returns when there is a file of this path, at once if none is asked for.
func awaitFile(ctx context.Context, path string) error {
	for path != "" {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		if err := pause(ctx, 0.05); err != nil {
			return err
		}
	}
	return nil
}

func work(one *attempt) (proto.Message, error) {
	request := &echov1.WorkRequest{}
	if err := decode(one, request); err != nil {
		return nil, err
	}
	who := fmt.Sprintf("%s %d", one.grant.Job, one.grant.Attempt)
	if err := mark(request, "begin "+who); err != nil {
		return nil, err
	}
	if one.grant.Attempt <= request.FailingAttempts {
		return nil, typed(codes.Unavailable, "BACKEND_UNREACHABLE", "not yet")
	}
	if request.Behaviour == "typed" {
		return nil, typed(codes.InvalidArgument, "DATA_INVALID", "the payload is not what was hoped for")
	}
	done, err := steps(one, request)
	if err != nil {
		return nil, err
	}
	if err := awaitFile(one.ctx, request.WaitFile); err != nil {
		return nil, err
	}
	if err := mark(request, "end "+who); err != nil {
		return nil, err
	}
	return &echov1.WorkResult{Steps: done, Payload: make([]byte, request.ResultBytes)}, nil
}

// steps does the steps, from where an earlier attempt left off, and returns how many it did itself.
func steps(one *attempt, request *echov1.WorkRequest) (int32, error) {
	var reached, done int32
	if left := one.grant.ResumeDetails; left != nil {
		earlier := &echov1.WorkResult{}
		if err := left.UnmarshalTo(earlier); err != nil {
			return 0, typed(codes.InvalidArgument, "DATA_INVALID", "the checkpoint does not decode")
		}
		reached = earlier.Steps
	}
	for reached < request.Steps {
		if one.ended() {
			return done, nil
		}
		if err := pause(one.ctx, request.StepSeconds); err != nil {
			return done, err
		}
		reached++
		done++
		one.progress(float64(reached), float64(request.Steps), "steps")
		if request.Behaviour == "resume" {
			if err := one.checkpoint(&echov1.WorkResult{Steps: reached}); err != nil {
				return done, err
			}
			if one.grant.Attempt == 1 && reached == request.Steps/2 {
				return done, typed(codes.Unavailable, "BACKEND_UNREACHABLE", "half of it is done")
			}
		}
	}
	return done, nil
}

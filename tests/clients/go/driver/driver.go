package main

import (
	"context"
	"crypto/subtle"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	driverv1 "github.com/onecontainer/onecontainer/gen/go/onecontainer/api/driver/v1"
	jobv1 "github.com/onecontainer/onecontainer/gen/go/onecontainer/api/job/v1"
	typev1 "github.com/onecontainer/onecontainer/gen/go/onecontainer/api/type/v1"
)

type key struct {
	job   string
	fence int64
}

// driver serves DriverService: what it is attached to, and the attempts that run in it.
type driver struct {
	driverv1.UnimplementedDriverServiceServer
	manifest *driverv1.DriverManifest
	token    string
	health   *health.Server

	mu       sync.Mutex
	attached *driverv1.AttachRequest
	draining bool
	attempts map[key]*attempt
	running  sync.WaitGroup
}

func newDriver(manifest *driverv1.DriverManifest, token string) *driver {
	return &driver{manifest: manifest, token: token, health: health.NewServer(), attempts: map[key]*attempt{}}
}

// --- who may call, and whom a call means ---

func first(values metadata.MD, name string) string {
	if found := values.Get(name); len(found) > 0 {
		return found[0]
	}
	return ""
}

func (d *driver) check(ctx context.Context, method string) error {
	if strings.HasPrefix(method, "/grpc.health.v1.Health/") {
		return nil // who probes a container has no token
	}
	values, _ := metadata.FromIncomingContext(ctx)
	if d.token != "" {
		given, ok := strings.CutPrefix(first(values, "authorization"), "Bearer ")
		if !ok || subtle.ConstantTimeCompare([]byte(given), []byte(d.token)) != 1 {
			return typed(codes.Unauthenticated, "CREDENTIALS_INVALID", "send this sidecar's instance token")
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.attached == nil {
		return nil
	}
	for name, mine := range map[string]string{
		"onecontainer-instance": d.attached.Instance, "onecontainer-service": d.attached.Service,
	} {
		if meant := first(values, name); meant != "" && meant != mine {
			return typed(codes.FailedPrecondition, "WRONG_INSTANCE", "the call means "+meant+", but this is "+mine)
		}
	}
	return nil
}

func (d *driver) checkUnary(
	ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler,
) (any, error) {
	if err := d.check(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return handler(ctx, request)
}

func (d *driver) checkStream(
	server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler,
) error {
	if err := d.check(stream.Context(), info.FullMethod); err != nil {
		return err
	}
	return handler(server, stream)
}

// --- its life ---

func (d *driver) GetDriverInfo(context.Context, *driverv1.GetDriverInfoRequest) (*driverv1.GetDriverInfoResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	info := &driverv1.GetDriverInfoResponse{
		Manifest: d.manifest, Methods: methods(), MaxMessageBytes: maxMessageBytes, ContractVersion: "1.0",
	}
	if d.attached != nil {
		info.Instance, info.Service = d.attached.Instance, d.attached.Service
	}
	return info, nil
}

func (d *driver) Attach(_ context.Context, request *driverv1.AttachRequest) (*driverv1.AttachResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.attached != nil && !proto.Equal(d.attached, request) {
		return nil, typed(codes.FailedPrecondition, "STATE_INVALID", "attached to "+d.attached.Service+": detach first")
	}
	d.attached = request
	return &driverv1.AttachResponse{}, nil
}

func (d *driver) Detach(ctx context.Context, _ *driverv1.DetachRequest) (*driverv1.DetachResponse, error) {
	d.endRunning(ctx, remaining(ctx))
	d.mu.Lock()
	defer d.mu.Unlock()
	d.attached = nil
	return &driverv1.DetachResponse{}, nil
}

func remaining(ctx context.Context) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return drainTime
	}
	return time.Until(deadline) * 8 / 10
}

func (d *driver) Probe(context.Context, *driverv1.ProbeRequest) (*driverv1.ProbeResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.attached == nil {
		return nil, typed(codes.FailedPrecondition, "NOT_ATTACHED", "attach this sidecar to a service first")
	}
	return &driverv1.ProbeResponse{Ready: true, Message: "hello from Go"}, nil
}

func (d *driver) Drain(ctx context.Context, request *driverv1.DrainRequest) (*driverv1.DrainResponse, error) {
	timeout := 600 * time.Second
	if request.Timeout != nil {
		timeout = request.Timeout.AsDuration()
	}
	return &driverv1.DrainResponse{AbortedCount: d.drain(ctx, timeout)}, nil
}

func (d *driver) drain(ctx context.Context, timeout time.Duration) int32 {
	d.mu.Lock()
	d.draining = true
	d.mu.Unlock()
	d.health.Shutdown()
	return d.endRunning(ctx, timeout)
}

// endRunning waits for the attempts that run, aborts those that take too long, and returns how many those were.
func (d *driver) endRunning(ctx context.Context, timeout time.Duration) int32 {
	ended := make(chan struct{})
	go func() { d.running.Wait(); close(ended) }()
	select {
	case <-ended:
		return 0
	case <-time.After(timeout):
	case <-ctx.Done():
	}
	d.mu.Lock()
	left := int32(len(d.attempts))
	for _, one := range d.attempts {
		one.stop(typed(codes.Unavailable, "DRAINING", "the driver was stopped while this ran"))
	}
	d.mu.Unlock()
	<-ended
	return left
}

// --- attempts ---

// attempt is one run of a handler, and its handler's way to tell and to be told.
type attempt struct {
	grant     *jobv1.Grant
	ctx       context.Context
	cancel    context.CancelCauseFunc
	finishing chan struct{}
	once      sync.Once
	events    chan *driverv1.RunResponse
}

func (a *attempt) stop(cause error) { a.cancel(cause) }

func (a *attempt) finish() { a.once.Do(func() { close(a.finishing) }) }

func (a *attempt) ended() bool {
	select {
	case <-a.finishing:
		return true
	default:
		return false
	}
}

func (a *attempt) tell(event *driverv1.RunResponse) {
	select {
	case a.events <- event:
	case <-a.ctx.Done():
	}
}

func (a *attempt) progress(done, total float64, unit string) {
	a.tell(&driverv1.RunResponse{Event: &driverv1.RunResponse_Progress{
		Progress: &typev1.Progress{Done: done, Total: &total, Unit: unit},
	}})
}

func (a *attempt) checkpoint(details proto.Message) error {
	packed, err := anypb.New(details)
	if err != nil {
		return err
	}
	a.tell(&driverv1.RunResponse{Event: &driverv1.RunResponse_Checkpoint{Checkpoint: packed}})
	return nil
}

func (d *driver) begin(ctx context.Context, grant *jobv1.Grant) (*attempt, handler, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.draining {
		return nil, nil, typed(codes.Unavailable, "DRAINING", "this driver is draining")
	}
	if d.attached == nil {
		return nil, nil, typed(codes.FailedPrecondition, "NOT_ATTACHED", "attach this sidecar to a service first")
	}
	run, ok := handlers[grant.Method]
	if !ok {
		return nil, nil, typed(codes.Unimplemented, "CAPABILITY_MISSING", "there is no "+grant.Method)
	}
	name := key{grant.Job, grant.Fence}
	if _, there := d.attempts[name]; there {
		return nil, nil, typed(codes.AlreadyExists, "RESOURCE_CONFLICT", grant.Job+" runs here already")
	}
	made := &attempt{grant: grant, finishing: make(chan struct{}), events: make(chan *driverv1.RunResponse)}
	made.ctx, made.cancel = context.WithCancelCause(ctx)
	if grant.CancelMode == jobv1.CancelMode_CANCEL_MODE_FINISH {
		made.finish()
	}
	d.attempts[name] = made
	d.running.Add(1)
	return made, run, nil
}

func (d *driver) end(one *attempt) {
	one.cancel(nil)
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.attempts, key{one.grant.Job, one.grant.Fence})
	d.running.Done()
}

// Run runs the handler beside the stream that tells of it: a handler that does not end keeps its place, whatever becomes of the call.
func (d *driver) Run(request *driverv1.RunRequest, stream grpc.ServerStreamingServer[driverv1.RunResponse]) error {
	one, run, err := d.begin(stream.Context(), request.Grant)
	if err != nil {
		return err
	}
	last := make(chan *driverv1.RunResponse, 1)
	go func() {
		defer d.end(one)
		last <- outcome(one, run)
	}()
	for {
		select {
		case event := <-one.events:
			if err := stream.Send(event); err != nil {
				return err // its context is over, which the handler sees too
			}
		case event := <-last:
			return stream.Send(event)
		}
	}
}

func outcome(one *attempt, run handler) *driverv1.RunResponse {
	result, err := run(one)
	switch cause := context.Cause(one.ctx); {
	case err == nil:
		data, err := proto.Marshal(result)
		if err != nil {
			return failed(err)
		}
		return &driverv1.RunResponse{Event: &driverv1.RunResponse_Succeeded{Succeeded: &jobv1.Succeeded{
			Outcome: &jobv1.Succeeded_Result{Result: data}, EndedEarly: one.ended(),
		}}}
	case cause != nil:
		return &driverv1.RunResponse{Event: &driverv1.RunResponse_Stopped{
			Stopped: &jobv1.Stopped{Error: statusOf(cause)},
		}}
	default:
		return failed(err)
	}
}

func failed(err error) *driverv1.RunResponse {
	return &driverv1.RunResponse{Event: &driverv1.RunResponse_Failed{Failed: statusOf(err)}}
}

func (d *driver) StopRun(_ context.Context, request *driverv1.StopRunRequest) (*driverv1.StopRunResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	one, ok := d.attempts[key{request.Job, request.Fence}]
	if !ok || one.grant.Attempt != request.Attempt {
		return &driverv1.StopRunResponse{}, nil
	}
	if request.Mode == jobv1.CancelMode_CANCEL_MODE_FINISH {
		if !finishable[one.grant.Method] {
			return nil, typed(codes.FailedPrecondition, "NOT_FINISHABLE", one.grant.Method+" cannot end early")
		}
		one.finish()
	} else {
		one.stop(typed(codes.Canceled, "CANCELLED", "the job was cancelled"))
	}
	return &driverv1.StopRunResponse{Found: true}, nil
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"
)

var callPath = regexp.MustCompile(`^/v1/(services/[^/:]+):call/([A-Za-z0-9_.]+)/([A-Za-z0-9_]+)$`)

// callPlugin calls any method that the gateway knows, those of plug-ins too: what it takes and gives is found by reflection. Requests
// that are a stream are several JSON values in the body, answers that are one are a stream like any other.
func (a *api) callPlugin(w http.ResponseWriter, r *http.Request) (bool, error) {
	found := callPath.FindStringSubmatch(r.URL.Path)
	if found == nil {
		return false, nil
	}
	if r.Method != http.MethodPost {
		notAllowed(w, r, []string{http.MethodPost})
		return true, nil
	}
	service, name := found[2], found[3]
	method, err := a.types.method(service, name)
	if errors.Is(err, protoregistry.NotFound) {
		return true, newProblem(http.StatusNotFound, codes.NotFound, methodUnknown,
			fmt.Sprintf("no driver here knows the method %s/%s; check its spelling", service, name))
	}
	if err != nil {
		return true, err
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	if ctx, err = runtime.AnnotateContext(ctx, a.mux, r, "/"+service+"/"+name); err != nil {
		return true, err
	}
	ctx = metadata.AppendToOutgoingContext(withoutService(ctx), "onecontainer-service", found[1])
	codec := a.lines
	if accepts(r, eventStream) {
		codec = a.events
	}
	shape := &grpc.StreamDesc{ClientStreams: method.IsStreamingClient(), ServerStreams: method.IsStreamingServer()}
	stream, err := a.conn.NewStream(ctx, shape, "/"+service+"/"+name)
	if err != nil {
		return true, err
	}
	if err := send(stream, codec, method, r.Body, found[1]); err != nil {
		return true, err
	}
	receive := func() (*dynamicpb.Message, error) {
		message := dynamicpb.NewMessage(method.Output())
		return message, stream.RecvMsg(message)
	}
	message, err := receive()
	if err != nil && !errors.Is(err, io.EOF) {
		return true, err
	}
	if !method.IsStreamingServer() {
		return true, a.answer(w, http.StatusOK, message)
	}
	w.Header().Set("Content-Type", codec.StreamContentType(nil))
	unbuffered(w.Header())
	flush := http.NewResponseController(w)
	for ; err == nil; message, err = receive() {
		text, broken := codec.Marshal(map[string]any{"result": message})
		if broken != nil {
			err = broken
			break
		}
		if _, broken = w.Write(append(text, codec.Delimiter()...)); broken != nil {
			return true, nil // nobody listens any more
		}
		_ = flush.Flush()
	}
	switch {
	case !errors.Is(err, io.EOF):
		_, _ = w.Write(append(codec.failure(problemOf(err)), codec.Delimiter()...))
	case codec.events:
		_, _ = w.Write([]byte(endEvent))
	}
	return true, nil
}

// withoutService leaves out what a header said: the path says it.
func withoutService(ctx context.Context) context.Context {
	known, _ := metadata.FromOutgoingContext(ctx)
	known = known.Copy()
	known.Delete("onecontainer-service")
	return metadata.NewOutgoingContext(ctx, known)
}

// send sends the JSON values of a body; one that is no stream may be missing, and is then empty.
func send(stream grpc.ClientStream, codec *codec, method protoreflect.MethodDescriptor, body io.Reader, service string) error {
	values := json.NewDecoder(body)
	for count := 0; ; count++ {
		message := dynamicpb.NewMessage(method.Input())
		err := codec.decode(values, message)
		ended := errors.Is(err, io.EOF)
		if err != nil && !ended {
			return err
		}
		if ended && (count > 0 || method.IsStreamingClient()) {
			break
		}
		if !ended && !method.IsStreamingClient() {
			if err := alone(values); err != nil {
				return err
			}
		}
		nameService(message, service)
		if err := stream.SendMsg(message); err != nil {
			if errors.Is(err, io.EOF) {
				return nil // the answer tells why
			}
			return err
		}
		if !method.IsStreamingClient() {
			break
		}
	}
	return stream.CloseSend()
}

// nameService fills the field by which a contract of ours names the service, if the caller has left it out.
func nameService(message *dynamicpb.Message, service string) {
	field := message.Descriptor().Fields().ByName("service")
	if field != nil && field.Number() == 1 && field.Kind() == protoreflect.StringKind && !field.IsList() && !message.Has(field) {
		message.Set(field, protoreflect.ValueOfString(service))
	}
}

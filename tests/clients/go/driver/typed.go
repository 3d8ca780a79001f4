package main

import (
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// typed makes an error with a reason of onecontainer.api.error.v1.Reason, without its prefix: callers decide by it.
func typed(code codes.Code, reason, message string) error {
	made, err := status.New(code, message).WithDetails(&errdetails.ErrorInfo{
		Reason: reason, Domain: "onecontainer.dev", Metadata: map[string]string{"hop": "sidecar"},
	})
	if err != nil {
		return status.Error(code, message)
	}
	return made.Err()
}

// statusOf is the google.rpc.Status of an error, for the last event of a Run.
func statusOf(err error) *statuspb.Status { return status.Convert(err).Proto() }

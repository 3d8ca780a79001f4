package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/grpclog"
	"google.golang.org/grpc/status"
)

const (
	problemType = "application/problem+json"
	// restDomain is the domain of the reasons that arise here, not in the gateway.
	restDomain = "rest.onecontainer.dev"
)

// Reasons of our own domain; docs/rest.md tells what to do about each.
const (
	routeNotFound      = "ROUTE_NOT_FOUND"
	methodNotAllowed   = "METHOD_NOT_ALLOWED"
	bodyInvalid        = "BODY_INVALID"
	bodyTooLarge       = "BODY_TOO_LARGE"
	queryInvalid       = "QUERY_INVALID"
	requestInvalid     = "REQUEST_INVALID"
	originRefused      = "ORIGIN_REFUSED"
	hostRefused        = "HOST_REFUSED"
	credentialsMissing = "CREDENTIALS_MISSING"
	rangeInvalid       = "RANGE_NOT_SATISFIABLE"
	preconditionFailed = "PRECONDITION_FAILED"
	methodUnknown      = "METHOD_UNKNOWN"
	gatewayUnreachable = "GATEWAY_UNREACHABLE"
	gatewayError       = "GATEWAY_ERROR"
)

// problem is an error as RFC 9457 has it, with what the gateway's status tells as members of its own.
type problem struct {
	Type       string            `json:"type"`
	Title      string            `json:"title"`
	Status     int               `json:"status"`
	Detail     string            `json:"detail"`
	Code       string            `json:"code"`
	Reason     string            `json:"reason"`
	Domain     string            `json:"domain"`
	Metadata   map[string]string `json:"metadata,omitempty"`
	Violations []violation       `json:"violations,omitempty"`
	Resource   *resource         `json:"resource,omitempty"`
	RetryAfter *float64          `json:"retryAfter,omitempty"` // seconds
}

type violation struct {
	Field       string `json:"field"`
	Description string `json:"description"`
}

type resource struct {
	Type string `json:"type"`
	Name string `json:"name"`
}

// newProblem is one that arises here.
func newProblem(httpStatus int, code codes.Code, reason, detail string) *problem {
	return &problem{Status: httpStatus, Code: codeName(code), Reason: reason, Domain: restDomain, Detail: detail}
}

// on names the field that is wrong.
func (p *problem) on(field, description string) *problem {
	p.Violations = append(p.Violations, violation{field, description})
	return p
}

// Error makes it an error that handlers may return.
func (p *problem) Error() string { return p.Detail }

// problemOf translates whatever a handler ended with.
func problemOf(err error) *problem {
	var ours *problem
	if errors.As(err, &ours) {
		return ours
	}
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return newProblem(http.StatusRequestEntityTooLarge, codes.ResourceExhausted, bodyTooLarge,
			fmt.Sprintf("the body is over %d bytes: upload it as an artifact (POST /v1/artifacts) and pass its name", tooLarge.Limit))
	}
	var wrapped *runtime.HTTPStatusError
	if errors.As(err, &wrapped) {
		return newProblem(wrapped.HTTPStatus, codes.InvalidArgument, requestInvalid, wrapped.Error())
	}
	if errors.Is(err, context.Canceled) {
		err = status.FromContextError(context.Canceled).Err()
	}
	found, _ := status.FromError(err)
	if found == nil {
		found = status.New(codes.Unknown, err.Error())
	}
	if marked := unmark(found.Message()); marked != nil {
		return marked
	}
	if isStopping(found) {
		found = status.New(codes.Unavailable, "it ended the call, as one does that is stopping")
	}
	return problemOfStatus(found)
}

func problemOfStatus(st *status.Status) *problem {
	p := &problem{Status: httpStatus(st.Code()), Code: codeName(st.Code()), Detail: st.Message()}
	for _, detail := range st.Details() {
		switch found := detail.(type) {
		case *errdetails.ErrorInfo:
			p.Reason, p.Domain, p.Metadata = found.Reason, found.Domain, found.Metadata
		case *errdetails.BadRequest:
			for _, one := range found.FieldViolations {
				p.on(one.Field, one.Description)
			}
		case *errdetails.RetryInfo:
			seconds := found.GetRetryDelay().AsDuration().Seconds()
			p.RetryAfter = &seconds
		case *errdetails.ResourceInfo:
			p.Resource = &resource{found.ResourceType, found.ResourceName}
		}
	}
	switch {
	case p.Reason == "MESSAGE_TOO_LARGE":
		p.Status = http.StatusRequestEntityTooLarge
	case p.Reason == "" && isTooLarge(st):
		return newProblem(http.StatusRequestEntityTooLarge, st.Code(), bodyTooLarge,
			st.Message()+": upload large data as an artifact (POST /v1/artifacts) and pass its name")
	case p.Reason == "":
		p.Domain = restDomain
		p.Reason = reasonOf(st.Code())
		if st.Code() == codes.Unavailable {
			second := 1.0
			p.RetryAfter = &second
			p.Detail = "the gateway does not answer: " + p.Detail
		}
	}
	return p
}

// isStopping says whether the gateway's server ended the call because it reached it while it stops. gRPC calls that CANCELLED, as if the
// caller had given up, which is an end with the context's own text here.
func isStopping(st *status.Status) bool {
	return st.Code() == codes.Canceled && len(st.Details()) == 0 && st.Message() != context.Canceled.Error()
}

// isTooLarge says whether gRPC refused the request of a call for its size: here, or in the gateway's server.
func isTooLarge(st *status.Status) bool {
	return st.Code() == codes.ResourceExhausted && strings.Contains(st.Message(), "message larger than max") &&
		!strings.Contains(st.Message(), "grpc: received") // that is the answer
}

// reasonOf is for a status without an ErrorInfo: gRPC itself made it, on the way or in the gateway's server.
func reasonOf(code codes.Code) string {
	switch code {
	case codes.Unavailable:
		return gatewayUnreachable
	case codes.InvalidArgument, codes.OutOfRange:
		return requestInvalid
	case codes.Unimplemented:
		return methodUnknown
	case codes.DeadlineExceeded:
		return "DEADLINE_EXCEEDED"
	case codes.Canceled:
		return "CANCELLED"
	}
	return gatewayError
}

// httpStatus is as googleapis maps codes, but for a state that does not allow the call: that is a conflict with it.
func httpStatus(code codes.Code) int {
	if code == codes.FailedPrecondition {
		return http.StatusConflict
	}
	return runtime.HTTPStatusFromCode(code)
}

// codeName is the code as the contracts write it.
func codeName(code codes.Code) string {
	if code == codes.Canceled {
		return "CANCELLED"
	}
	var name strings.Builder
	for index, letter := range code.String() {
		if index > 0 && letter >= 'A' && letter <= 'Z' && code != codes.OK {
			name.WriteByte('_')
		}
		name.WriteRune(letter)
	}
	return strings.ToUpper(name.String())
}

// json is its body, and fills what follows from the rest.
func (p *problem) json() []byte {
	p.Type = "urn:onecontainer:reason:" + strings.ReplaceAll(strings.ToLower(p.Reason), "_", "-")
	p.Title = strings.ToUpper(p.Reason[:1]) + strings.ReplaceAll(strings.ToLower(p.Reason[1:]), "_", " ")
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(p); err != nil {
		panic(err) // text and numbers always encode
	}
	return bytes.TrimRight(body.Bytes(), "\n")
}

// write answers with it.
func (p *problem) write(w http.ResponseWriter) {
	header := w.Header()
	for _, name := range []string{"Transfer-Encoding", "Trailer", "Content-Length", "Etag", "Last-Modified", "Content-Disposition", "Accept-Ranges"} {
		header.Del(name)
	}
	header.Set("Content-Type", problemType)
	header.Set("Cache-Control", "no-store")
	if p.RetryAfter != nil {
		header.Set("Retry-After", strconv.Itoa(int(math.Ceil(*p.RetryAfter))))
	}
	if p.Status == http.StatusUnauthorized {
		header.Set("WWW-Authenticate", "Bearer")
	}
	body := append(p.json(), '\n')
	header.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(p.Status)
	_, _ = w.Write(body)
}

// What a decoder says reaches the error handler only as the text of a status: mark packs a problem into that text.
const mark = "\x1f"

// told keeps out of the log what grpc-gateway says of requests that cannot be read: the caller has it as a problem.
type told struct{ grpclog.LoggerV2 }

func (l told) Errorf(format string, arguments ...any) {
	if text := fmt.Sprintf(format, arguments...); !strings.Contains(text, mark) {
		l.LoggerV2.Errorf("%s", text)
	}
}

func marked(reason, field, detail string) error {
	return errors.New(mark + reason + mark + field + mark + detail)
}

func unmark(text string) *problem {
	_, rest, found := strings.Cut(text, mark)
	parts := strings.SplitN(rest, mark, 3)
	if !found || len(parts) != 3 {
		return nil
	}
	if parts[0] == bodyTooLarge {
		return newProblem(http.StatusRequestEntityTooLarge, codes.ResourceExhausted, bodyTooLarge, parts[2])
	}
	p := newProblem(http.StatusBadRequest, codes.InvalidArgument, parts[0], parts[2])
	if parts[1] != "" {
		p.Detail = parts[1] + ": " + parts[2]
		p.on(parts[1], parts[2])
	}
	return p
}

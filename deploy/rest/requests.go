package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
)

// What of a request would be lost, or break, on the way to gRPC is refused here, before anything else looks at it.

const (
	credentialsInvalid = "CREDENTIALS_INVALID"

	// strangersKey is metadata that says: callers come from other machines, so none is trusted for being on the gateway's own.
	strangersKey = "onecontainer-strangers"

	timeoutHeader   = "Grpc-Timeout"
	resumeHeader    = "Last-Event-Id"
	requestIDHeader = "X-Request-Id"
	longestTimeout  = "99999999S" // three years, and what gRPC can say in seconds
)

// strangers marks every call of a program that others than this machine's own users can reach.
type strangers struct{}

func (strangers) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{strangersKey: "true"}, nil
}

func (strangers) RequireTransportSecurity() bool { return false }

// checkTexts checks all text that goes on as metadata or in a message. Its errors are problems.
func checkTexts(r *http.Request) error {
	for _, value := range r.Header.Values("Authorization") {
		if !isMetadata(value) {
			// Left out, as grpc-gateway would, the call would be one without credentials.
			return newProblem(http.StatusUnauthorized, codes.Unauthenticated, credentialsInvalid,
				"the header Authorization has other characters than printable ASCII: send `Authorization: Bearer TOKEN`")
		}
	}
	for name := range passed {
		for _, value := range r.Header.Values(name) {
			if !isMetadata(value) {
				return badHeader(http.CanonicalHeaderKey(name), "has other characters than printable ASCII")
			}
		}
	}
	for _, name := range []string{"Idempotency-Key", "Content-Type"} {
		if !utf8.ValidString(r.Header.Get(name)) {
			return badHeader(name, "is not UTF-8")
		}
	}
	if !utf8.ValidString(r.URL.Path) {
		return newProblem(http.StatusBadRequest, codes.InvalidArgument, requestInvalid, "the path is not UTF-8")
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return marked(queryInvalid, "", "the parameters cannot be read: "+err.Error())
	}
	for key, values := range query {
		for _, value := range append(values, key) {
			if !utf8.ValidString(value) {
				return marked(queryInvalid, strings.ToValidUTF8(key, "\ufffd"), "is not UTF-8")
			}
		}
	}
	return nil
}

func badHeader(name, description string) error {
	return newProblem(http.StatusBadRequest, codes.InvalidArgument, requestInvalid, "the header "+name+" "+description).on(name, description)
}

// isMetadata says whether gRPC can carry a text: printable ASCII.
func isMetadata(value string) bool {
	for index := range len(value) {
		if value[index] < 0x20 || value[index] > 0x7e {
			return false
		}
	}
	return true
}

var (
	timeoutText  = regexp.MustCompile(`^(\d+)([HMSmun])$`)
	timeoutUnits = map[string]time.Duration{
		"H": time.Hour, "M": time.Minute, "S": time.Second, "m": time.Millisecond, "u": time.Microsecond, "n": time.Nanosecond,
	}
)

// boundTimeout checks the header Grpc-Timeout; a longer time than can be said is the longest.
func boundTimeout(header http.Header) error {
	text := header.Get(timeoutHeader)
	if text == "" {
		return nil
	}
	parts := timeoutText.FindStringSubmatch(text)
	if parts == nil {
		return badHeader(timeoutHeader, fmt.Sprintf("is %q, and no time such as 5S or 500m", readable(text)))
	}
	if strings.Trim(parts[1], "0") == "" {
		return badHeader(timeoutHeader, "is no time at all: give one of more than 0, or leave it out")
	}
	longest, _ := strconv.ParseInt(strings.TrimSuffix(longestTimeout, "S"), 10, 64)
	count, err := strconv.ParseInt(parts[1], 10, 64)
	if err != nil || count > int64(time.Duration(longest)*time.Second/timeoutUnits[parts[2]]) {
		header.Set(timeoutHeader, longestTimeout)
	}
	return nil
}

var watchPath = regexp.MustCompile(`^/v1/jobs/[^/:]+:watch$`)

// resume makes a query parameter of where a page's EventSource was when its connection broke.
func resume(r *http.Request) error {
	last := r.Header.Get(resumeHeader)
	query := r.URL.Query()
	if last == "" || !watchPath.MatchString(r.URL.Path) || query.Has("fromSequence") || query.Has("from_sequence") {
		return nil
	}
	if _, err := strconv.ParseInt(last, 10, 64); err != nil {
		return badHeader("Last-Event-ID", "is not the `id` of an event of this stream")
	}
	query.Set("fromSequence", last)
	r.URL.RawQuery = query.Encode()
	return nil
}

// checked makes a request ready, or says why it is refused.
func checked(r *http.Request) error {
	if err := checkTexts(r); err != nil {
		return err
	}
	return boundTimeout(r.Header)
}

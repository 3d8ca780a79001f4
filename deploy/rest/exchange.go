package main

import (
	"context"
	"io"
	"net/http"
	"sync"

	"google.golang.org/grpc/status"
)

// exchange is one request and its answer: what grpc-gateway's hooks learn apart from each other comes together here.
type exchange struct {
	http.ResponseWriter
	codec *codec // how the answer is written
	mutex sync.Mutex
	bad   error // why the body could not be read
	ended error // what the stream ended with
	wrote bool
	mute  bool // the answer is complete, whatever else is written
}

// endEvent is the good end of a stream of events.
const endEvent = "event: end\ndata: {}\n\n"

type exchangeKey struct{}

// requestBody is a request's body that knows its exchange.
type requestBody struct {
	io.ReadCloser
	exchange *exchange
}

func newExchange(w http.ResponseWriter, r *http.Request, codec *codec) (*exchange, *http.Request) {
	found := &exchange{ResponseWriter: w, codec: codec}
	r = r.WithContext(context.WithValue(r.Context(), exchangeKey{}, found))
	r.Body = &requestBody{r.Body, found}
	return found, r
}

func (e *exchange) fail(err error) {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	if e.bad == nil {
		e.bad = err
	}
}

// streamFailed is grpc-gateway's hook for the error that a stream ended with.
func streamFailed(ctx context.Context, err error) *status.Status {
	found, _ := status.FromError(err)
	if e, ok := ctx.Value(exchangeKey{}).(*exchange); ok {
		e.ended = err
		e.mutex.Lock()
		defer e.mutex.Unlock()
		if e.bad != nil {
			e.ended = e.bad
			return status.New(found.Code(), e.bad.Error())
		}
	}
	return found
}

// Unwrap is for http.ResponseController.
func (e *exchange) Unwrap() http.ResponseWriter { return e.ResponseWriter }

func (e *exchange) WriteHeader(code int) {
	if e.mute || e.wrote {
		return
	}
	if e.Header().Get("Content-Type") == brokenStream {
		// A stream that failed before its first message is answered like any other failed call.
		e.wrote, e.mute = true, true
		problemOf(e.ended).write(e.ResponseWriter)
		return
	}
	e.wrote = true
	unbuffered(e.Header())
	e.ResponseWriter.WriteHeader(code)
}

// unbuffered tells caches and proxies that an answer that is a stream is to be passed on as it comes.
func unbuffered(header http.Header) {
	if kind := header.Get("Content-Type"); kind == eventStream || kind == jsonLines {
		header.Set("Cache-Control", "no-cache")
		header.Set("X-Accel-Buffering", "no")
	}
}

func (e *exchange) Write(data []byte) (int, error) {
	if e.mute {
		return len(data), nil
	}
	if !e.wrote {
		e.WriteHeader(http.StatusOK)
	}
	return e.ResponseWriter.Write(data)
}

// finish ends an answer that grpc-gateway thinks is complete.
func (e *exchange) finish() {
	if e.mute {
		return
	}
	stream := e.Header().Get("Transfer-Encoding") == "chunked"
	e.mutex.Lock()
	bad := e.bad
	e.mutex.Unlock()
	switch {
	case !stream:
	case bad != nil && e.ended == nil && !e.wrote:
		problemOf(bad).write(e.ResponseWriter)
	case bad != nil && e.ended == nil:
		_, _ = e.Write(append(e.codec.failure(problemOf(bad)), e.codec.Delimiter()...))
	case e.ended != nil:
	default:
		if !e.wrote { // a stream of nothing
			e.Header().Set("Content-Type", e.codec.StreamContentType(nil))
		}
		if e.codec.events {
			// A browser's EventSource would connect again at the end of the answer: this tells the page to close it.
			_, _ = e.Write([]byte(endEvent))
		}
	}
}

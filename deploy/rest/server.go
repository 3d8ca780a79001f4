package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"github.com/rs/cors"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"

	aiv1 "github.com/onecontainer/onecontainer/deploy/rest/gen/onecontainer/api/ai/v1"
	artifactv1 "github.com/onecontainer/onecontainer/deploy/rest/gen/onecontainer/api/artifact/v1"
	dbv1 "github.com/onecontainer/onecontainer/deploy/rest/gen/onecontainer/api/db/v1"
	jobv1 "github.com/onecontainer/onecontainer/deploy/rest/gen/onecontainer/api/job/v1"
	managementv1 "github.com/onecontainer/onecontainer/deploy/rest/gen/onecontainer/api/management/v1"
	mediav1 "github.com/onecontainer/onecontainer/deploy/rest/gen/onecontainer/api/media/v1"
)

// readyTimeout is how long /readyz waits for the gateway.
const readyTimeout = 5 * time.Second

// registrations are the routes that grpc-gateway has generated from the contracts.
var registrations = []func(context.Context, *runtime.ServeMux, *grpc.ClientConn) error{
	managementv1.RegisterManagementServiceHandler,
	jobv1.RegisterJobServiceHandler,
	artifactv1.RegisterArtifactServiceHandler,
	aiv1.RegisterInferenceServiceHandler,
	dbv1.RegisterDatabaseServiceHandler,
	mediav1.RegisterMediaServiceHandler,
}

// api is everything below /v1.
type api struct {
	config    *config
	mux       *runtime.ServeMux
	conn      *grpc.ClientConn
	types     *types
	lines     *codec
	events    *codec
	routes    []route
	artifacts artifactv1.ArtifactServiceClient
	inference aiv1.InferenceServiceClient
}

func newAPI(life context.Context, config *config, conn *grpc.ClientConn) (*api, error) {
	known := newTypes(conn)
	a := &api{
		config: config, conn: conn, types: known,
		lines: &codec{types: known}, events: &codec{types: known, events: true},
		artifacts: artifactv1.NewArtifactServiceClient(conn), inference: aiv1.NewInferenceServiceClient(conn),
	}
	a.mux = runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, &codec{types: known, single: true}),
		runtime.WithMarshalerOption(jsonLines, a.lines),
		runtime.WithMarshalerOption(eventStream, a.events),
		runtime.SetQueryParameterParser(queryParser{}),
		runtime.WithIncomingHeaderMatcher(inward),
		runtime.WithOutgoingHeaderMatcher(outward),
		runtime.WithOutgoingTrailerMatcher(outward),
		runtime.WithErrorHandler(func(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, _ *http.Request, err error) {
			problemOf(err).write(w)
		}),
		runtime.WithStreamErrorHandler(streamFailed),
		runtime.WithRoutingErrorHandler(func(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, code int) {
			a.unrouted(w, r, code)
		}),
		// A POST is a POST, whatever its Content-Type and headers say.
		runtime.WithDisablePathLengthFallback(),
		runtime.WithDisableHTTPMethodOverride(),
	)
	for _, register := range registrations {
		if err := register(life, a.mux, conn); err != nil {
			return nil, err
		}
	}
	var err error
	a.routes, err = contractRoutes()
	return a, err
}

// passed are the headers that go to the gateway as metadata under the same name, and come back from it.
var passed = map[string]bool{
	"traceparent": true, "tracestate": true, "baggage": true, "x-request-id": true, "onecontainer-service": true,
}

func inward(name string) (string, bool) {
	name = strings.ToLower(name)
	return name, passed[name] // grpc-gateway passes Authorization itself
}

func outward(name string) (string, bool) {
	name = http.CanonicalHeaderKey(name)
	return name, passed[strings.ToLower(name)] && name != requestIDHeader // that is the caller's own, and comes back anyway
}

// The URL names the service of a stream whose messages name it too.
var streamOf = regexp.MustCompile(`^/v1/(services/[^/:]+)(/(?:ai:predictStream|tables:bulkInsert))$`)

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r = r.Clone(r.Context())
	if err := checked(r); err != nil {
		problemOf(err).write(w)
		return
	}
	if id := r.Header.Get(requestIDHeader); id != "" {
		w.Header().Set(requestIDHeader, id)
	}
	if len(r.URL.Path) > len("/v1/") {
		r.URL.Path = strings.TrimSuffix(r.URL.Path, "/")
	}
	events := accepts(r, eventStream)
	if events {
		if err := resume(r); err != nil {
			problemOf(err).write(w)
			return
		}
	}
	body := r.Body
	if !a.isUpload(r) {
		// Base64 makes 4 characters of 3 bytes, and there are names around them.
		r.Body = http.MaxBytesReader(w, body, a.config.maxMessage/3*4+mib)
	}
	if a.own(w, r) {
		return
	}
	codec := a.lines
	r.Header.Set("Accept", jsonLines) // grpc-gateway looks for one exact text
	if events {
		codec = a.events
		r.Header.Set("Accept", eventStream)
	}
	if found := streamOf.FindStringSubmatch(r.URL.Path); found != nil {
		if found[1] != "services/-" {
			r.Header.Set("Onecontainer-Service", found[1])
		}
		r.URL.Path = "/v1/services/-" + found[2]
		_ = http.NewResponseController(w).EnableFullDuplex() // HTTP/2 always is
	}
	if r.Method == http.MethodHead {
		r.Method = http.MethodGet // the server leaves the body out
	}
	if r.Method != http.MethodGet {
		// JSON is read whatever it says; only a stream of requests is several values.
		r.Header.Set("Content-Type", "application/json")
		if slices.ContainsFunc(a.routes, func(one route) bool { return one.stream && one.path.MatchString(r.URL.Path) }) {
			r.Header.Set("Content-Type", jsonLines)
		}
	}
	exchange, r := newExchange(w, r, codec)
	a.mux.ServeHTTP(exchange, r)
	exchange.finish()
}

// own answers what is not a generated route, and says whether it was one.
func (a *api) own(w http.ResponseWriter, r *http.Request) bool {
	for _, one := range []func(http.ResponseWriter, *http.Request) (bool, error){a.callPlugin, a.upload, a.download, a.predictImage} {
		done, err := one(w, r)
		if err != nil {
			problemOf(err).write(w)
		}
		if done || err != nil {
			return true
		}
	}
	return false
}

// unrouted answers what has no route, or none for its method.
func (a *api) unrouted(w http.ResponseWriter, r *http.Request, code int) {
	if methods := allowed(a.routes, r.URL.Path); code == http.StatusMethodNotAllowed && len(methods) > 0 {
		notAllowed(w, r, methods)
		return
	}
	newProblem(http.StatusNotFound, codes.NotFound, routeNotFound,
		fmt.Sprintf("%s %s is no route; /docs lists them", r.Method, r.URL.Path)).write(w)
}

func notAllowed(w http.ResponseWriter, r *http.Request, methods []string) {
	w.Header().Set("Allow", strings.Join(methods, ", "))
	newProblem(http.StatusMethodNotAllowed, codes.Unimplemented, methodNotAllowed,
		fmt.Sprintf("%s is not possible here; %s is", r.Method, strings.Join(methods, ", "))).write(w)
}

// accepts says whether the client asks for this very type.
func accepts(r *http.Request, wanted string) bool {
	for _, value := range r.Header.Values("Accept") {
		for _, one := range strings.Split(value, ",") {
			name, _, _ := strings.Cut(one, ";")
			if strings.TrimSpace(name) == wanted {
				return true
			}
		}
	}
	return false
}

// newHandler is all that is served.
func newHandler(life context.Context, config *config, conn *grpc.ClientConn) (http.Handler, error) {
	calls, err := newAPI(life, config, conn)
	if err != nil {
		return nil, err
	}
	pages, err := newPages()
	if err != nil {
		return nil, err
	}
	health := grpc_health_v1.NewHealthClient(conn)
	var handler http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch path := r.URL.Path; {
		case strings.HasPrefix(path, "/v1/") || path == "/v1":
			if config.loopback || r.Header.Get("Authorization") != "" {
				calls.ServeHTTP(w, r)
				return
			}
			// The gateway may trust everybody on its own machine: whoever comes from another one shows who they are.
			newProblem(http.StatusUnauthorized, codes.Unauthenticated, credentialsMissing, "send `Authorization: Bearer TOKEN`").write(w)
		case path == "/healthz":
			writeJSON(w, map[string]string{"status": "ok", "version": version})
		case path == "/readyz":
			ready(w, r, health)
		case !pages.serve(w, r):
			calls.unrouted(w, r, http.StatusNotFound)
		}
	})
	handler, err = guarded(config, handler)
	return recovered(handler), err
}

// ready tells whether calls would come through.
func ready(w http.ResponseWriter, r *http.Request, health grpc_health_v1.HealthClient) {
	ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
	defer cancel()
	found, err := health.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		problemOf(err).write(w)
		return
	}
	if found.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		newProblem(http.StatusServiceUnavailable, codes.Unavailable, gatewayUnreachable, "the gateway is "+found.Status.String()).write(w)
		return
	}
	writeJSON(w, map[string]string{"status": "ready"})
}

func writeJSON(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(value)
}

// guarded keeps the pages of other sites out, but for those that the operator names.
//
// On loopback the gateway asks for no credentials and JSON is read whatever its Content-Type: without this, any page that a user of this
// machine looks at could call it. A name that leads to loopback (DNS rebinding) is no way around either.
func guarded(config *config, handler http.Handler) (http.Handler, error) {
	everywhere := len(config.origins) == 1 && config.origins[0] == "*"
	if !everywhere {
		protection := http.NewCrossOriginProtection()
		for _, origin := range config.origins {
			if err := protection.AddTrustedOrigin(origin); err != nil {
				return nil, fmt.Errorf("--cors-origins: %w", err)
			}
		}
		protection.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			origin := r.Header.Get("Origin")
			if origin == "" { // the browser has told no more than that it is another one
				origin = "other sites"
			}
			newProblem(http.StatusForbidden, codes.PermissionDenied, originRefused,
				"pages of "+origin+" may not call; the operator allows origins with --cors-origins").write(w)
		}))
		handler = protection.Handler(handler)
	}
	if len(config.origins) > 0 {
		handler = cors.New(cors.Options{
			AllowedOrigins: config.origins,
			AllowedMethods: []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"},
			AllowedHeaders: []string{
				"Accept", "Authorization", "Baggage", "Content-Type", timeoutHeader, "Idempotency-Key", "If-Match", "If-Modified-Since",
				"If-None-Match", "If-Range", "If-Unmodified-Since", resumeHeader, "Onecontainer-Service", "Range", "Traceparent", "Tracestate",
				requestIDHeader,
			},
			ExposedHeaders: []string{
				"Accept-Ranges", "Allow", "Content-Disposition", "Content-Range", "Etag", "Location", "Repr-Digest", "Retry-After", "Traceparent",
				requestIDHeader,
			},
			MaxAge: 600,
		}).Handler(handler)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if config.loopback && !config.knows(r.Host) {
			newProblem(http.StatusMisdirectedRequest, codes.PermissionDenied, hostRefused,
				fmt.Sprintf("this is not called %q; the operator adds names with --hosts", r.Host)).write(w)
			return
		}
		handler.ServeHTTP(w, r)
	}), nil
}

// knows says whether a Host header names this machine.
func (c *config) knows(host string) bool {
	name := host
	if found, _, err := net.SplitHostPort(host); err == nil {
		name = found
	}
	if isLoopback(name) || strings.HasSuffix(name, ".localhost") {
		return true
	}
	for _, one := range c.hosts {
		if strings.EqualFold(one, name) {
			return true
		}
	}
	return false
}

// recovered answers a defect of ours like any other error; the log has its stack.
func recovered(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if found := recover(); found != nil {
				if found == http.ErrAbortHandler {
					panic(found)
				}
				log.Printf("%s %s: %v\n%s", r.Method, r.URL.Path, found, debug.Stack())
				newProblem(http.StatusInternalServerError, codes.Internal, gatewayError, "an unforeseen error; the log has it").write(w)
			}
		}()
		handler.ServeHTTP(w, r)
	})
}

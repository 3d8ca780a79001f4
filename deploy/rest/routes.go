package main

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"github.com/grpc-ecosystem/grpc-gateway/v2/utilities"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	aiv1 "github.com/onecontainer/onecontainer/deploy/rest/gen/onecontainer/api/ai/v1"
	artifactv1 "github.com/onecontainer/onecontainer/deploy/rest/gen/onecontainer/api/artifact/v1"
	dbv1 "github.com/onecontainer/onecontainer/deploy/rest/gen/onecontainer/api/db/v1"
	jobv1 "github.com/onecontainer/onecontainer/deploy/rest/gen/onecontainer/api/job/v1"
	managementv1 "github.com/onecontainer/onecontainer/deploy/rest/gen/onecontainer/api/management/v1"
	mediav1 "github.com/onecontainer/onecontainer/deploy/rest/gen/onecontainer/api/media/v1"
)

// contracts are the files with the services that registrations serves.
var contracts = []protoreflect.FileDescriptor{
	managementv1.File_onecontainer_api_management_v1_management_service_proto,
	jobv1.File_onecontainer_api_job_v1_job_service_proto,
	artifactv1.File_onecontainer_api_artifact_v1_artifact_proto,
	aiv1.File_onecontainer_api_ai_v1_inference_service_proto,
	dbv1.File_onecontainer_api_db_v1_database_proto,
	mediav1.File_onecontainer_api_media_v1_media_proto,
}

// route is an HTTP method and the paths that it is for.
type route struct {
	method string
	path   *regexp.Regexp
	stream bool // of requests: a body is several JSON values
}

var capital = regexp.MustCompile(`[A-Z]`)

var variable = regexp.MustCompile(`\{[^}=]+(?:=([^}]+))?\}`)

// contractRoutes are those of the contracts, for the header Allow: grpc-gateway does not tell its own.
func contractRoutes() ([]route, error) {
	found := []route{{method: "POST", path: regexp.MustCompile(`^/v1/artifacts$`)}, {method: "PUT", path: regexp.MustCompile(`^/v1/artifacts$`)}}
	for _, file := range contracts {
		services := file.Services()
		for index := range services.Len() {
			methods := services.Get(index).Methods()
			for index := range methods.Len() {
				rule, ok := proto.GetExtension(methods.Get(index).Options(), annotations.E_Http).(*annotations.HttpRule)
				if !ok || rule == nil {
					return nil, fmt.Errorf("%s has no google.api.http", methods.Get(index).FullName())
				}
				for _, one := range append([]*annotations.HttpRule{rule}, rule.AdditionalBindings...) {
					method, path := binding(one)
					found = append(found, route{method, regexp.MustCompile("^" + expression(path) + "$"), methods.Get(index).IsStreamingClient()})
				}
			}
		}
	}
	return found, nil
}

func binding(rule *annotations.HttpRule) (method, path string) {
	switch pattern := rule.Pattern.(type) {
	case *annotations.HttpRule_Get:
		return "GET", pattern.Get
	case *annotations.HttpRule_Post:
		return "POST", pattern.Post
	case *annotations.HttpRule_Put:
		return "PUT", pattern.Put
	case *annotations.HttpRule_Patch:
		return "PATCH", pattern.Patch
	case *annotations.HttpRule_Delete:
		return "DELETE", pattern.Delete
	}
	return "", ""
}

// expression is a path template as a regular expression: {name=services/*} is services/ and one segment.
func expression(template string) string {
	var out strings.Builder
	rest := template
	for {
		place := variable.FindStringSubmatchIndex(rest)
		if place == nil {
			return out.String() + regexp.QuoteMeta(rest)
		}
		inner := "*"
		if place[2] >= 0 {
			inner = rest[place[2]:place[3]]
		}
		out.WriteString(regexp.QuoteMeta(rest[:place[0]]))
		out.WriteString(strings.ReplaceAll(regexp.QuoteMeta(inner), `\*`, "[^/:]+"))
		rest = rest[place[1]:]
	}
}

// allowed are the methods that a path has; none: it is no route.
func allowed(routes []route, path string) []string {
	var methods []string
	for _, one := range routes {
		if one.path.MatchString(path) && !slices.Contains(methods, one.method) {
			methods = append(methods, one.method)
			if one.method == "GET" {
				methods = append(methods, "HEAD")
			}
		}
	}
	slices.Sort(methods)
	return methods
}

// queryParser is grpc-gateway's, but that it refuses what it would leave out without a word, and names what is wrong.
type queryParser struct{}

func (queryParser) Parse(message proto.Message, values url.Values, filter *utilities.DoubleArray) error {
	for key := range values {
		if !isField(message.ProtoReflect().Descriptor(), key) {
			return marked(queryInvalid, readable(key), "there is no such parameter")
		}
	}
	for key, value := range values {
		if isMask(message.ProtoReflect().Descriptor(), key) {
			for index := range value {
				value[index] = snakeCase(value[index])
			}
		}
	}
	inner := &runtime.DefaultQueryParser{}
	if err := inner.Parse(message, values, filter); err == nil {
		return nil
	}
	// Once more, one by one: which is it?
	for key, value := range values {
		if err := inner.Parse(message.ProtoReflect().New().Interface(), url.Values{key: value}, filter); err != nil {
			return marked(queryInvalid, key, unreadable(err))
		}
	}
	return marked(queryInvalid, "", "a parameter is given twice, under two names")
}

// unreadable says what is wrong with a parameter's value.
func unreadable(err error) string {
	var number *strconv.NumError
	if !errors.As(err, &number) {
		return readable(err.Error())
	}
	kind := "a number such as is wanted here"
	if number.Func == "ParseBool" {
		kind = "true or false"
	}
	return readable(fmt.Sprintf("%q is not %s", number.Num, kind))
}

// isMask says whether a key names a FieldMask of the request.
func isMask(message protoreflect.MessageDescriptor, key string) bool {
	field := message.Fields().ByJSONName(key)
	if field == nil {
		field = message.Fields().ByTextName(key)
	}
	return field != nil && field.Message() != nil && field.Message().FullName() == "google.protobuf.FieldMask"
}

// snakeCase makes of the paths of a mask as JSON has them those that messages have: appVersion is app_version. The keys of options are
// the caller's own.
func snakeCase(mask string) string {
	paths := strings.Split(mask, ",")
	for index, path := range paths {
		if field, key, found := strings.Cut(path, "."); found && field == "options" {
			paths[index] = field + "." + key
			continue
		}
		paths[index] = capital.ReplaceAllStringFunc(path, func(letter string) string { return "_" + strings.ToLower(letter) })
	}
	return strings.Join(paths, ",")
}

// isField says whether a.b.c, or a.b[key], leads to a field.
func isField(message protoreflect.MessageDescriptor, path string) bool {
	path, _, _ = strings.Cut(path, "[")
	for _, name := range strings.Split(path, ".") {
		if message == nil {
			return false
		}
		field := message.Fields().ByJSONName(name)
		if field == nil {
			field = message.Fields().ByTextName(name)
		}
		if field == nil {
			return false
		}
		message = field.Message()
	}
	return true
}

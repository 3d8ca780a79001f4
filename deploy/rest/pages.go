package main

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/getkin/kin-openapi/openapi2"
	"github.com/getkin/kin-openapi/openapi2conv"
	"github.com/swaggest/swgui/v5emb"
)

// generated is the OpenAPI v2 document that protoc-gen-openapiv2 makes of the contracts.
//
//go:embed gen/onecontainer.swagger.json
var generated []byte

// pages are what people look at: the OpenAPI documents and a page to try calls on, all from this program.
type pages struct {
	v2, v3 []byte
	docs   http.Handler
}

func newPages() (*pages, error) {
	second, err := documentV2()
	if err != nil {
		return nil, fmt.Errorf("OpenAPI v2: %w", err)
	}
	found := &pages{docs: v5emb.New("oneContainer", "/openapi.json", "/docs/")}
	if found.v2, err = json.Marshal(second); err != nil {
		return nil, err
	}
	found.v3, err = documentV3(found.v2)
	if err != nil {
		return nil, fmt.Errorf("OpenAPI v3: %w", err)
	}
	return found, nil
}

// serve answers for the pages, and says whether it did.
func (p *pages) serve(w http.ResponseWriter, r *http.Request) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return false
	}
	switch path := r.URL.Path; {
	case path == "/":
		writeJSON(w, map[string]string{
			"name": "oneContainer", "version": version, "docs": "/docs/", "openapi": "/openapi.json", "openapiV2": "/openapi.v2.json",
		})
	case path == "/openapi.json":
		writeDocument(w, p.v3)
	case path == "/openapi.v2.json":
		writeDocument(w, p.v2)
	case path == "/docs":
		http.Redirect(w, r, "/docs/", http.StatusMovedPermanently)
	case strings.HasPrefix(path, "/docs/"):
		w.Header().Set("Content-Security-Policy",
			"default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'")
		p.docs.ServeHTTP(w, r)
	default:
		return false
	}
	return true
}

func writeDocument(w http.ResponseWriter, text []byte) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(text)
}

type object = map[string]any

// documentV2 is the generated document with what it cannot know: errors, streams, raw bytes, calls of plug-ins.
func documentV2() (object, error) {
	var document object
	if err := json.Unmarshal(generated, &document); err != nil {
		return nil, err
	}
	document["info"] = object{
		"title": "oneContainer", "version": version,
		"description": "The public API as REST. docs/rest.md tells how streams, errors, raw bytes and calls of plug-ins work.",
		"license":     object{"name": "Apache-2.0"},
	}
	document["securityDefinitions"] = object{"bearer": object{
		"type": "apiKey", "name": "Authorization", "in": "header", "description": "`Bearer TOKEN`; on loopback none is needed.",
	}}
	document["security"] = []any{object{"bearer": []any{}}, object{}}
	definitions := document["definitions"].(object)
	definitions["Problem"] = problemSchema
	addExamples(definitions)
	paths := document["paths"].(object)
	nameServices(paths)
	for path, operations := range own {
		merged, _ := paths[path].(object)
		if merged == nil {
			merged = object{}
		}
		for method, operation := range operations.(object) {
			merged[method] = operation
		}
		paths[path] = merged
	}
	for _, operations := range paths {
		for method, found := range operations.(object) {
			if operation, ok := found.(object); ok && method != "parameters" {
				responses := operation["responses"].(object)
				if method == "patch" {
					operation["parameters"] = append(operation["parameters"].([]any), maskParameter)
				}
				responses["default"] = object{"description": "A problem, as RFC 9457 has it.", "schema": object{"$ref": "#/definitions/Problem"}}
				if answer, ok := responses["200"].(object); ok && isStream(answer) {
					operation["produces"] = []any{jsonLines, eventStream}
					answer["description"] = "A stream: a line of JSON for each message, `{\"result\": …}`, and at a bad end `{\"error\": problem}`. " +
						"Events instead of lines are the bare messages, and at the end an event `end` or `error`."
					answer["schema"].(object)["properties"].(object)["error"] = object{"$ref": "#/definitions/Problem"}
				}
			}
		}
	}
	return document, nil
}

// nameServices gives the paths of streams of requests, which in the contracts have `-` for the service, the variable that they take here.
func nameServices(paths object) {
	for path, operations := range paths {
		ending, found := strings.CutPrefix(path, "/v1/services/-/")
		if !found {
			continue
		}
		delete(paths, path)
		paths["/v1/services/{service}/"+ending] = operations
		for _, operation := range operations.(object) {
			parameters, _ := operation.(object)["parameters"].([]any)
			operation.(object)["parameters"] = append(parameters, streamParameter)
			operation.(object)["description"] = fmt.Sprint(operation.(object)["description"], "\n\nThe body is several JSON values, one after another.")
		}
	}
}

func isStream(answer object) bool {
	schema, _ := answer["schema"].(object)
	title, _ := schema["title"].(string)
	return strings.HasPrefix(title, "Stream result of")
}

// bareEvents tells that an event is a message with nothing around it.
func bareEvents(responses object) {
	answer, _ := responses["200"].(object)
	content, _ := answer["content"].(object)
	lines, _ := content[jsonLines].(object)
	if schema, ok := lines["schema"].(object); ok && content[eventStream] != nil {
		content[eventStream] = object{"schema": schema["properties"].(object)["result"]}
	}
}

// documentV3 is the same in OpenAPI 3, which can say more of bodies.
func documentV3(second []byte) ([]byte, error) {
	var old openapi2.T
	if err := json.Unmarshal(second, &old); err != nil {
		return nil, err
	}
	converted, err := openapi2conv.ToV3(&old)
	if err != nil {
		return nil, err
	}
	text, err := converted.MarshalJSON()
	if err != nil {
		return nil, err
	}
	var document object
	if err := json.Unmarshal(text, &document); err != nil {
		return nil, err
	}
	for path, operations := range document["paths"].(object) {
		for _, found := range operations.(object) {
			operation, ok := found.(object)
			if !ok {
				continue
			}
			if responses, ok := operation["responses"].(object); ok {
				bareEvents(responses)
				answer := responses["default"].(object)
				answer["content"] = object{problemType: object{"schema": object{"$ref": "#/components/schemas/Problem"}}}
			}
			if body, ok := operation["requestBody"].(object); ok {
				for kind, schema := range moreBodies[path] {
					body["content"].(object)[kind] = object{"schema": schema}
				}
			}
		}
	}
	return json.Marshal(document)
}

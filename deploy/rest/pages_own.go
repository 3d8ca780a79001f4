package main

// What of the OpenAPI documents the contracts do not tell.

var text = object{"type": "string"}

var problemSchema = object{
	"type":        "object",
	"description": "An error, as RFC 9457 has it. Programs decide by `reason`.",
	"required":    []any{"type", "title", "status", "detail", "code", "reason", "domain"},
	"properties": object{
		"type":   object{"type": "string", "description": "urn:onecontainer:reason:…"},
		"title":  object{"type": "string", "description": "The reason in words."},
		"status": object{"type": "integer", "format": "int32", "description": "HTTP status."},
		"detail": object{"type": "string", "description": "What happened and what to do, for people."},
		"code":   object{"type": "string", "description": "The gRPC code, as NOT_FOUND: how to react."},
		"reason": object{"type": "string", "description": "What happened, as RESOURCE_NOT_FOUND (onecontainer.api.error.v1.Reason)."},
		"domain": object{"type": "string", "description": "Whose reason: onecontainer.dev, or rest.onecontainer.dev for what arises before the gateway."},
		"metadata": object{
			"type": "object", "additionalProperties": text, "description": "hop, service, driver, job, attempt, legacy_code, where they apply.",
		},
		"violations": object{"type": "array", "description": "Which fields are wrong.", "items": object{
			"type": "object", "required": []any{"field", "description"}, "properties": object{"field": text, "description": text},
		}},
		"resource": object{
			"type": "object", "required": []any{"type", "name"}, "properties": object{"type": text, "name": text},
		},
		"retryAfter": object{"type": "number", "format": "double", "description": "Seconds to wait, then send the same again."},
	},
}

func inPath(name string) object {
	return object{"name": name, "in": "path", "required": true, "type": "string"}
}

func inQuery(name, description string) object {
	return object{"name": name, "in": "query", "required": false, "type": "string", "description": description}
}

func inHeader(name, description string) object {
	return object{"name": name, "in": "header", "required": false, "type": "string", "description": description}
}

var maskParameter = inQuery("updateMask", "Names of the fields that change, as description,appVersion. Absent: those that the body has.")

var streamParameter = object{
	"name": "service", "in": "path", "required": true, "type": "string", "description": "The service's id, or `-`: the first message names it.",
}

var bytesBody = object{
	"name": "body", "in": "body", "required": true, "schema": object{"type": "string", "format": "binary"},
}

var uploadParameters = []any{
	inQuery("filename", "Name of the file, without folders."),
	inQuery("mediaType", "Absent: the Content-Type."),
	inQuery("ttl", "Deleted so long after the upload, as 3600s. Absent: it stays."),
	inQuery("sha256", "SHA-256 of the bytes, in base64 or hexadecimal; checked."),
	inQuery("requestId", "Idempotency key; so is the header Idempotency-Key."),
	bytesBody,
}

func uploadOperation(id string) object {
	return object{
		"operationId": id,
		"summary":     "Stores the bytes of the body as an artifact.",
		"description": "A form (multipart/form-data) with one file does as well; its fields, before the file, are what the parameters are here.",
		"tags":        []any{"ArtifactService"},
		"consumes":    []any{"application/octet-stream"},
		"parameters":  uploadParameters,
		"responses":   object{"201": object{"description": "Stored.", "schema": object{"$ref": "#/definitions/Artifact"}}},
	}
}

// own are the routes that are not grpc-gateway's.
var own = object{
	"/v1/artifacts": object{"post": uploadOperation("UploadRaw"), "put": uploadOperation("PutRaw")},
	"/v1/artifacts/{artifact}:download": object{"get": object{
		"operationId": "DownloadRaw",
		"summary":     "Sends the bytes as a file, or the part of it that Range names.",
		"description": "HEAD, ETag, If-None-Match and If-Range work as for any file. With `Accept: application/x-ndjson` it is the stream of messages of " +
			"ArtifactService.Download.",
		"tags":       []any{"ArtifactService"},
		"produces":   []any{"application/octet-stream"},
		"parameters": []any{inPath("artifact"), inHeader("Range", "bytes=0-99")},
		"responses": object{
			"200": object{"description": "The file.", "schema": object{"type": "string", "format": "binary"}},
			"206": object{"description": "The part.", "schema": object{"type": "string", "format": "binary"}},
		},
	}},
	"/v1/services/{service}:call/{contract}/{method}": object{"post": object{
		"operationId": "CallMethod",
		"summary":     "Calls any method that a driver of this gateway has, a plug-in's too.",
		"description": "`contract` is the full name of the gRPC service. The body is its request in proto3 JSON, `service` may be left out; the answer is its " +
			"response, or a stream of them.",
		"tags":       []any{"Plug-ins"},
		"parameters": []any{inPath("service"), inPath("contract"), inPath("method"), object{"name": "body", "in": "body", "schema": object{"type": "object"}}},
		"responses":  object{"200": object{"description": "The response.", "schema": object{"type": "object"}}},
	}},
}

var fileForm = object{
	"type": "object", "required": []any{"file"},
	"properties": object{"filename": text, "mediaType": text, "ttl": text, "file": object{"type": "string", "format": "binary"}},
}

// moreBodies are further types of a body, which OpenAPI 2 cannot say beside another.
var moreBodies = map[string]map[string]object{
	"/v1/artifacts": {formType: fileForm},
	"/v1/services/{service}/ai:predict": {
		"image/*": {"type": "string", "format": "binary"},
		formType: {
			"type": "object", "required": []any{"image"},
			"properties": object{
				"image": object{"type": "string", "format": "binary"}, "model": text, "request": object{"type": "string", "description": "PredictRequest as JSON."},
			},
		},
	},
}

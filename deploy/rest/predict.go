package main

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/protobuf/proto"

	aiv1 "github.com/onecontainer/onecontainer/deploy/rest/gen/onecontainer/api/ai/v1"
)

var predictPath = regexp.MustCompile(`^/v1/(services/[^/:]+)/ai:predict$`)

// unnamed are the names of a form's file that say no more than that it is one; any other is the model's name of an input.
var unnamed = map[string]bool{"": true, "file": true, "image": true, "image_file": true, "img": true}

// predictImage is Predict of an encoded image: as the body, or as the files of a form. The other fields of PredictRequest are query
// parameters or fields of the form; a form's field `request` may have them as JSON.
func (a *api) predictImage(w http.ResponseWriter, r *http.Request) (bool, error) {
	found := predictPath.FindStringSubmatch(r.URL.Path)
	if found == nil || r.Method != http.MethodPost {
		return false, nil
	}
	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	request := &aiv1.PredictRequest{}
	switch {
	case kind == formType:
		if err := a.readForm(r, request); err != nil {
			return true, err
		}
	case strings.HasPrefix(kind, "image/") || kind == "application/octet-stream":
		image, err := io.ReadAll(r.Body)
		if err != nil {
			return true, err
		}
		if text := bytes.TrimLeft(image, " \t\r\n"); len(text) == 0 || text[0] == '{' {
			// JSON is read whatever the Content-Type.
			r.Body = io.NopCloser(bytes.NewReader(image))
			return false, nil
		}
		if err := fill(request, r.URL.Query(), "service", "inputs"); err != nil {
			return true, err
		}
		request.Inputs = []*aiv1.Input{{Value: &aiv1.Input_Image{Image: image}}}
	default:
		return false, nil
	}
	request.Service = found[1]
	ctx, err := runtime.AnnotateContext(r.Context(), a.mux, r, aiv1.InferenceService_Predict_FullMethodName)
	if err != nil {
		return true, err
	}
	response, err := a.inference.Predict(ctx, request)
	if err != nil {
		return true, err
	}
	return true, a.answer(w, http.StatusOK, response)
}

// readForm puts a form into a request.
func (a *api) readForm(r *http.Request, request *aiv1.PredictRequest) error {
	form, err := formOf(r)
	if err != nil {
		return err
	}
	values := url.Values{}
	for key, value := range r.URL.Query() {
		values[key] = value
	}
	var inputs []*aiv1.Input
	for {
		part, err := form.NextPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return badForm(err)
		}
		if part.FileName() == "" && part.FormName() != "request" {
			if err := readField(part, values); err != nil {
				return err
			}
			continue
		}
		content, err := io.ReadAll(part)
		if err != nil {
			return badForm(err)
		}
		if part.FormName() == "request" {
			read := &aiv1.PredictRequest{}
			if err := a.lines.Unmarshal(content, read); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			proto.Merge(request, read)
			continue
		}
		if !utf8.ValidString(part.FormName()) {
			return marked(bodyInvalid, strings.ToValidUTF8(part.FormName(), "\ufffd"), "the file's field of the form is not UTF-8")
		}
		input := &aiv1.Input{Value: &aiv1.Input_Image{Image: content}}
		if !unnamed[part.FormName()] {
			input.Name = part.FormName()
		}
		inputs = append(inputs, input)
	}
	request.Inputs = append(request.Inputs, inputs...)
	if len(request.Inputs) == 0 {
		return marked(bodyInvalid, "image", "the form has no file: send the image as a part with a file name")
	}
	return fill(request, values, "service", "inputs")
}

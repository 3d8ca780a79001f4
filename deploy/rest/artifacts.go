package main

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"github.com/grpc-ecosystem/grpc-gateway/v2/utilities"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	artifactv1 "github.com/onecontainer/onecontainer/deploy/rest/gen/onecontainer/api/artifact/v1"
)

const (
	uploadPath   = "/v1/artifacts"
	chunk        = mib
	longestField = 64 * 1024 // longest text field of a form, in bytes
	formType     = "multipart/form-data"
	curlsType    = "application/x-www-form-urlencoded" // what curl says of bytes if it is told nothing
)

var noFilter = utilities.NewDoubleArray(nil)

func (a *api) isUpload(r *http.Request) bool {
	return r.URL.Path == uploadPath && (r.Method == http.MethodPost || r.Method == http.MethodPut)
}

// upload stores the raw bytes of a body, or of a form's file, as an artifact. They go on as they come.
func (a *api) upload(w http.ResponseWriter, r *http.Request) (bool, error) {
	if !a.isUpload(r) {
		return false, nil
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel() // an upload that breaks off leaves nothing
	ctx, err := runtime.AnnotateContext(ctx, a.mux, r, artifactv1.ArtifactService_Upload_FullMethodName)
	if err != nil {
		return true, err
	}
	header := &artifactv1.UploadHeader{RequestId: r.Header.Get("Idempotency-Key")}
	values := r.URL.Query()
	content := io.Reader(r.Body)
	mediaType := r.Header.Get("Content-Type")
	form, err := formOf(r)
	if err != nil {
		return true, err
	}
	if form != nil {
		file, err := nextFile(form, values)
		if err != nil {
			return true, err
		}
		content, mediaType, header.Filename = file, file.Header.Get("Content-Type"), file.FileName()
		if !utf8.ValidString(mediaType) || !utf8.ValidString(header.Filename) {
			return true, marked(bodyInvalid, "file", "the file's name or Content-Type in the form is not UTF-8")
		}
	} else if r.ContentLength >= 0 {
		header.SizeBytes = &r.ContentLength
	}
	if !strings.HasPrefix(mediaType, curlsType) && mediaType != "application/octet-stream" {
		header.MediaType = mediaType
	}
	hexToBase64(values)
	if err := fill(header, values, "attempt"); err != nil {
		return true, err
	}
	stored, err := a.store(ctx, header, content)
	if err != nil {
		return true, err
	}
	if form != nil {
		if _, err := form.NextPart(); !errors.Is(err, io.EOF) {
			_, _ = a.artifacts.DeleteArtifact(ctx, &artifactv1.DeleteArtifactRequest{Name: stored.Name})
			return true, marked(bodyInvalid, "", "the file is the form's last part: put fields before it, and upload one file at a time")
		}
	}
	w.Header().Set("Location", "/v1/"+stored.Name)
	return true, a.answer(w, http.StatusCreated, stored)
}

// store sends bytes up as they come, a chunk at a time.
func (a *api) store(ctx context.Context, header *artifactv1.UploadHeader, content io.Reader) (*artifactv1.Artifact, error) {
	stream, err := a.artifacts.Upload(ctx)
	if err != nil {
		return nil, err
	}
	err = stream.Send(&artifactv1.UploadRequest{Part: &artifactv1.UploadRequest_Header{Header: header}})
	for err == nil {
		data := make([]byte, chunk)
		size, broken := io.ReadFull(content, data)
		if size > 0 {
			err = stream.Send(&artifactv1.UploadRequest{Part: &artifactv1.UploadRequest_Data{Data: data[:size]}})
		}
		if errors.Is(broken, io.EOF) || errors.Is(broken, io.ErrUnexpectedEOF) {
			break
		}
		if broken != nil {
			return nil, marked(bodyInvalid, "", "the body broke off: "+broken.Error())
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return stream.CloseAndRecv() // io.EOF above: the reason comes here
}

// hexToBase64 takes a digest as sha256sum writes it; base64 of as many bytes is shorter.
func hexToBase64(values url.Values) {
	for index, text := range values["sha256"] {
		if sum, err := hex.DecodeString(text); err == nil && len(sum) == sha256.Size {
			values["sha256"][index] = base64.StdEncoding.EncodeToString(sum)
		}
	}
}

// fill puts query parameters or form fields into a message; some it does not have for callers.
func fill(message proto.Message, values url.Values, without ...string) error {
	for key := range values {
		for _, one := range without {
			if strings.HasPrefix(key, one) {
				return marked(queryInvalid, key, "there is no such parameter")
			}
		}
	}
	return runtime.PopulateQueryParameters(message, values, noFilter)
}

// formOf reads a multipart form; nil: the body is none.
func formOf(r *http.Request) (*multipart.Reader, error) {
	kind, parameters, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if kind != formType {
		return nil, nil
	}
	if parameters["boundary"] == "" {
		return nil, marked(bodyInvalid, "", "the Content-Type of a form needs its boundary")
	}
	return multipart.NewReader(r.Body, parameters["boundary"]), nil
}

// nextFile reads fields into values up to the next file. An error if there is no file.
func nextFile(form *multipart.Reader, values url.Values) (*multipart.Part, error) {
	for {
		part, err := form.NextPart()
		if errors.Is(err, io.EOF) {
			return nil, marked(bodyInvalid, "file", "the form has no file: send one as a part with a file name")
		}
		if err != nil {
			return nil, badForm(err)
		}
		if part.FileName() != "" {
			return part, nil
		}
		if err := readField(part, values); err != nil {
			return nil, err
		}
	}
}

func readField(part *multipart.Part, values url.Values) error {
	text, err := io.ReadAll(io.LimitReader(part, longestField+1))
	if err != nil {
		return badForm(err)
	}
	if len(text) > longestField {
		return marked(bodyInvalid, part.FormName(), "the field is too long; send it as a file, with a file name")
	}
	if name := part.FormName(); !utf8.ValidString(name) || !utf8.Valid(text) {
		return marked(bodyInvalid, strings.ToValidUTF8(name, "\ufffd"), "the field of the form is not UTF-8")
	}
	values.Add(part.FormName(), string(text))
	return nil
}

func badForm(err error) error {
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return err
	}
	return marked(bodyInvalid, "", "the form cannot be read: "+err.Error())
}

// answer writes one message.
func (a *api) answer(w http.ResponseWriter, code int, message proto.Message) error {
	text, err := a.types.toJSON(message)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(append(text, '\n'))
	return nil
}

var downloadPath = regexp.MustCompile(`^/v1/(artifacts/[^/]+):download$`)

// download gives the bytes of an artifact as a file, or the part of it that Range names. Those who accept a stream of messages get that.
func (a *api) download(w http.ResponseWriter, r *http.Request) (bool, error) {
	found := downloadPath.FindStringSubmatch(r.URL.Path)
	if found == nil || (r.Method != http.MethodGet && r.Method != http.MethodHead) || accepts(r, jsonLines) || accepts(r, eventStream) {
		return false, nil
	}
	for key := range r.URL.Query() {
		return true, marked(queryInvalid, key, "there is no such parameter; a part of the file is asked for with the header Range")
	}
	ctx, err := runtime.AnnotateContext(r.Context(), a.mux, r, artifactv1.ArtifactService_Download_FullMethodName)
	if err != nil {
		return true, err
	}
	artifact, err := a.artifacts.GetArtifact(ctx, &artifactv1.GetArtifactRequest{Name: found[1]})
	if err != nil {
		return true, err
	}
	content := &artifactReader{ctx: ctx, client: a.artifacts, artifact: artifact}
	defer content.close()
	if r.Method == http.MethodGet && r.Header.Get("Range") == "" {
		if err := content.fetch(); err != nil && !errors.Is(err, io.EOF) {
			return true, err
		}
	}
	header := w.Header()
	header.Set("Content-Type", artifact.MediaType)
	if artifact.MediaType == "" {
		header.Set("Content-Type", "application/octet-stream")
	}
	header.Set("Etag", `"`+hex.EncodeToString(artifact.Sha256)+`"`)
	header.Set("Repr-Digest", "sha-256=:"+base64.StdEncoding.EncodeToString(artifact.Sha256)+":")
	header.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": artifact.Filename}))
	if artifact.Filename == "" || header.Get("Content-Disposition") == "" {
		header.Set("Content-Disposition", "attachment")
	}
	// What somebody has uploaded is never a page of this site.
	header.Set("Content-Security-Policy", "sandbox; default-src 'none'")
	header.Set("Cache-Control", "private, no-cache")
	asked := r.Header.Get("Range")
	if asked != "" {
		r.Header.Set("Range", withoutNothing(asked, artifact.SizeBytes))
	}
	http.ServeContent(&fileWriter{ResponseWriter: w, asked: asked, size: artifact.SizeBytes}, r, "", artifact.CreateTime.AsTime(), content)
	if content.err != nil {
		// The length was announced: a client sees that it got less, and goes on from there with Range. An error's text has no place in a file.
		panic(http.ErrAbortHandler)
	}
	return true, nil
}

var nothing = regexp.MustCompile(`^\s*-0+\s*$`)

// withoutNothing is a header Range without its `-0`, the last no bytes: there are none, and net/http would send them all the same.
func withoutNothing(asked string, size int64) string {
	list, found := strings.CutPrefix(asked, "bytes=")
	if !found || !strings.Contains(list, "-0") {
		return asked
	}
	kept := slices.DeleteFunc(strings.Split(list, ","), nothing.MatchString)
	if len(kept) == 0 {
		kept = []string{fmt.Sprintf("%d-", size)} // nor are there bytes behind the end
	}
	return "bytes=" + strings.Join(kept, ",")
}

// fileWriter has what http.ServeContent refuses told like other errors.
type fileWriter struct {
	http.ResponseWriter
	asked string // the header Range
	size  int64  // of the whole file, in bytes
	mute  bool
}

func (f *fileWriter) WriteHeader(code int) {
	switch code {
	case http.StatusRequestedRangeNotSatisfiable:
		f.mute = true
		if f.Header().Get("Content-Range") == "" { // it is no range at all
			f.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", f.size))
		}
		newProblem(code, codes.OutOfRange, rangeInvalid, "the file has no such bytes; Content-Range tells its length").
			on("Range", readable(f.asked)).write(f.ResponseWriter)
	case http.StatusPreconditionFailed:
		f.mute = true
		newProblem(code, codes.FailedPrecondition, preconditionFailed, "the file is not the one that If-Match or If-Unmodified-Since names").
			write(f.ResponseWriter)
	default:
		f.ResponseWriter.WriteHeader(code)
	}
}

func (f *fileWriter) Write(data []byte) (int, error) {
	if f.mute {
		return len(data), nil
	}
	return f.ResponseWriter.Write(data)
}

// artifactReader reads an artifact from anywhere on; it asks for bytes only when they are read.
type artifactReader struct {
	ctx      context.Context
	client   artifactv1.ArtifactServiceClient
	artifact *artifactv1.Artifact
	offset   int64
	stream   artifactv1.ArtifactService_DownloadClient
	end      context.CancelFunc
	ready    []byte
	err      error
}

func (a *artifactReader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += a.offset
	case io.SeekEnd:
		offset += a.artifact.SizeBytes
	}
	if offset != a.offset {
		a.close()
		a.offset = offset
	}
	return offset, nil
}

// fetch has the next bytes ready. io.EOF: there are no more.
func (a *artifactReader) fetch() error {
	if a.stream == nil {
		var ctx context.Context
		ctx, a.end = context.WithCancel(a.ctx)
		stream, err := a.client.Download(ctx, &artifactv1.DownloadRequest{Name: a.artifact.Name, Offset: a.offset})
		if err != nil {
			return err
		}
		a.stream = stream
	}
	for len(a.ready) == 0 {
		message, err := a.stream.Recv()
		if err != nil {
			return err
		}
		a.ready = message.Data
	}
	return nil
}

func (a *artifactReader) Read(into []byte) (int, error) {
	// ServeContent seeks to the end to learn the length, and back: that is no reason to ask again.
	if err := a.fetch(); err != nil {
		if !errors.Is(err, io.EOF) {
			a.err = err
		}
		return 0, err
	}
	size := copy(into, a.ready)
	a.ready = a.ready[size:]
	a.offset += int64(size)
	return size, nil
}

func (a *artifactReader) close() {
	if a.end != nil {
		a.end()
	}
	a.stream, a.end, a.ready = nil, nil, nil
}

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	jobv1 "github.com/onecontainer/onecontainer/deploy/rest/gen/onecontainer/api/job/v1"
)

const (
	jsonLines    = "application/x-ndjson"
	eventStream  = "text/event-stream"
	brokenStream = "application/problem+json; of=stream" // never sent: tells exchange that a stream failed before it began
	shownError   = 400                                   // characters of what a parser says
)

// codec reads and writes JSON for grpc-gateway. A stream is JSON lines, each {"result": …} and at a bad end {"error": …}; or, for
// those who ask for text/event-stream, events: messages, and at a bad end `error`.
type codec struct {
	types  *types
	events bool
	single bool // a body is one JSON value, not a stream of them
}

func (c *codec) ContentType(value any) string {
	if _, failed := value.(map[string]proto.Message); failed {
		return brokenStream
	}
	return "application/json"
}

// StreamContentType is grpc-gateway's word for the type of a stream that began well.
func (c *codec) StreamContentType(any) string {
	if c.events {
		return eventStream
	}
	return jsonLines
}

// Delimiter goes after each message of a stream.
func (c *codec) Delimiter() []byte {
	if c.events {
		return []byte("\n\n")
	}
	return []byte("\n")
}

func (c *codec) Marshal(value any) ([]byte, error) {
	switch found := value.(type) {
	case proto.Message:
		return c.types.toJSON(found)
	case map[string]any: // one message of a stream
		message, ok := found["result"].(proto.Message)
		if !ok {
			return nil, fmt.Errorf("a stream of %T", found["result"])
		}
		text, err := c.types.toJSON(message)
		if err != nil {
			return nil, err
		}
		return append(c.id(message), c.part("result", text)...), nil
	case map[string]proto.Message: // the bad end of a stream
		ended, ok := found["error"].(*spb.Status)
		if !ok {
			return nil, fmt.Errorf("a stream that ended with %T", found["error"])
		}
		return c.failure(problemOf(status.FromProto(ended).Err())), nil
	}
	return nil, fmt.Errorf("%T is no message", value)
}

// id is the line that an EventSource gives back as Last-Event-ID, where the API can go on from it.
func (c *codec) id(message proto.Message) []byte {
	if watched, ok := message.(*jobv1.WatchJobResponse); ok && c.events {
		return fmt.Appendf(nil, "id: %d\n", watched.GetUpdate().GetSequence())
	}
	return nil
}

func (c *codec) failure(p *problem) []byte { return c.part("error", p.json()) }

func (c *codec) part(kind string, text []byte) []byte {
	switch {
	case !c.events:
		return append(append([]byte(`{"`+kind+`":`), text...), '}')
	case kind == "result":
		return append([]byte("data: "), text...)
	}
	return append([]byte("event: "+kind+"\ndata: "), text...)
}

func (c *codec) Unmarshal(text []byte, value any) error {
	values := json.NewDecoder(bytes.NewReader(text))
	if err := c.decode(values, value); err != nil {
		return err
	}
	return alone(values)
}

func (c *codec) NewEncoder(w io.Writer) runtime.Encoder {
	return runtime.EncoderFunc(func(value any) error {
		text, err := c.Marshal(value)
		if err == nil {
			_, err = w.Write(append(text, '\n'))
		}
		return err
	})
}

func (c *codec) NewDecoder(r io.Reader) runtime.Decoder {
	values := json.NewDecoder(r)
	body, _ := r.(*requestBody)
	return runtime.DecoderFunc(func(value any) error {
		err := c.decode(values, value)
		if err == nil && c.single {
			err = alone(values)
		}
		if err != nil && !errors.Is(err, io.EOF) && body != nil {
			body.exchange.fail(err) // a bidirectional stream would end without a word
		}
		return err
	})
}

// decode reads the next JSON value. io.EOF: there is none. Its errors are marked with the path of what is wrong.
func (c *codec) decode(values *json.Decoder, value any) error {
	var text json.RawMessage
	if err := values.Decode(&text); err != nil {
		var tooLarge *http.MaxBytesError
		switch {
		case errors.Is(err, io.EOF):
			return io.EOF
		case errors.As(err, &tooLarge):
			return marked(bodyTooLarge, "", problemOf(tooLarge).Detail)
		case errors.Is(err, io.ErrUnexpectedEOF):
			return marked(bodyInvalid, "", fmt.Sprintf("the body is not JSON: it ends in the middle of a value, at byte %d", values.InputOffset()))
		}
		return marked(bodyInvalid, "", "the body is not JSON: "+err.Error()+fmt.Sprintf(", at byte %d", offsetOf(err, values)))
	}
	message, ok := value.(proto.Message)
	if !ok { // a field that is the body: a pointer to a pointer
		place := reflect.ValueOf(value)
		if place.Kind() != reflect.Pointer || place.Elem().Kind() != reflect.Pointer {
			return fmt.Errorf("%T is no message", value)
		}
		place.Elem().Set(reflect.New(place.Type().Elem().Elem()))
		if message, ok = place.Elem().Interface().(proto.Message); !ok {
			return fmt.Errorf("%T is no message", value)
		}
	}
	if err := c.types.fromJSON(text, message); err != nil {
		return marked(bodyInvalid, pathOf(text, err), readable(err.Error()))
	}
	return nil
}

// alone refuses what follows the one value that was wanted.
func alone(values *json.Decoder) error {
	end := values.InputOffset()
	if _, err := values.Token(); err == nil || !errors.Is(err, io.EOF) {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return marked(bodyTooLarge, "", problemOf(tooLarge).Detail)
		}
		return marked(bodyInvalid, "", fmt.Sprintf("the body goes on after its JSON value, at byte %d: send one request", end))
	}
	return nil
}

func offsetOf(err error, values *json.Decoder) int64 {
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return syntax.Offset
	}
	return values.InputOffset()
}

var position = regexp.MustCompile(`\(line (\d+):(\d+)\)`)

// readable is what protojson says, without its prefix, in ordinary spaces, and short.
func readable(text string) string {
	text = strings.ReplaceAll(text, "\u00a0", " ")
	text = strings.TrimSpace(strings.TrimPrefix(text, "proto:"))
	if letters := []rune(text); len(letters) > shownError {
		text = string(letters[:shownError]) + "…"
	}
	return text
}

// pathOf is the path of the place that an error of protojson names by line and column: inputs[0].image.
func pathOf(text []byte, err error) string {
	found := position.FindStringSubmatch(err.Error())
	if found == nil {
		return ""
	}
	line, _ := strconv.Atoi(found[1])
	column, _ := strconv.Atoi(found[2])
	return pathAt(text, offsetAt(text, line, column))
}

// offsetAt is where a line and column (both from 1; columns are characters) are, in bytes.
func offsetAt(text []byte, line, column int) int64 {
	offset := 0
	for ; line > 1; line-- {
		next := bytes.IndexByte(text[offset:], '\n')
		if next < 0 {
			break
		}
		offset += next + 1
	}
	for _, letter := range string(text[offset:]) {
		if column--; column <= 0 {
			break
		}
		offset += len(string(letter))
	}
	return int64(offset)
}

// pathAt is the path of the JSON value, or of the key, that has this byte.
func pathAt(text []byte, offset int64) string {
	type level struct {
		array bool
		key   string
		index int
		value bool // the next token of an object is a value
	}
	var levels []level
	path := func() string {
		var out strings.Builder
		for _, one := range levels {
			switch {
			case one.array:
				fmt.Fprintf(&out, "[%d]", one.index)
			case one.key != "":
				if out.Len() > 0 {
					out.WriteByte('.')
				}
				out.WriteString(one.key)
			}
		}
		return out.String()
	}
	tokens := json.NewDecoder(bytes.NewReader(text))
	tokens.UseNumber()
	for {
		token, err := tokens.Token()
		if err != nil {
			return path()
		}
		top := len(levels) - 1
		closing := token == json.Delim('}') || token == json.Delim(']')
		isKey := top >= 0 && !levels[top].array && !levels[top].value && !closing
		if isKey {
			levels[top].key, _ = token.(string)
			levels[top].value = true
		}
		if tokens.InputOffset() > offset {
			return path()
		}
		switch {
		case isKey:
			continue
		case token == json.Delim('{'):
			levels = append(levels, level{})
			continue
		case token == json.Delim('['):
			levels = append(levels, level{array: true})
			continue
		case closing:
			levels = levels[:top]
			top--
		}
		if top >= 0 { // a value has ended
			levels[top].value = false
			levels[top].index++
		}
	}
}

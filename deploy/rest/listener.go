package main

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"strconv"

	"google.golang.org/grpc/codes"
)

// bareHeaders are what net/http puts above the plain text by which it refuses what it cannot read as a request. It writes that to the
// connection itself, past every handler; answers of handlers have a Date and other headers between these.
const bareHeaders = "Content-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"

// toldListener has such refusals told as problems. Connections with TLS are no place for it: they carry what is encrypted already.
type toldListener struct{ *net.TCPListener }

func (l toldListener) Accept() (net.Conn, error) {
	found, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	return toldConn{found}, nil
}

type toldConn struct{ *net.TCPConn }

func (c toldConn) Write(data []byte) (int, error) {
	answer := refusal(data)
	if answer == nil {
		return c.TCPConn.Write(data)
	}
	if _, err := c.TCPConn.Write(answer); err != nil {
		return 0, err
	}
	return len(data), nil
}

// refusal is what net/http refuses a request with, as a problem; nil: these bytes are something else.
func refusal(data []byte) []byte {
	if !bytes.HasPrefix(data, []byte("HTTP/1.1 ")) {
		return nil
	}
	first, rest, found := bytes.Cut(data, []byte("\r\n"))
	if !found || !bytes.HasPrefix(rest, []byte(bareHeaders)) || len(first) < 12 {
		return nil
	}
	status, err := strconv.Atoi(string(first[9:12]))
	if err != nil || status < http.StatusBadRequest {
		return nil
	}
	code := codes.InvalidArgument
	if status >= http.StatusInternalServerError {
		code = codes.Unimplemented
	}
	body := newProblem(status, code, requestInvalid, fmt.Sprintf("this is no HTTP request that can be read (%s); a %% in a path begins two hexadecimal digits",
		bytes.TrimPrefix(rest, []byte(bareHeaders)))).json()
	return fmt.Appendf(nil, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n%s\n",
		status, http.StatusText(status), problemType, len(body)+1, body)
}

// Command onecontainer-rest serves the public gRPC API as REST: JSON over HTTP, made by grpc-gateway from the contracts.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/grpclog"
	"google.golang.org/grpc/keepalive"
)

// version, and sources, the digest of what it is made of, are set when the program is built.
var (
	version = "0.0.0"
	sources = "unknown"
)

func main() {
	config, err := readConfig(os.Args[1:], os.Getenv)
	if errors.Is(err, errHelp) {
		return
	}
	if err == nil && config.probe {
		err = probe(config)
	} else if err == nil {
		err = run(config)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "onecontainer-rest: %v\n", err)
		os.Exit(1)
	}
}

// run serves until SIGTERM or SIGINT, then lets running requests end.
func run(config *config) error {
	grpclog.SetLoggerV2(told{grpclog.NewLoggerV2(io.Discard, io.Discard, os.Stderr)})
	stop, ended := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer ended()
	if config.withStdin {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			ended()
		}()
	}
	conn, err := dial(config)
	if err != nil {
		return err
	}
	defer conn.Close()
	certificate, err := config.certificate()
	if err != nil {
		return err
	}
	// Streams end with this, after the time to drain.
	life, end := context.WithCancel(context.Background())
	defer end()
	handler, err := newHandler(life, config, conn)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", config.listen)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("cannot listen on %s: somebody else listens there; choose another address (--listen)", config.listen)
	}
	if err != nil {
		return fmt.Errorf("cannot listen on %s: %w", config.listen, err)
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{
		Handler:           handler,
		Protocols:         protocols,
		ReadHeaderTimeout: 30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		BaseContext:       func(net.Listener) context.Context { return life },
	}
	scheme := "http"
	if certificate != nil {
		scheme = "https"
		server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{*certificate}, MinVersion: tls.VersionTLS12}
	}
	failed := make(chan error, 1)
	go func() {
		if certificate != nil {
			failed <- server.ServeTLS(listener, "", "")
		} else {
			failed <- server.Serve(toldListener{listener.(*net.TCPListener)})
		}
	}()
	fmt.Printf("onecontainer-rest listens on %s://%s for the gateway at %s; docs at /docs\n", scheme, listener.Addr(), config.gateway)
	select {
	case err := <-failed:
		return err
	case <-stop.Done():
	}
	ended() // a second signal ends it at once
	drain, cancel := context.WithTimeout(context.Background(), config.drain)
	defer cancel()
	if err := server.Shutdown(drain); err != nil {
		end()
		_ = server.Close()
	}
	fmt.Println("stopped")
	return nil
}

// probe asks /readyz of the one that runs on this machine.
func probe(config *config) error {
	scheme := "http"
	if config.certFile != "" {
		scheme = "https"
	}
	_, port, _ := net.SplitHostPort(config.listen) // checked
	client := http.Client{
		Timeout: 2 * readyTimeout,
		// It is asked for by an address that its certificate may not have; no secret goes there.
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, //nolint:gosec
	}
	answer, err := client.Get(scheme + "://" + net.JoinHostPort("localhost", port) + "/readyz")
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("not ready: %s", answer.Status)
	}
	return nil
}

// dial opens the one connection to the gateway; it connects on first use, and again whenever it has to.
func dial(config *config) (*grpc.ClientConn, error) {
	transport := insecure.NewCredentials()
	if config.tls {
		settings := &tls.Config{MinVersion: tls.VersionTLS12}
		if config.caFile != "" {
			pem, err := os.ReadFile(config.caFile)
			if err != nil {
				return nil, fmt.Errorf("--ca-file: %w", err)
			}
			settings.RootCAs = x509.NewCertPool()
			if !settings.RootCAs.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("--ca-file: %s has no certificate in it (PEM)", config.caFile)
			}
		}
		transport = credentials.NewTLS(settings)
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithUserAgent("onecontainer-rest/" + version),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 20 * time.Second}),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(int(config.maxMessage)),
			grpc.MaxCallSendMsgSize(int(config.maxMessage)),
		),
	}
	if !config.loopback {
		options = append(options, grpc.WithPerRPCCredentials(strangers{}))
	}
	return grpc.NewClient(config.gateway, options...)
}

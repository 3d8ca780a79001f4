// A driver without our SDK: DriverService, a service of its own, health and reflection, in Go.
//
// Its starter tells it by the environment what drivers of ours are told: ONECONTAINER_LISTEN, ONECONTAINER_TOKEN_FILE. Jobs come by
// DriverService.Run, from `oca worker`.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	driverv1 "github.com/onecontainer/onecontainer/gen/go/onecontainer/api/driver/v1"
	echov1 "onecontainer.test/godriver/gen/echov1"
)

const (
	mib             = 1 << 20
	maxMessageBytes = 64 * mib
	drainTime       = 10 * time.Second
)

// description is the part of metadata.json that GetDriverInfo tells.
type description struct {
	Name        string   `json:"name"`
	Version     string   `json:"version"`
	App         string   `json:"app"`
	AppVersion  string   `json:"app_version"`
	Scope       string   `json:"scope"`
	Description string   `json:"description"`
	Services    []string `json:"services"`
	JobSlots    int32    `json:"job_slots"`
}

func manifest(path string) (*driverv1.DriverManifest, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var found description
	if err := json.Unmarshal(text, &found); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &driverv1.DriverManifest{
		Name: found.Name, Version: found.Version, App: found.App, AppVersion: found.AppVersion, Scope: found.Scope,
		Description: found.Description, Services: found.Services, JobSlots: found.JobSlots,
	}, nil
}

func token() (string, error) {
	path := os.Getenv("ONECONTAINER_TOKEN_FILE")
	if path == "" {
		return "", nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	found := strings.TrimSpace(string(text))
	if found == "" {
		return "", fmt.Errorf("%s is empty", path)
	}
	return found, nil
}

func listen(address string) (net.Listener, error) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return net.Listen("unix", path)
	}
	return net.Listen("tcp", address)
}

func run(metadataPath string) error {
	about, err := manifest(metadataPath)
	if err != nil {
		return err
	}
	secret, err := token()
	if err != nil {
		return err
	}
	listener, err := listen(os.Getenv("ONECONTAINER_LISTEN"))
	if err != nil {
		return err
	}
	driver := newDriver(about, secret)
	server := grpc.NewServer(
		// A Run carries a request of up to the announced limit, and the rest of the grant.
		grpc.MaxRecvMsgSize(maxMessageBytes+2*mib),
		grpc.MaxSendMsgSize(maxMessageBytes+2*mib),
		// Callers ping every 20 s while a call is silent; by default a Go server ends such a connection.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(driver.checkUnary),
		grpc.StreamInterceptor(driver.checkStream),
	)
	driverv1.RegisterDriverServiceServer(server, driver)
	echov1.RegisterEchoServiceServer(server, &echo{})
	healthpb.RegisterHealthServer(server, driver.health)
	reflection.Register(server)

	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-stop
		driver.drain(context.Background(), drainTime)
		server.GracefulStop()
	}()
	log.Printf("%s %s serves on %s", about.Name, about.Version, listener.Addr())
	return server.Serve(listener)
}

func main() {
	if len(os.Args) != 2 {
		log.Fatalf("usage: %s METADATA.JSON", os.Args[0])
	}
	if err := run(os.Args[1]); err != nil {
		log.Fatal(err)
	}
}

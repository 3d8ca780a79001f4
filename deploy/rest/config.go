package main

import (
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

const mib = 1024 * 1024

var errHelp = flag.ErrHelp

// config is what the flags and variables say.
type config struct {
	gateway    string
	tls        bool
	caFile     string
	listen     string
	certFile   string
	keyFile    string
	proxied    bool
	origins    []string
	hosts      []string
	drain      time.Duration
	probe      bool // only asks the one that runs whether it is ready
	withStdin  bool // ends when its standard input does
	maxMessage int64
	loopback   bool // whether only this machine's own users can call
}

// readConfig reads flags over variables over defaults. errHelp: the usage was shown.
func readConfig(arguments []string, variable func(string) string) (*config, error) {
	or := func(name, fallback string) string {
		if value := variable(name); value != "" {
			return value
		}
		return fallback
	}
	found := &config{}
	flags := flag.NewFlagSet("onecontainer-rest", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "Serves the API of a oneContainer gateway as REST.\n\nusage: onecontainer-rest [flags]")
		flags.PrintDefaults()
	}
	flags.StringVar(&found.gateway, "gateway", or("ONECONTAINER_ADDRESS", "127.0.0.1:50051"),
		"`address` of the gateway, HOST:PORT or unix:PATH (ONECONTAINER_ADDRESS)")
	flags.BoolVar(&found.tls, "tls", false, "reach the gateway by TLS, with the system's authorities")
	flags.StringVar(&found.caFile, "ca-file", or("ONECONTAINER_CA_FILE", ""),
		"PEM `file` with the authority of the gateway's certificate; implies --tls (ONECONTAINER_CA_FILE)")
	flags.StringVar(&found.listen, "listen", or("ONECONTAINER_REST_LISTEN", "127.0.0.1:8000"),
		"`address` to listen on; port 0 takes a free one (ONECONTAINER_REST_LISTEN)")
	flags.StringVar(&found.certFile, "tls-cert-file", or("ONECONTAINER_REST_TLS_CERT_FILE", ""),
		"PEM `file` with the certificate to serve HTTPS with (ONECONTAINER_REST_TLS_CERT_FILE)")
	flags.StringVar(&found.keyFile, "tls-key-file", or("ONECONTAINER_REST_TLS_KEY_FILE", ""),
		"PEM `file` with its private key (ONECONTAINER_REST_TLS_KEY_FILE)")
	flags.BoolVar(&found.proxied, "behind-proxy", or("ONECONTAINER_REST_BEHIND_PROXY", "") == "true",
		"a proxy before it ends TLS: plain HTTP is right beyond loopback, and callers need credentials (ONECONTAINER_REST_BEHIND_PROXY=true)")
	origins := flags.String("cors-origins", or("ONECONTAINER_REST_CORS_ORIGINS", ""),
		"`origins` whose pages may call, separated by commas, or * (ONECONTAINER_REST_CORS_ORIGINS)")
	hosts := flags.String("hosts", or("ONECONTAINER_REST_HOSTS", ""),
		"further host `names`, separated by commas, by which it is called on loopback (ONECONTAINER_REST_HOSTS)")
	drain := flags.String("drain-timeout", or("ONECONTAINER_REST_DRAIN_TIMEOUT", "30s"),
		"`time` that running requests get after SIGTERM (ONECONTAINER_REST_DRAIN_TIMEOUT)")
	size := flags.String("max-message-bytes", or("ONECONTAINER_MAX_MESSAGE_BYTES", strconv.Itoa(64*mib)),
		"largest message of a call in `bytes`, as the gateway has it; artifacts may be larger (ONECONTAINER_MAX_MESSAGE_BYTES)")
	flags.BoolVar(&found.probe, "probe", false, "ask the one that runs with these settings whether it is ready, for health checks")
	flags.BoolVar(&found.withStdin, "end-with-stdin", false, "end when standard input ends: with whoever has started it")
	shown := flags.Bool("version", false, "show the version")
	if err := flags.Parse(arguments); err != nil {
		return nil, err
	}
	if *shown {
		fmt.Println("onecontainer-rest", version, "sources", sources)
		return nil, errHelp
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("%q is not understood; see --help", flags.Arg(0))
	}
	var err error
	if found.drain, err = time.ParseDuration(*drain); err != nil || found.drain < 0 {
		return nil, fmt.Errorf("--drain-timeout: %q is not a time such as 30s", *drain)
	}
	if found.maxMessage, err = strconv.ParseInt(*size, 10, 32); err != nil || found.maxMessage < 4*mib {
		return nil, fmt.Errorf("--max-message-bytes: %q is not a number of bytes from %d on", *size, 4*mib)
	}
	found.tls = found.tls || found.caFile != ""
	found.origins, found.hosts = list(*origins), list(*hosts)
	return found, found.check()
}

// check refuses what would send tokens in the clear.
func (c *config) check() error {
	host, _, err := net.SplitHostPort(c.listen)
	if err != nil {
		return fmt.Errorf("--listen: %q is not HOST:PORT", c.listen)
	}
	// Whoever comes by way of a proxy comes from elsewhere, even if the proxy is on this machine.
	c.loopback = isLoopback(host) && !c.proxied
	if (c.certFile == "") != (c.keyFile == "") {
		return errors.New("--tls-cert-file and --tls-key-file belong together")
	}
	if !isLoopback(host) && c.certFile == "" && !c.proxied {
		return fmt.Errorf("listening on %s needs TLS: give --tls-cert-file and --tls-key-file, or --behind-proxy if a proxy ends it "+
			"(ONECONTAINER_REST_TLS_CERT_FILE and _KEY_FILE, or ONECONTAINER_REST_BEHIND_PROXY=true)", c.listen)
	}
	if strings.HasPrefix(c.gateway, "unix:") || c.tls {
		return nil
	}
	if host, _, err = net.SplitHostPort(c.gateway); err != nil {
		return fmt.Errorf("--gateway: %q is neither HOST:PORT nor unix:PATH", c.gateway)
	}
	if !isLoopback(host) {
		return fmt.Errorf("tokens are not sent to %s in the clear: give --ca-file or --tls", c.gateway)
	}
	return nil
}

// certificate is what HTTPS is served with; nil: plain HTTP.
func (c *config) certificate() (*tls.Certificate, error) {
	if c.certFile == "" {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return nil, fmt.Errorf("--tls-cert-file, --tls-key-file: %w", err)
	}
	return &pair, nil
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return ip != nil && ip.IsLoopback()
}

func list(text string) []string {
	var found []string
	for _, one := range strings.Split(text, ",") {
		if one = strings.TrimSpace(one); one != "" {
			found = append(found, one)
		}
	}
	return found
}

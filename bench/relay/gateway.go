//go:build unix

package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/bench/measure"
	"github.com/diaspora-streams/diaspora/internal/apache"
	"github.com/diaspora-streams/diaspora/internal/gateway"
)

// gatewayArgument makes the program run a gateway instead.
const gatewayArgument = "gateway"

// gatewayConfig is what the gateway's process reads from stdin.
type gatewayConfig struct {
	Broker                               string // host:port
	Issuer, Audience, KeysFile, JWKSFile string // how it signs in to an Apache Kafka; empty: not at all
	CertificateFile                      string // empty: no TLS
	ProfileFile                          string // empty: no profile
}

// runGateway runs a gateway until stdin ends. It writes its address to stdout.
func runGateway() error {
	stdin := json.NewDecoder(os.Stdin)
	var cfg gatewayConfig
	if err := stdin.Decode(&cfg); err != nil {
		return err
	}
	config := gateway.Config{Authenticator: everybody{}, Upstream: noLogin(cfg.Broker)}
	if cfg.KeysFile != "" {
		keys, err := apache.OpenKeys(apache.KeysConfig{File: cfg.KeysFile, JWKSFile: cfg.JWKSFile})
		if err != nil {
			return err
		}
		if config.Upstream, err = apache.New(apache.Config{Address: cfg.Broker, Issuer: cfg.Issuer, Audience: cfg.Audience, Keys: keys}); err != nil {
			return err
		}
	}
	if cfg.CertificateFile != "" {
		certificate, err := tls.LoadX509KeyPair(cfg.CertificateFile, cfg.CertificateFile)
		if err != nil {
			return err
		}
		config.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}
	}
	g, err := gateway.New(config)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(ln.Addr())
	profiled, err := measure.CPUProfile(cfg.ProfileFile)
	if err != nil {
		return err
	}
	defer profiled()
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	return g.Serve(ctx, ln)
}

// everybody is an Authenticator that takes every token. The token is the subject.
type everybody struct{}

func (everybody) Authenticate(_ context.Context, c gateway.Credentials) (gateway.Identity, error) {
	subject := c.Secret.Reveal()
	return gateway.Identity{Subject: subject, Principal: subject, Read: true, Expiry: time.Now().Add(24 * time.Hour)}, nil
}

func (everybody) Recheck(context.Context, gateway.Credentials) error { return nil }

// noLogin is an Upstream that needs no login, at this address.
type noLogin string

func (b noLogin) Dial(ctx context.Context) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", string(b))
}

func (noLogin) SignIn(context.Context, net.Conn, kmsg.Requestor, string) (time.Time, error) {
	return time.Time{}, nil
}

// gatewayProcess is a process that runs a gateway.
type gatewayProcess struct {
	address string
	pid     int
	stop    func() error
}

func startGateway(cfg gatewayConfig) (*gatewayProcess, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(program, gatewayArgument)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop := func() error {
		stdin.Close()
		return cmd.Wait()
	}
	if err := json.NewEncoder(stdin).Encode(cfg); err != nil {
		return nil, fmt.Errorf("start the gateway: %w, %w", err, stop())
	}
	var address string
	if _, err := fmt.Fscanln(stdout, &address); err != nil {
		return nil, fmt.Errorf("start the gateway: %w, %w", err, stop())
	}
	return &gatewayProcess{strings.TrimSpace(address), cmd.Process.Pid, stop}, nil
}

// Package gateway proves at the Kafka wire who is calling. It stands in front
// of a broker, takes the client's Globus access token from SASL/OAUTHBEARER,
// asks whose it is, signs in to the broker as that subject, and from then on
// relays frames. The broker sees the real principal and enforces its own ACLs;
// the gateway lets nothing else through to it than requests that it knows.
package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
)

// Upstream is the broker behind the gateway.
type Upstream interface {
	// Dial connects to the broker; nobody is signed in on the connection.
	Dial(ctx context.Context) (net.Conn, error)
	// SignIn logs conn in as the subject, for as long as expiry allows.
	SignIn(ctx context.Context, conn net.Conn, subject string, expiry time.Time) error
}

// Authenticator says whose an access token is. Its errors are
// [globus.ErrRefused], or [globus.ErrUnavailable] when it could not find out.
type Authenticator interface {
	Authenticate(ctx context.Context, token globus.Secret) (globus.TokenInfo, error)
}

// Config says what a [Gateway] stands in front of and what it puts up with.
type Config struct {
	// Upstream is the broker. Required.
	Upstream Upstream

	// Authenticator knows the tokens. Required.
	Authenticator Authenticator

	// TLS, if set, is what clients must speak.
	TLS *tls.Config

	// MaxRequestBytes bounds a produce request. Default: 100 MiB.
	MaxRequestBytes int

	// LoginTimeout bounds the time from connecting to being signed in.
	// Default: 15 s.
	LoginTimeout time.Duration

	// FailureDelay is how long a refusal is held back. Default: 100 ms.
	FailureDelay time.Duration

	// Diagnostics receives the Gateway's own messages. Nil discards them.
	Diagnostics *slog.Logger
}

// Gateway relays between clients that prove who they are and one broker.
type Gateway struct {
	cfg Config

	mu    sync.Mutex // guards conns
	conns map[*conn]struct{}
}

// New returns a gateway that does nothing until [Gateway.Serve].
func New(cfg Config) (*Gateway, error) {
	if cfg.Upstream == nil || cfg.Authenticator == nil {
		return nil, errors.New("gateway: Upstream and Authenticator are required")
	}
	if cfg.MaxRequestBytes == 0 {
		cfg.MaxRequestBytes = 100 << 20
	}
	if cfg.LoginTimeout == 0 {
		cfg.LoginTimeout = 15 * time.Second
	}
	if cfg.FailureDelay == 0 {
		cfg.FailureDelay = 100 * time.Millisecond
	}
	if cfg.Diagnostics == nil {
		cfg.Diagnostics = slog.New(slog.DiscardHandler)
	}
	return &Gateway{cfg: cfg, conns: make(map[*conn]struct{})}, nil
}

// Serve takes connections from ln until ctx ends, and then returns nil once
// all of them are closed. It closes ln.
func (g *Gateway) Serve(ctx context.Context, ln net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	run, stop := context.WithCancel(ctx)
	defer stop()
	context.AfterFunc(run, func() { ln.Close() })
	for {
		nc, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("gateway: %w", err)
		}
		wg.Go(func() { g.serve(run, nc) })
	}
}

func (g *Gateway) serve(ctx context.Context, nc net.Conn) {
	if g.cfg.TLS != nil {
		nc = tls.Server(nc, g.cfg.TLS)
	}
	c := newConn(g, nc)
	defer c.close()
	defer context.AfterFunc(ctx, c.close)()
	if err := c.run(ctx); err != nil {
		g.cfg.Diagnostics.Debug("connection ended", "client", nc.RemoteAddr().String(), "err", err)
	}
}

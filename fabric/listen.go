package fabric

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/assemble"
)

// listen opens a port on a loopback address, by default a free port of 127.0.0.1. It rejects all other
// addresses with [diaspora.ErrInvalid].
func listen(name, addr string) (*assemble.Port, error) {
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	parsed, err := netip.ParseAddrPort(addr)
	if err != nil || !parsed.Addr().IsLoopback() {
		return nil, fmt.Errorf("listen for %s on %q: a fabric is for one machine and listens on 127.0.0.1:PORT only: %w", name, addr, diaspora.ErrInvalid)
	}
	port := &assemble.Port{Name: name, Address: addr}
	if err := port.Open(); err != nil {
		return nil, &ListenError{Service: name, Addr: addr, Err: err}
	}
	return port, nil
}

// ListenError reports that a part of the fabric cannot listen on its address.
type ListenError struct {
	Service string // "the Kafka gateway", "the ACL endpoint", "Globus Auth"
	Addr    string
	Err     error
}

func (e *ListenError) Error() string { return e.Err.Error() }
func (e *ListenError) Unwrap() error { return e.Err }

// serveHTTP returns a function that serves a handler on a listener until ctx ends. Requests in flight
// then have one second to finish; after that their connections are closed.
func serveHTTP(handler http.Handler) func(context.Context, net.Listener) error {
	return func(ctx context.Context, ln net.Listener) error {
		srv := &http.Server{
			Handler:           handler,
			ReadHeaderTimeout: 5 * time.Second,
			ReadTimeout:       15 * time.Second,
			IdleTimeout:       time.Minute,
			MaxHeaderBytes:    32 << 10,
		}
		stopped := make(chan error, 1)
		context.AfterFunc(ctx, func() {
			drain, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			err := srv.Shutdown(drain)
			if errors.Is(err, context.DeadlineExceeded) {
				err = srv.Close()
			}
			stopped <- err
		})
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return <-stopped
	}
}

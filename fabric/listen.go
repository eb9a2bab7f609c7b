package fabric

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/diaspora-streams/diaspora"
)

// A service is something that listens. Its methods are safe on nil, which is a
// service that never listened.
type service struct {
	name    string
	address string // host:port, with the real port

	mu     sync.Mutex   // guards the fields below
	ln     net.Listener // nil while stopped
	cancel context.CancelFunc
	served chan error // what serving returned; nil while not serving
}

// listen opens a listener on a loopback address, any other is refused.
func listen(name, addr string) (*service, error) {
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	parsed, err := netip.ParseAddrPort(addr)
	if err != nil || !parsed.Addr().IsLoopback() {
		return nil, fmt.Errorf("listen for %s on %q: a fabric is for one machine, and listens on 127.0.0.1:PORT only: %w", name, addr, diaspora.ErrInvalid)
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, &ListenError{Service: name, Addr: addr, Err: err}
	}
	return &service{name: name, address: ln.Addr().String(), ln: ln}, nil
}

// ListenError says that a part of the fabric could not have its port.
type ListenError struct {
	Service string // "the Kafka gateway", "the ACL endpoint", "Globus Auth"
	Addr    string
	Err     error
}

func (e *ListenError) Error() string {
	return fmt.Sprintf("listen for %s on %s: %v", e.Service, e.Addr, e.Err)
}

func (e *ListenError) Unwrap() error { return e.Err }

func (s *service) addr() string { return s.address }

func addrs(services []*service) []string {
	var all []string
	for _, s := range services {
		all = append(all, s.addr())
	}
	return all
}

// start runs serve, which closes the listener when its context ends.
func (s *service) start(serve func(context.Context, net.Listener) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	ln, served := s.ln, make(chan error, 1)
	s.cancel, s.served = cancel, served
	go func() { served <- serve(ctx, ln) }()
}

// stop ends serving and returns what it returned. It may be called twice.
func (s *service) stop() error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ln == nil {
		return nil
	}
	ln := s.ln
	s.ln = nil
	if s.served == nil {
		return ln.Close()
	}
	s.cancel()
	err := <-s.served
	s.served = nil
	return err
}

// reopen listens again, on the port that the service had before stop.
func (s *service) reopen() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ln != nil {
		return fmt.Errorf("%s is running", s.name)
	}
	ln, err := net.Listen("tcp", s.address)
	if err != nil {
		return &ListenError{Service: s.name, Addr: s.address, Err: err}
	}
	s.ln = ln
	return nil
}

// serveHTTP serves a handler until ctx ends, and cuts off what is under way after
// a second.
func serveHTTP(handler http.Handler) func(context.Context, net.Listener) error {
	return func(ctx context.Context, ln net.Listener) error {
		srv := &http.Server{
			Handler:           handler,
			ReadHeaderTimeout: 5 * time.Second,
			ReadTimeout:       15 * time.Second,
			IdleTimeout:       time.Minute,
			MaxHeaderBytes:    32 << 10,
		}
		served := make(chan error, 1)
		go func() { served <- srv.Serve(ln) }()
		select {
		case err := <-served:
			return err
		case <-ctx.Done():
		}
		drain, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		err := srv.Shutdown(drain)
		if errors.Is(err, context.DeadlineExceeded) {
			err = srv.Close()
		}
		<-served
		return err
	}
}

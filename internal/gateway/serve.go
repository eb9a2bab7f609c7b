package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
)

// server is the state of one call of Serve.
type server struct {
	*Gateway
	conns sync.WaitGroup

	mu   sync.Mutex // guards the field below
	open map[*conn]struct{}
}

// Serve accepts connections from ln until ctx ends. Then it stops accepting, waits up to
// [Config.DrainTimeout] for requests in flight, closes all connections and returns nil. It closes
// ln. It returns an error only if accepting fails because ln was closed.
func (g *Gateway) Serve(ctx context.Context, ln net.Listener) error {
	s := &server{Gateway: g, open: make(map[*conn]struct{})}
	g.change(func() { g.serving[s] = struct{}{} })
	defer g.change(func() { delete(g.serving, s) })
	run, stop := context.WithCancel(context.WithoutCancel(ctx)) // lasts longer than ctx, for draining
	var rechecks sync.WaitGroup
	rechecks.Go(func() { s.recheckAll(run) })
	defer context.AfterFunc(ctx, func() { ln.Close() })()

	err := s.accept(ctx, run, ln)
	ln.Close()
	s.drain()
	stop()
	s.conns.Wait()
	rechecks.Wait()
	return err
}

// accept serves each connection in a goroutine of its own. ctx ends accepting. run is the context
// of the connections.
func (s *server) accept(ctx, run context.Context, ln net.Listener) error {
	const maxPause = time.Second
	pause := time.Duration(0)
	for {
		nc, err := ln.Accept()
		switch {
		case err == nil:
			pause = 0
			s.admit(run, nc)
			continue
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("gateway: accept connections: %w", err)
		}
		// Most likely the process is out of file descriptors. Open connections can continue.
		s.cfg.Diagnostics.Warn("cannot accept connections; retrying", "err", err)
		pause = min(max(2*pause, 5*time.Millisecond), maxPause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// admit serves a connection, or closes it if there are too many.
func (s *server) admit(run context.Context, nc net.Conn) {
	address := addressOf(nc.RemoteAddr())
	ctx, cancel := context.WithCancel(run)
	c := newConn(s.Gateway, nc, address, cancel)
	evict := func() {
		s.rejected(nc.RemoteAddr(), errHalfOpen)
		go c.close() // closing a TLS connection sends an alert, which may block
	}
	var err error
	if c.anonymous, err = s.limits.open(address, evict); err != nil {
		cancel()
		nc.Close()
		s.rejected(nc.RemoteAddr(), err)
		return
	}
	s.mu.Lock()
	s.open[c] = struct{}{}
	s.mu.Unlock()
	s.conns.Go(func() {
		if err := c.begin(ctx); err != nil {
			s.end(c, err)
			return
		}
		// A login needs a large stack, above all with TLS. A connection may be idle for hours
		// afterwards, so another goroutine continues, which begins with a small one.
		s.conns.Go(func() { s.end(c, c.relay(ctx)) })
	})
}

// end closes a connection, which has ended because of err.
func (s *server) end(c *conn, err error) {
	s.report(c, err)
	c.close()
	s.limits.closed(c.anonymous, c.subject)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
}

func (g *Gateway) rejected(client net.Addr, err error) {
	g.counters.rejected.Add(1)
	g.logRejected.Do(func() {
		g.cfg.Diagnostics.Warn("connection rejected", "client", client.String(), "err", err, "rejected", g.counters.rejected.Load())
	})
}

// report counts and logs why a connection ended.
func (g *Gateway) report(c *conn, err error) {
	log := g.cfg.Diagnostics.With("client", c.client.RemoteAddr().String())
	var refusal *refusal
	switch {
	case errors.Is(err, globus.ErrMisconfigured):
		g.counters.unavailable.Add(1)
		g.misconfigured(err)
	case errors.As(err, &refusal):
		g.counters.refused.Add(1)
		log.Info("login refused", "err", err)
	case errors.Is(err, errCannotTell):
		g.counters.unavailable.Add(1)
		g.logUnavailable.Do(func() { log.Warn("login not possible; the client will retry", "err", err) })
	case errors.Is(err, errBroker):
		g.logBroker.Do(func() { log.Warn("login not possible; the client will retry", "err", err) })
	case errors.Is(err, errSubject), errors.Is(err, errHalfOpen), errors.Is(err, errFailures), errors.Is(err, errBudget):
		g.rejected(c.client.RemoteAddr(), err)
	case errors.Is(err, errFrame):
		g.counters.badRequests.Add(1)
		log.Debug("connection closed", "err", err)
	case errors.Is(err, errExpired):
		g.counters.expired.Add(1)
		log.Debug("connection closed", "err", err)
	case err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrDeadlineExceeded):
		log.Debug("connection ended", "err", err)
	}
}

// misconfigured tells the operators that clients cannot sign in, except those that are known
// already, until the misconfiguration is fixed.
func (g *Gateway) misconfigured(err error) {
	if cause := (*refusal)(nil); errors.As(err, &cause) {
		err = cause.err
	}
	g.logMisconfigured.Do(func() {
		g.cfg.Diagnostics.Error("cannot use the response of Globus Auth; only clients that have signed in before can sign in",
			"err", err, "logins_not_possible", g.counters.unavailable.Load())
	})
}

// drain waits for requests in flight, and closes the connections that remain at the limit.
func (s *server) drain() {
	done := make(chan struct{})
	go func() { s.conns.Wait(); close(done) }()
	limit := time.Now().Add(s.cfg.DrainTimeout)
	for _, c := range s.all() {
		c.drain(limit)
	}
	timer := time.NewTimer(time.Until(limit))
	defer timer.Stop()
	select {
	case <-done:
		return
	case <-timer.C:
	}
	for _, c := range s.all() {
		c.close()
	}
	<-done
}

func (s *server) all() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	conns := make([]*conn, 0, len(s.open))
	for c := range s.open {
		conns = append(conns, c)
	}
	return conns
}

func (g *Gateway) change(do func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	do()
}

// Recheck checks at once whether the credentials of a principal's open connections are still valid,
// and closes the connections where they are not. It returns when that is done.
func (g *Gateway) Recheck(ctx context.Context, principal string) {
	var servers []*server
	g.change(func() { servers = slices.Collect(maps.Keys(g.serving)) })
	var checks sync.WaitGroup
	defer checks.Wait()
	for _, s := range servers {
		for _, c := range s.all() {
			if credentials := c.credentialsOf(principal); credentials != (Credentials{}) {
				// If it cannot tell now, the next pass checks again.
				checks.Go(func() { _ = c.recheck(ctx, credentials) })
			}
		}
	}
}

// recheckPassesPerInterval is how often in each RevocationInterval the gateway looks for
// connections whose credentials are due for a check.
const recheckPassesPerInterval = 10

// recheckAll checks the credentials of each connection once in every interval. If a check fails
// because nobody can tell, recheckAll repeats it in every pass until it succeeds. Each check has a
// goroutine of its own, so that a slow one does not delay the others.
func (s *server) recheckAll(ctx context.Context) {
	ticker := time.NewTicker(max(1, s.cfg.RevocationInterval/recheckPassesPerInterval))
	defer ticker.Stop()
	var checks sync.WaitGroup
	defer checks.Wait()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		for _, c := range s.all() {
			if credentials, due := c.recheckDue(); due {
				checks.Go(func() {
					switch err := c.recheck(ctx, credentials); {
					case err == nil || ctx.Err() != nil:
					case errors.Is(err, globus.ErrMisconfigured):
						s.misconfigured(err)
					default:
						s.logUnavailable.Do(func() {
							s.cfg.Diagnostics.Warn("cannot check for revoked tokens and keys; retrying", "err", err)
						})
					}
				})
			}
		}
	}
}

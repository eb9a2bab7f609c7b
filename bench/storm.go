package main

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/bench/measure"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/inside"
)

const (
	stormConnections = 2000
	stormRate        = 500 // connections a second
	stormTokens      = 20  // number of tokens that they share
)

// storm opens 2,000 connections at a rate of 500 per second, all with tokens that the gateway
// knows. Globus Auth answers at once, slowly, or not at all.
func (b bench) storm(ctx context.Context) (string, error) {
	n := max(stormTokens, b.Scaled(stormConnections))
	rows := [][]string{{"Globus Auth", "storm", "login p50", "p99", "longest", "cut off", "slowest answer when all are open"}}
	for _, weather := range []struct {
		name  string
		delay time.Duration
	}{
		{"answers at once", 0},
		{"answers after 5 s", 5 * time.Second},
		{"does not answer", 10 * time.Minute},
	} {
		storms, err := storms(ctx, n, weather.delay)
		if err != nil {
			return "", err
		}
		for i, s := range storms {
			row := append([]string{weather.name, []string{"first", "second"}[i]}, measure.Quantiles(s.logins, 0.5, 0.99, 1)...)
			rows = append(rows, append(row, fmt.Sprint(s.cutOff), s.answer.Round(10*time.Microsecond).String()))
		}
	}
	return fmt.Sprintf("## A connect storm\n\n%d connections at %d a second through one gateway to the embedded broker, with %d tokens that it knows, and again.\n"+
		"A login is timed by the client, from its connection to the answer, which bounds the time on the gateway's side; clients,\n"+
		"gateway and broker are one process. The gateway has asked about each token within the last second. Goal: p99 at most 20 ms, and\n"+
		"no slower logins while Globus Auth is slow, except in the first half second, until the gateway has noticed.\n\n", n, stormRate, stormTokens) + measure.Table(rows), nil
}

// storms runs two storms of n connections. Globus Auth is slow from the beginning of the first one.
func storms(ctx context.Context, n int, late time.Duration) ([]storm, error) {
	f, err := fabric.Start(ctx, fabric.Config{})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var tokens []globus.Secret
	for i := range stormTokens {
		login, err := f.Login(ctx, []string{user, "grace@example.org"}[i%2])
		if err != nil {
			return nil, err
		}
		token, _ := login.Token(globusdev.ResourceServerID)
		tokens = append(tokens, token.AccessToken)
	}
	if _, err := blow(ctx, f.Brokers()[0], tokens, len(tokens)); err != nil { // the gateway knows the tokens now
		return nil, err
	}
	if late > 0 {
		if err := inside.Of(f).Globus.FailNext(1_000_000, globusdev.Failure{Path: "/v2/oauth2/token/introspect", Delay: late}); err != nil {
			return nil, err
		}
	}
	var both []storm
	for range 2 {
		s, err := blow(ctx, f.Brokers()[0], tokens, n)
		if err != nil {
			return nil, err
		}
		both = append(both, s)
	}
	return both, nil
}

// storm is the result for a number of connections.
type storm struct {
	logins []time.Duration
	cutOff int           // number of connections that the gateway closed; clients retry
	answer time.Duration // the slowest response to a request while all were open
}

// blow opens n connections, a new one every 2 ms. When all are open, each requests the topics and
// is closed.
func blow(ctx context.Context, addr string, tokens []globus.Secret, n int) (s storm, err error) {
	var mu sync.Mutex // guards s and conns
	var conns []net.Conn
	var opening sync.WaitGroup
	ticker := time.NewTicker(time.Second / stormRate)
	defer ticker.Stop()
	for i := range n {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return s, ctx.Err()
		}
		opening.Go(func() {
			conn, failed := net.Dial("tcp", addr)
			if failed != nil { // the gateway may close connections, but never refuses them
				mu.Lock()
				defer mu.Unlock()
				err = failed
				return
			}
			conn.SetDeadline(time.Now().Add(time.Minute))
			began := time.Now()
			failed = measure.SignIn(conn, tokens[i%len(tokens)])
			took := time.Since(began)
			mu.Lock()
			defer mu.Unlock()
			if failed != nil {
				s.cutOff++
				conn.Close()
				return
			}
			s.logins, conns = append(s.logins, took), append(conns, conn)
		})
	}
	opening.Wait()
	metadata := kmsg.NewPtrMetadataRequest()
	metadata.Version = 1
	for _, conn := range conns {
		began := time.Now()
		if askErr := measure.Ask(conn, metadata, new(kmsg.MetadataResponse)); askErr != nil && err == nil {
			err = fmt.Errorf("one of %d connections: %w", len(conns), askErr)
		}
		s.answer = max(s.answer, time.Since(began))
		conn.Close()
	}
	if err == nil && len(s.logins) == 0 {
		err = fmt.Errorf("none of %d connections was let in", n)
	}
	return s, err
}

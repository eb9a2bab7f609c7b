package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
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

// benchStorm opens 2,000 connections at a rate of 500 per second, all with tokens that the gateway
// knows. Globus Auth answers at once, slowly, or not at all.
func benchStorm(ctx context.Context, opts options) (string, error) {
	n := max(stormTokens, int(stormConnections*opts.scale))
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
			rows = append(rows, append([]string{weather.name, []string{"first", "second"}[i]}, s.row()...))
		}
	}
	return fmt.Sprintf("## A connect storm\n\n%d connections at %d a second through one gateway to the embedded broker, with %d tokens that it knows, and again.\n"+
		"A login is timed by the client, from its connection to the answer, which bounds the time on the gateway's side; clients,\n"+
		"gateway and broker are one process. What the gateway was told of a token is a second old at most. Goal: p99 at most 20 ms, and nobody\n"+
		"suffers from Globus. Who comes in the first half second of a slow one does wait, until the gateway has found out.\n\n", n, stormRate, stormTokens) + measure.Table(rows), nil
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

func (s storm) row() []string {
	at := func(q float64) string { return measure.Quantile(s.logins, q).Round(10 * time.Microsecond).String() }
	return []string{at(0.5), at(0.99), at(1), fmt.Sprint(s.cutOff), s.answer.Round(10 * time.Microsecond).String()}
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
			conn, took, failed := signIn(addr, tokens[i%len(tokens)])
			mu.Lock()
			defer mu.Unlock()
			switch {
			case failed != nil && conn == nil:
				err = failed // the gateway may close connections, but never refuses them
			case failed != nil:
				s.cutOff++
				conn.Close()
			default:
				s.logins = append(s.logins, took)
				conns = append(conns, conn)
			}
		})
	}
	opening.Wait()
	metadata := kmsg.NewPtrMetadataRequest()
	metadata.Version = 1
	for _, conn := range conns {
		began := time.Now()
		if askErr := ask(conn, metadata, new(kmsg.MetadataResponse)); askErr != nil && err == nil {
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

// signIn opens a connection with a token, and returns how long the login took.
func signIn(addr string, token globus.Secret) (conn net.Conn, took time.Duration, err error) {
	conn, err = net.Dial("tcp", addr)
	if err != nil {
		return nil, 0, err
	}
	conn.SetDeadline(time.Now().Add(time.Minute))
	began := time.Now()
	handshake := kmsg.NewPtrSASLHandshakeRequest()
	handshake.Version, handshake.Mechanism = 1, "OAUTHBEARER"
	if err := ask(conn, handshake, new(kmsg.SASLHandshakeResponse)); err != nil {
		return conn, 0, err
	}
	login := kmsg.NewPtrSASLAuthenticateRequest()
	login.Version, login.SASLAuthBytes = 1, []byte("n,,\x01auth=Bearer "+token.Reveal()+"\x01\x01")
	var answer kmsg.SASLAuthenticateResponse
	if err := ask(conn, login, &answer); err != nil {
		return conn, 0, err
	}
	return conn, time.Since(began), kerr.ErrorForCode(answer.ErrorCode)
}

var formatter = kmsg.NewRequestFormatter(kmsg.FormatterClientID("bench"))

// ask sends a request of a version without tagged fields, and reads the response.
func ask(conn net.Conn, request kmsg.Request, answer kmsg.Response) error {
	if _, err := conn.Write(formatter.AppendRequest(nil, request, 0)); err != nil {
		return err
	}
	var size [4]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return err
	}
	frame := make([]byte, binary.BigEndian.Uint32(size[:]))
	if _, err := io.ReadFull(conn, frame); err != nil {
		return err
	}
	answer.SetVersion(request.GetVersion())
	return answer.ReadFrom(frame[4:])
}

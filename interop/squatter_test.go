//go:build kafka

package interop

import (
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/apache"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// squat listens where a gateway expects its broker, as any program on the host can while the
// broker restarts, unless the port is privileged. It returns the tokens that it is shown.
func squat(t *testing.T) (address string, tokens <-chan string) {
	t.Helper()
	ln := testkit.Listen(t)
	shown := make(chan string, 1)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			if token := robbed(conn); token != "" {
				select {
				case shown <- token:
				default:
				}
			}
			conn.Close()
		}
	}()
	return ln.Addr().String(), shown
}

// robbed plays a broker until it has been shown a token.
func robbed(conn net.Conn) (token string) {
	for {
		var size [4]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return ""
		}
		frame := make([]byte, binary.BigEndian.Uint32(size[:]))
		if _, err := io.ReadFull(conn, frame); err != nil {
			return ""
		}
		if _, token, ok := strings.Cut(string(frame), "Bearer "); ok {
			return strings.TrimRight(token, "\x01")
		}
		handshake := kmsg.NewPtrSASLHandshakeResponse()
		handshake.SupportedMechanisms = []string{"OAUTHBEARER"}
		answer := handshake.AppendTo(frame[4:8:8]) // with the request's correlation ID
		conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(answer))), answer...))
	}
}

// TestSquatter: a token that somebody has got by taking the broker's port is good for its short
// life, and for nothing after that: neither on the thief's open connection nor on a new one.
func TestSquatter(t *testing.T) {
	const lifetime = 4 * time.Second
	f := start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	topic := claim(t, cfg, 1)
	if err := f.Close(); err != nil { // its gateways
		t.Fatal(err)
	}
	d := describe(t)
	broker := d.Nodes[0].Listener
	keys, err := apache.OpenKeys(apache.KeysConfig{File: filepath.Join(filepath.Dir(d.JWKSFile), "signing-keys.json"), JWKSFile: d.JWKSFile})
	testkit.Must(t, err)
	taken := d
	taken.Nodes = append(taken.Nodes[:0:0], d.Nodes...)
	address, tokens := squat(t)
	taken.Nodes[0].Listener = address
	victim, err := startGateways(t, taken, keys, cfg.Identity.Subject, lifetime)(t.Context(), "tcp", taken.Nodes[0].Gateway)
	testkit.Must(t, err)
	defer victim.Close()
	message := "n,,\x01auth=Bearer anything\x01\x01"
	handshake, login := kmsg.NewPtrSASLHandshakeRequest(), kmsg.NewPtrSASLAuthenticateRequest()
	handshake.Version, handshake.Mechanism = 1, "OAUTHBEARER"
	login.Version, login.SASLAuthBytes = 1, []byte(message)
	w := rawConn{t, victim}
	w.ask(handshake)
	if answer, _, err := w.try(login); err == nil {
		t.Errorf("the login behind a squatter is answered: %+v", answer)
	}
	token := <-tokens
	bound := time.Now().Add(lifetime + time.Second) // a token says its times in whole seconds

	steal := func() rawConn {
		t.Helper()
		conn, err := net.Dial("tcp", broker)
		testkit.Must(t, err)
		t.Cleanup(func() { conn.Close() })
		return rawConn{t, conn}
	}
	signedIn := func(thief rawConn) bool {
		login.SASLAuthBytes = []byte("n,,\x01auth=Bearer " + token + "\x01\x01")
		thief.ask(handshake)
		answer, _, err := thief.try(login)
		return err == nil && answer.(*kmsg.SASLAuthenticateResponse).ErrorCode == 0 && len(answer.(*kmsg.SASLAuthenticateResponse).SASLAuthBytes) == 0
	}
	reads := func(thief rawConn) bool {
		q := kmsg.NewPtrMetadataRequest()
		q.Version, q.Topics = 9, []kmsg.MetadataRequestTopic{{Topic: &topic}}
		answer, _, err := thief.try(q)
		return err == nil && errorCodes(answer) == "ok"
	}
	thief := steal()
	if !signedIn(thief) || !reads(thief) {
		t.Fatal("the token is not good at all: this test tests nothing")
	}
	for ctx := testkit.Within(t); ; {
		sent := time.Now()
		if !reads(thief) {
			break
		}
		if sent.After(bound) {
			t.Fatalf("the thief's connection is served %v after it had to end", sent.Sub(bound))
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal("the thief's connection does not end")
		}
	}
	for late := false; !late; {
		again, sent := steal(), time.Now()
		late = sent.After(bound)
		if signedIn(again) && reads(again) && late {
			t.Error("the token is good after its time")
		}
	}
}

package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

const (
	adasKey    = "key-abcdefghij234567"
	adasSecret = "dks_it-is-a-secret"
)

func plainMessage(id, secret string) []byte { return []byte("\x00" + id + "\x00" + secret) }

// loginPlain does a handshake and a login with an access key.
func (c *raw) loginPlain(version int16, message []byte) *kmsg.SASLAuthenticateResponse {
	c.t.Helper()
	if response := c.ask(saslHandshake(1, "PLAIN")).(*kmsg.SASLHandshakeResponse); response.ErrorCode != 0 {
		c.t.Fatalf("handshake for PLAIN: error %d", response.ErrorCode)
	}
	return c.ask(saslAuthenticate(version, message)).(*kmsg.SASLAuthenticateResponse)
}

func TestParsePlain(t *testing.T) {
	for message, want := range map[string]saslMessage{
		"\x00id\x00secret":        {Credentials{"id", "secret"}, ""},
		"id\x00id\x00secret":      {Credentials{"id", "secret"}, ""},
		ada + "\x00id\x00secret":  {Credentials{"id", "secret"}, ada},
		"\x00id\x00se cret\x01=,": {Credentials{"id", "se cret\x01=,"}, ""},
	} {
		got, err := parsePlain([]byte(message))
		if err != nil || got != want {
			t.Errorf("parsePlain(%q) = %q for %q, %v; want %q for %q", message, got.KeyID, got.authzid, err, want.KeyID, want.authzid)
		}
	}
}

// badPlain are messages that are not valid PLAIN messages, or that have no key.
var badPlain = []string{
	"", "\x00", "\x00\x00", "\x00\x00\x00", "id", "id\x00secret", "\x00id\x00", "\x00\x00secret", "id\x00\x00secret",
	"\x00id\x00secret\x00", "\x00id\x00sec\x00ret", "\x00id\xff\x00secret", "\x00id\x00secret\xff",
	"\x00" + strings.Repeat("x", maxKeyIDBytes+1) + "\x00secret", "\x00id\x00" + strings.Repeat("x", maxKeySecretBytes+1),
	"n,,\x01auth=Bearer secret\x01\x01",
}

func FuzzParsePlain(f *testing.F) {
	for _, message := range append(badPlain, "\x00id\x00secret", "id\x00id\x00secret") {
		f.Add([]byte(message))
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		c, err := parsePlain(message)
		if err != nil {
			if c != (saslMessage{}) || len(message) > 60 && strings.Contains(err.Error(), string(message)) {
				t.Errorf("parsePlain(%q) = %v, %v; want no trace of it", message, c, err)
			}
			return
		}
		if !bytes.HasSuffix(message, plainMessage(c.KeyID, c.Secret.Reveal())) || c.KeyID == "" || c.Secret == "" {
			t.Errorf("parsePlain(%q) finds the key %q", message, c.KeyID)
		}
	})
}

// TestPlainDialects signs in with a key in every form that clients use. The broker must see the
// key's principal.
func TestPlainDialects(t *testing.T) {
	f := start(t)
	principal := ada + "." + adasKey
	f.claim(t, "weather", principal)
	f.tokens.issueKey(adasKey, adasSecret, ada, principal, time.Hour)
	for version := range int16(3) {
		for _, authzid := range []string{"", adasKey, ada} {
			c := f.dial(t)
			response := c.loginPlain(version, append([]byte(authzid), plainMessage(adasKey, adasSecret)...))
			if response.ErrorCode != 0 || len(response.SASLAuthBytes) != 0 || version > 0 && response.SessionLifetimeMillis < 3_500_000 {
				t.Fatalf("version %d for %q: %+v", version, authzid, response)
			}
			c.wantAlive()
		}
	}
	c := f.dial(t)
	c.ask(saslHandshake(0, "PLAIN"))
	c.send(frame(plainMessage(adasKey, adasSecret)))
	if answer, err := c.frame(); err != nil || len(answer) != 0 {
		t.Fatalf("raw login: answer %x, %v; want an empty frame", answer, err)
	}
	c.wantAlive()

	client := f.client(t, "", kgo.SASL(plain.Auth{User: adasKey, Pass: adasSecret}.AsMechanism()))
	if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "weather", Value: []byte("rain")}).FirstErr(); err != nil {
		t.Errorf("produce with a key: %v", err)
	}
	f.claim(t, "adas", ada)
	err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "adas", Value: []byte("rain")}).FirstErr()
	if !errors.Is(err, kerr.TopicAuthorizationFailed) {
		t.Errorf("produce to a topic that the key is not for: %v", err)
	}
}

// TestPlainRefusals: refusals are sentences, and reveal nothing of what was sent.
func TestPlainRefusals(t *testing.T) {
	t.Parallel()
	f := start(t, func(cfg *Config) { cfg.FailuresPerAddress = 10_000 })
	f.tokens.issueKey(adasKey, adasSecret, ada, ada, time.Hour)
	f.tokens.issueKey("old", adasSecret, ada, ada, -time.Hour)
	type refused struct{ message, words string }
	cases := []refused{
		{string(plainMessage(adasKey, "wrong-secret")), "the access key was revoked; its owner can make another one"},
		{string(plainMessage("unknown-key", adasSecret)), "the access key was revoked"},
		{string(plainMessage("old", adasSecret)), "the access key has expired"},
		{bert + string(plainMessage(adasKey, adasSecret)), "authorization ID is not the subject of the access key"},
	}
	for _, message := range badPlain {
		cases = append(cases, refused{message, ""})
	}
	for i, tt := range cases {
		c := f.dial(t)
		response := c.loginPlain(int16(i%3), []byte(tt.message))
		if response.ErrorCode != kerr.SaslAuthenticationFailed.Code || response.ErrorMessage == nil || !strings.Contains(*response.ErrorMessage, tt.words) {
			t.Fatalf("%q is answered with %+v", tt.message, response)
		}
		if said := *response.ErrorMessage; strings.Contains(said, "secret\x00") || strings.Contains(said, adasSecret) || strings.Contains(said, "unknown-key") {
			t.Errorf("%q is answered with %q", tt.message, said)
		}
		c.wantClosed()

		c = f.dial(t)
		c.ask(saslHandshake(0, "PLAIN"))
		c.send(frame([]byte(tt.message)))
		c.wantClosed()
	}
	if got := f.gateway.Stats().Refused; got != int64(2*len(cases)) {
		t.Errorf("%d logins were refused, want %d", got, 2*len(cases))
	}
	// A key is not accepted as a token, nor a token as a key.
	f.dial(t).wantRefusal(adasSecret, "the access token was revoked")
	f.tokens.issue("ada-token", ada, time.Hour)
	if response := f.dial(t).loginPlain(1, plainMessage(adasKey, "ada-token")); response.ErrorCode == 0 {
		t.Error("a token is taken for a key's secret")
	}
}

// TestPlainSessions: a revoked key loses its connections within the interval, an expired key when
// it expires. A client that logs in again in time stays connected.
func TestPlainSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startInMemory(t)
		defer f.stop(t)
		f.tokens.issueKey(adasKey, adasSecret, ada, ada, 1000*time.Hour)
		f.tokens.issueKey("short", adasSecret, ada, ada, time.Minute)
		login := func(id string) *raw {
			c := f.dial(t)
			if response := c.loginPlain(2, plainMessage(id, adasSecret)); response.ErrorCode != 0 {
				t.Fatalf("login with %s: %+v", id, response)
			}
			return c
		}
		short := login("short")
		if got := short.lifetime(); got < 59*time.Second || got > time.Minute+33*time.Second {
			t.Errorf("a connection lives for %v, want the key's minute and at most an interval", got)
		}
		c := login(adasKey)
		c.SetDeadline(time.Time{})
		time.Sleep(10 * time.Minute)
		if response := c.loginPlain(2, plainMessage(adasKey, adasSecret)); response.ErrorCode != 0 {
			t.Fatalf("login again: %+v", response)
		}
		f.tokens.setDown(true)
		f.tokens.revokeKey(adasKey, adasSecret)
		time.Sleep(10 * time.Minute)
		c.wantAlive() // nobody can tell at the moment
		f.tokens.setDown(false)
		if got := c.lifetime(); got > 33*time.Second {
			t.Errorf("the connection outlives its key for %v", got)
		}
		if got := f.gateway.Stats(); got.Revoked != 1 {
			t.Errorf("Stats = %+v, want one connection revoked", got)
		}
	})
}

// TestPlainLimits: the connections of all keys of a subject count together.
func TestPlainLimits(t *testing.T) {
	f := start(t, func(cfg *Config) { cfg.MaxConnections = subjectConnections + 1 })
	for i := range subjectConnections + 1 {
		id := fmt.Sprintf("key%d", i)
		f.tokens.issueKey(id, adasSecret, ada, ada+"."+id, time.Hour)
		c := f.dial(t)
		if i < subjectConnections {
			if response := c.loginPlain(1, plainMessage(id, adasSecret)); response.ErrorCode != 0 {
				t.Fatalf("login %d: %+v", i, response)
			}
			continue
		}
		c.ask(saslHandshake(1, "PLAIN"))
		c.send(appendRequest(saslAuthenticate(1, plainMessage(id, adasSecret)), 1))
		c.wantClosed()
	}
	if got := f.gateway.Stats().Rejected; got != 1 {
		t.Errorf("%d connections were rejected, want 1", got)
	}
}

// TestKeyAndOwner: a connection of a key with fewer rights keeps these rights, whatever credentials
// its client shows later.
func TestKeyAndOwner(t *testing.T) {
	f := start(t)
	f.tokens.issueKey(adasKey, adasSecret, ada, ada+"."+adasKey, time.Hour)
	f.tokens.issue("ada-token", ada, time.Hour)
	c := f.dial(t)
	c.loginPlain(1, plainMessage(adasKey, adasSecret))
	response := c.authenticate("ada-token")
	if response.ErrorCode == 0 || !strings.Contains(*response.ErrorMessage, "another identity") {
		t.Errorf("login as the owner on a key's connection: %+v", response)
	}
}

// TestVersionsOfLogin: before the login, the gateway offers its own versions of the login requests,
// and of all other requests what it and the broker both support. It answers a version of
// ApiVersions that is newer than the broker in version 0 (KIP-511).
func TestVersionsOfLogin(t *testing.T) {
	f := start(t)
	upstream, err := f.broker.Dial(t.Context())
	testkit.Must(t, err)
	behind := newRaw(t, upstream, err)
	versions := func(response *kmsg.ApiVersionsResponse) map[int16][2]int16 {
		m := map[int16][2]int16{}
		for _, k := range response.ApiKeys {
			m[k.ApiKey] = [2]int16{k.MinVersion, k.MaxVersion}
		}
		return m
	}
	newest := versions(behind.ask(apiVersions(0)).(*kmsg.ApiVersionsResponse))[keyApiVersions][1]
	ask := func(c *raw, version int16) *kmsg.ApiVersionsResponse {
		c.send(appendRequest(apiVersions(version), 42))
		if version > newest {
			version = 0
		}
		response, err := c.response(apiVersions(version), 42)
		if err != nil {
			t.Fatalf("version %d: %v", version, err)
		}
		return response.(*kmsg.ApiVersionsResponse)
	}
	for version := range int16(maxApiVersions + 1) {
		theirs := ask(behind, version)
		theirs.ApiKeys = supported(theirs.ApiKeys)
		ours := ask(f.dial(t), version)
		want := versions(theirs)
		if ours.ErrorCode == 0 {
			want[keySaslHandshake], want[keySaslAuthenticate] = [2]int16{0, 1}, [2]int16{0, 2}
		}
		if got := versions(ours); !maps.Equal(got, want) || ours.ErrorCode != theirs.ErrorCode {
			t.Errorf("version %d: %v and error %d, want %v and %d", version, got, ours.ErrorCode, want, theirs.ErrorCode)
		}
	}
}

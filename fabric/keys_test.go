package fabric_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

func revokeKey(t *testing.T, cfg diaspora.Config, id string) {
	t.Helper()
	testkit.Must(t, fabrictest.Client(t, cfg).RevokeKey(t.Context(), id))
}

// TestKeysEndToEnd uses an unrestricted access key and a read-only one, with both ways of signing in.
func TestKeysEndToEnd(t *testing.T) {
	t.Parallel()
	f := fabrictest.Start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	fabrictest.Claim(t, cfg, "weather")
	fabrictest.Claim(t, cfg, "snow")
	full := fabrictest.CreateKey(t, cfg, diaspora.AccessKeyRequest{Name: "full", Read: true, Write: true})
	reads := fabrictest.CreateKey(t, cfg, diaspora.AccessKeyRequest{Name: "reads", Topics: []string{"weather"}, Read: true})
	for name, signIn := range map[string]func(diaspora.NewAccessKey) sasl.Mechanism{
		"PLAIN": fabrictest.ByPlain,
		"token": func(key diaspora.NewAccessKey) sasl.Mechanism { return fabrictest.ByToken(t, f, key) },
	} {
		all := fabrictest.Kafka(t, f, signIn(full))
		for _, topic := range []string{"weather", "snow"} {
			if err := fabrictest.Produce(t, all, topic); err != nil {
				t.Errorf("%s: a full key produces to %s: %v", name, topic, err)
			}
		}
		if err := fabrictest.Produce(t, fabrictest.Kafka(t, f, signIn(reads)), "weather"); !errors.Is(err, kerr.TopicAuthorizationFailed) && !errors.Is(err, kerr.ClusterAuthorizationFailed) {
			t.Errorf("%s: a key for reading produces: %v", name, err)
		}
		group := fabrictest.Kafka(t, f, signIn(reads), kgo.ConsumeTopics("weather"), kgo.ConsumerGroup("analysis"), kgo.DisableAutoCommit(), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
		if fetches := group.PollFetches(t.Context()); fetches.Err() != nil || fetches.Empty() {
			t.Errorf("%s: a key for reading consumes in a group: %v", name, fetches.Err())
		}
		group.Close()
		other := fabrictest.Kafka(t, f, signIn(reads), kgo.ConsumeTopics("snow"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
		if err := other.PollFetches(t.Context()).Err(); !errors.Is(err, kerr.TopicAuthorizationFailed) {
			t.Errorf("%s: a key consumes what it is not for: %v", name, err)
		}
	}
}

// TestRevokedKeyLosesItsConnections checks that connections of a revoked access key are closed, with both
// ways of signing in.
func TestRevokedKeyLosesItsConnections(t *testing.T) {
	t.Parallel()
	f := fabrictest.Start(t, fabric.Config{RevocationInterval: time.Second})
	cfg := fabrictest.As(t, f, ada)
	fabrictest.Claim(t, cfg, "weather")
	key := fabrictest.CreateKey(t, cfg, diaspora.AccessKeyRequest{Name: "doomed", Read: true, Write: true})
	other := fabrictest.CreateKey(t, cfg, diaspora.AccessKeyRequest{Name: "other", Read: true, Write: true})
	spared := fabrictest.Kafka(t, f, fabrictest.ByPlain(other))
	var clients []*kgo.Client
	for _, mechanism := range []sasl.Mechanism{fabrictest.ByPlain(key), fabrictest.ByToken(t, f, key)} {
		clients = append(clients, fabrictest.Kafka(t, f, mechanism))
	}
	for _, client := range append(clients, spared) {
		testkit.Must(t, fabrictest.Produce(t, client, "weather"))
	}
	revokeKey(t, cfg, key.ID)
	for _, client := range clients {
		// The open connection is closed, and the next login fails.
		for {
			err := client.Ping(t.Context())
			if errors.Is(err, kerr.SaslAuthenticationFailed) {
				break
			}
		}
	}
	if err := fabrictest.Produce(t, spared, "weather"); err != nil {
		t.Errorf("another key of the same owner afterwards: %v", err)
	}
	if got := fabrictest.Values(fabrictest.ReadAll(t, cfg, "weather")); len(got) != 4 {
		t.Errorf("%d events, want 4", len(got))
	}
}

// TestRevokedKeyIsToldSo revokes an access key that has ACLs of its own while clients are connected with it.
// The ACLs are removed with the key. Clients must be told that the key was revoked, rather than that they
// may not write. RevocationInterval is so long that the gateway's periodic check does not run in this test.
func TestRevokedKeyIsToldSo(t *testing.T) {
	t.Parallel()
	f := fabrictest.Start(t, fabric.Config{RevocationInterval: time.Hour})
	cfg := fabrictest.As(t, f, ada)
	fabrictest.Claim(t, cfg, "weather")
	key := fabrictest.CreateKey(t, cfg, diaspora.AccessKeyRequest{Name: "doomed", Write: true})
	foreign := map[string]*kgo.Client{"PLAIN": fabrictest.Kafka(t, f, fabrictest.ByPlain(key)), "OAUTHBEARER": fabrictest.Kafka(t, f, fabrictest.ByToken(t, f, key))}
	for _, client := range foreign {
		testkit.Must(t, fabrictest.Produce(t, client, "weather"))
	}
	logger := fabrictest.OpenLogger(t, withKey(f, key))
	testkit.Must(t, logger.Log(testkit.Within(t), diaspora.Event{Topic: "weather"}))
	revokeKey(t, cfg, key.ID)
	for name, client := range foreign {
		for {
			err := client.Ping(testkit.Within(t))
			if err == nil || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: the connection of a revoked key is still good: %v", name, err)
				break
			}
			if errors.Is(err, kerr.SaslAuthenticationFailed) {
				break
			}
		}
	}
	if err := logger.Log(testkit.Within(t), diaspora.Event{Topic: "weather"}); !errors.Is(err, diaspora.ErrUnauthenticated) || !strings.Contains(err.Error(), "the access key was revoked") {
		t.Errorf("Log with a revoked key: %v", err)
	}
}

// TestKeysSurviveARestart checks that access keys and the tokens issued for them are still valid after a
// restart, and that only its owner can read the file with the signing key.
func TestKeysSurviveARestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := fabrictest.Start(t, fabric.Config{Dir: dir})
	cfg := fabrictest.As(t, f, ada)
	fabrictest.Claim(t, cfg, "weather")
	key := fabrictest.CreateKey(t, cfg, diaspora.AccessKeyRequest{Name: "lasting", Topics: []string{"weather"}, Write: true})
	gone := fabrictest.CreateKey(t, cfg, diaspora.AccessKeyRequest{Name: "gone", Read: true, Write: true})
	token := fabrictest.ByToken(t, f, key)
	revokeKey(t, cfg, gone.ID)
	address := f.URL()[len("http://"):]
	testkit.Must(t, f.Close())
	f = fabrictest.Start(t, fabric.Config{Dir: dir, HTTPAddr: address}) // the same address, because the URL is the issuer of the tokens
	for name, mechanism := range map[string]sasl.Mechanism{"PLAIN": fabrictest.ByPlain(key), "token": token} {
		if err := fabrictest.Produce(t, fabrictest.Kafka(t, f, mechanism), "weather"); err != nil {
			t.Errorf("%s after a restart: %v", name, err)
		}
	}
	if err := fabrictest.Kafka(t, f, fabrictest.ByPlain(gone)).Ping(t.Context()); !errors.Is(err, kerr.SaslAuthenticationFailed) {
		t.Errorf("a revoked key after a restart: %v", err)
	}
	info, err := os.Stat(filepath.Join(dir, "token-key.pem"))
	if err != nil || info.Mode() != fs.FileMode(0o600) {
		t.Errorf("the signing key: %v, %v, want 0600", info.Mode(), err)
	}
}

// TestKeysWithoutGlobus checks that access keys work while Globus Auth is unreachable.
func TestKeysWithoutGlobus(t *testing.T) {
	t.Parallel()
	f := fabrictest.Start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	fabrictest.Claim(t, cfg, "weather")
	key := fabrictest.CreateKey(t, cfg, diaspora.AccessKeyRequest{Name: "k", Read: true, Write: true})
	testkit.Must(t, f.StopGlobus())
	for _, mechanism := range []sasl.Mechanism{fabrictest.ByPlain(key), fabrictest.ByToken(t, f, key)} {
		if err := fabrictest.Produce(t, fabrictest.Kafka(t, f, mechanism), "weather"); err != nil {
			t.Errorf("while Globus Auth is away: %v", err)
		}
	}
}

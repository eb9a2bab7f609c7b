package fabric_test

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/oauth"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
)

func createKey(t *testing.T, cfg diaspora.Config, req diaspora.AccessKeyRequest) diaspora.NewAccessKey {
	t.Helper()
	client, err := diaspora.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	key, err := client.CreateKey(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func revokeKey(t *testing.T, cfg diaspora.Config, id string) {
	t.Helper()
	client, err := diaspora.NewClient(cfg)
	if err == nil {
		err = client.RevokeKey(t.Context(), id)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func byPlain(key diaspora.NewAccessKey) sasl.Mechanism {
	return plain.Auth{User: key.ID, Pass: key.Secret.Reveal()}.AsMechanism()
}

// byToken exchanges the access key for a token, as an OAuth client does.
func byToken(t *testing.T, f *fabric.Fabric, key diaspora.NewAccessKey) sasl.Mechanism {
	t.Helper()
	response, err := http.PostForm(f.Discovery().TokenURL, url.Values{
		"grant_type": {"client_credentials"}, "client_id": {key.ID}, "client_secret": {key.Secret.Reveal()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil || answer.AccessToken == "" {
		t.Fatalf("no token: status %d, %v", response.StatusCode, err)
	}
	return oauth.Auth{Token: answer.AccessToken}.AsMechanism()
}

func kafkaClient(t *testing.T, f *fabric.Fabric, mechanism sasl.Mechanism, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(append(opts, kgo.SeedBrokers(f.Brokers()...), kgo.SASL(mechanism), kgo.MetadataMinAge(50*time.Millisecond))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

func produce(t *testing.T, client *kgo.Client, topic string) error {
	t.Helper()
	return client.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Value: []byte("x")}).FirstErr()
}

// TestKeysEndToEnd uses an unrestricted access key and a read-only one, with both ways of signing in.
func TestKeysEndToEnd(t *testing.T) {
	t.Parallel()
	f := start(t, fabric.Config{})
	cfg := as(t, f, ada)
	claim(t, cfg, "weather")
	claim(t, cfg, "snow")
	full := createKey(t, cfg, diaspora.AccessKeyRequest{Name: "full", Read: true, Write: true})
	reads := createKey(t, cfg, diaspora.AccessKeyRequest{Name: "reads", Topics: []string{"weather"}, Read: true})
	for name, signIn := range map[string]func(diaspora.NewAccessKey) sasl.Mechanism{
		"PLAIN": byPlain,
		"token": func(key diaspora.NewAccessKey) sasl.Mechanism { return byToken(t, f, key) },
	} {
		all := kafkaClient(t, f, signIn(full))
		for _, topic := range []string{"weather", "snow"} {
			if err := produce(t, all, topic); err != nil {
				t.Errorf("%s: a full key produces to %s: %v", name, topic, err)
			}
		}
		if err := produce(t, kafkaClient(t, f, signIn(reads)), "weather"); !errors.Is(err, kerr.TopicAuthorizationFailed) && !errors.Is(err, kerr.ClusterAuthorizationFailed) {
			t.Errorf("%s: a key for reading produces: %v", name, err)
		}
		group := kafkaClient(t, f, signIn(reads), kgo.ConsumeTopics("weather"), kgo.ConsumerGroup("analysis"), kgo.DisableAutoCommit(), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
		if fetches := group.PollFetches(t.Context()); fetches.Err() != nil || fetches.Empty() {
			t.Errorf("%s: a key for reading consumes in a group: %v", name, fetches.Err())
		}
		group.Close()
		other := kafkaClient(t, f, signIn(reads), kgo.ConsumeTopics("snow"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
		if err := other.PollFetches(t.Context()).Err(); !errors.Is(err, kerr.TopicAuthorizationFailed) {
			t.Errorf("%s: a key consumes what it is not for: %v", name, err)
		}
	}
}

// TestRevokedKeyLosesItsConnections checks that connections of a revoked access key are closed, with both
// ways of signing in.
func TestRevokedKeyLosesItsConnections(t *testing.T) {
	t.Parallel()
	f := start(t, fabric.Config{RevocationInterval: time.Second})
	cfg := as(t, f, ada)
	claim(t, cfg, "weather")
	key := createKey(t, cfg, diaspora.AccessKeyRequest{Name: "doomed", Read: true, Write: true})
	other := createKey(t, cfg, diaspora.AccessKeyRequest{Name: "other", Read: true, Write: true})
	spared := kafkaClient(t, f, byPlain(other))
	var clients []*kgo.Client
	for _, mechanism := range []sasl.Mechanism{byPlain(key), byToken(t, f, key)} {
		clients = append(clients, kafkaClient(t, f, mechanism))
	}
	for _, client := range append(clients, spared) {
		if err := produce(t, client, "weather"); err != nil {
			t.Fatal(err)
		}
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
	if err := produce(t, spared, "weather"); err != nil {
		t.Errorf("another key of the same owner afterwards: %v", err)
	}
	if got := values(t, cfg, "weather"); len(got) != 4 {
		t.Errorf("%d events, want 4", len(got))
	}
}

// TestRevokedKeyIsToldSo revokes an access key that has ACLs of its own while clients are connected with it.
// The ACLs are removed with the key. Clients must be told that the key was revoked, rather than that they
// may not write. RevocationInterval is so long that the gateway's periodic check does not run in this test.
func TestRevokedKeyIsToldSo(t *testing.T) {
	t.Parallel()
	f := start(t, fabric.Config{RevocationInterval: time.Hour})
	cfg := as(t, f, ada)
	claim(t, cfg, "weather")
	key := createKey(t, cfg, diaspora.AccessKeyRequest{Name: "doomed", Write: true})
	foreign := map[string]*kgo.Client{"PLAIN": kafkaClient(t, f, byPlain(key)), "OAUTHBEARER": kafkaClient(t, f, byToken(t, f, key))}
	for _, client := range foreign {
		if err := produce(t, client, "weather"); err != nil {
			t.Fatal(err)
		}
	}
	logger := openLogger(t, withKey(f, key))
	if err := logger.Log(within(t), diaspora.Event{Topic: "weather"}); err != nil {
		t.Fatal(err)
	}
	revokeKey(t, cfg, key.ID)
	for name, client := range foreign {
		for {
			err := client.Ping(within(t))
			if err == nil || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: the connection of a revoked key is still good: %v", name, err)
				break
			}
			if errors.Is(err, kerr.SaslAuthenticationFailed) {
				break
			}
		}
	}
	if err := logger.Log(within(t), diaspora.Event{Topic: "weather"}); !errors.Is(err, diaspora.ErrUnauthenticated) || !strings.Contains(err.Error(), "the access key was revoked") {
		t.Errorf("Log with a revoked key: %v", err)
	}
}

// TestKeysSurviveARestart checks that access keys and the tokens issued for them are still valid after a
// restart, and that only its owner can read the file with the signing key.
func TestKeysSurviveARestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f, err := fabric.Start(t.Context(), fabric.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	cfg := as(t, f, ada)
	claim(t, cfg, "weather")
	key := createKey(t, cfg, diaspora.AccessKeyRequest{Name: "lasting", Topics: []string{"weather"}, Write: true})
	gone := createKey(t, cfg, diaspora.AccessKeyRequest{Name: "gone", Read: true, Write: true})
	token := byToken(t, f, key)
	revokeKey(t, cfg, gone.ID)
	address := f.URL()[len("http://"):]
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f = start(t, fabric.Config{Dir: dir, HTTPAddr: address}) // the same address, because the URL is the issuer of the tokens
	for name, mechanism := range map[string]sasl.Mechanism{"PLAIN": byPlain(key), "token": token} {
		if err := produce(t, kafkaClient(t, f, mechanism), "weather"); err != nil {
			t.Errorf("%s after a restart: %v", name, err)
		}
	}
	if err := kafkaClient(t, f, byPlain(gone)).Ping(t.Context()); !errors.Is(err, kerr.SaslAuthenticationFailed) {
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
	f := start(t, fabric.Config{})
	cfg := as(t, f, ada)
	claim(t, cfg, "weather")
	key := createKey(t, cfg, diaspora.AccessKeyRequest{Name: "k", Read: true, Write: true})
	if err := f.StopGlobus(); err != nil {
		t.Fatal(err)
	}
	for _, mechanism := range []sasl.Mechanism{byPlain(key), byToken(t, f, key)} {
		if err := produce(t, kafkaClient(t, f, mechanism), "weather"); err != nil {
			t.Errorf("while Globus Auth is away: %v", err)
		}
	}
}

// values returns the values of all records that are in a topic now.
func values(t *testing.T, cfg diaspora.Config, name string) (got []string) {
	t.Helper()
	consumer, err := diaspora.OpenConsumer(t.Context(), cfg, diaspora.ConsumerOptions{Topics: []string{name}, Until: diaspora.End})
	if err != nil {
		t.Fatal(err)
	}
	defer consumer.Close(context.Background())
	for record, err := range consumer.Records(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(record.Value))
	}
	return got
}

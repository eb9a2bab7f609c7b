package interop

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/oauth"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/globus"
)

func createKey(t *testing.T, cfg diaspora.Config, req diaspora.AccessKeyRequest) diaspora.NewAccessKey {
	t.Helper()
	req.Name = unique(t)
	key, err := client(t, cfg).CreateKey(within(t), req)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// waysIn are the two ways to sign in with an access key: as it is, and by way of a
// token that it is exchanged for.
func waysIn(t *testing.T, f *fabric.Fabric, key diaspora.NewAccessKey) map[string]sasl.Mechanism {
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
	return map[string]sasl.Mechanism{
		"PLAIN": plain.Auth{User: key.ID, Pass: key.Secret.Reveal()}.AsMechanism(),
		"token": oauth.Auth{Token: answer.AccessToken}.AsMechanism(),
	}
}

// oauthOf signs in with an access token.
func oauthOf(token globus.Token) sasl.Mechanism {
	return oauth.Auth{Token: token.AccessToken.Reveal()}.AsMechanism()
}

// signedIn returns a plain Kafka client, which knows nothing of Globus.
func signedIn(t *testing.T, f *fabric.Fabric, mechanism sasl.Mechanism, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	c, err := kgo.NewClient(append(opts, kgo.SeedBrokers(f.Brokers()...), kgo.SASL(mechanism), kgo.MetadataMinAge(50*time.Millisecond))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func produceWith(t *testing.T, c *kgo.Client, topic string) error {
	t.Helper()
	return c.ProduceSync(within(t), &kgo.Record{Topic: topic, Value: []byte("x")}).FirstErr()
}

// consumeWith reads one record from the start of a topic.
func consumeWith(t *testing.T, f *fabric.Fabric, mechanism sasl.Mechanism, topic string, opts ...kgo.Opt) error {
	t.Helper()
	c := signedIn(t, f, mechanism, append(opts, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
	defer c.Close()
	for ctx := within(t); ; {
		switch fetches := c.PollFetches(ctx); {
		case fetches.Err() != nil:
			return fetches.Err()
		case !fetches.Empty():
			return nil
		}
	}
}

func isForbidden(err error) bool {
	return errors.Is(err, kerr.TopicAuthorizationFailed) || errors.Is(err, kerr.ClusterAuthorizationFailed)
}

// TestKeysAreForWhatTheySay: of three keys one reads one topic, one writes to all,
// those of tomorrow among them, and one does both.
func TestKeysAreForWhatTheySay(t *testing.T) {
	parallel(t)
	f := start(t, fabric.Config{})
	cfg := as(t, f, ada)
	topic, other := claim(t, cfg, 1), claim(t, cfg, 1)
	log(t, openLogger(t, cfg), topic, "x")
	log(t, openLogger(t, cfg), other, "x")
	reads := createKey(t, cfg, diaspora.AccessKeyRequest{Topics: []string{topic}, Read: true})
	writes := createKey(t, cfg, diaspora.AccessKeyRequest{Write: true})
	full := createKey(t, cfg, diaspora.AccessKeyRequest{Read: true, Write: true})
	later := claim(t, cfg, 1)

	for way, mechanism := range waysIn(t, f, reads) {
		if err := consumeWith(t, f, mechanism, topic, kgo.ConsumerGroup(unique(t))); err != nil {
			t.Errorf("%s: a key for reading consumes in a group: %v", way, err)
		}
		if err := produceWith(t, signedIn(t, f, mechanism), topic); !isForbidden(err) {
			t.Errorf("%s: a key for reading produces: %v", way, err)
		}
		if err := consumeWith(t, f, mechanism, other); !isForbidden(err) {
			t.Errorf("%s: a key for one topic consumes another: %v", way, err)
		}
	}
	for way, mechanism := range waysIn(t, f, writes) {
		if err := produceWith(t, signedIn(t, f, mechanism), later); err != nil {
			t.Errorf("%s: a key for writing produces to a topic claimed after it was made: %v", way, err)
		}
		if err := consumeWith(t, f, mechanism, topic); !isForbidden(err) {
			t.Errorf("%s: a key for writing consumes: %v", way, err)
		}
	}
	for way, mechanism := range waysIn(t, f, full) {
		if err := produceWith(t, signedIn(t, f, mechanism), later); err != nil {
			t.Errorf("%s: a key for everything produces: %v", way, err)
		}
		if err := consumeWith(t, f, mechanism, other, kgo.ConsumerGroup(unique(t))); err != nil {
			t.Errorf("%s: a key for everything consumes: %v", way, err)
		}
	}
	if err := client(t, cfg).Release(within(t), later); err != nil {
		t.Fatal(err)
	}
	for way, mechanism := range waysIn(t, f, writes) {
		if err := produceWith(t, signedIn(t, f, mechanism), later); !isForbidden(err) {
			t.Errorf("%s: a key produces to a topic that its owner has released: %v", way, err)
		}
	}
}

// TestRevokedKeys: a revoked key loses its connections within the bound, and no
// other key does.
func TestRevokedKeys(t *testing.T) {
	parallel(t)
	f := start(t, fabric.Config{RevocationInterval: time.Second})
	cfg := as(t, f, ada)
	topic := claim(t, cfg, 1)
	doomed := createKey(t, cfg, diaspora.AccessKeyRequest{Topics: []string{topic}, Read: true, Write: true})
	spared := createKey(t, cfg, diaspora.AccessKeyRequest{Topics: []string{topic}, Read: true, Write: true})
	open := map[string]*kgo.Client{}
	for way, mechanism := range waysIn(t, f, doomed) {
		open[way] = signedIn(t, f, mechanism)
	}
	goesOn := signedIn(t, f, waysIn(t, f, spared)["PLAIN"])
	for _, c := range []*kgo.Client{open["PLAIN"], open["token"], goesOn} {
		if err := produceWith(t, c, topic); err != nil {
			t.Fatal(err)
		}
	}
	if err := client(t, cfg).RevokeKey(within(t), doomed.ID); err != nil {
		t.Fatal(err)
	}
	revoked := time.Now()
	for way, c := range open {
		if err := awaitRefusal(within(t), c); err != nil {
			t.Errorf("%s: a client whose key is revoked: %v", way, err)
		}
		t.Logf("%s: cut off and refused after %v", way, time.Since(revoked).Round(10*time.Millisecond))
	}
	if err := produceWith(t, goesOn, topic); err != nil {
		t.Errorf("with another key: %v", err)
	}
	if n := len(readAll(t, cfg, topic)); n != 4 {
		t.Errorf("%d records, want 4", n)
	}
}

// awaitRefusal makes requests until the connection is cut and the next login refused.
func awaitRefusal(ctx context.Context, c *kgo.Client) error {
	for ctx.Err() == nil {
		if err := c.Ping(ctx); errors.Is(err, kerr.SaslAuthenticationFailed) {
			return nil
		}
	}
	return ctx.Err()
}

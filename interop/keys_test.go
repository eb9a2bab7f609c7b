package interop

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/oauth"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

func createKey(t *testing.T, cfg diaspora.Config, req diaspora.AccessKeyRequest) diaspora.NewAccessKey {
	t.Helper()
	req.Name = unique(t)
	return fabrictest.CreateKey(t, cfg, req)
}

// waysIn are the two ways to sign in with an access key: as it is, and by way of a
// token that it is exchanged for.
func waysIn(t *testing.T, f *fabric.Fabric, key diaspora.NewAccessKey) map[string]sasl.Mechanism {
	t.Helper()
	return map[string]sasl.Mechanism{"PLAIN": fabrictest.ByPlain(key), "token": fabrictest.ByToken(t, f, key)}
}

// oauthOf signs in with an access token.
func oauthOf(token globus.Token) sasl.Mechanism {
	return oauth.Auth{Token: token.AccessToken.Reveal()}.AsMechanism()
}

// consumeWith reads one record from the start of a topic.
func consumeWith(t *testing.T, f *fabric.Fabric, mechanism sasl.Mechanism, topic string, opts ...kgo.Opt) error {
	t.Helper()
	c := fabrictest.Kafka(t, f, mechanism, append(opts, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
	defer c.Close()
	for ctx := testkit.Within(t); ; {
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
	cfg := fabrictest.As(t, f, ada)
	topic, other := claim(t, cfg, 1), claim(t, cfg, 1)
	fabrictest.Log(t, fabrictest.OpenLogger(t, cfg), topic, "x")
	fabrictest.Log(t, fabrictest.OpenLogger(t, cfg), other, "x")
	reads := createKey(t, cfg, diaspora.AccessKeyRequest{Topics: []string{topic}, Read: true})
	writes := createKey(t, cfg, diaspora.AccessKeyRequest{Write: true})
	full := createKey(t, cfg, diaspora.AccessKeyRequest{Read: true, Write: true})
	later := claim(t, cfg, 1)

	for way, mechanism := range waysIn(t, f, reads) {
		if err := consumeWith(t, f, mechanism, topic, kgo.ConsumerGroup(unique(t))); err != nil {
			t.Errorf("%s: a key for reading consumes in a group: %v", way, err)
		}
		if err := fabrictest.Produce(t, fabrictest.Kafka(t, f, mechanism), topic); !isForbidden(err) {
			t.Errorf("%s: a key for reading produces: %v", way, err)
		}
		if err := consumeWith(t, f, mechanism, other); !isForbidden(err) {
			t.Errorf("%s: a key for one topic consumes another: %v", way, err)
		}
	}
	for way, mechanism := range waysIn(t, f, writes) {
		if err := fabrictest.Produce(t, fabrictest.Kafka(t, f, mechanism), later); err != nil {
			t.Errorf("%s: a key for writing produces to a topic claimed after it was made: %v", way, err)
		}
		if err := consumeWith(t, f, mechanism, topic); !isForbidden(err) {
			t.Errorf("%s: a key for writing consumes: %v", way, err)
		}
	}
	for way, mechanism := range waysIn(t, f, full) {
		if err := fabrictest.Produce(t, fabrictest.Kafka(t, f, mechanism), later); err != nil {
			t.Errorf("%s: a key for everything produces: %v", way, err)
		}
		if err := consumeWith(t, f, mechanism, other, kgo.ConsumerGroup(unique(t))); err != nil {
			t.Errorf("%s: a key for everything consumes: %v", way, err)
		}
	}
	testkit.Must(t, fabrictest.Client(t, cfg).Release(testkit.Within(t), later))
	for way, mechanism := range waysIn(t, f, writes) {
		if err := fabrictest.Produce(t, fabrictest.Kafka(t, f, mechanism), later); !isForbidden(err) {
			t.Errorf("%s: a key produces to a topic that its owner has released: %v", way, err)
		}
	}
}

// TestRevokedKeys: a revoked key loses its connections within the bound, and no
// other key does.
func TestRevokedKeys(t *testing.T) {
	parallel(t)
	f := start(t, fabric.Config{RevocationInterval: time.Second})
	cfg := fabrictest.As(t, f, ada)
	topic := claim(t, cfg, 1)
	doomed := createKey(t, cfg, diaspora.AccessKeyRequest{Topics: []string{topic}, Read: true, Write: true})
	spared := createKey(t, cfg, diaspora.AccessKeyRequest{Topics: []string{topic}, Read: true, Write: true})
	open := map[string]*kgo.Client{}
	for way, mechanism := range waysIn(t, f, doomed) {
		open[way] = fabrictest.Kafka(t, f, mechanism)
	}
	goesOn := fabrictest.Kafka(t, f, waysIn(t, f, spared)["PLAIN"])
	for _, c := range []*kgo.Client{open["PLAIN"], open["token"], goesOn} {
		testkit.Must(t, fabrictest.Produce(t, c, topic))
	}
	testkit.Must(t, fabrictest.Client(t, cfg).RevokeKey(testkit.Within(t), doomed.ID))
	revoked := time.Now()
	for way, c := range open {
		if err := awaitRefusal(testkit.Within(t), c); err != nil {
			t.Errorf("%s: a client whose key is revoked: %v", way, err)
		}
		t.Logf("%s: cut off and refused after %v", way, time.Since(revoked).Round(10*time.Millisecond))
	}
	if err := fabrictest.Produce(t, goesOn, topic); err != nil {
		t.Errorf("with another key: %v", err)
	}
	if n := len(fabrictest.ReadAll(t, cfg, topic)); n != 4 {
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

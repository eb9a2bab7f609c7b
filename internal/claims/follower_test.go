package claims

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// gatewayUser is the gateways' user at the test cluster. It is not a super user.
const gatewayUser = "gateway"

// follow returns a Follower, for a ledger that exists.
func (c *testCluster) follow(edit ...func(*FollowerConfig)) *Follower {
	c.t.Helper()
	cfg := FollowerConfig{Client: c.as(gatewayUser)}
	for _, e := range edit {
		e(&cfg)
	}
	f, err := Follow(c.t.Context(), cfg)
	testkit.Must(c.t, err)
	c.t.Cleanup(func() { f.Close() })
	return f
}

func withGateways(cfg *Config) { cfg.GatewayPrincipal = principal(gatewayUser) }

// TestFollow: a gateway checks access keys without any right to change the ledger.
func TestFollow(t *testing.T) {
	c := newCluster(t)
	s := c.open(withGateways)
	key := mustIssue(t, s, ada, both("busy"))
	f := c.follow()
	if got, err := f.AuthenticateKey(t.Context(), key.ID, key.Secret); err != nil || got.Owner != ada {
		t.Fatalf("AuthenticateKey = %v, %v", got, err)
	}
	later := mustIssue(t, s, ada, both("later")) // the Follower learns of it from the ledger
	if _, err := f.AuthenticateKey(t.Context(), later.ID, later.Secret); err != nil {
		t.Errorf("a key that was issued afterwards: %v", err)
	}
	if err := f.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	for _, id := range []string{key.ID, later.ID} {
		for deadline := time.Now().Add(20 * time.Second); ; {
			if k, err := s.Key(t.Context(), ada, id); err != nil {
				t.Fatal(err)
			} else if k.LastUsed.Equal(startOfDay(time.Now())) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("the ledger does not say that %s was used at a gateway", id)
			}
		}
	}
	testkit.Must(t, s.RevokeKey(t.Context(), ada, key.ID))
	revoked := time.Now()
	for {
		_, err := f.ActiveKey(t.Context(), key.ID)
		if errors.Is(err, globus.ErrRefused) {
			break
		}
		if time.Since(revoked) > 10*time.Second {
			t.Fatalf("10 s after a key was revoked, ActiveKey = %v", err)
		}
	}
}

// TestFollowersRefuse: a gateway with only a Follower refuses blocked subjects, also when it starts
// from a checkpoint.
func TestFollowersRefuse(t *testing.T) {
	c := newCluster(t)
	s := c.open(withGateways, func(cfg *Config) { cfg.Admission.Operators = []string{ben} })
	key := mustIssue(t, s, ada, both("busy"))
	dir := t.TempDir()
	keepsIt := func(cfg *FollowerConfig) { cfg.Dir = dir }
	f := c.follow(keepsIt)
	testkit.Must(t, f.Admit(globus.Identity{Subject: ada}))
	if _, err := s.Block(t.Context(), ben, diaspora.BlockRequest{Subject: ada, Why: "a test"}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		testkit.Must(t, f.Ready(t.Context()))
		if err := f.Admit(globus.Identity{Subject: ada}); !errors.Is(err, globus.ErrRefused) {
			t.Errorf("Admit of a blocked person = %v", err)
		}
		if _, err := f.AuthenticateKey(t.Context(), key.ID, key.Secret); !errors.Is(err, globus.ErrRefused) {
			t.Errorf("AuthenticateKey of a blocked person = %v", err)
		}
		f.Close()
		f = c.follow(keepsIt)
		if f.ledger.saved == 0 {
			t.Error("the second Follower has read no checkpoint")
		}
	}
}

// TestGatewaysMayDoNothing tries operations as the gateway's user that only a super user may
// perform.
func TestGatewaysMayDoNothing(t *testing.T) {
	c := newCluster(t)
	s := c.open(withGateways)
	mustClaim(t, s, "weather")
	c.follow()
	before := c.ledger()

	if err := c.produce(gatewayUser, LedgerTopic, "{}"); !errors.Is(err, kerr.TopicAuthorizationFailed) {
		t.Errorf("writing to the ledger = %v, want TOPIC_AUTHORIZATION_FAILED", err)
	}
	if err := c.produce(gatewayUser, "weather", "x"); !errors.Is(err, kerr.TopicAuthorizationFailed) {
		t.Errorf("writing to somebody's topic = %v, want TOPIC_AUTHORIZATION_FAILED", err)
	}
	if _, err := c.consume(gatewayUser, "weather"); !errors.Is(err, kerr.TopicAuthorizationFailed) {
		t.Errorf("reading somebody's topic = %v, want TOPIC_AUTHORIZATION_FAILED", err)
	}
	if _, err := c.consume(gatewayUser, KeyUsesTopic); !errors.Is(err, kerr.TopicAuthorizationFailed) {
		t.Errorf("reading what other gateways wrote = %v, want TOPIC_AUTHORIZATION_FAILED", err)
	}
	admin := kafka.NewAdmin(c.client(gatewayUser))
	created, _, err := admin.CreateTopic(t.Context(), kafka.TopicSpec{Name: "new", Partitions: 1, Retention: -1})
	if created || err == nil {
		t.Errorf("creating a topic = %v, %v, want an error", created, err)
	}
	resource := kafka.TopicResource("weather")
	_, err = admin.SetACLs(t.Context(), resource, ownerACLs("weather", gatewayUser), func(kafka.ACL) bool { return true })
	if !errors.Is(err, kerr.ClusterAuthorizationFailed) {
		t.Errorf("changing ACLs = %v, want CLUSTER_AUTHORIZATION_FAILED", err)
	}
	if after := c.ledger(); len(after) != len(before) {
		t.Errorf("the ledger has %d records, and had %d", len(after), len(before))
	}
}

// TestFollowWaits opens a Follower before there is a ledger that it may read.
func TestFollowWaits(t *testing.T) {
	c := newCluster(t)
	waits, log := io.Pipe()
	opened := make(chan error, 1)
	go func() {
		f, err := Follow(t.Context(), FollowerConfig{Client: c.as(gatewayUser), Diagnostics: slog.New(slog.NewTextHandler(log, nil))})
		if err == nil {
			err = errors.Join(f.Ready(t.Context()), f.Close())
		}
		opened <- err
	}()
	var told [1]byte
	if _, err := waits.Read(told[:]); err != nil { // it logs that it waits
		t.Fatal(err)
	}
	go io.Copy(io.Discard, waits)
	c.open(withGateways)
	if err := <-opened; err != nil {
		t.Errorf("Follow = %v, once there is a ledger", err)
	}
}

// TestFollowRefused: if it never gets the right to read the ledger, Follow fails and says so.
func TestFollowRefused(t *testing.T) {
	c := newCluster(t)
	c.open()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	f, err := Follow(ctx, FollowerConfig{Client: c.as(gatewayUser)})
	if err == nil {
		f.Close()
	}
	if !errors.Is(err, diaspora.ErrUnavailable) || !errors.Is(err, kerr.TopicAuthorizationFailed) {
		t.Errorf("Follow = %v, want ErrUnavailable because of TOPIC_AUTHORIZATION_FAILED", err)
	}
}

// TestKeyUsesOfStrangers: whatever the topic of uses holds, the ledger gets at most one record for
// a key and a day.
func TestKeyUsesOfStrangers(t *testing.T) {
	c := newCluster(t)
	s := c.open(withGateways)
	key := mustIssue(t, s, ada, both("busy"))
	before := len(c.ledger())
	gateway := c.client(gatewayUser, kgo.RequiredAcks(kgo.AllISRAcks()))
	for _, value := range []string{
		"", "{", "[]", `{"v":2,"key":"` + key.ID + `"}`, `{"v":1,"key":"no-key"}`, `{"v":1,"key":"` + newKeyID() + `"}`,
		`{"v":1,"key":"` + key.ID + `"}`, `{"v":1,"key":"` + key.ID + `"}`,
		fmt.Sprintf(`{"v":1,"key":"%s","more":"%0300d"}`, key.ID, 0),
		`{"v":1,"key":"` + mustIssue(t, s, ada, both("last")).ID + `"}`,
	} {
		testkit.Must(t, gateway.ProduceSync(t.Context(), &kgo.Record{Topic: KeyUsesTopic, Value: []byte(value)}).FirstErr())
	}
	for deadline := time.Now().Add(20 * time.Second); ; {
		keys, err := s.Keys(t.Context(), ada)
		testkit.Must(t, err)
		if len(keys) == 2 && !keys[0].LastUsed.IsZero() && !keys[1].LastUsed.IsZero() {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the uses are not noted: %+v", keys)
		}
	}
	if got := len(c.ledger()) - before; got != 3 {
		t.Errorf("the ledger got %d records, want one that issues a key and two that note uses", got)
	}
}

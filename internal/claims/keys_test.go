package claims

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

func mustIssue(t *testing.T, s *Service, subject string, req diaspora.AccessKeyRequest) diaspora.NewAccessKey {
	t.Helper()
	key, err := s.IssueKey(t.Context(), subject, req)
	testkit.Must(t, err)
	return key
}

func reader(name string, topics ...string) diaspora.AccessKeyRequest {
	return diaspora.AccessKeyRequest{Name: name, Topics: topics, Read: true}
}

func writer(name string, topics ...string) diaspora.AccessKeyRequest {
	return diaspora.AccessKeyRequest{Name: name, Topics: topics, Write: true}
}

func both(name string, topics ...string) diaspora.AccessKeyRequest {
	return diaspora.AccessKeyRequest{Name: name, Topics: topics, Read: true, Write: true}
}

// clientOf returns a client that is signed in to the broker as the key's principal, as the gateway
// would sign it in.
func (c *testCluster) clientOf(key diaspora.AccessKey, opts ...kgo.Opt) *kgo.Client {
	c.t.Helper()
	user := KeyPrincipal(key)
	results, err := kadm.NewClient(c.client("admin")).AlterUserSCRAMs(c.t.Context(), nil, []kadm.UpsertSCRAM{
		{User: user, Mechanism: kadm.ScramSha256, Iterations: 4096, Password: "x"},
	})
	if err == nil {
		err = results.Error()
	}
	testkit.Must(c.t, err)
	client, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(c.fake.ListenAddrs()...),
		kgo.SASL(scram.Auth{User: user, Pass: "x"}.AsSha256Mechanism()),
		kgo.MetadataMinAge(10 * time.Millisecond),
	}, opts...)...)
	testkit.Must(c.t, err)
	c.t.Cleanup(client.Close)
	return client
}

func (c *testCluster) produceAs(key diaspora.AccessKey, topic string) error {
	ctx := testkit.Within(c.t)
	return c.clientOf(key).ProduceSync(ctx, &kgo.Record{Topic: topic, Value: []byte("x")}).FirstErr()
}

func (c *testCluster) consumeAs(key diaspora.AccessKey, topic string, opts ...kgo.Opt) error {
	ctx := testkit.Within(c.t)
	client := c.clientOf(key, append(opts, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
	defer client.Close()
	for {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil || !fetches.Empty() {
			return err
		}
	}
}

// TestKeyRights checks at the broker what each kind of key may do, while topics are claimed and
// released.
func TestKeyRights(t *testing.T) {
	c := newCluster(t)
	s := c.open()
	mustClaim(t, s, "weather", "snow")
	if _, err := s.Claim(t.Context(), ben, diaspora.ClaimRequest{Name: "bens"}); err != nil {
		t.Fatal(err)
	}
	for _, topic := range []string{"weather", "snow"} {
		testkit.Must(t, c.produce(ada, topic, "first"))
	}
	keys := map[string]diaspora.AccessKey{}
	for _, req := range []diaspora.AccessKeyRequest{
		both("full"), reader("reads"), writer("writes"), reader("reads_one", "weather"), writer("writes_one", "weather"), both("one", "weather"),
	} {
		keys[req.Name] = mustIssue(t, s, ada, req).AccessKey
	}
	mustClaim(t, s, "later") // keys for all topics apply to it as well
	testkit.Must(t, c.produce(ada, "later", "first"))
	c.check()
	may := map[string]string{ // in the order weather, snow, later, bens
		"full": "rw rw rw --", "reads": "r- r- r- --", "writes": "-w -w -w --",
		"reads_one": "r- -- -- --", "writes_one": "-w -- -- --", "one": "rw -- -- --",
	}
	for name, rights := range may {
		for i, topic := range []string{"weather", "snow", "later", "bens"} {
			want := strings.Fields(rights)[i]
			err := c.produceAs(keys[name], topic)
			if (err == nil) != (want[1] == 'w') || err != nil && !errors.Is(err, kerr.TopicAuthorizationFailed) && !errors.Is(err, kerr.ClusterAuthorizationFailed) {
				t.Errorf("%s produces to %s: %v, want %s", name, topic, err, want)
			}
			err = c.consumeAs(keys[name], topic)
			if (err == nil) != (want[0] == 'r') || err != nil && !errors.Is(err, kerr.TopicAuthorizationFailed) {
				t.Errorf("%s consumes %s: %v, want %s", name, topic, err, want)
			}
		}
	}
	if err := c.consumeAs(keys["reads_one"], "weather", kgo.ConsumerGroup(kafka.UserGroups+ada+".analysis")); err != nil {
		t.Errorf("a group of a key that may read: %v", err)
	}

	// The rights of a key end with the topic and with the key. They do not end with its owner's
	// rights.
	testkit.Must(t, s.Release(t.Context(), ada, "snow"))
	if _, err := s.Claim(t.Context(), ben, diaspora.ClaimRequest{Name: "snow"}); err != nil {
		t.Fatal(err)
	}
	testkit.Must(t, s.RevokeKey(t.Context(), ada, keys["one"].ID))
	for name, topic := range map[string]string{"writes": "snow", "one": "weather"} {
		if err := c.produceAs(keys[name], topic); !errors.Is(err, kerr.TopicAuthorizationFailed) {
			t.Errorf("%s produces to %s afterwards: %v", name, topic, err)
		}
	}
	if err := c.produceAs(keys["writes_one"], "weather"); err != nil {
		t.Errorf("another key afterwards: %v", err)
	}
	c.check()
}

// TestKeyLife follows a key from its creation to its end, over two replicas and a restart, and
// checks that its secret is not in the ledger.
func TestKeyLife(t *testing.T) {
	c := newCluster(t)
	one, two := c.open(), c.open()
	expires := time.Now().Add(time.Hour)
	req := both("laptop")
	req.Expires = expires
	key := mustIssue(t, one, ada, req)

	refused := func(s *Service, id string, secret globus.Secret, reason string) {
		t.Helper()
		got, err := s.AuthenticateKey(t.Context(), id, secret)
		if refusal := (*globus.RefusedError)(nil); !errors.As(err, &refusal) || !strings.Contains(refusal.Reason, reason) {
			t.Errorf("AuthenticateKey = %+v, %v, want a refusal with %q", got, err, reason)
		}
	}
	good := func(s *Service) {
		t.Helper()
		got, err := s.AuthenticateKey(t.Context(), key.ID, key.Secret)
		if err != nil || got.Owner != ada || !got.Expires.Equal(expires) {
			t.Errorf("AuthenticateKey = %+v, %v", got, err)
		}
	}
	good(two) // immediately, and on the replica that did not issue it
	good(one)
	refused(two, key.ID, key.Secret+"x", "no such access key")
	refused(two, key.ID, "", "no such access key")
	refused(two, newKeyID(), key.Secret, "no such access key")
	refused(two, "*", key.Secret, "no such access key")

	if _, err := two.IssueKey(t.Context(), ada, both("laptop")); !errors.Is(err, diaspora.ErrConflict) {
		t.Errorf("a second key of the name: %v, want ErrConflict", err)
	}
	other := mustIssue(t, two, ben, both("laptop"))
	if err := one.RevokeKey(t.Context(), ada, other.ID); !errors.Is(err, diaspora.ErrNotFound) {
		t.Errorf("revoking another's key: %v, want ErrNotFound", err)
	}
	if _, err := one.Key(t.Context(), ada, other.ID); !errors.Is(err, diaspora.ErrNotFound) {
		t.Errorf("another's key: %v, want ErrNotFound", err)
	}
	if keys, err := one.Keys(t.Context(), ada); err != nil || len(keys) != 1 || keys[0].ID != key.ID {
		t.Errorf("Keys = %+v, %v", keys, err)
	}

	testkit.Must(t, one.Close())
	three := c.open()
	good(three) // after a restart
	for range 2 {
		if err := two.RevokeKey(t.Context(), ada, key.ID); err != nil {
			t.Errorf("RevokeKey = %v", err)
		}
	}
	refused(two, key.ID, key.Secret, "revoked")
	refused(two, key.ID, "wrong", "revoked")
	for { // within keyMaxAge
		if _, err := three.AuthenticateKey(t.Context(), key.ID, key.Secret); errors.Is(err, globus.ErrRefused) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if k, err := three.Key(t.Context(), ada, key.ID); err != nil || k.Ended.IsZero() || k.Name != "laptop" {
		t.Errorf("a key that has ended: %+v, %v", k, err)
	}
	if keys, err := three.Keys(t.Context(), ada); err != nil || len(keys) != 0 {
		t.Errorf("Keys = %+v, %v, want none", keys, err)
	}
	mustIssue(t, three, ada, both("laptop")) // the name is free

	found := false
	for _, value := range c.ledger() {
		if strings.Contains(string(value), strings.TrimPrefix(key.Secret.Reveal(), keySecretPrefix)) {
			t.Errorf("the secret is in the ledger: %s", value)
		}
		hash, _ := hashOf(key.Secret).MarshalText()
		found = found || strings.Contains(string(value), string(hash))
	}
	if !found {
		t.Error("the hash is not in the ledger")
	}
}

// TestKeyRefusals checks which requests for a key are refused.
func TestKeyRefusals(t *testing.T) {
	c := newCluster(t)
	s := c.open(func(cfg *Config) { cfg.Limits.Keys = 2 })
	mustClaim(t, s, "weather")
	if _, err := s.Claim(t.Context(), ben, diaspora.ClaimRequest{Name: "bens"}); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		subject string
		req     diaspora.AccessKeyRequest
		want    error
	}{
		"no name":                {ada, both(""), diaspora.ErrInvalid},
		"long name":              {ada, both(strings.Repeat("x", 65)), diaspora.ErrInvalid},
		"name as an ID":          {ada, both("key-x"), diaspora.ErrInvalid},
		"name as a secret":       {ada, both(newKeySecret().Reveal()), diaspora.ErrInvalid},
		"name with a line":       {ada, both("a\nb"), diaspora.ErrInvalid},
		"no right":               {ada, diaspora.AccessKeyRequest{Name: "k"}, diaspora.ErrInvalid},
		"no topic":               {ada, diaspora.AccessKeyRequest{Name: "k", Topics: []string{}, Read: true}, diaspora.ErrInvalid},
		"every topic":            {ada, reader("k", "*"), diaspora.ErrInvalid},
		"the ledger":             {ada, reader("k", LedgerTopic), diaspora.ErrInvalid},
		"a topic twice":          {ada, reader("k", "weather", "weather"), diaspora.ErrInvalid},
		"nobody's topic":         {ada, reader("k", "weather", "rain"), diaspora.ErrNotFound},
		"another's topic":        {ada, reader("k", "bens"), diaspora.ErrPermission},
		"expired":                {ada, diaspora.AccessKeyRequest{Name: "k", Read: true, Expires: time.Now()}, diaspora.ErrInvalid},
		"in a hundred years":     {ada, diaspora.AccessKeyRequest{Name: "k", Read: true, Expires: time.Now().AddDate(100, 0, 0)}, diaspora.ErrInvalid},
		"everybody":              {"*", both("k"), diaspora.ErrInvalid},
		"a subject that is long": {strings.Repeat("x", 120), both("k"), diaspora.ErrInvalid},
	} {
		if key, err := s.IssueKey(t.Context(), tt.subject, tt.req); !errors.Is(err, tt.want) {
			t.Errorf("%s: IssueKey = %+v, %v, want %v", name, key, err, tt.want)
		}
	}
	pasted := strings.ReplaceAll(newKeySecret().Reveal(), "-", "_") // could be a topic's name
	if _, err := s.IssueKey(t.Context(), ada, reader("k", "weather", pasted)); !errors.Is(err, diaspora.ErrNotFound) || strings.Contains(err.Error(), pasted) || !strings.Contains(err.Error(), "number 2") {
		t.Errorf("a secret as a topic: %v", err)
	}
	first := mustIssue(t, s, ada, both("first"))
	mustIssue(t, s, ada, both("second"))
	if _, err := s.IssueKey(t.Context(), ada, both("third")); !errors.Is(err, diaspora.ErrPermission) {
		t.Errorf("one key too many: %v, want ErrPermission", err)
	}
	testkit.Must(t, s.RevokeKey(t.Context(), ada, first.ID))
	mustIssue(t, s, ada, both("third"))
	if err := s.RevokeKey(t.Context(), ada, "*"); !errors.Is(err, diaspora.ErrInvalid) {
		t.Errorf("RevokeKey of no ID = %v, want ErrInvalid", err)
	}
	if err := s.RevokeKey(t.Context(), ada, newKeyID()); !errors.Is(err, diaspora.ErrNotFound) {
		t.Errorf("RevokeKey of an unknown ID = %v, want ErrNotFound", err)
	}
}

// TestKeyExpires waits until a key expires.
func TestKeyExpires(t *testing.T) {
	c := newCluster(t)
	s := c.open(func(cfg *Config) { cfg.Limits.Keys = 1 })
	mustClaim(t, s, "weather")
	req := writer("short")
	req.Expires = time.Now().Add(300 * time.Millisecond)
	key := mustIssue(t, s, ada, req)
	if have := fmt.Sprint(c.acls(kafka.TopicResource("weather"))); !strings.Contains(have, key.ID) {
		t.Errorf("the topic's ACLs %s do not name the key", have)
	}
	for {
		_, err := s.AuthenticateKey(t.Context(), key.ID, key.Secret)
		if errors.Is(err, globus.ErrRefused) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	// A key_expired record that a replica with a fast clock writes too early has no effect.
	early := newRecord(opKeyExpired, ada)
	early.Key, early.Time = key.ID, req.Expires.Add(-time.Nanosecond)
	if err := s.ledger.append(t.Context(), early); !errors.Is(err, errKeyNotExpired) {
		t.Errorf("an early end: %v, want %v", err, errKeyNotExpired)
	}
	testkit.Must(t, s.Reconcile(t.Context()))
	if have := fmt.Sprint(c.acls(kafka.TopicResource("weather"))); strings.Contains(have, key.ID) {
		t.Errorf("the topic's ACLs %s still name the key", have)
	}
	mustIssue(t, s, ada, both("short")) // its name and its place within the limit are free
}

// TestKeyDrift checks that ACLs of keys that were changed behind the service's back are repaired.
func TestKeyDrift(t *testing.T) {
	c := newCluster(t)
	s := c.open()
	mustClaim(t, s, "weather")
	key := mustIssue(t, s, ada, reader("reads")).AccessKey
	gone := mustIssue(t, s, ada, reader("gone")).AccessKey
	want := c.acls(kafka.TopicResource("weather"))
	testkit.Must(t, s.RevokeKey(t.Context(), ada, gone.ID))
	want = slices.DeleteFunc(want, func(line string) bool { return strings.Contains(line, gone.ID) })
	for name, acls := range map[string][]kafka.ACL{
		"lost":    nil,
		"revived": slices.Concat(ownerACLs("weather", ada), accessKey{AccessKey: key}.topicACLs("weather", mayRead|mayWrite), accessKey{AccessKey: gone}.topicACLs("weather", mayRead|mayWrite)),
		"widened": slices.Concat(ownerACLs("weather", ada), ownerACLs("weather", KeyPrincipal(key))),
	} {
		c.setACLs(kafka.TopicResource("weather"), acls...)
		testkit.Must(t, s.Reconcile(t.Context()))
		if have := c.acls(kafka.TopicResource("weather")); !slices.Equal(have, want) {
			t.Errorf("%s: the ACLs are %q, want %q", name, have, want)
		}
	}
}

// TestKeyUses counts the records that many logins cause.
func TestKeyUses(t *testing.T) {
	c := newCluster(t)
	one, two := c.open(), c.open()
	key := mustIssue(t, one, ada, both("busy"))
	idle := mustIssue(t, one, ada, both("idle"))
	for range 50 {
		for _, s := range []*Service{one, two} {
			if _, err := s.AuthenticateKey(t.Context(), key.ID, key.Secret); err != nil {
				t.Fatal(err)
			}
			if _, err := s.AuthenticateKey(t.Context(), idle.ID, "wrong"); err == nil {
				t.Fatal("a wrong secret is reuseName")
			}
		}
	}
	for {
		k, err := one.Key(t.Context(), ada, key.ID)
		testkit.Must(t, err)
		if k.LastUsed.Equal(startOfDay(time.Now())) {
			break
		}
	}
	if k, err := one.Key(t.Context(), ada, idle.ID); err != nil || !k.LastUsed.IsZero() {
		t.Errorf("an idle key: %+v, %v", k, err)
	}
	uses := 0
	for _, value := range c.ledger() {
		if r, err := decode(value); err == nil && r.Op == opKeyUsed {
			uses++
		}
	}
	if uses > 2 { // each replica may have written one before it saw the other's
		t.Errorf("%d uses are in the ledger, want at most one from each replica", uses)
	}
}

// TestKeysInOutage checks that a known key works during an outage, and that an unknown one is not
// refused.
func TestKeysInOutage(t *testing.T) {
	c := newCluster(t)
	s := c.open()
	key := mustIssue(t, s, ada, both("laptop"))
	if _, err := s.AuthenticateKey(t.Context(), key.ID, key.Secret); err != nil {
		t.Fatal(err)
	}
	c.fake.Close()
	s.ledger.mu.Lock()
	s.ledger.synced = s.ledger.synced.Add(-2 * keyMaxAge)
	s.ledger.mu.Unlock()
	if got, err := s.AuthenticateKey(t.Context(), key.ID, key.Secret); err != nil || got.ID != key.ID {
		t.Errorf("a known key in an outage: %+v, %v", got, err)
	}
	// No other caller waits for a cluster that has just not answered.
	s.ledger.mu.Lock()
	s.ledger.failed = time.Now().Add(time.Hour)
	failed := s.ledger.failed
	s.ledger.mu.Unlock()
	for range 1000 {
		if _, err := s.AuthenticateKey(t.Context(), key.ID, key.Secret); err != nil {
			t.Fatal(err)
		}
	}
	s.ledger.mu.Lock()
	if s.ledger.failed != failed {
		t.Error("the cluster was asked again at once")
	}
	s.ledger.failed = time.Time{}
	s.ledger.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := s.AuthenticateKey(ctx, newKeyID(), key.Secret); !errors.Is(err, diaspora.ErrUnavailable) || errors.Is(err, globus.ErrRefused) {
		t.Errorf("an unknown key in an outage: %v, want ErrUnavailable", err)
	}
	s.ledger.mu.Lock()
	s.ledger.synced = s.ledger.synced.Add(-keyMaxStale)
	s.ledger.mu.Unlock()
	if _, err := s.AuthenticateKey(ctx, key.ID, key.Secret); !errors.Is(err, diaspora.ErrUnavailable) {
		t.Errorf("a known key after an hour of outage: %v, want ErrUnavailable", err)
	}
	s.ledger.markBroken(errors.New("gone"))
	if _, err := s.AuthenticateKey(t.Context(), key.ID, key.Secret); !errors.Is(err, diaspora.ErrUnavailable) {
		t.Errorf("a known key with a broken ledger: %v, want ErrUnavailable", err)
	}
}

// TestKeySecret checks that secrets differ and have the right length.
func TestKeySecret(t *testing.T) {
	a, b := newKeySecret(), newKeySecret()
	if a == b || len(a) != len(keySecretPrefix)+43 {
		t.Errorf("secrets of %d and %d characters, equal: %v", len(a), len(b), a == b)
	}
	if id := newKeyID(); checkKeyID(id) != nil || id == newKeyID() {
		t.Errorf("ID %q: %v", id, checkKeyID(id))
	}
}

// TestSlowReplicaIssuesKey stops a replica before each change that it makes to issue a key, while
// another one revokes the key. No rights of the key may be left behind.
func TestSlowReplicaIssuesKey(t *testing.T) {
	c := newCluster(t)
	fast := c.open()
	mustClaim(t, fast, "weather")
	for n := 1; ; n++ {
		w := new(wire)
		slow := c.open(func(cfg *Config) { cfg.Admin = append(cfg.Admin, w.opts()...) })
		w.arm(n, false)
		finished := make(chan error)
		go func() {
			_, err := slow.IssueKey(t.Context(), ada, reader(fmt.Sprintf("k%d", n), "weather"))
			finished <- err
		}()
		select {
		case err := <-finished:
			if err != nil || n < 3 {
				t.Errorf("IssueKey after %d changes = %v", n-1, err)
			}
			return
		case <-w.reached:
		}
		keys, err := fast.Keys(t.Context(), ada)
		testkit.Must(t, err)
		for _, k := range keys {
			if err := fast.RevokeKey(t.Context(), ada, k.ID); err != nil {
				t.Errorf("RevokeKey = %v", err)
			}
		}
		close(w.thaw)
		err = <-finished
		t.Logf("slow before change %d, %s: %v", n, w.changes()[n-1], err)
		for _, k := range keys {
			if have := fmt.Sprint(c.acls(kafka.TopicResource("weather"))); strings.Contains(have, k.ID) {
				t.Errorf("slow before %s: the key left ACLs behind: %s", w.changes()[n-1], have)
			}
		}
		for _, k := range must(fast.Keys(t.Context(), ada)) {
			if err := fast.RevokeKey(t.Context(), ada, k.ID); err != nil {
				t.Error(err)
			}
		}
		slow.Close()
	}
}

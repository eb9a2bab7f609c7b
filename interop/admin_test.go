package interop

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// TestBlocked: a person whom an operator blocks is refused everywhere, with the login and with
// access keys, and loses open connections; afterwards all is as before.
func TestBlocked(t *testing.T) {
	parallel(t)
	f := start(t, fabric.Config{RevocationInterval: time.Second, Operators: []string{grace}})
	operator, person := fabrictest.Client(t, fabrictest.As(t, f, grace)), fabrictest.As(t, f, ada)
	subject := person.Identity.Subject
	topic := claim(t, person, 1)
	key := createKey(t, person, diaspora.AccessKeyRequest{Read: true, Write: true})
	login := fabrictest.Login(t, f, ada)
	token, _ := login.Token(f.Discovery().Globus.ResourceServer)
	ways := waysIn(t, f, key)
	ways["login"] = oauthOf(token)
	open := map[string]*kgo.Client{}
	for way, mechanism := range ways {
		open[way] = fabrictest.Kafka(t, f, mechanism)
		if err := fabrictest.Produce(t, open[way], topic); err != nil {
			t.Fatalf("%s: %v", way, err)
		}
	}

	// Nobody but an operator may, and no operator can be blocked.
	const why = "the key is on a public web page"
	_, err := fabrictest.Client(t, person).Block(testkit.Within(t), diaspora.BlockRequest{Subject: operatorOf(t, f), Why: why})
	wantError(t, "block by somebody else", err, diaspora.ErrPermission, "only operators")
	_, err = fabrictest.Client(t, person).Blocked(testkit.Within(t))
	wantError(t, "list by somebody else", err, diaspora.ErrPermission, "only operators")
	wantError(t, "unblock by somebody else", fabrictest.Client(t, person).Unblock(testkit.Within(t), subject), diaspora.ErrPermission, "only operators")
	_, err = operator.Block(testkit.Within(t), diaspora.BlockRequest{Subject: operatorOf(t, f), Why: why})
	wantError(t, "block of oneself", err, diaspora.ErrConflict, "operator")
	for _, bad := range []diaspora.BlockRequest{{Subject: subject}, {Subject: subject, Why: "a\nb"}, {Subject: subject, Why: strings.Repeat("x", 1001)}, {Subject: "*", Why: why}} {
		_, err = operator.Block(testkit.Within(t), bad)
		wantError(t, "block without sense", err, diaspora.ErrInvalid)
	}
	wantError(t, "unblock a person who is not blocked", operator.Unblock(testkit.Within(t), subject), diaspora.ErrNotFound, "not blocked")

	for range 2 { // again changes nothing
		got, err := operator.Block(testkit.Within(t), diaspora.BlockRequest{Subject: subject, Why: why})
		if err != nil || got.Subject != subject || got.By != operatorOf(t, f) || got.Why != why || time.Since(got.Since) > testkit.Patience {
			t.Fatalf("Block = %+v, %v", got, err)
		}
	}
	began := time.Now()
	for way, c := range open {
		if err := awaitRefusal(testkit.Within(t), c); err != nil {
			t.Errorf("%s: a client of a blocked person: %v", way, err)
		}
		t.Logf("%s: cut off and refused after %v", way, time.Since(began).Round(10*time.Millisecond))
	}
	for way, mechanism := range ways {
		err := fabrictest.Kafka(t, f, mechanism).Ping(testkit.Within(t))
		if err == nil || !strings.Contains(err.Error(), "the operators of this fabric have blocked you; ask the operators") || strings.Contains(err.Error(), why) {
			t.Errorf("%s: a new connection of a blocked person: %v", way, err)
		}
	}
	_, err = fabrictest.Client(t, person).Topics(testkit.Within(t))
	wantError(t, "a request of a blocked person", err, diaspora.ErrPermission, "have blocked you", "ask the operators of this fabric")
	_, err = diaspora.OpenLogger(testkit.Within(t), person)
	wantError(t, "a Logger of a blocked person", err, diaspora.ErrPermission, "have blocked you", "a new login or another key does not help")
	response, err := http.PostForm(f.Discovery().TokenURL, url.Values{
		"grant_type": {"client_credentials"}, "client_id": {key.ID}, "client_secret": {key.Secret.Reveal()},
	})
	if err != nil || response.StatusCode != http.StatusBadRequest {
		t.Errorf("a key of a blocked person is exchanged: %v, %v", response, err)
	}
	response.Body.Close()
	// Another's events pass meanwhile.
	other := fabrictest.As(t, f, grace)
	fabrictest.Log(t, fabrictest.OpenLogger(t, other), claim(t, other, 1), "x")

	list, err := operator.Blocked(testkit.Within(t))
	if err != nil || len(blockedOnly(list, subject)) != 1 || blockedOnly(list, subject)[0].Why != why {
		t.Errorf("Blocked = %+v, %v", list, err)
	}
	testkit.Must(t, operator.Unblock(testkit.Within(t), subject))
	for way, mechanism := range ways {
		if err := awaitAccess(testkit.Within(t), fabrictest.Kafka(t, f, mechanism), topic); err != nil {
			t.Errorf("%s: a person who is not blocked any more: %v", way, err)
		}
	}
	if list, err = operator.Blocked(testkit.Within(t)); err != nil || len(blockedOnly(list, subject)) != 0 {
		t.Errorf("Blocked afterwards = %+v, %v", list, err)
	}
}

// blockedOnly leaves of a list what is about the subject: the cluster under test may be an old one.
func blockedOnly(list []diaspora.Blocked, subject string) (found []diaspora.Blocked) {
	for _, b := range list {
		if b.Subject == subject {
			found = append(found, b)
		}
	}
	return found
}

// operatorOf returns the subject of grace.
func operatorOf(t *testing.T, f *fabric.Fabric) string {
	return fabrictest.As(t, f, grace).Identity.Subject
}

// awaitAccess produces until it works: a gateway remembers refusals for ten seconds.
func awaitAccess(ctx context.Context, c *kgo.Client, topic string) (err error) {
	for ctx.Err() == nil {
		if err = c.ProduceSync(ctx, &kgo.Record{Topic: topic, Value: []byte("x")}).FirstErr(); err == nil {
			return nil
		}
	}
	return errors.Join(ctx.Err(), err)
}

package fabric_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/inside"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// TestShareByName shares a topic with a colleague by username and with a laboratory by its Globus
// group. They use it through the gateway, and lose it at the next request after it was taken away.
func TestShareByName(t *testing.T) {
	t.Parallel()
	f := fabrictest.Start(t, fabric.Config{})
	hers, his := fabrictest.As(t, f, ada), fabrictest.As(t, f, grace)
	owner, colleague := fabrictest.Client(t, hers), fabrictest.Client(t, his)
	ctx := testkit.Within(t)
	fabrictest.Claim(t, hers, "weather")
	fabrictest.Claim(t, his, "own") // so that he may write at all
	fabrictest.Log(t, fabrictest.OpenLogger(t, hers), "weather", "sunny")

	who, err := owner.LookUp(ctx, strings.ToUpper(grace))
	if err != nil || who.Username != grace || who.Subject == "" || who.Email != "" {
		t.Fatalf("LookUp = %+v, %v", who, err)
	}
	if _, err := owner.LookUp(ctx, "nobody@example.org"); !errors.Is(err, diaspora.ErrNotFound) {
		t.Errorf("LookUp of nobody = %v, want ErrNotFound", err)
	}
	got, err := owner.Share(ctx, "weather", diaspora.GrantRequest{Username: grace, Read: true})
	if err != nil || got.Subject != who.Subject || got.Username != grace {
		t.Fatalf("Share = %+v, %v", got, err)
	}
	if values := fabrictest.Values(fabrictest.ReadAll(t, his, "weather")); len(values) != 1 || values[0] != "sunny" {
		t.Errorf("the colleague reads %q", values)
	}
	consumer := fabrictest.OpenConsumer(t, his, diaspora.ConsumerOptions{Topics: []string{"weather"}, From: diaspora.Start})
	fabrictest.Read(t, consumer, 1)
	if err := fabrictest.Produce(t, fabrictest.Kafka(t, f, fabrictest.ByPlain(fabrictest.CreateKey(t, his, diaspora.AccessKeyRequest{Name: "all", Read: true, Write: true}))), "weather"); !errors.Is(err, kerr.TopicAuthorizationFailed) {
		t.Errorf("a reader writes: %v, want TOPIC_AUTHORIZATION_FAILED", err)
	}
	testkit.Must(t, owner.Unshare(ctx, "weather", who.Subject))
	fabrictest.Log(t, fabrictest.OpenLogger(t, hers), "weather", "rainy")
	read := 0
	for _, err := range consumer.Records(testkit.Within(t)) {
		if err == nil && read == 0 {
			read++ // the answer to a request that was waiting at the broker already
			continue
		}
		if !errors.Is(err, diaspora.ErrPermission) {
			t.Errorf("an open Consumer, after it was taken away: %v, want ErrPermission", err)
		}
		break
	}

	log, err := owner.Log(ctx, "weather")
	var ops []string
	for _, e := range log {
		ops = append(ops, e.Op)
		if e.Username != ada {
			t.Errorf("the log names %q for %s, want %s", e.Username, e.Op, ada)
		}
	}
	if got := strings.Join(ops, " "); err != nil || got != "claim share unshare" || log[1].Grant.Username != grace {
		t.Errorf("Log = %s, %+v, %v", got, log, err)
	}
	if _, err := colleague.Log(ctx, "weather"); !errors.Is(err, diaspora.ErrPermission) {
		t.Errorf("a stranger sees the log: %v", err)
	}

	auth := inside.Of(f).Globus
	lab, err := auth.AddGroup(globusdev.Group{Name: "The laboratory"})
	testkit.Must(t, err)
	_, err = owner.Share(ctx, "weather", diaspora.GrantRequest{Group: lab, Read: true})
	if !errors.Is(err, diaspora.ErrPermission) || !strings.Contains(err.Error(), "@clients.auth.globus.org") {
		t.Errorf("Share with a group that the service is not in = %v, want ErrPermission, and whom to add", err)
	}
	testkit.Must(t, auth.SetMember(globusdev.GroupMember{Group: lab, Identity: globusdev.ResourceServerID + "@clients.auth.globus.org", Role: "manager"}))
	testkit.Must(t, auth.SetMember(globusdev.GroupMember{Group: lab, Identity: grace}))
	_, err = owner.Share(ctx, "weather", diaspora.GrantRequest{Group: lab, Read: true, Expires: time.Now().Add(time.Hour)})
	testkit.Must(t, err)
	if values := fabrictest.Values(fabrictest.ReadAll(t, his, "weather")); len(values) != 2 {
		t.Errorf("a member of the group reads %q", values)
	}
	grants, err := owner.Grants(ctx, "weather")
	if err != nil || len(grants) != 1 || grants[0].Group != lab || !slices.Contains(grants[0].Members, diaspora.GroupMember{Subject: who.Subject, Username: grace}) ||
		!slices.ContainsFunc(grants[0].Members, func(m diaspora.GroupMember) bool { return m.Service }) {
		t.Errorf("Grants = %+v, %v", grants, err)
	}
	grouped := fabrictest.OpenConsumer(t, his, diaspora.ConsumerOptions{Topics: []string{"weather"}, Group: "analysis", From: diaspora.Start})
	fabrictest.Read(t, grouped, 2)
	testkit.Must(t, grouped.Close(ctx))
	fabrictest.Log(t, fabrictest.OpenLogger(t, hers), "weather", "foggy")
	// The event that was read last was not processed, as far as the Consumer knows.
	readers, err := owner.Readers(ctx, "weather")
	if want := (diaspora.Reader{Subject: who.Subject, Username: grace, Group: "analysis", Lag: 2}); err != nil || len(readers) != 1 || readers[0] != want {
		t.Errorf("Readers = %+v, %v, want %+v", readers, err, want)
	}
	if _, err := colleague.Readers(ctx, "weather"); !errors.Is(err, diaspora.ErrPermission) {
		t.Errorf("a reader sees the readers: %v", err)
	}
	if list, err := colleague.Topics(ctx); err != nil || len(list.Shared) != 1 || !list.Shared[0].Read || list.Shared[0].OwnerUsername != ada {
		t.Errorf("the colleague's topics are %+v, %v", list, err)
	}
}

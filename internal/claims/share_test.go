package claims

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

func mustShare(t *testing.T, s *Service, topic string, with diaspora.GrantRequest) diaspora.Grant {
	t.Helper()
	g, err := s.Share(t.Context(), ada, topic, with)
	testkit.Must(t, err)
	return g
}

// may fails the test unless a subject can read and write as wanted.
func (c *testCluster) may(subject, topic string, read, write bool) {
	c.t.Helper()
	if err := c.produce(subject, topic, "x"); (err == nil) != write {
		c.t.Errorf("%s writes to %s: %v, want it allowed: %v", subject, topic, err, write)
	}
	if _, err := c.consume(subject, topic); (err == nil) != read {
		c.t.Errorf("%s reads %s: %v, want it allowed: %v", subject, topic, err, read)
	}
}

// TestShare shares a topic in each way, uses it as the other person, and ends it again.
func TestShare(t *testing.T) {
	c := newCluster(t)
	s := c.open()
	mustClaim(t, s, "weather")
	testkit.Must(t, c.produce(ada, "weather", "sunny"))
	c.may(ben, "weather", false, false)

	got := mustShare(t, s, "weather", diaspora.GrantRequest{Subject: ben, Username: "ben@example.org", Read: true})
	if got.Subject != ben || !got.Read || got.Write || got.By != ada || got.Username != "ben@example.org" {
		t.Errorf("Share = %+v", got)
	}
	c.may(ben, "weather", true, false)
	c.may(cleo, "weather", false, false)
	mustShare(t, s, "weather", diaspora.GrantRequest{Subject: ben, Write: true}) // in place of the right to read
	c.may(ben, "weather", false, true)
	mustShare(t, s, "weather", diaspora.GrantRequest{Public: true, Read: true})
	c.may(cleo, "weather", true, false)

	list, err := s.Topics(t.Context(), ben)
	if err != nil || len(list.Topics) != 0 || len(list.Shared) != 1 || !list.Shared[0].Write || !list.Shared[0].Public {
		t.Errorf("ben's topics are %+v, %v", list, err)
	}
	if list, err = s.Topics(t.Context(), cleo); err != nil || len(list.Shared) != 0 || len(list.Public) != 1 || !list.Public[0].Read {
		t.Errorf("cleo's topics are %+v, %v", list, err)
	}
	for subject, want := range map[string]int{ada: 2, ben: 2, cleo: 1} {
		if grants, err := s.Grants(t.Context(), subject, "weather"); err != nil || len(grants) != want {
			t.Errorf("%s sees the grants %+v, %v, want %d", subject, grants, err, want)
		}
	}

	testkit.Must(t, s.Unshare(t.Context(), ada, "weather", publicGrantee))
	c.may(cleo, "weather", false, false)
	testkit.Must(t, s.Unshare(t.Context(), ben, "weather", ben)) // who does not want it any more
	c.may(ben, "weather", false, false)
	if err := s.Unshare(t.Context(), ada, "weather", ben); !errors.Is(err, diaspora.ErrNotFound) {
		t.Errorf("a second Unshare = %v, want ErrNotFound", err)
	}
	c.check()
}

// TestShareRefusals checks who may share what with whom.
func TestShareRefusals(t *testing.T) {
	c := newCluster(t)
	s := c.open(func(cfg *Config) { cfg.Limits.Grants = 2 })
	mustClaim(t, s, "weather")
	mustShare(t, s, "weather", diaspora.GrantRequest{Subject: ben, Read: true, Write: true})
	before := c.acls(kafka.TopicResource("weather"))
	for name, refused := range map[string]struct {
		by, topic string
		with      diaspora.GrantRequest
		want      error
	}{
		"a stranger":             {cleo, "weather", diaspora.GrantRequest{Subject: cleo, Read: true}, diaspora.ErrPermission},
		"a writer":               {ben, "weather", diaspora.GrantRequest{Subject: cleo, Read: true}, diaspora.ErrPermission},
		"nobody's topic":         {ada, "wether", diaspora.GrantRequest{Subject: ben, Read: true}, diaspora.ErrNotFound},
		"no right":               {ada, "weather", diaspora.GrantRequest{Subject: cleo}, diaspora.ErrInvalid},
		"public to write":        {ada, "weather", diaspora.GrantRequest{Public: true, Read: true, Write: true}, diaspora.ErrInvalid},
		"nobody":                 {ada, "weather", diaspora.GrantRequest{Read: true}, diaspora.ErrInvalid},
		"two":                    {ada, "weather", diaspora.GrantRequest{Subject: cleo, Public: true, Read: true}, diaspora.ErrInvalid},
		"a wildcard":             {ada, "weather", diaspora.GrantRequest{Subject: "*", Read: true}, diaspora.ErrInvalid},
		"a username":             {ada, "weather", diaspora.GrantRequest{Subject: "cleo@example.org", Read: true}, diaspora.ErrInvalid},
		"the owner":              {ada, "weather", diaspora.GrantRequest{Subject: ada, Read: true}, diaspora.ErrConflict},
		"in the past":            {ada, "weather", diaspora.GrantRequest{Subject: cleo, Read: true, Expires: time.Now().Add(-time.Hour)}, diaspora.ErrInvalid},
		"before all time":        {ada, "weather", diaspora.GrantRequest{Subject: cleo, Read: true, Expires: time.Time{}.Add(time.Millisecond)}, diaspora.ErrInvalid},
		"everybody, as a person": {ada, "weather", diaspora.GrantRequest{Subject: publicGrantee, Read: true}, diaspora.ErrInvalid},
		"a group, as a person":   {ada, "weather", diaspora.GrantRequest{Subject: groupGrantee + lab, Read: true}, diaspora.ErrInvalid},
		"a group, unreadable":    {ada, "weather", diaspora.GrantRequest{Group: lab, Read: true}, diaspora.ErrInvalid},
		"a line of text":         {ada, "weather", diaspora.GrantRequest{Subject: cleo, Username: "a\nb", Read: true}, diaspora.ErrInvalid},
	} {
		if _, err := s.Share(t.Context(), refused.by, refused.topic, refused.with); !errors.Is(err, refused.want) {
			t.Errorf("%s: Share = %v, want %v", name, err, refused.want)
		}
	}
	if after := c.acls(kafka.TopicResource("weather")); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("the ACLs are %q, and were %q", after, before)
	}
	mustShare(t, s, "weather", diaspora.GrantRequest{Public: true, Read: true})
	if _, err := s.Share(t.Context(), ada, "weather", diaspora.GrantRequest{Subject: cleo, Read: true}); !errors.Is(err, diaspora.ErrPermission) || !strings.Contains(err.Error(), "max-grants") {
		t.Errorf("Share over the limit = %v", err)
	}
	c.check()
}

// TestManager checks that a manager can do everything but release and transfer the topic.
func TestManager(t *testing.T) {
	c := newCluster(t)
	s := c.open()
	mustClaim(t, s, "weather")
	mustShare(t, s, "weather", diaspora.GrantRequest{Subject: ben, Manage: true})
	c.may(ben, "weather", true, true)
	_, err := s.Share(t.Context(), ben, "weather", diaspora.GrantRequest{Subject: cleo, Read: true})
	testkit.Must(t, err)
	_, err = s.SetTopic(t.Context(), ben, "weather", diaspora.TopicSettings{RetentionMS: 1000})
	testkit.Must(t, err)
	_, retire := s.Retire(t.Context(), ben, "weather")
	for what, err := range map[string]error{
		"Release": s.Release(t.Context(), ben, "weather"), "Retire": retire, "Offer": s.Offer(t.Context(), ben, "weather", cleo),
	} {
		if !errors.Is(err, diaspora.ErrPermission) {
			t.Errorf("%s by a manager = %v, want ErrPermission", what, err)
		}
	}
	testkit.Must(t, s.Unshare(t.Context(), ada, "weather", ben))
	c.may(ben, "weather", false, false)
	c.may(cleo, "weather", true, false) // what the manager gave stays
	c.check()
}

// TestShareExpires checks that a share ends by itself.
func TestShareExpires(t *testing.T) {
	c := newCluster(t)
	s := c.open()
	mustClaim(t, s, "weather")
	testkit.Must(t, c.produce(ada, "weather", "sunny"))
	mustShare(t, s, "weather", diaspora.GrantRequest{Subject: ben, Read: true, Expires: time.Now().Add(3 * time.Second)})
	c.may(ben, "weather", true, false)
	testkit.Eventually(t, "the end of the share", func() bool {
		return !strings.Contains(fmt.Sprint(c.acls(kafka.TopicResource("weather"))), ben)
	})
	c.may(ben, "weather", false, false)
	testkit.Must(t, s.Ready(t.Context()))
	c.check()
}

// TestLinkedIdentities checks that a share with one identity of a person holds for the one under which
// the person signs in, as long as the two are linked.
func TestLinkedIdentities(t *testing.T) {
	c := newCluster(t)
	s := c.open()
	other := c.open()
	mustClaim(t, s, "weather")
	testkit.Must(t, c.produce(ada, "weather", "sunny"))
	mustShare(t, s, "weather", diaspora.GrantRequest{Subject: ben, Read: true})
	c.may(cleo, "weather", false, false)
	linked := globus.Identity{Subject: cleo, IdentitySet: []string{cleo, ben}}
	testkit.Must(t, other.Linked(t.Context(), linked))
	c.may(cleo, "weather", true, false)
	records := len(c.ledger())
	testkit.Must(t, other.Linked(t.Context(), linked))
	testkit.Must(t, s.Linked(t.Context(), globus.Identity{Subject: cleo})) // without the set, nothing is known
	if now := len(c.ledger()); now != records {
		t.Errorf("the second login added %d records to the ledger", now-records)
	}
	if list, err := s.Topics(t.Context(), cleo); err != nil || len(list.Shared) != 1 {
		t.Errorf("cleo's topics are %+v, %v", list, err)
	}
	testkit.Must(t, s.Ready(t.Context()))
	testkit.Must(t, s.Linked(t.Context(), globus.Identity{Subject: cleo, IdentitySet: []string{cleo}}))
	c.may(cleo, "weather", false, false)
	c.may(ben, "weather", true, false)
	c.check()
}

// TestGroup checks that a share with a Globus group holds for its members, as they come and go.
func TestGroup(t *testing.T) {
	c := newCluster(t)
	members, failed := []string{ben}, error(nil)
	hidden := make(map[string]time.Time)
	s := c.open(func(cfg *Config) {
		cfg.Groups = func(_ context.Context, group string) ([]string, error) {
			if group != lab {
				return nil, fmt.Errorf("%w: there is no such group", diaspora.ErrNotFound)
			}
			return members, failed
		}
	})
	mustClaim(t, s, "weather")
	testkit.Must(t, c.produce(ada, "weather", "sunny"))
	if _, err := s.Share(t.Context(), ada, "weather", diaspora.GrantRequest{Group: ben, Read: true}); !errors.Is(err, diaspora.ErrNotFound) {
		t.Errorf("Share with an unknown group = %v, want ErrNotFound", err)
	}
	mustShare(t, s, "weather", diaspora.GrantRequest{Group: lab, Read: true})
	c.may(ben, "weather", true, false)
	c.may(cleo, "weather", false, false)
	members = []string{cleo}
	s.updateGroups(t.Context(), hidden)
	c.may(ben, "weather", false, false)
	c.may(cleo, "weather", true, false)
	grants, err := s.Grants(t.Context(), ada, "weather")
	if err != nil || len(grants) != 1 || grants[0].Group != lab || !slices.Equal(grants[0].Members, []diaspora.GroupMember{{Subject: members[0]}}) {
		t.Errorf("Grants = %+v, %v", grants, err)
	}
	failed = diaspora.ErrUnavailable
	s.updateGroups(t.Context(), hidden)
	c.may(cleo, "weather", true, false) // an outage of Globus takes nothing away
	failed = diaspora.ErrPermission     // the service is not in the group any more, at first perhaps by mistake
	s.updateGroups(t.Context(), hidden)
	c.may(cleo, "weather", true, false)
	hidden[groupGrantee+lab] = hidden[groupGrantee+lab].Add(-2 * maxHidden)
	s.updateGroups(t.Context(), hidden)
	c.may(cleo, "weather", false, false)
	failed = nil
	s.updateGroups(t.Context(), hidden)
	c.may(cleo, "weather", true, false)
	failed = diaspora.ErrNotFound // the group is gone
	s.updateGroups(t.Context(), hidden)
	c.may(cleo, "weather", false, false)
	testkit.Must(t, s.Unshare(t.Context(), ada, "weather", groupGrantee+lab))
	c.check()
}

// TestKeysOfOthers checks that access keys work on shared topics, with no more rights than their owner
// has at that moment, and that a new share does not widen a key.
func TestKeysOfOthers(t *testing.T) {
	c := newCluster(t)
	s := c.open()
	mustClaim(t, s, "weather")
	mustShare(t, s, "weather", diaspora.GrantRequest{Subject: ben, Read: true})
	if _, err := s.IssueKey(t.Context(), ben, diaspora.AccessKeyRequest{Name: "more", Topics: []string{"weather"}, Read: true, Write: true}); !errors.Is(err, diaspora.ErrPermission) {
		t.Errorf("a key with more rights = %v, want ErrPermission", err)
	}
	wide := mustIssue(t, s, ben, diaspora.AccessKeyRequest{Name: "wide", Read: true})
	named := mustIssue(t, s, ben, diaspora.AccessKeyRequest{Name: "named", Topics: []string{"weather"}, Read: true})
	lines := func() string { return fmt.Sprint(c.acls(kafka.TopicResource("weather"))) }
	if !strings.Contains(lines(), named.ID) || strings.Contains(lines(), wide.ID) {
		t.Errorf("the ACLs are %s, want those of %s, and none of %s, which is for all of ben's own topics", lines(), named.ID, wide.ID)
	}
	mustShare(t, s, "weather", diaspora.GrantRequest{Subject: ben, Write: true})
	if strings.Contains(lines(), named.ID) {
		t.Errorf("the key that reads is still in the ACLs %s of a topic that its owner may only write", lines())
	}
	mustShare(t, s, "weather", diaspora.GrantRequest{Subject: ben, Read: true})
	if !strings.Contains(lines(), named.ID) {
		t.Errorf("the key is not in the ACLs %s again", lines())
	}
	testkit.Must(t, s.Unshare(t.Context(), ada, "weather", ben))
	if strings.Contains(lines(), ben) {
		t.Errorf("the ACLs %s still name ben", lines())
	}
	c.check()
}

// TestForeignACLs checks that the right of everybody that an operator gave by hand is not taken for a
// share.
func TestForeignACLs(t *testing.T) {
	c := newCluster(t)
	s := c.open()
	mustClaim(t, s, "weather")
	all := kafka.Allow(kafka.TopicResource("weather"), principal("*"), kmsg.ACLOperationRead)
	_, err := c.admin().SetACLs(t.Context(), kafka.TopicResource("weather"), all, func(kafka.ACL) bool { return false })
	testkit.Must(t, err)
	testkit.Must(t, s.Reconcile(t.Context()))
	if lines := fmt.Sprint(c.acls(kafka.TopicResource("weather"))); !strings.Contains(lines, principal("*")) {
		t.Errorf("the operator's ACL is gone: %s", lines)
	}
}

// TestSettings changes each setting of a topic.
func TestSettings(t *testing.T) {
	c := newCluster(t)
	s := c.open(func(cfg *Config) { cfg.Compaction, cfg.Limits.Partitions = true, 5 })
	mustClaim(t, s, "weather")
	text, yes := "what it is like", true
	change, err := s.SetTopic(t.Context(), ada, "weather", diaspora.TopicSettings{Partitions: 4, RetentionMS: 60_000, MaxBytes: 1 << 20, Description: &text, Compact: &yes})
	testkit.Must(t, err)
	if b, a := change.Before, change.After; b.Partitions != 1 || a.Partitions != 4 || a.RetentionMS != 60_000 || a.MaxBytes != 1<<20 || a.Description != text || !a.Compact {
		t.Errorf("SetTopic = %+v", change)
	}
	configs := func() map[string]string {
		t.Helper()
		configs, err := c.admin().TopicConfigs(t.Context(), "weather")
		testkit.Must(t, err)
		return configs
	}
	if got := configs(); got["retention.ms"] != "60000" || got["retention.bytes"] != "1048576" || got["cleanup.policy"] != "compact" {
		t.Errorf("the cluster's settings are %v", got)
	}
	if info, _, err := c.admin().Topic(t.Context(), "weather"); err != nil || info.Partitions != 4 {
		t.Errorf("the cluster's topic is %+v, %v", info, err)
	}
	_, err = s.SetTopic(t.Context(), ada, "weather", diaspora.TopicSettings{MaxBytes: -1})
	testkit.Must(t, err)
	if got := configs()["retention.bytes"]; got != "-1" {
		t.Errorf("retention.bytes is %s", got)
	}
	for name, refused := range map[string]struct {
		by   string
		set  diaspora.TopicSettings
		want error
	}{
		"fewer partitions": {ada, diaspora.TopicSettings{Partitions: 3}, diaspora.ErrInvalid},
		"above max":        {ada, diaspora.TopicSettings{Partitions: 101}, diaspora.ErrInvalid},
		"above the total":  {ada, diaspora.TopicSettings{Partitions: 6}, diaspora.ErrPermission},
		"nothing":          {ada, diaspora.TopicSettings{}, diaspora.ErrInvalid},
		"a stranger":       {ben, diaspora.TopicSettings{RetentionMS: -1}, diaspora.ErrPermission},
		"bad retention":    {ada, diaspora.TopicSettings{RetentionMS: -2}, diaspora.ErrInvalid},
	} {
		if _, err := s.SetTopic(t.Context(), refused.by, "weather", refused.set); !errors.Is(err, refused.want) {
			t.Errorf("%s: SetTopic = %v, want %v", name, err, refused.want)
		}
	}
	short := c.open(func(cfg *Config) { cfg.MaxRetention, cfg.DefaultRetention = time.Hour, time.Minute })
	for _, ms := range []int64{-1, 2 * time.Hour.Milliseconds()} {
		if _, err := short.SetTopic(t.Context(), ada, "weather", diaspora.TopicSettings{RetentionMS: ms}); !errors.Is(err, diaspora.ErrInvalid) || !strings.Contains(err.Error(), "for 1 hour at most (max-retention)") {
			t.Errorf("retention of %d ms above the limit: %v", ms, err)
		}
		if _, err := short.Claim(t.Context(), ada, diaspora.ClaimRequest{Name: "long", RetentionMS: ms}); !errors.Is(err, diaspora.ErrInvalid) {
			t.Errorf("claim with %d ms above the limit: %v", ms, err)
		}
	}
	if got := configs()["retention.ms"]; got != "60000" {
		t.Errorf("retention.ms is %s after refusals", got)
	}
	c.check()
}

// TestUsage checks what is said about how much is in topics.
func TestUsage(t *testing.T) {
	c := newCluster(t)
	s := c.open()
	mustClaim(t, s, "weather")
	mustClaim(t, s, "empty")
	for range 3 {
		testkit.Must(t, c.produce(ada, "weather", "sunny"))
	}
	got, err := s.Usage(t.Context(), []string{"weather", "empty", "missing"})
	if weather := got["weather"]; err != nil || len(got) != 2 || weather.Records != 3 || weather.Bytes <= 0 || time.Since(weather.LastEvent) > time.Minute {
		t.Errorf("Usage = %+v, %v", got, err)
	}
	if empty := got["empty"]; empty != (diaspora.TopicUsage{}) {
		t.Errorf("Usage of an empty topic = %+v", empty)
	}
	if got, err := s.Usage(t.Context(), nil); err != nil || got != nil {
		t.Errorf("Usage of no topics = %+v, %v", got, err)
	}
}

// TestTransfer hands a topic to another person.
func TestTransfer(t *testing.T) {
	c := newCluster(t)
	s := c.open(func(cfg *Config) { cfg.Admission.Operators = []string{cleo} })
	mustClaim(t, s, "weather")
	testkit.Must(t, c.produce(ada, "weather", "sunny"))
	if _, err := s.Accept(t.Context(), ben, "weather"); !errors.Is(err, diaspora.ErrPermission) {
		t.Errorf("Accept without an offer = %v, want ErrPermission", err)
	}
	for name, want := range map[string]error{"rain": diaspora.ErrNotFound, "*": diaspora.ErrInvalid} {
		if _, err := s.Accept(t.Context(), ben, name); !errors.Is(err, want) {
			t.Errorf("Accept of %q = %v, want %v", name, err, want)
		}
	}
	testkit.Must(t, s.Offer(t.Context(), ada, "weather", ben))
	if list, err := s.Topics(t.Context(), ben); err != nil || len(list.Offered) != 1 {
		t.Errorf("ben's topics are %+v, %v", list, err)
	}
	testkit.Must(t, s.Offer(t.Context(), ada, "weather", ada)) // takes it back
	if _, err := s.Accept(t.Context(), ben, "weather"); !errors.Is(err, diaspora.ErrPermission) {
		t.Errorf("Accept of an offer that was withdrawn = %v, want ErrPermission", err)
	}
	testkit.Must(t, s.Offer(t.Context(), ada, "weather", ben))
	got, err := s.Accept(t.Context(), ben, "weather")
	if err != nil || got.Owner != ben || !got.Manage {
		t.Errorf("Accept = %+v, %v", got, err)
	}
	c.may(ada, "weather", false, false)
	c.may(ben, "weather", true, true)
	testkit.Must(t, s.Offer(t.Context(), ben, "weather", ada))
	if got, err := s.Accept(t.Context(), cleo, "weather"); err != nil || got.Owner != ada { // an operator
		t.Errorf("Accept by an operator = %+v, %v", got, err)
	}
	c.may(ada, "weather", true, true)
	c.check()
}

// TestRestore releases a topic and restores it, with its events and its shares.
func TestRestore(t *testing.T) {
	c := newCluster(t)
	s := c.open()
	mustClaim(t, s, "weather")
	testkit.Must(t, c.produce(ada, "weather", "sunny"))
	mustShare(t, s, "weather", diaspora.GrantRequest{Subject: ben, Read: true})
	got, err := s.Retire(t.Context(), ada, "weather")
	if left := time.Until(got.Released); err != nil || left < 23*time.Hour || left > 24*time.Hour {
		t.Errorf("Retire = %+v, %v", got, err)
	}
	c.may(ada, "weather", false, false)
	c.may(ben, "weather", false, false)
	if _, err := s.Claim(t.Context(), ben, diaspora.ClaimRequest{Name: "weather"}); !errors.Is(err, diaspora.ErrConflict) {
		t.Errorf("another's Claim = %v, want ErrConflict", err)
	}
	if _, err := s.Claim(t.Context(), ada, diaspora.ClaimRequest{Name: "weather"}); !errors.Is(err, diaspora.ErrConflict) || !strings.Contains(err.Error(), "restore") {
		t.Errorf("the owner's Claim = %v, want ErrConflict that names restore", err)
	}
	if _, err := s.Restore(t.Context(), ben, "weather"); !errors.Is(err, diaspora.ErrPermission) {
		t.Errorf("another's Restore = %v, want ErrPermission", err)
	}
	if got, err := s.Retire(t.Context(), ben, "weather"); !errors.Is(err, diaspora.ErrPermission) || got != (diaspora.Topic{}) {
		t.Errorf("another's Retire = %+v, %v, want ErrPermission and nothing about the topic", got, err)
	}
	if _, err := s.Share(t.Context(), cleo, "weather", diaspora.GrantRequest{Subject: cleo, Read: true}); !errors.Is(err, diaspora.ErrPermission) {
		t.Errorf("a stranger's Share = %v, want ErrPermission", err)
	}
	if _, err := s.Share(t.Context(), ada, "weather", diaspora.GrantRequest{Subject: cleo, Read: true}); !errors.Is(err, diaspora.ErrConflict) {
		t.Errorf("the owner's Share = %v, want ErrConflict", err)
	}
	if got, err := s.Retire(t.Context(), ada, "weather"); err != nil || got.Owner != ada || got.Released.IsZero() {
		t.Errorf("a second Retire = %+v, %v", got, err)
	}
	if grants, err := s.Grants(t.Context(), ada, "weather"); err != nil || len(grants) != 1 {
		t.Errorf("the owner sees the grants %+v, %v", grants, err)
	}
	if got, err = s.Restore(t.Context(), ada, "weather"); err != nil || !got.Read || !got.Write || !got.Manage || !got.Released.IsZero() {
		t.Errorf("Restore = %+v, %v, want a topic that its owner can use", got, err)
	}
	if event, err := c.consume(ben, "weather"); err != nil || event != "sunny" {
		t.Errorf("ben reads %q, %v", event, err)
	}
	c.may(ada, "weather", true, true)
	c.check()

	// Once the day has passed, it is deleted.
	yesterday := changeOf(s, opRetire, "weather")
	yesterday.Expires = yesterday.Time.Add(-time.Minute)
	testkit.Must(t, s.ledger.append(t.Context(), yesterday))
	testkit.Must(t, s.Reconcile(t.Context()))
	if c.hasTopic("weather") {
		t.Error("the topic is still there")
	}
	mustShareFails := errors.Is(s.Unshare(t.Context(), ada, "weather", ben), diaspora.ErrNotFound)
	if !mustShareFails {
		t.Error("a share of a deleted topic can be ended")
	}
	c.check()
}

package claims

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// userGroups are the ACLs on the groups that the gateway uses.
var userGroups = []string{
	"GROUP user. User:* * ALLOW DELETE",
	"GROUP user. User:* * ALLOW DESCRIBE",
	"GROUP user. User:* * ALLOW DESCRIBE_CONFIGS",
	"GROUP user. User:* * ALLOW READ",
}

func TestGroups(t *testing.T) {
	c := newCluster(t)
	c.open()
	if got := c.acls(kafka.GroupPrefix(kafka.UserGroups)); !slices.Equal(got, userGroups) {
		t.Errorf("ACLs on the groups of all users = %q, want %q", got, userGroups)
	}
	if got := c.acls(groupResource("*")); len(got) != 0 {
		t.Errorf("ACLs on every group = %q, want none", got)
	}
}

// groupResource returns the consumer group of this name; "*" is every group.
func groupResource(name string) kafka.Resource {
	return kafka.Resource{Type: kmsg.ACLResourceTypeGroup, Name: name}
}

// TestGroupsOfEarlierVersions opens a cluster whose groups were open to everyone, or claimed. The
// ACLs for that must be removed, and an operator's ACLs must stay. The subject that claimed a
// group, or owns a topic, must resume at the group's offsets.
func TestGroupsOfEarlierVersions(t *testing.T) {
	c := newCluster(t)
	s := c.open()
	mustClaim(t, s, "weather") // ada's
	if _, err := s.Claim(t.Context(), ben, diaspora.ClaimRequest{Name: "snow"}); err != nil {
		t.Fatal(err)
	}
	old := newRecord(opClaimGroup, ben)
	old.Group, old.Limit = "plots", 1000
	text, err := json.Marshal(old)
	testkit.Must(t, err)
	c.append(string(text))
	s.Close()

	allow := func(resource kafka.Resource, who string, operations ...kmsg.ACLOperation) {
		c.setACLs(resource, kafka.Allow(resource, who, operations...)...)
	}
	allow(groupResource("*"), "User:*", kmsg.ACLOperationRead, kmsg.ACLOperationDescribe)
	allow(groupResource("plots"), principal(ben), kmsg.ACLOperationRead, kmsg.ACLOperationDescribe, kmsg.ACLOperationDelete)
	allow(groupResource("mirror"), "User:mirror", kmsg.ACLOperationRead)
	admin := kadm.NewClient(c.client("admin"))
	commit := func(group, topic string, at int64) {
		t.Helper()
		var offsets kadm.Offsets
		offsets.AddOffset(topic, 0, at, -1)
		testkit.Must(t, admin.CommitAllOffsets(t.Context(), group, offsets))
	}
	commit("analysis", "weather", 7)
	commit("analysis", "snow", 8)
	commit("plots", "weather", 9)
	c.createTopic("nobodys")
	commit("gone", "nobodys", 10)
	commit(kafka.UserGroups+ben+".analysis", "snow", 80) // committed after the gateway was upgraded

	// A new group that already has a consumer is skipped, and does not delay the others.
	commit("busy", "snow", 5)
	busy := c.client("admin", kgo.ConsumeTopics("snow"), kgo.ConsumerGroup(kafka.UserGroups+ben+".busy"))
	for {
		if members, err := admin.DescribeGroups(t.Context(), kafka.UserGroups+ben+".busy"); err == nil && len(members[kafka.UserGroups+ben+".busy"].Members) > 0 {
			break
		}
		busy.PollFetches(soon(t))
	}

	for range 2 { // repeating it does no harm
		c.open().Close()
		for group, want := range map[string]map[string]int64{
			ada + ".analysis": {"weather": 7},
			ben + ".analysis": {"snow": 80},
			ben + ".plots":    {"weather": 9},
			ada + ".plots":    {},
			ada + ".gone":     {},
		} {
			offsets, err := admin.FetchOffsets(t.Context(), kafka.UserGroups+group)
			if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
				t.Fatal(err)
			}
			for _, topic := range []string{"weather", "snow", "nobodys"} {
				at, ok := want[topic]
				if got, has := offsets.Lookup(topic, 0); has != ok || got.At != at {
					t.Errorf("group %s in %s is at %d (%v), want %d (%v)", group, topic, got.At, has, at, ok)
				}
			}
		}
	}
	for resource, want := range map[kafka.Resource]int{
		groupResource("*"): 0, groupResource("plots"): 0, groupResource("mirror"): 1,
		kafka.GroupPrefix(kafka.UserGroups): len(userGroups),
	} {
		if got := c.acls(resource); len(got) != want {
			t.Errorf("ACLs of %v = %q, want %d", resource, got, want)
		}
	}
}

// soon returns a context that ends soon.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

package interop

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// TestGroupsFromOutside describes a group, and moves it while it has a member, as "diaspora group" does. It does so
// for both types of groups and for static members. The cluster accepts no offsets from outside while there is a
// member. Once the member is removed, it does, and the member joins again and continues at the new position.
func TestGroupsFromOutside(t *testing.T) {
	parallel(t)
	f := start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	for _, test := range []struct {
		name, kind string
		opts       []kgo.Opt
	}{
		{"classic", kafka.ClassicGroup, []kgo.Opt{kgo.Balancers(kgo.RangeBalancer())}},
		{"classic cooperative", kafka.ClassicGroup, []kgo.Opt{kgo.Balancers(kgo.CooperativeStickyBalancer())}},
		{"classic static", kafka.ClassicGroup, []kgo.Opt{kgo.Balancers(kgo.RangeBalancer()), kgo.InstanceID("mine")}},
		{"KIP-848", kafka.ConsumerGroup, []kgo.Opt{kgo.ServerSideBalancer()}},
		{"KIP-848 static", kafka.ConsumerGroup, []kgo.Opt{kgo.ServerSideBalancer(), kgo.InstanceID("mine")}},
	} {
		t.Run(test.name, func(t *testing.T) {
			parallel(t)
			topic, group := claim(t, cfg, 1), unique(t)
			at := kafka.Partition{Topic: topic, Partition: 0}
			fabrictest.Log(t, fabrictest.OpenLogger(t, cfg), topic, fabrictest.Numbers(0, 10)...)
			member := groupMember(t, cfg, topic, group, test.opts...)
			member.await(t, 10)
			ctx := testkit.Within(t)
			admin, err := diaspora.Dial(ctx, cfg)
			testkit.Must(t, err)
			defer admin.Close()

			listed, err := kafka.Groups(ctx, admin)
			testkit.Must(t, err)
			i := slices.IndexFunc(listed, func(g kafka.Group) bool { return g.ID == group })
			if i < 0 || listed[i].Type != test.kind {
				t.Fatalf("the groups are %+v, want %s of type %q", listed, group, test.kind)
			}
			var described []kafka.Group
			testkit.Eventually(t, "the group has a member with its partition", func() bool {
				described, err = kafka.DescribeGroups(ctx, admin, listed[i:i+1])
				testkit.Must(t, err)
				return len(described) == 1 && len(described[0].Members) == 1 && slices.Equal(described[0].Members[0].Assigned, []kafka.Partition{at})
			})
			if m := described[0].Members[0]; m.ClientID != "diaspora" || !slices.Equal(m.Topics, []string{topic}) {
				t.Errorf("the member is %+v", m)
			}

			places, err := kafka.Places(ctx, admin, []string{topic})
			testkit.Must(t, err)
			set := func(offset int64) error {
				return kafka.SetOffsets(ctx, admin, group, places, map[kafka.Partition]int64{at: offset})
			}
			if err := set(4); !kafka.NeedsRejoin(err) {
				t.Errorf("SetOffsets while there is a member: %v", err)
			}
			if err := kafka.DeleteGroup(ctx, admin, group); !errors.Is(err, kerr.NonEmptyGroup) {
				t.Errorf("DeleteGroup while there is a member: %v", err)
			}
			testkit.Must(t, kafka.RemoveMembers(ctx, admin, group, []kafka.GroupMember{{ID: "nobody"}}))
			testkit.Eventually(t, "the offset is committed before the member joins again", func() bool {
				described, err = kafka.DescribeGroups(ctx, admin, described)
				testkit.Must(t, err)
				testkit.Must(t, kafka.RemoveMembers(ctx, admin, group, described[0].Members))
				err := set(4)
				if err != nil && !kafka.NeedsRejoin(err) {
					t.Fatal(err)
				}
				return err == nil
			})
			member.await(t, 16)
			if got := member.values()[10:16]; !slices.Equal(got, fabrictest.Numbers(4, 10)) {
				t.Errorf("when the member has joined again, it reads %q", got)
			}
			member.stop()
			described, err = kafka.DescribeGroups(ctx, admin, described)
			testkit.Must(t, err)
			if left := described[0].Members; len(left) > 0 { // a static member does not leave when its program ends
				testkit.Must(t, kafka.RemoveMembers(ctx, admin, group, left))
			}
			testkit.Must(t, set(7))
			committed, err := kafka.Committed(ctx, admin, group)
			testkit.Must(t, err)
			if got, ok := committed[group][at]; !ok || got != 7 {
				t.Errorf("committed are %v, want 7", committed)
			}
			testkit.Must(t, kafka.DeleteGroup(ctx, admin, group))
			if err := kafka.DeleteGroup(ctx, admin, group); !errors.Is(err, kerr.GroupIDNotFound) {
				t.Errorf("DeleteGroup of a group that is deleted: %v", err)
			}
			if gone, err := kafka.DescribeGroups(ctx, admin, listed[i:i+1]); err != nil || len(gone) > 0 {
				t.Errorf("DescribeGroups of a group that is deleted: %+v, %v", gone, err)
			}
		})
	}
}

// reader is a member of a group that reads and commits in the background.
type reader struct {
	stop func()

	mu   sync.Mutex // guards read
	read []string
}

func groupMember(t *testing.T, cfg diaspora.Config, topic, group string, opts ...kgo.Opt) *reader {
	t.Helper()
	client, err := diaspora.Dial(testkit.Within(t), cfg, append(opts, kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit(), kgo.HeartbeatInterval(200*time.Millisecond))...)
	testkit.Must(t, err)
	ctx, cancel := context.WithCancel(testkit.Within(t))
	r := &reader{}
	var reading sync.WaitGroup
	r.stop = sync.OnceFunc(func() {
		cancel()
		reading.Wait()
		client.CloseAllowingRebalance()
	})
	t.Cleanup(r.stop)
	reading.Go(func() {
		for ctx.Err() == nil {
			client.PollFetches(ctx).EachRecord(func(record *kgo.Record) {
				_ = client.CommitRecords(ctx, record) // fails if the member was removed
				r.mu.Lock()
				r.read = append(r.read, string(record.Value)) // once it is committed: the test may stop the member as soon as it is here
				r.mu.Unlock()
			})
		}
	})
	return r
}

func (r *reader) values() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.read)
}

func (r *reader) await(t *testing.T, n int) {
	t.Helper()
	testkit.Eventually(t, "the member has read its records", func() bool { return len(r.values()) >= n })
}

package fabric_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// evict removes all members of a consumer group, as the group coordinator does when their sessions
// expire. Their next heartbeat fails with UNKNOWN_MEMBER_ID. client is signed in as the owner of the
// group.
func evict(t *testing.T, client *kgo.Client, group string) {
	t.Helper()
	testkit.Must(t, evictWith(testkit.Within(t), client, group))
}

func evictWith(ctx context.Context, client *kgo.Client, group string) error {
	described, err := kadm.NewClient(client).DescribeGroups(ctx, group)
	if err != nil {
		return err
	}
	leave := kmsg.NewPtrLeaveGroupRequest()
	leave.Group = group
	for _, m := range described[group].Members {
		member := kmsg.NewLeaveGroupRequestMember()
		member.MemberID = m.MemberID
		leave.Members = append(leave.Members, member)
	}
	if len(leave.Members) == 0 {
		return fmt.Errorf("consumer group %q has no members", group)
	}
	_, err = leave.RequestWith(ctx, client)
	return err
}

// TestUntilThroughAnEviction checks that a member that loses all its partitions before it has read them
// does not take this for the end of the topic.
func TestUntilThroughAnEviction(t *testing.T) {
	t.Parallel()
	f := fabrictest.Start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	fabrictest.Claim(t, cfg, "weather")
	logNumbers(t, cfg, "weather", 0, 50)
	owner := dial(t, cfg)
	consumer := fabrictest.OpenConsumer(t, cfg, diaspora.ConsumerOptions{
		Topics: []string{"weather"}, Group: "g", Until: diaspora.End, SessionTimeout: 6 * time.Second,
	})
	read, evicted := map[string]bool{}, false
	for r, err := range consumer.Records(testkit.Within(t)) {
		testkit.Must(t, err)
		if read[string(r.Value)] = true; len(read) < 5 || evicted {
			continue
		}
		evicted = true
		evict(t, owner, "g")
		testkit.Eventually(t, "the member notices", func() bool {
			at, err := consumer.Progress(testkit.Within(t))
			testkit.Must(t, err)
			return len(at) == 0
		})
	}
	if len(read) != 50 {
		t.Errorf("the loop ended without an error after %d of 50 records", len(read))
	}
}

// TestCommitsDoNotGoBack checks that the committed offset never goes back, while many goroutines and the
// background commits are committing at the same time.
func TestCommitsDoNotGoBack(t *testing.T) {
	t.Parallel()
	const rounds, records = 60, 100
	f := fabrictest.Start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	fabrictest.Claim(t, cfg, "weather")
	logNumbers(t, cfg, "weather", 0, records)
	owner := kadm.NewClient(dial(t, cfg))
	for round := range testkit.Fewer(rounds) {
		group := fmt.Sprint("g", round)
		consumer := fabrictest.OpenConsumer(t, cfg, diaspora.ConsumerOptions{Topics: []string{"weather"}, Group: group, CommitEvery: time.Millisecond})
		var commits sync.WaitGroup
		for r, err := range consumer.Records(testkit.Within(t)) {
			testkit.Must(t, err)
			commits.Go(func() {
				if err := consumer.Commit(testkit.Within(t), r); err != nil {
					t.Errorf("commit of record %d: %v", r.Offset, err)
				}
			})
			if r.Offset == records-1 {
				break
			}
		}
		commits.Wait()
		offsets, err := owner.FetchOffsets(testkit.Within(t), group)
		testkit.Must(t, err)
		if o, _ := offsets.Lookup("weather", 0); o.At != records {
			t.Errorf("group %s: %d is committed after all commits, want %d", group, o.At, records)
		}
		if err := consumer.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}
}

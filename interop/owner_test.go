package interop

import (
	"errors"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// dial returns a Kafka client of a person.
func dial(t *testing.T, cfg diaspora.Config, options ...kgo.Opt) *kgo.Client {
	t.Helper()
	c, err := diaspora.Dial(testkit.Within(t), cfg, options...)
	testkit.Must(t, err)
	t.Cleanup(c.Close)
	return c
}

// topicOffset is an offset in a topic with one partition.
func topicOffset(topic string, offset int64) kadm.Offsets {
	var offsets kadm.Offsets
	offsets.AddOffset(topic, 0, offset, -1)
	return offsets
}

// deleteRecords deletes the records before an offset, and returns where the topic starts then.
func deleteRecords(t *testing.T, admin *kadm.Client, topic string, before int64) (start int64, err error) {
	t.Helper()
	all, err := admin.DeleteRecords(testkit.Within(t), topicOffset(topic, before))
	if err != nil {
		return 0, err
	}
	answer, ok := all.Lookup(topic, 0)
	if !ok {
		t.Fatalf("the answer does not have the topic: %+v", all)
	}
	return answer.LowWatermark, answer.Err
}

// TestDeleteRecords: owners and those who manage a topic can delete its records up to an offset.
// Nobody else can, and neither can they delete the topic.
func TestDeleteRecords(t *testing.T) {
	parallel(t)
	f := start(t, fabric.Config{})
	owner, other := fabrictest.As(t, f, ada), fabrictest.As(t, f, grace)
	topic := claim(t, owner, 1)
	logger := fabrictest.OpenLogger(t, owner)
	fabrictest.Log(t, logger, topic, fabrictest.Numbers(0, 10)...)
	key := createKey(t, owner, diaspora.AccessKeyRequest{Topics: []string{topic}, Read: true, Write: true})
	hers, others := kadm.NewClient(dial(t, owner)), kadm.NewClient(dial(t, other))
	for name, who := range map[string]*kadm.Client{
		"somebody else":           others,
		"a key with fewer rights": kadm.NewClient(fabrictest.Kafka(t, f, fabrictest.ByPlain(key))),
	} {
		if _, err := deleteRecords(t, who, topic, 5); !errors.Is(err, kerr.TopicAuthorizationFailed) {
			t.Errorf("delete records by %s: %v", name, err)
		}
	}
	if start, err := deleteRecords(t, hers, topic, 4); err != nil || start != 4 {
		t.Errorf("delete records by the owner: the topic starts at %d, %v", start, err)
	}
	if _, err := deleteRecords(t, hers, topic, 11); !errors.Is(err, kerr.OffsetOutOfRange) {
		t.Errorf("delete records behind the end: %v", err)
	}
	if got, want := values(fabrictest.ReadAll(t, owner, topic)), "4 5 6 7 8 9"; got != want {
		t.Errorf("the records that are left: %s, want %s", got, want)
	}

	_, err := fabrictest.Client(t, owner).Share(testkit.Within(t), topic, diaspora.GrantRequest{Username: grace, Manage: true})
	testkit.Must(t, err)
	others = kadm.NewClient(dial(t, other)) // the one before remembers for a while what it was told of the topic
	if start, err := deleteRecords(t, others, topic, 6); err != nil || start != 6 {
		t.Errorf("delete records by somebody who manages the topic: the topic starts at %d, %v", start, err)
	}
	for name, who := range map[string]*kadm.Client{"the owner": hers, "somebody who manages the topic": others} {
		deleted, err := who.DeleteTopics(testkit.Within(t), topic)
		testkit.Must(t, err)
		if d := deleted[topic]; !errors.Is(d.Err, kerr.TopicAuthorizationFailed) || !strings.Contains(d.ErrMessage, `run "diaspora topic release `+topic+`"`) {
			t.Errorf("delete the topic by %s: %+v", name, d)
		}
	}

	if start, err := deleteRecords(t, hers, topic, -1); err != nil || start != 10 {
		t.Errorf("delete all records: the topic starts at %d, %v", start, err)
	}
	fabrictest.Log(t, logger, topic, "10")
	if got, want := values(fabrictest.ReadAll(t, owner, topic)), "10"; got != want {
		t.Errorf("the records after all were deleted: %s, want %s", got, want)
	}
}

// TestOwnGroups: everybody can delete their own groups and the offsets of them, and the errors are
// about these. Nobody can do that to another's group of the same ID.
func TestOwnGroups(t *testing.T) {
	parallel(t)
	f := start(t, fabric.Config{})
	owner, other := fabrictest.As(t, f, ada), fabrictest.As(t, f, grace)
	topic, second := claim(t, owner, 1), claim(t, owner, 1)
	logger := fabrictest.OpenLogger(t, owner)
	fabrictest.Log(t, logger, topic, "x")
	fabrictest.Log(t, logger, second, "x")
	hers, others := kadm.NewClient(dial(t, owner)), kadm.NewClient(dial(t, other))
	for protocol, option := range map[string]kgo.Opt{"classic": kgo.Balancers(kgo.CooperativeStickyBalancer()), "consumer": kgo.ServerSideBalancer()} {
		t.Run(protocol, func(t *testing.T) {
			group := unique(t)
			member := dial(t, owner, kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic), kgo.DisableAutoCommit(), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), option)
			for member.PollFetches(testkit.Within(t)).Empty() {
			}
			testkit.Must(t, member.CommitUncommittedOffsets(testkit.Within(t)))

			_, err := deleteGroup(t, hers, group)
			if !errors.Is(err, kerr.NonEmptyGroup) {
				t.Errorf("delete a group with a member: %v", err)
			}
			if err := deleteOffset(t, hers, group, topic); !errors.Is(err, kerr.GroupSubscribedToTopic) {
				t.Errorf("delete the offset of a topic that the group reads: %v", err)
			}
			member.Close()
			commitTo(t, hers, group, second)
			for name, err := range map[string]error{"the group": errorOf(deleteGroup(t, others, group)), "the offset": deleteOffset(t, others, group, topic)} {
				if !errors.Is(err, kerr.GroupIDNotFound) {
					t.Errorf("delete %s by somebody else: %v", name, err)
				}
			}
			if err := deleteOffset(t, hers, group, topic); err != nil {
				t.Errorf("delete an offset: %v", err)
			}
			offsets, err := hers.FetchOffsets(testkit.Within(t), group)
			testkit.Must(t, err)
			if _, still := offsets.Lookup(topic, 0); still {
				t.Errorf("the offset is still there: %+v", offsets)
			}
			if o, ok := offsets.Lookup(second, 0); !ok || o.At != 1 {
				t.Errorf("the offset of the other topic: %+v", offsets)
			}
			if named, err := deleteGroup(t, hers, group); err != nil || named != group {
				t.Errorf("delete the group: %q, %v", named, err)
			}
			if _, err := deleteGroup(t, hers, group); !errors.Is(err, kerr.GroupIDNotFound) {
				t.Errorf("delete the group again: %v", err)
			}
			listed, err := hers.ListGroups(testkit.Within(t))
			testkit.Must(t, err)
			if _, still := listed[group]; still {
				t.Errorf("the group is still listed: %v", listed.Groups())
			}
		})
	}
}

func deleteGroup(t *testing.T, admin *kadm.Client, group string) (named string, err error) {
	t.Helper()
	deleted, err := admin.DeleteGroups(testkit.Within(t), group)
	if err != nil {
		return "", err
	}
	return deleted[group].Group, deleted[group].Err
}

func deleteOffset(t *testing.T, admin *kadm.Client, group, topic string) error {
	t.Helper()
	deleted, err := admin.DeleteOffsets(testkit.Within(t), group, topicOffset(topic, 0).TopicsSet())
	if err != nil {
		return err
	}
	err, ok := deleted.Lookup(topic, 0)
	if !ok {
		t.Errorf("the answer does not have the topic: %+v", deleted)
	}
	return err
}

// commitTo commits an offset as somebody who is not a member, as soon as the group is empty.
func commitTo(t *testing.T, admin *kadm.Client, group, topic string) {
	t.Helper()
	testkit.Eventually(t, "an offset to be committed", func() bool {
		return admin.CommitAllOffsets(t.Context(), group, topicOffset(topic, 1)) == nil
	})
}

func errorOf[T any](_ T, err error) error { return err }

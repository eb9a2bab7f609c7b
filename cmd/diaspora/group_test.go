package main

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/consume"
	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// TestDescribeGroup checks which partitions a group has, and what is said if something is not known.
func TestDescribeGroup(t *testing.T) {
	t.Parallel()
	at := func(topic string, partition int32) kafka.Partition {
		return kafka.Partition{Topic: topic, Partition: partition}
	}
	spans := map[kafka.Partition]kafka.Span{at("a", 0): {Start: 5, End: 20}, at("a", 1): {Start: 0, End: 3}, at("b", 0): {Start: 0, End: 100}}
	member := kafka.GroupMember{ID: "m", ClientID: "c", Topics: []string{"a"}, Assigned: []kafka.Partition{at("a", 1)}}
	for _, test := range []struct {
		name      string
		group     kafka.Group
		committed map[kafka.Partition]int64
		want      string
	}{
		{
			"a partition without a committed offset counts as unread",
			kafka.Group{Type: kafka.ClassicGroup}, map[kafka.Partition]int64{at("a", 0): 12},
			`"members":[],"topics":["a"],"lag":11,"partitions":[{"topic":"a","partition":0,"committed":12,"end":20,"lag":8},{"topic":"a","partition":1,"committed":null,"end":3,"lag":3}]}`,
		},
		{
			"records that were deleted cannot be read, and nothing is behind the end",
			kafka.Group{Type: kafka.ClassicGroup}, map[kafka.Partition]int64{at("a", 0): 1, at("a", 1): 9},
			`"members":[],"topics":["a"],"lag":15,"partitions":[{"topic":"a","partition":0,"committed":1,"end":20,"lag":15},{"topic":"a","partition":1,"committed":9,"end":3,"lag":0}]}`,
		},
		{
			"the end of a topic of others is not known",
			kafka.Group{Type: kafka.ClassicGroup}, map[kafka.Partition]int64{at("b", 0): 90, at("gone", 7): 1},
			`"members":[],"topics":["b","gone"],"lag":null,"partitions":[{"topic":"b","partition":0,"committed":90,"end":100,"lag":10},{"topic":"gone","partition":7,"committed":1,"end":null,"lag":null}]}`,
		},
		{
			"a member that has read nothing yet",
			kafka.Group{Type: kafka.ConsumerGroup, Members: []kafka.GroupMember{member}}, nil,
			`"members":[{"member":"m","client_id":"c"}],"topics":["a"],"lag":18,"partitions":[{"topic":"a","partition":0,"committed":null,"end":20,"lag":15},{"topic":"a","partition":1,"committed":null,"end":3,"lag":3,"member":"m","client_id":"c"}]}`,
		},
		{
			"members that are not known are not none",
			kafka.Group{Type: kafka.ConsumerGroup, Hidden: true}, nil, `"members":null,"topics":[],"lag":0,"partitions":[]}`,
		},
		{"a share group", kafka.Group{Type: "share"}, nil, `"members":null,"topics":[],"lag":null,"partitions":[]}`},
	} {
		doc, err := json.Marshal(describeGroup(test.group, test.committed, spans))
		testkit.Must(t, err)
		if _, got, _ := strings.Cut(string(doc), `"state":"",`); got != test.want {
			t.Errorf("%s:\n%s, want\n%s", test.name, got, test.want)
		}
	}
}

// TestAim checks where a group is moved that is at an offset of a partition with the offsets 10 to 19.
func TestAim(t *testing.T) {
	t.Parallel()
	const none = -1
	span := kafka.Span{Start: 10, End: 20}
	for _, test := range []struct {
		kind              string
		n                 int64 // for by and past; the offset for to
		before, after     int64
		skipped, repeated int64
		note              string
	}{
		{"by", 3, 12, 15, 3, 0, ""},
		{"by", -2, 12, 10, 0, 2, ""},
		{"by", -3, 12, 10, 0, 2, "there is no offset 9"},
		{"by", 9, 12, 20, 8, 0, "there is no offset 21"},
		{"by", 2, 4, 12, 2, 0, ""},   // the records before 10 are deleted
		{"by", -1, 25, 19, 0, 1, ""}, // the topic was deleted and created again
		{"by", 1, none, none, 0, 0, "left alone"},
		{"past", 12, 12, 13, 1, 0, ""},
		{"past", 19, 12, 20, 8, 0, ""},
		{"past", 12, 15, 15, 0, 0, ""}, // already past it
		{"past", 3, 12, 12, 0, 0, ""},
		{"past", 12, none, 13, 3, 0, ""},
		{"to", 12, none, 12, 2, 0, ""},
		{"to", 12, 17, 12, 0, 5, ""},
		{"to", 3, 17, 10, 0, 7, "there is no offset 3"},
		{"to", 99, 17, 20, 3, 0, "there is no offset 99"},
	} {
		r := groupReset{groupClient: &groupClient{}, groupResetOptions: groupResetOptions{kind: test.kind, by: test.n, past: test.n}}
		if test.kind == "to" {
			r.at = consume.Position{Kind: consume.Offset, Offset: test.n}
		}
		var m groupMove
		if test.before != none {
			m.Before = &test.before
		}
		if err := r.aim(&m, span, test.n); err != nil {
			t.Errorf("--%s %d from %d: %v", test.kind, test.n, test.before, err)
			continue
		}
		after := int64(none)
		if m.After != nil {
			after = *m.After
		}
		if after != test.after || m.Skipped != test.skipped || m.Repeated != test.repeated ||
			!strings.Contains(m.note, test.note) || (m.note == "") != (test.note == "") {
			t.Errorf("--%s %d from %d: to %d, skips %d, repeats %d, %q; want %d, %d, %d, %q", test.kind, test.n, test.before,
				after, m.Skipped, m.Repeated, m.note, test.after, test.skipped, test.repeated, test.note)
		}
	}
	r := groupReset{groupClient: &groupClient{}, groupResetOptions: groupResetOptions{kind: "past", past: 20}}
	if err := r.aim(&groupMove{}, span, 0); !errors.Is(err, diaspora.ErrNotFound) {
		t.Errorf("--past a record that does not exist yet: %v", err)
	}
}

// TestGroupOfServer shows and resets a group of KIP-848 with more members than partitions.
func TestGroupOfServer(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	cfg := fabrictest.As(t, d.fabric, fabrictest.Ada)
	d.must(t, "topic", "claim", "weather")
	fabrictest.Log(t, fabrictest.OpenLogger(t, cfg), "weather", fabrictest.Numbers(0, 5)...)
	for range 2 {
		client, err := diaspora.Dial(testkit.Within(t), cfg, kgo.ConsumerGroup("nightly"), kgo.ConsumeTopics("weather"),
			kgo.ServerSideBalancer(), kgo.ClientID("reader"), kgo.HeartbeatInterval(100*time.Millisecond))
		testkit.Must(t, err)
		t.Cleanup(client.CloseAllowingRebalance)
	}
	testkit.Eventually(t, "the group has two members, one of them with the partition", func() bool {
		d.out.Reset()
		d.must(t, "group", "list")
		stable := strings.Contains(d.out.String(), "nightly  Stable  2        5    weather\n")
		d.out.Reset()
		d.must(t, "group", "show", "nightly")
		return stable && strings.Contains(d.out.String(), "\nweather  0          -          5    5    reader")
	})
	for _, words := range []string{"Protocol:    consumer (KIP-848), assignor uniform\n", "Members:     2\n", "\n-        -          -          -    -    reader"} {
		if got := d.out.String(); !strings.Contains(got, words) {
			t.Errorf("group show prints\n%s, want %q", got, words)
		}
	}
	reset := []string{"group", "reset", "nightly", "--topic", "weather", "--to", "3", "--yes"}
	if code := d.types(t.Context(), reset...); code != 6 || !strings.Contains(d.err.String(), "nightly has 2 members (reader); nothing has changed") {
		t.Errorf("group reset exits with %d:\n%s", code, d.err.String())
	}
	d.out.Reset()
	d.must(t, append(slices.Clip(reset), "--force", "-o", "json")...)
	if got := d.out.String(); !strings.Contains(got, `"removed_members":2,"partitions":[{"topic":"weather","partition":0,"before":null,"after":3,"skipped":3,"repeated":0}]`) {
		t.Errorf("group reset --force prints %s", got)
	}
	testkit.Eventually(t, "the members are back, and the offset is kept", func() bool {
		d.out.Reset()
		d.must(t, "group", "show", "nightly")
		return strings.Contains(d.out.String(), "\nweather  0          3          5    2    reader")
	})
}

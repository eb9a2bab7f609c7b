package groups

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// commitOne commits one offset and returns the response as text.
func (w *world) commitOne(req *kmsg.OffsetCommitRequest) string {
	return showCommit(w.OffsetCommit(everything, req))
}

func showCommit(resp *kmsg.OffsetCommitResponse) string {
	var b strings.Builder
	for _, t := range resp.Topics {
		fmt.Fprintf(&b, "%s/%x:", t.Topic, t.TopicID[15])
		for _, p := range t.Partitions {
			fmt.Fprintf(&b, " %d=%d", p.Partition, p.ErrorCode)
		}
		b.WriteString("; ")
	}
	return b.String()
}

func commitRequest(version int16, group string, topics ...kmsg.OffsetCommitRequestTopic) *kmsg.OffsetCommitRequest {
	req := kmsg.NewPtrOffsetCommitRequest()
	req.Version, req.Group, req.Topics = version, group, topics
	return req
}

func commitTopic(name string, id byte, partitions ...int32) kmsg.OffsetCommitRequestTopic {
	t := kmsg.NewOffsetCommitRequestTopic()
	t.Topic = name
	if id != 0 {
		t.TopicID = [16]byte{0: 0xdd, 15: id}
	}
	for _, partition := range partitions {
		p := kmsg.NewOffsetCommitRequestTopicPartition()
		p.Partition, p.Offset, p.LeaderEpoch, p.Metadata = partition, 100+int64(partition), 7, kmsg.StringPtr("m")
		t.Partitions = append(t.Partitions, p)
	}
	return t
}

func showFetch(g kmsg.OffsetFetchResponseGroup) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %d; ", g.Group, g.ErrorCode)
	for _, t := range g.Topics {
		fmt.Fprintf(&b, "%s/%x:", t.Topic, t.TopicID[15])
		for _, p := range t.Partitions {
			fmt.Fprintf(&b, " %d=%d,%d,%s,%d", p.Partition, p.Offset, p.LeaderEpoch, *p.Metadata, p.ErrorCode)
		}
		b.WriteString("; ")
	}
	return b.String()
}

// fetch fetches the offsets of the topics, or of all topics if topics is nil.
func fetchRequest(version int16, group string, topics []kmsg.OffsetFetchRequestGroupTopic) *kmsg.OffsetFetchRequest {
	req := kmsg.NewPtrOffsetFetchRequest()
	req.Version = version
	g := kmsg.NewOffsetFetchRequestGroup()
	g.Group, g.Topics = group, topics
	req.Groups = append(req.Groups, g)
	return req
}

func fetchTopic(name string, id byte, partitions ...int32) kmsg.OffsetFetchRequestGroupTopic {
	t := kmsg.NewOffsetFetchRequestGroupTopic()
	t.Topic, t.Partitions = name, partitions
	if id != 0 {
		t.TopicID = [16]byte{0: 0xdd, 15: id}
	}
	return t
}

func TestCommitAndFetch(t *testing.T) {
	inWorld(t, func(w *world) {
		some := everything
		some.MayRead = func(topic string) bool { return topic != "u" }
		some.MayDescribe = some.MayRead
		long := commitTopic("t", 0, 1, 2)
		long.Partitions[1].Metadata = kmsg.StringPtr(strings.Repeat("é", 4097))
		longest := commitTopic("t", 0, 1)
		longest.Partitions[0].Metadata = kmsg.StringPtr(strings.Repeat("😀", 2048))

		for _, c := range []struct {
			name string
			who  Caller
			req  *kmsg.OffsetCommitRequest
			want string
		}{
			{"none", everything, commitRequest(9, "n"), ""},
			{"by name", everything, commitRequest(9, "g", commitTopic("t", 0, 3, 1), commitTopic("u", 0, 0)), "t/1: 3=0 1=0; u/2: 0=0; "},
			{"by ID", everything, commitRequest(10, "g", commitTopic("", 1, 3, 1), commitTopic("", 2, 0)), "t/1: 3=0 1=0; u/2: 0=0; "},
			{"the empty group", everything, commitRequest(2, "", commitTopic("t", 0, 0)), "t/1: 0=0; "},
			{"unknown topics", everything, commitRequest(9, "g", commitTopic("t", 0, 9, 10, -1), commitTopic("x", 0, 0), commitTopic("u", 0, 1)),
				"t/1: 10=3 -1=3 9=0; x/0: 0=3; u/2: 1=0; "},
			{"unknown IDs", everything, commitRequest(10, "g", commitTopic("", 1, 0), commitTopic("", 9, 0)), "/9: 0=100; t/1: 0=0; "},
			{"not allowed", some, commitRequest(9, "g", commitTopic("u", 0, 0), commitTopic("t", 0, 0)), "u/2: 0=29; t/1: 0=0; "},
			{"nothing allowed", Caller{}, commitRequest(9, "g", commitTopic("t", 0, 0)), "t/1: 0=29; "},
			{"long metadata", everything, commitRequest(9, "g", long), "t/1: 1=0 2=12; "},
			{"just not too long", everything, commitRequest(9, "g", longest), "t/1: 1=0; "},
			{"twice", everything, commitRequest(9, "g", commitTopic("t", 0, 1), commitTopic("t", 0, 1)), "t/1: 1=0; t/1: 1=0; "},
		} {
			if got := showCommit(w.OffsetCommit(c.who, c.req)); got != c.want {
				t.Errorf("%s: OffsetCommit = %q, want %q", c.name, got, c.want)
			}
		}
		w.mustState("n", "Dead")

		for restarts := range 2 {
			for _, c := range []struct {
				name string
				who  Caller
				req  *kmsg.OffsetFetchRequest
				want string
			}{
				{"some", everything, fetchRequest(9, "g", []kmsg.OffsetFetchRequestGroupTopic{fetchTopic("t", 0, 1, 2, 50), fetchTopic("x", 0, 0)}),
					"g 0; t/0: 1=101,7,m,0 2=-1,-1,,0 50=-1,-1,,0; x/0: 0=-1,-1,,0; "},
				{"some by ID", everything, fetchRequest(10, "g", []kmsg.OffsetFetchRequestGroupTopic{fetchTopic("", 9, 0), fetchTopic("", 1, 1)}),
					"g 0; t/1: 1=101,7,m,0; /9: 0=-1,-1,,100; "},
				{"none", everything, fetchRequest(9, "g", []kmsg.OffsetFetchRequestGroupTopic{}), "g 0; "},
				{"all", everything, fetchRequest(10, "g", nil), "g 0; t/1: 0=100,7,m,0 1=101,7,m,0 3=103,7,m,0 9=109,7,m,0; u/2: 0=100,7,m,0 1=101,7,m,0; "},
				{"all that is allowed", some, fetchRequest(9, "g", nil), "g 0; t/1: 0=100,7,m,0 1=101,7,m,0 3=103,7,m,0 9=109,7,m,0; "},
				{"not allowed", some, fetchRequest(9, "g", []kmsg.OffsetFetchRequestGroupTopic{fetchTopic("u", 0, 0), fetchTopic("t", 0, 0)}),
					"g 0; t/0: 0=100,7,m,0; u/0: 0=-1,-1,,29; "},
				{"an unknown group", everything, fetchRequest(8, "none", []kmsg.OffsetFetchRequestGroupTopic{fetchTopic("t", 0, 1)}), "none 0; t/0: 1=-1,-1,,0; "},
				{"all of an unknown group", everything, fetchRequest(8, "none", nil), "none 0; "},
				{"the empty group", everything, fetchRequest(8, "", nil), " 0; t/1: 0=100,7,m,0; "},
			} {
				c.req.RequireStable = restarts == 1
				got := w.OffsetFetch(c.who, c.req).Groups[0]
				if c.name == "some" && *got.Topics[0].Partitions[0].Metadata == strings.Repeat("😀", 2048) {
					got.Topics[0].Partitions[0].Metadata = kmsg.StringPtr("m")
				}
				if got := showFetch(got); got != c.want {
					t.Errorf("%s: OffsetFetch = %q, want %q", c.name, got, c.want)
				}
			}
			w.kill()
		}
		w.mustState("none", "Dead")
	})
}

// Before version 8 there is one group. Before version 2 errors are reported for each partition.
func TestOldFetch(t *testing.T) {
	inWorld(t, func(w *world) {
		w.want("commit", w.commitAlone("g", 1, 5), nil)
		req := kmsg.NewPtrOffsetFetchRequest()
		req.Group, req.Topics = "g", []kmsg.OffsetFetchRequestTopic{{Topic: "t", Partitions: []int32{0, 1}}}
		for _, req.Version = range []int16{1, 2, 7} {
			resp := w.OffsetFetch(everything, req)
			if got := resp.Topics[0].Partitions; resp.ErrorCode != 0 || got[0].Offset != -1 || got[1].Offset != 5 {
				t.Errorf("OffsetFetch v%d = %+v", req.Version, resp)
			}
		}
		testkit.Must(t, w.Close())
		if resp := w.OffsetFetch(everything, req); resp.ErrorCode != kerr.CoordinatorNotAvailable.Code || len(resp.Topics) != 0 {
			t.Errorf("OffsetFetch v7 = %+v", resp)
		}
		req.Version = 1
		if resp := w.OffsetFetch(everything, req); resp.Topics[0].Partitions[1].ErrorCode != kerr.CoordinatorNotAvailable.Code {
			t.Errorf("OffsetFetch v1 = %+v", resp)
		}
		req.Version, req.Topics = 5, nil
		w.open()
		if resp := w.OffsetFetch(everything, req); len(resp.Topics) != 1 || resp.Topics[0].Partitions[0].Offset != 5 {
			t.Errorf("OffsetFetch v5 of all = %+v", resp)
		}
	})
}

func TestCommitErrors(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.consumer("g")
		w.rebalanced(a)
		instance := "i"
		for _, c := range []struct {
			name, group, member string
			instance            *string
			generation          int32
			version             int16
			want                *kerr.Error
		}{
			{"unknown group", "x", "m", nil, 1, 9, kerr.GroupIDNotFound},
			{"unknown group, older version", "x", "m", nil, 1, 8, kerr.IllegalGeneration},
			{"unknown member", "g", "m", nil, 1, 9, kerr.UnknownMemberID},
			{"no member", "g", "", nil, -1, 9, kerr.UnknownMemberID},
			{"unknown instance", "g", a.id, &instance, 1, 9, kerr.UnknownMemberID},
			{"wrong generation", "g", a.id, nil, 2, 9, kerr.IllegalGeneration},
			{"no generation", "g", a.id, nil, -1, 9, kerr.IllegalGeneration},
		} {
			req := commitRequest(c.version, c.group, commitTopic("t", 0, 1))
			req.MemberID, req.InstanceID, req.Generation = c.member, c.instance, c.generation
			if got := w.OffsetCommit(everything, req).Topics[0].Partitions[0].ErrorCode; got != c.want.Code {
				t.Errorf("%s: OffsetCommit = %v, want %v", c.name, kerr.ErrorForCode(got), c.want)
			}
		}
		w.mustState("x", "Dead")
	})
}

func TestTopicDeleted(t *testing.T) {
	inWorld(t, func(w *world) {
		w.commitOne(commitRequest(9, "g", commitTopic("t", 0, 1), commitTopic("u", 0, 1)))
		id := w.topics.remove("t")
		w.topics.set("t", 7, 10)
		// Even before TopicDeleted is called, the offset does not count for the new topic.
		if got := w.fetched("g", 1); got != -1 {
			t.Errorf("offset of the new topic = %d", got)
		}
		w.want("commit", w.commitAlone("g", 2, 5), nil)
		w.TopicDeleted("t", id)
		for range 2 {
			if got := w.fetched("g", 2); got != 5 {
				t.Errorf("offset of the new topic = %d, want 5", got)
			}
			got := showFetch(w.OffsetFetch(everything, fetchRequest(10, "g", nil)).Groups[0])
			if want := "g 0; t/7: 2=5,-1,,0; u/2: 1=101,7,m,0; "; got != want {
				t.Errorf("OffsetFetch = %q, want %q", got, want)
			}
			w.kill()
		}
		if n := len(w.store.live()); n != 2 {
			t.Errorf("%d entries in the journal, want 2", n)
		}
	})
}

func (w *world) deleteOffsets(group string, who Caller, topics map[string][]int32) string {
	req := kmsg.NewPtrOffsetDeleteRequest()
	req.Group = group
	for _, name := range []string{"t", "u", "x"} {
		if len(topics[name]) > 0 {
			t := kmsg.NewOffsetDeleteRequestTopic()
			t.Topic = name
			for _, partition := range topics[name] {
				t.Partitions = append(t.Partitions, kmsg.OffsetDeleteRequestTopicPartition{Partition: partition})
			}
			req.Topics = append(req.Topics, t)
		}
	}
	resp := w.OffsetDelete(who, req)
	var b strings.Builder
	fmt.Fprintf(&b, "%d; ", resp.ErrorCode)
	for _, t := range resp.Topics {
		fmt.Fprintf(&b, "%s:", t.Topic)
		for _, p := range t.Partitions {
			fmt.Fprintf(&b, " %d=%d", p.Partition, p.ErrorCode)
		}
		b.WriteString("; ")
	}
	return b.String()
}

func TestOffsetDelete(t *testing.T) {
	inWorld(t, func(w *world) {
		check := func(name, got, want string) {
			t.Helper()
			if got != want {
				t.Errorf("%s: OffsetDelete = %q, want %q", name, got, want)
			}
		}
		both := map[string][]int32{"t": {1, 2}, "u": {1}}
		check("no group", w.deleteOffsets("", everything, both), "24; ")
		check("unknown group", w.deleteOffsets("x", everything, both), "69; ")
		w.commitOne(commitRequest(9, "g", commitTopic("t", 0, 1, 3), commitTopic("u", 0, 1)))
		check("a simple group", w.deleteOffsets("g", everything, map[string][]int32{"t": {1, 2, 10}, "x": {0}}), "0; t: 10=3 1=0 2=0; x: 0=3; ")
		if w.fetched("g", 1) != -1 || w.fetched("g", 3) != 103 {
			t.Error("the wrong offset is gone")
		}
		some := everything
		some.MayRead = func(topic string) bool { return topic == "t" }
		check("not allowed", w.deleteOffsets("g", some, both), "0; u: 1=29; t: 1=0 2=0; ")

		a := w.consumer("g") // commits offsets of t
		w.rebalanced(a)
		check("subscribed", w.deleteOffsets("g", everything, both), "0; t: 1=86 2=86; u: 1=0; ")
		w.kill()
		check("subscribed, after a restart", w.deleteOffsets("g", everything, both), "0; t: 1=86 2=86; u: 1=0; ")
		if got := showFetch(w.OffsetFetch(everything, fetchRequest(10, "g", nil)).Groups[0]); got != "g 0; t/1: 3=103,7,m,0; " {
			t.Errorf("left: %s", got)
		}
		w.want("leave", a.leaveGroup(), nil)
		check("empty", w.deleteOffsets("g", everything, both), "0; t: 1=0 2=0; u: 1=0; ")

		connect := w.consumer("connect")
		connect.kind = "connect"
		w.rebalanced(connect)
		check("not consumers", w.deleteOffsets("connect", everything, both), "68; ")
	})
}

// TestRefusedCommitMakesNoGroup: a commit of which nothing is stored leaves nothing in memory
// either. So the groups are the same after a restart.
func TestRefusedCommitMakesNoGroup(t *testing.T) {
	inWorld(t, func(w *world) {
		long := strings.Repeat("m", maxMetadata+1)
		commit := func(group string, partitions ...int32) string {
			req := commitRequest(8, group, commitTopic("t", 0, partitions...))
			req.Topics[0].Partitions[0].Metadata = &long
			return w.commitOne(req)
		}
		if got := commit("refused", 1); got != "t/1: 1=12; " {
			t.Errorf("OffsetCommit = %s", got)
		}
		w.mustState("refused", "Dead")
		if n := len(w.ListGroups(kmsg.NewPtrListGroupsRequest()).Groups); n > 0 {
			t.Errorf("%d groups, want none", n)
		}
		commit("in part", 0, 1)
		w.mustState("in part", "Empty")
		w.want("commit", w.commitAlone("there", 1, 1), nil)
		commit("there", 1)
		w.mustState("there", "Empty")
	})
}

// TestGroupWithoutOffsets: a group whose last offset was deleted exists until DeleteExpired removes
// it, even after a restart.
func TestGroupWithoutOffsets(t *testing.T) {
	inWorld(t, func(w *world) {
		w.want("commit", w.commitAlone("by request", 1, 1), nil)
		w.want("commit", w.commitAlone("with its topic", 1, 1), nil)
		deleted := kmsg.NewPtrOffsetDeleteRequest()
		deleted.Group = "by request"
		deleted.Topics = []kmsg.OffsetDeleteRequestTopic{{Topic: "t", Partitions: []kmsg.OffsetDeleteRequestTopicPartition{{Partition: 1}}}}
		if resp := w.OffsetDelete(everything, deleted); resp.ErrorCode != 0 {
			t.Errorf("OffsetDelete = %+v", resp)
		}
		w.TopicDeleted("t", w.topics.remove("t"))
		w.kill()
		w.mustState("by request", "Empty")
		w.mustState("with its topic", "Empty")
		w.deleteExpired()
		w.kill()
		w.mustState("by request", "Dead")
		w.mustState("with its topic", "Dead")
	})
}

func (w *world) deleteExpired() {
	w.Helper()
	if err := w.DeleteExpired(); err != nil {
		w.Errorf("DeleteExpired() = %v", err)
	}
}

func TestDeleteExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const day = 24 * time.Hour
		w := newWorld(t, Config{})
		a := w.consumer("members")
		a.session = 30 * time.Minute
		w.rebalanced(a)
		w.commitOne(func() *kmsg.OffsetCommitRequest {
			req := commitRequest(9, "members", commitTopic("t", 0, 1), commitTopic("u", 0, 1))
			req.MemberID, req.Generation = a.id, a.generation
			return req
		}())
		w.want("commit", w.commitAlone("simple", 1, 1), nil)
		asked := commitRequest(2, "asked", commitTopic("t", 0, 1))
		asked.RetentionTimeMillis = time.Hour.Milliseconds()
		w.commitOne(asked)

		stay := func(d time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); {
				time.Sleep(20 * time.Minute)
				w.want("heartbeat", a.beat(), nil)
			}
		}
		stay(time.Hour)
		w.deleteExpired()
		w.mustState("asked", "Dead")
		stay(4 * day)
		w.want("commit", w.commitAlone("simple", 2, 1), nil)
		w.kill()
		stay(3 * day)
		w.deleteExpired()
		if w.fetched("simple", 1) != -1 || w.fetched("simple", 2) != 1 {
			t.Error("simple: an offset expires 7 days after its commit")
		}
		// The group is subscribed to t, and not to u.
		if got := showFetch(w.OffsetFetch(everything, fetchRequest(10, "members", nil)).Groups[0]); got != "members 0; t/1: 1=101,7,m,0; " {
			t.Errorf("left: %s", got)
		}
		w.want("leave", a.leaveGroup(), nil)
		time.Sleep(6 * day)
		w.kill()
		w.deleteExpired()
		w.mustState("simple", "Dead")
		if w.fetched("members", 1) != 101 {
			t.Error("members: the offset is gone before 7 days without members")
		}
		time.Sleep(day)
		w.deleteExpired()
		w.mustState("members", "Dead")
		if live := w.store.live(); len(live) != 0 {
			t.Errorf("%d entries are left in the journal", len(live))
		}
		if held := w.reserved.Load(); held != 0 {
			t.Errorf("%d bytes are held", held)
		}
	})
}

func TestListGroups(t *testing.T) {
	inWorld(t, func(w *world) {
		w.rebalanced(w.consumer("stable"))
		w.want("commit", w.commitAlone("empty", 0, 1), nil)
		m := w.modern("modern")
		m.beat()
		for _, c := range []struct {
			states, types []string
			want          string
		}{
			{nil, nil, "empty::Empty:classic modern:consumer:Stable:consumer stable:consumer:Stable:classic "},
			{[]string{" STABLE"}, nil, "modern:consumer:Stable:consumer stable:consumer:Stable:classic "},
			{nil, []string{"Classic"}, "empty::Empty:classic stable:consumer:Stable:classic "},
			{[]string{"stable"}, []string{"consumer"}, "modern:consumer:Stable:consumer "},
			{[]string{"dead"}, nil, ""},
			{nil, []string{" classic"}, ""},
		} {
			req := kmsg.NewPtrListGroupsRequest()
			req.Version, req.StatesFilter, req.TypesFilter = 5, c.states, c.types
			var b strings.Builder
			for _, g := range w.ListGroups(req).Groups {
				fmt.Fprintf(&b, "%s:%s:%s:%s ", g.Group, g.ProtocolType, g.GroupState, g.GroupType)
			}
			if b.String() != c.want {
				t.Errorf("ListGroups(%v, %v) = %q, want %q", c.states, c.types, b.String(), c.want)
			}
		}
	})
}

func TestDescribeAndDelete(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.static("g", "i")
		w.rebalanced(a)
		d := w.described("g")
		if d.ErrorCode != 0 || d.State != "Stable" || d.Protocol != "range" || d.ProtocolType != "consumer" || len(d.Members) != 1 {
			t.Fatalf("described = %+v", d)
		}
		if m := d.Members[0]; m.MemberID != a.id || *m.InstanceID != "i" || m.ClientID != "client" || m.ClientHost != "/127.0.0.1" ||
			string(m.ProtocolMetadata) != string(subscription("t")) || string(m.MemberAssignment) != "0" {
			t.Fatalf("described member = %+v", m)
		}
		if d := w.described("x"); d.State != "Dead" || d.ErrorCode != kerr.GroupIDNotFound.Code || *d.ErrorMessage != "Group x not found." {
			t.Fatalf("described = %+v", d)
		}
		w.want("delete", w.deleteGroup("g"), kerr.NonEmptyGroup)
		w.want("delete", w.deleteGroup("x"), kerr.GroupIDNotFound)
		w.want("commit", a.commit(1, 1), nil)
		w.want("leave", a.leaveGroup(), nil)
		w.want("delete", w.deleteGroup("g"), nil)
		w.kill()
		w.mustState("g", "Dead")
		if got := w.fetched("g", 1); got != -1 {
			t.Errorf("offset = %d", got)
		}
	})
}

package groups

import (
	"bytes"
	"encoding/hex"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// goldenMember is a member with a value in every field.
func goldenMember() *consumerMember {
	a, b := [16]byte{0xa}, [16]byte{0xb}
	return &consumerMember{
		id: "m", instance: "i", rack: "r", assignor: "range", principal: "User:ada", clientID: "c", host: "/h", rebalanceMillis: 300_000,
		names: []string{"x", "yy"}, regex: "z.*", topics: [][16]byte{a, b}, epoch: 7, previousEpoch: 6, state: consumerUnrevoked,
		assigned: map[partitionID]int32{{a, 0}: 5, {a, 300}: 6, {b, 1}: 0},
		revoking: map[partitionID]int32{{b, 2}: 4},
		target:   []partitionID{{a, 0}, {a, 300}, {b, 1}},
	}
}

// Groups that were written in this format must stay readable.
func TestConsumerGolden(t *testing.T) {
	const group = "01" + "08" + "07" + "efcdab8967452301"
	const id = "00000000000000000000000000000"
	const member = "01" + "0169" + "0172" + "0572616e6765" + "08557365723a616461" + "0163" + "022f68" + "037a2e2a" + "c0cf24" +
		"020178027979" + "02" + "0a" + id + "0" + "0b" + id + "0" + "0e" + "0c" + "01" +
		"03" + "010a" + id + "0" + "0005" + "00ac0206" + "010b" + id + "0" + "0100" +
		"01" + "010b" + id + "0" + "0204" +
		"03" + "010a" + id + "0" + "00" + "00ac02" + "010b" + id + "0" + "01"
	g := newConsumerGroup("g", 10_000)
	g.epoch, g.assignmentEpoch, g.metadata = 8, 7, 0x0123456789abcdef
	if got := hex.EncodeToString(g.encode()); got != group {
		t.Errorf("the group is written as\n%s, want\n%s", got, group)
	}
	want := goldenMember()
	if got := hex.EncodeToString(want.encode()); got != member {
		t.Errorf("the member is written as\n%s, want\n%s", got, member)
	}
	b, err := hex.DecodeString(member)
	testkit.Must(t, err)
	read := newConsumerGroup("g", 10_000)
	testkit.Must(t, read.load("mm", b))
	if got := read.members["m"]; !reflect.DeepEqual(got, want) {
		t.Errorf("the member is read as\n%+v, want\n%+v", got, want)
	}
	for n := range b {
		if err := newConsumerGroup("g", 10_000).load("mm", b[:n]); !errors.Is(err, errDamaged) {
			t.Errorf("the first %d bytes: %v", n, err)
		}
	}
}

func TestConsumerLoadRefuses(t *testing.T) {
	edit := func(f func(*consumerMember)) []byte {
		m := goldenMember()
		f(m)
		return m.encode()
	}
	for name, test := range map[string]struct {
		part  string
		value []byte
	}{
		"no such part":              {"x", nil},
		"no member ID":              {"m", goldenMember().encode()},
		"group, nothing":            {"", nil},
		"group, version":            {"", []byte{2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0}},
		"group, too long":           {"", []byte{1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
		"group, assignment epoch":   {"", []byte{1, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0}},
		"group, epoch":              {"", []byte{1, 0xff, 0xff, 0xff, 0xff, 0xf, 2, 0, 0, 0, 0, 0, 0, 0, 0}},
		"member, state":             {"mm", edit(func(m *consumerMember) { m.state = consumerStates })},
		"member, epoch":             {"mm", edit(func(m *consumerMember) { m.epoch = maxConsumerEpoch + 1 })},
		"member, names":             {"mm", edit(func(m *consumerMember) { slices.Reverse(m.names) })},
		"member, topics":            {"mm", edit(func(m *consumerMember) { slices.Reverse(m.topics) })},
		"member, target":            {"mm", edit(func(m *consumerMember) { slices.Reverse(m.target) })},
		"member, assigned and gone": {"mm", edit(func(m *consumerMember) { m.revoking = m.assigned })},
	} {
		if err := newConsumerGroup("g", 10_000).load(test.part, test.value); !errors.Is(err, errDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Contradicting parts never result in a group that assigns a partition twice.
func TestConsumerRestoredConflicts(t *testing.T) {
	for name, edit := range map[string]func(a, b *consumerMember){
		"one partition": func(a, b *consumerMember) { b.instance = "other" },
		"being given up": func(a, b *consumerMember) {
			b.instance, b.assigned, b.revoking = "other", nil, map[partitionID]int32{{[16]byte{0xa}, 0}: 1}
		},
		"one instance": func(a, b *consumerMember) { b.assigned, b.revoking = nil, nil },
	} {
		c := newConsumerTest(t, consumerTestTopics{"a": 1})
		a, b := goldenMember(), goldenMember()
		edit(a, b)
		for part, value := range map[string][]byte{"ma": a.encode(), "mb": b.encode()} {
			testkit.Must(t, c.g.load(part, value))
		}
		c.g.restored(c.now)
		if c.g.members["a"] == nil || c.g.members["b"] != nil {
			t.Errorf("%s: members = %v", name, slices.Collect(maps.Keys(c.g.members)))
		}
		var gone bool
		c.g.changes(func(part string, value []byte) { gone = gone || part == "mb" && value == nil })
		if !gone {
			t.Errorf("%s: the second member is still in the journal", name)
		}
		// The group itself is lost, too. Epochs do not start again at the first one.
		if c.g.epoch <= 7 || c.g.assignmentEpoch < 7 {
			t.Errorf("%s: epoch %d, assignment epoch %d", name, c.g.epoch, c.g.assignmentEpoch)
		}
		if resp := c.beat("b", 7); resp.ErrorCode != kerr.UnknownMemberID.Code {
			t.Errorf("%s: %s", name, c.show(resp))
		}
	}
}

// FuzzConsumerHeartbeat sends arbitrary requests to a group that is
// rebalancing.
func FuzzConsumerHeartbeat(f *testing.F) {
	f.Add(byte(0x10), "m1", int32(2), "", "", "", "", []byte{0, 1, 2})
	f.Add(byte(0x01), "m1", int32(-2), "i", "", "", "", []byte{})
	f.Add(byte(0x04), "m2", int32(3), "", "", "(a|b)+.{0,3}", "", []byte{})
	f.Add(byte(0x3b), "m3", int32(0), "i", "a c", "", "range", []byte{})
	f.Add(byte(0), "m2", int32(-1), "", "", "", "", []byte{})
	topics := consumerTestTopics{"a": 4, "b": 2}
	indexed := indexConsumerTopics(topics)
	f.Fuzz(func(t *testing.T, set byte, id string, epoch int32, instance, names, regex, assignor string, owned []byte) {
		req := consumerBeat(id, epoch)
		for bit, edit := range []beatEdit{
			withInstance(instance), withNames(strings.Fields(names)...), withRegex(regex), withAssignor(assignor),
			func(r *kmsg.ConsumerGroupHeartbeatRequest) {
				r.Topics = []kmsg.ConsumerGroupHeartbeatRequestTopic{}
				for _, p := range owned {
					topic := kmsg.ConsumerGroupHeartbeatRequestTopic{TopicID: consumerTestID(string("ab"[p>>7])), Partitions: []int32{int32(p & 7)}}
					r.Topics = append(r.Topics, topic)
				}
			},
			func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.RebalanceTimeoutMillis = 1000 },
			func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.Version = 0 },
		} {
			if set>>bit&1 != 0 {
				edit(req)
			}
		}
		c := newConsumerTest(nil, topics)
		c.beat("m1", 0, withNames("a"), withInstance("i"))
		c.beat("m2", 0, withRegex(".*"))
		c.beat("m1", 2)
		for range 2 {
			resp := c.g.heartbeat(c.now, c.caller("User:eve"), indexed, req)
			if err := consumerInvariants(c.g); err != nil {
				t.Fatalf("%v after %+v, answered with %+v", err, req, resp)
			}
		}
		restoredConsumerGroup(t, c.g, c.now)
	})
}

// FuzzConsumerLoad restores a group from arbitrary bytes and uses it.
func FuzzConsumerLoad(f *testing.F) {
	c := newConsumerTest(nil, consumerTestTopics{"a": 4, "b": 2})
	c.beat("m1", 0, withNames("a"), withInstance("i"))
	c.beat("m2", 0, withRegex(".*"))
	c.beat("m1", 2)
	f.Add(c.g.encode(), c.g.members["m1"].encode(), c.g.members["m2"].encode())
	f.Add(newConsumerGroup("g", 10_000).encode(), goldenMember().encode(), []byte{})
	topics := indexConsumerTopics(c.topics)
	f.Fuzz(func(t *testing.T, group, m1, m2 []byte) {
		g := newConsumerGroup("g", 10_000)
		for part, value := range map[string][]byte{"": group, "mm1": m1, "mm2": m2} {
			n := newConsumerGroup("g", 10_000)
			if n.load(part, value) != nil {
				continue
			}
			testkit.Must(t, g.load(part, value))
			if part == "" {
				continue
			}
			// What was decoded is encoded in a form that decodes to the same group.
			id := strings.TrimPrefix(part, consumerMemberPart)
			again := newConsumerGroup("g", 10_000)
			written := g.members[id].encode()
			if err := again.load(part, written); err != nil {
				t.Fatalf("%x becomes %x: %v", value, written, err)
			}
			if b := again.members[id].encode(); !bytes.Equal(b, written) {
				t.Fatalf("%x, %x", b, written)
			}
		}
		now := c.now
		g.restored(now)
		epoch := g.epoch
		who := Caller{MayDescribe: func(string) bool { return true }}
		g.describe(topics)
		for _, id := range []string{"m1", "m2", "m3"} {
			g.heartbeat(now, who, topics, consumerBeat(id, 0, withRegex("a|b")))
			if m := g.members[id]; m != nil {
				g.heartbeat(now, who, topics, consumerBeat(id, m.epoch, withOwned("")))
			}
			g.topicsChanged()
		}
		g.describe(topics)
		testkit.Must(t, consumerInvariants(g))
		g.expire(g.deadline())
		if g.epoch < epoch {
			t.Fatalf("epoch %d after %d", g.epoch, epoch)
		}
		restoredConsumerGroup(t, g, now)
	})
}

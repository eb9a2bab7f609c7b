package groups

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// consumerTestTopics implements Topics. Keys are names. A topic that is created again, and so has a
// new ID, has "#" and a number after its name. Values are partition counts.
type consumerTestTopics map[string]int32

func (c consumerTestTopics) find(name string) (full string, ok bool) {
	for full := range c {
		if n, _, _ := strings.Cut(full, "#"); n == name {
			return full, true
		}
	}
	return "", false
}

func (c consumerTestTopics) ByName(name string) (id [16]byte, partitions int32, ok bool) {
	full, ok := c.find(name)
	return consumerTestID(full), c[full], ok
}

func (c consumerTestTopics) ByID(id [16]byte) (name string, ok bool) {
	for full := range c {
		if consumerTestID(full) == id {
			name, _, _ = strings.Cut(full, "#")
			return name, true
		}
	}
	return "", false
}

func (c consumerTestTopics) Names() []string {
	var names []string
	for full := range c {
		name, _, _ := strings.Cut(full, "#")
		names = append(names, name)
	}
	return names
}

func consumerTestID(full string) [16]byte {
	h := sha256.Sum256([]byte(full))
	return [16]byte(h[:])
}

// consumerTest sends heartbeats to one group.
type consumerTest struct {
	t      *testing.T
	g      *consumerGroup
	topics consumerTestTopics
	now    time.Time
	may    func(string) bool
}

func newConsumerTest(t *testing.T, topics consumerTestTopics) *consumerTest {
	return &consumerTest{
		t: t, g: newConsumerGroup("g", 10_000), topics: topics, now: time.Unix(1e9, 0),
		may: func(string) bool { return true },
	}
}

func (c *consumerTest) caller(principal string) Caller {
	return Caller{ClientID: "client", Host: "10.0.0.1", Principal: principal, MayDescribe: c.may}
}

// beat sends a heartbeat. The functions in edit change the request.
func (c *consumerTest) beat(id string, epoch int32, edit ...func(*kmsg.ConsumerGroupHeartbeatRequest)) *kmsg.ConsumerGroupHeartbeatResponse {
	req := consumerBeat(id, epoch, edit...)
	return c.g.heartbeat(c.now, c.caller("User:ada"), c.topics, req)
}

func consumerBeat(id string, epoch int32, edit ...func(*kmsg.ConsumerGroupHeartbeatRequest)) *kmsg.ConsumerGroupHeartbeatRequest {
	req := kmsg.NewPtrConsumerGroupHeartbeatRequest()
	req.Version, req.Group, req.MemberID, req.MemberEpoch = 1, "g", id, epoch
	req.RebalanceTimeoutMillis = -1
	if epoch == 0 {
		req.RebalanceTimeoutMillis = 60_000
		req.Topics = []kmsg.ConsumerGroupHeartbeatRequestTopic{}
		req.SubscribedTopicNames = []string{}
	}
	for _, e := range edit {
		e(req)
	}
	return req
}

type beatEdit = func(*kmsg.ConsumerGroupHeartbeatRequest)

func withNames(names ...string) beatEdit {
	return func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.SubscribedTopicNames = append([]string{}, names...) }
}

func withRegex(expr string) beatEdit {
	return func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.SubscribedTopicRegex = &expr }
}

func withInstance(id string) beatEdit {
	return func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.InstanceID = &id }
}

func withAssignor(name string) beatEdit {
	return func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.ServerAssignor = &name }
}

// withOwned takes the partitions that the member owns, like "a:0,1 b:2", or ""
// for none.
func withOwned(owned string) beatEdit {
	return func(r *kmsg.ConsumerGroupHeartbeatRequest) {
		r.Topics = []kmsg.ConsumerGroupHeartbeatRequestTopic{}
		for _, f := range strings.Fields(owned) {
			name, list, _ := strings.Cut(f, ":")
			topic := kmsg.ConsumerGroupHeartbeatRequestTopic{TopicID: consumerTestID(name)}
			for _, s := range strings.Split(list, ",") {
				var p int32
				fmt.Sscan(s, &p)
				topic.Partitions = append(topic.Partitions, p)
			}
			r.Topics = append(r.Topics, topic)
		}
	}
}

// show renders a response as the epoch and the assignment, like "3 a:0,1" or "3
// -" if it has none, or as the error.
func (c *consumerTest) show(resp *kmsg.ConsumerGroupHeartbeatResponse) string {
	if err := kerr.TypedErrorForCode(resp.ErrorCode); err != nil {
		if resp.ErrorMessage == nil {
			return err.Message
		}
		return err.Message + ": " + *resp.ErrorMessage
	}
	if resp.Assignment == nil {
		return fmt.Sprintf("%d -", resp.MemberEpoch)
	}
	s := fmt.Sprint(resp.MemberEpoch)
	var topics []string
	for _, a := range resp.Assignment.Topics {
		name, _ := c.topics.ByID(a.TopicID)
		topics = append(topics, fmt.Sprintf(" %s:%s", name, strings.ReplaceAll(strings.Trim(fmt.Sprint(a.Partitions), "[]"), " ", ",")))
	}
	slices.Sort(topics)
	return s + strings.Join(topics, "")
}

func (c *consumerTest) want(resp *kmsg.ConsumerGroupHeartbeatResponse, want string) {
	c.t.Helper()
	if got := c.show(resp); got != want {
		c.t.Fatalf("response = %q, want %q", got, want)
	}
}

func (c *consumerTest) wantState(want string) {
	c.t.Helper()
	if got := c.g.state(); got != want {
		c.t.Fatalf("state = %q, want %q", got, want)
	}
}

// restart replaces the group by one that is restored from its stored parts.
func (c *consumerTest) restart() {
	c.t.Helper()
	c.g = restoredConsumerGroup(c.t, c.g, c.now)
}

func restoredConsumerGroup(t testing.TB, g *consumerGroup, now time.Time) *consumerGroup {
	t.Helper()
	n := newConsumerGroup(g.id, g.maxMembers)
	g.all(func(part string, value []byte) {
		testkit.Must(t, n.load(part, value))
	})
	n.restored(now)
	return n
}

// all calls emit for every part.
func (g *consumerGroup) all(emit func(part string, value []byte)) {
	emit("", g.encode())
	for _, m := range g.sorted() {
		emit(consumerMemberPart+m.id, m.encode())
	}
}

func TestConsumerJoinAndRebalance(t *testing.T) {
	c := newConsumerTest(t, consumerTestTopics{"a": 4})
	first := c.beat("m1", 0, withNames("a"))
	c.want(first, "2 a:0,1,2,3")
	if *first.MemberID != "m1" || first.HeartbeatIntervalMillis != 5000 {
		t.Fatalf("response = %+v", first)
	}
	c.wantState("Stable")
	c.want(c.beat("m1", 2), "2 -")

	c.want(c.beat("m2", 0, withNames("a")), "3")
	c.wantState("Reconciling")
	// m1 is told to revoke two partitions, and keeps its epoch until it has done so.
	c.want(c.beat("m1", 2), "2 a:0,1")
	c.want(c.beat("m2", 3), "3 -")
	c.want(c.beat("m1", 2, withOwned("a:0,1,2,3")), "2 -")
	c.want(c.beat("m1", 2, withOwned("a:0,1")), "3 -")
	c.want(c.beat("m2", 3), "3 a:2,3")
	c.wantState("Stable")
}

func TestConsumerLostAnswers(t *testing.T) {
	c := newConsumerTest(t, consumerTestTopics{"a": 2})
	c.beat("m1", 0, withNames("a"))
	c.want(c.beat("m1", 0, withNames("a")), "2 a:0,1") // the first response was lost
	c.beat("m2", 0, withNames("a"))
	c.want(c.beat("m1", 2), "2 a:0")
	c.want(c.beat("m1", 2, withOwned("a:0")), "3 -")
	// That response is lost too. The previous epoch is accepted if the member owns only partitions
	// that are assigned to it.
	c.want(c.beat("m1", 2, withOwned("a:0,1")), "FENCED_MEMBER_EPOCH: The consumer group member has a smaller member epoch (2) than the one known by the group coordinator (3). The member must abandon all its partitions and rejoin.")
	c.want(c.beat("m1", 2), "FENCED_MEMBER_EPOCH: The consumer group member has a smaller member epoch (2) than the one known by the group coordinator (3). The member must abandon all its partitions and rejoin.")
	c.want(c.beat("m1", 2, withOwned("a:0")), "3 -")
	c.want(c.beat("m1", 1, withOwned("")), "FENCED_MEMBER_EPOCH: The consumer group member has a smaller member epoch (1) than the one known by the group coordinator (3). The member must abandon all its partitions and rejoin.")
	c.want(c.beat("m1", 4), "FENCED_MEMBER_EPOCH: The consumer group member has a greater member epoch (4) than the one known by the group coordinator (3). The member must abandon all its partitions and rejoin.")
	c.want(c.beat("m1", 3, withOwned("a:0"), withNames("a"), func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.RebalanceTimeoutMillis = 1000 }), "3 a:0")
	c.want(c.beat("m1", 0, withNames("a")), "3 a:0") // fenced, it joins again
}

func TestConsumerRequests(t *testing.T) {
	c := newConsumerTest(t, consumerTestTopics{"a": 1})
	c.may = func(topic string) bool { return topic != "secret" }
	set := func(f beatEdit) beatEdit { return f }
	for _, test := range []struct {
		name  string
		id    string
		epoch int32
		edit  []beatEdit
		want  string
	}{
		{"no member ID", "", 0, nil, "INVALID_REQUEST: MemberId can't be empty."},
		{"blank member ID", " \t", 0, nil, "INVALID_REQUEST: MemberId can't be empty."},
		{"v0, no member ID behind the join", "", 1, []beatEdit{set(func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.Version = 0 })}, "INVALID_REQUEST: MemberId can't be empty."},
		{"no group", "m", 0, []beatEdit{set(func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.Group = "" })}, "INVALID_REQUEST: GroupId can't be empty."},
		{"blank instance", "m", 0, []beatEdit{withInstance("")}, "INVALID_REQUEST: InstanceId can't be empty."},
		{"blank rack", "m", 0, []beatEdit{set(func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.RackID = new(string) })}, "INVALID_REQUEST: RackId can't be empty."},
		{"no rebalance timeout", "m", 0, []beatEdit{set(func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.RebalanceTimeoutMillis = -1 })}, "INVALID_REQUEST: RebalanceTimeoutMs must be provided in first request."},
		{"joins and does not tell what it owns", "m", 0, []beatEdit{set(func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.Topics = nil })}, "INVALID_REQUEST: TopicPartitions must be empty when (re-)joining."},
		{"joins and owns partitions", "m", 0, []beatEdit{withOwned("a:0")}, "INVALID_REQUEST: TopicPartitions must be empty when (re-)joining."},
		{"no subscription", "m", 0, []beatEdit{set(func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.SubscribedTopicNames = nil })}, "INVALID_REQUEST: Either SubscribedTopicNames or SubscribedTopicRegex must be non-null when (re-)joining."},
		{"static leave without instance", "m", -2, nil, "INVALID_REQUEST: InstanceId can't be null."},
		{"epoch -3", "m", -3, nil, "INVALID_REQUEST: MemberEpoch is invalid."},
		{"assignor", "m", 0, []beatEdit{withAssignor("sticky")}, "UNSUPPORTED_ASSIGNOR: ServerAssignor sticky is not supported. Supported assignors: uniform, range."},
		{"regex", "m", 0, []beatEdit{withRegex("(")}, "INVALID_REGULAR_EXPRESSION: SubscribedTopicRegex `(` is not a valid regular expression: missing closing )."},
		{"closed and opened", "m", 0, []beatEdit{withRegex("a)(b")}, "INVALID_REGULAR_EXPRESSION: SubscribedTopicRegex `a)(b` is not a valid regular expression: unexpected )."},
		{"large regex", "m", 0, []beatEdit{withRegex("((a?){100}){10}(b?){1000}(c?){1000}")}, "INVALID_REGULAR_EXPRESSION: SubscribedTopicRegex `((a?){100}){10}(b?){1000}(c?){1000}` is not a valid regular expression: expression too large."},
		{"topic that it may not describe", "m", 0, []beatEdit{withNames("a", "secret")}, "TOPIC_AUTHORIZATION_FAILED"},
		{"large subscription", "m", 0, []beatEdit{withNames(strings.Repeat("x", 1<<20))}, "INVALID_REQUEST: The subscription is too large."},
		{"heartbeat to no group", "m", 1, nil, "GROUP_ID_NOT_FOUND: Consumer group g not found."},
		{"leaves no group", "m", -1, nil, "GROUP_ID_NOT_FOUND: Group g not found."},
	} {
		c.want(c.beat(test.id, test.epoch, test.edit...), test.want)
		c.g.changes(func(part string, _ []byte) { t.Fatalf("%s: part %q changed", test.name, part) })
		if !c.g.deadline().IsZero() {
			t.Fatalf("%s: the group has a deadline", test.name)
		}
	}
	c.want(c.beat("m", 0), "1") // a member without a subscription
	c.want(c.beat("n", 7), "UNKNOWN_MEMBER_ID: Member n is not a member of group g.")
	c.want(c.beat("n", -1), "UNKNOWN_MEMBER_ID: Member n is not a member of group g.")
	c.want(c.beat("n", 7, withInstance("i")), "UNKNOWN_MEMBER_ID: Instance id i is unknown.")
	c.want(c.beat("m", -1), "-1 -")
	c.wantState("Empty")
	c.want(c.beat("m", 1), "UNKNOWN_MEMBER_ID: Member m is not a member of group g.")
}

func TestConsumerMemberIDOfVersion0(t *testing.T) {
	c := newConsumerTest(t, consumerTestTopics{"a": 1})
	resp := c.beat("", 0, withNames("a"), func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.Version = 0 })
	c.want(resp, "2 a:0")
	if id := *resp.MemberID; len(id) != 22 || c.g.members[id] == nil {
		t.Fatalf("member ID = %q", id)
	}
}

func TestConsumerFull(t *testing.T) {
	c := newConsumerTest(t, consumerTestTopics{"a": 1})
	c.g = newConsumerGroup("g", 1)
	c.want(c.beat("m1", 0, withNames("a")), "2 a:0")
	c.want(c.beat("m2", 0, withNames("a")), "GROUP_MAX_SIZE_REACHED: The consumer group has reached its maximum capacity of 1 members.")
	c.want(c.beat("m1", 2), "2 -")
}

func TestConsumerStaticMembers(t *testing.T) {
	c := newConsumerTest(t, consumerTestTopics{"a": 2})
	c.want(c.beat("m1", 0, withNames("a"), withInstance("i1")), "2 a:0,1")
	c.want(c.beat("m2", 0, withNames("a"), withInstance("i2")), "3")
	c.want(c.beat("m1", 2), "2 a:0")
	c.want(c.beat("m3", 0, withNames("a"), withInstance("i1")), "UNRELEASED_INSTANCE_ID: Static member m3 with instance id i1 cannot join the group because the instance id is owned by m1 member.")
	c.want(c.beat("m3", 3, withInstance("i1")), "FENCED_INSTANCE_ID: Static member m3 with instance id i1 was fenced by member m1.")
	c.want(c.beat("m3", -2, withInstance("i1")), "FENCED_INSTANCE_ID: Static member m3 with instance id i1 was fenced by member m1.")
	c.want(c.beat("m4", -2, withInstance("i4")), "UNKNOWN_MEMBER_ID: Instance id i4 is unknown.")
	c.want(c.beat("m1", 2, withInstance("i1"), withOwned("a:0")), "3 -")
	c.want(c.beat("m2", 3, withInstance("i2")), "3 a:1")

	// i1 restarts. Its partition is reserved for it, and heartbeats of the old
	// process are fenced.
	c.want(c.beat("m1", -2, withInstance("i1")), "-2 -")
	c.want(c.beat("m1", 3, withInstance("i1")), "FENCED_MEMBER_EPOCH: The consumer group member has a greater member epoch (3) than the one known by the group coordinator (-2). The member must abandon all its partitions and rejoin.")
	c.want(c.beat("m2", 3, withInstance("i2")), "3 -")
	if _, err := c.g.checkCommit("m1", 3, 9); err != kerr.StaleMemberEpoch {
		t.Fatalf("commit of a member that is away: %v", err)
	}
	c.restart()
	c.want(c.beat("m3", 0, withNames("a"), withInstance("i1")), "3 a:0")
	if check, err := c.g.checkCommit("m3", 1, 9); err != nil || check(consumerTestID("a"), 0) != nil {
		t.Fatal("a static member that has come back cannot commit with an epoch of before")
	}
	c.want(c.beat("m1", 3, withInstance("i1")), "FENCED_INSTANCE_ID: Static member m1 with instance id i1 was fenced by member m3.")
	c.want(c.beat("m1", 3), "UNKNOWN_MEMBER_ID: Member m1 is not a member of group g.")
	c.want(c.beat("m2", 3, withInstance("i2")), "3 -")
	c.wantState("Stable")

	// It does not come back before the session timeout.
	c.want(c.beat("m3", -2, withInstance("i1")), "-2 -")
	c.now = c.now.Add(44 * time.Second)
	c.beat("m2", 3)
	c.now = c.now.Add(time.Second)
	if !c.g.expire(c.now) {
		t.Fatal("the static member that stayed away is still there")
	}
	c.want(c.beat("m2", 3), "4 a:0,1")

	// A static member leaves for good.
	c.want(c.beat("m2", -1, withInstance("i2")), "-1 -")
	c.want(c.beat("m5", 0, withNames("a"), withInstance("i2")), "6 a:0,1")
}

func TestConsumerStaticMemberGivingUp(t *testing.T) {
	c := newConsumerTest(t, consumerTestTopics{"a": 2})
	c.beat("m1", 0, withNames("a"), withInstance("i1"))
	c.beat("m2", 0, withNames("a"))
	c.want(c.beat("m1", 2), "2 a:0")
	c.want(c.beat("m2", 3), "3 -")
	// The partitions that it was revoking when it left are free.
	c.want(c.beat("m1", -2, withInstance("i1")), "-2 -")
	c.want(c.beat("m2", 3), "3 a:1")
	c.now = c.now.Add(time.Minute - time.Nanosecond)
	c.g.members["m1"].sessionEnds = c.now.Add(time.Hour)
	c.g.members["m2"].sessionEnds = c.now.Add(time.Hour)
	c.now = c.now.Add(time.Hour / 2)
	if c.g.expire(c.now) {
		t.Fatal("a static member that is away was removed by its rebalance timeout")
	}
	c.want(c.beat("m3", 0, withInstance("i1"), withNames("a")), "3 a:0")
}

func TestConsumerTimeouts(t *testing.T) {
	c := newConsumerTest(t, consumerTestTopics{"a": 2})
	c.beat("m1", 0, withNames("a"), func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.RebalanceTimeoutMillis = 10_000 })
	if got, want := c.g.deadline(), c.now.Add(45*time.Second); !got.Equal(want) {
		t.Fatalf("deadline = %v, want %v", got, want)
	}
	c.beat("m2", 0, withNames("a"))
	c.now = c.now.Add(time.Second)
	c.want(c.beat("m1", 2), "2 a:0")
	if got, want := c.g.deadline(), c.now.Add(10*time.Second); !got.Equal(want) {
		t.Fatalf("deadline = %v, want %v", got, want)
	}
	for range 4 { // heartbeats do not extend the rebalance timeout
		c.now = c.now.Add(2 * time.Second)
		c.want(c.beat("m1", 2), "2 -")
	}
	c.restart() // a restart does extend it
	c.now = c.now.Add(9 * time.Second)
	if c.g.expire(c.now) {
		t.Fatal("m1 is gone before its rebalance timeout")
	}
	c.now = c.now.Add(time.Second)
	if !c.g.expire(c.now) || c.g.members["m1"] != nil {
		t.Fatal("m1 is there after its rebalance timeout")
	}
	c.wantState("Assigning")
	c.want(c.beat("m2", 3), "4 a:0,1")
	c.now = c.now.Add(45*time.Second - 1)
	if c.g.expire(c.now) {
		t.Fatal("m2 is gone before its session timeout")
	}
	c.now = c.now.Add(1)
	if !c.g.expire(c.now) || !c.g.empty() {
		t.Fatal("m2 is there after its session timeout")
	}
	if !c.g.deadline().IsZero() {
		t.Fatal("an empty group has a deadline")
	}
}

func TestConsumerRegex(t *testing.T) {
	c := newConsumerTest(t, consumerTestTopics{"ab": 1, "abc": 1, "secret": 1, "b": 1})
	c.may = func(topic string) bool { return topic != "secret" }
	c.want(c.beat("m1", 0, withRegex("ab|.*t"), withNames()), "2 ab:0")
	c.want(c.beat("m1", 2, withRegex("none")), "2")
	c.want(c.beat("m1", 2, withOwned("")), "3 -")
	c.want(c.beat("m1", 3, withRegex("a.*")), "4 ab:0 abc:0")
	if len(c.g.patterns) > 1 {
		t.Fatalf("patterns = %v", c.g.patterns)
	}
	c.want(c.beat("m1", 4, withNames("b", "ab")), "5 ab:0 abc:0 b:0")
	c.topics["abcd"] = 2
	c.g.topicsChanged()
	c.want(c.beat("m1", 5), "6 ab:0 abc:0 abcd:0,1 b:0")
	c.restart()
	c.want(c.beat("m1", 6), "6 -")
	delete(c.topics, "abcd")
	c.g.topicsChanged()
	c.want(c.beat("m1", 6, withNames("b", "ab"), withOwned("ab:0 abc:0 abcd:0,1 b:0"), withRegex("a.*")), "6 ab:0 abc:0 b:0")
	c.want(c.beat("m1", 6, withOwned("ab:0 abc:0 b:0")), "7 -")
	c.want(c.beat("m1", 7, withRegex("")), "7 ab:0 b:0")
	c.want(c.beat("m1", 7, withOwned("ab:0 b:0")), "8 -")
	if len(c.g.patterns) != 0 {
		t.Fatalf("patterns of no member: %v", c.g.patterns)
	}
}

// When a member leaves, the epoch rises once for that and for topics that changed before. Topics
// that change afterwards raise it again.
func TestConsumerLeavesAfterTopicsChanged(t *testing.T) {
	for _, later := range []bool{false, true} {
		c := newConsumerTest(t, consumerTestTopics{"a": 1, "b": 1})
		c.want(c.beat("m1", 0, withNames("a")), "2 a:0")
		c.want(c.beat("m2", 0, withNames("b")), "3 b:0")
		change := func() {
			delete(c.topics, "a")
			c.g.topicsChanged()
		}
		if !later {
			change()
		}
		c.beat("m2", -1)
		if later {
			change()
		}
		c.want(c.beat("m1", 2, withOwned("a:0")), "2")
		want := map[bool]string{false: "4 -", true: "5 -"}[later]
		c.want(c.beat("m1", 2, withOwned("")), want)
	}
}

// Changes of rights are noticed within consumerRefresh, for subscriptions by
// name and by regular expression.
func TestConsumerRights(t *testing.T) {
	c := newConsumerTest(t, consumerTestTopics{"a": 1, "b": 1})
	denied := map[string]bool{"b": true}
	c.may = func(topic string) bool { return !denied[topic] }
	c.want(c.beat("m1", 0, withRegex(".*")), "2 a:0")
	denied["b"] = false
	c.want(c.beat("m1", 2), "2 -")
	c.now = c.now.Add(consumerRefresh)
	c.want(c.beat("m1", 2), "3 a:0 b:0")
	c.want(c.beat("m1", 3, withRegex(""), withNames("a", "b")), "4 -")
	denied["a"] = true
	c.now = c.now.Add(consumerRefresh)
	c.want(c.beat("m1", 4), "4 b:0")
	c.want(c.beat("m1", 4, withOwned("b:0")), "5 -")

	described := c.g.describe(c.topics)
	hideTopics(&described, c.caller(""))
	if described.ErrorCode != 0 {
		t.Fatalf("described = %+v", described)
	}
	denied["b"] = true
	hideTopics(&described, c.caller(""))
	if described.ErrorCode != kerr.TopicAuthorizationFailed.Code || len(described.Members) != 0 || described.Group != "g" || described.State != "" {
		t.Fatalf("described = %+v", described)
	}
	c.want(c.g.heartbeat(c.now, Caller{}, c.topics, consumerBeat("m2", 0, withRegex(".*"))), "5")
}

// Members are assigned only topics that their own principal may describe. A new
// topic is assigned to all members of a principal in one rebalance.
func TestConsumerPrincipals(t *testing.T) {
	c := newConsumerTest(t, consumerTestTopics{"a": 2, "x": 2})
	ada := c.caller("User:ada")
	ada.MayDescribe = func(topic string) bool { return topic == "a" || topic == "b" }
	eve := c.caller("User:eve")
	eve.MayDescribe = func(topic string) bool { return topic == "x" }
	beat := func(who Caller, id string, epoch int32, edit ...beatEdit) *kmsg.ConsumerGroupHeartbeatResponse {
		return c.g.heartbeat(c.now, who, c.topics, consumerBeat(id, epoch, edit...))
	}
	c.want(beat(ada, "m1", 0, withRegex(".*")), "2 a:0,1")
	c.want(beat(eve, "m2", 0, withRegex(".*")), "3 x:0,1")
	c.want(beat(ada, "m1", 2), "3 -")
	c.want(beat(ada, "m3", 0, withRegex(".*")), "4")
	c.want(beat(eve, "m2", 3), "4 -")
	c.want(beat(ada, "m1", 3), "3 a:0")
	c.want(beat(ada, "m1", 3, withOwned("a:0")), "4 -")
	c.want(beat(ada, "m3", 4), "4 a:1")

	c.topics["b"] = 2
	c.g.topicsChanged()
	c.want(beat(ada, "m1", 4), "5 a:0 b:0")
	c.want(beat(eve, "m2", 4), "5 -")
	c.want(beat(ada, "m3", 4), "5 a:1 b:1")
	c.wantState("Stable")
}

// Rights that change cause a rebalance even if the topics of the group as a
// whole stay the same.
func TestConsumerRightsOfOneMember(t *testing.T) {
	c := newConsumerTest(t, consumerTestTopics{"a": 3})
	all, some := c.caller("User:ada"), c.caller("User:eve")
	denied := true
	some.MayDescribe = func(string) bool { return !denied }
	beat := func(who Caller, id string, epoch int32, edit ...beatEdit) *kmsg.ConsumerGroupHeartbeatResponse {
		return c.g.heartbeat(c.now, who, c.topics, consumerBeat(id, epoch, edit...))
	}
	c.want(beat(all, "m1", 0, withNames("a")), "2 a:0,1,2")
	c.want(beat(some, "m2", 0, withRegex("a")), "2")
	c.want(beat(some, "m3", 0, withRegex("a|b")), "2")
	denied = false
	c.now = c.now.Add(consumerRefresh)
	c.want(beat(some, "m2", 2), "3 -")
	c.want(beat(all, "m1", 2), "2 a:0")
	c.want(beat(all, "m1", 2, withOwned("a:0")), "3 -")
	c.want(beat(some, "m2", 3), "3 a:1")
	c.want(beat(some, "m3", 2), "3 a:2")
	// Now the heartbeat of m3 notices the change, and m2 has to give up its partition, too.
	c.want(beat(some, "m4", 0, withRegex("b")), "3")
	denied = true
	c.now = c.now.Add(consumerRefresh)
	c.want(beat(some, "m4", 3), "4 -")
	c.want(beat(some, "m2", 3), "3")
	c.want(beat(some, "m3", 3), "3")
}

func TestConsumerPartitionsAdded(t *testing.T) {
	c := newConsumerTest(t, consumerTestTopics{"a": 1})
	c.beat("m1", 0, withNames("a", "later"))
	c.topics["a"] = 2
	c.restart() // the process was killed before the group noticed
	c.want(c.beat("m1", 2), "3 a:0,1")
	c.want(c.beat("m1", 3), "3 -")
	c.topics["later"] = 1
	c.g.topicsChanged()
	c.want(c.beat("m1", 3), "4 a:0,1 later:0")
	delete(c.topics, "a")
	c.topics["a#2"] = 1 // created again
	c.g.topicsChanged()
	c.want(c.beat("m1", 4), "4 later:0")
	c.want(c.beat("m1", 4, withOwned("later:0")), "5 a:0 later:0")
}

func TestConsumerUnsubscribeWhileGivingUp(t *testing.T) {
	c := newConsumerTest(t, consumerTestTopics{"a": 4, "b": 2})
	c.beat("m1", 0, withNames("a", "b"))
	c.beat("m2", 0, withNames("a"))
	c.want(c.beat("m1", 2), "2 a:0 b:0,1")
	c.want(c.beat("m1", 2, withNames("a"), withOwned("a:0,1,2,3 b:0,1")), "2 a:0")
	c.want(c.beat("m1", 2, withOwned("a:0 b:0")), "2 -")
	c.want(c.beat("m1", 2, withOwned("a:0")), "4 a:0,3") // it gets a:3 back
	c.want(c.beat("m2", 3), "4 a:1,2")
	c.wantState("Stable")
}

func TestConsumerAssignorVotes(t *testing.T) {
	c := newConsumerTest(t, consumerTestTopics{"a": 1})
	want := func(want string) {
		t.Helper()
		if got := c.g.describe(c.topics).AssignorName; got != want {
			t.Fatalf("assignor = %q, want %q", got, want)
		}
	}
	c.beat("m1", 0, withNames("a"))
	want("uniform")
	c.beat("m1", 2, withAssignor("range"))
	want("range")
	c.beat("m2", 0, withNames("a"), withAssignor("uniform"))
	want("uniform")
	c.beat("m3", 0, withNames("a"), withAssignor("range"))
	want("range")
}

func TestConsumerDescribe(t *testing.T) {
	c := newConsumerTest(t, consumerTestTopics{"a": 2, "b": 1})
	c.beat("m1", 0, withNames("b", "a"), withInstance("i"), func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.RackID = kmsg.StringPtr("r") })
	c.beat("m2", 0, withRegex("a"))
	delete(c.topics, "b")
	got := c.g.describe(c.topics)
	want := kmsg.NewConsumerGroupDescribeResponseGroup()
	want.Group, want.State, want.Epoch, want.AssignmentEpoch, want.AssignorName = "g", "Reconciling", 3, 3, "uniform"
	partitions := func(p ...int32) kmsg.Assignment {
		a := kmsg.Assignment{TopicPartitions: []kmsg.AssignmentTopicPartition{}}
		if len(p) > 0 {
			a.TopicPartitions = append(a.TopicPartitions, kmsg.AssignmentTopicPartition{TopicID: consumerTestID("a"), Topic: "a", Partitions: p})
		}
		return a
	}
	m1, m2 := kmsg.NewConsumerGroupDescribeResponseGroupMember(), kmsg.NewConsumerGroupDescribeResponseGroupMember()
	m1.MemberID, m1.InstanceID, m1.RackID = "m1", kmsg.StringPtr("i"), kmsg.StringPtr("r")
	m1.MemberEpoch, m1.ClientID, m1.ClientHost, m1.MemberType = 2, "client", "/10.0.0.1", 1
	m1.SubscribedTopics, m1.SubscribedTopicRegex = []string{"a", "b"}, kmsg.StringPtr("")
	m1.Assignment, m1.TargetAssignment = partitions(0, 1), partitions(0)
	m2.MemberID, m2.MemberEpoch, m2.ClientID, m2.ClientHost, m2.MemberType = "m2", 3, "client", "/10.0.0.1", 1
	m2.SubscribedTopics, m2.SubscribedTopicRegex = []string{}, kmsg.StringPtr("a")
	m2.Assignment, m2.TargetAssignment = partitions(), partitions(1)
	want.Members = append(want.Members, m1, m2)
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("describe =\n%+v, want\n%+v", got, want)
	}
}

func TestConsumerSubscribed(t *testing.T) {
	c := newConsumerTest(t, consumerTestTopics{"a": 1, "b": 1, "c": 1})
	c.beat("m1", 0, withNames("a", "gone"))
	c.beat("m2", 0, withRegex("b"))
	for topic, want := range map[string]bool{"a": true, "gone": true, "b": true, "c": false, "d": false} {
		if got := c.g.subscribed(c.topics, topic); got != want {
			t.Errorf("subscribed(%q) = %v, want %v", topic, got, want)
		}
	}
}

func TestConsumerCommitAndFetch(t *testing.T) {
	c := newConsumerTest(t, consumerTestTopics{"a": 3})
	if check, err := c.g.checkCommit("", -1, 9); check != nil || err != nil {
		t.Fatal("an empty group refuses the commit of an administrator")
	}
	c.beat("m1", 0, withNames("a")) // epoch 2
	c.beat("m2", 0, withNames("a")) // epoch 3: a:2 goes to it
	c.beat("m1", 2)
	c.beat("m1", 2, withOwned("a:0,1"))
	c.beat("m2", 3)
	c.beat("m3", 0, withNames("a")) // epoch 4: a:1 goes to it
	c.beat("m2", 3)                 // is at epoch 4
	c.beat("m1", 3)                 // has to revoke a:1
	for _, test := range []struct {
		id        string
		epoch     int32
		version   int16
		partition int32
		want      *kerr.Error
	}{
		{"m1", 3, 9, 0, nil},
		{"m1", 3, 9, 2, nil}, // with the current epoch, all partitions are accepted
		{"m1", 2, 9, 0, nil},
		{"m1", 2, 9, 1, nil}, // being revoked
		{"m1", 2, 9, 2, kerr.StaleMemberEpoch},
		{"m1", 1, 9, 0, kerr.StaleMemberEpoch},
		{"m1", 4, 9, 0, kerr.StaleMemberEpoch},
		{"m1", -1, 9, 0, kerr.StaleMemberEpoch},
		{"m2", 3, 9, 2, nil},
		{"m2", 2, 9, 2, kerr.StaleMemberEpoch},
		{"m1", 3, 8, 0, kerr.UnsupportedVersion},
		{"m4", 3, 9, 0, kerr.UnknownMemberID},
		{"", -1, 9, 0, kerr.UnknownMemberID},
	} {
		check, err := c.g.checkCommit(test.id, test.epoch, test.version)
		if err == nil && check != nil {
			err = check(consumerTestID("a"), test.partition)
		}
		if err != test.want {
			t.Errorf("commit %+v: %v", test, err)
		}
	}
	id := func(s string) *string { return &s }
	for _, test := range []struct {
		id    *string
		epoch int32
		want  *kerr.Error
	}{
		{nil, -1, nil},
		{id("m1"), 3, nil},
		{id("m1"), 2, kerr.StaleMemberEpoch},
		{id("m1"), 4, kerr.StaleMemberEpoch},
		{id("m9"), 4, kerr.UnknownMemberID},
		{nil, 3, kerr.UnknownMemberID},
	} {
		if err := c.g.checkFetch(test.id, test.epoch); err != test.want {
			t.Errorf("fetch %+v: %v", test, err)
		}
	}
}

func TestConsumerNotConsumerGroup(t *testing.T) {
	c := newConsumerTest(t, nil)
	if resp := notConsumerGroup(consumerBeat("m", 0), true); resp != nil {
		t.Fatal(c.show(resp))
	}
	c.want(notConsumerGroup(consumerBeat("m", 0), false), "GROUP_ID_NOT_FOUND: Cannot upgrade classic group g to consumer group because online upgrade is disabled.")
	c.want(notConsumerGroup(consumerBeat("m", 1), true), "GROUP_ID_NOT_FOUND: Group g is not a consumer group.")
	c.want(notConsumerGroup(consumerBeat("m", -1), false), "GROUP_ID_NOT_FOUND: Group g is not a consumer group.")
}

// Heartbeats that change nothing cause no writes, even after a restart.
func TestConsumerQuietHeartbeats(t *testing.T) {
	c := newConsumerTest(t, consumerTestTopics{"a": 3})
	c.beat("m1", 0, withNames("a"))
	c.beat("m2", 0, withRegex("a"))
	c.beat("m1", 2)
	c.beat("m1", 2, withOwned("a:0,1"))
	c.beat("m2", 3)
	for range 2 {
		c.g.saved()
		for range 5 {
			c.now = c.now.Add(5 * time.Second)
			c.want(c.beat("m1", 3), "3 -")
			c.want(c.beat("m2", 3), "3 -")
		}
		c.g.changes(func(part string, _ []byte) { t.Errorf("part %q changed", part) })
		c.restart()
	}
}

// The parts of a group contain all of its state.
func TestConsumerRestart(t *testing.T) {
	c := newConsumerTest(t, consumerTestTopics{"a": 4, "b": 2})
	c.beat("m1", 0, withNames("a"), withInstance("i"), withAssignor("range"))
	c.beat("m2", 0, withRegex(".*"), func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.RackID = kmsg.StringPtr("rack") })
	c.beat("m1", 2)
	got, want := restoredConsumerGroup(t, c.g, c.now), c.g
	if !maps.EqualFunc(got.members, want.members, func(a, b *consumerMember) bool {
		x, y := *a, *b
		x.version, x.refreshed, y.version, y.refreshed = 0, time.Time{}, 0, time.Time{}
		x.assigned, y.assigned = nil, nil
		return maps.Equal(a.assigned, b.assigned) && reflect.DeepEqual(x, y)
	}) {
		t.Errorf("members after a restart differ")
	}
	if got.epoch != want.epoch || got.assignmentEpoch != want.assignmentEpoch || got.metadata != want.metadata ||
		len(got.holders) != len(want.holders) || len(got.static) != 1 {
		t.Errorf("after a restart: %+v, want %+v", got, want)
	}
}

func BenchmarkConsumerHeartbeat(b *testing.B) {
	for _, size := range []struct{ members, topics int }{{1, 1}, {10, 10}, {1000, 100}} {
		b.Run(fmt.Sprintf("members=%d,topics=%d", size.members, size.topics), func(b *testing.B) {
			topics := consumerTestTopics{}
			for i := range size.topics {
				topics[fmt.Sprintf("topic-%d", i)] = 100
			}
			indexed := indexConsumerTopics(topics)
			g := newConsumerGroup("g", 10_000)
			now := time.Unix(1e9, 0)
			who := Caller{MayDescribe: func(string) bool { return true }}
			start := time.Now()
			for i := range size.members {
				g.heartbeat(now, who, indexed, consumerBeat(fmt.Sprint(i), 0, withRegex("topic-.*")))
			}
			join := time.Since(start)
			for range 3 {
				for id, m := range g.members {
					g.heartbeat(now, who, indexed, consumerBeat(id, m.epoch, withOwned("")))
				}
			}
			req := consumerBeat("0", g.epoch)
			for b.Loop() {
				now = now.Add(time.Millisecond)
				if resp := g.heartbeat(now, who, indexed, req); resp.ErrorCode != 0 {
					b.Fatal(resp.ErrorCode)
				}
			}
			b.ReportMetric(float64(join.Microseconds())/float64(size.members), "µs/join")
		})
	}
}

// indexedConsumerTopics is a fast consumerTestTopics, for benchmarks.
type indexedConsumerTopics struct {
	names []string
	ids   map[string][16]byte
	byID  map[[16]byte]string
	count map[string]int32
}

func indexConsumerTopics(c consumerTestTopics) *indexedConsumerTopics {
	x := &indexedConsumerTopics{names: c.Names(), ids: map[string][16]byte{}, byID: map[[16]byte]string{}, count: c}
	for _, name := range x.names {
		x.ids[name], x.byID[consumerTestID(name)] = consumerTestID(name), name
	}
	return x
}

func (x *indexedConsumerTopics) ByName(name string) (id [16]byte, partitions int32, ok bool) {
	id, ok = x.ids[name]
	return id, x.count[name], ok
}

func (x *indexedConsumerTopics) ByID(id [16]byte) (name string, ok bool) {
	name, ok = x.byID[id]
	return name, ok
}

func (x *indexedConsumerTopics) Names() []string { return x.names }

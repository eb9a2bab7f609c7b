package groups

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// testTopics holds the broker's topics.
type testTopics struct {
	mu     sync.Mutex
	topics map[string]testTopic
}

type testTopic struct {
	id         [16]byte
	partitions int32
}

func (t *testTopics) set(name string, id byte, partitions int32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.topics == nil {
		t.topics = map[string]testTopic{}
	}
	t.topics[name] = testTopic{[16]byte{0: 0xdd, 15: id}, partitions}
}

func (t *testTopics) remove(name string) [16]byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	id := t.topics[name].id
	delete(t.topics, name)
	return id
}

func (t *testTopics) ByName(name string) ([16]byte, int32, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	topic, ok := t.topics[name]
	return topic.id, topic.partitions, ok
}

func (t *testTopics) ByID(id [16]byte) (string, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, topic := range t.topics {
		if topic.id == id {
			return name, true
		}
	}
	return "", false
}

func (t *testTopics) Names() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Sorted(maps.Keys(t.topics))
}

// testStore is a journal in memory that survives the Coordinator.
type testStore struct {
	mu      sync.Mutex
	entries []entry
	err     error  // each Append fails with it
	killAt  string // "before" or "after" the next Append
	appends int
	closed  bool // by a kill: nothing can be written afterwards
}

func (s *testStore) Append(entries ...entry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.appends++
	s.closed = s.closed || s.killAt == "before"
	if s.err != nil || s.closed {
		return errors.Join(s.err, errors.New("cannot be written"))
	}
	for _, e := range entries {
		s.entries = append(s.entries, entry{Key: slices.Clone(e.Key), Value: slices.Clone(e.Value)})
	}
	s.closed = s.closed || s.killAt == "after"
	return nil
}

func (s *testStore) Close() error { return nil }

func (s *testStore) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// live returns the last value of each key.
func (s *testStore) live() map[string][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	live := map[string][]byte{}
	for _, e := range s.entries {
		if live[string(e.Key)] = e.Value; e.Value == nil {
			delete(live, string(e.Key))
		}
	}
	return live
}

var everything = Caller{
	ClientID: "client", Host: "127.0.0.1", Principal: "User:ada",
	MayDescribe: func(string) bool { return true },
	MayRead:     func(string) bool { return true },
}

// world is a Coordinator with its topics and its store.
type world struct {
	testing.TB
	*Coordinator
	cfg    Config
	topics *testTopics
	store  *testStore
}

// given records a response as the Coordinator returned it. The broker encodes responses later,
// while other requests change the groups, so a response must not change.
func given[R interface {
	comparable
	kmsg.Response
}](w *world, resp R) R {
	var none R
	if resp == none {
		return resp
	}
	before := resp.AppendTo(nil)
	w.Cleanup(func() {
		if !bytes.Equal(resp.AppendTo(nil), before) {
			w.Errorf("%T changed after it had been returned: %+v", resp, resp)
		}
	})
	return resp
}

func (w *world) OffsetFetch(who Caller, req *kmsg.OffsetFetchRequest) *kmsg.OffsetFetchResponse {
	return given(w, w.Coordinator.OffsetFetch(who, req))
}

func (w *world) OffsetCommit(who Caller, req *kmsg.OffsetCommitRequest) *kmsg.OffsetCommitResponse {
	return given(w, w.Coordinator.OffsetCommit(who, req))
}

func (w *world) JoinGroup(ctx context.Context, who Caller, req *kmsg.JoinGroupRequest) *kmsg.JoinGroupResponse {
	return given(w, w.Coordinator.JoinGroup(ctx, who, req))
}

func (w *world) SyncGroup(ctx context.Context, req *kmsg.SyncGroupRequest) *kmsg.SyncGroupResponse {
	return given(w, w.Coordinator.SyncGroup(ctx, req))
}

func (w *world) DescribeGroups(req *kmsg.DescribeGroupsRequest) *kmsg.DescribeGroupsResponse {
	return given(w, w.Coordinator.DescribeGroups(req))
}

func (w *world) ConsumerGroupHeartbeat(who Caller, req *kmsg.ConsumerGroupHeartbeatRequest) *kmsg.ConsumerGroupHeartbeatResponse {
	return given(w, w.Coordinator.ConsumerGroupHeartbeat(who, req))
}

func (w *world) ConsumerGroupDescribe(who Caller, req *kmsg.ConsumerGroupDescribeRequest) *kmsg.ConsumerGroupDescribeResponse {
	return given(w, w.Coordinator.ConsumerGroupDescribe(who, req))
}

// inWorld runs a test in a synctest bubble.
func inWorld(t *testing.T, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(newWorld(t, Config{})) })
}

func newWorld(t testing.TB, cfg Config) *world {
	t.Helper()
	w := &world{TB: t, cfg: cfg, topics: &testTopics{}, store: &testStore{}}
	w.topics.set("t", 1, 10)
	w.topics.set("u", 2, 10)
	w.cfg.Topics = w.topics
	w.open()
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Errorf("Close() = %v", err)
		}
	})
	return w
}

func (w *world) open() {
	w.Helper()
	c, err := open(w.cfg, func(_ Config, load func(entry) error) (store, error) {
		for _, e := range w.store.entries {
			if err := load(e); err != nil {
				return nil, err
			}
		}
		return w.store, nil
	})
	if err != nil {
		w.Fatalf("open() = %v", err)
	}
	w.Coordinator = c
}

// kill starts the Coordinator again with the contents of the journal. The old one can no longer
// write.
func (w *world) kill() {
	w.Helper()
	w.store.mu.Lock()
	next := &testStore{entries: w.store.entries}
	w.store.closed = true
	w.store.mu.Unlock()
	before := w.Coordinator
	w.store = next
	w.open()
	if err := before.Close(); err != nil {
		w.Errorf("Close() = %v", err)
	}
}

// consumer is a client of the classic protocol.
type consumer struct {
	*world
	group      string
	id         string
	instance   *string
	generation int32
	protocols  []string
	topics     []string
	kind       string // protocol type
	session    time.Duration
	rebalance  time.Duration
	version    int16 // of JoinGroup
	leader     bool
	members    []kmsg.JoinGroupResponseMember
	assigned   string
}

func (w *world) consumer(group string) *consumer {
	return &consumer{
		world: w, group: group, protocols: []string{"range"}, topics: []string{"t"}, kind: "consumer",
		session: 10 * time.Second, rebalance: time.Minute, version: 9,
	}
}

func (w *world) static(group, instance string) *consumer {
	c := w.consumer(group)
	c.instance = &instance
	return c
}

// subscription returns a consumer's metadata, version 1.
func subscription(topics ...string) []byte {
	b := binary.BigEndian.AppendUint16(nil, 1)
	b = binary.BigEndian.AppendUint32(b, uint32(len(topics)))
	for _, t := range topics {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(t))), t...)
	}
	b = binary.BigEndian.AppendUint32(b, 0xffffffff) // no user data
	return binary.BigEndian.AppendUint32(b, 0)       // no owned partitions
}

func (c *consumer) joinRequest() *kmsg.JoinGroupRequest {
	req := kmsg.NewPtrJoinGroupRequest()
	req.Version = c.version
	req.Group, req.MemberID, req.InstanceID, req.ProtocolType = c.group, c.id, c.instance, c.kind
	req.SessionTimeoutMillis = int32(c.session.Milliseconds())
	req.RebalanceTimeoutMillis = int32(c.rebalance.Milliseconds())
	for _, name := range c.protocols {
		p := kmsg.NewJoinGroupRequestProtocol()
		p.Name, p.Metadata = name, subscription(c.topics...)
		req.Protocols = append(req.Protocols, p)
	}
	return req
}

// joinOnce sends one JoinGroup request.
func (c *consumer) joinOnce() *kmsg.JoinGroupResponse {
	resp := c.JoinGroup(c.Context(), everything, c.joinRequest())
	if resp.ErrorCode == 0 {
		c.id, c.generation = resp.MemberID, resp.Generation
		c.members, c.leader = resp.Members, resp.LeaderID == resp.MemberID
	}
	return resp
}

// join joins, with the ID that it is given if necessary.
func (c *consumer) join() error {
	resp := c.joinOnce()
	if resp.ErrorCode == kerr.MemberIDRequired.Code {
		c.id = resp.MemberID
		resp = c.joinOnce()
	}
	return kerr.ErrorForCode(resp.ErrorCode)
}

// sync sends SyncGroup. A leader sends the assignments that assign returns for each member.
func (c *consumer) sync(assign func(member string) string) error {
	req := kmsg.NewPtrSyncGroupRequest()
	req.Version = 5
	req.Group, req.MemberID, req.InstanceID, req.Generation = c.group, c.id, c.instance, c.generation
	req.ProtocolType, req.Protocol = &c.kind, &c.protocols[0]
	if c.leader && assign != nil {
		for _, m := range c.members {
			a := kmsg.NewSyncGroupRequestGroupAssignment()
			a.MemberID, a.MemberAssignment = m.MemberID, []byte(assign(m.MemberID))
			req.GroupAssignment = append(req.GroupAssignment, a)
		}
	}
	resp := c.SyncGroup(c.Context(), req)
	if resp.ErrorCode == 0 {
		c.assigned = string(resp.MemberAssignment)
	}
	return kerr.ErrorForCode(resp.ErrorCode)
}

func (c *consumer) beat() error {
	req := kmsg.NewPtrHeartbeatRequest()
	req.Version = 4
	req.Group, req.MemberID, req.InstanceID, req.Generation = c.group, c.id, c.instance, c.generation
	return kerr.ErrorForCode(c.Heartbeat(req).ErrorCode)
}

func (c *consumer) leaveGroup() error {
	req := kmsg.NewPtrLeaveGroupRequest()
	req.Version = 5
	req.Group = c.group
	m := kmsg.NewLeaveGroupRequestMember()
	m.MemberID, m.InstanceID = c.id, c.instance
	req.Members = append(req.Members, m)
	resp := c.LeaveGroup(req)
	if resp.ErrorCode != 0 {
		return kerr.ErrorForCode(resp.ErrorCode)
	}
	return kerr.ErrorForCode(resp.Members[0].ErrorCode)
}

// commit commits an offset of t as a member.
func (c *consumer) commit(partition int32, offset int64) error {
	return c.commitAs(c.group, c.id, c.instance, c.generation, partition, offset)
}

// commitAlone commits an offset of t as a client that is not a member of the group.
func (w *world) commitAlone(group string, partition int32, offset int64) error {
	return w.commitAs(group, "", nil, -1, partition, offset)
}

func (w *world) commitAs(group, member string, instance *string, generation, partition int32, offset int64) error {
	req := kmsg.NewPtrOffsetCommitRequest()
	req.Version = 9
	req.Group, req.MemberID, req.InstanceID, req.Generation = group, member, instance, generation
	t := kmsg.NewOffsetCommitRequestTopic()
	t.Topic = "t"
	p := kmsg.NewOffsetCommitRequestTopicPartition()
	p.Partition, p.Offset = partition, offset
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	resp := w.OffsetCommit(everything, req)
	return kerr.ErrorForCode(resp.Topics[0].Partitions[0].ErrorCode)
}

// fetched returns the committed offset of t, or -1.
func (w *world) fetched(group string, partition int32) int64 {
	w.Helper()
	req := kmsg.NewPtrOffsetFetchRequest()
	req.Version = 8
	g := kmsg.NewOffsetFetchRequestGroup()
	g.Group = group
	t := kmsg.NewOffsetFetchRequestGroupTopic()
	t.Topic, t.Partitions = "t", []int32{partition}
	g.Topics = append(g.Topics, t)
	req.Groups = append(req.Groups, g)
	resp := w.OffsetFetch(everything, req).Groups[0]
	p := resp.Topics[0].Partitions[0]
	if resp.ErrorCode != 0 || p.ErrorCode != 0 {
		w.Errorf("OffsetFetch(%s) = %v, %v", group, kerr.ErrorForCode(resp.ErrorCode), kerr.ErrorForCode(p.ErrorCode))
	}
	return p.Offset
}

// describe describes a classic group.
func (w *world) described(group string) kmsg.DescribeGroupsResponseGroup {
	req := kmsg.NewPtrDescribeGroupsRequest()
	req.Version, req.Groups = 6, []string{group}
	return w.DescribeGroups(req).Groups[0]
}

func (w *world) mustState(group, want string) {
	w.Helper()
	if got := w.described(group).State; got != want {
		w.Fatalf("state of %s = %s, want %s", group, got, want)
	}
}

// rebalanced lets the consumers run like real ones until all are in one generation, in which each
// is assigned its number.
func (w *world) rebalanced(members ...*consumer) {
	w.Helper()
	var mu sync.Mutex
	generations := make([]int32, len(members))
	settled := func(i int) bool {
		mu.Lock()
		defer mu.Unlock()
		if i >= 0 {
			generations[i] = members[i].generation
		}
		for _, g := range generations {
			if g == 0 || g != generations[0] {
				return false
			}
		}
		return true
	}
	ids := func(id string) string {
		mu.Lock()
		defer mu.Unlock()
		return fmt.Sprint(slices.IndexFunc(members, func(c *consumer) bool { return c.id == id }))
	}
	parallel(w, members, func(c *consumer) error {
		i := slices.Index(members, c)
		deadline := time.Now().Add(5 * time.Minute)
		for time.Now().Before(deadline) {
			next := *c
			if err := next.join(); err != nil {
				return fmt.Errorf("join of %d: %w", i, err)
			}
			mu.Lock()
			*c = next
			mu.Unlock()
			time.Sleep(time.Second) // until all know each other's IDs
			switch err := next.sync(ids); {
			case errors.Is(err, kerr.RebalanceInProgress):
				continue
			case err != nil:
				return fmt.Errorf("sync of %d: %w", i, err)
			}
			c.assigned = next.assigned
			for !settled(i) && time.Now().Before(deadline) {
				time.Sleep(time.Second)
				if settled(-1) {
					break
				}
				if err := c.beat(); errors.Is(err, kerr.RebalanceInProgress) {
					break
				} else if err != nil {
					return fmt.Errorf("heartbeat of %d: %w", i, err)
				}
			}
			if settled(-1) {
				return nil
			}
		}
		return errors.New("no common generation")
	})
	for i, c := range members {
		if c.assigned != fmt.Sprint(i) {
			w.Fatalf("member %d is assigned %q", i, c.assigned)
		}
	}
}

// parallel calls f for all elements concurrently, and waits.
func parallel(w *world, members []*consumer, f func(*consumer) error) {
	w.Helper()
	errs := make([]error, len(members))
	var wg sync.WaitGroup
	for i, c := range members {
		wg.Go(func() { errs[i] = f(c) })
	}
	wg.Wait()
	testkit.Must(w, errors.Join(errs...))
}

// want fails the test unless err is the expected error.
func (w *world) want(what string, err, want error) {
	w.Helper()
	if want == nil && err != nil || want != nil && !errors.Is(err, want) {
		w.Fatalf("%s = %v, want %v", what, err, want)
	}
}

package groups

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
	"pgregory.net/rapid"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// consumerModel runs random histories of a group. Its clients follow KIP-848. Responses are lost,
// the process is killed, the journal sometimes cannot be written, and topics and rights come and
// go. After each step:
//
//   - No two members of the group consume the same partition.
//   - Epochs that clients were told, or that were written, never decrease, and no member is ahead of
//     the assignment epoch.
//   - The stored parts restore the same group.
//   - No client is assigned a topic that it has not been allowed to describe for some time.
//
// At the end the faults stop. Then all partitions of all topics that members are subscribed to and
// may describe are consumed, in a balanced way, and nothing changes any more.
type consumerModel struct {
	t       *rapid.T
	g       *consumerGroup
	now     time.Time
	topics  consumerTestTopics
	made    int                             // number of topics so far
	denied  map[string]map[string]time.Time // by principal and topic: since when
	clients []*modelClient
	joined  int
	stored  map[string][]byte // the journal
	durable int32             // the group epoch in the journal
	faults  bool
	ranged  bool // a client has asked for the range assignor
}

// modelClient is the state of a client.
type modelClient struct {
	id, instance, principal string
	names                   []string
	regex, assignor         string

	epoch  int32
	owned  map[partitionID]bool // the partitions that it consumes
	told   map[partitionID]bool // the assignment that it has received but not applied, or nil
	acked  bool                 // it has reported what it owns
	unsure bool                 // the next heartbeat must be a full one
	silent bool                 // it has died without leaving
}

func TestConsumerModel(t *testing.T) {
	for range testkit.Scaled(t, "GROUPS_CONSUMER_HISTORIES", 1_000) / 100 { // rapid.Check runs 100
		rapid.Check(t, checkConsumerModel)
	}
}

func checkConsumerModel(t *rapid.T) {
	m := &consumerModel{
		t: t, g: newConsumerGroup("g", 5), now: time.Unix(1e9, 0), topics: consumerTestTopics{"a#0": 4, "b#0": 1},
		denied: map[string]map[string]time.Time{"User:ada": {}, "User:eve": {}}, stored: map[string][]byte{}, faults: true,
	}
	actions := map[string]func(){
		"join": m.join, "heartbeat": m.heartbeat, "heartbeat 2": m.heartbeat, "heartbeat 3": m.heartbeat, "heartbeat 4": m.heartbeat,
		"apply": m.apply, "apply 2": m.apply, "subscribe": m.resubscribe, "leave": m.leave, "silence": m.silence,
		"restart": m.restart, "tick": m.tick, "topics": m.changeTopics, "rights": m.changeRights,
	}
	names := slices.Sorted(maps.Keys(actions))
	for range rapid.IntRange(1, 100).Draw(t, "steps") {
		actions[rapid.SampledFrom(names).Draw(t, "action")]()
		m.check()
	}
	m.settle()
}

// fault returns true in one of n cases, until the faults stop.
func (m *consumerModel) fault(what string, n int) bool {
	return m.faults && rapid.SampledFrom(append(make([]bool, n-1), true)).Draw(m.t, what)
}

func (m *consumerModel) join() {
	if len(m.clients) == 7 {
		return
	}
	m.joined++
	c := &modelClient{id: fmt.Sprint("m", m.joined), principal: rapid.SampledFrom([]string{"User:ada", "User:ada", "User:eve"}).Draw(m.t, "principal")}
	c.instance = rapid.SampledFrom([]string{"", "", "i1", "i2"}).Draw(m.t, "instance")
	c.assignor = rapid.SampledFrom([]string{"", "", "", "uniform", "range"}).Draw(m.t, "assignor")
	m.ranged = m.ranged || c.assignor == "range"
	m.subscribe(c)
	m.clients = append(m.clients, c)
	m.send(c)
}

func (m *consumerModel) subscribe(c *modelClient) {
	all := []string{"a", "b", "c"}
	c.names = rapid.SampledFrom([][]string{all, all, {"a"}, {"a", "b"}, {"b", "c"}, {}}).Draw(m.t, "names")
	c.regex = rapid.SampledFrom([]string{"", "", "", "a|b", ".*", "z"}).Draw(m.t, "regex")
	c.unsure = true
}

func (m *consumerModel) client() *modelClient {
	alive := slices.DeleteFunc(slices.Clone(m.clients), func(c *modelClient) bool { return c.silent })
	if len(alive) == 0 {
		return nil
	}
	return rapid.SampledFrom(alive).Draw(m.t, "client")
}

func (m *consumerModel) heartbeat() {
	if c := m.client(); c != nil {
		m.send(c)
	}
}

func (m *consumerModel) may(principal, topic string) bool {
	_, denied := m.denied[principal][topic]
	return !denied
}

func (m *consumerModel) send(c *modelClient) {
	edit := []beatEdit{}
	if c.instance != "" {
		edit = append(edit, withInstance(c.instance))
	}
	if c.epoch == 0 || c.unsure {
		edit = append(edit, func(r *kmsg.ConsumerGroupHeartbeatRequest) { r.RebalanceTimeoutMillis = 30_000 }, withRegex(c.regex))
		// A client that requests a topic that it may not describe gets an error; this client then
		// leaves the topic out.
		edit = append(edit, withNames(slices.DeleteFunc(slices.Clone(c.names), func(n string) bool { return !m.may(c.principal, n) })...))
		if c.assignor != "" {
			edit = append(edit, withAssignor(c.assignor))
		}
	}
	reports := c.epoch == 0 || c.unsure || !c.acked
	if reports {
		edit = append(edit, func(r *kmsg.ConsumerGroupHeartbeatRequest) {
			r.Topics = []kmsg.ConsumerGroupHeartbeatRequestTopic{}
			for topic, of := range byTopic(slices.SortedFunc(maps.Keys(c.owned), comparePartitions)) {
				r.Topics = append(r.Topics, kmsg.ConsumerGroupHeartbeatRequestTopic{TopicID: topic, Partitions: partitionNumbers(of)})
			}
		})
	}
	resp := m.request(c, consumerBeat(c.id, c.epoch, edit...))
	if resp == nil {
		c.unsure = true
		if reports {
			c.told = nil // it has reported that it does not own these, so they may belong to others now
		}
		return
	}
	switch kerr.TypedErrorForCode(resp.ErrorCode) {
	case nil:
		m.answered(c, resp)
	case kerr.FencedMemberEpoch, kerr.UnknownMemberID, kerr.GroupIDNotFound, kerr.GroupMaxSizeReached:
		c.epoch, c.owned, c.told = 0, nil, nil
	case kerr.FencedInstanceID:
		m.gone(c)
	case kerr.UnreleasedInstanceID:
		if c.epoch != 0 {
			m.t.Fatalf("%s at epoch %d: %s", c.id, c.epoch, kerr.ErrorForCode(resp.ErrorCode))
		}
	default:
		m.t.Fatalf("%s: %s", c.id, kerr.ErrorForCode(resp.ErrorCode))
	}
}

func (m *consumerModel) answered(c *modelClient, resp *kmsg.ConsumerGroupHeartbeatResponse) {
	if resp.MemberEpoch < c.epoch {
		m.t.Fatalf("%s: epoch %d after %d", c.id, resp.MemberEpoch, c.epoch)
	}
	if resp.MemberEpoch > m.durable {
		m.t.Fatalf("%s was told epoch %d before it was written", c.id, resp.MemberEpoch)
	}
	c.epoch, c.unsure, c.acked = resp.MemberEpoch, false, true
	if resp.Assignment == nil {
		return
	}
	c.told = map[partitionID]bool{}
	for _, t := range resp.Assignment.Topics {
		name, _ := m.topics.ByID(t.TopicID)
		for _, p := range t.Partitions {
			id := partitionID{t.TopicID, p}
			if since, denied := m.denied[c.principal][name]; denied && !c.owned[id] && m.now.Sub(since) > consumerRefresh {
				m.t.Fatalf("%s was given %s/%d", c.id, name, p)
			}
			c.told[id] = true
		}
	}
}

// request sends one request and returns the response, or nil if that is lost.
func (m *consumerModel) request(c *modelClient, req *kmsg.ConsumerGroupHeartbeatRequest) *kmsg.ConsumerGroupHeartbeatResponse {
	who := Caller{ClientID: "client", Host: "10.0.0.1", Principal: c.principal, MayDescribe: func(topic string) bool { return m.may(c.principal, topic) }}
	resp := m.g.heartbeat(m.now, who, m.topics, req)
	if !m.save() || m.fault("lost", 8) {
		return nil
	}
	return resp
}

// save writes the changes, unless the journal fails.
func (m *consumerModel) save() bool {
	if m.fault("journal", 10) {
		return false
	}
	m.g.changes(func(part string, value []byte) {
		m.stored[part] = value
		if value == nil {
			delete(m.stored, part)
		}
	})
	m.g.saved()
	m.durable = m.g.epoch
	if len(m.stored) > 0 {
		now := map[string][]byte{}
		m.g.all(func(part string, value []byte) { now[part] = value })
		if _, has := m.stored[""]; !has && m.g.epoch == consumerFirstEpoch {
			delete(now, "") // it has not changed yet
		}
		if !maps.EqualFunc(now, m.stored, bytes.Equal) {
			m.t.Fatalf("the journal does not hold what the group is:\n%q, want\n%q", m.stored, now)
		}
	}
	return true
}

func (m *consumerModel) apply() {
	if c := m.client(); c != nil {
		m.applyTo(c)
	}
}

func (m *consumerModel) applyTo(c *modelClient) {
	if c.told != nil {
		c.owned, c.told, c.acked = c.told, nil, false
	}
}

func (m *consumerModel) resubscribe() {
	if c := m.client(); c != nil && c.epoch > 0 {
		m.subscribe(c)
		m.send(c)
	}
}

func (m *consumerModel) leave() {
	c := m.client()
	if c == nil {
		return
	}
	epoch := int32(-1)
	var edit []beatEdit
	if c.instance != "" {
		edit = append(edit, withInstance(c.instance))
		epoch = rapid.SampledFrom([]int32{-1, -2, -2}).Draw(m.t, "leave")
	}
	c.owned = nil
	m.request(c, consumerBeat(c.id, epoch, edit...))
	m.gone(c)
}

func (m *consumerModel) gone(c *modelClient) {
	m.clients = slices.DeleteFunc(m.clients, func(x *modelClient) bool { return x == c })
}

func (m *consumerModel) silence() {
	if c := m.client(); c != nil {
		c.silent, c.owned = true, nil
	}
}

func (m *consumerModel) restart() {
	g := newConsumerGroup("g", m.g.maxMembers)
	for part, value := range m.stored {
		if err := g.load(part, value); err != nil {
			m.t.Fatal(err)
		}
	}
	g.restored(m.now)
	g.changes(func(part string, _ []byte) { m.t.Fatalf("restoring has changed part %q", part) })
	m.g = g
}

func (m *consumerModel) tick() {
	m.now = m.now.Add(time.Duration(rapid.SampledFrom([]int{1, 5, 10, 25}).Draw(m.t, "s")) * time.Second)
	m.expire()
}

func (m *consumerModel) expire() {
	due := m.g.deadline()
	if m.g.expire(m.now) == (due.IsZero() || m.now.Before(due)) {
		m.t.Fatalf("expire at %v, deadline %v", m.now, due)
	}
	m.save()
}

func (m *consumerModel) changeTopics() {
	name := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(m.t, "topic")
	full, exists := m.topics.find(name)
	switch {
	case !exists:
		m.made++
		m.topics[fmt.Sprint(name, "#", m.made)] = int32(rapid.IntRange(1, 7).Draw(m.t, "partitions"))
	case rapid.Bool().Draw(m.t, "delete"):
		delete(m.topics, full)
	default:
		m.topics[full] += int32(rapid.IntRange(1, 3).Draw(m.t, "more partitions"))
	}
	m.g.topicsChanged()
}

func (m *consumerModel) changeRights() {
	principal := rapid.SampledFrom([]string{"User:ada", "User:eve"}).Draw(m.t, "principal")
	topic := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(m.t, "topic")
	if m.may(principal, topic) {
		m.denied[principal][topic] = m.now
	} else {
		delete(m.denied[principal], topic)
	}
}

func (m *consumerModel) check() {
	g := m.g
	if g.epoch < m.durable || g.assignmentEpoch > g.epoch {
		m.t.Fatalf("group epoch %d, assignment epoch %d, written %d", g.epoch, g.assignmentEpoch, m.durable)
	}
	consumers := map[partitionID]string{}
	for _, c := range m.clients {
		if g.members[c.id] == nil {
			continue // it is fenced, though the client may not know that yet
		}
		for p := range c.owned {
			if other := consumers[p]; other != "" {
				m.t.Fatalf("%s and %s consume %v", other, c.id, p)
			}
			consumers[p] = c.id
		}
	}
	if err := consumerInvariants(g); err != nil {
		m.t.Fatal(err)
	}
}

// consumerInvariants checks what must hold for a group between any two calls.
func consumerInvariants(g *consumerGroup) error {
	targets, held := map[partitionID]bool{}, 0
	for id, x := range g.members {
		if x.id != id || x.epoch > g.assignmentEpoch {
			return fmt.Errorf("member %q: ID %q, epoch %d, assignment epoch %d", id, x.id, x.epoch, g.assignmentEpoch)
		}
		if x.instance != "" && g.static[x.instance] != x {
			return fmt.Errorf("static member %s is not at %q", id, x.instance)
		}
		for _, p := range x.target {
			if targets[p] {
				return fmt.Errorf("%v is in two targets", p)
			}
			targets[p] = true
		}
		for _, partitions := range []map[partitionID]int32{x.assigned, x.revoking} {
			held += len(partitions)
			for p := range partitions {
				if g.holders[p] != x {
					return fmt.Errorf("%v is held by %v, not by %s", p, g.holders[p], id)
				}
			}
		}
	}
	if held != len(g.holders) {
		return fmt.Errorf("%d partitions are assigned, %d are held", held, len(g.holders))
	}
	return nil
}

// settle stops the faults and checks the outcome.
func (m *consumerModel) settle() {
	m.faults = false
	m.save()
	// In this time the sessions of dead clients expire, static members that waited for them join,
	// and partitions move.
	for range 40 {
		m.round()
	}
	if m.g.state() != "Stable" && m.g.state() != "Empty" {
		m.t.Fatalf("state = %q", m.g.state())
	}
	m.checkComplete()
	for range 3 {
		m.restart()
		epoch := m.g.epoch
		for range 3 {
			m.round()
		}
		if m.g.epoch != epoch {
			m.t.Fatal("a settled group rebalances")
		}
	}
}

func (m *consumerModel) round() {
	m.now = m.now.Add(5 * time.Second)
	m.expire()
	for _, c := range slices.Clone(m.clients) {
		if !c.silent {
			m.send(c)
			m.applyTo(c)
		}
		m.check()
	}
}

// checkComplete checks that the clients consume all partitions that they
// should, and no others.
func (m *consumerModel) checkComplete() {
	want := map[partitionID]bool{}
	got := map[partitionID]bool{}
	for id, x := range m.g.members {
		i := slices.IndexFunc(m.clients, func(c *modelClient) bool { return c.id == id && !c.silent })
		if i < 0 {
			m.t.Fatalf("member %s has no client", id)
		}
		c := m.clients[i]
		if c.epoch != m.g.epoch {
			m.t.Fatalf("%s is at epoch %d of %d", id, c.epoch, m.g.epoch)
		}
		for full, partitions := range m.topics {
			name := full[:1]
			subscribed := slices.Contains(x.names, name) || c.regex == ".*" || c.regex == "a|b" && name < "c"
			if subscribed = subscribed && m.may(c.principal, name); subscribed != x.subscribed(consumerTestID(full)) {
				m.t.Fatalf("%s, topic %s: subscribed = %v, want %v", id, name, !subscribed, subscribed)
			}
			for p := range partitions {
				if subscribed {
					want[partitionID{consumerTestID(full), p}] = true
				}
			}
		}
		for p := range c.owned {
			if !x.subscribed(p.topic) {
				name, _ := m.topics.ByID(p.topic)
				m.t.Fatalf("%s consumes %q", id, name)
			}
			got[p] = true
		}
	}
	if !maps.Equal(got, want) {
		m.t.Fatalf("%d partitions are consumed, want %d", len(got), len(want))
	}
	// A change of the assignor alone causes no rebalance, so the range assignor
	// may still have computed the last targets.
	if !m.ranged && len(m.g.members) > 0 {
		m.checkBalance()
	}
}

func (m *consumerModel) checkBalance() {
	members := m.g.sorted()
	for i, target := range assignUniform(members, m.g.topicCounts(m.topics)) {
		if !slices.Equal(target, members[i].target) {
			m.t.Fatalf("the target of %s is not up to date: %v, want %v", members[i].id, members[i].target, target)
		}
	}
	for _, a := range members {
		for _, b := range members {
			if slices.Equal(a.topics, b.topics) && len(a.assigned) > len(b.assigned)+1 {
				m.t.Fatalf("%s has %d partitions, %s has %d", a.id, len(a.assigned), b.id, len(b.assigned))
			}
		}
	}
}

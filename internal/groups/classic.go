package groups

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"maps"
	"slices"
	"time"
	"unicode/utf16"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// state is the state of a classic group. There is no state for a deleted group (Kafka's Dead),
// because it is no longer in the Coordinator.
type state byte

const (
	empty      state = iota // no members, or none that has been part of a generation
	preparing               // waiting for the members to join
	completing              // waiting for the leader's assignment
	stable                  // the generation is in force
)

func (s state) String() string {
	return [...]string{"Empty", "PreparingRebalance", "CompletingRebalance", "Stable"}[s]
}

// topicProtocol is the protocol type of groups that consume topics. Groups of other types, such as
// Kafka Connect's, distribute other things.
const topicProtocol = "consumer"

// classicGroup is the state of a group of the classic protocol. Its lock and timer are those of
// group.
type classicGroup struct {
	state        state
	since        time.Time // when state was entered, in whole ms
	generation   int32
	protocolType string // empty: no client has ever joined
	protocol     string // chosen for the generation; empty: none
	leader       string // member ID; empty: no members

	members  map[string]*member
	static   map[string]string    // instance ID to member ID
	pending  map[string]time.Time // IDs that were given out but not used to join yet, and when they expire
	unsynced map[string]struct{}  // members of the generation that have not sent SyncGroup
	awaiting int                  // members that wait for their JoinGroup response
	supports map[string]int       // number of members that support each protocol
	arrivals uint64               // number of members so far, to order them

	// topics are the topics that the members of a consumer group subscribe to. It is nil if they
	// are unknown, because a member's metadata cannot be parsed or there has been no generation
	// yet.
	topics map[string]struct{}

	joinBy time.Time // the joining phase ends at this time, complete or not; zero: no joining phase
	syncBy time.Time // members that have not sent SyncGroup by this time are removed
}

// member is a member of a classic group.
type member struct {
	id               string
	instance         *string // nil: a dynamic member
	clientID, host   string
	rebalanceTimeout time.Duration
	sessionTimeout   time.Duration
	protocols        []protocol // in order of preference
	assignment       []byte
	reserved         int64 // bytes taken from the Coordinator's budget

	arrival uint64
	isNew   bool      // it has not received its first JoinGroup response, so it has no session yet
	expires time.Time // end of the session; zero: the member waits for a response and needs no heartbeat
	join    waiter[*kmsg.JoinGroupResponse]
	sync    waiter[*kmsg.SyncGroupResponse]
}

type protocol struct {
	name     string
	metadata []byte
}

// waiter is the channel on which a request waits for its response. It has a buffer of one, so
// sending the response never blocks. A nil waiter means that no request is waiting.
type waiter[T any] chan T

// newClassicGroup returns a group without members. Its maps are created with the first member,
// because many groups only have offsets.
func newClassicGroup(now time.Time) *classicGroup {
	return &classicGroup{since: now.Truncate(time.Millisecond)}
}

func (g *classicGroup) setState(s state, now time.Time) {
	g.state, g.since = s, now.Truncate(time.Millisecond)
}

// add adds a member. The caller has checked that its protocols fit.
func (g *classicGroup) add(m *member) {
	if g.members == nil {
		g.members, g.static, g.supports = map[string]*member{}, map[string]string{}, map[string]int{}
	}
	if m.instance != nil {
		g.static[*m.instance] = m.id
	}
	if g.leader == "" {
		g.leader = m.id
	}
	g.arrivals++
	m.arrival = g.arrivals
	g.members[m.id] = m
	g.count(m, 1)
	if m.join != nil {
		g.awaiting++
	}
	delete(g.pending, m.id)
}

// remove removes a member, or a pending ID, from the group. If it was the leader, the oldest member
// becomes the leader.
func (g *classicGroup) remove(id string) {
	if m := g.members[id]; m != nil {
		delete(g.members, id)
		g.count(m, -1)
		if m.join != nil {
			g.awaiting--
		}
		if m.instance != nil && g.static[*m.instance] == id {
			delete(g.static, *m.instance)
		}
	}
	if g.leader == id {
		g.leader = ""
		if first := g.oldest(func(*member) bool { return true }); first != nil {
			g.leader = first.id
		}
	}
	delete(g.pending, id)
	delete(g.unsynced, id)
}

// count adds n to the number of supporters of each of m's protocols.
func (g *classicGroup) count(m *member, n int) {
	for i, p := range m.protocols {
		if slices.ContainsFunc(m.protocols[:i], func(q protocol) bool { return q.name == p.name }) {
			continue
		}
		if g.supports[p.name] += n; g.supports[p.name] == 0 {
			delete(g.supports, p.name)
		}
	}
}

func (g *classicGroup) oldest(ok func(*member) bool) *member {
	var first *member
	for _, m := range g.members {
		if ok(m) && (first == nil || m.arrival < first.arrival) {
			first = m
		}
	}
	return first
}

// ordered returns the members in the order in which they joined.
func (g *classicGroup) ordered() []*member {
	return slices.SortedFunc(maps.Values(g.members), func(a, b *member) int { return cmp.Compare(a.arrival, b.arrival) })
}

// isCompatible reports whether a member with these protocols can join the group: one of the
// protocols must be supported by all current members.
func (g *classicGroup) isCompatible(protocolType string, protocols []kmsg.JoinGroupRequestProtocol) bool {
	if g.state == empty {
		return protocolType != "" && len(protocols) > 0
	}
	return protocolType == g.protocolType && slices.ContainsFunc(protocols, func(p kmsg.JoinGroupRequestProtocol) bool {
		return g.supports[p.Name] == len(g.members)
	})
}

// hasCapacity reports whether the member can join without exceeding the maximum number of members.
func (g *classicGroup) hasCapacity(id string, most int) bool {
	m := g.members[id]
	switch g.state {
	case empty:
		return true
	case preparing:
		// Count only the members that have joined so far. Those that are late will be removed.
		return (m != nil && m.join != nil) || g.awaiting < most
	default:
		return m != nil || len(g.members) < most
	}
}

// check returns an error unless the ID belongs to a member and, if an instance ID is given, that
// member currently has it.
func (g *classicGroup) check(id string, instance *string) *kerr.Error {
	if instance != nil {
		switch current, ok := g.static[*instance]; {
		case !ok:
			return kerr.UnknownMemberID
		case current != id:
			return kerr.FencedInstanceID
		}
	}
	if g.members[id] == nil {
		return kerr.UnknownMemberID
	}
	return nil
}

func (g *classicGroup) complete() bool {
	return g.awaiting == len(g.members) && len(g.pending) == 0
}

// electJoined ensures that the leader is a member that has joined. It returns false if no member
// has joined.
func (g *classicGroup) electJoined() bool {
	if g.leader == "" {
		return false
	}
	if g.members[g.leader].join == nil {
		next := g.oldest(func(m *member) bool { return m.join != nil })
		if next == nil {
			return false
		}
		g.leader = next.id
	}
	return true
}

// rebalanceTimeout returns how long a rebalance may take: the longest timeout of any member.
func (g *classicGroup) rebalanceTimeout() time.Duration {
	var most time.Duration
	for _, m := range g.members {
		most = max(most, m.rebalanceTimeout)
	}
	return most
}

// next starts the next generation with the current members.
func (g *classicGroup) next(now time.Time) {
	g.generation++
	g.unsynced = nil
	g.syncBy = time.Time{}
	if len(g.members) == 0 {
		g.protocol = ""
		g.setState(empty, now)
	} else {
		g.protocol = g.choose()
		g.setState(completing, now)
	}
	g.subscribe()
}

// choose returns the protocol with the most votes. Each member votes for the first protocol in its
// list that all members support.
func (g *classicGroup) choose() string {
	votes := map[string]int{}
	var names []string
	for _, m := range g.ordered() {
		for _, p := range m.protocols {
			if g.supports[p.name] != len(g.members) {
				continue
			}
			if votes[p.name]++; votes[p.name] == 1 {
				names = append(names, p.name)
			}
			break
		}
	}
	if len(names) == 0 {
		return "" // cannot happen, because fits was checked for each member
	}
	sortAsJava(names)
	chosen := names[0]
	for _, name := range names[1:] {
		if votes[name] > votes[chosen] {
			chosen = name
		}
	}
	return chosen
}

// sortAsJava sorts the strings in the order in which Java's HashMap iterates over them, so that a
// tied vote has the same result as in Kafka.
func sortAsJava(s []string) {
	buckets := uint32(16)
	for uint32(len(s)) > buckets/4*3 {
		buckets *= 2
	}
	bucket := func(s string) uint32 {
		var h uint32
		for _, c := range utf16.Encode([]rune(s)) {
			h = 31*h + uint32(c)
		}
		return (h ^ h>>16) & (buckets - 1)
	}
	slices.SortStableFunc(s, func(a, b string) int { return cmp.Compare(bucket(a), bucket(b)) })
}

// subscribe determines the topics that the members subscribe to.
func (g *classicGroup) subscribe() {
	g.topics = nil
	if g.protocolType != topicProtocol || (len(g.members) > 0 && g.protocol == "") {
		return
	}
	topics := map[string]struct{}{}
	for _, m := range g.members {
		if !addSubscription(topics, m.metadata(g.protocol)) {
			return
		}
	}
	g.topics = topics
}

// addSubscription adds the topics in a consumer's metadata. It parses version 0 only, because all
// later versions begin with the same fields.
func addSubscription(topics map[string]struct{}, metadata []byte) bool {
	if len(metadata) < 6 || int16(binary.BigEndian.Uint16(metadata)) < 0 {
		return false
	}
	n := int32(binary.BigEndian.Uint32(metadata[2:]))
	b := metadata[6:]
	for ; n > 0; n-- {
		if len(b) < 2 {
			return false
		}
		size := int(int16(binary.BigEndian.Uint16(b)))
		if size < 0 || len(b)-2 < size {
			return false
		}
		topics[string(b[2:2+size])] = struct{}{}
		b = b[2+size:]
	}
	if n < 0 || len(b) < 4 {
		return false
	}
	userData := int32(binary.BigEndian.Uint32(b))
	return userData <= int32(len(b)-4)
}

// subscribed reports whether a member may need the topic's offsets. If the subscriptions of
// consumers are unknown, they may need all topics.
func (g *classicGroup) subscribed(topic string) bool {
	if g.topics == nil {
		return g.protocolType == topicProtocol
	}
	_, ok := g.topics[topic]
	return ok
}

// offsetsExpire returns how offsets expire. If from is not zero, the retention of all offsets
// starts at from. If from is zero, it starts at each offset's commit. If ok is false, no offset
// expires.
func (g *classicGroup) offsetsExpire() (from time.Time, ok bool) {
	switch {
	case g.protocolType == "":
		return time.Time{}, true
	case g.state == empty:
		return g.since, true
	default:
		return time.Time{}, g.protocolType == topicProtocol && g.topics != nil && g.state == stable
	}
}

// metadata returns the member's metadata for a protocol.
func (m *member) metadata(name string) []byte {
	for _, p := range m.protocols {
		if p.name == name {
			return p.metadata
		}
	}
	return nil
}

// hasProtocols reports whether the request has the same protocols and metadata as the member.
func (m *member) hasProtocols(protocols []kmsg.JoinGroupRequestProtocol) bool {
	return slices.EqualFunc(m.protocols, protocols, func(p protocol, q kmsg.JoinGroupRequestProtocol) bool {
		return p.name == q.Name && bytes.Equal(p.metadata, q.Metadata)
	})
}

// awaitsResponse reports whether the member needs no heartbeat now, because it is waiting for a
// response. A new member is not exempt: its client may have disconnected and joined again under
// another ID, and the old member must not wait forever.
func (m *member) awaitsResponse() bool {
	return !m.isNew && (m.join != nil || m.sync != nil)
}

// answerJoin answers the member's JoinGroup request, if one is waiting.
func (g *classicGroup) answerJoin(m *member, resp *kmsg.JoinGroupResponse) {
	if m.join != nil {
		m.join <- resp
		m.join = nil
		g.awaiting--
	}
}

// answerSync answers the member's SyncGroup request, and reports whether one was waiting.
func (m *member) answerSync(resp *kmsg.SyncGroupResponse) bool {
	if m.sync == nil {
		return false
	}
	m.sync <- resp
	m.sync = nil
	return true
}

package groups

import (
	"bytes"
	"context"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// JoinGroup makes the caller a member of a classic group, or confirms that it is one. It blocks
// until the rebalance that it starts, or that is in progress, is complete. If ctx ends first, the
// client remains a member: it may reconnect and join again with the same member ID.
func (c *Coordinator) JoinGroup(ctx context.Context, who Caller, req *kmsg.JoinGroupRequest) *kmsg.JoinGroupResponse {
	wait := make(waiter[*kmsg.JoinGroupResponse], 1)
	c.join(who, req, wait)
	resp := wait.answer(ctx)
	if resp == nil {
		resp = joinError(req.MemberID, kerr.CoordinatorNotAvailable)
	}
	resp.Version = req.Version
	return resp
}

// answer waits for the response. It returns nil if ctx ends first.
func (w waiter[T]) answer(ctx context.Context) (resp T) {
	select {
	case resp = <-w:
	case <-ctx.Done():
	}
	return resp
}

func joinError(id string, err *kerr.Error) *kmsg.JoinGroupResponse {
	resp := kmsg.NewPtrJoinGroupResponse()
	resp.ErrorCode = err.Code
	resp.Generation = -1
	resp.MemberID = id
	return resp
}

// joined returns the JoinGroup response for a member of the current generation.
func (g *classicGroup) joined(m *member) *kmsg.JoinGroupResponse {
	resp := kmsg.NewPtrJoinGroupResponse()
	resp.Generation = g.generation
	resp.ProtocolType = nullable(g.protocolType)
	resp.Protocol = nullable(g.protocol)
	resp.LeaderID = g.leader
	resp.MemberID = m.id
	if g.leader == m.id {
		for _, m := range g.ordered() {
			rm := kmsg.NewJoinGroupResponseMember()
			rm.MemberID, rm.InstanceID, rm.ProtocolMetadata = m.id, m.instance, m.metadata(g.protocol)
			resp.Members = append(resp.Members, rm)
		}
	}
	return resp
}

// nullable returns nil for the empty string.
func nullable(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// join handles a JoinGroup request. The response is sent to wait, now or later.
func (c *Coordinator) join(who Caller, req *kmsg.JoinGroupRequest, wait waiter[*kmsg.JoinGroupResponse]) {
	session := time.Duration(req.SessionTimeoutMillis) * time.Millisecond
	switch {
	case req.Group == "":
		wait <- joinError(req.MemberID, kerr.InvalidGroupID)
		return
	case session < minSession || session > maxSession:
		wait <- joinError(req.MemberID, kerr.InvalidSessionTimeout)
		return
	case joinRequestBytes(who, req) > int64(c.cfg.MaxMemberBytes):
		wait <- joinError(req.MemberID, kerr.InvalidRequest)
		return
	case !c.enter():
		wait <- joinError(req.MemberID, kerr.CoordinatorNotAvailable)
		return
	}
	defer c.closeMu.RUnlock()
	g, err := c.classicGroup(req)
	if err != nil {
		wait <- err
		return
	}
	defer g.mu.Unlock()
	j := joinRequest{g: g, who: who, req: req, wait: wait, now: time.Now()}
	switch {
	case !g.classic.hasCapacity(req.MemberID, c.cfg.MaxMembers):
		g.remove(req.MemberID)
		j.refuse("", kerr.GroupMaxSizeReached)
	case req.MemberID == "":
		j.joinNew()
	default:
		j.rejoin()
	}
}

// classicGroup returns the group of a request, with its mutex locked. If the client has no member
// ID yet and the group does not exist, it creates the group.
func (c *Coordinator) classicGroup(req *kmsg.JoinGroupRequest) (*group, *kmsg.JoinGroupResponse) {
	if req.MemberID != "" {
		g := c.find(req.Group)
		switch {
		case g == nil:
			return nil, joinError(req.MemberID, kerr.UnknownMemberID)
		case g.consumer == nil:
			return g, nil
		}
		defer g.mu.Unlock()
		if g.consumer.empty() {
			return nil, joinError(req.MemberID, kerr.UnknownMemberID)
		}
		return nil, joinError("", kerr.InconsistentGroupProtocol)
	}
	g, created := c.findOrCreate(req.Group)
	switch {
	case g == nil:
		return nil, joinError("", kerr.GroupMaxSizeReached)
	case created:
		if err := g.writeClassic(nil); err != nil {
			g.drop()
			g.mu.Unlock()
			return nil, joinError("", storeError(err))
		}
	case g.consumer != nil && !g.consumer.empty():
		g.mu.Unlock()
		return nil, joinError("", kerr.InconsistentGroupProtocol)
	case g.consumer != nil:
		// The group changes its protocol. Its committed offsets are kept.
		next := &group{id: g.id, c: c, classic: newClassicGroup(time.Now())}
		if err := next.writeClassic(nil, g.deletionEntries()...); err != nil {
			g.mu.Unlock()
			return nil, joinError("", storeError(err))
		}
		g.release()
		g.classic, g.written = next.classic, true
	}
	return g, nil
}

// joinRequest is a JoinGroup request in progress. The group's mutex is locked.
type joinRequest struct {
	g    *group
	who  Caller
	req  *kmsg.JoinGroupRequest
	wait waiter[*kmsg.JoinGroupResponse]
	now  time.Time
}

func (j *joinRequest) refuse(id string, err *kerr.Error) { j.wait <- joinError(id, err) }

// joinNew handles the request of a client without a member ID.
func (j *joinRequest) joinNew() {
	cg := j.g.classic
	if !cg.isCompatible(j.req.ProtocolType, j.req.Protocols) {
		j.refuse("", kerr.InconsistentGroupProtocol)
		return
	}
	if instance := j.req.InstanceID; instance != nil {
		id := newMemberID(*instance)
		if before, ok := cg.static[*instance]; ok {
			j.rejoinStatic(cg.members[before], id)
		} else {
			j.add(id)
		}
		return
	}
	id := newMemberID(j.who.ClientID)
	if j.req.Version < 4 {
		j.add(id)
		return
	}
	// The client has to join again with this ID (KIP-394). Until then it is not a member. So a
	// client that disconnects before it receives the ID leaves no member behind.
	if len(cg.pending) >= j.g.c.cfg.MaxMembers {
		j.refuse("", kerr.GroupMaxSizeReached)
		return
	}
	if cg.pending == nil {
		cg.pending = map[string]time.Time{}
	}
	until := j.now.Add(time.Duration(j.req.SessionTimeoutMillis) * time.Millisecond)
	cg.pending[id] = until
	j.g.scheduleTick(until)
	j.refuse(id, kerr.MemberIDRequired)
}

// newMemberID returns a random ID with a recognizable prefix.
func newMemberID(name string) string {
	const most = 256
	if len(name) > most {
		name = strings.ToValidUTF8(name[:most], "")
	}
	return name + "-" + uuid.NewString()
}

// rejoin handles the request of a client with a member ID.
func (j *joinRequest) rejoin() {
	cg, id := j.g.classic, j.req.MemberID
	if !cg.isCompatible(j.req.ProtocolType, j.req.Protocols) {
		j.refuse(id, kerr.InconsistentGroupProtocol)
		return
	}
	if _, ok := cg.pending[id]; ok {
		if j.req.InstanceID != nil {
			j.refuse("", kerr.UnknownServerError) // as in Kafka: static members are never pending
			return
		}
		j.add(id)
		return
	}
	if err := cg.check(id, j.req.InstanceID); err != nil {
		j.refuse(id, err)
		return
	}
	m := cg.members[id]
	switch {
	case cg.state == empty:
		j.refuse(id, kerr.UnknownMemberID)
	case cg.state == completing && m.hasProtocols(j.req.Protocols):
		// The client may have missed the response, so it is sent again.
		j.wait <- cg.joined(m)
	case cg.state == stable && cg.leader != id && m.hasProtocols(j.req.Protocols):
		j.wait <- cg.joined(m)
	default:
		// Something has changed. The leader of a stable group joins again to get a new assignment,
		// for example because a topic has more partitions.
		if !j.update(m) {
			j.refuse(id, kerr.GroupMaxSizeReached)
			return
		}
		j.g.rebalance(j.now)
	}
}

// add makes the client a member.
func (j *joinRequest) add(id string) {
	g, cg := j.g, j.g.classic
	m := &member{id: id, instance: j.req.InstanceID, clientID: j.who.ClientID, host: j.who.host(), isNew: true}
	if !j.describe(m) {
		j.refuse("", kerr.GroupMaxSizeReached)
		return
	}
	m.join = j.wait
	if len(cg.members) == 0 {
		cg.protocolType = j.req.ProtocolType
	}
	cg.add(m)
	g.extendSession(m, j.now.Add(newMemberTimeout))
	g.rebalance(j.now)
}

// describe copies the member's data from the request into m. It returns false if the memory budget
// is exhausted.
func (j *joinRequest) describe(m *member) bool {
	next := *m
	next.sessionTimeout = time.Duration(j.req.SessionTimeoutMillis) * time.Millisecond
	next.rebalanceTimeout = time.Duration(j.req.RebalanceTimeoutMillis) * time.Millisecond
	if j.req.Version == 0 {
		next.rebalanceTimeout = next.sessionTimeout
	}
	next.protocols = make([]protocol, len(j.req.Protocols))
	for i, p := range j.req.Protocols {
		next.protocols[i] = protocol{p.Name, bytes.Clone(p.Metadata)} // the metadata is part of the request's buffer
	}
	next.reserved = next.bytes()
	if !j.g.c.reserve(next.reserved - m.reserved) {
		return false
	}
	*m = next
	return true
}

// update replaces the data of an existing member, which then waits for the end of the rebalance. It
// returns false if the memory budget is exhausted.
func (j *joinRequest) update(m *member) bool {
	cg := j.g.classic
	before := *m
	if !j.describe(m) {
		return false
	}
	cg.count(&before, -1)
	cg.count(m, 1)
	cg.answerJoin(m, joinError(m.id, kerr.RebalanceInProgress)) // answer an earlier request, whose connection is gone
	m.join = j.wait
	cg.awaiting++
	return true
}

// rejoinStatic handles a static member whose client has restarted and lost its member ID. The
// member gets the new ID. Requests with the former ID are fenced from now on.
func (j *joinRequest) rejoinStatic(m *member, id string) {
	g, cg := j.g, j.g.classic
	leader, before := cg.leader, *m
	cg.answerJoin(m, joinError(m.id, kerr.FencedInstanceID))
	m.answerSync(syncError(kerr.FencedInstanceID))
	cg.rename(m, id)
	m.isNew = false
	if !j.update(m) {
		cg.rename(m, before.id)
		j.refuse("", kerr.GroupMaxSizeReached)
		return
	}
	g.extendSession(m, j.now.Add(m.sessionTimeout))
	switch {
	case cg.state == completing:
		// The leader may have computed an assignment for the former member ID.
		g.prepare(j.now)
		return
	case cg.state != stable || cg.choose() != cg.protocol:
		g.rebalance(j.now)
		return
	}
	// The assignment is still correct, so no rebalance is necessary.
	m.join = nil
	cg.awaiting--
	if err := g.writeClassic(nil); err != nil {
		cg.count(m, -1)
		g.c.reserve(before.reserved - m.reserved)
		m.protocols, m.reserved = before.protocols, before.reserved
		m.rebalanceTimeout, m.sessionTimeout = before.rebalanceTimeout, before.sessionTimeout
		cg.count(m, 1)
		cg.rename(m, before.id)
		resp := cg.joined(m)
		resp.ErrorCode, resp.MemberID, resp.LeaderID, resp.Members = storeError(err).Code, "", leader, nil
		j.wait <- resp
		return
	}
	resp := cg.joined(m)
	if j.req.Version >= 9 {
		resp.SkipAssignment = cg.leader == m.id
	} else {
		// An older client would compute an assignment if it knew that it is the leader, although no
		// member has joined. So it gets the former leader's ID.
		resp.LeaderID, resp.Members = leader, nil
	}
	j.wait <- resp
}

// rename gives a static member another ID.
func (g *classicGroup) rename(m *member, id string) {
	delete(g.members, m.id)
	if g.leader == m.id {
		g.leader = id
	}
	if _, ok := g.unsynced[m.id]; ok {
		delete(g.unsynced, m.id)
		g.unsynced[id] = struct{}{}
	}
	m.id = id
	g.members[id] = m
	g.static[*m.instance] = id
}

// bytes returns the approximate memory of the member.
func (m *member) bytes() int64 {
	n := 512 + len(m.id) + len(m.clientID) + len(m.host) + len(m.assignment)
	for _, p := range m.protocols {
		n += 64 + len(p.name) + len(p.metadata)
	}
	return int64(n)
}

func joinRequestBytes(who Caller, req *kmsg.JoinGroupRequest) int64 {
	n := len(who.ClientID) + len(req.ProtocolType)
	if req.InstanceID != nil {
		n += len(*req.InstanceID)
	}
	for _, p := range req.Protocols {
		n += 64 + len(p.Name) + len(p.Metadata)
	}
	return int64(n)
}

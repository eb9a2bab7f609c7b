package groups

import (
	"bytes"
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// SyncGroup gives a member of a classic group its assignment. The leader's request contains the
// assignments of all members. The requests of the others block until it has arrived.
func (c *Coordinator) SyncGroup(ctx context.Context, req *kmsg.SyncGroupRequest) *kmsg.SyncGroupResponse {
	wait := make(waiter[*kmsg.SyncGroupResponse], 1)
	if err := c.sync(req, wait); err != nil {
		wait <- syncError(err)
	}
	resp := wait.answer(ctx)
	if resp == nil {
		resp = syncError(kerr.CoordinatorNotAvailable)
	}
	resp.Version = req.Version
	return resp
}

func syncError(err *kerr.Error) *kmsg.SyncGroupResponse {
	resp := kmsg.NewPtrSyncGroupResponse()
	resp.ErrorCode = codeOf(err)
	return resp
}

// synced returns the SyncGroup response for a member of a stable group.
func (g *classicGroup) synced(m *member) *kmsg.SyncGroupResponse {
	resp := kmsg.NewPtrSyncGroupResponse()
	resp.ProtocolType, resp.Protocol = nullable(g.protocolType), nullable(g.protocol)
	resp.MemberAssignment = m.assignment
	return resp
}

// sync handles a SyncGroup request. It either returns an error for the response, or the response is
// sent to wait, now or later.
func (c *Coordinator) sync(req *kmsg.SyncGroupRequest, wait waiter[*kmsg.SyncGroupResponse]) *kerr.Error {
	if req.Version >= 5 && (req.ProtocolType == nil || req.Protocol == nil) {
		return kerr.InconsistentGroupProtocol
	}
	g, m, err := c.lockMember(req.Group, req.MemberID, req.InstanceID)
	if err != nil {
		return err
	}
	defer c.closeMu.RUnlock()
	defer g.mu.Unlock()
	cg := g.classic
	differs := func(said *string, is string) bool { return said != nil && is != "" && *said != is }
	switch {
	case req.Generation != cg.generation:
		return kerr.IllegalGeneration
	case differs(req.ProtocolType, cg.protocolType) || differs(req.Protocol, cg.protocol):
		return kerr.InconsistentGroupProtocol
	case cg.state == preparing:
		return kerr.RebalanceInProgress
	}
	delete(cg.unsynced, m.id)
	if len(cg.unsynced) == 0 {
		cg.syncBy = time.Time{}
	}
	if cg.state == stable {
		wait <- cg.synced(m)
		return nil
	}
	m.answerSync(syncError(kerr.RebalanceInProgress)) // answer an earlier request, whose connection is gone
	m.sync = wait
	if cg.leader == m.id {
		g.assign(req, time.Now())
	}
	return nil
}

// assign stores the leader's assignments and makes the generation stable.
func (g *group) assign(req *kmsg.SyncGroupRequest, now time.Time) {
	assignments := make(map[string][]byte, len(req.GroupAssignment))
	var size int64
	for _, a := range req.GroupAssignment {
		if g.classic.members[a.MemberID] != nil {
			assignments[a.MemberID] = bytes.Clone(a.MemberAssignment)
			size += int64(len(a.MemberAssignment))
		}
	}
	err := errTooLarge
	if g.c.reserve(size) {
		err = g.writeClassic(assignments)
		g.c.reserve(-size) // from here on they are counted with the members
	}
	if err != nil {
		g.distribute(nil, storeError(err), now)
		g.prepare(now)
		return
	}
	g.distribute(assignments, nil, now)
	g.classic.setState(stable, now)
}

// lockMember returns a member of a classic group, and the group with its mutex locked. If there is
// no error, the caller must unlock both the group's mutex and c.closeMu.
func (c *Coordinator) lockMember(groupID, memberID string, instance *string) (*group, *member, *kerr.Error) {
	if groupID == "" {
		return nil, nil, kerr.InvalidGroupID
	}
	if !c.enter() {
		return nil, nil, kerr.CoordinatorNotAvailable
	}
	err := kerr.UnknownMemberID
	if g := c.find(groupID); g != nil {
		if g.classic != nil {
			if err = g.classic.check(memberID, instance); err == nil {
				return g, g.classic.members[memberID], nil
			}
		}
		g.mu.Unlock()
	}
	c.closeMu.RUnlock()
	return nil, nil, err
}

// Heartbeat extends the session of a member of a classic group, and tells the member whether it has
// to join again.
func (c *Coordinator) Heartbeat(req *kmsg.HeartbeatRequest) *kmsg.HeartbeatResponse {
	resp := kmsg.NewPtrHeartbeatResponse()
	resp.Version, resp.ErrorCode = req.Version, codeOf(c.heartbeat(req))
	return resp
}

func (c *Coordinator) heartbeat(req *kmsg.HeartbeatRequest) *kerr.Error {
	g, m, err := c.lockMember(req.Group, req.MemberID, req.InstanceID)
	if err != nil {
		return err
	}
	defer c.closeMu.RUnlock()
	defer g.mu.Unlock()
	if req.Generation != g.classic.generation {
		return kerr.IllegalGeneration
	}
	g.extendSession(m, time.Now().Add(m.sessionTimeout))
	if g.classic.state == preparing {
		return kerr.RebalanceInProgress
	}
	return nil
}

// LeaveGroup removes members from a group. With an instance ID and no member ID, it removes the
// static member with that instance ID, whatever its member ID.
func (c *Coordinator) LeaveGroup(req *kmsg.LeaveGroupRequest) *kmsg.LeaveGroupResponse {
	resp := kmsg.NewPtrLeaveGroupResponse()
	resp.Version = req.Version
	leaving := req.Members
	if req.Version < 3 {
		m := kmsg.NewLeaveGroupRequestMember()
		m.MemberID = req.MemberID
		leaving = []kmsg.LeaveGroupRequestMember{m}
	}
	for _, m := range leaving {
		rm := kmsg.NewLeaveGroupResponseMember()
		rm.MemberID, rm.InstanceID = m.MemberID, m.InstanceID
		resp.Members = append(resp.Members, rm)
	}
	switch err := c.leave(req.Group, resp.Members); {
	case err != nil:
		resp.ErrorCode, resp.Members = err.Code, nil
	case req.Version < 3:
		resp.ErrorCode, resp.Members = resp.Members[0].ErrorCode, nil
	}
	return resp
}

// leave removes the members. For each member that cannot be removed, it sets the error code.
func (c *Coordinator) leave(id string, leaving []kmsg.LeaveGroupResponseMember) *kerr.Error {
	if id == "" {
		return kerr.InvalidGroupID
	}
	if !c.enter() {
		return kerr.CoordinatorNotAvailable
	}
	defer c.closeMu.RUnlock()
	g := c.find(id)
	if g == nil {
		for i := range leaving {
			leaving[i].ErrorCode = kerr.UnknownMemberID.Code
		}
		return nil
	}
	defer g.mu.Unlock()
	if g.consumer != nil {
		return g.leaveConsumer(leaving)
	}
	gone := false
	for i := range leaving {
		if err := g.leaveClassic(leaving[i].MemberID, leaving[i].InstanceID); err != nil {
			leaving[i].ErrorCode = err.Code
		} else {
			gone = true
		}
	}
	if gone && g.classic.state != empty {
		g.rebalance(time.Now())
	}
	return nil
}

func (g *group) leaveClassic(id string, instance *string) *kerr.Error {
	cg := g.classic
	_, pending := cg.pending[id]
	switch {
	case id == "" && instance == nil:
		return kerr.UnknownMemberID
	case id == "":
		current, ok := cg.static[*instance]
		if !ok {
			return kerr.UnknownMemberID
		}
		id = current
	case pending:
	default:
		if err := cg.check(id, instance); err != nil {
			return err
		}
	}
	g.remove(id)
	return nil
}

package groups

import (
	"bytes"
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// SyncGroup gives a member of a classic group its assignment. The leader's
// request brings the assignments of all; the others' block until it has come.
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
	if err != nil {
		resp.ErrorCode = err.Code
	}
	return resp
}

// synced is a member's assignment in a stable group.
func (g *classicGroup) synced(m *member) *kmsg.SyncGroupResponse {
	resp := kmsg.NewPtrSyncGroupResponse()
	resp.ProtocolType, resp.Protocol = nonEmpty(g.protocolType), nonEmpty(g.protocol)
	resp.MemberAssignment = m.assignment
	return resp
}

// sync handles a SyncGroup up to the point where it is answered through wait,
// now or later. The error is an answer too.
func (c *Coordinator) sync(req *kmsg.SyncGroupRequest, wait waiter[*kmsg.SyncGroupResponse]) *kerr.Error {
	if req.Version >= 5 && (req.ProtocolType == nil || req.Protocol == nil) {
		return kerr.InconsistentGroupProtocol
	}
	g, err := c.groupOfMembers(req.Group)
	if err != nil {
		return err
	}
	defer c.life.RUnlock()
	defer g.mu.Unlock()
	cg := g.classic
	if err := cg.check(req.MemberID, req.InstanceID); err != nil {
		return err
	}
	differs := func(said *string, is string) bool { return said != nil && is != "" && *said != is }
	switch {
	case req.Generation != cg.generation:
		return kerr.IllegalGeneration
	case differs(req.ProtocolType, cg.protocolType) || differs(req.Protocol, cg.protocol):
		return kerr.InconsistentGroupProtocol
	case cg.state == preparing:
		return kerr.RebalanceInProgress
	}
	m := cg.members[req.MemberID]
	delete(cg.unsynced, m.id)
	if len(cg.unsynced) == 0 {
		cg.syncBy = time.Time{}
	}
	if cg.state == stable {
		wait <- cg.synced(m)
		return nil
	}
	m.answerSync(syncError(kerr.RebalanceInProgress)) // of a connection that is gone
	m.sync = wait
	if cg.leader == m.id {
		g.assign(req, time.Now())
	}
	return nil
}

// assign puts the generation in force with the leader's assignments.
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
		g.c.reserve(-size) // from here on they count as the members'
	}
	if err != nil {
		g.share(nil, storeError(err), now)
		g.prepare(now)
		return
	}
	g.share(assignments, nil, now)
	g.classic.enter(stable, now)
}

// groupOfMembers returns a classic group, with its mutex locked, for a request
// of a member. Unless there is an error, the caller has to unlock c.life as well.
func (c *Coordinator) groupOfMembers(id string) (*group, *kerr.Error) {
	if id == "" {
		return nil, kerr.InvalidGroupID
	}
	if !c.enter() {
		return nil, kerr.CoordinatorNotAvailable
	}
	g := c.find(id)
	if g != nil && g.classic != nil {
		return g, nil
	}
	if g != nil {
		g.mu.Unlock()
	}
	c.life.RUnlock()
	return nil, kerr.UnknownMemberID
}

// Heartbeat keeps the session of a member of a classic group alive and tells it
// whether it has to join again.
func (c *Coordinator) Heartbeat(req *kmsg.HeartbeatRequest) *kmsg.HeartbeatResponse {
	resp := kmsg.NewPtrHeartbeatResponse()
	resp.Version = req.Version
	if err := c.heartbeat(req); err != nil {
		resp.ErrorCode = err.Code
	}
	return resp
}

func (c *Coordinator) heartbeat(req *kmsg.HeartbeatRequest) *kerr.Error {
	g, err := c.groupOfMembers(req.Group)
	if err != nil {
		return err
	}
	defer c.life.RUnlock()
	defer g.mu.Unlock()
	cg := g.classic
	if err := cg.check(req.MemberID, req.InstanceID); err != nil {
		return err
	}
	if req.Generation != cg.generation {
		return kerr.IllegalGeneration
	}
	m := cg.members[req.MemberID]
	g.extend(m, time.Now().Add(m.sessionTimeout))
	if cg.state == preparing {
		return kerr.RebalanceInProgress
	}
	return nil
}

// LeaveGroup removes members from a group. An instance ID without a member ID
// removes a static member whoever asks.
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

// leave removes the members, and sets the error codes of those that it cannot remove.
func (c *Coordinator) leave(id string, leaving []kmsg.LeaveGroupResponseMember) *kerr.Error {
	if id == "" {
		return kerr.InvalidGroupID
	}
	if !c.enter() {
		return kerr.CoordinatorNotAvailable
	}
	defer c.life.RUnlock()
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

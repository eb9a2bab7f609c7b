package groups

import (
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
)

// extendSession sets the time at which the member's session expires.
func (g *group) extendSession(m *member, until time.Time) {
	m.expires = until
	g.scheduleTick(until)
}

// rebalance starts a rebalance. If one is in progress and all members have joined, it completes it.
func (g *group) rebalance(now time.Time) {
	cg := g.classic
	switch {
	case cg.state != preparing:
		g.prepare(now)
	case cg.complete():
		g.completeJoin(now)
	}
}

// prepare starts a rebalance: all members have to join again.
func (g *group) prepare(now time.Time) {
	cg := g.classic
	if cg.state == completing {
		g.distribute(nil, kerr.RebalanceInProgress, now)
	}
	cg.unsynced, cg.syncBy = nil, time.Time{}
	first := cg.state == empty
	cg.setState(preparing, now)
	if first || cg.complete() || len(cg.members) == 0 {
		g.completeJoin(now)
	} else {
		g.joinBy(now.Add(cg.rebalanceTimeout()))
	}
}

func (g *group) joinBy(at time.Time) {
	g.classic.joinBy = at
	g.scheduleTick(at)
}

// completeJoin ends the joining phase of a rebalance. It removes dynamic members that have not
// joined, and answers those that have.
func (g *group) completeJoin(now time.Time) {
	cg := g.classic
	cg.joinBy = time.Time{}
	for _, m := range cg.ordered() {
		if m.join == nil && m.instance == nil {
			g.remove(m.id)
		}
	}
	if len(cg.members) > 0 && !cg.electJoined() {
		// Only static members are left, and none of them has joined. Try again later, until their
		// sessions expire. No client is waiting, so a minimum delay does no harm.
		g.joinBy(now.Add(max(cg.rebalanceTimeout(), time.Second)))
		return
	}
	cg.next(now)
	if cg.state == empty {
		// If this write fails, a restart restores the previous generation. Its members no longer
		// exist, and their sessions expire.
		_ = g.writeClassic(nil)
		return
	}
	cg.unsynced = make(map[string]struct{}, len(cg.members))
	for _, m := range cg.ordered() {
		cg.answerJoin(m, cg.joined(m))
		m.isNew = false
		g.extendSession(m, now.Add(m.sessionTimeout))
		cg.unsynced[m.id] = struct{}{}
	}
	cg.syncBy = now.Add(cg.rebalanceTimeout())
	g.scheduleTick(cg.syncBy)
}

// distribute gives the members their assignments, some of which may be missing. If err is not nil,
// it answers the waiting SyncGroup requests with that error.
func (g *group) distribute(assignments map[string][]byte, err *kerr.Error, now time.Time) {
	for _, m := range g.classic.members {
		held := m.reserved
		m.assignment = assignments[m.id]
		m.reserved = m.bytes()
		g.c.reserved.Add(m.reserved - held)
		resp := syncError(err)
		if err == nil {
			resp = g.classic.synced(m)
		}
		if m.answerSync(resp) {
			g.extendSession(m, now.Add(m.sessionTimeout)) // the member sent no heartbeats while it waited
		}
	}
}

// remove removes a member, or a pending ID, from the group. It answers the member's waiting
// requests.
func (g *group) remove(id string) {
	if m := g.classic.members[id]; m != nil {
		g.classic.answerJoin(m, joinError("", kerr.UnknownMemberID))
		m.answerSync(syncError(kerr.UnknownMemberID))
		g.c.reserve(-m.reserved)
	}
	g.classic.remove(id)
}

// tickClassic handles the deadlines of a classic group that have passed.
func (g *group) tickClassic(now time.Time) {
	cg := g.classic
	due := func(at time.Time) bool { return !at.IsZero() && !at.After(now) }

	for id, until := range cg.pending {
		if due(until) {
			g.remove(id)
			if cg.state == preparing && cg.complete() {
				g.completeJoin(now)
			}
		}
	}
	for _, m := range cg.ordered() {
		switch {
		case cg.members[m.id] != m || !due(m.expires):
		case m.awaitsResponse():
			m.expires = time.Time{}
		default:
			g.remove(m.id)
			g.c.cfg.Diagnostics.Debug("member session expired", "group", g.id, "member", m.id)
			if cg.state == preparing && cg.complete() {
				g.completeJoin(now)
			} else if cg.state != preparing {
				g.rebalance(now)
			}
		}
	}
	if due(cg.joinBy) {
		g.completeJoin(now)
	}
	if due(cg.syncBy) {
		cg.syncBy = time.Time{}
		if len(cg.unsynced) > 0 {
			for id := range cg.unsynced {
				g.remove(id)
			}
			g.prepare(now)
		}
	}

	g.scheduleTick(cg.joinBy)
	g.scheduleTick(cg.syncBy)
	for _, until := range cg.pending {
		g.scheduleTick(until)
	}
	for _, m := range cg.members {
		g.scheduleTick(m.expires)
	}
}

package groups

import (
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// state returns the name of the group's state in the protocol.
func (g *group) state() string {
	if g.consumer != nil {
		return g.consumer.state()
	}
	return g.classic.state.String()
}

// empty reports whether the group has no members.
func (g *group) empty() bool { return g.state() == empty.String() }

// DescribeGroups describes classic groups.
func (c *Coordinator) DescribeGroups(req *kmsg.DescribeGroupsRequest) *kmsg.DescribeGroupsResponse {
	resp := req.ResponseKind().(*kmsg.DescribeGroupsResponse)
	for _, id := range req.Groups {
		resp.Groups = append(resp.Groups, c.describe(id, req.Version))
	}
	return resp
}

func (c *Coordinator) describe(id string, version int16) kmsg.DescribeGroupsResponseGroup {
	described := kmsg.NewDescribeGroupsResponseGroup()
	described.Group = id
	if !c.enter() {
		described.ErrorCode = kerr.CoordinatorNotAvailable.Code
		return described
	}
	defer c.closeMu.RUnlock()
	g := c.find(id)
	if g != nil {
		defer g.mu.Unlock()
	}
	if g == nil || g.classic == nil {
		described.State = "Dead"
		if version >= 6 {
			described.ErrorCode = kerr.GroupIDNotFound.Code
			message := "Group " + id + " not found."
			if g != nil {
				message = "Group " + id + " is not a classic group."
			}
			described.ErrorMessage = &message
		}
		return described
	}
	cg := g.classic
	described.State, described.ProtocolType = cg.state.String(), cg.protocolType
	if cg.state == stable {
		described.Protocol = cg.protocol
	}
	for _, m := range cg.ordered() {
		dm := kmsg.NewDescribeGroupsResponseGroupMember()
		dm.MemberID, dm.InstanceID, dm.ClientID, dm.ClientHost = m.id, m.instance, m.clientID, m.host
		dm.MemberAssignment = m.assignment
		if cg.state == stable {
			dm.ProtocolMetadata = m.metadata(cg.protocol)
		}
		described.Members = append(described.Members, dm)
	}
	return described
}

// ListGroups lists the groups whose state and type match the request. An empty filter matches all.
func (c *Coordinator) ListGroups(req *kmsg.ListGroupsRequest) *kmsg.ListGroupsResponse {
	resp := req.ResponseKind().(*kmsg.ListGroupsResponse)
	if !c.enter() {
		resp.ErrorCode = kerr.CoordinatorNotAvailable.Code
		return resp
	}
	defer c.closeMu.RUnlock()
	among := func(names []string, name string) bool {
		same := func(n string) bool { return strings.EqualFold(n, name) }
		return len(names) == 0 || slices.ContainsFunc(names, same)
	}
	states := make([]string, len(req.StatesFilter))
	for i, s := range req.StatesFilter {
		states[i] = strings.TrimSpace(s) // Kafka trims states, but not types
	}
	for _, g := range c.all() {
		listed := kmsg.NewListGroupsResponseGroup()
		g.mu.Lock()
		dead := g.dead
		listed.Group = g.id
		switch {
		case dead:
		case g.consumer != nil:
			listed.GroupState, listed.GroupType, listed.ProtocolType = g.consumer.state(), "consumer", "consumer"
		default:
			listed.GroupState, listed.GroupType, listed.ProtocolType = g.classic.state.String(), "classic", g.classic.protocolType
		}
		g.mu.Unlock()
		if !dead && among(states, listed.GroupState) && among(req.TypesFilter, listed.GroupType) {
			resp.Groups = append(resp.Groups, listed)
		}
	}
	return resp
}

// DeleteGroups deletes groups that have no members, including their offsets.
func (c *Coordinator) DeleteGroups(req *kmsg.DeleteGroupsRequest) *kmsg.DeleteGroupsResponse {
	resp := req.ResponseKind().(*kmsg.DeleteGroupsResponse)
	seen := map[string]bool{}
	for _, id := range req.Groups {
		if seen[id] {
			continue
		}
		seen[id] = true
		result := kmsg.NewDeleteGroupsResponseGroup()
		result.Group = id
		result.ErrorCode = codeOf(c.delete(id))
		resp.Groups = append(resp.Groups, result)
	}
	return resp
}

func (c *Coordinator) delete(id string) *kerr.Error {
	if !c.enter() {
		return kerr.CoordinatorNotAvailable
	}
	defer c.closeMu.RUnlock()
	g := c.find(id)
	if g == nil {
		return kerr.GroupIDNotFound
	}
	defer g.mu.Unlock()
	if !g.empty() {
		return kerr.NonEmptyGroup
	}
	if err := g.delete(); err != nil {
		return storeError(err)
	}
	return nil
}

// delete deletes the group from the journal and from memory.
func (g *group) delete() error {
	entries := g.deletionEntries()
	for topic, offsets := range g.offsets {
		for _, o := range offsets {
			entries = append(entries, entry{Key: appendOffsetKey(nil, g.id, topic, o.partition)})
		}
	}
	if len(entries) > 0 {
		if err := g.c.append(entries...); err != nil {
			return err
		}
	}
	g.drop()
	return nil
}

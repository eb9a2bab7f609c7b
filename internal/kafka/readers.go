package kafka

import (
	"context"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
)

// GroupReading is a consumer group that has committed offsets in a topic.
type GroupReading struct {
	ID      string // without the prefix [UserGroups]
	Members int    // active members
	Lag     int64  // records between the committed offsets and the end of the topic
}

// GroupsReading returns the groups with the prefix [UserGroups] that have committed offsets in a topic,
// sorted by ID. Its cost grows with the number of groups in the cluster.
func (a *Admin) GroupsReading(ctx context.Context, topic string) ([]GroupReading, error) {
	admin := kadm.NewClient(a.client)
	groups, err := Groups(ctx, a.client)
	groups = slices.DeleteFunc(groups, func(g Group) bool { return !g.Reads() || !strings.HasPrefix(g.ID, UserGroups) })
	if len(groups) == 0 {
		return nil, err
	}
	ids := make([]string, len(groups))
	for i, g := range groups {
		ids[i] = g.ID
	}
	var reading []GroupReading
	committed := admin.FetchManyOffsets(ctx, ids...)
	ends, err := admin.ListEndOffsets(ctx, topic)
	if err != nil {
		return nil, err
	}
	starts, err := admin.ListStartOffsets(ctx, topic)
	if err != nil {
		return nil, err
	}
	for _, group := range committed {
		if group.Err != nil {
			return nil, group.Err
		}
		g := GroupReading{ID: strings.TrimPrefix(group.Group, UserGroups)}
		reads := false
		group.Fetched.Each(func(o kadm.OffsetResponse) {
			if o.Topic != topic || o.Err != nil || o.At < 0 {
				return
			}
			reads = true
			end, _ := ends.Lookup(topic, o.Partition)
			start, _ := starts.Lookup(topic, o.Partition)
			g.Lag += max(0, end.Offset-max(o.At, start.Offset))
		})
		if reads {
			reading = append(reading, g)
		}
	}
	is := func(id string) bool {
		return slices.ContainsFunc(reading, func(g GroupReading) bool { return UserGroups+g.ID == id })
	}
	groups = slices.DeleteFunc(groups, func(g Group) bool { return !is(g.ID) })
	described, err := DescribeGroups(ctx, a.client, groups)
	if err != nil {
		return nil, err
	}
	for _, d := range described {
		i := slices.IndexFunc(reading, func(g GroupReading) bool { return UserGroups+g.ID == d.ID })
		reading[i].Members = len(d.Members)
	}
	slices.SortFunc(reading, func(a, b GroupReading) int { return strings.Compare(a.ID, b.ID) })
	return reading, nil
}

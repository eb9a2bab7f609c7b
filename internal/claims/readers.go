package claims

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// Readers returns the consumer groups that have read a topic, with how far behind its end they are,
// sorted by subject and group. Its cost grows with the number of groups in the cluster. Who may call it,
// and its errors, are those of [Service.Log].
func (s *Service) Readers(ctx context.Context, subject, name string) ([]diaspora.Reader, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	if err := s.managed(ctx, subject, name, func(*state, topic) {}); err != nil {
		return nil, topicError("show", name, err)
	}
	select { // it is much work for the cluster, so one at a time
	case s.reading <- struct{}{}:
		defer func() { <-s.reading }()
	case <-ctx.Done():
		return nil, topicError("show", name, clusterError(ctx.Err()))
	}
	readers, err := s.readers(ctx, name)
	for i := range readers {
		_, have := s.ledger.access(name, readers[i].Subject)
		readers[i].NoAccess = have&mayRead == 0
	}
	return readers, topicError("show", name, clusterError(err))
}

func (s *Service) readers(ctx context.Context, topic string) ([]diaspora.Reader, error) {
	groups, err := kafka.Groups(ctx, s.client)
	if err != nil {
		return nil, err
	}
	byID := make(map[string]kafka.Group)
	for _, g := range groups {
		if g.Reads() && strings.HasPrefix(g.ID, kafka.UserGroups) {
			byID[g.ID] = g
		}
	}
	spans, err := kafka.VisibleSpans(ctx, s.client, []string{topic})
	if err != nil {
		return nil, err
	}
	committed, err := kafka.Committed(ctx, s.client, slices.Collect(maps.Keys(byID))...)
	if err != nil {
		return nil, err
	}
	lags := make(map[string]int64) // of the groups that have committed offsets in the topic
	for id, offsets := range committed {
		for p, offset := range offsets {
			if span, ok := spans[p]; ok {
				lags[id] += max(0, span.End-max(offset, span.Start))
			}
		}
	}
	reading := groups[:0]
	for id := range lags {
		reading = append(reading, byID[id])
	}
	described, err := kafka.DescribeGroups(ctx, s.client, reading)
	if err != nil {
		return nil, err
	}
	readers := make([]diaspora.Reader, 0, len(described))
	for _, g := range described {
		// The gateway makes IDs of the prefix, the subject, a dot, and the ID that the subject chose.
		// Subjects have no dots.
		subject, id, ok := strings.Cut(strings.TrimPrefix(g.ID, kafka.UserGroups), ".")
		if ok {
			readers = append(readers, diaspora.Reader{Subject: subject, Group: id, Members: len(g.Members), Lag: lags[g.ID]})
		}
	}
	slices.SortFunc(readers, func(a, b diaspora.Reader) int {
		return cmp.Or(strings.Compare(a.Subject, b.Subject), strings.Compare(a.Group, b.Group))
	})
	return readers, nil
}

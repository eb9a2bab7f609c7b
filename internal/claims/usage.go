package claims

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// Usage returns how much is in each of these topics. It leaves out topics about which the brokers do
// not tell, for instance because they are just being created. The caller has checked who may know.
func (s *Service) Usage(ctx context.Context, topics []string) (map[string]diaspora.TopicUsage, error) {
	if len(topics) == 0 {
		return nil, nil // no names would mean all topics
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	spans, err := kafka.VisibleSpans(ctx, s.client, topics)
	if err != nil || len(spans) == 0 {
		return nil, clusterError(err)
	}
	admin := kadm.NewClient(s.client)
	last, err := admin.ListMaxTimestampOffsets(ctx, topics...)
	if err != nil {
		return nil, clusterError(err)
	}
	var all kadm.TopicsSet
	for p := range spans {
		all.Add(p.Topic, p.Partition)
	}
	dirs, err := admin.DescribeAllLogDirs(ctx, all)
	if err != nil {
		return nil, clusterError(err)
	}
	usage := make(map[string]diaspora.TopicUsage)
	for p, span := range spans {
		u := usage[p.Topic]
		u.Records += span.End - span.Start
		if newest, ok := last.Lookup(p.Topic, p.Partition); ok && newest.Err == nil && newest.Timestamp >= 0 {
			if at := time.UnixMilli(newest.Timestamp).UTC(); at.After(u.LastEvent) {
				u.LastEvent = at
			}
		}
		usage[p.Topic] = u
	}
	sizes := make(map[string]map[int32]int64) // of the largest replica of each partition
	dirs.Each(func(dir kadm.DescribedLogDir) {
		dir.Topics.Each(func(p kadm.DescribedLogDirPartition) {
			if sizes[p.Topic] == nil {
				sizes[p.Topic] = make(map[int32]int64)
			}
			sizes[p.Topic][p.Partition] = max(sizes[p.Topic][p.Partition], p.Size)
		})
	})
	for name, u := range usage {
		for _, size := range sizes[name] {
			u.Bytes += size
		}
		usage[name] = u
	}
	return usage, nil
}

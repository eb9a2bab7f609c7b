package claims

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/diaspora-streams/diaspora"
)

// Usage returns how much is in each of these topics. It leaves out topics about which the brokers do
// not tell, for instance because they are just being created. The caller has checked who may know.
func (s *Service) Usage(ctx context.Context, topics []string) (map[string]diaspora.TopicUsage, error) {
	if len(topics) == 0 {
		return nil, nil // no names would mean all topics
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	admin := kadm.NewClient(s.client)
	starts, err := admin.ListStartOffsets(ctx, topics...)
	if err != nil {
		return nil, clusterError(err)
	}
	ends, err := admin.ListEndOffsets(ctx, topics...)
	if err != nil {
		return nil, clusterError(err)
	}
	last, err := admin.ListMaxTimestampOffsets(ctx, topics...)
	if err != nil {
		return nil, clusterError(err)
	}
	var all kadm.TopicsSet
	ends.Each(func(end kadm.ListedOffset) {
		if end.Err == nil {
			all.Add(end.Topic, end.Partition)
		}
	})
	if len(all) == 0 {
		return nil, nil
	}
	dirs, err := admin.DescribeAllLogDirs(ctx, all)
	if err != nil {
		return nil, clusterError(err)
	}
	usage := make(map[string]diaspora.TopicUsage)
	ends.Each(func(end kadm.ListedOffset) {
		start, ok := starts.Lookup(end.Topic, end.Partition)
		if !ok || start.Err != nil || end.Err != nil {
			return
		}
		u := usage[end.Topic]
		u.Records += end.Offset - start.Offset
		if newest, ok := last.Lookup(end.Topic, end.Partition); ok && newest.Err == nil && newest.Timestamp >= 0 {
			if at := time.UnixMilli(newest.Timestamp).UTC(); at.After(u.LastEvent) {
				u.LastEvent = at
			}
		}
		usage[end.Topic] = u
	})
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

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/bench/measure"
)

const groupPartitions = 10

// groups measures the latency of commits to many groups, one commit at a time.
func (b *bench) groups(ctx context.Context) (string, error) {
	header := []string{"engine", "groups", "memory", "commits", "p50", "p99", "longest", "with others: commits", "p50", "p99", "longest", "compactions"}
	rows, err := b.inTurn(ctx, header, func(s *site) ([][]string, error) { return b.commitTo(ctx, s) })
	return fmt.Sprintf("## Commits\n\nEach group has committed offsets of %d partitions. One client commits those of one group after the other, which are timed; then, with another client that does so as fast as it can,\n"+
		"so that the groups' log is compacted over and over. An engine that is too slow has %v for each. Goal: p99 of 5 ms.\n\n", groupPartitions, b.patience) + measure.Table(rows), err
}

func (b *bench) commitTo(ctx context.Context, s *site) (rows [][]string, err error) {
	if err := measure.Claim(ctx, s.cfg, groupPartitions, "groups"); err != nil {
		return nil, err
	}
	client, broker, err := s.broker(ctx)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	all, cancel := context.WithTimeout(ctx, 3*b.patience)
	defer cancel()
	made, n := 0, b.Scaled(10_000)
	for ; made < n && all.Err() == nil; made++ {
		if _, err := commit(ctx, broker, made, 1); err != nil {
			return nil, err
		}
	}
	rss, err := s.up.SettledRSS(ctx)
	if err != nil {
		return nil, err
	}
	took, err := commits(ctx, broker, made, n, b.patience)
	if err != nil {
		return nil, err
	}
	row := append([]string{s.name, fmt.Sprint(made), measure.Megabytes(rss), fmt.Sprint(len(took))}, measure.Quantiles(took, 0.5, 0.99, 1)...)

	busy, stop := context.WithCancel(ctx)
	defer stop()
	others, broker2, err := s.broker(ctx)
	if err != nil {
		return nil, err
	}
	defer others.Close()
	ended := make(chan error, 1)
	go func() {
		var err error
		for i := int64(0); busy.Err() == nil && err == nil; i++ {
			_, err = commit(ctx, broker2, rand.IntN(made), i)
		}
		ended <- err
	}()
	before, err := s.snapshot()
	if err != nil {
		return nil, err
	}
	took, err = commits(ctx, broker, made, 1<<30, b.patience)
	stop()
	after, snapErr := s.snapshot()
	if err := errors.Join(err, <-ended, snapErr); err != nil {
		return nil, err
	}
	row = append(append(row, fmt.Sprint(len(took))), measure.Quantiles(took, 0.5, 0.99, 1)...)
	return [][]string{append(row, fmt.Sprint(after-before))}, nil
}

// commits times n commits to random groups, or fewer if the limit is reached first.
func commits(ctx context.Context, broker *kgo.Broker, groups, n int, limit time.Duration) (all []time.Duration, err error) {
	for began := time.Now(); len(all) < n && time.Since(began) < limit; {
		took, err := commit(ctx, broker, rand.IntN(groups), int64(len(all)))
		if err != nil {
			return nil, err
		}
		all = append(all, took)
	}
	return all, nil
}

// commit commits an offset for all partitions and returns how long that took.
func commit(ctx context.Context, broker *kgo.Broker, group int, offset int64) (time.Duration, error) {
	request := kmsg.NewPtrOffsetCommitRequest()
	request.Group = fmt.Sprintf("group-%d", group)
	t := kmsg.NewOffsetCommitRequestTopic()
	t.Topic = "groups"
	for i := range int32(groupPartitions) {
		p := kmsg.NewOffsetCommitRequestTopicPartition()
		p.Partition, p.Offset = i, offset
		t.Partitions = append(t.Partitions, p)
	}
	request.Topics = append(request.Topics, t)
	began := time.Now()
	response, err := request.RequestWith(ctx, broker)
	took := time.Since(began)
	if err != nil {
		return 0, err
	}
	for _, p := range response.Topics[0].Partitions {
		if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
			return 0, fmt.Errorf("commit: %w", err)
		}
	}
	return took, nil
}

// snapshot returns how many segments of the groups' journal have been replaced by snapshots so far.
// The number grows with each compaction.
func (s *site) snapshot() (n int, err error) {
	found, err := filepath.Glob(filepath.Join(s.up.Home, "data", "diaspora", "local", "*", "groups", "*.snapshot"))
	if err != nil || len(found) == 0 {
		return 0, err
	}
	_, err = fmt.Sscanf(filepath.Base(found[len(found)-1]), "%d", &n)
	return n, err
}

// producers measures the sessions of idempotent producers. A tenth of the producers also append an
// event.
func (b *bench) producers(ctx context.Context) (string, error) {
	rows, err := b.inTurn(ctx, []string{"engine", "producers", "memory before", "after", "p50", "p99", "longest", "appended", "memory after"}, func(s *site) ([][]string, error) {
		n := b.Scaled(1_000_000)
		if err := measure.Claim(ctx, s.cfg, 1, "producers"); err != nil {
			return nil, err
		}
		client, broker, err := s.broker(ctx)
		if err != nil {
			return nil, err
		}
		defer client.Close()
		before, err := s.up.SettledRSS(ctx)
		if err != nil {
			return nil, err
		}
		var took []time.Duration
		var ids []int64
		for began := time.Now(); len(took) < n && time.Since(began) < 3*b.patience; {
			request := kmsg.NewPtrInitProducerIDRequest()
			request.ProducerID, request.ProducerEpoch = -1, -1
			start := time.Now()
			response, err := request.RequestWith(ctx, broker)
			took = append(took, time.Since(start))
			if err == nil {
				err = kerr.ErrorForCode(response.ErrorCode)
			}
			if err != nil {
				return nil, fmt.Errorf("InitProducerId: %w", err)
			}
			ids = append(ids, response.ProducerID)
		}
		between, err := s.up.SettledRSS(ctx)
		if err != nil {
			return nil, err
		}
		appended := 0
		for began := time.Now(); appended < n/10 && appended < len(ids) && time.Since(began) < b.patience; appended++ {
			if err := appendEvent(ctx, broker, "producers", ids[appended]); err != nil {
				return nil, err
			}
		}
		after, err := s.up.SettledRSS(ctx)
		row := append([]string{s.name, fmt.Sprint(len(ids)), measure.Megabytes(before), measure.Megabytes(between)}, measure.Quantiles(took, 0.5, 0.99, 1)...)
		return [][]string{append(row, fmt.Sprint(appended), measure.Megabytes(after))}, err
	})
	return fmt.Sprintf("## Producers\n\nEach gets a producer ID (InitProducerId), one at a time; an engine that is too slow has %v. Then as many as a tenth append an event, to one partition. Goal: p99 of 1 ms, and memory that does not grow.\n\n",
		3*b.patience) + measure.Table(rows), err
}

// appendEvent appends the first event of a producer.
func appendEvent(ctx context.Context, broker *kgo.Broker, topic string, producer int64) error {
	request := kmsg.NewPtrProduceRequest()
	request.Acks, request.TimeoutMillis = -1, 10_000
	t := kmsg.NewProduceRequestTopic()
	t.Topic = topic
	p := kmsg.NewProduceRequestTopicPartition()
	p.Records = oneEvent([]byte("rain"), producer)
	t.Partitions = append(t.Partitions, p)
	request.Topics = append(request.Topics, t)
	response, err := request.RequestWith(ctx, broker)
	if err != nil {
		return err
	}
	return kerr.ErrorForCode(response.Topics[0].Partitions[0].ErrorCode)
}

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/bench/measure"
)

// startPartitions is how many partitions the data of benchStart are spread over. After a kill, the
// engine may have to read in each what was appended since its last checkpoint.
const startPartitions = 100

// start measures how long a start takes with different amounts of data, after a clean stop and after
// kill -9, and the peak of memory.
func (b *bench) start(ctx context.Context) (_ string, err error) {
	rows := [][]string{{"data", "engine", "clean stop: ready", "memory", "kill -9: ready", "memory"}}
	sites, closeAll, err := b.together(ctx, false)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, closeAll()) }()
	for _, s := range sites {
		if err := measure.Claim(ctx, s.cfg, startPartitions, "start"); err != nil {
			return "", err
		}
	}
	size := int64(0)
	for _, gigabytes := range []float64{0.5, 5, 20} {
		more := int64(gigabytes*1e9*b.Scale) - size
		size += more
		for _, s := range sites {
			row, err := s.starts(ctx, more, min(b.Rounds, 3))
			if err != nil {
				return "", fmt.Errorf("%s, %g GB: %w", s.name, gigabytes, err)
			}
			rows = append(rows, append([]string{fmt.Sprintf("%g GB", gigabytes*b.Scale), s.name}, row...))
		}
	}
	return fmt.Sprintf("## Start\n\nEvents of 1 KiB, uncompressed, in batches of 1 MB, in %d partitions. Ready is from exec to the first line on stdout, memory is the peak (VmHWM) a second later.\n"+
		"The kill comes right after the last acknowledgement. Median of %d starts, and the worst. Goals: 100 ms and 64 MB after a clean stop, 1 s and 96 MB after a kill.\n\n",
		startPartitions, min(b.Rounds, 3)) + measure.Table(rows), nil
}

// starts adds data. Then, in each round, it kills and restarts the process, and stops and restarts
// it.
func (s *site) starts(ctx context.Context, bytes int64, rounds int) (row []string, err error) {
	if err := s.fill(ctx, bytes); err != nil {
		return nil, err
	}
	var clean, killed measuredStarts
	for round := range rounds {
		if round > 0 { // new data for the start to read
			if err := s.fill(ctx, bytes/10); err != nil {
				return nil, err
			}
		}
		if err := s.up.Kill(); err != nil {
			return nil, err
		}
		if err := killed.add(ctx, s); err != nil {
			return nil, err
		}
		if err := s.stop(); err != nil {
			return nil, err
		}
		if err := clean.add(ctx, s); err != nil {
			return nil, err
		}
	}
	return append(clean.cells(), killed.cells()...), nil
}

// fill produces the given number of bytes as fast as possible.
func (s *site) fill(ctx context.Context, bytes int64) error {
	client, err := measure.Dial(ctx, s.cfg, kgo.DefaultProduceTopic("start"), kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.ProducerLinger(50*time.Millisecond),
		kgo.RecordPartitioner(kgo.UniformBytesPartitioner(900_000, false, false, nil)))
	if err != nil {
		return err
	}
	defer client.Close()
	values := measure.Payloads(1024)
	_, err = measure.Produce(ctx, client, func(i int) *kgo.Record { return &kgo.Record{Value: values[i%len(values)]} })(int(bytes / 1024))
	return err
}

// measuredStarts holds the results of starts of the same kind.
type measuredStarts struct {
	ready []time.Duration
	peak  []int64
}

func (m *measuredStarts) add(ctx context.Context, s *site) error {
	if err := s.again(ctx); err != nil {
		return err
	}
	time.Sleep(time.Second)
	peak, err := s.up.Memory("VmHWM")
	m.ready, m.peak = append(m.ready, s.up.Ready), append(m.peak, peak)
	return err
}

func (m *measuredStarts) cells() []string {
	return []string{
		fmt.Sprintf("%d ms (%d)", measure.Median(m.ready).Milliseconds(), measure.Quantile(m.ready, 1).Milliseconds()),
		fmt.Sprintf("%s (%s)", measure.Megabytes(measure.Median(m.peak)), measure.Megabytes(measure.Quantile(m.peak, 1))),
	}
}

// batches measures the memory of an engine that has very many batches of one event each.
func (b *bench) batches(ctx context.Context) (string, error) {
	header := []string{"engine", "batches", "batches/s", "memory", "after a clean stop: ready", "memory", "after kill -9: ready", "memory"}
	rows, err := b.inTurn(ctx, header, func(s *site) ([][]string, error) {
		n := b.Scaled(10_000_000)
		if err := measure.Claim(ctx, s.cfg, startPartitions, "batches"); err != nil {
			return nil, err
		}
		began := time.Now()
		done, err := s.appendBatches(ctx, "batches", n, 5*b.patience)
		if err != nil {
			return nil, err
		}
		rate := float64(done) / time.Since(began).Seconds()
		rss, err := s.up.SettledRSS(ctx)
		if err != nil {
			return nil, err
		}
		var clean, killed measuredStarts
		if err := errors.Join(s.stop(), clean.add(ctx, s)); err != nil {
			return nil, err
		}
		if _, err := s.appendBatches(ctx, "batches", n/10, b.patience); err != nil {
			return nil, err
		}
		if err := errors.Join(s.up.Kill(), killed.add(ctx, s)); err != nil {
			return nil, err
		}
		return [][]string{slices.Concat([]string{s.name, fmt.Sprint(done), fmt.Sprintf("%.0f", rate), measure.Megabytes(rss)}, clean.cells(), killed.cells())}, nil
	})
	return fmt.Sprintf("## Batches of one event\n\nA request has a batch of one event of 100 B for each of %d partitions. Memory is resident memory once it no longer changes, and after a start its peak. Goal: 64 MB.\n\n",
		startPartitions) + measure.Table(rows), err
}

// appendBatches appends n batches of one event each, or fewer if the limit is reached first.
func (s *site) appendBatches(ctx context.Context, topic string, n int, limit time.Duration) (done int, err error) {
	client, broker, err := s.broker(ctx)
	if err != nil {
		return 0, err
	}
	defer client.Close()
	request := kmsg.NewPtrProduceRequest()
	request.Acks, request.TimeoutMillis = -1, 10_000
	t := kmsg.NewProduceRequestTopic()
	t.Topic = topic
	for i := range int32(startPartitions) {
		p := kmsg.NewProduceRequestTopicPartition()
		p.Partition, p.Records = i, oneEvent(measure.Payloads(100)[i], -1)
		t.Partitions = append(t.Partitions, p)
	}
	request.Topics = append(request.Topics, t)
	for began := time.Now(); done < n && time.Since(began) < limit; done += startPartitions {
		response, err := request.RequestWith(ctx, broker)
		if err != nil {
			return done, err
		}
		for _, p := range response.Topics[0].Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return done, fmt.Errorf("produce: %w", err)
			}
		}
	}
	return done, nil
}

// oneEvent returns the first batch of a producer, with one event.
func oneEvent(value []byte, producer int64) []byte {
	const lengthAt, crcAt = 8, 17
	r := kmsg.NewRecord()
	r.Value = value
	r.Length = int32(len(r.AppendTo(nil)) - 1) // without the length field, which takes one byte while it is 0
	b := kmsg.NewRecordBatch()
	b.Magic, b.NumRecords, b.Records = 2, 1, r.AppendTo(nil)
	b.ProducerID, b.ProducerEpoch, b.FirstSequence = producer, -1, -1
	if producer >= 0 {
		b.ProducerEpoch, b.FirstSequence = 0, 0
	}
	batch := b.AppendTo(nil)
	binary.BigEndian.PutUint32(batch[lengthAt:], uint32(len(batch)-lengthAt-4))
	binary.BigEndian.PutUint32(batch[crcAt:], crc32.Checksum(batch[crcAt+4:], crc32.MakeTable(crc32.Castagnoli)))
	return batch
}

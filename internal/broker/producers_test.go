package broker

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// numbered sends batches of one record with the sequence numbers that it is told.
type numbered struct {
	client *kgo.Client
	id     int64
	epoch  int16
}

func newNumbered(t *testing.T, b *Broker) *numbered {
	t.Helper()
	client := b.admin(t)
	makeTopic(t, client, "weather")
	response, err := kmsg.NewPtrInitProducerIDRequest().RequestWith(t.Context(), client)
	if err != nil {
		t.Fatal(err)
	}
	return &numbered{client, response.ProducerID, response.ProducerEpoch}
}

// send returns the offset of the record with the number, and the broker's answer.
func (n *numbered) send(ctx context.Context, sequence int32) (int64, error) {
	batch := kmsg.NewRecordBatch()
	batch.Magic, batch.ProducerID, batch.ProducerEpoch = 2, n.id, n.epoch
	batch.FirstSequence, batch.NumRecords, batch.PartitionLeaderEpoch = sequence, 1, -1
	record := []byte{0, 0, 0, 1, 2, 'x', 0} // attributes, two deltas, no key, a value of one byte, no headers
	batch.Records = append(binary.AppendVarint(nil, int64(len(record))), record...)
	batch.Length = int32(batchHeaderBytes - batchPrefixBytes + len(batch.Records))
	raw := batch.AppendTo(nil)
	binary.BigEndian.PutUint32(raw[batchCRCEnd-4:], crc32.Checksum(raw[batchCRCEnd:], crc32.MakeTable(crc32.Castagnoli)))

	request := kmsg.NewPtrProduceRequest()
	request.Acks, request.TimeoutMillis = -1, 10_000
	topic, partition := kmsg.NewProduceRequestTopic(), kmsg.NewProduceRequestTopicPartition()
	partition.Records = raw
	topic.Topic, topic.Partitions = "weather", append(topic.Partitions, partition)
	request.Topics = append(request.Topics, topic)
	response, err := request.RequestWith(ctx, n.client)
	if err != nil {
		return 0, err
	}
	answer := response.Topics[0].Partitions[0]
	return answer.BaseOffset, kerr.ErrorForCode(answer.ErrorCode)
}

// TestSequenceSurvivesCrash: a producer has several batches on their way. When the broker
// dies and comes again, it must not take the later ones while the first is missing, nor
// store again what it has.
func TestSequenceSurvivesCrash(t *testing.T) {
	dir, left, twice := t.TempDir(), t.TempDir(), t.TempDir()
	b := open(t, Config{Dir: dir})
	producer := newNumbered(t, b)
	for n := range int32(7) {
		if _, err := producer.send(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(left, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	segment := filepath.Join(left, "partitions", "weather-0", "0.dat")
	whole, err := os.ReadFile(segment)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(segment, whole[:len(whole)-1], 0o600); err != nil { // the last one is torn
		t.Fatal(err)
	}

	again := open(t, Config{Dir: left})
	producer.client = again.admin(t)
	if _, err := producer.send(t.Context(), 7); !errors.Is(err, kerr.OutOfOrderSequenceNumber) {
		t.Errorf("batch 7, of which the one before was torn: %v, want %v", err, kerr.OutOfOrderSequenceNumber)
	}
	for _, n := range []int32{5, 6, 7, 3, 8} { // some for the second time
		offset, err := producer.send(t.Context(), n)
		if err != nil || offset != int64(n) {
			t.Errorf("batch %d is at offset %d, %v; want %d", n, offset, err, n)
		}
	}
	if err := os.CopyFS(twice, os.DirFS(left)); err != nil {
		t.Fatal(err)
	}
	producer.client = open(t, Config{Dir: twice}).admin(t)
	if _, err := producer.send(t.Context(), 10); !errors.Is(err, kerr.OutOfOrderSequenceNumber) {
		t.Errorf("batch 10 after batch 8 and a second crash: %v, want %v", err, kerr.OutOfOrderSequenceNumber)
	}
	if _, err := producer.send(t.Context(), 9); err != nil {
		t.Errorf("batch 9 after batch 8 and a second crash: %v", err)
	}
}

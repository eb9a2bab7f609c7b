package gateway

import (
	"encoding/binary"
	"hash/crc32"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestManyConnections opens two thousand connections through one gateway. When all are open, each
// of them produces.
func TestManyConnections(t *testing.T) {
	const n = 2000
	f := start(t)
	f.claim(t, "weather", ada)
	f.tokens.issue("ada-token", ada, time.Hour)
	conns := make([]*raw, n)
	for i := range conns {
		conns[i] = f.login(t, "ada-token")
	}
	if stats := f.gateway.Stats(); stats.Connections != n || stats.HalfOpen != 0 || stats.Rejected != 0 {
		t.Errorf("Stats() = %+v, want %d connections, all signed in", stats, n)
	}
	produce := produceRequest(7)
	produce.TimeoutMillis = 10_000
	produce.Topics[0].Partitions[0].Records = oneRecord("rain")
	for i, c := range conns {
		c.SetDeadline(time.Now().Add(impatience))
		p := c.ask(produce).(*kmsg.ProduceResponse).Topics[0].Partitions[0]
		if p.ErrorCode != 0 || p.BaseOffset != int64(i) {
			t.Fatalf("connection %d: error %d, offset %d", i, p.ErrorCode, p.BaseOffset)
		}
	}
	if got := f.count(t, "ada-token", "weather"); got != n {
		t.Errorf("the topic has %d records, want %d", got, n)
	}
}

// oneRecord is a batch of one record.
func oneRecord(value string) []byte {
	const lengthAt, crcAt = 8, 17
	r := kmsg.NewRecord()
	r.Value = []byte(value)
	r.Length = int32(len(r.AppendTo(nil)) - 1)
	b := kmsg.NewRecordBatch()
	b.Magic, b.NumRecords, b.Records = 2, 1, r.AppendTo(nil)
	b.ProducerID, b.ProducerEpoch, b.FirstSequence = -1, -1, -1
	batch := b.AppendTo(nil)
	binary.BigEndian.PutUint32(batch[lengthAt:], uint32(len(batch)-lengthAt-4))
	binary.BigEndian.PutUint32(batch[crcAt:], crc32.Checksum(batch[crcAt+4:], crc32.MakeTable(crc32.Castagnoli)))
	return batch
}

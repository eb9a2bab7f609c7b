package broker

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/batch"
)

// clock is a clock that tests can set.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.UnixMilli(1_700_000_000_000)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// from identifies the idempotent producer that sends a batch, and the batch's place in its
// sequence.
type from struct {
	id       int64
	epoch    int16
	sequence int32
}

var nobody = from{-1, -1, -1}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// compressors compress batches as producers do, by codec.
var compressors = sync.OnceValue(func() (all [5]kgo.Compressor) {
	for i, codec := range []kgo.CompressionCodec{
		kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression(),
	} {
		c, err := kgo.DefaultCompressor(codec)
		if err != nil {
			panic(err)
		}
		all[i] = c
	}
	return all
})

// newBatch returns a batch as a producer sends it, with one record for each value.
func newBatch(codec batch.Codec, p from, values ...string) []byte {
	var records []byte
	for i, v := range values {
		r := []byte{0, 0}                    // attributes, timestamp delta
		r = binary.AppendVarint(r, int64(i)) // offset delta
		r = append(r, 1)                     // no key
		r = binary.AppendVarint(r, int64(len(v)))
		r = append(append(r, v...), 0) // no headers
		records = append(binary.AppendVarint(records, int64(len(r))), r...)
	}
	if c := compressors()[codec]; c != nil {
		records, _ = c.Compress(new(bytes.Buffer), records)
	}
	return rawBatch(codec, p, len(values), records)
}

// rawBatch returns a batch with arbitrary bytes as its records, and a correct checksum.
func rawBatch(codec batch.Codec, p from, count int, records []byte) []byte {
	b := make([]byte, batch.HeaderBytes, batch.HeaderBytes+len(records))
	b = append(b, records...)
	be := binary.BigEndian
	be.PutUint32(b[8:], uint32(len(b)-12))
	be.PutUint32(b[12:], 1<<32-1) // leader epoch
	b[16] = 2                     // magic
	b[22] = byte(codec)
	be.PutUint32(b[23:], uint32(count-1))
	be.PutUint64(b[27:], 1000) // timestamps of the producer
	be.PutUint64(b[35:], 1000)
	be.PutUint64(b[43:], uint64(p.id))
	be.PutUint16(b[51:], uint16(p.epoch))
	be.PutUint32(b[53:], uint32(p.sequence))
	be.PutUint32(b[57:], uint32(count))
	be.PutUint32(b[17:], checksum(b[21:]))
	return b
}

// valuesOf returns the values of a batch's records.
func valuesOf(b []byte) (values []string, err error) {
	err = batch.Records(b, func(r batch.Record) bool {
		values = append(values, string(r.Value))
		return true
	})
	return values, err
}

// batchesOf splits the result of a fetch into batches.
func batchesOf(b []byte) (all [][]byte, err error) {
	for len(b) > 0 {
		h, err := batch.ParseHeader(b)
		if err != nil {
			return nil, err
		}
		if h.Size() > len(b) || !batch.ChecksumOK(b[:h.Size()]) {
			return nil, fmt.Errorf("the batch at offset %d is not whole", h.BaseOffset)
		}
		all = append(all, b[:h.Size()])
		b = b[h.Size():]
	}
	return all, nil
}

// call carries out a request in this goroutine, as the super user.
func call[R kmsg.Response](b *Broker, req kmsg.Request) (R, error) {
	a := apis()[req.Key()]
	req.SetVersion(a.max)
	response, err := a.handle(b, &request{ctx: b.ctx, conn: &conn{b: b}, caller: superUser, Request: req})
	if err != nil {
		var none R
		return none, err
	}
	return response.(R), nil
}

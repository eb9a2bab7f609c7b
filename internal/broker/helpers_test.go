package broker

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/batch"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

func newClock() *testkit.Clock { return testkit.NewClock(time.UnixMilli(1_700_000_000_000)) }

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
	records := testkit.Records(values...)
	if c := compressors()[codec]; c != nil {
		records, _ = c.Compress(new(bytes.Buffer), records)
	}
	return rawBatch(codec, p, len(values), records)
}

// rawBatch returns a batch with arbitrary bytes as its records, and a correct checksum.
func rawBatch(codec batch.Codec, p from, count int, records []byte) []byte {
	return testkit.Batch(int8(codec), p.id, p.epoch, p.sequence, count, records)
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

package commitlog

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/internal/batch"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

func newClock() *testkit.Clock { return testkit.NewClock(time.UnixMilli(1_700_000_000_000)) }

// from identifies the idempotent producer that sends a batch.
type from struct {
	id       int64
	epoch    int16
	sequence int32
}

var nobody = from{-1, -1, -1}

// newBatch returns a batch as a producer sends it, with one record for each value.
func newBatch(p from, values ...string) []byte {
	return testkit.Batch(0, p.id, p.epoch, p.sequence, len(values), testkit.Records(values...))
}

// timed returns a batch of records with timestamps set by their producer.
func timed(times ...int64) []byte {
	b := newBatch(nobody, make([]string, len(times))...)
	be := binary.BigEndian
	be.PutUint64(b[27:], uint64(times[0]))
	be.PutUint64(b[35:], uint64(slices.Max(times)))
	records := b[:batch.HeaderBytes]
	for i, at := range times {
		r := binary.AppendVarint([]byte{0}, at-times[0])
		r = append(binary.AppendVarint(r, int64(i)), 1, 0, 0) // no key, an empty value, no headers
		records = append(binary.AppendVarint(records, int64(len(r))), r...)
	}
	be.PutUint32(records[8:], uint32(len(records)-12))
	be.PutUint32(records[17:], crc32.Checksum(records[21:], castagnoli))
	return records
}

// plain returns a batch of one record with approximately the given size.
func plain(n, bytes int) []byte {
	v := fmt.Sprint(n, " ")
	return newBatch(nobody, v+strings.Repeat("x", max(0, bytes-len(v))))
}

func header(t testing.TB, b []byte) batch.Header {
	t.Helper()
	h, err := batch.ParseHeader(b)
	testkit.Must(t, err)
	return h
}

func mustOpen(t testing.TB, o Options) *Log {
	t.Helper()
	if o.Diagnostics == nil {
		o.Diagnostics = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	l, err := Open(o)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func mustClose(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
}

// mustAppend appends a batch and returns its bytes as they are stored.
func mustAppend(t testing.TB, l *Log, b []byte) (Appended, []byte) {
	t.Helper()
	b = bytes.Clone(b)
	a, err := l.Append(b, header(t, b), 1)
	if err != nil {
		t.Fatalf("Append: %v", err)
	}
	return a, b
}

// readAll returns the batches from an offset to the end.
func readAll(l *Log, offset int64) ([][]byte, error) {
	var all [][]byte
	for offset < l.End() {
		b, err := l.Read(nil, offset, 1000, true)
		if err != nil {
			return all, fmt.Errorf("at offset %d: %w", offset, err)
		}
		if len(b) == 0 {
			return all, fmt.Errorf("at offset %d of %d: nothing", offset, l.End())
		}
		for len(b) > 0 {
			h, err := batch.ParseHeader(b)
			if err != nil || h.Size() > len(b) || !batch.ChecksumOK(b[:h.Size()]) {
				return all, fmt.Errorf("at offset %d: not a whole batch (%v)", offset, err)
			}
			if h.BaseOffset > offset {
				return all, fmt.Errorf("offset %d where %d should be", h.BaseOffset, offset)
			}
			all = append(all, b[:h.Size()])
			b, offset = b[h.Size():], h.LastOffset()+1
		}
	}
	return all, nil
}

// mustHave requires that the log has exactly these batches from an offset on.
func mustHave(t testing.TB, l *Log, offset int64, want [][]byte) {
	t.Helper()
	got, err := readAll(l, offset)
	if err != nil {
		t.Fatalf("read from %d: %v", offset, err)
	}
	if len(got) != len(want) {
		t.Fatalf("%d batches from %d on, want %d", len(got), offset, len(want))
	}
	for i := range want {
		if !bytes.Equal(got[i], want[i]) {
			t.Fatalf("batch %d from %d on: %x, want %x", i, offset, got[i], want[i])
		}
	}
}

package commitlog

import (
	"errors"
	"math"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/diaspora-streams/diaspora/internal/batch"
)

// TestProducerRules appends batches of a producer one after another, from a table.
func TestProducerRules(t *testing.T) {
	const wrapped = math.MaxInt32
	steps := []struct {
		name   string
		from   from
		count  int32
		err    error
		offset int64 // of a duplicate
	}{
		{"an unknown producer begins anywhere", from{1, 3, 17}, 2, nil, -1},
		{"the next", from{1, 3, 19}, 1, nil, -1},
		{"again", from{1, 3, 19}, 1, nil, 2},
		{"the one before again", from{1, 3, 17}, 2, nil, 0},
		{"a part of it is no duplicate", from{1, 3, 17}, 1, kerr.OutOfOrderSequenceNumber, -1},
		{"a gap", from{1, 3, 21}, 1, kerr.OutOfOrderSequenceNumber, -1},
		{"an older epoch", from{1, 2, 20}, 1, kerr.InvalidProducerEpoch, -1},
		{"a newer epoch begins with 0", from{1, 4, 20}, 1, kerr.OutOfOrderSequenceNumber, -1},
		{"the refused ones change nothing", from{1, 3, 20}, 1, nil, -1},
		{"a newer epoch", from{1, 4, 0}, 1, nil, -1},
		{"the older one is fenced", from{1, 3, 21}, 1, kerr.InvalidProducerEpoch, -1},
		{"and its duplicates with it", from{1, 3, 20}, 1, kerr.InvalidProducerEpoch, -1},
		{"another producer", from{2, 0, wrapped - 1}, 2, nil, -1},
		{"after the greatest number comes 0", from{2, 0, 0}, 1, nil, -1},
		{"again, with a wrap between", from{2, 0, wrapped - 1}, 2, nil, 5},
		{"a third, which wraps within a batch", from{3, 0, wrapped}, 3, nil, -1},
		{"it goes on", from{3, 0, 2}, 1, nil, -1},
		{"and again", from{3, 0, wrapped}, 3, nil, 8},
		{"without an epoch", from{4, -1, 5}, 2, nil, -1},
		{"again without one, which is found", from{4, -1, 5}, 2, nil, 12},
		{"without an epoch any number goes on", from{4, -1, 3}, 1, nil, -1},
		{"the first epoch begins anywhere", from{4, 0, 9}, 1, nil, -1},
		{"and numbers count from then on", from{4, 0, 11}, 1, kerr.OutOfOrderSequenceNumber, -1},
		{"and the time without an epoch is over", from{4, -1, 10}, 1, kerr.InvalidProducerEpoch, -1},
	}
	var ps producers
	next := int64(0)
	for _, s := range steps {
		h := batch.Header{ProducerID: s.from.id, ProducerEpoch: s.from.epoch, BaseSequence: s.from.sequence, LastOffsetDelta: s.count - 1}
		duplicate, err := ps.check(h)
		if !errors.Is(err, s.err) || (duplicate != nil) != (s.offset >= 0) || duplicate != nil && duplicate.base != s.offset {
			t.Errorf("%s: %+v, %v, want a duplicate of %d, %v", s.name, duplicate, err, s.offset, s.err)
		}
		if err == nil && duplicate == nil {
			ps.add(s.from.id, s.from.epoch, producedBatch{next, next, h.LastSequence(), h.LastOffsetDelta})
			next += int64(s.count)
		}
	}
}

// TestFiveDuplicates requires that the last five batches are known, and no more.
func TestFiveDuplicates(t *testing.T) {
	var ps producers
	header := func(n int32) batch.Header { return batch.Header{ProducerID: 1, BaseSequence: n} }
	for n := range int32(20) {
		ps.add(1, 0, producedBatch{int64(n), 0, n, 0})
		for back := range min(n+1, 8) {
			duplicate, err := ps.check(header(n - back))
			if known := back < maxSent; known != (duplicate != nil) || known != (err == nil) {
				t.Fatalf("after %d batches, the one of %d ago: %+v, %v", n+1, back, duplicate, err)
			}
		}
	}
}

// TestProducersAreBounded requires that the producers that have been idle longest are forgotten.
func TestProducersAreBounded(t *testing.T) {
	var ps producers
	for id := range int64(maxProducers + 100) {
		ps.add(id, 0, producedBatch{id, id, 0, 0})
		ps.add(5, 0, producedBatch{id, id, int32(id), 0}) // always busy
	}
	if n := len(ps.byID); n != maxProducers {
		t.Errorf("%d producers, want %d", n, maxProducers)
	}
	if ps.byID[5] == nil || ps.byID[90] != nil || ps.byID[110] == nil {
		t.Error("not those are known that were busy last")
	}
	ps.expire(maxProducers)
	if n := len(ps.byID); n != 101 { // the last hundred, and the busy one
		t.Errorf("%d producers after the others were forgotten, want 101", n)
	}
	d := decoder{b: ps.encode(nil)}
	again := d.producers()
	if d.bad || len(again.byID) != 101 || again.oldest.id != ps.oldest.id || again.newest.id != 5 || again.newest.count != maxSent {
		t.Errorf("%d producers after encoding, bad %v", len(again.byID), d.bad)
	}
}

// TestEpochs checks which offsets have which epoch, and the answers about truncation.
func TestEpochs(t *testing.T) {
	l := mustOpen(t, Options{FS: modelDir()})
	if found, end := l.EndOffsetForEpoch(0); found != -1 || end != -1 {
		t.Errorf("EndOffsetForEpoch of a new log: %d, %d, want -1, -1", found, end)
	}
	for _, epoch := range []int32{2, 2, 5, 5, 5, 9} {
		b := plain(0, 10)
		if _, err := l.Append(b, header(t, b), epoch); err != nil {
			t.Fatal(err)
		}
	}
	l.AssignEpoch(11)
	l.AssignEpoch(12) // 11 had no records
	check := func(cases [][3]int64) {
		t.Helper()
		for _, c := range cases {
			if found, end := l.EndOffsetForEpoch(int32(c[0])); int64(found) != c[1] || end != c[2] {
				t.Errorf("EndOffsetForEpoch(%d): %d, %d, want %d, %d", c[0], found, end, c[1], c[2])
			}
		}
	}
	check([][3]int64{{-1, -1, -1}, {0, 0, 0}, {1, 1, 0}, {2, 2, 2}, {3, 2, 2}, {5, 5, 5}, {8, 5, 5}, {9, 9, 6}, {11, 9, 6}, {12, 12, 6}, {13, -1, -1}})
	for offset, want := range []int32{2, 2, 5, 5, 5, 9, 12} {
		if epoch := l.EpochOf(int64(offset)); epoch != want {
			t.Errorf("EpochOf(%d) = %d, want %d", offset, epoch, want)
		}
	}
	if _, err := l.DeleteRecords(4); err != nil {
		t.Fatal(err)
	}
	check([][3]int64{{2, 2, 4}, {4, 4, 4}, {5, 5, 5}, {9, 9, 6}})
	if l.Epoch() != 12 {
		t.Errorf("Epoch is %d, want 12", l.Epoch())
	}
	var es epochs
	for n := range int32(3000) {
		es.assign(n, int64(n))
	}
	if len(es) != maxEpochs || es[0].epoch != 2000 {
		t.Errorf("%d epochs from %d on, want the last %d", len(es), es[0].epoch, maxEpochs)
	}
}

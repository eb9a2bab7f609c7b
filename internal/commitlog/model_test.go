package commitlog

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"pgregory.net/rapid"

	"github.com/diaspora-streams/diaspora/internal/batch"
	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestModel compares the log with a list of batches. After random appends, removals, stops and
// kills it has the same batches at the same offsets. Its start and end never decrease, and
// everything that has not expired is there.
func TestModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		t.Repeat(map[string]func(*rapid.T){
			"append":       m.append,
			"append again": m.appendAgain,
			"append more":  func(t *rapid.T) { m.append(t); m.append(t); m.append(t) },
			"read":         m.read,
			"time":         m.time,
			"pass":         m.pass,
			"expire":       m.expire,
			"delete":       m.delete,
			"maintain":     m.maintain,
			"stop":         func(t *rapid.T) { m.reopen(t, true) },
			"kill":         func(t *rapid.T) { m.reopen(t, false) },
			"":             m.check,
		})
		m.log.Close()
	})
}

// model is the expected state of a log.
type model struct {
	fsys    disk.FS
	options Options
	clock   *testkit.Clock
	log     *Log
	batches []stored // all that were appended and are not known to be removed
	start   int64
	end     int64
	last    int64 // time of the last batch
	epoch   int32
	next    map[int64]from // what each producer sends next
	sent    []stored       // batches of producers, in order
}

type stored struct {
	batch.Header
	from   from
	values []string
	bytes  []byte
}

func newModel(t *rapid.T) *model {
	m := &model{fsys: disk.Memory(), clock: newClock(), next: map[int64]from{}}
	m.options = Options{
		FS:           m.fsys.Sub("t-0"),
		SegmentBytes: rapid.SampledFrom([]int64{300, 1000, 5000}).Draw(t, "segment bytes"),
		Sync:         rapid.Bool().Draw(t, "sync"),
		Now:          m.clock.Now,
	}
	m.open(t)
	return m
}

func (m *model) open(t *rapid.T) {
	var err error
	if m.log, err = Open(m.options); err != nil {
		t.Fatalf("Open: %v", err)
	}
	m.epoch++
	m.log.AssignEpoch(m.epoch)
}

func (m *model) reopen(t *rapid.T, clean bool) {
	if clean {
		if err := m.log.Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
	} else {
		m.log.tasks.Wait() // a killed process would not continue its tasks either
	}
	m.open(t)
}

func (m *model) append(t *rapid.T) {
	values := make([]string, rapid.IntRange(1, 4).Draw(t, "records"))
	for i := range values {
		values[i] = strings.Repeat("v", rapid.IntRange(0, 120).Draw(t, "bytes"))
	}
	p := nobody
	if id := rapid.Int64Range(-1, 2).Draw(t, "producer"); id >= 0 {
		p = m.next[id]
		p.id = id
		switch rapid.IntRange(0, 9).Draw(t, "sequence") {
		case 0:
			p.epoch++
			p.sequence = 0
		case 1:
			m.refuse(t, from{id, p.epoch, p.sequence + 1}, kerr.OutOfOrderSequenceNumber)
			return
		case 2:
			m.refuse(t, from{id, p.epoch - 1, p.sequence}, kerr.InvalidProducerEpoch)
			return
		}
		m.next[id] = from{id, p.epoch, p.sequence + int32(len(values))}
	}
	b := newBatch(p, values...)
	h, _ := batch.ParseHeader(b)
	got, err := m.log.Append(b, h, m.epoch)
	m.last = max(m.last, m.clock.Now().UnixMilli())
	if want := (Appended{m.end, m.last, false}); err != nil || got != want {
		t.Fatalf("Append: %+v, %v, want %+v", got, err, want)
	}
	s := stored{from: p, values: values, bytes: b}
	s.Header, _ = batch.ParseHeader(b)
	if !batch.ChecksumOK(b) || s.BaseOffset != m.end || s.MaxTimestamp != m.last || !s.LogAppendTime() || s.LeaderEpoch != m.epoch {
		t.Fatalf("stamped %+v, want offset %d, time %d, epoch %d", s.Header, m.end, m.last, m.epoch)
	}
	m.batches = append(m.batches, s)
	m.end += int64(len(values))
	if p.id >= 0 {
		m.sent = append(m.sent, s)
	}
}

// refuse appends what a known producer may not append.
func (m *model) refuse(t *rapid.T, p from, want error) {
	known := slices.ContainsFunc(m.log.Producers(), func(k Producer) bool { return k.ID == p.id })
	if !known {
		return // from an unknown producer everything is accepted
	}
	b := newBatch(p, "refused")
	h, _ := batch.ParseHeader(b)
	if _, err := m.log.Append(b, h, m.epoch); !errors.Is(err, want) {
		t.Fatalf("Append of %+v: %v, want %v", p, err, want)
	}
}

// appendAgain sends one of a producer's last batches again.
func (m *model) appendAgain(t *rapid.T) {
	id := rapid.Int64Range(0, 2).Draw(t, "producer")
	var mine []stored
	for _, s := range m.sent {
		if s.from.id == id && s.from.epoch == m.next[id].epoch {
			mine = append(mine, s)
		}
	}
	mine = mine[max(0, len(mine)-maxSent):]
	if len(mine) == 0 {
		return
	}
	s := rapid.SampledFrom(mine).Draw(t, "batch")
	b := newBatch(s.from, s.values...)
	h, _ := batch.ParseHeader(b)
	got, err := m.log.Append(b, h, m.epoch)
	if want := (Appended{s.BaseOffset, s.MaxTimestamp, true}); err != nil || got != want {
		t.Fatalf("Append again: %+v, %v, want %+v", got, err, want)
	}
}

func (m *model) read(t *rapid.T) {
	offset := rapid.Int64Range(m.start, m.end).Draw(t, "offset")
	most := rapid.IntRange(0, 3000).Draw(t, "most")
	least := rapid.Bool().Draw(t, "at least one")
	var want []byte
	for _, s := range m.batches {
		if s.LastOffset() < offset {
			continue
		}
		if len(want)+len(s.bytes) > most && !(least && len(want) == 0) {
			break
		}
		want = append(want, s.bytes...)
	}
	got, err := m.log.Read(make([]byte, 7), offset, most, least)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("Read(%d, %d, %v): %d bytes, %v, want %d", offset, most, least, len(got), err, len(want))
	}
}

func (m *model) time(t *rapid.T) {
	at := m.last + rapid.Int64Range(-20_000, 10).Draw(t, "time")
	offset, timestamp, epoch, err := m.log.OffsetForTime(at)
	want := [3]int64{-1, -1, -1}
	for _, s := range m.batches {
		if s.MaxTimestamp >= at && s.LastOffset() >= m.start {
			want = [3]int64{max(s.BaseOffset, m.start), s.MaxTimestamp, int64(s.LeaderEpoch)}
			break
		}
	}
	if got := [3]int64{offset, timestamp, int64(epoch)}; err != nil || got != want {
		t.Fatalf("OffsetForTime(%d): %v, %v, want %v", at, got, err, want)
	}
	want = [3]int64{-1, -1, -1}
	for _, s := range m.batches {
		if s.LastOffset() >= m.start && s.MaxTimestamp > want[1] {
			want = [3]int64{max(s.BaseOffset, m.start), s.MaxTimestamp, int64(s.LeaderEpoch)}
		}
	}
	offset, timestamp, epoch, err = m.log.MaxTimestamp()
	if got := [3]int64{offset, timestamp, int64(epoch)}; err != nil || got != want {
		t.Fatalf("MaxTimestamp: %v, %v, want %v", got, err, want)
	}
}

// pass advances the clock, or sometimes sets it back.
func (m *model) pass(t *rapid.T) {
	m.clock.Add(time.Duration(rapid.IntRange(-1000, 10_000).Draw(t, "ms")) * time.Millisecond)
}

func (m *model) expire(t *rapid.T) {
	keep, most := time.Duration(-1), int64(-1)
	if rapid.Bool().Draw(t, "by time") {
		keep = time.Duration(rapid.IntRange(0, 30_000).Draw(t, "keep ms")) * time.Millisecond
	} else {
		most = rapid.Int64Range(0, 5000).Draw(t, "most")
	}
	if err := m.log.Expire(keep, most); err != nil {
		t.Fatalf("Expire: %v", err)
	}
	start := m.log.Start()
	if start < m.start || start > m.end {
		t.Fatalf("Expire(%v, %d) moved the start from %d to %d; the end is %d", keep, most, m.start, start, m.end)
	}
	left := int64(0)
	for _, s := range m.batches {
		if s.LastOffset() >= start {
			left += int64(len(s.bytes))
		}
	}
	for _, s := range m.batches {
		removed := s.LastOffset() < start && s.LastOffset() >= m.start
		if removed && keep >= 0 && m.clock.Now().UnixMilli()-s.MaxTimestamp <= keep.Milliseconds() {
			t.Fatalf("Expire(%v) removed offset %d, which is younger", keep, s.BaseOffset)
		}
		if removed && most >= 0 && left < most {
			t.Fatalf("Expire(-1, %d) left %d bytes", most, left)
		}
	}
	// In what is left, the last batch of the first segment has not expired.
	if keep >= 0 && start < m.end && m.clock.Now().UnixMilli()-m.last > keep.Milliseconds() {
		t.Fatalf("Expire(%v) left offset %d, though all are older", keep, start)
	}
	m.start = start
	m.forget()
}

func (m *model) delete(t *rapid.T) {
	before := rapid.Int64Range(-1, m.end+1).Draw(t, "before")
	got, err := m.log.DeleteRecords(before)
	switch {
	case before > m.end:
		if !errors.Is(err, ErrOutOfRange) {
			t.Fatalf("DeleteRecords(%d): %v, want ErrOutOfRange", before, err)
		}
		return
	case before == -1:
		m.start = m.end
	default:
		m.start = max(m.start, before)
	}
	if err != nil || got != m.start {
		t.Fatalf("DeleteRecords(%d): %d, %v, want %d", before, got, err, m.start)
	}
	m.forget()
}

// forget drops the batches that are removed.
func (m *model) forget() {
	m.batches = slices.DeleteFunc(m.batches, func(s stored) bool { return s.LastOffset() < m.start })
}

func (m *model) maintain(t *rapid.T) {
	if err := m.log.Maintain(); err != nil {
		t.Fatalf("Maintain: %v", err)
	}
	before := m.clock.Now().Add(-producerRetention).UnixMilli()
	for _, s := range m.sent {
		if s.MaxTimestamp < before {
			t.Fatalf("the test does not go on for a day")
		}
	}
}

// check is called after each step.
func (m *model) check(t *rapid.T) {
	if start, end := m.log.Start(), m.log.End(); start != m.start || end != m.end {
		t.Fatalf("it is %d to %d, want %d to %d", start, end, m.start, m.end)
	}
	got, err := readAll(m.log, m.start)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(m.batches) {
		t.Fatalf("%d batches, want %d", len(got), len(m.batches))
	}
	for i, s := range m.batches {
		if !bytes.Equal(got[i], s.bytes) {
			t.Fatalf("batch %d is %x, want %x", i, got[i], s.bytes)
		}
		if epoch := m.log.EpochOf(s.LastOffset()); epoch != s.LeaderEpoch {
			t.Fatalf("EpochOf(%d) = %d, want %d", s.LastOffset(), epoch, s.LeaderEpoch)
		}
	}
	if _, err := m.log.Read(nil, m.end+1, 1, true); !errors.Is(err, ErrOutOfRange) {
		t.Fatalf("Read behind the end: %v, want ErrOutOfRange", err)
	}
	if m.start > 0 {
		if _, err := m.log.Read(nil, m.start-1, 1, true); !errors.Is(err, ErrOutOfRange) {
			t.Fatalf("Read before the start: %v, want ErrOutOfRange", err)
		}
	}
	names := 0
	infos, err := m.options.FS.List()
	for _, info := range infos {
		if _, kind, ok := parseName(info.Name()); ok && kind == "log" {
			names++
		}
	}
	if want := len(m.log.segments); err == nil && names != want && m.end > 0 {
		t.Fatalf("%d segment files, want %d", names, want)
	}
	if found, end := m.log.EndOffsetForEpoch(m.epoch); found != m.epoch || end != m.end {
		t.Fatalf("EndOffsetForEpoch(%d) = %d, %d, want the end %d", m.epoch, found, end, m.end)
	}
}

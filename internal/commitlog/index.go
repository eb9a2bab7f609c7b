package commitlog

import (
	"errors"
	"io/fs"
	"sort"

	"github.com/diaspora-streams/diaspora/internal/batch"
	"github.com/diaspora-streams/diaspora/internal/disk"
)

// index holds the positions of some of the batches of a segment: of the first one, and then of the
// first one after each interval of bytes. A segment has 1,024 intervals, so an index has at most 24
// KiB, whatever the number of batches.
//
// The file of an index only saves time. Its entries are checked against the batches. If it is
// missing, damaged or incomplete, the rest of the segment is scanned.
type index struct {
	interval int64
	entries  []entry
	covered  int64 // the segment is indexed up to this byte
	next     int64 // the offset of the batch at position covered
	maxTime  int64 // greatest timestamp of the batches before covered
	saved    int64 // value of covered in the file
}

// entry is one batch of an index.
type entry struct {
	offset  int64
	pos     int64
	maxTime int64 // greatest timestamp of all batches of the segment before this one; -1 if there are none
}

const (
	intervalsPerSegment = 1024
	minInterval         = 128
	maxInterval         = 64 << 10
)

func (l *Log) newIndex(base int64) index {
	interval := min(max(l.segmentBytes.Load()/intervalsPerSegment, minInterval), maxInterval)
	return index{interval: interval, next: base, maxTime: -1}
}

// add adds the next batch of the segment.
func (x *index) add(h batch.Header, pos int64) {
	n := len(x.entries)
	if n == 0 || pos-x.entries[n-1].pos >= x.interval {
		x.entries = append(x.entries, entry{h.BaseOffset, pos, x.maxTime})
	}
	x.covered = pos + int64(h.Size())
	x.next = h.LastOffset() + 1
	x.maxTime = max(x.maxTime, h.MaxTimestamp)
}

// before returns the last entry for which beyond is false. If there is none, it returns the first
// entry, or the start of an empty segment. beyond must be false for all entries up to some point
// and true for all others.
func (x *index) before(beyond func(entry) bool) entry {
	n := sort.Search(len(x.entries), func(i int) bool { return beyond(x.entries[i]) })
	if n == 0 {
		return x.first()
	}
	return x.entries[n-1]
}

func (x *index) first() entry {
	if len(x.entries) == 0 {
		return entry{x.next, x.covered, -1}
	}
	return x.entries[0]
}

// Format of an index file:
//
//	magic     8 bytes
//	interval  8, little-endian like all numbers
//	covered   8
//	next      8
//	maxTime   8
//	entries   24 each: offset, position, maxTime
//	checksum  4  CRC32C of everything before it
const (
	indexMagic       = "DSPIDX\r\n"
	indexHeaderBytes = 40
	entryBytes       = 24
	maxIndexBytes    = 16 << 20
)

var errIndex = errors.New("the index is damaged")

func (x *index) encode() []byte {
	b := make([]byte, 0, indexHeaderBytes+entryBytes*len(x.entries)+4)
	b = append(b, indexMagic...)
	b = appendInts(b, x.interval, x.covered, x.next, x.maxTime)
	for _, e := range x.entries {
		b = appendInts(b, e.offset, e.pos, e.maxTime)
	}
	return appendChecksum(b)
}

// parseIndex decodes the index of a segment with the base offset base.
func parseIndex(b []byte, base int64) (x index, err error) {
	d := decoder{b: b}
	if !d.sealed(indexMagic) {
		return x, errIndex
	}
	x = index{interval: d.int64(), covered: d.int64(), next: d.int64(), maxTime: d.int64()}
	if len(d.b)%entryBytes != 0 {
		return x, errIndex
	}
	x.saved = x.covered
	x.entries = make([]entry, len(d.b)/entryBytes)
	last := entry{base - 1, -1, -1}
	for i := range x.entries {
		e := entry{d.int64(), d.int64(), d.int64()}
		if i == 0 && (e.offset != base || e.pos != 0) || e.offset <= last.offset || e.pos <= last.pos || e.maxTime < last.maxTime {
			return x, errIndex
		}
		x.entries[i], last = e, e
	}
	// An empty index is never written.
	if len(x.entries) == 0 || x.covered <= last.pos || x.next <= last.offset || x.maxTime < last.maxTime || x.interval <= 0 {
		return x, errIndex
	}
	return x, nil
}

// readIndex returns the index that is on disk for a segment of the given size, or an empty one.
func (l *Log) readIndex(base, size int64) index {
	if size == 0 {
		return l.newIndex(base)
	}
	b, err := disk.ReadFile(l.fs, indexName(base), maxIndexBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return l.newIndex(base)
	}
	x := index{}
	if err == nil {
		x, err = parseIndex(b, base)
	}
	if err == nil && x.covered > size {
		err = errIndex
	}
	if err != nil {
		l.diag.Warn("cannot use an index; scanning its segment", "file", indexName(base), "err", err)
		return l.newIndex(base)
	}
	return x
}

// writeIndex saves an index. A failure only costs time later.
func (l *Log) writeIndex(base int64, x *index) {
	if len(x.entries) == 0 || x.saved == x.covered {
		return
	}
	if err := disk.Replace(l.fs, indexName(base), x.encode(), false); err != nil {
		l.diag.Warn("cannot write an index", "file", indexName(base), "err", err)
	}
}

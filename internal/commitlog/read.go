package commitlog

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"slices"
	"sort"

	"github.com/diaspora-streams/diaspora/internal/batch"
)

// Read returns whole batches as they are stored, starting with the one that contains offset. It
// returns at most maxBytes. With atLeastOne it returns the first batch whatever its size. The first
// batch may begin before offset, and before Start. At End, Read returns nothing.
//
// It appends to buf[:0] and only allocates if buf is too small. It fails with ErrOutOfRange if
// offset is not between Start and End, and with ErrDamaged if the first batch is missing or differs
// from what was written. If a later batch is damaged, Read returns those before it.
func (l *Log) Read(buf []byte, offset int64, maxBytes int, atLeastOne bool) ([]byte, error) {
	r := reading{Log: l, out: buf[:0], offset: offset, maxBytes: maxBytes, atLeastOne: atLeastOne}
	for more := true; more; {
		var err error
		if more, err = r.readSegment(); err != nil && len(r.out) == 0 {
			return nil, fmt.Errorf("read: %w", err)
		}
	}
	return r.out, nil
}

// reading is a call of Read in progress.
type reading struct {
	*Log
	out        []byte
	offset     int64 // the offset after the batches in out
	maxBytes   int
	atLeastOne bool
}

func (r *reading) missing() error {
	return fmt.Errorf("%w: offset %d is missing", ErrDamaged, r.offset)
}

// batchPosition is an offset, and the position of its batch in a segment.
type batchPosition struct{ offset, pos int64 }

// readSegment reads from one segment. It reports whether to continue with the next one.
func (r *reading) readSegment() (more bool, err error) {
	g, limit, err := r.find(r.offset)
	if g == nil {
		return false, err
	}
	o, err := r.openAcquired(g)
	if err != nil {
		return false, err
	}
	defer r.release(g)
	at, err := r.locate(g, o, limit)
	if err == nil && at >= limit {
		err = r.missing()
	}
	if err != nil {
		return false, r.reportDamage(g, err)
	}
	if at < o.trusted {
		limit = min(limit, o.trusted) // a part is either checked completely or not at all
	}
	before := len(r.out)
	b, err := r.readBytes(o, at, limit)
	if err != nil {
		r.out = r.out[:before]
		return false, r.reportDamage(g, err)
	}
	var n int
	var next int64
	if at < o.trusted {
		n, next, err = r.check(b, limit-at)
	} else {
		n, next = r.skipBatches(b, o, at)
	}
	r.out = r.out[:before+n]
	if err != nil {
		r.reportDamage(g, fmt.Errorf("at byte %d: %w", at+int64(n), err))
	}
	if n == 0 {
		return false, err
	}
	r.offset = next
	r.mu.Lock()
	r.marks.set(g, batchPosition{next, at + int64(n)})
	r.mu.Unlock()
	return at+int64(n) == limit, nil
}

// find returns the segment that contains an offset, and the position up to which it may be read. It
// counts the caller as a user of the segment. At End it returns no segment.
func (l *Log) find(offset int64) (g *segment, limit int64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return nil, 0, ErrClosed
	case offset < l.start || offset > l.end:
		return nil, 0, fmt.Errorf("%w: %d is not in %d to %d", ErrOutOfRange, offset, l.start, l.end)
	case offset == l.end:
		return nil, 0, nil
	}
	i := sort.Search(len(l.segments), func(i int) bool { return l.segments[i].end > offset })
	g = l.segments[i]
	g.users++
	if g == l.active() {
		return g, l.endPos, nil
	}
	return g, g.size, nil
}

// locate returns the position of the batch that contains r.offset.
func (r *reading) locate(g *segment, o *openSegment, limit int64) (int64, error) {
	r.mu.Lock()
	pos, known := r.marks.get(g, r.offset)
	near := o.index.before(func(e entry) bool { return e.offset > r.offset })
	r.mu.Unlock()
	switch {
	case known:
		return pos, nil
	case near.offset == r.offset:
		return near.pos, nil
	}
	s := newScanner(o.file, near.pos, limit, near.offset)
	defer s.free()
	s.skipChecksums, s.chunk = true, int(o.index.interval)
	for {
		h, at, err := s.next()
		switch {
		case err == io.EOF:
			return 0, r.missing()
		case err != nil:
			return 0, err
		case h.LastOffset() >= r.offset:
			return at, nil
		}
	}
}

// readBytes reads up to the allowed number of bytes from position at. It appends them to out, and
// returns them.
func (r *reading) readBytes(o *openSegment, at, limit int64) ([]byte, error) {
	before := len(r.out)
	least := r.atLeastOne && before == 0
	bytes := r.maxBytes - before
	if least {
		bytes = max(bytes, batch.HeaderBytes)
	}
	if bytes < batch.HeaderBytes {
		return nil, nil
	}
	for {
		n := int(min(int64(bytes), limit-at))
		r.out = slices.Grow(r.out, n)[:before+n]
		b := r.out[before:]
		if err := readFull(o.file, b, at); err != nil {
			return nil, err
		}
		size := sizeOf(b)
		if !least || size <= n || int64(size) > limit-at {
			return b, nil
		}
		bytes = size
	}
}

// skipBatches finds the whole batches in bytes that this process wrote itself. b begins at position
// at of the segment. It returns their total size, and the offset after them.
func (r *reading) skipBatches(b []byte, o *openSegment, at int64) (n int, next int64) {
	r.mu.Lock()
	last := o.index.before(func(e entry) bool { return e.pos > at+int64(len(b)) })
	r.mu.Unlock()
	if last.pos > at { // start there
		n, next = int(last.pos-at), last.offset
	}
	for at := n; ; {
		size := sizeOf(b[n:])
		if size > len(b)-n {
			if n > at {
				h, _ := batch.ParseHeader(b[at:])
				next = h.LastOffset() + 1
			}
			return n, next
		}
		at, n = n, n+size
	}
}

// check is like skipBatches for bytes that may be damaged. The first batch must contain r.offset.
// space is the number of bytes that are left in the segment. err describes what is wrong with the
// batch after those that are counted in n.
func (r *reading) check(b []byte, space int64) (n int, next int64, err error) {
	next = r.offset
	epoch, until := int32(-1), int64(-1)
	for {
		rest := b[n:]
		if len(rest) < batch.HeaderBytes && (len(rest) == 0 || int64(n+len(rest)) < space) {
			return n, next, nil // the batch was not read completely
		}
		if n == 0 && len(rest) >= batch.HeaderBytes { // r.offset may be within the batch
			next = min(next, int64(binary.BigEndian.Uint64(rest)))
		}
		h, err := checkHeader(rest, next, space-int64(n))
		size := h.Size()
		switch {
		case err != nil:
			return n, next, err
		case n == 0 && h.LastOffset() < r.offset:
			return n, next, r.missing()
		case size > len(rest):
			return n, next, nil
		case !batch.ChecksumOK(rest[:size]):
			return n, next, fmt.Errorf("%w: wrong checksum", ErrDamaged)
		}
		if h.LastOffset() >= until {
			r.mu.Lock()
			epoch, until = r.epochs.rangeOf(h.LastOffset())
			r.mu.Unlock()
		}
		if epoch >= 0 && h.LeaderEpoch != epoch { // no checksum covers the epoch
			return n, next, fmt.Errorf("%w: leader epoch %d where %d should be", ErrDamaged, h.LeaderEpoch, epoch)
		}
		n, next = n+size, h.LastOffset()+1
	}
}

// sizeOf returns the size of the batch at the start of b, or math.MaxInt if b does not start with
// the header of a batch.
func sizeOf(b []byte) int {
	if len(b) < batch.HeaderBytes {
		return math.MaxInt
	}
	size := int(int32(binary.BigEndian.Uint32(b[lengthAt:]))) + lengthAt + 4
	if size < batch.HeaderBytes {
		return math.MaxInt
	}
	return size
}

// lengthAt is the position of a batch's length field, which holds the number of bytes after that
// field.
const lengthAt = 8

// readPositions remember where the last reads ended. Most reads continue where an earlier one
// ended, and then do not have to search for the position.
type readPositions struct {
	all    [8]readPosition
	oldest int
}

type readPosition struct {
	segment *segment
	batchPosition
}

func (m *readPositions) get(g *segment, offset int64) (pos int64, ok bool) {
	for i := range m.all {
		if m.all[i].segment == g && m.all[i].offset == offset {
			return m.all[i].pos, true
		}
	}
	return 0, false
}

func (m *readPositions) set(g *segment, p batchPosition) {
	if _, ok := m.get(g, p.offset); !ok {
		m.all[m.oldest] = readPosition{g, p}
		m.oldest = (m.oldest + 1) % len(m.all)
	}
}

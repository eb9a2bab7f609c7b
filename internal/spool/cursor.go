package spool

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

// The cursor says which entries need not be sent any more. It is stored in two places.
//
// The files cursor-0 and cursor-1 are durable. The spool replaces them in turn: it writes a
// temporary file, syncs it and renames it. It removes a segment only when a durable cursor lies
// behind all of the segment's entries.
//
// The file acked has two slots, which are overwritten in turn at each Ack and never synced. It
// survives the death of the process, so a killed process causes no repeats. A power cut may lose
// it.
//
// Every cursor that can be read is true, because an acknowledgement is never taken back. So Open
// uses the union of all of them.
const (
	cursorMagic = "DSPCUR\r\n"
	ackedName   = "acked"
	ackedSlot   = 4096
	cursorTemp  = "cursor.tmp"
	cursorFixed = 8 + 4 + 4 + 16 + 7*8 + 1 + 4 + 4 // without subject and spans
	maxCursor   = cursorFixed + maxSubjectBytes + (maxHoles*2+1)*binary.MaxVarintLen64
)

func cursorName(slot uint64) string { return fmt.Sprintf("cursor-%d", slot%2) }

var le = binary.LittleEndian // byte order of all numbers on disk

type cursor struct {
	spool      uuid
	generation uint64
	end        uint64 // all entries below it were synced, so one that is missing was lost
	counts     counts
	subject    string
	done       spans
}

// counts are totals over the spool's whole life.
type counts struct {
	acknowledged, dropped, quarantined, damaged uint64
	discarded                                   uint64 // by [Spool.Discard]; earlier versions counted these as dropped
}

// encode returns the encoded c. It leaves out the last spans if all of them exceed limit bytes.
func (c *cursor) encode(limit int) []byte {
	b := make([]byte, 0, 512)
	b = append(b, cursorMagic...)
	b = le.AppendUint32(b, version)
	b = le.AppendUint32(b, 0) // the length, below
	b = append(b, c.spool[:]...)
	for _, n := range []uint64{c.generation, c.end, c.counts.acknowledged, c.counts.dropped, c.counts.quarantined, c.counts.damaged, c.done.low} {
		b = le.AppendUint64(b, n)
	}
	b = append(b, byte(len(c.subject)))
	b = append(b, c.subject...)
	count := len(b)
	b = le.AppendUint32(b, 0) // the number of spans, below
	n, last := uint32(0), c.done.low
	for _, s := range c.done.above {
		if len(b)+3*binary.MaxVarintLen64+4 > limit {
			break
		}
		b = binary.AppendUvarint(b, s.from-last)
		b = binary.AppendUvarint(b, s.to-s.from)
		last = s.to
		n++
	}
	// Only if needed, because earlier versions cannot read a cursor with this field.
	if c.counts.discarded > 0 {
		b = binary.AppendUvarint(b, c.counts.discarded)
	}
	le.PutUint32(b[count:], n)
	le.PutUint32(b[12:], uint32(len(b)+4))
	return le.AppendUint32(b, checksum(0, b))
}

var errCursor = errors.New("the cursor is damaged")

// parseCursor decodes the cursor at the start of b.
func parseCursor(b []byte) (cursor, error) {
	var c cursor
	if len(b) < cursorFixed || string(b[:8]) != cursorMagic {
		return c, errCursor
	}
	size := int64(le.Uint32(b[12:]))
	if size < cursorFixed || size > int64(len(b)) || checksum(0, b[:size-4]) != le.Uint32(b[size-4:size]) {
		return c, errCursor
	}
	if v := le.Uint32(b[8:]); v != version {
		return c, fmt.Errorf("%w: the cursor has version %d, this software supports %d", ErrVersion, v, version)
	}
	c.spool = uuid(b[16:32])
	for i, n := range []*uint64{&c.generation, &c.end, &c.counts.acknowledged, &c.counts.dropped, &c.counts.quarantined, &c.counts.damaged, &c.done.low} {
		*n = le.Uint64(b[32+8*i:])
	}
	p := parser{rest: b[32+7*8 : size-4]}
	if length := p.bytes(1); !p.bad {
		c.subject = string(p.bytes(uint64(length[0])))
	}
	count := p.bytes(4)
	if p.bad {
		return cursor{}, errCursor
	}
	last := c.done.low
	for range le.Uint32(count) {
		from := last + p.uvarint()
		to := from + p.uvarint()
		if p.bad || from <= last || to <= from {
			return cursor{}, errCursor
		}
		c.done.above = append(c.done.above, span{from, to})
		last = to
	}
	if len(p.rest) > 0 {
		c.counts.discarded = p.uvarint()
	}
	if p.bad || len(p.rest) > 0 {
		return cursor{}, errCursor
	}
	return c, nil
}

// readCursor returns the union of the spool's cursors. If none can be read it returns the zero
// cursor; then all entries in the spool are sent, or sent again.
func readCursor(fsys FS, names map[string]bool) (cursor, error) {
	var found []cursor
	for _, name := range []string{cursorName(0), cursorName(1), ackedName} {
		if !names[name] {
			continue
		}
		content, err := disk.ReadFile(fsys, name, maxCursor)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return cursor{}, fmt.Errorf("read %s: %w", name, err)
		}
		parts := [][]byte{content}
		if name == ackedName && len(content) > ackedSlot {
			parts = [][]byte{content[:ackedSlot], content[ackedSlot:]}
		}
		for _, part := range parts {
			c, err := parseCursor(part)
			if errors.Is(err, ErrVersion) {
				return cursor{}, err
			}
			if err == nil {
				found = append(found, c)
			}
		}
	}
	if len(found) == 0 {
		return cursor{}, nil
	}
	newest := slices.MaxFunc(found, func(a, b cursor) int { return cmp.Compare(a.generation, b.generation) })
	for _, c := range found {
		if c.spool != newest.spool {
			continue // left over from another spool
		}
		newest.end = max(newest.end, c.end)
		newest.done.add(0, c.done.low)
		for _, s := range c.done.above {
			newest.done.add(s.from, s.to)
		}
	}
	return newest, nil
}

// spans is a set of positions: all positions below low, and the spans in above, which are sorted
// and neither overlap nor touch.
type spans struct {
	low   uint64
	above []span
}

type span struct{ from, to uint64 }

// add adds [from, to) to the set and returns how many of these positions are new.
func (s *spans) add(from, to uint64) uint64 {
	from = max(from, s.low)
	if to <= from {
		return 0
	}
	// The spans [i, j) overlap or touch the new one.
	i, _ := slices.BinarySearchFunc(s.above, from, func(e span, at uint64) int {
		if e.to < at {
			return -1
		}
		return 1
	})
	added := to - from
	j := i
	for ; j < len(s.above) && s.above[j].from <= to; j++ {
		e := s.above[j]
		if overlap := int64(min(to, e.to)) - int64(max(from, e.from)); overlap > 0 {
			added -= uint64(overlap)
		}
	}
	if j > i {
		from, to = min(from, s.above[i].from), max(to, s.above[j-1].to)
	}
	if from == s.low {
		s.low = to
		s.above = slices.Delete(s.above, 0, j)
		return added
	}
	s.above = slices.Replace(s.above, i, j, span{from, to})
	return added
}

// has reports whether the position is in the set.
func (s *spans) has(at uint64) bool {
	if at < s.low {
		return true
	}
	_, ok := slices.BinarySearchFunc(s.above, at, func(e span, at uint64) int {
		switch {
		case e.to <= at:
			return -1
		case e.from > at:
			return 1
		}
		return 0
	})
	return ok
}

// end returns the end of the highest span.
func (s *spans) end() uint64 {
	if n := len(s.above); n > 0 {
		return s.above[n-1].to
	}
	return s.low
}

// count returns how many positions at or above low are in the set.
func (s *spans) count() (n uint64) {
	for _, e := range s.above {
		n += e.to - e.from
	}
	return n
}

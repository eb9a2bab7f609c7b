package commitlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

const (
	checkpointName     = "checkpoint"
	checkpointMagic    = "DSPLOG\r\n"
	checkpointVersion  = 1
	maxCheckpointBytes = 64 << 20
)

var errCheckpoint = errors.New("the checkpoint is damaged")

// checkpoint is what a start has to know. On disk it is
//
//	magic      8 bytes
//	version    8, little-endian as all numbers
//	start      8
//	clock      8
//	segments   8, their number, and for each: base, end, size, first, last, maxTime, 8 each
//	epochs     8, their number, and for each: epoch, offset, 8 each
//	producers  8, their number, and for each: see producers.encode
//	checksum   4  CRC32C of all before it
//
// The end of its last segment is the recovery point: all before it is on disk, and all in the
// checkpoint is as it was when the log ended there.
type checkpoint struct {
	start     int64
	clock     int64
	segments  []*segment
	epochs    epochs
	producers producers
}

func (c *checkpoint) encode() []byte {
	b := appendInts([]byte(checkpointMagic), checkpointVersion, c.start, c.clock, int64(len(c.segments)))
	for _, g := range c.segments {
		b = appendInts(b, g.base, g.end, g.size, g.first, g.last, g.maxTime)
	}
	b = c.producers.encode(c.epochs.encode(b))
	return appendChecksum(b)
}

func parseCheckpoint(b []byte) (*checkpoint, error) {
	d := decoder{b: b}
	if !d.sealed(checkpointMagic) {
		return nil, errCheckpoint
	}
	if v := d.int64(); v != checkpointVersion {
		return nil, fmt.Errorf("%w: the checkpoint has version %d, this one knows %d", ErrVersion, v, checkpointVersion)
	}
	c := &checkpoint{start: d.int64(), clock: d.int64()}
	for i := range d.count(6 * 8) {
		g := &segment{base: d.int64(), end: d.int64(), size: d.int64(), first: d.int64(), last: d.int64(), maxTime: d.int64()}
		if g.base < 0 || g.end < g.base || g.size < 0 {
			return nil, errCheckpoint
		}
		if i > 0 && (g.base != c.segments[i-1].end || g.base == c.segments[i-1].base) {
			return nil, errCheckpoint
		}
		g.made, g.named, g.synced = g.size > 0, g.size > 0, g.size // an empty one may have no file yet
		c.segments = append(c.segments, g)
	}
	c.epochs = d.epochs()
	c.producers = d.producers()
	if d.bad || len(d.b) > 0 || len(c.segments) == 0 {
		return nil, errCheckpoint
	}
	last := c.segments[len(c.segments)-1]
	if c.start < c.segments[0].base || c.start > last.end || (last.size == 0) != (last.end == last.base) {
		return nil, errCheckpoint
	}
	return c, nil
}

// save makes all that was appended so far durable and moves the recovery point behind it.
func (l *Log) save() error {
	l.maintaining.Lock()
	defer l.maintaining.Unlock()
	l.mu.Lock()
	start := l.start
	l.mu.Unlock()
	_, err := l.saveFrom(start)
	return err
}

// saveSoon saves in the background, unless that is going on. It is called when a segment is complete or much was
// appended, so that a start has to read no more than that, and what the disk could not keep up with. The caller
// holds mu.
func (l *Log) saveSoon() {
	if l.saving {
		return
	}
	l.saving = true
	l.tasks.Go(func() {
		for again := true; again; {
			err := l.save()
			if err != nil && !errors.Is(err, ErrFailed) {
				l.diag.Warn("the recovery point stays where it was", "err", err)
			}
			l.mu.Lock()
			before := l.segments[max(0, len(l.segments)-2)]
			again = err == nil && (before != l.active() && !before.durable() || l.pending >= recoveryBytes)
			l.saving = again
			l.mu.Unlock()
		}
	})
}

// saveFirst sees to it that there is a checkpoint, durably, even if it says no more than where the log starts. It
// runs before a log gets its second segment: so if several segments have no checkpoint, it was lost to damage, and
// not in a power cut. See rebuild.
func (l *Log) saveFirst() error {
	l.maintaining.Lock()
	defer l.maintaining.Unlock()
	l.mu.Lock()
	stored, found, first := l.stored, l.found, l.segments[0].base
	l.mu.Unlock()
	switch {
	case stored:
		return nil
	case !found:
		c := &checkpoint{start: first, segments: []*segment{{base: first, end: first, maxTime: -1}}}
		return l.store(c.encode(), nil)
	}
	if err := l.syncNames(); err != nil { // it may have been written just before a kill
		return err
	}
	l.mu.Lock()
	l.stored = true
	l.mu.Unlock()
	return nil
}

// saveFrom is save for a log that begins with another offset. It returns how many segments are
// no longer part of it. The caller holds maintaining.
func (l *Log) saveFrom(start int64) (removed int, err error) {
	l.mu.Lock()
	if l.failed != nil {
		defer l.mu.Unlock()
		return 0, l.failed
	}
	for removed < len(l.segments)-1 && l.segments[removed].end <= start {
		removed++
	}
	c := &checkpoint{start, l.clock, l.segments[removed:], l.epochs, l.producers}
	content, pending := c.encode(), l.pending
	loose := l.loose()
	l.mu.Unlock()

	if err := l.store(content, loose); err != nil {
		return 0, err
	}
	l.mu.Lock()
	l.pending -= pending
	files := l.shutExcess() // which could not be closed before they were synced
	l.mu.Unlock()
	closeAll(files)
	return removed, nil
}

// store writes a checkpoint that calls the given segments durable. The caller holds maintaining.
func (l *Log) store(content []byte, loose []unsaved) error {
	if err := l.makeDurable(loose); err != nil {
		return err
	}
	if err := disk.Replace(l.fs, checkpointName, content, true); err != nil {
		return fmt.Errorf("write the checkpoint: %w", err)
	}
	l.mu.Lock()
	l.stored = true
	l.mu.Unlock()
	return nil
}

// unsaved is a segment that is not on disk as a whole. The index covers no more than what its
// next sync makes durable: an index that is ahead of its segment would be wrong after a power
// cut, when other batches have come to where the lost ones were.
type unsaved struct {
	segment *segment
	index   index
}

// loose returns the segments that are not on disk as a whole. The caller holds mu.
func (l *Log) loose() (loose []unsaved) {
	for _, g := range l.segments {
		if g.durable() {
			continue
		}
		u := unsaved{segment: g}
		if g.open != nil {
			u.index = g.open.index
		}
		loose = append(loose, u)
	}
	return loose
}

// makeDurable puts the segments on disk, and their names.
func (l *Log) makeDurable(loose []unsaved) error {
	if err := l.makeDir(); err != nil {
		return err
	}
	l.mu.Lock()
	names := !l.dirSynced
	l.mu.Unlock()
	for _, u := range loose {
		if err := l.syncContent(u.segment); err != nil {
			return err
		}
		l.writeIndex(u.segment.base, &u.index)
		l.mu.Lock()
		names = names || !u.segment.named
		if o := u.segment.open; o != nil {
			o.index.saved = u.index.covered
		}
		l.mu.Unlock()
	}
	if !names {
		return nil
	}
	if err := l.syncNames(); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, u := range loose {
		u.segment.named = true
	}
	return nil
}

// appendInts appends numbers of eight bytes.
func appendInts(b []byte, values ...int64) []byte {
	for _, v := range values {
		b = binary.LittleEndian.AppendUint64(b, uint64(v))
	}
	return b
}

// appendChecksum ends a file that begins with a magic.
func appendChecksum(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// decoder reads what appendInts wrote. If the bytes end early then bad is set, and what it returns
// means nothing.
type decoder struct {
	b   []byte
	bad bool
}

// sealed tells whether the bytes have that magic at their beginning and the right checksum at their end, and takes both away.
func (d *decoder) sealed(magic string) bool {
	n := len(d.b) - 4
	if n < len(magic) || string(d.b[:len(magic)]) != magic || binary.LittleEndian.Uint32(d.b[n:]) != crc32.Checksum(d.b[:n], castagnoli) {
		return false
	}
	d.b = d.b[len(magic):n]
	return true
}

func (d *decoder) fail() { d.b, d.bad = nil, true }

func (d *decoder) int64() int64 {
	if len(d.b) < 8 {
		d.fail()
		return 0
	}
	v := int64(binary.LittleEndian.Uint64(d.b))
	d.b = d.b[8:]
	return v
}

// count returns the number of elements that follow, which have so many bytes at least.
func (d *decoder) count(bytes int) int64 {
	n := d.int64()
	if n < 0 || n > int64(len(d.b)/bytes) {
		d.fail()
		return 0
	}
	return n
}

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

// checkpoint is the state that Open needs. Format on disk:
//
//	magic      8 bytes
//	version    8, little-endian like all numbers
//	start      8
//	clock      8
//	segments   8, their number, and for each: base, end, size, first, last, maxTime, 8 each
//	epochs     8, their number, and for each: epoch, offset, 8 each
//	producers  8, their number, and for each: see producers.encode
//	checksum   4  CRC32C of everything before it
//
// The end of its last segment is the recovery point. All batches before it are on disk, and the
// checkpoint has the state of the log at that point.
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
		return nil, fmt.Errorf("%w: the checkpoint has version %d, this software supports %d", ErrVersion, v, checkpointVersion)
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
		g.exists, g.nameSynced, g.synced = g.size > 0, g.size > 0, g.size // an empty segment may not have a file yet
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

// save makes everything that was appended so far durable, and moves the recovery point after it.
func (l *Log) save() error {
	l.maintaining.Lock()
	defer l.maintaining.Unlock()
	l.mu.Lock()
	start := l.start
	l.mu.Unlock()
	_, err := l.saveFrom(start)
	return err
}

// saveInBackground runs save in the background, unless it is running already. It is called when a
// segment is complete or much was appended. It limits what a start has to read to that amount, plus
// what was appended while the disk was too slow. The caller holds mu.
func (l *Log) saveInBackground() {
	if l.saving {
		return
	}
	l.saving = true
	l.tasks.Go(func() {
		for again := true; again; {
			err := l.save()
			if err != nil && !errors.Is(err, ErrFailed) {
				l.diag.Warn("cannot write a checkpoint; the next start reads more of the log", "err", err)
			}
			l.mu.Lock()
			before := l.segments[max(0, len(l.segments)-2)]
			again = err == nil && (before != l.active() && !before.durable() || l.pending >= recoveryBytes)
			l.saving = again
			l.mu.Unlock()
		}
	})
}

// ensureCheckpoint ensures that a durable checkpoint exists, even if that only contains the start
// of the log. It runs before a log gets its second segment. So if a log has several segments and no
// checkpoint, the checkpoint was lost to damage and not in a power cut. See rebuild.
func (l *Log) ensureCheckpoint() error {
	l.maintaining.Lock()
	defer l.maintaining.Unlock()
	return l.ensureStored()
}

// ensureStored is ensureCheckpoint for callers that hold maintaining.
func (l *Log) ensureStored() error {
	l.mu.Lock()
	stored, found, first := l.checkpointSynced, l.foundCheckpoint, l.segments[0].base
	l.mu.Unlock()
	switch {
	case stored:
		return nil
	case !found:
		c := &checkpoint{start: first, segments: []*segment{{base: first, end: first, maxTime: -1}}}
		return l.store(c.encode(), nil)
	}
	// The process that wrote the checkpoint may have been killed before it synced the directory, or that
	// sync may have failed, and another sync would not write the name. So write the file again.
	content, err := disk.ReadFile(l.fs, checkpointName, maxCheckpointBytes)
	if err != nil {
		return err
	}
	return l.store(content, nil)
}

// saveFrom is like save, for a log that starts at another offset. It returns the number of segments
// that are no longer part of the log. The caller holds maintaining.
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
	loose := l.unsyncedSegments()
	l.mu.Unlock()

	if err := l.store(content, loose); err != nil {
		return 0, err
	}
	l.mu.Lock()
	l.pending -= pending
	files := l.closeExcess() // they could not be closed before they were synced
	l.mu.Unlock()
	closeAll(files)
	return removed, nil
}

// store makes the given segments durable and then writes a checkpoint. The caller holds
// maintaining.
func (l *Log) store(content []byte, loose []unsyncedSegment) error {
	if err := l.makeDurable(loose); err != nil {
		return err
	}
	if err := disk.Replace(l.fs, checkpointName, content, true); err != nil {
		return fmt.Errorf("write the checkpoint: %w", err)
	}
	l.mu.Lock()
	l.checkpointSynced = true
	l.mu.Unlock()
	return nil
}

// unsyncedSegment is a segment that is not completely on disk. Its index is copied before the sync,
// so that the index covers no more than the sync makes durable. If an index were ahead of its
// segment, it would be wrong after a power cut, once other batches have replaced the lost ones.
type unsyncedSegment struct {
	segment *segment
	index   index
}

// unsyncedSegments returns the segments that are not completely on disk. The caller holds mu.
func (l *Log) unsyncedSegments() (loose []unsyncedSegment) {
	for _, g := range l.segments {
		if g.durable() {
			continue
		}
		u := unsyncedSegment{segment: g}
		if g.open != nil {
			u.index = g.open.index
		}
		loose = append(loose, u)
	}
	return loose
}

// makeDurable syncs the segments and their names.
func (l *Log) makeDurable(loose []unsyncedSegment) error {
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
		names = names || !u.segment.nameSynced
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
		u.segment.nameSynced = true
	}
	return nil
}

// appendInts appends numbers of eight bytes each.
func appendInts(b []byte, values ...int64) []byte {
	for _, v := range values {
		b = binary.LittleEndian.AppendUint64(b, uint64(v))
	}
	return b
}

// appendChecksum appends the checksum of b, which begins with the magic of the file.
func appendChecksum(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// decoder decodes what appendInts encodes. If there are too few bytes, it sets bad, and the values
// that it returns are meaningless.
type decoder struct {
	b   []byte
	bad bool
}

// sealed reports whether the bytes begin with the magic and end with the correct checksum. If so,
// it removes both.
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

// count returns the number of elements that follow. Each element has at least the given number of
// bytes.
func (d *decoder) count(bytes int) int64 {
	n := d.int64()
	if n < 0 || n > int64(len(d.b)/bytes) {
		d.fail()
		return 0
	}
	return n
}

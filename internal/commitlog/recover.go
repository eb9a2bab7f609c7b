package commitlog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

// recover restores the state in which the log was last open.
func (l *Log) recover() error {
	var c *checkpoint
	b, err := disk.ReadFile(l.fs, checkpointName, maxCheckpointBytes)
	if err == nil {
		c, err = parseCheckpoint(b)
	}
	switch {
	case err == nil:
		err = l.restore(c)
	case errors.Is(err, fs.ErrNotExist):
		err = l.rebuild()
	case errors.Is(err, errCheckpoint):
		l.diag.Error("the checkpoint is damaged; reading all records instead", "file", checkpointName)
		err = l.rebuild()
	}
	if err != nil {
		return err
	}
	if g := l.active(); g.size == 0 {
		// If the sync of the directory has failed when the file was created, its name may only exist in
		// memory, and another sync would not write it. The next append replaces the file.
		g.exists = false
	}
	if loose := l.unsyncedSegments(); l.opts.Sync && len(loose) > 0 {
		// Readers will see these batches, so a power cut must not lose them any more. The name of
		// the file must be durable as well, because the next batches may be appended to it.
		if err := l.rewriteActive(); err != nil {
			return err
		}
		if err := l.makeDurable(loose); err != nil {
			return err
		}
	}
	l.end, l.endPos = l.next, l.active().size
	l.start = min(max(l.start, l.segments[0].base), l.end)
	l.epochs.truncateBefore(l.start)
	return nil
}

// restore starts from a checkpoint and reads what was appended since. After a clean stop that is
// nothing: the file of the last segment has the recorded size, and there is no next segment.
func (l *Log) restore(c *checkpoint) error {
	l.start, l.clock, l.segments, l.epochs, l.producers = c.start, c.clock, c.segments, c.epochs, c.producers
	l.dirMade, l.dirSynced, l.foundCheckpoint = true, true, true
	for _, g := range l.segments {
		l.bytes += g.size
	}
	g := l.active()
	l.next = g.end
	now := l.opts.Now().UnixMilli()
	for clean := true; ; clean = false {
		before := g.size
		tail, err := l.readTail(g, now)
		if err != nil {
			return err
		}
		if tail.torn > 0 {
			if err := l.truncate(g, tail); err != nil {
				return err
			}
		}
		clean = clean && g.size == before && tail.torn == 0
		next, err := l.exists(l.next)
		if err != nil {
			return err
		}
		switch {
		case next && l.next > g.base:
			g = l.addSegment(l.next)
			continue
		case tail.lost:
			l.addSegment(l.next) // do not append to a file that has lost its end
		}
		if clean {
			return nil
		}
		return l.removeOrphansNow()
	}
}

// rebuild starts from the segment files. There is no checkpoint if the log is new or was converted
// from another format, or if the checkpoint is damaged. In the last case other files may be damaged
// too. So rebuild keeps everything that can be read, and removes only an incomplete end.
func (l *Log) rebuild() error {
	infos, err := l.fs.List()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	l.dirMade = err == nil
	type file struct{ base, modified int64 }
	var files []file
	for _, info := range infos {
		if base, kind, ok := parseName(info.Name()); ok && kind == "log" {
			files = append(files, file{base, info.ModTime().UnixMilli()})
		}
	}
	slices.SortFunc(files, func(a, b file) int { return int(min(max(a.base-b.base, -1), 1)) })
	if len(files) == 0 {
		l.addSegment(0)
		return nil
	}
	l.start, l.next, l.orphansRemoved = files[0].base, files[0].base, true
	for i, f := range files {
		if f.base < l.next {
			l.diag.Error("ignoring a segment whose offsets overlap with the one before", "file", logName(f.base))
			continue
		}
		if f.base > l.next {
			before := l.active()
			l.reportDamage(before, fmt.Errorf("%w: offsets %d to %d are missing", ErrDamaged, l.next, f.base-1))
			before.end, l.next = f.base, f.base
		}
		g := l.addSegment(f.base)
		tail, err := l.readTail(g, f.modified)
		if err != nil {
			return err
		}
		switch {
		case tail.torn > 0 && i == len(files)-1:
			err = l.truncate(g, tail)
		case tail.torn > 0:
			g.size += tail.torn // the index may find batches after the damage
			l.bytes += tail.torn
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// addSegment adds a segment without a known file.
func (l *Log) addSegment(base int64) *segment {
	g := &segment{base: base, end: base, maxTime: -1}
	l.segments = append(l.segments, g)
	return g
}

// tail describes the part of a file after what the log knows of it.
type tail struct {
	lost bool  // the file is shorter than the log expects
	torn int64 // number of bytes at the end that are not valid batches
	why  error
}

// readTail adds the batches to the log that are in a segment's file after those that are known.
// arrived is used for batches without a time of arrival.
func (l *Log) readTail(g *segment, arrived int64) (tail, error) {
	f, err := l.fs.Open(logName(g.base), false)
	if errors.Is(err, fs.ErrNotExist) {
		if g.size > 0 {
			l.reportDamage(g, fmt.Errorf("%w: %w", ErrDamaged, err))
		}
		return tail{lost: g.size > 0}, nil
	}
	if err != nil {
		return tail{}, err
	}
	defer f.Close()
	g.exists = true
	size, err := f.Size()
	switch {
	case err != nil || size == g.size:
		return tail{}, err
	case size < g.size:
		l.reportDamage(g, fmt.Errorf("%w: the file has %d bytes of %d", ErrDamaged, size, g.size))
		return tail{lost: true}, nil
	}
	s := newScanner(f, g.size, size, l.next)
	defer s.free()
	for {
		h, at, err := s.next()
		if err == nil && h.LeaderEpoch < l.epochs.latest() {
			err = fmt.Errorf("%w: leader epoch %d after %d", ErrDamaged, h.LeaderEpoch, l.epochs.latest())
		}
		switch {
		case err == io.EOF:
			return tail{}, nil
		case errors.Is(err, ErrDamaged):
			return tail{torn: size - at, why: err}, nil
		case err != nil:
			return tail{}, err
		}
		when := arrived
		if h.LogAppendTime() {
			when = h.MaxTimestamp
		}
		l.addBatch(g, h, when)
		l.pending += int64(h.Size())
	}
}

// truncate removes an incomplete end and syncs the file. Otherwise the removed bytes could reappear
// after a power cut, behind new batches.
func (l *Log) truncate(g *segment, t tail) error {
	l.diag.Warn("removing an incomplete write at the end of the log",
		"file", logName(g.base), "bytes", t.torn, "end", l.next, "err", t.why)
	if err := l.fs.Remove(indexName(g.base)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := l.fs.Open(logName(g.base), true)
	if err != nil {
		return err
	}
	err = f.Truncate(g.size)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// exists reports whether a segment has a file.
func (l *Log) exists(base int64) (bool, error) {
	f, err := l.fs.Open(logName(base), false)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, f.Close()
}

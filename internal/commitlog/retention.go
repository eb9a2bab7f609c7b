package commitlog

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"
)

const (
	maxRollAfter = 24 * time.Hour
	minRollAfter = 100 * time.Millisecond
)

// Expire removes the oldest segments: those whose last batch arrived longer ago than keep, and
// those without which the log still has at least maxBytes. A negative value disables the limit. If
// all of the active segment has expired, it is removed too. The end of the log does not change.
//
// Expire also sets the age at which a segment is complete to a quarter of keep, so that records are
// removed soon after they expire.
func (l *Log) Expire(keep time.Duration, maxBytes int64) error {
	l.appending.Lock()
	l.mu.Lock()
	err := l.writable()
	l.rollAfter = maxRollAfter
	if keep >= 0 {
		l.rollAfter = min(max(keep/4, minRollAfter), maxRollAfter)
	}
	start, rest := l.start, l.bytes
	now := l.opts.Now().UnixMilli()
	for _, g := range l.segments {
		old := keep >= 0 && now-g.last > keep.Milliseconds()
		rest -= g.size
		if g.end == g.base || !old && (maxBytes < 0 || rest < maxBytes) {
			break
		}
		start = max(start, g.end)
	}
	l.mu.Unlock()
	if err == nil {
		err = l.rollIfEmptied(start)
	}
	l.appending.Unlock()
	if err == nil {
		err = l.advance(start)
	}
	if err != nil {
		return fmt.Errorf("expire records: %w", err)
	}
	return nil
}

// DeleteRecords removes the records before an offset, or all records if it is -1, and returns the
// new start. When it returns, they are gone durably. It fails with ErrOutOfRange if the offset is
// greater than End.
func (l *Log) DeleteRecords(before int64) (start int64, err error) {
	l.appending.Lock()
	l.mu.Lock()
	if before == -1 {
		before = l.end
	}
	err = l.writable()
	if err == nil && (before < 0 || before > l.end) {
		err = fmt.Errorf("%w: %d is after the end at %d", ErrOutOfRange, before, l.end)
	}
	l.mu.Unlock()
	if err == nil {
		err = l.rollIfEmptied(before)
	}
	l.appending.Unlock()
	if err == nil {
		err = l.ensureCheckpoint() // with the start that the log has already
	}
	if err == nil {
		err = l.advance(before)
	}
	if err != nil {
		return -1, fmt.Errorf("delete records: %w", err)
	}
	return l.Start(), nil
}

// rollIfEmptied begins a new segment if the log is about to start at its end. The active segment
// cannot be removed, and the name of the new one preserves the offset. The caller holds appending.
func (l *Log) rollIfEmptied(start int64) error {
	l.mu.Lock()
	due := start >= l.next && l.active().size > 0
	l.mu.Unlock()
	if !due {
		return nil
	}
	_, err := l.roll()
	return err
}

// advance moves the start of the log and removes the segments before it. The checkpoint is written
// first. Otherwise, after a crash, the log could begin with half-removed records, or with deleted
// files that a power cut has brought back.
func (l *Log) advance(start int64) error {
	l.maintaining.Lock()
	defer l.maintaining.Unlock()
	l.mu.Lock()
	if start <= l.start {
		defer l.mu.Unlock()
		return nil
	}
	l.mu.Unlock()
	n, err := l.saveFrom(start)
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.start = start
	l.epochs.truncateBefore(start)
	var unused []*segment
	for _, g := range l.segments[:n] {
		g.removed = true
		l.bytes -= g.size
		if g.users == 0 {
			unused = append(unused, g)
		}
	}
	l.segments = append([]*segment(nil), l.segments[n:]...)
	files := l.closeSegments(func(g *segment) bool { return g.removed })
	l.mu.Unlock()
	closeAll(files)
	for _, g := range unused {
		l.deleteFiles(g)
	}
	return nil
}

// deleteFiles deletes the files of a segment that is no longer part of the log. If that fails, the
// next pass tries again.
func (l *Log) deleteFiles(g *segment) {
	for _, name := range []string{indexName(g.base), logName(g.base)} {
		if err := l.fs.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			l.diag.Warn("cannot delete a file of removed records", "file", name, "err", err)
			l.mu.Lock()
			l.orphansRemoved = false
			l.mu.Unlock()
		}
	}
}

// removeOrphans removes the files that a crash has left. It does this once per log, because Open
// does not look for such files after a clean stop.
func (l *Log) removeOrphans() error {
	l.mu.Lock()
	due := !l.orphansRemoved && l.dirMade && l.writable() == nil
	l.mu.Unlock()
	if !due {
		return nil
	}
	l.appending.Lock() // a segment that is being created has a file, but is not yet part of the log
	defer l.appending.Unlock()
	if !l.maintaining.TryLock() {
		return nil // a save may take long, and appends must not wait for it: try again at the next call
	}
	defer l.maintaining.Unlock()
	return l.removeOrphansNow()
}

// removeOrphansNow removes the files of segments that are not part of the log, and temporary files
// of unfinished replacements.
func (l *Log) removeOrphansNow() error {
	infos, err := l.fs.List()
	if err != nil {
		return err
	}
	known := map[int64]bool{}
	l.mu.Lock()
	for _, g := range l.segments {
		known[g.base] = true
	}
	l.mu.Unlock()
	var orphans []string
	for _, info := range infos {
		name, isTemp := strings.CutSuffix(info.Name(), ".tmp")
		base, _, ok := parseName(name)
		if ok && (isTemp || !known[base]) || isTemp && name == checkpointName {
			orphans = append(orphans, info.Name())
		}
	}
	if len(orphans) > 0 {
		// After a kill, the checkpoint that no longer needs these files may not be durable yet, so
		// it is made durable first. The removal itself need not be durable: if a file comes back,
		// its leader epoch is too old.
		if err = l.ensureStored(); err == nil {
			err = l.removeAll(orphans)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.orphansRemoved = err == nil
	return err
}

func (l *Log) removeAll(names []string) (err error) {
	for _, name := range names {
		l.diag.Info("removing a file that is not part of the log", "file", name)
		if e := l.fs.Remove(name); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}

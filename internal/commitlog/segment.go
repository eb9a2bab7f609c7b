package commitlog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

// segment is one file of the log: batches as on the wire, back to back. A log may have thousands of
// segments, so the file and index of a segment that is not in use are closed. Log.mu guards the
// fields.
type segment struct {
	base    int64 // offset of its first record; the file is named after it
	end     int64 // offset after its last record
	size    int64 // bytes written
	first   int64 // when its first batch arrived, in milliseconds
	last    int64 // when its last batch arrived
	maxTime int64 // greatest timestamp of its records; -1 if it has no records

	exists     bool  // the file exists
	nameSynced bool  // the file's name is durable
	synced     int64 // number of bytes that are durable

	syncing       sync.Mutex   // held while the content is synced; acquired before mu
	opening       sync.Mutex   // held while open is being set; acquired before mu
	open          *openSegment // nil while the segment is not in use
	users         int          // number of users of open
	lastUsedRound int          // Log.maintainRound at its last use
	removed       bool         // the last user deletes the files
	reported      bool         // a diagnostic has reported that it is damaged
}

// openSegment is the in-memory state of a segment that is in use.
type openSegment struct {
	file  disk.File
	index index

	// trusted is the start of the bytes that this process wrote after it had opened the file. All
	// bytes before that are checked whenever they are read.
	trusted int64
}

const nameForm = "%020d.%s"

func logName(base int64) string   { return fmt.Sprintf(nameForm, base, "log") }
func indexName(base int64) string { return fmt.Sprintf(nameForm, base, "index") }

// parseName returns the base offset in the name of a segment's file, and the kind of the file:
// "log" or "index".
func parseName(name string) (base int64, kind string, ok bool) {
	digits, kind, _ := strings.Cut(name, ".")
	base, err := strconv.ParseInt(digits, 10, 64)
	ok = err == nil && (kind == "log" || kind == "index") && name == fmt.Sprintf(nameForm, base, kind)
	return base, kind, ok && base >= 0
}

// idle reports whether the segment was not used between the last two calls of Maintain.
func (g *segment) idle(round int) bool { return g.lastUsedRound < round-1 }

// durable reports whether the whole segment is on disk.
func (g *segment) durable() bool { return !g.exists || g.nameSynced && g.synced >= g.size }

// acquire opens a segment if necessary, and counts the caller as a user. The caller must call
// release afterwards.
func (l *Log) acquire(g *segment) (*openSegment, error) {
	l.mu.Lock()
	if g.removed {
		l.mu.Unlock()
		return nil, fmt.Errorf("%w: the segment was removed", ErrOutOfRange)
	}
	g.users++
	l.mu.Unlock()
	return l.openAcquired(g)
}

// openAcquired is like acquire for a caller that is already counted as a user. If it fails, the
// caller must not call release.
func (l *Log) openAcquired(g *segment) (*openSegment, error) {
	l.mu.Lock()
	g.lastUsedRound = l.maintainRound
	o := g.open
	l.mu.Unlock()
	if o != nil {
		return o, nil
	}
	g.opening.Lock()
	defer g.opening.Unlock()
	l.mu.Lock()
	o = g.open // another user may have been faster
	size, final := g.size, g != l.active() && g.durable()
	l.mu.Unlock()
	if o != nil {
		return o, nil
	}
	o, err := l.load(g, size, !final)
	if err != nil {
		l.release(g)
		return nil, l.reportDamage(g, err)
	}
	if final && o.trusted < size {
		l.writeIndex(g.base, &o.index) // so that there is less to scan next time
	}
	l.mu.Lock()
	g.open = o
	l.openSegments = append(l.openSegments, g)
	rest := l.closeExcess()
	l.mu.Unlock()
	closeAll(rest)
	return o, nil
}

// load opens the file of a segment, reads its index, and scans what the index does not cover.
func (l *Log) load(g *segment, size int64, write bool) (*openSegment, error) {
	f, err := l.fs.Open(logName(g.base), write)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err != nil {
		return nil, err
	}
	o := &openSegment{file: f, index: l.readIndex(g.base, size)}
	o.trusted = o.index.covered
	s := newScanner(f, o.index.covered, size, o.index.next)
	defer s.free()
	for {
		h, at, err := s.next()
		if err == io.EOF {
			return o, nil
		}
		if err != nil {
			l.reportDamage(g, err) // reads of the damaged place return an error
			o.trusted = size
			return o, nil
		}
		o.index.add(h, at)
	}
}

// release must be called when a user no longer needs the segment. It closes and deletes the segment
// if that is due.
func (l *Log) release(g *segment) {
	l.mu.Lock()
	g.users--
	var rest []*openSegment
	if g.users == 0 && (g.removed || l.closed) {
		rest = l.closeSegments(func(other *segment) bool { return other == g })
	}
	remove := g.users == 0 && g.removed
	l.mu.Unlock()
	closeAll(rest)
	if remove {
		l.deleteFiles(g)
	}
}

// closeSegments closes the open segments that due selects, except those that are in use or not yet
// synced. The caller holds mu, and closes the returned files after releasing mu.
func (l *Log) closeSegments(due func(*segment) bool) (rest []*openSegment) {
	l.openSegments = slices.DeleteFunc(l.openSegments, func(g *segment) bool {
		if g.users > 0 || !g.durable() && !g.removed && !l.closed || !due(g) {
			return false
		}
		rest = append(rest, g.open)
		g.open = nil
		return true
	})
	return rest
}

// closeExcess closes the segments that were opened first, if too many are open. The caller must do
// the same as for closeSegments.
func (l *Log) closeExcess() (rest []*openSegment) {
	excess := len(l.openSegments) - maxOpen - 1
	return l.closeSegments(func(g *segment) bool {
		if g == l.active() {
			return false
		}
		excess--
		return excess >= 0
	})
}

func closeAll(all []*openSegment) (err error) {
	for _, o := range all {
		err = errors.Join(err, o.file.Close())
	}
	return err
}

// create creates the file of the active segment. With Options.Sync its name is durable when create
// returns. The caller holds appending.
func (l *Log) create(g *segment) error {
	if err := l.makeDir(); err != nil {
		return err
	}
	name := logName(g.base)
	temp := name + ".tmp"
	if err := l.fs.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := l.fs.Create(temp)
	if err != nil {
		return err
	}
	// There may be an empty file with this name, which holds the end of the log. Any other is not part of
	// the log, because Open has found all files that are.
	if err = l.fs.Rename(temp, name); err == nil && l.opts.Sync {
		err = l.syncNames() // if it fails, an empty file is left, which the next process replaces
	}
	if err != nil {
		f.Close()
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	g.exists, g.nameSynced = true, l.opts.Sync
	g.open = &openSegment{file: f, index: l.newIndex(g.base)}
	l.openSegments = append(l.openSegments, g)
	return nil
}

// reportDamage logs that a segment is damaged, once per segment. It returns err.
func (l *Log) reportDamage(g *segment, err error) error {
	l.mu.Lock()
	known := g.reported || l.closed
	g.reported = true
	l.mu.Unlock()
	if !known {
		l.diag.Error("records cannot be read", "file", logName(g.base), "err", err)
	}
	return err
}

package commitlog

import (
	"fmt"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

// commit returns when everything before an offset is on disk. One of the waiting callers syncs, for
// all of them. Meanwhile others continue to write, and one of those syncs next.
func (l *Log) commit(end int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.end < end {
		if l.failed != nil {
			return l.failed
		}
		if l.syncing {
			l.synced.Wait()
			continue
		}
		l.syncing = true
		g := l.active()
		l.mu.Unlock()
		err := l.syncContent(g)
		l.mu.Lock()
		l.syncing = false
		l.synced.Broadcast()
		if err != nil {
			return err
		}
	}
	return nil
}

// makeDir creates the directory, unless it exists.
func (l *Log) makeDir() error {
	l.mu.Lock()
	made := l.dirMade
	l.mu.Unlock()
	if made {
		return nil
	}
	if err := l.fs.Make(); err != nil {
		return err
	}
	l.mu.Lock()
	l.dirMade = true
	l.mu.Unlock()
	return nil
}

// syncNames makes the names of all files durable, and the name of the directory itself.
func (l *Log) syncNames() error {
	l.mu.Lock()
	known := l.dirSynced
	l.mu.Unlock()
	if !known {
		if err := l.fs.SyncParent(); err != nil {
			return l.failedSync("the directory above", err)
		}
	}
	if err := l.fs.Sync(); err != nil {
		return l.failedSync("the directory", err)
	}
	l.mu.Lock()
	l.dirSynced = true
	l.mu.Unlock()
	return nil
}

// failedSync stops all writing after a failed sync.
func (l *Log) failedSync(what string, err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fail(fmt.Errorf("sync %s: %w", what, err))
}

// syncContent makes durable what was written to a segment so far. With Options.Sync, readers then
// see it.
func (l *Log) syncContent(g *segment) error {
	o, err := l.acquire(g)
	if err != nil {
		return err
	}
	defer l.release(g)
	// The system reports a failed write to only one of several syncs. If two ran at the same time,
	// the other one would succeed although data is lost.
	g.syncing.Lock()
	defer g.syncing.Unlock()
	l.mu.Lock()
	size, next, active, failed := g.size, l.next, g == l.active(), l.failed
	l.mu.Unlock()
	if failed != nil {
		return failed
	}
	if err := o.file.Sync(); err != nil {
		err = l.failedSync(logName(g.base), err)
		if again := l.writeAgain(g, o.file); again != nil {
			l.diag.Error("cannot write batches again after a failed sync", "file", logName(g.base), "err", again)
		}
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	g.synced = max(g.synced, size)
	if active && next > l.end {
		l.advanceEnd(next, size)
	}
	return nil
}

// writeAgain writes the bytes that a failed sync did not make durable once more. The operating
// system treats them as written. So without this, a sync by the next process would succeed without
// writing them.
func (l *Log) writeAgain(g *segment, f disk.File) error {
	l.mu.Lock()
	at, size := g.synced, g.size // it does not grow, because the log has failed or is being opened
	l.mu.Unlock()
	buf := scanBuffers.Get().(*[scanBytes]byte)
	defer scanBuffers.Put(buf)
	for at < size {
		b := buf[:min(scanBytes, size-at)]
		err := readFull(f, b, at)
		if err == nil {
			_, err = f.WriteAt(b, at)
		}
		if err != nil {
			return err
		}
		at += int64(len(b))
	}
	return nil
}

// rewriteActive writes the batches after the recovery point once more. They may be left from a
// failed sync, of a process that could not write them again. All earlier segments are durable, see
// roll.
func (l *Log) rewriteActive() error {
	g := l.active()
	if g.durable() {
		return nil
	}
	o, err := l.acquire(g)
	if err != nil {
		return err
	}
	defer l.release(g)
	return l.writeAgain(g, o.file)
}

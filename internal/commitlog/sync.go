package commitlog

import (
	"fmt"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

// commit returns when all before an offset is on disk. Of all that wait, one syncs. Meanwhile others
// go on writing, and one of them syncs next, for all of them.
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

// syncNames makes the names of all files durable, and that of the directory.
func (l *Log) syncNames() error {
	l.mu.Lock()
	known := l.dirSynced
	l.mu.Unlock()
	var err error
	if !known {
		err = l.fs.SyncParent()
	}
	if err == nil {
		err = l.fs.Sync()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		return l.fail(fmt.Errorf("sync the directory: %w", err))
	}
	l.dirSynced = true
	return nil
}

// syncContent makes durable what was written to a segment so far. With Options.Sync, readers
// see it then.
func (l *Log) syncContent(g *segment) error {
	o, err := l.use(g)
	if err != nil {
		return err
	}
	defer l.done(g)
	l.mu.Lock()
	size, next, active := g.size, l.next, g == l.active()
	l.mu.Unlock()
	err = o.file.Sync()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		err = l.fail(fmt.Errorf("sync %s: %w", logName(g.base), err))
		synced, size := g.synced, g.size // which does not grow any more
		l.mu.Unlock()
		l.writeAgain(o.file, synced, size)
		l.mu.Lock()
		return err
	}
	g.synced = max(g.synced, size)
	if active && next > l.end {
		l.show(next, size)
	}
	return nil
}

// writeAgain writes bytes that are in the file once more, after a failed sync. The system takes them for written,
// so that without this a later sync, of the next process, would succeed without them.
func (l *Log) writeAgain(f disk.File, from, to int64) {
	buf := scanBuffers.Get().(*[scanBytes]byte)
	defer scanBuffers.Put(buf)
	for from < to {
		b := buf[:min(scanBytes, to-from)]
		err := readFull(f, b, from)
		if err == nil {
			_, err = f.WriteAt(b, from)
		}
		if err != nil {
			l.diag.Error("batches that could not be synced cannot be written again", "err", err)
			return
		}
		from += int64(len(b))
	}
}

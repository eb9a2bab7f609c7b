package watch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/outcome"
)

var errChanged = errors.New("it has changed")

// logFile reads a complete file and passes its events to the Logger. If the last line has no line feed,
// logFile only notes this, and the file waits for longer.
func (w *Watcher) logFile(ctx context.Context, root *os.Root, name string) {
	f := w.pending[name]
	file, err := openFile(root, name, f.mark)
	if err != nil {
		w.cannotRead(f, name, err)
		f.since = time.Now()
		return
	}
	defer file.Close()
	if !w.cfg.Whole && f.Size > 0 && !w.logsHalfLine(f) && endsInHalfLine(file, f.Size) {
		f.halfLine = true
		w.notifyOnce("", Notice{What: HalfLine, File: name, After: halfLineTimes * w.cfg.Settle})
		return
	}
	if _, done := w.journal.done[name]; done && !(w.cfg.Whole && w.journal.refused[name]) { // a whole file that was refused was not logged
		w.notifyOnce(name, Notice{What: Again, File: name})
	}
	f.inFlight = true
	content := w.cfg.Progress(name, file)
	defer content.Close()
	t := &fileInFlight{watcher: w, journalLine: journalLine{File: name, mark: f.mark}, unfinished: 1}
	if w.cfg.Whole {
		err = t.logWhole(content)
	} else {
		err = t.logLines(ctx, content)
	}
	if err == nil {
		err = unchanged(file, f.mark)
	}
	if ctx.Err() == nil {
		w.cannotRead(f, name, err)
	}
	t.finishOne(func() { t.mayBeLost = t.mayBeLost || err != nil })
}

// openFile opens a file of the folder. The file may have been replaced since it was checked. root does
// not follow a symbolic link out of the folder, and O_NONBLOCK keeps the open from blocking on a pipe.
// openFile fails with errChanged if the file is not the one that m describes.
func openFile(root *os.Root, name string, m mark) (*os.File, error) {
	file, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := unchanged(file, m); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// unchanged returns errChanged if the file is not a regular file with the size and modification time
// of m.
func unchanged(file *os.File, m mark) error {
	info, err := file.Stat()
	if err == nil && (!info.Mode().IsRegular() || markOf(info) != m) {
		err = errChanged
	}
	return err
}

func endsInHalfLine(file *os.File, size int64) bool {
	var last [1]byte
	_, err := file.ReadAt(last[:], size-1)
	return err == nil && last[0] != '\n' // an error is reported when the whole file is read
}

// cannotRead sends a notice that a file cannot be read, once for each error text. It sends none if
// err is nil, or if the file has changed or was removed: that is normal, and needs no action.
func (w *Watcher) cannotRead(f *pendingFile, name string, err error) {
	if err == nil || err == errChanged || errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err.Error() != f.problem {
		f.problem = err.Error()
		w.cfg.Notify(Notice{What: Unreadable, File: name, Err: err})
	}
}

// fileInFlight is a file whose events are in flight.
type fileInFlight struct {
	watcher *Watcher

	mu sync.Mutex // guards the fields below
	journalLine
	unfinished int  // number of events in flight, plus one until the file has been read
	mayBeLost  bool // an event may be lost, so the file has to be logged again
}

// logWhole logs a file as one event.
func (t *fileInFlight) logWhole(file io.Reader) error {
	if t.Size > MaxLineBytes {
		t.refuse(0, fmt.Errorf("it has %d bytes; an event may have at most %d", t.Size, MaxLineBytes))
		return nil
	}
	content, err := io.ReadAll(io.LimitReader(file, t.Size+1))
	if err == nil && int64(len(content)) != t.Size {
		err = errChanged
	}
	if err == nil {
		t.log(0, content)
	}
	return err
}

// logLines logs each line of a file as an event.
func (t *fileInFlight) logLines(ctx context.Context, file io.Reader) error {
	lines := NewLineReader(file, MaxLineBytes)
	for ctx.Err() == nil {
		line, err := lines.Next()
		var bad *LineError
		switch {
		case err == io.EOF:
			return nil
		case errors.As(err, &bad):
			t.refuse(bad.Line, bad.Err)
		case err != nil:
			return err
		default:
			t.log(lines.Line, line)
		}
	}
	return ctx.Err()
}

// log creates an event from a line, or from the whole file if line is 0, and passes it to the Logger.
func (t *fileInFlight) log(line int, content []byte) {
	event, err := t.watcher.cfg.Event(content)
	if err != nil {
		t.refuse(line, err)
		return
	}
	Attribute(&event, t.File, line, time.Unix(0, t.Mtime))
	if event.ID == "" {
		event.ID = t.eventID(line, event.Value)
	}
	t.mu.Lock()
	t.unfinished++
	t.mu.Unlock()
	t.watcher.logger.Send(event, func(_ diaspora.Record, err error) {
		t.finishOne(func() {
			switch {
			case err == nil:
				t.Events++
			case errors.Is(err, diaspora.ErrInvalid):
				t.refused(err)
			default:
				t.mayBeLost = true
			}
		})
	})
}

// Attribute adds headers to an event that name the file and, unless line is 0, the line that it comes
// from. Line 0 stands for the whole file. If the event has no key, the file's name becomes its key. If
// it has no time, changed, which is the file's modification time, becomes its time.
func Attribute(event *diaspora.Event, file string, line int, changed time.Time) {
	if event.Key == nil {
		event.Key = []byte(file)
	}
	event.Headers = append(slices.Clip(event.Headers), diaspora.Header{Key: HeaderFile, Value: []byte(file)}) // clipped because other events may share the array
	if line > 0 {
		event.Headers = append(event.Headers, diaspora.Header{Key: HeaderLine, Value: fmt.Append(nil, line)})
	}
	if event.Time.IsZero() {
		event.Time = changed
	}
}

// Origin returns the file and the line that [Attribute] has added to an event.
func Origin(event diaspora.Event) (file string, line int) {
	h := event.Headers // the last ones are those of Attribute, even if the user has added the same names
	if n := len(h); n >= 2 && h[n-1].Key == HeaderLine {
		line, _ = strconv.Atoi(string(h[n-1].Value))
		h = h[:n-1]
	}
	return string(h[len(h)-1].Value), line
}

// eventID returns the ID of an event. It is the same if the same content of the same file is logged again.
func (t *fileInFlight) eventID(line int, value []byte) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s\x00%s\x00%d %d %d\x00", t.watcher.journal.id, t.File, t.Size, t.Mtime, line)
	h.Write(value)
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// refuse sends a notice that a line can never be logged, and notes the reason for the journal. Line 0
// stands for the whole file.
func (t *fileInFlight) refuse(line int, err error) {
	t.watcher.cfg.Notify(Notice{What: Refused, File: t.File, Line: line, Err: err})
	t.mu.Lock()
	defer t.mu.Unlock()
	t.refused(err)
}

// refused notes why an event was rejected. The journal gets only the first reason. The caller holds t.mu.
func (t *fileInFlight) refused(err error) {
	if t.Refused == "" {
		t.Refused, _ = outcome.Split(err)
	}
}

// finishOne calls note to store the outcome of one event, or of reading the file. After the last call, it
// queues the file for [Watcher.record] and wakes up [Watcher.Run]. It may be called from any goroutine.
func (t *fileInFlight) finishOne(note func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	note()
	if t.unfinished--; t.unfinished > 0 {
		return
	}
	w := t.watcher
	w.mu.Lock()
	w.finished = append(w.finished, t)
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

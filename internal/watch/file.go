package watch

import (
	"bytes"
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

// take logs a file that is complete.
func (w *Watcher) take(ctx context.Context, root *os.Root, name string) {
	f := w.pending[name]
	file, err := openFile(root, name, f.mark)
	if err != nil {
		w.cannotRead(f, name, err)
		f.since = time.Now()
		return
	}
	defer file.Close()
	if !w.cfg.Whole && f.Size > 0 && !w.released(f) && endsInHalfLine(file, f.Size) {
		f.halfLine = true
		w.notifyOnce("", Notice{What: HalfLine, File: name, After: halfLineTimes * w.cfg.Settle})
		return
	}
	if _, logged := w.journal.done[name]; logged {
		w.notifyOnce(name, Notice{What: Again, File: name})
	}
	f.taken = true
	content := w.cfg.Progress(name, file)
	defer content.Close()
	t := &takenFile{watcher: w, journalLine: journalLine{File: name, mark: f.mark}, left: 1}
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
	t.answer(func() { t.unsure = t.unsure || err != nil })
}

// openFile opens a file of the folder. A link that has taken the file's place cannot lead out of the folder,
// and a pipe does not block.
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
	return err == nil && last[0] != '\n' // reading the file reports an error
}

// cannotRead tells why a file is not logged yet, unless that is only a matter of time or was told.
func (w *Watcher) cannotRead(f *pendingFile, name string, err error) {
	if err == nil || err == errChanged || errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err.Error() != f.problem {
		f.problem = err.Error()
		w.cfg.Notify(Notice{What: Unreadable, File: name, Err: err})
	}
}

// takenFile is a file whose events are in flight.
type takenFile struct {
	watcher *Watcher

	mu sync.Mutex // guards the fields below
	journalLine
	left   int  // events in flight, and one for reading
	unsure bool // an event may not be safe, so the file has to be logged again
}

// logWhole logs a file as one event.
func (t *takenFile) logWhole(file io.Reader) error {
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
func (t *takenFile) logLines(ctx context.Context, file io.Reader) error {
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
			t.log(lines.Line, bytes.Clone(line)) // the reader uses the line's memory again while the Logger still does
		}
	}
	return ctx.Err()
}

// log makes an event of a line, or with line 0 of the whole file, and hands it to the Logger.
func (t *takenFile) log(line int, content []byte) {
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
	t.left++
	t.mu.Unlock()
	t.watcher.logger.Send(event, func(_ diaspora.Record, err error) {
		t.answer(func() {
			switch {
			case err == nil:
				t.Events++
			case errors.Is(err, diaspora.ErrInvalid):
				t.refused(err)
			default:
				t.unsure = true
			}
		})
	})
}

// Attribute says in an event's headers from which line of a file it is, or with line 0 from all of it. The file's name
// becomes the key, and its time of change the event's time, unless the event has its own.
func Attribute(event *diaspora.Event, file string, line int, changed time.Time) {
	if event.Key == nil {
		event.Key = []byte(file)
	}
	event.Headers = append(slices.Clip(event.Headers), diaspora.Header{Key: HeaderFile, Value: []byte(file)}) // other events may share the array
	if line > 0 {
		event.Headers = append(event.Headers, diaspora.Header{Key: HeaderLine, Value: fmt.Append(nil, line)})
	}
	if event.Time.IsZero() {
		event.Time = changed
	}
}

// Origin returns what [Attribute] has said of an event.
func Origin(event diaspora.Event) (file string, line int) {
	h := event.Headers // the last ones are ours
	if n := len(h); n >= 2 && h[n-1].Key == HeaderLine {
		line, _ = strconv.Atoi(string(h[n-1].Value))
		h = h[:n-1]
	}
	return string(h[len(h)-1].Value), line
}

// eventID is the same whenever the same content of the same file is logged again.
func (t *takenFile) eventID(line int, value []byte) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s\x00%s\x00%d %d %d\x00", t.watcher.journal.id, t.File, t.Size, t.Mtime, line)
	h.Write(value)
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// refuse takes note that a line can never be an event.
func (t *takenFile) refuse(line int, err error) {
	t.watcher.cfg.Notify(Notice{What: Refused, File: t.File, Line: line, Err: err})
	t.mu.Lock()
	defer t.mu.Unlock()
	t.refused(err)
}

// refused keeps the first reason for the journal. The caller holds mu.
func (t *takenFile) refused(err error) {
	if t.Refused == "" {
		t.Refused, _ = outcome.Split(err)
	}
}

// answer takes note of the fate of one event, or that reading has ended. With the last answer the file is ready for
// the journal.
func (t *takenFile) answer(note func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	note()
	if t.left--; t.left > 0 {
		return
	}
	w := t.watcher
	w.mu.Lock()
	w.answered = append(w.answered, t)
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

package watch

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/diaspora-streams/diaspora"
)

// Config says what to watch, and what events to make of it.
type Config struct {
	// Dir is the folder. It must exist when the watch begins. Later, whatever folder has this name
	// is watched: it may be removed and made again, unmounted and mounted, or be a link that changes.
	Dir string
	// Pattern chooses files by name, as [filepath.Match] does. Hidden files, links, folders and other
	// files that are not regular are always left alone.
	Pattern string
	// Settle is how long a file must not have changed before it is logged.
	Settle time.Duration

	// Journals is the folder for the journals. It is created if it does not exist.
	Journals string
	// Topic is the topic that the journal is about.
	Topic string

	// Event makes an event of a line. The watch adds the headers [HeaderFile] and [HeaderLine] and,
	// where the event has none, the file's name as the key, an ID, and the file's time of change.
	Event func(content []byte) (diaspora.Event, error)
	// Whole calls Event with whole files rather than with lines. Empty files are left alone, since
	// somebody is about to write them.
	Whole bool

	// Notify is called with each [Notice], from the goroutine that has called the Watcher.
	Notify func(Notice)
	// Progress returns a reader through which a file is read. It is closed afterwards.
	Progress func(file string, content io.Reader) io.ReadCloser
}

// HeaderFile names an event's header with the name of its file, HeaderLine that with the number
// of its line.
const (
	HeaderFile = "file"
	HeaderLine = "line"
)

// Logger takes the events, as [diaspora.Logger.Send] does. done may be called until the Watcher is closed.
type Logger interface {
	Send(event diaspora.Event, done func(diaspora.Record, error))
}

// Notice is something that a person who watches a folder should know. Which fields are set depends on What.
type Notice struct {
	What   What
	File   string
	Line   int           // from 1; 0 for all of the file
	Events int64         // that were logged
	Bytes  int64         // the file's size
	Files  int           // how many
	After  time.Duration // how long something has taken, or will take
	Err    error
}

// What is the kind of a [Notice].
type What int

const (
	Logged           What = iota // File is finished, with Events and Bytes
	Refused                      // Line of File can never be logged, because of Err
	RefusedFile                  // File is finished, although some of it was refused
	Unreadable                   // File cannot be read, because of Err; it is tried again
	Growing                      // File has been changing for as long as After, and is not logged while it does
	HalfLine                     // File is held back for up to After, since its last line has no end
	Again                        // File is logged again, since it has changed
	Unsettled                    // so many Files are not logged at the end, since they have just changed
	FolderUnreadable             // the folder cannot be read, because of Err; it is tried again
	FolderReadable               // the folder can be read again
	FolderReplaced               // another folder has taken the folder's place
)

// JournalError is the error of a journal that cannot be used.
type JournalError struct{ Err error }

func (e *JournalError) Error() string { return e.Err.Error() }
func (e *JournalError) Unwrap() error { return e.Err }

// Watcher watches one folder. Its methods must not be called concurrently.
type Watcher struct {
	cfg     Config
	logger  Logger
	journal *journal
	pending map[string]*pendingFile // by name

	// The folder is opened by name at each look and closed again: another one may have taken its place,
	// and a disk whose files are open cannot be unmounted.
	real   string      // where cfg.Dir led last, without links; the journal is that of this name
	folder fs.FileInfo // the folder that was there

	ending     bool            // this is the last look, so nothing is held back
	unreadable string          // why the folder cannot be read; "" if it can
	told       map[Notice]bool // notices that are not repeated, by What and File

	mu       sync.Mutex    // guards the field below
	answered []*takenFile  // the fate of all their events is known, and the journal does not have it yet
	wake     chan struct{} // answered has changed; one element
}

// pendingFile is a file that is not finished.
type pendingFile struct {
	mark
	first    time.Time // when it was seen for the first time since it was logged
	since    time.Time // it has not changed since
	taken    bool      // it was read, and its events are in flight
	halfLine bool      // its last line has no end
	problem  string    // why it cannot be read, as told
}

// halfLineTimes is how many times longer than others a file must not have changed if its last line
// has no end: the writer may have stopped in the middle of a line.
const halfLineTimes = 10

// growingAfter is how long a file may change before a person is told that it is not logged meanwhile.
const growingAfter = time.Minute

// Open opens the journal of a folder. Its error is a [*JournalError] if the cause is the journal, and
// otherwise says why the folder cannot be read.
func Open(cfg Config) (_ *Watcher, err error) {
	if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return nil, err
	}
	w := &Watcher{cfg: cfg, pending: map[string]*pendingFile{}, told: map[Notice]bool{}, wake: make(chan struct{}, 1)}
	real, root, err := w.openFolder()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	w.real = real
	if w.folder, err = root.Stat("."); err != nil {
		return nil, err
	}
	if w.journal, err = openJournal(cfg.Journals, real, cfg.Topic); err != nil {
		return nil, err
	}
	return w, nil
}

// Dir returns the absolute name of the folder.
func (w *Watcher) Dir() string { return w.cfg.Dir }

// Journal returns the name of the journal's file.
func (w *Watcher) Journal() string { return w.journal.name }

// openFolder opens the folder that has the name now, and returns its name without links.
func (w *Watcher) openFolder() (real string, root *os.Root, err error) {
	if real, err = filepath.EvalSymlinks(w.cfg.Dir); err != nil {
		return "", nil, err
	}
	root, err = os.OpenRoot(real)
	return real, root, err
}

// Survey says what is in a folder.
type Survey struct {
	Files     int64            // all of them, but hidden ones
	Matching  int64            // those that match the pattern
	Logged    int64            // of Matching: those that are finished
	Empty     int64            // of Matching: those without content, which are not logged
	Changed   int64            // of Matching: those that have changed since they were logged
	Elsewhere map[string]int64 // of Matching: those that were logged to other topics, by topic
}

// Survey counts the files of the folder, without reading them.
func (w *Watcher) Survey() (s Survey, err error) {
	real, root, err := w.openFolder()
	if err != nil {
		return s, err
	}
	defer root.Close()
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return s, err
	}
	journals := readJournals(w.cfg.Journals)
	s.Elsewhere = map[string]int64{}
	for _, entry := range entries {
		name := entry.Name()
		if strings.HasPrefix(name, ".") || !entry.Type().IsRegular() {
			continue
		}
		s.Files++
		if match, _ := filepath.Match(w.cfg.Pattern, name); !match {
			continue
		}
		s.Matching++
		info, err := root.Lstat(name)
		if err != nil {
			continue
		}
		switch done, ok := w.journal.done[name]; {
		case ok && done == markOf(info):
			s.Logged++
		case ok:
			s.Changed++
		case info.Size() == 0:
			s.Empty++
		}
		for _, j := range journals {
			if j.Watch == real && j.Topic != w.cfg.Topic && j.done[name] == markOf(info) {
				s.Elsewhere[j.Topic]++
			}
		}
	}
	return s, nil
}

// Run logs the files of the folder until ctx ends. Then it returns nil, and the events of files that were
// taken may be in flight. It fails only with a [*JournalError], when the journal cannot be written.
//
// It polls, since notifications about changes do not exist on network file systems.
func (w *Watcher) Run(ctx context.Context, logger Logger) error {
	w.logger = logger
	every := time.NewTicker(min(time.Second, max(w.cfg.Settle/4, 100*time.Millisecond)))
	defer every.Stop()
	for {
		w.look(ctx)
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return nil
			case <-w.wake:
				if err := w.record(); err != nil {
					return err
				}
			case <-every.C:
				waiting = false
			}
		}
	}
}

// Finish looks at the folder for the last time after Run, and takes files that were held back because
// of their last line. There is no use in it if the Logger takes no more events. ctx bounds reading.
func (w *Watcher) Finish(ctx context.Context) {
	w.ending = true
	w.look(ctx)
	unsettled := 0
	for _, f := range w.pending {
		if !f.taken && f.problem == "" && (f.Size > 0 || !w.cfg.Whole) {
			unsettled++
		}
	}
	if unsettled > 0 {
		w.cfg.Notify(Notice{What: Unsettled, Files: unsettled})
	}
}

// Close records what has become known of events since Run returned, so the Logger should be closed
// before. Then another process may watch the folder. Close may be called twice.
func (w *Watcher) Close() error {
	return errors.Join(w.record(), w.journal.Close())
}

// record writes into the journal which files are finished. A file with an event whose fate is not known
// is logged again when it has settled.
func (w *Watcher) record() error {
	w.mu.Lock()
	answered := w.answered
	w.answered = nil
	w.mu.Unlock()
	var lines []journalLine
	for _, t := range answered {
		if t.unsure {
			f := w.pending[t.File]
			f.taken, f.since = false, time.Now()
			continue
		}
		lines = append(lines, t.journalLine)
	}
	if len(lines) == 0 {
		return nil
	}
	if err := w.journal.add(lines); err != nil {
		return err
	}
	for _, line := range lines {
		delete(w.pending, line.File)
		what := Logged
		if line.Refused != "" {
			what = RefusedFile
		}
		w.cfg.Notify(Notice{What: what, File: line.File, Events: line.Events, Bytes: line.Size})
	}
	return nil
}

// look takes the files that are complete, and tells once if the folder cannot be read.
func (w *Watcher) look(ctx context.Context) {
	err := w.lookInto(ctx)
	switch {
	case err != nil && err.Error() != w.unreadable:
		w.unreadable = err.Error()
		w.cfg.Notify(Notice{What: FolderUnreadable, Err: err})
	case err == nil && w.unreadable != "":
		w.unreadable = ""
		w.cfg.Notify(Notice{What: FolderReadable})
	}
}

func (w *Watcher) lookInto(ctx context.Context) error {
	real, root, err := w.openFolder()
	if err != nil {
		return err
	}
	defer root.Close()
	if ready, err := w.follow(real, root); !ready {
		return err
	}
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return err
	}
	there := make(map[string]bool, len(entries))
	for _, entry := range entries {
		name := entry.Name()
		there[name] = true
		if ctx.Err() != nil {
			return nil
		}
		if match, _ := filepath.Match(w.cfg.Pattern, name); !match || strings.HasPrefix(name, ".") || !entry.Type().IsRegular() {
			continue
		}
		if info, err := root.Lstat(name); err == nil && w.complete(name, markOf(info)) {
			w.take(ctx, root, name)
		}
	}
	maps.DeleteFunc(w.pending, func(name string, f *pendingFile) bool { return !there[name] && !f.taken })
	return nil
}

// follow makes the folder that has the name now the watched one. If a link leads to another name, that
// one has a journal of its own, which is opened when no file of the old one is in flight; until then
// the folder is not ready.
func (w *Watcher) follow(real string, root *os.Root) (ready bool, err error) {
	folder, err := root.Stat(".")
	if err != nil {
		return false, err
	}
	if real == w.real && os.SameFile(folder, w.folder) {
		return true, nil
	}
	if real != w.real {
		for _, f := range w.pending {
			if f.taken {
				return false, nil
			}
		}
		journal, err := openJournal(w.cfg.Journals, real, w.cfg.Topic)
		if err != nil {
			return false, err
		}
		_ = w.journal.Close() // each of its lines is synced
		w.journal = journal
	}
	w.real, w.folder = real, folder
	maps.DeleteFunc(w.pending, func(_ string, f *pendingFile) bool { return !f.taken })
	w.cfg.Notify(Notice{What: FolderReplaced})
	return true, nil
}

// complete reports whether a file is to be logged now.
func (w *Watcher) complete(name string, m mark) bool {
	if done, ok := w.journal.done[name]; ok && done == m {
		return false
	}
	now := time.Now()
	f := w.pending[name]
	switch {
	case f != nil && f.taken:
		return false
	case f == nil:
		f = &pendingFile{mark: m, first: now, since: now}
		w.pending[name] = f
	case f.mark != m:
		f = &pendingFile{mark: m, first: f.first, since: now}
		w.pending[name] = f
		if changing := now.Sub(f.first); changing >= max(growingAfter, 2*w.cfg.Settle) {
			w.notifyOnce(name, Notice{What: Growing, File: name, After: changing})
		}
	}
	if m.Size == 0 && w.cfg.Whole {
		return false
	}
	return now.Sub(f.since) >= w.cfg.Settle && (!f.halfLine || w.released(f))
}

// released reports whether a file is logged even if its last line has no end.
func (w *Watcher) released(f *pendingFile) bool {
	return w.ending || time.Since(f.since) >= halfLineTimes*w.cfg.Settle
}

// notifyOnce notifies unless it has done so before for this kind of notice and this subject.
func (w *Watcher) notifyOnce(about string, n Notice) {
	key := Notice{What: n.What, File: about}
	if !w.told[key] {
		w.told[key] = true
		w.cfg.Notify(n)
	}
}

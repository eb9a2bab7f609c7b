package watch

import (
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/diaspora-streams/diaspora"
)

// Config says which folder to watch, and how to create events from its files.
type Config struct {
	// Dir is the folder to watch. It must exist when the Watcher is opened. Later, the folder that has
	// this name at the time is watched: it may be removed and created again, unmounted and mounted again,
	// or be a symbolic link that is changed.
	Dir string
	// Pattern selects files by name; see [filepath.Match]. Hidden files, symbolic links, folders and other
	// files that are not regular are always ignored.
	Pattern string
	// Settle is how long a file must be unchanged before it is logged.
	Settle time.Duration

	// Journals is the folder for the journals. It is created if it does not exist.
	Journals string
	// Topic is the topic to which the files are logged. Each folder has a journal for each topic.
	Topic string
	// OtherJournals are folders with journals of the same fabric that are not used, because they belong to
	// other credentials of the user. [Watcher.Survey] reads them.
	OtherJournals []string

	// Event creates an event from a line. The watch adds the header [HeaderFile] and, if the event is a
	// line, [HeaderLine]. If the event has no key, ID or time, the watch sets the key to the file's
	// name, the ID to a hash that is the same each time the file is logged, and the time to the file's
	// modification time.
	Event func(content []byte) (diaspora.Event, error)
	// Whole passes whole files to Event instead of lines. Empty files are then ignored, because another
	// program is probably about to write them.
	Whole bool

	// Notify is called with each [Notice], on the goroutine that calls the Watcher's methods.
	Notify func(Notice)
	// Progress wraps the content of a file, for example to show how much of it has been read. The file is
	// read through the returned reader, which is then closed.
	Progress func(file string, content io.Reader) io.ReadCloser
}

// Names of the headers that say where an event comes from: HeaderFile has the name of its file, and
// HeaderLine the number of its line.
const (
	HeaderFile = "file"
	HeaderLine = "line"
)

// Logger is the part of a [diaspora.Logger] that a Watcher uses. Send must call done once, and before
// the Watcher is closed, or the file is logged again by the next watch.
type Logger interface {
	Send(event diaspora.Event, done func(diaspora.Record, error))
}

// Notice is a message for the person who runs the watch. Which fields are set depends on What.
type Notice struct {
	What   What
	File   string
	Line   int           // from 1; 0 stands for the whole file
	Events int64         // number of events that were logged
	Bytes  int64         // the file's size
	Files  int           // number of files
	After  time.Duration // how long something has lasted, or may last
	Err    error
}

// What is the kind of a [Notice].
type What int

const (
	Logged           What = iota // File is finished, with Events and Bytes
	Refused                      // Line of File can never be logged, because of Err
	RefusedFile                  // File is finished, but some of its events were rejected
	Unreadable                   // File cannot be read, because of Err; the watch tries again
	Growing                      // File has kept changing for After; it is logged once it stops changing
	HalfLine                     // File is not logged for up to After, because its last line has no line feed
	Empty                        // File has had no content for a while, and is not logged as long as that is so
	Again                        // File is logged again, because it has changed
	Unsettled                    // the watch has ended before it could log files that had just changed; Files is their number
	FolderUnreadable             // the folder cannot be read, because of Err; the watch tries again
	FolderReadable               // the folder can be read again
	FolderReplaced               // the folder's name now belongs to another folder, which is watched instead
	NewFolders                   // there are new folders in the folder, which are not watched; Files is their number and File the first one
	NewLinks                     // as NewFolders, for symbolic links that match the pattern
	NewOtherCase                 // as NewFolders, for files that match the pattern only if upper and lower case do not differ
)

// JournalError reports that the journal cannot be opened or written.
type JournalError struct{ Err error }

func (e *JournalError) Error() string { return e.Err.Error() }
func (e *JournalError) Unwrap() error { return e.Err }

// Watcher watches one folder. Its methods must not be called concurrently.
type Watcher struct {
	cfg     Config
	logger  Logger
	journal *journal
	pending map[string]*pendingFile // by name

	// The folder is opened by name and closed again each time it is read. Another folder may have
	// taken its place, and a disk cannot be unmounted while a folder on it is open.
	real   string      // the last path of cfg.Dir, with symbolic links resolved; journal belongs to it
	folder fs.FileInfo // the folder that was at this path

	ending     bool            // set by Finish: files whose last line has no line feed are logged too
	unreadable string          // why the folder cannot be read; "" if it can
	apart      map[string]bool // the names of folders, links and files that Survey has counted or a notice has reported
	sent       map[Notice]bool // notices that were sent and are not repeated; only What and File are set

	mu       sync.Mutex      // guards finished
	finished []*fileInFlight // files whose events all have an outcome, but that are not in the journal yet
	wake     chan struct{}   // receives a value when finished has grown; its capacity is 1
}

// pendingFile is a file that is not in the journal yet.
type pendingFile struct {
	mark
	first    time.Time // when it was first seen, or first seen again after it was logged
	since    time.Time // when it was last seen to have changed, or when logging it last failed
	inFlight bool      // it is being read, or its events are in flight
	halfLine bool      // its last line has no line feed
	problem  string    // why it could not be read, as in the last notice
}

// halfLineTimes multiplies [Config.Settle] for a file whose last line has no line feed, because the
// writer may have stopped in the middle of a line.
const halfLineTimes = 10

// emptyAfter is how long a file may stay empty before an [Empty] notice is sent: some programs create a file long before they
// write to it.
const emptyAfter = 10 * time.Second

// growingAfter is how long a file may keep changing before a [Growing] notice is sent.
const growingAfter = time.Minute

// Open opens the journal of a folder. It fails with a [*JournalError] if the journal cannot be used, and
// with another error if the folder cannot be read. The caller closes the Watcher.
func Open(cfg Config) (_ *Watcher, err error) {
	if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return nil, err
	}
	w := &Watcher{cfg: cfg, pending: map[string]*pendingFile{}, apart: map[string]bool{}, sent: map[Notice]bool{}, wake: make(chan struct{}, 1)}
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

// Journal returns the path of the journal's file.
func (w *Watcher) Journal() string { return w.journal.name }

// openFolder opens the folder that cfg.Dir names now. It also returns the folder's path with symbolic
// links resolved.
func (w *Watcher) openFolder() (real string, root *os.Root, err error) {
	if real, err = filepath.EvalSymlinks(w.cfg.Dir); err != nil {
		return "", nil, err
	}
	root, err = os.OpenRoot(real)
	return real, root, err
}

// Survey has counts of the files in a folder.
type Survey struct {
	Files     int64            // regular files that are not hidden
	Matching  int64            // of Files: files that match the pattern
	New       int64            // of Matching: files that have content and have not been logged
	Logged    int64            // of Matching: files that were logged to the topic and have not changed
	Refused   int64            // of Matching: files that were refused, or of which a line was, and that have not changed
	Empty     int64            // of Matching: files without content that have not been logged
	Changed   int64            // of Matching: files that have changed since they were logged
	Before    int64            // of New and Changed: files that were logged to the topic according to [Config.OtherJournals]
	Elsewhere map[string]int64 // of Matching: files that were logged to other topics, by topic, unless their events were discarded

	RefusedFile string // one of Refused; "" if there is none

	Unmatched string // a file that does not match the pattern; "" if there is none
	OtherCase bool   // Unmatched would match if upper and lower case did not differ

	Folders, Links int64 // folders and symbolic links that are not hidden; they are not watched
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
	var others []pastJournal
	for _, dir := range w.cfg.OtherJournals {
		others = append(others, readJournals(dir)...)
	}
	before := func(name string, info fs.FileInfo) {
		if slices.ContainsFunc(others, func(j pastJournal) bool {
			return j.Watch == real && j.Topic == w.cfg.Topic && j.done[name] == markOf(info)
		}) {
			s.Before++
		}
	}
	s.Elsewhere = map[string]int64{}
	for _, entry := range entries {
		name := entry.Name()
		switch {
		case strings.HasPrefix(name, "."):
			continue
		case entry.IsDir():
			s.Folders++
			w.apart[name] = true
			continue
		case entry.Type()&fs.ModeSymlink != 0:
			s.Links++
			w.apart[name] = true
			continue
		case !entry.Type().IsRegular():
			continue
		}
		s.Files++
		if match, otherCase := w.match(name); !match {
			if s.Unmatched == "" || otherCase && !s.OtherCase {
				s.Unmatched, s.OtherCase = name, otherCase
			}
			w.apart[name] = true
			continue
		}
		s.Matching++
		info, err := root.Lstat(name)
		if err != nil {
			continue
		}
		switch done, ok := w.journal.done[name]; {
		case ok && done == markOf(info) && w.journal.refused[name]:
			s.Refused++
			s.RefusedFile = cmp.Or(s.RefusedFile, name)
		case ok && done == markOf(info):
			s.Logged++
		case ok:
			s.Changed++
			before(name, info)
		case info.Size() == 0:
			s.Empty++
		default:
			s.New++
			before(name, info)
		}
		for _, j := range journals {
			if j.Watch == real && j.Topic != w.cfg.Topic && j.done[name] == markOf(info) {
				s.Elsewhere[j.Topic]++
			}
		}
	}
	return s, nil
}

// Run logs the files of the folder until ctx ends, and then returns nil. Events may still be in flight
// at that time. Run fails only if the journal cannot be written, with a [*JournalError].
//
// Run polls the folder, because network file systems do not send notifications of changes.
func (w *Watcher) Run(ctx context.Context, logger Logger) error {
	w.logger = logger
	every := time.NewTicker(min(time.Second, max(w.cfg.Settle/4, 100*time.Millisecond)))
	defer every.Stop()
	for {
		w.scan(ctx)
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

// Finish reads the folder for the last time after Run has returned. It logs the files that are complete,
// even if their last line has no line feed. The Logger must still accept events. ctx limits the time for
// reading.
func (w *Watcher) Finish(ctx context.Context) {
	w.ending = true
	w.scan(ctx)
	unsettled := 0
	for _, f := range w.pending {
		if !f.inFlight && f.problem == "" && (f.Size > 0 || !w.cfg.Whole) {
			unsettled++
		}
	}
	if unsettled > 0 {
		w.cfg.Notify(Notice{What: Unsettled, Files: unsettled})
	}
}

// Close adds the files to the journal that were finished after Run returned. It then closes the journal,
// so that another process can watch the folder. Close the Logger first: closing it reports the outcome of
// the events in flight. Close may be called twice.
func (w *Watcher) Close() error {
	return errors.Join(w.record(), w.journal.Close())
}

// record adds the files whose events all have an outcome to the journal. A file with an event that may be
// lost is logged again after [Config.Settle] instead.
func (w *Watcher) record() error {
	w.mu.Lock()
	finished := w.finished
	w.finished = nil
	w.mu.Unlock()
	var lines []journalLine
	for _, t := range finished {
		if t.mayBeLost {
			f := w.pending[t.File]
			f.inFlight, f.since = false, time.Now()
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

// scan reads the folder once and logs the files that are complete. It sends a notice when the folder
// becomes unreadable and when it becomes readable again.
func (w *Watcher) scan(ctx context.Context) {
	err := w.scanFolder(ctx)
	switch {
	case err != nil && err.Error() != w.unreadable:
		w.unreadable = err.Error()
		w.cfg.Notify(Notice{What: FolderUnreadable, Err: err})
	case err == nil && w.unreadable != "":
		w.unreadable = ""
		w.cfg.Notify(Notice{What: FolderReadable})
	}
}

// scanFolder reads the folder once, and calls logFile for each file that is complete.
func (w *Watcher) scanFolder(ctx context.Context) error {
	real, root, err := w.openFolder()
	if err != nil {
		return err
	}
	defer root.Close()
	if ready, err := w.followFolder(real, root); !ready {
		return err
	}
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return err
	}
	there := make(map[string]bool, len(entries))
	var folders, links, otherCase []string // new ones
	for _, entry := range entries {
		name := entry.Name()
		there[name] = true
		if ctx.Err() != nil {
			return nil
		}
		match, nearly := w.match(name)
		if !strings.HasPrefix(name, ".") && !w.apart[name] {
			var news *[]string
			switch {
			case entry.IsDir():
				news = &folders
			case match && entry.Type()&fs.ModeSymlink != 0:
				news = &links
			case nearly && entry.Type().IsRegular():
				news = &otherCase
			}
			if news != nil {
				*news, w.apart[name] = append(*news, name), true
			}
		}
		if !match || strings.HasPrefix(name, ".") || !entry.Type().IsRegular() {
			continue
		}
		if info, err := root.Lstat(name); err == nil && w.complete(name, markOf(info)) {
			w.logFile(ctx, root, name)
		}
	}
	maps.DeleteFunc(w.pending, func(name string, f *pendingFile) bool { return !there[name] && !f.inFlight })
	if len(folders) > 0 {
		w.cfg.Notify(Notice{What: NewFolders, File: folders[0], Files: len(folders)})
	}
	if len(links) > 0 {
		w.cfg.Notify(Notice{What: NewLinks, File: links[0], Files: len(links)})
	}
	if len(otherCase) > 0 {
		w.cfg.Notify(Notice{What: NewOtherCase, File: otherCase[0], Files: len(otherCase)})
	}
	return nil
}

// match reports whether a name matches the pattern, or would match if upper and lower case did not differ: an instrument
// may write SCAN-1.JSON where the pattern has *.json.
func (w *Watcher) match(name string) (match, otherCase bool) {
	if match, _ = filepath.Match(w.cfg.Pattern, name); !match {
		otherCase, _ = filepath.Match(strings.ToLower(w.cfg.Pattern), strings.ToLower(name))
	}
	return match, otherCase
}

// followFolder checks whether cfg.Dir names another folder than before, and switches to that folder. A folder
// with another path has its own journal. It is opened only when no events of the old folder's files are
// in flight, because their files must be added to the old journal. Until then, followFolder returns false.
func (w *Watcher) followFolder(real string, root *os.Root) (ready bool, err error) {
	folder, err := root.Stat(".")
	if err != nil {
		return false, err
	}
	if real == w.real && os.SameFile(folder, w.folder) {
		return true, nil
	}
	if real != w.real {
		for _, f := range w.pending {
			if f.inFlight {
				return false, nil
			}
		}
		journal, err := openJournal(w.cfg.Journals, real, w.cfg.Topic)
		if err != nil {
			return false, err
		}
		_ = w.journal.Close() // nothing is lost on an error, because every line was synced
		w.journal = journal
	}
	w.real, w.folder = real, folder
	maps.DeleteFunc(w.pending, func(_ string, f *pendingFile) bool { return !f.inFlight })
	w.cfg.Notify(Notice{What: FolderReplaced})
	return true, nil
}

// complete reports whether a file should be logged now. It keeps track of the changes of files in
// w.pending.
func (w *Watcher) complete(name string, m mark) bool {
	if done, ok := w.journal.done[name]; ok && done == m {
		return false
	}
	now := time.Now()
	f := w.pending[name]
	switch {
	case f != nil && f.inFlight:
		return false
	case f == nil:
		f = &pendingFile{mark: m, first: now, since: now}
		w.pending[name] = f
	case f.mark != m:
		first := f.first
		if f.Size == 0 { // it did not change while it was empty
			first = now
		}
		f = &pendingFile{mark: m, first: first, since: now}
		w.pending[name] = f
		if changing := now.Sub(f.first); changing >= max(growingAfter, 2*w.cfg.Settle) {
			w.notifyOnce(name, Notice{What: Growing, File: name, After: changing})
		}
	}
	if m.Size == 0 && w.cfg.Whole {
		if now.Sub(f.since) >= max(emptyAfter, w.cfg.Settle) {
			w.notifyOnce(name, Notice{What: Empty, File: name})
		}
		return false
	}
	return now.Sub(f.since) >= w.cfg.Settle && (!f.halfLine || w.logsHalfLine(f))
}

// logsHalfLine reports whether a file should be logged even if its last line has no line feed.
func (w *Watcher) logsHalfLine(f *pendingFile) bool {
	return w.ending || time.Since(f.since) >= halfLineTimes*w.cfg.Settle
}

// notifyOnce sends a notice, unless one of the same kind about the same file was sent before. If about
// is "", the notice is sent only once for all files.
func (w *Watcher) notifyOnce(about string, n Notice) {
	key := Notice{What: n.What, File: about}
	if !w.sent[key] {
		w.sent[key] = true
		w.cfg.Notify(n)
	}
}

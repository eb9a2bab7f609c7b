package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/diaspora-streams/diaspora"
)

// watchOptions are those of produce --watch.
type watchOptions struct {
	dir     string
	pattern string
	settle  time.Duration
}

// watcher logs the files that come into a folder, each once it is complete. It looks again
// and again, for that works on every file system. Each time it opens the folder by its name, and
// closes it again: another may have taken its place, and a disk that is in use cannot be unmounted.
type watcher struct {
	watchOptions
	open    func(real string) (*journal, error)
	p       *production
	spools  string // the folder of the spools to which the journals belong
	key     []byte // of all events, or nil
	whole   func(content []byte) diaspora.Event
	waiting map[string]*waitingFile

	real    string      // where dir led, links resolved; the journal is that of this name
	folder  fs.FileInfo // what was there
	journal *journal
	blind   string // what was said of a folder that cannot be read

	source source // the file that is being read

	ending  bool            // the run ends, and with it what is held back
	toldOf  bool            // files that are held back
	growing map[string]bool // files of which was told that they keep changing
	again   map[string]bool // files of which was told that they are logged again

	mu       sync.Mutex    // guards the field below
	answered []*takenFile  // all is known of them, but the journal does not have it yet
	wake     chan struct{} // has room for one
}

// waitingFile is a file that is not done with.
type waitingFile struct {
	mark
	first   time.Time // it was seen, and has not been logged since
	since   time.Time // it has not changed
	taken   bool      // its events are on their way
	held    bool      // its last line has not ended
	problem string    // that was told
}

// heldTimes is how much longer than others a file must not have changed whose last line has not ended: whoever
// writes it may have stopped in the middle of a line.
const heldTimes = 10

// growsAfter is for how long a file may change before a person is told that it is not logged while it does.
const growsAfter = time.Minute

// headerFile names the file in each of its events, headerLine the line.
const (
	headerFile = "file"
	headerLine = "line"
)

func (o watchOptions) validate(files []string) error {
	_, err := filepath.Match(o.pattern, "x")
	info, statErr := os.Stat(o.dir)
	switch {
	case statErr != nil && strings.HasPrefix(o.dir, "-"): // the flag behind --watch was taken as its value
		return misuse("write --watch DIR", "produce: the folder is missing after --watch")
	case statErr == nil && !info.IsDir():
		return misuse(patternApart(filepath.Dir(o.dir)), "produce: --watch takes a folder, and %s is none", o.dir)
	case len(files) > 0 && o.pattern != anyName:
		return misuse("put the pattern in quotes, or the shell replaces it by names of files: --pattern '*.json'",
			"produce: with --watch and --pattern %s, files stand there too (%s)", o.pattern, firstAndMore(files))
	case len(files) > 0:
		return misuse("leave the files out: --watch takes those that are in the folder", "produce: --watch and files exclude each other (%s)", firstAndMore(files))
	case err != nil || o.pattern == "":
		return misuse("", "produce: --pattern %q is no pattern, such as '*.json'", o.pattern)
	case strings.ContainsRune(o.pattern, '/'):
		return misuse("", "produce: --pattern %q: it is for names in the folder, which have no /", o.pattern)
	case o.settle < 0:
		return misuse("", "produce: --settle is negative")
	}
	return nil
}

// anyName is the pattern of all files.
const anyName = "*"

// patternApart says how files of a folder are chosen.
func patternApart(dir string) string {
	return fmt.Sprintf("name the folder, and a pattern for the files: --watch %s --pattern '*.json'", shellWord(dir))
}

// firstAndMore names the first of several files.
func firstAndMore(files []string) string {
	if len(files) == 1 {
		return files[0]
	}
	return files[0] + ", …"
}

// openWatch opens what is to be watched.
func (e *env) openWatch(o produceOptions, topic string, files []string) (*watcher, error) {
	if len(o.values) > 0 {
		return nil, misuse("", "produce: --watch and --value exclude each other")
	}
	if err := o.watch.validate(files); err != nil {
		return nil, err
	}
	w, err := e.openWatcher(o.watch, topic)
	if err != nil {
		return nil, err
	}
	if o.keyed {
		w.key = []byte(o.key)
	}
	if o.input == "file" {
		common, _ := o.commonHeaders() // parser has looked at them
		w.whole = func(content []byte) diaspora.Event {
			return diaspora.Event{Topic: topic, Value: content, Headers: common}
		}
	}
	return w, nil
}

// openWatcher opens the journal of a folder, which must be there.
func (e *env) openWatcher(o watchOptions, topic string) (*watcher, error) {
	dir, err := filepath.Abs(o.dir)
	if err != nil {
		return nil, misuse("", "produce: watch %s: %v", o.dir, err)
	}
	w := newWatcher(o)
	w.dir = dir
	if w.spools, err = e.spoolHome(); err != nil {
		return nil, err
	}
	real, root, err := w.openFolder()
	if err != nil {
		hint := ""
		if parent, name := filepath.Split(o.dir); strings.ContainsAny(name, "*?[") && errors.Is(err, fs.ErrNotExist) {
			hint = fmt.Sprintf("a pattern stands apart, in quotes: --watch %s --pattern '%s'", shellWord(filepath.Clean(parent)), name)
		}
		return nil, misuse(hint, "produce: watch %s: %v", o.dir, innermost(err))
	}
	defer root.Close()
	w.open = func(real string) (*journal, error) { return e.openFolderJournal(real, topic) }
	w.real = real
	if w.folder, err = root.Stat("."); err == nil {
		w.journal, err = w.open(real)
	}
	if err != nil {
		err = fmt.Errorf("produce: the journal of %s: %w", o.dir, err)
		if unwritable(err) {
			err = hinted(err, "set DIASPORA_STATE_DIR to a folder where you may write")
		}
		return nil, err
	}
	return w, nil
}

func newWatcher(o watchOptions) *watcher {
	return &watcher{
		watchOptions: o, waiting: map[string]*waitingFile{}, growing: map[string]bool{}, again: map[string]bool{},
		wake: make(chan struct{}, 1),
	}
}

// openFolder opens the folder that is there now, and returns its name without links.
func (w *watcher) openFolder() (real string, root *os.Root, err error) {
	if real, err = filepath.EvalSymlinks(w.dir); err != nil {
		return "", nil, err
	}
	root, err = os.OpenRoot(real)
	return real, root, err
}

func (e *env) openFolderJournal(real, topic string) (*journal, error) {
	name, err := e.journalName(real, topic)
	if err != nil {
		return nil, err
	}
	return openJournal(name, real, topic, func(file string) bool {
		_, err := os.Lstat(filepath.Join(real, file))
		return !errors.Is(err, fs.ErrNotExist)
	})
}

// journalName returns where the journal of a folder is: by profile, folder and topic.
func (e *env) journalName(dir, topic string) (string, error) {
	spools, err := e.spoolHome()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(dir + "\x00" + topic))
	return filepath.Join(journalFolder(spools), hex.EncodeToString(sum[:8])+".ndjson"), nil
}

func innermost(err error) error {
	if cause := (*fs.PathError)(nil); errors.As(err, &cause) {
		return cause.Err
	}
	return err
}

// introduction says what is watched, and what of it is logged already.
func (w *watcher) introduction(topic string) string {
	text := "watching " + w.dir
	real, root, err := w.openFolder()
	if err != nil {
		return text // look tells
	}
	defer root.Close()
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return text
	}
	pasts := slices.DeleteFunc(pastWatches(w.spools), func(past pastWatch) bool { return past.Watch != real || past.Topic == topic })
	var there, matching, logged, changed int64
	others := map[string]int64{} // files that were logged, by the topic
	for _, entry := range entries {
		name := entry.Name()
		if strings.HasPrefix(name, ".") || !entry.Type().IsRegular() {
			continue
		}
		there++
		if match, _ := filepath.Match(w.pattern, name); !match {
			continue
		}
		matching++
		info, err := root.Lstat(name)
		if err != nil {
			continue
		}
		if done, ok := w.journal.done[name]; ok && done == markOf(info) {
			logged++
		} else if ok {
			changed++
		}
		for _, past := range pasts {
			if past.done[name] == markOf(info) {
				others[past.Topic]++
			}
		}
	}
	switch {
	case there == 0:
		return text + ": no file is there yet"
	case matching == 0:
		text += fmt.Sprintf(": none of the %s there matches the pattern '%s'", count(there, "file"), w.pattern)
		if !strings.ContainsAny(w.pattern, "*?[") {
			text += fmt.Sprintf("; a pattern is for the whole name, as '*.%s'", strings.TrimPrefix(w.pattern, "."))
		}
		return text
	}
	match := "match"
	if matching == 1 {
		match = "matches"
	}
	text += fmt.Sprintf(": %s %s, %d %s logged already", count(matching, "file"), match, logged, isOrAre(logged))
	if changed > 0 {
		text += fmt.Sprintf(", %d %s changed since", changed, hasOrHave(changed))
	}
	text += fmt.Sprintf(" (journal in %s)", filepath.Dir(w.journal.name))
	for _, other := range slices.Sorted(maps.Keys(others)) {
		text += fmt.Sprintf("; %d of them %s logged to %s as well", others[other], wasOrWere(others[other]), other)
	}
	return text
}

func hasOrHave(n int64) string {
	if n == 1 {
		return "has"
	}
	return "have"
}

func (w *watcher) Close() error { return w.journal.Close() }

// run looks at the folder until ctx ends, and then once more for what was held back.
func (w *watcher) run(ctx context.Context) error {
	every := time.NewTicker(min(time.Second, max(w.settle/4, 100*time.Millisecond)))
	defer every.Stop()
	for {
		w.look(ctx)
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				w.end(ctx)
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

// end takes the files that were held back.
func (w *watcher) end(ctx context.Context) {
	if w.p.failure() != nil {
		return
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), interruptedFlush)
	defer cancel()
	w.ending = true
	w.look(last)
	unsettled := int64(0)
	for _, f := range w.waiting {
		if !f.taken && f.problem == "" && (f.Size > 0 || w.whole == nil) {
			unsettled++
		}
	}
	if unsettled > 0 {
		w.p.env.warn("%s changed within --settle (%v) and %s not logged; the next such watch logs what has rested by then", count(unsettled, "file"), w.settle, isOrAre(unsettled))
	}
}

// record notes in the journal which files are done with. Others come again when they have settled.
func (w *watcher) record() error {
	w.mu.Lock()
	answered := w.answered
	w.answered = nil
	w.mu.Unlock()
	var lines []journalLine
	for _, t := range answered {
		if t.lost {
			f := w.waiting[t.File]
			f.taken, f.since = false, w.p.env.now()
			continue
		}
		lines = append(lines, t.journalLine)
	}
	if len(lines) == 0 {
		return nil
	}
	if err := w.journal.add(lines); err != nil {
		return &failure{condition: diaspora.ErrSpoolFailed, text: fmt.Sprintf("produce: write the journal %s: %v", w.journal.name, err)}
	}
	for _, line := range lines {
		delete(w.waiting, line.File)
		if e := w.p.env; line.Refused == "" && e.terminal(e.stderr) {
			e.say("logged %s: %s, %s", line.File, count(int64(line.Events), "event"), size(line.Size))
		}
		if line.Refused != "" {
			w.p.env.warn("%s: noted in %s, and not tried again unless it changes", line.File, w.journal.name)
		}
	}
	return nil
}

// look takes the files that are complete.
func (w *watcher) look(ctx context.Context) {
	if err := w.lookInto(ctx); err != nil {
		if text := innermost(err).Error(); text != w.blind {
			w.blind = text
			w.p.env.warn("%s cannot be read: %s; trying again", w.dir, text)
		}
		return
	}
	if w.blind != "" {
		w.blind = ""
		w.p.env.warn("%s can be read again", w.dir)
	}
}

// lookInto opens the folder and takes the files that are complete.
func (w *watcher) lookInto(ctx context.Context) error {
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
		if match, _ := filepath.Match(w.pattern, name); !match || strings.HasPrefix(name, ".") || !entry.Type().IsRegular() {
			continue
		}
		if info, err := root.Lstat(name); err == nil && w.complete(name, markOf(info)) {
			w.take(ctx, root, name)
		}
	}
	for name, f := range w.waiting {
		if !there[name] && !f.taken {
			delete(w.waiting, name)
		}
	}
	return nil
}

// follow makes the folder that is there now the watched one. If that has another name, since a link
// leads elsewhere, the journal is another one as well, and files under way have to be done with first;
// until then it is not ready.
func (w *watcher) follow(real string, root *os.Root) (ready bool, err error) {
	folder, err := root.Stat(".")
	if err != nil {
		return false, err
	}
	if real == w.real && os.SameFile(folder, w.folder) {
		return true, nil
	}
	if real != w.real {
		for _, f := range w.waiting {
			if f.taken {
				return false, nil
			}
		}
		journal, err := w.open(real)
		if err != nil {
			return false, err
		}
		_ = w.journal.Close() // each of its lines is synced
		w.journal = journal
	}
	w.real, w.folder = real, folder
	maps.DeleteFunc(w.waiting, func(_ string, f *waitingFile) bool { return !f.taken })
	w.p.env.warn("%s is another folder now; files that it had before and that were not logged yet are left alone", w.dir)
	return true, nil
}

// complete reports whether a file is to be logged now.
func (w *watcher) complete(name string, m mark) bool {
	if done, ok := w.journal.done[name]; ok && done == m {
		return false
	}
	f := w.waiting[name]
	switch {
	case f != nil && f.taken:
		return false
	case f == nil || f.mark != m:
		now := w.p.env.now()
		first := now
		if f != nil {
			first = f.first
		}
		f = &waitingFile{mark: m, first: first, since: now}
		w.waiting[name] = f
		w.tellGrowing(name, now.Sub(first))
	}
	if m.Size == 0 && w.whole != nil {
		return false // somebody is about to write it
	}
	return w.p.env.now().Sub(f.since) >= w.settle && (!f.held || w.released(f))
}

// tellGrowing says once that a file is not logged as long as it keeps changing.
func (w *watcher) tellGrowing(name string, changing time.Duration) {
	if changing < max(growsAfter, 2*w.settle) || w.growing[name] {
		return
	}
	w.growing[name] = true
	w.p.env.warn("%s has been changing for %v and is not logged yet: a file is logged when it has rested for --settle (%v); write lines to a new file each minute, or pipe them in",
		name, changing.Round(time.Second), w.settle)
}

// tellAgain says once that a file is logged again.
func (w *watcher) tellAgain(name string) {
	if _, logged := w.journal.done[name]; logged && !w.again[name] {
		w.again[name] = true
		w.p.env.warn("%s has changed since it was logged, and is logged again, whole", name)
	}
}

// released reports whether a file is logged even if its last line has not ended.
func (w *watcher) released(f *waitingFile) bool {
	return w.ending || w.p.env.now().Sub(f.since) >= heldTimes*w.settle
}

// hold reports whether a file is to be held back.
func (w *watcher) hold(f *waitingFile, name string, file *os.File) bool {
	if w.whole != nil || f.Size == 0 || w.released(f) {
		return false
	}
	var last [1]byte
	if _, err := file.ReadAt(last[:], f.Size-1); err != nil || last[0] == '\n' {
		return false // of an error reading tells
	}
	f.held = true
	if !w.toldOf {
		w.toldOf = true
		w.p.env.warn("%s: the last line has not ended; such a file is logged when it has not changed for %v, or when you end this program", name, heldTimes*w.settle)
	}
	return true
}

// take logs a file of the folder.
func (w *watcher) take(ctx context.Context, root *os.Root, name string) {
	f := w.waiting[name]
	file, err := openFile(root, name, f.mark)
	if err != nil {
		w.tell(f, name, err)
		f.since = w.p.env.now()
		return
	}
	defer file.Close()
	if w.hold(f, name, file) {
		return
	}
	w.tellAgain(name)
	f.taken = true
	counted := w.source.begin(name, file)
	defer w.source.end()
	t := &takenFile{watcher: w, journalLine: journalLine{File: name, mark: f.mark}, left: 1}
	if w.whole != nil {
		err = t.logWhole(counted)
	} else {
		err = t.logLines(ctx, counted)
	}
	if err == nil {
		err = unchanged(file, f.mark)
	}
	if ctx.Err() == nil {
		w.tell(f, name, err)
	}
	t.finished(err)
}

// tell says once why a file has to wait.
func (w *watcher) tell(f *waitingFile, name string, err error) {
	if err == nil || err == errChanged || errors.Is(err, fs.ErrNotExist) {
		return
	}
	if text := innermost(err).Error(); text != f.problem {
		f.problem = text
		w.p.env.warn("%s: not logged yet: %s", name, text)
	}
}

var errChanged = errors.New("it has changed")

// openFile opens a file of the folder; a link that has taken its place leads to nothing outside.
func openFile(root *os.Root, name string, m mark) (*os.File, error) {
	file, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe would not open
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

// takenFile is a file whose events are on their way.
type takenFile struct {
	*watcher

	mu sync.Mutex // guards the fields below
	journalLine
	left int  // events on their way, and one for reading
	lost bool // an event is not known to be safe, and the file comes again
}

// logWhole logs a file as one event.
func (t *takenFile) logWhole(file io.Reader) error {
	if t.Size > maxLineBytes {
		t.log(0, diaspora.Event{}, fmt.Errorf("it has %d bytes; an event may have at most %d", t.Size, maxLineBytes))
		return nil
	}
	content, err := io.ReadAll(io.LimitReader(file, t.Size+1))
	if err == nil && int64(len(content)) != t.Size {
		err = errChanged
	}
	if err == nil {
		t.log(0, t.whole(content), nil)
	}
	return err
}

// logLines logs each line of a file as an event.
func (t *takenFile) logLines(ctx context.Context, file io.Reader) error {
	lines := newLineReader(file, maxLineBytes)
	for ctx.Err() == nil {
		line, err := lines.next()
		var bad *lineError
		switch {
		case err == io.EOF:
			return nil
		case errors.As(err, &bad):
			t.log(lines.number, diaspora.Event{}, bad.err)
		case err != nil:
			return err
		default:
			event, err := t.p.parse(bytes.Clone(line))
			t.log(lines.number, event, err)
		}
	}
	return ctx.Err()
}

// log hands an event over, with what a watcher adds to it.
func (t *takenFile) log(number int, event diaspora.Event, err error) {
	t.mu.Lock()
	t.left++
	t.mu.Unlock()
	if event.Key == nil {
		if event.Key = t.key; event.Key == nil {
			event.Key = []byte(t.File)
		}
	}
	event.Headers = append(event.Headers[:len(event.Headers):len(event.Headers)], diaspora.Header{Key: headerFile, Value: []byte(t.File)})
	if number > 0 {
		event.Headers = append(event.Headers, diaspora.Header{Key: headerLine, Value: fmt.Append(nil, number)})
	}
	if event.ID == "" {
		event.ID = t.eventID(number, event.Value)
	}
	if event.Time.IsZero() {
		event.Time = time.Unix(0, t.Mtime)
	}
	never := err != nil // else the Logger says
	t.p.log(t.File, number, event, err, func(err error) { t.know(err, never || errors.Is(err, diaspora.ErrInvalid)) })
}

// eventID is the same whenever the same event of the same file is logged again.
func (t *takenFile) eventID(number int, value []byte) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s\x00%s\x00%d %d %d\x00", t.journal.id, t.File, t.Size, t.Mtime, number)
	h.Write(value)
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// know takes an event's fate: nil, or why it was not logged, and whether it never will be.
func (t *takenFile) know(err error, never bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err == nil:
		t.Events++
	case !never:
		t.lost = true
	case t.Refused == "":
		t.Refused, _ = explanation(err)
	}
	t.leave()
}

// finished says that all of the file was handed over, or why not.
func (t *takenFile) finished(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lost = t.lost || err != nil
	t.leave()
}

// leave hands a file back of which all is known. The caller holds mu.
func (t *takenFile) leave() {
	if t.left--; t.left > 0 {
		return
	}
	t.watcher.mu.Lock()
	t.watcher.answered = append(t.watcher.answered, t)
	t.watcher.mu.Unlock()
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

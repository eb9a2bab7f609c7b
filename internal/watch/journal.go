package watch

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/gofrs/flock"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

// A journal lists the files of a folder that were logged to a topic. It is a file with one JSON object
// on each line: first a journalHead, then a journalLine for each file. Lines are appended and synced. A
// line that is incomplete after a crash is ignored.
type journal struct {
	name string
	file *os.File
	lock *flock.Flock
	id   string          // random; part of the hash that is an event's ID
	done map[string]mark // the files that were logged or refused, by name

	refused map[string]bool // those of done that were refused, or of which a line was
}

// mark identifies a version of a file. If it differs, the file has changed or was replaced by another
// one of the same name.
type mark struct {
	Size  int64 `json:"size"`
	Mtime int64 `json:"mtime"` // in nanoseconds since 1970
}

func markOf(info fs.FileInfo) mark { return mark{info.Size(), info.ModTime().UnixNano()} }

type journalHead struct {
	Watch string `json:"watch"` // the folder, with symbolic links resolved
	Topic string `json:"topic"`
	ID    string `json:"id"`
}

type journalLine struct {
	File string `json:"file"`
	mark
	Events  int64  `json:"events"`
	Refused string `json:"refused,omitempty"` // why the file, or the first rejected line, was not logged

	// Discarded says that the events of the file were removed from the spool, so they have not reached the topic. The
	// file still counts as logged. Such a line follows the one that says that the file was logged.
	Discarded bool `json:"discarded,omitempty"`
}

// Conditions of a [JournalError].
var (
	ErrInUse     = errors.New("another process watches")
	ErrNoJournal = errors.New("it does not begin as a journal")
)

// A journal with more than compactLines lines is compacted when it is opened, if most of its files have
// been removed from the folder. If all of them are missing, the folder's disk may not be mounted. The
// files would then be logged again once it is mounted, so the journal is compacted only if it has more
// than maxAbsent lines.
const (
	compactLines = 1000
	maxAbsent    = 100_000
)

// openJournal opens and locks the journal of a folder and a topic. It creates the journal if it does not
// exist. Its error is a [*JournalError], with [ErrInUse] if another process holds the lock.
func openJournal(journals, dir, topic string) (_ *journal, err error) {
	sum := sha256.Sum256([]byte(dir + "\x00" + topic))
	j := &journal{name: filepath.Join(journals, hex.EncodeToString(sum[:8])+".ndjson"), done: map[string]mark{}, refused: map[string]bool{}}
	if err := os.MkdirAll(journals, 0o700); err != nil {
		return nil, &JournalError{err}
	}
	j.lock = flock.New(j.name + ".lock")
	if mine, err := j.lock.TryLock(); err != nil {
		return nil, &JournalError{err}
	} else if !mine {
		return nil, &JournalError{fmt.Errorf("%w %s for topic %q", ErrInUse, dir, topic)}
	}
	if err := j.open(dir, topic); err != nil {
		j.Close()
		return nil, &JournalError{fmt.Errorf("%s: %w", j.name, err)}
	}
	return j, nil
}

func (j *journal) open(dir, topic string) (err error) {
	if j.file, err = os.OpenFile(j.name, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600); err != nil {
		return err
	}
	content, err := io.ReadAll(j.file)
	if err != nil {
		return err
	}
	head, lines, torn, err := readJournal(bytes.NewReader(content))
	if err != nil {
		return err
	}
	if head.ID == "" {
		head = journalHead{Watch: dir, Topic: topic, ID: rand.Text()}
		j.id = head.ID
		return j.replace(encodeJournal(head, nil))
	}
	j.id = head.ID
	j.remember(lines)
	if torn {
		content = append(content, '\n') // ends the incomplete line, so that the next one is not appended to it
	}
	if len(lines) > compactLines {
		var kept []journalLine
		for _, line := range lines {
			_, err := os.Lstat(filepath.Join(dir, line.File))
			if !errors.Is(err, fs.ErrNotExist) && j.done[line.File] == line.mark {
				kept = append(kept, line)
			}
		}
		if len(kept) < len(lines)/2 && (len(kept) > 0 || len(lines) > maxAbsent) {
			content = encodeJournal(journalHead{Watch: dir, Topic: topic, ID: j.id}, kept)
		}
	}
	// Replace the file even if it has not changed. If a sync of the last process has failed, the file or
	// its end may only exist in memory, and no later sync would write that.
	return j.replace(content)
}

// readJournal returns the head and the lines of a journal, and whether its last line has no line feed. If
// the journal is empty or its head is incomplete, head.ID is "". Lines that are not valid are skipped.
func readJournal(from io.Reader) (head journalHead, lines []journalLine, torn bool, err error) {
	in := bufio.NewReader(from)
	first, err := in.ReadBytes('\n')
	if err == io.EOF {
		return head, nil, false, nil // nothing has been logged, because the head is written first
	}
	if err == nil && (json.Unmarshal(first, &head) != nil || head.ID == "") {
		err = ErrNoJournal
	}
	for err == nil {
		var text []byte
		text, err = in.ReadBytes('\n')
		var line journalLine
		if json.Unmarshal(text, &line) == nil && line.File != "" {
			lines = append(lines, line)
		}
		torn = err == io.EOF && len(text) > 0
	}
	if err == io.EOF {
		err = nil
	}
	return head, lines, torn, err
}

// pastJournal is the content of a journal that was read without locking it.
type pastJournal struct {
	journalHead
	done map[string]mark // without files whose events were discarded
}

// readJournals reads all journals in a folder. It skips damaged ones; openJournal reports the damage.
func readJournals(dir string) (all []pastJournal) {
	entries, _ := os.ReadDir(dir)
	for _, entry := range entries {
		if filepath.Ext(entry.Name()) != ".ndjson" {
			continue
		}
		f, err := os.Open(filepath.Join(dir, entry.Name()))
		if err != nil {
			continue
		}
		head, lines, _, err := readJournal(f)
		f.Close()
		if err != nil || head.ID == "" {
			continue
		}
		past := pastJournal{head, map[string]mark{}}
		for _, line := range lines {
			if past.done[line.File] = line.mark; line.Discarded {
				delete(past.done, line.File)
			}
		}
		all = append(all, past)
	}
	return all
}

// Folders returns the folders that were ever watched for a topic, according to the journals.
func Folders(journals, topic string) (dirs []string) {
	for _, j := range readJournals(journals) {
		if j.Topic == topic {
			dirs = append(dirs, j.Watch)
		}
	}
	return dirs
}

// Discarded records that the events of some files of a watched folder were removed from the spool, so [Survey] does not
// count these files as logged to the topic.
func Discarded(journals, dir, topic string, files []string) error {
	j, err := openJournal(journals, dir, topic)
	if err != nil {
		return err
	}
	var lines []journalLine
	for _, file := range files {
		if done, ok := j.done[file]; ok {
			lines = append(lines, journalLine{File: file, mark: done, Discarded: true})
		}
	}
	return errors.Join(j.add(lines), j.Close())
}

// add appends lines for files that are finished, and syncs the journal before it returns.
func (j *journal) add(lines []journalLine) error {
	_, err := j.file.Write(encodeLines(lines))
	if err == nil {
		err = j.file.Sync()
	}
	if err != nil {
		return &JournalError{fmt.Errorf("write the journal %s: %w", j.name, err)}
	}
	j.remember(lines)
	return nil
}

func (j *journal) remember(lines []journalLine) {
	for _, line := range lines {
		j.done[line.File] = line.mark
		if line.Discarded {
			continue
		}
		if line.Refused != "" {
			j.refused[line.File] = true
		} else {
			delete(j.refused, line.File)
		}
	}
}

// replace replaces the content of the journal atomically and durably.
func (j *journal) replace(content []byte) error {
	err := j.file.Close()
	if err == nil {
		err = disk.ReplaceFile(j.name, content)
	}
	if err == nil {
		j.file, err = os.OpenFile(j.name, os.O_RDWR|os.O_APPEND, 0)
	}
	return err
}

func encodeJournal(head journalHead, lines []journalLine) []byte {
	return append(encodeLines([]journalHead{head}), encodeLines(lines)...)
}

func encodeLines[T journalHead | journalLine](lines []T) (text []byte) {
	for _, line := range lines {
		object, _ := json.Marshal(line) // encoding strings and numbers cannot fail
		text = append(append(text, object...), '\n')
	}
	return text
}

// Close closes the journal and releases its lock, so that another process can open it. It may be called
// twice.
func (j *journal) Close() error {
	var err error
	if j.file != nil {
		err = j.file.Close()
	}
	return errors.Join(err, j.lock.Unlock())
}

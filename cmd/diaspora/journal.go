package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/gofrs/flock"

	"github.com/diaspora-streams/diaspora"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

// A journal remembers which files of a folder were logged to a topic. It is a file of lines
// of JSON, each synced before it counts: the first says what it is about, each other one
// that a file is done with. A line that a crash has torn does not count, so that its file
// is logged once more, under the same IDs.
type journal struct {
	name string
	file *os.File
	lock *flock.Flock
	id   string // random; goes into the events' IDs
	done map[string]mark
}

// mark tells a file from what it was before.
type mark struct {
	Size  int64 `json:"size"`
	Mtime int64 `json:"mtime"` // in nanoseconds since 1970
}

func markOf(info fs.FileInfo) mark { return mark{info.Size(), info.ModTime().UnixNano()} }

type journalHead struct {
	Watch string `json:"watch"`
	Topic string `json:"topic"`
	ID    string `json:"id"`
}

type journalLine struct {
	File string `json:"file"`
	mark
	Events  int64  `json:"events"`
	Refused string `json:"refused,omitempty"` // why the file, or the first of its lines, was not logged
}

// openJournal opens the journal of that name, or makes it. Files that are not there any
// more are forgotten if they have become most of it.
func openJournal(name, dir, topic string, there func(file string) bool) (*journal, error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return nil, err
	}
	j := &journal{name: name, lock: flock.New(name + ".lock"), done: map[string]mark{}}
	mine, err := j.lock.TryLock()
	if err != nil {
		return nil, err
	}
	if !mine {
		return nil, &failure{condition: diaspora.ErrConflict, text: fmt.Sprintf("another process watches %s for topic %q", dir, topic)}
	}
	if err := j.open(journalHead{Watch: dir, Topic: topic}, there); err != nil {
		j.Close()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return j, nil
}

func (j *journal) open(head journalHead, there func(string) bool) error {
	f, err := os.OpenFile(j.name, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	j.file = f
	lines, err := j.read()
	if err != nil {
		return err
	}
	if j.id == "" {
		head.ID = rand.Text()
		j.id = head.ID
		return j.rewrite(head, nil)
	}
	head.ID = j.id
	kept := lines[:0]
	for _, line := range lines {
		if there(line.File) && j.done[line.File] == line.mark {
			kept = append(kept, line)
		}
	}
	switch {
	case len(lines) <= 1000 || len(kept) >= len(lines)/2:
		return nil
	case len(kept) == 0 && len(lines) <= maxAbsent:
		return nil // the disk with the folder may not be mounted yet
	}
	return j.rewrite(head, kept)
}

// maxAbsent bounds a journal none of whose files is there.
const maxAbsent = 100_000

// read takes the lines that are whole.
func (j *journal) read() ([]journalLine, error) {
	head, lines, torn, err := readJournal(j.file)
	if err != nil {
		return nil, err
	}
	j.id = head.ID
	for _, line := range lines {
		j.done[line.File] = line.mark
	}
	if torn {
		_, err = j.file.Write([]byte("\n")) // it stays alone
	}
	return lines, err
}

// readJournal returns the head of a journal, whose ID is "" if it has not begun, what it says of files,
// and whether its last line has no end.
func readJournal(from io.Reader) (head journalHead, lines []journalLine, torn bool, err error) {
	in := bufio.NewReader(from)
	first, err := in.ReadBytes('\n')
	if err == io.EOF {
		return head, nil, false, nil // nothing was logged before it was there
	}
	if err == nil && (json.Unmarshal(first, &head) != nil || head.ID == "") {
		err = &failure{condition: diaspora.ErrSpoolFailed, text: "it does not begin as a journal",
			hints: []string{"remove it to have all files logged again"}}
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

// journalFolder returns where the journals are that belong to a folder of spools.
func journalFolder(spools string) string {
	return filepath.Join(filepath.Dir(filepath.Dir(spools)), "watch", filepath.Base(spools))
}

// pastWatch is what a journal says of a folder and a topic.
type pastWatch struct {
	journalHead
	done map[string]mark
}

// pastWatches returns what the journals say that belong to a folder of spools. It only reads, and passes over
// journals that are damaged: whoever watches for their topic hears of that.
func pastWatches(spools string) (all []pastWatch) {
	names, _ := filepath.Glob(filepath.Join(journalFolder(spools), "*.ndjson"))
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		head, lines, _, err := readJournal(f)
		f.Close()
		if err != nil || head.ID == "" {
			continue
		}
		past := pastWatch{head, map[string]mark{}}
		for _, line := range lines {
			past.done[line.File] = line.mark
		}
		all = append(all, past)
	}
	return all
}

// add notes files that are done with. They are when it returns.
func (j *journal) add(lines []journalLine) error {
	text, err := encodeLines(nil, lines)
	if err != nil {
		return err
	}
	if _, err := j.file.Write(text); err != nil {
		return err
	}
	if err := j.file.Sync(); err != nil {
		return err
	}
	for _, line := range lines {
		j.done[line.File] = line.mark
	}
	return nil
}

// rewrite replaces the journal at once.
func (j *journal) rewrite(head journalHead, lines []journalLine) error {
	text, err := encodeLines(head, lines)
	if err != nil {
		return err
	}
	if err := j.file.Close(); err != nil {
		return err
	}
	if err := disk.ReplaceFile(j.name, text); err != nil {
		return err
	}
	j.file, err = os.OpenFile(j.name, os.O_RDWR|os.O_APPEND, 0)
	return err
}

func encodeLines(head any, lines []journalLine) ([]byte, error) {
	var text bytes.Buffer
	to := json.NewEncoder(&text)
	if head != nil {
		if err := to.Encode(head); err != nil {
			return nil, err
		}
	}
	for _, line := range lines {
		if err := to.Encode(line); err != nil {
			return nil, err
		}
	}
	return text.Bytes(), nil
}

// Close lets another process have the journal.
func (j *journal) Close() error {
	var err error
	if j.file != nil {
		err = j.file.Close()
	}
	return errors.Join(err, j.lock.Unlock())
}

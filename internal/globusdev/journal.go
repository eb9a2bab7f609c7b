package globusdev

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/gofrs/flock"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

const (
	journalName    = "globusdev.jsonl"
	maxJournalLine = 256 << 10
	// compactAfter is the number of changes after which the journal is rewritten, in addition to
	// one for each line that it had when it was rewritten last. So the average cost of a change does
	// not depend on the size of the state.
	compactAfter = 4096
)

// journal is a file of lines to which entries are appended. If append returns nil, the entries
// survive if the process is killed. A power cut may lose the last seconds; the affected users then
// have to log in again. A nil journal stores nothing.
type journal struct {
	path string
	lock *flock.Flock
	file journalFile
	size int64 // length of the valid part of the file
	err  error // set when the content of the file is unknown

	replace func(path string, content []byte) error // disk.ReplaceFile, except in tests
}

// journalFile is the part of [os.File] that a journal uses.
type journalFile interface {
	io.WriterAt
	io.Closer
	Sync() error
	Truncate(size int64) error
}

// openJournal locks the directory for this process, and passes each line of an existing journal to
// load. The caller must call rewrite before append.
func openJournal(dir string, load func(line []byte) error) (_ *journal, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	j := &journal{path: filepath.Join(dir, journalName), lock: flock.New(filepath.Join(dir, "globusdev.lock")), replace: disk.ReplaceFile}
	locked, err := j.lock.TryLock()
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	if !locked {
		return nil, fmt.Errorf("%s is in use by another process", dir)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, j.lock.Unlock())
		}
	}()
	file, err := os.Open(j.path)
	if errors.Is(err, fs.ErrNotExist) {
		return j, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil {
		return nil, err
	} else if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %04o, want 0600: others may read or change it", j.path, info.Mode().Perm())
	}
	return j, readLines(file, j.path, load)
}

// readLines passes complete lines to load. It ignores an incomplete last line, which a crash
// leaves: it was never acknowledged. Any other damage is an error, because a revocation may be
// lost.
func readLines(r io.Reader, name string, load func(line []byte) error) error {
	in := bufio.NewReaderSize(r, maxJournalLine)
	for number := 1; ; number++ {
		line, err := in.ReadSlice('\n')
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = load(bytes.TrimSuffix(line, []byte("\n")))
		}
		if err != nil {
			return fmt.Errorf("%s: line %d is damaged (%v); remove the file to start afresh, with everybody logged out", name, number, err)
		}
	}
}

// append writes entries, one per line. It writes all of them or none.
func (j *journal) append(lines []byte) error {
	if j == nil || len(lines) == 0 {
		return nil
	}
	if j.err != nil {
		return j.err
	}
	if _, err := j.file.WriteAt(lines, j.size); err != nil {
		// An incomplete line must not remain before later ones.
		if cut := j.file.Truncate(j.size); cut != nil {
			j.err = errors.Join(err, cut)
		}
		return err
	}
	j.size += int64(len(lines))
	return nil
}

// rewrite replaces the content of the file durably. If it fails, the old content remains in use, or
// append fails until another rewrite has succeeded.
func (j *journal) rewrite(lines []byte) error {
	var err error
	if j.file != nil { // some systems cannot replace an open file
		err = j.file.Close()
	}
	if err == nil {
		err = j.replace(j.path, lines)
	}
	file, reopen := os.OpenFile(j.path, os.O_WRONLY, 0)
	j.file, j.err = file, reopen
	switch {
	case err == nil:
		j.size = int64(len(lines))
	case reopen == nil:
		// The content may be new although the sync of the directory has failed, or the old content may
		// still have an incomplete end. Then the next change must not be appended to it.
		if info, stat := file.Stat(); stat != nil || info.Size() != j.size {
			j.err = errors.Join(err, stat)
		}
	}
	return errors.Join(err, reopen)
}

// close syncs the file and unlocks the directory.
func (j *journal) close() error {
	if j == nil {
		return nil
	}
	var err error
	if j.file != nil {
		err = errors.Join(j.file.Sync(), j.file.Close())
	}
	return errors.Join(err, j.lock.Unlock())
}

package spool

import (
	"errors"
	"io/fs"
	"strings"
	"time"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

// The file note says in one line why events are pending, according to the owner, for people who
// look at the spool from another process. It is not synced, no guarantee of the spool depends on
// it, and no program acts on it. A second line has the time of the first one: not that of the file, because
// a copy of the spool, or the clock of a file server, may have another one.
const (
	noteName  = "note"
	noteTemp  = noteName + ".tmp" // the temporary file of disk.Replace
	noteBytes = 4 << 10
)

// Note writes a line that [Inspect] shows. An empty text removes it.
func (s *Spool) Note(text string) error {
	if text == "" {
		if err := s.fs.Remove(noteName); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	if len(text) > noteBytes {
		text = text[:noteBytes]
	}
	return disk.Replace(s.fs, noteName, []byte(text+"\n"+time.Now().UTC().Format(time.RFC3339Nano)+"\n"), false)
}

// readNote returns the note and its time, which is zero if an earlier version of this package wrote the note.
func readNote(fsys FS) (text string, noted time.Time) {
	b, err := disk.ReadFile(fsys, noteName, noteBytes+int64(len("\n"+time.RFC3339Nano+"\n")))
	if err != nil {
		return "", time.Time{}
	}
	text = strings.ToValidUTF8(string(b), "�")
	line := strings.TrimSuffix(text, "\n")
	if i := strings.LastIndexByte(line, '\n'); i >= 0 {
		if t, err := time.Parse(time.RFC3339Nano, line[i+1:]); err == nil {
			return line[:i], t
		}
	}
	return text, time.Time{}
}

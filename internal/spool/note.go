package spool

import (
	"errors"
	"io/fs"
	"strings"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

// The file note says in one line why events are pending, according to the owner, for people who
// look at the spool from another process. It is not synced, no guarantee of the spool depends on
// it, and no program acts on it.
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
	return disk.Replace(s.fs, noteName, []byte(text), false)
}

func readNote(fsys FS) string {
	b, err := disk.ReadFile(fsys, noteName, noteBytes)
	if err != nil {
		return ""
	}
	return strings.ToValidUTF8(string(b), "�")
}

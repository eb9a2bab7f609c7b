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
	noteTemp  = "note.tmp"
	noteBytes = 4 << 10
)

// Note writes a line that [Inspect] shows. An empty text removes it.
func (s *Spool) Note(text string) error {
	if text == "" {
		return s.removeNote(noteName)
	}
	if len(text) > noteBytes {
		text = text[:noteBytes]
	}
	if err := s.removeNote(noteTemp); err != nil {
		return err
	}
	f, err := s.fs.Create(noteTemp)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(text), 0)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return s.fs.Rename(noteTemp, noteName)
}

func (s *Spool) removeNote(name string) error {
	if err := s.fs.Remove(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func readNote(fsys FS) string {
	b, err := disk.ReadFile(fsys, noteName, noteBytes)
	if err != nil {
		return ""
	}
	return strings.ToValidUTF8(string(b), "�")
}

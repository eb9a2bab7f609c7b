package spool

import (
	"errors"
	"io/fs"
	"strings"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

// The file note says in a line why events wait, as the owner sees it, for those who
// look at the spool from outside. It is no part of what the spool promises: it is
// not synced, and nothing is read from it but by people.
const (
	noteName  = "note"
	noteTemp  = "note.tmp"
	noteBytes = 4 << 10
)

// Note leaves a line for [Inspect]; an empty one takes it away.
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

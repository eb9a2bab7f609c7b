package spool

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// TestRemove checks that a spool that holds anything is not removed, and that an empty one is.
func TestRemove(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		with func(s *Spool, path string) error
		want bool
	}{
		"never used": {func(*Spool, string) error { return nil }, true},
		"done with": {func(s *Spool, _ string) error {
			records, err := s.Next(t.Context(), 10, 1<<20)
			for _, r := range records {
				err = errors.Join(err, s.Ack(r.Position))
			}
			return err
		}, true},
		"events": {nil, false},
		"set aside": {func(s *Spool, _ string) error {
			records, err := s.Next(t.Context(), 10, 1<<20)
			for _, r := range records {
				err = errors.Join(err, s.Quarantine(r, "too large"))
			}
			return err
		}, false},
		"a file of others": {func(_ *Spool, path string) error {
			return os.WriteFile(filepath.Join(path, "README"), nil, 0o600)
		}, false},
	} {
		path := dir(t)
		s := mustOpen(t, Options{Dir: path})
		if name != "never used" && name != "a file of others" {
			mustAppend(t, s, 0, 3)
		}
		if test.with != nil {
			if err := test.with(s, path); err != nil {
				t.Fatal(name, err)
			}
		}
		if removed, err := Remove(t.Context(), path); removed || !errors.Is(err, ErrInUse) {
			t.Errorf("%s: Remove while it is in use = %v, %v", name, removed, err)
		}
		mustClose(t, s)
		removed, err := Remove(t.Context(), path)
		_, there := os.Stat(path)
		if err != nil || removed != test.want || errors.Is(there, fs.ErrNotExist) != test.want {
			t.Errorf("%s: Remove = %v, %v, and then %v; want %v", name, removed, err, there, test.want)
		}
		if !test.want {
			if report, err := Verify(path); err != nil || name != "a file of others" && len(report.Problems) > 0 {
				t.Errorf("%s: Verify after Remove = %+v, %v", name, report, err)
			}
		}
	}
}

// TestRemoveWhileOthersOpen checks that a spool that a process has just opened is not removed.
func TestRemoveWhileOthersOpen(t *testing.T) {
	t.Parallel()
	path := dir(t)
	until := time.Now().Add(2 * time.Second)
	var all sync.WaitGroup
	n, logged := 0, 0
	all.Go(func() {
		for time.Now().Before(until) {
			s, err := Open(t.Context(), Options{Dir: path})
			if errors.Is(err, ErrInUse) {
				continue
			}
			if err != nil {
				t.Error(err)
				return
			}
			mustAppend(t, s, n, n+1)
			n++
			records, err := s.Next(t.Context(), 10, 1<<20)
			if err != nil || len(records) == 0 {
				t.Errorf("Next = %v, %v", records, err)
				return
			}
			for _, r := range records {
				if err := s.Ack(r.Position); err != nil {
					t.Error(err)
				}
				logged++
			}
			if err := s.Close(); err != nil {
				t.Error(err)
				return
			}
		}
		if n == 0 || logged != n {
			t.Errorf("%d events of %d were read again", logged, n)
		}
	})
	all.Go(func() {
		for time.Now().Before(until) {
			if _, err := Remove(t.Context(), path); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrInUse) {
				t.Error(err)
				return
			}
		}
	})
	all.Wait()
}

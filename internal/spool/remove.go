package spool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

// Remove deletes a spool in which nothing is left, and reports whether it did. A spool with events, with
// losses or with files of others stays. It fails with [ErrInUse] if a process has the spool. A process that
// opens it at the same moment has a new one.
func Remove(ctx context.Context, dir string) (removed bool, err error) {
	fsys, err := disk.New(dir)
	if err != nil {
		return false, err
	}
	defer fsys.Close()
	owner, err := takeOwnership(ctx, fsys)
	if err != nil {
		return false, fmt.Errorf("remove spool %s: %w", dir, err)
	}
	removed, err = removeEmpty(fsys, owner)
	if err = errors.Join(err, owner.release()); err != nil {
		return false, fmt.Errorf("remove spool %s: %w", dir, err)
	}
	// Another process may have taken the directory by now, which then is not empty any more.
	return removed && os.Remove(dir) == nil, nil
}

// removeEmpty removes all files if there is nothing in them, and the lock last, while it is held: whoever waits
// for that one finds out that it is gone.
func removeEmpty(fsys FS, owner *owner) (bool, error) {
	infos, err := fsys.List()
	if err != nil {
		return false, err
	}
	s := &Spool{fs: fsys, log: slog.New(slog.DiscardHandler), report: &Report{}}
	im, err := s.look(infos)
	if err != nil {
		return false, err
	}
	if s.Stats().Events > 0 || s.torn > 0 || len(im.segments) > 0 || s.counts.dropped+s.counts.quarantined+s.counts.damaged > 0 || owner.wrung {
		return false, nil
	}
	for _, info := range infos {
		if _, aside := parseQuarantineName(info.Name()); aside || !isOurs(info.Name()) {
			return false, nil
		}
	}
	guarded := disk.Guard(fsys, owner.check)
	for _, info := range infos {
		switch info.Name() {
		case ".", lockName, ownerName:
			continue
		}
		if err := guarded.Remove(info.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	}
	for _, name := range []string{ownerName, lockName} {
		if err := fsys.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	}
	return true, nil
}

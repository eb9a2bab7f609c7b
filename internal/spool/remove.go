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

// Remove deletes a spool that holds nothing, and reports whether it did. It keeps a spool that has
// events, losses or files that are not the spool's. It fails with [ErrInUse] if a process uses the
// spool. A process that opens the spool at the same moment gets a new one.
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
	// Another process may have created a new spool in the directory by now. Then the directory is
	// not empty and os.Remove fails, as it should.
	return removed && os.Remove(dir) == nil, nil
}

// removeEmpty removes all files of the spool if none holds anything worth keeping. It removes the
// lock file last, while it holds the lock. A process that is waiting for the lock then notices that
// the file is gone.
func removeEmpty(fsys FS, owner *owner) (bool, error) {
	infos, err := fsys.List()
	if err != nil {
		return false, err
	}
	s := &Spool{fs: fsys, log: slog.New(slog.DiscardHandler), report: &Report{}}
	im, err := s.loadState(infos)
	if err != nil {
		return false, err
	}
	if s.Stats().Events > 0 || s.torn > 0 || len(im.segments) > 0 || s.counts.dropped+s.counts.quarantined+s.counts.damaged > 0 || owner.tookOver {
		return false, nil
	}
	for _, info := range infos {
		if _, aside := parseQuarantineName(info.Name()); aside || !isSpoolFile(info.Name()) {
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

package fabric

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/gofrs/flock"
)

// Info says where a running fabric can be reached.
type Info struct {
	PID     int      `json:"pid"`
	URL     string   `json:"url"`     // of the ACL endpoint
	Brokers []string `json:"brokers"` // bootstrap servers
	Globus  string   `json:"globus"`  // the issuer
}

// InUseError says that another process runs a fabric on the directory.
type InUseError struct {
	Dir  string
	Info Info // of the other process; zero while it is starting
}

func (e *InUseError) Error() string {
	if e.Info.PID == 0 {
		return fmt.Sprintf("start on %s: another process is using it", e.Dir)
	}
	return fmt.Sprintf("start on %s: process %d is using it, at %s", e.Dir, e.Info.PID, e.Info.URL)
}

const (
	lockFile = "lock"
	infoFile = "running.json"
)

// A dirLock keeps a directory to one process, and tells the others where that
// one is. The kernel frees it when the process dies. Nil is a fabric in memory.
type dirLock struct {
	dir  string
	lock *flock.Flock
}

func lockDir(dir string) (*dirLock, error) {
	if dir == "" {
		return nil, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	lock := flock.New(filepath.Join(dir, lockFile), flock.SetFlag(os.O_CREATE|os.O_RDWR), flock.SetPermissions(0o600))
	locked, err := lock.TryLock()
	if err != nil {
		return nil, fmt.Errorf("data directory: lock: %w", err)
	}
	if !locked {
		info, _ := readInfo(dir)
		return nil, errors.Join(&InUseError{Dir: dir, Info: info}, lock.Close())
	}
	// What a killed process left behind says nothing about this one.
	if err := removeInfo(dir); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return &dirLock{dir: dir, lock: lock}, nil
}

// announce tells other processes where this one can be reached.
func (l *dirLock) announce(info Info) error {
	if l == nil {
		return nil
	}
	info.PID = os.Getpid()
	data, err := json.Marshal(info)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(l.dir, infoFile), append(data, '\n'), 0o600)
}

func (l *dirLock) release() error {
	if l == nil {
		return nil
	}
	return errors.Join(removeInfo(l.dir), l.lock.Close())
}

func readInfo(dir string) (info Info, err error) {
	data, err := os.ReadFile(filepath.Join(dir, infoFile))
	if err != nil {
		return Info{}, err
	}
	return info, json.Unmarshal(data, &info)
}

func removeInfo(dir string) error {
	err := os.Remove(filepath.Join(dir, infoFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

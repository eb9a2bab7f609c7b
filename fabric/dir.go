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

// Info has the addresses of a running fabric.
type Info struct {
	PID     int      `json:"pid"`
	URL     string   `json:"url"`     // of the ACL endpoint
	Brokers []string `json:"brokers"` // bootstrap servers
	Globus  string   `json:"globus"`  // the issuer

	Kafka      string `json:"kafka,omitempty"`       // absolute path of [Config.KafkaFile]; "" is the embedded broker
	SyncWrites bool   `json:"sync_writes,omitempty"` // as in [Config]
}

// InUseError reports that another process is running a fabric on the same directory.
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

// A dirLock ensures that only one process uses a directory, and tells other processes the addresses
// of that one. The kernel releases the lock when the process dies. A nil dirLock is that of a fabric
// in memory, and its methods do nothing.
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
	// A process that was killed has left its addresses behind. They are not those of this process.
	if err := removeInfo(dir); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return &dirLock{dir: dir, lock: lock}, nil
}

// running returns the addresses of the fabric that another process runs on a directory, and whether there is one. The
// addresses are zero while it starts.
func running(dir string) (info Info, ok bool) {
	file := filepath.Join(dir, lockFile)
	if _, err := os.Stat(file); dir == "" || err != nil {
		return Info{}, false
	}
	lock := flock.New(file)
	locked, err := lock.TryLock()
	if locked || err != nil {
		lock.Close()
		return Info{}, false
	}
	info, _ = readInfo(dir)
	return info, true
}

// announce writes the addresses of this process to a file in the directory, for other processes.
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

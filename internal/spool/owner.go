package spool

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

// A spool has one owner. Two things see to it:
//
// The lock, of fcntl, on a file that nothing else uses. The kernel frees it when the process
// dies, so that it is never stale, and network file systems carry it to other machines.
//
// The owner file, for people and for file systems that several machines may have mounted.
// Some of those are mounted so that locks are kept from the other machines, or do nothing at
// all, without saying so. There the owner counts a beat in the file, and another process that has
// got the lock watches the file until the beat has stopped, before it takes the spool. An owner
// that finds another in the file (it may have slept) stops writing.
const (
	lockName      = "lock"
	ownerName     = "owner"
	ownerBytes    = 512
	beatEvery     = 2 * time.Second
	beatStopped   = 5 * beatEvery
	maxOwnerBytes = 4096
)

// Owner says who has a spool.
type Owner struct {
	Host    string    `json:"host"`
	Boot    string    `json:"boot,omitempty"` // tells one start of the machine from another
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	Token   string    `json:"token"` // random for each Open
	Beat    uint64    `json:"beat"`
}

func (o *Owner) String() string { return fmt.Sprintf("process %d on %s", o.PID, o.Host) }

// encode makes o the content of an owner file, which always has the same size, so
// that it is overwritten in place.
func (o *Owner) encode() ([]byte, error) {
	line, err := json.Marshal(o)
	if err != nil || len(line) >= ownerBytes {
		return nil, errors.Join(err, errOwner)
	}
	return append(line, strings.Repeat(" ", ownerBytes-1-len(line))+"\n"...), nil
}

var errOwner = errors.New("the owner file is damaged")

func parseOwner(b []byte) (Owner, error) {
	var o Owner
	if err := json.Unmarshal(b, &o); err != nil || o.Host == "" || o.PID <= 0 {
		return Owner{}, errOwner
	}
	return o, nil
}

// readOwner returns who has the spool, or nil if the file does not say.
func readOwner(fsys FS) (*Owner, error) {
	b, err := disk.ReadFile(fsys, ownerName, maxOwnerBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	o, err := parseOwner(b)
	if err != nil {
		return nil, nil // torn: whoever wrote it died over it
	}
	return &o, nil
}

// owner is the ownership of this process.
type owner struct {
	fs   FS
	lock io.Closer
	me   Owner

	lost atomic.Bool // somebody else has the spool
	stop chan struct{}
	beat sync.WaitGroup
}

func takeOwnership(ctx context.Context, fsys FS) (*owner, error) {
	lock, err := fsys.Lock(lockName)
	if errors.Is(err, disk.ErrInUse) {
		err = ErrInUse
		if other, _ := readOwner(fsys); other != nil {
			return nil, fmt.Errorf("%w by %s", err, other)
		}
	}
	if err != nil {
		return nil, err
	}
	o := &owner{fs: fsys, lock: lock, stop: make(chan struct{}),
		me: Owner{Host: hostname(), Boot: bootID(), PID: os.Getpid(), Started: time.Now().UTC(), Token: rand.Text()}}
	if err := o.claim(ctx); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return o, nil
}

// claim writes the owner file, where that matters after the owner before is gone.
func (o *owner) claim(ctx context.Context) error {
	shared := o.fs.Shared()
	if shared {
		if err := o.outlast(ctx); err != nil {
			return err
		}
	}
	err := o.write()
	if err != nil && !disk.Full(err) {
		return fmt.Errorf("write the owner file: %w", err)
	}
	if shared {
		o.beat.Go(o.beatAll)
	}
	return nil
}

// outlast waits until the owner in the file gives no sign of life, or ctx ends.
func (o *owner) outlast(ctx context.Context) error {
	last, err := readOwner(o.fs)
	if err != nil || last == nil {
		return err
	}
	if last.Host == o.me.Host && (last.Boot != o.me.Boot || !alive(last.PID)) {
		return nil
	}
	for deadline := time.Now().Add(beatStopped); time.Now().Before(deadline); {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", last, ctx.Err())
		case <-time.After(beatEvery / 2):
		}
		now, err := readOwner(o.fs)
		switch {
		case err != nil:
			return err
		case now == nil: // gave it back
			return nil
		case *now != *last:
			return fmt.Errorf("%w by %s", ErrInUse, now)
		}
	}
	return nil
}

func (o *owner) write() (err error) {
	content, err := o.me.encode()
	if err != nil {
		return err
	}
	f, err := o.fs.Open(ownerName, true)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = o.fs.Create(ownerName)
	}
	if err != nil {
		return err
	}
	_, err = f.WriteAt(content, 0)
	return errors.Join(err, f.Close()) // to close is what shows it to other machines
}

// beatAll is the goroutine that shows that this owner lives.
func (o *owner) beatAll() {
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for {
		select {
		case <-o.stop:
			return
		case <-tick.C:
		}
		if now, err := readOwner(o.fs); err == nil && now != nil && now.Token != o.me.Token {
			o.lost.Store(true)
			return
		}
		o.me.Beat++
		o.write() // if it fails for long, somebody takes over, and the next look tells
	}
}

// release gives the spool back.
func (o *owner) release() error {
	if o == nil {
		return nil
	}
	close(o.stop)
	o.beat.Wait()
	var err error
	if !o.lost.Load() {
		if err = o.fs.Remove(ownerName); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	return errors.Join(err, o.lock.Close())
}

// alive tells whether a process of this machine lives.
func alive(pid int) bool {
	p, err := os.FindProcess(pid)
	if err != nil {
		return false
	}
	err = p.Signal(syscall.Signal(0))
	return err == nil || errors.Is(err, syscall.EPERM)
}

var hostname = sync.OnceValue(func() string {
	host, err := os.Hostname()
	if err != nil {
		return "localhost"
	}
	return host
})

// bootID returns what is different after each start of the machine, where there is such a thing.
var bootID = sync.OnceValue(func() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
})

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
	"syscall"
	"time"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

// A spool has one owner. Two things see to it:
//
// The lock, of fcntl, on a file that nothing else uses. The kernel frees it when the process
// dies, so that it is never stale, and network file systems carry it to other machines.
//
// The owner file, for people, and for when the lock does not hold: somebody has removed its file,
// or several machines have the file system mounted in such a way that locks are kept from the
// others, or do nothing at all, without saying so. On such file systems the owner counts a beat in
// the owner file, and another process that has got the lock watches the file until the beat has stopped.
// Then it writes itself into the file, and begins only after claimWait.
//
// An owner changes the spool only if it has found itself in the owner file less than the time of
// lease ago: all its files are guarded by that, see [disk.Guard]. So it has stopped when the new
// one begins, also if it was suspended and has missed everything.
const (
	lockName      = "lock"
	ownerName     = "owner"
	ownerBytes    = 512
	beatEvery     = 2 * time.Second
	beatStopped   = 5 * beatEvery
	lease         = 3 * time.Second // more than beatEvery, so that a beat renews it in time
	claimWait     = lease + time.Second
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
	Full    string    `json:"full,omitempty"` // why the spool takes no more events, if it does not
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
	fs     FS // not guarded
	lock   io.Closer
	shared bool
	wrung  bool // from an owner that may still live, and write until it notices

	stop chan struct{}
	beat sync.WaitGroup

	mu   sync.Mutex // guards the fields below
	me   Owner
	seen time.Time // when the owner file said that the spool is ours
	lost error     // somebody else has the spool
}

// living has the tokens of all owners in this process: by that an earlier process with
// the same id, as in a container, is told from another Spool in this one.
var living sync.Map

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
	o := &owner{fs: fsys, lock: lock, shared: fsys.Shared(), stop: make(chan struct{}),
		me: Owner{Host: hostname(), Boot: bootID(), PID: os.Getpid(), Started: time.Now().UTC(), Token: rand.Text()}}
	if err := o.claim(ctx); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	living.Store(o.me.Token, true)
	if o.shared {
		o.beat.Go(o.beatAll)
	}
	return o, nil
}

// claim writes the owner file, after any owner before is gone or has to find out.
func (o *owner) claim(ctx context.Context) error {
	last, err := readOwner(o.fs)
	if err != nil && o.shared {
		return err
	}
	if o.wrung = last != nil && o.mayLive(last); o.wrung && o.shared {
		if o.wrung, err = o.outlast(ctx, last); err != nil {
			return err
		}
	}
	o.seen = time.Now()
	err = o.write()
	if err != nil && (o.wrung || !disk.Full(err)) {
		return fmt.Errorf("write the owner file: %w", err)
	}
	if !o.wrung {
		return nil
	}
	select {
	case <-ctx.Done():
		return fmt.Errorf("wait for %s: %w", last, ctx.Err())
	case <-time.After(claimWait):
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.look()
}

// mayLive tells whether the owner in the file may still use the spool, although we have the lock.
func (o *owner) mayLive(last *Owner) bool {
	switch {
	case last.Host != o.me.Host:
		return o.shared
	case last.Boot != o.me.Boot:
		return false
	case last.PID == o.me.PID:
		_, here := living.Load(last.Token)
		return here
	}
	return alive(last.PID)
}

// check fails if the spool is no longer this process's.
func (o *owner) check() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.lost == nil && elapsed(o.seen) < lease {
		return nil
	}
	return o.look()
}

// elapsed returns how long ago something was, by that clock which says more: one of
// them may stand still while the machine is suspended.
func elapsed(since time.Time) time.Duration {
	now := time.Now()
	return max(now.Sub(since), now.Round(0).Sub(since.Round(0)))
}

// look reads who has the spool. The caller holds mu.
func (o *owner) look() error {
	if o.lost != nil {
		return o.lost
	}
	now := time.Now()
	other, err := readOwner(o.fs)
	switch {
	case err != nil && o.shared:
		return fmt.Errorf("look whether the spool still belongs to this process: %w", err)
	case err != nil: // the lock is to be relied upon, unless the file says otherwise
	case other != nil && other.Token != o.me.Token:
		o.lost = fmt.Errorf("%w by %s, which has taken it from this process", ErrInUse, other)
	default:
		o.seen = now
	}
	return o.lost
}

// outlast waits until the owner in the file gives no sign of life, or ctx ends. It tells whether
// that one may live all the same, rather than having given the spool back.
func (o *owner) outlast(ctx context.Context, last *Owner) (mayLive bool, err error) {
	for deadline := time.Now().Add(beatStopped); time.Now().Before(deadline); {
		select {
		case <-ctx.Done():
			return false, fmt.Errorf("wait for %s: %w", last, ctx.Err())
		case <-time.After(beatEvery / 2):
		}
		now, err := readOwner(o.fs)
		switch {
		case err != nil:
			return true, err
		case now == nil: // gave it back
			return false, nil
		case *now != *last:
			return true, fmt.Errorf("%w by %s", ErrInUse, now)
		}
	}
	return true, nil
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
		o.mu.Lock()
		err := o.look()
		if err == nil {
			o.me.Beat++
			o.write() // if it fails for long, somebody takes over, and the next look tells
		}
		o.mu.Unlock()
		if errors.Is(err, ErrInUse) {
			return
		}
	}
}

// tell writes into the owner file why the spool is full, or that it is not, for those who look at
// it from outside: the file has its space already, on a full disk too.
func (o *owner) tell(full string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.me.Full = full; o.look() == nil {
		o.write() // without it the spool works as well
	}
}

// release gives the spool back.
func (o *owner) release() error {
	if o == nil {
		return nil
	}
	close(o.stop)
	o.beat.Wait()
	living.Delete(o.me.Token)
	o.mu.Lock()
	err := o.look()
	o.mu.Unlock()
	if err == nil {
		err = o.fs.Remove(ownerName)
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrInUse) {
		err = nil // Close says so, if that matters
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

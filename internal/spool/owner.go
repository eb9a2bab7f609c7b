package spool

import (
	"bytes"
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

// A spool has one owner at a time. A lock and the owner file ensure that.
//
// The lock is an fcntl lock on a file that is used for nothing else. The kernel releases it when
// the process dies, so it is never stale, and network file systems apply it across machines.
//
// The owner file tells people which process uses the spool. It also protects the spool when the
// lock does not work: when somebody has removed the lock file, or when several machines mount the
// file system in such a way that locks stay local, or are silently ignored. On such file systems
// the owner increments a counter, the beat, in the owner file. Another process that gets the lock
// watches the owner file until the beat has stopped. Then it writes its own name into the file, and
// waits for claimWait before it begins.
//
// An owner may change the spool only if it has found its own name in the owner file within the last
// lease. [disk.Guard] enforces that for every file operation. Since claimWait is longer than lease,
// the old owner has stopped before the new one begins, even if the old owner was suspended and has
// not noticed the change.
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

// Owner identifies the process that uses a spool.
type Owner struct {
	Host    string    `json:"host"`
	Boot    string    `json:"boot,omitempty"` // differs after each start of the machine
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	Token   string    `json:"token"` // random for each Open
	Beat    uint64    `json:"beat"`
	Full    string    `json:"full,omitempty"` // why the spool takes no more events; "" if it takes them
}

// String names the process and its host.
func (o *Owner) String() string { return fmt.Sprintf("process %d on %s", o.PID, o.Host) }

// encode returns the content of the owner file for o. It always has ownerBytes bytes, so that the
// file can be overwritten in place.
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

// readOwner returns the owner that the owner file names, or nil if there is no such file or it is
// damaged.
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
		return nil, nil // torn: the process died while it wrote the file
	}
	return &o, nil
}

// owner is this process's ownership of a spool.
type owner struct {
	fs       FS // without the guard
	lock     io.Closer
	shared   bool
	tookOver bool // taken from an owner that may still be alive, and may write until it notices

	stop chan struct{}
	beat sync.WaitGroup

	mu          sync.Mutex // guards the fields below
	me          Owner
	confirmedAt time.Time // when the owner file last named this process
	lost        error     // set once another process has taken the spool
}

// ownTokens holds the tokens of all owners in this process. After a restart in a container, a
// process may have the PID of the previous owner. The tokens tell that case from another Spool in
// this process.
var ownTokens sync.Map

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
	ownTokens.Store(o.me.Token, true)
	if o.shared {
		o.beat.Go(o.beatLoop)
	}
	return o, nil
}

// claim writes the owner file. If the previous owner may still be alive, claim first waits until
// that owner is dead or can no longer write.
func (o *owner) claim(ctx context.Context) error {
	last, err := readOwner(o.fs)
	if err != nil && o.shared {
		return err
	}
	if o.tookOver = last != nil && o.mayBeAlive(last); o.tookOver && o.shared {
		if o.tookOver, err = o.awaitDeath(ctx, last); err != nil {
			return err
		}
	}
	o.confirmedAt = time.Now()
	err = o.write()
	if err != nil && (o.tookOver || !disk.Full(err)) {
		return fmt.Errorf("write the owner file: %w", err)
	}
	if !o.tookOver {
		return nil
	}
	select {
	case <-ctx.Done():
		return fmt.Errorf("wait for %s: %w", last, ctx.Err())
	case <-time.After(claimWait):
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.refresh()
}

// mayBeAlive reports whether the owner in the file may still use the spool, although this process
// has the lock.
func (o *owner) mayBeAlive(last *Owner) bool {
	switch {
	case last.Host != o.me.Host:
		return o.shared
	case last.Boot != o.me.Boot:
		return false
	case last.PID == o.me.PID:
		_, here := ownTokens.Load(last.Token)
		return here
	}
	return alive(last.PID)
}

// check fails if this process does not own the spool any more, or cannot tell. It reads the owner
// file only if the last look is older than the lease.
func (o *owner) check() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.lost == nil && elapsed(o.confirmedAt) < lease {
		return nil
	}
	return o.refresh()
}

// elapsed returns the time since a moment. It takes the larger of the differences of the monotonic
// and the wall clock, because one of them may stand still while the machine is suspended.
func elapsed(since time.Time) time.Duration {
	now := time.Now()
	return max(now.Sub(since), now.Round(0).Sub(since.Round(0)))
}

// refresh reads the owner file and checks that it still names this process. The caller holds mu.
func (o *owner) refresh() error {
	if o.lost != nil {
		return o.lost
	}
	now := time.Now()
	other, err := readOwner(o.fs)
	switch {
	case err != nil && o.shared:
		return fmt.Errorf("check whether the spool still belongs to this process: %w", err)
	// The lock works on a local file system, so it is enough unless the file names another owner.
	case err != nil:
	case other != nil && other.Token != o.me.Token:
		o.lost = fmt.Errorf("%w by %s, which took it over from this process", ErrInUse, other)
	default:
		o.confirmedAt = now
	}
	return o.lost
}

// awaitDeath waits until the owner in the file has shown no sign of life for beatStopped, or until
// ctx ends. mayBeAlive is false if that owner released the spool meanwhile. If the beat merely
// stopped, mayBeAlive is true: the owner may be suspended. If the beat goes on, awaitDeath fails
// with [ErrInUse].
func (o *owner) awaitDeath(ctx context.Context, last *Owner) (mayBeAlive bool, err error) {
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
		case now == nil: // the owner has released the spool
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
	return errors.Join(err, f.Close()) // on NFS, closing makes the write visible to other machines
}

// beatLoop is the goroutine that increments the beat in the owner file.
func (o *owner) beatLoop() {
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for {
		select {
		case <-o.stop:
			return
		case <-tick.C:
		}
		o.mu.Lock()
		err := o.refresh()
		if err == nil {
			o.me.Beat++
			o.write() // if this keeps failing, another process takes over, and the next look notices
		}
		o.mu.Unlock()
		if errors.Is(err, ErrInUse) {
			return
		}
	}
}

// setFull writes to the owner file why the spool is full, or that it is not, so that other
// processes can see it. This works on a full disk too, because the file is overwritten in place.
func (o *owner) setFull(full string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.me.Full = full; o.refresh() == nil {
		o.write() // on an error the spool works on; only other processes do not see the reason
	}
}

// release stops the beat, removes the owner file if it still names this process, and releases the
// lock. It is a no-op for a nil owner.
func (o *owner) release() error {
	if o == nil {
		return nil
	}
	close(o.stop)
	o.beat.Wait()
	ownTokens.Delete(o.me.Token)
	o.mu.Lock()
	err := o.refresh()
	o.mu.Unlock()
	if err == nil {
		err = o.fs.Remove(ownerName)
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrInUse) {
		err = nil // not an error of release: the file is gone, or another process owns the spool
	}
	return errors.Join(err, o.lock.Close())
}

// alive reports whether a process of this machine is running.
func alive(pid int) bool {
	p, err := os.FindProcess(pid)
	if err != nil {
		return false
	}
	err = p.Signal(syscall.Signal(0))
	return (err == nil || errors.Is(err, syscall.EPERM)) && !zombie(pid)
}

// zombie reports whether a process has died, and its parent has not asked how (proc_pid_stat(5)). In a container, that can
// take for ever.
func zombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, fields, ok := bytes.Cut(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" ")) // the name before it may contain anything
	return err == nil && ok && (fields[0] == 'Z' || fields[0] == 'X')
}

var hostname = sync.OnceValue(func() string {
	host, err := os.Hostname()
	if err != nil {
		return "localhost"
	}
	return host
})

// bootID returns a value that differs after each start of the machine, or "" on systems without
// one.
var bootID = sync.OnceValue(func() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
})

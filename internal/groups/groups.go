package groups

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/journal"
)

// Config configures a [Coordinator].
type Config struct {
	// FS is the directory of the journal, which no other package uses. It is created if it does not
	// exist. Required.
	FS disk.FS

	// Sync makes everything that is acknowledged survive a power cut. Without it, acknowledged data
	// survives if the process is killed.
	Sync bool

	// Topics are the broker's topics. Required.
	Topics Topics

	// OffsetsRetention is how long the offsets of a group without members are
	// kept. Default: 7 days.
	OffsetsRetention time.Duration

	// MaxGroups bounds the number of groups. Default: 100,000.
	MaxGroups int

	// MaxMembers bounds the members of one group. Default: 10,000.
	MaxMembers int

	// MaxMemberBytes bounds what one member of a classic group may send with
	// JoinGroup. Default: 1 MiB.
	MaxMemberBytes int

	// MaxBytes bounds the memory that clients can occupy: the metadata of members and offsets, and
	// assignments. Default: 512 MiB.
	MaxBytes int64

	// Diagnostics receives the Coordinator's own messages. Nil discards them.
	Diagnostics *slog.Logger
}

// Topics looks up the broker's topics. It is called with the mutex of a group held, so it must not
// call the Coordinator. A topic's partitions are numbered from 0.
type Topics interface {
	ByName(name string) (id [16]byte, partitions int32, ok bool)
	ByID(id [16]byte) (name string, ok bool)
	Names() []string
}

// Caller is the client that sends a request.
type Caller struct {
	ClientID  string
	Host      string // IP address
	Principal string

	// MayDescribe and MayRead report whether the client may describe or read a topic. Nil denies
	// every topic.
	MayDescribe, MayRead func(topic string) bool
}

// host returns the client's address in Kafka's format.
func (w Caller) host() string { return "/" + w.Host }

func (w Caller) mayDescribe(topic string) bool { return w.MayDescribe != nil && w.MayDescribe(topic) }
func (w Caller) mayRead(topic string) bool     { return w.MayRead != nil && w.MayRead(topic) }

const (
	minSession = 6 * time.Second
	maxSession = 30 * time.Minute

	// newMemberTimeout bounds how long a JoinGroup of a new member waits, because its client may
	// have disconnected in the meantime.
	newMemberTimeout = 5 * time.Minute

	// maxMetadata is offset.metadata.max.bytes, which counts UTF-16 code units.
	maxMetadata = 4096

	// maxRecord bounds the size of a classic group in the journal.
	maxRecord = 8 << 20

	// offsetBytes is the approximate memory of a committed offset, without its metadata.
	offsetBytes = 150
)

var errTooLarge = errors.New("group too large")

// Coordinator is the group coordinator of the broker. All methods may be called concurrently. It
// keeps references to strings of the requests, so requests must not be read with kmsg's
// UnsafeReadFrom. It keeps no references to byte slices of the requests.
//
// The caller of a method authorizes the request for the group. Topics are authorized here, with the
// functions in [Caller], because they are part of the answers.
type Coordinator struct {
	cfg   Config
	store store

	closeMu sync.RWMutex // held for reading while the store is used
	closed  bool         // guarded by closeMu

	mu     sync.RWMutex // guards groups; may be taken with a group's mutex held, not the other way around
	groups map[string]*group

	reserved atomic.Int64 // bytes that count towards Config.MaxBytes
	failing  atomic.Bool  // whether the last write to the journal failed

	closeOnce sync.Once
	closeErr  error
}

// Open restores the groups from cfg.FS. The session timers of their members start again.
func Open(cfg Config) (*Coordinator, error) {
	return open(cfg, openJournal)
}

func open(cfg Config, openStore func(Config, func(entry) error) (store, error)) (*Coordinator, error) {
	if cfg.Topics == nil {
		return nil, errors.New("open groups: Topics is required")
	}
	cfg.OffsetsRetention = cmp.Or(cfg.OffsetsRetention, 7*24*time.Hour)
	cfg.MaxGroups = cmp.Or(cfg.MaxGroups, 100_000)
	cfg.MaxMembers = cmp.Or(cfg.MaxMembers, 10_000)
	cfg.MaxMemberBytes = cmp.Or(cfg.MaxMemberBytes, 1<<20)
	cfg.MaxBytes = cmp.Or(cfg.MaxBytes, 512<<20)
	cfg.Diagnostics = cmp.Or(cfg.Diagnostics, slog.New(slog.DiscardHandler))
	c := &Coordinator{cfg: cfg, groups: map[string]*group{}}
	l := loader{c: c, classic: map[string][]byte{}, parts: map[string]map[string][]byte{}}
	var err error
	if c.store, err = openStore(c.cfg, l.load); err != nil {
		return nil, fmt.Errorf("open groups: %w", err)
	}
	c.closeMu.Lock() // no timer may fire before all groups are restored
	err = l.finish(time.Now())
	c.closeMu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("open groups: %w", errors.Join(err, c.Close()))
	}
	return c, nil
}

// Close answers all waiting requests and stops all timers. Afterwards every request is answered
// with COORDINATOR_NOT_AVAILABLE.
func (c *Coordinator) Close() error {
	c.closeOnce.Do(func() {
		c.closeMu.Lock()
		c.closed = true
		c.closeMu.Unlock()
		for _, g := range c.all() {
			g.mu.Lock()
			g.stop()
			g.mu.Unlock()
		}
		c.closeErr = c.store.Close()
	})
	return c.closeErr
}

// enter allows the caller to use the store until it calls c.closeMu.RUnlock. It returns false if
// the Coordinator is closed.
func (c *Coordinator) enter() bool {
	c.closeMu.RLock()
	if c.closed {
		c.closeMu.RUnlock()
		return false
	}
	return true
}

// all returns the groups in the order of their IDs.
func (c *Coordinator) all() []*group {
	c.mu.RLock()
	groups := make([]*group, 0, len(c.groups))
	for _, g := range c.groups {
		groups = append(groups, g)
	}
	c.mu.RUnlock()
	slices.SortFunc(groups, func(a, b *group) int { return strings.Compare(a.id, b.id) })
	return groups
}

// find returns the group with its mutex locked, or nil.
func (c *Coordinator) find(id string) *group {
	for {
		c.mu.RLock()
		g := c.groups[id]
		c.mu.RUnlock()
		if g == nil {
			return nil
		}
		g.mu.Lock()
		if !g.dead {
			return g
		}
		g.mu.Unlock() // the group was deleted between the two locks
	}
}

// findOrCreate returns the group with its mutex locked. If the group does not exist, it creates one
// without members. Because of the mutex no other request can use that group yet. It returns nil if
// there are too many groups.
func (c *Coordinator) findOrCreate(id string) (g *group, created bool) {
	for {
		if g := c.find(id); g != nil {
			return g, false
		}
		g = &group{id: id, c: c}
		g.mu.Lock()
		c.mu.Lock()
		full, taken := len(c.groups) >= c.cfg.MaxGroups, c.groups[id] != nil
		if !full && !taken {
			g.classic = newClassicGroup(time.Now())
			c.groups[id] = g
		}
		c.mu.Unlock()
		switch {
		case taken:
			continue
		case full:
			return nil, false
		}
		return g, true
	}
}

// append writes to the journal. The caller holds the mutex of the group that the entries belong to,
// so that a group's entries stay in order.
func (c *Coordinator) append(entries ...entry) error {
	err := c.store.Append(entries...)
	if errors.Is(err, journal.ErrTooLarge) {
		return errTooLarge
	}
	if failing := err != nil; c.failing.Swap(failing) != failing {
		if failing {
			c.cfg.Diagnostics.Warn("cannot write the journal of consumer groups; commits and rebalances fail", "err", err)
		} else {
			c.cfg.Diagnostics.Info("the journal of consumer groups can be written again")
		}
	}
	return err
}

// reserve takes n bytes from the budget, or gives them back if n is negative. It returns false if
// the budget is exhausted.
func (c *Coordinator) reserve(n int64) bool {
	if held := c.reserved.Add(n); n > 0 && held > c.cfg.MaxBytes {
		c.reserved.Add(-n)
		return false
	}
	return true
}

// codeOf returns the error code of a response: 0 if err is nil.
func codeOf(err *kerr.Error) int16 {
	if err == nil {
		return 0
	}
	return err.Code
}

// storeError returns the error code for a change that could not be written to the journal.
func storeError(err error) *kerr.Error {
	if errors.Is(err, errTooLarge) {
		return kerr.UnknownServerError
	}
	return kerr.CoordinatorNotAvailable
}

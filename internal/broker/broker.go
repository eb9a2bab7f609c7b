// Package broker is the embedded engine: a complete Kafka cluster of one broker inside this
// process, for one machine.
//
// It speaks the Kafka protocol and keeps everything in one data directory:
//
//	lock      held by the process that uses the directory
//	meta/     a journal: topics, their settings, ACLs, the next producer ID
//	groups/   a journal: consumer groups and their committed offsets
//	topics/   one directory for each partition, see package commitlog
//
// Acknowledged records and offsets survive if the process is killed. With [Config.SyncWrites] they
// also survive a power cut. Topics, settings and ACLs always survive both.
//
// The broker does not listen on the network. [Broker.Dial] connects in memory, and [Broker.SignIn]
// sets the principal of the connection. The gateway calls both for its clients. There is no
// replication, and there are no transactions. A deployment of more than one machine uses Apache
// Kafka instead.
//
// # How a request is served
//
// One goroutine serves each connection. It reads a request, carries it out and writes the response
// (conn.go), so responses keep the order of the requests. The table in api.go maps each request to
// its function. A request that waits, such as a fetch for more records or a join for the rest of
// the group, blocks only its own connection, as in Apache Kafka. One more goroutine does the
// periodic work: retention, checkpoints and expired offsets (maintain.go).
package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/semaphore"

	"github.com/diaspora-streams/diaspora/internal/commitlog"
	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/groups"
	"github.com/diaspora-streams/diaspora/internal/journal"
)

// Config configures a [Broker].
type Config struct {
	// Dir is the directory for all records and state. It is created if it does not exist. Only one
	// Broker may use it at a time. If Dir is empty, everything is in memory and lost after Close.
	Dir string

	// Advertise is the address, as host:port, that the broker tells clients to connect to. It is
	// the gateway's address. Required.
	Advertise string

	// ClusterID is the cluster ID that clients see. A data directory keeps the ID that it was
	// created with. Default: "diaspora".
	ClusterID string

	// SyncWrites syncs every record and offset to disk before it is acknowledged, so that it also
	// survives a power cut. This costs an fsync, which concurrent requests share. Without
	// SyncWrites, acknowledged records and offsets survive if the process is killed, as in Apache
	// Kafka.
	SyncWrites bool

	// Diagnostics receives the Broker's own log messages. Nil discards them.
	Diagnostics *slog.Logger

	// The remaining fields are for tests.
	files         disk.FS          // replaces Dir
	now           func() time.Time // the clock of the logs; nil: time.Now
	maintainEvery time.Duration    // 0: [maintainEvery]
}

// Broker is a running embedded broker. All methods may be called concurrently.
type Broker struct {
	cfg   Config
	host  string // of cfg.Advertise
	port  int32
	epoch int32 // the leader epoch of every partition; grows by one with each start

	files         disk.FS
	lock          io.Closer
	meta          *journal.Journal
	journaled     journaled
	topics        *topics
	acls          *acls
	groups        *groups.Coordinator
	producers     producerIDs
	space         *diskSpace
	largeRequests *semaphore.Weighted // bytes of the large requests that are being carried out, see largeRequestBudget
	sessions      atomic.Int64        // number of partitions in the fetch sessions of all connections

	ctx      context.Context // ends with Close
	stop     context.CancelFunc
	working  sync.WaitGroup // connections and the maintenance goroutine
	connsMu  sync.Mutex     // guards conns and closed
	conns    map[*conn]struct{}
	closed   bool
	closing  sync.Once
	closeErr error
}

// ErrInUse means that another broker uses the data directory.
var ErrInUse = disk.ErrInUse

// Open starts a broker that uses cfg.Dir, or memory if cfg.Dir is empty. It fails if another
// process uses the directory, or if the directory cannot be written or is damaged.
func Open(cfg Config) (*Broker, error) {
	b := &Broker{cfg: cfg, conns: make(map[*conn]struct{}), largeRequests: semaphore.NewWeighted(largeRequestBudget)}
	b.ctx, b.stop = context.WithCancel(context.Background())
	if err := b.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open broker: %w", err), b.Close())
	}
	b.working.Go(b.maintain)
	return b, nil
}

func (b *Broker) open() (err error) {
	b.cfg.ClusterID = cmp.Or(b.cfg.ClusterID, "diaspora")
	b.cfg.Diagnostics = cmp.Or(b.cfg.Diagnostics, slog.New(slog.DiscardHandler))
	if b.host, b.port, err = splitAddress(b.cfg.Advertise); err != nil {
		return err
	}
	if err := b.openFiles(); err != nil {
		return err
	}
	if err := b.openMeta(); err != nil {
		return err
	}
	if err := b.openTopics(); err != nil {
		return err
	}
	b.groups, err = groups.Open(groups.Config{
		FS:          b.files.Sub("groups"),
		Sync:        b.cfg.SyncWrites,
		Topics:      groupTopics{b.topics},
		Diagnostics: b.cfg.Diagnostics,
	})
	return err
}

// splitAddress splits a host:port address. It returns an error for an address that clients could
// not connect to.
func splitAddress(address string) (host string, port int32, err error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, fmt.Errorf("advertised address: %w", err)
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if host == "" || err != nil || n == 0 {
		return "", 0, fmt.Errorf("advertised address %q: want host:port", address)
	}
	return host, int32(n), nil
}

// openFiles creates the data directory if necessary, and locks it for this Broker.
func (b *Broker) openFiles() (err error) {
	switch {
	case b.cfg.files != nil:
		b.files = b.cfg.files
	case b.cfg.Dir == "":
		b.files = disk.Memory()
	default:
		if b.files, err = disk.New(b.cfg.Dir); err != nil {
			return fmt.Errorf("data directory: %w", err)
		}
	}
	b.space = newDiskSpace(b.cfg.Dir, b.cfg.Diagnostics)
	if err := errors.Join(b.files.Make(), b.files.SyncParent()); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if b.lock, err = b.files.Lock("lock"); errors.Is(err, ErrInUse) {
		return fmt.Errorf("data directory %s: %w", b.cfg.Dir, err)
	}
	if err != nil {
		return fmt.Errorf("lock data directory: %w", err)
	}
	return nil
}

// openTopics opens the partitions of all topics in the journal.
func (b *Broker) openTopics() error {
	files := b.files.Sub("topics")
	if err := errors.Join(files.Make(), files.SyncParent()); err != nil {
		return err
	}
	b.topics = newTopics(files, b.openLog, b.meta.Append)
	return b.topics.load(b.journaled.topics)
}

func (b *Broker) openLog(files disk.FS, settings topicSettings) (*commitlog.Log, error) {
	log, err := commitlog.Open(commitlog.Options{
		FS:           files,
		SegmentBytes: settings.segmentBytes,
		Sync:         b.cfg.SyncWrites,
		Now:          b.cfg.now,
		Diagnostics:  b.cfg.Diagnostics,
	})
	if err != nil {
		return nil, err
	}
	log.AssignEpoch(b.epoch)
	return log, nil
}

// Dial connects to the broker in memory. The connection is not signed in yet: it accepts only
// ApiVersions until [Broker.SignIn] sets its principal.
func (b *Broker) Dial(ctx context.Context) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, &net.OpError{Op: "dial", Net: "memory", Addr: address(b.cfg.Advertise), Err: context.Cause(ctx)}
	}
	return b.connect(caller{})
}

// AdminOpts returns the options of a kgo client that connects as the super user, whom no ACL
// restricts. The client must be closed before the Broker is.
func (b *Broker) AdminOpts() []kgo.Opt {
	return []kgo.Opt{
		kgo.SeedBrokers(b.cfg.Advertise),
		kgo.Dialer(func(context.Context, string, string) (net.Conn, error) {
			return b.connect(caller{principal: "User:(super user)", super: true})
		}),
	}
}

// Close closes all connections, writes pending data to disk and unlocks the data directory. It may
// be called more than once.
func (b *Broker) Close() error {
	b.closing.Do(func() {
		b.stop()
		b.closeConns()
		b.working.Wait()
		var errs []error
		if b.groups != nil {
			errs = append(errs, b.groups.Close())
		}
		if b.topics != nil {
			errs = append(errs, b.topics.close())
		}
		if b.meta != nil {
			errs = append(errs, b.meta.Close())
		}
		if b.lock != nil {
			errs = append(errs, b.lock.Close())
		}
		if b.files != nil {
			errs = append(errs, b.files.Close())
		}
		if err := errors.Join(errs...); err != nil {
			b.closeErr = fmt.Errorf("close broker: %w", err)
		}
	})
	return b.closeErr
}

// logDir returns the path that DescribeLogDirs reports as the broker's log directory.
func (b *Broker) logDir() string { return filepath.Join(b.cfg.Dir, "topics") }

// Package broker is the embedded engine: a whole Kafka cluster of one broker
// inside this process, for one machine.
//
// It speaks the Kafka protocol and keeps everything in one data directory:
//
//	lock      held by the process that has the directory
//	meta/     a journal: topics, their settings, ACLs, the next producer ID
//	groups/   a journal: consumer groups and their committed offsets
//	topics/   one directory for each partition, see package commitlog
//
// What was acknowledged survives the death of the process. With
// [Config.SyncWrites] it survives a power cut as well. Topics, settings and
// ACLs always do.
//
// Nothing listens on the network: [Broker.Dial] connects in memory,
// [Broker.SignIn] says whose the connection is, and the gateway does both for
// its clients. There is no replication, and there are no transactions; beyond
// one machine there is Apache Kafka.
//
// # How a request is served
//
// Each connection has one goroutine, which reads a request, carries it out and
// writes the answer (conn.go), so that answers keep the order of requests. The
// table in api.go says which function does which request. A request that waits
// (a fetch for more records, a member for its group) makes only its own
// connection wait, as in Apache Kafka. One more goroutine does what has its
// time: retention, checkpoints, expired offsets (maintain.go).
package broker

import (
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

// Config says where a [Broker] keeps its records and what it calls itself.
type Config struct {
	// Dir holds all records and state. It is made when missing, and belongs to
	// one Broker at a time. Empty: everything is in memory and dies with Close.
	Dir string

	// Advertise is the address, as host:port, that clients are told to connect
	// to: the gateway's. Required.
	Advertise string

	// ClusterID is what clients see as the cluster's ID; a data directory
	// keeps the one it was made with. Default: "diaspora".
	ClusterID string

	// SyncWrites makes every acknowledged record and offset survive a power
	// cut as well, at the price of an fsync, which requests share that come
	// together. Without it they survive the death of the process, as they do
	// in Apache Kafka.
	SyncWrites bool

	// Diagnostics receives the Broker's own messages. Nil discards them.
	Diagnostics *slog.Logger

	// In tests:
	files         disk.FS          // in place of Dir
	now           func() time.Time // the clock of the logs; nil: time.Now
	maintainEvery time.Duration    // 0: [maintainEvery]
}

// Broker is a running embedded broker. All methods may be called concurrently.
type Broker struct {
	cfg   Config
	host  string // of cfg.Advertise
	port  int32
	epoch int32 // counts the starts; every partition's leader epoch

	files     disk.FS
	lock      io.Closer
	meta      *journal.Journal
	state     metaState // what the journal has, besides topics and ACLs
	topics    *topics
	acls      *acls
	groups    *groups.Coordinator
	producers producerIDs
	space     *space
	heavy     *semaphore.Weighted // bytes of large requests that are carried out
	sessions  atomic.Int64        // partitions in the fetch sessions of all connections

	ctx      context.Context // ends with Close
	stop     context.CancelFunc
	working  sync.WaitGroup // connections and maintenance
	connsMu  sync.Mutex     // guards the field below
	conns    map[*conn]struct{}
	closed   bool
	closing  sync.Once
	closeErr error
}

// ErrInUse says that another broker has the data directory.
var ErrInUse = disk.ErrInUse

// Open starts a broker over cfg.Dir, or over an empty memory. It fails when
// the directory is in use by another process, cannot be written, or is damaged.
func Open(cfg Config) (*Broker, error) {
	b := &Broker{cfg: cfg, conns: make(map[*conn]struct{}), heavy: semaphore.NewWeighted(heavyBytes)}
	b.ctx, b.stop = context.WithCancel(context.Background())
	if err := b.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open broker: %w", err), b.Close())
	}
	b.working.Go(b.maintain)
	return b, nil
}

func (b *Broker) open() (err error) {
	if b.cfg.ClusterID == "" {
		b.cfg.ClusterID = "diaspora"
	}
	if b.cfg.Diagnostics == nil {
		b.cfg.Diagnostics = slog.New(slog.DiscardHandler)
	}
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

// splitAddress refuses an address that clients could not connect to.
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

// openFiles makes the data directory and takes it for this Broker alone.
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
	b.space = newSpace(b.cfg.Dir, b.cfg.Diagnostics)
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

// openTopics opens the partitions of the topics that the journal has.
func (b *Broker) openTopics() error {
	files := b.files.Sub("topics")
	if err := errors.Join(files.Make(), files.SyncParent()); err != nil {
		return err
	}
	b.topics = newTopics(files, b.openLog, b.meta.Append)
	return b.topics.load(b.state.topics)
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

// Dial connects to the broker in memory. Nobody is signed in yet: the
// connection takes ApiVersions, until [Broker.SignIn] says whose it is.
func (b *Broker) Dial(ctx context.Context) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, &net.OpError{Op: "dial", Net: "memory", Addr: address(b.cfg.Advertise), Err: context.Cause(ctx)}
	}
	return b.connect(caller{})
}

// AdminOpts are the options of a kgo client that is the super user, whom no
// ACL binds. The client must be closed before the Broker is.
func (b *Broker) AdminOpts() []kgo.Opt {
	return []kgo.Opt{
		kgo.SeedBrokers(b.cfg.Advertise),
		kgo.Dialer(func(context.Context, string, string) (net.Conn, error) {
			return b.connect(caller{principal: "User:(super user)", super: true})
		}),
	}
}

// Close ends all connections, writes what is not on disk yet and frees the
// data directory. It may be called twice.
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

// logDir is the name that requests about directories know the broker's by.
func (b *Broker) logDir() string { return filepath.Join(b.cfg.Dir, "topics") }

// Package broker is the embedded broker: a whole Kafka cluster of one node
// inside this process, for one machine. It hides franz-go's kfake.
//
// Records live in the data directory, not in memory, and records that were
// acknowledged survive the death of the process. Nothing listens on the
// network: [Broker.Dial] connects in memory, [Broker.SignIn] logs such a
// connection in as a subject, and the gateway does both for its clients. The
// broker has one event loop and no replication; beyond one machine there is
// Apache Kafka.
package broker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/gofrs/flock"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// superUser is whom [Broker.AdminOpts] signs in as. It cannot be a subject,
// because a subject has no parentheses.
const superUser = "(super user)"

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

	// SyncWrites makes every acknowledged record survive a power cut as well,
	// at the price of one fsync per batch. Without it records survive the
	// death of the process, as they do in Apache Kafka.
	SyncWrites bool

	// Diagnostics receives the Broker's own messages. Nil discards them.
	Diagnostics *slog.Logger
}

// Broker is a running embedded broker. All methods may be called concurrently.
type Broker struct {
	cfg      Config
	lock     *flock.Flock // nil without Dir
	cluster  *kfake.Cluster
	listener *listener
	password string // the super user's, of this process only
	subjects *credentials

	closeOnce sync.Once
	closeErr  error
}

// Open starts a broker over cfg.Dir, or over an empty memory. It fails when
// the directory is in use by another process, cannot be written, or is damaged.
func Open(cfg Config) (*Broker, error) {
	if err := checkAdvertise(cfg.Advertise); err != nil {
		return nil, err
	}
	if cfg.ClusterID == "" {
		cfg.ClusterID = "diaspora"
	}
	if cfg.Diagnostics == nil {
		cfg.Diagnostics = slog.New(slog.DiscardHandler)
	}
	b := &Broker{cfg: cfg, listener: newListener(cfg.Advertise), password: rand.Text()}
	if err := b.lockDir(); err != nil {
		return nil, err
	}
	if err := b.start(); err != nil {
		return nil, errors.Join(fmt.Errorf("open broker: %w", err), b.unlockDir())
	}
	return b, nil
}

// checkAdvertise refuses an address that clients could not connect to.
func checkAdvertise(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("open broker: advertised address: %w", err)
	}
	if n, err := strconv.ParseUint(port, 10, 16); host == "" || err != nil || n == 0 {
		return fmt.Errorf("open broker: advertised address %q: want host:port", address)
	}
	return nil
}

// lockDir makes the data directory and takes it for this Broker alone.
func (b *Broker) lockDir() error {
	if b.cfg.Dir == "" {
		return nil
	}
	if err := os.MkdirAll(b.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("open broker: data directory: %w", err)
	}
	b.lock = flock.New(filepath.Join(b.cfg.Dir, "lock"), flock.SetFlag(os.O_CREATE|os.O_RDWR))
	locked, err := b.lock.TryLock()
	if err != nil {
		return fmt.Errorf("open broker: lock data directory: %w", err)
	}
	if !locked {
		return fmt.Errorf("open broker: data directory %s: %w", b.cfg.Dir, ErrInUse)
	}
	return nil
}

// ErrInUse says that another broker has the data directory.
var ErrInUse = errors.New("in use by another process")

func (b *Broker) unlockDir() error {
	if b.lock == nil {
		return nil
	}
	return b.lock.Close()
}

func (b *Broker) start() error {
	opts := []kfake.Opt{
		kfake.NumBrokers(1),
		kfake.ClusterID(b.cfg.ClusterID),
		kfake.EnableSASL(),
		kfake.EnableACLs(),
		kfake.Superuser(scramMechanism, superUser, b.password),
		kfake.ListenFn(func(string, string) (net.Listener, error) { return b.listener, nil }),
		kfake.WithLogger(kfakeLogger{b.cfg.Diagnostics}),
		kfake.MaxVersions(maxVersions()),
	}
	if b.cfg.Dir != "" {
		if err := errors.Join(b.forgetCredentials(), b.forgetFetchSessions()); err != nil {
			return err
		}
		if err := restoreProducers(b.cfg.Dir); err != nil {
			return err
		}
		opts = append(opts, kfake.DataDir(b.cfg.Dir))
	}
	if b.cfg.SyncWrites {
		opts = append(opts, kfake.SyncWrites())
	}
	cluster, err := kfake.NewCluster(opts...)
	if err != nil {
		return err
	}
	if b.cfg.Dir != "" {
		err = b.forgetProducers()
	}
	if err != nil {
		cluster.Close()
		return err
	}
	admin, err := kgo.NewClient(b.AdminOpts()...)
	if err != nil {
		cluster.Close()
		return err
	}
	b.cluster = cluster
	b.subjects = newCredentials(admin)
	return nil
}

// maxVersions says which requests the broker takes: those of the newest Apache
// Kafka, but produce by topic name only. kfake panics on a produce request with
// two topic IDs that it does not know, which any client sends that still has
// events for two topics deleted a moment ago.
func maxVersions() *kversion.Versions {
	versions := kversion.Stable()
	versions.SetMaxKeyVersion(int16(kmsg.Produce), 12)
	return versions
}

// forgetCredentials removes what an earlier process left of its users. They
// belong to that process: kfake would prefer them to the super user of this one.
func (b *Broker) forgetCredentials() error { return b.forget("sasl.json") }

// forget removes a file of kfake's from the data directory, if it is there.
func (b *Broker) forget(name string) error {
	err := os.Remove(filepath.Join(b.cfg.Dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// replaceFile writes a file of kfake's whole, or leaves it as it was: half of one, after a
// crash, would keep the broker from ever starting again.
func replaceFile(path string, content []byte) error {
	if err := os.WriteFile(path+".tmp", content, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

// Dial connects to the broker in memory. Nobody is signed in yet: the
// connection takes ApiVersions, or [Broker.SignIn].
func (b *Broker) Dial(ctx context.Context) (net.Conn, error) {
	return b.listener.dial(ctx)
}

// AdminOpts are the options of a kgo client that is the super user, whom no
// ACL binds. The client must be closed before the Broker is.
func (b *Broker) AdminOpts() []kgo.Opt {
	auth := scram.Auth{User: superUser, Pass: b.password}
	return []kgo.Opt{
		kgo.SeedBrokers(b.cfg.Advertise),
		kgo.Dialer(func(ctx context.Context, _, _ string) (net.Conn, error) { return b.Dial(ctx) }),
		kgo.SASL(auth.AsSha256Mechanism()),
	}
}

// Close ends all connections, writes what is not on disk yet and frees the
// data directory. It may be called twice.
func (b *Broker) Close() error {
	b.closeOnce.Do(func() {
		b.subjects.close()
		b.cluster.Close()
		if b.cfg.Dir != "" {
			b.closeErr = b.forgetCredentials()
		}
		b.closeErr = errors.Join(b.closeErr, b.unlockDir())
	})
	return b.closeErr
}

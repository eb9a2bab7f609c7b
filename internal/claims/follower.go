package claims

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// FollowerConfig configures a [Follower].
type FollowerConfig struct {
	// Client are the options for a Kafka client that may read the ledger and write to
	// [KeyUsesTopic]; see [Config.GatewayPrincipal]. Required.
	Client []kgo.Opt

	// Admission says who may use the fabric. Its Operators are always admitted, and have no other
	// rights here.
	Admission Admission

	// Dir is the folder for checkpoints of the ledger, as in [Config].
	Dir string

	// Diagnostics receives the Follower's own messages. Nil discards them.
	Diagnostics *slog.Logger
}

// Follower gives a gateway what it needs to know of the ledger. It decides nothing and changes
// nothing in the cluster, except that it writes a record to [KeyUsesTopic] when an access key is
// used. Its methods may be called concurrently.
type Follower struct {
	ledgerReader
	client *kgo.Client

	stop      context.CancelFunc // ends the goroutines
	wg        sync.WaitGroup     // waits for them
	closeOnce sync.Once
}

// Follow reads the ledger to its end and returns a Follower that continues to read it. If there is
// no ledger, or the client may not read it, Follow waits: the first [Service] that starts creates
// the ledger and grants the right. ctx bounds the opening only.
func Follow(ctx context.Context, cfg FollowerConfig) (*Follower, error) {
	cfg.Diagnostics = cmp.Or(cfg.Diagnostics, slog.New(slog.DiscardHandler))
	client, err := kgo.NewClient(slices.Concat(cfg.Client, ledgerOpts())...)
	if err != nil {
		return nil, fmt.Errorf("follow the ledger: %w", err)
	}
	run, stop := context.WithCancel(context.Background()) // ends with Close, not with ctx
	f := &Follower{client: client, stop: stop}
	if err := f.open(ctx, run, cfg); err != nil {
		return nil, errors.Join(fmt.Errorf("follow the ledger: %w", err), f.Close())
	}
	return f, nil
}

func (f *Follower) open(ctx, run context.Context, cfg FollowerConfig) error {
	if err := f.client.Ping(ctx); err != nil {
		return clusterError(err)
	}
	warnOnce := sync.OnceFunc(func() {
		cfg.Diagnostics.Warn("waiting for the ledger; an ACL endpoint creates it and grants gateways access", "topic", LedgerTopic)
	})
	var refused error
	reading := ledgerConfig{client: cfg.Client, dir: cfg.Dir, diagnostics: cfg.Diagnostics}
	l, err := openLedger(ctx, f.client, reading, func(ctx context.Context) (kafka.TopicInfo, error) {
		info, err := findLedger(ctx, kafka.NewAdmin(f.client))
		if errors.Is(err, kerr.TopicAuthorizationFailed) { // the broker answers the same if there is no such topic
			refused, err = err, nil
		}
		if err == nil && !info.Led {
			warnOnce()
		}
		return info, err
	})
	if refused != nil && err != nil {
		return fmt.Errorf("%w: it does not exist, or this user may not read it; start an ACL endpoint, which creates it and grants gateways access: %w", diaspora.ErrUnavailable, refused)
	} else if err != nil {
		return err
	}
	f.ledgerReader = ledgerReader{l, newKeyUses(), cfg.Admission}
	f.wg.Go(func() { l.follow(run) })
	if err := l.catchUp(ctx); err != nil {
		return err
	}
	f.wg.Go(func() { l.checkpointLoop(run) })
	f.wg.Go(func() { f.uses.writeLoop(run, cfg.Diagnostics, f.recordUse) })
	return nil
}

// Close stops the Follower. It may be called more than once.
func (f *Follower) Close() error {
	f.closeOnce.Do(func() {
		f.stop()
		f.client.Close()
		f.wg.Wait()
		f.ledger.closeCheckpoints()
	})
	return nil
}

// KeyUsesTopic is the topic to which gateways write that an access key was used. Gateways may not
// write to the ledger, so Services copy these uses to it. Each record is a JSON object: v is 1, key
// is the ID. A record with v 2 has subject and identity_set, the linked identities of a person. The time of use is the record's timestamp, which the broker sets. The topic keeps
// records for a week.
const KeyUsesTopic = "_diaspora_key_uses"

// keyUse is the value of a record of KeyUsesTopic. In version 2 it says instead which identities are
// linked to the subject of a person who signed in.
type keyUse struct {
	Version int    `json:"v"`
	Key     string `json:"key,omitempty"`

	Subject     string   `json:"subject,omitempty"`
	IdentitySet []string `json:"identity_set,omitempty"`
}

// recordUse writes to KeyUsesTopic that a key was used now.
func (f *Follower) recordUse(ctx context.Context, id string) error {
	return f.write(ctx, id, keyUse{Version: 1, Key: id})
}

func (f *Follower) write(ctx context.Context, key string, use keyUse) error {
	value, err := json.Marshal(use)
	if err == nil && len(value) > maxKeyUseBytes {
		err = fmt.Errorf("the record has %d bytes, and at most %d are allowed", len(value), maxKeyUseBytes)
	}
	if err != nil {
		return err
	}
	return f.client.ProduceSync(ctx, &kgo.Record{Topic: KeyUsesTopic, Key: []byte(key), Value: value}).FirstErr()
}

// Linked makes a Service do what [Service.Linked] does, soon.
func (f *Follower) Linked(ctx context.Context, id globus.Identity) error {
	if len(f.ledger.linkChanges(id)) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	return f.write(ctx, id.Subject, keyUse{Version: 2, Subject: id.Subject, IdentitySet: id.IdentitySet})
}

package claims

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/accesskey"
)

const (
	// keyMaxAge is how old the information about a known key may be, and so how long a revocation
	// by another replica may stay unnoticed.
	keyMaxAge = time.Second
	// keyMaxStale is how long a known key stays valid while the ledger cannot be read. It is the
	// same as for known tokens while Globus Auth cannot be reached.
	keyMaxStale = time.Hour
	// keySyncTimeout is how long a login with a known key waits for the ledger.
	keySyncTimeout = 2 * time.Second

	maxQueuedUses = 1024
)

// ledgerReader answers questions from the ledger. It is what a [Follower], which gateways use, and
// a [Service] have in common.
type ledgerReader struct {
	ledger    *ledger
	uses      *keyUses
	admission Admission
}

// Ready returns nil if the cluster answers and the ledger has been read to its end.
func (r *ledgerReader) Ready(ctx context.Context) error { return r.ledger.sync(ctx) }

// AuthenticateKey returns the access key with this ID if the secret is right and the key is valid
// now. Errors are a [*globus.RefusedError], whose reason can be shown to the client, or
// [diaspora.ErrUnavailable] if the ledger cannot be read.
func (r *ledgerReader) AuthenticateKey(ctx context.Context, id string, secret globus.Secret) (diaspora.AccessKey, error) {
	k, err := r.currentKey(ctx, id)
	switch {
	case err != nil:
		return diaspora.AccessKey{}, err
	case k.live() && !k.hash.matches(secret):
		return diaspora.AccessKey{}, errNoKey
	}
	return r.validKey(k)
}

// ActiveKey returns the access key with this ID if it is valid now. It is for callers that have
// proved in another way that they know the secret. Its errors are those of AuthenticateKey.
func (r *ledgerReader) ActiveKey(ctx context.Context, id string) (diaspora.AccessKey, error) {
	k, err := r.currentKey(ctx, id)
	if err != nil {
		return diaspora.AccessKey{}, err
	}
	return r.validKey(k)
}

// errNoKey does not say which of the two applies. IDs are not secret, but a client that does not
// know the secret should not learn which IDs exist.
var errNoKey = &globus.RefusedError{Reason: "there is no such access key, or this is not its secret"}

// validKey returns a key unless it has ended or its owner is not admitted. It notes that the key is
// used.
func (r *ledgerReader) validKey(k accessKey) (diaspora.AccessKey, error) {
	if err := r.admitOwner(k.Owner); err != nil {
		return diaspora.AccessKey{}, err
	}
	now := time.Now()
	switch {
	case k.expired(now):
		return diaspora.AccessKey{}, &globus.RefusedError{Reason: "the access key expired at " + k.Expires.UTC().Format(time.RFC3339)}
	case !k.live():
		return diaspora.AccessKey{}, &globus.RefusedError{Reason: "the access key was revoked"}
	}
	if startOfDay(now).After(k.LastUsed) {
		r.uses.record(k, startOfDay(now))
	}
	return k.AccessKey, nil
}

// currentKey returns what the ledger says about a key. The information is at most keyMaxAge old,
// unless the ledger cannot be read. For an unknown key it reads the ledger to its end, because
// another replica may have just issued it.
func (r *ledgerReader) currentKey(ctx context.Context, id string) (accessKey, error) {
	if !accesskey.IsID(id) {
		return accessKey{}, errNoKey
	}
	since, wait := time.Now(), ctx
	_, known := r.ledger.key(id)
	if known {
		var cancel context.CancelFunc
		wait, cancel = context.WithTimeout(ctx, keySyncTimeout)
		defer cancel()
		since = since.Add(-keyMaxAge)
	}
	err := r.ledger.syncSince(wait, since)
	broken := (*brokenError)(nil)
	if err != nil && (!known || ctx.Err() != nil || errors.As(err, &broken) || !r.ledger.syncedWithin(keyMaxStale)) {
		return accessKey{}, err
	}
	k, known := r.ledger.key(id)
	if !known {
		return accessKey{}, errNoKey
	}
	return k, nil
}

// keyUses records in the ledger on which days keys are used: one record for a key and a day,
// however often and wherever the key signs in. A record takes 180 bytes in a batch of its own. That
// is about 100 KB a year for a key in daily use, and nothing for an unused key, and it tells owners
// which keys they can revoke. Exact times would need one record for each login, which is too much
// for a ledger that each replica reads as a whole.
type keyUses struct {
	queue chan string // IDs of keys

	mu       sync.Mutex          // guards the fields below
	day      time.Time           // to which recorded applies
	recorded map[string]struct{} // by ID
}

func newKeyUses() *keyUses { return &keyUses{queue: make(chan string, maxQueuedUses)} }

// record queues a use to be written. It never waits, so it drops the use if the queue is full. A
// missed day does little harm: a client that is still active is recorded the next day.
func (u *keyUses) record(k accessKey, today time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.day != today {
		u.day, u.recorded = today, make(map[string]struct{})
	}
	if _, done := u.recorded[k.ID]; done {
		return
	}
	select {
	case u.queue <- k.ID:
		u.recorded[k.ID] = struct{}{}
	default:
	}
}

// forget makes the next use of a key count again.
func (u *keyUses) forget(id string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.recorded, id)
}

// writeLoop writes the queued uses of keys with write, until ctx ends.
func (u *keyUses) writeLoop(ctx context.Context, diagnostics *slog.Logger, write func(ctx context.Context, id string) error) {
	for {
		select {
		case <-ctx.Done():
			return
		case id := <-u.queue:
			attempt, cancel := context.WithTimeout(ctx, commandTimeout)
			err := write(attempt, id)
			cancel()
			if err != nil {
				u.forget(id)
				diagnostics.Debug("cannot record the use of an access key", "key", id, "err", err)
			}
		}
	}
}

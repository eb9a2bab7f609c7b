package claims

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
)

const (
	// keyFreshFor is how old what the ledger says of a key may be, and so how
	// long a revocation by another replica may go unseen.
	keyFreshFor = time.Second
	// keyStaleFor is for how long a key that is known stays good while the
	// ledger cannot be read, as it is with tokens while Globus Auth is away.
	keyStaleFor = time.Hour
	// keyWait is how long a key that is known waits for the ledger.
	keyWait = 2 * time.Second

	maxKeysNoted = 1024 // uses that wait to be written down
)

// ledgerReader answers what the ledger says. Gateways need no more, and so it is what a
// [Follower] and a [Service] have in common.
type ledgerReader struct {
	ledger    *ledger
	uses      *keyUses
	admission Admission
}

// Ready returns nil if the cluster answers and the ledger is read up to its end.
func (r *ledgerReader) Ready(ctx context.Context) error { return r.ledger.sync(ctx) }

// AuthenticateKey returns the access key with this ID if the secret is its own
// and it is good now. Errors are a [*globus.RefusedError] whose reason can be
// shown to whoever tried, or [diaspora.ErrUnavailable] if nobody can tell.
func (r *ledgerReader) AuthenticateKey(ctx context.Context, id string, secret globus.Secret) (diaspora.AccessKey, error) {
	k, err := r.keyNow(ctx, id)
	switch {
	case err != nil:
		return diaspora.AccessKey{}, err
	case k.live() && !k.hash.matches(secret):
		return diaspora.AccessKey{}, errNoKey
	}
	return r.goodKey(k)
}

// ActiveKey returns the access key with this ID if it is good now. It is for
// those who have shown by other means that they know its secret; errors are as
// those of AuthenticateKey.
func (r *ledgerReader) ActiveKey(ctx context.Context, id string) (diaspora.AccessKey, error) {
	k, err := r.keyNow(ctx, id)
	if err != nil {
		return diaspora.AccessKey{}, err
	}
	return r.goodKey(k)
}

// errNoKey does not say which of the two it is. IDs are no secret, but neither
// are they everybody's business.
var errNoKey = &globus.RefusedError{Reason: "there is no such access key, or this is not its secret"}

// goodKey returns a key unless it has ended, and notes that it is used.
func (r *ledgerReader) goodKey(k accessKey) (diaspora.AccessKey, error) {
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
	if day(now).After(k.LastUsed) {
		r.uses.note(k, day(now))
	}
	return k.AccessKey, nil
}

// keyNow returns what the ledger says about a key, and not what it said before
// another replica issued or revoked it.
func (r *ledgerReader) keyNow(ctx context.Context, id string) (accessKey, error) {
	if keyIDFault(id) != "" {
		return accessKey{}, errNoKey
	}
	since, wait := time.Now(), ctx
	_, known := r.ledger.key(id)
	if known {
		var cancel context.CancelFunc
		wait, cancel = context.WithTimeout(ctx, keyWait)
		defer cancel()
		since = since.Add(-keyFreshFor)
	}
	err := r.ledger.freshSince(wait, since)
	broken := (*brokenError)(nil)
	if err != nil && (!known || ctx.Err() != nil || errors.As(err, &broken) || !r.ledger.syncedWithin(keyStaleFor)) {
		return accessKey{}, err
	}
	k, known := r.ledger.key(id)
	if !known {
		return accessKey{}, errNoKey
	}
	return k, nil
}

// keyUses notes in the ledger on which days keys are used: one record for a key
// and a day, however often it signs in and wherever. That is 180 bytes in a
// batch of their own, some 100 KB a year for a key in daily use, and nothing for
// a key that is not used; and what tells that a key may go, the ledger
// keeps with the rest of its history. To the second it would be a record for
// each login, which the ledger, read whole by each replica, is not for.
type keyUses struct {
	waiting chan string // IDs of keys

	mu    sync.Mutex          // guards the fields below
	day   time.Time           // the day that noted is about
	noted map[string]struct{} // by ID
}

func newKeyUses() *keyUses { return &keyUses{waiting: make(chan string, maxKeysNoted)} }

// note has a use written down soon. Never waiting is worth more than never
// missing a day: a client that is there tomorrow is noted then.
func (u *keyUses) note(k accessKey, today time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.day != today {
		u.day, u.noted = today, make(map[string]struct{})
	}
	if _, done := u.noted[k.ID]; done {
		return
	}
	select {
	case u.waiting <- k.ID:
		u.noted[k.ID] = struct{}{}
	default:
	}
}

// forget has the next use of a key noted again.
func (u *keyUses) forget(id string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.noted, id)
}

// keep writes down the uses of keys with write until ctx ends.
func (u *keyUses) keep(ctx context.Context, diagnostics *slog.Logger, write func(ctx context.Context, id string) error) {
	for {
		select {
		case <-ctx.Done():
			return
		case id := <-u.waiting:
			attempt, cancel := context.WithTimeout(ctx, commandTimeout)
			err := write(attempt, id)
			cancel()
			if err != nil {
				u.forget(id)
				diagnostics.Debug("the use of an access key could not be noted", "key", id, "err", err)
			}
		}
	}
}

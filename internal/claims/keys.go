package claims

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/kafka"
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

	maxKeyLifetime = 10 * 366 * 24 * time.Hour
	maxKeysNoted   = 1024 // uses that wait to be written down
)

// IssueKey gives the subject a new access key and returns once it works. The
// secret is nowhere but in the answer: the ledger has its hash. Errors are
// [diaspora.ErrInvalid]; [diaspora.ErrConflict] if the subject has a key of that
// name; [diaspora.ErrNotFound] or [diaspora.ErrPermission] if a topic is not the
// subject's, and the latter also if a limit is reached; and
// [diaspora.ErrUnavailable], after which the list tells whether there is a key
// that nobody has the secret of.
func (s *Service) IssueKey(ctx context.Context, subject string, req diaspora.AccessKeyRequest) (diaspora.NewAccessKey, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	key, err := s.issueKey(ctx, subject, req)
	if err != nil {
		return diaspora.NewAccessKey{}, fmt.Errorf("create access key: %w", err) // the name may be a token, in the wrong place
	}
	return key, nil
}

func (s *Service) issueKey(ctx context.Context, subject string, req diaspora.AccessKeyRequest) (diaspora.NewAccessKey, error) {
	secret := newKeySecret()
	r, err := s.issueKeyRecord(subject, req)
	if err != nil {
		return diaspora.NewAccessKey{}, err
	}
	r.Hash = hashOf(secret)
	if err := s.mayIssueKey(ctx, r); err != nil {
		return diaspora.NewAccessKey{}, s.refusal(err)
	}
	if err := s.ledger.append(ctx, r); err != nil {
		return diaspora.NewAccessKey{}, s.refusal(err)
	}
	k, _ := s.ledger.key(r.Key)
	if err := s.settleKey(ctx, k); err != nil {
		s.discardKey(ctx, k)
		return diaspora.NewAccessKey{}, err
	}
	s.cfg.Diagnostics.Info("access key issued", "key", k.ID, "principal", principal(KeyPrincipal(k.AccessKey)))
	return diaspora.NewAccessKey{AccessKey: k.AccessKey, Secret: secret}, nil
}

// issueKeyRecord returns the record that asks for what req asks for, but for the hash.
func (s *Service) issueKeyRecord(subject string, req diaspora.AccessKeyRequest) (record, error) {
	r := newRecord(opIssueKey, subject)
	r.Key, r.Name, r.Topics, r.Read, r.Write = newKeyID(), req.Name, req.Topics, req.Read, req.Write
	r.Expires, r.Limit = req.Expires.UTC(), s.cfg.Limits.Keys
	if fault := subjectFault(subject); fault != "" {
		return r, invalid(fault)
	}
	if fault := keyFault(subject, req.Name, req.Topics, req.Read, req.Write); fault != "" {
		return r, invalid(fault)
	}
	if life := r.Expires.Sub(r.Time); !r.Expires.IsZero() && (life <= 0 || life > maxKeyLifetime) {
		return r, invalid("an access key expires within ten years from now, or never")
	}
	return r, nil
}

// mayIssueKey says what would make the record futile, as the ledger is now. A
// key for a topic that is somebody else's, or not there, would be one that does
// not work, most likely for a slip of the pen.
func (s *Service) mayIssueKey(ctx context.Context, r record) error {
	if err := s.ledger.mayApply(ctx, r); err != nil {
		return err
	}
	for i, name := range r.Topics {
		shown := fmt.Sprintf("%q", name)
		if len(name) > 32 { // it may be a token, in the wrong place
			shown = fmt.Sprintf("number %d of the list", i+1)
		}
		switch t := s.ledger.topic(name); {
		case t.phase != claimed:
			return fmt.Errorf("%w: nobody has claimed the topic %s", diaspora.ErrNotFound, shown)
		case t.owner != r.By:
			return fmt.Errorf("%w: the topic %s belongs to somebody else", diaspora.ErrPermission, shown)
		}
	}
	return nil
}

// discardKey ends a key whose secret nobody will ever have.
func (s *Service) discardKey(ctx context.Context, k accessKey) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commandTimeout)
	defer cancel()
	if err := s.endKey(ctx, opRevokeKey, k); err != nil {
		s.cfg.Diagnostics.Warn("a key that was not handed out could not be revoked", "key", k.ID, "err", err)
	}
	s.reconcileSoon()
}

// endKey has the ledger say that a key has ended. If it says so already, that is
// as good.
func (s *Service) endKey(ctx context.Context, op string, k accessKey) error {
	r := newRecord(op, k.Owner)
	r.Key = k.ID
	if err := s.ledger.append(ctx, r); err != nil && !errors.Is(err, errKeyEnded) {
		return err
	}
	return nil
}

// RevokeKey ends an access key of the subject's. When it returns nil, the rights
// of its own that the key had are gone from the broker, and nobody can sign in
// with it here; elsewhere nobody can a second later. Tokens got with it are as
// dead, and the gateway closes the connections that are open. Revoking again is no error. Errors are
// [diaspora.ErrNotFound] if the subject never had such a key, or
// [diaspora.ErrUnavailable], in which case revoking again tells.
func (s *Service) RevokeKey(ctx context.Context, subject, id string) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	k, err := s.ownedKey(ctx, subject, id)
	if err == nil && k.live() {
		if err = s.endKey(ctx, opRevokeKey, k); err == nil {
			s.cfg.Diagnostics.Info("access key revoked", "key", k.ID, "principal", principal(k.Owner))
		}
	}
	if err == nil {
		if err = s.settleKey(ctx, k); err != nil {
			s.reconcileSoon()
		}
	}
	return keyError("revoke", id, err)
}

// keyError returns err as an error of an operation on a key, and nil as nil. What
// is no ID may be anything, and is not repeated.
func keyError(op, id string, err error) error {
	switch {
	case err == nil:
		return nil
	case keyIDFault(id) != "":
		return fmt.Errorf("%s access key: %w", op, err)
	}
	return fmt.Errorf("%s access key %s: %w", op, id, err)
}

// ownedKey returns what the ledger says now about a key of the subject's.
func (s *Service) ownedKey(ctx context.Context, subject, id string) (accessKey, error) {
	if fault := keyIDFault(id); fault != "" {
		return accessKey{}, invalid(fault)
	}
	if err := s.ledger.sync(ctx); err != nil {
		return accessKey{}, err
	}
	k, known := s.ledger.key(id)
	if !known || k.Owner != subject {
		return accessKey{}, fmt.Errorf("%w: you have no access key with this ID", diaspora.ErrNotFound)
	}
	return k, nil
}

// Key returns an access key of the subject's, one that has ended included.
// Errors are as those of RevokeKey.
func (s *Service) Key(ctx context.Context, subject, id string) (diaspora.AccessKey, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	k, err := s.ownedKey(ctx, subject, id)
	if err != nil {
		return diaspora.AccessKey{}, keyError("show", id, err)
	}
	return k.AccessKey, nil
}

// Keys returns the access keys that the subject has, by name. One that has
// expired is among them until that is noted, within [Config.ReconcileInterval].
func (s *Service) Keys(ctx context.Context, subject string) ([]diaspora.AccessKey, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	if err := s.ledger.sync(ctx); err != nil {
		return nil, fmt.Errorf("list access keys: %w", err)
	}
	keys := []diaspora.AccessKey{}
	s.ledger.read(func(st *state) {
		for _, id := range st.keysOf[subject] {
			keys = append(keys, st.keys[id].AccessKey)
		}
	})
	slices.SortFunc(keys, func(a, b diaspora.AccessKey) int { return strings.Compare(a.Name, b.Name) })
	return keys, nil
}

// AuthenticateKey returns the access key with this ID if the secret is its own
// and it is good now. Errors are a [*globus.RefusedError] whose reason can be
// shown to whoever tried, or [diaspora.ErrUnavailable] if nobody can tell.
func (s *Service) AuthenticateKey(ctx context.Context, id string, secret globus.Secret) (diaspora.AccessKey, error) {
	k, err := s.keyNow(ctx, id)
	switch {
	case err != nil:
		return diaspora.AccessKey{}, err
	case k.live() && !k.hash.matches(secret):
		return diaspora.AccessKey{}, errNoKey
	}
	return s.goodKey(k)
}

// ActiveKey returns the access key with this ID if it is good now. It is for
// those who have shown by other means that they know its secret; errors are as
// those of AuthenticateKey.
func (s *Service) ActiveKey(ctx context.Context, id string) (diaspora.AccessKey, error) {
	k, err := s.keyNow(ctx, id)
	if err != nil {
		return diaspora.AccessKey{}, err
	}
	return s.goodKey(k)
}

// errNoKey does not say which of the two it is. IDs are no secret, but neither
// are they everybody's business.
var errNoKey = &globus.RefusedError{Reason: "there is no such access key, or this is not its secret"}

// goodKey returns a key unless it has ended, and notes that it is used.
func (s *Service) goodKey(k accessKey) (diaspora.AccessKey, error) {
	if err := s.admitOwner(k.Owner); err != nil {
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
		s.uses.note(k, day(now))
	}
	return k.AccessKey, nil
}

// keyNow returns what the ledger says about a key, and not what it said before
// another replica issued or revoked it.
func (s *Service) keyNow(ctx context.Context, id string) (accessKey, error) {
	if keyIDFault(id) != "" {
		return accessKey{}, errNoKey
	}
	since, wait := time.Now(), ctx
	_, known := s.ledger.key(id)
	if known {
		var cancel context.CancelFunc
		wait, cancel = context.WithTimeout(ctx, keyWait)
		defer cancel()
		since = since.Add(-keyFreshFor)
	}
	err := s.ledger.freshSince(wait, since)
	broken := (*brokenError)(nil)
	if err != nil && (!known || ctx.Err() != nil || errors.As(err, &broken) || !s.ledger.syncedWithin(keyStaleFor)) {
		return accessKey{}, err
	}
	k, known := s.ledger.key(id)
	if !known {
		return accessKey{}, errNoKey
	}
	return k, nil
}

// settleKey makes the cluster agree with what the ledger says of a key's rights.
func (s *Service) settleKey(ctx context.Context, k accessKey) error {
	if !k.restricted() {
		return nil
	}
	var topics []string
	s.ledger.read(func(st *state) {
		for name, t := range st.topics {
			if t.phase == claimed && t.owner == k.Owner && k.covers(name) {
				topics = append(topics, name)
			}
		}
	})
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(8)
	for _, name := range topics {
		work.Go(func() error {
			_, err := s.settleTopic(ctx, name)
			return err
		})
	}
	return work.Wait()
}

// endExpiredKeys has the ledger say of the keys that have expired that they
// have. Their names are free then, and what they could do is taken away with the
// rest that is reconciled. Nobody could sign in with them before.
func (s *Service) endExpiredKeys(ctx context.Context) error {
	var expired []accessKey
	now := time.Now()
	s.ledger.read(func(st *state) {
		for _, ids := range st.keysOf {
			for _, id := range ids {
				if k := st.keys[id]; k.expired(now) {
					expired = append(expired, k)
				}
			}
		}
	})
	for _, k := range expired {
		// A replica whose clock is ahead of ours may have been first.
		if err := s.endKey(ctx, opKeyExpired, k); err != nil && !errors.Is(err, errKeyNotYet) {
			return err
		}
	}
	return nil
}

// keyUses notes in the ledger on which days keys are used: one record for a key
// and a day, however often it signs in and wherever. That is 180 bytes in a
// batch of their own, some 100 KB a year for a key in daily use, and nothing for
// a key that is not used; and what tells that a key may go, the ledger
// keeps with the rest of its history. To the second it would be a record for
// each login, which the ledger, read whole by each replica, is not for.
type keyUses struct {
	waiting chan use

	mu    sync.Mutex          // guards the fields below
	day   time.Time           // the day that noted is about
	noted map[string]struct{} // by ID
}

type use struct {
	id, owner string
}

func newKeyUses() *keyUses { return &keyUses{waiting: make(chan use, maxKeysNoted)} }

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
	case u.waiting <- use{k.ID, k.Owner}:
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

// keepUses writes down the uses of keys until ctx ends.
func (s *Service) keepUses(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case use := <-s.uses.waiting:
			r := newRecord(opKeyUsed, use.owner)
			r.Key = use.id
			if err := s.noteUse(ctx, r); err != nil {
				s.uses.forget(use.id)
				s.cfg.Diagnostics.Debug("the use of an access key could not be noted", "key", use.id, "err", err)
			}
		}
	}
}

func (s *Service) noteUse(ctx context.Context, r record) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	err := s.ledger.mayApply(ctx, r)
	if err == nil {
		err = s.ledger.append(ctx, r)
	}
	if errors.Is(err, errKeyNoted) || errors.Is(err, errKeyEnded) {
		return nil
	}
	return err
}

// topicACLs returns the ACLs of a name: its owner's, as long as it is claimed,
// and those of its owner's keys that are principals of their own. Write includes
// idempotent writing.
func (s *state) topicACLs(name string, t topic) []kafka.ACL {
	if t.phase != claimed {
		return nil
	}
	acls := ownerACLs(name, t.owner)
	for _, k := range s.restrictedKeys(t.owner) {
		if k.covers(name) {
			acls = append(acls, k.topicACLs(name)...)
		}
	}
	return acls
}

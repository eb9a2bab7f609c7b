package claims

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/accesskey"
)

const maxKeyLifetime = 10 * 366 * 24 * time.Hour

// IssueKey creates an access key for the subject. When it returns, the key works. The secret is
// only in the answer; the ledger has its hash. Errors are [diaspora.ErrInvalid];
// [diaspora.ErrConflict] if the subject has a key of that name; [diaspora.ErrNotFound] or
// [diaspora.ErrPermission] if a topic is not the subject's; [diaspora.ErrPermission] if a limit is
// reached; and [diaspora.ErrUnavailable]. After the last one, the list of keys tells whether a key
// was created, whose secret is then lost.
func (s *Service) IssueKey(ctx context.Context, subject string, req diaspora.AccessKeyRequest) (diaspora.NewAccessKey, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	key, err := s.issueKey(ctx, subject, req)
	if err != nil {
		// Without the name, which may be a token in the wrong place.
		return diaspora.NewAccessKey{}, fmt.Errorf("create access key: %w", err)
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
	if err := s.reconcileKey(ctx, k); err != nil {
		s.discardKey(ctx, k)
		return diaspora.NewAccessKey{}, err
	}
	s.cfg.Diagnostics.Info("access key issued", "key", k.ID, "principal", principal(KeyPrincipal(k.AccessKey)))
	return diaspora.NewAccessKey{AccessKey: k.AccessKey, Secret: secret}, nil
}

// issueKeyRecord returns the ledger record for a new key, without its hash.
func (s *Service) issueKeyRecord(subject string, req diaspora.AccessKeyRequest) (record, error) {
	r := newRecord(opIssueKey, subject)
	r.Key, r.Name, r.Topics, r.Read, r.Write = newKeyID(), req.Name, req.Topics, req.Read, req.Write
	r.Expires, r.Limit = req.Expires.UTC(), s.cfg.Limits.Keys
	err := cmp.Or(checkSubject(subject), checkKey(subject, req.Name, req.Topics, req.Read, req.Write))
	if life := r.Expires.Sub(r.Time); err == nil && !r.Expires.IsZero() && (life <= 0 || life > maxKeyLifetime) {
		err = errors.New("an access key expires within ten years from now, or never")
	}
	return r, invalid(err)
}

// mayIssueKey returns why the record would have no effect, according to the ledger as it is now. It
// also refuses a key for a topic that does not exist or on which the subject has fewer rights: such
// a key would not work, and most likely the name is mistyped.
func (s *Service) mayIssueKey(ctx context.Context, r record) error {
	if err := s.ledger.mayApply(ctx, r); err != nil {
		return err
	}
	for i, name := range r.Topics {
		shown := fmt.Sprintf("%q", name)
		if len(name) > 32 { // it may be a token in the wrong place
			shown = fmt.Sprintf("number %d of the list", i+1)
		}
		t, have := s.ledger.access(name, r.By)
		switch missing := r.rights() &^ have; {
		case t.phase != claimed:
			return fmt.Errorf("%w: nobody has claimed the topic %s", diaspora.ErrNotFound, shown)
		case have == 0:
			return fmt.Errorf("%w: the topic %s belongs to somebody else", diaspora.ErrPermission, shown)
		case missing != 0:
			return fmt.Errorf("%w: you have the right to %v the topic %s, and a key cannot have more", diaspora.ErrPermission, have, shown)
		}
	}
	return nil
}

// discardKey revokes a key whose secret was not handed out.
func (s *Service) discardKey(ctx context.Context, k accessKey) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commandTimeout)
	defer cancel()
	if err := s.endKey(ctx, opRevokeKey, k); err != nil {
		s.cfg.Diagnostics.Warn("cannot revoke an access key that was never returned to its owner", "key", k.ID, "err", err)
	}
	s.reconcileSoon()
}

// endKey appends a record to the ledger that a key has ended. If the key has ended already, it
// returns nil.
func (s *Service) endKey(ctx context.Context, op string, k accessKey) error {
	r := newRecord(op, k.Owner)
	r.Key = k.ID
	if err := s.ledger.append(ctx, r); err != nil && !errors.Is(err, errKeyEnded) {
		return err
	}
	return nil
}

// RevokeKey ends an access key of the subject. When it returns nil, the broker has no ACLs for the
// key's own principal any more, and this process accepts the key no more. Other processes stop
// accepting it within a second. The same holds for tokens that were issued for the key. Gateways
// close the key's open connections. Revoking a revoked key succeeds.
//
// Errors are [diaspora.ErrNotFound] if the subject never had such a key, or
// [diaspora.ErrUnavailable]. After the latter, revoking again tells whether the key has ended.
func (s *Service) RevokeKey(ctx context.Context, subject, id string) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	k, err := s.ownedKey(ctx, subject, id)
	if err == nil && k.live() {
		if err = s.endKey(ctx, opRevokeKey, k); err == nil {
			s.cfg.Diagnostics.Info("access key revoked", "key", k.ID, "principal", principal(k.Owner))
			if k.restricted() && s.cfg.KeyRevoked != nil {
				s.cfg.KeyRevoked(ctx, KeyPrincipal(k.AccessKey))
			}
		}
	}
	if err == nil {
		if err = s.reconcileKey(ctx, k); err != nil {
			s.reconcileSoon()
		}
	}
	s.reconcileIfUnknown(err)
	return keyError("revoke", id, err)
}

// keyError wraps err as an error of an operation on a key. It returns nil if err is nil. It repeats
// the ID only if it is well-formed, because anything else might be a secret.
func keyError(op, id string, err error) error {
	switch {
	case err == nil:
		return nil
	case !accesskey.IsID(id):
		return fmt.Errorf("%s access key: %w", op, err)
	}
	return fmt.Errorf("%s access key %s: %w", op, id, err)
}

// ownedKey returns what the ledger says now about a key of the subject.
func (s *Service) ownedKey(ctx context.Context, subject, id string) (accessKey, error) {
	if err := checkKeyID(id); err != nil {
		return accessKey{}, invalid(err)
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

// Key returns an access key of the subject, even one that has ended. Its errors are those of
// RevokeKey.
func (s *Service) Key(ctx context.Context, subject, id string) (diaspora.AccessKey, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	k, err := s.ownedKey(ctx, subject, id)
	if err != nil {
		return diaspora.AccessKey{}, keyError("show", id, err)
	}
	return k.AccessKey, nil
}

// Keys returns the subject's access keys, sorted by name. An expired key is included until the
// ledger says that it has ended, which takes up to [Config.ReconcileInterval].
func (s *Service) Keys(ctx context.Context, subject string) ([]diaspora.AccessKey, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	if err := s.ledger.sync(ctx); err != nil {
		return nil, fmt.Errorf("list access keys: %w", err)
	}
	keys := []diaspora.AccessKey{}
	s.ledger.read(func(st *state) {
		for _, id := range st.keysOf[subject] {
			k := st.keys[id].AccessKey
			for _, name := range k.Topics {
				if st.keyAccess(k, name) == 0 {
					k.NoAccess = append(k.NoAccess, name)
				}
			}
			keys = append(keys, k)
		}
	})
	slices.SortFunc(keys, func(a, b diaspora.AccessKey) int { return strings.Compare(a.Name, b.Name) })
	return keys, nil
}

// keyAccess returns the rights that a key has now on a topic that it names.
func (s *state) keyAccess(k diaspora.AccessKey, name string) (have rights) {
	if t := s.topics[name]; t.owner == k.Owner && t.phase == claimed {
		have = mayRead | mayWrite
	} else {
		have = s.rightsOf(k.Owner, name, time.Now())
	}
	var may rights
	if k.Read {
		may |= mayRead
	}
	if k.Write {
		may |= mayWrite
	}
	return have & may
}

// reconcileKey makes the broker's ACLs agree with the key's rights.
func (s *Service) reconcileKey(ctx context.Context, k accessKey) error {
	if !k.restricted() {
		return nil
	}
	var topics []string
	s.ledger.read(func(st *state) {
		for name, t := range st.topics {
			own := t.owner == k.Owner && k.covers(name)
			if t.phase == claimed && (own || slices.Contains(k.Topics, name)) {
				topics = append(topics, name)
			}
		}
	})
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(8)
	for _, name := range topics {
		work.Go(func() error {
			_, err := s.reconcileTopic(ctx, name, false)
			return err
		})
	}
	return work.Wait()
}

// endExpiredKeys appends a record to the ledger for each key that has expired. That frees the key's
// name, and the reconciliation that follows removes its ACLs. Signing in with the key has failed
// since it expired.
func (s *Service) endExpiredKeys(ctx context.Context) error {
	var expired []accessKey
	now := time.Now()
	s.ledger.read(func(st *state) {
		for _, ids := range st.keysOf {
			for _, id := range ids {
				if k := st.keys[id]; k.expired(now) {
					expired = append(expired, *k)
				}
			}
		}
	})
	for _, k := range expired {
		// A replica whose clock is ahead may have tried this before.
		if err := s.endKey(ctx, opKeyExpired, k); err != nil && !errors.Is(err, errKeyNotExpired) {
			return err
		}
	}
	return nil
}

// recordUse appends a record to the ledger that a key was used, unless there is one of that day.
// The caller has called sync.
func (s *Service) recordUse(ctx context.Context, id string, at time.Time) error {
	k, known := s.ledger.key(id)
	if !known {
		return nil
	}
	r := newRecord(opKeyUsed, k.Owner)
	r.Key, r.Time = id, at.UTC()
	err := s.ledger.append(ctx, r)
	if errors.Is(err, errUseRecorded) || errors.Is(err, errKeyEnded) {
		return nil
	}
	return err
}

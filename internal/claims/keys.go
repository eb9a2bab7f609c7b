package claims

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/kafka"
)

const maxKeyLifetime = 10 * 366 * 24 * time.Hour

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
			if k.restricted() && s.cfg.KeyRevoked != nil {
				s.cfg.KeyRevoked(ctx, KeyPrincipal(k.AccessKey))
			}
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
					expired = append(expired, *k)
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

// noteUse has the ledger say that a key was used, unless it says so of that day. The caller has
// called sync.
func (s *Service) noteUse(ctx context.Context, id string, at time.Time) error {
	k, known := s.ledger.key(id)
	if !known {
		return nil
	}
	r := newRecord(opKeyUsed, k.Owner)
	r.Key, r.Time = id, at.UTC()
	err := s.ledger.append(ctx, r)
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

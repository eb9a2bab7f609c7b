package claims

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/diaspora-streams/diaspora"
)

// Limits bound what one subject can have, and how much it can make the ledger grow. Zero values
// mean the defaults. Lowering a limit takes nothing away from a subject that is above it.
type Limits struct {
	// Topics is how many topics a subject can own. Default: 1000.
	Topics int

	// Partitions is how many partitions these topics can have in total. Default: 2000.
	Partitions int

	// Keys is how many access keys a subject can have at the same time. Default: 100.
	Keys int

	// KeysEver is how many access keys a subject can create in total, including those that have
	// ended. Default: 10,000.
	KeysEver int

	// Grants is with how many others one topic can be shared: identities, Globus groups, and
	// everybody. Default: 1000.
	Grants int

	// RecordsPerHour limits how many records the ledger takes for a subject within an hour. Above
	// it, the subject can create no claims and no access keys, share no topics and change no
	// settings. It can always release topics, revoke keys and end shares. Default: 2000.
	RecordsPerHour int
}

func (l *Limits) setDefaults() {
	l.Topics = cmp.Or(l.Topics, 1000)
	l.Partitions = cmp.Or(l.Partitions, 2000)
	l.Keys = cmp.Or(l.Keys, 100)
	l.KeysEver = cmp.Or(l.KeysEver, 10_000)
	l.Grants = cmp.Or(l.Grants, 1000)
	l.RecordsPerHour = cmp.Or(l.RecordsPerHour, 2000)
}

// The limit that a record would exceed. For the limits of topics and of keys at the same time there
// are errTopicQuota and errKeyQuota, which the record's position in the ledger decides.
var (
	errPartitionQuota = errors.New("its owner's topics would have more partitions in total than are allowed")
	errKeysEver       = errors.New("you have created as many access keys as are allowed")
	errHourly         = errors.New("you have made too many changes within an hour")
)

// newPendingRecord returns what a record that passes mayApply would add. l.mu is held.
func (l *ledger) newPendingRecord(r record) pendingRecord {
	w := pendingRecord{id: r.ID, by: r.By, owner: r.By, records: 1}
	t := l.state.topics[r.Topic]
	switch r.Op {
	case opClaim:
		w.partitions = r.Partitions
	case opSet:
		w.owner, w.partitions = t.owner, max(r.Set.Partitions-t.partitions, 0)
	case opAccept:
		w.owner, w.partitions = r.Subject, t.partitions
	case opIssueKey:
		w.keys = 1
	}
	return w
}

// mayWrite returns why the record should not be written: because it would have no effect, or would
// exceed a limit. It counts records that are being written, so that many concurrent requests cannot
// exceed a limit. l.mu is held.
func (l *ledger) mayWrite(r record) error {
	if err := l.state.mayApply(r); err != nil {
		return err
	}
	switch r.Op {
	case opClaim, opIssueKey, opShare, opSet, opOffer, opAccept, opRestore, opLink:
	default:
		return nil // it ends a topic, a key or a share, which is possible once for each, so the limits on those limit it too
	}
	w := l.newPendingRecord(r)
	added := w.partitions > 0
	for _, other := range l.pending {
		if other.by == r.By {
			w.records += other.records
			w.keys += other.keys
		}
		if other.owner == w.owner {
			w.partitions += other.partitions
		}
	}
	switch {
	case l.state.recent[r.By].at(time.Now())+w.records > l.limits.RecordsPerHour:
		return errHourly
	case added && l.state.partitions[w.owner]+w.partitions > l.limits.Partitions:
		return errPartitionQuota
	case r.Op == opIssueKey && l.state.keysIssued[r.By]+w.keys > l.limits.KeysEver:
		return errKeysEver
	}
	return nil
}

// refusal turns the reason why a record was not written, or has no effect, into an error of package
// diaspora. If a limit is the reason, the text names the limit and who can change it.
func (s *Service) refusal(err error) error {
	limit := func(n int, setting, help string) error {
		return &diaspora.Error{
			Condition: diaspora.ErrPermission,
			Reason:    fmt.Sprintf("%v: the limit is %d (%s)", err, n, setting),
			Hint:      help + ", or " + s.cfg.Admission.contactHint(),
		}
	}
	limits := s.cfg.Limits
	switch {
	case errors.Is(err, errTaken), errors.Is(err, errReleasing), errors.Is(err, errKeyName), errors.Is(err, errOwnGrant), errors.Is(err, errNotRetired):
		return fmt.Errorf("%w: %w", diaspora.ErrConflict, err)
	case errors.Is(err, errBlocked), errors.Is(err, errNotYours), errors.Is(err, errNotOwner), errors.Is(err, errNotOffered):
		return fmt.Errorf("%w: %w", diaspora.ErrPermission, err)
	case errors.Is(err, errNotClaimed), errors.Is(err, errNoGrant):
		return fmt.Errorf("%w: %w", diaspora.ErrNotFound, err)
	case errors.Is(err, errFewer):
		return invalid(err)
	case errors.Is(err, errStale):
		return fmt.Errorf("%w: the topic was released at the same time", diaspora.ErrConflict)
	case errors.Is(err, errGrantQuota):
		return limit(limits.Grants, "max-grants", "end a share, share it with a Globus group")
	case errors.Is(err, errTopicQuota):
		return limit(limits.Topics, "max-topics", "release one")
	case errors.Is(err, errPartitionQuota):
		return limit(limits.Partitions, "max-partitions", "claim with fewer, release a topic")
	case errors.Is(err, errKeyQuota):
		return limit(limits.Keys, "max-keys", "revoke one")
	case errors.Is(err, errKeysEver):
		return limit(limits.KeysEver, "max-keys-ever", "use one that you have")
	case errors.Is(err, errHourly):
		return limit(limits.RecordsPerHour, "max-records-per-hour", "try again in an hour")
	}
	return err
}

// retired is the error for a topic that was released and can still be restored.
func (s *Service) retired(by, name string) error {
	if s.ledger.topic(name).owner == by {
		return &diaspora.Error{Condition: diaspora.ErrConflict, Reason: "it is yours, but you have released it",
			Hint: fmt.Sprintf("`diaspora topic restore %s` brings it back with its events", name)}
	}
	return &diaspora.Error{Condition: diaspora.ErrConflict, Reason: errRetired.Error(),
		Hint: fmt.Sprintf("its owner restores it with `diaspora topic restore %s`", name)}
}

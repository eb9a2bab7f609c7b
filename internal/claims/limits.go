package claims

import (
	"errors"
	"fmt"
	"time"

	"github.com/diaspora-streams/diaspora"
)

// Limits bound what one subject can have and can make the ledger grow. Zero values
// are the defaults. What is over a limit when that is lowered stays.
type Limits struct {
	// Topics is how many topics a subject can own. Default: 1000.
	Topics int

	// Partitions is how many partitions they can have in all. Default: 2000.
	Partitions int

	// Keys is how many access keys a subject can have at a time. Default: 100.
	Keys int

	// KeysEver is how many access keys a subject can be given, those that have ended
	// included. Default: 10,000.
	KeysEver int

	// RecordsPerHour is after how many records that the ledger has had of a subject within an
	// hour no claim and no access key is added. What a subject has can always be
	// given up. Default: 2000.
	RecordsPerHour int
}

func (l *Limits) setDefaults() {
	setDefault(&l.Topics, 1000)
	setDefault(&l.Partitions, 2000)
	setDefault(&l.Keys, 100)
	setDefault(&l.KeysEver, 10_000)
	setDefault(&l.RecordsPerHour, 2000)
}

// Which limit a record would go over. Those of topics and of keys at a time are
// errQuota and errKeyQuota, and decided by the record's place in the ledger.
var (
	errPartitionQuota = errors.New("your topics would have more partitions in all than are allowed")
	errKeysEver       = errors.New("you have been given as many access keys as are allowed")
	errHourly         = errors.New("too many entries of yours have been added to the ledger within an hour")
)

func newWriting(r record) writing {
	w := writing{id: r.ID, by: r.By, records: 1}
	switch r.Op {
	case opClaim:
		w.partitions = r.Partitions
	case opIssueKey:
		w.keys = 1
	}
	return w
}

// mayWrite returns why the record should not be written: it would have no effect as the ledger is
// now, or go over a limit. Records on their way count, so that many requests at once come
// no further than as many one by one. l.mu is held.
func (l *ledger) mayWrite(r record) error {
	if err := l.state.mayApply(r); err != nil {
		return err
	}
	if r.Op != opClaim && r.Op != opIssueKey {
		return nil // it ends something, once, so these two bound it as well
	}
	w := newWriting(r)
	for _, other := range l.writing {
		if other.by == r.By {
			w.records += other.records
			w.partitions += other.partitions
			w.keys += other.keys
		}
	}
	switch {
	case l.state.hours[r.By].at(time.Now())+w.records > l.limits.RecordsPerHour:
		return errHourly
	case r.Op == opClaim && l.state.partitions[r.By]+w.partitions > l.limits.Partitions:
		return errPartitionQuota
	case r.Op == opIssueKey && l.state.issued[r.By]+w.keys > l.limits.KeysEver:
		return errKeysEver
	}
	return nil
}

// refusal says in the words of package diaspora why a record was not written or had no effect. The
// text of a limit names it, and who can change it.
func (s *Service) refusal(err error) error {
	limit := func(n int, setting, help string) error {
		return &diaspora.Error{
			Condition: diaspora.ErrPermission,
			Reason:    fmt.Sprintf("%v: the limit is %d (%s)", err, n, setting),
			Hint:      help + ", or " + s.cfg.Admission.advice(),
		}
	}
	limits := s.cfg.Limits
	switch {
	case errors.Is(err, errTaken), errors.Is(err, errReleasing), errors.Is(err, errKeyName):
		return fmt.Errorf("%w: %w", diaspora.ErrConflict, err)
	case errors.Is(err, errBlocked):
		return fmt.Errorf("%w: %w", diaspora.ErrPermission, err)
	case errors.Is(err, errQuota):
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

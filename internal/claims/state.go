package claims

import (
	"errors"
	"time"
)

// Why a record of the ledger takes no effect.
var (
	errYours      = errors.New("it is yours already")
	errTaken      = errors.New("it belongs to somebody else")
	errReleasing  = errors.New("it is being released; try again in a moment")
	errQuota      = errors.New("you own as many topics as are allowed")
	errNotClaimed = errors.New("nobody has claimed it")
	errStale      = errors.New("its claim has ended already")
	errKeyID      = errors.New("its ID is in use")
	errKeyName    = errors.New("you have an access key of this name; choose another name, or revoke it first")
	errKeyQuota   = errors.New("you have as many access keys as are allowed")
	errKeyEnded   = errors.New("it has ended already")
	errKeyNotYet  = errors.New("it has not expired yet")
	errKeyNoted   = errors.New("it is noted already")
	errBlocked    = errors.New("you are blocked")
	errBlockedYet = errors.New("this subject is blocked already")
	errNotBlocked = errors.New("this subject is not blocked")
)

// phase is where a topic's name is on its way from free to free.
type phase int

const (
	free phase = iota
	claimed
	releasing // still the owner's in name, but without rights
)

func (p phase) String() string { return [...]string{"free", "claimed", "releasing"}[p] }

// topic is what the ledger says about one name. Place, the offset of the claim,
// tells one ownership from the next.
type topic struct {
	phase       phase
	place       int64
	owner       string
	partitions  int
	retentionMS int64
	description string
	claimed     time.Time // while the name is free, when it became so
}

// group is what the ledger says about one consumer group.
type group struct {
	place int64
	owner string
}

// state is what a ledger amounts to: a function of its records and nothing
// else, so that all replicas see the same. It is not safe for concurrent use.
type state struct {
	topics map[string]topic // all names that are claimed, or were until a while ago
	groups map[string]group
	owns   map[string]int               // topics that a subject has, those being released included
	leads  map[string]int               // groups that a subject has
	keys   map[string]*accessKey        // all access keys that are live, or were until a while ago, by ID; replaced, never changed: clones share them
	keysOf map[string]map[string]string // IDs of the keys that a subject has now, by name

	subjects map[string]struct{} // who ever had a topic, a group or a key, and is not known by a UUID
	blocked  map[string]block    // those who are shut out now

	partitions map[string]int      // of all topics that a subject owns
	issued     map[string]int      // how many keys a subject was ever given
	hours      map[string]hourly   // how many records a subject has had written of late
	ended      map[int64]endedOnes // what can be forgotten later, by the day on which it ended
	swept      int64               // the day on which that was looked at last
}

// endedOnes are the IDs of keys that have ended on one day, and names that became free.
type endedOnes struct{ keys, names map[string]struct{} }

// endedOn returns those of the day.
func (s *state) endedOn(t time.Time) endedOnes {
	day := t.Unix() / 86400
	gone, ok := s.ended[day]
	if !ok {
		gone = endedOnes{make(map[string]struct{}), make(map[string]struct{})}
		s.ended[day] = gone
	}
	return gone
}

const (
	// keepKeys is how many days a key that has ended can be looked up. What is known
	// of it then goes. Its ID is not drawn again: see newKeyID.
	keepKeys = 90
	// keepNames is how many days it is known that a name was claimed before. A replica
	// that stood still while its claim was released may leave a topic and ACLs behind;
	// they are found by this.
	keepNames = 7
)

// hourly counts records by the hour, for a window that slides.
type hourly struct {
	hour      int64 // since 1970
	n, before int   // in this hour, and in the one before
}

// at returns how many records there were in the hour before a time, provided that those of the
// hour on the clock before were spread evenly.
func (h hourly) at(now time.Time) int {
	left := 3600 - int(now.Unix()%3600) // seconds of the earlier hour that are less than an hour ago
	switch now.Unix()/3600 - h.hour {
	case 0:
		return h.n + h.before*left/3600
	case 1:
		return h.n * left / 3600
	case -1: // the writer's clock is ahead
		return h.n
	}
	return 0
}

// block is what the ledger says about a subject that is shut out.
type block struct {
	by, why string
	since   time.Time
}

func newState() *state {
	return &state{
		topics: make(map[string]topic),
		groups: make(map[string]group),
		owns:   make(map[string]int),
		leads:  make(map[string]int),
		keys:   make(map[string]*accessKey),
		keysOf: make(map[string]map[string]string),

		subjects: make(map[string]struct{}),
		blocked:  make(map[string]block),

		partitions: make(map[string]int),
		issued:     make(map[string]int),
		hours:      make(map[string]hourly),
		ended:      make(map[int64]endedOnes),
	}
}

// take takes the record at this place of the ledger into account, whatever comes of it. An
// error says why it has no effect. The record has passed its own check.
func (s *state) take(place int64, r record) error {
	s.note(r)
	return s.apply(place, r)
}

// note counts a record, and forgets what ended long before it was written. Both go by
// the times of records, so that all replicas come to the same.
func (s *state) note(r record) {
	hour := r.Time.Unix() / 3600
	switch h := s.hours[r.By]; {
	case hour == h.hour || hour == h.hour-1:
		h.n++
		s.hours[r.By] = h
	case hour == h.hour+1:
		s.hours[r.By] = hourly{hour, 1, h.n}
	default:
		s.hours[r.By] = hourly{hour, 1, 0}
	}
	today := hour / 24
	if today == s.swept {
		return
	}
	s.swept = today
	for subject, h := range s.hours {
		if h.hour < hour-1 {
			delete(s.hours, subject)
		}
	}
	for day, gone := range s.ended {
		if day < today-keepNames {
			for name := range gone.names {
				delete(s.topics, name)
			}
			clear(gone.names)
		}
		if day < today-keepKeys {
			for id := range gone.keys {
				delete(s.keys, id)
			}
			clear(gone.keys)
		}
		if len(gone.keys)+len(gone.names) == 0 {
			delete(s.ended, day)
		}
	}
}

// mayApply returns why the record would have no effect, or nil.
func (s *state) mayApply(r record) error {
	switch _, blocked := s.blocked[r.Subject]; {
	case r.Op == opBlock && blocked:
		return errBlockedYet
	case r.Op == opUnblock && !blocked:
		return errNotBlocked
	case r.Op == opBlock || r.Op == opUnblock:
		return nil
	}
	if _, blocked := s.blocked[r.By]; blocked && (r.Op == opClaim || r.Op == opClaimGroup || r.Op == opIssueKey) {
		return errBlocked
	}
	switch r.Op {
	case opClaim:
		return s.mayClaim(r)
	case opRelease:
		return s.mayRelease(r)
	case opReleased:
		if t := s.topics[r.Topic]; t.phase != releasing || t.place != *r.Claim {
			return errStale
		}
		return nil
	case opClear:
		if t, known := s.topics[r.Topic]; !known || t.phase != free || t.place != *r.Claim {
			return errStale
		}
		return nil
	case opIssueKey:
		return s.mayIssueKey(r)
	case opRevokeKey, opKeyExpired, opKeyUsed:
		return s.mayChangeKey(r)
	default:
		return s.mayClaimGroup(r)
	}
}

func (s *state) mayClaim(r record) error {
	switch t := s.topics[r.Topic]; {
	case t.phase == releasing:
		return errReleasing
	case t.phase == claimed && t.owner == r.By:
		return errYours
	case t.phase == claimed:
		return errTaken
	case s.owns[r.By] >= r.Limit:
		return errQuota
	}
	return nil
}

func (s *state) mayRelease(r record) error {
	switch t := s.topics[r.Topic]; {
	case t.phase == free:
		return errNotClaimed
	case t.place != *r.Claim:
		return errStale
	case t.owner != r.By:
		return errTaken
	case t.phase == releasing:
		return errReleasing
	}
	return nil
}

func (s *state) mayClaimGroup(r record) error {
	switch g, ok := s.groups[r.Group]; {
	case ok && g.owner == r.By:
		return errYours
	case ok:
		return errTaken
	case s.leads[r.By] >= r.Limit:
		return errQuota
	}
	return nil
}

// taken notes that a name, which was free and maybe known, is not any more.
func (s *state) taken(name string, t topic) {
	if _, known := s.topics[name]; !known {
		return
	}
	gone := s.endedOn(t.claimed)
	if delete(gone.names, name); len(gone.keys)+len(gone.names) == 0 {
		delete(s.ended, t.claimed.Unix()/86400)
	}
}

// apply is take without note.
func (s *state) apply(place int64, r record) error {
	if err := s.mayApply(r); err != nil {
		return err
	}
	switch r.Op { // no deeds of a person who owns something
	case opBlock:
		s.blocked[r.Subject] = block{r.By, r.Why, r.Time}
		return nil
	case opUnblock:
		delete(s.blocked, r.Subject)
		return nil
	}
	if !isUUID(r.By) {
		s.subjects[r.By] = struct{}{}
	}
	t := s.topics[r.Topic]
	switch r.Op {
	case opClaim:
		s.taken(r.Topic, t)
		s.owns[r.By]++
		s.partitions[r.By] += r.Partitions
		s.topics[r.Topic] = topic{claimed, place, r.By, r.Partitions, r.RetentionMS, r.Description, r.Time}
	case opRelease:
		t.phase = releasing
		s.topics[r.Topic] = t
	case opReleased:
		if s.owns[t.owner]--; s.owns[t.owner] == 0 {
			delete(s.owns, t.owner)
		}
		if s.partitions[t.owner] -= t.partitions; s.partitions[t.owner] == 0 {
			delete(s.partitions, t.owner)
		}
		s.topics[r.Topic] = topic{phase: free, place: t.place, claimed: r.Time}
		s.endedOn(r.Time).names[r.Topic] = struct{}{}
	case opClear: // as if claimed and released at once
		s.taken(r.Topic, t)
		s.owns[r.By]++
		s.topics[r.Topic] = topic{phase: releasing, place: place, owner: r.By}
	case opClaimGroup:
		s.leads[r.By]++
		s.groups[r.Group] = group{place, r.By}
	case opIssueKey:
		s.issueKey(r)
	case opRevokeKey, opKeyExpired:
		s.endKey(r)
	case opKeyUsed:
		k := *s.keys[r.Key]
		k.LastUsed = day(r.Time)
		s.keys[k.ID] = &k
	}
	return nil
}

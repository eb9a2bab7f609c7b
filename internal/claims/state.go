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
	errQuota      = errors.New("you own as many as are allowed; release one first")
	errNotClaimed = errors.New("nobody has claimed it")
	errStale      = errors.New("its claim has ended already")
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
	claimed     time.Time
}

// group is what the ledger says about one consumer group.
type group struct {
	place int64
	owner string
}

// state is what a ledger amounts to: a function of its records and nothing
// else, so that all replicas see the same. It is not safe for concurrent use.
type state struct {
	topics map[string]topic // all names that were ever claimed
	groups map[string]group
	owns   map[string]int // topics that a subject has, those being released included
	leads  map[string]int // groups that a subject has
}

func newState() *state {
	return &state{
		topics: make(map[string]topic),
		groups: make(map[string]group),
		owns:   make(map[string]int),
		leads:  make(map[string]int),
	}
}

// apply takes the record at this place of the ledger into account. An error says
// why it has no effect. The record has passed its own check.
func (s *state) apply(place int64, r record) error {
	switch r.Op {
	case opClaim:
		return s.claim(place, r)
	case opRelease:
		return s.release(r)
	case opReleased:
		return s.released(r)
	default:
		return s.claimGroup(place, r)
	}
}

func (s *state) claim(place int64, r record) error {
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
	s.owns[r.By]++
	s.topics[r.Topic] = topic{claimed, place, r.By, r.Partitions, r.RetentionMS, r.Description, r.Time}
	return nil
}

func (s *state) release(r record) error {
	t := s.topics[r.Topic]
	switch {
	case t.phase == free:
		return errNotClaimed
	case t.place != *r.Claim:
		return errStale
	case t.owner != r.By:
		return errTaken
	case t.phase == releasing:
		return errReleasing
	}
	t.phase = releasing
	s.topics[r.Topic] = t
	return nil
}

func (s *state) released(r record) error {
	t := s.topics[r.Topic]
	if t.phase != releasing || t.place != *r.Claim {
		return errStale
	}
	if s.owns[t.owner]--; s.owns[t.owner] == 0 {
		delete(s.owns, t.owner)
	}
	s.topics[r.Topic] = topic{phase: free, place: t.place}
	return nil
}

func (s *state) claimGroup(place int64, r record) error {
	switch g, ok := s.groups[r.Group]; {
	case ok && g.owner == r.By:
		return errYours
	case ok:
		return errTaken
	case s.leads[r.By] >= r.Limit:
		return errQuota
	}
	s.leads[r.By]++
	s.groups[r.Group] = group{place, r.By}
	return nil
}

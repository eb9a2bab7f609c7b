package claims

import (
	"errors"
	"time"
)

// The reasons why a record of the ledger takes no effect.
var (
	errAlreadyYours   = errors.New("you already own it")
	errTaken          = errors.New("it belongs to somebody else")
	errReleasing      = errors.New("it is being released; try again in a moment")
	errRetired        = errors.New("it was released, and its owner can still restore it")
	errNotRetired     = errors.New("it is not released")
	errRestorable     = errors.New("it can still be restored")
	errNotOffered     = errors.New("it was not offered to this person")
	errFewer          = errors.New("a topic cannot have fewer partitions than it has")
	errTopicQuota     = errors.New("you own as many topics as are allowed")
	errNotClaimed     = errors.New("nobody has claimed it")
	errStale          = errors.New("its claim has already ended")
	errKeyID          = errors.New("its ID is in use")
	errKeyName        = errors.New("you have an access key of this name; choose another name, or revoke it first")
	errKeyQuota       = errors.New("you have as many access keys as are allowed")
	errKeyEnded       = errors.New("it has already ended")
	errKeyNotExpired  = errors.New("it has not expired yet")
	errUseRecorded    = errors.New("its use on that day is already recorded")
	errBlocked        = errors.New("you are blocked")
	errAlreadyBlocked = errors.New("this subject is already blocked")
	errNotBlocked     = errors.New("this subject is not blocked")
)

// phase is the state of a topic's name: free, claimed, perhaps retired, releasing, and then free
// again.
type phase int

const (
	free phase = iota
	claimed
	releasing // the owner still owns the name, but has no rights on the topic, which is being deleted
	retired   // the owner has released it and can restore it; nobody has rights on it
)

func (p phase) String() string { return [...]string{"free", "claimed", "releasing", "retired"}[p] }

// topic is what the ledger says about one topic name. claimOffset is the offset of the claim in the
// ledger, which tells one claim from the next.
type topic struct {
	phase       phase
	claimOffset int64
	owner       string
	partitions  int
	retentionMS int64
	description string
	claimed     time.Time // when the topic was claimed or, for a free name, when it became free

	maxBytes int64 // of each partition; 0 means no limit
	deleteAt int64 // for a retired topic, when it is deleted, in seconds since 1970
	compact  bool
	changed  bool // its settings were changed, so they are kept as the ledger says
	public   bool // it was shared with everybody at some time, so the service may have created ACLs for that
}

// group is what the ledger says about one consumer group.
type group struct {
	claimOffset int64
	owner       string
}

// state is the result of the ledger's records. It depends on nothing else, so that all replicas
// have the same state. It is not safe for concurrent use.
type state struct {
	topics     map[string]topic // names that are claimed, or were until a while ago
	groups     map[string]group
	topicCount map[string]int // how many topics a subject owns, including those being released
	groupCount map[string]int // how many groups a subject has claimed
	// By ID, keys that are live or were until a while ago; values are replaced, never changed,
	// because clones share them.
	keys   map[string]*accessKey
	keysOf map[string]map[string]string // by owner and name, the IDs of live keys

	grants     map[string]map[string]grant    // by topic and grantee
	sharedWith map[string]map[string]struct{} // the topics of these grants, by grantee
	members    map[string]map[string]struct{} // of the Globus groups among the grantees
	memberOf   map[string]map[string]struct{} // the same, by member
	links      map[string]string              // by identity, the subject under which its person signs in
	linkedTo   map[string]map[string]struct{} // the same, by subject
	revisions  map[string]string              // by Globus group and identity, the ID of the last record about its members or link
	offers     map[string]string              // by topic, the subject to whom its owner has offered it
	history    map[string][]int64             // by topic, the offsets of the records about it, after its claim

	subjects map[string]struct{} // subjects that ever had a topic, a group or a key and are not UUIDs
	blocked  map[string]block    // the blocked subjects

	partitions  map[string]int         // how many partitions a subject's topics have in total
	keysIssued  map[string]int         // how many keys a subject has ever created
	recent      map[string]hourlyCount // how many records a subject has added recently
	ended       map[int64]endedItems   // what can be forgotten later, by the day on which it ended
	lastCleanup int64                  // the day on which ended was last checked
}

// endedItems are the IDs of keys that ended on one day, and the names that became free on it.
type endedItems struct{ keys, names map[string]struct{} }

// endedOn returns the endedItems of the day of t.
func (s *state) endedOn(t time.Time) endedItems {
	day := t.Unix() / 86400
	gone, ok := s.ended[day]
	if !ok {
		gone = endedItems{make(map[string]struct{}), make(map[string]struct{})}
		s.ended[day] = gone
	}
	return gone
}

const (
	// keepKeys is for how many days an ended key can be looked up. After that it is forgotten.
	// newKeyID does not generate its ID again.
	keepKeys = 90
	// keepNames is for how many days a free name is known to have been claimed. A replica that
	// stalled while its claim was released may leave a topic and ACLs behind. They are recognized
	// by that name.
	keepNames = 7
)

// hourlyCount counts a subject's records in clock hours, to estimate the number in a sliding window
// of an hour.
type hourlyCount struct {
	hour      int64 // since 1970
	n, before int   // in this hour, and in the one before
}

// at estimates how many records there were in the hour before now. It assumes that the records of
// the previous clock hour were spread evenly over it.
func (h hourlyCount) at(now time.Time) int {
	left := 3600 - int(now.Unix()%3600) // seconds of the previous clock hour that are within the window
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

// block is what the ledger says about a blocked subject.
type block struct {
	by, why string
	since   time.Time
}

func newState() *state {
	return &state{
		topics:     make(map[string]topic),
		groups:     make(map[string]group),
		topicCount: make(map[string]int),
		groupCount: make(map[string]int),
		keys:       make(map[string]*accessKey),
		keysOf:     make(map[string]map[string]string),

		grants:     make(map[string]map[string]grant),
		sharedWith: make(map[string]map[string]struct{}),
		members:    make(map[string]map[string]struct{}),
		memberOf:   make(map[string]map[string]struct{}),
		links:      make(map[string]string),
		linkedTo:   make(map[string]map[string]struct{}),
		revisions:  make(map[string]string),
		offers:     make(map[string]string),
		history:    make(map[string][]int64),

		subjects: make(map[string]struct{}),
		blocked:  make(map[string]block),

		partitions: make(map[string]int),
		keysIssued: make(map[string]int),
		recent:     make(map[string]hourlyCount),
		ended:      make(map[int64]endedItems),
	}
}

// add adds the record at an offset of the ledger to the state. An error says why the record has no
// effect; it is counted all the same. The record has passed its own check.
func (s *state) add(offset int64, r record) error {
	s.count(r)
	return s.apply(offset, r)
}

// count counts a record against its subject, and forgets what ended long before it was written. It
// uses the times of the records, not the clock, so that all replicas get the same state.
func (s *state) count(r record) {
	hour := r.Time.Unix() / 3600
	switch h := s.recent[r.By]; {
	case hour == h.hour || hour == h.hour-1:
		h.n++
		s.recent[r.By] = h
	case hour == h.hour+1:
		s.recent[r.By] = hourlyCount{hour, 1, h.n}
	default:
		s.recent[r.By] = hourlyCount{hour, 1, 0}
	}
	today := hour / 24
	if today == s.lastCleanup {
		return
	}
	s.lastCleanup = today
	for subject, h := range s.recent {
		if h.hour < hour-1 {
			delete(s.recent, subject)
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
		return errAlreadyBlocked
	case r.Op == opUnblock && !blocked:
		return errNotBlocked
	case r.Op == opBlock || r.Op == opUnblock:
		return nil
	}
	if _, blocked := s.blocked[r.By]; blocked && refusedWhenBlocked(r.Op) {
		return errBlocked
	}
	switch r.Op {
	case opClaim:
		return s.mayClaim(r)
	case opRelease:
		return s.mayRelease(r)
	case opReleased:
		if t := s.topics[r.Topic]; t.phase != releasing || t.claimOffset != *r.Claim {
			return errStale
		}
		return nil
	case opClear:
		if t, known := s.topics[r.Topic]; !known || t.phase != free || t.claimOffset != *r.Claim {
			return errStale
		}
		return nil
	case opIssueKey:
		return s.mayIssueKey(r)
	case opRevokeKey, opKeyExpired, opKeyUsed:
		return s.mayChangeKey(r)
	case opClaimGroup:
		return s.mayClaimGroup(r)
	case opLink, opUnlink:
		return s.mayLink(r)
	case opMembers:
		return s.mayChangeMembers(r)
	default:
		return s.mayChange(r)
	}
}

// refusedWhenBlocked reports whether a blocked subject may not do this. It may do what only takes
// something away.
func refusedWhenBlocked(op string) bool {
	switch op {
	case opClaim, opClaimGroup, opIssueKey, opShare, opSet, opOffer, opAccept, opRestore:
		return true
	}
	return false
}

func (s *state) mayClaim(r record) error {
	switch t := s.topics[r.Topic]; {
	case t.phase == releasing:
		return errReleasing
	case t.phase == retired && t.owner == r.By:
		return errRetired
	case t.phase != free && t.owner == r.By:
		return errAlreadyYours
	case t.phase != free:
		return errTaken
	case s.topicCount[r.By] >= r.Limit:
		return errTopicQuota
	}
	return nil
}

func (s *state) mayRelease(r record) error {
	switch t := s.topics[r.Topic]; {
	case t.phase == free:
		return errNotClaimed
	case t.claimOffset != *r.Claim:
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
		return errAlreadyYours
	case ok:
		return errTaken
	case s.groupCount[r.By] >= r.Limit:
		return errTopicQuota
	}
	return nil
}

// reuseName removes a free name from the list of names to be forgotten, because it is claimed
// again. t is its entry, if known.
func (s *state) reuseName(name string, t topic) {
	if _, known := s.topics[name]; !known {
		return
	}
	gone := s.endedOn(t.claimed)
	if delete(gone.names, name); len(gone.keys)+len(gone.names) == 0 {
		delete(s.ended, t.claimed.Unix()/86400)
	}
}

// apply does the rest of add: it changes the state if the record has an effect.
func (s *state) apply(offset int64, r record) error {
	if err := s.mayApply(r); err != nil {
		return err
	}
	s.effect(offset, r)
	s.noteRecord(offset, r)
	return nil
}

// effect changes the state for a record that has an effect.
func (s *state) effect(offset int64, r record) {
	switch r.Op { // these do not make anyone the owner of anything
	case opBlock:
		s.blocked[r.Subject] = block{r.By, r.Why, r.Time}
		return
	case opUnblock:
		delete(s.blocked, r.Subject)
		return
	case opLink:
		s.link(r.Subject, r.By)
		s.revisions[r.Subject] = r.ID
		return
	case opUnlink:
		s.link(r.Subject, "")
		s.revisions[r.Subject] = r.ID
		return
	case opMembers:
		s.changeMembers(r.Grantee, r.Joined, r.Left)
		s.revisions[r.Grantee] = r.ID
		return
	}
	if !isUUID(r.By) && r.By != serviceSubject {
		s.subjects[r.By] = struct{}{}
	}
	t := s.topics[r.Topic]
	switch r.Op {
	case opClaim:
		s.reuseName(r.Topic, t)
		s.topics[r.Topic] = topic{
			phase: claimed, claimOffset: offset, owner: r.By, partitions: r.Partitions, retentionMS: r.RetentionMS,
			description: r.Description, claimed: r.Time, public: t.public,
		}
		s.countTopic(s.topics[r.Topic], 1)
	case opRelease, opRetireEnds:
		t.phase, t.deleteAt = releasing, 0
		s.topics[r.Topic] = t
		s.unshareAll(r.Topic)
	case opReleased:
		s.countTopic(t, -1)
		s.topics[r.Topic] = topic{phase: free, claimOffset: t.claimOffset, claimed: r.Time, public: t.public}
		s.endedOn(r.Time).names[r.Topic] = struct{}{}
	case opClear: // as if the topic were claimed and released at once
		s.reuseName(r.Topic, t)
		s.topics[r.Topic] = topic{phase: releasing, claimOffset: offset, owner: r.By, public: t.public}
		s.countTopic(s.topics[r.Topic], 1)
	case opClaimGroup:
		s.groupCount[r.By]++
		s.groups[r.Group] = group{offset, r.By}
	case opIssueKey:
		s.issueKey(r)
	case opRevokeKey, opKeyExpired:
		s.endKey(r)
	case opKeyUsed:
		k := *s.keys[r.Key]
		k.LastUsed = startOfDay(r.Time)
		s.keys[k.ID] = &k
	default:
		s.change(r)
	}
}

// countTopic adds a topic n times to what its owner has.
func (s *state) countTopic(t topic, n int) {
	if s.topicCount[t.owner] += n; s.topicCount[t.owner] == 0 {
		delete(s.topicCount, t.owner)
	}
	s.countPartitions(t, n)
}

func (s *state) countPartitions(t topic, n int) {
	if s.partitions[t.owner] += n * t.partitions; s.partitions[t.owner] == 0 {
		delete(s.partitions, t.owner)
	}
}

// maySet returns why a change of a topic's settings would have no effect, or nil.
func (s *state) maySet(t topic, set settings) error {
	changed := t
	changed.set(set)
	changed.changed = t.changed
	switch {
	case set.Partitions != 0 && set.Partitions < t.partitions:
		return errFewer
	case changed == t:
		return errNoChange
	}
	return nil
}

// set changes the settings of a topic.
func (t *topic) set(set settings) {
	t.changed = true
	if set.Partitions != 0 {
		t.partitions = set.Partitions
	}
	if set.RetentionMS != 0 {
		t.retentionMS = set.RetentionMS
	}
	if set.MaxBytes != 0 {
		t.maxBytes = max(set.MaxBytes, 0)
	}
	if set.Description != nil {
		t.description = *set.Description
	}
	if set.Compact != nil {
		t.compact = *set.Compact
	}
}

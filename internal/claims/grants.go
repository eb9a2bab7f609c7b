package claims

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// This file has the part of the state that is about sharing: who has which rights on a topic, and
// the ACLs that follow from that. A grant is to a grantee: an identity of Globus, a Globus group, or
// everybody. Grants to a group hold for its members, which the ledger lists. Grants to an identity
// hold for the person it belongs to, under whatever linked identity that person signs in.

// A grantee in a record: the ID of an identity, "group:" and the ID of a Globus group, or "public"
// for everybody who signs in.
const (
	groupGrantee  = "group:"
	publicGrantee = "public"
)

// rights are what a grantee may do with a topic.
type rights uint8

const (
	mayRead   rights = 1 << iota
	mayWrite         // includes idempotent writes
	mayManage        // share it and change its settings; includes the two above
)

// rights returns the rights that a record is about.
func (r record) rights() (have rights) {
	for right, given := range map[rights]bool{mayRead: r.Read, mayWrite: r.Write, mayManage: r.Manage} {
		if given {
			have |= right
		}
	}
	return have
}

// grant is what the ledger says about the rights of one grantee on a topic. Values are replaced,
// never changed.
type grant struct {
	rights   rights
	by       string
	since    time.Time
	expires  time.Time // zero means never
	username string    // of the grantee when it was given the rights, for display only
}

func (g grant) expired(now time.Time) bool { return !g.expires.IsZero() && !now.Before(g.expires) }

// The reasons why a record about sharing takes no effect.
var (
	errNoGrant       = errors.New("it is not shared with them")
	errAlreadyShared = errors.New("it is shared with them like that already")
	errGrantQuota    = errors.New("the topic is shared with as many as are allowed")
	errOwnGrant      = errors.New("its owner has all rights already")
	errNotExpired    = errors.New("the share has not expired yet")
	errNotYours      = errors.New("only its owner, and those whom the owner lets manage it, may do this")
	errNotOwner      = errors.New("only its owner may do this")
	errAlreadyLinked = errors.New("this link is known")
	errNotLinked     = errors.New("there is no such link")
	errOutdated      = errors.New("somebody else has changed it at the same time")
	errNoChange      = errors.New("nothing would change")
)

// isGroup reports whether a grantee is a Globus group.
func isGroup(grantee string) bool { return strings.HasPrefix(grantee, groupGrantee) }

func checkGrantee(grantee string) error {
	id := strings.TrimPrefix(grantee, groupGrantee)
	switch {
	case grantee == publicGrantee, isUUID(id) && id == strings.ToLower(id):
		return nil
	case isGroup(grantee):
		return errors.New("a Globus group is named by its ID, a UUID in lower case: the page of the group at app.globus.org shows it")
	}
	return CheckPerson(grantee)
}

func checkGrant(grantee string, r rights) error {
	switch {
	case r == 0:
		return errors.New("a share gives the right to read, to write or to manage: say which")
	case grantee == publicGrantee && r != mayRead:
		return errors.New("a topic can be public to read only")
	}
	return checkGrantee(grantee)
}

// people calls f for each subject for whom a grant to this grantee holds: the identity itself and the
// one under which its person signs in, or those of a group's members. For publicGrantee it calls f
// for no one.
func (s *state) people(grantee string, f func(subject string)) {
	if grantee == publicGrantee {
		return
	}
	one := func(identity string) {
		f(identity)
		if subject := s.links[identity]; subject != "" {
			f(subject)
		}
	}
	if !isGroup(grantee) {
		one(grantee)
		return
	}
	for member := range s.members[grantee] {
		one(member)
	}
}

// granteesOf is the reverse of people: it calls f for each grantee whose grants hold for a subject. It
// may call it more than once for a Globus group.
func (s *state) granteesOf(subject string, f func(grantee string)) {
	f(publicGrantee)
	one := func(identity string) {
		f(identity)
		for group := range s.memberOf[identity] {
			f(group)
		}
	}
	one(subject)
	for identity := range s.linkedTo[subject] {
		one(identity)
	}
}

// access returns the rights on a topic of all but its owner, by subject. Those that everybody who signs
// in has are under "*".
func (s *state) access(name string) map[string]rights {
	all := make(map[string]rights)
	for grantee, g := range s.grants[name] {
		if grantee == publicGrantee {
			all["*"] |= g.rights
		}
		s.people(grantee, func(subject string) { all[subject] |= g.rights })
	}
	delete(all, s.topics[name].owner)
	return all
}

// rightsOf returns what a subject who does not own the topic may do with it at a time.
func (s *state) rightsOf(subject, name string, now time.Time) (have rights) {
	if s.topics[name].phase != claimed {
		return 0
	}
	return s.granted(subject, name, now)
}

// granted is like rightsOf, but also returns what the subject may do again once a topic that was
// released is restored.
func (s *state) granted(subject, name string, now time.Time) (have rights) {
	grants := s.grants[name]
	s.granteesOf(subject, func(grantee string) {
		if g, shared := grants[grantee]; shared && !g.expired(now) {
			have |= g.rights
		}
	})
	if have&mayManage != 0 {
		have |= mayRead | mayWrite
	}
	return have
}

// mayChange returns why a record of version 4 about a topic would have no effect, or nil.
func (s *state) mayChange(r record) error {
	t := s.topics[r.Topic]
	ofRetired := r.Op == opRestore || r.Op == opRetireEnds
	switch {
	case t.phase == free:
		return errNotClaimed
	case t.claimOffset != *r.Claim:
		return errStale
	case (r.Op == opOffer || r.Op == opRetire || r.Op == opRestore) && t.owner != r.By:
		return errNotOwner
	case t.phase == releasing:
		return errReleasing
	}
	// Before anything else about the topic, because the reason is shown to by. If a topic was released
	// before, Retire succeeds, and shows it.
	manages := t.owner == r.By || s.granted(r.By, r.Topic, r.Time)&mayManage != 0
	switch r.Op {
	case opShare, opSet:
		if !manages {
			return errNotYours
		}
	case opUnshare:
		if r.By != r.Grantee && s.links[r.Grantee] != r.By && !manages {
			return errNotYours
		}
	}
	switch {
	case t.phase == retired && !ofRetired:
		return errRetired
	case t.phase == claimed && ofRetired:
		return errNotRetired
	case r.Op == opRetireEnds && r.Time.Unix() < t.deleteAt:
		return errRestorable
	}
	g, shared := s.grants[r.Topic][r.Grantee]
	switch r.Op {
	case opShare:
		switch {
		case r.Grantee == t.owner:
			return errOwnGrant
		case shared && g.rights == r.rights() && g.expires.Equal(r.Expires):
			return errAlreadyShared
		case !shared && len(s.grants[r.Topic]) >= r.Limit:
			return errGrantQuota
		}
	case opUnshare, opShareExpired:
		switch {
		case !shared:
			return errNoGrant
		case r.Op == opShareExpired && !g.expired(r.Time):
			return errNotExpired
		}
	case opSet:
		return s.maySet(t, *r.Set)
	case opAccept:
		switch {
		case s.offers[r.Topic] != r.Subject:
			return errNotOffered
		case s.topicCount[r.Subject] >= r.Limit:
			return errTopicQuota
		}
	}
	return nil
}

// change applies a record of version 4 about a topic, which mayChange has accepted.
func (s *state) change(r record) {
	t := s.topics[r.Topic]
	switch r.Op {
	case opShare:
		if isGroup(r.Grantee) && len(s.sharedWith[r.Grantee]) == 0 {
			s.revisions[r.Grantee] = r.ID
		}
		s.share(r.Topic, r.Grantee, &grant{r.rights(), intern(r.By), r.Time, r.Expires, r.Username})
		t.public = t.public || r.Grantee == publicGrantee
	case opUnshare, opShareExpired:
		s.share(r.Topic, r.Grantee, nil)
	case opSet:
		s.countPartitions(t, -1)
		t.set(*r.Set)
		s.countPartitions(t, 1)
	case opOffer:
		if s.offers[r.Topic] = r.Subject; r.Subject == r.By {
			delete(s.offers, r.Topic) // the offer is withdrawn
		}
	case opAccept:
		s.share(r.Topic, r.Subject, nil)
		delete(s.offers, r.Topic)
		s.countTopic(t, -1)
		t.owner = r.Subject
		s.countTopic(t, 1)
	case opRetire:
		delete(s.offers, r.Topic)
		t.phase, t.deleteAt = retired, r.Expires.Unix()
	case opRestore:
		t.phase, t.deleteAt = claimed, 0
	}
	s.topics[r.Topic] = t
}

// share replaces the grant of a grantee on a topic; nil removes it.
func (s *state) share(name, grantee string, g *grant) {
	_, shared := s.grants[name][grantee]
	switch {
	case g == nil && !shared:
		return
	case g == nil:
		if delete(s.grants[name], grantee); len(s.grants[name]) == 0 {
			delete(s.grants, name)
		}
		if remove(s.sharedWith, grantee, name); len(s.sharedWith[grantee]) == 0 {
			for member := range s.members[grantee] {
				remove(s.memberOf, member, grantee)
			}
			delete(s.members, grantee)
			if isGroup(grantee) {
				delete(s.revisions, grantee)
			}
		}
		return
	}
	if s.grants[name] == nil {
		s.grants[name] = make(map[string]grant)
	}
	s.grants[name][grantee] = *g
	insert(s.sharedWith, grantee, name)
}

// unshareAll removes all grants of a topic, because its claim has ended.
func (s *state) unshareAll(name string) {
	for grantee := range s.grants[name] {
		s.share(name, grantee, nil)
	}
	delete(s.offers, name)
}

// link records that an identity belongs to the person who signs in as subject; "" means to no such
// person.
func (s *state) link(identity, subject string) {
	if before := s.links[identity]; before != "" {
		remove(s.linkedTo, before, identity)
		delete(s.links, identity)
	}
	if subject != "" {
		s.links[identity] = subject
		insert(s.linkedTo, subject, identity)
	}
}

// insert adds an element to a set of sets, remove removes one.
func insert(sets map[string]map[string]struct{}, name, element string) {
	if sets[name] == nil {
		sets[name] = make(map[string]struct{})
	}
	sets[name][element] = struct{}{}
}

func remove(sets map[string]map[string]struct{}, name, element string) {
	if delete(sets[name], element); len(sets[name]) == 0 {
		delete(sets, name)
	}
}

// sharedTopics returns the topics that are shared with a subject, but not those that are only public:
// with its identity, with one that is linked to it, or with a Globus group of either.
func (s *state) sharedTopics(subject string) map[string]struct{} {
	names := make(map[string]struct{})
	s.granteesOf(subject, func(grantee string) {
		if grantee != publicGrantee {
			maps.Copy(names, s.sharedWith[grantee])
		}
	})
	return names
}

// isGrantee reports whether a topic is shared with an identity or with a Globus group that it is in.
func (s *state) isGrantee(identity string) bool {
	return len(s.sharedWith[identity]) > 0 || len(s.memberOf[identity]) > 0
}

func (s *state) mayLink(r record) error {
	switch known := s.links[r.Subject] == r.By; {
	case r.Op == opLink && (known || r.Subject == r.By):
		return errAlreadyLinked
	case r.Op == opUnlink && !known:
		return errNotLinked
	case r.After != s.revisions[r.Subject]:
		return errOutdated
	}
	return nil
}

func (s *state) mayChangeMembers(r record) error {
	if len(s.sharedWith[r.Grantee]) == 0 {
		return errNoGrant
	}
	if r.After != s.revisions[r.Grantee] {
		return errOutdated
	}
	members := s.members[r.Grantee]
	for _, subject := range r.Joined {
		if _, is := members[subject]; !is {
			return nil
		}
	}
	for _, subject := range r.Left {
		if _, is := members[subject]; is {
			return nil
		}
	}
	return errNoChange
}

func (s *state) changeMembers(group string, joined, left []string) {
	for _, subject := range joined {
		insert(s.members, group, intern(subject))
		insert(s.memberOf, intern(subject), group)
	}
	for _, subject := range left {
		remove(s.members, group, subject)
		remove(s.memberOf, subject, group)
	}
}

// topicOperations are the operations that owners and managers may perform; others have fewer. Delete is
// for DeleteRecords. It would allow DeleteTopics as well, but gateways refuse that.
var topicOperations = []kmsg.ACLOperation{
	kmsg.ACLOperationRead, kmsg.ACLOperationWrite, kmsg.ACLOperationDescribe, kmsg.ACLOperationDescribeConfigs, kmsg.ACLOperationDelete,
}

// operations returns what a principal with these rights may do at the broker. Read and Write each
// include Describe.
func (r rights) operations() []kmsg.ACLOperation {
	if r&mayManage != 0 {
		return topicOperations
	}
	var operations []kmsg.ACLOperation
	if r&mayRead != 0 {
		operations = append(operations, kmsg.ACLOperationRead)
	}
	if r&mayWrite != 0 {
		operations = append(operations, kmsg.ACLOperationWrite)
	}
	return operations
}

// topicACLs returns the ACLs that a topic should have: those of its owner and of those it is shared
// with, and those of their keys that are principals of their own. A topic that is not claimed has
// none.
func (s *state) topicACLs(name string, t topic) []kafka.ACL {
	if t.phase != claimed {
		return nil
	}
	acls := ownerACLs(name, t.owner)
	for _, k := range s.restrictedKeys(t.owner) {
		if k.covers(name) {
			acls = append(acls, k.topicACLs(name, mayRead|mayWrite)...)
		}
	}
	all := s.access(name)
	for _, subject := range slices.Sorted(maps.Keys(all)) {
		acls = append(acls, kafka.Allow(kafka.TopicResource(name), principal(subject), all[subject].operations()...)...)
		for _, k := range s.restrictedKeys(subject) {
			// A key for all topics is for those of its owner, not for those that others share.
			if slices.Contains(k.Topics, name) {
				acls = append(acls, k.topicACLs(name, all[subject])...)
			}
		}
	}
	slices.SortFunc(acls, func(a, b kafka.ACL) int {
		return cmp.Or(strings.Compare(a.Principal, b.Principal), cmp.Compare(a.Operation, b.Operation))
	})
	return acls
}

// String returns the rights in words.
func (r rights) String() string {
	switch {
	case r&mayManage != 0:
		return "read, write and manage"
	case r == mayRead|mayWrite:
		return "read and write"
	case r == mayWrite:
		return "write"
	case r == mayRead:
		return "read"
	}
	return fmt.Sprintf("rights(%d)", uint8(r))
}

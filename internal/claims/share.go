package claims

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
)

// maxGrantLifetime keeps the expiry of shares within what all clients can handle.
const maxGrantLifetime = 100 * 366 * 24 * time.Hour

// Share gives others rights on a topic, in place of the rights that they had through an earlier
// share. The subject by must own the topic or be allowed to manage it. When Share returns nil, the
// rights hold on every broker. req names the grantee by Subject, Group or Public; a Username in it is
// only stored for display, so the caller must have checked it.
//
// Errors are a [*diaspora.TopicError] with one of these causes:
//
//   - [diaspora.ErrInvalid].
//   - [diaspora.ErrNotFound] if nobody has claimed the topic.
//   - [diaspora.ErrPermission] if by may not manage it, a limit is reached, or by is blocked.
//   - [diaspora.ErrConflict] if the topic is being released, or the grantee is its owner.
//   - [diaspora.ErrUnavailable] if the cluster or Globus does not answer. The topic may be shared;
//     sharing again tells.
func (s *Service) Share(ctx context.Context, by, name string, req diaspora.GrantRequest) (diaspora.Grant, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	g, err := s.share(ctx, by, name, req)
	return g, topicError("share", name, err)
}

func (s *Service) share(ctx context.Context, by, name string, req diaspora.GrantRequest) (diaspora.Grant, error) {
	r := newRecord(opShare, by)
	r.Topic, r.Grantee, r.Username = name, granteeOf(req), req.Username
	r.Read, r.Write, r.Manage, r.Expires, r.Limit = req.Read, req.Write, req.Manage, req.Expires.UTC().Truncate(time.Second), s.cfg.Limits.Grants
	var err error
	switch {
	case r.Grantee == "":
		err = errors.New("a share is with one grantee: give the subject or the username of a person, or the ID of a Globus group, or make the topic public")
	case req.Subject != "":
		err = CheckPerson(req.Subject) // not the name of a grantee that is not a person
	}
	err = cmp.Or(err, checkGrant(r.Grantee, r.rights()), checkLine("a username", r.Username, maxUsernameBytes))
	if life := r.Expires.Sub(r.Time); err == nil && !req.Expires.IsZero() && (life <= 0 || life > maxGrantLifetime) {
		err = errors.New("a share ends at a time within a hundred years from now, or never")
	}
	if err != nil {
		return diaspora.Grant{}, invalid(err)
	}
	if isGroup(r.Grantee) {
		if err := s.checkGroup(ctx, by, name, r.Grantee); err != nil {
			return diaspora.Grant{}, err
		}
	}
	if err := s.change(ctx, &r, errAlreadyShared); err != nil {
		return diaspora.Grant{}, err
	}
	if isGroup(r.Grantee) {
		if err := s.updateMembers(ctx, r.Grantee, s.groupMembers, name); err != nil {
			return diaspora.Grant{}, err
		}
	}
	if !r.Expires.IsZero() {
		s.reconcileSoon() // which plans when to remove it
	}
	var g grant
	var shared bool
	s.ledger.read(func(st *state) { g, shared = st.grants[name][r.Grantee] })
	if !shared {
		return diaspora.Grant{}, fmt.Errorf("%w: the share was ended at the same time; share it again", diaspora.ErrUnavailable)
	}
	return g.asAPI(r.Grantee), nil
}

// granteeOf returns the grantee that a request names by its ID, or "" if it does not name exactly
// one.
func granteeOf(req diaspora.GrantRequest) string {
	switch {
	case req.Public && req.Group == "" && req.Subject == "":
		return publicGrantee
	case req.Group != "" && req.Subject == "" && !req.Public:
		return groupGrantee + req.Group
	case req.Group == "" && !req.Public:
		return req.Subject
	}
	return ""
}

// Unshare takes away the rights that a grantee has through a share. It succeeds for the owner, for
// those who may manage the topic, and for the grantee. When it returns nil, no broker grants the
// rights any more. grantee is a subject, "group:" and the ID of a Globus group, or "public". Errors
// are those of Share; [diaspora.ErrNotFound] also if the topic is not shared with the grantee.
func (s *Service) Unshare(ctx context.Context, by, name, grantee string) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	err := invalid(checkGrantee(grantee))
	if err == nil {
		r := newRecord(opUnshare, by)
		r.Topic, r.Grantee = name, grantee
		err = s.change(ctx, &r)
	}
	return topicError("unshare", name, err)
}

// change appends a record about a claimed topic to the ledger, and then makes the cluster agree. It
// sets the record's claim. done are the reasons for having no effect that are not errors, because nothing
// was left to do.
func (s *Service) change(ctx context.Context, r *record, done ...error) error {
	if err := diaspora.ValidTopic(r.Topic); err != nil {
		return errors.Unwrap(err)
	}
	if err := s.ledger.sync(ctx); err != nil {
		return err
	}
	t := s.ledger.topic(r.Topic)
	if t.phase == free {
		return s.refusal(errNotClaimed)
	}
	r.Claim = &t.claimOffset
	err := s.ledger.append(ctx, *r)
	if err != nil && !slices.ContainsFunc(done, func(ok error) bool { return errors.Is(err, ok) }) {
		s.reconcileIfUnknown(err)
		if errors.Is(err, errRetired) {
			return s.retired(r.By, r.Topic)
		}
		return s.refusal(err)
	}
	if _, err = s.reconcileTopic(ctx, r.Topic, false); err != nil {
		s.reconcileSoon()
	}
	return err
}

// reconcileIfUnknown asks for a reconciliation if err says that nobody knows whether a record is in the
// ledger. If it is, nothing else makes the cluster agree with it.
func (s *Service) reconcileIfUnknown(err error) {
	if errors.Is(err, diaspora.ErrUnavailable) || errors.Is(err, context.Canceled) {
		s.reconcileSoon()
	}
}

// Grants returns with whom a topic is shared, sorted by grantee. Its owner, those who may manage it
// and operators see everything. Others see what they have themselves. Errors are those of
// [Service.Topic].
func (s *Service) Grants(ctx context.Context, subject, name string) ([]diaspora.Grant, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	grants := []diaspora.Grant{}
	err := s.visible(ctx, subject, name, func(st *state, t topic, now time.Time) {
		all := t.owner == subject || st.rightsOf(subject, name, now)&mayManage != 0 || s.cfg.Admission.isOperator(subject)
		theirs := make(map[string]bool)
		st.granteesOf(subject, func(grantee string) { theirs[grantee] = true })
		for grantee, g := range st.grants[name] {
			shown := g.asAPI(grantee)
			switch {
			case all:
				shown.Members = st.membersOf(grantee)
			case !theirs[grantee]:
				continue
			}
			grants = append(grants, shown)
		}
	})
	if err != nil {
		return nil, topicError("show", name, err)
	}
	slices.SortFunc(grants, func(a, b diaspora.Grant) int {
		return cmp.Or(strings.Compare(a.Username, b.Username), strings.Compare(a.Subject+a.Group, b.Subject+b.Group))
	})
	return grants, nil
}

// membersOf returns the members of a Globus group, sorted, or nil for another grantee.
func (s *state) membersOf(grantee string) []diaspora.GroupMember {
	members := make([]diaspora.GroupMember, 0, len(s.members[grantee]))
	for subject := range s.members[grantee] {
		members = append(members, diaspora.GroupMember{Subject: subject})
	}
	slices.SortFunc(members, func(a, b diaspora.GroupMember) int { return strings.Compare(a.Subject, b.Subject) })
	if len(members) == 0 {
		return nil
	}
	return members
}

func (g grant) asAPI(grantee string) diaspora.Grant {
	api := diaspora.Grant{
		Username: g.username, Read: g.rights&mayRead != 0, Write: g.rights&mayWrite != 0, Manage: g.rights&mayManage != 0,
		By: g.by, Since: g.since, Expires: g.expires,
	}
	group, isGroup := strings.CutPrefix(grantee, groupGrantee)
	switch {
	case grantee == publicGrantee:
		api.Public = true
	case isGroup:
		api.Group = group
	default:
		api.Subject = grantee
	}
	return api
}

// visible calls see with the state of the ledger now, if a subject owns the topic or has rights on it.
// Operators see every topic. All that a caller shows comes from one state, so it fits together.
func (s *Service) visible(ctx context.Context, subject, name string, see func(*state, topic, time.Time)) error {
	if err := diaspora.ValidTopic(name); err != nil {
		return errors.Unwrap(err)
	}
	if err := s.ledger.sync(ctx); err != nil {
		return err
	}
	var err error
	s.ledger.read(func(st *state) {
		t, now := st.topics[name], time.Now()
		sees := t.owner == subject || st.offers[name] == subject || st.rightsOf(subject, name, now) != 0 || s.cfg.Admission.isOperator(subject)
		switch {
		case t.phase == free:
			err = fmt.Errorf("%w: nobody has claimed it", diaspora.ErrNotFound)
		case !sees:
			err = fmt.Errorf("%w: it belongs to somebody else", diaspora.ErrPermission)
		case t.phase == releasing:
			err = fmt.Errorf("%w: it is being released", diaspora.ErrNotFound)
		default:
			see(st, t, now)
		}
	})
	return err
}

func (s *Service) offeredTo(name string) (subject string) {
	s.ledger.read(func(st *state) { subject = st.offers[name] })
	return subject
}

// describe returns a topic as its owner, or somebody with rights on it, sees it.
func (st *state) describe(name string, t topic, subject string, now time.Time) diaspora.Topic {
	api := t.asAPI(name)
	_, api.Public = st.grants[name][publicGrantee]
	have := st.rightsOf(subject, name, now)
	if t.owner == subject && t.phase == claimed {
		have = mayRead | mayWrite | mayManage
	}
	api.Read, api.Write, api.Manage = have&mayRead != 0, have&mayWrite != 0, have&mayManage != 0
	if to := st.offers[name]; to == subject || t.owner == subject {
		api.OfferedTo = to
	}
	return api
}

// endExpired appends a record to the ledger for each share that has expired, and for each released
// topic that can no longer be restored. The reconciliation that follows changes the cluster.
func (s *Service) endExpired(ctx context.Context) error {
	var records []record
	now := time.Now()
	s.ledger.read(func(st *state) {
		for name, grants := range st.grants {
			for grantee, g := range grants {
				if g.expired(now) {
					r, t := newRecord(opShareExpired, serviceSubject), st.topics[name]
					r.Topic, r.Grantee, r.Claim = name, grantee, &t.claimOffset
					records = append(records, r)
				}
			}
		}
		for name, t := range st.topics {
			if t.phase == retired && now.Unix() >= t.deleteAt {
				r := newRecord(opRetireEnds, serviceSubject)
				r.Topic, r.Claim = name, &t.claimOffset
				records = append(records, r)
			}
		}
	})
	for _, r := range records {
		err := s.ledger.append(ctx, r)
		switch {
		// Another replica may have done it, or changed it, or its clock may be ahead.
		case err == nil, errors.Is(err, errNoGrant), errors.Is(err, errNotExpired), errors.Is(err, errStale):
		case errors.Is(err, errReleasing), errors.Is(err, errNotClaimed):
		case errors.Is(err, errRetired), errors.Is(err, errNotRetired), errors.Is(err, errRestorable):
		default:
			return err
		}
	}
	return nil
}

// nextExpiry returns when the next share or released topic expires, or a time far away.
func (s *state) nextExpiry(now time.Time) time.Time {
	next := now.Add(1000 * time.Hour)
	for _, grants := range s.grants {
		for _, g := range grants {
			if !g.expires.IsZero() && g.expires.Before(next) {
				next = g.expires
			}
		}
	}
	for _, t := range s.topics {
		if at := time.Unix(t.deleteAt, 0); t.phase == retired && at.Before(next) {
			next = at
		}
	}
	return next
}

// Linked makes shares with linked identities of a person hold for the subject under which the person
// has signed in. It returns quickly if there is nothing to change, which is nearly always.
func (s *Service) Linked(ctx context.Context, id globus.Identity) error {
	changes := s.ledger.linkChanges(id)
	if len(changes) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	var topics []string
	for _, r := range changes {
		err := s.ledger.append(ctx, r)
		switch {
		case errors.Is(err, errAlreadyLinked), errors.Is(err, errNotLinked):
		case errors.Is(err, errOutdated): // another login has changed it, and may be later than this one
		case err != nil:
			s.reconcileSoon() // for those before it, and for this one if it is in the ledger
			return fmt.Errorf("link identities: %w", s.refusal(err))
		}
		// Read them now: a topic that was shared in the meantime may not have the right ACLs yet.
		s.ledger.read(func(st *state) { topics = slices.AppendSeq(topics, maps.Keys(st.sharedTopics(r.Subject))) })
	}
	slices.Sort(topics)
	for _, name := range slices.Compact(topics) {
		if _, err := s.reconcileTopic(ctx, name, false); err != nil {
			s.reconcileSoon()
			return fmt.Errorf("link identities: %w", err)
		}
	}
	return nil
}

// linkChanges returns the records that link identities of a person who has signed in to the subject of
// the login, or unlink them from it. Only identities with which something is shared are linked.
func (l *ledger) linkChanges(id globus.Identity) (changes []record) {
	if len(id.IdentitySet) == 0 {
		return nil // unknown
	}
	l.read(func(st *state) {
		change := func(op, identity string) {
			r := newRecord(op, id.Subject)
			r.Subject, r.After = identity, st.revisions[identity]
			changes = append(changes, r)
		}
		for _, identity := range id.IdentitySet {
			if identity != id.Subject && st.links[identity] != id.Subject && st.isGrantee(identity) && CheckPerson(identity) == nil {
				change(opLink, identity)
			}
		}
		for identity := range st.linkedTo[id.Subject] {
			if !slices.Contains(id.IdentitySet, identity) {
				change(opUnlink, identity)
			}
		}
	})
	return changes
}

package claims

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/diaspora-streams/diaspora"
)

const (
	// membersEvery is how often the members of Globus groups are read.
	membersEvery = 40 * time.Second

	// maxHidden is for how long the members of a group keep their rights when Globus does not let the
	// service see them any more.
	maxHidden = time.Hour

	// maxMembers is how many members of a group get rights.
	maxMembers = 10_000

	// serviceSubject is the subject by whom the service writes records on nobody's behalf. It is not
	// that of a person, because those are UUIDs.
	serviceSubject = "_service"
)

// checkGroup checks that by may share a topic, and that the service can see the members of the group
// that it is to be shared with. The members are added to the ledger once the topic is shared; see
// membersLoop.
func (s *Service) checkGroup(ctx context.Context, by, name, grantee string) error {
	if s.cfg.Groups == nil {
		return invalid(errors.New("this fabric cannot read the members of Globus groups"))
	}
	if err := diaspora.ValidTopic(name); err != nil {
		return errors.Unwrap(err)
	}
	if err := s.ledger.sync(ctx); err != nil {
		return err
	}
	if t, have := s.ledger.access(name, by); t.phase == free {
		return s.refusal(errNotClaimed)
	} else if have&mayManage == 0 {
		return s.refusal(errNotYours) // before Globus is asked about a group on a stranger's behalf
	}
	_, err := s.groupMembers(ctx, grantee)
	return err
}

// groupMembers asks Globus for the members of a group.
func (s *Service) groupMembers(ctx context.Context, grantee string) ([]string, error) {
	members, err := s.cfg.Groups(ctx, strings.TrimPrefix(grantee, groupGrantee))
	if err != nil {
		return nil, err
	}
	if len(members) > maxMembers {
		return nil, fmt.Errorf("%w: the group has %d members, and at most %d can get rights", diaspora.ErrPermission, len(members), maxMembers)
	}
	for _, subject := range members {
		if err := CheckPerson(subject); err != nil {
			return nil, fmt.Errorf("the group has a member that is not an identity: %w", err)
		}
	}
	return members, nil
}

// nobody returns no members, for a group that has ended.
func nobody(context.Context, string) ([]string, error) { return nil, nil }

// updateMembers makes the ledger agree with what ask returns, which is [Service.groupMembers] or nobody,
// about the members of a group. If that changes something, it makes the cluster agree with the ledger,
// and also for the named topics in any case.
func (s *Service) updateMembers(ctx context.Context, grantee string, ask func(context.Context, string) ([]string, error), names ...string) error {
	topics, err := s.recordMembers(ctx, grantee, ask)
	for errors.Is(err, errOutdated) && ctx.Err() == nil {
		topics, err = s.recordMembers(ctx, grantee, ask)
	}
	names = append(names, topics...)
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if err == nil {
			_, err = s.reconcileTopic(ctx, name, false)
		}
	}
	if err != nil && len(names) > 0 {
		s.reconcileSoon()
	}
	return err
}

// recordMembers asks for the members of a group and records them in the ledger. It returns the
// topics whose ACLs change. If it fails, some of the members may be recorded.
//
// Another replica may do the same, and may have asked Globus later. So recordMembers remembers the last
// record about the group that it knew before it asked. If that is not the last one any more, its record
// has no effect, and the error is errOutdated.
func (s *Service) recordMembers(ctx context.Context, grantee string, ask func(context.Context, string) ([]string, error)) (topics []string, err error) {
	var after string
	s.ledger.read(func(st *state) { after = st.revisions[grantee] })
	now, err := ask(ctx, grantee)
	if err != nil {
		return nil, err
	}
	if err := s.ledger.sync(ctx); err != nil {
		return nil, err
	}
	var joined, left []string
	s.ledger.read(func(st *state) { joined, left = difference(st.members[grantee], now) })
	for len(joined)+len(left) > 0 {
		r := newRecord(opMembers, serviceSubject)
		r.Grantee, r.After = grantee, after
		r.Left, left = cut(left, maxMembersAtOnce)
		r.Joined, joined = cut(joined, maxMembersAtOnce-len(r.Left))
		err = s.ledger.append(ctx, r)
		// Read them now: a topic that was shared with the group in the meantime may not have the new
		// members yet.
		s.ledger.read(func(st *state) { topics = slices.Collect(maps.Keys(st.sharedWith[grantee])) })
		if errors.Is(err, errNoGrant) { // the last topic is not shared with the group any more
			return topics, nil
		}
		if err != nil {
			return topics, err
		}
		after = r.ID
	}
	return topics, nil
}

// difference returns which elements the list has and the set has not, and the reverse.
func difference(set map[string]struct{}, list []string) (added, removed []string) {
	listed := make(map[string]struct{}, len(list))
	for _, element := range list {
		listed[element] = struct{}{}
		if _, known := set[element]; !known {
			added = append(added, element)
		}
	}
	for element := range set {
		if _, still := listed[element]; !still {
			removed = append(removed, element)
		}
	}
	slices.Sort(added)
	return slices.Compact(added), removed
}

// cut returns the first n elements of a list, or all if it has fewer, and the rest.
func cut(list []string, n int) (first, rest []string) {
	n = min(n, len(list))
	return list[:n:n], list[n:]
}

// updateGroups updates the members of all groups with which topics are shared. If Globus does not
// answer, the members of a group stay as they are. If Globus says that the group is gone, or has said
// for an hour that the service may not see its members, nobody has rights through it any more. hidden
// has the times since which it has said so, by group.
func (s *Service) updateGroups(ctx context.Context, hidden map[string]time.Time) {
	var groups []string
	s.ledger.read(func(st *state) {
		for grantee := range st.sharedWith {
			if isGroup(grantee) {
				groups = append(groups, grantee)
			}
		}
	})
	for _, grantee := range groups {
		attempt, cancel := context.WithTimeout(ctx, commandTimeout)
		err := s.updateMembers(attempt, grantee, s.groupMembers)
		since, was := hidden[grantee]
		switch denied := errors.Is(err, diaspora.ErrPermission); {
		case denied && !was:
			hidden[grantee] = time.Now()
		case errors.Is(err, diaspora.ErrNotFound), denied && time.Since(since) > maxHidden:
			err = errors.Join(err, s.updateMembers(attempt, grantee, nobody))
		case err == nil:
			delete(hidden, grantee)
		}
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			s.cfg.Diagnostics.Warn("cannot read the members of a Globus group", "group", strings.TrimPrefix(grantee, groupGrantee), "err", err)
		}
	}
}

// membersLoop updates the members of groups at intervals until ctx ends.
func (s *Service) membersLoop(ctx context.Context) {
	ticker := time.NewTicker(membersEvery)
	defer ticker.Stop()
	hidden := make(map[string]time.Time)
	for {
		s.updateGroups(ctx, hidden)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

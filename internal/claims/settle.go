package claims

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// settleTopic makes the cluster agree with what the ledger says about a name, and
// returns that. Each step looks at the ledger before and after: a replica that
// was slow in between would otherwise leave rights behind that have ended. Any
// number of replicas may settle the same name at once.
func (s *Service) settleTopic(ctx context.Context, name string) (topic, error) {
	var after topic
	createdFor := "" // whose claim made us create a topic
	err := again(ctx, func() (bool, error) {
		if err := s.ledger.sync(ctx); err != nil {
			return false, err
		}
		before, acls := s.ledger.view(name)
		created, done, err := s.carryOut(ctx, name, before, acls)
		if created {
			createdFor = before.owner
		}
		if err != nil || !done {
			return false, err
		}
		if err := s.ledger.sync(ctx); err != nil {
			return false, err
		}
		after = s.ledger.topic(name)
		if after == before && after.phase == free && createdFor != "" {
			by := createdFor
			createdFor = ""
			return false, s.clear(ctx, name, by, after)
		}
		return after == before, nil
	})
	if err != nil {
		return topic{}, fmt.Errorf("make the cluster agree: %w", err)
	}
	return after, nil
}

// clear has the topic deleted that a free name has in the cluster, because it was
// created too late for a claim that has ended. Only the ledger can say whether
// that is still so, since the next claim may already stand on that topic.
func (s *Service) clear(ctx context.Context, name, by string, t topic) error {
	if _, exists, err := s.cluster.Topic(ctx, name); err != nil || !exists {
		return clusterError(err)
	}
	r := newRecord(opClear, by)
	r.Topic, r.Claim = name, &t.place
	if err := s.ledger.append(ctx, r); err != nil && !errors.Is(err, errStale) {
		return err
	}
	return nil
}

// again calls done until it is true, and sits out outages until ctx ends.
func again(ctx context.Context, done func() (bool, error)) error {
	const least, most = time.Millisecond, 250 * time.Millisecond
	broken := (*brokenError)(nil)
	for pause := least; ; pause = min(2*pause, most) {
		ok, err := done()
		switch {
		case ok && err == nil:
			return nil
		case errors.As(err, &broken) || err != nil && !errors.Is(err, diaspora.ErrUnavailable):
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return cmp.Or(err, clusterError(ctx.Err()))
		}
	}
}

// carryOut does to the cluster what the ledger says about a name, and reports
// whether it created a topic, and whether there was nothing left to do.
func (s *Service) carryOut(ctx context.Context, name string, t topic, acls []kafka.ACL) (created, done bool, err error) {
	switch t.phase {
	case claimed:
		created, done, err = s.carryOutClaim(ctx, name, t, acls)
	case releasing:
		err = s.carryOutRelease(ctx, name, t)
	default:
		done, err = s.cluster.SetACLs(ctx, kafka.TopicResource(name), nil, s.made)
	}
	return created, done, clusterError(err)
}

// carryOutClaim creates the topic and sets its ACLs, both at once: each waits for
// a majority of the controllers, and neither needs the other. Both come after the
// claim is in the ledger.
func (s *Service) carryOutClaim(ctx context.Context, name string, t topic, acls []kafka.ACL) (created, done bool, err error) {
	var ready, hold bool
	var work errgroup.Group // not with a context: a topic that is created must be known to be
	work.Go(func() (err error) {
		created, ready, err = s.cluster.CreateTopic(ctx, s.topicSpec(name, t))
		return err
	})
	work.Go(func() (err error) {
		hold, err = s.cluster.SetACLs(ctx, kafka.TopicResource(name), acls, s.made)
		return err
	})
	err = work.Wait()
	if created {
		s.cfg.Diagnostics.Info("topic created", "topic", name, "principal", principal(t.owner))
	}
	return created, err == nil && ready && hold, err
}

// carryOutRelease takes the rights away, deletes the events, and only then frees
// the name. It may be late, after another replica did all that and somebody else
// claimed the name. So it asks for the topic's ID first and for the ledger after:
// if that still says releasing, the ID is of the topic to delete, and deleting by
// ID cannot hit a later one.
func (s *Service) carryOutRelease(ctx context.Context, name string, t topic) error {
	info, exists, err := s.cluster.Topic(ctx, name)
	if err != nil {
		return err
	}
	if err := s.ledger.sync(ctx); err != nil {
		return err
	}
	if s.ledger.topic(name) != t {
		return nil
	}
	if hold, err := s.cluster.SetACLs(ctx, kafka.TopicResource(name), nil, s.made); err != nil || !hold {
		return err
	}
	if exists {
		if err := s.cluster.DeleteTopic(ctx, name, info.ID); err != nil {
			return err
		}
		s.cfg.Diagnostics.Info("topic deleted", "topic", name, "principal", principal(t.owner))
	}
	r := newRecord(opReleased, t.owner)
	r.Topic, r.Claim = name, &t.place
	if err := s.ledger.append(ctx, r); err != nil && !errors.Is(err, errStale) {
		return err
	}
	return nil
}

// Reconcile makes the cluster agree with the whole ledger: it completes what was
// begun, and mends topics and ACLs that were changed behind the service's back.
// It removes only ACLs that look like the service's own (see made), and only from
// topics that the ledger knows. All others are the operator's.
func (s *Service) Reconcile(ctx context.Context) error {
	// The cluster before the ledger: what it has now, the ledger then knows of.
	topics, err := s.cluster.Topics(ctx)
	if err != nil {
		return fmt.Errorf("reconcile: %w", clusterError(err))
	}
	onTopics, err := s.aclsByName(ctx, kmsg.ACLResourceTypeTopic)
	if err != nil {
		return fmt.Errorf("reconcile: %w", clusterError(err))
	}
	if err := s.ledger.sync(ctx); err != nil {
		return fmt.Errorf("reconcile: %w", err)
	}
	if err := s.endExpiredKeys(ctx); err != nil {
		return fmt.Errorf("reconcile: %w", err)
	}
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(8)
	for _, name := range s.unsettledTopics(topics, onTopics) {
		work.Go(func() error {
			s.cfg.Diagnostics.Info("topic is being mended", "topic", name)
			_, err := s.settleTopic(ctx, name)
			return topicError("reconcile", name, err)
		})
	}
	work.Go(func() error { return s.settleGroups(ctx) })
	work.Go(func() error { return s.settleGateways(ctx) })
	return work.Wait()
}

func (s *Service) aclsByName(ctx context.Context, kind kmsg.ACLResourceType) (map[string][]kafka.ACL, error) {
	acls, err := s.cluster.ACLs(ctx, kind)
	byName := make(map[string][]kafka.ACL)
	for _, acl := range acls {
		byName[acl.Name] = append(byName[acl.Name], acl)
	}
	return byName, err
}

// unsettledTopics returns the names about which cluster and ledger disagree.
func (s *Service) unsettledTopics(topics map[string]kafka.TopicInfo, acls map[string][]kafka.ACL) []string {
	var names []string
	s.ledger.read(func(st *state) {
		for name, t := range st.topics {
			_, exists := topics[name]
			if t.phase == releasing || t.phase == claimed && !exists || !st.agrees(acls[name], st.topicACLs(name, t)) {
				names = append(names, name)
			}
			if t.phase == free && exists {
				s.cfg.Diagnostics.Warn("the cluster has a topic that nobody claims", "topic", name)
			}
		}
	})
	return names
}

// keepReconciled reconciles now and then, and soon after a command failed, until
// ctx ends. It is jittered so that replicas take turns.
func (s *Service) keepReconciled(ctx context.Context) {
	const soon = time.Second
	for {
		interval := s.cfg.ReconcileInterval
		interval += time.Duration(rand.Int64N(int64(interval)/5 + 1))
		select {
		case <-ctx.Done():
			return
		case <-time.After(interval):
		case <-s.kick:
			select {
			case <-ctx.Done():
				return
			case <-time.After(soon):
			}
		}
		attempt, cancel := context.WithTimeout(ctx, commandTimeout)
		if err := s.Reconcile(attempt); err != nil && ctx.Err() == nil {
			s.cfg.Diagnostics.Warn("the cluster could not be reconciled with the ledger", "err", err)
		}
		cancel()
	}
}

// reconcileSoon asks for a reconciliation, since a command may be half done.
func (s *Service) reconcileSoon() {
	select {
	case s.kick <- struct{}{}:
	default: // somebody has asked already
	}
}

// topicSpec returns the topic that a claim asks for.
func (s *Service) topicSpec(name string, t topic) kafka.TopicSpec {
	retention := time.Duration(-1)
	if t.retentionMS >= 0 {
		retention = time.Duration(t.retentionMS) * time.Millisecond
	}
	return kafka.TopicSpec{Name: name, Partitions: t.partitions, Replicas: s.cfg.ReplicationFactor, Retention: retention}
}

// topicOperations are what the service lets owners do; keys may do less.
var topicOperations = []kmsg.ACLOperation{kmsg.ACLOperationRead, kmsg.ACLOperationWrite, kmsg.ACLOperationDescribe, kmsg.ACLOperationDescribeConfigs}

// ownerACLs returns what the owner of a claimed topic may do with it.
func ownerACLs(name, owner string) []kafka.ACL {
	return kafka.Allow(kafka.TopicResource(name), principal(owner), topicOperations...)
}

func principal(subject string) string { return "User:" + subject }

// made reports whether an ACL looks like one that this service has made.
func (s *Service) made(acl kafka.ACL) (made bool) {
	s.ledger.read(func(st *state) { made = st.made(acl) })
	return made
}

// made is what decides which ACLs the service may remove. DENY entries, entries for
// one host, for other operations or for principals that are no subjects were made by
// the operator: removing a DENY would give somebody back what the operator took away.
func (s *state) made(acl kafka.ACL) bool {
	return acl.Permission == kmsg.ACLPermissionTypeAllow && acl.Host == "*" && acl.Type == kmsg.ACLResourceTypeTopic &&
		slices.Contains(topicOperations, acl.Operation) && s.isSubject(acl.Principal)
}

// isSubject reports whether a principal is a person or an access key. Subjects at
// Globus are UUIDs, which tells them from the users that an operator creates; others
// are known by what they claimed.
func (s *state) isSubject(principal string) bool {
	name, ok := strings.CutPrefix(principal, "User:")
	if i := strings.LastIndexByte(name, '.'); i >= 0 && keyIDFault(name[i+1:]) == "" {
		name = name[:i]
	}
	_, known := s.subjects[name]
	return ok && (known || isUUID(name))
}

func isUUID(subject string) bool { return len(subject) == 36 && uuid.Validate(subject) == nil }

// agrees reports whether the ACLs that a topic or group has are those that it is to
// have, as far as they are the service's.
func (s *state) agrees(have, want []kafka.ACL) bool {
	for _, acl := range want {
		if !slices.Contains(have, acl) {
			return false
		}
	}
	return !slices.ContainsFunc(have, func(acl kafka.ACL) bool { return s.made(acl) && !slices.Contains(want, acl) })
}

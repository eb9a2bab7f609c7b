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
	"github.com/diaspora-streams/diaspora/internal/accesskey"
	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// reconcileTopic makes the cluster agree with what the ledger says about a topic name, and returns
// that. It reads the ledger before and after each step. Otherwise a replica that was slow in
// between could leave rights behind that have ended. Any number of replicas may reconcile the same
// name at the same time.
//
// isNew tells that the caller has just claimed the name: append has read the ledger up to the claim,
// and the cluster has probably neither the topic nor its ACLs.
func (s *Service) reconcileTopic(ctx context.Context, name string, isNew bool) (topic, error) {
	var after topic
	createdFor := "" // the owner of the claim for which this call created a topic
	err := retry(ctx, func() (bool, error) {
		if !isNew {
			if err := s.ledger.sync(ctx); err != nil {
				return false, err
			}
		}
		before, acls := s.ledger.view(name)
		created, done, err := s.applyToCluster(ctx, name, isNew, before, acls)
		isNew = false
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
			return false, s.appendClear(ctx, name, by, after)
		}
		_, now := s.ledger.view(name)
		return after == before && slices.Equal(acls, now), nil
	})
	if err != nil {
		return topic{}, fmt.Errorf("apply the ledger to the cluster: %w", err)
	}
	return after, nil
}

// appendClear makes the service delete the topic of a free name. Such a topic was created too late,
// for a claim that has ended. Only the ledger can decide whether that is still so, because the next
// claim may already use that topic.
func (s *Service) appendClear(ctx context.Context, name, by string, t topic) error {
	if _, exists, err := s.cluster.Topic(ctx, name); err != nil || !exists {
		return clusterError(err)
	}
	r := newRecord(opClear, by)
	r.Topic, r.Claim = name, &t.claimOffset
	if err := s.ledger.append(ctx, r); err != nil && !errors.Is(err, errStale) {
		return err
	}
	return nil
}

// retry calls done until it returns true. It retries through outages until ctx ends, and returns
// any other error.
func retry(ctx context.Context, done func() (bool, error)) error {
	const minPause, maxPause = time.Millisecond, 250 * time.Millisecond
	broken := (*brokenError)(nil)
	for pause := minPause; ; pause = min(2*pause, maxPause) {
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

// applyToCluster makes the changes in the cluster that the ledger requires for a topic name. It
// reports whether it created a topic, and whether nothing is left to do.
func (s *Service) applyToCluster(ctx context.Context, name string, isNew bool, t topic, acls []kafka.ACL) (created, done bool, err error) {
	switch t.phase {
	case claimed:
		created, done, err = s.cluster.SetTopic(ctx, s.topicSpec(name, t), isNew, acls, s.isOurs)
		if created {
			s.cfg.Diagnostics.Info("topic created", "topic", name, "principal", principal(t.owner))
		}
		if err == nil && done && t.changed {
			err = s.cluster.ChangeTopic(ctx, s.topicSpec(name, t))
		}
	case retired:
		done, err = s.cluster.SetACLs(ctx, kafka.TopicResource(name), nil, s.isOurs)
	case releasing:
		err = s.applyRelease(ctx, name, t)
	default:
		done, err = s.cluster.SetACLs(ctx, kafka.TopicResource(name), nil, s.isOurs)
	}
	return created, done, clusterError(err)
}

// applyRelease removes the ACLs, deletes the topic, and then frees the name.
//
// This replica may be slow. In the meantime another one may have done all that, and somebody else
// may have claimed the name. So it reads the topic's ID first and the ledger afterwards. If the
// ledger still says "releasing", that ID is the one of the topic to delete, and deleting by ID
// cannot hit a later topic.
func (s *Service) applyRelease(ctx context.Context, name string, t topic) error {
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
	if hold, err := s.cluster.SetACLs(ctx, kafka.TopicResource(name), nil, s.isOurs); err != nil || !hold {
		return err
	}
	if exists {
		if err := s.cluster.DeleteTopic(ctx, name, info.ID); err != nil {
			return err
		}
		s.cfg.Diagnostics.Info("topic deleted", "topic", name, "principal", principal(t.owner))
	}
	r := newRecord(opReleased, t.owner)
	r.Topic, r.Claim = name, &t.claimOffset
	if err := s.ledger.append(ctx, r); err != nil && !errors.Is(err, errStale) {
		return err
	}
	return nil
}

// Reconcile makes the cluster agree with the whole ledger. It completes commands that were
// interrupted, and repairs topics and ACLs that were changed behind the service's back. It removes
// only ACLs that look like the service's own (see isOurs), and only from topics that the ledger
// knows. All others are the operator's.
func (s *Service) Reconcile(ctx context.Context) error {
	// Read the cluster before the ledger, so that the ledger knows of everything that was found.
	topics, err := s.cluster.Topics(ctx)
	if err != nil {
		return fmt.Errorf("reconcile: %w", clusterError(err))
	}
	onTopics, err := s.aclsByName(ctx, kmsg.ACLResourceTypeTopic)
	if err != nil {
		return fmt.Errorf("reconcile: %w", clusterError(err))
	}
	// The settings are compared with those in the ledger, so this needs what other replicas have written.
	if err := s.ledger.sync(ctx); err != nil {
		return fmt.Errorf("reconcile: %w", err)
	}
	different, err := s.differentTopics(ctx)
	if err != nil {
		return fmt.Errorf("reconcile: %w", clusterError(err))
	}
	if err := s.ledger.sync(ctx); err != nil {
		return fmt.Errorf("reconcile: %w", err)
	}
	if err := s.endExpiredKeys(ctx); err != nil {
		return fmt.Errorf("reconcile: %w", err)
	}
	if err := s.endExpired(ctx); err != nil {
		return fmt.Errorf("reconcile: %w", err)
	}
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(8)
	for _, name := range s.topicsToReconcile(topics, onTopics, different) {
		work.Go(func() error {
			s.cfg.Diagnostics.Info("repairing a topic", "topic", name)
			_, err := s.reconcileTopic(ctx, name, false)
			return topicError("reconcile", name, err)
		})
	}
	work.Go(func() error { return s.reconcileGroups(ctx) })
	work.Go(func() error { return s.reconcileGateways(ctx) })
	return work.Wait()
}

// differentTopics returns the topics whose settings were changed through the service and differ in the
// cluster: a replica may have stopped in between, or may have been slow.
func (s *Service) differentTopics(ctx context.Context) (map[string]bool, error) {
	var specs []kafka.TopicSpec
	s.ledger.read(func(st *state) {
		for name, t := range st.topics {
			if t.phase == claimed && t.changed {
				specs = append(specs, s.topicSpec(name, t))
			}
		}
	})
	return s.cluster.DifferentTopics(ctx, specs)
}

func (s *Service) aclsByName(ctx context.Context, kind kmsg.ACLResourceType) (map[string][]kafka.ACL, error) {
	acls, err := s.cluster.ACLs(ctx, kind)
	byName := make(map[string][]kafka.ACL)
	for _, acl := range acls {
		byName[acl.Name] = append(byName[acl.Name], acl)
	}
	return byName, err
}

// topicsToReconcile returns the names for which the cluster and the ledger differ. different are those
// whose settings do.
func (s *Service) topicsToReconcile(topics map[string]kafka.TopicInfo, acls map[string][]kafka.ACL, different map[string]bool) []string {
	var names []string
	s.ledger.read(func(st *state) {
		for name, t := range st.topics {
			info, exists := topics[name]
			if t.phase == releasing || different[name] || t.phase == claimed && (!exists || info.Led && info.Partitions < t.partitions) || !st.aclsMatch(acls[name], st.topicACLs(name, t)) {
				names = append(names, name)
			}
			if t.phase == free && exists {
				s.cfg.Diagnostics.Warn("the cluster has a topic that nobody has claimed", "topic", name)
			}
		}
	})
	return names
}

// reconcileLoop reconciles at each interval, and soon after a command has failed, until ctx ends.
// The interval is randomized, so that replicas do not all reconcile at the same time. It ends early
// when a share expires.
func (s *Service) reconcileLoop(ctx context.Context) {
	const soon = time.Second
	for {
		interval := s.cfg.ReconcileInterval
		interval -= time.Duration(rand.Int64N(int64(interval)/5 + 1))
		s.ledger.read(func(st *state) {
			now := time.Now()
			interval = min(interval, max(st.nextExpiry(now).Sub(now), soon))
		})
		select {
		case <-ctx.Done():
			return
		case <-time.After(interval):
		case <-s.reconcileNow:
			select {
			case <-ctx.Done():
				return
			case <-time.After(soon):
			}
		}
		attempt, cancel := context.WithTimeout(ctx, commandTimeout)
		if err := s.Reconcile(attempt); err != nil && ctx.Err() == nil {
			s.cfg.Diagnostics.Warn("cannot reconcile the cluster with the ledger; retrying", "err", err)
		}
		cancel()
	}
}

// reconcileSoon asks for a reconciliation, because a command may be half done.
func (s *Service) reconcileSoon() {
	select {
	case s.reconcileNow <- struct{}{}:
	default: // a request is pending already
	}
}

// topicSpec returns the topic that the cluster should have for a claim.
func (s *Service) topicSpec(name string, t topic) kafka.TopicSpec {
	retention := time.Duration(-1)
	if t.retentionMS >= 0 {
		retention = time.Duration(t.retentionMS) * time.Millisecond
	}
	return kafka.TopicSpec{
		Name: name, Partitions: t.partitions, Replicas: s.cfg.ReplicationFactor,
		Retention: retention, MaxBytes: t.maxBytes, Compact: t.compact,
	}
}

// ownerACLs returns the ACLs of the owner of a claimed topic.
func ownerACLs(name, owner string) []kafka.ACL {
	return kafka.Allow(kafka.TopicResource(name), principal(owner), topicOperations...)
}

func principal(subject string) string { return "User:" + subject }

// isOurs reports whether an ACL looks like one that this service created.
func (s *Service) isOurs(acl kafka.ACL) (made bool) {
	s.ledger.read(func(st *state) { made = st.isOurs(acl) })
	return made
}

// isOurs decides which ACLs the service may remove. ACLs that deny, that name a host or other
// operations, or whose principal is not a subject were created by the operator. So were those for
// everybody, unless the topic was public at some time. Removing a DENY would give back a right that the
// operator took away.
func (s *state) isOurs(acl kafka.ACL) bool {
	if acl.Permission != kmsg.ACLPermissionTypeAllow || acl.Host != "*" || acl.Type != kmsg.ACLResourceTypeTopic || !slices.Contains(topicOperations, acl.Operation) {
		return false
	}
	if acl.Principal == principal("*") {
		return acl.Operation == kmsg.ACLOperationRead && s.topics[acl.Name].public
	}
	return s.isSubject(acl.Principal)
}

// isSubject reports whether a principal is a person or an access key. Subjects of Globus are UUIDs,
// unlike the users that an operator creates. Other subjects are known because they own, or owned,
// something.
func (s *state) isSubject(principal string) bool {
	name, ok := strings.CutPrefix(principal, "User:")
	if i := strings.LastIndexByte(name, '.'); i >= 0 && accesskey.IsID(name[i+1:]) {
		name = name[:i]
	}
	_, known := s.subjects[name]
	return ok && (known || isUUID(name))
}

func isUUID(subject string) bool { return len(subject) == 36 && uuid.Validate(subject) == nil }

// aclsMatch reports whether a topic has the ACLs that it should have. It ignores ACLs that are not
// the service's own.
func (s *state) aclsMatch(have, want []kafka.ACL) bool {
	had, wanted := kafka.ACLSet(have), kafka.ACLSet(want)
	for _, acl := range want {
		if !had(acl) {
			return false
		}
	}
	return !slices.ContainsFunc(have, func(acl kafka.ACL) bool { return !wanted(acl) && s.isOurs(acl) })
}

// Package claims decides who owns which topic, who has which access key and who is blocked, and
// makes the cluster's topics and ACLs agree with that.
//
// A [Service] takes commands and appends them to the ledger, a topic of the cluster. The position
// of a command in the ledger decides whether it takes effect: of two claims of one name the first
// one wins, however many replicas of the service run. All replicas read the whole ledger, so they
// arrive at the same state. The cluster's topics and ACLs are derived from that state. Each replica
// updates them after a command, and repairs them if they differ ([Service.Reconcile]). A
// [Follower], which a gateway uses, only reads the ledger.
//
// Start reading at [Service], then ledger.go (appending and following), state.go (the rules),
// grants.go (the rules of sharing) and reconcile.go (the cluster).
//
// # The ledger
//
// The ledger is the topic _diaspora_ledger. It has one partition, is written with acks=all, and is
// kept forever. Each record is a JSON object of at most 8 KiB:
//
//	v             the lowest version of this format whose readers understand the record
//	op            the operation, see below
//	id            a UUID, by which the writer recognizes its record
//	time          when it was written, by the writer's clock (RFC 3339)
//	by            the subject on whose behalf it was written
//	topic, group, key  what the operation applies to
//
// The operations of version 1, and when they take no effect:
//
//	claim         by gets the topic, with partitions, retention_ms (-1: forever)
//	              and description. No effect if the topic is claimed or being
//	              released, or if by owns limit topics already.
//	release       the claim at the offset "claim" ends; by must be its owner.
//	              The service deletes the owner's ACLs, and then the topic.
//	released      they have been deleted, and the name is free.
//	clear         the claim at the offset "claim" has ended and the name is free,
//	              but the cluster still has a topic of that claim. From here on
//	              the name is being released, until a "released" for this
//	              record's offset.
//	claim_group   by gets the consumer group. No longer written, because groups
//	              are private to a subject now. No effect if the group is claimed,
//	              or if by has limit groups already.
//
// The operations of version 2 are about access keys:
//
//	issue_key     by gets the access key, with name, hash (the SHA-256 of its
//	              secret), topics (absent: all of by's), read, write and expires
//	              (absent: never). No effect if the ID is in use or was until 90
//	              days ago, if by has a key of that name, or if by has limit keys
//	              already.
//	revoke_key    the key ends; by must be its owner.
//	key_expired   the same, because the key has expired at the record's time.
//	key_used      a client signed in with the key. Once for a key and a day (UTC).
//
// The operations of version 3 are those of operators:
//
//	block         subject is blocked, for the reason why: its tokens and access
//	              keys are not accepted, and its claims and new keys take no
//	              effect. No effect if subject is blocked already.
//	unblock       subject is not blocked any more. No effect if subject is not
//	              blocked.
//
// The operations of version 4 are about sharing topics and changing them. Those that name a topic have
// no effect unless it is claimed, the claim is the one at the offset "claim", and by owns the topic.
// Those marked with * also take effect if by may manage it.
//
//	share *       grantee gets the rights read, write and manage, instead of those that
//	              it had, until expires (absent: for ever). grantee is an identity,
//	              "group:" and a Globus group, or "public"; username is that of the
//	              grantee then. No effect if the topic has limit grantees already.
//	unshare *     grantee loses them. by may also be the grantee.
//	share_expired the same, because they have expired at the record's time.
//	link          the identity subject belongs to the person who signs in as by, so
//	              what is shared with it holds for by. No effect unless after is the
//	              ID of the last link or unlink of that identity (absent: there is
//	              none).
//	unlink        it does not any more. No effect as for link.
//	members       the identities joined are in the Globus group grantee, and left are
//	              not any more. No effect if nothing is shared with it, or unless after
//	              is the ID of the last members of that group or, if there is none, of
//	              the share since which something is shared with it.
//	set *         the settings in "set" change. The number of partitions only grows.
//	offer         subject may accept the topic. An offer to by withdraws the offer.
//	accept        subject, to whom the topic is offered, becomes its owner. No effect
//	              if subject owns limit topics already.
//	retire        nobody has rights on the topic any more; at expires it is released.
//	restore       a retired topic is as it was before.
//	retire_ends   a retired topic is released, because expires has passed at the
//	              record's time.
//
// The field after keeps a slow replica from giving back rights that have ended: what it knows about a
// group or a person is older than what the ledger knows.
//
// The key of a record is "topic/NAME", "group/NAME", "key/ID", "subject/SUBJECT" or
// "grantee/GRANTEE". Readers ignore
// fields that they do not know. They skip (and count) records that are malformed. At a record of a
// higher version than their own they stop making decisions, because they might get its meaning
// wrong.
//
// That is why the operations on access keys are not of version 1, although no claim depends on
// them. A reader of version 1 would take the ACLs of keys for ACLs that somebody added behind the
// service's back, and would remove them. So the first key that is issued stops replicas that do not
// know access keys, until they are upgraded.
//
// # Access keys
//
// A key that has all rights of its owner signs in to the broker as its owner. Every other key is a
// principal of its own, User:<owner>.<key>. It has ACLs on the owner's topics, which are added and
// removed together with topics and keys ([KeyPrincipal]).
package claims

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// Config configures a [Service].
type Config struct {
	// Admin are the options for a Kafka client that has all rights on the cluster. Required.
	Admin []kgo.Opt

	// GatewayPrincipal is the broker's principal, as User:<name>, of gateways that have a
	// [Follower] instead of a Service. The Service grants it the rights that they need. Leave it
	// empty if there are no such gateways.
	GatewayPrincipal string

	// DefaultPartitions is the number of partitions of a topic whose claim does not name one.
	// MaxPartitions is the largest number that a claim may name. Default: 1 and 100.
	DefaultPartitions, MaxPartitions int

	// DefaultRetention is how long a topic keeps its events if its claim does not say; negative
	// means forever. Default: 7 days.
	DefaultRetention time.Duration

	// MaxRetention is the longest time for which a topic may keep its events. Default: no limit.
	MaxRetention time.Duration

	// ReplicationFactor is the number of replicas of new topics. From 3 on, their
	// min.insync.replicas is 2. Default: that of the ledger, which is created with 3, or with 1 in
	// a cluster of one broker.
	ReplicationFactor int

	// Limits bound what one subject can have.
	Limits Limits

	// Admission says who may use the fabric, and who its operators are.
	Admission Admission

	// Dir is the folder for checkpoints of the ledger, so that the next start reads only newer
	// records. It is created if it does not exist. Several processes may share it. If Dir is empty,
	// there are no checkpoints.
	Dir string

	// KeyRevoked is called after a key that is a principal of its own was revoked, and before its
	// ACLs are removed. It should close the key's connections: on an open connection the client
	// would otherwise get an authorization error, and would not learn that the key was revoked. Nil
	// does nothing.
	KeyRevoked func(ctx context.Context, principal string)

	// Compaction says that the cluster can compact topics.
	Compaction bool

	// Groups returns the members of a Globus group, by their subjects. Nil means that topics cannot be
	// shared with groups.
	Groups func(ctx context.Context, group string) ([]string, error)

	// ReconcileInterval is how often the Service compares the cluster with the ledger.
	// Default: 1 minute.
	ReconcileInterval time.Duration

	// Diagnostics receives the Service's own messages. Nil discards them.
	Diagnostics *slog.Logger
}

func (cfg Config) withDefaults() (Config, error) {
	cfg.DefaultPartitions = cmp.Or(cfg.DefaultPartitions, 1)
	cfg.MaxPartitions = cmp.Or(cfg.MaxPartitions, 100)
	cfg.DefaultRetention = cmp.Or(cfg.DefaultRetention, 7*24*time.Hour)
	cfg.Limits.setDefaults()
	cfg.ReconcileInterval = cmp.Or(cfg.ReconcileInterval, time.Minute)
	cfg.Diagnostics = cmp.Or(cfg.Diagnostics, slog.New(slog.DiscardHandler))
	if err := cfg.Admission.Validate(); err != nil {
		return cfg, fmt.Errorf("claims: %w", err)
	}
	if cfg.MaxRetention > 0 && (cfg.DefaultRetention < 0 || cfg.DefaultRetention > cfg.MaxRetention) {
		return cfg, fmt.Errorf("claims: DefaultRetention is %v, and must be at most MaxRetention (%v)", cfg.DefaultRetention, cfg.MaxRetention)
	}
	if cfg.DefaultPartitions < 1 || cfg.DefaultPartitions > cfg.MaxPartitions {
		return cfg, fmt.Errorf("claims: DefaultPartitions is %d, and must be 1 to MaxPartitions (%d)", cfg.DefaultPartitions, cfg.MaxPartitions)
	}
	return cfg, nil
}

// commandTimeout limits a command whose caller sets no deadline, or a later one.
const commandTimeout = 15 * time.Second

// Service decides who owns what. Its methods may be called concurrently, and other Services may
// work on the same cluster.
type Service struct {
	ledgerReader
	cfg     Config
	client  *kgo.Client
	cluster *kafka.Admin

	stop         context.CancelFunc // ends the goroutines
	wg           sync.WaitGroup     // waits for them
	closeOnce    sync.Once
	reconcileNow chan struct{} // asks for a reconciliation soon
	reading      chan struct{} // a semaphore: the caller that is reading old records has put a value into it
}

// Open creates the ledger if it does not exist, reads it, makes the cluster agree with it, and
// returns a Service that keeps them in agreement. ctx bounds the opening only.
func Open(ctx context.Context, cfg Config) (*Service, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	client, err := kgo.NewClient(slices.Concat(cfg.Admin, ledgerOpts())...)
	if err != nil {
		return nil, fmt.Errorf("claims: %w", err)
	}
	run, stop := context.WithCancel(context.Background()) // ends with Close, not with ctx
	s := &Service{cfg: cfg, client: client, cluster: kafka.NewAdmin(client), stop: stop, reconcileNow: make(chan struct{}, 1), reading: make(chan struct{}, 1)}
	if err := s.open(ctx, run); err != nil {
		return nil, errors.Join(fmt.Errorf("open the ledger: %w", err), s.Close())
	}
	return s, nil
}

func (s *Service) open(ctx, run context.Context) error {
	err := s.client.Ping(ctx)
	if err != nil {
		return clusterError(err)
	}
	spec := kafka.TopicSpec{Name: LedgerTopic, Partitions: 1, Replicas: s.cfg.ReplicationFactor, Retention: -1}
	reading := ledgerConfig{client: s.cfg.Admin, limits: s.cfg.Limits, dir: s.cfg.Dir, diagnostics: s.cfg.Diagnostics}
	l, err := openLedger(ctx, s.client, reading, func(ctx context.Context) (kafka.TopicInfo, error) {
		return prepareLedger(ctx, s.cluster, spec, s.cfg.Diagnostics)
	})
	if err != nil {
		return clusterError(err)
	}
	s.ledgerReader = ledgerReader{l, newKeyUses(), s.cfg.Admission}
	s.cfg.ReplicationFactor = cmp.Or(s.cfg.ReplicationFactor, l.replicas)
	s.wg.Go(func() { s.ledger.follow(run) })
	if err := l.catchUp(ctx); err != nil {
		return err
	}
	if err := s.Reconcile(ctx); err != nil && ctx.Err() != nil {
		return err
	} else if err != nil {
		s.cfg.Diagnostics.Error("cannot reconcile the cluster with the ledger; retrying", "err", err)
		s.reconcileSoon()
	}
	s.wg.Go(func() { s.reconcileLoop(run) })
	s.wg.Go(func() { s.ledger.checkpointLoop(run) })
	if s.cfg.Groups != nil {
		s.wg.Go(func() { s.membersLoop(run) })
	}
	s.wg.Go(func() {
		s.uses.writeLoop(run, s.cfg.Diagnostics, func(ctx context.Context, id string) error {
			if err := s.ledger.sync(ctx); err != nil {
				return err
			}
			return s.recordUse(ctx, id, time.Now())
		})
	})
	if s.cfg.GatewayPrincipal == "" {
		return nil
	}
	return s.followGateways(run)
}

// Close stops the Service. Commands in flight fail. If one of them is in the ledger already,
// another replica or the next start completes it.
func (s *Service) Close() error {
	s.closeOnce.Do(func() {
		s.stop()
		s.client.Close()
		s.wg.Wait()
		s.ledger.closeCheckpoints()
	})
	return nil
}

// Claim makes the subject the owner of the topic. When it returns nil, the topic exists and the
// subject may use it on every broker.
//
// Claiming an owned topic again succeeds. It repairs what is missing, and Created is not set in
// the answer.
//
// Errors are a [*diaspora.TopicError] with one of these causes:
//
//   - [diaspora.ErrInvalid].
//   - [diaspora.ErrConflict] if somebody else owns the name, if the subject owns it with other
//     settings than req names, if it is being released, or if the cluster has a topic of that name
//     that was never claimed.
//   - [diaspora.ErrPermission] if a limit is reached, or the subject is blocked.
//   - [diaspora.ErrUnavailable] if the cluster does not answer. The claim may have been made;
//     claiming again tells.
func (s *Service) Claim(ctx context.Context, subject string, req diaspora.ClaimRequest) (diaspora.Topic, error) {
	r, err := s.claimRecord(subject, req)
	if err != nil {
		return diaspora.Topic{}, topicError("claim", req.Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	topic, err := s.claim(ctx, r, req)
	if err != nil {
		s.reconcileSoon()
		return diaspora.Topic{}, topicError("claim", req.Name, err)
	}
	return topic, nil
}

// claimRecord returns the ledger record for a claim.
func (s *Service) claimRecord(subject string, req diaspora.ClaimRequest) (record, error) {
	r := newRecord(opClaim, subject)
	r.Topic, r.Description, r.Limit = req.Name, req.Description, s.cfg.Limits.Topics
	r.Partitions, r.RetentionMS = req.Partitions, req.RetentionMS
	if r.Partitions == 0 {
		r.Partitions = s.cfg.DefaultPartitions
	}
	if r.RetentionMS == 0 {
		r.RetentionMS = max(s.cfg.DefaultRetention.Milliseconds(), -1)
	}
	if err := diaspora.ValidTopic(req.Name); err != nil {
		return r, errors.Unwrap(err)
	}
	err := cmp.Or(checkSubject(subject), checkDescription(r.Description))
	switch {
	case r.Partitions < 1 || r.Partitions > s.cfg.MaxPartitions:
		err = fmt.Errorf("a topic has 1 to %d partitions", s.cfg.MaxPartitions)
	default:
		err = cmp.Or(err, s.checkRetention(r.RetentionMS))
	}
	return r, invalid(err)
}

// checkRetention checks how long a topic is to keep its events against the operator's limit.
func (s *Service) checkRetention(ms int64) error {
	switch limit := s.cfg.MaxRetention.Milliseconds(); {
	case !validRetention(ms):
		return errors.New("events are kept for 1 ms to 100 years, or forever with -1")
	case limit > 0 && (ms < 0 || ms > limit):
		return fmt.Errorf("this fabric keeps events %s at most (max-retention)", FormatRetention(limit))
	}
	return nil
}

// Published returns the limits that clients should know.
func (s *Service) Published() *diaspora.DiscoveryLimits {
	return &diaspora.DiscoveryLimits{
		Topics:             s.cfg.Limits.Topics,
		Partitions:         s.cfg.Limits.Partitions,
		TopicPartitions:    s.cfg.MaxPartitions,
		Keys:               s.cfg.Limits.Keys,
		Shares:             s.cfg.Limits.Grants,
		DefaultRetentionMS: max(s.cfg.DefaultRetention.Milliseconds(), -1),
		MaxRetentionMS:     s.cfg.MaxRetention.Milliseconds(),
		Compaction:         s.cfg.Compaction,
		RestorableMS:       restorable.Milliseconds(),
	}
}

func (s *Service) claim(ctx context.Context, r record, req diaspora.ClaimRequest) (diaspora.Topic, error) {
	err := s.mayClaim(ctx, r)
	if err == nil {
		err = s.ledger.append(ctx, r)
	}
	if err != nil && !errors.Is(err, errAlreadyYours) {
		if errors.Is(err, errTaken) {
			return diaspora.Topic{}, &diaspora.Error{
				Condition: diaspora.ErrConflict, Reason: err.Error(), Hint: "choose another name, or ask its owner to share it with you",
			}
		}
		if errors.Is(err, errRetired) {
			return diaspora.Topic{}, s.retired(r.By, r.Topic)
		}
		return diaspora.Topic{}, s.refusal(err)
	}
	created := err == nil
	t, err := s.reconcileTopic(ctx, r.Topic, created)
	switch {
	case err != nil:
		return diaspora.Topic{}, err
	case t.phase != claimed || t.owner != r.By:
		return diaspora.Topic{}, fmt.Errorf("%w: the topic was released at the same time; claim it again", diaspora.ErrUnavailable)
	}
	if !created {
		if err := t.checkSettings(req); err != nil {
			return diaspora.Topic{}, err
		}
	}
	var answer diaspora.Topic
	s.ledger.read(func(st *state) { answer = st.describe(r.Topic, t, r.By, time.Now()) })
	answer.Created = created
	return answer, nil
}

// checkSettings fails if a claim of a topic that the caller owns already names settings that the
// topic does not have. Settings that the claim does not name may have any value.
func (t topic) checkSettings(req diaspora.ClaimRequest) error {
	var other []string
	if req.Partitions != 0 && req.Partitions != t.partitions {
		noun := "partitions"
		if t.partitions == 1 {
			noun = "partition"
		}
		other = append(other, fmt.Sprintf("%d %s rather than %d", t.partitions, noun, req.Partitions))
	}
	if req.RetentionMS != 0 && req.RetentionMS != t.retentionMS {
		other = append(other, fmt.Sprintf("events kept %s rather than %s", FormatRetention(t.retentionMS), FormatRetention(req.RetentionMS)))
	}
	if req.Description != "" && req.Description != t.description {
		other = append(other, "another description")
	}
	if other == nil {
		return nil
	}
	return fmt.Errorf(`%w: %w, with other settings: %s; a claim does not change them, but "diaspora topic set %s" does`,
		diaspora.ErrConflict, errAlreadyYours, strings.Join(other, ", "), req.Name)
}

// FormatRetention returns how long a topic with this retention keeps its events, in words that
// follow "kept": "for 7 days".
func FormatRetention(ms int64) string {
	if ms < 0 {
		return "forever"
	}
	d := time.Duration(ms) * time.Millisecond
	for _, unit := range []struct {
		d    time.Duration
		noun string
	}{{24 * time.Hour, "day"}, {time.Hour, "hour"}, {time.Minute, "minute"}, {time.Second, "second"}} {
		if n := d / unit.d; n == 1 && d%unit.d == 0 {
			return "for 1 " + unit.noun
		} else if n > 0 && d%unit.d == 0 {
			return fmt.Sprintf("for %d %ss", n, unit.noun)
		}
	}
	return "for " + d.String()
}

// mayClaim returns why a claim would have no effect, according to the ledger and the cluster as
// they are now. It keeps useless claims out of the ledger. If something changes before the claim is
// in the ledger, the claim's position there decides.
func (s *Service) mayClaim(ctx context.Context, r record) error {
	spec := s.topicSpec(r.Topic, topic{partitions: r.Partitions, retentionMS: r.RetentionMS})
	checked := make(chan error, 1)
	go func() { checked <- s.cluster.CheckTopic(ctx, spec) }() // while the ledger is read
	refused := s.ledger.mayApply(ctx, r)
	err := <-checked
	if refused != nil {
		return refused
	}
	foreign := errors.Is(err, kerr.TopicAlreadyExists) || errors.Is(err, kerr.InvalidTopicException)
	if !foreign {
		return clusterError(err)
	}
	// Another replica may have just created the topic for a claim, so look at the ledger again.
	if err := s.ledger.mayApply(ctx, r); err != nil {
		return err
	}
	if cleared, err := s.clearLeftover(ctx, r); cleared || err != nil {
		return err
	}
	return fmt.Errorf("%w: the cluster already has a topic of this name, which was not claimed here", diaspora.ErrConflict)
}

// clearLeftover deletes a topic that is in the way of a claim, if a replica left it behind: it was
// slow, created the topic after its claim had ended, and died. Two facts show that the topic
// belongs to nobody: the name was claimed before, and no record was ever written to the topic.
func (s *Service) clearLeftover(ctx context.Context, r record) (cleared bool, err error) {
	t, known := s.ledger.lookup(r.Topic)
	if !known {
		return false, nil
	}
	info, exists, err := s.cluster.Topic(ctx, r.Topic)
	if err != nil || !exists {
		return !exists, clusterError(err)
	}
	if !info.Led { // without a leader, nobody can tell whether it is empty
		return false, fmt.Errorf("%w: the cluster has a topic of this name, and one of its partitions has no leader", diaspora.ErrUnavailable)
	}
	for partition := range info.Partitions {
		end, err := s.cluster.EndOffset(ctx, r.Topic, int32(partition))
		if err != nil || end > 0 {
			return false, clusterError(err)
		}
	}
	if err := s.appendClear(ctx, r.Topic, r.By, t); err != nil {
		return false, err
	}
	_, err = s.reconcileTopic(ctx, r.Topic, false)
	return err == nil, err
}

// Release ends the subject's claim of the topic and deletes its events. After it returns nil, any
// subject may claim the name. Errors are a [*diaspora.TopicError] with [diaspora.ErrNotFound],
// [diaspora.ErrPermission] if somebody else owns the topic, or [diaspora.ErrUnavailable]. After the
// last one, releasing again tells whether it was released.
func (s *Service) Release(ctx context.Context, subject, name string) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	t, err := s.owned(ctx, subject, name)
	if err == nil && t.phase != releasing {
		r := newRecord(opRelease, subject)
		r.Topic, r.Claim = name, &t.claimOffset
		err = s.ledger.append(ctx, r)
		if errors.Is(err, errStale) || errors.Is(err, errReleasing) || errors.Is(err, errNotClaimed) {
			err = nil // another request has released it
		}
		if errors.Is(err, errTaken) {
			err = fmt.Errorf("%w: it belongs to somebody else now", diaspora.ErrPermission)
		}
	}
	if err == nil {
		_, err = s.reconcileTopic(ctx, name, false)
		if err != nil {
			s.reconcileSoon()
		}
	}
	s.reconcileIfUnknown(err)
	return topicError("release", name, err)
}

// owned returns what the ledger says now about a topic of the subject.
func (s *Service) owned(ctx context.Context, subject, name string) (topic, error) {
	if err := diaspora.ValidTopic(name); err != nil {
		return topic{}, errors.Unwrap(err)
	}
	if err := s.ledger.sync(ctx); err != nil {
		return topic{}, err
	}
	switch t := s.ledger.topic(name); {
	case t.phase == free:
		return topic{}, fmt.Errorf("%w: nobody has claimed it", diaspora.ErrNotFound)
	case t.owner != subject:
		return topic{}, fmt.Errorf("%w: it belongs to somebody else", diaspora.ErrPermission)
	default:
		return t, nil
	}
}

// Topic returns a topic that the subject owns or has rights on. Operators get any topic, because they
// may have to block its owner. Its errors are those of Release.
func (s *Service) Topic(ctx context.Context, subject, name string) (api diaspora.Topic, err error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	err = s.visible(ctx, subject, name, func(st *state, t topic, now time.Time) { api = st.describe(name, t, subject, now) })
	return api, topicError("show", name, err)
}

// Topics returns the topics that the subject owns, that are shared with it, or that are public, each
// sorted by name.
func (s *Service) Topics(ctx context.Context, subject string) (list diaspora.TopicList, err error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	if err := s.ledger.sync(ctx); err != nil {
		return list, fmt.Errorf("list topics: %w", err)
	}
	list = diaspora.TopicList{Topics: []diaspora.Topic{}}
	s.ledger.read(func(st *state) {
		now := time.Now()
		for name, t := range st.topics {
			if t.owner == subject && (t.phase == claimed || t.phase == retired) {
				list.Topics = append(list.Topics, st.describe(name, t, subject, now))
			}
		}
		shared := st.sharedTopics(subject)
		for name := range shared {
			if t := st.topics[name]; t.phase == claimed && t.owner != subject && st.rightsOf(subject, name, now) != 0 {
				list.Shared = append(list.Shared, st.describe(name, t, subject, now))
			}
		}
		for name := range st.sharedWith[publicGrantee] {
			_, also := shared[name]
			if t := st.topics[name]; t.phase == claimed && t.owner != subject && !also {
				list.Public = append(list.Public, st.describe(name, t, subject, now))
			}
		}
		for name, to := range st.offers {
			if to == subject {
				list.Offered = append(list.Offered, st.describe(name, st.topics[name], subject, now))
			}
		}
	})
	for _, topics := range [][]diaspora.Topic{list.Topics, list.Shared, list.Public, list.Offered} {
		slices.SortFunc(topics, func(a, b diaspora.Topic) int { return strings.Compare(a.Name, b.Name) })
	}
	return list, nil
}

// Stats describes the state of a Service.
type Stats struct {
	Topics  int   // topics that are claimed or being released
	Keys    int   // access keys that have not ended
	Records int64 // of the ledger that were read
	Skipped int   // of those, the malformed ones
}

// Stats returns a snapshot.
func (s *Service) Stats() Stats {
	l := s.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	stats := Stats{Records: l.next, Skipped: l.skipped}
	for _, t := range l.state.topics {
		if t.phase != free {
			stats.Topics++
		}
	}
	for _, ids := range l.state.keysOf {
		stats.Keys += len(ids)
	}
	return stats
}

func newRecord(op, by string) record {
	return record{Version: versionOf(op), Op: op, ID: uuid.NewString(), Time: time.Now().UTC(), By: by}
}

// asAPI returns the topic in the form of the API.
func (t topic) asAPI(name string) diaspora.Topic {
	api := diaspora.Topic{
		Name:        name,
		Owner:       t.owner,
		Partitions:  t.partitions,
		RetentionMS: t.retentionMS,
		MaxBytes:    t.maxBytes,
		Compact:     t.compact,
		Description: t.description,
		Claimed:     t.claimed,
	}
	if t.phase == retired {
		api.Released = time.Unix(t.deleteAt, 0).UTC()
	}
	return api
}

// topicError wraps err in a [*diaspora.TopicError]. It returns nil if err is nil.
func topicError(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &diaspora.TopicError{Op: op, Topic: truncate(name), Err: err}
}

// truncate shortens a name that a client sent, for use in a message.
func truncate(name string) string {
	if len(name) > 64 {
		return name[:64] + "…"
	}
	return name
}

// invalid wraps err as a [diaspora.ErrInvalid]. It returns nil if err is nil.
func invalid(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", diaspora.ErrInvalid, err)
}

// clusterError describes an error of the cluster with the conditions of package diaspora. An outage
// becomes [diaspora.ErrUnavailable], and so does an exceeded deadline of the caller. All other
// errors are returned unchanged, because only an operator or a developer can fix them.
func clusterError(err error) error {
	condition, reason := kafka.Explain(err)
	switch {
	case errors.Is(err, kgo.ErrClientClosed):
		return fmt.Errorf("%w: the service is stopping", diaspora.ErrUnavailable)
	case errors.Is(err, kerr.InvalidReplicationFactor): // too few brokers are up
		return fmt.Errorf("%w: %s", diaspora.ErrUnavailable, reason)
	case condition == kafka.Unavailable && !errors.Is(err, diaspora.ErrUnavailable):
		return fmt.Errorf("%w: %s", diaspora.ErrUnavailable, reason)
	}
	return err
}

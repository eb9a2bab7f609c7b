// Package claims decides who owns which topic, and makes the cluster agree.
//
// A [Service] takes commands. It appends them to the ledger, a topic of the
// cluster, and the place of a command in the ledger decides whether it takes
// effect: of two claims of one name the first wins, however many replicas of the
// service run. All replicas read the whole ledger and so come to the same state.
// The cluster's topics and ACLs are a view of that state, which each replica
// makes true after a command and repairs when it is not ([Service.Reconcile]).
//
// # The ledger
//
// The ledger is the topic _diaspora_ledger: one partition, acks=all, kept for
// ever. Each record is a JSON object of at most 8 KiB:
//
//	v             the lowest version of this format whose readers understand the record
//	op            what is to happen, see below
//	id            a UUID, by which the writer recognizes its record
//	time          when it was written, by the writer's clock (RFC 3339)
//	by            the subject on whose behalf
//	topic, group, key  on what
//
// The operations of version 1, and when one takes no effect:
//
//	claim         by gets the topic, with partitions, retention_ms (-1: for
//	              ever) and description. Not if the topic is claimed or being
//	              released, or if by owns limit topics.
//	release       the claim at the offset "claim" ends; by must be its owner.
//	              The owner's ACLs, and then the topic, are deleted.
//	released      they were deleted, and the name is free.
//	clear         the name is free since the claim at the offset "claim" ended,
//	              but the cluster has a topic left of it: from here on it is
//	              being released, until a "released" for this record's offset.
//	claim_group   by gets the consumer group. No longer written: groups are
//	              private to a subject now. Not if somebody has it, or if by has
//	              limit groups.
//
// Those of version 2 are about access keys:
//
//	issue_key     by gets the access key, with name, hash (the SHA-256 of its
//	              secret), topics (none: all of by's), read, write and expires
//	              (none: never). Not if the ID is in use, or was until 90 days ago, if by has a key of
//	              that name, or if by has limit keys.
//	revoke_key    the key ends; by must be its owner.
//	key_expired   likewise, because its time has come by the record's time.
//	key_used      somebody signed in with it. Once for a key and a day, in UTC.
//
// Those of version 3 are what operators do:
//
//	block         subject is shut out, for the reason why: neither tokens nor access
//	              keys of theirs are accepted, and no claim or key takes effect. Not
//	              if subject is blocked already.
//	unblock       subject may come back. Not if subject is not blocked.
//
// The key of a record is "topic/NAME", "group/NAME", "key/ID" or "subject/SUBJECT". Readers ignore
// fields that they do not know, skip (and count) what is no record, and stop
// deciding at a record of a higher version than theirs: it may mean something that
// they would get wrong. That is why access keys are not of version 1, although
// nobody's claim hangs on them: a reader of version 1 takes the ACLs of keys for
// ones that somebody slipped in, and removes them. So the first key that is
// issued stops replicas that are older than keys, until they are upgraded.
//
// # Access keys
//
// A key that may do all that its owner may signs in to the broker as its owner.
// Every other key is a principal of its own, User:<owner>.<key>, with ACLs on the
// owner's topics that come and go with topics and keys ([KeyPrincipal]).
package claims

import (
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

// Config says how a [Service] works.
type Config struct {
	// Admin are the options of a client of the cluster that may do
	// everything. Required.
	Admin []kgo.Opt

	// GatewayPrincipal is what the broker takes gateways for that have a [Follower]
	// instead of a Service, as User:<name>. It is allowed what they need. Empty if
	// there are none.
	GatewayPrincipal string

	// DefaultPartitions and MaxPartitions are for topics whose claims do not
	// say how many, and for those that ask for many. Default: 1 and 100.
	DefaultPartitions, MaxPartitions int

	// DefaultRetention is how long events of a topic are kept whose claim does
	// not say it; negative is for ever. Default: 7 days.
	DefaultRetention time.Duration

	// ReplicationFactor is that of new topics; from 3 on, their
	// min.insync.replicas is 2. Default: that of the ledger, which is created
	// with 3, or with 1 in a cluster of one broker.
	ReplicationFactor int

	// Limits bound what one subject can have.
	Limits Limits

	// Admission says who may use the fabric, and who operates it.
	Admission Admission

	// Dir is where checkpoints of the ledger are kept, so that the next start reads only
	// what is newer. It is made when missing. Several processes may have the same. Empty
	// keeps none.
	Dir string

	// KeyRevoked is called when a key that is a principal of its own was revoked, and before its rights
	// are taken from it: a client that loses its rights on an open connection takes the
	// error for a matter of rights. Nil does nothing.
	KeyRevoked func(ctx context.Context, principal string)

	// ReconcileInterval is how often the cluster is compared with the ledger.
	// Default: 1 minute.
	ReconcileInterval time.Duration

	// Diagnostics receives the Service's own messages. Nil discards them.
	Diagnostics *slog.Logger
}

func (cfg Config) withDefaults() (Config, error) {
	setDefault(&cfg.DefaultPartitions, 1)
	setDefault(&cfg.MaxPartitions, 100)
	setDefault(&cfg.DefaultRetention, 7*24*time.Hour)
	cfg.Limits.setDefaults()
	setDefault(&cfg.ReconcileInterval, time.Minute)
	setDefault(&cfg.Diagnostics, slog.New(slog.DiscardHandler))
	if err := cfg.Admission.Validate(); err != nil {
		return cfg, fmt.Errorf("claims: %w", err)
	}
	switch {
	case cfg.DefaultPartitions < 1 || cfg.DefaultPartitions > cfg.MaxPartitions:
		return cfg, fmt.Errorf("claims: %d default partitions, and at most %d are allowed", cfg.DefaultPartitions, cfg.MaxPartitions)
	}
	return cfg, nil
}

// commandTimeout bounds a command whose caller sets no bound, or a later one.
const commandTimeout = 15 * time.Second

// Service decides who owns what. Its methods may be called concurrently, and
// other Services over the same cluster may be at work.
type Service struct {
	ledgerReader
	cfg     Config
	client  *kgo.Client
	cluster *kafka.Admin

	stop      context.CancelFunc // ends the goroutines
	wg        sync.WaitGroup     // waits for them
	closeOnce sync.Once
	kick      chan struct{} // asks for a reconciliation soon
}

// Open reads the ledger, which it creates if there is none, makes the cluster
// agree with it, and returns a Service that keeps both so. ctx bounds the opening
// only.
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
	s := &Service{cfg: cfg, client: client, cluster: kafka.NewAdmin(client), stop: stop, kick: make(chan struct{}, 1)}
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
	setDefault(&s.cfg.ReplicationFactor, l.replicas)
	s.wg.Go(func() { s.ledger.follow(run) })
	err = again(ctx, func() (bool, error) {
		err := s.ledger.sync(ctx)
		return err == nil, err
	})
	if err != nil {
		return err
	}
	if err := s.Reconcile(ctx); err != nil && ctx.Err() != nil {
		return err
	} else if err != nil {
		s.cfg.Diagnostics.Error("the cluster does not agree with the ledger; trying again", "err", err)
		s.reconcileSoon()
	}
	s.wg.Go(func() { s.keepReconciled(run) })
	s.wg.Go(func() { s.ledger.keepSaved(run) })
	s.wg.Go(func() {
		s.uses.keep(run, s.cfg.Diagnostics, func(ctx context.Context, id string) error {
			if err := s.ledger.sync(ctx); err != nil {
				return err
			}
			return s.noteUse(ctx, id, time.Now())
		})
	})
	if s.cfg.GatewayPrincipal == "" {
		return nil
	}
	return s.followGateways(run)
}

// Close stops the Service. Commands in flight fail; what they began, another
// replica or the next start completes.
func (s *Service) Close() error {
	s.closeOnce.Do(func() {
		s.stop()
		s.client.Close()
		s.wg.Wait()
		s.ledger.closeCheckpoints()
	})
	return nil
}

// Claim makes the topic the subject's, and returns once it works: it exists, and
// the subject may use it on every broker. Claiming again is no error; it repairs
// what is missing, and the answer has Created unset. Errors are a
// [*diaspora.TopicError] with [diaspora.ErrInvalid]; [diaspora.ErrConflict] if
// somebody else has the name, if the subject has it with other settings than req
// names, if it is being released, or if the cluster has an
// unclaimed topic of that name; [diaspora.ErrPermission] if a limit is
// reached; [diaspora.ErrUnavailable] if the cluster does not answer, in which case
// the claim may have been made and claiming again tells.
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

// claimRecord returns the record that asks for what req asks for.
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
	switch {
	case subjectFault(subject) != "":
		return r, invalid(subjectFault(subject))
	case r.Partitions < 1 || r.Partitions > s.cfg.MaxPartitions:
		return r, invalid(fmt.Sprintf("a topic has 1 to %d partitions", s.cfg.MaxPartitions))
	case !validRetention(r.RetentionMS):
		return r, invalid("events are kept for 1 ms to 100 years, or for ever with -1")
	case descriptionFault(r.Description) != "":
		return r, invalid(descriptionFault(r.Description))
	}
	return r, nil
}

func (s *Service) claim(ctx context.Context, r record, req diaspora.ClaimRequest) (diaspora.Topic, error) {
	err := s.mayClaim(ctx, r)
	if err == nil {
		err = s.ledger.append(ctx, r)
	}
	if err != nil && !errors.Is(err, errYours) {
		if errors.Is(err, errTaken) {
			return diaspora.Topic{}, &diaspora.Error{
				Condition: diaspora.ErrConflict, Reason: err.Error(), Hint: "choose another name, or ask its owner for an access key",
			}
		}
		return diaspora.Topic{}, s.refusal(err)
	}
	created := err == nil
	t, err := s.settleTopic(ctx, r.Topic)
	switch {
	case err != nil:
		return diaspora.Topic{}, err
	case t.phase != claimed || t.owner != r.By:
		return diaspora.Topic{}, fmt.Errorf("%w: it was released while it was being claimed; claim it again", diaspora.ErrUnavailable)
	}
	if !created {
		if err := t.otherSettings(req); err != nil {
			return diaspora.Topic{}, err
		}
	}
	answer := t.answer(r.Topic)
	answer.Created = created
	return answer, nil
}

// otherSettings refuses a claim of a topic that is the caller's already if it asks for settings
// that the topic does not have. What it does not ask for may be as it is.
func (t topic) otherSettings(req diaspora.ClaimRequest) error {
	var other []string
	keep := "" // how to have the new settings and keep the events
	if req.Partitions != 0 && req.Partitions != t.partitions {
		noun := "partitions"
		if t.partitions == 1 {
			noun = "partition"
		}
		other = append(other, fmt.Sprintf("%d %s rather than %d", t.partitions, noun, req.Partitions))
	}
	if req.RetentionMS != 0 && req.RetentionMS != t.retentionMS {
		other = append(other, fmt.Sprintf("events kept %s rather than %s", Kept(t.retentionMS), Kept(req.RetentionMS)))
		keep = "; to keep them, ask an operator to change retention.ms"
	}
	if req.Description != "" && req.Description != t.description {
		other = append(other, "another description")
	}
	if other == nil {
		return nil
	}
	return fmt.Errorf(`%w: %w, with other settings: %s; a claim does not change them: "diaspora topic release %s" deletes the topic and its events, and then it can be claimed with the new settings%s`,
		diaspora.ErrConflict, errYours, strings.Join(other, ", "), req.Name, keep)
}

// Kept returns how long a topic with this retention keeps its events, in words that follow
// "kept": "for 7 days".
func Kept(ms int64) string {
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

// mayClaim says what would make a claim futile, as the ledger and the cluster are
// now, so that the ledger is spared claims that come to nothing. What changes
// before the claim is in the ledger, the claim's place there decides.
func (s *Service) mayClaim(ctx context.Context, r record) error {
	if err := s.ledger.mayApply(ctx, r); err != nil {
		return err
	}
	spec := s.topicSpec(r.Topic, topic{partitions: r.Partitions, retentionMS: r.RetentionMS})
	err := s.cluster.CheckTopic(ctx, spec)
	foreign := errors.Is(err, kerr.TopicAlreadyExists) || errors.Is(err, kerr.InvalidTopicException)
	if !foreign {
		return clusterError(err)
	}
	// It may be that of a claim which another replica has just carried out.
	if err := s.ledger.mayApply(ctx, r); err != nil {
		return err
	}
	if cleared, err := s.clearLeftover(ctx, r); cleared || err != nil {
		return err
	}
	return fmt.Errorf("%w: the cluster has a topic of this name that nobody claimed here", diaspora.ErrConflict)
}

// clearLeftover deletes the topic that is in the way of a claim if it is what a
// replica left behind that died while it was late, and not somebody's: the name
// was claimed before, and nothing was ever written to the topic.
func (s *Service) clearLeftover(ctx context.Context, r record) (cleared bool, err error) {
	t, known := s.ledger.lookup(r.Topic)
	if !known {
		return false, nil
	}
	info, exists, err := s.cluster.Topic(ctx, r.Topic)
	if err != nil || !exists {
		return !exists, clusterError(err)
	}
	if !info.Led { // nobody can tell what it holds
		return false, fmt.Errorf("%w: the cluster has a topic of this name, and a partition of it has no leader now", diaspora.ErrUnavailable)
	}
	for partition := range info.Partitions {
		end, err := s.cluster.EndOffset(ctx, r.Topic, int32(partition))
		if err != nil || end > 0 {
			return false, clusterError(err)
		}
	}
	if err := s.clear(ctx, r.Topic, r.By, t); err != nil {
		return false, err
	}
	_, err = s.settleTopic(ctx, r.Topic)
	return err == nil, err
}

// Release ends the subject's claim of the topic and deletes its events. Once it
// returns nil, anybody may claim the name. Errors are a [*diaspora.TopicError]
// with [diaspora.ErrNotFound], [diaspora.ErrPermission] if it is somebody
// else's, or [diaspora.ErrUnavailable], in which case releasing again tells.
func (s *Service) Release(ctx context.Context, subject, name string) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	t, err := s.owned(ctx, subject, name)
	if err == nil && t.phase == claimed {
		r := newRecord(opRelease, subject)
		r.Topic, r.Claim = name, &t.place
		err = s.ledger.append(ctx, r)
		if errors.Is(err, errStale) || errors.Is(err, errReleasing) || errors.Is(err, errNotClaimed) {
			err = nil // somebody was faster
		}
	}
	if err == nil {
		_, err = s.settleTopic(ctx, name)
		if err != nil {
			s.reconcileSoon()
		}
	}
	return topicError("release", name, err)
}

// owned returns what the ledger says now about a topic of the subject's.
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

// Topic returns a topic of the subject, or any topic for an operator, who may have to block
// its owner. Errors are as those of Release.
func (s *Service) Topic(ctx context.Context, subject, name string) (diaspora.Topic, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	t, err := s.owned(ctx, subject, name)
	if errors.Is(err, diaspora.ErrPermission) && s.cfg.Admission.operates(subject) {
		t, err = s.ledger.topic(name), nil
	}
	if err == nil && t.phase == releasing {
		err = fmt.Errorf("%w: it is being released", diaspora.ErrNotFound)
	}
	if err != nil {
		return diaspora.Topic{}, topicError("show", name, err)
	}
	return t.answer(name), nil
}

// Topics returns the subject's topics, by name.
func (s *Service) Topics(ctx context.Context, subject string) ([]diaspora.Topic, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	if err := s.ledger.sync(ctx); err != nil {
		return nil, fmt.Errorf("list topics: %w", err)
	}
	topics := []diaspora.Topic{}
	s.ledger.read(func(st *state) {
		for name, t := range st.topics {
			if t.phase == claimed && t.owner == subject {
				topics = append(topics, t.answer(name))
			}
		}
	})
	slices.SortFunc(topics, func(a, b diaspora.Topic) int { return strings.Compare(a.Name, b.Name) })
	return topics, nil
}

// Stats is a snapshot of a Service.
type Stats struct {
	Topics  int   // names that are claimed now
	Keys    int   // access keys that have not ended
	Records int64 // of the ledger, read so far
	Skipped int   // of those, the ones that made no sense
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

// answer returns the topic as its owner sees it.
func (t topic) answer(name string) diaspora.Topic {
	return diaspora.Topic{
		Name:        name,
		Owner:       t.owner,
		Partitions:  t.partitions,
		RetentionMS: t.retentionMS,
		Description: t.description,
		Claimed:     t.claimed,
	}
}

// topicError returns err as an error of an operation on a topic, and nil as nil.
func topicError(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &diaspora.TopicError{Op: op, Topic: clip(name), Err: err}
}

// clip keeps a name that somebody sent us from filling pages.
func clip(name string) string {
	if len(name) > 64 {
		return name[:64] + "…"
	}
	return name
}

func invalid(reason string) error { return fmt.Errorf("%w: %s", diaspora.ErrInvalid, reason) }

// clusterError says in the words of package diaspora what went wrong at the
// cluster. An outage is [diaspora.ErrUnavailable], and so is a caller's deadline.
// Everything else is ours or the operator's to mend, and not the user's.
func clusterError(err error) error {
	condition, reason := kafka.Explain(err)
	switch {
	case errors.Is(err, kgo.ErrClientClosed):
		return fmt.Errorf("%w: the service is stopping", diaspora.ErrUnavailable)
	case errors.Is(err, kerr.InvalidReplicationFactor): // brokers are down
		return fmt.Errorf("%w: %s", diaspora.ErrUnavailable, reason)
	case condition == kafka.Unavailable && !errors.Is(err, diaspora.ErrUnavailable):
		return fmt.Errorf("%w: %s", diaspora.ErrUnavailable, reason)
	}
	return err
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

package diaspora

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// These tests have the broker answer with an error for as long as it takes to see how the library
// reacts, and then stop, to check that nothing is lost. The tables of docs/errors.md describe the
// same reactions.

// codeTopics creates a topic for each of the codes, all in one cluster.
func codeTopics(t *testing.T, codes []*kerr.Error) (*kfake.Cluster, Config) {
	names := []string{"other"}
	for _, code := range codes {
		names = append(names, codeTopic(code))
	}
	return newCluster(t, kfake.SeedTopics(1, names...))
}

func codeTopic(code *kerr.Error) string { return strings.ToLower(code.Message) }

// allAtOnce runs the tests of all codes at the same time, because they mostly wait.
func allAtOnce(t *testing.T, codes []*kerr.Error, do func(t *testing.T, code *kerr.Error)) {
	var all sync.WaitGroup
	for _, code := range codes {
		all.Go(func() { t.Run(code.Message, func(t *testing.T) { do(t, code) }) })
	}
	all.Wait()
}

var producing = map[kafka.Verdict][]*kerr.Error{
	kafka.Retry: {
		kerr.UnknownServerError, kerr.LeaderNotAvailable, kerr.NotLeaderForPartition, kerr.RequestTimedOut,
		kerr.BrokerNotAvailable, kerr.ReplicaNotAvailable, kerr.NetworkException, kerr.CoordinatorLoadInProgress,
		kerr.CoordinatorNotAvailable, kerr.NotCoordinator, kerr.NotEnoughReplicas, kerr.NotEnoughReplicasAfterAppend,
		kerr.OutOfOrderSequenceNumber, kerr.InvalidProducerEpoch, kerr.InvalidTxnState, kerr.InvalidProducerIDMapping,
		kerr.ConcurrentTransactions, kerr.KafkaStorageError, kerr.LogDirNotFound, kerr.UnknownProducerID,
		kerr.FencedLeaderEpoch, kerr.UnknownLeaderEpoch, kerr.StaleBrokerEpoch, kerr.ThrottlingQuotaExceeded,
		kerr.ProducerFenced, kerr.NewLeaderElected, kerr.TransactionAbortable, kerr.InconsistentTopicID,
	},
	kafka.HoldTopic: {
		kerr.UnknownTopicOrPartition, kerr.UnknownTopicID, kerr.InvalidTopicException,
		kerr.TopicAuthorizationFailed, kerr.ClusterAuthorizationFailed, kerr.InvalidRequiredAcks, kerr.InvalidConfig, kerr.InvalidRequest,
		kerr.UnsupportedForMessageFormat, kerr.UnsupportedCompressionType,
	},
	kafka.HoldAll: {
		kerr.TransactionalIDAuthorizationFailed, kerr.SaslAuthenticationFailed,
		kerr.UnsupportedSaslMechanism, kerr.IllegalSaslState, kerr.SecurityDisabled, kerr.UnsupportedVersion,
	},
	kafka.Quarantine: {
		kerr.CorruptMessage, kerr.MessageTooLarge, kerr.RecordListTooLarge, kerr.InvalidTimestamp, kerr.InvalidRecord,
		kerr.PolicyViolation,
	},
}

// TestProduceErrors fails when one of the 50 errors in the response to a produce request is not
// retried, held or quarantined as the table says.
func TestProduceErrors(t *testing.T) {
	t.Parallel()
	testSending(t, kmsg.Produce, producing)
}

// TestMetadataErrors does the same with the response to a metadata request.
func TestMetadataErrors(t *testing.T) {
	t.Parallel()
	testSending(t, kmsg.Metadata, map[kafka.Verdict][]*kerr.Error{
		kafka.Retry: {
			kerr.UnknownServerError, kerr.LeaderNotAvailable, kerr.RequestTimedOut, kerr.BrokerNotAvailable,
			kerr.ReplicaNotAvailable, kerr.NetworkException, kerr.KafkaStorageError, kerr.ListenerNotFound,
		},
		kafka.HoldTopic: {
			kerr.UnknownTopicOrPartition, kerr.InvalidTopicException, kerr.TopicAuthorizationFailed, kerr.ClusterAuthorizationFailed,
			kerr.InvalidRequest,
		},
		kafka.HoldAll: {kerr.SaslAuthenticationFailed},
	})
}

func testSending(t *testing.T, request kmsg.Key, table map[kafka.Verdict][]*kerr.Error) {
	var codes []*kerr.Error
	want := map[*kerr.Error]kafka.Verdict{}
	for verdict, some := range table {
		codes = append(codes, some...)
		for _, code := range some {
			want[code] = verdict
		}
	}
	c, cfg := codeTopics(t, codes)
	allAtOnce(t, codes, func(t *testing.T, code *kerr.Error) {
		topic := codeTopic(code)
		fault := c.Fault(kfake.Fault{Keys: []kmsg.Key{request}, Topic: topic, Err: code, Count: -1})
		l := openLogger(t, withSpool(t, cfg))
		numbers(t, l, topic, 0, 10)
		eventually(t, "the verdict "+want[code].String(), func() bool { return verdictSeen(l, topic, want[code], fault.Hits()) })
		if want[code] == kafka.HoldTopic {
			logValues(t, l, "other", topic)
			eventually(t, "the event of another topic to pass", func() bool { return l.Stats().Spool.Events == 10 })
		}
		numbers(t, l, topic, 10, 20)
		fault.Remove()
		drained(t, l)
		got := readAll(t, cfg, topic)
		aside := l.Stats().Spool.Quarantined
		if want[code] == kafka.Quarantine {
			if aside == 0 || int(aside)+len(got) != 20 {
				t.Errorf("%d events were set aside and %d arrived, want 20 together", aside, len(got))
			}
			return
		}
		wantNumbers(t, got, 20)
		if aside != 0 {
			t.Errorf("%d events were set aside", aside)
		}
	})
}

// verdictSeen reports whether the Logger has acted on a topic's events as the verdict says, after
// some responses.
func verdictSeen(l *Logger, topic string, v kafka.Verdict, answers int) bool {
	stats := l.Stats().Spool
	held, isHeld := l.sink.(*spooled).shipper.Held()[topic]
	all := stats.Why != nil && (!isHeld || stats.Why.Error() != held.Err.Error()) // events of all topics are held
	switch v {
	case kafka.Quarantine:
		return stats.Quarantined > 0
	case kafka.HoldAll:
		return all && !isHeld
	case kafka.HoldTopic:
		return held.NeedsPerson && !all && stats.Held[topic] != nil
	}
	return answers >= 2 && !held.NeedsPerson && !all && stats.Quarantined == 0
}

// told maps errors to what a Consumer reports for them: nil if it retries silently.
type told map[*kerr.Error]error

func (w told) codes() []*kerr.Error { return slices.Collect(maps.Keys(w)) }

// errWords stands for an error that matches none of the conditions.
var errWords = errors.New("some words")

// TestFetchErrors fails when an error in the response to a fetch request loses a record, when a
// temporary error is reported, or when a lasting one is not reported in words.
func TestFetchErrors(t *testing.T) {
	t.Parallel()
	want := told{
		kerr.NotLeaderForPartition: nil, kerr.ReplicaNotAvailable: nil, kerr.KafkaStorageError: nil,
		kerr.FencedLeaderEpoch: nil, kerr.UnknownLeaderEpoch: nil, kerr.OffsetNotAvailable: nil,
		kerr.LeaderNotAvailable: nil, kerr.RequestTimedOut: nil, kerr.CorruptMessage: nil,
		kerr.UnknownTopicOrPartition: nil, kerr.ThrottlingQuotaExceeded: nil, kerr.NotEnoughReplicas: nil,
		kerr.UnknownServerError:         ErrUnavailable,
		kerr.TopicAuthorizationFailed:   ErrPermission,
		kerr.ClusterAuthorizationFailed: ErrPermission,
		kerr.InvalidRequest:             ErrInvalid,
		kerr.UnsupportedCompressionType: errWords,
		kerr.OffsetMovedToTieredStorage: errWords,
	}
	c, cfg := codeTopics(t, want.codes())
	allAtOnce(t, want.codes(), func(t *testing.T, code *kerr.Error) {
		topic := codeTopic(code)
		number(t, cfg, topic, 0, 3)
		consumer := openConsumer(t, cfg, ConsumerOptions{Topics: []string{topic}})
		fault := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Topic: topic, Err: code, Count: -1})
		if want[code] == nil {
			go func() {
				fault.Wait(t.Context(), 2)
				fault.Remove()
			}()
		}
		errs, logged := 0, 3
		var got []Record
		for r, err := range consumer.Records(within(t)) {
			if err == nil {
				if got = append(got, r); len(got) < logged {
					continue
				}
				if fault.Hits() >= 2 {
					break
				}
				number(t, cfg, topic, logged, logged+1) // these were fetched before the fault
				logged++
				continue
			}
			wantTold(t, err, want[code], topic)
			if errs++; errs == 2 { // it has retried
				fault.Remove()
			}
		}
		for i, r := range got {
			if string(r.Value) != fmt.Sprint(i) {
				t.Fatalf("got %s after %d errors, of %d in order", values(got), fault.Hits(), logged)
			}
		}
		if (errs > 0) != (want[code] != nil) {
			t.Errorf("told of %d errors, want %v", errs, want[code])
		}
	})
}

// wantTold checks that an error says what went wrong, and with which object.
func wantTold(t *testing.T, err, want error, on string) {
	t.Helper()
	if want != nil && want != errWords && !errors.Is(err, want) || want == errWords && hasCondition(err) {
		t.Errorf("told %v, want %v", err, want)
	}
	if !strings.Contains(err.Error(), fmt.Sprintf("%q", on)) {
		t.Errorf("told %v, which does not name %q", err, on)
	}
}

// TestCommitErrors does the same with the response to a commit of offsets. If an error is reported,
// the offsets must not count as committed.
func TestCommitErrors(t *testing.T) {
	t.Parallel()
	want := told{
		kerr.CoordinatorLoadInProgress: nil, kerr.CoordinatorNotAvailable: nil, kerr.NotCoordinator: nil,
		kerr.RequestTimedOut: nil, kerr.LeaderNotAvailable: nil, kerr.NotLeaderForPartition: nil,
		kerr.KafkaStorageError: nil, kerr.UnknownServerError: nil, kerr.UnstableOffsetCommit: nil,
		kerr.RebalanceInProgress:      ErrUnavailable, // the member rejoins first
		kerr.UnknownMemberID:          ErrUnavailable,
		kerr.IllegalGeneration:        ErrUnavailable,
		kerr.StaleMemberEpoch:         ErrUnavailable,
		kerr.FencedMemberEpoch:        ErrUnavailable,
		kerr.TopicAuthorizationFailed: ErrPermission,
		kerr.GroupAuthorizationFailed: ErrPermission,
		kerr.UnknownTopicOrPartition:  ErrNotFound,
		kerr.OffsetMetadataTooLarge:   errWords,
		kerr.InvalidCommitOffsetSize:  errWords,
		kerr.InvalidGroupID:           errWords,
		kerr.FencedInstanceID:         errWords,
		kerr.UnsupportedVersion:       errWords,
	}
	c, cfg := codeTopics(t, want.codes())
	allAtOnce(t, want.codes(), func(t *testing.T, code *kerr.Error) {
		topic, group := codeTopic(code), "group of "+codeTopic(code)
		number(t, cfg, topic, 0, 3)
		consumer := openConsumer(t, cfg, ConsumerOptions{Topics: []string{topic}, Group: group, CommitEvery: -1})
		for r, err := range consumer.Records(within(t)) {
			if err != nil {
				t.Fatal(err)
			}
			if r.Offset == 2 {
				break
			}
		}
		fault := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Group: group, Err: code, Count: -1})
		if want[code] == nil {
			go func() {
				fault.Wait(t.Context(), 2)
				fault.Remove()
			}()
		} else {
			err := consumer.Commit(within(t))
			on := group
			if code == kerr.TopicAuthorizationFailed || code == kerr.UnknownTopicOrPartition {
				on = topic
			}
			if err == nil {
				t.Fatal("Commit = nil, want an error")
			}
			wantTold(t, err, want[code], on)
			if n := fault.Hits(); n != 1 { // a rebalance waits for the commit, so it is not retried
				t.Errorf("it was told after %d attempts, want at once", n)
			}
			if got := committed(t, cfg, group, topic); got != -1 {
				t.Errorf("%d is committed, want nothing", got)
			}
			fault.Remove()
		}
		if err := consumer.Commit(within(t)); err != nil {
			t.Errorf("Commit without a fault = %v", err)
		}
		if got := committed(t, cfg, group, topic); got != 2 {
			t.Errorf("%d is committed, want 2", got)
		}
	})
}

// hasCondition reports whether a program could act on err.
func hasCondition(err error) bool {
	return slices.ContainsFunc([]error{
		ErrInvalid, ErrUnauthenticated, ErrPermission, ErrNotFound, ErrConflict, ErrUnavailable, ErrSpoolFull, ErrSpoolFailed, ErrNoProfile,
		context.Canceled, context.DeadlineExceeded,
	}, func(condition error) bool { return errors.Is(err, condition) })
}

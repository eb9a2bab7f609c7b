package kafka

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

func TestJudge(t *testing.T) {
	t.Parallel()
	want := map[Verdict][]error{
		Retry: {
			kerr.UnknownServerError, kerr.LeaderNotAvailable, kerr.NotLeaderForPartition, kerr.RequestTimedOut,
			kerr.BrokerNotAvailable, kerr.ReplicaNotAvailable, kerr.NetworkException, kerr.CoordinatorLoadInProgress,
			kerr.CoordinatorNotAvailable, kerr.NotCoordinator, kerr.NotEnoughReplicas, kerr.NotEnoughReplicasAfterAppend,
			kerr.NotController, kerr.OutOfOrderSequenceNumber, kerr.DuplicateSequenceNumber, kerr.InvalidProducerEpoch,
			kerr.InvalidTxnState, kerr.InvalidProducerIDMapping, kerr.ConcurrentTransactions, kerr.TransactionCoordinatorFenced,
			kerr.OperationNotAttempted, kerr.KafkaStorageError, kerr.LogDirNotFound, kerr.UnknownProducerID,
			kerr.ReassignmentInProgress, kerr.ListenerNotFound, kerr.FencedLeaderEpoch, kerr.UnknownLeaderEpoch,
			kerr.StaleBrokerEpoch, kerr.OffsetNotAvailable, kerr.PreferredLeaderNotAvailable, kerr.EligibleLeadersNotAvailable,
			kerr.ThrottlingQuotaExceeded, kerr.ProducerFenced, kerr.ResourceNotFound, kerr.NewLeaderElected,
			kerr.TransactionAbortable, kerr.RebootstrapRequired, kerr.UnknownControllerID, kerr.InvalidPartitions,
			io.EOF, errors.New("something else"), fmt.Errorf("token: %w", globus.ErrUnavailable),
		},
		HoldTopic: {
			kerr.UnknownTopicOrPartition, kerr.UnknownTopicID, kerr.InconsistentTopicID, kerr.InvalidTopicException,
			kerr.TopicAuthorizationFailed, kerr.ClusterAuthorizationFailed, kerr.InvalidRequiredAcks, kerr.InvalidConfig, kerr.InvalidRequest,
			kerr.UnsupportedForMessageFormat, kerr.UnsupportedCompressionType,
			fmt.Errorf("produce: %w", kerr.TopicAuthorizationFailed),
		},
		HoldAll: {
			kerr.TransactionalIDAuthorizationFailed, kerr.DelegationTokenAuthorizationFailed,
			kerr.DelegationTokenExpired, kerr.SaslAuthenticationFailed, kerr.UnsupportedSaslMechanism, kerr.IllegalSaslState,
			kerr.SecurityDisabled, kerr.UnacceptableCredential, kerr.PrincipalDeserializationFailure, kerr.UnsupportedVersion,
			fmt.Errorf("token: %w", globus.ErrLoginRequired), fmt.Errorf("token: %w", globus.ErrRefused),
		},
		Quarantine: {
			kerr.CorruptMessage, kerr.MessageTooLarge, kerr.RecordListTooLarge, kerr.InvalidTimestamp, kerr.InvalidRecord,
			kerr.PolicyViolation, fmt.Errorf("%w (uncompressed_bytes=7)", kerr.MessageTooLarge),
		},
	}
	for verdict, errs := range want {
		for _, err := range errs {
			if got := Judge(err); got != verdict {
				t.Errorf("Judge(%v) = %v, want %v", err, got, verdict)
			}
		}
	}
}

// TestVerdictsInWords checks that docs/errors.md and the table agree.
func TestVerdictsInWords(t *testing.T) {
	t.Parallel()
	doc := testkit.ReadFile(t, "../../docs/errors.md")
	_, text, _ := strings.Cut(string(doc), "## Logging with a spool")
	text, _, _ = strings.Cut(text, "\n\nAfter ") // the table ends
	rows := map[Verdict]string{}
	for line := range strings.Lines(text) {
		for verdict, begin := range map[Verdict]string{HoldTopic: "| the topic's events", HoldAll: "| all events", Quarantine: "| the event is"} {
			if strings.HasPrefix(line, begin) {
				rows[verdict] = line
			}
		}
	}
	for code, verdict := range verdicts {
		for in, row := range rows {
			if got := strings.Contains(row, "`"+code.Message+"`"); got != (in == verdict) {
				t.Errorf("%s is to %s; in the row of %s: %v", code.Message, verdict, in, got)
			}
		}
	}
	if n := strings.Count(text, "`"); n != 2*(len(verdicts)+2) { // plus the name of the table, and a command
		t.Errorf("the document names %d codes, the table %d", n/2-2, len(verdicts))
	}
}

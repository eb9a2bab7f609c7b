package kafka

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/diaspora-streams/diaspora/globus"
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
			kerr.TopicAuthorizationFailed, kerr.InvalidRequiredAcks, kerr.InvalidConfig, kerr.InvalidRequest,
			kerr.UnsupportedForMessageFormat, kerr.UnsupportedCompressionType,
			fmt.Errorf("produce: %w", kerr.TopicAuthorizationFailed),
		},
		HoldAll: {
			kerr.ClusterAuthorizationFailed, kerr.TransactionalIDAuthorizationFailed, kerr.DelegationTokenAuthorizationFailed,
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

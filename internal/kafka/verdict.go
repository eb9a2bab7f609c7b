package kafka

import (
	"errors"

	"github.com/twmb/franz-go/pkg/kerr"
)

// Verdict says what to do with an event that the cluster did not accept, for a caller that can keep
// it as long as necessary.
type Verdict int

const (
	// Retry means to send the event again soon. It is the verdict for all errors that are not in
	// the table, because a useless retry costs time, but giving up costs the event.
	Retry Verdict = iota
	// HoldTopic means to keep the events of the topic until somebody has fixed the cause, and to
	// try one of them from time to time.
	HoldTopic
	// HoldAll means to do the same for the events of all topics, because the login is refused or the
	// cluster does not support the client's version.
	HoldAll
	// Quarantine means to set the event aside, because the cluster will never accept it. It is
	// valid only for an event that was sent alone: the cluster rejects a whole batch because of one
	// event in it.
	Quarantine
)

// String returns the verdict in words, for tests and diagnostics.
func (v Verdict) String() string {
	return [...]string{"retry", "hold topic", "hold all", "quarantine"}[v]
}

// verdicts are the protocol errors that are not simply retried.
var verdicts = map[*kerr.Error]Verdict{
	// The event itself.
	kerr.CorruptMessage:     Quarantine, // also returned for an event without a key in a compacted topic
	kerr.MessageTooLarge:    Quarantine,
	kerr.RecordListTooLarge: Quarantine,
	kerr.InvalidTimestamp:   Quarantine,
	kerr.InvalidRecord:      Quarantine,
	kerr.PolicyViolation:    Quarantine,

	// The topic, or the right to write to it.
	kerr.UnknownTopicOrPartition:     HoldTopic,
	kerr.UnknownTopicID:              HoldTopic,
	kerr.InconsistentTopicID:         HoldTopic,
	kerr.InvalidTopicException:       HoldTopic,
	kerr.TopicAuthorizationFailed:    HoldTopic,
	kerr.ClusterAuthorizationFailed:  HoldTopic, // for a producer it means that there is no topic that it may write to
	kerr.InvalidRequiredAcks:         HoldTopic,
	kerr.InvalidConfig:               HoldTopic,
	kerr.InvalidRequest:              HoldTopic, // it does not say which event is the cause, if any
	kerr.UnsupportedForMessageFormat: HoldTopic,
	kerr.UnsupportedCompressionType:  HoldTopic,

	// The login, or the client's version.
	kerr.TransactionalIDAuthorizationFailed: HoldAll,
	kerr.DelegationTokenAuthorizationFailed: HoldAll,
	kerr.DelegationTokenExpired:             HoldAll,
	kerr.SaslAuthenticationFailed:           HoldAll,
	kerr.UnsupportedSaslMechanism:           HoldAll,
	kerr.IllegalSaslState:                   HoldAll,
	kerr.SecurityDisabled:                   HoldAll,
	kerr.UnacceptableCredential:             HoldAll,
	kerr.PrincipalDeserializationFailure:    HoldAll,
	kerr.UnsupportedVersion:                 HoldAll,
}

// Judge returns the verdict for an event that failed with err. err must not be nil.
func Judge(err error) Verdict {
	if code := (*kerr.Error)(nil); errors.As(err, &code) {
		return verdicts[code]
	}
	if condition, _ := Explain(err); condition == Unauthenticated {
		return HoldAll
	}
	return Retry
}

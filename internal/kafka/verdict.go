package kafka

import (
	"errors"

	"github.com/twmb/franz-go/pkg/kerr"
)

// Verdict is what is to be done with an event that the cluster did not take, by
// somebody who can keep it for as long as it takes.
type Verdict int

const (
	// Retry sends the event again in a moment. It is the verdict on whatever is
	// not in the table: to try in vain costs time, to give up costs the event.
	Retry Verdict = iota
	// HoldTopic keeps the events of the topic until somebody has mended
	// something, and tries one of them now and then.
	HoldTopic
	// HoldAll does the same with all events: who sends them is not let in.
	HoldAll
	// Quarantine sets the event aside: as it is it will never be taken. It
	// counts only of an event that was sent alone, since a batch is refused
	// whole for one event in it.
	Quarantine
)

func (v Verdict) String() string {
	return [...]string{"retry", "hold topic", "hold all", "quarantine"}[v]
}

// verdicts are those on the errors of the protocol that are not simply retried.
var verdicts = map[*kerr.Error]Verdict{
	// The event itself.
	kerr.CorruptMessage:     Quarantine, // also: without a key, for a compacted topic
	kerr.MessageTooLarge:    Quarantine,
	kerr.RecordListTooLarge: Quarantine,
	kerr.InvalidTimestamp:   Quarantine,
	kerr.InvalidRecord:      Quarantine,
	kerr.PolicyViolation:    Quarantine,

	// The topic, or who may write to it.
	kerr.UnknownTopicOrPartition:     HoldTopic,
	kerr.UnknownTopicID:              HoldTopic,
	kerr.InconsistentTopicID:         HoldTopic,
	kerr.InvalidTopicException:       HoldTopic,
	kerr.TopicAuthorizationFailed:    HoldTopic,
	kerr.ClusterAuthorizationFailed:  HoldTopic, // to a producer: there is no topic that it may write to
	kerr.InvalidRequiredAcks:         HoldTopic,
	kerr.InvalidConfig:               HoldTopic,
	kerr.InvalidRequest:              HoldTopic, // it does not say which event, if it is one
	kerr.UnsupportedForMessageFormat: HoldTopic,
	kerr.UnsupportedCompressionType:  HoldTopic,

	// Who sends, or what with.
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

// Judge returns what is to be done about an event that failed with err, which is
// not nil.
func Judge(err error) Verdict {
	if code := (*kerr.Error)(nil); errors.As(err, &code) {
		return verdicts[code]
	}
	if condition, _ := Explain(err); condition == Unauthenticated {
		return HoldAll
	}
	return Retry
}

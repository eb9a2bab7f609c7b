package kafka

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

// Condition is what an error means to the person or program that has to react to it.
type Condition int

// The conditions. They have the names of the sentinel errors of package diaspora.
const (
	Unknown         Condition = iota // not known; see the error itself
	Invalid                          // the request is wrong, so retrying cannot help
	Unauthenticated                  // the login is missing or was refused
	Permission                       // the principal lacks the right
	NotFound                         // the topic does not exist
	Conflict                         // it exists already, or belongs to somebody else
	Unavailable                      // retry later
)

// Explain returns what an error of a Kafka client means, and a description of its cause: lower
// case, no full stop, to be put after the operation and its object. For an error that it does not
// know, the description is the error's own text. Explain(nil) is Unknown and "".
func Explain(err error) (Condition, string) {
	if err == nil {
		return Unknown, ""
	}
	var code *kerr.Error
	var network *net.OpError
	var untrusted *trust.Error
	insecure, _ := trust.ExplainTLS(err)
	switch {
	case errors.As(err, &untrusted): // only a person can fix this
		return Unauthenticated, untrusted.Reason
	case errors.Is(err, globus.ErrLoginRequired), errors.Is(err, globus.ErrRefused), errors.Is(err, globus.ErrClientRefused):
		return Unauthenticated, err.Error()
	case errors.Is(err, globus.ErrUnavailable), errors.Is(err, globus.ErrMisconfigured):
		return Unavailable, err.Error()
	case errors.Is(err, ErrInsecure):
		return Invalid, err.Error()
	case errors.As(err, &code):
		return explainCode(err, code)
	case insecure != "":
		return Unknown, insecure
	case errors.As(err, &network) && network.Op == "dial" && network.Timeout():
		return Unavailable, "no broker can be reached: " + network.Error()
	case errors.Is(err, context.DeadlineExceeded):
		return Unavailable, "the cluster did not answer in time"
	case errors.Is(err, context.Canceled):
		return Unknown, err.Error()
	case errors.Is(err, kgo.ErrRecordTimeout), errors.Is(err, kgo.ErrRecordRetries):
		return Unavailable, "the cluster did not acknowledge the events in time"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return Unavailable, "the broker closed the connection; it may be stopping, unable to reach its cluster or to check logins, or expect TLS"
	}
	if network != nil {
		return Unavailable, "no broker can be reached: " + network.Error()
	}
	if kgo.IsRetryableBrokerErr(err) {
		return Unavailable, err.Error()
	}
	return Unknown, err.Error()
}

// codes are the protocol errors that have a description for people.
var codes = map[*kerr.Error]struct {
	Condition
	reason string
}{
	kerr.SaslAuthenticationFailed:           {Unauthenticated, "the login was refused"},
	kerr.UnsupportedSaslMechanism:           {Unauthenticated, "the cluster takes neither access tokens of Globus nor access keys here"},
	kerr.IllegalSaslState:                   {Unauthenticated, "the cluster did not expect a login now"},
	kerr.TopicAuthorizationFailed:           {Permission, "not authorized to access the topic"},
	kerr.GroupAuthorizationFailed:           {Permission, "not authorized to access the consumer group"},
	kerr.ClusterAuthorizationFailed:         {Permission, "not authorized to administer the cluster"},
	kerr.TransactionalIDAuthorizationFailed: {Permission, "not authorized to use the transactional id"},
	kerr.UnknownTopicOrPartition:            {NotFound, "there is no such topic"},
	kerr.UnknownTopicID:                     {NotFound, "there is no such topic"},
	kerr.TopicAlreadyExists:                 {Conflict, "the topic exists already"},
	kerr.InvalidTopicException:              {Invalid, "the cluster does not take this topic name"},
	kerr.InvalidRequest:                     {Invalid, "the cluster finds the request malformed"},
	kerr.InvalidPartitions:                  {Invalid, "the cluster does not take this number of partitions"},
	kerr.InvalidReplicationFactor:           {Invalid, "the cluster has too few brokers for this replication factor"},
	kerr.InvalidConfig:                      {Invalid, "the cluster does not take this topic configuration"},
	kerr.PolicyViolation:                    {Invalid, "the request is against the cluster's policy"},
	kerr.InvalidRecord:                      {Invalid, "the cluster does not take this event"},
	kerr.InvalidTimestamp:                   {Invalid, "the event's time is too far off"},
	kerr.MessageTooLarge:                    {Invalid, "the event is larger than the cluster takes"},
	kerr.RecordListTooLarge:                 {Invalid, "the event is larger than the cluster takes"},
	kerr.NotEnoughReplicas:                  {Unavailable, "too few replicas of the topic are alive"},
	kerr.NotEnoughReplicasAfterAppend:       {Unavailable, "too few replicas of the topic are alive"},
	kerr.KafkaStorageError:                  {Unavailable, "the broker cannot write to its disk"},
	kerr.UnknownServerError:                 {Unavailable, "the broker failed"},
	kerr.RebalanceInProgress:                {Unavailable, rebalancing},
	kerr.UnknownMemberID:                    {Unavailable, rebalancing},
	kerr.IllegalGeneration:                  {Unavailable, rebalancing},
	kerr.FencedMemberEpoch:                  {Unavailable, rebalancing},
	kerr.StaleMemberEpoch:                   {Unavailable, rebalancing},
}

// rebalancing describes the errors that tell a member of a consumer group to rejoin it. The Kafka client
// rejoins automatically.
const rebalancing = "the consumer group is rebalancing"

// CannotTell begins the message of a gateway that refuses a login because the fabric is
// misconfigured, although the credentials may be valid. Kafka has no error code for that.
const CannotTell = "this fabric cannot tell"

// The message of a gateway that refuses valid credentials begins with one of these texts. The
// operators do not admit this person, so other credentials of the same person do not help.
const (
	Blocked = "the operators of this fabric have blocked you"
	NotOpen = "this fabric is not open to "
)

// The message of a gateway that refuses invalid credentials ends with one of these hints. They are for foreign clients:
// [Explain] removes them, because this project's own programs have a hint that knows where the credentials are from.
const (
	LoginHint = "; run `diaspora login` to get a new one"
	KeyHint   = "; its owner can make another one with `diaspora key create`"
)

// NotAdmitted reports whether an error means that the operators do not admit the person who signed
// in.
func NotAdmitted(err error) bool {
	return errors.Is(err, kerr.SaslAuthenticationFailed) &&
		(strings.Contains(err.Error(), Blocked) || strings.Contains(err.Error(), NotOpen))
}

// LoginRefused reports whether an error means that the cluster or Globus Auth refuses these
// credentials, so that retrying soon does not help.
func LoginRefused(err error) bool {
	condition, _ := Explain(err)
	return condition == Unauthenticated || NotAdmitted(err)
}

// Misconfigured reports whether an error means that nobody can sign in until the operators fix
// something, or that something other than Globus Auth answers at its address. Retrying soon does
// not help.
func Misconfigured(err error) bool {
	return errors.Is(err, globus.ErrMisconfigured) ||
		errors.Is(err, kerr.SaslAuthenticationFailed) && strings.Contains(err.Error(), CannotTell)
}

// explainCode explains a protocol error. The broker's own message follows our description, except
// for a refused login: then the gateway's message says everything.
func explainCode(err error, code *kerr.Error) (Condition, string) {
	_, detail, _ := strings.Cut(err.Error(), code.Error()+": ")
	known, ok := codes[code]
	switch {
	case Misconfigured(err):
		return Unavailable, detail
	case NotAdmitted(err):
		return Permission, detail
	case ok && code == kerr.SaslAuthenticationFailed && detail != "":
		return known.Condition, strings.TrimSuffix(strings.TrimSuffix(detail, LoginHint), KeyHint)
	case ok && detail != "":
		return known.Condition, known.reason + ": " + detail
	case ok:
		return known.Condition, known.reason
	case kerr.IsRetriable(code):
		return Unavailable, err.Error()
	}
	return Unknown, err.Error()
}

// Purged reports whether an event failed because the client was told to forget its topic while the
// event was buffered; see [kgo.Client.PurgeTopicsFromProducing]. It compares the text, because the
// client does not export this error.
func Purged(err error) bool { return err != nil && err.Error() == "topic purged while buffered" }

package kafka

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

// Condition is what an error means to the one who has to act on it.
type Condition int

// The conditions, named as the sentinel errors of package diaspora.
const (
	Unknown         Condition = iota // nothing known; see the error itself
	Invalid                          // the request was wrong and stays wrong
	Unauthenticated                  // who are you: log in
	Permission                       // you may not
	NotFound                         // there is no such topic
	Conflict                         // it is there already, or somebody else's
	Unavailable                      // try again later
)

// Explain says what an error of a Kafka client means, and why in words: lower
// case, no full stop, to be put after the operation and its object. An error
// that it does not know explains itself. Explain(nil) is Unknown and "".
func Explain(err error) (Condition, string) {
	if err == nil {
		return Unknown, ""
	}
	var code *kerr.Error
	var network *net.OpError
	var untrusted *trust.Error
	switch {
	case errors.As(err, &untrusted): // only a person can help
		return Unauthenticated, untrusted.Reason
	case errors.Is(err, globus.ErrLoginRequired), errors.Is(err, globus.ErrRefused), errors.Is(err, globus.ErrClientRefused):
		return Unauthenticated, err.Error()
	case errors.Is(err, globus.ErrUnavailable), errors.Is(err, globus.ErrMisconfigured):
		return Unavailable, err.Error()
	case errors.Is(err, ErrInsecure):
		return Invalid, err.Error()
	case errors.As(err, &code):
		return explainCode(err, code)
	case errors.As(err, &network) && network.Op == "dial" && network.Timeout():
		return Unavailable, "no broker can be reached: " + network.Error()
	case errors.Is(err, context.DeadlineExceeded):
		return Unavailable, "the cluster did not answer in time"
	case errors.Is(err, context.Canceled):
		return Unknown, err.Error()
	case errors.Is(err, kgo.ErrRecordTimeout), errors.Is(err, kgo.ErrRecordRetries):
		return Unavailable, "the cluster did not acknowledge the events in time"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return Unavailable, "the broker closed the connection; it may be stopping, expect TLS, or be unable to check logins now"
	}
	if certErr := (*tls.CertificateVerificationError)(nil); errors.As(err, &certErr) {
		return Unknown, "the broker's certificate is not trusted: " + certErr.Err.Error()
	}
	if network != nil {
		return Unavailable, "no broker can be reached: " + network.Error()
	}
	if kgo.IsRetryableBrokerErr(err) {
		return Unavailable, err.Error()
	}
	return Unknown, err.Error()
}

// codes are the errors of the protocol that mean something to a person.
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
	kerr.RebalanceInProgress:                {Unavailable, anew},
	kerr.UnknownMemberID:                    {Unavailable, anew},
	kerr.IllegalGeneration:                  {Unavailable, anew},
	kerr.FencedMemberEpoch:                  {Unavailable, anew},
	kerr.StaleMemberEpoch:                   {Unavailable, anew},
}

// anew is what a member of a consumer group hears that has to join it again, which the
// Kafka client does by itself.
const anew = "the group shares out its partitions anew"

// CannotTell begins the sentence of a gateway that refuses a login though nothing is wrong with the
// credentials: the gateway itself is misconfigured. Kafka has no error of its own for that.
const CannotTell = "this fabric cannot tell"

// The sentences of a gateway that refuses a login though the credentials are good begin with one of these:
// the operators do not admit this person, and no other credentials of theirs help.
const (
	Blocked = "the operators of this fabric have blocked you"
	NotOpen = "this fabric is not open to "
)

// NotAdmitted reports whether an error says that the operators do not admit the one who signed in.
func NotAdmitted(err error) bool {
	return errors.Is(err, kerr.SaslAuthenticationFailed) &&
		(strings.Contains(err.Error(), Blocked) || strings.Contains(err.Error(), NotOpen))
}

// LoginRefused reports whether an error says that the cluster, or Globus Auth, does not let anybody in with these
// credentials, so that to try again in a moment does not help.
func LoginRefused(err error) bool {
	condition, _ := Explain(err)
	return condition == Unauthenticated || NotAdmitted(err)
}

// Misconfigured reports whether an error says that the fabric cannot sign anybody in until its operators
// mend that, or that something else answers in Globus Auth's place: to try again in a moment does not help.
func Misconfigured(err error) bool {
	return errors.Is(err, globus.ErrMisconfigured) ||
		errors.Is(err, kerr.SaslAuthenticationFailed) && strings.Contains(err.Error(), CannotTell)
}

// explainCode explains an error of the protocol. What the broker added to its
// code stands behind ours, except after a refused login, where the gateway's
// sentence says it all.
func explainCode(err error, code *kerr.Error) (Condition, string) {
	_, detail, _ := strings.Cut(err.Error(), code.Error()+": ")
	known, ok := codes[code]
	switch {
	case Misconfigured(err):
		return Unavailable, detail
	case NotAdmitted(err):
		return Permission, detail
	case ok && code == kerr.SaslAuthenticationFailed && detail != "":
		return known.Condition, detail
	case ok && detail != "":
		return known.Condition, known.reason + ": " + detail
	case ok:
		return known.Condition, known.reason
	case kerr.IsRetriable(code):
		return Unavailable, err.Error()
	}
	return Unknown, err.Error()
}

// Purged reports whether an event failed because the client was told to forget its topic
// while it held the event, see [kgo.Client.PurgeTopicsFromProducing]. The client does not
// export this error.
func Purged(err error) bool { return err != nil && err.Error() == "topic purged while buffered" }

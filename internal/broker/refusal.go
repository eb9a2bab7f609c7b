package broker

import (
	"fmt"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// refusal is the error that a client gets for a request or a part of one.
type refusal struct {
	code   int16
	reason *string // a message for people; may be nil
}

// refuse returns a refusal with the description of the code as its message.
func refuse(code *kerr.Error) *refusal { return &refusal{code.Code, &code.Description} }

// refuseWithoutMessage returns a refusal without a message, where Apache Kafka sends none.
func refuseWithoutMessage(code *kerr.Error) *refusal { return &refusal{code: code.Code} }

// refusef returns a refusal with a message.
func refusef(code *kerr.Error, format string, args ...any) *refusal {
	return &refusal{code.Code, kmsg.StringPtr(fmt.Sprintf(format, args...))}
}

// set puts the refusal into the fields of a response. It does nothing if r is nil.
func (r *refusal) set(code *int16, message **string) {
	if r != nil {
		*code, *message = r.code, r.reason
	}
}

// Error makes a refusal an error, so that it can pass through functions that return errors.
func (r *refusal) Error() string {
	if r.reason != nil {
		return *r.reason
	}
	return kerr.ErrorForCode(r.code).Error()
}

// refuseIfDiskFull refuses a change that needs disk space when the disk is nearly full.
func (b *Broker) refuseIfDiskFull() *refusal {
	if !b.space.low() {
		return nil
	}
	return refusef(kerr.KafkaStorageError, "the disk of the broker is nearly full; free some space, or delete topics or records")
}

// refuseUnwritten logs that a change could not be written, and returns the refusal for the client.
func (b *Broker) refuseUnwritten(what string, err error, attrs ...any) *refusal {
	b.logError(what, err, attrs...)
	return refusef(kerr.KafkaStorageError, "the broker cannot %s: a write to its disk failed", what)
}

// mayCluster returns a refusal unless the caller may do op to the cluster.
func (b *Broker) mayCluster(r *request, op kmsg.ACLOperation) *refusal {
	if b.acls.allow(r.caller, op, kmsg.ACLResourceTypeCluster, clusterName) {
		return nil
	}
	return refusef(kerr.ClusterAuthorizationFailed, "%s is not authorized to %s the cluster", r.caller.principal, strings.ToLower(op.String()))
}

// mayTopic reports whether the caller may do op to the topic of this name.
func (b *Broker) mayTopic(r *request, op kmsg.ACLOperation, topic string) bool {
	return b.acls.allow(r.caller, op, kmsg.ACLResourceTypeTopic, topic)
}

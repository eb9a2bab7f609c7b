package broker

import (
	"sync"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// producerIDs assigns producer IDs, each of them once. To avoid a write for each ID, the
// journal reserves a block of them at a time. IDs of a block that are left when the process ends
// are never used.
type producerIDs struct {
	mu        sync.Mutex // guards the fields below and Broker.journaled.broker
	next, end int64
}

const producerIDBlock = 1000

func (b *Broker) nextProducerID() (int64, error) {
	b.producers.mu.Lock()
	defer b.producers.mu.Unlock()
	if b.producers.next == b.producers.end {
		self := b.journaled.broker
		self.NextProducerID = b.producers.end + producerIDBlock
		if err := b.saveBrokerRecord(self); err != nil {
			return 0, err
		}
		b.producers.end = self.NextProducerID
	}
	id := b.producers.next
	b.producers.next++
	return id, nil
}

// initProducerID gives a producer an ID, which identifies duplicates of its batches (KIP-98). A
// request with a transactional ID is refused, because there are no transactions.
func (b *Broker) initProducerID(r *request, req *kmsg.InitProducerIDRequest) (*kmsg.InitProducerIDResponse, error) {
	response := req.ResponseKind().(*kmsg.InitProducerIDResponse)
	response.ProducerID, response.ProducerEpoch = -1, -1
	switch {
	case req.TransactionalID != nil:
		response.ErrorCode = kerr.TransactionalIDAuthorizationFailed.Code
		return response, nil
	case !b.acls.allow(r.caller, kmsg.ACLOperationIdempotentWrite, kmsg.ACLResourceTypeCluster, clusterName) &&
		!b.acls.allowAny(r.caller, kmsg.ACLOperationWrite, kmsg.ACLResourceTypeTopic):
		response.ErrorCode = kerr.ClusterAuthorizationFailed.Code
		return response, nil
	}
	id, err := b.nextProducerID()
	if err != nil {
		b.logError("assign a producer ID", err)
		response.ErrorCode = kerr.CoordinatorNotAvailable.Code // producers retry this error
		return response, nil
	}
	response.ProducerID, response.ProducerEpoch = id, 0
	return response, nil
}

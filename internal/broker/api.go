package broker

import (
	"context"
	"maps"
	"regexp"
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// request is one request from a client, with what its handler needs to know about the connection.
type request struct {
	ctx      context.Context // ends with the connection
	conn     *conn
	caller   caller
	clientID string
	kmsg.Request

	sizeHint int     // size estimate for the response buffer, in bytes, if the response is large
	frames   []frame // buffers that the response refers to; they are freed after it is sent
}

// api describes how the broker serves one kind of request.
type api struct {
	min, max int16 // the versions that the broker supports
	// handle carries out a request. If the response is nil, none is sent. An error closes the
	// connection.
	handle func(*Broker, *request) (kmsg.Response, error)
}

// handler wraps a handler for one request type in an api.
func handler[Q kmsg.Request, R kmsg.Response](min, max int16, handle func(*Broker, *request, Q) (R, error)) api {
	return api{min, max, func(b *Broker, r *request) (kmsg.Response, error) {
		response, err := handle(b, r, r.Request.(Q))
		if err != nil {
			return nil, err
		}
		return response, nil
	}}
}

// apis returns the requests that the broker supports, by API key. Transactions, share groups,
// telemetry, replication and quotas are not supported. Neither are the request versions that Apache
// Kafka 4 has dropped.
//
// The table is filled in init and read through a function because apiVersions, which is in the
// table, reads it. A plain initializer would be an initialization cycle.
func apis() map[int16]api { return apiTable }

var apiTable map[int16]api

func init() {
	apiTable = map[int16]api{
		0:  {3, 13, (*Broker).produce},
		1:  {4, 18, (*Broker).fetch},
		2:  handler(1, 10, (*Broker).listOffsets),
		3:  handler(0, 13, (*Broker).metadata),
		8:  handler(2, 10, (*Broker).offsetCommit),
		9:  handler(1, 10, (*Broker).offsetFetch),
		10: handler(0, 6, (*Broker).findCoordinator),
		11: handler(0, 9, (*Broker).joinGroup),
		12: handler(0, 4, (*Broker).heartbeat),
		13: handler(0, 5, (*Broker).leaveGroup),
		14: handler(0, 5, (*Broker).syncGroup),
		15: handler(0, 6, (*Broker).describeGroups),
		16: handler(0, 5, (*Broker).listGroups),
		18: handler(0, 4, (*Broker).apiVersions),
		19: handler(2, 7, (*Broker).createTopics),
		20: handler(1, 6, (*Broker).deleteTopics),
		21: handler(0, 2, (*Broker).deleteRecords),
		22: handler(0, 6, (*Broker).initProducerID),
		23: handler(2, 4, (*Broker).offsetForLeaderEpoch),
		29: handler(1, 3, (*Broker).describeACLs),
		30: handler(1, 3, (*Broker).createACLs),
		31: handler(1, 3, (*Broker).deleteACLs),
		32: handler(1, 4, (*Broker).describeConfigs),
		33: handler(0, 2, (*Broker).alterConfigs),
		35: handler(1, 5, (*Broker).describeLogDirs),
		37: handler(0, 3, (*Broker).createPartitions),
		42: handler(0, 2, (*Broker).deleteGroups),
		44: handler(0, 1, (*Broker).incrementalAlterConfigs),
		46: handler(0, 0, (*Broker).listPartitionReassignments),
		47: handler(0, 0, (*Broker).offsetDelete),
		60: handler(0, 2, (*Broker).describeCluster),
		61: handler(0, 0, (*Broker).describeProducers),
		68: handler(0, 1, (*Broker).consumerGroupHeartbeat),
		69: handler(0, 1, (*Broker).consumerGroupDescribe),
		74: handler(0, 1, (*Broker).listConfigResources),
		75: handler(0, 0, (*Broker).describeTopicPartitions),
	}
	for key, a := range apiTable { // kmsg cannot parse versions that it does not know
		a.max = min(a.max, kmsg.RequestForKey(key).MaxVersion())
		apiTable[key] = a
	}
}

// softwarePattern matches a valid name or version of a client's software (KIP-511).
var softwarePattern = regexp.MustCompile(`^[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?$`)

// apiVersions lists the requests that the broker supports. It is the only request that clients may
// send before they are signed in. An unknown version of it is answered in version 0
// (apiVersionsUnsupported) instead of closing the connection (KIP-511).
func (b *Broker) apiVersions(_ *request, req *kmsg.ApiVersionsRequest) (*kmsg.ApiVersionsResponse, error) {
	response := req.ResponseKind().(*kmsg.ApiVersionsResponse)
	if req.Version >= 3 && !(softwarePattern.MatchString(req.ClientSoftwareName) && softwarePattern.MatchString(req.ClientSoftwareVersion)) {
		response.ErrorCode = kerr.InvalidRequest.Code
		return response, nil
	}
	for _, key := range slices.Sorted(maps.Keys(apis())) {
		offered := kmsg.NewApiVersionsResponseApiKey()
		offered.ApiKey, offered.MinVersion, offered.MaxVersion = key, apis()[key].min, apis()[key].max
		if key == 0 {
			// Versions 0 to 2 of Produce are offered and not supported, as in Apache Kafka 4
			// (KAFKA-18659): some versions of librdkafka, such as 2.0.2, do not compress for a
			// broker that does not offer version 0.
			offered.MinVersion = 0
		}
		response.ApiKeys = append(response.ApiKeys, offered)
	}
	return response, nil
}

// apiVersionsUnsupported answers an ApiVersions request of an unknown version, in version 0.
func apiVersionsUnsupported() *kmsg.ApiVersionsResponse {
	response := kmsg.NewPtrApiVersionsResponse()
	response.ErrorCode = kerr.UnsupportedVersion.Code
	offered := kmsg.NewApiVersionsResponseApiKey()
	offered.ApiKey, offered.MinVersion, offered.MaxVersion = 18, apis()[18].min, apis()[18].max
	response.ApiKeys = append(response.ApiKeys, offered)
	return response
}

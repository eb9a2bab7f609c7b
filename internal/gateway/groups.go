package gateway

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// Consumer groups are private to a subject. The gateway adds a prefix with the subject to each
// group ID in a request, and removes it from the answer. So a client can choose any group ID, and
// cannot name a group of another subject.
//
// For a key that may not read, the gateway uses a prefix on which the broker grants no rights to
// anybody. So the broker itself refuses each request that names a group, with the error code that
// the request has for it.

const (
	// maxGroupBytes limits a client's group ID, so that it still fits with the prefix. A longer ID
	// becomes the empty one, which brokers refuse.
	maxGroupBytes = 8 << 10

	// smallResponseBytes is the largest answer about groups that is not counted in a memory budget.
	smallResponseBytes = 64 << 10

	maxGroupResponseBytes = 32 << 20
)

// groupPrefix is the prefix that the IDs of the client's groups have at the broker.
type groupPrefix string

func groupPrefixOf(id Identity) groupPrefix {
	if !id.Read {
		return groupPrefix(kafka.DeniedGroups + id.Subject + ".")
	}
	return groupPrefix(kafka.UserGroups + id.Subject + ".")
}

// add turns a client's group ID, if there is one, into the broker's.
func (p groupPrefix) add(group *string) {
	switch {
	case group == nil || *group == "":
	case len(*group) > maxGroupBytes:
		*group = ""
	default:
		*group = string(p) + *group
	}
}

func (p groupPrefix) addAll(groups []string) {
	for i := range groups {
		p.add(&groups[i])
	}
}

// strip turns a broker's group ID into the client's.
func (p groupPrefix) strip(group *string) { *group = strings.TrimPrefix(*group, string(p)) }

// stripMessage removes the prefix from the group IDs in an error message.
func (p groupPrefix) stripMessage(message **string) {
	if *message != nil {
		*message = kmsg.StringPtr(strings.ReplaceAll(**message, string(p), ""))
	}
}

func (p groupPrefix) stripBoth(group *string, message **string) {
	p.strip(group)
	p.stripMessage(message)
}

// The coordinator types whose keys are group IDs. The third type is for transactional IDs.
const (
	groupCoordinator = 0
	shareCoordinator = 2
)

// groupConfig is the type of config resource that stands for a group (KIP-848).
const groupConfig kmsg.ConfigResourceType = 32

// addToRequest adds the prefix to all group IDs of a request. It reports whether a request of this
// type can name groups.
func (p groupPrefix) addToRequest(request kmsg.Request) bool {
	switch q := request.(type) {
	case *kmsg.OffsetCommitRequest:
		p.add(&q.Group)
	case *kmsg.OffsetFetchRequest:
		p.add(&q.Group)
		for i := range q.Groups {
			p.add(&q.Groups[i].Group)
		}
	case *kmsg.FindCoordinatorRequest:
		if q.CoordinatorType == groupCoordinator || q.CoordinatorType == shareCoordinator {
			p.add(&q.CoordinatorKey)
			p.addAll(q.CoordinatorKeys)
		}
	case *kmsg.JoinGroupRequest:
		p.add(&q.Group)
	case *kmsg.HeartbeatRequest:
		p.add(&q.Group)
	case *kmsg.LeaveGroupRequest:
		p.add(&q.Group)
	case *kmsg.SyncGroupRequest:
		p.add(&q.Group)
	case *kmsg.DescribeGroupsRequest:
		p.addAll(q.Groups)
	case *kmsg.ListGroupsRequest:
	case *kmsg.DescribeConfigsRequest:
		for i := range q.Resources {
			p.addConfig(q.Resources[i].ResourceType, &q.Resources[i].ResourceName)
		}
	case *kmsg.AlterConfigsRequest:
		for i := range q.Resources {
			p.addConfig(q.Resources[i].ResourceType, &q.Resources[i].ResourceName)
		}
	case *kmsg.IncrementalAlterConfigsRequest:
		for i := range q.Resources {
			p.addConfig(q.Resources[i].ResourceType, &q.Resources[i].ResourceName)
		}
	case *kmsg.DeleteGroupsRequest:
		p.addAll(q.Groups)
	case *kmsg.OffsetDeleteRequest:
		p.add(&q.Group)
	case *kmsg.ConsumerGroupHeartbeatRequest:
		p.add(&q.Group)
	case *kmsg.ConsumerGroupDescribeRequest:
		p.addAll(q.Groups)
	case *kmsg.ShareGroupHeartbeatRequest:
		p.add(&q.GroupID)
	case *kmsg.ShareGroupDescribeRequest:
		p.addAll(q.GroupIDs)
	case *kmsg.ShareFetchRequest:
		p.add(q.GroupID)
	case *kmsg.ShareAcknowledgeRequest:
		p.add(q.GroupID)
	case *kmsg.DescribeShareGroupOffsetsRequest:
		for i := range q.Groups {
			p.add(&q.Groups[i].GroupID)
		}
	case *kmsg.AlterShareGroupOffsetsRequest:
		p.add(&q.GroupID)
	case *kmsg.DeleteShareGroupOffsetsRequest:
		p.add(&q.GroupID)
	default:
		return false
	}
	return true
}

func (p groupPrefix) addConfig(resource kmsg.ConfigResourceType, name *string) {
	if resource == groupConfig {
		p.add(name)
	}
}

func (p groupPrefix) stripConfig(resource kmsg.ConfigResourceType, name *string, message **string) {
	if resource == groupConfig {
		p.strip(name)
	}
	p.stripMessage(message)
}

// stripFromResponse removes the prefix from all group IDs of a response, and removes the groups of
// other subjects. It reports whether a response of this type can name groups.
func (p groupPrefix) stripFromResponse(response kmsg.Response) bool {
	switch a := response.(type) {
	case *kmsg.OffsetFetchResponse:
		for i := range a.Groups {
			p.strip(&a.Groups[i].Group)
		}
	case *kmsg.FindCoordinatorResponse:
		p.stripMessage(&a.ErrorMessage)
		for i := range a.Coordinators {
			p.stripBoth(&a.Coordinators[i].Key, &a.Coordinators[i].ErrorMessage)
		}
	case *kmsg.DescribeGroupsResponse:
		for i := range a.Groups {
			p.stripBoth(&a.Groups[i].Group, &a.Groups[i].ErrorMessage)
		}
	case *kmsg.ListGroupsResponse:
		a.Groups = slices.DeleteFunc(a.Groups, func(g kmsg.ListGroupsResponseGroup) bool { return !strings.HasPrefix(g.Group, string(p)) })
		for i := range a.Groups {
			p.strip(&a.Groups[i].Group)
		}
	case *kmsg.DescribeConfigsResponse:
		for i := range a.Resources {
			p.stripConfig(a.Resources[i].ResourceType, &a.Resources[i].ResourceName, &a.Resources[i].ErrorMessage)
		}
	case *kmsg.AlterConfigsResponse:
		for i := range a.Resources {
			p.stripConfig(a.Resources[i].ResourceType, &a.Resources[i].ResourceName, &a.Resources[i].ErrorMessage)
		}
	case *kmsg.IncrementalAlterConfigsResponse:
		for i := range a.Resources {
			p.stripConfig(a.Resources[i].ResourceType, &a.Resources[i].ResourceName, &a.Resources[i].ErrorMessage)
		}
	case *kmsg.DeleteGroupsResponse:
		for i := range a.Groups {
			p.stripBoth(&a.Groups[i].Group, &a.Groups[i].ErrorMessage)
		}
	case *kmsg.ConsumerGroupHeartbeatResponse:
		p.stripMessage(&a.ErrorMessage)
	case *kmsg.ConsumerGroupDescribeResponse:
		for i := range a.Groups {
			p.stripBoth(&a.Groups[i].Group, &a.Groups[i].ErrorMessage)
		}
	case *kmsg.ShareGroupHeartbeatResponse:
		p.stripMessage(&a.ErrorMessage)
	case *kmsg.ShareGroupDescribeResponse:
		for i := range a.Groups {
			p.stripBoth(&a.Groups[i].GroupID, &a.Groups[i].ErrorMessage)
		}
	case *kmsg.ShareFetchResponse:
		p.stripMessage(&a.ErrorMessage)
	case *kmsg.ShareAcknowledgeResponse:
		p.stripMessage(&a.ErrorMessage)
	case *kmsg.DescribeShareGroupOffsetsResponse:
		for i := range a.Groups {
			p.stripBoth(&a.Groups[i].GroupID, &a.Groups[i].ErrorMessage)
		}
	case *kmsg.AlterShareGroupOffsetsResponse:
		p.stripMessage(&a.ErrorMessage)
	case *kmsg.DeleteShareGroupOffsetsResponse:
		p.stripMessage(&a.ErrorMessage)
	default:
		return false
	}
	return true
}

// namesGroups says which requests and answers can name groups, by API key.
var namesGroups = sync.OnceValue(func() (about struct{ requests, answers map[int16]bool }) {
	about.requests, about.answers = make(map[int16]bool), make(map[int16]bool)
	for _, r := range requests {
		about.requests[r.key] = groupPrefix("").addToRequest(kmsg.RequestForKey(r.key))
		about.answers[r.key] = groupPrefix("").stripFromResponse(kmsg.ResponseForKey(r.key))
	}
	return about
})

// prefixGroups returns the frame of a request with the group IDs that the broker knows.
func (c *conn) prefixGroups(h header, frame []byte) ([]byte, error) {
	request, head, err := decodeRequest(h, frame)
	if err != nil {
		return nil, err
	}
	c.groups.addToRequest(request)
	frame = request.AppendTo(slices.Clip(head))
	binary.BigEndian.PutUint32(frame, uint32(len(frame)-4))
	return frame, nil
}

// decodeRequest decodes a request that checkRequest has accepted. head is what precedes the body:
// size, header and client ID.
func decodeRequest(h header, frame []byte) (request kmsg.Request, head []byte, err error) {
	_, r := parseHead(frame[4:])
	request = kmsg.RequestForKey(h.key)
	request.SetVersion(h.version)
	if err := request.ReadFrom(r.left); err != nil {
		return nil, nil, frameError("%v: %v", h, err)
	}
	return request, frame[:len(frame)-len(r.left)], nil
}

// relayGroupResponse relays an answer that can name groups. size is the size of its frame.
func (c *conn) relayGroupResponse(ctx context.Context, size int, p pending) error {
	if size < 4 || size > maxGroupResponseBytes {
		return fmt.Errorf("response to %v of %d bytes", p.header, size)
	}
	if size > smallResponseBytes {
		release, err := acquire(ctx, size, c.usage.answers, c.g.responseBudget)
		if err != nil {
			return err
		}
		defer release()
	}
	c.fromBroker.discard(4)
	frame, err := c.fromBroker.readN(size)
	if err != nil {
		return err
	}
	request := kmsg.RequestForKey(p.key)
	request.SetVersion(p.version)
	answer, err := parseResponse(request, frame[4:])
	if err != nil {
		return fmt.Errorf("response to %v: %w", p.header, err)
	}
	c.groups.stripFromResponse(answer)
	return c.respond(p.correlation, answer)
}

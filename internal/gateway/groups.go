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

	// smallAnswerBytes is the largest answer about groups that is not counted in a memory budget.
	smallAnswerBytes = 64 << 10

	maxGroupAnswerBytes = 32 << 20
)

// ownGroups is the prefix that the client's group IDs have at the broker.
type ownGroups string

func groupsOf(id Identity) ownGroups {
	if !id.Read {
		return ownGroups(kafka.DeniedGroups + id.Subject + ".")
	}
	return ownGroups(kafka.UserGroups + id.Subject + ".")
}

// add turns a client's group ID into the broker's.
func (own ownGroups) add(group *string) {
	switch {
	case len(*group) > maxGroupBytes:
		*group = ""
	case *group != "":
		*group = string(own) + *group
	}
}

func (own ownGroups) addAll(groups []string) {
	for i := range groups {
		own.add(&groups[i])
	}
}

// strip turns a broker's group ID into the client's.
func (own ownGroups) strip(group *string) { *group = strings.TrimPrefix(*group, string(own)) }

// has reports whether a broker's group ID is one of the client's groups.
func (own ownGroups) has(group string) bool { return strings.HasPrefix(group, string(own)) }

// message removes the prefix from the group IDs in an error message.
func (own ownGroups) message(text **string) {
	if *text != nil {
		*text = kmsg.StringPtr(strings.ReplaceAll(**text, string(own), ""))
	}
}

// The coordinator types whose keys are group IDs. The third type is for transactional IDs.
const (
	groupCoordinator = 0
	shareCoordinator = 2
)

// groupConfig is the type of config resource that stands for a group (KIP-848).
const groupConfig kmsg.ConfigResourceType = 32

// request adds the prefix to all group IDs of a request. It reports whether a request of this type
// can name groups.
func (own ownGroups) request(request kmsg.Request) bool {
	switch q := request.(type) {
	case *kmsg.OffsetCommitRequest:
		own.add(&q.Group)
	case *kmsg.OffsetFetchRequest:
		own.add(&q.Group)
		for i := range q.Groups {
			own.add(&q.Groups[i].Group)
		}
	case *kmsg.FindCoordinatorRequest:
		if q.CoordinatorType == groupCoordinator || q.CoordinatorType == shareCoordinator {
			own.add(&q.CoordinatorKey)
			own.addAll(q.CoordinatorKeys)
		}
	case *kmsg.JoinGroupRequest:
		own.add(&q.Group)
	case *kmsg.HeartbeatRequest:
		own.add(&q.Group)
	case *kmsg.LeaveGroupRequest:
		own.add(&q.Group)
	case *kmsg.SyncGroupRequest:
		own.add(&q.Group)
	case *kmsg.DescribeGroupsRequest:
		own.addAll(q.Groups)
	case *kmsg.ListGroupsRequest:
	case *kmsg.DescribeConfigsRequest:
		for i := range q.Resources {
			own.addConfig(q.Resources[i].ResourceType, &q.Resources[i].ResourceName)
		}
	case *kmsg.AlterConfigsRequest:
		for i := range q.Resources {
			own.addConfig(q.Resources[i].ResourceType, &q.Resources[i].ResourceName)
		}
	case *kmsg.IncrementalAlterConfigsRequest:
		for i := range q.Resources {
			own.addConfig(q.Resources[i].ResourceType, &q.Resources[i].ResourceName)
		}
	case *kmsg.DeleteGroupsRequest:
		own.addAll(q.Groups)
	case *kmsg.OffsetDeleteRequest:
		own.add(&q.Group)
	case *kmsg.ConsumerGroupHeartbeatRequest:
		own.add(&q.Group)
	case *kmsg.ConsumerGroupDescribeRequest:
		own.addAll(q.Groups)
	case *kmsg.ShareGroupHeartbeatRequest:
		own.add(&q.GroupID)
	case *kmsg.ShareGroupDescribeRequest:
		own.addAll(q.GroupIDs)
	case *kmsg.ShareFetchRequest:
		own.addNullable(q.GroupID)
	case *kmsg.ShareAcknowledgeRequest:
		own.addNullable(q.GroupID)
	case *kmsg.DescribeShareGroupOffsetsRequest:
		for i := range q.Groups {
			own.add(&q.Groups[i].GroupID)
		}
	case *kmsg.AlterShareGroupOffsetsRequest:
		own.add(&q.GroupID)
	case *kmsg.DeleteShareGroupOffsetsRequest:
		own.add(&q.GroupID)
	default:
		return false
	}
	return true
}

func (own ownGroups) addNullable(group *string) {
	if group != nil {
		own.add(group)
	}
}

func (own ownGroups) addConfig(of kmsg.ConfigResourceType, name *string) {
	if of == groupConfig {
		own.add(name)
	}
}

func (own ownGroups) stripConfig(of kmsg.ConfigResourceType, name *string) {
	if of == groupConfig {
		own.strip(name)
	}
}

// answer removes the prefix from all group IDs of an answer, and removes the groups of other
// subjects. It reports whether an answer of this type can name groups.
func (own ownGroups) answer(answer kmsg.Response) bool {
	switch a := answer.(type) {
	case *kmsg.OffsetFetchResponse:
		for i := range a.Groups {
			own.strip(&a.Groups[i].Group)
		}
	case *kmsg.FindCoordinatorResponse:
		own.message(&a.ErrorMessage)
		for i := range a.Coordinators {
			own.strip(&a.Coordinators[i].Key)
			own.message(&a.Coordinators[i].ErrorMessage)
		}
	case *kmsg.DescribeGroupsResponse:
		for i := range a.Groups {
			own.strip(&a.Groups[i].Group)
			own.message(&a.Groups[i].ErrorMessage)
		}
	case *kmsg.ListGroupsResponse:
		a.Groups = slices.DeleteFunc(a.Groups, func(g kmsg.ListGroupsResponseGroup) bool { return !own.has(g.Group) })
		for i := range a.Groups {
			own.strip(&a.Groups[i].Group)
		}
	case *kmsg.DescribeConfigsResponse:
		for i := range a.Resources {
			own.stripConfig(a.Resources[i].ResourceType, &a.Resources[i].ResourceName)
			own.message(&a.Resources[i].ErrorMessage)
		}
	case *kmsg.AlterConfigsResponse:
		for i := range a.Resources {
			own.stripConfig(a.Resources[i].ResourceType, &a.Resources[i].ResourceName)
			own.message(&a.Resources[i].ErrorMessage)
		}
	case *kmsg.IncrementalAlterConfigsResponse:
		for i := range a.Resources {
			own.stripConfig(a.Resources[i].ResourceType, &a.Resources[i].ResourceName)
			own.message(&a.Resources[i].ErrorMessage)
		}
	case *kmsg.DeleteGroupsResponse:
		for i := range a.Groups {
			own.strip(&a.Groups[i].Group)
			own.message(&a.Groups[i].ErrorMessage)
		}
	case *kmsg.ConsumerGroupHeartbeatResponse:
		own.message(&a.ErrorMessage)
	case *kmsg.ConsumerGroupDescribeResponse:
		for i := range a.Groups {
			own.strip(&a.Groups[i].Group)
			own.message(&a.Groups[i].ErrorMessage)
		}
	case *kmsg.ShareGroupHeartbeatResponse:
		own.message(&a.ErrorMessage)
	case *kmsg.ShareGroupDescribeResponse:
		for i := range a.Groups {
			own.strip(&a.Groups[i].GroupID)
			own.message(&a.Groups[i].ErrorMessage)
		}
	case *kmsg.ShareFetchResponse:
		own.message(&a.ErrorMessage)
	case *kmsg.ShareAcknowledgeResponse:
		own.message(&a.ErrorMessage)
	case *kmsg.DescribeShareGroupOffsetsResponse:
		for i := range a.Groups {
			own.strip(&a.Groups[i].GroupID)
			own.message(&a.Groups[i].ErrorMessage)
		}
	case *kmsg.AlterShareGroupOffsetsResponse:
		own.message(&a.ErrorMessage)
	case *kmsg.DeleteShareGroupOffsetsResponse:
		own.message(&a.ErrorMessage)
	default:
		return false
	}
	return true
}

// aboutGroups says which requests and answers can name groups, by API key.
var aboutGroups = sync.OnceValue(func() (about struct{ requests, answers map[int16]bool }) {
	about.requests, about.answers = make(map[int16]bool), make(map[int16]bool)
	for _, r := range requests {
		about.requests[r.key] = ownGroups("").request(kmsg.RequestForKey(r.key))
		about.answers[r.key] = ownGroups("").answer(kmsg.ResponseForKey(r.key))
	}
	return about
})

// renameGroups returns the frame of a request with the group IDs that the broker knows.
func (c *conn) renameGroups(h header, frame []byte) ([]byte, error) {
	request, head, err := readRequest(h, frame)
	if err != nil {
		return nil, err
	}
	c.groups.request(request)
	frame = request.AppendTo(slices.Clip(head))
	binary.BigEndian.PutUint32(frame, uint32(len(frame)-4))
	return frame, nil
}

// readRequest decodes a request that checkRequest has accepted. head is what precedes the body:
// size, header and client ID.
func readRequest(h header, frame []byte) (request kmsg.Request, head []byte, err error) {
	_, w := parseRequest(frame[4:])
	request = kmsg.RequestForKey(h.key)
	request.SetVersion(h.version)
	if err := request.ReadFrom(w.b); err != nil {
		return nil, nil, frameError("%v: %v", h, err)
	}
	return request, frame[:len(frame)-len(w.b)], nil
}

// relayGroupAnswer relays an answer that can name groups. size is the size of its frame.
func (c *conn) relayGroupAnswer(ctx context.Context, size int, p pending) error {
	if size < 4 || size > maxGroupAnswerBytes {
		return fmt.Errorf("the answer to %v has %d bytes", p.header, size)
	}
	if size > smallAnswerBytes {
		repay, err := pay(ctx, size, c.account.answers, c.g.answerBudget)
		if err != nil {
			return err
		}
		defer repay()
	}
	c.out.discard(4)
	frame, err := c.out.take(size)
	if err != nil {
		return err
	}
	request := kmsg.RequestForKey(p.key)
	request.SetVersion(p.version)
	answer, err := parseAnswer(request, frame[4:])
	if err != nil {
		return fmt.Errorf("the answer to %v: %w", p.header, err)
	}
	c.groups.answer(answer)
	return c.respond(p.correlation, answer)
}

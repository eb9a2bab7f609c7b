package gateway

import (
	"context"
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora"
)

// The ledger decides which topics exist and which settings they have. If a Kafka client changed a
// topic at the broker, the two would differ, and the next reconciliation would undo the change. So
// the gateway itself refuses all requests that create, change or delete topics, and names the
// command that does it.
//
// The answer depends only on the request, and not on the ledger or the broker. So it does not tell
// whether a topic exists or who owns it. Names that cannot be claimed are not in the ledger. For
// those, the broker's ACLs decide, because an operator may let an application of Kafka Streams
// create its internal topics.
//
// The code is TOPIC_AUTHORIZATION_FAILED, with which the broker refuses these requests as well.
// Kafka Connect continues after it with the topics that exist, and would end after any other code.

// changesTopics reports whether a request can create, change or delete topics.
func changesTopics(key int16) bool {
	switch kmsg.Key(key) {
	case kmsg.CreateTopics, kmsg.DeleteTopics, kmsg.CreatePartitions, kmsg.AlterConfigs, kmsg.IncrementalAlterConfigs:
		return true
	}
	return false
}

const (
	// refusalFactor is how much more memory than the request the decoded request and its answer take
	// together, if the request has as many topics as fit in it.
	refusalFactor = 32

	// maxHints limits how many topics of a request are answered with a message. All others get only
	// the error code, so that the answer is not much larger than the request.
	maxHints = 100
)

// refuseTopics answers a request that changes topics, if it names any that can be claimed.
// Otherwise it reports false, and the broker has to answer.
func (c *conn) refuseTopics(ctx context.Context, h header, frame []byte) (answered bool, err error) {
	// The answers to earlier requests must come first, so wait until the broker has sent them. Only
	// then take memory from the budget, because those answers may need some of it.
	if _, err := (relayRequestor{c}).Request(ctx, kmsg.NewPtrApiVersionsRequest()); err != nil {
		return false, err
	}
	if len(frame) > readerBytes {
		release, err := acquire(ctx, refusalFactor*len(frame), c.usage.answers, c.g.responseBudget)
		if err != nil {
			return false, err
		}
		defer release()
	}
	request, _, err := decodeRequest(h, frame)
	if err != nil {
		return false, err
	}
	refused := takeTopics(request)
	if refused.count == 0 {
		return false, nil
	}
	answer := request.ResponseKind()
	if refused.others > 0 {
		c.groups.addToRequest(request)
		if answer, err = (relayRequestor{c}).Request(ctx, request); err != nil {
			return false, err
		}
		c.groups.stripFromResponse(answer)
	}
	refused.addTo(answer)
	return true, c.respond(h.correlation, answer)
}

// refusedTopics are topics that the gateway has taken out of a request.
type refusedTopics struct {
	count  int
	others int                 // how many topics or other resources the request still has
	addTo  func(kmsg.Response) // adds the refusals to the answer
}

// takeTopics takes all topics that can be claimed out of a request that changes topics.
func takeTopics(request kmsg.Request) (refused refusedTopics) {
	r := refuser{hints: maxHints}
	switch q := request.(type) {
	case *kmsg.CreateTopicsRequest:
		topics := take(&q.Topics, func(t kmsg.CreateTopicsRequestTopic) (a kmsg.CreateTopicsResponseTopic, ok bool) {
			a = kmsg.NewCreateTopicsResponseTopic()
			a.Topic, a.Configs = t.Topic, []kmsg.CreateTopicsResponseTopicConfig{}
			partitions := ""
			if n := max(int(t.NumPartitions), len(t.ReplicaAssignment)); n > 1 {
				partitions = fmt.Sprintf(" --partitions %d", n)
			}
			ok = r.refuse(t.Topic, &a.ErrorCode, &a.ErrorMessage, "create topics", "claim", partitions)
			return a, ok
		})
		return refusedTopics{len(topics), len(q.Topics), func(to kmsg.Response) {
			answer := to.(*kmsg.CreateTopicsResponse)
			answer.Topics = append(answer.Topics, topics...)
		}}
	case *kmsg.DeleteTopicsRequest:
		const doing, command = "delete topics", "release"
		topics := take(&q.TopicNames, func(name string) (a kmsg.DeleteTopicsResponseTopic, ok bool) {
			a = kmsg.NewDeleteTopicsResponseTopic()
			a.Topic = &name
			ok = r.refuse(name, &a.ErrorCode, &a.ErrorMessage, doing, command, "")
			return a, ok
		})
		topics = append(topics, take(&q.Topics, func(t kmsg.DeleteTopicsRequestTopic) (a kmsg.DeleteTopicsResponseTopic, ok bool) {
			a = kmsg.NewDeleteTopicsResponseTopic()
			a.Topic, a.TopicID = t.Topic, t.TopicID
			name := "TOPIC"
			if t.Topic != nil && t.TopicID == [16]byte{} {
				name = *t.Topic
			} // else it is any topic, because the gateway does not know whose ID it is
			ok = r.refuse(name, &a.ErrorCode, &a.ErrorMessage, doing, command, "")
			return a, ok
		})...)
		return refusedTopics{len(topics), len(q.TopicNames) + len(q.Topics), func(to kmsg.Response) {
			answer := to.(*kmsg.DeleteTopicsResponse)
			answer.Topics = append(answer.Topics, topics...)
		}}
	case *kmsg.CreatePartitionsRequest:
		topics := take(&q.Topics, func(t kmsg.CreatePartitionsRequestTopic) (a kmsg.CreatePartitionsResponseTopic, ok bool) {
			a = kmsg.NewCreatePartitionsResponseTopic()
			a.Topic = t.Topic
			ok = r.refuse(t.Topic, &a.ErrorCode, &a.ErrorMessage, "add partitions", "set", fmt.Sprintf(" --partitions %d", max(t.Count, 1)))
			return a, ok
		})
		return refusedTopics{len(topics), len(q.Topics), func(to kmsg.Response) {
			answer := to.(*kmsg.CreatePartitionsResponse)
			answer.Topics = append(answer.Topics, topics...)
		}}
	case *kmsg.AlterConfigsRequest:
		resources := take(&q.Resources, func(t kmsg.AlterConfigsRequestResource) (a kmsg.AlterConfigsResponseResource, ok bool) {
			a = kmsg.NewAlterConfigsResponseResource()
			a.ResourceType, a.ResourceName = t.ResourceType, t.ResourceName
			var names []string
			for _, config := range t.Configs {
				names = append(names, config.Name)
			}
			ok = t.ResourceType == kmsg.ConfigResourceTypeTopic && r.refuseConfigs(t.ResourceName, names, &a.ErrorCode, &a.ErrorMessage)
			return a, ok
		})
		return refusedTopics{len(resources), len(q.Resources), func(to kmsg.Response) {
			answer := to.(*kmsg.AlterConfigsResponse)
			answer.Resources = append(answer.Resources, resources...)
		}}
	case *kmsg.IncrementalAlterConfigsRequest:
		resources := take(&q.Resources, func(t kmsg.IncrementalAlterConfigsRequestResource) (a kmsg.IncrementalAlterConfigsResponseResource, ok bool) {
			a = kmsg.NewIncrementalAlterConfigsResponseResource()
			a.ResourceType, a.ResourceName = t.ResourceType, t.ResourceName
			var names []string
			for _, config := range t.Configs {
				names = append(names, config.Name)
			}
			ok = t.ResourceType == kmsg.ConfigResourceTypeTopic && r.refuseConfigs(t.ResourceName, names, &a.ErrorCode, &a.ErrorMessage)
			return a, ok
		})
		return refusedTopics{len(resources), len(q.Resources), func(to kmsg.Response) {
			answer := to.(*kmsg.IncrementalAlterConfigsResponse)
			answer.Resources = append(answer.Resources, resources...)
		}}
	}
	return refusedTopics{}
}

// take removes the elements for which refuse returns true, and returns their refusals.
func take[Q, A any](all *[]Q, refuse func(Q) (A, bool)) (refused []A) {
	*all = slices.DeleteFunc(*all, func(q Q) bool {
		a, ok := refuse(q)
		if ok {
			refused = append(refused, a)
		}
		return ok
	})
	return refused
}

// refuser refuses the topics of one request.
type refuser struct{ hints int } // how many more messages the answer may have

// refuse sets the error of a topic if its name can be claimed, and reports whether it can. The
// message says what clients cannot do, and which command does it.
func (r *refuser) refuse(topic string, code *int16, message **string, doing, command, flags string) bool {
	if diaspora.ValidTopic(topic) != nil {
		return false
	}
	*code = kerr.TopicAuthorizationFailed.Code
	if r.hints > 0 {
		r.hints--
		*message = kmsg.StringPtr(fmt.Sprintf(`Kafka clients cannot %s: run "diaspora topic %s %s%s"`, doing, command, topic, flags))
	}
	return true
}

// topicFlags are the configs of topics that owners can change, with the flags for it.
var topicFlags = []struct{ config, flag string }{
	{"retention.ms", " --retention TIME"},
	{"retention.bytes", " --max-bytes SIZE"},
	{"cleanup.policy", " --compact"},
}

// refuseConfigs is like refuse, for a request to change the configs with these names.
func (r *refuser) refuseConfigs(topic string, configs []string, code *int16, message **string) bool {
	flags, known := "", 0
	for _, f := range topicFlags {
		if slices.Contains(configs, f.config) {
			flags += f.flag
			known++
		}
	}
	ok := r.refuse(topic, code, message, "change the settings of topics", "set", flags)
	if *message != nil && known < len(configs) {
		*message = kmsg.StringPtr(**message + "; owners can change only retention.ms, retention.bytes and cleanup.policy")
	}
	return ok
}

package doctor

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// topicState is the topic that is checked.
type topicState struct {
	name       string
	partitions int
	replicas   int // of the partition with the fewest replicas
	rights     int32
}

// EchoTopic is a topic that users may claim for test events. A test event is written to another
// topic only if the user names it, because consumers of a topic with measurements do not expect
// test events.
const EchoTopic = "doctor"

// checkTopics lists the user's topics, or those that the access key is for: a key cannot list the topics
// of its owner. It picks one to check, unless the user has named one.
func checkTopics(ctx context.Context, v *visit) Finding {
	names, have := sorted(v.key.Topics), "the access key is for "
	own := names
	if !v.usesKey() {
		topics, err := v.client.Topics(ctx)
		if err != nil {
			return failed(err, "try again; if it stays so, tell the operator")
		}
		usable := slices.DeleteFunc(topics.Topics, func(t diaspora.Topic) bool { return !t.Released.IsZero() })
		own = namesOfTopics(usable)
		names = slices.Concat(own, namesOfTopics(topics.Shared))
		have = count(len(names), "topic") + ": "
	}
	switch {
	case v.Topic != "" && len(names) == 0:
		return ok("--topic names %s", v.Topic)
	case v.Topic != "":
		return ok("%s%s; --topic names %s", have, someOf(names), v.Topic)
	case len(names) == 0 && v.usesKey():
		return ok("the access key is for all of its owner's, and cannot list them; --topic names one to try")
	case len(names) == 0:
		return warning("claim one: diaspora topic claim NAME", "you have none, so no event can be tried")
	}
	pick := names[0]                     // one of the caller's own if there is one
	if slices.Contains(own, EchoTopic) { // others must not choose where test events are written, by sharing such a topic
		pick = EchoTopic
	}
	return ok("%s%s; %s is tried", have, someOf(names), pick).and(func() { v.topic.name = pick })
}

// checkTopic requests the topic's metadata from the broker, including the user's rights.
func checkTopic(ctx context.Context, v *visit) Finding {
	name := orElse(v.Topic, v.topic.name)
	if name == "" {
		return notTried("there is no topic to try; name one with --topic")
	}
	req := kmsg.NewPtrMetadataRequest()
	req.Version, req.IncludeTopicAuthorizedOperations = 8, true
	topic := kmsg.NewMetadataRequestTopic()
	topic.Topic = kmsg.StringPtr(name)
	req.Topics = append(req.Topics, topic)
	resp, err := req.RequestWith(ctx, v.first)
	if err == nil && len(resp.Topics) != 1 {
		err = errNotKafka
	}
	if err == nil {
		err = kerr.ErrorForCode(resp.Topics[0].ErrorCode)
	}
	if condition, _ := kafka.Explain(err); err != nil && condition == kafka.Permission {
		return v.noAccess(ctx, name, err)
	}
	if err != nil {
		return failure(v.kafkaAdvice(err), "%s: %s", name, describeKafkaError(err))
	}
	found := resp.Topics[0]
	state := topicState{name: name, partitions: len(found.Partitions), rights: found.AuthorizedOperations}
	for i, p := range found.Partitions {
		if p.Leader < 0 || kerr.ErrorForCode(p.ErrorCode) != nil {
			return failure("a broker is away; wait, or tell the operator", "%s: partition %d has no leader", name, p.Partition)
		}
		if i == 0 || len(p.Replicas) < state.replicas {
			state.replicas = len(p.Replicas)
		}
	}
	return ok("%s has %s, each with %s", name, count(state.partitions, "partition"), count(state.replicas, "replica")).and(func() { v.topic = state })
}

// noAccess describes a topic that may not be accessed, for example because its name is mistyped. The cluster does
// not say whether such a topic exists.
func (v *visit) noAccess(ctx context.Context, name string, err error) Finding {
	if v.usesKey() { // a key cannot ask whether a topic is claimed
		return v.noAccessByKey(ctx, name)
	}
	switch s := AskStanding(ctx, v.client, name); {
	case s.Free && s.Near != "":
		return failure("correct the name, or claim it: diaspora topic claim "+name, "nobody has claimed %s; did you mean %s?", name, s.Near)
	case s.Free:
		return failure("claim it: diaspora topic claim "+name, "nobody has claimed %s", name)
	case s.Own && !s.Topic.Released.IsZero():
		return failure("restore it: diaspora topic restore "+name, "you have released %s", name)
	case s.Own:
		return failure(askOperator, "you have no access to %s, although it is yours: an operator denies it", name)
	case s.Foreign:
		return failure(s.AskOwner(name, v.identity, "read")+"; or name a topic of yours with --topic", "%s: %s", name, describeKafkaError(err))
	}
	return failure(v.kafkaAdvice(err), "%s: %s", name, describeKafkaError(err))
}

const askOperator = "ask an operator of the fabric for the reason"

func (v *visit) noAccessByKey(ctx context.Context, name string) Finding {
	names := v.key.Topics
	if len(names) == 0 { // the key is for all topics of its owner
		names = v.visible(ctx)
	}
	switch {
	case slices.Contains(names, name):
		return failure(fmt.Sprintf(`look at it with "diaspora topic show %s" where you are logged in; if it is yours, ask an operator of the fabric`, name),
			"the access key %s is for %s, but has no access to it: the topic was released or handed over, or is not shared any more, or an operator denies the access", v.cfg.Key.ID, name)
	case len(names) == 0:
		return failure(`compare the name with "diaspora topic list" where you are logged in`,
			"the access key %s has no access to %s: it is mistyped, not claimed, or of another owner", v.cfg.Key.ID, name)
	}
	text := fmt.Sprintf("the access key %s has access to %s, not to %s", v.cfg.Key.ID, someOf(sorted(names)), name)
	if near := Near(name, names); near != "" {
		return failure("correct the name: --topic "+near, "%s; did you mean %s?", text, near)
	}
	return failure("name one of these topics with --topic, or use an access key for "+name, "%s", text)
}

// visible returns the topics that the broker shows to this user. It returns none if they cannot be found out.
func (v *visit) visible(ctx context.Context) (names []string) {
	req := kmsg.NewPtrMetadataRequest()
	req.Version, req.Topics = 8, nil // nil means all
	resp, err := req.RequestWith(ctx, v.first)
	if err != nil {
		return nil
	}
	for _, t := range resp.Topics {
		if t.Topic != nil && !t.IsInternal {
			names = append(names, *t.Topic)
		}
	}
	return names
}

// checkTopicSettings checks the settings on which guarantees depend.
func checkTopicSettings(ctx context.Context, v *visit) Finding {
	resource := kmsg.NewDescribeConfigsRequestResource()
	resource.ResourceType, resource.ResourceName = kmsg.ConfigResourceTypeTopic, v.topic.name
	req := kmsg.NewPtrDescribeConfigsRequest()
	req.Version = 1
	req.Resources = append(req.Resources, resource)
	resp, err := req.RequestWith(ctx, v.first)
	if err == nil && len(resp.Resources) != 1 {
		err = errNotKafka
	}
	if err == nil {
		err = kerr.ErrorForCode(resp.Resources[0].ErrorCode)
	}
	if errors.Is(err, kerr.TopicAuthorizationFailed) {
		return ok("only the owner of %s may see them", v.topic.name)
	}
	if err != nil {
		return failure(v.kafkaAdvice(err), "%s", describeKafkaError(err))
	}
	have := map[string]string{}
	for _, c := range resp.Resources[0].Configs {
		if c.Value != nil {
			have[c.Name] = *c.Value
		}
	}
	const next = "tell the operator: it is mended within a minute where the service runs"
	least, _ := strconv.Atoi(have["min.insync.replicas"])
	switch {
	case have["message.timestamp.type"] != "LogAppendTime":
		return warning(next, "message.timestamp.type is %s: late events may be deleted on arrival", orElse(have["message.timestamp.type"], "not known"))
	case have["unclean.leader.election.enable"] == "true":
		return warning(next, "unclean.leader.election.enable is true: acknowledged events can be lost")
	case v.topic.replicas >= 3 && least < 2:
		return warning("tell the operator", "min.insync.replicas is %d: an event may be acknowledged with one copy", least)
	}
	return ok("as they should be")
}

// checkWrite and checkRead report the rights that the broker has returned.
func checkWrite(ctx context.Context, v *visit) Finding {
	if v.key.ID != "" && !v.key.Write {
		return notTried("the access key is for reading only")
	}
	return v.right(ctx, kmsg.ACLOperationWrite, "write to", "write")
}
func checkRead(ctx context.Context, v *visit) Finding {
	if v.key.ID != "" && !v.key.Read {
		return notTried("the access key is for writing only")
	}
	return v.right(ctx, kmsg.ACLOperationRead, "read", "read")
}

func (v *visit) right(ctx context.Context, operation kmsg.ACLOperation, verb, right string) Finding {
	const unknown = -1 << 31
	name := v.topic.name
	switch {
	case v.topic.rights == unknown:
		return ok("the broker does not say; the test event will tell")
	case v.topic.rights&(1<<operation) != 0:
		return ok("you may %s %s", verb, name)
	case v.usesKey(): // the service says that this key may
		return failure(askOperator, "the access key may %s %s, but an operator denies it", verb, name)
	}
	s := AskStanding(ctx, v.client, name)
	switch {
	case s.Own:
		return failure(askOperator, "you may not %s %s, although it is yours: an operator denies it", verb, name)
	case s.Shared && !s.May(right): // that is what its owner wants, so nothing is broken
		return notTried(fmt.Sprintf("%s is shared with you, but not to %s; if you need that, %s", name, right, s.AskOwner(name, v.identity, right)))
	}
	return failure(s.AskOwner(name, v.identity, right)+"; or name a topic of yours with --topic", "you may not %s %s", verb, name)
}

// sentEvent is the test event that was acknowledged.
type sentEvent struct {
	id        string
	partition int32
	offset    int64
	took      time.Duration
}

// checkProduce writes a test event, with the client that programs use.
func checkProduce(ctx context.Context, v *visit) Finding {
	if v.Topic == "" && v.topic.name != EchoTopic {
		return notTried(fmt.Sprintf("a test event is written only if you ask for it: --topic %s", v.topic.name))
	}
	client, err := diaspora.Dial(ctx, v.cfg)
	if err != nil {
		return failed(err, v.kafkaAdvice(err))
	}
	defer client.Close()
	sent := sentEvent{id: rand.Text()}
	record := &kgo.Record{
		Topic: v.topic.name,
		Key:   []byte("diaspora-doctor"),
		Value: []byte(`{"diaspora":"doctor","note":"a test event; ignore it"}`),
		Headers: []kgo.RecordHeader{
			{Key: diaspora.HeaderTime, Value: []byte(v.Now().UTC().Format(time.RFC3339Nano))},
			{Key: diaspora.HeaderID, Value: []byte(sent.id)},
		},
	}
	began := time.Now()
	acknowledged := make(chan error, 1)
	// Wait for ctx as well: a record in flight is not canceled when ctx ends.
	client.Produce(ctx, record, func(_ *kgo.Record, err error) { acknowledged <- err })
	select {
	case err = <-acknowledged:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return failure(v.kafkaAdvice(err), "%s", describeKafkaError(err))
	}
	sent.partition, sent.offset, sent.took = record.Partition, record.Offset, time.Since(began)
	f := ok("%s, partition %d, offset %d: acknowledged in %.1f ms", v.topic.name, sent.partition, sent.offset, ms(sent.took))
	f.Legs = []Leg{{"produce", ms(sent.took)}}
	return f.and(func() { v.sent = sent })
}

// checkConsume reads the test event back, and reports the times of all legs.
func checkConsume(ctx context.Context, v *visit) Finding {
	client, err := diaspora.Dial(ctx, v.cfg, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{
		v.topic.name: {v.sent.partition: kgo.NewOffset().At(v.sent.offset)},
	}))
	if err != nil {
		return failed(err, v.kafkaAdvice(err))
	}
	defer client.Close()
	began := time.Now()
	for {
		fetches := client.PollFetches(ctx)
		var found bool
		fetches.EachRecord(func(r *kgo.Record) {
			for _, h := range r.Headers {
				found = found || h.Key == diaspora.HeaderID && string(h.Value) == v.sent.id
			}
		})
		if found {
			break
		}
		if err := fetches.Err(); err != nil {
			return failure(v.kafkaAdvice(err), "%s", describeKafkaError(err))
		}
	}
	legs := append(slices.Clone(v.first.legs), Leg{"produce", ms(v.sent.took)}, Leg{"fetch", ms(time.Since(began))})
	f := ok("the event came back; by leg: %s", way(legs))
	f.Legs = legs
	return f
}

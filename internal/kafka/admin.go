package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"
)

// Admin administers a cluster: topics and ACLs. Its client must be signed in as
// somebody who may. A change holds when every broker that the cluster counts as
// alive has it, and not only the one that was asked; each method says whether
// it waits for that. Its methods may be called concurrently.
type Admin struct {
	client *kgo.Client
}

// NewAdmin returns an Admin that uses client, which stays the caller's to close.
func NewAdmin(client *kgo.Client) *Admin { return &Admin{client: client} }

// adminTimeout is how long brokers may take over one change.
const adminTimeout = 15 * time.Second

// TopicID is what tells a topic from a later one of the same name.
type TopicID [16]byte

// TopicInfo is a topic as the cluster has it.
type TopicInfo struct {
	ID         TopicID
	Partitions int
	Replicas   int  // of the last partition
	Led        bool // each partition has a leader; without, the numbers may be too low
}

// TopicSpec is a topic as it shall be.
type TopicSpec struct {
	Name       string
	Partitions int
	// Replicas of each partition; 0 is three of them, or one if the cluster
	// has a single broker.
	Replicas int
	// Retention is how long records are kept; negative is for ever.
	Retention time.Duration
}

// configs are the settings of a topic that a claim or a ledger needs. The
// broker's clock counts: late events would otherwise be past their retention on
// arrival, and those of a fast clock be refused.
func (s TopicSpec) configs() map[string]string {
	retention := "-1"
	if s.Retention >= 0 {
		retention = strconv.FormatInt(s.Retention.Milliseconds(), 10)
	}
	configs := map[string]string{
		"cleanup.policy":                 "delete",
		"message.timestamp.type":         "LogAppendTime",
		"retention.ms":                   retention,
		"retention.bytes":                "-1",
		"unclean.leader.election.enable": "false",
		"min.insync.replicas":            "1",
	}
	if s.Replicas >= 3 {
		configs["min.insync.replicas"] = "2"
	}
	return configs
}

// CheckTopic returns why CreateTopic would not create a topic, and creates none.
// If there is one of that name already, that is [kerr.TopicAlreadyExists].
func (a *Admin) CheckTopic(ctx context.Context, spec TopicSpec) error {
	return a.createTopic(ctx, spec, true)
}

// CreateTopic creates a topic, unless there is one of that name. It reports
// whether it did, and whether every broker can serve the topic already; if not,
// call it again.
func (a *Admin) CreateTopic(ctx context.Context, spec TopicSpec) (created, ready bool, err error) {
	err = a.createTopic(ctx, spec, false)
	if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
		return false, false, err
	}
	created = err == nil
	views, err := onEachBroker(ctx, a, func(b *kgo.Broker) (map[string]TopicInfo, error) {
		return describeTopics(ctx, b, spec.Name)
	})
	ready = err == nil
	for _, topics := range views {
		ready = ready && topics[spec.Name].Led
	}
	return created, ready, err
}

func (a *Admin) createTopic(ctx context.Context, spec TopicSpec, validateOnly bool) error {
	if spec.Replicas == 0 {
		brokers, err := a.brokers(ctx)
		if err != nil {
			return err
		}
		if spec.Replicas = 3; len(brokers) == 1 {
			spec.Replicas = 1
		}
	}
	topic := kmsg.NewCreateTopicsRequestTopic()
	topic.Topic = spec.Name
	topic.NumPartitions = int32(spec.Partitions)
	topic.ReplicationFactor = int16(spec.Replicas)
	configs := spec.configs()
	for _, name := range slices.Sorted(maps.Keys(configs)) {
		config := kmsg.NewCreateTopicsRequestTopicConfig()
		config.Name, config.Value = name, kmsg.StringPtr(configs[name])
		topic.Configs = append(topic.Configs, config)
	}
	req := kmsg.NewPtrCreateTopicsRequest()
	req.TimeoutMillis = int32(adminTimeout.Milliseconds())
	req.ValidateOnly = validateOnly
	req.Topics = append(req.Topics, topic)
	resp, err := req.RequestWith(ctx, a.client)
	if err != nil {
		return err
	}
	if len(resp.Topics) != 1 {
		return fmt.Errorf("create topic: the broker answered for %d topics", len(resp.Topics))
	}
	return codeError(resp.Topics[0].ErrorCode, resp.Topics[0].ErrorMessage)
}

// DeleteTopic deletes the topic with this ID, whose name must be given as well,
// and waits until no broker knows it. A later topic of that name is not touched;
// if the topic is gone already, that is no error.
func (a *Admin) DeleteTopic(ctx context.Context, name string, id TopicID) error {
	topic := kmsg.NewDeleteTopicsRequestTopic()
	topic.TopicID = id
	req := kmsg.NewPtrDeleteTopicsRequest()
	req.TimeoutMillis = int32(adminTimeout.Milliseconds())
	req.Topics = append(req.Topics, topic)
	resp, err := req.RequestWith(ctx, a.client)
	if err != nil {
		return err
	}
	for _, topic := range resp.Topics {
		err := codeError(topic.ErrorCode, topic.ErrorMessage)
		if err != nil && !errors.Is(err, kerr.UnknownTopicID) && !errors.Is(err, kerr.UnknownTopicOrPartition) {
			return err
		}
	}
	return poll(ctx, func() (bool, error) {
		seen, err := a.seen(ctx, name)
		_, there := seen[id]
		return !there, err
	})
}

// Topics returns all topics of the cluster, by name.
func (a *Admin) Topics(ctx context.Context) (map[string]TopicInfo, error) {
	return describeTopics(ctx, a.client)
}

// Topic returns one topic, or false if no broker knows it.
func (a *Admin) Topic(ctx context.Context, name string) (info TopicInfo, ok bool, err error) {
	err = poll(ctx, func() (bool, error) {
		seen, err := a.seen(ctx, name)
		if err != nil || len(seen) > 1 {
			return false, err // more than one: it was deleted and created again just now
		}
		for _, info = range seen {
			ok = true
		}
		return true, nil
	})
	return info, ok, err
}

// seen returns the topics of this name that brokers know, by ID. It asks every
// broker, for one may not have heard yet of a topic, or of its end.
func (a *Admin) seen(ctx context.Context, name string) (map[TopicID]TopicInfo, error) {
	views, err := onEachBroker(ctx, a, func(b *kgo.Broker) (map[string]TopicInfo, error) {
		return describeTopics(ctx, b, name)
	})
	if err != nil {
		return nil, err
	}
	seen := make(map[TopicID]TopicInfo)
	for _, topics := range views {
		if info, ok := topics[name]; ok {
			seen[info.ID] = info
		}
	}
	return seen, nil
}

// describeTopics asks for the named topics, or for all of them.
func describeTopics(ctx context.Context, to kmsg.Requestor, names ...string) (map[string]TopicInfo, error) {
	req := kmsg.NewPtrMetadataRequest()
	req.AllowAutoTopicCreation = false
	for _, name := range names {
		topic := kmsg.NewMetadataRequestTopic()
		topic.Topic = kmsg.StringPtr(name)
		req.Topics = append(req.Topics, topic)
	}
	resp, err := req.RequestWith(ctx, to)
	if err != nil {
		return nil, err
	}
	topics := make(map[string]TopicInfo, len(resp.Topics))
	for _, topic := range resp.Topics {
		switch err := kerr.ErrorForCode(topic.ErrorCode); {
		case topic.Topic == nil, errors.Is(err, kerr.UnknownTopicOrPartition):
			continue
		case err != nil && !kerr.IsRetriable(err):
			return nil, fmt.Errorf("describe topic %q: %w", *topic.Topic, err)
		}
		info := TopicInfo{ID: topic.TopicID, Partitions: len(topic.Partitions), Led: len(topic.Partitions) > 0}
		for _, partition := range topic.Partitions {
			info.Replicas = len(partition.Replicas)
			info.Led = info.Led && partition.Leader >= 0
		}
		topics[*topic.Topic] = info
	}
	return topics, nil
}

// StartOffset returns the offset of the partition's first record.
func (a *Admin) StartOffset(ctx context.Context, topic string, partition int32) (int64, error) {
	const earliest = -2
	return a.listOffset(ctx, topic, partition, earliest)
}

// EndOffset returns the offset that the partition's next record gets. All before
// it are acknowledged.
func (a *Admin) EndOffset(ctx context.Context, topic string, partition int32) (int64, error) {
	const latest = -1
	return a.listOffset(ctx, topic, partition, latest)
}

func (a *Admin) listOffset(ctx context.Context, topic string, partition int32, timestamp int64) (int64, error) {
	p := kmsg.NewListOffsetsRequestTopicPartition()
	p.Partition, p.Timestamp = partition, timestamp
	t := kmsg.NewListOffsetsRequestTopic()
	t.Topic, t.Partitions = topic, append(t.Partitions, p)
	req := kmsg.NewPtrListOffsetsRequest()
	req.ReplicaID = -1
	req.Topics = append(req.Topics, t)
	resp, err := req.RequestWith(ctx, a.client)
	if err != nil {
		return 0, err
	}
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return 0, errors.New("list offsets: the broker did not answer for the partition")
	}
	got := resp.Topics[0].Partitions[0]
	return got.Offset, kerr.ErrorForCode(got.ErrorCode)
}

// MendTopicConfigs makes an existing topic's settings those of spec and returns
// the names of the settings that were not.
func (a *Admin) MendTopicConfigs(ctx context.Context, spec TopicSpec) ([]string, error) {
	want := spec.configs()
	delete(want, "min.insync.replicas") // the cluster's own choice, once the topic exists
	have, err := a.topicConfigs(ctx, spec.Name)
	if err != nil {
		return nil, err
	}
	var wrong []string
	resource := kmsg.NewIncrementalAlterConfigsRequestResource()
	resource.ResourceType, resource.ResourceName = kmsg.ConfigResourceTypeTopic, spec.Name
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if have[name] == want[name] {
			continue
		}
		wrong = append(wrong, name)
		config := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
		config.Name, config.Value = name, kmsg.StringPtr(want[name])
		resource.Configs = append(resource.Configs, config)
	}
	if len(wrong) == 0 {
		return nil, nil
	}
	req := kmsg.NewPtrIncrementalAlterConfigsRequest()
	req.Resources = append(req.Resources, resource)
	resp, err := req.RequestWith(ctx, a.client)
	if err != nil {
		return nil, err
	}
	for _, r := range resp.Resources {
		if err := codeError(r.ErrorCode, r.ErrorMessage); err != nil {
			return nil, err
		}
	}
	return wrong, nil
}

func (a *Admin) topicConfigs(ctx context.Context, name string) (map[string]string, error) {
	resource := kmsg.NewDescribeConfigsRequestResource()
	resource.ResourceType, resource.ResourceName = kmsg.ConfigResourceTypeTopic, name
	req := kmsg.NewPtrDescribeConfigsRequest()
	req.Resources = append(req.Resources, resource)
	resp, err := req.RequestWith(ctx, a.client)
	if err != nil {
		return nil, err
	}
	configs := make(map[string]string)
	for _, r := range resp.Resources {
		if err := codeError(r.ErrorCode, r.ErrorMessage); err != nil {
			return nil, err
		}
		for _, config := range r.Configs {
			if config.Value != nil {
				configs[config.Name] = *config.Value
			}
		}
	}
	return configs, nil
}

// brokers returns the brokers that the cluster counts as alive.
func (a *Admin) brokers(ctx context.Context) ([]*kgo.Broker, error) {
	req := kmsg.NewPtrMetadataRequest()
	req.Topics = []kmsg.MetadataRequestTopic{} // none; nil would be all
	resp, err := req.RequestWith(ctx, a.client)
	if err != nil {
		return nil, err
	}
	brokers := make([]*kgo.Broker, 0, len(resp.Brokers))
	for _, b := range resp.Brokers {
		brokers = append(brokers, a.client.Broker(int(b.NodeID)))
	}
	if len(brokers) == 0 {
		return nil, kerr.BrokerNotAvailable
	}
	return brokers, nil
}

// onEachBroker asks all brokers at once that the cluster counts as alive, and
// returns what each of them says.
func onEachBroker[T any](ctx context.Context, a *Admin, ask func(*kgo.Broker) (T, error)) ([]T, error) {
	brokers, err := a.brokers(ctx)
	if err != nil {
		return nil, err
	}
	answers := make([]T, len(brokers))
	var asking errgroup.Group
	for i, b := range brokers {
		asking.Go(func() (err error) {
			answers[i], err = ask(b)
			return err
		})
	}
	if err := asking.Wait(); err != nil {
		return nil, err
	}
	return answers, nil
}

// poll calls done until it is true, and in the meantime sits out outages.
func poll(ctx context.Context, done func() (bool, error)) error {
	const least, most = 2 * time.Millisecond, 250 * time.Millisecond
	for pause := least; ; pause = min(2*pause, most) {
		ok, err := done()
		if ok && err == nil {
			return nil
		}
		if err != nil {
			if condition, _ := Explain(err); condition != Unavailable {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(pause):
		}
	}
}

// codeError returns the error that a response's code and message stand for.
func codeError(code int16, message *string) error {
	err := kerr.ErrorForCode(code)
	if err != nil && message != nil && *message != "" {
		return fmt.Errorf("%w: %s", err, *message)
	}
	return err
}

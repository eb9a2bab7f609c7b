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

	"github.com/diaspora-streams/diaspora/internal/backoff"
)

// Admin administers topics and ACLs of a cluster. Its client must be signed in as a principal that
// may do so. A change is in effect when every live broker has it, not only the one that was asked;
// each method says whether it waits for that. Its methods may be called concurrently.
type Admin struct {
	client *kgo.Client
}

// NewAdmin returns an Admin that uses client. The caller still owns client and closes it.
func NewAdmin(client *kgo.Client) *Admin { return &Admin{client: client} }

// adminTimeout is how long a broker may take for one change.
const adminTimeout = 15 * time.Second

// TopicID tells a topic from a later one of the same name.
type TopicID [16]byte

// TopicInfo describes a topic of the cluster.
type TopicInfo struct {
	ID         TopicID
	Partitions int
	Replicas   int  // of the last partition
	Led        bool // each partition has a leader; if not, the numbers may be too low
}

// TopicSpec describes the topic that should exist.
type TopicSpec struct {
	Name       string
	Partitions int
	// Replicas is the number of replicas of each partition. 0 means three, or one if the cluster
	// has a single broker.
	Replicas int
	// Retention is how long records are kept; negative means forever.
	Retention time.Duration
	// MaxBytes is the size of a partition above which its oldest records are deleted; 0 means no limit.
	MaxBytes int64
	// Compact says that the last record of each key is kept, whatever its age.
	Compact bool
}

// configs returns the settings of the topic. Records get the broker's time (LogAppendTime). With
// the producer's time, records that arrive late could be past their retention on arrival, and
// records from a clock that is fast would be rejected.
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
	if s.MaxBytes > 0 {
		configs["retention.bytes"] = strconv.FormatInt(s.MaxBytes, 10)
	}
	if s.Compact {
		configs["cleanup.policy"] = "compact"
	}
	return configs
}

// lasting returns the settings that an existing topic should have. min.insync.replicas is the
// operator's choice then.
func (s TopicSpec) lasting() map[string]string {
	configs := s.configs()
	delete(configs, "min.insync.replicas")
	return configs
}

// CheckTopic returns why CreateTopic would fail, without creating a topic. If the topic exists
// already, the error is [kerr.TopicAlreadyExists].
func (a *Admin) CheckTopic(ctx context.Context, spec TopicSpec) error {
	return a.createTopic(ctx, spec, true)
}

// CreateTopic creates a topic, unless one of that name exists. created reports whether it did.
// ready reports whether every broker can serve the topic; if it is false, call CreateTopic again.
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

// SetTopic creates a topic, unless one of that name exists, and sets its ACLs as [Admin.SetACLs]
// does. It does both at the same time, because each waits for a majority of the controllers and
// neither needs the other. If the topic is new, it adds the ACLs without looking for them first.
// created reports whether it created the topic, also if there is an error. done reports whether every
// broker can serve the topic and has its ACLs; if it is false, call SetTopic again.
func (a *Admin) SetTopic(ctx context.Context, spec TopicSpec, isNew bool, want []ACL, made func(ACL) bool) (created, done bool, err error) {
	var brokers []int32
	var work errgroup.Group // without a context: a failure to set ACLs must not hide whether the topic was created
	work.Go(func() error {
		err := a.createTopic(ctx, spec, false)
		created = err == nil
		if errors.Is(err, kerr.TopicAlreadyExists) {
			return nil
		}
		return err
	})
	work.Go(func() (err error) {
		brokers, err = a.brokers(ctx)
		return err
	})
	if isNew {
		work.Go(func() error { return a.createACLs(ctx, want) })
	}
	if err := work.Wait(); err != nil {
		return created, false, err
	}
	views := make([]topicView, len(brokers))
	var asking errgroup.Group
	for i, id := range brokers {
		broker, v := a.client.Broker(int(id)), &views[i]
		asking.Go(func() error {
			return awaitChange(ctx, isNew, func() (bool, error) {
				topics, live, err := describeTopicsAndBrokers(ctx, broker, spec.Name)
				v.led, v.brokers = topics[spec.Name].Led, live
				return v.led, err
			})
		})
		asking.Go(func() error {
			return awaitChange(ctx, isNew, func() (seen bool, err error) {
				v.acls, err = describeACLs(ctx, broker, TopicResource(spec.Name))
				return len(except(want, v.acls)) == 0, err
			})
		})
	}
	if err := asking.Wait(); err != nil {
		return created, false, err
	}
	done = true
	have := make([][]ACL, len(views))
	for i, v := range views {
		// A broker that joined the cluster in the meantime was not asked.
		joined := func(id int32) bool { return !slices.Contains(brokers, id) }
		done = done && v.led && !slices.ContainsFunc(v.brokers, joined)
		have[i] = v.acls
	}
	hold, err := a.mendACLs(ctx, have, want, made)
	return created, done && hold, err
}

// topicView is what one broker says about a topic.
type topicView struct {
	led     bool // it can serve the topic
	acls    []ACL
	brokers []int32 // the live brokers
}

// maxLag is the last pause of awaitChange before it gives up.
const maxLag = 32 * time.Millisecond

// awaitChange calls seen. If something was just changed, it calls seen again until that returns true,
// or for a moment: changes reach every broker soon, and everything else has to be repaired.
func awaitChange(ctx context.Context, changed bool, seen func() (bool, error)) error {
	for pause := time.Millisecond; ; pause *= 2 {
		if ok, err := seen(); ok || err != nil || !changed || pause > maxLag || !backoff.Sleep(ctx, pause) {
			return err
		}
	}
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

// DeleteTopic deletes the topic with this ID and waits until no broker knows it. name must be its
// name. A later topic of the same name is not affected. If the topic does not exist, that is no
// error.
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

// Topic returns one topic. ok is false if no broker knows it.
func (a *Admin) Topic(ctx context.Context, name string) (info TopicInfo, ok bool, err error) {
	err = poll(ctx, func() (bool, error) {
		seen, err := a.seen(ctx, name)
		if err != nil || len(seen) > 1 {
			return false, err // two IDs: the topic was deleted and created again just now
		}
		for _, info = range seen {
			ok = true
		}
		return true, nil
	})
	return info, ok, err
}

// seen returns the topics of this name that brokers know, by ID. It asks every broker, because a
// broker may not know yet that a topic was created or deleted.
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

// describeTopics returns the named topics, or all topics if there are no names.
func describeTopics(ctx context.Context, to kmsg.Requestor, names ...string) (map[string]TopicInfo, error) {
	topics, _, err := describeTopicsAndBrokers(ctx, to, names...)
	return topics, err
}

// describeTopicsAndBrokers is describeTopics, and also returns the IDs of the live brokers.
func describeTopicsAndBrokers(ctx context.Context, to kmsg.Requestor, names ...string) (map[string]TopicInfo, []int32, error) {
	req := kmsg.NewPtrMetadataRequest()
	req.AllowAutoTopicCreation = false
	for _, name := range names {
		topic := kmsg.NewMetadataRequestTopic()
		topic.Topic = kmsg.StringPtr(name)
		req.Topics = append(req.Topics, topic)
	}
	resp, err := req.RequestWith(ctx, to)
	if err != nil {
		return nil, nil, err
	}
	topics := make(map[string]TopicInfo, len(resp.Topics))
	for _, topic := range resp.Topics {
		switch err := kerr.ErrorForCode(topic.ErrorCode); {
		case topic.Topic == nil, errors.Is(err, kerr.UnknownTopicOrPartition):
			continue
		case err != nil && !kerr.IsRetriable(err):
			return nil, nil, fmt.Errorf("describe topic %q: %w", *topic.Topic, err)
		}
		info := TopicInfo{ID: topic.TopicID, Partitions: len(topic.Partitions), Led: len(topic.Partitions) > 0}
		for _, partition := range topic.Partitions {
			info.Replicas = len(partition.Replicas)
			info.Led = info.Led && partition.Leader >= 0
		}
		topics[*topic.Topic] = info
	}
	return topics, ids(resp.Brokers), nil
}

// StartOffset returns the offset of the first record of a partition.
func (a *Admin) StartOffset(ctx context.Context, topic string, partition int32) (int64, error) {
	return a.listOffset(ctx, Partition{topic, partition}, earliest)
}

// EndOffset returns the offset that the next record of a partition will get. All records before it
// are acknowledged.
func (a *Admin) EndOffset(ctx context.Context, topic string, partition int32) (int64, error) {
	return a.listOffset(ctx, Partition{topic, partition}, latest)
}

func (a *Admin) listOffset(ctx context.Context, id Partition, timestamp int64) (int64, error) {
	offsets, err := listOffsets(ctx, a.client, []Partition{id}, timestamp, readUncommitted)
	return offsets[id], err
}

// ChangeTopic gives an existing topic the settings of spec, and adds partitions if it has fewer. It
// waits until every broker can serve the new partitions.
func (a *Admin) ChangeTopic(ctx context.Context, spec TopicSpec) error {
	if _, err := a.MendTopicConfigs(ctx, spec); err != nil {
		return err
	}
	return poll(ctx, func() (bool, error) {
		views, err := onEachBroker(ctx, a, func(b *kgo.Broker) (map[string]TopicInfo, error) {
			return describeTopics(ctx, b, spec.Name)
		})
		if err != nil {
			return false, err
		}
		most, ready := 0, true
		for _, topics := range views {
			info := topics[spec.Name]
			most = max(most, info.Partitions)
			ready = ready && info.Led && info.Partitions >= spec.Partitions
		}
		if most >= spec.Partitions || most == 0 {
			return ready, nil
		}
		return false, a.addPartitions(ctx, spec.Name, spec.Partitions)
	})
}

// addPartitions gives a topic this number of partitions. It leaves a topic that has as many or more as it
// is.
func (a *Admin) addPartitions(ctx context.Context, name string, n int) error {
	topic := kmsg.NewCreatePartitionsRequestTopic()
	topic.Topic, topic.Count = name, int32(n)
	req := kmsg.NewPtrCreatePartitionsRequest()
	req.TimeoutMillis = int32(adminTimeout.Milliseconds())
	req.Topics = append(req.Topics, topic)
	resp, err := req.RequestWith(ctx, a.client)
	if err != nil {
		return err
	}
	for _, topic := range resp.Topics {
		err := codeError(topic.ErrorCode, topic.ErrorMessage)
		if err != nil && !errors.Is(err, kerr.InvalidPartitions) { // another replica was faster
			return err
		}
	}
	return nil
}

// MendTopicConfigs changes the settings of an existing topic to those of spec. It returns the names
// of the settings that it changed.
func (a *Admin) MendTopicConfigs(ctx context.Context, spec TopicSpec) ([]string, error) {
	want := spec.lasting()
	have, err := a.TopicConfigs(ctx, spec.Name)
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

// DifferentTopics returns which topics have other settings than they should have, by name. Topics that
// do not exist are not among them.
func (a *Admin) DifferentTopics(ctx context.Context, specs []TopicSpec) (map[string]bool, error) {
	const atOnce = 500
	different := make(map[string]bool)
	for specs := range slices.Chunk(specs, atOnce) {
		names := make([]string, len(specs))
		for i, spec := range specs {
			names[i] = spec.Name
		}
		have, err := a.describeConfigs(ctx, names)
		if err != nil {
			return nil, err
		}
		for _, spec := range specs {
			configs, exists := have[spec.Name]
			for name, want := range spec.lasting() {
				if exists && configs[name] != want {
					different[spec.Name] = true
				}
			}
		}
	}
	return different, nil
}

// TopicConfigs returns the settings of a topic.
func (a *Admin) TopicConfigs(ctx context.Context, name string) (map[string]string, error) {
	configs, err := a.describeConfigs(ctx, []string{name})
	if err == nil && configs[name] == nil {
		err = kerr.UnknownTopicOrPartition
	}
	return configs[name], err
}

// describeConfigs returns the settings of those topics that exist, by name.
func (a *Admin) describeConfigs(ctx context.Context, topics []string) (map[string]map[string]string, error) {
	req := kmsg.NewPtrDescribeConfigsRequest()
	for _, name := range topics {
		resource := kmsg.NewDescribeConfigsRequestResource()
		resource.ResourceType, resource.ResourceName = kmsg.ConfigResourceTypeTopic, name
		req.Resources = append(req.Resources, resource)
	}
	resp, err := req.RequestWith(ctx, a.client)
	if err != nil {
		return nil, err
	}
	all := make(map[string]map[string]string, len(topics))
	for _, r := range resp.Resources {
		switch err := codeError(r.ErrorCode, r.ErrorMessage); {
		case errors.Is(err, kerr.UnknownTopicOrPartition):
			continue
		case err != nil:
			return nil, err
		}
		configs := make(map[string]string, len(r.Configs))
		for _, config := range r.Configs {
			if config.Value != nil {
				configs[config.Name] = *config.Value
			}
		}
		all[r.ResourceName] = configs
	}
	return all, nil
}

// brokers returns the IDs of the live brokers, according to the cluster.
func (a *Admin) brokers(ctx context.Context) ([]int32, error) {
	req := kmsg.NewPtrMetadataRequest()
	req.Topics = []kmsg.MetadataRequestTopic{} // no topics; nil would mean all
	resp, err := req.RequestWith(ctx, a.client)
	if err != nil {
		return nil, err
	}
	if len(resp.Brokers) == 0 {
		return nil, kerr.BrokerNotAvailable
	}
	return ids(resp.Brokers), nil
}

func ids(brokers []kmsg.MetadataResponseBroker) []int32 {
	ids := make([]int32, 0, len(brokers))
	for _, b := range brokers {
		ids = append(ids, b.NodeID)
	}
	return ids
}

// onEachBroker calls ask for each live broker, concurrently, and returns the answers. It fails if
// any call fails.
func onEachBroker[T any](ctx context.Context, a *Admin, ask func(*kgo.Broker) (T, error)) ([]T, error) {
	brokers, err := a.brokers(ctx)
	if err != nil {
		return nil, err
	}
	answers := make([]T, len(brokers))
	var asking errgroup.Group
	for i, id := range brokers {
		asking.Go(func() (err error) {
			answers[i], err = ask(a.client.Broker(int(id)))
			return err
		})
	}
	if err := asking.Wait(); err != nil {
		return nil, err
	}
	return answers, nil
}

// poll calls done until it returns true. It retries through outages until ctx ends, and returns any
// other error.
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
		if !backoff.Sleep(ctx, pause) {
			return errors.Join(ctx.Err(), err)
		}
	}
}

// codeError returns the error for a response's code and message, or nil.
func codeError(code int16, message *string) error {
	err := kerr.ErrorForCode(code)
	if err != nil && message != nil && *message != "" {
		return fmt.Errorf("%w: %s", err, *message)
	}
	return err
}

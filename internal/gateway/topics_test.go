package gateway

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// change is a request that would create, change or delete topics.
type change struct {
	name    string
	request func(topics ...string) kmsg.Request
	says    string // the command in the answer, with %s for the topic
}

func createTopics(topics ...string) kmsg.Request {
	q := kmsg.NewPtrCreateTopicsRequest()
	for _, name := range topics {
		topic := kmsg.NewCreateTopicsRequestTopic()
		topic.Topic, topic.NumPartitions, topic.ReplicationFactor = name, 3, 1
		q.Topics = append(q.Topics, topic)
	}
	return q
}

func deleteTopics(topics ...string) kmsg.Request {
	q := kmsg.NewPtrDeleteTopicsRequest()
	for _, name := range topics {
		q.TopicNames = append(q.TopicNames, name)
		q.Topics = append(q.Topics, kmsg.DeleteTopicsRequestTopic{Topic: &name})
	}
	return q
}

func createPartitions(topics ...string) kmsg.Request {
	q := kmsg.NewPtrCreatePartitionsRequest()
	for _, name := range topics {
		topic := kmsg.NewCreatePartitionsRequestTopic()
		topic.Topic, topic.Count = name, 6
		q.Topics = append(q.Topics, topic)
	}
	return q
}

// alterConfigs changes the configs with these names.
func alterConfigs(configs ...string) func(topics ...string) kmsg.Request {
	return func(topics ...string) kmsg.Request {
		q := kmsg.NewPtrAlterConfigsRequest()
		for _, name := range topics {
			resource := kmsg.AlterConfigsRequestResource{ResourceType: kmsg.ConfigResourceTypeTopic, ResourceName: name}
			for _, config := range configs {
				resource.Configs = append(resource.Configs, kmsg.AlterConfigsRequestResourceConfig{Name: config, Value: kmsg.StringPtr("1000")})
			}
			q.Resources = append(q.Resources, resource)
		}
		return q
	}
}

// setConfigs is the same with IncrementalAlterConfigs.
func setConfigs(configs ...string) func(topics ...string) kmsg.Request {
	return func(topics ...string) kmsg.Request {
		q := kmsg.NewPtrIncrementalAlterConfigsRequest()
		for _, name := range topics {
			resource := kmsg.IncrementalAlterConfigsRequestResource{ResourceType: kmsg.ConfigResourceTypeTopic, ResourceName: name}
			for _, config := range configs {
				resource.Configs = append(resource.Configs, kmsg.IncrementalAlterConfigsRequestResourceConfig{Name: config, Value: kmsg.StringPtr("1000")})
			}
			q.Resources = append(q.Resources, resource)
		}
		return q
	}
}

var topicChanges = []change{
	{"create", createTopics, `Kafka clients cannot create topics: run "diaspora topic claim %s --partitions 3"`},
	{"delete", deleteTopics, `Kafka clients cannot delete topics: run "diaspora topic release %s"`},
	{"partitions", createPartitions, `Kafka clients cannot add partitions: run "diaspora topic set %s --partitions 6"`},
	{"configs", alterConfigs("retention.bytes", "retention.ms"), `Kafka clients cannot change the settings of topics: run "diaspora topic set %s --retention TIME --max-bytes SIZE"`},
	{"one config", setConfigs("cleanup.policy"), `Kafka clients cannot change the settings of topics: run "diaspora topic set %s --compact"`},
	{"other config", setConfigs("retention.ms", "segment.bytes"), `Kafka clients cannot change the settings of topics: run "diaspora topic set %s --retention TIME"; owners can change only retention.ms, retention.bytes and cleanup.policy`},
}

// topicError is what an answer says of one topic or other resource.
type topicError struct {
	code    int16
	message string
}

// topicErrors are the errors in an answer, by the name of the topic or other resource.
func topicErrors(answer kmsg.Response) map[string]topicError {
	all := map[string]topicError{}
	add := func(name *string, code int16, message *string) {
		if name == nil {
			name = kmsg.StringPtr("ID")
		}
		if message == nil {
			message = new(string)
		}
		all[*name] = topicError{code, *message}
	}
	switch a := answer.(type) {
	case *kmsg.CreateTopicsResponse:
		for _, t := range a.Topics {
			add(&t.Topic, t.ErrorCode, t.ErrorMessage)
		}
	case *kmsg.DeleteTopicsResponse:
		for _, t := range a.Topics {
			add(t.Topic, t.ErrorCode, t.ErrorMessage)
		}
	case *kmsg.CreatePartitionsResponse:
		for _, t := range a.Topics {
			add(&t.Topic, t.ErrorCode, t.ErrorMessage)
		}
	case *kmsg.AlterConfigsResponse:
		for _, t := range a.Resources {
			add(&t.ResourceName, t.ErrorCode, t.ErrorMessage)
		}
	case *kmsg.IncrementalAlterConfigsResponse:
		for _, t := range a.Resources {
			add(&t.ResourceName, t.ErrorCode, t.ErrorMessage)
		}
	}
	return all
}

// oldest is the first version of each request that the embedded broker supports.
func (f *front) oldest(t *testing.T, c *raw, key int16) int16 {
	t.Helper()
	for _, k := range c.ask(apiVersions(3)).(*kmsg.ApiVersionsResponse).ApiKeys {
		if k.ApiKey == key {
			return k.MinVersion
		}
	}
	t.Fatalf("%s is not offered", kmsg.NameForKey(key))
	return 0
}

// allow grants ada all operations on topics and on the cluster, as an operator can.
func (f *front) allow(t *testing.T, topics ...string) {
	t.Helper()
	acls := kadm.NewACLs().Operations(kadm.OpAll).Allow("User:" + ada).AllowHosts("*").ResourcePatternType(kadm.ACLPatternLiteral).Topics(topics...)
	if len(topics) == 0 {
		acls = acls.Clusters()
	}
	for _, made := range must(f.admin.CreateACLs(t.Context(), acls)) {
		testkit.Must(t, made.Err)
	}
}

// TestTopicsAreTheLedgers: the gateway refuses to create, change and delete topics in every version,
// even if the broker would allow it. The answer names the command to use instead, and is the same
// for every topic.
func TestTopicsAreTheLedgers(t *testing.T) {
	f := start(t)
	f.claim(t, "weather", ada)
	f.claim(t, "snow", bert)
	f.allow(t)
	f.allow(t, "weather", "snow", "nobodys")
	f.tokens.issue("ada-token", ada, time.Hour)
	c := f.login(t, "ada-token")
	before := must(f.admin.ListTopics(t.Context()))
	configs := must(f.admin.DescribeTopicConfigs(t.Context(), "weather", "snow"))
	for _, change := range topicChanges {
		request := change.request("weather", "snow", "nobodys")
		for version := f.oldest(t, c, request.Key()); version <= request.MaxVersion(); version++ {
			for _, validate := range []bool{false, true} {
				request := change.request("weather", "snow", "nobodys")
				request.SetVersion(version)
				setValidateOnly(request, validate)
				got := topicErrors(c.ask(request))
				for _, name := range []string{"weather", "snow", "nobodys"} {
					want := topicError{kerr.TopicAuthorizationFailed.Code, fmt.Sprintf(change.says, name)}
					if change.name == "delete" && version < 5 {
						want.message = "" // the answer has none before version 5
					}
					if got[name] != want {
						t.Errorf("%s, version %d, of %s: %+v, want %+v", change.name, version, name, got[name], want)
					}
				}
				if len(got) != 3 {
					t.Errorf("%s, version %d: answers for %v", change.name, version, got)
				}
			}
		}
	}
	byID := kmsg.NewPtrDeleteTopicsRequest()
	byID.Version = 6
	for _, id := range [][16]byte{f.topicID(t, "weather"), f.topicID(t, "snow"), {1}} {
		byID.Topics = append(byID.Topics, kmsg.DeleteTopicsRequestTopic{TopicID: id})
	}
	byID.Topics = append(byID.Topics, kmsg.DeleteTopicsRequestTopic{TopicID: f.topicID(t, "weather"), Topic: kmsg.StringPtr("not-claimable")}, kmsg.DeleteTopicsRequestTopic{})
	for i, topic := range c.ask(byID).(*kmsg.DeleteTopicsResponse).Topics {
		if topic.ErrorCode != kerr.TopicAuthorizationFailed.Code || topic.ErrorMessage == nil || topic.TopicID != byID.Topics[i].TopicID ||
			*topic.ErrorMessage != `Kafka clients cannot delete topics: run "diaspora topic release TOPIC"` {
			t.Errorf("delete by ID: %+v", topic)
		}
	}
	after := must(f.admin.ListTopics(t.Context()))
	if fmt.Sprint(before.Names()) != fmt.Sprint(after.Names()) || len(after["weather"].Partitions) != len(before["weather"].Partitions) {
		t.Errorf("the topics were %v, and are %v", before, after)
	}
	if now := must(f.admin.DescribeTopicConfigs(t.Context(), "weather", "snow")); fmt.Sprint(textOf(configs)) != fmt.Sprint(textOf(now)) {
		t.Errorf("the settings were %v, and are %v", textOf(configs), textOf(now))
	}
}

// textOf lists the configs of topics.
func textOf(topics kadm.ResourceConfigs) (all []string) {
	for _, topic := range topics {
		for _, config := range topic.Configs {
			all = append(all, topic.Name+" "+config.Key+"="+config.MaybeValue())
		}
	}
	slices.Sort(all)
	return all
}

func setValidateOnly(request kmsg.Request, validate bool) {
	switch q := request.(type) {
	case *kmsg.CreateTopicsRequest:
		q.ValidateOnly = validate
	case *kmsg.CreatePartitionsRequest:
		q.ValidateOnly = validate
	case *kmsg.AlterConfigsRequest:
		q.ValidateOnly = validate
	case *kmsg.IncrementalAlterConfigsRequest:
		q.ValidateOnly = validate
	}
}

// TestOtherNamesAreTheBrokers: names that cannot be claimed are not in the ledger, and so an operator
// can let a person create, change and delete such topics. A request may name both.
func TestOtherNamesAreTheBrokers(t *testing.T) {
	f := start(t)
	f.claim(t, "weather", ada)
	f.allow(t, "analysis-counts-changelog", "weather")
	f.tokens.issue("ada-token", ada, time.Hour)
	c := f.login(t, "ada-token")
	for _, change := range []change{topicChanges[0], topicChanges[2], topicChanges[3], topicChanges[1]} { // delete comes last
		request := change.request("weather", "analysis-counts-changelog", "_diaspora_ledger", "not-allowed")
		request.SetVersion(request.MaxVersion())
		got := topicErrors(c.ask(request))
		want := map[string]topicError{"weather": {kerr.TopicAuthorizationFailed.Code, fmt.Sprintf(change.says, "weather")}, "analysis-counts-changelog": {}}
		for name, want := range want {
			if got[name] != want {
				t.Errorf("%s of %s: %+v, want %+v", change.name, name, got[name], want)
			}
		}
		for _, name := range []string{"_diaspora_ledger", "not-allowed"} {
			if e := got[name]; e.code != kerr.TopicAuthorizationFailed.Code || strings.Contains(e.message, "diaspora topic") {
				t.Errorf("%s of %s: %+v, want the broker's refusal", change.name, name, e)
			}
		}
		request = change.request("analysis-counts-changelog")
		request.SetVersion(request.MaxVersion())
		if e := topicErrors(c.ask(request))["analysis-counts-changelog"]; e.code == kerr.TopicAuthorizationFailed.Code {
			t.Errorf("%s alone: %+v", change.name, e)
		}
	}
	if topics := must(f.admin.ListTopics(t.Context())); topics.Has("analysis-counts-changelog") || !topics.Has("weather") {
		t.Errorf("the topics after all: %v", topics.Names())
	}
}

// TestConfigsOfOtherResources: the broker answers for brokers and groups, also if the same request
// names topics. It knows the groups by their prefix. The embedded broker has no configs of groups.
func TestConfigsOfOtherResources(t *testing.T) {
	f := start(t)
	f.claim(t, "weather", ada)
	f.tokens.issue("ada-token", ada, time.Hour)
	group := kadm.NewACLs().Groups(kafka.UserGroups + ada + ".analysis").ResourcePatternType(kadm.ACLPatternLiteral).Operations(kadm.OpAlterConfigs).Allow("User:" + ada).AllowHosts("*")
	for _, made := range must(f.admin.CreateACLs(t.Context(), group)) {
		testkit.Must(t, made.Err)
	}
	c := f.login(t, "ada-token")
	for _, request := range []kmsg.Request{alterConfigs("retention.ms")("weather"), setConfigs("retention.ms")("weather")} {
		switch q := request.(type) {
		case *kmsg.AlterConfigsRequest:
			q.Resources = append(q.Resources, kmsg.AlterConfigsRequestResource{ResourceType: kmsg.ConfigResourceTypeBroker, ResourceName: "0"},
				kmsg.AlterConfigsRequestResource{ResourceType: groupConfig, ResourceName: "analysis"})
		case *kmsg.IncrementalAlterConfigsRequest:
			q.Resources = append(q.Resources, kmsg.IncrementalAlterConfigsRequestResource{ResourceType: kmsg.ConfigResourceTypeBroker, ResourceName: "0"},
				kmsg.IncrementalAlterConfigsRequestResource{ResourceType: groupConfig, ResourceName: "analysis"})
		}
		for version := range request.MaxVersion() + 1 {
			request.SetVersion(version)
			got := topicErrors(c.ask(request))
			if len(got) != 3 || got["0"].code != kerr.ClusterAuthorizationFailed.Code || got["analysis"].code != kerr.InvalidRequest.Code || strings.Contains(got["analysis"].message, ada) ||
				!strings.Contains(got["weather"].message, "diaspora topic set weather") {
				t.Errorf("%T version %d: %+v", request, version, got)
			}
		}
	}
}

// TestRefusedTopicsInOrder: answers come in the order of the requests, even if the broker takes time
// to answer an earlier one.
func TestRefusedTopicsInOrder(t *testing.T) {
	f := start(t)
	f.claim(t, "weather", ada)
	f.tokens.issue("ada-token", ada, time.Hour)
	c := f.login(t, "ada-token")
	slow := kmsg.NewPtrFetchRequest()
	slow.Version, slow.MaxWaitMillis, slow.MinBytes, slow.MaxBytes = 4, 100, 1, 1<<20
	partition := kmsg.NewFetchRequestTopicPartition()
	partition.PartitionMaxBytes = 1 << 20
	slow.Topics = []kmsg.FetchRequestTopic{{Topic: "weather", Partitions: []kmsg.FetchRequestTopicPartition{partition}}}
	for _, names := range [][]string{{"weather"}, {"not-allowed"}, {"weather", "not-allowed"}} {
		var requests []kmsg.Request
		for _, change := range topicChanges {
			request := change.request(names...)
			request.SetVersion(request.MaxVersion())
			requests = append(requests, slow, request, metadata())
		}
		go func() {
			for i, r := range requests {
				c.send(appendRequest(r, int32(i)))
			}
		}()
		for i, r := range requests {
			if _, err := c.response(r, int32(i)); err != nil {
				t.Fatalf("%q, %T: %v", names, r, err)
			}
		}
	}
}

// TestManyRefusedTopics: a request with as many topics as fit in it is answered, and the answer is not
// much larger than the request.
func TestManyRefusedTopics(t *testing.T) {
	f := start(t)
	f.tokens.issue("ada-token", ada, time.Hour)
	c := f.login(t, "ada-token")
	topics := make([]string, 90_000)
	for i := range topics {
		topics[i] = "x"
	}
	request := createTopics(topics...).(*kmsg.CreateTopicsRequest)
	request.Version = 7
	frame := appendRequest(request, 42)
	if len(frame) > maxSmallRequestBytes {
		request.Topics = request.Topics[:len(request.Topics)*maxSmallRequestBytes/len(frame)-1]
		frame = appendRequest(request, 42)
	}
	c.send(frame)
	answer, err := c.response(request, 42)
	testkit.Must(t, err)
	got := answer.(*kmsg.CreateTopicsResponse).Topics
	messages := 0
	for _, topic := range got {
		if topic.ErrorCode != kerr.TopicAuthorizationFailed.Code {
			t.Fatalf("%+v", topic)
		}
		if topic.ErrorMessage != nil {
			messages++
		}
	}
	if size := len(answer.AppendTo(nil)); len(got) != len(request.Topics) || messages != maxHints || size > 4*len(frame) {
		t.Errorf("%d topics of %d, %d with a message, %d bytes for a request of %d", len(got), len(request.Topics), messages, size, len(frame))
	}
	c.wantAlive()
}

// TestNamesInRefusals: only names that can be claimed get into a message, because people copy the
// command from there into a shell.
func TestNamesInRefusals(t *testing.T) {
	for _, name := range []string{"", "-x", "a b", "x; rm -rf ~", "$(id)", "a\nb", "ü", "_x", "x.y", strings.Repeat("x", 250), string(bytes.Repeat([]byte{0xff}, 100))} {
		for _, change := range topicChanges {
			if refused := takeTopics(change.request(name)); refused.count > 0 {
				t.Errorf("%s of %q is refused by the gateway", change.name, name)
			}
		}
	}
}

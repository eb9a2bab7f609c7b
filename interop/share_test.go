package interop

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/inside"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// What somebody may do with a topic that is shared, in words.
const (
	nothing    = ""
	mayRead    = "read"
	mayWrite   = "write"
	mayBoth    = "read write"
	everything = "read write manage"
)

// anyone stands for all people and all their clients.
const anyone = "anyone"

// sharing is a topic of Ada's with those who use it, and those who would like to.
type sharing struct {
	f       *fabric.Fabric
	people  map[string]diaspora.Config
	clients []sharingClient
	topic   string
	id      [16]byte
}

// sharingClient is a plain Kafka client of a person.
type sharingClient struct {
	person, how string
	limit       string // what it may do at most, whatever the person may
	*kgo.Client
}

func startSharing(t *testing.T, cfg fabric.Config) *sharing {
	t.Helper()
	s := &sharing{f: start(t, cfg), people: map[string]diaspora.Config{}}
	s.people["ada"], s.people["grace"] = fabrictest.As(t, s.f, ada), fabrictest.As(t, s.f, grace)
	s.people["lin"], s.people["eve"] = newcomer(t, s.f), newcomer(t, s.f)
	s.topic = claim(t, s.people["ada"], 1)
	topics, err := fabrictest.Admin(t, s.f).ListTopics(testkit.Within(t), s.topic)
	testkit.Must(t, err)
	s.id = topics[s.topic].ID
	for _, person := range []string{"ada", "grace", "lin", "eve"} {
		token, err := s.people[person].TokenSource.Token(testkit.Within(t))
		testkit.Must(t, err)
		s.enter(t, person, "token", everything, oauthOf(token))
	}
	return s
}

// enter signs a person in with a plain client.
func (s *sharing) enter(t *testing.T, person, how, limit string, mechanism sasl.Mechanism) {
	t.Helper()
	s.clients = append(s.clients, sharingClient{person, how, limit, fabrictest.Kafka(t, s.f, mechanism)})
}

// enterWithKey signs a person in with an access key, in both ways.
func (s *sharing) enterWithKey(t *testing.T, person, how, limit string, key diaspora.AccessKeyRequest) {
	t.Helper()
	for way, mechanism := range waysIn(t, s.f, createKey(t, s.people[person], key)) {
		s.enter(t, person, how+" by "+way, limit, mechanism)
	}
}

// as is the client of the ACL endpoint of a person.
func (s *sharing) as(t *testing.T, person string) *diaspora.Client {
	t.Helper()
	return fabrictest.Client(t, s.people[person])
}

func (s *sharing) subject(person string) string { return s.people[person].Identity.Subject }

// share shares the topic with a person by username, or as the request says.
func (s *sharing) share(t *testing.T, by, with string, r diaspora.GrantRequest) {
	t.Helper()
	if with != "" {
		r.Username = s.people[with].Identity.Username
	}
	_, err := s.as(t, by).Share(testkit.Within(t), s.topic, r)
	testkit.Must(t, err)
}

func (s *sharing) unshare(t *testing.T, by, grantee string) {
	t.Helper()
	testkit.Must(t, s.as(t, by).Unshare(testkit.Within(t), s.topic, grantee))
}

// wants asks each node directly what each client may do, once. The others may do nothing.
func (s *sharing) wants(t *testing.T, when string, want map[string]string) {
	t.Helper()
	for _, c := range s.clients {
		var may []string
		for word := range strings.FieldsSeq(everything) {
			mayPerson := strings.Contains(want[c.person], word) && strings.Contains(c.limit, word)
			if mayPerson || strings.Contains(want[anyone], word) {
				may = append(may, word)
			}
		}
		for node, got := range s.rights(t, c.Client) {
			if want := strings.Join(may, " "); got != want {
				t.Errorf("%s: %s with %s may %q at node %d, want %q", when, c.person, c.how, got, node, want)
			}
		}
	}
}

// nodes are the IDs of the nodes that a client is told of.
func (s *sharing) nodes(t *testing.T, c *kgo.Client) (ids []int) {
	t.Helper()
	q := kmsg.NewPtrMetadataRequest()
	q.Topics = []kmsg.MetadataRequestTopic{}
	answer, err := q.RequestWith(testkit.Within(t), c)
	testkit.Must(t, err)
	for _, b := range answer.Brokers {
		ids = append(ids, int(b.NodeID))
	}
	if len(ids) != len(s.f.Brokers()) {
		t.Errorf("the cluster has nodes %v, and the fabric %d gateways", ids, len(s.f.Brokers()))
	}
	return ids
}

// rights makes requests to each node, and returns what the client may do there.
func (s *sharing) rights(t *testing.T, c *kgo.Client) map[int]string {
	t.Helper()
	all := map[int]string{}
	scene := cell{scene: &scene{topic: s.topic, ids: map[string][16]byte{s.topic: s.id}}}
	for _, node := range s.nodes(t, c) {
		var may []string
		for _, one := range []struct {
			word    string
			request kmsg.Request
		}{
			{mayRead, scene.fetch(s.topic)},
			{mayWrite, scene.produce(s.topic)},
			{"manage", describeConfigs(kmsg.ConfigResourceTypeTopic, s.topic)},
		} {
			switch codes := errorCodes(s.ask(t, c, node, one.request)); codes {
			case topicDenied, kerr.UnknownTopicID.Message: // of a topic that is not there
			case "ok", kerr.NotLeaderForPartition.Message, kerr.OffsetOutOfRange.Message:
				may = append(may, one.word)
			default:
				t.Errorf("%T to node %d: %s", one.request, node, codes)
			}
		}
		all[node] = strings.Join(may, " ")
		if got, want := s.operations(t, c, node), operationsOf(may); got != want {
			all[node] += fmt.Sprintf(", and has the operations %b instead of %b", got, want)
		}
	}
	return all
}

func (s *sharing) ask(t *testing.T, c *kgo.Client, node int, q kmsg.Request) kmsg.Response {
	t.Helper()
	answer, err := c.Broker(node).RetriableRequest(testkit.Within(t), q)
	if err != nil {
		t.Fatalf("%T to node %d: %v", q, node, err)
	}
	return answer
}

// operations are those that a node says the client is authorized for, as bits.
func (s *sharing) operations(t *testing.T, c *kgo.Client, node int) int32 {
	t.Helper()
	topic := s.metadata(t, c, node)
	if topic.ErrorCode != 0 {
		return 0
	}
	return topic.AuthorizedOperations
}

func (s *sharing) metadata(t *testing.T, c *kgo.Client, node int) kmsg.MetadataResponseTopic {
	t.Helper()
	q := kmsg.NewPtrMetadataRequest()
	q.Topics, q.IncludeTopicAuthorizedOperations = []kmsg.MetadataRequestTopic{{Topic: &s.topic}}, true
	topic := s.ask(t, c, node, q).(*kmsg.MetadataResponse).Topics[0]
	if topic.ErrorCode != 0 && topic.ErrorCode != kerr.TopicAuthorizationFailed.Code {
		t.Errorf("node %d says of the topic: %s", node, errorName(topic.ErrorCode))
	}
	return topic
}

func operationsOf(may []string) (bits int32) {
	for _, word := range may {
		bits |= 1 << kmsg.ACLOperationDescribe
		switch word {
		case mayRead:
			bits |= 1 << kmsg.ACLOperationRead
		case mayWrite:
			bits |= 1 << kmsg.ACLOperationWrite
		default:
			bits |= 1<<kmsg.ACLOperationDelete | 1<<kmsg.ACLOperationDescribeConfigs
		}
	}
	return bits
}

// TestShare shares a topic in all ways. After each step every node lets every client do what it should,
// at the next request.
func TestShare(t *testing.T) {
	parallel(t)
	s := startSharing(t, fabric.Config{})
	ctx := testkit.Within(t)
	owner, colleague := s.as(t, "ada"), s.as(t, "grace")
	all := diaspora.AccessKeyRequest{Read: true, Write: true}
	named := diaspora.AccessKeyRequest{Topics: []string{s.topic}, Read: true, Write: true}
	s.enterWithKey(t, "ada", "key for the topic", mayBoth, named)
	s.enterWithKey(t, "grace", "key for everything", everything, all)
	s.wants(t, "only claimed", map[string]string{"ada": everything})

	who, err := owner.LookUp(ctx, grace)
	if err != nil || who.Subject != s.subject("grace") {
		t.Fatalf("LookUp = %+v, %v", who, err)
	}
	s.share(t, "ada", "grace", diaspora.GrantRequest{Read: true})
	s.wants(t, "shared to read", map[string]string{"ada": everything, "grace": mayRead})
	named.Name = unique(t)
	_, err = colleague.CreateKey(ctx, named)
	wantError(t, "a key with more rights than its owner has", err, diaspora.ErrPermission, "you have the right to read the topic", "a key cannot have more")

	s.share(t, "ada", "grace", diaspora.GrantRequest{Write: true})
	s.wants(t, "shared to write", map[string]string{"ada": everything, "grace": mayWrite})
	s.share(t, "ada", "grace", diaspora.GrantRequest{Read: true, Write: true})
	s.enterWithKey(t, "grace", "key for the topic", mayBoth, named)
	s.enterWithKey(t, "grace", "key to read the topic", mayRead, diaspora.AccessKeyRequest{Topics: []string{s.topic}, Read: true})
	// Such a key is for the topics that its owner has.
	s.enterWithKey(t, "grace", "key to read all own topics", nothing, diaspora.AccessKeyRequest{Read: true})
	s.wants(t, "shared to read and write", map[string]string{"ada": everything, "grace": mayBoth})

	s.share(t, "ada", "grace", diaspora.GrantRequest{Manage: true})
	s.wants(t, "shared to manage", map[string]string{"ada": everything, "grace": everything})
	s.share(t, "grace", "lin", diaspora.GrantRequest{Read: true})
	s.wants(t, "shared by a manager", map[string]string{"ada": everything, "grace": everything, "lin": mayRead})
	s.whatManagersMayNot(t)
	s.unshare(t, "lin", s.subject("lin"))
	s.wants(t, "given back", map[string]string{"ada": everything, "grace": everything})

	s.share(t, "ada", "grace", diaspora.GrantRequest{Read: true})
	s.wants(t, "shared with fewer rights", map[string]string{"ada": everything, "grace": mayRead})
	s.unshare(t, "ada", s.subject("grace"))
	s.wants(t, "taken away", map[string]string{"ada": everything})
	wantError(t, "take it away again", owner.Unshare(ctx, s.topic, s.subject("grace")), diaspora.ErrNotFound, s.topic)

	s.share(t, "ada", "", diaspora.GrantRequest{Public: true, Read: true})
	s.wants(t, "public", map[string]string{"ada": everything, anyone: mayRead})
	if list, err := s.as(t, "eve").Topics(ctx); err != nil || !slices.ContainsFunc(list.Public, s.isIt) {
		t.Errorf("the public topics are %+v, %v", list.Public, err)
	}
	_, err = owner.Share(ctx, s.topic, diaspora.GrantRequest{Public: true, Write: true})
	wantError(t, "share with everybody to write", err, diaspora.ErrInvalid, "public to read only")
	s.unshare(t, "ada", "public")
	s.wants(t, "not public any more", map[string]string{"ada": everything})

	s.share(t, "ada", "grace", diaspora.GrantRequest{Read: true, Write: true, Expires: time.Now().Add(2 * time.Second)})
	s.wants(t, "shared until a time", map[string]string{"ada": everything, "grace": mayBoth})
	s.awaitRights(t, "the time has come", "grace", nothing)
	s.wants(t, "the share has expired", map[string]string{"ada": everything})
	s.share(t, "ada", "grace", diaspora.GrantRequest{Read: true, Expires: time.Now().Add(2 * time.Second)})
	s.share(t, "ada", "grace", diaspora.GrantRequest{Read: true})
	s.share(t, "ada", "eve", diaspora.GrantRequest{Read: true, Expires: time.Now().Add(2 * time.Second)})
	s.awaitRights(t, "the first end has passed", "eve", nothing) // her share ends later than that
	s.wants(t, "shared without an end", map[string]string{"ada": everything, "grace": mayRead})
	s.wantLog(t, owner, "ada claim", "ada issue_key", "ada share", "ada share", "ada share", "grace issue_key", "grace issue_key",
		"ada share", "grace share", "lin unshare", "ada share", "ada unshare", "ada share", "ada unshare",
		"ada share", " share_expired", "ada share", "ada share", "ada share", " share_expired")
}

func (s *sharing) isIt(topic diaspora.Topic) bool { return topic.Name == s.topic }

// awaitRights waits until every node lets each client of a person do no more than that.
func (s *sharing) awaitRights(t *testing.T, what, person, want string) {
	t.Helper()
	began := time.Now()
	for ctx := testkit.Within(t); ; time.Sleep(100 * time.Millisecond) {
		differs := false
		for _, c := range s.clients {
			if c.person != person || c.how != "token" {
				continue
			}
			for _, got := range s.rights(t, c.Client) {
				differs = differs || got != want
			}
		}
		if !differs {
			t.Logf("%s: the nodes know after %v", what, time.Since(began).Round(10*time.Millisecond))
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("%s: %s may still do something else than %q", what, person, want)
		}
	}
}

// whatManagersMayNot is what only the owner may do. Grace manages the topic, and Lin reads it.
func (s *sharing) whatManagersMayNot(t *testing.T) {
	t.Helper()
	ctx := testkit.Within(t)
	manager, reader, stranger := s.as(t, "grace"), s.as(t, "lin"), s.as(t, "eve")
	_, offered := manager.Transfer(ctx, s.topic, diaspora.Transfer{Subject: s.subject("grace")})
	_, retired := manager.Retire(ctx, s.topic)
	_, accepted := manager.Accept(ctx, s.topic)
	_, shared := reader.Share(ctx, s.topic, diaspora.GrantRequest{Username: s.people["eve"].Identity.Username, Read: true})
	_, set := reader.Set(ctx, s.topic, diaspora.TopicSettings{RetentionMS: 1})
	_, log := reader.Log(ctx, s.topic)
	_, readers := reader.Readers(ctx, s.topic)
	_, seen := stranger.Topic(ctx, s.topic)
	_, grants := stranger.Grants(ctx, s.topic)
	for what, err := range map[string]error{
		"a manager offers it": offered, "a manager retires it": retired, "a manager accepts it": accepted,
		"a manager releases it": manager.Release(ctx, s.topic), "a reader shares it": shared, "a reader changes it": set,
		"a reader unshares it": reader.Unshare(ctx, s.topic, s.subject("grace")), "a reader sees the log": log,
		"a reader sees the readers": readers, "a stranger sees it": seen, "a stranger sees with whom it is shared": grants,
	} {
		wantError(t, what, err, diaspora.ErrPermission, s.topic)
	}
	own, err := reader.Grants(ctx, s.topic)
	if err != nil || len(own) != 1 || own[0].Subject != s.subject("lin") || own[0].By != s.subject("grace") {
		t.Errorf("a reader sees the shares %+v, %v, want the own one", own, err)
	}
}

// TestShareWithGroup shares a topic with a Globus group, one of whose members leaves while another
// joins.
func TestShareWithGroup(t *testing.T) {
	parallel(t)
	s := startSharing(t, fabric.Config{})
	auth := inside.Of(s.f).Globus
	lab, err := auth.AddGroup(globusdev.Group{Name: unique(t)})
	testkit.Must(t, err)
	member := func(person, role string) {
		t.Helper()
		testkit.Must(t, auth.SetMember(globusdev.GroupMember{Group: lab, Identity: s.people[person].Identity.Username, Role: role}))
	}
	testkit.Must(t, auth.SetMember(globusdev.GroupMember{Group: lab, Identity: globusdev.ResourceServerID + "@clients.auth.globus.org", Role: "manager"}))
	member("grace", "member")
	member("lin", "member")
	s.share(t, "ada", "", diaspora.GrantRequest{Group: lab, Read: true})
	s.enterWithKey(t, "grace", "key for the topic", mayBoth, diaspora.AccessKeyRequest{Topics: []string{s.topic}, Read: true})
	s.enterWithKey(t, "lin", "key for everything", everything, diaspora.AccessKeyRequest{Read: true, Write: true})
	s.wants(t, "shared with a group", map[string]string{"ada": everything, "grace": mayRead, "lin": mayRead})
	// The rights of a person are the sum of those of the shares.
	s.share(t, "ada", "lin", diaspora.GrantRequest{Write: true})
	s.wants(t, "shared with a member as well", map[string]string{"ada": everything, "grace": mayRead, "lin": mayBoth})

	testkit.Must(t, auth.SetMember(globusdev.GroupMember{Group: lab, Identity: grace, Status: "left"}))
	member("eve", "member")
	s.awaitRights(t, "somebody has left the group", "grace", nothing)
	s.awaitRights(t, "somebody has joined the group", "eve", mayRead)
	s.wants(t, "the members have changed", map[string]string{"ada": everything, "lin": mayBoth, "eve": mayRead})
	s.unshare(t, "ada", "group:"+lab)
	s.wants(t, "not shared with the group any more", map[string]string{"ada": everything, "lin": mayWrite})
}

// TestShareIsTakenAway takes a topic away from those who are reading it and writing to it. The Fetch that waits is
// cut, and each client is told why.
func TestShareIsTakenAway(t *testing.T) {
	parallel(t)
	// The gateway lets a Fetch wait for 5 s. The rest is for a busy machine.
	const cut = 8 * time.Second
	s := startSharing(t, fabric.Config{})
	s.share(t, "ada", "grace", diaspora.GrantRequest{Read: true, Write: true})
	key := createKey(t, s.people["grace"], diaspora.AccessKeyRequest{Topics: []string{s.topic}, Read: true, Write: true})
	token, err := s.people["grace"].TokenSource.Token(testkit.Within(t))
	testkit.Must(t, err)
	fabrictest.Log(t, fabrictest.OpenLogger(t, s.people["ada"]), s.topic, "x")
	wait := kgo.FetchMaxWait(time.Minute)
	ways := waysIn(t, s.f, key)
	ways["login"] = oauthOf(token)
	readers, writers := map[string]*kgo.Client{}, map[string]*kgo.Client{}
	for way, mechanism := range ways {
		from := []kgo.Opt{kgo.ConsumeTopics(s.topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), wait}
		readers[way] = fabrictest.Kafka(t, s.f, mechanism, from...)
		for kind, balancer := range map[string]kgo.Opt{"a group": kgo.Balancers(kgo.CooperativeStickyBalancer()), "a group of KIP-848": kgo.ServerSideBalancer()} {
			readers[way+" in "+kind] = fabrictest.Kafka(t, s.f, mechanism, slices.Concat(from, []kgo.Opt{kgo.ConsumerGroup(unique(t)), balancer})...)
		}
		writers[way] = fabrictest.Kafka(t, s.f, mechanism)
		testkit.Must(t, fabrictest.Produce(t, writers[way], s.topic))
	}
	const records = 4 // one for each way, and the first
	waiting := map[string]chan time.Time{}
	for way, c := range readers {
		for read := 0; read < records; {
			fetches := c.PollFetches(testkit.Within(t))
			testkit.Must(t, fetches.Err())
			read += fetches.NumRecords()
		}
		told := make(chan time.Time, 1)
		waiting[way] = told
		go func() {
			for ctx := testkit.Within(t); ctx.Err() == nil; {
				err := c.PollFetches(ctx).Err()
				if errors.Is(err, kerr.TopicAuthorizationFailed) {
					told <- time.Now()
					return
				}
				if err != nil && !errors.Is(err, context.Canceled) {
					t.Errorf("%s: a reader: %v", way, err)
				}
			}
		}()
	}
	time.Sleep(500 * time.Millisecond) // so that all wait at the broker
	s.unshare(t, "ada", s.subject("grace"))
	took := time.Now()
	for way, c := range writers {
		if err := fabrictest.Produce(t, c, s.topic); !errors.Is(err, kerr.TopicAuthorizationFailed) {
			t.Errorf("%s: a writer afterwards: %v", way, err)
		}
	}
	for way, told := range waiting {
		select {
		case at := <-told:
			t.Logf("%s: refused after %v", way, at.Sub(took).Round(10*time.Millisecond))
			if at.Sub(took) > cut {
				t.Errorf("%s: a reader is refused after %v, want %v at most", way, at.Sub(took), cut)
			}
		case <-testkit.Within(t).Done():
			t.Fatalf("%s: a reader is not refused", way)
		}
	}
	// They go on when it is shared again.
	s.share(t, "ada", "grace", diaspora.GrantRequest{Read: true, Write: true})
	for way, c := range writers {
		if err := fabrictest.Produce(t, c, s.topic); err != nil {
			t.Errorf("%s: a writer, shared again: %v", way, err)
		}
	}
}

// TestShareSettings has a manager change the settings of a topic. Every node has them when the answer
// arrives.
func TestShareSettings(t *testing.T) {
	parallel(t)
	s := startSharing(t, fabric.Config{})
	ctx := testkit.Within(t)
	s.share(t, "ada", "grace", diaspora.GrantRequest{Manage: true})
	s.share(t, "ada", "lin", diaspora.GrantRequest{Read: true, Write: true})
	manager := s.as(t, "grace")
	yes, no, words := true, false, "The weather in Chicago"
	set := func(settings diaspora.TopicSettings, partitions int, configs map[string]string) {
		t.Helper()
		change, err := manager.Set(ctx, s.topic, settings)
		if err != nil || change.After.Partitions != partitions {
			t.Fatalf("Set(%+v) = %+v, %v", settings, change, err)
		}
		s.settings(t, partitions, configs)
	}
	set(diaspora.TopicSettings{Partitions: 3}, 3, nil)
	set(diaspora.TopicSettings{RetentionMS: 86_400_000, MaxBytes: 1 << 30, Description: &words}, 3,
		map[string]string{"retention.ms": "86400000", "retention.bytes": "1073741824"})
	set(diaspora.TopicSettings{RetentionMS: -1, MaxBytes: -1}, 3, map[string]string{"retention.ms": "-1", "retention.bytes": "-1", "cleanup.policy": "delete"})
	_, err := manager.Set(ctx, s.topic, diaspora.TopicSettings{Partitions: 2})
	wantError(t, "fewer partitions", err, diaspora.ErrInvalid, s.topic)
	_, err = s.as(t, "lin").Set(ctx, s.topic, diaspora.TopicSettings{Partitions: 4})
	wantError(t, "set by somebody who reads and writes", err, diaspora.ErrPermission, s.topic)
	if engineIsApache {
		set(diaspora.TopicSettings{Compact: &yes}, 3, map[string]string{"cleanup.policy": "compact"})
		topic, err := s.as(t, "lin").Topic(ctx, s.topic)
		if err != nil || !topic.Compact || topic.Description != words || topic.Owner != s.subject("ada") || topic.Manage || !topic.Read || !topic.Write {
			t.Errorf("the topic as a reader sees it: %+v, %v", topic, err)
		}
		set(diaspora.TopicSettings{Compact: &no}, 3, map[string]string{"cleanup.policy": "delete"})
	} else {
		_, err := manager.Set(ctx, s.topic, diaspora.TopicSettings{Compact: &yes})
		wantError(t, "compaction", err, diaspora.ErrInvalid, "cannot compact topics", "Apache Kafka")
		s.settings(t, 3, map[string]string{"cleanup.policy": "delete"})
	}
	s.wants(t, "changed", map[string]string{"ada": everything, "grace": everything, "lin": mayBoth})
}

// settings asks each node for the topic's partitions and settings.
func (s *sharing) settings(t *testing.T, partitions int, want map[string]string) {
	t.Helper()
	c := s.clients[0].Client // the owner's
	for _, node := range s.nodes(t, c) {
		if got := len(s.metadata(t, c, node).Partitions); got != partitions {
			t.Errorf("node %d says that the topic has %d partitions, want %d", node, got, partitions)
		}
		got := map[string]string{}
		for _, config := range s.ask(t, c, node, describeConfigs(kmsg.ConfigResourceTypeTopic, s.topic)).(*kmsg.DescribeConfigsResponse).Resources[0].Configs {
			if config.Value != nil {
				got[config.Name] = *config.Value
			}
		}
		for name, value := range want {
			if got[name] != value {
				t.Errorf("node %d says that %s is %q, want %q", node, name, got[name], value)
			}
		}
	}
}

// TestShareThroughHandover releases and restores a shared topic, transfers it, and gives it up. Its log
// tells all of that.
func TestShareThroughHandover(t *testing.T) {
	parallel(t)
	s := startSharing(t, fabric.Config{})
	ctx := testkit.Within(t)
	owner, heir := s.as(t, "ada"), s.as(t, "grace")
	fabrictest.Log(t, fabrictest.OpenLogger(t, s.people["ada"]), s.topic, "x")
	s.share(t, "ada", "grace", diaspora.GrantRequest{Read: true})
	s.share(t, "ada", "lin", diaspora.GrantRequest{Read: true})
	s.enterWithKey(t, "ada", "key for the topic", mayBoth, diaspora.AccessKeyRequest{Topics: []string{s.topic}, Read: true, Write: true})
	s.enterWithKey(t, "ada", "key for everything", everything, diaspora.AccessKeyRequest{Read: true, Write: true})
	s.enterWithKey(t, "grace", "key for the topic", mayRead, diaspora.AccessKeyRequest{Topics: []string{s.topic}, Read: true})
	shared := map[string]string{"ada": everything, "grace": mayRead, "lin": mayRead}
	s.wants(t, "shared", shared)
	s.readsInGroup(t, "lin", 0)
	fabrictest.Log(t, fabrictest.OpenLogger(t, s.people["ada"]), s.topic, "y", "z")
	s.wantReaders(t, owner, diaspora.Reader{Subject: s.subject("lin"), Username: s.people["lin"].Identity.Username, Group: "analysis", Lag: 2})

	retired, err := owner.Retire(ctx, s.topic)
	if err != nil || time.Until(retired.Released) < 23*time.Hour || time.Until(retired.Released) > 24*time.Hour {
		t.Fatalf("Retire = %+v, %v", retired, err)
	}
	s.wants(t, "released", nil)
	_, err = owner.Share(ctx, s.topic, diaspora.GrantRequest{Public: true, Read: true})
	wantError(t, "share a topic that is released", err, diaspora.ErrConflict, s.topic)
	_, err = heir.Claim(ctx, diaspora.ClaimRequest{Name: s.topic})
	wantError(t, "claim the name of a topic that is released", err, diaspora.ErrConflict, s.topic)
	_, err = heir.Restore(ctx, s.topic)
	wantError(t, "restore somebody else's topic", err, diaspora.ErrPermission, s.topic)
	_, err = owner.Restore(ctx, s.topic)
	testkit.Must(t, err)
	s.wants(t, "restored", shared)

	_, err = heir.Accept(ctx, s.topic)
	wantError(t, "accept what is not offered", err, diaspora.ErrPermission, s.topic)
	_, err = owner.Transfer(ctx, s.topic, diaspora.Transfer{Username: grace})
	testkit.Must(t, err)
	s.wants(t, "offered", shared)
	if list, err := heir.Topics(ctx); err != nil || !slices.ContainsFunc(list.Offered, s.isIt) {
		t.Errorf("the topics that are offered: %+v, %v", list.Offered, err)
	}
	_, err = s.as(t, "lin").Accept(ctx, s.topic)
	wantError(t, "accept what is offered to somebody else", err, diaspora.ErrPermission, s.topic)
	accepted, err := heir.Accept(ctx, s.topic)
	if err != nil || accepted.Owner != s.subject("grace") {
		t.Fatalf("Accept = %+v, %v", accepted, err)
	}
	s.wants(t, "transferred", map[string]string{"grace": everything, "lin": mayRead})
	s.share(t, "grace", "ada", diaspora.GrantRequest{Read: true})
	s.wants(t, "shared with the former owner", map[string]string{"ada": mayRead, "grace": everything, "lin": mayRead})
	s.wantLog(t, heir, "ada claim", "ada share", "ada share", "ada issue_key", "grace issue_key",
		"ada retire", "ada restore", "ada offer", "grace accept", "grace share")

	testkit.Must(t, heir.Release(ctx, s.topic))
	s.wants(t, "released at once", nil)
	fabrictest.Claim(t, s.people["eve"], s.topic, 1)
	topics, err := fabrictest.Admin(t, s.f).ListTopics(ctx, s.topic)
	testkit.Must(t, err)
	s.id = topics[s.topic].ID
	s.wants(t, "claimed by somebody else", map[string]string{"eve": everything})
	s.wantLog(t, s.as(t, "eve"), "eve claim")
	s.wantReaders(t, s.as(t, "eve"))
	if grants, err := s.as(t, "eve").Grants(ctx, s.topic); err != nil || len(grants) != 0 {
		t.Errorf("the new owner has shared it with %+v, %v", grants, err)
	}
}

// readsInGroup reads all records of the topic in a group, and commits.
func (s *sharing) readsInGroup(t *testing.T, person string, partition int32) {
	t.Helper()
	token, err := s.people[person].TokenSource.Token(testkit.Within(t))
	testkit.Must(t, err)
	c := fabrictest.Kafka(t, s.f, oauthOf(token), kgo.ConsumerGroup("analysis"), kgo.ConsumeTopics(s.topic), kgo.DisableAutoCommit(), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	ends, err := fabrictest.Admin(t, s.f).ListEndOffsets(testkit.Within(t), s.topic)
	testkit.Must(t, err)
	end, _ := ends.Lookup(s.topic, partition)
	for next := int64(0); next < end.Offset; {
		fetches := c.PollFetches(testkit.Within(t))
		testkit.Must(t, fetches.Err())
		for _, r := range fetches.Records() {
			next = r.Offset + 1
		}
	}
	testkit.Must(t, c.CommitUncommittedOffsets(testkit.Within(t)))
	testkit.Must(t, c.LeaveGroupContext(testkit.Within(t)))
}

func (s *sharing) wantReaders(t *testing.T, owner *diaspora.Client, want ...diaspora.Reader) {
	t.Helper()
	if got, err := owner.Readers(testkit.Within(t), s.topic); err != nil || !slices.Equal(got, want) {
		t.Errorf("Readers = %+v, %v, want %+v", got, err, want)
	}
}

// wantLog compares the log with what was done by whom.
func (s *sharing) wantLog(t *testing.T, owner *diaspora.Client, want ...string) {
	t.Helper()
	names := map[string]string{}
	for person, cfg := range s.people {
		names[cfg.Identity.Subject] = person
	}
	events, err := owner.Log(testkit.Within(t), s.topic)
	var got []string
	for i, e := range events {
		got = append(got, names[e.By]+" "+e.Op)
		if e.Username != s.people[names[e.By]].Identity.Username || i > 0 && e.Time.Before(events[i-1].Time) {
			t.Errorf("the log has the event %+v", e)
		}
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("Log = %q, %v, want %q", got, err, want)
	}
}

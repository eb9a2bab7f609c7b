package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// groupFields calls see with each string of a request or answer that, by the name of its field, is
// a group ID.
func groupFields(v reflect.Value, see func(reflect.Value)) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			groupFields(v.Elem(), see)
		}
	case reflect.Slice:
		for i := range v.Len() {
			groupFields(v.Index(i), see)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			f, name := v.Field(i), v.Type().Field(i).Name
			switch {
			case !v.Type().Field(i).IsExported():
			case !slices.Contains([]string{"Group", "GroupID", "Groups", "GroupIDs"}, name):
				groupFields(f, see)
			case f.Kind() == reflect.String:
				see(f)
			case f.Kind() == reflect.Pointer && f.Type().Elem().Kind() == reflect.String:
				if !f.IsNil() {
					see(f.Elem())
				}
			case f.Kind() == reflect.Slice && f.Type().Elem().Kind() == reflect.String:
				for j := range f.Len() {
					see(f.Index(j))
				}
			default:
				groupFields(f, see)
			}
		}
	}
}

// TestEveryGroupIsRenamed fails if a request that the gateway offers, or its answer, has a group ID
// that is not renamed.
func TestEveryGroupIsRenamed(t *testing.T) {
	prefix := groupPrefix("user.ada.")
	for _, r := range requests {
		b := bodies{rand: rand.New(rand.NewPCG(uint64(r.key), 1))}
		seen := 0
		for range 200 {
			request := b.request(r.key, kmsg.RequestForKey(r.key).MaxVersion())
			groupFields(reflect.ValueOf(request), func(f reflect.Value) { f.SetString("analysis") })
			prefix.addToRequest(request)
			groupFields(reflect.ValueOf(request), func(f reflect.Value) {
				if seen++; f.String() != "user.ada.analysis" {
					t.Errorf("%T has the group %q on its way to the broker", request, f.String())
				}
			})

			answer := request.ResponseKind()
			b.fill(reflect.ValueOf(answer).Elem(), true)
			groupFields(reflect.ValueOf(answer), func(f reflect.Value) { f.SetString("user.ada.analysis") })
			prefix.stripFromResponse(answer)
			groupFields(reflect.ValueOf(answer), func(f reflect.Value) {
				if f.String() != "analysis" {
					t.Errorf("%T has the group %q on its way to the client", answer, f.String())
				}
			})
		}
		if about := namesGroups(); seen > 0 && !about.requests[r.key] {
			t.Errorf("%s names groups and passes as it is", kmsg.NameForKey(r.key))
		}
	}
}

// TestRenamedRequestsAreTheSame: a request about groups reaches the broker unchanged except for the
// group IDs, in every version.
func TestRenamedRequestsAreTheSame(t *testing.T) {
	for key, about := range namesGroups().requests {
		if !about {
			continue
		}
		for version := range kmsg.RequestForKey(key).MaxVersion() + 1 {
			b := bodies{rand: rand.New(rand.NewPCG(uint64(key), uint64(version)))}
			for range 20 {
				original := b.request(key, version)
				frame := appendRequest(original, 7)
				request, head, err := decodeRequest(parseHeader(frame[4:]), bytes.Clone(frame))
				if err != nil {
					t.Fatalf("%s version %d: %v", kmsg.NameForKey(key), version, err)
				}
				if got := request.AppendTo(slices.Clip(head)); !bytes.Equal(got, frame) {
					t.Fatalf("%s version %d:\n%x became\n%x", kmsg.NameForKey(key), version, frame, got)
				}
			}
		}
	}
}

// TestGroupsArePrivate has two people use groups with the same ID. One of them tries requests that
// would stop the other's consumers if the groups were shared.
func TestGroupsArePrivate(t *testing.T) {
	f := start(t)
	f.claim(t, "weather", ada)
	f.claim(t, "snow", bert)
	f.tokens.issue("ada-token", ada, time.Hour)
	f.tokens.issue("bert-token", bert, time.Hour)
	hers, his := f.client(t, "ada-token", kgo.ConsumeTopics("weather"), kgo.ConsumerGroup("analysis"), kgo.DisableAutoCommit()), f.client(t, "bert-token")
	f.produce(t, "ada-token", "weather", 3)
	for n := 0; n < 3; {
		fetches := hers.PollFetches(t.Context())
		testkit.Must(t, fetches.Err())
		n += fetches.NumRecords()
	}
	testkit.Must(t, hers.CommitUncommittedOffsets(t.Context()))
	his.AddConsumeTopics("snow")
	herAdmin, hisAdmin := kadm.NewClient(hers), kadm.NewClient(his)

	for name, want := range map[string]struct {
		admin  *kadm.Client
		groups []string
	}{"ada": {herAdmin, []string{"analysis"}}, "bert": {hisAdmin, nil}} {
		listed, err := want.admin.ListGroups(t.Context())
		if err != nil || !slices.Equal(listed.Groups(), want.groups) {
			t.Errorf("%s sees the groups %q, %v; want %q", name, listed.Groups(), err, want.groups)
		}
	}
	member := only(t, must(herAdmin.DescribeGroups(t.Context(), "analysis"))["analysis"].Members)
	name := kafka.UserGroups + ada + ".analysis"
	for _, guess := range []string{"analysis", name, ada + ".analysis", "../" + ada + ".analysis", strings.Repeat("x", maxGroupBytes) + name} {
		described, _ := hisAdmin.DescribeGroups(t.Context(), guess)
		for _, g := range described {
			if len(g.Members) > 0 || g.State != "Dead" {
				t.Errorf("another's group as %.60q: %+v", guess, g)
			}
		}
		leave := kmsg.NewPtrLeaveGroupRequest()
		leave.Group, leave.MemberID = guess, member.MemberID
		leave.Members = []kmsg.LeaveGroupRequestMember{{MemberID: member.MemberID}}
		if resp, err := leave.RequestWith(t.Context(), his); err == nil && resp.ErrorCode == 0 {
			for _, m := range resp.Members {
				if m.ErrorCode != kerr.UnknownMemberID.Code {
					t.Errorf("leave another's group as %.60q: error %d", guess, m.ErrorCode)
				}
			}
		}
		var offsets kadm.Offsets
		offsets.AddOffset("weather", 0, 0, -1)
		hisAdmin.CommitAllOffsets(t.Context(), guess, offsets)
		hisAdmin.DeleteGroups(t.Context(), guess)
		hisAdmin.DeleteOffsets(t.Context(), guess, offsets.TopicsSet())
	}
	after := must(herAdmin.DescribeGroups(t.Context(), "analysis"))["analysis"]
	if got := only(t, after.Members); got.MemberID != member.MemberID || after.State != "Stable" {
		t.Errorf("the group after the attack: %s with %s, want Stable with %s", after.State, got.MemberID, member.MemberID)
	}
	if at, ok := must(herAdmin.FetchOffsets(t.Context(), "analysis")).Lookup("weather", 0); !ok || at.At != 3 {
		t.Errorf("the group is at %d (%v) after the attack, want 3", at.At, ok)
	}

	// The other person can use the same ID.
	var offsets kadm.Offsets
	offsets.AddOffset("snow", 0, 5, -1)
	if err := hisAdmin.CommitAllOffsets(t.Context(), "analysis", offsets); err != nil {
		t.Errorf("commit to a group of the same ID: %v", err)
	}
	all := must(f.admin.ListGroups(t.Context())).Groups()
	slices.Sort(all)
	if want := []string{kafka.UserGroups + ada + ".analysis", kafka.UserGroups + bert + ".analysis"}; !slices.Equal(all, want) {
		t.Errorf("the broker has the groups %q, want %q", all, want)
	}
	if deleted := must(hisAdmin.DeleteGroups(t.Context(), "analysis"))["analysis"]; deleted.Err != nil {
		t.Errorf("delete one's prefix group: %v", deleted.Err)
	}
}

// TestKeysThatMayNotRead: such keys get no group and no records, not even of a topic that is open
// to all users.
func TestKeysThatMayNotRead(t *testing.T) {
	f := start(t)
	f.claim(t, "weather", ada)
	f.tokens.issue("ada-token", ada, time.Hour)
	f.produce(t, "ada-token", "weather", 1)
	open := kadm.NewACLs().Topics("weather").Operations(kadm.OpRead, kadm.OpWrite, kadm.OpDescribe).Allow("User:*").AllowHosts("*").ResourcePatternType(kadm.ACLPatternLiteral)
	if _, err := f.admin.CreateACLs(t.Context(), open); err != nil {
		t.Fatal(err)
	}
	f.tokens.infos[Credentials{Secret: "write-token"}] = Identity{Subject: ada, Principal: ada + ".key-writes", Expiry: time.Now().Add(time.Hour)}
	client := f.client(t, "write-token", kgo.ConsumeTopics("weather"))
	if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "weather", Value: []byte("rain")}).FirstErr(); err != nil {
		t.Errorf("a key that may write: %v", err)
	}
	fetches := client.PollFetches(t.Context())
	if err := fetches.Err(); !errors.Is(err, kerr.TopicAuthorizationFailed) || fetches.NumRecords() > 0 {
		t.Errorf("a key that may not read gets %d records, %v", fetches.NumRecords(), err)
	}
	admin := kadm.NewClient(client)
	if g, err := admin.DescribeGroups(t.Context(), "analysis"); !errors.Is(err, kerr.GroupAuthorizationFailed) && !strings.Contains(fmt.Sprint(err), "GROUP_AUTHORIZATION_FAILED") {
		t.Errorf("describe a group: %+v, %v", g, err)
	}
	if _, err := admin.FetchOffsets(t.Context(), "analysis"); !errors.Is(err, kerr.GroupAuthorizationFailed) {
		t.Errorf("fetch offsets: %v", err)
	}
	group := f.client(t, "write-token", kgo.ConsumeTopics("weather"), kgo.ConsumerGroup("analysis"))
	if err := group.PollFetches(t.Context()).Err(); !errors.Is(err, kerr.GroupAuthorizationFailed) {
		t.Errorf("join a group: %v", err)
	}
	for version := range kmsg.RequestForKey(keyFetch).MaxVersion() + 1 {
		if version < 4 {
			continue // not offered
		}
		c := f.login(t, "write-token")
		fetch := kmsg.NewPtrFetchRequest()
		fetch.Version, fetch.MaxWaitMillis, fetch.MaxBytes = version, 60_000, 1<<20
		topic := kmsg.NewFetchRequestTopic()
		topic.Topic, topic.TopicID = "weather", f.topicID(t, "weather")
		partition := kmsg.NewFetchRequestTopicPartition()
		partition.PartitionMaxBytes = 1 << 20
		topic.Partitions = append(topic.Partitions, partition)
		fetch.Topics = append(fetch.Topics, topic)
		answer := c.ask(fetch).(*kmsg.FetchResponse)
		if p := only(t, only(t, answer.Topics).Partitions); p.ErrorCode != kerr.TopicAuthorizationFailed.Code || len(p.RecordBatches) > 0 {
			t.Errorf("version %d: error %d and %d bytes", version, p.ErrorCode, len(p.RecordBatches))
		}
		c.wantAlive()
	}
}

// TestFetchDoesNotWaitLong: a waiting fetch ends soon after the right to read is taken away.
func TestFetchDoesNotWaitLong(t *testing.T) {
	fetch := kmsg.NewPtrFetchRequest()
	share := kmsg.NewPtrShareFetchRequest()
	for _, test := range []struct {
		request kmsg.Request
		wait    *int32
	}{{fetch, &fetch.MaxWaitMillis}, {share, &share.MaxWaitMillis}} {
		for version := range test.request.MaxVersion() + 1 {
			for asked, want := range map[int32]int32{0: 0, 500: 500, 5000: 5000, 5001: 5000, math.MaxInt32: 5000, -1: -1} {
				test.request.SetVersion(version)
				*test.wait = asked
				frame := appendRequest(test.request, 1)
				if _, err := checkRequest(frame[4:], parseHeader(frame[4:]), fetchLimit{math.MaxInt32, fetchWaitMillis}); err != nil {
					t.Fatal(err)
				}
				*test.wait = want
				if !bytes.Equal(frame, appendRequest(test.request, 1)) {
					t.Errorf("%T version %d: a wait of %d ms is not made one of %d ms", test.request, version, asked, want)
				}
			}
		}
	}
}

// TestAnswersBelongToRequests: the gateway must not match answers to requests by the correlation
// IDs that a client chooses. Otherwise the client could make the list of all groups pass as the
// answer to another request.
func TestAnswersBelongToRequests(t *testing.T) {
	f := start(t)
	f.claim(t, "weather", ada)
	f.tokens.issue("ada-token", ada, time.Hour)
	f.tokens.issue("bert-token", bert, time.Hour)
	var offsets kadm.Offsets
	offsets.AddOffset("weather", 0, 5, -1)
	testkit.Must(t, kadm.NewClient(f.client(t, "ada-token")).CommitAllOffsets(t.Context(), "secret", offsets))
	c := f.login(t, "bert-token")
	list := kmsg.NewPtrListGroupsRequest()
	list.Version = 4
	unanswered := produceRequest(9)
	unanswered.Acks, unanswered.Topics = 0, nil
	const rounds = 200
	go func() {
		for range rounds {
			for _, r := range []kmsg.Request{apiVersions(3), unanswered, list, metadata(), unanswered, list} {
				c.send(appendRequest(r, 7)) // all of them
			}
		}
	}()
	for range rounds {
		for _, r := range []kmsg.Request{apiVersions(3), list, metadata(), list} {
			answer, err := c.response(r, 7)
			if err != nil {
				t.Fatalf("the answer to %T: %v", r, err)
			}
			if l, ok := answer.(*kmsg.ListGroupsResponse); ok && (len(l.Groups) > 0 || l.ErrorCode != 0) {
				t.Fatalf("the list of groups: %+v", l)
			}
		}
	}
}

func only[T any](t *testing.T, all []T) (one T) {
	t.Helper()
	if len(all) != 1 {
		t.Errorf("there are %d of %T, want one", len(all), one)
		return one
	}
	return all[0]
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(fmt.Sprintf("%T: %v", v, err))
	}
	return v
}

func metadata() *kmsg.MetadataRequest {
	r := kmsg.NewPtrMetadataRequest()
	r.Version, r.Topics = 1, []kmsg.MetadataRequestTopic{}
	return r
}

// produce logs n events as the owner of a token.
func (f *front) produce(t testing.TB, token, topic string, n int) {
	t.Helper()
	client := f.client(t, token)
	defer client.Close()
	for range n {
		testkit.Must(t, client.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Value: []byte("rain")}).FirstErr())
	}
}

package interop

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// The names of the actors of the sweep.
const (
	theOwner    = "owner"
	theStranger = "stranger"
	theWriteKey = "write-only key"
	theOtherKey = "read-only key of another topic"

	// Those with whom the topic is shared, or another one is with everybody.
	theManager    = "manager"
	theWriter     = "writer"
	theReader     = "reader"
	theReadersKey = "key of a reader"
	theVisitor    = "reader of a public topic"
	theFormer     = "former reader"
)

// actor is somebody who makes every request of the sweep.
type actor struct {
	name string
	dial func() rawConn // a connection that is signed in

	// sharesGroups says that the owner's consumer groups are the actor's as well. Requests
	// about groups then name a group that nobody uses: what the actor does to it is allowed.
	sharesGroups bool

	// as is the actor who gets the same in every row, and topic is the one that requests are about, if
	// it is not that of the scene.
	as, topic string
}

// actors are those who make every request. Whoever is added here needs a column in each row. See
// TestBlockedPersonGetsNothing for one who needs none.
func (s *scene) actors(t *testing.T) []actor {
	broker := s.f.Brokers()[0]
	writes := createKey(t, s.owner, diaspora.AccessKeyRequest{Topics: []string{s.topic}, Write: true})
	reads := createKey(t, s.owner, diaspora.AccessKeyRequest{Topics: []string{s.other}, Read: true})
	colleague := func(name string) actor {
		return actor{name: name, dial: func() rawConn { return signedInWire(t, s.colleagues[name], broker) }}
	}
	readsShared := createKey(t, s.colleagues[theReader], diaspora.AccessKeyRequest{Topics: []string{s.topic}, Read: true})
	visitor, former := colleague(theVisitor), colleague(theFormer)
	visitor.topic, former.as = s.public, theStranger
	return []actor{
		{name: theStranger, dial: func() rawConn { return signedInWire(t, s.stranger, broker) }},
		former, visitor, colleague(theReader),
		{name: theReadersKey, dial: func() rawConn { return keyWire(t, readsShared, broker) }},
		colleague(theWriter), colleague(theManager),
		{name: theWriteKey, dial: func() rawConn { return keyWire(t, writes, broker) }},
		{name: theOtherKey, dial: func() rawConn { return keyWire(t, reads, broker) }, sharesGroups: true},
		{name: theOwner, dial: func() rawConn { return signedInWire(t, s.owner, broker) }, sharesGroups: true},
	}
}

// share shares the topics of the scene, and takes one share away again.
func (s *scene) share(t *testing.T) {
	t.Helper()
	owner := fabrictest.Client(t, s.owner)
	with := func(name, topic string, r diaspora.GrantRequest) {
		t.Helper()
		if !r.Public {
			r.Username = s.colleagues[name].Identity.Username
		}
		_, err := owner.Share(testkit.Within(t), topic, r)
		testkit.Must(t, err)
	}
	for _, name := range []string{theManager, theWriter, theReader, theVisitor, theFormer} {
		s.colleagues[name] = newcomer(t, s.f)
	}
	with(theManager, s.topic, diaspora.GrantRequest{Manage: true})
	with(theWriter, s.topic, diaspora.GrantRequest{Write: true})
	with(theReader, s.topic, diaspora.GrantRequest{Read: true})
	with(theVisitor, s.public, diaspora.GrantRequest{Public: true, Read: true})

	// One share of the former reader's has expired, and another was taken away. Like the stranger, the
	// former reader has a topic too.
	former := s.colleagues[theFormer]
	claim(t, former, 1)
	with(theFormer, s.topic, diaspora.GrantRequest{Read: true, Write: true, Expires: time.Now().Add(2 * time.Second)})
	for ctx := testkit.Within(t); ; time.Sleep(100 * time.Millisecond) {
		grants, err := owner.Grants(ctx, s.topic)
		testkit.Must(t, err)
		if !slices.ContainsFunc(grants, func(g diaspora.Grant) bool { return g.Subject == former.Identity.Subject }) {
			break
		}
	}
	with(theFormer, s.topic, diaspora.GrantRequest{Manage: true})
	testkit.Must(t, owner.Unshare(testkit.Within(t), s.topic, former.Identity.Subject))
}

// refusedWire returns a connection on which the login with a blocked person's key was refused.
func refusedWire(t *testing.T, key diaspora.NewAccessKey, broker string) rawConn {
	conn, err := new(net.Dialer).DialContext(testkit.Within(t), "tcp", broker)
	if err != nil {
		t.Error(err)
		return rawConn{}
	}
	w := rawConn{t, conn}
	handshake := kmsg.NewPtrSASLHandshakeRequest()
	handshake.Version, handshake.Mechanism = 1, "PLAIN"
	login := kmsg.NewPtrSASLAuthenticateRequest()
	login.Version, login.SASLAuthBytes = 1, []byte("\x00"+key.ID+"\x00"+key.Secret.Reveal())
	_, _, err = w.try(handshake)
	answer, _, loginErr := w.try(login)
	refused, ok := answer.(*kmsg.SASLAuthenticateResponse)
	if !ok || refused.ErrorCode != kerr.SaslAuthenticationFailed.Code || refused.ErrorMessage == nil || !strings.Contains(*refused.ErrorMessage, "blocked") {
		t.Errorf("the login of a blocked person is answered with %+v, %v", answer, errors.Join(err, loginErr))
	}
	return w
}

// scene is what there is to attack: a topic with a record, a group that has committed an
// offset, a group with a member, and a share group. All are the owner's.
type scene struct {
	f               *fabric.Fabric
	owner, stranger diaspora.Config
	topic           string // the owner's
	other           string // another one of the owner's
	public          string // a third one of the owner's, which is shared with everybody
	strangers       string // a topic of the stranger's
	colleagues      map[string]diaspora.Config
	ids             map[string][16]byte

	prefix string // of the owner's groups at the broker
	wire   rawConn

	// What only the owner knows.
	value      string // of the record
	metadata   string // of the offset that was committed
	member     string // the ID of the live group's member
	generation int32
}

// The owner's groups, by names that no earlier run over the same cluster had. What is done to a
// scratch group is allowed.
var (
	committedGroup = "committed-" + rand.Text()
	liveGroup      = "live-" + rand.Text()
	consumerGroup  = "consumer-" + rand.Text() // of KIP-848
	shareGroup     = "shared-" + rand.Text()
)

// scratchGroup is what the names of scratch groups begin with.
const scratchGroup = "scratch"

// memberID is one that a client chooses, as KIP-848 has it.
const memberID = "AAAAAAAAAAAAAAAAAAAAAA"

func setScene(t *testing.T) *scene {
	f := start(t, fabric.Config{Operators: []string{grace}})
	s := &scene{f: f, owner: fabrictest.As(t, f, ada), stranger: fabrictest.As(t, f, grace), colleagues: map[string]diaspora.Config{},
		value: "value-of-the-owner", metadata: "metadata-of-the-owner"}
	s.topic, s.other, s.public, s.strangers = claim(t, s.owner, 1), claim(t, s.owner, 1), claim(t, s.owner, 1), claim(t, s.stranger, 1)
	s.prefix = "user." + s.owner.Identity.Subject + "."
	s.wire = signedInWire(t, s.owner, f.Brokers()[0])
	logger := fabrictest.OpenLogger(t, s.owner)
	fabrictest.Log(t, logger, s.topic, s.value)
	fabrictest.Log(t, logger, s.other, "of another topic")
	fabrictest.Log(t, logger, s.public, s.value)
	s.share(t)

	c, err := diaspora.Dial(testkit.Within(t), s.owner, kgo.ConsumerGroup(liveGroup), kgo.ConsumeTopics(s.topic),
		kgo.DisableAutoCommit(), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	testkit.Must(t, err)
	t.Cleanup(c.Close)
	for c.PollFetches(testkit.Within(t)).Empty() {
	}
	s.member, s.generation = c.GroupMetadata()

	topics, err := fabrictest.Admin(t, f).ListTopicsWithInternal(testkit.Within(t))
	testkit.Must(t, err)
	s.ids = map[string][16]byte{}
	for name, topic := range topics {
		s.ids[name] = topic.ID
	}
	join := kmsg.NewPtrConsumerGroupHeartbeatRequest()
	join.Group, join.MemberID, join.RebalanceTimeoutMillis = consumerGroup, memberID, 10_000
	join.SubscribedTopicNames, join.Topics = []string{s.topic}, []kmsg.ConsumerGroupHeartbeatRequestTopic{}
	leave := *join
	leave.MemberEpoch = -1
	s.setUp(t, join)
	s.setUp(t, &leave)
	s.setUp(t, s.commit(consumerGroup))
	s.setUp(t, s.commit(committedGroup))
	if _, ok := offeredVersions(s.wire)[kmsg.ShareGroupHeartbeat.Int16()]; ok {
		join := kmsg.NewPtrShareGroupHeartbeatRequest()
		join.Version, join.GroupID, join.MemberID, join.SubscribedTopicNames = 1, shareGroup, memberID, []string{s.topic}
		leave := *join
		leave.MemberEpoch = -1
		s.setUp(t, join)
		s.setUp(t, &leave)
		s.setUp(t, s.shareOffset(shareGroup, 0))
	}
	return s
}

// setUp makes a request of the owner's until it is granted: coordinators may not be ready.
func (s *scene) setUp(t *testing.T, request kmsg.Request) {
	t.Helper()
	for ctx := testkit.Within(t); ; {
		codes := errorCodes(s.wire.ask(request))
		if codes == "ok" {
			return
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("%T: %s", request, codes)
		}
	}
}

// commit is a request to commit the owner's offset.
func (s *scene) commit(group string) *kmsg.OffsetCommitRequest {
	p := kmsg.NewOffsetCommitRequestTopicPartition()
	p.Metadata = &s.metadata
	topic := kmsg.NewOffsetCommitRequestTopic()
	topic.Topic, topic.TopicID, topic.Partitions = s.topic, s.ids[s.topic], []kmsg.OffsetCommitRequestTopicPartition{p}
	commit := kmsg.NewPtrOffsetCommitRequest()
	commit.Version, commit.Group, commit.Generation, commit.Topics = 9, group, -1, []kmsg.OffsetCommitRequestTopic{topic}
	return commit
}

func (s *scene) shareOffset(group string, offset int64) *kmsg.AlterShareGroupOffsetsRequest {
	p := kmsg.NewAlterShareGroupOffsetsRequestTopicPartition()
	p.StartOffset = offset
	topic := kmsg.NewAlterShareGroupOffsetsRequestTopic()
	topic.Topic, topic.Partitions = s.topic, []kmsg.AlterShareGroupOffsetsRequestTopicPartition{p}
	alter := kmsg.NewPtrAlterShareGroupOffsetsRequest()
	alter.GroupID, alter.Topics = group, []kmsg.AlterShareGroupOffsetsRequestTopic{topic}
	return alter
}

// cell is one request of one actor in one version.
type cell struct {
	*scene
	actor   actor
	version int16
}

// of returns the scene as an actor has it: with another topic, if the requests are about that one.
func (s *scene) of(a actor) *scene {
	own := *s
	own.topic = cmp.Or(a.topic, s.topic)
	return &own
}

// group is the group that a request names.
func (c cell) group(victim string) string {
	if c.actor.sharesGroups {
		return scratchGroup + "-" + victim
	}
	return victim
}

// TestEveryRequestOfEveryActor makes every request that the gateway offers, in every version, as
// each actor. The row says what the answer is. Snapshots of the cluster, taken before and
// after, show that nothing has changed but what the row allows.
func TestEveryRequestOfEveryActor(t *testing.T) {
	parallel(t)
	s := setScene(t)
	o := s.observe(t)
	actors := s.actors(t)
	offered := offeredVersions(actors[0].dial())
	for key := range offered {
		if !slices.ContainsFunc(sweep, func(r row) bool { return r.key.Int16() == key && (engineIsApache || !r.apacheOnly) }) {
			t.Errorf("%s is offered, and has no row", kmsg.NameForKey(key))
		}
	}
	for _, a := range actors {
		for range 2 { // the first login with a key makes a record of its use
			a.dial().Close()
		}
	}
	before := o.settled(t)
	for _, r := range sweep {
		versions, ok := offered[r.key.Int16()]
		if r.apacheOnly && !engineIsApache {
			continue
		}
		if !ok {
			t.Errorf("%s has a row, and is not offered", r.key.Name())
			continue
		}
		for _, a := range actors {
			t.Run(r.key.Name()+r.of+"/"+a.name, func(t *testing.T) {
				want, ok := r.want[cmp.Or(a.as, a.name)]
				if !ok {
					t.Fatal("the row does not say what this actor gets")
				}
				w := a.dial()
				defer func() { w.Close() }()
				for version := versions[0]; version <= versions[1]; version++ {
					c := cell{s.of(a), a, version}
					if r.prepare != nil {
						r.prepare(t, c, w)
					}
					got, answer, body := c.make(t, w, r)
					if want := expected(want, version); !slices.Contains(strings.Split(want, " or "), got) {
						t.Errorf("version %d: %s, want %s", version, got, want)
					}
					c.wantSecrets(t, r, body)
					if r.finish != nil && got == "ok" {
						r.finish(c, w, answer)
					}
					if got == "closed" || r.key == kmsg.SASLHandshake || r.key == kmsg.SASLAuthenticate {
						w.Close()
						w = a.dial()
					}
				}
				after := o.snapshot(t)
				for _, change := range before.changes(after) {
					if !slices.ContainsFunc(r.changes[a.name], func(of string) bool { return strings.HasPrefix(change, s.of(a).expand(of)) }) {
						t.Errorf("some version changes %s\nfrom %s\nto   %s", change, before[change], after[change])
					}
				}
				before = after
			})
		}
	}
}

// TestBlockedPersonGetsNothing makes every request, in every version, as a person whom an operator
// has blocked, with an access key that may do everything.
func TestBlockedPersonGetsNothing(t *testing.T) {
	parallel(t)
	s := setScene(t)
	o := s.observe(t)
	person := newcomer(t, s.f)
	key := createKey(t, person, diaspora.AccessKeyRequest{Read: true, Write: true})
	block := diaspora.BlockRequest{Subject: person.Identity.Subject, Why: "the sweep"}
	if _, err := fabrictest.Client(t, fabrictest.As(t, s.f, grace)).Block(testkit.Within(t), block); err != nil {
		t.Fatal(err)
	}
	broker := s.f.Brokers()[0]
	offered := offeredVersions(signedInWire(t, s.stranger, broker))
	before := o.settled(t)
	var work errgroup.Group
	work.SetLimit(32) // a refused login takes its time
	for _, r := range sweep {
		versions, ok := offered[r.key.Int16()]
		if !ok || r.request == nil {
			continue
		}
		for version := versions[0]; version <= versions[1]; version++ {
			work.Go(func() error {
				w := refusedWire(t, key, broker)
				defer w.Close()
				c := cell{s, actor{}, version}
				if got, _, _ := c.make(t, w, r); got != "closed" {
					t.Errorf("%s, version %d: %s", r.key.Name(), version, got)
				}
				return nil
			})
		}
	}
	work.Wait()
	for _, change := range before.changes(o.snapshot(t)) {
		t.Errorf("a blocked person changes %s", change)
	}
}

// make makes the request of a row, and returns the error codes in the answer.
func (c cell) make(t *testing.T, w rawConn, r row) (codes string, answer kmsg.Response, body []byte) {
	if r.request == nil {
		return c.becomeAnother(t, w)
	}
	request := r.request(c)
	request.SetVersion(c.version)
	return c.ask(w, request)
}

func (cell) ask(w rawConn, request kmsg.Request) (codes string, answer kmsg.Response, body []byte) {
	answer, body, err := w.try(request)
	if err != nil {
		return "closed", nil, nil
	}
	return errorCodes(answer), answer, body
}

// wantSecrets fails if an answer has what this actor may not know, or lacks what it should say.
func (c cell) wantSecrets(t *testing.T, r row, body []byte) {
	t.Helper()
	for name, secret := range map[string]string{theRecord: c.value, theMetadata: c.metadata, theMember: c.member, theTopic: c.topic} {
		may := slices.Contains(r.shows[name], c.actor.name)
		switch has := bytes.Contains(body, []byte(secret)); {
		case may && !has && c.version >= r.showsSince:
			t.Errorf("version %d: the answer does not have the %s: %q", c.version, name, body)
		case !may && has && !slices.Contains(r.names, name):
			t.Errorf("version %d: the answer has the %s: %q", c.version, name, body)
		}
	}
	if hint := c.expand(r.hint); c.version >= r.hintSince && !bytes.Contains(body, []byte(hint)) {
		t.Errorf("version %d: the answer does not name the command %q: %q", c.version, hint, body)
	}
}

// What an answer may tell.
const (
	theRecord   = "record"
	theMetadata = "metadata of the offset"
	theMember   = "member of the group"
	theTopic    = "name of the topic"
)

// expected returns what is wanted in a version. "ok" is wanted in all; "0: ok, 6: X" wants X from
// version 6 on.
func expected(want string, version int16) (of string) {
	if !strings.Contains(want, ": ") {
		return want
	}
	for part := range strings.SplitSeq(want, ", ") {
		since, codes, _ := strings.Cut(part, ": ")
		if n, _ := strconv.Atoi(since); int(version) >= n {
			of = codes
		}
	}
	return of
}

// errorCodes names all error codes in an answer, or is "ok".
func errorCodes(answer kmsg.Response) string {
	found := map[string]bool{}
	findErrorCodes(reflect.ValueOf(answer), found)
	if len(found) == 0 {
		return "ok"
	}
	return strings.Join(slices.Sorted(maps.Keys(found)), " ")
}

func findErrorCodes(v reflect.Value, found map[string]bool) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			findErrorCodes(v.Elem(), found)
		}
	case reflect.Slice:
		for i := range v.Len() {
			findErrorCodes(v.Index(i), found)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			field := v.Type().Field(i)
			switch {
			case !field.IsExported():
			case strings.HasSuffix(field.Name, "ErrorCode"):
				if code := int16(v.Field(i).Int()); code != 0 {
					found[errorName(code)] = true
				}
			default:
				findErrorCodes(v.Field(i), found)
			}
		}
	}
}

func errorName(code int16) string {
	if err := kerr.TypedErrorForCode(code); err != nil {
		return err.Message
	}
	return fmt.Sprint(code)
}

// expand puts the names of the scene into the name of a part of the snapshot.
func (s *scene) expand(part string) string { return strings.ReplaceAll(part, "{topic}", s.topic) }

// becomeAnother signs in again on an open connection, as somebody else.
func (c cell) becomeAnother(t *testing.T, w rawConn) (codes string, answer kmsg.Response, body []byte) {
	cfg := c.owner
	if c.actor.name == theOwner {
		cfg = c.stranger
	}
	token, err := cfg.TokenSource.Token(testkit.Within(t))
	testkit.Must(t, err)
	handshake := kmsg.NewPtrSASLHandshakeRequest()
	handshake.Version, handshake.Mechanism = 1, "OAUTHBEARER"
	w.ask(handshake)
	login := kmsg.NewPtrSASLAuthenticateRequest()
	login.Version, login.SASLAuthBytes = c.version, []byte("n,,\x01auth=Bearer "+token.AccessToken.Reveal()+"\x01\x01")
	return c.ask(w, login)
}

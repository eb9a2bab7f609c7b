package interop

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/history"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// What happens to those who log and read when an operator, or the owner, changes the
// topic under them. docs/engines.md has the outcomes in words.

// traffic is one who logs the events of some keys in turn, and two who read them: one
// alone, and one in a group.
type traffic struct {
	t       *testing.T
	cfg     diaspora.Config
	topic   string
	stop    context.CancelFunc // of logging
	logging sync.WaitGroup
	leave   context.CancelFunc // of reading
	reading sync.WaitGroup
	changed chan struct{}

	mu         sync.Mutex // guards the fields below
	logged     []history.Event
	partitions map[int32]int // events in each, by what the Logger was told
	read       [2][]history.Event
}

func startTraffic(t *testing.T, cfg diaspora.Config, topic string) *traffic {
	t.Helper()
	s := &traffic{t: t, cfg: cfg, topic: topic, changed: make(chan struct{}, 1), partitions: map[int32]int{}}
	var reading, logging context.Context
	reading, s.leave = context.WithCancel(testkit.Within(t))
	logging, s.stop = context.WithCancel(testkit.Within(t))
	for i, options := range []diaspora.ConsumerOptions{{}, {Group: unique(t), CommitEvery: 500 * time.Millisecond}} {
		options.Topics = []string{topic}
		consumer := fabrictest.OpenConsumer(t, cfg, options)
		s.reading.Go(func() { s.consume(reading, consumer, i) })
	}
	logger := fabrictest.OpenLogger(t, cfg)
	s.logging.Go(func() { s.log(logging, logger) })
	t.Cleanup(func() { s.stop(); s.leave(); s.logging.Wait(); s.reading.Wait() })
	return s
}

func (s *traffic) log(ctx context.Context, logger *diaspora.Logger) {
	const keys = 12
	told := make(chan error, 1)
	pace := time.NewTicker(5 * time.Millisecond)
	defer pace.Stop()
	for n := 0; ctx.Err() == nil; n++ {
		e := history.Event{Key: fmt.Sprint("key-", n%keys), N: n, ID: fmt.Sprint("id-", n)}
		logger.Send(diaspora.Event{Topic: s.topic, Key: []byte(e.Key), Value: fmt.Appendf(nil, "%s %d", e.Key, n), ID: e.ID}, func(r diaspora.Record, err error) {
			s.note(func() { s.logged = append(s.logged, e); s.partitions[r.Partition]++ })
			told <- err
		})
		if err := <-told; err != nil {
			s.t.Errorf("event %d: %v", n, err)
			return
		}
		<-pace.C
	}
}

func (s *traffic) consume(ctx context.Context, consumer *diaspora.Consumer, reader int) {
	for r, err := range consumer.Records(ctx) {
		if err != nil {
			if ctx.Err() == nil {
				s.t.Errorf("reader %d: %v", reader, err)
			}
			return
		}
		e, err := history.Parse(r.Key, r.Value, r.ID)
		if err != nil {
			s.t.Error(err)
		}
		s.note(func() { s.read[reader] = append(s.read[reader], e) })
	}
}

func (s *traffic) note(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// until waits for a condition.
func (s *traffic) until(what string, met func() bool) {
	s.t.Helper()
	ctx := testkit.Within(s.t)
	for {
		s.mu.Lock()
		ok := met()
		s.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-s.changed:
		case <-ctx.Done():
			s.t.Fatalf("waited too long until %s", what)
		}
	}
}

// more waits until both readers have got so many more events.
func (s *traffic) more(n int) {
	s.t.Helper()
	s.mu.Lock()
	want := [2]int{len(s.read[0]) + n, len(s.read[1]) + n}
	s.mu.Unlock()
	s.until("both readers go on", func() bool { return len(s.read[0]) >= want[0] && len(s.read[1]) >= want[1] })
}

// end stops the traffic and judges it.
func (s *traffic) end() {
	s.t.Helper()
	s.stop()
	s.logging.Wait()
	judge := func(reader int, stored [][]history.Event) history.Verdict {
		return history.Check(history.History{Acknowledged: s.logged, Consumed: s.read[reader], Stored: stored})
	}
	s.until("both readers have read all", func() bool { return judge(0, nil).Skipped+judge(1, nil).Skipped == 0 })
	s.leave()
	s.reading.Wait()
	var stored [][]history.Event
	for _, r := range fabrictest.ReadAll(s.t, s.cfg, s.topic) {
		e, err := history.Parse(r.Key, r.Value, r.ID)
		if err != nil {
			s.t.Error(err)
		}
		for len(stored) <= int(r.Partition) {
			stored = append(stored, nil)
		}
		stored[r.Partition] = append(stored[r.Partition], e)
	}
	for reader := range s.read {
		v := judge(reader, stored)
		if err := v.Err(); err != nil || v.Repeated > 0 {
			s.t.Errorf("reader %d: %v; %d stored twice", reader, err, v.Repeated)
		}
	}
	s.t.Logf("%d events in %d partitions", len(s.logged), len(stored))
}

// TestPartitionsAreAdded has an operator add partitions while a Logger and a Consumer run. The Logger uses
// them and the Consumers read them, from their start; the order of a key holds in each
// partition, and so not between what was logged before and after.
func TestPartitionsAreAdded(t *testing.T) {
	parallel(t)
	f := start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	topic := claim(t, cfg, 2)
	s := startTraffic(t, cfg, topic)
	s.more(50)
	answers, err := fabrictest.Admin(t, f).UpdatePartitions(testkit.Within(t), 6, topic)
	if err == nil {
		err = answers.Error()
	}
	testkit.Must(t, err)
	began := time.Now()
	s.until("the Logger uses the new partitions", func() bool { return len(s.partitions) > 2 })
	t.Logf("the Logger uses them after %v", time.Since(began))
	s.end()
}

// TestTopicIsMadeAgain releases a topic while it is used and claims it again. The Logger and
// the Consumers that were open go on with the new one, which begins empty; in between
// they say that there is none.
func TestTopicIsMadeAgain(t *testing.T) {
	parallel(t)
	f := start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	topic := claim(t, cfg, 1)
	logger := fabrictest.OpenLogger(t, cfg)
	fabrictest.Log(t, logger, topic, fabrictest.Numbers(0, 5)...)
	group := diaspora.ConsumerOptions{Topics: []string{topic}, Group: unique(t), CommitEvery: 100 * time.Millisecond}
	alone, member := fabrictest.OpenConsumer(t, cfg, diaspora.ConsumerOptions{Topics: []string{topic}}), fabrictest.OpenConsumer(t, cfg, group)
	for _, c := range []*diaspora.Consumer{alone, member} {
		if got := values(fabrictest.Read(t, c, 5)); got != "0 1 2 3 4" {
			t.Fatalf("read %q", got)
		}
	}
	absent := diaspora.ConsumerOptions{Topics: []string{topic}, Group: unique(t)}
	early := fabrictest.OpenConsumer(t, cfg, absent)
	fabrictest.Read(t, early, 5)
	testkit.Must(t, early.Close(testkit.Within(t)))
	testkit.Must(t, fabrictest.Client(t, cfg).Release(testkit.Within(t), topic))
	if err := logger.Log(testkit.Within(t), diaspora.Event{Topic: topic, Value: []byte("between")}); !gone(err) {
		t.Errorf("Log to a topic that was released: %v, want ErrNotFound or ErrPermission", err)
	}
	fabrictest.Claim(t, cfg, topic, 1)
	for ctx := testkit.Within(t); ; {
		err := logger.Log(ctx, diaspora.Event{Topic: topic, Value: []byte("10")})
		if err == nil {
			break
		}
		if !gone(err) {
			t.Fatalf("Log to a topic that was claimed again: %v", err)
		}
	}
	fabrictest.Log(t, logger, topic, fabrictest.Numbers(11, 20)...)
	want := values(fabrictest.ReadAll(t, cfg, topic))
	if want != "10 11 12 13 14 15 16 17 18 19" {
		t.Errorf("the topic has %q, want what was acknowledged since it was claimed again", want)
	}
	for i, c := range []*diaspora.Consumer{alone, member} {
		var got []diaspora.Record
		for r, err := range c.Records(testkit.Within(t)) {
			if err != nil && !gone(err) {
				t.Fatalf("reader %d: %v", i, err)
			}
			if err != nil || r.Value[0] != '1' || len(r.Value) == 1 { // those of the old topic may come again
				continue
			}
			if got = append(got, r); len(got) == 10 {
				break
			}
		}
		if values(got) != want {
			t.Errorf("reader %d: %q, want %q", i, values(got), want)
		}
	}
	if got := values(fabrictest.Read(t, fabrictest.OpenConsumer(t, cfg, absent), 10)); got != want {
		t.Errorf("a group that was not there meanwhile: %q, want %q", got, want)
	}
}

// gone reports whether an error is one of those for a topic that is not there: who owns
// no such topic is not told whether somebody else does.
func gone(err error) bool {
	return errors.Is(err, diaspora.ErrNotFound) || errors.Is(err, diaspora.ErrPermission)
}

// TestRightsAreTakenAway has an operator delete a topic's ACLs while it is used. Those who log and
// read are told so in words. When the rights are back, which the service sees to within
// a minute or at the next claim, they go on, and nothing is missing.
func TestRightsAreTakenAway(t *testing.T) {
	parallel(t)
	f := start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	topic := claim(t, cfg, 1)
	logger := fabrictest.OpenLogger(t, cfg)
	fabrictest.Log(t, logger, topic, "before")
	ctx, stop := context.WithCancel(testkit.Within(t))
	defer stop()
	readers := []chan reading{make(chan reading), make(chan reading)}
	for i, group := range []string{"", unique(t)} {
		c := fabrictest.OpenConsumer(t, cfg, diaspora.ConsumerOptions{Topics: []string{topic}, Group: group, CommitEvery: 100 * time.Millisecond})
		go tell(ctx, c, readers[i])
		if got := <-readers[i]; got.value != "before" {
			t.Fatalf("reader %d: %v", i, got)
		}
	}
	admin := fabrictest.Admin(t, f)
	all := kadm.NewACLs().Topics(topic).ResourcePatternType(kadm.ACLPatternLiteral).Operations().Allow().AllowHosts().Deny().DenyHosts()
	for err := error(nil); err == nil; { // the nodes learn of it one by one
		if _, err := admin.DeleteACLs(ctx, all); err != nil {
			t.Fatal(err)
		}
		if err = logger.Log(ctx, diaspora.Event{Topic: topic, Value: []byte("before")}); err != nil {
			wantError(t, "Log without rights", err, diaspora.ErrPermission, topic, ada)
		}
	}
	for i, reader := range readers {
		got := reading{value: "before"}
		for got.value == "before" {
			got = <-reader
		}
		wantError(t, fmt.Sprintf("reader %d without rights", i), got.err, diaspora.ErrPermission, topic, ada)
	}
	fabrictest.Claim(t, cfg, topic, 1)
	fabrictest.Log(t, logger, topic, "after")
	for i, reader := range readers {
		got := <-reader
		for errors.Is(got.err, diaspora.ErrPermission) {
			got = <-reader
		}
		if got.value != "after" {
			t.Errorf("reader %d: %v, want what was logged since the rights are back", i, got)
		}
	}
}

// TestTheOperatorsACLsStay has an operator deny a topic to its owner, who claims it again,
// releases it, and claims it again.
func TestTheOperatorsACLsStay(t *testing.T) {
	parallel(t)
	f := start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	topic := claim(t, cfg, 1)
	identity, err := fabrictest.Client(t, cfg).Identity(testkit.Within(t))
	testkit.Must(t, err)
	owner, admin := "User:"+identity.Subject, fabrictest.Admin(t, f)
	onTopic := func(pattern kadm.ACLPattern, operations ...kadm.ACLOperation) *kadm.ACLBuilder {
		return kadm.NewACLs().Topics(topic).ResourcePatternType(pattern).Operations(operations...)
	}
	for _, acl := range []*kadm.ACLBuilder{
		onTopic(kadm.ACLPatternLiteral, kadm.OpWrite).Deny(owner).DenyHosts("*"),
		onTopic(kadm.ACLPatternLiteral, kadm.OpRead).Allow(owner).AllowHosts("192.0.2.7"),
		onTopic(kadm.ACLPatternLiteral, kadm.OpRead).Allow("User:mirror").AllowHosts("*"),
		onTopic(kadm.ACLPatternPrefixed, kadm.OpRead).Allow(owner).AllowHosts("*"),
	} {
		if created, err := admin.CreateACLs(testkit.Within(t), acl); err != nil || created[0].Err != nil {
			t.Fatal(err, created)
		}
	}
	missing := func() []string {
		t.Helper()
		described, err := admin.DescribeACLs(testkit.Within(t), onTopic(kadm.ACLPatternAny).Allow().AllowHosts().Deny().DenyHosts())
		testkit.Must(t, err)
		missing := map[string]bool{"LITERAL DENY WRITE " + owner + " *": true, "LITERAL ALLOW READ " + owner + " 192.0.2.7": true,
			"LITERAL ALLOW READ User:mirror *": true, "PREFIXED ALLOW READ " + owner + " *": true}
		for _, d := range described {
			for _, acl := range d.Described {
				delete(missing, fmt.Sprint(acl.Pattern, " ", acl.Permission, " ", acl.Operation, " ", acl.Principal, " ", acl.Host))
			}
		}
		return slices.Sorted(maps.Keys(missing))
	}
	logger := fabrictest.OpenLogger(t, cfg)
	for err == nil || len(missing()) > 0 { // the nodes learn of it one by one
		err = logger.Log(testkit.Within(t), diaspora.Event{Topic: topic, Value: []byte("x")})
	}
	wantError(t, "Log to a topic that the operator denies", err, diaspora.ErrPermission, topic)
	fabrictest.Claim(t, cfg, topic, 1)
	if m := missing(); len(m) > 0 {
		t.Errorf("claiming again removed the operator's %q", m)
	}
	err = logger.Log(testkit.Within(t), diaspora.Event{Topic: topic, Value: []byte("x")})
	wantError(t, "Log after claiming again", err, diaspora.ErrPermission, topic)
	testkit.Must(t, fabrictest.Client(t, cfg).Release(testkit.Within(t), topic))
	if m := missing(); len(m) > 0 {
		t.Errorf("releasing removed the operator's %q", m)
	}
	fabrictest.Claim(t, cfg, topic, 1)
	if m := missing(); len(m) > 0 {
		t.Errorf("claiming the free name removed the operator's %q", m)
	}
}

// reading is what a loop over records yields.
type reading struct {
	value string
	err   error
}

// tell hands on what a Consumer reads, until ctx ends.
func tell(ctx context.Context, c *diaspora.Consumer, to chan<- reading) {
	for r, err := range c.Records(ctx) {
		select {
		case to <- reading{string(r.Value), err}:
		case <-ctx.Done():
		}
	}
}

package interop

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// pulled logs the numbers, one every few milliseconds, as long as the test runs.
func pulled(t *testing.T, logger *diaspora.Logger, topic string, n *int) context.Context {
	ctx, stop := context.WithCancel(testkit.Within(t))
	var logging sync.WaitGroup
	logging.Go(func() {
		ticker := time.NewTicker(5 * time.Millisecond)
		defer ticker.Stop()
		for ctx.Err() == nil {
			if err := logger.Log(context.WithoutCancel(ctx), diaspora.Event{Topic: topic, Value: fmt.Append(nil, *n)}); err != nil {
				t.Errorf("Log: %v", err)
				stop()
			}
			*n++
			<-ticker.C
		}
	})
	t.Cleanup(func() { stop(); logging.Wait() })
	return ctx
}

func TestPositions(t *testing.T) {
	parallel(t)
	f := start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	topic := claim(t, cfg, 1)
	logger := fabrictest.OpenLogger(t, cfg)
	fabrictest.Log(t, logger, topic, fabrictest.Numbers(0, 10)...)
	tenth := fabrictest.ReadAll(t, cfg, topic)[9].Stored
	// The next ones must have a later time, in milliseconds.
	for !time.Now().Truncate(time.Millisecond).After(tenth) {
		runtime.Gosched()
	}
	later := time.Now()
	fabrictest.Log(t, logger, topic, fabrictest.Numbers(10, 12)...)
	for _, test := range []struct {
		from, until diaspora.Position
		want        string
	}{
		{diaspora.Start, diaspora.End, "0 1 2 3 4 5 6 7 8 9 10 11"},
		{diaspora.End, diaspora.End, ""},
		{diaspora.Offset(7), diaspora.End, "7 8 9 10 11"},
		{diaspora.Offset(7), diaspora.Offset(9), "7 8"},
		{diaspora.Offset(100), diaspora.End, ""},
		{diaspora.Last(3), diaspora.End, "9 10 11"},
		{diaspora.Last(100), diaspora.Offset(2), "0 1"},
		{diaspora.At(later), diaspora.End, "10 11"},
		{diaspora.Start, diaspora.At(later), "0 1 2 3 4 5 6 7 8 9"},
		{diaspora.At(later.Add(time.Hour)), diaspora.End, ""},
	} {
		consumer := fabrictest.OpenConsumer(t, cfg, diaspora.ConsumerOptions{Topics: []string{topic}, From: test.from, Until: test.until})
		if got := values(fabrictest.Read(t, consumer, -1)); got != test.want {
			t.Errorf("from %v until %v: %q, want %q", test.from, test.until, got, test.want)
		}
	}
}

// TestGroupGoesOn reads a topic in pieces, each by a new member of a group.
func TestGroupGoesOn(t *testing.T) {
	parallel(t)
	f := start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	topic, group := claim(t, cfg, 1), unique(t)
	fabrictest.Log(t, fabrictest.OpenLogger(t, cfg), topic, fabrictest.Numbers(0, 100)...)
	seen := map[string]int{}
	for range 4 {
		consumer := fabrictest.OpenConsumer(t, cfg, diaspora.ConsumerOptions{Topics: []string{topic}, Group: group})
		for _, r := range fabrictest.Read(t, consumer, 25) {
			seen[string(r.Value)]++
		}
		testkit.Must(t, consumer.Close(testkit.Within(t)))
	}
	// The last record of each loop was not handled to the end, and comes again.
	if len(seen) < 97 {
		t.Errorf("four members read %d of 100 events", len(seen))
	}
	for value, n := range seen {
		if n > 2 {
			t.Errorf("event %s was read %d times", value, n)
		}
	}
}

// TestGroupShares has two members read four partitions, and one of them leave.
func TestGroupShares(t *testing.T) {
	parallel(t)
	f := start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	topic, group := claim(t, cfg, 4), unique(t)
	logger := fabrictest.OpenLogger(t, cfg)
	var mu sync.Mutex // guards the fields below
	seen := map[string]bool{}
	by := [2]map[int32]bool{{}, {}}
	changed := make(chan struct{}, 1)
	run := func(ctx context.Context, member int) {
		consumer := fabrictest.OpenConsumer(t, cfg, diaspora.ConsumerOptions{Topics: []string{topic}, Group: group, CommitEvery: 100 * time.Millisecond})
		for r, err := range consumer.Records(ctx) {
			if err != nil {
				if ctx.Err() == nil {
					t.Errorf("member %d: %v", member, err)
				}
				break
			}
			mu.Lock()
			seen[string(r.Value)] = true
			by[member][r.Partition] = true
			mu.Unlock()
			select {
			case changed <- struct{}{}:
			default:
			}
		}
		if err := consumer.Close(testkit.Within(t)); err != nil {
			t.Errorf("member %d: Close: %v", member, err)
		}
	}
	ctx, stopAll := context.WithCancel(testkit.Within(t))
	defer stopAll()
	first, stopFirst := context.WithCancel(ctx)
	var members sync.WaitGroup
	members.Go(func() { run(first, 0) })
	members.Go(func() { run(ctx, 1) })
	n := 0
	logUntil := func(what string, done func() bool) {
		for {
			for i := range 8 {
				if err := logger.Log(ctx, diaspora.Event{Topic: topic, Key: fmt.Append(nil, i), Value: fmt.Append(nil, n)}); err != nil {
					t.Fatalf("until %s: %v", what, err)
				}
				n++
			}
			mu.Lock()
			ok := done()
			mu.Unlock()
			if ok {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				t.Fatalf("waited too long until %s; partitions read: %v", what, by)
			}
		}
	}
	logUntil("both members read", func() bool { return len(by[0]) > 0 && len(by[1]) > 0 })
	stopFirst()
	mu.Lock()
	clear(by[1])
	mu.Unlock()
	logUntil("the other member reads all partitions that have events", func() bool { return len(by[1]) >= 3 })
	logUntil("all is read", func() bool { return len(seen) >= n-8 })
	stopAll()
	members.Wait()
}

// TestServerSideGroups uses the consumer groups of KIP-848, which the plain client
// has to ask for.
func TestServerSideGroups(t *testing.T) {
	parallel(t)
	f := start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	topic, group := claim(t, cfg, 2), unique(t)
	fabrictest.Log(t, fabrictest.OpenLogger(t, cfg), topic, fabrictest.Numbers(0, 20)...)
	c, err := diaspora.Dial(testkit.Within(t), cfg, kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.ServerSideBalancer())
	testkit.Must(t, err)
	defer c.CloseAllowingRebalance()
	n := 0
	for n < 20 {
		fetches := c.PollFetches(testkit.Within(t))
		if err := fetches.Err(); err != nil {
			t.Fatalf("after %d records: %v", n, err)
		}
		n += fetches.NumRecords()
	}
	if err := c.CommitUncommittedOffsets(testkit.Within(t)); err != nil {
		t.Errorf("commit: %v", err)
	}
}

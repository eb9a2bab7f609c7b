package diaspora

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
	"pgregory.net/rapid"

	"github.com/diaspora-streams/diaspora/internal/faultnet"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// epoch is when the first record of a numbered topic was stored; each further record is one second
// later.
var epoch = time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)

// number writes records with the values from up to to-1 to partition 0 of a topic.
func number(t testing.TB, cfg Config, topic string, from, to int) {
	t.Helper()
	client := plain(t, cfg, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	for i := from; i < to; i++ {
		r := &kgo.Record{Topic: topic, Value: fmt.Append(nil, i), Timestamp: epoch.Add(time.Duration(i) * time.Second)}
		testkit.Must(t, client.ProduceSync(within(t), r).FirstErr())
	}
}

func TestPositions(t *testing.T) {
	t.Parallel()
	c, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
	number(t, cfg, "weather", 0, 6)
	testkit.Must(t, c.DeleteRecords("weather", 0, 1))
	for _, try := range []struct {
		from, until Position
		want        string
	}{
		{Position{}, End, "[1 2 3 4 5]"},
		{Start, End, "[1 2 3 4 5]"},
		{Offset(0), End, "[1 2 3 4 5]"},
		{Offset(3), End, "[3 4 5]"},
		{Offset(6), End, "[]"},
		{Offset(math.MaxInt64), End, "[]"},
		{Last(0), End, "[]"},
		{Last(2), End, "[4 5]"},
		{Last(100), End, "[1 2 3 4 5]"},
		{Last(math.MaxInt64), End, "[1 2 3 4 5]"},
		{At(epoch), End, "[1 2 3 4 5]"},
		{At(epoch.Add(3 * time.Second)), End, "[3 4 5]"},
		{At(epoch.Add(2500 * time.Millisecond)), End, "[3 4 5]"},
		{At(epoch.Add(time.Hour)), End, "[]"},
		{End, End, "[]"},
		{Start, Start, "[]"},
		{Start, Offset(0), "[]"},
		{Start, Offset(4), "[1 2 3]"},
		{Start, Last(2), "[1 2 3]"},
		{Start, At(epoch.Add(4 * time.Second)), "[1 2 3]"},
		{Offset(4), Offset(2), "[]"},
		{Last(3), Last(1), "[3 4]"},
	} {
		consumer := openConsumer(t, cfg, ConsumerOptions{Topics: []string{"weather"}, From: try.from, Until: try.until})
		if got := values(read(t, consumer)); got != try.want {
			t.Errorf("from %v until %v: got %s, want %s", try.from, try.until, got, try.want)
		}
	}
}

// TestPositionsAhead starts at offsets that do not exist yet.
func TestPositionsAhead(t *testing.T) {
	t.Parallel()
	for from, want := range map[Position]string{
		End: "[3 4 5]", At(epoch.Add(time.Hour)): "[3 4 5]", Offset(4): "[4 5]",
	} {
		for _, group := range []string{"", strings.ReplaceAll(from.String(), " ", "-")} {
			_, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
			number(t, cfg, "weather", 0, 3)
			consumer := openConsumer(t, cfg, ConsumerOptions{Topics: []string{"weather"}, Group: group, From: from})
			number(t, cfg, "weather", 3, 6)
			var got []Record
			for r, err := range consumer.Records(within(t)) {
				testkit.Must(t, err)
				if got = append(got, r); string(r.Value) == "5" {
					break
				}
			}
			if values(got) != want {
				t.Errorf("from %v in group %q: got %s, want %s", from, group, values(got), want)
			}
		}
	}
}

func TestPositionInWords(t *testing.T) {
	t.Parallel()
	for p, want := range map[Position]string{
		{}: "none", Start: "start", End: "end", Offset(7): "offset 7", Last(3): "last 3",
		At(epoch): "at 2026-11-23T00:00:00Z",
	} {
		if got := p.String(); got != want {
			t.Errorf("String() = %q, want %q", got, want)
		}
	}
}

func TestConsumerOptionsThatAreWrong(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
	topics := []string{"weather"}
	for name, options := range map[string]ConsumerOptions{
		"no topics":       {},
		"empty topic":     {Topics: []string{""}},
		"impossible name": {Topics: []string{"a b"}},
		"long name":       {Topics: []string{strings.Repeat("x", MaxTopicLength+1)}},
		"long group":      {Topics: topics, Group: strings.Repeat("x", 256)},
		"NUL in group":    {Topics: topics, Group: "a\x00b"},
		"negative offset": {Topics: topics, From: Offset(-1)},
		"negative last":   {Topics: topics, Until: Last(-1)},
		"before 1970":     {Topics: topics, From: At(time.Time{})},
	} {
		if c, err := OpenConsumer(within(t), cfg, options); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: OpenConsumer = %v, want ErrInvalid", name, err)
			if err == nil {
				c.Close(within(t))
			}
		}
	}
	_, err := OpenConsumer(within(t), cfg, ConsumerOptions{Topics: []string{"weather", "nowhere"}})
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), `"nowhere"`) {
		t.Errorf("OpenConsumer of a topic that is not there = %v, want ErrNotFound that names it", err)
	}
}

// TestTopicsNamedTwice fails when a topic that is listed twice is read twice, or when the caller's
// slice is changed.
func TestTopicsNamedTwice(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, "weather", "beamline"))
	number(t, cfg, "weather", 0, 2)
	topics := []string{"weather", "beamline", "weather"}
	if got := values(readAll(t, cfg, topics...)); got != "[0 1]" {
		t.Errorf("got %s, want [0 1]", got)
	}
	if !slices.Equal(topics, []string{"weather", "beamline", "weather"}) {
		t.Errorf("the caller's topics are now %v", topics)
	}
}

// take returns the next n records of a loop. It breaks out of the loop in the body of the last.
func take(t testing.TB, c *Consumer, n int) (got []Record) {
	t.Helper()
	for r, err := range c.Records(within(t)) {
		testkit.Must(t, err)
		if got = append(got, r); len(got) == n {
			break
		}
	}
	return got
}

func TestBreakLeavesTheRecordForTheNextLoop(t *testing.T) {
	t.Parallel()
	for _, group := range []string{"", "analysis"} {
		_, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
		number(t, cfg, "weather", 0, 5)
		c := openConsumer(t, cfg, ConsumerOptions{Topics: []string{"weather"}, Group: group})
		if got := values(take(t, c, 3)); got != "[0 1 2]" {
			t.Fatalf("group %q: the first loop got %s", group, got)
		}
		if p := progress(t, c); p[0].Next != 2 || p[0].Start != 0 || p[0].End != 5 {
			t.Errorf("group %q: Progress() = %+v, want next 2 of 5", group, p)
		}
		if got := values(take(t, c, 2)); got != "[2 3]" {
			t.Errorf("group %q: the second loop got %s, want [2 3]", group, got)
		}
		// A record that the body passed to Commit is handled, although the body breaks.
		for r, err := range c.Records(within(t)) {
			if err != nil || string(r.Value) != "3" {
				t.Fatalf("group %q: the third loop got %s, %v", group, r.Value, err)
			}
			testkit.Must(t, c.Commit(within(t), r))
			break
		}
		if got := values(take(t, c, 1)); got != "[4]" {
			t.Errorf("group %q: the fourth loop got %s, want [4]", group, got)
		}
	}
}

func progress(t testing.TB, c *Consumer) []Progress {
	t.Helper()
	p, err := c.Progress(within(t))
	testkit.Must(t, err)
	return p
}

func TestGroupGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
	number(t, cfg, "weather", 0, 6)
	options := ConsumerOptions{Topics: []string{"weather"}, Group: "analysis", CommitEvery: time.Hour}
	c := openConsumer(t, cfg, options)
	if got := values(take(t, c, 3)); got != "[0 1 2]" {
		t.Fatalf("the first member got %s", got)
	}
	testkit.Must(t, c.Close(within(t)))
	options.From, options.Until = End, End // without effect, because the group has committed offsets
	if got := values(read(t, openConsumer(t, cfg, options))); got != "[2 3 4 5]" {
		t.Errorf("the second member got %s, want [2 3 4 5]", got)
	}
}

// TestCommitEvery checks that offsets are committed in the background, and with a negative
// CommitEvery only by Commit.
func TestCommitEvery(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
	number(t, cfg, "weather", 0, 6)
	often := openConsumer(t, cfg, ConsumerOptions{Topics: []string{"weather"}, Group: "often", CommitEvery: time.Millisecond})
	take(t, often, 3)
	eventually(t, "a commit in the background", func() bool { return committed(t, cfg, "often", "weather") == 2 })

	never := openConsumer(t, cfg, ConsumerOptions{Topics: []string{"weather"}, Group: "never", CommitEvery: -1})
	take(t, never, 3)
	testkit.Must(t, never.Close(within(t)))
	if got := committed(t, cfg, "never", "weather"); got != -1 {
		t.Errorf("with CommitEvery < 0 the group has committed %d", got)
	}
	never = openConsumer(t, cfg, ConsumerOptions{Topics: []string{"weather"}, Group: "never", CommitEvery: -1})
	take(t, never, 3)
	testkit.Must(t, never.Commit(within(t)))
	if got := committed(t, cfg, "never", "weather"); got != 2 {
		t.Errorf("Commit has committed %d, want 2", got)
	}
}

// committed returns the offset that a group has committed for partition 0, or -1.
func committed(t testing.TB, cfg Config, group, topic string) int64 {
	t.Helper()
	req := kmsg.NewPtrOffsetFetchRequest()
	g := kmsg.NewOffsetFetchRequestGroup()
	g.Group = group
	req.Group = group
	req.Groups = append(req.Groups, g)
	resp, err := req.RequestWith(within(t), plain(t, cfg))
	testkit.Must(t, err)
	for _, g := range resp.Groups {
		for _, tp := range g.Topics {
			if tp.Topic == topic && len(tp.Partitions) > 0 {
				return tp.Partitions[0].Offset
			}
		}
	}
	return -1
}

// TestRebalanceLosesNothing has a second member join and leave while a group reads.
func TestRebalanceLosesNothing(t *testing.T) {
	t.Parallel()
	c, cfg := newCluster(t, kfake.SeedTopics(4, "weather"))
	l := openLogger(t, cfg)
	const n = 400
	var mu sync.Mutex
	handled := map[string]int{}
	all := make(chan struct{})
	member := func(ctx context.Context, consumer *Consumer) {
		for r, err := range consumer.Records(ctx) {
			if ctx.Err() != nil || errors.Is(err, ErrClosed) {
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			if handled[string(r.Value)]++; handled[string(r.Value)] == 1 && len(handled) == n {
				close(all)
			}
			mu.Unlock()
		}
	}
	options := ConsumerOptions{Topics: []string{"weather"}, Group: "analysis", CommitEvery: 5 * time.Millisecond}
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	first := openConsumer(t, cfg, options)
	wg.Go(func() { member(ctx, first) })
	log := func(from, to int) {
		for i := from; i < to; i++ {
			l.Send(Event{Topic: "weather", Key: fmt.Append(nil, i%17), Value: fmt.Append(nil, i)}, nil)
		}
		testkit.Must(t, l.Flush(within(t)))
	}
	log(0, n/4)
	second := openConsumer(t, cfg, options)
	wg.Go(func() { member(ctx, second) })
	log(n/4, n/2)
	if _, err := c.WaitGroupStable(within(t), "analysis", 2); err != nil {
		t.Fatal(err)
	}
	log(n/2, n*3/4)
	if err := first.Close(within(t)); err != nil {
		t.Error(err)
	}
	log(n*3/4, n)
	select {
	case <-all:
	case <-within(t).Done():
		mu.Lock()
		t.Errorf("the group has handled %d of %d records", len(handled), n)
		mu.Unlock()
	}
	cancel()
}

// TestPartitionsAreChosen fails when a Consumer reads a partition that was not requested, or does not
// report a requested partition that is missing.
func TestPartitionsAreChosen(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(3, "weather"))
	client := plain(t, cfg, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	for p := range int32(3) {
		testkit.Must(t, client.ProduceSync(within(t), &kgo.Record{Topic: "weather", Partition: p, Value: fmt.Append(nil, p)}).FirstErr())
	}
	c := openConsumer(t, cfg, ConsumerOptions{Topics: []string{"weather"}, Partitions: []int32{2, 0}, Until: End})
	var read []Record
	for r, err := range c.Records(within(t)) {
		testkit.Must(t, err)
		read = append(read, r)
	}
	got := values(read)
	if got != "[0 2]" && got != "[2 0]" {
		t.Errorf("partitions 0 and 2 have %s, want 0 and 2", got)
	}
	if n := len(progress(t, c)); n != 2 {
		t.Errorf("it reads %d partitions, want the two that were chosen", n)
	}
	for _, p := range progress(t, c) {
		if p.Until != 1 {
			t.Errorf("%+v, want an end at 1", p)
		}
	}
	_, err := OpenConsumer(within(t), cfg, ConsumerOptions{Topics: []string{"weather"}, Partitions: []int32{3}})
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "it has no partition 3; it has 3, numbered from 0") {
		t.Errorf("OpenConsumer of partition 3 = %v, want ErrNotFound", err)
	}
	for _, o := range []ConsumerOptions{{Partitions: []int32{-1}}, {Partitions: []int32{0}, Group: "g"}} {
		o.Topics = []string{"weather"}
		if _, err := OpenConsumer(within(t), cfg, o); !errors.Is(err, ErrInvalid) {
			t.Errorf("OpenConsumer with %+v = %v, want ErrInvalid", o, err)
		}
	}
}

// TestOpenConsumerPersists fails when a brief, temporary error makes OpenConsumer fail.
func TestOpenConsumerPersists(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]kfake.Fault{
		"metadata":     {Keys: []kmsg.Key{kmsg.Metadata}, Topic: "weather", Err: kerr.LeaderNotAvailable},
		"offsets":      {Keys: []kmsg.Key{kmsg.ListOffsets}, Topic: "weather", Err: kerr.OffsetNotAvailable},
		"fetch":        {Keys: []kmsg.Key{kmsg.Fetch}, Topic: "weather", Err: kerr.NotLeaderForPartition},
		"offset fetch": {Keys: []kmsg.Key{kmsg.OffsetFetch}, Err: kerr.CoordinatorLoadInProgress},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
			fault.Count = 2
			injected := c.Fault(fault)
			openConsumer(t, cfg, ConsumerOptions{Topics: []string{"weather"}, Group: "hut"})
			if hits := injected.Hits(); hits < 2 {
				t.Errorf("the cluster failed %d times, want 2", hits)
			}
		})
	}
}

// TestPermissionIsAskedAbout revokes the right to read and grants it again.
func TestPermissionIsAskedAbout(t *testing.T) {
	t.Parallel()
	c, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
	cfg.Identity.Username = "grace@example.org"
	denied := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Topic: "weather", Err: kerr.TopicAuthorizationFailed, Count: -1})
	_, err := OpenConsumer(within(t), cfg, ConsumerOptions{Topics: []string{"weather"}})
	var topic *TopicError
	if !errors.Is(err, ErrPermission) || !errors.As(err, &topic) || topic.Op != "consume" || !strings.Contains(err.Error(), "grace@example.org may not read it") {
		t.Errorf("OpenConsumer without the right to read = %v, want ErrPermission", err)
	}
	denied.Remove()
	number(t, cfg, "weather", 0, 1)
	consumer := openConsumer(t, cfg, ConsumerOptions{Topics: []string{"weather"}})
	take(t, consumer, 1)
	denied = c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Topic: "weather", Err: kerr.TopicAuthorizationFailed, Count: -1})
	refusals := 0
	for r, err := range consumer.Records(within(t)) {
		if err == nil {
			if string(r.Value) == "1" {
				break
			}
			continue
		}
		if !errors.Is(err, ErrPermission) || r.Topic != "" {
			t.Fatalf("the loop got %+v, %v; want a zero Record and ErrPermission", r, err)
		}
		if refusals++; refusals == 2 {
			denied.Remove()
			number(t, cfg, "weather", 1, 2)
		}
	}
	if refusals < 2 {
		t.Errorf("the loop was refused %d times, want 2 or more", refusals)
	}
}

// TestGroupIsRefused has the cluster deny the use of a group, at opening and later.
func TestGroupIsRefused(t *testing.T) {
	t.Parallel()
	c, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
	number(t, cfg, "weather", 0, 1)
	cfg.Identity.Username = "grace@example.org"
	options := ConsumerOptions{Topics: []string{"weather"}, Group: "hers"}
	wanted := `consumer group "hers": permission denied: grace@example.org may not use it; choose another group, one that is yours`
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetFetch}, Group: "hers", Err: kerr.GroupAuthorizationFailed})
	if _, err := OpenConsumer(within(t), cfg, options); !errors.Is(err, ErrPermission) || err.Error() != wanted {
		t.Errorf("OpenConsumer = %v\nwant %s", err, wanted)
	}
	denied := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.JoinGroup}, Group: "hers", Err: kerr.GroupAuthorizationFailed, Count: -1})
	consumer := openConsumer(t, cfg, options)
	told := false
	for r, err := range consumer.Records(within(t)) {
		if err == nil {
			if string(r.Value) != "0" {
				t.Errorf("got %s, want 0", r.Value)
			}
			break
		}
		if !errors.Is(err, ErrPermission) || err.Error() != wanted {
			t.Fatalf("the loop got %v\nwant %s", err, wanted)
		}
		told = true
		denied.Remove()
	}
	if !told {
		t.Error("the loop did not say that the group is refused")
	}
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Group: "hers", Err: kerr.GroupAuthorizationFailed})
	for r, err := range consumer.Records(within(t)) {
		if err == nil {
			err = consumer.Commit(within(t), r)
		}
		if !errors.Is(err, ErrPermission) || !strings.HasPrefix(err.Error(), "commit: consumer group") {
			t.Errorf("Commit = %v, want ErrPermission", err)
		}
		break
	}
}

// TestTokenIsRefusedWhileReading fails when a rejected login makes the loop wait silently.
func TestTokenIsRefusedWhileReading(t *testing.T) {
	t.Parallel()
	c, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
	d := newDoor(c, &cfg)
	consumer := openConsumer(t, cfg, ConsumerOptions{Topics: []string{"weather"}})
	d.shut.Store(true)
	c.ControlKey(int16(kmsg.Fetch), func(kmsg.Request) (kmsg.Response, error, bool) {
		return nil, errors.New("hang up"), true
	})
	refusals := 0
	for r, err := range consumer.Records(within(t)) {
		if err == nil {
			if string(r.Value) != "later" {
				t.Errorf("got %s", r.Value)
			}
			break
		}
		if !errors.Is(err, ErrUnauthenticated) || !strings.Contains(err.Error(), refusal) || Hint(err) != defaultLogin {
			t.Fatalf("the loop got %v, want ErrUnauthenticated with the refusal and what to do", err)
		}
		if strings.Contains(fmt.Sprintf("%+v", err), canary) {
			t.Error("the error holds the token")
		}
		if refusals++; refusals == 2 {
			d.shut.Store(false)
			logValues(t, openLogger(t, cfg), "weather", "later")
		}
	}
	if refusals < 2 {
		t.Errorf("the loop was refused %d times, want 2 or more", refusals)
	}
}

// TestUntilTheEndOfWhatIsEmpty has partitions that end with offsets without records (transaction
// markers and aborted records), and empty ones.
func TestUntilTheEndOfWhatIsEmpty(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, "committed", "aborted", "both"), kfake.SeedTopics(3, "empty"))
	client := plain(t, cfg, kgo.TransactionalID("tx"))
	transact := func(topic string, commit kgo.TransactionEndTry, values ...string) {
		t.Helper()
		testkit.Must(t, client.BeginTransaction())
		for _, v := range values {
			testkit.Must(t, client.ProduceSync(within(t), &kgo.Record{Topic: topic, Value: []byte(v)}).FirstErr())
		}
		testkit.Must(t, client.EndTransaction(within(t), commit))
	}
	transact("committed", kgo.TryCommit, "a", "b")
	transact("aborted", kgo.TryAbort, "never")
	transact("both", kgo.TryCommit, "a")
	transact("both", kgo.TryAbort, "never")
	transact("both", kgo.TryCommit, "b")
	transact("both", kgo.TryAbort, "never", "never")
	for topic, want := range map[string]string{"empty": "[]", "committed": "[a b]", "aborted": "[]", "both": "[a b]"} {
		for _, group := range []string{"", "analysis-" + topic} {
			c := openConsumer(t, cfg, ConsumerOptions{Topics: []string{topic}, Group: group, Until: End})
			if got := values(read(t, c)); got != want {
				t.Errorf("topic %s in group %q: got %s, want %s", topic, group, got, want)
			}
			if err := c.Close(within(t)); err != nil {
				t.Error(err)
			}
			for _, p := range progress(t, openConsumer(t, cfg, ConsumerOptions{Topics: []string{topic}, From: End})) {
				if group != "" && p.End > 0 && committed(t, cfg, group, topic) != p.End {
					t.Errorf("topic %s: group has committed %d, want the end %d", topic, committed(t, cfg, group, topic), p.End)
				}
			}
		}
	}
}

// TestUntilTheEndOfACompactedTopic has offsets without records before the end.
func TestUntilTheEndOfACompactedTopic(t *testing.T) {
	t.Parallel()
	c, cfg := newCluster(t)
	err := c.CreateTopic("latest", 1, map[string]string{"cleanup.policy": "compact", "min.compaction.lag.ms": "0", "segment.bytes": "1", "delete.retention.ms": "0", "min.cleanable.dirty.ratio": "0"})
	testkit.Must(t, err)
	l := openLogger(t, cfg)
	for i := range 6 {
		testkit.Must(t, l.Log(within(t), Event{Topic: "latest", Key: []byte("k"), Value: fmt.Append(nil, i)}))
	}
	deleted := Event{Topic: "latest", Key: []byte("k")}
	last := Event{Topic: "latest", Key: []byte("other"), Value: []byte("last")} // compaction never touches the newest batch
	for _, ev := range []Event{deleted, last} {
		testkit.Must(t, l.Log(within(t), ev))
	}
	c.Compact()
	read := func(from, until Position) string {
		t.Helper()
		return values(read(t, openConsumer(t, cfg, ConsumerOptions{Topics: []string{"latest"}, From: from, Until: until})))
	}
	if got := read(Start, End); got != "[ last]" && got != "[last]" {
		t.Errorf("the compacted topic has %s", got)
	}
	for _, until := range []Position{Offset(5), Offset(6), Last(2)} {
		if got := read(Offset(3), until); got != "[]" {
			t.Errorf("until %v, in what was compacted: %s, want []", until, got)
		}
	}
}

// TestCloseEndsALoopThatWaits fails when a waiting loop does not end after Close.
func TestCloseEndsALoopThatWaits(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
	number(t, cfg, "weather", 0, 1)
	c := openConsumer(t, cfg, ConsumerOptions{Topics: []string{"weather"}})
	read, ended := make(chan Record, 1), make(chan error, 1)
	go func() {
		for r, err := range c.Records(within(t)) {
			if err == nil {
				read <- r
			} else {
				ended <- err
			}
		}
	}()
	<-read
	for _, err := range c.Records(within(t)) {
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("a second loop at the same time = %v, want ErrInvalid", err)
		}
	}
	testkit.Must(t, c.Close(within(t)))
	if err := <-ended; !errors.Is(err, ErrClosed) {
		t.Errorf("the loop ended with %v, want ErrClosed", err)
	}
}

func TestLoopWhoseContextEnds(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
	number(t, cfg, "weather", 0, 2)
	c := openConsumer(t, cfg, ConsumerOptions{Topics: []string{"weather"}})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var errs []error
	for r, err := range c.Records(ctx) {
		if err != nil {
			errs = append(errs, err)
		} else if string(r.Value) == "1" {
			cancel()
		}
	}
	if len(errs) != 1 || !errors.Is(errs[0], context.Canceled) {
		t.Errorf("the loop got the errors %v, want context.Canceled once", errs)
	}
	number(t, cfg, "weather", 2, 3)
	if got := values(take(t, c, 1)); got != "[2]" {
		t.Errorf("the next loop got %s, want [2]", got)
	}
}

// TestCommitWithoutAGroup checks that Commit without a group does nothing.
func TestCommitWithoutAGroup(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
	number(t, cfg, "weather", 0, 1)
	c := openConsumer(t, cfg, ConsumerOptions{Topics: []string{"weather"}})
	if err := c.Commit(within(t), take(t, c, 1)...); err != nil {
		t.Errorf("Commit without a group = %v", err)
	}
}

// TestUnavailablePartitions has brokers that answer with temporary errors.
func TestUnavailablePartitions(t *testing.T) {
	t.Parallel()
	c, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
	number(t, cfg, "weather", 0, 2)
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.ListOffsets}, Topic: "weather", Err: kerr.LeaderNotAvailable, Count: 2})
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Metadata}, Topic: "weather", Err: kerr.LeaderNotAvailable, Count: 2})
	if got := values(readAll(t, cfg, "weather")); got != "[0 1]" {
		t.Errorf("got %s, want [0 1]", got)
	}
}

// TestCloseConsumerInSilence checks that Close takes no longer than its context allows if the
// cluster stops answering, even on new connections.
func TestCloseConsumerInSilence(t *testing.T) {
	t.Parallel()
	cluster, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
	number(t, cfg, "weather", 0, 1)
	var once sync.Once
	waits := make(chan struct{})
	cluster.ControlKey(int16(kmsg.Fetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if req.(*kmsg.FetchRequest).SessionEpoch > 1 { // a fetch session exists, which the Kafka client tries to close
			once.Do(func() { close(waits) })
		}
		return nil, nil, false
	})
	proxy, err := faultnet.Start(cfg.Brokers[0])
	testkit.Must(t, err)
	t.Cleanup(func() { proxy.Close() })
	c := openConsumer(t, Through(cfg, proxy.Dial, 0), ConsumerOptions{Topics: []string{"weather"}, Group: "analysis"})
	reading, stop := context.WithCancel(within(t))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range c.Records(reading) {
		}
	}()
	<-waits
	proxy.Set(faultnet.Link{Silent: true})
	stop()
	<-ended
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	closed := make(chan error, 1)
	go func() { closed <- c.Close(ctx) }()
	select {
	case err := <-closed:
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Close in silence = %v, want the deadline", err)
		}
	case <-time.After(8 * time.Second): // less than the 10 s that the client gives a new connection
		t.Error("Close waits for the cluster, though its time is over")
	}
}

func TestCloseConsumer(t *testing.T) {
	t.Parallel()
	for _, group := range []string{"", "analysis"} {
		_, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
		number(t, cfg, "weather", 0, 5)
		c := openConsumer(t, cfg, ConsumerOptions{Topics: []string{"weather"}, Group: group})
		after := 0
		var last error
		for r, err := range c.Records(within(t)) {
			if err != nil {
				last = err
				continue
			}
			if string(r.Value) == "1" {
				if err := c.Close(within(t)); err != nil {
					t.Error(err)
				}
			} else if string(r.Value) > "1" {
				after++
			}
		}
		if !errors.Is(last, ErrClosed) {
			t.Errorf("group %q: the loop of a Consumer that was closed ended with %v, want ErrClosed", group, last)
		}
		if after > 0 {
			t.Errorf("group %q: the loop got %d records after Close", group, after)
		}
		if err := c.Close(within(t)); err != nil {
			t.Errorf("group %q: Close again = %v", group, err)
		}
		for _, err := range c.Records(within(t)) {
			if !errors.Is(err, ErrClosed) {
				t.Errorf("group %q: Records after Close = %v, want ErrClosed", group, err)
			}
		}
		if group != "" {
			if got := committed(t, cfg, group, "weather"); got != 1 {
				t.Errorf("Close has committed %d, want 1", got)
			}
		}
	}
}

// TestGroupThatTheBrokerFailsOn fails when an error is ignored because its code is negative, as
// that of UNKNOWN_SERVER_ERROR is.
func TestGroupThatTheBrokerFailsOn(t *testing.T) {
	t.Parallel()
	c, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetFetch}, Group: "analysis", Err: kerr.UnknownServerError, Count: -1})
	if _, err := OpenConsumer(within(t), cfg, ConsumerOptions{Topics: []string{"weather"}, Group: "analysis"}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("OpenConsumer with a group that the broker fails on = %v, want ErrUnavailable", err)
	}
}

// TestTopicThatWasMadeAgain fails when a Consumer stops reading a topic that was released and
// claimed again, or skips new records in it because their offsets are low.
func TestTopicThatWasMadeAgain(t *testing.T) {
	t.Parallel()
	c, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
	number(t, cfg, "weather", 0, 10)
	consumer := openConsumer(t, cfg, ConsumerOptions{Topics: []string{"weather"}, From: Offset(5)})
	take(t, consumer, 5)
	testkit.Must(t, c.DeleteTopic("weather"))
	// The Kafka client takes about ten seconds until it reports the topic as deleted.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var got []Record
	missed := 0
	for r, err := range consumer.Records(ctx) {
		if err != nil && !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
		if err != nil {
			if missed++; missed == 1 {
				testkit.Must(t, c.CreateTopic("weather", 1, nil))
				number(t, cfg, "weather", 100, 103)
			}
			continue
		}
		if got = append(got, r); string(r.Value) == "102" {
			break
		}
	}
	if want := "[9 100 101 102]"; values(got) != want {
		t.Errorf("got %s, want %s", values(got), want)
	}
	if missed == 0 || missed > 20 {
		t.Errorf("the loop said %d times that there is no such topic", missed)
	}
}

// TestCommittedBehindTheEnd has a group with a committed offset past the end of its partition: the
// log was truncated, or belongs to another topic.
func TestCommittedBehindTheEnd(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
	number(t, cfg, "weather", 0, 3)
	commit := kmsg.NewPtrOffsetCommitRequest()
	commit.Group = "analysis"
	topic := kmsg.NewOffsetCommitRequestTopic()
	topic.Topic = "weather"
	partition := kmsg.NewOffsetCommitRequestTopicPartition()
	partition.Offset = 100
	topic.Partitions = append(topic.Partitions, partition)
	commit.Topics = append(commit.Topics, topic)
	if _, err := commit.RequestWith(within(t), plain(t, cfg)); err != nil {
		t.Fatal(err)
	}
	c := openConsumer(t, cfg, ConsumerOptions{Topics: []string{"weather"}, Group: "analysis", CommitEvery: -1})
	if got := values(take(t, c, 3)); got != "[0 1 2]" {
		t.Errorf("got %s, want [0 1 2]", got)
	}
	testkit.Must(t, c.Commit(within(t)))
	if got := committed(t, cfg, "analysis", "weather"); got != 2 {
		t.Errorf("the group has committed %d, want 2", got)
	}
}

// TestFirstGroupEver simulates a cluster that creates the topic for its groups' offsets only now.
func TestFirstGroupEver(t *testing.T) {
	c, cfg := newCluster(t, kfake.SeedTopics(1, "beamline"))
	var asked atomic.Int64
	c.ControlKey(int16(kmsg.FindCoordinator), func(request kmsg.Request) (kmsg.Response, error, bool) {
		if asked.Add(1) > 3 {
			return nil, nil, false
		}
		c.KeepControl()
		response := request.ResponseKind().(*kmsg.FindCoordinatorResponse)
		for _, key := range request.(*kmsg.FindCoordinatorRequest).CoordinatorKeys {
			coordinator := kmsg.NewFindCoordinatorResponseCoordinator()
			coordinator.Key, coordinator.ErrorCode = key, kerr.CoordinatorNotAvailable.Code
			response.Coordinators = append(response.Coordinators, coordinator)
		}
		return response, nil, true
	})
	openConsumer(t, cfg, ConsumerOptions{Topics: []string{"beamline"}, Group: "first"})
	if n := asked.Load(); n < 4 {
		t.Errorf("its coordinator was asked for %d times, want until it was there", n)
	}
}

// got is a record or an error in a loop.
type got struct {
	record Record
	err    error
}

func each(items []got) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		for _, it := range items {
			if !yield(it.record, it.err) {
				return
			}
		}
	}
}

func text(r Record, err error) string {
	return fmt.Sprintf("%s/%s@%d %v", r.Topic, r.ID, r.Offset, err)
}

// TestDistinctIsAModel compares Distinct with the simplest implementation of its contract.
func TestDistinctIsAModel(t *testing.T) {
	t.Parallel()
	failure := errors.New("an error")
	rapid.Check(t, func(t *rapid.T) {
		window := rapid.IntRange(1, 6).Draw(t, "window")
		items := rapid.SliceOf(rapid.Custom(func(t *rapid.T) got {
			if rapid.IntRange(0, 9).Draw(t, "kind") == 0 {
				return got{err: failure}
			}
			return got{record: Record{Event: Event{
				Topic: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "topic"),
				ID:    rapid.SampledFrom([]string{"", "1", "2", "3", "4", "5"}).Draw(t, "id"),
			}}}
		})).Draw(t, "items")
		for i := range items {
			items[i].record.Offset = int64(i)
		}

		var want, known []string
		for _, it := range items {
			id := it.record.Topic + "/" + it.record.ID
			if it.err == nil && it.record.ID != "" {
				if slices.Contains(known, id) {
					continue
				}
				known = append(known, id)
				known = known[max(0, len(known)-window):]
			}
			want = append(want, text(it.record, it.err))
		}
		var have []string
		for r, err := range Distinct(each(items), window) {
			have = append(have, text(r, err))
		}
		if !slices.Equal(have, want) {
			t.Fatalf("window %d:\n got %q\nwant %q", window, have, want)
		}
	})
}

// TestDistinctAfterABreak breaks out of the loop at every record. The next loop starts with that
// record again, as loops over a Consumer's records do.
func TestDistinctAfterABreak(t *testing.T) {
	t.Parallel()
	ids := strings.Split("a b a c b d a", " ")
	var items []got
	for i, id := range ids {
		items = append(items, got{record: Record{Event: Event{Topic: "t", ID: id}, Offset: int64(i)}})
	}
	next := 0 // the next offset of the source
	source := func(yield func(Record, error) bool) {
		for next < len(items) {
			if !yield(items[next].record, nil) {
				return // it is not handled
			}
			next++
		}
	}
	distinct := Distinct(source, 0)
	var handled []string
	for attempt := 0; next < len(items); attempt++ {
		for r := range distinct {
			if attempt%2 == 0 {
				break // before it is handled
			}
			handled = append(handled, r.ID)
			attempt++
		}
	}
	if got := strings.Join(handled, " "); got != "a b c d" {
		t.Errorf("handled %s, want a b c d", got)
	}
}

// TestDistinctRemembersNoIDs checks that the window bounds the number of hashes that are kept in
// place of IDs, and that a hash tells topic and ID apart.
func TestDistinctRemembersNoIDs(t *testing.T) {
	t.Parallel()
	seen := recent{window: 3, known: map[eventKey]struct{}{}}
	for i := range 100 {
		seen.add(keyOf(Record{Event: Event{Topic: "t", ID: strings.Repeat("x", 1<<16) + fmt.Sprint(i)}}))
	}
	if len(seen.known) != 3 || len(seen.order) != 3 {
		t.Errorf("a window of 3 holds %d and %d keys", len(seen.known), len(seen.order))
	}
	a, b := Record{Event: Event{Topic: "t", ID: "ab"}}, Record{Event: Event{Topic: "ta", ID: "b"}}
	if keyOf(a) == keyOf(b) {
		t.Error("topic and ID run into each other")
	}
}

// counting returns a cluster with three topics that requires a login, and a configuration whose
// clients' requests are counted.
func counting(t *testing.T) (Config, *testkit.Tally) {
	t.Helper()
	cluster, cfg := newCluster(t, kfake.SeedTopics(2, "beamline", "detector", "weather"), kfake.MaxVersions(kversion.V4_3_0()))
	newDoor(cluster, &cfg)
	n := new(testkit.Tally)
	cfg.opts = append(cfg.opts, kgo.WithHooks(n))
	return cfg, n
}

// wantRequests fails if more requests were sent than a change may add without a good reason: over a
// long link, each of them costs a user time. It fails, too, if fewer were sent, so that the numbers
// stay true.
func wantRequests(t *testing.T, what string, n *testkit.Tally, want map[kmsg.Key]int) {
	t.Helper()
	sent := n.Sent(kmsg.Heartbeat) // on a busy machine, a member may have sent one
	if !maps.Equal(sent, want) {
		t.Errorf("%s sent %s\nwant %s", what, inWords(sent), inWords(want))
	}
}

func inWords(sent map[kmsg.Key]int) string {
	var words []string
	total := 0
	for _, key := range slices.Sorted(maps.Keys(sent)) {
		words = append(words, fmt.Sprintf("%d %s", sent[key], kmsg.NameForKey(int16(key))))
		total += sent[key]
	}
	return fmt.Sprintf("%d requests: %s", total, strings.Join(words, ", "))
}

// TestRequestsOfAConsumer counts the requests from opening a Consumer until it fetches. The topics
// are empty, so that it fetches once and then waits.
func TestRequestsOfAConsumer(t *testing.T) {
	t.Parallel()
	alone := map[kmsg.Key]int{
		// Three connections: to find the brokers, to look things up, and to fetch.
		kmsg.ApiVersions: 3, kmsg.SASLHandshake: 3, kmsg.SASLAuthenticate: 3,
		kmsg.Metadata:    2, // at the login, and when the Kafka client begins to read
		kmsg.ListOffsets: 2, // the ends and the starts
		kmsg.Fetch:       2, // whether the topics may be read, and the first one for records
	}
	member := maps.Clone(alone)
	for _, key := range []kmsg.Key{kmsg.ApiVersions, kmsg.SASLHandshake, kmsg.SASLAuthenticate} {
		member[key]++ // a connection to join the group
	}
	member[kmsg.FindCoordinator] = 1
	member[kmsg.OffsetFetch] = 2 // whether the group may be used, and where to start
	member[kmsg.JoinGroup] = 2   // the first one only gets a member ID
	member[kmsg.SyncGroup] = 1
	for group, want := range map[string]map[kmsg.Key]int{"": alone, "analysis": member} {
		cfg, n := counting(t)
		openConsumer(t, cfg, ConsumerOptions{Topics: []string{"beamline", "detector", "weather"}, Group: group})
		eventually(t, "a fetch", func() bool { return n.Sent()[kmsg.Fetch] >= want[kmsg.Fetch] })
		wantRequests(t, fmt.Sprintf("a Consumer in group %q", group), n, want)
	}
}

// TestRequestsOfALogger counts the requests to open a Logger and to log an event.
func TestRequestsOfALogger(t *testing.T) {
	t.Parallel()
	cfg, n := counting(t)
	logValues(t, openLogger(t, cfg), "weather", "rain")
	wantRequests(t, "a Logger", n, map[kmsg.Key]int{
		// Three connections: to find the brokers, to look things up, and to produce.
		kmsg.ApiVersions: 3, kmsg.SASLHandshake: 3, kmsg.SASLAuthenticate: 3,
		kmsg.Metadata:       2, // at the login, and for the topic
		kmsg.InitProducerID: 1,
		kmsg.Produce:        1,
	})
}

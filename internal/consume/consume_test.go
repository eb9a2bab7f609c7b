package consume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// Most of what a Reader promises is tested as a part of the library, with a diaspora.Consumer. The
// tests here look inside.

// verbatim is an [Explainer] that leaves errors as they are.
type verbatim struct{}

func (verbatim) Request(_ string, err error) error { return err }
func (verbatim) Group(err error) error             { return err }
func (verbatim) Login(err error) error             { return err }

func newCluster(t *testing.T, partitions int32, topic string) (*kfake.Cluster, *kgo.Client) {
	t.Helper()
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(partitions, topic))
	testkit.Must(t, err)
	t.Cleanup(c.Close)
	client, err := kgo.NewClient(kgo.SeedBrokers(c.ListenAddrs()...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	testkit.Must(t, err)
	t.Cleanup(client.Close)
	return c, client
}

func open(t *testing.T, c *kfake.Cluster, o Options) *Reader {
	t.Helper()
	if o.From.Kind == None {
		o.From.Kind = Start
	}
	o.SessionTimeout = 45 * time.Second
	o.Dial = func(ctx context.Context, first func(context.Context, *kgo.Client) error, opts ...kgo.Opt) (*kgo.Client, error) {
		client, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(c.ListenAddrs()...)}, opts...)...)
		testkit.Must(t, err)
		return client, first(ctx, client)
	}
	o.Connections, o.Explain, o.Diagnostics = new(kafka.Connections), verbatim{}, slog.New(slog.DiscardHandler)
	r, err := Open(testkit.Within(t), o)
	testkit.Must(t, err)
	t.Cleanup(func() {
		if !r.isClosed() {
			r.Close(context.Background())
		}
	})
	return r
}

// number writes records with the values from up to to-1 to partition 0 of a topic.
func number(t *testing.T, client *kgo.Client, topic string, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		testkit.Must(t, client.ProduceSync(testkit.Within(t), &kgo.Record{Topic: topic, Value: fmt.Append(nil, i)}).FirstErr())
	}
}

// take returns the values of the next n records. The last one is not handled.
func take(t *testing.T, c *Reader, n int) string {
	t.Helper()
	var got []string
	for r, err := range c.Records(testkit.Within(t)) {
		testkit.Must(t, err)
		if got = append(got, string(r.Value)); len(got) == n {
			break
		}
	}
	return fmt.Sprint(got)
}

// committed returns the offset that a group has committed for partition 0, or -1.
func committed(t *testing.T, client *kgo.Client, group, topic string) int64 {
	t.Helper()
	offsets, err := kadm.NewClient(client).FetchOffsets(testkit.Within(t), group)
	testkit.Must(t, err)
	if o, ok := offsets.Lookup(topic, 0); ok {
		return o.At
	}
	return -1
}

// TestNewPartitionsAreFound adds partitions while a Reader reads from the end.
func TestNewPartitionsAreFound(t *testing.T) {
	t.Parallel()
	cluster, client := newCluster(t, 1, "weather")
	number(t, client, "weather", 0, 2)
	c := open(t, cluster, Options{Topics: []string{"weather"}, From: Position{Kind: End}})
	chosen := open(t, cluster, Options{Topics: []string{"weather"}, Partitions: []int32{0}})
	req := kmsg.NewPtrCreatePartitionsRequest()
	topic := kmsg.NewCreatePartitionsRequestTopic()
	topic.Topic, topic.Count = "weather", 3
	req.Topics = append(req.Topics, topic)
	req.TimeoutMillis = 5000
	if resp, err := req.RequestWith(testkit.Within(t), client); err != nil || resp.Topics[0].ErrorCode != 0 {
		t.Fatal(err, resp)
	}
	client.PurgeTopicsFromClient("weather") // so that it looks up the new partitions
	testkit.Must(t, client.ProduceSync(testkit.Within(t), &kgo.Record{Topic: "weather", Partition: 2, Value: []byte("new")}).FirstErr())
	for range 2 { // the second time, nothing is new
		testkit.Must(t, errors.Join(c.findPartitions(testkit.Within(t)), chosen.findPartitions(testkit.Within(t))))
	}
	if got := take(t, c, 1); got != "[new]" {
		t.Errorf("got %s, want what was stored in the new partition before it was found", got)
	}
	if p, err := c.Progress(testkit.Within(t)); err != nil || len(p) != 3 {
		t.Errorf("Progress() = %+v, %v, want three partitions", p, err)
	}
	if p, err := chosen.Progress(testkit.Within(t)); err != nil || len(p) != 1 {
		t.Errorf("Progress() = %+v, %v, want only the partition that was chosen", p, err)
	}
}

// TestNothingIsLookedUpWhileRecordsAreOnTheirWay fails when a Reader with Until takes a slow link
// for the end of the records. What it then looks up would make the link even slower.
func TestNothingIsLookedUpWhileRecordsAreOnTheirWay(t *testing.T) {
	t.Parallel()
	cluster, client := newCluster(t, 1, "weather")
	number(t, client, "weather", 0, 3)
	cluster.ControlKey(int16(kmsg.Fetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if req.(*kmsg.FetchRequest).SessionEpoch >= 0 { // otherwise, it is not for records
			cluster.SleepControl(func() { time.Sleep(3 * pollIdle) })
		}
		return nil, nil, false
	})
	var asked atomic.Int64
	cluster.ControlKey(int16(kmsg.Metadata), func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		asked.Add(1)
		return nil, nil, false
	})
	n := 0
	for _, err := range open(t, cluster, Options{Topics: []string{"weather"}, Until: Position{Kind: End}}).Records(testkit.Within(t)) {
		testkit.Must(t, err)
		n++
	}
	if n != 3 || asked.Load() != 2 {
		t.Errorf("got %d records and looked up the topic %d times, want 3 and only the 2 times of opening", n, asked.Load())
	}
}

// TestGroupOfATopicThatWasMadeAgain fails when a member of a group does not read a topic that was
// deleted and created again from its start. To save time, it begins where the Kafka client would
// have reported the topic as deleted.
func TestGroupOfATopicThatWasMadeAgain(t *testing.T) {
	t.Parallel()
	cluster, client := newCluster(t, 1, "weather")
	number(t, client, "weather", 0, 10)
	c := open(t, cluster, Options{Topics: []string{"weather"}, Group: "analysis", From: Position{Kind: Offset, Offset: 5}, CommitEvery: -1})
	take(t, c, 5)
	testkit.Must(t, errors.Join(cluster.DeleteTopic("weather"), cluster.CreateTopic("weather", 1, nil)))
	client.PurgeTopicsFromClient("weather")
	number(t, client, "weather", 100, 103)
	c.restartTopic("weather")
	if got := take(t, c, 3); got != "[100 101 102]" {
		t.Errorf("got %s, want [100 101 102]", got)
	}
	testkit.Must(t, c.Commit(testkit.Within(t)))
	if got := committed(t, client, "analysis", "weather"); got != 2 {
		t.Errorf("the group has committed %d, want 2", got)
	}
}

// TestArrivedLate checks what a Reader does with records before the offset that it reads next.
// If the Kafka client fetched them before retention deleted them, and the gap was already reported,
// they are skipped and do not end the reading. If the log was truncated, it is read from its new
// records on.
func TestArrivedLate(t *testing.T) {
	id := kafka.Partition{Topic: "weather", Partition: 0}
	for name, c := range map[string]struct {
		end   int64 // end of the log
		first int64 // the first record that is queued, of three that begin at offset 8
		until int64
	}{
		"late":            {12, 10, 12},
		"of a log cut":    {9, 8, 8},
		"of a log at end": {10, 10, 12},
	} {
		reader := &Reader{
			options: Options{Until: Position{Kind: End}}, cursors: map[kafka.Partition]*cursor{}, until: map[kafka.Partition]int64{id: 12},
			reads: map[string]kafka.TopicID{"weather": {1}}, renewed: map[string]bool{},
		}
		reader.add(id, 10, 10)
		records := []*kgo.Record{{Offset: 8}, {Offset: 9}, {Offset: 10}}
		reader.arrived("weather", kgo.FetchPartition{HighWatermark: c.end, Records: records})
		if until := reader.cursors[id].until; until != c.until || len(reader.queue) != 1 || reader.queue[0].records[0].Offset != c.first {
			t.Errorf("%s: until = %d, queue = %+v; want until %d, and offset %d first", name, until, reader.queue, c.until, c.first)
		}
	}
}

// TestGroupSessionErrors fails when an error is reported after which the member rejoins by itself.
func TestGroupSessionErrors(t *testing.T) {
	c := &Reader{options: Options{Group: "analysis", Explain: verbatim{}, Diagnostics: slog.New(slog.DiscardHandler)}}
	for _, cause := range []error{kerr.NotCoordinator, kerr.CoordinatorNotAvailable, kerr.CoordinatorLoadInProgress, kerr.UnknownMemberID, kerr.IllegalGeneration} {
		if err := c.fetchError("", kgo.FetchPartition{Err: &kgo.ErrGroupSession{Err: cause}}); err != nil {
			t.Errorf("a session that ended with %v gives %v, want nothing", cause, err)
		}
	}
	err := c.fetchError("", kgo.FetchPartition{Err: &kgo.ErrGroupSession{Err: kerr.GroupAuthorizationFailed}})
	if !errors.Is(err, kerr.GroupAuthorizationFailed) {
		t.Errorf("a session that ended with %v gives %v", kerr.GroupAuthorizationFailed, err)
	}
}

// TestNotFinishedBetweenGenerations fails when a member that has given up partitions, even its last
// ones, counts as finished before it has rejoined and learned its new partitions.
func TestNotFinishedBetweenGenerations(t *testing.T) {
	const topic = "beamline"
	one := func(partition int32) map[string][]int32 { return map[string][]int32{topic: {partition}} }
	type step struct {
		name     string
		do       func(*Reader)
		finished bool
	}
	gain := func(generation int32, added map[string][]int32) func(*Reader) {
		return func(c *Reader) { c.onAssigned("member", generation, added) }
	}
	take := func(partition int32) func(*Reader) {
		return func(c *Reader) {
			c.startPartitions(map[string]map[int32]kgo.Offset{topic: {partition: kgo.NewOffset().At(7)}})
		}
	}
	drop := func(generation int32, lost map[string][]int32) func(*Reader) {
		return func(c *Reader) { c.onRevoked(generation, lost) }
	}
	for name, steps := range map[string][]step{
		"nothing for this member": {
			{"opened", func(*Reader) {}, false},
			{"assigned nothing", gain(1, nil), true},
		},
		"one more partition": {
			{"assigned 0", gain(1, one(0)), false},
			{"its offset", take(0), true},
			{"assigned 1 as well", gain(2, one(1)), false},
			{"its offset", take(1), true},
		},
		"out of the group": {
			{"assigned 0", gain(1, one(0)), false},
			{"its offset", take(0), true},
			{"lost", drop(kafka.NoGeneration, one(0)), false},
			{"assigned it again, in a new group", gain(1, one(0)), false},
			{"its offset", take(0), true},
		},
		"the last one goes to another member (cooperative)": {
			{"assigned 0", gain(1, one(0)), false},
			{"its offset", take(0), true},
			{"gave it up", drop(2, one(0)), false},
			{"assigned nothing, but is to join again", gain(2, nil), false},
			{"assigned 1", gain(3, one(1)), false},
			{"its offset", take(1), true},
		},
		"one for another (cooperative)": {
			{"assigned 0", gain(1, one(0)), false},
			{"its offset", take(0), true},
			{"gave it up", drop(2, one(0)), false},
			{"assigned 1, but is to join again", gain(2, one(1)), false},
			{"its offset", take(1), false},
			{"assigned nothing more", gain(3, nil), true},
		},
		"all are given up before joining (eager)": {
			{"assigned 0", gain(1, one(0)), false},
			{"its offset", take(0), true},
			{"gave it up", drop(1, one(0)), false},
			{"assigned nothing", gain(2, nil), true},
		},
	} {
		c := &Reader{
			options: Options{Group: "analysis", Until: Position{Kind: End}}, gaveUp: kafka.NoGeneration,
			cursors: map[kafka.Partition]*cursor{}, begun: map[kafka.Partition]bool{},
			until: map[kafka.Partition]int64{{Topic: topic, Partition: 0}: 7, {Topic: topic, Partition: 1}: 7},
		}
		for _, s := range steps {
			if s.do(c); c.finished() != s.finished {
				t.Errorf("%s: %s: finished() = %v, want %v", name, s.name, c.finished(), s.finished)
			}
		}
	}
}

// TestRejoinAsAnother has the group remove a member that is about to rejoin. Under its new ID, the
// member must start at the committed offsets. It must not commit what it handled under the old ID,
// because another member may have read further in the meantime.
func TestRejoinAsAnother(t *testing.T) {
	t.Parallel()
	cluster, other := newCluster(t, 1, "beamline")
	number(t, other, "beamline", 0, 20)
	c := open(t, cluster, Options{Topics: []string{"beamline"}, Group: "analysis", CommitEvery: time.Millisecond})
	ctx := testkit.Within(t)
	var got []string
	for r, err := range c.Records(ctx) {
		testkit.Must(t, err)
		if got = append(got, string(r.Value)); len(got) == 10 {
			was := ""
			testkit.Eventually(t, "the group is empty, and another member's commit", func() bool { // a member that notices rejoins at once
				was, _ = c.client.GroupMetadata()
				leave := kmsg.NewPtrLeaveGroupRequest()
				leave.Group = "analysis"
				leave.Members = []kmsg.LeaveGroupRequestMember{{MemberID: was}}
				if _, err := leave.RequestWith(ctx, other); err != nil {
					t.Fatal(err)
				}
				return kadm.NewClient(other).CommitAllOffsets(ctx, "analysis", kadm.Offsets{"beamline": {0: {Topic: "beamline", At: 15}}}) == nil
			})
			c.client.ForceRebalance()
			testkit.Eventually(t, "the member's next life", func() bool {
				c.mu.Lock()
				defer c.mu.Unlock()
				return c.member != was
			})
			if got := committed(t, other, "analysis", "beamline"); got != 15 {
				t.Errorf("%d is committed, want 15", got)
			}
		}
		if string(r.Value) == "19" {
			break
		}
	}
	if want := "[0 1 2 3 4 5 6 7 8 9 15 16 17 18 19]"; fmt.Sprint(got) != want {
		t.Errorf("the member got %v, want %s", got, want)
	}
	if err := c.Commit(ctx); err != nil {
		t.Error(err)
	}
	if got := committed(t, other, "analysis", "beamline"); got != 19 {
		t.Errorf("%d is committed, want 19", got)
	}
}

package fabric_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// dial returns a Kafka client that signs in as the user of cfg.
func dial(t *testing.T, cfg diaspora.Config) *kgo.Client {
	t.Helper()
	client, err := diaspora.Dial(testkit.Within(t), cfg)
	testkit.Must(t, err)
	t.Cleanup(client.Close)
	return client
}

// deleteBefore deletes the records of partition 0 before an offset, as the retention limit does.
func deleteBefore(t *testing.T, f *fabric.Fabric, topic string, offset int64) {
	t.Helper()
	var offsets kadm.Offsets
	offsets.AddOffset(topic, 0, offset, -1)
	answers, err := fabrictest.Admin(t, f).DeleteRecords(testkit.Within(t), offsets)
	if err == nil {
		err = answers.Error()
	}
	testkit.Must(t, err)
}

func logNumbers(t *testing.T, cfg diaspora.Config, topic string, from, to int) {
	t.Helper()
	logger := fabrictest.OpenLogger(t, cfg)
	for i := from; i < to; i++ {
		testkit.Must(t, logger.Log(testkit.Within(t), diaspora.Event{Topic: topic, Value: fmt.Append(nil, i)}))
	}
}

// TestGapInAGroup deletes records while no member of the group is running.
func TestGapInAGroup(t *testing.T) {
	for _, c := range []struct {
		read    int // records that are read and committed first
		deleted int64
		want    string
	}{
		{2, 4, "[0 1 gap 2-4 4 5 6 7]"},
		{2, 6, "[0 1 gap 2-6 6 7]"},
		{4, 4, "[0 1 2 3 4 5 6 7]"},
	} {
		t.Run(fmt.Sprintf("%d of %d", c.read, c.deleted), func(t *testing.T) {
			t.Parallel()
			f := fabrictest.Start(t, fabric.Config{})
			cfg := fabrictest.As(t, f, ada)
			fabrictest.Claim(t, cfg, "weather")
			logNumbers(t, cfg, "weather", 0, 6)
			var got []string
			for _, until := range []int{c.read, 8} {
				consumer := fabrictest.OpenConsumer(t, cfg, diaspora.ConsumerOptions{Topics: []string{"weather"}, Group: "g"})
				for r, err := range consumer.Records(testkit.Within(t)) {
					gap := (*diaspora.GapError)(nil)
					if errors.As(err, &gap) {
						got = append(got, fmt.Sprintf("gap %d-%d", gap.From, gap.To))
						if says := fmt.Sprintf(" %d records ", gap.To-gap.From); !strings.Contains(err.Error(), says) {
							t.Errorf("the error %q does not say how many records are gone", err)
						}
						continue
					}
					if err != nil {
						t.Fatalf("%v after %v", err, got)
					}
					if r.Offset == int64(until) {
						break
					}
					if got = append(got, string(r.Value)); r.Offset == 7 {
						break
					}
				}
				testkit.Must(t, consumer.Close(testkit.Within(t)))
				if until == c.read {
					deleteBefore(t, f, "weather", c.deleted)
					logNumbers(t, cfg, "weather", 6, 8)
				}
			}
			if fmt.Sprint(got) != c.want {
				t.Errorf("read %v, want %v", got, c.want)
			}
		})
	}
}

// TestGapWhileReading deletes records after the consumer has fetched some and before it fetches the next.
// The size of an event is a third of what a client fetches at once.
func TestGapWhileReading(t *testing.T) {
	const n, more = 12, 2
	for name, c := range map[string]struct {
		options diaspora.ConsumerOptions
		deleted int64
		ends    int64 // the offset at which reading ends
	}{
		"some of it":               {diaspora.ConsumerOptions{}, n - 2, n + more},
		"all of it":                {diaspora.ConsumerOptions{}, n, n + more},
		"from an offset":           {diaspora.ConsumerOptions{From: diaspora.Offset(1)}, n - 2, n + more},
		"some of it until the end": {diaspora.ConsumerOptions{Until: diaspora.End}, n - 2, n},
		"all of it until the end":  {diaspora.ConsumerOptions{Until: diaspora.End}, n, n},
		"more than until the end":  {diaspora.ConsumerOptions{Until: diaspora.End}, n + more, n},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := fabrictest.Start(t, fabric.Config{})
			cfg := fabrictest.As(t, f, ada)
			fabrictest.Claim(t, cfg, "weather")
			logger := fabrictest.OpenLogger(t, cfg)
			value := make([]byte, 340<<10)
			rand.NewChaCha8([32]byte{}).Read(value)
			log := func(n int) {
				for range n {
					testkit.Must(t, logger.Log(testkit.Within(t), diaspora.Event{Topic: "weather", Value: value}))
				}
			}
			log(n)
			c.options.Topics = []string{"weather"}
			consumer := fabrictest.OpenConsumer(t, cfg, c.options)
			log(more)
			var next int64
			if c.options.From == diaspora.Offset(1) {
				next = 1
			}
			var lost int64
			deleted := false
			for r, err := range consumer.Records(testkit.Within(t)) {
				if !deleted { // the consumer has fetched some records
					deleted = true
					deleteBefore(t, f, "weather", c.deleted)
				}
				gap := (*diaspora.GapError)(nil)
				switch {
				case errors.As(err, &gap):
					if gap.From != next || gap.To <= gap.From || gap.To > c.deleted {
						t.Errorf("%v: want the offsets from %d on, %d at most", err, next, c.deleted)
					}
					lost += gap.To - gap.From
					next = gap.To
				case err != nil:
					t.Fatal(err)
				case r.Offset != next:
					t.Errorf("offset %d follows %d, and no gap was reported", r.Offset, next-1)
					next = r.Offset + 1
				default:
					next++
				}
				if c.options.Until == (diaspora.Position{}) && next == c.ends {
					break
				}
			}
			if lost == 0 || next < c.ends {
				t.Errorf("reading ended at offset %d with %d records lost, want %d and some", next, lost, c.ends)
			}
		})
	}
}

// TestCommitIsAfterTheBody checks which offset is committed while the body of the loop runs, and after the
// loop has been left with break, Close and a panic.
func TestCommitIsAfterTheBody(t *testing.T) {
	f := fabrictest.Start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	fabrictest.Claim(t, cfg, "weather")
	logNumbers(t, cfg, "weather", 0, 6)
	owner := kadm.NewClient(dial(t, cfg))
	committed := func() int64 {
		t.Helper()
		offsets, err := owner.FetchOffsets(testkit.Within(t), "g")
		testkit.Must(t, err)
		o, ok := offsets.Lookup("weather", 0)
		if !ok {
			return 0
		}
		return o.At
	}
	open := func(every time.Duration) *diaspora.Consumer {
		return fabrictest.OpenConsumer(t, cfg, diaspora.ConsumerOptions{Topics: []string{"weather"}, Group: "g", CommitEvery: every})
	}

	// A Commit in the body does not include the current record: it is handled only when the body ends.
	consumer := open(-1)
	for r, err := range consumer.Records(testkit.Within(t)) {
		testkit.Must(t, err)
		testkit.Must(t, consumer.Commit(testkit.Within(t)))
		if got := committed(); got != r.Offset {
			t.Errorf("in the body of record %d, %d is committed", r.Offset, got)
		}
		if r.Offset == 2 {
			break
		}
	}
	testkit.Must(t, consumer.Close(testkit.Within(t)))
	if got := committed(); got != 2 {
		t.Errorf("after a break at record 2, %d is committed", got)
	}

	// Commits in the background, and Close in the body, do not include it either.
	consumer = open(time.Millisecond)
	for r, err := range consumer.Records(testkit.Within(t)) {
		testkit.Must(t, err)
		if r.Offset == 4 {
			for ctx := testkit.Within(t); committed() < 4 && ctx.Err() == nil; { // until records 2 and 3 are committed
			}
			testkit.Must(t, consumer.Close(testkit.Within(t)))
			break
		}
	}
	if got := committed(); got != 4 {
		t.Errorf("after Close in the body of record 4, %d is committed", got)
	}

	// If the body panics, its record does not count as handled.
	func() {
		consumer = open(time.Millisecond)
		defer consumer.Close(context.Background())
		defer func() { recover() }()
		for range consumer.Records(testkit.Within(t)) {
			panic("in the body")
		}
	}()
	if got := committed(); got != 4 {
		t.Errorf("after a panic in the body of record 4, %d is committed", got)
	}

	// Records that were not committed are read again.
	var got []string
	for r, err := range open(0).Records(testkit.Within(t)) {
		testkit.Must(t, err)
		if got = append(got, string(r.Value)); len(got) == 2 {
			break
		}
	}
	if !slices.Equal(got, []string{"4", "5"}) {
		t.Errorf("the next member reads %v, want 4 and 5", got)
	}
}

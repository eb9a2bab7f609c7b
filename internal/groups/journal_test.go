package groups

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestOnDisk commits from many clients concurrently to a journal on disk, and opens it again each
// time.
func TestOnDisk(t *testing.T) {
	fsys, err := disk.New(t.TempDir())
	testkit.Must(t, err)
	defer fsys.Close()
	topics := &testTopics{}
	topics.set("t", 1, 10)
	const groups = 20
	var last [groups][10]int64
	for round := range int64(3) {
		c, err := Open(Config{FS: fsys, Sync: round == 1, Topics: topics})
		testkit.Must(t, err)
		w := &world{TB: t, Coordinator: c, topics: topics}
		for g := range groups {
			for p := range int32(10) {
				if got, want := w.fetched(fmt.Sprint("g", g), p), last[g][p]-1; got != want {
					t.Fatalf("round %d: offset of g%d/%d = %d, want %d", round, g, p, got, want)
				}
			}
		}
		var wg sync.WaitGroup
		for client := range 40 {
			wg.Go(func() {
				g := client % groups
				for i := range int64(25) {
					p := int32(rand.IntN(5)*2 + client/groups) // two clients of a group never commit the same partition
					offset := round*100 + i
					if err := w.commitAlone(fmt.Sprint("g", g), p, offset); err != nil {
						t.Errorf("commit: %v", err)
					}
					last[g][p] = offset + 1
				}
			})
		}
		wg.Wait()
		testkit.Must(t, c.Close())
		if err := c.Close(); err != nil {
			t.Fatalf("second Close() = %v", err)
		}
	}
}

// TestMemoryOnly runs consumers against a Coordinator in memory, in real time.
func TestMemoryOnly(t *testing.T) {
	topics := &testTopics{}
	topics.set("t", 1, 10)
	c, err := Open(Config{FS: disk.Memory(), Topics: topics})
	testkit.Must(t, err)
	w := &world{TB: t, Coordinator: c, topics: topics}
	var wg sync.WaitGroup
	for g := range 10 {
		wg.Go(func() {
			m := w.consumer(fmt.Sprint("g", g))
			for range 10 {
				if err := m.join(); err != nil {
					t.Errorf("join: %v", err)
				}
				if err := m.sync(func(string) string { return "x" }); err != nil {
					t.Errorf("sync: %v", err)
				}
				if err := m.commit(0, 1); err != nil {
					t.Errorf("commit: %v", err)
				}
				c.ListGroups(kmsg.NewPtrListGroupsRequest())
			}
		})
	}
	wg.Wait()
	testkit.Must(t, c.Close())
}

// BenchmarkCommit commits the offsets of 10 partitions in one of 10,000 groups that already have
// such offsets.
func BenchmarkCommit(b *testing.B) {
	for _, sync := range []bool{false, true} {
		b.Run(fmt.Sprint("sync=", sync), func(b *testing.B) {
			fsys, err := disk.New(b.TempDir())
			testkit.Must(b, err)
			defer fsys.Close()
			topics := &testTopics{}
			topics.set("t", 1, 10)
			c, err := Open(Config{FS: fsys, Topics: topics})
			testkit.Must(b, err)
			reqs := commitRequests(10_000)
			for _, req := range reqs {
				c.OffsetCommit(everything, req)
			}
			testkit.Must(b, c.Close())
			if c, err = Open(Config{FS: fsys, Topics: topics, Sync: sync}); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			var took []time.Duration
			for i := 0; b.Loop(); i++ {
				start := time.Now()
				resp := c.OffsetCommit(everything, reqs[i%len(reqs)])
				took = append(took, time.Since(start))
				if resp.Topics[0].Partitions[9].ErrorCode != 0 {
					b.Fatalf("OffsetCommit = %+v", resp)
				}
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
			testkit.Must(b, c.Close())
		})
	}
}

// TestMemory bounds the memory of committed offsets.
func TestMemory(t *testing.T) {
	const groups, partitions, most = 10_000, 10, 200
	topics := &testTopics{}
	topics.set("t", 1, partitions)
	c, err := open(Config{Topics: topics}, func(Config, func(entry) error) (store, error) { return nowhere{}, nil })
	testkit.Must(t, err)
	defer c.Close()
	before := heapBytes()
	for _, req := range commitRequests(groups) {
		for i := range req.Topics[0].Partitions {
			req.Topics[0].Partitions[i].Metadata = nil
		}
		c.OffsetCommit(everything, req)
	}
	if n := (heapBytes() - before) / groups / partitions; n > most {
		t.Errorf("a committed offset takes %d bytes, want at most %d", n, most)
	} else {
		t.Logf("a committed offset takes %d bytes", n)
	}
	runtime.KeepAlive(c)
}

func heapBytes() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// nowhere is a journal that stores nothing.
type nowhere struct{}

func (nowhere) Append(...entry) error { return nil }
func (nowhere) Close() error          { return nil }

func commitRequests(n int) []*kmsg.OffsetCommitRequest {
	reqs := make([]*kmsg.OffsetCommitRequest, n)
	for i := range reqs {
		reqs[i] = commitRequest(9, fmt.Sprintf("group-%05d", i), commitTopic("t", 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9))
	}
	return reqs
}

package journal

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// benchState are the committed offsets of 10,000 groups with 10 partitions each.
const (
	benchGroups     = 10_000
	benchPartitions = 10
)

func benchEntry(group, partition, offset int) Entry {
	return Entry{
		Key:   fmt.Appendf(nil, "offset/consumer-group-%06d/beamline-topic/%d", group, partition),
		Value: fmt.Appendf(nil, "%016x%016x", offset, offset),
	}
}

// BenchmarkAppend commits the offsets of a group with each call: while the journal is not being
// compacted, and while compactions of 100,000 keys run all the time. It reports the slowest calls.
func BenchmarkAppend(b *testing.B) {
	for _, synced := range []bool{false, true} {
		for _, callers := range []int{1, 16} {
			for _, compacting := range []bool{false, true} {
				b.Run(fmt.Sprintf("sync=%v/callers=%d/compacting=%v", synced, callers, compacting), func(b *testing.B) {
					benchAppend(b, synced, callers, compacting)
				})
			}
		}
	}
}

func benchAppend(b *testing.B, synced bool, callers int, compacting bool) {
	fsys, err := disk.New(b.TempDir())
	testkit.Must(b, err)
	defer fsys.Close()
	j, _ := mustOpen(b, Options{FS: fsys, Sync: synced, CompactBytes: 1 << 40})
	for group := range benchGroups {
		var entries []Entry
		for partition := range benchPartitions {
			entries = append(entries, benchEntry(group, partition, 0))
		}
		if !synced || group%100 == 0 { // 100 groups are enough if the log is synced
			mustAppend(b, j, entries...)
		}
	}
	var compactions atomic.Int64
	stop := make(chan struct{})
	var background sync.WaitGroup
	if compacting {
		background.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					j.compact()
					compactions.Add(1)
				}
			}
		})
	}
	took := make([][]time.Duration, callers)
	var group sync.WaitGroup
	b.ReportAllocs()
	b.ResetTimer()
	for c := range callers {
		group.Go(func() {
			entries := make([]Entry, benchPartitions)
			for n := range (b.N + c) / callers {
				for partition := range entries {
					entries[partition] = benchEntry((n*callers+c)%benchGroups, partition, n)
				}
				start := time.Now()
				if err := j.Append(entries...); err != nil {
					b.Error(err)
				}
				took[c] = append(took[c], time.Since(start))
			}
		})
	}
	group.Wait()
	b.StopTimer()
	close(stop)
	background.Wait()
	all := slices.Concat(took...)
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-µs")
	b.ReportMetric(float64(all[len(all)-1].Microseconds()), "max-µs")
	b.ReportMetric(float64(compactions.Load()), "compactions")
}

// BenchmarkFrame measures only the CPU time of Append, on a file system in memory.
func BenchmarkFrame(b *testing.B) {
	j, _ := mustOpen(b, Options{FS: disk.Memory(), CompactBytes: 64 << 20})
	entries := make([]Entry, benchPartitions)
	for partition := range entries {
		entries[partition] = benchEntry(1, partition, 1)
	}
	b.ReportAllocs()
	for b.Loop() {
		testkit.Must(b, j.Append(entries...))
	}
}

// BenchmarkOpen opens a journal with the offsets of 10,000 groups.
func BenchmarkOpen(b *testing.B) {
	fsys, err := disk.New(b.TempDir())
	testkit.Must(b, err)
	defer fsys.Close()
	o := Options{FS: fsys, CompactBytes: 1 << 40}
	j, _ := mustOpen(b, o)
	for group := range benchGroups {
		for partition := range benchPartitions {
			mustAppend(b, j, benchEntry(group, partition, 0))
		}
	}
	for _, compacted := range []bool{false, true} {
		if compacted {
			j.compact()
		}
		b.Run(fmt.Sprintf("compacted=%v", compacted), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				n := 0
				again, err := Open(o, func(Entry) error { n++; return nil })
				if err != nil || n != benchGroups*benchPartitions {
					b.Fatalf("%d entries, %v", n, err)
				}
				again.Close()
			}
		})
	}
}

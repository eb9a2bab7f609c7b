package spool

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// benchEvent is like an event of the Logger with a value of 1 KiB.
func benchEvent(n int) Entry {
	return Entry{Topic: "beamline", ID: fmt.Sprintf("k3v9x0q2m7ta5h1c-%04x", n&0xffff), Value: make([]byte, 1<<10),
		Time: time.UnixMilli(1_800_000_000_000 + int64(n))}
}

// BenchmarkAppend measures durable events a second. Compare with BenchmarkFloor,
// the same bytes by one loop of write and sync, in the same run.
func BenchmarkAppend(b *testing.B) {
	for _, writers := range []int{1, 16, 128} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			path := dir(b)
			s := mustOpen(b, Options{Dir: path, MaxBytes: 64 << 30})
			b.SetBytes(1 << 10)
			took := make([][]time.Duration, writers)
			b.ResetTimer()
			var wg sync.WaitGroup
			for w := range writers {
				wg.Go(func() {
					e := benchEvent(w)
					for range share(b.N, writers, w) {
						start := time.Now()
						if err := s.Append(context.Background(), e); err != nil {
							b.Error(err)
						}
						took[w] = append(took[w], time.Since(start))
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			report(b, slices.Concat(took...))
			b.ReportMetric(float64(s.Stats().Bytes)/float64(b.N)/1024, "disk/payload")
		})
	}
}

// BenchmarkFloor measures what the disk allows: bare writes and syncs, each of as many events as
// there are writers.
func BenchmarkFloor(b *testing.B) {
	for _, writers := range []int{1, 16, 128} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			fsys, err := disk.New(b.TempDir())
			testkit.Must(b, err)
			defer fsys.Close()
			f, err := fsys.Create("floor")
			testkit.Must(b, err)
			defer f.Close()
			buf := make([]byte, writers*1075)
			b.SetBytes(1 << 10)
			var took []time.Duration
			size := int64(0)
			b.ResetTimer()
			for n := 0; n < b.N; n += writers {
				start := time.Now()
				if _, err := f.WriteAt(buf, size); err != nil {
					b.Fatal(err)
				}
				size += int64(len(buf))
				testkit.Must(b, f.Sync())
				took = append(took, time.Since(start))
			}
			b.StopTimer()
			report(b, took)
		})
	}
}

// share is the part of n that one of many writers does.
func share(n, writers, w int) int { return (n + w) / writers }

func report(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}

// BenchmarkAppendAsync measures the pipelined form, with one caller.
func BenchmarkAppendAsync(b *testing.B) {
	s := mustOpen(b, Options{Dir: dir(b), MaxBytes: 64 << 30})
	e := benchEvent(1)
	b.SetBytes(1 << 10)
	b.ReportAllocs()
	var wg sync.WaitGroup
	wg.Add(b.N)
	b.ResetTimer()
	for range b.N {
		appendAsync(b, s, e, func(err error) {
			if err != nil {
				b.Error(err)
			}
			wg.Done()
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

// BenchmarkDrain measures reading and acknowledging pending entries.
func BenchmarkDrain(b *testing.B) {
	s := mustOpen(b, Options{Dir: dir(b), MaxBytes: 64 << 30})
	events := make([]Entry, 100)
	for i := range events {
		events[i] = benchEvent(i)
	}
	for n := 0; n < b.N; n += len(events) {
		testkit.Must(b, s.Append(b.Context(), events...))
	}
	b.SetBytes(1 << 10)
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < b.N; {
		records, err := s.Next(b.Context(), 500, 1<<20)
		testkit.Must(b, err)
		positions := make([]uint64, len(records))
		for i, r := range records {
			positions[i] = r.Position
		}
		testkit.Must(b, s.Ack(positions...))
		n += len(records)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

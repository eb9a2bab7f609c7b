package claims

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/internal/broker"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestLongLedger opens a ledger of ten years, in which topics and keys came and went, and in which
// one of a hundred records is a key that is still valid. `make test-long` uses ten million records.
// The test checks how long a start takes and how much memory it needs, with and without a
// checkpoint.
func TestLongLedger(t *testing.T) {
	const (
		wholeTakes      = time.Minute
		checkpointTakes = 2 * time.Second
		room            = 256 << 20
	)
	n := testkit.Scaled(t, "LEDGER_RECORDS", 20_000)
	b, err := broker.Open(broker.Config{Dir: filepath.Join(t.TempDir(), "broker"), Advertise: "127.0.0.1:9092"})
	testkit.Must(t, err)
	t.Cleanup(func() { b.Close() })
	dir := filepath.Join(t.TempDir(), "ledger")
	open := func() *Service {
		t.Helper()
		s, err := Open(t.Context(), Config{Admin: b.AdminOpts(), ReconcileInterval: 1000 * time.Hour, Dir: dir})
		testkit.Must(t, err)
		return s
	}
	if err := open().Close(); err != nil { // creates the topic
		t.Fatal(err)
	}
	began := time.Now()
	live := fillLedger(t, b.AdminOpts(), n)
	t.Logf("%d records written in %v", n, time.Since(began).Round(time.Millisecond))

	measure := func(what string, bound time.Duration) {
		t.Helper()
		heap := watchHeap()
		began := time.Now()
		s := open()
		took, grown := time.Since(began), heap()
		heap = watchHeap()
		closing := time.Now()
		defer func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			t.Logf("%s: ready after %v, with at most %d MB more on the heap; closed after %v, with at most %d MB more", what, took.Round(time.Millisecond), grown>>20,
				time.Since(closing).Round(time.Millisecond), heap()>>20)
		}()
		if took > bound || grown > room {
			t.Errorf("%s: ready after %v, with %d MB more on the heap; want %v and %d MB", what, took, grown>>20, bound, room>>20)
		}
		if got := s.Stats(); got.Keys != live || got.Records != int64(n) || got.Skipped != 0 {
			t.Errorf("%s: Stats = %+v, want %d keys of %d records", what, got, live, n)
		}
	}
	measure("without a checkpoint", wholeTakes)
	measure("with a checkpoint", checkpointTakes)
	info, err := os.Stat(filepath.Join(dir, checkpointFile))
	testkit.Must(t, err)
	t.Logf("the checkpoint has %d MB", info.Size()>>20)
}

// watchHeap returns a function that returns the largest growth of the heap up to that call.
func watchHeap() (grown func() uint64) {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	before := m.HeapAlloc
	var most atomic.Uint64
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		ticker := time.NewTicker(50 * time.Millisecond)
		defer ticker.Stop()
		for {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			most.Store(max(most.Load(), m.HeapAlloc))
			select {
			case <-ticker.C:
			case <-stop:
				return
			}
		}
	}()
	return func() uint64 {
		close(stop)
		<-stopped
		return most.Load() - min(before, most.Load())
	}
}

// fillLedger writes n records, and returns how many keys are still valid.
func fillLedger(t *testing.T, admin []kgo.Opt, n int) (live int) {
	t.Helper()
	client, err := kgo.NewClient(append(admin, kgo.DefaultProduceTopic(LedgerTopic), kgo.MaxBufferedRecords(100_000), kgo.ProducerLinger(10*time.Millisecond))...)
	testkit.Must(t, err)
	defer client.Close()
	const years = 10 * 365 * 24 * time.Hour
	first := time.Now().Add(-years).UTC()
	var failed atomic.Pointer[error]
	at := 0
	add := func(op, by string, edit func(*record)) record {
		r := newRecord(op, by)
		r.Time = first.Add(time.Duration(float64(years) * float64(at) / float64(n)))
		edit(&r)
		value, err := encode(r)
		testkit.Must(t, err)
		client.Produce(t.Context(), &kgo.Record{Key: []byte(r.key()), Value: value}, func(_ *kgo.Record, err error) {
			if err != nil {
				failed.CompareAndSwap(nil, &err)
			}
		})
		at++
		return r
	}
	issue := func(by, name string) record {
		return add(opIssueKey, by, func(r *record) {
			r.Key, r.Name, r.Hash, r.Read, r.Write, r.Limit = newKeyID(), name, keyHash{1, byte(at), byte(at >> 8)}, true, true, n
		})
	}
	for at < n {
		by := fmt.Sprintf("%08d-0000-4000-8000-000000000000", at%1_000_003/1000)
		switch left := n - at; {
		case at%100 == 0:
			issue(by, fmt.Sprint("lasting-", at))
			live++
		case at%2 == 0 && left >= 3 && (at+1)%100 != 0 && (at+2)%100 != 0:
			name, claim := fmt.Sprint("run_", at), int64(at)
			add(opClaim, by, func(r *record) {
				r.Topic, r.Partitions, r.RetentionMS, r.Description, r.Limit = name, 1, 604800000, "what the detector saw", n
			})
			add(opRelease, by, func(r *record) { r.Topic, r.Claim = name, &claim })
			add(opReleased, by, func(r *record) { r.Topic, r.Claim = name, &claim })
		case left >= 2 && (at+1)%100 != 0:
			k := issue(by, "job")
			add(opRevokeKey, by, func(r *record) { r.Key = k.Key })
		default:
			add(opUnblock, by, func(r *record) { r.Subject = by }) // has no effect
		}
	}
	testkit.Must(t, client.Flush(t.Context()))
	if err := failed.Load(); err != nil {
		t.Fatal(*err)
	}
	return live
}

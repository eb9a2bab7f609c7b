package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/disk/disktest"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

func mustOpen(t testing.TB, o Options) (*Journal, map[string]string) {
	t.Helper()
	j, state, err := openState(o)
	testkit.Must(t, err)
	t.Cleanup(func() { j.Close() })
	return j, state
}

func mustAppend(t testing.TB, j *Journal, entries ...Entry) {
	t.Helper()
	testkit.Must(t, j.Append(entries...))
}

func mustClose(t testing.TB, j *Journal) {
	t.Helper()
	testkit.Must(t, j.Close())
}

func set(key, value string) Entry { return Entry{[]byte(key), []byte(value)} }

// idle waits until no compaction runs.
func (j *Journal) idle() { j.work.Wait() }

// TestState appends, deletes, compacts and opens again at random, and compares what is loaded with
// a map.
func TestState(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		o := Options{FS: disk.Memory(), Sync: rapid.Bool().Draw(t, "sync"), CompactBytes: rapid.Int64Range(1, 2000).Draw(t, "compact")}
		want := map[string]string{}
		j, _, err := openState(o)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { j.Close() }()
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			if rapid.IntRange(0, 9).Draw(t, "what") == 0 {
				if err := j.Close(); err != nil {
					t.Fatal(err)
				}
				var got map[string]string
				if j, got, err = openState(o); err != nil {
					t.Fatal(err)
				}
				if !maps.Equal(got, want) {
					t.Fatalf("loaded %v, want %v", got, want)
				}
				continue
			}
			var entries []Entry
			for range rapid.IntRange(0, 4).Draw(t, "entries") {
				key := rapid.SampledFrom([]string{"", "a", "b", "c", "\x00", "longer"}).Draw(t, "key")
				e := Entry{Key: []byte(key)}
				if rapid.IntRange(0, 4).Draw(t, "delete") > 0 {
					e.Value = bytes.Repeat([]byte("v"), rapid.IntRange(0, 300).Draw(t, "size"))
					want[key] = string(e.Value)
				} else {
					delete(want, key)
				}
				entries = append(entries, e)
			}
			if err := j.Append(entries...); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestLimits(t *testing.T) {
	t.Parallel()
	o := Options{FS: disk.Memory(), CompactBytes: 1 << 40}
	j, _ := mustOpen(t, o)
	large := make([]byte, maxEntryBytes)
	mustAppend(t, j, Entry{Value: large})
	mustAppend(t, j, Entry{Key: large[:maxEntryBytes-3], Value: []byte("abc")})
	mustAppend(t, j, Entry{[]byte("a"), large[10:]}, Entry{[]byte("b"), large[20:]}, Entry{[]byte("c"), large[30:]})
	for name, entries := range map[string][]Entry{
		"an entry":   {{Key: []byte("k"), Value: large}},
		"many":       {{Value: large}, {Value: large}, {Value: large}, {Value: large}},
		"many small": make([]Entry, maxCallBytes/10+1),
	} {
		if err := j.Append(entries...); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: %v, want ErrTooLarge", name, err)
		}
	}
	mustClose(t, j)
	j, state := mustOpen(t, o)
	if len(state) != 5 || len(state["c"]) != maxEntryBytes-30 || len(state[string(large[:maxEntryBytes-3])]) != 3 {
		t.Errorf("%d entries loaded, want 5 with their values", len(state))
	}
	mustClose(t, j)
	if err := j.Append(set("a", "b")); !errors.Is(err, ErrClosed) {
		t.Errorf("Append after Close: %v, want ErrClosed", err)
	}
	mustClose(t, j) // close it a second time
}

// TestLoadFails: Open returns the error of load.
func TestLoadFails(t *testing.T) {
	t.Parallel()
	o := Options{FS: disk.Memory()}
	j, _ := mustOpen(t, o)
	mustAppend(t, j, set("a", "1"))
	mustClose(t, j)
	if _, err := Open(o, func(Entry) error { return io.ErrNoProgress }); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("Open: %v, want load's error", err)
	}
}

// TestCallsShareSyncs has many callers on a disk that needs a second for a sync. Callers that
// arrive in that time share the next sync.
func TestCallsShareSyncs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fsys := disktest.New()
		o := Options{FS: fsys, Sync: true}
		j, _ := mustOpen(t, o)
		var syncs atomic.Int64
		fsys.Fault(func(call, _ string) error {
			if call == "sync" {
				syncs.Add(1)
				time.Sleep(time.Second)
			}
			return nil
		})
		const callers = 100
		start := time.Now()
		var group sync.WaitGroup
		for i := range callers {
			group.Go(func() { mustAppend(t, j, set(fmt.Sprint(i), "v")) })
		}
		group.Wait()
		if took := time.Since(start); took > 2*time.Second || syncs.Load() > 2 {
			t.Errorf("%d calls took %v and %d syncs, want 2", callers, took, syncs.Load())
		}
		mustClose(t, j)
		if _, state := mustOpen(t, o); len(state) != callers {
			t.Errorf("%d entries, want %d", len(state), callers)
		}
	})
}

// TestLargeBatchesAreSplit has callers wait with more entries than fit into one frame.
func TestLargeBatchesAreSplit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fsys := disktest.New()
		o := Options{FS: fsys, Sync: true, CompactBytes: 1 << 40}
		j, _ := mustOpen(t, o)
		fsys.Fault(func(call, _ string) error {
			if call == "sync" {
				time.Sleep(time.Second)
			}
			return nil
		})
		var group sync.WaitGroup
		for i := range 10 {
			group.Go(func() { mustAppend(t, j, Entry{[]byte(fmt.Sprint(i)), make([]byte, joinBytes*2/3)}) })
		}
		group.Wait()
		fsys.Fault(nil)
		mustClose(t, j)
		if _, state := mustOpen(t, o); len(state) != 10 {
			t.Errorf("%d entries, want 10", len(state))
		}
	})
}

// TestFullDisk fills the disk. Everything acknowledged stays, and when there is free space again,
// Append succeeds.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	for _, synced := range []bool{false, true} {
		fsys := disktest.New()
		o := Options{FS: fsys, Sync: synced, CompactBytes: 1 << 20}
		j, _ := mustOpen(t, o)
		fsys.Room(4 << 10)
		want := map[string]string{}
		var err error
		for n := 0; err == nil; n++ {
			key := fmt.Sprint("key", n)
			if err = j.Append(set(key, "value")); err == nil {
				want[key] = "value"
			}
		}
		if !disk.Full(err) || len(want) < 50 {
			t.Fatalf("after %d entries: %v, want a full disk", len(want), err)
		}
		if err := j.Append(set("more", "value")); !disk.Full(err) {
			t.Errorf("Append to a full disk: %v", err)
		}
		left, state := mustOpen(t, Options{FS: fsys.Kill()})
		if !maps.Equal(state, want) {
			t.Errorf("%d entries are there, want the %d that were acknowledged", len(state), len(want))
		}
		mustClose(t, left)
		fsys.Room(8 << 10)
		mustAppend(t, j, set("more", "value"))
		want["more"] = "value"
		mustClose(t, j)
		if _, state := mustOpen(t, o); !maps.Equal(state, want) {
			t.Errorf("%d entries are there, want %d", len(state), len(want))
		}
	}
}

// TestFailures makes calls of the file system fail, and checks whether later calls of Append
// succeed.
func TestFailures(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		sync   bool
		fails  map[string]error
		sticky bool
	}{
		{"a short write", false, map[string]error{"write": io.ErrShortWrite}, false},
		{"a short write, synced", true, map[string]error{"write": io.ErrShortWrite}, false},
		{"a failed write", true, map[string]error{"write": syscall.EIO}, false},
		{"a sync", true, map[string]error{"sync": syscall.EIO}, true},
		{"the cut after a write", false, map[string]error{"write": io.ErrShortWrite, "truncate": syscall.EIO}, true},
		{"the sync of the cut", true, map[string]error{"write": io.ErrShortWrite, "sync": syscall.EIO}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			fsys := disktest.New()
			o := Options{FS: fsys, Sync: tt.sync}
			j, _ := mustOpen(t, o)
			mustAppend(t, j, set("a", "1"))
			fsys.Fault(func(call, _ string) error { return tt.fails[call] })
			err := j.Append(set("a", "2"))
			fsys.Fault(nil)
			for _, fault := range tt.fails {
				if !errors.Is(err, fault) {
					t.Errorf("Append: %v, want %v", err, fault)
				}
			}
			want := "1"
			err = j.Append(set("a", "3"))
			if (err != nil) != tt.sticky {
				t.Errorf("the next Append: %v, want an error: %v", err, tt.sticky)
			}
			if err == nil {
				want = "3"
			}
			j.Close()
			if _, state := mustOpen(t, o); state["a"] != want {
				t.Errorf("a is %q, want %q", state["a"], want)
			}
		})
	}
}

// TestCompaction overwrites a few keys very often. The directory must stay small.
func TestCompaction(t *testing.T) {
	t.Parallel()
	fsys := disktest.New()
	o := Options{FS: fsys, CompactBytes: 4 << 10}
	j, _ := mustOpen(t, o)
	want := map[string]string{}
	for n := range 5000 {
		key, value := fmt.Sprint("key", n*7%20), fmt.Sprint("value", n)
		mustAppend(t, j, set(key, value))
		want[key] = value
		if n%50 == 0 {
			j.idle()
		}
	}
	mustClose(t, j)
	if used := fsys.Used(); used > 16<<10 {
		t.Errorf("%d bytes on disk, want at most 16 KiB: %v", used, fsys.Names())
	}
	j, state := mustOpen(t, o)
	if !maps.Equal(state, want) {
		t.Errorf("loaded %v, want %v", state, want)
	}
	if j.sequence != 5000 {
		t.Errorf("the next frame is %d, want 5000", j.sequence)
	}
}

// TestCompactionGrowsWithTheState checks that the log of a large state is compacted only when it is
// twice as large as the snapshot.
func TestCompactionGrowsWithTheState(t *testing.T) {
	t.Parallel()
	fsys := disktest.New()
	j, _ := mustOpen(t, Options{FS: fsys, CompactBytes: 1 << 10})
	created := 0
	for n := range 2000 {
		mustAppend(t, j, set(fmt.Sprint(n), strings.Repeat("v", 100)))
		j.idle()
	}
	fsys.Observe(func(call, name string, _ disktest.Moment) {
		if call == "create" && strings.HasSuffix(name, snapshotSuffix+tempSuffix) {
			created++
		}
	})
	const rounds = 6000 // of about 130 bytes, beside a state of 220 KB
	for n := range rounds {
		mustAppend(t, j, set(fmt.Sprint(n%2000), strings.Repeat("w", 100)))
		j.idle()
	}
	fsys.Observe(nil)
	if created < 1 || created > 3 {
		t.Errorf("%d compactions, want 1 to 3", created)
	}
}

// TestCompactionIsTriedAgain makes compactions fail at each step. The first one that succeeds, ten
// seconds or more later, loses nothing.
func TestCompactionIsTriedAgain(t *testing.T) {
	for _, step := range []string{
		"create 00000000000000000002.log.tmp", "write 00000000000000000002.log.tmp", "sync 00000000000000000002.log.tmp", "rename 00000000000000000002.log",
		"syncdir .", "list .", "read 00000000000000000001.log", "sync 00000000000000000001.log.tmp", // with the name that it was created with
		"create 00000000000000000002.snapshot.tmp", "write 00000000000000000002.snapshot.tmp",
		"sync 00000000000000000002.snapshot.tmp", "rename 00000000000000000002.snapshot",
	} {
		t.Run(step, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fsys := disktest.New()
				o := Options{FS: fsys, CompactBytes: 100}
				j, _ := mustOpen(t, o)
				faults := 0
				fsys.Fault(func(call, name string) error {
					if call+" "+name == step {
						faults++
						return syscall.EIO
					}
					return nil
				})
				want := map[string]string{}
				for n := range 100 {
					key, value := fmt.Sprint("key", n%10), fmt.Sprint("value", n)
					if err := j.Append(set(key, value)); err != nil {
						if step == "sync 00000000000000000001.log.tmp" {
							return // a failed sync of acknowledged data is final
						}
						t.Fatal(err)
					}
					want[key] = value
					j.idle()
				}
				if faults == 0 {
					t.Fatal("no fault")
				}
				if most := 1; faults > most {
					t.Errorf("%d attempts at once, want %d", faults, most)
				}
				fsys.Fault(nil)
				used := fsys.Used()
				time.Sleep(11 * time.Second)
				mustAppend(t, j, set("last", "value"))
				want["last"] = "value"
				j.idle()
				if fsys.Used() > used/2 {
					t.Errorf("%d bytes on disk after %d, want a compaction", fsys.Used(), used)
				}
				mustClose(t, j)
				if _, state := mustOpen(t, o); !maps.Equal(state, want) {
					t.Errorf("loaded %v, want %v", state, want)
				}
			})
		})
	}
}

// TestAppendBesideCompaction blocks a compaction. Append continues to work, and Close returns once
// the file system is no longer blocked.
func TestAppendBesideCompaction(t *testing.T) {
	t.Parallel()
	fsys := disktest.New()
	o := Options{FS: fsys, Sync: true, CompactBytes: 100}
	j, _ := mustOpen(t, o)
	stopped, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	fsys.Fault(func(call, name string) error {
		if call == "write" && strings.HasSuffix(name, snapshotSuffix+tempSuffix) {
			once.Do(func() { close(stopped) })
			<-goOn
		}
		return nil
	})
	want := map[string]string{}
	put := func(n int) {
		key, value := fmt.Sprint("key", n%300), fmt.Sprint("value", n)
		mustAppend(t, j, set(key, value))
		want[key] = value
	}
	n := 0
	for compacting := false; !compacting; n++ {
		put(n)
		select {
		case <-stopped:
			compacting = true
		default:
		}
	}
	for range 1000 {
		put(n)
		n++
	}
	closed := make(chan error)
	go func() { closed <- j.Close() }()
	for !errors.Is(j.stopped(), ErrClosed) {
		time.Sleep(time.Millisecond)
	}
	close(goOn)
	if err := <-closed; err != nil {
		t.Error(err)
	}
	fsys.Fault(nil)
	if _, state := mustOpen(t, o); !maps.Equal(state, want) {
		t.Errorf("%d entries loaded, want %d", len(state), len(want))
	}
	for _, name := range fsys.Names() {
		if strings.HasSuffix(name, tempSuffix) {
			t.Errorf("%s was left behind", name)
		}
	}
}

// TestGolden opens files written by the first version of this package.
func TestGolden(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	testkit.Must(t, os.CopyFS(dir, os.DirFS("testdata/v1")))
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 2 {
		t.Fatalf("files %v (%v), want a snapshot and a segment", files, err)
	}
	fsys, err := disk.New(dir)
	testkit.Must(t, err)
	defer fsys.Close()
	j, state := mustOpen(t, Options{FS: fsys})
	want := map[string]string{"": "empty key", "empty": "", "changed": "2", "kept": "1", "new": strings.Repeat("long", 100)}
	if !maps.Equal(state, want) {
		t.Errorf("loaded %q, want %q", state, want)
	}
	mustAppend(t, j, set("new", "3"))
	mustClose(t, j)
	if _, state := mustOpen(t, Options{FS: fsys}); state["new"] != "3" {
		t.Errorf("new is %q, want 3", state["new"])
	}
}

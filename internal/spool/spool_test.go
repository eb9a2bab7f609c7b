package spool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/diaspora-streams/diaspora/internal/disk/disktest"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

func mustOpen(t testing.TB, opts Options) *Spool {
	t.Helper()
	s, err := Open(t.Context(), opts)
	testkit.Must(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

func mustClose(t testing.TB, s *Spool) {
	t.Helper()
	testkit.Must(t, s.Close())
}

// dir returns a directory for a spool, which does not exist yet.
func dir(t testing.TB) string { return filepath.Join(t.TempDir(), "spool") }

// numbered returns an entry whose value is its number.
func numbered(n int) Entry {
	return Entry{
		Topic: "beamline", ID: fmt.Sprint(n),
		Key:   fmt.Appendf(nil, "key-%d", n%3),
		Value: []byte(strings.Repeat(fmt.Sprintf("value %d;", n), 1+n%7)),
		Time:  time.UnixMilli(1_700_000_000_000 + int64(n)).UTC(),
	}
}

func mustAppend(t testing.TB, s *Spool, from, to int) {
	t.Helper()
	for n := from; n < to; n++ {
		if err := s.Append(t.Context(), numbered(n)); err != nil {
			t.Fatalf("append %d: %v", n, err)
		}
	}
}

// drain reads all pending entries without acknowledging them.
func drain(t testing.TB, s *Spool) []Record {
	t.Helper()
	all, err := readAll(s)
	testkit.Must(t, err)
	return all
}

func wantNumbered(t testing.TB, got []Record, from, to int) {
	t.Helper()
	if len(got) != to-from {
		t.Fatalf("%d records, want %d", len(got), to-from)
	}
	for i, r := range got {
		if want := numbered(from + i); !reflect.DeepEqual(r.Entry, want) {
			t.Fatalf("record %d is %+v, want %+v", i, r.Entry, want)
		}
	}
}

func ackAll(t testing.TB, s *Spool, records []Record) {
	t.Helper()
	for _, r := range records {
		testkit.Must(t, s.Ack(r.Position))
	}
}

func TestAppendReadAcknowledge(t *testing.T) {
	t.Parallel()
	opts := Options{Dir: dir(t), Subject: "ada", SegmentBytes: 1 << 10, MaxBytes: 1 << 20}
	s := mustOpen(t, opts)
	mustAppend(t, s, 0, 100)
	got := drain(t, s)
	wantNumbered(t, got, 0, 100)
	ackAll(t, s, got[:30])
	ackAll(t, s, got[40:50]) // out of order
	mustClose(t, s)

	s = mustOpen(t, opts)
	if st := s.Stats(); st.Events != 60 || st.Acknowledged != 40 || st.Damaged != 0 {
		t.Errorf("%+v, want 60 events, 40 acknowledged", st)
	}
	mustAppend(t, s, 100, 110)
	again := drain(t, s)
	wantNumbered(t, again[:10], 30, 40)
	wantNumbered(t, again[10:], 50, 110)
	s.Rewind()
	if n := len(drain(t, s)); n != 70 {
		t.Errorf("%d records after Rewind, want 70", n)
	}
	ackAll(t, s, again)
	mustClose(t, s)

	s = mustOpen(t, opts)
	if st := s.Stats(); st.Events != 0 || st.Bytes != 0 || st.Acknowledged != 110 {
		t.Errorf("%+v, want nothing left and 110 acknowledged", st)
	}
	mustAppend(t, s, 0, 1)
	if got := drain(t, s); len(got) != 1 || got[0].Position != 111 {
		t.Errorf("%+v, want one at position 111", got)
	}
}

func TestManyWriters(t *testing.T) {
	t.Parallel()
	s := mustOpen(t, Options{Dir: dir(t), SegmentBytes: 4 << 10, MaxBytes: 64 << 20})
	const writers, each = 16, 50
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for n := range each {
				if err := s.Append(t.Context(), Entry{Topic: fmt.Sprint(w), ID: fmt.Sprint(n)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	next := map[string]int{}
	for _, r := range drain(t, s) {
		if r.ID != fmt.Sprint(next[r.Topic]) {
			t.Fatalf("writer %s: event %s, want %d", r.Topic, r.ID, next[r.Topic])
		}
		next[r.Topic]++
	}
	for w := range writers {
		if n := next[fmt.Sprint(w)]; n != each {
			t.Errorf("writer %d: %d events, want %d", w, n, each)
		}
	}
}

// appendAsync appends an entry and fails the test if the spool does not accept it.
func appendAsync(t testing.TB, s *Spool, e Entry, done func(error)) {
	t.Helper()
	if err := s.AppendAsync(context.Background(), e, done); err != nil {
		t.Errorf("AppendAsync = %v", err)
		done(err)
	}
}

func TestAppendAsyncKeepsOrder(t *testing.T) {
	t.Parallel()
	s := mustOpen(t, Options{Dir: dir(t), SegmentBytes: 4 << 10, MaxBytes: 64 << 20})
	var done []int // no lock needed: done is called one at a time
	for n := range 1000 {
		appendAsync(t, s, numbered(n), func(err error) {
			if err != nil {
				t.Errorf("event %d: %v", n, err)
			}
			done = append(done, n)
		})
	}
	mustClose(t, s)
	for i, n := range done {
		if i != n {
			t.Fatalf("call %d is for event %d", i, n)
		}
	}
	if len(done) != 1000 {
		t.Errorf("%d calls, want 1000", len(done))
	}
}

// TestAppendAllAsync appends calls of very different sizes, and checks that each entry has one result,
// in order, and that all are in the spool.
func TestAppendAllAsync(t *testing.T) {
	t.Parallel()
	opts := Options{Dir: dir(t), SegmentBytes: 256 << 10, MaxBytes: 64 << 20}
	s := mustOpen(t, opts)
	long := func(n int) Entry {
		e := numbered(n)
		if n%1000 == 7 {
			e.Value = make([]byte, 100<<10) // larger than a request
		}
		return e
	}
	next, results := 0, 0 // no lock is needed for results: done is called one at a time
	for _, size := range []int{1, 0, 3000, 7, 1, 500} {
		first := next
		var entries []Entry
		for ; next < first+size; next++ {
			entries = append(entries, long(next))
		}
		accepted, err := s.AppendAllAsync(t.Context(), entries, func(from, to int, err error) {
			if err != nil || first+from != results || to <= from {
				t.Errorf("done(%d, %d, %v) of the call that begins with %d, after %d results", from, to, err, first, results)
			}
			results = first + to
		})
		if err != nil || accepted != size {
			t.Errorf("AppendAllAsync of %d entries = %d, %v", size, accepted, err)
		}
		clear(entries) // they are the caller's again
	}
	testkit.Must(t, s.Sync(t.Context()))
	if results != next {
		t.Errorf("%d results, want %d", results, next)
	}
	mustClose(t, s)
	got := drain(t, mustOpen(t, opts))
	if len(got) != next {
		t.Fatalf("%d records, want %d", len(got), next)
	}
	for n, r := range got {
		if want := long(n); !reflect.DeepEqual(r.Entry, want) {
			t.Fatalf("record %d is %+v, want %+v", n, r.Entry, want)
		}
	}
}

// TestAppendAllAsyncRefuses checks which of several entries are accepted when one is not.
func TestAppendAllAsyncRefuses(t *testing.T) {
	t.Parallel()
	s := mustOpen(t, Options{Dir: dir(t), SegmentBytes: 256 << 10, MaxBytes: 1 << 20})
	entries := []Entry{numbered(0), numbered(1), numbered(2), numbered(3)}
	entries[2].Value = make([]byte, 300<<10) // more than a quarter of MaxBytes
	durable := 0
	done := func(from, to int, err error) {
		if err != nil {
			t.Errorf("done(%d, %d, %v)", from, to, err)
		}
		durable += to - from
	}
	if n, err := s.AppendAllAsync(t.Context(), entries, done); n != 2 || !errors.Is(err, ErrTooLarge) {
		t.Errorf("AppendAllAsync whose third entry is too large = %d, %v, want 2 and ErrTooLarge", n, err)
	}
	if n, err := s.AppendAllAsync(t.Context(), entries[3:], done); n != 1 || err != nil {
		t.Errorf("AppendAllAsync of the entry behind it = %d, %v, want 1", n, err)
	}
	s.Seal()
	if n, err := s.AppendAllAsync(t.Context(), entries[:1], done); n != 0 || !errors.Is(err, ErrClosed) {
		t.Errorf("AppendAllAsync to a sealed spool = %d, %v, want 0 and ErrClosed", n, err)
	}
	mustClose(t, s)
	if durable != 3 {
		t.Errorf("%d entries are durable, want 3", durable)
	}
}

// If AppendAsync does not accept an entry, done is not called.
func TestAppendAsyncRefuses(t *testing.T) {
	t.Parallel()
	s := mustOpen(t, Options{Dir: dir(t)})
	never := func(error) { t.Error("done was called") }
	large := numbered(0)
	large.Value = make([]byte, MaxEntryBytes+1)
	if err := s.AppendAsync(t.Context(), large, never); !errors.Is(err, ErrTooLarge) {
		t.Errorf("AppendAsync of a large entry = %v, want ErrTooLarge", err)
	}
	s.Seal()
	if err := s.AppendAsync(t.Context(), numbered(1), never); !errors.Is(err, ErrClosed) {
		t.Errorf("AppendAsync to a sealed spool = %v, want ErrClosed", err)
	}
	mustClose(t, s)
	if err := s.AppendAsync(t.Context(), numbered(1), never); !errors.Is(err, ErrClosed) {
		t.Errorf("AppendAsync to a closed spool = %v, want ErrClosed", err)
	}
}

// Seal and ctx release the calls that wait for the queue, while accepted entries are still written.
func TestSealAndSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := mustOpen(t, Options{FS: disktest.New(), MaxBytes: 64 << 20})
		full := func() Entry { return Entry{Topic: "beamline", Value: make([]byte, 1<<20)} }
		gate := make(chan struct{})
		first := true
		accepted, called := 0, 0
		done := func(error) {
			if first {
				first = false
				<-gate // delays all other callbacks, so that the queue fills up
			}
			called++
		}
		appendAsync(t, s, full(), done)
		synctest.Wait()
		accepted++
		for s.Stats().Held <= maxHeldBytes {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			err := s.AppendAsync(ctx, numbered(accepted), done)
			cancel()
			if errors.Is(err, context.DeadlineExceeded) {
				break
			}
			testkit.Must(t, err)
			accepted++
		}
		waiting := make(chan error)
		go func() { waiting <- s.AppendAsync(context.Background(), numbered(0), done) }()
		synced := make(chan error)
		go func() { synced <- s.Sync(context.Background()) }()
		synctest.Wait()
		s.Seal()
		if err := <-waiting; !errors.Is(err, ErrClosed) {
			t.Errorf("AppendAsync that waits = %v, want ErrClosed after Seal", err)
		}
		select {
		case err := <-synced:
			t.Errorf("Sync = %v before done has returned", err)
		default:
		}
		close(gate)
		if err := <-synced; err != nil || called != accepted {
			t.Errorf("Sync = %v after %d calls, want nil after %d", err, called, accepted)
		}
		if n := s.Stats().Events; int(n) != accepted {
			t.Errorf("%d events were written, want %d", n, accepted)
		}
		mustClose(t, s)
	})
}

func TestEntriesComeBackAsTheyWere(t *testing.T) {
	t.Parallel()
	s := mustOpen(t, Options{Dir: dir(t)})
	entries := []Entry{
		{},
		{Topic: "t", Key: []byte{}, Value: []byte{}},
		{Topic: "t", Headers: []Header{{"a", nil}, {"b", []byte{}}, {"", []byte("c")}}},
		{Topic: "\xff\x00", ID: "id", Value: []byte("x"), Time: time.Unix(1, 1).UTC()},
		{Topic: "t", Time: time.Date(9999, 12, 31, 23, 59, 59, 999999999, time.UTC)},
		{Topic: "t", Time: time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC)},
		{Topic: "t", Value: make([]byte, 1<<20)},
	}
	testkit.Must(t, s.Append(t.Context(), entries...))
	for i, r := range drain(t, s) {
		if !reflect.DeepEqual(r.Entry, entries[i]) {
			t.Errorf("entry %d is %+v, want %+v", i, r.Entry, entries[i])
		}
	}
}

func TestModes(t *testing.T) {
	t.Parallel()
	path := dir(t)
	s := mustOpen(t, Options{Dir: path})
	mustAppend(t, s, 0, 1)
	ackAll(t, s, drain(t, s))
	mustAppend(t, s, 1, 2)
	testkit.Must(t, s.Quarantine(drain(t, s)[0], "too large"))
	mustAppend(t, s, 2, 3)
	mustClose(t, s)
	entries, err := os.ReadDir(path)
	testkit.Must(t, err)
	names := []string{"."}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if len(names) < 6 {
		t.Errorf("only %v", names)
	}
	for _, name := range names {
		file := filepath.Join(path, name)
		want := os.FileMode(0o600)
		if name == "." {
			want = 0o700
		}
		info, err := os.Stat(file)
		testkit.Must(t, err)
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, want %o", name, got, want)
		}
		testkit.Must(t, os.Chmod(file, want|0o040))
		if s, err := Open(t.Context(), Options{Dir: path}); !errors.Is(err, ErrInsecure) {
			t.Errorf("with %s open to the group: %v, want ErrInsecure", name, err)
			s.Close()
		}
		testkit.Must(t, os.Chmod(file, want))
	}
	mustOpen(t, Options{Dir: path})
}

// TestStrangers checks that files in the directory that are not the spool's do not stop the spool
// from working, and that they are reported.
func TestStrangers(t *testing.T) {
	t.Parallel()
	path := dir(t)
	s := mustOpen(t, Options{Dir: path})
	mustAppend(t, s, 0, 3)
	mustClose(t, s)
	strangers := []string{"foo.txt", ".DS_Store", "00000001-0000000000000001.seg.bak", "lock~"}
	for _, name := range strangers {
		testkit.Must(t, os.WriteFile(filepath.Join(path, name), []byte("notes"), 0o600))
		if err := os.Chmod(filepath.Join(path, name), 0o666); err != nil { // whatever the umask
			t.Fatal(err)
		}
	}
	testkit.Must(t, os.Mkdir(filepath.Join(path, "lost+found"), 0o755))
	if err := os.Symlink("/nowhere", filepath.Join(path, "link")); err != nil { // its mode is 0777
		t.Log(err)
	} else {
		strangers = append(strangers, "link")
	}
	s = mustOpen(t, Options{Dir: path})
	wantNumbered(t, drain(t, s), 0, 3)
	mustAppend(t, s, 3, 5)
	mustClose(t, s)
	for what, look := range map[string]func(string) (Report, error){"Verify": Verify, "Check": Check} {
		r, err := look(path)
		text := strings.Join(r.Problems, "\n")
		if err != nil || len(r.Problems) != len(strangers)+1 {
			t.Errorf("%s finds %q, %v; want the %d strangers", what, r.Problems, err, len(strangers)+1)
		}
		for _, name := range append(strangers, "lost+found") {
			if !strings.Contains(text, fmt.Sprintf("%q", name)) {
				t.Errorf("%s does not name %s: %s", what, name, text)
			}
		}
	}
}

func TestSubject(t *testing.T) {
	t.Parallel()
	path := dir(t)
	s := mustOpen(t, Options{Dir: path, Subject: "ada"})
	mustAppend(t, s, 0, 1)
	mustClose(t, s)
	if s, err := Open(t.Context(), Options{Dir: path, Subject: "eve"}); !errors.Is(err, ErrSubject) {
		t.Errorf("Open by another subject: %v, want ErrSubject", err)
		s.Close()
	}
	s = mustOpen(t, Options{Dir: path, Subject: "ada"})
	ackAll(t, s, drain(t, s))
	mustClose(t, s)
	s = mustOpen(t, Options{Dir: path, Subject: "eve"}) // nothing of ada's is left
	mustAppend(t, s, 1, 2)
	mustClose(t, s)
	if _, err := Open(t.Context(), Options{Dir: path, Subject: "ada"}); !errors.Is(err, ErrSubject) {
		t.Errorf("Open by another subject: %v, want ErrSubject", err)
	}
}

// TestUnbound: events that were logged before their identity was known are taken over by the
// identity to which they turn out to belong, and come before the events that follow.
func TestUnbound(t *testing.T) {
	t.Parallel()
	path := dir(t)
	s := mustOpen(t, Options{Dir: path, Subject: Unbound + "1f3a"})
	mustAppend(t, s, 0, 3)
	mustClose(t, s)
	same := func(subject string) bool { return subject == Unbound+"1f3a" }
	if _, err := Open(t.Context(), Options{Dir: path, Subject: "eve"}); !errors.Is(err, ErrSubject) {
		t.Errorf("Open by somebody: %v, want ErrSubject", err)
	}
	if _, err := Open(t.Context(), Options{Dir: path, Subject: "eve", Same: func(string) bool { return false }}); !errors.Is(err, ErrSubject) {
		t.Errorf("Open by somebody else: %v, want ErrSubject", err)
	}
	if info, err := Inspect(path); err != nil || info.Events != 3 || info.Subject != Unbound+"1f3a" {
		t.Errorf("Inspect = %+v, %v, want 3 events, as they were", info, err)
	}
	s = mustOpen(t, Options{Dir: path, Subject: "ada", Same: same})
	mustAppend(t, s, 3, 5)
	if got := drain(t, s); len(got) != 5 {
		t.Errorf("%d events are read, want 5", len(got))
	}
	mustClose(t, s)
	if _, err := Open(t.Context(), Options{Dir: path, Subject: Unbound + "1f3a"}); !errors.Is(err, ErrSubject) {
		t.Errorf("Open by the credential alone, when the owner is known: %v, want ErrSubject", err)
	}
	s = mustOpen(t, Options{Dir: path, Subject: "ada", Same: same})
	if got := drain(t, s); len(got) != 5 || got[0].ID != "0" || got[4].ID != "4" {
		t.Errorf("%d events are read, want 5, in order", len(got))
	}
}

// TestStatsTellPositions checks that a caller can tell from Stats when all events are done that
// were appended before a given moment.
func TestStatsTellPositions(t *testing.T) {
	t.Parallel()
	s := mustOpen(t, Options{Dir: dir(t)})
	mustAppend(t, s, 0, 3)
	was := s.Stats()
	records, err := s.Next(t.Context(), 10, 1<<20)
	if err != nil || len(records) != 3 {
		t.Fatalf("Next = %d entries, %v; want 3", len(records), err)
	}
	if was.First != records[0].Position || was.Next != records[2].Position+1 {
		t.Errorf("Stats are from %d to %d, want %d to %d", was.First, was.Next, records[0].Position, records[2].Position+1)
	}
	for i, want := range []uint64{was.First, was.First, was.Next} {
		testkit.Must(t, s.Ack(records[2-i].Position))
		if got := s.Stats().First; got != want {
			t.Errorf("after %d acknowledgements from the end, First is %d, want %d", i+1, got, want)
		}
	}
}

func TestNote(t *testing.T) {
	t.Parallel()
	s := mustOpen(t, Options{Dir: dir(t)})
	for _, want := range []string{"", "the cluster is away", "nobody is logged in", ""} {
		testkit.Must(t, s.Note(want))
		info, err := Inspect(s.opts.Dir)
		if err != nil || info.Note != want {
			t.Errorf("Inspect says %q, %v; want %q", info.Note, err, want)
		}
		if age := time.Since(info.Noted); want != "" && (age < 0 || age > time.Minute) || want == "" && !info.Noted.IsZero() {
			t.Errorf("the note %q is of %v", want, info.Noted)
		}
		if r, err := Verify(s.opts.Dir); err != nil || len(r.Problems) > 0 {
			t.Errorf("Verify finds %q, %v", r.Problems, err)
		}
	}
}

// TestNoteWithoutTime: earlier versions have written notes without a time, and a note may be cut off.
func TestNoteWithoutTime(t *testing.T) {
	t.Parallel()
	s := mustOpen(t, Options{Dir: dir(t)})
	long := strings.Repeat("x", 2*noteBytes)
	for written, want := range map[string]string{"away": "away", "away\n": "away\n", "away\n2026-11-2": "away\n2026-11-2", "": ""} {
		testkit.Must(t, os.WriteFile(filepath.Join(s.opts.Dir, noteName), []byte(written), 0o600))
		if info, err := Inspect(s.opts.Dir); err != nil || info.Note != want || !info.Noted.IsZero() {
			t.Errorf("the note %q reads %q, %v, %v", written, info.Note, info.Noted, err)
		}
	}
	testkit.Must(t, s.Note(long))
	if info, err := Inspect(s.opts.Dir); err != nil || info.Note != long[:noteBytes] || info.Noted.IsZero() {
		t.Errorf("a long note has %d bytes, %v, %v", len(info.Note), info.Noted, err)
	}
}

// TestReason: of several spools, the reason that counts is that of a process that runs, and otherwise the latest one.
func TestReason(t *testing.T) {
	t.Parallel()
	now := time.Now()
	host, boot, pid := hostname(), bootID(), os.Getpid()
	alive, gone := &Owner{Host: host, Boot: boot, PID: pid, Started: now.Add(-time.Hour)}, &Owner{Host: host, Boot: "another", PID: pid}
	pending := Stats{Events: 1}
	for _, tt := range []struct {
		name      string
		one, than Info
		want      bool
	}{
		{"later", Info{Stats: pending, Note: "new", Noted: now}, Info{Stats: pending, Note: "old", Noted: now.Add(-time.Minute)}, true},
		{"of an earlier version", Info{Stats: pending, Note: "new"}, Info{Stats: pending, Note: "old", Noted: now.Add(-time.Minute)}, false},
		{"none", Info{Stats: pending, Noted: now}, Info{Stats: pending, Note: "old", Noted: now.Add(-time.Minute)}, false},
		{"nothing pending", Info{Note: "new", Noted: now}, Info{Stats: pending, Note: "old", Noted: now.Add(-time.Minute)}, false},
		{"of a process that runs", Info{Stats: pending, Note: "at work", Noted: now.Add(-time.Minute), Owner: alive}, Info{Stats: pending, Note: "new", Noted: now}, true},
		{"of one that died", Info{Stats: pending, Note: "old", Noted: now.Add(-time.Minute), Owner: gone}, Info{Stats: pending, Note: "new", Noted: now}, false},
		{"from before the process", Info{Stats: pending, Note: "old", Noted: now.Add(-2 * time.Hour), Owner: alive}, Info{Stats: pending, Note: "old", Noted: now.Add(-3 * time.Hour)}, false},
	} {
		if got := tt.one.MoreRecent(&tt.than); got != tt.want {
			t.Errorf("%s: MoreRecent = %v, want %v", tt.name, got, tt.want)
		}
	}
}

// TestPending fails when an entry is left out, or an acknowledged one is not, or when it waits for
// more.
func TestPending(t *testing.T) {
	t.Parallel()
	s := mustOpen(t, Options{Dir: dir(t), SegmentBytes: 4 << 10})
	mustAppend(t, s, 0, 100)
	ackAll(t, s, drain(t, s)[:10])
	for range 2 {
		var got []Record
		for r, err := range s.Pending() {
			testkit.Must(t, err)
			got = append(got, r)
		}
		wantNumbered(t, got, 10, 100)
	}
	mustClose(t, s)
	for _, err := range s.Pending() {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("Pending after Close yields %v, want ErrClosed", err)
		}
	}
}

// TestDiscard checks that discarded events are not sent, even after a crash, and that no others are
// discarded.
func TestDiscard(t *testing.T) {
	t.Parallel()
	path := dir(t)
	opts := Options{Dir: path, SegmentBytes: 4 << 10}
	s := mustOpen(t, opts)
	mustAppend(t, s, 0, 100)
	var odd []uint64
	for _, r := range drain(t, s) {
		if r.Position%2 == 1 {
			odd = append(odd, r.Position)
		}
	}
	if err := s.Discard(s.Stats().Next); err == nil {
		t.Error("Discard of what was never read = nil")
	}
	testkit.Must(t, s.Discard(odd...))
	if st := s.Stats(); st.Events != 50 || st.Discarded != 50 || st.Dropped != 0 || st.Acknowledged != 0 {
		t.Errorf("Stats() = %+v, want 50 events discarded, none dropped, and 50 that wait", st)
	}
	// The state after a power cut: everything except what is never synced.
	crashed := dir(t)
	testkit.Must(t, os.CopyFS(crashed, os.DirFS(path)))
	for _, name := range []string{"acked", "lock", "owner"} {
		os.Remove(filepath.Join(crashed, name))
	}
	testkit.Must(t, filepath.WalkDir(crashed, func(name string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			err = os.Chmod(name, 0o600)
		}
		return err
	}))
	testkit.Must(t, os.Chmod(crashed, 0o700))
	mustClose(t, s)
	if err := s.Discard(odd...); !errors.Is(err, ErrClosed) {
		t.Errorf("Discard after Close = %v, want ErrClosed", err)
	}
	for _, path := range []string{path, crashed} {
		opts.Dir = path
		s := mustOpen(t, opts)
		if st := s.Stats(); st.Discarded != 50 || st.Dropped != 0 {
			t.Errorf("after opening again Stats() = %+v, want 50 discarded and none dropped", st)
		}
		left := drain(t, s)
		if len(left) != 50 {
			t.Fatalf("%d events wait, want 50", len(left))
		}
		for _, r := range left {
			if r.Position%2 == 1 {
				t.Errorf("event %s was discarded, and waits", r.ID)
			}
		}
	}
}

// TestDiscardLeavesNoSieve checks that Discard fails if the cursor cannot store the remaining
// ranges.
func TestDiscardLeavesNoSieve(t *testing.T) {
	t.Parallel()
	s := mustOpen(t, Options{Dir: dir(t)})
	entries := make([]Entry, 2*maxHoles+2)
	for i := range entries {
		entries[i] = Entry{Topic: "t", ID: "x"}
	}
	for from := 0; from < len(entries); from += 4096 {
		testkit.Must(t, s.Append(t.Context(), entries[from:min(from+4096, len(entries))]...))
	}
	var even []uint64
	for _, r := range drain(t, s) {
		if r.Position%2 == 0 {
			even = append(even, r.Position)
		}
	}
	if err := s.Discard(even...); !errors.Is(err, ErrHoles) || s.Stats().Discarded != 0 {
		t.Errorf("Discard of every second event = %v, %d discarded; want ErrHoles and none", err, s.Stats().Discarded)
	}
	if err := s.Discard(even[:maxHoles-1]...); err != nil {
		t.Errorf("Discard of as many as can be = %v", err)
	}
}

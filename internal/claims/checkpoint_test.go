package claims

import (
	"bytes"
	"crypto/sha256"
	"encoding/gob"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"pgregory.net/rapid"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/disk/disktest"
	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// someCheckpoints returns a checkpoint folder on a file system. This process is the one that writes
// it.
func someCheckpoints(t interface{ Fatal(...any) }, fsys disk.FS) *checkpoints {
	if err := fsys.Make(); err != nil {
		t.Fatal(err)
	}
	lock, err := fsys.Lock(checkpointLock)
	if err != nil {
		t.Fatal(err)
	}
	return &checkpoints{fsys, lock}
}

var aLedger = kafka.TopicID{1, 2, 3}

// checkpointOf returns the checkpoint of a history.
func checkpointOf(records []record) checkpoint {
	return checkpoint{state: replay(records).clone(), topic: aLedger, next: int64(len(records)), record: sha256.Sum256([]byte(fmt.Sprint(len(records)))), skipped: 3}
}

// TestCheckpointIsTheLedger: a state that is written, read back and continued equals the state of
// the whole history.
func TestCheckpointIsTheLedger(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var records []record
		now := time.Unix(0, 0).UTC()
		for place := range rapid.IntRange(1, 80).Draw(t, "records") {
			records = append(records, aRecord(t, place, now))
			now = records[place].Time
		}
		cut := rapid.IntRange(1, len(records)).Draw(t, "cut")
		c := someCheckpoints(t, disk.Memory())
		want := checkpointOf(records[:cut])
		if err := c.write(want); err != nil {
			t.Fatal(err)
		}
		got, err := c.read(aLedger)
		if err != nil {
			t.Fatal(err)
		}
		if got.next != want.next || got.record != want.record || got.skipped != want.skipped {
			t.Fatalf("the checkpoint is up to %d, %x, %d skipped; want %d, %x, %d", got.next, got.record, got.skipped, want.next, want.record, want.skipped)
		}
		for i, r := range records[cut:] {
			got.state.add(int64(cut+i), r)
		}
		if whole := replay(records); !reflect.DeepEqual(got.state, whole) {
			t.Errorf("from a checkpoint at %d of %d records:\n%+v\nfrom all of them:\n%+v", cut, len(records), got.state, whole)
		}
	})
}

// someHistory is a fixed history of topics, keys and blocks.
func someHistory(n int) (records []record) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	for i := range n {
		r := record{Version: 1, Op: opClaim, ID: fmt.Sprint(i), Time: now.Add(time.Duration(i) * time.Second), By: ada, Topic: fmt.Sprint("t", i), Partitions: 1, RetentionMS: -1, Limit: n}
		switch i % 3 {
		case 1:
			r = record{Version: 2, Op: opIssueKey, ID: r.ID, Time: r.Time, By: ada, Key: newKeyID(), Name: r.Topic, Hash: keyHash{1}, Read: true, Limit: n}
		case 2:
			r = record{Version: 3, Op: opBlock, ID: r.ID, Time: r.Time, By: cleo, Subject: fmt.Sprint("s", i), Why: "x"}
		}
		records = append(records, r)
	}
	return records
}

// TestDamagedCheckpoint: however the file is damaged, it is either read as it was written or not
// used.
func TestDamagedCheckpoint(t *testing.T) {
	fsys := disk.Memory()
	c := someCheckpoints(t, fsys)
	want := checkpointOf(someHistory(20))
	testkit.Must(t, c.write(want))
	good, err := disk.ReadFile(fsys, checkpointFile, 1<<20)
	testkit.Must(t, err)
	put := func(content []byte) error {
		t.Helper()
		testkit.Must(t, disk.Replace(fsys, checkpointFile, content, true))
		_, err := c.read(aLedger)
		return err
	}
	testkit.Must(t, put(good))
	if _, err := c.read(kafka.TopicID{9}); err == nil || !strings.Contains(err.Error(), "another ledger") {
		t.Errorf("read for another ledger = %v", err)
	}
	for n := range good { // torn
		if put(good[:n]) == nil {
			t.Errorf("read of the first %d bytes of %d = nil", n, len(good))
		}
	}
	for n := range good {
		bad := bytes.Clone(good)
		bad[n] ^= 1
		if put(bad) == nil {
			t.Errorf("read with byte %d of %d changed = nil", n, len(good))
		}
	}
	if put(append(bytes.Clone(good), good...)) == nil {
		t.Error("read of two in one = nil")
	}
	for _, format := range []int{2, 9} { // 2 was before topics could be shared
		err := put(withHeader(t, good, func(h *checkpointHeader) { h.Format = format }))
		if err == nil || !strings.Contains(err.Error(), fmt.Sprint("format ", format)) {
			t.Errorf("read of format %d = %v", format, err)
		}
	}
}

// withHeader returns a checkpoint with another header and a matching checksum.
func withHeader(t *testing.T, content []byte, edit func(*checkpointHeader)) []byte {
	t.Helper()
	in := gob.NewDecoder(bytes.NewReader(content[:len(content)-sha256.Size]))
	var body bytes.Buffer
	out := gob.NewEncoder(&body)
	var header checkpointHeader
	testkit.Must(t, in.Decode(&header))
	edit(&header)
	testkit.Must(t, out.Encode(header))
	for range header.Entries {
		var e checkpointEntry
		testkit.Must(t, in.Decode(&e))
		testkit.Must(t, out.Encode(e))
	}
	sum := sha256.Sum256(body.Bytes())
	return append(body.Bytes(), sum[:]...)
}

// TestCheckpointCrash: a power cut or a kill at any time leaves a complete checkpoint, either the
// old one or the new one.
func TestCheckpointCrash(t *testing.T) {
	history := someHistory(12)
	_, err := disktest.Crash(testkit.Scaled(t, "LEDGER_CRASH_STATES", 2000), func(seed uint64, counted *atomic.Int64) error {
		rng := rand.New(rand.NewPCG(seed, 0))
		model := disktest.New()
		var left []*disktest.Model
		var floors []int // the lowest offset that each state may have
		written := 0
		var failed error
		if err := errors.Join(model.Make(), model.SyncParent()); err != nil {
			return err
		}
		c := &checkpoints{fs: model}
		model.Observe(func(call, name string, now disktest.Moment) {
			if disktest.Changes(call) {
				left, floors = append(left, now.Cut(rng), now.Kill()), append(floors, written, written)
			}
		})
		const versions = 4
		for v := 1; v <= versions; v++ {
			if err := c.write(checkpointOf(history[:3*v])); err != nil {
				return err
			}
			written = v
		}
		model.Observe(nil)
		for i, m := range left {
			got, err := (&checkpoints{fs: m}).read(aLedger)
			switch {
			case floors[i] == 0 && errors.Is(err, fs.ErrNotExist):
			case err != nil:
				failed = fmt.Errorf("after %d checkpoints a crash leaves one that cannot be read: %w", floors[i], err)
			case got.next != int64(3*floors[i]) && got.next != int64(3*(floors[i]+1)):
				failed = fmt.Errorf("after %d checkpoints a crash leaves one of %d records", floors[i], got.next)
			case !reflect.DeepEqual(got.state, replay(history[:got.next])):
				failed = fmt.Errorf("after %d checkpoints a crash leaves one with another state", floors[i])
			}
			if failed != nil {
				return failed
			}
			counted.Add(1)
		}
		return nil
	})
	testkit.Must(t, err)
}

// fetched counts the records that clients have read.
type fetched struct{ records atomic.Int64 }

func (f *fetched) OnFetchRecordBuffered(*kgo.Record) { f.records.Add(1) }

// TestStartFromCheckpoint: a start reads only records that are newer than the checkpoint. It reads
// all records if the checkpoint is of another ledger, or ahead of this one.
func TestStartFromCheckpoint(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "ledger")
	c := newCluster(t)
	var told strings.Builder
	open := func(c *testCluster) (s *Service, read int64) {
		t.Helper()
		var n fetched
		told.Reset()
		s = c.open(operatedBy(cleo), func(cfg *Config) {
			cfg.Dir, cfg.Admin = dir, append(cfg.Admin, kgo.WithHooks(&n))
			cfg.Diagnostics = slog.New(slog.NewTextHandler(&told, nil))
		})
		return s, n.records.Load()
	}
	s, _ := open(c)
	var topics []string
	for i := range 20 {
		topics = append(topics, fmt.Sprint("t", i))
	}
	mustClaim(t, s, topics...)
	key, err := s.IssueKey(t.Context(), ada, diaspora.AccessKeyRequest{Name: "k", Read: true, Write: true})
	testkit.Must(t, err)
	testkit.Must(t, s.Close())
	file := filepath.Join(dir, checkpointFile)
	if info, err := os.Stat(file); err != nil || info.Mode() != fs.FileMode(0o600) {
		t.Errorf("the checkpoint: %v, %v, want mode 0600", info, err)
	}
	plain := c.open() // appends records that the checkpoint does not have
	mustClaim(t, plain, "newer")
	if _, err := plain.AuthenticateKey(t.Context(), key.ID, key.Secret); err != nil {
		t.Fatal(err)
	}
	plain.Close()
	check := func(what string, s *Service, read, least, most int64) {
		t.Helper()
		if read < least || read > most {
			t.Errorf("%s: the start read %d records, want %d to %d", what, read, least, most)
		}
		if got, err := s.Topics(t.Context(), ada); err != nil || len(got.Topics) != 21 {
			t.Errorf("%s: Topics = %d of them, %v, want 21", what, len(got.Topics), err)
		}
		if _, err := s.AuthenticateKey(t.Context(), key.ID, key.Secret); err != nil {
			t.Errorf("%s: the key: %v", what, err)
		}
		var whole, from *state
		all := c.open()
		testkit.Must(t, errors.Join(s.Ready(t.Context()), all.Ready(t.Context())))
		s.ledger.read(func(st *state) { from = st.clone() })
		all.ledger.read(func(st *state) { whole = st.clone() })
		if !reflect.DeepEqual(from, whole) {
			t.Errorf("%s: the state is\n%+v\nand without a checkpoint\n%+v", what, from, whole)
		}
		all.Close()
	}
	s, read := open(c)
	check("from a checkpoint", s, read, 1, 10)
	beside, read := open(c) // another process with the same folder
	check("a second process", beside, read, 1, 10)
	beside.Close()
	s.Close()
	good := testkit.ReadFile(t, file)
	for what, bad := range map[string][]byte{
		"another record": withHeader(t, good, func(h *checkpointHeader) { h.Record[0] ^= 1 }),
		"ahead":          withHeader(t, good, func(h *checkpointHeader) { h.Next += 900 }),
		"torn":           good[:len(good)/2],
		"empty":          {},
	} {
		testkit.Must(t, os.WriteFile(file, bad, 0o600))
		s, read := open(c)
		check(what, s, read, 20, 40)
		if !strings.Contains(told.String(), "cannot use the ledger's checkpoint") {
			t.Errorf("%s: nothing is told: %s", what, told.String())
		}
		s.Close()
	}
	// Nothing is wrong then.
	const harmless = `level=INFO msg="the checkpoint belongs to another ledger; reading the whole ledger, which only makes this start a little slower"`
	other := newCluster(t)
	s, _ = open(other)
	if got, err := s.Topics(t.Context(), ada); err != nil || len(got.Topics) != 0 || !strings.Contains(told.String(), harmless) {
		t.Errorf("on another cluster: Topics = %d of them, %v; told %s", len(got.Topics), err, told.String())
	}
	s.Close()
	// The ledger was deleted and made again on the same cluster.
	s, _ = open(c)
	s.Close()
	testkit.Must(t, c.fake.DeleteTopic(LedgerTopic))
	s, _ = open(c)
	if got, err := s.Topics(t.Context(), ada); err != nil || len(got.Topics) != 0 || !strings.Contains(told.String(), harmless) {
		t.Errorf("with a new ledger: Topics = %d of them, %v; told %s", len(got.Topics), err, told.String())
	}
}

// TestNoFolderForCheckpoints: a folder that cannot be used is logged, and has no other consequence.
func TestNoFolderForCheckpoints(t *testing.T) {
	c := newCluster(t)
	file := filepath.Join(t.TempDir(), "file")
	testkit.Must(t, os.WriteFile(file, nil, 0o600))
	var told strings.Builder
	s := c.open(func(cfg *Config) { cfg.Dir, cfg.Diagnostics = file, slog.New(slog.NewTextHandler(&told, nil)) })
	mustClaim(t, s, "weather")
	if !strings.Contains(told.String(), "cannot keep checkpoints of the ledger") {
		t.Errorf("nothing is told: %s", told.String())
	}
}

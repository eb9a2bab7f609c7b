package journal

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/disk/disktest"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// states returns the state after each of the calls.
func states(calls int) (all []map[string]string, entries [][]Entry) {
	state := map[string]string{}
	all = append(all, maps.Clone(state))
	for n := range calls {
		key, value := fmt.Sprint("key", n*3%7), strings.Repeat(fmt.Sprint("value", n), 1+n%5)
		state[key] = value
		entry := set(key, value)
		if n%6 == 5 {
			delete(state, key)
			entry.Value = nil
		}
		entries = append(entries, []Entry{entry})
		all = append(all, maps.Clone(state))
	}
	return all, entries
}

// damageable returns a closed journal with a snapshot and two segments, and its state after each
// call.
func damageable(t testing.TB, sync bool) (*disktest.Model, []map[string]string) {
	t.Helper()
	fsys := disktest.New()
	all, entries := states(40)
	j, _ := mustOpen(t, Options{FS: fsys, Sync: sync, CompactBytes: 1 << 30})
	for n, e := range entries {
		mustAppend(t, j, e...)
		switch n {
		case 15:
			j.compact()
		case 30:
			if _, err := j.rotate(); err != nil {
				t.Fatal(err)
			}
		}
	}
	mustClose(t, j)
	if names := fsys.Names(); len(names) != 3 {
		t.Fatalf("files %v, want a snapshot and two segments", names)
	}
	return fsys, all
}

// frames returns the offsets of a file's frames, and its end.
func frames(t testing.TB, fsys *disktest.Model, name string, k kind, number uint64) (offsets []int64) {
	t.Helper()
	f, err := fsys.Open(name, false)
	testkit.Must(t, err)
	defer f.Close()
	seed, err := readHeader(f, k, number)
	testkit.Must(t, err)
	size := int64(len(fsys.Content(name)))
	scan := newScanner(f, seed, size)
	for {
		offsets = append(offsets, scan.at)
		if _, _, err := scan.next(); err == io.EOF {
			return offsets
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// TestEveryBitFlip flips a bit of each byte of a journal in which everything was synced. The flip
// must be detected and reported at the right position. The exception is the last frame, where a
// flip looks like an incomplete write.
func TestEveryBitFlip(t *testing.T) {
	t.Parallel()
	fsys, all := damageable(t, true)
	names := fsys.Names()
	last := names[2]
	ends := frames(t, fsys, last, logKind, 3)
	torn := ends[len(ends)-2]
	for _, name := range names {
		for at := range fsys.Content(name) {
			after := fsys.Kill()
			after.Damage(name, func(b []byte) []byte { b[at] ^= 1 << (at % 8); return b })
			j, state, err := openState(Options{FS: after})
			if name == last && int64(at) >= torn {
				if err != nil || !maps.Equal(state, all[len(all)-2]) {
					t.Errorf("byte %d of %s: %v, %v, want the state before the last call", at, name, state, err)
					continue
				}
				mustClose(t, j)
				continue
			}
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrVersion) || !strings.Contains(fmt.Sprint(err), name) {
				t.Errorf("byte %d of %s: %v, want ErrDamaged with its name", at, name, err)
			}
			if changed := after.Content(name); len(changed) != len(fsys.Content(name)) {
				t.Errorf("byte %d of %s: the file was changed", at, name)
			}
		}
	}
}

// TestEveryTruncation truncates each file to each length. If it is the last segment, the journal
// has a prefix of the calls and accepts new ones. Anything else is damage.
func TestEveryTruncation(t *testing.T) {
	t.Parallel()
	for _, synced := range []bool{false, true} {
		fsys, all := damageable(t, synced)
		names := fsys.Names()
		last := names[2]
		ends := frames(t, fsys, last, logKind, 3)
		for _, name := range names {
			for size := range fsys.Content(name) {
				after := fsys.Kill()
				after.Damage(name, func(b []byte) []byte { return b[:size] })
				o := Options{FS: after, Sync: synced}
				j, state, err := openState(o)
				what := fmt.Sprintf("%s cut to %d, sync %v", name, size, synced)
				if name != last {
					// Without syncs, a power cut may have torn the second segment.
					if !synced && err == nil && name == names[0] {
						if !slices.ContainsFunc(all, func(s map[string]string) bool { return maps.Equal(s, state) }) {
							t.Errorf("%s: %v was never the state", what, state)
						}
						j.Close()
						continue
					}
					if !errors.Is(err, ErrDamaged) {
						t.Errorf("%s: %v, want ErrDamaged", what, err)
					}
					continue
				}
				if err != nil {
					t.Errorf("%s: %v", what, err)
					continue
				}
				whole := 31 // calls before the last segment
				for _, end := range ends[1:] {
					if end <= int64(size) {
						whole++
					}
				}
				if !maps.Equal(state, all[whole]) {
					t.Errorf("%s: %v, want %v", what, state, all[whole])
				}
				mustAppend(t, j, set("more", "value"))
				mustClose(t, j)
				j, state = mustOpen(t, o)
				want := maps.Clone(all[whole])
				want["more"] = "value"
				if !maps.Equal(state, want) {
					t.Errorf("%s, and opened again: %v, want %v", what, state, want)
				}
				mustClose(t, j)
			}
		}
	}
}

// TestMissingFiles removes each file. A missing last segment cannot be detected, because it may not
// have been created.
func TestMissingFiles(t *testing.T) {
	t.Parallel()
	fsys, _ := damageable(t, true)
	for i, name := range fsys.Names() {
		after := fsys.Kill()
		testkit.Must(t, after.Remove(name))
		_, _, err := openState(Options{FS: after})
		if i != 2 && !errors.Is(err, ErrDamaged) {
			t.Errorf("without %s: %v, want ErrDamaged", name, err)
		}
	}
}

// TestForeignBytes has a segment with the bytes of another segment, as a file system may leave it.
func TestForeignBytes(t *testing.T) {
	t.Parallel()
	fsys, _ := damageable(t, true)
	names := fsys.Names()
	other := fsys.Content(names[0])
	fsys.Damage(names[2], func(b []byte) []byte { return slices.Concat(b[:headerBytes], other[headerBytes:]) })
	j, state, err := openState(Options{FS: fsys})
	if err != nil {
		t.Fatal(err) // none of its frames is valid here, so it looks torn
	}
	defer j.Close()
	all, _ := states(40)
	if !maps.Equal(state, all[31]) {
		t.Errorf("loaded %v, want the state before the last segment", state)
	}
}

// TestLaterVersion requires that files of a later version are not changed.
func TestLaterVersion(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"00000000000000000003.log", "00000000000000000002.snapshot"} {
		fsys, _ := damageable(t, true)
		fsys.Damage(name, func(b []byte) []byte {
			b[8]++
			le.PutUint32(b[headerBytes-4:], checksum(0, b[:headerBytes-4]))
			return b
		})
		if _, _, err := openState(Options{FS: fsys}); !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v, want ErrVersion", name, err)
		}
	}
}

// TestTornBeforeUnsynced has a power cut remove a frame of an unsynced log but keep those after it.
// These are removed as well, also in the next segment.
func TestTornBeforeUnsynced(t *testing.T) {
	t.Parallel()
	fsys := disktest.New()
	all, entries := states(20)
	o := Options{FS: fsys}
	j, _ := mustOpen(t, o)
	for n, e := range entries {
		mustAppend(t, j, e...)
		if n == 10 {
			if _, err := j.rotate(); err != nil {
				t.Fatal(err)
			}
		}
	}
	ends := frames(t, fsys, "00000000000000000001.log", logKind, 1)
	left := fsys.Kill()
	// Only the first frame has the flag that everything before it was synced; any other may be
	// torn.
	left.Damage("00000000000000000001.log", func(b []byte) []byte { b[ends[5]] ^= 1; return b })
	o.FS = left
	for range 2 {
		j, state := mustOpen(t, o)
		if !maps.Equal(state, all[5]) {
			t.Errorf("loaded %v, want %v", state, all[5])
		}
		mustClose(t, j)
	}
	if names := left.Names(); len(names) != 2 || len(left.Content(names[1])) != headerBytes {
		t.Errorf("files %v, want the torn segment and an empty one", names)
	}
}

// FuzzLog opens a journal whose log ends in arbitrary bytes that are not frames of it. The bytes
// must not be loaded, and the journal must accept new entries.
func FuzzLog(f *testing.F) {
	all, entries := states(6)
	f.Add([]byte{}, false)
	f.Add(make([]byte, 100), true)
	f.Add([]byte(strings.Repeat("\xff", frameHeaderBytes)), false)
	fsys := disktest.New()
	j, _ := mustOpen(f, Options{FS: fsys})
	for _, e := range entries {
		mustAppend(f, j, e...)
	}
	mustClose(f, j)
	const name = "00000000000000000001.log"
	good := fsys.Content(name)
	f.Add(good, false)
	f.Add(good[headerBytes:], true)
	f.Fuzz(func(t *testing.T, tail []byte, alone bool) {
		content := slices.Concat(good, tail)
		want := all[6]
		if alone {
			content, want = slices.Concat(good[:headerBytes], tail), all[0]
			if rest := good[headerBytes:]; len(tail) >= frameHeaderBytes && string(tail[:20]) == string(rest[:20]) {
				t.Skip("these may be frames of it")
			}
		}
		o := Options{FS: disk.Memory()}
		testkit.Must(t, o.FS.Make())
		testkit.Must(t, disk.Replace(o.FS, name, content, false))
		j, state, err := openState(o)
		if alone && errors.Is(err, ErrDamaged) {
			return // a valid frame at its position
		}
		testkit.Must(t, err)
		if !maps.Equal(state, want) {
			t.Fatalf("loaded %v, want %v", state, want)
		}
		mustAppend(t, j, set("more", "value"))
		mustClose(t, j)
		_, again := mustOpen(t, o)
		if again["more"] != "value" || len(again) != len(want)+1 {
			t.Fatalf("loaded %v, want %v and more", again, want)
		}
	})
}

// FuzzFrames parses arbitrary bytes as frames with correct checksums, and as entries. What was
// parsed is encoded to the same bytes.
func FuzzFrames(f *testing.F) {
	f.Add([]byte{}, uint32(0), uint64(1))
	f.Add(appendEntry(nil, set("key", "value")), uint32(flagSettled), uint64(7))
	f.Add(appendEntry(appendEntry(nil, Entry{Key: []byte("key")}), set("", "")), uint32(flagEnd), uint64(1<<63))
	f.Add([]byte{0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01, 0}, uint32(8), uint64(0))
	f.Fuzz(func(t *testing.T, payload []byte, flags uint32, sequence uint64) {
		b := slices.Concat(make([]byte, frameHeaderBytes), payload)
		seal(b, 5, 77, flags, sequence)
		found, ok := parseFrame(b, 5, 77)
		if want := len(payload) > 0 && flags&^knownFlags == 0; ok != want {
			t.Fatalf("parseFrame: %v, want %v", ok, want)
		}
		if ok && (found.length != len(payload) || found.flags != flags || found.sequence != sequence || found.payload != checksum(0, payload)) {
			t.Fatalf("parseFrame: %+v", found)
		}
		if _, ok := parseFrame(b, 5, 78); ok {
			t.Fatal("a frame passes at another offset")
		}
		parseFrame(slices.Concat(payload, b)[:frameHeaderBytes], 5, 77)
		parseHeader(payload, logKind, sequence)
		parseEnd(payload)
		var again []byte
		n := 0
		if err := parseEntries(payload, func(e Entry) error {
			n++
			again = appendEntry(again, e)
			return nil
		}); err != nil {
			return
		}
		var twice []byte
		if err := parseEntries(again, func(e Entry) error {
			n--
			twice = appendEntry(twice, e)
			return nil
		}); err != nil || n != 0 || string(again) != string(twice) {
			t.Fatalf("entries changed: %x, %x, %v", again, twice, err)
		}
	})
}

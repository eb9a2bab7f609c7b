package disktest_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/disk/disktest"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// outcomes returns the results of many power cuts, as text.
func outcomes(fsys *disktest.Model, look func(*disktest.Model) string) map[string]int {
	rng := rand.New(rand.NewPCG(1, 2))
	all := map[string]int{}
	for range 500 {
		all[look(fsys.Cut(rng))]++
	}
	return all
}

func want(t testing.TB, got map[string]int, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if got[text] == 0 {
			t.Errorf("never %q: %v", text, got)
		}
	}
	if len(got) != len(texts) {
		t.Errorf("%v, want only %q", got, texts)
	}
}

func list(fsys *disktest.Model) string { return strings.Join(fsys.Names(), " ") }

// TestDirectories: a directory is an entry of its parent. Until that is synced, a power cut may
// lose the directory and everything in it.
func TestDirectories(t *testing.T) {
	t.Parallel()
	fsys := disktest.New()
	testkit.Must(t, fsys.Make())
	sub := fsys.Sub("sub")
	testkit.Must(t, sub.Make())
	testkit.Must(t, disk.Replace(sub, "file", []byte("content"), true)) // syncs the file and the directory
	look := func(left *disktest.Model) string {
		return list(left) + "/" + list(left.Sub("sub").(*disktest.Model)) + "/" + string(left.Sub("sub").(*disktest.Model).Content("file"))
	}
	whole := "sub/file/content"
	want(t, outcomes(fsys, look), "//", whole)
	testkit.Must(t, fsys.SyncParent())
	want(t, outcomes(fsys, look), "//", whole)
	testkit.Must(t, sub.SyncParent())
	want(t, outcomes(fsys, look), whole)
	testkit.Must(t, disk.RemoveAll(fsys, "sub"))
	want(t, outcomes(fsys, look), "//", "sub//", whole)
	testkit.Must(t, fsys.Sync())
	want(t, outcomes(fsys, look), "//")
}

// TestNestedMake: Make makes the parents durable, but not the directory itself.
func TestNestedMake(t *testing.T) {
	t.Parallel()
	fsys := disktest.New()
	testkit.Must(t, fsys.Sub("a").Sub("b").Make())
	want(t, outcomes(fsys, func(left *disktest.Model) string {
		return list(left) + "/" + list(left.Sub("a").(*disktest.Model))
	}), "a/", "a/b")
}

// TestFiles checks what a power cut leaves of a file.
func TestFiles(t *testing.T) {
	t.Parallel()
	fsys := disktest.New()
	testkit.Must(t, fsys.Make())
	testkit.Must(t, fsys.SyncParent())
	testkit.Must(t, disk.Replace(fsys, "other", []byte("zzzzzzzzz"), true))
	f, err := fsys.Create("file")
	testkit.Must(t, err)
	testkit.Must(t, fsys.Sync())
	content := func(left *disktest.Model) string { return string(left.Content("file")) }
	_, err = f.WriteAt([]byte("old"), 0)
	testkit.Must(t, err)
	testkit.Must(t, f.Sync())
	want(t, outcomes(fsys, content), "old")
	_, err = f.WriteAt([]byte("new"), 0)
	testkit.Must(t, err)
	want(t, outcomes(fsys, content), "old", "new")
	testkit.Must(t, f.Truncate(1))
	got := outcomes(fsys, content)
	want(t, got, "old", "new", "o", "n")
	testkit.Must(t, f.Sync())
	want(t, outcomes(fsys, content), "n")
	if killed := fsys.Kill(); string(killed.Content("file")) != "n" || list(killed) != "file other" {
		t.Errorf("after a kill: %q in %s", killed.Content("file"), list(killed))
	}
	// Either of the two sectors may be there. If the first one is not, its place holds what was on
	// the disk before.
	_, err = f.WriteAt(bytes.Repeat([]byte("s"), 1024), 0)
	testkit.Must(t, err)
	kinds := map[string]bool{}
	for text := range outcomes(fsys, content) {
		kinds[fmt.Sprint(len(text) > 512, strings.HasPrefix(text, "s"), strings.HasSuffix(text, "s"), strings.Contains(text, "zz"))] = true
	}
	if len(kinds) < 5 {
		t.Errorf("only these mixtures: %v", kinds)
	}
}

// TestSeedsRepeat checks that a seed always gives the same power cut.
func TestSeedsRepeat(t *testing.T) {
	t.Parallel()
	fsys := disktest.New()
	testkit.Must(t, fsys.Make())
	for n := range 20 {
		testkit.Must(t, disk.Replace(fsys, fmt.Sprint(n), bytes.Repeat([]byte{byte(n)}, 700), n%3 == 0))
	}
	look := func(seed uint64) string {
		left := fsys.Cut(rand.New(rand.NewPCG(seed, 0)))
		all := list(left)
		for _, name := range left.Names() {
			all += string(left.Content(name))
		}
		return all
	}
	for seed := range uint64(50) {
		if first := look(seed); first != look(seed) {
			t.Fatalf("seed %d gives two results", seed)
		}
	}
}

// TestFaults checks calls that are made to fail.
func TestFaults(t *testing.T) {
	t.Parallel()
	fsys := disktest.New()
	testkit.Must(t, fsys.Make())
	testkit.Must(t, fsys.SyncParent())
	f, err := fsys.Create("file")
	testkit.Must(t, err)
	testkit.Must(t, fsys.Sync())
	fail := func(on string, err error) {
		fsys.Fault(func(call, _ string) error {
			if call == on {
				return err
			}
			return nil
		})
	}
	fail("write", io.ErrShortWrite)
	if n, err := f.WriteAt([]byte("abcd"), 0); n != 2 || err != io.ErrShortWrite {
		t.Errorf("WriteAt: %d, %v, want half of it", n, err)
	}
	fail("sync", syscall.EIO)
	if err := f.Sync(); err != syscall.EIO {
		t.Errorf("Sync: %v, want EIO", err)
	}
	fsys.Fault(nil)
	testkit.Must(t, f.Sync()) // too late
	content := func(left *disktest.Model) string { return string(left.Content("file")) }
	if got := outcomes(fsys, content); got[""] == 0 || got["ab"] > 0 && len(got) == 1 {
		t.Errorf("%v, want the bytes to be lost although the second sync succeeded", got)
	}
	fsys.Room(10)
	if n, err := f.WriteAt(make([]byte, 20), 0); n != 10 || !disk.Full(err) {
		t.Errorf("WriteAt: %d, %v, want the 10 bytes for which there is room", n, err)
	}
	testkit.Must(t, f.Close())
	if _, err := f.Size(); err == nil {
		t.Error("a closed file was used")
	}
}

// TestSkipSyncs lists the places that sync, and disables one of them.
func TestSkipSyncs(t *testing.T) {
	t.Parallel()
	run := func(skip string) (*disktest.Model, []string) {
		fsys := disktest.New()
		var sites []string
		fsys.SkipSyncs(func(site string) bool {
			sites = append(sites, site)
			return skip != "" && strings.HasPrefix(site, skip)
		})
		testkit.Must(t, fsys.Make())
		testkit.Must(t, fsys.SyncParent())
		testkit.Must(t, disk.Replace(fsys, "file", []byte("content"), true))
		return fsys, sites
	}
	fsys, sites := run("")
	if len(sites) != 3 || !strings.HasPrefix(sites[0], "disktest_test.TestSkipSyncs.") ||
		!strings.HasPrefix(sites[1], "disk.Replace (disk.go:") || !strings.Contains(sites[1], " for disktest_test.TestSkipSyncs.") || sites[1] == sites[2] {
		t.Errorf("sites %q", sites)
	}
	want(t, outcomes(fsys, list), "file")
	fsys, _ = run(sites[2][:strings.Index(sites[2], " for ")])
	if got := outcomes(fsys, list); got["file"] == 0 || got[""] == 0 {
		t.Errorf("%v, want the name to be lost at times", got)
	}
}

// TestObserve checks the state before each call.
func TestObserve(t *testing.T) {
	t.Parallel()
	fsys := disktest.New()
	var calls []string
	fsys.Observe(func(call, name string, now disktest.Moment) {
		if disktest.Changes(call) {
			calls = append(calls, call+" "+name+": "+list(now.Kill()))
		}
	})
	testkit.Must(t, fsys.Make())
	testkit.Must(t, fsys.Sub("sub").Make())
	testkit.Must(t, disk.Replace(fsys.Sub("sub"), "file", []byte("x"), true))
	testkit.Must(t, fsys.Sub("sub").Rename("file", "other"))
	got := []string{
		"make .: ", "make sub: ", "remove sub/file.tmp: sub", "create sub/file.tmp: sub", "write sub/file.tmp: sub",
		"sync sub/file.tmp: sub", "rename sub/file: sub", "syncdir sub: sub", "rename sub/other: sub",
	}
	if !slices.Equal(calls, got) {
		t.Errorf("calls %q, want %q", calls, got)
	}
	lock, err := fsys.Lock("lock")
	testkit.Must(t, err)
	if _, err := fsys.Lock("lock"); !errors.Is(err, disk.ErrInUse) {
		t.Errorf("Lock again: %v", err)
	}
	fsys.BreakLocks()
	if _, err := fsys.Lock("lock"); err != nil {
		t.Errorf("Lock after BreakLocks: %v", err)
	}
	testkit.Must(t, lock.Close()) // not the new one
	if _, err := fsys.Lock("lock"); !errors.Is(err, disk.ErrInUse) {
		t.Errorf("Lock after Close of a broken lock: %v", err)
	}
}

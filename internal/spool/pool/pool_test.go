package pool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/internal/spool"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// openSpool opens a spool of a pool, and appends some events.
func openSpool(t *testing.T, p Pool, n, events int) *spool.Spool {
	t.Helper()
	s, err := spool.Open(t.Context(), spool.Options{Dir: p.spool(n), Subject: "ada"})
	testkit.Must(t, err)
	t.Cleanup(func() { s.Close() })
	for i := range events {
		testkit.Must(t, s.Append(t.Context(), spool.Entry{Topic: "weather", ID: fmt.Sprint(i), Time: time.Now()}))
	}
	return s
}

func closeSpool(t *testing.T, s *spool.Spool) {
	t.Helper()
	testkit.Must(t, s.Close())
}

func numbers(dirs []string) (names []string) {
	for _, dir := range dirs {
		names = append(names, filepath.Base(dir))
	}
	return names
}

// TestTake checks that a process does not get a spool that another one uses, opens all unused spools with
// pending events, and opens no other ones.
func TestTake(t *testing.T) {
	t.Parallel()
	p := New(t.TempDir(), "home", "")
	closeSpool(t, openSpool(t, p, 1, 0))
	openSpool(t, p, 2, 1) // stays open, as if another process used it
	closeSpool(t, openSpool(t, p, 3, 1))
	closeSpool(t, openSpool(t, p, 5, 1))
	closeSpool(t, openSpool(t, p, 7, 1))
	for _, c := range []struct {
		name    string
		fails   map[string]error // results of open, by the number of the spool
		opened  []string
		skipped int
		own     string
		err     error
	}{
		{"those with events that nobody has", nil, []string{"3", "5", "7"}, 0, "3", nil},
		{"not those of somebody else", map[string]error{"3": spool.ErrSubject}, []string{"5", "7"}, 1, "5", nil},
		{"an empty one", map[string]error{"3": spool.ErrInUse, "5": spool.ErrInUse, "7": spool.ErrSubject}, []string{"1"}, 1, "1", nil},
		{"a new one", map[string]error{"1": spool.ErrInUse, "3": spool.ErrInUse, "5": spool.ErrInUse, "7": spool.ErrInUse}, []string{"4"}, 0, "4", nil},
		{"no other after a failure", map[string]error{"3": fs.ErrPermission}, nil, 0, "", fs.ErrPermission},
		{"others after a failure of a further one", map[string]error{"5": fs.ErrPermission}, []string{"3", "7"}, 1, "3", nil},
	} {
		var opened []string
		skipped := 0
		own, err := p.Take(func(dir string) error {
			if err := c.fails[filepath.Base(dir)]; err != nil {
				return fmt.Errorf("open: %w", err)
			}
			s, err := spool.Open(t.Context(), spool.Options{Dir: dir, Subject: "ada"})
			if err == nil {
				opened = append(opened, filepath.Base(dir))
				defer s.Close()
			}
			return err
		}, func(error) { skipped++ })
		if !errors.Is(err, c.err) || own != "" && filepath.Base(own) != c.own || own == "" && c.own != "" || !slices.Equal(opened, c.opened) || skipped != c.skipped {
			t.Errorf("%s: Take = %q, %v with %v opened and %d skipped; want %q, %v, %v, %d", c.name, own, err, opened, skipped, c.own, c.err, c.opened, c.skipped)
		}
	}
	if _, err := p.Take(func(string) error { return spool.ErrInUse }, func(error) {}); !errors.Is(err, spool.ErrInUse) {
		t.Errorf("with all in use, Take returns %v, want ErrInUse", err)
	}
}

// TestTakeSentMeanwhile checks that Take does not create a spool again that another process has emptied and
// removed in the meantime, and goes on with the next one.
func TestTakeSentMeanwhile(t *testing.T) {
	t.Parallel()
	p := New(t.TempDir(), "home", "")
	closeSpool(t, openSpool(t, p, 1, 1))
	closeSpool(t, openSpool(t, p, 2, 1))
	closeSpool(t, openSpool(t, p, 3, 1))
	var opened []string
	if _, err := p.Take(func(dir string) error {
		opened = append(opened, dir)
		return os.RemoveAll(p.spool(2))
	}, func(err error) { t.Error(err) }); err != nil || !slices.Equal(numbers(opened), []string{"1", "3"}) {
		t.Errorf("Take opens %v (%v), want spools 1 and 3", opened, err)
	}
}

// TestTidy checks that Tidy removes empty spools, but not the first one, nor one that is in use or not empty.
func TestTidy(t *testing.T) {
	t.Parallel()
	p := New(t.TempDir(), "home", "")
	openSpool(t, p, 4, 0)
	for n, events := range map[int]int{1: 0, 2: 0, 3: 1, 10: 0} {
		closeSpool(t, openSpool(t, p, n, events))
	}
	p.Tidy(t.Context())
	spools, err := Spools(p, New(t.TempDir(), "none", ""))
	if err != nil || len(spools) != 3 || spools[0].Dir != p.spool(1) || spools[1].Dir != p.spool(3) || spools[2].Dir != p.spool(4) {
		t.Fatalf("Spools = %+v, %v, want 1, 3 and 4", spools, err)
	}
	if spools[1].Events != 1 || spools[1].Pool != p || spools[1].Err != nil {
		t.Errorf("Spools = %+v, want an event in the second", spools)
	}
}

// TestList checks that List finds all pools, and ignores a URL file that does not match the folder's name.
func TestList(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	if pools, err := List(state, nil); err != nil || pools != nil {
		t.Errorf("without a folder, List = %v, %v", pools, err)
	}
	take := func(p Pool) Pool {
		t.Helper()
		if _, err := p.Take(func(dir string) error { return os.MkdirAll(dir, 0o700) }, nil); err != nil {
			t.Fatal(err)
		}
		return p
	}
	named := take(New(state, "", "https://a.example.org"))
	profile := take(New(state, "home", ""))
	unnamed, unknown, lying := New(state, "", "https://b.example.org"), New(state, "", "https://c.example.org"), New(state, "", "https://d.example.org")
	for _, p := range []Pool{unnamed, unknown, lying} {
		testkit.Must(t, os.Mkdir(p.Dir, 0o700))
	}
	testkit.Must(t, os.WriteFile(filepath.Join(lying.Dir, "url"), []byte("https://e.example.org\n"), 0o600))
	unknown.URL, lying.URL = "", ""
	got, err := List(state, []string{"https://b.example.org/"})
	unnamed.URL += "/"
	if err != nil || len(got) != 5 {
		t.Fatalf("List = %v, %v, want five pools", got, err)
	}
	for _, want := range []Pool{named, profile, unnamed, unknown, lying} {
		if !slices.Contains(got, want) {
			t.Errorf("List = %+v, want %+v among them", got, want)
		}
	}
}

// TestTakeBesideAdopters checks that 64 processes each get a spool if 50 spools have pending events at the
// start, although the first process opens all of those.
func TestTakeBesideAdopters(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	p := New(state, "home", "")
	for n := range 50 {
		closeSpool(t, openSpool(t, p, n+1, 1))
	}
	inUse := map[string]bool{}
	for process := range 64 {
		_, err := p.Take(func(dir string) error {
			if inUse[dir] {
				return spool.ErrInUse
			}
			inUse[dir] = true
			return nil
		}, func(err error) { t.Error(err) })
		if err != nil {
			t.Fatalf("process %d: %v", process, err)
		}
	}
}

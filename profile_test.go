package diaspora

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

func TestProfiles(t *testing.T) {
	t.Parallel()
	p := OpenProfiles(filepath.Join(t.TempDir(), "not", "yet"))
	if names, err := p.Names(); err != nil || len(names) != 0 {
		t.Errorf("Names() of nothing = %v, %v", names, err)
	}
	if _, err := p.Current(); !errors.Is(err, ErrNoProfile) || Hint(err) == "" {
		t.Errorf("Current() of nothing = %v, want ErrNoProfile with a hint", err)
	}
	if _, err := p.Load("local"); !errors.Is(err, ErrNotFound) || !strings.Contains(Hint(err), "--profile local") {
		t.Errorf("Load of nothing = %v, want ErrNotFound with a hint", err)
	}
	if err := p.Use("local"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Use of nothing = %v, want ErrNotFound", err)
	}
	if err := p.Delete(t.Context(), "local"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Delete of nothing = %v, want ErrNotFound", err)
	}
	want := Profile{Name: "local", URL: "https://local.example.org", Discovery: someDiscovery()}
	for _, name := range []string{"work", "local"} {
		want.Name = name
		testkit.Must(t, p.Save(want))
	}
	got, err := p.Load("local")
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("Load = %+v, %v, want %+v", got, err, want)
	}
	if names, err := p.Names(); err != nil || fmt.Sprint(names) != "[local work]" {
		t.Errorf("Names() = %v, %v, want [local work]", names, err)
	}
	testkit.Must(t, p.Use("local"))
	if name, err := p.Current(); err != nil || name != "local" {
		t.Errorf("Current() = %q, %v, want local", name, err)
	}
	err = filepath.WalkDir(p.Dir(), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if mode := info.Mode().Perm(); mode&0o077 != 0 {
			t.Errorf("%s has mode %v", path, mode)
		}
		if strings.HasPrefix(d.Name(), ".") {
			t.Errorf("%s was left behind", path)
		}
		return nil
	})
	testkit.Must(t, err)
}

func TestDeleteProfile(t *testing.T) {
	t.Parallel()
	dir := saved(t, "first", "second")
	p := OpenProfiles(dir)
	testkit.Must(t, os.WriteFile(p.path("second"), []byte("damaged"), 0o600))
	for _, name := range []string{"second", "first"} { // a profile that cannot be read can be deleted, too
		if err := p.Delete(t.Context(), name); err != nil {
			t.Fatalf("Delete(%s) = %v", name, err)
		}
		for _, file := range []string{p.path(name), filepath.Join(dir, "tokens", name+".json")} {
			if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("after Delete(%s) there is %s: %v", name, file, err)
			}
		}
		current, err := p.Current()
		if name == "second" && current != "first" || name == "first" && !errors.Is(err, ErrNoProfile) {
			t.Errorf("after Delete(%s) the current profile is %q, %v", name, current, err)
		}
	}
	if err := p.Delete(t.Context(), "../first"); !errors.Is(err, ErrInvalid) {
		t.Errorf("Delete of a path = %v, want ErrInvalid", err)
	}
}

func TestProfilesThatAreDamaged(t *testing.T) {
	t.Parallel()
	p := OpenProfiles(saved(t, "local"))
	good, err := os.ReadFile(p.path("local"))
	testkit.Must(t, err)
	write := func(content string) {
		t.Helper()
		testkit.Must(t, os.WriteFile(p.path("local"), []byte(content), 0o600))
	}
	for name, content := range map[string]string{
		"empty":     "",
		"no JSON":   "x",
		"cut":       string(good[:len(good)/2]),
		"two":       string(good) + string(good),
		"no URL":    strings.Replace(string(good), "https://local.example.org", "", 1),
		"strange":   strings.Replace(string(good), "https://local.example.org", "ftp://x", 1),
		"no broker": strings.Replace(string(good), "127.0.0.1:9092", "127.0.0.1", 1),
		"security":  strings.Replace(string(good), "plaintext", "none", 1),
	} {
		write(content)
		if _, err := p.Load("local"); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), p.path("local")) || Hint(err) == "" {
			t.Errorf("%s: Load = %v, want ErrInvalid that names the file and what to do", name, err)
		}
		if _, err := p.Config("local"); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: Config = %v, want ErrInvalid", name, err)
		}
	}
	write(string(good) + strings.Repeat(" ", maxProfileBytes))
	if _, err := p.Load("local"); err == nil {
		t.Error("Load of a file without bounds = nil")
	}
	write(strings.Replace(string(good), "{", `{"of_a_later_version": {"x": 1},`, 1))
	if _, err := p.Load("local"); err != nil {
		t.Errorf("Load of a file with a field of a later version = %v", err)
	}
	for _, content := range []string{"", "../x", "a b", strings.Repeat("x", 2000)} {
		testkit.Must(t, os.WriteFile(filepath.Join(p.Dir(), "current"), []byte(content), 0o600))
		if name, err := p.Current(); err == nil {
			t.Errorf("Current() from a file with %.20q = %q", content, name)
		}
	}
}

func TestSaveRefuses(t *testing.T) {
	t.Parallel()
	p := OpenProfiles(saved(t, "local"))
	for what, change := range map[string]func(*Profile){
		"a name that leads elsewhere": func(p *Profile) { p.Name = "../local" },
		"no URL":                      func(p *Profile) { p.URL = "" },
		"no brokers":                  func(p *Profile) { p.Discovery.Brokers = nil },
	} {
		profile, err := p.Load("local")
		testkit.Must(t, err)
		change(&profile)
		if err := p.Save(profile); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: Save = %v, want ErrInvalid", what, err)
		}
	}
	if _, err := p.Load("local"); err != nil {
		t.Errorf("the profile from before: %v", err)
	}
}

// TestProfilesThatOthersCanChange checks that profiles that other users can change are rejected,
// because they decide where tokens are sent. Profiles that others can only read are accepted.
func TestProfilesThatOthersCanChange(t *testing.T) {
	t.Parallel()
	dir := saved(t, "local")
	p := OpenProfiles(dir)
	testkit.Must(t, p.Use("local"))
	use := func() error {
		if name, err := p.Current(); err != nil {
			return err
		} else if _, err := p.Config(name); err != nil {
			return err
		}
		_, err := ConfigFromEnv(getenv("DIASPORA_CONFIG_DIR", dir))
		return err
	}
	for place, good := range map[string]os.FileMode{"current": 0o600, "profiles/local.json": 0o600, "profiles": 0o700, ".": 0o700} {
		path := filepath.Join(dir, place)
		for extra := os.FileMode(0); extra <= 0o077; extra++ {
			testkit.Must(t, os.Chmod(path, good|extra))
			err := use()
			if wanted := extra&0o022 == 0; (err == nil) != wanted {
				t.Errorf("%s with mode %v: %v, want it used: %v", place, good|extra, err, wanted)
			} else if err != nil && Hint(err) != fmt.Sprintf(`check what is in it, then run "chmod go-w %s"`, path) {
				t.Errorf("%s with mode %v: %v, with the hint %q", place, good|extra, err, Hint(err))
			}
		}
		testkit.Must(t, os.Chmod(path, good))
	}
	profile, err := p.Load("local")
	testkit.Must(t, err)
	testkit.Must(t, os.Chmod(filepath.Join(dir, "profiles"), 0o770))
	if err := p.Save(profile); err == nil {
		t.Error("Save wrote into a folder that others can change")
	}
}

func TestValidProfile(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"local": true, "a.example.org": true, "A-1_x": true, "9": true, strings.Repeat("x", 64): true,
		"": false, ".": false, "..": false, ".hidden": false, "-flag": false, "_x": false, "a/b": false, `a\b`: false, "a b": false,
		"ü": false, "a\x00": false, "a\n": false, strings.Repeat("x", 65): false,
	} {
		if err := ValidProfile(name); (err == nil) != want || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("ValidProfile(%q) = %v, want valid: %v", name, err, want)
		}
	}
}

// TestReplaceIsAtomic fails when a reader sees a partly written file.
func TestReplaceIsAtomic(t *testing.T) {
	t.Parallel()
	p := OpenProfiles(saved(t, "local"))
	profile, err := p.Load("local")
	testkit.Must(t, err)
	done := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() {
			for n := range 50 {
				mine := profile
				mine.Discovery.Version = strings.Repeat(fmt.Sprint(i), n*100)
				if err := p.Save(mine); err != nil {
					t.Error(err)
				}
			}
		})
	}
	go func() { wg.Wait(); close(done) }()
	for reading := true; reading; {
		select {
		case <-done:
			reading = false
		default:
		}
		if _, err := p.Load("local"); err != nil {
			t.Fatalf("Load while others save: %v", err)
		}
	}
	entries, err := os.ReadDir(filepath.Join(p.Dir(), "profiles"))
	if err != nil || len(entries) != 1 {
		t.Errorf("the folder has %v, %v, want one file", entries, err)
	}
}

func TestUserProfiles(t *testing.T) {
	t.Parallel()
	p, err := UserProfiles(getenv("DIASPORA_CONFIG_DIR", "/some/where"))
	if err != nil || p.Dir() != "/some/where" {
		t.Errorf("UserProfiles = %v, %v, want what DIASPORA_CONFIG_DIR says", p, err)
	}
}

package learned

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

type document struct {
	Brokers []string `json:"brokers"`
}

func memoryIn(dir string) Memory[document] {
	return Memory[document]{Dir: dir, Valid: func(d *document) error {
		if len(d.Brokers) == 0 {
			return errors.New("no brokers")
		}
		return nil
	}}
}

// TestFile checks that the name and the content of a file stay those that earlier versions wrote and read.
func TestFile(t *testing.T) {
	t.Parallel()
	const (
		key  = "125f590de15d7439edd834f17ba2a3a9170f2b625a14d7d0ba5836dcdd3823ce"
		file = `{
  "url": "https://diaspora.example.org",
  "identity": {
    "subject": "ada",
    "username": "ada@example.edu"
  },
  "discovery": {
    "brokers": [
      "a.example.org:9092"
    ]
  }
}
`
	)
	m := memoryIn(filepath.Join(t.TempDir(), "fabrics"))
	name := KeyName("https://diaspora.example.org", "key-abcdefghij234567")
	if name != key || name != Name("https://diaspora.example.org", "access key", "key-abcdefghij234567") || len(name) != NameLength {
		t.Errorf("the name of a key is %q, want %q", name, key)
	}
	learn := func() error {
		return m.Learn(name, "https://diaspora.example.org", func(c *Credential[document]) {
			c.Identity = globus.Identity{Subject: "ada", Username: "ada@example.edu"}
			c.Discovery = &document{[]string{"a.example.org:9092"}}
		})
	}
	testkit.Must(t, learn())
	path := filepath.Join(m.Dir, name+".json")
	if got := string(testkit.ReadFile(t, path)); got != file {
		t.Errorf("the file is %s, want %s", got, file)
	}
	got := m.Recall(name)
	if got.URL != "https://diaspora.example.org" || got.Identity.Subject != "ada" || got.Discovery == nil || got.Discovery.Brokers[0] != "a.example.org:9092" {
		t.Errorf("Recall = %+v", got)
	}
	old := time.Now().Add(-time.Hour)
	testkit.Must(t, os.Chtimes(path, old, old))
	testkit.Must(t, learn())
	if info, err := os.Stat(path); err != nil || time.Since(info.ModTime()) < time.Minute {
		t.Errorf("what is known already was written again: %v", err)
	}
}

// TestUnusableFiles checks that nothing is taken from a file that others can read or change, or that has no
// valid discovery document.
func TestUnusableFiles(t *testing.T) {
	t.Parallel()
	for name, content := range map[string]string{
		"not JSON": `{"url":`, "an invalid document": `{"identity":{"subject":"ada"},"discovery":{}}`, "too large": `{"url":"` + strings.Repeat("x", 2<<20) + `"}`,
	} {
		m := memoryIn(t.TempDir())
		testkit.Must(t, os.WriteFile(m.path("x"), []byte(content), 0o600))
		if got := m.Recall("x"); got.URL != "" || got.Identity.Subject != "" || got.Discovery != nil {
			t.Errorf("%s: Recall = %+v", name, got)
		}
	}
	m := memoryIn(t.TempDir())
	testkit.Must(t, m.Learn("x", "https://diaspora.example.org", func(*Credential[document]) {}))
	for _, spoil := range []struct {
		path       string
		mode, back os.FileMode
	}{{m.path("x"), 0o640, 0o600}, {m.path("x"), 0o602, 0o600}, {m.Dir, 0o777, 0o700}} {
		testkit.Must(t, os.Chmod(spoil.path, spoil.mode))
		if got := m.Recall("x"); got.URL != "" && runtime.GOOS != "windows" {
			t.Errorf("with mode %v of %s, Recall = %+v", spoil.mode, spoil.path, got)
		}
		testkit.Must(t, os.Chmod(spoil.path, spoil.back))
	}
	if m.Recall("x").URL == "" {
		t.Error("with the right modes, nothing is recalled")
	}
}

// TestZeroMemory checks that without a directory nothing is stored or recalled.
func TestZeroMemory(t *testing.T) {
	t.Parallel()
	for name, m := range map[string]Memory[document]{"": memoryIn(t.TempDir()), "x": {}} {
		if err := m.Learn(name, "https://diaspora.example.org", func(*Credential[document]) { t.Error("something is learned") }); err != nil {
			t.Error(err)
		}
		if got := m.Recall(name); got.URL != "" {
			t.Errorf("Recall = %+v", got)
		}
	}
}

// TestSilence checks for how long the fabric is not asked again, and that copies of a Memory know it too.
func TestSilence(t *testing.T) {
	t.Parallel()
	var never Memory[document]
	if never.NoAnswer(); never.Unanswered() {
		t.Error("without a place to record it, silence is remembered")
	}
	m := Memory[document]{Silent: new(atomic.Int64)}
	other := m
	if m.Unanswered() {
		t.Error("at first, the fabric is said to be silent")
	}
	if m.NoAnswer(); !other.Unanswered() {
		t.Error("after no answer, the fabric is not said to be silent")
	}
	m.Silent.Add(-int64(unansweredFor))
	if other.Unanswered() {
		t.Errorf("after %v, the fabric is still said to be silent", unansweredFor)
	}
}

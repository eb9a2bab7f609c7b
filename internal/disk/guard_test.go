package disk

import (
	"errors"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestGuard checks that nothing can be changed, and nothing is reported as durable, while check
// fails.
func TestGuard(t *testing.T) {
	t.Parallel()
	var refused error
	fsys := Memory()
	g := Guard(fsys, func() error { return refused })
	testkit.Must(t, g.Make())
	f, err := g.Create("file")
	testkit.Must(t, err)
	if _, err := f.WriteAt([]byte("content"), 0); err != nil {
		t.Fatal(err)
	}
	testkit.Must(t, errors.Join(f.Sync(), g.Sync(), g.SyncParent(), g.Sub("sub").Make()))
	refused = errors.New("no")
	for what, do := range map[string]func() error{
		"Make":       g.Make,
		"Create":     func() error { _, err := g.Create("other"); return err },
		"Open":       func() error { _, err := g.Open("file", true); return err },
		"Rename":     func() error { return g.Rename("file", "other") },
		"Remove":     func() error { return g.Remove("file") },
		"Sync":       g.Sync,
		"SyncParent": g.SyncParent,
		"WriteAt":    func() error { _, err := f.WriteAt([]byte("x"), 0); return err },
		"Truncate":   func() error { return f.Truncate(0) },
		"File.Sync":  f.Sync,
		"Sub":        func() error { _, err := g.Sub("sub").Create("file"); return err },
	} {
		if err := do(); !errors.Is(err, refused) {
			t.Errorf("%s = %v, want the refusal", what, err)
		}
	}
	if b, err := ReadFile(g, "file", 100); err != nil || string(b) != "content" {
		t.Errorf("the file has %q, %v", b, err)
	}
	if infos, err := g.List(); err != nil || len(infos) != 3 {
		t.Errorf("%d entries, %v; want the directory, the file and sub", len(infos), err)
	}
}

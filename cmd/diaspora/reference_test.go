package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestReferenceIsCurrent compares docs/reference with what the program writes. `make reference` updates it.
func TestReferenceIsCurrent(t *testing.T) {
	t.Parallel()
	const folder = "../../docs/reference"
	d := emptyDesk(t)
	fresh := t.TempDir()
	d.must(t, "reference", "markdown", fresh)
	names := map[string]bool{}
	for _, dir := range []string{folder, fresh} {
		files, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil || len(files) < 15 {
			t.Fatalf("%s has the files %q, %v; run make reference", dir, files, err)
		}
		for _, file := range files {
			names[filepath.Base(file)] = true
		}
	}
	for name := range names {
		have, _ := os.ReadFile(filepath.Join(folder, name))
		want, _ := os.ReadFile(filepath.Join(fresh, name))
		if string(have) != string(want) {
			t.Errorf("docs/reference/%s is not what the help says: run make reference", name)
		}
	}
}

// TestReferenceIsComplete checks that the reference has every command, flag, variable, exit code and setting.
func TestReferenceIsComplete(t *testing.T) {
	t.Parallel()
	root := emptyDesk(t).commands()
	markdown, man := markdownReference(root), manPages(root, "diaspora test")
	for _, cmd := range leaves(root) {
		if cmd.Hidden {
			continue
		}
		page := markdown[strings.Fields(cmd.CommandPath())[1]+".md"]
		manPage := man["man1/"+strings.ReplaceAll(cmd.CommandPath(), " ", "-")+".1"]
		if !strings.Contains(page, "# "+cmd.CommandPath()+"\n") || !strings.Contains(manPage, ".SH EXAMPLES") {
			t.Errorf("the reference leaves %s out", cmd.CommandPath())
		}
		cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
			name := f.Name
			if name != "help" && !f.Hidden && (!strings.Contains(page, "--"+name) || !strings.Contains(manPage, `\-\-`+strings.ReplaceAll(name, "-", `\-`))) {
				t.Errorf("the reference of %s leaves --%s out", cmd.CommandPath(), name)
			}
		})
	}
	for _, want := range []string{"DIASPORA_KEY_FILE", "GLOBUS_SDK_ENVIRONMENT", `\-\-profile`, `\fB75\fR`} {
		if !strings.Contains(man["man1/diaspora.1"], want) {
			t.Errorf("diaspora(1) leaves %s out", want)
		}
	}
	for _, s := range serveSettings {
		if !strings.Contains(man["man5/diaspora-serve.toml.5"], strings.ReplaceAll(s.name, "-", `\-`)+" = ") {
			t.Errorf("diaspora-serve.toml(5) leaves %s out", s.name)
		}
	}
}

// TestManPages checks that groff formats all man pages without a warning, and that they do not depend on the time.
func TestManPages(t *testing.T) {
	t.Parallel()
	d := emptyDesk(t)
	dir, again := t.TempDir(), t.TempDir()
	d.must(t, "reference", "man", dir)
	d.must(t, "reference", "man", again)
	files, err := filepath.Glob(filepath.Join(dir, "man?", "*"))
	if err != nil || len(files) < 40 {
		t.Fatalf("man pages: %q, %v", files, err)
	}
	for _, file := range files {
		second := testkit.ReadFile(t, filepath.Join(again, strings.TrimPrefix(file, dir)))
		if string(second) != string(testkit.ReadFile(t, file)) {
			t.Errorf("%s differs the second time", filepath.Base(file))
		}
	}
	if _, err := exec.LookPath("groff"); err != nil && os.Getenv("CI") == "" {
		t.Skip("groff is not installed; CI has it")
	}
	out, err := exec.Command("groff", append([]string{"-man", "-ww", "-z", "-Tutf8"}, files...)...).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("groff: %v\n%s", err, out)
	}
	shown, err := exec.Command("groff", "-man", "-ww", "-Tascii", "-P-c", "-P-b", "-P-u", filepath.Join(dir, "man1", "diaspora-produce.1")).Output()
	for _, want := range []string{"diaspora produce TOPIC [FILE...]", `diaspora produce weather -K '\t' < readings.tsv`, "-z, --compression CODEC", "diaspora(1)"} {
		if err != nil || !strings.Contains(string(shown), want) {
			t.Errorf("diaspora-produce(1) does not show %q, %v", want, err)
		}
	}
}

// TestReferenceErrors checks what "diaspora reference" refuses.
func TestReferenceErrors(t *testing.T) {
	t.Parallel()
	d := emptyDesk(t)
	file := filepath.Join(t.TempDir(), "file")
	testkit.Must(t, os.WriteFile(file, nil, 0o600))
	for _, try := range []struct {
		args []string
		code int
		text string
	}{
		{[]string{"reference", "html", t.TempDir()}, 2, "unknown command"},
		{[]string{"reference", "man"}, 2, "the folder is missing"},
		{[]string{"reference", "man", file}, 1, "not a directory"},
	} {
		d.err.Reset()
		if code := d.types(t.Context(), try.args...); code != try.code || !strings.Contains(d.err.String(), try.text) {
			t.Errorf("%v exits with %d and says %q", try.args, code, d.err.String())
		}
	}
}

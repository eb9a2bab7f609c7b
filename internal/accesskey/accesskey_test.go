package accesskey

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

const (
	id     = "key-abcdefghij234567"
	canary = "CANARY7f3a9c0e15b2d4"
	secret = "dks_" + canary + "_-CDEFGHIJKLMNOPQRSTUVW"
)

func TestFault(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ id, secret, want string }{
		{"", "", ""},
		{id, secret, ""},
		{id, "", "belong together"},
		{"", secret, "belong together"},
		{secret, id, "DIASPORA_KEY_ID holds the secret"},
		{"beamline-7", secret, "it is not the name"},
		{`"` + id + `"`, secret, "DIASPORA_KEY_ID has quotation marks"},
		{id, `"` + secret + `"`, "DIASPORA_KEY_SECRET has quotation marks"},
		{id, id, "holds the ID"},
		{id, canary, "is not the secret"},
		{id, secret[:30], "is cut off"},
		{id, secret + "x", "is too long"},
		{id, secret[:40] + "é" + secret[42:], "characters"},
	} {
		got := Fault(tt.id, tt.secret)
		if (tt.want == "") != (got == "") || !strings.Contains(got, tt.want) || strings.Contains(got, canary) {
			t.Errorf("Fault(%.10q, %.10q) = %q, want %q", tt.id, tt.secret, got, tt.want)
		}
	}
}

func TestMisplaced(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ id, secret, want string }{
		{"", "", ""},
		{"d1a590a0-0000-4000-8000-0000000000a1", "GlobusSecret=", ""},
		{id, secret, "DIASPORA_CLIENT_ID"},
		{"x", secret, "DIASPORA_CLIENT_SECRET"},
	} {
		if got := MisplacedFault(tt.id, tt.secret); !strings.HasPrefix(got, tt.want) || (tt.want == "") != (got == "") || strings.Contains(got, canary) {
			t.Errorf("MisplacedFault(%q, %.4q) = %q, want %q", tt.id, tt.secret, got, tt.want)
		}
	}
}

// text is the content of a file as Format writes it.
func text(t *testing.T, more map[string]string) string {
	t.Helper()
	vars := map[string]string{IDVariable: id, SecretVariable: secret, "DIASPORA_URL": "https://h.example.org"}
	for name, value := range more {
		vars[name] = value
	}
	text, err := Format("a key\nfor tests", func(name string) string { return vars[name] })
	testkit.Must(t, err)
	return text
}

func write(t *testing.T, content string, mode fs.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key.env")
	testkit.Must(t, os.WriteFile(path, []byte(content), 0o600))
	testkit.Must(t, os.Chmod(path, mode))
	return path
}

// TestRoundTrip checks that this package and a shell read the same values from what Format writes.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	more := map[string]string{"DIASPORA_BOOTSTRAP": "a:1,[::1]:2", "DIASPORA_CA_FILE": "/home/ada/my files/ca;rm -rf #.pem"}
	path := write(t, text(t, more), 0o600)
	f, err := Read(path)
	testkit.Must(t, err)
	names := append([]string{}, variables...)
	out, err := exec.Command("sh", "-c", `set -a; . "$0"; env`, path).Output()
	testkit.Must(t, err)
	for _, name := range names {
		if f.Get(name) == "" || !strings.Contains("\n"+string(out), "\n"+name+"="+f.Get(name)+"\n") {
			t.Errorf("%s is %q here, and otherwise in a shell", name, f.Get(name))
		}
	}
	if f.Get("DIASPORA_CA_FILE") != more["DIASPORA_CA_FILE"] || f.Get(SecretVariable) != secret {
		t.Errorf("Read = %v", f.vars)
	}
	for _, bad := range []string{"/it's", "/a\nB=c", "/$HOME", "/`id`", `/a\b`} {
		if text, err := Format("", func(name string) string { return map[string]string{"DIASPORA_CA_FILE": bad}[name] }); err == nil {
			t.Errorf("Format takes %q: %q", bad, text)
		}
	}
}

// TestRead refuses what is not a private key file. The errors say what to do and show nothing of
// the content.
func TestRead(t *testing.T) {
	t.Parallel()
	good := text(t, nil)
	for name, tt := range map[string]struct {
		content string
		want    string // "" if the value is accepted
	}{
		"as written":        {good, ""},
		"exported, quoted":  {"\ufeffexport DIASPORA_KEY_ID='" + id + "'\r\n\n export DIASPORA_KEY_SECRET=\"" + secret + "\"\r\n", ""},
		"of others as well": {good + "OTHER=x\n", ""},
		"empty":             {"", "no key in it"},
		"half":              {"DIASPORA_KEY_ID=" + id, "belong together"},
		"unknown variable":  {good + "DIASPORA_REFRESH=" + canary, "line 6 sets something that does not belong into it"},
		"twice":             {good + "DIASPORA_KEY_SECRET=" + secret, "twice"},
		"the secret alone":  {secret, "line 1 is not NAME=VALUE"},
		"substitution":      {"DIASPORA_KEY_ID=" + id + "\nDIASPORA_KEY_SECRET=$(cat " + canary + ")", "line 2 is not NAME=VALUE"},
		"for kcat":          {"sasl.username=" + id + "\nsasl.password=" + secret, "for kcat"},
		"for Java":          {"sasl.jaas.config=" + secret, "for Java"},
		"JSON":              {`{"id":"` + id + `","secret":"` + secret + `"}`, "in JSON"},
		"too large":         {good + strings.Repeat("#", maxFileBytes), "more than"},
	} {
		f, err := Read(write(t, tt.content, 0o600))
		switch {
		case tt.want == "" && (err != nil || f.Get(IDVariable) != id || globus.Secret(f.Get(SecretVariable)) != secret):
			t.Errorf("%s: %v, %v", name, f.vars, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), canary)):
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
		if known := (*FileError)(nil); err != nil && (!errors.As(err, &known) || known.Hint == "") {
			t.Errorf("%s: %v has no hint", name, err)
		}
	}
	for _, mode := range []fs.FileMode{0o644, 0o640, 0o602} {
		path := write(t, good, mode)
		if _, err := Read(path); err == nil || !strings.Contains(err.Error(), "chmod 600 "+path) {
			t.Errorf("mode %v: %v", mode, err)
		}
	}
	if _, err := Read(t.TempDir()); err == nil || !strings.Contains(err.Error(), "not a file") {
		t.Errorf("a folder: %v", err)
	}
	if _, err := Read(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

// TestRelativePath requires absolute paths in errors and results.
func TestRelativePath(t *testing.T) {
	path := write(t, text(t, nil), 0o600)
	exposed := write(t, text(t, nil), 0o644)
	t.Chdir(filepath.Dir(path))
	if f, err := Read("key.env"); err != nil || f.Path != path {
		t.Errorf("Read(key.env) is of %q, %v; want %q", f.Path, err, path)
	}
	missing := filepath.Join(filepath.Dir(path), "none")
	if _, err := Read("none"); err == nil || !strings.Contains(err.Error(), "key file "+missing+": it does not exist") {
		t.Errorf("Read(none) = %v, want an error that names %s", err, missing)
	}
	t.Chdir(filepath.Dir(exposed))
	if _, err := Read("./key.env"); err == nil || !strings.Contains(err.Error(), "chmod 600 "+exposed+",") {
		t.Errorf("Read(./key.env) = %v, want an error that names %s", err, exposed)
	}
}

// TestFileOfAnotherUser also tests mayOwn directly, because only a privileged user can create a
// file that belongs to another one.
func TestFileOfAnotherUser(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		owner, user int
		want        bool
	}{{1000, 1000, true}, {0, 1000, true}, {1001, 1000, false}, {1000, 0, false}, {0, 0, true}} {
		if got := mayOwn(tt.owner, tt.user); got != tt.want {
			t.Errorf("a file of %d, for %d: %v", tt.owner, tt.user, got)
		}
	}
	path := write(t, text(t, nil), 0o600)
	if os.Geteuid() == 0 {
		testkit.Must(t, os.Chown(path, 12345, -1))
		if _, err := Read(path); err == nil || !strings.Contains(err.Error(), "belongs to another user (12345)") {
			t.Errorf("Read = %v", err)
		}
	}
}

func TestFromEnv(t *testing.T) {
	t.Parallel()
	path := write(t, text(t, nil), 0o600)
	env := func(pairs ...string) func(string) string {
		return func(name string) string {
			for i := 0; i < len(pairs); i += 2 {
				if pairs[i] == name {
					return pairs[i+1]
				}
			}
			return ""
		}
	}
	if f, err := FromEnv(env()); err != nil || f.Path != "" || f.Getenv(env("A", "b"))("A") != "b" {
		t.Errorf("without a file: %v, %v", f, err)
	}
	given := env(FileVariable, path, "DIASPORA_URL", "https://other.example.org", SecretVariable, secret)
	f, err := FromEnv(given)
	testkit.Must(t, err)
	get := f.Getenv(given)
	if get("DIASPORA_URL") != "https://other.example.org" || f.Get("DIASPORA_URL") != "https://h.example.org" || get(IDVariable) != id {
		t.Errorf("DIASPORA_URL is %q, the key %q", get("DIASPORA_URL"), get(IDVariable))
	}
	if f.Variable != FileVariable {
		t.Errorf("%s provides the key, want %s", f.Variable, FileVariable)
	}
	if f, err := FromEnv(env(IDVariable, id, SecretVariable, secret)); err != nil || f.Variable != IDVariable || f.Path != "" {
		t.Errorf("without a file: %+v, %v", f, err)
	}
	for want, given := range map[string][]string{
		"another key": {FileVariable, path, IDVariable, "key-bbbbbbbbbbbbbbbb"},
		FileVariable + " and DIASPORA_REFRESH both say":     {FileVariable, path, "DIASPORA_REFRESH", "x"},
		SecretVariable + " and DIASPORA_CLIENT_ID both say": {SecretVariable, secret, "DIASPORA_CLIENT_ID", "x"},
		"belong together":           {SecretVariable, secret},
		"is for a client of Globus": {"DIASPORA_CLIENT_ID", id},
	} {
		known := (*FileError)(nil)
		if _, err := FromEnv(env(given...)); !errors.As(err, &known) || !strings.Contains(known.Reason, want) || known.Hint == "" {
			t.Errorf("FromEnv = %v, want an error that says %q", err, want)
		}
	}
}

// FuzzParse searches for texts that are accepted but are read differently after Format has written
// them.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{"", "DIASPORA_KEY_ID=" + id + "\nDIASPORA_KEY_SECRET=" + secret, "export A='b'\n# c\n", "{", "sasl.username=x", "DIASPORA_URL=\"https://h\"\nDIASPORA_KEY_ID='" + id + "'\nDIASPORA_KEY_SECRET=" + secret} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		vars, wrong := parse(text)
		if wrong != "" {
			return
		}
		if !IsID(vars[IDVariable]) || !IsSecret(globus.Secret(vars[SecretVariable])) {
			t.Fatalf("parse(%q) = %v", text, vars)
		}
		written, err := Format("", func(name string) string { return vars[name] })
		if err != nil {
			return // has characters that Format does not write
		}
		again, wrong := parse(written)
		if wrong != "" {
			t.Fatalf("parse(%q) = %s", written, wrong)
		}
		for _, name := range variables {
			if again[name] != vars[name] {
				t.Fatalf("%s is %q, and was %q", name, again[name], vars[name])
			}
		}
	})
}

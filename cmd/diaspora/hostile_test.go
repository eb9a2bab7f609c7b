package main

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/terminal"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestNothingCommandsTheTerminal runs an ACL endpoint that puts escape sequences, line feeds and characters that
// override the writing direction into all its responses. No command may print them.
func TestNothingCommandsTheTerminal(t *testing.T) {
	const (
		odd  = `a\u202eb\u2066` // looks like a line of text
		evil = `x\u001b]0;owned\u0007\u009b31m\u202e\r\ndiaspora: hint: evil`
		ada  = `1168fe43-ef48-54e0-8aeb-e0dc24146888`
	)
	d := newDesk(t)
	var answers map[string]string // by the last element of the path; "" for all others
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := answers[r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]]
		if answer == "" {
			answer = answers[""]
		}
		w.Header().Set("Content-Type", "application/json")
		if strings.HasPrefix(answer, `{"title"`) {
			w.WriteHeader(http.StatusConflict)
		}
		io.WriteString(w, answer)
	}))
	t.Cleanup(endpoint.Close)
	profiles := diaspora.OpenProfiles(d.vars["DIASPORA_CONFIG_DIR"])
	profile, err := profiles.Load("home")
	testkit.Must(t, err)
	profile.URL = endpoint.URL
	testkit.Must(t, profiles.Save(profile))
	discovery, err := json.Marshal(profile.Discovery)
	testkit.Must(t, err)
	key := func(id, name, topic, secret string) string {
		return `{"id":"` + id + `","name":"` + name + `","owner":"` + ada + `","topics":["` + topic + `"],"read":true,"secret":"` + secret + `"}`
	}
	topic := func(name, description string) string {
		return `{"name":"` + name + `","owner":"` + ada + `","partitions":1,"description":"` + description + `"}`
	}
	grants := func(username string) string {
		return `{"grants":[{"subject":"` + ada + `","username":"` + username + `","read":true,"by":"` + ada + `","since":"2026-05-01T12:00:00Z"}]}`
	}
	problem := `{"title":"` + evil + `","detail":"` + evil + `","hint":"` + evil + `"}`
	const id, secret = "key-abcdefghij234567", "dks_0123456789abcdefghijABCDEFGHIJ_-0123456789a"
	evilKey, evilTopic := key(evil, evil, evil, evil), topic("weather", evil)
	for name, set := range map[string]map[string]string{
		"odd": {
			"identity": `{"subject":"` + ada + `","username":"` + odd + `","name":"` + odd + `"}`, "diaspora": string(discovery),
			"topics": `{"topics":[],"shared":[` + topic("weather", odd) + `],"public":[` + topic("weather", odd) + `],"offered":[` + topic("weather", odd) + `]}`, "weather": topic("weather", odd), "grants": grants(odd), "keys": `{"keys":[` + key(id, "laptop", "weather", secret) + `]}`,
			"":    key(id, "laptop", "weather", secret),
			"a@b": `{"subject":"` + ada + `","username":"a@` + odd + `","name":"` + odd + `","organization":"` + odd + `"}`, "release": topic("weather", odd),
		},
		"evil": {
			"identity": `{"subject":"` + ada + `","username":"` + evil + `"}`, "diaspora": strings.Replace(string(discovery), `"version":"`, `"version":"`+evil, 1),
			"topics": `{"topics":[` + evilTopic + `]}`, "weather": evilTopic, "grants": grants(evil), "keys": `{"keys":[` + evilKey + `]}`, "": evilKey,
		},
		"problems": {"": problem},
		"no JSON":  {"": "\x1b]0;owned\a\u009b31m\ndiaspora: hint: evil"},
	} {
		answers = set
		for _, command := range []string{
			"whoami", "whoami -o json", "whoami --subject",
			"topic list", "topic list -o json", "topic show weather", "topic show weather -o json", "topic claim weather", "topic release weather", "topic release weather --now",
			"topic show weather --members", "topic share weather --with a@b --read", "topic share weather --with a@b --read --yes", "topic unshare weather --with a@b",
			"topic unshare weather --with me", "topic set weather --retention 1d", "topic transfer weather --to a@b", "topic accept weather", "topic restore weather",
			"key list", "key list -o json", "key create laptop", "key create laptop -o json", "key create laptop --save-for-java=FILE",
			"key create laptop --save-for-kcat FILE", "key create laptop --save-env FILE", "key create laptop --save-env -",
			"key revoke laptop", "key revoke key-abcdefghij234567",
			"login " + endpoint.URL + " --no-browser", "status", "doctor --timeout 3s", "doctor -o json --timeout 3s --bundle BUNDLE",
		} {
			dir := t.TempDir()
			args := strings.Fields(strings.NewReplacer("FILE", filepath.Join(dir, "x.properties"), "BUNDLE", filepath.Join(dir, "x.tar.gz")).Replace(command))
			d.out.Reset()
			d.err.Reset()
			d.types(t.Context(), args...) // whether or not it succeeds
			for stream, text := range map[string]string{"stdout": d.out.String(), "stderr": d.err.String()} {
				if i := strings.IndexFunc(text, func(r rune) bool { return r != '\n' && r != '\t' && terminal.Commands(r) }); i >= 0 {
					t.Errorf("%s: %q writes %q to %s", name, command, text, stream)
				}
				if strings.Contains(text, "\ndiaspora: hint: evil") {
					t.Errorf("%s: %q writes a line of the endpoint's own to %s:\n%s", name, command, stream, text)
				}
			}
		}
	}
}

// TestErrorsCommandNothing checks that control characters are escaped in errors of a broker, which no library has
// checked.
func TestErrorsCommandNothing(t *testing.T) {
	d := emptyDesk(t)
	d.complain(hinted(errors.New("broker: \x1b]0;owned\a\u009b31m\ndiaspora: hint: evil\r"), "do\u202e this\nor that"), 1)
	const want = `diaspora: broker: \x1b]0;owned\x07\x9b31m` + "\n" + `  diaspora: hint: evil\r` + "\n" + `hint: do\u202e this` + "\n  or that\n"
	if got := d.err.String(); got != want {
		t.Errorf("stderr is %q, want %q", got, want)
	}
}

// secretArgument matches a token or a password in the arguments of a program, which all users of the machine can
// see. (printf, echo and export are built into the shell, so their arguments are private.)
var secretArgument = regexp.MustCompile(`(?m)^(.*\|)?\s*(curl|http|wget|kcat|kafka-\S+|diaspora)\b[^|\n]*(Bearer|Basic|-u|token=|password=|secret=)\s*["']?\S*\$[({]?(\(diaspora token|DIASPORA_REFRESH|TOKEN|SECRET)`)

// TestNoSecretsInArguments checks that no example in the help texts and the documentation passes a secret as an
// argument.
func TestNoSecretsInArguments(t *testing.T) {
	texts := map[string]string{}
	for _, command := range leaves(emptyDesk(t).commands()) {
		texts[command.CommandPath()+" --help"] = command.Example + "\n" + command.Long
	}
	for _, pattern := range []string{"../../*.md", "../../docs/*.md", "../../clients/*/README.md", "../../deploy/*", "../../bench/*.md"} {
		files, err := filepath.Glob(pattern)
		testkit.Must(t, err)
		for _, file := range files {
			if info, err := os.Stat(file); err != nil || info.IsDir() {
				continue
			}
			text := testkit.ReadFile(t, file)
			texts[file] = string(text)
		}
	}
	if len(texts) < 30 {
		t.Fatalf("looked at %d texts only", len(texts))
	}
	for name, text := range texts {
		for _, line := range secretArgument.FindAllString(text, -1) {
			t.Errorf("%s: %s", name, line)
		}
	}
	for line, want := range map[string]bool{
		`curl -H "Authorization: Bearer $(diaspora token)" https://x`:                  true,
		`kcat -X sasl.password=$SECRET -t weather`:                                     true,
		`printf 'Authorization: Bearer %s' "$(diaspora token)" | curl -H @- https://x`: false,
		`export DIASPORA_REFRESH=$(diaspora token --refresh)`:                          false,
	} {
		if got := secretArgument.MatchString(line); got != want {
			t.Errorf("%s: found %v, want %v", line, got, want)
		}
	}
}

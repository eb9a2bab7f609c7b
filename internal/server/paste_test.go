package server

import (
	"encoding/json"
	"html"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestCurlCommand pastes the curl command of a response into a shell: with the token in the
// environment, and with a diaspora command that prints it. The command must make the same claim.
func TestCurlCommand(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil && os.Getenv("CI") == "" {
		t.Skip("curl is not installed")
	}
	e := start(t, withClaims(openClaims(t)))
	bin := t.TempDir()
	testkit.Must(t, os.WriteFile(filepath.Join(bin, "diaspora"), []byte("#!/bin/sh\n[ \"$*\" = token ] && echo "+adaToken+"\n"), 0o755))

	a := e.do("POST", "/acl", form(ada, adaToken, "weather"), "Content-Type", typeForm, "Accept", typeJSON)
	var answer claimResponse
	if err := json.Unmarshal([]byte(a.body), &answer); err != nil || a.status != 201 {
		t.Fatalf("%d, %v: %s", a.status, err, a.body)
	}
	plain := e.do("POST", "/acl", form(ada, adaToken, "weather"), "Content-Type", typeForm, "Accept", typePlain).body
	page := e.do("POST", "/acl", form(ada, adaToken, "weather"), "Content-Type", typeForm, "Accept", typeHTML).body
	commands := map[string]string{
		"in JSON":   answer.Curl,
		"in text":   plain[strings.Index(plain, "printf"):],
		"on a page": html.UnescapeString(regexp.MustCompile(`(?s)<pre>(printf.*?)</pre>`).FindStringSubmatch(page)[1]),
	}
	for where, command := range commands {
		for how, env := range map[string][]string{
			"token from the environment": {"DIASPORA_TOKEN=" + adaToken, "PATH=" + os.Getenv("PATH")},
			"token from the command":     {"PATH=" + bin + ":" + os.Getenv("PATH")},
		} {
			cmd := exec.CommandContext(t.Context(), "sh", "-c", command)
			cmd.Env = env
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), "Topic weather was yours already.") || strings.Contains(string(out), canary) {
				t.Errorf("the command %s, %s: %v\n%s\n%s", where, how, err, command, out)
			}
			cmd = exec.CommandContext(t.Context(), "sh", "-c", strings.Replace(command, "topic=weather", "topic=snow_"+strings.Fields(where)[1], 1))
			cmd.Env = env
			if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "yours") {
				t.Errorf("the command %s, %s, for another topic: %v\n%s", where, how, err, out)
			}
		}
	}
	if a := e.do("GET", answer.Form[len(e.url):], ""); a.status != 200 || !strings.Contains(a.body, `value="weather"`) || !strings.Contains(a.body, `value="`+ada+`"`) {
		t.Errorf("the link: %d\n%s", a.status, a.body)
	}
	if !strings.Contains(page, `href="`+html.EscapeString(answer.Form)+`"`) || !strings.Contains(plain, answer.Form) {
		t.Errorf("page or text lack the link %s", answer.Form)
	}
}

func TestShellQuote(t *testing.T) {
	for _, text := range []string{"", "plain", "two words", "it's", "$(reboot)", "`reboot`", `back\slash`, `"`, "a\nb", "!!"} {
		out, err := exec.CommandContext(t.Context(), "sh", "-c", "printf %s "+shellQuote(text)).Output()
		if err != nil || string(out) != text {
			t.Errorf("the shell makes %q of shellQuote(%q), %v", out, text, err)
		}
	}
}

package diaspora

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/terminal"
)

// Responses as the service sends them.
const (
	goodIdentity  = `{"subject":"1168fe43-ef48-54e0-8aeb-e0dc24146888","username":"ada@example.edu","name":"Ada 日本"}`
	goodTopic     = `{"name":"weather","owner":"1168fe43-ef48-54e0-8aeb-e0dc24146888","partitions":1,"description":"Wetter für Ada"}`
	goodKey       = `{"id":"key-abcdefghij234567","name":"laptop","owner":"1168fe43-ef48-54e0-8aeb-e0dc24146888","topics":["weather"],"read":true,"secret":"dks_0123456789abcdefghijABCDEFGHIJ_-0123456789a"}`
	goodDiscovery = `{"version":"v1.2.3+dirty (a build)","brokers":["a.example.org:9092","[::1]:9092"],"security":"tls","token_url":"https://a.example.org/v1/token",
		"globus":{"issuer":"https://auth.globus.org","client_id":"4b116d3c-1703-4f8f-9f6f-39921e5864df","resource_server":"diaspora.example.org",
		"scope":"urn:globus:auth:scope:diaspora.example.org:all[*https://auth.globus.org/scopes/x/y other]"}}`
)

// TestAnswersAreChecked puts text that a service never sends into each field of each response: line
// feeds, which would add settings to files, escape sequences, and text that is too long. No method
// may return such text to its caller.
func TestAnswersAreChecked(t *testing.T) {
	t.Parallel()
	answer := ""
	c, _ := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, answer)
	})
	list := func(name, item string) string { return fmt.Sprintf(`{%q:[%s]}`, name, item) }
	bad := []string{"x\nmetric.reporters=evil", "x\r", "\x1b]0;owned\a", "\u009b31m", "x\u2028y", strings.Repeat("x", 16<<10)}
	strict := append([]string{`x" evil="`, "a b", "a\u202eb", "ä", "a\\nb"}, bad...)
	for _, tt := range []struct {
		name   string
		call   func(context.Context) (any, error)
		answer string
		fields map[string][]string // good text in the response, and bad text to replace it with
	}{
		{"Identity", func(ctx context.Context) (any, error) { return c.Identity(ctx) }, goodIdentity, map[string][]string{
			"1168fe43-ef48-54e0-8aeb-e0dc24146888": strict, "ada@example.edu": bad, "Ada 日本": bad,
		}},
		{"Topic", func(ctx context.Context) (any, error) { return c.Topic(ctx, "weather") }, goodTopic, map[string][]string{
			"weather": append(strict, "", "other"), "1168fe43-ef48-54e0-8aeb-e0dc24146888": strict, "Wetter für Ada": bad,
		}},
		{"Claim", func(ctx context.Context) (any, error) { return c.Claim(ctx, ClaimRequest{Name: "weather"}) }, goodTopic, map[string][]string{
			"weather": append(strict, "", "other"),
		}},
		{"Topics", func(ctx context.Context) (any, error) { return c.Topics(ctx) }, list("topics", goodTopic), map[string][]string{
			"weather": append(strict, ""), "Wetter für Ada": bad,
		}},
		{"CreateKey", func(ctx context.Context) (any, error) { return c.CreateKey(ctx, AccessKeyRequest{Name: "laptop"}) }, goodKey, map[string][]string{
			"key-abcdefghij234567": append(strict, "", "key-abcdefghij23456", "KEY-abcdefghij234567"), "laptop": append(strict, ""),
			"weather": append(strict, ""), "dks_0123456789abcdefghijABCDEFGHIJ_-0123456789a": append(strict, "", "dks_", "dks_"+strings.Repeat(".", 43)),
		}},
		{"Keys", func(ctx context.Context) (any, error) { return c.Keys(ctx) }, list("keys", goodKey), map[string][]string{
			"key-abcdefghij234567": append(strict, ""), "laptop": append(strict, ""), "weather": append(strict, ""),
		}},
		{"Key", func(ctx context.Context) (any, error) { return c.Key(ctx, "key-abcdefghij234567") }, goodKey, map[string][]string{
			"laptop": append(strict, ""),
		}},
		{"Discover", func(ctx context.Context) (any, error) { return c.Discover(ctx) }, goodDiscovery, map[string][]string{
			"a.example.org:9092": append(strict, "", "a,b:1", "a/b:1", "a:70000"), "https://auth.globus.org": append(strict, "http://auth.globus.org", "https://\u202eevil"),
			"https://a.example.org/v1/token": strict, "4b116d3c-1703-4f8f-9f6f-39921e5864df": strict, "diaspora.example.org": strict,
			"urn:globus:auth:scope:": bad, "v1.2.3+dirty (a build)": bad,
		}},
	} {
		if answer = tt.answer; !json.Valid([]byte(answer)) {
			t.Fatalf("%s: %s", tt.name, answer)
		}
		if _, err := tt.call(within(t)); err != nil {
			t.Errorf("%s of a good answer = %v", tt.name, err)
		}
		for good, bads := range tt.fields {
			if !strings.Contains(tt.answer, `"`+good) {
				t.Fatalf("%s: the answer has no %q", tt.name, good)
			}
			for _, bad := range bads {
				text, _ := json.Marshal(bad)
				answer = strings.Replace(tt.answer, `"`+good, `"`+strings.Trim(string(text), `"`), 1)
				got, err := tt.call(within(t))
				if !errors.Is(err, ErrInvalid) {
					t.Errorf("%s with %.60q for %q = %+v, %v, want ErrInvalid", tt.name, bad, good, got, err)
				} else if strings.ContainsFunc(err.Error(), terminal.Commands) || len(err.Error()) > 600 {
					t.Errorf("%s with %.60q for %q: the error is %q", tt.name, bad, good, err)
				}
				if text := fmt.Sprint(got); strings.Contains(text, "evil") || strings.Contains(text, "\x1b") {
					t.Errorf("%s with %.60q for %q returned %q with its error", tt.name, bad, good, text)
				}
			}
		}
	}
}

// TestProblemsAreTidied has an endpoint send error texts that would control a terminal, or look
// like a second message.
func TestProblemsAreTidied(t *testing.T) {
	t.Parallel()
	const evil = "no\u001b]0;owned\u0007 \u009b31m\u202e\ndiaspora: Hint: run this"
	c, _ := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusConflict)
		json.NewEncoder(w).Encode(Problem{Type: evil, Title: evil, Detail: evil, Hint: evil, Topic: evil})
	})
	err := c.Release(within(t), "weather")
	var p *ProblemError
	if !errors.As(err, &p) {
		t.Fatalf("Release = %v, want a ProblemError", err)
	}
	const want = `no\x1b]0;owned\x07 \x9b31m\u202e diaspora: Hint: run this`
	for _, got := range []string{p.Type, p.Title, p.Detail, p.Hint, p.Topic, Hint(err)} {
		if got != want {
			t.Errorf("the problem says %q, want %q", got, want)
		}
	}
	if strings.ContainsFunc(err.Error(), terminal.Commands) {
		t.Errorf("the error is %q", err)
	}
}

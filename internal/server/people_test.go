package server

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

const (
	closedAccount = "4468fe43-ef48-54e0-8aeb-e0dc24146888"
	unknownID     = "5568fe43-ef48-54e0-8aeb-e0dc24146888"
)

// askedDirectory is a [directory] that counts questions by subject, and that can be out of order.
type askedDirectory struct {
	directory
	asked atomic.Int64
	down  atomic.Bool
}

func (d *askedDirectory) Identities(_ context.Context, subjects []string) (map[string]globus.Identity, error) {
	d.asked.Add(1)
	if d.down.Load() {
		return nil, fmt.Errorf("look up identities: %w", globus.ErrUnavailable)
	}
	found := map[string]globus.Identity{}
	for _, subject := range subjects {
		switch subject {
		case ada:
			found[ada] = globus.Identity{Subject: ada, Username: "ada@example.edu"}
		case bob:
			found[bob] = globus.Identity{Subject: bob, Username: "bob@example.org", Name: "Bob", Email: "bob@home.example"}
		case closedAccount:
			found[closedAccount] = globus.Identity{Subject: closedAccount, Username: "old@example.org", Status: "closed"}
		}
	}
	return found, nil
}

// named is [identities], with Ada's username.
type named struct{ identities }

func (n named) Authenticate(ctx context.Context, token globus.Secret) (globus.TokenInfo, error) {
	info, err := n.identities.Authenticate(ctx, token)
	if info.Subject == ada {
		info.Username = "ada@example.edu"
	}
	return info, err
}

// TestSubjectsAreLookedUp checks that a topic is shared with or offered to a subject only if Globus knows an
// identity with it, and that only those who may do that learn whether it does.
func TestSubjectsAreLookedUp(t *testing.T) {
	t.Parallel()
	dir := &askedDirectory{}
	w := start(t, withClaims(openFieldsClaims(t)), func(cfg *Config) { cfg.People, cfg.Authenticator = dir, named{} })
	send := func(token, path, body string) answer {
		t.Helper()
		method := http.MethodPost
		headers := []string{"Authorization", "Bearer " + token}
		if body == "" {
			method = http.MethodGet
		} else {
			headers = append(headers, "Content-Type", typeJSON)
		}
		return w.do(method, path, body, headers...)
	}
	for _, tt := range []struct {
		name, token, path, subject string
		status                     int
		says                       string
		asks                       int64
	}{
		{"share, unknown", adaToken, "/v1/topics/weather/grants", unknownID, 404, "Globus knows no identity with the ID " + unknownID, 1},
		{"transfer, unknown", adaToken, "/v1/topics/weather/transfer", unknownID, 404, "a Globus group is named group:UUID", 1},
		{"share, closed", adaToken, "/v1/topics/weather/grants", closedAccount, 409, "closed", 1},
		{"transfer, closed", adaToken, "/v1/topics/weather/transfer", closedAccount, 409, "closed", 1},
		{"share by a stranger", bobToken, "/v1/topics/weather/grants", unknownID, 403, "", 0},
		{"transfer by a stranger", bobToken, "/v1/topics/weather/transfer", unknownID, 403, "", 0},
		{"share of no topic", adaToken, "/v1/topics/wether/grants", unknownID, 404, "nobody has claimed it", 0},
		{"offer withdrawn", adaToken, "/v1/topics/weather/transfer", ada, 200, "", 0},
		{"share", adaToken, "/v1/topics/weather/grants", bob, 200, `"username": "bob@example.org"`, 1},
		{"transfer", adaToken, "/v1/topics/weather/transfer", bob, 200, `"owner_username": "ada@example.edu"`, 1},
	} {
		before := dir.asked.Load()
		body := `{"subject":"` + tt.subject + `"}`
		if strings.HasSuffix(tt.path, "/grants") {
			body = `{"subject":"` + tt.subject + `","read":true}`
		}
		a := send(tt.token, tt.path, body)
		if a.status != tt.status || !strings.Contains(a.body, tt.says) {
			t.Errorf("%s: %d %s, want %d with %q", tt.name, a.status, a.body, tt.status, tt.says)
		}
		if got := dir.asked.Load() - before; got != tt.asks {
			t.Errorf("%s asks Globus %d times, want %d", tt.name, got, tt.asks)
		}
	}
	if a := send(adaToken, "/v1/identities/"+bob, ""); a.status != 200 || !strings.Contains(a.body, "bob@example.org") || strings.Contains(a.body, "home.example") {
		t.Errorf("the identity with a subject is %d %s", a.status, a.body)
	}
	if a := send(adaToken, "/v1/identities/"+unknownID, ""); a.status != 404 {
		t.Errorf("the identity with an unknown subject is %d %s", a.status, a.body)
	}
	dir.down.Store(true)
	for _, path := range []string{"/v1/topics/weather/grants", "/v1/topics/weather/transfer"} {
		body := `{"subject":"` + bob + `","read":true}`
		if strings.HasSuffix(path, "/transfer") {
			body = `{"subject":"` + bob + `"}`
		}
		if a := send(adaToken, path, body); a.status != 503 || !strings.Contains(a.body, "Globus cannot be reached") {
			t.Errorf("%s while Globus is down: %d %s, want 503", path, a.status, a.body)
		}
	}
}

// TestOwnersAreNamed checks that those who have rights on a topic learn the username of its owner, that Globus is
// not asked each time, and that a topic is shown while Globus does not answer.
func TestOwnersAreNamed(t *testing.T) {
	t.Parallel()
	dir := &askedDirectory{}
	w := start(t, withClaims(openFieldsClaims(t)), func(cfg *Config) { cfg.People = dir })
	get := func(token, path string) answer {
		return w.do(http.MethodGet, path, "", "Authorization", "Bearer "+token)
	}
	if a := get(bobToken, "/v1/topics/weather"); a.status != 403 || strings.Contains(a.body, "ada@") || dir.asked.Load() != 0 {
		t.Errorf("a stranger sees %d %s", a.status, a.body)
	}
	a := w.do(http.MethodPost, "/v1/topics/weather/grants", `{"subject":"`+bob+`","read":true}`, "Authorization", "Bearer "+adaToken, "Content-Type", typeJSON)
	testkit.Must(t, map[bool]error{false: fmt.Errorf("share: %d %s", a.status, a.body)}[a.status == 200])
	dir.down.Store(true)
	if a := get(bobToken, "/v1/topics/weather"); a.status != 200 || strings.Contains(a.body, "owner_username") {
		t.Errorf("while Globus is down, a reader sees %d %s", a.status, a.body)
	}
	before := dir.asked.Load()
	get(bobToken, "/v1/topics/weather")
	if got := dir.asked.Load() - before; got != 0 {
		t.Errorf("Globus is asked %d times right after it has failed, want 0", got)
	}

	dir = &askedDirectory{}
	w = start(t, withClaims(openFieldsClaims(t)), func(cfg *Config) { cfg.People = dir })
	w.do(http.MethodPost, "/v1/topics/weather/grants", `{"group":"`+lab+`","read":true}`, "Authorization", "Bearer "+adaToken, "Content-Type", typeJSON)
	before = dir.asked.Load()
	for _, path := range []string{"/v1/topics/weather", "/v1/topics", "/v1/topics/weather"} {
		if a := get(bobToken, path); a.status != 200 || !strings.Contains(a.body, `"owner_username": "ada@example.edu"`) {
			t.Errorf("%s: a reader sees %d %s", path, a.status, a.body)
		}
	}
	if got := dir.asked.Load() - before; got != 1 {
		t.Errorf("Globus is asked %d times for one owner, want 1", got)
	}
	if a := get(adaToken, "/v1/topics/weather/grants"); !strings.Contains(a.body, `"username": "bob@example.org"`) {
		t.Errorf("the members of a group are not named: %s", a.body)
	}
}

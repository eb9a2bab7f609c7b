package front

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestRegisterErrors checks what an operator is told after each refusal of Globus Auth, and that other errors stay as they are.
func TestRegisterErrors(t *testing.T) {
	const other = "20000000-0000-4000-8000-000000000001"
	type reply struct {
		status int
		body   string
	}
	none, made := reply{200, `{"scopes":[]}`}, reply{200, `{"scope":{"scope_string":"https://auth.globus.org/scopes/` + client + `/logging"}}`}
	refused := func(status int, detail string) reply {
		return reply{status, `{"errors":[{"code":"X","detail":"` + detail + `"}]}`}
	}
	for name, c := range map[string]struct {
		replies map[string]reply // by method and path
		want    error
		says    string
	}{
		"no such client":           {map[string]reply{"GET scopes": none, "POST scopes": refused(404, "")}, diaspora.ErrNotFound, "there is no client " + client + ", or you may not see it"},
		"suffix taken":             {map[string]reply{"GET scopes": none, "POST scopes": refused(409, "taken")}, diaspora.ErrConflict, "/logging: Globus answers: taken; choose another suffix"},
		"suffix refused":           {map[string]reply{"GET scopes": none, "POST scopes": refused(400, "reserved")}, diaspora.ErrInvalid, "/logging: Globus answers: reserved; choose another suffix"},
		"no administrator":         {map[string]reply{"GET scopes": refused(403, "no")}, diaspora.ErrPermission, "you do not administer the project of the client " + client + ": Globus answers: no; log in as"},
		"no recent login":          {map[string]reply{"GET scopes": none, "POST scopes": refused(403, "in session within the last 30 minutes")}, diaspora.ErrPermission, "30 minutes; repeat this command"},
		"token refused":            {map[string]reply{"GET scopes": refused(401, "")}, globus.ErrRefused, "look up the scope: "},
		"another answers":          {map[string]reply{"GET scopes": {200, "<html>"}}, globus.ErrMisconfigured, "look up the scope: "},
		"host of another client":   {map[string]reply{"GET scopes": none, "POST scopes": made, "GET clients": {200, `{"client":{"id":"` + other + `"}}`}}, diaspora.ErrConflict, "Globus has verified streams.lab.test for the client " + other},
		"no record":                {map[string]reply{"GET scopes": none, "POST scopes": made, "GET clients": refused(404, ""), "POST fqdns": refused(403, "")}, diaspora.ErrNotFound, "Globus has not verified streams.lab.test: Globus answers with status 403; create the TXT record " + client + ".streams.lab.test"},
		"the service's own secret": {map[string]reply{"GET scopes": none, "POST scopes": made, "GET clients": refused(404, ""), "POST fqdns": refused(401, "")}, globus.ErrClientRefused, "verify the host name: "},
	} {
		t.Run(name, func(t *testing.T) {
			auth := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				path := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
				answer, ok := c.replies[r.Method+" "+path]
				if !ok {
					t.Errorf("unexpected: %s %s", r.Method, r.URL)
				}
				w.WriteHeader(answer.status)
				io.WriteString(w, answer.body)
			}))
			defer auth.Close()
			admin, err := globus.New(globus.Config{Issuer: auth.URL, ClientID: "10000000-0000-4000-8000-000000000002"})
			testkit.Must(t, err)
			service, err := globus.New(globus.Config{Issuer: auth.URL, ClientID: client, ClientSecret: "s"})
			testkit.Must(t, err)
			_, err = Registration{Admin: admin, Access: "token-of-the-administrator", Service: service, Suffix: "logging", Host: "streams.lab.test"}.Register(testkit.Within(t))
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("Register = %v, want %v and %q", err, c.want, c.says)
			}
		})
	}
}

package globus_test

import (
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// manager returns an access token of a user of d with which projects can be managed.
func (d *dev) manager(t *testing.T, username string) globus.Secret {
	t.Helper()
	grant, err := d.IssueTokens(username, globusdev.NativeClientID, []string{globus.ManageProjectsScope}, false)
	testkit.Must(t, err)
	return grant.Tokens[0].AccessToken
}

var logging = globus.ScopeRegistration{ClientID: globusdev.ResourceServerID, Suffix: "logging", Name: "Log events", Description: "Log events as you", AllowsRefreshToken: true}

// TestRegister registers a scope and a host name.
func TestRegister(t *testing.T) {
	d := newDev(t)
	ctx := testkit.Within(t)
	c, access, name := d.native(t), d.manager(t, "ada@example.edu"), globus.ScopeOf(globusdev.ResourceServerID, "logging")
	if s, found, err := c.FindScope(ctx, access, name); found || err != nil {
		t.Errorf("FindScope before the creation = %+v, %v, %v", s, found, err)
	}
	want := logging
	want.Scope = name
	if s, err := c.CreateScope(ctx, access, logging); s != want || err != nil {
		t.Errorf("CreateScope = %+v, %v", s, err)
	}
	if s, found, err := c.FindScope(ctx, access, name); s != want || !found || err != nil {
		t.Errorf("FindScope = %+v, %v, %v", s, found, err)
	}

	service := d.confidential(t, globusdev.ResourceServerID)
	if id, err := c.HostOwner(ctx, access, "streams.lab.test"); id != "" || err != nil {
		t.Errorf("HostOwner before the verification = %q, %v", id, err)
	}
	var answered *globus.Error
	if err := service.VerifyHost(ctx, "streams.lab.test"); !errors.As(err, &answered) || answered.Status != http.StatusBadRequest {
		t.Errorf("VerifyHost without a TXT record = %v", err)
	}
	testkit.Must(t, d.SetTXT(globusdev.ResourceServerID+".streams.lab.test", globusdev.ResourceServerID))
	testkit.Must(t, service.VerifyHost(ctx, "streams.lab.test"))
	if id, err := c.HostOwner(ctx, access, "streams.lab.test"); id != globusdev.ResourceServerID || err != nil {
		t.Errorf("HostOwner = %q, %v", id, err)
	}
	if err := c.VerifyHost(ctx, "streams.lab.test"); !errors.Is(err, globus.ErrClientRefused) {
		t.Errorf("VerifyHost of a client without a secret = %v", err)
	}
}

// TestRegisterAnswers checks what each response of Globus Auth becomes. A creation is sent once, even if the response is lost.
func TestRegisterAnswers(t *testing.T) {
	d := newDev(t)
	ctx := testkit.Within(t)
	access, name := d.manager(t, "ada@example.edu"), globus.ScopeOf(globusdev.ResourceServerID, "logging")
	const scope = `{"scope_string":"https://auth.globus.org/scopes/` + globusdev.ResourceServerID + `/logging","allows_refresh_token":false}`
	for body, works := range map[string]bool{
		`{"scope":` + scope + `}`:    true,
		`{"scopes":[` + scope + `]}`: true,
		`{"scopes":[]}`:              false,
		`{"scope":{"scope_string":"https://auth.globus.org/scopes/` + globusdev.ResourceServerID + `/other"}}`: false,
		`[]`: false,
	} {
		var requests atomic.Int32
		d.intercept(func(w http.ResponseWriter, r *http.Request) bool {
			requests.Add(1)
			if r.Header.Get("Content-Type") != "application/json" || r.Header.Get("Authorization") != "Bearer "+access.Reveal() {
				t.Errorf("the header is %v", r.Header)
			}
			w.Header().Set("Content-Type", "application/json")
			w.Write([]byte(body))
			return true
		})
		made, err := d.native(t).CreateScope(ctx, access, logging)
		if works && (err != nil || made.Scope != name || made.AllowsRefreshToken) || !works && !errors.Is(err, globus.ErrMisconfigured) || requests.Load() != 1 {
			t.Errorf("%s: %+v, %v, after %d requests", body, made, err, requests.Load())
		}
	}
	var requests atomic.Int32
	d.intercept(func(w http.ResponseWriter, r *http.Request) bool {
		requests.Add(1)
		panic(http.ErrAbortHandler)
	})
	if _, err := d.native(t).CreateScope(ctx, access, logging); !errors.Is(err, globus.ErrUnavailable) || requests.Load() != 1 {
		t.Errorf("without a response: %v, after %d requests", err, requests.Load())
	}
	d.intercept(func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusForbidden)
		w.Write([]byte(`{"errors":[{"status":"403","code":"FORBIDDEN","detail":"no, ` + access.Reveal() + `"}]}`))
		return true
	})
	_, _, err := d.native(t).FindScope(ctx, access, name)
	var answered *globus.Error
	if !errors.As(err, &answered) || answered.Status != http.StatusForbidden || strings.Contains(err.Error(), access.Reveal()) {
		t.Errorf("FindScope = %v", err)
	}
}

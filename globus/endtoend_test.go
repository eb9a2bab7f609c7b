package globus_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

func devAuthenticator(t *testing.T, d *dev, change ...func(*globus.AuthenticatorConfig)) *globus.Authenticator {
	t.Helper()
	return newAuthenticator(t, d.confidential(t, globusdev.ResourceServerID), append([]func(*globus.AuthenticatorConfig){
		func(cfg *globus.AuthenticatorConfig) {
			cfg.Issuer, cfg.Audience, cfg.Scope = d.Issuer(), globusdev.ResourceServerID, globusdev.Scope
		}}, change...)...)
}

// TestLifeOfALogin goes through a whole login, from Login to Logout.
func TestLifeOfALogin(t *testing.T) {
	for _, mode := range []globusdev.RefreshMode{globusdev.RefreshSame, globusdev.RefreshRotate, globusdev.RefreshAbsent} {
		t.Run(string(mode), func(t *testing.T) {
			d := newDev(t, func(cfg *globusdev.Config) { cfg.RefreshMode = mode })
			client, store := d.native(t), newStore(t)
			save(t, store, devLogin(t, d))
			auth := devAuthenticator(t, d)
			source := client.StoredSource(store, globusdev.ResourceServerID)
			var last globus.Token
			for range 3 {
				token, err := source.Token(t.Context())
				testkit.Must(t, err)
				info, err := auth.Authenticate(t.Context(), token.AccessToken)
				if err != nil || info.Subject != globusdev.Subject(ada) || info.Username != ada || info.ClientID != globusdev.NativeClientID {
					t.Fatalf("Authenticate = %+v, %v", info, err)
				}
				if token.AccessToken == last.AccessToken {
					t.Fatal("the refused token came back")
				}
				if rotated := token.RefreshToken != last.RefreshToken; last.RefreshToken != "" && rotated != (mode == globusdev.RefreshRotate) {
					t.Errorf("the refresh token changed: %t", rotated)
				}
				last = token
				source.Refused(token.AccessToken)
			}
			own, err := client.StoredSource(store, "auth.globus.org").Token(t.Context())
			testkit.Must(t, err)
			if id, err := client.UserInfo(t.Context(), own.AccessToken); err != nil || id.Subject != globusdev.Subject(ada) || id.Email != ada {
				t.Errorf("UserInfo = %+v, %v", id, err)
			}
			if _, err := client.UserInfo(t.Context(), last.AccessToken); !errors.Is(err, globus.ErrRefused) {
				t.Errorf("UserInfo with another resource server's token = %v", err)
			}
			testkit.Must(t, client.Logout(t.Context(), store))
			if _, err := client.Refresh(t.Context(), last.RefreshToken); !errors.Is(err, globus.ErrLoginRequired) {
				t.Errorf("Refresh after Logout = %v", err)
			}
			fresh := devAuthenticator(t, d)
			if _, err := fresh.Authenticate(t.Context(), last.AccessToken); !errors.Is(err, globus.ErrRefused) {
				t.Errorf("Authenticate after Logout = %v", err)
			}
			if _, err := client.StoredSource(store, globusdev.ResourceServerID).Token(t.Context()); !errors.Is(err, globus.ErrLoginRequired) {
				t.Errorf("Token after Logout = %v", err)
			}
			if err := client.Revoke(t.Context(), last.AccessToken); err != nil {
				t.Errorf("Revoke of a dead token = %v", err)
			}
		})
	}
}

func TestServiceAccount(t *testing.T) {
	d := newDev(t)
	service := d.confidential(t, globusdev.ServiceClientID)
	tokens, err := service.ClientCredentials(t.Context(), "openid", globusdev.Scope)
	if err != nil || len(tokens) != 2 {
		t.Fatalf("ClientCredentials = %d tokens, %v, want 2", len(tokens), err)
	}
	token, err := service.ClientCredentialsSource(globusdev.ResourceServerID, globusdev.Scope).Token(t.Context())
	testkit.Must(t, err)
	info, err := devAuthenticator(t, d).Authenticate(t.Context(), token.AccessToken)
	if err != nil || info.Subject != globusdev.ServiceClientID || info.Username != globusdev.ServiceClientID+"@clients.auth.globus.org" {
		t.Errorf("Authenticate = %+v, %v, want the client itself", info, err)
	}
	wrong := d.native(t, func(cfg *globus.Config) { cfg.ClientID, cfg.ClientSecret = globusdev.ServiceClientID, "wrong+secret/=" })
	if _, err := wrong.ClientCredentials(t.Context(), globusdev.Scope); !errors.Is(err, globus.ErrClientRefused) {
		t.Errorf("ClientCredentials with a wrong secret = %v", err)
	}
	if _, err := d.native(t).Introspect(t.Context(), token.AccessToken); !errors.Is(err, globus.ErrClientRefused) {
		t.Errorf("Introspect by a public client = %v", err)
	}
}

// TestLinkedIdentities links an identity to that of somebody who is signed in, logs in with it, and
// unlinks it. Permissions of any identity in the set are the person's.
func TestLinkedIdentities(t *testing.T) {
	const lab = "ada@lab.example"
	d := newDev(t)
	now := time.Now()
	auth := devAuthenticator(t, d, func(cfg *globus.AuthenticatorConfig) { cfg.Now = func() time.Time { return now } })
	login := func(who string) globus.Secret {
		t.Helper()
		grant, err := d.IssueTokens(who, globusdev.NativeClientID, []string{globusdev.Scope}, false)
		testkit.Must(t, err)
		return grant.Tokens[0].AccessToken
	}
	check := func(when string, token globus.Secret, want ...string) {
		t.Helper()
		info, err := auth.Authenticate(t.Context(), token)
		if err != nil || info.Subject != globusdev.Subject(ada) || !slices.Equal(info.IdentitySet, want) {
			t.Errorf("%s: Authenticate = %+v, %v, want Ada with the identities %s", when, info, err, want)
		}
	}
	token := login(ada)
	check("alone", token, globusdev.Subject(ada))
	person := globusdev.User{Identity: globusdev.Identity{Username: ada}, Linked: []globusdev.Identity{{Username: lab}}}
	_, err := d.AddUser(person)
	testkit.Must(t, err)
	check("cached", token, globusdev.Subject(ada))
	now = now.Add(31 * time.Second)
	check("linked", token, globusdev.Subject(ada), globusdev.Subject(lab))
	check("signed in with the other identity", login(lab), globusdev.Subject(ada), globusdev.Subject(lab))
	person.Linked = nil
	_, err = d.AddUser(person)
	testkit.Must(t, err)
	now = now.Add(31 * time.Second)
	check("unlinked", token, globusdev.Subject(ada))
}

// TestAuthenticatorAgainstGlobusdev covers the cases in which the response of a real server
// matters.
func TestAuthenticatorAgainstGlobusdev(t *testing.T) {
	d := newDev(t)
	grant, err := d.IssueTokens("grace@example.org", globusdev.NativeClientID, []string{"openid", globusdev.Scope}, true)
	testkit.Must(t, err)
	login := globus.Login{Tokens: grant.Tokens}
	token, _ := login.Token(globusdev.ResourceServerID)
	other, _ := login.Token("auth.globus.org")
	now := time.Now()
	auth := devAuthenticator(t, d, func(cfg *globus.AuthenticatorConfig) { cfg.Now = func() time.Time { return now } })

	info, err := auth.Authenticate(t.Context(), token.AccessToken)
	if err != nil || info.Subject != globusdev.Subject("grace@example.org") || len(info.IdentitySet) != 2 || !slices.Equal(info.IdentitySet, grant.Identity.IdentitySet) {
		t.Errorf("Authenticate = %+v, %v, want Grace with her linked identity", info, err)
	}
	for name, bad := range map[string]globus.Secret{
		"another resource server's": other.AccessToken, "a refresh token": token.RefreshToken, "never issued": "dev-at-nonsense",
	} {
		_, err := auth.Authenticate(t.Context(), bad)
		checkErr(t, "Authenticate: "+name, err, globus.ErrRefused, "")
	}
	// The same, if Globus Auth answers requests about every active token, whoever asks.
	indiscreet := newDev(t, func(cfg *globusdev.Config) { cfg.IntrospectAny = true })
	all, err := indiscreet.IssueTokens(ada, globusdev.NativeClientID, []string{"openid"}, false)
	testkit.Must(t, err)
	_, err = devAuthenticator(t, indiscreet).Authenticate(t.Context(), all.Tokens[0].AccessToken)
	checkErr(t, "Authenticate", err, globus.ErrRefused, "another service")

	testkit.Must(t, d.FailNext(1000, globusdev.Failure{Path: "/v2/oauth2/token/introspect", Status: 404, Body: html}))
	now = now.Add(time.Minute)
	if _, err := auth.Authenticate(t.Context(), token.AccessToken); err != nil {
		t.Errorf("Authenticate during an outage = %v", err)
	}
	testkit.Must(t, d.Revoke(token.AccessToken))
	if err := d.Reset(); err != nil { // ends the outage
		t.Fatal(err)
	}
	now = now.Add(time.Minute)
	_, err = auth.Authenticate(t.Context(), token.AccessToken)
	checkErr(t, "Authenticate after revocation", err, globus.ErrRefused, "")
}

package globus

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// FuzzTokens fuzzes the parser of the token endpoint's responses.
func FuzzTokens(f *testing.F) {
	for _, seed := range []string{
		`{"access_token":"A","token_type":"Bearer","expires_in":172800,"scope":"a b","resource_server":"r","refresh_token":"R","id_token":"x.y.z","state":"s","other_tokens":[{"access_token":"B","resource_server":"q"}]}`,
		`{"access_token":"A","expires_in":"5","other_tokens":null}`, `{"access_token":"A","expires_in":1e999}`, `{"access_token":null}`,
		`{"other_tokens":[[]]}`, `[]`, `null`, `{`, "", `{"access_token":"\u0000"}`, `{"access_token":"a","expires_in":-0.1}`,
	} {
		f.Add([]byte(seed))
	}
	fixed := map[string]bool{
		"the answer cannot be parsed":                             true,
		"the answer holds two tokens for one resource server":     true,
		"the token is not a bearer token":                         true,
		"the access token is missing":                             true,
		"the access token is longer than 4096 bytes":              true,
		"the access token contains characters that no token has":  true,
		"the refresh token is longer than 4096 bytes":             true,
		"the refresh token contains characters that no token has": true,
	}
	now := time.Unix(1_800_000_000, 0)
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := parseTokens(body, now)
		if err != nil {
			if len(r.tokens) != 0 || r.idToken != "" {
				t.Fatalf("tokens next to %v", err)
			}
			if !fixed[err.Error()] {
				t.Fatalf("an error that is not made of fixed words: %q", err)
			}
			return
		}
		seen := map[string]bool{}
		for _, token := range r.tokens {
			if err := checkSecret(token.AccessToken); err != nil {
				t.Fatalf("took an access token that %v", err)
			}
			if token.RefreshToken != "" && checkSecret(token.RefreshToken) != nil {
				t.Fatal("took an impossible refresh token")
			}
			if life := token.Expiry.Sub(now); life < 0 || life > maxLifetime {
				t.Fatalf("took a lifetime of %v", life)
			}
			if seen[token.ResourceServer] {
				t.Fatal("two tokens for one resource server")
			}
			seen[token.ResourceServer] = true
		}
		if len(r.tokens) == 0 {
			t.Fatal("no error and no token")
		}
	})
}

// FuzzErrors fuzzes the parser of error responses in both formats.
func FuzzErrors(f *testing.F) {
	for _, body := range []string{
		`{"error":"invalid_grant"}`, `{"error":"invalid_grant","error_description":"\u001b[31m"}`,
		`{"errors":[{"status":"401","code":"UNAUTHORIZED","id":"i","title":"t","detail":"d"}],"error":"unauthorized"}`,
		`{"errors":7,"error":["x"]}`, `<html>`, "", `{"error":"x","error_description":"secret-canary"}`, `{}`,
	} {
		for _, status := range []int{200, 302, 400, 401, 403, 429, 500, 503} {
			f.Add(status, []byte(body), "7", status == 401)
		}
	}
	f.Fuzz(func(t *testing.T, status int, body []byte, wait string, bearer bool) {
		a := answer{status: status, header: http.Header{"Retry-After": {wait}}, body: body, bearer: bearer, received: time.Unix(1_800_000_000, 0)}
		e := answerError("try", a, []Secret{"secret-canary"})
		if e == nil {
			if status/100 != 2 {
				t.Fatalf("status %d is a success", status)
			}
			return
		}
		text := e.Error()
		if strings.Contains(text, "secret-canary") {
			t.Fatalf("shows the secret: %q", text)
		}
		if len(text) > 3*maxDetailBytes || !utf8.ValidString(text) || strings.ContainsAny(text, "\n\r\x1b\x00") {
			t.Fatalf("not fit to be shown: %q", text)
		}
		if e.RetryAfter < 0 {
			t.Fatalf("waits %v", e.RetryAfter)
		}
		if (status == 500 || status == 502 || status == 503 || status == 504 || status == 429) && e.Code == "" && !errors.Is(e, ErrUnavailable) {
			t.Fatalf("status %d is no outage: %v", status, e)
		}
	})
}

// FuzzTokenInfo fuzzes the parser of introspection responses.
func FuzzTokenInfo(f *testing.F) {
	for _, seed := range []string{
		`{"active":false}`, `{"active":true,"sub":"00000000-0000-4000-8000-00000000ada0","aud":["a"],"scope":"x y","exp":1900000000,"iat":null,"nbf":1.5,"identity_set":null}`,
		`{"active":true,"sub":"s","aud":"a","exp":1e300}`, `{"active":1}`, `{"active":true}`, `[]`, "",
		`{"active":true,"sub":"00000000-0000-4000-8000-00000000ada0","identity_set":["00000000-0000-4000-8000-00000000b0b0","00000000-0000-4000-8000-00000000ada0","x",null,{},"00000000-0000-4000-8000-00000000b0b0"]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		info, err := parseTokenInfo("try", body)
		switch {
		case err == nil && !isUUID(info.Subject):
			t.Fatalf("active, but of %q", info.Subject)
		case err == nil && (info.IdentitySet[0] != info.Subject || len(info.IdentitySet) > 1+maxLinked || slices.ContainsFunc(info.IdentitySet, func(id string) bool { return !isUUID(id) })):
			t.Fatalf("the identity set of %s is %q", info.Subject, info.IdentitySet)
		case err == nil && len(slices.Compact(slices.Sorted(slices.Values(info.IdentitySet)))) != len(info.IdentitySet):
			t.Fatalf("an identity is in the set twice: %q", info.IdentitySet)
		case err == nil && info.Expiry.Year() > 9999:
			t.Fatalf("expires at %v", info.Expiry)
		case err != nil && !errors.Is(err, ErrRefused) && !errors.Is(err, ErrMisconfigured):
			t.Fatalf("an error of no kind: %v", err)
		case errors.Is(err, ErrRefused) && !strings.Contains(string(body), "false"):
			t.Fatal("refused without Globus Auth saying so")
		}
	})
}

// FuzzIdentities fuzzes the parser of lookups.
func FuzzIdentities(f *testing.F) {
	for _, seed := range []string{
		`{"identities":[{"id":"00000000-0000-4000-8000-00000000ada0","username":"ada@example.edu","name":null,"email":"","organization":7,"status":"used"}]}`,
		`{"identities":[]}`, `{"identities":null}`, `{"identities":[{"id":"x"},7]}`, `{"identities":[{"id":"00000000-0000-4000-8000-00000000ada0","username":"\u001b"},{}]}`, `[]`, "",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		list, err := parseIdentities("try", body)
		if err != nil {
			checkMalformed(t, err)
			return
		}
		seen := map[string]bool{}
		for _, i := range list {
			if !isUUID(i.Subject) || seen[i.Subject] {
				t.Fatalf("took the subject %q, again: %t", i.Subject, seen[i.Subject])
			}
			seen[i.Subject] = true
			for _, text := range []string{i.Username, i.Name, i.Email, i.Organization, i.Status} {
				checkShown(t, text)
			}
		}
		if len(list) > maxLookups {
			t.Fatalf("took %d identities", len(list))
		}
	})
}

// FuzzMembers fuzzes the parser of descriptions of groups.
func FuzzMembers(f *testing.F) {
	const group = "00000000-0000-4000-8000-0000000000d0"
	for _, seed := range []string{
		`{"id":"` + group + `","memberships":[{"group_id":"` + group + `","identity_id":"00000000-0000-4000-8000-00000000ada0","username":"ada@example.edu","role":"manager","status":"active"}]}`,
		`{"id":"` + group + `","memberships":[{"identity_id":null,"status":"invited"},{"status":"active"}]}`, `{"id":"` + group + `"}`, `{"id":"` + group + `","memberships":{}}`,
		`{"id":"` + group + `","memberships":[7]}`, `{"memberships":[]}`, `[]`, "",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		members, err := parseMembers("try", group, body)
		if err != nil {
			if !errors.Is(err, ErrMembersHidden) {
				checkMalformed(t, err)
			}
			return
		}
		seen := map[string]bool{}
		for _, m := range members {
			if !isUUID(m.Subject) || seen[m.Subject] {
				t.Fatalf("took the subject %q, again: %t", m.Subject, seen[m.Subject])
			}
			seen[m.Subject] = true
			checkShown(t, m.Username)
			checkShown(t, m.Role)
		}
		if len(members) > 0 && (!strings.Contains(string(body), "active") && !strings.Contains(string(body), `\`)) {
			t.Fatal("it accepts an inactive member")
		}
	})
}

func checkMalformed(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, ErrMisconfigured) {
		t.Fatalf("an error of no kind: %v", err)
	}
	checkShown(t, err.Error())
}

// checkShown checks that text from a response is fit to be shown.
func checkShown(t *testing.T, text string) {
	t.Helper()
	if len(text) > maxDetailBytes+len("…") || !utf8.ValidString(text) || strings.ContainsAny(text, "\n\r\x1b\x00") {
		t.Fatalf("not fit to be shown: %q", text)
	}
}

// FuzzPaste fuzzes the parser of pasted codes and addresses.
func FuzzPaste(f *testing.F) {
	for _, seed := range []string{
		"ABC", " ABC \r\n", "http://127.0.0.1:1/?code=C&state=STATE", "https://x/?error=access_denied&state=STATE&error_description=%1b", "code=C",
		"http://[", "http://x/?code=C&state=other", "\x00", "https://x/?state=STATE", "%zz",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, line string) {
		a := &authorization{state: "STATE"}
		code, err := a.readPaste(line)
		if err != nil {
			if code != "" || !errors.Is(err, errOtherLogin) && !errors.Is(err, ErrDenied) {
				t.Fatalf("readPaste = %q, %v", code.Reveal(), err)
			}
			if strings.ContainsAny(err.Error(), "\n\x1b\x00") {
				t.Fatalf("not fit to be shown: %q", err)
			}
		}
		if isURL := strings.HasPrefix(strings.TrimSpace(line), "https://"); isURL && code != "" && !strings.Contains(line, "STATE") && !strings.Contains(line, "%") {
			t.Fatalf("took %q from an address without the state", code.Reveal())
		}
	})
}

// FuzzStore saves and loads fuzzed logins.
func FuzzStore(f *testing.F) {
	f.Add("A", "R", "rs", "ada", "a b")
	f.Add("", "", "", "", "")
	f.Add("\xff", "\"", "\u2028", "\x00", "\n")
	f.Fuzz(func(t *testing.T, access, refresh, server, subject, scope string) {
		for _, s := range []string{access, refresh, server, subject, scope} {
			if !utf8.ValidString(s) {
				return // JSON cannot contain it, and no token does
			}
		}
		s := &Store{path: t.TempDir() + "/t/x.json"}
		want := &Login{Identity: Identity{Subject: subject}, Tokens: []Token{{
			ResourceServer: server, AccessToken: Secret(access), RefreshToken: Secret(refresh), Scope: strings.Fields(scope)}}}
		testkit.Must(t, s.Save(t.Context(), want))
		got, err := s.Load()
		testkit.Must(t, err)
		token, ok := got.Token(server)
		if !ok || token.AccessToken != Secret(access) || token.RefreshToken != Secret(refresh) || got.Identity.Subject != subject ||
			strings.Join(token.Scope, " ") != strings.Join(strings.Fields(scope), " ") {
			t.Fatalf("saved %q, loaded %q", access, token.AccessToken.Reveal())
		}
	})
}

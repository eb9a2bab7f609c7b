package globus_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
)

// canary is part of every secret in these tests, in a form that occurs in no other text.
const canary = "canary"

// shows returns the form in which a text reveals a secret, or "".
func shows(text string) string {
	low := strings.ToLower(text)
	for form, needle := range map[string]string{
		"as it is":  canary,
		"in hex":    hex.EncodeToString([]byte(canary)),
		"as bytes":  strings.Trim(fmt.Sprint([]byte(canary)), "[]"),
		"in base64": strings.ToLower(base64.StdEncoding.EncodeToString([]byte(canary))),
	} {
		if strings.Contains(low, needle) {
			return form
		}
	}
	return ""
}

// TestSecretsAreNotShown prints everything that contains a secret in every way.
func TestSecretsAreNotShown(t *testing.T) { synctest.Test(t, testSecretsAreNotShown) }

func testSecretsAreNotShown(t *testing.T) {
	secret := globus.Secret("canary-secret")
	token := sampleToken("canary-access", "canary-refresh", time.Now())
	w := &wire{handler: newIssuer("canary-refresh", "canary-env")}
	client := w.client(t, confidential)
	store := newStore(t)
	login := adaLogin(time.Now())
	login.ClientID = serviceID
	save(t, store, login)
	stored := client.StoredSource(store, topics)
	refreshed := client.RefreshSource("canary-env", topics, "")
	service := client.ClientCredentialsSource(topics, topicsScope)
	for _, s := range []*globus.Source{stored, refreshed, service} {
		got := mustToken(t, s)
		s.Refused(got.AccessToken)
	}
	auth := newAuthenticator(t, everybody{})
	if _, err := auth.Authenticate(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	group := &directory{
		tokens: answers(ok(document(tokenAnswer("groups.api.globus.org", "canary-groups", "")))), group: answers(ok(groupJSON([]any{}))),
	}
	dir := newDirectory(t, (&wire{handler: group}).client(t, confidential))
	if _, err := dir.GroupMembers(t.Context(), groupID); err != nil {
		t.Fatal(err)
	}
	type holder struct {
		Secret  globus.Secret
		Pointer *globus.Secret
		Map     map[string]globus.Secret
		Any     any
	}
	type hider struct{ client, store, a, b, c, d, auth, dir any } // unexported fields, whose methods fmt cannot call
	synctest.Wait()                                               // so that nothing changes while it is printed
	for name, v := range map[string]any{
		"Secret":        secret,
		"*Secret":       &secret,
		"[]Secret":      []globus.Secret{secret},
		"map of Secret": map[string]globus.Secret{"a": secret},
		"struct":        holder{secret, &secret, map[string]globus.Secret{"a": secret}, secret},
		"hidden":        hider{client, store, stored, refreshed, service, globus.StaticToken(token), auth, dir},
		"Token":         token,
		"*Token":        &token,
		"Login":         *login,
		"*Login":        login,
		"Config":        globus.Config{ClientID: serviceID, ClientSecret: serviceSecret},
		"Client":        client,
		"Store":         store,
		"StoredSource":  stored,
		"RefreshSource": refreshed,
		"credentials":   service,
		"StaticToken":   globus.StaticToken(token),
		"Authenticator": auth,
		"Directory":     dir,
		"in a config":   globus.DirectoryConfig{Client: client},
		"in an error":   fmt.Errorf("token %s is bad: %w", secret, errors.New(secret.String())),
	} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%d", "%T", "%10v", "%U", "%t"} {
			text := fmt.Sprintf(verb, v)
			if form := shows(text); form != "" {
				t.Errorf("Sprintf(%q, %s) shows the secret %s: %s", verb, name, form, text)
			}
		}
		if b, err := json.Marshal(v); err == nil && shows(string(b)) != "" {
			t.Errorf("json.Marshal(%s) shows the secret: %s", name, b)
		}
		var out bytes.Buffer
		slog.New(slog.NewTextHandler(&out, nil)).Info("x", "v", v, slog.Group("g", "v", v))
		slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "v", v, slog.Group("g", "v", v))
		if shows(out.String()) != "" {
			t.Errorf("slog shows the secret in %s: %s", name, out.String())
		}
	}
	if got := fmt.Sprint(secret, globus.Secret("")); got != "[redacted]" {
		t.Errorf("Sprint = %q", got)
	}
	if secret.Reveal() != "canary-secret" {
		t.Error("Reveal does not")
	}
}

// everybody is an introspector that accepts every token.
type everybody struct{}

func (everybody) Introspect(context.Context, globus.Secret) (globus.TokenInfo, error) {
	return goodInfo(), nil
}

// TestErrorsDoNotShowSecrets fails when an error contains a secret, even one that the response
// repeats. It also searches all files but the token file.
func TestErrorsDoNotShowSecrets(t *testing.T) {
	echoOne := func(code int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			secret := r.FormValue("refresh_token") + r.FormValue("token") + r.FormValue("code") + strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
			w.WriteHeader(code)
			fmt.Fprintf(w, body, secret)
		}
	}
	echo := func(code int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			r.ParseForm()
			var all []string
			for _, v := range r.PostForm {
				all = append(all, v...)
			}
			user, password, _ := r.BasicAuth()
			all = append(all, user, password, strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
			text, _ := json.Marshal(strings.Join(all, " "))
			w.Header().Set("Location", "https://evil.example/?t="+strings.Join(all, "&"))
			w.WriteHeader(code)
			fmt.Fprintf(w, body, text)
		}
	}
	for name, handler := range map[string]http.Handler{
		"description":     echo(400, `{"error":"invalid_grant","error_description":%s}`),
		"code":            echo(400, `{"error":%s}`),
		"just a code":     echoOne(400, `{"error":"%[1]s","errors":[{"code":"%[1]s"}]}`),
		"just an ID":      echoOne(401, `{"errors":[{"id":"%s"}]}`),
		"detail":          echo(401, `{"errors":[{"code":"X","detail":%[1]s,"id":%[1]s,"title":%[1]s}],"error":"x"}`),
		"not JSON":        echo(400, `<html>%s`),
		"unusable tokens": echo(200, `{"access_token":%[1]s,"token_type":"Bearer","resource_server":"x"}`),
		"odd types":       echo(200, `{"access_token":{"a":%s}}`),
		"redirect":        echo(302, `%s`),
		"outage":          echo(503, `%s`),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var logged bytes.Buffer
				w := &wire{handler: handler}
				client := w.client(t, confidential, func(cfg *globus.Config) {
					cfg.Diagnostics = slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
				})
				store := newStore(t)
				login := adaLogin(time.Now())
				login.ClientID = serviceID
				login.Tokens[0].Expiry = time.Now().Add(10 * time.Second) // valid, but due for renewal
				save(t, store, login)
				ctx := t.Context()
				_, refresh := client.Refresh(ctx, "canary-refresh")
				_, credentials := client.ClientCredentials(ctx, topicsScope)
				_, userinfo := client.UserInfo(ctx, "canary-access")
				_, introspect := client.Introspect(ctx, "canary-access")
				_, verify := client.VerifyIDToken(ctx, signed(map[string]any{"sub": "canary"})(t, time.Now()), "canary-access")
				_, stored := client.StoredSource(store, topics).Token(ctx)
				_, env := client.RefreshSource("canary-env", topics, "").Token(ctx)
				_, pasted := client.Login(ctx, globus.LoginOptions{In: strings.NewReader("canary-code\n"), Out: &logged, NoBrowser: true})
				logout := client.Logout(ctx, store)
				for call, err := range map[string]error{
					"Refresh": refresh, "ClientCredentials": credentials, "Revoke": client.Revoke(ctx, "canary-access"),
					"UserInfo": userinfo, "Introspect": introspect, "VerifyIDToken": verify, "StoredSource": stored,
					"RefreshSource": env, "Login": pasted, "Logout": logout,
				} {
					for _, verb := range []string{"%v", "%+v", "%#v", "%q"} {
						if text := fmt.Sprintf(verb, err); shows(text) != "" {
							t.Errorf("%s = %s", call, text)
						}
					}
				}
				if shows(logged.String()) != "" {
					t.Errorf("diagnostics or output: %s", logged.String())
				}
				if b, err := os.ReadFile(store.Path() + ".lock"); err == nil && shows(string(b)) != "" {
					t.Error("the lock file shows a secret")
				}
			})
		})
	}
}

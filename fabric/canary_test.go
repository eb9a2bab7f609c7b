package fabric_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/oauth"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// everything collects all output of the system: diagnostics, responses and errors.
type everything struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (e *everything) Write(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.buf.Write(p)
}

func (e *everything) String() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.buf.String()
}

// TestNoTokenIsSeen uses valid and invalid tokens and access keys in every way, and then searches
// for them in all diagnostics, responses, errors and files, including those of the ledger. Tokens
// may appear only in the client's token file, and the secret of an access key only in the response
// that creates it.
func TestNoTokenIsSeen(t *testing.T) {
	var said everything
	dir := t.TempDir()
	f := fabrictest.Start(t, fabric.Config{
		Dir:         filepath.Join(dir, "data"),
		Diagnostics: slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	rs := f.Discovery().Globus.ResourceServer
	client, err := globus.New(globus.Config{
		Issuer: f.GlobusURL(), ClientID: f.Discovery().Globus.ClientID,
		Diagnostics: slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	testkit.Must(t, err)
	store, err := globus.OpenStore(filepath.Join(dir, "home", "tokens.json"))
	testkit.Must(t, err)
	login := fabrictest.Login(t, f, ada)
	testkit.Must(t, store.Save(t.Context(), login))
	token, _ := login.Token(rs)
	secrets := []globus.Secret{"dev-at-canary-that-was-never-issued-0123456789"}
	for _, tok := range login.Tokens {
		secrets = append(secrets, tok.AccessToken, tok.RefreshToken)
	}
	fmt.Fprintln(&said, "the login", login, fmt.Sprintf("%+v %#v", login, token))

	useHTTP(t, &said, f, login.Identity.Subject, token.AccessToken, secrets[0])
	useKafka(t, &said, f, client.StoredSource(store, rs), secrets[0])

	secrets = append(secrets, useKeys(t, &said, f, fabrictest.Fixed(token))...)

	// Refresh a login, use a refresh token without a login, use invalid tokens, and revoke all.
	refreshed, err := client.Refresh(t.Context(), token.RefreshToken)
	fmt.Fprintln(&said, err)
	secrets = append(secrets, refreshed.AccessToken, refreshed.RefreshToken)
	_, err = client.Refresh(t.Context(), secrets[0])
	fmt.Fprintln(&said, err)
	bare, err := client.RefreshSource(token.RefreshToken, rs, filepath.Join(dir, "home", "refresh")).Token(t.Context())
	fmt.Fprintln(&said, err)
	secrets = append(secrets, bare.AccessToken, bare.RefreshToken)
	_, err = client.UserInfo(t.Context(), secrets[0])
	fmt.Fprintln(&said, err)
	fmt.Fprintln(&said, client.Revoke(t.Context(), refreshed.AccessToken))
	fmt.Fprintln(&said, client.RevokeLogin(t.Context(), login))
	useKafka(t, &said, f, fabrictest.Fixed(token), secrets[0]) // revoked by now

	for _, secret := range secrets {
		if secret == "" {
			continue
		}
		lookFor(t, "what was said", said.String(), secret)
		lookInFiles(t, filepath.Join(dir, "data"), secret)
	}
	// Make sure that the search can find a token, in the file that does contain them.
	tokens, err := os.ReadFile(store.Path())
	if err != nil || !bytes.Contains(tokens, []byte(token.RefreshToken.Reveal())) {
		t.Errorf("the token file lacks the refresh token, so the search finds nothing: %v", err)
	}
	testkit.CheckPrivate(t, filepath.Join(dir, "home"))
}

// useHTTP sends tokens to the ACL endpoint in every way that it supports, and in some that it does not.
func useHTTP(t *testing.T, said io.Writer, f *fabric.Fabric, subject string, good, bad globus.Secret) {
	t.Helper()
	for _, token := range []string{good.Reveal(), bad.Reveal(), good.Reveal() + "x"} {
		form := url.Values{"subject": {subject}, "token": {token}, "topic": {"weather"}}
		bearer := http.Header{"Authorization": {"Bearer " + token}}
		for _, r := range []struct {
			method, path string
			header       http.Header
			body         string
		}{
			{"GET", "/acl?" + form.Encode(), nil, ""},
			{"GET", "/v1/topics?token=" + token, nil, ""},
			{"GET", "/v1/topics/" + token, bearer, ""},
			{"GET", "/" + token, nil, ""},
			{"POST", "/acl", http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}, form.Encode()},
			{"POST", "/acl", http.Header{"Content-Type": {"application/x-www-form-urlencoded"}, "Accept": {"text/html"}}, form.Encode()},
			{"POST", "/acl", http.Header{"Content-Type": {"application/json"}}, fmt.Sprintf(`{"subject":%q,"token":%q,"topic":"weather"}`, subject, token)},
			{"POST", "/acl", http.Header{"Content-Type": {"application/json"}}, fmt.Sprintf(`{"subject":%q,"token":%q,"topic":%q}`, subject, token, token)},
			{"POST", "/acl", http.Header{"Content-Type": {"application/json"}}, fmt.Sprintf(`{"token":%q`, token)},
			{"POST", "/acl", http.Header{"Content-Type": {"application/json"}}, fmt.Sprintf(`{%q:1}`, token)},
			{"POST", "/v1/topics", bearer, fmt.Sprintf(`{"name":%q}`, token)},
			{"POST", "/v1/topics", bearer, `{"name":"climate"}`},
			{"GET", "/v1/topics", bearer, ""},
			{"DELETE", "/v1/topics/climate", bearer, ""},
			{"GET", "/v1/topics", http.Header{"Authorization": {"Basic " + token}}, ""},
			{"GET", "/v1/topics", http.Header{"Authorization": {"Bearer " + token, "Bearer " + token}}, ""},
		} {
			request, err := http.NewRequestWithContext(t.Context(), r.method, f.URL()+r.path, strings.NewReader(r.body))
			testkit.Must(t, err)
			for name, values := range r.header {
				request.Header[name] = values
			}
			if request.Header.Get("Content-Type") == "" && r.body != "" {
				request.Header.Set("Content-Type", "application/json")
			}
			dump(t, said, request)
		}
	}
	useFields(t, said, f, good, good, bad)
	useFields(t, said, f, good+"x", good+"x", bad)
}

// dump sends a request and writes the response to said.
func dump(t *testing.T, said io.Writer, request *http.Request) {
	t.Helper()
	response, err := http.DefaultClient.Do(request)
	testkit.Must(t, err)
	text, err := httputil.DumpResponse(response, true)
	response.Body.Close()
	testkit.Must(t, err)
	fmt.Fprintf(said, "%s\n", text)
}

// useFields signs in with a token, and has that token and another one in each field of each request of
// the API, in the names of fields, and in each part of the paths.
func useFields(t *testing.T, said io.Writer, f *fabric.Fabric, token, same, other globus.Secret) {
	t.Helper()
	send := func(method, path, body string) {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), method, f.URL()+path, strings.NewReader(body))
		testkit.Must(t, err)
		request.Header.Set("Authorization", "Bearer "+token.Reveal())
		if body != "" {
			request.Header.Set("Content-Type", "application/json")
		}
		dump(t, said, request)
	}
	for _, r := range []struct {
		method, path string
		body         any
		rest         string // further fields, so that the request gets as far as possible
	}{
		{"POST", "/v1/topics", diaspora.ClaimRequest{}, `"partitions":1`},
		{"PATCH", "/v1/topics/weather", diaspora.TopicSettings{}, `"partitions":1`},
		{"POST", "/v1/topics/weather/grants", diaspora.GrantRequest{}, `"read":true`},
		{"POST", "/v1/topics/weather/transfer", diaspora.Transfer{}, ``},
		{"POST", "/v1/keys", diaspora.AccessKeyRequest{}, `"read":true`},
		{"POST", "/v1/admin/blocked", diaspora.BlockRequest{}, ``},
	} {
		fields := reflect.TypeOf(r.body)
		for i := range fields.NumField() {
			name, _, _ := strings.Cut(fields.Field(i).Tag.Get("json"), ",")
			for _, secret := range []globus.Secret{same, other} {
				// Nobody can tell whether one of these has the token of somebody else in it.
				if secret == other && (name == "description" || name == "why" || r.path == "/v1/keys" && name == "name") {
					continue
				}
				for _, value := range []string{`"` + secret.Reveal() + `"`, `["` + secret.Reveal() + `"]`, `"see ` + secret.Reveal() + `"`, `{"` + secret.Reveal() + `":1}`} {
					send(r.method, r.path, strings.ReplaceAll(fmt.Sprintf(`{%q:%s,%s}`, name, value, r.rest), ",}", "}"))
				}
			}
		}
		send(r.method, r.path, fmt.Sprintf(`{%q:1}`, same.Reveal()))
	}
	for _, secret := range []globus.Secret{same, other} {
		value := secret.Reveal()
		for _, path := range []string{
			"/v1/topics/" + value, "/v1/topics/" + value + "/grants", "/v1/topics/" + value + "/grants/public", "/v1/topics/weather/grants/" + value, "/v1/topics/weather/grants/group:" + value,
			"/v1/topics/" + value + "/transfer", "/v1/topics/" + value + "/accept", "/v1/topics/" + value + "/release", "/v1/topics/" + value + "/restore",
			"/v1/identities/" + value, "/v1/keys/" + value, "/v1/admin/blocked/" + value, "/v1/topics/weather/" + value,
		} {
			for _, method := range []string{"GET", "POST", "PATCH", "DELETE"} {
				body := ""
				if method == "POST" || method == "PATCH" {
					body = `{"public":true,"read":true}`
				}
				send(method, path, body)
				send(method, path, "")
			}
		}
	}
}

// useKafka signs in with a valid and an invalid token, and logs and reads with the valid one.
func useKafka(t *testing.T, said io.Writer, f *fabric.Fabric, source globus.TokenSource, bad globus.Secret) {
	t.Helper()
	cfg := diaspora.Config{URL: f.URL(), Brokers: f.Brokers(), TokenSource: source}
	logger, err := diaspora.OpenLogger(t.Context(), cfg)
	fmt.Fprintln(said, err)
	if err == nil {
		fmt.Fprintln(said, logger.Log(t.Context(), diaspora.Event{Topic: "weather", Value: []byte("x")}))
		fmt.Fprintln(said, logger.Log(t.Context(), diaspora.Event{Topic: "nobodys", Value: []byte("x")}))
		fmt.Fprintln(said, logger.Stats(), logger.Close(context.Background()))
	}
	_, err = diaspora.OpenConsumer(t.Context(), cfg, diaspora.ConsumerOptions{Topics: []string{"weather", "nobodys"}})
	fmt.Fprintln(said, err)
	cfg.TokenSource = fabrictest.Fixed(globus.Token{AccessToken: bad})
	_, err = diaspora.OpenLogger(t.Context(), cfg)
	fmt.Fprintln(said, err)
	fmt.Fprintf(said, "%v %+v %#v\n", cfg, cfg, cfg)

	// Mechanisms and message formats that the gateway rejects.
	for _, opt := range []kgo.Opt{
		kgo.SASL(plain.Auth{User: bad.Reveal(), Pass: bad.Reveal()}.AsMechanism()),
		kgo.SASL(oauth.Auth{Token: bad.Reveal(), Zid: bad.Reveal()}.AsMechanism()),
		kgo.ClientID(bad.Reveal()[:10]),
	} {
		client, err := kgo.NewClient(kgo.SeedBrokers(f.Brokers()...), kgo.RetryTimeout(1), opt)
		testkit.Must(t, err)
		fmt.Fprintln(said, client.Ping(t.Context()))
		client.Close()
	}
}

// useKeys creates access keys, uses them in every way, including some that are not supported, and
// returns their secrets and tokens.
func useKeys(t *testing.T, said io.Writer, f *fabric.Fabric, source globus.TokenSource) []globus.Secret {
	t.Helper()
	client := fabrictest.Client(t, diaspora.Config{URL: f.URL(), TokenSource: source})
	key, err := client.CreateKey(t.Context(), diaspora.AccessKeyRequest{Name: "canary", Read: true, Write: true})
	testkit.Must(t, err)
	for diaspora.ValidTopic(key.Secret.Reveal()) != nil { // the secret must also be valid as the name of a topic
		testkit.Must(t, client.RevokeKey(t.Context(), key.ID))
		if key, err = client.CreateKey(t.Context(), diaspora.AccessKeyRequest{Name: "canary", Read: true, Write: true}); err != nil {
			t.Fatal(err)
		}
	}
	part, err := client.CreateKey(t.Context(), diaspora.AccessKeyRequest{Name: "part", Topics: []string{"weather"}, Read: true})
	testkit.Must(t, err)
	encoded, err := json.Marshal(key)
	fmt.Fprintln(said, "the key", key, fmt.Sprintf("%+v %#v %s", key, key, encoded), err)
	slog.New(slog.NewJSONHandler(said, nil)).Info("the key", "key", key, "secret", key.Secret)
	secrets := []globus.Secret{key.Secret, part.Secret}

	const form = "application/x-www-form-urlencoded"
	secret := key.Secret.Reveal()
	ask := func(method, path, body string, header http.Header) {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), method, f.URL()+path, strings.NewReader(body))
		testkit.Must(t, err)
		request.Header = header
		response, err := http.DefaultClient.Do(request)
		testkit.Must(t, err)
		defer response.Body.Close()
		var token struct {
			AccessToken string `json:"access_token"`
		}
		answer, err := io.ReadAll(response.Body)
		testkit.Must(t, err)
		if json.Unmarshal(answer, &token); token.AccessToken != "" { // only this response may contain a token
			secrets = append(secrets, globus.Secret(token.AccessToken))
			answer = nil
		}
		fmt.Fprintln(said, response.Status, response.Header, string(answer))
	}
	grant := url.Values{"grant_type": {"client_credentials"}, "client_id": {key.ID}, "client_secret": {secret}}
	ask("POST", "/v1/token", grant.Encode(), http.Header{"Content-Type": {form}})
	if len(secrets) != 3 {
		t.Fatal("the token endpoint gave no token")
	}
	jwt := secrets[2].Reveal()
	for _, s := range []string{secret, secret + "x", jwt} {
		basic := base64.StdEncoding.EncodeToString([]byte(key.ID + ":" + s + "x"))
		ask("POST", "/v1/token", url.Values{"grant_type": {"client_credentials"}, "client_id": {s}, "client_secret": {s + "x"}}.Encode(), http.Header{"Content-Type": {form}})
		ask("POST", "/v1/token", "grant_type=client_credentials", http.Header{"Content-Type": {form}, "Authorization": {"Basic " + basic}})
		ask("POST", "/v1/token", "grant_type="+s+"&client_id="+key.ID+"&client_secret="+s, http.Header{"Content-Type": {form}})
		ask("POST", "/v1/token?client_secret="+s, "", http.Header{"Content-Type": {form}})
		ask("GET", "/v1/keys/"+s, "", http.Header{"Authorization": {"Bearer " + s}})
		ask("POST", "/v1/keys", fmt.Sprintf(`{"name":%q,"read":true}`, s), http.Header{"Content-Type": {"application/json"}, "Authorization": {"Bearer " + s}})
		ask("POST", "/v1/topics", fmt.Sprintf(`{"name":%q}`, s), http.Header{"Content-Type": {"application/json"}, "Authorization": {"Bearer " + jwt}})
		_, err := client.CreateKey(t.Context(), diaspora.AccessKeyRequest{Name: "n", Topics: []string{s}, Read: true})
		fmt.Fprintln(said, err)
		_, err = client.Key(t.Context(), s)
		fmt.Fprintln(said, err, client.RevokeKey(t.Context(), s))
	}
	signIn := func(mechanism sasl.Mechanism) {
		t.Helper()
		client, err := kgo.NewClient(kgo.SeedBrokers(f.Brokers()...), kgo.RetryTimeout(1), kgo.SASL(mechanism))
		testkit.Must(t, err)
		defer client.Close()
		fmt.Fprintln(said, client.Ping(t.Context()))
	}
	signInAll := func() {
		for _, s := range []string{secret, secret + "x", jwt, part.Secret.Reveal()} {
			signIn(plain.Auth{User: key.ID, Pass: s}.AsMechanism())
			signIn(plain.Auth{User: s, Pass: s}.AsMechanism())
			signIn(plain.Auth{Zid: s, User: key.ID, Pass: secret}.AsMechanism())
			signIn(oauth.Auth{Token: s}.AsMechanism())
			signIn(oauth.Auth{Token: s, Zid: "x"}.AsMechanism())
		}
	}
	signInAll()
	fmt.Fprintln(said, client.RevokeKey(t.Context(), key.ID))
	signInAll()
	return secrets
}

func lookFor(t *testing.T, where, text string, secret globus.Secret) {
	t.Helper()
	raw := secret.Reveal()
	for _, form := range []string{raw, url.QueryEscape(raw), fmt.Sprintf("%x", raw)} {
		if i := strings.Index(text, form); i >= 0 {
			t.Errorf("a token is in %s: …%q", where, strings.ReplaceAll(text[max(0, i-200):i], raw, "(token)"))
			return
		}
	}
}

func lookInFiles(t *testing.T, dir string, secret globus.Secret) {
	t.Helper()
	seen := 0
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		lookFor(t, path, string(data), secret)
		seen++
		return err
	})
	if err != nil || seen == 0 {
		t.Errorf("search in %s: %d files, %v", dir, seen, err)
	}
}

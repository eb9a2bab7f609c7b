package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/oauth"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// up starts "diaspora up" at a desk and returns its output.
func (d *desk) up(t *testing.T, args ...string) upDocument {
	t.Helper()
	d.out.Reset()
	stop, _ := d.started(t, append([]string{"up", "-o", "json", "--kafka-port", "0", "--http-port", "0", "--globus-port", "0"}, args...)...)
	t.Cleanup(func() { stop() })
	var u upDocument
	testkit.Eventually(t, "diaspora up", func() bool { return json.Unmarshal([]byte(d.out.String()), &u) == nil })
	return u
}

// TestStrangersGetNothing acts as another user of the machine on which "diaspora up" runs. Such a user can connect to
// every port, and see the arguments of every process, but must not be able to sign in.
func TestStrangersGetNothing(t *testing.T) {
	t.Parallel()
	d := emptyDesk(t)
	data := filepath.Join(t.TempDir(), "data")
	if err := os.Mkdir(data, 0o755); err != nil { // created by hand, so others can read it
		t.Fatal(err)
	}
	u := d.up(t, "--data", data)
	d.must(t, "topic", "claim", "weather")
	d.must(t, "produce", "weather", "--value", "the secret event")

	t.Run("Globus Auth", func(t *testing.T) { strangerAtGlobus(t, u) })
	t.Run("login", func(t *testing.T) {
		// The diaspora command, run by another account, which has no file with the secret.
		stranger := emptyDesk(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done := make(chan int, 1)
		go func() { done <- stranger.types(ctx, "login", u.URL, "--no-browser") }()
		testkit.Eventually(t, "the address of the login", func() bool { return loginAddress.MatchString(stranger.err.String()) })
		address := loginAddress.FindString(stranger.err.String())
		if page, err := visitLogin(address, "ada@example.edu", ""); err == nil || loginCode.Match(page) {
			t.Errorf("the login page of a stranger says %s, %v", page, err)
		}
		cancel()
		<-done
	})
	t.Run("ACL endpoint", func(t *testing.T) {
		for _, path := range []string{"/v1/identity", "/v1/topics", "/v1/keys"} {
			for _, token := range []string{"", "Bearer dev-at-guess", "Basic a2V5OnNlY3JldA=="} {
				if status, body := ask(t, http.MethodGet, u.URL+path, nil, "Authorization", token); status != http.StatusUnauthorized || strings.Contains(body, "weather") {
					t.Errorf("GET %s with %q: status %d, body %s", path, token, status, body)
				}
			}
		}
		form := url.Values{"grant_type": {"client_credentials"}, "client_id": {"key-abcdefghij234567"}, "client_secret": {"dks_guess"}}
		if status, body := ask(t, http.MethodPost, u.URL+"/v1/token", form); status/100 == 2 {
			t.Errorf("POST /v1/token with a guess: status %d, body %s", status, body)
		}
	})
	t.Run("Kafka", func(t *testing.T) { strangerAtKafka(t, u) })
	t.Run("files", func(t *testing.T) {
		entries, err := os.ReadDir(data)
		testkit.Must(t, err)
		for _, entry := range entries { // not the folder itself: "up" leaves the mode of one that exists
			testkit.CheckPrivate(t, filepath.Join(data, entry.Name()))
		}
		testkit.CheckPrivate(t, d.vars["DIASPORA_CONFIG_DIR"])
	})
}

// TestServiceAccountAtStart checks that "up --print-service-account" prints variables that sign in as the service account,
// and prints the secret nowhere else.
func TestServiceAccountAtStart(t *testing.T) {
	d := emptyDesk(t)
	stop, _ := d.started(t, "up", "--memory", "--print-service-account", "--kafka-port", "0", "--http-port", "0", "--globus-port", "0")
	defer stop()
	testkit.Eventually(t, "diaspora up", func() bool { return strings.Contains(d.out.String(), "DIASPORA_CLIENT_SECRET=") })
	lines := regexp.MustCompile(`(?m)^  export (DIASPORA_\w+)=(\S+)$`).FindAllStringSubmatch(d.out.String(), -1)
	script := emptyDesk(t)
	for _, line := range lines {
		script.vars[line[1]] = line[2]
	}
	if len(lines) != 3 {
		t.Fatalf("it prints %s", d.out.String())
	}
	script.must(t, "topic", "claim", "weather")
	if strings.Contains(d.err.String(), script.vars["DIASPORA_CLIENT_SECRET"]) {
		t.Errorf("the secret is in its diagnostics:\n%s", d.err.String())
	}
}

func TestShellWord(t *testing.T) {
	for word, want := range map[string]string{
		"http://127.0.0.1:9090": "http://127.0.0.1:9090", "dev/secret+X=": "dev/secret+X=",
		"": "''", "a b": "'a b'", "$(id)": "'$(id)'", "it's": `'it'\''s'`, "a\nb": "'a\nb'", "ä": "'ä'",
	} {
		if got := shellWord(word); got != want {
			t.Errorf("shellWord(%q) = %s, want %s", word, got, want)
		}
	}
}

// ask sends a request and returns the response. It does not follow redirects.
func ask(t *testing.T, method, address string, form url.Values, header ...string) (status int, body string) {
	t.Helper()
	var text io.Reader
	if form != nil {
		text = strings.NewReader(form.Encode())
	}
	req, err := http.NewRequestWithContext(t.Context(), method, address, text)
	testkit.Must(t, err)
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i < len(header); i += 2 {
		if header[i+1] != "" {
			req.Header.Set(header[i], header[i+1])
		}
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	testkit.Must(t, err)
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	testkit.Must(t, err)
	return resp.StatusCode, string(data)
}

func strangerAtGlobus(t *testing.T, u upDocument) {
	const verifier = "0123456789012345678901234567890123456789012"
	request := url.Values{
		"response_type": {"code"}, "client_id": {globusdev.NativeClientID}, "redirect_uri": {"http://127.0.0.1:1"}, "scope": {globusdev.Scope},
		"state": {"x"}, "code_challenge": {"7Nmm1oYd9vNlKwWHBLoMKpKfh0rPcXYZk7nL8_O7hPk"}, "code_challenge_method": {"S256"}, "access_type": {"offline"},
	}
	set := func(more ...string) url.Values {
		v := url.Values{}
		for name, value := range request {
			v[name] = slices.Clone(value)
		}
		for i := 0; i < len(more); i += 2 {
			v.Set(more[i], more[i+1])
		}
		return v
	}
	for _, v := range []url.Values{
		request,
		set("dev_user", "ada@example.edu"),
		set("dev_user", u.Subject),
		set("dev_user", u.Username, "redirect_uri", u.Globus+"/v2/web/auth-code"), // shows a code to paste
		set("dev_user", u.Username, "prompt", "none"),
		set("dev_user", u.Username, "dev_ticket", "9999999999.x"),
		set("dev_user", u.Username, "dev_secret", "dev-secret-guess"),
	} {
		address := u.Globus + "/v2/oauth2/authorize"
		for _, try := range []struct {
			method, address string
			form            url.Values
		}{{http.MethodGet, address + "?" + v.Encode(), nil}, {http.MethodPost, address, v}} {
			status, body := ask(t, try.method, try.address, try.form)
			if status != http.StatusForbidden || strings.Contains(body, "dev-code-") || strings.Contains(body, u.Username) {
				t.Errorf("%s authorize %v: status %d, body\n%s", try.method, v, status, body)
			}
		}
	}
	for _, v := range []url.Values{
		{"grant_type": {"authorization_code"}, "client_id": {globusdev.NativeClientID}, "code": {"dev-code-guess"}, "redirect_uri": {"http://127.0.0.1:1"}, "code_verifier": {verifier}},
		{"grant_type": {"refresh_token"}, "client_id": {globusdev.NativeClientID}, "refresh_token": {"dev-rt-guess"}},
		{"grant_type": {"client_credentials"}, "client_id": {globusdev.NativeClientID}, "scope": {globusdev.Scope}},
		{"grant_type": {"client_credentials"}, "client_id": {globusdev.ServiceClientID}, "client_secret": {"guess"}, "scope": {globusdev.Scope}},
		{"grant_type": {"client_credentials"}, "client_id": {globusdev.ResourceServerID}, "scope": {globusdev.Scope}},
		{"grant_type": {"urn:ietf:params:oauth:grant-type:device_code"}, "client_id": {globusdev.NativeClientID}, "device_code": {"guess"}},
		{"grant_type": {"password"}, "client_id": {globusdev.NativeClientID}, "username": {u.Username}, "password": {""}},
	} {
		if status, body := ask(t, http.MethodPost, u.Globus+"/v2/oauth2/token", v); status/100 == 2 || strings.Contains(body, "dev-at-") {
			t.Errorf("token %v: status %d, body %s", v, status, body)
		}
	}
	for path, body := range map[string]string{
		"": "", "state": "", "requests": "", "user": `{"username":"eve@example.org"}`, "reset": "{}", "clock": `{"advance":"-49h"}`,
		"revoke": fmt.Sprintf(`{"subject":%q}`, u.Subject), "fail": `{"status":503}`,
	} {
		method := http.MethodPost
		if body == "" {
			method = http.MethodGet
		}
		req, err := http.NewRequestWithContext(t.Context(), method, u.Globus+"/_dev/"+path, strings.NewReader(body))
		testkit.Must(t, err)
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultTransport.RoundTrip(req)
		testkit.Must(t, err)
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s /_dev/%s: status %d, want 401", method, path, resp.StatusCode)
		}
	}
}

// strangerAtKafka requests the topic from the broker with every login that another user could try.
func strangerAtKafka(t *testing.T, u upDocument) {
	for name, login := range map[string]sasl.Mechanism{
		"nothing":               nil,
		"a user and a password": plain.Auth{User: "key-abcdefghij234567", Pass: "dks_guess"}.AsMechanism(),
		"the super user's name": plain.Auth{User: "admin", Pass: "admin"}.AsMechanism(),
		"a token":               oauth.Auth{Token: "dev-at-guess"}.AsMechanism(),
		"a name for a token":    oauth.Auth{Token: u.Subject}.AsMechanism(),
	} {
		opts := []kgo.Opt{kgo.SeedBrokers(u.Brokers...), kgo.ConsumeTopics("weather"), kgo.RequestRetries(0), kgo.RetryTimeout(2 * time.Second)}
		if login != nil {
			opts = append(opts, kgo.SASL(login))
		}
		client, err := kgo.NewClient(opts...)
		testkit.Must(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		resp, err := kmsg.NewPtrMetadataRequest().RequestWith(ctx, client)
		if err == nil {
			t.Errorf("with %s the broker tells of %d topics", name, len(resp.Topics))
		}
		if err := client.ProduceSync(ctx, &kgo.Record{Topic: "weather", Value: []byte("x")}).FirstErr(); err == nil {
			t.Errorf("with %s the broker took an event", name)
		}
		cancel()
		client.Close()
	}
	// Also with the library, whose error says what to do.
	_, err := diaspora.OpenConsumer(t.Context(), diaspora.Config{
		Brokers: u.Brokers, TokenSource: globus.StaticToken(globus.Token{AccessToken: "dev-at-guess", Expiry: time.Now().Add(time.Hour)}),
	}, diaspora.ConsumerOptions{Topics: []string{"weather"}})
	if !errors.Is(err, diaspora.ErrUnauthenticated) {
		t.Errorf("OpenConsumer with a guess = %v, want ErrUnauthenticated", err)
	}
}

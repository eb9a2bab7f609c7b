package globusdev

import (
	"fmt"
	"html"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// startLocked opens a server that requires a secret.
func startLocked(t *testing.T, change func(*Config)) (*harness, globus.Secret) {
	secret := NewSecret()
	return start(t, func(cfg *Config) {
		cfg.Secret = secret
		if change != nil {
			change(cfg)
		}
	}), secret
}

func withSecret(secret globus.Secret) func(*http.Request) {
	return header("Authorization", "Bearer "+secret.Reveal())
}

// refused fails if the response has a code, or names identities.
func refused(t *testing.T, what string, a answer) {
	t.Helper()
	if a.status != http.StatusForbidden || a.header.Get("Location") != "" || strings.Contains(a.body, "ada@example.edu") {
		t.Errorf("%s: status %d, location %q, body\n%s", what, a.status, a.header.Get("Location"), a.body)
	}
}

// TestOthersGetNoCode simulates other users of the machine, who can connect, and who see the URLs
// that browsers are started with.
func TestOthersGetNoCode(t *testing.T) {
	now := time.Now()
	h, secret := startLocked(t, func(cfg *Config) { cfg.Now = func() time.Time { return now } })
	ticket := func(path string) string {
		t.Helper()
		address, err := WithTicket(secret, h.http.URL+path, now)
		testkit.Must(t, err)
		return strings.TrimPrefix(address, h.http.URL)
	}
	who := []string{"dev_user", "ada@example.edu"}
	query := func(path string) string { return strings.TrimPrefix(path, "/v2/oauth2/authorize?") }

	refused(t, "the page", h.get(authorizeQuery()))
	refused(t, "a name", h.get(authorizeQuery(who...)))
	refused(t, "a name in a form", h.do("POST", "/v2/oauth2/authorize", query(authorizeQuery(who...)), nil))
	for _, guess := range []string{"x", "dev-secret-", secret.Reveal()[:20], secret.Reveal() + "x"} {
		refused(t, "a guess in the form", h.do("POST", "/v2/oauth2/authorize", query(authorizeQuery(append(who, "dev_secret", guess)...)), nil))
		refused(t, "a guess in the header", h.do("GET", authorizeQuery(who...), "", withSecret(globus.Secret(guess))))
		refused(t, "a guess of a ticket", h.get(authorizeQuery(append(who, "dev_ticket", guess)...)))
		refused(t, "a guess of a ticket with a time", h.get(authorizeQuery(append(who, "dev_ticket", fmt.Sprint(now.Unix()+60, ".", guess))...)))
	}
	refused(t, "the secret in an address", h.get(authorizeQuery(append(who, "dev_secret", secret.Reveal())...)))

	// A ticket is only valid for the request that it was made for.
	good := ticket(authorizeQuery())
	for _, name := range boundParameters {
		u, _ := url.Parse(good)
		q := u.Query()
		q.Set("dev_user", "ada@example.edu")
		switch name {
		case "redirect_uri":
			q.Set(name, "http://127.0.0.1:1/mine")
		case "code_challenge":
			q.Set(name, challenge(testVerifier+"x"))
		case "client_id":
			q.Set(name, ServiceClientID)
			q.Set("redirect_uri", h.Issuer()+authCodePath)
		case "response_type", "code_challenge_method": // only one value is valid
			continue
		case "access_type":
			q.Set(name, "online")
		case "scope":
			q.Set(name, "openid")
		default:
			q.Set(name, "other")
		}
		refused(t, "a ticket for another "+name, h.get(u.Path+"?"+q.Encode()))
	}
	later := strings.Replace(good, fmt.Sprint(now.Add(TicketLifetime).Unix()), fmt.Sprint(now.Add(TicketLifetime).Unix()+1), 1)
	refused(t, "a ticket with another time", h.get(later+"&dev_user=ada@example.edu"))

	// It is valid once, and its code is useless without the verifier.
	a := h.get(good + "&dev_user=ada@example.edu")
	location, err := url.Parse(a.header.Get("Location"))
	if code := location.Query().Get("code"); a.status != http.StatusFound || err != nil || code == "" {
		t.Fatalf("a good ticket: status %d, location %q, body\n%s", a.status, location, a.body)
	} else if a := h.exchange(code, "code_verifier", strings.Repeat("v", 43)); a.status == http.StatusOK {
		t.Errorf("the code was exchanged with another verifier: %s", a.body)
	}
	refused(t, "a ticket that was used", h.get(good+"&dev_user=ada@example.edu"))
	refused(t, "the page, with a ticket that was used", h.get(good))
	expired := ticket(authorizeQuery("state", "later"))
	now = now.Add(TicketLifetime)
	refused(t, "a ticket that has expired", h.get(expired+"&dev_user=ada@example.edu"))
	if len(h.used) == 0 {
		t.Error("the server has forgotten a ticket that was used")
	}
	now = now.Add(2 * TicketLifetime)
	h.get(ticket(authorizeQuery("state", "x")) + "&dev_user=ada@example.edu")
	if len(h.used) != 1 {
		t.Errorf("the server remembers %d tickets, want 1", len(h.used))
	}
}

// TestOwnersGetIn tests all ways to log in: the page with a ticket or the secret, and programs that
// send the secret.
func TestOwnersGetIn(t *testing.T) {
	h, secret := startLocked(t, nil)
	code := func(what string, a answer) {
		t.Helper()
		location, _ := url.Parse(a.header.Get("Location"))
		if tokens := h.exchange(location.Query().Get("code")); tokens.status != http.StatusOK {
			t.Errorf("%s: status %d, location %q, body\n%s\nand then %s", what, a.status, location, a.body, tokens.body)
		}
	}
	for range 2 { // nothing is used up
		code("the secret in the header", h.do("GET", authorizeQuery("dev_user", "ada@example.edu"), "", withSecret(secret)))
	}
	address, err := WithTicket(secret, authorizeQuery("session_message", "hello"), time.Now())
	testkit.Must(t, err)
	for what, page := range map[string]answer{
		"a ticket":   h.get(address),
		"the secret": h.do("POST", "/v2/oauth2/authorize", repeat(h.get(authorizeQuery("session_message", "hello", "state", "another")).body, "dev_secret", " "+secret.Reveal()+"\n"), nil),
	} {
		if page.status != http.StatusOK || !strings.Contains(page.body, "hello") || strings.Contains(page.body, secret.Reveal()) {
			t.Fatalf("the page with %s: status %d, body\n%s", what, page.status, page.body)
		}
		code("the page with "+what, h.do("POST", "/v2/oauth2/authorize", repeat(page.body, "dev_user", Subject("ada@example.edu")), nil))
	}
	if _, err := WithTicket(secret, "http://127.0.0.1:1/?a=1&a=2", time.Now()); err == nil {
		t.Error("WithTicket took an address that has a parameter twice")
	}
}

var hiddenField = regexp.MustCompile(`<input type="hidden" name="([^"]*)" value="([^"]*)">`)

// TestPastedSecret pastes what people copy from the file with the secret into the page, and wrong
// secrets, which the page must call wrong without repeating them.
func TestPastedSecret(t *testing.T) {
	h, secret := startLocked(t, nil)
	post := func(text string) answer {
		return h.do("POST", "/v2/oauth2/authorize", repeat(h.get(authorizeQuery()).body, "dev_secret", text), nil)
	}
	for _, text := range []string{secret.Reveal(), SecretHeader(secret), SecretHeader(secret) + "\n", " Bearer " + secret.Reveal(), "Authorization:Bearer  " + secret.Reveal()} {
		if a := post(text); a.status != http.StatusOK || !strings.Contains(a.body, "ada@example.edu") {
			t.Errorf("%q: status %d, body\n%s", text, a.status, a.body)
		}
	}
	const wrong = "Wrong secret"
	for _, text := range []string{"x", SecretHeader(secret) + "x", SecretHeader(secret)[:40], "Bearer", "Basic " + secret.Reveal(), secret.Reveal() + " " + secret.Reveal()} {
		a := post(text)
		refused(t, "a wrong secret", a)
		if !strings.Contains(a.body, wrong) || len(text) > 10 && strings.Contains(a.body, text) || strings.Contains(a.body, secret.Reveal()) {
			t.Errorf("%q: want %q, and no secret:\n%s", text, wrong, a.body)
		}
	}
	if a := h.get(authorizeQuery()); strings.Contains(a.body, wrong) {
		t.Errorf("before anybody has tried a secret:\n%s", a.body)
	}
}

// repeat returns the form that a browser sends from a page, with another field.
func repeat(page, name, value string) string {
	v := url.Values{name: {value}}
	for _, field := range hiddenField.FindAllStringSubmatch(page, -1) {
		v.Set(field[1], html.UnescapeString(field[2]))
	}
	return v.Encode()
}

// TestControlsWantTheSecret tests each control.
func TestControlsWantTheSecret(t *testing.T) {
	h, secret := startLocked(t, nil)
	for _, route := range h.controls() {
		path := strings.TrimSuffix(route.path, "{$}")
		for _, change := range []func(*http.Request){
			func(*http.Request) {},
			withSecret("dev-secret-guess"),
			func(r *http.Request) { r.SetBasicAuth("Bearer", secret.Reveal()) },
		} {
			a := h.do(route.methods[0], path, "{}", func(r *http.Request) { r.Header.Set("Content-Type", "application/json"); change(r) })
			if a.status != http.StatusUnauthorized || strings.Contains(a.body, "example.edu") {
				t.Errorf("%s %s without the secret: status %d, body %s", route.methods[0], path, a.status, a.body)
			}
		}
		a := h.do(route.methods[0], path, "{}", func(r *http.Request) { r.Header.Set("Content-Type", "application/json"); withSecret(secret)(r) })
		if a.status == http.StatusUnauthorized || a.status == http.StatusForbidden {
			t.Errorf("%s %s with the secret: status %d, body %s", route.methods[0], path, a.status, a.body)
		}
	}
}

func TestSecretHeader(t *testing.T) {
	secret := NewSecret()
	if got, err := ParseSecretHeader(SecretHeader(secret) + "\n"); got != secret || err != nil {
		t.Errorf("ParseSecretHeader of a header = %q, %v, want %q", got.Reveal(), err, secret.Reveal())
	}
	for _, bad := range []string{"", secret.Reveal(), "Authorization: Bearer ", "Authorization: Basic x"} {
		if got, err := ParseSecretHeader(bad); err == nil {
			t.Errorf("ParseSecretHeader(%q) = %q, want an error", bad, got.Reveal())
		}
	}
}

package globus_test

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// wire passes requests to a handler without a network. A test can thus run in a synctest bubble,
// and cut the connection at any point.
type wire struct {
	handler http.Handler
	// cut, if set, says what happens to the n-th request, counted from 1: it is lost, its response
	// is lost, or nothing (nil).
	cut func(n int) error

	mu       sync.Mutex
	requests []request
}

// request is a request that a handler of a wire received.
type request struct {
	method, path string
	header       http.Header
	form         url.Values
}

var (
	errNotSent    = errors.New("connection refused")
	errAnswerLost = errors.New("connection reset by peer")
)

func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	body := []byte{}
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body)
		r.Body.Close()
	}
	form, _ := url.ParseQuery(string(body))
	w.mu.Lock()
	w.requests = append(w.requests, request{r.Method, r.URL.Path, r.Header.Clone(), form})
	n := len(w.requests)
	w.mu.Unlock()

	var fault error
	if w.cut != nil {
		fault = w.cut(n)
	}
	var untrusted *tls.CertificateVerificationError
	if errors.Is(fault, errNotSent) || errors.As(fault, &untrusted) {
		return nil, fault
	}
	if trace := httptrace.ContextClientTrace(r.Context()); trace != nil && trace.GotConn != nil {
		trace.GotConn(httptrace.GotConnInfo{})
	}
	arrived := r.Clone(r.Context())
	arrived.Body = io.NopCloser(strings.NewReader(string(body)))
	recorder := httptest.NewRecorder()
	done := make(chan struct{})
	go func() { defer close(done); w.handler.ServeHTTP(recorder, arrived) }()
	select {
	case <-done:
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	if err := r.Context().Err(); err != nil { // a real server would not respond either
		return nil, err
	}
	if fault != nil {
		return nil, fault
	}
	return recorder.Result(), nil
}

func (w *wire) sent() []request {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]request(nil), w.requests...)
}

// client returns a native client whose requests are sent over the wire.
func (w *wire) client(t *testing.T, change ...func(*globus.Config)) *globus.Client {
	t.Helper()
	cfg := globus.Config{ClientID: nativeID, HTTPClient: &http.Client{Transport: w}}
	for _, f := range change {
		f(&cfg)
	}
	c, err := globus.New(cfg)
	testkit.Must(t, err)
	return c
}

// confidential makes a client one with a secret.
func confidential(cfg *globus.Config) {
	cfg.ClientID, cfg.ClientSecret = serviceID, serviceSecret
}

const (
	nativeID      = "00000000-0000-4000-8000-000000000001"
	serviceID     = "00000000-0000-4000-8000-000000000002"
	serviceSecret = "a+b/c=canary-client-secret="
	adaSubject    = "00000000-0000-4000-8000-00000000ada0"
	bobSubject    = "00000000-0000-4000-8000-00000000b0b0"
	topics        = "00000000-0000-4000-8000-0000000000aa" // the resource server used in tests
	topicsScope   = "https://auth.globus.org/scopes/00000000-0000-4000-8000-0000000000aa/all"
)

// answers returns a handler that sends these responses in turn, and then repeats the last one.
func answers(all ...reply) http.HandlerFunc {
	var mu sync.Mutex
	n := 0
	return func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		a := all[min(n, len(all)-1)]
		n++
		mu.Unlock()
		maps.Copy(w.Header(), a.header)
		w.WriteHeader(a.status)
		io.WriteString(w, a.body)
	}
}

type reply struct {
	status int
	body   string
	header http.Header
}

func ok(body string) reply                  { return reply{status: http.StatusOK, body: body} }
func status(code int, body string) reply    { return reply{status: code, body: body} }
func after(r reply, seconds string) reply   { r.header = http.Header{"Retry-After": {seconds}}; return r }
func document(fields map[string]any) string { b, _ := json.Marshal(fields); return string(b) }

// tokenAnswer is a response of the token endpoint with one token.
func tokenAnswer(resourceServer, access, refresh string) map[string]any {
	a := map[string]any{
		"access_token": access, "token_type": "Bearer", "expires_in": 172800,
		"scope": topicsScope, "resource_server": resourceServer, "other_tokens": []any{},
	}
	if refresh != "" {
		a["refresh_token"] = refresh
	}
	return a
}

func sampleToken(access, refresh string, now time.Time) globus.Token {
	return globus.Token{
		ResourceServer: topics,
		AccessToken:    globus.Secret(access),
		RefreshToken:   globus.Secret(refresh),
		Scope:          []string{topicsScope},
		Obtained:       now,
		Expiry:         now.Add(48 * time.Hour),
	}
}

package globusdev

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
)

const (
	maxRequests = 1000
	maxFailures = 100
)

// Request is an entry of the request log. It contains no secrets: no tokens, codes or states, and
// only paths that the server knows.
type Request struct {
	Time      time.Time `json:"time"`
	Method    string    `json:"method"`
	Path      string    `json:"path"`
	Status    int       `json:"status"` // 0: the connection was dropped
	ClientID  string    `json:"client_id,omitempty"`
	GrantType string    `json:"grant_type,omitempty"`
	// Parameters are the parameters of an authorization request that describe how the user should
	// log in.
	Parameters map[string]string `json:"parameters,omitempty"`
	// Injected reports whether a failure was injected.
	Injected bool `json:"injected,omitempty"`
}

// requestLog is a ring buffer of the last requests.
type requestLog struct {
	ring  [maxRequests]Request
	total int
}

// recorder collects data for the request log while a request is handled.
type recorder struct {
	http.ResponseWriter
	entry Request
}

func (w *recorder) WriteHeader(status int) {
	w.entry.Status = status
	w.ResponseWriter.WriteHeader(status)
}

func noteClient(w http.ResponseWriter, id string) {
	if rec, ok := w.(*recorder); ok {
		rec.entry.ClientID = id
	}
}

func noteGrant(w http.ResponseWriter, grant string) {
	if rec, ok := w.(*recorder); ok {
		rec.entry.GrantType = grant
	}
}

// loggedParameters are the parameters that contain no secrets.
var loggedParameters = []string{
	"access_type", "prompt", "prefill_named_grant", "scope", "session_message", "session_required_identities",
	"session_required_mfa", "session_required_policies", "session_required_single_domain",
}

func noteAuthorize(w http.ResponseWriter, p params) {
	rec, ok := w.(*recorder)
	if !ok {
		return
	}
	rec.entry.Parameters = map[string]string{}
	for _, name := range loggedParameters {
		if value := p[name]; value != "" && len(value) <= 1024 {
			rec.entry.Parameters[name] = value
		}
	}
}

func (s *Server) record(entry Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests.ring[s.requests.total%maxRequests] = entry
	s.requests.total++
}

// Requests returns the last 1,000 requests, the oldest first, without those under /_dev/.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	log := &s.requests
	if log.total <= maxRequests {
		return slices.Clone(log.ring[:log.total])
	}
	start := log.total % maxRequests
	return slices.Concat(log.ring[start:], log.ring[:start])
}

// Failure is an injected failure. At most one of Status, Drop and LoseAnswer may be set. If none is
// set, the response is only delayed.
type Failure struct {
	// Path limits the failure to paths with this prefix, for example /v2/oauth2/token. Default: all
	// paths except those under /_dev/.
	Path string
	// Delay is the time to wait before anything else.
	Delay time.Duration
	// Status is sent as the status of the response, without handling the request.
	Status int
	// RetryAfter is sent with Status, in whole seconds.
	RetryAfter time.Duration
	// Body is sent with Status, as HTML, like an error of a proxy. Default: an error in Globus's
	// own format.
	Body string
	// Drop closes the connection without handling the request.
	Drop bool
	// LoseAnswer handles the request and then closes the connection without a response.
	LoseAnswer bool
}

func (f *Failure) check() error {
	modes := 0
	for _, on := range []bool{f.Status != 0, f.Drop, f.LoseAnswer} {
		if on {
			modes++
		}
	}
	switch {
	case modes > 1:
		return errors.New("more than one of status, drop and lost answer")
	case modes == 0 && f.Delay == 0:
		return errors.New("no failure: no status, drop, lost answer or delay")
	case f.Status != 0 && (f.Status < 400 || f.Status > 599):
		return fmt.Errorf("status %d is not one of an error", f.Status)
	case f.Status == 0 && (f.RetryAfter != 0 || f.Body != ""):
		return errors.New("retry-after or a body without a status")
	case f.Delay < 0 || f.Delay > 10*time.Minute || f.RetryAfter < 0 || f.RetryAfter > 24*time.Hour:
		return errors.New("a delay or retry-after out of bounds")
	case len(f.Body) > maxBodyBytes || len(f.Path) > maxFieldSize:
		return errors.New("too long a body or path")
	}
	return nil
}

// injection is a failure with the number of requests that it still applies to.
type injection struct {
	Failure
	left int
}

// FailNext makes the next n requests that match f.Path fail. Failures queue up.
func (s *Server) FailNext(n int, f Failure) error {
	if err := f.check(); err != nil {
		return fmt.Errorf("globusdev: %w", err)
	}
	if n < 1 {
		return fmt.Errorf("globusdev: fail the next %d requests", n)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.failures) >= maxFailures {
		return errors.New("globusdev: too many failures wait to happen")
	}
	s.failures = append(s.failures, &injection{f, n})
	return nil
}

// nextFailure returns the failure to inject into a request, or nil.
func (s *Server) nextFailure(path string) *injection {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, f := range s.failures {
		if strings.HasPrefix(path, f.Path) {
			if f.left--; f.left == 0 {
				s.failures = slices.Delete(s.failures, i, i+1)
			}
			return f
		}
	}
	return nil
}

// inject injects a failure into a request. It returns false if the request is only delayed and must
// still be handled.
func (s *Server) inject(w http.ResponseWriter, r *http.Request, f *injection, handle handlerFunc) (done bool) {
	if f.Delay > 0 {
		timer := time.NewTimer(f.Delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-s.run.Done():
		case <-r.Context().Done():
			return true
		}
	}
	switch {
	case f.Drop:
		panic(http.ErrAbortHandler)
	case f.LoseAnswer:
		handle(&lost{http.Header{}}, r)
		panic(http.ErrAbortHandler)
	case f.Status == 0:
		return false
	}
	if f.RetryAfter > 0 {
		w.Header().Set("Retry-After", fmt.Sprint(int64(f.RetryAfter/time.Second)))
	}
	if f.Body != "" {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.WriteHeader(f.Status)
		w.Write([]byte(f.Body))
		return true
	}
	title := http.StatusText(f.Status)
	code := strings.ToUpper(strings.ReplaceAll(title, " ", "_"))
	s.fail(w, globusError(f.Status, code, title, "This failure was asked for"))
	return true
}

// lost discards a response.
type lost struct{ header http.Header }

func (w *lost) Header() http.Header         { return w.header }
func (w *lost) WriteHeader(int)             {}
func (w *lost) Write(p []byte) (int, error) { return len(p), nil }

// AdvanceClock moves the clock forward, or back if d is negative. A restart and [Server.Reset] undo
// it.
func (s *Server) AdvanceClock(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.skew += d
}

// SetRefreshMode changes what happens to used refresh tokens.
func (s *Server) SetRefreshMode(mode RefreshMode) error {
	if err := mode.check(); err != nil {
		return fmt.Errorf("globusdev: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mode = mode
	return nil
}

// RotateKey generates another signing key, which is used from now on. All keys stay published.
func (s *Server) RotateKey() error {
	if _, err := s.signingKeys(); err != nil {
		return err
	}
	if s.journal == nil {
		return s.addKey(memoryKeys[1])
	}
	return s.addKey(newKey)
}

var errNoToken = errors.New("no such token is alive")

// Expire makes an access or refresh token expire now.
func (s *Server) Expire(secret globus.Secret) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.state.tokens[digestOf(secret.Reveal())]
	if t == nil {
		return fmt.Errorf("globusdev: expire: %w", errNoToken)
	}
	return s.commit(s.expiry(t))
}

// expiry returns the entry that makes a token expire now.
func (s *Server) expiry(t *token) *entry {
	expired := *t
	expired.Expiry = min(t.Expiry, s.nowLocked().Unix())
	return &entry{Token: &expired}
}

// Revoke revokes an access or refresh token.
func (s *Server) Revoke(secret globus.Secret) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	hash := digestOf(secret.Reveal())
	if s.state.tokens[hash] == nil {
		return fmt.Errorf("globusdev: revoke: %w", errNoToken)
	}
	return s.commit(&entry{Dead: &hash})
}

// ExpireAccessTokens makes all access tokens of a subject expire. The refresh tokens stay valid.
func (s *Server) ExpireAccessTokens(subject string) error {
	return s.forTokens(subject, func(t *token) *entry {
		if t.Refresh {
			return nil
		}
		return s.expiry(t)
	})
}

// RevokeAll revokes all tokens of a subject.
func (s *Server) RevokeAll(subject string) error {
	return s.forTokens(subject, func(t *token) *entry { return &entry{Dead: &t.Hash} })
}

func (s *Server) forTokens(subject string, change func(*token) *entry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var entries []*entry
	for _, t := range s.state.tokens {
		if t.Subject != subject {
			continue
		}
		if e := change(t); e != nil {
			entries = append(entries, e)
		}
	}
	return s.commit(entries...)
}

// Rescind withdraws a subject's consent for a client to use a scope, wherever it is in the tree,
// and revokes all tokens that depend on it.
func (s *Server) Rescind(subject, clientID, scope string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var entries []*entry
	for _, c := range s.state.consents {
		if c.Subject == subject && c.Client == clientID && c.Scope == scope {
			entries = append(entries, &entry{Rescind: c.ID})
		}
	}
	if len(entries) == 0 {
		return errors.New("globusdev: rescind: no such consent")
	}
	return s.commit(entries...)
}

// Reset removes all tokens, codes, consents, pending failures and logged requests, and resets the
// clock and the refresh mode. Identities, clients and keys are kept.
func (s *Server) Reset() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.skew, s.failures, s.requests, s.mode = 0, nil, requestLog{}, s.cfg.RefreshMode
	return s.commit(&entry{Reset: true})
}

// dump is the state without secrets.
type dump struct {
	Issuer    string            `json:"issuer"`
	Time      time.Time         `json:"time"`
	Advanced  string            `json:"advanced"`
	Refresh   RefreshMode       `json:"refresh_mode"`
	Users     []*User           `json:"users"`
	Clients   []*Client         `json:"clients"`
	Tokens    []tokenDump       `json:"tokens"`
	Consents  []consentDocument `json:"consents"`
	OpenCodes int               `json:"open_codes"`
	Failures  []failureRequest  `json:"failures"`
}

// tokenDump identifies a token by the beginning of its hash.
type tokenDump struct {
	Hash           string    `json:"hash"`
	Kind           string    `json:"kind"`
	Client         string    `json:"client"`
	Subject        string    `json:"subject"`
	ResourceServer string    `json:"resource_server"`
	Scopes         []string  `json:"scopes"`
	Issued         time.Time `json:"issued"`
	Expires        time.Time `json:"expires"`
}

func (s *Server) dump() *dump {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.nowLocked()
	d := &dump{
		Issuer: s.cfg.Issuer, Time: now, Advanced: s.skew.String(), Refresh: s.mode, Users: s.state.sortedUsers(),
		Tokens: []tokenDump{}, Consents: []consentDocument{}, Failures: []failureRequest{},
	}
	for _, id := range slices.Sorted(maps.Keys(s.state.clients)) {
		d.Clients = append(d.Clients, s.state.clients[id])
	}
	for _, t := range s.state.tokens {
		if t.live(now) {
			d.Tokens = append(d.Tokens, t.dump())
		}
	}
	slices.SortFunc(d.Tokens, func(a, b tokenDump) int { return strings.Compare(a.Hash, b.Hash) })
	for _, id := range slices.Sorted(maps.Keys(s.state.consents)) {
		d.Consents = append(d.Consents, s.state.consents[id].document())
	}
	for _, c := range s.state.codes {
		if !c.Used && now.Unix() < c.Expiry {
			d.OpenCodes++
		}
	}
	for _, f := range s.failures {
		d.Failures = append(d.Failures, f.request())
	}
	return d
}

func (t *token) dump() tokenDump {
	hash, _ := t.Hash.MarshalText()
	kind := "access"
	if t.Refresh {
		kind = "refresh"
	}
	return tokenDump{
		Hash: string(hash[:12]), Kind: kind, Client: t.Client, Subject: t.Subject, ResourceServer: t.ResourceServer,
		Scopes: t.Scopes, Issued: time.Unix(t.Issued, 0).UTC(), Expires: time.Unix(t.Expiry, 0).UTC(),
	}
}

package globusdev

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
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

// recorder collects data for the request log while a request is handled.
type recorder struct {
	http.ResponseWriter
	entry Request
}

func (w *recorder) WriteHeader(status int) {
	w.entry.Status = status
	w.ResponseWriter.WriteHeader(status)
}

// loggedParameters are the parameters that contain no secrets.
var loggedParameters = []string{
	"access_type", "prompt", "prefill_named_grant", "scope", "session_message", "session_required_identities",
	"session_required_mfa", "session_required_policies", "session_required_single_domain",
}

func (w *recorder) noteParameters(p params) {
	w.entry.Parameters = map[string]string{}
	for _, name := range loggedParameters {
		if value := p[name]; value != "" && len(value) <= 1024 {
			w.entry.Parameters[name] = value
		}
	}
}

func (s *Server) record(entry Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, entry)
	s.requests = s.requests[max(0, len(s.requests)-maxRequests):]
}

// Requests returns the last 1,000 requests, the oldest first, without those under /_dev/.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Failure is an injected failure. At most one of Status, Drop and LoseAnswer may be set. If none is
// set, the response is only delayed.
type Failure struct {
	// Path limits the failure to paths with this prefix, for example /v2/oauth2/token. Default: all
	// paths except those under /_dev/.
	Path string `json:"path,omitempty"`
	// Delay is the time to wait before anything else.
	Delay time.Duration `json:"-"`
	// Status is sent as the status of the response, without handling the request.
	Status int `json:"status,omitempty"`
	// RetryAfter is sent with Status, in whole seconds.
	RetryAfter time.Duration `json:"-"`
	// Body is sent with Status, as HTML, like an error of a proxy. Default: an error in Globus's
	// own format.
	Body string `json:"body,omitempty"`
	// Drop closes the connection without handling the request.
	Drop bool `json:"drop,omitempty"`
	// LoseAnswer handles the request and then closes the connection without a response.
	LoseAnswer bool `json:"lose_answer,omitempty"`
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
func (s *Server) inject(w *recorder, r *http.Request, f *injection, handle handlerFunc) (done bool) {
	if f.Delay > 0 {
		select {
		case <-time.After(f.Delay):
		case <-s.run.Done():
		case <-r.Context().Done():
			return true
		}
	}
	switch {
	case f.Drop:
		panic(http.ErrAbortHandler)
	case f.LoseAnswer:
		w.ResponseWriter = lost{http.Header{}}
		handle(w, r)
		w.entry.Status = 0
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
	failure := globusError(f.Status, "This failure was asked for")
	writeJSON(w, failure.status, failure.body)
	return true
}

// lost discards a response.
type lost struct{ header http.Header }

func (w lost) Header() http.Header         { return w.header }
func (w lost) WriteHeader(int)             {}
func (w lost) Write(p []byte) (int, error) { return len(p), nil }

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

// Reset removes all tokens, codes, pending failures and logged requests, and resets the clock and the
// refresh mode. Identities, groups, the clients' secrets and the signing key are kept.
func (s *Server) Reset() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.skew, s.failures, s.requests, s.mode = 0, nil, nil, s.cfg.RefreshMode
	return s.commit(&entry{Reset: true})
}

// dump is the state without secrets.
type dump struct {
	Issuer    string           `json:"issuer"`
	Time      time.Time        `json:"time"`
	Advanced  string           `json:"advanced"`
	Refresh   RefreshMode      `json:"refresh_mode"`
	Users     []*User          `json:"users"`
	Used      []string         `json:"used"` // the identities that somebody has signed in with
	Groups    []groupDump      `json:"groups"`
	Clients   []clientDump     `json:"clients"`
	Tokens    []tokenDump      `json:"tokens"`
	OpenCodes int              `json:"open_codes"`
	Failures  []failureControl `json:"failures"`
}

type clientDump struct {
	ID   string `json:"id"`
	Name string `json:"name"`
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
		Used: append([]string{}, slices.Sorted(maps.Keys(s.state.used))...), Groups: s.state.dumpGroups(),
		Tokens: []tokenDump{}, Failures: []failureControl{},
	}
	for _, id := range slices.Sorted(maps.Keys(s.state.clients)) {
		d.Clients = append(d.Clients, clientDump{id, s.state.clients[id].name})
	}
	for _, t := range s.state.tokens {
		if !t.live(now) {
			continue
		}
		hash, _ := t.Hash.MarshalText()
		kind := "access"
		if t.Refresh {
			kind = "refresh"
		}
		d.Tokens = append(d.Tokens, tokenDump{
			Hash: string(hash[:12]), Kind: kind, Client: t.Client, Subject: t.Subject, ResourceServer: t.ResourceServer,
			Scopes: t.Scopes, Issued: time.Unix(t.Issued, 0).UTC(), Expires: time.Unix(t.Expiry, 0).UTC(),
		})
	}
	slices.SortFunc(d.Tokens, func(a, b tokenDump) int { return strings.Compare(a.Hash, b.Hash) })
	for _, c := range s.state.codes {
		if !c.Used && now.Unix() < c.Expiry {
			d.OpenCodes++
		}
	}
	for _, f := range s.failures {
		d.Failures = append(d.Failures, failureControl{f.left, f.Failure, duration(f.Delay), duration(f.RetryAfter)})
	}
	return d
}

const controlPrefix = "/_dev/"

// controls returns the routes of the controls. Their bodies are JSON. A page of another site cannot
// send JSON without a CORS preflight request.
func (s *Server) controls() []route {
	get, post := []string{http.MethodGet, http.MethodHead}, []string{http.MethodPost}
	return []route{
		{controlPrefix + "{$}", get, s.controlHelp},
		{controlPrefix + "state", get, s.controlState},
		{controlPrefix + "requests", get, s.controlRequests},
		{controlPrefix + "service-account", get, s.controlServiceAccount},
		{controlPrefix + "expire", post, control(func(r tokenControl) error { return r.apply(s.Expire, s.ExpireAccessTokens) })},
		{controlPrefix + "revoke", post, control(func(r tokenControl) error { return r.apply(s.Revoke, s.RevokeAll) })},
		{controlPrefix + "clock", post, control(s.controlClock)},
		{controlPrefix + "fail", post, control(s.controlFail)},
		{controlPrefix + "refresh-mode", post, control(func(r refreshModeControl) error { return s.SetRefreshMode(r.Mode) })},
		{controlPrefix + "user", post, controlID(s.AddUser)},
		{controlPrefix + "group", post, controlID(s.AddGroup)},
		{controlPrefix + "member", post, control(s.SetMember)},
		{controlPrefix + "remove-group", post, control(func(g groupControl) error { return s.RemoveGroup(g.ID) })},
		{controlPrefix + "txt", post, control(func(r txtControl) error { return s.SetTXT(r.Name, r.Value) })},
		{controlPrefix + "reset", post, control(func(struct{}) error { return s.Reset() })},
	}
}

const controlText = `This is not Globus. It is a development server: whoever knows its secret can be anybody.

GET  /_dev/state         identities, groups, clients, tokens (by hash), failures to come
GET  /_dev/requests      the last requests
GET  /_dev/service-account  the client that scripts can sign in as, with its secret
POST /_dev/expire        {"token":"…"}, or {"subject":"…"} for all access tokens of a subject
POST /_dev/revoke        {"token":"…"}, or {"subject":"…"} for all tokens of a subject
POST /_dev/clock         {"advance":"49h"}
POST /_dev/fail          {"count":3,"path":"/v2/oauth2/token","status":503,"retry_after":"1s"}
                         or, in place of a status, "drop":true, "lose_answer":true or only "delay":"5s";
                         "body" goes with a status, and is sent as HTML
POST /_dev/refresh-mode  {"mode":"same"}, "rotate" or "absent"
POST /_dev/user          {"username":"mary@example.edu","name":"Mary","linked":[{"username":"mary@example.org"}]};
                         adds or replaces a user. "status":"private" or "closed" is what lookups say of an identity
POST /_dev/group         {"name":"Weather","members_visibility":"members"}; without the visibility, only managers
                         see the members. The answer holds the ID of the group
POST /_dev/member        {"group":"ID","identity":"mary@example.edu","role":"manager","status":"active"};
                         without a role, a member; "status":"removed" removes the member
POST /_dev/remove-group  {"id":"ID"}
POST /_dev/txt           {"name":"CLIENT.HOST","value":"CLIENT"}; a TXT record in DNS, which verifies a host name
POST /_dev/reset         {}

Bodies are JSON: curl -H @FILE --json '{"advance":"49h"}' …/_dev/clock
FILE is that with the secret, which "diaspora up" names; it keeps the secret out of curl's arguments.
`

func (s *Server) controlHelp(w *recorder, _ *http.Request) error {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, err := io.WriteString(w, controlText)
	return err
}

func (s *Server) controlState(w *recorder, _ *http.Request) error {
	writeJSON(w, http.StatusOK, s.dump())
	return nil
}

func (s *Server) controlRequests(w *recorder, _ *http.Request) error {
	list := s.Requests()
	writeJSON(w, http.StatusOK, map[string]any{"requests": append([]Request{}, list...)})
	return nil
}

// serviceAccount is a client that may sign in as itself.
type serviceAccount struct {
	ClientID     string `json:"client_id"`
	ClientSecret string `json:"client_secret"`
}

func (s *Server) controlServiceAccount(w *recorder, _ *http.Request) error {
	secret, err := s.ClientSecret(ServiceClientID)
	if err != nil {
		return globusError(http.StatusNotFound, "There is no service account")
	}
	writeJSON(w, http.StatusOK, serviceAccount{ServiceClientID, secret.Reveal()})
	return nil
}

// ServiceAccount gets the credentials of the service account from a running server. issuer is the
// server's base URL, and secret its secret.
func ServiceAccount(ctx context.Context, issuer string, secret globus.Secret) (id string, clientSecret globus.Secret, err error) {
	const op = "ask for the service account"
	var account serviceAccount
	if err := askControl(ctx, issuer, secret, "service-account", nil, &account); err != nil {
		return "", "", fmt.Errorf("%s: %w", op, err)
	}
	if account.ClientID == "" || account.ClientSecret == "" {
		return "", "", fmt.Errorf("%s: the answer holds none", op)
	}
	return account.ClientID, globus.Secret(account.ClientSecret), nil
}

// AddUser adds a user to a running server, unless the server has an identity of that name. issuer and
// secret are as for [ServiceAccount].
func AddUser(ctx context.Context, issuer string, secret globus.Secret, username string) error {
	users, err := Usernames(ctx, issuer, secret)
	if slices.ContainsFunc(users, func(u string) bool { return strings.EqualFold(u, username) }) {
		return nil
	}
	if err == nil {
		err = askControl(ctx, issuer, secret, "user", User{Identity: Identity{Username: username}}, &controlResponse{})
	}
	if err != nil {
		return fmt.Errorf("add the user %s: %w", clip(username), err)
	}
	return nil
}

// Usernames returns the usernames of all identities of users of a running server, in no particular order. issuer and
// secret are as for [ServiceAccount].
func Usernames(ctx context.Context, issuer string, secret globus.Secret) (names []string, err error) {
	var state struct{ Users []User }
	err = askControl(ctx, issuer, secret, "state", nil, &state)
	for _, user := range state.Users {
		for _, identity := range user.identities() {
			names = append(names, identity.Username)
		}
	}
	return names, err
}

// askControl calls a control of a running server: with POST if there is a body, and otherwise with GET.
func askControl(ctx context.Context, issuer string, secret globus.Secret, name string, body, into any) error {
	const timeout, most = 5 * time.Second, 4 << 20
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	method, content := http.MethodGet, io.Reader(http.NoBody)
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		method, content = http.MethodPost, bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, issuer+controlPrefix+name, content)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", secretScheme+secret.Reveal())
	req.Header.Set("Content-Type", "application/json")
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer := json.NewDecoder(io.LimitReader(resp.Body, most))
	if resp.StatusCode != http.StatusOK {
		var refusal globusBody
		if answer.Decode(&refusal) == nil && len(refusal.Errors) > 0 {
			return fmt.Errorf("status %d: %.200q", resp.StatusCode, refusal.Errors[0].Detail)
		}
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return answer.Decode(into)
}

// groupControl selects a group.
type groupControl struct {
	ID string `json:"id"`
}

// control returns a handler that decodes a JSON body and passes it to do.
func control[T any](do func(T) error) handlerFunc {
	return controlID(func(request T) (string, error) { return "", do(request) })
}

// controlResponse is the response of a control that succeeded.
type controlResponse struct {
	OK bool   `json:"ok"`
	ID string `json:"id,omitempty"` // of what has been added
}

// controlID is like control. The response also has the ID that do returns.
func controlID[T any](do func(T) (id string, err error)) handlerFunc {
	return func(w *recorder, r *http.Request) error {
		kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
		if err != nil || kind != "application/json" {
			return globusError(http.StatusUnsupportedMediaType, "The body must be application/json")
		}
		body, err := readBody(r)
		if err != nil {
			return err
		}
		var request T
		if err := decodeStrict(body, &request); err != nil {
			return globusError(http.StatusBadRequest, "The body is not what /_dev/ lists") // the error may quote the body
		}
		id, err := do(request)
		switch {
		case errors.Is(err, errClosed):
			return err
		case err != nil:
			return globusError(http.StatusBadRequest, err.Error())
		}
		writeJSON(w, http.StatusOK, controlResponse{true, id})
		return nil
	}
}

func decodeStrict(body []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("more than one value")
	}
	return nil
}

// tokenControl selects one token, or all tokens of a subject.
type tokenControl struct {
	Token   string `json:"token"`
	Subject string `json:"subject"`
}

func (r tokenControl) apply(one func(globus.Secret) error, all func(subject string) error) error {
	switch {
	case (r.Token == "") == (r.Subject == ""):
		return errors.New("give either token or subject")
	case r.Token != "":
		return one(globus.Secret(r.Token))
	}
	return all(r.Subject)
}

type refreshModeControl struct {
	Mode RefreshMode `json:"mode"`
}

type clockControl struct {
	Advance duration `json:"advance"`
}

func (s *Server) controlClock(r clockControl) error {
	s.AdvanceClock(time.Duration(r.Advance))
	return nil
}

// failureControl is a [Failure] in JSON, with the number of requests that it applies to.
type failureControl struct {
	Count int `json:"count"`
	Failure
	Delay      duration `json:"delay,omitempty"`
	RetryAfter duration `json:"retry_after,omitempty"`
}

func (s *Server) controlFail(r failureControl) error {
	r.Failure.Delay, r.Failure.RetryAfter = time.Duration(r.Delay), time.Duration(r.RetryAfter)
	return s.FailNext(cmp.Or(r.Count, 1), r.Failure)
}

// duration is encoded as in 1m30s.
type duration time.Duration

func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

func (d *duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	*d = duration(parsed)
	return err
}

package globusdev

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
)

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
		{controlPrefix + "rescind", post, control(func(r rescindControl) error { return s.Rescind(r.Subject, r.Client, r.Scope) })},
		{controlPrefix + "clock", post, control(s.controlClock)},
		{controlPrefix + "fail", post, control(s.controlFail)},
		{controlPrefix + "refresh-mode", post, control(func(r refreshModeControl) error { return s.SetRefreshMode(r.Mode) })},
		{controlPrefix + "rotate-key", post, control(func(struct{}) error { return s.RotateKey() })},
		{controlPrefix + "user", post, control(func(u User) error { _, err := s.AddUser(u); return err })},
		{controlPrefix + "reset", post, control(func(struct{}) error { return s.Reset() })},
	}
}

const controlText = `This is not Globus. It is a development server: whoever knows its secret can be anybody.

GET  /_dev/state         identities, clients, tokens (by hash), consents, failures to come
GET  /_dev/requests      the last requests
GET  /_dev/service-account  the client that scripts can sign in as, with its secret
POST /_dev/expire        {"token":"…"}, or {"subject":"…"} for all access tokens of a subject
POST /_dev/revoke        {"token":"…"}, or {"subject":"…"} for all tokens of a subject
POST /_dev/rescind       {"subject":"…","client":"…","scope":"…"}
POST /_dev/clock         {"advance":"49h"}
POST /_dev/fail          {"count":3,"path":"/v2/oauth2/token","status":503,"retry_after":"1s"}
                         or, in place of a status, "drop":true, "lose_answer":true or only "delay":"5s";
                         "body" goes with a status, and is sent as HTML
POST /_dev/refresh-mode  {"mode":"same"}, "rotate" or "absent"
POST /_dev/rotate-key    {}
POST /_dev/user          {"username":"mary@example.edu","name":"Mary","linked":[{"username":"mary@example.org"}]}
POST /_dev/reset         {}

Bodies are JSON: curl -H @FILE --json '{"advance":"49h"}' …/_dev/clock
FILE is that with the secret, which "diaspora up" names; it keeps the secret out of curl's arguments.
`

func (s *Server) controlHelp(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, err := io.WriteString(w, controlText)
	return err
}

func (s *Server) controlState(w http.ResponseWriter, _ *http.Request) error {
	writeJSON(w, http.StatusOK, s.dump())
	return nil
}

func (s *Server) controlRequests(w http.ResponseWriter, _ *http.Request) error {
	list := s.Requests()
	writeJSON(w, http.StatusOK, map[string]any{"requests": append([]Request{}, list...)})
	return nil
}

// serviceAccount is a client that may sign in as itself.
type serviceAccount struct {
	ClientID     string `json:"client_id"`
	ClientSecret string `json:"client_secret"`
}

func (s *Server) controlServiceAccount(w http.ResponseWriter, _ *http.Request) error {
	secret, err := s.ClientSecret(ServiceClientID)
	if err != nil {
		return globusError(http.StatusNotFound, "NOT_FOUND", "Not Found", "There is no service account")
	}
	writeJSON(w, http.StatusOK, serviceAccount{ServiceClientID, secret.Reveal()})
	return nil
}

// ServiceAccount gets the credentials of the service account from a running server. issuer is the
// server's base URL, and secret its secret.
func ServiceAccount(ctx context.Context, issuer string, secret globus.Secret) (id string, clientSecret globus.Secret, err error) {
	const op, timeout = "ask for the service account", 5 * time.Second
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, issuer+controlPrefix+"service-account", nil)
	if err != nil {
		return "", "", fmt.Errorf("%s: %w", op, err)
	}
	req.Header.Set("Authorization", secretScheme+secret.Reveal())
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return "", "", fmt.Errorf("%s: %w", op, err)
	}
	defer resp.Body.Close()
	const most = 64 << 10
	var account serviceAccount
	if resp.StatusCode != http.StatusOK {
		return "", "", fmt.Errorf("%s: status %d", op, resp.StatusCode)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, most)).Decode(&account); err != nil || account.ClientID == "" || account.ClientSecret == "" {
		return "", "", fmt.Errorf("%s: the answer holds none", op)
	}
	return account.ClientID, globus.Secret(account.ClientSecret), nil
}

// control returns a handler that decodes a JSON body and passes it to do.
func control[T any](do func(T) error) handlerFunc {
	return func(w http.ResponseWriter, r *http.Request) error {
		kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
		if err != nil || kind != "application/json" {
			return globusError(http.StatusUnsupportedMediaType, "UNSUPPORTED_MEDIA_TYPE", "Unsupported Media Type", "The body must be application/json")
		}
		body, err := readBody(r)
		if err != nil {
			return err
		}
		var request T
		if err := decodeStrict(body, &request); err != nil {
			return badRequest("The body is not what /_dev/ lists") // the error may quote the body
		}
		switch err := do(request); {
		case errors.Is(err, errClosed):
			return err
		case err != nil:
			return badRequest(err.Error())
		}
		writeJSON(w, http.StatusOK, map[string]bool{"ok": true})
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

type rescindControl struct {
	Subject string `json:"subject"`
	Client  string `json:"client"`
	Scope   string `json:"scope"`
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

// failureRequest is a [Failure] in JSON.
type failureRequest struct {
	Count      int      `json:"count"`
	Path       string   `json:"path,omitempty"`
	Delay      duration `json:"delay,omitempty"`
	Status     int      `json:"status,omitempty"`
	RetryAfter duration `json:"retry_after,omitempty"`
	Body       string   `json:"body,omitempty"`
	Drop       bool     `json:"drop,omitempty"`
	LoseAnswer bool     `json:"lose_answer,omitempty"`
}

func (s *Server) controlFail(r failureRequest) error {
	if r.Count == 0 {
		r.Count = 1
	}
	return s.FailNext(r.Count, Failure{
		Path: r.Path, Delay: time.Duration(r.Delay), Status: r.Status, RetryAfter: time.Duration(r.RetryAfter),
		Body: r.Body, Drop: r.Drop, LoseAnswer: r.LoseAnswer,
	})
}

func (f *injection) request() failureRequest {
	return failureRequest{
		Count: f.left, Path: f.Path, Delay: duration(f.Delay), Status: f.Status, RetryAfter: duration(f.RetryAfter),
		Body: f.Body, Drop: f.Drop, LoseAnswer: f.LoseAnswer,
	}
}

// duration is encoded as in 1m30s.
type duration time.Duration

func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

func (d *duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	*d = duration(parsed)
	return err
}

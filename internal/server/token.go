package server

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/admission"
)

// oauthError is an error of the token endpoint (RFC 6749 section 5.2).
type oauthError struct {
	refusal
	code string
}

func (e *oauthError) Unwrap() error { return &e.refusal }

func invalidRequest(detail string) error {
	return &oauthError{refusal{status: http.StatusBadRequest, detail: detail}, "invalid_request"}
}

// invalidClient returns a 401 that says how to authenticate, for clients whose credentials are
// wrong or missing.
func invalidClient(detail string) error {
	return &oauthError{refusal{
		status: http.StatusUnauthorized,
		detail: detail,
		header: basicChallenge,
	}, "invalid_client"}
}

// basicChallenge asks for the ID and the secret of an access key.
var basicChallenge = http.Header{"Www-Authenticate": {`Basic realm="diaspora", charset="UTF-8"`}}

// tokenResponse is a successful response of the token endpoint (RFC 6749 section 5.1).
type tokenResponse struct {
	AccessToken string `json:"access_token"`
	TokenType   string `json:"token_type"`
	ExpiresIn   int64  `json:"expires_in"` // in seconds
	Scope       string `json:"scope"`
}

// exchangeKey handles the client credentials grant (RFC 6749 section 4.4): it exchanges an access
// key's ID and secret for a token that the gateway accepts. It ignores the requested scope, because
// the key decides what the token is good for. The response says what that is.
func (s *Server) exchangeKey(x *exchange) error {
	if s.cfg.Tokens == nil {
		return &refusal{status: http.StatusNotFound, detail: "this fabric does not exchange access keys for tokens", hint: "Use SASL/PLAIN."}
	}
	form, err := readTokenForm(x)
	if err != nil {
		return err
	}
	id, secret, err := clientCredentials(x, form)
	if err != nil {
		return err
	}
	x.token = secret // so that it is concealed in logs and responses
	switch grant := form.Get("grant_type"); grant {
	case "client_credentials":
	case "":
		return invalidRequest("grant_type is missing")
	default:
		return &oauthError{refusal{status: http.StatusBadRequest, detail: "grant_type must be client_credentials"}, "unsupported_grant_type"}
	}
	end, wait, ok := s.guard.Begin(x.r.Context(), s.clientOf(x.r).String(), sha256.Sum256([]byte(id+"\x00"+secret.Reveal())))
	if !ok {
		return tooManyFailures(wait, "create another access key with `diaspora key create`")
	}
	token, err := s.cfg.Tokens.Exchange(x.r.Context(), id, secret)
	end(admission.OutcomeOf(err))
	refused := (*globus.RefusedError)(nil)
	switch {
	case errors.As(err, &refused) && refused.Hint != "": // not counted as a guess, because the key itself is valid
		return &oauthError{refusal{status: http.StatusBadRequest, detail: refused.Reason, hint: refused.Hint}, "unauthorized_client"}
	case refused != nil:
		return invalidClient(refused.Reason)
	case err != nil:
		return err
	}
	x.Header().Set("Pragma", "no-cache") // RFC 6749 requires it in addition to no-store
	x.writeJSON(http.StatusOK, typeJSON, tokenResponse{
		AccessToken: token.AccessToken.Reveal(),
		TokenType:   "Bearer",
		ExpiresIn:   max(1, int64(time.Until(token.Expiry)/time.Second)),
		Scope:       strings.Join(token.Scope, " "),
	})
	return nil
}

// readTokenForm reads the body of a token request. As RFC 6749 section 3.2 requires, it ignores
// unknown fields and refuses repeated ones.
func readTokenForm(x *exchange) (url.Values, error) {
	body, _, err := readBody(x, typeForm)
	if err != nil {
		return nil, err
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, invalidRequest("the form is not encoded correctly")
	}
	for _, values := range form {
		if len(values) > 1 {
			return nil, invalidRequest("a field is repeated")
		}
	}
	return form, nil
}

// clientCredentials returns the client's ID and secret, from the header (client_secret_basic) or
// from the form (client_secret_post). It refuses a request that has both.
func clientCredentials(x *exchange, form url.Values) (id string, secret globus.Secret, err error) {
	inForm := form.Has("client_secret")
	headers := x.r.Header["Authorization"]
	switch {
	case len(headers) > 1 || len(headers) == 1 && inForm:
		return "", "", invalidRequest("the client's secret must be given once: in the Authorization header or in the form")
	case len(headers) == 1:
		id, secret, err = basicCredentials(headers[0])
		if err == nil && form.Has("client_id") && form.Get("client_id") != id {
			err = invalidRequest("the form and the Authorization header name different clients")
		}
	case inForm:
		id, secret = form.Get("client_id"), globus.Secret(form.Get("client_secret"))
	default:
		err = invalidClient("the request has no client secret: send the ID and the secret of an access key as client_id and client_secret, or as HTTP Basic")
	}
	switch {
	case err != nil:
		return "", "", err
	case id == "" || secret == "" || len(id)+len(secret) > 4096 || !utf8.ValidString(id+secret.Reveal()):
		return "", "", invalidClient("client_id must be the ID of an access key, and client_secret its secret")
	}
	return id, secret, nil
}

// basicCredentials decodes HTTP Basic as OAuth defines it: both parts are form-encoded (RFC 6749
// section 2.3.1). Clients that do not encode them send the same, because keys have no characters
// that would be encoded.
func basicCredentials(header string) (id string, secret globus.Secret, err error) {
	malformed := invalidClient("the Authorization header is not HTTP Basic with the ID and the secret of an access key")
	scheme, encoded, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "Basic") {
		return "", "", malformed
	}
	pair, err := base64.StdEncoding.DecodeString(strings.TrimLeft(encoded, " "))
	if err != nil {
		return "", "", malformed
	}
	user, password, ok := strings.Cut(string(pair), ":")
	id, errID := url.QueryUnescape(user)
	plain, errSecret := url.QueryUnescape(password)
	if !ok || errID != nil || errSecret != nil {
		return "", "", malformed
	}
	return id, globus.Secret(plain), nil
}

// failOAuth writes an error in the format of RFC 6749 section 5.2.
func (x *exchange) failOAuth(p diaspora.Problem, err error) {
	code := ""
	var known *oauthError
	switch {
	case errors.As(err, &known):
		code = known.code
	case p.Status == http.StatusServiceUnavailable || p.Status == http.StatusTooManyRequests:
		code = "temporarily_unavailable"
	case p.Status >= 500:
		code = "server_error"
	default:
		code = "invalid_request"
	}
	description := p.Detail
	if p.Hint != "" {
		description += ". " + p.Hint
	}
	x.writeJSON(p.Status, typeJSON, struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}{code, asciiText(description)})
}

// asciiText replaces the characters that are not allowed in error_description.
func asciiText(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '"' || r == '\\':
			return '\''
		case r < ' ' || r > '~':
			return '?'
		}
		return r
	}, text)
}

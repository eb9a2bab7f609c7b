package server

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/outcome"
)

// refusal is an error with an HTTP status, for faults of a request that only this package detects.
// The client sees detail and hint unchanged.
type refusal struct {
	status int
	detail string
	hint   string
	header http.Header
}

func (e *refusal) Error() string { return e.detail }

// problemTypes are, by status, the name of the problem type and its title.
var problemTypes = map[int][2]string{
	http.StatusBadRequest:                  {"invalid", "The request is not valid"},
	http.StatusUnauthorized:                {"unauthenticated", "Not logged in"},
	http.StatusForbidden:                   {"permission", "Not permitted"},
	http.StatusNotFound:                    {"not-found", "Not found"},
	http.StatusMethodNotAllowed:            {"method", "Method not allowed"},
	http.StatusNotAcceptable:               {"not-acceptable", "No answer in an acceptable format"},
	http.StatusRequestTimeout:              {"timeout", "The request took too long"},
	http.StatusConflict:                    {"conflict", "Conflict"},
	http.StatusRequestEntityTooLarge:       {"too-large", "The request is too large"},
	http.StatusRequestURITooLong:           {"url-too-long", "The address is too long"},
	http.StatusUnsupportedMediaType:        {"media-type", "Unsupported format"},
	http.StatusMisdirectedRequest:          {"misdirected", "Not this server's name"},
	http.StatusTooManyRequests:             {"too-many", "Too many failed attempts"},
	http.StatusRequestHeaderFieldsTooLarge: {"header-too-large", "The request's header is too large"},
	http.StatusServiceUnavailable:          {"unavailable", "Not available at the moment"},
	http.StatusInternalServerError:         {"internal", "Something went wrong on our side"},
	http.StatusNotImplemented:              {"not-offered", "This fabric cannot do that"},
}

// hints are, by status, the hints for errors that have none of their own.
var hints = map[int]string{
	http.StatusUnauthorized:       "Log in again with `diaspora login`, then use a fresh token: `diaspora token` prints it.",
	http.StatusNotFound:           "`diaspora topic list` shows your topics, `diaspora key list` your access keys.",
	http.StatusServiceUnavailable: "Try again in a few seconds. If that does not help, tell the operators of the fabric.",
}

// routeHints are the hints of single routes. They take the place of those in hints.
var routeHints = map[string]map[int]string{
	"POST /v1/topics":                    {http.StatusServiceUnavailable: repeatClaim},
	"POST /acl":                          {http.StatusServiceUnavailable: repeatClaim},
	"POST /v1/admin/blocked":             {http.StatusServiceUnavailable: mayHaveHappened},
	"DELETE /v1/admin/blocked/{subject}": {http.StatusServiceUnavailable: mayHaveHappened, http.StatusNotFound: "`diaspora admin blocked` lists who is blocked."},
}

const (
	repeatClaim     = "Try again in a few seconds: repeating a claim is safe. If that does not help, tell the operators of the fabric."
	mayHaveHappened = "The change may have been made: `diaspora admin blocked` shows whether."
)

// retryAfter is the Retry-After header, in seconds, of an answer that a part of the service is
// unavailable.
const retryAfter = "5"

// problemOf turns an error into what the client may see of it. Causes that the client can act on
// are shown in full. Outages are shown without the names of our own machines. The cause of any
// other error is not shown.
func problemOf(err error) (diaspora.Problem, http.Header) {
	var p diaspora.Problem
	header := http.Header{}
	var why *refusal
	var tooLarge *http.MaxBytesError
	var refused *globus.RefusedError
	switch {
	case errors.As(err, &why):
		p.Status, p.Detail, p.Hint = why.status, why.detail, why.hint
		maps.Copy(header, why.header)
	case errors.As(err, &tooLarge):
		p.Status, p.Detail = http.StatusRequestEntityTooLarge, fmt.Sprintf("the body may have at most %d bytes", tooLarge.Limit)
	case errors.Is(err, globus.ErrMisconfigured):
		p.Status = http.StatusInternalServerError
	case errors.As(err, &refused) && refused.MissingScope != "":
		p.Status, p.Detail = http.StatusForbidden, refused.Reason
		p.Hint = "Log in again with `diaspora login` and consent to what it asks for."
		header.Set("WWW-Authenticate", fmt.Sprintf("Bearer error=\"insufficient_scope\", scope=%q", refused.MissingScope))
	case errors.As(err, &refused) && refused.Hint != "":
		p.Status, p.Detail, p.Hint = http.StatusForbidden, refused.Reason, refused.Hint
	default:
		p.Status = statusOf(err)
		p.Topic, p.Detail, p.Hint = describe(err)
		p.Hint = cmp.Or(p.Hint, hints[p.Status])
	}
	switch p.Status {
	case http.StatusUnauthorized:
		if header.Get("WWW-Authenticate") == "" {
			header.Set("WWW-Authenticate", `Bearer error="invalid_token"`)
		}
	case http.StatusServiceUnavailable:
		header.Set("Retry-After", retryAfter)
		if why != nil {
			break
		}
		p.Detail = "the cluster did not answer in time"
		switch {
		case errors.Is(err, kerr.KafkaStorageError):
			p.Detail = "the broker cannot write to its disk, which may be full"
			p.Hint = "The operators find the reason in the fabric's diagnostics. Releasing a topic frees space."
		case errors.Is(err, globus.ErrUnavailable):
			p.Detail = "Globus Auth cannot be reached, so the token cannot be checked"
			p.Hint = "The token may be valid: keep it, and try again in a few seconds."
		}
	case http.StatusInternalServerError:
		p.Topic = ""
		switch {
		case why != nil:
		case errors.Is(err, globus.ErrMisconfigured):
			p.Detail = fmt.Sprintf("this fabric cannot tell whose token this is, because it cannot use the response of Globus Auth (%v)", err)
			p.Hint = "The token may be valid: keep it, and tell the operators of the fabric."
		default:
			p.Detail = fmt.Sprintf("the cause is in the server's diagnostics, under %08x", rand.Uint32())
			p.Hint = ""
		}
	}
	p.Type, p.Title = "/problems/"+problemTypes[p.Status][0], problemTypes[p.Status][1]
	return p, header
}

// statusOf is [outcome.HTTPStatus], except for statuses that are meant for logs and proxies only. A
// request that ran out of time, or whose client left, is a 503 to the client.
func statusOf(err error) int {
	switch status := outcome.HTTPStatus(err); {
	case problemTypes[status][0] != "":
		return status
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return http.StatusServiceUnavailable
	default:
		return http.StatusInternalServerError
	}
}

// describe returns err's text, and the topic that it is about. It leaves a name that may be a
// misplaced token out of both.
func describe(err error) (topic, detail, hint string) {
	if t := (*diaspora.TopicError)(nil); errors.As(err, &t) {
		if topic = t.Topic; !mayRepeat(topic) {
			topic, err = "", fmt.Errorf("%s topic: %w", t.Op, t.Err)
		}
	}
	detail, hint = outcome.Split(err)
	return topic, detail, hint
}

// mayRepeat reports whether a topic name that a client sent may be repeated: it is valid, or it is
// printable and too short for a token.
func mayRepeat(name string) bool {
	strange := func(r rune) bool { return !unicode.IsPrint(r) || r == utf8.RuneError }
	return len(name) < 24 && !strings.ContainsFunc(name, strange) || diaspora.ValidTopic(name) == nil
}

// fail writes an error to the client. Browsers get a page, which is the form again if the form was
// sent. All other clients get application/problem+json, or OAuth's format at the token endpoint.
func (s *Server) fail(x *exchange, err error) {
	p, header := problemOf(err)
	if hint := routeHints[x.route()][p.Status]; hint != "" && p.Hint == hints[p.Status] {
		p.Hint = hint
	}
	p.Detail, p.Topic = x.conceal(p.Detail), x.conceal(p.Topic)
	if p.Status >= 500 && p.Status != http.StatusNotImplemented {
		level := slog.LevelError
		if p.Status == http.StatusServiceUnavailable {
			level = slog.LevelWarn
		}
		logFailure := func() {
			s.log.Log(x.r.Context(), level, "request failed", "route", x.route(), "status", p.Status,
				"principal", x.caller.Subject, "detail", p.Detail, "err", x.conceal(err.Error()))
		}
		if errors.Is(err, globus.ErrMisconfigured) {
			s.logMisconfigured.Do(logFailure)
		} else {
			logFailure()
		}
	}
	maps.Copy(x.Header(), header)
	switch {
	case x.oauth:
		x.failOAuth(p, err)
	case !prefersHTML(x.r):
		x.writeJSON(p.Status, typeProblem, p)
	case x.form != nil:
		s.pages.write(x, p.Status, "acl", x.formPage(&p))
	default:
		s.pages.write(x, p.Status, "problem", p)
	}
}

// writeJSON writes v as indented JSON, because people read it too.
func (x *exchange) writeJSON(status int, contentType string, v any) {
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		panic(err) // our own types always encode
	}
	x.write(status, contentType, body.Bytes())
}

func (x *exchange) write(status int, contentType string, body []byte) {
	x.Header().Set("Content-Type", contentType)
	x.Header().Set("Content-Length", strconv.Itoa(len(body)))
	x.WriteHeader(status)
	_, _ = x.Write(body) // on an error, the client is gone and loses only its response
}

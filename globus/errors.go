package globus

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Error is an error response of Globus Auth or Globus Groups, or the lack of a response. Use [errors.Is] to test
// what follows from it: [ErrLoginRequired], [ErrRefused], [ErrClientRefused], [ErrMisconfigured],
// [ErrUnavailable], and for a [Directory] [ErrNotFound], [ErrAmbiguous], [ErrMembersHidden],
// [ErrTooManyMembers].
//
// It never contains a token or a code. Of a response's body, it contains only Globus Auth's own
// error code and sentence or, in quotes, the title of a web page.
type Error struct {
	Op         string        // what was attempted: "refresh token"
	Status     int           // the HTTP status; 0 if there was no response
	Code       string        // Globus Auth's error code: "invalid_grant", "UNAUTHORIZED"
	Detail     string        // Globus Auth's explanation, or ours
	RequestID  string        // the request ID, which Globus support asks for
	RetryAfter time.Duration // how long Globus Auth asks to wait; 0 if it does not

	kind    error  // the sentinel, or nil
	cause   error  // why there was no response, or nil
	json    bool   // the response is JSON
	service string // what did not answer, if it is not Globus Auth
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	b.WriteString(": ")
	switch {
	case e.kind == ErrUnavailable && e.service != "":
		b.WriteString("cannot reach " + e.service + ": ")
	case e.kind != nil:
		b.WriteString(e.kind.Error() + ": ")
	}
	switch {
	case e.cause != nil:
		b.WriteString(e.cause.Error())
	case e.Status != 0:
		fmt.Fprintf(&b, "status %d", e.Status)
		if e.Code != "" {
			fmt.Fprintf(&b, " %s", e.Code)
		}
		if e.Detail != "" {
			fmt.Fprintf(&b, ": %s", e.Detail)
		}
		if e.RequestID != "" {
			fmt.Fprintf(&b, " (request %s)", e.RequestID)
		}
	default:
		b.WriteString(e.Detail)
	}
	return b.String()
}

// Unwrap returns the sentinel, for [errors.Is]. It does not return the cause. If one attempt timed
// out, for instance, errors.Is(err, context.DeadlineExceeded) must not be true, because the
// caller's own context has not ended.
func (e *Error) Unwrap() error { return e.kind }

// saysNothing reports whether an error says nothing about the token, because no valid response of
// Globus Auth arrived.
func saysNothing(err error) bool {
	return errors.Is(err, ErrUnavailable) || errors.Is(err, ErrMisconfigured)
}

// RefusedError says why an access token was rejected. It matches [ErrRefused].
type RefusedError struct {
	Reason string // a clause, such as "the access token has expired"
	// MissingScope is the scope that the token lacks, if that is the reason. In this case the owner
	// of the token is known, but may not use it for this.
	MissingScope string
	// Hint says what to do if another login or key would not help: the owner of the credential is
	// known, but is not admitted here. Otherwise it is "".
	Hint string
}

func (e *RefusedError) Error() string { return "token refused: " + e.Reason }

// Is makes a RefusedError match [ErrRefused].
func (e *RefusedError) Is(target error) bool { return target == ErrRefused }

// errorDocument is the body of an error response. Globus Auth uses two formats: OAuth's
// {"error":"invalid_grant"}, and its own with a list of errors.
type errorDocument struct {
	Error       looseString `json:"error"`
	Description looseString `json:"error_description"`
	Errors      firstError  `json:"errors"`
}

// firstError is the first element of a JSON array of errors. The others are not kept, because a
// large response could have millions.
type firstError struct {
	any bool // the array is not empty
	errorDetail
}

type errorDetail struct {
	ID     looseString `json:"id"`
	Code   looseString `json:"code"`
	Detail looseString `json:"detail"`
	Title  looseString `json:"title"`
}

// UnmarshalJSON never fails: an unexpected value must not hide the other fields of the document.
func (e *firstError) UnmarshalJSON(b []byte) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	if start, err := dec.Token(); err == nil && start == json.Delim('[') && dec.More() {
		e.any = true
		dec.Decode(&e.errorDetail)
	}
	return nil
}

// answerError returns the [Error] for a response, or nil if the response is a success. A body that
// contains an error makes the response an error, whatever its status.
func answerError(op string, a answer, secrets []Secret) *Error {
	var doc errorDocument
	json.Unmarshal(a.body, &doc) // ignore the error: one unexpected field must not hide the others
	isJSON := json.Valid(a.body)
	empty := len(bytes.TrimSpace(a.body)) == 0
	if a.status/100 == 2 && (isJSON || empty) && doc.Error == "" && !doc.Errors.any {
		return nil
	}
	e := &Error{Op: op, Status: a.status, RetryAfter: retryAfter(a.header, a.received), json: isJSON}
	e.Code = word(looseString(clean(string(doc.Error), secrets)))
	e.Detail = clean(string(doc.Description), secrets)
	if first := doc.Errors; first.any {
		if code := word(looseString(clean(string(first.Code), secrets))); code != "" && e.Code != "invalid_grant" && e.Code != "invalid_client" {
			e.Code = code
		}
		e.RequestID = clean(string(first.ID), secrets)
		for _, s := range []looseString{first.Detail, first.Title} {
			if s != "" {
				e.Detail = clean(string(s), secrets)
				break
			}
		}
	}
	e.kind = kindOf(a, e.Code, isJSON)
	if e.Detail == "" && !isJSON && e.kind != nil {
		if e.Detail = describeBody(a, secrets); e.kind == ErrMisconfigured {
			e.Detail += "; is the issuer wrong, or is a proxy or a login page of the network in the way?"
		}
	}
	return e
}

// kindOf returns the sentinel for an error response. The error code takes precedence over the
// status, which Globus Auth does not set consistently.
func kindOf(a answer, code string, isJSON bool) error {
	switch {
	case code == "invalid_grant":
		return ErrLoginRequired
	case code == "invalid_client" || code == "unauthorized_client":
		return ErrClientRefused
	case mayPass(a.status):
		return ErrUnavailable
	case !isJSON || a.status < 400 || a.status > 499:
		return ErrMisconfigured // the response is not from Globus Auth, so nothing is known
	case a.status == http.StatusNotFound || a.status == http.StatusMethodNotAllowed || a.status == http.StatusGone:
		return ErrMisconfigured // there is no such endpoint
	case a.status == http.StatusUnauthorized && !a.bearer:
		return ErrClientRefused
	case (a.status == http.StatusUnauthorized || a.status == http.StatusForbidden) && a.bearer:
		return ErrRefused
	}
	return nil
}

// mayPass reports whether a status describes a problem that usually goes away by itself.
func mayPass(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return true
	case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported, http.StatusNetworkAuthenticationRequired:
		return false
	}
	return 500 <= status && status <= 599
}

// kindOfFailure returns the sentinel for a call that got no usable response.
func kindOfFailure(err error) error {
	var untrusted *tls.CertificateVerificationError
	var noTLS tls.RecordHeaderError
	if errors.Is(err, errManyMembers) {
		return ErrTooManyMembers
	}
	if errors.Is(err, errTooLarge) || errors.Is(err, http.ErrSchemeMismatch) || errors.As(err, &untrusted) || errors.As(err, &noTLS) {
		return ErrMisconfigured // something other than Globus Auth answered
	}
	return ErrUnavailable
}

// malformed returns the error for a successful response that cannot be parsed. It says nothing
// about the token.
func malformed(op, what string) *Error {
	return &Error{Op: op, Status: http.StatusOK, Detail: what, kind: ErrMisconfigured}
}

// subjectOf returns the subject in a response, which must be a UUID as at Globus. Brokers use it as
// the principal, and all permissions depend on it, so nothing else is accepted.
func subjectOf(op string, s looseString) (string, error) {
	switch {
	case s == "":
		return "", malformed(op, "the answer has no subject")
	case !isUUID(string(s)):
		return "", malformed(op, fmt.Sprintf("the answer names the subject %.100q, which is not a UUID", string(s)))
	}
	return string(s), nil
}

// isUUID reports whether s is a UUID as Globus writes it: with hyphens, in lower case.
func isUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, r := range []byte(s) {
		switch i {
		case 8, 13, 18, 23:
			if r != '-' {
				return false
			}
		default:
			if !('0' <= r && r <= '9' || 'a' <= r && r <= 'f') {
				return false
			}
		}
	}
	return true
}

const maxTitleBytes = 100

var title = regexp.MustCompile(`(?is)<title[^>]*>(.*?)</title`)

// describeBody describes a response that is not JSON. Such a response is not from Globus Auth, so
// nothing of it is shown except the title of a web page, in quotes.
func describeBody(a answer, secrets []Secret) string {
	kind, _, _ := mime.ParseMediaType(a.header.Get("Content-Type"))
	body := bytes.TrimSpace(a.body)
	switch {
	case a.status/100 == 3:
		if u, err := url.Parse(a.header.Get("Location")); err == nil && u.Host != "" {
			return fmt.Sprintf("it redirects to %.100q", u.Scheme+"://"+u.Host)
		}
		return "it redirects"
	case len(body) == 0:
		return "the answer is empty"
	case kind == "text/html" || bytes.HasPrefix(body, []byte("<")):
		found := title.FindSubmatch(body[:min(len(body), maxPageBytes)])
		if found == nil {
			return "the answer is a web page"
		}
		text := clean(strings.Join(strings.Fields(html.UnescapeString(string(found[1]))), " "), secrets)
		if len(text) > maxTitleBytes {
			text = strings.ToValidUTF8(text[:maxTitleBytes], "") + "…"
		}
		return fmt.Sprintf("the answer is a web page with the title %q", text)
	}
	return "the answer is not JSON"
}

// looseString accepts any JSON value, and keeps it only if it is a string, number or boolean. With
// it, one field of an unexpected type does not make the whole document unreadable.
type looseString string

func (s *looseString) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && (b[0] == '[' || b[0] == '{') {
		return nil // not decoded, because it could take many times its size in memory
	}
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	switch v := v.(type) {
	case string:
		*s = looseString(v)
	case float64, bool:
		*s = looseString(b)
	}
	return nil
}

const (
	maxDetailBytes = 300
	maxPageBytes   = 16 << 10 // how much of a page is searched for a title
	minSecretBytes = 8        // shorter strings are not secrets, and could be part of any word
)

// clean makes text from a response safe to show: one line, printable, of limited length, and
// without the secrets that were sent in the request.
func clean(text string, secrets []Secret) string {
	for _, s := range secrets {
		if len(s) >= minSecretBytes {
			text = strings.ReplaceAll(text, s.Reveal(), redacted)
			text = strings.ReplaceAll(text, url.QueryEscape(s.Reveal()), redacted)
		}
	}
	text = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case !strconv.IsPrint(r):
			return -1
		}
		return r
	}, text)
	if len(text) > maxDetailBytes {
		text = strings.ToValidUTF8(text[:maxDetailBytes], "") + "…"
	}
	return strings.TrimSpace(text)
}

// word returns s if it can be an error code or a subject, and "" otherwise.
func word(s looseString) string {
	if len(s) > 64 {
		return ""
	}
	for _, r := range s {
		if r != '_' && r != '-' && r != '.' && !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9') {
			return ""
		}
	}
	return string(s)
}

// retryAfter parses the Retry-After header: seconds or a date.
func retryAfter(h http.Header, now time.Time) time.Duration {
	v := h.Get("Retry-After")
	if n, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if at, err := http.ParseTime(v); err == nil && at.After(now) {
		return at.Sub(now)
	}
	return 0
}

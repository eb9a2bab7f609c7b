package globus

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Error is an answer of Globus Auth that says no, or the lack of an answer. Test
// for what follows from it with [errors.Is]: [ErrLoginRequired],
// [ErrRefused], [ErrClientRefused], [ErrUnavailable].
//
// It never holds a token, a code or the body of an answer.
type Error struct {
	Op         string        // what was attempted: "refresh token"
	Status     int           // the HTTP status, 0 if there was no answer
	Code       string        // Globus Auth's word for it: "invalid_grant", "UNAUTHORIZED"
	Detail     string        // Globus Auth's sentence, if it gave one
	RequestID  string        // what Globus support asks for
	RetryAfter time.Duration // how long Globus Auth asks to wait, 0 if it did not say

	kind  error // the sentinel, or nil
	cause error // of the lack of an answer, or nil
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	b.WriteString(": ")
	if e.kind != nil {
		b.WriteString(e.kind.Error())
		b.WriteString(": ")
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

// Unwrap makes the sentinel known to [errors.Is]. The cause stays hidden: that one
// attempt ran out of time, say, is not the caller's deadline.
func (e *Error) Unwrap() error { return e.kind }

// RefusedError says why an access token was refused. It is an [ErrRefused].
type RefusedError struct {
	Reason string // a clause: "the access token has expired"
	// MissingScope is the scope that the token would have needed, if that is
	// why: its owner is known, and may not do this with it.
	MissingScope string
	// Hint is what to do, if another login or another key would not help: whose
	// credentials they are is known, and they may not be used here. Else "".
	Hint string
}

func (e *RefusedError) Error() string { return "token refused: " + e.Reason }

// Is makes a RefusedError an [ErrRefused].
func (e *RefusedError) Is(target error) bool { return target == ErrRefused }

// errorDocument is the body of an error in either of Globus Auth's dialects:
// OAuth's {"error":"invalid_grant"}, and Globus's own with a list of errors.
type errorDocument struct {
	Error       looseString `json:"error"`
	Description looseString `json:"error_description"`
	Errors      []struct {
		ID     looseString `json:"id"`
		Code   looseString `json:"code"`
		Detail looseString `json:"detail"`
		Title  looseString `json:"title"`
	} `json:"errors"`
}

// answerError makes an [Error] of an answer that is not a success, or returns nil
// if it is one. A body is an error whatever its status if it names one.
func answerError(op string, a answer, secrets []Secret) *Error {
	var doc errorDocument
	json.Unmarshal(a.body, &doc) // what can be read of it; an odd field hides no other
	isJSON := json.Valid(a.body)
	if a.status/100 == 2 && doc.Error == "" && len(doc.Errors) == 0 {
		return nil
	}
	e := &Error{Op: op, Status: a.status, RetryAfter: retryAfter(a.header, a.received)}
	e.Code = word(looseString(clean(string(doc.Error), secrets)))
	e.Detail = clean(string(doc.Description), secrets)
	if len(doc.Errors) > 0 {
		first := doc.Errors[0]
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
	if e.Detail == "" && !isJSON && errors.Is(e.kind, ErrUnavailable) {
		e.Detail = "the answer is not Globus Auth's; is a proxy or a login page of the network in the way?"
	}
	return e
}

// kindOf decides what follows from an answer that is not a success. The code
// decides before the status, which Globus Auth does not set consistently.
func kindOf(a answer, code string, isJSON bool) error {
	switch {
	case code == "invalid_grant":
		return ErrLoginRequired
	case code == "invalid_client" || code == "unauthorized_client":
		return ErrClientRefused
	case a.status == http.StatusTooManyRequests || a.status >= 500 || a.status == http.StatusRequestTimeout:
		return ErrUnavailable
	case !isJSON || a.status < 400:
		return ErrUnavailable // somebody else answered: nothing is known
	case a.status == http.StatusUnauthorized && !a.bearer:
		return ErrClientRefused
	case (a.status == http.StatusUnauthorized || a.status == http.StatusForbidden) && a.bearer:
		return ErrRefused
	}
	return nil
}

// looseString takes any JSON value and keeps it only if it is a string, number or
// boolean: one odd field must not make the whole document unreadable.
type looseString string

func (s *looseString) UnmarshalJSON(b []byte) error {
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
	minSecretBytes = 8 // what is shorter is no secret, and may be part of any word
)

// clean makes text from elsewhere fit to be shown: one line, printable, bounded,
// and without the secrets that went out with the request.
func clean(text string, secrets []Secret) string {
	for _, s := range secrets {
		if len(s) >= minSecretBytes {
			text = strings.ReplaceAll(text, s.Reveal(), redacted)
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

// retryAfter reads the header of that name: seconds or a date.
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

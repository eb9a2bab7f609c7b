package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strconv"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
)

// refusal is an error that knows its HTTP status: something that only this
// package can find wrong with a request. detail and hint are shown as they are.
type refusal struct {
	status int
	detail string
	hint   string
	header http.Header
}

func (e *refusal) Error() string { return e.detail }

// titles are the conditions in words, by status, with the name of their type.
var titles = map[int][2]string{
	http.StatusBadRequest:                  {"invalid", "The request is not valid"},
	http.StatusUnauthorized:                {"unauthenticated", "Not logged in"},
	http.StatusForbidden:                   {"permission", "Not permitted"},
	http.StatusNotFound:                    {"not-found", "Not found"},
	http.StatusMethodNotAllowed:            {"method", "Method not allowed"},
	http.StatusNotAcceptable:               {"not-acceptable", "No answer in an acceptable format"},
	http.StatusConflict:                    {"conflict", "Conflict"},
	http.StatusRequestEntityTooLarge:       {"too-large", "The request is too large"},
	http.StatusRequestURITooLong:           {"url-too-long", "The address is too long"},
	http.StatusUnsupportedMediaType:        {"media-type", "Unsupported format"},
	http.StatusMisdirectedRequest:          {"misdirected", "Not this server's name"},
	http.StatusTooManyRequests:             {"too-many", "Too many failed attempts"},
	http.StatusRequestHeaderFieldsTooLarge: {"header-too-large", "The request's header is too large"},
	http.StatusServiceUnavailable:          {"unavailable", "Not available at the moment"},
	http.StatusInternalServerError:         {"internal", "Something went wrong on our side"},
}

// conditions say which status each cause has, and what to do about it. The first
// row that matches counts.
var conditions = []struct {
	cause  error
	status int
	hint   string
}{
	{globus.ErrRefused, http.StatusUnauthorized, "Log in again with `diaspora login`, then use a fresh token: `diaspora token` prints it."},
	{globus.ErrUnavailable, http.StatusServiceUnavailable, "Your token may well be good: keep it, and try again in a few seconds."},
	{context.Canceled, http.StatusServiceUnavailable, ""}, // the client has stopped waiting
	{context.DeadlineExceeded, http.StatusServiceUnavailable, "Try again in a few seconds: repeating a claim is safe."},
	{diaspora.ErrInvalid, http.StatusBadRequest, ""},
	{diaspora.ErrUnauthenticated, http.StatusUnauthorized, "Log in again with `diaspora login`."},
	{diaspora.ErrPermission, http.StatusForbidden, ""},
	{diaspora.ErrNotFound, http.StatusNotFound, "`diaspora topic list` shows your topics."},
	{diaspora.ErrConflict, http.StatusConflict, ""},
	{diaspora.ErrUnavailable, http.StatusServiceUnavailable, "Try again in a few seconds: repeating a claim is safe."},
}

// retryAfter is what clients are told to wait, in seconds, when a part of the
// service cannot be reached.
const retryAfter = "5"

// problemOf turns any error into what the client may know of it. Causes that a
// client can act on are told in words; outages without the names of our own
// machines; everything else not at all.
func problemOf(err error) (diaspora.Problem, http.Header) {
	var p diaspora.Problem
	header := http.Header{}
	var why *refusal
	var topic *diaspora.TopicError
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &why):
		p.Status, p.Detail, p.Hint = why.status, why.detail, why.hint
		header = why.header.Clone()
	case errors.As(err, &tooLarge):
		p.Status, p.Detail = http.StatusRequestEntityTooLarge, fmt.Sprintf("the body may have at most %d bytes", tooLarge.Limit)
	default:
		p.Status = http.StatusInternalServerError
		for _, c := range conditions {
			if errors.Is(err, c.cause) {
				p.Status, p.Hint, p.Detail = c.status, c.hint, err.Error()
				break
			}
		}
		if errors.As(err, &topic) && p.Status < 500 {
			p.Topic = topic.Topic
		}
	}
	if header == nil {
		header = http.Header{}
	}
	switch p.Status {
	case http.StatusUnauthorized:
		if header.Get("WWW-Authenticate") == "" {
			header.Set("WWW-Authenticate", `Bearer error="invalid_token"`)
		}
	case http.StatusServiceUnavailable:
		header.Set("Retry-After", retryAfter)
		p.Detail = "the cluster did not answer in time"
		if errors.Is(err, globus.ErrUnavailable) {
			p.Detail = "Globus Auth cannot be reached, so we cannot tell whose token this is"
		}
	case http.StatusInternalServerError:
		p.Detail = fmt.Sprintf("the cause is in the server's diagnostics, under %08x", rand.Uint32())
	}
	p.Type, p.Title = "/problems/"+titles[p.Status][0], titles[p.Status][1]
	return p, header
}

// fail writes every error that a client sees: for browsers as a page, which is the
// form again if that was sent; for everybody else as application/problem+json.
func (s *Server) fail(x *exchange, err error) {
	p, header := problemOf(err)
	if p.Status >= 500 {
		level := slog.LevelError
		if p.Status == http.StatusServiceUnavailable {
			level = slog.LevelWarn
		}
		s.log.Log(x.r.Context(), level, "request failed", "route", x.route(), "status", p.Status, "principal", x.subject, "detail", p.Detail, "err", err)
	}
	for name, values := range header {
		x.Header()[name] = values
	}
	switch {
	case !prefersHTML(x.r):
		x.writeJSON(p.Status, typeProblem, p)
	case x.form != nil:
		s.pages.write(x, p.Status, "acl", formPage{Subject: x.form.Subject, Topic: x.form.Topic, Problem: &p})
	default:
		s.pages.write(x, p.Status, "problem", p)
	}
}

// writeJSON writes v indented, since people read it too.
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
	_, _ = x.Write(body) // a client that is gone has lost only its answer
}

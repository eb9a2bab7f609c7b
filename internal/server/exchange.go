package server

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
)

// exchange is one request and its response.
type exchange struct {
	http.ResponseWriter
	r      *http.Request
	token  globus.Secret   // the token or secret that the client sent, valid or not
	caller globus.Identity // the authenticated caller; zero before that
	form   *aclForm        // the fields of the form, to show them again with an error
	oauth  bool            // write errors in OAuth's format

	bodyRead bool // the whole body has been read

	status int
	bytes  int64
}

// keepConnOpen protects the connection from being closed to make room for others, once the request
// has arrived completely and is authenticated.
func (x *exchange) keepConnOpen() {
	if x.caller.Subject != "" && (x.bodyRead || x.r.ContentLength == 0) {
		keepOpen(x.r)
	}
}

func (x *exchange) WriteHeader(status int) {
	if x.status == 0 {
		x.status = status
	}
	x.ResponseWriter.WriteHeader(status)
}

func (x *exchange) Write(b []byte) (int, error) {
	if x.status == 0 {
		x.status = http.StatusOK
	}
	n, err := x.ResponseWriter.Write(b)
	x.bytes += int64(n)
	return n, err
}

// Unwrap is for [http.ResponseController].
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }

// conceal replaces the caller's token in text that goes into a log or a response. The token gets
// there if somebody pastes it into the wrong field.
func (x *exchange) conceal(text string) string {
	if len(x.token) < 8 { // no token, or a text so short that it would occur by chance
		return text
	}
	return strings.ReplaceAll(text, x.token.Reveal(), x.token.String())
}

// formPage returns the form as it was filled in, without the token.
func (x *exchange) formPage(problem *diaspora.Problem) formPage {
	page := formPage{Subject: x.conceal(x.form.Subject), Topic: x.conceal(x.form.Topic), Problem: problem}
	if !mayRepeat(page.Topic) {
		page.Topic = ""
	}
	if _, err := uuid.Parse(page.Subject); err != nil && !mayRepeat(page.Subject) {
		page.Subject = ""
	}
	return page
}

// route returns the pattern of the request's route, which has nothing in it that the client sent.
func (x *exchange) route() string {
	if x.r.Pattern == "" || x.r.Pattern == "/" {
		return "none"
	}
	return x.r.Pattern
}

// ServeHTTP handles one request and logs it. It recovers from a panic of the handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(r.Context(), claimTimeout)
	defer cancel()
	r = r.WithContext(ctx)
	x := &exchange{ResponseWriter: w, r: r}
	defer func() {
		defer func() { s.logAccess(x, time.Since(start)) }()
		if v := recover(); v != nil {
			s.recovered(x, v)
		}
	}()
	s.setHeaders(x.Header())
	if err := s.admit(r); err != nil {
		s.fail(x, err)
		return
	}
	s.mux.ServeHTTP(x, r)
}

func (s *Server) recovered(x *exchange, v any) {
	if v == http.ErrAbortHandler {
		panic(v)
	}
	s.log.Error("handler panicked", "route", x.route(), "panic", x.conceal(fmt.Sprint(v)), "stack", string(debug.Stack()))
	if x.status != 0 {
		panic(http.ErrAbortHandler) // abort the connection: half a response must not look like a whole one
	}
	s.fail(x, fmt.Errorf("panic: %v", v))
}

// logAccess logs the request. It logs the route and not the URL, because a path or a query may hold
// a token.
func (s *Server) logAccess(x *exchange, took time.Duration) {
	method := x.r.Method
	switch method {
	case "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS":
	default:
		method = "other"
	}
	attrs := []slog.Attr{
		slog.String("method", method), slog.String("route", x.route()), slog.Int("status", x.status),
		slog.Int64("bytes", x.bytes), slog.Duration("took", took), slog.String("client", x.r.RemoteAddr),
	}
	if x.caller.Subject != "" {
		attrs = append(attrs, slog.String("principal", x.caller.Subject))
	}
	s.log.LogAttrs(context.WithoutCancel(x.r.Context()), slog.LevelInfo, "request", attrs...)
}

// setHeaders sets headers that tell browsers to allow only what our pages need.
func (s *Server) setHeaders(h http.Header) {
	h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "+
		"form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	h.Set("Vary", "Accept")
	if s.public.Scheme == "https" {
		h.Set("Strict-Transport-Security", "max-age=31536000")
	}
}

// admit refuses requests that no route should see.
func (s *Server) admit(r *http.Request) error {
	size := 0
	for name, values := range r.Header {
		for _, v := range values {
			size += len(name) + len(v) + len(": \r\n")
		}
	}
	switch {
	case len(r.RequestURI) > maxTargetBytes:
		return &refusal{status: http.StatusRequestURITooLong, detail: fmt.Sprintf("an address may have at most %d bytes", maxTargetBytes)}
	case size > maxHeaderBytes:
		return &refusal{status: http.StatusRequestHeaderFieldsTooLarge, detail: fmt.Sprintf("the header may have at most %d bytes", maxHeaderBytes)}
	case !s.hosts[canonicalHost(r.Host, s.public.Scheme)] && r.URL.Path != "/healthz":
		return &refusal{
			status: http.StatusMisdirectedRequest,
			detail: "this server does not serve the host name in the request",
			hint:   "Use " + s.public.String() + ".",
		}
	case !cleanPath(r.URL):
		// http.ServeMux would redirect, and repeat in its response a query that may hold a token.
		return &refusal{status: http.StatusNotFound, detail: "there is nothing at this address"}
	}
	if err := s.crossSite.Check(r); err != nil {
		return &refusal{
			status: http.StatusForbidden,
			detail: "the request comes from another web site",
			hint:   "Open " + s.public.JoinPath("acl").String() + " and use the form there.",
		}
	}
	return nil
}

// Package server is the ACL endpoint, the HTTP server of a fabric. People and programs claim topics
// and create access keys there, and clients find out how to reach the fabric.
//
// It has two interfaces with the same rules: GET /acl shows a form, which POST /acl handles, for
// browsers and curl; /v1 is the JSON API for programs. The pages do nothing that the API cannot do.
// /v1/token is an OAuth token endpoint, with requests and errors in OAuth's format.
//
// Every request takes the same path: admit (host, sizes, cross-site) → route → authenticate →
// handler → answer. Each error is written by one function, fail. [Claims] alone decides who may do
// what. Start reading at routes.go, which has the table of routes, and exchange.go, where ServeHTTP
// is.
//
// A token that a client has sent is never sent back: this package writes it into no page, log line,
// error or link.
package server

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/admission"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

// The limits of one request.
const (
	maxBodyBytes   = 64 << 10
	maxTargetBytes = 8 << 10  // path and query
	maxHeaderBytes = 16 << 10 // above it, the request is refused with status 431 in our format
	hardHeaderSize = 28 << 10 // above it, and the 4 KiB that net/http adds, net/http itself answers 431 in plain text

	headerTimeout = 5 * time.Second  // limit for the header of a request
	readTimeout   = 15 * time.Second // limit for header and body together
	claimTimeout  = 30 * time.Second // a claim waits until its ACLs are in effect on every broker
	writeTimeout  = readTimeout + claimTimeout + 15*time.Second
	idleTimeout   = 60 * time.Second
)

// Claims are the rules about topics, access keys and blocked subjects. The real implementation is
// [claims.Service].
//
// [claims.Service]: https://pkg.go.dev/github.com/diaspora-streams/diaspora/internal/claims#Service
type Claims interface {
	Claim(ctx context.Context, subject string, req diaspora.ClaimRequest) (diaspora.Topic, error)
	Release(ctx context.Context, subject, name string) error
	Topics(ctx context.Context, subject string) (diaspora.TopicList, error)
	Topic(ctx context.Context, subject, name string) (diaspora.Topic, error)
	Usage(ctx context.Context, topics []string) (map[string]diaspora.TopicUsage, error)
	SetTopic(ctx context.Context, by, name string, req diaspora.TopicSettings) (diaspora.TopicChange, error)

	Share(ctx context.Context, by, name string, req diaspora.GrantRequest) (diaspora.Grant, error)
	Unshare(ctx context.Context, by, name, grantee string) error
	Grants(ctx context.Context, subject, name string) ([]diaspora.Grant, error)
	Log(ctx context.Context, subject, name string) ([]diaspora.TopicEvent, error)
	Readers(ctx context.Context, subject, name string) ([]diaspora.Reader, error)

	Offer(ctx context.Context, by, name, to string) error
	Accept(ctx context.Context, by, name string) (diaspora.Topic, error)
	Retire(ctx context.Context, by, name string) (diaspora.Topic, error)
	Restore(ctx context.Context, by, name string) (diaspora.Topic, error)

	IssueKey(ctx context.Context, subject string, req diaspora.AccessKeyRequest) (diaspora.NewAccessKey, error)
	RevokeKey(ctx context.Context, subject, id string) error
	Keys(ctx context.Context, subject string) ([]diaspora.AccessKey, error)
	Key(ctx context.Context, subject, id string) (diaspora.AccessKey, error)
	AuthenticateKey(ctx context.Context, id string, secret globus.Secret) (diaspora.AccessKey, error)

	Block(ctx context.Context, by string, req diaspora.BlockRequest) (diaspora.Blocked, error)
	Unblock(ctx context.Context, by, subject string) error
	Blocked(ctx context.Context, by string) ([]diaspora.Blocked, error)
}

// Tokens exchanges the ID and the secret of an access key for a token that the gateway accepts. Its
// errors are those of an [Authenticator].
type Tokens interface {
	Exchange(ctx context.Context, keyID string, secret globus.Secret) (globus.Token, error)
}

// Authenticator finds out whose an access token is. The error for a token that is not valid wraps
// [globus.ErrRefused]. If the Authenticator cannot tell, the error wraps [globus.ErrUnavailable]
// or, if an operator has to fix something first, [globus.ErrMisconfigured]. The server does not
// treat these two as a refusal.
type Authenticator interface {
	Authenticate(ctx context.Context, token globus.Secret) (globus.TokenInfo, error)
}

// Config configures a [Server].
type Config struct {
	// Claims makes the decisions. Required.
	Claims Claims

	// Authenticator authenticates access tokens. Required.
	Authenticator Authenticator

	// People looks up usernames. If it is nil, people can be named by their subjects only.
	People People

	// Tokens creates the tokens of /v1/token. If it is nil, /v1/token answers 404.
	Tokens Tokens

	// Discovery is the answer of /.well-known/diaspora.
	Discovery diaspora.Discovery

	// PublicURL is the address at which clients reach the server, for example
	// https://diaspora.example.org or http://127.0.0.1:9090. Links and commands on the pages begin
	// with it. It has a scheme and a host only. Required.
	PublicURL string

	// Hosts are further names, as host or host:port, under which clients may reach the server.
	// Requests for any other name are refused. Otherwise another web page could point its own name
	// at this server (DNS rebinding). The host of PublicURL is always accepted. If that is a
	// loopback address, so are the other loopback names with its port.
	Hosts []string

	// InsecureAllowPlaintext permits an http:// PublicURL that is not loopback. Tokens then cross
	// the network in the clear.
	InsecureAllowPlaintext bool

	// TrustedProxies are the addresses of proxies whose X-Forwarded-For header is trusted, when
	// failed authentications are counted by client. Their connections are not limited by address.
	// Default: none.
	TrustedProxies []netip.Prefix

	// TLS is the configuration for Serve. If it is nil, Serve uses plaintext, for loopback or
	// behind a proxy that terminates TLS.
	TLS *tls.Config

	// Ready are the checks of /healthz, by the name of the part. A check returns nil if the part
	// works.
	Ready map[string]func(context.Context) error

	// DrainTimeout limits how long Serve waits for requests in flight when it stops. Default: 10 s.
	DrainTimeout time.Duration

	// MaxConns limits the connections that are open at the same time. One address may have a
	// quarter of them, unless it is a trusted proxy. When the limit is reached, Serve closes idle
	// connections first. Then it closes connections whose request has not arrived completely or is
	// not authenticated, beginning with the address that has most of them. If there are none, new
	// connections wait. Default: 1024.
	MaxConns int

	// Diagnostics receives the access log and the cause of every internal error.
	// Nil discards them.
	Diagnostics *slog.Logger
}

// Server is the ACL endpoint. It is an [http.Handler]. [Server.Serve] runs it on a listener with
// the limits that a public endpoint needs.
type Server struct {
	cfg       Config
	public    *url.URL
	hosts     map[string]bool
	discovery []byte
	mux       *http.ServeMux
	pages     *pages
	crossSite *http.CrossOriginProtection
	guard     *admission.Guard
	lookups   lookups
	names     names
	health    healthCache
	log       *slog.Logger

	logMisconfigured rate.Sometimes // for an error that every request would log until an operator fixes it
}

// New returns the ACL endpoint. It fails only if cfg is not valid.
func New(cfg Config) (*Server, error) {
	if cfg.Claims == nil || cfg.Authenticator == nil {
		return nil, fmt.Errorf("server: Claims and Authenticator are required: %w", diaspora.ErrInvalid)
	}
	public, err := parsePublicURL(cfg.PublicURL, cfg.InsecureAllowPlaintext)
	if err != nil {
		return nil, fmt.Errorf("server: public URL: %w", err)
	}
	cfg.DrainTimeout = cmp.Or(cfg.DrainTimeout, 10*time.Second)
	cfg.MaxConns = cmp.Or(cfg.MaxConns, 1024)
	cfg.Diagnostics = cmp.Or(cfg.Diagnostics, slog.New(slog.DiscardHandler))
	discovery, err := json.MarshalIndent(cfg.Discovery, "", "  ")
	if err != nil {
		return nil, err
	}
	s := &Server{
		cfg:       cfg,
		public:    public,
		hosts:     hostNames(public, cfg.Hosts),
		discovery: append(discovery, '\n'),
		crossSite: http.NewCrossOriginProtection(),
		guard:     admission.NewGuard(admission.DefaultBurst),
		log:       cfg.Diagnostics,

		logMisconfigured: rate.Sometimes{Interval: time.Minute},
	}
	s.pages, err = loadPages()
	if err != nil {
		return nil, err
	}
	s.mux = s.routes()
	return s, nil
}

// CheckPublicURL returns what is wrong with a [Config.PublicURL], or nil.
func CheckPublicURL(raw string, allowPlaintext bool) error {
	_, err := parsePublicURL(raw, allowPlaintext)
	return err
}

func parsePublicURL(raw string, allowPlaintext bool) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("%w: %q is not a scheme and a host, such as https://diaspora.example.org", diaspora.ErrInvalid, raw)
	}
	switch {
	case u.Scheme == "https":
	case u.Scheme == "http" && (allowPlaintext || trust.IsLoopback(u.Hostname())):
	case u.Scheme == "http":
		return nil, fmt.Errorf("%w: %q: tokens would cross the network in the clear; write https://", diaspora.ErrInvalid, raw)
	default:
		return nil, fmt.Errorf("%w: %q: the scheme must be https or http", diaspora.ErrInvalid, raw)
	}
	return &url.URL{Scheme: u.Scheme, Host: strings.ToLower(u.Host)}, nil
}

// Serve handles requests on l until ctx ends. Then it waits for requests in flight and returns nil.
// It returns an error if l fails, or if requests had to be cut off after [Config.DrainTimeout]. It
// closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	conns := newConns(s.cfg.MaxConns, s.trusts)
	srv := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    hardHeaderSize,
		ConnState:         conns.observe,
		ConnContext:       connContext,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),

		DisableGeneralOptionsHandler: true, // so that our own answer, with our format and headers, is sent instead
	}
	l = conns.limit(l)
	if s.cfg.TLS != nil {
		l = tls.NewListener(l, s.cfg.TLS) // outermost, because net/http recognizes TLS by the connection's type
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve the ACL endpoint: %w", err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.DrainTimeout)
	defer cancel()
	conns.closeSilent()
	err := srv.Shutdown(drain)
	if err != nil {
		err = errors.Join(fmt.Errorf("drain the ACL endpoint: %w", err), srv.Close())
	}
	<-served
	return err
}

// Package server is the ACL endpoint: where people and programs claim topics,
// and where a client learns all that it needs to know of a fabric.
//
// It has two faces with one set of rules behind them. GET /acl is a form and
// POST /acl answers it, for browsers and for curl; /v1 is the same for programs.
// Every request walks the same way: admit (host, sizes, cross-site) → route →
// authenticate → handler → answer, or fail, which writes every error. Who may do
// what is decided by [Claims] alone; the pages do nothing that the API cannot do.
// /v1/token is OAuth's, and has OAuth's shapes.
//
// A token that comes in never goes out again: it is in no page, log line, error
// or link that this package writes.
package server

import (
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
)

// The bounds of one request. Everything beyond them is refused before it is read.
const (
	maxBodyBytes   = 64 << 10
	maxTargetBytes = 8 << 10  // path and query
	maxHeaderBytes = 16 << 10 // beyond it 431 in our shape
	hardHeaderSize = 28 << 10 // beyond it, and the 4 KiB that net/http adds, its bare 431

	headerTimeout = 5 * time.Second  // a client that sends its header slower is cut off
	readTimeout   = 15 * time.Second // header and body together
	claimTimeout  = 30 * time.Second // a claim waits until its ACLs hold on every broker
	writeTimeout  = readTimeout + claimTimeout + 15*time.Second
	idleTimeout   = 60 * time.Second
)

// Claims are the rules of who owns what. [claims.Service] is the one that counts.
//
// [claims.Service]: https://pkg.go.dev/github.com/diaspora-streams/diaspora/internal/claims#Service
type Claims interface {
	Claim(ctx context.Context, subject string, req diaspora.ClaimRequest) (diaspora.Topic, error)
	Release(ctx context.Context, subject, name string) error
	Topics(ctx context.Context, subject string) ([]diaspora.Topic, error)
	Topic(ctx context.Context, subject, name string) (diaspora.Topic, error)

	IssueKey(ctx context.Context, subject string, req diaspora.AccessKeyRequest) (diaspora.NewAccessKey, error)
	RevokeKey(ctx context.Context, subject, id string) error
	Keys(ctx context.Context, subject string) ([]diaspora.AccessKey, error)
	Key(ctx context.Context, subject, id string) (diaspora.AccessKey, error)
	AuthenticateKey(ctx context.Context, id string, secret globus.Secret) (diaspora.AccessKey, error)

	Block(ctx context.Context, by string, req diaspora.BlockRequest) (diaspora.Blocked, error)
	Unblock(ctx context.Context, by, subject string) error
	Blocked(ctx context.Context, by string) ([]diaspora.Blocked, error)
}

// Tokens exchanges the ID and the secret of an access key for a token that the
// gateway takes. Its errors are as those of an [Authenticator].
type Tokens interface {
	Exchange(ctx context.Context, keyID string, secret globus.Secret) (globus.Token, error)
}

// Authenticator says whose an access token is. A token that is not good makes it
// return an error that is [globus.ErrRefused]; not being able to tell makes it
// return one that is [globus.ErrUnavailable] or, until somebody mends that,
// [globus.ErrMisconfigured]. Neither is ever taken for a refusal.
type Authenticator interface {
	Authenticate(ctx context.Context, token globus.Secret) (globus.TokenInfo, error)
}

// Config says what a [Server] serves.
type Config struct {
	// Claims decides. Required.
	Claims Claims

	// Authenticator tells who is calling. Required.
	Authenticator Authenticator

	// Tokens makes the tokens of /v1/token. Nil: there are none, and /v1/token is
	// not found.
	Tokens Tokens

	// Discovery is the answer of /.well-known/diaspora.
	Discovery diaspora.Discovery

	// PublicURL is how clients reach the server, for instance
	// https://diaspora.example.org or http://127.0.0.1:9090; links and commands
	// on the pages begin with it. Required; scheme and host only.
	PublicURL string

	// Hosts are further names, as host or host:port, that requests may come for.
	// Any other name is refused, so that no foreign web page can rebind its own
	// name to this server. The host of PublicURL is always good; if that is a
	// loopback address, so are the other names of loopback with its port.
	Hosts []string

	// InsecureAllowPlaintext permits a PublicURL of http:// that is not loopback.
	// Tokens then cross the network in the clear.
	InsecureAllowPlaintext bool

	// TrustedProxies are the addresses whose X-Forwarded-For is believed, when
	// failed authentications are counted by client. Default: none.
	TrustedProxies []netip.Prefix

	// TLS is what Serve offers. Nil serves plaintext: on loopback, or behind a
	// proxy that ends TLS.
	TLS *tls.Config

	// Ready are the parts that /healthz asks, by name; nil means well.
	Ready map[string]func(context.Context) error

	// DrainTimeout bounds how long Serve waits for requests under way once it is
	// told to stop. Default: 10 s.
	DrainTimeout time.Duration

	// MaxConns bounds the connections served at once, and a quarter of it those of one
	// address, unless it is a trusted proxy's. Idle ones make room for new ones, and then those
	// whose request has not arrived or is not known to come from anybody, of the address that
	// has most of them; where there are none, more wait. Default: 1024.
	MaxConns int

	// Diagnostics receives the access log and the cause of every internal error.
	// Nil discards them.
	Diagnostics *slog.Logger
}

// Server is the ACL endpoint. It is an [http.Handler], and [Server.Serve] runs
// it on a listener with the limits that a public endpoint needs.
type Server struct {
	cfg       Config
	public    *url.URL
	hosts     map[string]bool
	discovery []byte
	mux       *http.ServeMux
	pages     *pages
	crossSite *http.CrossOriginProtection
	attempts  *admission.Guard
	health    healthCache
	log       *slog.Logger

	misconfiguredOften rate.Sometimes // for what each request would tell until somebody mends it
}

// New returns the ACL endpoint. It fails only when cfg makes no sense.
func New(cfg Config) (*Server, error) {
	if cfg.Claims == nil || cfg.Authenticator == nil {
		return nil, fmt.Errorf("server: Claims and Authenticator are required: %w", diaspora.ErrInvalid)
	}
	public, err := parsePublicURL(cfg.PublicURL, cfg.InsecureAllowPlaintext)
	if err != nil {
		return nil, fmt.Errorf("server: public URL: %w", err)
	}
	if cfg.DrainTimeout == 0 {
		cfg.DrainTimeout = 10 * time.Second
	}
	if cfg.MaxConns == 0 {
		cfg.MaxConns = 1024
	}
	if cfg.Diagnostics == nil {
		cfg.Diagnostics = slog.New(slog.DiscardHandler)
	}
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
		attempts:  admission.NewGuard(admission.DefaultBurst),
		log:       cfg.Diagnostics,

		misconfiguredOften: rate.Sometimes{Interval: time.Minute},
	}
	s.pages, err = loadPages()
	if err != nil {
		return nil, err
	}
	s.mux = s.routes()
	return s, nil
}

// CheckPublicURL says what is wrong with a [Config.PublicURL].
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
	case u.Scheme == "http" && (allowPlaintext || isLoopback(u.Hostname())):
	case u.Scheme == "http":
		return nil, fmt.Errorf("%w: %q: tokens would cross the network in the clear; write https://", diaspora.ErrInvalid, raw)
	default:
		return nil, fmt.Errorf("%w: %q: the scheme must be https or http", diaspora.ErrInvalid, raw)
	}
	return &url.URL{Scheme: u.Scheme, Host: strings.ToLower(u.Host)}, nil
}

// Serve answers requests on l until ctx ends, then lets those under way finish
// and returns nil. It returns an error when l fails, or when requests under way
// had to be cut off after [Config.DrainTimeout]. It closes l.
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
		ConnContext:       inContext,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),

		DisableGeneralOptionsHandler: true, // our own refusal has our shape and headers
	}
	l = conns.limit(l)
	if s.cfg.TLS != nil {
		l = tls.NewListener(l, s.cfg.TLS) // outermost, or net/http does not see that it is TLS
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

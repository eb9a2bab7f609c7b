// Package front is the service in front of an Apache Kafka cluster: gateways,
// the ACL endpoint, or both in one process. `diaspora serve` is a thin cover of it.
//
// A gateway stands beside each broker, on its host. The ACL endpoint stands
// anywhere, in any number of replicas. Each process follows the ledger by itself,
// and so any of them can be started and stopped without the others.
//
// [Check] tries a configuration against the cluster that it is for, and says what
// to change.
package front

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"golang.org/x/sync/errgroup"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/apache"
	"github.com/diaspora-streams/diaspora/internal/claims"
	"github.com/diaspora-streams/diaspora/internal/gateway"
	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/keys"
	"github.com/diaspora-streams/diaspora/internal/server"
)

// Config says what a [Front] serves, and what it stands before.
type Config struct {
	Globus Globus
	Kafka  Kafka

	// Gateway and ACL are the parts that this process serves; at least one.
	Gateway *Gateway
	ACL     *ACL

	// PublicURL is where clients find the ACL endpoint. It is the issuer of the
	// tokens that access keys are exchanged for, so gateways need it, too. Required.
	PublicURL string

	// TokenKeyFile holds the key that signs those tokens. All processes of a
	// fabric need the same file. It is made when missing. Required.
	TokenKeyFile string

	// StateDir is as Dir of [claims.Config].
	StateDir string

	// Admission says who may use the fabric, and who operates it.
	Admission claims.Admission

	// TLS is what both parts speak to clients. Nil is plaintext, which is
	// refused beyond this machine unless InsecureAllowPlaintext. Brokers have a
	// switch of their own, for their password is worth more than any token.
	TLS                    *tls.Config
	InsecureAllowPlaintext bool

	// Version is what /.well-known/diaspora says.
	Version string

	// Diagnostics receives what the parts say about themselves. Nil discards it.
	Diagnostics *slog.Logger
}

// Globus says which Globus Auth knows the people, and as what the service is
// registered there. All fields are required, but for Issuer.
type Globus struct {
	Issuer        string        // default: [globus.DefaultIssuer]
	ClientID      string        // the service's own client, the resource server
	ClientSecret  globus.Secret // of that
	Scope         string        // what an access token must be good for
	LoginClientID string        // the public client that people log in through; for the ACL endpoint
}

// Kafka says how to administer the cluster: as a super user, through a listener
// that is not the gateway's. Brokers is required.
type Kafka struct {
	Brokers  []string
	Username string // empty signs in as nobody
	Password globus.Secret
	TLS      *tls.Config // nil is plaintext

	// InsecureAllowPlaintext sends the password in the clear to brokers on other
	// machines, where anybody on the way can take it, and with it the cluster.
	InsecureAllowPlaintext bool
}

// Gateway says where a gateway listens, and which broker is behind it.
type Gateway struct {
	Listen string // host:port
	Broker string // the broker's GATEWAY listener, as host:port of this host

	// Issuer and Audience are what that listener expects in tokens.
	Issuer, Audience string

	// KeysFile holds the keys that sign those tokens; JWKSFile is where their
	// public halves are published to the broker.
	KeysFile, JWKSFile string

	// RevocationInterval and MaxConnections are as in [gateway.Config].
	RevocationInterval time.Duration
	MaxConnections     int
}

// ACL says where the ACL endpoint listens, and what it tells clients and grants.
type ACL struct {
	Listen string // host:port

	// Bootstrap are the public addresses of gateways that clients begin with.
	Bootstrap []string

	// CA holds PEM certificates that clients shall trust besides their
	// system's. Optional.
	CA string

	// Hosts and TrustedProxies are as in [server.Config].
	Hosts          []string
	TrustedProxies []netip.Prefix

	// What claims get; zero values are the defaults of [claims.Config].
	DefaultPartitions int
	DefaultRetention  time.Duration
	Limits            claims.Limits
}

// Validate says all that is wrong with a configuration by itself.
func (cfg *Config) Validate() error {
	var errs []error
	require := func(value, what string) {
		if value == "" {
			errs = append(errs, fmt.Errorf("%s is missing", what))
		}
	}
	require(cfg.PublicURL, "public-url")
	require(cfg.TokenKeyFile, "token-key-file")
	require(cfg.Globus.ClientID, "globus-client-id")
	require(string(cfg.Globus.ClientSecret), "globus-client-secret-file")
	require(cfg.Globus.Scope, "globus-scope")
	if len(cfg.Kafka.Brokers) == 0 {
		require("", "kafka-brokers")
	}
	for _, b := range cfg.Kafka.Brokers {
		if cfg.Kafka.mustStayLocal() && !isLoopback(b) {
			errs = append(errs, fmt.Errorf("kafka-brokers: %s is another machine, so kafka-ca-file is needed, or the super user's password could be read on its way (kafka-insecure-allow-plaintext sends it all the same)", b))
		}
	}
	if g := cfg.Gateway; g != nil {
		require(g.Broker, "gateway-broker")
		require(g.Issuer, "gateway-issuer")
		require(g.Audience, "gateway-audience")
		require(g.KeysFile, "gateway-keys-file")
		require(g.JWKSFile, "gateway-jwks-file")
		if g.Broker != "" && !isLoopback(g.Broker) {
			errs = append(errs, fmt.Errorf("gateway-broker %s is not on this host: the listener is plaintext, so the gateway stands beside its broker", g.Broker))
		}
		errs = append(errs, cfg.checkListen("gateway-listen", g.Listen))
	}
	if a := cfg.ACL; a != nil {
		require(cfg.Globus.LoginClientID, "globus-login-client-id")
		if len(a.Bootstrap) == 0 {
			require("", "acl-bootstrap")
		}
		errs = append(errs, cfg.checkListen("acl-listen", a.Listen))
	}
	errs = append(errs, cfg.Admission.Validate())
	if cfg.Gateway == nil && cfg.ACL == nil {
		errs = append(errs, errors.New("there is nothing to serve"))
	}
	return errors.Join(errs...)
}

// checkListen refuses to take tokens in the clear from other machines.
func (cfg *Config) checkListen(name, address string) error {
	if _, _, err := net.SplitHostPort(address); err != nil {
		return fmt.Errorf("%s %q is not HOST:PORT", name, address)
	}
	if cfg.TLS == nil && !cfg.InsecureAllowPlaintext && !isLoopback(address) {
		return fmt.Errorf("%s %s is reachable from other machines, so it needs tls-cert-file and tls-key-file (or insecure-allow-plaintext, behind something that ends TLS)", name, address)
	}
	return nil
}

func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// mustStayLocal reports whether connections to other machines are refused.
func (k Kafka) mustStayLocal() bool {
	return k.Username != "" && k.TLS == nil && !k.InsecureAllowPlaintext
}

// dialLocally connects to brokers on this machine. Those that are configured may be, and
// name others that are not.
func dialLocally(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if here(conn.RemoteAddr(), conn.LocalAddr()) {
		return conn, nil
	}
	return nil, errors.Join(fmt.Errorf("broker %s: refusing to send the super user's password without TLS to another machine; set kafka-ca-file", address), conn.Close())
}

// here reports whether a connection stays on this machine: it is between one address and itself, or
// one of the loopback.
func here(remote, local net.Addr) bool {
	to, ok := remote.(*net.TCPAddr)
	from, _ := local.(*net.TCPAddr)
	return ok && (to.IP.IsLoopback() || from != nil && to.IP.Equal(from.IP))
}

const dialTimeout = 10 * time.Second

// adminOpts are the options of a client that administers the cluster.
func (k Kafka) adminOpts() []kgo.Opt {
	opts := []kgo.Opt{kgo.SeedBrokers(k.Brokers...), kgo.ClientID("diaspora-serve")}
	if k.TLS != nil {
		opts = append(opts, kgo.DialTLSConfig(k.TLS))
	}
	if k.mustStayLocal() {
		opts = append(opts, kgo.Dialer(dialLocally))
	}
	if k.Username != "" {
		opts = append(opts, kgo.SASL(plain.Auth{User: k.Username, Pass: k.Password.Reveal()}.AsMechanism()))
	}
	return opts
}

// client is the service itself at Globus Auth.
func (cfg *Config) client() (*globus.Client, error) {
	return globus.New(globus.Config{
		Issuer: cfg.Globus.Issuer, ClientID: cfg.Globus.ClientID, ClientSecret: cfg.Globus.ClientSecret,
		Version: cfg.Version, Diagnostics: cfg.Diagnostics,
	})
}

func (cfg *Config) issuer() string {
	if cfg.Globus.Issuer == "" {
		return globus.DefaultIssuer
	}
	return cfg.Globus.Issuer
}

// signingKeys are what the gateway signs in to the broker with.
func (g *Gateway) signingKeys(diagnostics *slog.Logger) (*apache.Keys, error) {
	return apache.OpenKeys(apache.KeysConfig{File: g.KeysFile, JWKSFile: g.JWKSFile, Diagnostics: diagnostics})
}

// upstream is the broker behind the gateway.
func (g *Gateway) upstream(signing *apache.Keys) (*apache.Broker, error) {
	return apache.New(apache.Config{Address: g.Broker, Issuer: g.Issuer, Audience: g.Audience, Keys: signing})
}

// Front is a service that is ready to run.
type Front struct {
	claims *claims.Service
	parts  []part
}

// part is something that listens.
type part struct {
	name  string
	ln    net.Listener
	serve func(context.Context, net.Listener) error
}

// Open reads the ledger and takes the ports; clients are served once [Front.Run]
// is called. ctx bounds the opening only. The caller closes the Front.
func Open(ctx context.Context, cfg Config) (*Front, error) {
	if cfg.Diagnostics == nil {
		cfg.Diagnostics = slog.New(slog.DiscardHandler)
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	f := &Front{}
	if err := f.open(ctx, &cfg); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (f *Front) open(ctx context.Context, cfg *Config) error {
	service, err := cfg.client()
	if err != nil {
		return err
	}
	known, err := globus.NewAuthenticator(globus.AuthenticatorConfig{
		Introspector: service,
		Issuer:       cfg.issuer(),
		Audience:     cfg.Globus.ClientID,
		Scope:        cfg.Globus.Scope,
	})
	if err != nil {
		return err
	}
	rules := claims.Config{Admin: cfg.Kafka.adminOpts(), Admission: cfg.Admission, Dir: cfg.StateDir, Diagnostics: cfg.Diagnostics}
	if a := cfg.ACL; a != nil {
		rules.DefaultPartitions = a.DefaultPartitions
		rules.DefaultRetention, rules.Limits = a.DefaultRetention, a.Limits
	}
	if f.claims, err = claims.Open(ctx, rules); err != nil {
		return err
	}
	people := &keys.People{Globus: known, Ledger: f.claims}
	tokens, err := keys.OpenTokens(cfg.TokenKeyFile, cfg.PublicURL, f.claims, keys.DefaultTokenLifetime)
	if err != nil {
		return err
	}
	if cfg.Gateway != nil {
		if err := f.openGateway(cfg, &keys.Authenticator{People: people, Keys: f.claims, Tokens: tokens}); err != nil {
			return err
		}
	}
	if cfg.ACL != nil {
		return f.openACL(cfg, people, tokens)
	}
	return nil
}

func (f *Front) openGateway(cfg *Config, who gateway.Authenticator) error {
	signing, err := cfg.Gateway.signingKeys(cfg.Diagnostics)
	if err != nil {
		return err
	}
	broker, err := cfg.Gateway.upstream(signing)
	if err != nil {
		return err
	}
	g, err := gateway.New(gateway.Config{
		Upstream:           broker,
		Authenticator:      who,
		TLS:                cfg.TLS,
		RevocationInterval: cfg.Gateway.RevocationInterval,
		MaxConnections:     cfg.Gateway.MaxConnections,
		Diagnostics:        cfg.Diagnostics,
	})
	if err != nil {
		return err
	}
	return f.listen("the gateway", cfg.Gateway.Listen, g.Serve)
}

func (f *Front) openACL(cfg *Config, people *keys.People, tokens *keys.Tokens) error {
	a := cfg.ACL
	s, err := server.New(server.Config{
		Claims:                 f.claims,
		Authenticator:          people,
		Tokens:                 tokens,
		Discovery:              cfg.discovery(),
		PublicURL:              cfg.PublicURL,
		Hosts:                  a.Hosts,
		InsecureAllowPlaintext: cfg.InsecureAllowPlaintext,
		TrustedProxies:         a.TrustedProxies,
		TLS:                    cfg.TLS,
		Ready:                  map[string]func(context.Context) error{"ledger": f.claims.Ready},
		Diagnostics:            cfg.Diagnostics,
	})
	if err != nil {
		return err
	}
	return f.listen("the ACL endpoint", a.Listen, s.Serve)
}

// discovery is what the ACL endpoint tells clients.
func (cfg *Config) discovery() diaspora.Discovery {
	d := diaspora.Discovery{
		Version:  cfg.Version,
		Brokers:  cfg.ACL.Bootstrap,
		Security: "tls",
		CA:       cfg.ACL.CA,
		Globus: diaspora.DiscoveryGlobus{
			Issuer:         cfg.issuer(),
			ClientID:       cfg.Globus.LoginClientID,
			ResourceServer: cfg.Globus.ClientID,
			Scope:          cfg.Globus.Scope,
		},
		MaxEventBytes: kafka.MaxEventBytes,
		TokenURL:      cfg.PublicURL + "/v1/token",
	}
	if cfg.TLS == nil && !cfg.InsecureAllowPlaintext {
		d.Security = "plaintext"
	}
	return d
}

func (f *Front) listen(name, address string, serve func(context.Context, net.Listener) error) error {
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("listen for %s: %w", name, err)
	}
	f.parts = append(f.parts, part{name, ln, serve})
	return nil
}

// Addrs returns where the parts listen, by name: "the gateway", "the ACL endpoint".
func (f *Front) Addrs() map[string]string {
	addrs := map[string]string{}
	for _, p := range f.parts {
		addrs[p.name] = p.ln.Addr().String()
	}
	return addrs
}

// Run serves until ctx ends, lets what is under way finish, and returns nil; or an
// error as soon as a part fails, which ends the other. It is called once.
func (f *Front) Run(ctx context.Context) error {
	running, ctx := errgroup.WithContext(ctx)
	for _, p := range f.parts {
		running.Go(func() error {
			if err := p.serve(ctx, p.ln); err != nil {
				return fmt.Errorf("serve %s: %w", p.name, err)
			}
			return nil
		})
	}
	return running.Wait()
}

// Close frees the ports and ends the ledger's reader. Call it after Run.
func (f *Front) Close() error {
	var errs []error
	for _, p := range f.parts {
		if err := p.ln.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if f.claims != nil {
		errs = append(errs, f.claims.Close())
	}
	return errors.Join(errs...)
}

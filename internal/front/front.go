// Package front is the service in front of an Apache Kafka cluster: gateways,
// the ACL endpoint, or both in one process. `diaspora serve` is a thin cover of it.
//
// A gateway stands beside each broker, on its host. The ACL endpoint stands
// anywhere, in any number of replicas. Each process follows the ledger by itself,
// and so any of them can be started and stopped without the others. ACL endpoints
// alone make the cluster agree with it; a gateway needs no right to change anything.
//
// [Check] tries a configuration against the cluster that it is for, and says what
// to change.
package front

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/apache"
	"github.com/diaspora-streams/diaspora/internal/assemble"
	"github.com/diaspora-streams/diaspora/internal/claims"
	"github.com/diaspora-streams/diaspora/internal/gateway"
	"github.com/diaspora-streams/diaspora/internal/proxyproto"
	"github.com/diaspora-streams/diaspora/internal/server"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

// Config says what the service consists of, and which cluster it is in front of.
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

	// TrustedProxies are the networks of load balancers in front of the listeners that
	// say whose each connection is, in PROXY protocol version 2. Default: none.
	TrustedProxies []netip.Prefix

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

// Kafka says how to reach the cluster through a listener that is not the gateway's.
// Brokers is required.
type Kafka struct {
	Brokers []string
	TLS     *tls.Config // nil is plaintext

	// Admin is the super user, as whom an ACL endpoint administers the cluster.
	Admin User

	// Gateway is the user as whom a gateway reads the ledger in a process without
	// an ACL endpoint. It needs no rights but those that ACL endpoints give it by
	// its name; they need no password of it.
	Gateway User

	// InsecureAllowPlaintext sends the password in the clear to brokers on other
	// machines, where anybody on the way can take it.
	InsecureAllowPlaintext bool
}

// User is somebody whom brokers know by a password. Without a name it is nobody.
type User struct {
	Name     string
	Password globus.Secret
}

// principal returns what the broker takes the user for, or "" if it is nobody.
func (u User) principal() string {
	if u.Name == "" {
		return ""
	}
	return "User:" + u.Name
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
	if cfg.PublicURL != "" {
		errs = append(errs, cfg.checkPublicURL())
	}
	errs = append(errs, cfg.Globus.check())
	require(cfg.Globus.ClientID, "globus-client-id")
	require(string(cfg.Globus.ClientSecret), "globus-client-secret-file")
	require(cfg.Globus.Scope, "globus-scope")
	if len(cfg.Kafka.Brokers) == 0 {
		require("", "kafka-brokers")
	}
	for _, b := range cfg.Kafka.Brokers {
		if cfg.mustStayLocal() && !isLoopback(b) {
			errs = append(errs, fmt.Errorf("kafka-brokers: %s is another machine, so kafka-ca-file is needed, or %s's password could be read on its way (kafka-insecure-allow-plaintext sends it all the same)", b, cfg.user().Name))
		}
	}
	if cfg.ACL == nil && cfg.Kafka.Admin.Name != "" && cfg.Kafka.Gateway.Name == "" {
		errs = append(errs, errors.New("gateway-kafka-username is missing: a gateway by itself does not sign in as the super user (kafka-username), but as a user that may read the ledger; docs/operate.md says how to make it"))
	}
	if cfg.Kafka.Gateway.Name != "" && cfg.Kafka.Gateway.Name == cfg.Kafka.Admin.Name {
		errs = append(errs, errors.New("gateway-kafka-username is the super user, and is to be another user"))
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

// checkPublicURL refuses what the ACL endpoint and the tokens for access keys cannot use.
func (cfg *Config) checkPublicURL() error {
	if !strings.Contains(cfg.PublicURL, "://") {
		return fmt.Errorf("public-url: %q has no scheme; write http://…, or https://… beyond one machine", cfg.PublicURL)
	}
	if err := server.CheckPublicURL(cfg.PublicURL, cfg.InsecureAllowPlaintext); err != nil {
		return fmt.Errorf("public-url: %w", err)
	}
	return nil
}

// check says what is wrong with the names of the service at Globus: with them wrong, people log in and are refused
// afterwards, or get no token for the service at all.
func (g Globus) check() error {
	var errs []error
	for _, id := range [][2]string{{"globus-client-id", g.ClientID}, {"globus-login-client-id", g.LoginClientID}} {
		if name, value := id[0], id[1]; value != "" && (len(value) != 36 || uuid.Validate(value) != nil) {
			errs = append(errs, fmt.Errorf("%s: %q is no UUID; copy the client's from https://app.globus.org/settings/developers", name, value))
		}
	}
	if g.ClientID != "" && strings.EqualFold(g.LoginClientID, g.ClientID) {
		errs = append(errs, errors.New("globus-login-client-id is the service's own client; people log in through another one, which has no secret"))
	}
	if g.Scope != "" {
		owner, err := trust.ScopeOwner(g.Scope)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("globus-scope: %w", err))
		case uuid.Validate(owner) == nil && !strings.EqualFold(owner, g.ClientID):
			errs = append(errs, fmt.Errorf("globus-scope: %s is a scope of the client %s, and globus-client-id is %s: people would get tokens for another service", g.Scope, owner, g.ClientID))
		}
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

// user is who the process is to the brokers.
func (cfg *Config) user() User {
	if cfg.ACL == nil {
		return cfg.Kafka.Gateway
	}
	return cfg.Kafka.Admin
}

// openPort is a broker's address that any user of this host can listen on while the broker is
// down. The programs of the service would then sign in there.
type openPort struct {
	setting, address string
	loses            string // what a program that listens there gets
	fix              string
}

func (p openPort) String() string {
	return fmt.Sprintf("%s is plaintext, and while the broker is down any user of this host can listen there and get %s", p.address, p.loses)
}

// openPorts returns the brokers' addresses of this kind. first is the first port that every user
// may listen on.
func (cfg *Config) openPorts(first int) (open []openPort) {
	isOpen := func(address string) bool {
		_, port, err := net.SplitHostPort(address)
		n, _ := strconv.Atoi(port)
		return err == nil && isLoopback(address) && n >= first
	}
	privileged := "a port below 512, and Kafka's unit AmbientCapabilities=CAP_NET_BIND_SERVICE (deploy/systemd/kafka.service)"
	if first < 1024 {
		privileged += ", and set the sysctl net.ipv4.ip_unprivileged_port_start to 1024"
	}
	if g := cfg.Gateway; g != nil && isOpen(g.Broker) {
		open = append(open, openPort{"gateway-broker", g.Broker, "clients' events, and tokens to sign in to the broker as any client, good for two minutes each",
			"give the GATEWAY listener " + privileged})
	}
	for _, b := range cfg.Kafka.Brokers {
		if user := cfg.user().Name; user != "" && cfg.Kafka.TLS == nil && isOpen(b) {
			open = append(open, openPort{"kafka-brokers", b, "the password of " + user,
				"let the INTERNAL listener speak TLS and set kafka-ca-file; or give it " + privileged})
		}
	}
	return open
}

// unprivilegedPort returns the first port that every user of this host may listen on.
func unprivilegedPort() int {
	data, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if err != nil {
		return 1024 // not Linux
	}
	first, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 1024
	}
	return first
}

// mustStayLocal reports whether connections to other machines are refused.
func (cfg *Config) mustStayLocal() bool {
	return cfg.user().Name != "" && cfg.Kafka.TLS == nil && !cfg.Kafka.InsecureAllowPlaintext
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
	return nil, errors.Join(fmt.Errorf("broker %s: refusing to send a password without TLS to another machine; set kafka-ca-file", address), conn.Close())
}

// here reports whether a connection stays on this machine: it is between one address and itself, or
// one of the loopback.
func here(remote, local net.Addr) bool {
	to, ok := remote.(*net.TCPAddr)
	from, _ := local.(*net.TCPAddr)
	return ok && (to.IP.IsLoopback() || from != nil && to.IP.Equal(from.IP))
}

const dialTimeout = 10 * time.Second

// kafkaOpts are the options of a client that is the process itself.
func (cfg *Config) kafkaOpts() []kgo.Opt {
	opts := []kgo.Opt{kgo.SeedBrokers(cfg.Kafka.Brokers...), kgo.ClientID("diaspora-serve")}
	if cfg.Kafka.TLS != nil {
		opts = append(opts, kgo.DialTLSConfig(cfg.Kafka.TLS))
	}
	if cfg.mustStayLocal() {
		opts = append(opts, kgo.Dialer(dialLocally))
	}
	if user := cfg.user(); user.Name != "" {
		opts = append(opts, kgo.SASL(plain.Auth{User: user.Name, Pass: user.Password.Reveal()}.AsMechanism()))
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

// askGlobus asks Globus Auth about a token that is none, which proves the service's client and its secret.
func (cfg *Config) askGlobus(ctx context.Context) (*globus.Client, error) {
	client, err := cfg.client()
	if err != nil {
		return nil, err
	}
	if _, err := client.Introspect(ctx, "diaspora-serve-check"); !errors.Is(err, globus.ErrRefused) { // as it should be
		return client, err
	}
	return client, nil
}

// askTimeout bounds the question to Globus Auth at the start: in an outage, services start all the same.
const askTimeout = 5 * time.Second

// askAtStart fails if nobody could ever sign in, and warns if nobody can for now.
func (cfg *Config) askAtStart(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, askTimeout, fmt.Errorf("no answer within %v", askTimeout))
	defer cancel()
	_, err := cfg.askGlobus(ctx)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, globus.ErrClientRefused):
		return fmt.Errorf("this service is refused by Globus Auth at %s, so nobody could sign in (%w); see globus-client-id and globus-client-secret-file", cfg.issuer(), err)
	}
	cfg.Diagnostics.Warn("Globus Auth cannot be asked whose tokens are; until it can, nobody can sign in with one",
		"issuer", cfg.issuer(), "err", err)
	return nil
}

func (cfg *Config) issuer() string {
	return cmp.Or(cfg.Globus.Issuer, globus.DefaultIssuer)
}

// keys says where the keys are that the gateway signs in to the broker with.
func (g *Gateway) keys(diagnostics *slog.Logger) apache.KeysConfig {
	return apache.KeysConfig{File: g.KeysFile, JWKSFile: g.JWKSFile, Diagnostics: diagnostics}
}

// upstream is the broker behind the gateway.
func (g *Gateway) upstream(signing *apache.Keys) (*apache.Broker, error) {
	return apache.New(apache.Config{Address: g.Broker, Issuer: g.Issuer, Audience: g.Audience, Keys: signing})
}

// Open opens the parts that cfg names, as [assemble.Open] does, whose Service serves clients once its Run is
// called. It fails with [globus.ErrClientRefused] if Globus Auth rejects the service's own credentials; if
// Globus Auth cannot be reached, it warns through Diagnostics. ctx bounds the opening only. The caller closes
// the Service.
func Open(ctx context.Context, cfg Config) (*assemble.Service, error) {
	if cfg.Diagnostics == nil {
		cfg.Diagnostics = slog.New(slog.DiscardHandler)
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	for _, p := range cfg.openPorts(unprivilegedPort()) {
		cfg.Diagnostics.Warn(p.String(), "setting", p.setting, "fix", p.fix)
	}
	if err := cfg.askAtStart(ctx); err != nil {
		return nil, err
	}
	service, err := cfg.client()
	if err != nil {
		return nil, err
	}
	parts := assemble.Config{
		Globus: globus.AuthenticatorConfig{
			Introspector: service,
			Issuer:       cfg.issuer(),
			Audience:     cfg.Globus.ClientID,
			Scope:        cfg.Globus.Scope,
		},
		Claims: claims.Config{
			Admin:            cfg.kafkaOpts(),
			GatewayPrincipal: cfg.Kafka.Gateway.principal(),
			Admission:        cfg.Admission,
			Dir:              cfg.StateDir,
		},
		PublicURL:    cfg.PublicURL,
		TokenKeyFile: cfg.TokenKeyFile,
		Diagnostics:  cfg.Diagnostics,
	}
	if g := cfg.Gateway; g != nil {
		parts.Gateways = []assemble.Gateway{{
			Port: cfg.port("the gateway", g.Listen),
			Broker: func() (gateway.Upstream, error) {
				signing, err := apache.OpenKeys(g.keys(cfg.Diagnostics))
				if err != nil {
					return nil, err
				}
				return g.upstream(signing)
			},
			Config: gateway.Config{TLS: cfg.TLS, RevocationInterval: g.RevocationInterval, MaxConnections: g.MaxConnections},
		}}
	}
	if a := cfg.ACL; a != nil {
		parts.Claims.DefaultPartitions, parts.Claims.DefaultRetention, parts.Claims.Limits = a.DefaultPartitions, a.DefaultRetention, a.Limits
		security := "tls"
		if cfg.TLS == nil && !cfg.InsecureAllowPlaintext {
			security = "plaintext"
		}
		parts.ACL = &assemble.ACL{
			Port: cfg.port("the ACL endpoint", a.Listen),
			Config: server.Config{
				Discovery: diaspora.Discovery{
					Version: cfg.Version, Brokers: a.Bootstrap, Security: security, CA: a.CA,
					Globus: diaspora.DiscoveryGlobus{ClientID: cfg.Globus.LoginClientID},
				},
				Hosts:                  a.Hosts,
				InsecureAllowPlaintext: cfg.InsecureAllowPlaintext,
				TrustedProxies:         a.TrustedProxies,
				TLS:                    cfg.TLS,
			},
		}
	}
	return assemble.Open(ctx, parts)
}

// proxyTimeout is how long a trusted proxy may take to name the client of a connection: as long as a login.
const proxyTimeout = 15 * time.Second

// port is where a part listens. Trusted proxies name the client of each of their connections.
func (cfg *Config) port(name, address string) *assemble.Port {
	return &assemble.Port{Name: name, Address: address, Wrap: func(ln net.Listener) net.Listener {
		return proxyproto.Listen(ln, proxyproto.Config{Trusted: cfg.TrustedProxies, Timeout: proxyTimeout, Diagnostics: cfg.Diagnostics})
	}}
}

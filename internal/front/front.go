// Package front runs the service in front of an Apache Kafka cluster: a gateway,
// the ACL endpoint, or both in one process. `diaspora serve` is a thin wrapper around it.
// It hides how settings are validated and how the process signs in to the cluster; package
// assemble builds the service itself. Start reading at [Open].
//
// One gateway runs on the host of each broker. The ACL endpoint runs anywhere, in any
// number of replicas. Each process reads the ledger by itself, so any of them can be started
// and stopped without the others. Only ACL endpoints change topics and ACLs to agree with the
// ledger; a gateway has no permission to change anything.
//
// [Check] tests a configuration against its cluster and says what to change.
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
	"github.com/diaspora-streams/diaspora/internal/aclclient"
	"github.com/diaspora-streams/diaspora/internal/apache"
	"github.com/diaspora-streams/diaspora/internal/assemble"
	"github.com/diaspora-streams/diaspora/internal/claims"
	"github.com/diaspora-streams/diaspora/internal/gateway"
	"github.com/diaspora-streams/diaspora/internal/proxyproto"
	"github.com/diaspora-streams/diaspora/internal/server"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

// Config configures the service: the parts to run, the cluster and Globus Auth.
type Config struct {
	Globus Globus
	Kafka  Kafka

	// Gateway and ACL are the parts that this process runs. At least one is required.
	Gateway *Gateway
	ACL     *ACL

	// PublicURL is the URL at which clients reach the ACL endpoint. It is also the issuer of the
	// tokens that clients receive for access keys, so gateways need it too. Required.
	PublicURL string

	// TokenKeyFile contains the key that signs those tokens. All processes of a
	// fabric need the same file. It is created if it does not exist. Required.
	TokenKeyFile string

	// StateDir is as Dir of [claims.Config].
	StateDir string

	// Admission says which accounts may use the fabric, and which of them are operators.
	Admission claims.Admission

	// TLS encrypts the connections of clients to both parts. If it is nil, connections are
	// plaintext, and the parts may listen on loopback addresses only, unless
	// InsecureAllowPlaintext is set. Connections to brokers have a switch of their own in [Kafka],
	// because the password of a broker's user gives access to more than any token.
	TLS                    *tls.Config
	TLSKeyFile             string // the file with its private key, which Check looks at; optional
	InsecureAllowPlaintext bool

	// TrustedProxies are the networks of load balancers in front of the listeners that send the
	// client's address at the start of each connection, in PROXY protocol version 2. Default: none.
	TrustedProxies []netip.Prefix

	// Version is the version in the discovery document.
	Version string

	// Diagnostics receives the log messages of the parts. Nil discards them.
	Diagnostics *slog.Logger
}

// Globus says which Globus Auth the service uses, and how the service is registered there.
// Issuer is optional. LoginClientID is required for an ACL endpoint only.
type Globus struct {
	Issuer        string        // default: [globus.DefaultIssuer]
	ClientID      string        // the service's own client, the resource server
	ClientSecret  globus.Secret // of that client
	Scope         string        // the scope that access tokens must have
	LoginClientID string        // the public client with which users log in; the ACL endpoint announces it
}

// Kafka says how the service itself connects to the cluster, through a listener other than the
// gateway's. Brokers is required.
type Kafka struct {
	Brokers []string
	TLS     *tls.Config // nil is plaintext

	// Admin is the super user with which an ACL endpoint administers the cluster.
	Admin User

	// Gateway is the user with which a gateway reads the ledger if its process does not run an
	// ACL endpoint. ACL endpoints create the ACLs for this user, so they need its name too, but
	// not its password.
	Gateway User

	// InsecureAllowPlaintext allows the password to be sent unencrypted to brokers on other
	// machines, although anyone on the network can read it.
	InsecureAllowPlaintext bool
}

// User is a user of the brokers, with a password. If Name is empty, connections are anonymous.
type User struct {
	Name     string
	Password globus.Secret
}

// principal returns the broker's name for the user, or "" without one.
func (u User) principal() string {
	if u.Name == "" {
		return ""
	}
	return "User:" + u.Name
}

// Gateway says where a gateway listens, and how it signs clients in to the broker behind it.
type Gateway struct {
	Listen string // host:port
	Broker string // the broker's GATEWAY listener, as host:port of this host

	// Issuer and Audience are the values that this listener expects in tokens.
	Issuer, Audience string

	// KeysFile stores the private keys that sign those tokens. The public keys are published to
	// the broker in JWKSFile.
	KeysFile, JWKSFile string

	// RevocationInterval and MaxConnections are as in [gateway.Config].
	RevocationInterval time.Duration
	MaxConnections     int
}

// ACL says where the ACL endpoint listens, what it announces to clients, and the defaults and
// limits of claims.
type ACL struct {
	Listen string // host:port

	// Bootstrap are the public addresses of the gateways that clients connect to first.
	Bootstrap []string

	// CA contains PEM certificates that clients trust in addition to those of their
	// system. Optional.
	CA string

	// Hosts and TrustedProxies are as in [server.Config].
	Hosts          []string
	TrustedProxies []netip.Prefix

	// DefaultPartitions, DefaultRetention, MaxRetention and Limits are as in [claims.Config].
	DefaultPartitions int
	DefaultRetention  time.Duration
	MaxRetention      time.Duration
	Limits            claims.Limits
}

// Validate checks the configuration without opening connections. Its error lists all problems.
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
		errs = append(errs, checkAddress("kafka-brokers", b))
		if cfg.localBrokersOnly() && !isLoopback(b) {
			errs = append(errs, fmt.Errorf("kafka-brokers: %s is another machine, so kafka-ca-file is required; otherwise the password of %s would be sent unencrypted (kafka-insecure-allow-plaintext permits that)", b, cfg.user().Name))
		}
	}
	if cfg.ACL == nil && cfg.Kafka.Admin.Name != "" && cfg.Kafka.Gateway.Name == "" {
		errs = append(errs, errors.New("gateway-kafka-username is missing: a gateway without an ACL endpoint does not sign in as the super user (kafka-username), but as a user that may read the ledger; docs/operate.md says how to create that user"))
	}
	if cfg.Kafka.Gateway.Name != "" && cfg.Kafka.Gateway.Name == cfg.Kafka.Admin.Name {
		errs = append(errs, errors.New("gateway-kafka-username is the super user, and must be another user"))
	}
	if g := cfg.Gateway; g != nil {
		require(g.Broker, "gateway-broker")
		require(g.Issuer, "gateway-issuer")
		require(g.Audience, "gateway-audience")
		require(g.KeysFile, "gateway-keys-file")
		require(g.JWKSFile, "gateway-jwks-file")
		if g.Broker != "" {
			errs = append(errs, checkAddress("gateway-broker", g.Broker))
		}
		if g.Broker != "" && !isLoopback(g.Broker) {
			errs = append(errs, fmt.Errorf("gateway-broker %s is not on this host: the listener is plaintext, so the gateway must run on the broker's host", g.Broker))
		}
		errs = append(errs, cfg.checkListen("gateway-listen", g.Listen))
	}
	if a := cfg.ACL; a != nil {
		require(cfg.Globus.LoginClientID, "globus-login-client-id")
		if len(a.Bootstrap) == 0 {
			require("", "acl-bootstrap")
		}
		for _, b := range a.Bootstrap {
			errs = append(errs, checkAddress("acl-bootstrap", b))
		}
		errs = append(errs, cfg.checkListen("acl-listen", a.Listen))
	}
	errs = append(errs, cfg.Admission.Validate())
	if cfg.Gateway == nil && cfg.ACL == nil {
		errs = append(errs, errors.New("nothing to serve: configure a gateway, an ACL endpoint, or both"))
	}
	return errors.Join(errs...)
}

// checkPublicURL returns an error if PublicURL cannot be the address of the ACL endpoint and the
// issuer of the tokens for access keys.
func (cfg *Config) checkPublicURL() error {
	if !strings.Contains(cfg.PublicURL, "://") {
		return fmt.Errorf("public-url: %q has no scheme; use https://…, or http://… on one machine", cfg.PublicURL)
	}
	if err := server.CheckPublicURL(cfg.PublicURL, cfg.InsecureAllowPlaintext); err != nil {
		return fmt.Errorf("public-url: %w", err)
	}
	return nil
}

// check checks the client IDs and the scope. If they are wrong, users can log in but are rejected
// afterwards, or get no token for the service at all.
func (g Globus) check() error {
	var errs []error
	for _, id := range [][2]string{{"globus-client-id", g.ClientID}, {"globus-login-client-id", g.LoginClientID}} {
		if name, value := id[0], id[1]; value != "" && (len(value) != 36 || uuid.Validate(value) != nil) {
			errs = append(errs, fmt.Errorf("%s: %q is not a UUID; copy the client's from https://app.globus.org/settings/developers", name, value))
		}
	}
	if g.ClientID != "" && strings.EqualFold(g.LoginClientID, g.ClientID) {
		errs = append(errs, errors.New("globus-login-client-id is the service's own client; users must log in through another client, which has no secret"))
	}
	if g.Scope != "" {
		owner, err := trust.ScopeOwner(g.Scope)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("globus-scope: %w", err))
		case uuid.Validate(owner) == nil && !strings.EqualFold(owner, g.ClientID):
			errs = append(errs, fmt.Errorf("globus-scope: %s is a scope of the client %s, but globus-client-id is %s, so users would get tokens for another service", g.Scope, owner, g.ClientID))
		}
	}
	return errors.Join(errs...)
}

// checkAddress returns an error if address, of a setting, is one that clients refuse.
func checkAddress(setting, address string) error {
	if err := aclclient.CheckBroker(address); err != nil {
		return fmt.Errorf("%s: %w", setting, err)
	}
	return nil
}

// checkListen returns an error if a server cannot listen on address, or if clients on other machines
// would have to send their tokens to it unencrypted.
func (cfg *Config) checkListen(name, address string) error {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%s %q is not HOST:PORT", name, address)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%s %q has no port from 0 to 65535", name, address)
	}
	if cfg.TLS == nil && !cfg.InsecureAllowPlaintext && !isLoopback(address) {
		return fmt.Errorf("%s %s is reachable from other machines, so it needs tls-cert-file and tls-key-file (or insecure-allow-plaintext, behind a proxy that terminates TLS)", name, address)
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

// user returns the user as whom the process signs in to the brokers.
func (cfg *Config) user() User {
	if cfg.ACL == nil {
		return cfg.Kafka.Gateway
	}
	return cfg.Kafka.Admin
}

// openPort is a broker's address on which any user of this host can listen while the broker is
// down. The service would then send its credentials to a program of that user.
type openPort struct {
	setting, address string
	exposes          string // what a program that listens there would receive
	fix              string
}

func (p openPort) String() string {
	return fmt.Sprintf("%s is plaintext, so while the broker is down any user of this host can listen there and receive %s", p.address, p.exposes)
}

// openPorts returns the brokers' addresses on which other users of this host could listen. first is
// the lowest port on which every user may listen.
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
		open = append(open, openPort{"gateway-broker", g.Broker, "clients' events, and tokens to sign in to the broker as any client, valid for two minutes each",
			"give the GATEWAY listener " + privileged})
	}
	for _, b := range cfg.Kafka.Brokers {
		if user := cfg.user().Name; user != "" && cfg.Kafka.TLS == nil && isOpen(b) {
			open = append(open, openPort{"kafka-brokers", b, "the password of " + user,
				"enable TLS on the INTERNAL listener and set kafka-ca-file; or give it " + privileged})
		}
	}
	return open
}

// unprivilegedPort returns the lowest port on which every user of this host may listen.
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

// localBrokersOnly reports whether connections to brokers on other machines are refused, because
// they would send a password unencrypted.
func (cfg *Config) localBrokersOnly() bool {
	return cfg.user().Name != "" && cfg.Kafka.TLS == nil && !cfg.Kafka.InsecureAllowPlaintext
}

// dialLocally connects to brokers on this machine only. Checking the configured addresses is not
// enough: a broker on this machine may advertise brokers on other machines, and the Kafka client
// would connect to them.
func dialLocally(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if isLocal(conn.RemoteAddr(), conn.LocalAddr()) {
		return conn, nil
	}
	return nil, errors.Join(fmt.Errorf("broker %s: refusing to send a password without TLS to another machine; set kafka-ca-file", address), conn.Close())
}

// isLocal reports whether a connection stays on this machine: both ends have the same address, or
// the remote one is a loopback address.
func isLocal(remote, local net.Addr) bool {
	to, ok := remote.(*net.TCPAddr)
	from, _ := local.(*net.TCPAddr)
	return ok && (to.IP.IsLoopback() || from != nil && to.IP.Equal(from.IP))
}

const dialTimeout = 10 * time.Second

// kafkaOpts returns the options of a Kafka client for the service's own connections to the cluster.
func (cfg *Config) kafkaOpts() []kgo.Opt {
	opts := []kgo.Opt{kgo.SeedBrokers(cfg.Kafka.Brokers...), kgo.ClientID("diaspora-serve")}
	if cfg.Kafka.TLS != nil {
		opts = append(opts, kgo.DialTLSConfig(cfg.Kafka.TLS))
	}
	if cfg.localBrokersOnly() {
		opts = append(opts, kgo.Dialer(dialLocally))
	}
	if user := cfg.user(); user.Name != "" {
		opts = append(opts, kgo.SASL(plain.Auth{User: user.Name, Pass: user.Password.Reveal()}.AsMechanism()))
	}
	return opts
}

// client returns a client with the service's own credentials at Globus Auth.
func (cfg *Config) client() (*globus.Client, error) {
	return globus.New(globus.Config{
		Issuer: cfg.Globus.Issuer, ClientID: cfg.Globus.ClientID, ClientSecret: cfg.Globus.ClientSecret,
		Version: cfg.Version, Diagnostics: cfg.Diagnostics,
	})
}

// CheckCredentials checks the service's credentials at Globus Auth by introspecting a token that
// does not exist. Globus Auth reports that the token is invalid only if it accepts the credentials.
// CheckCredentials returns the client with which it has signed in.
func (cfg *Config) CheckCredentials(ctx context.Context) (*globus.Client, error) {
	client, err := cfg.client()
	if err != nil {
		return nil, err
	}
	if _, err := client.Introspect(ctx, "diaspora-serve-check"); !errors.Is(err, globus.ErrRefused) { // ErrRefused is the expected answer
		return client, err
	}
	return client, nil
}

// startCheckTimeout limits the wait for Globus Auth at startup. It is short, because the service
// must be able to start during an outage of Globus Auth.
const startCheckTimeout = 5 * time.Second

// checkCredentialsAtStart returns an error if Globus Auth rejects the service's credentials,
// because no user could ever sign in then. If Globus Auth does not give an answer for now,
// checkCredentialsAtStart only logs a warning.
func (cfg *Config) checkCredentialsAtStart(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startCheckTimeout, fmt.Errorf("no answer within %v", startCheckTimeout))
	defer cancel()
	_, err := cfg.CheckCredentials(ctx)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, globus.ErrClientRefused):
		return fmt.Errorf("the credentials of this service are rejected by Globus Auth at %s, so nobody could sign in (%w); check globus-client-id and globus-client-secret-file", cfg.issuer(), err)
	}
	cfg.Diagnostics.Warn("cannot check access tokens at Globus Auth; nobody can sign in with one until this works",
		"issuer", cfg.issuer(), "err", err)
	return nil
}

func (cfg *Config) issuer() string {
	return cmp.Or(cfg.Globus.Issuer, globus.DefaultIssuer)
}

// keys returns the configuration of the keys that sign the gateway's tokens for the broker.
func (g *Gateway) keys(diagnostics *slog.Logger) apache.KeysConfig {
	return apache.KeysConfig{File: g.KeysFile, JWKSFile: g.JWKSFile, Diagnostics: diagnostics}
}

// upstream returns the broker behind the gateway.
func (g *Gateway) upstream(signing *apache.Keys) (*apache.Broker, error) {
	return apache.New(apache.Config{Address: g.Broker, Issuer: g.Issuer, Audience: g.Audience, Keys: signing})
}

// Open opens the parts that cfg configures, with [assemble.Open]. The returned Service serves
// clients once its Run is called. Open fails with [globus.ErrClientRefused] if Globus Auth rejects
// the service's own credentials. If Globus Auth cannot be reached, Open logs a warning to
// Diagnostics and succeeds. ctx applies only to Open itself. The caller closes the Service.
func Open(ctx context.Context, cfg Config) (*assemble.Service, error) {
	cfg.Diagnostics = cmp.Or(cfg.Diagnostics, slog.New(slog.DiscardHandler))
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	for _, p := range cfg.openPorts(unprivilegedPort()) {
		cfg.Diagnostics.Warn(p.String(), "setting", p.setting, "fix", p.fix)
	}
	if err := cfg.checkCredentialsAtStart(ctx); err != nil {
		return nil, err
	}
	service, err := cfg.client()
	if err != nil {
		return nil, err
	}
	directory, err := globus.NewDirectory(globus.DirectoryConfig{Client: service})
	if err != nil {
		return nil, err
	}
	parts := assemble.Config{
		Directory: directory,
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
			Compaction:       true,
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
		parts.Claims.DefaultPartitions, parts.Claims.Limits = a.DefaultPartitions, a.Limits
		parts.Claims.DefaultRetention, parts.Claims.MaxRetention = a.DefaultRetention, a.MaxRetention
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

// proxyTimeout limits the time within which a trusted proxy has to send the client's address. It is
// the same as the time limit of a login.
const proxyTimeout = 15 * time.Second

// port returns the port of a part. Its listener takes the client's address from connections of
// trusted proxies.
func (cfg *Config) port(name, address string) *assemble.Port {
	return &assemble.Port{Name: name, Address: address, Wrap: func(ln net.Listener) net.Listener {
		return proxyproto.Listen(ln, proxyproto.Config{Trusted: cfg.TrustedProxies, Timeout: proxyTimeout, Diagnostics: cfg.Diagnostics})
	}}
}

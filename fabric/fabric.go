// Package fabric is a whole Diaspora Streams in one process: the embedded
// broker, the gateway in front of it, the ACL endpoint, and a local stand-in for
// Globus Auth. `diaspora up` and `diaspora example` are thin covers of it, and
// tests start one each, since it is ready in a fraction of a second:
//
//	f, err := fabric.Start(ctx, fabric.Config{})
//	defer f.Close()
//	cfg, err := f.As(ctx, "ada@example.edu")
//	logger, err := diaspora.OpenLogger(ctx, cfg)
//
// It can stand in front of an Apache Kafka as well, see [Config.KafkaFile].
//
// Nothing in it is a fake of the Kafka side: clients speak the Kafka protocol over
// TCP to the same gateway that stands before an Apache Kafka. Only the identities
// are invented.
package fabric

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/broker"
	"github.com/diaspora-streams/diaspora/internal/claims"
	"github.com/diaspora-streams/diaspora/internal/gateway"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/keys"
	"github.com/diaspora-streams/diaspora/internal/server"
)

// Config says how to start a [Fabric]. The zero value is in memory, on free ports.
type Config struct {
	// Dir holds everything that outlives the process: records, the ledger, the
	// identities with hashes of their tokens, and the key that signs tokens for
	// access keys. It is made when missing, for
	// its owner only, and belongs to one process at a time. Empty keeps all in
	// memory.
	Dir string

	// KafkaAddr, HTTPAddr and GlobusAddr are where the gateway, the ACL endpoint
	// and the local Globus Auth listen, as host:port of a loopback address.
	// Default: a free port of 127.0.0.1 each.
	KafkaAddr, HTTPAddr, GlobusAddr string

	// KafkaFile names the cluster.json of an Apache Kafka on this machine, as
	// deploy/kafka/cluster makes it. The fabric then has no broker of its own,
	// but a gateway for each node, at the addresses that the nodes tell
	// clients. KafkaAddr must be empty. Default: the embedded broker.
	KafkaFile string

	// Username is the identity of the person at this machine, besides those
	// that every fabric knows: ada@example.edu and grace@example.org. Without
	// an @ it is a name at localhost. Default: none.
	Username string

	// Operators are the usernames of those who may block others, of people that the
	// local Globus Auth knows. Default: none.
	Operators []string

	// SyncWrites makes the broker fsync every batch before it acknowledges it,
	// so that acknowledged events survive a power cut as well.
	SyncWrites bool

	// AccessTokenLifetime is how long access tokens are good, and how long a
	// client may go on that has signed in with an access key; it bounds the hour
	// that tokens are good which are got with access keys. Default: 48 h, as at
	// Globus.
	AccessTokenLifetime time.Duration

	// RevocationInterval bounds how long an open connection survives the
	// revocation of its token or access key, and how long the fabric goes by
	// what it was last told of a token. Default: 10 s.
	RevocationInterval time.Duration

	// Version is what /.well-known/diaspora says. Default: "devel".
	Version string

	// Diagnostics receives what the parts say about themselves. Nil discards it.
	Diagnostics *slog.Logger

	// For tests.
	allow        claims.Admission                // who is admitted; operators come from Operators
	apart        bool                            // the gateways hear of revoked keys as those in other processes do
	advertise    string                          // what clients are told instead of KafkaAddr, with a network in between
	aroundGlobus func(http.Handler) http.Handler // what stands before the local Globus Auth
}

// Fabric is a running fabric. All methods may be called concurrently.
type Fabric struct {
	cfg       Config
	lock      *dirLock
	discovery diaspora.Discovery
	url       string
	globus    *globusdev.Server
	secret    globus.Secret  // of the local Globus Auth
	people    *globus.Client // whom people log in through
	kafka     *kafkaCluster  // nil with the embedded broker
	broker    *broker.Broker // nil with an Apache Kafka
	upstreams []gateway.Upstream
	claims    *claims.Service

	// The listening parts, in the order in which they are stopped. There is
	// one gateway for each broker.
	acl      *service
	gateways []*service
	fronts   []*gateway.Gateway // what gateways serve
	auth     *service

	closeOnce sync.Once
	closeErr  error
}

// Start brings a whole fabric up and returns when clients can use it. It fails
// with [*InUseError] when another process has cfg.Dir. ctx bounds the start
// only; the fabric runs until [Fabric.Close].
func Start(ctx context.Context, cfg Config) (*Fabric, error) {
	setDefault(&cfg.RevocationInterval, 10*time.Second)
	setDefault(&cfg.Version, "devel")
	setDefault(&cfg.Diagnostics, slog.New(slog.DiscardHandler))
	f := &Fabric{cfg: cfg}
	if err := f.start(ctx); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// start opens the parts in the order in which they need each other. What it has
// opened when it fails, Close closes.
func (f *Fabric) start(ctx context.Context) (err error) {
	if f.lock, err = lockDir(f.cfg.Dir); err != nil {
		return err
	}
	if f.auth, err = listen("Globus Auth", f.cfg.GlobusAddr); err != nil {
		return err
	}
	if err := f.listenForKafka(); err != nil {
		return err
	}
	if f.acl, err = listen("the ACL endpoint", f.cfg.HTTPAddr); err != nil {
		return err
	}
	f.url = "http://" + f.acl.addr()
	f.discovery = diaspora.Discovery{
		Version:  f.cfg.Version,
		Brokers:  f.brokers(),
		Security: "plaintext",
		Globus: diaspora.DiscoveryGlobus{
			Issuer:         "http://" + f.auth.addr(),
			ClientID:       globusdev.NativeClientID,
			ResourceServer: globusdev.ResourceServerID,
			Scope:          globusdev.Scope,
		},
		MaxEventBytes: kafka.MaxEventBytes,
		TokenURL:      f.url + "/v1/token",
	}
	authenticator, err := f.startGlobus()
	if err != nil {
		return err
	}
	admin, err := f.startBroker()
	if err != nil {
		return err
	}
	admission := f.cfg.allow
	for _, username := range f.cfg.Operators {
		admission.Operators = append(admission.Operators, globusdev.Subject(username))
	}
	f.claims, err = claims.Open(ctx, claims.Config{
		Admin:       admin,
		Admission:   admission,
		Dir:         f.below("ledger"),
		KeyRevoked:  f.keyRevoked,
		Diagnostics: f.cfg.Diagnostics,
	})
	if err != nil {
		return err
	}
	if err := f.startFront(authenticator); err != nil {
		return err
	}
	return f.lock.announce(Info{URL: f.url, Brokers: f.discovery.Brokers, Globus: f.GlobusURL()})
}

// keyRevoked has the gateways close the connections of a key that was revoked.
func (f *Fabric) keyRevoked(ctx context.Context, principal string) {
	if f.cfg.apart {
		return
	}
	for _, front := range f.fronts {
		front.Recheck(ctx, principal)
	}
}

// brokers returns where clients are told to find the gateways.
func (f *Fabric) brokers() []string {
	if f.cfg.advertise != "" {
		return []string{f.cfg.advertise}
	}
	return addrs(f.gateways)
}

// listenForKafka opens the gateways' listeners.
func (f *Fabric) listenForKafka() error {
	at := []string{f.cfg.KafkaAddr}
	if f.cfg.KafkaFile != "" {
		if f.cfg.KafkaAddr != "" {
			return fmt.Errorf("KafkaAddr and KafkaFile exclude each other, since an Apache Kafka names its gateways: %w", diaspora.ErrInvalid)
		}
		kafka, err := readKafka(f.cfg.KafkaFile)
		if err != nil {
			return err
		}
		f.kafka, at = kafka, nil
		for _, node := range kafka.Nodes {
			at = append(at, node.Gateway)
		}
	}
	for _, addr := range at {
		s, err := listen("the Kafka gateway", addr)
		if err != nil {
			return err
		}
		f.gateways = append(f.gateways, s)
	}
	return nil
}

// startGlobus starts the local Globus Auth, and returns what asks it about tokens.
func (f *Fabric) startGlobus() (*globus.Authenticator, error) {
	var err error
	f.secret = globusdev.NewSecret()
	f.globus, err = globusdev.Open(globusdev.Config{
		Issuer:              f.GlobusURL(),
		Secret:              f.secret,
		Dir:                 f.below("globus"),
		Seed:                globusdev.DefaultSeed(f.cfg.Username),
		AccessTokenLifetime: f.cfg.AccessTokenLifetime,
		Diagnostics:         f.cfg.Diagnostics,
	})
	if err != nil {
		return nil, err
	}
	f.startAuth()

	f.people, err = globus.New(globus.Config{Issuer: f.GlobusURL(), ClientID: globusdev.NativeClientID})
	if err != nil {
		return nil, err
	}
	secret, err := f.globus.ClientSecret(globusdev.ResourceServerID)
	if err != nil {
		return nil, err
	}
	resourceServer, err := globus.New(globus.Config{Issuer: f.GlobusURL(), ClientID: globusdev.ResourceServerID, ClientSecret: secret})
	if err != nil {
		return nil, err
	}
	return globus.NewAuthenticator(globus.AuthenticatorConfig{
		Introspector: resourceServer,
		Issuer:       f.GlobusURL(),
		Audience:     globusdev.ResourceServerID,
		Scope:        globusdev.Scope,
		FreshFor:     f.cfg.RevocationInterval / 10,
		RefusedFor:   time.Second,
	})
}

// startBroker starts the embedded broker, unless there is an Apache Kafka, and
// returns the options of a client that is the super user.
func (f *Fabric) startBroker() ([]kgo.Opt, error) {
	if f.kafka != nil {
		brokers, err := f.kafka.upstreams(f.cfg.Diagnostics)
		if err != nil {
			return nil, err
		}
		for _, b := range brokers {
			f.upstreams = append(f.upstreams, b)
		}
		return f.kafka.adminOpts()
	}
	var err error
	f.broker, err = broker.Open(broker.Config{
		Dir:         f.below("broker"),
		Advertise:   f.brokers()[0],
		SyncWrites:  f.cfg.SyncWrites,
		Diagnostics: f.cfg.Diagnostics,
	})
	if err != nil {
		return nil, err
	}
	f.upstreams = []gateway.Upstream{f.broker}
	return f.broker.AdminOpts(), nil
}

// startFront starts what clients talk to.
func (f *Fabric) startFront(authenticator *globus.Authenticator) error {
	people := &keys.People{Globus: authenticator, Ledger: f.claims}
	lifetime := keys.DefaultTokenLifetime
	if f.cfg.AccessTokenLifetime != 0 {
		lifetime = min(lifetime, f.cfg.AccessTokenLifetime)
	}
	tokens, err := keys.OpenTokens(f.below("token-key.pem"), f.url, f.claims, lifetime)
	if err != nil {
		return err
	}
	for _, upstream := range f.upstreams {
		front, err := gateway.New(gateway.Config{
			Upstream:           upstream,
			Authenticator:      &keys.Authenticator{People: people, Keys: f.claims, Tokens: tokens, SessionLifetime: f.cfg.AccessTokenLifetime},
			RevocationInterval: f.cfg.RevocationInterval * 9 / 10,
			Diagnostics:        f.cfg.Diagnostics,
		})
		if err != nil {
			return err
		}
		f.fronts = append(f.fronts, front)
	}
	acl, err := server.New(server.Config{
		Claims:        f.claims,
		Authenticator: people,
		Tokens:        tokens,
		Discovery:     f.discovery,
		PublicURL:     f.url,
		Ready:         map[string]func(context.Context) error{"ledger": f.claims.Ready},
		Diagnostics:   f.cfg.Diagnostics,
	})
	if err != nil {
		return err
	}
	for i, front := range f.fronts {
		f.gateways[i].start(front.Serve)
	}
	f.acl.start(acl.Serve)
	return nil
}

// below returns where something of this name is kept, or "" if nothing is.
func (f *Fabric) below(name string) string {
	if f.cfg.Dir == "" {
		return ""
	}
	return filepath.Join(f.cfg.Dir, name)
}

// URL returns the address of the ACL endpoint, which is all that a client needs.
func (f *Fabric) URL() string { return f.url }

// Brokers returns the bootstrap servers.
func (f *Fabric) Brokers() []string { return f.discovery.Brokers }

// GlobusURL returns the address of the local Globus Auth, its issuer.
func (f *Fabric) GlobusURL() string { return "http://" + f.auth.addr() }

// Discovery returns what the ACL endpoint says at /.well-known/diaspora.
func (f *Fabric) Discovery() diaspora.Discovery { return f.discovery }

// Globus returns the local Globus Auth, whose controls expire and revoke tokens,
// advance its clock and make its answers fail.
func (f *Fabric) Globus() *globusdev.Server { return f.globus }

// GlobusSecret returns what the local Globus Auth wants to see of whoever logs in, or uses its
// controls over HTTP; each start makes another. Without it, other users of
// the machine could be anybody, since they can connect. Login and As need not be told.
func (f *Fabric) GlobusSecret() globus.Secret { return f.secret }

func (f *Fabric) startAuth() {
	var handler http.Handler = f.globus
	if f.cfg.aroundGlobus != nil {
		handler = f.cfg.aroundGlobus(handler)
	}
	f.auth.start(serveHTTP(handler))
}

// StopGlobus takes the local Globus Auth off its port, as in an outage, until
// [Fabric.StartGlobus].
func (f *Fabric) StopGlobus() error { return f.auth.stop() }

// StartGlobus puts the local Globus Auth back on its port.
func (f *Fabric) StartGlobus() error {
	if err := f.auth.reopen(); err != nil {
		return err
	}
	f.startAuth()
	return nil
}

// StopGateway takes the gateway of the n-th of [Fabric.Brokers] off its port, and
// ends its connections, until [Fabric.StartGateway].
func (f *Fabric) StopGateway(n int) error { return f.gateways[n].stop() }

// StartGateway puts it back on its port.
func (f *Fabric) StartGateway(n int) error {
	if err := f.gateways[n].reopen(); err != nil {
		return err
	}
	f.gateways[n].start(f.fronts[n].Serve)
	return nil
}

// AdminOpts returns the options of a plain Kafka client whom no ACL binds, and who
// goes past the gateway: for tests that do to the cluster what an operator does.
func (f *Fabric) AdminOpts() ([]kgo.Opt, error) {
	if f.kafka != nil {
		return f.kafka.adminOpts()
	}
	return f.broker.AdminOpts(), nil
}

// Login logs somebody whom the local Globus Auth knows in, with a browser that
// picks the username by itself. All else is as in any login.
func (f *Fabric) Login(ctx context.Context, username string) (*globus.Login, error) {
	return login(ctx, f.people, f.secret, username)
}

// As logs username in and returns the configuration of a client that is them.
func (f *Fabric) As(ctx context.Context, username string) (diaspora.Config, error) {
	login, err := f.Login(ctx, username)
	if err != nil {
		return diaspora.Config{}, err
	}
	token, ok := login.Token(globusdev.ResourceServerID)
	if !ok {
		return diaspora.Config{}, fmt.Errorf("log %s in: there is no token for the cluster", username)
	}
	return diaspora.Config{
		URL:         f.url,
		Brokers:     f.discovery.Brokers,
		Identity:    login.Identity,
		TokenSource: f.people.RefreshSource(token.RefreshToken, globusdev.ResourceServerID, ""),
	}, nil
}

// Close stops taking requests, lets those under way finish, and ends all parts,
// those first that use the others. It may be called twice.
func (f *Fabric) Close() error {
	f.closeOnce.Do(func() {
		var errs []error
		for _, s := range append([]*service{f.acl}, f.gateways...) {
			errs = append(errs, s.stop())
		}
		if f.claims != nil {
			errs = append(errs, f.claims.Close())
		}
		if f.broker != nil {
			errs = append(errs, f.broker.Close())
		}
		errs = append(errs, f.auth.stop())
		if f.globus != nil {
			errs = append(errs, f.globus.Close())
		}
		errs = append(errs, f.lock.release())
		f.closeErr = errors.Join(errs...)
	})
	return f.closeErr
}

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
	"cmp"
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
	"github.com/diaspora-streams/diaspora/internal/assemble"
	"github.com/diaspora-streams/diaspora/internal/broker"
	"github.com/diaspora-streams/diaspora/internal/claims"
	"github.com/diaspora-streams/diaspora/internal/gateway"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
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
	cfg     Config
	lock    *dirLock
	globus  *globusdev.Server
	secret  globus.Secret     // of the local Globus Auth
	people  *globus.Client    // through which people log in
	broker  *broker.Broker    // nil with an Apache Kafka
	admin   []kgo.Opt         // the options of a client that is the super user
	service *assemble.Service // gateways, ACL endpoint and ledger

	// What listens. There is one gateway for each broker.
	auth, acl *assemble.Port
	gateways  []*assemble.Port

	closeOnce sync.Once
	closeErr  error
}

// Start brings a whole fabric up and returns when clients can use it. It fails
// with [*InUseError] when another process has cfg.Dir. ctx bounds the start
// only; the fabric runs until [Fabric.Close].
func Start(ctx context.Context, cfg Config) (*Fabric, error) {
	cfg.RevocationInterval = cmp.Or(cfg.RevocationInterval, 10*time.Second)
	cfg.Version = cmp.Or(cfg.Version, "devel")
	cfg.Diagnostics = cmp.Or(cfg.Diagnostics, slog.New(slog.DiscardHandler))
	f := &Fabric{cfg: cfg}
	if err := f.start(ctx); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// start opens the parts in the order in which they need each other. If it fails, Close
// closes what it has opened.
func (f *Fabric) start(ctx context.Context) (err error) {
	if f.lock, err = lockDir(f.cfg.Dir); err != nil {
		return err
	}

	// The ports, because each part is told where others are, and most of these ports are chosen here.
	if f.auth, err = listen("Globus Auth", f.cfg.GlobusAddr); err != nil {
		return err
	}
	var apacheKafka *kafkaCluster
	gateways := []string{f.cfg.KafkaAddr}
	if f.cfg.KafkaFile != "" {
		if f.cfg.KafkaAddr != "" {
			return fmt.Errorf("KafkaAddr and KafkaFile exclude each other, since an Apache Kafka names its gateways: %w", diaspora.ErrInvalid)
		}
		if apacheKafka, err = readKafka(f.cfg.KafkaFile); err != nil {
			return err
		}
		gateways = nil
		for _, node := range apacheKafka.Nodes {
			gateways = append(gateways, node.Gateway)
		}
	}
	var addrs []string
	for _, addr := range gateways {
		port, err := listen("the Kafka gateway", addr)
		if err != nil {
			return err
		}
		f.gateways, addrs = append(f.gateways, port), append(addrs, port.Address)
	}
	if f.cfg.advertise != "" {
		addrs = []string{f.cfg.advertise}
	}
	if f.acl, err = listen("the ACL endpoint", f.cfg.HTTPAddr); err != nil {
		return err
	}

	resourceServer, err := f.startGlobus()
	if err != nil {
		return err
	}
	var brokers []gateway.Upstream
	if apacheKafka != nil {
		if brokers, f.admin, err = apacheKafka.open(f.cfg.Diagnostics); err != nil {
			return err
		}
	} else {
		f.broker, err = broker.Open(broker.Config{
			Dir:         f.below("broker"),
			Advertise:   addrs[0],
			SyncWrites:  f.cfg.SyncWrites,
			Diagnostics: f.cfg.Diagnostics,
		})
		if err != nil {
			return err
		}
		brokers, f.admin = []gateway.Upstream{f.broker}, f.broker.AdminOpts()
	}

	cfg := assemble.Config{
		Globus: globus.AuthenticatorConfig{
			Introspector: resourceServer,
			Issuer:       f.GlobusURL(),
			Audience:     globusdev.ResourceServerID,
			Scope:        globusdev.Scope,
			FreshFor:     f.cfg.RevocationInterval / 10,
			RefusedFor:   time.Second,
		},
		Claims:          claims.Config{Admin: f.admin, Admission: f.cfg.allow, Dir: f.below("ledger")},
		PublicURL:       f.URL(),
		TokenKeyFile:    f.below("token-key.pem"),
		SessionLifetime: f.cfg.AccessTokenLifetime,
		ACL: &assemble.ACL{Port: f.acl, Config: server.Config{Discovery: diaspora.Discovery{
			Version:  f.cfg.Version,
			Brokers:  addrs,
			Security: "plaintext",
			Globus:   diaspora.DiscoveryGlobus{ClientID: globusdev.NativeClientID},
		}}},
		Diagnostics: f.cfg.Diagnostics,
	}
	for _, username := range f.cfg.Operators {
		cfg.Claims.Admission.Operators = append(cfg.Claims.Admission.Operators, globusdev.Subject(username))
	}
	if f.cfg.apart {
		cfg.Claims.KeyRevoked = func(context.Context, string) {}
	}
	for i, b := range brokers {
		cfg.Gateways = append(cfg.Gateways, assemble.Gateway{
			Port:   f.gateways[i],
			Broker: func() (gateway.Upstream, error) { return b, nil },
			Config: gateway.Config{RevocationInterval: f.cfg.RevocationInterval * 9 / 10},
		})
	}
	if f.service, err = assemble.Open(ctx, cfg); err != nil {
		return err
	}
	if err := f.service.Start(); err != nil {
		return err
	}
	return f.lock.announce(Info{URL: f.URL(), Brokers: f.Brokers(), Globus: f.GlobusURL()})
}

// startGlobus starts the local Globus Auth, and returns the client with which the service asks it about
// tokens.
func (f *Fabric) startGlobus() (*globus.Client, error) {
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
	var handler http.Handler = f.globus
	if f.cfg.aroundGlobus != nil {
		handler = f.cfg.aroundGlobus(handler)
	}
	f.auth.Serve = serveHTTP(handler)
	if err := f.StartGlobus(); err != nil {
		return nil, err
	}

	f.people, err = globus.New(globus.Config{Issuer: f.GlobusURL(), ClientID: globusdev.NativeClientID})
	if err != nil {
		return nil, err
	}
	secret, err := f.globus.ClientSecret(globusdev.ResourceServerID)
	if err != nil {
		return nil, err
	}
	return globus.New(globus.Config{Issuer: f.GlobusURL(), ClientID: globusdev.ResourceServerID, ClientSecret: secret})
}

// below returns where something of this name is kept, or "" if nothing is.
func (f *Fabric) below(name string) string {
	if f.cfg.Dir == "" {
		return ""
	}
	return filepath.Join(f.cfg.Dir, name)
}

// URL returns the address of the ACL endpoint, which is all that a client needs.
func (f *Fabric) URL() string { return "http://" + f.acl.Address }

// Brokers returns the bootstrap servers.
func (f *Fabric) Brokers() []string { return f.service.Discovery.Brokers }

// GlobusURL returns the address of the local Globus Auth, its issuer.
func (f *Fabric) GlobusURL() string { return "http://" + f.auth.Address }

// Discovery returns what the ACL endpoint says at /.well-known/diaspora.
func (f *Fabric) Discovery() diaspora.Discovery { return f.service.Discovery }

// Globus returns the local Globus Auth, whose controls expire and revoke tokens,
// advance its clock and make its answers fail.
func (f *Fabric) Globus() *globusdev.Server { return f.globus }

// GlobusSecret returns what the local Globus Auth wants to see of whoever logs in, or uses its
// controls over HTTP; each start makes another. Without it, other users of
// the machine could be anybody, since they can connect. Login and As need not be told.
func (f *Fabric) GlobusSecret() globus.Secret { return f.secret }

// StopGlobus takes the local Globus Auth off its port, as in an outage, until
// [Fabric.StartGlobus].
func (f *Fabric) StopGlobus() error { return f.auth.Stop() }

// StartGlobus puts the local Globus Auth back on its port.
func (f *Fabric) StartGlobus() error {
	_, err := f.auth.Start()
	return err
}

// StopGateway takes the gateway of the n-th of [Fabric.Brokers] off its port, and
// ends its connections, until [Fabric.StartGateway].
func (f *Fabric) StopGateway(n int) error { return f.gateways[n].Stop() }

// StartGateway puts it back on its port.
func (f *Fabric) StartGateway(n int) error {
	_, err := f.gateways[n].Start()
	return err
}

// AdminOpts returns the options of a plain Kafka client whom no ACL binds, and who
// goes past the gateway: for tests that do to the cluster what an operator does.
func (f *Fabric) AdminOpts() ([]kgo.Opt, error) { return f.admin, nil }

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
		URL:         f.URL(),
		Brokers:     f.Brokers(),
		Identity:    login.Identity,
		TokenSource: f.people.RefreshSource(token.RefreshToken, globusdev.ResourceServerID, ""),
	}, nil
}

// Close stops taking requests, lets those under way finish, and ends all parts,
// those first that use the others. It may be called twice.
func (f *Fabric) Close() error {
	f.closeOnce.Do(func() {
		errs := []error{f.service.Close(), f.acl.Stop()} // stopped already, unless the start has failed
		for _, port := range f.gateways {
			errs = append(errs, port.Stop())
		}
		if f.broker != nil {
			errs = append(errs, f.broker.Close())
		}
		errs = append(errs, f.auth.Stop())
		if f.globus != nil {
			errs = append(errs, f.globus.Close())
		}
		errs = append(errs, f.lock.release())
		f.closeErr = errors.Join(errs...)
	})
	return f.closeErr
}

// Package fabric runs all of Diaspora Streams in one process: the embedded
// broker, the gateway in front of it, the ACL endpoint, and a local stand-in for
// Globus Auth. `diaspora up` and `diaspora example` are thin wrappers around it. A fabric
// starts in a fraction of a second, so each test can have one of its own:
//
//	f, err := fabric.Start(ctx, fabric.Config{})
//	defer f.Close()
//	cfg, err := f.As(ctx, "ada@example.edu")
//	logger, err := diaspora.OpenLogger(ctx, cfg)
//
// With [Fabric.StopGateway], [Fabric.StopGlobus], [Fabric.RevokeTokens] and [Fabric.ExpireTokens], a
// test can check how a program behaves in an outage, and when its login ends.
//
// A fabric can also run in front of an Apache Kafka cluster instead of the embedded broker; see
// [Config.KafkaFile].
//
// Clients speak the Kafka protocol over TCP, to the same gateway that runs in front of an Apache Kafka
// cluster. Only Globus Auth is a stand-in, and its identities are invented.
//
// Start reading at [Start].
package fabric

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/apache"
	"github.com/diaspora-streams/diaspora/internal/assemble"
	"github.com/diaspora-streams/diaspora/internal/broker"
	"github.com/diaspora-streams/diaspora/internal/claims"
	"github.com/diaspora-streams/diaspora/internal/gateway"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/inside"
	"github.com/diaspora-streams/diaspora/internal/server"
)

// Config configures a [Fabric]. The zero value is a fabric in memory, on free ports.
type Config struct {
	// Dir holds everything that outlives the process: records, the ledger (who owns which
	// topic), the identities with hashes of their tokens, and the key that signs the tokens
	// that clients get for an access key. It is created if it does not exist, and only its owner
	// can read it. Only one process at a time can use it. Default: everything is kept in memory.
	Dir string

	// KafkaAddr, HTTPAddr and GlobusAddr are the addresses on which the gateway, the ACL
	// endpoint and the local Globus Auth listen, as host:port. The host must be a loopback
	// address. Default: a free port of 127.0.0.1 for each.
	KafkaAddr, HTTPAddr, GlobusAddr string

	// KafkaFile is the path of a file cluster.json, which describes an Apache Kafka cluster on
	// this machine. The script deploy/kafka/cluster starts such a cluster and writes the file.
	// The fabric then has no broker of its own. It has a gateway for each node of the cluster
	// instead, at the address that the node advertises to clients. KafkaAddr must be empty.
	// Default: the embedded broker.
	KafkaFile string

	// Username is the username of an additional user who can log in, usually the person at
	// this machine. Every fabric has the users ada@example.edu and grace@example.org. If
	// there is no @ in it, "@localhost" is appended. Default: none.
	Username string

	// Operators are the usernames of the users who run the fabric. They may block other users,
	// and see who owns any topic and with whom it is shared. Default: none.
	Operators []string

	// SyncWrites makes the broker fsync every batch before it acknowledges it,
	// so that acknowledged events also survive a power failure.
	SyncWrites bool

	// AccessTokenLifetime is how long the access tokens of the local Globus Auth are valid. It
	// also limits how long a client that has signed in with an access key stays signed in. A
	// token that a client gets for an access key is valid for this long, but at most for an
	// hour. Default: 48 hours, as in Globus Auth.
	AccessTokenLifetime time.Duration

	// RevocationInterval is about how long a connection may stay open after its token or access
	// key has been revoked. It is longer if Globus Auth answers slowly. Token info is cached for
	// a tenth of this time. Default: 10 seconds.
	RevocationInterval time.Duration

	// Version is the version in the discovery document, /.well-known/diaspora. Default: "devel".
	Version string

	// Diagnostics receives the log messages of the parts. Nil discards them.
	Diagnostics *slog.Logger

	// For tests.
	allow        claims.Admission                // which accounts are admitted; operators come from Operators
	apart        bool                            // gateways are not told when a key is revoked, and read it from the ledger, as in another process
	advertise    string                          // the address announced to clients instead of KafkaAddr, such as that of a proxy
	aroundGlobus func(http.Handler) http.Handler // wraps the local Globus Auth
}

// Fabric is a running fabric. All methods may be called concurrently.
type Fabric struct {
	cfg     Config
	lock    *dirLock
	globus  *globusdev.Server
	secret  globus.Secret     // required to log in at the local Globus Auth, and for its controls
	people  *globus.Client    // the OAuth client with which users log in; it has no secret
	broker  *broker.Broker    // nil in front of an Apache Kafka cluster
	admin   []kgo.Opt         // options of a Kafka client that is the super user
	service *assemble.Service // gateways, ACL endpoint and ledger

	// The ports of the parts. There is one gateway for each broker.
	auth, acl *assemble.Port
	gateways  []*assemble.Port

	closeOnce sync.Once
	closeErr  error
}

func init() {
	inside.Behind = func(config any, addr string) any {
		behind := config.(Config)
		behind.advertise = addr
		return behind
	}
	inside.Running = func(dir string) (any, bool) { return running(dir) }
	inside.Of = func(fabric any) inside.Parts {
		f := fabric.(*Fabric)
		return inside.Parts{Globus: f.globus, GlobusSecret: f.secret, Admin: slices.Clip(f.admin), Gateways: f.gateways}
	}
}

// Start starts a fabric and returns when clients can use it. It fails with [*InUseError]
// if another process uses cfg.Dir, and with a [*ListenError] for each port that is not free, joined by
// [errors.Join]. ctx applies only to Start itself; the fabric runs until [Fabric.Close].
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

// start opens the parts, each after the parts that it uses. If it fails, Close closes the parts that
// are open.
func (f *Fabric) start(ctx context.Context) (err error) {
	if f.lock, err = lockDir(f.cfg.Dir); err != nil {
		return err
	}

	// Open the ports first. The parts need each other's addresses, and the number of a free port is
	// known only once the port is open.
	// All of them are tried, so that the error names every port that is not free.
	var taken []error
	open := func(name, addr string) *assemble.Port {
		port, err := listen(name, addr)
		if err != nil {
			taken = append(taken, err)
		}
		return port
	}
	var apacheKafka *apache.Cluster
	gateways := []string{f.cfg.KafkaAddr}
	if f.cfg.KafkaFile != "" {
		if f.cfg.KafkaAddr != "" {
			return fmt.Errorf("KafkaAddr and KafkaFile exclude each other, since an Apache Kafka names its gateways: %w", diaspora.ErrInvalid)
		}
		if apacheKafka, err = apache.ReadCluster(f.cfg.KafkaFile); err != nil {
			return err
		}
		gateways = nil
		for _, node := range apacheKafka.Nodes {
			gateways = append(gateways, node.Gateway)
		}
	}
	f.auth = open("Globus Auth", f.cfg.GlobusAddr)
	var addrs []string
	for _, addr := range gateways {
		if port := open("the Kafka gateway", addr); port != nil {
			f.gateways, addrs = append(f.gateways, port), append(addrs, port.Address)
		}
	}
	if f.cfg.advertise != "" {
		addrs = []string{f.cfg.advertise}
	}
	f.acl = open("the ACL endpoint", f.cfg.HTTPAddr)
	if len(taken) > 0 {
		return errors.Join(taken...)
	}

	resourceServer, err := f.startGlobus()
	if err != nil {
		return err
	}
	var brokers []gateway.Upstream
	if apacheKafka != nil {
		if brokers, f.admin, err = openCluster(apacheKafka, f.cfg.Diagnostics); err != nil {
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

	directory, err := globus.NewDirectory(globus.DirectoryConfig{Client: resourceServer})
	if err != nil {
		return err
	}
	cfg := assemble.Config{
		Directory: directory,
		Globus: globus.AuthenticatorConfig{
			Introspector: resourceServer,
			Issuer:       f.GlobusURL(),
			Audience:     globusdev.ResourceServerID,
			Scope:        globusdev.Scope,
			FreshFor:     f.cfg.RevocationInterval / 10,
			RefusedFor:   time.Second,
		},
		Claims:          claims.Config{Admin: f.admin, Admission: f.cfg.allow, Dir: f.below("ledger"), Compaction: apacheKafka != nil},
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
	info := Info{URL: f.URL(), Brokers: f.Brokers(), Globus: f.GlobusURL(), SyncWrites: f.cfg.SyncWrites}
	if f.cfg.KafkaFile != "" {
		if info.Kafka, err = filepath.Abs(f.cfg.KafkaFile); err != nil {
			return err
		}
	}
	return f.lock.announce(info)
}

// startGlobus starts the local Globus Auth, and returns the client with which the service introspects
// tokens.
func (f *Fabric) startGlobus() (*globus.Client, error) {
	var err error
	f.secret = globusdev.NewSecret()
	f.globus, err = globusdev.Open(globusdev.Config{
		Issuer:              f.GlobusURL(),
		Secret:              f.secret,
		Dir:                 f.below("globus"),
		Username:            f.cfg.Username,
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

// below returns the path of a file or folder in Dir, or "" if the fabric is in memory.
func (f *Fabric) below(name string) string {
	if f.cfg.Dir == "" {
		return ""
	}
	return filepath.Join(f.cfg.Dir, name)
}

// URL returns the address of the ACL endpoint. A client needs no other address, because it learns
// those of the gateways and of Globus Auth there.
func (f *Fabric) URL() string { return "http://" + f.acl.Address }

// Brokers returns the bootstrap servers.
func (f *Fabric) Brokers() []string { return f.service.Discovery.Brokers }

// GlobusURL returns the address of the local Globus Auth, which is also its issuer.
func (f *Fabric) GlobusURL() string { return "http://" + f.auth.Address }

// Discovery returns the document that the ACL endpoint serves at /.well-known/diaspora.
func (f *Fabric) Discovery() diaspora.Discovery { return f.service.Discovery }

// StopGateway closes the ports and connections of the gateways, as in an outage, until
// [Fabric.StartGateway]. The methods from here to [Fabric.ExpireTokens] are for tests of how a program
// behaves in an outage, and when its login ends.
func (f *Fabric) StopGateway() error {
	var errs []error
	for _, port := range f.gateways {
		errs = append(errs, port.Stop())
	}
	return errors.Join(errs...)
}

// StartGateway starts the gateways again, on the same ports as before.
func (f *Fabric) StartGateway() error {
	for _, port := range f.gateways {
		if _, err := port.Start(); err != nil {
			return err
		}
	}
	return nil
}

// StopGlobus closes the port of the local Globus Auth, as in an outage, until
// [Fabric.StartGlobus].
func (f *Fabric) StopGlobus() error { return f.auth.Stop() }

// StartGlobus starts the local Globus Auth again, on the same port as before.
func (f *Fabric) StartGlobus() error {
	_, err := f.auth.Start()
	return err
}

// RevokeTokens revokes all tokens of a user, including refresh tokens, so that the user has to log in
// again. The gateway closes the user's connections after about [Config].RevocationInterval at the latest.
func (f *Fabric) RevokeTokens(username string) error {
	subject, err := f.globus.Subject(username)
	if err != nil {
		return err
	}
	return f.globus.RevokeAll(subject)
}

// ExpireTokens makes all access tokens of a user expire now. Refresh tokens stay valid, so programs that
// have one obtain new access tokens without a login.
func (f *Fabric) ExpireTokens(username string) error {
	subject, err := f.globus.Subject(username)
	if err != nil {
		return err
	}
	return f.globus.ExpireAccessTokens(subject)
}

// Login logs a user in at the local Globus Auth. It opens the login page in place of a browser and
// selects the username. Otherwise this is an ordinary login.
func (f *Fabric) Login(ctx context.Context, username string) (*globus.Login, error) {
	return globusdev.Login(ctx, f.people, f.secret, username, globus.LoginOptions{Scopes: []string{globusdev.Scope}})
}

// As logs a user in and returns the configuration of a client that is signed in as them.
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

// Close stops accepting requests, finishes those in flight, and stops all parts, each
// before the parts that it uses. It may be called twice.
func (f *Fabric) Close() error {
	f.closeOnce.Do(func() {
		errs := []error{f.service.Close()}
		errs = append(errs, f.acl.Stop(), f.StopGateway()) // the service has stopped these already, unless Start has failed
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

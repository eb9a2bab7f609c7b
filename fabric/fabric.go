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
// Nothing in it is a fake of the Kafka side: clients speak the Kafka protocol over
// TCP to the same gateway that stands before an Apache Kafka. Only the identities
// are invented.
package fabric

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/broker"
	"github.com/diaspora-streams/diaspora/internal/claims"
	"github.com/diaspora-streams/diaspora/internal/gateway"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
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

	// Username is the identity of the person at this machine, besides those
	// that every fabric knows: ada@example.edu and grace@example.org. Without
	// an @ it is a name at localhost. Default: none.
	Username string

	// Groups is the policy for consumer groups: "open" (any identity may use
	// any group ID) or "claimed" (a group ID belongs to who claims it first).
	// Default: open.
	Groups string

	// SyncWrites makes the broker fsync every batch before it acknowledges it,
	// so that acknowledged events survive a power cut as well.
	SyncWrites bool

	// AccessTokenLifetime is how long access tokens are good. Default: 48 h, as
	// at Globus.
	AccessTokenLifetime time.Duration

	// RevocationInterval bounds how long an open connection survives the
	// revocation of its token or access key, and how long the fabric goes by
	// what it was last told of a token. Default: 10 s.
	RevocationInterval time.Duration

	// Version is what /.well-known/diaspora says. Default: "devel".
	Version string

	// Diagnostics receives what the parts say about themselves. Nil discards it.
	Diagnostics *slog.Logger
}

// maxEventBytes is the broker's bound on a batch, less what a batch with one
// record needs around key, value and headers.
const maxEventBytes = 1<<20 - 4096

// Fabric is a running fabric. All methods may be called concurrently.
type Fabric struct {
	cfg       Config
	lock      *dirLock
	discovery diaspora.Discovery
	url       string
	globus    *globusdev.Server
	people    *globus.Client // whom people log in through
	broker    *broker.Broker
	claims    *claims.Service

	// The three listening parts, in the order in which they are stopped.
	acl, gateway, auth *service

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
	if f.gateway, err = listen("the Kafka gateway", f.cfg.KafkaAddr); err != nil {
		return err
	}
	if f.acl, err = listen("the ACL endpoint", f.cfg.HTTPAddr); err != nil {
		return err
	}
	f.url = "http://" + f.acl.addr()
	f.discovery = diaspora.Discovery{
		Version:  f.cfg.Version,
		Brokers:  []string{f.gateway.addr()},
		Security: "plaintext",
		Globus: diaspora.DiscoveryGlobus{
			Issuer:         "http://" + f.auth.addr(),
			ClientID:       globusdev.NativeClientID,
			ResourceServer: globusdev.ResourceServerID,
			Scope:          globusdev.Scope,
		},
		Groups:        string(claims.GroupsOpen),
		MaxEventBytes: maxEventBytes,
		TokenURL:      f.url + "/v1/token",
	}
	if f.cfg.Groups != "" {
		f.discovery.Groups = f.cfg.Groups
	}
	authenticator, err := f.startGlobus()
	if err != nil {
		return err
	}
	if err := f.startBroker(ctx); err != nil {
		return err
	}
	if err := f.startFront(authenticator); err != nil {
		return err
	}
	return f.lock.announce(Info{URL: f.url, Brokers: f.discovery.Brokers, Globus: f.GlobusURL()})
}

// startGlobus starts the local Globus Auth, and returns what asks it about tokens.
func (f *Fabric) startGlobus() (*globus.Authenticator, error) {
	var err error
	f.globus, err = globusdev.Open(globusdev.Config{
		Issuer:              f.GlobusURL(),
		Dir:                 f.below("globus"),
		Seed:                globusdev.DefaultSeed(f.cfg.Username),
		AccessTokenLifetime: f.cfg.AccessTokenLifetime,
		Diagnostics:         f.cfg.Diagnostics,
	})
	if err != nil {
		return nil, err
	}
	f.auth.start(serveHTTP(f.globus))

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

func (f *Fabric) startBroker(ctx context.Context) error {
	var err error
	f.broker, err = broker.Open(broker.Config{
		Dir:         f.below("broker"),
		Advertise:   f.gateway.addr(),
		SyncWrites:  f.cfg.SyncWrites,
		Diagnostics: f.cfg.Diagnostics,
	})
	if err != nil {
		return err
	}
	f.claims, err = claims.Open(ctx, claims.Config{
		Admin:       f.broker.AdminOpts(),
		Groups:      claims.Groups(f.discovery.Groups),
		Diagnostics: f.cfg.Diagnostics,
	})
	return err
}

// startFront starts what clients talk to.
func (f *Fabric) startFront(authenticator *globus.Authenticator) error {
	tokens, err := keys.OpenTokens(f.below("token-key.pem"), f.url, f.claims)
	if err != nil {
		return err
	}
	front, err := gateway.New(gateway.Config{
		Upstream:           f.broker,
		Authenticator:      &keys.Authenticator{Globus: authenticator, Keys: f.claims, Tokens: tokens},
		RevocationInterval: f.cfg.RevocationInterval * 9 / 10,
		Diagnostics:        f.cfg.Diagnostics,
	})
	if err != nil {
		return err
	}
	acl, err := server.New(server.Config{
		Claims:        f.claims,
		Authenticator: authenticator,
		Tokens:        tokens,
		Discovery:     f.discovery,
		PublicURL:     f.url,
		Ready:         map[string]func(context.Context) error{"ledger": f.claims.Ready},
		Diagnostics:   f.cfg.Diagnostics,
	})
	if err != nil {
		return err
	}
	f.gateway.start(front.Serve)
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

// StopGlobus takes the local Globus Auth off its port, as in an outage, until
// [Fabric.StartGlobus].
func (f *Fabric) StopGlobus() error { return f.auth.stop() }

// StartGlobus puts the local Globus Auth back on its port.
func (f *Fabric) StartGlobus() error {
	if err := f.auth.reopen(); err != nil {
		return err
	}
	f.auth.start(serveHTTP(f.globus))
	return nil
}

// Login logs somebody whom the local Globus Auth knows in, with a browser that
// picks the username by itself. All else is as in any login.
func (f *Fabric) Login(ctx context.Context, username string) (*globus.Login, error) {
	return login(ctx, f.people, username)
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
		for _, s := range []*service{f.acl, f.gateway} {
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

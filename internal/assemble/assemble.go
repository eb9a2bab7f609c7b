// Package assemble builds the service from its parts: the ledger, which records who owns which topic;
// the gateways, through which Kafka clients reach the brokers; and the ACL endpoint, the HTTP service
// where topics are claimed. Package fabric does so for a single machine, and package internal/front for
// an Apache Kafka cluster. They decide only what differs: where Globus Auth is, which brokers are behind
// the gateways, which addresses listen, and which parts run. Start reading at [Open].
//
// # Startup order, and the reasons for it
//
//  1. The ledger. [claims.Open] returns when the whole ledger has been read and the topics and ACLs of
//     the cluster agree with it; [claims.Follow] returns when the whole ledger has been read. All other
//     parts are built from what they return, so no part serves a request before the rights are known.
//  2. The signing key of the tokens for which clients exchange their access keys. Both the gateways
//     and the ACL endpoint need it.
//  3. The gateways, each with its port. The credentials with which a gateway signs in to Apache
//     Kafka are created only now, so that a start that fails to reach the cluster leaves none behind.
//  4. The ACL endpoint, with its port. It sends clients to the gateways.
//
// Each port is opened only once its part is ready, so that no client connects to a service that is
// still reading its ledger. A caller that has to know its addresses earlier, because it asked for any
// free port, opens the ports itself ([Port.Open]). Connections then wait in the kernel's queue until
// [Service.Start].
//
// # Shutdown order, and the reasons for it
//
// [Service.Close] stops the ACL endpoint, then the gateways, then the ledger. Each part finishes the
// requests in flight, within its own time limit, while everything that it uses is still running. For
// example, a claim in progress needs the ledger, and revoking a key needs the gateways, which close its
// connections. [Service.Run] instead drains all ports at the same time, because the process is about to
// exit and an operator is waiting for it.
package assemble

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/claims"
	"github.com/diaspora-streams/diaspora/internal/gateway"
	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/keys"
	"github.com/diaspora-streams/diaspora/internal/server"
)

// Config says what a [Service] consists of.
type Config struct {
	// Globus says how to validate the access tokens of Globus Auth. Required.
	Globus globus.AuthenticatorConfig

	// Directory looks up people and groups at Globus, so that topics can be shared with them by their
	// usernames and groups. If it is nil, people have to be named by their subjects.
	Directory *globus.Directory

	// Claims configures the ledger. Without an ACL endpoint, the service only reads the ledger, and
	// uses only the fields Admin, Admission and Dir. When KeyRevoked is nil, the gateways of this
	// service close the connections of a revoked key. Required.
	Claims claims.Config

	// PublicURL is the address of the ACL endpoint, and the issuer of the tokens for access keys.
	// TokenKeyFile is as in [keys.OpenTokens].
	PublicURL, TokenKeyFile string

	// SessionLifetime is as in [keys.Authenticator]. If it is shorter than
	// [keys.DefaultTokenLifetime], it is also the lifetime of tokens for access keys.
	SessionLifetime time.Duration

	// Gateways and ACL are the parts to run. At least one is required.
	Gateways []Gateway
	ACL      *ACL

	// Diagnostics receives the log messages of the parts. Required.
	Diagnostics *slog.Logger
}

// Gateway is a gateway to run.
type Gateway struct {
	Port   *Port                            // where it listens
	Broker func() (gateway.Upstream, error) // returns the broker behind it; called when the ledger has been read
	Config gateway.Config                   // without Upstream, Authenticator and Diagnostics, which Open sets
}

// ACL is an ACL endpoint to run.
type ACL struct {
	Port *Port // where it listens

	// Config configures the endpoint. Leave Claims, Authenticator, Tokens, PublicURL, Ready and
	// Diagnostics empty: Open sets them. In Discovery, set the version, the fields that describe the
	// gateways, and the client ID for logins.
	Config server.Config
}

// Service is a service that is ready to serve.
type Service struct {
	// Discovery is what the ACL endpoint tells clients.
	Discovery diaspora.Discovery

	ledger   ledger
	gateways []*gateway.Gateway
	ports    []*Port // of the gateways, then of the ACL endpoint
}

// ledger is a [claims.Service] or a [claims.Follower].
type ledger interface {
	keys.Keys
	keys.Ledger
	Close() error
}

// Open reads the ledger and opens the ports. Clients are served once [Service.Start] or [Service.Run]
// is called. ctx applies only to Open itself. The caller closes the Service.
func Open(ctx context.Context, cfg Config) (*Service, error) {
	s := &Service{}
	if err := s.open(ctx, cfg); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Service) open(ctx context.Context, cfg Config) error {
	authenticator, err := globus.NewAuthenticator(cfg.Globus)
	if err != nil {
		return err
	}

	// The ledger. Only a process with an ACL endpoint decides on claims and changes the cluster.
	cfg.Claims.Diagnostics = cfg.Diagnostics
	if cfg.Claims.KeyRevoked == nil {
		cfg.Claims.KeyRevoked = s.recheck
	}
	var rules *claims.Service
	if cfg.Directory != nil {
		cfg.Claims.Groups = people{cfg.Directory}.members
	}
	if cfg.ACL != nil {
		if rules, err = claims.Open(ctx, cfg.Claims); err != nil {
			return err
		}
		s.ledger = rules
	} else {
		follower, err := claims.Follow(ctx, claims.FollowerConfig{
			Client: cfg.Claims.Admin, Admission: cfg.Claims.Admission, Dir: cfg.Claims.Dir, Diagnostics: cfg.Diagnostics,
		})
		if err != nil {
			return err
		}
		s.ledger = follower
	}

	// Authentication of clients, which the gateways and the ACL endpoint share.
	lifetime := keys.DefaultTokenLifetime
	if cfg.SessionLifetime != 0 {
		lifetime = min(lifetime, cfg.SessionLifetime)
	}
	tokens, err := keys.OpenTokens(cfg.TokenKeyFile, cfg.PublicURL, s.ledger, lifetime)
	if err != nil {
		return err
	}
	users := &keys.UserAuthenticator{Globus: authenticator, Ledger: s.ledger, Diagnostics: cfg.Diagnostics}

	for _, g := range cfg.Gateways {
		if g.Config.Upstream, err = g.Broker(); err != nil {
			return err
		}
		g.Config.Authenticator = &keys.Authenticator{Users: users, Keys: s.ledger, Tokens: tokens, SessionLifetime: cfg.SessionLifetime}
		g.Config.Diagnostics = cfg.Diagnostics
		gw, err := gateway.New(g.Config)
		if err != nil {
			return err
		}
		s.gateways = append(s.gateways, gw)
		g.Port.Serve = gw.Serve
		if err := s.take(g.Port); err != nil {
			return err
		}
	}

	if cfg.ACL == nil {
		return nil
	}
	c := cfg.ACL.Config
	c.Claims, c.Authenticator, c.Tokens = rules, users, tokens
	if cfg.Directory != nil {
		c.People = people{cfg.Directory}
	}
	c.Ready = map[string]func(context.Context) error{"ledger": rules.Ready}
	c.PublicURL, c.Diagnostics = cfg.PublicURL, cfg.Diagnostics
	c.Discovery.Globus.Issuer = cfg.Globus.Issuer
	c.Discovery.Globus.ResourceServer = cfg.Globus.Audience
	c.Discovery.Globus.Scope = cfg.Globus.Scope
	c.Discovery.MaxEventBytes = kafka.MaxEventBytes
	c.Discovery.TokenURL = cfg.PublicURL + "/v1/token"
	c.Discovery.Limits = rules.Published()
	s.Discovery = c.Discovery
	acl, err := server.New(c)
	if err != nil {
		return err
	}
	cfg.ACL.Port.Serve = acl.Serve
	return s.take(cfg.ACL.Port)
}

// recheck makes the gateways of this process check the connections of a principal immediately, because
// its access key was revoked. Gateways in other processes learn of the revocation from the ledger.
func (s *Service) recheck(ctx context.Context, principal string) {
	for _, g := range s.gateways {
		g.Recheck(ctx, principal)
	}
}

// take opens a port, unless it is already open, and adds it to the ports that Close closes.
func (s *Service) take(p *Port) error {
	s.ports = append(s.ports, p)
	return p.Open()
}

// Addrs returns the addresses on which the parts listen, by the names of their ports.
func (s *Service) Addrs() map[string]string {
	addrs := map[string]string{}
	for _, p := range s.ports {
		addrs[p.Name] = p.Address
	}
	return addrs
}

// Start serves until [Service.Close]: the gateways first, because the ACL endpoint sends clients there.
func (s *Service) Start() error {
	for _, p := range s.ports {
		if _, err := p.Start(); err != nil {
			return err
		}
	}
	return nil
}

// Run serves until ctx ends, then drains all parts and returns nil. If a part fails, Run drains the others
// and returns the error. It is called once, and instead of [Service.Start].
func (s *Service) Run(ctx context.Context) error {
	running, ctx := errgroup.WithContext(ctx)
	for _, p := range s.ports {
		running.Go(func() error {
			ended, err := p.Start()
			if err != nil {
				return err
			}
			select {
			case <-ended:
			case <-ctx.Done():
			}
			if err := p.Stop(); err != nil {
				return fmt.Errorf("serve %s: %w", p.Name, err)
			}
			return nil
		})
	}
	return running.Wait()
}

// Close stops the parts that are still running, in the order that the package comment describes, and
// frees the ports. It may be called twice, and on nil.
func (s *Service) Close() error {
	if s == nil {
		return nil
	}
	var errs []error
	for _, p := range slices.Backward(s.ports) {
		errs = append(errs, p.Stop())
	}
	if s.ledger != nil {
		errs = append(errs, s.ledger.Close())
	}
	return errors.Join(errs...)
}

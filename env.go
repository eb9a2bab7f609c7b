package diaspora

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/accesskey"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

// ConfigFromEnv returns the configuration that the environment names, or else that
// of the profile that `diaspora login` has stored. It is the only place where the
// library reads the environment, by way of getenv, which mostly is [os.Getenv]. It
// does not touch the network.
//
//	DIASPORA_URL              the fabric's ACL endpoint, in place of a profile's
//	DIASPORA_PROFILE          the profile to use, in place of the current one
//	DIASPORA_REFRESH          a Globus refresh token to sign in with
//	DIASPORA_CLIENT_ID        a Globus client to sign in as, with
//	DIASPORA_CLIENT_SECRET    its secret
//	DIASPORA_KEY_FILE         a file with an access key to sign in with and the URL of its
//	                          fabric, as "diaspora key create --save-env" writes it
//	DIASPORA_KEY_ID           an access key to sign in with, without such a file, and
//	DIASPORA_KEY_SECRET       its secret
//	DIASPORA_BOOTSTRAP        bootstrap servers, as host:port,host:port
//	DIASPORA_CA_FILE          a PEM file of certificates to trust besides the system's
//	DIASPORA_CONFIG_DIR       where profiles are
//	GLOBUS_SDK_ENVIRONMENT, GLOBUS_SDK_SERVICE_URL_AUTH
//	                          another Globus Auth than Globus's own, but for a
//	                          stored login, which stays with its own
//
// The fabric's discovery document does not decide where secrets go. A refresh token or a client secret is
// sent to Globus's own Globus Auth, or to the one that these variables name. An access token is sent to hosts
// below the host that its scope names at Globus. Where the scope names none, it is sent to the hosts that
// were confirmed by "diaspora login", or to those that the user has named: DIASPORA_BOOTSTRAP and, next to it,
// DIASPORA_URL. A fabric that is wholly on this machine is exempt.
//
// An access key is sent only to the fabric that is named together with it: by the key file, DIASPORA_URL or
// DIASPORA_PROFILE, and not by the current profile, which may be of another fabric.
//
// What the fabric and Globus Auth said of a credential from the environment is remembered next to
// the profiles, in files without secrets that are named by a hash of it: so a [Logger] with a
// spool opens while they are away, as it does with a profile. On the very first run its events
// wait for whoever signs in with that credential.
//
// It returns [ErrNoProfile] if nothing says which fabric to use, and [ErrInvalid]
// or [ErrNotFound] if what it says cannot be used.
func ConfigFromEnv(getenv func(string) string) (Config, error) {
	cfg, err := configFromEnv(getenv)
	if err != nil {
		return Config{}, fmt.Errorf("configuration: %w", err)
	}
	return cfg, nil
}

func configFromEnv(getenv func(string) string) (Config, error) {
	file, err := accesskey.FromEnv(getenv)
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", accesskey.FileVariable, keyFileError(err))
	}
	e := environment{getenv: file.Getenv(getenv), file: file}
	if err := e.hear(); err != nil {
		return Config{}, err
	}
	profiles, err := UserProfiles(getenv)
	if err != nil && !e.complete() {
		return Config{}, err
	}
	cfg, err := e.fabric(profiles)
	if err != nil {
		return Config{}, err
	}
	if profiles != nil {
		e.cacheDir = filepath.Join(profiles.dir, "tokens")
		cfg.memory.dir = filepath.Join(profiles.dir, "fabrics")
		cfg.memory.silent = new(atomic.Int64)
	}
	if list := e.getenv("DIASPORA_BOOTSTRAP"); list != "" {
		cfg.Brokers = nil
		for b := range strings.SplitSeq(list, ",") {
			b = strings.TrimSpace(b)
			if err := validBroker(b); err != nil {
				return Config{}, fmt.Errorf("DIASPORA_BOOTSTRAP: %w", err)
			}
			cfg.Brokers = append(cfg.Brokers, b)
		}
	}
	if name := e.getenv("DIASPORA_CA_FILE"); name != "" {
		cfg.CAFile = name
		if _, err := cfg.roots(nil); err != nil {
			return Config{}, fmt.Errorf("DIASPORA_CA_FILE: %w", err)
		}
	}
	return e.signIn(cfg)
}

// environment is what the variables say.
type environment struct {
	getenv   func(string) string // with what the key file says
	file     accesskey.File
	cacheDir string       // where tokens got from DIASPORA_REFRESH are kept
	said     trust.Fabric // what the user has said about where secrets may go
}

// keyFileError puts an error of a key file into the words of this package.
func keyFileError(err error) error {
	f := (*accesskey.FileError)(nil)
	if !errors.As(err, &f) {
		return err
	}
	return &Error{Condition: ErrInvalid, Reason: f.Reason, Hint: f.Hint, cause: f.Err}
}

// fromKeyID is the origin of a key without a file.
const fromKeyID = accesskey.IDVariable

// keyOrigin names where the access key is from, or returns "" if there is none.
func (e environment) keyOrigin() string {
	switch {
	case e.file.Path != "":
		return accesskey.FileVariable
	case e.getenv(accesskey.IDVariable) != "" || e.getenv(accesskey.SecretVariable) != "":
		return fromKeyID
	}
	return ""
}

// hear finds out what the user has said about where secrets may go.
func (e *environment) hear() (err error) {
	if err := e.oneCredential(); err != nil {
		return err
	}
	if e.said.NamedIssuer, err = e.issuer(); err != nil {
		return err
	}
	if u, err := parseURL(e.getenv("DIASPORA_URL")); err == nil && e.getenv("DIASPORA_BOOTSTRAP") != "" {
		e.said.Named = []string{u.Host} // with the brokers' addresses, all is said
	}
	return nil
}

// oneCredential refuses an access key that is malformed, or that is not the only one who may sign in: events
// must not go out as somebody else than was meant.
func (e environment) oneCredential() error {
	if wrong := accesskey.Misplaced(e.getenv("DIASPORA_CLIENT_ID"), e.getenv("DIASPORA_CLIENT_SECRET")); wrong != "" {
		return &Error{Condition: ErrInvalid, Reason: wrong, Hint: "set DIASPORA_KEY_ID and DIASPORA_KEY_SECRET instead"}
	}
	from := e.keyOrigin()
	if from == "" {
		return nil
	}
	for _, other := range []string{"DIASPORA_CLIENT_ID", "DIASPORA_REFRESH"} {
		if e.getenv(other) != "" {
			return &Error{Condition: ErrInvalid, Reason: fmt.Sprintf("%s and %s both say who signs in", from, other), Hint: "unset one of them"}
		}
	}
	if wrong := accesskey.Fault(e.getenv(accesskey.IDVariable), e.getenv(accesskey.SecretVariable)); wrong != "" {
		return &Error{Condition: ErrInvalid, Reason: wrong, Hint: anotherKey}
	}
	if e.getenv("DIASPORA_URL") == "" && e.getenv("DIASPORA_PROFILE") == "" {
		return &Error{
			Condition: ErrNoProfile,
			Reason:    from + " says who signs in, but not to which fabric, and a key is sent to no other than its own",
			Hint:      "set DIASPORA_URL as well, to the address of the fabric that made the key",
		}
	}
	return nil
}

// complete reports whether no profile is needed.
func (e environment) complete() bool {
	return e.getenv("DIASPORA_URL") != "" && (e.keyOrigin() != "" || e.getenv("DIASPORA_REFRESH") != "" || e.getenv("DIASPORA_CLIENT_ID") != "")
}

// fabric returns which fabric is meant: the URL's, or the profile's. A profile of
// the same URL lends its login to the URL.
func (e environment) fabric(profiles *Profiles) (Config, error) {
	name, raw := e.getenv("DIASPORA_PROFILE"), e.getenv("DIASPORA_URL")
	if raw == "" {
		if name == "" {
			var err error
			if name, err = profiles.Current(); errors.Is(err, ErrNoProfile) {
				return Config{}, e.nowhere(err)
			} else if err != nil {
				return Config{}, err
			}
		}
		return profiles.config(name, e.said)
	}
	wanted, err := parseURL(raw)
	if err != nil {
		return Config{}, fmt.Errorf("DIASPORA_URL: %w", err)
	}
	if profiles != nil {
		names := []string{name}
		if name == "" {
			names, _ = profiles.Names()
			if current, err := profiles.Current(); err == nil {
				names = append([]string{current}, names...)
			}
		}
		for _, n := range names {
			cfg, err := profiles.config(n, e.said)
			if err != nil {
				if name != "" {
					return Config{}, err
				}
				continue
			}
			if have, err := parseURL(cfg.URL); err == nil && *have == *wanted {
				return cfg, nil
			}
		}
		if name != "" && e.file.Get("DIASPORA_URL") == raw {
			return Config{}, invalid("the key file %s is of another fabric than the profile %q", e.file.Path, name)
		}
		if name != "" {
			return Config{}, invalid("DIASPORA_URL and DIASPORA_PROFILE name different fabrics")
		}
	}
	return Config{
		said:   e.said,
		URL:    wanted.String(),
		origin: "DIASPORA_URL",
		login:  fmt.Sprintf("run \"diaspora login %s\"", wanted),
	}, nil
}

// nowhere is the error if nothing says which fabric is meant.
func (e environment) nowhere(err error) error {
	for _, name := range []string{"DIASPORA_CLIENT_ID", "DIASPORA_REFRESH"} {
		if e.getenv(name) != "" {
			return &Error{
				Condition: ErrNoProfile,
				Reason:    name + " says who signs in, but neither a profile nor DIASPORA_URL says to which fabric",
				Hint:      `set DIASPORA_URL as well, to the address that "diaspora login URL" takes`,
				cause:     err,
			}
		}
	}
	return err
}

// withKey adds the access key of the environment.
func (e environment) withKey(cfg Config, from string) (Config, error) {
	if of := e.file.Get("DIASPORA_URL"); of != "" && !sameURL(of, cfg.URL) {
		return Config{}, &Error{
			Condition: ErrInvalid,
			Reason:    fmt.Sprintf("the key file %s is of the fabric %s, and not of %s", e.file.Path, redactURL(of), redactURL(cfg.URL)),
			Hint:      "unset DIASPORA_URL, since the key file says it",
		}
	}
	cfg.TokenSource = nil // the profile's
	cfg.Key = Key{ID: e.getenv(accesskey.IDVariable), Secret: globus.Secret(e.getenv(accesskey.SecretVariable))}
	cfg.origin, cfg.login = from, anotherKey
	cfg.memory.name = keyMemory(cfg.URL, cfg.Key.ID)
	cfg.Identity = cfg.memory.recall(cfg.memory.name).Identity
	return cfg, nil
}

// sameURL reports whether two addresses are those of one ACL endpoint.
func sameURL(a, b string) bool {
	u, errA := parseURL(a)
	v, errB := parseURL(b)
	return errA == nil && errB == nil && *u == *v
}

// signIn adds how to sign in, if the environment says so.
func (e environment) signIn(cfg Config) (Config, error) {
	if from := e.keyOrigin(); from != "" {
		return e.withKey(cfg, from)
	}
	id, secret := e.getenv("DIASPORA_CLIENT_ID"), globus.Secret(e.getenv("DIASPORA_CLIENT_SECRET"))
	refresh := globus.Secret(strings.TrimSpace(e.getenv("DIASPORA_REFRESH")))
	if wrong := trust.RefreshTokenFault(e.getenv("DIASPORA_REFRESH")); refresh != "" && id == "" && wrong != "" {
		return Config{}, &Error{Condition: ErrInvalid, Reason: "DIASPORA_REFRESH " + wrong, Hint: "set it with: export DIASPORA_REFRESH=$(diaspora token --refresh)"}
	}
	switch {
	case id != "" && secret == "" || id == "" && secret != "":
		return Config{}, invalid("DIASPORA_CLIENT_ID and DIASPORA_CLIENT_SECRET belong together; one of them is not set")
	case id != "":
		cfg.origin = "DIASPORA_CLIENT_ID"
		cfg.login = "check DIASPORA_CLIENT_ID and DIASPORA_CLIENT_SECRET"
		cfg.Identity = globus.Identity{Username: id + "@clients.auth.globus.org", Subject: id}
		cfg.memory.name = credentialName(cfg.URL, e.getenv("GLOBUS_SDK_ENVIRONMENT"), e.getenv("GLOBUS_SDK_SERVICE_URL_AUTH"), id, secret.Reveal())
	case refresh != "":
		cfg.origin = "DIASPORA_REFRESH"
		cfg.login = `get another refresh token for DIASPORA_REFRESH with "diaspora login --show-tokens"`
		cfg.memory.name = credentialName(cfg.URL, e.getenv("GLOBUS_SDK_ENVIRONMENT"), e.getenv("GLOBUS_SDK_SERVICE_URL_AUTH"), refresh.Reveal())
		cfg.Identity = cfg.memory.recall(cfg.memory.name).Identity
	case cfg.TokenSource != nil:
		return cfg, nil
	default:
		return Config{}, &Error{
			Condition: ErrUnauthenticated,
			Reason:    fmt.Sprintf("nobody is logged in to %s", cfg.URL),
			Hint:      cfg.login + ", or set DIASPORA_REFRESH or DIASPORA_KEY_FILE",
		}
	}
	cfg.TokenSource = &discoveredSource{cfg: cfg, turn: make(chan struct{}, 1), make: func(d Discovery) (*trust.Source, error) {
		if named := cfg.said.NamedIssuer; named != "" {
			d.Globus.Issuer = named
		}
		tokens, err := e.tokens(cfg, d.Globus)
		if err != nil {
			return nil, err
		}
		return trust.Guard(tokens, cfg.trusted(d)), nil
	}}
	return cfg, nil
}

// tokens returns the source of the tokens of the credential in the environment.
func (e environment) tokens(cfg Config, d DiscoveryGlobus) (globus.TokenSource, error) {
	id := e.getenv("DIASPORA_CLIENT_ID")
	if id == "" {
		client, err := globusClient(cfg, d)
		if err != nil {
			return nil, err
		}
		return client.RefreshSource(globus.Secret(strings.TrimSpace(e.getenv("DIASPORA_REFRESH"))), d.ResourceServer, e.cacheDir), nil
	}
	secret := globus.Secret(e.getenv("DIASPORA_CLIENT_SECRET"))
	client, err := globus.New(globus.Config{Issuer: d.Issuer, ClientID: id, ClientSecret: secret, Diagnostics: cfg.Diagnostics})
	if err != nil {
		return nil, invalid("DIASPORA_CLIENT_ID: %v", err)
	}
	return client.ClientCredentialsSource(d.ResourceServer, d.Scope), nil
}

// issuer returns the Globus Auth that Globus's own variables name, or "".
func (e environment) issuer() (string, error) {
	if e.getenv("GLOBUS_SDK_ENVIRONMENT") == "" && e.getenv("GLOBUS_SDK_SERVICE_URL_AUTH") == "" {
		return "", nil
	}
	cfg, err := globus.ConfigFromEnv(e.getenv)
	if err != nil {
		return "", invalid("%v", err)
	}
	return cfg.Issuer, nil
}

// discoveredSource makes its token source when it is first asked for a token, as
// only the fabric knows which Globus Auth and client to use.
type discoveredSource struct {
	cfg  Config
	make func(Discovery) (*trust.Source, error)
	turn chan struct{} // holds a value while somebody asks the fabric

	mu     sync.Mutex    // guards source; never held while anybody is asked
	source *trust.Source // nil before
}

// Token implements [globus.TokenSource].
func (s *discoveredSource) Token(ctx context.Context) (globus.Token, error) {
	source, err := s.discovered(ctx)
	if err != nil {
		return globus.Token{}, err
	}
	return source.Token(ctx)
}

// Fabric returns the fabric that the tokens are for, for package trust, once there was a token.
func (s *discoveredSource) Fabric() trust.Fabric {
	if source := s.known(); source != nil {
		return source.Fabric()
	}
	return trust.Fabric{}
}

// Refused tells the source that a service has refused the token.
func (s *discoveredSource) Refused(access globus.Secret) {
	if source := s.known(); source != nil {
		source.Refused(access)
	}
}

// Settle waits until no renewal is under way.
func (s *discoveredSource) Settle() {
	if source := s.known(); source != nil {
		source.Settle()
	}
}

// known returns the source if there is one already, and nil otherwise.
func (s *discoveredSource) known() *trust.Source {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.source
}

// discovered returns the source, and makes it if need be. Callers take turns to ask the
// fabric, since the next one mostly need not ask any more.
func (s *discoveredSource) discovered(ctx context.Context) (*trust.Source, error) {
	if source := s.known(); source != nil {
		return source, nil
	}
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if source := s.known(); source != nil {
		return source, nil
	}
	d := s.cfg.Discovery
	if d == nil {
		client, err := NewClient(s.cfg)
		if err != nil {
			return nil, err
		}
		found, err := client.discoverOnce(ctx)
		if err != nil {
			return nil, err
		}
		d = &found
	}
	source, err := s.make(*d)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.source = source
	return source, nil
}

// settle waits until the source renews nothing any more, or ctx ends. The program may
// be about to end, and the answer that it would not wait for may hold a rotated
// refresh token, while the one before is dead.
func settle(ctx context.Context, source globus.TokenSource) {
	renews, ok := source.(interface{ Settle() })
	if !ok {
		return
	}
	settled := make(chan struct{})
	go func() { // for 45 s at most
		defer close(settled)
		renews.Settle()
	}()
	select {
	case <-settled:
	case <-ctx.Done():
	}
}

func notConfigured(cause error) error {
	return &Error{
		Condition: ErrNoProfile,
		Reason:    "no profile is stored and neither DIASPORA_URL nor DIASPORA_PROFILE is set",
		Hint:      `run "diaspora login URL" for an existing fabric, or "diaspora up" for one on this machine; in a batch job, set DIASPORA_KEY_FILE to a file made by "diaspora key create NAME --save-env FILE"`,
		cause:     cause,
	}
}

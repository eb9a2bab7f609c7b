package diaspora

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/accesskey"
	"github.com/diaspora-streams/diaspora/internal/aclclient"
	"github.com/diaspora-streams/diaspora/internal/learned"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

// ConfigFromEnv returns the configuration that the environment variables describe, or else that of
// the profile that `diaspora login` has stored. It is the only function of the library that reads
// the environment. It does so by calling getenv, which usually is [os.Getenv]. It does not use the
// network.
//
//	DIASPORA_URL              the fabric's ACL endpoint, instead of that of a profile
//	DIASPORA_PROFILE          the profile to use, instead of the current one
//	DIASPORA_REFRESH          a Globus refresh token to sign in with
//	DIASPORA_CLIENT_ID        the ID of a Globus client to sign in as
//	DIASPORA_CLIENT_SECRET    the secret of that client
//	DIASPORA_KEY_FILE         a file that holds an access key to sign in with and the URL of its
//	                          fabric, as written by "diaspora key create --save-env"; a Logger with
//	                          a spool reads it again when it signs in
//	DIASPORA_KEY_ID           the ID of an access key to sign in with, if there is no such file
//	DIASPORA_KEY_SECRET       the secret of that access key
//	DIASPORA_BOOTSTRAP        bootstrap servers, as host:port,host:port
//	DIASPORA_CA_FILE          a PEM file of certificates to trust in addition to the system's
//	DIASPORA_CONFIG_DIR       the directory that holds the profiles
//	GLOBUS_SDK_ENVIRONMENT, GLOBUS_SDK_SERVICE_URL_AUTH
//	                          a Globus Auth to use instead of Globus's own; a stored
//	                          login always uses the one that issued it
//
// The fabric's discovery document does not decide where secrets are sent. A refresh token or client
// secret is sent only to Globus's own Globus Auth, or to the one that the variables name. An access
// token is sent to the host that its scope names at Globus, and to hosts below it. If the scope
// names no host, the token is sent to the hosts that the user confirmed at "diaspora login", or to
// those that DIASPORA_BOOTSTRAP and, together with it, DIASPORA_URL name. These rules do not apply
// to a fabric that runs entirely on this machine.
//
// An access key is sent only to the fabric that is named together with it: in the key file, or by
// DIASPORA_URL or DIASPORA_PROFILE. The current profile does not count, since it may be that of
// another fabric.
//
// The library remembers what the fabric and Globus Auth have said about a credential from the
// environment. It stores this next to the profiles, in files that hold no secrets and are named
// after a hash of the credential. So a [Logger] with a spool can be opened while fabric and Globus
// Auth are unreachable, as with a profile. If that is already so at the very first start, the owner
// of the credential is not known, and the events stay in the spool until a Logger with the same
// credential learns it.
//
// ConfigFromEnv returns [ErrNoProfile] if nothing says which fabric to use, [ErrUnauthenticated] if
// there is no credential for that fabric, and [ErrInvalid] or [ErrNotFound] if the settings cannot
// be used.
func ConfigFromEnv(getenv func(string) string) (Config, error) {
	cfg, err := configFromEnv(getenv)
	if err != nil {
		return Config{}, fmt.Errorf("configuration: %w", err)
	}
	return cfg, nil
}

func configFromEnv(getenv func(string) string) (Config, error) {
	file, err := accesskey.FromEnv(getenv)
	if f := (*accesskey.FileError)(nil); errors.As(err, &f) {
		err = &Error{Condition: ErrInvalid, Reason: f.Reason, Hint: f.Hint, cause: err}
	}
	if err != nil {
		return Config{}, err
	}
	e := environment{getenv: file.Getenv(getenv), file: file}
	if err := e.readTrust(); err != nil {
		return Config{}, err
	}
	profiles, err := UserProfiles(getenv)
	if err != nil && (e.getenv("DIASPORA_URL") == "" || accesskey.Variable(getenv) == "") { // a profile is needed
		return Config{}, err
	}
	cfg, err := e.fabric(profiles)
	if err != nil {
		return Config{}, err
	}
	if profiles != nil {
		e.cacheDir = filepath.Join(profiles.dir, "tokens")
		cfg.memory = profiles.memory()
		cfg.memory.Silent = new(atomic.Int64)
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
		if _, err := (Config{CAFile: name}).roots(); err != nil {
			return Config{}, fmt.Errorf("DIASPORA_CA_FILE: %w", err)
		}
	}
	cfg, err = e.signIn(cfg)
	if file.Path != "" {
		cfg.again = func() (Config, error) { return ConfigFromEnv(getenv) }
	}
	return cfg, err
}

// environment is the settings in the environment variables and in the key file.
type environment struct {
	getenv   func(string) string // looks in the key file, too
	file     accesskey.File
	cacheDir string       // where tokens obtained with DIASPORA_REFRESH are cached
	said     trust.Fabric // what the user has said about where secrets may be sent
}

// fromKeyID is the origin of an access key that is not from a key file.
const fromKeyID = accesskey.IDVariable

// readTrust sets e.said to what the user has said about where secrets may be sent.
func (e *environment) readTrust() error {
	if from := e.file.Variable; from != "" && e.getenv("DIASPORA_URL") == "" && e.getenv("DIASPORA_PROFILE") == "" {
		return &Error{
			Condition: ErrNoProfile,
			Reason:    from + " says who signs in, but not to which fabric, and a key is sent only to the fabric that issued it",
			Hint:      "set DIASPORA_URL as well, to the address of the fabric that made the key",
		}
	}
	if e.getenv("GLOBUS_SDK_ENVIRONMENT") != "" || e.getenv("GLOBUS_SDK_SERVICE_URL_AUTH") != "" {
		cfg, err := globus.ConfigFromEnv(e.getenv)
		if err != nil {
			return invalid("%v", err)
		}
		e.said.NamedIssuer = cfg.Issuer
	}
	if u, err := parseURL(e.getenv("DIASPORA_URL")); err == nil && e.getenv("DIASPORA_BOOTSTRAP") != "" {
		e.said.Named = []string{u.Host} // only if the user has named the brokers' hosts as well
	}
	return nil
}

// fabric returns the configuration of the fabric to use: the one at DIASPORA_URL, or that of a
// profile. If a profile has the same URL as DIASPORA_URL, its login is used.
func (e environment) fabric(profiles *Profiles) (Config, error) {
	name, raw := e.getenv("DIASPORA_PROFILE"), e.getenv("DIASPORA_URL")
	if raw == "" && name != "" {
		return profiles.config(name, e.said)
	}
	if raw == "" {
		name, err := profiles.Current()
		if from := accesskey.Variable(e.getenv); errors.Is(err, ErrNoProfile) && from != "" {
			err = &Error{
				Condition: ErrNoProfile,
				Reason:    from + " says who signs in, but neither a profile nor DIASPORA_URL says to which fabric",
				Hint:      `set DIASPORA_URL as well, to the address that "diaspora login URL" takes`,
				cause:     err,
			}
		}
		if err != nil {
			return Config{}, err
		}
		return profiles.config(name, e.said)
	}
	wanted, err := parseURL(raw)
	if err != nil {
		return Config{}, fmt.Errorf("DIASPORA_URL: %w", err)
	}
	switch {
	case profiles == nil:
	case name != "":
		cfg, err := profiles.config(name, e.said)
		if err != nil || sameURL(cfg.URL, raw) {
			return cfg, err
		}
		if e.file.Get("DIASPORA_URL") == raw {
			return Config{}, invalid("the key file %s is of another fabric than the profile %q", e.file.Path, name)
		}
		return Config{}, invalid("DIASPORA_URL and DIASPORA_PROFILE name different fabrics")
	default:
		names, _ := profiles.Names()
		if current, err := profiles.Current(); err == nil {
			names = slices.Insert(names, 0, current)
		}
		for _, n := range names {
			if cfg, err := profiles.config(n, e.said); err == nil && sameURL(cfg.URL, raw) {
				return cfg, nil
			}
		}
	}
	return Config{
		said:   e.said,
		URL:    wanted.String(),
		origin: "DIASPORA_URL",
		login:  fmt.Sprintf("run \"diaspora login %s\"", wanted),
	}, nil
}

// withKey adds the access key from the environment to cfg.
func (e environment) withKey(cfg Config, from string) (Config, error) {
	if of := e.file.Get("DIASPORA_URL"); of != "" && !sameURL(of, cfg.URL) {
		return Config{}, &Error{
			Condition: ErrInvalid,
			Reason:    fmt.Sprintf("the key file %s is of the fabric %s, and not of %s", e.file.Path, aclclient.RedactURL(of), aclclient.RedactURL(cfg.URL)),
			Hint:      "unset DIASPORA_URL, since the key file says it",
		}
	}
	cfg.TokenSource = nil // replace the profile's login
	cfg.Key = Key{ID: e.getenv(accesskey.IDVariable), Secret: globus.Secret(e.getenv(accesskey.SecretVariable))}
	cfg.origin, cfg.login = from, anotherKeyHint
	if e.file.Path != "" {
		cfg.login = anotherKey + "replace " + e.file.Path + " with it"
	}
	cfg.memory.Name = learned.KeyName(cfg.URL, cfg.Key.ID)
	cfg.Identity = cfg.memory.Recall(cfg.memory.Name).Identity
	return cfg, nil
}

// sameURL reports whether two URLs are those of the same ACL endpoint.
func sameURL(a, b string) bool {
	u, errA := parseURL(a)
	v, errB := parseURL(b)
	return errA == nil && errB == nil && *u == *v
}

// signIn adds the credential from the environment to cfg, or keeps the profile's.
func (e environment) signIn(cfg Config) (Config, error) {
	if from := e.file.Variable; from != "" {
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
		cfg.memory.Name = learned.Name(cfg.URL, e.getenv("GLOBUS_SDK_ENVIRONMENT"), e.getenv("GLOBUS_SDK_SERVICE_URL_AUTH"), id, secret.Reveal())
	case refresh != "":
		cfg.origin = "DIASPORA_REFRESH"
		cfg.login = `get another refresh token for DIASPORA_REFRESH with "diaspora login --show-tokens"`
		cfg.memory.Name = learned.Name(cfg.URL, e.getenv("GLOBUS_SDK_ENVIRONMENT"), e.getenv("GLOBUS_SDK_SERVICE_URL_AUTH"), refresh.Reveal())
		cfg.Identity = cfg.memory.Recall(cfg.memory.Name).Identity
	case cfg.TokenSource != nil:
		return cfg, nil
	default:
		return Config{}, &Error{
			Condition: ErrUnauthenticated,
			Reason:    fmt.Sprintf("nobody is logged in to %s", cfg.URL),
			Hint:      cfg.login + ", or set DIASPORA_REFRESH or DIASPORA_KEY_FILE",
		}
	}
	discover := cfg // without the TokenSource that follows
	cfg.TokenSource = trust.GuardLater(func(ctx context.Context) (globus.TokenSource, trust.Fabric, error) {
		d, err := discover.discovered(ctx)
		if err != nil {
			return nil, trust.Fabric{}, err
		}
		if named := discover.said.NamedIssuer; named != "" {
			d.Globus.Issuer = named
		}
		tokens, err := e.tokens(discover, d.Globus)
		return tokens, discover.trusted(d), err
	})
	return cfg, nil
}

// discovered returns the fabric's discovery document, and fetches it if it is not known yet.
func (c Config) discovered(ctx context.Context) (Discovery, error) {
	if c.Discovery != nil {
		return *c.Discovery, nil
	}
	client, err := NewClient(c)
	if err != nil {
		return Discovery{}, err
	}
	return client.discoverOnce(ctx)
}

// tokens returns a token source for the credential in the environment.
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

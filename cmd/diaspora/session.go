package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/aclclient"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

// session is the state of a login that is in progress.
type session struct {
	env      *env
	options  loginOptions
	profiles *diaspora.Profiles
	profile  diaspora.Profile
	fabric   trust.Fabric // the profile's fabric, with what the user has confirmed about it
	client   *globus.Client
	store    *globus.Store
	answers  io.Reader // what the user types after the login; nil means stdin
	moved    bool      // the profiles are in a temporary folder
	javaFile string    // name of the file that was saved for Java, or ""
}

// prepare determines where to log in and where to store the login.
func (s *session) prepare(ctx context.Context, address string) (err error) {
	e := s.env
	if s.profiles, err = diaspora.UserProfiles(e.getenv); err != nil {
		return err
	}
	if s.profile, err = e.target(s.profiles, address); err != nil {
		return err
	}
	acl, err := diaspora.NewClient(diaspora.Config{URL: s.profile.URL, CAFile: e.getenv("DIASPORA_CA_FILE")})
	if err != nil {
		return err
	}
	if s.profile.Discovery, err = acl.Discover(ctx); err != nil {
		return err
	}
	cfg, err := globus.ConfigFromEnv(e.getenv)
	if err != nil {
		return misuse("", "%v", err)
	}
	named := e.getenv("GLOBUS_SDK_ENVIRONMENT") != "" || e.getenv("GLOBUS_SDK_SERVICE_URL_AUTH") != ""
	if issuer := s.profile.Discovery.Globus.Issuer; issuer != "" && !named {
		cfg.Issuer = issuer
	}
	s.profile.Discovery.Globus.Issuer = cfg.Issuer
	s.profile.Confirmed = false // even if an earlier login was confirmed
	s.fabric = fabricOf(s.profile)
	if named {
		s.fabric.NamedIssuer = cfg.Issuer
	}
	if err := s.checkHosts(ctx); err != nil {
		return err
	}
	cfg.ClientID, cfg.Product, cfg.Version = s.profile.Discovery.Globus.ClientID, "diaspora", programVersion()
	if s.client, err = globus.New(cfg); err != nil {
		return fmt.Errorf("log in to %s: %w", s.profile.URL, err)
	}
	return s.openStore()
}

// openStore finds a writable place for the login before the user logs in, so that the login is not lost.
func (s *session) openStore() (err error) {
	s.store, err = s.profiles.Store(s.profile.Name)
	if err == nil {
		err = s.store.Check("")
	}
	if err == nil || errors.Is(err, globus.ErrInsecureFile) {
		return s.explain(err)
	}
	if err := s.move(fmt.Errorf("%s cannot be used: %w", s.profiles.Dir(), err)); err != nil {
		return hinted(fmt.Errorf("log in: the login could not be kept: %w", err), "set DIASPORA_CONFIG_DIR to a folder where you may write")
	}
	return nil
}

// move makes the session store the login in a temporary folder. cause says why it cannot be stored with the other
// profiles.
func (s *session) move(cause error) error {
	dir, err := os.MkdirTemp("", "diaspora-")
	if err != nil {
		return errors.Join(cause, err)
	}
	s.env.warn("%v", cause)
	s.env.warn("this login is kept in %s, where only you can read it", dir)
	s.profiles, s.moved = diaspora.OpenProfiles(dir), true
	s.store, err = s.profiles.Store(s.profile.Name)
	return err
}

// target determines the fabric to log in to, and the name of its profile.
func (e *env) target(profiles *diaspora.Profiles, address string) (diaspora.Profile, error) {
	name, err := e.profileName(profiles)
	named := e.lookup("DIASPORA_PROFILE") != ""
	if address == "" {
		address = e.lookup("DIASPORA_URL")
	}
	if err != nil && (named || address == "") {
		return diaspora.Profile{}, err
	}
	if address == "" {
		if name == "" {
			return diaspora.Profile{}, misuse(`"diaspora login URL" takes the address of an ACL endpoint; "diaspora up" runs one on this machine`,
				"login: which fabric? No profile is stored, and no URL is given")
		}
		return profiles.Load(name)
	}
	if !strings.Contains(address, "://") {
		return diaspora.Profile{}, misuse(fmt.Sprintf(`try "diaspora login %s://%s"`, likelyScheme(address), address), "login: %q is not a URL", address)
	}
	if u, err := aclclient.ParseURL(address); err == nil {
		address = u.String() // without /acl, which the address of the form has
	}
	if named {
		return diaspora.Profile{Name: name, URL: address}, nil
	}
	return profileFor(profiles, name, address)
}

// likelyScheme guesses the scheme of an address that has none. A fabric on this machine does not use TLS.
func likelyScheme(address string) string {
	u, err := url.Parse("//" + address)
	if err != nil {
		return "https"
	}
	if ip, err := netip.ParseAddr(u.Hostname()); u.Hostname() == "localhost" || err == nil && ip.IsLoopback() {
		return "http"
	}
	return "https"
}

// profileFor returns the stored profile of an address, preferably the current one. If there is none, it returns
// a new profile that is named after the host, and does not replace that of another fabric.
func profileFor(profiles *diaspora.Profiles, current, address string) (diaspora.Profile, error) {
	if found := profileOf(profiles, current, address); found.Name != "" {
		return found, nil
	}
	u, err := url.Parse(address)
	if err != nil || u.Hostname() == "" {
		return diaspora.Profile{}, misuse("", "login: %q is not a URL", address)
	}
	name := strings.ReplaceAll(u.Host, ":", "-")
	if diaspora.ValidProfile(name) != nil {
		name = "default"
	}
	taken, _ := profiles.Names() // if this fails, so does saving the profile, which is reported there
	free := name
	for n := 2; slices.Contains(taken, free); n++ {
		free = fmt.Sprintf("%s-%d", name, n)
	}
	return diaspora.Profile{Name: free, URL: address}, nil
}

func sameFabric(a, b string) bool {
	u, errA := url.Parse(a)
	v, errB := url.Parse(b)
	if errA != nil || errB != nil {
		return false
	}
	path := func(u *url.URL) string { return strings.TrimSuffix(strings.TrimRight(u.Path, "/"), "/acl") }
	return u.Scheme == v.Scheme && u.Host == v.Host && path(u) == path(v)
}

// rescue stores a completed login elsewhere if it could not be saved.
func (s *session) rescue(ctx context.Context, login *globus.Login, cause error) (*globus.Login, error) {
	if errors.Is(cause, globus.ErrOtherSubject) {
		return s.keepApart(ctx, login, cause)
	}
	if login.Identity.Subject == "" || s.moved {
		// The login cannot be used, so its tokens must not stay valid.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbyeLimit)
		defer cancel()
		return nil, errors.Join(cause, s.client.RevokeLogin(ctx, login))
	}
	if err := s.move(cause); err != nil {
		return nil, err
	}
	return login, s.store.Save(context.WithoutCancel(ctx), login)
}

// endpoint returns a client of the fabric's ACL endpoint that signs in with a token, and its configuration.
func (s *session) endpoint(token globus.Token) (diaspora.Config, *diaspora.Client, error) {
	cfg := diaspora.Config{
		URL: s.profile.URL, Discovery: &s.profile.Discovery, CAFile: s.env.getenv("DIASPORA_CA_FILE"), TokenSource: trust.Guard(globus.StaticToken(token), s.fabric),
	}
	client, err := diaspora.NewClient(cfg)
	return cfg, client, err
}

// keepApart stores a login whose identity is not that of the profile, as another profile. On a terminal, the
// user can choose the name, or revoke the login.
func (s *session) keepApart(ctx context.Context, login *globus.Login, cause error) (*globus.Login, error) {
	asking := ctx
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // the login is complete, so it must be stored or revoked, even after Ctrl-C
	defer cancel()
	free := s.freeName(login.Identity)
	names := []string{free}
	asked := s.env.terminal(s.env.stdin)
	if asked {
		text, hints := explanation(cause)
		s.env.warn("%s", text)
		s.env.hint(hints...)
		in := s.answers
		if in == nil {
			in = s.env.stdin
		}
		answer, err := s.env.ask(asking, in, fmt.Sprintf("Keep this login as another profile? Type its name, nothing for %s, or no to revoke it: ", free))
		switch {
		case err != nil || strings.EqualFold(answer, "no") || strings.EqualFold(answer, "n"):
			time.AfterFunc(finishLimit, cancel)
			return nil, errors.Join(cause, s.client.RevokeLogin(ctx, login))
		case answer != "":
			names = []string{answer, free}
		}
	}
	time.AfterFunc(finishLimit, cancel)
	var failed error
	for _, name := range names {
		profile, store, err := s.keepAs(ctx, name, login)
		if err != nil {
			s.env.warn("the login cannot be kept as profile %q: %v", name, err)
			failed = err
			continue
		}
		if asked {
			s.profile, s.store = profile, store
			return login, nil
		}
		return nil, hinted(fmt.Errorf("%w; this login is kept as profile %s", cause, name),
			fmt.Sprintf(`"diaspora profile use %s" uses it, "diaspora profile remove %[1]s" revokes it`, name))
	}
	return nil, errors.Join(cause, failed, s.client.RevokeLogin(ctx, login))
}

// keepAs stores a login as another profile of the same fabric.
func (s *session) keepAs(ctx context.Context, name string, login *globus.Login) (diaspora.Profile, *globus.Store, error) {
	profile := s.profile
	profile.Name = name
	if there, err := s.profiles.Load(name); err == nil && !sameFabric(there.URL, profile.URL) {
		return profile, nil, fmt.Errorf("it is a profile of %s", there.URL)
	}
	store, err := s.profiles.Store(name)
	if err == nil {
		err = store.Save(ctx, login)
	}
	if err == nil {
		err = s.profiles.Save(profile)
	}
	return profile, store, err
}

// freeName returns the name of a profile for another login to the same fabric. No profile has this name, or it
// belongs to the same fabric and identity.
func (s *session) freeName(who globus.Identity) string {
	user, _, _ := strings.Cut(who.Username, "@")
	user = plainName(user, "-_.", '-')
	base := s.profile.Name[:min(len(s.profile.Name), 40)] + "-" + user[:min(len(user), 20)]
	for name, n := base, 2; ; n++ {
		there, err := s.profiles.Load(name)
		store, storeErr := s.profiles.Store(name)
		if storeErr != nil {
			return name // storing the login returns the error
		}
		login, loginErr := store.Load()
		if errors.Is(err, diaspora.ErrNotFound) && loginErr != nil ||
			err == nil && sameFabric(there.URL, s.profile.URL) && loginErr == nil && login.Identity.Subject == who.Subject {
			return name
		}
		name = fmt.Sprintf("%s-%d", base, n)
	}
}

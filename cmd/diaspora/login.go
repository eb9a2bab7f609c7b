package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/accesskey"
	"github.com/diaspora-streams/diaspora/internal/terminal"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

var loginHelp = help{
	use:   "login [URL]",
	short: "log in with Globus and store the login as a profile",
	examples: `
# to a fabric, by the address of its ACL endpoint
diaspora login https://diaspora.example.org

# again, if the login has expired
diaspora login

# on a machine without a browser: open the address elsewhere, and paste the code
diaspora login https://diaspora.example.org --no-browser

# with the refresh token of a login on another machine
ssh laptop diaspora token --refresh | diaspora login https://diaspora.example.org --with-token

# in a script, to a fabric whose hosts you have checked
diaspora login https://diaspora.example.org --no-browser --yes

# also write a file for Kafka's Java clients
diaspora login --save-for-java`,
	long: `
login prints the address to visit, and then opens your browser. Over ssh, or without a display, it
asks for the code that the page shows.

The fabric's addresses are stored as a profile, which becomes the current one. It is named after the
host, unless --profile gives another name. The tokens are stored in a file that only you can read,
and are renewed automatically. They are not printed, unless you use --show-tokens.

If you log in with a different identity from that of the profile, the stored login is not replaced.
The new login is stored as another profile; see "diaspora profile".

An access token is sent only to the host that is named in the fabric's scope at Globus, and to its
subdomains. If the scope names no host, login shows the fabric's hosts and asks you to confirm them;
--yes confirms them. If another profile has the same scope but different hosts, login fails. A
fabric that runs entirely on this machine is exempt.

A service signs in as itself: if DIASPORA_CLIENT_ID and DIASPORA_CLIENT_SECRET are set, login opens
no browser and asks for no code. It tries these credentials, and stores only the profile.

--save-for-java creates an access key, named after this machine, and writes it to
<username>.properties, for Kafka's Java tools. Only you can read this file. See
"diaspora key create --help".`,
	formats: answerFormats,
	args:    arguments{min: 0, max: 1},
}

type loginOptions struct {
	noBrowser  bool
	withToken  bool
	showTokens bool
	yes        bool
	java       string // the file to save for Java, or ""
}

func (e *env) loginCommand() *cobra.Command {
	var o loginOptions
	cmd := e.command(loginHelp, func(ctx context.Context, args []string) error {
		address := ""
		if len(args) > 0 {
			address = args[0]
		}
		return e.login(ctx, o, address)
	})
	flags := cmd.Flags()
	flags.BoolVar(&o.noBrowser, "no-browser", false, "do not open a browser; ask for the code")
	flags.BoolVar(&o.withToken, "with-token", false, "read a refresh token from standard input")
	flags.BoolVar(&o.showTokens, "show-tokens", false, "print the tokens")
	flags.BoolVar(&o.yes, "yes", false, "confirm the fabric's hosts without asking")
	saveForJavaFlag(cmd, &o.java)
	return cmd
}

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

func (e *env) login(ctx context.Context, o loginOptions, address string) error {
	s := &session{env: e, options: o}
	if wrong := accesskey.Misplaced(e.getenv("DIASPORA_CLIENT_ID"), e.getenv("DIASPORA_CLIENT_SECRET")); wrong != "" {
		return misuse("unset it to log in as a person; a key needs no login: set DIASPORA_KEY_ID and DIASPORA_KEY_SECRET", "login: %s", wrong)
	}
	if err := s.prepare(ctx, address); err != nil {
		return err
	}
	var login *globus.Login
	var err error
	switch {
	case e.getenv("DIASPORA_CLIENT_ID") != "":
		return s.asService(ctx)
	case o.withToken:
		login, err = s.withToken(ctx)
	default:
		login, err = s.inBrowser(ctx)
	}
	if err != nil {
		return s.explain(err)
	}
	return s.finish(ctx, login)
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
	s.profile.Discovery, err = discover(ctx, s.profile.URL, e.getenv("DIASPORA_CA_FILE"))
	if err != nil {
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
	if err := s.vouch(ctx); err != nil {
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
	dir, tempErr := os.MkdirTemp("", "diaspora-")
	if tempErr != nil {
		return hinted(fmt.Errorf("log in: the login could not be kept: %w", errors.Join(err, tempErr)),
			"set DIASPORA_CONFIG_DIR to a folder where you may write")
	}
	s.env.warn("%s cannot be used: %v", s.profiles.Dir(), err)
	s.env.warn("this login will be kept in %s, where only you can read it", dir)
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
// a new profile that is named after the host.
func profileFor(profiles *diaspora.Profiles, current, address string) (diaspora.Profile, error) {
	names, _ := profiles.Names() // if the folder cannot be read, there are no profiles
	for _, name := range append([]string{current}, names...) {
		if name == "" {
			continue
		}
		if p, err := profiles.Load(name); err == nil && sameFabric(p.URL, address) {
			return p, nil
		}
	}
	u, err := url.Parse(address)
	if err != nil || u.Hostname() == "" {
		return diaspora.Profile{}, misuse("", "login: %q is not a URL", address)
	}
	name := strings.ReplaceAll(u.Host, ":", "-")
	if diaspora.ValidProfile(name) != nil {
		name = "default"
	}
	return diaspora.Profile{Name: name, URL: address}, nil
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

func discover(ctx context.Context, address, caFile string) (diaspora.Discovery, error) {
	client, err := diaspora.NewClient(diaspora.Config{URL: address, CAFile: caFile})
	if err != nil {
		return diaspora.Discovery{}, err
	}
	return client.Discover(ctx)
}

// inBrowser lets the user log in with a browser.
func (s *session) inBrowser(ctx context.Context) (*globus.Login, error) {
	typed, done := newRelay(s.env.stdin), make(chan struct{})
	login, err := s.client.Login(ctx, globus.LoginOptions{
		Scopes:    []string{s.profile.Discovery.Globus.Scope},
		In:        typed.reader(done),
		Out:       terminal.Writer{W: s.env.stderr},
		NoBrowser: s.options.noBrowser,
		Browser:   s.env.browser,
		Getenv:    s.env.getenv,
		Address:   s.withTicket,
		Message:   "Log in to Diaspora Streams at " + s.profile.URL,
		Store:     s.store,
	})
	close(done)
	s.answers = typed.reader(nil)
	if err == nil || login == nil {
		return login, err
	}
	return s.rescue(ctx, login, err)
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
	dir, err := os.MkdirTemp("", "diaspora-")
	if err != nil {
		return nil, errors.Join(cause, err)
	}
	s.env.warn("%v", cause)
	s.env.warn("this login is kept in %s, where only you can read it", dir)
	s.profiles, s.moved = diaspora.OpenProfiles(dir), true
	if s.store, err = s.profiles.Store(s.profile.Name); err != nil {
		return nil, err
	}
	return login, s.store.Save(context.WithoutCancel(ctx), login)
}

// withToken creates a login from a refresh token.
func (s *session) withToken(ctx context.Context) (*globus.Login, error) {
	refresh, err := s.readToken(ctx)
	if err != nil {
		return nil, err
	}
	token, err := s.client.Refresh(ctx, refresh)
	if err != nil {
		return nil, fmt.Errorf("log in with the refresh token: %w", err)
	}
	server := s.profile.Discovery.Globus.ResourceServer
	if token.ResourceServer != "" && token.ResourceServer != server {
		return nil, &failure{
			condition: diaspora.ErrUnauthenticated,
			text:      fmt.Sprintf("log in with the refresh token: it is for %s, and the fabric wants one for %s", token.ResourceServer, server),
			hints:     []string{`"diaspora token --refresh" prints the right one, where you are logged in to this fabric`},
		}
	}
	token.ResourceServer = server
	if token.RefreshToken == "" {
		token.RefreshToken = refresh
	}
	// The refresh token may have been rotated, and the old one be invalid. From here on, complete the login
	// even if the user interrupts.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), finishLimit)
	defer cancel()
	login := &globus.Login{Issuer: s.client.Issuer(), ClientID: s.client.ClientID(), Tokens: []globus.Token{token}}
	acl, err := diaspora.NewClient(diaspora.Config{
		URL: s.profile.URL, CAFile: s.env.getenv("DIASPORA_CA_FILE"), TokenSource: trust.Guard(globus.StaticToken(token), s.fabric),
	})
	if err != nil {
		return nil, err
	}
	if login.Identity, err = acl.Identity(ctx); err != nil {
		return nil, err
	}
	if err := s.store.Save(ctx, login); err != nil {
		return s.rescue(ctx, login, err)
	}
	return login, nil
}

const finishLimit = 30 * time.Second

// readToken reads a token from stdin. A terminal does not echo it.
func (s *session) readToken(ctx context.Context) (globus.Secret, error) {
	var text []byte
	var err error
	if f, ok := s.env.stdin.(*os.File); ok && s.env.terminal(f) {
		fmt.Fprint(s.env.stderr, "Paste the refresh token (it is not shown): ")
		text, err = term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(s.env.stderr)
	} else {
		text, err = bufio.NewReader(io.LimitReader(s.env.stdin, maxAnswerBytes)).ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			err = nil
		}
	}
	if err != nil {
		return "", fmt.Errorf("read the refresh token: %w", err)
	}
	token := strings.TrimSpace(string(text))
	if token == "" {
		return "", misuse(`"diaspora token --refresh | diaspora login URL --with-token" takes it from another login`,
			"login --with-token: there is no refresh token in the input")
	}
	if wrong := trust.RefreshTokenFault(token); wrong != "" {
		return "", misuse(`"diaspora token --refresh" prints a refresh token, where you are logged in`, "login --with-token: the input %s", wrong)
	}
	return globus.Secret(token), ctx.Err()
}

// asService tries the client credentials from the environment and stores the profile.
func (s *session) asService(ctx context.Context) error {
	if err := s.profiles.Save(s.profile); err != nil {
		return err
	}
	cfg, err := diaspora.ConfigFromEnv(func(name string) string {
		switch name {
		case "DIASPORA_URL":
			return s.profile.URL
		case "DIASPORA_PROFILE":
			return s.profile.Name
		case "DIASPORA_CONFIG_DIR":
			return s.profiles.Dir()
		}
		return s.env.getenv(name)
	})
	if err != nil {
		return err
	}
	client, err := diaspora.NewClient(cfg)
	if err != nil {
		return err
	}
	login := &globus.Login{}
	if login.Identity, err = client.Identity(ctx); err != nil {
		return err
	}
	token, err := cfg.TokenSource.Token(ctx)
	if err != nil {
		return err
	}
	token.ResourceServer = s.profile.Discovery.Globus.ResourceServer
	login.Tokens = []globus.Token{token}
	return s.finish(ctx, login)
}

// explain adds hints to an error of the login.
func (s *session) explain(err error) error {
	switch {
	case errors.Is(err, globus.ErrOtherSubject):
		return hinted(err, fmt.Sprintf(`"diaspora logout --profile %s" ends the login that is there`, s.profile.Name))
	case errors.Is(err, globus.ErrInsecureFile):
		return hinted(err, fmt.Sprintf("chmod -R go-rwx %s", s.profiles.Dir()))
	case errors.Is(err, globus.ErrDenied):
		return hinted(err, "log in again and allow what the page asks for")
	case errors.Is(err, globus.ErrLoginRequired) && s.options.withToken:
		return hinted(err, `get another one with "diaspora token --refresh" where you are logged in, or log in without --with-token`)
	}
	return err
}

// finish stores the profile and prints the result.
func (s *session) finish(ctx context.Context, login *globus.Login) error {
	e, name := s.env, s.profile.Name
	server := s.profile.Discovery.Globus.ResourceServer
	token, ok := login.Token(server)
	if !ok { // otherwise every command would ask the user to log in again, endlessly
		return &failure{condition: globus.ErrMisconfigured, text: fmt.Sprintf(
			"log in to %s: Globus gave no token for this fabric's service %s; the fabric is misconfigured", s.profile.URL, server),
			hints: []string{"tell its operator: globus-client-id and globus-scope are of different services"}}
	}
	if err := s.profiles.Save(s.profile); err != nil {
		return err
	}
	if err := s.profiles.Use(name); err != nil {
		return err
	}
	e.say("%s is now the current profile, for %s; tokens are renewed by themselves", name, s.profile.URL)
	switch from := e.credential(); from {
	case "":
	case "DIASPORA_CLIENT_ID":
		e.say("DIASPORA_CLIENT_ID signs in as long as it is set; nothing secret was stored")
	default:
		e.warn("%s is set and is used instead of this login; unset it", from)
	}
	if s.moved {
		e.warn("to use this login: export DIASPORA_CONFIG_DIR=%s", s.profiles.Dir())
	}
	javaErr := s.saveForJava(ctx, token) // the login has succeeded, even if this fails
	if e.json() {
		return errors.Join(e.printJSON(s.document(login.Identity, token)), javaErr)
	}
	return errors.Join(e.printf("%s", s.block(login.Identity, token)), javaErr)
}

// saveForJava implements --save-for-java.
func (s *session) saveForJava(ctx context.Context, token globus.Token) error {
	if s.options.java == "" {
		return nil
	}
	cfg := diaspora.Config{
		URL: s.profile.URL, Discovery: &s.profile.Discovery, CAFile: s.env.getenv("DIASPORA_CA_FILE"), TokenSource: trust.Guard(globus.StaticToken(token), s.fabric),
	}
	client, err := diaspora.NewClient(cfg)
	if err != nil {
		return err
	}
	saved, err := s.env.saveKey(ctx, cfg, client, diaspora.AccessKeyRequest{Read: true, Write: true}, keyFile{forJava, s.options.java})
	if err != nil {
		return hinted(err, `you are logged in; "diaspora key create --save-for-java FILE" tries again`)
	}
	s.javaFile = saved.file
	s.env.say("%s has the access key %s; %q ends it", saved.file, saved.key.Name, "diaspora key revoke "+saved.key.Name)
	return nil
}

type loginDocument struct {
	Subject      string     `json:"subject"`
	Username     string     `json:"username"`
	Profile      string     `json:"profile"`
	URL          string     `json:"url"`
	ConfigDir    string     `json:"config_dir,omitempty"` // if it is not the default one
	Expiry       *time.Time `json:"expiry,omitempty"`     // of the access token
	AccessToken  string     `json:"access_token,omitempty"`
	RefreshToken string     `json:"refresh_token,omitempty"`
	JavaFile     string     `json:"java_file,omitempty"` // with --save-for-java
}

func (s *session) document(id globus.Identity, token globus.Token) loginDocument {
	d := loginDocument{Subject: id.Subject, Username: id.Username, Profile: s.profile.Name, URL: s.profile.URL, JavaFile: s.javaFile}
	if !token.Expiry.IsZero() {
		d.Expiry = &token.Expiry
	}
	if s.moved {
		d.ConfigDir = s.profiles.Dir()
	}
	if s.options.showTokens {
		d.AccessToken, d.RefreshToken = token.AccessToken.Reveal(), token.RefreshToken.Reveal()
	}
	return d
}

// exports returns shell commands for the variables that a program without a profile needs in addition to
// DIASPORA_REFRESH.
func (s *session) exports() []string {
	lines := []string{"export DIASPORA_URL=" + oneLine(s.profile.URL)}
	unconfirmed := s.fabric // without a profile, no confirmation is stored
	unconfirmed.Confirmed = false
	if unconfirmed.Check() != nil {
		lines = append(lines, "export DIASPORA_BOOTSTRAP="+oneLine(strings.Join(s.profile.Discovery.Brokers, ",")))
	}
	return lines
}

// block formats the result with the same labels as the login command of the original Diaspora.
func (s *session) block(id globus.Identity, token globus.Token) string {
	const rule = "================================\n"
	command := "diaspora token"
	if s.moved {
		command = "DIASPORA_CONFIG_DIR=" + filepath.ToSlash(s.profiles.Dir()) + " " + command
	}
	access := fmt.Sprintf("[hidden; %q prints it]", command)
	refresh := fmt.Sprintf("[hidden; %q prints it]", command+" --refresh")
	export := fmt.Sprintf("$(%s --refresh)", command)
	if s.options.showTokens {
		access, refresh, export = token.AccessToken.Reveal(), token.RefreshToken.Reveal(), token.RefreshToken.Reveal()
	}
	text := rule +
		"Subject claim:     " + id.Subject + "\n" +
		"Principal name:    " + oneLine(id.Username) + "\n" +
		"Access token:      " + access + "\n"
	if token.RefreshToken != "" {
		text += "Refresh token:     " + refresh + "\n" +
			"Py clients:        export DIASPORA_REFRESH=" + export + "\n"
		for _, line := range s.exports() {
			text += "                   " + line + "\n"
		}
	}
	if s.javaFile != "" {
		text += "Java clients:      Connection properties are saved to " + oneLine(s.javaFile) + ".\n"
	}
	return text + rule
}

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/accesskey"
	"github.com/diaspora-streams/diaspora/internal/doctor"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/terminal"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

var loginHelp = help{
	use:   "login [URL]",
	short: "log in with Globus and store the login as a profile",
	examples: `
# log in to a fabric, at the address of its ACL endpoint
diaspora login https://diaspora.example.org

# log in again, if the login has expired
diaspora login

# on a machine without a browser: open the address elsewhere, and paste the code
diaspora login https://diaspora.example.org --no-browser

# use the refresh token of a login on another machine
ssh laptop diaspora token --refresh | diaspora login https://diaspora.example.org --with-token

# without the question about the fabric's hosts, after you have checked them
diaspora login https://diaspora.example.org --no-browser --yes

# with "diaspora up": as one of its users, without a browser
diaspora login http://127.0.0.1:9090 --as grace@example.org --profile grace

# the same, if somebody else runs it and gives you the file with the secret
diaspora login http://127.0.0.1:9090 --as grace@example.org < FILE

# also write a file for Kafka's Java clients
diaspora login --save-for-java`,
	long: `
login prints the address to visit, and then opens your browser. Over ssh, or without a display, it
asks for the code that the page shows.

login stores the fabric's addresses as a profile, which becomes the current one. The profile has the
name of the host, unless you set another name with --profile. The tokens are stored in a file that
only you can read, and are renewed automatically. --show-tokens prints them.

If the profile already has a login with another identity, that login is not replaced. The new login
is stored as another profile, whose name login prints.

So that a wrong fabric cannot collect your tokens, they are sent only to hosts that belong to the
fabric. When you log in, you grant a permission (a Globus scope). Its name normally contains the
name of a host: your tokens are sent only to this host and its subdomains. If the scope contains no
host name, login shows the fabric's hosts and asks you to confirm them; --yes confirms them. If
another profile has the same scope but different hosts, login fails. A fabric that runs entirely on
this machine is exempt from these checks.

If DIASPORA_CLIENT_ID and DIASPORA_CLIENT_SECRET are set, login signs in as a service account,
without a browser or a code. It checks these credentials, and stores only the profile.

With "diaspora up", which has a stand-in for Globus Auth, --as logs you in as one of the stand-in's
users. If somebody else runs it, the command asks for the secret of the stand-in, or reads it from
standard input: "diaspora up" prints the name of the file that has it.

--save-for-java creates an access key, named after this machine, and writes it to
<username>.properties, or with --save-for-java=FILE to FILE, for Kafka's Java tools. Only you can
read this file. See "diaspora key create --help".`,
	args:      arguments{min: 0, max: 1},
	exclusive: []string{"as with-token", "as no-browser"},
}

type loginOptions struct {
	as         string // a user of the stand-in for Globus Auth
	noBrowser  bool
	withToken  bool
	showTokens bool
	yes        bool
	java       string // the file to save for Java, or ""
}

func (e *env) loginCommand() *cobra.Command {
	var o loginOptions
	cmd := e.command(loginHelp, func(ctx context.Context, args []string) error {
		return e.login(ctx, o, optional(args))
	})
	flags := cmd.Flags()
	flags.StringVar(&o.as, "as", "", "log in as the `USER` of the stand-in for Globus Auth of \"diaspora up\", without a browser")
	flags.BoolVar(&o.noBrowser, "no-browser", false, "do not open a browser; ask for the code")
	flags.BoolVar(&o.withToken, "with-token", false, "read a refresh token from standard input")
	flags.BoolVar(&o.showTokens, "show-tokens", false, "print the tokens")
	flags.BoolVar(&o.yes, "yes", false, "confirm the fabric's hosts without asking")
	saveForJavaFlag(cmd, &o.java)
	return cmd
}

func (e *env) login(ctx context.Context, o loginOptions, address string) error {
	s := &session{env: e, options: o}
	if wrong := accesskey.MisplacedFault(e.getenv("DIASPORA_CLIENT_ID"), e.getenv("DIASPORA_CLIENT_SECRET")); wrong != "" {
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
	case o.as != "":
		login, err = s.asStandInUser(ctx)
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

// inBrowser lets the user log in with a browser.
func (s *session) inBrowser(ctx context.Context) (*globus.Login, error) {
	typed, done := newSharedInput(s.env.stdin), make(chan struct{})
	login, err := s.client.Login(ctx, globus.LoginOptions{
		Scopes:    []string{s.profile.Discovery.Globus.Scope},
		In:        typed.reader(done),
		Out:       terminal.Writer{W: s.env.stderr},
		NoBrowser: s.options.noBrowser,
		Browser:   s.env.browser,
		Getenv:    s.env.getenv,
		Address:   func(address string) (string, error) { return s.env.withTicket(s.client.Issuer(), address) },
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

// asStandInUser logs in as a user of the stand-in for Globus Auth, without a browser.
func (s *session) asStandInUser(ctx context.Context) (*globus.Login, error) {
	issuer := s.client.Issuer()
	if !isStandIn(issuer) {
		return nil, misuse("log in without --as", "login --as: people log in at %s, which is not the stand-in of \"diaspora up\"", issuer)
	}
	secret, err := s.env.standInSecret(issuer)
	if err == nil && secret == "" {
		var text string
		text, err = s.env.readSecret(ctx, "Paste the secret of the stand-in (it is not shown): ")
		secret = globusdev.PastedSecret(text)
	}
	whence := fmt.Sprintf(`ask the person who runs "diaspora up" for the secret, put it into a file, and type: diaspora login %s --as %s < FILE`, shellWord(s.profile.URL), shellWord(s.options.as))
	switch {
	case err != nil:
		return nil, err
	case secret == "":
		return nil, misuse(whence, "login --as: somebody else runs this stand-in for Globus Auth, and there is no secret in the input")
	}
	login, err := globusdev.Login(ctx, s.client, secret, s.options.as, globus.LoginOptions{
		Scopes: []string{s.profile.Discovery.Globus.Scope},
		Store:  s.store,
	})
	switch {
	case errors.Is(err, globusdev.ErrSecret):
		return nil, fail(diaspora.ErrUnauthenticated, whence, "login --as: %w", globusdev.ErrSecret)
	case errors.Is(err, globusdev.ErrNobody):
		hint := fmt.Sprintf(`the person who runs the fabric can add this user: "diaspora up --user %s"`, shellWord(s.options.as))
		names, _ := globusdev.Usernames(ctx, issuer, secret)
		if near := doctor.Near(s.options.as, names); near != "" {
			hint = fmt.Sprintf("did you mean %s? if not, %s", near, hint)
		}
		return nil, fail(diaspora.ErrNotFound, hint, "login --as %s: %w", s.options.as, globusdev.ErrNobody)
	case err != nil && login != nil:
		return s.rescue(ctx, login, err)
	}
	return login, err
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
		return nil, fail(diaspora.ErrUnauthenticated, `"diaspora token --refresh" prints the right one, where you are logged in to this fabric`,
			"log in with the refresh token: it is for %s, and the fabric wants one for %s", token.ResourceServer, server)
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
	_, client, err := s.endpoint(token)
	if err != nil {
		return nil, err
	}
	if login.Identity, err = client.Identity(ctx); err != nil {
		return nil, err
	}
	if err := s.store.Save(ctx, login); err != nil {
		return s.rescue(ctx, login, err)
	}
	return login, nil
}

const finishLimit = 30 * time.Second

// readSecret reads a line from stdin. A terminal does not echo it.
func (e *env) readSecret(ctx context.Context, question string) (string, error) {
	if f, ok := e.stdin.(*os.File); ok && e.terminal(f) {
		return e.askSecret(ctx, f, question)
	}
	text, err := bufio.NewReader(io.LimitReader(e.stdin, maxAnswerBytes)).ReadString('\n')
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return text, err
}

// readToken reads a token from stdin.
func (s *session) readToken(ctx context.Context) (globus.Secret, error) {
	text, err := s.env.readSecret(ctx, "Paste the refresh token (it is not shown): ")
	if err != nil {
		return "", fmt.Errorf("read the refresh token: %w", err)
	}
	token := strings.TrimSpace(text)
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
	case errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, globus.ErrUnavailable) && !s.env.terminal(s.env.stdin): // nobody could paste a code
		return hinted(err, fmt.Sprintf(`without a terminal, use the login of another machine: "ssh MACHINE diaspora token --refresh | diaspora login %s --with-token"`, s.profile.URL),
			`a job or an instrument needs no login: "diaspora key create NAME --save-env FILE" where you are logged in makes a file for DIASPORA_KEY_FILE`)
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
		return fail(globus.ErrMisconfigured, "tell its operator: globus-client-id and globus-scope are of different services",
			"log in to %s: Globus gave no token for this fabric's service %s; the fabric is misconfigured", s.profile.URL, server)
	}
	if err := s.profiles.Save(s.profile); err != nil {
		return err
	}
	if err := s.profiles.Use(name); err != nil {
		return err
	}
	e.say("%s is now the current profile, for %s; tokens are renewed automatically", name, s.profile.URL)
	switch from := e.credential(); from {
	case "":
	case "DIASPORA_CLIENT_ID":
		e.say("DIASPORA_CLIENT_ID signs in as long as it is set; nothing secret was stored")
	default:
		e.warn("%s is set and is used instead of this login; unset it", from)
	}
	if other := e.getenv("DIASPORA_URL"); other != "" && !sameFabric(other, s.profile.URL) {
		e.warn("DIASPORA_URL is set, so commands use the fabric at %s and not this one; unset it", other)
	}
	if s.moved {
		e.warn("to use this login: export DIASPORA_CONFIG_DIR=%s", s.profiles.Dir())
	}
	javaErr := s.saveForJava(ctx, token) // the login has succeeded, even if this fails
	return errors.Join(e.answer(s.document(login.Identity, token), "%s", s.block(login.Identity, token)), javaErr)
}

// saveForJava implements --save-for-java.
func (s *session) saveForJava(ctx context.Context, token globus.Token) error {
	if s.options.java == "" {
		return nil
	}
	cfg, client, err := s.endpoint(token)
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
	Subject      string    `json:"subject"`
	Username     string    `json:"username"`
	Profile      string    `json:"profile"`
	URL          string    `json:"url"`
	ConfigDir    string    `json:"config_dir,omitempty"` // if it is not the default one
	Expiry       time.Time `json:"expiry,omitzero"`      // of the access token
	AccessToken  string    `json:"access_token,omitempty"`
	RefreshToken string    `json:"refresh_token,omitempty"`
	JavaFile     string    `json:"java_file,omitempty"` // with --save-for-java
}

func (s *session) document(id globus.Identity, token globus.Token) loginDocument {
	d := loginDocument{Subject: id.Subject, Username: id.Username, Profile: s.profile.Name, URL: s.profile.URL, Expiry: token.Expiry, JavaFile: s.javaFile}
	if s.moved {
		d.ConfigDir = s.profiles.Dir()
	}
	if s.options.showTokens {
		d.AccessToken, d.RefreshToken = token.AccessToken.Reveal(), token.RefreshToken.Reveal()
	}
	return d
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
		// A program without a profile needs these variables too.
		text += "                   export DIASPORA_URL=" + oneLine(s.profile.URL) + "\n"
		unconfirmed := s.fabric // without a profile, no confirmation is stored
		unconfirmed.Confirmed = false
		if unconfirmed.Check() != nil {
			text += "                   export DIASPORA_BOOTSTRAP=" + oneLine(strings.Join(s.profile.Discovery.Brokers, ",")) + "\n"
		}
	}
	if s.javaFile != "" {
		text += "Java clients:      Connection properties are saved to " + oneLine(s.javaFile) + ".\n"
	}
	return text + rule
}

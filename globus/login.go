package globus

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/cli/browser"
	"golang.org/x/oauth2"
)

// Login is the result of logging in: the person's identity, and one token for each resource server.
type Login struct {
	Issuer   string // the Globus Auth that issued the tokens
	ClientID string // the client that they were issued to
	Identity Identity
	Tokens   []Token

	// ClockSkew is how far the local clock is ahead of Globus Auth's; negative if it is behind. It
	// is 0 unless the difference is so large that services may reject tokens.
	ClockSkew time.Duration
}

// Token returns the token for a resource server, if there is one.
func (l *Login) Token(resourceServer string) (Token, bool) {
	for _, t := range l.Tokens {
		if t.ResourceServer == resourceServer {
			return t, true
		}
	}
	return Token{}, false
}

// LoginOptions says how [Client.Login] interacts with the person.
type LoginOptions struct {
	// Scopes are the scopes to request. List all that are needed: a token never gets scopes from an
	// earlier login. openid, profile and email are added.
	Scopes []string

	// Out receives the URL to visit, the prompt and notes. Required.
	Out io.Writer

	// In is where the code can be pasted. If it is nil, only a browser on the same machine can
	// finish the login. Login may read one line more than it needs.
	In io.Reader

	// NoBrowser makes the person paste the code, whatever the environment says.
	NoBrowser bool

	// Browser opens a URL in a browser. It may hang or fail. Default: the desktop's browser.
	Browser func(url string) error

	// Getenv reads environment variables, which determine how to log in. Default: os.Getenv.
	Getenv func(string) string

	// Address may replace the URL to visit, for an issuer that requires more parameters than Globus
	// does. Default: the URL is not changed.
	Address func(url string) (string, error)

	// Message is shown on the login page, to say why the login is needed.
	Message string

	// Subject, if not empty, is the only identity that is accepted.
	Subject string

	// Store, if not nil, stores the login. If the login cannot be saved, Login returns it together
	// with the error.
	Store *Store

	// Timeout limits the wait for the person. Default: 15 minutes.
	Timeout time.Duration

	listen func() (net.Listener, error) // opens the port to which the browser is redirected; tests replace it
}

const (
	defaultLoginTimeout = 15 * time.Minute
	identifyTimeout     = 15 * time.Second             // limits how long to look up who has logged in
	saveTimeout         = renewTimeout + 5*time.Second // longer than another program may hold the lock of the token file
	maxPasteBytes       = 8 << 10
	maxPastes           = 3
)

// Login logs a person in with their browser. It prints the URL to visit and then starts the
// browser, which is redirected with the authorization code to a loopback address. The person may
// also paste the address of the page on which the browser ends. If no browser can be started (over
// ssh, without a display, with a text browser, or with NoBrowser), the person opens the URL
// elsewhere and pastes the code.
//
// ctx ends the wait for the person. Once Globus Auth has issued tokens, Login completes the login
// even if ctx ends, and returns it. If there is a problem with it, Login returns an error as well:
// another person has logged in ([ErrOtherSubject]), the login could not be saved, or its identity
// is not known. Only if the ID token is not genuine are the tokens discarded.
func (c *Client) Login(ctx context.Context, opts LoginOptions) (*Login, error) {
	login, err := c.loginFlow(ctx, opts)
	if err != nil {
		err = fmt.Errorf("log in: %w", err)
	}
	return login, err
}

func (c *Client) loginFlow(ctx context.Context, opts LoginOptions) (*Login, error) {
	if opts.Out == nil {
		return nil, errors.New("there is nowhere to print the address to visit")
	}
	if opts.Getenv == nil {
		opts.Getenv = os.Getenv
	}
	if opts.Browser == nil {
		opts.Browser = openBrowser
	}
	if opts.listen == nil {
		// Globus allows native clients any loopback port, but no path.
		opts.listen = func() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }
	}
	if opts.Timeout <= 0 {
		opts.Timeout = defaultLoginTimeout
	}
	if opts.Store != nil {
		if err := opts.Store.Check(opts.Subject); errors.Is(err, ErrInsecureFile) || errors.Is(err, ErrOtherSubject) {
			return nil, err
		} else if err != nil {
			fmt.Fprintf(opts.Out, "Note: the tokens cannot be saved (%v). They are returned to the program all the same.\n", err)
		}
	}
	wait, cancel := context.WithTimeoutCause(ctx, opts.Timeout, fmt.Errorf("nobody finished the login within %v", opts.Timeout))
	defer cancel()

	a := &authorization{client: c, opts: opts, verifier: oauth2.GenerateVerifier(), state: rand.Text()}
	if opts.In != nil {
		a.lines = readLines(wait, opts.In)
	}
	var grant tokenResponse
	var err error
	if why := a.pasteReason(); why != "" {
		grant, err = a.paste(wait, why)
	} else {
		grant, err = a.loopback(wait)
	}
	if err != nil {
		return nil, err
	}
	return a.finish(ctx, grant)
}

// authorization is a login in progress.
type authorization struct {
	client          *Client
	opts            LoginOptions
	verifier, state string
	redirect        string
	lines           <-chan string // lines that the person pastes; nil if they cannot paste
	page            *callback     // nil if the code must be pasted
}

func (a *authorization) printf(format string, args ...any) {
	fmt.Fprintf(a.opts.Out, format, args...)
}

// url returns the URL to visit.
func (a *authorization) url() (string, error) {
	scopes := []string{"openid", "profile", "email"}
	for _, s := range a.opts.Scopes {
		if !slices.Contains(scopes, s) {
			scopes = append(scopes, s)
		}
	}
	params := []oauth2.AuthCodeOption{
		oauth2.AccessTypeOffline,
		oauth2.S256ChallengeOption(a.verifier),
		oauth2.SetAuthURLParam("prompt", "login"),
	}
	if name, err := os.Hostname(); err == nil {
		product, _, _ := strings.Cut(a.client.userAgent, "/")
		label := product + " on " + strings.TrimSuffix(name, ".local")
		params = append(params, oauth2.SetAuthURLParam("prefill_named_grant", label))
	}
	if a.opts.Message != "" {
		params = append(params, oauth2.SetAuthURLParam("session_message", a.opts.Message))
	}
	config := oauth2.Config{
		ClientID:    a.client.clientID,
		RedirectURL: a.redirect,
		Scopes:      scopes,
		Endpoint:    oauth2.Endpoint{AuthURL: a.client.issuer + "/v2/oauth2/authorize"},
	}
	address := config.AuthCodeURL(a.state, params...)
	if a.opts.Address == nil {
		return address, nil
	}
	return a.opts.Address(address)
}

// pasteReason says why the code must be pasted. It returns "" if a browser can be started.
func (a *authorization) pasteReason() string {
	if a.opts.NoBrowser {
		return "as asked"
	}
	return noBrowser(runtime.GOOS, a.opts.Getenv)
}

// noBrowser says why no browser can be started in this environment, or returns "".
func noBrowser(goos string, getenv func(string) string) string {
	for _, v := range []string{"SSH_TTY", "SSH_CONNECTION", "SSH_CLIENT"} {
		if getenv(v) != "" {
			return "logged in over ssh"
		}
	}
	if command := strings.Fields(getenv("BROWSER")); len(command) > 0 && isTextBrowser(filepath.Base(command[0])) {
		return "the browser " + command[0] + " has no windows"
	}
	if goos == "darwin" || goos == "windows" || getenv("WSL_DISTRO_NAME") != "" {
		return ""
	}
	if getenv("DISPLAY") == "" && getenv("WAYLAND_DISPLAY") == "" {
		return "no display"
	}
	return ""
}

func isTextBrowser(name string) bool {
	return slices.Contains([]string{"lynx", "links", "links2", "elinks", "w3m", "www-browser"}, name)
}

var quietBrowser sync.Once

// openBrowser starts the desktop's browser. It may block until the browser exits.
func openBrowser(address string) error {
	if runtime.GOOS != "windows" && runtime.GOOS != "darwin" {
		if name := plainBrowser(); isTextBrowser(name) {
			return fmt.Errorf("the browser %s has no windows", name)
		}
	}
	quietBrowser.Do(func() { browser.Stdout, browser.Stderr = io.Discard, io.Discard })
	return browser.OpenURL(address)
}

// plainBrowser returns the name of the program behind x-www-browser or www-browser, if one of these
// would be started.
func plainBrowser() string {
	if _, err := exec.LookPath("xdg-open"); err == nil {
		return ""
	}
	for _, name := range []string{"x-www-browser", "www-browser"} {
		if path, err := exec.LookPath(name); err == nil {
			if target, err := filepath.EvalSymlinks(path); err == nil {
				return filepath.Base(target)
			}
			return name
		}
	}
	return ""
}

// paste asks the person to open the URL anywhere, and to paste the code that the page shows.
func (a *authorization) paste(ctx context.Context, why string) (tokenResponse, error) {
	if a.lines == nil {
		return tokenResponse{}, fmt.Errorf("no browser can be started (%s), and there is nowhere to paste a code", why)
	}
	a.redirect = a.client.issuer + "/v2/web/auth-code"
	address, err := a.url()
	if err != nil {
		return tokenResponse{}, err
	}
	a.printf("Please visit the following URL to authorize the application:\n\n    %s\n\n", address)
	for try := 1; ; try++ {
		a.printf("Paste the authorization code here: ")
		code, err := a.nextCode(ctx)
		if err != nil {
			a.printf("\n")
			return tokenResponse{}, err
		}
		grant, err := a.exchange(ctx, code)
		if !errors.Is(err, ErrLoginRequired) || try == maxPastes {
			return grant, err
		}
		a.printf("Globus Auth does not know this code. Copy the whole code, soon after it is shown; it works only once.\n")
	}
}

// errNoCode says that [LoginOptions.In] has ended. It matches io.ErrUnexpectedEOF.
type errNoCode struct{}

func (errNoCode) Error() string { return "the input ended before a code was pasted" }
func (errNoCode) Unwrap() error { return io.ErrUnexpectedEOF }

// nextCode waits until the person pastes a code.
func (a *authorization) nextCode(ctx context.Context) (Secret, error) {
	for {
		select {
		case line, ok := <-a.lines:
			if !ok {
				return "", errNoCode{}
			}
			code, err := a.readPaste(line)
			if code == "" && err == nil {
				continue
			}
			if errors.Is(err, errOtherLogin) {
				a.printf("That address belongs to another login. Paste the code of this one: ")
				continue
			}
			return code, err
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
}

var errOtherLogin = errors.New("the state is another login's")

// readPaste extracts the code from pasted text: the code itself, possibly with white space or
// quotes, or the whole address on which the browser ended.
func (a *authorization) readPaste(line string) (Secret, error) {
	text := strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) || !unicode.IsPrint(r) || strings.ContainsRune("\"'`<>", r) {
			return -1
		}
		return r
	}, line)
	if u, err := url.Parse(text); err == nil && (u.Scheme == "http" || u.Scheme == "https") {
		return a.readRedirect(u.Query())
	}
	if rest, ok := strings.CutPrefix(text, "code="); ok {
		text = rest
	}
	return Secret(text), nil
}

// readRedirect reads the parameters with which Globus Auth redirects the browser.
func (a *authorization) readRedirect(q url.Values) (Secret, error) {
	if len(q["state"]) != 1 || subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(a.state)) != 1 {
		return "", errOtherLogin
	}
	if word := q.Get("error"); word != "" {
		text := clean(word, nil)
		if d := clean(q.Get("error_description"), nil); d != "" {
			text += ": " + d
		}
		return "", fmt.Errorf("%w: %s", ErrDenied, text)
	}
	if len(q["code"]) != 1 || q.Get("code") == "" {
		return "", errOtherLogin
	}
	return Secret(q.Get("code")), nil
}

// loopback starts a browser and waits until it is redirected with the code.
func (a *authorization) loopback(ctx context.Context) (tokenResponse, error) {
	page, err := listenForCallback(a)
	if err != nil {
		return a.paste(ctx, err.Error())
	}
	a.page, a.redirect = page, page.url
	address, err := a.url()
	if err != nil {
		page.finish(err, "")
		return tokenResponse{}, err
	}
	a.printf("Please visit the following URL to authorize the application:\n\n    %s\n\n", address)
	opened := make(chan error, 1) // the browser may run longer than the login
	go func() { opened <- a.opts.Browser(address) }()
	a.printf("Waiting for the browser.")
	if a.lines != nil {
		a.printf(" If it ends on a page that does not load, paste that page's address here.")
	}
	a.printf("\n")

	grant, err := a.await(ctx, opened)
	if err != nil {
		page.finish(err, "")
	}
	return grant, err
}

// await waits for the code, from the browser or pasted by the person, and exchanges it.
func (a *authorization) await(ctx context.Context, opened <-chan error) (tokenResponse, error) {
	for pastes := 0; ; {
		select {
		case err := <-opened:
			if err != nil {
				a.printf("No browser could be started (%s). Please open the URL above in one.\n", clean(err.Error(), nil))
			}
			opened = nil
		case r := <-a.page.result:
			if r.err != nil {
				return tokenResponse{}, r.err
			}
			return a.exchange(ctx, r.code)
		case <-a.page.strays:
			a.printf("A browser came back from another login. Please use the URL above.\n")
		case line, ok := <-a.lines:
			if !ok {
				a.lines = nil
				continue
			}
			code, err := a.readPaste(line)
			if errors.Is(err, errOtherLogin) {
				a.printf("That address belongs to another login. Please use the URL above.\n")
				continue
			}
			if err != nil {
				return tokenResponse{}, err
			}
			if code == "" {
				continue
			}
			grant, err := a.exchange(ctx, code)
			if pastes++; !errors.Is(err, ErrLoginRequired) || pastes == maxPastes {
				return grant, err
			}
			a.printf("Globus Auth does not know this code. Copy the whole code, soon after it is shown; it works only once.\n")
		case <-ctx.Done():
			return tokenResponse{}, context.Cause(ctx)
		}
	}
}

// exchange exchanges the code for tokens. The code is sent only once, because it is valid only
// once: if the response is lost, so is the code.
func (a *authorization) exchange(ctx context.Context, code Secret) (tokenResponse, error) {
	return a.client.tokens(ctx, call{
		op: "exchange the authorization code",
		form: url.Values{
			"grant_type":    {"authorization_code"},
			"code":          {code.Reveal()},
			"redirect_uri":  {a.redirect},
			"code_verifier": {a.verifier},
		},
		once: true,
		hide: []Secret{code, Secret(a.verifier)},
	})
}

// finish finds out who has logged in, and saves the login. It ignores the end of ctx, because the
// tokens are already issued.
func (a *authorization) finish(ctx context.Context, grant tokenResponse) (*Login, error) {
	ctx = context.WithoutCancel(ctx)
	login := &Login{Issuer: a.client.issuer, ClientID: a.client.clientID, Tokens: grant.tokens}
	a.checkClock(login)
	err := a.identify(ctx, login, grant.idToken)
	switch {
	case errors.Is(err, errUntrusted):
		login = nil // the other tokens came in the same response, so they cannot be trusted either
	case err != nil:
	case a.opts.Subject != "" && login.Identity.Subject != a.opts.Subject:
		err = fmt.Errorf("%w: want %s, but %s (%s) logged in", ErrOtherSubject,
			a.opts.Subject, login.Identity.label(), login.Identity.Subject)
	case a.opts.Store != nil:
		ctx, cancel := context.WithTimeout(ctx, saveTimeout)
		defer cancel()
		err = a.opts.Store.Save(ctx, login)
	}
	if a.page != nil {
		who := ""
		if login != nil {
			who = login.Identity.label()
		}
		a.page.finish(err, who)
	}
	return login, err
}

var errIdentifyTimeout = fmt.Errorf("%w: no answer within %v", ErrUnavailable, identifyTimeout)

// checkClock warns the person if the local clock is so wrong that services may reject tokens. This
// is no reason to discard a completed login.
func (a *authorization) checkClock(login *Login) {
	if skew := a.client.skew.Load(); skew != nil && skew.Abs() > clockLeeway {
		login.ClockSkew = *skew
		a.printf("Warning: this computer's clock is %s Globus Auth's. Please set it right.\n", describeSkew(*skew))
	}
}

// identify sets the login's identity from the ID token. Without one, it asks Globus Auth.
func (a *authorization) identify(ctx context.Context, login *Login, idToken Secret) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, identifyTimeout, errIdentifyTimeout)
	defer cancel()
	c := a.client
	own, hasOwn := login.Token(authResourceServer)
	switch {
	case idToken != "":
		now := c.now().Add(-login.ClockSkew) // an estimate of Globus Auth's clock
		login.Identity, err = c.verifyIDToken(ctx, idToken, own.AccessToken, now)
		if saysNothing(err) {
			login.Identity, err = c.verifyUnsigned(ctx, idToken, own.AccessToken, now)
		}
	case hasOwn:
		login.Identity, err = c.UserInfo(ctx, own.AccessToken)
	default:
		err = errors.New("the answer does not tell who logged in")
	}
	return err
}

// authResourceServer is the resource server for the scopes openid, profile and email.
const authResourceServer = "auth.globus.org"

// readLines sends the lines of r to the channel until ctx ends. A read cannot be interrupted, so
// the goroutine stays until r returns data or ends.
func readLines(ctx context.Context, r io.Reader) <-chan string {
	lines := make(chan string)
	go func() {
		defer close(lines)
		b := bufio.NewReaderSize(r, maxPasteBytes)
		for {
			line, err := b.ReadSlice('\n') // a longer line arrives in pieces, but no code is that long
			if len(line) > 0 {
				select {
				case lines <- string(line):
				case <-ctx.Done():
					return
				}
			}
			if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
				return
			}
		}
	}()
	return lines
}

// RevokeLogin revokes all access and refresh tokens of a login. It stops at the first token if
// Globus Auth is unreachable, or if something else answers in its place.
func (c *Client) RevokeLogin(ctx context.Context, login *Login) error {
	if err := c.owns(login.Issuer, login.ClientID); err != nil {
		return fmt.Errorf("revoke login: %w", err)
	}
	var errs []error
	for _, t := range login.Tokens {
		for _, s := range []Secret{t.RefreshToken, t.AccessToken} {
			if s == "" {
				continue
			}
			err := c.Revoke(ctx, s)
			if errs = append(errs, err); saysNothing(err) || ctx.Err() != nil {
				return errors.Join(errs...)
			}
		}
	}
	return errors.Join(errs...)
}

// Logout revokes the tokens in the store and deletes its file. If Globus Auth is unreachable, or
// something else answers in its place, Logout keeps the file, so that it can be called again. An
// empty store is not an error.
func (c *Client) Logout(ctx context.Context, store *Store) error {
	unlock, err := store.lock(ctx)
	if err != nil {
		if _, loadErr := store.Load(); errors.Is(loadErr, ErrLoginRequired) {
			return nil
		}
		return fmt.Errorf("log out: %w", err)
	}
	defer unlock()
	login, err := store.Load()
	switch {
	case errors.Is(err, ErrLoginRequired):
		return nil
	case errors.Is(err, errDamaged):
		return store.remove()
	case err != nil:
		return fmt.Errorf("log out: %w", err)
	}
	err = c.RevokeLogin(ctx, login)
	if err != nil && (saysNothing(err) || ctx.Err() != nil || c.owns(login.Issuer, login.ClientID) != nil) {
		return fmt.Errorf("log out: %w", err)
	}
	return errors.Join(err, store.remove())
}

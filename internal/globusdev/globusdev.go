package globusdev

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
)

// RefreshMode says what happens to a refresh token when it is used. Clients must handle each mode.
type RefreshMode string

const (
	RefreshSame   RefreshMode = "same"   // it stays valid, and the response repeats it
	RefreshRotate RefreshMode = "rotate" // the response has a new one, and the old one becomes invalid
	RefreshAbsent RefreshMode = "absent" // it stays valid, and the response does not contain it
)

// Config configures a [Server]. Issuer is required.
type Config struct {
	// Issuer is the server's base URL on a loopback address, without a trailing slash, for example
	// http://127.0.0.1:9090. Required.
	Issuer string

	// Dir is the directory for the state. It is created if it does not exist. Only one server at a
	// time may use it. If Dir is empty, the state is kept in memory.
	Dir string

	// Secret is required to log in and to use the controls under /_dev/; see [NewSecret] and
	// [WithTicket]. If Secret is empty, anyone who can connect may log in as any identity.
	Secret globus.Secret

	// Username is the user of this machine, who is the first on the login page. A name without a
	// domain gets @localhost. If Username is empty, there are only the two users of the examples.
	Username string

	// Scopes are registered in addition to [Scope] and those of Globus's own services.
	Scopes []ScopeDef

	// AccessTokenLifetime is the lifetime of access and ID tokens, in whole seconds. Default: 48 h.
	AccessTokenLifetime time.Duration

	// RefreshMode says what happens to used refresh tokens. Default: RefreshSame.
	RefreshMode RefreshMode

	// IntrospectAny makes introspection answer any confidential client about any token, instead of
	// only about tokens that are meant for it. It is unknown which of the two Globus does.
	IntrospectAny bool

	// MaxTokens bounds the number of live tokens. Above it, token requests fail with status 503.
	// Default: 100,000.
	MaxTokens int

	// Now is the clock. Default: time.Now.
	Now func() time.Time

	// Diagnostics receives the server's own log messages. Nil discards them.
	Diagnostics *slog.Logger
}

// Server is a Globus-Auth-compatible server: an [http.Handler] for the listener
// that [Config.Issuer] names. Its methods may be called concurrently.
type Server struct {
	cfg     Config
	log     *slog.Logger
	handler http.Handler
	run     context.Context // ends with Close
	stop    context.CancelFunc
	work    sync.WaitGroup // generation of the signing key

	key func() (*rsa.PrivateKey, error) // returns the signing key; generates it if there is none

	mu       sync.Mutex // guards the fields below
	state    *state
	journal  *journal
	closed   bool
	skew     time.Duration // how far the clock has been advanced
	mode     RefreshMode
	changes  int // that may be made before the next compaction
	failures []*injection
	requests []Request
	txt      map[string]string    // TXT records
	used     map[string]time.Time // used tickets, and when they may be forgotten
}

var errClosed = errors.New("the server is closed")

// Open reads the stored state, if there is any. It fails if another process uses the directory, or
// if other users may read the stored state.
func Open(cfg Config) (*Server, error) {
	if err := cfg.normalize(); err != nil {
		return nil, fmt.Errorf("globusdev: %w", err)
	}
	s := &Server{cfg: cfg, log: cfg.Diagnostics, state: newState(), mode: cfg.RefreshMode}
	s.run, s.stop = context.WithCancel(context.Background())
	s.key = sync.OnceValues(s.signingKey)
	s.handler = s.routes()
	if err := s.load(); err != nil {
		s.stop()
		return nil, errors.Join(fmt.Errorf("globusdev: %w", err), s.journal.close())
	}
	// Generating a key takes a tenth of a second. It runs in the background, so that
	// whatever else starts at the same time does not have to wait.
	s.work.Go(func() { s.key() })
	return s, nil
}

func (cfg *Config) normalize() error {
	issuer, err := url.Parse(cfg.Issuer)
	switch {
	case err != nil || issuer.Scheme+"://"+issuer.Host != cfg.Issuer || issuer.Scheme != "http" && issuer.Scheme != "https":
		return fmt.Errorf("issuer %q is not of the form http://127.0.0.1:PORT", cfg.Issuer)
	case !isLoopbackHost(issuer.Host):
		return fmt.Errorf("issuer %q is not on a loopback address: whoever reaches this server can be anybody", cfg.Issuer)
	}
	cfg.AccessTokenLifetime = cmp.Or(cfg.AccessTokenLifetime, 48*time.Hour)
	if cfg.AccessTokenLifetime < time.Second {
		return errors.New("a lifetime of less than a second")
	}
	cfg.RefreshMode = cmp.Or(cfg.RefreshMode, RefreshSame)
	cfg.MaxTokens = cmp.Or(cfg.MaxTokens, 100_000)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Diagnostics == nil {
		cfg.Diagnostics = slog.New(slog.DiscardHandler)
	}
	return cfg.RefreshMode.check()
}

func (m RefreshMode) check() error {
	if !slices.Contains([]RefreshMode{RefreshSame, RefreshRotate, RefreshAbsent}, m) {
		return fmt.Errorf("unknown refresh mode %q", clip(string(m)))
	}
	return nil
}

// load reads the journal, adds what every server has, and rewrites the journal.
func (s *Server) load() error {
	if s.cfg.Dir != "" {
		var err error
		s.journal, err = openJournal(s.cfg.Dir, func(line []byte) error {
			var e entry
			if err := json.Unmarshal(line, &e); err != nil {
				return err
			}
			return s.state.apply(&e)
		})
		if err != nil {
			return err
		}
	}
	for _, def := range slices.Concat(builtinScopes, s.cfg.Scopes) {
		if def.Scope == "" || strings.Contains(def.Scope, " ") || def.ResourceServer == "" {
			return fmt.Errorf("scope %q: not the name of one scope, or no resource server", clip(def.Scope))
		}
		s.state.scopes[def.Scope] = def
	}
	for _, c := range s.state.clients {
		if c.secret == "" && !c.public {
			c.secret = newClientSecret()
		}
	}
	for _, u := range seedUsers(s.cfg.Username) {
		if err := s.state.apply(&entry{User: &u}); err != nil {
			return err
		}
	}
	return s.compact()
}

// compact rewrites the journal without expired entries.
func (s *Server) compact() error {
	s.state.prune(s.nowLocked())
	s.changes = compactAfter + s.state.size()
	if s.journal == nil {
		return nil
	}
	entries, err := s.state.snapshot()
	if err != nil {
		return err
	}
	lines, err := encode(entries)
	if err != nil {
		return err
	}
	return s.journal.rewrite(lines)
}

// commit makes several changes as a unit: first on disk, then in memory. The caller holds mu.
func (s *Server) commit(entries ...*entry) error {
	if s.closed {
		return errClosed
	}
	if s.journal != nil {
		lines, err := encode(entries)
		if err != nil {
			return err
		}
		if s.journal.err != nil { // it is unknown how the file ends
			if err := s.compact(); err != nil {
				return fmt.Errorf("write state: %w", err)
			}
		}
		if err := s.journal.append(lines); err != nil {
			return fmt.Errorf("write state: %w", err)
		}
	}
	for _, e := range entries {
		if err := s.state.apply(e); err != nil {
			return err
		}
	}
	if s.changes -= len(entries); s.changes <= 0 {
		if err := s.compact(); err != nil {
			s.log.Warn("cannot compact the state", "err", err) // the longer file is still valid
		}
	}
	return nil
}

// nowLocked returns the time of the adjustable clock. The caller holds mu.
func (s *Server) nowLocked() time.Time { return s.cfg.Now().Add(s.skew) }

// Issuer returns the configured base URL.
func (s *Server) Issuer() string { return s.cfg.Issuer }

// ClientSecret returns the secret of a confidential client, which is generated at the first start.
func (s *Server) ClientSecret(clientID string) (globus.Secret, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.state.clients[clientID]
	if c == nil || c.public {
		return "", fmt.Errorf("globusdev: client %q has no secret", clip(clientID))
	}
	return c.secret, nil
}

// Subject returns the ID of the identity with this username.
func (s *Server) Subject(username string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m, ok := s.state.find(username); ok {
		return m.ID, nil
	}
	return "", fmt.Errorf("globusdev: there is no identity %q", clip(username))
}

// AddUser adds a user, or replaces the user with the same ID. It returns the subject.
func (s *Server) AddUser(u User) (subject string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.state.checkUser(&u); err != nil {
		return "", fmt.Errorf("globusdev: %w", err)
	}
	if len(s.state.users) >= maxUsers {
		return "", fmt.Errorf("globusdev: more than %d users", maxUsers)
	}
	if err := s.commit(&entry{User: &u}); err != nil {
		return "", fmt.Errorf("globusdev: %w", err)
	}
	return u.ID, nil
}

// ServeHTTP answers a request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// http.ServeMux would redirect to a clean path. The redirect would repeat the query, which may
	// contain a code.
	if p := r.URL.EscapedPath(); p == "" || p[0] != '/' || strings.Contains(p, "//") || path.Clean(p) != p && path.Clean(p)+"/" != p {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		s.fail(w, nothingHere())
		return
	}
	s.handler.ServeHTTP(w, r)
}

// Close ends injected delays and unlocks the directory. Later requests are answered with 503. It
// may be called more than once.
func (s *Server) Close() error {
	s.stop()
	s.work.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	return s.journal.close()
}

// newClientSecret returns a secret in the format of Globus: 44 characters of base64. It contains +
// and /, to detect clients that encode these characters, and is marked as a development secret.
func newClientSecret() globus.Secret {
	return globus.Secret("dev/secret+" + (rand.Text() + rand.Text())[:32] + "=")
}

// memoryKey is the key of servers without a directory. They share it, because generating a key takes
// long and tests start many servers.
var memoryKey = sync.OnceValues(newKey)

func newKey() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) }

// signingKey returns the signing key. If there is none, it generates and stores one.
func (s *Server) signingKey() (*rsa.PrivateKey, error) {
	s.mu.Lock()
	stored := s.state.key
	s.mu.Unlock()
	if stored != nil {
		return stored, nil
	}
	generate := newKey
	if s.journal == nil {
		generate = memoryKey
	}
	key, err := generate()
	if err != nil {
		return nil, err
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return key, s.commit(&entry{Key: raw})
}

// isLoopbackHost reports whether a host, with or without a port, is a name of this machine.
func isLoopbackHost(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	} else {
		host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

package globusdev

import (
	"bytes"
	"cmp"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
)

// digest is the SHA-256 of a token or code. The token or code itself is not stored.
type digest [sha256.Size]byte

func digestOf(secret string) digest { return sha256.Sum256([]byte(secret)) }

func (d digest) MarshalText() ([]byte, error) {
	return base64.RawURLEncoding.AppendEncode(nil, d[:]), nil
}

func (d *digest) UnmarshalText(text []byte) error {
	raw, err := base64.RawURLEncoding.DecodeString(string(text))
	if err != nil || len(raw) != len(d) {
		return errors.New("malformed hash")
	}
	copy(d[:], raw)
	return nil
}

// login describes the login that a token comes from.
type login struct {
	Subject string `json:"s"`            // the effective identity, or the client itself
	Picked  string `json:"p,omitempty"`  // the identity that logged in; empty for clients
	Session string `json:"ss,omitempty"` // session ID
	Time    int64  `json:"at,omitempty"` // time of the login, in Unix seconds
}

// token is an access or refresh token. Its times are Unix seconds.
type token struct {
	Hash           digest   `json:"h"`
	Refresh        bool     `json:"r,omitempty"` // a refresh token
	Client         string   `json:"c"`
	ResourceServer string   `json:"rs"`
	Scopes         []string `json:"sc"`
	Consents       []int    `json:"co"` // the consent for each scope
	Issued         int64    `json:"iat"`
	Expiry         int64    `json:"exp"`
	login
}

func (t *token) live(now time.Time) bool { return now.Unix() < t.Expiry }

func (t *token) has(scope string) bool { return slices.Contains(t.Scopes, scope) }

// code is an authorization code. A used code is kept until it expires, so that a second use can be
// detected.
type code struct {
	Hash      digest `json:"h"`
	Client    string `json:"c"`
	Redirect  string `json:"u"`
	Challenge string `json:"cc,omitempty"`
	Scope     string `json:"sc"` // in the scope grammar
	State     string `json:"st,omitempty"`
	Nonce     string `json:"n,omitempty"`
	Offline   bool   `json:"o,omitempty"`
	Expiry    int64  `json:"exp"`
	Used      bool   `json:"x,omitempty"`
	login
}

// consent is a node of a tree. It allows a client to use a scope for a subject, either directly or
// through the scope above it.
type consent struct {
	ID       int    `json:"id"`
	Client   string `json:"c"` // client of the root: the one that asked the user
	Subject  string `json:"s"`
	Scope    string `json:"sc"`
	Path     []int  `json:"p"` // from the root to this node
	Refresh  bool   `json:"r,omitempty"`
	Optional bool   `json:"o,omitempty"`
	Created  int64  `json:"t"`
	Updated  int64  `json:"m"`
}

// parent returns the ID of the consent above, or 0.
func (c *consent) parent() int {
	if len(c.Path) < 2 {
		return 0
	}
	return c.Path[len(c.Path)-2]
}

type consentKey struct {
	client, subject, scope string
	parent                 int
}

func (c *consent) key() consentKey { return consentKey{c.Client, c.Subject, c.Scope, c.parent()} }

// entry is a line of the journal: one change.
type entry struct {
	Key     []byte        `json:"key,omitempty"` // PKCS #8
	User    *User         `json:"user,omitempty"`
	Client  *storedClient `json:"client,omitempty"`
	Token   *token        `json:"token,omitempty"`
	Code    *code         `json:"code,omitempty"`
	Consent *consent      `json:"consent,omitempty"`
	Dead    *digest       `json:"dead,omitempty"`      // a token that is revoked
	Rescind int           `json:"rescinded,omitempty"` // a consent that is rescinded
	Reset   bool          `json:"reset,omitempty"`     // removes all tokens, codes and consents
}

// storedClient is a client with its secret. It is used in the journal only.
type storedClient struct {
	Client
	Secret string `json:"secret,omitempty"`
}

// member is an identity and the user that it belongs to.
type member struct {
	*Identity
	person *User
}

// state is the state of a server. Only apply changes it, so that reading the journal results in the
// same state.
type state struct {
	users     map[string]*User // by the ID of the first identity
	members   map[string]member
	names     map[string]member // by lower-case username
	clients   map[string]*Client
	scopes    map[string]*ScopeDef
	providers map[string]*IdentityProvider

	tokens   map[digest]*token
	codes    map[digest]*code
	consents map[int]*consent
	granted  map[consentKey]int
	lastID   int // the highest ID of a consent
	keys     []*rsa.PrivateKey
}

func newState() *state {
	return &state{
		users: map[string]*User{}, members: map[string]member{}, names: map[string]member{},
		clients: map[string]*Client{}, scopes: map[string]*ScopeDef{}, providers: map[string]*IdentityProvider{},
		tokens: map[digest]*token{}, codes: map[digest]*code{},
		consents: map[int]*consent{}, granted: map[consentKey]int{},
	}
}

// apply makes one change.
func (st *state) apply(e *entry) error {
	switch {
	case e.Key != nil:
		key, err := x509.ParsePKCS8PrivateKey(e.Key)
		if err != nil {
			return errors.New("malformed signing key")
		}
		rsaKey, ok := key.(*rsa.PrivateKey)
		if !ok {
			return errors.New("signing key of another kind")
		}
		st.keys = append(st.keys, rsaKey)
	case e.User != nil:
		return st.setUser(e.User)
	case e.Client != nil:
		client := e.Client.Client
		client.Secret = globus.Secret(e.Client.Secret)
		if err := client.normalize(); err != nil {
			return err
		}
		st.clients[client.ID] = &client
	case e.Token != nil:
		if len(e.Token.Consents) != len(e.Token.Scopes) {
			return errors.New("a token with other consents than scopes")
		}
		st.tokens[e.Token.Hash] = e.Token
	case e.Code != nil:
		st.codes[e.Code.Hash] = e.Code
	case e.Consent != nil:
		c := e.Consent
		if len(c.Path) == 0 || c.Path[len(c.Path)-1] != c.ID || c.ID < 1 {
			return errors.New("a consent that is not at the end of its path")
		}
		st.consents[c.ID], st.granted[c.key()] = c, c.ID
		st.lastID = max(st.lastID, c.ID)
	case e.Dead != nil:
		delete(st.tokens, *e.Dead)
	case e.Rescind != 0:
		st.rescind(e.Rescind)
	case e.Reset:
		clear(st.tokens)
		clear(st.codes)
		clear(st.consents)
		clear(st.granted)
	default:
		return errors.New("an entry of an unknown kind")
	}
	return nil
}

// checkUser normalizes u. It returns an error if one of its identities belongs to another user.
func (st *state) checkUser(u *User) error {
	if err := u.normalize(); err != nil {
		return err
	}
	for _, identity := range u.identities() {
		for _, have := range []member{st.members[identity.ID], st.names[strings.ToLower(identity.Username)]} {
			if have.person != nil && have.person.ID != u.ID {
				return fmt.Errorf("identity %q: belongs to %q already", identity.Username, have.person.Username)
			}
		}
		if st.clients[identity.ID] != nil {
			return fmt.Errorf("identity %q: has the ID of a client", identity.Username)
		}
	}
	return nil
}

// setUser adds a user, or replaces the one with the same first identity.
func (st *state) setUser(u *User) error {
	if err := st.checkUser(u); err != nil {
		return err
	}
	if old := st.users[u.ID]; old != nil {
		for _, identity := range old.identities() {
			delete(st.members, identity.ID)
			delete(st.names, strings.ToLower(identity.Username))
		}
	}
	st.users[u.ID] = u
	for _, identity := range u.identities() {
		m := member{identity, u}
		st.members[identity.ID], st.names[strings.ToLower(identity.Username)] = m, m
	}
	return nil
}

// rescind removes a consent, those below it, and all tokens that were granted by them.
func (st *state) rescind(id int) {
	gone := map[int]bool{}
	for _, c := range st.consents {
		if slices.Contains(c.Path, id) {
			gone[c.ID] = true
			delete(st.consents, c.ID)
			delete(st.granted, c.key())
		}
	}
	for hash, t := range st.tokens {
		if slices.ContainsFunc(t.Consents, func(id int) bool { return gone[id] }) {
			delete(st.tokens, hash)
		}
	}
}

// prune removes expired tokens and codes.
func (st *state) prune(now time.Time) {
	maps.DeleteFunc(st.tokens, func(_ digest, t *token) bool { return !t.live(now) })
	maps.DeleteFunc(st.codes, func(_ digest, c *code) bool { return now.Unix() >= c.Expiry })
}

// size returns the number of entries in a snapshot.
func (st *state) size() int {
	return len(st.keys) + len(st.users) + len(st.clients) + len(st.tokens) + len(st.codes) + len(st.consents)
}

// snapshot returns entries that create this state from an empty one.
func (st *state) snapshot() ([]*entry, error) {
	entries := make([]*entry, 0, st.size())
	for _, key := range st.keys {
		raw, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, err
		}
		entries = append(entries, &entry{Key: raw})
	}
	for _, id := range slices.Sorted(maps.Keys(st.clients)) {
		entries = append(entries, clientEntry(st.clients[id]))
	}
	for _, id := range slices.Sorted(maps.Keys(st.users)) {
		entries = append(entries, &entry{User: st.users[id]})
	}
	for _, id := range slices.Sorted(maps.Keys(st.consents)) {
		entries = append(entries, &entry{Consent: st.consents[id]})
	}
	for _, c := range st.codes {
		entries = append(entries, &entry{Code: c})
	}
	for _, t := range st.tokens {
		entries = append(entries, &entry{Token: t})
	}
	return entries, nil
}

func clientEntry(c *Client) *entry {
	return &entry{Client: &storedClient{Client: *c, Secret: c.Secret.Reveal()}}
}

// encode encodes each entry as a line.
func encode(entries []*entry) ([]byte, error) {
	var lines bytes.Buffer
	out := json.NewEncoder(&lines)
	for _, e := range entries {
		before := lines.Len()
		if err := out.Encode(e); err != nil {
			return nil, err
		}
		if lines.Len()-before >= maxJournalLine {
			return nil, fmt.Errorf("an entry of more than %d bytes", maxJournalLine)
		}
	}
	return lines.Bytes(), nil
}

// sortedUsers returns the users sorted by username, those of this machine first.
func (st *state) sortedUsers() []*User {
	elsewhere := func(u *User) int {
		if domainOf(u.Username) == "localhost" {
			return 0
		}
		return 1
	}
	return slices.SortedFunc(maps.Values(st.users), func(a, b *User) int {
		return cmp.Or(elsewhere(a)-elsewhere(b), cmp.Compare(a.Username, b.Username))
	})
}

// find finds a user's identity by username or ID.
func (st *state) find(who string) (member, bool) {
	if m, ok := st.names[strings.ToLower(who)]; ok {
		return m, true
	}
	m, ok := st.members[strings.ToLower(who)]
	return m, ok
}

// identityOf returns the identity of a subject, and the identities linked to it. The subject may be
// a client.
func (st *state) identityOf(subject string) (*Identity, []*Identity, bool) {
	if m, ok := st.members[subject]; ok {
		return m.Identity, m.person.identities(), true
	}
	if c, ok := st.clients[subject]; ok {
		self := c.identity()
		return self, []*Identity{self}, true
	}
	return nil, nil, false
}

// provider returns the provider of an identity. A provider that is not seeded is named after the
// domain of the username.
func (st *state) provider(identity *Identity) *IdentityProvider {
	if p := st.providers[identity.IdentityProvider]; p != nil {
		return p
	}
	domain := domainOf(identity.Username)
	return &IdentityProvider{ID: identity.IdentityProvider, Name: domain, ShortName: domain, AlternativeNames: []string{}, Domains: []string{domain}}
}

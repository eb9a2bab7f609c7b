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
	Time    int64  `json:"at,omitempty"` // time of the login, in Unix seconds
}

// token is an access or refresh token. Its times are Unix seconds.
type token struct {
	Hash           digest   `json:"h"`
	Refresh        bool     `json:"r,omitempty"` // a refresh token
	Client         string   `json:"c"`
	ResourceServer string   `json:"rs"`
	Scopes         []string `json:"sc"`
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
	Challenge string `json:"cc"`
	Scope     string `json:"sc"` // separated by spaces
	State     string `json:"st,omitempty"`
	Nonce     string `json:"n,omitempty"`
	Offline   bool   `json:"o,omitempty"`
	Expiry    int64  `json:"exp"`
	Used      bool   `json:"x,omitempty"`
	login
}

// entry is a line of the journal: one change.
type entry struct {
	Key    []byte        `json:"key,omitempty"` // PKCS #8
	User   *User         `json:"user,omitempty"`
	Client *clientSecret `json:"client,omitempty"`
	Token  *token        `json:"token,omitempty"`
	Code   *code         `json:"code,omitempty"`
	Dead   *digest       `json:"dead,omitempty"`  // a token that is revoked
	Reset  bool          `json:"reset,omitempty"` // removes all tokens and codes

	Used    string       `json:"used,omitempty"` // an identity that somebody has signed in with
	Group   *Group       `json:"group,omitempty"`
	Member  *GroupMember `json:"member,omitempty"`
	NoGroup string       `json:"no_group,omitempty"` // a group that is removed

	Scope *registration `json:"scope,omitempty"`
	Host  *verifiedHost `json:"host,omitempty"`

	Consent json.RawMessage `json:"consent,omitempty"` // written by earlier versions; ignored
}

// clientSecret is the secret of a client.
type clientSecret struct {
	ID     string `json:"id"`
	Secret string `json:"secret,omitempty"`
}

// member is an identity and the user that it belongs to.
type member struct {
	*Identity
	person *User
}

// login returns a login as this identity.
func (m member) login(now time.Time) login {
	return login{Subject: m.person.ID, Picked: m.ID, Time: now.Unix()}
}

// state is the state of a server. Only apply changes what is in the journal, so that reading the
// journal results in the same state.
type state struct {
	clients map[string]*client  // the secrets are in the journal
	scopes  map[string]ScopeDef // those that every server has are not in the journal

	users   map[string]*User  // by the ID of the first identity
	members map[string]member // by the ID and the lower-case username of each identity
	used    map[string]bool   // by the ID of an identity: somebody has signed in with it
	groups  map[string]*group
	tokens  map[digest]*token
	codes   map[digest]*code
	key     *rsa.PrivateKey // signs ID tokens

	registered map[string]registration // scopes that were created, by their name with the client's ID
	hosts      map[string]string       // verified host names, and the IDs of their clients
}

func newState() *state {
	return &state{
		clients: newClients(), scopes: map[string]ScopeDef{}, users: map[string]*User{}, members: map[string]member{},
		used: map[string]bool{}, groups: map[string]*group{},
		tokens: map[digest]*token{}, codes: map[digest]*code{},
		registered: map[string]registration{}, hosts: map[string]string{},
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
		st.key = rsaKey
	case e.User != nil:
		return st.setUser(e.User)
	case e.Client != nil:
		c := st.clients[e.Client.ID]
		if c == nil {
			return errors.New("an unknown client")
		}
		c.secret = globus.Secret(e.Client.Secret)
	case e.Token != nil:
		st.tokens[e.Token.Hash] = e.Token
	case e.Code != nil:
		st.codes[e.Code.Hash] = e.Code
	case e.Dead != nil:
		delete(st.tokens, *e.Dead)
	case e.Reset:
		clear(st.tokens)
		clear(st.codes)
	case e.Used != "":
		st.used[e.Used] = true
	case e.Group != nil:
		return st.setGroup(*e.Group)
	case e.Member != nil:
		return st.setMember(*e.Member)
	case e.NoGroup != "":
		delete(st.groups, e.NoGroup)
	case e.Scope != nil:
		st.setScope(*e.Scope)
	case e.Host != nil:
		st.setHost(*e.Host)
	case e.Consent != nil:
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
		for _, key := range identity.keys() {
			if have, taken := st.members[key]; taken && have.person.ID != u.ID {
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
			for _, key := range identity.keys() {
				delete(st.members, key)
			}
		}
	}
	st.users[u.ID] = u
	for _, identity := range u.identities() {
		for _, key := range identity.keys() {
			st.members[key] = member{identity, u}
		}
	}
	return nil
}

// prune removes expired tokens and codes, and what is known of identities that are gone.
func (st *state) prune(now time.Time) {
	maps.DeleteFunc(st.tokens, func(_ digest, t *token) bool { return !t.live(now) })
	maps.DeleteFunc(st.codes, func(_ digest, c *code) bool { return now.Unix() >= c.Expiry })
	maps.DeleteFunc(st.used, func(id string, _ bool) bool { _, known := st.members[id]; return !known })
}

// size returns the number of entries in a snapshot, without those that every state has.
func (st *state) size() int {
	n := len(st.users) + len(st.used) + len(st.tokens) + len(st.codes) + len(st.groups) + len(st.registered) + len(st.hosts)
	for _, g := range st.groups {
		n += len(g.members)
	}
	return n
}

// snapshot returns entries that create this state from an empty one.
func (st *state) snapshot() ([]*entry, error) {
	entries := make([]*entry, 0, st.size()+len(st.clients)+1)
	if st.key != nil {
		raw, err := x509.MarshalPKCS8PrivateKey(st.key)
		if err != nil {
			return nil, err
		}
		entries = append(entries, &entry{Key: raw})
	}
	for _, id := range slices.Sorted(maps.Keys(st.clients)) {
		if secret := st.clients[id].secret.Reveal(); secret != "" {
			entries = append(entries, &entry{Client: &clientSecret{id, secret}})
		}
	}
	for _, id := range slices.Sorted(maps.Keys(st.users)) {
		entries = append(entries, &entry{User: st.users[id]})
	}
	for _, id := range slices.Sorted(maps.Keys(st.used)) {
		entries = append(entries, &entry{Used: id})
	}
	for _, g := range st.dumpGroups() {
		entries = append(entries, &entry{Group: &g.Group})
		for i := range g.Members {
			entries = append(entries, &entry{Member: &g.Members[i]})
		}
	}
	entries = append(entries, st.registrations()...)
	for _, c := range st.codes {
		entries = append(entries, &entry{Code: c})
	}
	for _, t := range st.tokens {
		entries = append(entries, &entry{Token: t})
	}
	return entries, nil
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
	m, ok := st.members[strings.ToLower(who)]
	return m, ok
}

// parseScopes looks up a list of scopes, separated by spaces. It omits offline_access, which only
// requests refresh tokens. Its errors may be shown to the client.
func (st *state) parseScopes(list string) (scopes []ScopeDef, offline bool, err error) {
	for name := range strings.SplitSeq(list, " ") {
		def, known := st.scopes[name]
		switch {
		case name == scopeOffline:
			offline = true
		case name == "" || slices.Contains(scopes, def):
		case !known:
			return nil, false, errors.New("unknown scope " + clip(name))
		default:
			scopes = append(scopes, def)
		}
	}
	if len(scopes) == 0 {
		return nil, false, errors.New("no scope is asked for")
	}
	return scopes, offline, nil
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

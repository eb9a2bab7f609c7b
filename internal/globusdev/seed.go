package globusdev

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/diaspora-streams/diaspora/globus"
)

// IDs and scope that [DefaultSeed] registers.
const (
	// NativeClientID is the public client with which users log in.
	NativeClientID = "d1a590a0-0000-4000-8000-0000000000c1"
	// ResourceServerID is the client of the ACL endpoint and the gateway, and
	// the resource server that their access tokens are for.
	ResourceServerID = "d1a590a0-0000-4000-8000-0000000000a1"
	// ServiceClientID is a service account, for client credentials.
	ServiceClientID = "d1a590a0-0000-4000-8000-0000000000e1"
	// Scope is the scope that clients request to use the ACL endpoint and the cluster.
	Scope = scopeURL + ResourceServerID + "/action_all"
)

const (
	authResourceServer   = "auth.globus.org"
	groupsResourceServer = "groups.api.globus.org"
	scopeURL             = "https://auth.globus.org/scopes/"
	authURN              = "urn:globus:auth:scope:auth.globus.org:"
	groupsURN            = "urn:globus:auth:scope:groups.api.globus.org:"

	scopeOpenID          = "openid"
	scopeEmail           = "email"
	scopeProfile         = "profile"
	scopeOffline         = "offline_access"
	scopeViewIdentities  = authURN + "view_identities"
	scopeViewIdentitySet = authURN + "view_identity_set"
	scopeViewConsents    = authURN + "view_consents"
	scopeViewMyGroups    = groupsURN + "view_my_groups_and_memberships"

	clientsProviderID = "3a74877b-e2a3-44b1-8958-ede1031b1827"
	clientsDomain     = "clients.auth.globus.org"
)

// namespace makes IDs that are derived from names the same on every machine.
var namespace = uuid.MustParse("d1a590a0-0000-4000-8000-000000000000")

// Seed is the initial state of a server. It is added to the state that [Config.Dir] has from
// earlier runs. Parts with the same ID are replaced.
type Seed struct {
	Users             []User
	Clients           []Client
	Scopes            []ScopeDef
	IdentityProviders []IdentityProvider
}

// Identity is one identity of a [User].
type Identity struct {
	// ID is the subject, a UUID. Default: derived from Username.
	ID string `json:"id"`
	// Username is unique, for example ada@example.edu. Required.
	Username     string `json:"username"`
	Name         string `json:"name,omitempty"`
	Email        string `json:"email,omitempty"`
	Organization string `json:"organization,omitempty"`
	// IdentityProvider is the provider's ID. Default: that of Username's domain.
	IdentityProvider string `json:"identity_provider,omitempty"`
	// Status is one of used, unused, private and closed. Default: used.
	Status string `json:"status,omitempty"`
}

// User is a user: the identity that tokens are issued to, and the identities that are linked to it.
type User struct {
	Identity
	Linked []Identity `json:"linked,omitempty"`
}

// identities returns the identity set.
func (u *User) identities() []*Identity {
	set := []*Identity{&u.Identity}
	for i := range u.Linked {
		set = append(set, &u.Linked[i])
	}
	return set
}

// Types of clients, as Globus registers them.
const (
	PublicInstalledClient = "public_installed_client"
	ConfidentialClient    = "confidential_client"
	ClientIdentity        = "client_identity"
	ResourceServer        = "resource_server"
)

// Client is a registered application.
type Client struct {
	// ID is a UUID. Required.
	ID string `json:"id"`
	// Name is shown on the login page. Required.
	Name string `json:"name"`
	// Type is one of the types above. Required. All types except PublicInstalledClient have a
	// secret.
	Type string `json:"type"`
	// RedirectURIs are compared exactly. Public clients may also use http on localhost and
	// 127.0.0.1 with any port, and all clients may use the page that shows the code.
	RedirectURIs []string `json:"redirect_uris,omitempty"`
	// Secret is the client's password. Default: generated at the first start and stored; see
	// [Server.ClientSecret].
	Secret globus.Secret `json:"-"`
}

func (c *Client) public() bool { return c.Type == PublicInstalledClient }

// identity returns the identity of the client itself, which it has without a user.
func (c *Client) identity() *Identity {
	return &Identity{ID: c.ID, Username: c.ID + "@" + clientsDomain, Name: c.Name, IdentityProvider: clientsProviderID, Status: "used"}
}

// ScopeDef is a registered scope.
type ScopeDef struct {
	// Scope is the complete scope string, for example https://auth.globus.org/scopes/…/all.
	Scope string
	// ResourceServer identifies the API that tokens with this scope are for: a client ID or, for
	// old services, a name. Required.
	ResourceServer string
	// Client is the ID of the resource server's client. Default: ResourceServer.
	Client string
	// Description is shown on the login page.
	Description string
	// Dependent lists the scopes for which the resource server may get tokens on the user's behalf.
	Dependent []Dependency
	// NoRefreshTokens forbids refresh tokens.
	NoRefreshTokens bool
}

// Dependency is a scope that another one depends on.
type Dependency struct {
	Scope string
	// Optional dependencies are only included if they are requested, in brackets.
	Optional bool
}

// IdentityProvider is an organization with which users log in.
type IdentityProvider struct {
	ID               string   `json:"id"`
	Name             string   `json:"name"`
	ShortName        string   `json:"short_name"`
	AlternativeNames []string `json:"alternative_names"`
	Domains          []string `json:"domains"`
}

// Subject returns the identity ID of a username in [DefaultSeed].
func Subject(username string) string { return derivedID("identity:" + strings.ToLower(username)) }

func derivedID(name string) string { return uuid.NewSHA1(namespace, []byte(name)).String() }

// DefaultSeed returns a seed with a user for this machine, ada@example.edu, grace@example.org (with
// a second identity linked), a service account, the public client with which users log in, and the
// resource server. A username without a domain gets @localhost. If username is empty, the user for
// this machine is left out. Everything except the secrets is the same each time.
func DefaultSeed(username string) *Seed {
	users := []User{
		{Identity: Identity{Username: "ada@example.edu", Name: "Ada Lovelace", Email: "ada@example.edu", Organization: "Example University"}},
		{
			Identity: Identity{Username: "grace@example.org", Name: "Grace Hopper", Email: "grace@example.org", Organization: "Example Institute"},
			Linked:   []Identity{{Username: "grace@example.com@idp.example"}},
		},
	}
	if name := localUsername(username); name != "" && !knows(users, name) {
		person, _, _ := strings.Cut(name, "@")
		users = slices.Insert(users, 0, User{Identity: Identity{Username: name, Name: person, Email: name, Organization: "This machine"}})
	}
	return &Seed{
		Users: users,
		Clients: []Client{
			{ID: NativeClientID, Name: "Diaspora Streams", Type: PublicInstalledClient},
			{ID: ResourceServerID, Name: "Diaspora Streams service", Type: ResourceServer},
			{ID: ServiceClientID, Name: "Diaspora example service account", Type: ClientIdentity},
		},
		Scopes: []ScopeDef{{
			Scope:          Scope,
			ResourceServer: ResourceServerID,
			Description:    "Claim topics, log events and read them back",
			Dependent:      []Dependency{{Scope: scopeViewMyGroups}},
		}},
		IdentityProviders: []IdentityProvider{
			{Name: "This machine", Domains: []string{"localhost"}},
			{Name: "Example University", Domains: []string{"example.edu"}},
			{Name: "Example Institute", Domains: []string{"example.org"}},
		},
	}
}

// localUsername derives a username from the operating system's name of the user.
func localUsername(name string) string {
	name = name[strings.LastIndexByte(name, '\\')+1:] // Windows: DOMAIN\user
	name = strings.Trim(strings.ToLower(strings.Map(func(r rune) rune {
		if r > ' ' && r < 0x7f && !strings.ContainsRune(`"'(),:;<>[\]/`, r) {
			return r
		}
		return '-'
	}, name)), "@")
	if name == "" || strings.Contains(name, "@") {
		return name
	}
	return name + "@localhost"
}

func knows(users []User, username string) bool {
	return slices.ContainsFunc(users, func(u User) bool { return u.Username == username })
}

const (
	maxUsers     = 10_000
	maxLinked    = 20
	maxFieldSize = 256 // bytes, of a name, a username and the like
)

// normalize sets defaults, and returns an error if the identity is not valid.
func (i *Identity) normalize() error {
	at := strings.LastIndexByte(i.Username, '@')
	switch {
	case at < 1 || at == len(i.Username)-1 || strings.ContainsFunc(i.Username, func(r rune) bool { return r <= ' ' || r == 0x7f || r == ',' }):
		return fmt.Errorf("identity: username %q is not of the form name@domain", clip(i.Username))
	case max(len(i.Username), len(i.Name), len(i.Email), len(i.Organization)) > maxFieldSize:
		return fmt.Errorf("identity %q: a field is longer than %d bytes", clip(i.Username), maxFieldSize)
	}
	if i.ID == "" {
		i.ID = Subject(i.Username)
	}
	if i.IdentityProvider == "" {
		i.IdentityProvider = providerID(domainOf(i.Username))
	}
	if i.Status == "" {
		i.Status = "used"
	}
	if !slices.Contains([]string{"used", "unused", "private", "closed"}, i.Status) {
		return fmt.Errorf("identity %q: unknown status %q", i.Username, clip(i.Status))
	}
	for _, id := range []*string{&i.ID, &i.IdentityProvider} {
		parsed, err := parseUUID(*id)
		if err != nil {
			return fmt.Errorf("identity %q: %v", i.Username, err)
		}
		*id = parsed
	}
	return nil
}

// normalize returns an error if the identities are not a valid set. It copies u's slices.
func (u *User) normalize() error {
	if len(u.Linked) > maxLinked {
		return fmt.Errorf("identity %q: more than %d linked identities", clip(u.Username), maxLinked)
	}
	u.Linked = slices.Clone(u.Linked)
	seen := map[string]bool{}
	for _, identity := range u.identities() {
		if err := identity.normalize(); err != nil {
			return err
		}
		name := strings.ToLower(identity.Username)
		if seen[identity.ID] || seen[name] {
			return fmt.Errorf("identity %q: linked to itself", identity.Username)
		}
		seen[identity.ID], seen[name] = true, true
	}
	return nil
}

func (c *Client) normalize() error {
	id, err := parseUUID(c.ID)
	if err != nil {
		return fmt.Errorf("client: %v", err)
	}
	c.ID = id
	if !slices.Contains([]string{PublicInstalledClient, ConfidentialClient, ClientIdentity, ResourceServer}, c.Type) {
		return fmt.Errorf("client %s: unknown type %q", c.ID, c.Type)
	}
	if c.Name == "" || max(len(c.Name), len(c.Secret)) > maxFieldSize {
		return fmt.Errorf("client %s: name missing, or a field longer than %d bytes", c.ID, maxFieldSize)
	}
	if c.public() && c.Secret != "" {
		return fmt.Errorf("client %s: a public client has no secret", c.ID)
	}
	for _, redirect := range c.RedirectURIs {
		u, err := url.Parse(redirect)
		if err != nil || u.Scheme == "" || u.Fragment != "" || slices.Contains([]string{"javascript", "data", "vbscript"}, strings.ToLower(u.Scheme)) {
			return fmt.Errorf("client %s: redirect URI %q cannot be used", c.ID, redirect)
		}
	}
	c.RedirectURIs = slices.Clone(c.RedirectURIs)
	return nil
}

func (d *ScopeDef) normalize() error {
	nodes, err := parseScopes(d.Scope)
	if err != nil || len(nodes) != 1 || nodes[0].name != d.Scope {
		return fmt.Errorf("scope %q: not a scope's name", clip(d.Scope))
	}
	if d.ResourceServer == "" {
		return fmt.Errorf("scope %q: no resource server", d.Scope)
	}
	if d.Client == "" {
		d.Client = d.ResourceServer
	}
	return nil
}

func (p *IdentityProvider) normalize() error {
	if p.Name == "" || len(p.Domains) == 0 {
		return errors.New("identity provider: name or domains missing")
	}
	if p.ID == "" {
		p.ID = providerID(p.Domains[0])
	}
	if p.ShortName == "" {
		p.ShortName = p.Name
	}
	p.AlternativeNames = append([]string{}, p.AlternativeNames...) // encoded as a list even if it is empty
	p.Domains = slices.Clone(p.Domains)
	return nil
}

// domainOf returns the part after the last @; usernames may have two.
func domainOf(username string) string {
	return strings.ToLower(username[strings.LastIndexByte(username, '@')+1:])
}

func providerID(domain string) string {
	if domain == clientsDomain {
		return clientsProviderID
	}
	return derivedID("provider:" + strings.ToLower(domain))
}

// parseUUID parses a UUID in its usual form and returns it in lower case.
func parseUUID(text string) (string, error) {
	id, err := uuid.Parse(text)
	if err != nil || len(text) != 36 {
		return "", fmt.Errorf("%q is not a UUID", clip(text))
	}
	return id.String(), nil
}

// clip shortens text from outside for use in messages.
func clip(text string) string {
	const limit = 64
	if len(text) <= limit {
		return text
	}
	return strings.ToValidUTF8(text[:limit], "") + "…"
}

// builtinScopes returns the scopes of Globus's own services. The Groups service is not available
// here, but tokens for it are.
func builtinScopes() []ScopeDef {
	auth := func(scope, description string) ScopeDef {
		return ScopeDef{Scope: scope, ResourceServer: authResourceServer, Description: description}
	}
	return []ScopeDef{
		auth(scopeOpenID, "Know who you are"),
		auth(scopeEmail, "See your e-mail address"),
		auth(scopeProfile, "See your name, organization and identity provider"),
		auth(scopeOffline, "Stay logged in"),
		auth(scopeViewIdentities, "Look up identities"),
		auth(scopeViewIdentitySet, "See the identities linked to yours"),
		auth(scopeViewConsents, "See what you have consented to"),
		auth(authURN+"manage_projects", "Manage projects"),
		auth(authURN+"view_clients", "See your clients"),
		auth(authURN+"view_clients_and_scopes", "See your clients and scopes"),
		auth(authURN+"view_authentications", "See your recent logins"),
		{Scope: groupsURN + "all", ResourceServer: groupsResourceServer, Description: "Manage your groups"},
		{Scope: scopeViewMyGroups, ResourceServer: groupsResourceServer, Description: "See which groups you are in"},
	}
}

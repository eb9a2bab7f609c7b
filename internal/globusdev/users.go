package globusdev

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/diaspora-streams/diaspora/globus"
)

// IDs and scope that every server has.
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

	scopeOpenID  = "openid"
	scopeEmail   = "email"
	scopeProfile = "profile"
	scopeOffline = "offline_access"

	clientsProviderID = "3a74877b-e2a3-44b1-8958-ede1031b1827"
	clientsDomain     = "clients.auth.globus.org"
)

// namespace makes IDs that are derived from names the same on every machine.
var namespace = uuid.MustParse("d1a590a0-0000-4000-8000-000000000000")

// Identity is one identity of a [User].
type Identity struct {
	// ID is the subject, a UUID. Default: derived from Username.
	ID string `json:"id"`
	// Username is unique, for example ada@example.edu. Required.
	Username     string `json:"username"`
	Name         string `json:"name,omitempty"`
	Email        string `json:"email,omitempty"`
	Organization string `json:"organization,omitempty"`
	// Status is what lookups say: "unused", "used", "private" or "closed". Nobody can sign in with a
	// closed identity. Default: unused until somebody has signed in with the identity, and used from
	// then on.
	Status string `json:"status,omitempty"`
}

// provider returns the ID of the organization with which the user logs in as this identity. Its name
// is the domain of the username.
func (i *Identity) provider() string {
	if domain := domainOf(i.Username); domain != clientsDomain {
		return derivedID("provider:" + domain)
	}
	return clientsProviderID
}

// keys returns the keys by which the identity can be found.
func (i *Identity) keys() [2]string { return [2]string{i.ID, strings.ToLower(i.Username)} }

// CheckUsername returns an error if no user can have this name.
func CheckUsername(username string) error {
	return (&User{Identity: Identity{Username: username}}).normalize()
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

// client is a registered application.
type client struct {
	id, name string
	public   bool          // it has no secret
	secret   globus.Secret // generated at the first start
}

func newClients() map[string]*client {
	return map[string]*client{
		NativeClientID:   {id: NativeClientID, name: "Diaspora Streams", public: true},
		ResourceServerID: {id: ResourceServerID, name: "Diaspora Streams service"},
		ServiceClientID:  {id: ServiceClientID, name: "Diaspora example service account"},
	}
}

// identity returns the identity of the client itself, which it has without a user.
func (c *client) identity() *Identity {
	return &Identity{ID: c.id, Username: c.id + "@" + clientsDomain, Name: c.name}
}

// ScopeDef is a registered scope.
type ScopeDef struct {
	// Scope is the complete scope string, for example https://auth.globus.org/scopes/…/all.
	Scope string
	// ResourceServer identifies the API that tokens with this scope are for: a client ID or, for
	// old services, a name. Required.
	ResourceServer string
	// Description is shown on the login page.
	Description string
	// NoRefreshTokens says that the scope forbids refresh tokens.
	NoRefreshTokens bool
}

// Subject returns the identity ID that a username has by default.
func Subject(username string) string { return derivedID("identity:" + strings.ToLower(username)) }

func derivedID(name string) string { return uuid.NewSHA1(namespace, []byte(name)).String() }

// seedUsers returns the users that every server has: the one of this machine, if username is not
// empty, ada@example.edu, and grace@example.org, to whom a second identity is linked.
func seedUsers(username string) []User {
	users := []User{
		{Identity: Identity{Username: "ada@example.edu", Name: "Ada Lovelace", Email: "ada@example.edu", Organization: "Example University"}},
		{
			Identity: Identity{Username: "grace@example.org", Name: "Grace Hopper", Email: "grace@example.org", Organization: "Example Institute"},
			Linked:   []Identity{{Username: "grace@example.com@idp.example"}},
		},
	}
	name := localUsername(username)
	if name == "" || slices.ContainsFunc(users, func(u User) bool { return u.Username == name }) {
		return users
	}
	person, _, _ := strings.Cut(name, "@")
	return slices.Insert(users, 0, User{Identity: Identity{Username: name, Name: person, Email: name, Organization: "This machine"}})
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
	case !slices.Contains([]string{"", statusUnused, statusUsed, statusPrivate, statusClosed}, i.Status):
		return fmt.Errorf("identity %q: unknown status %q", clip(i.Username), clip(i.Status))
	}
	if i.ID == "" {
		i.ID = Subject(i.Username)
	}
	id, err := uuid.Parse(i.ID)
	if err != nil || len(i.ID) != 36 {
		return fmt.Errorf("identity %q: %q is not a UUID", i.Username, clip(i.ID))
	}
	i.ID = id.String()
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
			return fmt.Errorf("identity %q: the user has this ID or username twice", identity.Username)
		}
		seen[identity.ID], seen[name] = true, true
	}
	return nil
}

// domainOf returns the part after the last @; usernames may have two.
func domainOf(username string) string {
	return strings.ToLower(username[strings.LastIndexByte(username, '@')+1:])
}

// clip shortens text from outside for use in messages.
func clip(text string) string {
	const limit = 64
	if len(text) <= limit {
		return text
	}
	return strings.ToValidUTF8(text[:limit], "") + "…"
}

// builtinScopes are those of every fabric and of Globus's own services.
var builtinScopes = []ScopeDef{
	{Scope: Scope, ResourceServer: ResourceServerID, Description: "Claim topics, log events and read them back"},
	{Scope: scopeOpenID, ResourceServer: authResourceServer, Description: "Know who you are"},
	{Scope: scopeEmail, ResourceServer: authResourceServer, Description: "See your e-mail address"},
	{Scope: scopeProfile, ResourceServer: authResourceServer, Description: "See your name, organization and identity provider"},
	{Scope: scopeManageProjects, ResourceServer: authResourceServer, Description: "Manage your projects at Globus, and the programs and services that are registered in them"},
	{Scope: scopeViewGroups, ResourceServer: groupsResourceServer, Description: "See which groups you are in"},
}

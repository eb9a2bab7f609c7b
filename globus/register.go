package globus

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"
)

// ManageProjectsScope is the scope of the access tokens with which an administrator of a project can
// register a service: [Client.CreateScope] and its neighbours need such a token. Globus Auth accepts
// it for 30 minutes after the login.
const ManageProjectsScope = "urn:globus:auth:scope:auth.globus.org:manage_projects"

// ScopeRegistration describes a scope of a service at Globus Auth.
type ScopeRegistration struct {
	Scope       string // the whole scope; Globus Auth sets it
	ClientID    string // the service that the scope belongs to
	Suffix      string // the last part of Scope: lower-case letters, digits and underscores
	Name        string // shown to people when they log in
	Description string // shown with Name

	// AllowsRefreshToken says whether clients can get refresh tokens for the scope, which keep
	// people signed in.
	AllowsRefreshToken bool
}

// scopeDocument is a scope as Globus Auth describes it.
type scopeDocument struct {
	Scope              string `json:"scope_string,omitempty"`
	ClientID           string `json:"client,omitempty"`
	Suffix             string `json:"scope_suffix,omitempty"`
	Name               string `json:"name"`
	Description        string `json:"description"`
	AllowsRefreshToken bool   `json:"allows_refresh_token"`
	Advertised         bool   `json:"advertised"`
}

func (d scopeDocument) registration() ScopeRegistration {
	return ScopeRegistration{
		Scope: clean(d.Scope, nil), ClientID: d.ClientID, Suffix: d.Scope[strings.LastIndexByte(d.Scope, '/')+1:],
		Name: clean(d.Name, nil), Description: clean(d.Description, nil), AllowsRefreshToken: d.AllowsRefreshToken,
	}
}

// scopeAnswer is a response with scopes. Globus Auth sends a list; its own SDK expects a single scope
// from a creation.
type scopeAnswer struct {
	Scope  *scopeDocument  `json:"scope"`
	Scopes []scopeDocument `json:"scopes"`
}

// find returns the scope with this name.
func (a scopeAnswer) find(scope string) (ScopeRegistration, bool) {
	if a.Scope != nil {
		a.Scopes = append(a.Scopes, *a.Scope)
	}
	for _, d := range a.Scopes {
		if d.Scope == scope {
			return d.registration(), true
		}
	}
	return ScopeRegistration{}, false
}

// ScopeOf returns the name of a service's scope. owner is the service's client ID, or a host name that
// is verified for the client.
func ScopeOf(owner, suffix string) string {
	return "https://auth.globus.org/scopes/" + owner + "/" + suffix
}

// FindScope looks up a scope. access is a token of an administrator with [ManageProjectsScope]. found
// is false if there is no such scope, or none that the administrator may see.
func (c *Client) FindScope(ctx context.Context, access Secret, scope string) (s ScopeRegistration, found bool, err error) {
	const op = "look up the scope"
	a, err := c.do(ctx, call{op: op, path: "/v2/api/scopes?" + url.Values{"scope_strings": {scope}}.Encode(), bearer: access, hide: []Secret{access}})
	if hasStatus(err, http.StatusNotFound) {
		return ScopeRegistration{}, false, nil
	}
	if err != nil {
		return ScopeRegistration{}, false, err
	}
	var doc scopeAnswer
	if json.Unmarshal(a.body, &doc) != nil {
		return ScopeRegistration{}, false, malformed(op, "the answer does not describe scopes")
	}
	s, found = doc.find(scope)
	return s, found, nil
}

// CreateScope creates a scope of the service s.ClientID, and returns it. access is a token of an
// administrator with [ManageProjectsScope]. The status of the [Error] is 403 if the owner of the token
// does not administer the service's project or has not logged in recently.
func (c *Client) CreateScope(ctx context.Context, access Secret, s ScopeRegistration) (ScopeRegistration, error) {
	const op = "create the scope"
	body, err := json.Marshal(map[string]any{"scope": scopeDocument{
		Suffix: s.Suffix, Name: s.Name, Description: s.Description, AllowsRefreshToken: s.AllowsRefreshToken,
	}})
	if err != nil {
		return ScopeRegistration{}, err
	}
	a, err := c.do(ctx, call{op: op, path: "/v2/api/clients/" + url.PathEscape(s.ClientID) + "/scopes", json: body, bearer: access, once: true, hide: []Secret{access}})
	if err != nil {
		return ScopeRegistration{}, err
	}
	var doc scopeAnswer
	if json.Unmarshal(a.body, &doc) == nil {
		if made, ok := doc.find(ScopeOf(s.ClientID, s.Suffix)); ok {
			return made, nil
		}
	}
	return ScopeRegistration{}, malformed(op, "the answer does not describe the new scope")
}

// HostOwner returns the ID of the client that a host name is verified for, or "". access is a token of
// an administrator with [ManageProjectsScope].
func (c *Client) HostOwner(ctx context.Context, access Secret, host string) (clientID string, err error) {
	const op = "look up the host name"
	a, err := c.do(ctx, call{op: op, path: "/v2/api/clients?" + url.Values{"fqdn": {host}}.Encode(), bearer: access, hide: []Secret{access}})
	if hasStatus(err, http.StatusNotFound) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var doc struct {
		Client struct {
			ID looseString `json:"id"`
		} `json:"client"`
	}
	if json.Unmarshal(a.body, &doc) != nil || !isUUID(string(doc.Client.ID)) {
		return "", malformed(op, "the answer does not describe a client")
	}
	return string(doc.Client.ID), nil
}

// VerifyHost has Globus Auth verify that a host name belongs to the client, which must have a secret.
// In DNS, there must be a TXT record at the name ID.HOST that contains the client's ID.
func (c *Client) VerifyHost(ctx context.Context, host string) error {
	const op = "verify the host name"
	if c.secret == nil {
		return &Error{Op: op, kind: ErrClientRefused, cause: errors.New("the client has no secret")}
	}
	body, err := json.Marshal(map[string]string{"fqdn": host})
	if err != nil {
		return err
	}
	_, err = c.do(ctx, call{op: op, path: "/v2/api/clients/" + url.PathEscape(c.clientID) + "/fqdns", json: body})
	return err
}

// hasStatus reports whether an error is a response of Globus Auth with this status.
func hasStatus(err error, status int) bool {
	var answered *Error
	return errors.As(err, &answered) && answered.Status == status && answered.json
}

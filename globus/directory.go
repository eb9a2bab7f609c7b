package globus

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	groupsResourceServer = "groups.api.globus.org" // in every environment, whatever the host
	groupsService        = "Globus Groups"
	groupsScope          = "urn:globus:auth:scope:groups.api.globus.org:view_my_groups_and_memberships"

	lookupTimeout    = 20 * time.Second // limits a lookup with all its attempts
	maxLookups       = 100              // identities in one request, as in Globus's own SDKs
	maxMembers       = 10_000           // active members of a group
	maxMembersBytes  = 16 << 20         // a response with that many members, and with others that left
	maxUsernameBytes = 256
)

// DirectoryConfig says where a [Directory] looks up, and as which client.
type DirectoryConfig struct {
	// Client is the service's own client. It must have a secret. Required.
	Client *Client

	// GroupsURL is the base URL of Globus Groups. Plain http is allowed only for loopback addresses.
	// Default: the one that belongs to the Client's issuer. If that is on a loopback address, the
	// issuer itself.
	GroupsURL string
}

// Directory looks up identities and the members of groups at Globus, as a service and not for a
// person. It keeps no results. It may be used concurrently.
//
// The errors of its methods match one of these values, or are ctx's error:
//
//   - [ErrNotFound]: there is no such identity or group.
//   - [ErrAmbiguous]: several identities have the username.
//   - [ErrMembersHidden]: the service may not see the members of the group. The text names the
//     identity that a manager of the group must add.
//   - [ErrTooManyMembers]: the group is larger than the Directory reads.
//   - [ErrUnavailable]: Globus is unreachable. Retry later.
//   - [ErrMisconfigured]: the response is unusable, or Globus rejects the service's own client.
//     Retrying does not help; tell the operators.
type Directory struct {
	client    *Client
	groupsURL string
	groups    *Source // the service's own tokens for Globus Groups
}

// Member is an active member of a group.
type Member struct {
	Subject  string
	Username string // to show; may be empty
	Role     string // "member", "manager" or "admin"
}

// NewDirectory returns a Directory. It does not use the network.
func NewDirectory(cfg DirectoryConfig) (*Directory, error) {
	switch {
	case cfg.Client == nil:
		return nil, errors.New("directory: the client is missing")
	case cfg.Client.secret == nil:
		return nil, errors.New("directory: the client has no secret")
	}
	if cfg.GroupsURL == "" {
		cfg.GroupsURL = groupsURL(cfg.Client.issuer)
	}
	base, err := parseIssuer(cfg.GroupsURL)
	if err != nil {
		return nil, fmt.Errorf("directory: the URL of Globus Groups: want one like https://groups.api.globus.org, or http on a loopback address (the issuer is %s)", cfg.Client.issuer)
	}
	return &Directory{
		client:    cfg.Client,
		groupsURL: base,
		groups:    cfg.Client.ClientCredentialsSource(groupsResourceServer, groupsScope),
	}, nil
}

// groupsURL returns the base URL of the Globus Groups that belongs to an issuer, or "" if it is
// unknown.
func groupsURL(issuer string) string {
	u, err := url.Parse(issuer)
	if err != nil {
		return ""
	}
	if ip := net.ParseIP(u.Hostname()); u.Hostname() == "localhost" || ip != nil && ip.IsLoopback() {
		return issuer
	}
	domain, ok := strings.CutPrefix(issuer, "https://auth.")
	if ok && domain == u.Host[len("auth."):] && (domain == "globus.org" || strings.HasSuffix(domain, ".globus.org") || strings.HasSuffix(domain, ".globuscs.info")) {
		return "https://groups.api." + domain
	}
	return ""
}

// String names the directory, without secrets.
func (d *Directory) String() string { return "Globus directory for " + d.client.String() }

// Lookup returns the identity that has this username. Upper and lower case do not matter. Callers
// should look at the Status: nobody can sign in with a closed identity, and nobody has signed in
// yet with an unused one.
func (d *Directory) Lookup(ctx context.Context, username string) (Identity, error) {
	const op = "look up identity"
	if !isUsername(username) {
		return Identity{}, &Error{Op: op, kind: ErrNotFound, Detail: fmt.Sprintf("%.100q is not a username, such as ada@example.edu", username)}
	}
	list, err := d.identities(ctx, op, "usernames", username)
	switch e := (*Error)(nil); {
	case errors.As(err, &e) && e.Status == http.StatusBadRequest && e.json:
		// Globus Auth knows better what a username is.
		return Identity{}, &Error{Op: op, Status: e.Status, Code: e.Code, Detail: e.Detail, RequestID: e.RequestID, kind: ErrNotFound}
	case err != nil:
		return Identity{}, err
	}
	list = slices.DeleteFunc(list, func(i Identity) bool { return lower(i.Username) != lower(username) })
	switch len(list) {
	case 0:
		return Identity{}, &Error{Op: op, kind: ErrNotFound, Detail: fmt.Sprintf("no identity has the username %q", username)}
	case 1:
		return list[0], nil
	}
	var subjects []string
	for _, i := range list[:min(len(list), 5)] {
		subjects = append(subjects, i.Subject)
	}
	return Identity{}, &Error{Op: op, kind: ErrAmbiguous,
		Detail: fmt.Sprintf("%d identities have the username %q, such as %s", len(list), username, strings.Join(subjects, ", "))}
}

// isUsername reports whether text has the form of a username at Globus.
func isUsername(text string) bool {
	at := strings.LastIndexByte(text, '@')
	return at > 0 && at < len(text)-1 && len(text) <= maxUsernameBytes &&
		!strings.ContainsFunc(text, func(r rune) bool { return !strconv.IsPrint(r) || r == ' ' || r == ',' || r == '\uFFFD' })
}

// lower lowers only ASCII letters. Full Unicode folding would make different names equal, such as
// one with the sign for Kelvin and one with a k.
func lower(text string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + ('a' - 'A')
		}
		return r
	}, text)
}

// Identities returns what Globus Auth knows of these subjects. Subjects that it does not know are
// missing in the result. Each hundred subjects are one request.
func (d *Directory) Identities(ctx context.Context, subjects []string) (map[string]Identity, error) {
	const op = "look up identities"
	subjects = slices.DeleteFunc(slices.Clone(subjects), func(s string) bool { return !isUUID(s) })
	slices.Sort(subjects)
	subjects = slices.Compact(subjects)
	found := make(map[string]Identity, len(subjects))
	for len(subjects) > 0 {
		some := subjects[:min(len(subjects), maxLookups)]
		subjects = subjects[len(some):]
		list, err := d.identities(ctx, op, "ids", strings.Join(some, ","))
		if err != nil {
			return nil, err
		}
		for _, i := range list {
			if slices.Contains(some, i.Subject) {
				found[i.Subject] = i
			}
		}
	}
	return found, nil
}

// identities sends one request.
func (d *Directory) identities(ctx context.Context, op, parameter, values string) ([]Identity, error) {
	var list []Identity
	err := d.ask(ctx, op, func(ctx context.Context) error {
		query := url.Values{parameter: {values}}.Encode()
		a, err := d.client.do(ctx, call{op: op, path: "/v2/api/identities?" + query, paced: true})
		if err == nil {
			list, err = parseIdentities(op, a.body)
		}
		return err
	})
	return list, err
}

// GroupMembers returns the active members of a group: those that were invited, have applied or have
// left are not among them. group is a UUID. The identity of the service must be a member of the group
// that may see the members.
func (d *Directory) GroupMembers(ctx context.Context, group string) ([]Member, error) {
	const op = "read members of group"
	group = lower(group)
	if !isUUID(group) {
		return nil, &Error{Op: op, kind: ErrNotFound, Detail: fmt.Sprintf("%.100q is not the ID of a group, a UUID", group)}
	}
	var members []Member
	err := d.ask(ctx, op, func(ctx context.Context) error {
		a, err := d.askGroups(ctx, op, "/v2/groups/"+group+"?include=memberships")
		if err == nil {
			members, err = parseMembers(op, group, a.body)
		}
		return err
	})
	e := (*Error)(nil)
	switch {
	case !errors.As(err, &e):
	case e.kind != ErrMembersHidden && e.service != groupsService: // about the service's token, not about the group
	case e.Status == http.StatusNotFound && e.json:
		return nil, &Error{Op: op, Status: e.Status, Code: e.Code, RequestID: e.RequestID, kind: ErrNotFound, Detail: "there is no group " + group}
	case e.Status == http.StatusForbidden && e.json || e.kind == ErrMembersHidden:
		return nil, &Error{Op: op, Status: e.Status, Code: e.Code, RequestID: e.RequestID, kind: ErrMembersHidden, Detail: d.invitation(group)}
	}
	return members, err
}

// invitation says what makes the members of a group visible to the service.
func (d *Directory) invitation(group string) string {
	return fmt.Sprintf("a manager of group %s must add the identity %s@clients.auth.globus.org as a manager, "+
		"or as a member if members may see the list of members", group, d.client.clientID)
}

// askGroups sends a request to Globus Groups. If it rejects the service's token, which it may have
// revoked, askGroups tries once more with another one.
func (d *Directory) askGroups(ctx context.Context, op, path string) (answer, error) {
	for again := false; ; again = true {
		token, err := d.groups.Token(ctx)
		if err != nil {
			return answer{}, fmt.Errorf("%s: %w", op, err)
		}
		a, err := d.client.do(ctx, call{
			op: op, groups: d.groupsURL, path: path, bearer: token.AccessToken, hide: []Secret{token.AccessToken},
			paced: true, maxBytes: maxMembersBytes,
		})
		if e := (*Error)(nil); !errors.As(err, &e) || e.Status != http.StatusUnauthorized || again {
			return a, err
		}
		d.groups.Refused(token.AccessToken)
	}
}

var errManyMembers = fmt.Errorf("the answer is larger than %d MiB", maxMembersBytes>>20)

var errLookupTimeout = fmt.Errorf("no answer within %v", lookupTimeout)

// ask limits the time of a lookup, and turns the errors of requests that the service makes for
// itself into those of a Directory. In particular, a rejection of the service's own token must not
// look like one of the token that its caller has sent.
func (d *Directory) ask(ctx context.Context, op string, do func(context.Context) error) error {
	run, cancel := context.WithTimeoutCause(ctx, lookupTimeout, errLookupTimeout)
	defer cancel()
	err := do(run)
	e := (*Error)(nil)
	switch {
	case err == nil:
		return nil
	case ctx.Err() == nil && context.Cause(run) == errLookupTimeout && !errors.As(err, &e):
		return &Error{Op: op, kind: ErrUnavailable, service: "Globus", cause: errLookupTimeout}
	case !errors.As(err, &e) || saysNothing(err):
		return err
	case e.kind == nil || e.kind == ErrClientRefused:
		return &misconfiguredError{err}
	case e.kind == ErrRefused || e.kind == ErrLoginRequired:
		own := *e
		own.kind = ErrMisconfigured
		return &own
	}
	return err
}

// elements decodes a JSON array and calls do for each element, so that a response with millions of
// tiny elements does not take many times its size in memory. It stops at an error.
func elements[T any](raw json.RawMessage, do func(T) error) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if start, err := dec.Token(); err != nil || start != json.Delim('[') {
		return errNoList
	}
	for dec.More() {
		var element T
		if dec.Decode(&element) != nil {
			return errNoList
		}
		if err := do(element); err != nil {
			return err
		}
	}
	return nil
}

// errNoList says that a JSON value is not a list, or not one of objects.
var errNoList = errors.New("no list")

// identityDocument is an identity in a response of Globus Auth.
type identityDocument struct {
	ID           looseString `json:"id"`
	Username     looseString `json:"username"`
	Name         looseString `json:"name"`
	Email        looseString `json:"email"`
	Organization looseString `json:"organization"`
	Status       looseString `json:"status"`
}

// username returns a username from a response, or "" if it has characters that cannot be shown.
// Without these, it could look like the username of somebody else.
func (s looseString) username() string {
	if shown := clean(string(s), nil); shown == string(s) {
		return shown
	}
	return ""
}

// parseIdentities parses the response to a lookup. Each identity is in the result once.
func parseIdentities(op string, body []byte) ([]Identity, error) {
	var doc struct {
		Identities json.RawMessage `json:"identities"`
	}
	var list []Identity
	if json.Unmarshal(body, &doc) != nil {
		return nil, malformed(op, "the answer has no list of identities")
	}
	err := elements(doc.Identities, func(i identityDocument) error {
		subject, err := subjectOf(op, i.ID)
		switch {
		case err != nil:
			return err
		case slices.ContainsFunc(list, func(have Identity) bool { return have.Subject == subject }):
			return nil
		case len(list) == maxLookups:
			return malformed(op, fmt.Sprintf("the answer has more than %d identities", maxLookups))
		}
		list = append(list, Identity{
			Subject:      subject,
			Username:     i.Username.username(),
			Name:         clean(string(i.Name), nil),
			Email:        clean(string(i.Email), nil),
			Organization: clean(string(i.Organization), nil),
			Status:       word(i.Status),
		})
		return nil
	})
	switch {
	case err == errNoList:
		return nil, malformed(op, "the answer has no list of identities")
	case err != nil:
		return nil, err
	}
	return list, nil
}

// membership is a membership in a response of Globus Groups.
type membership struct {
	GroupID  looseString `json:"group_id"`
	Identity looseString `json:"identity_id"`
	Username looseString `json:"username"`
	Role     looseString `json:"role"`
	Status   looseString `json:"status"`
}

// parseMembers returns the active members in a description of a group. Each identity is in the
// result once. Rights depend on this list. So one active member who cannot be read makes the whole
// response unusable.
func parseMembers(op, group string, body []byte) ([]Member, error) {
	var doc struct {
		ID          looseString     `json:"id"`
		Memberships json.RawMessage `json:"memberships"`
	}
	switch err := json.Unmarshal(body, &doc); {
	case err != nil || doc.ID == "":
		return nil, malformed(op, "the answer describes no group")
	case lower(string(doc.ID)) != group:
		return nil, malformed(op, fmt.Sprintf("the answer describes another group than %s", group))
	case len(doc.Memberships) == 0 || string(doc.Memberships) == "null":
		return nil, &Error{Op: op, Status: http.StatusOK, kind: ErrMembersHidden}
	}
	var members []Member
	seen := map[string]bool{}
	err := elements(doc.Memberships, func(m membership) error {
		if m.Status != "active" {
			return nil
		}
		subject, err := subjectOf(op, m.Identity)
		switch {
		case err != nil:
			return err
		case m.GroupID != "" && lower(string(m.GroupID)) != group:
			return malformed(op, "the answer has a member of another group")
		case seen[subject]:
			return nil
		case len(members) == maxMembers:
			return &Error{Op: op, Status: http.StatusOK, kind: ErrTooManyMembers, Detail: fmt.Sprintf("group %s has more than %d active members", group, maxMembers)}
		}
		seen[subject] = true
		members = append(members, Member{Subject: subject, Username: m.Username.username(), Role: word(m.Role)})
		return nil
	})
	switch {
	case err == errNoList:
		return nil, malformed(op, "the answer has no list of members")
	case err != nil:
		return nil, err
	}
	return members, nil
}

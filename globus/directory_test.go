package globus_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

const (
	groupID   = "00000000-0000-4000-8000-0000000000d0"
	grace     = "grace@example.org"
	graceLink = "grace@example.com@idp.example"
	groupPath = "/v2/groups/{id}" // in the request log of globusdev
	tokenPath = "/v2/oauth2/token"
)

func newDirectory(t *testing.T, client *globus.Client) *globus.Directory {
	t.Helper()
	d, err := globus.NewDirectory(globus.DirectoryConfig{Client: client})
	testkit.Must(t, err)
	return d
}

// TestLookup looks identities up at globusdev.
func TestLookup(t *testing.T) {
	d := newDev(t)
	dir := newDirectory(t, d.confidential(t, globusdev.ResourceServerID))
	for username, want := range map[string]string{
		ada: globusdev.Subject(ada), "ADA@Example.EDU": globusdev.Subject(ada), grace: globusdev.Subject(grace), graceLink: globusdev.Subject(graceLink),
		globusdev.ServiceClientID + "@clients.auth.globus.org": globusdev.ServiceClientID,
	} {
		id, err := dir.Lookup(t.Context(), username)
		if err != nil || id.Subject != want || !strings.EqualFold(id.Username, username) || id.Status == "" {
			t.Errorf("Lookup(%q) = %+v, %v, want %s", username, id, err, want)
		}
	}
	for name, username := range map[string]string{
		"unknown": "nobody@example.edu", "empty": "", "no domain": "ada", "an empty domain": "ada@", "no name": "@example.edu", "a list": ada + "," + grace,
		"a space": "ada @example.edu", "a newline": ada + "\n", "a subject": globusdev.Subject(ada), "long": strings.Repeat("x", 300) + "@example.edu",
		"not UTF-8": "ada\xff@example.edu", "an invisible character": "ada\u200b@example.edu", "a parameter": "nobody@example.edu&ids=" + globusdev.Subject(ada),
	} {
		_, err := dir.Lookup(t.Context(), username)
		checkErr(t, "Lookup: "+name, err, globus.ErrNotFound, "look up identity: not found at Globus: ")
		if text := err.Error(); len(text) > 700 || strings.ContainsAny(text, "\n\u200b") {
			t.Errorf("%s: not fit to be shown: %q", name, text)
		}
	}
	status := func(username, want string) {
		t.Helper()
		if id, err := dir.Lookup(t.Context(), username); err != nil || id.Status != want {
			t.Errorf("Lookup(%q) = %+v, %v, want the status %s", username, id, err, want)
		}
	}
	status(ada, "unused")
	devLogin(t, d)
	status(ada, "used")
	_, err := d.AddUser(globusdev.User{Identity: globusdev.Identity{Username: "mary@example.edu", Name: "Mary", Status: "private"}})
	testkit.Must(t, err)
	status("mary@example.edu", "private")

	subjects := []string{globusdev.Subject(ada), globusdev.Subject(graceLink), globusdev.Subject("nobody@example.edu"), "x", "", globusdev.Subject(ada)}
	found, err := dir.Identities(t.Context(), subjects)
	if err != nil || len(found) != 2 || found[subjects[0]].Username != ada || found[subjects[0]].Name != "Ada Lovelace" || found[subjects[1]].Username != graceLink {
		t.Errorf("Identities = %+v, %v, want Ada and Grace's other identity", found, err)
	}
	before := d.count("/v2/api/identities", "")
	many := make([]string, 0, 251)
	for i := range 250 {
		many = append(many, globusdev.Subject(fmt.Sprint(i, "@example.edu")))
	}
	found, err = dir.Identities(t.Context(), append(many, globusdev.Subject(grace)))
	if n := d.count("/v2/api/identities", "") - before; err != nil || len(found) != 1 || n != 3 {
		t.Errorf("Identities of 251 subjects = %+v, %v after %d requests, want Grace after 3", found, err, n)
	}
	if found, err := dir.Identities(t.Context(), nil); err != nil || len(found) != 0 {
		t.Errorf("Identities of nobody = %v, %v", found, err)
	}
	if n := d.count(tokenPath, ""); n != 0 {
		t.Errorf("%d requests for tokens: a lookup needs none", n)
	}
}

// TestGroupMembers reads the members of a group at globusdev, from the day on which nobody has heard
// of the service.
func TestGroupMembers(t *testing.T) {
	d := newDev(t)
	dir := newDirectory(t, d.confidential(t, globusdev.ResourceServerID))
	group, err := d.AddGroup(globusdev.Group{Name: "Weather"})
	testkit.Must(t, err)
	set := func(identity, role, status string) {
		t.Helper()
		testkit.Must(t, d.SetMember(globusdev.GroupMember{Group: group, Identity: identity, Role: role, Status: status}))
	}
	hidden := func(when string) {
		t.Helper()
		_, err := dir.GroupMembers(t.Context(), group)
		checkErr(t, when, err, globus.ErrMembersHidden, "a manager of group "+group+" must add the identity "+globusdev.ResourceServerID+"@clients.auth.globus.org as a manager")
	}
	for name, id := range map[string]string{"unknown": groupID, "not a UUID": "weather", "empty": "", "a path": "../" + group, "hostile": "\n" + strings.Repeat("x", 1000)} {
		_, err := dir.GroupMembers(t.Context(), id)
		checkErr(t, "GroupMembers: "+name, err, globus.ErrNotFound, "read members of group: not found at Globus: ")
		if len(err.Error()) > 300 || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: not fit to be shown: %q", name, err)
		}
	}
	hidden("not a member")
	set(globusdev.ResourceServerID, "member", "pending")
	hidden("pending")
	set(globusdev.ResourceServerID, "member", "active")
	hidden("a member who may not see the others")
	set(globusdev.ResourceServerID, "manager", "active")
	for identity, status := range map[string]string{ada: "active", grace: "invited", graceLink: "removed", globusdev.ServiceClientID: "active"} {
		set(identity, "member", status)
	}
	want := []globus.Member{
		{Subject: globusdev.Subject(ada), Username: ada, Role: "member"},
		{Subject: globusdev.ResourceServerID, Username: globusdev.ResourceServerID + "@clients.auth.globus.org", Role: "manager"},
		{Subject: globusdev.ServiceClientID, Username: globusdev.ServiceClientID + "@clients.auth.globus.org", Role: "member"},
	}
	check := func(when string) {
		t.Helper()
		got, err := dir.GroupMembers(t.Context(), strings.ToUpper(group))
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: GroupMembers = %+v, %v, want %+v", when, got, err, want)
		}
	}
	check("as a manager")
	if n := d.count(tokenPath, "client_credentials"); n != 1 {
		t.Errorf("%d requests for tokens, want 1", n)
	}
	testkit.Must(t, d.RevokeAll(globusdev.ResourceServerID))
	check("after the token was revoked")
	if n := d.count(tokenPath, "client_credentials"); n != 2 {
		t.Errorf("%d requests for tokens, want 2", n)
	}
	set(ada, "admin", "active")
	set(globusdev.ServiceClientID, "member", "left")
	want = []globus.Member{{Subject: globusdev.Subject(ada), Username: ada, Role: "admin"}, want[1]}
	check("after somebody left")

	testkit.Must(t, d.FailNext(1, globusdev.Failure{Path: groupPath, Status: 503, RetryAfter: time.Hour}))
	_, err = dir.GroupMembers(t.Context(), group)
	checkErr(t, "GroupMembers during an outage", err, globus.ErrUnavailable, "read members of group: cannot reach Globus Groups: status 503")
	testkit.Must(t, d.FailNext(1, globusdev.Failure{Path: groupPath, Drop: true}))
	check("after a lost connection")
	testkit.Must(t, d.RemoveGroup(group))
	_, err = dir.GroupMembers(t.Context(), group)
	checkErr(t, "GroupMembers of a removed group", err, globus.ErrNotFound, "there is no group "+group)
}

// TestDirectoryOfAWrongClient uses a client whose secret is wrong.
func TestDirectoryOfAWrongClient(t *testing.T) {
	d := newDev(t)
	dir := newDirectory(t, d.native(t, func(cfg *globus.Config) {
		cfg.ClientID, cfg.ClientSecret = globusdev.ResourceServerID, "canary+wrong/="
	}))
	_, members := dir.GroupMembers(t.Context(), groupID)
	_, lookup := dir.Lookup(t.Context(), ada)
	_, identities := dir.Identities(t.Context(), []string{adaSubject})
	for name, err := range map[string]error{"GroupMembers": members, "Lookup": lookup, "Identities": identities} {
		if !errors.Is(err, globus.ErrMisconfigured) || !errors.Is(err, globus.ErrClientRefused) || errors.Is(err, globus.ErrRefused) || shows(err.Error()) != "" {
			t.Errorf("%s = %v, want that Globus refuses the service", name, err)
		}
	}
}

func TestNewDirectory(t *testing.T) {
	for name, c := range map[string]struct {
		issuer, groups string
		host           string // that the request for a group goes to; "" if NewDirectory fails
	}{
		"production":             {"", "", "https://groups.api.globus.org"},
		"preview":                {"https://auth.preview.globus.org/", "", "https://groups.api.preview.globus.org"},
		"integration":            {"https://auth.integration.globuscs.info", "", "https://groups.api.integration.globuscs.info"},
		"loopback":               {"http://127.0.0.1:9090", "", "http://127.0.0.1:9090"},
		"localhost":              {"http://localhost:9090", "", "http://localhost:9090"},
		"another":                {"https://auth.globus.example", "https://groups.globus.example/", "https://groups.globus.example"},
		"another, unknown":       {"https://auth.globus.example", "", ""},
		"a similar name":         {"https://auth.notglobus.org", "", ""},
		"another service":        {"https://app.globus.org", "", ""},
		"another port":           {"https://auth.globus.org:444", "", ""},
		"with a path":            {"https://auth.globus.org/x.globus.org", "", ""},
		"with a path of a group": {"https://auth.evil.example/.globus.org", "", ""},
		"plain http":             {"", "http://groups.api.globus.org", ""},
		"with a password":        {"", "https://canary:canary@groups.api.globus.org", ""},
		"no URL":                 {"", "groups", ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := &wire{}
			hosts := []string{}
			client := w.client(t, confidential, func(cfg *globus.Config) {
				cfg.Issuer = c.issuer
				cfg.HTTPClient = &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
					hosts = append(hosts, r.URL.Scheme+"://"+r.URL.Host)
					w.handler = answers(ok(document(tokenAnswer("groups.api.globus.org", "canary-access", ""))))
					return w.RoundTrip(r)
				})}
			})
			dir, err := globus.NewDirectory(globus.DirectoryConfig{Client: client, GroupsURL: c.groups})
			if (err == nil) != (c.host != "") || err != nil && shows(err.Error()) != "" {
				t.Fatalf("NewDirectory = %v, want an error: %t", err, c.host == "")
			}
			if err != nil {
				return
			}
			_, err = dir.GroupMembers(t.Context(), groupID)
			checkErr(t, "GroupMembers", err, globus.ErrMisconfigured, "describes no group")
			if !slices.Equal(hosts, []string{client.Issuer(), c.host}) {
				t.Errorf("requests to %q, want %s and %s", hosts, client.Issuer(), c.host)
			}
		})
	}
	for name, cfg := range map[string]globus.DirectoryConfig{"no client": {}, "no secret": {Client: (&wire{}).client(t)}} {
		if _, err := globus.NewDirectory(cfg); err == nil {
			t.Errorf("NewDirectory with %s = nil", name)
		}
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// directory is a handler for the requests of a Directory.
type directory struct {
	tokens, identities, group http.Handler
}

func (d *directory) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	next := d.identities
	switch {
	case r.URL.Path == tokenPath:
		next = d.tokens
		if next == nil {
			next = answers(ok(document(tokenAnswer("groups.api.globus.org", "canary-access", ""))))
		}
	case strings.HasPrefix(r.URL.Path, "/v2/groups/"):
		next = d.group
	}
	next.ServeHTTP(w, r)
}

func identityJSON(id, username string) string {
	return document(map[string]any{"id": id, "username": username, "name": nil, "email": nil, "status": "used"})
}

func identitiesJSON(list ...string) string { return `{"identities":[` + strings.Join(list, ",") + `]}` }

// TestHostileIdentities sends responses that Globus Auth does not send.
func TestHostileIdentities(t *testing.T) {
	ofBob := identityJSON(bobSubject, "bob@example.edu")
	for name, c := range map[string]struct {
		answer reply
		want   error
		text   string
	}{
		"good":                 {ok(identitiesJSON(identityJSON(adaSubject, ada))), nil, ""},
		"another case":         {ok(identitiesJSON(identityJSON(adaSubject, "Ada@EXAMPLE.edu"))), nil, ""},
		"with others":          {ok(identitiesJSON(ofBob, identityJSON(adaSubject, ada))), nil, ""},
		"twice":                {ok(identitiesJSON(identityJSON(adaSubject, ada), identityJSON(adaSubject, ada))), nil, ""},
		"wrong types":          {ok(`{"identities":[{"id":"` + adaSubject + `","username":"` + ada + `","name":{"x":[]},"email":7,"status":["x"]}],"included":7}`), nil, ""},
		"none":                 {ok(identitiesJSON()), globus.ErrNotFound, `no identity has the username "` + ada + `"`},
		"only another":         {ok(identitiesJSON(ofBob)), globus.ErrNotFound, ""},
		"only a similar one":   {ok(identitiesJSON(identityJSON(adaSubject, "ada@example.edu.example"))), globus.ErrNotFound, ""},
		"an invisible letter":  {ok(identitiesJSON(identityJSON(adaSubject, "ad\u200ba@example.edu"))), globus.ErrNotFound, ""},
		"null names":           {ok(`{"identities":[{"id":"` + adaSubject + `","username":null}]}`), globus.ErrNotFound, ""},
		"not a username":       {status(400, `{"errors":[{"code":"BAD","id":"req-1","detail":"no\u001b username"}]}`), globus.ErrNotFound, "no username"},
		"two":                  {ok(identitiesJSON(identityJSON(adaSubject, ada), identityJSON(bobSubject, "ADA@example.edu"))), globus.ErrAmbiguous, "2 identities have the username \"" + ada + "\", such as " + adaSubject + ", " + bobSubject},
		"null":                 {ok(`{"identities":null}`), globus.ErrMisconfigured, "no list of identities"},
		"missing":              {ok(`{}`), globus.ErrMisconfigured, "no list of identities"},
		"an object":            {ok(`{"identities":{}}`), globus.ErrMisconfigured, "no list of identities"},
		"a bare list":          {ok(`[` + identityJSON(adaSubject, ada) + `]`), globus.ErrMisconfigured, "no list of identities"},
		"numbers":              {ok(`{"identities":[1,2]}`), globus.ErrMisconfigured, "no list of identities"},
		"no subject":           {ok(`{"identities":[{"username":"` + ada + `"}]}`), globus.ErrMisconfigured, "no subject"},
		"a subject of no form": {ok(identitiesJSON(identityJSON("User:ada\n", ada))), globus.ErrMisconfigured, "not a UUID"},
		"too many":             {ok(identitiesJSON(manyIdentities(101)...)), globus.ErrMisconfigured, "more than 100 identities"},
		"too large":            {ok(identitiesJSON(ofBob) + strings.Repeat(" ", 1<<20)), globus.ErrMisconfigured, "too large"},
		"empty":                {ok(""), globus.ErrMisconfigured, ""},
		"a web page":           {ok(html), globus.ErrMisconfigured, "web page"},
		"a redirect":           {reply{302, "", http.Header{"Location": {"https://evil.example/v2/api/identities"}}}, globus.ErrMisconfigured, `redirects to "https://evil.example"`},
		"no such endpoint":     {status(404, `{"errors":[{"code":"NOT_FOUND"}]}`), globus.ErrMisconfigured, "status 404"},
		"forbidden":            {status(403, `{"errors":[{"code":"FORBIDDEN","detail":"no"}]}`), globus.ErrMisconfigured, "status 403 FORBIDDEN: no"},
		"an error with 200":    {ok(`{"identities":[],"errors":[{"code":"ODD"},7]}`), globus.ErrMisconfigured, "ODD"},
		"overloaded":           {after(status(429, `{"errors":[{"code":"SLOW"}]}`), "5"), globus.ErrUnavailable, "status 429 SLOW"},
		"an outage":            {after(status(503, html), "3600"), globus.ErrUnavailable, "look up identity: cannot reach Globus Auth: status 503"},
		"the secret, repeated": {status(403, `{"error":"x","error_description":"`+serviceSecret+` is wrong"}`), globus.ErrMisconfigured, "[redacted] is wrong"},
	} {
		t.Run(name, func(t *testing.T) {
			w := &wire{handler: &directory{identities: answers(c.answer)}}
			id, err := newDirectory(t, w.client(t, confidential)).Lookup(t.Context(), ada)
			checkErr(t, "Lookup", err, c.want, c.text)
			if err == nil && (id.Subject != adaSubject || !strings.EqualFold(id.Username, ada)) || err != nil && id.Subject != "" {
				t.Errorf("Lookup = %+v, %v", id, err)
			}
			if err != nil && (shows(err.Error()) != "" || strings.Contains(err.Error(), "\x1b")) {
				t.Errorf("not fit to be shown: %q", err)
			}
			if n := len(w.sent()); n != 1 {
				t.Errorf("%d requests, want 1", n)
			}
		})
	}
	// The answer has an identity that was not asked for, and an endless name.
	w := &wire{handler: &directory{identities: answers(ok(identitiesJSON(ofBob, identityJSON(adaSubject, strings.Repeat("ada", 1000)))))}}
	found, err := newDirectory(t, w.client(t, confidential)).Identities(t.Context(), []string{adaSubject})
	if got := found[adaSubject]; err != nil || len(found) != 1 || got.Username != "" {
		t.Errorf("Identities = %+v, %v, want Ada without a username", found, err)
	}
}

func manyIdentities(n int) (list []string) {
	for i := range n {
		list = append(list, identityJSON(fmt.Sprintf("00000000-0000-4000-8000-%012d", i), ada))
	}
	return list
}

func memberJSON(identity any, username any, status any) map[string]any {
	return map[string]any{"group_id": groupID, "identity_id": identity, "username": username, "role": "member", "status": status, "membership_fields": map[string]any{}}
}

func groupJSON(memberships any) string {
	return document(map[string]any{"id": groupID, "name": "Weather", "memberships": memberships})
}

func manyMembers(n int, status string) []any {
	list := make([]any, n)
	for i := range list {
		list[i] = memberJSON(fmt.Sprintf("00000000-0000-4000-8000-%012d", i), strings.Repeat("x", 100)+"@example.edu", status)
	}
	return list
}

// TestHostileGroups sends responses that Globus Groups does not send.
func TestHostileGroups(t *testing.T) {
	asAda := memberJSON(adaSubject, ada, "active")
	other := memberJSON(bobSubject, "bob@example.edu", "active")
	other["group_id"] = adaSubject
	type want struct {
		members int
		err     error
		text    string
	}
	for name, c := range map[string]struct {
		answer reply
		want
	}{
		"good":              {ok(groupJSON([]any{asAda, memberJSON(bobSubject, nil, "active")})), want{2, nil, ""}},
		"no members":        {ok(groupJSON([]any{})), want{0, nil, ""}},
		"not active":        {ok(groupJSON([]any{asAda, memberJSON(nil, nil, "invited"), memberJSON(bobSubject, "b@x", "Active"), memberJSON(bobSubject, "b@x", nil), nil})), want{1, nil, ""}},
		"twice":             {ok(groupJSON([]any{asAda, asAda})), want{1, nil, ""}},
		"names of any type": {ok(groupJSON([]any{memberJSON(adaSubject, []any{1}, "active")})), want{1, nil, ""}},
		"10,000":            {ok(groupJSON(append(manyMembers(10_000, "active"), memberJSON(bobSubject, nil, "left")))), want{10_000, nil, ""}},
		"many that left":    {ok(groupJSON(append(manyMembers(30_000, "left"), asAda))), want{1, nil, ""}},

		"no list":               {ok(document(map[string]any{"id": groupID})), want{0, globus.ErrMembersHidden, "must add the identity " + serviceID + "@clients.auth.globus.org"}},
		"null":                  {ok(groupJSON(nil)), want{0, globus.ErrMembersHidden, "must add the identity"}},
		"forbidden":             {status(403, `{"errors":[{"code":"FORBIDDEN","id":"req-1"}]}`), want{0, globus.ErrMembersHidden, "must add the identity"}},
		"no such group":         {status(404, `{"errors":[{"code":"NOT_FOUND","id":"req-1"}]}`), want{0, globus.ErrNotFound, "there is no group " + groupID + " (request req-1)"}},
		"10,001":                {ok(groupJSON(manyMembers(10_001, "active"))), want{0, globus.ErrTooManyMembers, "more than 10000 active members"}},
		"an object":             {ok(groupJSON(map[string]any{})), want{0, globus.ErrMisconfigured, "no list of members"}},
		"numbers":               {ok(groupJSON([]any{asAda, 7})), want{0, globus.ErrMisconfigured, "no list of members"}},
		"no subject":            {ok(groupJSON([]any{asAda, memberJSON(nil, "bob", "active")})), want{0, globus.ErrMisconfigured, "no subject"}},
		"a subject of no form":  {ok(groupJSON([]any{memberJSON("*", "bob", "active")})), want{0, globus.ErrMisconfigured, "not a UUID"}},
		"another group":         {ok(strings.Replace(groupJSON([]any{asAda}), `"id":"`+groupID, `"id":"`+adaSubject, 1)), want{0, globus.ErrMisconfigured, "another group"}},
		"a member of another":   {ok(groupJSON([]any{other})), want{0, globus.ErrMisconfigured, "member of another group"}},
		"no group":              {ok(`{"memberships":[]}`), want{0, globus.ErrMisconfigured, "describes no group"}},
		"a list":                {ok(`[]`), want{0, globus.ErrMisconfigured, "describes no group"}},
		"empty":                 {ok(""), want{0, globus.ErrMisconfigured, "describes no group"}},
		"too large":             {ok(groupJSON([]any{asAda}) + strings.Repeat(" ", 16<<20)), want{0, globus.ErrTooManyMembers, "read members of group: too many members: the answer is larger than 16 MiB"}},
		"an error, too large":   {status(403, `{"error":"x"}`+strings.Repeat(" ", 1<<20)), want{0, globus.ErrMisconfigured, "too large"}},
		"a page for 404":        {status(404, html), want{0, globus.ErrMisconfigured, "web page"}},
		"a page for 403":        {status(403, html), want{0, globus.ErrMisconfigured, "web page"}},
		"a redirect":            {reply{307, "", http.Header{"Location": {"https://evil.example/"}}}, want{0, globus.ErrMisconfigured, `redirects to "https://evil.example"`}},
		"a bad request":         {status(400, `{"errors":[{"code":"BAD","detail":"canary-access"}]}`), want{0, globus.ErrMisconfigured, "status 400 BAD: [redacted]"}},
		"invalid_grant":         {status(400, `{"error":"invalid_grant"}`), want{0, globus.ErrMisconfigured, "invalid_grant"}},
		"overloaded":            {after(status(429, `{}`), "5"), want{0, globus.ErrUnavailable, "cannot reach Globus Groups: status 429"}},
		"an outage":             {after(status(502, html), "3600"), want{0, globus.ErrUnavailable, "cannot reach Globus Groups: status 502"}},
		"millions of elements":  {ok(`{"id":"` + groupID + `","memberships":[` + strings.Repeat("{},", 1_000_000) + `{}]}`), want{0, nil, ""}},
		"millions of no errors": {ok(`{"id":"` + groupID + `","errors":[` + strings.Repeat("{},", 1_000_000) + `{}]}`), want{0, globus.ErrMisconfigured, "status 200"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := &wire{handler: &directory{group: answers(c.answer)}}
			members, err := newDirectory(t, w.client(t, confidential)).GroupMembers(t.Context(), groupID)
			checkErr(t, "GroupMembers", err, c.err, c.text)
			if len(members) != c.members || err != nil && shows(err.Error()) != "" {
				t.Errorf("GroupMembers = %d members, %v, want %d", len(members), err, c.members)
			}
			if n := len(w.sent()); n != 2 {
				t.Errorf("%d requests, want one for a token and one for the group", n)
			}
		})
	}
}

// TestGroupToken is about the service's own token. What goes wrong with it must not look like an
// answer about the group, or like the rejection of a token that a caller has sent.
func TestGroupToken(t *testing.T) {
	good := ok(groupJSON([]any{memberJSON(adaSubject, ada, "active")}))
	refused := status(401, `{"errors":[{"code":"UNAUTHORIZED","detail":"canary-access is bad"}]}`)
	w := &wire{handler: &directory{group: answers(refused, good), tokens: answers(
		ok(document(tokenAnswer("groups.api.globus.org", "canary-first", ""))), ok(document(tokenAnswer("groups.api.globus.org", "canary-second", ""))))}}
	dir := newDirectory(t, w.client(t, confidential))
	if members, err := dir.GroupMembers(t.Context(), groupID); err != nil || len(members) != 1 {
		t.Errorf("GroupMembers = %v, %v", members, err)
	}
	bearers := []string{}
	for _, r := range w.sent() {
		if strings.HasPrefix(r.path, "/v2/groups/") {
			bearers = append(bearers, r.header.Get("Authorization"))
		}
	}
	if want := []string{"Bearer canary-first", "Bearer canary-second"}; !slices.Equal(bearers, want) {
		t.Errorf("tokens %q, want %q", bearers, want)
	}

	for name, c := range map[string]struct {
		tokens, group reply
		text          string
	}{
		"always refused":    {ok(document(tokenAnswer("groups.api.globus.org", "canary-access", ""))), refused, "read members of group: unexpected answer: status 401 UNAUTHORIZED: [redacted] is bad"},
		"no client":         {status(401, globusUnauthorized), good, "Basic auth failed"},
		"no scope":          {status(400, `{"error":"invalid_scope"}`), good, "invalid_scope"},
		"no grant":          {status(400, `{"error":"invalid_grant"}`), good, "invalid_grant"},
		"forbidden":         {status(403, `{"error":"forbidden"}`), good, "status 403"},
		"not found":         {status(404, `{"error":"not_found"}`), good, "status 404"},
		"for another":       {ok(document(tokenAnswer(topics, "canary-access", ""))), good, "gave no token for groups.api.globus.org"},
		"not made of ASCII": {ok(document(tokenAnswer("groups.api.globus.org", "canary access", ""))), good, "characters that no token has"},
	} {
		t.Run(name, func(t *testing.T) {
			w := &wire{handler: &directory{group: answers(c.group), tokens: answers(c.tokens)}}
			_, err := newDirectory(t, w.client(t, confidential)).GroupMembers(t.Context(), groupID)
			if !errors.Is(err, globus.ErrMisconfigured) || !strings.Contains(err.Error(), c.text) || shows(err.Error()) != "" {
				t.Errorf("GroupMembers = %v, want ErrMisconfigured, with %q", err, c.text)
			}
			for _, wrong := range []error{globus.ErrRefused, globus.ErrLoginRequired, globus.ErrNotFound, globus.ErrMembersHidden, globus.ErrUnavailable} {
				if errors.Is(err, wrong) {
					t.Errorf("GroupMembers = %v, which is %q", err, wrong)
				}
			}
		})
	}
}

// TestSlowDirectory checks how long a lookup takes at most, and that it ends with its caller.
func TestSlowDirectory(t *testing.T) {
	hang := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	for name, h := range map[string]*directory{
		"Globus Auth":   {identities: hang, tokens: hang},
		"Globus Groups": {identities: hang, group: hang},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := newDirectory(t, (&wire{handler: h}).client(t, confidential))
				calls := map[string]func(context.Context) error{
					"Lookup":       func(ctx context.Context) error { _, err := dir.Lookup(ctx, ada); return err },
					"Identities":   func(ctx context.Context) error { _, err := dir.Identities(ctx, []string{adaSubject}); return err },
					"GroupMembers": func(ctx context.Context) error { _, err := dir.GroupMembers(ctx, groupID); return err },
				}
				for call, do := range calls {
					began := time.Now()
					err := do(t.Context())
					checkErr(t, call, err, globus.ErrUnavailable, "no answer within 20s")
					if took := time.Since(began); took != 20*time.Second {
						t.Errorf("%s took %v, want 20 s", call, took)
					}
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					if err := do(ctx); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, globus.ErrUnavailable) {
						t.Errorf("%s with a context of a second = %v", call, err)
					}
					cancel()
				}
				time.Sleep(time.Minute) // until the request for a token has ended
			})
		})
	}
}

// TestIdentityStatusIsOptional keeps the status out of token files and other JSON in which there is
// none.
func TestIdentityStatusIsOptional(t *testing.T) {
	text, err := json.Marshal(globus.Identity{Subject: adaSubject})
	if want := `{"subject":"` + adaSubject + `","username":""}`; err != nil || string(text) != want {
		t.Errorf("Marshal = %s, %v, want %s", text, err, want)
	}
}

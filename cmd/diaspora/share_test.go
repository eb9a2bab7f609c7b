package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/terminal"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

const (
	graceID   = "2268fe43-ef48-54e0-8aeb-e0dc24146888"
	melID     = "3368fe43-ef48-54e0-8aeb-e0dc24146888"
	serviceID = "4468fe43-ef48-54e0-8aeb-e0dc24146888"
	labID     = "6f2c0a52-1d3b-4c57-9c0e-3a4b5c6d7e8f"
)

// registry is an ACL endpoint that knows people by their usernames, with one topic, weather, of the person at the desk.
type registry struct {
	*desk
	me     string
	grants []diaspora.Grant
	calls  []string // requests that change something, and look-ups
}

// newRegistry returns a desk that uses such an endpoint.
func newRegistry(t *testing.T) *registry {
	t.Helper()
	d := newDesk(t)
	cfg, err := d.config()
	testkit.Must(t, err)
	r := &registry{desk: d, me: cfg.Identity.Subject}
	endpoint := httptest.NewServer(r)
	t.Cleanup(endpoint.Close)
	profiles := diaspora.OpenProfiles(d.vars["DIASPORA_CONFIG_DIR"])
	profile, err := profiles.Load("home")
	testkit.Must(t, err)
	profile.URL = endpoint.URL
	testkit.Must(t, profiles.Save(profile))
	return r
}

func (r *registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, _ := io.ReadAll(req.Body)
	answer := func(v any) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(v)
	}
	topic := diaspora.Topic{Name: "weather", Owner: r.me, Partitions: 1, RetentionMS: 7 * 86400_000, Read: true, Write: true, Manage: true}
	path := strings.TrimPrefix(req.URL.Path, "/v1/")
	if req.Method != http.MethodGet || strings.HasPrefix(path, "identities/") {
		r.calls = append(r.calls, strings.TrimSpace(req.Method+" "+path+" "+string(body)))
	}
	switch {
	case path == "identity":
		answer(globus.Identity{Subject: r.me, Username: "ada@example.edu"})
	case path == "identities/grace@example.org", path == "identities/Grace@Example.org":
		answer(globus.Identity{Subject: graceID, Username: "grace@example.org", Name: "Grace Hopper", Organization: "Example University"})
	case path == "identities/"+graceID:
		answer(globus.Identity{Subject: graceID, Username: "grace@example.org", Name: "Grace Hopper", Organization: "Example University"})
	case path == "identities/"+melID:
		answer(globus.Identity{Subject: melID, Username: "mel@example.org", Name: "Mel"})
	case path == "topics/weather" && req.Method == http.MethodPatch:
		answer(diaspora.TopicChange{Before: topic, After: topic})
	case path == "topics/weather":
		answer(topic)
	case path == "topics/weather/grants" && req.Method == http.MethodGet:
		answer(diaspora.GrantList{Grants: r.grants})
	case path == "topics/weather/grants":
		var with diaspora.GrantRequest
		json.Unmarshal(body, &with)
		answer(diaspora.Grant{Subject: with.Subject, Group: with.Group, Username: with.Username, Public: with.Public, Read: with.Read, Write: with.Write, Manage: with.Manage, By: r.me})
	case path == "topics/weather/transfer":
		topic.OfferedTo = graceID
		answer(topic)
	case req.Method == http.MethodDelete:
		w.WriteHeader(http.StatusNoContent)
	default:
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"type":"/problems/not-found","title":"Not found","status":404,"detail":"not found: nobody has this username"}`)
	}
}

// TestUsernames checks what happens with the usernames that a user types: who is asked, and what is confirmed.
func TestUsernames(t *testing.T) {
	t.Parallel()
	const (
		lookUp   = "GET identities/grace@example.org"
		share    = `POST topics/weather/grants {"subject":"` + graceID + `","username":"grace@example.org","read":true}`
		transfer = `POST topics/weather/transfer {"subject":"` + graceID + `","username":"grace@example.org"}`
		who      = "diaspora: grace@example.org is Grace Hopper, Example University, grace@example.org (" + graceID + ")\n"
	)
	with := diaspora.Grant{Subject: graceID, Username: "Grace@example.org", Read: true}
	other := diaspora.Grant{Subject: melID, Username: "grace@example.org", Read: true}
	for name, tt := range map[string]struct {
		args   string
		grants []diaspora.Grant
		typed  string // at a terminal, if it is not ""
		code   int
		calls  []string
		says   string
	}{
		"shared": {args: "topic share weather --with grace@example.org --read", typed: "yes", calls: []string{lookUp, share},
			says: who + "Let this person read weather? Type yes: "},
		"not shared":    {args: "topic share weather --with grace@example.org --read --quiet", typed: "no", code: 1, calls: []string{lookUp}, says: who},
		"no answer":     {args: "topic share weather --with grace@example.org --read", typed: "\n", code: 1, calls: []string{lookUp}, says: "nothing has changed"},
		"in a script":   {args: "topic share weather --with grace@example.org --read --yes", calls: []string{lookUp, share}, says: who},
		"nobody to ask": {args: "topic share weather --with grace@example.org --read", code: 2, calls: []string{lookUp}, says: who + "diaspora: topic share: it is not confirmed that this is the right person, and there is no terminal to ask; nothing has changed\nhint: use --yes to skip this question\n"},
		"a stranger":    {args: "topic share weather --with grce@example.org --read --yes", code: 5, calls: []string{"GET identities/grce@example.org"}, says: "nobody has this username"},
		"a subject":     {args: "topic share weather --with " + strings.ToUpper(graceID) + " --read", calls: []string{`POST topics/weather/grants {"subject":"` + graceID + `","read":true}`}},
		"a subject, confirmed": {args: "topic share weather --with " + graceID + " --read", typed: "yes", says: "Grace Hopper, Example University, grace@example.org (" + graceID + ")\nLet this person read weather? Type yes: ",
			calls: []string{"GET identities/" + graceID, share}},
		"a subject, not confirmed": {args: "topic share weather --with " + graceID + " --read", typed: "no", code: 1, calls: []string{"GET identities/" + graceID}},
		"several": {args: "topic share weather --with grace@example.org --with " + melID + " --with group:" + labID + " --read --yes", says: who,
			calls: []string{lookUp, "GET identities/" + melID, `POST topics/weather/grants {"group":"` + labID + `","read":true}`, share, `POST topics/weather/grants {"subject":"` + melID + `","username":"mel@example.org","read":true}`}},
		"several, one unknown":  {args: "topic share weather --with grace@example.org --with nobody@example.org --read --yes", code: 5, calls: []string{lookUp, "GET identities/nobody@example.org"}},
		"several, one mistyped": {args: "topic share weather --with grace@example.org --with grace --read --yes", code: 2},
		"a right taken away": {args: "topic share weather --with grace@example.org --write --yes", grants: []diaspora.Grant{{Subject: graceID, Username: "grace@example.org", Read: true}},
			calls: []string{lookUp, strings.Replace(share, "read", "write", 1)}, says: "diaspora: until now, grace@example.org could also read; that is taken away, unless you share it again with --read as well\n"},
		"rights taken away": {args: "topic share weather --public", grants: []diaspora.Grant{{Public: true, Manage: true}},
			calls: []string{`POST topics/weather/grants {"public":true,"read":true}`}, says: "until now, everybody could also write and manage; that is taken away, unless you share it again with --write --manage as well\n"},
		"a group": {args: "topic share weather --with group:" + labID + " --write", calls: []string{`POST topics/weather/grants {"group":"` + labID + `","write":true}`}},

		"offered":         {args: "topic transfer weather --to grace@example.org", typed: "y", calls: []string{lookUp, transfer}, says: who + "Offer weather to this person, who then owns it? Type yes: "},
		"not offered":     {args: "topic transfer weather --to grace@example.org", typed: "never", code: 1, calls: []string{lookUp}, says: "nothing has changed"},
		"offered by ID":   {args: "topic transfer weather --to " + graceID, typed: "yes", calls: []string{"GET identities/" + graceID, transfer}, says: "Grace Hopper, Example University, grace@example.org (" + graceID + ")\nOffer weather to this person, who then owns it? Type yes: "},
		"offered blindly": {args: "topic transfer weather --to grace@example.org", code: 2, calls: []string{lookUp}, says: "there is no terminal to ask"},

		"events kept": {args: "topic set weather --retention 3m --quiet", typed: "no", code: 1,
			says: "diaspora: weather: events are kept for 3 minutes only, and were kept for 7 days: all older ones are deleted; they cannot be restored\nDelete these events? Type yes: "},
		"events deleted":     {args: "topic set weather --retention 3m", typed: "yes", calls: []string{`PATCH topics/weather {"retention_ms":180000}`}},
		"events not at risk": {args: "topic set weather --retention 1y", calls: []string{`PATCH topics/weather {"retention_ms":31536000000}`}},

		"ended":                  {args: "topic unshare weather --with grace@example.ORG", grants: []diaspora.Grant{with}, calls: []string{"DELETE topics/weather/grants/" + graceID}},
		"ended, shared by ID":    {args: "topic unshare weather --with Grace@Example.org", grants: []diaspora.Grant{{Subject: graceID, Read: true}}, calls: []string{"GET identities/Grace@Example.org", "DELETE topics/weather/grants/" + graceID}},
		"ended, never shared":    {args: "topic unshare weather --with grace@example.org", code: 5, calls: []string{lookUp}, says: "it is not shared with grace@example.org"},
		"ended, unknown":         {args: "topic unshare weather --with nobody@example.org", grants: []diaspora.Grant{with}, code: 5, calls: []string{"GET identities/nobody@example.org"}, says: "it is not shared with nobody@example.org"},
		"ended, two of the name": {args: "topic unshare weather --with grace@example.org", grants: []diaspora.Grant{with, other}, code: 6, says: graceID + ", " + melID + "\nhint: name the person by the subject\n"},
		"ended, two people": {args: "topic unshare weather --with grace@example.org --with " + melID + " --with Grace@example.org", grants: []diaspora.Grant{with, {Subject: melID, Read: true}},
			calls: []string{"DELETE topics/weather/grants/" + graceID, "DELETE topics/weather/grants/" + melID}},
		"ended, one of two": {args: "topic unshare weather --with grace@example.org --with " + melID, grants: []diaspora.Grant{with}, code: 5, says: "it is not shared with " + melID},
		"ended, and a group": {args: "topic unshare weather --with grace@example.org", calls: []string{"DELETE topics/weather/grants/" + graceID},
			grants: []diaspora.Grant{with, {Group: labID, Members: []diaspora.GroupMember{{Subject: graceID}}, Write: true}}, says: "they may still write it, as a member of group:" + labID},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRegistry(t)
			for i := range tt.grants {
				tt.grants[i].By = r.me
			}
			r.grants = tt.grants
			if tt.typed != "" {
				r.stdin = strings.NewReader(tt.typed + "\n")
				r.atTerminal(80, r.stdin)
			}
			if code := r.types(t.Context(), strings.Fields(tt.args)...); code != tt.code {
				t.Errorf("diaspora %s exits with %d, want %d", tt.args, code, tt.code)
			}
			if got, want := strings.Join(r.calls, "\n"), strings.Join(tt.calls, "\n"); got != want {
				t.Errorf("it asks for\n%s\nwant\n%s", got, want)
			}
			if !strings.Contains(r.err.String(), tt.says) {
				t.Errorf("it says\n%s\nwant\n%s", r.err.String(), tt.says)
			}
		})
	}
}

// TestShownGrants checks the table of those with whom a topic is shared, on a wide terminal and a narrow one, and the
// completion of their names.
func TestShownGrants(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	since := r.now()
	r.grants = []diaspora.Grant{
		{Subject: graceID, Username: "grace@example.org", Manage: true, By: r.me, Since: since},
		{Group: labID, Members: []diaspora.GroupMember{{Subject: graceID}, {Subject: melID, Username: "mel@example.org"}, {Subject: serviceID, Username: serviceID + "@clients.auth.globus.org", Service: true}}, Read: true, By: graceID, Since: since, Expires: since.AddDate(1, 0, 0)},
		{Public: true, Read: true, By: r.me, Since: since},
	}
	r.must(t, "topic", "show", "weather")
	day, year := r.day(since), r.day(since.AddDate(1, 0, 0))
	table := strings.Join([]string{
		"SHARED WITH                                                             MAY                     SINCE       UNTIL       BY",
		"grace@example.org                                                       read, write and manage  " + day + "  -           ada@example.edu",
		"group:" + labID + " (2 members and the service)  read                    " + day + "  " + year + "  grace@example.org",
		"everybody                                                               read                    " + day + "  -           ada@example.edu",
	}, "\n") + "\n"
	if got := r.out.String(); !strings.HasSuffix(got, "\n\n"+table) {
		t.Errorf("it shows\n%s\nwant\n%s", got, table)
	}
	r.out.Reset()
	r.must(t, "topic", "show", "weather", "--members")
	if got := r.out.String(); !strings.Contains(got, "\n- grace@example.org\n- mel@example.org\n- the service of the fabric ("+serviceID+")\n") {
		t.Errorf("--members shows\n%s", got)
	}
	r.out.Reset()
	r.atTerminal(60, &r.out)
	r.must(t, "topic", "show", "weather")
	_, narrow, _ := strings.Cut(r.out.String(), "\n\n")
	for line := range strings.Lines(narrow) {
		if terminal.Width(strings.TrimSpace(line)) > 60 {
			t.Errorf("%q does not fit 60 columns", line)
		}
	}
	r.atTerminal(0)
	r.out.Reset()
	r.must(t, "__complete", "topic", "unshare", "weather", "--with", "")
	if got := r.out.String(); !strings.HasPrefix(got, "grace@example.org\ngroup:"+labID+"\n:") {
		t.Errorf("the completion is %q", got)
	}
}

// TestTopicListNarrow checks that all parts of the list of topics fit a narrow terminal.
func TestTopicListNarrow(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	grace, err := d.fabric.As(t.Context(), "grace@example.org")
	testkit.Must(t, err)
	owner, err := diaspora.NewClient(grace)
	testkit.Must(t, err)
	cfg, err := d.config()
	testkit.Must(t, err)
	for _, name := range []string{"shared_topic", "public_topic", "offered_topic"} {
		_, err := owner.Claim(t.Context(), diaspora.ClaimRequest{Name: name, Description: strings.Repeat("long ", 30)})
		testkit.Must(t, err)
	}
	_, err = owner.Share(t.Context(), "shared_topic", diaspora.GrantRequest{Subject: cfg.Identity.Subject, Manage: true})
	testkit.Must(t, err)
	_, err = owner.Share(t.Context(), "public_topic", diaspora.GrantRequest{Public: true, Read: true})
	testkit.Must(t, err)
	_, err = owner.Transfer(t.Context(), "offered_topic", diaspora.Transfer{Subject: cfg.Identity.Subject})
	testkit.Must(t, err)
	d.must(t, "topic", "claim", "mine")
	d.must(t, "topic", "claim", "released_topic")
	d.must(t, "topic", "release", "released_topic")
	d.out.Reset()
	d.atTerminal(60, &d.out)
	d.must(t, "topic", "list")
	at := 0
	for _, want := range []string{
		`Offered to you; "diaspora topic accept NAME" accepts one:`, "\noffered_topic ", "\nYours:\n", "\nmine ",
		`Released; "diaspora topic restore NAME" brings one back:`, "\nreleased_topic ", "\nShared with you:\n", "\nshared_topic ", "\nPublic, to read:\n", "\npublic_topic ",
	} {
		i := strings.Index(d.out.String()[at:], want)
		if i < 0 {
			t.Fatalf("%q is missing, or in another place:\n%s", want, d.out.String())
		}
		at += i
	}
	for line := range strings.Lines(d.out.String()) {
		if terminal.Width(strings.TrimSpace(line)) > 60 {
			t.Errorf("%q does not fit 60 columns", line)
		}
	}
	d.atTerminal(0)
	for command, want := range map[string]string{
		"accept": "offered_topic\n:", "restore": "released_topic\n:", "release": "mine\nreleased_topic\n:", "share": "mine\nreleased_topic\nshared_topic\n:",
		"show": "mine\nreleased_topic\nshared_topic\npublic_topic\n:",
	} {
		d.out.Reset()
		d.must(t, "__complete", "topic", command, "")
		if got := d.out.String(); !strings.HasPrefix(got, want) {
			t.Errorf("the completion of %s is %q, want %q", command, got, want)
		}
	}
}

func TestParseMaxBytes(t *testing.T) {
	for text, want := range map[string]int64{
		"none": -1, "10GB": 10e9, "10 gb": 10e9, "1.5kB": 1500, "1GiB": 1 << 30, "1000": 1000, "7 B": 7, "2TiB": 2 << 40,
		"": 0, "0": 0, "-1": 0, "GB": 0, "10 XB": 0, "1e9": 0, "1..5GB": 0, "99999999TB": 0, "forever": 0, "NaN": 0, "inf": 0,
	} {
		got, err := parseMaxBytes(text)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("parseMaxBytes(%q) = %d, %v, want %d", text, got, err, want)
		}
	}
}

// TestEndedWhileReading checks that a consumer with an open connection is refused once its share has ended, except for the
// answer to a request that the broker has already, and that its program is told whom to ask.
func TestEndedWhileReading(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.must(t, "topic", "claim", "weather")
	d.must(t, "produce", "weather", "--value", "rain")
	grace := fabrictest.As(t, d.fabric, "grace@example.org")
	d.must(t, "topic", "share", "weather", "--with", grace.Identity.Subject, "--read")
	consumer := fabrictest.OpenConsumer(t, grace, diaspora.ConsumerOptions{Topics: []string{"weather"}, From: diaspora.Start})
	seen := 0
	for record, err := range consumer.Records(t.Context()) {
		switch {
		case seen == 0 && err == nil:
			seen++
			d.must(t, "topic", "unshare", "weather", "--with", grace.Identity.Subject)
			d.must(t, "produce", "weather", "--value", "hail")
		case err == nil && seen == 1:
			seen++
			d.must(t, "produce", "weather", "--value", "snow")
		case err == nil:
			t.Fatalf("after the share has ended, the consumer reads %q", record.Value)
		case !errors.Is(err, diaspora.ErrPermission) || !strings.Contains(err.Error(), `"diaspora doctor --topic weather" says why`):
			t.Fatalf("after %d records the consumer fails with %v, want ErrPermission that names the command", seen, err)
		default:
			return
		}
	}
}

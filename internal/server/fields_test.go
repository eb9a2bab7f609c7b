package server

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/claims"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

const lab = "5d2c4a51-2f6b-4c11-9d7e-3a1c5b7e9fff" // a Globus group

// bodies has, for each route that takes a body, the type that it is decoded into, and bodies that are
// accepted. Each field is in one of these.
var bodies = map[string]struct {
	into func() any
	good []string
}{
	"POST /acl": {func() any { return &aclForm{} }, []string{`{"subject":"` + ada + `","token":"` + nameToken + `","topic":"rain"}`}},
	"POST /v1/topics": {func() any { return &diaspora.ClaimRequest{} }, []string{
		`{"name":"snow","partitions":2,"retention_ms":1000,"description":"how high it is"}`,
	}},
	"PATCH /v1/topics/{name}": {func() any { return &diaspora.TopicSettings{} }, []string{
		`{"partitions":2,"retention_ms":1000,"max_bytes":100000,"description":"how warm it is","compact":false}`,
	}},
	"POST /v1/topics/{name}/grants": {func() any { return &diaspora.GrantRequest{} }, []string{
		`{"subject":"` + bob + `","read":true,"write":true,"manage":true,"expires":"2040-01-01T00:00:00Z"}`,
		`{"username":"bob@example.org","read":true}`,
		`{"group":"` + lab + `","read":true}`,
		`{"public":true,"read":true}`,
	}},
	"POST /v1/topics/{name}/transfer": {func() any { return &diaspora.Transfer{} }, []string{
		`{"subject":"` + bob + `","username":"bob@example.org"}`,
	}},
	"POST /v1/topics/{name}/accept":  {},
	"POST /v1/topics/{name}/release": {},
	"POST /v1/topics/{name}/restore": {},
	"POST /v1/keys": {func() any { return &diaspora.AccessKeyRequest{} }, []string{
		`{"name":"laptop","topics":["weather"],"read":true,"write":true,"expires":"` + time.Now().AddDate(5, 0, 0).UTC().Format(time.RFC3339) + `"}`,
	}},
	"POST /v1/admin/blocked": {func() any { return &diaspora.BlockRequest{} }, []string{`{"subject":"` + bob + `","why":"spam"}`}},
	"POST /v1/token":         {}, // has the format of OAuth; see TestExchangeRefusals
}

// badValues has, for each kind of field, values that no such field may have: those of other types and
// those that are out of range.
var badValues = map[string][]string{
	"a string":            {`null`, `7`, `true`, `{}`, `[]`, `["x"]`},
	"a list of strings":   {`null`, `"weather"`, `7`, `true`, `{}`, `[]`, `[7]`, `[null]`, `[["weather"]]`, `["weather","weather"]`},
	"a whole number":      {`null`, `"3"`, `1.5`, `1e3`, `true`, `{}`, `[]`, `-2`, `9223372036854775807`, `-9223372036854775808`, `9223372036854775808`, `1e999`},
	"true or false":       {`null`, `"true"`, `1`, `0`, `{}`, `[]`},
	"a time such as 2026": {`null`, `"tomorrow"`, `1900000000`, `true`, `{}`, `[]`, `""`, `"2020-01-01T00:00:00Z"`, `"0001-01-01T00:00:00Z"`, `"0001-01-01T00:00:00.5Z"`, `"9999-12-31T23:59:59Z"`, `"2027-02-30T00:00:00Z"`, `"-2027-01-01T00:00:00Z"`},
}

// hostile are texts that no field with a name, an ID or a username may have.
var hostile = []string{
	"", " ", "*", "a b", "../../etc/passwd", "..", "a\nb", "a\x00b", "\x1b[2J", "a\u202eb", "a\u2028b", "a\ufffdb", `\ud800`, "<script>" + canary,
	strings.Repeat("x", 5000) + canary, strings.Repeat("x", 20000) + canary, bobToken, nameToken, "group:*", "User:*", "ünï" + canary,
}

// harmless has, for some fields, what they may have after all. A description and a reason are any line
// of text, and the name of a key is used for nothing.
var harmless = map[string][]string{
	"POST /v1/keys name": {"..", bobToken},
	"POST /acl token":    {nameToken},

	"description": {"", " ", "*", "a b", "../../etc/passwd", "..", "<script>" + canary, bobToken, "group:*", "User:*", "ünï" + canary},
	"why":         {"*", "a b", "../../etc/passwd", "..", "<script>" + canary, bobToken, "group:*", "User:*", "ünï" + canary},
}

// called is what errors call a field, other than by its name.
var called = map[string][]string{
	"retention_ms": {"events are kept"},
	"max_bytes":    {"size of a partition"},
	"why":          {"reason"},
	"topics":       {"topic"},
	"expires":      {"ends at a time"},
}

// directory knows one username.
type directory struct{}

func (directory) Lookup(_ context.Context, username string) (globus.Identity, error) {
	if username != "bob@example.org" {
		return globus.Identity{}, fmt.Errorf("%w: no identity has the username %q", diaspora.ErrNotFound, username)
	}
	return globus.Identity{Subject: bob, Username: username, Email: "bob@home.example", IdentitySet: []string{bob, ada}}, nil
}

func (directory) Identities(context.Context, []string) (map[string]globus.Identity, error) {
	return map[string]globus.Identity{bob: {Subject: bob, Username: "bob@example.org"}}, nil
}

// fieldsWorld is an ACL endpoint whose operator is Ada, who has a topic.
type fieldsWorld struct {
	*endpoint
	service *claims.Service
}

func startFields(t *testing.T, service *claims.Service) *fieldsWorld {
	t.Helper()
	return &fieldsWorld{start(t, withClaims(service), func(cfg *Config) { cfg.People = directory{} }), service}
}

func openFieldsClaims(t *testing.T) *claims.Service {
	t.Helper()
	service := openClaims(t, func(cfg *claims.Config) {
		cfg.Admission.Operators = []string{ada}
		cfg.Groups = func(_ context.Context, group string) ([]string, error) {
			if group != lab {
				return nil, fmt.Errorf("%w: there is no such group", diaspora.ErrNotFound)
			}
			return []string{bob}, nil
		}
	})
	_, err := service.Claim(t.Context(), ada, diaspora.ClaimRequest{Name: "weather"})
	testkit.Must(t, err)
	return service
}

// state is everything that requests can change.
func (w *fieldsWorld) state() string {
	w.t.Helper()
	topics, err1 := w.service.Topics(w.t.Context(), ada)
	grants, err2 := w.service.Grants(w.t.Context(), ada, "weather")
	keys, err3 := w.service.Keys(w.t.Context(), ada)
	blocked, err4 := w.service.Blocked(w.t.Context(), ada)
	for _, err := range []error{err1, err2, err3, err4} {
		testkit.Must(w.t, err)
	}
	return fmt.Sprintf("%+v %+v %+v %+v %d", topics, grants, keys, blocked, w.service.Stats().Records)
}

// fill fills in the path of a route.
func fill(path string) string {
	return strings.NewReplacer("{name}", "weather", "{grantee}", bob, "{id}", keyID, "{subject}", bob, "{username}", "bob@example.org", "{file}", "style.css", "{$}", "").Replace(path)
}

// refused sends a request, which must be refused with an error that names one of the words, unless
// there are none, and that repeats nothing that would harm a terminal, a page or a log.
func (w *fieldsWorld) refused(what, method, path, body string, words ...string) {
	t := w.t
	t.Helper()
	before := w.state()
	headers := []string{"Content-Type", typeJSON}
	if body == "" {
		headers = nil
	}
	if path != "/acl" {
		headers = append(headers, "Authorization", "Bearer "+nameToken)
	}
	a := w.do(method, path, body, headers...)
	if a.status < 400 || a.status > 499 {
		t.Errorf("%s: %d, want it refused: %s", what, a.status, a.body)
		return
	}
	p := a.problem(t)
	text := p.Title + p.Detail + p.Hint + p.Topic
	if len(words) > 0 && !slices.ContainsFunc(words, func(word string) bool { return strings.Contains(text, word) }) {
		t.Errorf("%s: %d %q does not name %q", what, a.status, p.Detail, words)
	}
	if strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) || r == utf8.RuneError }) || len(text) > 1000 {
		t.Errorf("%s: %d %.2000q is not a short line of text", what, a.status, text)
	}
	if after := w.state(); after != before {
		t.Errorf("%s was refused with %d, and has changed the state from\n%s to\n%s", what, a.status, before, after)
	}
}

// TestFields sends each field of each request missing, with a wrong type, out of range, repeated and
// with hostile text.
func TestFields(t *testing.T) {
	for _, rt := range routeTable {
		method, _, _ := strings.Cut(rt.pattern, " ")
		if _, known := bodies[rt.pattern]; known != (method == "POST" || method == "PATCH") {
			t.Errorf("%s is among the bodies: %v", rt.pattern, known)
		}
	}
	for pattern, body := range bodies {
		t.Run(strings.NewReplacer("/", "_", " ", "").Replace(pattern), func(t *testing.T) {
			t.Parallel()
			service := openFieldsClaims(t)
			method, path, _ := strings.Cut(pattern, " ")
			path = fill(path)
			w := startFields(t, service)
			if body.into == nil {
				if pattern != "POST /v1/token" {
					for _, bad := range []string{`{}`, `null`, `x`, ` `, `{"name":"weather"}`} {
						w.refused(pattern+" with the body "+bad, method, path, bad, "body")
					}
				}
				return
			}
			names, fields := fieldsOf(body.into())
			for _, whole := range []string{``, `null`, `[]`, `"x"`, `7`, `{`, `{}x`, `{"` + canary + `":1}`, `[` + body.good[0] + `]`, body.good[0] + body.good[0]} {
				w.refused(pattern+" with the body "+whole, method, path, whole)
			}
			for _, name := range names {
				w := startFields(t, service) // one that has counted no failures and no look-ups
				i := slices.IndexFunc(body.good, func(good string) bool { return strings.Contains(good, `"`+name+`":`) })
				if i < 0 {
					t.Fatalf("%s: no body has the field %s", pattern, name)
				}
				good := parseObject(t, body.good[i])
				with := func(value string) string {
					changed := maps.Clone(good)
					changed[name] = json.RawMessage(value)
					return formatObject(names, changed)
				}
				words := append(slices.Clone(called[name]), name)
				refused := func(what, body string) {
					t.Helper()
					w.refused(fmt.Sprintf("%s with %s %.60s", pattern, name, what), method, path, body, words...)
				}
				plain := formatObject(names, good)
				refused("repeated", strings.TrimSuffix(plain, "}")+fmt.Sprintf(",%q:%s}", name, good[name]))
				refused("repeated with an escape", strings.TrimSuffix(plain, "}")+fmt.Sprintf(`,"\u%04x%s":%s}`, name[0], name[1:], good[name]))
				refused("in capitals", strings.Replace(plain, `"`+name+`"`, `"`+strings.ToUpper(name)+`"`, 1))
				refused("and an unknown field", strings.TrimSuffix(plain, "}")+fmt.Sprintf(",%q:%s}", name+"_"+canary, good[name]))
				if tag := fieldTag(body.into(), name); !strings.Contains(tag, "omit") && tag != "" {
					missing := maps.Clone(good)
					delete(missing, name)
					refused("missing", formatObject(names, missing))
				}
				kind := jsonKind(fields[name])
				for known, values := range badValues {
					for _, value := range values {
						if strings.HasPrefix(kind, known) {
							refused(value, with(value))
						}
					}
				}
				texts := hostile
				if name == "subject" {
					texts = append(slices.Clone(hostile), "public", "group:"+lab) // not people
				}
				for _, text := range texts {
					value := quoteJSON(text)
					switch kind {
					case "a list of strings":
						refused("["+value+"]", with("["+value+"]"))
					case "a string":
						if !slices.Contains(harmless[name], text) && !slices.Contains(harmless[pattern+" "+name], text) && !(text == "" && optional(pattern, name)) {
							if strings.Contains(text, "xxxx") || utf8.RuneCountInString(text) > 30 {
								w = startFields(t, service)
							}
							refused(value, with(value))
						}
					}
				}
			}
			for _, good := range body.good { // otherwise nothing above shows anything
				headers := []string{"Content-Type", typeJSON, "Authorization", "Bearer " + nameToken}
				if path == "/acl" {
					headers = headers[:2]
				}
				w := startFields(t, service)
				w.secrets = nil // the response to a new key has its secret
				if a := w.do(method, path, good, headers...); a.status > 299 {
					t.Errorf("%s with %s: %d %s", pattern, good, a.status, a.body)
				}
			}
		})
	}
}

// optional reports whether an empty text in a field means the same as no field, because another field
// is enough.
func optional(pattern, name string) bool {
	return strings.HasSuffix(pattern, "/transfer")
}

func parseObject(t *testing.T, text string) (object map[string]json.RawMessage) {
	t.Helper()
	testkit.Must(t, json.Unmarshal([]byte(text), &object))
	return object
}

func formatObject(names []string, object map[string]json.RawMessage) string {
	var parts []string
	for _, name := range names {
		if value, ok := object[name]; ok {
			parts = append(parts, fmt.Sprintf("%q:%s", name, value))
		}
	}
	return "{" + strings.Join(parts, ",") + "}"
}

// quoteJSON quotes text. A lone surrogate is an escape already.
func quoteJSON(text string) string {
	if text == `\ud800` {
		return `"\ud800"`
	}
	quoted, _ := json.Marshal(text)
	return string(quoted)
}

func fieldTag(into any, name string) string {
	typ := reflect.TypeOf(into).Elem()
	for i := range typ.NumField() {
		if tag := typ.Field(i).Tag.Get("json"); tag == name || strings.HasPrefix(tag, name+",") {
			return tag
		}
	}
	return ""
}

// TestPathValues sends hostile text in each part of a path.
func TestPathValues(t *testing.T) {
	service := openFieldsClaims(t)
	for _, rt := range routeTable {
		method, path, _ := strings.Cut(rt.pattern, " ")
		for part := range strings.SplitSeq(path, "/") {
			if !strings.HasPrefix(part, "{") || part == "{$}" {
				continue
			}
			t.Run(strings.NewReplacer("/", "_", " ", "").Replace(rt.pattern)+part, func(t *testing.T) {
				for _, text := range append([]string{".", "a/b", "%ff", "a%00b", "%2e%2e%2fv1%2ftopics", "public%00", "key-abcdefghij23456%2f"}, hostile...) {
					value := url.PathEscape(text)
					if strings.Contains(text, "%") {
						value = text
					}
					if text == "" || len(text) > maxTargetBytes {
						continue // another path, which is refused elsewhere
					}
					body := ""
					if good := bodies[rt.pattern].good; len(good) > 0 {
						body = good[0]
					}
					startFields(t, service).refused(fmt.Sprintf("%s with %.60q", rt.pattern, text), method, fill(strings.Replace(path, part, value, 1)), body)
				}
			})
		}
	}
}

package server

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/aclclient"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// seeds are the small ones of badRequests: mutating the large ones finds nothing new.
func seeds() []badRequest {
	return slices.DeleteFunc(slices.Clone(badRequests), func(tt badRequest) bool {
		return tt.status == 500 || len(tt.body)+len(tt.target)+len(strings.Join(tt.headers, "")) > 1000
	})
}

// requests returns one of each type that decodeJSON decodes into.
func requests() (all []any) {
	for _, pattern := range slices.Sorted(maps.Keys(bodies)) {
		if body := bodies[pattern]; body.into != nil {
			all = append(all, body.into())
		}
	}
	return all
}

// FuzzDecodeJSON checks, for each type of request, that everything that is accepted has the same
// meaning to encoding/json, and that refusals repeat nothing of the input.
func FuzzDecodeJSON(f *testing.F) {
	for _, tt := range seeds() {
		f.Add([]byte(tt.body))
	}
	for _, body := range bodies {
		for _, good := range body.good {
			f.Add([]byte(good))
		}
	}
	f.Add([]byte(`{"name":"weather","partitions":3,"retention_ms":-1,"description":"für Ada"}`))
	f.Add([]byte(`{"subject":"` + ada + `","read":true,"expires":"2040-01-01T00:00:00.5+14:00"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		again := requests()
		for i, got := range requests() {
			if err := decodeJSON(body, got); err != nil {
				checkRefusal(t, err)
				continue
			}
			want := reflect.New(reflect.TypeOf(got).Elem()).Interface()
			dec := json.NewDecoder(strings.NewReader(string(body)))
			dec.DisallowUnknownFields()
			if err := dec.Decode(want); err != nil || !reflect.DeepEqual(got, want) || !json.Valid(body) {
				t.Errorf("decodeJSON(%q) = %+v, encoding/json has %+v, %v", body, got, want, err)
			}
			names, fields := fieldsOf(got)
			for _, name := range names {
				for _, text := range textsOf(fields[name]) {
					if !utf8.ValidString(text) || strings.ContainsRune(text, utf8.RuneError) {
						t.Errorf("decodeJSON(%q) = %+v, which is not UTF-8", body, got)
					}
				}
			}
			if _, secret := fields["token"]; secret {
				continue // it is redacted when it is encoded
			}
			encoded, err := json.Marshal(got)
			testkit.Must(t, err)
			if err := decodeJSON(encoded, again[i]); err != nil || !sameRequest(again[i], got) {
				t.Errorf("decodeJSON(%s) = %+v, %v, want %+v", encoded, again[i], err, got)
			}
		}
	})
}

// sameRequest reports whether two requests say the same; times may be in other zones, and an empty
// list is not encoded.
func sameRequest(a, b any) bool {
	names, one := fieldsOf(a)
	_, other := fieldsOf(b)
	return !slices.ContainsFunc(names, func(name string) bool {
		x, y := one[name].Interface(), other[name].Interface()
		if at, ok := x.(time.Time); ok {
			return !at.Equal(y.(time.Time))
		}
		return !reflect.DeepEqual(x, y) && !(one[name].Kind() == reflect.Slice && one[name].Len()+other[name].Len() == 0)
	})
}

// FuzzUsername checks that what goes to Globus as a username is one line, and one username.
func FuzzUsername(f *testing.F) {
	for _, text := range append([]string{"ada@example.edu", "a@b@c", "@", "a@b,c@d", "ä@ö", "a b@c", "a@b\xff"}, hostile...) {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if !aclclient.IsUsername(text) {
			return
		}
		if !strings.Contains(text, "@") || len(text) > aclclient.MaxUsernameBytes || !utf8.ValidString(text) || strings.ContainsAny(text, "\x00\x1b\n\r\t ,\u2028\u2029\u202e\ufffd") {
			t.Errorf("IsUsername(%q) = true", text)
		}
	})
}

// FuzzDecodeForm checks the same for forms.
func FuzzDecodeForm(f *testing.F) {
	for _, tt := range seeds() {
		f.Add(tt.body, true)
		f.Add(tt.body, false)
	}
	f.Fuzz(func(t *testing.T, body string, lenient bool) {
		var got aclForm
		if err := decodeForm(body, &got, lenient); err != nil {
			checkRefusal(t, err)
			return
		}
		values, err := url.ParseQuery(body)
		if err != nil {
			t.Fatalf("decodeForm(%q) = nil, ParseQuery %v", body, err)
		}
		for name, field := range map[string]string{"subject": got.Subject, "token": got.Token.Reveal(), "topic": got.Topic} {
			if len(values[name]) > 1 || strings.TrimSpace(values.Get(name)) != field || !utf8.ValidString(field) {
				t.Errorf("decodeForm(%q): %s = %q, want the only one of %q", body, name, field, values[name])
			}
			delete(values, name)
		}
		if len(values) > 0 && !lenient {
			t.Errorf("decodeForm(%q) accepted %v", body, values)
		}
	})
}

// checkRefusal checks that err is one of our own messages. They consist of constants and names of
// fields only, so anything long or unusual in them comes from the client.
func checkRefusal(t *testing.T, err error) {
	t.Helper()
	p, _ := problemOf(err)
	if p.Status != http.StatusBadRequest || len(p.Detail) > 120 || strings.ContainsFunc(p.Detail, func(r rune) bool { return r < ' ' || r > '~' }) {
		t.Errorf("refused with %+v", p)
	}
}

// FuzzRequest sends whole requests. For each one the response must be one of ours, and must not
// repeat the token.
func FuzzRequest(f *testing.F) {
	for _, tt := range seeds() {
		header := http.Header{}
		for i := 0; i < len(tt.headers); i += 2 {
			header.Add(tt.headers[i], tt.headers[i+1])
		}
		f.Add(tt.method, tt.target, header.Get("Authorization"), header.Get("Content-Type"), header.Get("Accept"), tt.body)
	}
	for _, rt := range routeTable {
		method, path, _ := strings.Cut(rt.pattern, " ")
		for _, body := range append([]string{""}, bodies[rt.pattern].good...) {
			f.Add(method, fill(path), adaBearer, typeJSON, typeJSON, body)
		}
		f.Add(method, fill(strings.ReplaceAll(path, "{", adaToken+"{")), adaBearer, typeJSON, typeJSON, `{"subject":"`+adaToken+`"}`)
	}
	f.Add("POST", "/acl", "", typeForm, typeHTML, form(ada, adaToken, "weather"))
	f.Add("POST", "/v1/token", basicAuth(keyID, keySecret), typeForm, typeJSON, tokenForm())
	f.Add("POST", "/v1/token", "", typeForm, typeJSON, tokenForm("client_id", keyID, "client_secret", keySecret))
	f.Fuzz(func(t *testing.T, method, target, authorization, contentType, accept, body string) {
		u, err := url.ParseRequestURI(target)
		if err != nil || u.Host != "" || method == "" {
			return // net/http refuses it
		}
		srv, err := New(Config{Claims: yesClaims{}, Authenticator: identities{}, Tokens: exchanger{}, People: directory{}, PublicURL: "http://127.0.0.1"})
		testkit.Must(t, err)
		r := httptest.NewRequest("POST", "/", strings.NewReader(body))
		r.Method, r.URL, r.RequestURI, r.Host = method, u, target, "127.0.0.1"
		for name, value := range map[string]string{"Authorization": authorization, "Content-Type": contentType, "Accept": accept} {
			if value != "" {
				r.Header.Set(name, value)
			}
		}
		w := httptest.NewRecorder()
		srv.ServeHTTP(w, r)
		switch answer := w.Body.String(); {
		case w.Code >= 500 && w.Code != http.StatusServiceUnavailable:
			t.Errorf("status %d: %s", w.Code, answer)
		case w.Code >= 400 && w.Header().Get("Content-Type") == typeProblem:
			var p diaspora.Problem
			if err := json.Unmarshal([]byte(answer), &p); err != nil || p.Status != w.Code || p.Detail == "" || problemTypes[p.Status][0] == "" {
				t.Errorf("status %d with %s (%v)", w.Code, answer, err)
			}
		case w.Code >= 400 && r.URL.Path == "/v1/token" && w.Header().Get("Content-Type") == typeJSON && strings.Contains(answer, `"error": "`):
		case w.Code >= 400 && !strings.HasPrefix(w.Header().Get("Content-Type"), typeHTML):
			t.Errorf("status %d as %q: %s", w.Code, w.Header().Get("Content-Type"), answer)
		}
		if strings.Contains(authorization+target+body, adaToken) && strings.Contains(w.Body.String(), adaToken) {
			t.Errorf("the token is in the answer: %s", w.Body.String())
		}
	})
}

// yesClaims accept every valid name.
type yesClaims struct{ emptyClaims }

func (yesClaims) Claim(_ context.Context, subject string, req diaspora.ClaimRequest) (diaspora.Topic, error) {
	return diaspora.Topic{Name: req.Name, Owner: subject, Created: true}, diaspora.ValidTopic(req.Name)
}

func (yesClaims) Topic(_ context.Context, subject, name string) (diaspora.Topic, error) {
	return diaspora.Topic{Name: name, Owner: subject}, diaspora.ValidTopic(name)
}

func (yesClaims) Usage(context.Context, []string) (map[string]diaspora.TopicUsage, error) {
	return map[string]diaspora.TopicUsage{"weather": {Records: 1}}, nil
}

func (yesClaims) SetTopic(_ context.Context, _, name string, _ diaspora.TopicSettings) (diaspora.TopicChange, error) {
	return diaspora.TopicChange{}, diaspora.ValidTopic(name)
}

func (yesClaims) Share(_ context.Context, by, name string, req diaspora.GrantRequest) (diaspora.Grant, error) {
	return diaspora.Grant{Subject: req.Subject, By: by}, diaspora.ValidTopic(name)
}

func (yesClaims) Grants(_ context.Context, _, name string) ([]diaspora.Grant, error) {
	return nil, diaspora.ValidTopic(name)
}

func (yesClaims) Log(_ context.Context, subject, name string) ([]diaspora.TopicEvent, error) {
	return []diaspora.TopicEvent{{By: subject, Op: "claim"}}, diaspora.ValidTopic(name)
}

func (yesClaims) Readers(_ context.Context, subject, name string) ([]diaspora.Reader, error) {
	return []diaspora.Reader{{Subject: subject, Group: "g"}}, diaspora.ValidTopic(name)
}

func (yesClaims) Unshare(_ context.Context, _, name, _ string) error {
	return diaspora.ValidTopic(name)
}
func (yesClaims) Offer(_ context.Context, _, name, _ string) error { return diaspora.ValidTopic(name) }

func (c yesClaims) Accept(ctx context.Context, subject, name string) (diaspora.Topic, error) {
	return c.Topic(ctx, subject, name)
}

func (c yesClaims) Retire(ctx context.Context, subject, name string) (diaspora.Topic, error) {
	return c.Topic(ctx, subject, name)
}

func (c yesClaims) Restore(ctx context.Context, subject, name string) (diaspora.Topic, error) {
	return c.Topic(ctx, subject, name)
}

func (yesClaims) Release(_ context.Context, _, name string) error { return diaspora.ValidTopic(name) }

func (yesClaims) IssueKey(_ context.Context, subject string, req diaspora.AccessKeyRequest) (diaspora.NewAccessKey, error) {
	return diaspora.NewAccessKey{AccessKey: diaspora.AccessKey{ID: keyID, Name: "n", Owner: subject}, Secret: keySecret}, diaspora.ValidTopic(req.Name)
}

func (yesClaims) Keys(context.Context, string) ([]diaspora.AccessKey, error) { return nil, nil }

func (yesClaims) Key(_ context.Context, subject, _ string) (diaspora.AccessKey, error) {
	return diaspora.AccessKey{ID: keyID, Owner: subject}, nil
}

func (yesClaims) RevokeKey(context.Context, string, string) error { return nil }

func (yesClaims) AuthenticateKey(_ context.Context, id string, secret globus.Secret) (diaspora.AccessKey, error) {
	if id != keyID || secret != keySecret {
		return diaspora.AccessKey{}, &globus.RefusedError{Reason: "there is no such access key"}
	}
	return diaspora.AccessKey{ID: keyID, Owner: ada}, nil
}

func (yesClaims) Block(_ context.Context, by string, req diaspora.BlockRequest) (diaspora.Blocked, error) {
	return diaspora.Blocked{Subject: req.Subject, Why: req.Why, By: by}, nil
}

func (yesClaims) Unblock(context.Context, string, string) error { return nil }

func (yesClaims) Blocked(_ context.Context, by string) ([]diaspora.Blocked, error) {
	return []diaspora.Blocked{{Subject: bob, Why: "spam", By: by}}, nil
}

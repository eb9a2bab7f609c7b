package server

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/claims"
)

// aclForm is the form of /acl: the README's three inputs.
type aclForm struct {
	Subject string        `json:"subject"`
	Token   globus.Secret `json:"token"`
	Topic   string        `json:"topic"`
}

// aclAnswer is what POST /acl answers to programs: the topic, and how to do the
// same again.
type aclAnswer struct {
	diaspora.Topic
	Form string `json:"form"` // a link to the form with everything but the token filled in
	Curl string `json:"curl"` // a command that makes the same claim
}

// showForm answers GET /acl. Subject and topic come from the query. The token
// comes from the fragment, or for compatibility from the query, and in both cases
// only the page's script reads it: it is never written into a page.
func (s *Server) showForm(x *exchange) error {
	x.form = &aclForm{}
	if err := decodeForm(x.r.URL.RawQuery, x.form, true); err != nil {
		return err
	}
	x.token = x.form.Token
	page := x.formPage(nil)
	page.TokenInQuery = x.token != ""
	s.pages.write(x, http.StatusOK, "acl", page)
	return nil
}

// claimByForm answers POST /acl.
func (s *Server) claimByForm(x *exchange) error {
	x.form = &aclForm{}
	t, contentType, err := s.claimForm(x, x.form)
	if err != nil {
		return err
	}
	offers := []string{typePlain, typeJSON, typeHTML}
	if contentType == typeJSON {
		offers = []string{typeJSON, typePlain, typeHTML}
	}
	status := claimedStatus(x, t)
	a := aclAnswer{Topic: t, Form: s.formLink(x.caller.Subject, t.Name), Curl: s.curlCommand(x.caller.Subject, t.Name)}
	switch choose(x.r, offers...) {
	case typeHTML:
		s.pages.write(x, status, "claimed", a)
	case typeJSON:
		x.writeJSON(status, typeJSON, a)
	default:
		x.write(status, typePlain+"; charset=utf-8", []byte(a.text()))
	}
	return nil
}

// claimForm reads the form and makes the claim that it asks for.
func (s *Server) claimForm(x *exchange, form *aclForm) (diaspora.Topic, string, error) {
	body, contentType, err := readBody(x, typeForm, typeJSON)
	if err != nil {
		return diaspora.Topic{}, contentType, err
	}
	if contentType == typeJSON {
		err = decodeJSON(body, form)
	} else {
		err = decodeForm(string(body), form, false)
	}
	if err != nil {
		return diaspora.Topic{}, contentType, err
	}
	t, err := s.claimAs(x, form)
	return t, contentType, err
}

// claimAs claims for whoever the token belongs to, who must be the form's subject.
func (s *Server) claimAs(x *exchange, form *aclForm) (diaspora.Topic, error) {
	inHeader, err := bearerToken(x)
	switch {
	case err != nil:
		return diaspora.Topic{}, err
	case inHeader && form.Token != "":
		return diaspora.Topic{}, invalid("the token must be given once: in the form or in the Authorization header")
	case !inHeader && form.Token == "":
		return diaspora.Topic{}, unauthenticated("the access token is missing", "")
	case !inHeader:
		x.token = form.Token
	}
	if form.Subject == "" {
		return diaspora.Topic{}, invalid("the subject claim is missing: `diaspora whoami` shows it")
	}
	if err := s.authenticate(x); err != nil {
		return diaspora.Topic{}, err
	}
	if !strings.EqualFold(form.Subject, x.caller.Subject) {
		return diaspora.Topic{}, &refusal{
			status: http.StatusForbidden,
			detail: "the access token belongs to somebody other than the subject claim",
			hint:   "`diaspora whoami` shows the subject claim that goes with your token.",
		}
	}
	return s.claim(x, diaspora.ClaimRequest{Name: form.Topic})
}

// formLink is the README's GET request with the form filled. It is without the
// token, which only the browser that typed it can add, as #token=….
func (s *Server) formLink(subject, topic string) string {
	return s.public.JoinPath("acl").String() + "?" + url.Values{"subject": {subject}, "topic": {topic}}.Encode()
}

// curlCommand is the README's POST request. It takes the token from the
// environment or from the diaspora command, over a pipe: pasting it leaves no
// token in the shell's history or in the list of processes.
func (s *Server) curlCommand(subject, topic string) string {
	return strings.Join([]string{
		`printf %s "${DIASPORA_TOKEN:-$(diaspora token)}" |`,
		`  curl -sS --data-urlencode token@- \`,
		`    --data-urlencode ` + shellQuote("subject="+subject) + ` \`,
		`    --data-urlencode ` + shellQuote("topic="+topic) + ` \`,
		`    ` + shellQuote(s.public.JoinPath("acl").String()),
	}, "\n")
}

func shellQuote(text string) string {
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

// text is the answer for people at a terminal.
func (a aclAnswer) text() string {
	what := "is yours"
	if !a.Created {
		what = "was yours already"
	}
	return fmt.Sprintf(`Topic %s %s. Its events are kept %s.

Log an event:
  echo hello | diaspora produce %[1]s
Read it back:
  diaspora consume %[1]s --from start
The form, filled in (append #token= and the access token for that as well):
  %[4]s
The same claim with curl:
  %[5]s
`, a.Name, what, claims.Kept(a.RetentionMS), a.Form, strings.ReplaceAll(a.Curl, "\n", "\n  "))
}

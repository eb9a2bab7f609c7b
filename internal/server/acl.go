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

// aclForm has the fields of the form at /acl.
type aclForm struct {
	Subject string        `json:"subject"`
	Token   globus.Secret `json:"token"`
	Topic   string        `json:"topic"`
}

// claimResponse is the answer to POST /acl: the topic, and how to make the same claim again.
type claimResponse struct {
	diaspora.Topic
	Form string `json:"form"` // a link to the form, filled in except for the token
	Curl string `json:"curl"` // a command that makes the same claim
}

// showForm handles GET /acl. Subject and topic come from the query. The token comes from the URL's
// fragment or, for compatibility, from the query. In both cases only the page's script reads it;
// the server never writes it into a page.
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

// claimByForm handles POST /acl.
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
	status := claimStatus(x, t)
	a := claimResponse{Topic: t, Form: s.formLink(x.caller.Subject, t.Name), Curl: s.curlCommand(x.caller.Subject, t.Name)}
	switch negotiate(x.r, offers...) {
	case typeHTML:
		s.pages.write(x, status, "claimed", a)
	case typeJSON:
		x.writeJSON(status, typeJSON, a)
	default:
		x.write(status, typePlain+"; charset=utf-8", []byte(a.text()))
	}
	return nil
}

// claimForm reads the form and makes the claim.
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

// claimAs makes the claim for the owner of the token, who must be the form's subject.
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
	if err := x.rejectToken("topic", form.Topic); err != nil {
		return diaspora.Topic{}, err
	}
	return s.cfg.Claims.Claim(x.r.Context(), x.caller.Subject, diaspora.ClaimRequest{Name: form.Topic})
}

// formLink returns a link to the form with subject and topic filled in. It has no token: the
// browser adds that, as #token=….
func (s *Server) formLink(subject, topic string) string {
	return s.public.JoinPath("acl").String() + "?" + url.Values{"subject": {subject}, "topic": {topic}}.Encode()
}

// curlCommand returns the curl command for POST /acl. It passes the token through a pipe, from the
// environment or from the diaspora command. So pasting the command leaves no token in the shell's
// history or in the process list.
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

// text returns the answer as plain text, for a terminal.
func (a claimResponse) text() string {
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
`, a.Name, what, claims.FormatRetention(a.RetentionMS), a.Form, strings.ReplaceAll(a.Curl, "\n", "\n  "))
}

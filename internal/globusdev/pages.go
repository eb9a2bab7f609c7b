package globusdev

import (
	"bytes"
	"embed"
	"html/template"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
)

//go:embed pages
var pageFiles embed.FS

var pages = template.Must(template.ParseFS(pageFiles, "pages/*.html"))

// pageError is an error that is shown to the user, because it cannot be reported to the client: the
// client is unknown, or the redirect URI is not valid.
type pageError struct {
	status int
	Reason string
	Time   string
	ID     string
}

func newPageError(status int, reason string) *pageError {
	return &pageError{status: status, Reason: reason, Time: time.Now().UTC().Format(time.RFC3339), ID: uuid.NewString()}
}

func (e *pageError) Error() string { return e.Reason }

// writePage sends a page. The page can only load the style sheet, cannot be framed, and can send
// forms only to this server and to formTargets.
func (s *Server) writePage(w http.ResponseWriter, status int, name string, data any, formTargets ...string) {
	var out bytes.Buffer
	if err := pages.ExecuteTemplate(&out, name+".html", data); err != nil {
		s.log.Error("cannot make a page", "page", name, "err", err)
		http.Error(w, "cannot make the page", http.StatusInternalServerError)
		return
	}
	targets := strings.Join(append([]string{"'self'"}, formTargets...), " ")
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action "+targets)
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "same-origin") // no-referrer would hide the origin when the form is posted
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), microphone=(), geolocation=()")
	w.WriteHeader(status)
	w.Write(out.Bytes()) // an error here is the client's problem
}

const maxShown = 200 // number of users on the page

// pickerPage is the data of the page on which the user picks an identity.
type pickerPage struct {
	Client  string
	Message string
	Label   string
	Scopes  []ScopeDef
	Offline bool
	People  []*User
	More    int // number of users that are not shown
	Hidden  []pickerField
}

type pickerField struct{ Name, Value string }

// passedOn are the parameters that the page's form repeats unchanged.
var passedOn = slices.Concat(loggedParameters, []string{
	"response_type", "client_id", "redirect_uri", "state", "code_challenge", "code_challenge_method", "nonce",
})

// hidden returns the parameters of a request, for a form that repeats it.
func (a *authorization) hidden() (fields []pickerField) {
	for _, name := range passedOn {
		if value := a.params[name]; value != "" {
			fields = append(fields, pickerField{name, value})
		}
	}
	return fields
}

// secretPage is the data of the page that asks for the secret.
type secretPage struct {
	Wrong  bool // a wrong secret was sent
	Hidden []pickerField
}

// showSecretPage shows the page that asks for the secret.
func (s *Server) showSecretPage(w http.ResponseWriter, r *http.Request, a *authorization) error {
	page := secretPage{Wrong: r.Method == http.MethodPost && a.params[secretParameter] != "", Hidden: a.hidden()}
	s.writePage(w, http.StatusForbidden, "secret", page, formTarget(a.redirect))
	return nil
}

func (s *Server) showPicker(w http.ResponseWriter, a *authorization) error {
	page := pickerPage{
		Client: a.client.name, Scopes: a.scopes, Message: a.params["session_message"], Label: a.params["prefill_named_grant"], Offline: a.offline,
		Hidden: a.hidden(),
	}
	if s.cfg.Secret != "" {
		page.Hidden = append(page.Hidden, pickerField{ticketParameter, s.newTicket(a.params)})
	}
	s.mu.Lock()
	people := s.state.sortedUsers()
	s.mu.Unlock()
	page.More = max(0, len(people)-maxShown)
	page.People = people[:len(people)-page.More]
	s.writePage(w, http.StatusOK, "authorize", page, formTarget(a.redirect))
	return nil
}

// formTarget returns the source for the form-action policy that allows the redirect to the client
// after the form is posted.
func formTarget(redirect string) string {
	u, err := url.Parse(redirect)
	if err != nil || u.Host == "" || strings.ContainsAny(u.Host, "[];, '\"") {
		return u.Scheme + ":"
	}
	return u.Scheme + "://" + u.Host
}

// serveAuthCode shows an authorization code for copying, or the error.
func (s *Server) serveAuthCode(w *recorder, r *http.Request) error {
	p, err := parseParams(r.URL.RawQuery)
	if err != nil {
		return newPageError(http.StatusBadRequest, err.Error())
	}
	s.writePage(w, http.StatusOK, "code", p)
	return nil
}

func (s *Server) serveHome(w *recorder, _ *http.Request) error {
	s.writePage(w, http.StatusOK, "home", s.cfg.Issuer)
	return nil
}

func (s *Server) serveStyle(w *recorder, r *http.Request) error {
	w.Header().Set("Content-Type", "text/css; charset=utf-8")
	w.Header().Set("Cache-Control", "max-age=3600")
	http.ServeFileFS(w, r, pageFiles, "pages/style.css")
	return nil
}

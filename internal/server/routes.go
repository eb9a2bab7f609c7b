package server

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// A handler handles the requests of one route. If it returns an error, [Server.fail] writes the
// response, so the handler must not have written any of it.
type handler func(*Server, *exchange) error

type route struct {
	pattern string // in the syntax of http.ServeMux
	access  access
	handle  handler
	offers  []string // media types of the response, the default first; nil if the handler does not choose
}

// access says how a route authenticates the caller.
type access int

const (
	public      access = iota // the caller is not authenticated
	bearer                    // by the Authorization header (Bearer), before the handler runs
	inForm                    // by the fields of the form, in the handler
	bearerOrKey               // like bearer, or by the ID and secret of an access key as HTTP Basic
	oauthClient               // as an OAuth client, in the handler; errors have OAuth's format
)

// routeTable lists all routes of the endpoint. Any other path is answered with 404, and a listed
// path with another method with 405.
var routeTable = []route{
	{"GET /{$}", public, (*Server).landing, []string{typeHTML}},
	{"GET /acl", public, (*Server).showForm, []string{typeHTML}},
	{"POST /acl", inForm, (*Server).claimByForm, []string{typePlain, typeJSON, typeHTML}},
	{"GET /assets/{file}", public, (*Server).asset, nil},

	{"GET /v1/identity", bearer, (*Server).showIdentity, []string{typeJSON}},
	{"POST /v1/topics", bearer, (*Server).claimTopic, []string{typeJSON}},
	{"GET /v1/topics", bearer, (*Server).listTopics, []string{typeJSON}},
	{"GET /v1/topics/{name}", bearer, (*Server).showTopic, []string{typeJSON}},
	{"DELETE /v1/topics/{name}", bearer, (*Server).releaseTopic, []string{typeJSON}},
	{"PATCH /v1/topics/{name}", bearer, (*Server).setTopic, []string{typeJSON}},
	{"POST /v1/topics/{name}/grants", bearer, (*Server).shareTopic, []string{typeJSON}},
	{"GET /v1/topics/{name}/grants", bearer, (*Server).listGrants, []string{typeJSON}},
	{"DELETE /v1/topics/{name}/grants/{grantee}", bearer, (*Server).unshareTopic, []string{typeJSON}},
	{"GET /v1/topics/{name}/log", bearer, (*Server).showLog, []string{typeJSON}},
	{"GET /v1/topics/{name}/readers", bearer, (*Server).listReaders, []string{typeJSON}},
	{"POST /v1/topics/{name}/transfer", bearer, (*Server).transferTopic, []string{typeJSON}},
	{"POST /v1/topics/{name}/accept", bearer, (*Server).acceptTopic, []string{typeJSON}},
	{"POST /v1/topics/{name}/release", bearer, (*Server).retireTopic, []string{typeJSON}},
	{"POST /v1/topics/{name}/restore", bearer, (*Server).restoreTopic, []string{typeJSON}},
	{"GET /v1/identities/{username}", bearer, (*Server).showIdentityOf, []string{typeJSON}},
	{"POST /v1/keys", bearer, (*Server).issueKey, []string{typeJSON}},
	{"GET /v1/keys", bearer, (*Server).listKeys, []string{typeJSON}},
	{"GET /v1/keys/{id}", bearerOrKey, (*Server).showKey, []string{typeJSON}},
	{"DELETE /v1/keys/{id}", bearer, (*Server).revokeKey, []string{typeJSON}},
	{"POST /v1/admin/blocked", bearer, (*Server).block, []string{typeJSON}},
	{"GET /v1/admin/blocked", bearer, (*Server).listBlocked, []string{typeJSON}},
	{"DELETE /v1/admin/blocked/{subject}", bearer, (*Server).unblock, []string{typeJSON}},
	{"POST /v1/token", oauthClient, (*Server).exchangeKey, []string{typeJSON}},

	{"GET /.well-known/diaspora", public, (*Server).discover, []string{typeJSON}},
	{"GET /healthz", public, (*Server).healthz, []string{typeJSON}},
}

func (s *Server) routes() *http.ServeMux {
	mux := http.NewServeMux()
	methods := map[string][]string{} // by path
	for _, rt := range routeTable {
		method, path, _ := strings.Cut(rt.pattern, " ")
		methods[path] = append(methods[path], method)
		mux.Handle(rt.pattern, s.routeHandler(rt))
	}
	for path, allowed := range methods {
		if slices.Contains(allowed, "GET") {
			allowed = append(allowed, "HEAD")
		}
		slices.Sort(allowed)
		mux.Handle(path, s.refuse(refusal{
			status: http.StatusMethodNotAllowed,
			detail: "this address supports only " + strings.Join(allowed, ", "),
			header: http.Header{"Allow": {strings.Join(allowed, ", ")}},
		}))
	}
	mux.Handle("/", s.refuse(refusal{
		status: http.StatusNotFound,
		detail: "there is nothing at this address",
		hint:   "The form is at /acl, the API under /v1/topics and /v1/keys.",
	}))
	return mux
}

// routeHandler returns the handler of rt, preceded by the checks for its kind of access.
func (s *Server) routeHandler(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x := w.(*exchange)
		x.r = r // r has the values of the path's wildcards
		x.oauth = rt.access == oauthClient
		err := checkRequest(rt, r)
		switch {
		case err != nil:
		case rt.access == bearerOrKey && sendsBasic(r):
			err = s.authenticateKey(x)
		case rt.access == bearer || rt.access == bearerOrKey:
			err = s.authenticateHeader(x)
		}
		if err == nil {
			err = rt.handle(s, x)
		}
		if err != nil {
			s.fail(x, err)
		}
	})
}

// checkRequest refuses a request with a query where fields belong in the body, with a body that no
// handler would read, or that accepts only formats in which the route cannot answer.
func checkRequest(rt route, r *http.Request) error {
	if rt.access != public && r.URL.RawQuery != "" {
		return queryRefusal(rt, r.URL.RawQuery)
	}
	if r.Method != http.MethodPost && r.Method != http.MethodPatch && r.ContentLength != 0 {
		return &refusal{status: http.StatusBadRequest, detail: r.Method + " takes no body here"}
	}
	if rt.offers != nil && negotiate(r, rt.offers...) == "" {
		return &refusal{status: http.StatusNotAcceptable, detail: "the response can only be " + strings.Join(rt.offers, " or ")}
	}
	return nil
}

// queryRefusal says where the fields of a query belong, and what to do if one of them may be a
// token.
func queryRefusal(rt route, query string) error {
	why := &refusal{status: http.StatusBadRequest, detail: "this address takes no query parameters"}
	switch {
	case rt.access == inForm:
		names, _ := fieldsOf(&aclForm{})
		why.detail += "; the body must have the fields " + strings.Join(names, ", ")
		why.hint = "Send them as a form: curl's --data-urlencode does, and /acl shows the whole command."
	case rt.access == bearer || rt.access == bearerOrKey:
		why.hint = "Send fields in the body and the token in the Authorization header."
	}
	if mayHaveToken(query) {
		why.hint += " A token that was in a URL may have been recorded on its way: revoke it with `diaspora logout`."
	}
	return why
}

// mayHaveToken reports whether a query may hold a token: because a field is named like a secret,
// because a field's name is as long as a token, or because the value of a field other than topic
// is.
func mayHaveToken(query string) bool {
	values, err := url.ParseQuery(query)
	if err != nil {
		return true
	}
	for name, all := range values {
		lower := strings.ToLower(name)
		if strings.Contains(lower, "token") || strings.Contains(lower, "secret") || len(name) >= minTokenBytes {
			return true
		}
		for _, value := range all {
			if len(value) >= minTokenBytes && name != "topic" {
				return true
			}
		}
	}
	return false
}

// minTokenBytes is larger than the length of a subject, which is a UUID, and smaller than that of
// any token.
const minTokenBytes = 37

func (s *Server) refuse(why refusal) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.fail(w.(*exchange), &why) })
}

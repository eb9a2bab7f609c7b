package server

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/diaspora-streams/diaspora"
)

// issueKey handles the request for a new access key. Its response is the only one with a key's
// secret in it.
func (s *Server) issueKey(x *exchange) error {
	var req diaspora.AccessKeyRequest
	if err := readRequest(x, &req); err != nil {
		return err
	}
	if strings.Contains(req.Name, x.token.Reveal()) {
		return invalid("the access token is in a field that others can read")
	}
	key, err := s.cfg.Claims.IssueKey(x.r.Context(), x.caller.Subject, req)
	if err != nil {
		return err
	}
	x.Header().Set("Location", "/v1/keys/"+url.PathEscape(key.ID))
	x.writeJSON(http.StatusCreated, typeJSON, struct {
		diaspora.AccessKey
		Secret string `json:"secret"`
	}{key.AccessKey, key.Secret.Reveal()})
	return nil
}

func (s *Server) listKeys(x *exchange) error {
	keys, err := s.cfg.Claims.Keys(x.r.Context(), x.caller.Subject)
	if err != nil {
		return err
	}
	if keys == nil {
		keys = []diaspora.AccessKey{} // [] rather than null
	}
	x.writeJSON(http.StatusOK, typeJSON, diaspora.AccessKeyList{Keys: keys})
	return nil
}

func (s *Server) showKey(x *exchange) error {
	key, err := s.cfg.Claims.Key(x.r.Context(), x.caller.Subject, x.r.PathValue("id"))
	if err != nil {
		return err
	}
	x.writeJSON(http.StatusOK, typeJSON, key)
	return nil
}

func (s *Server) revokeKey(x *exchange) error {
	if err := s.cfg.Claims.RevokeKey(x.r.Context(), x.caller.Subject, x.r.PathValue("id")); err != nil {
		return err
	}
	x.WriteHeader(http.StatusNoContent)
	return nil
}

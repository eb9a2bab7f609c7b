package server

import (
	"net/http"
	"net/url"

	"github.com/diaspora-streams/diaspora"
)

// issueKey handles the request for a new access key. Its response is the only one with a key's
// secret in it.
func (s *Server) issueKey(x *exchange) error {
	var req diaspora.AccessKeyRequest
	if err := readRequest(x, &req); err != nil {
		return err
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
	return x.answer(diaspora.AccessKeyList{Keys: nonNil(keys)}, err)
}

func (s *Server) showKey(x *exchange) error {
	return x.answer(s.cfg.Claims.Key(x.r.Context(), x.caller.Subject, x.r.PathValue("id")))
}

func (s *Server) revokeKey(x *exchange) error {
	return x.answerEmpty(s.cfg.Claims.RevokeKey(x.r.Context(), x.caller.Subject, x.r.PathValue("id")))
}

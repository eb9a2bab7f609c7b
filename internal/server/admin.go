package server

import (
	"net/http"
	"strings"

	"github.com/diaspora-streams/diaspora"
)

// block handles the request of an operator to block a subject.
func (s *Server) block(x *exchange) error {
	var req diaspora.BlockRequest
	if err := readRequest(x, &req); err != nil {
		return err
	}
	if token := x.token.Reveal(); strings.Contains(req.Subject, token) || strings.Contains(req.Why, token) {
		return invalid("the access token is in a field that others can read")
	}
	blocked, err := s.cfg.Claims.Block(x.r.Context(), x.caller.Subject, req)
	if err != nil {
		return err
	}
	x.writeJSON(http.StatusOK, typeJSON, blocked)
	return nil
}

func (s *Server) listBlocked(x *exchange) error {
	blocked, err := s.cfg.Claims.Blocked(x.r.Context(), x.caller.Subject)
	if err != nil {
		return err
	}
	if blocked == nil {
		blocked = []diaspora.Blocked{} // [] rather than null
	}
	x.writeJSON(http.StatusOK, typeJSON, diaspora.BlockedList{Blocked: blocked})
	return nil
}

func (s *Server) unblock(x *exchange) error {
	if err := s.cfg.Claims.Unblock(x.r.Context(), x.caller.Subject, x.r.PathValue("subject")); err != nil {
		return err
	}
	x.WriteHeader(http.StatusNoContent)
	return nil
}

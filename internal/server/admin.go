package server

import "github.com/diaspora-streams/diaspora"

// block handles the request of an operator to block a subject.
func (s *Server) block(x *exchange) error {
	var req diaspora.BlockRequest
	if err := readRequest(x, &req); err != nil {
		return err
	}
	return x.answer(s.cfg.Claims.Block(x.r.Context(), x.caller.Subject, req))
}

func (s *Server) listBlocked(x *exchange) error {
	blocked, err := s.cfg.Claims.Blocked(x.r.Context(), x.caller.Subject)
	return x.answer(diaspora.BlockedList{Blocked: nonNil(blocked)}, err)
}

func (s *Server) unblock(x *exchange) error {
	return x.answerEmpty(s.cfg.Claims.Unblock(x.r.Context(), x.caller.Subject, x.r.PathValue("subject")))
}

package server

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/diaspora-streams/diaspora"
)

// readRequest decodes the JSON body of an API request.
func readRequest(x *exchange, into any) error {
	body, _, err := readBody(x, typeJSON)
	if err != nil {
		return err
	}
	return decodeJSON(body, into)
}

// claimedStatus returns 201 for a new topic, and 200 for one that the caller owned already.
func claimedStatus(x *exchange, t diaspora.Topic) int {
	if !t.Created {
		return http.StatusOK
	}
	x.Header().Set("Location", "/v1/topics/"+url.PathEscape(t.Name))
	return http.StatusCreated
}

// claim makes a claim for the caller, from the form or the API.
func (s *Server) claim(x *exchange, req diaspora.ClaimRequest) (diaspora.Topic, error) {
	if token := x.token.Reveal(); strings.Contains(req.Name, token) || strings.Contains(req.Description, token) {
		return diaspora.Topic{}, invalid("the access token is in a field that others can read")
	}
	return s.cfg.Claims.Claim(x.r.Context(), x.caller.Subject, req)
}

// showIdentity returns the owner of the token, for clients that have only a token.
func (s *Server) showIdentity(x *exchange) error {
	x.writeJSON(http.StatusOK, typeJSON, x.caller)
	return nil
}

func (s *Server) claimTopic(x *exchange) error {
	var req diaspora.ClaimRequest
	if err := readRequest(x, &req); err != nil {
		return err
	}
	t, err := s.claim(x, req)
	if err != nil {
		return err
	}
	x.writeJSON(claimedStatus(x, t), typeJSON, t)
	return nil
}

func (s *Server) listTopics(x *exchange) error {
	topics, err := s.cfg.Claims.Topics(x.r.Context(), x.caller.Subject)
	if err != nil {
		return err
	}
	if topics == nil {
		topics = []diaspora.Topic{} // [] rather than null
	}
	x.writeJSON(http.StatusOK, typeJSON, diaspora.TopicList{Topics: topics})
	return nil
}

func (s *Server) showTopic(x *exchange) error {
	t, err := s.cfg.Claims.Topic(x.r.Context(), x.caller.Subject, x.r.PathValue("name"))
	if err != nil {
		return err
	}
	x.writeJSON(http.StatusOK, typeJSON, t)
	return nil
}

func (s *Server) releaseTopic(x *exchange) error {
	if err := s.cfg.Claims.Release(x.r.Context(), x.caller.Subject, x.r.PathValue("name")); err != nil {
		return err
	}
	x.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) discover(x *exchange) error {
	x.write(http.StatusOK, typeJSON, s.discovery)
	return nil
}

// health is the answer of /healthz. Its status is 200 if every part works, otherwise 503.
type health struct {
	Status string            `json:"status"` // "ok" or "unavailable"
	Checks map[string]string `json:"checks"` // the same values, for each part
}

const (
	healthTimeout  = 2 * time.Second
	healthFreshFor = time.Second // everyone may request /healthz, so the checks run at most this often
)

type healthCache struct {
	mu    sync.Mutex // held during the checks, so that concurrent callers share one answer
	asked time.Time
	last  health
}

func (s *Server) healthz(x *exchange) error {
	h := s.checkHealth()
	status := http.StatusOK
	if h.Status != "ok" {
		status = http.StatusServiceUnavailable
		x.Header().Set("Retry-After", retryAfter)
	}
	x.writeJSON(status, typeJSON, h)
	return nil
}

func (s *Server) checkHealth() health {
	c := &s.health
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.asked.IsZero() && time.Since(c.asked) < healthFreshFor {
		return c.last
	}
	// Not the caller's context, because the answer is shared.
	ctx, cancel := context.WithTimeout(context.Background(), healthTimeout)
	defer cancel()
	h := health{Status: "ok", Checks: map[string]string{}}
	for name, ready := range s.cfg.Ready {
		h.Checks[name] = "ok"
		if err := ready(ctx); err != nil {
			s.log.Warn("not ready", "part", name, "err", err)
			h.Checks[name], h.Status = "unavailable", "unavailable"
		}
	}
	c.last, c.asked = h, time.Now()
	return h
}

func seconds(d time.Duration) string { return strconv.Itoa(int(d/time.Second) + 1) }

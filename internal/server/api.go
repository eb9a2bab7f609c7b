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

// readRequest decodes the JSON body of an API request. It refuses one with the caller's token in any
// field.
func readRequest(x *exchange, into any) error {
	body, _, err := readBody(x, typeJSON)
	if err != nil {
		return err
	}
	if err := decodeJSON(body, into); err != nil {
		return err
	}
	names, fields := fieldsOf(into)
	for _, name := range names {
		for _, text := range textsOf(fields[name]) {
			if err := x.rejectToken(name, text); err != nil {
				return err
			}
		}
	}
	return nil
}

// claimStatus returns 201 for a new topic, and 200 for one that the caller owned already.
func claimStatus(x *exchange, t diaspora.Topic) int {
	if !t.Created {
		return http.StatusOK
	}
	x.Header().Set("Location", "/v1/topics/"+url.PathEscape(t.Name))
	return http.StatusCreated
}

// answer writes the result of a request as JSON, unless err is not nil.
func (x *exchange) answer(result any, err error) error {
	if err == nil {
		x.writeJSON(http.StatusOK, typeJSON, result)
	}
	return err
}

// answerEmpty writes a response without a body, unless err is not nil.
func (x *exchange) answerEmpty(err error) error {
	if err == nil {
		x.WriteHeader(http.StatusNoContent)
	}
	return err
}

// nonNil returns a list that is [] in JSON, rather than null, if it is empty.
func nonNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// rejectToken fails if a field, which others can read, contains the caller's token.
func (x *exchange) rejectToken(field, text string) error {
	if strings.Contains(text, x.token.Reveal()) {
		return invalid("the access token is in the field %q, which others can read", field)
	}
	return nil
}

// showIdentity returns the owner of the token, for clients that have only a token.
func (s *Server) showIdentity(x *exchange) error { return x.answer(x.caller, nil) }

func (s *Server) claimTopic(x *exchange) error {
	var req diaspora.ClaimRequest
	if err := readRequest(x, &req); err != nil {
		return err
	}
	t, err := s.cfg.Claims.Claim(x.r.Context(), x.caller.Subject, req)
	if err != nil {
		return err
	}
	t.OwnerUsername = x.caller.Username
	x.writeJSON(claimStatus(x, t), typeJSON, t)
	return nil
}

func (s *Server) listTopics(x *exchange) error {
	list, err := s.cfg.Claims.Topics(x.r.Context(), x.caller.Subject)
	if err == nil {
		list.Topics = nonNil(list.Topics)
		name := s.askOwners(x, list.Topics, list.Shared, list.Public, list.Offered)
		s.addUsage(x, list.Topics, list.Shared, list.Public)
		name()
	}
	return x.answer(list, err)
}

func (s *Server) showTopic(x *exchange) error {
	t, err := s.cfg.Claims.Topic(x.r.Context(), x.caller.Subject, x.r.PathValue("name"))
	if err == nil {
		one := []diaspora.Topic{t}
		name := s.askOwners(x, one)
		s.addUsage(x, one)
		name()
		t = one[0]
	}
	return x.answer(t, err)
}

// maxUsage is for how many topics of a list the brokers are asked how much is in them.
const maxUsage = 200

// addUsage adds to topics how much is in them. That is left out for very many, and if the brokers do
// not answer soon.
func (s *Server) addUsage(x *exchange, lists ...[]diaspora.Topic) {
	var names []string
	for _, list := range lists {
		for _, t := range list {
			names = append(names, t.Name)
		}
	}
	if len(names) > maxUsage {
		return
	}
	ctx, cancel := context.WithTimeout(x.r.Context(), usageTimeout)
	defer cancel()
	usage, err := s.cfg.Claims.Usage(ctx, names)
	if err != nil {
		s.log.Debug("cannot ask how much is in topics", "err", err)
		return
	}
	for _, list := range lists {
		for i := range list {
			if u, known := usage[list[i].Name]; known {
				list[i].Usage = &u
			}
		}
	}
}

const usageTimeout = 2 * time.Second

func (s *Server) releaseTopic(x *exchange) error {
	return x.answerEmpty(s.cfg.Claims.Release(x.r.Context(), x.caller.Subject, x.r.PathValue("name")))
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
	if h.Status == "ok" && c.last.Status == "unavailable" {
		s.log.Warn("ready again")
	}
	c.last, c.asked = h, time.Now()
	return h
}

func seconds(d time.Duration) string { return strconv.Itoa(int(d/time.Second) + 1) }

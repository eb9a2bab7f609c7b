package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/aclclient"
)

// People looks up who has a username at Globus. The error wraps [diaspora.ErrNotFound] if nobody has
// it, [diaspora.ErrConflict] if that cannot be told or used, and [globus.ErrUnavailable] or [globus.ErrMisconfigured] if that is not known.
type People interface {
	Lookup(ctx context.Context, username string) (globus.Identity, error)

	// Identities returns the identities with these IDs, by ID. It leaves unknown ones out.
	Identities(ctx context.Context, subjects []string) (map[string]globus.Identity, error)
}

// lookupsPerMinute limits how many usernames one subject can look up, so that nobody can use the
// service to find out who has an account.
const lookupsPerMinute = 30

// lookups counts the look-ups of each subject.
type lookups struct {
	mu sync.Mutex // guards the field below
	by map[string]*rate.Limiter
}

// take counts a look-up, and reports false if the subject has made too many.
func (l *lookups) take(subject string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.by) > 10_000 {
		for other, limiter := range l.by {
			if limiter.Tokens() >= lookupsPerMinute-1 { // as good as new
				delete(l.by, other)
			}
		}
	}
	if l.by == nil {
		l.by = make(map[string]*rate.Limiter)
	}
	if l.by[subject] == nil {
		l.by[subject] = rate.NewLimiter(rate.Every(time.Minute/lookupsPerMinute), lookupsPerMinute)
	}
	return l.by[subject].Allow()
}

// lookUp asks Globus who has a username, on behalf of the caller.
func (s *Server) lookUp(x *exchange, username string) (globus.Identity, error) {
	switch {
	case !aclclient.IsUsername(username):
		// Globus is not asked, and the text not repeated: it may be a token in the wrong place.
		return globus.Identity{}, invalid("the username must be one of Globus, such as ada@example.edu, of at most %d bytes", aclclient.MaxUsernameBytes)
	case s.cfg.People == nil:
		return globus.Identity{}, &refusal{
			status: http.StatusNotImplemented,
			detail: "this fabric cannot look up usernames",
			hint:   "Name the person by the subject: `diaspora whoami --subject` prints one's own.",
		}
	case !s.lookups.take(x.caller.Subject):
		return globus.Identity{}, &refusal{
			status: http.StatusTooManyRequests,
			detail: "you have looked up too many usernames within a minute",
			header: http.Header{"Retry-After": {"60"}},
		}
	}
	who, err := s.cfg.People.Lookup(x.r.Context(), username)
	return who, lookupRefusal(err)
}

// lookupRefusal describes a failure to look up a person or a group at Globus. Other errors it returns
// unchanged.
func lookupRefusal(err error) error {
	switch {
	case errors.Is(err, globus.ErrUnavailable):
		return &refusal{
			status: http.StatusServiceUnavailable,
			detail: "Globus cannot be reached, so people and groups cannot be looked up",
			hint:   "Nothing has changed: try again in a few seconds.",
		}
	case errors.Is(err, globus.ErrMisconfigured):
		return &refusal{
			status: http.StatusInternalServerError,
			detail: fmt.Sprintf("this fabric cannot look up people and groups, because it cannot use the response of Globus (%v)", err),
			hint:   "Nothing has changed: tell the operators of the fabric.",
		}
	}
	return err
}

// subjectOf returns the subject that a request names: by its ID, by a username, or by both, which must
// then be the same person's.
func (s *Server) subjectOf(x *exchange, subject, username string) (globus.Identity, error) {
	if username == "" {
		return globus.Identity{Subject: subject}, nil
	}
	who, err := s.lookUp(x, username)
	if err == nil && subject != "" && !strings.EqualFold(subject, who.Subject) {
		err = &refusal{status: http.StatusConflict, detail: "the username does not belong to the subject in the request", hint: "Look the username up again."}
	}
	return who, err
}

// showIdentityOf answers who has a username.
func (s *Server) showIdentityOf(x *exchange) error {
	username := x.r.PathValue("username")
	if err := x.rejectToken("username", username); err != nil {
		return err
	}
	who, err := s.lookUp(x, username)
	who.Email, who.IdentitySet = "", nil // that is not the caller's business
	return x.answer(who, err)
}

func (s *Server) shareTopic(x *exchange) error {
	var req diaspora.GrantRequest
	if err := readRequest(x, &req); err != nil {
		return err
	}
	name := x.r.PathValue("name")
	if req.Username != "" {
		if req.Group != "" || req.Public {
			return invalid("a topic is shared with a person, with a group, or with everybody: one at a time")
		}
		// Only those who may share the topic may look up people with it.
		t, err := s.cfg.Claims.Topic(x.r.Context(), x.caller.Subject, name)
		if err == nil && !t.Manage {
			err = &diaspora.TopicError{Op: "share", Topic: name, Err: &diaspora.Error{Condition: diaspora.ErrPermission, Reason: "only its owner, and those whom the owner lets manage it, may do this"}}
		}
		if err != nil {
			return err
		}
	}
	who, err := s.subjectOf(x, req.Subject, req.Username)
	if err != nil {
		return err
	}
	req.Subject, req.Username = who.Subject, who.Username
	g, err := s.cfg.Claims.Share(x.r.Context(), x.caller.Subject, name, req)
	return x.answer(g, lookupRefusal(err))
}

func (s *Server) listGrants(x *exchange) error {
	grants, err := s.cfg.Claims.Grants(x.r.Context(), x.caller.Subject, x.r.PathValue("name"))
	return x.answer(diaspora.GrantList{Grants: nonNil(grants)}, err)
}

func (s *Server) unshareTopic(x *exchange) error {
	return x.answerEmpty(s.cfg.Claims.Unshare(x.r.Context(), x.caller.Subject, x.r.PathValue("name"), x.r.PathValue("grantee")))
}

// usernames returns a function that returns the username of each of these subjects, or "" if it is not
// known. Usernames are only for display, so it is no error if Globus cannot be asked.
func (s *Server) usernames(x *exchange, subjects []string) func(subject string) string {
	slices.Sort(subjects)
	subjects = slices.DeleteFunc(slices.Compact(subjects), func(subject string) bool { return subject == "" })
	known := map[string]globus.Identity{x.caller.Subject: x.caller}
	if s.cfg.People != nil && len(subjects) <= maxUsernames {
		ctx, cancel := context.WithTimeout(x.r.Context(), usernamesTimeout)
		defer cancel()
		found, err := s.cfg.People.Identities(ctx, subjects)
		if err != nil {
			s.log.Warn("cannot look up usernames", "err", err)
		}
		maps.Copy(known, found)
	}
	return func(subject string) string { return known[subject].Username }
}

const (
	maxUsernames     = 500
	usernamesTimeout = 3 * time.Second
)

// showLog answers what was done to a topic.
func (s *Server) showLog(x *exchange) error {
	events, err := s.cfg.Claims.Log(x.r.Context(), x.caller.Subject, x.r.PathValue("name"))
	if err != nil {
		return err
	}
	var subjects []string
	for _, e := range events {
		subjects = append(subjects, e.By, e.Subject)
		if e.Grant != nil {
			subjects = append(subjects, e.Grant.Subject)
		}
	}
	username := s.usernames(x, subjects)
	for i := range events {
		e := &events[i]
		e.Username, e.SubjectUsername = username(e.By), username(e.Subject)
		if e.Grant != nil {
			e.Grant.Username = cmp.Or(e.Grant.Username, username(e.Grant.Subject))
		}
	}
	return x.answer(diaspora.TopicLog{Events: nonNil(events)}, nil)
}

// listReaders answers who has read a topic.
func (s *Server) listReaders(x *exchange) error {
	readers, err := s.cfg.Claims.Readers(x.r.Context(), x.caller.Subject, x.r.PathValue("name"))
	if err != nil {
		return err
	}
	var subjects []string
	for _, r := range readers {
		subjects = append(subjects, r.Subject)
	}
	username := s.usernames(x, subjects)
	for i := range readers {
		readers[i].Username = username(readers[i].Subject)
	}
	return x.answer(diaspora.ReaderList{Readers: nonNil(readers)}, nil)
}

func (s *Server) setTopic(x *exchange) error {
	var req diaspora.TopicSettings
	if err := readRequest(x, &req); err != nil {
		return err
	}
	return x.answer(s.cfg.Claims.SetTopic(x.r.Context(), x.caller.Subject, x.r.PathValue("name"), req))
}

// transferTopic offers a topic to another person.
func (s *Server) transferTopic(x *exchange) error {
	var req diaspora.Transfer
	if err := readRequest(x, &req); err != nil {
		return err
	}
	name, ctx, caller := x.r.PathValue("name"), x.r.Context(), x.caller.Subject
	t, err := s.cfg.Claims.Topic(ctx, caller, name)
	if err == nil && t.Owner != caller {
		err = &diaspora.TopicError{Op: "transfer", Topic: name, Err: &diaspora.Error{Condition: diaspora.ErrPermission, Reason: "only its owner may do this"}}
	}
	if err != nil {
		return err
	}
	who, err := s.subjectOf(x, req.Subject, req.Username)
	if err == nil {
		err = s.cfg.Claims.Offer(ctx, caller, name, who.Subject)
	}
	if err != nil {
		return err
	}
	return x.answer(s.cfg.Claims.Topic(ctx, caller, name))
}

func (s *Server) acceptTopic(x *exchange) error {
	return s.act(x, s.cfg.Claims.Accept)
}

func (s *Server) retireTopic(x *exchange) error {
	return s.act(x, s.cfg.Claims.Retire)
}

func (s *Server) restoreTopic(x *exchange) error {
	return s.act(x, s.cfg.Claims.Restore)
}

// act does something with a topic for which the request has no body.
func (s *Server) act(x *exchange, do func(ctx context.Context, by, name string) (diaspora.Topic, error)) error {
	if x.r.ContentLength != 0 {
		return invalid("this request takes no body")
	}
	return x.answer(do(x.r.Context(), x.caller.Subject, x.r.PathValue("name")))
}

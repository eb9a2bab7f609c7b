package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/aclclient"
	"github.com/diaspora-streams/diaspora/internal/claims"
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

// lookUp asks Globus who has a username, on behalf of the caller. It takes a subject as well.
func (s *Server) lookUp(x *exchange, username string) (globus.Identity, error) {
	bySubject := claims.CheckPerson(username) == nil
	switch {
	case !bySubject && !aclclient.IsUsername(username):
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
	if bySubject {
		return s.identityOf(x, username)
	}
	who, err := s.cfg.People.Lookup(x.r.Context(), username)
	return who, lookupRefusal(err)
}

// identityOf asks Globus whose subject this is. The ID of a Globus group looks the same, and somebody who
// shares a topic with one would wait for its members in vain. A fabric that cannot look people up takes
// every subject.
func (s *Server) identityOf(x *exchange, subject string) (globus.Identity, error) {
	if s.cfg.People == nil || claims.CheckPerson(subject) != nil { // Claims says what is wrong with it
		return globus.Identity{Subject: subject}, nil
	}
	found, err := s.cfg.People.Identities(x.r.Context(), []string{subject})
	who, known := found[subject]
	switch {
	case err != nil:
		return who, lookupRefusal(err)
	case !known:
		return who, &diaspora.Error{Condition: diaspora.ErrNotFound, Reason: fmt.Sprintf("Globus knows no identity with the ID %s", subject),
			Hint: "a Globus group is named group:UUID; a person's `diaspora whoami --subject` prints the ID"}
	case who.Status == "closed":
		return who, &diaspora.Error{Condition: diaspora.ErrConflict, Reason: fmt.Sprintf("the account %q is closed, so nobody can sign in with it", who.Username),
			Hint: "ask for the subject that the person uses now"}
	}
	return who, nil
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
		return s.identityOf(x, subject)
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
	person := req.Group == "" && !req.Public
	if req.Username != "" && !person {
		return invalid("a topic is shared with a person, with a group, or with everybody: one at a time")
	}
	if person && (req.Subject != "" || req.Username != "") {
		// Only those who may share the topic may look up people with it.
		t, err := s.cfg.Claims.Topic(x.r.Context(), x.caller.Subject, name)
		may := err == nil && t.Manage
		switch {
		case may:
		case req.Username == "": // Claims says why not, which depends on more than that
		case err == nil:
			return &diaspora.TopicError{Op: "share", Topic: name, Err: &diaspora.Error{Condition: diaspora.ErrPermission, Reason: "only its owner, and those whom the owner lets manage it, may do this"}}
		default:
			return err
		}
		if may {
			who, err := s.subjectOf(x, req.Subject, req.Username)
			if err != nil {
				return err
			}
			req.Subject, req.Username = who.Subject, who.Username
		}
	}
	g, err := s.cfg.Claims.Share(x.r.Context(), x.caller.Subject, name, req)
	return x.answer(g, lookupRefusal(err))
}

func (s *Server) listGrants(x *exchange) error {
	grants, err := s.cfg.Claims.Grants(x.r.Context(), x.caller.Subject, x.r.PathValue("name"))
	if err != nil {
		return err
	}
	var subjects []string
	for _, g := range grants {
		subjects = append(subjects, g.Subject)
	}
	for _, g := range grants {
		for _, m := range g.Members {
			subjects = append(subjects, m.Subject)
		}
	}
	username := s.usernames(x, subjects)
	for i := range grants {
		g := &grants[i]
		g.Username = cmp.Or(g.Username, username(g.Subject))
		for j := range g.Members {
			m := &g.Members[j]
			m.Username, m.Service = username(m.Subject), m.Subject == s.cfg.Discovery.Globus.ResourceServer
		}
	}
	return x.answer(diaspora.GrantList{Grants: nonNil(grants)}, nil)
}

func (s *Server) unshareTopic(x *exchange) error {
	return x.answerEmpty(s.cfg.Claims.Unshare(x.r.Context(), x.caller.Subject, x.r.PathValue("name"), x.r.PathValue("grantee")))
}

// usernames returns a function that returns the username of each of these subjects, or "" if it is not
// known. Usernames are only for display, so it is no error if Globus cannot be asked. Of very many
// subjects, only the first ones are looked up.
func (s *Server) usernames(x *exchange, subjects []string) func(subject string) string {
	known := map[string]string{"": ""}
	if x.caller.Username != "" {
		known[x.caller.Subject] = x.caller.Username
	}
	unknown := s.names.get(subjects, known)
	if unknown = unknown[:min(len(unknown), maxUsernames)]; s.cfg.People != nil && len(unknown) > 0 && s.names.mayAsk() {
		ctx, cancel := context.WithTimeout(x.r.Context(), usernamesTimeout)
		defer cancel()
		found, err := s.cfg.People.Identities(ctx, unknown)
		if err != nil {
			s.log.Warn("cannot look up usernames", "err", err)
			if x.r.Context().Err() == nil {
				s.names.failed()
			}
		}
		for _, subject := range unknown {
			known[subject] = found[subject].Username
			if err == nil {
				s.names.put(subject, known[subject])
			}
		}
	}
	return func(subject string) string { return known[subject] }
}

const (
	maxUsernames     = 500
	usernamesTimeout = 1500 * time.Millisecond // shorter than that of the commands whose hints name an owner
	nameFreshFor     = 10 * time.Minute
	askAgainAfter    = 30 * time.Second
	maxNames         = 10_000
)

// names has usernames of subjects that were looked up before, so that listing topics does not wait for
// Globus each time.
type names struct {
	mu      sync.Mutex // guards the fields below
	of      map[string]name
	notTill time.Time // after a failure, Globus is not asked until then
}

type name struct {
	username string
	asked    time.Time
}

// get adds the names of subjects to known, and returns the other subjects, each once.
func (n *names) get(subjects []string, known map[string]string) (unknown []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	seen := make(map[string]bool)
	for _, subject := range subjects {
		if _, is := known[subject]; is || seen[subject] {
			continue
		}
		if cached, is := n.of[subject]; is && time.Since(cached.asked) < nameFreshFor {
			known[subject] = cached.username
			continue
		}
		seen[subject] = true
		unknown = append(unknown, subject)
	}
	return unknown
}

func (n *names) put(subject, username string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.of == nil || len(n.of) >= maxNames {
		n.of = make(map[string]name)
	}
	n.of[subject] = name{username, time.Now()}
}

// mayAsk reports whether Globus answered the last time, or long enough ago to try again.
func (n *names) mayAsk() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !time.Now().Before(n.notTill)
}

func (n *names) failed() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.notTill = time.Now().Add(askAgainAfter)
}

// askOwners asks for the usernames of the owners of topics, in the background. The function that it
// returns waits for them and adds them to the topics.
func (s *Server) askOwners(x *exchange, lists ...[]diaspora.Topic) (add func()) {
	var subjects []string
	for _, list := range lists {
		for _, t := range list {
			subjects = append(subjects, t.Owner)
		}
	}
	answered := make(chan func(subject string) string, 1)
	go func() { answered <- s.usernames(x, subjects) }()
	return func() {
		username := <-answered
		for _, list := range lists {
			for i := range list {
				list[i].OwnerUsername = username(list[i].Owner)
			}
		}
	}
}

// answerTopic writes a topic, with the username of its owner, unless err is not nil.
func (s *Server) answerTopic(x *exchange, t diaspora.Topic, err error) error {
	if err == nil {
		one := []diaspora.Topic{t}
		s.askOwners(x, one)()
		t = one[0]
	}
	return x.answer(t, err)
}

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
	change, err := s.cfg.Claims.SetTopic(x.r.Context(), x.caller.Subject, x.r.PathValue("name"), req)
	if err == nil {
		both := []diaspora.Topic{change.Before, change.After}
		s.askOwners(x, both)()
		change.Before, change.After = both[0], both[1]
	}
	return x.answer(change, err)
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
	who := globus.Identity{Subject: req.Subject}
	if withdrawn := req.Subject == caller; req.Username != "" || !withdrawn && t.Released.IsZero() {
		who, err = s.subjectOf(x, req.Subject, req.Username)
	}
	if err == nil {
		err = s.cfg.Claims.Offer(ctx, caller, name, who.Subject)
	}
	if err != nil {
		return err
	}
	t, err = s.cfg.Claims.Topic(ctx, caller, name)
	return s.answerTopic(x, t, err)
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
	t, err := do(x.r.Context(), x.caller.Subject, x.r.PathValue("name"))
	return s.answerTopic(x, t, err)
}

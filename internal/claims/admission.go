package claims

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// Admission says who may use the fabric, and who its operators are. The zero value has no operators
// and admits everyone who can sign in with Globus Auth.
type Admission struct {
	// Operators are the subjects that may block and unblock others. They are always admitted.
	Operators []string

	// Domains and Subjects restrict who is admitted, if either is set: to accounts whose username
	// ends with one of the domains, and to these subjects. For an access key only the owner's
	// subject is known, not the username. So Domains do not restrict keys: if Domains are set, a
	// key is accepted until it ends or its owner is blocked. If only Subjects are set, a key is
	// accepted if its owner is one of them.
	Domains, Subjects []string

	// Contact says how to reach the operators, for example an e-mail address. It is added to
	// refusals that only operators can change. Optional.
	Contact string
}

// Validate returns what is wrong with an Admission, or nil.
func (a *Admission) Validate() error {
	var errs []error
	for _, subject := range a.Operators {
		if err := CheckPerson(subject); err != nil {
			errs = append(errs, fmt.Errorf("operators: %w", err))
		}
	}
	for _, subject := range a.Subjects {
		if err := CheckPerson(subject); err != nil {
			errs = append(errs, fmt.Errorf("allow-subjects: %w", err))
		}
	}
	for _, domain := range a.Domains {
		if checkName("a domain", domain, 253) != nil || !strings.Contains(domain, ".") && domain != "localhost" {
			errs = append(errs, fmt.Errorf("allow-domains: %q is not a domain; want what follows the last @ of usernames, such as example.edu", truncate(domain)))
		}
	}
	return errors.Join(append(errs, checkLine("operator-contact", a.Contact, maxContactBytes))...)
}

// CheckPerson checks the subject of a person that somebody has typed. A subject of Globus is a UUID
// in lower case. Any other value would be stored and apply to nobody. Ledgers may hold other
// subjects, from earlier versions. The error repeats only text that is too short for a token in the
// wrong place.
func CheckPerson(subject string) error {
	what, shown := "not a subject", "this"
	if len(subject) < 24 && !strings.ContainsRune(subject, utf8.RuneError) || isUUID(subject) {
		shown = strconv.Quote(subject)
	}
	switch {
	case isUUID(subject) && subject == strings.ToLower(subject):
		return nil
	case isUUID(subject):
		what = "not a subject of Globus, which is in lower case"
	case strings.Contains(subject, "@"):
		what = "a username"
	}
	return fmt.Errorf(`%s is %s; give the subject, a UUID in lower case: that person's "diaspora whoami --subject" prints it, and "diaspora topic show NAME" tells operators the owner of a topic`, shown, what)
}

// maxContactBytes keeps refusals short, because Kafka clients print them on one line.
const maxContactBytes = 200

func (a *Admission) isOperator(subject string) bool { return slices.Contains(a.Operators, subject) }

// contactHint is the hint for refusals that only operators can change.
func (a *Admission) contactHint() string {
	if a.Contact == "" {
		return "ask the operators of this fabric"
	}
	return "ask the operators of this fabric: " + a.Contact
}

// domainOf returns the part of a username after the last @. A username can have more than one.
func domainOf(username string) string {
	i := strings.LastIndexByte(username, '@')
	if i < 0 {
		return ""
	}
	return strings.ToLower(username[i+1:])
}

// allows reports whether the lists admit a person.
func (a *Admission) allows(id globus.Identity) bool {
	if len(a.Domains) == 0 {
		return a.allowsOwner(id.Subject)
	}
	domain := domainOf(id.Username)
	return a.isOperator(id.Subject) || slices.Contains(a.Subjects, id.Subject) ||
		slices.ContainsFunc(a.Domains, func(d string) bool { return strings.EqualFold(d, domain) })
}

// allowsOwner reports whether the lists admit a person of whom only the subject is known.
func (a *Admission) allowsOwner(subject string) bool {
	return len(a.Domains) > 0 || len(a.Subjects) == 0 || a.isOperator(subject) || slices.Contains(a.Subjects, subject)
}

// Admit returns nil if a person who has signed in with Globus Auth may use the fabric, and
// otherwise a [*globus.RefusedError] with the reason. It does not ask the cluster. It uses the
// ledger as far as it has been read, which lags by a moment, or by the length of an outage of the
// cluster.
func (r *ledgerReader) Admit(id globus.Identity) error {
	a := &r.admission
	reason := kafka.NotOpen + "your account"
	if domain := domainOf(id.Username); domain != "" && len(a.Domains) > 0 && checkLine("", domain, 253) == nil {
		reason = kafka.NotOpen + "accounts of " + domain
	}
	return r.admit(id.Subject, a.allows(id), reason)
}

// admitOwner is like Admit, for the owner of an access key, of whom only the subject is known.
func (r *ledgerReader) admitOwner(subject string) error {
	return r.admit(subject, r.admission.allowsOwner(subject), kafka.NotOpen+"the owner of this access key")
}

// admit refuses a subject that is blocked, or that is not allowed; reason explains the latter.
func (r *ledgerReader) admit(subject string, allowed bool, reason string) error {
	contactHint := r.admission.contactHint()
	switch {
	case r.ledger.isBlocked(subject):
		return &globus.RefusedError{Reason: kafka.Blocked, Hint: contactHint + "; a new login or another key does not help"}
	case !allowed:
		return &globus.RefusedError{Reason: reason, Hint: "sign in with another account, or " + contactHint}
	}
	return nil
}

// isBlocked reports whether an operator has blocked the subject.
func (l *ledger) isBlocked(subject string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, blocked := l.state.blocked[subject]
	return blocked
}

// Block blocks a subject, for a reason that other operators can read. From now on this process
// accepts no token and no access key of the subject. Other processes follow as soon as they read
// the ledger. Gateways close open connections at their next check. The subject keeps its topics and
// keys.
//
// Blocking a blocked subject changes nothing and returns the existing block. Errors are
// [diaspora.ErrPermission] if by is not an operator, [diaspora.ErrInvalid], [diaspora.ErrConflict]
// if the subject is an operator, and [diaspora.ErrUnavailable]. After the last one, blocking again
// tells whether the subject is blocked.
func (s *Service) Block(ctx context.Context, by string, req diaspora.BlockRequest) (diaspora.Blocked, error) {
	blocked, err := s.block(ctx, by, req)
	if err != nil {
		return diaspora.Blocked{}, fmt.Errorf("block: %w", err)
	}
	return blocked, nil
}

func (s *Service) block(ctx context.Context, by string, req diaspora.BlockRequest) (diaspora.Blocked, error) {
	r := newRecord(opBlock, by)
	r.Subject, r.Why = req.Subject, req.Why
	if err := s.requireOperator(by); err != nil {
		return diaspora.Blocked{}, err
	}
	if err := cmp.Or(CheckPerson(r.Subject), checkWhy(r.Why)); err != nil {
		return diaspora.Blocked{}, invalid(err)
	}
	if s.cfg.Admission.isOperator(r.Subject) {
		return diaspora.Blocked{}, fmt.Errorf("%w: this subject is an operator; remove it from the setting operators first", diaspora.ErrConflict)
	}
	if err := s.appendOperatorRecord(ctx, r); err != nil && !errors.Is(err, errAlreadyBlocked) {
		return diaspora.Blocked{}, err
	}
	var b block
	s.ledger.read(func(st *state) { b = st.blocked[r.Subject] })
	if b == (block{}) { // another operator has unblocked it in the meantime
		return diaspora.Blocked{}, fmt.Errorf("%w: another operator unblocked the subject at the same time; block it again", diaspora.ErrUnavailable)
	}
	return b.asAPI(r.Subject), nil
}

// Unblock ends the block of a subject. Its access keys that have not ended work again. Errors are
// those of Block, and [diaspora.ErrNotFound] if the subject is not blocked.
func (s *Service) Unblock(ctx context.Context, by, subject string) error {
	r := newRecord(opUnblock, by)
	r.Subject = subject
	err := s.requireOperator(by)
	if err == nil {
		err = invalid(checkSubject(subject))
	}
	if err == nil {
		err = s.appendOperatorRecord(ctx, r)
	}
	if errors.Is(err, errNotBlocked) {
		err = fmt.Errorf("%w: %w", diaspora.ErrNotFound, err)
	}
	if err != nil {
		return fmt.Errorf("unblock: %w", err)
	}
	return nil
}

// Blocked returns the blocked subjects, sorted. Only operators may call it.
func (s *Service) Blocked(ctx context.Context, by string) ([]diaspora.Blocked, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	err := s.requireOperator(by)
	if err == nil {
		err = s.ledger.sync(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("list blocked subjects: %w", err)
	}
	list := []diaspora.Blocked{}
	s.ledger.read(func(st *state) {
		for subject, b := range st.blocked {
			list = append(list, b.asAPI(subject))
		}
	})
	slices.SortFunc(list, func(a, b diaspora.Blocked) int { return strings.Compare(a.Subject, b.Subject) })
	return list, nil
}

func (b block) asAPI(subject string) diaspora.Blocked {
	return diaspora.Blocked{Subject: subject, Why: b.why, By: b.by, Since: b.since.Truncate(time.Second)}
}

func (s *Service) requireOperator(by string) error {
	if s.cfg.Admission.isOperator(by) {
		return nil
	}
	return fmt.Errorf("%w: only operators of this fabric may do this", diaspora.ErrPermission)
}

// appendOperatorRecord appends an operator's command to the ledger, unless it would have no effect.
func (s *Service) appendOperatorRecord(ctx context.Context, r record) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	err := s.ledger.mayApply(ctx, r)
	if err == nil {
		err = s.ledger.append(ctx, r)
	}
	if err == nil {
		s.cfg.Diagnostics.Warn("operator command", "op", r.Op, "subject", r.Subject, "operator", r.By, "why", r.Why)
	}
	return err
}

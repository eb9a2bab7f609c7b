package claims

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/diaspora-streams/diaspora"
)

// restorable is how long a released topic can be restored.
const restorable = 24 * time.Hour

// SetTopic changes settings of a topic. The subject by must own it or be allowed to manage it. When
// SetTopic returns nil, every broker has the new settings. It returns the topic as it was before, and
// as it is now. Errors are those of [Service.Share].
func (s *Service) SetTopic(ctx context.Context, by, name string, req diaspora.TopicSettings) (change diaspora.TopicChange, err error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	r := newRecord(opSet, by)
	r.Topic = name
	r.Set = &settings{Partitions: req.Partitions, RetentionMS: req.RetentionMS, MaxBytes: req.MaxBytes, Description: req.Description, Compact: req.Compact}
	if err := s.checkSettings(r.Set); err != nil {
		return change, topicError("set", name, invalid(err))
	}
	err = s.visible(ctx, by, name, func(st *state, t topic, now time.Time) { change.Before = st.describe(name, t, by, now) })
	if err == nil {
		err = s.change(ctx, &r, errNoChange)
	}
	if err == nil {
		s.ledger.read(func(st *state) { change.After = st.describe(name, st.topics[name], by, time.Now()) })
	}
	return change, topicError("set", name, err)
}

// checkSettings checks settings against the operator's limits.
func (s *Service) checkSettings(set *settings) error {
	switch {
	case set.Partitions < 0 || set.Partitions > s.cfg.MaxPartitions:
		return fmt.Errorf("a topic has 1 to %d partitions", s.cfg.MaxPartitions)
	case set.MaxBytes != 0 && !validMaxBytes(set.MaxBytes):
		return errors.New("the largest size of a partition is a number of bytes, or -1 for no limit")
	case set.Compact != nil && *set.Compact && !s.cfg.Compaction:
		return errors.New("this fabric cannot compact topics; one in front of Apache Kafka can")
	}
	if set.RetentionMS != 0 {
		if err := s.checkRetention(set.RetentionMS); err != nil {
			return err
		}
	}
	return set.check()
}

// Offer offers a topic to another person, who becomes its owner by accepting it. It replaces an
// earlier offer. Offering a topic to oneself withdraws the offer. Errors are those of
// [Service.Share].
func (s *Service) Offer(ctx context.Context, by, name, to string) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	r := newRecord(opOffer, by)
	r.Topic, r.Subject = name, to
	err := invalid(CheckPerson(to))
	if err == nil {
		err = s.change(ctx, &r)
	}
	return topicError("transfer", name, err)
}

// Accept makes the subject to whom a topic was offered its owner. That subject calls it, or an
// operator. The events, and those it is shared with, stay; the keys of the old owner end their work
// on it. Errors are those of [Service.Share].
func (s *Service) Accept(ctx context.Context, by, name string) (diaspora.Topic, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	t, err := s.accept(ctx, by, name)
	return t, topicError("accept", name, err)
}

func (s *Service) accept(ctx context.Context, by, name string) (api diaspora.Topic, err error) {
	if err := diaspora.ValidTopic(name); err != nil {
		return api, errors.Unwrap(err)
	}
	if err := s.ledger.sync(ctx); err != nil {
		return api, err
	}
	if s.ledger.topic(name).phase == free {
		return api, s.refusal(errNotClaimed)
	}
	r := newRecord(opAccept, by)
	r.Topic, r.Subject, r.Limit = name, s.offeredTo(name), s.cfg.Limits.Topics
	if r.Subject != by && (r.Subject == "" || !s.cfg.Admission.isOperator(by)) {
		return api, s.refusal(errNotOffered)
	}
	return s.changed(ctx, &r)
}

// changed is like change, and returns the topic as it is then.
func (s *Service) changed(ctx context.Context, r *record, done ...error) (api diaspora.Topic, err error) {
	if err := s.change(ctx, r, done...); err != nil {
		return api, err
	}
	s.ledger.read(func(st *state) { api = st.describe(r.Topic, st.topics[r.Topic], r.By, time.Now()) })
	return api, nil
}

// Retire releases a topic of the subject, but keeps its events and its name for 24 hours, in which the
// subject can restore it. When Retire returns nil, nobody has rights on the topic. Errors are those of
// [Service.Share].
func (s *Service) Retire(ctx context.Context, by, name string) (diaspora.Topic, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	r := newRecord(opRetire, by)
	r.Topic, r.Expires = name, r.Time.Add(restorable).Truncate(time.Second)
	api, err := s.changed(ctx, &r, errRetired)
	return api, topicError("release", name, err)
}

// Restore takes back a release by [Service.Retire]. Those with whom the topic was shared have their
// rights again. Errors are those of [Service.Share].
func (s *Service) Restore(ctx context.Context, by, name string) (diaspora.Topic, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	r := newRecord(opRestore, by)
	r.Topic = name
	api, err := s.changed(ctx, &r)
	return api, topicError("restore", name, err)
}

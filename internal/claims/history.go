package claims

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora"
)

const (
	// keepHistory is how many records about one topic can be shown, in addition to its claim.
	keepHistory = 500

	// farAhead is how many records of the ledger are read over to reach the next one that is wanted. For
	// more, the reader jumps.
	farAhead = 5000
)

// note remembers that the record at this offset was about these topics. It forgets the oldest record of
// a topic that has too many.
func (s *state) note(offset int64, topics ...string) {
	for _, name := range topics {
		if s.topics[name].phase == free {
			continue
		}
		list := s.history[name]
		if len(list) >= 2*keepHistory {
			list = slices.Clone(list[len(list)-keepHistory:])
		}
		s.history[name] = append(list, offset)
	}
}

// noteRecord does what note does, for a record that has taken effect.
func (s *state) noteRecord(offset int64, r record) {
	switch r.Op {
	case opClaim, opRelease, opReleased, opClear:
		delete(s.history, r.Topic) // a claim's own offset is in the topic
	case opIssueKey, opRevokeKey, opKeyExpired:
		s.note(offset, s.keys[r.Key].Topics...)
	case opShare, opUnshare, opShareExpired, opSet, opOffer, opAccept, opRetire, opRestore:
		s.note(offset, r.Topic)
	}
}

// Log returns what was done to a topic since it was claimed: shares, settings, transfers, and the access
// keys that name it, oldest first. Of very many, it returns the newest. The subject must own the topic,
// be allowed to manage it, or be an operator. Errors are those of [Service.Topic].
func (s *Service) Log(ctx context.Context, subject, name string) ([]diaspora.TopicEvent, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	events, err := s.log(ctx, subject, name)
	return events, topicError("show", name, err)
}

func (s *Service) log(ctx context.Context, subject, name string) ([]diaspora.TopicEvent, error) {
	var offsets []int64
	err := s.managed(ctx, subject, name, func(st *state, t topic) {
		list := st.history[name]
		offsets = append([]int64{t.claimOffset}, list[max(0, len(list)-keepHistory):]...)
	})
	if err != nil {
		return nil, err
	}
	select { // reading takes a connection and some memory, so one at a time
	case s.reading <- struct{}{}:
		defer func() { <-s.reading }()
	case <-ctx.Done():
		return nil, clusterError(ctx.Err())
	}
	records, err := s.ledger.readRecords(ctx, s.cfg.Admin, offsets)
	if err != nil {
		return nil, err
	}
	events := make([]diaspora.TopicEvent, 0, len(records))
	for _, r := range records {
		events = append(events, r.asAPI())
	}
	return events, nil
}

// managed is visible, but only for those who own the topic or may manage it, and for operators.
func (s *Service) managed(ctx context.Context, subject, name string, see func(*state, topic)) error {
	allowed := false
	err := s.visible(ctx, subject, name, func(st *state, t topic, now time.Time) {
		allowed = t.owner == subject || st.rightsOf(subject, name, now)&mayManage != 0 || s.cfg.Admission.isOperator(subject)
		if allowed {
			see(st, t)
		}
	})
	if err == nil && !allowed {
		err = s.refusal(errNotYours)
	}
	return err
}

// readRecords reads the records at these offsets, which must be sorted, from the cluster.
func (l *ledger) readRecords(ctx context.Context, opts []kgo.Opt, offsets []int64) ([]record, error) {
	client, err := kgo.NewClient(slices.Concat(opts, ledgerOpts(), []kgo.Opt{
		kgo.FetchMaxPartitionBytes(1 << 20),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{LedgerTopic: {0: kgo.NewOffset().At(offsets[0])}}),
	})...)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	var records []record
	for len(offsets) > 0 {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil, clusterError(ctx.Err())
		}
		if err := fetches.Err(); err != nil {
			return nil, clusterError(err)
		}
		next := int64(0)
		for _, f := range fetches.Records() {
			next = f.Offset + 1
			if len(offsets) == 0 || f.Offset != offsets[0] {
				continue
			}
			offsets = offsets[1:]
			r, err := decode(f.Value)
			if err != nil {
				return nil, fmt.Errorf("the ledger has another record at offset %d than it had: %w", f.Offset, err)
			}
			records = append(records, r)
		}
		if len(offsets) > 0 && next > 0 && offsets[0] > next+farAhead {
			client.SetOffsets(map[string]map[int32]kgo.EpochOffset{LedgerTopic: {0: {Epoch: -1, Offset: offsets[0]}}})
		}
	}
	return records, nil
}

// asAPI returns a record about a topic in the form of the API.
func (r record) asAPI() diaspora.TopicEvent {
	by := r.By
	if by == serviceSubject {
		by = ""
	}
	e := diaspora.TopicEvent{Time: r.Time.Truncate(time.Second), By: by, Op: r.Op, Subject: r.Subject, Key: r.Key, KeyName: r.Name}
	switch r.Op {
	case opClaim:
		e.Set = &diaspora.TopicSettings{Partitions: r.Partitions, RetentionMS: r.RetentionMS}
		if r.Description != "" {
			e.Set.Description = &r.Description
		}
	case opShare, opUnshare, opShareExpired:
		g := grant{r.rights(), r.By, r.Time.Truncate(time.Second), r.Expires, r.Username}.asAPI(r.Grantee)
		e.Grant = &g
	case opSet:
		e.Set = &diaspora.TopicSettings{
			Partitions: r.Set.Partitions, RetentionMS: r.Set.RetentionMS, MaxBytes: r.Set.MaxBytes,
			Description: r.Set.Description, Compact: r.Set.Compact,
		}
	case opRetire:
		e.Until = r.Expires
	case opIssueKey:
		e.Read, e.Write, e.Until = r.Read, r.Write, r.Expires
	}
	return e
}

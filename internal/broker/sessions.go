package broker

import (
	"math/rand/v2"
	"slices"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// With a fetch session (KIP-227), a client with many partitions does not have to name all of them
// in each fetch, and the broker does not have to answer for those that have not changed. A session
// belongs to one connection and ends with it. A client that reconnects gets
// FETCH_SESSION_ID_NOT_FOUND and creates another session.

// fetchSessions are the sessions of one connection.
type fetchSessions struct {
	byID []*fetchSession // ordered by last use, the most recent last
	held int64           // number of partitions in them, as counted in Broker.sessions
}

const (
	// maxFetchSessions is the number of sessions that a connection may have. A client needs one.
	maxFetchSessions = 4
	// maxSessionPartitions is the number of partitions in the sessions of all connections. Each
	// takes about 240 bytes. Above the limit, clients get no session and send full fetches.
	maxSessionPartitions = 500_000
)

// fetchSession is the set of partitions that a client fetches. If it has no ID, it lasts for one
// fetch only.
type fetchSession struct {
	id       int32
	epoch    int32 // expected in the next fetch
	byTopic  bool  // topics are identified by ID, not by name
	whole    bool  // the response must include all partitions
	parts    []*fetchPartition
	position map[fetchKey]*fetchPartition
}

type fetchKey struct {
	id        topicID
	name      string
	partition int32
}

// fetchPartition is a partition in a session: what the client requested, and what it was told last.
type fetchPartition struct {
	id        topicID
	name      string
	partition int32
	kmsg.FetchRequestTopicPartition

	end, start int64 // high watermark and start of the log in the last response to the client
}

const finalEpoch = -1 // in a request: ends the session, or asks for no session

// begin returns the session of a fetch, updated with the partitions that the fetch names. If all
// sessions together exceed maxSessionPartitions, the fetch is answered without a session.
func (s *fetchSessions) begin(b *Broker, req *kmsg.FetchRequest) (*fetchSession, *kerr.Error) {
	session, refusal := s.open(req)
	s.count(b)
	if refusal == nil && b.sessions.Load() > maxSessionPartitions {
		s.forget(session.id)
		session.id = 0
		s.count(b)
	}
	return session, refusal
}

// count updates the broker's total of partitions in sessions.
func (s *fetchSessions) count(b *Broker) {
	held := int64(0)
	for _, session := range s.byID {
		held += int64(len(session.parts))
	}
	b.sessions.Add(held - s.held)
	s.held = held
}

// end removes all sessions.
func (s *fetchSessions) end(b *Broker) {
	s.byID = nil
	s.count(b)
}

func (s *fetchSessions) open(req *kmsg.FetchRequest) (*fetchSession, *kerr.Error) {
	switch req.SessionEpoch {
	case 0, finalEpoch:
		s.forget(req.SessionID)
		session := newFetchSession(req)
		if req.SessionEpoch == 0 {
			s.keep(session)
		}
		return session, nil
	}
	session := s.find(req.SessionID)
	switch {
	case session == nil:
		return nil, kerr.FetchSessionIDNotFound
	case session.epoch != req.SessionEpoch:
		return nil, kerr.InvalidFetchSessionEpoch
	case session.byTopic != (req.Version >= 13):
		return nil, kerr.FetchSessionTopicIDError
	}
	session.add(req)
	session.remove(req)
	if len(session.parts) == 0 { // the session ends, and the request is answered like one without a session
		s.forget(session.id)
		return newFetchSession(req), nil
	}
	session.whole = false
	if session.epoch++; session.epoch < 0 {
		session.epoch = 1
	}
	return session, nil
}

func newFetchSession(req *kmsg.FetchRequest) *fetchSession {
	session := &fetchSession{epoch: 1, whole: true, byTopic: req.Version >= 13, position: make(map[fetchKey]*fetchPartition)}
	session.add(req)
	return session
}

func (s *fetchSessions) keep(session *fetchSession) {
	session.id = 1 + rand.Int32N(1<<31-1)
	if len(s.byID) == maxFetchSessions {
		s.byID = slices.Delete(s.byID, 0, 1)
	}
	s.byID = append(s.byID, session)
}

func (s *fetchSessions) find(id int32) *fetchSession {
	for i, session := range s.byID {
		if session.id == id {
			s.byID = append(slices.Delete(s.byID, i, i+1), session)
			return session
		}
	}
	return nil
}

func (s *fetchSessions) forget(id int32) {
	s.byID = slices.DeleteFunc(s.byID, func(session *fetchSession) bool { return session.id == id })
}

// add adds the partitions that a fetch names to the session, or updates them.
func (s *fetchSession) add(req *kmsg.FetchRequest) {
	for _, t := range req.Topics {
		for _, p := range t.Partitions {
			key := fetchKey{t.TopicID, t.Topic, p.Partition}
			part := s.position[key]
			if part == nil {
				part = &fetchPartition{id: t.TopicID, name: t.Topic, partition: p.Partition, end: -1, start: -1}
				s.position[key] = part
				s.parts = append(s.parts, part)
			}
			part.FetchRequestTopicPartition = p
		}
	}
}

// remove removes the partitions that a fetch lists as forgotten.
func (s *fetchSession) remove(req *kmsg.FetchRequest) {
	forgotten := false
	for _, t := range req.ForgottenTopics {
		for _, partition := range t.Partitions {
			delete(s.position, fetchKey{t.TopicID, t.Topic, partition})
			forgotten = true
		}
	}
	if forgotten {
		s.parts = slices.DeleteFunc(s.parts, func(p *fetchPartition) bool { return s.position[p.key()] != p })
	}
}

func (p *fetchPartition) key() fetchKey {
	if p.id != (topicID{}) {
		return fetchKey{p.id, "", p.partition} // leave the name out: find has filled it in since
	}
	return fetchKey{p.id, p.name, p.partition}
}

// partitions returns the partitions in the order in which to read them.
func (s *fetchSession) partitions() []*fetchPartition { return slices.Clone(s.parts) }

// answer fills in the response. The first response of a session has all partitions, later ones only
// those that have changed. After a later response, partitions that had records move to the end of
// the reading order, so that they do not use up the byte limit before other partitions are read.
func (s *fetchSession) answer(response *kmsg.FetchResponse, results []fetchResult) {
	for rank := range 3 {
		for i := range results {
			if result := &results[i]; result.rank() == rank && (s.whole || result.changed()) {
				appendResult(response, result)
			}
		}
	}
	var rest, served []*fetchPartition
	for i := range results {
		result := &results[i]
		result.end, result.start = result.HighWatermark, result.LogStartOffset
		if result.ErrorCode != 0 {
			result.end = -1 // unknown, so that the partition is reported again once the error is gone
		}
		if len(result.RecordBatches) > 0 && !s.whole {
			served = append(served, result.fetchPartition)
		} else {
			rest = append(rest, result.fetchPartition)
		}
	}
	s.parts = append(rest, served...)
}

// rank orders the partitions of a response as Apache Kafka does: partitions that do not exist, or
// that the caller may not read, come last.
func (r *fetchResult) rank() int {
	switch r.ErrorCode {
	case kerr.UnknownTopicID.Code:
		return 1
	case kerr.UnknownTopicOrPartition.Code, kerr.TopicAuthorizationFailed.Code:
		return 2
	}
	return 0
}

func (r *fetchResult) changed() bool {
	return len(r.RecordBatches) > 0 || r.ErrorCode != 0 || r.DivergingEpoch.Epoch >= 0 ||
		r.HighWatermark != r.end || r.LogStartOffset != r.start
}

func appendResult(response *kmsg.FetchResponse, result *fetchResult) {
	last := len(response.Topics) - 1
	if last < 0 || response.Topics[last].TopicID != result.id || response.Version < 13 && response.Topics[last].Topic != result.name {
		t := kmsg.NewFetchResponseTopic()
		t.TopicID, t.Topic = result.id, result.name
		response.Topics = append(response.Topics, t)
		last++
	}
	response.Topics[last].Partitions = append(response.Topics[last].Partitions, result.FetchResponseTopicPartition)
}

package diaspora

import (
	"crypto/sha256"
	"iter"
)

// defaultWindow is the default number of IDs that [Distinct] remembers.
const defaultWindow = 1 << 16

// Distinct returns the records without repeats. A record is a repeat if it has the same topic and
// [Event.ID] as one of the last window distinct records that the loop's body has handled. Errors
// pass through, and so do records without an ID, which other Kafka clients have written. A window
// of 0 means 65,536. One ID takes about 100 bytes of memory, however long it is.
//
//	for record, err := range diaspora.Distinct(consumer.Records(ctx), 0) {
//
// A repeat occurs when a producer does not learn that its event has arrived and logs it again under
// the same ID, for instance after a crash, or from the spool. The repeat may be in another
// partition if the event has no key, or if partitions were added in between. So there is one window
// for everything that the loop reads. It must be at least the number of records, over all
// partitions, that may lie between an event and its repeat.
//
// A repeat counts as handled, so it is committed like all others. If the body leaves the loop by
// break or return, its record is not handled, and the next loop yields it again. The next loop may
// use the same Distinct, which keeps what it remembers. Only one loop may use a Distinct at a time.
//
// Distinct knows only what this process has handled. Records are also delivered again if this
// process died before it committed them. The body can recognize those only from its own results,
// for instance by using the ID as a key in a database.
func Distinct(records iter.Seq2[Record, error], window int) iter.Seq2[Record, error] {
	if window <= 0 {
		window = defaultWindow
	}
	seen := recent{window: window, known: map[eventKey]struct{}{}}
	return func(yield func(Record, error) bool) {
		for r, err := range records {
			if err != nil || r.ID == "" {
				if !yield(r, err) {
					return
				}
				continue
			}
			key := keyOf(r)
			if seen.has(key) {
				continue
			}
			if !yield(r, nil) {
				return
			}
			seen.add(key)
		}
	}
}

// eventKey is a hash of a topic and an ID. It is cryptographic, so that nobody can make two events
// with the same eventKey on purpose.
type eventKey [16]byte

func keyOf(r Record) eventKey {
	text := make([]byte, 0, 128)
	text = append(text, r.Topic...)
	text = append(text, 0) // a separator that no topic's name contains
	text = append(text, r.ID...)
	sum := sha256.Sum256(text)
	return eventKey(sum[:16])
}

// recent is the set of the last window keys that were added.
type recent struct {
	window int
	known  map[eventKey]struct{}
	order  []eventKey // a ring buffer once it is full
	oldest int
}

func (s *recent) has(k eventKey) bool {
	_, ok := s.known[k]
	return ok
}

func (s *recent) add(k eventKey) {
	if len(s.order) < s.window {
		s.order = append(s.order, k)
	} else {
		delete(s.known, s.order[s.oldest])
		s.order[s.oldest] = k
		s.oldest = (s.oldest + 1) % s.window
	}
	s.known[k] = struct{}{}
}

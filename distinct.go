package diaspora

import (
	"crypto/sha256"
	"iter"
)

// defaultWindow is how many IDs [Distinct] remembers by default.
const defaultWindow = 1 << 16

// Distinct returns the records without repeats: those of the same topic and with
// the same [Event.ID] as one of the last window distinct records that the loop's
// body has handled. Errors, and records without an ID, which are of other clients,
// pass. A window of 0 is 65,536; one ID takes about 100 bytes of memory, however
// long it is.
//
//	for record, err := range diaspora.Distinct(consumer.Records(ctx), 0) {
//
// A repeat comes when a producer did not hear that its event had arrived, and logs
// it once more under the same ID: after a crash, or out of the spool. It may be in
// another partition, if it has no key or partitions were added meanwhile; so there
// is one window for all that the loop reads, and it has to be as large as the number
// of records that may lie between an event and its repeat, over all partitions.
//
// A repeat counts as handled, so it is committed like all others. A record whose
// body leaves the loop by break or return does not, and comes again in the next
// loop, which may be over the same Distinct: it goes on with what it knows. It is
// for one loop at a time.
//
// Distinct knows only what this process has handled. What comes again because this
// process died before it committed is a repeat that only the body's own results can
// tell, for instance a database in which the ID is a key.
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

// eventKey stands for a topic and an ID of any length. Two that differ do not have
// the same one, even if somebody tries.
type eventKey [16]byte

func keyOf(r Record) eventKey {
	text := make([]byte, 0, 128)
	text = append(text, r.Topic...)
	text = append(text, 0) // no topic's name has one
	text = append(text, r.ID...)
	sum := sha256.Sum256(text)
	return eventKey(sum[:16])
}

// recent is the set of the last window keys that were added.
type recent struct {
	window int
	known  map[eventKey]struct{}
	order  []eventKey // a ring once it is full
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

//go:build kafka

package interop

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
	"pgregory.net/rapid"
)

// A step is one thing that happens to both engines. It is plain data, so that it can be printed and
// shrunk. What it names by number (a topic, a producer, a session, a member) each engine's world
// turns into its own.
type step interface {
	// request returns the request for an engine, or nil if there is nothing to do in its world.
	request(w *world) kmsg.Request
}

// A learner keeps from an answer what later steps need.
type learner interface {
	learn(w *world, request kmsg.Request, response kmsg.Response)
}

// A caller goes over a connection of its own: a member's, or another subject's.
type caller interface{ caller() connectionName }

// connectionName says whose a connection is. The zero name is the super user's.
type connectionName struct {
	subject string // "" for the super user
	member  string // "" if it is nobody's in particular
}

// waits marks a step whose answer may wait for a later step, as a JoinGroup's does.
type waits interface{ mayWait() }

// changes marks a step that changes metadata, which Kafka applies a little later.
type changes interface{ changesMetadata() }

// restart stops the embedded engine and starts it again. Apache Kafka goes on: a restart takes it half a
// minute, and whatever a client may rely on must be as if there had been none.
type restart struct{ Kill bool }

func (restart) request(*world) kmsg.Request { return nil }

// pause waits for what Kafka does in the background and no answer tells of: that it has resolved a
// regular expression which matches nothing for the member.
type pause struct{}

func (pause) request(*world) kmsg.Request {
	time.Sleep(500 * time.Millisecond)
	return nil
}

// A world is what one run knows of one engine.
type world struct {
	side
	run      string // the beginning of every name
	stranger string // the subject that is not the super user
	conns    map[connectionName]*wire
	offer    map[int16][2]int16 // the versions that both engines take

	firstEpoch  int32 // the leader epoch at the beginning of the run,
	lastEpoch   int32 // and now
	topicIDs    map[string][16]byte
	unknownIDs  map[[16]byte]string // that no topic has, and the names that they were made for
	producers   []producerState
	producerIDs map[int64]string // which producer has or had an ID
	next        map[sequenceKey]int32
	sessions    []sessionState
	times       []int64 // when batches arrived, by the answers
	ends        map[partitionName]int64
	members     map[string]*memberState
	knownIDs    map[string]string // member ID to name
	hasACLs     bool
	deleted     bool             // records
	left        bool             // a member of a KIP-848 group has left,
	strayed     bool             // and one that is subscribed to nothing has joined since
	grown       bool             // there are new partitions since a member of a KIP-848 group has joined
	committed   map[string]bool  // groups that have, or had, committed offsets, and were not deleted since
	partitions  map[string]int32 // how many partitions topics have
}

type partitionName struct {
	topic     string
	partition int32
}

type producerState struct {
	id    int64
	epoch int16
}

type sequenceKey struct {
	producer int
	at       partitionName
}

type sessionState struct{ id, epoch int32 }

func newWorld(s side, run string, offer map[int16][2]int16) *world {
	w := &world{side: s, run: run, stranger: subjectOf(run), offer: offer, firstEpoch: s.epoch(), lastEpoch: s.epoch(),
		conns: map[connectionName]*wire{}, topicIDs: map[string][16]byte{}, unknownIDs: map[[16]byte]string{}, next: map[sequenceKey]int32{}, producerIDs: map[int64]string{},
		sessions: make([]sessionState, 2), ends: map[partitionName]int64{}, members: map[string]*memberState{}, knownIDs: map[string]string{}, committed: map[string]bool{}, partitions: map[string]int32{}}
	for i := range 3 {
		w.producers = append(w.producers, producerState{})
		w.isProducer(i, strangeProducer+1+int64(i), 0)
	}
	return w
}

// grew takes note that there are new partitions.
func (w *world) grew() {
	for _, m := range w.members {
		w.grown = w.grown || m.epoch > 0
	}
}

// isProducer gives a producer an ID, and the ID a name: the producer's, and which of its IDs it is.
func (w *world) isProducer(i int, id int64, epoch int16) {
	w.producers[i] = producerState{id, epoch}
	if w.producerIDs[id] != "" {
		return
	}
	n := 0
	for _, name := range w.producerIDs {
		if strings.HasPrefix(name, fmt.Sprintf("producer %d#", i)) {
			n++
		}
	}
	w.producerIDs[id] = fmt.Sprintf("producer %d#%d", i, n)
}

// subjectOf makes a subject, which is a UUID, from the name of a run.
func subjectOf(run string) string {
	sum := sha256.Sum256([]byte(run))
	return fmt.Sprintf("%x-%x-%x-%x-%x", sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
}

// leftovers returns the requests that delete what the run has made.
func (w *world) leftovers() []kmsg.Request {
	topics := kmsg.NewPtrDeleteTopicsRequest()
	topics.Version, topics.TimeoutMillis = 5, 5000
	for name := range w.topicIDs {
		topics.TopicNames = append(topics.TopicNames, name)
	}
	all := []kmsg.Request{topics}
	if w.hasACLs {
		acls := kmsg.NewPtrDeleteACLsRequest()
		w.at(3, acls)
		for _, principal := range []string{"User:@", "User:@2", "User:" + stranger} {
			acls.Filters = append(acls.Filters, acl{Resource: 1, Name: nullValue, Pattern: 1, Principal: principal, Host: nullValue, Operation: 1, Permission: 1}.filter(w))
		}
		for _, name := range []string{"@", "@-", "@-t0", "@-t1"} {
			acls.Filters = append(acls.Filters, acl{Resource: 1, Name: name, Pattern: 1, Principal: nullValue, Host: nullValue, Operation: 1, Permission: 1}.filter(w))
		}
		all = append(all, acls)
	}
	return all
}

// topic returns the name of topic i. Topics 0 and 1 are there from the start, and noTopic never is.
func (w *world) topic(i int) string { return fmt.Sprintf("%s-t%d", w.run, i) }

const noTopic = 9

func (w *world) group(i int) string { return fmt.Sprintf("%s-g%d", w.run, i) }

// topicID returns the ID that the topic has or had last, or one that no topic has: each name has another.
func (w *world) topicID(name string) [16]byte {
	if id, ok := w.topicIDs[name]; ok {
		return id
	}
	sum := sha256.Sum256([]byte(w.withoutRun(name)))
	id := [16]byte(sum[:])
	w.unknownIDs[id] = name
	return id
}

func (w *world) topicOf(id [16]byte) string {
	if id == ([16]byte{}) {
		return "no ID"
	}
	for name, known := range w.topicIDs {
		if known == id {
			return w.withoutRun(name)
		}
	}
	if name, ok := w.unknownIDs[id]; ok {
		return "unknown ID for " + w.withoutRun(name)
	}
	return "an ID"
}

// named puts the names of the run in place of @ and @stranger.
func (w *world) named(text string) string {
	return strings.ReplaceAll(strings.ReplaceAll(text, stranger, w.stranger), "@", w.run)
}

// withoutRun makes a text the same in all runs.
func (w *world) withoutRun(text string) string {
	return strings.ReplaceAll(strings.ReplaceAll(text, w.stranger, stranger), w.run, "")
}

// at sets the version, as far as both engines take it.
func (w *world) at(version int16, request kmsg.Request) kmsg.Request {
	if offer, ok := w.offer[request.Key()]; ok {
		version = min(max(version, offer[0]), offer[1])
	}
	request.SetVersion(min(version, request.MaxVersion()))
	return request
}

// connection returns the named connection, and connects if there is none.
func (w *world) connection(ctx context.Context, name connectionName) (*wire, error) {
	if c := w.conns[name]; c != nil {
		return c, nil
	}
	c, err := w.dial(ctx, w.named(name.subject))
	if err != nil {
		return nil, err
	}
	w.conns[name] = c
	return c, nil
}

// hangUp closes connections: one, or all of them.
func (w *world) hangUp(names ...connectionName) {
	if len(names) == 0 {
		for name := range w.conns {
			names = append(names, name)
		}
	}
	for _, name := range names {
		if c := w.conns[name]; c != nil {
			c.conn.Close()
			delete(w.conns, name)
		}
	}
}

// restarted forgets what a broker's restart ends.
func (w *world) restarted() {
	w.hangUp()
	w.lastEpoch = w.epoch()
	clear(w.sessions)
}

// sequenceAfter returns the number n records later. After the largest comes zero.
func sequenceAfter(sequence, n int32) int32 {
	if sequence > math.MaxInt32-n {
		return n - (math.MaxInt32 - sequence) - 1
	}
	return sequence + n
}

// awaitClock returns when the clock, in milliseconds, has moved on: so no two appends have one time.
func awaitClock() {
	for now := time.Now().UnixMilli(); time.Now().UnixMilli() < now+2; {
		time.Sleep(200 * time.Microsecond)
	}
}

// pick draws one of the values; the first is the simplest.
func pick[T any](t *rapid.T, label string, values ...T) T {
	return rapid.SampledFrom(values).Draw(t, label)
}

// often draws the first value most of the time.
func often[T any](t *rapid.T, label string, first T, others ...T) T {
	if rapid.IntRange(0, 9).Draw(t, label+" odd") < 7 {
		return first
	}
	return pick(t, label, others...)
}

func version(t *rapid.T, request kmsg.Request) int16 {
	return request.MaxVersion() - rapid.Int16Range(0, request.MaxVersion()).Draw(t, "version")
}

func drawTopic(t *rapid.T) int { return often(t, "topic", 0, 1, 1, 1, noTopic, 2) }

func drawPartition(t *rapid.T) int32 { return often[int32](t, "partition", 0, 1, 1, 1, 7, -1) }

func pointer[T any](v T) *T { return &v }

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

// step is one action that is performed on both engines. It is plain data, so that it can be printed
// and shrunk. It refers to topics, producers, sessions and members by number; the world of each
// engine maps the numbers to names and IDs.
type step interface {
	// request returns the request for an engine, or nil if there is nothing to do in its world.
	request(w *world) kmsg.Request
}

// learner is a step that stores what later steps need from a response.
type learner interface {
	learn(w *world, request kmsg.Request, response kmsg.Response)
}

// caller is a step that uses a connection of its own: that of a member, or that of another subject.
type caller interface{ caller() connectionName }

// connectionName identifies a connection. The zero value is the super user's.
type connectionName struct {
	subject string // "" for the super user
	member  string // "" if it is not the connection of a member
}

// waits marks a step whose response may have to wait for a later step, like that of JoinGroup.
type waits interface{ mayWait() }

// changes marks a step that changes metadata, which Kafka applies with a short delay.
type changes interface{ changesMetadata() }

// restart stops the embedded engine and starts it again. Apache Kafka is not restarted: that takes
// it half a minute, and everything that a client may rely on must be the same without a restart.
type restart struct{ Kill bool }

func (restart) request(*world) kmsg.Request { return nil }

// pause waits for something that Kafka does in the background and that no response reveals: it
// resolves a regular expression that matches nothing for the member.
type pause struct{}

func (pause) request(*world) kmsg.Request {
	time.Sleep(500 * time.Millisecond)
	return nil
}

// world is the state of one run for one engine.
type world struct {
	side
	run      string // prefix of every name
	stranger string // the subject that is not the super user
	conns    map[connectionName]*wire
	offer    map[int16][2]int16 // the versions that both engines support

	firstEpoch  int32 // the leader epoch at the beginning of the run,
	lastEpoch   int32 // and now
	topicIDs    map[string][16]byte
	unknownIDs  map[[16]byte]string // IDs that no topic has, and the names that they were made for
	producers   []producerState
	producerIDs map[int64]string // the producer that has or had each ID
	next        map[sequenceKey]int32
	sessions    []sessionState
	times       []int64 // append times of batches, from the responses
	ends        map[partitionName]int64
	members     map[string]*memberState
	knownIDs    map[string]string // member ID to name
	hasACLs     bool
	deleted     bool             // whether records have been deleted
	left        bool             // whether a member of a KIP-848 group has left
	strayed     bool             // whether a member without a subscription has joined since
	grown       bool             // whether partitions were added after a member of a KIP-848 group has joined
	committed   map[string]bool  // groups that have had committed offsets and have not been deleted since
	partitions  map[string]int32 // number of partitions of each topic
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

// grew records that partitions were added.
func (w *world) grew() {
	for _, m := range w.members {
		w.grown = w.grown || m.epoch > 0
	}
}

// isProducer gives a producer an ID. It names the ID after the producer and the number of its ID.
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

// subjectOf derives a subject, which is a UUID, from the name of a run.
func subjectOf(run string) string {
	sum := sha256.Sum256([]byte(run))
	return fmt.Sprintf("%x-%x-%x-%x-%x", sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
}

// leftovers returns the requests that delete what the run has created.
func (w *world) leftovers() []kmsg.Request {
	topics := kmsg.NewPtrDeleteTopicsRequest()
	topics.Version, topics.TimeoutMillis = 5, 5000
	for name := range w.topicIDs {
		topics.TopicNames = append(topics.TopicNames, name)
	}
	all := []kmsg.Request{topics}
	if w.hasACLs {
		acls := at(w, 3, kmsg.NewPtrDeleteACLsRequest())
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

// topic returns the name of topic i. Topics 0 and 1 exist from the start, and noTopic never exists.
func (w *world) topic(i int) string { return fmt.Sprintf("%s-t%d", w.run, i) }

const noTopic = 9

func (w *world) group(i int) string { return fmt.Sprintf("%s-g%d", w.run, i) }

// topicID returns the current or last ID of a topic. If there is none, it returns an ID that no
// topic has, a different one for each name.
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

// named replaces @ and @stranger by the names of the run.
func (w *world) named(text string) string {
	return strings.ReplaceAll(strings.ReplaceAll(text, stranger, w.stranger), "@", w.run)
}

// withoutRun removes the names of the run, so that the text is the same in all runs.
func (w *world) withoutRun(text string) string {
	return strings.ReplaceAll(strings.ReplaceAll(text, w.stranger, stranger), w.run, "")
}

// at sets the version of a request, limited to those that both engines support.
func at[R kmsg.Request](w *world, version int16, request R) R {
	if offer, ok := w.offer[request.Key()]; ok {
		version = min(max(version, offer[0]), offer[1])
	}
	request.SetVersion(min(version, request.MaxVersion()))
	return request
}

// connection returns the connection with this name. It connects if there is none.
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

// hangUp closes the given connections, or all connections if none is given.
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

// restarted removes what a restart of the broker invalidates.
func (w *world) restarted() {
	w.hangUp()
	w.lastEpoch = w.epoch()
	clear(w.sessions)
}

// sequenceAfter returns the sequence number n records later. The largest number is followed by
// zero.
func sequenceAfter(sequence, n int32) int32 {
	if sequence > math.MaxInt32-n {
		return n - (math.MaxInt32 - sequence) - 1
	}
	return sequence + n
}

// awaitClock waits until the clock, in milliseconds, has advanced, so that no two appends have the
// same time.
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

// several draws n values.
func several[T any](t *rapid.T, n int, draw func(*rapid.T) T) (all []T) {
	for range n {
		all = append(all, draw(t))
	}
	return all
}

func version(t *rapid.T, request kmsg.Request) int16 {
	return request.MaxVersion() - rapid.Int16Range(0, request.MaxVersion()).Draw(t, "version")
}

func drawTopic(t *rapid.T) int { return often(t, "topic", 0, 1, 1, 1, noTopic, 2) }

func drawPartition(t *rapid.T) int32 { return often[int32](t, "partition", 0, 1, 1, 1, 7, -1) }

func pointer[T any](v T) *T { return &v }

package broker

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/diaspora-streams/diaspora/internal/commitlog"
	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/journal"
)

// topicID tells a topic from a later one of the same name (KIP-516).
type topicID [16]byte

func newTopicID() (id topicID) {
	rand.Read(id[:])
	id[6] = id[6]&0x0f | 0x40 // a UUID of version 4, as Apache Kafka's
	id[8] = id[8]&0x3f | 0x80
	return id
}

func (id topicID) String() string { return hex.EncodeToString(id[:]) }

func (id topicID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

func (id *topicID) UnmarshalText(text []byte) error {
	if n, err := hex.Decode(id[:], text); err != nil || n != len(id) {
		return fmt.Errorf("topic ID %q: not 32 hexadecimal digits", text)
	}
	return nil
}

// topic is one topic and its partitions. A topic never changes: what changes
// it puts another one in its place.
type topic struct {
	topicRecord
	settings   topicSettings // what Configs come to
	partitions []*commitlog.Log
}

// topicRecord is what the journal keeps of a topic.
type topicRecord struct {
	Name       string            `json:"name"`
	ID         topicID           `json:"id"`
	Partitions int32             `json:"partitions"`
	Configs    map[string]string `json:"configs,omitempty"`  // those that were set
	Deleting   bool              `json:"deleting,omitempty"` // its files are being removed
}

const topicKey = "topic/" // and the topic's ID: the key in the journal

func (t topicRecord) entry() (journal.Entry, error) {
	value, err := json.Marshal(t)
	return journal.Entry{Key: []byte(topicKey + t.ID.String()), Value: value}, err
}

// partition returns one partition of a topic, which may be nil, or false.
func (t *topic) partition(n int32) (*commitlog.Log, bool) {
	if t == nil || n < 0 || int(n) >= len(t.partitions) {
		return nil, false
	}
	return t.partitions[n], true
}

// topics are all topics of the broker. What a method changes is in the
// journal before it returns.
type topics struct {
	files disk.FS // the directory in which each partition has one
	open  func(disk.FS, topicSettings) (*commitlog.Log, error)
	save  func(...journal.Entry) error

	changing sync.Mutex // held by whoever changes topics, one at a time

	mu     sync.RWMutex // guards the fields below
	byName map[string]*topic
	byID   map[topicID]*topic
}

func newTopics(files disk.FS, open func(disk.FS, topicSettings) (*commitlog.Log, error), save func(...journal.Entry) error) *topics {
	return &topics{files: files, open: open, save: save, byName: make(map[string]*topic), byID: make(map[topicID]*topic)}
}

// named returns the topic of this name, or nil.
func (ts *topics) named(name string) *topic {
	ts.mu.RLock()
	defer ts.mu.RUnlock()
	return ts.byName[name]
}

// withID returns the topic with this ID, or nil.
func (ts *topics) withID(id topicID) *topic {
	ts.mu.RLock()
	defer ts.mu.RUnlock()
	return ts.byID[id]
}

// all returns all topics, by name.
func (ts *topics) all() []*topic {
	ts.mu.RLock()
	all := slices.Collect(maps.Values(ts.byName))
	ts.mu.RUnlock()
	slices.SortFunc(all, func(a, b *topic) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// directory is where a partition has its files.
func (ts *topics) directory(id topicID, partition int32) disk.FS {
	return ts.files.Sub(directoryName(id, partition))
}

func directoryName(id topicID, partition int32) string {
	return fmt.Sprintf("%v-%d", id, partition)
}

var (
	errTopicExists  = errors.New("topic exists")
	errTopicUnknown = errors.New("topic does not exist")
)

// create makes a topic. Its files come first, since they can fail; a crash
// before the journal has the topic leaves directories without a record.
func (ts *topics) create(record topicRecord) (*topic, error) {
	ts.changing.Lock()
	defer ts.changing.Unlock()
	if ts.named(record.Name) != nil {
		return nil, errTopicExists
	}
	entry, err := record.entry()
	if err != nil {
		return nil, err
	}
	t, err := ts.openTopic(record, nil)
	if err != nil {
		return nil, errors.Join(err, ts.removeFiles(record))
	}
	if err := ts.save(entry); err != nil {
		return nil, errors.Join(err, t.close(), ts.removeFiles(record))
	}
	ts.put(t)
	return t, nil
}

// change replaces what the journal keeps of a topic: its settings, or more
// partitions.
func (ts *topics) change(id topicID, edit func(*topicRecord) error) (*topic, error) {
	ts.changing.Lock()
	defer ts.changing.Unlock()
	old := ts.withID(id)
	if old == nil {
		return nil, errTopicUnknown
	}
	record := old.topicRecord
	record.Configs = maps.Clone(record.Configs)
	if err := edit(&record); err != nil {
		return nil, err
	}
	entry, err := record.entry()
	if err != nil {
		return nil, err
	}
	t, err := ts.openTopic(record, old)
	if err != nil {
		return nil, err
	}
	if err := ts.save(entry); err != nil {
		return nil, err
	}
	for _, log := range t.partitions {
		log.SetSegmentBytes(t.settings.segmentBytes)
	}
	ts.put(t)
	return t, nil
}

// delete removes a topic and its records. Once the journal says so there is no
// way back: a start goes on with the files that a crash has left.
func (ts *topics) delete(id topicID) error {
	ts.changing.Lock()
	defer ts.changing.Unlock()
	t := ts.withID(id)
	if t == nil {
		return errTopicUnknown
	}
	record := t.topicRecord
	record.Deleting = true
	entry, err := record.entry()
	if err != nil {
		return err
	}
	if err := ts.save(entry); err != nil {
		return err
	}
	ts.mu.Lock()
	delete(ts.byName, t.Name)
	delete(ts.byID, t.ID)
	ts.mu.Unlock()
	for _, log := range t.partitions {
		if err := log.Discard(); err != nil {
			return err
		}
	}
	return ts.finishDeletion(record)
}

// finishDeletion removes the files of a topic that the journal calls deleted. They
// must not come back after the journal has forgotten it: nobody would remove them.
func (ts *topics) finishDeletion(record topicRecord) error {
	if err := errors.Join(ts.removeFiles(record), ts.files.Sync()); err != nil {
		return err
	}
	entry, err := record.entry()
	if err != nil {
		return err
	}
	entry.Value = nil
	return ts.save(entry)
}

func (ts *topics) removeFiles(record topicRecord) error {
	var errs []error
	for n := range record.Partitions {
		errs = append(errs, disk.RemoveAll(ts.files, directoryName(record.ID, n)))
	}
	return errors.Join(errs...)
}

// put makes a topic known.
func (ts *topics) put(t *topic) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.byName[t.Name], ts.byID[t.ID] = t, t
}

// openTopic opens the partitions of a topic that old, which may be nil, does
// not have.
func (ts *topics) openTopic(record topicRecord, old *topic) (*topic, error) {
	t := &topic{topicRecord: record, settings: settingsOf(record.Configs)}
	if old != nil {
		t.partitions = slices.Clone(old.partitions)
	}
	for n := int32(len(t.partitions)); n < record.Partitions; n++ {
		log, err := ts.open(ts.directory(record.ID, n), t.settings)
		if err != nil {
			return nil, fmt.Errorf("topic %q, partition %d: %w", record.Name, n, err)
		}
		t.partitions = append(t.partitions, log)
	}
	return t, nil
}

// close stops the topic's logs cleanly.
func (t *topic) close() error {
	var errs []error
	for _, log := range t.partitions {
		errs = append(errs, log.Close())
	}
	return errors.Join(errs...)
}

// close stops all logs cleanly, several at a time: each may have to sync.
func (ts *topics) close() error {
	var closing errgroup.Group
	closing.SetLimit(closers)
	for _, t := range ts.all() {
		closing.Go(t.close)
	}
	return closing.Wait()
}

const closers = 32

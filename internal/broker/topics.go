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

// topicID identifies a topic. It distinguishes a topic from a later one of the same name (KIP-516).
type topicID [16]byte

func newTopicID() (id topicID) {
	rand.Read(id[:])
	id[6] = id[6]&0x0f | 0x40 // a UUID of version 4, as in Apache Kafka
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

// topic is one topic and its partitions. A topic is immutable; a change replaces it in topics.
type topic struct {
	topicRecord
	settings   topicSettings // the result of Configs
	partitions []*commitlog.Log
}

// topicRecord is the journal's record of a topic.
type topicRecord struct {
	Name       string            `json:"name"`
	ID         topicID           `json:"id"`
	Partitions int32             `json:"partitions"`
	Configs    map[string]string `json:"configs,omitempty"`  // only those that were set
	Deleting   bool              `json:"deleting,omitempty"` // its files are being removed
}

const topicKeyPrefix = "topic/" // of a topic's key in the journal; its ID follows

func (t topicRecord) entry() (journal.Entry, error) {
	value, err := json.Marshal(t)
	return journal.Entry{Key: []byte(topicKeyPrefix + t.ID.String()), Value: value}, err
}

// partition returns the log of partition n. It returns false if there is no such partition, or if t
// is nil.
func (t *topic) partition(n int32) (*commitlog.Log, bool) {
	if t == nil || n < 0 || int(n) >= len(t.partitions) {
		return nil, false
	}
	return t.partitions[n], true
}

// topics holds all topics of the broker. A method that changes a topic returns when the change is
// in the journal.
type topics struct {
	files disk.FS // contains one directory for each partition
	open  func(disk.FS, topicSettings) (*commitlog.Log, error)
	save  func(...journal.Entry) error

	changing sync.Mutex // serializes changes

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

// all returns all topics, sorted by name.
func (ts *topics) all() []*topic {
	ts.mu.RLock()
	all := slices.Collect(maps.Values(ts.byName))
	ts.mu.RUnlock()
	slices.SortFunc(all, func(a, b *topic) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// directory returns the directory of a partition's files.
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

// create creates a topic. It creates the files before the journal entry, because creating files can
// fail. A crash in between leaves directories that belong to no topic.
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

// change replaces a topic's record: its settings, or its number of partitions, which can only grow.
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

// delete deletes a topic and its records. The deletion is final once it is in the journal: after a
// crash, the next start removes the files that are left.
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

// finishDeletion removes the files of a topic that the journal marks as deleted, and then its entry
// in the journal. The directory is synced in between. Otherwise a power cut could bring the files
// back after the entry is gone, and nothing would ever remove them.
func (ts *topics) finishDeletion(record topicRecord) error {
	for n := range record.Partitions {
		// An earlier removal may exist in memory only, if the sync after it has failed, and another sync
		// would not write it. So there must be a directory to remove.
		ts.directory(record.ID, n).Make() // may fail on a full disk, which must not prevent the removal
	}
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

// put adds a topic, or replaces its earlier version.
func (ts *topics) put(t *topic) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.byName[t.Name], ts.byID[t.ID] = t, t
}

// openTopic opens the partitions that the record has in addition to those of old. old may be nil.
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

// close closes the topic's logs.
func (t *topic) close() error {
	var errs []error
	for _, log := range t.partitions {
		errs = append(errs, log.Close())
	}
	return errors.Join(errs...)
}

// close closes all logs, several at a time, because each may have to sync.
func (ts *topics) close() error {
	var closing errgroup.Group
	closing.SetLimit(maxConcurrentCloses)
	for _, t := range ts.all() {
		closing.Go(t.close)
	}
	return closing.Wait()
}

const maxConcurrentCloses = 32

package broker

import (
	"cmp"
	"encoding/json"
	"fmt"
	"runtime"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/diaspora-streams/diaspora/internal/journal"
)

// journaled is what was read from the journal in meta/, except ACLs, which are added to Broker.acls.
type journaled struct {
	broker brokerRecord            // replaced with each change
	topics map[topicID]topicRecord // used only at the start; later changes are in Broker.topics
}

// brokerRecord is the journal's record of the broker itself.
type brokerRecord struct {
	ClusterID      string `json:"cluster_id"`
	Epoch          int32  `json:"epoch"`            // the leader epoch of all partitions, see openMeta
	NextProducerID int64  `json:"next_producer_id"` // the next start assigns IDs from here on
}

const brokerKey = "broker" // key of brokerRecord in the journal

func (s brokerRecord) entry() (journal.Entry, error) {
	value, err := json.Marshal(s)
	return journal.Entry{Key: []byte(brokerKey), Value: value}, err
}

// openMeta reads the journal, converts a data directory with the old layout, and raises the leader
// epoch of all partitions by one. It is 1 at the first start. After a conversion it continues from
// the largest epoch of the old data. After a power cut, new records may get the offsets of records
// that were lost, but never with the same epoch, so clients can tell them apart (KIP-320).
func (b *Broker) openMeta() (err error) {
	b.journaled.topics = make(map[topicID]topicRecord)
	b.acls = newACLs(func(entries ...journal.Entry) error { return b.meta.Append(entries...) })
	b.meta, err = journal.Open(journal.Options{
		FS:          b.files.Sub("meta"),
		Sync:        true,
		Diagnostics: b.cfg.Diagnostics,
	}, b.loadMeta)
	if err != nil {
		return err
	}
	if err := b.convert(); err != nil {
		return err
	}
	record := b.journaled.broker
	record.ClusterID = cmp.Or(record.ClusterID, b.cfg.ClusterID)
	b.cfg.ClusterID = record.ClusterID
	record.Epoch++
	if err := b.saveBrokerRecord(record); err != nil {
		return err
	}
	b.epoch = record.Epoch
	b.producers = producerIDs{next: record.NextProducerID, end: record.NextProducerID}
	return nil
}

func (b *Broker) loadMeta(e journal.Entry) error {
	switch key := string(e.Key); {
	case key == brokerKey:
		return json.Unmarshal(e.Value, &b.journaled.broker)
	case strings.HasPrefix(key, topicKeyPrefix):
		var id topicID
		if err := id.UnmarshalText(e.Key[len(topicKeyPrefix):]); err != nil {
			return err
		}
		if e.Value == nil {
			delete(b.journaled.topics, id)
			return nil
		}
		var t topicRecord
		if err := json.Unmarshal(e.Value, &t); err != nil {
			return fmt.Errorf("topic %v: %w", id, err)
		}
		b.journaled.topics[id] = t
		return nil
	case strings.HasPrefix(key, aclKeyPrefix):
		return b.acls.load(e)
	default:
		return fmt.Errorf("unknown key %q: a later version has written the data directory", key)
	}
}

// saveBrokerRecord replaces the journal's record of the broker itself.
func (b *Broker) saveBrokerRecord(s brokerRecord) error {
	entry, err := s.entry()
	if err != nil {
		return err
	}
	if err := b.meta.Append(entry); err != nil {
		return err
	}
	b.journaled.broker = s
	return nil
}

// load opens the topics of the journal, several at a time. It also completes deletions that a crash
// interrupted.
func (ts *topics) load(records map[topicID]topicRecord) error {
	var opening errgroup.Group
	opening.SetLimit(2 * runtime.GOMAXPROCS(0))
	for id, record := range records {
		if record.ID != id {
			return fmt.Errorf("topic %v: the record under this key has the ID %v", id, record.ID)
		}
		opening.Go(func() error {
			if record.Deleting {
				return ts.finishDeletion(record)
			}
			t, err := ts.openTopic(record, nil)
			if err != nil {
				return err
			}
			ts.put(t)
			return nil
		})
	}
	return opening.Wait()
}

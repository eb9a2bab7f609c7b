package kfakedir

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Data is the content of a directory, except for the records, which stay in their files.
type Data struct {
	ClusterID      string            // empty: unknown
	BrokerConfigs  map[string]string // dynamic configs of the broker
	Topics         []Topic           // sorted by name
	ACLs           []ACL
	Groups         []Group // sorted by ID
	NextProducerID int64   // neither this ID nor the next 2⁴⁰-1 were given out

	// Warnings describe what is damaged, left out or lost, for the operator.
	Warnings []string
}

// Topic is a topic with all of its partitions.
type Topic struct {
	Name       string
	ID         [16]byte // zero: unknown, only the topic's partitions were found
	Configs    map[string]string
	Partitions []Partition // in order of their numbers, without gaps
}

// ACL is an ACL with the fields of Kafka's requests.
type ACL struct {
	Principal    string
	Host         string
	ResourceType kmsg.ACLResourceType
	ResourceName string
	Pattern      kmsg.ACLResourcePatternType
	Operation    kmsg.ACLOperation
	Permission   kmsg.ACLPermissionType
}

// Partition is a partition of a topic.
type Partition struct {
	Number    int32
	Start     int64      // the first offset that can be read
	End       int64      // the offset of the next record
	Epoch     int32      // the leader epoch
	Segments  []Segment  // in order of their offsets, without those whose records are all before Start
	Producers []Producer // sorted by ID
}

// Producer is a partition's state of an idempotent producer.
type Producer struct {
	ID      int64
	Epoch   int16
	Batches []ProducerBatch // the last batches, at most five, the newest last
	Time    time.Time       // the last batch was appended at this time or earlier
}

// ProducerBatch is a batch that a producer has sent. A duplicate of it is answered with its offset.
type ProducerBatch struct {
	FirstSequence, LastSequence int32 // 2³¹-1 is followed by 0
	FirstOffset, LastOffset     int64
}

// version is the version of the layout. There is no other.
const version = 1

// maxOffset is the highest plausible offset. Higher numbers are treated as damage, or as made up by
// a consumer that committed them. The limit keeps a partition's end, which is derived from such
// numbers too, far below the largest int64.
const maxOffset = 1 << 53

// maxPartitions is the highest plausible number of partitions of a topic.
const maxPartitions = 100_000

// Found reports whether dir holds data in the old layout.
func Found(dir string) (bool, error) {
	for _, name := range []string{"meta.json", "topics.json", "groups.log", "pids.log", partitionsName} {
		_, err := os.Stat(filepath.Join(dir, name))
		if err == nil {
			return true, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	}
	return false, nil
}

// Read reads the directory dir and checks all batches in it. It fails if something cannot be read,
// or if a newer version wrote the directory. Damage is not an error; it is reported in
// [Data.Warnings].
func Read(dir string) (*Data, error) {
	r := &reader{dir: dir, data: new(Data), compacted: make(map[string]bool)}
	for _, read := range []func() error{
		r.readMeta, r.readBrokerConfigs, r.readProducerIDs, r.readWindows, r.readGroups, r.readTopics, r.readACLs,
	} {
		if err := read(); err != nil {
			return nil, fmt.Errorf("read data directory of an earlier version: %w", err)
		}
	}
	r.data.NextProducerID = freeProducerID(r.producerIDs)
	return r.data, nil
}

// reader reads a directory into data.
type reader struct {
	dir         string
	data        *Data
	buf         []byte // for reading segments
	producerIDs []int64
	windows     map[topicPartition][]window
	windowsTime time.Time
	committed   map[topicPartition]int64 // the highest offset that any group has committed
	compacted   map[string]bool          // by topic
}

type topicPartition struct {
	topic     string
	partition int32
}

func (tp topicPartition) String() string {
	return fmt.Sprintf("topic %s, partition %d", tp.topic, tp.partition)
}

func (r *reader) warn(format string, args ...any) {
	r.data.Warnings = append(r.data.Warnings, fmt.Sprintf(format, args...))
}

func (r *reader) readMeta() error {
	file, err := readJSON[struct {
		ClusterID string `json:"cluster_id"`
	}](r, "meta.json")
	switch {
	case err != nil:
		return err
	case file != nil:
		r.data.ClusterID = file.ClusterID
	default:
		r.warn("meta.json is missing or damaged: the cluster's ID is not known")
	}
	return nil
}

func (r *reader) readACLs() error {
	file, err := readJSON[struct {
		ACLs []struct {
			Principal    string `json:"principal"`
			Host         string `json:"host"`
			ResourceType int8   `json:"resource_type"`
			ResourceName string `json:"resource_name"`
			Pattern      int8   `json:"pattern"`
			Operation    int8   `json:"operation"`
			Permission   int8   `json:"permission"`
		} `json:"acls"`
	}](r, "acls.json")
	if err != nil {
		return err
	}
	if file == nil {
		if len(r.data.Topics) > 0 {
			r.warn("acls.json is missing or damaged: all ACLs are lost")
		}
		return nil
	}
	for _, a := range file.ACLs {
		r.data.ACLs = append(r.data.ACLs, ACL{
			Principal:    a.Principal,
			Host:         a.Host,
			ResourceType: kmsg.ACLResourceType(a.ResourceType),
			ResourceName: a.ResourceName,
			Pattern:      kmsg.ACLResourcePatternType(a.Pattern),
			Operation:    kmsg.ACLOperation(a.Operation),
			Permission:   kmsg.ACLPermissionType(a.Permission),
		})
	}
	return nil
}

func (r *reader) readBrokerConfigs() error {
	file, err := readJSON[struct {
		Configs map[string]string `json:"configs"`
	}](r, "broker_configs.json")
	if file != nil {
		r.data.BrokerConfigs = file.Configs
	}
	return err
}

// topicID is a topic ID, encoded in base64.
type topicID [16]byte

func (id *topicID) UnmarshalText(text []byte) error {
	b, err := base64.StdEncoding.DecodeString(string(text))
	if err == nil && len(b) != len(id) {
		err = fmt.Errorf("topic ID of %d bytes", len(b))
	}
	copy(id[:], b)
	return err
}

type topicsFile struct {
	Topics []struct {
		Name       string            `json:"name"`
		ID         topicID           `json:"id"`
		Partitions int32             `json:"partitions"`
		Configs    map[string]string `json:"configs"`
	} `json:"topics"`
}

// readTopics reads topics.json and the partitions. A partition that is not in the file is kept if
// it has records, because the old engine could lose a topic when the disk was full.
func (r *reader) readTopics() error {
	found, err := r.partitionDirs()
	if err != nil {
		return err
	}
	file, err := readJSON[topicsFile](r, "topics.json")
	if err != nil {
		return err
	}
	complete := file != nil
	if !complete {
		file = new(topicsFile)
		if len(found) > 0 {
			r.warn("topics.json is missing or damaged: topics are known by their partitions only, and their configs are lost")
		}
	}
	topics := make(map[string]*Topic)
	for _, t := range file.Topics {
		if !validTopic(t.Name) {
			r.warn("a topic cannot be called %q: it is left out", t.Name)
			continue
		}
		if topics[t.Name] != nil {
			continue
		}
		if t.Partitions < 0 || t.Partitions > maxPartitions {
			r.warn("topic %s cannot have %d partitions: those that have records are kept", t.Name, t.Partitions)
			t.Partitions = 0
		}
		r.compacted[t.Name] = strings.Contains(t.Configs["cleanup.policy"], "compact")
		topics[t.Name] = &Topic{Name: t.Name, ID: t.ID, Configs: t.Configs, Partitions: make([]Partition, t.Partitions)}
		for n := range t.Partitions {
			tp := topicPartition{t.Name, n}
			dir := found[tp]
			delete(found, tp)
			if topics[t.Name].Partitions[n], err = r.readPartition(tp, dir); err != nil {
				return err
			}
		}
	}
	if err := r.adopt(topics, found, complete); err != nil {
		return err
	}
	for _, t := range topics {
		r.data.Topics = append(r.data.Topics, *t)
	}
	slices.SortFunc(r.data.Topics, func(a, b Topic) int { return strings.Compare(a.Name, b.Name) })
	return nil
}

// validTopic reports whether Kafka allows a topic of this name.
func validTopic(name string) bool {
	const legal = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
	return name != "" && name != "." && name != ".." && len(name) <= 249 && strings.Trim(name, legal) == ""
}

// adopt adds partitions that belong to no known topic, and topics for them. If topics.json was
// readable (complete), it skips empty partitions.
func (r *reader) adopt(topics map[string]*Topic, found map[topicPartition]string, complete bool) error {
	orphans := make([]topicPartition, 0, len(found))
	for tp := range found {
		orphans = append(orphans, tp)
	}
	slices.SortFunc(orphans, func(a, b topicPartition) int {
		if a.topic != b.topic {
			return strings.Compare(a.topic, b.topic)
		}
		return int(a.partition) - int(b.partition)
	})
	for _, tp := range orphans {
		p, err := r.readPartition(tp, found[tp])
		if err != nil {
			return err
		}
		if complete && p.End == 0 {
			continue
		}
		t := topics[tp.topic]
		if t == nil {
			t = &Topic{Name: tp.topic}
			topics[tp.topic] = t
		}
		if complete {
			r.warn("%s: topics.json does not have it; its records are kept", tp)
		}
		for n := int32(len(t.Partitions)); n < tp.partition; n++ {
			t.Partitions = append(t.Partitions, r.emptyPartition(topicPartition{tp.topic, n}))
		}
		t.Partitions = append(t.Partitions, p)
	}
	return nil
}

// readJSON reads a JSON file. It returns nil if the file does not exist or is damaged; damage is
// also a warning. If the file cannot be used, readJSON tries its temporary name: a process that was
// killed between two system calls may have left the content there.
func readJSON[T any](r *reader, name string) (*T, error) {
	for _, name := range []string{name, name + ".tmp"} {
		content, err := os.ReadFile(filepath.Join(r.dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		var head struct {
			Version int `json:"version"`
		}
		v := new(T)
		if err := errors.Join(json.Unmarshal(content, &head), json.Unmarshal(content, v)); err != nil {
			if !strings.HasSuffix(name, ".tmp") {
				r.warn("%s is damaged: %v", name, err)
			}
			continue
		}
		if head.Version > version {
			return nil, fmt.Errorf("%s: version %d is newer than this program", name, head.Version)
		}
		return v, nil
	}
	return nil, nil
}

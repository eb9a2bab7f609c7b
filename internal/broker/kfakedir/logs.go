package kfakedir

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Group is a consumer group: its committed offsets and its generation. Its members are not stored;
// they join again.
type Group struct {
	ID           string
	Kind         string // "classic", or "consumer" for a group of the KIP-848 protocol
	ProtocolType string // of a classic group: the protocol type of its members, usually "consumer"
	Protocol     string // of a classic group: the last assignor
	Assignor     string // of a consumer group: the server-side assignor
	Generation   int32  // of a classic group; the epoch of a consumer group
	Offsets      []Offset
}

// Offset is a committed offset. Offsets are sorted by topic and partition.
type Offset struct {
	Topic       string
	Partition   int32
	Offset      int64
	LeaderEpoch int32 // -1: unknown
	Metadata    *string
	Time        time.Time // when it was committed; zero: unknown
}

// A frame consists of a length, a checksum, a version and JSON. The length and the checksum cover
// the version and the JSON.
const (
	frameOverhead = 8
	versionBytes  = 2
	frameHeader   = frameOverhead + versionBytes
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// frameAt returns the JSON of the frame at the start of log, or false if there is no valid frame.
func frameAt(log []byte) (content []byte, ok bool) {
	if len(log) < frameHeader {
		return nil, false
	}
	length := uint64(binary.LittleEndian.Uint32(log))
	if length < versionBytes || length > uint64(len(log)-frameOverhead) {
		return nil, false
	}
	if binary.LittleEndian.Uint16(log[frameOverhead:]) != version {
		return nil, false
	}
	body := log[frameOverhead : frameOverhead+length]
	if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(log[4:]) {
		return nil, false
	}
	return body[versionBytes:], true
}

// frames calls f for each frame of a log. Where a frame is damaged, it searches for the next one,
// because the old engine appended behind torn frames. It returns the numbers of bytes that belong
// to no frame: those that are followed by a frame, and those at the end.
//
// The search cannot mistake part of a frame for another frame: the version of a frame contains a
// byte that never occurs unescaped in JSON.
func frames(log []byte, f func(content []byte)) (skipped, torn int) {
	for len(log) > 0 {
		if content, ok := frameAt(log); ok {
			f(content)
			log = log[frameHeader+len(content):]
			skipped, torn = skipped+torn, 0
			continue
		}
		log = log[1:]
		torn++
	}
	return skipped, torn
}

// eachEntry calls f for each entry of a log, if the log exists.
func eachEntry[T any](r *reader, name string, f func(T)) error {
	log, err := os.ReadFile(filepath.Join(r.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	unknown := 0
	skipped, torn := frames(log, func(content []byte) {
		var entry T
		if json.Unmarshal(content, &entry) != nil {
			unknown++
			return
		}
		f(entry)
	})
	if skipped > 0 {
		r.warn("%s is damaged: %d bytes between its entries were skipped", name, skipped)
	}
	if torn > 0 {
		r.warn("%s ends with an incomplete entry of %d bytes, which was never acknowledged", name, torn)
	}
	if unknown > 0 {
		r.warn("%s has %d entries that are not understood", name, unknown)
	}
	return nil
}

type groupEntry struct {
	Type          string  `json:"type"`
	Group         string  `json:"g"`
	Topic         string  `json:"t"`
	Partition     int32   `json:"p"`
	Offset        int64   `json:"o"`
	LeaderEpoch   int32   `json:"e"`
	Metadata      *string `json:"m"`
	Time          *int64  `json:"lc"` // milliseconds since 1970
	Kind          string  `json:"typ"`
	ProtocolType  string  `json:"pt"`
	Protocol      string  `json:"pr"`
	Generation    int32   `json:"gen"`
	Assignor      string  `json:"assignor"`
	ConsumerEpoch int32   `json:"epoch848"`
}

// groupState is the state of a group while its log is being read.
type groupState struct {
	Group
	offsets map[topicPartition]Offset
}

func (g *groupState) apply(e groupEntry) {
	tp := topicPartition{e.Topic, e.Partition}
	switch e.Type {
	case "commit":
		o := Offset{Topic: e.Topic, Partition: e.Partition, Offset: e.Offset, LeaderEpoch: e.LeaderEpoch, Metadata: e.Metadata}
		if o.LeaderEpoch < 0 || o.LeaderEpoch > maxEpoch {
			o.LeaderEpoch = -1 // consumers could commit any number
		}
		if e.Time != nil {
			o.Time = time.UnixMilli(*e.Time)
		}
		g.offsets[tp] = o
	case "delete":
		delete(g.offsets, tp)
	case "meta":
		kind := e.Kind
		if kind == "" {
			kind = "classic"
		}
		g.Group = Group{ID: g.ID, Kind: kind, ProtocolType: e.ProtocolType, Protocol: e.Protocol, Generation: e.Generation}
	case "meta848":
		g.Group = Group{ID: g.ID, Kind: "consumer", Assignor: e.Assignor, Generation: e.ConsumerEpoch}
	}
}

// readGroups reads groups.log. The old engine logged the deletion of a group only at a clean stop.
// So a group that was deleted before a kill is still there.
func (r *reader) readGroups() error {
	groups := make(map[string]*groupState)
	err := eachEntry(r, "groups.log", func(e groupEntry) {
		g := groups[e.Group]
		if g == nil {
			if e.Type != "commit" && e.Type != "meta" && e.Type != "meta848" {
				return
			}
			g = &groupState{Group: Group{ID: e.Group, Kind: "classic"}, offsets: make(map[topicPartition]Offset)}
			groups[e.Group] = g
		}
		g.apply(e)
	})
	if err != nil {
		return err
	}
	r.committed = make(map[topicPartition]int64)
	for _, g := range groups {
		for tp, o := range g.offsets {
			g.Offsets = append(g.Offsets, o)
			if o.Offset <= maxOffset {
				r.committed[tp] = max(r.committed[tp], o.Offset)
			}
		}
		slices.SortFunc(g.Offsets, func(a, b Offset) int {
			if a.Topic != b.Topic {
				return strings.Compare(a.Topic, b.Topic)
			}
			return int(a.Partition) - int(b.Partition)
		})
		r.data.Groups = append(r.data.Groups, g.Group)
	}
	slices.SortFunc(r.data.Groups, func(a, b Group) int { return strings.Compare(a.ID, b.ID) })
	return nil
}

// readProducerIDs reads pids.log. It ignores the entries about transactions.
func (r *reader) readProducerIDs() error {
	return eachEntry(r, "pids.log", func(e struct {
		Type string `json:"type"`
		ID   int64  `json:"pid"`
	}) {
		if e.Type == "init" {
			r.producerIDs = append(r.producerIDs, e.ID)
		}
	})
}

// freeProducerID returns the lowest producer ID that is followed by 2⁴⁰ unused ones. The old engine
// gave out random IDs, so there may be hardly any left after the highest one.
func freeProducerID(taken []int64) int64 {
	const enough = 1 << 40
	slices.Sort(taken)
	free := int64(0)
	for _, id := range taken {
		if id-free >= enough {
			break
		}
		free = max(free, id+1)
	}
	return free
}

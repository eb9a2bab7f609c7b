package groups

import (
	"time"

	"github.com/diaspora-streams/diaspora/internal/journal"
)

// CommittedOffset is a committed offset to import from another engine.
type CommittedOffset struct {
	Group, Topic string
	TopicID      [16]byte // zero: unknown
	Partition    int32
	Offset       int64
	LeaderEpoch  int32 // -1: unknown
	Metadata     string
	Committed    time.Time
}

// Entry returns the entry for the Coordinator's journal.
func (o CommittedOffset) Entry() journal.Entry {
	c := storedOffset{offset: o.Offset, epoch: o.LeaderEpoch, at: o.Committed.UnixMilli(), expires: -1, topicID: o.TopicID, metadata: o.Metadata}
	return entry{Key: appendOffsetKey(nil, o.Group, o.Topic, o.Partition), Value: appendOffset(nil, &c)}
}

// EmptyGroup is a classic group without members to import from another engine. It is not needed for
// a group that only has offsets.
type EmptyGroup struct {
	Group        string
	ProtocolType string    // usually "consumer"
	Generation   int32     // the last generation; the next one is greater
	Since        time.Time // when it became empty
}

// Entry returns the entry for the Coordinator's journal.
func (e EmptyGroup) Entry() journal.Entry {
	g := newClassicGroup(e.Since)
	g.protocolType, g.generation = e.ProtocolType, e.Generation
	return entry{Key: classicKey(e.Group), Value: appendClassic(nil, g, nil)}
}

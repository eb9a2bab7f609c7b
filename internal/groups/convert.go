package groups

import (
	"time"

	"github.com/diaspora-streams/diaspora/internal/journal"
)

// CommittedOffset is a committed offset that another engine has left.
type CommittedOffset struct {
	Group, Topic string
	TopicID      [16]byte // zero: not known
	Partition    int32
	Offset       int64
	LeaderEpoch  int32 // -1: not known
	Metadata     string
	Committed    time.Time
}

// Entry returns the offset as the Coordinator's journal has it.
func (o CommittedOffset) Entry() journal.Entry {
	c := committed{offset: o.Offset, epoch: o.LeaderEpoch, at: o.Committed.UnixMilli(), expires: -1, topicID: o.TopicID, metadata: o.Metadata}
	return entry{Key: appendOffsetKey(nil, o.Group, o.Topic, o.Partition), Value: appendOffset(nil, &c)}
}

// EmptyGroup is a classic group without members that another engine has left. A
// group of which there are only offsets needs none.
type EmptyGroup struct {
	Group        string
	ProtocolType string    // "consumer", as a rule
	Generation   int32     // the last one; the next is greater
	Since        time.Time // when it became empty
}

// Entry returns the group as the Coordinator's journal has it.
func (e EmptyGroup) Entry() journal.Entry {
	g := newClassicGroup(e.Since)
	g.protocolType, g.generation = e.ProtocolType, e.Generation
	return entry{Key: classicKey(e.Group), Value: appendClassic(nil, g, nil)}
}

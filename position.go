package diaspora

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// Position is a place in each partition of a topic: [Start], [End], [At], [Offset] or [Last]. The
// zero Position means that none is set.
type Position struct {
	kind positionKind
	n    int64     // the offset, or how many offsets before the end
	t    time.Time // for At
}

type positionKind int

const (
	positionNone positionKind = iota
	positionStart
	positionEnd
	positionAt
	positionOffset
	positionLast
)

var (
	// Start is the position of the oldest record that the cluster still has.
	Start = Position{kind: positionStart}
	// End is the position after the newest record at the time when the Consumer is opened.
	End = Position{kind: positionEnd}
)

// At returns the position of the first record that was stored at t or later; see [Record.Stored].
// If there is none, it is the end.
func At(t time.Time) Position { return Position{kind: positionAt, t: t} }

// Offset returns the position of offset n, or of the first record after it.
func Offset(n int64) Position { return Position{kind: positionOffset, n: n} }

// Last returns the position n offsets before the end of each partition. That is n records, except
// in compacted or transactional topics, in which some offsets hold no record.
func Last(n int64) Position { return Position{kind: positionLast, n: n} }

// String returns the position in words.
func (p Position) String() string {
	switch p.kind {
	case positionStart:
		return "start"
	case positionEnd:
		return "end"
	case positionAt:
		return "at " + p.t.UTC().Format(time.RFC3339Nano)
	case positionOffset:
		return fmt.Sprintf("offset %d", p.n)
	case positionLast:
		return fmt.Sprintf("last %d", p.n)
	}
	return "none"
}

func (p Position) validate(name string) error {
	if p.n < 0 {
		return invalid("%s: %d is negative", name, p.n)
	}
	if p.kind == positionAt && p.t.UnixMilli() < 0 {
		return invalid("%s: a time before 1970", name)
	}
	return nil
}

// resolve returns the offset of a position in each of the partitions.
func (p Position) resolve(ctx context.Context, client *kgo.Client, spans map[kafka.Partition]kafka.Span) (map[kafka.Partition]int64, error) {
	var at map[kafka.Partition]int64
	if p.kind == positionAt {
		var err error
		if at, err = kafka.ListOffsets(ctx, client, slices.Collect(maps.Keys(spans)), p.t.UnixMilli()); err != nil {
			return nil, err
		}
	}
	offsets := make(map[kafka.Partition]int64, len(spans))
	for id, s := range spans {
		o := s.Start
		switch p.kind {
		case positionEnd:
			o = s.End
		case positionAt:
			if o = at[id]; o < 0 {
				o = s.End
			}
		case positionOffset:
			o = p.n
		case positionLast:
			o = s.End - p.n
		}
		offsets[id] = max(o, s.Start)
	}
	return offsets, nil
}

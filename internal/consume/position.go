package consume

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// Position is a place in each partition of a topic.
type Position struct {
	Kind   Kind
	Offset int64     // for Offset, and for Last how many offsets before the end
	Time   time.Time // for At
}

// Kind is a kind of [Position].
type Kind int

// The kinds of positions. The zero Kind means that none is set.
const (
	None   Kind = iota
	Start       // of the oldest record that the cluster still has
	End         // after the newest record
	At          // of the first record that was stored at a time or later; the end if there is none
	Offset      // of an offset, or of the first record after it
	Last        // some offsets before the end
)

// String returns the position in words.
func (p Position) String() string {
	switch p.Kind {
	case Start:
		return "start"
	case End:
		return "end"
	case At:
		return "at " + p.Time.UTC().Format(time.RFC3339Nano)
	case Offset:
		return fmt.Sprintf("offset %d", p.Offset)
	case Last:
		return fmt.Sprintf("last %d", p.Offset)
	}
	return "none"
}

// Validate returns what is wrong with the position, or nil.
func (p Position) Validate() error {
	if p.Offset < 0 {
		return fmt.Errorf("%d is negative", p.Offset)
	}
	if p.Kind == At && p.Time.UnixMilli() < 0 {
		return errors.New("a time before 1970")
	}
	return nil
}

// Resolve returns the offset of a position in each of the partitions.
func (p Position) Resolve(ctx context.Context, client *kgo.Client, spans map[kafka.Partition]kafka.Span) (map[kafka.Partition]int64, error) {
	var at map[kafka.Partition]int64
	if p.Kind == At {
		var err error
		if at, err = kafka.ListOffsets(ctx, client, slices.Collect(maps.Keys(spans)), p.Time.UnixMilli()); err != nil {
			return nil, err
		}
	}
	offsets := make(map[kafka.Partition]int64, len(spans))
	for id, s := range spans {
		o := s.Start
		switch p.Kind {
		case End:
			o = s.End
		case At:
			if o = at[id]; o < 0 {
				o = s.End
			}
		case Offset:
			o = p.Offset
		case Last:
			o = s.End - p.Offset
		}
		offsets[id] = max(o, s.Start)
	}
	return offsets, nil
}

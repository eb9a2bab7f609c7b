package diaspora

import (
	"fmt"
	"time"
)

// Position is a place in a topic, for each of its partitions: [Start], [End],
// [At], [Offset] or [Last]. The zero Position is none.
type Position struct {
	kind positionKind
	n    int64     // the offset, or how many from the end
	t    time.Time // of At
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
	// Start is the oldest record that the cluster still has.
	Start = Position{kind: positionStart}
	// End is behind the newest record, as of when the Consumer is opened.
	End = Position{kind: positionEnd}
)

// At is the first record that was stored at t or later; see [Record.Stored]. If
// there is none yet, it is the end.
func At(t time.Time) Position { return Position{kind: positionAt, t: t} }

// Offset is the record with the offset n, or the first one behind it.
func Offset(n int64) Position { return Position{kind: positionOffset, n: n} }

// Last is n offsets before the end of each partition. Offsets are records, but for
// compacted topics and transactions, where some hold none.
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

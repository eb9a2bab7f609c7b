package diaspora

import (
	"time"

	"github.com/diaspora-streams/diaspora/internal/consume"
)

// Position is a place in each partition of a topic: [Start], [End], [At], [Offset] or [Last]. The
// zero Position means that none is set.
type Position struct{ at consume.Position }

var (
	// Start is the position of the oldest record that the cluster still has.
	Start = Position{consume.Position{Kind: consume.Start}}
	// End is the position after the newest record at the time when the Consumer is opened.
	End = Position{consume.Position{Kind: consume.End}}
)

// At returns the position of the first record that was stored at t or later; see [Record.Stored].
// If there is none, it is the end.
func At(t time.Time) Position { return Position{consume.Position{Kind: consume.At, Time: t}} }

// Offset returns the position of offset n, or of the first record after it.
func Offset(n int64) Position { return Position{consume.Position{Kind: consume.Offset, Offset: n}} }

// Last returns the position n offsets before the end of each partition. That is n records, except
// in compacted or transactional topics, in which some offsets hold no record.
func Last(n int64) Position { return Position{consume.Position{Kind: consume.Last, Offset: n}} }

// String returns the position in words.
func (p Position) String() string { return p.at.String() }

func (p Position) validate(name string) error {
	if err := p.at.Validate(); err != nil {
		return invalid("%s: %v", name, err)
	}
	return nil
}

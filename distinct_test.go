package diaspora

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// got is a record or an error in a loop.
type got struct {
	record Record
	err    error
}

func each(items []got) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		for _, it := range items {
			if !yield(it.record, it.err) {
				return
			}
		}
	}
}

func text(r Record, err error) string {
	return fmt.Sprintf("%s/%s@%d %v", r.Topic, r.ID, r.Offset, err)
}

// TestDistinctIsAModel compares Distinct with the simplest implementation of its contract.
func TestDistinctIsAModel(t *testing.T) {
	t.Parallel()
	failure := errors.New("an error")
	rapid.Check(t, func(t *rapid.T) {
		window := rapid.IntRange(1, 6).Draw(t, "window")
		items := rapid.SliceOf(rapid.Custom(func(t *rapid.T) got {
			if rapid.IntRange(0, 9).Draw(t, "kind") == 0 {
				return got{err: failure}
			}
			return got{record: Record{Event: Event{
				Topic: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "topic"),
				ID:    rapid.SampledFrom([]string{"", "1", "2", "3", "4", "5"}).Draw(t, "id"),
			}}}
		})).Draw(t, "items")
		for i := range items {
			items[i].record.Offset = int64(i)
		}

		var want, known []string
		for _, it := range items {
			id := it.record.Topic + "/" + it.record.ID
			if it.err == nil && it.record.ID != "" {
				if slices.Contains(known, id) {
					continue
				}
				known = append(known, id)
				known = known[max(0, len(known)-window):]
			}
			want = append(want, text(it.record, it.err))
		}
		var have []string
		for r, err := range Distinct(each(items), window) {
			have = append(have, text(r, err))
		}
		if !slices.Equal(have, want) {
			t.Fatalf("window %d:\n got %q\nwant %q", window, have, want)
		}
	})
}

// TestDistinctAfterABreak breaks out of the loop at every record. The next loop starts with that
// record again, as loops over a Consumer's records do.
func TestDistinctAfterABreak(t *testing.T) {
	t.Parallel()
	ids := strings.Split("a b a c b d a", " ")
	var items []got
	for i, id := range ids {
		items = append(items, got{record: Record{Event: Event{Topic: "t", ID: id}, Offset: int64(i)}})
	}
	next := 0 // the next offset of the source
	source := func(yield func(Record, error) bool) {
		for next < len(items) {
			if !yield(items[next].record, nil) {
				return // it is not handled
			}
			next++
		}
	}
	distinct := Distinct(source, 0)
	var handled []string
	for attempt := 0; next < len(items); attempt++ {
		for r := range distinct {
			if attempt%2 == 0 {
				break // before it is handled
			}
			handled = append(handled, r.ID)
			attempt++
		}
	}
	if got := strings.Join(handled, " "); got != "a b c d" {
		t.Errorf("handled %s, want a b c d", got)
	}
}

// TestDistinctRemembersNoIDs checks that the window bounds the number of hashes that are kept in
// place of IDs, and that a hash tells topic and ID apart.
func TestDistinctRemembersNoIDs(t *testing.T) {
	t.Parallel()
	seen := recent{window: 3, known: map[eventKey]struct{}{}}
	for i := range 100 {
		seen.add(keyOf(Record{Event: Event{Topic: "t", ID: strings.Repeat("x", 1<<16) + fmt.Sprint(i)}}))
	}
	if len(seen.known) != 3 || len(seen.order) != 3 {
		t.Errorf("a window of 3 holds %d and %d keys", len(seen.known), len(seen.order))
	}
	a, b := Record{Event: Event{Topic: "t", ID: "ab"}}, Record{Event: Event{Topic: "ta", ID: "b"}}
	if keyOf(a) == keyOf(b) {
		t.Error("topic and ID run into each other")
	}
}

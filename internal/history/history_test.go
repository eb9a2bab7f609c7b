package history

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// goodHistory returns a history of a hundred events for each of four keys in two partitions, with
// one duplicate in the topic and some for the group.
func goodHistory() History {
	h := History{Stored: make([][]Event, 2)}
	for n := range 100 {
		for k := range 4 {
			e := Event{Key: fmt.Sprint("key-", k), N: n, ID: fmt.Sprintf("id-%d-%d", k, n)}
			h.Acknowledged = append(h.Acknowledged, e)
			h.Stored[k%2] = append(h.Stored[k%2], e)
			h.Consumed = append(h.Consumed, e)
		}
	}
	h.Stored[0] = slices.Insert(h.Stored[0], 31, h.Stored[0][30])
	h.Consumed = append(h.Consumed, h.Consumed[390:]...)
	return h
}

// TestCheck: Check accepts a good history, and detects each kind of loss.
func TestCheck(t *testing.T) {
	v := Check(goodHistory())
	if err := v.Err(); err != nil || v.Repeated != 1 || v.Again != 10 {
		t.Fatalf("a good history: %v, %+v; want 1 repeated and 10 again", err, v)
	}
	for name, test := range map[string]struct {
		spoil func(h *History)
		says  string
	}{
		"an event lost":               {func(h *History) { h.Stored[1] = slices.Delete(h.Stored[1], 50, 51) }, "1 acknowledged events lost"},
		"the last one lost":           {func(h *History) { h.Stored[1] = h.Stored[1][:len(h.Stored[1])-1] }, "1 acknowledged events lost"},
		"a partition lost":            {func(h *History) { h.Stored[1] = nil }, "200 acknowledged events lost"},
		"another event in its place":  {func(h *History) { h.Stored[1][50].N = 1000 }, "1 acknowledged events lost"},
		"two in the wrong order":      {func(h *History) { s := h.Stored[1]; s[50], s[52] = s[52], s[50] }, "1 out of order"},
		"never consumed":              {func(h *History) { h.Consumed = slices.Delete(h.Consumed, 50, 51) }, "1 never consumed"},
		"nothing consumed":            {func(h *History) { h.Consumed = nil }, "400 never consumed"},
		"the ID of another event":     {func(h *History) { h.Stored[1][50].ID = h.Stored[1][10].ID }, "1 with the ID of another"},
		"a repeat that says another":  {func(h *History) { h.Stored[0][31].N = 77 }, "1 with the ID of another"},
		"everything lost, none acked": {func(h *History) { h.Stored, h.Consumed = nil, nil }, "400 acknowledged events lost"},
	} {
		t.Run(name, func(t *testing.T) {
			h := goodHistory()
			test.spoil(&h)
			if err := Check(h).Err(); !strings.Contains(fmt.Sprint(err), test.says) {
				t.Errorf("Check: %v, want %q", err, test.says)
			}
		})
	}
}

func TestCommits(t *testing.T) {
	c := Commits{}
	one, other := CommitKey{"g", "t", 0}, CommitKey{"g", "t", 1}
	for _, step := range []struct {
		key  CommitKey
		at   int64
		good bool
	}{{one, 5, true}, {one, 5, true}, {one, 9, true}, {other, 3, true}, {one, 8, false}, {other, 2, false}} {
		if err := c.Note(step.key, step.at); (err == nil) != step.good {
			t.Errorf("Note(%v, %d) = %v, want good: %v", step.key, step.at, err, step.good)
		}
	}
}

func TestEarly(t *testing.T) {
	ends := map[int32]int64{0: 10, 1: 0}
	for _, test := range []struct {
		next map[int32]int64
		good bool
	}{{map[int32]int64{0: 10}, true}, {map[int32]int64{0: 12, 1: 3}, true}, {map[int32]int64{0: 9}, false}, {nil, false}} {
		if err := Early(ends, test.next); (err == nil) != test.good {
			t.Errorf("Early(%v, %v) = %v, want good: %v", ends, test.next, err, test.good)
		}
	}
}

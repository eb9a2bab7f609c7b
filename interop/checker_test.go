package interop

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// entry is an event as it was logged or read: the n-th of its key, and its ID.
type entry struct {
	key string
	n   int
	id  string
}

// history is what happened to events: what was acknowledged, what is in the topic
// (each partition in its order), and what the consumer group was handed.
type history struct {
	acknowledged []entry
	stored       [][]entry // by partition
	consumed     []entry
}

// verdict is what became of the events.
type verdict struct {
	lost     int // acknowledged, and not in the topic
	skipped  int // acknowledged, and never handed to the group
	disorder int // behind a later one of its key, repeats left out
	strange  int // in the topic with the ID of another event
	repeated int // in the topic more than once; allowed
	again    int // handed to the group more than once; allowed
}

func (v verdict) err() error {
	if v.lost+v.skipped+v.disorder+v.strange == 0 {
		return nil
	}
	return fmt.Errorf("%d acknowledged events lost, %d never consumed, %d out of order, %d with the ID of another", v.lost, v.skipped, v.disorder, v.strange)
}

// check judges a history by what is promised: every acknowledged event is there,
// in order per key, and comes to the group at least once; repeats have the same ID.
func check(h history) (v verdict) {
	stored := map[string]entry{}
	for _, partition := range h.stored {
		last := map[string]int{}
		for _, e := range partition {
			first, repeat := stored[e.id]
			switch {
			case repeat && first != e:
				v.strange++
			case repeat:
				v.repeated++
			default:
				stored[e.id] = e
				if before, ok := last[e.key]; ok && e.n <= before {
					v.disorder++
				}
				last[e.key] = e.n
			}
		}
	}
	consumed := map[string]bool{}
	for _, e := range h.consumed {
		if consumed[e.id] {
			v.again++
		}
		consumed[e.id] = true
	}
	for _, e := range h.acknowledged {
		if stored[e.id] != e {
			v.lost++
		}
		if !consumed[e.id] {
			v.skipped++
		}
	}
	return v
}

// parse reads an entry from an event's value.
func parse(key, value []byte, id string) (entry, error) {
	e := entry{key: string(key), id: id}
	var k string
	if _, err := fmt.Sscanf(string(value), "%s %d", &k, &e.n); err != nil || k != e.key {
		return e, errors.Join(fmt.Errorf("event %q of key %q is not ours", value, key), err)
	}
	return e, nil
}

// goodHistory has a hundred events of each of four keys in two partitions, with
// one repeat in the topic and some for the group.
func goodHistory() history {
	h := history{stored: make([][]entry, 2)}
	for n := range 100 {
		for k := range 4 {
			e := entry{key: fmt.Sprint("key-", k), n: n, id: fmt.Sprintf("id-%d-%d", k, n)}
			h.acknowledged = append(h.acknowledged, e)
			h.stored[k%2] = append(h.stored[k%2], e)
			h.consumed = append(h.consumed, e)
		}
	}
	h.stored[0] = slices.Insert(h.stored[0], 31, h.stored[0][30])
	h.consumed = append(h.consumed, h.consumed[390:]...)
	return h
}

// TestChecker: the checker lets a good history pass, and each way to lose events
// makes it fail.
func TestChecker(t *testing.T) {
	v := check(goodHistory())
	if err := v.err(); err != nil || v.repeated != 1 || v.again != 10 {
		t.Fatalf("a good history: %v, %+v; want 1 repeated and 10 again", err, v)
	}
	for name, test := range map[string]struct {
		spoil func(h *history)
		says  string
	}{
		"an event lost":               {func(h *history) { h.stored[1] = slices.Delete(h.stored[1], 50, 51) }, "1 acknowledged events lost"},
		"the last one lost":           {func(h *history) { h.stored[1] = h.stored[1][:len(h.stored[1])-1] }, "1 acknowledged events lost"},
		"a partition lost":            {func(h *history) { h.stored[1] = nil }, "200 acknowledged events lost"},
		"another event in its place":  {func(h *history) { h.stored[1][50].n = 1000 }, "1 acknowledged events lost"},
		"two in the wrong order":      {func(h *history) { s := h.stored[1]; s[50], s[52] = s[52], s[50] }, "1 out of order"},
		"never consumed":              {func(h *history) { h.consumed = slices.Delete(h.consumed, 50, 51) }, "1 never consumed"},
		"nothing consumed":            {func(h *history) { h.consumed = nil }, "400 never consumed"},
		"the ID of another event":     {func(h *history) { h.stored[1][50].id = h.stored[1][10].id }, "1 with the ID of another"},
		"a repeat that says another":  {func(h *history) { h.stored[0][31].n = 77 }, "1 with the ID of another"},
		"everything lost, none acked": {func(h *history) { h.stored, h.consumed = nil, nil }, "400 acknowledged events lost"},
	} {
		t.Run(name, func(t *testing.T) {
			h := goodHistory()
			test.spoil(&h)
			if err := check(h).err(); !strings.Contains(fmt.Sprint(err), test.says) {
				t.Errorf("check: %v, want %q", err, test.says)
			}
		})
	}
}

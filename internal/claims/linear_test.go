package claims

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/diaspora-streams/diaspora"
)

// Each history below is about one name. A call to Release counts as two events, because the name is
// neither owned nor free in between.
type (
	input struct {
		op      string // claim, show, release begins, release ends
		subject string
	}
	register struct {
		phase phase
		owner string
	}
)

// nameModel is the state of a name as clients see it.
var nameModel = porcupine.Model{
	Init: func() any { return register{} },
	Step: func(state, in, out any) (bool, any) {
		now, input, output := state.(register), in.(input), out.(string)
		own := now.phase != free && now.owner == input.subject
		switch input.op + ": " + output {
		case "claim: created":
			return now.phase == free, register{claimed, input.subject}
		case "claim: yours":
			return now.phase == claimed && own, now
		case "claim: conflict":
			return now.phase == releasing || now.phase == claimed && !own, now
		case "show: shown":
			return now.phase == claimed && own, now
		case "show: permission", "release begins: permission":
			return now.phase != free && !own, now
		case "show: not found":
			return now.phase == free || now.phase == releasing && own, now
		case "release begins: not found":
			return now.phase == free, now
		case "release begins: done":
			return own, register{releasing, input.subject}
		case "release ends: done":
			if now.phase == releasing && own {
				return true, register{}
			}
			return true, now // another release of the same claim has ended it
		}
		return false, now
	},
	DescribeOperation: func(in, out any) string { return fmt.Sprintf("%v: %v", in, out) },
}

// history collects the calls about one name and their results.
type history struct {
	start time.Time
	mu    sync.Mutex // guards the field below
	ops   []porcupine.Operation
}

// record calls do and records its result for these inputs.
func (h *history) record(do func() string, inputs ...input) string {
	call := time.Since(h.start)
	output := do()
	end := time.Since(h.start)
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, in := range inputs {
		if in.op == "release ends" && output != "done" {
			continue
		}
		h.ops = append(h.ops, porcupine.Operation{ClientId: len(h.ops), Input: in, Call: int64(call), Output: output, Return: int64(end)})
	}
	return output
}

func (h *history) claim(t *testing.T, s *Service, subject, name string) string {
	return h.record(func() string {
		topic, err := s.Claim(t.Context(), subject, diaspora.ClaimRequest{Name: name})
		switch {
		case err == nil && topic.Created:
			return "created"
		case err == nil:
			return "yours"
		}
		return outcome(t, err)
	}, input{"claim", subject})
}

func (h *history) release(t *testing.T, s *Service, subject, name string) string {
	return h.record(func() string {
		err := s.Release(t.Context(), subject, name)
		if err == nil {
			return "done"
		}
		return outcome(t, err)
	}, input{"release begins", subject}, input{"release ends", subject})
}

func (h *history) show(t *testing.T, s *Service, subject, name string) string {
	return h.record(func() string {
		_, err := s.Topic(t.Context(), subject, name)
		if err == nil {
			return "shown"
		}
		return outcome(t, err)
	}, input{"show", subject})
}

func outcome(t *testing.T, err error) string {
	for sentinel, outcome := range map[error]string{
		diaspora.ErrConflict:   "conflict",
		diaspora.ErrNotFound:   "not found",
		diaspora.ErrPermission: "permission",
	} {
		if errors.Is(err, sentinel) {
			return outcome
		}
	}
	t.Errorf("unexpected error: %v", err)
	return err.Error()
}

// TestOneWinner claims names for two subjects through two services at the same time, 200 times in
// all. The winner releases each name while the loser claims it again, and both read its state. Each
// race must have exactly one winner, and all results must fit a single order of events.
func TestOneWinner(t *testing.T) {
	const names, rounds = 10, 20
	c := newCluster(t)
	one, two := c.open(), c.open()
	start := time.Now()
	var wg sync.WaitGroup
	for n := range names {
		wg.Go(func() {
			h := &history{start: start}
			name := fmt.Sprintf("t%d", n)
			for range rounds {
				oneWinner(t, h, one, two, name)
			}
			if result := porcupine.CheckOperationsTimeout(nameModel, h.ops, time.Minute); result != porcupine.Ok {
				t.Errorf("the history of %s is %v: %+v", name, result, h.ops)
			}
		})
	}
	wg.Wait()
	c.check()
}

// oneWinner is one round with a name that is free before and after.
func oneWinner(t *testing.T, h *history, one, two *Service, name string) {
	var byAda, byBen string
	var wg sync.WaitGroup
	wg.Go(func() { byAda = h.claim(t, one, ada, name) })
	wg.Go(func() { byBen = h.claim(t, two, ben, name) })
	wg.Go(func() { h.show(t, two, ada, name) })
	wg.Wait()
	winner, loser := ada, ben
	if byBen == "created" {
		winner, loser = ben, ada
	}
	if (byAda == "created") == (byBen == "created") {
		t.Errorf("two claims at once: ada %s, ben %s, want one created", byAda, byBen)
	}
	wg.Go(func() { h.release(t, two, winner, name) })
	wg.Go(func() { h.claim(t, one, loser, name) })
	wg.Go(func() { h.show(t, one, winner, name) })
	wg.Go(func() { h.show(t, two, loser, name) })
	wg.Wait()
	if h.show(t, one, loser, name) == "shown" {
		h.release(t, one, loser, name)
	}
}

// TestModelCanFail checks that nameModel rejects a history that is impossible.
func TestModelCanFail(t *testing.T) {
	type event struct {
		op, subject, output string
	}
	for name, events := range map[string][]event{
		"two winners":         {{"claim", ada, "created"}, {"claim", ben, "created"}},
		"no winner":           {{"claim", ada, "conflict"}, {"claim", ben, "conflict"}},
		"forgotten claim":     {{"claim", ada, "created"}, {"show", ada, "not found"}},
		"shown to others":     {{"claim", ada, "created"}, {"show", ben, "shown"}},
		"shown after release": {{"claim", ada, "created"}, {"release begins", ada, "done"}, {"show", ada, "shown"}},
		"claim before end":    {{"claim", ada, "created"}, {"release begins", ada, "done"}, {"claim", ben, "created"}},
		"another's release":   {{"claim", ada, "created"}, {"release begins", ben, "done"}},
	} {
		var ops []porcupine.Operation
		for i, e := range events {
			ops = append(ops, porcupine.Operation{Input: input{e.op, e.subject}, Output: e.output, Call: int64(2 * i), Return: int64(2*i + 1)})
		}
		if porcupine.CheckOperations(nameModel, ops) {
			t.Errorf("%s: the model allows %v", name, events)
		}
	}
}

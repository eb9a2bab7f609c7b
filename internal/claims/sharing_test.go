package claims

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// The subjects of these histories. Dora is an operator.
const dora = "d0000000-0000-4000-8000-000000000005"

type (
	// sharingInput is a call about one topic: by a subject, with another one or a group.
	sharingInput struct {
		op, by, with string
		rights       rights
	}

	// sharedTopic is one topic as clients see it.
	sharedTopic struct {
		phase          phase
		owner, offered string
		ben, cleo, lab rights // what it is shared for with them
		member         string // who is in the group, as far as the service knows
		blocked        bool   // ben
	}
)

func (s *sharedTopic) grant(grantee string) *rights {
	switch grantee {
	case ben:
		return &s.ben
	case cleo:
		return &s.cleo
	case lab:
		return &s.lab
	}
	return new(rights)
}

// may returns the rights of a subject who may not be the owner.
func (s *sharedTopic) may(subject string) rights {
	have := s.granted(subject)
	switch {
	case s.phase != claimed:
		return 0
	case subject == s.owner || have&mayManage != 0:
		return mayRead | mayWrite | mayManage
	}
	return have
}

// granted returns the rights that shares give a subject while the topic is claimed.
func (s *sharedTopic) granted(subject string) rights {
	have := *s.grant(subject)
	if subject == s.member {
		have |= s.lab
	}
	return have
}

// unknown is the outcome of a call whose caller was not told: it has taken effect, or will, or not.
const unknown = "unknown"

// sharingModel says what each call may answer, and what the topic is afterwards.
var sharingModel = (&porcupine.NondeterministicModel{
	Init: func() []any { return []any{sharedTopic{}} },
	Step: func(state, in, out any) []any {
		now, input, output := state.(sharedTopic), in.(sharingInput), out.(string)
		answer, next := now.answer(input)
		switch {
		case output == unknown && answer == "done":
			return []any{now, next}
		case output == unknown, output == "stale": // the topic was released and claimed again in between
			return []any{now}
		case input.op == "accept" && output == "conflict" && now.phase == releasing: // it was offered when the service checked that
			return []any{now}
		case output == answer:
			return []any{next}
		}
		return nil
	},
	DescribeOperation: func(in, out any) string { return fmt.Sprintf("%v: %v", in, out) },
}).ToModel()

// answer returns the answer to a call and what the topic is afterwards.
func (s sharedTopic) answer(in sharingInput) (string, sharedTopic) {
	next, own, have := s, s.phase != free && s.owner == in.by, s.may(in.by)
	refusedTo := s.blocked && in.by == ben
	switch in.op {
	case "block", "unblock":
		next.blocked = in.op == "block"
		return "done", next
	case "members":
		if s.lab != 0 {
			next.member = in.with
		}
		return "done", next
	case "show":
		switch {
		case s.phase == free:
			return "not found", s
		case !own && have == 0 && s.offered != in.by:
			return "permission", s
		case s.phase == releasing:
			return "not found", s
		}
		return fmt.Sprintf("%s, %d", s.owner, have), s
	case "release begins":
		switch {
		case s.phase == free:
			return "not found", s
		case !own:
			return "permission", s
		}
		next = sharedTopic{phase: releasing, owner: s.owner, blocked: s.blocked}
		return "done", next
	case "release ends":
		if s.phase == releasing && own {
			next = sharedTopic{blocked: s.blocked}
		}
		return "done", next
	case "claim":
		switch {
		case refusedTo:
			return "permission", s
		case s.phase == claimed && own:
			return "yours", s
		case s.phase != free:
			return "conflict", s
		}
		return "done", sharedTopic{phase: claimed, owner: in.by, blocked: s.blocked}
	}
	manages := own || s.granted(in.by)&mayManage != 0
	owners := in.op == "offer" || in.op == "retire" || in.op == "restore"
	switch {
	case s.phase == free:
		return "not found", s
	case in.op == "accept" && s.offered != in.by:
		return "permission", s // before the state of the topic, which is not everybody's business
	case in.op == "share" && in.with == lab && !own && have&mayManage == 0:
		return "permission", s // before Globus is asked
	case refusedTo && in.op != "unshare" && in.op != "retire":
		return "permission", s
	case owners && !own:
		return "permission", s
	case s.phase == retired && in.op == "retire":
		return "done", s
	case s.phase == releasing:
		return "conflict", s
	case in.op == "share" && !manages, in.op == "unshare" && in.by != in.with && !manages:
		return "permission", s
	case s.phase == retired && in.op != "restore", s.phase == claimed && in.op == "restore":
		return "conflict", s
	case in.op == "share" && in.with == s.owner:
		return "conflict", s
	case in.op == "unshare" && *s.grant(in.with) == 0:
		return "not found", s
	}
	switch in.op {
	case "share":
		*next.grant(in.with) = in.rights
	case "unshare":
		*next.grant(in.with) = 0
	case "offer":
		if next.offered = in.with; in.with == in.by {
			next.offered = ""
		}
	case "accept":
		*next.grant(in.by) = 0
		next.owner, next.offered = in.by, ""
	case "retire":
		next.phase, next.offered = retired, ""
	case "restore":
		next.phase = claimed
	}
	if next.lab == 0 {
		next.member = ""
	}
	return "done", next
}

// call makes one call to a service and returns its outcome.
func (in sharingInput) call(ctx context.Context, s *Service) (string, error) {
	const name = "weather"
	var err error
	switch in.op {
	case "block":
		_, err = s.Block(ctx, dora, diaspora.BlockRequest{Subject: ben, Why: "x"})
	case "unblock":
		if err = s.Unblock(ctx, dora, ben); errors.Is(err, diaspora.ErrNotFound) {
			err = nil // he was not blocked
		}
	case "members":
		err = s.updateMembers(ctx, groupGrantee+lab, s.groupMembers)
	case "show":
		var t diaspora.Topic
		if t, err = s.Topic(ctx, in.by, name); err == nil {
			return fmt.Sprintf("%s, %d", t.Owner, record{Read: t.Read, Write: t.Write, Manage: t.Manage}.rights()), nil
		}
	case "release begins":
		err = s.Release(ctx, in.by, name)
	case "claim":
		var t diaspora.Topic
		if t, err = s.Claim(ctx, in.by, diaspora.ClaimRequest{Name: name}); err == nil && !t.Created {
			return "yours", nil
		}
	case "share":
		req := diaspora.GrantRequest{Subject: in.with, Read: in.rights&mayRead != 0, Manage: in.rights&mayManage != 0}
		if in.with == lab {
			req.Subject, req.Group = "", lab
		}
		_, err = s.Share(ctx, in.by, name, req)
	case "unshare":
		with := in.with
		if with == lab {
			with = groupGrantee + lab
		}
		err = s.Unshare(ctx, in.by, name, with)
	case "offer":
		err = s.Offer(ctx, in.by, name, in.with)
	case "accept":
		_, err = s.Accept(ctx, in.by, name)
	case "retire":
		_, err = s.Retire(ctx, in.by, name)
	case "restore":
		_, err = s.Restore(ctx, in.by, name)
	}
	switch {
	case err == nil:
		return "done", nil
	case errors.Is(err, diaspora.ErrUnavailable), errors.Is(err, context.Canceled):
		return unknown, nil
	case strings.Contains(err.Error(), "released at the same time"):
		return "stale", nil
	case errors.Is(err, diaspora.ErrConflict):
		return "conflict", nil
	case errors.Is(err, diaspora.ErrNotFound):
		return "not found", nil
	case errors.Is(err, diaspora.ErrPermission):
		return "permission", nil
	}
	return "", err
}

// aCall returns a random call. Calls about the group come from one goroutine only.
func aCall(rng *rand.Rand, group bool) sharingInput {
	pick := func(of ...string) string { return of[rng.IntN(len(of))] }
	in := sharingInput{op: pick("claim", "claim", "show", "show", "show", "show", "share", "share", "share", "share", "unshare", "unshare", "offer", "offer", "accept", "accept", "retire", "restore", "restore", "release begins", "block", "unblock", "unblock")}
	in.by, in.with = pick(ada, ada, ben, cleo), pick(ben, cleo)
	if group {
		in = sharingInput{op: pick("members", "members", "share", "unshare", "show"), by: pick(ada, ben, cleo), with: lab}
	}
	switch in.op {
	case "share":
		in.rights = []rights{mayRead, mayRead | mayManage}[rng.IntN(2)]
	case "offer":
		in.with = pick(ada, ben, cleo)
	case "block", "unblock":
		in.by, in.with = dora, ben
	}
	return in
}

// replica is a service that is killed again and again.
type replica struct {
	c  *testCluster
	mu sync.Mutex // guards the fields below
	s  *Service
	w  *wire
}

func (r *replica) start() {
	w := new(wire)
	s := r.c.openWithGroups(withWire(w), operatedBy(dora))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.s, r.w = s, w
}

func (r *replica) service() *Service {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.s
}

// sharingHistory makes calls to two replicas at once, kills them between any two changes, and returns
// the calls.
func sharingHistory(c *testCluster, seed uint64, calls int) []porcupine.Operation {
	ctx := c.t.Context()
	var mu sync.Mutex // guards ops
	var ops []porcupine.Operation
	began := time.Now()
	replicas := []*replica{{c: c}, {c: c}}
	for _, r := range replicas {
		r.start()
	}
	var wg sync.WaitGroup
	for worker := range 4 {
		rng := rand.New(rand.NewPCG(seed, uint64(worker)))
		wg.Go(func() {
			for range calls {
				in := aCall(rng, worker == 0)
				if in.op == "members" {
					in.with = []string{ben, cleo}[rng.IntN(2)]
					c.groups.set(lab, in.with)
				}
				attempt, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
				call := time.Since(began)
				output, err := in.call(attempt, replicas[rng.IntN(2)].service())
				end := time.Since(began)
				cancel()
				if err != nil {
					c.t.Errorf("%+v = %v", in, err)
				}
				if output == unknown {
					end = time.Hour // it may still take effect
				}
				inputs := []sharingInput{in}
				switch {
				case in.op == "release begins" && (output == "done" || output == unknown):
					inputs = append(inputs, sharingInput{op: "release ends", by: in.by})
				case in.op == "share" && in.with == lab && (output == "done" || output == unknown):
					members, _ := c.groups.list(ctx, lab)
					inputs = append(inputs, sharingInput{op: "members", with: append(members, "")[0]})
				}
				mu.Lock()
				for _, in := range inputs {
					ops = append(ops, porcupine.Operation{ClientId: len(ops), Input: in, Call: int64(call), Output: output, Return: int64(end)})
				}
				mu.Unlock()
			}
		})
	}
	done := make(chan struct{})
	var killer sync.WaitGroup
	killer.Go(func() {
		rng := rand.New(rand.NewPCG(seed, 99))
		for turn := 0; ; turn++ {
			r := replicas[turn%2]
			r.w.arm(1+rng.IntN(12), true)
			select {
			case <-r.w.reached:
				old := r.service()
				r.start()
				killer.Go(func() { old.Close() })
			case <-done:
				r.w.arm(0, false)
				return
			}
		}
	})
	wg.Wait()
	close(done)
	killer.Wait()
	return ops
}

// TestSharingIsLinearizable checks that what clients see of a topic that is claimed, shared, handed over
// and released through two replicas fits a single order of all calls, although replicas are killed at
// any time. In the end, the cluster agrees with the ledger.
func TestSharingIsLinearizable(t *testing.T) {
	t.Parallel()
	for seed := range uint64(testkit.Scaled(t, "SHARING_HISTORIES", 6)) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			ops := sharingHistory(c, seed, 25)
			outcomes := make(map[string]int)
			for _, op := range ops {
				outcomes[op.Output.(string)]++
			}
			t.Logf("%d calls: %v", len(ops), outcomes)
			if result := porcupine.CheckOperationsTimeout(sharingModel, ops, time.Minute); result != porcupine.Ok {
				slices.SortFunc(ops, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
				for _, op := range ops {
					t.Logf("%8d %8d %+v: %v", op.Call/1000, op.Return/1000, op.Input, op.Output)
				}
				t.Errorf("the history is %v", result)
			}
			// The broker may still be handling a request of a replica that was killed.
			last := c.open()
			for before, records := -1, 0; before < records; {
				before = len(c.ledger())
				testkit.Must(t, last.Reconcile(t.Context()))
				records = len(c.ledger())
			}
			c.check()
		})
	}
}

// TestSharingModelCanFail checks that sharingModel rejects histories that are impossible, and that the
// comparison with the cluster notices a reconciliation that was skipped.
func TestSharingModelCanFail(t *testing.T) {
	type event struct {
		in     sharingInput
		output string
	}
	const read, manage = mayRead, mayManage
	claim := event{sharingInput{op: "claim", by: ada}, "done"}
	share := func(by, with string, r rights, output string) event {
		return event{sharingInput{"share", by, with, r}, output}
	}
	do := func(op, by, with, output string) event {
		return event{sharingInput{op: op, by: by, with: with}, output}
	}
	sees := func(by string, r rights) event { return do("show", by, "", fmt.Sprintf("%s, %d", ada, r)) }
	for name, history := range map[string][]event{
		"seen without a share":        {claim, sees(ben, read)},
		"a share that is not seen":    {claim, share(ada, ben, read, "done"), do("show", ben, "", "permission")},
		"a right that comes back":     {claim, share(ada, ben, read, "done"), do("unshare", ada, ben, "done"), sees(ben, read)},
		"more than was given":         {claim, share(ada, ben, read, "done"), sees(ben, read|manage|mayWrite)},
		"shared by a reader":          {claim, share(ada, ben, read, "done"), share(ben, cleo, read, "done")},
		"a manager who is refused":    {claim, share(ada, ben, manage, "done"), share(ben, cleo, read, "permission")},
		"shared by a blocked manager": {claim, share(ada, ben, manage, "done"), do("block", dora, ben, "done"), share(ben, cleo, read, "done")},
		"a member who left":           {claim, share(ada, lab, read, "done"), do("members", "", ben, "done"), do("members", "", cleo, "done"), sees(ben, read)},
		"seen while released":         {claim, share(ada, ben, read, "done"), do("retire", ada, "", "done"), sees(ben, read)},
		"gone after a restore":        {claim, share(ada, ben, read, "done"), do("retire", ada, "", "done"), do("restore", ada, "", "done"), do("show", ben, "", "permission")},
		"accepted without an offer":   {claim, do("accept", ben, "", "done")},
		"accepted after a withdrawal": {claim, do("offer", ada, ben, "done"), do("offer", ada, ada, "done"), do("accept", ben, "", "done")},
		"two owners":                  {claim, do("offer", ada, ben, "done"), do("accept", ben, "", "done"), do("retire", ada, "", "done")},
	} {
		check := func(events []event) bool {
			var ops []porcupine.Operation
			for i, e := range events {
				ops = append(ops, porcupine.Operation{Input: e.in, Output: e.output, Call: int64(2 * i), Return: int64(2*i + 1)})
			}
			return porcupine.CheckOperations(sharingModel, ops)
		}
		if check(history) {
			t.Errorf("%s: the model allows %v", name, history)
		}
		if !check(history[:len(history)-1]) {
			t.Errorf("%s: the model does not allow what comes before: %v", name, history[:len(history)-1])
		}
	}

	c := newCluster(t)
	s := c.open()
	mustClaim(t, s, "weather")
	r := changeOf(s, opShare, "weather")
	r.Grantee, r.Read, r.Limit = ben, true, 1000
	testkit.Must(t, s.ledger.append(t.Context(), r)) // and no reconciliation
	if found := c.differences(); len(found) == 0 {
		t.Error("a share that is not in the cluster is not noticed")
	}
}

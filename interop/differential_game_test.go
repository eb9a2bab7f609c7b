//go:build kafka

package interop

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// A duel is the two engines side by side: the one under test, and Apache Kafka.
type duel struct {
	sides [2]side
	offer map[int16][2]int16
	*tally
}

// duels are those that sequences may use, one sequence at a time.
type duels chan *duel

// duelsAtOnce is how many sequences are played at the same time. Each has an embedded engine of its
// own, since it may restart it; the Apache Kafka is the same.
const duelsAtOnce = 3

// startDuels starts the engines for the subtests of a test.
func startDuels(t *testing.T) duels {
	t.Helper()
	all := make(duels, duelsAtOnce)
	count := newTally()
	t.Cleanup(func() { t.Logf("Apache Kafka has answered:\n%s", count) })
	for range duelsAtOnce {
		d := startDuel(t)
		d.tally = count
		all <- d
	}
	return all
}

// take waits for a duel that no other subtest uses.
func (all duels) take(t *testing.T) *duel {
	d := <-all
	t.Cleanup(func() { all <- d })
	return d
}

func startDuel(t testing.TB) *duel {
	t.Helper()
	d := &duel{sides: [2]side{nil, startKafka(t)}}
	if os.Getenv("DIASPORA_DIFF_SELF") == "true" {
		d.sides[0] = startKafka(t)
	} else {
		d.sides[0] = startEmbedded(t)
	}
	d.offer = offered(t, d.sides[0])
	for key, versions := range offered(t, d.sides[1]) {
		if mine, ok := d.offer[key]; ok {
			d.offer[key] = [2]int16{max(mine[0], versions[0]), min(mine[1], versions[1])}
		} else {
			d.offer[key] = versions
		}
	}
	return d
}

func offered(t testing.TB, s side) map[int16][2]int16 {
	t.Helper()
	c, err := s.dial(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.conn.Close()
	response, err := kmsg.NewPtrApiVersionsRequest().RequestWith(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	all := map[int16][2]int16{}
	for _, r := range response.ApiKeys {
		all[r.ApiKey] = [2]int16{r.MinVersion, r.MaxVersion}
	}
	return all
}

// A tally says what the sequences of a test have covered.
type tally struct {
	mu       sync.Mutex
	answers  map[string]map[string]int // how often Kafka answered a request with a code
	designed map[string]int            // how many fields differed by design, by the titles of the differences
}

func newTally() *tally {
	return &tally{answers: map[string]map[string]int{}, designed: map[string]int{}}
}

// answered counts an answer of Kafka and the error codes in it.
func (c *tally) answered(request kmsg.Request, fields fieldValues) {
	c.mu.Lock()
	defer c.mu.Unlock()
	name := kmsg.NameForKey(request.Key())
	if c.answers[name] == nil {
		c.answers[name] = map[string]int{}
	}
	for path, value := range fields {
		if strings.HasSuffix(path, "ErrorCode") {
			c.answers[name][value]++
		}
	}
	c.answers[name]["answers"]++
}

// differs counts a field that differs by design.
func (c *tally) differs(title string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.designed[title]++
}

func (c *tally) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out strings.Builder
	for _, name := range slices.Sorted(maps.Keys(c.answers)) {
		fmt.Fprintf(&out, "  %s %v\n", name, c.answers[name])
	}
	for _, title := range slices.Sorted(maps.Keys(c.designed)) {
		fmt.Fprintf(&out, "  %d fields differ by design: %s\n", c.designed[title], title)
	}
	return out.String()
}

// An outcome is what came of one request on one side.
type outcome struct {
	response kmsg.Response
	err      error
}

// fields returns the outcome for comparison.
func (o outcome) fields(w *world) fieldValues {
	switch {
	case errors.Is(o.err, errClosed):
		return fieldValues{"": "the connection was closed"}
	case o.err != nil:
		return fieldValues{"": o.err.Error()}
	case o.response == nil:
		return fieldValues{"": "no answer, as asked"}
	}
	return normalise(w, o.response)
}

// A game is one sequence being played.
type game struct {
	*duel
	worlds  [2]*world // the embedded engine's and Kafka's
	log     strings.Builder
	waiting map[connectionName]*exchange
	parted  bool // a difference by design has changed the state of one engine only
}

// An exchange is a request to both sides, and their answers.
type exchange struct {
	worlds   [2]*world
	n        int // which step
	step     step
	name     connectionName
	requests [2]kmsg.Request
	answers  [2]chan outcome
	got      [2]*outcome
}

// play runs a sequence until the answers differ, and returns how they do, or "". A sequence ends where
// the engines part by design.
func (d *duel) play(steps []step) string { return d.playAs(steps, false) }

// playOn does not end at the first difference.
func (d *duel) playOn(steps []step) string { return d.playAs(steps, true) }

func (d *duel) playAs(steps []step, on bool) string {
	run := strings.ToLower(rand.Text()[:7])
	g := &game{duel: d, waiting: map[connectionName]*exchange{}}
	for i, s := range d.sides {
		g.worlds[i] = newWorld(s, "de"[i:i+1]+run, d.offer)
	}
	defer func() {
		for _, w := range g.worlds {
			w.hangUp()
		}
	}()
	report := g.begin()
	for i := 0; i < len(steps) && !g.parted && (report == "" || on); i++ {
		report += g.take(i, steps[i])
	}
	g.clear()
	if report == "" {
		return ""
	}
	return "The sequence:\n" + g.log.String() + report
}

// begin makes the topics that each sequence starts with. That topics are made right is for the
// sequences to show.
func (g *game) begin() string {
	s := createTopicsStep{Version: 7, Topics: []newTopic{{Topic: 0, Partitions: 2, Replicas: 1}, {Topic: 1, Partitions: 1, Replicas: 1}}}
	for _, w := range g.worlds {
		request := s.request(w)
		o := ask(w, connectionName{}, request)
		if o.err != nil {
			return fmt.Sprintf("%v: create topics: %v", w, o.err)
		}
		if s.learn(w, request, o.response); len(w.topicIDs) != 2 {
			return fmt.Sprintf("%v: create topics: %+v", w, o.response)
		}
		if err := w.settle(context.Background()); err != nil {
			return err.Error()
		}
	}
	return ""
}

// clear deletes what a sequence has left, so that Kafka does not slow down over thousands of them.
func (g *game) clear() {
	for _, w := range g.worlds {
		w.hangUp()
		for _, request := range w.leftovers() {
			if c, err := w.connection(context.Background(), connectionName{}); err == nil {
				c.Request(context.Background(), request)
			}
		}
	}
}

// take plays one step.
func (g *game) take(n int, s step) string {
	fmt.Fprintf(&g.log, "  %2d %s\n", n, describeStep(s))
	if r, ok := s.(restart); ok {
		return g.restart(r)
	}
	x := &exchange{worlds: g.worlds, n: n, step: s}
	if c, ok := s.(caller); ok {
		x.name = c.caller()
	}
	if g.waiting[x.name] != nil {
		return "" // its connection waits for an answer
	}
	for i, w := range g.worlds {
		if x.requests[i] = s.request(w); x.requests[i] == nil {
			return ""
		}
	}
	if g.leavesAmidSync(x.requests[1]) {
		return "" // Kafka would never answer that SyncGroup
	}
	for i, w := range g.worlds {
		x.answers[i] = make(chan outcome, 1)
		go func() { x.answers[i] <- ask(w, x.name, x.requests[i]) }()
	}
	g.waiting[x.name] = x
	if report := g.collect(x); report != "" {
		return report
	}
	if _, ok := withoutSubject(s).(changes); ok {
		return g.settle()
	}
	return ""
}

// leavesAmidSync reports whether the request has a member leave whose SyncGroup waits for an answer.
func (g *game) leavesAmidSync(request kmsg.Request) bool {
	leave, ok := request.(*kmsg.LeaveGroupRequest)
	if !ok {
		return false
	}
	for _, x := range g.waiting {
		sync, ok := x.requests[1].(*kmsg.SyncGroupRequest)
		if ok && slices.ContainsFunc(leave.Members, func(m kmsg.LeaveGroupRequestMember) bool {
			return m.MemberID == sync.MemberID || m.InstanceID != nil && sync.InstanceID != nil && *m.InstanceID == *sync.InstanceID
		}) {
			return true
		}
	}
	return false
}

// restart restarts the embedded engine. Connections to both are made again.
func (g *game) restart(r restart) string {
	if e, ok := g.sides[0].(*embedded); ok {
		if err := e.restart(r.Kill); err != nil {
			return err.Error()
		}
	}
	for _, w := range g.worlds {
		w.restarted()
	}
	return ""
}

// settle waits until both engines have applied all changes of metadata.
func (g *game) settle() string {
	for _, w := range g.worlds {
		if err := w.settle(context.Background()); err != nil {
			return err.Error()
		}
	}
	return ""
}

// ask sends one request and waits for the answer. A produce request with acks 0 has none; whether
// the broker closed the connection then shows by the next request.
func ask(w *world, name connectionName, request kmsg.Request) outcome {
	ctx, cancel := context.WithTimeout(context.Background(), answerPatience)
	defer cancel()
	c, err := w.connection(ctx, name)
	if err != nil {
		return outcome{err: err}
	}
	if err := c.send(request); err != nil {
		return outcome{err: err}
	}
	silent := false
	if p, ok := request.(*kmsg.ProduceRequest); ok && p.Acks == 0 {
		silent = true
		request = kmsg.NewPtrApiVersionsRequest()
		if err := c.send(request); err != nil {
			return outcome{err: err}
		}
	}
	response, err := c.receive(request, answerPatience)
	if silent {
		response = nil
	}
	if r, ok := response.(*kmsg.FindCoordinatorResponse); ok && r.Version >= 4 {
		r.NodeID = -1 // The version has no such field, and kmsg leaves it at 0, which is a node.
	}
	return outcome{response, err}
}

// How long an answer may take before it counts as waiting for a later step: that to the step just
// taken, and one that waited already. And how long one engine may take after the other has answered.
const (
	silence     = 250 * time.Millisecond
	moreSilence = 20 * time.Millisecond
	lateness    = 5 * time.Second
)

// collect compares the answers that are there. Most steps are answered at once; those that mayWait
// are left until a later step brings their answer about.
func (g *game) collect(latest *exchange) string {
	for again := true; again; {
		again = false
		for _, name := range slices.SortedFunc(maps.Keys(g.waiting), func(a, b connectionName) int { return g.waiting[a].n - g.waiting[b].n }) {
			x := g.waiting[name]
			x.await(x.patience(latest))
			if x.got[0] == nil && x.got[1] == nil {
				continue // both wait
			}
			delete(g.waiting, name)
			if x.got[0] == nil || x.got[1] == nil {
				return x.oneWaits()
			}
			if report := g.judge(x); report != "" {
				return report
			}
			again = len(g.waiting) > 0
		}
	}
	return ""
}

// patience is how long to wait for the answers to a step after the latest one was taken.
func (x *exchange) patience(latest *exchange) time.Duration {
	_, ok := x.step.(waits)
	switch {
	case !ok:
		return answerPatience + time.Second
	case x == latest:
		return silence
	}
	return moreSilence
}

// await receives both answers, as far as they come in time.
func (x *exchange) await(patience time.Duration) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for x.got[0] == nil || x.got[1] == nil {
		select {
		case o := <-x.answers[0]:
			x.got[0] = &o
			timer.Reset(lateness)
		case o := <-x.answers[1]:
			x.got[1] = &o
			timer.Reset(lateness)
		case <-timer.C:
			return
		}
	}
}

// oneWaits says which side has not answered.
func (x *exchange) oneWaits() string {
	silent, other := 0, 1
	if x.got[1] == nil {
		silent, other = 1, 0
	}
	names := [2]string{"the embedded engine", "Apache Kafka"}
	return fmt.Sprintf("Step %d: %s waits, but %s has answered.\n", x.n, names[silent], names[other])
}

// judge compares the two answers to one request.
func (g *game) judge(x *exchange) string {
	var fields [2]fieldValues
	for i, w := range g.worlds {
		o := x.got[i]
		if o.response != nil {
			if l, ok := x.step.(learner); ok {
				l.learn(w, x.requests[i], o.response)
			}
		}
		fields[i] = o.fields(w)
		if o.err != nil {
			w.hangUp(x.name)
			clear(w.sessions)
		}
	}
	g.answered(x.requests[1], fields[1])
	var differ []string
	for _, d := range compare(fields[0], fields[1]) {
		known := byDesign(d, x)
		if known == nil {
			differ = append(differ, "  "+d.String())
			continue
		}
		g.differs(known.title)
		g.parted = g.parted || known.parts
	}
	if len(differ) == 0 {
		return ""
	}
	report := fmt.Sprintf("Step %d, %s version %d, is answered differently:\n%s\n", x.n, kmsg.NameForKey(x.requests[0].Key()), x.requests[0].GetVersion(), strings.Join(differ, "\n"))
	for i, w := range g.worlds {
		report += fmt.Sprintf("%s:\n%s", w, fields[i].lines())
	}
	if e, ok := g.sides[0].(*embedded); ok && x.got[0].err != nil {
		if said := e.crashed(); said != "" {
			report += "The embedded engine has ended: " + said + "\n"
		}
	}
	return report
}

// responseName is the type of the response to a request.
func responseName(request kmsg.Request) string {
	return strings.TrimPrefix(fmt.Sprintf("%T", request.ResponseKind()), "*kmsg.")
}

// lines shows an outcome as it is compared.
func (f fieldValues) lines() string {
	var out strings.Builder
	for _, path := range slices.Sorted(maps.Keys(f)) {
		fmt.Fprintf(&out, "    %s: %.300s\n", path, f[path])
	}
	return out.String()
}

func describeStep(s step) string {
	return strings.TrimPrefix(fmt.Sprintf("%T%.1000s", s, fmt.Sprintf("%+v", s)), "interop.")
}

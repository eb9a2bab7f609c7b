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

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// duel is a pair of engines: the one under test, and Apache Kafka.
type duel struct {
	sides [2]side
	offer map[int16][2]int16
	*tally
}

// duels are the duels that sequences can use. Each is used by one sequence at a time.
type duels chan *duel

// duelsAtOnce is the number of sequences that run concurrently. Each has its own embedded engine,
// because it may restart it. All use the same Apache Kafka.
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
	// Both offer versions 0 to 2 of Produce, for old clients to look at, and neither supports them.
	d.offer[kmsg.Produce.Int16()] = [2]int16{3, d.offer[kmsg.Produce.Int16()][1]}
	return d
}

func offered(t testing.TB, s side) map[int16][2]int16 {
	t.Helper()
	c, err := s.dial(t.Context(), "")
	testkit.Must(t, err)
	defer c.conn.Close()
	response, err := kmsg.NewPtrApiVersionsRequest().RequestWith(t.Context(), c)
	testkit.Must(t, err)
	all := map[int16][2]int16{}
	for _, r := range response.ApiKeys {
		all[r.ApiKey] = [2]int16{r.MinVersion, r.MaxVersion}
	}
	return all
}

// tally counts what the sequences of a test have covered.
type tally struct {
	mu       sync.Mutex
	answers  map[string]map[string]int // how often Kafka answered each request with each code
	designed map[string]int            // number of fields that differed by design, by the title of the difference
}

func newTally() *tally {
	return &tally{answers: map[string]map[string]int{}, designed: map[string]int{}}
}

// answered counts a response of Kafka and the error codes in it.
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

// outcome is the result of one request on one side.
type outcome struct {
	response kmsg.Response
	err      error
}

// fields returns the outcome in the form in which it is compared.
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

// game is a sequence that is being run.
type game struct {
	*duel
	worlds  [2]*world // of the embedded engine and of Kafka
	log     strings.Builder
	waiting map[connectionName]*exchange
	parted  bool // a designed difference has changed the state of only one engine
}

// exchange is a request to both sides, and their responses.
type exchange struct {
	worlds   [2]*world
	n        int // number of the step
	step     step
	name     connectionName
	requests [2]kmsg.Request
	answers  [2]chan outcome
	got      [2]*outcome
}

// play runs a sequence until the responses differ. It returns the difference, or "". A sequence
// also ends when the engines diverge by design.
func (d *duel) play(steps []step) string { return d.playAs(steps, false) }

// playOn is like play, but does not end at the first difference.
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

// begin creates the topics that each sequence starts with. Whether topics are created correctly is
// tested by the sequences.
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

// clear deletes what a sequence has created, so that Kafka does not slow down over thousands of
// sequences.
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

// take performs one step.
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
		return "" // its connection is waiting for a response
	}
	for i, w := range g.worlds {
		if x.requests[i] = s.request(w); x.requests[i] == nil {
			return ""
		}
	}
	if g.leavesAmidSync(x.requests[1]) {
		return "" // Kafka would never answer that SyncGroup
	}
	report := g.exchange(x)
	if _, ok := withoutSubject(s).(listGroupsStep); ok {
		// Kafka lists a group some time after it has answered the request that made the group.
		for end := time.Now().Add(lateness); report != "" && time.Now().Before(end); report = g.exchange(x) {
			x = &exchange{worlds: g.worlds, n: n, step: s, name: x.name, requests: x.requests}
		}
	}
	if report != "" {
		return report
	}
	if _, ok := withoutSubject(s).(changes); ok {
		return g.settle()
	}
	return ""
}

// exchange sends the request of a step to both engines and compares the answers that are there.
func (g *game) exchange(x *exchange) string {
	for i, w := range g.worlds {
		x.answers[i] = make(chan outcome, 1)
		go func() { x.answers[i] <- ask(w, x.name, x.requests[i]) }()
	}
	g.waiting[x.name] = x
	return g.collect(x)
}

// leavesAmidSync reports whether the request removes a member whose SyncGroup is waiting for a
// response.
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

// restart restarts the embedded engine. The connections to both engines are opened again.
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

// ask sends one request and waits for the response. A produce request with acks=0 has none. Then
// ask sends a second request, which reveals whether the broker has closed the connection.
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
		r.NodeID = -1 // This version has no such field, and kmsg leaves it at 0, which is the ID of a node.
	}
	return outcome{response, err}
}

// How long to wait for the response to the latest step (silence), and to an earlier step
// (moreSilence), before it counts as waiting for a later step. And how long one engine may take
// after the other has answered (lateness).
const (
	silence     = 250 * time.Millisecond
	moreSilence = 20 * time.Millisecond
	lateness    = 5 * time.Second
)

// collect compares the responses that have arrived. Most steps are answered at once. Steps that may
// wait are left until a later step causes their response.
func (g *game) collect(latest *exchange) string {
	for again := true; again; {
		again = false
		for _, name := range slices.SortedFunc(maps.Keys(g.waiting), func(a, b connectionName) int { return g.waiting[a].n - g.waiting[b].n }) {
			x := g.waiting[name]
			x.await(x.patience(latest))
			if x.got[0] == nil && x.got[1] == nil {
				continue // both are waiting
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

// patience returns how long to wait for the responses to a step after the latest step was taken.
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

// await receives the responses that arrive in time.
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

// oneWaits describes which side has not answered.
func (x *exchange) oneWaits() string {
	silent, other := 0, 1
	if x.got[1] == nil {
		silent, other = 1, 0
	}
	names := [2]string{"the embedded engine", "Apache Kafka"}
	return fmt.Sprintf("Step %d: %s waits, but %s has answered.\n", x.n, names[silent], names[other])
}

// judge compares the two responses to a request.
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

// responseName returns the type of the response to a request.
func responseName(request kmsg.Request) string {
	return strings.TrimPrefix(fmt.Sprintf("%T", request.ResponseKind()), "*kmsg.")
}

// lines formats an outcome as it is compared.
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

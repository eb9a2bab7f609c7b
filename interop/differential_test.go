//go:build kafka

package interop

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
	"pgregory.net/rapid"
)

// TestDifferential gives the embedded engine and Apache Kafka the same sequences of requests, and
// compares the answers field by field. What may differ is in rules and in designedDifferences.
//
// DIASPORA_DIFF_SEEDS is how many sequences there are, DIASPORA_DIFF_SEED runs one of them again,
// and DIASPORA_DIFF_THEME those of one theme. With DIASPORA_DIFF_SELF=true Kafka is compared with
// itself: a difference then is a defect of the suite.
func TestDifferential(t *testing.T) {
	d := startDuel(t)
	from, to := 1, number10(t, "DIASPORA_DIFF_SEEDS", 200)
	if seed := number10(t, "DIASPORA_DIFF_SEED", 0); seed != 0 {
		from, to = seed, seed
	}
	// rapid takes its settings from flags only.
	set := func(name, value string) {
		before := flag.Lookup(name).Value.String()
		if err := flag.Set(name, value); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { flag.Set(name, before) })
	}
	t.Cleanup(func() { t.Logf("Apache Kafka has answered:\n%s", d.coverage()) })
	set("rapid.checks", "1")
	set("rapid.nofailfile", "true")
	for seed := from; seed <= to; seed++ {
		theme := themes[seed%len(themes)]
		if only := os.Getenv("DIASPORA_DIFF_THEME"); only != "" && only != theme.name {
			continue
		}
		t.Run(fmt.Sprintf("%d %s", seed, theme.name), func(t *testing.T) {
			flag.Set("rapid.seed", strconv.Itoa(seed))
			report := "" // of the shortest sequence found
			defer func() {
				if report != "" {
					t.Logf("%s\nRun it again: DIASPORA_DIFF_SEED=%d go test -tags kafka -run '^TestDifferential$' ./interop", report, seed)
				}
			}()
			rapid.Check(t, func(rt *rapid.T) {
				steps := rapid.SliceOfN(rapid.Custom(theme.draw), theme.steps, theme.steps).Draw(rt, "steps")
				if r := d.play(steps); r != "" {
					report = r
					rt.Fatal("the engines answer differently")
				}
			})
		})
	}
}

func number10(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%s is not a positive number", name, text)
	}
	return n
}

// A duel is the two engines side by side: the one under test, and Apache Kafka.
type duel struct {
	sides [2]side
	offer map[int16][2]int16
	seen  map[string]map[string]int // how often Kafka answered a request with a code

	designed map[string]int // how many differences stay, by the reason
}

// count takes note of Kafka's answer.
func (d *duel) count(request kmsg.Request, fields fieldValues) {
	name := kmsg.NameForKey(request.Key())
	if d.seen[name] == nil {
		d.seen[name] = map[string]int{}
	}
	for path, value := range fields {
		if strings.HasSuffix(path, "ErrorCode") {
			d.seen[name][value]++
		}
	}
	d.seen[name]["answers"]++
}

// coverage says which answers there were.
func (d *duel) coverage() string {
	var out strings.Builder
	for _, name := range slices.Sorted(maps.Keys(d.seen)) {
		fmt.Fprintf(&out, "  %s %v\n", name, d.seen[name])
	}
	for why, n := range d.designed {
		fmt.Fprintf(&out, "  %d differences by design: %s\n", n, why)
	}
	return out.String()
}

func startDuel(t testing.TB) *duel {
	t.Helper()
	d := &duel{sides: [2]side{nil, startKafka(t)}, seen: map[string]map[string]int{}, designed: map[string]int{}}
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
}

// An exchange is a request to both sides, and their answers.
type exchange struct {
	n        int // which step
	step     step
	name     connectionName
	requests [2]kmsg.Request
	answers  [2]chan outcome
	got      [2]*outcome
}

// play runs a sequence until the answers differ, and returns how they do, or "".
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
	for i := 0; i < len(steps) && (report == "" || on); i++ {
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
	logAppendTime := []config{{"message.timestamp.type", "LogAppendTime"}}
	s := createTopicsStep{Version: 7, Topics: []newTopic{
		{Topic: 0, Partitions: 2, Replicas: 1, Configs: logAppendTime},
		{Topic: 1, Partitions: 1, Replicas: 1, Configs: logAppendTime},
	}}
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

// clear deletes the topics and ends what a sequence has left.
func (g *game) clear() {
	for _, w := range g.worlds {
		w.hangUp()
		request := kmsg.NewPtrDeleteTopicsRequest()
		request.Version, request.TimeoutMillis = 5, 5000
		for name := range w.topicIDs {
			request.TopicNames = append(request.TopicNames, name)
		}
		if c, err := w.connection(context.Background(), connectionName{}); err == nil {
			c.Request(context.Background(), request)
		}
	}
}

// take plays one step.
func (g *game) take(n int, s step) string {
	if s == (idle{}) {
		return ""
	}
	fmt.Fprintf(&g.log, "  %2d %s\n", n, describeStep(s))
	if r, ok := s.(restart); ok {
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
	x := &exchange{n: n, step: s}
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
	for i, w := range g.worlds {
		x.answers[i] = make(chan outcome, 1)
		go func() { x.answers[i] <- ask(w, x.name, x.requests[i]) }()
	}
	g.waiting[x.name] = x
	if report := g.collect(); report != "" {
		return report
	}
	if _, ok := s.(changes); ok {
		for _, w := range g.worlds {
			if err := w.settle(context.Background()); err != nil {
				return err.Error()
			}
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

// How long an answer may take before it counts as waiting for something, and how long after the
// other engine has answered.
const (
	silence  = 250 * time.Millisecond
	lateness = 5 * time.Second
)

// collect compares the answers that are there. Most steps are answered at once; those that mayWait
// are left until a later step brings their answer about.
func (g *game) collect() string {
	for again := true; again; {
		again = false
		for _, name := range slices.SortedFunc(maps.Keys(g.waiting), func(a, b connectionName) int { return g.waiting[a].n - g.waiting[b].n }) {
			x := g.waiting[name]
			patience := answerPatience + time.Second
			if _, ok := x.step.(waits); ok {
				patience = silence
			}
			x.await(patience)
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
		}
	}
	g.count(x.requests[1], fields[1])
	var differ []string
	for _, d := range compare(fields[0], fields[1]) {
		response := fmt.Sprintf("%T", x.requests[0].ResponseKind())
		if why := byDesign(d, x.requests[1], strings.TrimPrefix(response, "*kmsg.")); why != "" {
			g.designed[why]++
		} else {
			differ = append(differ, "  "+d.String())
		}
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

// A theme is a kind of sequence: which steps, and how many.
type theme struct {
	name  string
	steps int
	draws []func(*rapid.T) step
}

// draw draws a step, or at times none. All sequences of a theme have one length, since rapid prefers
// short slices, and a sequence is shrunk by making its steps idle.
func (th theme) draw(t *rapid.T) step {
	if rapid.IntRange(0, 9).Draw(t, "idle") == 0 {
		return idle{}
	}
	return rapid.SampledFrom(th.draws).Draw(t, "kind")(t)
}

type idle struct{}

func (idle) request(*world) kmsg.Request { return nil }

func drawRestart(t *rapid.T) step { return restart{rapid.Bool().Draw(t, "kill")} }

// times repeats a kind of step, so that it is drawn more often.
func times(n int, draw func(*rapid.T) step) (all []func(*rapid.T) step) {
	for range n {
		all = append(all, draw)
	}
	return all
}

func both(parts ...[]func(*rapid.T) step) (all []func(*rapid.T) step) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

type draws = []func(*rapid.T) step

// themes are what sequences are about. A sequence of one theme goes deeper than one of everything.
var themes = []theme{
	{"log", 25, both(times(8, drawProduce), times(8, drawFetch), times(4, drawList), times(2, drawDeleteRecords),
		draws{drawInitProducer, drawEpoch, drawLogDirs, drawProducers, drawRestart})},
	{"topics", 12, both(times(4, drawCreateTopics), times(3, drawDeleteTopics), times(2, drawCreatePartitions), times(3, drawMetadata), times(2, drawAlterConfigs),
		draws{drawDescribeConfigs, drawTopicPartitions, drawCluster, drawProduce, drawFetch, drawList, drawRestart})},
	{"configs", 12, both(times(4, drawAlterConfigs), times(4, drawDescribeConfigs), times(2, drawProduce), draws{drawRestart, drawCreateTopics})},
	{"offsets", 25, both(times(6, drawCommit), times(6, drawOffsets), times(2, drawDeleteOffsets), times(2, drawDeleteGroups),
		draws{drawListGroups, drawDescribeGroups, drawCoordinator, drawDeleteTopics, drawRestart})},
	{"classic groups", 30, both(times(8, drawJoin), times(6, drawSync), times(4, drawHeartbeat), times(2, drawLeave), times(2, drawMemberCommit),
		draws{drawDescribeGroups, drawListGroups, drawDeleteGroups, drawOffsets, drawDeleteOffsets})},
	{"consumer groups", 25, both(times(12, drawConsumer), times(2, drawDescribeConsumers), times(2, drawMemberCommit), draws{drawDescribeGroups, drawListGroups, drawDeleteGroups, drawOffsets})},
	{"ACLs", 15, both(times(4, drawCreateACLs), times(4, drawDescribeACLs), times(3, drawDeleteACLs), draws{drawRestart})},
}

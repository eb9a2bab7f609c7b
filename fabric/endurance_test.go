//go:build linux

package fabric_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/faultnet"
	"github.com/diaspora-streams/diaspora/internal/history"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// The actors sleep to limit their rate, and each fault lasts for some time. The results of the test do
// not depend on these durations.

const (
	// silence is how long an actor may make no progress without reporting a reason.
	silence = 30 * time.Second
	// rejoining is how long a member may wait for its group: a member that has disappeared keeps
	// its partitions until its session expires, after 45 s, and then the others have 20 s to
	// join again.
	rejoining = 65 * time.Second
)

// endurance is a test run: writers and readers of all kinds use a fabric at the same time, while one
// fault after another is injected.
type endurance struct {
	*testing.T
	host   *host
	proxy  *faultnet.Proxy
	binary string
	disk   string // the fabric's folder, if its disk is small enough to be filled; otherwise ""
	began  time.Time
	all    sync.WaitGroup

	writing, reading context.Context // end when the writers and the readers have to stop

	mu           sync.Mutex // guards the fields below
	acknowledged []history.Event
	known        map[string]bool // the IDs of acknowledged
	groups       map[string]*group
	actors       []*actor
	readings     int       // number of times that readToTheEnd reached the end
	well         time.Time // when the last fault ended; zero during a fault
}

// group has the events that a consumer group has read.
type group struct {
	consumed []history.Event
	seen     map[string]bool // the IDs of consumed
	missing  int             // number of acknowledged events that are not in seen
}

// actor is a writer or a reader.
type actor struct {
	name   string
	random *rand.Rand
	idle   func() bool // reports whether the actor has nothing to do; may be nil
	mute   bool        // the actor runs in this process: it need not report reasons, but must continue soon after a fault

	did, said     atomic.Int64 // numbers of steps and of messages
	didAt, saidAt atomic.Int64 // times of the last step and the last message, in ns since 1970
	over          atomic.Bool  // the actor has ended

	last    atomic.Value  // the last message
	longest time.Duration // the longest silence; used by hear only
	late    atomic.Bool   // it was silent for too long
}

func (a *actor) does() { a.did.Add(1); a.didAt.Store(time.Now().UnixNano()) }

func (a *actor) says(what string) {
	a.said.Add(1)
	a.last.Store(what)
	a.saidAt.Store(time.Now().UnixNano())
}

// Write makes an actor the standard error of a process.
func (a *actor) Write(p []byte) (int, error) {
	a.says(string(p))
	return len(p), nil
}

// diagnostics returns a logger whose messages count as those of the actor.
func (a *actor) diagnostics() *slog.Logger {
	return slog.New(slog.NewTextHandler(a, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

// silent returns how long the actor has made no progress, although there was something to do, without a
// recent message that gives the reason. well is the end of the last fault, or now during a fault.
func (a *actor) silent(now, well time.Time) time.Duration {
	did, said := time.Unix(0, a.didAt.Load()), time.Unix(0, a.saidAt.Load())
	if a.mute && did.Before(well) {
		did = well
	}
	switch {
	case a.over.Load():
		return 0
	case a.idle != nil && a.idle():
		a.didAt.Store(now.UnixNano())
		return 0
	case said.After(did):
		return max(0, now.Sub(said)-5*silence)
	}
	if a.mute { // a Consumer that is joining its group again may wait for the group
		return max(0, now.Sub(did)-rejoining)
	}
	return now.Sub(did)
}

// enduranceTime returns how long faults are injected, and the seed that determines which ones.
func enduranceTime(t *testing.T) (d time.Duration, seed uint64) {
	t.Helper()
	d, seed = 20*time.Second, rand.Uint64()
	var err error
	if text := os.Getenv("DIASPORA_ENDURANCE"); text != "" {
		if d, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	if text := os.Getenv("DIASPORA_ENDURANCE_SEED"); text != "" {
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	return d, seed
}

// TestEndurance runs Loggers with and without a spool, the command, a watched folder, and consumer groups
// against a fabric that is killed, suspended, disconnected, slowed down, and whose disk fills up. Tokens
// expire early, and members are evicted from their groups. The test checks that no acknowledged event is
// lost or reordered, that committed offsets never go back, that no reader stops before the end, and that
// no actor waits without reporting the reason.
func TestEndurance(t *testing.T) {
	duration, seed := enduranceTime(t)
	t.Logf("DIASPORA_ENDURANCE=%v DIASPORA_ENDURANCE_SEED=%d", duration, seed)
	e := newEndurance(t, duration)
	lab := e.host.newHome(t)
	cfg := lab.config(t)
	client, err := diaspora.NewClient(cfg)
	testkit.Must(t, err)
	topic, err := client.Claim(testkit.Within(t), diaspora.ClaimRequest{Name: "weather", Partitions: 4})
	testkit.Must(t, err)

	var stopWriting, stopReading context.CancelFunc
	e.writing, stopWriting = context.WithCancel(t.Context())
	e.reading, stopReading = context.WithCancel(t.Context())
	defer stopReading()
	defer stopWriting()
	begin := func(name string, idle func() bool, act func(*actor)) {
		process := strings.HasPrefix(name, "shell") || name == "watch"
		a := &actor{name: name, idle: idle, mute: !process, random: rand.New(rand.NewPCG(seed, uint64(len(e.actors))))}
		a.does()
		e.mu.Lock()
		e.actors = append(e.actors, a)
		e.mu.Unlock()
		e.all.Go(func() {
			defer a.over.Store(true)
			act(a)
		})
	}
	hasAll := func(group string) func() bool { return func() bool { return e.missing(group) == 0 } }
	var writers sync.WaitGroup
	writer := func(name string, act func(*actor)) {
		writers.Add(1)
		begin(name, nil, func(a *actor) {
			defer writers.Done()
			act(a)
		})
	}
	for i := range 2 {
		writer(fmt.Sprint("logger-", i), func(a *actor) { e.log(a, lab, "") })
		spool := filepath.Join(t.TempDir(), "spool")
		writer(fmt.Sprint("spool-", i), func(a *actor) { e.log(a, lab, spool) })
		shell := e.host.newHome(t)
		flags := [][]string{nil, {"--no-spool"}}[i]
		writer(fmt.Sprint("shell-", i), func(a *actor) { e.produce(a, shell, flags...) })
	}
	watching := e.host.newHome(t)
	writer("watch", func(a *actor) { e.watch(a, watching) })
	for i := range 2 {
		begin(fmt.Sprint("consumer-", i), hasAll("consumers"), func(a *actor) { e.consume(a, lab) })
	}
	consuming := e.host.newHome(t)
	begin("shell-consumer", hasAll("shell"), func(a *actor) { e.consumeShell(a, consuming) })
	begin("until-the-end", nil, func(a *actor) { e.readToTheEnd(a, lab) })
	begin("onlooker", nil, func(a *actor) { e.seeCommits(a, lab) })
	watched := make(chan struct{})
	e.all.Go(func() { e.hear(watched) })

	counts := e.disturb(rand.New(rand.NewPCG(seed, 1<<32)), lab, topic.Owner, duration)
	stopWriting()
	writers.Wait()
	e.await()
	stopReading()
	close(watched)
	e.all.Wait()
	e.judge(lab, counts)
}

func newEndurance(t *testing.T, duration time.Duration) *endurance {
	t.Helper()
	e := &endurance{
		T: t, began: time.Now(), binary: filepath.Join(t.TempDir(), "diaspora"), known: map[string]bool{},
		well: time.Now(), groups: map[string]*group{"consumers": {seen: map[string]bool{}}, "shell": {seen: map[string]bool{}}},
	}
	if out, err := exec.Command("go", "build", "-o", e.binary, "../cmd/diaspora").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	e.host = &host{hostConfig: hostConfig{Dir: t.TempDir(), Kafka: testkit.FreeAddress(t), HTTP: testkit.FreeAddress(t), Globus: testkit.FreeAddress(t)}}
	size := 256 + int(duration.Minutes())*10 // in MB; a tmpfs uses memory
	if err := syscall.Mount("tmpfs", e.host.Dir, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=0700", size)); err != nil {
		t.Logf("the fabric's disk is never full, as a small one cannot be made: %v", err)
	} else {
		e.disk = e.host.Dir
		t.Cleanup(func() {
			if err := syscall.Unmount(e.disk, syscall.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
	}
	var err error
	if e.proxy, err = faultnet.Start(e.host.Kafka); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.proxy.Close() })
	e.host.KafkaForOther = e.proxy.Addr()
	testkit.Must(t, e.host.start())
	t.Cleanup(func() { e.host.signal(syscall.SIGKILL) })
	return e
}

// disturb injects random faults one after another, each for some seconds, with pauses between them. When it
// returns, all faults have ended. It returns how often each kind was injected.
func (e *endurance) disturb(random *rand.Rand, lab home, subject string, duration time.Duration) map[string]int {
	longest := min(max(duration/10, 12*time.Second), 40*time.Second) // with a long duration, this is longer than an actor may be silent
	wait := func(least, most time.Duration) { time.Sleep(least + time.Duration(random.Int64N(int64(most-least)))) }
	fault := func(link faultnet.Link) func() {
		return func() {
			e.proxy.Set(link)
			wait(time.Second, longest)
			e.proxy.Set(faultnet.Link{})
		}
	}
	ask := func(format string, args ...any) {
		if err := e.host.ask(format, args...); err != nil {
			e.Errorf(format+": %v", append(args, err)...)
		}
	}
	kinds := []string{"killed", "frozen", "cut off", "silent", "slow", "far", "tokens expired", "Globus away", "evicted"}
	happen := map[string]func(){
		"killed": func() {
			e.host.signal(syscall.SIGKILL)
			wait(0, 8*time.Second)
			testkit.Must(e, e.host.start())
		},
		"frozen": func() {
			e.host.signal(syscall.SIGSTOP)
			wait(time.Second, longest)
			e.host.signal(syscall.SIGCONT)
		},
		"cut off":        fault(faultnet.Link{Cut: true}),
		"silent":         fault(faultnet.Link{Silent: true}),
		"slow":           fault(faultnet.Link{BytesPerSecond: 20_000}),
		"far":            fault(faultnet.Link{Delay: 300 * time.Millisecond}),
		"tokens expired": func() { ask("expire %s", subject) },
		"Globus away": func() {
			ask("globus off")
			wait(time.Second, 8*time.Second)
			ask("globus on")
		},
		"evicted": func() {
			if err := e.evictMembers(lab, []string{"consumers", "shell"}[random.IntN(2)]); err != nil {
				e.Log(err)
			}
		},
	}
	if e.disk != "" {
		kinds = append(kinds, "full")
		happen["full"] = func() {
			filler := filepath.Join(e.disk, "filler")
			if err := fill(filler); err != nil {
				e.Error(err)
			}
			wait(time.Second, longest)
			if err := os.Remove(filler); err != nil {
				e.Error(err)
			}
		}
	}
	counts := map[string]int{}
	for began := time.Now(); time.Since(began) < duration; wait(time.Second, 4*time.Second) {
		kind, at := kinds[random.IntN(len(kinds))], time.Since(e.began)
		e.trouble(true)
		happen[kind]()
		e.trouble(false)
		counts[kind]++
		e.Logf("%v to %v: %s", at.Round(time.Millisecond), time.Since(e.began).Round(time.Millisecond), kind)
	}
	return counts
}

// trouble notes the start or the end of a fault.
func (e *endurance) trouble(now bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.well = time.Now(); now {
		e.well = time.Time{}
	}
}

// fill writes a file until the disk is full.
func fill(name string) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	block := make([]byte, 1<<20)
	for len(block) > 0 {
		if _, err := f.Write(block); err != nil {
			block = block[:len(block)/2]
		}
	}
	return f.Close()
}

// evictMembers removes all members of a group, as the group coordinator does when sessions expire.
func (e *endurance) evictMembers(lab home, group string) error {
	ctx, cancel := context.WithTimeout(e.Context(), 5*time.Second)
	defer cancel()
	client, err := diaspora.Dial(ctx, lab.config(e.T))
	if err != nil {
		return err
	}
	defer client.Close()
	return evictWith(ctx, client, group)
}

// hear fails the test if an actor is silent for too long.
func (e *endurance) hear(done <-chan struct{}) {
	every := time.NewTicker(time.Second)
	defer every.Stop()
	for {
		select {
		case <-done:
			return
		case now := <-every.C:
			e.mu.Lock()
			actors, well := e.actors, e.well
			e.mu.Unlock()
			if well.IsZero() {
				well = now
			}
			for _, a := range actors {
				silent := a.silent(now, well)
				a.longest = max(a.longest, silent)
				if silent > silence && !a.late.Swap(true) {
					e.Errorf("%v: %s has done nothing and said nothing for %v; its last words: %v", time.Since(e.began).Round(time.Millisecond), a.name, silent.Round(time.Second), a.last.Load())
					pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
				}
			}
		}
	}
}

// await waits until the groups have read all acknowledged events. It fails the test if they make no more
// progress.
func (e *endurance) await() {
	last, since := -1, time.Now()
	for time.Since(since) < 3*silence {
		missing := e.missing("consumers") + e.missing("shell")
		if missing == 0 {
			return
		}
		if missing != last {
			last, since = missing, time.Now()
		}
		time.Sleep(200 * time.Millisecond)
	}
	e.Errorf("%d events do not come to the groups", last)
}

// judge reads the whole topic, and checks it and the events of each group against the acknowledged events.
func (e *endurance) judge(lab home, counts map[string]int) {
	consumer := fabrictest.OpenConsumer(e.T, lab.config(e.T), diaspora.ConsumerOptions{Topics: []string{"weather"}, Until: diaspora.End})
	stored := map[int32][]history.Event{}
	for r, err := range consumer.Records(e.Context()) {
		testkit.Must(e, err)
		event, err := history.Parse(r.Key, r.Value, r.ID)
		if err != nil {
			e.Error(err)
		}
		stored[r.Partition] = append(stored[r.Partition], event)
	}
	h := history.History{Acknowledged: e.acknowledged}
	for _, events := range stored {
		h.Stored = append(h.Stored, events)
	}
	for name, group := range e.groups {
		h.Consumed = group.consumed
		v := history.Check(h)
		if err := v.Err(); err != nil {
			e.Errorf("group %s: %v", name, err)
		}
		e.Logf("group %s: %d events acknowledged, %d lost, %d never consumed, %d out of order, %d stored twice, %d consumed twice",
			name, len(h.Acknowledged), v.Lost, v.Skipped, v.Disorder, v.Repeated, v.Again)
	}
	e.Logf("what happened: %v; %d readings until the end", counts, e.readings)
	for _, a := range e.actors {
		e.Logf("%-16s %7d steps, %5d messages, silent for at most %v", a.name, a.did.Load(), a.said.Load(), a.longest.Round(time.Second))
		if a.did.Load() < 2 {
			e.Errorf("%s did nothing", a.name)
		}
	}
	// Make sure that the check finds a lost event.
	victim := e.acknowledged[len(e.acknowledged)/2]
	for i := range h.Stored {
		h.Stored[i] = slices.DeleteFunc(h.Stored[i], func(e history.Event) bool { return e.ID == victim.ID })
	}
	if lost := history.Check(h).Lost; lost != 1 {
		e.Errorf("without one of the events, %d are found to be lost, want 1", lost)
	}
}

// acknowledge notes that an event was acknowledged and must not be lost.
func (e *endurance) acknowledge(a *actor, event history.Event) {
	a.does()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.acknowledged = append(e.acknowledged, event)
	if e.known[event.ID] { // events are acknowledged again after a process was killed
		return
	}
	e.known[event.ID] = true
	for _, g := range e.groups {
		if !g.seen[event.ID] {
			g.missing++
		}
	}
}

// handed notes that a group has read an event.
func (e *endurance) handed(a *actor, to string, key, value []byte, id string) {
	a.does()
	event, err := history.Parse(key, value, id)
	if err != nil {
		e.Errorf("%s: %v", a.name, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	g := e.groups[to]
	g.consumed = append(g.consumed, event)
	if !g.seen[id] && e.known[id] {
		g.missing--
	}
	g.seen[id] = true
}

// missing returns the number of acknowledged events that a group has not read yet.
func (e *endurance) missing(group string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.groups[group].missing
}

// log logs one event after another, with a Logger that is closed and opened again now and then.
func (e *endurance) log(a *actor, at home, spool string) {
	cfg := at.config(e.T)
	cfg.SpoolDir, cfg.Diagnostics = spool, a.diagnostics()
	n := 0
	for e.writing.Err() == nil {
		logger, err := diaspora.OpenLogger(e.Context(), cfg)
		if err != nil {
			a.says(err.Error())
			continue
		}
		for range 50 + a.random.IntN(300) {
			if e.writing.Err() != nil {
				break
			}
			event := history.Event{Key: a.name, N: n, ID: fmt.Sprintf("%s-%d", a.name, n)}
			n++
			if err := logger.Log(e.Context(), diaspora.Event{Topic: "weather", Key: []byte(event.Key), Value: event.Value(), ID: event.ID}); err != nil {
				a.says(err.Error())
			} else {
				e.acknowledge(a, event)
			}
			time.Sleep(time.Duration(a.random.IntN(20)) * time.Millisecond)
		}
		ctx, cancel := context.WithTimeout(e.Context(), silence)
		if err := logger.Close(ctx); err != nil {
			a.says(err.Error())
		}
		cancel()
	}
	if spool != "" { // send the events that are still in the spool
		logger, err := diaspora.OpenLogger(e.Context(), cfg)
		if err != nil {
			e.Errorf("%s: %v", a.name, err)
			return
		}
		if err := errors.Join(logger.Flush(testkit.Within(e.T)), logger.Close(e.Context())); err != nil {
			e.Errorf("%s: at the end: %v", a.name, err)
		}
	}
}

// consume reads as a member of a group that leaves and joins again now and then.
func (e *endurance) consume(a *actor, at home) {
	cfg := at.config(e.T)
	cfg.Diagnostics = a.diagnostics()
	for e.reading.Err() == nil {
		consumer, err := diaspora.OpenConsumer(e.reading, cfg, diaspora.ConsumerOptions{
			Topics: []string{"weather"}, Group: "consumers", CommitEvery: 200 * time.Millisecond, SessionTimeout: 6 * time.Second,
		})
		if err != nil {
			a.says(err.Error())
			continue
		}
		left := 500 + a.random.IntN(2000)
		for r, err := range consumer.Records(e.reading) {
			if err != nil {
				a.says(err.Error())
				continue
			}
			e.handed(a, "consumers", r.Key, r.Value, r.ID)
			if a.random.IntN(20) == 0 {
				if err := consumer.Commit(e.reading, r); err != nil {
					a.says(err.Error())
				}
			}
			if left--; left == 0 {
				break
			}
		}
		ctx, cancel := context.WithTimeout(e.Context(), 10*time.Second)
		if err := consumer.Close(ctx); err != nil {
			a.says(err.Error())
		}
		cancel()
	}
}

// readToTheEnd repeatedly reads the last records of the topic until its end, and checks that reading does
// not stop early.
func (e *endurance) readToTheEnd(a *actor, at home) {
	cfg := at.config(e.T)
	cfg.Diagnostics = a.diagnostics()
	for n := 0; e.reading.Err() == nil; n++ {
		ends, err := e.ends(cfg)
		if err != nil {
			a.says(err.Error())
			continue
		}
		options := diaspora.ConsumerOptions{Topics: []string{"weather"}, From: diaspora.Last(100), Until: diaspora.End, SessionTimeout: 6 * time.Second}
		if n%2 == 1 {
			options.Group = fmt.Sprint("once-", n)
		}
		consumer, err := diaspora.OpenConsumer(e.reading, cfg, options)
		if err != nil {
			a.says(err.Error())
			continue
		}
		next := map[int32]int64{}
		var failed error
		for r, err := range consumer.Records(e.reading) {
			if err != nil {
				failed = err
				a.says(err.Error())
				continue
			}
			a.does()
			next[r.Partition] = r.Offset + 1
		}
		if e.reading.Err() == nil {
			e.mu.Lock()
			e.readings++
			e.mu.Unlock()
			if err := history.Early(ends, next); err != nil {
				e.Errorf("group %q, last error %v: %v", options.Group, failed, err)
			}
		}
		ctx, cancel := context.WithTimeout(e.Context(), 10*time.Second)
		consumer.Close(ctx)
		cancel()
		time.Sleep(200 * time.Millisecond)
	}
}

// ends returns the end offsets of the topic's partitions.
func (e *endurance) ends(cfg diaspora.Config) (map[int32]int64, error) {
	ctx, cancel := context.WithTimeout(e.reading, 10*time.Second)
	defer cancel()
	client, err := diaspora.Dial(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	listed, err := kadm.NewClient(client).ListEndOffsets(ctx, "weather")
	if err == nil {
		err = listed.Error()
	}
	ends := map[int32]int64{}
	listed.Each(func(o kadm.ListedOffset) { ends[o.Partition] = o.Offset })
	return ends, err
}

// seeCommits checks repeatedly that no committed offset goes back.
func (e *endurance) seeCommits(a *actor, at home) {
	seen := history.Commits{}
	for e.reading.Err() == nil {
		if err := e.lookAtCommits(at, seen); err != nil {
			a.says(err.Error())
		} else {
			a.does()
		}
		time.Sleep(300 * time.Millisecond)
	}
}

func (e *endurance) lookAtCommits(at home, seen history.Commits) error {
	ctx, cancel := context.WithTimeout(e.reading, 10*time.Second)
	defer cancel()
	client, err := diaspora.Dial(ctx, at.config(e.T))
	if err != nil {
		return err
	}
	defer client.Close()
	for _, group := range []string{"consumers", "shell"} {
		offsets, err := kadm.NewClient(client).FetchOffsets(ctx, group)
		if err != nil {
			return err
		}
		for _, o := range offsets.Sorted() {
			if o.Err != nil {
				return o.Err
			}
			if err := seen.Note(history.CommitKey{Group: group, Topic: o.Topic, Partition: o.Partition}, o.At); err != nil {
				e.Errorf("%v: %v", time.Since(e.began).Round(time.Millisecond), err)
			}
		}
	}
	return nil
}

// TestSilent checks which actors count as silent.
func TestSilent(t *testing.T) {
	now := time.Now()
	ago := func(d time.Duration) int64 { return now.Add(-d).UnixNano() }
	for name, test := range map[string]struct {
		mute      bool
		did, said time.Duration // how long ago
		well      time.Duration // how long ago the last fault ended
		idle      bool
		late      bool
	}{
		"busy":                              {did: time.Second, said: time.Hour},
		"a process in silence":              {did: silence + time.Second, said: time.Hour, late: true},
		"a process in silence in trouble":   {did: silence + time.Second, said: time.Hour, well: 0, late: true},
		"one that has said why":             {did: silence + time.Second, said: silence, well: time.Hour},
		"one that has said why long ago":    {did: time.Hour, said: 10 * silence, well: time.Hour, late: true},
		"one with nothing to do":            {did: time.Hour, said: 2 * time.Hour, well: time.Hour, idle: true},
		"a Consumer in trouble":             {mute: true, did: time.Hour, said: 2 * time.Hour},
		"a Consumer long after the trouble": {mute: true, did: time.Hour, said: 2 * time.Hour, well: rejoining + silence + time.Second, late: true},
	} {
		a := &actor{mute: test.mute}
		a.didAt.Store(ago(test.did))
		a.saidAt.Store(ago(test.said))
		if test.idle {
			a.idle = func() bool { return true }
		}
		if silent := a.silent(now, now.Add(-test.well)); (silent > silence) != test.late {
			t.Errorf("%s: silent for %v, want more than %v: %v", name, silent, silence, test.late)
		}
	}
}

package diaspora_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/faultnet"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// netFault describes what happens to the network between a client and the fabric.
type netFault struct {
	patience time.Duration // how long the client waits for a silent broker; zero keeps the default
	link     faultnet.Link // at the start
	play     func(*faultnet.Proxy)
	events   int // minimum number
	size     int // of each event, in bytes
}

// netFaults lists the faults. A fault takes seconds, and is over when play returns.
var netFaults = map[string]netFault{
	"cut": {events: 50, play: func(p *faultnet.Proxy) {
		for range 5 {
			p.Set(faultnet.Link{Cut: true})
			time.Sleep(700 * time.Millisecond)
			p.Set(faultnet.Link{})
			time.Sleep(300 * time.Millisecond)
		}
	}},
	"half-open": {events: 50, patience: 2 * time.Second, play: func(p *faultnet.Proxy) {
		for range 4 {
			p.Set(faultnet.Link{Silent: true})
			time.Sleep(2500 * time.Millisecond)
			p.Set(faultnet.Link{})
			time.Sleep(300 * time.Millisecond)
		}
	}},
	// 64 kbit/s: each of two batches takes longer than a broker may be silent (20 s), and than a
	// topic may go without a response (30 s). In long runs, it also takes longer than a client may
	// be silent (two minutes).
	"slow": {events: 20, size: 24_750, link: faultnet.Link{BytesPerSecond: 8000}},
	"far":  {events: 60, link: faultnet.Link{Delay: 300 * time.Millisecond}},
	"flapping": {events: 50, play: func(p *faultnet.Proxy) {
		for range 25 {
			p.Set(faultnet.Link{Cut: true})
			time.Sleep(time.Duration(50+rand.IntN(50)) * time.Millisecond)
			p.Set(faultnet.Link{})
			time.Sleep(time.Duration(50+rand.IntN(150)) * time.Millisecond)
		}
	}},
}

// TestNetworkFaults runs Loggers, with a spool and without, and Consumers on bad networks. All run
// at the same time, because they mostly wait. It fails when an event for which Log returned nil is
// lost, when events with the same key come out of order, or when an outage leaks goroutines.
func TestNetworkFaults(t *testing.T) {
	t.Parallel()
	f := fabrictest.Start(t, fabric.Config{})
	good := fabrictest.As(t, f, fabrictest.Ada)
	good.DialTimeout = time.Minute
	slowTimes := testkit.Scaled(t, "NETWORK_SLOW_TIMES", 1) // with 4, batches have their maximum size
	var all sync.WaitGroup
	for name, fault := range netFaults {
		fault.size *= slowTimes // the size is 0 for the other faults
		for what, try := range map[string]func(context.Context, faultTry) error{
			"logger": tryLogger, "spool": trySpool, "consumer": tryConsumer,
		} {
			topic := what + "_" + strings.ReplaceAll(name, "-", "_")
			fabrictest.Claim(t, good, topic)
			proxy, err := faultnet.Start(f.Discovery().Brokers[0])
			testkit.Must(t, err)
			t.Cleanup(func() { proxy.Close() })
			proxy.Set(fault.link)
			r := faultTry{
				netFault: fault, topic: topic, proxy: proxy, good: good, dir: t.TempDir(),
				bad: diaspora.Through(good, proxy.Dial, fault.patience),
				log: func(format string, args ...any) { t.Logf(topic+": "+format, args...) },
			}
			all.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Duration(slowTimes)*time.Minute)
				defer cancel()
				began := time.Now()
				if err := try(ctx, r); err != nil {
					t.Errorf("%s: %v", topic, err)
				}
				r.log("took %v", time.Since(began).Round(time.Millisecond))
			})
		}
	}
	all.Wait()
}

// faultTry is one client on one bad network.
type faultTry struct {
	netFault
	topic     string
	proxy     *faultnet.Proxy
	good, bad diaspora.Config
	dir       string
	log       func(format string, args ...any)
}

// start plays the fault and returns a channel that is closed when the fault is over.
func (r faultTry) start() <-chan struct{} {
	over := make(chan struct{})
	if r.play == nil {
		close(over)
		return over
	}
	go func() {
		defer close(over)
		r.play(r.proxy)
	}()
	return over
}

// event returns the event n, with noise that cannot be compressed.
func (r faultTry) event(n int) diaspora.Event {
	noise := make([]byte, r.size)
	rand.NewChaCha8([32]byte{byte(n)}).Read(noise)
	return diaspora.Event{Topic: r.topic, Key: fmt.Append(nil, "key ", n%3), Value: fmt.Appendf(nil, "%d %x", n, noise[:r.size/2])}
}

// write logs until the fault is over, and returns how many events Log accepted.
func (r faultTry) write(ctx context.Context, logger *diaspora.Logger, from int, over <-chan struct{}) (int, error) {
	const batch = 10
	pace := time.NewTicker(5 * time.Millisecond)
	defer pace.Stop()
	for n := from; ; {
		var events []diaspora.Event
		for range batch {
			events = append(events, r.event(n))
			n++
		}
		if err := logger.Log(ctx, events...); err != nil {
			return n, fmt.Errorf("event %d: %w", n, err)
		}
		select {
		case <-over:
			if n >= r.events {
				return n, nil
			}
		default:
		}
		<-pace.C
	}
}

func tryLogger(ctx context.Context, r faultTry) error { return r.tryWriting(ctx) }

func trySpool(ctx context.Context, r faultTry) error {
	r.bad.SpoolDir = filepath.Join(r.dir, "spool")
	return r.tryWriting(ctx)
}

func (r faultTry) tryWriting(ctx context.Context) (failed error) {
	pprof.Do(ctx, pprof.Labels("fault", r.topic), func(ctx context.Context) {
		failed = func() error {
			logger, err := diaspora.OpenLogger(ctx, r.bad)
			if err != nil {
				return err
			}
			defer logger.Close(ctx)
			warm := 0
			if r.play != nil {
				if err := logger.Log(ctx, r.event(0)); err != nil {
					return err
				}
				warm = 1
			}
			if err := logger.Flush(ctx); err != nil {
				return err
			}
			level := labelled(r.topic)
			n, err := r.write(ctx, logger, warm, r.start())
			if err != nil {
				return err
			}
			if err := logger.Flush(ctx); err != nil {
				return err
			}
			if r.play != nil {
				if err := settle(ctx, r.topic, level+clientGoroutines); err != nil {
					return err
				}
			}
			if err := logger.Close(ctx); err != nil {
				return err
			}
			r.log("%d events, %d goroutines", n, level)
			return errors.Join(settle(ctx, r.topic, 1), r.check(ctx, n))
		}()
	})
	return failed
}

// check reads the topic over a good network. The topic must have all events up to n.
func (r faultTry) check(ctx context.Context, n int) error {
	reader, err := diaspora.OpenConsumer(ctx, r.good, diaspora.ConsumerOptions{Topics: []string{r.topic}, Until: diaspora.End})
	if err != nil {
		return err
	}
	defer reader.Close(ctx)
	var got arrivals
	for record, err := range reader.Records(ctx) {
		if err != nil {
			return err
		}
		if err := got.add(record); err != nil {
			return err
		}
	}
	if got.repeats > 0 { // a process that is not restarted sends each event once, with a spool too
		return fmt.Errorf("%d events came twice", got.repeats)
	}
	return got.complete(n)
}

// tryConsumer reads over the bad network while events are written over a good one.
func tryConsumer(ctx context.Context, r faultTry) (failed error) {
	logger, err := diaspora.OpenLogger(ctx, r.good)
	if err != nil {
		return err
	}
	defer logger.Close(ctx)
	if err := logger.Log(ctx, r.event(0)); err != nil {
		return err
	}
	playing, start := context.WithCancel(ctx)
	defer start()
	type wrote struct {
		n   int
		err error
	}
	written := make(chan wrote, 1)
	go func() {
		<-playing.Done()
		n, err := r.write(ctx, logger, 1, r.start())
		if err == nil {
			err = logger.Log(ctx, diaspora.Event{Topic: r.topic, Value: []byte("end")})
		}
		written <- wrote{n, err}
	}()
	pprof.Do(ctx, pprof.Labels("fault", r.topic), func(ctx context.Context) { failed = r.readBadly(ctx, start) })
	if failed != nil {
		return failed
	}
	w := <-written
	if w.err != nil {
		return w.err
	}
	return r.check(ctx, w.n)
}

// readBadly reads to the end and checks the records. It calls start at the first record.
func (r faultTry) readBadly(ctx context.Context, start func()) error {
	reader, err := diaspora.OpenConsumer(ctx, r.bad, diaspora.ConsumerOptions{Topics: []string{r.topic}, Group: r.topic, CommitEvery: 100 * time.Millisecond})
	if err != nil {
		return err
	}
	defer reader.Close(ctx)
	var got arrivals
	level := 0
	for record, err := range reader.Records(ctx) {
		switch {
		case errors.Is(err, diaspora.ErrUnavailable):
			got.errors++
			continue
		case err != nil:
			return err
		}
		if level == 0 {
			level = labelled(r.topic)
			start()
		}
		if string(record.Value) == "end" {
			break
		}
		if err := got.add(record); err != nil {
			return err
		}
	}
	r.log("%d events, %d repeats, %d errors, %d goroutines", len(got.ids), got.repeats, got.errors, level)
	if r.play != nil {
		if err := settle(ctx, r.topic, level+clientGoroutines); err != nil {
			return err
		}
	}
	if err := reader.Close(ctx); err != nil {
		return err
	}
	return settle(ctx, r.topic, 1)
}

// arrivals are the events that were read.
type arrivals struct {
	ids     map[string]string // values by ID
	last    map[string]int    // the last value by key
	numbers map[int]bool
	repeats int
	errors  int
}

func (a *arrivals) add(r diaspora.Record) error {
	if a.ids == nil {
		a.ids, a.last, a.numbers = map[string]string{}, map[string]int{}, map[int]bool{}
	}
	text, _, _ := strings.Cut(string(r.Value), " ")
	if text == "end" {
		return nil
	}
	if was, ok := a.ids[r.ID]; ok {
		if was != text {
			return fmt.Errorf("id %s is of the events %s and %s", r.ID, was, text)
		}
		a.repeats++
		return nil
	}
	a.ids[r.ID] = text
	var n int
	if _, err := fmt.Sscan(text, &n); err != nil {
		return fmt.Errorf("event %q: %w", text, err)
	}
	key := string(r.Key)
	if last, ok := a.last[key]; ok && n != last+3 || !ok && n > 2 {
		return fmt.Errorf("%s: event %d comes after %d", key, n, last)
	}
	a.last[key] = n
	a.numbers[n] = true
	return nil
}

func (a *arrivals) complete(n int) error {
	for i := range n {
		if !a.numbers[i] {
			return fmt.Errorf("event %d of %d is lost", i, n)
		}
	}
	return nil
}

// labelled returns how many running goroutines have a label.
func labelled(fault string) int {
	var dump bytes.Buffer
	pprof.Lookup("goroutine").WriteTo(&dump, 1)
	total := 0
	for part := range strings.SplitSeq(ofLabel(dump.String(), fault), "\n\n") {
		n := 0
		fmt.Sscanf(part, "%d @ ", &n)
		total += n
	}
	return total
}

// clientGoroutines is how many goroutines a client may have in addition to those counted before: for a
// request in flight, and for a connection that it did not need then. Each fault is played more
// often than that, so that a leak of one goroutine per fault is found.
const clientGoroutines = 3

// settle waits until at most most goroutines with the label are left.
func settle(ctx context.Context, fault string, most int) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for {
		n := labelled(fault)
		if n <= most {
			return nil
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			var dump bytes.Buffer
			pprof.Lookup("goroutine").WriteTo(&dump, 1)
			return fmt.Errorf("%d goroutines, want at most %d:\n%s", n, most, ofLabel(dump.String(), fault))
		}
	}
}

// ofLabel returns the parts of a goroutine dump that have a label.
func ofLabel(dump, fault string) string {
	var parts []string
	for part := range strings.SplitSeq(dump, "\n\n") {
		// Skip connections of net/http, which are kept for the next request.
		if strings.Contains(part, fmt.Sprintf("%q", fault)) && !strings.Contains(part, "net/http.(*persistConn)") {
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, "\n\n")
}

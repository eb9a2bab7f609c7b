package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/outcome"
	"github.com/diaspora-streams/diaspora/internal/spool"
	"github.com/diaspora-streams/diaspora/internal/watch"
)

var produceHelp = help{
	use:   "produce TOPIC [FILE...]",
	short: "log events to a topic, one per line of input",
	examples: `
# each line that a program prints
./sensor | diaspora produce weather

# two files; all events have the same key and header
diaspora produce weather -k station-4 -H unit=C monday.txt tuesday.txt

# a key at the beginning of each line: "station-4<TAB>21.5"
diaspora produce weather -K '\t' < readings.tsv

# one event, without a file
diaspora produce weather --value '{"celsius": 21.5}'

# copy a topic, with keys, headers, times and IDs
diaspora consume weather --from start --exit -o ndjson | diaspora produce copy --input ndjson

# each file is one event
diaspora produce scans --input file scan1.h5 scan2.h5

# each file that an instrument writes to a folder, until Ctrl-C
diaspora produce scans --watch /data/scans --pattern '*.json'

# fail if the cluster has not acknowledged every event by the end
./sensor | diaspora produce weather --require-ack

# in a loop that the network must not delay
diaspora produce weather --value '{"celsius": 21.5}' --wait 0`,
	long: `
An event is the bytes between two line feeds, unchanged. An empty line is an empty event. If a file
does not end with a line feed, its last line is still an event.

Every event is first written to disk, to the spool of the profile (see "diaspora spool ls"), and
sent from there to the cluster. At the end of the input, produce waits until the cluster has
acknowledged all events. If the cluster acknowledges nothing for the time in --wait, produce stops
waiting. Events that are then still pending are not lost. produce reports them, and exits with 0, or
with 75 if --require-ack is given. The next produce, or "diaspora spool drain", sends them.

For one minute after the cluster was unreachable, produce does not wait for it, unless --wait or
--require-ack is given. It only checks briefly whether the cluster is reachable again.

When the spool is full, at 1 GiB or because its disk is full, produce reports this and waits for
free space. If only a person can solve a problem (not logged in, no permission, no such topic), the
exit code says so, and the events stay in the spool.

With --no-spool, nothing is kept on disk. While the cluster is unreachable, produce waits for it.
Events that are not acknowledged when produce is stopped are lost.

A line that cannot be an event, for instance because it is too large, is reported and counted as
failed. The other lines are logged, and the exit code is 8.

With --input ndjson, each line is an object like those that "consume -o ndjson" prints. It has
"value" or "value_base64" and, optionally, "key", "key_base64", "headers", "time" and "id". If the
value is itself JSON, such as {"celsius": 21.5}, its JSON text is logged. Headers can also be an
object, such as {"unit": "C"}. A byte-order mark is skipped. To log lines of JSON unchanged, omit
--input.

With --input file, each FILE, or all of standard input, is one event. The key is the name of the
file, unless -k sets it. The name is also in the header "file". The time of the event is that of the
last change of the file.

With --watch, each file in DIR is one event, and so is each file that is added to DIR later. Its
name is the key and is also in the header "file", and the time of its last change is the time of the
event. With --input lines or ndjson, each line of a file is an event instead.

With --watch, a file is complete, and is logged, when its size and time have not changed for the
time in --settle. With --settle 0 it is logged at once, for programs that write a file under another
name and rename it when it is complete. With --input lines or ndjson, a file whose last line has no
line feed is complete after ten times --settle, or when produce ends. Files whose names begin with a
dot or do not match --pattern, empty files, and files that are not regular (such as links) are
ignored, and so are folders in DIR.

With --watch, a journal in the folder of the spools records what was logged, so that each file is
logged once. A file that changes later is logged again, as a whole. The journal is for one folder
and one topic, and is stored in DIASPORA_STATE_DIR: with another topic, another state folder, or DIR
under another name, all files in DIR are logged again. If produce is killed, the files that it was
logging are logged again, with the same IDs. A file that is too large is reported, recorded in the
journal and not tried again.

DIR can be on a network file system. If another folder takes the place of DIR, because DIR was
deleted and created again, a disk was unmounted and mounted, or a link points elsewhere, produce
continues with the new folder.

On a terminal, produce shows its progress, and with --watch it prints the name of each file that was
logged. --quiet turns this off.

With -o json, produce prints one line for each event that is on disk, with its topic, its ID and, if
it has them, its key, the name of its file and its line number. With --no-spool, it prints one line
for each event that is acknowledged, also with its partition and offset.`,
	formats: streamFormats,
	args:    arguments{min: 1, max: -1, missing: "the topic is missing"},
}

type produceOptions struct {
	key       string
	keyed     bool // key was given, be it empty
	separator string
	headers   []string
	values    []string
	input     string

	compression string
	noSpool     bool
	requireAck  bool
	wait        time.Duration
	waits       bool // wait was given

	watch watchOptions
}

func (e *env) produceCommand() *cobra.Command {
	var o produceOptions
	var cmd *cobra.Command
	cmd = e.command(produceHelp, func(ctx context.Context, args []string) error {
		o.keyed, o.waits = cmd.Flags().Changed("key"), cmd.Flags().Changed("wait")
		if o.watch.dir != "" && !cmd.Flags().Changed("input") {
			o.input = "file"
		}
		for _, name := range []string{"pattern", "settle"} {
			if o.watch.dir == "" && cmd.Flags().Changed(name) {
				return misuse("", "produce: --%s goes with --watch", name)
			}
		}
		return e.produce(ctx, o, args[0], args[1:])
	})
	flags := cmd.Flags()
	flags.StringVarP(&o.key, "key", "k", "", "log all events with this `KEY`")
	flags.StringVarP(&o.separator, "key-separator", "K", "", "take the key from each line: the text before the first `DELIM`; \\t is a tab")
	flags.StringArrayVarP(&o.headers, "header", "H", nil, "add the header `NAME=VALUE` to all events; may be repeated")
	flags.StringArrayVar(&o.values, "value", nil, "log `TEXT` as an event, instead of files or standard input; may be repeated")
	flags.StringVar(&o.input, "input", "lines", "read the input as `FORMAT`: lines, ndjson or file; with --watch, the default is file")
	flags.StringVarP(&o.compression, "compression", "z", "none", "compress batches with `CODEC`: none, gzip, snappy, lz4 or zstd")
	flags.BoolVar(&o.noSpool, "no-spool", false, "keep no events on disk")
	flags.BoolVar(&o.requireAck, "require-ack", false, "exit with 75 if events have only reached the spool")
	flags.DurationVar(&o.wait, "wait", 5*time.Second, "at the end, stop waiting if nothing is acknowledged for this `DURATION`; events stay in the spool")
	flags.StringVar(&o.watch.dir, "watch", "", "log the files in `DIR`, and those that are added later")
	flags.StringVar(&o.watch.pattern, "pattern", anyName, "with --watch: log only files whose name matches `PATTERN`, such as '*.json'")
	flags.DurationVar(&o.watch.settle, "settle", 2*time.Second, "with --watch: a file is complete after this `DURATION` without changes")
	cmd.RegisterFlagCompletionFunc("wait", cobra.FixedCompletions([]string{"0", "5s", "1m"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return e.completeTopics(cmd.Context())
		}
		return nil, cobra.ShellCompDirectiveDefault
	}
	return cmd
}

func (e *env) produce(ctx context.Context, o produceOptions, topic string, files []string) error {
	parse, err := o.parser(topic)
	if err != nil {
		return err
	}
	switch {
	case o.wait < 0:
		return misuse("", "produce: --wait %v is negative", o.wait)
	case o.noSpool && o.waits:
		return misuse("", "produce: --wait and --no-spool exclude each other: without a spool, produce waits until the cluster has all")
	}
	if !slices.Contains(compressions, o.compression) {
		return misuse("", "produce: there is no compression %q; choose %s", o.compression, strings.Join(compressions, ", "))
	}
	p := &production{env: e, topic: topic, parse: parse, out: newOutflow(e.stdout), spool: !o.noSpool, requireAck: o.requireAck, noun: "line"}
	if o.input == "file" || len(o.values) > 0 {
		p.noun = "event"
	}
	var input *input
	if o.watch.dir != "" {
		if p.watch, err = p.openWatch(o, files); err == nil {
			defer p.watch.Close()
		}
	} else if input, err = e.openInput(o, files); err == nil {
		defer input.Close()
	}
	if err != nil {
		return err
	}
	cfg, err := e.config()
	if err != nil {
		return nothingLogged(topic, err)
	}
	cfg.Compression = o.compression
	if p.spool {
		p.outages = e.outages(cfg)
		if p.away, p.hasty = p.outages.age(); o.waits || o.requireAck {
			p.hasty = false
		}
		if cfg.ClosePatience = o.wait; o.wait == 0 {
			cfg.ClosePatience = -1
		}
		if cfg.DialTimeout = min(o.wait, maxAsking); p.hasty || cfg.DialTimeout < glance {
			cfg.DialTimeout = glance
		}
		p.opened = time.Now()
		p.logger, p.dir, p.others, err = e.openLogger(ctx, cfg)
	} else {
		p.logger, err = diaspora.OpenLogger(ctx, cfg)
	}
	if err != nil {
		return nothingLogged(topic, err)
	}
	p.before = p.logger.Stats().Spool
	if p.watch != nil {
		p.about = func(err error) error {
			if t := (*diaspora.TopicError)(nil); errors.As(err, &t) && !errors.Is(err, diaspora.ErrUnauthenticated) {
				hint := p.env.discardHint(t.Topic)
				if t.Topic == topic {
					hint = p.rewatchHint("end this, ")
				}
				err = hinted(err, hint)
			}
			return e.aboutTopic(ctx, cfg, err)
		}
		e.say("%s; end with Ctrl-C", watchIntroduction(p.watch, o.watch.pattern))
		defer p.tidy(ctx)
		return e.aboutTopic(ctx, cfg, p.run(ctx, p.runWatch))
	}
	defer p.tidy(ctx)
	p.source, p.typed = &input.source, input.terminal
	if input.terminal && len(o.values) == 0 {
		e.say("each line that you type is an event; end with Ctrl-D")
	}
	return e.aboutTopic(ctx, cfg, p.run(ctx, func(reading context.Context) error {
		return input.each(func(where string, number int, file fs.FileInfo, content []byte, err error) bool {
			if reading.Err() != nil {
				return false
			}
			p.send(where, number, file, content, err)
			return true
		})
	}))
}

// nothingLogged says of an error at the beginning what it means for the input.
func nothingLogged(topic string, err error) error {
	return fmt.Errorf("produce to topic %q: nothing was logged: %w", topic, err)
}

// compressions are the values of [diaspora.Config.Compression].
var compressions = []string{"none", "gzip", "snappy", "lz4", "zstd"}

// parser returns what makes an event of a line.
func (o produceOptions) parser(topic string) (func(line []byte) (diaspora.Event, error), error) {
	if o.keyed && o.separator != "" {
		return nil, misuse("", "produce: -k and --key-separator exclude each other")
	}
	var common []diaspora.Header // of every event
	for _, h := range o.headers {
		name, value, ok := strings.Cut(h, "=")
		if !ok || name == "" {
			return nil, misuse("", "produce: the header %q is not NAME=VALUE", h)
		}
		common = append(common, diaspora.Header{Key: name, Value: []byte(value)})
	}
	switch {
	case o.input == "file" && o.separator != "":
		return nil, misuse("", "produce: --key-separator is for lines, not for files")
	case o.input == "ndjson" && o.separator != "":
		return nil, misuse(`put the key into each line, as "key"`, "produce: --key-separator is for lines, not for ndjson")
	case o.input == "ndjson":
		return func(line []byte) (diaspora.Event, error) {
			event, err := parseEvent(topic, line)
			if o.keyed && event.Key == nil {
				event.Key = []byte(o.key)
			}
			event.Headers = append(event.Headers, common...)
			return event, hinted(err, ndjsonHint)
		}, nil
	case o.input != "lines" && o.input != "file":
		return nil, misuse("", "produce: --input %s: choose one of lines, ndjson, file", o.input)
	}
	var key []byte
	if o.keyed {
		key = []byte(o.key)
	}
	text, err := unescape(o.separator)
	if err != nil {
		return nil, misuse("", "produce: --key-separator %q: %v", o.separator, err)
	}
	separator := []byte(text)
	return func(line []byte) (diaspora.Event, error) {
		event := diaspora.Event{Topic: topic, Key: key, Value: line, Headers: common}
		if len(separator) > 0 {
			var ok bool
			if event.Key, event.Value, ok = bytes.Cut(line, separator); !ok {
				return event, fmt.Errorf("it has no key: the separator %q is not in it", separator)
			}
		}
		return event, nil
	}, nil
}

// ndjsonHint is for those who log lines that happen to be JSON.
const ndjsonHint = `to log each line as it is, leave out "--input ndjson"; with it, a line is written {"value": …}`

// production is one run of produce.
type production struct {
	env    *env
	logger *diaspora.Logger
	topic  string
	parse  func(line []byte) (diaspora.Event, error)
	out    *outflow // of receipts

	spool      bool
	requireAck bool
	watch      *watch.Watcher    // or nil
	about      func(error) error // says more of an error while this runs, or nil
	still      stillness
	dir        string              // the spool's, if there is one
	others     []*diaspora.Logger  // spools that other processes left behind
	before     diaspora.SpoolStats // what was in the spool at the beginning

	outages outageMemory
	away    time.Duration // how long ago the cluster could not be reached
	hasty   bool          // and so it is not waited for again
	opened  time.Time
	left    bool    // the end was not waited for
	source  *source // of lines
	noun    string  // what is read: "line" or, of whole files, "event"
	typed   bool    // by a person, at the terminal

	mu           sync.Mutex // guards the fields below
	read         int64      // lines that were handed over
	acknowledged int64
	failed       int64
	complaints   int   // how many were shown
	fatal        error // why no further event can succeed
	buf          []byte

	stop context.CancelFunc // ends reading
}

// How many failed lines are shown one by one, and how long the goodbye may take.
const (
	maxComplaints    = 20
	interruptedFlush = 2 * time.Second
	watchEvery       = 500 * time.Millisecond
	maxAsking        = 10 * time.Second // for whose events they are, before there are any
)

// run sends the input and returns when every event's fate is known, or when it
// is interrupted. Reading happens beside it, as a read cannot be interrupted.
func (p *production) run(ctx context.Context, do func(reading context.Context) error) error {
	hide := func() {}
	if !p.typed {
		hide = p.env.progress(p.env.json(), p.progressLine())
	}
	defer hide()
	reading, stop := context.WithCancel(ctx)
	defer stop()
	p.stop = stop
	read := make(chan error, 1)
	go func() { read <- do(reading) }()
	looks := time.NewTicker(watchEvery)
	defer looks.Stop()
	w, full := outageWatch{env: p.env, about: p.about}, fullWatch{env: p.env}
	var readErr error
	ended := false // reading
	for open := true; open; {
		select {
		case readErr = <-read:
			open, ended = false, true
		case <-reading.Done():
			open = false
		case <-looks.C:
			p.look(&w, &full)
		}
	}
	if p.watch != nil && !ended && p.failure() == nil {
		select { // a last look at the folder
		case readErr = <-read:
			ended = true
		case <-time.After(interruptedFlush):
		}
	}
	closed := make(chan error, 1)
	bound, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	if p.failure() != nil || ctx.Err() != nil {
		bound, cancel = context.WithTimeout(bound, interruptedFlush)
		defer cancel()
	}
	go func() { closed <- p.close(bound) }()
	interrupted := ctx.Done()
	var glances <-chan time.Time
	if p.hasty {
		ticker := time.NewTicker(leastGlance / 4)
		defer ticker.Stop()
		glances = ticker.C
	}
	for {
		select {
		case <-glances:
			if p.stillAway() {
				p.left = true
				cancel()
			}
		case err := <-closed:
			if p.watch != nil { // its reading ends at once, and all events are answered
				if !ended {
					readErr = <-read
				}
				err = firstOf(err, journalFailure(p.watch.Close()))
			}
			hide()
			return p.summary(ctx, readErr, err)
		case <-interrupted:
			interrupted = nil
			time.AfterFunc(interruptedFlush, cancel)
		case <-looks.C:
			p.look(&w, &full)
			if p.failure() != nil {
				time.AfterFunc(interruptedFlush, cancel)
			}
		}
	}
}

// acknowledgedByCluster returns how many events the cluster has acknowledged in this run, from all spools.
func (p *production) acknowledgedByCluster() (n int64) {
	n = p.logger.Stats().Acknowledged
	for _, l := range p.others {
		n += l.Stats().Acknowledged
	}
	return n
}

// stillAway reports whether a cluster that could not be reached a moment ago is not worth waiting for: it
// cannot be reached now either, or has let nobody in at a glance.
func (p *production) stillAway() bool {
	if !p.hasty || p.left {
		return false
	}
	stats := p.logger.Stats()
	if stats.Err == nil {
		p.hasty = false // it is back, and is waited for as ever
		return false
	}
	since := time.Since(p.opened)
	return since >= glance || since >= leastGlance && errors.Is(stats.Spool.Why, diaspora.ErrUnavailable)
}

// keepInMind takes note of how the cluster was, for the next run.
func (p *production) keepInMind(ctx context.Context, spool diaspora.SpoolStats) {
	switch {
	case !p.spool:
	case p.acknowledgedByCluster() > 0:
		p.outages.forget()
	case !p.left && ctx.Err() == nil && spool.Events > 0 && errors.Is(spool.Why, diaspora.ErrUnavailable):
		p.outages.remember()
	}
}

// tidy removes spools that this run has emptied.
func (p *production) tidy(ctx context.Context) {
	if p.spool {
		p.env.tidySpools(ctx)
	}
}

// close closes all Loggers at once.
func (p *production) close(ctx context.Context) error {
	var all sync.WaitGroup
	for _, l := range p.others {
		all.Go(func() {
			if err := l.Close(ctx); err != nil {
				p.env.warn("%v", err)
			}
		})
	}
	err := p.logger.Close(ctx)
	all.Wait()
	if !p.spool {
		return nil // the events that it speaks of are counted one by one
	}
	return err
}

// look tells of outages and of a full spool, and ends the run if nobody is signed in any more.
func (p *production) look(w *outageWatch, full *fullWatch) {
	stats := p.logger.Stats()
	if p.spool {
		full.see(stats.Spool.Full, func() string {
			p.mu.Lock()
			defer p.mu.Unlock()
			return fmt.Sprintf("the first %s of the input %s in the spool or sent; reading goes on when there is room", count(p.acknowledged, "event"), isOrAre(p.acknowledged))
		})
		w.see(p.still.see(p.env.now(), stats.Spool.Why, stats.Spool.Events, stats.Acknowledged+stats.Failed), func() string {
			if t := (*diaspora.TopicError)(nil); errors.As(stats.Spool.Why, &t) && t.Topic != p.topic && stats.Spool.Held[p.topic] == nil {
				return fmt.Sprintf("older events, for %s, wait in the spool; events for other topics go on", t.Topic)
			}
			waiting := fmt.Sprintf("%s %s in %s", count(stats.Spool.Events, "event"), waits(uint64(stats.Spool.Events)), p.env.spoolPlace())
			if errors.Is(stats.Spool.Why, diaspora.ErrUnavailable) {
				return fmt.Sprintf("%s and %s sent when it is back", waiting, isOrAre(stats.Spool.Events))
			}
			return waiting + "; nothing is lost"
		})
		return
	}
	if shutOut(stats.Err) {
		p.giveUp(fmt.Errorf("produce to topic %q: %w", p.topic, stats.Err))
		return
	}
	if stats.Pending == 0 && stats.Err != nil {
		return // nothing waits for the cluster
	}
	w.see(p.still.see(p.env.now(), stats.Err, stats.Pending, stats.Acknowledged+stats.Failed), func() string {
		waiting := "1 event waits"
		if stats.Pending > 1 {
			waiting = fmt.Sprintf("%d events wait", stats.Pending)
		}
		return waiting + "; nothing is lost unless you stop this program"
	})
}

// send logs a line, or with line 0 a whole stream, as --watch does. There is no file if it is piped in.
func (p *production) send(where string, line int, file fs.FileInfo, content []byte, err error) {
	var event diaspora.Event
	if err == nil {
		event, err = p.parse(content)
	}
	if file != nil {
		watch.Attribute(&event, file.Name(), line, file.ModTime())
	}
	p.log(where, line, event, err, nil)
}

// log hands an event to the Logger, or reports with err why there is none. done, if there is one, is called with
// the event's fate.
func (p *production) log(where string, number int, event diaspora.Event, err error, done func(diaspora.Record, error)) {
	p.mu.Lock()
	p.read++
	p.mu.Unlock()
	if err != nil {
		p.lineFailed(where, number, err)
		return
	}
	p.logger.Send(event, func(r diaspora.Record, err error) {
		if done != nil {
			defer done(r, err)
		}
		if err != nil {
			p.eventFailed(where, number, err)
			return
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.acknowledged++
		if p.env.json() {
			p.receipt(r, number)
		}
	})
}

// receipt prints where an event is: in the cluster, or in the spool. The caller holds mu.
func (p *production) receipt(r diaspora.Record, number int) {
	b := append(p.buf[:0], `{"topic":`...)
	b = appendString(b, r.Topic)
	if !p.spool {
		b = fmt.Appendf(b, `,"partition":%d,"offset":%d`, r.Partition, r.Offset)
	}
	b = append(b, `,"id":`...)
	b = appendString(b, r.ID)
	if r.Key != nil {
		b = appendBytes(append(b, ','), "key", r.Key)
	}
	if i := slices.IndexFunc(r.Headers, func(h diaspora.Header) bool { return h.Key == watch.HeaderFile }); i >= 0 {
		b = appendBytes(append(b, ','), "file", r.Headers[i].Value)
	}
	if number > 0 {
		b = fmt.Appendf(b, `,"line":%d`, number)
	}
	p.buf = append(b, "}\n"...)
	p.out.write(p.buf) // flush tells the error
}

// lineFailed counts and shows what is wrong with one line.
func (p *production) lineFailed(where string, number int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failed++
	if p.complaints++; p.complaints > maxComplaints {
		return
	}
	text, hints := explanation(err)
	if number > 0 {
		where = fmt.Sprintf("%s line %d", where, number)
	}
	p.env.warn("%s: not logged: %s", where, text)
	if p.complaints == 1 {
		p.env.hint(hints)
	}
	if p.complaints == maxComplaints {
		p.env.warn("further failures are only counted")
	}
}

// eventFailed decides whether an event's failure is its own or everybody's.
func (p *production) eventFailed(where string, number int, err error) {
	switch {
	case errors.Is(err, diaspora.ErrClosed):
		return // counted as unacknowledged
	case errors.Is(err, diaspora.ErrPermission), errors.Is(err, diaspora.ErrNotFound), errors.Is(err, diaspora.ErrUnauthenticated):
		p.mu.Lock()
		p.failed++
		p.mu.Unlock()
		p.giveUp(err)
	default:
		p.lineFailed(where, number, err)
	}
}

// giveUp ends the run because no further event can succeed.
func (p *production) giveUp(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fatal == nil {
		p.fatal = err
	}
	p.stop()
}

func (p *production) failure() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fatal
}

// summary says what became of the events, and returns what the exit code hangs on.
func (p *production) summary(ctx context.Context, readErr, closeErr error) error {
	printErr := p.out.flush()
	p.mu.Lock()
	defer p.mu.Unlock()
	stats := p.logger.Stats()
	p.keepInMind(ctx, stats.Spool)
	left, why := stats.Spool.Events, stats.Spool.Why
	aside := stats.Spool.Quarantined - p.before.Quarantined
	dropped := stats.Spool.Dropped - p.before.Dropped
	earlier := p.leftByOthers(stats.Spool)
	text, waiting := count(p.acknowledged, "event"), fmt.Sprintf("%s %s in %s", count(left, "event"), waits(uint64(left)), p.env.spoolPlace())
	if left > 0 && !earlier {
		text += " logged; " + waiting
	} else {
		text += " acknowledged"
	}
	if p.failed > 0 {
		text += fmt.Sprintf(", %d failed", p.failed)
	}
	if aside > 0 {
		text += fmt.Sprintf(`, of them %d set aside, since the cluster does not take them ("diaspora spool cat --quarantine" says why)`, aside)
	}
	open := p.read - p.acknowledged - p.failed
	if open > 0 {
		text += fmt.Sprintf(", %d not known to have arrived", open)
	}
	switch {
	case earlier:
		reason, _ := explanation(why)
		text += fmt.Sprintf(". From earlier runs, %s: %s", waiting, reason)
	case left > 0 && !refusal(why): // else a person has to do something first, which the error says
		text += fmt.Sprintf("; the next produce sends %s, or %q", itOrThem(left), p.env.drainCommand())
	}
	p.env.say("%s", text)
	err := p.outcome(ctx, stats.Spool, aside+dropped+open, firstOf(printErr, readErr, closeErr))
	if left > 0 && err == nil && why != nil && !earlier {
		text, _ := explanation(why)
		p.env.say("%s", text)
	}
	if left > 0 && err == nil && p.left {
		p.env.say("the cluster could not be reached %v ago, so produce did not wait for it; --wait 5s does", max(p.away, time.Second).Round(time.Second))
	}
	return err
}

// maxSearchedBytes bounds the spool that is read to find out whose events are left in it.
const maxSearchedBytes = 64 << 20

// leftByOthers reports whether all events in the spool are for topics that refuse them, and none of them for
// this run's topic. Without the look at the events, a refusal of somebody else's topic would read as if it
// were about the events of this run.
func (p *production) leftByOthers(left diaspora.SpoolStats) bool {
	var refused *diaspora.TopicError
	if !p.spool || left.Events == 0 || left.Bytes > maxSearchedBytes || left.Held[p.topic] != nil || !refusal(left.Why) || !errors.As(left.Why, &refused) {
		return false
	}
	topics, err := spool.Topics(p.dir)
	for topic := range topics {
		if left.Held[topic] == nil {
			return false
		}
	}
	return err == nil
}

// outcome returns what the exit code hangs on. The caller holds mu.
func (p *production) outcome(ctx context.Context, left diaspora.SpoolStats, lost int64, err error) error {
	held := left.Held[p.topic]
	bad := p.failed + lost
	switch {
	case p.fatal != nil:
		return p.fatal
	case ctx.Err() != nil && p.watch == nil: // which is how watching ends
		return ctx.Err()
	case err != nil:
		return err
	case bad > 0:
		return &failure{condition: outcome.ErrIncomplete, text: fmt.Sprintf("produce to topic %q: %d of %s %s not logged", p.topic, bad, count(p.read, "event"), wasOrWere(p.read))}
	case left.Events == 0:
		return nil
	case errors.Is(left.Why, diaspora.ErrUnauthenticated):
		return hinted(fmt.Errorf("produce to topic %q: %w", p.topic, left.Why), `then send the events with "`+p.env.drainCommand()+`"`+p.env.withNewKeyFile())
	case held != nil && refusal(held) && p.acknowledgedByCluster() > 0: // the name is right
		return held
	case held != nil && refusal(held) && p.watch != nil:
		return hinted(held, p.rewatchHint(""))
	case held != nil && refusal(held):
		return hinted(held, p.env.discardHint(p.topic))
	case shutOut(left.Why):
		return fmt.Errorf("produce to topic %q: %w", p.topic, left.Why)
	case p.requireAck:
		return stranded(left.Events, left.Why)
	}
	return nil
}

// rewatchHint says what to do with events of a watch for a topic whose name is mistyped: a watch with another topic
// logs the files again, so the events must not be logged a second time from a file. first is what to do before.
func (p *production) rewatchHint(first string) string {
	return `they are sent once that is allowed; if the name is wrong, ` + first + `type "` + p.env.spoolCommand("discard "+p.topic+" --yes") + `", and watch with the right topic, which logs the files again`
}

// withNewKeyFile ends the advice to run a command that names a key file: if the key is no longer valid, the file has
// to be replaced first.
func (e *env) withNewKeyFile() string {
	if e.getenv("DIASPORA_KEY_FILE") == "" {
		return ""
	}
	return ", once that file has the new key"
}

// discardHint says what to do with events for a topic whose name is mistyped.
func (e *env) discardHint(topic string) string {
	return `they are sent once that is allowed; if the name is wrong, take them out: "` + e.spoolCommand("discard "+topic+" --to FILE") + `"`
}

func itOrThem(n int64) string {
	if n == 1 {
		return "it"
	}
	return "them"
}

func isOrAre(n int64) string {
	if n == 1 {
		return "is"
	}
	return "are"
}

func wasOrWere(n int64) string {
	if n == 1 {
		return "was"
	}
	return "were"
}

// firstOf returns the first of several errors.
func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// count returns "1 event" or "2 events".
func count(n int64, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/accesskey"
	"github.com/diaspora-streams/diaspora/internal/bulk"
	"github.com/diaspora-streams/diaspora/internal/outcome"
	"github.com/diaspora-streams/diaspora/internal/spool"
	"github.com/diaspora-streams/diaspora/internal/watch"
)

var produceHelp = help{
	use:   "produce TOPIC [FILE...]",
	short: "log events to a topic, one per line of input",
	examples: `
# log each line that a program prints
./sensor | diaspora produce weather

# log the lines of two files; all events have the same key and header
diaspora produce weather -k station-4 -H unit=C monday.txt tuesday.txt

# take the key from the beginning of each line: "station-4<TAB>21.5"
diaspora produce weather -K '\t' < readings.tsv

# log one event, without a file
diaspora produce weather --value '{"temperature": 21.5}'

# copy a topic, with keys, headers, times and IDs
diaspora consume weather --from start --exit -o ndjson | diaspora produce copy --input ndjson

# log each file as one event
diaspora produce scans --input file scan1.h5 scan2.h5

# log each file that an instrument writes to a folder, until Ctrl-C
diaspora produce scans --watch /data/scans --pattern '*.json'

# fail if the cluster has not acknowledged every event by the end
./sensor | diaspora produce weather --require-ack

# in a loop, without waiting for the network
diaspora produce weather --value '{"temperature": 21.5}' --wait 0`,
	long: `
Each line is an event: the bytes before the line feed, unchanged. An empty line is an empty event.
If a file does not end with a line feed, its last line is still an event.

produce first writes every event to a spool on disk (each process has one, see "diaspora spool ls"),
and then sends it to the cluster. At the end of the input, produce waits until the cluster has
acknowledged all events. If the cluster acknowledges nothing for the time in --wait, produce stops
waiting. The events that are still pending are not lost: the next produce, or "diaspora spool drain",
sends them. produce reports them, and exits with 0, or with 75 if --require-ack is set.

If an earlier produce found the cluster unreachable less than a minute ago, this one does not wait
for the cluster, unless --wait or --require-ack is set. It only checks briefly whether the cluster
is reachable again.

If its spool reaches 1 GiB, or if its disk is full, produce reports this and waits for free space.
If somebody has to solve a problem first (not logged in, no permission, no such topic), the events
stay in the spool, and the exit code is not 0.

With --no-spool, nothing is kept on disk. While the cluster is unreachable, produce waits for it.
If you stop produce, events that are not acknowledged are lost.

If a line cannot be an event, for instance because it is too large, produce reports it, logs the
other lines, and exits with 8.

With --input ndjson, each line is a JSON object like those that "consume -o ndjson" prints. It has
"value" or "value_base64" and, optionally, "key", "key_base64", "headers", "time" and "id". If
"value" is a string, its text is logged; if it is an object, array or number, its JSON text is.
"headers" is a list as "consume -o ndjson" prints it, or an object, such as {"unit": "C"}. A
byte-order mark is skipped. To log lines of JSON unchanged, use --input lines.

With --input file, each FILE, or all of standard input, is one event. The key is the name of the
file without its folder, unless -k sets another key. The name is also in the header "file". The time
of the event is the time at which the file was last changed.

With --watch, each file in DIR is one event, and so is each file that is added to DIR later. Key,
header and time are those of --input file. With --input lines or ndjson, each line of a file is an
event instead.

With --watch, a file counts as complete, and is logged, when its size and time have not changed for
the time in --settle. If your program first writes a file under a name that is ignored (see below),
and renames it when it is complete, use --settle 0. With --input lines or ndjson, if the last line
of a file has no line feed, the file counts as complete after ten times --settle, or when produce
ends. These are ignored: folders in DIR, empty files, files that are not regular (such as links),
and files whose names begin with a dot or do not match --pattern.

With --watch, a journal in DIASPORA_STATE_DIR records which files were logged, so that each file is
logged once. If a file changes later, the whole file is logged again. There is one journal for each
folder, topic and profile; all key files of a fabric count as one profile. So all files in DIR are
logged again if you change one of these:
  - the topic, the profile or DIASPORA_STATE_DIR
  - a login to a key file, or a key file to a login
  - the path of DIR, after symbolic links are resolved

If produce is killed, the files that it was logging are logged again, with the same IDs. If a file
is too large, produce reports it, and tries it again only when it has changed. SIGTERM
and Ctrl-C end produce --watch in the normal way: it exits with 0, with 8 if a file or a line was
not logged, or with 130 if somebody has to solve a problem before the pending events can be sent.

DIR can be on a network file system. If another folder takes the place of DIR, because DIR was
deleted and created again, a disk was unmounted and mounted, or a link points elsewhere, produce
continues with the new folder.

On a terminal, produce shows its progress. With --watch, it prints the name of each file that was
logged. --quiet turns both off.

With -o json, produce prints one line for each event as soon as it is on disk. The line has the
event's topic and ID and, if it has them, its key, the name of its file, and its line number. With
--no-spool, produce prints one line for each acknowledged event, also with its partition and offset.
For each line of the input that is not logged, produce prints a JSON object on stderr, with the
error, the input and the line number.`,
	formats: streamFormats,
	args:    arguments{min: 1, max: -1, missing: "the topic is missing"},

	exclusive: []string{"wait no-spool", "key key-separator", "watch value"}, // without a spool, produce waits until all events are acknowledged
}

type produceOptions struct {
	key       string
	keyed     bool // --key was given, though perhaps empty
	separator string
	headers   []string
	values    []string
	input     string

	compression string
	noSpool     bool
	requireAck  bool
	wait        time.Duration
	waits       bool // --wait was given

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
				return misuse("add --watch DIR, or omit --"+name, "produce: --%s goes with --watch", name)
			}
		}
		return e.produce(ctx, o, args[0], args[1:])
	})
	flags := cmd.Flags()
	flags.StringVarP(&o.key, "key", "k", "", "log all events with this `KEY`")
	flags.StringVarP(&o.separator, "key-separator", "K", "", "take the key from each line: the text before the first `DELIM`; \\t is a tab")
	flags.StringArrayVarP(&o.headers, "header", "H", nil, "add the header `NAME=VALUE` to all events; may be repeated")
	flags.StringArrayVar(&o.values, "value", nil, "log `TEXT` as an event, instead of files or standard input; may be repeated")
	flags.StringVar(&o.input, "input", "lines", "read the input as `FORMAT`: lines, ndjson or, the default with --watch, file")
	flags.StringVarP(&o.compression, "compression", "z", "none", "compress batches with `CODEC`: none, gzip, snappy, lz4 or zstd")
	flags.BoolVar(&o.noSpool, "no-spool", false, "keep no events on disk")
	flags.BoolVar(&o.requireAck, "require-ack", false, "exit with 75 if events have only reached the spool")
	flags.DurationVar(&o.wait, "wait", 5*time.Second, "at the end, stop waiting if nothing is acknowledged for this `DURATION`; events stay in the spool")
	flags.StringVar(&o.watch.dir, "watch", "", "log the files in `DIR`, and those that are added later")
	flags.StringVar(&o.watch.pattern, "pattern", anyName, "with --watch: log only files whose name matches `PATTERN`, such as '*.json'")
	flags.DurationVar(&o.watch.settle, "settle", 2*time.Second, "with --watch: a file is complete after this `DURATION` without changes")
	cmd.RegisterFlagCompletionFunc("wait", fixed("0", "5s", "1m"))
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return completion(1, e.topicNames)(cmd, args, typed)
		}
		return nil, cobra.ShellCompDirectiveDefault // files
	}
	return cmd
}

func (e *env) produce(ctx context.Context, o produceOptions, topic string, files []string) error {
	collectLess()
	if err := validTopic("produce to", topic); err != nil { // nobody could ever let the events in
		return err
	}
	parse, err := o.parser(topic)
	if err != nil {
		return err
	}
	if o.wait < 0 {
		return misuse("", "produce: --wait %v is negative", o.wait)
	}
	if err := oneOf("produce: --compression", o.compression, "none", "gzip", "snappy", "lz4", "zstd"); err != nil {
		return err
	}
	p := &produceRun{env: e, topic: topic, parse: parse, out: newLineWriter(e.stdout), spool: !o.noSpool, requireAck: o.requireAck, noun: "line"}
	if o.input == "file" || len(o.values) > 0 {
		p.noun = "event"
	}
	var input *input
	if o.watch.dir != "" {
		if p.watch, err = p.openWatch(o, files); err == nil {
			defer p.watch.Close()
			e.stampInFile()
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
		if p.lastOutage, p.skipWait = p.outages.age(); o.waits || o.requireAck {
			p.skipWait = false
		}
		if cfg.ClosePatience = o.wait; o.wait == 0 {
			cfg.ClosePatience = -1
		}
		if cfg.DialTimeout = min(o.wait, maxAsking); p.skipWait || cfg.DialTimeout < shortDialTimeout {
			cfg.DialTimeout = shortDialTimeout
		}
		p.opened = time.Now()
		p.logger, p.dirs, p.others, err = e.openLogger(ctx, cfg)
	} else {
		p.logger, err = diaspora.OpenLogger(ctx, cfg)
	}
	if err != nil {
		return nothingLogged(topic, err)
	}
	if p.before = p.logger.Stats().Spool; p.spool {
		if info, err := spool.Inspect(p.dirs[0]); err == nil {
			p.first = info.Next
		}
	}
	p.about = func(err error) error {
		if strings.Contains(err.Error(), accesskey.FaultMark) { // what is wrong with the key file matters more than what it caused
			text, _ := explanation(err)
			return errors.New(text)
		}
		t := (*diaspora.TopicError)(nil)
		if p.spool && errors.As(err, &t) && !errors.Is(err, diaspora.ErrUnauthenticated) {
			hint := p.env.discardHint(t.Topic, p.dirs[0], p.watch != nil)
			if t.Topic == p.topic && p.acknowledgedByCluster() > 0 { // the name of the topic is right
				hint = "the events are sent once that is allowed"
			}
			err = hinted(err, hint)
		}
		if errors.Is(err, diaspora.ErrUnauthenticated) && e.getenv(accesskey.FileVariable) != "" {
			err = hinted(err, "while this program runs, it sends the events within a minute after that")
		}
		return e.aboutTopic(ctx, cfg, err)
	}
	if p.watch != nil {
		p.introduceWatch(o.watch.pattern)
		defer p.tidy(ctx)
		defer p.startRightsCheck(ctx, cfg)()
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
		}, p.sendGathered)
	}))
}

// nothingLogged wraps an error that occurred before the first event, to say that nothing was logged.
func nothingLogged(topic string, err error) error {
	return fmt.Errorf("produce to topic %q: nothing was logged: %w", topic, err)
}

// parser returns the function that converts a line, or a whole file, to an event.
func (o produceOptions) parser(topic string) (func(line []byte) (diaspora.Event, error), error) {
	var common []diaspora.Header // headers of every event
	for _, h := range o.headers {
		name, value, ok := strings.Cut(h, "=")
		if !ok || name == "" {
			return nil, misuse("", "produce: the header %q is not NAME=VALUE", h)
		}
		common = append(common, diaspora.Header{Key: name, Value: []byte(value)})
	}
	if err := oneOf("produce: --input", o.input, "lines", "ndjson", "file"); err != nil {
		return nil, err
	}
	if o.separator != "" && o.input != "lines" {
		return nil, misuse("", "produce: --key-separator is for --input lines, not %s", o.input)
	}
	separator, err := unescape(o.separator)
	if err != nil {
		return nil, misuse("", "produce: --key-separator %q: %v", o.separator, err)
	}
	var key []byte
	if o.keyed {
		key = []byte(o.key)
	}
	return func(line []byte) (event diaspora.Event, err error) {
		event = diaspora.Event{Topic: topic, Value: line}
		if o.input == "ndjson" {
			event, err = parseEvent(topic, line)
			err = hinted(err, ndjsonHint)
		} else if separator != "" {
			var ok bool
			if event.Key, event.Value, ok = bytes.Cut(line, []byte(separator)); !ok {
				err = fmt.Errorf("it has no key: the separator %q is not in it", separator)
			}
		}
		if event.Key == nil {
			event.Key = key
		}
		if event.Headers == nil {
			event.Headers = common[:len(common):len(common)] // events may share them, but must not append to them
		} else {
			event.Headers = append(event.Headers, common...)
		}
		return event, err
	}, nil
}

// ndjsonHint is for users whose lines happen to be JSON.
const ndjsonHint = `to log each line unchanged, omit "--input ndjson"; with it, a line must have the form {"value": …}`

// produceRun is one run of produce.
type produceRun struct {
	env    *env
	logger *diaspora.Logger
	topic  string
	parse  func(line []byte) (diaspora.Event, error)
	out    *lineWriter // for receipts, with -o json

	spool      bool // events go through a spool
	requireAck bool
	watch      *watch.Watcher    // nil without --watch
	about      func(error) error // adds details to an error that is reported during the run, or nil
	stall      stallWatch
	dirs       []string            // of the spool, and of those of others
	others     []*diaspora.Logger  // they send the events that other processes left in their spools
	before     diaspora.SpoolStats // the spool at the beginning
	first      uint64              // position of this run's first event in the spool

	outages     outageMemory
	lastOutage  time.Duration // how long ago the cluster was unreachable
	skipWait    bool          // because of that, do not wait for the cluster
	opened      time.Time
	skippedWait bool     // the run ended without waiting for the cluster
	source      *source  // the input
	noun        string   // what is read: "line" or, for whole files, "event"
	typed       bool     // a user types the input at a terminal
	gathered    gathered // belongs to the goroutine that reads

	mu           sync.Mutex // guards the fields below
	read         int64      // number of lines
	acknowledged int64
	failed       int64
	complaints   int    // number of failed lines that were shown
	firstFailed  string // where the first failed line is, or the name of the first file
	fatal        error  // why no further event can succeed
	buf          []byte

	stop context.CancelFunc // ends reading
}

const (
	maxComplaints    = 20              // maximum number of failed lines that are shown
	interruptedFlush = 2 * time.Second // time limit for the end of a run that was interrupted or has failed
	watchEvery       = 500 * time.Millisecond
	maxAsking        = 10 * time.Second // time limit for finding out, at the start, who is logged in
)

// run reads and sends the input. It returns when the result of every event is known, or when it is interrupted.
// Reading happens in another goroutine, because a read cannot be interrupted.
func (p *produceRun) run(ctx context.Context, do func(reading context.Context) error) error {
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
	ended := false // reading has ended
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
		select { // until the watch has looked at the folder once more
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
	var checks <-chan time.Time
	if p.skipWait {
		ticker := time.NewTicker(leastDialTimeout / 4)
		defer ticker.Stop()
		checks = ticker.C
	}
	for {
		select {
		case <-checks:
			if p.stillUnreachable() {
				p.skippedWait = true
				cancel()
			}
		case err := <-closed:
			if p.watch != nil { // this does not wait long: reading ends as soon as the result of every event is known
				if !ended {
					readErr = <-read
				}
				err = cmp.Or(err, journalFailure(p.watch.Close()))
			}
			hide()
			return p.summary(ctx, readErr, err, &w)
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
func (p *produceRun) acknowledgedByCluster() (n int64) {
	n = p.logger.Stats().Acknowledged
	for _, l := range p.others {
		n += l.Stats().Acknowledged
	}
	return n
}

// stillUnreachable reports whether to stop waiting for a cluster that was unreachable a moment ago: it is unreachable now
// too, or has not accepted the login within a short time.
func (p *produceRun) stillUnreachable() bool {
	if !p.skipWait || p.skippedWait {
		return false
	}
	stats := p.logger.Stats()
	if stats.Err == nil {
		p.skipWait = false // the cluster is reachable again, so wait for it as usual
		return false
	}
	since := time.Since(p.opened)
	return since >= shortDialTimeout || since >= leastDialTimeout && errors.Is(stats.Spool.Why, diaspora.ErrUnavailable)
}

// recordOutage records for the next run whether the cluster was reachable.
func (p *produceRun) recordOutage(ctx context.Context, spool diaspora.SpoolStats) {
	switch {
	case !p.spool:
	case p.acknowledgedByCluster() > 0:
		p.outages.forget()
	case !p.skippedWait && ctx.Err() == nil && spool.Events > 0 && errors.Is(spool.Why, diaspora.ErrUnavailable):
		p.outages.remember()
	}
}

// tidy removes spools that this run has emptied.
func (p *produceRun) tidy(ctx context.Context) {
	if p.spool {
		p.env.tidySpools(ctx)
	}
}

// close closes all Loggers concurrently, so that none has to wait for another.
func (p *produceRun) close(ctx context.Context) error {
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
		return nil // the error only sums up events that are also counted individually
	}
	return err
}

// look reports outages and a full spool, and ends a run without a spool if the login is rejected.
func (p *produceRun) look(w *outageWatch, full *fullWatch) {
	stats := p.logger.Stats()
	if p.spool {
		full.see(stats.Spool.Full, func() string {
			p.mu.Lock()
			defer p.mu.Unlock()
			return fmt.Sprintf("the first %s of the input %s in the spool or sent; reading continues when there is room", count(p.acknowledged, "event"), agree(p.acknowledged, "is", "are"))
		})
		w.see(p.stall.see(p.env.now(), stats.Spool.Why, stats.Spool.Events, stats.Acknowledged+stats.Failed), stats.Spool.Events, stats.Acknowledged, func() string {
			if t := (*diaspora.TopicError)(nil); errors.As(stats.Spool.Why, &t) && t.Topic != p.topic && stats.Spool.Held[p.topic] == nil {
				return fmt.Sprintf("older events for %s stay in the spool; events for other topics are sent", t.Topic)
			}
			pending := waiting(stats.Spool.Events) + " in " + p.env.spoolPlace()
			if errors.Is(stats.Spool.Why, diaspora.ErrUnavailable) {
				return fmt.Sprintf("%s and %s sent when it is back", pending, agree(stats.Spool.Events, "is", "are"))
			}
			if lost := p.notLogged(); lost > 0 {
				return fmt.Sprintf("%s; %s %s not logged, as said before", pending, count(lost, "other "+p.noun), agree(lost, "was", "were"))
			}
			return pending + "; nothing is lost"
		})
		return
	}
	if loginRejected(stats.Err) {
		p.giveUp(fmt.Errorf("produce to topic %q: %w", p.topic, stats.Err))
		return
	}
	if stats.Pending == 0 && stats.Err != nil {
		return // the error does not delay any event
	}
	w.see(p.stall.see(p.env.now(), stats.Err, stats.Pending, stats.Acknowledged+stats.Failed), stats.Pending, stats.Acknowledged, func() string {
		text := waiting(max(1, stats.Pending))
		if lost := p.notLogged(); lost > 0 {
			return fmt.Sprintf("%s, and %s lost if you stop this program; %s %s not logged, as said before",
				text, agree(max(1, stats.Pending), "is", "are"), count(lost, "other "+p.noun), agree(lost, "was", "were"))
		}
		return text + "; nothing is lost unless you stop this program"
	})
}

// notLogged returns how many lines or files could not be logged so far.
func (p *produceRun) notLogged() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failed
}

// send logs a line or, with line 0, a whole file. file is nil if the input is not a file. Otherwise, as with --watch,
// headers of the event name the file and the line, if any, and its key and time default to the file's name and time.
func (p *produceRun) send(where string, line int, file fs.FileInfo, content []byte, err error) {
	var event diaspora.Event
	if err == nil {
		event, err = p.parse(content)
	}
	if err == nil && line > 0 && !p.env.json() { // receipts need more than the number of events that are logged
		p.gather(where, line, event)
		return
	}
	p.sendGathered()
	if file != nil {
		watch.Attribute(&event, file.Name(), line, file.ModTime())
	}
	p.log(where, line, event, err, nil)
}

// gathered are events of successive lines, which the Logger gets with one call.
type gathered struct {
	where  string
	line   int // number of the first line
	events []diaspora.Event
}

const maxGathered = 1024

// gather puts the event of a line with those of the lines before it.
func (p *produceRun) gather(where string, line int, event diaspora.Event) {
	g := &p.gathered
	if n := len(g.events); n == maxGathered || n > 0 && (where != g.where || line != g.line+n) {
		p.sendGathered()
	}
	if len(g.events) == 0 {
		g.where, g.line = where, line
	}
	g.events = append(g.events, event)
}

// sendGathered passes the events that were gathered to the Logger.
func (p *produceRun) sendGathered() {
	g := &p.gathered
	n := len(g.events)
	if n == 0 {
		return
	}
	p.mu.Lock()
	p.read += int64(n)
	p.mu.Unlock()
	bulk.Send(p.logger, g.events, gatheredResults{p, g.where, g.line})
	clear(g.events)
	g.events = g.events[:0]
}

// gatheredResults gets the results of events that were gathered. It implements [bulk.Results].
type gatheredResults struct {
	*produceRun
	where string
	line  int // number of the first line
}

// Logged counts events.
func (r gatheredResults) Logged(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.acknowledged += int64(n)
}

// Failed reports a line that is not logged.
func (r gatheredResults) Failed(index int, err error) { r.eventFailed(r.where, r.line+index, err) }

// log passes an event to the Logger, or reports err if there is no event. done may be nil; it is called with the
// event's result.
func (p *produceRun) log(where string, number int, event diaspora.Event, err error, done func(diaspora.Record, error)) {
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
			if p.read == p.acknowledged+p.failed {
				p.out.flush() // a program that logs one event at a time waits for this line
			}
		}
	})
}

// receipt prints a line of JSON for an event that is in the cluster, or in the spool. The caller holds mu.
func (p *produceRun) receipt(r diaspora.Record, number int) {
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
	p.out.write(p.buf) // flush returns the error
}

// lineError is a line that was not logged, as JSON.
type lineError struct {
	errorDocument
	Input string `json:"input"`
	Line  int    `json:"line,omitempty"`
}

// lineFailed counts a line that cannot be logged, and shows why.
func (p *produceRun) lineFailed(input string, number int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	where := input
	if number > 0 {
		where = fmt.Sprintf("%s line %d", input, number)
	}
	p.failed++
	p.firstFailed = cmp.Or(p.firstFailed, where)
	text, hints := explanation(err)
	if p.env.json() { // the program that reads it needs the result of every line
		document := errorDocument{text, append([]string{}, hints...), outcome.ExitCode(err)}
		if line, err := jsonLine(lineError{document, input, number}); err == nil {
			p.env.errWriter().Write(line)
		}
		return
	}
	if p.complaints++; p.complaints > maxComplaints {
		return
	}
	p.env.warn("%s: not logged: %s", where, text)
	if p.complaints == 1 {
		p.env.hint(hints...)
	}
	if p.complaints == maxComplaints {
		p.env.warn("further failures are only counted")
	}
}

// eventFailed handles an event that cannot be logged. If no other event can be logged either, it ends the run.
func (p *produceRun) eventFailed(where string, number int, err error) {
	switch {
	case errors.Is(err, diaspora.ErrClosed):
		return // summary counts it
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
func (p *produceRun) giveUp(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fatal == nil {
		p.fatal = err
	}
	p.stop()
}

func (p *produceRun) failure() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fatal
}

// summary prints the result of the run, and returns the error that determines the exit code. told knows what the user was
// told already.
func (p *produceRun) summary(ctx context.Context, readErr, closeErr error, told *outageWatch) error {
	outErr := p.out.flush()
	p.mu.Lock()
	defer p.mu.Unlock()
	stats := p.logger.Stats()
	p.recordOutage(ctx, stats.Spool)
	left, why := stats.Spool.Events, stats.Spool.Why
	aside, earlierAside := p.setAside()
	dropped := stats.Spool.Dropped - p.before.Dropped
	earlier := p.leftByOthers(stats.Spool)
	pending, reported := waiting(left)+" in "+p.env.spoolPlace(), left > 0 && !earlier
	sent := p.acknowledgedByCluster()
	text := count(p.acknowledged, "event") + " logged"
	switch own := max(0, p.acknowledged-aside); {
	case !reported:
		text = count(own, "event") + " acknowledged"
		if p.spool && left == 0 && sent > own {
			text += fmt.Sprintf(", and %d of earlier runs", sent-own)
		}
	case permanent(why) && sent == 0: // "logged" alone would sound like a success
		text += " to this disk only"
	}
	if p.failed > 0 {
		text += fmt.Sprintf(", %d failed", p.failed)
	}
	if reported {
		text += "; " + pending
	}
	if aside+earlierAside > 0 {
		text += "; " + p.env.asideText(aside, earlierAside)
	}
	open := p.read - p.acknowledged - p.failed
	if open > 0 {
		text += fmt.Sprintf(", %d not known to have arrived", open)
	}
	err := p.outcome(ctx, stats.Spool, earlier, aside+dropped+open, cmp.Or(outErr, readErr, closeErr))
	switch {
	case errors.Is(err, outcome.ErrSpooled): // its hint says how to send them
	case earlier:
		reason, _ := explanation(p.about(why))
		text += fmt.Sprintf(". From earlier runs, %s: %s", pending, reason)
	case left > 0 && !permanent(why): // otherwise the error says what a person has to do first
		text += fmt.Sprintf("; the next produce sends %s, or %q", agree(left, "it", "them"), p.env.spoolCommand("drain"))
	}
	p.env.say("%s", text)
	if left > 0 && (err == nil || errors.Is(err, outcome.ErrIncomplete)) && why != nil && !earlier {
		if text, _ := explanation(why); !told.hasTold(why) || p.watch != nil { // of a watch, that may be weeks old
			p.env.say("%s", text)
		}
		if hint := p.awayHint(ctx, why); hint != "" {
			p.env.hint(hint)
		}
	}
	if left > 0 && err == nil && p.skippedWait {
		p.env.say("the cluster could not be reached %v ago, so produce did not wait for it; use --wait 5s to wait", max(p.lastOutage, time.Second).Round(time.Second))
	}
	return err
}

// awayHint returns what to do if events are pending because the fabric has other brokers than at the login, or runs without
// its Apache Kafka. Otherwise, it returns "".
func (p *produceRun) awayHint(ctx context.Context, why error) string {
	if !errors.Is(why, diaspora.ErrUnavailable) || p.skippedWait {
		return ""
	}
	const limit = 3 * time.Second // for both
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	if hint := p.env.moved(ctx); hint != "" {
		return hint
	}
	return p.env.withoutKafka(ctx)
}

// setAside returns how many events were set aside since the run began because the cluster does not accept them: those of
// this run, and those that earlier runs have left in the spools.
func (p *produceRun) setAside() (own, earlier int64) {
	for i, dir := range p.dirs {
		for e, err := range spool.Quarantined(dir) {
			switch {
			case err != nil || e.Entry == nil || e.Time.Before(p.opened):
			case i == 0 && e.Position >= p.first:
				own++
			default:
				earlier++
			}
		}
	}
	return own, earlier
}

// asideText says how many events were set aside.
func (e *env) asideText(own, earlier int64) string {
	var parts []string
	if own > 0 {
		parts = append(parts, fmt.Sprintf("%d of the events %s set aside", own, agree(own, "was", "were")))
	}
	if earlier > 0 {
		parts = append(parts, fmt.Sprintf("%s of earlier runs %s set aside", count(earlier, "event"), agree(earlier, "was", "were")))
	}
	return strings.Join(parts, " and ") + `, because the cluster does not accept ` + agree(own+earlier, "it", "them") + ` ("` + e.spoolCommand("cat --quarantine") + `" says why)`
}

// maxSearchedBytes is the size of the largest spool that is read to find out which topics its events are for.
const maxSearchedBytes = 64 << 20

// leftByOthers reports whether the spool holds only events for topics other than that of this run, and these topics
// reject them. Earlier runs logged these events; without this check, their error would look like one of this run.
func (p *produceRun) leftByOthers(left diaspora.SpoolStats) bool {
	var refused *diaspora.TopicError
	if !p.spool || left.Events == 0 || left.Bytes > maxSearchedBytes || left.Held[p.topic] != nil || !permanent(left.Why) || !errors.As(left.Why, &refused) {
		return false
	}
	topics, err := spool.Topics(p.dirs[0])
	for topic := range topics {
		if left.Held[topic] == nil {
			return false
		}
	}
	return err == nil
}

// outcome returns the error that determines the exit code. earlier says that the spool holds only events of earlier
// runs, for other topics. The caller holds mu.
func (p *produceRun) outcome(ctx context.Context, left diaspora.SpoolStats, earlier bool, lost int64, err error) error {
	held := left.Held[p.topic]
	bad := p.failed + lost
	switch {
	case p.fatal != nil:
		return p.fatal
	case ctx.Err() != nil && p.watch == nil: // an interrupt is the normal end of a watch
		return ctx.Err()
	case err != nil:
		return err
	case bad > 0:
		text := fmt.Sprintf("produce to topic %q: %d of %s %s not logged", p.topic, bad, count(p.read, "event"), agree(bad, "was", "were"))
		if pending := pendingError(left.Events, left.Why); p.requireAck && pending != nil && !earlier {
			text += "; " + pending.Error()
		}
		if p.watch != nil && p.firstFailed != "" { // what was said of it may be weeks old
			text += fmt.Sprintf("%s %s", agree(bad, ":", "; the first was"), p.firstFailed)
		}
		return fail(outcome.ErrIncomplete, "", "%s", text)
	case left.Events == 0:
		return nil
	case errors.Is(left.Why, diaspora.ErrUnauthenticated):
		return hinted(fmt.Errorf("produce to topic %q: %w", p.topic, left.Why), `then send the events with "`+p.env.spoolCommand("drain")+`"`+p.env.withNewKeyFile())
	case held != nil && permanent(held) && p.acknowledgedByCluster() > 0: // events were acknowledged, so the name of the topic is taken to be right
		return held
	case held != nil && permanent(held):
		return hinted(held, p.env.discardHint(p.topic, p.dirs[0], false))
	case loginRejected(left.Why):
		return fmt.Errorf("produce to topic %q: %w", p.topic, left.Why)
	case p.requireAck && !earlier:
		err := pendingError(left.Events, left.Why)
		if errors.Is(err, outcome.ErrSpooled) { // a job that fails is often just run again
			them := agree(left.Events, "it", "them")
			err = hinted(err, fmt.Sprintf("do not log %s again: the next produce sends %s, or %q", them, them, p.env.spoolCommand("drain")))
		}
		return err
	}
	return nil
}

// withNewKeyFile returns the end of a hint to run a command that signs in with a key file, or "" if no key file is
// used. If the key is no longer valid, the command works only once the file has a new one.
func (e *env) withNewKeyFile() string {
	if e.getenv("DIASPORA_KEY_FILE") == "" {
		return ""
	}
	return ", once that file has the new key"
}

// discardHint says what to do with events in the spool dir whose topic is mistyped. A watch with another topic logs the
// files again, so events of a watch must be deleted. spool discard does not change a spool that a process uses.
func (e *env) discardHint(topic, dir string, used bool) string {
	text := "the events are sent once that is allowed; if the name is wrong, "
	if diaspora.ValidTopic(topic) != nil {
		text = ""
	}
	watched := false
	if dir, err := filepath.Abs(dir); err == nil {
		watched = len(watch.Folders(journalFolder(filepath.Dir(dir)), topic)) > 0
	}
	switch {
	case watched:
		return text + `end the watch (a service: stop it), type "` + e.discardCommand(topic, dir) + ` --to FILE --yes", and watch with the right topic, which logs the files again`
	case used:
		return text + `end the process that uses the spool (a service: stop it), and take them out: "` + e.discardCommand(topic, dir) + ` --to FILE" (in a script, add --yes)`
	}
	return text + `take them out: "` + e.discardCommand(topic, dir) + ` --to FILE" (first stop a service that logs there; in a script, add --yes)`
}

// discardCommand returns the command that removes the events for a topic. It names the spool dir if that is one of another
// profile or fabric, into which the command does not look otherwise.
func (e *env) discardCommand(topic, dir string) string {
	place := ""
	if own, err := e.currentPool(); err == nil && filepath.Dir(dir) != own.Dir {
		place = " " + shellWord(dir)
	}
	return e.spoolCommand("discard " + topic + place)
}

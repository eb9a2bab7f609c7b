package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/diaspora-streams/diaspora"
)

var consumeHelp = help{
	use:   "consume TOPIC...",
	short: "read events from one or more topics",
	examples: `
# read new records, until Ctrl-C
diaspora consume weather

# read all existing records, then exit
diaspora consume weather --from start --exit

# read the last ten records of each partition, then new ones
diaspora consume weather --from -10

# read half an hour of one partition
diaspora consume weather --partition 0 --from 1h --to 30m

# pass today's records to another program, with time, key and headers
diaspora consume weather --from today -o ndjson | jq .value

# use a format as in kcat
diaspora consume weather --from start --exit -f '%o %k: %s\n'

# continue where the group stopped; two such commands share the work
diaspora consume weather alarms -g analysis`,
	long: `
By default, consume prints the value of each record and a line feed. If you read several topics, it
prints the topic and a tab before the value. --format sets another format, as in kcat. On a
terminal, control characters are escaped. In a pipe or a file, every byte is unchanged. With -o raw,
consume prints only the values, with nothing between them, and escapes nothing.

With -o json (the same as ndjson), each record is a JSON object on a line of its own, with topic,
partition, offset, time (of the event), stored (when the cluster received it), id, key, value and
headers. A key or value that is not UTF-8 is in key_base64 or value_base64 instead. If a record has
no key, key is null. If two records have the same id, they are the same event, delivered twice.

Without --from, consume begins at the start if --exit, --to or --group is set, and otherwise at the
end, so that it prints only new records. A group that has read before continues where it
stopped: --from applies only to partitions that it has never read. A record counts as read by the
group once it has been written to the output. "diaspora group show" prints how far a group has read,
and "diaspora group reset" moves it to another position.

` + positionHelp + "\n\n" + formatHelp,
	formats: append(streamFormats, "raw"),
	args:    arguments{min: 1, max: -1, missing: "the topic is missing"},

	exclusive: []string{"partition group", "exit to"}, // a group assigns the partitions to its members
}

type consumeOptions struct {
	from, to string
	exit     bool
	number   int64
	group    string

	partitions []int32
	format     string
}

func (e *env) consumeCommand() *cobra.Command {
	var o consumeOptions
	cmd := e.command(consumeHelp, func(ctx context.Context, args []string) error {
		return e.consume(ctx, o, args)
	})
	flags := cmd.Flags()
	flags.StringVar(&o.from, "from", "", "begin at `POSITION`; see above")
	flags.StringVar(&o.to, "to", "", "stop before `POSITION`; see above")
	flags.BoolVar(&o.exit, "exit", false, "exit at the current end of the topic; short for --to end")
	flags.Int64VarP(&o.number, "number", "n", 0, "exit after `N` records")
	flags.StringVarP(&o.group, "group", "g", "", "join this consumer `GROUP`, which records how far it has read; \"diaspora group show\" prints that")
	flags.StringVarP(&o.format, "format", "f", "", "print each record in `FORMAT`, as in kcat; see above")
	flags.Int32SliceVarP(&o.partitions, "partition", "p", nil, "read only partition `N` of each topic; may be repeated (default: all)")
	flags.Lookup("partition").DefValue = "" // otherwise the help adds "(default [])"
	cmd.ValidArgsFunction = completion(anyArgument, e.topicNames)
	for _, name := range []string{"from", "to"} {
		cmd.RegisterFlagCompletionFunc(name, fixed("start", "end", "today", "yesterday", "1h", "-10"))
	}
	cmd.RegisterFlagCompletionFunc("group", completion(anyArgument, e.groupNames))
	return cmd
}

// consumer converts the flags to the options of the library.
func (o consumeOptions) consumer(topics []string, now time.Time) (diaspora.ConsumerOptions, error) {
	c := diaspora.ConsumerOptions{Topics: topics, Group: o.group, Partitions: o.partitions, CommitEvery: -1}
	if o.number < 0 {
		return c, misuse("", "consume: -n %d is negative", o.number)
	}
	if o.exit {
		o.to = "end"
	}
	switch {
	case o.from != "":
	case o.to != "" || o.group != "":
		o.from = "start"
	default:
		o.from = "end"
	}
	var err error
	if c.From, err = parsePosition(o.from, now); err != nil {
		return c, misuse(seeConsumeHelp, "consume: --from %q: %v", o.from, err)
	}
	if o.to != "" {
		if c.Until, err = parsePosition(o.to, now); err != nil {
			return c, misuse(seeConsumeHelp, "consume: --to %q: %v", o.to, err)
		}
	}
	return c, nil
}

const seeConsumeHelp = `see "diaspora consume --help" for all ways to name a position`

func (e *env) consume(ctx context.Context, o consumeOptions, topics []string) error {
	collectLess()
	options, err := o.consumer(topics, e.now())
	if err != nil {
		return err
	}
	format, err := e.recordFormat(o.format, slices.ContainsFunc(topics, func(t string) bool { return t != topics[0] }))
	if err != nil {
		return err
	}
	cfg, err := e.config()
	if err != nil {
		return err
	}
	var consumer *diaspora.Consumer
	err = e.withNotice(func() (err error) {
		consumer, err = diaspora.OpenConsumer(ctx, cfg, options)
		return err
	})
	if err != nil {
		return e.aboutTopic(ctx, cfg, err)
	}
	c := &consumeRun{
		env: e, consumer: consumer, options: options,
		number: o.number,
		out:    newLineWriter(e.stdout),
		format: format,
	}
	return e.aboutTopic(ctx, cfg, c.run(ctx))
}

// recordFormat returns the function that formats a record for output. Unless the user has chosen a format, the
// topic precedes the value if there are several topics.
func (e *env) recordFormat(format string, several bool) (recordFormat, error) {
	switch {
	case format != "" && e.output != "text":
		return nil, misuse("", "consume: --format and -o %s exclude each other", e.output)
	case e.json():
		return appendRecord, nil
	case e.output == "raw":
		return func(buf []byte, r *diaspora.Record) []byte { return append(buf, r.Value...) }, nil
	case format == "" && several:
		format = `%t\t%s\n`
	case format == "":
		format = `%s\n`
	}
	f, err := parseFormat(format, e.terminal(e.stdout))
	if err != nil {
		return nil, misuse(`see "diaspora consume --help" for the tokens of a format`, "consume: --format %q: %v", format, err)
	}
	return f, nil
}

// consumeRun is one run of consume.
type consumeRun struct {
	env      *env
	consumer *diaspora.Consumer
	options  diaspora.ConsumerOptions
	number   int64 // end after this many records; 0 means never
	out      *lineWriter
	format   recordFormat

	read    atomic.Int64
	written atomic.Int64 // bytes
	total   atomic.Int64 // number of records to read; 0 if unknown
}

const (
	commitEvery  = time.Second
	tickEvery    = 300 * time.Millisecond
	checkEvery   = 5 * time.Second // how often to check the cluster while no records arrive, once all have been read
	checkTimeout = 5 * time.Second
	idleAfter    = 5 * time.Second // time without partitions after which the user is told
	goodbyeLimit = 5 * time.Second
	goodbyeAfter = time.Second // time after which the user is told why exiting takes long
)

func (c *consumeRun) run(ctx context.Context) (err error) {
	c.introduce(ctx)
	hide := func() {}
	if c.options.Until != (diaspora.Position{}) || c.number > 0 { // otherwise there is no end to show progress towards
		hide = c.env.progress(true, c.progressLine())
	}
	defer hide()
	reading, stop := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		c.watch(reading, stop)
	}()
	err = c.loop(reading)
	stop()
	<-watched
	hide()
	goodbye, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbyeLimit)
	defer cancel()
	defer time.AfterFunc(goodbyeAfter, func() {
		c.env.say("still writing the output and saving the position; this ends within %v", goodbyeLimit)
	}).Stop()
	if flushErr := c.out.flushed(func() error { return c.consumer.Commit(goodbye) }); err == nil || errors.Is(err, context.Canceled) {
		err = errors.Join(flushErr, err)
	}
	if closeErr := c.consumer.Close(goodbye); err == nil {
		err = closeErr
	}
	if err == nil || errors.Is(err, context.Canceled) {
		text := count(c.read.Load(), "record")
		if c.read.Load() == 0 && err == nil && c.options.Group != "" && c.options.Until != (diaspora.Position{}) {
			text += "; there is nothing new for the group " + c.options.Group
		}
		c.env.say("%s", text)
	}
	return err
}

// loop prints records until the end that the flags set.
func (c *consumeRun) loop(ctx context.Context) error {
	var buf []byte
	for record, err := range c.consumer.Records(ctx) {
		if gap := (*diaspora.GapError)(nil); errors.As(err, &gap) {
			c.env.warn("%v", err)
			continue
		}
		if errors.Is(err, diaspora.ErrUnavailable) {
			continue // watch reports it
		}
		if err != nil {
			return err
		}
		buf = c.format(buf[:0], &record)
		if err := c.out.write(buf); err != nil {
			return err
		}
		c.written.Add(int64(len(buf)))
		if n := c.read.Add(1); n == c.number {
			return c.out.flushed(func() error { return c.consumer.Commit(ctx, record) })
		}
	}
	return nil
}

// introduce tells the user what is read, and sets total if it is known.
func (c *consumeRun) introduce(ctx context.Context) {
	if c.env.quiet {
		return
	}
	topics := strings.Join(c.options.Topics, ", ")
	if c.options.Group != "" {
		c.env.say("reading %s from where group %s stopped; partitions that it has never read, from %s", topics, c.options.Group, c.where())
		return
	}
	progress, err := c.consumer.Progress(ctx)
	if err != nil {
		return // loop or watch reports the same error
	}
	switch all := span(progress); {
	case c.number > 0 && c.options.Until == (diaspora.Position{}):
		c.total.Store(c.number)
	case c.number > 0:
		c.total.Store(min(c.number, all))
	default:
		c.total.Store(all)
	}
	c.env.say("reading %s from %s: %s in %s", topics, c.where(), count(span(progress), "record"), count(len(progress), "partition"))
}

// where describes the range of records that is read.
func (c *consumeRun) where() string {
	text := c.env.positionText(c.options.From)
	if c.options.Until != (diaspora.Position{}) {
		text += " to " + c.env.positionText(c.options.Until)
	}
	return text
}

// watch commits the offsets of records that were written, and reports outages and the end of the backlog. It
// stops reading if nobody reads the output any more.
func (c *consumeRun) watch(ctx context.Context, stop func()) {
	ticker := time.NewTicker(tickEvery)
	defer ticker.Stop()
	outage := outageWatch{env: c.env}
	var last int64
	var committed, checked, idle time.Time
	caughtUp, toldIdle := false, false
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.out.broken:
			stop()
			return
		case <-ticker.C:
		}
		if readerGone(c.env.stdout) {
			c.out.leave()
			stop()
			return
		}
		now := time.Now()
		if now.Sub(committed) >= commitEvery && c.options.Group != "" {
			committed = now
			err := withCheckTimeout(ctx, func(ctx context.Context) error {
				return c.out.flushed(func() error { return c.consumer.Commit(ctx) })
			})
			if err != nil && ctx.Err() == nil {
				outage.see(err, 0, 0, func() string { return "how far the group has read will be saved when it does" })
			}
		}
		read := c.read.Load()
		quiet := read == last
		last = read
		if !quiet || caughtUp && now.Sub(checked) < checkEvery {
			continue
		}
		checked = now
		var progress []diaspora.Progress
		err := withCheckTimeout(ctx, func(ctx context.Context) (err error) {
			progress, err = c.consumer.Progress(ctx)
			return err
		})
		if ctx.Err() != nil {
			return
		}
		outage.see(err, 0, 0, func() string { return "waiting for it" })
		if err != nil || len(progress) > 0 {
			idle, toldIdle = time.Time{}, false
		} else if idle.IsZero() {
			idle = now
		} else if now.Sub(idle) >= idleAfter && !toldIdle {
			toldIdle = true
			c.env.say("group %s has assigned this process no partition yet: other members have them all, or one was killed and the group waits for it for up to 45 s", c.options.Group)
		}
		if err != nil || caughtUp || len(progress) == 0 {
			continue
		}
		caughtUp = !slices.ContainsFunc(progress, func(p diaspora.Progress) bool { return p.Next < p.End })
		if caughtUp && c.options.Until == (diaspora.Position{}) {
			c.env.say("caught up after %s; waiting for new ones, Ctrl-C ends", count(read, "record"))
		}
	}
}

// withCheckTimeout sends a request to the cluster, and returns errSilent if there is no response within checkTimeout.
func withCheckTimeout(ctx context.Context, ask func(context.Context) error) error {
	looking, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	err := ask(looking)
	if err != nil && ctx.Err() == nil && looking.Err() != nil {
		return errSilent
	}
	return err
}

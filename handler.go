package diaspora

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/diaspora-streams/diaspora/internal/diagnostics"
	"github.com/diaspora-streams/diaspora/internal/slogjson"
)

// HandlerOptions says what a [Handler] logs and to which topic.
type HandlerOptions struct {
	// Topic is the topic to log to. Required.
	Topic string

	// Key is the key of every event. With a key, all events of the Handler keep their order even in
	// a topic with several partitions. Default: none.
	Key []byte

	// Level is the lowest level that is logged. Default: [slog.LevelInfo].
	Level slog.Leveler

	// AddSource adds the source code position of the log call, as `source`.
	AddSource bool

	// Trace returns the trace ID and the span ID of a context, which become `trace_id` and
	// `span_id`. An empty ID is left out. Default: neither is added.
	Trace func(context.Context) (traceID, spanID string)

	// ReplaceAttr may change an attribute before it is logged, for instance to redact it. It
	// removes the attribute by returning the zero Attr. It is called like the function of the same
	// name in [slog.HandlerOptions], for every attribute that is not a group, with a resolved value
	// and the names of the enclosing groups. It is not called for time, level, message and source.
	ReplaceAttr func(groups []string, a slog.Attr) slog.Attr

	// DropAfter allows the Handler to drop records. The Logger holds up to 64 MiB of events that
	// are not acknowledged. While it is full, a record waits for room, and is dropped after
	// DropAfter. If DropAfter is negative, the record is dropped at once. If it is zero, the
	// default, the record waits until there is room or the Logger is closed.
	DropAfter time.Duration
}

// Handler is a [slog.Handler] that logs each record as an event. Make one with [NewHandler]. It
// passes events to its [Logger] as [Logger.Send] does, and buffers nothing itself. It has no Close;
// closing the Logger flushes it.
//
// Handle does not wait for the network, but may wait for room in the Logger, even after its context
// ends; see HandlerOptions.DropAfter. Code that the Logger itself waits for must not wait for room,
// because that would be a deadlock: callbacks of Send, for instance, and the HTTP client that gets
// the tokens. If such code logs while the Logger is full, its records are always dropped.
//
// The value of an event is one JSON object. Its format is stable:
//
//	{"time":"2026-11-24T18:02:11.123456789Z","level":"INFO","msg":"shot taken",
//	 "source":{"function":"main.run","file":"/src/main.go","line":42},
//	 "trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","span_id":"00f067aa0ba902b7",
//	 "detector":"L1","beam":{"energy_keV":12.4},"cut":1,"lost":3}
//
// The event's own time, in the header `diaspora-time`, is the time of the record in milliseconds.
//
// Members come in this order. `level` and `msg` are always present, `time` unless the record has
// none. Attributes follow in the order in which they were given, those of [slog.Logger.With] first.
// Groups are objects; empty groups are left out. Then, if they apply:
//
//   - `cut` is the number of values that were cut or left out because the event would have been
//     larger than the cluster accepts. A message is cut at a quarter of that size, and then ends in
//     "…". An attribute that does not fit is left out.
//   - `lost` is the number of the Handler's events that were lost before this one: dropped, or
//     failed for good. [Handler.Lost] counts all of them.
//
// Names are unique within an object. If an attribute, or a member that the options ask for, already
// has the name, the next one is called "name#2", then "name#3".
//
// Values are encoded as by [slog.JSONHandler]: a duration as nanoseconds, a time in RFC 3339, an
// error as its text, []byte in base64, and everything else as encoding/json does, without HTML
// escapes. A [slog.LogValuer] is encoded as the value that it returns, so that a globus.Secret is
// "[redacted]". In addition, NaN and the infinities become the strings "NaN", "+Inf" and "-Inf",
// and bytes that are not UTF-8 become U+FFFD. A value that cannot be encoded becomes a string that
// says why, and begins with "!ERROR: " or "!PANIC: ".
//
// The library's own diagnostics are not logged, even if the Handler is the default logger and
// [Config.Diagnostics] of the Logger is that default logger too. To see them, send them elsewhere.
type Handler struct {
	level slog.Leveler
	out   *outbox
	own   bool           // logs the library's own messages: drops all records
	attrs slogjson.Attrs // from With and WithGroup
}

// NewHandler returns a Handler that logs to logger. It panics if the options name no topic: this is
// a mistake in the program, and programs rarely check an error while they set up logging.
func NewHandler(logger *Logger, options *HandlerOptions) *Handler {
	if logger == nil || options == nil || options.Topic == "" {
		panic("diaspora: NewHandler needs a Logger and a Topic")
	}
	h := &Handler{level: options.Level, out: newOutbox(logger, options.Topic, slices.Clone(options.Key), options.DropAfter)}
	if h.level == nil {
		h.level = slog.LevelInfo
	}
	format := slogjson.Format{MaxBytes: h.out.maxBytes, AddSource: options.AddSource, Trace: options.Trace, Replace: options.ReplaceAttr}
	h.attrs = format.Attrs()
	return h
}

// Lost returns how many of the Handler's records were dropped or failed for good.
func (h *Handler) Lost() int64 { return h.out.lost.Load() }

// Enabled implements [slog.Handler].
func (h *Handler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= h.level.Level() && !h.own
}

// WithGroup implements [slog.Handler].
func (h *Handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	with := *h
	with.attrs = h.attrs.WithGroup(name)
	return &with
}

// WithAttrs implements [slog.Handler].
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	if len(attrs) == 0 {
		return h
	}
	with := *h
	if diagnostics.Marked(attrs) {
		with.own = true
		return &with
	}
	with.attrs = h.attrs.With(attrs)
	return &with
}

// Handle implements [slog.Handler].
func (h *Handler) Handle(ctx context.Context, r slog.Record) error {
	if h.own {
		return nil
	}
	p := h.out.parcel()
	p.buf = p.json.Record(ctx, p.buf, &h.attrs, r, p.tell())
	p.event.Value = p.buf
	if tellTime(r.Time) {
		p.event.Time = r.Time
	}
	return p.send()
}

// tellTime reports whether to set the event's time to t. If t is now to the millisecond, it returns
// false, because the Logger's own time is the same and cheaper to format. It also returns false if t
// is zero, or in a year that RFC 3339 cannot express.
func tellTime(t time.Time) bool {
	if t.IsZero() || time.Since(t).Abs() < time.Millisecond {
		return false
	}
	y := t.UTC().Year()
	return 0 <= y && y <= 9999
}

// outbox passes the events of a [Handler] or a [Writer] to their Logger, and counts lost events.
type outbox struct {
	logger    *Logger
	topic     string
	key       []byte
	dropAfter time.Duration // 0 means never
	maxBytes  int           // maximum size of a value
	parcels   sync.Pool

	lost   atomic.Int64
	untold atomic.Int64 // lost events that no event has reported yet
}

func newOutbox(logger *Logger, topic string, key []byte, dropAfter time.Duration) *outbox {
	o := &outbox{
		logger:    logger,
		topic:     topic,
		key:       key,
		dropAfter: dropAfter,
		maxBytes:  logger.fabric.maxEventBytes - systemHeaderBytes - len(key),
	}
	o.parcels.New = func() any {
		p := &outgoing{out: o}
		p.done = p.finished
		p.buf = make([]byte, 0, 512)
		return p
	}
	return o
}

// outgoing is an event's value on its way through the Logger. It is reused after its callback.
type outgoing struct {
	out   *outbox
	json  slogjson.Encoder
	buf   []byte // the value
	told  int64  // how many lost events this event reports
	done  func(Record, error)
	event Event
}

// maxKeptBytes is the largest buffer that is kept for the next event.
const maxKeptBytes = 64 << 10

func (o *outbox) parcel() *outgoing { return o.parcels.Get().(*outgoing) }

// tell returns how many events were lost and not reported yet. The event of p must report them.
func (p *outgoing) tell() int64 {
	p.told = 0
	if p.out.untold.Load() > 0 {
		p.told = p.out.untold.Swap(0)
	}
	return p.told
}

// finished is the Logger's callback. If the event failed, the lost events that it reported are
// unreported again.
func (p *outgoing) finished(_ Record, err error) {
	if err != nil {
		p.out.lost.Add(1)
		p.out.untold.Add(p.told + 1)
	}
	if cap(p.buf) > maxKeptBytes {
		p.buf = nil
	}
	p.event = Event{}
	p.out.parcels.Put(p)
}

// send passes the event to the Logger. If the Logger does not accept it, it counts as lost.
func (p *outgoing) send() error {
	o := p.out
	p.event.Topic, p.event.Key = o.topic, o.key
	err := o.logger.send(noWait, &p.event, p.done)
	if errors.Is(err, context.Canceled) {
		err = p.wait()
	}
	if err == nil {
		return nil
	}
	o.logger.counts.failed.Add(1)
	p.finished(Record{}, err)
	return o.logger.fabric.logError(o.topic, err)
}

// libraryCode is the code that the Logger waits for: the Kafka client with its callbacks, and the
// code that gets the Logger's tokens. If it logs through a Handler while the Logger is full, it
// must not wait for memory, because only it can free the memory.
var libraryCode = []string{"github.com/twmb/franz-go/pkg/kgo.", "github.com/diaspora-streams/diaspora/globus."}

// wait sends the event once the Logger has room, unless the event must be dropped before.
func (p *outgoing) wait() error {
	full := &Error{Condition: ErrUnavailable, Reason: "dropped, because too many events wait for their acknowledgement"}
	if p.out.dropAfter < 0 || calledBy(libraryCode...) {
		return full
	}
	ctx := context.Background()
	if p.out.dropAfter > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, p.out.dropAfter)
		defer cancel()
	}
	err := p.out.logger.send(ctx, &p.event, p.done)
	if errors.Is(err, context.DeadlineExceeded) {
		return full
	}
	return err
}

// noWait is a context that has ended. Sending with it succeeds only if there is memory at once.
var noWait = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// calledBy reports whether the call stack contains a function whose name begins with one of the
// prefixes.
func calledBy(prefixes ...string) bool {
	const most = 4096 // frames
	var pcs [64]uintptr
	for skip := 2; skip < most; skip += len(pcs) {
		n := runtime.Callers(skip, pcs[:])
		frames := runtime.CallersFrames(pcs[:n])
		for more := n > 0; more; {
			var f runtime.Frame
			f, more = frames.Next()
			for _, p := range prefixes {
				if strings.HasPrefix(f.Function, p) {
					return true
				}
			}
		}
		if n < len(pcs) {
			return false
		}
	}
	return false
}

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

	"github.com/diaspora-streams/diaspora/internal/slogjson"
)

// HandlerOptions says what a [Handler] logs, and where to.
type HandlerOptions struct {
	// Topic says where to. Required.
	Topic string

	// Key is the key of every event: with one, all of the Handler's events
	// keep their order in a topic of several partitions. Default: none.
	Key []byte

	// Level is the least level that is logged. Default: [slog.LevelInfo].
	Level slog.Leveler

	// AddSource adds the place in the code, as `source`.
	AddSource bool

	// Trace finds the trace and the span that a context belongs to, for
	// `trace_id` and `span_id`. An empty one is left out. Default: neither.
	Trace func(context.Context) (traceID, spanID string)

	// ReplaceAttr may change an attribute before it is logged, or remove it
	// by returning the zero Attr: it is the place to redact. It is called as
	// that of [slog.HandlerOptions], for every attribute that is not a group,
	// with its value resolved and the names of the groups that it is in; not
	// for time, level, message and source.
	ReplaceAttr func(groups []string, a slog.Attr) slog.Attr

	// DropAfter allows the Handler to drop records. The Logger holds up to
	// 64 MiB of events that are not acknowledged yet. While it is full, a
	// record waits for room, and is dropped after DropAfter; if that is
	// negative, at once. Default: never; the record waits until there is room
	// or the Logger is closed.
	DropAfter time.Duration
}

// Handler is a [slog.Handler] that logs each record as an event. Make one with
// [NewHandler]. It hands events to its [Logger] as [Logger.Send] does and keeps
// nothing back: there is no Close but that of the Logger, which flushes.
//
// Handle does not wait for the network. It may wait for room in the Logger, see
// HandlerOptions.DropAfter, whatever becomes of its context. What the Logger itself
// waits for, such as a callback of Send or the HTTP client that gets its tokens, never
// waits for room: what it logs while the Logger is full is dropped in any case.
//
// An event's value is one JSON object. Its shape is stable:
//
//	{"time":"2026-11-24T18:02:11.123456789Z","level":"INFO","msg":"shot taken",
//	 "source":{"function":"main.run","file":"/src/main.go","line":42},
//	 "trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","span_id":"00f067aa0ba902b7",
//	 "detector":"L1","beam":{"energy_keV":12.4},"cut":1,"lost":3}
//
// The event's own time, in the header `diaspora-time`, is that of the record, to the
// millisecond.
//
// Members come in this order. `level` and `msg` are always there, `time` unless the
// record has none; attributes come in the order in which they were given, those of
// [slog.Logger.With] first; groups are objects, and those without attributes are
// left out. Then, if need be:
//
//   - `cut` says how many values were cut or left out because the event would
//     have been larger than the cluster takes. A message is cut at a quarter of
//     that, and ends in "…"; an attribute that does not fit is left out.
//   - `lost` says how many of the Handler's events were lost before this one:
//     dropped, or failed for good. [Handler.Lost] counts them all.
//
// Names are unique in their object. If a name is taken, by an attribute or by a
// member that the options ask for, the next one is "name#2", then "name#3".
//
// Values appear as they do with [slog.JSONHandler]: a duration as its nanoseconds,
// a time in RFC 3339, an error as its text, []byte in base64, everything else as
// encoding/json has it, without HTML escapes; a [slog.LogValuer] as the value that
// it gives, so that a globus.Secret is "[redacted]". Beyond that, NaN and the
// infinities are the strings "NaN", "+Inf" and "-Inf", bytes that are not UTF-8
// become U+FFFD, and a value that cannot be encoded is a string that says why and
// begins with "!ERROR: " or "!PANIC: ".
//
// The library's own diagnostics are not logged, even if the Handler is the default logger and
// the Logger's [Config.Diagnostics] is too. To see them, send them elsewhere.
type Handler struct {
	level slog.Leveler
	out   *outbox
	own   bool           // of the library itself: nothing comes through
	attrs slogjson.Attrs // what With and WithGroup gave
}

// NewHandler returns a Handler on the logger. It panics if the options name no
// topic, as there is nobody to return an error to whom a program would listen.
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
	if marked(attrs) {
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

// tellTime reports whether the Logger is to be told the time of a record: not if it
// is now to the millisecond, which is what the Logger finds by itself, and cheaper.
func tellTime(t time.Time) bool {
	if t.IsZero() || time.Since(t).Abs() < time.Millisecond {
		return false
	}
	y := t.UTC().Year()
	return 0 <= y && y <= 9999
}

// outbox hands the events of a [Handler] or a [Writer] to their Logger, and counts
// those that are lost.
type outbox struct {
	logger    *Logger
	topic     string
	key       []byte
	dropAfter time.Duration // 0: never
	maxBytes  int           // of a value
	parcels   sync.Pool

	lost   atomic.Int64
	untold atomic.Int64 // lost events of which no event has told
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
		p := &parcel{out: o}
		p.done = p.finished
		p.buf = make([]byte, 0, 512)
		return p
	}
	return o
}

// parcel is a value on its way. It is used again when the Logger is done with it.
type parcel struct {
	out   *outbox
	json  slogjson.Encoder
	buf   []byte // the value
	told  int64  // lost events of which this one tells
	done  func(Record, error)
	event Event
}

// maxKeptBytes bounds the buffers that are kept for the next event.
const maxKeptBytes = 64 << 10

func (o *outbox) parcel() *parcel { return o.parcels.Get().(*parcel) }

// tell returns how many events were lost since it was asked last. p is to say so.
func (p *parcel) tell() int64 {
	p.told = 0
	if p.out.untold.Load() > 0 {
		p.told = p.out.untold.Swap(0)
	}
	return p.told
}

// finished is the Logger's callback.
func (p *parcel) finished(_ Record, err error) {
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

// send hands the parcel over. What the Logger does not take is lost, and counted.
func (p *parcel) send() error {
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

// libraryCode is the code for which the Logger waits: the Kafka client with its callbacks, and
// what gets the Logger's tokens. If it logs through a Handler while the Logger is full, it must
// not wait for memory: it would wait for itself.
var libraryCode = []string{"github.com/twmb/franz-go/pkg/kgo.", "github.com/diaspora-streams/diaspora/globus."}

// wait sends when the Logger has room again.
func (p *parcel) wait() error {
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

// noWait is a context for sending if there is memory for the event, without waiting for it.
var noWait = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// calledBy reports whether a function whose name begins with one of the prefixes is
// on the call stack.
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

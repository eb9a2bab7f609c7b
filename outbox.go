package diaspora

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/diaspora-streams/diaspora/internal/slogjson"
)

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

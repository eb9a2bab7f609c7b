package diaspora

import (
	"bytes"
	"crypto/rand"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"strings"
	"sync/atomic"
	"time"

	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// The headers that the library adds to every event. Both hold text.
const (
	// HeaderID holds the event's [Event.ID]. The IDs that a Logger makes are 16 random letters and
	// digits, which are fixed for that Logger, a hyphen, and a number in base 32 that grows with
	// each event: "k3v9x0q2m7ta5h1c-2f". Two records with the same ID are the same event, delivered
	// twice.
	HeaderID = "diaspora-id"
	// HeaderTime holds the time of the event ([Event.Time]) in RFC 3339, in UTC:
	// "2026-11-23T17:04:05.123Z".
	HeaderTime = "diaspora-time"

	headerPrefix = "diaspora-" // headers with this prefix are reserved for the library
)

// Event is what a program logs.
type Event struct {
	// Topic is the topic to log the event to. Required.
	Topic string

	// Key groups events: events with the same topic and key keep their order. Nil means no key;
	// events without a key are spread over the partitions.
	Key []byte

	// Value is the content of the event, any bytes. An event may have an empty Value. A nil Value
	// makes it a tombstone, which deletes the key from a compacted topic.
	Value []byte

	// Headers are sent with the event. Keys that begin with "diaspora-" are reserved.
	Headers []Header

	// Time is when the event happened. Default: when it is logged. It is sent in the header
	// [HeaderTime], because the cluster stamps records with the time at which it receives them.
	Time time.Time

	// ID identifies the event. Default: a unique ID made by the Logger. A program that logs an
	// event again should give it the same ID, so that readers can drop the repeat.
	ID string

	err error // why the event could not be made; logging the event returns it
}

// Header is a name and a value that are sent with an event.
type Header struct {
	Key   string
	Value []byte
}

// Record is an event in the cluster.
type Record struct {
	Event

	Partition int32
	Offset    int64

	// Stored is the cluster's own timestamp. For claimed topics it is when the cluster received the
	// event. It is zero in the callback of [Logger.Send].
	Stored time.Time
}

// JSON returns an event whose value is v encoded as JSON, without HTML escapes. If v cannot be
// encoded, logging the event fails with [ErrInvalid].
func JSON(topic string, v any) Event {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return Event{Topic: topic, err: invalid("value does not encode as JSON: %v", err)}
	}
	return Event{Topic: topic, Value: bytes.TrimSuffix(buf.Bytes(), []byte("\n"))}
}

// Decode parses the record's value as JSON into v.
func (r Record) Decode(v any) error {
	if err := json.Unmarshal(r.Value, v); err != nil {
		return &TopicError{"decode", r.Topic, &Error{
			Condition: ErrInvalid,
			Reason:    fmt.Sprintf("record at partition %d offset %d is not the JSON expected: %s", r.Partition, r.Offset, jsonFault(err)),
			cause:     err,
		}}
	}
	return nil
}

// jsonFault says why a value cannot be decoded, without quoting the value.
func jsonFault(err error) string {
	var syntax *json.SyntaxError
	var mismatch *json.UnmarshalTypeError
	switch {
	case errors.As(err, &mismatch):
		kind, _, _ := strings.Cut(mismatch.Value, " ") // Value is like "number 31415": keep only the kind
		return fmt.Sprintf("at byte %d, a %s is no %v", mismatch.Offset, kind, mismatch.Type)
	case errors.As(err, &syntax):
		return fmt.Sprintf("at byte %d, %v", syntax.Offset, syntax)
	}
	return fmt.Sprintf("its parser refused it (%T)", err)
}

// checkEvent returns why ev cannot be logged, or nil.
func checkEvent(ev *Event, maxBytes int) error {
	switch {
	case ev.err != nil:
		return ev.err
	case ev.Topic == "":
		return invalid("the event has no topic")
	case !kafka.IsTopic(ev.Topic):
		return invalid("no cluster has a topic of this name")
	case len(ev.ID) > maxIDBytes:
		return invalid("the event's ID has %d bytes; at most %d are taken", len(ev.ID), maxIDBytes)
	}
	if !ev.Time.IsZero() {
		if y := ev.Time.UTC().Year(); y < 0 || y > 9999 {
			return invalid("the event's time is in the year %d", y)
		}
	}
	for i := range ev.Headers {
		if strings.HasPrefix(ev.Headers[i].Key, headerPrefix) {
			return invalid("header %q: names that begin with %q are reserved", ev.Headers[i].Key, headerPrefix)
		}
	}
	if size := eventBytes(ev); size > maxBytes {
		return invalid("the event has %d bytes; the cluster takes at most %d", size, maxBytes)
	}
	return nil
}

const maxIDBytes = 256

// eventBytes returns the size of ev that counts against the limit: key, value and headers,
// including the headers that the library adds.
func eventBytes(ev *Event) int {
	size := len(ev.Key) + len(ev.Value) + systemHeaderBytes
	for i := range ev.Headers {
		size += len(ev.Headers[i].Key) + len(ev.Headers[i].Value)
	}
	return size
}

// systemHeaderBytes is about how many bytes the library's own headers take.
const systemHeaderBytes = len(HeaderID) + len(HeaderTime) + 16 + 1 + 13 + 30

// ids makes IDs that are unique without coordination: 80 random bits and a counter.
type ids struct {
	prefix string // "k3v9x0q2m7ta5h1c-"
	last   atomic.Uint64
}

// idDigits are digits for base 32 that people do not confuse with each other (no i, l, o, u).
const idDigits = "0123456789abcdefghjkmnpqrstvwxyz"

func newIDs() *ids {
	var random [10]byte
	rand.Read(random[:])
	encoding := base32.NewEncoding(idDigits).WithPadding(base32.NoPadding)
	return &ids{prefix: encoding.EncodeToString(random[:]) + "-"}
}

// put writes the next number to buf, which must have room for maxCounterBytes, and returns the
// number of bytes written.
func (i *ids) put(buf []byte) int {
	n := i.last.Add(1)
	length := (bits.Len64(n) + 4) / 5
	for at := length - 1; at >= 0; at-- {
		buf[at] = idDigits[n&31]
		n >>= 5
	}
	return length
}

const (
	idPrefixBytes   = 16 + 1
	maxCounterBytes = 13 // for 64 bits in base 32

	// timeLayout is RFC 3339 in UTC with milliseconds.
	timeLayout = "2006-01-02T15:04:05.000Z"
)

// timeText is a formatted time. Events logged within the same millisecond share it.
type timeText struct {
	milli int64
	text  string
}

// timeFormat formats the current time. It caches the text, because formatting is slow compared with
// the rest of logging an event.
type timeFormat struct{ last atomic.Pointer[timeText] }

// putNow writes now to buf in timeLayout.
func (f *timeFormat) putNow(buf []byte, now time.Time) {
	milli := now.UnixMilli()
	last := f.last.Load()
	if last == nil || last.milli != milli {
		last = &timeText{milli, now.UTC().Format(timeLayout)}
		f.last.Store(last)
	}
	copy(buf, last.text)
}

// MaxTopicLength is the longest topic name, in bytes. It is Kafka's own limit.
const MaxTopicLength = kafka.MaxTopicBytes

// ValidTopic returns nil if name can be claimed: at most [MaxTopicLength] ASCII letters, digits and
// underscores, not beginning with an underscore, because such names are reserved for the system.
// Otherwise it returns a [*TopicError] with [ErrInvalid] that says what is wrong.
func ValidTopic(name string) error {
	if reason := topicFault(name); reason != "" {
		shown := name
		if len(shown) > 64 {
			shown = shown[:64] + "…"
		}
		return &TopicError{Op: "name", Topic: shown, Err: invalid("%s", reason)}
	}
	return nil
}

func topicFault(name string) string {
	switch {
	case name == "":
		return "a topic needs a name"
	case len(name) > MaxTopicLength:
		return "a topic's name has at most 249 characters"
	case name[0] == '_':
		return "a topic's name cannot start with an underscore"
	}
	for i := range len(name) {
		if !topicByte(name[i]) {
			return "a topic's name has only letters, digits and underscores"
		}
	}
	return ""
}

func topicByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_'
}

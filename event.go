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
)

// The headers that every event carries besides its own, both as text.
const (
	// HeaderID holds the event's [Event.ID]. The Logger's own IDs are 16
	// random letters and digits per Logger, a hyphen, and a number that grows
	// with each event, in base 32: "k3v9x0q2m7ta5h1c-2f". Two records with the
	// same ID are the same event, delivered twice.
	HeaderID = "diaspora-id"
	// HeaderTime holds the event's own time in RFC 3339, in UTC:
	// "2026-11-23T17:04:05.123Z".
	HeaderTime = "diaspora-time"

	headerPrefix = "diaspora-" // such headers are the system's
)

// Event is what a program logs.
type Event struct {
	// Topic says where to. Required.
	Topic string

	// Key groups events: those of one topic with the same key keep their
	// order. Nil is no key; such events are spread over the partitions.
	Key []byte

	// Value is the event itself, any bytes. An empty Value is an event; a nil
	// one is a tombstone, which deletes the key from a compacted topic.
	Value []byte

	// Headers go along. Keys that begin with "diaspora-" are the system's.
	Headers []Header

	// Time is when it happened. Default: when it is logged. It travels in a
	// header, as the cluster stamps records with the time of their arrival.
	Time time.Time

	// ID is unique to the event. Default: made by the Logger. Whoever logs an
	// event a second time and gives the same ID lets readers drop the repeat.
	ID string

	err error // why the event could not be made; reported when it is logged
}

// Header is a name and a value that travel with an event.
type Header struct {
	Key   string
	Value []byte
}

// Record is an event in the cluster.
type Record struct {
	Event

	Partition int32
	Offset    int64

	// Stored is the cluster's own timestamp: for claimed topics, when the
	// cluster received the event. Zero in the callback of [Logger.Send].
	Stored time.Time
}

// JSON returns an event whose value is v as JSON, without HTML escapes. If v
// cannot be encoded, logging the event fails with [ErrInvalid].
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

// jsonFault says why a value does not decode, without showing the value.
func jsonFault(err error) string {
	var syntax *json.SyntaxError
	var mismatch *json.UnmarshalTypeError
	switch {
	case errors.As(err, &mismatch):
		kind, _, _ := strings.Cut(mismatch.Value, " ") // "number 31415"
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
	case !kafkaTopic(ev.Topic):
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
			return invalid("header %q: names that begin with %q are the system's", ev.Headers[i].Key, headerPrefix)
		}
	}
	if size := eventBytes(ev); size > maxBytes {
		return invalid("the event has %d bytes; the cluster takes at most %d", size, maxBytes)
	}
	return nil
}

const maxIDBytes = 256

// eventBytes returns the size of ev as it is limited: key, value and headers,
// those of the system included.
func eventBytes(ev *Event) int {
	size := len(ev.Key) + len(ev.Value) + systemHeaderBytes
	for i := range ev.Headers {
		size += len(ev.Headers[i].Key) + len(ev.Headers[i].Value)
	}
	return size
}

// systemHeaderBytes is about what the headers of the system take.
const systemHeaderBytes = len(HeaderID) + len(HeaderTime) + 16 + 1 + 13 + 30

// ids makes IDs that are unique without asking anybody: 80 random bits and a counter.
type ids struct {
	prefix string // "k3v9x0q2m7ta5h1c-"
	last   atomic.Uint64
}

// idDigits are the digits of base 32 that cannot be mistaken for each other.
const idDigits = "0123456789abcdefghjkmnpqrstvwxyz"

func newIDs() *ids {
	var random [10]byte
	rand.Read(random[:])
	encoding := base32.NewEncoding(idDigits).WithPadding(base32.NoPadding)
	return &ids{prefix: encoding.EncodeToString(random[:]) + "-"}
}

// put writes the next number to buf, which holds maxCounterBytes, and returns its length.
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
	maxCounterBytes = 13 // of 64 bits

	// timeLayout is RFC 3339 with milliseconds, in UTC.
	timeLayout = "2006-01-02T15:04:05.000Z"
)

// timeText caches the text of a time, which many of the events in a row share.
type timeText struct {
	milli int64
	text  string
}

// timeFormat formats the present cheaply.
type timeFormat struct{ last atomic.Pointer[timeText] }

// putNow writes now to buf, as timeLayout.
func (f *timeFormat) putNow(buf []byte, now time.Time) {
	milli := now.UnixMilli()
	last := f.last.Load()
	if last == nil || last.milli != milli {
		last = &timeText{milli, now.UTC().Format(timeLayout)}
		f.last.Store(last)
	}
	copy(buf, last.text)
}

// MaxTopicLength bounds a topic's name, in bytes, as Kafka does.
const MaxTopicLength = 249

// ValidTopic returns nil if name can be claimed: letters, digits and underscores
// of ASCII, at most [MaxTopicLength], and the first is no underscore, for such
// names are the system's. Otherwise it returns a [*TopicError] with [ErrInvalid]
// that says what is wrong.
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

// kafkaTopic reports whether a cluster may have a topic of that name. Not all of
// them can be claimed; see [ValidTopic].
func kafkaTopic(name string) bool {
	if name == "" || len(name) > MaxTopicLength || name == "." || name == ".." {
		return false
	}
	for i := range len(name) {
		if c := name[i]; !topicByte(c) && c != '.' && c != '-' {
			return false
		}
	}
	return true
}

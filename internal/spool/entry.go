package spool

import (
	"encoding/binary"
	"errors"
	"strings"
	"time"
)

// Entry is an event in the spool.
type Entry struct {
	Topic   string    `json:"topic"`
	Key     []byte    `json:"key"`   // nil means no key, which differs from an empty key
	Value   []byte    `json:"value"` // nil means a tombstone, which differs from an empty value
	Headers []Header  `json:"headers,omitempty"`
	ID      string    `json:"id"`
	Time    time.Time `json:"time,omitzero"` // read back in UTC
}

// Header is a name and a value that travel with an event.
type Header struct {
	Key   string `json:"key"`
	Value []byte `json:"value"`
}

// Record is an entry with its place in the spool.
type Record struct {
	Entry

	// Position increases from entry to entry, by one or more, and does not change when the spool is
	// opened again.
	Position uint64
}

// MaxEntryBytes is the largest size of an encoded entry.
const MaxEntryBytes = 1<<24 - 1

// The flags of a frame. The flags of an entry say which of its fields are present.
const (
	flagFirst   = 1 << iota // all earlier frames of the segment were synced before this one was written
	flagKey                 // the key is not nil
	flagValue               // the value is not nil
	flagHeaders             // there are headers
	flagMilli               // the time is stored in whole milliseconds
	flagTime                // the time is stored in seconds and nanoseconds

	kindMask  = 0xc0
	kindEntry = 0x40 // the only kind in version 1
)

// appendEntry appends the body of e's frame to dst. It returns dst and the flags for the frame's
// header. The fields are in the order time, topic, ID, key, headers. The value is the rest.
func appendEntry(dst []byte, e *Entry) ([]byte, byte) {
	flags := byte(kindEntry)
	if !e.Time.IsZero() {
		if nanos := e.Time.Nanosecond(); nanos%1e6 == 0 {
			flags |= flagMilli
			dst = binary.AppendVarint(dst, e.Time.UnixMilli())
		} else {
			flags |= flagTime
			dst = binary.AppendVarint(dst, e.Time.Unix())
			dst = binary.AppendUvarint(dst, uint64(nanos))
		}
	}
	dst = appendBytes(dst, e.Topic)
	dst = appendBytes(dst, e.ID)
	if e.Key != nil {
		flags |= flagKey
		dst = appendBytes(dst, e.Key)
	}
	if len(e.Headers) > 0 {
		flags |= flagHeaders
		dst = binary.AppendUvarint(dst, uint64(len(e.Headers)))
		for i := range e.Headers {
			h := &e.Headers[i]
			dst = appendBytes(dst, h.Key)
			if h.Value == nil {
				dst = append(dst, 0)
				continue
			}
			dst = binary.AppendUvarint(dst, uint64(len(h.Value))+1)
			dst = append(dst, h.Value...)
		}
	}
	if e.Value != nil {
		flags |= flagValue
		dst = append(dst, e.Value...)
	}
	return dst, flags
}

func appendBytes[T string | []byte](dst []byte, s T) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(s)))
	return append(dst, s...)
}

// entryBytes returns an upper bound of the size of the encoded e.
func entryBytes(e *Entry) int {
	n := 48 + len(e.Topic) + len(e.ID) + len(e.Key) + len(e.Value)
	for i := range e.Headers {
		n += 20 + len(e.Headers[i].Key) + len(e.Headers[i].Value)
	}
	return n
}

var errEntry = errors.New("the frame does not hold an entry")

// parseEntry is the inverse of appendEntry. The entry's slices point into body.
func parseEntry(flags byte, body []byte, text *texts) (Entry, error) {
	p := parser{rest: body}
	var e Entry
	switch {
	case flags&flagMilli != 0:
		e.Time = time.UnixMilli(p.varint()).UTC()
	case flags&flagTime != 0:
		seconds := p.varint()
		e.Time = time.Unix(seconds, int64(p.uvarint()%1e9)).UTC()
	}
	e.Topic = text.topic(p.bytes(p.uvarint()))
	e.ID = text.id(p.bytes(p.uvarint()))
	if flags&flagKey != 0 {
		e.Key = p.bytes(p.uvarint())
	}
	if flags&flagHeaders != 0 {
		e.Headers = p.headers()
	}
	if flags&flagValue != 0 {
		e.Value = p.bytes(uint64(len(p.rest)))
	}
	if p.bad || len(p.rest) > 0 || flags&kindMask != kindEntry {
		return Entry{}, errEntry
	}
	return e, nil
}

// texts makes the strings of entries that are read one after another, with few allocations: successive
// entries of one topic share its name, and many IDs share one piece of memory.
type texts struct {
	last string // the topic
	ids  strings.Builder
}

const idsBytes = 16 << 10

func (t *texts) topic(b []byte) string {
	if string(b) != t.last {
		t.last = string(b)
	}
	return t.last
}

func (t *texts) id(b []byte) string {
	if t.ids.Cap()-t.ids.Len() < len(b) {
		t.ids = strings.Builder{} // the strings that it has made keep its memory
		t.ids.Grow(max(idsBytes, len(b)))
	}
	t.ids.Write(b)
	return t.ids.String()[t.ids.Len()-len(b):]
}

// parser decodes fields from the front of b, which may be damaged. After an error, bad is set and
// all further fields are zero.
type parser struct {
	rest []byte
	bad  bool
}

func (p *parser) uvarint() uint64 {
	v, n := binary.Uvarint(p.rest)
	return v * uint64(p.advance(n))
}

func (p *parser) varint() int64 {
	v, n := binary.Varint(p.rest)
	return v * int64(p.advance(n))
}

// advance removes n bytes. It returns 1, or 0 if n says that the field was not valid.
func (p *parser) advance(n int) int {
	if n <= 0 || p.bad {
		p.bad = true
		return 0
	}
	p.rest = p.rest[n:]
	return 1
}

// bytes returns the next n bytes. The result is nil only if there are not that many.
func (p *parser) bytes(n uint64) []byte {
	if p.bad || n > uint64(len(p.rest)) {
		p.bad = true
		return nil
	}
	b := p.rest[:n:n]
	p.rest = p.rest[n:]
	return b
}

func (p *parser) headers() []Header {
	n := p.uvarint()
	// Each header takes at least two bytes, so the allocation is bounded by the input's size.
	if n == 0 || n > uint64(len(p.rest)/2) {
		p.bad = true
		return nil
	}
	headers := make([]Header, 0, n)
	for range n {
		h := Header{Key: string(p.bytes(p.uvarint()))}
		if size := p.uvarint(); size > 0 {
			h.Value = p.bytes(size - 1)
		}
		if p.bad {
			return nil
		}
		headers = append(headers, h)
	}
	return headers
}

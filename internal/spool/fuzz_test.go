package spool

import (
	"bytes"
	"encoding/json"
	"io"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// golden adds those golden files to the seeds whose names have the prefix and the suffix.
func golden(f *testing.F, prefix, suffix string) {
	names, err := filepath.Glob("testdata/v*/" + prefix + "*" + suffix)
	if err != nil || len(names) == 0 {
		f.Fatalf("golden files %s*%s: %v, %v", prefix, suffix, names, err)
	}
	for _, name := range names {
		data := testkit.ReadFile(f, name)
		f.Add(data)
	}
}

// fuzzSeeds are those of the segments that the fuzzer makes.
var fuzzSeeds = newSeeds(uuid{1, 2, 3}, 1)

// FuzzFrames scans arbitrary bytes. Each frame found must be in them byte for byte, in order, and a
// good frame appended to them must be found too.
func FuzzFrames(f *testing.F) {
	golden(f, "0", ".seg")
	var whole []byte
	for n := range 3 {
		e := numbered(n)
		whole = appendFrame(whole, uint32(n), &e)
	}
	f.Add(whole)
	f.Add(append(whole[:len(whole)-3:len(whole)-3], whole...))
	f.Fuzz(func(t *testing.T, content []byte) {
		segment := append(make([]byte, headerBytes), content...)
		scan := newScanner(bytes.NewReader(segment), fuzzSeeds, int64(len(segment)))
		last := int64(headerBytes)
		for {
			found, err := scan.next()
			if err != nil && err != io.EOF {
				t.Fatal(err)
			}
			if found.at-found.bad != last {
				t.Fatalf("%d bad bytes before %d, after %d", found.bad, found.at, last)
			}
			if err == io.EOF {
				break
			}
			last = found.at + frameHeaderBytes + int64(found.length)
			if checksum(fuzzSeeds.body, segment[found.at+frameHeaderBytes:last]) != found.body {
				t.Fatal("a frame with a wrong checksum")
			}
			parseEntry(found.flags, found.content, new(texts))
		}
		if cap(scan.buf) > max(2*len(segment), 1) {
			t.Fatalf("%d bytes of memory for %d", cap(scan.buf), len(segment))
		}
		for at := headerBytes; at+frameHeaderBytes <= len(segment); at++ {
			if fr, ok := fuzzSeeds.parse(segment[at : at+frameHeaderBytes]); ok && at+frameHeaderBytes+fr.length > len(segment) {
				return // the appended frame would be taken for its body
			}
		}
		e := numbered(7)
		at := len(segment)
		segment = appendFrame(segment, scan.index, &e)
		scan = newScanner(bytes.NewReader(segment), fuzzSeeds, int64(len(segment)))
		for {
			found, err := scan.next()
			if err != nil {
				t.Fatalf("the frame at the end is not found: %v", err)
			}
			if found.at == int64(at) {
				return
			}
		}
	})
}

func appendFrame(b []byte, index uint32, e *Entry) []byte {
	body, flags := appendEntry(nil, e)
	header := make([]byte, frameHeaderBytes)
	fuzzSeeds.put(header, frame{len(body), flags, index, checksum(fuzzSeeds.body, body)})
	return append(append(b, header...), body...)
}

// FuzzEntry parses the body of a frame. An entry that parses must survive another round trip.
func FuzzEntry(f *testing.F) {
	for n := range 3 {
		e := numbered(n)
		e.Headers = []Header{{"a", nil}, {"b", []byte("c")}}
		body, flags := appendEntry(nil, &e)
		f.Add(flags, body)
	}
	f.Fuzz(func(t *testing.T, flags byte, body []byte) {
		e, err := parseEntry(flags, body, new(texts))
		if err != nil {
			return
		}
		again, flags := appendEntry(nil, &e)
		if len(again) > entryBytes(&e) {
			t.Fatalf("%d bytes, of at most %d", len(again), entryBytes(&e))
		}
		if back, err := parseEntry(flags, again, new(texts)); err != nil || !reflect.DeepEqual(back, e) {
			t.Fatalf("%+v came back as %+v (%v)", e, back, err)
		}
	})
}

func FuzzSegmentHeader(f *testing.F) {
	golden(f, "0", ".seg")
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseSegmentHeader(b)
		if err == nil && !bytes.Equal(h.encode(), b[:headerBytes]) {
			t.Fatalf("%+v does not come back", h)
		}
		// Fix the checksum, so that the fuzzer gets past it.
		if len(b) >= headerBytes {
			h, err = parseSegmentHeader(sealed(b[:headerBytes]))
			if err == nil && len(h.subject) > maxSubjectBytes {
				t.Fatalf("%+v", h)
			}
		}
	})
}

// sealed writes the right checksum to the end of b.
func sealed(b []byte) []byte {
	n := len(b) - 4
	return le.AppendUint32(bytes.Clone(b[:n]), checksum(0, b[:n]))
}

func FuzzCursor(f *testing.F) {
	golden(f, "cursor", "")
	golden(f, "acked", "")
	f.Fuzz(func(t *testing.T, b []byte) {
		parseCursor(b)
		if len(b) < cursorFixed {
			return
		}
		b = bytes.Clone(b) // with a good magic, length and checksum
		copy(b, cursorMagic)
		le.PutUint32(b[12:], uint32(len(b)))
		c, err := parseCursor(sealed(b))
		if err != nil {
			return
		}
		if back, err := parseCursor(c.encode(len(b) + 100)); err != nil || !reflect.DeepEqual(back, c) {
			t.Fatalf("%+v came back as %+v (%v)", c, back, err)
		}
	})
}

func FuzzOwner(f *testing.F) {
	o := Owner{Host: "edge", Boot: "1-2", PID: 7, Started: time.Unix(1, 0).UTC(), Token: "abc", Beat: 3}
	content, err := o.encode()
	testkit.Must(f, err)
	f.Add(content)
	f.Fuzz(func(t *testing.T, b []byte) {
		if o, err := parseOwner(b); err == nil && (o.Host == "" || o.PID <= 0) {
			t.Fatalf("%+v", o)
		}
	})
}

func FuzzPoison(f *testing.F) {
	golden(f, "quarantine", "")
	f.Fuzz(func(t *testing.T, b []byte) {
		parsePoison(b)
		// Fix the checksum.
		line := append([]byte(strings.Repeat("0", 8)+" "), b...)
		copy(line, hexChecksum(b))
		p, err := parsePoison(line)
		if err == nil && !json.Valid(b) {
			t.Fatalf("%+v of what is no JSON", p)
		}
	})
}

// FuzzSpans compares spans with a set.
func FuzzSpans(f *testing.F) {
	f.Add([]byte{1, 1, 3, 1, 2, 1, 0, 1})
	f.Fuzz(func(t *testing.T, ops []byte) {
		var s spans
		set := map[uint64]bool{}
		for ; len(ops) >= 2; ops = ops[2:] {
			from := uint64(ops[0])
			to := from + uint64(ops[1]%8)
			want := uint64(0)
			for at := from; at < to; at++ {
				if !set[at] {
					want++
				}
				set[at] = true
			}
			if got := s.add(from, to); got != want {
				t.Fatalf("add(%d, %d) = %d, want %d", from, to, got, want)
			}
		}
		n := uint64(0)
		for at := range uint64(300) {
			if s.has(at) != set[at] {
				t.Fatalf("has(%d) = %v", at, s.has(at))
			}
			if set[at] {
				n++
			}
		}
		if s.low+s.count() != n {
			t.Fatalf("%d and %d, want %d together", s.low, s.count(), n)
		}
		last := s.low
		for _, e := range s.above {
			if e.from <= last || e.to <= e.from {
				t.Fatalf("%+v is not in order", s)
			}
			last = e.to
		}
	})
}

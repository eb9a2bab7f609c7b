package claims

import (
	"bytes"
	"slices"
)

// fieldNames are the fields of a record, in the order in which [encode] writes them.
var fieldNames = []string{
	"v", "op", "id", "time", "by", "topic", "group", "partitions", "retention_ms", "description", "limit", "claim",
	"key", "name", "hash", "topics", "read", "write", "expires", "subject", "why",
}

// parse decodes a record that looks exactly as [encode] writes it: no white space, fields in their
// order, no escapes in strings. It is several times as fast as package json, and a start reads
// millions of records. For anything else it returns false, and the caller must use package json. If
// it returns true, package json would return the same record.
func parse(value []byte) (r record, ok bool) {
	p := parser{left: value}
	if !p.skip("{") {
		return r, false
	}
	next := 0 // the first field that may come next
	for {
		name, ok := p.text()
		if !ok || !p.skip(":") {
			return r, false
		}
		field := slices.IndexFunc(fieldNames[next:], func(f string) bool { return f == string(name) })
		if field < 0 || !p.field(&r, fieldNames[next+field]) {
			return r, false
		}
		next += field + 1
		switch {
		case p.skip(","):
		case p.skip("}"):
			return r, len(p.left) == 0
		default:
			return r, false
		}
	}
}

// parser is a position in a record.
type parser struct{ left []byte }

func (p *parser) field(r *record, name string) bool {
	var n int64
	var ok bool
	switch name {
	case "v":
		ok = p.int(&r.Version)
	case "partitions":
		ok = p.int(&r.Partitions)
	case "limit":
		ok = p.int(&r.Limit)
	case "retention_ms":
		r.RetentionMS, ok = p.number()
	case "claim":
		n, ok = p.number()
		r.Claim = &n
	case "op":
		ok = p.string(&r.Op)
	case "id":
		ok = p.string(&r.ID)
	case "by":
		ok = p.string(&r.By)
	case "topic":
		ok = p.string(&r.Topic)
	case "group":
		ok = p.string(&r.Group)
	case "description":
		ok = p.string(&r.Description)
	case "key":
		ok = p.string(&r.Key)
	case "name":
		ok = p.string(&r.Name)
	case "subject":
		ok = p.string(&r.Subject)
	case "why":
		ok = p.string(&r.Why)
	case "time":
		ok = p.unmarshal(r.Time.UnmarshalText)
	case "expires":
		ok = p.unmarshal(r.Expires.UnmarshalText)
	case "hash":
		ok = p.unmarshal(r.Hash.UnmarshalText)
	case "read":
		r.Read, ok = p.bool()
	case "write":
		r.Write, ok = p.bool()
	case "topics":
		r.Topics, ok = p.list()
	}
	return ok
}

// skip skips text if it comes next.
func (p *parser) skip(text string) bool {
	if len(p.left) < len(text) || string(p.left[:len(text)]) != text {
		return false
	}
	p.left = p.left[len(text):]
	return true
}

// text returns the content of a string of ASCII characters without escapes.
func (p *parser) text() ([]byte, bool) {
	if !p.skip(`"`) {
		return nil, false
	}
	end := bytes.IndexByte(p.left, '"')
	if end < 0 {
		return nil, false
	}
	text := p.left[:end]
	for _, c := range text {
		if c < ' ' || c >= 0x7f || c == '\\' {
			return nil, false
		}
	}
	p.left = p.left[end+1:]
	return text, true
}

func (p *parser) string(into *string) bool {
	text, ok := p.text()
	*into = string(text)
	return ok
}

func (p *parser) unmarshal(into func([]byte) error) bool {
	text, ok := p.text()
	return ok && into(text) == nil
}

func (p *parser) list() (list []string, ok bool) {
	if !p.skip("[") {
		return nil, false
	}
	for {
		text, ok := p.text()
		if !ok {
			return nil, false
		}
		list = append(list, string(text))
		if !p.skip(",") {
			return list, p.skip("]")
		}
	}
}

func (p *parser) bool() (value, ok bool) {
	if p.skip("true") {
		return true, true
	}
	return false, p.skip("false")
}

// int reads a number that fits into 32 bits, so that it fits into an int on every machine.
func (p *parser) int(into *int) bool {
	n, ok := p.number()
	*into = int(n)
	return ok && int64(int32(n)) == n
}

// number reads an integer of at most 18 digits, which fits into an int64.
func (p *parser) number() (n int64, ok bool) {
	negative := p.skip("-")
	digits := 0
	for digits < len(p.left) && '0' <= p.left[digits] && p.left[digits] <= '9' {
		n = n*10 + int64(p.left[digits]-'0')
		if digits++; digits > 18 {
			return 0, false
		}
	}
	if digits == 0 || digits > 1 && p.left[0] == '0' {
		return 0, false
	}
	p.left = p.left[digits:]
	if negative {
		n = -n
	}
	return n, true
}

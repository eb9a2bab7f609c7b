package groups

import (
	"bytes"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestOffsetCodec(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		o := storedOffset{
			partition: rapid.Int32Min(0).Draw(rt, "partition"), offset: rapid.Int64().Draw(rt, "offset"), epoch: rapid.Int32().Draw(rt, "epoch"),
			at: rapid.Int64().Draw(rt, "at"), expires: rapid.Int64().Draw(rt, "expires"), metadata: rapid.String().Draw(rt, "metadata"),
			topicID: [16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(rt, "ID")),
		}
		group, topic := rapid.String().Draw(rt, "group"), rapid.String().Draw(rt, "topic")
		k, err := parseKey(appendOffsetKey(nil, group, topic, o.partition))
		if want := (key{kind: kindOffset, group: group, topic: topic, partition: o.partition}); err != nil || k != want {
			rt.Fatalf("parseKey = %+v, %v, want %+v", k, err, want)
		}
		got, err := parseOffset(o.partition, appendOffset(nil, &o))
		if err != nil || got != o {
			rt.Fatalf("parseOffset = %+v, %v, want %+v", got, err, o)
		}
	})
}

func TestClassicCodec(t *testing.T) {
	instance := "i"
	g := newClassicGroup(time.UnixMilli(1700000000123))
	g.generation, g.protocolType, g.protocol, g.state = 7, "consumer", "range", stable
	for _, m := range []*member{
		{id: "b", clientID: "c", host: "/h", rebalanceTimeout: time.Minute, sessionTimeout: time.Second, protocols: []protocol{{"range", []byte("x")}}, assignment: []byte("1")},
		{id: "a", instance: &instance, protocols: []protocol{{"range", []byte{}}}, assignment: []byte{}},
	} {
		g.add(m)
	}
	g.leader = "a"
	got, err := parseClassic(appendClassic(nil, g, nil))
	if err != nil || !reflect.DeepEqual(got, g) {
		t.Fatalf("parseClassic = %+v, %v, want %+v", got, err, g)
	}
	got, err = parseClassic(appendClassic(nil, g, map[string][]byte{"a": []byte("new")}))
	if err != nil || string(got.members["a"].assignment) != "new" || len(got.members["b"].assignment) != 0 {
		t.Fatalf("parseClassic = %+v, %v", got, err)
	}

	empty := newClassicGroup(time.UnixMilli(1700000000123))
	got, err = parseClassic(appendClassic(nil, empty, nil))
	if err != nil || !reflect.DeepEqual(got, empty) {
		t.Fatalf("parseClassic = %+v, %v, want %+v", got, err, empty)
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add(classicKey("g"))
	f.Add(partKey("g", "mid"))
	f.Add(appendOffsetKey(nil, "g", "t", 1<<31-1))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := parseKey(b)
		if err != nil {
			return
		}
		again := map[byte][]byte{
			kindClassic: classicKey(k.group), kindConsumer: partKey(k.group, k.part), kindOffset: appendOffsetKey(nil, k.group, k.topic, k.partition),
		}[k.kind]
		if k2, err := parseKey(again); err != nil || k2 != k {
			t.Fatalf("parseKey(%q) = %+v, and again %+v, %v", b, k, k2, err)
		}
	})
}

func FuzzParseOffset(f *testing.F) {
	f.Add(appendOffset(nil, &storedOffset{offset: 5, epoch: -1, at: 1700000000123, expires: -1, metadata: "m"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := parseOffset(1, b)
		if err != nil {
			return
		}
		if again, err := parseOffset(1, appendOffset(nil, &o)); err != nil || again != o {
			t.Fatalf("parseOffset(%q) = %+v, and again %+v, %v", b, o, again, err)
		}
	})
}

func FuzzParseClassic(f *testing.F) {
	g := newClassicGroup(time.UnixMilli(1))
	f.Add(appendClassic(nil, g, nil))
	g.protocolType, g.protocol = "consumer", "range"
	for _, id := range []string{"a", "b"} {
		g.add(&member{id: id, instance: &id, protocols: []protocol{{"range", subscription("t")}}, assignment: []byte("x")})
	}
	f.Add(appendClassic(nil, g, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		g, err := parseClassic(b)
		if err != nil {
			return
		}
		g.subscribe()
		if g.state != empty {
			g.choose()
		}
		once := appendClassic(nil, g, nil)
		again, err := parseClassic(once)
		if err != nil || !bytes.Equal(appendClassic(nil, again, nil), once) {
			t.Fatalf("parseClassic(%q) and again: %v", b, err)
		}
	})
}

func FuzzSubscription(f *testing.F) {
	f.Add(subscription("t", "u"))
	f.Add(subscription())
	f.Add([]byte{0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		addSubscription(map[string]struct{}{}, b)
	})
}

func TestSubscription(t *testing.T) {
	for _, c := range []struct {
		metadata []byte
		want     map[string]struct{}
		ok       bool
	}{
		{subscription("t", "u", "t"), map[string]struct{}{"t": {}, "u": {}}, true},
		{subscription(), map[string]struct{}{}, true},
		{nil, nil, false},
		{[]byte{0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0}, nil, false},               // version -1
		{[]byte{0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0}, nil, false},         // no list
		{[]byte{0, 0, 0, 0, 0, 1, 0, 5, 't', 0, 0, 0, 0}, nil, false},          // a short name
		{[]byte{0, 0, 0, 0, 0, 0, 0, 0, 0}, nil, false},                        // no user data
		{[]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 1}, nil, false},                     // short user data
		{[]byte{0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 9}, map[string]struct{}{}, true}, // a later version with more data at the end
	} {
		got := map[string]struct{}{}
		ok := addSubscription(got, c.metadata)
		if ok != c.ok || (ok && !reflect.DeepEqual(got, c.want)) {
			t.Errorf("addSubscription(%q) = %v, %v, want %v, %v", c.metadata, got, ok, c.want, c.ok)
		}
	}
}

func TestDamagedJournal(t *testing.T) {
	for _, e := range []entry{
		{Key: []byte{}},
		{Key: []byte("?")},
		{Key: []byte("o\x05g")},
		{Key: classicKey("g"), Value: []byte{}},
		{Key: classicKey("g"), Value: []byte{2}},
		{Key: appendOffsetKey(nil, "g", "t", 0), Value: []byte{1}},
		{Key: partKey("g", ""), Value: []byte{1}},
	} {
		_, err := open(Config{Topics: &testTopics{}}, func(_ Config, load func(entry) error) (store, error) {
			return &testStore{}, load(e)
		})
		if err == nil {
			t.Errorf("open with %q: no error", e)
		}
	}
}

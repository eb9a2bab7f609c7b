package gateway

import (
	"encoding/binary"
	"hash/crc32"
	"math"
	"math/rand/v2"
	"reflect"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// bodies generates requests that are well-formed but random otherwise: all the fields of kmsg's
// types, with values that are likely to reach interesting code.
type bodies struct {
	rand    *rand.Rand
	topicID [16]byte

	// Values taken from the broker's responses: member IDs, epochs, producer IDs.
	strings []string
	ints    []int64
}

// harvest keeps some values of a response for later requests.
func (b *bodies) harvest(v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() && v.Type().Field(i).Name != "Version" {
				b.harvest(v.Field(i))
			}
		}
	case reflect.Pointer:
		if !v.IsNil() {
			b.harvest(v.Elem())
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() != reflect.Uint8 {
			for i := range min(3, v.Len()) {
				b.harvest(v.Index(i))
			}
		}
	case reflect.String:
		b.strings = keep(b.rand, b.strings, v.String())
	case reflect.Int16, reflect.Int32, reflect.Int64:
		b.ints = keep(b.rand, b.ints, v.Int())
	}
}

// keep adds value to a pool of at most 32.
func keep[T any](r *rand.Rand, pool []T, value T) []T {
	if len(pool) < 32 {
		return append(pool, value)
	}
	pool[r.IntN(len(pool))] = value
	return pool
}

func (b *bodies) request(key, version int16) kmsg.Request {
	request := kmsg.RequestForKey(key)
	request.SetVersion(version)
	if d, ok := request.(interface{ Default() }); ok {
		d.Default()
	}
	b.fill(reflect.ValueOf(request).Elem(), true)
	request.SetVersion(version)
	return request
}

func (b *bodies) fill(v reflect.Value, top bool) {
	if b.rand.IntN(12) == 0 {
		return // the default
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if f.IsExported() && f.Name != "UnknownTags" && f.Name != "ReplicaState" && !(top && f.Name == "Version") {
				b.fill(v.Field(i), false)
			}
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		b.fill(v.Elem(), false)
	case reflect.String:
		if len(b.strings) > 0 && b.rand.IntN(3) == 0 {
			v.SetString(b.strings[b.rand.IntN(len(b.strings))])
			return
		}
		names := []string{"", "weather", "weather", "weather", "foreign", "group", "group", "member", "txn", "User:ada", "*", "0", "1", "range", "consumer", "uniform", "\x00", "../../x", string(make([]byte, 300)), "retention.ms", "cleanup.policy", "weather.*", "(", "user", "client-id", "diaspora"}
		v.SetString(names[b.rand.IntN(len(names))])
	case reflect.Bool:
		v.SetBool(b.rand.IntN(2) == 0)
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		bits := v.Type().Bits()
		if len(b.ints) > 0 && b.rand.IntN(3) == 0 {
			v.SetInt(b.ints[b.rand.IntN(len(b.ints))] << (64 - bits) >> (64 - bits))
			return
		}
		ints := []int64{0, 0, 0, 1, 1, -1, 2, 3, 10, 100, 1000, 65536, math.MaxInt64 >> (64 - bits), -1 << (bits - 1), b.rand.Int64() >> (64 - bits)}
		v.SetInt(ints[b.rand.IntN(len(ints))] << (64 - bits) >> (64 - bits))
	case reflect.Uint16, reflect.Uint32:
		v.SetUint(uint64(b.rand.Uint32()) >> (32 - v.Type().Bits()))
	case reflect.Float64:
		v.SetFloat([]float64{0, 1, -1, math.Inf(1), math.NaN(), 1e300}[b.rand.IntN(6)])
	case reflect.Array:
		if b.rand.IntN(3) > 0 {
			reflect.Copy(v, reflect.ValueOf(b.topicID))
			return
		}
		for i := range v.Len() {
			v.Index(i).SetUint(uint64(b.rand.IntN(256)))
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			v.SetBytes(b.bytes())
			return
		}
		n := []int{0, 1, 1, 1, 2, 3}[b.rand.IntN(6)]
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range n {
			e := v.Index(i)
			if d := e.Addr().MethodByName("Default"); d.IsValid() {
				d.Call(nil)
			}
			b.fill(e, false)
		}
	case reflect.Map:
	}
}

func (b *bodies) bytes() []byte {
	switch b.rand.IntN(6) {
	case 0:
		return nil
	case 1:
		return []byte{}
	case 2:
		out := make([]byte, b.rand.IntN(80))
		for i := range out {
			out[i] = byte(b.rand.Uint32())
		}
		return out
	case 3:
		m := kmsg.NewConsumerMemberMetadata()
		b.fill(reflect.ValueOf(&m).Elem(), false)
		m.Version = int16(b.rand.IntN(4))
		return m.AppendTo(nil)
	default:
		return b.batch()
	}
}

// batch is a record batch whose length and checksum are right.
func (b *bodies) batch() []byte {
	batch := kmsg.NewRecordBatch()
	batch.Magic = 2
	if b.rand.IntN(2) == 0 {
		b.fill(reflect.ValueOf(&batch).Elem(), false)
		batch.Magic = 2
		batch.FirstOffset = 0
	} else {
		batch.ProducerID, batch.ProducerEpoch, batch.FirstSequence = -1, -1, -1
	}
	if b.rand.IntN(2) == 0 {
		batch.NumRecords = int32(b.rand.IntN(3))
	}
	batch.LastOffsetDelta = batch.NumRecords - 1
	if b.rand.IntN(3) > 0 {
		r := kmsg.NewRecord()
		r.Value = []byte("rain")
		raw := r.AppendTo(nil)
		r.Length = int32(len(raw) - 1)
		batch.Records = r.AppendTo(nil)
	}
	raw := batch.AppendTo(nil)
	binary.BigEndian.PutUint32(raw[8:], uint32(len(raw)-12))
	binary.BigEndian.PutUint32(raw[17:], crc32.Checksum(raw[21:], crc32.MakeTable(crc32.Castagnoli)))
	return raw
}

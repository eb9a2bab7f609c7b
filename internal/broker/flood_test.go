//go:build !race

package broker

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/batch"
	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/disk/disktest"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// filler derives requests from bytes, for fuzzing. The same bytes always give the same request.
type filler struct {
	data    []byte
	topics  []topicID // that exist
	members []fuzzMember
}

// fuzzMember is a member of a group, as the broker reported it.
type fuzzMember struct {
	id         string
	generation int32
}

func (f *filler) byte() byte {
	if len(f.data) == 0 {
		return 0
	}
	b := f.data[0]
	f.data = f.data[1:]
	return b
}

// one picks one of several.
func one[T any](f *filler, all ...T) T { return all[int(f.byte())%len(all)] }

func (f *filler) raw(most int) []byte {
	n := min(int(f.byte()), most, len(f.data))
	b := slices.Clone(f.data[:n])
	f.data = f.data[n:]
	return b
}

// request returns a request of any kind and version that the broker supports.
func (f *filler) request() kmsg.Request {
	keys := slices.Sorted(maps.Keys(apis()))
	key := keys[int(f.byte())%len(keys)]
	request := kmsg.RequestForKey(key)
	a := apis()[key]
	version := a.max
	if n := f.byte(); n > 100 { // the newest one is the most interesting
		version = a.min + int16(n)%(a.max-a.min+1)
	}
	request.SetVersion(version)
	f.fill(reflect.ValueOf(request).Elem())
	if f.byte() < 200 {
		f.tame(request)
	}
	return request
}

// tame makes those fields of a request valid that would otherwise always cause a refusal.
func (f *filler) tame(request kmsg.Request) {
	var m fuzzMember
	if n := len(f.members); n > 0 {
		m = f.members[int(f.byte())%n]
	}
	switch r := request.(type) {
	case *kmsg.ProduceRequest:
		r.TransactionID, r.Acks = nil, one[int16](f, -1, 1, -1, 0)
		for _, t := range r.Topics {
			for i := range t.Partitions {
				t.Partitions[i].Partition = int32(f.byte() % 2)
			}
		}
	case *kmsg.FetchRequest:
		r.ReplicaState.ID, r.SessionEpoch, r.MaxBytes, r.MaxWaitMillis = -1, one[int32](f, -1, 0, 1), 1<<20, 0
		for _, t := range r.Topics {
			for i := range t.Partitions {
				p := &t.Partitions[i]
				p.Partition, p.FetchOffset, p.CurrentLeaderEpoch, p.LastFetchedEpoch, p.PartitionMaxBytes = int32(f.byte()%2), int64(f.byte()%4), -1, -1, 1<<20
			}
		}
	case *kmsg.InitProducerIDRequest:
		r.TransactionalID = nil
	case *kmsg.CreateTopicsRequest:
		r.ValidateOnly = false
		for i := range r.Topics {
			t := &r.Topics[i]
			t.NumPartitions, t.ReplicationFactor, t.ReplicaAssignment = int32(1+f.byte()%3), 1, nil
			if f.byte()%2 > 0 {
				t.Configs = nil
			}
			for j := range t.Configs {
				t.Configs[j] = kmsg.CreateTopicsRequestTopicConfig{Name: one(f, "retention.ms", "retention.bytes", "max.message.bytes", "segment.ms"), Value: kmsg.StringPtr(one(f, "1", "1000", "-1"))}
			}
		}
	case *kmsg.CreatePartitionsRequest:
		r.ValidateOnly = false
		for i := range r.Topics {
			r.Topics[i].Count, r.Topics[i].Assignment = int32(1+f.byte()%5), nil
		}
	case *kmsg.IncrementalAlterConfigsRequest:
		r.ValidateOnly = false
		for i := range r.Resources {
			r.Resources[i].ResourceType = kmsg.ConfigResourceTypeTopic
			for j := range r.Resources[i].Configs {
				c := &r.Resources[i].Configs[j]
				c.Name, c.Op = one(f, "retention.ms", "cleanup.policy", "internal.segment.bytes"), kmsg.IncrementalAlterConfigOp(f.byte()%4)
				c.Value = kmsg.StringPtr(one(f, "1", "1000", "-1", "delete"))
			}
		}
	case *kmsg.AlterConfigsRequest:
		r.ValidateOnly = false
		for i := range r.Resources {
			r.Resources[i].ResourceType = kmsg.ConfigResourceTypeTopic
			for j := range r.Resources[i].Configs {
				c := &r.Resources[i].Configs[j]
				c.Name, c.Value = one(f, "retention.ms", "internal.segment.bytes"), kmsg.StringPtr(one(f, "1", "1000", "-1"))
			}
		}
	case *kmsg.CreateACLsRequest:
		for i := range r.Creations {
			c := &r.Creations[i]
			c.ResourceType = one(f, kmsg.ACLResourceTypeTopic, kmsg.ACLResourceTypeGroup, kmsg.ACLResourceTypeCluster)
			c.ResourcePatternType = one(f, kmsg.ACLResourcePatternTypeLiteral, kmsg.ACLResourcePatternTypePrefixed)
			c.Operation = one(f, kmsg.ACLOperationAll, kmsg.ACLOperationRead, kmsg.ACLOperationWrite, kmsg.ACLOperationDescribe)
			c.PermissionType = one(f, kmsg.ACLPermissionTypeAllow, kmsg.ACLPermissionTypeDeny)
			c.Principal, c.Host = one(f, "User:ada", "User:"+f.text(), "User:*"), one(f, "*", "127.0.0.1")
		}
	case *kmsg.DeleteACLsRequest:
		for i := range r.Filters {
			c := &r.Filters[i]
			c.ResourceType, c.ResourcePatternType = kmsg.ACLResourceTypeAny, one(f, kmsg.ACLResourcePatternTypeAny, kmsg.ACLResourcePatternTypeMatch)
			c.Operation, c.PermissionType, c.Host = kmsg.ACLOperationAny, kmsg.ACLPermissionTypeAny, nil
		}
	case *kmsg.OffsetCommitRequest:
		r.MemberID, r.Generation, r.InstanceID = m.id, m.generation, nil
		if f.byte()%2 > 0 {
			r.MemberID, r.Generation = "", -1
		}
		for _, t := range r.Topics {
			for i := range t.Partitions {
				t.Partitions[i].Partition = int32(f.byte() % 2)
			}
		}
	case *kmsg.JoinGroupRequest:
		r.SessionTimeoutMillis, r.RebalanceTimeoutMillis, r.MemberID, r.ProtocolType = 10_000, 10_000, m.id, "consumer"
		if f.byte()%4 > 0 {
			r.InstanceID = nil
		}
	case *kmsg.SyncGroupRequest:
		r.MemberID, r.Generation, r.InstanceID = m.id, m.generation, nil
		r.ProtocolType, r.Protocol = nil, nil
		for i := range r.GroupAssignment {
			r.GroupAssignment[i].MemberID = m.id
		}
	case *kmsg.HeartbeatRequest:
		r.MemberID, r.Generation, r.InstanceID = m.id, m.generation, nil
	case *kmsg.ConsumerGroupHeartbeatRequest:
		r.MemberID, r.MemberEpoch, r.InstanceID = m.id, one(f, 0, 0, m.generation, -1), nil
		if r.MemberEpoch == 0 {
			r.MemberID, r.RebalanceTimeoutMillis, r.Topics = one(f, "one", "two", m.id), 10_000, []kmsg.ConsumerGroupHeartbeatRequestTopic{}
		}
	}
}

// learn remembers members of groups.
func (f *filler) learn(response kmsg.Response) {
	switch r := response.(type) {
	case *kmsg.JoinGroupResponse:
		f.members = append(f.members, fuzzMember{r.MemberID, r.Generation})
	case *kmsg.ConsumerGroupHeartbeatResponse:
		if r.MemberID != nil {
			f.members = append(f.members, fuzzMember{*r.MemberID, r.MemberEpoch})
		}
	}
}

var requestTags = reflect.TypeFor[kmsg.Tags]()

func (f *filler) fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			field := v.Type().Field(i)
			if field.Type != requestTags && field.Name != "Version" {
				f.fill(v.Field(i))
			}
		}
	case reflect.Pointer:
		if f.byte()%4 > 0 {
			v.Set(reflect.New(v.Type().Elem()))
			f.fill(v.Elem())
		}
	case reflect.String:
		v.SetString(f.text())
	case reflect.Bool:
		v.SetBool(f.byte()%2 > 0)
	case reflect.Float64:
		v.SetFloat(one(f, 0, 1, -1, math.MaxFloat64, math.NaN()))
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(f.number(v.Type().Bits()))
	case reflect.Array: // a topic's ID
		id := topicID{}
		if n := f.byte(); n > 50 && len(f.topics) > 0 {
			id = f.topics[int(n)%len(f.topics)]
		} else if n > 20 {
			id[0] = n
		}
		v.Set(reflect.ValueOf([16]byte(id)))
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			v.SetBytes(f.blob())
			return
		}
		n := int(one(f, 1, 1, 1, 1, 1, 2, 2, 3, 0, 20))
		if n == 0 && f.byte()%2 > 0 {
			return // null
		}
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range n {
			f.fill(v.Index(i))
		}
	}
}

func (f *filler) text() string {
	switch n := f.byte(); {
	case n > 250:
		return string(f.raw(40)) // any bytes
	case n > 245:
		return strings.Repeat("x", 1<<(n-246)*100)
	default:
		return one(f, "a", "a", "a", "b", "c", "g", "g", "h", "User:ada", "User:"+ada, "*", "", "range", "uniform", "consumer", "m",
			"retention.ms", "internal.segment.bytes", "max.message.bytes", "1000", "300", "a.*", "kafka-cluster", "127.0.0.1")
	}
}

func (f *filler) number(bits int) int64 {
	switch n := f.byte(); {
	case n < 150:
		return one[int64](f, 0, 0, 0, 1, 1, 2, 3, -1, -1, -2)
	case n < 180:
		return one[int64](f, 6000, 10_000, 30_000, 300_000, 1<<20) % (1 << (bits - 1))
	case n < 230:
		return int64(int8(f.byte()))
	default:
		return one[int64](f, math.MaxInt64, math.MinInt64, math.MaxInt32, 1<<30, math.MaxInt16, math.MaxInt64-1) >> (64 - bits)
	}
}

// blob returns a batch, something similar to a batch, or other bytes.
func (f *filler) blob() []byte {
	switch n := f.byte(); {
	case n < 40:
		return f.raw(100)
	case n < 50:
		return nil
	default:
		who := nobody
		if n > 130 {
			who = from{int64(f.byte() % 3), int16(f.byte() % 2), int32(f.byte() % 8)}
		}
		b := newBatch(batch.Codec(f.byte()%5), who, []string{"one", "two", "three"}[:1+f.byte()%3]...)
		for range f.byte() % 4 * (n % 2) { // damage
			b[int(f.byte())%len(b)] = f.byte()
		}
		if n%3 == 0 { // with a correct checksum in spite of the damage
			binary.BigEndian.PutUint32(b[17:], checksum(b[21:]))
		}
		return b
	}
}

// sink is the client's end of a connection. It keeps what the broker writes.
type sink struct {
	net.Conn
	bytes.Buffer
}

func (s *sink) Write(b []byte) (int, error)      { return s.Buffer.Write(b) }
func (s *sink) Read(b []byte) (int, error)       { return 0, io.EOF }
func (s *sink) Close() error                     { return nil }
func (s *sink) SetWriteDeadline(time.Time) error { return nil }

// feed makes the broker serve a request, as if from a connection of its own. If the request has to
// wait, its client either waits too or disconnects after a millisecond.
func (b *Broker) feed(as caller, patient bool, frame []byte) (answer []byte, err error) {
	out := &sink{}
	c := &conn{b: b, Conn: out, ctx: b.ctx}
	if as != (caller{}) {
		c.caller.Store(&as)
	}
	if !patient {
		c.ctx, c.cancel = context.WithTimeout(b.ctx, time.Millisecond)
		defer c.cancel()
	}
	in, err := readFrame(bytes.NewReader(sized(len(frame), frame)))
	if err == nil {
		err = c.serveRequest(in)
	}
	c.sessions.end(b)
	return out.Bytes(), err
}

// sized returns a frame that claims to have n bytes, whatever its real size.
func sized(n int, body []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(n)), body...)
}

// encode returns a request without its size, as a client writes it.
func encode(r kmsg.Request) []byte { return kmsg.NewRequestFormatter().AppendRequest(nil, r, 7)[4:] }

// answerTo reads the response to a request, which may be absent.
func answerTo(r kmsg.Request, b []byte) (kmsg.Response, error) {
	if len(b) == 0 {
		return nil, nil
	}
	if len(b) < 8 || int(binary.BigEndian.Uint32(b)) != len(b)-4 || binary.BigEndian.Uint32(b[4:]) != 7 {
		return nil, fmt.Errorf("%d bytes that are no answer", len(b))
	}
	b = b[8:]
	response := r.ResponseKind()
	if response.IsFlexible() && response.Key() != kmsg.ApiVersions.Int16() {
		b = b[1:]
	}
	return response, response.ReadFrom(b)
}

// preparedBroker returns a broker with some data of every kind.
func preparedBroker(t testing.TB, cfg Config) *Broker {
	b := open(t, cfg)
	create(t, b, superUser, newTopic("a", 2, "retention.ms", "-1"), newTopic("b", 1))
	for n := range 3 {
		if got, err := produceTo(b, b.topics.named("a"), 0, newBatch(0, from{0, 0, int32(n)}, "value")); err != nil || got.ErrorCode != 0 {
			t.Fatalf("produce: %+v, %v", got, err)
		}
	}
	if code, err := commitTo(b, "g", b.topics.named("a"), map[int32]int64{0: 1}); err != nil || code != 0 {
		t.Fatalf("commit: %d, %v", code, err)
	}
	grant(t, b, kmsg.ACLResourceTypeTopic, "a", kmsg.ACLOperationAll)
	grant(t, b, kmsg.ACLResourceTypeGroup, "g", kmsg.ACLOperationAll)
	return b
}

// snapshotOf describes everything that a broker stores.
func snapshotOf(b *Broker) string {
	var all strings.Builder
	for _, t := range b.topics.all() {
		fmt.Fprintf(&all, "topic %q %v %d %q\n", t.Name, t.ID, t.Partitions, t.Configs)
		for n, log := range t.partitions {
			if log.End() > 0 {
				fmt.Fprintf(&all, "%d: %d to %d\n", n, log.Start(), log.End())
			}
		}
	}
	for _, x := range b.acls.matching(aclFilter{resource: kmsg.ACLResourceTypeAny, kind: kmsg.ACLResourcePatternTypeAny, operation: kmsg.ACLOperationAny, permission: kmsg.ACLPermissionTypeAny}) {
		fmt.Fprintf(&all, "ACL %+v\n", x)
	}
	groups := b.groups.ListGroups(kmsg.NewPtrListGroupsRequest())
	var names []string
	for _, g := range groups.Groups {
		names = append(names, g.Group)
	}
	slices.Sort(names)
	for _, name := range names {
		request := kmsg.NewPtrOffsetFetchRequest()
		request.Groups = []kmsg.OffsetFetchRequestGroup{{Group: name, MemberEpoch: -1}}
		response, err := call[*kmsg.OffsetFetchResponse](b, request)
		if err != nil {
			fmt.Fprintf(&all, "group %q: %v\n", name, err)
			continue
		}
		for _, t := range response.Groups[0].Topics {
			for _, p := range t.Partitions {
				fmt.Fprintf(&all, "group %q: %x/%d: %d %q\n", name, t.TopicID, p.Partition, p.Offset, *p.Metadata)
			}
		}
	}
	return all.String()
}

// wantSameAgain opens the files of a broker again, as they are and after a clean stop, and requires
// that nothing is missing.
func wantSameAgain(t testing.TB, b *Broker, files *disktest.Model) {
	t.Helper()
	want := snapshotOf(b)
	killed := files.Kill()
	if err := b.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	for name, files := range map[string]disk.FS{"a clean stop": files, "a kill": killed} {
		again, err := Open(Config{Advertise: advertised, files: files})
		if err != nil {
			t.Fatalf("after %s: %v", name, err)
		}
		if got := snapshotOf(again); got != want {
			t.Errorf("after %s there is\n%s\nwant\n%s", name, got, want)
		}
		if err := useBroker(again, 0); err != nil {
			t.Errorf("after %s: %v", name, err)
		}
		if err := again.Close(); err != nil {
			t.Errorf("after %s: Close: %v", name, err)
		}
	}
}

// FuzzRequest makes the broker serve one frame of arbitrary bytes, from the super user, from a
// subject and from a connection that is not signed in.
func FuzzRequest(f *testing.F) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, key := range slices.Sorted(maps.Keys(apis())) {
		for range 4 {
			data := make([]byte, 300)
			for i := range data {
				data[i] = byte(rng.Uint32())
			}
			request := kmsg.RequestForKey(key)
			request.SetVersion(apis()[key].max)
			(&filler{data: data}).fill(reflect.ValueOf(request).Elem())
			f.Add(byte(rng.IntN(3)), encode(request))
		}
	}
	f.Fuzz(func(t *testing.T, who byte, frame []byte) {
		if hasLargeVarint(frame) {
			return // it may be a number of tags, and the gateway lets no such large number through
		}
		files := disktest.New()
		b := preparedBroker(t, Config{files: files})
		b.feed([]caller{superUser, asAda, {}}[who%3], false, frame)
		wantSameAgain(t, b, files)
	})
}

// hasLargeVarint reports whether b has bytes that may be a varint of 2^21 or more.
func hasLargeVarint(b []byte) bool {
	high := 0 // number of consecutive bytes with the highest bit set
	for _, c := range b {
		if high >= 3 && c != 0 {
			return true
		}
		if high++; c < 0x80 {
			high = 0
		}
	}
	return false
}

// FuzzSequence makes the broker serve a sequence of mostly valid requests from several clients.
// Then it opens the files again.
func FuzzSequence(f *testing.F) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		data := make([]byte, 2000)
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		f.Add(data)
	}
	f.Fuzz(checkSequence)
}

const sequenceRequests = 40

func checkSequence(t *testing.T, data []byte) {
	files := disktest.New()
	b := preparedBroker(t, Config{files: files})
	in := &filler{data: data}
	for range sequenceRequests {
		if len(in.data) == 0 {
			break
		}
		in.topics = nil
		for _, topic := range b.topics.all() {
			in.topics = append(in.topics, topic.ID)
		}
		who := one(in, superUser, superUser, asAda)
		request := in.request()
		answer, err := b.feed(who, false, encode(request))
		if err != nil {
			continue // that connection has ended
		}
		response, err := answerTo(request, answer)
		if err != nil {
			t.Errorf("%T %+v: %v", request, request, err)
		}
		in.learn(response)
	}
	wantSameAgain(t, b, files)
}

// TestSequences runs FuzzSequence with random bytes.
func TestSequences(t *testing.T) {
	for seed := range testkit.Scaled(t, "BROKER_SEQUENCES", 500) {
		rng := rand.New(rand.NewPCG(uint64(seed), 4))
		data := make([]byte, 200+rng.IntN(3000))
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		if checkSequence(t, data); t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// peakOf returns the peak growth of memory while f runs.
func peakOf(f func()) (bytes int64) {
	heap := func() int64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	runtime.GC()
	before := heap()
	stop, stopped := make(chan struct{}), make(chan struct{})
	peak := before
	go func() {
		defer close(stopped)
		ticker := time.NewTicker(2 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				peak = max(peak, heap())
			case <-stop:
				return
			}
		}
	}()
	f()
	peak = max(peak, heap())
	close(stop)
	<-stopped
	return peak - before
}

// wantPeak requires that memory grows by at most the given number of MiB while f runs.
func wantPeak(t *testing.T, most int64, f func()) {
	t.Helper()
	began := time.Now()
	peak := peakOf(f)
	t.Logf("memory grows by %d MiB, in %v", peak>>20, time.Since(began).Round(time.Millisecond))
	if peak > most<<20 {
		t.Errorf("memory grows by %d MiB, want at most %d MiB", peak>>20, most)
	}
}

// flooded is a broker with a directory, and a client that it must continue to serve.
type flooded struct {
	*testing.T
	*Broker
	dir  string
	sent int
}

func flood(t *testing.T) *flooded {
	f := &flooded{T: t, dir: t.TempDir()}
	f.Broker = preparedBroker(t, Config{Dir: f.dir})
	create(t, f.Broker, superUser, newTopic("bystander", 1))
	return f
}

// bystand produces a record and reads it back, on a connection of its own.
func (f *flooded) bystand() {
	f.Helper()
	conn, err := f.connect(superUser)
	testkit.Must(f, err)
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	p := kmsg.NewProduceRequestTopicPartition()
	p.Records = newBatch(0, nobody, "bystander")
	to := kmsg.NewProduceRequestTopic()
	to.Topic, to.Partitions = "bystander", append(to.Partitions, p)
	request := kmsg.NewPtrProduceRequest()
	request.Version, request.Acks, request.Topics = 12, -1, append(request.Topics, to)
	response, err := requestor{conn}.Request(f.Context(), request)
	if err != nil {
		f.Fatalf("the bystander cannot produce: %v", err)
	}
	got := response.(*kmsg.ProduceResponse).Topics[0].Partitions[0]
	if got.ErrorCode != 0 || got.BaseOffset != int64(f.sent) {
		f.Fatalf("the bystander's record %d has the offset %d, code %d", f.sent, got.BaseOffset, got.ErrorCode)
	}
	f.sent++
	found, err := fetchRaw(requestor{conn}, topicPartition{"bystander", 0}, got.BaseOffset)
	if batches, bad := batchesOf(found.RecordBatches); err != nil || bad != nil || len(batches) != 1 {
		f.Fatalf("the bystander reads %d batches, %v, %v", len(batches), err, bad)
	}
}

// again opens the directory again.
func (f *flooded) again() {
	f.Helper()
	f.bystand()
	want := snapshotOf(f.Broker)
	testkit.Must(f, f.Close())
	began := time.Now()
	f.Broker = open(f, Config{Dir: f.dir})
	f.Logf("open again in %v", time.Since(began).Round(time.Millisecond))
	if got := snapshotOf(f.Broker); got != want {
		f.Errorf("after a restart %d bytes describe all that is there, want %d", len(got), len(want))
	}
	f.bystand()
}

// many runs f for each number below n, several at a time.
func many(n, atOnce int, f func(i int)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range atOnce {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				f(int(i))
			}
		})
	}
	wg.Wait()
}

// TestFloodOfFrames sends malformed frames, before and after signing in. The broker may answer them
// or close the connection, and must continue to serve others.
func TestFloodOfFrames(t *testing.T) {
	f := flood(t)
	random := make([]byte, 64<<10)
	rng := rand.NewChaCha8([32]byte{1})
	rng.Read(random)
	head := func(key, version int16, rest ...byte) []byte {
		b := binary.BigEndian.AppendUint16(nil, uint16(key))
		b = binary.BigEndian.AppendUint16(b, uint16(version))
		return append(append(b, 0, 0, 0, 7, 0xff, 0xff), rest...)
	}
	endless := []byte{0xff, 0xff, 0xff, 0xff, 0x0f} // 2^32-1 as a varint
	frames := map[string][]byte{
		"size -1":            sized(-1, nil),
		"least size":         sized(math.MinInt32, nil),
		"size 2 GiB":         sized(math.MaxInt32, nil),
		"size over limit":    sized(maxRequestBytes+1, nil),
		"empty":              sized(0, nil),
		"one byte":           sized(1, []byte{0}),
		"half a header":      sized(6, make([]byte, 6)),
		"client ID too long": sized(12, append(head(3, 1)[:8], 0x7f, 0xff, 'x', 'x')),
		"client ID of -2":    sized(10, append(head(3, 1)[:8], 0xff, 0xfe)),
		"key -1":             sized(10, head(-1, 0)),
		"key 999":            sized(10, head(999, 0)),
		"a broker's key":     sized(10, head(4, 0)),
		"version -1":         sized(10, head(3, -1)),
		"version 99":         sized(10, head(3, 99)),
		"endless topics":     sized(16, head(3, 9, append([]byte{0}, endless...)...)),
		"2^31-1 topics":      sized(14, head(3, 1, 0x7f, 0xff, 0xff, 0xff)),
		"-2 topics":          sized(14, head(3, 1, 0xff, 0xff, 0xff, 0xfe)),
		"a byte too many":    sized(15, head(3, 1, 0xff, 0xff, 0xff, 0xff, 0)),
		"HTTP":               []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
		"zeros":              make([]byte, 1<<20),
		"ones":               bytes.Repeat([]byte{0xff}, 1<<20),
		"random bytes":       random,
		"2 MiB, not records": sized(2<<20, append(head(3, 1), make([]byte, 2<<20)...)),
		"half a frame":       sized(1<<20, make([]byte, 1000)),
		"nothing but a size": sized(maxRequestBytes, nil),
	}
	wantPeak(t, 32, func() {
		for name, frame := range frames {
			for _, signedIn := range []bool{true, false} {
				conn, err := f.Dial(t.Context())
				testkit.Must(t, err)
				if signedIn {
					conn = f.signedIn(t, ada)
				}
				conn.SetDeadline(time.Now().Add(10 * time.Second))
				go func() {
					conn.Write(frame)
					if name == "half a frame" || name == "nothing but a size" {
						conn.Close()
					}
				}()
				if _, err := conn.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("%s (signed in: %v): the connection is neither answered nor closed", name, signedIn)
				}
				conn.Close()
			}
		}
	})
	f.again()
}

// TestFloodOfLies takes valid requests of each kind. At many positions it overwrites the bytes with
// a large number or zero, or cuts the request off, except where the result may be a large number of
// tags: see parse.
func TestFloodOfLies(t *testing.T) {
	f := flood(t)
	rng := rand.New(rand.NewPCG(1, 3))
	const step = 5
	sent := 0
	wantPeak(t, 64, func() {
		for _, key := range slices.Sorted(maps.Keys(apis())) {
			for _, version := range []int16{apis()[key].min, apis()[key].max} {
				data := make([]byte, 300)
				for i := range data {
					data[i] = byte(rng.Uint32())
				}
				request := kmsg.RequestForKey(key)
				request.SetVersion(version)
				in := &filler{data: data}
				in.fill(reflect.ValueOf(request).Elem())
				in.tame(request)
				valid := encode(request)
				for at := 0; at < len(valid); at += 1 + rng.IntN(step) {
					for _, lie := range [][]byte{{0x7f, 0xff, 0xff, 0xff}, {0xff, 0xff, 0x05}, {0xff}, {0}, nil} {
						frame := slices.Clone(valid[:at])
						if lie != nil {
							frame = append(append(frame, lie...), valid[min(len(valid), at+len(lie)):]...)
						}
						if request.IsFlexible() && hasLargeVarint(frame) {
							continue
						}
						f.feed([]caller{superUser, asAda}[rng.IntN(2)], false, frame)
						sent++
					}
				}
			}
		}
	})
	t.Logf("%d frames", sent)
	f.again()
}

// TestFloodOfLargeRequests sends, on many connections, requests with as many elements as the
// gateway lets through.
func TestFloodOfLargeRequests(t *testing.T) {
	f := flood(t)
	const elements, connections = 90_000, 24
	var frames [][]byte
	for key, a := range apis() {
		request := kmsg.RequestForKey(key)
		request.SetVersion(a.max)
		eachArray(reflect.ValueOf(request).Elem(), func(array reflect.Value) {
			for n := elements; ; n = n * 9 / 10 {
				array.Set(reflect.MakeSlice(array.Type(), n, n))
				if frame := encode(request); len(frame) <= maxClientRequestBytes {
					frames = append(frames, frame)
					break
				}
			}
			array.SetZero()
		})
	}
	slices.SortFunc(frames, bytes.Compare)
	wantPeak(t, 384, func() {
		many(len(frames), connections, func(i int) { f.feed(asAda, true, frames[i]) })
	})
	t.Logf("%d kinds of requests", len(frames))
	t.Run("the same", func(t *testing.T) {
		request := kmsg.NewPtrDescribeGroupsRequest()
		request.Version, request.Groups = 6, make([]string, elements)
		frame := encode(request)
		wantPeak(t, 256, func() { many(connections, connections, func(int) { f.feed(asAda, true, frame) }) })
	})
	f.again()
}

// eachArray calls f for each array of a request, including nested ones.
func eachArray(v reflect.Value, f func(reflect.Value)) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).Type != requestTags {
				eachArray(v.Field(i), f)
			}
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return
		}
		f(v)
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		eachArray(v.Index(0), f)
		v.SetZero()
	}
}

// TestFloodOfFetchSessions begins sessions with many partitions on many connections.
func TestFloodOfFetchSessions(t *testing.T) {
	f := flood(t)
	request := kmsg.NewPtrFetchRequest()
	request.Version, request.SessionEpoch, request.MaxWaitMillis = 12, 0, 0
	of := kmsg.NewFetchRequestTopic()
	of.Topic = "x"
	for n := range int32(30_000) {
		p := kmsg.NewFetchRequestTopicPartition()
		p.Partition = n
		of.Partitions = append(of.Partitions, p)
	}
	request.Topics = append(request.Topics, of)
	wantPeak(t, 512, func() {
		var open []net.Conn
		for range 6 {
			conn := f.signedIn(t, ada)
			open = append(open, conn)
			for range maxFetchSessions + 1 {
				if _, err := (requestor{conn}).Request(t.Context(), request); err != nil {
					t.Fatal(err)
				}
			}
		}
		if n := f.sessions.Load(); n > maxSessionPartitions || n < maxSessionPartitions/2 {
			t.Errorf("%d partitions in sessions, want at most %d, and not much less", n, maxSessionPartitions)
		}
		for _, conn := range open {
			conn.Close()
		}
	})
	for n := 0; f.sessions.Load() > 0; n++ {
		if n == 5000 {
			t.Fatalf("%d partitions are in sessions of connections that have ended", f.sessions.Load())
		}
		time.Sleep(time.Millisecond)
	}
	f.again()
}

// TestFloodOfBombs concurrently sends batches that decompress to a multiple of the memory.
func TestFloodOfBombs(t *testing.T) {
	f := flood(t)
	var bombs [][]byte
	for codec, writer := range map[batch.Codec]func(io.Writer) io.WriteCloser{
		batch.Gzip: func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) },
		batch.Zstd: func(w io.Writer) io.WriteCloser {
			z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
			testkit.Must(t, err)
			return z
		},
	} {
		for _, size := range []int{100 << 20, 300 << 20} {
			record := []byte{0, 0, 0, 1} // attributes, deltas, no key
			record = append(binary.AppendVarint(record, int64(size)), make([]byte, 0)...)
			head := append(binary.AppendVarint(nil, int64(len(record)+size+1)), record...)
			var out bytes.Buffer
			w := writer(&out)
			w.Write(head)
			zeros := make([]byte, 1<<20)
			for range size / len(zeros) {
				w.Write(zeros)
			}
			w.Write([]byte{0}) // no headers
			w.Close()
			bombs = append(bombs, rawBatch(codec, nobody, 1, out.Bytes()))
		}
	}
	refused := 0
	wantPeak(t, 128, func() {
		var mu sync.Mutex
		many(2*len(bombs), 8, func(i int) {
			got, err := produceTo(f.Broker, f.topics.named("a"), 1, slices.Clone(bombs[i/2]))
			if err != nil {
				t.Error(err)
			}
			if got.ErrorCode != 0 {
				mu.Lock()
				refused++
				mu.Unlock()
			}
		})
	})
	if refused < len(bombs) {
		t.Errorf("%d of %d batches are refused, want those that are too large", refused, 2*len(bombs))
	}
	f.again()
}

// TestFloodOfProducers requests many producer IDs and uses many.
func TestFloodOfProducers(t *testing.T) {
	f := flood(t)
	ids := testkit.Scaled(t, "BROKER_PRODUCERS", 100_000)
	wantPeak(t, 32, func() {
		many(ids, 8, func(int) {
			if got, err := call[*kmsg.InitProducerIDResponse](f.Broker, kmsg.NewPtrInitProducerIDRequest()); err != nil || got.ErrorCode != 0 {
				t.Errorf("new producer: %+v, %v", got, err)
			}
		})
	})
	wantPeak(t, 32, func() {
		topic := f.topics.named("b")
		many(ids/4, 8, func(i int) {
			if got, err := produceTo(f.Broker, topic, 0, newBatch(0, from{int64(i), 0, 0}, "value")); err != nil || got.ErrorCode != 0 {
				t.Errorf("produce: %+v, %v", got, err)
			}
		})
	})
	f.again()
}

// TestFloodOfGroups creates groups and members.
func TestFloodOfGroups(t *testing.T) {
	f := flood(t)
	groups, members := testkit.Scaled(t, "BROKER_GROUPS", 5000), testkit.Scaled(t, "BROKER_MEMBERS", 1000)
	wantPeak(t, 32+int64(groups)/500, func() {
		topic := f.topics.named("a")
		many(groups, 8, func(i int) {
			if code, err := commitTo(f.Broker, fmt.Sprint("group ", i), topic, map[int32]int64{0: 1, 1: 2}); err != nil || code != 0 {
				t.Errorf("commit: %d, %v", code, err)
			}
		})
	})
	wantPeak(t, 128, func() {
		many(members, 8, func(i int) {
			join := kmsg.NewPtrJoinGroupRequest()
			join.Group, join.SessionTimeoutMillis, join.RebalanceTimeoutMillis, join.ProtocolType = "classic", 10_000, 10_000, "consumer"
			join.Protocols = []kmsg.JoinGroupRequestProtocol{{Name: "range", Metadata: make([]byte, 100)}}
			join.InstanceID = kmsg.StringPtr(fmt.Sprint("instance ", i)) // a static member, so that it joins without a second request
			f.gone(join)
			beat := kmsg.NewPtrConsumerGroupHeartbeatRequest()
			beat.Group, beat.MemberID, beat.RebalanceTimeoutMillis = "modern", fmt.Sprint("member ", i), 10_000
			beat.SubscribedTopicNames, beat.Topics = []string{"a"}, []kmsg.ConsumerGroupHeartbeatRequestTopic{}
			if response := f.gone(beat).(*kmsg.ConsumerGroupHeartbeatResponse); response.ErrorCode != 0 {
				t.Errorf("heartbeat: %d, %v", response.ErrorCode, response.ErrorMessage)
			}
			stranger := kmsg.NewPtrJoinGroupRequest()
			*stranger = *join
			stranger.Group, stranger.InstanceID = "strangers", nil
			if response, err := call[*kmsg.JoinGroupResponse](f.Broker, stranger); err != nil || response.ErrorCode != kerr.MemberIDRequired.Code {
				t.Errorf("join: %+v, %v", response, err)
			}
		})
	})
	f.again()
}

// gone carries out a request of a client that has disconnected, so that it never waits.
func (f *flooded) gone(req kmsg.Request) kmsg.Response {
	ctx, cancel := context.WithCancel(f.ctx)
	cancel()
	a := apis()[req.Key()]
	req.SetVersion(a.max)
	response, err := a.handle(f.Broker, &request{ctx: ctx, conn: &conn{b: f.Broker}, caller: superUser, Request: req})
	if err != nil {
		f.Errorf("%T: %v", req, err)
	}
	return response
}

package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// frame builds a frame from integers, strings and bytes.
func frame(parts ...any) []byte {
	body := join(parts...)
	return sized(len(body), body)
}

// sized returns a frame whose size field says n, whether that is true or not.
func sized(n int, parts ...any) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(n)), join(parts...)...)
}

func join(parts ...any) []byte {
	var b []byte
	for _, part := range parts {
		switch part := part.(type) {
		case []byte:
			b = append(b, part...)
		case string:
			b = append(b, part...)
		default:
			b, _ = binary.Append(b, binary.BigEndian, part)
		}
	}
	return b
}

// head is the header of a request without a client ID.
func head(key, version int16) []byte { return join(key, version, int32(7), int16(-1)) }

// flexHead is the same for flexible requests, which have tags.
func flexHead(key, version int16) []byte { return join(head(key, version), int8(0)) }

func produceRequest(version int16) *kmsg.ProduceRequest {
	p := kmsg.NewProduceRequestTopicPartition()
	p.Records = make([]byte, 100)
	topic := kmsg.NewProduceRequestTopic()
	topic.Topic, topic.Partitions = "weather", []kmsg.ProduceRequestTopicPartition{p}
	r := kmsg.NewPtrProduceRequest()
	r.Version, r.Acks, r.Topics = version, -1, []kmsg.ProduceRequestTopic{topic}
	return r
}

type badFrames struct {
	name string
	send [][]byte // each after the answer to the one before
}

// oversized and many are counts that a parser must not believe.
const (
	manyTags  = "\xff\xff\xff\xff\x0f" // 2^32-1
	manyItems = "\xff\xff\xff\xff\x07" // 2^31-2
)

// beforeLogin are bad frames from a client that is not signed in.
func beforeLogin() []badFrames {
	handshake := appendRequest(saslHandshake(1, "OAUTHBEARER"), 7)
	rawHandshake := appendRequest(saslHandshake(0, "OAUTHBEARER"), 7)
	versions := appendRequest(apiVersions(3), 7)
	random := make([]byte, 64<<10)
	rng := rand.NewChaCha8([32]byte{1})
	rng.Read(random)
	list := []badFrames{
		{"size 0", [][]byte{sized(0)}},
		{"size -1", [][]byte{sized(-1)}},
		{"size least", [][]byte{sized(math.MinInt32)}},
		{"size 2 GiB", [][]byte{sized(math.MaxInt32)}},
		{"size over the limit", [][]byte{sized(512<<10 + 1)}},
		{"size of half a header", [][]byte{frame(int32(0))}},
		{"header without client ID", [][]byte{frame(int16(18), int16(0), int32(7))}},
		{"client ID of length -2", [][]byte{frame(int16(18), int16(0), int32(7), int16(-2))}},
		{"client ID longer than the frame", [][]byte{frame(int16(18), int16(0), int32(7), int16(math.MaxInt16), "x")}},
		{"key -1", [][]byte{frame(head(-1, 0))}},
		{"key 999", [][]byte{frame(head(999, 0))}},
		{"key greatest", [][]byte{frame(head(math.MaxInt16, math.MaxInt16))}},
		{"key least", [][]byte{frame(head(math.MinInt16, 0))}},
		{"produce", [][]byte{appendRequest(produceRequest(9), 7)}},
		{"fetch", [][]byte{frame(head(1, 4))}},
		{"metadata", [][]byte{frame(head(3, 1), int32(-1))}},
		{"authenticate first", [][]byte{appendRequest(saslAuthenticate(1, oauthMessage("ada-token")), 7)}},
		{"ApiVersions version -1", [][]byte{frame(head(18, -1))}},
		{"ApiVersions with a body too many", [][]byte{frame(head(18, 0), "x")}},
		{"ApiVersions without its body", [][]byte{frame(flexHead(18, 3))}},
		{"ApiVersions with endless tags in its header", [][]byte{frame(head(18, 3), manyTags)}},
		{"ApiVersions with endless tags", [][]byte{frame(flexHead(18, 3), "\x02a\x021", manyTags)}},
		{"ApiVersions with a tag of 4 GiB", [][]byte{frame(flexHead(18, 3), "\x02a\x021\x01\x00", manyTags)}},
		{"ApiVersions with a number that does not end", [][]byte{frame(flexHead(18, 3), strings.Repeat("\xff", 100))}},
		{"ApiVersions for ever", [][]byte{bytes.Repeat(versions, 100)}},
		{"handshake version 2", [][]byte{frame(head(17, 2), int16(5), "PLAIN")}},
		{"handshake version -1", [][]byte{frame(head(17, -1), int16(5), "PLAIN")}},
		{"handshake of null", [][]byte{frame(head(17, 1), int16(-1))}},
		{"handshake cut short", [][]byte{frame(head(17, 1), int16(11), "OAUTH")}},
		{"handshake with a byte too many", [][]byte{frame(head(17, 1), int16(11), "OAUTHBEARER", "x")}},
		{"handshake for ever", [][]byte{bytes.Repeat(appendRequest(saslHandshake(1, "SCRAM-SHA-256"), 7), 100)}},
		{"second handshake", [][]byte{handshake, handshake}},
		{"ApiVersions after handshake", [][]byte{handshake, versions}},
		{"metadata after handshake", [][]byte{handshake, frame(head(3, 1), int32(-1))}},
		{"authenticate version 3", [][]byte{handshake, frame(flexHead(36, 3), "\x01\x00")}},
		{"authenticate version -1", [][]byte{handshake, frame(head(36, -1), int32(0))}},
		{"authenticate of null", [][]byte{handshake, frame(head(36, 1), int32(-1))}},
		{"authenticate of 2 GiB", [][]byte{handshake, frame(head(36, 1), int32(math.MaxInt32), "n,,")}},
		{"authenticate with a byte too many", [][]byte{handshake, frame(head(36, 1), int32(1), "xx")}},
		{"flexible authenticate of 2 GiB", [][]byte{handshake, frame(flexHead(36, 2), manyItems)}},
		{"flexible authenticate with endless tags", [][]byte{handshake, frame(flexHead(36, 2), "\x02x", manyTags)}},
		{"size over the limit after handshake", [][]byte{handshake, sized(512<<10 + 1)}},
		{"raw size -1", [][]byte{rawHandshake, sized(-1)}},
		{"raw size 2 GiB", [][]byte{rawHandshake, sized(math.MaxInt32)}},
		{"raw size 0", [][]byte{rawHandshake, sized(0)}},
		{"raw nonsense", [][]byte{rawHandshake, frame(strings.Repeat("\x00", 1000))}},
		{"framed login after raw handshake", [][]byte{rawHandshake, appendRequest(saslAuthenticate(1, oauthMessage("ada-token")), 7)}},
		{"raw login after handshake", [][]byte{handshake, frame(oauthMessage("ada-token"))}},
		{"HTTP", [][]byte{[]byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")}},
		{"TLS", [][]byte{clientHello()}},
		{"SSH", [][]byte{[]byte("SSH-2.0-OpenSSH_9.9\r\n")}},
		{"zeros", [][]byte{make([]byte, 1<<20)}},
		{"ones", [][]byte{bytes.Repeat([]byte{0xff}, 1<<20)}},
		{"random bytes", [][]byte{random}},
		{"nothing but the announcement of 512 KiB", [][]byte{sized(512 << 10)}},
		{"nothing", nil},
	}
	for cut := range len(versions) - 4 {
		list = append(list, badFrames{fmt.Sprintf("ApiVersions cut to %d bytes", cut), [][]byte{resize(versions[:4+cut])}})
	}
	login := appendRequest(saslAuthenticate(2, oauthMessage("ada-token")), 7)
	for cut := 0; cut < len(login)-4; cut += 3 {
		list = append(list, badFrames{fmt.Sprintf("login cut to %d bytes", cut), [][]byte{handshake, resize(login[:4+cut])}})
	}
	return list
}

// afterLogin are bad frames from a client that is signed in.
func afterLogin() []badFrames {
	fetch := kmsg.NewPtrFetchRequest()
	fetch.Version, fetch.ReplicaState.ID = 15, 1
	list := []badFrames{
		{"size 0", [][]byte{sized(0)}},
		{"size -1", [][]byte{sized(-1)}},
		{"size 2 GiB", [][]byte{sized(math.MaxInt32)}},
		{"size over the limit", [][]byte{sized(100<<20+1, head(0, 9))}},
		{"metadata of 2 MiB", [][]byte{sized(2<<20, head(3, 1))}},
		{"key 999", [][]byte{frame(head(999, 0))}},
		{"key -1", [][]byte{frame(head(-1, 0))}},
		{"a broker's key", [][]byte{frame(head(4, 0))}},
		{"a controller's key", [][]byte{frame(head(52, 0))}},
		{"envelope", [][]byte{frame(flexHead(58, 0))}},
		{"transaction markers", [][]byte{frame(head(27, 0), int32(0))}},
		{"delegation token", [][]byte{frame(head(38, 1), int32(0), int64(0))}},
		{"authenticate without handshake", [][]byte{appendRequest(saslAuthenticate(1, oauthMessage("ada-token")), 7)}},
		{"handshake version 0", [][]byte{appendRequest(saslHandshake(0, "OAUTHBEARER"), 7)}},
		{"handshake with another mechanism", [][]byte{appendRequest(saslHandshake(1, "SCRAM-SHA-256"), 7)}},
		{"handshake, then metadata", [][]byte{appendRequest(saslHandshake(1, "OAUTHBEARER"), 7), frame(head(3, 1), int32(-1))}},
		{"handshake, then nothing right", [][]byte{appendRequest(saslHandshake(1, "OAUTHBEARER"), 7), sized(-1)}},
		{"produce version 2", [][]byte{frame(head(0, 2))}},
		{"produce version -1", [][]byte{frame(head(0, -1))}},
		{"produce version 100", [][]byte{frame(flexHead(0, 100))}},
		{"metadata version 100", [][]byte{frame(flexHead(3, 100))}},
		{"ApiVersions version -1", [][]byte{frame(head(18, -1))}},
		{"ApiVersions with endless tags", [][]byte{frame(flexHead(18, 3), "\x02a\x021", manyTags)}},
		{"client ID of length -2", [][]byte{frame(int16(3), int16(1), int32(7), int16(-2))}},
		{"client ID longer than the frame", [][]byte{frame(int16(3), int16(1), int32(7), int16(1000), "x")}},
		{"endless tags in the header", [][]byte{frame(head(3, 9), manyTags)}},
		{"endless tags at the end", [][]byte{frame(flexHead(3, 9), "\x01\x00\x00\x00", manyTags)}},
		{"endless tags of a topic", [][]byte{frame(flexHead(3, 9), "\x02\x02x", manyTags)}},
		{"array of length -2", [][]byte{frame(head(3, 1), int32(-2))}},
		{"array of 2^31-1", [][]byte{frame(head(3, 1), int32(math.MaxInt32))}},
		{"compact array of 2^31-2", [][]byte{frame(flexHead(3, 9), manyItems)}},
		{"compact array of 2^32-1", [][]byte{frame(flexHead(3, 9), manyTags)}},
		{"array of a million empty topics", [][]byte{frame(flexHead(3, 9), binary.AppendUvarint(nil, 1_000_000), make([]byte, 1_000_010))}},
		{"topic of length -2", [][]byte{frame(head(3, 1), int32(1), int16(-2))}},
		{"65 bytes too many", [][]byte{frame(head(3, 1), int32(-1), make([]byte, maxTrailingBytes+1))}},
		{"produce of 100 MiB in thirty million topics", [][]byte{sized(100<<20, flexHead(0, 9), "\x00\xff\xff\x00\x00\x00\x00", binary.AppendUvarint(nil, 30_000_000), make([]byte, 1000))}},
		{"records of length -2", [][]byte{frame(head(0, 3), int16(-1), int16(-1), int32(0), int32(1), int16(1), "x", int32(1), int32(0), int32(-2))}},
		{"records longer than the frame", [][]byte{frame(head(0, 3), int16(-1), int16(-1), int32(0), int32(1), int16(1), "x", int32(1), int32(0), int32(1000), "x")}},
		{"fetch of a broker", [][]byte{appendRequest(fetch, 7)}},
		{"HTTP", [][]byte{[]byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")}},
		{"zeros", [][]byte{make([]byte, 1<<20)}},
	}
	for _, version := range []int16{3, 9, 12} {
		request := appendRequest(produceRequest(version), 7)
		for cut := 0; cut < len(request)-4; cut += 2 {
			list = append(list, badFrames{fmt.Sprintf("produce version %d cut to %d bytes", version, cut), [][]byte{resize(request[:4+cut])}})
		}
	}
	return list
}

// clientHello is the beginning of a TLS connection.
func clientHello() []byte {
	var hello hello
	tls.Client(&hello, &tls.Config{InsecureSkipVerify: true}).Handshake()
	return hello.Bytes()
}

type hello struct {
	bytes.Buffer
	raw
}

func (h *hello) Write(b []byte) (int, error) { return h.Buffer.Write(b) }
func (h *hello) Read([]byte) (int, error)    { return 0, context.Canceled }
func (h *hello) Close() error                { return nil }

// TestBadFrames sends frames that no client sends. Each time the gateway must close the connection,
// keep other clients connected, and leak nothing.
func TestBadFrames(t *testing.T) {
	f := start(t, func(cfg *Config) { cfg.LoginTimeout, cfg.FailuresPerAddress = time.Second, 10_000 })
	f.claim(t, "weather", ada)
	f.tokens.issue("ada-token", ada, time.Hour)
	bystander := f.bystand(t)
	before := memory()
	t.Run("before login", func(t *testing.T) {
		for _, test := range beforeLogin() {
			t.Run(test.name, func(t *testing.T) {
				t.Parallel()
				test.run(f.dial(t))
			})
		}
	})
	t.Run("after login", func(t *testing.T) {
		for _, test := range afterLogin() {
			t.Run(test.name, func(t *testing.T) {
				t.Parallel()
				test.run(f.login(t, "ada-token"))
			})
		}
	})
	bystander()
	if grown := int64(memory() - before); grown > 32<<20 {
		t.Errorf("memory has grown by %d bytes, want less than 32 MiB", grown)
	}
	if n := f.gateway.Stats().BadRequests; n < 200 {
		t.Errorf("Stats.BadRequests = %d, want each of them", n)
	}
}

// TestBytesBehindARequest: bytes after a request are ignored, as in Apache Kafka. librdkafka 2.16
// sends 3 bytes too many when it asks for all topics: it reserves space for an array that is then
// null.
func TestBytesBehindARequest(t *testing.T) {
	f := start(t)
	f.claim(t, "weather", ada)
	f.tokens.issue("ada-token", ada, time.Hour)
	c := f.login(t, "ada-token")
	c.send(frame(flexHead(3, 13), "\x00\x00\x00\x00", "\x01\x00\x00"))
	request := kmsg.NewPtrMetadataRequest()
	request.Version = 13
	response, err := c.response(request, 7)
	testkit.Must(t, err)
	if topics := response.(*kmsg.MetadataResponse).Topics; len(topics) != 1 || *topics[0].Topic != "weather" {
		t.Errorf("topics: %v, want weather", topics)
	}
	c.wantAlive()
}

func (b badFrames) run(c *raw) {
	c.t.Helper()
	for i, frame := range b.send {
		c.send(frame)
		if i < len(b.send)-1 {
			if _, err := c.frame(); err != nil {
				c.t.Fatalf("no answer to frame %d: %v", i, err)
			}
		}
	}
	c.wantClosed()
}

// bystand logs events and reads them back until the returned function is called. That function
// fails the test if anything went wrong.
func (f *front) bystand(t testing.TB) func() {
	f.claim(t, "bystander", bert)
	f.tokens.issue("bert-token", bert, time.Hour)
	client := f.client(t, "bert-token", kgo.ConsumeTopics("bystander"), kgo.ProducerLinger(0))
	stop, stopped := make(chan struct{}), make(chan struct{})
	slowest := time.Duration(0)
	go func() {
		defer close(stopped)
		for i := int64(0); ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			began := time.Now()
			r, err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "bystander", Value: []byte("rain")}).First()
			if err != nil || r.Offset != i {
				t.Errorf("bystander: produce %d = offset %d, %v", i, r.Offset, err)
				return
			}
			for n := 0; n == 0; {
				fetches := client.PollFetches(t.Context())
				if err := fetches.Err(); err != nil {
					t.Errorf("bystander: consume: %v", err)
					return
				}
				n = fetches.NumRecords()
			}
			slowest = max(slowest, time.Since(began))
		}
	}()
	return func() {
		close(stop)
		<-stopped
		if slowest > 10*time.Second {
			t.Errorf("bystander: one event took %v there and back", slowest)
		}
		t.Logf("bystander: slowest event took %v there and back", slowest)
	}
}

// FuzzFrames sends bytes to a gateway, before and after the login. The gateway must survive, and
// another client's connection must keep working.
func FuzzFrames(f *testing.F) {
	front := start(f, func(cfg *Config) {
		cfg.LoginTimeout, cfg.FailuresPerAddress = 5*time.Second, 1<<30
	})
	front.claim(f, "weather", ada)
	front.tokens.issue("ada-token", ada, 24*time.Hour)
	for _, list := range [][]badFrames{beforeLogin(), afterLogin()} {
		for _, b := range list {
			all := bytes.Join(b.send, nil)
			f.Add(true, all[:min(len(all), 4096)])
			f.Add(false, all[:min(len(all), 4096)])
		}
	}
	for _, r := range []kmsg.Request{produceRequest(3), produceRequest(12), waitingFetch(0), apiVersions(4), saslAuthenticate(2, oauthMessage("ada-token"))} {
		f.Add(true, appendRequest(r, 1))
	}
	other := front.login(f, "ada-token")
	f.Fuzz(func(t *testing.T, signedIn bool, b []byte) {
		c := front.dial(t)
		if signedIn {
			c.wantLogin("ada-token")
		}
		c.send(b)
		c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		io.Copy(io.Discard, c)
		c.Close()
		other.t = t
		other.wantAlive()
	})
}

// FuzzRequest: a request that passes reaches the broker unchanged, except for the limits of a
// fetch. And every request that a real client writes passes.
func FuzzRequest(f *testing.F) {
	for _, b := range afterLogin() {
		for _, frame := range b.send {
			f.Add(frame[:min(len(frame), 4096)])
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 4+headerBytes {
			return
		}
		frame := resize(b)
		if _, ok := shapes()[parseHeader(frame[4:]).key]; !ok {
			return
		}
		out, err := pass(frame)
		if err == nil && !bytes.Equal(out, frame) {
			t.Errorf("%x passes as %x", frame, out)
		}
		if err != nil {
			return
		}
		// The broker's parser must finish quickly: no count may deceive it.
		h := parseHeader(frame[4:])
		if request := kmsg.RequestForKey(h.key); h.version >= 0 && h.version <= request.MaxVersion() {
			_, body := parseHead(frame[4:])
			request.SetVersion(h.version)
			began := time.Now()
			request.ReadFrom(body.left)
			if took := time.Since(began); took > time.Second {
				t.Errorf("%x takes the broker's parser %v", frame, took)
			}
		}
	})
}

package interop

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/oauth"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/ship"
	"github.com/diaspora-streams/diaspora/internal/spool"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

const (
	refusedKeys  = 8
	refuserBatch = 16_000 // bytes: a round is tens of batches for each partition
	poison       = "poison"
)

// TestRefusedBatches sends a spool to a cluster that refuses batches at random: it stores none of the
// batch, or stores it and reports a failure, or closes the connection. Events with the same key must
// arrive in order, none may be missing, and only those that are always refused may be quarantined.
func TestRefusedBatches(t *testing.T) {
	f := start(t, fabric.Config{})
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for _, fault := range sendThroughRefuser(t, f, seed, ship.ClientOpts()) {
		t.Error(fault)
	}
	if t.Failed() {
		return
	}
	// A client that begins to send before it has the whole round, with which the above must fail.
	eager := []kgo.Opt{kgo.ProducerLinger(0), kgo.RetryBackoffFn(func(int) time.Duration { return 100 * time.Millisecond })}
	for range 20 {
		if len(sendThroughRefuser(t, f, rand.Uint64(), eager)) > 0 {
			return
		}
	}
	t.Error("the test does not notice a client that sends too early")
}

// sendThroughRefuser sends numbered events through a refuser, and returns what is wrong with those that
// have arrived.
func sendThroughRefuser(t *testing.T, f *fabric.Fabric, seed uint64, opts []kgo.Opt) (faults []string) {
	t.Helper()
	cfg := fabrictest.As(t, f, ada)
	topic := claim(t, cfg, 3)
	refuse := &refuser{random: rand.New(rand.NewPCG(seed, 0)), most: testkit.Scaled(t, "REFUSED_BATCHES", 100)}
	events := 200 * refuse.most

	sp, err := spool.Open(t.Context(), spool.Options{Dir: filepath.Join(t.TempDir(), "spool")})
	testkit.Must(t, err)
	defer sp.Close()
	conns := new(kafka.Connections)
	shipper := ship.New(ship.Config{
		Spool:       sp,
		Connections: conns,
		Client: func(context.Context) (*kgo.Client, error) {
			return kgo.NewClient(append(opts,
				kgo.SeedBrokers(cfg.Brokers...),
				kgo.Dialer(refuse.dial),
				kgo.WithHooks(conns),
				kgo.SASL(oauth.Oauth(func(ctx context.Context) (oauth.Auth, error) {
					token, err := cfg.TokenSource.Token(ctx)
					return oauth.Auth{Token: token.AccessToken.Reveal()}, err
				})),
				kgo.MetadataMinAge(10*time.Millisecond), // looked up after some of the failures
				kgo.ProducerBatchMaxBytes(refuserBatch),
				kgo.ProducerBatchCompression(kgo.NoCompression()),
			)...)
		},
		Record: func(r *kgo.Record, e *spool.Entry) {
			r.Topic, r.Key, r.Value = e.Topic, e.Key, e.Value
			r.Headers = []kgo.RecordHeader{{Key: diaspora.HeaderID, Value: []byte(e.ID)}}
		},
		Explain:      func(topic string, err error) error { return fmt.Errorf("%s: %w", topic, err) },
		NeedsLogin:   kafka.LoginRefused,
		Acknowledged: func(int) {},
		Diagnostics:  slog.New(slog.DiscardHandler),
	})
	ctx, stop := context.WithCancel(testkit.Within(t))
	var running sync.WaitGroup
	running.Go(func() { shipper.Run(ctx) })
	defer running.Wait()
	defer stop()

	var poisonous int
	padding := bytes.Repeat([]byte("."), 150)
	for i := range events {
		entry := spool.Entry{
			Topic: topic, ID: fmt.Sprintf("id-%d", i), Time: time.Now(),
			Key: fmt.Append(nil, i%refusedKeys), Value: fmt.Appendf(nil, "%d %s", i, padding),
		}
		if i%(events/4) == events/5 {
			entry.Value = append(entry.Value, poison...)
			poisonous++
		}
		testkit.Must(t, sp.AppendAsync(ctx, entry, func(error) {}))
	}
	testkit.Must(t, sp.Sync(ctx))
	if err := shipper.Flush(ctx); err != nil {
		t.Fatalf("seed %d: Flush: %v (%v; held: %v)", seed, err, shipper.Reason(), shipper.Held())
	}
	if got := sp.Stats().Quarantined; got != uint64(poisonous) {
		faults = append(faults, fmt.Sprintf("%d events are quarantined, want %d", got, poisonous))
	}
	stop()
	running.Wait()

	last := make([]int, refusedKeys) // the last event of each key, by its key
	for key := range last {
		last[key] = key - refusedKeys
	}
	arrived, repeats := 0, 0
	for _, r := range fabrictest.ReadAll(t, cfg, topic) {
		i, err := strconv.Atoi(string(r.Value[:max(0, bytes.IndexByte(r.Value, ' '))]))
		if err != nil || r.ID != fmt.Sprintf("id-%d", i) || i%refusedKeys != int(r.Key[0]-'0') {
			faults = append(faults, fmt.Sprintf("a strange record: %.20q, key %q, id %q", r.Value, r.Key, r.ID))
			continue
		}
		next := last[i%refusedKeys] + refusedKeys
		if i > next && (next%(events/4)) == events/5 {
			next += refusedKeys // that one is quarantined
		}
		switch {
		case i > next:
			faults = append(faults, fmt.Sprintf("event %d of key %s came before event %d", i, r.Key, next))
		case i < next:
			repeats++
			continue
		}
		last[i%refusedKeys] = i
		arrived++
	}
	if arrived+poisonous != events {
		faults = append(faults, fmt.Sprintf("%d events arrived, want %d", arrived, events-poisonous))
	}
	t.Logf("%d events, %d repeats, faults: %v", arrived, repeats, refuse.counts())
	if refuse.done.Load() < int64(refuse.most)/2 {
		t.Errorf("only %d faults were played", refuse.done.Load())
	}
	return faults
}

// refuser plays a cluster that refuses batches. It is a proxy for each connection of a client.
type refuser struct {
	most int          // how many faults to play
	done atomic.Int64 // those played

	mu     sync.Mutex // guards the fields below
	random *rand.Rand
	played map[string]int
}

func (r *refuser) counts() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.played
}

// dial connects to a broker through the refuser.
func (r *refuser) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	server, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	client, ours := net.Pipe()
	// answers has an entry for each request, in order.
	answers := make(chan answer, 1000)
	go func() {
		defer server.Close()
		defer ours.Close()
		defer close(answers)
		for {
			frame, err := readFrame(ours)
			if err != nil {
				return
			}
			forward, answer := r.request(frame)
			answers <- answer
			if forward == nil {
				continue
			}
			if writeFrame(server, forward) != nil {
				return
			}
		}
	}()
	go func() {
		defer server.Close()
		defer ours.Close()
		for a := range answers {
			frame := a.instead
			if frame == nil {
				var err error
				if frame, err = readFrame(server); err != nil {
					return
				}
			}
			if a.cut {
				return
			}
			if a.change != nil {
				frame = a.change(frame)
			}
			if writeFrame(ours, frame) != nil {
				return
			}
		}
	}()
	return client, nil
}

// answer says how a request is answered.
type answer struct {
	instead []byte              // without asking the broker
	cut     bool                // not at all: the connection is closed
	change  func([]byte) []byte // with a changed answer of the broker
}

// request returns what the broker gets for a request, nil for nothing, and how it is answered.
func (r *refuser) request(frame []byte) (forward []byte, _ answer) {
	if binary.BigEndian.Uint16(frame) != uint16(kmsg.Produce) {
		return frame, answer{}
	}
	req := kmsg.NewPtrProduceRequest()
	req.Version = int16(binary.BigEndian.Uint16(frame[2:]))
	head := 10 + int(max(0, int16(binary.BigEndian.Uint16(frame[8:])))) // key, version, correlation ID, client ID
	idBytes := 4                                                        // of an answer's head: correlation ID
	if req.IsFlexible() {
		head, idBytes = head+1, idBytes+1 // and no tagged fields
	}
	if err := req.ReadFrom(frame[head:]); err != nil {
		panic(err)
	}
	if r.play(0.02, "cut before") {
		return nil, answer{instead: []byte{}, cut: true}
	}
	refused := kmsg.NewPtrProduceResponse() // the answers that do not come from the broker
	refused.Version = req.Version
	late := map[int32]int16{} // codes for partitions whose batches are stored
	for t := range req.Topics {
		topic := &req.Topics[t]
		answer := kmsg.NewProduceResponseTopic()
		answer.Topic, answer.TopicID = topic.Topic, topic.TopicID
		topic.Partitions = slices.DeleteFunc(topic.Partitions, func(p kmsg.ProduceRequestTopicPartition) bool {
			code, stored := r.fault(p.Records)
			if stored {
				late[p.Partition] = code
			}
			if code == 0 || stored {
				return false
			}
			part := kmsg.NewProduceResponseTopicPartition()
			part.Partition, part.ErrorCode, part.BaseOffset = p.Partition, code, -1
			answer.Partitions = append(answer.Partitions, part)
			return true
		})
		if len(answer.Partitions) > 0 {
			refused.Topics = append(refused.Topics, answer)
		}
	}
	req.Topics = slices.DeleteFunc(req.Topics, func(t kmsg.ProduceRequestTopic) bool { return len(t.Partitions) == 0 })
	if len(req.Topics) == 0 {
		id := append(slices.Clone(frame[4:8]), make([]byte, idBytes-4)...)
		return nil, answer{instead: refused.AppendTo(id)}
	}
	return req.AppendTo(slices.Clone(frame[:head])), answer{cut: r.play(0.02, "cut after"), change: func(frame []byte) []byte {
		resp := kmsg.NewPtrProduceResponse()
		resp.Version = req.Version
		if err := resp.ReadFrom(frame[idBytes:]); err != nil {
			panic(err)
		}
		for t := range resp.Topics {
			for p := range resp.Topics[t].Partitions {
				part := &resp.Topics[t].Partitions[p]
				if code := late[part.Partition]; code != 0 && part.ErrorCode == 0 {
					part.ErrorCode, part.BaseOffset = code, -1
				}
			}
		}
		resp.Topics = append(resp.Topics, refused.Topics...)
		return resp.AppendTo(slices.Clone(frame[:idBytes]))
	}}
}

// fault chooses the error code for a batch, 0 for none, and whether the batch is stored all the same.
func (r *refuser) fault(batch []byte) (code int16, stored bool) {
	const records = 57 // position of the number of records
	switch {
	case len(batch) == 0: // the client has given it up
		return 0, false
	case bytes.Contains(batch, []byte(poison)):
		return kerr.InvalidRecord.Code, false
	case r.play(0.03, "not leader"):
		return kerr.NotLeaderForPartition.Code, false
	case r.play(0.03, "too few replicas"):
		return kerr.NotEnoughReplicas.Code, false
	case r.play(0.03, "timeout"):
		return kerr.RequestTimedOut.Code, false
	case r.play(0.03, "timeout, stored"):
		return kerr.RequestTimedOut.Code, true
	case r.play(0.03, "too few replicas, stored"):
		return kerr.NotEnoughReplicasAfterAppend.Code, true
	case r.play(0.03, "new leader, stored"):
		return kerr.NotLeaderForPartition.Code, true
	case r.play(0.01, "not authorized"):
		return kerr.TopicAuthorizationFailed.Code, false
	case binary.BigEndian.Uint32(batch[records:]) > 1 && r.play(0.03, "too large"):
		return kerr.MessageTooLarge.Code, false
	}
	return 0, false
}

// play reports whether to play a fault now.
func (r *refuser) play(probability float64, name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.random.Float64() >= probability || r.done.Load() >= int64(r.most) {
		return false
	}
	r.done.Add(1)
	if r.played == nil {
		r.played = map[string]int{}
	}
	r.played[name]++
	return true
}

func readFrame(from io.Reader) ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(from, size[:]); err != nil {
		return nil, err
	}
	frame := make([]byte, binary.BigEndian.Uint32(size[:]))
	_, err := io.ReadFull(from, frame)
	return frame, err
}

func writeFrame(to io.Writer, frame []byte) error {
	_, err := to.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...))
	return err
}

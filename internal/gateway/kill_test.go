package gateway

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/internal/broker"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

const (
	envDir     = "GATEWAY_TEST_DIR"
	envAddress = "GATEWAY_TEST_ADDRESS"
)

// TestMain runs the tests, or acts as the process that TestKill kills.
func TestMain(m *testing.M) {
	if dir := os.Getenv(envDir); dir != "" {
		if err := runVictim(dir, os.Getenv(envAddress)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runVictim serves broker and gateway until it is killed.
func runVictim(dir, address string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	b, err := broker.Open(broker.Config{Dir: dir, Advertise: ln.Addr().String()})
	if err != nil {
		return err
	}
	everybody := &tokens{infos: make(map[Credentials]Identity), known: make(map[Credentials]bool)}
	everybody.issue("ada-token", ada, time.Hour)
	g, err := New(Config{Upstream: b, Authenticator: everybody})
	if err != nil {
		return err
	}
	// The parent can reach the broker only through the gateway.
	f := &front{broker: b}
	if err := f.prepare(ctx, "weather", ada); err != nil {
		return err
	}
	fmt.Println(ln.Addr())
	return g.Serve(ctx, ln)
}

// victim is a process that serves broker and gateway.
type victim struct {
	*exec.Cmd
	address string
}

func startVictim(t *testing.T, dir, address string) victim {
	t.Helper()
	cmd, lines, _ := testkit.Rerun(t, envDir+"="+dir, envAddress+"="+address)
	if !lines.Scan() {
		t.Fatalf("the process does not say its address: %v", lines.Err())
	}
	return victim{cmd, lines.Text()}
}

// kill ends the process without giving it time to do anything.
func (v victim) kill() {
	v.Process.Kill()
	v.Wait()
}

// TestKill kills broker and gateway with SIGKILL three times while a client produces. All
// acknowledged records must be there afterwards.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	v := startVictim(t, dir, "127.0.0.1:0")
	defer func() { v.kill() }()
	f := &front{address: v.address}
	f.connect = func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", f.address)
	}
	client := f.client(t, "ada-token", kgo.ProducerLinger(0), kgo.MetadataMinAge(50*time.Millisecond), kgo.RetryBackoffFn(func(int) time.Duration { return 10 * time.Millisecond }))

	const kills, eventsEach = 3, 2000
	var mu sync.Mutex
	acked := make(map[uint64]bool)
	next := uint64(0)
	for range kills {
		reached := make(chan struct{})
		for i := range eventsEach {
			next++
			value := next
			client.Produce(t.Context(), &kgo.Record{Topic: "weather", Value: binary.BigEndian.AppendUint64(nil, value)}, func(_ *kgo.Record, err error) {
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					acked[value] = true
				}
				if i == eventsEach/2 {
					close(reached)
				}
			})
		}
		<-reached
		v.kill()
		v = startVictim(t, dir, v.address)
	}
	testkit.Must(t, client.Flush(t.Context()))
	v.kill()
	v = startVictim(t, dir, v.address)

	consumer := f.client(t, "ada-token", kgo.ConsumeTopics("weather"))
	found, records := make(map[uint64]bool), 0
	for len(found) < len(acked) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		fetches := consumer.PollFetches(ctx)
		cancel()
		if fetches.Empty() {
			break
		}
		fetches.EachRecord(func(r *kgo.Record) {
			found[binary.BigEndian.Uint64(r.Value)] = true
			records++
		})
	}
	missing := 0
	for value := range acked {
		if !found[value] {
			missing++
		}
	}
	t.Logf("%d acknowledged, %d records", len(acked), records)
	if missing > 0 || len(acked) == 0 {
		t.Errorf("%d of %d acknowledged events are missing", missing, len(acked))
	}
}

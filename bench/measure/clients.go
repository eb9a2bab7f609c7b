package measure

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora"
)

// Payloads returns 1024 different values of the given size. Half of each is incompressible.
func Payloads(size int) [][]byte {
	random := rand.NewChaCha8([32]byte{1})
	values := make([][]byte, 1024)
	for i := range values {
		values[i] = bytes.Repeat([]byte("temperature=21.5 "), size/17+1)[:size]
		random.Read(values[i][:size/2])
	}
	return values
}

// FirstError keeps the first error that callbacks report.
type FirstError struct {
	mu  sync.Mutex
	err error
}

// Keep keeps err if no error was kept before.
func (f *FirstError) Keep(err error) {
	if err == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
}

// Err returns the error that was kept.
func (f *FirstError) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// Produce returns a Run function in which a plain client produces records until all are
// acknowledged.
func Produce(ctx context.Context, client *kgo.Client, record func(i int) *kgo.Record) func(int) (time.Duration, error) {
	return func(n int) (time.Duration, error) {
		var failed FirstError
		callback := func(_ *kgo.Record, err error) { failed.Keep(err) }
		start := time.Now()
		for i := range n {
			client.Produce(ctx, record(i), callback)
		}
		failed.Keep(client.Flush(ctx))
		return time.Since(start), failed.Err()
	}
}

// Send returns a Run function in which a Logger sends events until all are acknowledged.
func Send(ctx context.Context, logger *diaspora.Logger, topic string, values [][]byte) func(int) (time.Duration, error) {
	return func(n int) (time.Duration, error) {
		var failed FirstError
		callback := func(_ diaspora.Record, err error) { failed.Keep(err) }
		start := time.Now()
		for i := range n {
			logger.Send(diaspora.Event{Topic: topic, Value: values[i%len(values)]}, callback)
		}
		failed.Keep(logger.Flush(ctx))
		return time.Since(start), failed.Err()
	}
}

// Consume returns a Run function that opens a client and reads the topics from the start.
func Consume(ctx context.Context, topics []string, opts ...kgo.Opt) func(int) (time.Duration, error) {
	return func(n int) (time.Duration, error) {
		start := time.Now() // before NewClient, because the client starts to fetch at once
		client, err := kgo.NewClient(append(opts[:len(opts):len(opts)], kgo.ConsumeTopics(topics...), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))...)
		if err != nil {
			return 0, err
		}
		defer client.Close()
		for got := 0; got < n; {
			fetches := client.PollFetches(ctx)
			if err := fetches.Err(); err != nil {
				return 0, err
			}
			fetches.EachRecord(func(*kgo.Record) { got++ })
		}
		return time.Since(start), nil
	}
}

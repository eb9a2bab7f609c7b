package diaspora

import (
	"context"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

// newCluster starts a Kafka broker without any login and returns how to reach it.
func newCluster(t testing.TB, opts ...kfake.Opt) (*kfake.Cluster, Config) {
	t.Helper()
	c, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1), kfake.DefaultNumPartitions(1)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, Config{Brokers: c.ListenAddrs(), anonymous: true}
}

// within bounds what a test waits for.
func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func openLogger(t testing.TB, cfg Config) *Logger {
	t.Helper()
	l, err := OpenLogger(within(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(context.Background()) })
	return l
}

func openConsumer(t testing.TB, cfg Config, options ConsumerOptions) *Consumer {
	t.Helper()
	c, err := OpenConsumer(within(t), cfg, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(context.Background()) })
	return c
}

// readAll returns all records that are in the topics now.
func readAll(t testing.TB, cfg Config, topics ...string) []Record {
	t.Helper()
	return read(t, openConsumer(t, cfg, ConsumerOptions{Topics: topics, Until: End}))
}

// read returns the records of a Consumer that ends by itself (with Until).
func read(t testing.TB, c *Consumer) []Record {
	t.Helper()
	var records []Record
	for r, err := range c.Records(within(t)) {
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, r)
	}
	return records
}

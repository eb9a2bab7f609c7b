package kafka

import (
	"bytes"
	"strings"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestWordsOfTheKafkaClient fails when one of two texts of the Kafka client has changed. The
// library has to compare these texts, because the client exports no error or constant for them.
func TestWordsOfTheKafkaClient(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var said bytes.Buffer // guarded by mu, because the client logs from several goroutines
	client, err := kgo.NewClient(
		kgo.SeedBrokers("127.0.0.1:1"), // nothing listens there
		kgo.WithLogger(kgo.BasicLogger(lockedWriter{&mu, &said}, kgo.LogLevelInfo, nil)),
	)
	testkit.Must(t, err)
	failed := make(chan error, 1)
	client.Produce(t.Context(), &kgo.Record{Topic: "beamline"}, func(_ *kgo.Record, err error) { failed <- err })
	client.PurgeTopicsFromProducing("beamline")
	if err := <-failed; !Purged(err) {
		t.Errorf("an event whose topic is forgotten fails with %q, which is not known as that", err)
	}
	testkit.Must(t, client.Flush(t.Context()))
	client.Close()
	mu.Lock()
	defer mu.Unlock()
	if !strings.Contains(said.String(), "[INFO] "+flushing) {
		t.Errorf("a flush says %q, want %q at level INFO", said.String(), flushing)
	}
}

type lockedWriter struct {
	mu *sync.Mutex
	to *bytes.Buffer
}

func (w lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.to.Write(p)
}

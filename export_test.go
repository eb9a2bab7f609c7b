package diaspora

import (
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// Through returns a configuration that gets to brokers by dial, and takes one that is
// silent for so long as gone. Zero is the Kafka client's own time.
func Through(cfg Config, dial kafka.DialFunc, patience time.Duration) Config {
	cfg.dial = dial
	if patience > 0 {
		cfg.opts = []kgo.Opt{kgo.RequestTimeoutOverhead(patience), kgo.ProduceRequestTimeout(patience)}
	}
	return cfg
}

package diaspora

import (
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// Through returns a configuration that connects to brokers with dial. A broker that is silent for
// longer than patience counts as failed; zero keeps the Kafka client's defaults.
func Through(cfg Config, dial kafka.DialFunc, patience time.Duration) Config {
	cfg.dial = dial
	if patience > 0 {
		cfg.opts = []kgo.Opt{kgo.RequestTimeoutOverhead(patience), kgo.ProduceRequestTimeout(patience)}
	}
	return cfg
}

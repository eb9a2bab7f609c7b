package diaspora

import (
	"time"

	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// Through returns a configuration that gets to brokers by dial, and takes one that is
// silent for so long as gone. Zero is the Kafka client's own time.
func Through(cfg Config, dial kafka.DialFunc, patience time.Duration) Config {
	cfg.dial, cfg.patience = dial, patience
	return cfg
}

package testkit

import (
	"maps"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Tally counts the requests that Kafka clients send, by kind. Give it to the clients with
// [kgo.WithHooks]. The zero value is ready to use, and all methods may be called concurrently.
type Tally struct {
	mu   sync.Mutex // guards the field below
	sent map[kmsg.Key]int
}

// OnBrokerWrite implements [kgo.HookBrokerWrite].
func (n *Tally) OnBrokerWrite(_ kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, _ error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.sent == nil {
		n.sent = map[kmsg.Key]int{}
	}
	n.sent[kmsg.Key(key)]++
}

// Sent returns the counts since the last Reset, without those of some kinds.
func (n *Tally) Sent(except ...kmsg.Key) map[kmsg.Key]int {
	n.mu.Lock()
	defer n.mu.Unlock()
	sent := map[kmsg.Key]int{}
	maps.Copy(sent, n.sent)
	for _, key := range except {
		delete(sent, key)
	}
	return sent
}

// Reset begins to count again.
func (n *Tally) Reset() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.sent)
}

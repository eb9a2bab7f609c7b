package diaspora

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// connections knows how a client's attempts to connect end. The client itself
// keeps silent about a refused login and tries for ever.
type connections struct {
	kafka.Connections
	onRefused func(error) // told of each refusal; set before connecting, may be nil

	reached atomic.Bool // a broker has let us in

	tried atomic.Int64 // produce requests that were answered, or failed
	moved atomic.Int64 // when a piece of a large request was sent last, in Unix nanoseconds

	mu      sync.Mutex // guards the fields below
	refused chan struct{}
	reason  error
}

func newConnections() *connections { return &connections{refused: make(chan struct{})} }

// OnBrokerConnect implements [kgo.HookBrokerConnect].
func (c *connections) OnBrokerConnect(meta kgo.BrokerMetadata, d time.Duration, conn net.Conn, err error) {
	c.Connections.OnBrokerConnect(meta, d, conn, err)
	if err == nil {
		c.reached.Store(true)
		return
	}
	if !kafka.LoginRefused(err) {
		return
	}
	c.mu.Lock()
	c.reason = err
	close(c.refused)
	c.refused = make(chan struct{})
	c.mu.Unlock()
	if c.onRefused != nil {
		c.onRefused(err)
	}
}

// OnBrokerE2E implements [kgo.HookBrokerE2E].
func (c *connections) OnBrokerE2E(_ kgo.BrokerMetadata, key int16, _ kgo.BrokerE2E) {
	if kmsg.Key(key) == kmsg.Produce {
		c.tried.Add(1)
	}
}

func (c *connections) progress() { c.moved.Store(time.Now().UnixNano()) }

// nextRefusal returns a channel that is closed when a login is refused from now on.
func (c *connections) nextRefusal() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.refused
}

// lastRefusal returns why a login was refused the last time.
func (c *connections) lastRefusal() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reason
}

// because adds to err, that of a context, why the client could not connect.
func (c *connections) because(err error) error {
	if why := c.Err(); why != nil {
		return fmt.Errorf("%w (%v)", err, explain(why))
	}
	return err
}

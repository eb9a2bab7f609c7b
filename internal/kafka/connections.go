package kafka

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Connections watches the connections of a Kafka client. If the cluster is unreachable or refuses
// the login, the client retries forever and does not report that. Connections does. Give it to the
// client with [kgo.WithHooks]. The zero value is ready to use. All methods may be called
// concurrently.
type Connections struct {
	// OnRefused is called after each refused login. Optional.
	OnRefused func(error)

	reached  atomic.Bool  // whether a login has ever succeeded
	answered atomic.Int64 // see Answered
	fetched  atomic.Int64 // see Fetched
	progress atomic.Int64 // see LastProgress, in Unix nanoseconds
	latency  atomic.Int64 // see Latency

	mu      sync.Mutex // guards the fields below
	err     error      // the error of the last attempt to connect
	refusal error      // the last refusal
	refused chan struct{}
}

// OnBrokerConnect implements [kgo.HookBrokerConnect].
func (c *Connections) OnBrokerConnect(_ kgo.BrokerMetadata, _ time.Duration, _ net.Conn, err error) {
	if errors.Is(err, kgo.ErrClientClosed) || errors.Is(err, context.Canceled) {
		return // the caller has given up, which says nothing about the cluster
	}
	refused := err != nil && LoginRefused(err)
	c.mu.Lock()
	c.err = err
	if refused {
		c.refusal = err
		if c.refused != nil {
			close(c.refused)
			c.refused = nil
		}
	}
	c.mu.Unlock()
	if err == nil {
		c.reached.Store(true)
	}
	if refused && c.OnRefused != nil {
		c.OnRefused(err)
	}
}

// OnBrokerE2E implements [kgo.HookBrokerE2E].
func (c *Connections) OnBrokerE2E(_ kgo.BrokerMetadata, key int16, e2e kgo.BrokerE2E) {
	if kmsg.Key(key) == kmsg.Produce {
		c.answered.Add(1)
	}
	if e2e.Err() != nil {
		return
	}
	took := int64(e2e.DurationE2E())
	switch kmsg.Key(key) {
	case kmsg.Fetch:
		c.fetched.Add(1)
	case kmsg.ApiVersions, kmsg.SASLHandshake: // begins a connection, maybe from another network
		c.latency.Store(took)
		return
	}
	for least := c.latency.Load(); took < least && !c.latency.CompareAndSwap(least, took); least = c.latency.Load() {
	}
}

// Progress records that a part of a large request has just been sent. It is meant for
// [Config.Progress].
func (c *Connections) Progress() { c.progress.Store(time.Now().UnixNano()) }

// Err returns why the last attempt to connect failed, or nil if it succeeded.
func (c *Connections) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Reached reports whether a login has ever succeeded.
func (c *Connections) Reached() bool { return c.reached.Load() }

// Answered returns how many produce requests were answered or have failed.
func (c *Connections) Answered() int64 { return c.answered.Load() }

// Fetched returns how many fetch requests were answered.
func (c *Connections) Fetched() int64 { return c.fetched.Load() }

// Latency returns about how long a request to a broker and the answer take, apart from the time for
// the transfer of large requests: the time of the fastest request since the client last connected
// to a broker. Zero means that it never did.
func (c *Connections) Latency() time.Duration { return time.Duration(c.latency.Load()) }

// LastProgress returns when Progress was last called.
func (c *Connections) LastProgress() time.Time { return time.Unix(0, c.progress.Load()) }

// NextRefusal returns a channel that is closed when the next login is refused.
func (c *Connections) NextRefusal() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refused == nil {
		c.refused = make(chan struct{})
	}
	return c.refused
}

// LastRefusal returns why a login was last refused, or nil.
func (c *Connections) LastRefusal() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.refusal
}

package gateway

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

const maxSmallRequestBytes = 1 << 20 // of all requests but produce

var errEnded = errors.New("broker closed the connection")

// relay passes requests on and responses back until one side ends.
func (c *conn) relay(ctx context.Context) error {
	c.ended = make(chan struct{})
	go c.relayResponses()
	err := c.relayRequests(ctx)
	c.close()
	<-c.ended
	return err
}

func (c *conn) relayRequests(ctx context.Context) error {
	for {
		size, err := c.in.size()
		if err != nil {
			return err
		}
		if size < requestHeaderBytes || size > c.g.cfg.MaxRequestBytes {
			return fmt.Errorf("%w: size %d", errFrame, size)
		}
		b, err := c.in.peek(4 + requestHeaderBytes)
		if err != nil {
			return err
		}
		h := parseRequestHeader(b[4:])
		if h.key == keySaslHandshake {
			if err := c.reauthenticate(ctx); err != nil {
				return err
			}
			continue
		}
		if err := c.check(h, size); err != nil {
			return err
		}
		if h.key == keyApiVersions {
			err = c.relayApiVersions()
		} else {
			err = c.in.relay(c.upstream, 4+size)
		}
		if err != nil {
			return err
		}
	}
}

// check says whether the broker may see a request.
func (c *conn) check(h requestHeader, size int) error {
	if !c.info.Expiry.After(time.Now()) {
		return errors.New("session expired")
	}
	if h.key != keyProduce && size > maxSmallRequestBytes {
		return fmt.Errorf("%w: key %d of size %d", errFrame, h.key, size)
	}
	v, ok := c.versions[h.key]
	if h.key == keyApiVersions {
		return nil
	}
	if !ok || h.key == keySaslAuthenticate || h.version < v.min || h.version > v.max {
		return fmt.Errorf("%w: key %d version %d", errFrame, h.key, h.version)
	}
	return nil
}

func (c *conn) relayApiVersions() error {
	_, frame, err := c.takeRequest(maxSmallRequestBytes)
	if err != nil {
		return err
	}
	request, err := rewriteApiVersions(frame)
	if err != nil {
		return err
	}
	_, err = c.upstream.Write(request)
	return err
}

// reauthenticate serves a client that logs in again (KIP-368). The broker
// answers in order, and so must the gateway: the exchange returns when all
// earlier answers are out, and nothing is asked of the broker until the end.
func (c *conn) reauthenticate(ctx context.Context) error {
	if _, err := c.ask(ctx, kmsg.NewPtrApiVersionsRequest()); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, c.g.cfg.LoginTimeout)
	defer cancel()
	_, frame, err := c.takeRequest(maxLoginBytes)
	if err != nil {
		return err
	}
	raw, err := c.answerHandshake(frame)
	if err != nil {
		return err
	}
	if raw {
		return fmt.Errorf("%w: SaslHandshake version 0 after login", errFrame)
	}
	return c.loginFramed(ctx)
}

// exchange is a request of the gateway's own, whose answer is not the client's.
type exchange struct {
	correlation int32
	answer      chan []byte // without size and correlation
}

// ask sends a request of the gateway's own in between the client's and waits
// for its answer. By then every earlier answer has reached the client. Only
// the goroutine that relays requests may ask.
func (c *conn) ask(ctx context.Context, request kmsg.Request) ([]byte, error) {
	// A client that has this very correlation ID in flight loses one answer.
	ex := &exchange{correlation: int32(rand.Uint32()), answer: make(chan []byte, 1)}
	c.mu.Lock()
	c.exchange = ex
	c.mu.Unlock()
	if _, err := c.upstream.Write(kmsg.NewRequestFormatter().AppendRequest(nil, request, ex.correlation)); err != nil {
		return nil, err
	}
	select {
	case answer := <-ex.answer:
		return answer, nil
	case <-c.ended:
		return nil, errEnded
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// relayResponses copies the broker's answers to the client.
func (c *conn) relayResponses() {
	defer close(c.ended)
	defer c.close()
	for {
		b, err := c.out.peek(8)
		if err != nil {
			return
		}
		size, correlation := int(binary.BigEndian.Uint32(b)), int32(binary.BigEndian.Uint32(b[4:]))
		if ex := c.takeExchange(correlation); ex != nil {
			c.out.start += 8
			answer, err := c.out.take(size - 4)
			if err != nil {
				return
			}
			ex.answer <- answer
			continue
		}
		if err := c.out.relay(c.client, 4+size); err != nil {
			return
		}
	}
}

// takeExchange returns the exchange that an answer belongs to, or nil.
func (c *conn) takeExchange(correlation int32) *exchange {
	c.mu.Lock()
	defer c.mu.Unlock()
	ex := c.exchange
	if ex == nil || ex.correlation != correlation {
		return nil
	}
	c.exchange = nil
	return ex
}

package gateway

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// brokerBefore makes requests of the gateway's own before the client's: nobody
// else reads from the broker yet.
type brokerBefore struct{ c *conn }

func (b brokerBefore) Request(ctx context.Context, request kmsg.Request) (kmsg.Response, error) {
	upstream := b.c.upstream
	defer context.AfterFunc(ctx, func() { upstream.SetDeadline(time.Unix(1, 0)) })()
	if _, err := upstream.Write(appendRequest(request, 0)); err != nil {
		return nil, err
	}
	answer, err := takeAnswer(b.c.out)
	if err != nil {
		return nil, err
	}
	return parseAnswer(request, answer)
}

// brokerAmid makes requests of the gateway's own between the client's. When one
// is answered, the client has the answers to all that it has asked before. Only
// the goroutine that relays requests may use it.
type brokerAmid struct{ c *conn }

// exchange is a request of the gateway's own whose answer is not the client's.
type exchange struct {
	correlation int32
	answer      chan []byte // without size and correlation ID
}

func (b brokerAmid) Request(ctx context.Context, request kmsg.Request) (kmsg.Response, error) {
	// A client that happens to have this correlation ID in flight, one in
	// hundreds of millions, would miss an answer and connect anew.
	ex := &exchange{correlation: int32(rand.Uint32()), answer: make(chan []byte, 1)}
	c := b.c
	c.mu.Lock()
	c.exchange = ex
	c.mu.Unlock()
	if _, err := c.upstream.Write(appendRequest(request, ex.correlation)); err != nil {
		return nil, err
	}
	select {
	case answer := <-ex.answer:
		return parseAnswer(request, answer)
	case <-c.ended:
		return nil, errors.New("broker closed the connection")
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// parseAnswer reads the answer to a request of the gateway's own.
func parseAnswer(request kmsg.Request, answer []byte) (kmsg.Response, error) {
	response := request.ResponseKind()
	if request.Key() == keyApiVersions && len(answer) >= 2 && int16(binary.BigEndian.Uint16(answer)) == kerr.UnsupportedVersion.Code {
		response.SetVersion(0) // KIP-511: the broker does not know the version, and says which it knows
	}
	if response.IsFlexible() && response.Key() != keyApiVersions {
		w := wire{b: answer}
		w.tags()
		answer = w.b
	}
	return response, response.ReadFrom(answer)
}

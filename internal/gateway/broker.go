package gateway

import (
	"context"
	"encoding/binary"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// loginRequestor makes requests of the gateway's own to the broker before any request of the client
// is relayed. No other goroutine reads from the broker then, so it reads the answer itself.
type loginRequestor struct{ c *conn }

func (b loginRequestor) Request(ctx context.Context, request kmsg.Request) (kmsg.Response, error) {
	upstream := b.c.upstream
	defer context.AfterFunc(ctx, func() { upstream.SetDeadline(time.Unix(1, 0)) })()
	if _, err := upstream.Write(appendRequest(request, 0)); err != nil {
		return nil, err
	}
	answer, err := readResponse(b.c.fromBroker)
	if err != nil {
		return nil, err
	}
	return parseResponse(request, answer)
}

// relayRequestor makes requests of the gateway's own to the broker between the client's. When the
// broker has answered one, it has answered all earlier requests of the client too. Only the
// goroutine that relays requests may use it.
type relayRequestor struct{ c *conn }

func (b relayRequestor) Request(ctx context.Context, request kmsg.Request) (kmsg.Response, error) {
	c := b.c
	answer := make(chan []byte, 1)
	if !c.flight.add(pending{header{request.Key(), request.GetVersion(), 0}, answer}) {
		return nil, errBrokerGone
	}
	if _, err := c.upstream.Write(appendRequest(request, 0)); err != nil {
		return nil, err
	}
	select {
	case answer := <-answer:
		return parseResponse(request, answer)
	case <-c.relayDone:
		return nil, errBrokerGone
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// parseResponse decodes the answer to a request, given without size and correlation ID.
func parseResponse(request kmsg.Request, answer []byte) (kmsg.Response, error) {
	response := request.ResponseKind()
	if request.Key() == keyApiVersions && len(answer) >= 2 && int16(binary.BigEndian.Uint16(answer)) == kerr.UnsupportedVersion.Code {
		// KIP-511: the broker does not support that version, and answers in version 0 with those
		// that it supports.
		response.SetVersion(0)
	}
	if response.IsFlexible() && response.Key() != keyApiVersions {
		r := requestReader{left: answer, flexible: true}
		r.skipTags()
		answer = r.left
	}
	return response, response.ReadFrom(answer)
}

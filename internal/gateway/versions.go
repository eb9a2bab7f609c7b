package gateway

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// versions says which versions of each request the broker takes, by key.
type versions []struct{ key, min, max int16 }

// take reports whether the broker takes a request.
func (v versions) take(h header) bool {
	for _, r := range v {
		if r.key == h.key {
			return r.min <= h.version && h.version <= r.max
		}
	}
	return false
}

// learnVersions asks the broker which requests it takes.
func (c *conn) learnVersions(ctx context.Context) error {
	response, err := kmsg.NewPtrApiVersionsRequest().RequestWith(ctx, brokerBefore{c})
	if err != nil {
		return brokerError("ask for versions", err)
	}
	c.versions = make(versions, 0, len(response.ApiKeys))
	for _, r := range response.ApiKeys {
		if _, ok := shapes()[r.ApiKey]; ok {
			c.versions = append(c.versions, struct{ key, min, max int16 }{r.ApiKey, r.MinVersion, r.MaxVersion})
		}
	}
	return nil
}

// answerApiVersions passes a request for ApiVersions on, and the answer back with
// what the gateway itself takes.
func (c *conn) answerApiVersions(ctx context.Context, frame []byte) error {
	request, err := rewriteApiVersions(frame)
	if err != nil {
		return err
	}
	if err := c.dial(ctx); err != nil {
		return err
	}
	if _, err := c.upstream.Write(request); err != nil {
		return brokerError("ask for versions", err)
	}
	answer, err := takeAnswer(c.out)
	if err != nil {
		return brokerError("ask for versions", err)
	}
	h := parseHeader(frame)
	_, err = c.Write(appendFrame(nil, h.correlation, offerLogin(h.version, answer)))
	return err
}

// offerLogin has an answer to ApiVersions, without its header, say which versions
// of the login the gateway takes. What the broker takes is of no concern to the
// client, and the embedded one knows fewer: librdkafka up to 2.0 at least, which
// Debian's kcat has, goes nowhere without version 0 of the handshake. An error is
// left as it is; it has the layout of version 0 (KIP-511).
func offerLogin(version int16, answer []byte) []byte {
	response := kmsg.NewPtrApiVersionsResponse()
	response.Version = version
	if version > response.MaxVersion() || response.ReadFrom(answer) != nil || response.ErrorCode != 0 {
		return answer
	}
	for i := range response.ApiKeys {
		switch k := &response.ApiKeys[i]; k.ApiKey {
		case keySaslHandshake:
			k.MinVersion, k.MaxVersion = 0, maxSaslHandshake
		case keySaslAuthenticate:
			k.MinVersion, k.MaxVersion = 0, maxSaslAuthenticate
		}
	}
	return response.AppendTo(nil)
}

// The newest versions of the login that the gateway takes.
const (
	maxSaslHandshake    = 1
	maxSaslAuthenticate = 2
)

// maxApiVersions is the newest version of ApiVersions whose body is known here.
const maxApiVersions = 5

// rewriteApiVersions checks a request for ApiVersions and writes it anew. Of a
// version that is not known yet only the number is kept: brokers answer it
// whatever else it says (KIP-511), but the embedded one has to understand it.
func rewriteApiVersions(frame []byte) ([]byte, error) {
	h := parseHeader(frame)
	request := kmsg.NewPtrApiVersionsRequest()
	request.Version = h.version
	if h.version < 0 {
		return nil, frameError("%v", h)
	}
	if h.version <= maxApiVersions {
		_, w := parseRequest(frame)
		readApiVersions(w, request)
		if !w.done() {
			return nil, frameError("malformed %v", h)
		}
	}
	return appendRequest(request, h.correlation), nil
}

func readApiVersions(w *wire, request *kmsg.ApiVersionsRequest) {
	if request.Version >= 3 {
		name, _ := w.compactBytes()
		version, _ := w.compactBytes()
		request.ClientSoftwareName, request.ClientSoftwareVersion = string(name), string(version)
	}
	if request.Version >= 5 {
		if cluster, ok := w.compactBytes(); ok {
			request.ClusterID = kmsg.StringPtr(string(cluster))
		}
		request.NodeID = int32(w.int32())
	}
	if request.Version >= 3 {
		w.tags()
	}
}

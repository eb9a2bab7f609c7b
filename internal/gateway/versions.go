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

// answerApiVersions passes a request for ApiVersions on, and the answer back.
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
	size, err := c.out.size()
	if err != nil {
		return brokerError("ask for versions", err)
	}
	return relay(c, c.out, 4+size)
}

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

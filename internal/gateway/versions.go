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
	for _, r := range common(response.ApiKeys) {
		c.versions = append(c.versions, struct{ key, min, max int16 }{r.ApiKey, r.MinVersion, r.MaxVersion})
	}
	return nil
}

// common returns what of the broker's requests the gateway knows as well: those
// of a newer broker than itself have fields that it cannot check.
func common(offered []kmsg.ApiVersionsResponseApiKey) []kmsg.ApiVersionsResponseApiKey {
	known := make([]kmsg.ApiVersionsResponseApiKey, 0, len(offered))
	for _, r := range offered {
		if s, ok := shapes()[r.ApiKey]; ok && r.MinVersion <= s.newest {
			r.MaxVersion = min(r.MaxVersion, s.newest)
			known = append(known, r)
		}
	}
	return known
}

// answerApiVersions answers a request for ApiVersions: what both the broker and
// the gateway take.
func (c *conn) answerApiVersions(ctx context.Context, broker kmsg.Requestor, frame []byte) error {
	request, err := parseApiVersions(frame)
	if err != nil {
		return err
	}
	response, err := request.RequestWith(ctx, broker)
	if err != nil {
		return brokerError("ask for versions", err)
	}
	response.ApiKeys = common(response.ApiKeys)
	offerLogin(response)
	return c.respond(parseHeader(frame).correlation, response)
}

// offerLogin has an answer say which versions of the login the gateway takes. What
// the broker takes is of no concern to the client, and the embedded one knows
// fewer: librdkafka up to 2.0 at least, which Debian's kcat has, goes nowhere
// without version 0 of the handshake.
func offerLogin(response *kmsg.ApiVersionsResponse) {
	for i := range response.ApiKeys {
		switch k := &response.ApiKeys[i]; k.ApiKey {
		case keySaslHandshake:
			k.MinVersion, k.MaxVersion = 0, maxSaslHandshake
		case keySaslAuthenticate:
			k.MinVersion, k.MaxVersion = 0, maxSaslAuthenticate
		}
	}
}

// The newest versions of the login that the gateway takes.
const (
	maxSaslHandshake    = 1
	maxSaslAuthenticate = 2
)

// maxApiVersions is the newest version of ApiVersions whose body is known here.
const maxApiVersions = 5

// parseApiVersions checks a request for ApiVersions and reads it. Of a
// version that is not known yet only the number is kept: brokers answer it
// whatever else it says (KIP-511), but the embedded one has to understand it.
func parseApiVersions(frame []byte) (*kmsg.ApiVersionsRequest, error) {
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
	return request, nil
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

package gateway

import (
	"context"
	"slices"

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

// offerLogin adds the login to the requests of an answer. The gateway serves it, so
// what the broker offers of it does not matter: the embedded broker offers nothing, and an
// Apache Kafka other versions. librdkafka up to 2.0 at least, which Debian's kcat has, does not
// sign in where version 0 of the handshake is not offered.
func offerLogin(response *kmsg.ApiVersionsResponse) {
	if response.ErrorCode != 0 {
		return // the client is to ask again, in another version
	}
	response.ApiKeys = slices.DeleteFunc(response.ApiKeys, func(k kmsg.ApiVersionsResponseApiKey) bool {
		return k.ApiKey == keySaslHandshake || k.ApiKey == keySaslAuthenticate
	})
	for key, newest := range map[int16]int16{keySaslHandshake: maxSaslHandshake, keySaslAuthenticate: maxSaslAuthenticate} {
		offered := kmsg.NewApiVersionsResponseApiKey()
		offered.ApiKey, offered.MaxVersion = key, newest
		response.ApiKeys = append(response.ApiKeys, offered)
	}
	slices.SortFunc(response.ApiKeys, func(a, b kmsg.ApiVersionsResponseApiKey) int { return int(a.ApiKey) - int(b.ApiKey) })
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

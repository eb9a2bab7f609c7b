package gateway

import (
	"context"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// versions are the requests that are relayed, by API key, with their oldest and newest version.
type versions []struct{ key, min, max int16 }

// allow reports whether a request may be relayed.
func (v versions) allow(h header) bool {
	for _, r := range v {
		if r.key == h.key {
			return r.min <= h.version && h.version <= r.max
		}
	}
	return false
}

// learnVersions asks the broker which requests it supports.
func (c *conn) learnVersions(ctx context.Context) error {
	response, err := kmsg.NewPtrApiVersionsRequest().RequestWith(ctx, loginRequestor{c})
	if err != nil {
		return brokerError("ask for versions", err)
	}
	for _, r := range supported(response.ApiKeys) {
		c.versions = append(c.versions, struct{ key, min, max int16 }{r.ApiKey, r.MinVersion, r.MaxVersion})
	}
	return nil
}

// supported returns the requests, out of those that the broker offers, that the gateway supports
// too. A newer broker may offer versions with fields that the gateway cannot check.
func supported(offered []kmsg.ApiVersionsResponseApiKey) []kmsg.ApiVersionsResponseApiKey {
	known := make([]kmsg.ApiVersionsResponseApiKey, 0, len(offered))
	for _, r := range offered {
		if s, ok := shapes()[r.ApiKey]; ok && r.MinVersion <= s.newest {
			r.MaxVersion = min(r.MaxVersion, s.newest)
			known = append(known, r)
		}
	}
	return known
}

// answerApiVersions answers an ApiVersions request with what both the broker and the gateway
// support.
func (c *conn) answerApiVersions(ctx context.Context, broker kmsg.Requestor, frame []byte) error {
	request, err := parseApiVersions(frame)
	if err != nil {
		return err
	}
	response, err := request.RequestWith(ctx, broker)
	if err != nil {
		return brokerError("ask for versions", err)
	}
	response.ApiKeys = supported(response.ApiKeys)
	offerLogin(response)
	return c.respond(parseHeader(frame).correlation, response)
}

// offerLogin adds the login requests to the answer. The gateway handles them itself, so what the
// broker offers does not matter: the embedded broker offers none, and Apache Kafka offers other
// versions. Version 0 of the handshake must be offered, because librdkafka, at least up to 2.0,
// which Debian's kcat uses, does not sign in without it.
func offerLogin(response *kmsg.ApiVersionsResponse) {
	if response.ErrorCode != 0 {
		return // the client is expected to ask again in another version
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

// The newest versions of the login requests that the gateway supports.
const (
	maxSaslHandshake    = 1
	maxSaslAuthenticate = 2
)

// maxApiVersions is the newest version of ApiVersions whose body the gateway can parse.
const maxApiVersions = 5

// parseApiVersions parses and checks an ApiVersions request. For a version that it does not know,
// it keeps only the version number: brokers answer such a request whatever it holds (KIP-511), but
// the embedded broker would have to parse it.
func parseApiVersions(frame []byte) (*kmsg.ApiVersionsRequest, error) {
	h := parseHeader(frame)
	request := kmsg.NewPtrApiVersionsRequest()
	request.Version = h.version
	if h.version < 0 {
		return nil, frameError("%v", h)
	}
	if h.version <= maxApiVersions {
		_, r := parseHead(frame)
		readApiVersions(r, request)
		if !r.done() {
			return nil, frameError("malformed %v", h)
		}
	}
	return request, nil
}

func readApiVersions(r *requestReader, request *kmsg.ApiVersionsRequest) {
	if request.Version >= 3 {
		name, _ := r.compactBytes()
		version, _ := r.compactBytes()
		request.ClientSoftwareName, request.ClientSoftwareVersion = string(name), string(version)
	}
	if request.Version >= 5 {
		if cluster, ok := r.compactBytes(); ok {
			request.ClusterID = kmsg.StringPtr(string(cluster))
		}
		request.NodeID = int32(r.int32())
	}
	r.skipTags()
}

package gateway

import (
	"bytes"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/diaspora-streams/diaspora/globus"
)

// mechanism is a SASL mechanism in which the client sends one message.
type mechanism struct {
	// parse decodes the client's message. Its error is a *refusal.
	parse func(message []byte) (saslMessage, error)
	// refused returns the answer for a client that cannot receive a Kafka error, to be sent before
	// the connection is closed. If refused is nil, nothing is sent.
	refused func(*refusal) []byte
}

// saslMessage is the content of a client's SASL message.
type saslMessage struct {
	Credentials
	authzid string // the authorization identity, if the client sent one
}

// mechanisms are the SASL mechanisms by name. OAUTHBEARER has a message for refusals (RFC 7628,
// section 3.2.2). PLAIN has none.
var mechanisms = map[string]*mechanism{
	"OAUTHBEARER": {parse: parseOAuthBearer, refused: refuseOAuthBearer},
	"PLAIN":       {parse: parsePlain},
}

func refuseOAuthBearer(r *refusal) []byte {
	if errors.Is(r, globus.ErrMisconfigured) {
		return []byte(`{"status":"server_error"}`)
	}
	return []byte(`{"status":"invalid_token"}`)
}

func mechanismNames() []string { return slices.Sorted(maps.Keys(mechanisms)) }

const maxTokenBytes = 16 << 10

// parseOAuthBearer parses the client's message of OAUTHBEARER (RFC 7628, section 3.1),
//
//	n,a=AUTHZID,^Aauth=Bearer TOKEN^Akey=value^A^A
//
// where ^A is the byte 1. a=AUTHZID and the other keys are optional. It accepts no more than Apache
// Kafka does.
func parseOAuthBearer(message []byte) (saslMessage, error) {
	malformed := &refusal{reason: "the OAUTHBEARER message is malformed; is the access token pasted whole?"}
	header, rest, _ := bytes.Cut(message, []byte{1})
	authzid, ok := parseGS2Header(string(header))
	pairs, terminated := bytes.CutSuffix(rest, []byte{1, 1})
	if !ok || !terminated {
		return saslMessage{}, malformed
	}
	c := saslMessage{authzid: authzid}
	for pair := range bytes.SplitSeq(pairs, []byte{1}) {
		key, value, _ := strings.Cut(string(pair), "=")
		switch {
		case key != "auth":
			if !consistsOf(key, isLetter) || !consistsOf(value, isText) {
				return saslMessage{}, malformed
			}
		case c.Secret != "":
			return saslMessage{}, malformed
		default:
			scheme, token, _ := strings.Cut(value, " ")
			if !strings.EqualFold(scheme, "Bearer") || !isToken(token) {
				return saslMessage{}, malformed
			}
			c.Secret = globus.Secret(token)
		}
	}
	if c.Secret == "" {
		return saslMessage{}, malformed
	}
	return c, nil
}

// parseGS2Header parses "n,," or "n,a=AUTHZID,", the headers without channel binding.
func parseGS2Header(header string) (authzid string, ok bool) {
	rest, ok := strings.CutPrefix(header, "n,")
	if !ok {
		return "", false
	}
	if rest == "," {
		return "", true
	}
	authzid, prefixed := strings.CutPrefix(rest, "a=")
	authzid, suffixed := strings.CutSuffix(authzid, ",")
	isName := func(b byte) bool { return b > ' ' && b < 0x7f && b != ',' && b != '=' }
	return authzid, prefixed && suffixed && consistsOf(authzid, isName)
}

// isToken reports whether s is a b64token of RFC 6750.
func isToken(s string) bool {
	isTokenByte := func(b byte) bool {
		return isLetter(b) || b >= '0' && b <= '9' || strings.IndexByte("-._~+/", b) >= 0
	}
	return len(s) <= maxTokenBytes && consistsOf(strings.TrimRight(s, "="), isTokenByte)
}

func isLetter(b byte) bool { return b|0x20 >= 'a' && b|0x20 <= 'z' }
func isText(b byte) bool   { return b >= ' ' && b < 0x7f || b == '\t' || b == '\r' || b == '\n' }

// consistsOf reports whether s is not empty and ok accepts each of its bytes.
func consistsOf(s string, ok func(byte) bool) bool {
	for i := range len(s) {
		if !ok(s[i]) {
			return false
		}
	}
	return s != ""
}

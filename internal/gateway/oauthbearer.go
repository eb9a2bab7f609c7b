package gateway

import (
	"bytes"
	"strings"

	"github.com/diaspora-streams/diaspora/globus"
)

const (
	mechanismOAuthBearer = "OAUTHBEARER"
	maxTokenBytes        = 16 << 10
)

// oauthBearer is what a client's first message says (RFC 7628, section 3.1).
type oauthBearer struct {
	authzid string
	token   globus.Secret
}

// parseOAuthBearer reads
//
//	n,a=AUTHZID,^Aauth=Bearer TOKEN^Akey=value^A^A
//
// where ^A is the byte 1, and the authorization ID and the other keys are
// optional. It is as strict as Apache Kafka.
func parseOAuthBearer(message []byte) (oauthBearer, error) {
	malformed := &refusal{reason: "the OAUTHBEARER message is malformed"}
	header, rest, ok := bytes.Cut(message, []byte{1})
	if !ok || !bytes.HasSuffix(rest, []byte{1, 1}) {
		return oauthBearer{}, malformed
	}
	authzid, ok := parseGS2Header(string(header))
	if !ok {
		return oauthBearer{}, malformed
	}
	result := oauthBearer{authzid: authzid}
	for pair := range bytes.SplitSeq(rest[:len(rest)-2], []byte{1}) {
		key, value, ok := strings.Cut(string(pair), "=")
		if !ok || !isLetters(key) {
			return oauthBearer{}, malformed
		}
		if key != "auth" {
			continue // extensions are for others
		}
		if result.token != "" {
			return oauthBearer{}, malformed
		}
		scheme, token, _ := strings.Cut(value, " ")
		if !strings.EqualFold(scheme, "bearer") || !isToken(token) {
			return oauthBearer{}, malformed
		}
		result.token = globus.Secret(token)
	}
	if result.token == "" {
		return oauthBearer{}, malformed
	}
	return result, nil
}

func parseGS2Header(header string) (authzid string, ok bool) {
	rest, ok := strings.CutPrefix(header, "n,")
	if !ok {
		return "", false
	}
	rest, ok = strings.CutSuffix(rest, ",")
	if !ok || rest == "" {
		return "", ok
	}
	authzid, ok = strings.CutPrefix(rest, "a=")
	return authzid, ok && authzid != "" && !strings.ContainsAny(authzid, "\x00,=")
}

func isLetters(s string) bool {
	for i := range len(s) {
		if c := s[i] | 0x20; c < 'a' || c > 'z' {
			return false
		}
	}
	return s != ""
}

// isToken reports whether s is a b64token of RFC 6750.
func isToken(s string) bool {
	if len(s) > maxTokenBytes {
		return false
	}
	s = strings.TrimRight(s, "=")
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("-_~+/.", c) >= 0:
		default:
			return false
		}
	}
	return s != ""
}

package gateway

import (
	"bytes"
	"unicode/utf8"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// Limits for the two parts of an access key, far above their real sizes.
const (
	maxKeyIDBytes     = 256
	maxKeySecretBytes = 1 << 10
)

// parsePlain parses the client's message of PLAIN (RFC 4616),
//
//	[AUTHZID] NUL AUTHCID NUL PASSWORD
//
// where AUTHCID is the ID of an access key and PASSWORD its secret. Some clients send the ID as
// AUTHZID too. That requests no other identity, so it is accepted.
func parsePlain(message []byte) (saslMessage, error) {
	parts := bytes.Split(message, []byte{0})
	if len(parts) != 3 || len(parts[1]) > maxKeyIDBytes || len(parts[2]) > maxKeySecretBytes || !utf8.Valid(message) {
		return saslMessage{}, &refusal{reason: "the PLAIN message is malformed; is the access key pasted whole?"}
	}
	c := saslMessage{authzid: string(parts[0]), Credentials: Credentials{KeyID: string(parts[1]), Secret: globus.Secret(parts[2])}}
	if c.KeyID == "" || c.Secret == "" {
		return saslMessage{}, &refusal{reason: "with PLAIN the user name is the ID of an access key and the password its secret, and one of them is empty" + kafka.KeyHint}
	}
	if c.authzid == c.KeyID {
		c.authzid = ""
	}
	return c, nil
}

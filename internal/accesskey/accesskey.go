// Package accesskey knows what an access key looks like: its two parts, and the file in which
// "diaspora key create --save-env" puts it and which DIASPORA_KEY_FILE names ([File]).
//
// The file has lines of NAME=VALUE, so that a shell reads it as well, and so do
// systemd (EnvironmentFile=) and containers (--env-file):
//
//	DIASPORA_URL=https://diaspora.example.org
//	DIASPORA_KEY_ID=key-abcdefghij234567
//	DIASPORA_KEY_SECRET=dks_…
//
// It names the fabric next to the key, so that the key goes nowhere else.
package accesskey

import (
	"fmt"
	"strings"

	"github.com/diaspora-streams/diaspora/globus"
)

// The variables of a key.
const (
	IDVariable     = "DIASPORA_KEY_ID"
	SecretVariable = "DIASPORA_KEY_SECRET"
	FileVariable   = "DIASPORA_KEY_FILE"
)

// IsID reports whether s is the ID of an access key.
func IsID(s string) bool {
	letters, ok := strings.CutPrefix(s, "key-")
	return ok && len(letters) == 16 && !strings.ContainsFunc(letters, func(r rune) bool { return !('a' <= r && r <= 'z' || '2' <= r && r <= '7') })
}

// IsSecret reports whether s is the secret of an access key.
func IsSecret(s globus.Secret) bool {
	letters, ok := strings.CutPrefix(s.Reveal(), "dks_")
	other := func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '_' || r == '-')
	}
	return ok && len(letters) == 43 && !strings.ContainsFunc(letters, other)
}

// Fault says what is wrong with the two variables of a key, without showing either, and
// "" if nothing is. It knows what people put in their place.
func Fault(id, secret string) string {
	switch {
	case id == "" && secret == "":
		return ""
	case id == "" || secret == "":
		return IDVariable + " and " + SecretVariable + " belong together; one of them is not set"
	case strings.HasPrefix(id, "dks_"):
		return IDVariable + " holds the secret of an access key; the ID begins with key-"
	case strings.ContainsAny(id, "\"'`"):
		return IDVariable + " has quotation marks in it"
	case !IsID(id):
		return IDVariable + " is not the ID of an access key, which is key- and 16 letters, unlike its name"
	}
	if wrong := secretFault(secret); wrong != "" {
		return SecretVariable + " " + wrong
	}
	return ""
}

func secretFault(secret string) string {
	switch {
	case IsSecret(globus.Secret(secret)):
		return ""
	case strings.ContainsAny(secret, "\"'`"):
		return "has quotation marks in it"
	case strings.HasPrefix(secret, "key-"):
		return "holds the ID of an access key; the secret begins with dks_"
	case !strings.HasPrefix(secret, "dks_"):
		return "is not the secret of an access key, which begins with dks_"
	case len(secret) < len("dks_")+43:
		return "is cut off"
	}
	return "is too long, or has letters in it that no secret has"
}

// Misplaced says what is wrong with a DIASPORA_CLIENT_ID or DIASPORA_CLIENT_SECRET that is a part of an
// access key, and returns "" for any other.
func Misplaced(clientID, clientSecret string) string {
	for _, v := range []struct{ name, value string }{{"DIASPORA_CLIENT_ID", clientID}, {"DIASPORA_CLIENT_SECRET", clientSecret}} {
		if strings.HasPrefix(v.value, "key-") || strings.HasPrefix(v.value, "dks_") {
			return fmt.Sprintf("%s is for a client of Globus, and holds a part of an access key", v.name)
		}
	}
	return ""
}

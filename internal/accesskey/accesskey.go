// Package accesskey defines the form of an access key: its ID and secret, and the key file. The
// command "diaspora key create --save-env" writes such a file. The environment variable
// DIASPORA_KEY_FILE holds its path, and [FromEnv] reads it.
//
// The file has lines of the form NAME=VALUE:
//
//	DIASPORA_URL=https://diaspora.example.org
//	DIASPORA_KEY_ID=key-abcdefghij234567
//	DIASPORA_KEY_SECRET=dks_…
//
// A shell (set -a; . FILE) and systemd (EnvironmentFile=) can load it too, and so can container
// runtimes (--env-file) if no value is in quotes.
//
// DIASPORA_URL is the address of the fabric, the deployment of Diaspora Streams, that made the key.
// The library refuses to send the key to another one. [Read] refuses files that other users can read
// or change. No error of this package shows a secret.
package accesskey

import (
	"fmt"
	"strings"

	"github.com/diaspora-streams/diaspora/globus"
)

// The environment variables of an access key.
const (
	IDVariable     = "DIASPORA_KEY_ID"
	SecretVariable = "DIASPORA_KEY_SECRET"
	FileVariable   = "DIASPORA_KEY_FILE"
)

// FaultMark is what comes before the reason why a running program does not use the key that is now in its
// key file, in the error that says why events are pending.
const FaultMark = "; key file: "

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

// Fault returns what is wrong with the two variables of a key, or "". It shows neither value. It
// recognizes values that people often put there by mistake.
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
		return IDVariable + " is not the ID of an access key, which is key- and 16 letters and digits; it is not the name of the key"
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
	return "is too long, or has characters that a secret cannot have"
}

// MisplacedFault returns what is wrong if DIASPORA_CLIENT_ID or DIASPORA_CLIENT_SECRET holds a part of
// an access key, or "".
func MisplacedFault(clientID, clientSecret string) string {
	for _, v := range []struct{ name, value string }{{"DIASPORA_CLIENT_ID", clientID}, {"DIASPORA_CLIENT_SECRET", clientSecret}} {
		if strings.HasPrefix(v.value, "key-") || strings.HasPrefix(v.value, "dks_") {
			return fmt.Sprintf("%s is for a client of Globus, and holds a part of an access key", v.name)
		}
	}
	return ""
}

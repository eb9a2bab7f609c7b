package diaspora

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/accesskey"
	"github.com/diaspora-streams/diaspora/internal/terminal"
)

// What an ACL endpoint answers goes into files that other programs read, and onto
// terminals. So each field has to look as the service itself makes it: a name with a
// line feed in it would add a setting to a .properties file.

const (
	maxSubjectBytes     = 128
	maxKeyNameBytes     = 64
	maxShownBytes       = 8 << 10 // of what is only there to be shown
	maxDescriptionBytes = 1000
	maxAddressBytes     = 1000
	maxSentenceBytes    = 500 // of what an ACL endpoint says went wrong, and of its advice
)

// graphic reports whether s has only letters, digits and punctuation of ASCII, and none
// that begins or ends what is quoted somewhere.
func graphic(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune("\"'`\\<>", r) })
}

// word reports whether s has only letters, digits, dots, hyphens and underscores.
func word(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r >= 0x80 || !topicByte(byte(r)) && r != '.' && r != '-' })
}

// shown reports whether s can be shown to people: one line of text of a bounded length.
func shown(s string) bool {
	return len(s) <= maxShownBytes && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return unicode.In(r, unicode.Cc, unicode.Zl, unicode.Zp) })
}

func subject(s string) bool { return len(s) <= maxSubjectBytes && word(s) }

// tidy makes of what others wrote one line that commands no terminal.
func tidy(text string) string {
	return string(terminal.Escape(nil, []byte(strings.Join(strings.Fields(text), " "))))
}

// The functions below say what is wrong with a part of an answer, or "".

func identityFault(id globus.Identity) string {
	switch {
	case !subject(id.Subject):
		return "the subject is malformed"
	case !shown(id.Username) || !shown(id.Name) || !shown(id.Email) || !shown(id.Organization):
		return "the username, or another name of the person, is not a line of text"
	case slices.ContainsFunc(id.IdentitySet, func(s string) bool { return !subject(s) }):
		return "a linked identity is malformed"
	}
	return ""
}

// topicAnswerFault is about the topic with this name, or about any if it is "".
func topicAnswerFault(t Topic, name string) string {
	switch {
	case !kafkaTopic(t.Name):
		return "the topic's name is malformed"
	case name != "" && t.Name != name:
		return "it is about another topic"
	case !subject(t.Owner):
		return "the topic's owner is malformed"
	case len(t.Description) > maxDescriptionBytes || !shown(t.Description):
		return "the topic's description is not a line of text"
	}
	return ""
}

func keyFault(k AccessKey) string {
	switch {
	case !accesskey.IsID(k.ID):
		return "the access key's ID is malformed"
	case k.Name == "" || len(k.Name) > maxKeyNameBytes || !word(k.Name):
		return "the access key's name is malformed"
	case !subject(k.Owner):
		return "the access key's owner is malformed"
	case slices.ContainsFunc(k.Topics, func(t string) bool { return !kafkaTopic(t) }):
		return "the access key's topics are malformed"
	}
	return ""
}

// blockedFault is about the subject, or about any if it is "".
func blockedFault(b Blocked, about string) string {
	switch {
	case !subject(b.Subject) || !subject(b.By):
		return "a subject is malformed"
	case about != "" && b.Subject != about:
		return "it is about another subject"
	case len(b.Why) > maxDescriptionBytes || !shown(b.Why):
		return "the reason is not a line of text"
	}
	return ""
}

// firstFault returns the first fault of several parts of an answer.
func firstFault[T any](parts []T, fault func(T) string) string {
	for _, p := range parts {
		if f := fault(p); f != "" {
			return f
		}
	}
	return ""
}

// validate returns why the document of an ACL endpoint cannot be used.
func (d *Discovery) validate() error {
	bad := func(format string, args ...any) error {
		return &Error{Condition: ErrInvalid, Reason: "the fabric's discovery document " + fmt.Sprintf(format, args...)}
	}
	switch {
	case len(d.Brokers) == 0:
		return bad("names no brokers")
	case len(d.Brokers) > 1000:
		return bad("names %d brokers", len(d.Brokers))
	case d.Security != "tls" && d.Security != "plaintext":
		return bad("has security %q, which is neither tls nor plaintext", clip(d.Security))
	case d.MaxEventBytes < 0:
		return bad("has a negative size limit")
	case !shown(d.Version):
		return bad("has a version that is not a line of text")
	case len(d.CA) > maxCABytes:
		return bad("has certificates of more than %d bytes", maxCABytes)
	}
	for _, b := range d.Brokers {
		if err := validBroker(b); err != nil {
			return bad("names %q, which is not host:port", clip(b))
		}
	}
	if issuer := d.Globus.Issuer; issuer != "" {
		u, err := parseAddress(issuer)
		if err != nil || u.Scheme != "https" && !(u.Scheme == "http" && isLoopback(u.Hostname())) {
			return bad("has the issuer %q, which is not https", clip(issuer))
		}
	}
	if d.TokenURL != "" {
		if u, err := parseAddress(d.TokenURL); err != nil || u.Scheme != "https" && u.Scheme != "http" {
			return bad("has the token URL %q, which is none", clip(d.TokenURL))
		}
	}
	for name, value := range map[string]string{"client_id": d.Globus.ClientID, "resource_server": d.Globus.ResourceServer} {
		if len(value) > maxAddressBytes || !graphic(value) {
			return bad("has the %s %q, which is malformed", name, clip(value))
		}
	}
	// A scope may list those that it depends on, with spaces between.
	if scope := d.Globus.Scope; len(scope) > maxAddressBytes || !graphic(strings.ReplaceAll(scope, " ", "")) {
		return bad("has the scope %q, which is malformed", clip(scope))
	}
	return nil
}

// parseAddress parses a URL that a fabric names. It has to be of ASCII: what looks like one
// host must not be another.
func parseAddress(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return nil, err
	case u.Host == "" || u.User != nil || len(raw) > maxAddressBytes || !graphic(raw):
		return nil, invalid("it is not like https://host")
	}
	return u, nil
}

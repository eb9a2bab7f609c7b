package diaspora

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/accesskey"
	"github.com/diaspora-streams/diaspora/internal/terminal"
)

// Discovery is the document at /.well-known/diaspora of an ACL endpoint: all
// that a client needs to know of a fabric, so that one URL configures it.
type Discovery struct {
	// Version of the service, as `diaspora version` prints it.
	Version string `json:"version"`
	// Brokers are the bootstrap servers, as host:port.
	Brokers []string `json:"brokers"`
	// Security is "tls" or "plaintext"; the latter for loopback only.
	Security string `json:"security"`
	// CA holds PEM certificates to trust besides the system's. Optional.
	CA string `json:"ca,omitempty"`
	// Globus says where and as what to log in.
	Globus DiscoveryGlobus `json:"globus"`
	// MaxEventBytes bounds one event's key, value and headers together.
	MaxEventBytes int `json:"max_event_bytes"`
	// TokenURL is where an access key is exchanged for a token, for clients that
	// do OAuth's client credentials rather than SASL/PLAIN. Optional.
	TokenURL string `json:"token_url,omitempty"`
}

// DiscoveryGlobus is the part of [Discovery] that a login needs.
type DiscoveryGlobus struct {
	Issuer         string `json:"issuer"`          // for instance https://auth.globus.org
	ClientID       string `json:"client_id"`       // the public client that people log in through
	ResourceServer string `json:"resource_server"` // whose token the cluster takes
	Scope          string `json:"scope"`           // the scope of that token
}

// ClaimRequest is the body of POST /v1/topics.
type ClaimRequest struct {
	Name        string `json:"name"`
	Partitions  int    `json:"partitions,omitempty"`   // default: the service's
	RetentionMS int64  `json:"retention_ms,omitempty"` // default: the service's; -1 keeps events for ever
	Description string `json:"description,omitempty"`
}

// Topic is a claimed topic as the ACL endpoint shows it.
type Topic struct {
	Name        string    `json:"name"`
	Owner       string    `json:"owner"` // the owner's subject
	Partitions  int       `json:"partitions"`
	RetentionMS int64     `json:"retention_ms,omitempty"`
	Description string    `json:"description,omitempty"`
	Claimed     time.Time `json:"claimed"`
	// Created says in the answer to a claim that the topic is new, not already yours.
	Created bool `json:"created,omitempty"`
}

// TopicList is the answer of GET /v1/topics.
type TopicList struct {
	Topics []Topic `json:"topics"`
}

// AccessKeyRequest is the body of POST /v1/keys.
type AccessKeyRequest struct {
	// Name tells the caller's keys apart, for instance where the key is used:
	// letters, digits, dots, hyphens and underscores, at most 64.
	Name string `json:"name"`
	// Topics are the topics that the key is for. Default: all that its owner
	// has or will have.
	Topics []string `json:"topics,omitempty"`
	// Read and Write say what the key may do there. At least one is needed. A
	// key for all topics with both may do whatever its owner may do in Kafka.
	Read  bool `json:"read,omitempty"`
	Write bool `json:"write,omitempty"`
	// Expires is when the key ends by itself. Default: never.
	Expires time.Time `json:"expires,omitzero"`
}

// AccessKey is an access key as the ACL endpoint shows it: all but its secret.
type AccessKey struct {
	ID       string    `json:"id"` // the user name that it signs in with; no secret
	Name     string    `json:"name"`
	Owner    string    `json:"owner"`            // the owner's subject
	Topics   []string  `json:"topics,omitempty"` // none: all of the owner's
	Read     bool      `json:"read"`
	Write    bool      `json:"write"`
	Created  time.Time `json:"created"`
	Expires  time.Time `json:"expires,omitzero"`
	LastUsed time.Time `json:"last_used,omitzero"` // the day, in UTC, on which somebody last signed in with it
	Ended    time.Time `json:"ended,omitzero"`     // when it was revoked, or was found to have expired
}

// NewAccessKey is the answer of POST /v1/keys, and the only one that has the secret.
type NewAccessKey struct {
	AccessKey
	Secret globus.Secret `json:"secret"` // the password that goes with the ID
}

// AccessKeyList is the answer of GET /v1/keys.
type AccessKeyList struct {
	Keys []AccessKey `json:"keys"`
}

// BlockRequest is the body of POST /v1/admin/blocked.
type BlockRequest struct {
	Subject string `json:"subject"` // whom to shut out
	Why     string `json:"why"`     // for other operators: a line of at most 1,000 bytes
}

// Blocked is a subject that operators have shut out.
type Blocked struct {
	Subject string    `json:"subject"`
	Why     string    `json:"why"`
	By      string    `json:"by"` // the operator's subject
	Since   time.Time `json:"since"`
}

// BlockedList is the answer of GET /v1/admin/blocked.
type BlockedList struct {
	Blocked []Blocked `json:"blocked"`
}

// Problem is the one shape of an error answer (RFC 9457, application/problem+json).
type Problem struct {
	Type   string `json:"type,omitempty"`  // a URI reference that names the condition, for instance "/problems/conflict"
	Title  string `json:"title"`           // the condition in words, the same for every occurrence
	Status int    `json:"status"`          // the HTTP status
	Detail string `json:"detail"`          // what failed, on what, why
	Hint   string `json:"hint,omitempty"`  // what to do next
	Topic  string `json:"topic,omitempty"` // the topic at hand
}

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

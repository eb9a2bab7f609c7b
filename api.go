package diaspora

import (
	"time"

	"github.com/diaspora-streams/diaspora/globus"
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

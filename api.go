package diaspora

import (
	"fmt"
	"strings"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/aclclient"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

// The tag "form" says which text a [Client] accepts in a field of a response. Without it, the text must be
// one line. Package aclclient defines the forms.

// Discovery is the document that an ACL endpoint serves at /.well-known/diaspora. It describes the
// fabric, so that clients need to know only one URL.
type Discovery struct {
	// Version is the version of the service, as `diaspora version` prints it.
	Version string `json:"version"`
	// Brokers are the bootstrap servers, as host:port.
	Brokers []string `json:"brokers"`
	// Security is "tls" or "plaintext". "plaintext" is for loopback addresses only.
	Security string `json:"security"`
	// CA holds PEM certificates to trust in addition to the system's. Optional.
	CA string `json:"ca,omitempty" form:"certificates"`
	// Globus says how to log in.
	Globus DiscoveryGlobus `json:"globus"`
	// MaxEventBytes is the maximum size of an event: key, value and headers together.
	MaxEventBytes int `json:"max_event_bytes"`
	// TokenURL is where clients exchange an access key for a token, if they use OAuth's client
	// credentials grant instead of SASL/PLAIN. Optional.
	TokenURL string `json:"token_url,omitempty"`
	// Limits are those of topics and access keys. Nil if the service does not say.
	Limits *DiscoveryLimits `json:"limits,omitempty"`
}

// DiscoveryLimits is the part of [Discovery] that says what a person can have, and which settings a
// topic can have.
type DiscoveryLimits struct {
	Topics             int   `json:"topics"`                     // of one person
	Partitions         int   `json:"partitions"`                 // of all topics of one person
	TopicPartitions    int   `json:"topic_partitions"`           // of one topic
	Keys               int   `json:"keys"`                       // access keys of one person at a time
	Shares             int   `json:"shares"`                     // with how many people and groups one topic can be shared
	DefaultRetentionMS int64 `json:"default_retention_ms"`       // -1 means forever
	MaxRetentionMS     int64 `json:"max_retention_ms,omitempty"` // 0 means that there is no limit
	Compaction         bool  `json:"compaction"`                 // whether topics can be compacted
	RestorableMS       int64 `json:"restorable_ms"`              // for how long a released topic can be restored
}

// DiscoveryGlobus is the part of [Discovery] that a login needs.
type DiscoveryGlobus struct {
	Issuer         string `json:"issuer"`          // for instance https://auth.globus.org
	ClientID       string `json:"client_id"`       // the public client that people use to log in
	ResourceServer string `json:"resource_server"` // the resource server whose tokens the cluster accepts
	Scope          string `json:"scope"`           // the scope of that token
}

// ClaimRequest is the body of POST /v1/topics.
type ClaimRequest struct {
	Name        string `json:"name"`
	Partitions  int    `json:"partitions,omitempty"`   // default: set by the service
	RetentionMS int64  `json:"retention_ms,omitempty"` // default: set by the service; -1 keeps events forever
	Description string `json:"description,omitempty"`
}

// Topic describes a claimed topic.
type Topic struct {
	Name  string `json:"name" form:"topic"`
	Owner string `json:"owner" form:"subject"` // the owner's subject
	// OwnerUsername is the owner's username at Globus, if it is known.
	OwnerUsername string `json:"owner_username,omitempty"`
	Partitions    int    `json:"partitions"`
	RetentionMS   int64  `json:"retention_ms,omitempty"`
	// MaxBytes is the size of a partition above which its oldest events are deleted; 0 means no limit.
	MaxBytes int64 `json:"max_bytes,omitempty"`
	// Compact says that only the last event of each key is kept.
	Compact     bool      `json:"compact,omitempty"`
	Description string    `json:"description,omitempty" form:"short line"`
	Claimed     time.Time `json:"claimed"`
	// Public says that everybody who signs in may read the topic.
	Public bool `json:"public,omitempty"`
	// Read, Write and Manage say what the caller may do.
	Read   bool `json:"read,omitempty"`
	Write  bool `json:"write,omitempty"`
	Manage bool `json:"manage,omitempty"`
	// OfferedTo is the subject to whom the owner has offered the topic.
	OfferedTo string `json:"offered_to,omitempty" form:"subject"`
	// Released is set when the topic was released. It is deleted at this time. Until then it can be
	// restored, and nobody can use it.
	Released time.Time `json:"released,omitzero"`
	// Usage is how much is in the topic. Nil if that is not known at the moment.
	Usage *TopicUsage `json:"usage,omitempty"`
	// Created is true in the response to a claim if the claim created the topic.
	Created bool `json:"created,omitempty"`
}

// TopicUsage says how much is in a topic.
type TopicUsage struct {
	Records int64 `json:"records"` // with compaction, it may be fewer
	Bytes   int64 `json:"bytes"`   // on disk, of one replica
	// LastEvent is when the last event was logged. Zero if there is none, or if it has expired.
	LastEvent time.Time `json:"last_event,omitzero"`
}

// TopicList is the response to GET /v1/topics.
type TopicList struct {
	Topics  []Topic `json:"topics"`            // of the caller
	Shared  []Topic `json:"shared,omitempty"`  // that others share with the caller
	Public  []Topic `json:"public,omitempty"`  // that everybody may read
	Offered []Topic `json:"offered,omitempty"` // that their owners want to transfer to the caller
}

// TopicSettings is the body of PATCH /v1/topics/{name}. A zero or nil field changes nothing.
type TopicSettings struct {
	Partitions  int     `json:"partitions,omitempty"`   // can only grow
	RetentionMS int64   `json:"retention_ms,omitempty"` // -1 keeps events forever
	MaxBytes    int64   `json:"max_bytes,omitempty"`    // of each partition; -1 means no limit
	Description *string `json:"description,omitempty"`
	Compact     *bool   `json:"compact,omitempty"`
}

// TopicChange is the response to PATCH /v1/topics/{name}.
type TopicChange struct {
	Before Topic `json:"before"`
	After  Topic `json:"after"`
}

// GrantRequest is the body of POST /v1/topics/{name}/grants. It names one grantee: a person by
// Subject, by Username or by both, a Globus group, or everybody.
type GrantRequest struct {
	Subject  string `json:"subject,omitempty"`  // the ID of an identity at Globus
	Username string `json:"username,omitempty"` // the service looks it up
	Group    string `json:"group,omitempty"`    // the ID of a Globus group, whose members get the rights
	Public   bool   `json:"public,omitempty"`   // everybody who signs in; to read only
	// Read, Write and Manage are the rights. Manage includes the other two; it allows to share the
	// topic and to change its settings.
	Read   bool `json:"read,omitempty"`
	Write  bool `json:"write,omitempty"`
	Manage bool `json:"manage,omitempty"`
	// Expires is when the rights end. Default: never.
	Expires time.Time `json:"expires,omitzero"`
}

// Grant says with whom a topic is shared: a person, a Globus group, or everybody.
type Grant struct {
	Subject  string        `json:"subject,omitempty" form:"subject"`
	Username string        `json:"username,omitempty"` // of the person when the topic was shared
	Group    string        `json:"group,omitempty" form:"group"`
	Members  []GroupMember `json:"members,omitempty"` // of the group
	Public   bool          `json:"public,omitempty"`
	Read     bool          `json:"read,omitempty"`
	Write    bool          `json:"write,omitempty"`
	Manage   bool          `json:"manage,omitempty"`
	By       string        `json:"by" form:"subject"` // the subject who shared the topic
	Since    time.Time     `json:"since"`
	Expires  time.Time     `json:"expires,omitzero"`
}

// GroupMember is a member of a Globus group with which a topic is shared.
type GroupMember struct {
	Subject  string `json:"subject" form:"subject"`
	Username string `json:"username,omitempty"` // if it is known
	Service  bool   `json:"service,omitempty"`  // the identity with which the fabric reads the members
}

// GrantList is the response to GET /v1/topics/{name}/grants.
type GrantList struct {
	Grants []Grant `json:"grants"`
}

// TopicEvent is something that was done to a topic. Which fields are set depends on Op.
type TopicEvent struct {
	Time time.Time `json:"time"`
	By   string    `json:"by,omitempty" form:"subject"` // the subject who did it; "" means the service itself
	// Username is that of By, if it is known.
	Username string `json:"username,omitempty"`
	// Op is "claim", "share", "unshare", "share_expired", "set", "offer", "accept", "retire" (released, and
	// restorable until Until), "restore", "issue_key", "revoke_key" or "key_expired".
	Op      string         `json:"op"`
	Grant   *Grant         `json:"grant,omitempty"`                  // of a share
	Set     *TopicSettings `json:"set,omitempty"`                    // of a claim or a change
	Subject string         `json:"subject,omitempty" form:"subject"` // to whom the topic was offered, or who accepted it
	// SubjectUsername is that of Subject, if it is known.
	SubjectUsername string    `json:"subject_username,omitempty"`
	Key             string    `json:"key,omitempty" form:"key"` // the ID of an access key that names the topic
	KeyName         string    `json:"key_name,omitempty"`
	Read            bool      `json:"read,omitempty"`  // what the key may do
	Write           bool      `json:"write,omitempty"` // likewise
	Until           time.Time `json:"until,omitzero"`
}

// TopicLog is the response to GET /v1/topics/{name}/log.
type TopicLog struct {
	Events []TopicEvent `json:"events"` // oldest first
}

// Reader is a consumer group that has read a topic.
type Reader struct {
	Subject  string `json:"subject" form:"subject"` // whose group it is
	Username string `json:"username,omitempty"`
	Group    string `json:"group"`
	Members  int    `json:"members"`             // that are active
	Lag      int64  `json:"lag"`                 // how many events it has not read yet
	NoAccess bool   `json:"no_access,omitempty"` // the subject may not read the topic any more
}

// ReaderList is the response to GET /v1/topics/{name}/readers.
type ReaderList struct {
	Readers []Reader `json:"readers"`
}

// Transfer is the body of POST /v1/topics/{name}/transfer. It names the new owner by Subject, by
// Username or by both.
type Transfer struct {
	Subject  string `json:"subject,omitempty"`
	Username string `json:"username,omitempty"`
}

// AccessKeyRequest is the body of POST /v1/keys.
type AccessKeyRequest struct {
	// Name distinguishes the caller's keys, for instance by where they are used. It has at most 64
	// letters, digits, dots, hyphens and underscores.
	Name string `json:"name"`
	// Topics are the topics that the key may use. Default: all topics that its owner has or will
	// have.
	Topics []string `json:"topics,omitempty"`
	// Read and Write say what the key may do there; at least one is required. A key with both, for
	// all topics, may do in Kafka whatever its owner may do.
	Read  bool `json:"read,omitempty"`
	Write bool `json:"write,omitempty"`
	// Expires is when the key expires. Default: never.
	Expires time.Time `json:"expires,omitzero"`
}

// AccessKey describes an access key, without its secret.
type AccessKey struct {
	ID       string    `json:"id" form:"key"` // the user name for signing in; not secret
	Name     string    `json:"name" form:"key name"`
	Owner    string    `json:"owner" form:"subject"`          // the owner's subject
	Topics   []string  `json:"topics,omitempty" form:"topic"` // empty means all topics of the owner
	Read     bool      `json:"read"`
	Write    bool      `json:"write"`
	Created  time.Time `json:"created"`
	Expires  time.Time `json:"expires,omitzero"`
	LastUsed time.Time `json:"last_used,omitzero"` // the day, in UTC, of the last login with this key
	Ended    time.Time `json:"ended,omitzero"`     // when it was revoked, or found to have expired
	// NoAccess are those of Topics on which the owner has none of the key's rights at the moment. It is
	// set in a list of keys only.
	NoAccess []string `json:"no_access,omitempty" form:"topic"`
}

// NewAccessKey is the response to POST /v1/keys. No other response contains the secret.
type NewAccessKey struct {
	AccessKey
	Secret globus.Secret `json:"secret" form:"secret"` // the password that goes with the ID
}

// AccessKeyList is the response to GET /v1/keys.
type AccessKeyList struct {
	Keys []AccessKey `json:"keys"`
}

// BlockRequest is the body of POST /v1/admin/blocked.
type BlockRequest struct {
	Subject string `json:"subject"` // the subject to block
	Why     string `json:"why"`     // the reason, for other operators: one line of at most 1,000 bytes
}

// Blocked is a subject that an operator has blocked.
type Blocked struct {
	Subject string    `json:"subject" form:"subject"`
	Why     string    `json:"why" form:"short line"`
	By      string    `json:"by" form:"subject"` // the operator's subject
	Since   time.Time `json:"since"`
}

// BlockedList is the response to GET /v1/admin/blocked.
type BlockedList struct {
	Blocked []Blocked `json:"blocked"`
}

// Problem is the body of every error response (RFC 9457, application/problem+json).
type Problem struct {
	Type   string `json:"type,omitempty"`  // a URI reference that identifies the condition, for instance "/problems/conflict"
	Title  string `json:"title"`           // the condition in words, always the same for the same Type
	Status int    `json:"status"`          // the HTTP status
	Detail string `json:"detail"`          // what failed, on which object, and why
	Hint   string `json:"hint,omitempty"`  // what to do next
	Topic  string `json:"topic,omitempty"` // the topic concerned
}

// validate returns why the discovery document cannot be used, or nil.
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
	case !aclclient.IsLine(d.Version):
		return bad("has a version that is not a line of text")
	case len(d.CA) > trust.MaxCABytes:
		return bad("has certificates of more than %d bytes", trust.MaxCABytes)
	}
	for _, b := range d.Brokers {
		if err := aclclient.CheckBroker(b); err != nil {
			return bad("names %q, which is not host:port", clip(b))
		}
	}
	if issuer := d.Globus.Issuer; issuer != "" {
		u, err := aclclient.ParseDiscovered(issuer)
		if err != nil || u.Scheme != "https" && !(u.Scheme == "http" && trust.IsLoopback(u.Hostname())) {
			return bad("has the issuer %q, which is not https", clip(issuer))
		}
	}
	if d.TokenURL != "" {
		if u, err := aclclient.ParseDiscovered(d.TokenURL); err != nil || u.Scheme != "https" && u.Scheme != "http" {
			return bad("has %q as token URL, which is not a URL", clip(d.TokenURL))
		}
	}
	for name, value := range map[string]string{"client_id": d.Globus.ClientID, "resource_server": d.Globus.ResourceServer} {
		if len(value) > aclclient.MaxFieldBytes || !aclclient.IsQuotable(value) {
			return bad("has the %s %q, which is malformed", name, clip(value))
		}
	}
	// A scope may list, separated by spaces, the scopes that it depends on.
	if scope := d.Globus.Scope; len(scope) > aclclient.MaxFieldBytes || !aclclient.IsQuotable(strings.ReplaceAll(scope, " ", "")) {
		return bad("has the scope %q, which is malformed", clip(scope))
	}
	return nil
}

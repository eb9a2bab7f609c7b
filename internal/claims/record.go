package claims

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/diaspora-streams/diaspora"
)

// version is the newest version of the ledger's format that this code understands. Each record is
// written in the lowest version that has its operation; see versionOf.
const version = 4

// The limits of a record.
const (
	maxRecordBytes      = 8 << 10
	maxDescriptionBytes = 1000
	maxSubjectBytes     = 128
	maxGroupBytes       = 249
	maxIDBytes          = 64
	maxRetentionMS      = 100 * 365 * 24 * 60 * 60 * 1000 // a hundred years
	maxKeyNameBytes     = 64
	maxKeyTopicsBytes   = 4 << 10 // of all topic names of a key together
	maxWhyBytes         = 1000
	maxUsernameBytes    = 256
	maxMembersAtOnce    = 100     // of a group, in one record
	maxTopicBytes       = 1 << 60 // the largest limit for the size of a topic
)

// The operations of version 1.
const (
	opClaim      = "claim"       // by claims the topic
	opRelease    = "release"     // by releases the topic; its events are being deleted
	opReleased   = "released"    // they have been deleted; the name is free
	opClear      = "clear"       // nobody owns the topic, and what is left of it is being deleted
	opClaimGroup = "claim_group" // by claims the consumer group
)

// The operations of version 2.
const (
	opIssueKey   = "issue_key"   // by gets an access key
	opRevokeKey  = "revoke_key"  // by revokes an access key
	opKeyExpired = "key_expired" // an access key has expired
	opKeyUsed    = "key_used"    // a client signed in with it, for the first time on that day
)

// The operations of version 3.
const (
	opBlock   = "block"   // by, an operator, blocks the subject
	opUnblock = "unblock" // by, an operator, unblocks the subject
)

// The operations of version 4.
const (
	opShare        = "share"         // by gives grantee rights on the topic, in place of those that it has
	opUnshare      = "unshare"       // by takes them away
	opShareExpired = "share_expired" // they have expired
	opLink         = "link"          // the identity subject belongs to the person who signs in as by
	opUnlink       = "unlink"        // it does not any more
	opMembers      = "members"       // who joined a Globus group, and who left it
	opSet          = "set"           // by changes settings of the topic
	opOffer        = "offer"         // by, the owner, offers the topic to subject
	opAccept       = "accept"        // subject becomes the owner of the topic that it was offered
	opRetire       = "retire"        // by, the owner, releases the topic; until expires it can be restored
	opRestore      = "restore"       // by, the owner, restores it
	opRetireEnds   = "retire_ends"   // it cannot be restored any more; its events are being deleted
)

// versionOf returns the version of the format that an operation belongs to, or
// 0 if there is no such operation.
func versionOf(op string) int {
	switch op {
	case opClaim, opRelease, opReleased, opClear, opClaimGroup:
		return 1
	case opIssueKey, opRevokeKey, opKeyExpired, opKeyUsed:
		return 2
	case opBlock, opUnblock:
		return 3
	case opShare, opUnshare, opShareExpired, opLink, opUnlink, opMembers, opSet, opOffer, opAccept, opRetire, opRestore, opRetireEnds:
		return 4
	}
	return 0
}

// record is one entry of the ledger. The package comment documents the format.
type record struct {
	Version     int       `json:"v"`
	Op          string    `json:"op"`
	ID          string    `json:"id"`
	Time        time.Time `json:"time"`
	By          string    `json:"by"`
	Topic       string    `json:"topic,omitempty"`
	Group       string    `json:"group,omitempty"`
	Partitions  int       `json:"partitions,omitempty"`
	RetentionMS int64     `json:"retention_ms,omitempty"`
	Description string    `json:"description,omitempty"`
	Limit       int       `json:"limit,omitempty"`
	Claim       *int64    `json:"claim,omitempty"`

	Key     string    `json:"key,omitempty"`
	Name    string    `json:"name,omitempty"`
	Hash    keyHash   `json:"hash,omitzero"`
	Topics  []string  `json:"topics,omitempty"`
	Read    bool      `json:"read,omitempty"`
	Write   bool      `json:"write,omitempty"`
	Expires time.Time `json:"expires,omitzero"`

	Subject string `json:"subject,omitempty"`
	Why     string `json:"why,omitempty"`

	Grantee  string    `json:"grantee,omitempty"`
	Username string    `json:"username,omitempty"`
	Manage   bool      `json:"manage,omitempty"`
	Joined   []string  `json:"joined,omitempty"`
	Left     []string  `json:"left,omitempty"`
	After    string    `json:"after,omitempty"`
	Set      *settings `json:"set,omitempty"`
}

// settings are changes of a topic's settings. A zero or nil field changes nothing.
type settings struct {
	Partitions  int     `json:"partitions,omitempty"`
	RetentionMS int64   `json:"retention_ms,omitempty"` // -1: forever
	MaxBytes    int64   `json:"max_bytes,omitempty"`    // of each partition; -1: no limit
	Description *string `json:"description,omitempty"`
	Compact     *bool   `json:"compact,omitempty"`
}

// key returns the key of the record in the ledger. It also helps people who read the ledger with
// Kafka tools.
func (r record) key() string {
	switch {
	case r.Op == opClaimGroup:
		return "group/" + r.Group
	case r.Op == opMembers:
		return "grantee/" + r.Grantee
	case r.Op == opOffer || r.Op == opAccept: // they name a subject as well
		return "topic/" + r.Topic
	case r.Key != "":
		return "key/" + r.Key
	case r.Subject != "":
		return "subject/" + r.Subject
	}
	return "topic/" + r.Topic
}

// laterVersionError means that a later version of the service wrote the record, and that this
// version may not know its meaning.
type laterVersionError int

func (e laterVersionError) Error() string {
	return fmt.Sprintf("the record has version %d of the format, and this service knows up to %d", int(e), version)
}

// encode returns the record in the form in which the ledger holds it. It fails if decode would not
// accept the record.
func encode(r record) ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	value, err := json.Marshal(r)
	if err == nil && len(value) > maxRecordBytes {
		err = fmt.Errorf("the record has %d bytes, and at most %d are allowed", len(value), maxRecordBytes)
	}
	return value, err
}

// decode decodes a record of the ledger. It ignores fields that it does not know. A field that a
// reader must not ignore comes with a higher version, for which decode returns a
// [laterVersionError].
func decode(value []byte) (record, error) {
	if len(value) > maxRecordBytes {
		return record{}, fmt.Errorf("it has %d bytes, and at most %d are allowed", len(value), maxRecordBytes)
	}
	if r, ok := parse(value); ok && r.Version <= version {
		return r, r.check()
	}
	var r record
	err := json.Unmarshal(value, &r)
	if err == nil && r.Version <= version {
		return r, r.check()
	}
	// In a later version the fields may have other types.
	var head struct {
		Version int `json:"v"`
	}
	if err := json.Unmarshal(value, &head); err != nil {
		return record{}, fmt.Errorf("it is not a record: %w", err)
	}
	if head.Version > version {
		return record{}, laterVersionError(head.Version)
	}
	return record{}, fmt.Errorf("it is not a record: %w", err)
}

// check returns what is wrong with the record itself. Whether the record takes effect depends on
// its position in the ledger.
func (r record) check() error {
	switch {
	case r.Version == 0 || r.Version != versionOf(r.Op):
		return fmt.Errorf("it has version %d and the operation %.20q", r.Version, r.Op)
	case r.ID == "" || len(r.ID) > maxIDBytes:
		return errors.New("it has no usable id")
	}
	if err := checkSubject(r.By); err != nil {
		return err
	}
	switch r.Op {
	case opClaim:
		return r.checkClaim()
	case opRelease, opReleased, opClear:
		if r.Claim == nil || *r.Claim < 0 {
			return errors.New("it does not say which claim it is about")
		}
		return diaspora.ValidTopic(r.Topic)
	case opClaimGroup:
		return cmp.Or(r.checkLimit(), checkGroup(r.Group))
	case opIssueKey:
		return r.checkIssueKey()
	case opBlock:
		return errors.Join(checkSubject(r.Subject), checkWhy(r.Why))
	case opUnblock:
		return checkSubject(r.Subject)
	case opRevokeKey, opKeyExpired, opKeyUsed:
		return checkKeyID(r.Key)
	case opLink, opUnlink:
		return cmp.Or(r.checkAfter(), CheckPerson(r.By), CheckPerson(r.Subject))
	case opMembers:
		return r.checkMembers()
	default:
		return r.checkChange()
	}
}

// checkChange checks the records of version 4 that change a claimed topic.
func (r record) checkChange() error {
	if r.Claim == nil || *r.Claim < 0 {
		return errors.New("it does not say which claim it is about")
	}
	if err := diaspora.ValidTopic(r.Topic); err != nil {
		return err
	}
	switch r.Op {
	case opShare:
		return cmp.Or(r.checkLimit(), checkGrant(r.Grantee, r.rights()), checkLine("a username", r.Username, maxUsernameBytes))
	case opUnshare, opShareExpired:
		return checkGrantee(r.Grantee)
	case opSet:
		return r.Set.check()
	case opOffer:
		return CheckPerson(r.Subject)
	case opAccept:
		return cmp.Or(r.checkLimit(), CheckPerson(r.Subject))
	case opRetire:
		if r.Expires.IsZero() {
			return errors.New("it does not say until when the topic can be restored")
		}
	}
	return nil
}

// checkAfter checks the ID of another record.
func (r record) checkAfter() error {
	if len(r.After) > maxIDBytes {
		return errors.New("it follows a record with no usable id")
	}
	return nil
}

func (r record) checkMembers() error {
	if !isGroup(r.Grantee) {
		return errors.New("it is not about a group")
	}
	if n := len(r.Joined) + len(r.Left); n < 1 || n > maxMembersAtOnce {
		return fmt.Errorf("it names %d members", n)
	}
	for _, subject := range slices.Concat(r.Joined, r.Left) {
		if err := CheckPerson(subject); err != nil {
			return err
		}
	}
	return cmp.Or(r.checkAfter(), checkGrantee(r.Grantee))
}

func (set *settings) check() error {
	switch {
	case set == nil || *set == (settings{}):
		return errors.New("it changes nothing")
	case set.Partitions < 0:
		return errors.New("it has no usable number of partitions")
	case set.RetentionMS != 0 && !validRetention(set.RetentionMS):
		return errors.New("it has no usable retention")
	case set.MaxBytes != 0 && !validMaxBytes(set.MaxBytes):
		return errors.New("it has no usable size")
	case set.Description != nil:
		return checkDescription(*set.Description)
	}
	return nil
}

func validMaxBytes(n int64) bool { return n == -1 || 1 <= n && n <= maxTopicBytes }

func (r record) checkLimit() error {
	if r.Limit < 1 {
		return errors.New("it has no limit")
	}
	return nil
}

func (r record) checkIssueKey() error {
	if r.Hash == (keyHash{}) {
		return errors.New("it has no hash")
	}
	return cmp.Or(checkKeyID(r.Key), r.checkLimit(), checkKey(r.By, r.Name, r.Topics, r.Read, r.Write))
}

func (r record) checkClaim() error {
	switch {
	case r.Partitions < 1:
		return errors.New("it has no partitions")
	case !validRetention(r.RetentionMS):
		return errors.New("it has no usable retention")
	}
	return cmp.Or(r.checkLimit(), checkDescription(r.Description), diaspora.ValidTopic(r.Topic))
}

func validRetention(ms int64) bool { return ms == -1 || 1 <= ms && ms <= maxRetentionMS }

// checkSubject makes sure that no subject is a wildcard to the broker. Subjects of Globus are
// UUIDs.
func checkSubject(subject string) error { return checkName("a subject", subject, maxSubjectBytes) }

// checkGroup checks the ID of a consumer group. To the broker, the group "*" means every group.
func checkGroup(group string) error {
	if strings.HasPrefix(group, "_") {
		return errors.New("a consumer group's ID cannot start with an underscore")
	}
	return checkName("a consumer group's ID", group, maxGroupBytes)
}

// checkName checks a name that becomes a part of ACLs, or of a record's key.
func checkName(what, name string, maxBytes int) error {
	if name == "" || len(name) > maxBytes {
		return fmt.Errorf("%s has 1 to %d characters", what, maxBytes)
	}
	for _, c := range []byte(name) {
		if !nameByte(c) {
			return errors.New(what + " has only letters, digits, dots, hyphens and underscores")
		}
	}
	return nil
}

func nameByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '-' || c == '_'
}

func checkDescription(description string) error {
	return checkLine("a description", description, maxDescriptionBytes)
}

// checkWhy checks the reason for a block.
func checkWhy(why string) error {
	if strings.TrimSpace(why) == "" {
		return errors.New("a reason is missing")
	}
	return checkLine("a reason", why, maxWhyBytes)
}

// checkLine checks a line of text that people will read.
func checkLine(what, text string, maxBytes int) error {
	switch {
	case len(text) > maxBytes:
		return fmt.Errorf("%s has at most %d bytes", what, maxBytes)
	case !utf8.ValidString(text):
		return errors.New(what + " is text in UTF-8")
	case strings.ContainsFunc(text, func(c rune) bool { return !unicode.IsPrint(c) }):
		return errors.New(what + " is one line of printable characters")
	}
	return nil
}

package claims

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unique"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/accesskey"
	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// The form of an access key. Both parts consist of letters, digits, hyphens and underscores, none
// of which has to be escaped in SASL, JAAS or HTTP Basic authentication.
const (
	keyIDPrefix     = "key-"
	keyIDLetters    = 16 // in base32
	keySecretPrefix = "dks_"
	keySecretBytes  = 32
)

// newKeyID returns a random ID. It does not check whether the ID was used before, because keys that
// ended long ago are forgotten. Among a billion keys, the chance that two have the same 80 bits is
// one in two million, and an attacker cannot influence it.
func newKeyID() string { return keyIDPrefix + strings.ToLower(rand.Text()[:keyIDLetters]) }

func newKeySecret() globus.Secret {
	secret := make([]byte, keySecretBytes)
	rand.Read(secret)
	return globus.Secret(keySecretPrefix + base64.RawURLEncoding.EncodeToString(secret))
}

// keyHash is the SHA-256 of a key's secret. The secret itself is not stored. Slow hashes and salt
// protect passwords that people choose, because those can be guessed. A secret is one of 2²⁵⁶
// equally likely values: an attacker who has the hash and tries a trillion secrets a second finds
// it no sooner than after the age of the universe. And checking a login must be cheap, or logins
// could be used to overload the service.
type keyHash [sha256.Size]byte

func hashOf(secret globus.Secret) keyHash { return sha256.Sum256([]byte(secret)) }

// matches reports whether the secret has this hash, in constant time.
func (h keyHash) matches(secret globus.Secret) bool {
	other := hashOf(secret)
	return subtle.ConstantTimeCompare(h[:], other[:]) == 1
}

func (h keyHash) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h[:]), nil }

func (h *keyHash) UnmarshalText(text []byte) error {
	if len(text) != 2*len(h) {
		return fmt.Errorf("a hash has %d digits", 2*len(h))
	}
	_, err := hex.Decode(h[:], text)
	return err
}

func checkKeyID(id string) error {
	if !accesskey.IsID(id) {
		return errors.New("the ID of an access key is " + keyIDPrefix + " and 16 letters")
	}
	return nil
}

// checkKeyName checks the name of an access key. A name cannot look like an ID, so that commands
// can take either. It cannot look like a secret either, so that no secret is stored as a name by
// mistake.
func checkKeyName(name string) error {
	if strings.HasPrefix(name, keyIDPrefix) || strings.HasPrefix(name, keySecretPrefix) {
		return errors.New("an access key's name does not begin with " + keyIDPrefix + " as IDs do, nor with " + keySecretPrefix + " as secrets do")
	}
	return checkName("an access key's name", name, maxKeyNameBytes)
}

// checkKey checks the request for an access key.
func checkKey(owner, name string, topics []string, read, write bool) error {
	size, seen := 0, make(map[string]bool, len(topics))
	for _, topic := range topics {
		if diaspora.ValidTopic(topic) != nil {
			return errors.New("an access key is for topics whose names can be claimed")
		}
		if seen[topic] {
			return errors.New("an access key names each topic once")
		}
		seen[topic] = true
		size += len(topic)
	}
	switch {
	case size > maxKeyTopicsBytes:
		return errors.New("an access key names topics of at most 4096 characters in total; leave the topics out for all of yours")
	case topics != nil && len(topics) == 0:
		return errors.New("an access key is for at least one topic; leave the topics out for all of yours")
	case !read && !write:
		return errors.New("an access key may read, write, or both: say which")
	case len(owner)+len(".")+len(keyIDPrefix)+keyIDLetters > maxSubjectBytes:
		return errors.New("a subject as long as this one cannot have access keys")
	}
	return checkKeyName(name)
}

// accessKey is the state of one access key.
type accessKey struct {
	diaspora.AccessKey
	hash keyHash // zero after the key has ended
}

func (k accessKey) live() bool { return k.Ended.IsZero() }

// expired reports whether the key's expiry time has passed, whether the ledger says so or not.
func (k accessKey) expired(now time.Time) bool { return !k.Expires.IsZero() && !now.Before(k.Expires) }

// KeyPrincipal returns the broker's principal, without "User:", for clients that sign in with the
// key. For a key that has all rights of its owner, it is the owner. Any other key is a principal of
// its own with its own ACLs, so the broker itself enforces the key's rights, whatever the client
// tries. No person has such a principal, because the subjects of people are UUIDs.
func KeyPrincipal(k diaspora.AccessKey) string {
	if k.Topics == nil && k.Read && k.Write {
		return k.Owner
	}
	return k.Owner + "." + k.ID
}

// restricted reports whether the key is a principal of its own.
func (k accessKey) restricted() bool { return KeyPrincipal(k.AccessKey) != k.Owner }

// covers reports whether the key applies to this topic of its owner.
func (k accessKey) covers(topic string) bool {
	return k.Topics == nil || slices.Contains(k.Topics, topic)
}

// topicACLs returns the ACLs of the key's own principal on a topic on which its owner has these
// rights. A key never has more than its owner.
func (k accessKey) topicACLs(topic string, owner rights) []kafka.ACL {
	if owner&mayManage != 0 {
		owner |= mayRead | mayWrite
	}
	have := owner & record{Read: k.Read, Write: k.Write}.rights()
	return kafka.Allow(kafka.TopicResource(topic), principal(KeyPrincipal(k.AccessKey)), have.operations()...)
}

// restrictedKeys returns the live keys of a subject that are principals of their own.
func (s *state) restrictedKeys(owner string) []accessKey {
	var keys []accessKey
	for _, id := range s.keysOf[owner] {
		if k := s.keys[id]; k.restricted() {
			keys = append(keys, *k)
		}
	}
	return keys
}

func (s *state) mayIssueKey(r record) error {
	if _, used := s.keys[r.Key]; used {
		return errKeyID
	}
	if _, used := s.keysOf[r.By][r.Name]; used {
		return errKeyName
	}
	if len(s.keysOf[r.By]) >= r.Limit {
		return errKeyQuota
	}
	return nil
}

func (s *state) mayChangeKey(r record) error {
	switch k, known := s.keys[r.Key]; {
	case !known || k.Owner != r.By:
		return errTaken
	case !k.live():
		return errKeyEnded
	case r.Op == opKeyExpired && !k.expired(r.Time):
		return errKeyNotExpired
	case r.Op == opKeyUsed && !startOfDay(r.Time).After(k.LastUsed):
		return errUseRecorded
	}
	return nil
}

func (s *state) issueKey(r record) {
	r.By, r.Name = intern(r.By), intern(r.Name)
	s.keys[r.Key] = &accessKey{hash: r.Hash, AccessKey: diaspora.AccessKey{
		ID: r.Key, Name: r.Name, Owner: r.By, Topics: r.Topics, Read: r.Read, Write: r.Write, Created: r.Time, Expires: r.Expires,
	}}
	if s.keysOf[r.By] == nil {
		s.keysOf[r.By] = make(map[string]string)
	}
	s.keysOf[r.By][r.Name] = r.Key
	s.keysIssued[r.By]++
}

// intern returns an equal string whose memory is shared by all its users. That saves memory,
// because a subject is stored with each of its keys, and many keys have the same name.
func intern(text string) string { return unique.Make(text).Value() }

// endKey marks a key as ended and deletes its hash. The rest is kept for a while, so that its owner
// can look it up.
func (s *state) endKey(r record) {
	k := *s.keys[r.Key]
	k.Ended, k.hash = r.Time, keyHash{}
	s.keys[k.ID] = &k
	s.endedOn(r.Time).keys[k.ID] = struct{}{}
	delete(s.keysOf[k.Owner], k.Name)
	if len(s.keysOf[k.Owner]) == 0 {
		delete(s.keysOf, k.Owner)
	}
}

// startOfDay returns the start of the day of t, in UTC.
func startOfDay(t time.Time) time.Time { return t.UTC().Truncate(24 * time.Hour) }

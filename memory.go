package diaspora

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/accesskey"
	"github.com/diaspora-streams/diaspora/internal/spool"
)

// memory is what was learnt with credentials from the environment: whose they are, and what
// their fabric told of itself. With it, programs start while the fabric is away, as those with
// a profile do. It is a folder of files for their owner's eyes only, each named by the hash of
// an URL and a credential. They hold no secrets.
type memory struct {
	dir  string // "" if there is no place for one
	name string // the hash of the credential in use; "" if a profile signs in

	silent *atomic.Int64 // when nobody could be asked whose it is, in Unix nanoseconds; nil if that is not kept
}

// silentFor is how long nobody is asked again, when several spools are opened one after another.
const silentFor = 30 * time.Second

// unanswered reports whether nobody could be asked a moment ago.
func (m memory) unanswered() bool {
	return m.silent != nil && time.Since(time.Unix(0, m.silent.Load())) < silentFor
}

func (m memory) noAnswer() {
	if m.silent != nil {
		m.silent.Store(time.Now().UnixNano())
	}
}

// remembered is what is known of one credential.
type remembered struct {
	URL       string          `json:"url"`
	Identity  globus.Identity `json:"identity"`
	Discovery *Discovery      `json:"discovery,omitempty"`
}

// credentialName is the hash of a credential, and of all that says whose it is.
func credentialName(parts ...string) string {
	sum := sha256.Sum256([]byte("diaspora credential\x00" + strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:])
}

func (m memory) path(name string) string { return filepath.Join(m.dir, name+".json") }

// recall returns what is known of a credential. A file that others may read or change counts
// for nothing: it says whom a refresh token is sent to.
func (m memory) recall(name string) (r remembered) {
	if m.dir == "" || name == "" {
		return remembered{}
	}
	for path, forbidden := range map[string]os.FileMode{m.dir: 0o022, m.path(name): 0o077} {
		info, err := os.Stat(path)
		if err != nil || runtime.GOOS != "windows" && info.Mode().Perm()&forbidden != 0 {
			return remembered{}
		}
	}
	data, err := readBounded(m.path(name), maxProfileBytes)
	if err != nil || json.Unmarshal(data, &r) != nil || r.Discovery != nil && r.Discovery.validate() != nil {
		return remembered{}
	}
	return r
}

// learn notes what was found out with the credential in use, at the fabric of an URL. To be
// unable to is no reason to fail.
func (m memory) learn(cfg *Config, change func(*remembered)) {
	if m.dir == "" || m.name == "" {
		return
	}
	before := m.recall(m.name)
	after := before
	after.URL = cfg.URL
	if change(&after); reflect.DeepEqual(before, after) {
		return
	}
	data, err := json.MarshalIndent(after, "", "  ")
	if err == nil {
		err = writePrivately(m.path(m.name), append(data, '\n'))
	}
	if err != nil {
		cfg.diagnostics().Warn("what the fabric said could not be kept for when it is away", "err", err)
	}
}

// keyMemory names what is known of an access key of the fabric at an URL. The secret is not part of
// it: whose a key is does not hang on that, and is also asked of keys that were replaced.
func keyMemory(address, id string) string { return credentialName(address, "access key", id) }

// unbound is the subject of events whose owner is not known yet.
func (c *Config) unbound() string {
	if c.Key != (Key{}) {
		return spool.UnboundKey + c.Key.ID
	}
	return spool.Unbound + c.memory.name
}

// owns reports whether events that were logged when their owner was not known belong to a
// subject: they were logged with the credential in use, or with one that is known to be theirs. Whose
// another access key was, the ACL endpoint is asked.
func (c *Config) owns(ctx context.Context, subject, unbound string) bool {
	if name, ok := strings.CutPrefix(unbound, spool.Unbound); ok {
		if len(name) != 2*sha256.Size || subject == "" {
			return false
		}
		return name == c.memory.name || c.memory.recall(name).Identity.Subject == subject
	}
	id, ok := strings.CutPrefix(unbound, spool.UnboundKey)
	switch {
	case !ok || !accesskey.IsID(id) || subject == "":
		return false
	case id == c.Key.ID:
		return true
	case spool.IsUnbound(subject) || c.URL == "":
		return false
	}
	if known := c.memory.recall(keyMemory(c.URL, id)).Identity.Subject; known != "" {
		return known == subject
	}
	return c.keyOwner(ctx, id) == subject
}

// keyOwner asks the ACL endpoint whose an access key was, and returns "" if that cannot be told. Only
// the owner is told, so it is the caller's own subject otherwise.
func (c *Config) keyOwner(ctx context.Context, id string) string {
	if c.memory.unanswered() {
		return ""
	}
	client, err := NewClient(*c)
	if err != nil {
		return ""
	}
	defer client.hangUp()
	timed, cancel := context.WithTimeout(ctx, c.DialTimeout)
	defer cancel()
	key, err := client.Key(timed, id)
	if away(err) || timed.Err() != nil {
		c.memory.noAnswer()
	}
	if err != nil {
		c.diagnostics().Warn("it cannot be told whose events these are that were logged with an access key", "key", id, "err", err)
		return ""
	}
	other := c.memory
	other.name = keyMemory(c.URL, id)
	other.learn(c, func(r *remembered) { r.Identity.Subject = key.Owner })
	return key.Owner
}

// away reports whether an error says that the fabric or Globus Auth cannot be reached, or something
// else answers in the latter's place.
func away(err error) bool {
	return errors.Is(err, ErrUnavailable) || errors.Is(err, globus.ErrUnavailable) || errors.Is(err, globus.ErrMisconfigured)
}

// learnIdentity finds out whose the credential is, if that is not known yet.
func (c *Config) learnIdentity(ctx context.Context) error {
	if c.Identity.Subject != "" {
		return nil
	}
	client, err := NewClient(*c)
	if err != nil {
		return err
	}
	defer client.hangUp()
	c.Identity, err = client.Identity(ctx)
	return err
}

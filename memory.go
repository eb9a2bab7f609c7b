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
	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/spool"
)

// memory is what earlier runs learned about credentials from the environment: who their owner is,
// and the fabric's discovery document. With it, programs can start while the fabric is unreachable,
// as those with a profile can. It is a directory of files that only their owner can read. Each is
// named after a hash of a URL and a credential, and holds no secrets.
type memory struct {
	dir  string // the directory; "" if there is none
	name string // the hash of the credential in use; "" if a profile is used

	silent *atomic.Int64 // when the fabric last did not answer, in Unix nanoseconds; nil if that is not recorded
}

// unansweredFor is how long the fabric is not asked again after it did not answer. It spares a program
// that opens several spools from waiting for each.
const unansweredFor = 30 * time.Second

// unanswered reports whether the fabric did not answer within the last unansweredFor.
func (m memory) unanswered() bool {
	return m.silent != nil && time.Since(time.Unix(0, m.silent.Load())) < unansweredFor
}

// noAnswer records that the fabric did not answer just now.
func (m memory) noAnswer() {
	if m.silent != nil {
		m.silent.Store(time.Now().UnixNano())
	}
}

// remembered is what is known about one credential.
type remembered struct {
	URL       string          `json:"url"`
	Identity  globus.Identity `json:"identity"`
	Discovery *Discovery      `json:"discovery,omitempty"`
}

// credentialName hashes a credential together with everything that determines its owner.
func credentialName(parts ...string) string {
	sum := sha256.Sum256([]byte("diaspora credential\x00" + strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:])
}

func (m memory) path(name string) string { return filepath.Join(m.dir, name+".json") }

// recall returns what is known about a credential. It ignores a file that other users can read or
// change, because the file decides where a refresh token is sent.
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
	data, err := disk.ReadBounded(m.path(name), maxProfileBytes)
	if err != nil || json.Unmarshal(data, &r) != nil || r.Discovery != nil && r.Discovery.validate() != nil {
		return remembered{}
	}
	return r
}

// learn stores what was learned about the credential in use from the fabric at cfg.URL. If that
// fails, it only logs a warning, because nothing depends on it now.
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

// keyMemory names the file about an access key of the fabric at a URL. The secret is not part of
// the name: the owner of a key does not depend on it, and the owner is also looked up for former
// keys, whose secret is not known.
func keyMemory(address, id string) string { return credentialName(address, "access key", id) }

// unbound returns the placeholder subject for events whose owner is not known yet.
func (c *Config) unbound() string {
	if c.Key != (Key{}) {
		return spool.UnboundKey + c.Key.ID
	}
	return spool.Unbound + c.memory.name
}

// owns reports whether events that were logged while their owner was unknown belong to subject.
// They do if they were logged with the credential in use, or with another credential of the same
// owner. For another access key, it asks the ACL endpoint for the owner, unless that is remembered.
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

// keyOwner asks the ACL endpoint who owned an access key. It returns "" if the endpoint does not
// answer, or does not show the key. It shows keys only to their owner, so that any other result is
// the caller's own subject.
func (c *Config) keyOwner(ctx context.Context, id string) string {
	if c.memory.unanswered() {
		return ""
	}
	client, err := NewClient(*c)
	if err != nil {
		return ""
	}
	defer client.closeIdle()
	timed, cancel := context.WithTimeout(ctx, c.DialTimeout)
	defer cancel()
	key, err := client.Key(timed, id)
	if away(err) || timed.Err() != nil {
		c.memory.noAnswer()
	}
	if err != nil {
		c.diagnostics().Warn("the owner of events that were logged with an access key is unknown", "key", id, "err", err)
		return ""
	}
	other := c.memory
	other.name = keyMemory(c.URL, id)
	other.learn(c, func(r *remembered) { r.Identity.Subject = key.Owner })
	return key.Owner
}

// away reports whether err says that the fabric or Globus Auth is unreachable, or that something
// else answers at Globus Auth's address.
func away(err error) bool {
	return errors.Is(err, ErrUnavailable) || errors.Is(err, globus.ErrUnavailable) || errors.Is(err, globus.ErrMisconfigured)
}

// learnIdentity sets c.Identity to the owner of the credential, if it is not known yet.
func (c *Config) learnIdentity(ctx context.Context) error {
	if c.Identity.Subject != "" {
		return nil
	}
	client, err := NewClient(*c)
	if err != nil {
		return err
	}
	defer client.closeIdle()
	c.Identity, err = client.Identity(ctx)
	return err
}

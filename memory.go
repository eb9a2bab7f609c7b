package diaspora

import (
	"context"
	"errors"
	"path/filepath"
	"strings"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/accesskey"
	"github.com/diaspora-streams/diaspora/internal/learned"
	"github.com/diaspora-streams/diaspora/internal/spool"
)

// memory is what earlier runs learned about credentials from the environment.
type memory = learned.Memory[Discovery]

// remembered is what is known about one credential.
type remembered = learned.Credential[Discovery]

// memory returns the memory next to the profiles.
func (p *Profiles) memory() memory {
	return memory{Dir: filepath.Join(p.dir, "fabrics"), Valid: (*Discovery).validate}
}

// learn stores what was learned about a credential from the fabric at c.URL. If that fails, it only logs a
// warning, because nothing depends on it now.
func (c *Config) learn(name string, change func(*remembered)) {
	if err := c.memory.Learn(name, c.URL, change); err != nil {
		c.diagnostics().Warn("what the fabric said could not be kept for when it is away", "err", err)
	}
}

// unbound returns the placeholder subject for events whose owner is not known yet.
func (c *Config) unbound() string {
	if c.Key != (Key{}) {
		return spool.UnboundKey + c.Key.ID
	}
	return spool.Unbound + c.memory.Name
}

// owns reports whether events that were logged while their owner was unknown belong to subject.
// They do if they were logged with the credential in use, or with another credential of the same
// owner. For another access key, it asks the ACL endpoint for the owner, unless that is remembered.
func (c *Config) owns(ctx context.Context, subject, unbound string) bool {
	if name, ok := strings.CutPrefix(unbound, spool.Unbound); ok {
		if len(name) != learned.NameLength || subject == "" {
			return false
		}
		return name == c.memory.Name || c.memory.Recall(name).Identity.Subject == subject
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
	if known := c.memory.Recall(learned.KeyName(c.URL, id)).Identity.Subject; known != "" {
		return known == subject
	}
	return c.keyOwner(ctx, id) == subject
}

// keyOwner asks the ACL endpoint who owned an access key. It returns "" if the endpoint does not
// answer, or does not show the key. It shows keys only to their owner, so that any other result is
// the caller's own subject.
func (c *Config) keyOwner(ctx context.Context, id string) string {
	if c.memory.Unanswered() {
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
		c.memory.NoAnswer()
	}
	if err != nil {
		c.diagnostics().Warn("the owner of events that were logged with an access key is unknown", "key", id, "err", err)
		return ""
	}
	c.learn(learned.KeyName(c.URL, id), func(r *remembered) { r.Identity.Subject = key.Owner })
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

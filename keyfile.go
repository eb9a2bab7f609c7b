package diaspora

import (
	"context"
	"sync"

	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/spool"
)

// keyFile provides the access key of a [Logger] with a spool. It reads the key file each time the Logger
// signs in to a broker. So a person who replaces a key that has expired need not restart the program.
type keyFile struct {
	subject string        // whose events the spool holds; a placeholder if that is unknown
	renewed func(*fabric) // called with each new key's configuration

	mu       sync.Mutex // guards the fields below; held while the ACL endpoint is asked
	cfg      Config     // after complete; has the key in use
	reported Key        // the last key in the file that could not be used
}

// current returns the key to sign in with: the one in the file, if it has the same owner as the one in
// use, and otherwise the one in use.
func (k *keyFile) current(ctx context.Context) kafka.Key {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.read(ctx)
	return kafka.Key(k.cfg.Key)
}

// inUse returns the key with which the Logger last signed in.
func (k *keyFile) inUse() Key {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.cfg.Key
}

func (k *keyFile) read(ctx context.Context) {
	found, err := k.cfg.again()
	if err != nil || found.Key == k.cfg.Key {
		return // a file that is being replaced may be missing or incomplete
	}
	refuse := func(reason string, err error) {
		if found.Key == k.reported {
			return
		}
		k.reported = found.Key
		k.cfg.diagnostics().Error("the new access key in the key file is not used", "key", found.Key.ID, "reason", reason, "err", err)
	}
	if !sameURL(found.URL, k.cfg.URL) {
		refuse("it belongs to another fabric", nil)
		return
	}
	next := k.cfg
	next.Key, next.Identity, next.memory = found.Key, found.Identity, found.memory
	ctx, cancel := context.WithTimeout(ctx, next.DialTimeout)
	defer cancel()
	err = next.learnIdentity(ctx)
	owner := next.Identity.Subject
	switch {
	case err != nil && refusedCredential(err):
		refuse("it is not valid", err)
		return
	case err != nil:
		return // asked again at the next login
	case owner != k.subject && !(spool.IsUnbound(k.subject) && next.owns(ctx, owner, k.subject)):
		refuse("the events in the spool do not belong to its owner", nil)
		return
	}
	f, err := next.fabric()
	if err != nil {
		refuse("it cannot be used", err)
		return
	}
	k.cfg.diagnostics().Info("signing in with the new access key in the key file", "key", found.Key.ID)
	k.cfg = next
	k.renewed(f)
}

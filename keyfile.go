package diaspora

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/diaspora-streams/diaspora/internal/accesskey"
	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/spool"
)

// keyFile provides the access key of a [Logger] with a spool. It reads the key file each time the Logger
// signs in to a broker. So a person who replaces a key that has expired need not restart the program.
type keyFile struct {
	subject string        // whose events the spool holds; a placeholder if that is unknown
	renewed func(*fabric) // called with each new key's configuration
	fault   atomic.Value  // a string: why the key that is now in the file is not used, or ""

	mu  sync.Mutex // guards the field below; held while the ACL endpoint is asked
	cfg Config     // after complete; has the key in use
}

// current returns the key to sign in with: the one in the file, if it has the same owner as the one in
// use, and otherwise the one in use.
func (k *keyFile) current(ctx context.Context) kafka.Key {
	k.mu.Lock()
	defer k.mu.Unlock()
	fault := k.read(ctx)
	if was, _ := k.fault.Swap(fault).(string); fault != "" && fault != was {
		k.cfg.diagnostics().Error("the key that is now in the key file is not used", "reason", fault)
	}
	return kafka.Key(k.cfg.Key)
}

// inUse returns the key with which the Logger last signed in.
func (k *keyFile) inUse() Key {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.cfg.Key
}

// explain adds to a permanent error why the key that is now in the key file is not used.
func (k *keyFile) explain(err error) error {
	fault, _ := k.fault.Load().(string)
	if fault == "" || !errors.Is(err, ErrUnauthenticated) && !errors.Is(err, ErrPermission) {
		return err
	}
	fault = accesskey.FaultMark + fault
	switch e := err.(type) {
	case *TopicError:
		return &TopicError{Op: e.Op, Topic: e.Topic, Err: k.explain(e.Err)}
	case *Error:
		faulty := *e
		faulty.Reason += fault
		return &faulty
	}
	return err
}

// read takes over the key in the file, or returns why it does not. It returns "" if it is the key in use.
func (k *keyFile) read(ctx context.Context) (fault string) {
	found, err := k.cfg.again()
	wrong := (*Error)(nil)
	switch {
	case errors.As(err, &wrong):
		return strings.TrimSuffix(wrong.Reason+"; "+wrong.Hint, "; ")
	case err != nil:
		return err.Error()
	case found.Key == k.cfg.Key:
		return ""
	case !sameURL(found.URL, k.cfg.URL):
		return "the key that is now in it is of another fabric; restart this program to use it"
	}
	next := k.cfg
	next.Key, next.Identity, next.memory = found.Key, found.Identity, found.memory
	ctx, cancel := context.WithTimeout(ctx, next.DialTimeout)
	defer cancel()
	err = next.learnIdentity(ctx)
	owner := next.Identity.Subject
	switch {
	case err != nil && refusedCredential(err):
		return "the key that is now in it is refused, too: " + err.Error()
	case err != nil:
		return "the owner of the key that is now in it cannot be looked up: " + err.Error()
	case owner != k.subject && !(spool.IsUnbound(k.subject) && next.owns(ctx, owner, k.subject)):
		return fmt.Sprintf("the key that is now in it, %s, belongs to another person than %s, with which the pending events were logged; put a key of the same person into it (or restart this program to use %[1]s; these events then wait for a key of their person)",
			next.Key.ID, k.cfg.Key.ID)
	}
	f, err := next.fabric()
	if err != nil {
		return err.Error()
	}
	k.cfg.diagnostics().Info("signing in with the new access key in the key file", "key", found.Key.ID)
	k.cfg = next
	k.renewed(f)
	return ""
}

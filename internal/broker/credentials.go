package broker

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"sync"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// credentials makes the broker's SCRAM users when they are first needed. A
// user's salted password follows from the subject and a key that only this
// process has, so nothing is kept but who exists already.
type credentials struct {
	admin *kgo.Client
	key   []byte

	creating sync.WaitGroup // create, when it runs

	mu     sync.Mutex           // guards the fields below
	made   map[string]*creation // by subject: done, under way or waiting
	next   *creation            // waits, and takes more subjects; or nil
	busy   bool                 // create runs
	closed bool
}

// creation is one request to the broker, for many subjects: each request
// costs a sync of the disk, and a fabric's clients all come back at once.
type creation struct {
	subjects []string
	done     chan struct{}
	err      error // valid once done is closed
}

func newCredentials(admin *kgo.Client) *credentials {
	key := make([]byte, 32)
	rand.Read(key)
	return &credentials{admin: admin, key: key, made: make(map[string]*creation)}
}

// ensure returns the subject's salted password, good from now on.
func (c *credentials) ensure(ctx context.Context, subject string) ([]byte, error) {
	creation := c.creationOf(subject)
	if creation == nil {
		return nil, net.ErrClosed
	}
	select {
	case <-creation.done:
		if creation.err != nil {
			return nil, creation.err
		}
		return sign(c.key, []byte(subject)), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// creationOf returns the request that makes or has made the subject's
// credential, or nil if it is too late for one.
func (c *credentials) creationOf(subject string) *creation {
	c.mu.Lock()
	defer c.mu.Unlock()
	if creation := c.made[subject]; creation != nil {
		return creation
	}
	if c.closed {
		return nil
	}
	if c.next == nil {
		c.next = &creation{done: make(chan struct{})}
	}
	c.next.subjects = append(c.next.subjects, subject)
	c.made[subject] = c.next
	if !c.busy {
		c.busy = true
		c.creating.Go(c.create)
	}
	return c.next
}

// create sends one request after the other until nobody waits.
func (c *credentials) create() {
	for batch := c.take(); batch != nil; batch = c.take() {
		if batch.err = c.upsert(batch.subjects); batch.err != nil {
			c.forget(batch.subjects)
		}
		batch.subjects = nil
		close(batch.done)
	}
}

// take returns the creation to be done now, or nil if there is none.
func (c *credentials) take() *creation {
	c.mu.Lock()
	defer c.mu.Unlock()
	batch := c.next
	c.next = nil
	c.busy = batch != nil
	return batch
}

// forget makes the next sign-in of the subjects try again.
func (c *credentials) forget(subjects []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, subject := range subjects {
		delete(c.made, subject)
	}
}

// close ends what is under way. No more credentials can be made.
func (c *credentials) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.admin.Close()
	c.creating.Wait()
}

func (c *credentials) upsert(subjects []string) error {
	request := kmsg.NewPtrAlterUserSCRAMCredentialsRequest()
	for _, subject := range subjects {
		upsertion := kmsg.NewAlterUserSCRAMCredentialsRequestUpsertion()
		upsertion.Name = subject
		upsertion.Mechanism = 1 // SCRAM-SHA-256
		upsertion.Iterations = scramIterations
		upsertion.Salt = []byte("no salt: see scramClient")
		upsertion.SaltedPassword = sign(c.key, []byte(subject))
		request.Upsertions = append(request.Upsertions, upsertion)
	}
	response, err := request.RequestWith(c.admin.Context(), c.admin)
	if err != nil {
		return err
	}
	for _, result := range response.Results {
		if err := kerr.ErrorForCode(result.ErrorCode); err != nil {
			return fmt.Errorf("subject %s: %w", result.User, err)
		}
	}
	return nil
}

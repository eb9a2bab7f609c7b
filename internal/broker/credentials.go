package broker

import (
	"context"
	"crypto/rand"
	"fmt"
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

	mu    sync.Mutex // guards the fields below
	known map[string]bool
	next  *creation // takes more subjects; nil if nobody waits
	busy  bool      // create runs
}

// creation is one request to the broker, for many subjects: each request
// costs a sync of the disk, and a cluster's clients all come back at once.
type creation struct {
	subjects []string
	done     chan struct{}
	err      error // valid once done is closed
}

func newCredentials(admin *kgo.Client) *credentials {
	key := make([]byte, 32)
	rand.Read(key)
	return &credentials{admin: admin, key: key, known: make(map[string]bool)}
}

// ensure returns the subject's salted password, good from now on.
func (c *credentials) ensure(ctx context.Context, subject string) ([]byte, error) {
	if wait := c.enqueue(subject); wait != nil {
		select {
		case <-wait.done:
			if wait.err != nil {
				return nil, wait.err
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return sign(c.key, []byte(subject)), nil
}

// enqueue returns the creation to wait for, or nil if the subject is known.
func (c *credentials) enqueue(subject string) *creation {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known[subject] {
		return nil
	}
	if c.next == nil {
		c.next = &creation{done: make(chan struct{})}
	}
	c.next.subjects = append(c.next.subjects, subject)
	if !c.busy {
		c.busy = true
		go c.create()
	}
	return c.next
}

// create sends one request after the other until nobody waits.
func (c *credentials) create() {
	for {
		c.mu.Lock()
		batch := c.next
		c.next = nil
		c.busy = batch != nil
		c.mu.Unlock()
		if batch == nil {
			return
		}
		batch.err = c.upsert(batch.subjects)
		if batch.err == nil {
			c.mu.Lock()
			for _, subject := range batch.subjects {
				c.known[subject] = true
			}
			c.mu.Unlock()
		}
		close(batch.done)
	}
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

package kafka

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// FirstLook looks up topics while a client signs in, with the same request. This saves the round
// trip that looking them up after a [Ping] would take.
type FirstLook struct {
	topics  []string
	session time.Duration // how long members of the client's group may be silent

	signedIn atomic.Bool
	resp     *kmsg.MetadataResponse
}

// NewFirstLook returns a FirstLook at topics. session is the session timeout of the client's
// consumer group, if it has one.
func NewFirstLook(topics []string, session time.Duration) *FirstLook {
	return &FirstLook{topics: topics, session: session}
}

// Opts returns options that the client needs.
func (l *FirstLook) Opts() []kgo.Opt { return []kgo.Opt{kgo.RetryTimeoutFn(l.retryTimeout)} }

// retryTimeout returns how long the client repeats requests that fail: not at all while it signs in,
// so that [SignIn] learns why, and afterwards as long as a Kafka client does by default.
func (l *FirstLook) retryTimeout(key int16) time.Duration {
	switch kmsg.Key(key) {
	case kmsg.Metadata:
		if !l.signedIn.Load() {
			return 1 // zero would mean forever
		}
	case kmsg.JoinGroup, kmsg.SyncGroup, kmsg.Heartbeat, kmsg.ConsumerGroupHeartbeat:
		return l.session
	}
	return 30 * time.Second
}

// Ask is a first request for [SignIn]. Like [Ping], it tries each broker once, and fails with the
// error of the last one.
func (l *FirstLook) Ask(ctx context.Context, client *kgo.Client) (err error) {
	for range client.SeedBrokers() { // the client takes the next one each time
		if l.resp, err = metadata(ctx, client, l.topics); err == nil {
			l.signedIn.Store(true)
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
	}
	return err
}

// Places returns the partitions of the topics, and their places, as [Places] does. The client must
// have signed in. If the first answer has an error that may pass, Places asks again.
func (l *FirstLook) Places(ctx context.Context, client *kgo.Client) (map[Partition]Place, error) {
	found, err := placesIn(l.resp)
	if err != nil && Temporary(err) {
		return Places(ctx, client, l.topics)
	}
	return found, err
}

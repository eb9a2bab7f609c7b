package gateway

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// shortSessions is a broker whose sessions want a new login now and then.
type shortSessions struct {
	Upstream
	session time.Duration
	logins  atomic.Int64
	err     atomic.Pointer[error] // what logins fail with
}

func (s *shortSessions) SignIn(ctx context.Context, conn kmsg.Requestor, subject string) (time.Time, error) {
	s.logins.Add(1)
	if err := s.err.Load(); err != nil {
		return time.Time{}, *err
	}
	if _, amid := conn.(brokerAmid); !amid {
		_, err := s.Upstream.SignIn(ctx, conn, subject)
		return time.Now().Add(s.session), err
	}
	// The embedded broker takes no second login, so this stands for one.
	request := kmsg.NewPtrListGroupsRequest()
	request.Version = 4 // flexible
	_, err := request.RequestWith(ctx, conn)
	return time.Now().Add(s.session), err
}

// TestBrokerSessionsAreRenewed keeps a client at work for fifty minutes on
// sessions of one minute. It sees nothing of that, and neither does the log.
func TestBrokerSessionsAreRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		upstream := &shortSessions{session: time.Minute}
		f := startInMemory(t, func(cfg *Config) {
			upstream.Upstream = cfg.Upstream
			cfg.Upstream = upstream
		})
		f.claim(t, "weather", ada)
		f.tokens.issue("ada-token", ada, 2*time.Hour)
		var dials atomic.Int64
		client := f.client(t, "ada-token", kgo.ConsumeTopics("weather"), kgo.ProducerLinger(0),
			kgo.MetadataMaxAge(time.Hour), kgo.WithHooks(countDials(&dials)))
		const events = 6000
		var producing sync.WaitGroup
		producing.Go(func() {
			for range events {
				client.Produce(t.Context(), &kgo.Record{Topic: "weather", Value: []byte("rain")}, func(_ *kgo.Record, err error) {
					if err != nil {
						t.Errorf("produce: %v", err)
					}
				})
				time.Sleep(500 * time.Millisecond)
			}
		})
		for n := 0; n < events; {
			fetches := client.PollFetches(t.Context())
			if err := fetches.Err(); err != nil {
				t.Fatal(err)
			}
			n += fetches.NumRecords()
		}
		producing.Wait()
		if n := upstream.logins.Load(); n < 98 {
			t.Errorf("%d logins in fifty minutes, want one for each of two connections every minute", n)
		}
		if n := dials.Load(); n > 5 {
			t.Errorf("%d connections, want no more than the first", n)
		}
		client.Close()
		f.stop(t)
	})
}

// TestBrokerSessionLost: a connection whose session cannot be renewed ends; to the
// client that is an outage, never a refusal.
func TestBrokerSessionLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		upstream := &shortSessions{session: time.Minute}
		f := startInMemory(t, func(cfg *Config) {
			upstream.Upstream = cfg.Upstream
			cfg.Upstream = upstream
		})
		f.tokens.issue("ada-token", ada, time.Hour)
		c := f.login(t, "ada-token")
		c.wantAlive()
		refused := errors.New("the broker refuses the gateway")
		upstream.err.Store(&refused)
		time.Sleep(time.Minute - time.Second)
		c.wantAlive()
		time.Sleep(2 * time.Second)
		c.SetDeadline(time.Now().Add(impatience))
		go c.send(appendRequest(apiVersions(3), 1))
		c.wantClosed()
		if s := f.gateway.Stats(); s.Refused != 0 {
			t.Errorf("%d logins refused, want none", s.Refused)
		}
	})
}

// silentBroker takes connections and says nothing.
type silentBroker struct{}

func (silentBroker) Dial(context.Context) (net.Conn, error) {
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		for buf := make([]byte, 1024); ; {
			if _, err := theirs.Read(buf); err != nil {
				return
			}
		}
	}()
	return ours, nil
}

func (silentBroker) SignIn(ctx context.Context, conn kmsg.Requestor, _ string) (time.Time, error) {
	_, err := kmsg.NewPtrSASLHandshakeRequest().RequestWith(ctx, conn)
	return time.Time{}, err
}

// TestSilentBroker: a login ends in time, whatever the broker does.
func TestSilentBroker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startInMemory(t, func(cfg *Config) { cfg.Upstream = silentBroker{} })
		f.tokens.issue("ada-token", ada, time.Hour)
		c := f.dial(t)
		c.handshake(1)
		go c.send(appendRequest(saslAuthenticate(1, oauthMessage("ada-token")), 1))
		if d := c.lifetime(); d > 16*time.Second { // the default of LoginTimeout, and some
			t.Errorf("the login took %v", d)
		}
	})
}

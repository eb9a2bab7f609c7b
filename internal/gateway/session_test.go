package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/oauth"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestClientsLogInAgain keeps a producer and a consumer at work for fifty minutes with tokens of
// one minute. They log in again while they work, and must not notice.
func TestClientsLogInAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startInMemory(t)
		f.claim(t, "weather", ada)
		var issued atomic.Int64
		refreshing := oauth.Oauth(func(context.Context) (oauth.Auth, error) {
			token := fmt.Sprintf("ada-token-%d", issued.Add(1))
			f.tokens.issue(globus.Secret(token), ada, time.Minute)
			return oauth.Auth{Token: token}, nil
		})
		var dials atomic.Int64
		client := f.client(t, "", kgo.SASL(refreshing), kgo.ConsumeTopics("weather"), kgo.ProducerLinger(0),
			kgo.MetadataMaxAge(time.Hour), kgo.WithHooks(countDials(&dials)))
		fiftyMinutes(t, client)
		if n := issued.Load(); n < 98 {
			t.Errorf("%d logins in fifty minutes, want one for each of two connections every minute", n)
		}
		if n := dials.Load(); n > 5 {
			t.Errorf("%d connections, want no more than the first", n)
		}
		client.Close()
		f.stop(t)
	})
}

// fiftyMinutes produces and consumes for fifty minutes. It does not return before all is done.
func fiftyMinutes(t *testing.T, client *kgo.Client) {
	t.Helper()
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
		testkit.Must(t, fetches.Err())
		n += fetches.NumRecords()
	}
	producing.Wait()
}

// countDials counts connections.
func countDials(n *atomic.Int64) kgo.Hook { return dialHook{n} }

type dialHook struct{ n *atomic.Int64 }

func (h dialHook) OnBrokerConnect(kgo.BrokerMetadata, time.Duration, net.Conn, error) { h.n.Add(1) }

// TestLoginAmongRequests sends a login between other requests without waiting for answers. The
// answers must come in the order of the requests.
func TestLoginAmongRequests(t *testing.T) {
	f := start(t)
	f.claim(t, "weather", ada)
	f.tokens.issue("ada-token", ada, time.Hour)
	f.tokens.issue("ada-token-2", ada, 2*time.Hour)
	c := f.login(t, "ada-token")
	fetch := kmsg.NewPtrFetchRequest()
	fetch.Version, fetch.MaxWaitMillis, fetch.MinBytes, fetch.MaxBytes = 4, 200, 1<<20, 1<<20
	unanswered := produceRequest(9)
	unanswered.Acks, unanswered.Topics = 0, nil // records that are rejected would end the connection
	requests := []kmsg.Request{
		produceRequest(9), unanswered, produceRequest(9), fetch, produceRequest(9),
		saslHandshake(1, "OAUTHBEARER"), saslAuthenticate(2, oauthMessage("ada-token-2")),
		produceRequest(9), apiVersions(3),
		saslHandshake(1, "OAUTHBEARER"), saslAuthenticate(0, oauthMessage("ada-token")),
		unanswered, apiVersions(99), produceRequest(3),
	}
	var all []byte
	for i, r := range requests {
		all = append(all, appendRequest(r, int32(i))...)
	}
	go c.send(all)
	for i, r := range requests {
		if r == unanswered {
			continue
		}
		if a, ok := r.(*kmsg.ApiVersionsRequest); ok && a.Version == 99 {
			r = apiVersions(0) // KIP-511
		}
		response, err := c.response(r, int32(i))
		if err != nil {
			t.Fatalf("answer %d, to %s: %v", i, kmsg.NameForKey(r.Key()), err)
		}
		if login, ok := response.(*kmsg.SASLAuthenticateResponse); ok && login.ErrorCode != 0 {
			t.Fatalf("answer %d: error %d", i, login.ErrorCode)
		}
	}
	c.wantAlive()
}

func TestSessionLifetime(t *testing.T) {
	for _, test := range []struct {
		version int16
		want    int64
	}{{0, 0}, {1, 60_000}, {2, 60_000}} {
		t.Run(fmt.Sprint("v", test.version), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := startInMemory(t)
				f.tokens.issue("ada-token", ada, time.Minute)
				c := f.dial(t)
				c.handshake(1)
				response := c.ask(saslAuthenticate(test.version, oauthMessage("ada-token"))).(*kmsg.SASLAuthenticateResponse)
				if response.SessionLifetimeMillis != test.want {
					t.Errorf("SessionLifetimeMillis = %d, want %d", response.SessionLifetimeMillis, test.want)
				}
			})
		})
	}
}

// TestExpiry uses connections whose tokens have expired.
func TestExpiry(t *testing.T) {
	login := map[string]func(c *raw){
		"handshake v1": func(c *raw) { c.wantLogin("ada-token") },
		"handshake v0": func(c *raw) { c.loginRaw("ada-token") },
	}
	for name, login := range login {
		t.Run(name+", next request", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := startInMemory(t)
				f.tokens.issue("ada-token", ada, time.Minute)
				c := f.dial(t)
				login(c)
				time.Sleep(time.Minute - time.Second)
				c.wantAlive()
				time.Sleep(time.Second)
				c.SetDeadline(time.Now().Add(time.Second))
				c.send(appendRequest(apiVersions(0), 1))
				c.wantClosed()
			})
		})
		t.Run(name+", idle", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := startInMemory(t)
				f.tokens.issue("ada-token", ada, time.Minute)
				c := f.dial(t)
				login(c)
				if got := c.lifetime(); got < time.Minute || got > time.Minute+33*time.Second {
					t.Errorf("an expired connection stays for %v, want a minute and at most the interval more", got)
				}
			})
		})
	}
	t.Run("login after expiry", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := startInMemory(t, func(cfg *Config) { cfg.RevocationInterval = time.Hour })
			f.tokens.issue("ada-token", ada, time.Minute)
			c := f.dial(t)
			c.wantLogin("ada-token")
			time.Sleep(2 * time.Minute)
			f.tokens.issue("ada-token-2", ada, time.Minute)
			c.SetDeadline(time.Now().Add(time.Second))
			c.wantLogin("ada-token-2")
			c.wantAlive()
		})
	})
}

func TestSecondLogin(t *testing.T) {
	for _, test := range []struct {
		name, token, want string
	}{
		{"of another subject", "bert-token", "another identity"},
		{"with an unknown token", "no-token", "diaspora login"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := startInMemory(t)
				f.tokens.issue("ada-token", ada, time.Hour)
				f.tokens.issue("bert-token", bert, time.Hour)
				c := f.dial(t)
				c.wantLogin("ada-token")
				c.wantRefusal(test.token, test.want)
			})
		})
	}
}

// TestRevocation revokes one of two tokens. Its connection must be closed within the documented
// time, although it sends no request.
func TestRevocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startInMemory(t)
		f.tokens.issue("ada-token", ada, time.Hour)
		f.tokens.issue("ada-token-2", ada, time.Hour)
		revoked, other := f.login(t, "ada-token"), f.login(t, "ada-token-2")
		time.Sleep(5 * time.Minute)
		revoked.wantAlive()
		f.tokens.revoke("ada-token")
		if got := revoked.lifetime(); got > 33*time.Second {
			t.Errorf("a revoked connection stays for %v, want at most the interval and a tenth", got)
		}
		time.Sleep(5 * time.Minute)
		other.wantAlive()
		if got := f.gateway.Stats().Revoked; got != 1 {
			t.Errorf("Stats.Revoked = %d, want 1", got)
		}
	})
}

// TestReplacedTokenIsNoRevocation revokes a token that a later login on the same connection has
// replaced.
func TestReplacedTokenIsNoRevocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startInMemory(t)
		f.tokens.issue("ada-token", ada, time.Hour)
		f.tokens.issue("ada-token-2", ada, time.Hour)
		c := f.login(t, "ada-token")
		c.wantLogin("ada-token-2")
		f.tokens.revoke("ada-token")
		time.Sleep(5 * time.Minute)
		c.wantAlive()
	})
}

// TestOutage: while the Authenticator cannot be asked, clients that are signed in continue, clients
// that it knows can log in, and all others are disconnected without a refusal.
func TestOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startInMemory(t)
		f.claim(t, "weather", ada)
		f.tokens.issue("ada-token", ada, 24*time.Hour)
		f.tokens.issue("bert-token", bert, 24*time.Hour)
		c := f.login(t, "ada-token")
		f.tokens.setDown(true)

		time.Sleep(time.Hour)
		c.wantAlive()
		f.login(t, "ada-token").wantAlive()

		unknown := f.dial(t)
		unknown.handshake(1)
		unknown.send(appendRequest(saslAuthenticate(1, oauthMessage("bert-token")), 1))
		if frame, err := unknown.frame(); err == nil {
			t.Errorf("an unknown token in an outage is answered with %x, want a closed connection", frame)
		}

		client := f.client(t, "bert-token")
		time.AfterFunc(10*time.Second, func() { f.tokens.setDown(false) })
		for client.Ping(t.Context()) != nil {
			time.Sleep(time.Second)
		}
		if got := f.gateway.Stats(); got.Unavailable == 0 || got.Refused != 0 {
			t.Errorf("Stats.Unavailable = %d, Stats.Refused = %d; want some and none", got.Unavailable, got.Refused)
		}
		client.Close()
	})
}

// TestMisconfigured: unknown clients are refused with a reason, because they would retry a closed
// connection in a tight loop until an operator acts. The operators are told once a minute. The
// gateway does not ask about the same token again. Known clients continue.
func TestMisconfigured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		f := startInMemory(t, func(cfg *Config) {
			cfg.Diagnostics = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
			cfg.RevocationInterval = time.Hour // so that no recheck of the open connection is counted
		})
		f.claim(t, "weather", ada)
		f.tokens.issue("ada-token", ada, 24*time.Hour)
		c := f.login(t, "ada-token")
		f.tokens.setFault(fmt.Errorf("introspect token: %w: status 501", globus.ErrMisconfigured))

		asked := f.tokens.asked()
		for range 50 {
			f.dial(t).wantRefusal("bert-token", "tell whose access token this is, because it cannot use the response of Globus Auth (introspect token: unexpected answer: status 501)")
		}
		if n := f.tokens.asked() - asked; n != 1 {
			t.Errorf("asked %d times about one token, want once", n)
		}
		f.login(t, "ada-token").wantAlive()
		c.wantAlive()

		raw := f.dial(t)
		raw.handshake(0)
		raw.send(frame(oauthMessage("another-token")))
		if answer, err := raw.frame(); err != nil || string(answer) != `{"status":"server_error"}` {
			t.Errorf("a raw login is answered with %q, %v, want what is no refusal of the token", answer, err)
		}
		time.Sleep(time.Minute)
		f.dial(t).wantRefusal("bert-token", "tell the operators of the fabric")
		synctest.Wait()
		if n := strings.Count(log.String(), "level=ERROR"); n != 2 {
			t.Errorf("told the operators %d times in two minutes, want once a minute:\n%s", n, log.String())
		}
		if got := f.gateway.Stats(); got.Unavailable != 52 || got.Refused != 0 {
			t.Errorf("Stats.Unavailable = %d, Stats.Refused = %d; want 52 and none", got.Unavailable, got.Refused)
		}

		client := f.client(t, "bert-token")
		if _, reason := kafka.Explain(client.Ping(t.Context())); !strings.HasPrefix(reason, kafka.CannotTell) {
			t.Errorf("our own client is told %q", reason)
		}
		client.Close()
		f.tokens.issue("bert-token", bert, time.Hour)
		f.tokens.setFault(nil)
		time.Sleep(refusedFor)
		f.login(t, "bert-token").wantAlive()
	})
}

// TestLooksWhileMisconfigured: connections stay open while the gateway cannot tell whether their
// tokens are still valid, and the operators are told why.
func TestLooksWhileMisconfigured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		f := startInMemory(t, func(cfg *Config) {
			cfg.Diagnostics = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
		})
		f.claim(t, "weather", ada)
		f.tokens.issue("ada-token", ada, 24*time.Hour)
		c := f.login(t, "ada-token")
		f.tokens.setFault(globus.ErrMisconfigured)
		f.tokens.revoke("ada-token")
		f.tokens.forget()
		time.Sleep(5 * time.Minute)
		c.wantAlive()
		synctest.Wait()
		if n := strings.Count(log.String(), "level=ERROR"); n < 4 || n > 5 || strings.Contains(log.String(), "level=WARN") {
			t.Errorf("told the operators %d times in five minutes, want once a minute:\n%s", n, log.String())
		}
	})
}

package gateway

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/admission"
)

// TestFlood opens more connections than are allowed, from four addresses, and sends nothing on
// them. Clients that are signed in must keep working. New clients, even from the same addresses,
// must get in, because the connections of the flood are evicted first.
func TestFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startInMemory(t, func(cfg *Config) { cfg.MaxHalfOpen, cfg.MaxHalfOpenPerAddress = 100, 60 })
		f.tokens.issue("ada-token", ada, time.Hour)
		signedIn := f.login(t, "ada-token")
		slow := f.dialFrom(t, "192.0.2.9:1")

		for i := range 100 {
			f.dialFrom(t, fmt.Sprintf("192.0.2.1:%d", i+1))
			f.dialFrom(t, fmt.Sprintf("192.0.2.2:%d", i+1))
			f.dialFrom(t, fmt.Sprintf("192.0.2.3:%d", i+1))
			f.dialFrom(t, fmt.Sprintf("[2001:db8::%x]:1", i+1)) // all in one /64 network
		}
		synctest.Wait()
		if got := f.gateway.Stats(); got.HalfOpen != 100 || got.Rejected != 301 {
			t.Errorf("Stats.HalfOpen = %d, Stats.Rejected = %d; want 100 and 301", got.HalfOpen, got.Rejected)
		}
		signedIn.wantAlive()
		f.dialFrom(t, "192.0.2.4:1").wantLogin("ada-token")
		f.dialFrom(t, "192.0.2.1:999").wantLogin("ada-token")
		slow.wantLogin("ada-token") // it came before the flood

		time.Sleep(15 * time.Second)
		synctest.Wait()
		if got := f.gateway.Stats(); got.HalfOpen != 0 || got.Connections != 4 {
			t.Errorf("Stats.HalfOpen = %d, Stats.Connections = %d; want 0 and 4", got.HalfOpen, got.Connections)
		}
		signedIn.wantAlive()
	})
}

// TestFloodFromOneAddress: clients at an address that floods get in, even one whose login is in
// progress.
func TestFloodFromOneAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startInMemory(t, func(cfg *Config) { cfg.MaxHalfOpenPerAddress = 10 })
		f.tokens.issue("ada-token", ada, time.Hour)
		f.tokens.hold(true)
		early := f.dialFrom(t, "192.0.2.1:1000")
		early.handshake(1)
		early.send(appendRequest(saslAuthenticate(1, oauthMessage("ada-token")), 1))
		synctest.Wait()
		for i := range 50 {
			f.dialFrom(t, fmt.Sprintf("192.0.2.1:%d", i+1))
		}
		synctest.Wait()
		if got := f.gateway.Stats().HalfOpen; got != 10 {
			t.Errorf("Stats.HalfOpen = %d, want 10", got)
		}
		f.tokens.hold(false)
		if _, err := early.frame(); err != nil {
			t.Errorf("a login that was under way when the flood came: %v", err)
		}
		f.dialFrom(t, "192.0.2.1:999").wantLogin("ada-token")
		f.dialFrom(t, "192.0.2.2:1").wantLogin("ada-token")
	})
}

func TestMaxConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startInMemory(t, func(cfg *Config) { cfg.MaxConnections = 3 })
		f.tokens.issue("ada-token", ada, time.Hour)
		c := f.login(t, "ada-token")
		f.login(t, "ada-token")
		f.login(t, "ada-token")
		f.dial(t).wantClosed()
		c.Close()
		synctest.Wait()
		f.login(t, "ada-token").wantAlive()
	})
}

// TestMaxConnectionsPerSubject has three people open as many connections as they can. A fourth must
// still get some.
func TestMaxConnectionsPerSubject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startInMemory(t, func(cfg *Config) { cfg.MaxConnections = 200 })
		take := func(subject string, most int) (n int, last *raw) {
			f.tokens.issue(globus.Secret(subject), subject, time.Hour)
			for n < most {
				c := f.dial(t)
				c.handshake(1)
				c.send(appendRequest(saslAuthenticate(1, oauthMessage(subject)), 1))
				if _, err := c.frame(); err != nil {
					c.Close()
					return n, last
				}
				n, last = n+1, c
			}
			return n, last
		}
		all := 0
		for i, want := range []int{50, 37, 28} {
			n, last := take(fmt.Sprint("greedy-", i), 200)
			if n != want {
				t.Errorf("greedy-%d has %d connections, want %d", i, n, want)
			}
			all += n
			last.Close()
			synctest.Wait()
			if n, _ := take(fmt.Sprint("greedy-", i), 200); n != 1 {
				t.Errorf("greedy-%d gets %d connections for one that it closed, want 1", i, n)
			}
		}
		for n := range 5 {
			if n, _ := take(fmt.Sprint("modest-", n), subjectConnections); n < subjectConnections {
				t.Errorf("a subject that comes after %d connections gets %d, want at least %d", all, n, subjectConnections)
			}
		}
	})
}

// try shows a token on a new connection from an address, and reports whether there is an answer.
func (f *front) try(t *testing.T, address, token string) bool {
	c := f.dialFrom(t, address)
	defer c.Close()
	c.handshake(1)
	c.send(appendRequest(saslAuthenticate(1, oauthMessage(token)), 1))
	_, err := c.frame()
	return err == nil
}

// TestFailureLimit has an address guess many tokens at once. The gateway must ask about no more of
// them than the address may try. Tokens that were valid recently still get in from there, and so do
// new ones once the guessing has stopped.
func TestFailureLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startInMemory(t, func(cfg *Config) { cfg.FailuresPerAddress = 5 })
		f.tokens.issue("known-token", ada, time.Hour)
		f.dialFrom(t, "192.0.2.1:1").wantLogin("known-token")
		open := f.dialFrom(t, "192.0.2.1:2")
		open.wantLogin("known-token")
		before := f.tokens.asked()

		f.tokens.hold(true) // as if Globus Auth were slow
		var flood sync.WaitGroup
		for i := range 100 {
			flood.Go(func() { f.try(t, "192.0.2.1:1", fmt.Sprint("guess-", i)) })
		}
		synctest.Wait()
		if asked := f.tokens.asked() - before; asked != 5 {
			t.Errorf("asked about %d guesses at once, want 5", asked)
		}
		f.tokens.hold(false)
		for i := range 30 {
			if !f.try(t, "192.0.2.1:3", "known-token") {
				t.Errorf("login %d from an address with too many failures: closed, though its token was good lately", i)
			}
		}
		if !f.try(t, "192.0.2.2:1", "known-token") {
			t.Error("another address is closed as well")
		}
		// A new token on a connection that is signed in is not counted.
		f.tokens.issue("next-token", ada, time.Hour)
		open.wantLogin("next-token")
		flood.Wait()
		f.tokens.issue("new-token", bert, time.Hour)
		if !f.try(t, "192.0.2.1:4", "new-token") {
			t.Error("a newcomer is closed after others at its address have guessed")
		}
	})
}

// TestUnknownOutcomesCount: during an outage the number of guesses to ask about is limited too.
func TestUnknownOutcomesCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startInMemory(t, func(cfg *Config) { cfg.FailuresPerAddress = 5 })
		f.tokens.setDown(true)
		began := time.Now()
		for i := range 100 {
			f.try(t, "192.0.2.1:1", fmt.Sprint("guess-", i))
		}
		if asked, most := f.tokens.asked(), 5+int(time.Since(began)/admission.Interval); asked > most {
			t.Errorf("asked about %d guesses during an outage of %v, want at most %d", asked, time.Since(began), most)
		}
	})
}

// TestManyAtOnce starts a job with more processes than its address may have failed logins.
func TestManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startInMemory(t)
		f.tokens.issue("ada-token", ada, time.Hour)
		f.tokens.hold(true)
		var job sync.WaitGroup
		for i := range 300 {
			job.Go(func() {
				if !f.try(t, "192.0.2.1:1", "ada-token") {
					t.Errorf("process %d is closed", i)
				}
			})
		}
		synctest.Wait()
		f.tokens.hold(false)
		job.Wait()
	})
}

// TestRefusedAgain: a program that keeps using a revoked token gets the reason each time, and does
// not use up the failures of others at its address.
func TestRefusedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startInMemory(t, func(cfg *Config) { cfg.FailuresPerAddress = 3 })
		f.tokens.issue("ada-token", ada, time.Hour)
		f.tokens.issue("old-token", ada, time.Hour)
		f.tokens.revoke("old-token")
		for range 20 {
			f.dialFrom(t, "192.0.2.1:1").wantRefusal("old-token", "was revoked")
		}
		f.dialFrom(t, "192.0.2.1:2").wantLogin("ada-token")

		// Nor if the gateway has forgotten the refusal and asks again, even with many tokens:
		// credentials that were refused before are counted separately.
		for i := range 10 {
			f.try(t, "192.0.2.1:3", fmt.Sprint("old-token-", i))
		}
		time.Sleep(refusedFor)
		for i := range 10 {
			f.try(t, "192.0.2.1:3", fmt.Sprint("old-token-", i))
		}
		began := time.Now()
		f.tokens.issue("new-token", bert, time.Hour)
		f.dialFrom(t, "192.0.2.1:4").wantLogin("new-token")
		if waited := time.Since(began); waited != 0 {
			t.Errorf("a newcomer waits for %v after others were refused again", waited)
		}
	})
}

// TestRefusalsAreForgotten: a refusal is not remembered forever.
func TestRefusalsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startInMemory(t)
		f.dialFrom(t, "192.0.2.1:1").wantRefusal("ada-token", "was revoked")
		f.tokens.issue("ada-token", ada, time.Hour)
		f.dialFrom(t, "192.0.2.1:1").wantRefusal("ada-token", "was revoked")
		time.Sleep(refusedFor)
		f.dialFrom(t, "192.0.2.1:1").wantLogin("ada-token")
	})
}

func TestFailureDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startInMemory(t, func(cfg *Config) { cfg.FailureDelay = 0 })
		began := time.Now()
		c := f.dial(t)
		c.authenticate("no-token")
		if got := time.Since(began); got != 100*time.Millisecond {
			t.Errorf("a refusal takes %v, want 100ms", got)
		}
		// Some clients have not read the answer when they see the connection end.
		c.wantClosed()
		if got := time.Since(began); got != 100*time.Millisecond+lingerTimeout {
			t.Errorf("the connection is closed after %v, want it open for %v more", got, lingerTimeout)
		}
	})
}

// TestSlowClients sends requests byte by byte.
func TestSlowClients(t *testing.T) {
	drip := func(c *raw, b []byte) (lifetime time.Duration) {
		began := time.Now()
		c.SetDeadline(time.Time{})
		for i := 0; ; i++ {
			if _, err := c.Write(b[i%len(b):][:1]); err != nil {
				return time.Since(began)
			}
			time.Sleep(time.Second)
		}
	}
	login := appendRequest(saslHandshake(1, "OAUTHBEARER"), 1)
	t.Run("before login", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := startInMemory(t)
			if got := drip(f.dial(t), login); got > 16*time.Second {
				t.Errorf("a slow login lasts %v, want no more than the login timeout", got)
			}
		})
	})
	t.Run("after handshake", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := startInMemory(t)
			c := f.dial(t)
			c.handshake(1)
			if got := drip(c, sized(10000, head(keySaslAuthenticate, 1))); got > 16*time.Second {
				t.Errorf("a slow login lasts %v, want no more than the login timeout", got)
			}
		})
	})
	t.Run("silent", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := startInMemory(t)
			if got := f.dial(t).lifetime(); got != 15*time.Second {
				t.Errorf("a silent connection lasts %v, want the login timeout", got)
			}
		})
	})
	t.Run("request", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := startInMemory(t)
			f.tokens.issue("ada-token", ada, time.Hour)
			c := f.login(t, "ada-token")
			request := append(sized(50_000, head(0, 3), int16(-1), int16(-1), int32(0), int32(1), int16(1), "x", int32(1), int32(0), int32(40_000)), make([]byte, 40_000)...)
			if got := drip(c, request); got < frameTimeout || got > frameTimeout+10*time.Second {
				t.Errorf("a slow request lasts %v, want %v", got, frameTimeout)
			}
		})
	})
	t.Run("second login", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := startInMemory(t)
			f.tokens.issue("ada-token", ada, time.Hour)
			c := f.login(t, "ada-token")
			c.handshake(1)
			if got := drip(c, sized(10000, head(keySaslAuthenticate, 1))); got > frameTimeout+2*time.Second {
				t.Errorf("a slow second login lasts %v, want at most %v", got, frameTimeout)
			}
		})
	})
	t.Run("no request at all", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := startInMemory(t)
			f.tokens.issue("ada-token", ada, 24*time.Hour)
			c := f.login(t, "ada-token")
			time.Sleep(12 * time.Hour)
			c.wantAlive()
		})
	})
}

// TestSlowUploads sends produce requests slowly. They must arrive as long as they make progress.
func TestSlowUploads(t *testing.T) {
	upload := func(t *testing.T, c *raw, size, perSecond int) {
		t.Helper()
		request := produceRequest(9)
		request.Topics[0].Partitions[0].Records = make([]byte, size)
		b := appendRequest(request, 7)
		c.SetDeadline(time.Time{})
		began := time.Now()
		for sent := 0; sent < len(b); time.Sleep(time.Second) {
			n, err := c.Write(b[sent:min(sent+perSecond, len(b))])
			if sent += n; err != nil {
				t.Fatalf("at %d B/s cut off after %v and %d of %d bytes: %v", perSecond, time.Since(began), sent, len(b), err)
			}
		}
		if _, err := c.response(request, 7); err != nil {
			t.Fatalf("%d bytes at %d B/s: no answer: %v", size, perSecond, err)
		}
	}
	for _, perSecond := range []int{8000, 2000, minBytesPerSecond} {
		t.Run(fmt.Sprint(perSecond), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := startInMemory(t)
				f.tokens.issue("ada-token", ada, time.Hour)
				c := f.login(t, "ada-token")
				upload(t, c, 1_040_000, perSecond)
				upload(t, c, 1_040_000, perSecond)
				time.Sleep(3 * frameTimeout) // no deadline may be left over
				c.wantAlive()
			})
		})
	}
	// The time that a client waits for the gateway does not count. Here it waits for the memory
	// that large requests of one subject share.
	t.Run("after a wait", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := startInMemory(t, func(cfg *Config) { cfg.MaxRequestBytes = 60 << 20 })
			f.tokens.issue("ada-token", ada, time.Hour)
			first, second := f.login(t, "ada-token"), f.login(t, "ada-token")
			first.send(sized(60<<20, flexHead(keyProduce, 9)))
			synctest.Wait()
			began := time.Now()
			var ended time.Duration
			var waiting sync.WaitGroup
			waiting.Go(func() { ended = first.lifetime() })
			upload(t, second, 30<<20, 30<<20)
			waiting.Wait()
			if waited := time.Since(began); waited < frameTimeout || ended != frameTimeout {
				t.Errorf("the second request waited for %v, and the first one lasted %v, want %v", waited, ended, frameTimeout)
			}
		})
	})
	// A client that was fast before gets no extra time to be silent.
	t.Run("stalled", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := startInMemory(t)
			f.tokens.issue("ada-token", ada, time.Hour)
			c := f.login(t, "ada-token")
			request := produceRequest(9)
			request.Topics[0].Partitions[0].Records = make([]byte, 1_040_000)
			b := appendRequest(request, 7)
			c.send(b[:len(b)-1])
			if got := c.lifetime(); got != frameTimeout {
				t.Errorf("a request that stands still lasts %v, want %v", got, frameTimeout)
			}
		})
	})
}

// TestUnreadAnswers has a client that sends requests and does not read the answers.
func TestUnreadAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startInMemory(t)
		f.tokens.issue("ada-token", ada, 24*time.Hour)
		c := f.login(t, "ada-token")
		c.SetDeadline(time.Time{})
		c.send(appendRequest(apiVersions(0), 1))
		time.Sleep(writeTimeout + time.Second)
		synctest.Wait()
		if got := f.gateway.Stats().Connections; got != 0 {
			t.Errorf("Stats.Connections = %d after %v without reading, want 0", got, writeTimeout)
		}
	})
}

// TestLargeLogins announces large logins until their memory budget is used up.
func TestLargeLogins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startInMemory(t)
		f.tokens.issue("ada-token", ada, time.Hour)
		var open []*raw
		for range loginBudgetBytes / maxLoginBytes {
			c := f.dial(t)
			c.handshake(1)
			c.send(sized(maxLoginBytes, head(keySaslAuthenticate, 1)))
			open = append(open, c)
		}
		synctest.Wait()
		c := f.dial(t)
		c.handshake(1)
		c.send(sized(maxLoginBytes, head(keySaslAuthenticate, 1)))
		c.wantClosed()
		f.login(t, "ada-token").wantAlive() // a small login needs no budget
		for _, c := range open {
			c.Close()
		}
		synctest.Wait()
		c = f.dial(t)
		c.handshake(1)
		message := []byte("n,,\x01auth=Bearer ada-token\x01padding=" + strings.Repeat("x", 2*smallLoginBytes) + "\x01\x01")
		if response := c.ask(saslAuthenticate(1, message)); response == nil {
			t.Error("no answer to a large login once there is room again")
		}
	})
}

func TestConfig(t *testing.T) {
	good := Config{Upstream: (*noUpstream)(nil), Authenticator: &tokens{}}
	if _, err := New(good); err != nil {
		t.Errorf("New(%+v) = %v", good, err)
	}
	for name, spoil := range map[string]func(*Config){
		"no upstream":       func(cfg *Config) { cfg.Upstream = nil },
		"no authenticator":  func(cfg *Config) { cfg.Authenticator = nil },
		"negative duration": func(cfg *Config) { cfg.LoginTimeout = -1 },
		"negative limit":    func(cfg *Config) { cfg.MaxConnections = -1 },
		"too large":         func(cfg *Config) { cfg.MaxRequestBytes = 1 << 30 },
	} {
		cfg := good
		spoil(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: New = nil, want an error", name)
		}
	}
}

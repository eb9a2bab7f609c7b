//go:build linux

package fabric_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/inside"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// busyGlobus answers introspection requests after 350 ms. It answers ten requests a second, and rejects
// the others with status 429.
type busyGlobus struct {
	http.Handler
	answered, refused atomic.Int64

	mu     sync.Mutex // guards the fields below
	second int64
	taken  int
}

func (b *busyGlobus) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/v2/oauth2/token/introspect" {
		b.Handler.ServeHTTP(w, r)
		return
	}
	b.mu.Lock()
	if s := time.Now().Unix(); s != b.second {
		b.second, b.taken = s, 0
	}
	b.taken++
	over := b.taken > 10
	b.mu.Unlock()
	time.Sleep(350 * time.Millisecond)
	if over {
		b.refused.Add(1)
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusTooManyRequests)
		return
	}
	b.answered.Add(1)
	b.Handler.ServeHTTP(w, r)
}

func (b *busyGlobus) asked() int { return int(b.answered.Load() + b.refused.Load()) }

// dialerFrom returns a dialer that connects from this local address.
func dialerFrom(address string) *net.Dialer {
	return &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
}

// signIn connects to a gateway from a local address, and signs in with a token.
func signIn(ctx context.Context, from, gateway, token string) (net.Conn, error) {
	conn, err := dialerFrom(from).DialContext(ctx, "tcp", gateway)
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	handshake := kmsg.NewPtrSASLHandshakeRequest()
	handshake.Version, handshake.Mechanism = 1, "OAUTHBEARER"
	login := kmsg.NewPtrSASLAuthenticateRequest()
	login.Version, login.SASLAuthBytes = 1, []byte("n,,\x01auth=Bearer "+token+"\x01\x01")
	if _, err = ask(conn, handshake); err == nil {
		var answer kmsg.Response
		if answer, err = ask(conn, login); err == nil {
			err = kerr.ErrorForCode(answer.(*kmsg.SASLAuthenticateResponse).ErrorCode)
		}
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func ask(conn net.Conn, request kmsg.Request) (kmsg.Response, error) {
	if _, err := conn.Write(kmsg.NewRequestFormatter().AppendRequest(nil, request, 1)); err != nil {
		return nil, err
	}
	var size [4]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return nil, err
	}
	frame := make([]byte, binary.BigEndian.Uint32(size[:]))
	if _, err := io.ReadFull(conn, frame); err != nil {
		return nil, err
	}
	answer := request.ResponseKind()
	return answer, answer.ReadFrom(frame[4:])
}

// identity sends a token to the ACL endpoint from a local address, and asks for the identity.
func identity(ctx context.Context, from, url, token string) error {
	client := http.Client{Transport: &http.Transport{DialContext: dialerFrom(from).DialContext, DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(ctx, "GET", url+"/v1/identity", nil)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+token)
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, bytes.TrimSpace(body))
	}
	return err
}

// accessToken logs a user in and returns the access token.
func accessToken(t *testing.T, f *fabric.Fabric, username string) string {
	t.Helper()
	login := fabrictest.Login(t, f, username)
	token, _ := login.Token(globusdev.ResourceServerID)
	return token.AccessToken.Reveal()
}

// TestFloodOfTokens sends invalid tokens from four addresses as fast as possible, to the gateway and to
// the ACL endpoint. Globus Auth takes 350 ms for an answer and answers ten requests a second. The test
// checks that in the meantime
//
//   - clients that have signed in recently can sign in again, even from these addresses,
//   - new clients at other addresses can sign in,
//   - connections of a revoked token are closed, and
//   - the service does not exceed its limits of requests to Globus Auth.
//
// FLOOD_SECONDS=60 makes the test longer. Only then does it check how long these take.
func TestFloodOfTokens(t *testing.T) {
	const (
		perAddress, perAddressSecond = 100, 5 // attempts allowed for one address, at the gateway and at the ACL endpoint each: burst and per second
		most, mostSecond             = 50, 50 // attempts allowed for all unknown tokens together: burst and per second
		knownSecond                  = 20     // upper bound of the requests about known tokens, per second
		revocation                   = 5 * time.Second
		impatient                    = 100 * time.Millisecond // an attacker waits this long for an answer
	)
	long := testkit.Scaled(t, "FLOOD_SECONDS", 0)
	addresses := []string{"127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"}
	busy := &busyGlobus{}
	f := fabrictest.Start(t, fabric.AroundGlobus(fabric.Config{RevocationInterval: revocation}, func(globus http.Handler) http.Handler {
		busy.Handler = globus
		return busy
	}))
	gateway := f.Brokers()[0]

	known := []string{accessToken(t, f, ada), accessToken(t, f, grace)}
	revoked := accessToken(t, f, ada)
	var newcomers []string
	for range max(3, long/5) {
		newcomers = append(newcomers, accessToken(t, f, grace))
	}
	for _, token := range known {
		conn, err := signIn(testkit.Within(t), "127.0.0.1", gateway, token)
		testkit.Must(t, err)
		conn.Close()
		testkit.Must(t, identity(testkit.Within(t), "127.0.0.1", f.URL(), token))
	}
	open, err := signIn(testkit.Within(t), "127.0.0.1", gateway, revoked)
	testkit.Must(t, err)
	defer open.Close()

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var flood, work sync.WaitGroup
	before, began := busy.asked(), time.Now()
	var guesses atomic.Int64
	for _, from := range addresses {
		for range testkit.Fewer(8) {
			flood.Go(func() {
				for ctx.Err() == nil {
					guess, cancel := context.WithTimeout(ctx, impatient)
					if conn, err := signIn(guess, from, gateway, "guess-"+rand.Text()); err == nil {
						t.Error("a guess is let in")
						conn.Close()
					}
					cancel()
					guesses.Add(1)
				}
			})
			flood.Go(func() {
				for ctx.Err() == nil {
					guess, cancel := context.WithTimeout(ctx, impatient)
					_ = identity(guess, from, f.URL(), "guess-"+rand.Text())
					cancel()
					guesses.Add(1)
				}
			})
		}
	}
	// The connection of a revoked token is closed.
	work.Go(func() {
		if err := inside.Of(f).Globus.Revoke(globus.Secret(revoked)); err != nil {
			t.Error(err)
		}
		at := time.Now()
		open.SetReadDeadline(at.Add(patience))
		_, err := open.Read(make([]byte, 1))
		took := time.Since(at)
		t.Logf("a revoked token's connection is closed after %v; promised are %v", took, revocation)
		if err != io.EOF && !strings.Contains(fmt.Sprint(err), "reset") {
			t.Errorf("a revoked token's connection after %v: %v, want it closed", took, err)
		}
		if long > 0 && took > 2*revocation {
			t.Errorf("a revoked token is good for %v, want at most %v and a few questions", took, revocation)
		}
	})
	// New clients at another address retry as Kafka clients do.
	work.Go(func() {
		var slowest time.Duration
		for _, token := range newcomers {
			at := time.Now()
			for {
				conn, err := signIn(ctx, "127.0.0.6", gateway, token)
				if err == nil {
					conn.Close()
					break
				}
				if time.Since(at) > patience {
					t.Errorf("a newcomer is still not in: %v", err)
					break
				}
			}
			slowest = max(slowest, time.Since(at))
		}
		t.Logf("the slowest of %d newcomers took %v", len(newcomers), slowest)
	})
	// Sign in with valid tokens from the attackers' addresses, at the gateway and at the ACL endpoint,
	// until the goroutines above have ended.
	done := make(chan struct{})
	go func() { work.Wait(); close(done) }()
	var times []time.Duration
	var failures []error
	for i := 0; ; i++ {
		select {
		case <-done:
			if time.Since(began) > time.Duration(long)*time.Second && i >= testkit.Fewer(100) {
				goto over
			}
		default:
		}
		login, cancel := context.WithTimeout(t.Context(), patience)
		from, token, at := addresses[i%len(addresses)], known[i%3%2], time.Now()
		var err error
		if i%2 == 0 {
			var conn net.Conn
			if conn, err = signIn(login, from, gateway, token); err == nil {
				conn.Close()
			}
		} else {
			err = identity(login, from, f.URL(), token)
		}
		cancel()
		if err != nil {
			failures = append(failures, err)
			continue
		}
		times = append(times, time.Since(at))
	}
over:
	stop()
	flood.Wait()
	elapsed := time.Since(began)
	asked := busy.asked() - before
	slices.Sort(times)
	inTime := 0
	for _, took := range times {
		if took <= 2*time.Second {
			inTime++
		}
	}
	all := len(times) + len(failures)
	t.Logf("%d guesses in %v; %d of %d good logins succeeded, %d within 2 s, the median in %v", guesses.Load(), elapsed, len(times), all, inTime, times[len(times)/2])
	t.Logf("Globus was asked %d times, and answered 429 to %d of them", asked, busy.refused.Load())
	if len(failures)*100 > all {
		t.Errorf("%d of %d good logins failed, want at most 1%%, for instance: %v", len(failures), all, failures[0])
	}
	if long > 0 && inTime*100 < all*99 {
		t.Errorf("%d of %d good logins took no more than 2 s, want 99%%", inTime, all)
	}
	if n := most + (mostSecond+knownSecond)*int(elapsed.Seconds()+1); asked > n {
		t.Errorf("Globus was asked %d times in %v, want at most %d", asked, elapsed, n)
	}
	if n := 2*len(addresses)*perAddress + (2*len(addresses)*perAddressSecond+knownSecond)*int(elapsed.Seconds()+1); asked > n {
		t.Errorf("Globus was asked %d times in %v, want at most %d from these addresses", asked, elapsed, n)
	}
	if refused := int(busy.refused.Load()); refused > 150+asked/3 {
		t.Errorf("Globus answered 429 to %d of %d questions, want few", refused, asked)
	}
}

// patience limits each wait of the test. It is long, because the machine is busy.
const patience = time.Minute

package server

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/admission"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// pipes is a listener in memory, so that synctest's clock controls every timeout.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-p.conns:
		return conn, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

func (p *pipes) Addr() net.Addr { return pipeAddr{} }

func (p *pipes) dial() net.Conn {
	ours, theirs := net.Pipe()
	p.conns <- theirs
	return ours
}

// dialFrom connects from an address.
func (p *pipes) dialFrom(address string) net.Conn {
	ours, theirs := net.Pipe()
	p.conns <- addressedConn{theirs, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(address))}
	return ours
}

type addressedConn struct {
	net.Conn
	remote net.Addr
}

func (c addressedConn) RemoteAddr() net.Addr { return c.remote }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }

// serve runs a server on pipes. The function stop waits for the server and returns the result of
// Serve.
func serve(t *testing.T, change func(*Config)) (p *pipes, stop func() error) {
	t.Helper()
	cfg := Config{Claims: emptyClaims{}, Authenticator: identities{}, PublicURL: "http://127.0.0.1"}
	if change != nil {
		change(&cfg)
	}
	srv, err := New(cfg)
	testkit.Must(t, err)
	p = newPipes()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ctx, p) }()
	return p, func() error {
		cancel()
		return <-served
	}
}

const getForm = "GET /acl HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"

// get sends a request and returns the status of the answer.
func get(t *testing.T, conn net.Conn, request string) int {
	t.Helper()
	go func() { _, _ = io.WriteString(conn, request) }()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	testkit.Must(t, err)
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode
}

// untilClosed returns how long the server keeps conn open while say sends to it.
func untilClosed(conn net.Conn, say func(net.Conn)) time.Duration {
	begun := time.Now()
	var wg sync.WaitGroup
	wg.Go(func() { say(conn) })
	_, _ = io.Copy(io.Discard, conn)
	took := time.Since(begun)
	_ = conn.Close()
	wg.Wait()
	return took
}

func slowly(conn net.Conn, text string) {
	for i := range text {
		if _, err := conn.Write([]byte{text[i]}); err != nil {
			return
		}
		time.Sleep(time.Second) // of synctest's clock
	}
}

func TestSlowClients(t *testing.T) {
	for _, tt := range []struct {
		name  string
		say   func(net.Conn)
		limit time.Duration
	}{
		{"says nothing", func(net.Conn) {}, headerTimeout},
		{"a byte of the header a second", func(c net.Conn) { slowly(c, getForm+strings.Repeat("X", 1000)) }, headerTimeout},
		{"endless header, line by line", func(c net.Conn) {
			_, _ = io.WriteString(c, "GET /acl HTTP/1.1\r\n")
			slowly(c, strings.Repeat("X: y\r\n", 1000))
		}, headerTimeout},
		{"a byte of the body a second", func(c net.Conn) {
			_, _ = io.WriteString(c, "POST /v1/topics HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: "+adaBearer+"\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n")
			slowly(c, weather+strings.Repeat(" ", 1000))
		}, readTimeout},
		{"keeps the connection", func(c net.Conn) { _, _ = io.WriteString(c, getForm) }, idleTimeout},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, stop := serve(t, nil)
				var wg sync.WaitGroup
				for range 50 {
					conn := p.dial()
					wg.Go(func() {
						if took := untilClosed(conn, tt.say); took < tt.limit-time.Second || took > tt.limit+time.Second {
							t.Errorf("cut off after %v, want %v", took, tt.limit)
						}
					})
				}
				other := p.dial()
				if status := get(t, other, getForm); status != 200 {
					t.Errorf("others get %d meanwhile", status)
				}
				_ = other.Close()
				wg.Wait()
				if err := stop(); err != nil {
					t.Errorf("Serve = %v", err)
				}
			})
		})
	}
}

// TestAnswerIsNotRead checks that a client that does not read its response is disconnected.
func TestAnswerIsNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, stop := serve(t, nil)
		conn := p.dial()
		if _, err := io.WriteString(conn, getForm); err != nil {
			t.Fatal(err)
		}
		time.Sleep(writeTimeout + time.Second)
		if answer, err := io.ReadAll(conn); err != nil || len(answer) > 0 {
			t.Errorf("after %v there are %d bytes and %v, want the end", writeTimeout, len(answer), err)
		}
		if err := stop(); err != nil {
			t.Errorf("Serve = %v", err)
		}
		_ = conn.Close()
	})
}

// stuckClaims wait until their context ends.
type stuckClaims struct{ Claims }

func (stuckClaims) Topics(ctx context.Context, _ string) (diaspora.TopicList, error) {
	<-ctx.Done()
	return diaspora.TopicList{}, ctx.Err()
}

// TestClaimTimeout checks that the client gets a response that says so if the cluster does not
// answer, before the connection's own timeout.
func TestClaimTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, stop := serve(t, withClaims(stuckClaims{}))
		conn := p.dial()
		begun := time.Now()
		if status := get(t, conn, listTopics); status != 503 {
			t.Errorf("status %d, want 503", status)
		}
		if took := time.Since(begun); took != claimTimeout {
			t.Errorf("took %v, want %v", took, claimTimeout)
		}
		_ = conn.Close()
		if err := stop(); err != nil {
			t.Errorf("Serve = %v", err)
		}
	})
}

// TestPanicInTheMiddle checks that half a response does not look like a complete one.
func TestPanicInTheMiddle(t *testing.T) {
	srv, err := New(Config{Claims: emptyClaims{}, Authenticator: identities{}, PublicURL: "http://127.0.0.1"})
	testkit.Must(t, err)
	defer func() {
		if v := recover(); v != http.ErrAbortHandler {
			t.Errorf("recovered %v, want http.ErrAbortHandler", v)
		}
	}()
	r, _ := http.NewRequest("GET", "http://127.0.0.1/acl", nil)
	srv.ServeHTTP(brokenWriter{http.Header{}}, r)
}

// brokenWriter panics after the header was sent.
type brokenWriter struct{ header http.Header }

func (w brokenWriter) Header() http.Header       { return w.header }
func (w brokenWriter) Write([]byte) (int, error) { panic("out of order") }
func (w brokenWriter) WriteHeader(int)           {}

// TestMaxConns checks that connections above the limit wait until another one is closed.
func TestMaxConns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		held := &heldClaims{emptyClaims{}, make(chan struct{}), make(chan struct{})}
		p, stop := serve(t, func(cfg *Config) { cfg.MaxConns = 1; cfg.Claims = held })
		first := p.dial()
		answered := make(chan int)
		go func() { answered <- get(t, first, listTopics) }()
		<-held.entered
		conn := p.dial()
		second := make(chan int, 1)
		go func() { second <- get(t, conn, getForm) }()
		synctest.Wait()
		select {
		case <-second:
			t.Fatal("a second connection is served")
		default:
		}
		close(held.release)
		if status := <-answered; status != 200 {
			t.Errorf("the first gets %d", status)
		}
		if status := <-second; status != 200 {
			t.Errorf("the second gets %d", status)
		}
		_, _ = conn.Close(), first.Close()
		if err := stop(); err != nil {
			t.Errorf("Serve = %v", err)
		}
	})
}

// TestIdleConnsMakeRoom checks that idle connections do not keep others waiting, and that the one
// that has been idle for the longest time is closed first.
func TestIdleConnsMakeRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, stop := serve(t, func(cfg *Config) { cfg.MaxConns = 3 })
		begun := time.Now()
		var conns []net.Conn
		for range 3 {
			conns = append(conns, p.dial())
			if status := get(t, conns[len(conns)-1], getForm); status != 200 {
				t.Fatalf("connection %d gets %d", len(conns), status)
			}
			time.Sleep(time.Second)
		}
		fourth := p.dial()
		if status := get(t, fourth, getForm); status != 200 {
			t.Errorf("the fourth gets %d", status)
		}
		if waited := time.Since(begun); waited != 3*time.Second {
			t.Errorf("it was answered after %v, want 3 s", waited)
		}
		if n, err := conns[0].Read(make([]byte, 1)); err == nil {
			t.Errorf("the first reads %d bytes, want its end", n)
		}
		if status := get(t, conns[2], getForm); status != 200 {
			t.Errorf("the third gets %d", status)
		}
		for _, conn := range append(conns, fourth) {
			_ = conn.Close()
		}
		if err := stop(); err != nil {
			t.Errorf("Serve = %v", err)
		}
	})
}

// TestHalfRequests: requests that do not arrive completely must not delay other clients, not even
// those at the same address, whether the half requests are authenticated or not.
func TestHalfRequests(t *testing.T) {
	const post = "POST /v1/topics HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n"
	for name, half := range map[string]string{
		"silent":     "",
		"header":     post[:30],
		"body":       post + "\r\n{",
		"known body": post + "Authorization: " + adaBearer + "\r\n\r\n{",
		"change":     strings.Replace(post, "POST /v1/topics", "PATCH /v1/topics/weather", 1) + "Authorization: " + adaBearer + "\r\n\r\n{",
		"form":       "POST /acl HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 1000\r\n\r\ntoken=",
	} {
		// What is being answered meanwhile has arrived completely, because it has no body.
		request := listTopics
		if name == "change" {
			request = strings.Replace(listTopics, "GET /v1/topics", "POST /v1/topics/weather/accept", 1)
		}
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const most = 40
				held := &heldClaims{emptyClaims{}, make(chan struct{}), make(chan struct{})}
				p, stop := serve(t, func(cfg *Config) { cfg.MaxConns = most; cfg.Claims = held })
				var open []net.Conn
				dial := func(address string) net.Conn {
					conn := p.dialFrom(address)
					open = append(open, conn)
					return conn
				}
				busy := dial("192.0.2.1:1000")
				answered := make(chan int)
				go func() { answered <- get(t, busy, request) }()
				<-held.entered
				flood := func(addresses int) {
					for i := range most {
						for a := range addresses {
							conn := dial(fmt.Sprintf("192.0.2.%d:%d", a+1, i+1))
							go func() { _, _ = io.WriteString(conn, half) }()
							synctest.Wait()
						}
					}
				}
				begun := time.Now()
				flood(1)
				for _, address := range []string{"192.0.2.9:1", "192.0.2.1:999"} {
					if status := get(t, dial(address), getForm); status != 200 {
						t.Errorf("%s gets %d", address, status)
					}
				}
				early := dial("192.0.2.20:1") // its request arrives during the flood
				flood(8)
				for _, address := range []string{"192.0.2.9:2", "192.0.2.1:998"} {
					if status := get(t, dial(address), getForm); status != 200 {
						t.Errorf("%s gets %d while eight addresses flood", address, status)
					}
				}
				if status := get(t, early, getForm); status != 200 {
					t.Errorf("a connection from before the flood gets %d", status)
				}
				if took := time.Since(begun); took != 0 {
					t.Errorf("that took %v, want no time", took)
				}
				close(held.release)
				if status := <-answered; status != 200 {
					t.Errorf("a request that was being answered gets %d", status)
				}
				for _, conn := range open {
					_ = conn.Close()
				}
				if err := stop(); err != nil {
					t.Errorf("Serve = %v", err)
				}
			})
		})
	}
}

// TestForgedProxyHeader: a client that is not a trusted proxy cannot pass for another address.
func TestForgedProxyHeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, stop := serve(t, nil)
		conn := p.dialFrom("192.0.2.1:1")
		forged := "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x07\xc6\x33\x64\x01\x1f\x90\x23\x84"
		if status := get(t, conn, forged+getForm); status != 400 {
			t.Errorf("a request behind a PROXY header gets %d, want 400", status)
		}
		_ = conn.Close()
		if err := stop(); err != nil {
			t.Errorf("Serve = %v", err)
		}
	})
}

// TestProxiesAreExempt: the connections of a trusted proxy come from many people, and are not
// limited by address.
func TestProxiesAreExempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, stop := serve(t, func(cfg *Config) {
			cfg.MaxConns = 40
			cfg.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
		})
		var open []net.Conn
		for i := range 39 {
			open = append(open, p.dialFrom(fmt.Sprintf("10.0.0.1:%d", i+1)))
		}
		for i, conn := range open {
			if status := get(t, conn, getForm); status != 200 {
				t.Errorf("connection %d gets %d", i, status)
			}
			_ = conn.Close()
		}
		if err := stop(); err != nil {
			t.Errorf("Serve = %v", err)
		}
	})
}

// emptyClaims know of no topic.
type emptyClaims struct{ Claims }

func (emptyClaims) Topics(context.Context, string) (diaspora.TopicList, error) {
	return diaspora.TopicList{}, nil
}

func (emptyClaims) Usage(context.Context, []string) (map[string]diaspora.TopicUsage, error) {
	return nil, nil
}

// heldClaims delays every list, and every transfer that is accepted, until it is released.
type heldClaims struct {
	Claims
	entered, release chan struct{}
}

func (h *heldClaims) Topics(context.Context, string) (diaspora.TopicList, error) {
	close(h.entered)
	<-h.release
	return diaspora.TopicList{}, nil
}

func (h *heldClaims) Accept(context.Context, string, string) (diaspora.Topic, error) {
	close(h.entered)
	<-h.release
	return diaspora.Topic{}, nil
}

const listTopics = "GET /v1/topics HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: " + adaBearer + "\r\n\r\n"

// TestDrain checks that a request in flight gets its response, that one that takes too long is cut
// off with an error, and that idle and silent connections do not delay the stop.
func TestDrain(t *testing.T) {
	for _, tt := range []struct {
		name    string
		release time.Duration // after the server was told to stop
		clean   bool
		took    time.Duration
	}{
		{"in time", 3 * time.Second, true, 3 * time.Second},
		{"too late", time.Minute, false, 10 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				held := &heldClaims{emptyClaims{}, make(chan struct{}), make(chan struct{})}
				p, stop := serve(t, func(cfg *Config) { cfg.Claims = held })
				silent, idle, busy := p.dial(), p.dial(), p.dial()
				get(t, idle, getForm)
				answered := make(chan error, 1)
				go func() {
					_, _ = io.WriteString(busy, listTopics)
					resp, err := http.ReadResponse(bufio.NewReader(busy), nil)
					if err == nil && resp.StatusCode != 200 {
						err = errors.New(resp.Status)
					}
					answered <- err
				}()
				<-held.entered
				time.AfterFunc(tt.release, func() { close(held.release) })
				begun := time.Now()
				err := stop()
				if took := time.Since(begun); took < tt.took || took > tt.took+time.Second {
					t.Errorf("Serve took %v to stop, want %v", took, tt.took)
				}
				if (err == nil) != tt.clean {
					t.Errorf("Serve = %v, want nil: %v", err, tt.clean)
				}
				if err := <-answered; (err == nil) != tt.clean {
					t.Errorf("the request under way: %v", err)
				}
				<-held.release
				synctest.Wait()
				_, _, _ = silent.Close(), idle.Close(), busy.Close()
			})
		})
	}
	t.Run("nothing under way", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p, stop := serve(t, nil)
			silent := p.dial()
			synctest.Wait()
			begun := time.Now()
			if err := stop(); err != nil {
				t.Errorf("Serve = %v", err)
			}
			if took := time.Since(begun); took > time.Second {
				t.Errorf("a silent connection held up the stop for %v", took)
			}
			_ = silent.Close()
		})
	})
}

// TestServeFails checks that Serve returns an error if the listener fails.
func TestServeFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, err := New(Config{Claims: emptyClaims{}, Authenticator: identities{}, PublicURL: "http://127.0.0.1"})
		testkit.Must(t, err)
		p := newPipes()
		_ = p.Close()
		if err := srv.Serve(t.Context(), p); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve = %v, want net.ErrClosed", err)
		}
	})
}

// brokenClaims returns errors that no Claims should return.
type brokenClaims struct {
	Claims
	err error
}

func (b brokenClaims) Topics(context.Context, string) (diaspora.TopicList, error) {
	if b.err == nil {
		panic("list of " + adaToken)
	}
	return diaspora.TopicList{}, b.err
}

// TestInternalErrors checks that clients learn nothing of internal causes, that the diagnostics
// have the cause, and that neither has the token.
func TestInternalErrors(t *testing.T) {
	for _, tt := range []struct {
		name   string
		err    error // nil: panic
		status int
		detail string // a part of it
		logged string
	}{
		{"panic", nil, 500, "under", "list of [redacted]"},
		{"client left", fmt.Errorf("wait for broker7.internal: %w", context.Canceled), 503, "in time", "broker7.internal"},
		{"unknown", errors.New("disk /var/lib/x is full, said " + adaToken), 500, "under", "disk /var/lib/x is full"},
		{"cluster away", fmt.Errorf("dial broker7.internal: %w", diaspora.ErrUnavailable), 503, "in time", "broker7.internal"},
		{"too slow", fmt.Errorf("wait for broker7.internal: %w", context.DeadlineExceeded), 503, "in time", "broker7.internal"},
		{"disk full", fmt.Errorf("%w: broker7.internal: %w", diaspora.ErrUnavailable, kerr.KafkaStorageError), 503, "may be full", "broker7.internal"},
		{"topic at a broken place", &diaspora.TopicError{Op: "list", Topic: "x", Err: errors.New("/var/lib/x")}, 500, "under", "/var/lib/x"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := start(t, func(cfg *Config) { cfg.Claims = brokenClaims{cfg.Claims, tt.err} })
			a := e.do("GET", "/v1/topics", "", "Authorization", adaBearer)
			if p := a.problem(t); a.status != tt.status || strings.Contains(a.body, "broker7") || strings.Contains(a.body, "/var") || strings.Contains(a.body, "list of") || !strings.Contains(p.Detail, tt.detail) {
				t.Errorf("%d %+v", a.status, p)
			}
			e.checkChallenge(a)
			log := e.logs.String()
			if !strings.Contains(log, tt.logged) || !strings.Contains(log, fmt.Sprintf("status=%d", tt.status)) {
				t.Errorf("the log lacks %q or the status:\n%s", tt.logged, log)
			}
			if _, id, ok := strings.Cut(a.problem(t).Detail, "under "); tt.status == 500 && (!ok || !strings.Contains(log, id)) {
				t.Errorf("the log lacks the id %q:\n%s", id, log)
			}
		})
	}
}

// TestHealthIsShared checks that each part is checked at most once a second, however many clients
// ask. A check that hangs must make the response late and bad, but not missing.
func TestHealthIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		asked := 0
		var fail error
		srv, err := New(Config{
			Claims: emptyClaims{}, Authenticator: identities{}, PublicURL: "http://127.0.0.1",
			Ready: map[string]func(context.Context) error{
				"ledger": func(ctx context.Context) error {
					mu.Lock()
					defer mu.Unlock()
					asked++
					return fail
				},
				"broker": func(ctx context.Context) error {
					if fail == nil {
						return nil
					}
					<-ctx.Done()
					return ctx.Err()
				},
			},
			Diagnostics: slog.New(slog.DiscardHandler),
		})
		testkit.Must(t, err)
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if h := srv.checkHealth(); h.Status != "ok" || h.Checks["ledger"] != "ok" || h.Checks["broker"] != "ok" {
					t.Errorf("health = %+v", h)
				}
			})
		}
		wg.Wait()
		if asked != 1 {
			t.Errorf("asked %d times, want once", asked)
		}
		fail = errors.New("gone")
		time.Sleep(healthFreshFor)
		begun := time.Now()
		if h := srv.checkHealth(); h.Status != "unavailable" || h.Checks["ledger"] != "unavailable" || h.Checks["broker"] != "unavailable" {
			t.Errorf("health = %+v", h)
		}
		if took := time.Since(begun); took > healthTimeout {
			t.Errorf("took %v", took)
		}
	})
}

// TestFailedAuthentications checks that a client with too many failures is refused for a while, and
// that others are not, even at its address.
func TestFailedAuthentications(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		var bobIsOut atomic.Bool
		var slow atomic.Int64 // a time.Duration
		srv, err := New(Config{
			Claims: emptyClaims{}, PublicURL: "http://127.0.0.1",
			Authenticator: authenticatorFunc(func(ctx context.Context, token globus.Secret) (globus.TokenInfo, error) {
				asked.Add(1)
				time.Sleep(time.Duration(slow.Load()))
				switch t := token.Reveal(); {
				case strings.HasPrefix(t, "dev-at-fresh-"):
					token = adaToken
				case strings.HasPrefix(t, "dev-at-guess-"), token == bobToken && bobIsOut.Load():
					token = expiredToken
				case strings.HasPrefix(t, "dev-at-outage-"):
					token = outageToken
				}
				return identities{}.Authenticate(ctx, token)
			}),
			TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
		})
		testkit.Must(t, err)
		fresh := func() string { return "dev-at-fresh-" + rand.Text() } // valid, and never seen before
		guess := func() string { return "dev-at-guess-" + rand.Text() }
		ask := func(remote, forwarded, token string) int {
			r, _ := http.NewRequest("GET", "http://127.0.0.1/v1/topics", nil)
			r.RemoteAddr = remote
			r.Header.Set("Authorization", "Bearer "+token)
			if forwarded != "" {
				r.Header.Set("X-Forwarded-For", forwarded)
			}
			w := &statusWriter{header: http.Header{}}
			srv.ServeHTTP(w, r)
			return w.status
		}
		if status := ask("192.0.2.1:999", "", bobToken); status != 200 {
			t.Fatalf("a good token: %d", status)
		}

		// A program keeps using one bad token.
		for i := range admission.DefaultBurst {
			if status := ask("192.0.2.1:1000", "", expiredToken); status != 401 {
				t.Fatalf("attempt %d: %d, want 401", i, status)
			}
		}
		ask("192.0.2.1:1000", "", expiredToken) // the first one was new, so it is counted separately
		before := asked.Load()
		if status := ask("192.0.2.1:1001", "", expiredToken); status != 429 {
			t.Errorf("after %d failures: %d, want 429", admission.DefaultBurst, status)
		}
		if status := ask("192.0.2.1:1002", "198.51.100.7", expiredToken); status != 429 {
			t.Errorf("with an invented X-Forwarded-For: %d, want 429", status)
		}
		if status := ask("10.0.0.1:1", "198.51.100.7, 192.0.2.1", expiredToken); status != 429 {
			t.Errorf("the same client through a trusted proxy: %d, want 429", status)
		}
		if status := ask("192.0.2.1:1002", "", "short"); status != 429 {
			t.Errorf("what cannot be a token: %d, want 429", status)
		}
		if asked.Load() != before {
			t.Error("the authenticator was asked all the same")
		}
		if status := ask("192.0.2.1:1003", "", fresh()); status != 200 {
			t.Errorf("a newcomer at the same address: %d, want 200", status)
		}
		for _, other := range [][2]string{{"192.0.2.2:1000", ""}, {"10.0.0.1:1", "198.51.100.7"}, {"10.0.0.1:1", "192.0.2.1, 198.51.100.7, 10.0.0.9"}, {"[2001:db8::1]:1", ""}} {
			if status := ask(other[0], other[1], expiredToken); status != 401 {
				t.Errorf("%v: %d, want 401", other, status)
			}
		}
		for i := range admission.DefaultBurst {
			ask(fmt.Sprintf("[2001:db8:0:1::%x]:1", i), "", expiredToken)
		}
		if status := ask("[2001:db8:0:1:ffff::]:1", "", expiredToken); status != 429 {
			t.Errorf("another address of the same /64: %d, want 429", status)
		}

		// Many guess at once, while Globus Auth is slow.
		slow.Store(int64(time.Second))
		before = asked.Load()
		var flood sync.WaitGroup
		for range 5 * admission.DefaultBurst {
			flood.Go(func() { ask("192.0.2.3:1", "", guess()) })
		}
		synctest.Wait()
		if n := asked.Load() - before; n != admission.DefaultBurst {
			t.Errorf("asked about %d guesses at once, want %d", n, admission.DefaultBurst)
		}
		slow.Store(0)
		if status := ask("192.0.2.3:1003", "", bobToken); status != 200 {
			t.Errorf("a neighbour whose token is known: %d, want 200", status)
		}
		flood.Wait()
		if status := ask("192.0.2.3:1004", "", fresh()); status != 200 {
			t.Errorf("a newcomer behind the same address, once the guessing is over: %d, want 200", status)
		}
		bobIsOut.Store(true)
		if first := ask("192.0.2.3:1003", "", bobToken); first != 401 {
			t.Errorf("the neighbour once their token is revoked: %d, want 401", first)
		}

		// During an outage the number of guesses is limited too.
		began := time.Now()
		before = asked.Load()
		for range 5 * admission.DefaultBurst {
			if status := ask("192.0.2.4:1", "", "dev-at-outage-"+rand.Text()); status != 503 && status != 429 {
				t.Fatalf("during an outage: %d, want 503 or 429", status)
			}
		}
		if n, most := asked.Load()-before, int64(admission.DefaultBurst+time.Since(began)/admission.Interval); n > most {
			t.Errorf("asked %d times during an outage, want at most %d", n, most)
		}
		if status := ask("192.0.2.4:1", "", fresh()); status != 200 {
			t.Errorf("a newcomer behind the same address: %d, want 200", status)
		}
	})
}

type authenticatorFunc func(context.Context, globus.Secret) (globus.TokenInfo, error)

func (f authenticatorFunc) Authenticate(ctx context.Context, token globus.Secret) (globus.TokenInfo, error) {
	return f(ctx, token)
}

// statusWriter records the status only.
type statusWriter struct {
	header http.Header
	status int
}

func (w *statusWriter) Header() http.Header         { return w.header }
func (w *statusWriter) Write(b []byte) (int, error) { return len(b), nil }
func (w *statusWriter) WriteHeader(status int)      { w.status = status }

// TestHosts checks under which host names requests are accepted.
func TestHosts(t *testing.T) {
	for _, tt := range []struct {
		public string
		hosts  []string
		host   string
		ok     bool
	}{
		{"http://127.0.0.1:9090", nil, "127.0.0.1:9090", true},
		{"http://127.0.0.1:9090", nil, "localhost:9090", true},
		{"http://127.0.0.1:9090", nil, "LOCALHOST.:9090", true},
		{"http://127.0.0.1:9090", nil, "[::1]:9090", true},
		{"http://127.0.0.1:9090", nil, "127.0.0.1", false},
		{"http://127.0.0.1:9090", nil, "127.0.0.1:9091", false},
		{"http://127.0.0.1:9090", nil, "evil.example:9090", false},
		{"http://127.0.0.1:9090", nil, "localhost.evil.example:9090", false},
		{"http://127.0.0.1:9090", nil, "", false},
		{"http://127.0.0.1:9090", []string{"devbox:9090"}, "devbox:9090", true},
		{"https://diaspora.example.org", nil, "diaspora.example.org", true},
		{"https://diaspora.example.org", nil, "Diaspora.Example.org:443", true},
		{"https://diaspora.example.org", nil, "diaspora.example.org:80", false},
		{"https://diaspora.example.org", nil, "localhost", false},
		{"https://diaspora.example.org", []string{"10.0.0.5"}, "10.0.0.5:443", true},
		{"https://[2001:db8::1]", nil, "[2001:db8::1]:443", true},
	} {
		srv, err := New(Config{Claims: emptyClaims{}, Authenticator: identities{}, PublicURL: tt.public, Hosts: tt.hosts})
		testkit.Must(t, err)
		r, _ := http.NewRequest("GET", "http://x/", nil)
		r.Host = tt.host
		w := &statusWriter{header: http.Header{}}
		srv.ServeHTTP(w, r)
		if want := map[bool]int{true: 200, false: 421}[tt.ok]; w.status != want {
			t.Errorf("public URL %s, %v: Host %q gets %d, want %d", tt.public, tt.hosts, tt.host, w.status, want)
		}
		if got := w.header.Get("Strict-Transport-Security") != ""; got != strings.HasPrefix(tt.public, "https") {
			t.Errorf("public URL %s: Strict-Transport-Security is there: %v", tt.public, got)
		}
	}
}

func TestChoose(t *testing.T) {
	for _, tt := range []struct{ accept, want string }{
		{"", "text/plain"},
		{"*/*", "text/plain"},
		{"application/json", "application/json"},
		{"APPLICATION/JSON", "application/json"},
		{"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html"},
		{"application/json;q=0.5, text/html;q=0.4", "application/json"},
		{"text/*", "text/plain"},
		{"text/*;q=0.5, text/html", "text/html"},
		{"*/*, text/plain;q=0", "application/json"},
		{"application/*", "application/json"},
		{"image/png", ""},
		{"text/html;q=0", ""},
		{"text/html;q=2", ""},
		{"text/html;q=NaN", ""},
		{"text/html;q=x", ""},
		{"nonsense, ;;, text/html", "text/html"},
	} {
		r := &http.Request{Header: http.Header{"Accept": {tt.accept}}}
		if got := negotiate(r, typePlain, typeJSON, typeHTML); got != tt.want {
			t.Errorf("choose(%q) = %q, want %q", tt.accept, got, tt.want)
		}
	}
}

// TestEmptyList checks that an empty list is encoded as [] and not as null.
func TestEmptyList(t *testing.T) {
	e := start(t, withClaims(emptyClaims{}))
	if a := e.do("GET", "/v1/topics", "", "Authorization", adaBearer); !strings.Contains(a.body, `"topics": []`) {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// TestEveryRouteAsks checks that every route of the API requires authentication.
func TestEveryRouteAsks(t *testing.T) {
	e := start(t, withTokens)
	open := 0
	for _, rt := range routeTable {
		method, path, _ := strings.Cut(rt.pattern, " ")
		if rt.access == public {
			open++
			continue
		}
		target := strings.NewReplacer("{name}", "weather", "{id}", keyID).Replace(path)
		contentType := typeJSON
		if rt.access == oauthClient {
			contentType = typeForm
		}
		if a := e.do(method, target, weather, "Content-Type", contentType); a.status != 401 && a.status != 400 {
			t.Errorf("%s: %d for an anonymous client", rt.pattern, a.status)
		}
	}
	if want := 5; open != want {
		t.Errorf("%d routes are public, want %d: is a new one meant to be?", open, want)
	}
}

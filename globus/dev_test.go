package globus_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// dev is a globusdev server on a loopback port.
type dev struct {
	*globusdev.Server
	front atomic.Pointer[frontFunc]
}

// frontFunc sees each request first, and may answer it in place of the server.
type frontFunc func(w http.ResponseWriter, r *http.Request) (done bool)

func (d *dev) intercept(f frontFunc) { d.front.Store(&f) }

func newDev(t *testing.T, change ...func(*globusdev.Config)) *dev {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	cfg := globusdev.Config{Issuer: "http://" + l.Addr().String()}
	for _, f := range change {
		f(&cfg)
	}
	server, err := globusdev.Open(cfg)
	testkit.Must(t, err)
	d := &dev{Server: server}
	h := &http.Server{Handler: d}
	var wg sync.WaitGroup
	wg.Go(func() { h.Serve(l) })
	t.Cleanup(func() {
		h.Close()
		wg.Wait()
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func (d *dev) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if f := d.front.Load(); f == nil || !(*f)(w, r) {
		d.Server.ServeHTTP(w, r)
	}
}

// native returns a native client, as people use to log in.
func (d *dev) native(t *testing.T, change ...func(*globus.Config)) *globus.Client {
	t.Helper()
	cfg := globus.Config{Issuer: d.Issuer(), ClientID: globusdev.NativeClientID, HTTPClient: &http.Client{Transport: &http.Transport{}}}
	t.Cleanup(cfg.HTTPClient.CloseIdleConnections)
	for _, f := range change {
		f(&cfg)
	}
	c, err := globus.New(cfg)
	testkit.Must(t, err)
	return c
}

// confidential returns a client with a secret.
func (d *dev) confidential(t *testing.T, clientID string) *globus.Client {
	t.Helper()
	return d.native(t, func(cfg *globus.Config) {
		secret, err := d.ClientSecret(clientID)
		testkit.Must(t, err)
		cfg.ClientID, cfg.ClientSecret = clientID, secret
	})
}

// count returns how many requests a path has received, with the grant type if that is not "".
func (d *dev) count(path, grant string) int {
	n := 0
	for _, r := range d.Requests() {
		if r.Path == path && (grant == "" || r.GrantType == grant) {
			n++
		}
	}
	return n
}

// visit opens a URL as a browser does, and logs somebody in. It returns the URL on which the
// browser ends, and the page.
func visit(address, who string) (*url.URL, string, error) {
	if who == "" {
		address += "&dev_deny=1"
	} else {
		address += "&dev_user=" + who
	}
	return open(address)
}

// open opens a URL without logging anybody in.
func open(address string) (*url.URL, string, error) {
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get(address)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		err = errors.Join(err, fmt.Errorf("status %d", resp.StatusCode))
	}
	return resp.Request.URL, string(body), err
}

// screen is the output of a login. Tests can wait until a text appears.
type screen struct {
	mu   sync.Mutex
	text strings.Builder
	more chan struct{} // closed at each write
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text.Write(p)
	if s.more != nil {
		close(s.more)
	}
	s.more = make(chan struct{})
	return len(p), nil
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// await waits until text has appeared n times.
func (s *screen) await(t *testing.T, text string, n int) string {
	t.Helper()
	limit := time.After(20 * time.Second)
	for {
		s.mu.Lock()
		all, more := s.text.String(), s.more
		if more == nil {
			more = make(chan struct{})
			s.more = more
		}
		s.mu.Unlock()
		if strings.Count(all, text) >= n {
			return all
		}
		select {
		case <-more:
		case <-limit:
			t.Fatalf("the screen never showed %q %d times, but: %s", text, n, all)
		}
	}
}

// address waits for the URL to visit.
func (s *screen) address(t *testing.T) string {
	t.Helper()
	_, rest, _ := strings.Cut(s.await(t, "\n\n", 2), "URL to authorize the application:\n\n")
	address, _, _ := strings.Cut(strings.TrimSpace(rest), "\n")
	if _, err := url.ParseRequestURI(address); err != nil {
		t.Fatalf("the screen shows no URL: %s", s)
	}
	return address
}

// keyboard is the input of a login.
type keyboard struct {
	io.Reader
	w *io.PipeWriter
}

func newKeyboard(t *testing.T) *keyboard {
	r, w := io.Pipe()
	t.Cleanup(func() { w.Close() })
	return &keyboard{r, w}
}

// enter types text, and does not wait until it is read.
func (k *keyboard) enter(t *testing.T, text string) {
	var wg sync.WaitGroup
	wg.Go(func() { io.WriteString(k.w, text) }) // fails once the login is over
	t.Cleanup(func() { k.w.Close(); wg.Wait() })
}

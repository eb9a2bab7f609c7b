package faultnet_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/internal/faultnet"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// echo starts a server that sends back what it receives, and a proxy to it.
func echo(t *testing.T) *faultnet.Proxy {
	t.Helper()
	server := testkit.Listen(t)
	go func() {
		for {
			conn, err := server.Accept()
			if err != nil {
				return
			}
			go func() {
				io.Copy(conn, conn)
				conn.Close()
			}()
		}
	}()
	proxy, err := faultnet.Start(server.Addr().String())
	testkit.Must(t, err)
	t.Cleanup(func() { proxy.Close() })
	return proxy
}

func dial(t *testing.T, proxy *faultnet.Proxy) net.Conn {
	t.Helper()
	conn, err := proxy.Dial(t.Context(), "tcp", "wherever:9")
	testkit.Must(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// ask sends n bytes, and returns the time until they have come back, or an error.
func ask(conn net.Conn, n int, patience time.Duration) (time.Duration, error) {
	began := time.Now()
	conn.SetDeadline(began.Add(patience))
	sent := bytes.Repeat([]byte("x"), n)
	failed := make(chan error, 1)
	go func() {
		_, err := conn.Write(sent)
		failed <- err
	}()
	got := make([]byte, n)
	_, err := io.ReadFull(conn, got)
	if wrote := <-failed; err == nil {
		err = wrote
	}
	if err == nil && !bytes.Equal(got, sent) {
		err = errors.New("other bytes came back")
	}
	return time.Since(began), err
}

func TestLinks(t *testing.T) {
	t.Parallel()
	const long = 20 * time.Second
	proxy := echo(t)
	conn := dial(t, proxy)
	if _, err := ask(conn, 1<<20, long); err != nil {
		t.Fatalf("a good link: %v", err)
	}
	proxy.Set(faultnet.Link{Delay: 100 * time.Millisecond})
	ask(conn, 1, long) // a read was in progress with the previous link
	if took, err := ask(conn, 1000, long); err != nil || took < 200*time.Millisecond {
		t.Errorf("100 ms away: %v, %v; want 200ms and nil", took, err)
	}
	proxy.Set(faultnet.Link{BytesPerSecond: 20_000})
	ask(conn, 1, long)
	if took, err := ask(conn, 20_000, long); err != nil || took < 900*time.Millisecond {
		t.Errorf("20 kB at 20 kB/s: %v, %v; want 1s and nil", took, err)
	}
	proxy.Set(faultnet.Link{Silent: true})
	late := dial(t, proxy)
	for _, c := range []net.Conn{conn, late} {
		if _, err := ask(c, 1, 50*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a silent link: %v, want to wait in vain", err)
		}
	}
	proxy.Set(faultnet.Link{})
	for _, c := range []net.Conn{conn, late} {
		if _, err := ask(c, 1, 50*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a connection that was silent: %v, want to wait in vain", err)
		}
	}
	conn = dial(t, proxy)
	if _, err := ask(conn, 1, long); err != nil {
		t.Errorf("a new connection: %v", err)
	}
	proxy.Set(faultnet.Link{Cut: true})
	if _, err := ask(conn, 1, long); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection that was cut: %v, want an error at once", err)
	}
	if refused, err := proxy.Dial(t.Context(), "tcp", ""); err == nil {
		if _, err := ask(refused, 1, long); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a new connection over a cut link: %v, want an error at once", err)
		}
		refused.Close()
	}
	proxy.Set(faultnet.Link{})
	if _, err := ask(dial(t, proxy), 1, long); err != nil {
		t.Errorf("a new connection: %v", err)
	}
}

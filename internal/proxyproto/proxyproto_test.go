package proxyproto

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// header builds a header from a command, a family and the bytes after the length.
func header(command, family byte, rest ...byte) []byte {
	return append([]byte(signature+string([]byte{command, family, byte(len(rest) >> 8), byte(len(rest))})), rest...)
}

var (
	ipv4 = []byte{192, 0, 2, 7, 198, 51, 100, 1, 0x1f, 0x90, 0x23, 0x84}
	ipv6 = append(append(netip.MustParseAddr("2001:db8::7").AsSlice(), make([]byte, 16)...), 0x1f, 0x90, 0x23, 0x84)
)

func TestHeader(t *testing.T) {
	for name, c := range map[string]struct {
		header []byte
		want   string // empty: an error that contains says
		says   string
	}{
		"IPv4":                {header(0x21, 0x11, ipv4...), "192.0.2.7:8080", ""},
		"IPv6":                {header(0x21, 0x21, ipv6...), "[2001:db8::7]:8080", ""},
		"further fields":      {header(0x21, 0x11, append(ipv4, 3, 0, 4, 1, 2, 3, 4)...), "192.0.2.7:8080", ""},
		"LOCAL":               {header(0x20, 0x00), "", "LOCAL"},
		"LOCAL with a family": {header(0x20, 0x11, ipv4...), "", "LOCAL"},
		"version 1":           {[]byte("PROXY TCP4 192.0.2.7 198.51.100.1 8080 9092\r\n"), "", "does not begin"},
		"TLS":                 {[]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 0123456789"), "", "does not begin"},
		"version 3":           {header(0x31, 0x11, ipv4...), "", "version 3"},
		"unknown command":     {header(0x22, 0x11, ipv4...), "", "command 2"},
		"UDP":                 {header(0x21, 0x12, ipv4...), "", "else than TCP"},
		"unspecified":         {header(0x21, 0x00), "", "else than TCP"},
		"UNIX":                {header(0x21, 0x31, make([]byte, 216)...), "", "else than TCP"},
		"too short":           {header(0x21, 0x11, ipv4[:11]...), "", "11 bytes of addresses"},
		"IPv4 as IPv6":        {header(0x21, 0x21, ipv4...), "", "12 bytes of addresses"},
		"too long":            {header(0x21, 0x11, make([]byte, maxRest+1)...), "", "at most"},
		"cut off":             {header(0x21, 0x11, ipv4...)[:20], "", "EOF"},
		"nothing":             {nil, "", "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			r := bytes.NewReader(append(c.header, "what follows"...))
			if c.says == "EOF" {
				r = bytes.NewReader(c.header)
			}
			got, err := readHeader(r)
			if c.want != "" {
				left, _ := io.ReadAll(r)
				if err != nil || got.String() != c.want || string(left) != "what follows" {
					t.Errorf("readHeader = %v, %v and leaves %q; want %s", got, err, left, c.want)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("readHeader = %v, %v; want an error that says %q", got, err, c.says)
			}
		})
	}
}

// FuzzHeader: every input gives an address or an error, and nothing after the header is read.
func FuzzHeader(f *testing.F) {
	f.Add(header(0x21, 0x11, ipv4...))
	f.Add(header(0x21, 0x21, ipv6...))
	f.Add(header(0x20, 0x00))
	f.Add(header(0x21, 0x11, make([]byte, maxRest)...))
	f.Add([]byte(signature))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		got, err := readHeader(r)
		if err == nil && !got.Addr().IsValid() {
			t.Error("no address and no error")
		}
		if read := len(data) - r.Len(); read > fixed+maxRest {
			t.Errorf("read %d bytes", read)
		}
		if err == nil || errors.Is(err, errLocal) {
			want := fixed + int(data[14])<<8 + int(data[15])
			if read := len(data) - r.Len(); read != want {
				t.Errorf("read %d bytes, want %d", read, want)
			}
		}
	})
}

// served is what a server sees of a connection.
type served struct {
	address, text string
}

// listen starts a listener that trusts networks. It returns its address and the connections that it
// accepts.
func listen(t *testing.T, trusted string, timeout time.Duration) (address string, conns <-chan served) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	l := Listen(ln, Config{Trusted: []netip.Prefix{netip.MustParsePrefix(trusted)}, Timeout: timeout, Diagnostics: slog.New(slog.DiscardHandler)})
	out := make(chan served)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					t.Errorf("Accept = %v", err)
				}
				return
			}
			go func() {
				defer conn.Close()
				text, _ := io.ReadAll(conn)
				out <- served{conn.RemoteAddr().String(), string(text)}
			}()
		}
	}()
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
		<-done
	})
	return ln.Addr().String(), out
}

func dial(t *testing.T, address string, say ...[]byte) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	testkit.Must(t, err)
	t.Cleanup(func() { conn.Close() })
	for _, b := range say {
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	return conn.(*net.TCPConn)
}

func TestTrusted(t *testing.T) {
	address, conns := listen(t, "127.0.0.0/8", time.Minute)
	silent := dial(t, address) // must not delay the others
	for _, c := range []struct {
		header []byte
		want   string
	}{
		{header(0x21, 0x11, ipv4...), "192.0.2.7:8080"},
		{header(0x21, 0x21, ipv6...), "[2001:db8::7]:8080"},
		{header(0x20, 0x00), ""}, // the proxy's own address
	} {
		conn := dial(t, address, c.header[:5], c.header[5:], []byte("hello"))
		conn.CloseWrite()
		want := served{c.want, "hello"}
		if c.want == "" {
			want.address = conn.LocalAddr().String()
		}
		if got := <-conns; got != want {
			t.Errorf("served %+v, want %+v", got, want)
		}
	}
	if _, err := silent.Write(header(0x21, 0x11, ipv4...)); err != nil {
		t.Fatal(err)
	}
	silent.CloseWrite()
	if got := (<-conns); got.address != "192.0.2.7:8080" {
		t.Errorf("served %+v", got)
	}
}

func TestTrustedWithoutHeader(t *testing.T) {
	address, conns := listen(t, "127.0.0.1/32", 50*time.Millisecond)
	for name, say := range map[string]string{"silent": "", "garbage": "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "half a header": signature[:7]} {
		conn := dial(t, address, []byte(say))
		conn.SetReadDeadline(time.Now().Add(30 * time.Second))
		if n, err := conn.Read(make([]byte, 1)); n > 0 || errors.Is(err, net.ErrClosed) || isTimeout(err) {
			t.Errorf("%s: read %d bytes, %v; want a closed connection", name, n, err)
		}
	}
	select {
	case got := <-conns:
		t.Errorf("served %+v", got)
	default:
	}
}

func isTimeout(err error) bool {
	e := net.Error(nil)
	return errors.As(err, &e) && e.Timeout()
}

// TestElsewhere: only trusted proxies can set the address of a connection.
func TestElsewhere(t *testing.T) {
	address, conns := listen(t, "192.0.2.0/24", time.Minute)
	forged := string(header(0x21, 0x11, ipv4...))
	conn := dial(t, address, []byte(forged))
	conn.CloseWrite()
	if got, want := (<-conns), (served{conn.LocalAddr().String(), forged}); got != want {
		t.Errorf("served %+v, want %+v", got, want)
	}
}

func TestNoProxies(t *testing.T) {
	ln := testkit.Listen(t)
	if got := Listen(ln, Config{}); got != ln {
		t.Errorf("Listen = %v, want the listener itself", got)
	}
}

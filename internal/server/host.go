package server

import (
	"net"
	"net/netip"
	"net/url"
	"path"
	"strings"
	"sync"
)

// hostNames are the names that a request may come for, in canonical form.
func hostNames(public *url.URL, more []string) map[string]bool {
	names := map[string]bool{}
	add := func(host string) { names[canonicalHost(host, public.Scheme)] = true }
	add(public.Host)
	for _, h := range more {
		add(h)
	}
	if isLoopback(public.Hostname()) {
		for _, h := range []string{"localhost", "127.0.0.1", "::1"} {
			add(net.JoinHostPort(h, public.Port()))
		}
	}
	return names
}

// canonicalHost writes host, of a URL or a Host header, in one form: lower case,
// with the port of scheme left out.
func canonicalHost(host, scheme string) string {
	host = strings.ToLower(host)
	name, port, err := net.SplitHostPort(host)
	if err != nil {
		return strings.TrimSuffix(host, ".")
	}
	name = strings.TrimSuffix(name, ".")
	if port == "" || port == "443" && scheme == "https" || port == "80" && scheme == "http" {
		if strings.Contains(name, ":") {
			return "[" + name + "]"
		}
		return name
	}
	return net.JoinHostPort(name, port)
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}

// cleanPath reports whether http.ServeMux would serve u as it is rather than
// redirect to a shorter form of it.
func cleanPath(u *url.URL) bool {
	p := u.EscapedPath()
	if p == "*" {
		return true
	}
	return p != "" && p[0] == '/' && (path.Clean(p) == p || path.Clean(p)+"/" == p)
}

// limitConns returns a listener that accepts from l while fewer than n of its
// connections are open.
func limitConns(l net.Listener, n int) net.Listener {
	return &limitedListener{Listener: l, slots: make(chan struct{}, n), closed: make(chan struct{})}
}

type limitedListener struct {
	net.Listener
	slots     chan struct{} // holds one for each open connection
	closeOnce sync.Once
	closed    chan struct{}
}

func (l *limitedListener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitedConn{Conn: conn, release: sync.OnceFunc(func() { <-l.slots })}, nil
}

func (l *limitedListener) Close() error {
	l.closeOnce.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type limitedConn struct {
	net.Conn
	release func()
}

func (c *limitedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

package server

import (
	"net"
	"net/url"
	"path"
	"strings"

	"github.com/diaspora-streams/diaspora/internal/trust"
)

// hostNames returns the names under which clients may reach the server, in canonical form.
func hostNames(public *url.URL, more []string) map[string]bool {
	names := map[string]bool{}
	add := func(host string) { names[canonicalHost(host, public.Scheme)] = true }
	add(public.Host)
	for _, h := range more {
		add(h)
	}
	if trust.IsLoopback(public.Hostname()) {
		for _, h := range []string{"localhost", "127.0.0.1", "::1"} {
			add(net.JoinHostPort(h, public.Port()))
		}
	}
	return names
}

// canonicalHost returns the host of a URL or a Host header in canonical form: lower case, without
// the default port of scheme.
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

// cleanPath reports whether http.ServeMux would serve u, instead of redirecting to its cleaned
// path.
func cleanPath(u *url.URL) bool {
	p := u.EscapedPath()
	return p != "" && p[0] == '/' && !strings.Contains(p, "//") && (path.Clean(p) == p || path.Clean(p)+"/" == p)
}

package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

func (v *visit) dialer() *net.Dialer { return &net.Dialer{Timeout: v.Timeout, Resolver: v.Resolver} }

// target returns the host and port to connect to: those of the ACL endpoint or, if there is one, of
// the proxy.
func (v *visit) target() (host, port string) {
	u := v.endpoint
	if v.proxy != nil {
		u = v.proxy
	}
	host, port = u.Hostname(), u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443", "socks5": "1080"}[u.Scheme]
	}
	return host, port
}

func checkDNS(ctx context.Context, v *visit) Finding {
	host, _ := v.target()
	return v.lookUp(ctx, host, "check the address that you logged in with, and the network or VPN")
}

func (v *visit) lookUp(ctx context.Context, host, next string) Finding {
	if _, err := netip.ParseAddr(host); err == nil {
		return ok("%s is an address, and needs no look-up", host)
	}
	began := time.Now()
	addrs, err := v.Resolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return failure(next, "%s", dnsWords(host, err))
	}
	f := ok("%s is %s", host, someOf(addrs))
	f.Legs = []Leg{{"DNS", ms(time.Since(began))}}
	return f
}

func dnsWords(host string, err error) string {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return "there is no host " + host
	case errors.As(err, &dns) && dns.IsTimeout, errors.Is(err, context.DeadlineExceeded):
		return "the name server gives no answer for " + host
	}
	return fmt.Sprintf("look up %s: %v", host, err)
}

// someOf lists the first few elements, and the number of the others.
func someOf[T any](all []T) string {
	const most = 3
	var parts []string
	for _, a := range all[:min(len(all), most)] {
		parts = append(parts, fmt.Sprint(a))
	}
	text := strings.Join(parts, ", ")
	if len(all) > most {
		text += fmt.Sprintf(" and %d more", len(all)-most)
	}
	return text
}

func checkTCP(ctx context.Context, v *visit) Finding {
	host, port := v.target()
	address := net.JoinHostPort(host, port)
	began := time.Now()
	conn, err := v.dialer().DialContext(ctx, "tcp", address)
	if err != nil {
		return failure(networkAdvice(err, "the ACL endpoint"), "%s: %s", address, describeNetworkError(err))
	}
	conn.Close()
	f := ok("%s takes connections", address)
	f.Legs = []Leg{{"TCP", ms(time.Since(began))}}
	return f
}

// checkTLS performs a TLS handshake with the ACL endpoint, through the proxy if there is one.
func checkTLS(ctx context.Context, v *visit) Finding {
	host := v.endpoint.Hostname()
	if v.endpoint.Scheme != "https" {
		if trust.IsLoopback(host) {
			return ok("none, on this machine")
		}
		return failure("use the https address of the fabric", "%s is plain http, where anybody on the way can take tokens", v.endpoint)
	}
	var began time.Time
	var took time.Duration
	var state *tls.ConnectionState
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		TLSHandshakeStart: func() { began = time.Now() },
		TLSHandshakeDone: func(s tls.ConnectionState, err error) {
			if took = time.Since(began); err == nil {
				state = &s
			}
		},
	})
	// The answer is checked by the next check. The trace is complete when RoundTrip returns.
	if _, _, err := v.get(traced, v.endpoint.String()+"/healthz", v.roots()); err != nil && state == nil {
		return failure(networkAdvice(err, "the ACL endpoint"), "%s: %s", v.endpoint.Host, describeNetworkError(err))
	}
	leaf := state.PeerCertificates[0]
	f := v.certificate(v.endpoint.Host, leaf, ok("%s, certified by %s", tls.VersionName(state.Version), trust.Issuer(leaf)))
	f.Legs = []Leg{{"TLS", ms(took)}}
	return f
}

const certificateWarns = 14 * 24 * time.Hour

// certificate adds to f how long a certificate of the server at address is still valid.
func (v *visit) certificate(address string, leaf *x509.Certificate, f Finding) Finding {
	left := leaf.NotAfter.Sub(v.Now())
	if left < certificateWarns {
		return warning("tell the operator to renew it", "the certificate of %s ends in %s", address, span(max(0, left)))
	}
	f.Seen += ", good for " + span(left)
	return f
}

// roots returns the CA certificates that the library trusts. The check "configuration" reports those
// that cannot be read.
func (v *visit) roots() *x509.CertPool {
	var fabric []byte
	if d := v.discovery(); d != nil {
		fabric = []byte(d.CA)
	}
	pool, _ := trust.Roots(fabric, v.cfg.CA, v.cfg.CAFile)
	return pool
}

// describeNetworkError describes why a connection failed.
func describeNetworkError(err error) string {
	var dns *net.DNSError
	if reason, _ := trust.ExplainTLS(err); reason != "" {
		return reason
	} else if late := net.Error(nil); errors.As(err, &dns) {
		return dnsWords(dns.Name, err)
	} else if errors.Is(err, context.DeadlineExceeded) || errors.As(err, &late) && late.Timeout() {
		return "no answer"
	}
	if isRefused(err) {
		return "connection refused"
	}
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		return op.Err.Error()
	}
	return err.Error()
}

func networkAdvice(err error, what string) string {
	_, hint := trust.ExplainTLS(err)
	switch {
	case hint != "":
		return hint
	case describeNetworkError(err) == "no answer":
		return "a firewall may drop it: check the network or VPN, and ask which ports are open"
	case isRefused(err):
		return "the machine is there, but not " + what + ": is it running? On this machine: diaspora up"
	}
	return "check the network or VPN"
}

// checkEndpoint fetches the discovery document, as every client does first. It sends no token.
func checkEndpoint(ctx context.Context, v *visit) Finding {
	found, err := v.client.Discover(ctx)
	if err != nil {
		f := failed(err, "tell the operator")
		if errors.Is(err, diaspora.ErrInvalid) {
			f.Next = "open " + v.endpoint.String() + " in a browser: a login page of the network, or a proxy, may be in the way"
		}
		return f
	}
	return ok("Diaspora Streams, with %s and %s", count(len(found.Brokers), "broker"), found.Globus.Issuer).and(func() { v.live = &found })
}

// checkFreshness compares the fabric's discovery document as stored at login with the current one.
func checkFreshness(_ context.Context, v *visit) Finding {
	old := v.cfg.Discovery
	if old == nil {
		return ok("there is no profile, so the fabric is asked each time")
	}
	var differs []string
	for _, part := range []struct {
		name string
		same bool
	}{
		{"brokers", SameBrokers(old, v.live)},
		{"security", old.Security == v.live.Security},
		{"CA", strings.TrimSpace(old.CA) == strings.TrimSpace(v.live.CA)},
		{"Globus Auth", v.sameGlobus(old.Globus, v.live.Globus)},
		{"size of events", old.MaxEventBytes == v.live.MaxEventBytes},
	} {
		if !part.same {
			differs = append(differs, part.name)
		}
	}
	if len(differs) > 0 {
		return warning(v.loginAdvice()+", which asks the fabric again", "the fabric has changed since the login: %s", strings.Join(differs, ", "))
	}
	return ok("the fabric is as it was at the login")
}

// sameGlobus ignores the issuer if the user has set another one, because a login keeps that.
func (v *visit) sameGlobus(old, live diaspora.DiscoveryGlobus) bool {
	if v.Getenv("GLOBUS_SDK_ENVIRONMENT")+v.Getenv("GLOBUS_SDK_SERVICE_URL_AUTH") != "" {
		old.Issuer = live.Issuer
	}
	return old == live
}

// SameBrokers reports whether two discovery documents have the same brokers, in whatever order.
func SameBrokers(a, b *diaspora.Discovery) bool {
	return slices.Equal(sorted(a.Brokers), sorted(b.Brokers))
}

func sorted(list []string) []string { return slices.Sorted(slices.Values(list)) }

// checkHealth queries the health of the service. It also reads the service's clock from the answer.
func checkHealth(ctx context.Context, v *visit) Finding {
	began := time.Now()
	resp, body, err := v.get(ctx, v.endpoint.String()+"/healthz", v.roots())
	if err != nil {
		return failure("try again", "%s", describeNetworkError(err))
	}
	clock := v.compareClock("the fabric", resp.Header, time.Since(began))
	var health struct {
		Status string            `json:"status"`
		Checks map[string]string `json:"checks"`
	}
	err = json.Unmarshal(body, &health)
	var f Finding
	switch {
	case err != nil || health.Status == "":
		f = failure("tell the operator", "/healthz answers with status %d, and not as it should", resp.StatusCode)
	case resp.StatusCode != http.StatusOK || health.Status != "ok":
		advice := "wait, or tell the operator: topics cannot be claimed now"
		if health.Checks["ledger"] == "unavailable" {
			advice = "the Kafka behind the service does not answer: start it again, or tell the operator"
		}
		f = failure(advice, "the service is not well: %s", unwell(health.Checks))
	default:
		f = ok("the service is well")
	}
	return f.and(func() { v.clocks = append(v.clocks, clock) })
}

// unwell lists the parts of the service that are not ok.
func unwell(parts map[string]string) string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(parts)) {
		if parts[name] != "ok" {
			list = append(list, name+" "+parts[name])
		}
	}
	return orElse(strings.Join(list, ", "), "it does not say which part")
}

// checkVersions compares the versions of the program and the service.
func checkVersions(_ context.Context, v *visit) Finding {
	ours, theirs := release(v.Version), release(v.live.Version)
	if ours != "" && theirs != "" && ours != theirs {
		return warning("use the program's release "+theirs+", if something does not work", "the program is %s, the service %s", v.Version, v.live.Version)
	}
	return ok("the program is %s, the service %s", orElse(v.Version, "of no release"), orElse(v.live.Version, "of no release"))
}

// release returns the part of a version that must match: "1.2" of "v1.2.3". For a build between
// releases it returns "".
func release(version string) string {
	var major, minor int
	if n, _ := fmt.Sscanf(strings.TrimPrefix(version, "v"), "%d.%d.", &major, &minor); n < 2 {
		return ""
	}
	return fmt.Sprintf("%d.%d", major, minor)
}

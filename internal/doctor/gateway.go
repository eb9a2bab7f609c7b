package doctor

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

// maxGateways bounds the number of addresses that are tried.
const maxGateways = 16

// gateways returns the addresses to which clients connect first.
func (v *visit) gateways() []string {
	all := v.cfg.Brokers
	if d := v.discovery(); len(all) == 0 && d != nil {
		all = d.Brokers
	}
	return all[:min(len(all), maxGateways)]
}

// attempt is the result of trying one address.
type attempt struct {
	address string
	text    string // what was seen, on success
	err     error
	conn    *connection // nil if there is none
}

// all tries all addresses concurrently and returns the results in the same order.
func all(addresses []string, try func(address string) attempt) []attempt {
	attempts := make([]attempt, len(addresses))
	var tried sync.WaitGroup
	for i, address := range addresses {
		tried.Go(func() {
			attempts[i] = try(address)
			attempts[i].address = address
		})
	}
	tried.Wait()
	return attempts
}

// summarize combines attempts into one finding: a failure if all have failed, a warning if some have.
func summarize(attempts []attempt, words func(error) string, advice func(error) string) Finding {
	bad := slices.DeleteFunc(slices.Clone(attempts), func(o attempt) bool { return o.err == nil })
	if len(bad) == 0 {
		var texts []string
		for _, o := range attempts {
			texts = append(texts, o.text)
		}
		slices.Sort(texts)
		return ok("%s", someOf(slices.Compact(texts)))
	}
	text := bad[0].address + ": " + words(bad[0].err)
	if len(attempts) > 1 {
		text = fmt.Sprintf("%d of %d: %s", len(bad), len(attempts), text)
	}
	if len(bad) < len(attempts) {
		return warning(advice(bad[0].err), "%s", text)
	}
	return failure(advice(bad[0].err), "%s", text)
}

const noGateways = "only the fabric knows where its gateway is"

func checkGatewayDNS(ctx context.Context, v *visit) Finding {
	addresses := v.gateways()
	if len(addresses) == 0 {
		return notTried(noGateways)
	}
	attempts := all(addresses, func(address string) attempt {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return attempt{err: err}
		}
		f := v.lookUp(ctx, host, "")
		if f.Status == Failure {
			return attempt{err: errors.New(f.Seen)}
		}
		return attempt{text: f.Seen}
	})
	return summarize(attempts, error.Error, func(error) string { return "check the network or VPN; the address is the operator's" })
}

func checkGatewayTCP(ctx context.Context, v *visit) Finding {
	attempts := all(v.gateways(), func(address string) attempt {
		conn, err := v.connect(ctx, address, nil)
		if err != nil {
			return attempt{err: err}
		}
		conn.close()
		return attempt{text: address + " takes connections"}
	})
	f := summarize(attempts, describeNetworkError, v.gatewayAdvice)
	return f.and(func() {
		for _, o := range attempts {
			if o.err == nil {
				v.reachable = append(v.reachable, o.address)
			}
		}
	})
}

// gatewayAdvice returns what to do if no connection to a gateway is possible.
func (v *visit) gatewayAdvice(err error) string {
	if old := v.cfg.Discovery; len(v.cfg.Brokers) == 0 && old != nil && v.live != nil && !SameBrokers(old, v.live) {
		return "the fabric has other gateways than at the login: " + v.loginAdvice()
	}
	return networkAdvice(err, "the gateway")
}

// checkGatewayTLS decides whether TLS is used, in the same way as the library, and performs the
// handshake.
func checkGatewayTLS(ctx context.Context, v *visit) Finding {
	secure := &tls.Config{RootCAs: v.roots(), MinVersion: tls.VersionTLS12}
	if d := v.discovery(); d != nil && d.Security == "plaintext" || d == nil && v.cfg.CAFile == "" && v.onThisMachine() {
		if !v.onThisMachine() {
			return failure("tell the operator", "%s offers no TLS: tokens could be read on their way, and are not sent", strings.Join(v.gateways(), ","))
		}
		return ok("none, on this machine")
	}
	attempts := all(v.reachable, func(address string) attempt {
		conn, err := v.connect(ctx, address, secure)
		if err != nil {
			return attempt{err: err}
		}
		conn.close()
		return attempt{conn: conn, text: fmt.Sprintf("%s is certified by %s", address, trust.Issuer(conn.leaf))}
	})
	f := summarize(attempts, describeNetworkError, v.gatewayAdvice)
	if f.Status == OK {
		first := slices.MinFunc(attempts, func(a, b attempt) int { return a.conn.leaf.NotAfter.Compare(b.conn.leaf.NotAfter) })
		f = v.certificate(first.address, first.conn.leaf, f)
	}
	return f.and(func() { v.gateway = secure })
}

func (v *visit) onThisMachine() bool {
	return !slices.ContainsFunc(v.gateways(), func(address string) bool {
		host, _, _ := net.SplitHostPort(address)
		return !trust.IsLoopback(host)
	})
}

// checkSignIn signs in to the first gateway that can be reached.
func checkSignIn(ctx context.Context, v *visit) Finding {
	// Get the token again, because the fabric may have refused the previous one in the meantime.
	if err := v.hasToken(ctx); err != nil {
		return v.loginFailure(err)
	}
	share := v.Timeout / time.Duration(len(v.reachable)) // so that an unresponsive gateway leaves time for the next one
	var last error
	var where string
	for _, address := range v.reachable {
		conn, err := v.signedIn(ctx, address, share)
		if err != nil {
			if last, where = err, address; isRefusal(err) {
				break // the other gateways would refuse the login too
			}
			continue
		}
		f := sessionFinding(conn.session)
		f.Seen = fmt.Sprintf("%s lets us in (%s); %s", address, way(conn.legs), f.Seen)
		f.Legs = conn.legs
		return f.and(func() { v.first = conn })
	}
	return failure(v.kafkaAdvice(last), "%s: %s", where, describeKafkaError(last))
}

// signedIn connects and signs in within the given time, if the credentials may be sent to the
// address.
func (v *visit) signedIn(ctx context.Context, address string, most time.Duration) (*connection, error) {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	mechanism, message, err := v.credentials(ctx, address)
	if err != nil {
		return nil, err
	}
	conn, err := v.connect(ctx, address, v.gateway)
	if err != nil {
		return nil, err
	}
	if err := conn.signIn(ctx, mechanism, message); err != nil {
		conn.close()
		return nil, err
	}
	return conn, nil
}

// hasToken returns an error if there is no token to sign in with. An access key needs no token.
func (v *visit) hasToken(ctx context.Context) error {
	if v.usesKey() {
		return nil
	}
	_, err := v.cfg.TokenSource.Token(ctx)
	return err
}

// credentials returns the credentials to send to an address, or an error if they may not be sent
// there.
func (v *visit) credentials(ctx context.Context, address string) (mechanism string, message []byte, err error) {
	if key := v.cfg.Key; v.usesKey() {
		return "PLAIN", []byte("\x00" + key.ID + "\x00" + key.Secret.Reveal()), nil
	}
	token, err := trust.Token(ctx, v.cfg.TokenSource, address, v.cfg.Brokers)
	return "OAUTHBEARER", []byte("n,,\x01auth=Bearer " + token.AccessToken.Reveal() + "\x01\x01"), err
}

func isRefusal(err error) bool {
	return kafka.LoginRefused(err)
}

// describeKafkaError describes an error from the Kafka protocol.
func describeKafkaError(err error) string {
	if late := net.Error(nil); errors.As(err, &late) && late.Timeout() {
		return "no answer"
	}
	_, text := kafka.Explain(err)
	if kafka.NotAdmitted(err) {
		text, _, _ = strings.Cut(text, "; ") // the rest is the advice
	}
	return text
}

func (v *visit) kafkaAdvice(err error) string {
	if untrusted := (*trust.Error)(nil); errors.As(err, &untrusted) {
		return untrusted.Hint
	}
	condition, text := kafka.Explain(err)
	if _, advice, _ := strings.Cut(text, "; "); kafka.NotAdmitted(err) && advice != "" {
		return advice
	}
	switch condition {
	case kafka.Unauthenticated:
		if errors.Is(err, kerr.UnsupportedSaslMechanism) {
			return "is it the gateway's address, or a broker's own?"
		}
		return v.loginAdvice()
	case kafka.Permission:
		return "ask its owner to share it with you, or name a topic of yours with --topic"
	case kafka.NotFound:
		return "claim it: diaspora topic claim NAME"
	}
	return "try again; if it stays so, tell the operator"
}

// sessionFinding checks how long the gateway keeps a connection open until the client must
// authenticate again.
func sessionFinding(left time.Duration) Finding {
	switch {
	case left == 0:
		return warning("is it the gateway's address, or a broker's own?", "the login has no end, so a token that is revoked would not be noticed")
	case left < time.Minute:
		return warning("old Kafka clients are cut off each time; tell the operator", "the login lasts %s only", span(left))
	}
	return ok("clients sign in again by themselves, at the latest after %s", span(left))
}

// checkBrokers requests the list of brokers, and signs in to each of them.
func checkBrokers(ctx context.Context, v *visit) Finding {
	req := kmsg.NewPtrMetadataRequest()
	req.Version, req.Topics = 8, []kmsg.MetadataRequestTopic{} // no topics; nil would mean all
	resp, err := req.RequestWith(ctx, v.first)
	if err != nil {
		return failure(v.kafkaAdvice(err), "%s", describeKafkaError(err))
	}
	var addresses []string
	for _, b := range resp.Brokers {
		addresses = append(addresses, net.JoinHostPort(b.Host, strconv.Itoa(int(b.Port))))
	}
	slices.Sort(addresses)
	if len(addresses) == 0 {
		return failure("tell the operator", "the cluster names no broker")
	}
	if err := v.hasToken(ctx); err != nil {
		return v.loginFailure(err)
	}
	attempts := all(addresses[:min(len(addresses), maxGateways)], func(address string) attempt {
		conn, err := v.signedIn(ctx, address, v.Timeout)
		if err != nil {
			return attempt{err: err}
		}
		conn.close()
		return attempt{text: address}
	})
	f := summarize(attempts, brokerWords, func(err error) string {
		if untrusted := (*trust.Error)(nil); errors.As(err, &untrusted) {
			return untrusted.Hint
		}
		return "the cluster sends clients to this address, so it has to be reachable from here; tell the operator"
	})
	if f.Status != OK {
		f.Status = Failure // partitions on unreachable brokers cannot be used
		return f
	}
	f.Seen = count(len(addresses), "broker") + ", all let us in: " + f.Seen
	return f
}

func brokerWords(err error) string {
	if op := (*net.OpError)(nil); errors.As(err, &op) && op.Op == "dial" {
		return describeNetworkError(err)
	}
	return describeKafkaError(err)
}

package front

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/oauth"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/apache"
	"github.com/diaspora-streams/diaspora/internal/claims"
	"github.com/diaspora-streams/diaspora/internal/kafka"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

// Finding is the result of one check.
type Finding struct {
	Check  string `json:"check"`
	Status Status `json:"status"`
	Found  string `json:"found"`
	Fix    string `json:"fix,omitempty"` // what to change; empty if the status is OK
}

// Status is the severity of a [Finding].
type Status string

const (
	OK   Status = "ok"   // nothing to change
	Warn Status = "warn" // the service works, but with a weaker guarantee
	Fail Status = "fail" // the service does not work, or is not secure
	Skip Status = "skip" // the check was not run, because it depends on another one that did not succeed
)

const (
	checkTimeout  = 15 * time.Second    // for one check
	clockLimit    = 30 * time.Second    // the clock skew that Kafka allows for the times in a token
	expiryWarning = 14 * 24 * time.Hour // warn if the certificate expires within this time
)

// checks is a run of [Check].
type checks struct {
	cfg      *Config
	findings []Finding
}

// Check tests a configuration against Globus Auth, the cluster and this host. The configuration
// must have passed [Config.Validate]. Check is read-only: it changes nothing in the cluster and
// creates no files.
func Check(ctx context.Context, cfg Config) []Finding {
	c := &checks{cfg: &cfg}
	c.globus(ctx)
	c.scope()
	c.publicURL()
	c.admission()
	c.certificate()
	c.ports()
	c.files()
	c.gatewaysUser()
	c.kafka(ctx)
	if cfg.Gateway != nil {
		c.gateway(ctx)
	}
	return c.findings
}

func (c *checks) add(check string, status Status, fix, found string, args ...any) {
	c.findings = append(c.findings, Finding{check, status, fmt.Sprintf(found, args...), fix})
}

// result adds a finding with status Fail and the text of err or, if err is nil, one with status OK.
// It reports whether err is nil.
func (c *checks) result(check string, err error, fix, found string, args ...any) bool {
	if err != nil {
		c.add(check, Fail, fix, "%v", err)
		return false
	}
	c.add(check, OK, "", found, args...)
	return true
}

// skip adds findings for checks that are not run, because they depend on the check that failed.
func (c *checks) skip(checks ...string) {
	for _, check := range checks {
		c.add(check, Skip, "", "not tried, because of the failure above")
	}
}

// skipAdvertised adds findings for the checks that need the addresses that the brokers announce.
func (c *checks) skipAdvertised(why string) {
	c.skipCertificate(why)
	c.add("advertised addresses", Skip, "", "not tried, %s", why)
}

func (c *checks) skipCertificate(why string) {
	if c.cfg.TLS != nil {
		c.add("gateway certificate", Skip, "", "not compared with the names that the brokers announce, %s", why)
	}
}

func (c *checks) globus(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	client, err := c.cfg.CheckCredentials(ctx)
	fix := "see globus-issuer, globus-client-id and globus-client-secret-file; the client must be a confidential one"
	if errors.Is(err, globus.ErrUnavailable) {
		fix = "check that globus-issuer is correct and that this host can connect to it"
	}
	if !c.result("Globus Auth", err, fix,
		"%s knows the service as %s", c.cfg.issuer(), c.cfg.Globus.ClientID) {
		c.skip("clock")
		return
	}
	if skew, ok := client.ClockSkew(); !ok {
		c.add("clock", Warn, "check the clock of this host by hand", "the response of Globus Auth has no time")
	} else if skew.Abs() > clockLimit {
		c.add("clock", Fail, "run an NTP client on this host", "differs by %v from the clock of Globus Auth", skew)
	} else {
		c.add("clock", OK, "", "within %v of the clock of Globus Auth", max(skew.Abs(), time.Second))
	}
}

// fabric returns the addresses and the scope that the ACL endpoint announces, in the form in which
// clients decide where they send tokens.
func (c *checks) fabric() trust.Fabric {
	f := trust.Fabric{URL: c.cfg.PublicURL, Issuer: c.cfg.issuer(), NamedIssuer: c.cfg.issuer(), Scope: c.cfg.Globus.Scope}
	if c.cfg.ACL != nil {
		f.Brokers = c.cfg.ACL.Bootstrap
	}
	return f
}

// scope checks whether clients will send their tokens to the hosts that the ACL endpoint announces.
func (c *checks) scope() {
	const fix = "let Globus verify a host name that contains public-url and all gateways, and use the scope that names it; see docs/operate.md"
	err, hosts := c.fabric().Check(), strings.Join(c.fabric().Hosts(), ", ")
	untrusted := (*trust.Error)(nil)
	switch {
	case !errors.As(err, &untrusted):
		c.result("scope", err, fix, "clients send tokens with %s to %s", c.cfg.Globus.Scope, hosts)
	case untrusted.Unconfirmed:
		c.add("scope", Warn, fix, "%s names no host, so users have to confirm these hosts at their first login: %s", c.cfg.Globus.Scope, hosts)
	default:
		c.add("scope", Fail, fix, "%s", untrusted.Reason)
	}
}

// publicURL checks that public-url has the port on which the ACL endpoint listens. Behind a proxy
// or a load balancer, the two may differ.
func (c *checks) publicURL() {
	if c.cfg.ACL == nil {
		return
	}
	u, err := url.Parse(c.cfg.PublicURL)
	if err != nil {
		return // [Config.Validate] has rejected it
	}
	port := cmp.Or(u.Port(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
	_, listens, _ := net.SplitHostPort(c.cfg.ACL.Listen)
	if port != listens {
		c.add("public-url", Warn, "use the same port for both, unless a proxy or a load balancer is in between",
			"the port of %s is %s, but the port of acl-listen is %s", c.cfg.PublicURL, port, listens)
	}
}

// admission says who may use the fabric, and warns if there is no operator who could block them.
func (c *checks) admission() {
	a := c.cfg.Admission
	if len(a.Domains)+len(a.Subjects) == 0 {
		c.add("admission", OK, "", "everybody with an account that Globus knows; allow-domains and allow-subjects restrict that")
	} else {
		c.add("admission", OK, "", "the operators and %s", strings.Join(slices.Concat(a.Domains, a.Subjects), ", "))
	}
	if len(a.Operators) == 0 {
		c.add("operators", Warn, `list at least one person's subject, which "diaspora whoami --subject" prints for them`, "nobody can block a person who misuses the fabric")
	}
}

// certificate checks the TLS certificate that clients will receive.
func (c *checks) certificate() {
	if c.cfg.TLS == nil {
		if c.cfg.InsecureAllowPlaintext {
			c.add("TLS", Warn, "make sure that a proxy in front terminates TLS", "insecure-allow-plaintext is set, so tokens arrive unencrypted")
		}
		return
	}
	cert, err := c.cfg.TLS.GetCertificate(nil)
	if err != nil {
		c.add("TLS", Fail, "check tls-cert-file and tls-key-file", "%v", err)
		return
	}
	if info, err := os.Stat(c.cfg.TLSKeyFile); err == nil && info.Mode().Perm()&0o007 != 0 {
		c.add("tls-key-file", Warn, "chmod 600 "+c.cfg.TLSKeyFile+", and make the service's user its owner", "every user of this host has access to %s", c.cfg.TLSKeyFile)
	}
	if left := time.Until(cert.Leaf.NotAfter); left < expiryWarning {
		status := Warn
		if left < 0 {
			status = Fail
		}
		c.add("certificate", status, "renew it; the new file is used without a restart", "it expires on %s", cert.Leaf.NotAfter.Format(time.DateOnly))
		return
	}
	if u, err := url.Parse(c.cfg.PublicURL); err == nil && c.cfg.ACL != nil { // a gateway does not know its public name
		if err := cert.Leaf.VerifyHostname(u.Hostname()); err != nil {
			c.add("certificate", Fail, "use a certificate with all the names that clients use", "%v", err)
			return
		}
		if why, hint := c.untrusted(cert); why != "" {
			c.add("certificate", Warn, hint, "%s", why)
			return
		}
	}
	later := ""
	if c.cfg.Gateway != nil {
		later = `; see "gateway certificate" for the names that the brokers announce`
	}
	c.add("certificate", OK, "", "%s, valid until %s%s", namesOf(cert.Leaf), cert.Leaf.NotAfter.Format(time.DateOnly), later)
}

func namesOf(leaf *x509.Certificate) string {
	names := slices.Clone(leaf.DNSNames)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	return cmp.Or(strings.Join(names, ", "), "no host name")
}

// gatewayCertificate checks that a certificate contains the public name of this host's gateway. all
// are the addresses of all gateways, as the brokers announce them. here reports whether a host is
// this one. The configuration does not say which of the addresses is this host's, and behind a NAT here
// cannot find out either.
func gatewayCertificate(leaf *x509.Certificate, all []string, listen string, here func(host string) bool) Finding {
	const check = "gateway certificate"
	covers := func(address string) bool { return leaf.VerifyHostname(hostOf(address)) == nil }
	var good []string
	for _, address := range all {
		if covers(address) {
			good = append(good, address)
		}
	}
	if len(good) == len(all) {
		return Finding{check, OK, "it contains " + strings.Join(all, ", "), ""}
	}
	own := all
	if len(all) > 1 {
		own = slices.DeleteFunc(slices.Clone(all), func(address string) bool { return !here(hostOf(address)) })
		_, port, _ := net.SplitHostPort(listen)
		other := func(address string) bool { return !strings.HasSuffix(address, ":"+port) }
		if samePort := slices.DeleteFunc(slices.Clone(own), other); len(samePort) > 0 {
			own = samePort
		}
	}
	if len(own) == 0 && len(good) > 0 {
		return Finding{check, OK, fmt.Sprintf("it contains %s; make sure that this is the address of this host's gateway", strings.Join(good, ", ")), ""}
	}
	if len(own) == 0 {
		own = all
	}
	for _, address := range own {
		if !covers(address) {
			return Finding{check, Fail, fmt.Sprintf("the broker sends clients to %s, but the certificate is for %s", address, namesOf(leaf)),
				"get a certificate for this name, because clients refuse this one; or, if the name is wrong, correct the GATEWAY address in the broker's advertised.listeners"}
		}
	}
	return Finding{check, OK, "it contains " + strings.Join(own, ", "), ""}
}

func hostOf(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return host
}

// isThisHost reports whether a name or an IP address leads to this host.
func isThisHost(ctx context.Context, host string) bool {
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return false
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, ip := range found {
		ip = ip.Unmap()
		if ip.IsLoopback() || slices.ContainsFunc(own, func(a net.Addr) bool {
			prefix, err := netip.ParsePrefix(a.String())
			return err == nil && prefix.Addr().Unmap() == ip
		}) {
			return true
		}
	}
	return false
}

// untrusted says why clients that trust the same authorities as this machine, and those in
// acl-ca-file, do not trust the certificate, and what to do. It returns "" if they trust it.
func (c *checks) untrusted(cert *tls.Certificate) (why, hint string) {
	roots, err := trust.Roots([]byte(c.cfg.ACL.CA), nil, "")
	if err != nil {
		return err.Error(), "check acl-ca-file"
	}
	rest := x509.NewCertPool()
	for _, der := range cert.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			rest.AddCert(c)
		}
	}
	if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: rest}); err != nil {
		return fmt.Sprintf("clients do not trust it: %v", err), "set acl-ca-file to the certificate of the authority that signed it, so that clients trust it; the certificate file must contain the intermediate certificates"
	}
	return "", ""
}

// ports warns of broker ports on which any user of this host can listen while the broker is down.
func (c *checks) ports() {
	for _, p := range c.cfg.openPorts(unprivilegedPort()) {
		c.add(p.setting, Warn, p.fix, "%s", p)
	}
}

// files checks that the user who runs the check may read and create the service's own files.
func (c *checks) files() {
	c.file("token-key-file", c.cfg.TokenKeyFile, false)
	if c.cfg.StateDir != "" {
		c.file("state-dir", filepath.Join(c.cfg.StateDir, "ledger"), false)
	}
	if g := c.cfg.Gateway; g != nil {
		c.file("gateway-keys-file", g.KeysFile, true)
		c.file("gateway-jwks-file", g.JWKSFile, true)
		c.kafkaCanRead(g.JWKSFile)
	}
}

// kafkaCanRead warns if only its owner can read the file with the public keys, or the folder of the
// file. The broker, which usually runs as another user, would accept no client at its next start. A
// file that its group can read is accepted, because the broker's user may be a member.
func (c *checks) kafkaCanRead(name string) {
	if runtime.GOOS == "windows" {
		return // its modes say nothing about other users
	}
	const setting, unless = "gateway-jwks-file", ", unless Kafka runs as the same user"
	folder := filepath.Dir(name)
	if info, err := os.Stat(folder); err == nil && info.Mode().Perm()&0o011 == 0 {
		c.add(setting, Warn, "chmod 755 "+folder+unless, "Kafka's user cannot open files in %s (mode %04o), and must read %s", folder, info.Mode().Perm(), filepath.Base(name))
	}
	if info, err := os.Stat(name); err == nil && info.Mode().Perm()&0o044 == 0 {
		c.add(setting, Warn, "chmod 644 "+name+unless, "Kafka's user cannot read %s (mode %04o)", name, info.Mode().Perm())
	}
}

// gatewaysUser warns if the ACL endpoint grants no user the rights that gateways need.
func (c *checks) gatewaysUser() {
	if k := c.cfg.Kafka; c.cfg.Gateway == nil && k.Admin.Name != "" && k.Gateway.Name == "" {
		c.add("gateway-kafka-username", Warn, "set it to the Kafka user of the gateways, and restart the ACL endpoints",
			"it is missing, so this ACL endpoint lets no gateway read the ledger, and gateways wait for that")
	}
}

// file checks one file that the service creates if it does not exist. The service also creates the
// folders of such a file, unless replaced is set. A file with replaced is one that the service
// replaces from time to time: its folder must exist, and must always be writable.
func (c *checks) file(setting, name string, replaced bool) {
	const fix = "run the check as the service's user, for example: sudo -u diaspora diaspora serve --check; if it still fails, make that user the owner of the folder"
	f, err := os.Open(name)
	if err == nil {
		f.Close()
	}
	switch missing := errors.Is(err, fs.ErrNotExist); {
	case err != nil && !missing:
		c.add(setting, Fail, fix, "%v", err)
	case missing || replaced:
		dir := filepath.Dir(name)
		if !replaced {
			dir = existingParent(dir)
		}
		if err := CheckWritable(dir); errors.Is(err, fs.ErrNotExist) {
			c.add(setting, Fail, "create the folder, and make the service's user its owner", "the folder %s does not exist", dir)
		} else if err != nil {
			c.add(setting, Fail, fix, "cannot write %s in %s: %v", filepath.Base(name), dir, err)
		}
	}
}

// existingParent returns dir or, if it does not exist, its nearest parent that does.
func existingParent(dir string) string {
	for {
		_, err := os.Stat(dir)
		up := filepath.Dir(dir)
		if !errors.Is(err, fs.ErrNotExist) || up == dir {
			return dir
		}
		dir = up
	}
}

// kafka checks the cluster, as the user as whom the service signs in to it.
func (c *checks) kafka(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*checkTimeout)
	defer cancel()
	if k := c.cfg.Kafka; k.InsecureAllowPlaintext && c.cfg.user().Name != "" && k.TLS == nil {
		c.add("Kafka TLS", Warn, "set kafka-ca-file", "kafka-insecure-allow-plaintext is set, so the password of %s is sent unencrypted", c.cfg.user().Name)
	}
	client, err := kgo.NewClient(c.cfg.kafkaOpts()...)
	if err != nil {
		c.add("Kafka", Fail, "check kafka-brokers", "%v", err)
		return
	}
	defer client.Close()
	err = client.Ping(ctx)
	settings := "kafka-username and kafka-password-file"
	if c.cfg.ACL == nil {
		settings = "gateway-kafka-username and gateway-kafka-password-file"
	}
	if c.cfg.Kafka.TLS != nil {
		settings += ", and kafka-ca-file, which turns on TLS"
	}
	if !c.result("Kafka", explainedError(mechanismError(err, "PLAIN")), fixOf(err, "check kafka-brokers, "+settings+"; kafka-brokers must name the INTERNAL listener, not the gateway's"),
		"%s accepts %s", strings.Join(c.cfg.Kafka.Brokers, ","), c.userName()) {
		if c.cfg.ACL != nil {
			c.skip("authorizer", "brokers")
		}
		c.skip("ledger")
		return
	}
	if c.cfg.ACL == nil {
		c.ledgerAccess(ctx, client)
		return
	}
	admin := kadm.NewClient(client)
	c.authorizer(ctx, admin)
	if !c.brokers(ctx, admin) {
		c.skip("ledger")
		return
	}
	c.ledger(ctx, admin)
}

// userName returns the principal as whom the service is signed in to the brokers, for messages.
func (c *checks) userName() string {
	return cmp.Or(c.cfg.user().principal(), "anonymous connections")
}

// superUserFix is the advice if the user of kafka-username is not a super user. Making the
// gateways' user one would let everybody who breaks into a gateway change who owns what.
func (c *checks) superUserFix() string {
	return "set kafka-username to the super user, not to the gateways' user; or add to super.users: " + c.userName()
}

// ledgerAccess checks what the user of a gateway without an ACL endpoint may do with the two topics
// that it needs. The broker returns the authorized operations with the topics' metadata (KIP-430).
func (c *checks) ledgerAccess(ctx context.Context, client *kgo.Client) {
	const fix = "start an ACL endpoint with the same gateway-kafka-username; it creates both topics and grants gateways access"
	may, err := operations(ctx, client, claims.LedgerTopic, claims.KeyUsesTopic)
	ledger, uses := may[claims.LedgerTopic], may[claims.KeyUsesTopic]
	switch {
	case err != nil:
		c.add("ledger", Fail, "", "%v", explainedError(err))
	case !slices.Contains(ledger, kmsg.ACLOperationRead):
		c.add("ledger", Fail, fix, "%s may not read %s, or the topic does not exist yet", c.userName(), claims.LedgerTopic)
	case !slices.Contains(uses, kmsg.ACLOperationWrite):
		c.add("ledger", Warn, fix, "%s may not write to %s, so the last use of access keys is not recorded", c.userName(), claims.KeyUsesTopic)
	case slices.Contains(ledger, kmsg.ACLOperationWrite):
		c.add("ledger", Warn, "remove it from super.users, and delete its ACLs; gateways need only the ACLs that ACL endpoints create",
			"%s may change %s, so an attacker who takes over a gateway's host could own every topic", c.userName(), claims.LedgerTopic)
	default:
		c.add("ledger", OK, "", "%s may read %s and may not change it", c.userName(), claims.LedgerTopic)
	}
}

// operations returns the operations on each topic for which a client is authorized. It omits topics
// that do not exist or that the client may not describe.
func operations(ctx context.Context, client *kgo.Client, topics ...string) (map[string][]kmsg.ACLOperation, error) {
	req := kmsg.NewPtrMetadataRequest()
	req.IncludeTopicAuthorizedOperations = true
	for _, name := range topics {
		topic := kmsg.NewMetadataRequestTopic()
		topic.Topic = &name
		req.Topics = append(req.Topics, topic)
	}
	resp, err := req.RequestWith(ctx, client)
	if err != nil {
		return nil, err
	}
	may := map[string][]kmsg.ACLOperation{}
	for _, topic := range resp.Topics {
		if topic.ErrorCode == 0 && topic.Topic != nil {
			may[*topic.Topic] = kadm.DecodeACLOperations(topic.AuthorizedOperations)
		}
	}
	return may, nil
}

// authorizer checks that the brokers enforce ACLs and that the service may manage them.
func (c *checks) authorizer(ctx context.Context, admin *kadm.Client) {
	builder := kadm.NewACLs().AnyResource().Allow().AllowHosts().Deny().DenyHosts().Operations(kadm.OpAny).ResourcePatternType(kadm.ACLPatternAny)
	results, err := admin.DescribeACLs(ctx, builder)
	for _, r := range results {
		err = cmp.Or(err, r.Err) // a user that may not look gets an answer, with an error in it
	}
	fix := c.superUserFix()
	if errors.Is(err, kerr.SecurityDisabled) {
		fix = "set authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer on all nodes"
	}
	c.result("authorizer", explainedError(err), fix, "the broker enforces ACLs, and %s may change them", c.userName())
}

// brokers checks the settings of each broker on which the guarantees of the service depend. It
// returns false if the settings could not be read.
func (c *checks) brokers(ctx context.Context, admin *kadm.Client) (ok bool) {
	found, err := admin.ListBrokers(ctx)
	if err != nil {
		c.add("brokers", Fail, "", "%v", explainedError(err))
		return false
	}
	configs, err := admin.DescribeBrokerConfigs(ctx, found.NodeIDs()...)
	if err != nil {
		c.add("broker settings", Fail, c.superUserFix(), "%v", explainedError(err))
		return false
	}
	c.add("brokers", OK, "", "%d", len(found))
	if len(found) < 3 {
		c.add("replication", Warn, "with at least three brokers, acknowledged events survive the loss of one", "each event is stored on one broker only")
	}
	for _, rule := range []struct {
		setting, bad string
		status       Status
		fix          string
	}{
		{"auto.create.topics.enable", "true", Fail, "set it to false, because topics are created by claims"},
		{"allow.everyone.if.no.acl.found", "true", Fail, "set it to false; otherwise everybody can read topics that nobody has claimed"},
		{"unclean.leader.election.enable", "true", Warn, "set it to false; otherwise acknowledged events can be lost"},
		{"min.insync.replicas", "1", Warn, "set it to 2, so that acknowledged events are on two brokers"},
	} {
		if rule.setting == "min.insync.replicas" && len(found) < 3 {
			continue
		}
		for _, config := range configs {
			i := slices.IndexFunc(config.Configs, func(kv kadm.Config) bool { return kv.Key == rule.setting })
			if i >= 0 && config.Configs[i].MaybeValue() == rule.bad {
				c.add("broker "+config.Name, rule.status, rule.fix, "%s is %s", rule.setting, rule.bad)
			}
		}
	}
	return true
}

// ledger checks the topic that stores the owners of topics.
func (c *checks) ledger(ctx context.Context, admin *kadm.Client) {
	const name = claims.LedgerTopic
	topics, err := admin.ListTopicsWithInternal(ctx, name)
	if err == nil {
		err = topics.Error()
	}
	switch {
	case errors.Is(err, kerr.UnknownTopicOrPartition):
		c.add("ledger", OK, "", "%s does not exist yet; the first start creates it", name)
	case err != nil:
		c.add("ledger", Fail, "", "%v", explainedError(err))
	case len(topics[name].Partitions) != 1:
		c.add("ledger", Fail, "another program created this topic; delete it before anything is claimed", "%s has %d partitions, and must have 1", name, len(topics[name].Partitions))
	default:
		c.add("ledger", OK, "", "%s has %s", name, replicas(len(topics[name].Partitions[0].Replicas)))
	}
}

func replicas(n int) string {
	if n == 1 {
		return "1 replica"
	}
	return fmt.Sprintf("%d replicas", n)
}

// testSubject is a subject that belongs to no account. The check signs in to the broker as this
// subject.
const testSubject = "00000000-0000-0000-0000-000000000000"

// gateway signs in to the broker as the gateway does for a client, and checks the addresses that
// the broker announces to clients. Without signing keys, it only checks that the broker's port is
// open.
func (c *checks) gateway(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	g := c.cfg.Gateway
	signing, err := apache.ReadKeys(g.keys(c.cfg.Diagnostics))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.brokerPort(ctx)
		return
	case err != nil:
		c.add("signing keys", Fail, "check gateway-keys-file and gateway-jwks-file", "%v", err)
		c.skip("gateway listener")
		c.skipAdvertised("because of the failure above")
		return
	}
	if since := signing.Overdue(); !since.IsZero() {
		c.add("signing keys", Warn, "start the gateway if it is not running; otherwise check its log, whether it can write both files, and whether their disk is full",
			"the current keys are still valid, but a rotation has been due since %s", since.Format(time.DateOnly))
	}
	broker, err := g.upstream(signing)
	if err != nil {
		c.add("gateway listener", Fail, "", "%v", err)
		c.skipAdvertised("because of the failure above")
		return
	}
	client, err := kgo.NewClient(
		kgo.SeedBrokers(g.Broker),
		kgo.Dialer(func(ctx context.Context, _, _ string) (net.Conn, error) { return broker.Dial(ctx) }),
		kgo.SASL(oauth.Oauth(func(context.Context) (oauth.Auth, error) {
			token, err := broker.Token(testSubject)
			return oauth.Auth{Token: token}, err
		})),
	)
	if err != nil {
		c.add("gateway listener", Fail, "check gateway-broker", "%v", err)
		c.skipAdvertised("because of the failure above")
		return
	}
	defer client.Close()
	err = client.Ping(ctx)
	fix := "compare the broker's expected.issuer, expected.audience and jwks.endpoint.url with gateway-issuer, gateway-audience and gateway-jwks-file, and list the last one in -Dorg.apache.kafka.sasl.oauthbearer.allowed.urls"
	if errors.Is(err, kerr.UnsupportedSaslMechanism) {
		fix = "set gateway-broker to the port of the GATEWAY listener, whose sasl.enabled.mechanisms contains OAUTHBEARER"
	}
	if !c.result("gateway listener", explainedError(mechanismError(err, "OAUTHBEARER")), fixOf(err, fix), "%s accepts the gateway's tokens", g.Broker) {
		c.skipAdvertised("because of the failure above")
		return
	}
	c.advertised(ctx, kadm.NewClient(client))
}

// brokerPort checks that the broker's listener accepts connections. It is used while there are no
// signing keys with which the check could sign in.
func (c *checks) brokerPort(ctx context.Context) {
	c.add("signing keys", Warn, "start the gateway, which creates them, and check again", "%s does not exist yet, so clients cannot sign in to the broker", c.cfg.Gateway.KeysFile)
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", c.cfg.Gateway.Broker)
	if err == nil {
		conn.Close()
	}
	c.result("gateway listener", err, fixOf(err, "check gateway-broker"), "%s accepts connections; once there are keys, the check also tests whether it accepts the gateway's tokens", c.cfg.Gateway.Broker)
	c.skipAdvertised("because there are no signing keys yet")
}

// advertised checks that the addresses that the brokers announce lead to the gateways, that clients
// will send tokens there, and that acl-bootstrap names these addresses.
func (c *checks) advertised(ctx context.Context, admin *kadm.Client) {
	brokers, err := admin.ListBrokers(ctx)
	if err != nil {
		c.add("advertised addresses", Fail, "", "%v", explainedError(err))
		c.skipCertificate("because of the failure above")
		return
	}
	var all []string
	for _, b := range brokers {
		address := net.JoinHostPort(b.Host, fmt.Sprint(b.Port))
		all = append(all, address)
		if address == c.cfg.Gateway.Broker {
			c.add("advertised addresses", Fail, "set the GATEWAY address in advertised.listeners to the gateway's public address", "the broker sends clients to its own listener, %s", address)
			c.skipCertificate("because of the failure above")
			return
		}
	}
	slices.Sort(all)
	if c.cfg.TLS != nil {
		if cert, err := c.cfg.TLS.GetCertificate(nil); err == nil { // otherwise certificate has reported it
			c.findings = append(c.findings, gatewayCertificate(cert.Leaf, all, c.cfg.Gateway.Listen, func(host string) bool { return isThisHost(ctx, host) }))
		}
	}
	if _, listens, _ := net.SplitHostPort(c.cfg.Gateway.Listen); !slices.ContainsFunc(all, func(address string) bool {
		_, port, _ := net.SplitHostPort(address)
		return port == listens
	}) {
		c.add("gateway-listen", Warn, "use the same port for both, unless a load balancer is in between",
			"the gateway listens on port %s, but the brokers send clients to %s", listens, strings.Join(all, ", "))
	}
	told := c.fabric()
	told.Confirmed = true // users confirm the hosts at their first login; scope warns of that
	for _, address := range all {
		if err := told.CheckHost(address, []string{told.Scope}); err != nil && c.cfg.ACL != nil {
			c.add("advertised addresses", Fail, "list every gateway in acl-bootstrap, or use a scope that names a host which contains all of them; see docs/operate.md",
				"the brokers send clients to %s, but clients do not send tokens there", address)
			return
		}
	}
	if c.cfg.ACL != nil {
		for _, b := range c.cfg.ACL.Bootstrap {
			if !slices.Contains(all, b) {
				c.add("advertised addresses", Warn, "list the addresses that the brokers advertise, unless this is a load balancer's", "acl-bootstrap contains %s, but the brokers advertise %s", b, strings.Join(all, ", "))
				return
			}
		}
	}
	c.add("advertised addresses", OK, "", "clients are sent to %s", strings.Join(all, ", "))
}

// fixOf returns the fix for an error from the cluster: otherwise, unless no connection could be
// established. The settings that otherwise names cannot be the cause then, because they have not
// been used yet.
func fixOf(err error, otherwise string) string {
	if dns := (*net.DNSError)(nil); errors.As(err, &dns) {
		return fmt.Sprintf("check the name %s in the settings, and in the brokers' advertised.listeners; if it is right, check this host's DNS", dns.Name)
	}
	if network := (*net.OpError)(nil); errors.As(err, &network) && network.Op == "dial" || errors.Is(err, context.DeadlineExceeded) {
		return "cannot connect: check that Kafka is running and that this is its port"
	}
	return otherwise
}

// mechanismError replaces the error for a SASL mechanism that the listener does not support. The
// text of [kafka.Explain] for that error is meant for users who log in with a token, and would
// mislead an operator.
func mechanismError(err error, mechanism string) error {
	if errors.Is(err, kerr.UnsupportedSaslMechanism) {
		return fmt.Errorf("this listener does not support SASL/%s", mechanism)
	}
	return err
}

// explainedError returns an error whose text describes an error of the cluster in plain words.
func explainedError(err error) error {
	if err == nil {
		return nil
	}
	_, reason := kafka.Explain(err)
	return errors.New(reason)
}

package trust

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/terminal"
)

// MaxCABytes is the largest size of a set of certificates to trust.
const MaxCABytes = 1 << 20

// Roots returns the certificates to trust: those of the system, those that the fabric names, and
// those that the user has named, directly and in a file. It returns nil for the system's only.
func Roots(fabric, own []byte, file string) (*x509.CertPool, error) {
	var named []byte
	if file != "" {
		var err error
		if named, err = disk.ReadBounded(file, MaxCABytes); err != nil {
			return nil, fmt.Errorf("read CA file: %w", err)
		}
	}
	var pool *x509.CertPool
	for _, s := range []struct {
		name string
		pem  []byte
	}{{"the fabric's CA", fabric}, {"CA", own}, {"CA file " + file, named}} {
		if len(s.pem) == 0 {
			continue
		}
		if pool == nil {
			var err error
			if pool, err = x509.SystemCertPool(); err != nil {
				pool = x509.NewCertPool()
			}
		}
		if !pool.AppendCertsFromPEM(s.pem) {
			return nil, fmt.Errorf("%s holds no PEM certificate", s.name)
		}
	}
	return pool, nil
}

// ExplainTLS describes an error of TLS that a person has to fix, and says what to do. For any other
// error it returns "".
func ExplainTLS(err error) (reason, hint string) {
	var unknown x509.UnknownAuthorityError
	var hostname x509.HostnameError
	var invalid x509.CertificateInvalidError
	var record tls.RecordHeaderError
	var verification *tls.CertificateVerificationError
	switch {
	case errors.As(err, &unknown) && unknown.Cert != nil:
		return fmt.Sprintf("the certificate is signed by %s, which this machine does not trust", Issuer(unknown.Cert)),
			"name the CA's file in DIASPORA_CA_FILE, if you know whose it is; a proxy that intercepts connections looks the same"
	case errors.As(err, &hostname):
		return fmt.Sprintf("the certificate is for %s, not for %s", namesOf(hostname.Certificate), hostname.Host),
			"use the name that the certificate has, or tell the operator"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && invalid.Cert != nil:
		from, to := invalid.Cert.NotBefore.Local(), invalid.Cert.NotAfter.Local()
		return fmt.Sprintf("the certificate is valid only from %s to %s", from.Format(time.RFC3339), to.Format(time.RFC3339)),
			"compare this machine's clock; if it is right, tell the operator to renew the certificate"
	case errors.As(err, &record):
		return "the other side does not speak TLS", "check the port, and whether it is https; a login page of the network may be in the way"
	case errors.As(err, &invalid), errors.As(err, &verification):
		return "the certificate is not valid: " + err.Error(), "tell the operator"
	}
	return "", ""
}

// Issuer returns the name of the authority that has signed a certificate.
func Issuer(c *x509.Certificate) string {
	name := c.Issuer.CommonName
	if len(c.Issuer.Organization) > 0 {
		name = c.Issuer.Organization[0]
	}
	return cmp.Or(clip(terminal.OneLine(name)), "an authority without a name")
}

// namesOf lists the first names in a certificate.
func namesOf(c *x509.Certificate) string {
	names := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	if n := len(names); n > 3 {
		names = append(names[:3], fmt.Sprintf("and %d more", n-3))
	}
	return cmp.Or(clip(terminal.OneLine(strings.Join(names, ", "))), "nobody")
}

package front

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// ServerTLS returns the TLS configuration of a server with the certificate and private key in
// these PEM files. The files are read again when the modification time of certFile changes, so
// that a renewed certificate is used without a restart. If the new files cannot be used, the
// server keeps the old certificate and tries again at the next connection.
func ServerTLS(certFile, keyFile string) (*tls.Config, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile}
	if _, err := c.get(nil); err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.get}, nil
}

// certificate is a certificate that is read from files again when they change.
type certificate struct {
	certFile, keyFile string

	mu      sync.Mutex // guards the fields below
	changed time.Time  // modification time of certFile when it was read
	current *tls.Certificate
}

// get returns the certificate. It fails only if no certificate has been read yet.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	info, err := os.Stat(c.certFile)
	if err == nil && c.current != nil && info.ModTime().Equal(c.changed) {
		return c.current, nil
	}
	if err == nil {
		var fresh tls.Certificate
		if fresh, err = tls.LoadX509KeyPair(c.certFile, c.keyFile); err == nil {
			c.current, c.changed = &fresh, info.ModTime()
		}
	}
	if c.current != nil {
		return c.current, nil
	}
	return nil, fmt.Errorf("certificate: %w", err)
}

// ReadCA reads a file of PEM certificates. It returns them as a pool and as the text of the file.
func ReadCA(name string) (*x509.CertPool, string, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, "", err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, "", errors.New(name + " holds no PEM certificates")
	}
	return pool, string(data), nil
}

// firstCertificate returns the first certificate in a PEM file: that of the server.
func firstCertificate(data []byte) (*x509.Certificate, error) {
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			return x509.ParseCertificate(block.Bytes)
		}
	}
	return nil, errors.New("it holds no certificate")
}

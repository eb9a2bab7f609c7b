package front

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// ServerTLS returns the configuration of a server with the certificate in these
// PEM files. They are read again when the certificate's file has changed, so
// that a renewed one is used without a restart; as long as the new ones cannot be
// used, the old one is.
func ServerTLS(certFile, keyFile string) (*tls.Config, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile}
	if _, err := c.get(nil); err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.get}, nil
}

// certificate is a certificate in files.
type certificate struct {
	certFile, keyFile string

	mu      sync.Mutex // guards the fields below
	changed time.Time  // of certFile, when it was read
	current *tls.Certificate
}

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

// ReadCA reads PEM certificates and returns them as a pool and as they are.
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

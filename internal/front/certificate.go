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

// ReadSecret reads a file that holds nothing but a secret, for its owner only.
func ReadSecret(name string) (string, error) {
	info, err := os.Stat(name)
	if err != nil {
		return "", err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("%s can be read by others (mode %04o): chmod 600 %s", name, info.Mode().Perm(), name)
	}
	if info.Size() > maxSecretBytes {
		return "", fmt.Errorf("%s has %d bytes, too many for a secret", name, info.Size())
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return "", err
	}
	secret := string(trimNewline(data))
	if secret == "" {
		return "", fmt.Errorf("%s is empty", name)
	}
	return secret, nil
}

const maxSecretBytes = 16 << 10

func trimNewline(b []byte) []byte {
	for len(b) > 0 && (b[len(b)-1] == '\n' || b[len(b)-1] == '\r') {
		b = b[:len(b)-1]
	}
	return b
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

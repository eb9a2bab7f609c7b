package front

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// writeCertificate creates a certificate for name and writes it to the files.
func writeCertificate(t *testing.T, certFile, keyFile, name string, until time.Time) {
	t.Helper()
	certificate, certPEM := testkit.Certificate(t, until, name)
	private, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	testkit.Must(t, err)
	testkit.Must(t, os.WriteFile(certFile, certPEM, 0o600))
	testkit.Must(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
}

// TestServerTLS checks that a renewed certificate is used without a restart, and that the old one
// is kept if the new one is unusable.
func TestServerTLS(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if _, err := ServerTLS(certFile, keyFile); err == nil {
		t.Error("ServerTLS without files = nil, want an error")
	}
	writeCertificate(t, certFile, keyFile, "old.example.org", time.Now().Add(time.Hour))
	cfg, err := ServerTLS(certFile, keyFile)
	testkit.Must(t, err)
	shown := func() string {
		cert, err := cfg.GetCertificate(&tls.ClientHelloInfo{})
		testkit.Must(t, err)
		return cert.Leaf.Subject.CommonName
	}
	if got := shown(); got != "old.example.org" {
		t.Errorf("the certificate shown is %s", got)
	}
	changed := time.Now().Add(time.Minute) // file times may be coarse
	rewrite := func(write func()) {
		write()
		changed = changed.Add(time.Minute)
		testkit.Must(t, os.Chtimes(certFile, changed, changed))
	}
	rewrite(func() { os.WriteFile(certFile, []byte("half a certif"), 0o600) })
	if got := shown(); got != "old.example.org" {
		t.Errorf("with a damaged file the certificate shown is %s, want the old one", got)
	}
	rewrite(func() {
		writeCertificate(t, certFile, keyFile, "new.example.org", time.Now().Add(time.Hour))
	})
	if got := shown(); got != "new.example.org" {
		t.Errorf("after a renewal the certificate shown is %s, want the new one", got)
	}
	os.Remove(certFile)
	if got := shown(); got != "new.example.org" {
		t.Errorf("without the file the certificate shown is %s, want the last one", got)
	}
}

package front

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// writeCertificate creates a certificate for name and writes it to the files.
func writeCertificate(t *testing.T, certFile, keyFile, name string, until time.Time) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: until,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{keyFile: {Type: "PRIVATE KEY", Bytes: private}, certFile: {Type: "CERTIFICATE", Bytes: der}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
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
	if err != nil {
		t.Fatal(err)
	}
	shown := func() string {
		cert, err := cfg.GetCertificate(&tls.ClientHelloInfo{})
		if err != nil {
			t.Fatal(err)
		}
		return cert.Leaf.Subject.CommonName
	}
	if got := shown(); got != "old.example.org" {
		t.Errorf("the certificate shown is %s", got)
	}
	changed := time.Now().Add(time.Minute) // file times may be coarse
	rewrite := func(write func()) {
		write()
		changed = changed.Add(time.Minute)
		if err := os.Chtimes(certFile, changed, changed); err != nil {
			t.Fatal(err)
		}
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

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
	"strings"
	"testing"
	"time"
)

// writeCertificate makes a certificate for name and writes it to the files.
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

// TestServerTLS: a renewed certificate is used without a restart, and one that
// cannot be used is not.
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

func TestReadSecret(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		content string
		mode    os.FileMode
		want    string // in the error; "" for none
	}{
		"good":        {"secret\n", 0o600, ""},
		"read-only":   {"secret", 0o400, ""},
		"for a group": {"secret", 0o640, "chmod 600"},
		"for all":     {"secret", 0o604, "chmod 600"},
		"empty":       {"\n", 0o600, "is empty"},
		"too large":   {strings.Repeat("x", maxSecretBytes+1), 0o600, "too many"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
			if err := os.WriteFile(file, []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(file, c.mode); err != nil {
				t.Fatal(err)
			}
			got, err := ReadSecret(file)
			switch {
			case c.want == "" && (err != nil || got != "secret"):
				t.Errorf("ReadSecret = %q, %v", got, err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("ReadSecret = %v, want an error that says %q", err, c.want)
			}
		})
	}
	if _, err := ReadSecret(filepath.Join(dir, "none")); err == nil {
		t.Error("ReadSecret of no file = nil, want an error")
	}
}

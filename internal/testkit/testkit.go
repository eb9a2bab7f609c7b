// Package testkit is what the tests of several packages share. Only tests import it.
//
//   - [Must] ends a test if there is an error, and [Within] and [Eventually] bound what a test waits for.
//   - [Listen], [FreeAddress] and [Certificate] are what a server in a test needs.
//   - [ReadFile], [Snapshot] and [CheckPrivate] are about files.
//   - [Text] collects what a program prints while a test reads it.
//   - [Clock] is a clock that tests can set. [Batch] and [Records] return what a producer sends.
//   - [Parallel] spreads many small cases over the processors.
//   - [Scaled] and [Fewer] say how much a test does: less under the race detector, and as much as the
//     environment requests in long runs (make test-long).
//   - [Rerun] runs the test binary again, as a process that a test may kill.
//
// Package fabrictest, below this one, has what needs a fabric.
package testkit

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Patience is more than anything takes that a test waits for, on a busy machine as well.
const Patience = 90 * time.Second

// TB is what helpers need of a test if a script may use them too: a testscript has no [testing.TB].
type TB interface {
	Helper()
	Fatal(args ...any)
	Cleanup(func())
	TempDir() string
}

var _ TB = testing.TB(nil)

// Must ends the test if there is an error.
func Must(t TB, err error) {
	if err != nil {
		t.Helper() // only now, because it is slow, and benchmarks use Must too
		t.Fatal(err)
	}
}

// Within returns a context that bounds what a test waits for.
func Within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	t.Cleanup(cancel)
	return ctx
}

// Eventually waits for a condition.
func Eventually(t testing.TB, what string, met func() bool) {
	t.Helper()
	look := time.NewTicker(2 * time.Millisecond)
	defer look.Stop()
	for timeout := time.After(Patience); !met(); {
		select {
		case <-look.C:
		case <-timeout:
			t.Fatalf("did not happen in time: %s", what)
		}
	}
}

// Parallel calls do with each number below n, on all processors.
func Parallel(n int, do func(int)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				do(i)
			}
		})
	}
	wg.Wait()
}

// Listen listens on a free port of 127.0.0.1 until the test ends.
func Listen(t TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	Must(t, err)
	t.Cleanup(func() { ln.Close() })
	return ln
}

// FreeAddress returns an address of 127.0.0.1 on which no process listens now. Its port is below those that systems give
// to outgoing connections, and no other call in this process returns it. So a test can listen on it later, and again.
func FreeAddress(t TB) string {
	t.Helper()
	const first, count = 15_000, 17_000
	for range count {
		address := fmt.Sprintf("127.0.0.1:%d", first+mathrand.IntN(count))
		if _, given := freeAddresses.LoadOrStore(address, true); given {
			continue
		}
		if ln, err := net.Listen("tcp", address); err == nil {
			Must(t, ln.Close())
			return address
		}
	}
	t.Fatal("there is no free port")
	return ""
}

var freeAddresses sync.Map // those that FreeAddress has returned

// Certificate returns a self-signed certificate for hosts, which are names or IP addresses, and the same
// in PEM. It is valid until the given time, which may be over.
func Certificate(t TB, until time.Time, hosts ...string) (tls.Certificate, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	Must(t, err)
	from := time.Now()
	if until.Before(from) {
		from = until
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: hosts[0]}, NotBefore: from.Add(-48 * time.Hour), NotAfter: until,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	Must(t, err)
	leaf, err := x509.ParseCertificate(der)
	Must(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// Text collects what a program prints. It may be used concurrently.
type Text struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

// Write adds to the text.
func (t *Text) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.Write(p)
}

// String returns the text so far.
func (t *Text) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.String()
}

// Reset forgets the text.
func (t *Text) Reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf.Reset()
}

package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/inside"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestDoctorInterrupted interrupts doctor during a check that waits for a response. The bundle has the results
// so far.
func TestDoctorInterrupted(t *testing.T) {
	d := newDesk(t)
	d.vars["DIASPORA_BOOTSTRAP"] = testkit.Listen(t).Addr().String()
	bundle := filepath.Join(t.TempDir(), "ticket.tar.gz")
	stop, _ := d.started(t, "doctor", "--timeout", "10m", "--bundle", bundle)
	testkit.Eventually(t, "the check before", func() bool { return strings.Contains(d.out.String(), "gateway TLS: ") })
	began := time.Now()
	if code := stop(); code != 130 {
		t.Errorf("doctor exits with %d after Ctrl-C, want 130:\n%s", code, d.err.String())
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %v to end", took)
	}
	if info, err := os.Stat(bundle); err != nil || info.Size() == 0 || info.Mode().Perm() != 0o600 {
		t.Errorf("the bundle: %v, %v", info, err)
	}
	if got := d.out.String(); !strings.Contains(got, "because it was interrupted") {
		t.Errorf("doctor prints\n%s", got)
	}
}

// TestDoctorReaderLeaves checks that doctor stops when nobody reads its output any
// more, as in "diaspora doctor | head -1".
func TestDoctorReaderLeaves(t *testing.T) {
	d := newDesk(t)
	d.must(t, "topic", "claim", "weather")
	e := *d.env
	e.stdout = brokenPipe{syscall.EPIPE}
	d.err.Reset()
	if code := run(t.Context(), &e, []string{"doctor"}); code != 0 || d.err.String() != "" {
		t.Errorf("doctor into a pipe that nobody reads exits with %d and says %q", code, d.err.String())
	}
	d.out.Reset()
	d.must(t, "consume", "weather", "--from", "start", "--exit")
	if d.out.String() != "" {
		t.Errorf("the checks went on: %q", d.out.String())
	}
}

// TestDoctorIsSafe checks that control characters in data from other people do not reach the terminal.
func TestDoctorIsSafe(t *testing.T) {
	d := newDesk(t)
	d.vars["DIASPORA_\x1b[2J"] = "x"
	d.types(t.Context(), "doctor")
	if got := d.out.String(); strings.Contains(got, "\x1b") || !strings.Contains(got, `DIASPORA_\x1b[2J`) {
		t.Errorf("doctor prints %q", got)
	}
}

// TestDoctorOfTheOperator checks that doctor does not send a user to the operator who runs the fabric with "diaspora up"
// and so is the operator.
func TestDoctorOfTheOperator(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.vars["DIASPORA_BOOTSTRAP"] = closing(t)
	const others, own = "tell the operator", `look at what your "diaspora up" says`
	advice := func(want, other string) {
		t.Helper()
		d.out.Reset()
		d.types(t.Context(), "doctor")
		if got := d.out.String(); !strings.Contains(got, want) || strings.Contains(got, other) {
			t.Errorf("doctor prints\n%s\nwant %q, not %q", got, want, other)
		}
	}
	advice(others, own)
	profiles := diaspora.OpenProfiles(d.vars["DIASPORA_CONFIG_DIR"])
	_, err := saveGlobusSecret(globusSecretFile(profiles, "home"), inside.Of(d.fabric).GlobusSecret)
	testkit.Must(t, err)
	advice(own, others)
}

// closing returns the address of a server that closes each connection, as a gateway does whose broker is down.
func closing(t *testing.T) string {
	l := testkit.Listen(t)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	return l.Addr().String()
}

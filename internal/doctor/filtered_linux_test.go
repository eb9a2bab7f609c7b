package doctor

import (
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// filtered returns an address that never answers, as behind a firewall. It has a listener that
// never accepts and whose queue is full, so the system drops all packets.
func (w *world) filtered() string {
	w.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	testkit.Must(w, err)
	w.Cleanup(func() { syscall.Close(fd) })
	testkit.Must(w, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	testkit.Must(w, syscall.Listen(fd, 0))
	name, err := syscall.Getsockname(fd)
	testkit.Must(w, err)
	address := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(name.(*syscall.SockaddrInet4).Port)).String()
	for {
		conn, err := net.DialTimeout("tcp", address, 200*time.Millisecond)
		if err != nil {
			return address
		}
		w.Cleanup(func() { conn.Close() })
	}
}

// TestFiltered distinguishes a firewall from a service that is not running.
func TestFiltered(t *testing.T) {
	t.Parallel()
	for check, put := range map[string]func(w *world, address string){
		"TCP":         func(w *world, address string) { w.store("http://"+address, w.fabric.Discovery()); w.hurry("DNS") },
		"gateway TCP": func(w *world, address string) { w.bootstrap(address); w.hurry("gateway DNS") },
	} {
		t.Run(check, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, fabric.Config{})
			put(w, w.filtered())
			report, findings := w.examine()
			got := findings[check]
			if got.Status != Failure || !strings.HasSuffix(got.Seen, ": no answer") || !strings.Contains(got.Next, "firewall") {
				t.Errorf("%s: %v %q, hint %q\n%s", check, got.Status, got.Seen, got.Next, report.Text())
			}
		})
	}
}

// TestOneGatewayIsSilent requires that the other gateway is used.
func TestOneGatewayIsSilent(t *testing.T) {
	t.Parallel()
	for name, silent := range map[string]func(*world) string{"filtered": (*world).filtered, "connected": (*world).silent} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, fabric.Config{})
			w.bootstrap(silent(w), w.fabric.Brokers()[0])
			w.cfg.Timeout = 6 * time.Second
			report, findings := w.examine()
			if f := findings["gateway TCP"]; name == "filtered" && (f.Status != Warning || !strings.HasPrefix(f.Seen, "1 of 2: ")) {
				t.Errorf("gateway TCP: %+v", f)
			}
			if findings["sign-in"].Status != OK {
				t.Errorf("sign-in stops at a gateway that does not answer:\n%s", report.Text())
			}
		})
	}
}

// TestReadOnlyHome examines a folder in which not even root can create files.
func TestReadOnlyHome(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fabric.Config{})
	w.vars["DIASPORA_CONFIG_DIR"] = "/proc/diaspora"
	w.vars["DIASPORA_STATE_DIR"] = "/proc/diaspora"
	_, findings := w.examine()
	if f := findings["settings folder"]; f.Status != Warning || !strings.HasPrefix(f.Seen, "a login cannot be stored") || !strings.Contains(f.Next, "DIASPORA_CONFIG_DIR") {
		t.Errorf("settings folder: %+v", f)
	}
	if f := findings["spool folder"]; f.Status != Failure || !strings.HasPrefix(f.Seen, "no spool can be made") || !strings.Contains(f.Next, "DIASPORA_STATE_DIR") {
		t.Errorf("spool folder: %+v", f)
	}
}

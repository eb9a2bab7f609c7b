//go:build clients

package broker

import (
	"cmp"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// franzSkips are the tests that may skip themselves, because the engine has neither share groups
// nor SCRAM, and offers Produce from version 0, as Apache Kafka does.
var franzSkips = []string{
	"TestIssueProduceBrokerTooOldFailsRecords",
	"TestConsumeRegexShareSkipsInternal", "TestShareGroup", "TestShareGroupAckOnClose", "TestShareGroupETL", "TestShareGroupOffsetsAdmin",
	"TestSCRAMAuth", "TestSCRAMAuthBadCredentials",
}

// franzVerdict matches the result of a test. Subtests are indented.
var franzVerdict = regexp.MustCompile(`(?m)^ *--- (PASS|SKIP): (\S+)`)

// TestFranz runs the integration tests of franz-go, the client, against the engine, except those
// for transactions. KGO_TEST_RECORDS is the number of records that pass through each chain of
// groups. KGO_TEST_CHAOS=1 keeps breaking connections.
func TestFranz(t *testing.T) {
	addr := listen(t)
	cmd := exec.Command("go", "test", "-v", "-count=1", "-timeout=30m", "-run=^Test", "-skip=^TestTxnEtl$", "github.com/twmb/franz-go/pkg/kgo")
	cmd.Env = append(os.Environ(),
		"KGO_SEEDS="+addr,
		"KGO_TEST_RF=1",
		"KGO_LOG_LEVEL="+cmp.Or(os.Getenv("KGO_LOG_LEVEL"), "none"),
		"KGO_TEST_RECORDS="+cmp.Or(os.Getenv("KGO_TEST_RECORDS"), "100000"),
	)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	passed := 0
	for _, verdict := range franzVerdict.FindAllStringSubmatch(string(out), -1) {
		switch name := verdict[2]; {
		case verdict[1] == "PASS":
			passed++
		case !slices.Contains(franzSkips, name):
			t.Errorf("skipped: %s", name)
		}
	}
	// If a commit is rejected as stale, a chain of groups passes without comparing anything.
	if strings.Contains(string(out), "skipping validation") {
		t.Errorf("a chain of groups is not compared:\n%s", out)
	}
	if passed == 0 {
		t.Errorf("no test ran:\n%s", out)
	}
	t.Logf("%d tests of franz-go pass", passed)
}

// listen opens a broker and serves it on a listener. All connections are those of the super user.
// It returns the address.
func listen(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	b, err := Open(Config{Dir: t.TempDir(), Advertise: listener.Addr().String()})
	testkit.Must(t, err)
	t.Cleanup(func() {
		if err := errors.Join(listener.Close(), b.Close()); err != nil {
			t.Error(err)
		}
	})
	// Apache Kafka creates this topic for the first group. The engine does not need it, but the
	// tests of regular expressions need an internal topic.
	makeTopic(t, b.admin(t), "__consumer_offsets")
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			ours, err := b.connect(caller{principal: "User:franz", super: true})
			if err != nil {
				client.Close()
				continue
			}
			go relay(client, ours)
			go relay(ours, client)
		}
	}()
	return listener.Addr().String()
}

// relay copies one direction of a connection, and closes both ends when it is done.
func relay(to, from net.Conn) {
	io.Copy(to, from)
	to.Close()
	from.Close()
}

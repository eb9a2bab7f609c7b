//go:build clients || kafka

package interop

import (
	"context"
	"errors"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// TestGroupCommand lists, shows, resets and deletes a group with "diaspora group".
func TestGroupCommand(t *testing.T) {
	parallel(t)
	f := start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	topic, group := claim(t, cfg, 2), unique(t)
	_, dir := fabrictest.StoredLogin(t, f)
	program := buildCommand(t)
	run := func(args ...string) (code int, out string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(testkit.Within(t), 30*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, program, append([]string{"group"}, args...)...)
		cmd.Env = []string{"DIASPORA_PROFILE=test", "DIASPORA_CONFIG_DIR=" + dir, "HOME=" + dir}
		said, err := cmd.CombinedOutput()
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			return exit.ExitCode(), string(said)
		}
		testkit.Must(t, err)
		return 0, string(said)
	}
	expect := func(code int, want string, args ...string) {
		t.Helper()
		if got, out := run(args...); got != code || !regexp.MustCompile("(?m)"+want).MatchString(out) {
			t.Errorf("diaspora group %s: exit code %d, want %d and %q:\n%s", strings.Join(args, " "), got, code, want, out)
		}
	}
	logger := fabrictest.OpenLogger(t, cfg)
	for _, n := range fabrictest.Numbers(0, 30) { // the keys spread them over both partitions
		testkit.Must(t, logger.Log(testkit.Within(t), diaspora.Event{Topic: topic, Key: []byte(n), Value: []byte(n)}))
	}
	expect(5, "you have no consumer group", "show", group)
	for _, kind := range []struct {
		name string
		opt  kgo.Opt
	}{{"classic", kgo.Balancers(kgo.RangeBalancer())}, {`consumer \(KIP-848\)`, kgo.ServerSideBalancer()}} {
		member := groupMember(t, cfg, topic, group, kind.opt)
		member.await(t, 30)
		testkit.Eventually(t, "all is committed", func() bool {
			_, out := run("list")
			return regexp.MustCompile("(?m)^" + group + " +Stable +1 +0 +" + topic + "$").MatchString(out)
		})
		expect(0, "^Protocol: +"+kind.name+", assignor ", "show", group)
		expect(0, "^"+topic+" +0 +\\d+ +\\d+ +0 +diaspora +\\S", "show", group)
		expect(6, "conflict: "+group+` has 1 member \(diaspora\); nothing has changed$`, "reset", group, "--topic", topic, "--to", "start", "--yes")
		expect(6, "conflict: ", "delete", group, "--yes")
		expect(0, "^"+topic+" +0 +\\d+ +0 +repeats ", "reset", group, "--topic", topic, "--to", "start", "--force", "--yes")
		member.await(t, 60)
		member.stop()
		expect(0, "^"+topic+" +1 +\\d+ +\\d+ +repeats 1 record$", "reset", group, "--topic", topic, "-p", "1", "--by", "-1", "--yes")
		expect(0, "^"+group+" +Empty +0 +1 +", "list")
		expect(0, "^"+topic+" +1 +\\d+ +\\d+ +skips 1 record$", "reset", group, "--topic", topic, "--to", "2100-01-01", "--yes")
		expect(0, "nothing has changed", "reset", group, "--topic", topic, "-p", "0", "--past", "0", "--yes")
		expect(0, "is deleted", "delete", group, "--yes")
		expect(5, "you have no consumer group", "delete", group, "--yes")
	}
}

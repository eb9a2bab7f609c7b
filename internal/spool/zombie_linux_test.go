package spool

import (
	"os/exec"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestZombie fails if a process that has died counts as alive until its parent asks how: a spool of it could only be
// opened seconds later.
func TestZombie(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("sleep", "60")
	testkit.Must(t, cmd.Start())
	if !alive(cmd.Process.Pid) {
		t.Error("a process that runs counts as dead")
	}
	testkit.Must(t, cmd.Process.Kill())
	testkit.Eventually(t, "the process counts as dead", func() bool { return !alive(cmd.Process.Pid) })
	cmd.Wait()
}

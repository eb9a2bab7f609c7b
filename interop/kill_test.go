//go:build clients && !kafka

package interop

import (
	"encoding/json"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// upProcess is a `diaspora up` in a process of its own, which can be killed.
type upProcess struct {
	bin, dir  string
	cmd       *exec.Cmd
	said      tail
	addresses struct {
		URL, Globus string
		Brokers     []string
	}
}

// startUp starts `diaspora up` in an empty folder.
func startUp(t *testing.T, bin string) *upProcess {
	t.Helper()
	u := &upProcess{bin: bin, dir: t.TempDir()}
	t.Cleanup(u.kill)
	u.start(t, "--kafka-port", "0", "--http-port", "0", "--globus-port", "0")
	return u
}

// env is the environment of commands that use the profile of the fabric.
func (u *upProcess) env() []string { return []string{"DIASPORA_CONFIG_DIR=" + u.config()} }

func (u *upProcess) config() string { return filepath.Join(u.dir, "config") }

// start returns when the fabric is ready.
func (u *upProcess) start(t *testing.T, ports ...string) {
	t.Helper()
	u.cmd = exec.Command(u.bin, append([]string{"up", "-o", "json", "--data", filepath.Join(u.dir, "data")}, ports...)...)
	u.cmd.Env, u.cmd.Stderr = append(os.Environ(), u.env()...), &u.said
	stdout, err := u.cmd.StdoutPipe()
	testkit.Must(t, err)
	testkit.Must(t, u.cmd.Start())
	if err := json.NewDecoder(stdout).Decode(&u.addresses); err != nil {
		t.Fatalf("diaspora up: %v\n%s", err, u.said.String())
	}
}

// kill ends the process as a crash does.
func (u *upProcess) kill() {
	if u.cmd != nil && u.cmd.Process != nil {
		u.cmd.Process.Kill()
		u.cmd.Wait()
	}
}

// ports are the flags that start it again where it was.
func (u *upProcess) ports(t *testing.T) (flags []string) {
	t.Helper()
	for flag, address := range map[string]string{"--http-port": u.addresses.URL, "--globus-port": u.addresses.Globus, "--kafka-port": "//" + u.addresses.Brokers[0]} {
		parsed, err := url.Parse(address)
		testkit.Must(t, err)
		_, port, err := net.SplitHostPort(parsed.Host)
		testkit.Must(t, err)
		flags = append(flags, flag, port)
	}
	return flags
}

// place is where its clients are: the person at this machine is logged in.
func (u *upProcess) place(t *testing.T) place {
	t.Helper()
	profiles := diaspora.OpenProfiles(u.config())
	profile, err := profiles.Load("local")
	testkit.Must(t, err)
	cfg, err := profiles.Config(profile.Name)
	testkit.Must(t, err)
	return place{brokers: u.addresses.Brokers, tokenURL: profile.Discovery.TokenURL, cfg: cfg, bin: u.bin, login: u.env()}
}

// TestClientsThroughKill kills `diaspora up` under the clients, again and again. Every
// group goes on behind what it had committed, and no acknowledged record is lost.
func TestClientsThroughKill(t *testing.T) {
	parallel(t)
	up := startUp(t, buildCommand(t))
	at := up.place(t)
	// Before 3.0, kafka-python may wait for ever for the answer to a login that its other thread has read.
	steady := slices.DeleteFunc(slices.Concat(dialects, outageDialects), func(d dialect) bool {
		return strings.HasPrefix(d.name, "kafka-python 2")
	})
	streams := startStreams(t, at, steady)
	for range 3 {
		awaitMore(t, streams)
		var states []groupState
		for _, s := range streams {
			states = append(states, s.awaitCommit(t, at.cfg))
		}
		up.kill()
		up.start(t, up.ports(t)...)
		awaitMore(t, streams)
		for i, s := range streams {
			s.wentOn(t, at.cfg, states[i])
		}
	}
	finishAll(t, streams, at.cfg)
	if said := up.said.String(); said != "" {
		t.Logf("diaspora up says: %s", end(said))
	}
}

// groupState is what a group has committed, and what its consumer had until then.
type groupState struct {
	committed int64
	consumed  map[string]int
}

// counts is how often each line has come.
func (p *program) counts() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.seen)
}

// awaitCommit waits until the group of a stream has committed something.
func (s *stream) awaitCommit(t *testing.T, cfg diaspora.Config) groupState {
	t.Helper()
	c, err := diaspora.Dial(testkit.Within(t), cfg)
	testkit.Must(t, err)
	defer c.Close()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(clientPatience); ; {
		offsets, err := kadm.NewClient(c).FetchOffsets(testkit.Within(t), s.topic)
		testkit.Must(t, err)
		if found, ok := offsets.Lookup(s.topic, 0); ok && found.At > 0 {
			return groupState{committed: found.At, consumed: s.consumer.counts()}
		}
		select {
		case <-tick.C:
		case <-late:
			s.fatal(t, "the group commits nothing")
		}
	}
}

// wentOn fails if the consumer got again what the group had committed.
func (s *stream) wentOn(t *testing.T, cfg diaspora.Config, before groupState) {
	t.Helper()
	now := s.consumer.counts()
	for _, r := range fabrictest.ReadAll(t, cfg, s.topic) {
		if r.Offset < before.committed && now[string(r.Value)] > max(1, before.consumed[string(r.Value)]) {
			t.Errorf("%s: the group had committed %d, and record %d comes again", s.name, before.committed, r.Offset)
			return
		}
	}
}

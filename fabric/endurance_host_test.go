//go:build linux

package fabric_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/inside"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// hostEnv is an environment variable. If it is set, the test binary runs a fabric instead of the
// tests. The fabric then has a process of its own, which can be killed and suspended. The value is a
// hostConfig as JSON.
const hostEnv = "DIASPORA_TEST_FABRIC"

type hostConfig struct {
	Dir                                string
	Kafka, HTTP, Globus, KafkaForOther string // addresses
}

func TestMain(m *testing.M) {
	if text := os.Getenv(hostEnv); text != "" {
		if err := serveHost(text); err != nil {
			fmt.Fprintln(os.Stderr, "fabric:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// serveHost runs a fabric until standard input ends. It executes each line of standard input as a
// command, and writes one line to standard output for each: null, or a JSON object with an error.
func serveHost(text string) error {
	var at hostConfig
	if err := json.Unmarshal([]byte(text), &at); err != nil {
		return err
	}
	cfg := fabric.Config{
		Dir: at.Dir, KafkaAddr: at.Kafka, HTTPAddr: at.HTTP, GlobusAddr: at.Globus,
		AccessTokenLifetime: 30 * time.Second, RevocationInterval: 2 * time.Second,
	}
	f, err := fabric.Start(context.Background(), fabric.Behind(cfg, at.KafkaForOther))
	if err != nil {
		return err
	}
	answers := json.NewEncoder(os.Stdout)
	answers.Encode(f.Discovery())
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		order, what, _ := strings.Cut(lines.Text(), " ")
		var err error
		switch order {
		case "login":
			err = login(f, what)
		case "expire":
			err = inside.Of(f).Globus.ExpireAccessTokens(what)
		case "globus":
			if what == "on" {
				err = f.StartGlobus()
			} else {
				err = f.StopGlobus()
			}
		}
		var answer any
		if err != nil {
			answer = map[string]string{"error": err.Error()}
		}
		answers.Encode(answer)
	}
	return f.Close()
}

// login logs in the user ada and saves the profile in dir.
func login(f *fabric.Fabric, dir string) error {
	got, err := f.Login(context.Background(), ada)
	if err != nil {
		return err
	}
	profiles := diaspora.OpenProfiles(dir)
	if err := profiles.Save(diaspora.Profile{Name: "lab", URL: f.URL(), Discovery: f.Discovery()}); err != nil {
		return err
	}
	store, err := profiles.Store("lab")
	if err != nil {
		return err
	}
	return errors.Join(store.Save(context.Background(), got), profiles.Use("lab"))
}

// host is a process that runs serveHost.
type host struct {
	hostConfig
	said testkit.Text

	mu      sync.Mutex // guards the fields below
	cmd     *exec.Cmd
	in      io.WriteCloser
	answers *json.Decoder
}

// start starts the process and returns when the fabric is ready.
func (h *host) start() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	text, err := json.Marshal(h.hostConfig)
	if err != nil {
		return err
	}
	h.cmd = exec.Command(os.Args[0])
	h.cmd.Env, h.cmd.Stderr = append(os.Environ(), hostEnv+"="+string(text)), &h.said
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := h.cmd.Start(); err != nil {
		return err
	}
	h.answers = json.NewDecoder(out)
	var discovery diaspora.Discovery
	if err := h.answers.Decode(&discovery); err != nil {
		return errors.Join(fmt.Errorf("the fabric does not start: %w: %s", err, h.said.String()), h.cmd.Wait())
	}
	return nil
}

// ask sends a command to the process and waits for the result.
func (h *host) ask(format string, args ...any) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, err := fmt.Fprintf(h.in, format+"\n", args...); err != nil {
		return err
	}
	var failed *struct{ Error string }
	if err := h.answers.Decode(&failed); err != nil {
		return err
	}
	if failed != nil {
		return errors.New(failed.Error)
	}
	return nil
}

// signal sends a signal to the process. After SIGKILL it waits for the end of the process.
func (h *host) signal(s syscall.Signal) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cmd.Process.Signal(s)
	if s == syscall.SIGKILL {
		h.cmd.Wait()
	}
}

// home is a configuration folder in which a user is logged in.
type home struct{ dir string }

// newHome creates a folder and logs in the user ada there.
func (h *host) newHome(t *testing.T) home {
	t.Helper()
	at := home{t.TempDir()}
	testkit.Must(t, h.ask("login %s", at.dir))
	return at
}

func (h home) config(t *testing.T) diaspora.Config {
	t.Helper()
	cfg, err := diaspora.OpenProfiles(h.dir).Config("lab")
	testkit.Must(t, err)
	return cfg
}

// env returns the environment for a command that uses this folder.
func (h home) env() []string {
	return append(os.Environ(), "DIASPORA_CONFIG_DIR="+h.dir, "DIASPORA_STATE_DIR="+filepath.Join(h.dir, "state"))
}

//go:build clients

package interop

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
	"github.com/diaspora-streams/diaspora/interop/clients"
)

// python returns the Python that has what a requirements file pins.
func python(t *testing.T, requirements string) string {
	t.Helper()
	venv, err := clients.VirtualEnv(filepath.Join("clients", requirements))
	testkit.Must(t, err)
	return filepath.Join(venv, "bin", "python")
}

// pythonProgram returns a folder with the program of a Python module. That in the environment
// does not start, since the environment was moved after pip had made it.
func pythonProgram(t *testing.T, python, name string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\nexec %q -u -m %s \"$@\"\n", python, name)
	testkit.Must(t, os.WriteFile(filepath.Join(dir, name), []byte(script), 0o700))
	return dir
}

// TestClientsHop runs hop as docs/clients.md shows it, with a key over PLAIN and with a token that
// it fetches for the key.
func TestClientsHop(t *testing.T) {
	parallel(t)
	if !chosen.MatchString("hop") || !present(t, dialect{name: "hop", needs: []string{"python3"}}) {
		return
	}
	f := start(t, fabric.Config{})
	at, page := inFabric(t, f), pageSection(t, "hop")
	settings := page.block(t, "toml")
	tryHop(t, at, page, settings)
	tryHop(t, at, page, fetchingToken(settings))

	env, lines := hop(t, page, newExample(t, at).wrong(t), settings)
	p := run(t, env, []string{"bash", "-c", lines[0]})
	p.awaitSaid(t, page.onWrongSecret(t))
	p.kill() // it goes on trying
}

// hop returns the environment in which hop has the settings, and the page's command lines.
func hop(t *testing.T, page section, e example, settings string) (env, lines []string) {
	t.Helper()
	e.write(t, "hop/auth.toml", settings)
	bin := pythonProgram(t, python(t, "hop/requirements.txt"), "hop")
	return []string{"XDG_CONFIG_HOME=" + e.dir, "PATH=" + bin + ":/usr/bin:/bin"}, strings.Split(strings.TrimSpace(e.fill(page.block(t, "bash"))), "\n")
}

// fetchingToken has hop fetch a token for the key.
func fetchingToken(settings string) string {
	return strings.Replace(settings, `mechanism = "PLAIN"`, `token_endpoint = "http://127.0.0.1:9090/v1/token"`, 1)
}

// tryHop lists the topics, publishes the event and reads it.
func tryHop(t *testing.T, at place, page section, settings string) {
	t.Helper()
	e := newExample(t, at)
	env, lines := hop(t, page, e, settings)
	var out string
	for _, line := range lines {
		said, _ := runToEnd(t, env, "", "bash", "-c", line)
		out += said
	}
	if !strings.Contains(out, "\n "+e.topic+"\n") || !strings.HasSuffix(out, "\n"+pageEvent+"\n") {
		t.Errorf("hop prints %q, want the topics and then the event", out)
	}
	if got := values(fabrictest.ReadAll(t, at.cfg, e.topic)); got != pageEvent {
		t.Errorf("the topic has %q, want %q", got, pageEvent)
	}
}

// startGCN runs the steps of gcn-kafka's own README with the settings of the page.
func startGCN(t *testing.T, page section, e example) *program {
	t.Helper()
	return run(t, nil, []string{python(t, "hop/requirements.txt"), "-c", e.fill(page.block(t, "python"))})
}

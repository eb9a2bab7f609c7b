//go:build clients

package interop

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/interop/clients"
)

// python returns the Python that has what a requirements file pins.
func python(t *testing.T, requirements string) string {
	t.Helper()
	venv, err := clients.VirtualEnv(filepath.Join("clients", requirements))
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(venv, "bin", "python")
}

// pythonProgram returns a folder with the program of a Python module. That in the environment
// does not start, since the environment was moved after pip had made it.
func pythonProgram(t *testing.T, python, name string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\nexec %q -u -m %s \"$@\"\n", python, name)
	if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestClientsHop runs hop as docs/clients.md shows it, with a key over PLAIN and with a token that
// it fetches for the key.
func TestClientsHop(t *testing.T) {
	parallel(t)
	if !chosen.MatchString("hop") || !present(t, dialect{name: "hop", needs: []string{"python3"}}) {
		return
	}
	bin := pythonProgram(t, python(t, "hop/requirements.txt"), "hop")
	f := start(t, fabric.Config{})
	s := inFabric(t, f)
	page := pageSection(t, "hop")
	settings := page.block(t, "toml")
	commands := strings.Split(strings.TrimSpace(page.block(t, "bash")), "\n")
	hop := func(e example, settings, command string) (env, line []string) {
		e.write(t, "hop/auth.toml", settings)
		return []string{"XDG_CONFIG_HOME=" + e.dir, "PATH=" + bin + ":/usr/bin:/bin"}, []string{"bash", "-c", e.fill(command)}
	}
	for name, settings := range map[string]string{
		"key":   settings,
		"token": strings.Replace(settings, `mechanism = "PLAIN"`, `token_endpoint = "http://127.0.0.1:9090/v1/token"`, 1),
	} {
		t.Run(name, func(t *testing.T) {
			e := newExample(t, s)
			var out string
			for _, command := range commands {
				env, line := hop(e, settings, command)
				said, _ := runToEnd(t, env, "", line[0], line[1:]...)
				out += said
			}
			if !strings.Contains(out, "\n "+e.topic+"\n") || !strings.HasSuffix(out, "\n"+pageEvent+"\n") {
				t.Errorf("hop prints %q, want the topics and then the event", out)
			}
			e.holds(t, 1, pageEvent)
		})
	}
	env, line := hop(newExample(t, s).wrong(t), settings, commands[0])
	p := run(t, env, line)
	p.awaitSaid(t, page.onWrongSecret(t))
	p.kill() // it goes on trying
}

// TestClientsGCN runs the steps of gcn-kafka's own README with the settings of docs/clients.md.
func TestClientsGCN(t *testing.T) {
	parallel(t)
	if !chosen.MatchString("gcn-kafka") || !present(t, dialect{name: "gcn-kafka", needs: []string{"python3"}}) {
		return
	}
	python := python(t, "hop/requirements.txt")
	f := start(t, fabric.Config{})
	page, e := pageSection(t, "gcn-kafka"), newExample(t, inFabric(t, f))
	p := run(t, nil, []string{python, "-c", e.fill(page.block(t, "python"))})
	p.awaitSaid(t, "'"+e.topic+"'")
	e.holds(t, 1, pageEvent)
	p.awaitSaid(t, "b'"+pageEvent+"'")
	p.kill()

	p = run(t, nil, []string{python, "-c", e.wrong(t).fill(page.block(t, "python"))})
	p.awaitSaid(t, page.onWrongSecret(t))
	p.kill()
}

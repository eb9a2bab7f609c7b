//go:build kafka

package interop

import (
	"bytes"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/inside"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

var loginAddress = regexp.MustCompile(`http://\S+/v2/oauth2/authorize\?\S+`)

// pastes runs a command that asks for an authorization code, as somebody who opens the address on another machine.
func pastes(t *testing.T, people *fabric.Fabric, username string, cmd *exec.Cmd) (output string) {
	t.Helper()
	var said testkit.Text
	cmd.Stdout, cmd.Stderr = &said, &said
	typed, err := cmd.StdinPipe()
	testkit.Must(t, err)
	testkit.Must(t, cmd.Start())
	testkit.Eventually(t, "the address of the login", func() bool { return strings.Contains(said.String(), "Paste the authorization code here") })
	req, err := http.NewRequest(http.MethodGet, loginAddress.FindString(said.String())+"&dev_user="+url.QueryEscape(username), nil)
	testkit.Must(t, err)
	req.Header.Set("Authorization", "Bearer "+inside.Of(people).GlobusSecret.Reveal())
	resp, err := http.DefaultTransport.RoundTrip(req) // follows no redirect
	testkit.Must(t, err)
	resp.Body.Close()
	page, err := resp.Location()
	testkit.Must(t, err)
	io.WriteString(typed, page.Query().Get("code")+"\n")
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args[1:], err, said.String())
	}
	return said.String()
}

// TestServeInit rehearses the end of docs/operate.md with the Apache Kafka under test: init with its cluster.json, serve --check, serve,
// and a person who logs in and logs an event.
func TestServeInit(t *testing.T) {
	people := fabrictest.Start(t, fabric.Config{})
	secret, err := inside.Of(people).Globus.ClientSecret(globusdev.ResourceServerID)
	testkit.Must(t, err)
	dir, program := t.TempDir(), buildCommand(t)
	config, secretFile, url := filepath.Join(dir, "serve.toml"), filepath.Join(dir, "globus-secret"), "http://"+testkit.FreeAddress(t)
	testkit.Must(t, os.WriteFile(secretFile, []byte(secret.Reveal()+"\n"), 0o600))
	command := func(args ...string) *exec.Cmd {
		cmd := exec.Command(program, args...)
		cmd.Env = []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH")}
		return cmd
	}
	must := func(args ...string) string {
		t.Helper()
		out, err := command(args...).CombinedOutput()
		if err != nil {
			t.Fatalf("diaspora %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	made := pastes(t, people, "ada@example.edu", command("serve", "init", "--kafka", clusterFile(t), "--config", config, "--public-url", url, "--no-browser",
		"--globus-issuer", people.GlobusURL(), "--globus-client-id", globusdev.ResourceServerID, "--globus-login-client-id", globusdev.NativeClientID))
	for _, next := range []string{"diaspora serve --check --config " + config, "diaspora serve --config " + config, "diaspora login " + url} {
		if !strings.Contains(made, "\n"+next+"\n") {
			t.Errorf("init does not say what comes next, %q:\n%s", next, made)
		}
	}
	if out := must("serve", "--check", "--config", config); strings.Contains(out, "\nfail") {
		t.Errorf("serve --check finds:\n%s", out)
	}
	runs := func(args ...string) {
		running := command(append([]string{"serve", "--config", config}, args...)...)
		var talk testkit.Text
		running.Stderr = &talk
		testkit.Must(t, running.Start())
		t.Cleanup(func() {
			running.Process.Signal(syscall.SIGTERM)
			if err := running.Wait(); err != nil {
				t.Errorf("serve %v ends with %v\n%s", args, err, talk.String())
			}
		})
	}
	runs()
	for _, node := range describe(t).Nodes[1:] {
		runs("gateway", "--gateway-listen", node.Gateway, "--gateway-broker", node.Listener)
	}
	testkit.Eventually(t, "serve to be healthy", func() bool { return command("healthcheck", "--config", config).Run() == nil })
	must("healthcheck", "gateway", "--config", config)
	pastes(t, people, "ada@example.edu", command("login", url, "--no-browser", "--yes"))
	topic := unique(t)
	must("topic", "claim", topic)
	must("produce", topic, "--value", "works")
	if out := must("consume", topic, "--from", "start", "--exit", "--quiet"); out != "works\n" {
		t.Errorf("the topic has %q", out)
	}
	must("admin", "blocked") // whoever runs init is an operator
	if bytes.Contains(testkit.ReadFile(t, config), []byte(secret.Reveal())) {
		t.Error("the settings contain the secret")
	}
}

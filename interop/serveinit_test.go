//go:build kafka

package interop

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
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

// operator sets up a service with a stand-in for Globus Auth, in a folder of its own.
type operator struct {
	*testing.T
	people              *fabric.Fabric
	dir, program        string
	config, secret, url string
}

func newOperator(t *testing.T) *operator {
	t.Helper()
	o := &operator{T: t, people: fabrictest.Start(t, fabric.Config{}), dir: t.TempDir(), program: buildCommand(t), url: "http://" + testkit.FreeAddress(t)}
	secret, err := inside.Of(o.people).Globus.ClientSecret(globusdev.ResourceServerID)
	testkit.Must(t, err)
	o.config, o.secret = filepath.Join(o.dir, "serve.toml"), secret.Reveal()
	testkit.Must(t, os.WriteFile(filepath.Join(o.dir, "globus-secret"), []byte(o.secret+"\n"), 0o600))
	return o
}

func (o *operator) command(args ...string) *exec.Cmd {
	cmd := exec.Command(o.program, args...)
	cmd.Env = []string{"HOME=" + o.dir, "PATH=" + os.Getenv("PATH")}
	return cmd
}

func (o *operator) must(args ...string) string {
	o.Helper()
	out, err := o.command(args...).CombinedOutput()
	if err != nil {
		o.Fatalf("diaspora %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// init runs serve init, and checks what comes next.
func (o *operator) init(kafka ...string) {
	o.Helper()
	made := pastes(o.T, o.people, "ada@example.edu", o.command(append([]string{"serve", "init", "--config", o.config, "--public-url", o.url, "--no-browser",
		"--globus-issuer", o.people.GlobusURL(), "--globus-client-id", globusdev.ResourceServerID, "--globus-login-client-id", globusdev.NativeClientID}, kafka...)...))
	for _, next := range []string{"diaspora serve --check --config " + o.config, "diaspora serve --config " + o.config, "diaspora login " + o.url} {
		if !strings.Contains(made, "\n"+next+"\n") {
			o.Errorf("init does not say what comes next, %q:\n%s", next, made)
		}
	}
}

// serve runs a service until the test ends.
func (o *operator) serve(args ...string) {
	o.Helper()
	running := o.command(append([]string{"serve", "--config", o.config}, args...)...)
	var talk testkit.Text
	running.Stderr = &talk
	testkit.Must(o.T, running.Start())
	o.Cleanup(func() {
		running.Process.Signal(syscall.SIGTERM)
		if err := running.Wait(); err != nil {
			o.Errorf("serve %v ends with %v\n%s", args, err, talk.String())
		}
	})
}

// works checks the service, and has a person log in, log an event and read it.
func (o *operator) works() {
	o.Helper()
	testkit.Eventually(o.T, "serve to be healthy", func() bool { return o.command("healthcheck", "--config", o.config).Run() == nil })
	o.must("healthcheck", "gateway", "--config", o.config)
	pastes(o.T, o.people, "ada@example.edu", o.command("login", o.url, "--no-browser", "--yes"))
	topic := unique(o.T)
	o.must("topic", "claim", topic)
	o.must("produce", topic, "--value", "works")
	if out := o.must("consume", topic, "--from", "start", "--exit", "--quiet"); out != "works\n" {
		o.Errorf("the topic has %q", out)
	}
	o.must("admin", "blocked") // whoever runs init is an operator
	if bytes.Contains(testkit.ReadFile(o.T, o.config), []byte(o.secret)) {
		o.Error("the settings contain the secret")
	}
}

// TestServeInit is the rehearsal in docs/one-server.md with the Apache Kafka under test: init with its cluster.json, serve --check, serve,
// and a person who logs in and logs an event.
func TestServeInit(t *testing.T) {
	o := newOperator(t)
	o.init("--kafka", clusterFile(t))
	if out := o.must("serve", "--check", "--config", o.config); strings.Contains(out, "\nfail") {
		t.Errorf("serve --check finds:\n%s", out)
	}
	o.serve()
	for _, node := range describe(t).Nodes[1:] {
		o.serve("gateway", "--gateway-listen", node.Gateway, "--gateway-broker", node.Listener)
	}
	o.works()
}

// formatCommand matches how docs/one-server.md formats the data folder of Apache Kafka.
var formatCommand = regexp.MustCompile(`(?m)^(cluster=.*\n)runuser -u kafka -- (java .* kafka\.tools\.StorageTool format .*)$`)

// TestServeInitKafka starts an Apache Kafka of its own with the server.properties that init writes, as docs/one-server.md does, and the
// service in front of it.
func TestServeInitKafka(t *testing.T) {
	o := newOperator(t)
	internal, _ := twoFreePorts(t) // the other one is for the controller
	gateway := testkit.FreeAddress(t)
	o.init("--kafka-brokers", "127.0.0.1:"+internal, "--gateway-broker", testkit.FreeAddress(t), "--gateway-listen", gateway, "--acl-bootstrap", gateway)
	made := string(testkit.ReadFile(t, filepath.Join(o.dir, "server.properties")))
	file, jwks := filepath.Join(o.dir, "node.properties"), filepath.Join(o.dir, "jwks.json")
	testkit.Must(t, os.WriteFile(file, []byte(strings.Replace(made, "log.dirs=/var/lib/kafka/data", "log.dirs="+filepath.Join(o.dir, "data"), 1)), 0o600))
	testkit.Must(t, os.WriteFile(jwks, []byte(`{"keys":[]}`), 0o644))
	jars, err := exec.Command(clusterScript, "jars").Output()
	testkit.Must(t, err)
	log, err := filepath.Abs("../deploy/kafka/log4j2.properties")
	testkit.Must(t, err)
	java := func(args ...string) *exec.Cmd {
		return exec.Command("java", append([]string{"-Xmx256m", "-Dlog4j2.configurationFile=" + log,
			"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls=file:" + jwks, "-cp", strings.TrimSpace(string(jars)) + "/*"}, args...)...)
	}
	format := formatCommand.FindStringSubmatch(string(testkit.ReadFile(t, "../docs/one-server.md")))
	if format == nil {
		t.Fatal("docs/one-server.md does not say how to format the data folder")
	}
	typed := strings.NewReplacer("/etc/diaspora/serve.toml", o.config, "/etc/kafka/server.properties", file, "/opt/kafka/jars", strings.TrimSpace(string(jars))).Replace(format[1] + format[2])
	if out, err := exec.Command("bash", "-euc", typed).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", typed, err, out)
	}
	broker, said := java("kafka.Kafka", file), testkit.Text{}
	broker.Stdout, broker.Stderr = &said, &said
	testkit.Must(t, broker.Start())
	t.Cleanup(func() {
		broker.Process.Signal(syscall.SIGTERM)
		broker.Wait()
		if t.Failed() {
			t.Logf("Apache Kafka said\n%s", said.String())
		}
	})
	testkit.Eventually(t, "Apache Kafka serves", func() bool { return strings.Contains(said.String(), "Kafka Server started") })
	o.serve()
	o.works()
}

// twoFreePorts returns two free ports of which one follows the other.
func twoFreePorts(t *testing.T) (first, second string) {
	t.Helper()
	for range 100 {
		_, first, _ := net.SplitHostPort(testkit.FreeAddress(t))
		n, err := strconv.Atoi(first)
		testkit.Must(t, err)
		second := strconv.Itoa(n + 1)
		if l, err := net.Listen("tcp", "127.0.0.1:"+second); err == nil {
			l.Close()
			return first, second
		}
	}
	t.Fatal("there are no two free ports in a row")
	return "", ""
}

//go:build kafka

package interop

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/apache"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/inside"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// site is a place where `diaspora serve` runs: its settings, and the people.
type site struct {
	people   *fabric.Fabric // for its Globus Auth alone
	program  string
	dir      string
	settings map[string]any
	others   [][]string // flags of the gateways of further nodes
}

// newSite writes down settings for the Apache Kafka under test.
func newSite(t *testing.T) *site {
	t.Helper()
	people := fabrictest.Start(t, fabric.Config{RevocationInterval: testkit.Patience})
	secret, err := inside.Of(people).Globus.ClientSecret(globusdev.ResourceServerID)
	testkit.Must(t, err)
	data, err := os.ReadFile(clusterFile(t))
	if err != nil {
		t.Fatalf("there is no Apache Kafka to test with; start one with `make kafka-up`: %v", err)
	}
	var kafka struct {
		Issuer   string `json:"issuer"`
		Audience string `json:"audience"`
		JWKSFile string `json:"jwks_file"`
		Admin    struct {
			Brokers      []string `json:"brokers"`
			Username     string   `json:"username"`
			PasswordFile string   `json:"password_file"`
		} `json:"admin"`
		Gateway struct {
			Username     string `json:"username"`
			PasswordFile string `json:"password_file"`
		} `json:"gateway"`
		Nodes []struct {
			Gateway  string `json:"gateway"`
			Listener string `json:"listener"`
		} `json:"nodes"`
	}
	testkit.Must(t, json.Unmarshal(data, &kafka))
	s := &site{people: people, dir: t.TempDir(), program: buildCommand(t)}
	secretFile := filepath.Join(s.dir, "globus-secret")
	testkit.Must(t, os.WriteFile(secretFile, []byte(secret.Reveal()+"\n"), 0o600))
	var gateways []string
	for i, node := range kafka.Nodes {
		gateways = append(gateways, node.Gateway)
		if i > 0 {
			s.others = append(s.others, []string{"gateway", "--gateway-listen", node.Gateway, "--gateway-broker", node.Listener})
		}
	}
	s.settings = map[string]any{
		"public-url":                  "http://127.0.0.1:1", // until the port is known
		"token-key-file":              filepath.Join(s.dir, "token-key.pem"),
		"globus-issuer":               people.GlobusURL(),
		"globus-client-id":            globusdev.ResourceServerID,
		"globus-client-secret-file":   secretFile,
		"globus-scope":                globusdev.Scope,
		"globus-login-client-id":      globusdev.NativeClientID,
		"kafka-brokers":               kafka.Admin.Brokers,
		"kafka-username":              kafka.Admin.Username,
		"kafka-password-file":         kafka.Admin.PasswordFile,
		"gateway-kafka-username":      kafka.Gateway.Username,
		"gateway-kafka-password-file": kafka.Gateway.PasswordFile,
		"gateway-listen":              kafka.Nodes[0].Gateway,
		"gateway-broker":              kafka.Nodes[0].Listener,
		"gateway-issuer":              kafka.Issuer,
		"gateway-audience":            kafka.Audience,
		"gateway-keys-file":           filepath.Join(filepath.Dir(kafka.JWKSFile), "signing-keys.json"),
		"gateway-jwks-file":           kafka.JWKSFile,
		"acl-listen":                  "127.0.0.1:0",
		"acl-bootstrap":               gateways,
	}
	// serve --check makes no keys; a gateway's start does.
	if _, err := apache.OpenKeys(apache.KeysConfig{File: s.settings["gateway-keys-file"].(string), JWKSFile: kafka.JWKSFile}); err != nil {
		t.Fatal(err)
	}
	return s
}

// command returns a run of `diaspora serve` with the site's settings, and args.
func (s *site) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	var text strings.Builder
	for name, value := range s.settings {
		encoded, err := json.Marshal(value) // strings and lists of them are TOML as well
		testkit.Must(t, err)
		fmt.Fprintf(&text, "%s = %s\n", name, encoded)
	}
	file := filepath.Join(s.dir, "serve.toml")
	testkit.Must(t, os.WriteFile(file, []byte(text.String()), 0o600))
	cmd := exec.Command(s.program, append([]string{"serve", "--config", file}, args...)...)
	cmd.Env = []string{"HOME=" + s.dir, "PATH=" + os.Getenv("PATH")}
	return cmd
}

// check runs `diaspora serve --check`.
func (s *site) check(t *testing.T, args ...string) (output string, code int) {
	t.Helper()
	out, err := s.command(t, append(args, "--check")...).CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !asExit(err, &exit) {
		t.Fatal(err)
	} else if err != nil {
		return string(out), exit.ExitCode()
	}
	return string(out), 0
}

func asExit(err error, exit **exec.ExitError) (ok bool) {
	*exit, ok = err.(*exec.ExitError)
	return ok
}

// process is a `diaspora serve`.
type process struct {
	cmd   *exec.Cmd
	talk  bytes.Buffer
	addrs map[string]string // where its parts are
}

// launch starts `diaspora serve` and waits until it serves.
func (s *site) launch(t *testing.T, args ...string) *process {
	t.Helper()
	p := &process{cmd: s.command(t, append(args, "-o", "json")...)}
	p.cmd.Stderr = &p.talk
	stdout, err := p.cmd.StdoutPipe()
	testkit.Must(t, err)
	testkit.Must(t, p.cmd.Start())
	if err := json.NewDecoder(stdout).Decode(&p.addrs); err != nil {
		p.cmd.Process.Kill()
		p.cmd.Wait()
		t.Fatalf("serve %v does not start: %v\n%s", args, err, p.talk.Bytes())
	}
	return p
}

// stop ends it as operators do.
func (p *process) stop(t *testing.T) {
	p.cmd.Process.Signal(syscall.SIGTERM)
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("serve ends with %v\n%s", err, p.talk.Bytes())
	}
}

// kill ends it with SIGKILL.
func (p *process) kill(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatalf("kill serve: %v\n%s", err, p.talk.Bytes())
	}
	p.cmd.Wait() // says that it was killed
}

// serve starts `diaspora serve` and returns where its parts are.
func (s *site) serve(t *testing.T, args ...string) (addrs map[string]string, stop func()) {
	t.Helper()
	p := s.launch(t, args...)
	stop = sync.OnceFunc(func() { p.stop(t) })
	t.Cleanup(stop)
	return p.addrs, stop
}

// as is the configuration of a client that knows no more than the ACL endpoint.
func (s *site) as(t *testing.T, username, url string) diaspora.Config {
	t.Helper()
	cfg := fabrictest.As(t, s.people, username)
	return diaspora.Config{URL: url, Identity: cfg.Identity, TokenSource: cfg.TokenSource}
}

// TestServe runs the parts as operators do, each by itself and both together.
func TestServe(t *testing.T) {
	s := newSite(t)
	url := "http://" + testkit.FreeAddress(t)
	s.settings["public-url"], s.settings["acl-listen"] = url, strings.TrimPrefix(url, "http://")
	if out, code := s.check(t); code != 0 {
		t.Fatalf("serve --check exits with %d:\n%s", code, out)
	} else if testing.Verbose() {
		t.Logf("serve --check says:\n%s", out)
	}
	for name, start := range map[string]func() (stop func()){
		"together": func() func() {
			_, stop := s.serve(t)
			return stop
		},
		"apart": func() func() {
			_, stopACL := s.serve(t, "acl") // the ledger may be another site's, which has no gateways like ours
			_, stopGateway := s.serve(t, "gateway")
			return func() { stopACL(); stopGateway() }
		},
	} {
		t.Run(name, func(t *testing.T) {
			defer start()()
			for _, flags := range s.others {
				_, stop := s.serve(t, flags...)
				defer stop()
			}
			cfg := s.as(t, ada, url)
			topic := claim(t, cfg, 1)
			fabrictest.Log(t, fabrictest.OpenLogger(t, cfg), topic, "one", "two")
			if got := values(fabrictest.ReadAll(t, cfg, topic)); got != "one two" {
				t.Errorf("the topic has %q, want one two", got)
			}
			_, err := diaspora.OpenConsumer(testkit.Within(t), s.as(t, grace, url), diaspora.ConsumerOptions{Topics: []string{topic}})
			wantError(t, "consume as another identity", err, diaspora.ErrPermission, grace)

			key := createKey(t, cfg, diaspora.AccessKeyRequest{Read: true, Write: true})
			mechanism := plain.Auth{User: key.ID, Pass: key.Secret.Reveal()}.AsMechanism()
			keyed, err := kgo.NewClient(kgo.SeedBrokers(s.settings["acl-bootstrap"].([]string)...), kgo.SASL(mechanism))
			testkit.Must(t, err)
			defer keyed.Close()
			if err := fabrictest.Produce(t, keyed, topic); err != nil {
				t.Errorf("produce with an access key: %v", err)
			}
			for ctx := testkit.Within(t); ; {
				shown, err := fabrictest.Client(t, cfg).Key(ctx, key.ID)
				testkit.Must(t, err)
				if !shown.LastUsed.IsZero() {
					break
				}
			}
		})
	}
}

// TestGatewayGovernsNothing signs in with the password that a gateway has, and tries to use it.
func TestGatewayGovernsNothing(t *testing.T) {
	s := newSite(t)
	s.settings["public-url"] = "http://127.0.0.1:1"
	s.serve(t, "acl")
	out, code := s.check(t, "gateway")
	if code != 0 || !strings.Contains(out, "ok    ledger: User:diaspora-gateway may read _diaspora_ledger and may not change it") {
		t.Errorf("serve gateway --check exits with %d:\n%s", code, out)
	}

	password := testkit.ReadFile(t, s.settings["gateway-kafka-password-file"].(string))
	user := s.settings["gateway-kafka-username"].(string)
	thief, err := kgo.NewClient(
		kgo.SeedBrokers(s.settings["kafka-brokers"].([]string)...),
		kgo.SASL(plain.Auth{User: user, Pass: string(password)}.AsMechanism()),
		kgo.ConsumerGroup("thieves"), kgo.ConsumeTopics("_diaspora_key_uses"),
	)
	testkit.Must(t, err)
	defer thief.Close()
	for _, topic := range []string{"_diaspora_ledger", "__consumer_offsets"} {
		if err := fabrictest.Produce(t, thief, topic); !errors.Is(err, kerr.TopicAuthorizationFailed) {
			t.Errorf("produce to %s as the gateways' user = %v, want TOPIC_AUTHORIZATION_FAILED", topic, err)
		}
	}
	if err := thief.PollFetches(testkit.Within(t)).Err(); !errors.Is(err, kerr.GroupAuthorizationFailed) {
		t.Errorf("join a group = %v, want GROUP_AUTHORIZATION_FAILED", err)
	}
	admin := kadm.NewClient(thief)
	_, err = admin.CreateTopic(testkit.Within(t), 1, 1, nil, unique(t))
	if !errors.Is(err, kerr.TopicAuthorizationFailed) {
		t.Errorf("create a topic = %v, want TOPIC_AUTHORIZATION_FAILED", err)
	}
	everything := kadm.NewACLs().Topics("_diaspora_ledger").Allow("User:" + user).AllowHosts().Operations(kadm.OpAll)
	if made, err := admin.CreateACLs(testkit.Within(t), everything); err == nil && !errors.Is(made[0].Err, kerr.ClusterAuthorizationFailed) {
		t.Errorf("create an ACL = %+v, %v, want CLUSTER_AUTHORIZATION_FAILED", made, err)
	}
	if _, err := admin.DescribeBrokerConfigs(testkit.Within(t), 1); !errors.Is(err, kerr.ClusterAuthorizationFailed) {
		t.Errorf("describe the broker = %v, want CLUSTER_AUTHORIZATION_FAILED", err)
	}
	if topics, err := admin.ListTopics(testkit.Within(t)); err != nil || len(topics) > 2 {
		t.Errorf("the gateways' user sees the topics %v, %v", topics.Names(), err)
	}
}

// TestServeCheckFinds spoils one setting after the other.
func TestServeCheckFinds(t *testing.T) {
	s := newSite(t)
	wrong := filepath.Join(s.dir, "wrong")
	testkit.Must(t, os.WriteFile(wrong, []byte("no secret of anybody's"), 0o600))
	for setting, spoiled := range map[string]struct {
		value any
		finds string
	}{
		"globus-client-secret-file": {wrong, "fail  Globus Auth: "},
		"kafka-password-file":       {wrong, "fail  Kafka: "},
		"kafka-username":            {"", "fail  Kafka: "},
		"gateway-broker":            {s.settings["kafka-brokers"].([]string)[0], "fail  gateway listener: this listener does not support SASL/OAUTHBEARER\n      set gateway-broker to"},
		"kafka-brokers":             {[]string{s.settings["gateway-broker"].(string)}, "fail  Kafka: this listener does not support SASL/PLAIN\n"},
		"gateway-audience":          {"another cluster", "fail  gateway listener: "},
		"gateway-issuer":            {"another gateway", "fail  gateway listener: "},
		"acl-bootstrap":             {[]string{"127.0.0.1:1"}, "warn  advertised addresses: "},
		"gateway-listen":            {"127.0.0.1:1", "warn  gateway-listen: the gateway listens on port 1, but the brokers send clients to "},
	} {
		t.Run(setting, func(t *testing.T) {
			good := s.settings[setting]
			s.settings[setting] = spoiled.value
			defer func() { s.settings[setting] = good }()
			out, code := s.check(t)
			if failed := strings.HasPrefix(spoiled.finds, "fail"); !strings.Contains(out, spoiled.finds) || failed && code != 2 || !failed && code != 0 {
				t.Errorf("serve --check exits with %d, and does not find %q:\n%s", code, spoiled.finds, out)
			}
			if strings.Contains(out, "no secret of anybody's") {
				t.Error("it shows a secret")
			}
		})
	}
}

// TestServeCheckFindsTheGatewaysUser: the user that gateways read the ledger as cannot administer the
// cluster, and must not be made a super user.
func TestServeCheckFindsTheGatewaysUser(t *testing.T) {
	s := newSite(t)
	s.settings["kafka-username"], s.settings["kafka-password-file"] = s.settings["gateway-kafka-username"], s.settings["gateway-kafka-password-file"]
	delete(s.settings, "gateway-kafka-username")
	delete(s.settings, "gateway-kafka-password-file")
	out, code := s.check(t)
	const advice = "set kafka-username to the super user, not to the gateways' user"
	if code != 2 || !strings.Contains(out, "fail  authorizer: ") || strings.Count(out, advice) < 1 {
		t.Errorf("serve --check exits with %d, and does not find that the user may not administer the cluster:\n%s", code, out)
	}
}

// TestUpBeforeApacheKafka has `diaspora up` stand in front of the Apache Kafka under test: what was
// logged is there again after a restart, and a description of a Kafka that is gone is told as such.
func TestUpBeforeApacheKafka(t *testing.T) {
	dir, program := t.TempDir(), buildCommand(t)
	command := func(args ...string) *exec.Cmd {
		cmd := exec.Command(program, args...)
		cmd.Env = []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH")}
		return cmd
	}
	up := func(kafka string) *exec.Cmd {
		return command("up", "--kafka", kafka, "--http-port", "0", "--globus-port", "0", "-o", "json")
	}
	topic := unique(t)
	for _, steps := range [][][]string{
		{{"topic", "claim", topic}, {"produce", topic, "--value", "one"}},
		{{"produce", topic, "--value", "two"}},
	} {
		running := up(clusterFile(t))
		var talk bytes.Buffer
		running.Stderr = &talk
		stdout, err := running.StdoutPipe()
		testkit.Must(t, err)
		testkit.Must(t, running.Start())
		var where struct{ Brokers []string }
		if err := json.NewDecoder(stdout).Decode(&where); err != nil {
			t.Errorf("up does not start: %v", err)
		}
		if nodes := describe(t).Nodes; len(where.Brokers) != len(nodes) || where.Brokers[0] != nodes[0].Gateway {
			t.Errorf("its gateways are %v, want those of %v", where.Brokers, nodes)
		}
		for _, args := range steps {
			if out, err := command(args...).CombinedOutput(); err != nil {
				t.Errorf("%v: %v\n%s", args, err, out)
			}
		}
		out, err := command("consume", topic, "--from", "start", "--exit", "--quiet").CombinedOutput()
		if want := "one\n"; err != nil || !strings.HasPrefix(string(out), want) || len(steps) == 1 && string(out) != want+"two\n" {
			t.Errorf("consume: %v\n%s", err, out)
		}
		running.Process.Signal(syscall.SIGINT)
		if err := running.Wait(); err != nil {
			t.Fatalf("up ends with %v\n%s", err, talk.Bytes())
		}
	}

	data := testkit.ReadFile(t, clusterFile(t))
	gone := filepath.Join(dir, "gone.json")
	text := string(data)
	for _, broker := range describe(t).Admin.Brokers {
		text = strings.ReplaceAll(text, `"`+broker+`"`, `"`+testkit.FreeAddress(t)+`"`)
	}
	testkit.Must(t, os.WriteFile(gone, []byte(text), 0o600))
	out, err := up(gone).CombinedOutput()
	if exit := (*exec.ExitError)(nil); !asExit(err, &exit) || exit.ExitCode() != 7 || !strings.Contains(string(out), "does not answer") || !strings.Contains(string(out), "make kafka-up") {
		t.Errorf("up before a Kafka that is gone: %v\n%s", err, out)
	}
}

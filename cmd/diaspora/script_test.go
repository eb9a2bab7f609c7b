package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/inside"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// TestMain makes this binary act as the program if it is started under the program's
// name, and as the desktop's browser if it is started as xdg-open.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"diaspora": func() { os.Exit(mainExitCode()) },
		"xdg-open": func() {
			os.Exit(browse(os.Args[1], os.Getenv("BROWSER_USER"), globus.Secret(os.Getenv("GLOBUS_SECRET"))))
		},
	})
}

// browse visits a login page like a user, and returns an exit code.
func browse(address, username string, secret globus.Secret) int {
	_, err := visitLogin(address, username, secret)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// visitLogin opens the address of a login, selects the username there, and returns
// the last page. With the username "nobody" it denies the request. secret is the secret
// of a fabric in this process; the program finds the secret of "diaspora up" by itself.
func visitLogin(address, username string, secret globus.Secret) (page []byte, err error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	q := u.Query()
	q.Set("dev_user", username)
	if username == "nobody" {
		q.Del("dev_user")
		q.Set("dev_deny", "1")
	}
	u.RawQuery = q.Encode()
	req, err := http.NewRequest(http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	if secret != "" {
		req.Header.Set("Authorization", "Bearer "+secret.Reveal())
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	page, err = io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode == http.StatusForbidden {
		err = errors.New("the page to pick an identity from wants to see the secret")
	}
	return page, err
}

// TestScripts runs the scripts in testdata with the program and a real fabric. Their
// own commands, in addition to those of testscript, are below.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			home := filepath.Join(e.WorkDir, "home")
			e.Values["state"] = &scriptState{ups: map[string]*upProcess{}}
			e.Setenv("HOME", home)
			e.Setenv("USER", "mel")
			e.Setenv("TZ", "UTC")
			e.Setenv("GORACE", "atexit_sleep_ms=50") // by default, each process with the race detector waits for a second when it exits
			e.Setenv("TODAY", time.Now().UTC().Format(time.DateOnly))
			e.Setenv("CONFIG", filepath.Join(home, ".config", "diaspora"))
			return os.MkdirAll(home, 0o700)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"fabric":     scriptFabric,
			"as":         scriptAs,
			"exits":      scriptExits,
			"eventually": scriptEventually,
			"paste":      scriptPaste,
			"up":         scriptUp,
			"down":       scriptDown,
			"globus":     scriptGlobus,
			"hidden":     scriptHidden,
			"plain":      scriptPlain,
			"until":      scriptUntil,
			"mode":       scriptMode,
			"thief":      scriptThief,

			"as-before": scriptAsBefore,

			"empty-handed": scriptEmptyHanded, "team": scriptTeam,

			"setenv-from": scriptSetenvFrom, "config-from-json": scriptConfigFromJSON, "same-events": scriptSameEvents,
		},
	})
}

type scriptState struct {
	fabric *fabric.Fabric
	thief  *fabrictest.Thief
	told   diaspora.Discovery // the thief's discovery document
	ups    map[string]*upProcess
	pages  []string // headings of the sections that "page" has run
}

func stateOf(ts *testscript.TestScript) *scriptState { return ts.Value("state").(*scriptState) }

// scriptFabric starts a fabric in this process: "fabric". It sets URL, HOST, BROKERS and GLOBUS,
// and SERVICE_ID and SERVICE_SECRET of a client that may sign in as itself.
func scriptFabric(ts *testscript.TestScript, _ bool, _ []string) {
	f, err := fabric.Start(context.Background(), fabric.Config{Username: "mel@localhost"})
	ts.Check(err)
	ts.Defer(func() { f.Close() })
	stateOf(ts).fabric = f
	ts.Setenv("URL", f.URL())
	ts.Setenv("HOST", strings.TrimPrefix(f.URL(), "http://"))
	ts.Setenv("BROKERS", strings.Join(f.Brokers(), ","))
	ts.Setenv("GLOBUS", f.GlobusURL())
	ts.Setenv("GLOBUS_SECRET", inside.Of(f).GlobusSecret.Reveal())
	secret, err := inside.Of(f).Globus.ClientSecret(globusdev.ServiceClientID)
	ts.Check(err)
	ts.Setenv("SERVICE_ID", globusdev.ServiceClientID)
	ts.Setenv("SERVICE_SECRET", secret.Reveal())
}

// scriptAs logs a user in without a browser: "as PROFILE USERNAME". The profile
// becomes the current one.
func scriptAs(ts *testscript.TestScript, _ bool, args []string) {
	f := stateOf(ts).fabric
	login, err := f.Login(context.Background(), args[1])
	ts.Check(err)
	profiles := diaspora.OpenProfiles(ts.Getenv("CONFIG"))
	ts.Check(storeLogin(profiles, args[0], f, login))
}

func storeLogin(profiles *diaspora.Profiles, name string, f *fabric.Fabric, login *globus.Login) error {
	if err := profiles.Save(diaspora.Profile{Name: name, URL: f.URL(), Discovery: f.Discovery()}); err != nil {
		return err
	}
	store, err := profiles.Store(name)
	if err != nil {
		return err
	}
	if err := store.Save(context.Background(), login); err != nil {
		return err
	}
	return profiles.Use(name)
}

// scriptTeam makes a Globus group of users, with the service of the fabric as a manager, and sets a variable to its ID:
// "team NAME USERNAME …". With the variable set, it adds users to the group, and with ! it removes them.
func scriptTeam(ts *testscript.TestScript, neg bool, args []string) {
	auth := inside.Of(stateOf(ts).fabric).Globus
	id, err := ts.Getenv(args[0]), error(nil)
	if id == "" {
		id, err = auth.AddGroup(globusdev.Group{Name: args[0]})
		ts.Check(err)
		ts.Setenv(args[0], id)
		ts.Check(auth.SetMember(globusdev.GroupMember{Group: id, Identity: globusdev.ResourceServerID + "@clients.auth.globus.org", Role: "manager"}))
	}
	for _, username := range args[1:] {
		m := globusdev.GroupMember{Group: id, Identity: username}
		if neg {
			m.Status = "left"
		}
		ts.Check(auth.SetMember(m))
	}
}

// scriptExits runs a command and checks its exit code: "exits 3 diaspora whoami".
func scriptExits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	if got := exitStatus(ts.Exec(args[1], args[2:]...)); got != want {
		ts.Fatalf("%s exits with %d, want %d", strings.Join(args[1:], " "), got, want)
	}
}

// scriptEventually repeats a command until it exits with the code, for effects that
// take up to a second: "eventually 3 diaspora whoami".
func scriptEventually(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		if exitStatus(ts.Exec(args[1], args[2:]...)) == want {
			return
		}
	}
	ts.Fatalf("%s does not exit with %d within 10 s", strings.Join(args[1:], " "), want)
}

func exitStatus(err error) int {
	exit := (*exec.ExitError)(nil)
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	return -1
}

var (
	loginAddress = regexp.MustCompile(`https?://\S+/v2/oauth2/authorize\S+`)
	loginCode    = regexp.MustCompile(`dev-code-[A-Za-z0-9_-]+`)
)

// scriptPaste logs in by pasting the code that the page shows to a user:
// "paste 0 ada@example.edu diaspora login URL". The number is the exit code.
func scriptPaste(ts *testscript.TestScript, _ bool, args []string) {
	cmd := scriptCommand(ts, args[2], args[3:]...)
	stdin, err := cmd.StdinPipe()
	ts.Check(err)
	stderr, err := cmd.StderrPipe()
	ts.Check(err)
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	ts.Check(cmd.Start())
	var talk bytes.Buffer
	lines := bufio.NewReader(stderr)
	for {
		line, err := lines.ReadString('\n')
		talk.WriteString(line)
		if address := loginAddress.FindString(line); address != "" {
			page, err := visitLogin(address, args[1], globus.Secret(ts.Getenv("GLOBUS_SECRET")))
			ts.Check(err)
			// With spaces around the code, as if pasted from the screen.
			fmt.Fprintf(stdin, "  %s \n", loginCode.Find(page))
			stdin.Close()
		}
		if err != nil {
			break
		}
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := exitStatus(cmd.Wait())
	ts.Stdout().Write(stdout.Bytes())
	ts.Stderr().Write(talk.Bytes())
	if got != want {
		ts.Fatalf("%s exits with %d, want %d:\n%s", strings.Join(args[2:], " "), got, want, talk.Bytes())
	}
}

// scriptCommand prepares a command like the exec command of testscript.
func scriptCommand(ts *testscript.TestScript, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(filepath.SplitList(ts.Getenv("PATH"))[0], name), args...)
	cmd.Dir = ts.MkAbs(".")
	for _, name := range []string{"PATH", "HOME", "USER", "TZ", "TMPDIR", "DIASPORA_CONFIG_DIR", "DIASPORA_PROFILE", "DIASPORA_URL", "DIASPORA_REFRESH", "XDG_DATA_HOME", "DIASPORA_CA_FILE", "GLOBUS_SDK_SERVICE_URL_AUTH", "HTTPS_PROXY"} {
		if v := ts.Getenv(name); v != "" {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	return cmd
}

// upProcess is a running `diaspora up`.
type upProcess struct {
	cmd    *exec.Cmd
	stderr *bytes.Buffer
}

// scriptUp starts `diaspora up` and waits until it is ready: "up NAME --memory …". It
// sets NAME_URL and NAME_PID.
func scriptUp(ts *testscript.TestScript, _ bool, args []string) {
	cmd := scriptCommand(ts, "diaspora", append([]string{"up", "-o", "json"}, args[1:]...)...)
	stdout, err := cmd.StdoutPipe()
	ts.Check(err)
	p := &upProcess{cmd: cmd, stderr: new(bytes.Buffer)}
	cmd.Stderr = p.stderr
	ts.Check(cmd.Start())
	ts.Defer(func() { cmd.Process.Kill() })
	var u upDocument
	if err := json.NewDecoder(stdout).Decode(&u); err != nil {
		cmd.Wait()
		ts.Fatalf("diaspora up: %v:\n%s", err, p.stderr)
	}
	stateOf(ts).ups[args[0]] = p
	ts.Setenv(args[0]+"_URL", u.URL)
	ts.Setenv(args[0]+"_KAFKA", strings.Join(u.Brokers, ","))
	ts.Setenv(args[0]+"_GLOBUS", u.Globus)
	ts.Setenv(args[0]+"_PID", strconv.Itoa(u.PID))
	ts.Setenv(args[0]+"_PORT", u.URL[strings.LastIndex(u.URL, ":")+1:])
}

// scriptDown ends an up with a signal, waits for it, and checks its exit code (-1 for
// KILL): "down NAME INT 0".
func scriptDown(ts *testscript.TestScript, _ bool, args []string) {
	p := stateOf(ts).ups[args[0]]
	signal := map[string]os.Signal{"INT": os.Interrupt, "TERM": syscall.SIGTERM, "KILL": os.Kill}[args[1]]
	ts.Check(p.cmd.Process.Signal(signal))
	got := exitStatus(p.cmd.Wait())
	ts.Stderr().Write(p.stderr.Bytes())
	if want, err := strconv.Atoi(args[2]); err != nil || got != want {
		ts.Fatalf("up exits with %d, want %s:\n%s", got, args[2], p.stderr)
	}
}

// scriptGlobus makes the local Globus Auth misbehave: "globus stop", "globus start",
// "globus revoke USERNAME", "globus expire USERNAME" (access tokens only).
func scriptGlobus(ts *testscript.TestScript, _ bool, args []string) {
	f := stateOf(ts).fabric
	switch args[0] {
	case "stop":
		ts.Check(f.StopGlobus())
	case "start":
		ts.Check(f.StartGlobus())
	case "revoke":
		ts.Check(f.RevokeTokens(args[1]))
	case "expire":
		ts.Check(f.ExpireTokens(args[1]))
		ts.Check(untilRefused(f, diaspora.OpenProfiles(ts.Getenv("CONFIG"))))
	default:
		ts.Fatalf("globus %s: unknown", args[0])
	}
}

// untilRefused waits until the fabric rejects the access token of the current profile. The fabric caches valid tokens
// for a moment.
func untilRefused(f *fabric.Fabric, profiles *diaspora.Profiles) error {
	name, err := profiles.Current()
	if err != nil {
		return err
	}
	store, err := profiles.Store(name)
	if err != nil {
		return err
	}
	login, err := store.Load()
	if err != nil {
		return err
	}
	token, _ := login.Token(globusdev.ResourceServerID)
	client, err := diaspora.NewClient(diaspora.Config{URL: f.URL(), TokenSource: globus.StaticToken(token)})
	for err == nil {
		_, err = client.Identity(context.Background())
	}
	if errors.Is(err, diaspora.ErrUnauthenticated) {
		return nil
	}
	return err
}

// secretShape matches every secret of the local Globus Auth and of access keys.
var secretShape = regexp.MustCompile(`dev-(at|rt|code|secret)-[A-Za-z0-9_-]{8,}|dks_[A-Za-z0-9_-]{8,}`)

// scriptHidden fails if the output of the last command contains a secret.
func scriptHidden(ts *testscript.TestScript, _ bool, _ []string) {
	for _, name := range []string{"stdout", "stderr"} {
		if secretShape.MatchString(ts.ReadFile(name)) {
			ts.Fatalf("%s shows a secret", name)
		}
	}
}

// scriptThief runs the ACL endpoint of an attacker at https://evil.example.com, and at
// EVIL_HTTP without TLS; real.example.org leads to it as well. Its discovery document is the
// fabric's, but for the brokers and what is said: "thief issuer=own scope=urn:… server=…
// brokers=HOST:PORT,… security=plaintext".
func scriptThief(ts *testscript.TestScript, _ bool, args []string) {
	state := stateOf(ts)
	if state.thief == nil {
		state.thief = fabrictest.NewThief(scriptTB{ts}, "*.example.com", "*.example.org")
		ts.Setenv("DIASPORA_CA_FILE", state.thief.CAFile)
		ts.Setenv("HTTPS_PROXY", state.thief.Proxy())
		ts.Setenv("EVIL_HTTP", "http://"+state.thief.HTTP())
	}
	d := state.fabric.Discovery()
	d.Brokers, d.Security, d.CA = []string{state.thief.Gateway()}, "tls", state.thief.CA
	for _, arg := range args {
		name, value, _ := strings.Cut(arg, "=")
		switch name {
		case "issuer":
			d.Globus.Issuer = strings.Replace(value, "own", "http://"+state.thief.HTTP(), 1)
		case "scope":
			d.Globus.Scope = value
		case "server":
			d.Globus.ResourceServer = value
		case "brokers":
			d.Brokers = strings.Split(value, ",")
		default:
			ts.Fatalf("thief %s: unknown", arg)
		}
	}
	state.told = d
	state.thief.Says(d)
}

// scriptAsBefore logs a user in to the thief's fabric like earlier versions, which did not ask for confirmation:
// "as-before PROFILE USERNAME".
func scriptAsBefore(ts *testscript.TestScript, _ bool, args []string) {
	state := stateOf(ts)
	login, err := state.fabric.Login(context.Background(), args[1])
	ts.Check(err)
	profiles := diaspora.OpenProfiles(ts.Getenv("CONFIG"))
	ts.Check(profiles.Save(diaspora.Profile{Name: args[0], URL: "https://evil.example.com", Discovery: state.told}))
	store, err := profiles.Store(args[0])
	ts.Check(err)
	ts.Check(store.Save(context.Background(), login))
}

// scriptEmptyHanded fails if the attacker has received a secret.
func scriptEmptyHanded(ts *testscript.TestScript, neg bool, _ []string) {
	if loot := stateOf(ts).thief.Loot(); (len(loot) == 0) == neg {
		ts.Fatalf("the attacker has %q", loot)
	}
}

// scriptTB adapts a script to testing.TB.
type scriptTB struct{ *testscript.TestScript }

func (ts scriptTB) Helper()            {}
func (ts scriptTB) Fatal(args ...any)  { ts.Fatalf("%s", fmt.Sprint(args...)) }
func (ts scriptTB) Cleanup(end func()) { ts.Defer(end) }
func (ts scriptTB) TempDir() string {
	dir, err := os.MkdirTemp(ts.Getenv("WORK"), "thief-")
	ts.Check(err)
	return dir
}

// scriptPlain uses an access key like a Kafka client that does not know Globus:
// "plain EXIT KEY.json produce TOPIC VALUE", or consume, which ends once it has read the
// value. EXIT is the exit code of the diaspora command for the same result.
func scriptPlain(ts *testscript.TestScript, _ bool, args []string) {
	var key diaspora.NewAccessKey
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[1])), &key))
	client, err := kgo.NewClient(
		kgo.SeedBrokers(stateOf(ts).fabric.Brokers()...),
		kgo.SASL(plain.Auth{User: key.ID, Pass: key.Secret.Reveal()}.AsMechanism()),
		kgo.ConsumeTopics(args[3]),
		kgo.ConsumerGroup("script"),
		kgo.DisableAutoCommit(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
	)
	ts.Check(err)
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	err = client.Ping(ctx)
	switch {
	case err != nil:
	case args[2] == "produce":
		err = client.ProduceSync(ctx, &kgo.Record{Topic: args[3], Value: []byte(args[4])}).FirstErr()
	default:
		fetches := client.PollFetches(ctx)
		if err = fetches.Err(); err == nil && string(fetches.Records()[0].Value) != args[4] {
			ts.Fatalf("%s has %q, want %q", args[3], fetches.Records()[0].Value, args[4])
		}
	}
	got := 0
	switch {
	case errors.Is(err, kerr.SaslAuthenticationFailed):
		got = 3
	case errors.Is(err, kerr.TopicAuthorizationFailed), errors.Is(err, kerr.ClusterAuthorizationFailed):
		got = 4
	case err != nil:
		got = 1
	}
	if want, _ := strconv.Atoi(args[0]); got != want {
		ts.Fatalf("%s: %v", strings.Join(args, " "), err)
	}
}

// scriptUntil repeats a command until its output matches: "until PATTERN diaspora key list".
func scriptUntil(ts *testscript.TestScript, _ bool, args []string) {
	pattern := regexp.MustCompile(args[0])
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		if ts.Exec(args[1], args[2:]...) == nil && pattern.MatchString(ts.ReadFile("stdout")) {
			return
		}
	}
	ts.Fatalf("%s does not print %q within 10 s", strings.Join(args[1:], " "), args[0])
}

// scriptMode checks the mode of a file: "mode 600 FILE".
func scriptMode(ts *testscript.TestScript, _ bool, args []string) {
	info, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := fmt.Sprintf("%o", info.Mode().Perm()); got != args[0] {
		ts.Fatalf("%s has mode %s, want %s", args[1], got, args[0])
	}
}

// scriptSetenvFrom sets a variable to the content of a file: "setenv-from NAME FILE".
func scriptSetenvFrom(ts *testscript.TestScript, _ bool, args []string) {
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile(args[1])))
}

// scriptConfigFromJSON sets a variable to the config_dir in the last output.
func scriptConfigFromJSON(ts *testscript.TestScript, _ bool, args []string) {
	var d loginDocument
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &d))
	ts.Setenv(args[0], d.ConfigDir)
}

// scriptSameEvents fails if two files of records differ, apart from where and when the
// records were stored.
func scriptSameEvents(ts *testscript.TestScript, _ bool, args []string) {
	events := func(name string) string {
		var all strings.Builder
		for line := range strings.Lines(ts.ReadFile(name)) {
			var doc map[string]any
			ts.Check(json.Unmarshal([]byte(line), &doc))
			for _, key := range []string{"topic", "partition", "offset", "stored"} {
				delete(doc, key)
			}
			fmt.Fprintln(&all, doc)
		}
		return all.String()
	}
	if a, b := events(args[0]), events(args[1]); a != b || a == "" {
		ts.Fatalf("the events differ:\n%s\n%s", a, b)
	}
}

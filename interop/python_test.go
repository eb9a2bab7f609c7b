//go:build clients

package interop

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/inside"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

const pythonFolder = "../clients/python"

// TestPythonModule runs the tests of diaspora_streams itself.
func TestPythonModule(t *testing.T) {
	if !present(t, dialect{name: "diaspora_streams", needs: []string{"python3"}}) {
		return
	}
	cmd := exec.Command("python3", "-B", "-W", "error", "-m", "unittest", "discover", "-s", "tests")
	cmd.Dir = pythonFolder
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// pythonToken prints the hash of the token, and that of the refresh token.
const pythonToken = `
import hashlib, diaspora_streams
print(hashlib.sha256(diaspora_streams.from_env().source.token().access_token.encode()).hexdigest())
`

// TestPythonAndGoShareALogin has four programs in Go and four in Python refresh at
// once, with refresh tokens that are good once: a second refresh with the same one
// would throw everybody out. They share a stored profile, and then DIASPORA_REFRESH.
func TestPythonAndGoShareALogin(t *testing.T) {
	if !present(t, dialect{name: "diaspora_streams", needs: []string{"python3"}}) {
		return
	}
	f := start(t, fabric.Config{})
	store, dir := fabrictest.StoredLogin(t, f)
	bin := buildCommand(t)
	for range 3 {
		refreshTogether(t, f, bin, store.Path(), "DIASPORA_PROFILE=test", "DIASPORA_CONFIG_DIR="+dir)
	}

	bare := fabrictest.Login(t, f, ada)
	token, _ := bare.Token(globusdev.ResourceServerID)
	env := []string{"DIASPORA_URL=" + f.URL(), "DIASPORA_REFRESH=" + token.RefreshToken.Reveal(), "DIASPORA_CONFIG_DIR=" + t.TempDir()}
	refreshTogether(t, f, bin, "", env...)
	files, err := filepath.Glob(filepath.Join(env[2][len("DIASPORA_CONFIG_DIR="):], "tokens", "*.json"))
	if err != nil || len(files) != 1 {
		t.Fatalf("token files of one refresh token: %q, %v", files, err)
	}
	for range 2 {
		refreshTogether(t, f, bin, files[0], env...)
	}
}

// refreshTogether lets the token in a file expire and has eight programs ask for
// one at the same time. They must all get the same, after one refresh.
func refreshTogether(t *testing.T, f *fabric.Fabric, bin, file string, env ...string) {
	t.Helper()
	if file != "" {
		expire(t, file)
	}
	before := refreshes(f)
	// The first one holds the lock until the others are there.
	testkit.Must(t, inside.Of(f).Globus.FailNext(1, globusdev.Failure{Path: "/v2/oauth2/token", Delay: 2 * time.Second}))
	var commands []*exec.Cmd
	for i := range 8 {
		cmd := exec.Command(bin, "token")
		if i%2 == 0 {
			cmd = exec.Command("python3", "-B", "-c", pythonToken)
		}
		cmd.Env = append(append(os.Environ(), "PYTHONPATH="+absolute(t, pythonFolder)), env...)
		cmd.Stdout, cmd.Stderr = new(bytes.Buffer), new(bytes.Buffer)
		testkit.Must(t, cmd.Start())
		commands = append(commands, cmd)
	}
	hashes := map[string]int{}
	for i, cmd := range commands {
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v: %s", filepath.Base(cmd.Path), err, cmd.Stderr)
			continue
		}
		got := strings.TrimSpace(cmd.Stdout.(*bytes.Buffer).String())
		if i%2 == 1 {
			got = fmt.Sprintf("%x", sha256.Sum256([]byte(got)))
		}
		hashes[got]++
	}
	if n := refreshes(f) - before; len(hashes) != 1 || n != 1 {
		t.Errorf("eight programs got %d different tokens by %d refreshes, want one by one", len(hashes), n)
	}
}

// expire makes a stored token one whose time is over.
func expire(t *testing.T, file string) {
	t.Helper()
	store, err := globus.OpenStore(file)
	testkit.Must(t, err)
	login, err := store.Load()
	testkit.Must(t, err)
	for i := range login.Tokens {
		login.Tokens[i].Expiry = time.Now().Add(-time.Second)
	}
	testkit.Must(t, store.Save(testkit.Within(t), login))
}

func refreshes(f *fabric.Fabric) (n int) {
	for _, r := range inside.Of(f).Globus.Requests() {
		if r.GrantType == "refresh_token" {
			n++
		}
	}
	return n
}

// TestPythonReadme runs the examples of the README of diaspora_streams as they stand, one after the other.
func TestPythonReadme(t *testing.T) {
	parallel(t)
	if !present(t, dialect{name: "diaspora_streams", needs: []string{"python3"}}) {
		return
	}
	text := testkit.ReadFile(t, filepath.Join(pythonFolder, "README.md"))
	s := inFabric(t, start(t, fabric.Config{}))
	topic := claim(t, s.cfg, 1)
	env, python := s.pythonEnv(t, topic, false), streamsEnv(t, "python3")
	blocks := strings.Split(string(text), "```python\n")[1:]
	const handler, read, others = 3, 4, 3 // examples, and how many Kafka clients follow
	if want := read + 1 + others; len(blocks) != want {
		t.Fatalf("the README has %d examples, want %d", len(blocks), want)
	}
	for i, block := range blocks {
		code, _, _ := strings.Cut(block, "```")
		out, complaints := runToEnd(t, env, "", python, "-c", strings.ReplaceAll(code, `"weather"`, fmt.Sprintf("%q", topic)))
		if i != handler && complaints != "" { // which also writes its records to stderr
			t.Errorf("example %d says %s", i, complaints)
		}
		if i == read && !(strings.Contains(out, `b'station-4' b'{"temperature":21.5}'`) && strings.Contains(out, "count    1005.0")) {
			t.Errorf("the example that reads prints %s", out)
		}
	}
	records := fabrictest.ReadAll(t, s.cfg, topic)
	if got, want := len(records), 1+1003+1+1+others; got != want {
		t.Errorf("the topic has %d records, want %d", got, want)
	}
}

//go:build clients

package interop

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
	"github.com/diaspora-streams/diaspora/interop/clients"
)

// streamsFolder holds the programs that use diaspora_streams.
const streamsFolder = "clients/diaspora-streams"

// pythonOf returns the interpreter of a version, such as 3.9: on PATH, or installed by pyenv. In CI, it must be there.
func pythonOf(t *testing.T, version string) (path string, ok bool) {
	t.Helper()
	candidates := []string{"python" + version}
	root := os.Getenv("PYENV_ROOT")
	if home, err := os.UserHomeDir(); root == "" && err == nil {
		root = filepath.Join(home, ".pyenv")
	}
	installed, _ := filepath.Glob(filepath.Join(root, "versions", version+".*", "bin", "python"))
	for _, path := range append(candidates, installed...) {
		if exec.Command(path, "-c", "import venv").Run() == nil { // pyenv has a python3.9 on PATH even if no version is chosen
			return path, true
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("Python %s is not installed; diaspora_streams promises to run on it", version)
	}
	t.Logf("\n\n*** NOT TESTED: diaspora_streams on Python %s, which is not installed ***\n", version)
	return "", false
}

// streamsEnv returns the Python of an environment with everything that diaspora_streams can use.
func streamsEnv(t *testing.T, python string) string {
	t.Helper()
	venv, err := clients.VirtualEnvOf(python, filepath.Join(streamsFolder, "requirements.txt"))
	testkit.Must(t, err)
	return filepath.Join(venv, "bin", "python")
}

// pythonEnv is the environment of a program that uses diaspora_streams and, on PATH, the command. It signs in
// with a login or with a key file.
func (s place) pythonEnv(t *testing.T, topic string, keyFile bool) []string {
	t.Helper()
	c, err := s.signIn(t, "oauth", topic)
	testkit.Must(t, err)
	if keyFile {
		file := filepath.Join(t.TempDir(), "key.env")
		_, err := s.diaspora(c.env, "key", "create", keyName(topic)+"-file", "--save-env", file)
		testkit.Must(t, err)
		c.env = []string{"DIASPORA_KEY_FILE=" + file, "DIASPORA_CONFIG_DIR=" + t.TempDir()}
	}
	return append(c.env, "TOPIC="+topic, "DIASPORA_STATE_DIR="+t.TempDir(), "PYTHONPATH="+absolute(t, pythonFolder), "PYTHONDONTWRITEBYTECODE=1",
		"PATH="+filepath.Dir(s.bin)+string(os.PathListSeparator)+os.Getenv("PATH"))
}

// pythonLogger is a program that logs numbers with a Logger, and prints each once it is safe.
type pythonLogger struct {
	*program
	name, topic string
	env         []string

	mu      sync.Mutex // guards the input of the program
	feeding sync.WaitGroup
	stop    context.CancelFunc
}

// startPythonLogger starts one, and gives it a number now and then.
func startPythonLogger(t *testing.T, s place, python, transport, name string, keyFile bool, more ...string) *pythonLogger {
	t.Helper()
	topic := claim(t, s.cfg, 1)
	env := append(s.pythonEnv(t, topic, keyFile), more...)
	l := &pythonLogger{name: name, topic: topic, env: env}
	l.program = run(t, env, []string{python, "-u", filepath.Join(streamsFolder, "log.py"), transport})
	ctx, stop := context.WithCancel(t.Context())
	l.stop = stop
	l.feeding.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ctx.Err() == nil; n++ {
			l.tell(strconv.Itoa(n))
			select {
			case <-ctx.Done():
			case <-l.ended:
				return
			case <-tick.C:
			}
		}
	})
	t.Cleanup(func() { stop(); l.feeding.Wait() })
	return l
}

// tell writes a line to the program's input. A program that has ended does not get it.
func (l *pythonLogger) tell(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintln(l.stdin, line)
}

// awaitMore waits until the program has logged some more events.
func (l *pythonLogger) awaitMore(t *testing.T) {
	t.Helper()
	const more = 10
	late := time.After(clientPatience)
	for want := len(l.lines()) + more; len(l.lines()) < want; {
		select {
		case <-l.news:
		case <-l.ended:
			t.Fatalf("%s ended: %v\n%s", l.name, l.err, end(l.said()))
		case <-late:
			t.Fatalf("%s has logged %d events, want %d\n%s", l.name, len(l.lines()), want, end(l.said()))
		}
	}
}

// finish ends the input, and waits for the end of the program.
func (l *pythonLogger) finish(t *testing.T) {
	t.Helper()
	l.stop()
	l.feeding.Wait()
	l.stdin.Close()
	select {
	case <-l.ended:
	case <-time.After(clientPatience):
		t.Fatalf("%s does not end\n%s", l.name, end(l.said()))
	}
}

// TestPythonLogger logs with each transport, on the oldest and on the newest Python, while the fabric is killed and
// started again. With a spool, logging goes on meanwhile, and also survives that its process or the program is killed.
// All events that are safe must arrive, and repeats must have the same ID.
func TestPythonLogger(t *testing.T) {
	parallel(t)
	config := fabric.Config{Dir: t.TempDir()}
	f := start(t, config)
	s := inFabric(t, f)
	var spooled, direct []*pythonLogger
	var killed *pythonLogger
	for i, version := range []string{"3.9", "3.13"} {
		path, ok := pythonOf(t, version)
		if !ok {
			continue
		}
		path = streamsEnv(t, path)
		keyFile := i == 1
		spooled = append(spooled, startPythonLogger(t, s, path, "spool", "spool on "+version, keyFile))
		for _, transport := range []string{"kafka-python", "confluent-kafka"} {
			direct = append(direct, startPythonLogger(t, s, path, transport, transport+" on "+version, keyFile))
		}
		killed = startPythonLogger(t, s, path, "spool", "a program that is killed on "+version, keyFile)
		spooled = append(spooled, killed)
	}
	if killed == nil {
		return
	}
	all := append(spooled, direct...)
	for _, l := range all {
		l.awaitMore(t)
	}
	for _, l := range spooled {
		l.tell("kill child")
		l.awaitMore(t)
		if !strings.Contains(l.said(), "SIGKILL") {
			t.Errorf("%s does not say that its process was killed\n%s", l.name, l.said())
		}
	}
	bring := stopBroker(t, f, config)
	for _, l := range spooled {
		l.awaitMore(t)
	}
	killed.tell("kill self")
	killed.finish(t)
	if killed.err == nil {
		t.Errorf("%s ended as if all were well", killed.name)
	}
	f = bring()
	for _, l := range all {
		if l != killed {
			l.awaitMore(t)
		}
	}
	for _, l := range all {
		if l == killed {
			continue
		}
		if l.finish(t); l.err != nil {
			t.Errorf("%s: %v\n%s", l.name, l.err, end(l.said()))
		}
	}
	for _, l := range spooled { // also of those that were closed before the next attempt to connect after the outage
		testkit.Eventually(t, "the spool of "+l.name+" is drained", func() bool {
			_, err := s.diaspora(l.env, "spool", "drain")
			return err == nil
		})
	}
	cfg := fabrictest.As(t, f, ada)
	for _, l := range all {
		checkLogged(t, l, cfg)
	}
}

// checkLogged compares what a program has logged with what is in its topic.
func checkLogged(t *testing.T, l *pythonLogger, cfg diaspora.Config) {
	t.Helper()
	ids := map[string]string{} // by value
	repeats, lost := 0, 0
	for _, r := range fabrictest.ReadAll(t, cfg, l.topic) {
		value := string(r.Value)
		if id, again := ids[value]; again && id != r.ID || r.ID == "" {
			t.Errorf("%s: the event %s has the IDs %q and %q", l.name, value, id, r.ID)
		} else if again {
			repeats++
		}
		ids[value] = r.ID
	}
	for _, line := range l.lines() {
		if ids[line] == "" {
			lost++
		}
	}
	if lost > 0 || len(l.lines()) == 0 {
		t.Errorf("%s: %d of %d events are lost\n%s", l.name, lost, len(l.lines()), end(l.said()))
	}
	t.Logf("%-40s %d events, %d repeats", l.name, len(l.lines()), repeats)
}

// TestPythonRevoked revokes the access key of a running Logger. With a Kafka client, log says so; with a spool,
// logging goes on, and close says so.
func TestPythonRevoked(t *testing.T) {
	parallel(t)
	if !present(t, dialect{name: "diaspora_streams", needs: []string{"python3"}}) {
		return
	}
	f := start(t, fabric.Config{RevocationInterval: 2 * time.Second})
	s, path := inFabric(t, f), streamsEnv(t, "python3")
	var all []*pythonLogger
	for _, transport := range []string{"spool", "kafka-python", "confluent-kafka"} {
		l := startPythonLogger(t, s, path, transport, transport, true, "LOG_TIMEOUT=15")
		l.awaitMore(t)
		login, err := s.signIn(t, "oauth", l.topic)
		testkit.Must(t, err)
		_, err = s.diaspora(login.env, "key", "revoke", keyName(l.topic)+"-file")
		testkit.Must(t, err)
		all = append(all, l)
	}
	testkit.Eventually(t, "the command reports the revocation", func() bool { return strings.Contains(all[0].said(), "the access key was revoked") })
	all[0].awaitMore(t)
	all[0].finish(t)
	for _, l := range all {
		select {
		case <-l.ended:
		case <-time.After(clientPatience):
			t.Fatalf("%s goes on\n%s", l.name, end(l.said()))
		}
		if last := sentence(l.said(), "_errors.Unauthenticated: "); l.err == nil || !strings.Contains(last, "the access key was revoked") {
			t.Errorf("%s ends with %v, and says %q\n%s", l.name, l.err, last, end(l.said()))
		}
	}
}

// TestPythonSlurm runs the Python program for a Slurm array in docs/batch.md.
func TestPythonSlurm(t *testing.T) {
	parallel(t)
	if !present(t, dialect{name: "diaspora_streams", needs: []string{"python3"}}) {
		return
	}
	_, code, _ := strings.Cut(string(testkit.ReadFile(t, "../docs/batch.md")), "```python\n")
	code, _, _ = strings.Cut(code, "```")
	s := inFabric(t, start(t, fabric.Config{}))
	topic, state := claim(t, s.cfg, 1), t.TempDir()
	env := append(s.pythonEnv(t, topic, false), "rank=4711-7", "DIASPORA_STATE_DIR="+state)
	if _, said := runToEnd(t, env, "", streamsEnv(t, "python3"), "-c", strings.ReplaceAll(code, `"weather"`, fmt.Sprintf("%q", topic))); said != "" {
		t.Errorf("the program says %s", said)
	}
	var want string
	for _, r := range fabrictest.ReadAll(t, s.cfg, topic) {
		if string(r.Key) != "4711-7" {
			t.Errorf("a record has the key %q", r.Key)
		}
		want += fmt.Sprintf(`{"topic":%q,"id":%q,"key":"4711-7"}`+"\n", topic, r.ID)
	}
	if got := string(testkit.ReadFile(t, filepath.Join(state, "receipts.ndjson"))); strings.Count(got, "\n") != 5 || got != want {
		t.Errorf("the receipts are\n%s, and the topic has\n%s", got, want)
	}
	mistyped := exec.CommandContext(t.Context(), streamsEnv(t, "python3"), "-c", code)
	mistyped.Env = append(mistyped.Environ(), env...)
	if said, _ := mistyped.CombinedOutput(); mistyped.ProcessState.ExitCode() != 5 || strings.Contains(string(said), "Traceback") {
		t.Errorf("with a topic that does not exist: %v\n%s", mistyped.ProcessState, said)
	}
}

// TestPythonHandler logs a hundred records with logging, and dies without notice once they are on disk.
func TestPythonHandler(t *testing.T) {
	parallel(t)
	if !present(t, dialect{name: "diaspora_streams", needs: []string{"python3"}}) {
		return
	}
	s := inFabric(t, start(t, fabric.Config{}))
	topic := claim(t, s.cfg, 1)
	p := run(t, s.pythonEnv(t, topic, false), []string{"python3", filepath.Join(streamsFolder, "handle.py")})
	<-p.ended
	if p.err == nil || p.err.Error() != "signal: killed" {
		t.Errorf("the program ended with %v, want a kill\n%s", p.err, p.said())
	}
	testkit.Eventually(t, "all records are in the topic", func() bool {
		records := fabrictest.ReadAll(t, s.cfg, topic)
		return len(records) == 100 && strings.Contains(string(records[99].Value), `"level":"WARN","msg":"record 99"`)
	})
}

// TestPythonChecks tries what diaspora_streams does with each transport, on the oldest and on the newest Python,
// and with older kafka-python.
func TestPythonChecks(t *testing.T) {
	parallel(t)
	s := inFabric(t, start(t, fabric.Config{}))
	t.Run("3.9", func(t *testing.T) { checkPython(t, s, "3.9", false) })
	t.Run("3.13", func(t *testing.T) { checkPython(t, s, "3.13", true) })
	for _, requirements := range []string{"requirements-2.0.txt", "requirements-2.3.txt"} {
		t.Run(requirements, func(t *testing.T) {
			parallel(t)
			if !present(t, dialect{name: "diaspora_streams", needs: []string{"python3"}}) {
				return
			}
			venv, err := clients.VirtualEnv(filepath.Join("clients/kafka-python", requirements))
			testkit.Must(t, err)
			runPythonChecks(t, s, filepath.Join(venv, "bin", "python"), false, "kafka-python")
		})
	}
}

// TestSoftwarePython does the same on the versions of Python in between.
func TestSoftwarePython(t *testing.T) {
	parallel(t)
	s := inFabric(t, start(t, fabric.Config{}))
	for i, version := range []string{"3.10", "3.11", "3.12"} {
		t.Run(version, func(t *testing.T) { checkPython(t, s, version, i == 0) })
	}
}

// checkPython runs the checks on a version of Python, with all transports.
func checkPython(t *testing.T, s place, version string, keyFile bool) {
	parallel(t)
	if path, ok := pythonOf(t, version); ok {
		runPythonChecks(t, s, streamsEnv(t, path), keyFile, "spool", "kafka-python", "confluent-kafka")
	}
}

func runPythonChecks(t *testing.T, s place, python string, keyFile bool, transports ...string) {
	t.Helper()
	topic := claim(t, s.cfg, 2)
	command := append([]string{"-u", filepath.Join(streamsFolder, "checks.py")}, transports...)
	out, _ := runToEnd(t, s.pythonEnv(t, topic, keyFile), "", python, command...)
	t.Logf("passed: %s", strings.Join(strings.Split(strings.TrimSpace(out), "\n"), ", "))
}

//go:build clients

package interop

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/inside"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
	"github.com/diaspora-streams/diaspora/interop/clients"
)

const loggerFolder = "../clients/diaspora_logger"

// originalReadme has the code blocks of the README of diaspora_logger 0.0.8.
const originalReadme = "testdata/diaspora-logger-readme.md"

// script runs Python code as a user of diaspora_logger does.
type script struct {
	at    place
	topic string
	dir   string // the working directory, and that of the profiles
	venv  string
	env   []string
}

// newScript prepares a user who has logged in to nothing.
func newScript(t *testing.T, at place, requirements string) script {
	t.Helper()
	venv, err := clients.VirtualEnv(filepath.Join("clients", "kafka-python", requirements))
	testkit.Must(t, err)
	s := script{at: at, topic: claim(t, at.cfg, 1), dir: t.TempDir(), venv: venv}
	s.env = []string{
		"PATH=" + filepath.Join(venv, "bin") + ":" + filepath.Dir(at.bin) + ":" + os.Getenv("PATH"),
		"PYTHONPATH=" + absolute(t, pythonFolder) + ":" + absolute(t, loggerFolder), "PYTHONDONTWRITEBYTECODE=1",
		"DIASPORA_URL=" + at.fabric.URL(), "DIASPORA_CONFIG_DIR=" + filepath.Join(s.dir, "config"), "DISPLAY=",
	}
	return s
}

// shell runs lines of a shell and then Python code.
func (s script) shell(t *testing.T, lines, code string) *program {
	t.Helper()
	lines = "cd " + s.dir + "\n" + lines + "\nexec python -u -c \"$CODE\""
	return run(t, append(s.env, "CODE="+code), []string{"bash", "-euc", lines})
}

// ends waits until a program ends well, and returns what it printed.
func ends(t *testing.T, p *program) string {
	t.Helper()
	p.stdin.Close()
	select {
	case <-p.ended:
	case <-time.After(clientPatience):
		t.Fatalf("the program does not end:\n%s", p.said())
	}
	if p.err != nil {
		t.Fatalf("%v\n%s", p.err, p.said())
	}
	return p.said()
}

// TestPythonLogger runs the code of the original's README with each version of kafka-python.
func TestPythonLogger(t *testing.T) {
	parallel(t)
	if !present(t, dialect{name: "diaspora_logger", needs: []string{"python3", "bash", "curl"}}) {
		return
	}
	at := inFabric(t, start(t, fabric.Config{}))
	for _, version := range []string{"2.0", "2.3", "3.0"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			newScript(t, at, "requirements-"+version+".txt").runsReadme(t)
		})
	}
}

func (s script) runsReadme(t *testing.T) {
	blocks := section{"the original's README", string(testkit.ReadFile(t, originalReadme))}
	python, shell := blocks.blocks(t, "python", 3), blocks.blocks(t, "bash", 2)
	fill := func(text string, pairs ...string) string {
		filled := strings.NewReplacer(pairs...).Replace(text)
		if filled == text {
			t.Fatalf("the README has none of %q in %q", pairs, text)
		}
		return filled
	}

	said := s.logsIn(t, strings.Replace(python[0], "workflow()", "workflow(save_for_java=True)", 1))
	login := s.printed(t, blocks.block(t, ""), said)
	export := fill(shell[1], "<Globus-Auth-refresh-token>", login["refresh-token"])

	p := s.shell(t, export, fill(python[1], "<claimed-topic>", s.topic))
	if out := ends(t, p); !strings.Contains(out, "topic='"+s.topic+"'") || !strings.Contains(out, "offset 1") {
		t.Errorf("the producer of the README prints %q", out)
	}
	if got := values(fabrictest.ReadAll(t, s.at.cfg, s.topic)); got != `{"message": "Synchronous message"} {"message": "Asynchronous message"}` {
		t.Errorf("the topic has %q", got)
	}
	consumer := s.shell(t, export, fill(python[2], "<consumer-topic>", s.topic, "<some-group-id-of-your-choice>", s.topic))
	s.reads(t, consumer)
}

// reads waits until a consumer prints an event that is logged after it has started.
func (s script) reads(t *testing.T, consumer *program) {
	t.Helper()
	logger := fabrictest.OpenLogger(t, s.at.cfg)
	const event = "an event for the consumer"
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	late := time.After(clientPatience)
	for !strings.Contains(consumer.said(), event) {
		select {
		case <-tick.C:
			fabrictest.Log(t, logger, s.topic, event)
		case <-consumer.ended:
			t.Fatalf("the consumer ended: %v\n%s", consumer.err, consumer.said())
		case <-late:
			t.Fatalf("the consumer prints no event:\n%s", consumer.said())
		}
	}
}

var (
	loginAddress = regexp.MustCompile(`http://\S+/v2/oauth2/authorize\?\S+`)
	loginCode    = regexp.MustCompile(`dev-code-[A-Za-z0-9_-]+`)
)

// logsIn runs code that logs in, opens the address that it prints, and pastes the code from that page.
func (s script) logsIn(t *testing.T, code string) string {
	t.Helper()
	p := s.shell(t, "", code)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for loginAddress.FindString(p.said()) == "" {
		select {
		case <-tick.C:
		case <-p.ended:
			t.Fatalf("the login ended: %v\n%s", p.err, p.said())
		case <-t.Context().Done():
			t.Fatalf("the login prints no address:\n%s", p.said())
		}
	}
	address, err := url.Parse(loginAddress.FindString(p.said()))
	testkit.Must(t, err)
	query := address.Query()
	query.Set("dev_user", ada)
	address.RawQuery = query.Encode()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address.String(), nil)
	testkit.Must(t, err)
	request.Header.Set("Authorization", "Bearer "+inside.Of(s.at.fabric).GlobusSecret.Reveal())
	response, err := http.DefaultClient.Do(request)
	testkit.Must(t, err)
	defer response.Body.Close()
	page, err := io.ReadAll(response.Body)
	testkit.Must(t, err)
	pasted := string(loginCode.Find(page))
	fmt.Fprintf(p.stdin, " %s \n", pasted)
	// A terminal shows what the user types.
	return strings.Replace(loginNote.ReplaceAllString(ends(t, p), ""), "code here: ", "code here: "+pasted+"\n", 1)
}

var (
	loginNote   = regexp.MustCompile(`(?m)^diaspora_logger: .*\n`)
	placeholder = regexp.MustCompile(`<[^<>]+>`)
)

// printed compares the output of a login with the README's, and returns what stands for its placeholders.
func (s script) printed(t *testing.T, want, said string) map[string]string {
	t.Helper()
	got := map[string]string{}
	pattern, names := regexp.QuoteMeta(strings.TrimSpace(want)), []string{}
	pattern = placeholder.ReplaceAllStringFunc(pattern, func(name string) string {
		names = append(names, strings.Trim(name, "<>"))
		return `(\S+)`
	})
	match := regexp.MustCompile("^" + pattern + "\n$").FindStringSubmatch(said)
	if match == nil {
		t.Fatalf("the login prints\n%s\nwant\n%s", said, want)
	}
	for i, name := range names {
		if before, ok := got[name]; ok && before != match[i+1] {
			t.Errorf("the login prints two values for %s", name)
		}
		got[name] = match[i+1]
	}
	return got
}

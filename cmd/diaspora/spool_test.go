package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/spool"
	"github.com/diaspora-streams/diaspora/internal/spool/pool"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// TestProduceSurvivesKill kills produce again and again, two processes at a time, and the
// fabric too. Every event of which a receipt was printed is in the topic at the end, those of
// each process in order, and repeats have the id that they had before. What is repeated is
// what was on its way: a round, however much was sent before it.
func TestProduceSurvivesKill(t *testing.T) {
	t.Parallel()
	const workers, kills = 2, 15
	const round = 2*800_000/paddingBytes + 1 // events of a round on a machine so busy that it looks like a long link
	w := newWorld(t)
	up := w.up(t, "--kafka-port", "0", "--http-port", "0", "--globus-port", "0")
	ports := up.ports()
	w.run(t, "topic", "claim", "weather")

	var mu sync.Mutex // guards receipts
	receipts := map[string]bool{}
	var all sync.WaitGroup
	for worker := range workers {
		all.Go(func() {
			for n := range kills {
				ids := w.produceAndDie(t, fmt.Sprintf("%d-%d", worker, n), 1+rand.IntN(400))
				mu.Lock()
				for _, id := range ids {
					receipts[id] = true
				}
				mu.Unlock()
			}
		})
	}
	for range 3 {
		up.kill(t)
		up = w.up(t, ports...)
	}
	all.Wait()
	if t.Failed() {
		return
	}
	w.run(t, "spool", "drain")
	if status := w.run(t, "status"); status != "no events are pending\n" {
		t.Errorf("status says %q", status)
	}
	if problems := w.run(t, "spool", "verify", "-o", "json"); strings.Count(problems, `"problems":[`) != strings.Count(problems, `"problems":[]`) {
		t.Errorf("spool verify says %s", problems)
	}

	acknowledged := len(receipts)
	arrived, repeats := map[string]string{}, 0
	last, again := map[string]int{}, map[string]int{} // by process: the latest event, and the latest that was repeated
	furthest := 0
	for line := range strings.Lines(w.run(t, "consume", "weather", "--from", "start", "--exit", "-o", "json")) {
		var r struct{ ID, Key, Value string }
		testkit.Must(t, json.Unmarshal([]byte(line), &r))
		number, _, _ := strings.Cut(r.Value, " ")
		n, err := strconv.Atoi(number)
		testkit.Must(t, err)
		if was, ok := arrived[r.ID]; ok {
			if was != r.Key+number {
				t.Fatalf("id %s is of two events", r.ID)
			}
			repeats++
			if n != again[r.Key]+1 { // else it goes on with what it began to repeat
				furthest = max(furthest, last[r.Key]-n+1)
			}
			again[r.Key] = n
			continue
		}
		arrived[r.ID] = r.Key + number
		delete(receipts, r.ID)
		if n != last[r.Key]+1 {
			t.Fatalf("process %s: event %d comes after %d", r.Key, n, last[r.Key])
		}
		last[r.Key], again[r.Key] = n, 0
	}
	if furthest > round {
		t.Errorf("%d events were repeated at once, want at most %d, which are one round", furthest, round)
	}
	if len(receipts) > 0 {
		t.Errorf("%d of %d acknowledged events are lost", len(receipts), acknowledged)
	}
	t.Logf("%d kills: %d events had a receipt, %d arrived, %d repeats, at most %d at once", workers*kills, acknowledged, len(arrived), repeats, furthest)
}

// paddingBytes is how large an event is, about: much less goes into a round than is logged.
const paddingBytes = 8000

// produceAndDie logs numbers until there are so many receipts, and is killed. It returns the
// ids of the receipts.
func (w *world) produceAndDie(t *testing.T, key string, most int) (ids []string) {
	cmd := w.command("produce", "weather", "-k", key, "-o", "json")
	var talk bytes.Buffer
	cmd.Stderr = &talk
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Error(err)
		return nil
	}
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Error(err)
		return nil
	}
	var writing sync.WaitGroup
	padding := strings.Repeat("x", paddingBytes)
	writing.Go(func() {
		for n := 1; ; n++ {
			if _, err := fmt.Fprintln(stdin, n, padding); err != nil {
				return
			}
		}
	})
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		var receipt struct{ ID string }
		if err := json.Unmarshal(lines.Bytes(), &receipt); err != nil {
			break // cut off by the kill
		}
		ids = append(ids, receipt.ID)
		if len(ids) == most {
			cmd.Process.Kill()
		}
	}
	cmd.Wait()
	writing.Wait()
	if len(ids) < most {
		t.Errorf("produce ended after %d of %d receipts:\n%s", len(ids), most, talk.Bytes())
	}
	return ids
}

// TestProduceAdopts has one process send what several others left behind.
func TestProduceAdopts(t *testing.T) {
	w := newWorld(t)
	up := w.up(t, "--kafka-port", "0", "--http-port", "0", "--globus-port", "0")
	w.run(t, "topic", "claim", "weather")
	up.kill(t)
	const processes = 3
	var all sync.WaitGroup
	for n := range processes {
		all.Go(func() { w.produceAndDie(t, fmt.Sprint(n), 50) })
	}
	all.Wait()
	w.up(t, up.ports()...)
	w.run(t, "produce", "weather", "--value", "1", "-k", "last")
	if status := w.run(t, "status"); status != "no events are pending\n" {
		t.Errorf("status says %q", status)
	}
	keys := map[string]bool{}
	for line := range strings.Lines(w.run(t, "consume", "weather", "--from", "start", "--exit", "-o", "json")) {
		var r struct{ Key string }
		testkit.Must(t, json.Unmarshal([]byte(line), &r))
		keys[r.Key] = true
	}
	if len(keys) != processes+1 {
		t.Errorf("events of %d processes arrived, want %d", len(keys), processes+1)
	}
}

// TestAllSpoolsInUse: whoever gets no spool learns that nothing was logged.
func TestAllSpoolsInUse(t *testing.T) {
	d := emptyDesk(t)
	for name, value := range map[string]string{"URL": "http://127.0.0.1:1", "KEY_ID": "key-abcdefghij234567", "KEY_SECRET": "dks_0123456789abcdefghijABCDEFGHIJ_-0123456789a"} {
		d.vars["DIASPORA_"+name] = value
	}
	home, err := d.env.currentPool()
	testkit.Must(t, err)
	for n := range pool.Max {
		s, err := spool.Open(t.Context(), spool.Options{Dir: filepath.Join(home.Dir, fmt.Sprint(n+1)), Subject: "x"})
		testkit.Must(t, err)
		t.Cleanup(func() { s.Close() })
	}
	code, want := d.types(t.Context(), "produce", "weather", "--value", "1"), fmt.Sprintf("all 256 spools in %s are in use; nothing was logged\n", home.Dir)
	if code != 6 || !strings.Contains(d.err.String(), want) {
		t.Errorf("produce ends with %d and says %q, want %q", code, d.err.String(), want)
	}
}

// TestSpoolsAreTidied fails when the spools that the processes of a job leave behind stay for ever, or one goes
// that still has something in it.
func TestSpoolsAreTidied(t *testing.T) {
	d := newDesk(t)
	d.must(t, "topic", "claim", "weather")
	home := filepath.Join(d.vars["DIASPORA_CONFIG_DIR"], "state", "spool", "home")
	login := fabrictest.Login(t, d.fabric, "ada@example.edu")
	for _, name := range []string{"1", "2", "3", "4"} {
		s, err := spool.Open(t.Context(), spool.Options{Dir: filepath.Join(home, name), Subject: login.Identity.Subject})
		if err == nil && name == "3" { // the cluster would not take it
			err = s.Append(t.Context(), spool.Entry{Topic: "weather", ID: "x", Time: time.Now(), Value: []byte("large")})
			var records []spool.Record
			if err == nil {
				records, err = s.Next(t.Context(), 1, 1<<20)
			}
			for _, r := range records {
				err = errors.Join(err, s.Quarantine(r, "too large"))
			}
		}
		if err == nil {
			err = s.Close()
		}
		testkit.Must(t, err)
	}
	d.must(t, "produce", "weather", "--value", "1")
	spools, err := pool.Spools(pool.New(filepath.Join(d.vars["DIASPORA_CONFIG_DIR"], "state"), "home", ""))
	var left []string
	for _, s := range spools {
		left = append(left, filepath.Base(s.Dir))
	}
	if err != nil || !slices.Equal(left, []string{"1", "3"}) {
		t.Errorf("the spools %q stay (%v), want 1, and 3 with what was set aside", left, err)
	}
}

// TestStatusOfSeveralSpools fails when status takes the reason of one spool for that of all.
func TestStatusOfSeveralSpools(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	state := filepath.Join(d.vars["DIASPORA_CONFIG_DIR"], "state")
	for range 2 { // of a mistyped topic
		if code := d.types(t.Context(), "produce", "wether", "--value", "1"); code != 5 {
			t.Fatalf("produce exits with %d, want 5", code)
		}
	}
	d.out.Reset()
	if d.must(t, "status"); strings.Contains(d.out.String(), "of them") {
		t.Errorf("with one reason, status says %q", d.out.String())
	}
	s, err := spool.Open(t.Context(), spool.Options{Dir: filepath.Join(pool.New(state, "home", "").Dir, "7")}) // of a process that sends
	testkit.Must(t, err)
	defer s.Close()
	for _, id := range []string{"a", "b", "c"} {
		testkit.Must(t, s.Append(t.Context(), spool.Entry{Topic: "weather", ID: id}))
	}
	d.out.Reset()
	d.must(t, "status")
	if said := d.out.String(); !regexp.MustCompile(`^5 events pending \(.*\), the oldest for .*: 2 of them: .*wether.*; 3 of them: being sent`).MatchString(said) {
		t.Errorf("with two reasons, status says %q", said)
	}
}

// TestStatusWithoutSpool fails when status does not say where it found no spool: that of a monitor that runs
// as somebody else is all well.
func TestStatusWithoutSpool(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	state := filepath.Join(t.TempDir(), "state")
	d.vars["DIASPORA_STATE_DIR"] = state
	says := func(want string, args ...string) {
		t.Helper()
		d.out.Reset()
		d.must(t, append([]string{"status"}, args...)...)
		if d.out.String() != want+"\n" {
			t.Errorf("status %v says %q, want %q", args, d.out.String(), want)
		}
	}
	says("no events are pending: there is no spool in " + state)
	says("no events are pending: there is no spool in "+filepath.Join(state, "spool", "home"), "--profile", "home")
	d.err.Reset()
	if d.must(t, "spool", "ls"); !strings.Contains(d.err.String(), "there is no spool in "+state+"\n") {
		t.Errorf("spool ls says %q", d.err.String())
	}
	testkit.Must(t, os.Mkdir(state, 0o700))
	says("no events are pending: there is no spool in " + state) // which may be above those of fifty ranks
	testkit.Must(t, os.Mkdir(filepath.Join(state, "spool"), 0o700))
	says("no events are pending: there is no spool in " + state)
	d.must(t, "topic", "claim", "weather")

	// A folder above the state folders of a job's ranks.
	above := t.TempDir()
	d.vars["DIASPORA_STATE_DIR"] = filepath.Join(above, "7")
	if code := d.types(t.Context(), "produce", "wether", "--value", "1"); code != 5 {
		t.Fatalf("produce exits with %d, want 5", code)
	}
	d.vars["DIASPORA_STATE_DIR"] = above
	below := "; the folder 7 in it has some: set DIASPORA_STATE_DIR to that"
	says("no spool in " + above + below)
	for cmd, want := range map[string]int{"ls": 0, "drain": 2} { // nothing was drained
		d.err.Reset()
		if code := d.types(t.Context(), "spool", cmd); code != want || !strings.Contains(d.err.String(), "there is no spool in "+above+below+"\n") {
			t.Errorf("spool %s exits with %d and says %q, want %d", cmd, code, d.err.String(), want)
		}
	}
	// It has a spool itself, of a job without ranks.
	d.must(t, "produce", "weather", "--value", "1")
	says("no events are pending; the folder 7 in " + above + " has other spools: set DIASPORA_STATE_DIR to that")
	d.err.Reset()
	if d.must(t, "spool", "drain"); !strings.Contains(d.err.String(), "the folder 7 in "+above+" has other spools") {
		t.Errorf("spool drain says %q", d.err.String())
	}
	d.vars["DIASPORA_STATE_DIR"] = state
	d.must(t, "produce", "weather", "--value", "1")
	says("no events are pending")

	// What the help says of the fields.
	d.out.Reset()
	d.must(t, "status", "-o", "json")
	var all map[string]any
	testkit.Must(t, json.Unmarshal([]byte(d.out.String()), &all))
	fields := slices.Sorted(maps.Keys(all))
	if want := []string{"bytes", "damaged", "discarded", "dropped", "events", "quarantined", "spools"}; !slices.Equal(fields, want) {
		t.Errorf("status -o json has %v, want %v", fields, want)
	}
	if code := d.types(t.Context(), "produce", "wether", "--value", "1"); code != 5 {
		t.Fatalf("produce exits with %d, want 5", code)
	}
	d.out.Reset()
	d.must(t, "status", "-o", "json")
	if text := d.out.String(); !strings.Contains(text, `"oldest":"`) || !strings.Contains(text, `"why":"`) || !strings.Contains(text, `"events":1`) {
		t.Errorf("status -o json has %s", text)
	}
}

// TestReceiptsNameFiles: from a receipt of a watch one knows which file may be deleted.
func TestReceiptsNameFiles(t *testing.T) {
	d := newDesk(t)
	d.must(t, "topic", "claim", "scans")
	dir := t.TempDir()
	put(t, dir, "a.json", "1")
	for key, args := range map[string][]string{
		`"key":"a.json"`:    nil,
		`"key":"station-4"`: {"-k", "station-4"},
	} {
		d.out.Reset()
		d.must(t, append([]string{"produce", "scans", "--input", "file", filepath.Join(dir, "a.json"), "-o", "json"}, args...)...)
		if want := `,` + key + `,"file":"a.json"}` + "\n"; !strings.HasSuffix(d.out.String(), want) {
			t.Errorf("the receipt is %s, want it to end with %s", d.out.String(), want)
		}
	}
}

// TestDrainBesideALogger: drain waits for a running process that sends its own events, and says so if the process does not.
func TestDrainBesideALogger(t *testing.T) {
	d := newDesk(t)
	state := filepath.Join(t.TempDir(), "state")
	d.vars["DIASPORA_STATE_DIR"] = state
	d.must(t, "topic", "claim", "weather")
	d.fabric.Close()
	d.must(t, "produce", "weather", "--value", "1", "--wait", "0")
	dirs, err := d.spoolsAt(nil)
	if err != nil || len(dirs) != 1 {
		t.Fatalf("the spools are %v, %v", dirs, err)
	}
	info, err := spool.Inspect(dirs[0])
	testkit.Must(t, err)
	s, err := spool.Open(t.Context(), spool.Options{Dir: dirs[0], Subject: info.Subject}) // as a process that logs
	testkit.Must(t, err)
	const left = "1 of them is for process "
	exits := func(code int, want string, flags ...string) {
		t.Helper()
		d.err.Reset()
		d.out.Reset()
		if got := d.types(t.Context(), append([]string{"spool", "drain"}, flags...)...); got != code || !strings.Contains(d.out.String()+d.err.String(), want) {
			t.Errorf("drain %q: exit code %d, %s%s, want %d and %q", flags, got, d.out.String(), d.err.String(), code, want)
		}
	}
	exits(75, "diaspora: 0 events acknowledged, 1 waiting; "+left, "--timeout", "200ms")
	exits(75, "diaspora: 1 event waits in the spool that process ", "--timeout", "200ms", "--quiet")
	exits(75, `{"acknowledged":0,"waiting":0,"in_use":1}`+"\n", "--timeout", "200ms", "-o", "json")

	// It sends the event after drain has looked.
	_, pending, err := d.spools()
	testkit.Must(t, err)
	records, err := s.Next(t.Context(), 10, 1<<20)
	testkit.Must(t, err)
	testkit.Must(t, s.Ack(records[0].Position))
	waiting := &drain{env: d.env}
	if done := waiting.await(t.Context(), pending[0]); !done || waiting.others != 1 || waiting.inUse != 0 {
		t.Errorf("await = %t, with %d sent and %d left, want true, 1 and 0", done, waiting.others, waiting.inUse)
	}
	testkit.Must(t, s.Close())
}

// TestWhyOfThePast: what a process that is gone has said of an outage is told as its words, not as what is now.
func TestWhyOfThePast(t *testing.T) {
	d := newDesk(t)
	d.must(t, "topic", "claim", "weather")
	d.fabric.Close()
	d.must(t, "produce", "weather", "--value", "1", "--wait", "0")
	d.out.Reset()
	d.must(t, "status")
	if !regexp.MustCompile(`: (unavailable: .* \(noted by the last process, \d+s ago\); )?no process sends them\n$`).MatchString(d.out.String()) { // it need not have noted anything
		t.Errorf("status says %q", d.out.String())
	}
	dirs, err := d.spoolsAt(nil)
	if err != nil || len(dirs) != 1 {
		t.Fatalf("the spools are %v, %v", dirs, err)
	}
	testkit.Must(t, os.WriteFile(filepath.Join(dirs[0], "note"), []byte("the king is away"), 0o600))
	d.out.Reset()
	d.must(t, "status")
	if !strings.HasSuffix(d.out.String(), ": the king is away (noted by the last process); no process sends them\n") {
		t.Errorf("status says %q", d.out.String())
	}
}

// TestLatestReason: of several spools, status shows the reason that is at work now, with its time, whatever an older
// spool says.
func TestLatestReason(t *testing.T) {
	d := newDesk(t)
	p, err := d.currentPool()
	testkit.Must(t, err)
	noted := func(number, why string) *spool.Spool {
		t.Helper()
		s, err := spool.Open(t.Context(), spool.Options{Dir: filepath.Join(p.Dir, number), Subject: "ada"})
		testkit.Must(t, err)
		t.Cleanup(func() { s.Close() })
		testkit.Must(t, s.Append(t.Context(), spool.Entry{Topic: "weather", Value: []byte("x"), ID: "id", Time: time.Now()}))
		testkit.Must(t, s.Note(why))
		return s
	}
	status := func(want string) {
		t.Helper()
		d.out.Reset()
		d.must(t, "status")
		if !regexp.MustCompile(`: (\d of them: )?` + want + `(; \d of them: .*)?\n$`).MatchString(d.out.String()) {
			t.Errorf("status says %q, want %q", d.out.String(), want)
		}
	}
	const at, past = ` \(noted \d+s ago\)`, ` \(noted by the last process, \d+s ago\); no process sends them`
	testkit.Must(t, noted("1", "refused").Close())
	testkit.Must(t, noted("2", "no broker").Close())
	status("no broker" + past)
	testkit.Must(t, noted("1", "refused once more").Close())
	status("refused once more" + past)
	used := noted("2", "at work")
	testkit.Must(t, noted("1", "refused again").Close())
	status("at work" + at)
	d.out.Reset()
	d.must(t, "status", "-o", "json")
	if got := d.out.String(); !regexp.MustCompile(`"why":"at work","why_time":"\d{4}-.*Z"`).MatchString(got) {
		t.Errorf("status -o json says %s", got)
	}
	d.out.Reset()
	d.must(t, "spool", "ls")
	if got := d.out.String(); !regexp.MustCompile(`(?s) refused again \(noted by the last process, \d+s ago\); no process sends them\n.* at work \(noted \d+s ago\)\n`).MatchString(got) {
		t.Errorf("spool ls says %s", got)
	}
	testkit.Must(t, used.Note("refused again"))
	if status("refused again" + at); !regexp.MustCompile(`; 3 of them: the same reason` + past + `\n$`).MatchString(d.out.String()) {
		t.Errorf("with the same reason twice, status says %q", d.out.String())
	}
	testkit.Must(t, used.Close())
}

// TestRelativeFolders: messages have absolute paths, because those of a service are read in other folders.
func TestRelativeFolders(t *testing.T) {
	d := newDesk(t)
	here := t.TempDir()
	t.Chdir(here)
	d.must(t, "key", "create", "k", "--save-env", "key.env")
	d.vars["DIASPORA_STATE_DIR"], d.vars["DIASPORA_KEY_FILE"] = "state", "key.env"
	d.err.Reset()
	if code := d.types(t.Context(), "produce", "weather", "--value", "1"); code != 4 { // nobody has claimed it
		t.Fatalf("produce exits with %d, want 4: %s", code, d.err.String())
	}
	state, key := filepath.Join(here, "state"), filepath.Join(here, "key.env")
	for _, want := range []string{"1 event waits in " + state + "\n", "DIASPORA_STATE_DIR=" + state + " DIASPORA_KEY_FILE=" + key + " diaspora spool discard"} {
		if !strings.Contains(d.err.String(), want) {
			t.Errorf("produce says %q, want %q", d.err.String(), want)
		}
	}
	d.out.Reset()
	d.must(t, "spool", "ls", "-o", "json")
	if want := `{"dir":"` + state; !strings.HasPrefix(d.out.String(), want) {
		t.Errorf("spool ls says %q, want %q", d.out.String(), want)
	}
	d.err.Reset()
	testkit.Must(t, os.Chmod("key.env", 0o644))
	if code := d.types(t.Context(), "produce", "weather", "--value", "1"); code != 2 || !strings.Contains(d.err.String(), "\nhint: chmod 600 "+key) {
		t.Errorf("produce exits with %d and says %q", code, d.err.String())
	}
}

// TestPrintedSpoolCommand: the command that a job prints finds the job's spool in a shell that has none of the job's
// variables. Otherwise it would find no events there, and look like a success.
func TestPrintedSpoolCommand(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	d := newDesk(t) // with DIASPORA_CONFIG_DIR
	testkit.Must(t, storeLogin(diaspora.OpenProfiles(d.vars["DIASPORA_CONFIG_DIR"]), "other", d.fabric, fabrictest.Login(t, d.fabric, "ada@example.edu")))
	for name, test := range map[string]struct{ state, flags, variable string }{
		"the configuration folder only": {},
		"a state folder":                {state: "a state"},
		"another profile":               {state: "other", flags: "--profile other"},
		"another profile, by variable":  {state: "third", variable: "other"},
	} {
		job := *d.env
		vars := maps.Clone(d.vars)
		job.getenv = func(name string) string { return vars[name] }
		if test.state != "" {
			vars["DIASPORA_STATE_DIR"] = filepath.Join(t.TempDir(), test.state)
		}
		vars["DIASPORA_PROFILE"] = test.variable
		d.err.Reset()
		if code := run(t.Context(), &job, append([]string{"produce", "weather", "--value", "1"}, strings.Fields(test.flags)...)); code != 5 { // nobody has claimed it
			t.Fatalf("%s: produce exits with %d, want 5: %s", name, code, d.err.String())
		}
		command := regexp.MustCompile(`take them out: "(.*?)diaspora (spool discard weather.*?)--to FILE(.*?)"`).FindStringSubmatch(d.err.String())
		if command == nil {
			t.Fatalf("%s: no command in %s", name, d.err.String())
		}
		typed := map[string]string{}
		for _, set := range regexp.MustCompile(`(\w+)=('[^']*'|\S+) `).FindAllStringSubmatch(command[1], -1) {
			typed[set[1]] = strings.Trim(set[2], "'")
		}
		shell := *d.env
		shell.getenv = func(name string) string { return typed[name] }
		shell.stdout = new(testkit.Text)
		d.err.Reset()
		if code := run(t.Context(), &shell, append(strings.Fields(command[2]+command[3]), "--yes")); code != 0 || !strings.Contains(d.err.String(), "1 event discarded") {
			t.Errorf("%s: %s exits with %d: %s", name, command[0], code, d.err.String())
		}
	}
}

// TestDeadKeyInAFreshHome: a key that was revoked cannot tell whose it was, so a spool of its owner's looks like
// somebody else's. What counts for the person is that the key is dead.
func TestDeadKeyInAFreshHome(t *testing.T) {
	d := newDesk(t)
	home := d.vars["DIASPORA_CONFIG_DIR"]
	key := filepath.Join(t.TempDir(), "key.env")
	d.must(t, "key", "create", "k", "--save-env", key)
	d.vars["DIASPORA_STATE_DIR"] = filepath.Join(t.TempDir(), "state")
	d.vars["DIASPORA_CONFIG_DIR"], d.vars["DIASPORA_KEY_FILE"] = filepath.Join(t.TempDir(), "node"), key
	if code := d.types(t.Context(), "produce", "weather", "--value", "1"); code != 4 { // nobody has claimed it
		t.Fatalf("produce exits with %d, want 4: %s", code, d.err.String())
	}
	delete(d.vars, "DIASPORA_KEY_FILE")
	d.vars["DIASPORA_CONFIG_DIR"] = home
	d.must(t, "key", "revoke", "k")
	d.vars["DIASPORA_CONFIG_DIR"], d.vars["DIASPORA_KEY_FILE"] = filepath.Join(t.TempDir(), "another node"), key
	for _, args := range [][]string{{"spool", "drain"}, {"produce", "weather", "--value", "2"}} {
		d.err.Reset()
		code := d.types(t.Context(), args...)
		said := d.err.String()
		if code != 3 || !strings.Contains(said, "the access key was revoked") || strings.Contains(said, "another identity") || !strings.Contains(said, "\nhint: make another access key") {
			t.Errorf("%v exits with %d, want 3, and says:\n%s", args, code, said)
		}
	}
	delete(d.vars, "DIASPORA_KEY_FILE")
	d.vars["DIASPORA_CONFIG_DIR"] = home
	d.must(t, "topic", "claim", "weather")
	d.out.Reset()
	d.must(t, "spool", "ls", "-o", "json")
	if strings.Count(d.out.String(), `"events":1`) != 2 {
		t.Errorf("the spools are %s, want two with an event each", d.out.String())
	}
}

// TestStatusHints: status suggests to drain a spool only if that can work.
func TestStatusHints(t *testing.T) {
	d := newDesk(t)
	p, err := d.currentPool()
	testkit.Must(t, err)
	cfg, err := d.config()
	testkit.Must(t, err)
	for _, c := range []struct{ subject, why, want string }{
		{cfg.Identity.Subject, "unavailable: no broker", "hint: to send them now: \""},
		{cfg.Identity.Subject, "not authenticated: the access key was revoked; replace the key file", "hint: then send them: \""},
		{spool.UnboundKey + "x", "unavailable: no broker", "hint: to send them now: \""},
		{"00000000-0000-4000-8000-000000000001", "unavailable: no broker", "hint: another identity logged them, and only that identity can send them\n"},
		{cfg.Identity.Subject, "log topic \"weather\": permission denied: no", "hint: the events are sent once that is allowed"},
	} {
		dir := filepath.Join(p.Dir, "1")
		testkit.Must(t, os.RemoveAll(dir))
		s, err := spool.Open(t.Context(), spool.Options{Dir: dir, Subject: c.subject})
		testkit.Must(t, err)
		testkit.Must(t, s.Append(t.Context(), spool.Entry{Topic: "weather", ID: "id"}))
		testkit.Must(t, s.Note(c.why))
		testkit.Must(t, s.Close())
		d.err.Reset()
		if d.must(t, "status"); !strings.HasPrefix(d.err.String(), c.want) || strings.Count(d.err.String(), "\n") != 1 {
			t.Errorf("%q of %s: status says %q, want %q", c.why, c.subject, d.err.String(), c.want)
		}
	}
}

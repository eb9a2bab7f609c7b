package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// tell calls tellMoved for a run after those that the folder has records of.
func tell(d *desk, dir string, now lastRun, again func(...portFlag) string) {
	last := readLastRun(dir)
	d.tellMoved(dir, last, now, again)
}

// TestMoved: a fabric that runs on other ports than last time says so. If another program has the former ports, it does
// not suggest to go back to them, because that is why the user has chosen others.
func TestMoved(t *testing.T) {
	t.Parallel()
	other, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	_, port, _ := net.SplitHostPort(other.Addr().String())
	fabricAt := func(port string) lastRun {
		return lastRun{Info: fabric.Info{URL: "http://127.0.0.1:" + port, Brokers: []string{"127.0.0.1:2"}, Globus: "http://127.0.0.1:3"}}
	}
	cmd := new(env).upCommand()
	testkit.Must(t, cmd.ParseFlags([]string{"--http-port", "0"}))
	move := func() string {
		d, dir := emptyDesk(t), t.TempDir()
		last, err := json.Marshal(fabricAt(port))
		testkit.Must(t, err)
		testkit.Must(t, os.WriteFile(filepath.Join(dir, addressesFile), last, 0o600))
		for range 2 { // the second time, it has not moved
			tell(d, dir, fabricAt("1"), func(ports ...portFlag) string { return upLine(cmd.Flags(), ports) })
		}
		return d.err.String()
	}
	moved := "diaspora: it last ran on " + port + ", 2 and 3; key files and profiles from then have those addresses"
	want := moved + "; " + port + " is taken by another program\n" +
		"hint: make new key files, and keep the ports from now on: \"diaspora up --http-port 1 --kafka-port 2 --globus-port 3\"\n"
	if said := move(); said != want {
		t.Errorf("with another program on the former port, it says\n%s\nwant\n%s", said, want)
	}
	other.Close()
	want = moved + "\nhint: \"diaspora up --http-port " + port + " --kafka-port 2 --globus-port 3\" runs it there again\n"
	if said := move(); !strings.HasSuffix(said, want) {
		t.Errorf("with the former port free, it says\n%s\nwant\n%s", said, want)
	}
}

// TestMovedBack: a user who forgets the ports once, and then follows the hint, is not told that key files have the ports
// of the mistake.
func TestMovedBack(t *testing.T) {
	t.Parallel()
	d, dir := emptyDesk(t), t.TempDir()
	for n, start := range []struct {
		port string
		told bool
	}{{"1", false}, {"4", true}, {"1", false}, {"4", false}, {"5", true}, {"1", false}} {
		d.err.Reset()
		now := lastRun{Info: fabric.Info{URL: "http://127.0.0.1:" + start.port, Brokers: []string{"127.0.0.1:2"}, Globus: "http://127.0.0.1:3"}}
		tell(d, dir, now, func(...portFlag) string { return "diaspora up" })
		if told := strings.Contains(d.err.String(), "it last ran on"); told != start.told {
			t.Errorf("start %d, on port %s, tells %t, want %t: %s", n+1, start.port, told, start.told, d.err.String())
		}
	}
}

// TestOtherCluster: a new cluster in the folder of the last one has none of its topics, and other ports for its gateways.
func TestOtherCluster(t *testing.T) {
	t.Parallel()
	d, dir := emptyDesk(t), t.TempDir()
	for _, gateway := range []string{"2", "5"} {
		info := fabric.Info{URL: "http://127.0.0.1:1", Brokers: []string{"127.0.0.1:" + gateway}, Globus: "http://127.0.0.1:3", Kafka: "/k/cluster.json"}
		tell(d, dir, lastRun{Info: info}, func(...portFlag) string { return "" })
	}
	want := "diaspora: the gateway of the last run was at port 2, and this one is at 5: /k/cluster.json is another cluster, without the topics, events and access keys of that one\n" +
		"hint: have everybody log in again, claim the topics, and make new key files\n"
	if said := d.err.String(); said != want {
		t.Errorf("with another cluster, it says\n%s\nwant\n%s", said, want)
	}
}

// TestOtherBroker: a start with another broker than the last one has none of its topics, and looks as if all was lost. So
// it says so, and how to get them back.
func TestOtherBroker(t *testing.T) {
	t.Parallel()
	d, dir := emptyDesk(t), t.TempDir()
	run := func(kafka string, flags ...string) string {
		t.Helper()
		cmd := new(env).upCommand()
		testkit.Must(t, cmd.ParseFlags(flags))
		d.err.Reset()
		info := fabric.Info{URL: "http://127.0.0.1:1", Brokers: []string{"127.0.0.1:2"}, Globus: "http://127.0.0.1:3", Kafka: kafka}
		tell(d, dir, lastRun{Info: info}, func(ports ...portFlag) string { return upLine(cmd.Flags(), ports) })
		return d.err.String()
	}
	const own = "; each has topics, events and access keys of its own\nhint: to return to those of the last run, end this, and type "
	for n, step := range []struct{ said, want string }{
		{run("/k/cluster.json", "--kafka", "/k/cluster.json"), ""},
		{run("/k/cluster.json"), ""},
		{run("", "--kafka", "none", "--kafka-port", "0", "--http-port", "1", "--sync"), "diaspora: the last run used --kafka /k/cluster.json, and this one uses the embedded broker" + own + "\"diaspora up --http-port 1 --kafka /k/cluster.json\"\n"},
		{run("", "--kafka-port", "0", "--http-port", "1"), ""},
		{run("/k/cluster.json", "--kafka", "cluster.json"), "diaspora: the last run used the embedded broker, and this one uses --kafka /k/cluster.json" + own + "\"diaspora up --kafka none\"\n"},
		{run("/l/cluster.json", "--kafka", "/l/cluster.json"), "diaspora: the last run used --kafka /k/cluster.json, and this one uses --kafka /l/cluster.json" + own + "\"diaspora up --kafka /k/cluster.json\"\n"},
	} {
		if step.said != step.want {
			t.Errorf("run %d says\n%s\nwant\n%s", n+1, step.said, step.want)
		}
	}
	if last := readLastRun(dir); last.embeddedPort() != "2" {
		t.Errorf("the port of the embedded broker is %q, want 2", last.embeddedPort())
	}
}

// TestSameFabric: without flags, a start has the ports, the broker and --sync of the last run. Flags for the embedded broker
// are refused if the last run had an Apache Kafka.
func TestSameFabric(t *testing.T) {
	t.Parallel()
	embedded := lastRun{Info: fabric.Info{URL: "http://127.0.0.1:1", Brokers: []string{"127.0.0.1:2"}, Globus: "http://127.0.0.1:3", SyncWrites: true}}
	apache := embedded
	apache.Kafka = "/k/cluster.json"
	formerly := apache // embedded
	formerly.EmbeddedPort = "6"
	type start struct {
		kafka              string
		http, port, globus uint16
		sync               bool
		refused            string
	}
	for _, c := range []struct {
		last  lastRun
		flags string
		want  start
	}{
		{lastRun{}, "", start{"", 9090, 9092, 9091, false, ""}},
		{embedded, "", start{"", 1, 2, 3, true, ""}},
		{embedded, "--sync=false --kafka-port 4", start{"", 1, 4, 3, false, ""}},
		{embedded, "--kafka /l/cluster.json", start{"/l/cluster.json", 1, 2, 3, true, ""}},
		{apache, "", start{"/k/cluster.json", 1, 9092, 3, true, ""}},
		{apache, "--http-port 5", start{"/k/cluster.json", 5, 9092, 3, true, ""}},
		{apache, "--kafka none", start{"", 1, 9092, 3, true, ""}}, // --sync, if it had it before
		{formerly, "--kafka none", start{"", 1, 6, 3, true, ""}},
		{apache, "--memory", start{"", 1, 9092, 3, true, ""}},
		{apache, "--kafka none --kafka-port 4 --sync=false", start{"", 1, 4, 3, false, ""}},
		{apache, "--kafka-port 4", start{refused: "up: --kafka-port is for the embedded broker, and the last run used --kafka /k/cluster.json"}},
		{apache, "--sync", start{refused: "up: --sync is for the embedded broker, and the last run used --kafka /k/cluster.json"}},
	} {
		o := upFlags(t, c.flags)
		switch err := o.useLast(c.last); {
		case err != nil:
			if text, hints := explanation(err); text != c.want.refused || len(hints) != 1 || !strings.Contains(hints[0], "--kafka none") {
				t.Errorf("up %s: %q and %q, want %q and a hint at --kafka none", c.flags, text, hints, c.want.refused)
			}
		case (start{o.kafka, o.httpPort, o.kafkaPort, o.globusPort, o.syncWrites, ""}) != c.want:
			t.Errorf("up %s: %+v, want %+v", c.flags, o, c.want)
		}
	}
}

// upFlags returns the options of an up with these flags, as up has them when it looks for the last run.
func upFlags(t *testing.T, line string) upOptions {
	t.Helper()
	cmd := new(env).upCommand()
	testkit.Must(t, cmd.ParseFlags(strings.Fields(line)))
	o := upOptions{given: cmd.Flags().Changed}
	o.kafka, _ = cmd.Flags().GetString("kafka")
	if o.kafka == noCluster {
		o.kafka = ""
	}
	o.memory, _ = cmd.Flags().GetBool("memory")
	o.kafkaPort, _ = cmd.Flags().GetUint16(kafkaPort)
	o.httpPort, _ = cmd.Flags().GetUint16(httpPort)
	o.globusPort, _ = cmd.Flags().GetUint16(globusPort)
	o.syncWrites, _ = cmd.Flags().GetBool("sync")
	return o
}

// TestTakenPortsOfAGroup: logins and key files contain the ports of the last run. So if others are taken, up suggests the
// last ones, and if one of the last ones is taken, it does not suggest free ports without saying what that means.
func TestTakenPortsOfAGroup(t *testing.T) {
	t.Parallel()
	var free []string
	for range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		testkit.Must(t, err)
		_, port, _ := net.SplitHostPort(l.Addr().String())
		free = append(free, port)
		l.Close()
	}
	last := func(http, kafka, globus string) lastRun {
		return lastRun{Info: fabric.Info{URL: "http://127.0.0.1:" + http, Brokers: []string{"127.0.0.1:" + kafka}, Globus: "http://127.0.0.1:" + globus}}
	}
	hints := func(was lastRun, flags ...string) []string {
		cmd := new(env).upCommand()
		testkit.Must(t, cmd.ParseFlags(flags))
		kafka, _ := cmd.Flags().GetString("kafka")
		taken := errors.Join(&fabric.ListenError{Service: "the ACL endpoint", Addr: "127.0.0.1:9090", Err: syscall.EADDRINUSE},
			&fabric.ListenError{Service: "Globus Auth", Addr: "127.0.0.1:9091", Err: syscall.EADDRINUSE})
		_, hints := explanation(upError(taken, kafka, was, func(ports ...portFlag) string { return upLine(cmd.Flags(), ports) }))
		return hints
	}
	back := []string{`logins, profiles and key files have the ports of the last run: "diaspora up --http-port ` + free[0] + ` --kafka-port ` + free[1] + ` --globus-port ` + free[2] + `" uses them again`}
	if got := hints(last(free[0], free[1], free[2])); !slices.Equal(got, back) {
		t.Errorf("after a run on other ports, the hints are %q, want %q", got, back)
	}
	back = []string{`logins, profiles and key files have the ports of the last run: "diaspora up --kafka c.json --http-port ` + free[0] + ` --globus-port ` + free[2] + `" uses them again`}
	if got := hints(last(free[0], free[1], free[2]), "--kafka", "c.json"); !slices.Equal(got, back) {
		t.Errorf("after such a run with --kafka, the hints are %q, want %q", got, back)
	}
	// One of the last ports is taken, by an outgoing connection for instance, but not those that this start wanted.
	l, err := net.Listen("tcp", "127.0.0.1:"+free[1])
	testkit.Must(t, err)
	defer l.Close()
	again := `logins, profiles and key files have the ports of the last run, some of which are taken, too: try "diaspora up --http-port ` + free[0] + ` --kafka-port ` + free[1] + ` --globus-port ` + free[2] + `" again in a minute`
	if got := hints(last(free[0], free[1], free[2])); len(got) != 2 || got[0] != again {
		t.Errorf("if one of the last ports is taken, too, the hints are %q, want first %q", got, again)
	}
	end := "end the other programs, because logins, profiles and key files have these ports"
	others := regexp.MustCompile(`^if you cannot: "diaspora up --http-port [1-9]\d* --globus-port [1-9]\d*" uses free ports; keep those from then on, and have everybody log in again there and make new key files$`)
	if got := hints(last("9090", free[1], "9091")); len(got) != 2 || got[0] != end || !others.MatchString(got[1]) {
		t.Errorf("if the last ports are taken, the hints are %q, want %q and one that matches %s", got, end, others)
	}
}

// TestMovedWithKafka: the ports of the gateways are fixed, but the others can change.
func TestMovedWithKafka(t *testing.T) {
	t.Parallel()
	d, dir := emptyDesk(t), t.TempDir()
	cmd := new(env).upCommand()
	testkit.Must(t, cmd.ParseFlags([]string{"--kafka", "/k/cluster.json", "--http-port", "0"}))
	for _, http := range []string{"1", "4"} {
		info := fabric.Info{URL: "http://127.0.0.1:" + http, Brokers: []string{"127.0.0.1:2"}, Globus: "http://127.0.0.1:3", Kafka: "/k/cluster.json"}
		tell(d, dir, lastRun{Info: info}, func(ports ...portFlag) string { return upLine(cmd.Flags(), ports) })
	}
	want := "diaspora: it last ran on 1, 2 and 3; key files and profiles from then have those addresses\n" +
		"hint: \"diaspora up --kafka /k/cluster.json --http-port 1 --globus-port 3\" runs it there again\n"
	if got := d.err.String(); got != want {
		t.Errorf("on other ports, it says\n%s\nwant\n%s", got, want)
	}
}

// TestTakenGateway: with an Apache Kafka, the ports of the gateways are fixed, and --kafka stays in the suggestion for
// the others.
func TestTakenGateway(t *testing.T) {
	t.Parallel()
	taken := func(service, addr string) error {
		return &fabric.ListenError{Service: service, Addr: addr, Err: syscall.EADDRINUSE}
	}
	all := errors.Join(errors.Join(taken("the Kafka gateway", "127.0.0.1:19092"), taken("the ACL endpoint", "127.0.0.1:9090")), nil)
	cmd := new(env).upCommand()
	if err := cmd.ParseFlags([]string{"--kafka", ".kafka/cluster.json"}); err != nil {
		t.Fatal(err)
	}
	err := upError(all, ".kafka/cluster.json", lastRun{}, func(ports ...portFlag) string { return upLine(cmd.Flags(), ports) })
	text, hints := explanation(err)
	if want := "up: port 19092, for the Kafka gateway, and port 9090, for the ACL endpoint, are taken by other programs"; text != want || !errors.Is(err, diaspora.ErrConflict) {
		t.Errorf("upError = %q, want %q", text, want)
	}
	want := regexp.MustCompile(`^end what listens at the gateways; their ports were chosen when the Apache Kafka was made
"diaspora up --kafka \.kafka/cluster\.json --http-port [1-9]\d*" uses a free port$`)
	if got := strings.Join(hints, "\n"); !want.MatchString(got) {
		t.Errorf("the hints are %q, want %s", hints, want)
	}
}

// TestStoppedKafka: a cluster that is stopped has no cluster.json, but still all its events.
func TestStoppedKafka(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "cluster.json")
	missing := fmt.Errorf("find Apache Kafka: %w", fs.ErrNotExist)
	if text, _ := explanation(upError(missing, file, lastRun{}, nil)); text != "up: find Apache Kafka: file does not exist" {
		t.Errorf("without a cluster, up says %q", text)
	}
	testkit.Must(t, os.WriteFile(filepath.Join(dir, "kafka-cluster"), nil, 0o600))
	text, hints := explanation(upError(hinted(missing, "or use another broker"), file, lastRun{}, nil))
	want := []string{`"KAFKA_DIR=` + dir + ` make kafka-up" in the clone starts it again`, "or use another broker"}
	if text != "up: the Apache Kafka of "+file+" is stopped; its events are kept" || !slices.Equal(hints, want) {
		t.Errorf("with a stopped cluster, up says %q and %q, want %q", text, hints, want)
	}
}

// TestFreePorts: the suggested ports are free, and differ. A port that changes with each start would make the key files
// and profiles useless that contain it.
func TestFreePorts(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	defer l.Close()
	_, used, _ := net.SplitHostPort(l.Addr().String())
	taken := map[string]bool{used: true}
	for range 3 {
		port := freePort(used, taken)
		if n, err := strconv.Atoi(port); err != nil || n < 1024 || n >= lowestOutgoing || taken[port] || !portFree(port) {
			t.Errorf("freePort(%s) = %s", used, port)
		}
		taken[port] = true
	}
}

// TestFlagsWithoutEffect: a second start names the flags that differ from what runs, and only those.
func TestFlagsWithoutEffect(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "cluster.json")
	testkit.Must(t, os.WriteFile(file, nil, 0o600))
	link := filepath.Join(t.TempDir(), "link.json")
	testkit.Must(t, os.Symlink(file, link))
	embedded := fabric.Info{PID: 7, URL: "http://127.0.0.1:1", Brokers: []string{"127.0.0.1:2"}, Globus: "http://127.0.0.1:3"}
	apache := embedded
	apache.Brokers, apache.Kafka = []string{"127.0.0.1:4", "127.0.0.1:5"}, file
	synced := embedded
	synced.SyncWrites = true
	for _, c := range []struct {
		runs  fabric.Info
		flags string
		want  string
	}{
		{embedded, "", ""},
		{apache, "", ""},
		{apache, "--kafka " + file, ""},
		{apache, "--kafka " + link, ""},
		{apache, "--kafka /nowhere", "with the Apache Kafka of " + file + ", at http://127.0.0.1:1; --kafka has no effect on it"},
		{embedded, "--kafka " + file, "with the embedded broker, at http://127.0.0.1:1; --kafka has no effect on it"},
		{apache, "--kafka-port 5", ""},
		{apache, "--kafka-port 2", "--kafka-port has no effect"},
		{embedded, "--kafka-port 2 --http-port 1 --globus-port 3 --sync=false", ""},
		{embedded, "--kafka-port 0 --http-port 0 --globus-port 0", ""},
		{embedded, "--http-port 9 --globus-port 1", "--http-port and --globus-port have no effect"},
		{embedded, "--sync", "--sync has no effect"},
		{synced, "--sync", ""},
		{synced, "--sync=false", "--sync has no effect"},
		{apache, "--kafka none", "with the Apache Kafka of " + file + ", at http://127.0.0.1:1; --kafka has no effect on it"},
		{embedded, "--kafka none", ""},
		{synced, "", ""},
	} {
		cmd := new(env).upCommand()
		testkit.Must(t, cmd.ParseFlags(strings.Fields(c.flags)))
		err := upFlags(t, c.flags).hasNoEffect(c.runs, func(ports ...portFlag) string { return upLine(cmd.Flags(), ports) })
		if c.runs.Kafka != "" && err != nil { // the suggestion must be one that this cluster can have
			if _, hints := explanation(err); strings.Contains(hints[0], kafkaPort) {
				t.Errorf("up %s: the hints are %q", c.flags, hints)
			}
		}
		switch {
		case c.want == "" && err != nil:
			t.Errorf("up %s: %v, want nil", c.flags, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, diaspora.ErrConflict)):
			t.Errorf("up %s: %v, want %q", c.flags, err, c.want)
		}
	}
}

// TestApacheKafkaIsDown: while the Apache Kafka of "up --kafka" does not answer, the messages of the fabric say which one
// it is and how to start it again.
func TestApacheKafkaIsDown(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	log := slog.New(kafkaHinter{slog.NewTextHandler(&out, nil), "/k/cluster.json"})
	const hint = `hint="the Apache Kafka of /k/cluster.json does not answer; \"KAFKA_DIR=/k make kafka-up\" in the clone starts it again, with its events"`
	for _, c := range []struct {
		err  any
		want bool
	}{
		{fmt.Errorf("reconcile: %w: connection refused", diaspora.ErrUnavailable), true},
		{&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, true},
		{diaspora.ErrPermission, false},
		{"a text", false},
	} {
		for _, log := range []*slog.Logger{log, log.With("a", 1), log.WithGroup("g")} {
			out.Reset()
			log.Warn("cannot reconcile", "err", c.err)
			if got := out.String(); strings.Contains(got, hint) != c.want || strings.Count(got, "\n") != 1 {
				t.Errorf("with %v: %s, want the hint: %t", c.err, got, c.want)
			}
		}
	}
}

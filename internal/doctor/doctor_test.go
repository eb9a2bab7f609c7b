package doctor

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/inside"
	"github.com/diaspora-streams/diaspora/internal/spool"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// TestAllIsWell runs all checks on a fabric without faults, both in plaintext on one machine and
// behind TLS. Without this test, a check that always fails would look like one that finds
// something.
func TestAllIsWell(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(*world){
		"plaintext": func(*world) {},
		"TLS":       func(w *world) { w.standBehind(w.front(func(*front, *authority) {})) },
		"DIASPORA_REFRESH, and no profile": func(w *world) {
			token, _ := w.login.Token(w.fabric.Discovery().Globus.ResourceServer)
			w.vars["DIASPORA_CONFIG_DIR"] = filepath.Join(w.TempDir(), "elsewhere")
			w.vars["DIASPORA_URL"], w.vars["DIASPORA_REFRESH"] = w.fabric.URL(), token.RefreshToken.Reveal()
		},
		"DIASPORA_URL, and a profile for it": func(w *world) { w.vars["DIASPORA_URL"] = w.fabric.URL() + "/acl" },
		"a client": func(w *world) {
			secret, err := inside.Of(w.fabric).Globus.ClientSecret(globusdev.ServiceClientID)
			testkit.Must(w, err)
			w.vars["DIASPORA_CLIENT_ID"], w.vars["DIASPORA_CLIENT_SECRET"] = globusdev.ServiceClientID, secret.Reveal()
			cfg, err := diaspora.ConfigFromEnv(w.cfg.Getenv)
			testkit.Must(w, err)
			fabrictest.Claim(w, cfg, "readings")
			w.cfg.Topic = "readings"
		},
		"DIASPORA_KEY_FILE, and no profile": func(w *world) {
			w.vars["DIASPORA_CONFIG_DIR"] = filepath.Join(w.TempDir(), "elsewhere")
			w.vars["DIASPORA_KEY_FILE"] = w.keyFile(w.key(diaspora.AccessKeyRequest{Name: "k", Read: true, Write: true}))
		},
		"an access key and no profile, behind TLS": func(w *world) {
			key := w.key(diaspora.AccessKeyRequest{Name: "k", Read: true, Write: true})
			f := w.front(func(*front, *authority) {})
			w.standBehind(f)
			profile, err := diaspora.OpenProfiles(w.vars["DIASPORA_CONFIG_DIR"]).Load("home")
			testkit.Must(w, err)
			w.vars["DIASPORA_CONFIG_DIR"] = filepath.Join(w.TempDir(), "elsewhere")
			w.vars["DIASPORA_CA_FILE"] = w.write("ca.pem", f.ca)
			w.vars["DIASPORA_URL"], w.vars["DIASPORA_KEY_ID"], w.vars["DIASPORA_KEY_SECRET"] = profile.URL, key.ID, key.Secret.Reveal()
		},
		"an access key for one topic": func(w *world) {
			key := w.key(diaspora.AccessKeyRequest{Name: "k", Read: true, Write: true, Topics: []string{"weather"}})
			w.vars["DIASPORA_URL"], w.vars["DIASPORA_KEY_ID"], w.vars["DIASPORA_KEY_SECRET"] = w.fabric.URL(), key.ID, key.Secret.Reveal()
		},
		"events on their way": func(w *world) {
			dir := filepath.Join(w.vars["DIASPORA_STATE_DIR"], "spool", "home", "1")
			s, err := spool.Open(t.Context(), spool.Options{Dir: dir, Subject: w.login.Identity.Subject})
			testkit.Must(w, err)
			w.append(s, "a", "b")
			w.Cleanup(func() { s.Close() })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, fabric.Config{})
			prepare(w)
			report, findings := w.examine()
			if report.Count(OK) != len(checks) || len(report.Findings) != len(checks) {
				t.Fatalf("not all is well:\n%s", report.Text())
			}
			want := []string{"TCP", "sign-in", "produce", "fetch"}
			if strings.HasSuffix(name, "TLS") {
				want = slices.Insert(want, 1, "TLS")
			}
			if key := strings.HasPrefix(name, "an access key"); key && strings.Contains(findings["profile"].Seen, "home") && !strings.HasSuffix(findings["profile"].Seen, "DIASPORA_KEY_ID is used") {
				t.Errorf("with a key, it says of the profile %q", findings["profile"].Seen)
			}
			var legs []string
			for _, l := range findings["consume"].Legs {
				legs = append(legs, l.Name)
				if !(l.MS >= 0 && l.MS < 60_000) || l.Name != "TCP" && l.MS == 0 {
					t.Errorf("%s took %v ms", l.Name, l.MS)
				}
			}
			if !slices.Equal(legs, want) {
				t.Errorf("the legs of the echo are %q, want %q", legs, want)
			}
			if report.Summary() != fmt.Sprintf("%d checks: %d ok", len(checks), len(checks)) {
				t.Errorf("the summary is %q", report.Summary())
			}
		})
	}
}

// TestLooksNamesUp uses names instead of addresses, and requires a leg for the lookup.
func TestLooksNamesUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fabric.Config{})
	w.bootstrap("localhost:" + port(w.fabric.Brokers()[0]))
	_, findings := w.examine()
	legs := findings["sign-in"].Legs
	if len(legs) == 0 || legs[0].Name != "DNS" || findings["consume"].Status != OK {
		t.Errorf("sign-in has the legs %v, and the echo says %q", legs, findings["consume"].Seen)
	}
}

// TestNeedsAreChecks fails if a check needs one that does not exist or that runs later.
func TestNeedsAreChecks(t *testing.T) {
	t.Parallel()
	var before []string
	for _, c := range checks {
		for _, need := range c.needs {
			if !slices.Contains(before, need) {
				t.Errorf("%s needs %s, which is not tried before", c.name, need)
			}
		}
		if slices.Contains(before, c.name) {
			t.Errorf("there are two checks %q", c.name)
		}
		before = append(before, c.name)
	}
}

func checkNames() (names []string) {
	for _, c := range checks {
		names = append(names, c.name)
	}
	return names
}

// TestNothingHangs requires that a check that ignores its context is abandoned.
func TestNothingHangs(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	defer close(release)
	stuck := check{name: "stuck", run: func(context.Context, *visit) Finding {
		<-release
		return ok("").and(func() { t.Error("what came too late was learnt") })
	}}
	v := newVisit(Config{Getenv: func(string) string { return "" }, Timeout: time.Millisecond})
	f := v.try(t.Context(), stuck, nil)
	if f.Status != Failure || f.Seen != "it did not end within 1ms" || f.Next == "" {
		t.Errorf("a check that hangs: %+v", f)
	}
	// Such a check must not delay Ctrl-C either.
	v.Timeout = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(time.Millisecond, cancel)
	if f := v.try(ctx, stuck, nil); f.Status != NotTried || f.Seen != "it was interrupted" {
		t.Errorf("a check that hangs, interrupted: %+v", f)
	}
}

// TestFindingsAreRedacted has a check quote the environment, as errors of other packages may.
func TestFindingsAreRedacted(t *testing.T) {
	t.Parallel()
	v := newVisit(Config{Getenv: func(string) string { return "" }, Environ: []string{"HTTPS_PROXY=http://ada:canary-password@%", "DIASPORA_REFRESH=canary-refresh"}})
	f := v.try(t.Context(), check{name: "talks", run: func(context.Context, *visit) Finding {
		return failure("not canary-refresh", "parse http://ada:canary-password@%%")
	}}, nil)
	if f.Seen != "parse http://[redacted]@%" || f.Next != "not [redacted]" {
		t.Errorf("a check that quotes secrets: %+v", f)
	}
}

// TestInterrupted requires that no further check runs after the context has ended.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fabric.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	report := Examine(ctx, w.cfg, func(f Finding) {
		if f.Check == "DNS" {
			cancel()
		}
	})
	for _, f := range report.Findings[slices.IndexFunc(report.Findings, func(f Finding) bool { return f.Check == "DNS" })+1:] {
		if f.Status != NotTried {
			t.Errorf("%s: %v after the interruption", f.Check, f.Status)
		}
	}
}

// TestLeavesNothingBehind compares the user's files before and after, and looks for the only test
// event.
func TestLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fabric.Config{})
	w.spool(spool.Options{}, func(s *spool.Spool) { w.append(s, "a") })
	root := filepath.Dir(w.vars["DIASPORA_CONFIG_DIR"])
	files := func() []string { // without the folders, whose time changes because doctor tries to write there
		return slices.DeleteFunc(testkit.Snapshot(t, root), func(line string) bool { return strings.Contains(line, " drwx") })
	}
	before := files()
	report, _ := w.examine()
	if report.Count(Failure) > 0 {
		t.Fatal(report.Text())
	}
	if after := files(); !slices.Equal(after, before) {
		t.Errorf("the files were\n%q\nand are\n%q", before, after)
	}
	consumer, err := diaspora.OpenConsumer(t.Context(), w.as(), diaspora.ConsumerOptions{Topics: []string{"weather"}, From: diaspora.Start, Until: diaspora.End})
	testkit.Must(t, err)
	defer consumer.Close(t.Context())
	var values []string
	for r, err := range consumer.Records(t.Context()) {
		testkit.Must(t, err)
		values = append(values, string(r.Value))
		if r.ID == "" || time.Since(r.Time).Abs() > time.Hour {
			t.Errorf("the test event has the id %q and the time %v", r.ID, r.Time)
		}
	}
	if len(values) != 1 || !strings.Contains(values[0], `"diaspora":"doctor"`) {
		t.Errorf("weather has %q", values)
	}
}

// TestTestEventGoesWhereItMay requires that the test event goes only to the named topic or to
// EchoTopic.
func TestTestEventGoesWhereItMay(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fabric.Config{})
	w.claimAs(ada, "aerosols")
	for _, test := range []struct{ claim, named, want string }{
		{"", "", "a test event is written only if you ask for it: --topic aerosols"},
		{"", "weather", "weather, partition 0"},
		{EchoTopic, "", EchoTopic + ", partition 0"},
		{"", "weather", "weather, partition 0"},
	} {
		if test.claim != "" {
			w.claimAs(ada, test.claim)
		}
		w.cfg.Topic = test.named
		if _, findings := w.examine(); !strings.HasPrefix(findings["produce"].Seen, test.want) {
			t.Errorf("with --topic %q produce says %q, want %q", test.named, findings["produce"].Seen, test.want)
		}
	}
}

// TestKeyWithFewerRights checks what an access key may be used for, and why the rest is not
// checked.
func TestKeyWithFewerRights(t *testing.T) {
	t.Parallel()
	w := newWorld(t, fabric.Config{})
	w.claimAs(ada, "aerosols")
	w.vars["DIASPORA_CONFIG_DIR"] = filepath.Join(w.TempDir(), "elsewhere")
	for _, test := range []struct {
		key   diaspora.AccessKeyRequest
		named string
		want  map[string]string // by check
	}{
		{diaspora.AccessKeyRequest{Read: true, Topics: []string{"weather"}}, "", map[string]string{
			"identity": "it may read weather", "topics": "weather is tried", "topic": "weather has 1 partition",
			"write": "the access key is for reading only", "read": "you may read weather", "produce": "the access key is for reading only",
		}},
		{diaspora.AccessKeyRequest{Write: true, Topics: []string{"aerosols", "weather"}}, "weather", map[string]string{
			"identity": "it may write aerosols, weather", "topics": "--topic names weather", "write": "you may write to weather",
			"read": "the access key is for writing only", "produce": "weather, partition 0", "consume": "the access key is for writing only",
		}},
		{diaspora.AccessKeyRequest{Read: true, Write: true}, "", map[string]string{
			"identity": "it may read and write all topics of its owner", "topics": "cannot list them; --topic names one to try", "topic": "there is no topic to try",
		}},
	} {
		test.key.Name = fmt.Sprintf("k%d%s", len(test.key.Topics), test.named)
		w.vars["DIASPORA_KEY_FILE"], w.cfg.Topic = w.keyFile(w.key(test.key)), test.named
		report, findings := w.examine()
		for check, want := range test.want {
			if !strings.Contains(findings[check].Seen, want) {
				t.Errorf("%s says %q, want %q", check, findings[check].Seen, want)
			}
		}
		if report.Count(Failure) != 0 || report.Count(Warning) != 0 {
			t.Errorf("not all is well:\n%s", report.Text())
		}
	}
}

// TestDocumented compares docs/doctor.md with the list of checks.
func TestDocumented(t *testing.T) {
	t.Parallel()
	text := testkit.ReadFile(t, "../../docs/doctor.md")
	var documented []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|([^|]+)\\|([^|]+)\\|([^|]+)\\|$").FindAllStringSubmatch(string(text), -1) {
		documented = append(documented, row[1])
		for _, cell := range row[2:] {
			if len(strings.TrimSpace(cell)) < 4 {
				t.Errorf("docs/doctor.md leaves something out about %s", row[1])
			}
		}
	}
	if !slices.Equal(documented, checkNames()) {
		t.Errorf("docs/doctor.md has the checks\n%q, want\n%q", documented, checkNames())
	}
	if n := fmt.Sprintf("%d checks", len(checkNames())); !strings.Contains(string(text), n) {
		t.Errorf("docs/doctor.md does not say that there are %s", n)
	}
}

// TestVariables fails if the program reads a variable that this package does not know.
func TestVariables(t *testing.T) {
	t.Parallel()
	name := regexp.MustCompile(`"((?:DIASPORA|GLOBUS_SDK)_[A-Z_]+)"`)
	read := map[string]bool{}
	for _, pattern := range []string{"../../*.go", "../../cmd/diaspora/*.go", "../../globus/*.go", "../../internal/accesskey/*.go"} {
		sources, err := filepath.Glob(pattern)
		if err != nil || len(sources) < 3 {
			t.Fatalf("%s: %d files, %v", pattern, len(sources), err)
		}
		for _, source := range sources {
			if strings.HasSuffix(source, "_test.go") {
				continue
			}
			text := testkit.ReadFile(t, source)
			for _, m := range name.FindAllStringSubmatch(string(text), -1) {
				read[m[1]] = true
			}
		}
	}
	if len(read) < 10 {
		t.Fatalf("only %v are read", read)
	}
	for name := range read {
		if _, known := variables[name]; !known && !strings.HasPrefix(name, serveVariables) {
			t.Errorf("the program reads %s, and the doctor does not know it", name)
		}
	}
}

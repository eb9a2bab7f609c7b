package fabric_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// The program of TestDistinctAfterCrashes logs crashEvents events, and saves its position after every
// crashCheckpoint events.
const (
	crashEvents     = 3000
	crashCheckpoint = 100
)

// TestCrashingProgram is not a test but the program that TestDistinctAfterCrashes runs and kills. It logs
// the numbers from DIASPORA_TEST_FROM on, and prints those that are acknowledged.
func TestCrashingProgram(t *testing.T) {
	if os.Getenv("DIASPORA_TEST_FROM") == "" {
		return // an ordinary test run
	}
	from, err := strconv.Atoi(os.Getenv("DIASPORA_TEST_FROM"))
	testkit.Must(t, err)
	cfg, err := diaspora.ConfigFromEnv(os.Getenv)
	testkit.Must(t, err)
	logger, err := diaspora.OpenLogger(t.Context(), cfg)
	testkit.Must(t, err)
	for i := from; i < crashEvents; i++ {
		event := diaspora.Event{Topic: "weather", Key: []byte("k"), Value: fmt.Append(nil, i), ID: fmt.Sprint("event-", i)}
		logger.Send(event, func(_ diaspora.Record, err error) {
			if err == nil {
				fmt.Printf("acknowledged %d\n", i)
			}
		})
	}
	testkit.Must(t, logger.Close(t.Context()))
}

// TestDistinctAfterCrashes repeatedly kills a program, which then logs some of its events again. It checks
// that Distinct returns each event once and in order.
func TestDistinctAfterCrashes(t *testing.T) {
	f := fabrictest.Start(t, fabric.Config{Dir: t.TempDir()})
	login := fabrictest.Login(t, f, ada)
	token, _ := login.Token(f.Discovery().Globus.ResourceServer)
	cfg := fabrictest.As(t, f, ada)
	fabrictest.Claim(t, cfg, "weather")
	exe, err := os.Executable()
	testkit.Must(t, err)
	checkpoint, crashes := 0, 0
	for checkpoint < crashEvents-crashCheckpoint {
		ctx, kill := context.WithCancel(testkit.Within(t))
		cmd := exec.CommandContext(ctx, exe, "-test.run=^TestCrashingProgram$")
		cmd.Env = append(os.Environ(), "DIASPORA_CONFIG_DIR="+t.TempDir(), "DIASPORA_URL="+f.URL(),
			"DIASPORA_REFRESH="+token.RefreshToken.Reveal(), fmt.Sprint("DIASPORA_TEST_FROM=", checkpoint))
		out, err := cmd.StdoutPipe()
		testkit.Must(t, err)
		testkit.Must(t, cmd.Start())
		begin := checkpoint
		for lines := bufio.NewScanner(out); lines.Scan(); {
			number, ok := strings.CutPrefix(lines.Text(), "acknowledged ")
			if !ok {
				continue
			}
			n, err := strconv.Atoi(number)
			testkit.Must(t, err)
			checkpoint = n / crashCheckpoint * crashCheckpoint
			if n == begin+5*crashCheckpoint+crashCheckpoint/2 {
				kill() // with SIGKILL
				crashes++
				break
			}
		}
		cmd.Wait()
		if checkpoint == begin {
			t.Fatalf("the program acknowledged nothing: %v", cmd.ProcessState)
		}
		kill()
	}

	consumer := fabrictest.OpenConsumer(t, cfg, diaspora.ConsumerOptions{Topics: []string{"weather"}, Until: diaspora.End})
	repeats := 0
	counted := func(yield func(diaspora.Record, error) bool) {
		for r, err := range consumer.Records(testkit.Within(t)) {
			repeats++
			if !yield(r, err) {
				return
			}
		}
	}
	next := 0
	for r, err := range diaspora.Distinct(counted, crashEvents) {
		testkit.Must(t, err)
		if want := fmt.Sprint(next); string(r.Value) != want {
			t.Fatalf("event %s comes in place of %s", r.Value, want)
		}
		next++
		repeats--
	}
	t.Logf("%d crashes, %d repeats", crashes, repeats)
	if next != crashEvents || crashes < 3 || repeats < crashes {
		t.Errorf("%d events came, with %d repeats after %d crashes; want %d, and some of both", next, repeats, crashes, crashEvents)
	}
}

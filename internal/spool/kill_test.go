package spool

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestMain lets the test binary also act as the process that is killed.
func TestMain(m *testing.M) {
	if role := os.Getenv("SPOOL_TEST_ROLE"); role != "" {
		if err := roles[role](os.Getenv("SPOOL_TEST_DIR")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

var roles = map[string]func(dir string) error{"log": logUntilKilled, "own": ownUntilTold}

// child starts this test binary as the process with that role.
func child(t *testing.T, role, dir string) (*exec.Cmd, *bufio.Scanner, io.WriteCloser) {
	t.Helper()
	return testkit.Rerun(t, "SPOOL_TEST_ROLE="+role, "SPOOL_TEST_DIR="+dir)
}

func killOptions(dir string) Options {
	return Options{Dir: dir, SegmentBytes: 8 << 10, MaxBytes: 256 << 10, Subject: "ada"}
}

const killWriters = 4

// kills is how often a process is killed: a thousand times take about ten seconds. Under the race
// detector it is a tenth of that, because a process takes ten times as long to start. Kills do not
// help to find data races anyway.
const kills = 1000

// logUntilKilled appends with several writers, and prints each event that is durable. It also reads
// the pending events, and prints each one before it acknowledges it.
func logUntilKilled(dir string) error {
	s, err := Open(context.Background(), killOptions(dir))
	if err != nil {
		return err
	}
	var out sync.Mutex
	say := func(format string, args ...any) {
		out.Lock()
		defer out.Unlock()
		fmt.Fprintf(os.Stdout, format+"\n", args...)
	}
	failed := make(chan error)
	run := fmt.Sprint(os.Getpid(), ".", time.Now().UnixNano())
	for w := range killWriters {
		go func() {
			for n := 0; ; n++ {
				id := fmt.Sprintf("%s.%d %d", run, w, n)
				if err := s.Append(context.Background(), Entry{Topic: "t", ID: id, Value: []byte(strings.Repeat(id, 1+n%30))}); err != nil {
					failed <- err
				}
				say("durable %s", id)
			}
		}()
	}
	go func() {
		for {
			records, err := s.Next(context.Background(), 8, 1<<20)
			if err != nil {
				failed <- err
			}
			var positions []uint64
			for _, r := range records {
				say("sent %s", r.ID)
				positions = append(positions, r.Position)
			}
			if err := s.Ack(positions...); err != nil {
				failed <- err
			}
		}
	}()
	return <-failed
}

// TestKill kills a process that logs, again and again. Then it checks that every event that a
// process printed as durable was sent, by that process or a later one, in order, and counts the
// repeats.
func TestKill(t *testing.T) {
	t.Parallel()
	kills := testkit.Scaled(t, "SPOOL_KILLS", kills)
	path := dir(t)
	next := map[string]int{} // the next event to be sent, by writer
	durable := map[string]int{}
	repeats, events := 0, 0
	sent := func(id string, first bool) {
		var writer string
		var n int
		if _, err := fmt.Sscan(id, &writer, &n); err != nil {
			t.Fatalf("%q is no event", id)
		}
		switch {
		case n == next[writer]:
			next[writer]++
			events++
		case n < next[writer] && first:
			repeats++
		default:
			t.Fatalf("writer %s: event %d was sent, want %d", writer, n, next[writer])
		}
	}
	for range kills {
		cmd, lines, _ := child(t, "log", path)
		// The parent reads all output. It waits for a randomly chosen line, then kills the process.
		after := 1 + rand.IntN(150)
		fresh := 0 // lines that say "sent" and are no repeats; repeats come first and are at most one batch
		for n := 0; lines.Scan(); n++ {
			if n == after {
				testkit.Must(t, cmd.Process.Kill())
			}
			what, id, _ := strings.Cut(lines.Text(), " ")
			switch what {
			case "durable":
				var writer string
				var n int
				fmt.Sscan(id, &writer, &n)
				durable[writer] = n + 1
			case "sent":
				fresh++
				sent(id, fresh <= 8)
			default:
				t.Fatalf("%q", lines.Text())
			}
		}
		var exit *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != -1 {
			t.Fatalf("the process ended by itself: %v", err)
		}
	}
	s := mustOpen(t, killOptions(path))
	for i, r := range drain(t, s) {
		sent(r.ID, i < 8)
	}
	for writer, n := range durable {
		if next[writer] < n {
			t.Errorf("writer %s: %d events were durable, %d were sent", writer, n, next[writer])
		}
	}
	if st := s.Stats(); st.Damaged != 0 {
		t.Errorf("%+v, want no damage", st)
	}
	if repeats > 8*(kills+1) {
		t.Errorf("%d repeats, want at most one batch of 8 for each kill", repeats)
	}
	t.Logf("%d kills, %d events, %d repeats", kills, events, repeats)
}

// ownUntilTold opens the spool, prints whether it owns it, and if so keeps it until its input ends.
func ownUntilTold(dir string) error {
	s, err := Open(context.Background(), Options{Dir: dir})
	switch {
	case errors.Is(err, ErrInUse):
		fmt.Println("lost")
		return nil
	case err != nil:
		return err
	}
	fmt.Println("won")
	io.Copy(io.Discard, os.Stdin)
	return s.Close()
}

// TestOneOwner lets processes race for a spool. One wins. When it is killed, the next one gets the
// spool at once.
func TestOneOwner(t *testing.T) {
	t.Parallel()
	path := dir(t)
	processes := testkit.Scaled(t, "SPOOL_OWNERS", 25)
	for range 2 {
		type racer struct {
			cmd   *exec.Cmd
			lines *bufio.Scanner
		}
		var racers []racer
		for range processes {
			cmd, lines, _ := child(t, "own", path)
			racers = append(racers, racer{cmd, lines})
		}
		var winner *exec.Cmd
		for _, r := range racers {
			if !r.lines.Scan() {
				t.Fatalf("a process said nothing: %v", r.lines.Err())
			}
			if r.lines.Text() == "lost" {
				if err := r.cmd.Wait(); err != nil {
					t.Error(err)
				}
				continue
			}
			if winner != nil {
				t.Fatal("two processes have the spool")
			}
			winner = r.cmd
		}
		if winner == nil {
			t.Fatal("nobody has the spool")
		}
		_, err := Open(t.Context(), Options{Dir: path})
		if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), fmt.Sprint(winner.Process.Pid)) {
			t.Errorf("Open: %v, want ErrInUse by process %d", err, winner.Process.Pid)
		}
		testkit.Must(t, winner.Process.Kill())
		winner.Wait()
	}
	s := mustOpen(t, Options{Dir: path})
	if _, err := Open(t.Context(), Options{Dir: path}); !errors.Is(err, ErrInUse) {
		t.Errorf("Open twice in one process: %v, want ErrInUse", err)
	}
	if _, err := Verify(path); err != nil { // must not release the lock
		t.Error(err)
	}
	cmd, lines, _ := child(t, "own", path)
	if !lines.Scan() || lines.Text() != "lost" {
		t.Errorf("another process said %q", lines.Text())
	}
	cmd.Wait()
	mustClose(t, s)
}

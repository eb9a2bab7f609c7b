//go:build linux

package fabric_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/diaspora-streams/diaspora/internal/history"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// shell is a running diaspora command.
type shell struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines sync.WaitGroup
}

// shell starts a command. It calls line for each line on standard output.
func (e *endurance) shell(a *actor, at home, line func([]byte), args ...string) (*shell, error) {
	s := &shell{cmd: exec.Command(e.binary, args...)}
	s.cmd.Env, s.cmd.Stderr = at.env(), a
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	a.didAt.Store(time.Now().UnixNano()) // the time before the process starts does not count as silence
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	s.lines.Go(func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			line(lines.Bytes())
		}
	})
	return s, nil
}

// end sends a signal, unless it is 0, and waits for the end of the process.
func (s *shell) end(signal syscall.Signal) error {
	if signal != 0 {
		s.cmd.Process.Signal(signal)
	}
	s.lines.Wait()
	return s.cmd.Wait()
}

// ndjson encodes an event as a line of input for diaspora produce.
func ndjson(event history.Event) []byte {
	line, err := json.Marshal(map[string]string{"key": event.Key, "value": string(event.Value()), "id": event.ID})
	if err != nil {
		panic(err)
	}
	return append(line, '\n')
}

// receipts returns a function that reads the receipts that the command prints, and notes their events
// as acknowledged.
func (e *endurance) receipts(a *actor) func(line []byte) {
	return func(line []byte) {
		var receipt struct{ ID string }
		if err := json.Unmarshal(line, &receipt); err != nil {
			return // an incomplete line of a process that was killed
		}
		event, err := eventOf(receipt.ID)
		if err != nil {
			e.Errorf("%s: receipt %s: %v", a.name, line, err)
			return
		}
		e.acknowledge(a, event)
	}
}

// eventOf returns the event with an ID, which is its key and its number.
func eventOf(id string) (history.Event, error) {
	dash := max(0, strings.LastIndexByte(id, '-'))
	n, err := strconv.Atoi(strings.TrimPrefix(id[dash:], "-"))
	return history.Event{Key: id[:dash], N: n, ID: id}, err
}

// produce logs one event after another with the command, and kills the command now and then. Without a
// spool, a request of a process that was killed may still be on its way when the next process begins. So
// each process then has a key of its own, because only the events of one process are in order.
func (e *endurance) produce(a *actor, at home, flags ...string) {
	args := append([]string{"produce", "weather", "--input", "ndjson", "-o", "json"}, flags...)
	n := 0
	for run := 0; e.writing.Err() == nil; run++ {
		key := a.name
		if slices.Contains(flags, "--no-spool") {
			key = fmt.Sprintf("%s.%d", a.name, run)
		}
		s, err := e.shell(a, at, e.receipts(a), args...)
		if err != nil {
			e.Error(err)
			return
		}
		for range 100 + a.random.IntN(500) {
			if e.writing.Err() != nil {
				break
			}
			if _, err := s.in.Write(ndjson(history.Event{Key: key, N: n, ID: fmt.Sprintf("%s-%d", key, n)})); err != nil {
				a.says(err.Error())
				break
			}
			n++
			time.Sleep(time.Duration(a.random.IntN(20)) * time.Millisecond)
		}
		if a.random.IntN(2) == 0 && e.writing.Err() == nil {
			s.end(syscall.SIGKILL)
			s.in.Close()
			continue
		}
		s.in.Close()
		if err := s.end(0); err != nil {
			a.says(err.Error())
		}
	}
	e.drain(a, at)
}

// drain sends the pending events in the spools of a home.
func (e *endurance) drain(a *actor, at home) {
	cmd := exec.Command(e.binary, "spool", "drain")
	cmd.Env = at.env()
	if out, err := cmd.CombinedOutput(); err != nil {
		e.Errorf("%s: diaspora spool drain: %v\n%s", a.name, err, out)
	}
}

// watch adds files to a folder that the command watches. Now and then it replaces the folder or kills
// the command.
func (e *endurance) watch(a *actor, at home) {
	folder := filepath.Join(at.dir, "scans")
	if err := os.Mkdir(folder, 0o700); err != nil {
		e.Error(err)
		return
	}
	var mu sync.Mutex // guards waiting
	waiting := map[string]bool{}
	acknowledge := e.receipts(a)
	receipt := func(line []byte) {
		acknowledge(line)
		var r struct{ ID string }
		json.Unmarshal(line, &r)
		mu.Lock()
		defer mu.Unlock()
		delete(waiting, r.ID)
	}
	start := func() *shell {
		s, err := e.shell(a, at, receipt, "produce", "weather", "--watch", folder, "--settle", "0", "--input", "ndjson", "-o", "json")
		testkit.Must(e, err)
		return s
	}
	s := start()
	logged := func() bool {
		for e.Context().Err() == nil {
			mu.Lock()
			left := len(waiting)
			mu.Unlock()
			if left == 0 {
				return true
			}
			if a.late.Load() {
				return false
			}
			time.Sleep(10 * time.Millisecond)
		}
		return false
	}
	for n := 0; e.writing.Err() == nil; n++ {
		event := history.Event{Key: a.name, N: n, ID: fmt.Sprintf("%s-%d", a.name, n)}
		mu.Lock()
		waiting[event.ID] = true
		mu.Unlock()
		temporary := filepath.Join(folder, ".scan")
		if err := os.WriteFile(temporary, ndjson(event), 0o600); err != nil {
			e.Error(err)
		}
		if err := os.Rename(temporary, filepath.Join(folder, fmt.Sprintf("%08d.json", n))); err != nil {
			e.Error(err)
		}
		time.Sleep(time.Duration(a.random.IntN(50)) * time.Millisecond)
		if a.random.IntN(30) == 0 {
			if !logged() {
				break
			}
			if a.random.IntN(2) == 0 {
				if err := os.RemoveAll(folder); err != nil {
					e.Error(err)
				}
			} else if err := os.Rename(folder, fmt.Sprint(folder, "-", n)); err != nil {
				e.Error(err)
			}
			if err := os.Mkdir(folder, 0o700); err != nil {
				e.Error(err)
			}
		}
		if a.random.IntN(100) == 0 {
			if !logged() { // a process that is killed later cannot lose receipts that the test waits for
				break
			}
			s.end(syscall.SIGKILL)
			s.in.Close()
			s = start()
		}
	}
	logged()
	if err := s.end(syscall.SIGINT); err != nil {
		a.says(err.Error())
	}
	s.in.Close()
	e.drain(a, at)
}

// consumeShell reads with the command as the only member of a group. It ends the command some seconds
// after it has read its first record, not earlier: after a kill, the next member gets no records until
// the session of the killed one has expired.
func (e *endurance) consumeShell(a *actor, at home) {
	for e.reading.Err() == nil {
		first := make(chan struct{}, 1)
		s, err := e.shell(a, at, func(line []byte) {
			var r struct{ Key, Value, ID string }
			if err := json.Unmarshal(line, &r); err != nil {
				return // an incomplete line of a process that was killed
			}
			e.handed(a, "shell", []byte(r.Key), []byte(r.Value), r.ID)
			select {
			case first <- struct{}{}:
			default:
			}
		}, "consume", "weather", "-g", "shell", "-o", "json")
		if err != nil {
			e.Error(err)
			return
		}
		exited := make(chan error, 1)
		go func() { exited <- s.end(0) }()
		select {
		case <-first:
			select {
			case <-time.After(time.Duration(5+a.random.IntN(15)) * time.Second):
			case <-e.reading.Done():
			}
			signal := syscall.SIGINT
			if a.random.IntN(2) == 0 {
				signal = syscall.SIGKILL
			}
			s.cmd.Process.Signal(signal)
			<-exited
		case err := <-exited: // without a signal; the process has printed the reason
			if err != nil {
				a.says(err.Error())
			}
		case <-e.reading.Done():
			s.cmd.Process.Signal(syscall.SIGINT)
			<-exited
		}
		s.in.Close()
	}
}

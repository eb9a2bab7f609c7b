package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestFileSurvivesKill logs a large file with produce while the whole fabric is
// killed and restarted, and checks that the topic has exactly its content.
func TestFileSurvivesKill(t *testing.T) {
	t.Parallel()
	content := awkwardFile(t, crashFileBytes)
	file := filepath.Join(t.TempDir(), "lines")
	testkit.Must(t, os.WriteFile(file, content, 0o600))
	lines := bytes.Split(bytes.TrimSuffix(content, []byte("\n")), []byte("\n"))

	w := newWorld(t)
	up := w.up(t, "--kafka-port", "0", "--http-port", "0", "--globus-port", "0")
	w.run(t, "topic", "claim", "big")

	// Kill the fabric when a third of the events are acknowledged.
	began := time.Now()
	produce := w.command("produce", "big", file, "-o", "json", "--no-spool")
	var talk bytes.Buffer
	produce.Stderr = &talk
	stdout, err := produce.StdoutPipe()
	testkit.Must(t, err)
	testkit.Must(t, produce.Start())
	seed := maphash.MakeSeed()
	acknowledged := make(map[uint64]bool, len(lines))
	killed := make(chan struct{})
	read := make(chan error, 1)
	go func() {
		receipts := bufio.NewScanner(stdout)
		for receipts.Scan() {
			_, rest, _ := bytes.Cut(receipts.Bytes(), []byte(`"id":"`))
			id, _, ok := bytes.Cut(rest, []byte(`"`))
			if !ok {
				read <- fmt.Errorf("no id in the receipt %s", receipts.Bytes())
				return
			}
			acknowledged[maphash.Bytes(seed, id)] = true
			if len(acknowledged) == len(lines)/3 {
				close(killed)
			}
		}
		read <- receipts.Err()
	}()
	select {
	case <-killed:
	case err := <-read:
		t.Fatalf("produce ended early: %v\n%s", err, talk.Bytes())
	}
	up.kill(t)
	w.up(t, up.ports()...)
	if err := <-read; err != nil {
		t.Error(err)
	}
	if err := produce.Wait(); err != nil {
		t.Fatalf("produce: %v\n%s", err, talk.Bytes())
	}
	if want := fmt.Sprintf("%d events acknowledged\n", len(lines)); !strings.HasSuffix(talk.String(), want) {
		t.Errorf("produce says %q, want %q at the end", talk.String(), want)
	}
	sent := time.Since(began)

	repeats := w.compare(t, lines, func(id string) { delete(acknowledged, maphash.String(seed, id)) })
	if len(acknowledged) > 0 {
		t.Errorf("%d acknowledged events are missing", len(acknowledged))
	}
	t.Logf("%d bytes in %d lines: sent in %v with a restart, read back in %v, %d repeats",
		len(content), len(lines), sent.Round(time.Millisecond), (time.Since(began) - sent).Round(time.Millisecond), repeats)
}

// compare reads the topic and checks that it has exactly the lines, in order. Records
// with the ID of an earlier record are not compared, but counted as repeats.
func (w *world) compare(t *testing.T, lines [][]byte, found func(id string)) (repeats int) {
	t.Helper()
	consume := w.command("consume", "big", "--from", "start", "--exit", "-o", "json")
	var talk bytes.Buffer
	consume.Stderr = &talk
	stdout, err := consume.StdoutPipe()
	testkit.Must(t, err)
	testkit.Must(t, consume.Start())
	defer consume.Process.Kill()
	seed := maphash.MakeSeed()
	seen := make(map[uint64]bool, len(lines))
	records := bufio.NewReaderSize(stdout, 1<<20)
	next := 0
	for {
		line, err := readWhole(records)
		if len(line) == 0 {
			if err != nil {
				break
			}
			t.Fatal("an empty line among the records")
		}
		var r struct {
			ID      string `json:"id"`
			Value   string `json:"value"`
			Value64 []byte `json:"value_base64"`
		}
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatalf("record %d: %v", next, err)
		}
		value := []byte(r.Value)
		if r.Value64 != nil {
			value = r.Value64
		}
		id := maphash.String(seed, r.ID)
		if seen[id] {
			repeats++
			continue
		}
		seen[id] = true
		found(r.ID)
		if next >= len(lines) || !bytes.Equal(value, lines[next]) {
			t.Fatalf("record %d, %s, is not line %d: it has %d bytes", next, r.ID, next+1, len(value))
		}
		next++
	}
	if err := consume.Wait(); err != nil {
		t.Fatalf("consume: %v\n%s", err, talk.Bytes())
	}
	if next != len(lines) {
		t.Errorf("%d lines came back, want %d", next, len(lines))
	}
	return repeats
}

func readWhole(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if err == bufio.ErrBufferFull {
		line = bytes.Clone(line)
		var rest []byte
		rest, err = r.ReadBytes('\n')
		line = append(line, rest...)
	}
	return line, err
}

// awkwardFile returns the Go source tree, text and binary, mixed with empty lines,
// lines of random bytes and one line of 900 kB.
func awkwardFile(t *testing.T, size int) []byte {
	t.Helper()
	root, err := exec.Command("go", "env", "GOROOT").Output()
	testkit.Must(t, err)
	random := rand.New(rand.NewPCG(1, 2))
	junk := func(n int) []byte {
		line := make([]byte, n)
		for i := range line {
			if line[i] = byte(random.Uint32()); line[i] == '\n' {
				line[i] = 0
			}
		}
		return append(line, '\n')
	}
	content := make([]byte, 0, size+size/8)
	err = filepath.WalkDir(filepath.Join(strings.TrimSpace(string(root)), "src"), func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case !d.Type().IsRegular():
			return nil
		case len(content) >= size:
			return fs.SkipAll
		}
		data, err := os.ReadFile(path)
		if err != nil || len(data) > 800_000 { // a line could be too large for an event
			return err
		}
		if len(content) < size/2 && len(content)+len(data) >= size/2 {
			content = append(content, junk(900_000)...)
		}
		content = append(content, data...)
		content = append(content, "\n\n\r\n"...)
		content = append(content, junk(random.IntN(3000))...)
		return nil
	})
	testkit.Must(t, err)
	if len(content) < size {
		t.Fatalf("the Go source tree gives %d bytes, want %d", len(content), size)
	}
	return append(content, "the last line has no line feed"...)
}

// world is a home directory in which the program runs as a process.
type world struct {
	dir string
	env []string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	return &world{dir: dir, env: []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "USER=mel", "DIASPORA_CONFIG_DIR=" + filepath.Join(dir, "config"),
		"GOCOVERDIR=" + os.Getenv("GOCOVERDIR"),
	}}
}

func (w *world) command(args ...string) *exec.Cmd {
	cmd := exec.Command("diaspora", args...) // TestMain has put it into PATH
	cmd.Dir, cmd.Env = w.dir, w.env
	return cmd
}

func (w *world) run(t *testing.T, args ...string) string {
	t.Helper()
	cmd := w.command(args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("diaspora %s: %v\n%s%s", strings.Join(args, " "), err, out, stderr.Bytes())
	}
	return string(out)
}

// upChild is a `diaspora up` that runs in its own process.
type upChild struct {
	upDocument
	cmd *exec.Cmd
}

// up starts a fabric and waits until it is ready.
func (w *world) up(t *testing.T, args ...string) *upChild {
	t.Helper()
	for i, port := range args { // a port that is still free when the fabric is started again
		if port == "0" {
			_, args[i], _ = net.SplitHostPort(testkit.FreeAddress(t))
		}
	}
	u := &upChild{cmd: w.command(append([]string{"up", "-o", "json"}, args...)...)}
	var talk bytes.Buffer
	u.cmd.Stderr = &talk
	stdout, err := u.cmd.StdoutPipe()
	testkit.Must(t, err)
	testkit.Must(t, u.cmd.Start())
	t.Cleanup(func() {
		u.cmd.Process.Kill()
		u.cmd.Wait()
	})
	if err := json.NewDecoder(stdout).Decode(&u.upDocument); err != nil {
		u.cmd.Wait()
		t.Fatalf("diaspora up: %v\n%s", err, talk.Bytes())
	}
	return u
}

// kill ends the process with SIGKILL, like a crash.
func (u *upChild) kill(t *testing.T) {
	t.Helper()
	testkit.Must(t, u.cmd.Process.Kill())
	u.cmd.Wait()
}

// ports returns the flags that restart the fabric on the same ports.
func (u *upChild) ports() []string {
	port := func(address string) string { return address[strings.LastIndex(address, ":")+1:] }
	web, _ := url.Parse(u.URL)
	globus, _ := url.Parse(u.Globus)
	return []string{"--kafka-port", port(u.Brokers[0]), "--http-port", web.Port(), "--globus-port", globus.Port()}
}

package interop

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestClusterClean fails if deploy/kafka/cluster deletes what it has not made: KAFKA_DIR may
// be any folder, by mistake.
func TestClusterClean(t *testing.T) {
	t.Parallel()
	for name, try := range map[string]struct {
		files []string
		asks  bool     // CI is not set
		runs  bool     // a gateway runs in front of it
		fails string   // what it says
		left  []string // nil: the folder is gone
	}{
		"no folder":       {},
		"nothing":         {files: []string{""}},
		"somebody's home": {files: []string{"thesis.tex", "node-1/data", "jwks.json"}, fails: "is not a cluster", left: []string{"jwks.json", "node-1/data", "thesis.tex"}},
		"not confirmed":   {files: []string{"kafka-cluster", "cluster-id"}, asks: true, fails: "there is no terminal to ask whether to delete the cluster", left: []string{"cluster-id", "kafka-cluster"}},
		"in use":          {files: []string{"kafka-cluster", "cluster-id", "node-1/ports"}, runs: true, fails: "a gateway runs at 127.0.0.1:", left: []string{"cluster-id", "kafka-cluster", "node-1/ports"}},
		"a cluster": {files: []string{"kafka-cluster", "cluster-id", "voters", "jwks.json", "jwks.json.123", "signing-keys.json", "signing-keys.json.lock", "admin-password",
			"node-1/data/meta.properties", "node-1/pid", "cluster.json"}},
		"an earlier version's":      {files: []string{"cluster-id", "node-1/server.properties", "node-2/ports", "node-3/x", "admin-password"}},
		"a cluster, made half":      {files: []string{"kafka-cluster", "admin-password.new"}},
		"a cluster, and other work": {files: []string{"kafka-cluster", "cluster-id", "node-1/pid", "thesis.tex", "nodes/x"}, left: []string{"nodes/x", "thesis.tex"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "the folder")
			for _, file := range try.files {
				path := filepath.Join(dir, file)
				testkit.Must(t, os.MkdirAll(filepath.Dir(path), 0o700))
				if file == "" {
					err := os.MkdirAll(path, 0o700)
					testkit.Must(t, err)
				} else if err := os.WriteFile(path, []byte("x\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if try.runs {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				testkit.Must(t, err)
				defer l.Close()
				_, port, _ := net.SplitHostPort(l.Addr().String())
				testkit.Must(t, os.WriteFile(filepath.Join(dir, "node-1", "ports"), []byte("1 2 3 "+port+"\n"), 0o600))
			}
			cmd := exec.Command("../deploy/kafka/cluster", "clean")
			cmd.Env = append(os.Environ(), "KAFKA_DIR="+dir, "CI="+map[bool]string{false: "true"}[try.asks])
			said, err := cmd.CombinedOutput()
			if (err != nil) != (try.fails != "") || !strings.Contains(string(said), try.fails) {
				t.Errorf("cluster clean: %v, and it says %q, want %q", err, said, try.fails)
			}
			var left []string
			err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
				if err == nil && !entry.IsDir() {
					rel, _ := filepath.Rel(dir, path)
					left = append(left, rel)
				}
				return err
			})
			if gone := errors.Is(err, fs.ErrNotExist); gone != (try.left == nil) || !slices.Equal(left, try.left) {
				t.Errorf("cluster clean leaves %q, %v, want %q", left, err, try.left)
			}
		})
	}
}

// TestClusterOtherSize fails if somebody who only wants to start a cluster again, with another number of nodes, is told
// to delete it and nothing else.
func TestClusterOtherSize(t *testing.T) {
	t.Parallel()
	for nodes, want := range map[int]string{
		1: "has 1 node, not 2: to start it, use NODES=1 or omit NODES; it keeps its events. ",
		3: "has 3 nodes, not 2: to start it, use NODES=3 or omit NODES; it keeps its events. ",
	} {
		dir := t.TempDir()
		testkit.Must(t, os.WriteFile(filepath.Join(dir, "cluster-id"), []byte("x\n"), 0o600))
		for n := range nodes {
			testkit.Must(t, os.Mkdir(filepath.Join(dir, fmt.Sprintf("node-%d", n+1)), 0o700))
		}
		cmd := exec.Command("../deploy/kafka/cluster", "start", "2")
		cmd.Env = append(os.Environ(), "KAFKA_DIR="+dir)
		if said, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(said), want) {
			t.Errorf("cluster start: %v, and it says %q, want %q", err, said, want)
		}
	}
}

// TestMakeWithoutNodes fails if "make kafka-up" asks for one node, and so refuses to start a cluster of three again.
func TestMakeWithoutNodes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "cluster start ''\n"},
		{[]string{"NODES=3"}, "cluster start 3\n"},
		{[]string{"NODES=1"}, "cluster start 1\n"},
	} {
		cmd := exec.Command("make", append([]string{"-C", "..", "-n", "kafka-up"}, c.args...)...)
		cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "MAKE") || strings.HasPrefix(v, "NODES=") })
		if said, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(said), c.want) {
			t.Errorf("make -n kafka-up %v: %v, and it says %q, want %q", c.args, err, said, c.want)
		}
	}
}

// TestClusterStart fails if a cluster is made among somebody's files, which would be deleted
// with it.
func TestClusterStart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	testkit.Must(t, os.WriteFile(filepath.Join(dir, "thesis.tex"), nil, 0o600))
	cmd := exec.Command("../deploy/kafka/cluster", "start", "1")
	cmd.Env = append(os.Environ(), "KAFKA_DIR="+dir)
	said, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(said), "has other files in it") {
		t.Errorf("cluster start: %v, and it says %q", err, said)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("the folder has %v, %v", entries, err)
	}
}

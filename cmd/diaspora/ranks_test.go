package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// TestFiftyRanksWithOneKey simulates a Slurm array: fifty processes that share a key file and a folder for spools. They
// run once while the fabric is unreachable, and once more when it is reachable again.
func TestFiftyRanksWithOneKey(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.must(t, "topic", "claim", "weather")
	key := filepath.Join(t.TempDir(), "array.env")
	d.must(t, "key", "create", "array", "--write", "--save-env", key)
	d.must(t, "key", "create", "reader", "--read", "--save-env", key+".reader")
	address := strings.TrimPrefix(d.fabric.URL(), "http://")
	testkit.Must(t, d.fabric.Close())

	node := emptyDesk(t) // nobody is logged in on this machine
	node.vars["DIASPORA_KEY_FILE"] = key
	const ranks = 50
	array := func(step string) {
		t.Helper()
		var all sync.WaitGroup
		for rank := range ranks {
			all.Go(func() {
				if code := node.types(t.Context(), "produce", "weather", "--value", fmt.Sprintf("%s %d", step, rank)); code != 0 {
					t.Errorf("rank %d exits with %d", rank, code)
				}
			})
		}
		all.Wait()
	}
	array("away")
	if said := node.err.String(); strings.Contains(said, "acknowledged") {
		t.Errorf("nobody is there, and still:\n%s", said)
	}
	fabrictest.Start(t, fabric.Config{Dir: d.data, HTTPAddr: address, Operators: []string{"ada@example.edu"}})
	node.err.Reset()
	array("back")
	node.must(t, "spool", "drain")
	if said := node.err.String(); !strings.Contains(said, "0 waiting") && !strings.Contains(said, "no events are pending in ") {
		t.Errorf("not all was sent:\n%s", said)
	}

	node.vars["DIASPORA_KEY_FILE"] = key + ".reader"
	node.must(t, "consume", "weather", "--from", "start", "--exit", "-o", "ndjson")
	ids := map[string]string{} // by value
	for line := range strings.Lines(node.out.String()) {
		var record struct{ ID, Value string }
		testkit.Must(t, json.Unmarshal([]byte(line), &record))
		if id := ids[record.Value]; id != "" && id != record.ID { // a duplicate has the same ID
			t.Errorf("%q is there twice, as two events", record.Value)
		}
		ids[record.Value] = record.ID
	}
	for rank := range ranks {
		for _, step := range []string{"away", "back"} {
			if ids[fmt.Sprintf("%s %d", step, rank)] == "" {
				t.Errorf("what rank %d has logged while the fabric was %s is lost", rank, step)
			}
		}
	}
	if records := strings.Count(node.out.String(), "\n"); len(ids) != 2*ranks || records > 2*ranks {
		t.Logf("%d records of %d events", records, len(ids))
	}
	// Only the first spool remains, and no secrets.
	err := filepath.WalkDir(node.vars["DIASPORA_CONFIG_DIR"], func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if strings.Contains(string(text), "dks_") {
			t.Errorf("%s has a secret in it", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	spools, err := filepath.Glob(filepath.Join(node.vars["DIASPORA_CONFIG_DIR"], "state", "spool", "*", "*", "lock"))
	if err != nil || len(spools) != 1 {
		t.Errorf("spools that are left: %v, %v", spools, err)
	}
}

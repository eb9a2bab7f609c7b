package interop

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestLedgerBackup runs deploy/kafka/ledger-backup with a stub in place of Kafka's tool. The script
// must work in an empty folder, must keep several backups, and must not let a run that was cut
// short, or another ledger, take the place of a good backup.
func TestLedgerBackup(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	backups := filepath.Join(dir, "backups") // does not exist yet
	testkit.Must(t, os.WriteFile(dir+"/java", []byte("#!/bin/sh\necho \"$@\" >$STUB/args\ncat $STUB/ledger\necho 'ERROR org.apache.kafka.common.errors.TimeoutException' >&2\nexit $(cat $STUB/exit)\n"), 0o755))
	testkit.Must(t, os.WriteFile(dir+"/admin.properties", nil, 0o600))
	list := func() (names []string) {
		names, err := filepath.Glob(backups + "/ledger-*.tsv")
		testkit.Must(t, err)
		return names
	}
	run := func(exit, ledger string) (said string, ok bool) {
		t.Helper()
		testkit.Must(t, os.WriteFile(dir+"/ledger", []byte(ledger), 0o600))
		testkit.Must(t, os.WriteFile(dir+"/exit", []byte(exit), 0o600))
		for { // a name for each second
			cmd := exec.Command("../deploy/kafka/ledger-backup", "kafka1:9094", backups)
			cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "STUB="+dir, "KAFKA_CONFIG="+dir+"/admin.properties", "KEEP=2")
			out, err := cmd.CombinedOutput()
			if !strings.Contains(string(out), "try again in a second") {
				return string(out), err == nil
			}
		}
	}
	const first = "topic/weather\t{\"v\":1}\n"
	for _, refused := range []struct{ exit, ledger, says string }{
		{"0", "", "cannot be reached, or nobody has claimed a topic yet"},
		{"0", "[2026-01-01] WARN a message of the tool\n", "cannot be reached"},
		{"1", first, "Kafka's tool failed"},
	} {
		if said, ok := run(refused.exit, refused.ledger); ok || !strings.Contains(said, refused.says) || len(list()) != 0 {
			t.Errorf("on day one, with %q: succeeded: %v, says %q, want %q", refused.ledger, ok, said, refused.says)
		}
	}
	if said, ok := run("0", "[2026-01-01] WARN a message\n"+first); !ok || !strings.Contains(said, "1 records (1 new) in "+backups) || len(list()) != 1 {
		t.Fatalf("the first backup: %v, %q", ok, said)
	}
	const second = first + "key/a\t{\"v\":2}\n"
	const third = second + "key/b\t{\"v\":3}\n"
	for _, ledger := range []string{second, second, third} {
		if said, ok := run("0", ledger); !ok {
			t.Fatalf("a backup: %s", said)
		}
	}
	kept := list()
	if len(kept) != 2 || string(testkit.ReadFile(t, kept[0])) != second || string(testkit.ReadFile(t, kept[1])) != third {
		t.Errorf("kept %q", kept)
	}
	for ledger, says := range map[string]string{
		"":     "no records",
		second: "only 2 records, but " + kept[1] + " has 3",
		"topic/other\t{}\ntopic/b\t{}\ntopic/c\t{}\ntopic/d\t{}\n": "another ledger",
	} {
		if said, ok := run("0", ledger); ok || !strings.Contains(said, says) || !slices.Equal(list(), kept) {
			t.Errorf("with %q: succeeded: %v, says %q, want %q; backups %q", ledger, ok, said, says, list())
		}
	}
	if info, err := os.Stat(kept[1]); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the backup's mode: %v, %v", info.Mode(), err)
	}
	if args := string(testkit.ReadFile(t, dir+"/args")); !strings.Contains(args, "--bootstrap-server kafka1:9094 --command-config "+dir+"/admin.properties --topic _diaspora_ledger") {
		t.Errorf("the tool was called with %s", args)
	}
}

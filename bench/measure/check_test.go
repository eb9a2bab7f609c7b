package measure

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// report returns a report like those of the parts, with two rows.
func report(send, spool string) string {
	return "# Measurements\n\nWords.\n\n## A link\n\n| each way | client | events/s | ratio to franz-go, median (min–max) |\n| --- | --- | --- | --- |\n" +
		"| 10ms | Send | 51000 | " + send + " |\n| 10ms | Send on a spool | 33000 | " + spool + " |\n\n## Slog\n\n" +
		"| handler | time, ratio to the first |\n| --- | --- |\n| ours | 0.10 (0.10–0.10) |\n"
}

// TestCompare compares a report with two older ones, of which the newer has only one of the rows.
func TestCompare(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	onlySend := report("0.90 (0.80–0.95)", "–")
	for name, text := range map[string]string{"2026-01-01.md": report("0.50 (0.40–0.60)", "0.80 (0.75–0.90)"), "2026-02-01-link.md": onlySend} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		send, spool string
		worse       string // rows that are reported, with commas between
	}{
		{"0.90 (0.80–0.95)", "0.80 (0.75–0.90)", ""},
		{"0.70 (0.60–0.91)", "0.70 (0.60–0.81)", ""},
		{"0.70 (0.60–0.89)", "0.90 (0.90–0.90)", "Send"},
		{"0.95 (0.90–1.00)", "0.70 (0.60–0.79)", "Send on a spool"},
		{"0.10 (0.10–0.10)", "0.10 (0.10–0.10)", "Send on a spool,Send"},
	} {
		text, worse, err := compare(report(c.send, c.spool), dir)
		if err != nil {
			t.Fatal(err)
		}
		var rows []string
		for line := range strings.Lines(text) {
			if row, ok := strings.CutPrefix(line, "| A link, 10ms, "); ok {
				name, _, _ := strings.Cut(row, ":")
				rows = append(rows, name)
			}
		}
		if got := strings.Join(rows, ","); got != c.worse || worse != len(rows) || !strings.Contains(text, " of 2 ratios are below") {
			t.Errorf("with %q and %q: %q are worse, want %q; the text is\n%s", c.send, c.spool, got, c.worse, text)
		}
	}
}

// TestStoredReports: the program finds the ratios in the reports that are stored.
func TestStoredReports(t *testing.T) {
	t.Parallel()
	stored, err := newest("../results")
	if err != nil || len(stored) < 10 {
		t.Errorf("%d ratios in the stored reports, %v", len(stored), err)
	}
}

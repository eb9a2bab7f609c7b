package watch

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

func (j *journal) addFile(t *testing.T, file string) {
	t.Helper()
	testkit.Must(t, j.add([]journalLine{{File: file, mark: mark{1, 2}, Events: 1}}))
}

// TestJournal checks that an incomplete line is ignored and does not damage the next one, and that the
// journal forgets files that no longer exist.
func TestJournal(t *testing.T) {
	t.Parallel()
	journals, dir := t.TempDir(), t.TempDir()
	open := func() *journal {
		t.Helper()
		j, err := openJournal(journals, dir, "scans")
		testkit.Must(t, err)
		return j
	}
	j := open()
	id, name := j.id, j.name
	j.addFile(t, "a")
	j.addFile(t, "b")
	j.Close()
	content := testkit.ReadFile(t, name)
	for cut := bytes.IndexByte(content, '\n') + 1; cut <= len(content); cut++ {
		known := bytes.Count(content[:min(cut+1, len(content))], []byte("\n")) - 1 // a line counts even if only its line feed is missing
		testkit.Must(t, os.WriteFile(name, content[:cut], 0o600))
		j = open()
		if len(j.done) != known || j.id != id {
			t.Errorf("cut after %d bytes it knows %v, want %d files", cut, j.done, known)
		}
		j.addFile(t, "c")
		j.Close()
		if j = open(); len(j.done) != known+1 {
			t.Errorf("cut after %d bytes and written to it knows %v, want %d files", cut, j.done, known+1)
		}
		j.Close()
	}
	put(t, dir, "7", "7")
	j = open()
	for i := range 1500 {
		j.addFile(t, fmt.Sprint(i))
	}
	j.Close()
	open().Close()
	j = open()
	if len(j.done) != 1 || j.done["7"] != (mark{1, 2}) || j.id != id {
		t.Errorf("it knows %d files, want the one that is there", len(j.done))
	}
	// A folder whose disk is not mounted is empty.
	testkit.Must(t, os.Remove(filepath.Join(dir, "7")))
	for i := range 1500 {
		j.addFile(t, fmt.Sprint(i))
	}
	j.Close()
	open().Close()
	j = open()
	defer j.Close()
	if len(j.done) != 1500 {
		t.Errorf("after an empty folder it knows %d files, want 1500", len(j.done))
	}
}

// TestJournalIsRenewed checks that each start replaces the file with a copy, because the file of the last process may
// not be on the disk if a sync has failed.
func TestJournalIsRenewed(t *testing.T) {
	t.Parallel()
	journals, dir := t.TempDir(), t.TempDir()
	var files []os.FileInfo
	for n := range 2 {
		j, err := openJournal(journals, dir, "scans")
		testkit.Must(t, err)
		if len(j.done) != n {
			t.Errorf("start %d: the journal knows %v", n, j.done)
		}
		j.addFile(t, fmt.Sprint(n))
		info, err := os.Stat(j.name)
		testkit.Must(t, err)
		files = append(files, info)
		j.Close()
	}
	if os.SameFile(files[0], files[1]) {
		t.Error("the second start uses the file of the first")
	}
}

// TestFolders checks that the journals are found in a folder whose name has a meaning in patterns.
func TestFolders(t *testing.T) {
	t.Parallel()
	journals := filepath.Join(t.TempDir(), "a[1]*")
	testkit.Must(t, os.Mkdir(journals, 0o700))
	j, err := openJournal(journals, "/data/scans", "scans")
	testkit.Must(t, err)
	defer j.Close()
	if dirs := Folders(journals, "scans"); !slices.Equal(dirs, []string{"/data/scans"}) {
		t.Errorf("the folders are %q", dirs)
	}
}

// TestOlderJournal checks that a journal of an earlier version is still found and understood.
func TestOlderJournal(t *testing.T) {
	t.Parallel()
	journals := t.TempDir()
	content := `{"watch":"/data/scans","topic":"scans","id":"WTWTZ6FKBEBC5NIRSCRDGJQAIJ"}` + "\n" +
		`{"file":"a.json","size":3,"mtime":1764390000123456789,"events":1}` + "\n" +
		`{"file":"b.json","size":2097152,"mtime":1764390000000000000,"events":0,"refused":"it is too large"}` + "\n"
	testkit.Must(t, os.WriteFile(filepath.Join(journals, "925d0a7bc09fa409.ndjson"), []byte(content), 0o600))
	j, err := openJournal(journals, "/data/scans", "scans")
	testkit.Must(t, err)
	defer j.Close()
	if j.id != "WTWTZ6FKBEBC5NIRSCRDGJQAIJ" || len(j.done) != 2 || j.done["a.json"] != (mark{3, 1764390000123456789}) {
		t.Errorf("it has the id %q and knows %v", j.id, j.done)
	}
	f := &fileInFlight{watcher: &Watcher{journal: j}, journalLine: journalLine{File: "a.json", mark: j.done["a.json"]}}
	if got, want := f.eventID(2, []byte("x")), "b643f349555ad4206955a453566ecabf"; got != want {
		t.Errorf("the event has the id %s, want %s as in earlier versions", got, want)
	}
}

// FuzzJournalOfFiles opens a journal with arbitrary content, and appends to it.
func FuzzJournalOfFiles(f *testing.F) {
	for _, s := range []string{
		"", "\n", "junk\n", "{}\n", `{"id":"x"}`, `{"watch":"/data","topic":"scans","id":"x"}` + "\n",
		`{"id":"x"}` + "\n" + `{"file":"a","size":1,"mtime":2,"events":1}` + "\n" + `{"file":"b","si`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		head, lines, torn, err := readJournal(bytes.NewReader(content))
		if err != nil || head.ID == "" {
			return
		}
		further := []journalLine{{File: "new", mark: mark{1, 2}, Refused: "\n"}}
		if torn {
			content = append(content[:len(content):len(content)], '\n')
		}
		after, more, torn, err := readJournal(bytes.NewReader(append(content[:len(content):len(content)], encodeLines(further)...)))
		if err != nil || after != head || torn || !slices.Equal(more, append(lines, further...)) {
			t.Errorf("%q and a line is read as %q, %v, %v, %v; want %q, %v and it", content, after, more, torn, err, head, lines)
		}
	})
}

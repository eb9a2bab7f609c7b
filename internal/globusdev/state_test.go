package globusdev

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// reopen starts a server on dir; the caller closes it.
func reopen(t *testing.T, dir string, change func(*Config)) *Server {
	t.Helper()
	cfg := Config{Issuer: "http://127.0.0.1:9", Dir: dir, Username: "mary"}
	if change != nil {
		change(&cfg)
	}
	s, err := Open(cfg)
	testkit.Must(t, err)
	return s
}

func TestStateSurvives(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "dir")
	persist := func(c *Config) { c.Dir = dir }
	type remembered struct {
		auth, ours, expired, revoked tokenDocument
		code, used, secret, keys     string
	}
	var before remembered
	t.Run("before", func(t *testing.T) {
		h := start(t, persist)
		before.auth, before.ours = h.login("ada@example.edu")
		_, before.expired = h.login("ada@example.edu")
		_, before.revoked = h.login("ada@example.edu")
		testkit.Must(t, errors.Join(h.Expire(secretOf(before.expired.AccessToken)), h.Revoke(secretOf(before.revoked.AccessToken)), h.Revoke(secretOf(before.revoked.RefreshToken))))
		before.code, before.used = h.code("grace@example.org"), h.code("ada@example.edu")
		h.exchange(before.used).tokens(t)
		if _, err := h.AddUser(User{Identity: Identity{Username: "new@example.edu"}}); err != nil {
			t.Fatal(err)
		}
		weather, err := h.AddGroup(Group{Name: "Weather"})
		testkit.Must(t, err)
		gone, err := h.AddGroup(Group{Name: "Gone"})
		testkit.Must(t, err)
		for _, m := range []GroupMember{{Group: gone, Identity: "ada@example.edu"}, {Group: weather, Identity: "ada@example.edu"},
			{Group: weather, Identity: "ada@example.edu", Role: "admin"}, {Group: weather, Identity: ServiceClientID, Status: "left"}} {
			testkit.Must(t, h.SetMember(m))
		}
		testkit.Must(t, h.RemoveGroup(gone))
		before.secret, before.keys = h.secret(ResourceServerID), h.get("/jwk.json").body
	})
	for range 2 {
		t.Run("after", func(t *testing.T) {
			h := start(t, persist)
			if h.secret(ResourceServerID) != before.secret || h.get("/jwk.json").body != before.keys {
				t.Error("the client's secret or the signing key changed")
			}
			if !h.active(before.ours.AccessToken) || h.active(before.expired.AccessToken) || h.active(before.revoked.AccessToken) {
				t.Error("tokens are not as they were")
			}
			if h.refresh(before.ours.RefreshToken).status != 200 || h.refresh(before.revoked.RefreshToken).status != 400 {
				t.Error("refresh tokens are not as they were")
			}
			want{401, "invalid_grant", "", ""}.check(t, h.exchange(before.used))
			if ada, grace := h.identity(Subject("ada@example.edu")), h.identity(Subject("grace@example.org")); ada["status"] != "used" || grace["status"] != "unused" {
				t.Errorf("Ada's identity is %v, Grace's %v", ada["status"], grace["status"])
			}
			if got, want := fmt.Sprint(h.dump().Groups), fmt.Sprintf("[{{%[1]s Weather } [{%[1]s %[2]s admin active} {%[1]s %[3]s member left}]}]",
				derivedID("group:Weather"), Subject("ada@example.edu"), ServiceClientID); got != want {
				t.Errorf("groups %s, want %s", got, want)
			}
			h.login("new@example.edu")
		})
	}
	t.Run("a code that waited", func(t *testing.T) {
		h := start(t, persist)
		h.exchange(before.code).tokens(t)
		want{401, "invalid_grant", "", ""}.check(t, h.exchange(before.code))
	})
	t.Run("a reset", func(t *testing.T) {
		h := start(t, persist)
		testkit.Must(t, h.Reset())
		h.login("ada@example.edu")
	})
	t.Run("what was reset stays so", func(t *testing.T) {
		h := start(t, persist)
		if a := h.do("GET", userInfoPath, "", bearer(before.auth.AccessToken)); a.status != 401 {
			t.Errorf("userinfo after reset: status %d", a.status)
		}
		if n := len(h.dump().Tokens); n != 4 {
			t.Errorf("%d tokens, want the 4 since the reset", n)
		}
	})
}

// TestNoSecretsOnDisk searches all files for every secret that was issued.
func TestNoSecretsOnDisk(t *testing.T) {
	dir := t.TempDir()
	h := start(t, func(c *Config) { c.Dir = dir })
	code := h.code("ada@example.edu")
	tokens := h.exchange(code).tokens(t)
	testkit.Must(t, h.SetRefreshMode(RefreshRotate))
	renewed := h.refresh(tokens.RefreshToken).tokens(t)
	secrets := []string{
		code, tokens.AccessToken, tokens.RefreshToken, tokens.IDToken, tokens.OtherTokens[0].AccessToken, tokens.OtherTokens[0].RefreshToken,
		renewed.AccessToken, renewed.RefreshToken, testVerifier, "dev-at-", "dev-rt-", "dev-code-",
	}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		for _, secret := range secrets {
			if bytes.Contains(content, []byte(secret)) {
				t.Errorf("%s has %q", path, secret)
			}
		}
		info, statErr := os.Stat(path)
		if statErr == nil && info.Mode().Perm() != 0o600 && runtime.GOOS != "windows" {
			t.Errorf("%s has mode %v, want 0600", path, info.Mode())
		}
		return errors.Join(err, statErr)
	})
	testkit.Must(t, err)
	if content, err := os.ReadFile(filepath.Join(dir, journalName)); err != nil || !bytes.Contains(content, []byte(`"token"`)) {
		t.Errorf("the state file has no tokens, not even their hashes: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	s := reopen(t, dir, nil)
	if second, err := Open(Config{Issuer: "http://127.0.0.1:9", Dir: dir}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second server on the directory: %v, %v", second, err)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	}
	path := filepath.Join(dir, journalName)
	if runtime.GOOS != "windows" {
		testkit.Must(t, os.Chmod(path, 0o640))
		if _, err := Open(Config{Issuer: "http://127.0.0.1:9", Dir: dir}); err == nil || !strings.Contains(err.Error(), "0640") {
			t.Errorf("a state file that others can read: %v", err)
		}
		testkit.Must(t, os.Chmod(path, 0o600))
	}
	reopen(t, dir, nil).Close()
}

// TestTornJournal truncates and damages the file. An incomplete last line is ignored, any other
// damage is an error, and no revocation is ever lost.
func TestTornJournal(t *testing.T) {
	dir := t.TempDir()
	s := reopen(t, dir, nil)
	grant, err := s.IssueTokens("ada@example.edu", NativeClientID, []string{Scope}, true)
	if _, keyErr := s.key(); errors.Join(err, keyErr) != nil {
		t.Fatal(err, keyErr)
	}
	good := testkit.ReadFile(t, filepath.Join(dir, journalName))
	testkit.Must(t, s.Revoke(grant.Tokens[0].AccessToken))
	whole := testkit.ReadFile(t, filepath.Join(dir, journalName))
	testkit.Must(t, s.Close())
	path := filepath.Join(dir, journalName)
	alive := func(content []byte) (bool, error) {
		t.Helper()
		testkit.Must(t, os.WriteFile(path, content, 0o600))
		s, err := Open(Config{Issuer: "http://127.0.0.1:9", Dir: dir})
		if err != nil {
			return false, err
		}
		defer s.Close()
		return s.state.tokens[digestOf(grant.Tokens[0].AccessToken.Reveal())] != nil, nil
	}
	for cut := len(good); cut <= len(whole); cut++ {
		got, err := alive(whole[:cut])
		if err != nil || got != (cut < len(whole)) {
			t.Fatalf("cut %d of %d bytes off: alive %v, %v", len(whole)-cut, len(whole), got, err)
		}
	}
	if got, err := alive(append(bytes.Clone(whole), make([]byte, 5000)...)); err != nil || got {
		t.Errorf("zeros at the end: alive %v, %v", got, err)
	}
	for name, content := range map[string][]byte{
		"a hole":          append(append(bytes.Clone(good), "\x00\x00\n"...), whole[len(good):]...),
		"another kind":    append(bytes.Clone(whole), "{}\n"...),
		"no JSON":         append(bytes.Clone(whole), "x\n"...),
		"a bad hash":      append(bytes.Clone(whole), `{"dead":"AAAA"}`+"\n"...),
		"a bad key":       append(bytes.Clone(whole), `{"key":"AAAA"}`+"\n"...),
		"a bad user":      append(bytes.Clone(whole), `{"user":{"username":"x"}}`+"\n"...),
		"a bad client":    append(bytes.Clone(whole), `{"client":{"id":"x"}}`+"\n"...),
		"an endless line": append(bytes.Clone(whole), bytes.Repeat([]byte("x"), 2*maxJournalLine)...),
	} {
		if _, err := alive(content); err == nil || !strings.Contains(err.Error(), "is damaged") || strings.Contains(err.Error(), "dev-") {
			t.Errorf("%s: %v, want an error that says so", name, err)
		}
	}
}

// TestEarlierJournal reads a journal of an earlier version, which also recorded consents.
func TestEarlierJournal(t *testing.T) {
	dir := t.TempDir()
	const access, refresh = "dev-at-earlier", "dev-rt-earlier"
	hash := func(secret string) string { text, _ := digestOf(secret).MarshalText(); return string(text) }
	token := func(fields, secret string) string {
		return fmt.Sprintf(`{"token":{"h":%q,%s"c":%q,"rs":%q,"sc":[%q],"co":[2],"iat":1,"exp":9999999999,"s":%q,"p":%[6]q,"ss":"x","at":1}}`,
			hash(secret), fields, NativeClientID, ResourceServerID, Scope, Subject("ada@example.edu"))
	}
	lines := []string{
		`{"client":{"id":"` + ResourceServerID + `","name":"Diaspora Streams service","type":"resource_server","secret":"dev/secret+ABC="}}`,
		`{"client":{"id":"` + NativeClientID + `","name":"Diaspora Streams","type":"public_installed_client"}}`,
		`{"user":{"id":"` + Subject("eve@example.edu") + `","username":"eve@example.edu","identity_provider":"` + derivedID("x") + `","status":"unused"}}`,
		`{"consent":{"id":2,"c":"` + NativeClientID + `","s":"x","sc":"openid","p":[2],"t":1,"m":1}}`,
		token("", access), token(`"r":true,`, refresh),
	}
	testkit.Must(t, os.WriteFile(filepath.Join(dir, journalName), []byte(strings.Join(lines, "\n")+"\n"), 0o600))
	for range 2 {
		h := start(t, func(c *Config) { c.Dir = dir })
		if h.secret(ResourceServerID) != "dev/secret+ABC=" || !h.active(access) || h.refresh(refresh).status != http.StatusOK {
			t.Error("a secret or a token is lost")
		}
		h.login("eve@example.edu")
		h.http.Close()
		testkit.Must(t, h.Close())
	}
}

// TestKilled kills a process that issues tokens, and checks that each token that it reported is
// still valid.
func TestKilled(t *testing.T) {
	if dir := os.Getenv("GLOBUSDEV_TEST_DIR"); dir != "" {
		s := reopen(t, dir, nil)
		for {
			grant, err := s.IssueTokens("ada@example.edu", NativeClientID, []string{Scope}, true)
			testkit.Must(t, err)
			fmt.Println(grant.Tokens[0].AccessToken.Reveal())
		}
	}
	dir := t.TempDir()
	var reported []string
	for range 3 {
		child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilled$")
		child.Env = append(os.Environ(), "GLOBUSDEV_TEST_DIR="+dir)
		out, err := child.StdoutPipe()
		testkit.Must(t, err)
		testkit.Must(t, child.Start())
		lines := bufio.NewScanner(out)
		for range 200 {
			if !lines.Scan() {
				t.Fatalf("the child ended: %v", lines.Err())
			}
			reported = append(reported, lines.Text())
		}
		testkit.Must(t, child.Process.Kill())
		for lines.Scan() { // including the output that it wrote before it died
			if strings.HasPrefix(lines.Text(), "dev-at-") && len(lines.Text()) == len(reported[0]) {
				reported = append(reported, lines.Text())
			}
		}
		child.Wait() // it was killed
	}
	s := reopen(t, dir, nil)
	defer s.Close()
	for i, token := range reported {
		if s.state.tokens[digestOf(token)] == nil {
			t.Fatalf("token %d of %d is lost", i, len(reported))
		}
	}
	t.Logf("%d tokens survived", len(reported))
}

// TestCompaction checks that expired entries do not make the file grow, and that rewriting it loses
// nothing that is still valid.
func TestCompaction(t *testing.T) {
	dir := t.TempDir()
	s := reopen(t, dir, nil)
	keep, err := s.IssueTokens("ada@example.edu", NativeClientID, []string{Scope}, true)
	testkit.Must(t, err)
	for range 5000 {
		grant, err := s.IssueTokens("ada@example.edu", NativeClientID, []string{Scope}, false)
		testkit.Must(t, err)
		testkit.Must(t, s.Revoke(grant.Tokens[0].AccessToken))
	}
	if info, err := os.Stat(filepath.Join(dir, journalName)); err != nil || info.Size() > 3<<20 {
		t.Errorf("the file has %d bytes, %v", info.Size(), err)
	}
	if n := len(s.state.tokens); n != 2 {
		t.Errorf("%d tokens in memory, want 2", n)
	}
	s.AdvanceClock(49 * time.Hour)
	for range 2 * compactAfter {
		if _, err := s.IssueTokens("grace@example.org", NativeClientID, []string{Scope}, false); err != nil {
			t.Fatal(err)
		}
	}
	if s.state.tokens[digestOf(keep.Tokens[0].AccessToken.Reveal())] != nil || s.state.tokens[digestOf(keep.Tokens[0].RefreshToken.Reveal())] == nil {
		t.Error("want the expired token forgotten, and the refresh token kept")
	}
	before := s.dump()
	testkit.Must(t, s.Close())
	s = reopen(t, dir, nil)
	defer s.Close()
	s.AdvanceClock(49 * time.Hour)
	after := s.dump()
	before.Time, after.Time = time.Time{}, time.Time{}
	x, _ := json.Marshal(before)
	y, _ := json.Marshal(after)
	if !bytes.Equal(x, y) {
		t.Errorf("the state changed by reopening: %d and %d bytes", len(x), len(y))
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".globusdev-*")); err != nil || len(left) != 0 {
		t.Errorf("temporary files are left: %v, %v", left, err)
	}
}

// brokenFile writes only the first half, like a full disk.
type brokenFile struct {
	journalFile
	stuck bool // it cannot be truncated either
}

var errDiskFull = errors.New("no space left")

func (f brokenFile) WriteAt(p []byte, at int64) (int, error) {
	n, err := f.journalFile.WriteAt(p[:len(p)/2], at)
	return n, errors.Join(err, errDiskFull)
}

func (f brokenFile) Truncate(size int64) error {
	if f.stuck {
		return errors.New("input/output error")
	}
	return f.journalFile.Truncate(size)
}

// TestWriteFails checks that nothing is issued that is not on disk, and that an incomplete line
// does not damage the file.
func TestWriteFails(t *testing.T) {
	for _, stuck := range []bool{false, true} {
		t.Run(fmt.Sprintf("stuck=%v", stuck), func(t *testing.T) {
			dir := t.TempDir()
			s := reopen(t, dir, nil)
			if _, err := s.key(); err != nil {
				t.Fatal(err)
			}
			issue := func() (*Grant, error) {
				return s.IssueTokens("ada@example.edu", NativeClientID, []string{Scope}, true)
			}
			before, err := issue()
			testkit.Must(t, err)
			good := s.journal.file
			s.journal.file = brokenFile{good, stuck}
			if grant, err := issue(); !errors.Is(err, errDiskFull) {
				t.Errorf("issue without a disk = %v, %v", grant, err)
			}
			if n := len(s.state.tokens); n != 2 {
				t.Errorf("%d tokens in memory, want those 2 on disk", n)
			}
			if !stuck { // otherwise the next change rewrites the file
				s.journal.file = good
			}
			// Write a short line where half of a long one was.
			if err := s.Revoke(before.Tokens[0].AccessToken); err != nil {
				t.Errorf("revoke after the disk is well: %v", err)
			}
			testkit.Must(t, s.Close())
			s = reopen(t, dir, nil)
			defer s.Close()
			if s.state.tokens[digestOf(before.Tokens[0].AccessToken.Reveal())] != nil {
				t.Error("the revocation is lost")
			}
			if s.state.tokens[digestOf(before.Tokens[0].RefreshToken.Reveal())] == nil {
				t.Error("the token from before is lost")
			}
		})
	}
}

// TestReplaceFails makes the sync of the directory fail after the file was replaced by a shorter one. What is added
// later must be readable, and must not depend on the name that was not synced.
func TestReplaceFails(t *testing.T) {
	dir := t.TempDir()
	s := reopen(t, dir, nil)
	issue := func() *Grant {
		grant, err := s.IssueTokens("ada@example.edu", NativeClientID, []string{Scope}, true)
		testkit.Must(t, err)
		return grant
	}
	for range 10 {
		testkit.Must(t, s.Revoke(issue().Tokens[0].AccessToken))
	}
	replaced := 0
	replace := s.journal.replace
	s.journal.replace = func(path string, content []byte) error {
		replaced++
		if err := replace(path, content); err != nil || replaced > 1 {
			return err
		}
		return errors.New("input/output error")
	}
	if err := s.compact(); err == nil {
		t.Error("compact does not report the failed sync")
	}
	grant := issue()
	if replaced != 2 {
		t.Errorf("the file was replaced %d times, want a second time before the next change", replaced)
	}
	testkit.Must(t, s.Close())
	s = reopen(t, dir, nil)
	defer s.Close()
	if s.state.tokens[digestOf(grant.Tokens[0].AccessToken.Reveal())] == nil {
		t.Error("the last token is lost")
	}
}

func TestConfigErrors(t *testing.T) {
	for name, cfg := range map[string]Config{
		"no issuer":            {},
		"slash":                {Issuer: "http://127.0.0.1:9/"},
		"path":                 {Issuer: "http://127.0.0.1:9/x"},
		"scheme":               {Issuer: "ftp://127.0.0.1:9"},
		"not loopback":         {Issuer: "http://192.0.2.1:9"},
		"everywhere":           {Issuer: "http://0.0.0.0:9"},
		"a name":               {Issuer: "http://auth.globus.org"},
		"lifetime":             {Issuer: "http://127.0.0.1:9", AccessTokenLifetime: time.Millisecond},
		"scope":                {Issuer: "http://127.0.0.1:9", Scopes: []ScopeDef{{Scope: "a b", ResourceServer: "x"}}},
		"scope of nothing":     {Issuer: "http://127.0.0.1:9", Scopes: []ScopeDef{{Scope: "a"}}},
		"username":             {Issuer: "http://127.0.0.1:9", Username: strings.Repeat("x", 300)},
		"refresh mode":         {Issuer: "http://127.0.0.1:9", RefreshMode: "x"},
		"a file for directory": {Issuer: "http://127.0.0.1:9", Dir: "state_test.go"},
	} {
		if s, err := Open(cfg); err == nil || !strings.HasPrefix(err.Error(), "globusdev: ") {
			t.Errorf("%s: Open = %v, %v", name, s, err)
		}
	}
	for _, issuer := range []string{"http://localhost:9", "https://127.0.0.1", "http://[::1]:9"} {
		s, err := Open(Config{Issuer: issuer})
		if err != nil {
			t.Errorf("issuer %s: %v", issuer, err)
			continue
		}
		s.Close()
	}
}

// TestSeedUsers pins the values that other programs rely on.
func TestSeedUsers(t *testing.T) {
	for name, want := range map[string]string{
		"mary": "mary@localhost", "Mary": "mary@localhost", `LAB\Mary`: "mary@localhost", "mary@lab.example": "mary@lab.example",
		"mary smith": "mary-smith@localhost", "mär,y": "m-r-y@localhost", "": "", "@": "", "ada@example.edu": "ada@example.edu",
	} {
		users := seedUsers(name)
		got := ""
		if len(users) == 3 || name == "ada@example.edu" {
			got = users[0].Username
		}
		if got != want {
			t.Errorf("seedUsers(%q): first user %q, want %q", name, got, want)
		}
	}
	// If these changed, users would lose their topics.
	for name, want := range map[string]string{
		"mary@localhost": "0df6b381-4c9b-5232-a767-fcce2e4ef666", "Mary@localhost": "0df6b381-4c9b-5232-a767-fcce2e4ef666",
		"ada@example.edu": "cecbec21-8ed7-5287-af26-023cff2818b6",
	} {
		if got := Subject(name); got != want {
			t.Errorf("Subject(%q) = %s, want %s", name, got, want)
		}
	}
	s := reopen(t, "", nil)
	defer s.Close()
	for _, id := range []string{ResourceServerID, ServiceClientID} {
		secret, err := s.ClientSecret(id)
		if raw := secret.Reveal(); err != nil || len(raw) != 44 || !strings.HasPrefix(raw, "dev/") || !strings.Contains(raw, "+") || !strings.HasSuffix(raw, "=") {
			t.Errorf("ClientSecret(%s): %d characters, %v", id, len(raw), err)
		}
	}
	for _, id := range []string{NativeClientID, "x"} {
		if secret, err := s.ClientSecret(id); err == nil || secret != "" {
			t.Errorf("ClientSecret(%s) = %v, nil", id, secret)
		}
	}
}

// TestConcurrency calls everything concurrently.
func TestConcurrency(t *testing.T) {
	h := start(t, func(c *Config) { c.Dir = t.TempDir() })
	var workers sync.WaitGroup
	for i := range 8 {
		workers.Go(func() {
			who := []string{"ada@example.edu", "grace@example.org", "mary@localhost"}[i%3]
			for range 10 {
				auth, ours := h.login(who)
				if !h.active(ours.AccessToken) {
					t.Error("a new token is inactive")
				}
				h.refresh(ours.RefreshToken).tokens(t)
				h.do("GET", userInfoPath, "", bearer(auth.AccessToken))
				h.post(revokePath, nil, "client_id", NativeClientID, "token", ours.AccessToken)
				if h.active(ours.AccessToken) {
					t.Error("a revoked token is active")
				}
				h.get("/_dev/state")
				h.Requests()
			}
		})
	}
	workers.Wait()
	// Of several clients that exchange the same code, one succeeds.
	code := h.code("ada@example.edu")
	var mu sync.Mutex
	got := map[int]int{}
	for range 16 {
		workers.Go(func() {
			a := h.exchange(code)
			mu.Lock()
			defer mu.Unlock()
			got[a.status]++
		})
	}
	workers.Wait()
	if got[200] != 1 || got[401] != 15 {
		t.Errorf("one code, taken at once: %v", got)
	}
}

// FuzzJournal applies arbitrary lines to the state. Everything that is accepted can be written and
// read again.
func FuzzJournal(f *testing.F) {
	s, err := Open(Config{Issuer: "http://127.0.0.1:9"})
	testkit.Must(f, err)
	if _, err := s.IssueTokens("ada@example.edu", NativeClientID, []string{Scope, "openid"}, true); err != nil {
		f.Fatal(err)
	}
	group, err := s.AddGroup(Group{Name: "Weather"})
	testkit.Must(f, err)
	testkit.Must(f, s.SetMember(GroupMember{Group: group, Identity: "grace@example.org"}))
	entries, err := s.state.snapshot()
	testkit.Must(f, err)
	lines, err := encode(entries)
	testkit.Must(f, err)
	f.Add(lines)
	f.Add(append(slices.Clone(lines), `{"no_group":"`+group+`"}`...))
	for line := range bytes.Lines(lines) {
		f.Add(line)
	}
	f.Add([]byte(`{"consent":{"id":1}}` + "\n" + `{"reset":true}` + "\n" + `{"dead":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}` + "\n"))
	read := func(raw []byte) (*state, error) {
		st := newState()
		return st, readLines(bytes.NewReader(raw), "journal", func(line []byte) error {
			var e entry
			if err := json.Unmarshal(line, &e); err != nil {
				return err
			}
			return st.apply(&e)
		})
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		st, err := read(raw)
		if err != nil {
			return
		}
		entries, err := st.snapshot()
		testkit.Must(t, err)
		lines, err := encode(entries)
		if err != nil {
			return // too long for a line
		}
		again, err := read(lines)
		if err != nil {
			t.Fatalf("%s: %v", lines, err)
		}
		if again.size() != st.size() {
			t.Fatalf("%d entries became %d", st.size(), again.size())
		}
	})
}

func BenchmarkIssue(b *testing.B) {
	for name, dir := range map[string]string{"memory": "", "disk": b.TempDir()} {
		b.Run(name, func(b *testing.B) {
			s, err := Open(Config{Issuer: "http://127.0.0.1:9", Dir: dir, MaxTokens: 1 << 30})
			testkit.Must(b, err)
			defer s.Close()
			for b.Loop() {
				if _, err := s.IssueTokens("ada@example.edu", NativeClientID, []string{Scope}, true); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

package globus_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestMain lets this test binary act as another program that uses the same tokens.
func TestMain(m *testing.M) {
	if os.Getenv("GLOBUS_TEST_PROGRAM") != "" {
		if err := program(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// program gets a token in many goroutines as soon as its standard input ends, and prints the hash
// of each token.
func program() error {
	client, err := globus.New(globus.Config{Issuer: os.Getenv("ISSUER"), ClientID: globusdev.NativeClientID})
	if err != nil {
		return err
	}
	var source *globus.Source
	if refresh := os.Getenv("REFRESH"); refresh != "" {
		source = client.RefreshSource(globus.Secret(refresh), globusdev.ResourceServerID, os.Getenv("DIR"))
	} else {
		store, err := globus.OpenStore(os.Getenv("STORE"))
		if err != nil {
			return err
		}
		source = client.StoredSource(store, globusdev.ResourceServerID)
	}
	defer source.Settle()
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	errs := make(chan error)
	for range 8 {
		go func() {
			token, err := source.Token(context.Background())
			fmt.Printf("%x\n", sha256.Sum256([]byte(token.AccessToken.Reveal())))
			errs <- err
		}()
	}
	for range 8 {
		if err := <-errs; err != nil {
			return err
		}
	}
	return nil
}

// programs runs n programs at the same time, and returns the hashes of the tokens that they got.
func programs(t *testing.T, n int, env ...string) map[string]int {
	t.Helper()
	var commands []*exec.Cmd
	var gates []io.Closer
	var outputs []*bufio.Scanner
	for range n {
		cmd, lines, gate := testkit.Rerun(t, append(env, "GLOBUS_TEST_PROGRAM=1")...)
		if !lines.Scan() || lines.Text() != "ready" {
			t.Fatalf("a program says %q", lines.Text())
		}
		commands, gates, outputs = append(commands, cmd), append(gates, gate), append(outputs, lines)
	}
	for _, gate := range gates {
		gate.Close()
	}
	hashes := map[string]int{}
	for i, cmd := range commands {
		for outputs[i].Scan() {
			hashes[outputs[i].Text()]++
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("a program: %v", err)
		}
	}
	return hashes
}

// rotating makes a globusdev's refresh tokens valid only once.
func rotating(cfg *globusdev.Config) { cfg.RefreshMode = globusdev.RefreshRotate }

// devLogin returns Ada's login at a globusdev, with an expired access token.
func devLogin(t *testing.T, d *dev) *globus.Login {
	t.Helper()
	grant, err := d.IssueTokens(ada, globusdev.NativeClientID, []string{"openid", "profile", "email", globusdev.Scope}, true)
	testkit.Must(t, err)
	login := &globus.Login{Issuer: d.Issuer(), ClientID: globusdev.NativeClientID, Identity: grant.Identity, Tokens: grant.Tokens}
	for i := range login.Tokens {
		login.Tokens[i].Expiry = time.Now().Add(-time.Second)
	}
	return login
}

// TestRefreshAcrossProcesses has several processes refresh with a refresh token that is valid only
// once. If one were used twice, all of them would lose the login.
func TestRefreshAcrossProcesses(t *testing.T) {
	d := newDev(t, rotating)
	store := newStore(t)
	save(t, store, devLogin(t, d))
	check := func(hashes map[string]int, refreshes int) {
		t.Helper()
		if len(hashes) != 1 {
			t.Errorf("%d different tokens, want one: %v", len(hashes), hashes)
		}
		for _, n := range hashes {
			if n != 6*8 {
				t.Errorf("%d tokens, want 48", n)
			}
		}
		if n := d.count("/v2/oauth2/token", "refresh_token"); n != refreshes {
			t.Errorf("%d refreshes, want %d", n, refreshes)
		}
	}
	check(programs(t, 6, "ISSUER="+d.Issuer(), "STORE="+store.Path()), 1)

	// The same with the rotated refresh token.
	login, err := store.Load()
	testkit.Must(t, err)
	for i := range login.Tokens {
		login.Tokens[i].Expiry = time.Now().Add(-time.Second)
	}
	save(t, store, login)
	check(programs(t, 6, "ISSUER="+d.Issuer(), "STORE="+store.Path()), 2)

	// The same with a refresh token in the environment.
	token, _ := devLogin(t, d).Token(globusdev.ResourceServerID)
	check(programs(t, 6, "ISSUER="+d.Issuer(), "REFRESH="+token.RefreshToken.Reveal(), "DIR="+t.TempDir()+"/cache"), 3)
}

// TestRefreshAfterAProcessWasKilled fails when a killed process keeps the lock.
func TestRefreshAfterAProcessWasKilled(t *testing.T) {
	d := newDev(t)
	store := newStore(t)
	save(t, store, devLogin(t, d))
	testkit.Must(t, d.FailNext(1, globusdev.Failure{Path: "/v2/oauth2/token", Delay: time.Minute}))
	arrived := make(chan struct{})
	var once sync.Once
	d.intercept(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/v2/oauth2/token" {
			once.Do(func() { close(arrived) })
		}
		return false
	})
	cmd, _, gate := testkit.Rerun(t, "GLOBUS_TEST_PROGRAM=1", "ISSUER="+d.Issuer(), "STORE="+store.Path())
	gate.Close()
	<-arrived // it holds the lock and waits for the response
	testkit.Must(t, cmd.Process.Kill())
	cmd.Wait()
	token, err := d.native(t).StoredSource(store, globusdev.ResourceServerID).Token(t.Context())
	if err != nil || !time.Now().Before(token.Expiry) {
		t.Errorf("Token = %v, %v", token, err)
	}
}

// TestEndAmidARenewal has a program use its old token during a renewal, and exit. The rotated
// refresh token must not be lost.
func TestEndAmidARenewal(t *testing.T) {
	d := newDev(t, rotating)
	store := newStore(t)
	login := devLogin(t, d)
	for i := range login.Tokens {
		login.Tokens[i].Obtained, login.Tokens[i].Expiry = time.Now().Add(-time.Hour), time.Now().Add(50*time.Second)
	}
	save(t, store, login)
	release := make(chan struct{})
	var once sync.Once
	d.intercept(func(w http.ResponseWriter, r *http.Request) (done bool) {
		if r.URL.Path != "/v2/oauth2/token" {
			return false
		}
		once.Do(func() {
			answer := httptest.NewRecorder()
			d.Server.ServeHTTP(answer, r)
			<-release
			maps.Copy(w.Header(), answer.Header())
			w.WriteHeader(answer.Code)
			w.Write(answer.Body.Bytes())
			done = true
		})
		return done
	})
	cmd, lines, gate := testkit.Rerun(t, "GLOBUS_TEST_PROGRAM=1", "ISSUER="+d.Issuer(), "STORE="+store.Path())
	gate.Close()
	for range 1 + 8 { // "ready", and the old token eight times
		if !lines.Scan() {
			t.Fatal("the program ended before it had its tokens")
		}
	}
	ended := make(chan error, 1)
	go func() {
		for lines.Scan() {
		}
		ended <- cmd.Wait()
	}()
	select {
	case <-ended:
		t.Error("the program ended during the renewal")
		ended <- nil
	case <-time.After(time.Second):
	}
	close(release)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	login, err := store.Load()
	testkit.Must(t, err)
	token, _ := login.Token(globusdev.ResourceServerID)
	if _, err := d.native(t).Refresh(t.Context(), token.RefreshToken); err != nil {
		t.Errorf("refresh with the token in the file: %v", err)
	}
}

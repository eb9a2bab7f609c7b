package globus_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// newStore returns an empty store in a directory of its own.
func newStore(t *testing.T) *globus.Store {
	t.Helper()
	s, err := globus.OpenStore(filepath.Join(t.TempDir(), "tokens", "local.json"))
	testkit.Must(t, err)
	return s
}

// adaLogin returns a login as Globus Auth would issue it at the given time.
func adaLogin(now time.Time) *globus.Login {
	other := sampleToken("canary-access-auth", "canary-refresh-auth", now)
	other.ResourceServer = "auth.globus.org"
	return &globus.Login{
		Issuer:   "https://auth.globus.org",
		ClientID: nativeID,
		Identity: globus.Identity{Subject: adaSubject, Username: "ada@example.edu", IdentitySet: []string{adaSubject}},
		Tokens:   []globus.Token{sampleToken("canary-access", "canary-refresh", now), other},
	}
}

func save(t *testing.T, s *globus.Store, login *globus.Login) {
	t.Helper()
	testkit.Must(t, s.Save(t.Context(), login))
}

func TestStoreKeepsALogin(t *testing.T) {
	s := newStore(t)
	if _, err := s.Load(); !errors.Is(err, globus.ErrLoginRequired) {
		t.Errorf("Load of nothing = %v, want ErrLoginRequired", err)
	}
	want := adaLogin(time.Now().UTC().Round(0))
	save(t, s, want)
	got, err := s.Load()
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("Load = %+v, %v, want %+v", got, err, want)
	}
	for path, want := range map[string]os.FileMode{s.Path(): 0o600, filepath.Dir(s.Path()): 0o700, s.Path() + ".lock": 0o600} {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, %v, want %v", filepath.Base(path), info.Mode().Perm(), err, want)
		}
	}
	data, err := os.ReadFile(s.Path())
	if err != nil || !strings.Contains(string(data), `"canary-access"`) {
		t.Errorf("the file holds no token: %v", err)
	}
	for range 2 { // twice is no error
		if err := s.Delete(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.Load(); !errors.Is(err, globus.ErrLoginRequired) {
		t.Errorf("Load after Delete = %v, want ErrLoginRequired", err)
	}
	if err := newStore(t).Delete(t.Context()); err != nil {
		t.Errorf("Delete without a folder = %v", err)
	}
}

func TestStoreRefusesWiderPermissions(t *testing.T) {
	for _, mode := range []os.FileMode{0o604, 0o640, 0o660, 0o602, 0o610, 0o644, 0o666} {
		t.Run(mode.String(), func(t *testing.T) {
			s := newStore(t)
			save(t, s, adaLogin(time.Now()))
			testkit.Must(t, os.Chmod(s.Path(), mode))
			calls := map[string]func() error{
				"OpenStore": func() error { _, err := globus.OpenStore(s.Path()); return err },
				"Load":      func() error { _, err := s.Load(); return err },
				"Save":      func() error { return s.Save(t.Context(), adaLogin(time.Now())) },
				"Check":     func() error { return s.Check("") },
			}
			for name, call := range calls {
				checkErr(t, name, call(), globus.ErrInsecureFile, "chmod 600")
			}
		})
	}
	for _, mode := range []os.FileMode{0o720, 0o702, 0o777} {
		t.Run("folder "+mode.String(), func(t *testing.T) {
			s := newStore(t)
			save(t, s, adaLogin(time.Now()))
			testkit.Must(t, os.Chmod(filepath.Dir(s.Path()), mode))
			_, err := s.Load()
			checkErr(t, "Load", err, globus.ErrInsecureFile, "chmod 700")
			checkErr(t, "Save", s.Save(t.Context(), adaLogin(time.Now())), globus.ErrInsecureFile, "chmod 700")
		})
	}
}

func TestStoreBelongsToOnePerson(t *testing.T) {
	s := newStore(t)
	save(t, s, adaLogin(time.Now()))
	save(t, s, adaLogin(time.Now())) // again succeeds
	bob := adaLogin(time.Now())
	bob.Identity = globus.Identity{Subject: bobSubject, Username: "ada@example.edu"} // the username is the same, but only the subject counts
	checkErr(t, "Save", s.Save(t.Context(), bob), globus.ErrOtherSubject, "ada@example.edu")
	checkErr(t, "Check", s.Check(bobSubject), globus.ErrOtherSubject, "ada@example.edu")
	for _, subject := range []string{"", adaSubject} {
		if err := s.Check(subject); err != nil {
			t.Errorf("Check(%q) = %v", subject, err)
		}
	}
	got, err := s.Load()
	if err != nil || got.Identity.Subject != adaSubject {
		t.Errorf("Load = %v, %v, want Ada's login untouched", got, err)
	}
	testkit.Must(t, s.Delete(t.Context()))
	save(t, s, bob)
}

func TestStoreDamage(t *testing.T) {
	s := newStore(t)
	save(t, s, adaLogin(time.Now()))
	whole := testkit.ReadFile(t, s.Path())
	for name, content := range map[string][]byte{
		"empty": {}, "cut": whole[:len(whole)/2], "binary": {0, 1, 2}, "too large": append(bytes.Clone(whole), bytes.Repeat([]byte(" "), 1<<20)...),
	} {
		t.Run(name, func(t *testing.T) {
			testkit.Must(t, os.WriteFile(s.Path(), content, 0o600))
			if _, err := s.Load(); err == nil || !strings.Contains(err.Error(), "log in again") {
				t.Errorf("Load = %v, want advice to log in again", err)
			}
			save(t, s, adaLogin(time.Now())) // a new login replaces the damaged file
			if _, err := s.Load(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("of a later version", func(t *testing.T) {
		later := strings.Replace(string(whole), `"version": 1`, `"version": 2`, 1)
		testkit.Must(t, os.WriteFile(s.Path(), []byte(later), 0o600))
		if err := s.Save(t.Context(), adaLogin(time.Now())); err == nil {
			t.Error("Save overwrote what a later version wrote")
		}
	})
	t.Run("a folder in its place", func(t *testing.T) {
		s := newStore(t)
		testkit.Must(t, os.MkdirAll(s.Path(), 0o700))
		if _, err := s.Load(); err == nil || errors.Is(err, globus.ErrLoginRequired) {
			t.Errorf("Load = %v, want a plain error", err)
		}
	})
	t.Run("killed while writing", func(t *testing.T) {
		s := newStore(t)
		save(t, s, adaLogin(time.Now()))
		testkit.Must(t, os.WriteFile(s.Path()+".tmp", []byte(`{"half`), 0o600))
		if _, err := s.Load(); err != nil {
			t.Error(err)
		}
		save(t, s, adaLogin(time.Now()))
		if _, err := os.Stat(s.Path() + ".tmp"); !os.IsNotExist(err) {
			t.Errorf("the leftover is still there: %v", err)
		}
	})
}

func TestStoreWritersTakeTurns(t *testing.T) {
	s := newStore(t)
	save(t, s, adaLogin(time.Now()))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			other, err := globus.OpenStore(s.Path())
			if err != nil {
				t.Error(err)
				return
			}
			for j := range 5 {
				login := adaLogin(time.Now())
				login.Tokens[0].AccessToken = globus.Secret(fmt.Sprintf("writer-%d-%d", i, j))
				if err := other.Save(t.Context(), login); err != nil {
					t.Error(err)
				}
				if got, err := other.Load(); err != nil || len(got.Tokens) != 2 {
					t.Errorf("Load = %v, %v", got, err)
				}
			}
		})
	}
	wg.Wait()
}

func TestStoreLockIsBoundedByContext(t *testing.T) {
	s := newStore(t)
	save(t, s, adaLogin(time.Now()))
	unlock := globus.LockStore(t, s)
	defer unlock()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.Save(ctx, adaLogin(time.Now())); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Save = %v, want the deadline", err)
		}
		if err := s.Delete(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Delete = %v, want the deadline", err)
		}
	})
	if _, err := s.Load(); err != nil {
		t.Errorf("Load while locked = %v", err) // readers do not need the lock
	}
}

func TestLogout(t *testing.T) {
	for name, c := range map[string]struct {
		answers []reply
		client  func(*globus.Config)
		want    error
		left    bool // the tokens are still in the file
		sent    int
	}{
		"revokes and deletes": {[]reply{ok(`{"active":false}`)}, nil, nil, false, 4},
		"outage":              {[]reply{ok(`{"active":false}`), status(503, "")}, nil, globus.ErrUnavailable, true, 5},
		"page of a proxy":     {[]reply{ok(html)}, nil, globus.ErrMisconfigured, true, 1},
		"no such endpoint":    {[]reply{status(404, "{}")}, nil, globus.ErrMisconfigured, true, 1},
		"an empty answer":     {[]reply{ok("")}, nil, nil, false, 4},
		"client is gone":      {[]reply{status(401, globusUnauthorized)}, nil, globus.ErrClientRefused, false, 4},
		"another Globus Auth": {[]reply{ok(`{"active":false}`)}, func(cfg *globus.Config) { cfg.Issuer = "https://auth.example.org" }, errOther, true, 0},
		"another client":      {[]reply{ok(`{"active":false}`)}, confidential, errOther, true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStore(t)
				save(t, s, adaLogin(time.Now()))
				w := &wire{handler: answers(c.answers...)}
				client := w.client(t)
				if c.client != nil {
					client = w.client(t, c.client)
				}
				checkErr(t, "Logout", client.Logout(t.Context(), s), c.want, "")
				if _, err := s.Load(); (err == nil) != c.left {
					t.Errorf("Load after Logout = %v, want tokens left: %t", err, c.left)
				}
				if n := len(w.sent()); n != c.sent {
					t.Errorf("sent %d requests, want %d", n, c.sent)
				}
				revoked := map[string]bool{}
				for _, r := range w.sent() {
					revoked[r.form.Get("token")] = true
				}
				if c.want == nil && len(revoked) != 4 {
					t.Errorf("revoked %d tokens, want 2 access and 2 refresh tokens", len(revoked))
				}
			})
		})
	}
	t.Run("nobody is logged in", func(t *testing.T) {
		w := &wire{}
		if err := w.client(t).Logout(t.Context(), newStore(t)); err != nil || len(w.sent()) != 0 {
			t.Errorf("Logout = %v after %d requests", err, len(w.sent()))
		}
	})
	t.Run("the file is damaged", func(t *testing.T) {
		s := newStore(t)
		save(t, s, adaLogin(time.Now()))
		testkit.Must(t, os.WriteFile(s.Path(), []byte("{"), 0o600))
		w := &wire{}
		if err := w.client(t).Logout(t.Context(), s); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(s.Path()); !os.IsNotExist(err) {
			t.Errorf("the file is still there: %v", err)
		}
	})
}

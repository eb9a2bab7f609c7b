package apache

import (
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/gofrs/flock"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

const ada = "ada00000-0000-4000-8000-000000000001"

func keysConfig(dir string) KeysConfig {
	return KeysConfig{File: filepath.Join(dir, "signing-keys.json"), JWKSFile: filepath.Join(dir, "jwks.json")}
}

func openKeys(t *testing.T, cfg KeysConfig) *Keys {
	t.Helper()
	k, err := OpenKeys(cfg)
	testkit.Must(t, err)
	return k
}

// published returns the public keys that a broker would read now.
func published(t *testing.T, k *Keys) jose.JSONWebKeySet {
	t.Helper()
	data := testkit.ReadFile(t, k.cfg.JWKSFile)
	var set jose.JSONWebKeySet
	testkit.Must(t, json.Unmarshal(data, &set))
	return set
}

// verify checks the signature of a token as a broker with these public keys would.
func verify(t *testing.T, set jose.JSONWebKeySet, token string) (keyID string, claims jwt.Claims) {
	t.Helper()
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256})
	testkit.Must(t, err)
	if err := parsed.Claims(set, &claims); err != nil {
		t.Errorf("the published keys do not verify a token: %v", err)
	}
	return parsed.Headers[0].KeyID, claims
}

func sign(t *testing.T, k *Keys) string {
	t.Helper()
	token, err := k.sign("the-gateway", "the-cluster", ada, time.Minute)
	testkit.Must(t, err)
	return token
}

func TestToken(t *testing.T) {
	k := openKeys(t, keysConfig(t.TempDir()))
	before := time.Now()
	_, claims := verify(t, published(t, k), sign(t, k))
	if claims.Issuer != "the-gateway" || !slices.Equal(claims.Audience, []string{"the-cluster"}) || claims.Subject != ada {
		t.Errorf("the token says %+v", claims)
	}
	if e := claims.Expiry.Time(); e.Before(before.Add(time.Minute)) || e.After(time.Now().Add(time.Minute+time.Second)) {
		t.Errorf("the token expires at %v, want a minute from %v, and not earlier", e, before)
	}
	if claims.IssuedAt.Time().After(time.Now()) {
		t.Error("the token is from the future")
	}
}

// TestKeysTakeTurns rotates through ten keys. A broker that reads the public keys as rarely as
// Settle allows must know the key of every token.
func TestKeysTakeTurns(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		cfg := keysConfig(dir)
		cfg.MaxAge = time.Hour
		k := openKeys(t, cfg)
		var late jose.JSONWebKeySet // the keys that this broker has read
		var read time.Time
		seen, most := map[string]bool{}, 0
		for began := time.Now(); time.Since(began) < 10*time.Hour-time.Minute; time.Sleep(20 * time.Second) {
			set := published(t, k)
			if time.Since(read) >= k.cfg.Settle {
				late, read = set, time.Now()
			}
			id, _ := verify(t, set, sign(t, k))
			if len(late.Key(id)) == 0 {
				t.Fatalf("key %s signs, and a broker that reads late does not know it", id)
			}
			seen[id] = true
			most = max(most, len(set.Keys))
		}
		if len(seen) != 10 || most != 2 {
			t.Errorf("%d keys signed in ten hours, and at most %d were published at once; want 10 and 2", len(seen), most)
		}
	})
}

// TestRotate checks the signing key and the published keys at each step of a rotation.
func TestRotate(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		k := openKeys(t, keysConfig(dir))
		time.Sleep(time.Hour)
		first, _ := verify(t, published(t, k), sign(t, k))
		testkit.Must(t, k.Rotate())
		for _, step := range []struct {
			after time.Duration
			first bool // the first key still signs
			keys  int
		}{
			{0, true, 2},
			{59 * time.Second, true, 2},
			{time.Minute, false, 2},
			{119 * time.Second, false, 2},
			{2 * time.Minute, false, 1},
		} {
			time.Sleep(time.Until(k.keys[len(k.keys)-1].Added.Add(step.after)))
			id, _ := verify(t, published(t, k), sign(t, k))
			if n := len(published(t, k).Keys); (id == first) != step.first || n != step.keys {
				t.Errorf("%v after Rotate: the first key signs: %t, and %d keys are published; want %t and %d", step.after, id == first, n, step.first, step.keys)
			}
		}
	})
}

func TestKeysSurviveARestart(t *testing.T) {
	cfg := keysConfig(t.TempDir())
	token := sign(t, openKeys(t, cfg))
	testkit.Must(t, os.Remove(cfg.JWKSFile))
	verify(t, published(t, openKeys(t, cfg)), token)
}

// TestKeysOfSeveralProcesses checks that no process removes a key with which another one signs.
func TestKeysOfSeveralProcesses(t *testing.T) {
	cfg := keysConfig(t.TempDir())
	var wg sync.WaitGroup
	var keys [4]*Keys
	for i := range keys {
		wg.Go(func() {
			k, err := OpenKeys(cfg)
			if err != nil {
				t.Error(err)
				return
			}
			keys[i] = k
			if err := k.Rotate(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	if n := len(published(t, keys[0]).Keys); n != 5 {
		t.Errorf("%d keys, want the first and one for each call of Rotate", n)
	}
	// After the file has been deleted, all processes use the same new key at once.
	testkit.Must(t, os.Remove(cfg.File))
	ids := map[string]bool{}
	for _, k := range keys {
		token := sign(t, k)
		id, _ := verify(t, published(t, k), token)
		ids[id] = true
	}
	if n := len(published(t, keys[0]).Keys); n != 1 || len(ids) != 1 {
		t.Errorf("%d keys sign and %d are published after they were deleted, want one new one", len(ids), n)
	}
}

// failures makes writes to a file fail.
type failures struct {
	file  string // "" if no write fails
	wrote int    // number of writes that failed
}

func (f *failures) replace(name string, data []byte, mode os.FileMode) error {
	if name == f.file {
		f.wrote++
		return &os.PathError{Op: "write", Path: name, Err: syscall.ENOSPC}
	}
	return replaceFile(name, data, mode)
}

// TestRotationFails checks that the current key continues to sign while the next one cannot be
// written, even across restarts. Once writes succeed again, the next key must not sign before the
// broker has had the time to read it.
func TestRotationFails(t *testing.T) {
	const step = 5 * time.Second
	private := func(cfg KeysConfig) string { return cfg.File }
	public := func(cfg KeysConfig) string { return cfg.JWKSFile }
	for _, test := range []struct {
		name    string
		file    func(KeysConfig) string
		restart bool
	}{
		{"private keys", private, false},
		{"public keys", public, false},
		{"private keys, restarted", private, true},
		{"public keys, restarted", public, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := keysConfig(t.TempDir())
			synctest.Test(t, func(t *testing.T) {
				var said strings.Builder
				cfg.Diagnostics = slog.New(slog.NewTextHandler(&said, nil))
				var disk failures
				open := func() *Keys {
					k, err := openKeysWith(cfg, disk.replace)
					testkit.Must(t, err)
					return k
				}
				k := open()
				first, _ := verify(t, published(t, k), sign(t, k))

				disk.file = test.file(cfg)
				time.Sleep(k.cfg.MaxAge)
				for began := time.Now(); time.Since(began) < 10*time.Minute; time.Sleep(step) {
					if id, _ := verify(t, published(t, k), sign(t, k)); id != first {
						t.Fatalf("key %s signs %v after the disk is full, want the first key", id, time.Since(began))
					}
					if test.restart && time.Since(began)%time.Minute == 0 {
						k = open()
					}
				}
				warnings := strings.Count(said.String(), "level=WARN")
				if warnings < 10 || warnings > 40 || disk.wrote > 40 || !strings.Contains(said.String(), "no space left") || !strings.Contains(said.String(), disk.file) {
					t.Errorf("in ten minutes it failed %d times and warned %d times: %.500s", disk.wrote, warnings, said.String())
				}

				disk.file = ""
				late, read := published(t, k), time.Now() // a broker that reads the keys as rarely as Settle allows
				second, began := first, time.Now()
				for ; second == first && time.Since(began) < time.Hour; time.Sleep(step) {
					set := published(t, k)
					if time.Since(read) >= k.cfg.Settle {
						late, read = set, time.Now()
					}
					second, _ = verify(t, set, sign(t, k))
					if len(late.Key(second)) == 0 {
						t.Fatalf("key %s signs, and a broker that reads late does not know it", second)
					}
				}
				if took := time.Since(began); second == first || took > 2*k.cfg.Settle+step {
					t.Errorf("the next key signs after %v (%t), want it to take over when it has settled", took, second != first)
				}
			})
		})
	}
}

// TestKeysAreLocked checks that a process that is suspended while it holds the lock does not block
// logins in other processes.
func TestKeysAreLocked(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		k := openKeys(t, keysConfig(dir))
		other := flock.New(k.cfg.File + ".lock")
		testkit.Must(t, other.Lock())
		time.Sleep(k.cfg.MaxAge)
		began := time.Now()
		first, _ := verify(t, published(t, k), sign(t, k))
		if took := time.Since(began); took > lockTimeout {
			t.Errorf("signing takes %v while the keys are locked, want at most %v", took, lockTimeout)
		}
		testkit.Must(t, other.Unlock())
		time.Sleep(k.cfg.Settle)
		sign(t, k)
		time.Sleep(k.cfg.Settle)
		if id, _ := verify(t, published(t, k), sign(t, k)); id == first {
			t.Error("the first key still signs after the lock was given back")
		}
	})
}

// TestNoKeyAtHand checks that OpenKeys fails if it cannot write and no key is published yet.
func TestNoKeyAtHand(t *testing.T) {
	cfg := keysConfig(t.TempDir())
	for _, file := range []string{cfg.File, cfg.JWKSFile} {
		disk := failures{file: file}
		if _, err := openKeysWith(cfg, disk.replace); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("OpenKeys = %v when %s cannot be written, want that error", err, file)
		}
	}
}

func TestKeyFiles(t *testing.T) {
	cfg := keysConfig(t.TempDir())
	k := openKeys(t, cfg)
	for name, want := range map[string]os.FileMode{cfg.File: 0o600, cfg.JWKSFile: 0o644} {
		info, err := os.Stat(name)
		testkit.Must(t, err)
		if runtime.GOOS != "windows" && info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v", name, info.Mode().Perm(), want)
		}
	}
	public := testkit.ReadFile(t, cfg.JWKSFile)
	if strings.Contains(string(public), `"d"`) {
		t.Error("the public file has private keys")
	}
	private := testkit.ReadFile(t, cfg.File)
	if !strings.Contains(string(private), `"d"`) {
		t.Error("the private file has no private keys: this test looks for the wrong thing")
	}
	if matches, _ := filepath.Glob(filepath.Join(filepath.Dir(cfg.File), "*.json.*")); len(matches) != 1 { // the lock
		t.Errorf("left behind: %v", matches)
	}
	sign(t, k)
}

func TestKeysThatAreRefused(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, file string){
		"others can read them": func(t *testing.T, file string) {
			testkit.Must(t, os.Chmod(file, 0o640))
		},
		"damaged": func(t *testing.T, file string) { write(t, file, `{"keys":[{"added":"2026-`) },
		"not ours": func(t *testing.T, file string) {
			write(t, file, `{"keys":[{"added":"2026-01-01T00:00:00Z","key":{"kty":"oct","kid":"x","k":"c2VjcmV0"}}]}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := keysConfig(t.TempDir())
			openKeys(t, cfg)
			spoil(t, cfg.File)
			_, err := OpenKeys(cfg)
			if err == nil || !strings.Contains(err.Error(), cfg.File) || !strings.Contains(err.Error(), "delete it") {
				t.Errorf("OpenKeys = %v, want an error that says what to do", err)
			}
		})
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	testkit.Must(t, os.WriteFile(file, []byte(text), 0o600))
}

func TestConfigs(t *testing.T) {
	dir := t.TempDir()
	for _, cfg := range []KeysConfig{
		{},
		{File: filepath.Join(dir, "a")},
		{File: filepath.Join(dir, "a"), JWKSFile: filepath.Join(dir, "b"), MaxAge: time.Minute},
		{File: filepath.Join(dir, "none", "a"), JWKSFile: filepath.Join(dir, "b")},
	} {
		if _, err := OpenKeys(cfg); err == nil {
			t.Errorf("OpenKeys(%+v) = nil, want an error", cfg)
		}
	}
	keys := openKeys(t, keysConfig(dir))
	good := Config{Address: "127.0.0.1:1", Issuer: "i", Audience: "a", Keys: keys}
	if _, err := New(good); err != nil {
		t.Error(err)
	}
	for _, spoil := range []func(*Config){
		func(cfg *Config) { cfg.Address = "" },
		func(cfg *Config) { cfg.Issuer = "" },
		func(cfg *Config) { cfg.Audience = "" },
		func(cfg *Config) { cfg.Keys = nil },
		func(cfg *Config) { cfg.TokenLifetime = time.Second },
	} {
		cfg := good
		spoil(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("New(%+v) = nil, want an error", cfg)
		}
	}
}

// TestReadKeys checks that ReadKeys uses the published keys and changes no file, even though a
// rotation has long been due.
func TestReadKeys(t *testing.T) {
	cfg := keysConfig(t.TempDir())
	if _, err := ReadKeys(cfg); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ReadKeys without a file = %v, want fs.ErrNotExist", err)
	}
	if made, err := os.ReadDir(filepath.Dir(cfg.File)); err != nil || len(made) > 0 {
		t.Errorf("it has made %v, %v", made, err)
	}
	synctest.Test(t, func(t *testing.T) {
		set := published(t, openKeys(t, cfg))
		testkit.Must(t, os.Remove(cfg.File+".lock"))
		before := testkit.ReadFile(t, cfg.File)
		time.Sleep(30*24*time.Hour + 30*time.Second)
		k, err := ReadKeys(cfg)
		if err != nil || !k.Overdue().IsZero() {
			t.Fatalf("ReadKeys = %v; overdue since %v, want that the gateway has a minute", err, k.Overdue())
		}
		time.Sleep(time.Hour)
		verify(t, set, sign(t, k))
		if since := time.Since(k.Overdue()); since != time.Hour+30*time.Second {
			t.Errorf("overdue for %v, want an hour and 30 s", since)
		}
		after, err := os.ReadFile(cfg.File)
		if err != nil || string(after) != string(before) {
			t.Errorf("the keys have changed: %v", err)
		}
		if made, err := os.ReadDir(filepath.Dir(cfg.File)); err != nil || len(made) != 2 {
			t.Errorf("there are %v, %v, want the two files", made, err)
		}
	})
	testkit.Must(t, os.WriteFile(cfg.JWKSFile, []byte(`{"keys":[]}`), 0o644))
	if _, err := ReadKeys(cfg); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ReadKeys with keys that are not published = %v, want an error that says so", err)
	}
}

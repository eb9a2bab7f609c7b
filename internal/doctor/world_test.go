package doctor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/accesskey"
	"github.com/diaspora-streams/diaspora/internal/spool"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

const ada = "ada@example.edu"

// world is a user's machine, and a fabric that the user is logged in to.
type world struct {
	*testing.T
	fabric *fabric.Fabric
	vars   map[string]string
	cfg    Config
	visit  *visit
	login  *globus.Login
	then   map[string]func() // by check: called when the check has run
}

// newWorld returns a world without faults: ada is logged in and owns the topic weather.
func newWorld(t *testing.T, cfg fabric.Config) *world {
	t.Helper()
	f := fabrictest.Start(t, cfg)
	dir := t.TempDir()
	w := &world{T: t, fabric: f, then: map[string]func(){}, vars: map[string]string{
		"DIASPORA_CONFIG_DIR": filepath.Join(dir, "config"),
		"DIASPORA_STATE_DIR":  filepath.Join(dir, "state"),
	}}
	w.cfg = Config{
		Topic:   "weather",
		Getenv:  func(name string) string { return w.vars[name] },
		Version: "devel",
		Timeout: 20 * time.Second,
		Spools: func() (string, []string, error) {
			home := filepath.Join(w.vars["DIASPORA_STATE_DIR"], "spool", "home")
			dirs, err := filepath.Glob(filepath.Join(home, "*"))
			return home, dirs, err
		},
		Mistyped: func(topic, spool string, used bool) string {
			return fmt.Sprintf("mistyped %s in %s, used: %t", topic, filepath.Base(spool), used)
		},
	}
	w.login = fabrictest.Login(t, f, ada)
	w.store(f.URL(), f.Discovery())
	fabrictest.Claim(t, w.as(), "weather")
	return w
}

// as returns the configuration with which ada reaches the fabric, whatever is broken on her
// machine.
func (w *world) as() diaspora.Config {
	w.Helper()
	token, ok := w.login.Token(w.fabric.Discovery().Globus.ResourceServer)
	if !ok {
		w.Fatal("there is no token")
	}
	return diaspora.Config{URL: w.fabric.URL(), TokenSource: globus.StaticToken(token), Identity: w.login.Identity}
}

// store makes the profile "home" the current one.
func (w *world) store(address string, d diaspora.Discovery) {
	w.Helper()
	profiles := diaspora.OpenProfiles(w.vars["DIASPORA_CONFIG_DIR"])
	testkit.Must(w, profiles.Save(diaspora.Profile{Name: "home", URL: address, Discovery: d}))
	testkit.Must(w, profiles.Use("home"))
	store, err := profiles.Store("home")
	if err == nil {
		err = store.Save(w.Context(), w.login)
	}
	testkit.Must(w, err)
}

func (w *world) tokenFile() string {
	return filepath.Join(w.vars["DIASPORA_CONFIG_DIR"], "tokens", "home.json")
}

// changeLogin stores the login with its tokens changed.
func (w *world) changeLogin(change func(*globus.Token)) {
	w.Helper()
	for i := range w.login.Tokens {
		change(&w.login.Tokens[i])
	}
	w.store(w.fabric.URL(), w.fabric.Discovery())
}

// examine runs all checks and returns their findings.
func (w *world) examine() (*Report, map[string]Finding) {
	w.Helper()
	for name, value := range w.vars {
		w.cfg.Environ = append(w.cfg.Environ, name+"="+value)
	}
	w.visit = newVisit(w.cfg)
	findings := map[string]Finding{}
	report := w.visit.examine(w.Context(), func(f Finding) {
		findings[f.Check] = f
		if then := w.then[f.Check]; then != nil {
			then()
		}
	})
	return report, findings
}

func (w *world) write(name, content string) string {
	w.Helper()
	path := filepath.Join(w.TempDir(), name)
	testkit.Must(w, os.WriteFile(path, []byte(content), 0o600))
	return path
}

// spool opens a spool of this machine and calls a function with it.
func (w *world) spool(opts spool.Options, do func(*spool.Spool)) string {
	w.Helper()
	opts.Dir = filepath.Join(w.vars["DIASPORA_STATE_DIR"], "spool", "home", "1")
	opts.Subject = orElse(opts.Subject, w.login.Identity.Subject)
	s, err := spool.Open(w.Context(), opts)
	testkit.Must(w, err)
	do(s)
	testkit.Must(w, s.Close())
	return opts.Dir
}

// service makes a spool with an event, which a process uses until the test ends. why is its reason for not sending it.
func (w *world) service(why string) {
	w.Helper()
	s, err := spool.Open(w.Context(), spool.Options{Dir: filepath.Join(w.vars["DIASPORA_STATE_DIR"], "spool", "home", "1"), Subject: w.login.Identity.Subject})
	testkit.Must(w, err)
	w.Cleanup(func() { s.Close() })
	w.append(s, "a")
	testkit.Must(w, s.Note(why))
}

func (w *world) append(s *spool.Spool, values ...string) {
	w.Helper()
	for _, value := range values {
		testkit.Must(w, s.Append(w.Context(), spool.Entry{Topic: "weather", Value: []byte(value), ID: "id", Time: time.Now()}))
	}
}

// hurry reduces the time limit of the checks after the given one, for a test in which a check uses
// it up.
func (w *world) hurry(after string) { w.then[after] = w.hurryNow }

func (w *world) hurryNow() { w.visit.Timeout, w.visit.cfg.DialTimeout = time.Second, time.Second }

func (w *world) chmod(path string, mode os.FileMode) {
	w.Helper()
	testkit.Must(w, os.Chmod(path, mode))
}

func (w *world) overwrite(path, content string) {
	w.Helper()
	testkit.Must(w, os.WriteFile(path, []byte(content), 0o600))
}

// release releases topics of ada's: weather, if none is named.
func (w *world) release(topics ...string) {
	w.Helper()
	if topics == nil {
		topics = []string{"weather"}
	}
	for _, topic := range topics {
		testkit.Must(w, fabrictest.Client(w, w.as()).Release(w.Context(), topic))
	}
}

func (w *world) claimAs(who, topic string) {
	w.Helper()
	fabrictest.Claim(w, fabrictest.As(w, w.fabric, who), topic)
}

// key creates an access key of ada's.
func (w *world) key(req diaspora.AccessKeyRequest) diaspora.NewAccessKey {
	w.Helper()
	return fabrictest.CreateKey(w, w.as(), req)
}

// keyFile writes a file with a key of the fabric.
func (w *world) keyFile(key diaspora.NewAccessKey) string {
	w.Helper()
	text, err := accesskey.Format("", func(name string) string {
		return map[string]string{"DIASPORA_URL": w.fabric.URL(), "DIASPORA_KEY_ID": key.ID, "DIASPORA_KEY_SECRET": key.Secret.Reveal()}[name]
	})
	testkit.Must(w, err)
	return w.write("key.env", text)
}

// useKey signs in with a token of an access key that has fewer rights than ada.
func (w *world) useKey(req diaspora.AccessKeyRequest) {
	w.Helper()
	token := fabrictest.Exchange(w, w.fabric, w.key(req))
	w.cfg.Topic = "weather"
	w.then["configuration"] = func() {
		w.visit.cfg.TokenSource = globus.StaticToken(globus.Token{AccessToken: token, Expiry: time.Now().Add(time.Hour)})
		var err error
		w.visit.client, err = diaspora.NewClient(w.visit.cfg)
		testkit.Must(w, err)
	}
}

// forgotten waits until the fabric has noticed that ada's token was revoked.
func (w *world) forgotten() {
	w.Helper()
	client := fabrictest.Client(w, w.as())
	for {
		if _, err := client.Identity(w.Context()); errors.Is(err, diaspora.ErrUnauthenticated) {
			return
		} else if w.Context().Err() != nil {
			w.Fatal(err)
		}
	}
}

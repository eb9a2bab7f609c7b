package fabric_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/spool"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// withKey returns the configuration of a program that has only an access key.
func withKey(f *fabric.Fabric, key diaspora.NewAccessKey) diaspora.Config {
	return diaspora.Config{URL: f.URL(), Key: diaspora.Key{ID: key.ID, Secret: key.Secret}, DialTimeout: 20 * time.Second}
}

// TestKeyIsEnough logs and reads with only an access key while Globus Auth is unreachable.
func TestKeyIsEnough(t *testing.T) {
	t.Parallel()
	f := fabrictest.Start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	fabrictest.Claim(t, cfg, "weather")
	full := withKey(f, fabrictest.CreateKey(t, cfg, diaspora.AccessKeyRequest{Name: "full", Read: true, Write: true}))
	reads := fabrictest.CreateKey(t, cfg, diaspora.AccessKeyRequest{Name: "reads", Read: true, Topics: []string{"weather"}})
	testkit.Must(t, f.StopGlobus())
	spooled := full
	spooled.SpoolDir = filepath.Join(t.TempDir(), "spool")
	brokersOnly := full
	brokersOnly.URL, brokersOnly.Brokers = "", f.Brokers()
	for i, with := range []diaspora.Config{full, spooled, brokersOnly} {
		logger := fabrictest.OpenLogger(t, with)
		testkit.Must(t, logger.Log(testkit.Within(t), diaspora.Event{Topic: "weather", Value: fmt.Append(nil, i)}))
		testkit.Must(t, logger.Close(testkit.Within(t)))
	}
	if got := fabrictest.Values(fabrictest.ReadAll(t, withKey(f, reads), "weather")); !slices.Equal(got, []string{"0", "1", "2"}) {
		t.Errorf("the topic has %q", got)
	}
	group := fabrictest.OpenConsumer(t, full, diaspora.ConsumerOptions{Topics: []string{"weather"}, Group: "analysis", Until: diaspora.End})
	n := 0
	for _, err := range group.Records(testkit.Within(t)) {
		testkit.Must(t, err)
		n++
	}
	if n != 3 {
		t.Errorf("a group reads %d events, want 3", n)
	}
	if err := dial(t, full).Ping(testkit.Within(t)); err != nil {
		t.Error(err)
	}
	client := fabrictest.Client(t, full)
	if who, err := client.Identity(testkit.Within(t)); err != nil || who.Subject != cfg.Identity.Subject {
		t.Errorf("Identity = %+v, %v, want %s", who, err, cfg.Identity.Subject)
	}

	err := fabrictest.OpenLogger(t, withKey(f, reads)).Log(testkit.Within(t), diaspora.Event{Topic: "weather"})
	if !errors.Is(err, diaspora.ErrPermission) || !strings.Contains(err.Error(), "the access key "+reads.ID+" may not write to it") || !strings.Contains(diaspora.Hint(err), "use an access key that may") {
		t.Errorf("a key for reading logs: %v", err)
	}
}

// TestBadKeyIsRefused checks that each function that opens a client reports an invalid access key in its
// error.
func TestBadKeyIsRefused(t *testing.T) {
	t.Parallel()
	f := fabrictest.Start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	fabrictest.Claim(t, cfg, "weather")
	key := fabrictest.CreateKey(t, cfg, diaspora.AccessKeyRequest{Name: "k", Read: true, Write: true})
	gone := fabrictest.CreateKey(t, cfg, diaspora.AccessKeyRequest{Name: "gone", Read: true, Write: true})
	revokeKey(t, cfg, gone.ID)
	wrong := key
	wrong.Secret = gone.Secret
	for words, with := range map[string]diaspora.Config{
		"the access key was revoked":                             withKey(f, gone),
		"there is no such access key, or this is not its secret": withKey(f, wrong),
	} {
		_, logger := diaspora.OpenLogger(testkit.Within(t), with)
		_, consumer := diaspora.OpenConsumer(testkit.Within(t), with, diaspora.ConsumerOptions{Topics: []string{"weather"}})
		_, dial := diaspora.Dial(testkit.Within(t), with)
		for op, err := range map[string]error{"OpenLogger": logger, "OpenConsumer": consumer, "Dial": dial} {
			if !errors.Is(err, diaspora.ErrUnauthenticated) || !strings.Contains(err.Error(), words) || !strings.Contains(diaspora.Hint(err), "diaspora key create") {
				t.Errorf("%s: %v, want %q", op, err, words)
			}
			if err != nil && (strings.Contains(err.Error(), key.Secret.Reveal()) || strings.Contains(err.Error(), gone.Secret.Reveal())) {
				t.Errorf("%s: the error shows a secret", op)
			}
		}
	}
}

// TestRefusedCredentialSpools starts a program with a credential that is no longer valid, on a machine that
// has not used it before. The events must be kept in a new spool, from which the same user can send them
// with another credential.
func TestRefusedCredentialSpools(t *testing.T) {
	t.Parallel()
	f := fabrictest.Start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	fabrictest.Claim(t, cfg, "weather")
	good := fabrictest.CreateKey(t, cfg, diaspora.AccessKeyRequest{Name: "good", Write: true})
	gone := fabrictest.CreateKey(t, cfg, diaspora.AccessKeyRequest{Name: "gone", Write: true})
	revokeKey(t, cfg, gone.ID)
	login := fabrictest.Login(t, f, grace)
	testkit.Must(t, f.RevokeTokens(login.Identity.Username))
	wrong := good
	wrong.Secret = gone.Secret
	unknown := gone
	unknown.ID = "key-abcdefghij234567"
	for name, c := range map[string]struct {
		env   map[string]string
		words string
		sends bool // another access key of the same user can send the events
	}{
		"revoked key":     {map[string]string{"DIASPORA_KEY_ID": gone.ID, "DIASPORA_KEY_SECRET": gone.Secret.Reveal()}, "the access key was revoked", true},
		"wrong secret":    {map[string]string{"DIASPORA_KEY_ID": wrong.ID, "DIASPORA_KEY_SECRET": wrong.Secret.Reveal()}, "there is no such access key, or this is not its secret", true},
		"unknown key":     {map[string]string{"DIASPORA_KEY_ID": unknown.ID, "DIASPORA_KEY_SECRET": unknown.Secret.Reveal()}, "there is no such access key", false},
		"revoked refresh": {map[string]string{"DIASPORA_REFRESH": login.Tokens[0].RefreshToken.Reveal()}, "the refresh token", false},
		"no token":        {map[string]string{"DIASPORA_REFRESH": "nonsense"}, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			c.env["DIASPORA_URL"], c.env["DIASPORA_CONFIG_DIR"] = f.URL(), t.TempDir()
			with, err := diaspora.ConfigFromEnv(func(name string) string { return c.env[name] })
			testkit.Must(t, err)
			with.SpoolDir = filepath.Join(t.TempDir(), "spool")
			logger, err := diaspora.OpenLogger(testkit.Within(t), with)
			testkit.Must(t, err)
			if err := logger.Log(testkit.Within(t), diaspora.Event{Topic: "weather", Value: []byte(name)}); err != nil {
				t.Error(err)
			}
			if err := logger.Close(testkit.Within(t)); err != nil {
				t.Error(err)
			}
			left := logger.Stats().Spool
			if left.Events != 1 || !errors.Is(left.Why, diaspora.ErrUnauthenticated) || !strings.Contains(left.Why.Error(), c.words) {
				t.Errorf("%d events wait: %v, want 1 because %q", left.Events, left.Why, c.words)
			}
			if info, err := spool.Inspect(with.SpoolDir); err != nil || !spool.IsUnbound(info.Subject) {
				t.Errorf("the spool is of %q, %v", info.Subject, err)
			}
			other := withKey(f, good)
			other.SpoolDir = with.SpoolDir
			logger, err = diaspora.OpenLogger(testkit.Within(t), other)
			if !c.sends {
				if !errors.Is(err, diaspora.ErrConflict) {
					t.Errorf("another credential: %v", err)
				}
				return
			}
			testkit.Must(t, err)
			if err := logger.Close(testkit.Within(t)); err != nil || logger.Stats().Spool.Events != 0 {
				t.Errorf("another key of the same person: %v, %+v", err, logger.Stats().Spool)
			}
		})
	}
}

// TestSpoolOfAKey logs with an access key while the fabric is unreachable, on a machine where this key was
// never used before. The key is revoked when the fabric is reachable again. Another access key of the same
// user must be able to send the events, and a key of another user must not.
func TestSpoolOfAKey(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := fabrictest.Start(t, fabric.Config{Dir: dir})
	cfg, other := fabrictest.As(t, f, ada), fabrictest.As(t, f, grace)
	fabrictest.Claim(t, cfg, "weather")
	fabrictest.Claim(t, other, "snow")
	full := diaspora.AccessKeyRequest{Read: true, Write: true}
	create := func(cfg diaspora.Config, name string) diaspora.NewAccessKey {
		full.Name = name
		return fabrictest.CreateKey(t, cfg, full)
	}
	first, second, graces := create(cfg, "first"), create(cfg, "second"), create(other, "graces")
	url := f.URL()
	testkit.Must(t, f.Close())

	spoolDir := filepath.Join(t.TempDir(), "spool")
	config := t.TempDir()
	with := func(key diaspora.NewAccessKey) diaspora.Config { // as a program reads it from its environment
		t.Helper()
		env := map[string]string{"DIASPORA_URL": url, "DIASPORA_KEY_ID": key.ID, "DIASPORA_KEY_SECRET": key.Secret.Reveal(), "DIASPORA_CONFIG_DIR": config}
		cfg, err := diaspora.ConfigFromEnv(func(name string) string { return env[name] })
		testkit.Must(t, err)
		cfg.SpoolDir = spoolDir
		return cfg
	}
	log := func(key diaspora.NewAccessKey, value string) {
		t.Helper()
		logger, err := diaspora.OpenLogger(testkit.Within(t), with(key))
		if err == nil {
			err = logger.Log(testkit.Within(t), diaspora.Event{Topic: "weather", Value: []byte(value)})
		}
		testkit.Must(t, err)
		ended, end := context.WithCancel(t.Context())
		end()
		testkit.Must(t, logger.Close(ended))
	}
	subject := func() string {
		t.Helper()
		info, err := spool.Inspect(spoolDir)
		testkit.Must(t, err)
		return info.Subject
	}
	refuses := func(key diaspora.NewAccessKey, condition error) {
		t.Helper()
		logger, err := diaspora.OpenLogger(testkit.Within(t), with(key))
		if err == nil {
			logger.Close(testkit.Within(t))
		}
		if !errors.Is(err, condition) || diaspora.Hint(err) == "" {
			t.Errorf("the spool is opened with another key: %v, want %v", err, condition)
		}
	}
	sends := func(key diaspora.NewAccessKey) {
		t.Helper()
		logger, err := diaspora.OpenLogger(testkit.Within(t), with(key))
		if err == nil {
			err = logger.Close(testkit.Within(t))
		}
		if err != nil || logger.Stats().Spool.Events != 0 {
			t.Fatalf("the spool is not sent: %v", err)
		}
	}

	log(first, "one")
	log(first, "two")
	if got := subject(); got != spool.UnboundKey+first.ID {
		t.Errorf("the spool is of %q, want that of a key whose owner is not known", got)
	}
	refuses(graces, diaspora.ErrConflict)
	refuses(second, diaspora.ErrConflict) // the library cannot know yet that both keys belong to the same user

	f = fabrictest.Start(t, fabric.Config{Dir: dir, HTTPAddr: url[len("http://"):]})
	cfg = fabrictest.As(t, f, ada)
	revokeKey(t, cfg, first.ID)
	refuses(graces, diaspora.ErrConflict)
	log(first, "late") // is added to the pending events
	sends(second)
	if got := fabrictest.Values(fabrictest.ReadAll(t, cfg, "weather")); !slices.Equal(got, []string{"one", "two", "late"}) {
		t.Errorf("the topic has %q", got)
	}

	// From here on, the owner of the key is known even while the fabric is unreachable.
	testkit.Must(t, f.Close())
	log(second, "three")
	if got := subject(); got != cfg.Identity.Subject {
		t.Errorf("the spool is of %q, want the key's owner", got)
	}
	refuses(graces, diaspora.ErrConflict)
	f = fabrictest.Start(t, fabric.Config{Dir: dir, HTTPAddr: url[len("http://"):]})
	cfg = fabrictest.As(t, f, ada)
	third := create(cfg, "third")
	revokeKey(t, cfg, second.ID)
	refuses(graces, diaspora.ErrConflict)
	sends(third)
	if got := fabrictest.Values(fabrictest.ReadAll(t, cfg, "weather")); !slices.Equal(got, []string{"one", "two", "late", "three"}) {
		t.Errorf("the topic has %q", got)
	}
	sends(graces) // no events are pending any more

	files, err := filepath.Glob(filepath.Join(config, "*", "*"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil || strings.Contains(string(data), "dks_") {
			t.Errorf("%s has a secret in it, or cannot be read: %v", name, err)
		}
	}
}

// TestSpoolOfAKeyGoesToItsOwner checks that events that were logged with an access key, whose owner was not
// known at that time, are sent with a login of the owner, but not with the login of another user.
func TestSpoolOfAKeyGoesToItsOwner(t *testing.T) {
	t.Parallel()
	f := fabrictest.Start(t, fabric.Config{})
	cfg, other := fabrictest.As(t, f, ada), fabrictest.As(t, f, grace)
	fabrictest.Claim(t, cfg, "weather")
	key := fabrictest.CreateKey(t, cfg, diaspora.AccessKeyRequest{Name: "k", Write: true})
	away := withKey(f, key)
	away.URL, away.DialTimeout = "http://127.0.0.1:1", time.Second // no service listens on this port
	away.SpoolDir = filepath.Join(t.TempDir(), "spool")
	logger := fabrictest.OpenLogger(t, away)
	testkit.Must(t, logger.Log(testkit.Within(t), diaspora.Event{Topic: "weather", Value: []byte("x")}))
	ended, end := context.WithCancel(t.Context())
	end()
	testkit.Must(t, logger.Close(ended))
	other.SpoolDir, cfg.SpoolDir = away.SpoolDir, away.SpoolDir
	if _, err := diaspora.OpenLogger(testkit.Within(t), other); !errors.Is(err, diaspora.ErrConflict) || !strings.Contains(diaspora.Hint(err), "another one of the same person") {
		t.Errorf("with the login of somebody else: %v", err)
	}
	logger = fabrictest.OpenLogger(t, cfg)
	if err := logger.Close(testkit.Within(t)); err != nil || logger.Stats().Spool.Events != 0 {
		t.Errorf("with the owner's login: %v, %+v", err, logger.Stats().Spool)
	}
	if got := fabrictest.Values(fabrictest.ReadAll(t, cfg, "weather")); !slices.Equal(got, []string{"x"}) {
		t.Errorf("the topic has %q", got)
	}
}

// TestKeyRevokedElsewhere revokes the access key of a Logger with a spool. The gateway is in another process
// than the ACL endpoint, so it does not close the connection at once. When writing is then denied, the Logger
// must sign in again, and so find out that the key was revoked, before it treats the denial as final.
func TestKeyRevokedElsewhere(t *testing.T) {
	t.Parallel()
	f := fabrictest.Start(t, fabric.Apart(fabric.Config{RevocationInterval: time.Hour}))
	cfg := fabrictest.As(t, f, ada)
	fabrictest.Claim(t, cfg, "weather")
	with := withKey(f, fabrictest.CreateKey(t, cfg, diaspora.AccessKeyRequest{Name: "doomed", Topics: []string{"weather"}, Write: true}))
	with.SpoolDir = filepath.Join(t.TempDir(), "spool")
	logger := fabrictest.OpenLogger(t, with)
	testkit.Must(t, logger.Log(testkit.Within(t), diaspora.Event{Topic: "weather", Value: []byte("before")}))
	testkit.Must(t, logger.Flush(testkit.Within(t)))
	revokeKey(t, cfg, with.Key.ID)
	testkit.Must(t, logger.Log(testkit.Within(t), diaspora.Event{Topic: "weather", Value: []byte("after")}))
	testkit.Must(t, logger.Close(testkit.Within(t)))
	left := logger.Stats().Spool
	if left.Events != 1 || !errors.Is(left.Why, diaspora.ErrUnauthenticated) || !strings.Contains(left.Why.Error(), "the access key was revoked") || !strings.Contains(diaspora.Hint(left.Why), "diaspora key create") {
		t.Errorf("%d events wait: %v", left.Events, left.Why)
	}
	if len(left.Held) != 0 {
		t.Errorf("the topic is held as if the key had not the right: %v", left.Held)
	}
	next := withKey(f, fabrictest.CreateKey(t, cfg, diaspora.AccessKeyRequest{Name: "next", Topics: []string{"weather"}, Write: true}))
	next.SpoolDir = with.SpoolDir
	logger = fabrictest.OpenLogger(t, next)
	testkit.Must(t, logger.Close(testkit.Within(t)))
	if got := fabrictest.Values(fabrictest.ReadAll(t, cfg, "weather")); !slices.Equal(got, []string{"before", "after"}) {
		t.Errorf("the topic has %q", got)
	}
}

// TestKeyFileIsReplaced revokes the access key of a running program, and then replaces its key file: by a file that is
// incomplete, by a key of another user, and by a new key of the same user. Only with the last one, the program must
// send its events, without a restart.
func TestKeyFileIsReplaced(t *testing.T) {
	t.Parallel()
	f := fabrictest.Start(t, fabric.Config{})
	cfg, other := fabrictest.As(t, f, ada), fabrictest.As(t, f, grace)
	fabrictest.Claim(t, cfg, "weather")
	_, err := fabrictest.Client(t, cfg).Share(t.Context(), "weather", diaspora.GrantRequest{Username: grace, Write: true})
	testkit.Must(t, err)
	file := filepath.Join(t.TempDir(), "key.env")
	write := func(text string) {
		t.Helper()
		testkit.Must(t, os.WriteFile(file+".new", []byte(text), 0o600))
		testkit.Must(t, os.Rename(file+".new", file))
	}
	keyFile := func(key diaspora.NewAccessKey) string {
		return fmt.Sprintf("DIASPORA_URL=%s\nDIASPORA_KEY_ID=%s\nDIASPORA_KEY_SECRET=%s\n", f.URL(), key.ID, key.Secret.Reveal())
	}
	create := func(cfg diaspora.Config, name string) diaspora.NewAccessKey {
		return fabrictest.CreateKey(t, cfg, diaspora.AccessKeyRequest{Name: name, Write: true})
	}
	first, second, graces := create(cfg, "first"), create(cfg, "second"), create(other, "graces")
	write(keyFile(first))
	env := map[string]string{"DIASPORA_KEY_FILE": file, "DIASPORA_CONFIG_DIR": t.TempDir()}
	var said testkit.Text
	spoolDir := filepath.Join(t.TempDir(), "spool")
	with := func() diaspora.Config {
		t.Helper()
		cfg, err := diaspora.ConfigFromEnv(func(name string) string { return env[name] })
		testkit.Must(t, err)
		cfg.SpoolDir, cfg.Diagnostics = spoolDir, slog.New(slog.NewTextHandler(&said, nil))
		return cfg
	}
	logger := fabrictest.OpenLogger(t, with())
	log := func(value string) {
		t.Helper()
		testkit.Must(t, logger.Log(testkit.Within(t), diaspora.Event{Topic: "weather", Value: []byte(value)}))
	}
	pending := func() int64 { return logger.Stats().Spool.Events }
	log("0")
	testkit.Eventually(t, "the first event is sent", func() bool { return pending() == 0 })

	revokeKey(t, cfg, first.ID)
	log("1")
	testkit.Eventually(t, "the revoked key is reported", func() bool { return errors.Is(logger.Stats().Spool.Why, diaspora.ErrUnauthenticated) })
	write("DIASPORA_KEY_ID=" + second.ID + "\n")
	testkit.Eventually(t, "the incomplete file is reported", func() bool { return strings.Contains(said.String(), "belong together; one of them is not set") })
	write(keyFile(graces))
	testkit.Eventually(t, "the key of another user is refused", func() bool {
		return strings.Contains(said.String(), "belongs to another person than ")
	})
	if n := pending(); n != 1 {
		t.Errorf("%d events wait, want 1", n)
	}
	write(keyFile(second))
	log("2")
	testkit.Eventually(t, "the events are sent with the new key", func() bool { return pending() == 0 })
	log("3")
	testkit.Must(t, logger.Close(testkit.Within(t)))

	// A key that may not write is not refused: its connections stay open.
	write(keyFile(fabrictest.CreateKey(t, cfg, diaspora.AccessKeyRequest{Name: "reads", Read: true})))
	logger = fabrictest.OpenLogger(t, with())
	log("4")
	testkit.Eventually(t, "the right that is missing is reported", func() bool { return errors.Is(logger.Stats().Spool.Why, diaspora.ErrPermission) })
	write(keyFile(second))
	testkit.Eventually(t, "the event is sent with the key that may write", func() bool { return pending() == 0 })
	testkit.Must(t, logger.Close(testkit.Within(t)))

	if got := fabrictest.Values(fabrictest.ReadAll(t, cfg, "weather")); !slices.Equal(got, []string{"0", "1", "2", "3", "4"}) {
		t.Errorf("the topic has %q", got)
	}
	for _, key := range []diaspora.NewAccessKey{first, second, graces} {
		if strings.Contains(said.String(), key.Secret.Reveal()) {
			t.Error("the diagnostics show a secret")
		}
	}
}

// TestSpoolWhoseOwnerCannotBeAsked opens a spool with the key that logged its events, on a machine that has not used the key
// before, while the fabric is unreachable. The error must not say that the events are of another identity.
func TestSpoolWhoseOwnerCannotBeAsked(t *testing.T) {
	t.Parallel()
	f := fabrictest.Start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	fabrictest.Claim(t, cfg, "weather")
	key := fabrictest.CreateKey(t, cfg, diaspora.AccessKeyRequest{Name: "k", Write: true})
	spoolDir := filepath.Join(t.TempDir(), "spool")
	with := func() diaspora.Config { // on another machine each time
		t.Helper()
		env := map[string]string{"DIASPORA_URL": f.URL(), "DIASPORA_KEY_ID": key.ID, "DIASPORA_KEY_SECRET": key.Secret.Reveal(), "DIASPORA_CONFIG_DIR": t.TempDir()}
		cfg, err := diaspora.ConfigFromEnv(func(name string) string { return env[name] })
		testkit.Must(t, err)
		cfg.SpoolDir, cfg.ClosePatience = spoolDir, -1
		return cfg
	}
	logger, err := diaspora.OpenLogger(testkit.Within(t), with())
	testkit.Must(t, err)
	other := with()
	testkit.Must(t, f.Close())
	testkit.Must(t, logger.Log(testkit.Within(t), diaspora.Event{Topic: "weather", Value: []byte("1")}))
	testkit.Must(t, logger.Close(testkit.Within(t)))
	_, err = diaspora.OpenLogger(testkit.Within(t), other)
	if !errors.Is(err, diaspora.ErrUnavailable) || !errors.Is(err, spool.ErrSubject) || strings.Contains(err.Error(), "another identity") || !strings.Contains(err.Error(), " wait, because it is not known yet whether the access key "+key.ID+" belongs to the person who logged them") {
		t.Errorf("OpenLogger: %v", err)
	}
}

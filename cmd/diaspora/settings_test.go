package main

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/front"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// givenTo returns the settings that serve reads from a file, an environment and flags.
func givenTo(t *testing.T, file string, vars map[string]string, args ...string) (map[string]given, error) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "serve.toml")
	testkit.Must(t, os.WriteFile(name, []byte(file), 0o600))
	flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	flags.String("config", "", "")
	for _, s := range serveSettings {
		flags.String(s.name, "", s.usage)
	}
	testkit.Must(t, flags.Parse(append([]string{"--config", name}, args...)))
	e := &env{getenv: func(name string) string { return vars[name] }, environ: func() (all []string) {
		for name, value := range vars {
			all = append(all, name+"="+value)
		}
		return all
	}}
	return e.givenSettings(flags)
}

func TestSettingsPrecedence(t *testing.T) {
	file := `
acl-listen = "127.0.0.1:1"
default-retention = "1h"
max-topics = 7
insecure-allow-plaintext = true
kafka-brokers = ["a:1", "b:2"]
`
	got, err := givenTo(t, file,
		map[string]string{"DIASPORA_SERVE_ACL_LISTEN": "127.0.0.1:2", "DIASPORA_SERVE_DEFAULT_RETENTION": "2h"},
		"--acl-listen", "127.0.0.1:3")
	testkit.Must(t, err)
	for name, want := range map[string]given{
		"acl-listen":        {"127.0.0.1:3", "--acl-listen"},
		"default-retention": {"2h", "DIASPORA_SERVE_DEFAULT_RETENTION"},
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
	for name, want := range map[string]string{"max-topics": "7", "insecure-allow-plaintext": "true", "kafka-brokers": "a:1,b:2"} {
		if got[name].value != want {
			t.Errorf("%s is %q, want %q", name, got[name].value, want)
		}
	}
	cfg, err := serveConfig("acl", got)
	if err == nil || !strings.Contains(err.Error(), "public-url is missing") {
		t.Errorf("serveConfig without a public-url = %v", err)
	}
	if cfg.Gateway != nil || cfg.ACL.Listen != "127.0.0.1:3" || cfg.ACL.Limits.Topics != 7 || len(cfg.Kafka.Brokers) != 2 || !cfg.InsecureAllowPlaintext {
		t.Errorf("serveConfig = %+v", cfg)
	}
}

// TestWrongSettings checks that the error names each invalid setting, its origin and what is wrong.
func TestWrongSettings(t *testing.T) {
	dir := t.TempDir()
	wide := filepath.Join(dir, "wide")
	testkit.Must(t, os.WriteFile(wide, []byte("canary-secret"), 0o600))
	testkit.Must(t, os.Chmod(wide, 0o644))
	for want, file := range map[string]string{
		"acl_listen in ": `acl_listen = "x"`,
		"did you mean gateway-listen or acl-listen?": `listen = "x"`,
		"did you mean allow-domains?":                `allow-domain = ["example.edu"]`,
		"there is no such setting":                   `nonsense = 1`,
		"neither a string":                           `max-topics = 1.5`,
		"a list may only contain strings":            `kafka-brokers = [1]`,
		"line 1":                                     `max-topics = `,
		"private to each person":                     `groups = "open"`,
		"not a number of 1 or more":                  `max-topics = 0`,
		"not a duration":                             `default-retention = "a week"`,
		"not a list of networks":                     `acl-trusted-proxies = "proxy"`,
		"trusted-proxies (":                          `trusted-proxies = ["10.0.0.0/8", "10.0.0.1"]`,
		"chmod 600":                                  `kafka-password-file = "` + wide + `"`,
		"globus-client-secret-file (":                `globus-client-secret-file = "/nowhere"`,
		"kafka-ca-file (":                            `kafka-ca-file = "` + wide + `"`,
		"tls-cert-file, tls-key-file: ce":            `tls-cert-file = "/nowhere"`,
	} {
		t.Run(want, func(t *testing.T) {
			settings, err := givenTo(t, file, nil)
			if err == nil {
				_, err = serveConfig("", settings)
			}
			if !errors.Is(err, diaspora.ErrInvalid) || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want an error that says %q", file, err, want)
			}
			if err != nil && strings.Contains(err.Error(), "canary") {
				t.Errorf("the error shows a secret: %v", err)
			}
		})
	}
	// One error reports all of them.
	settings, err := givenTo(t, "default-partitions = 0\nmax-topics = 0", nil)
	testkit.Must(t, err)
	if _, err := serveConfig("", settings); strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("two wrong settings: %v", err)
	}
}

// TestPasswordsStayApart checks that a gateway does not read the file with the super user's password, and that an ACL
// endpoint does not read the file with the gateways' password.
func TestPasswordsStayApart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	testkit.Must(t, os.WriteFile(file, []byte("canary"), 0o600))
	for part, needs := range map[string]string{"": "kafka-password-file", "acl": "kafka-password-file", "gateway": "gateway-kafka-password-file"} {
		settings := map[string]given{
			"kafka-username":              {"diaspora", ""},
			"gateway-kafka-username":      {"gateways", ""},
			"kafka-password-file":         {"/nowhere", ""},
			"gateway-kafka-password-file": {"/nowhere", ""},
		}
		settings[needs] = given{file, ""}
		cfg, err := serveConfig(part, settings)
		if err == nil || strings.Contains(err.Error(), "/nowhere") {
			t.Errorf("serve %s reads a password that it does not need: %v", part, err)
		}
		passwords := map[string]string{
			"kafka-password-file":         cfg.Kafka.Admin.Password.Reveal(),
			"gateway-kafka-password-file": cfg.Kafka.Gateway.Password.Reveal(),
		}
		for name, password := range passwords {
			if want := map[bool]string{true: "canary"}[name == needs]; password != want {
				t.Errorf("serve %s has %q of %s, want %q", part, password, name, want)
			}
		}
	}
}

// TestUnknownVariables checks that a variable that looks like a setting but is not one is an error.
func TestUnknownVariables(t *testing.T) {
	for name, want := range map[string]string{ // "" means no error
		"DIASPORA_SERVE_ALLOW_DOMAIN":         "DIASPORA_SERVE_ALLOW_DOMAIN: there is no such setting; did you mean DIASPORA_SERVE_ALLOW_DOMAINS?",
		"DIASPORA_SERVE_LISTEN":               "did you mean DIASPORA_SERVE_GATEWAY_LISTEN?",
		"DIASPORA_SERVE_acl_listen":           "did you mean DIASPORA_SERVE_ACL_LISTEN?",
		"DIASPORA_SERVE_GLOBUS_CLIENT_SECRET": "DIASPORA_SERVE_GLOBUS_CLIENT_SECRET: there is no such setting",
		"DIASPORA_SERVE_FROBNICATE":           "DIASPORA_SERVE_FROBNICATE: there is no such setting",
		"DIASPORA_SERVE_GROUPS":               "this setting was removed",
		"DIASPORA_SERVE_":                     "DIASPORA_SERVE_: there is no such setting",
		"DIASPORA_SERVE_ALLOW_DOMAINS":        "",
		"DIASPORA_SERVE_SERVICE_HOST":         "", // set by Kubernetes for a Service of this name
		"DIASPORA_SERVE_SERVICE_PORT_KAFKA":   "",
		"DIASPORA_SERVE_PORT":                 "",
		"DIASPORA_SERVE_PORT_9092_TCP":        "",
		"DIASPORA_SERVE_PORT_9092_TCP_ADDR":   "",
		"DIASPORA_SERVER":                     "",
		"DIASPORA_PROFILE":                    "",
	} {
		_, err := givenTo(t, "", map[string]string{name: "canary"})
		if want == "" && err != nil || want != "" && (!errors.Is(err, diaspora.ErrInvalid) || !strings.Contains(err.Error(), want)) {
			t.Errorf("with %s: %v, want %q", name, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("the error shows the value of %s: %v", name, err)
		}
	}
	if _, err := givenTo(t, "", map[string]string{"DIASPORA_SERVE_FROBNICATE": ""}); err != nil {
		t.Errorf("with an empty variable: %v", err)
	}
}

// TestPlaceholders checks that the values of deploy/serve.toml that have to be replaced are found, and no others.
func TestPlaceholders(t *testing.T) {
	template := string(testkit.ReadFile(t, "../../deploy/serve.toml"))
	template = regexp.MustCompile(`(?m)^# ([a-z-]+ = )`).ReplaceAllString(template, "$1") // the settings that are commented out, too
	all, err := givenTo(t, template, nil)
	testkit.Must(t, err)
	named := func(part string, settings map[string]given) string {
		var keys []string
		for _, err := range placeholders(part, settings) {
			key, _, _ := strings.Cut(err.Error(), " ")
			keys = append(keys, key)
		}
		slices.Sort(keys)
		return strings.Join(keys, " ")
	}
	for part, want := range map[string]string{
		"":        "acl-bootstrap allow-domains gateway-audience globus-client-id globus-login-client-id globus-scope kafka-brokers operator-contact operators public-url",
		"acl":     "acl-bootstrap allow-domains globus-client-id globus-login-client-id globus-scope kafka-brokers operator-contact operators public-url",
		"gateway": "allow-domains gateway-audience globus-client-id globus-login-client-id globus-scope kafka-brokers operator-contact operators public-url",
	} {
		if got := named(part, all); got != want {
			t.Errorf("serve %s finds placeholders in\n%s, want\n%s", part, got, want)
		}
	}
	for value, want := range map[string]string{
		"https://diaspora.streams.example.org/acl":              "diaspora.streams.example.org",
		"a.real.org:9092,b.example.com:9092":                    "b.example.com",
		"<your host>:9092":                                      "<your host>",
		"@ADVERTISE@":                                           "@ADVERTISE@",
		"my-example.org,example.org.uk,examples.net,test.local": "",
		"33333333-3333-3333-3333-333333333333":                  "33333333-3333-3333-3333-333333333333",
		"33333333-3333-4333-8333-333333333333":                  "",
		"ops@streams.real.org":                                  "",
		"https://auth.globus.org/scopes/SERVICE_UUID/logging":   "SERVICE_UUID",
		"/var/lib/diaspora/signing-keys.json":                   "",
		"":                                                      "",
	} {
		got := ""
		if errs := placeholders("", map[string]given{"x": {value, "file"}}); len(errs) > 0 {
			got = errs[0].Error()
		}
		if want != "" {
			want = "x (file): " + want + " is a placeholder; write your own"
		}
		if got != want {
			t.Errorf("%q: %q, want %q", value, got, want)
		}
	}
}

// TestCheckNamesPlaceholders checks that serve --check lists them together with all else that is wrong.
func TestCheckNamesPlaceholders(t *testing.T) {
	d := emptyDesk(t)
	code := d.types(t.Context(), "serve", "acl", "--check", "--config", "../../deploy/serve.toml")
	for _, want := range []string{
		"acl-bootstrap (../../deploy/serve.toml): kafka1.streams.example.org, kafka2.streams.example.org, kafka3.streams.example.org are placeholders; write your own\n",
		"public-url (../../deploy/serve.toml): diaspora.streams.example.org is a placeholder; write your own\n",
		"kafka-password-file (../../deploy/serve.toml): ",
	} {
		if code != 2 || !strings.Contains(d.err.String(), want) {
			t.Errorf("serve --check exits with %d, and says %q, want %q", code, d.err.String(), want)
		}
	}
}

// TestCheckWithoutFile checks that serve says first that it has found no file, which explains all the missing settings.
func TestCheckWithoutFile(t *testing.T) {
	installed := serveSettingsFile
	defer func() { serveSettingsFile = installed }()
	serveSettingsFile = filepath.Join(t.TempDir(), "serve.toml")
	for _, args := range [][]string{{"serve", "acl", "--check"}, {"serve"}, {"serve", "gateway", "--public-url", "https://diaspora.lab.org"}} {
		d := emptyDesk(t)
		code := d.types(t.Context(), args...)
		if said := d.err.String(); code != 2 || !strings.HasPrefix(said, "diaspora: serve: there is no "+serveSettingsFile+", and --config names no other file\n  ") || !strings.Contains(said, "\nhint: ") {
			t.Errorf("%v exits with %d, and says %q", args, code, said)
		}
	}
	d := emptyDesk(t)
	if d.types(t.Context(), "serve", "--max-topics", "x"); strings.Contains(d.err.String(), "there is no") {
		t.Errorf("of a wrong flag: %q", d.err.String())
	}
}

// TestSettingsThatAllCanChange checks that serve finds out if other users can change the file with the settings.
func TestSettingsThatAllCanChange(t *testing.T) {
	for name, c := range map[string]struct {
		file, folder os.FileMode
		fix          string
	}{
		"as installed":       {0o640, 0o755, ""},
		"file":               {0o666, 0o755, "chmod 640 "},
		"folder":             {0o640, 0o777, "chmod 755 "},
		"folder like of tmp": {0o640, 0o777 | os.ModeSticky, ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "etc")
			testkit.Must(t, os.Mkdir(dir, 0o755))
			file := filepath.Join(dir, "serve.toml")
			testkit.Must(t, os.WriteFile(file, nil, 0o600))
			testkit.Must(t, os.Chmod(file, c.file))
			testkit.Must(t, os.Chmod(dir, c.folder))
			flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
			flags.String("config", file, "")
			found := (&env{getenv: func(string) string { return "" }}).changeable(flags)
			if c.fix == "" && len(found) != 0 || c.fix != "" && (len(found) != 1 || found[0].Status != front.Fail || !strings.HasPrefix(found[0].Fix, c.fix+dir) || !strings.Contains(found[0].Found, file)) {
				t.Errorf("found %+v, want %q", found, c.fix)
			}
		})
	}
}

// TestNearFlags checks that every command suggests the right flag in place of one that does not exist.
func TestNearFlags(t *testing.T) {
	for args, want := range map[string]string{
		"serve --acl-listne :1":              "--acl-listen",
		"serve --public_url x":               "--public-url",
		"serve --chekc":                      "--check",
		"serve --jwks-file x":                "--gateway-jwks-file",
		"consume weather --form start":       "--from",
		"consume weather --profil x":         "--profile", // a flag of all commands
		"topic claim weather --retenton 30d": "--retention",
		"produce weather --frobnicate":       "",
		"produce weather -X":                 "",
	} {
		d := emptyDesk(t)
		code := d.types(t.Context(), strings.Fields(args)...)
		stderr := d.err.String()
		hint := `hint: see "diaspora ` + strings.Fields(args)[0]
		if want != "" {
			hint = "hint: did you mean " + want + "?"
		}
		if code != 2 || !strings.Contains(stderr, "unknown") || !strings.Contains(stderr, hint) {
			t.Errorf("%s exits with %d and says %q, want 2 and %q", args, code, stderr, hint)
		}
	}
}

// TestGuesses checks that commands and flags of other programs lead to hints with the right command or variable.
func TestGuesses(t *testing.T) {
	for line, want := range map[string]string{
		"topic shar x":               `did you mean "diaspora topic share"?`,
		"topic create x":             `did you mean "diaspora topic claim"?`,
		"claim x":                    `did you mean "diaspora topic claim"?`,
		"key delete x":               `did you mean "diaspora key revoke"?`,
		"key show x":                 `did you mean "diaspora key list"?`,
		"produce x --key-file a.env": "set DIASPORA_KEY_FILE to ",
		"consume x --key-file a.env": "set DIASPORA_KEY_FILE to ",
		"consume x --key a.env":      "set DIASPORA_KEY_FILE to ",
		"serve --key-file a.pem":     `see "diaspora serve --help"`,
	} {
		d := emptyDesk(t)
		if code := d.types(t.Context(), strings.Fields(line)...); code != 2 || !strings.Contains(d.err.String(), "\nhint: "+want) {
			t.Errorf("%s ends with %d and says %q, want the hint %q", line, code, d.err.String(), want)
		}
	}
	for guess, meant := range guessedCommands {
		cmd, rest, err := emptyDesk(t).commands().Find(strings.Fields(meant)[1:])
		if err != nil || len(rest) > 0 || cmd.CommandPath() != meant {
			t.Errorf("%q leads to %q, which there is not", guess, meant)
		}
	}
}

// TestMisspeltVariables checks that misspelt variables are reported, but not variables of other programs.
func TestMisspeltVariables(t *testing.T) {
	for name, want := range map[string]string{
		"DIASPORA_REFERSH":      "DIASPORA_REFRESH",
		"DIASPORA_PROFIL":       "DIASPORA_PROFILE",
		"DIASPORA_CLIENT_SECRT": "DIASPORA_CLIENT_SECRET",
		"DIASPORA_BOOTSTRAPS":   "DIASPORA_BOOTSTRAP",
		"DIASPORAURL":           "DIASPORA_URL",
		"diaspora_url":          "DIASPORA_URL",
		"DIASPORA_FROBNICATE":   "",
		"DIASPORA_KEY":          "",
		"DIASPORA_SERVE_URL":    "",
	} {
		d := emptyDesk(t)
		d.vars[name] = "canary"
		d.must(t, "version", "--quiet")
		said, line := d.err.String(), fmt.Sprintf("diaspora: %s is set, but there is no such variable; did you mean %s?\n", name, want)
		if want == "" && said != "" || want != "" && said != line {
			t.Errorf("with %s it says %q, want %q", name, said, line)
		}
	}
}

// templateValues are the settings of deploy/serve.toml.
var templateValues = map[string]string{
	"public-url": "https://diaspora.streams.example.org", "token-key-file": "/var/lib/diaspora/token-key.pem", "state-dir": "/var/lib/diaspora",
	"tls-cert-file": "/etc/diaspora/tls/fullchain.pem", "tls-key-file": "/etc/diaspora/tls/privkey.pem",
	"globus-client-id": "00000000-0000-0000-0000-000000000000", "globus-client-secret-file": "/etc/diaspora/globus-secret",
	"globus-scope": "https://auth.globus.org/scopes/streams.example.org/logging", "globus-login-client-id": "11111111-1111-1111-1111-111111111111",
	"kafka-brokers": "kafka1.streams.example.org:9094,kafka2.streams.example.org:9094,kafka3.streams.example.org:9094",
	"kafka-ca-file": "/etc/diaspora/tls/internal-ca.pem", "kafka-username": "diaspora", "kafka-password-file": "/etc/diaspora/kafka-password",
	"gateway-kafka-username": "diaspora-gateway", "gateway-kafka-password-file": "/etc/diaspora/gateway-kafka-password",
	"gateway-listen": ":9092", "gateway-broker": "127.0.0.1:395", "gateway-issuer": "diaspora-gateway", "gateway-audience": "CLUSTER-ID",
	"gateway-keys-file": "/var/lib/diaspora/signing-keys.json", "gateway-jwks-file": "/var/lib/diaspora/jwks.json", "acl-listen": ":443",
	"acl-bootstrap": "kafka1.streams.example.org:9092,kafka2.streams.example.org:9092,kafka3.streams.example.org:9092",
}

// TestDeployedSettings checks that deploy/serve.toml is the file that serve init writes for the hosts in docs/operate.md.
// DIASPORA_UPDATE_SETTINGS=1 rewrites it.
func TestDeployedSettings(t *testing.T) {
	const deployed = "../../deploy/serve.toml"
	i := &serviceInit{initOptions: initOptions{file: "/etc/diaspora/serve.toml"}, clusterID: "CLUSTER-ID", values: map[string]string{}}
	for _, name := range []string{"public-url", "globus-client-id", "globus-login-client-id", "globus-scope", "kafka-brokers"} {
		i.values[name] = templateValues[name]
	}
	if got := i.withDefaults(); !maps.Equal(got, templateValues) {
		t.Errorf("the defaults are\n%v, want\n%v", got, templateValues)
	}
	want := serveFile(templateValues)
	if os.Getenv("DIASPORA_UPDATE_SETTINGS") != "" {
		testkit.Must(t, os.WriteFile(deployed, []byte(want), 0o644))
	}
	if got := string(testkit.ReadFile(t, deployed)); got != want {
		t.Errorf("%s is not what serve init writes:\n%s", deployed, want)
	}
}

// TestServeFile checks that each setting is read back from the file as it was given.
func TestServeFile(t *testing.T) {
	values := map[string]string{}
	for _, s := range serveSettings {
		switch s.to.(type) {
		case *bool:
			values[s.name] = "true"
		case *int:
			values[s.name] = "7"
		case *time.Duration:
			values[s.name] = "1h30m"
		case *[]netip.Prefix:
			values[s.name] = "10.0.0.0/8,192.0.2.0/24"
		case *[]string:
			values[s.name] = `a,b "quoted" \ <c>`
		default:
			values[s.name] = "/a \"quoted\" \\ <ü> #\tfile"
		}
	}
	got, err := givenTo(t, serveFile(values), nil)
	testkit.Must(t, err)
	for _, s := range serveSettings {
		if got[s.name].value != values[s.name] {
			t.Errorf("%s is %q, want %q", s.name, got[s.name].value, values[s.name])
		}
	}
}

// TestUnquotedSetting: TOML wants quotes, which is not obvious from its own error.
func TestUnquotedSetting(t *testing.T) {
	t.Parallel()
	d, file := emptyDesk(t), filepath.Join(t.TempDir(), "serve.toml")
	testkit.Must(t, os.WriteFile(file, []byte("acl-listen = 0.0.0.0:9190\n"), 0o600))
	const hint = "\nhint: a setting has the form NAME = \"VALUE\"; text must be in quotes\n"
	if code := d.types(t.Context(), "serve", "--check", "--config", file); code != 2 || !strings.HasSuffix(d.err.String(), hint) {
		t.Errorf("serve exits with %d and says %q, want 2 and %q", code, d.err.String(), hint)
	}
}

package main

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/spf13/pflag"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/doctor"
	"github.com/diaspora-streams/diaspora/internal/front"
)

// setting is a setting of serve. Its name is also that of a flag, of an environment variable and of an entry in the
// file. to is a pointer to the field that it sets, or a function.
type setting struct {
	name, usage string
	to          any
}

// serveDraft is a configuration to which settings are added.
type serveDraft struct {
	front.Config
	part    string // "gateway", "acl", or "" for both in one process
	gateway front.Gateway
	acl     front.ACL

	certFile, keyFile string
}

// serveSettings has the names and descriptions of all settings. (The help sorts them by name.)
var serveSettings = new(serveDraft).settings()

// settings returns all settings, for this draft.
func (d *serveDraft) settings() []setting {
	return []setting{
		{"public-url", "`URL` of the ACL endpoint as clients reach it, such as https://diaspora.example.org", &d.PublicURL},
		{"token-key-file", "`FILE` with the key that signs the tokens that clients can get with an access key; created if missing; copy it to all gateways and ACL endpoints", &d.TokenKeyFile},
		{"state-dir", "`FOLDER` for a copy of the ledger, which makes the next start faster; created if missing", &d.StateDir},
		{"tls-cert-file", "PEM `FILE` with the server certificate; read again when it changes", &d.certFile},
		{"tls-key-file", "PEM `FILE` with the private key of the server certificate", &d.keyFile},
		{"insecure-allow-plaintext", "serve other machines without TLS, which lets anybody on the network path steal tokens (`BOOL`)", &d.InsecureAllowPlaintext},
		{"trusted-proxies", "networks of load balancers in front of the gateway that send client addresses with PROXY protocol version 2, as `NETWORK,...`", &d.TrustedProxies},

		{"operators", "subjects of the operators, who may block others, as `UUID,...`; set the same list for all gateways and ACL endpoints", &d.Admission.Operators},
		{"allow-domains", "admit only accounts whose username ends with one of these domains, as `DOMAIN,...`, and those in allow-subjects (default: everybody)", &d.Admission.Domains},
		{"allow-subjects", "admit only these people and service accounts, as `UUID,...`, and those in allow-domains (default: everybody)", &d.Admission.Subjects},
		{"operator-contact", "how people who are refused can contact the operators, such as an e-mail `ADDRESS`", &d.Admission.Contact},

		{"globus-issuer", "`URL` of Globus Auth (default " + globus.DefaultIssuer + ")", &d.Globus.Issuer},
		{"globus-client-id", "`UUID` of the service's client at Globus", &d.Globus.ClientID},
		{"globus-client-secret-file", "`FILE` with the secret of the client in globus-client-id", d.secret(&d.Globus.ClientSecret, "", "gateway", "acl")},
		{"globus-scope", "`SCOPE` that access tokens must have", &d.Globus.Scope},
		{"globus-login-client-id", "`UUID` of the public client at Globus that people log in with", &d.Globus.LoginClientID},

		{"kafka-brokers", "addresses of the brokers' internal listeners, as `HOST:PORT,...`", &d.Kafka.Brokers},
		{"kafka-username", "`NAME` of the super user (SASL/PLAIN), for the ACL endpoint", &d.Kafka.Admin.Name},
		{"kafka-password-file", "`FILE` with the super user's password, for the ACL endpoint", d.secret(&d.Kafka.Admin.Password, "", "acl")},
		{"gateway-kafka-username", "`NAME` of the Kafka user with which a separate gateway process reads the ledger; the ACL endpoints give this user access", &d.Kafka.Gateway.Name},
		{"gateway-kafka-password-file", "`FILE` with the password of the user in gateway-kafka-username, for a separate gateway process", d.secret(&d.Kafka.Gateway.Password, "gateway")},
		{"kafka-ca-file", "PEM `FILE` with the authorities that sign the brokers' certificates; without it, connections are plaintext, and the brokers must be on this machine unless kafka-insecure-allow-plaintext is set", func(v string) error {
			pool, _, err := front.ReadCA(v)
			d.Kafka.TLS = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
			return err
		}},

		{"kafka-insecure-allow-plaintext", "send passwords to brokers on other machines without TLS, which lets anybody on the network path steal them (`BOOL`)", &d.Kafka.InsecureAllowPlaintext},

		{"gateway-listen", "`HOST:PORT` where the gateway listens for Kafka clients (default :9092)", &d.gateway.Listen},
		{"gateway-broker", "`HOST:PORT` of the broker's GATEWAY listener, on this host", &d.gateway.Broker},
		{"gateway-issuer", "`NAME` that the broker expects as the issuer of tokens", &d.gateway.Issuer},
		{"gateway-audience", "`NAME` that the broker expects as the audience of tokens", &d.gateway.Audience},
		{"gateway-keys-file", "`FILE` with the keys that sign tokens for the broker; created if missing", &d.gateway.KeysFile},
		{"gateway-jwks-file", "`FILE` to which the gateway writes its public keys, and from which the broker reads them", &d.gateway.JWKSFile},
		{"gateway-revocation-interval", "check the tokens of open connections once per `DURATION` (default 30s)", &d.gateway.RevocationInterval},
		{"gateway-max-connections", "maximum `NUMBER` of connections (default 10000)", &d.gateway.MaxConnections},

		{"acl-listen", "`HOST:PORT` where the ACL endpoint listens (default :9090)", &d.acl.Listen},
		{"acl-bootstrap", "gateways that clients connect to first, as `HOST:PORT,...`", &d.acl.Bootstrap},
		{"acl-ca-file", "PEM `FILE` with the certificate authority of the gateways, which clients get from the ACL endpoint", func(v string) (err error) {
			_, d.acl.CA, err = front.ReadCA(v)
			return err
		}},
		{"acl-hosts", "further host names under which clients reach the ACL endpoint, in addition to that of public-url, as `HOST,...`", &d.acl.Hosts},
		{"acl-trusted-proxies", "networks of HTTP proxies whose X-Forwarded-For header is trusted, as `NETWORK,...`", &d.acl.TrustedProxies},
		{"default-partitions", "`NUMBER` of partitions of a topic that is claimed without --partitions (default 1)", &d.acl.DefaultPartitions},
		{"default-retention", "`DURATION` for which events are kept in a topic that is claimed without --retention (default 168h)", &d.acl.DefaultRetention},
		{"max-retention", "longest `DURATION` for which a topic may keep its events (default: no limit)", &d.acl.MaxRetention},
		{"max-topics", "maximum `NUMBER` of topics per person (default 1000)", &d.acl.Limits.Topics},
		{"max-partitions", "maximum `NUMBER` of partitions per person, in all topics together (default 2000)", &d.acl.Limits.Partitions},
		{"max-keys", "maximum `NUMBER` of access keys per person at a time (default 100)", &d.acl.Limits.Keys},
		{"max-keys-ever", "maximum `NUMBER` of access keys that a person may ever create (default 10000)", &d.acl.Limits.KeysEver},
		{"max-grants", "maximum `NUMBER` of people and groups with whom one topic can be shared (default 1000)", &d.acl.Limits.Grants},
		{"max-records-per-hour", "maximum `NUMBER` of changes per person within an hour, such as claims and new keys; events are not counted (default 2000)", &d.acl.Limits.RecordsPerHour},
	}
}

// secret returns a function that reads a file for the parts of the service that need the secret. The other parts may
// run on hosts that should not have it, so they do not read the file.
func (d *serveDraft) secret(to *globus.Secret, parts ...string) func(string) error {
	return func(name string) error {
		if !slices.Contains(parts, d.part) {
			return nil
		}
		read, err := disk.ReadSecret(name)
		*to = globus.Secret(read)
		return err
	}
}

// set sets the field of the setting.
func (s setting) set(value string) error {
	switch to := s.to.(type) {
	case func(string) error:
		return to(value)
	case *string:
		*to = value
	case *bool:
		b, err := strconv.ParseBool(value)
		*to = b
		return err
	case *int:
		n, err := strconv.Atoi(value)
		if err != nil || n < 1 {
			return errors.New("it is not a number of 1 or more")
		}
		*to = n
	case *time.Duration:
		n, err := time.ParseDuration(value)
		if err != nil || n <= 0 {
			return errors.New(`it is not a duration like "30s" or "168h"`)
		}
		*to = n
	case *[]string:
		for part := range strings.SplitSeq(value, ",") {
			*to = append(*to, strings.TrimSpace(part))
		}
	case *[]netip.Prefix:
		for part := range strings.SplitSeq(value, ",") {
			prefix, err := netip.ParsePrefix(strings.TrimSpace(part))
			if err != nil {
				return errors.New("it is not a list of networks such as 10.0.0.0/8")
			}
			*to = append(*to, prefix)
		}
	default:
		panic(fmt.Sprintf("setting %s of type %T", s.name, s.to))
	}
	return nil
}

// given is the value of a setting, and its origin, for errors.
type given struct{ value, origin string }

// givenSettings collects the settings that are set, by name. Flags override the environment, and the environment
// overrides the file.
func (e *env) givenSettings(flags *pflag.FlagSet) (map[string]given, error) {
	all, err := e.fileSettings(flags)
	if err != nil {
		return nil, err
	}
	if err := e.unknownVariables(); err != nil {
		return nil, err
	}
	for _, s := range serveSettings {
		if v := e.getenv(s.variable()); v != "" {
			all[s.name] = given{v, s.variable()}
		}
		if f := flags.Lookup(s.name); f != nil && f.Changed {
			all[s.name] = given{f.Value.String(), "--" + s.name}
		}
	}
	return all, nil
}

const (
	variablePrefix = "DIASPORA_SERVE_"
	configVariable = "DIASPORA_SERVE_CONFIG"
)

// variable returns the name of the environment variable for the setting.
func (s setting) variable() string {
	return variablePrefix + strings.ToUpper(strings.ReplaceAll(s.name, "-", "_"))
}

// servicePattern matches the variables that Kubernetes sets in every container if there is a Service with the
// name diaspora-serve. They are not settings.
var servicePattern = regexp.MustCompile(`^(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)

// unknownVariables returns an error if variables look like settings but are not. Ignoring a misspelt setting
// could be dangerous: without the list of admitted people, everybody is admitted.
func (e *env) unknownVariables() error {
	var errs []error
	for _, entry := range e.environ() {
		name, value, _ := strings.Cut(entry, "=")
		rest, ours := strings.CutPrefix(name, variablePrefix)
		if !ours || value == "" || name == configVariable || servicePattern.MatchString(rest) ||
			slices.ContainsFunc(serveSettings, func(s setting) bool { return s.variable() == name }) {
			continue
		}
		setting := strings.ToLower(strings.ReplaceAll(rest, "_", "-"))
		err := noSuchSetting(setting)
		if near := nearSettings(setting); len(near) > 0 && setting != removedSetting {
			err = fmt.Errorf("there is no such setting; did you mean %s?", near[0].variable())
		}
		errs = append(errs, fmt.Errorf("%s: %w", name, err))
	}
	return wrongSettings(errs...)
}

// maxSettingsBytes limits the size of the file.
const maxSettingsBytes = 1 << 20

// settingsFile returns the name of the file with the settings. The file is optional if nobody has named it.
func (e *env) settingsFile(flags *pflag.FlagSet) (name string, optional bool) {
	name, _ = flags.GetString("config")
	if name = cmp.Or(name, e.getenv(configVariable)); name == "" {
		return serveSettingsFile, true
	}
	return name, false
}

// noFile adds to an error that lists missing settings that there is no file with settings, if so.
func (e *env) noFile(flags *pflag.FlagSet, err error) error {
	name, optional := e.settingsFile(flags)
	if _, stat := os.Stat(name); !optional || !errors.Is(stat, fs.ErrNotExist) || err == nil || !strings.Contains(err.Error(), " is missing") {
		return err
	}
	text := fmt.Errorf("serve: there is no %s, and --config names no other file\n  %s", name, strings.TrimPrefix(err.Error(), "serve: "))
	return &failure{error: text, condition: diaspora.ErrInvalid, hints: append(hintsOf(err), `"diaspora serve init" writes this file`)}
}

// changeable returns a finding if every user of this host can change the file with the settings, and so make themselves
// an operator.
func (e *env) changeable(flags *pflag.FlagSet) []front.Finding {
	if runtime.GOOS == "windows" {
		return nil // its modes say nothing about other users
	}
	name, _ := e.settingsFile(flags)
	file, err := os.Stat(name)
	if err != nil {
		return nil // there is no file, or reading it has failed
	}
	found := front.Finding{Check: "settings file", Status: front.Fail}
	if mode := file.Mode().Perm(); mode&0o002 != 0 {
		found.Found = fmt.Sprintf("every user of this host can change %s (mode %04o), and so become an operator", name, mode)
		found.Fix = "chmod 640 " + name
		return []front.Finding{found}
	}
	dir := filepath.Dir(name)
	if folder, err := os.Stat(dir); err == nil && folder.Mode().Perm()&0o002 != 0 && folder.Mode()&os.ModeSticky == 0 {
		found.Found = fmt.Sprintf("every user of this host can replace %s, because the mode of its folder is %04o, and so become an operator", name, folder.Mode().Perm())
		found.Fix = "chmod 755 " + dir
		return []front.Finding{found}
	}
	return nil
}

func (e *env) fileSettings(flags *pflag.FlagSet) (map[string]given, error) {
	all := map[string]given{}
	name, optional := e.settingsFile(flags)
	info, err := os.Stat(name)
	if optional && errors.Is(err, fs.ErrNotExist) {
		return all, nil
	}
	if err == nil && info.Size() > maxSettingsBytes {
		err = errors.New("it is too large for settings")
	}
	var entries map[string]any
	if err == nil {
		_, err = toml.DecodeFile(name, &entries)
	}
	if err != nil {
		hint := ""
		if syntax := (toml.ParseError{}); errors.As(err, &syntax) {
			hint = `a setting has the form NAME = "VALUE"; text must be in quotes`
		}
		return nil, misuse(hint, "serve: read %s: %v", name, innermost(err))
	}
	var errs []error
	for key, entry := range entries {
		value, err := fileValue(entry)
		if !slices.ContainsFunc(serveSettings, func(s setting) bool { return s.name == key }) {
			err = noSuchSetting(key)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s in %s: %w", key, name, err))
		}
		all[key] = given{value, name}
	}
	return all, wrongSettings(errs...)
}

// fileValue returns an entry of the file in the form of a flag's value.
func fileValue(entry any) (string, error) {
	switch v := entry.(type) {
	case string:
		return v, nil
	case int64, bool:
		return fmt.Sprint(v), nil
	case []any:
		var parts []string
		for _, part := range v {
			s, ok := part.(string)
			if !ok {
				return "", errors.New("a list may only contain strings")
			}
			parts = append(parts, s)
		}
		return strings.Join(parts, ","), nil
	}
	return "", errors.New("it is neither a string, a number, a list of strings, true nor false")
}

// removedSetting is a setting of earlier versions.
const removedSetting = "groups"

// noSuchSetting returns the error for a setting that does not exist, or no longer exists.
func noSuchSetting(name string) error {
	if name == removedSetting {
		return errors.New("this setting was removed, because consumer groups are private to each person now; delete the line")
	}
	var near []string
	for _, s := range nearSettings(name) {
		near = append(near, s.name)
	}
	if len(near) == 0 {
		return errors.New("there is no such setting")
	}
	return fmt.Errorf("there is no such setting; did you mean %s?", strings.Join(near, " or "))
}

// nearSettings returns the settings that the user may have meant by name: those that end with it or, if there
// are none, the one with the most similar name.
func nearSettings(name string) (near []setting) {
	name = strings.ReplaceAll(name, "_", "-")
	var names []string
	for _, s := range serveSettings {
		names = append(names, s.name)
		if s.name == name || strings.HasSuffix(s.name, "-"+name) {
			near = append(near, s)
		}
	}
	if alike := doctor.Near(name, names); len(near) == 0 && alike != "" {
		near = append(near, serveSettings[slices.Index(names, alike)])
	}
	return near
}

// exampleHost and exampleWord match what the templates and the documentation have in the place of real values. Nobody
// can own a name below example.org, example.com, example.net or example.edu.
var (
	exampleHost = regexp.MustCompile(`(?i)(?:^|[^\w.-])((?:[\w-]+\.)*example\.(?:com|edu|net|org))(?:$|[^\w.-])`)
	exampleWord = regexp.MustCompile(`(<[^<>]+>|@[A-Z_]+@|\bCLUSTER[-_]ID\b|\bSERVICE_UUID\b)`)
)

// placeholders returns an error for each setting that still has a placeholder of a template. Settings of the other part
// of the service do not count.
func placeholders(part string, settings map[string]given) (errs []error) {
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		g := settings[name]
		if part == "acl" && strings.HasPrefix(name, "gateway-") || part == "gateway" && strings.HasPrefix(name, "acl-") {
			continue
		}
		var found []string
		for value := range strings.SplitSeq(g.value, ",") {
			if p := placeholder(strings.TrimSpace(value)); p != "" {
				found = append(found, p)
			}
		}
		if len(found) > 0 {
			errs = append(errs, fmt.Errorf("%s (%s): %s %s; write your own", name, g.origin, strings.Join(found, ", "), agree(len(found), "is a placeholder", "are placeholders")))
		}
	}
	return errs
}

// placeholder returns the placeholder in a value, or "".
func placeholder(value string) string {
	for _, pattern := range []*regexp.Regexp{exampleHost, exampleWord} {
		if m := pattern.FindStringSubmatch(value); m != nil {
			return m[1]
		}
	}
	const uuid = len("00000000-0000-0000-0000-000000000000")
	if len(value) == uuid && strings.Trim(strings.ReplaceAll(value, "-", ""), value[:1]) == "" { // the same digit everywhere
		return value
	}
	return ""
}

// serveConfig returns the configuration for one part of the service, or for both. Its error lists everything that
// is wrong with the settings, with what is already known to be wrong.
func serveConfig(part string, settings map[string]given, errs ...error) (*front.Config, error) {
	d := &serveDraft{part: part, gateway: front.Gateway{Listen: ":9092"}, acl: front.ACL{Listen: ":9090"}}
	for _, s := range d.settings() {
		if g, ok := settings[s.name]; ok {
			if err := s.set(g.value); err != nil {
				errs = append(errs, fmt.Errorf("%s (%s): %w", s.name, g.origin, err))
			}
		}
	}
	d.PublicURL = strings.TrimRight(d.PublicURL, "/")
	if part != "acl" {
		d.Gateway = &d.gateway
	}
	if part != "gateway" {
		d.ACL = &d.acl
	}
	if d.certFile != "" || d.keyFile != "" {
		cfg, err := front.ServerTLS(d.certFile, d.keyFile)
		if err != nil {
			errs = append(errs, fmt.Errorf("tls-cert-file, tls-key-file: %w", err))
		}
		d.TLS, d.TLSKeyFile = cfg, d.keyFile
	}
	if len(errs) == 0 {
		errs = append(errs, d.Validate())
	}
	return &d.Config, wrongSettings(errs...)
}

// wrongSettings returns one error for all that is wrong with the settings, in the order of their names. It returns nil if
// nothing is.
func wrongSettings(errs ...error) error {
	err := errors.Join(errs...)
	if err == nil {
		return nil
	}
	lines := strings.Split(err.Error(), "\n")
	slices.Sort(lines)
	return misuse(`"diaspora serve --help" lists the settings; docs/one-server.md and docs/operate.md say how to make the files`, "serve: %s", strings.Join(lines, "\n  "))
}

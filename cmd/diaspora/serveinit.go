package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/deploy/kafka"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/apache"
	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/front"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/terminal"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

var serveInitHelp = help{
	use:   "init",
	short: "create the scope at Globus, and write serve.toml and its secret files",
	examples: `
# ask for what is needed, and write /etc/diaspora/serve.toml
sudo diaspora serve init

# ask only for the client secret
sudo diaspora serve init --public-url https://diaspora.streams.example.org --globus-client-id UUID --globus-login-client-id UUID \
  --verify-host streams.example.org --kafka-brokers kafka1.streams.example.org:9094

# use a scope that exists; nobody has to log in
sudo diaspora serve init --globus-scope https://auth.globus.org/scopes/streams.example.org/logging

# try the service on one machine, with the Apache Kafka of "make kafka-up"
diaspora serve init --kafka .kafka/cluster.json --config serve.toml`,
	long: `
On a terminal, init asks for each required setting that has no flag. Every setting of serve can be
given as a flag: "diaspora serve --help" lists them. Settings that are not given get the values that
docs/operate.md uses.

init checks the client secret of the service at Globus. It never takes a secret from an argument.
The file in --globus-client-secret-file contains the secret; if there is no such file, init asks for
the secret and creates the file. init also generates the passwords of the Kafka users and the ID of
the Kafka cluster. If a file with a password exists, init uses it.

To create the scope, you log in with Globus as an administrator of the service's project. init keeps
your token in memory only, and revokes it at the end. If the scope exists, init uses it. You become
an operator, unless --operators names others. With --verify-host, Globus verifies a host name, which
becomes part of the scope. That requires a TXT record in DNS, which init prints.

For an Apache Kafka with one node on the same host (--kafka-brokers 127.0.0.1:396), init also writes
Kafka's settings, server.properties.

init writes all files or none. It replaces no file, except a serve.toml that has only comments, as
the packages install it. If it runs as root and there is a user diaspora, that user owns the files
with secrets, and its group can read serve.toml.`,
	args:      arguments{max: 0},
	exclusive: []string{"globus-scope verify-host", "globus-scope scope-suffix", "as no-browser"},
}

type initOptions struct {
	file          string // to write the settings to
	suffix, kafka string
	noBrowser     bool
	as            string // the user of a stand-in for Globus Auth
}

// initFlags are the settings that the help of init lists. The others are accepted as well.
var initFlags = []string{
	"public-url", "globus-client-id", "globus-client-secret-file", "globus-login-client-id", "globus-scope", "globus-issuer",
	"operators", "kafka-brokers", "acl-bootstrap", "tls-cert-file", "tls-key-file",
}

const verifyHost = "verify-host"

func (e *env) serveInitCommand() *cobra.Command {
	var o initOptions
	var cmd *cobra.Command
	cmd = e.command(serveInitHelp, func(ctx context.Context, _ []string) error {
		o.file, _ = e.settingsFile(cmd.Flags())
		i := &serviceInit{env: e, initOptions: o, values: map[string]string{}, clusterID: newClusterID()}
		i.flags = flagsLine(cmd.Flags(), func(string) bool { return false })
		for _, name := range append(settingNames(), verifyHost) {
			if value := cmd.Flags().Lookup(name).Value.String(); value != "" {
				i.values[name] = value
			}
		}
		return i.run(ctx)
	})
	flags := cmd.Flags()
	flags.String("config", "", "write the settings to `FILE`; the files with secrets are created in the same folder (default: "+serveSettingsFile+")")
	flags.String(verifyHost, "", "have Globus verify `HOST`, which public-url and all gateways must be equal to or below")
	flags.StringVar(&o.suffix, "scope-suffix", "logging", "last part of the scope to create, as `NAME` of lower-case letters, digits and underscores")
	flags.StringVar(&o.kafka, "kafka", "", "take the settings of Kafka from `FILE`, the cluster.json of an Apache Kafka on this machine")
	flags.BoolVar(&o.noBrowser, "no-browser", false, "do not open a browser; ask for the code")
	flags.StringVar(&o.as, "as", "", "log in as `USER` of the stand-in for Globus Auth that \"diaspora up\" runs, without a browser")
	for _, s := range serveSettings {
		flags.String(s.name, "", s.usage)
		if !slices.Contains(initFlags, s.name) {
			flags.MarkHidden(s.name)
		}
	}
	return cmd
}

func settingNames() (names []string) {
	for _, s := range serveSettings {
		names = append(names, s.name)
	}
	return names
}

// serviceInit is a run of serve init.
type serviceInit struct {
	*env
	initOptions
	values    map[string]string        // of settings, and of --verify-host
	secrets   map[string]globus.Secret // content of the files to create, by setting
	clusterID string                   // for a new Kafka cluster

	kafkaFile string // the file with the settings of Kafka, once it is created

	replaces bool // there is a file with settings, which has only comments

	clientSecret globus.Secret // of the service

	flags    string   // that the user has set, as part of a command line
	answered []string // flags that the user has answered the questions for
}

// initQuestions are what init asks on a terminal, in this order. The text of a question with a default is followed by it.
var initQuestions = []struct{ name, text string }{
	{"public-url", "URL of the ACL endpoint, such as https://diaspora.streams.example.org"},
	{"globus-client-id", "UUID of the service's client at Globus"},
	{"globus-login-client-id", "UUID of the client at Globus that people log in with"},
	{verifyHost, "Host name for Globus to verify, which contains all hosts of the service"},
	{"kafka-brokers", "INTERNAL listeners of the brokers, as HOST:PORT,..."},
	{"acl-bootstrap", "Public addresses of the gateways, as HOST:PORT,..."},
}

const noHost = "none" // the answer of those who have no host name to verify

func (i *serviceInit) run(ctx context.Context) error {
	if err := i.checkPlace(); err != nil {
		return err
	}
	for name, value := range i.values { // the service runs in another folder
		if strings.HasSuffix(name, "-file") || name == "state-dir" {
			absolute, err := filepath.Abs(value)
			if err != nil {
				return fmt.Errorf("serve init: %w", err)
			}
			i.values[name] = absolute
		}
	}
	if err := i.useCluster(); err != nil {
		return err
	}
	if err := i.complete(ctx); err != nil {
		return err
	}
	if err := i.settle(ctx); err != nil {
		return i.repeatable(err)
	}
	if err := i.write(); err != nil {
		return i.repeatable(err)
	}
	return i.report()
}

// settle checks the answers at Globus, and completes the settings.
func (i *serviceInit) settle(ctx context.Context) error {
	if lines := i.faults(); len(lines) > 0 {
		return misuse("", "serve init: %s", strings.Join(lines, "\n  "))
	}
	if err := i.readSecrets(ctx); err != nil {
		return err
	}
	cfg := front.Config{Version: programVersion(), Globus: front.Globus{
		Issuer: i.values["globus-issuer"], ClientID: i.values["globus-client-id"], ClientSecret: i.clientSecret,
	}}
	service, err := cfg.CheckCredentials(ctx)
	switch {
	case errors.Is(err, globus.ErrClientRefused):
		return hinted(fmt.Errorf("serve init: Globus Auth does not accept the secret of %s: %w", i.values["globus-client-id"], err),
			"compare globus-client-id with https://app.globus.org/settings/developers, and create a new secret there if this one is lost")
	case err != nil:
		return hinted(fmt.Errorf("serve init: check the client secret: %w", err), "check globus-issuer, and that this host can connect to it")
	}
	if i.values["globus-scope"] != "" {
		return nil
	}
	return i.register(ctx, service)
}

// checkPlace checks that the file with the settings can be created.
func (i *serviceInit) checkPlace() error {
	name, err := filepath.Abs(i.file)
	if err != nil {
		return fmt.Errorf("serve init: %w", err)
	}
	i.file = name
	switch _, err := os.Lstat(name); {
	case err == nil && setsNothing(name):
		i.replaces = true
	case err == nil:
		return fail(diaspora.ErrConflict, "edit that file, or name another one with --config; to begin again, delete it and the files beside it that it names", "serve init: %s exists; nothing has changed", name)
	case !errors.Is(err, fs.ErrNotExist):
		return i.placeError(err)
	}
	err = front.CheckWritable(filepath.Dir(name))
	if errors.Is(err, fs.ErrNotExist) {
		err = front.CheckWritable(filepath.Dir(filepath.Dir(name))) // the folder will be created
	}
	return i.placeError(err)
}

func (i *serviceInit) placeError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrPermission):
		return fail(diaspora.ErrPermission, "run it with sudo, or name a file in another folder with --config", "serve init: create %s: %v; nothing has changed", i.file, innermost(err))
	}
	return fail(nil, "name a file in another folder with --config", "serve init: create %s: %v; nothing has changed", i.file, innermost(err))
}

// useCluster takes the settings of --kafka that have no flag.
func (i *serviceInit) useCluster() error {
	if i.kafka == "" {
		return nil
	}
	c, err := apache.ReadCluster(clusterFile(i.kafka))
	if err != nil {
		return hinted(misuse("", "serve init: %v", err), `"make kafka-up" in a clone starts an Apache Kafka, and says where its file is`)
	}
	var gateways []string
	for _, n := range c.Nodes {
		gateways = append(gateways, n.Gateway)
	}
	for name, value := range map[string]string{
		"kafka-brokers": strings.Join(c.Admin.Brokers, ","), "kafka-username": c.Admin.Username, "kafka-password-file": c.Admin.PasswordFile,
		"gateway-kafka-username": c.Gateway.Username, "gateway-kafka-password-file": c.Gateway.PasswordFile,
		"gateway-listen": c.Nodes[0].Gateway, "gateway-broker": c.Nodes[0].Listener, "acl-bootstrap": strings.Join(gateways, ","),
		"gateway-issuer": c.Issuer, "gateway-audience": c.Audience, "gateway-jwks-file": c.JWKSFile,
		"gateway-keys-file": filepath.Join(filepath.Dir(c.JWKSFile), "signing-keys.json"),
	} {
		i.values[name] = cmp.Or(i.values[name], value)
	}
	return nil
}

// complete asks for the settings that are required and not given, and sets the others to their defaults. Without a terminal,
// it returns an error that lists all missing flags.
func (i *serviceInit) complete(ctx context.Context) error {
	given, asks := maps.Clone(i.values), i.terminal(i.stdin)
	var missing []string
	for _, q := range initQuestions {
		preset := i.withDefaults()[q.name]
		switch {
		case given[q.name] != "":
		case q.name == verifyHost && (!asks || given["globus-scope"] != "" || strings.HasPrefix(i.values["public-url"], "http:")):
		case preset != "" && len(i.answered) == 0: // its default follows from flags
		case asks:
			if err := i.question(ctx, q.name, q.text, preset); err != nil {
				return err
			}
		case q.name == "acl-bootstrap": // follows from kafka-brokers, which is missing
		default:
			missing = append(missing, "--"+q.name)
		}
	}
	i.values = i.withDefaults()
	i.values["globus-client-id"] = strings.ToLower(i.values["globus-client-id"])
	if i.values[verifyHost] == noHost {
		delete(i.values, verifyHost)
	}
	if _, err := os.Stat(i.values["globus-client-secret-file"]); !asks && errors.Is(err, fs.ErrNotExist) {
		missing = append(missing, "--globus-client-secret-file")
	}
	if len(missing) > 0 {
		return misuse("run it on a terminal to be asked", "serve init: there is no terminal to ask, and these flags are missing: %s", strings.Join(missing, ", "))
	}
	return nil
}

// question asks for a setting until the answer is valid.
func (i *serviceInit) question(ctx context.Context, name, text, preset string) error {
	i.answered = append(i.answered, name)
	if name == verifyHost {
		preset = noHost
	}
	if preset != "" {
		text += " [" + preset + "]"
	}
	for {
		answer, err := i.ask(ctx, i.stdin, text+"\n  --"+name+": ")
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return misuse("", "serve init: the input ended before the answer to --%s; nothing has changed", name)
		}
		i.values[name] = cmp.Or(answer, preset)
		faults := i.faultsOf(name)
		if len(faults) == 0 {
			return nil
		}
		i.warn("%s", strings.Join(faults, "\n"))
	}
}

// withDefaults returns all settings. Those that are not given have their defaults, as far as the given ones determine them.
func (i *serviceInit) withDefaults() map[string]string {
	dir := filepath.Dir(i.file)
	state := dir
	if dir == filepath.Dir(serveSettingsFile) {
		state = "/var/lib/diaspora"
	}
	presets := map[string]string{
		"token-key-file": filepath.Join(state, "token-key.pem"), "state-dir": state,
		"globus-client-secret-file": filepath.Join(dir, "globus-secret"),
		"kafka-username":            "diaspora", "kafka-password-file": filepath.Join(dir, "kafka-password"),
		"gateway-kafka-username": "diaspora-gateway", "gateway-kafka-password-file": filepath.Join(dir, "gateway-kafka-password"),
		"gateway-broker": "127.0.0.1:395", "gateway-issuer": "diaspora-gateway",
		"gateway-keys-file": filepath.Join(state, "signing-keys.json"), "gateway-jwks-file": filepath.Join(state, "jwks.json"),
		"gateway-audience": i.clusterID,
	}
	if u, err := url.Parse(i.values["public-url"]); err == nil && u.Host != "" {
		if u.Scheme == "https" {
			presets["tls-cert-file"], presets["tls-key-file"] = filepath.Join(dir, "tls", "fullchain.pem"), filepath.Join(dir, "tls", "privkey.pem")
			presets["acl-listen"], presets["gateway-listen"] = ":"+cmp.Or(u.Port(), "443"), ":9092"
		} else {
			presets["acl-listen"], presets["gateway-listen"] = net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "80")), net.JoinHostPort(u.Hostname(), "9092")
		}
		if brokers := i.values["kafka-brokers"]; brokers != "" {
			_, port, _ := net.SplitHostPort(cmp.Or(i.values["gateway-listen"], presets["gateway-listen"]))
			presets["acl-bootstrap"] = gatewaysOf(brokers, u.Hostname(), port)
		}
	}
	if slices.ContainsFunc(strings.Split(i.values["kafka-brokers"], ","), isRemote) {
		presets["kafka-ca-file"] = filepath.Join(dir, "tls", "internal-ca.pem")
	}
	maps.Copy(presets, i.values)
	return presets
}

// gatewaysOf returns the gateways of the brokers at these addresses. Brokers on this host have their gateway at the
// public name.
func gatewaysOf(brokers, public, port string) string {
	var gateways []string
	for address := range strings.SplitSeq(brokers, ",") {
		host, _, _ := net.SplitHostPort(strings.TrimSpace(address))
		if !isRemote(strings.TrimSpace(address)) {
			host = public
		}
		if gateway := net.JoinHostPort(host, port); !slices.Contains(gateways, gateway) {
			gateways = append(gateways, gateway)
		}
	}
	return strings.Join(gateways, ",")
}

// isRemote reports whether an address is one of another machine.
func isRemote(address string) bool {
	host, _, err := net.SplitHostPort(address)
	return err == nil && !trust.IsLoopback(host)
}

// newClusterID returns an ID in Kafka's format: 16 random bytes in base64, without a dash at the start, which tools would
// take for an option.
func newClusterID() string {
	for {
		var id [16]byte
		rand.Read(id[:])
		if text := base64.RawURLEncoding.EncodeToString(id[:]); text[0] != '-' {
			return text
		}
	}
}

// faults returns what is wrong with the settings, one line for each fault.
func (i *serviceInit) faults() (lines []string) {
	d := &serveDraft{gateway: front.Gateway{Listen: ":9092"}, acl: front.ACL{Listen: ":9090"}}
	var errs []error
	values, settings := i.withDefaults(), map[string]given{}
	for _, s := range d.settings() {
		value := values[s.name]
		if value == "" {
			continue
		}
		settings[s.name] = given{value, "--" + s.name}
		if _, reads := s.to.(func(string) error); reads {
			continue // the file need not exist yet
		}
		if err := s.set(value); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.name, err))
		}
	}
	errs = append(errs, placeholders("", settings)...)
	d.PublicURL = strings.TrimRight(d.PublicURL, "/")
	d.Gateway, d.ACL = &d.gateway, &d.acl
	if values["tls-cert-file"] != "" {
		d.TLS = &tls.Config{}
	}
	if values["kafka-ca-file"] != "" {
		d.Kafka.TLS = &tls.Config{}
	}
	d.Globus.ClientSecret = "checked later"
	d.Globus.Scope = cmp.Or(d.Globus.Scope, i.newScope())
	errs = append(errs, d.Validate(), i.hostFault(d.Config))
	if !suffixShape.MatchString(i.suffix) {
		errs = append(errs, fmt.Errorf("scope-suffix: %q does not consist of lower-case letters, digits and underscores", i.suffix))
	}
	err := errors.Join(errs...)
	if err == nil {
		return nil
	}
	return strings.Split(err.Error(), "\n")
}

var suffixShape = regexp.MustCompile(`^[a-z0-9_]{1,64}$`)

// newScope returns the scope that register will create.
func (i *serviceInit) newScope() string {
	owner := i.values[verifyHost]
	if owner == "" || owner == noHost {
		owner = strings.ToLower(i.values["globus-client-id"])
	}
	return globus.ScopeOf(owner, i.suffix)
}

// hostFault returns an error if Globus cannot verify the host name, or if clients would send no tokens to the service.
func (i *serviceInit) hostFault(cfg front.Config) error {
	if host := i.values[verifyHost]; host == "" || host == noHost {
		return nil
	} else if err := front.CheckHostName(host); err != nil {
		return fmt.Errorf("%s: %w", verifyHost, err)
	} else if p := placeholder(host); p != "" {
		return fmt.Errorf("%s: %s is a placeholder; write your own", verifyHost, p)
	}
	issuer := cmp.Or(cfg.Globus.Issuer, globus.DefaultIssuer)
	f := trust.Fabric{URL: cfg.PublicURL, Brokers: cfg.ACL.Bootstrap, Issuer: issuer, NamedIssuer: issuer, Scope: cfg.Globus.Scope}
	var untrusted *trust.Error
	if err := f.Check(); errors.As(err, &untrusted) {
		return fmt.Errorf("%s: %s", verifyHost, untrusted.Reason)
	}
	return nil
}

// faultsOf returns the faults of one answer.
func (i *serviceInit) faultsOf(name string) (lines []string) {
	for _, line := range i.faults() {
		if strings.HasPrefix(line, name+":") || strings.HasPrefix(line, name+" ") {
			lines = append(lines, line)
		}
	}
	return lines
}

// secretFiles are the settings that name a file with a secret.
var secretFiles = []string{"globus-client-secret-file", "kafka-password-file", "gateway-kafka-password-file"}

// readSecrets reads the files with secrets that exist. It asks for the client secret and generates the passwords of the
// others.
func (i *serviceInit) readSecrets(ctx context.Context) error {
	i.secrets = map[string]globus.Secret{}
	for _, name := range secretFiles {
		secret, err := disk.ReadSecret(i.values[name])
		switch {
		case err == nil:
			if name == "globus-client-secret-file" {
				i.clientSecret = globus.Secret(secret)
			}
			continue
		case !errors.Is(err, fs.ErrNotExist):
			return misuse("", "serve init: %s: %v", name, err)
		}
		if dir := filepath.Dir(i.values[name]); dir != filepath.Dir(i.file) { // checkPlace has checked that one
			if err := front.CheckWritable(dir); err != nil {
				return fail(nil, "create the folder, or name a file in another one with --"+name, "serve init: create %s: %v; nothing has changed", i.values[name], innermost(err))
			}
		}
		if name != "globus-client-secret-file" {
			i.secrets[name] = newPassword()
			continue
		}
		if i.clientSecret, err = i.askClientSecret(ctx); err != nil {
			return err
		}
		i.secrets[name] = i.clientSecret
	}
	return nil
}

func newPassword() globus.Secret {
	var password [24]byte
	rand.Read(password[:])
	return globus.Secret(base64.RawURLEncoding.EncodeToString(password[:]))
}

// askClientSecret reads the secret of the service from the terminal.
func (i *serviceInit) askClientSecret(ctx context.Context) (globus.Secret, error) {
	f, ok := i.stdin.(*os.File)
	if !ok || !i.terminal(f) {
		return "", misuse("", "serve init: there is no terminal to ask for the client secret; name a file that contains it with --globus-client-secret-file")
	}
	text, err := i.askSecret(ctx, f, "Client secret of the service at Globus (it is not shown): ")
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	secret := strings.TrimSpace(text)
	if err != nil || secret == "" {
		return "", misuse("", "serve init: no client secret was typed; nothing has changed")
	}
	return globus.Secret(secret), nil
}

// register logs the user in, and registers the service at Globus with the user's token.
func (i *serviceInit) register(ctx context.Context, service *globus.Client) error {
	if host := i.values[verifyHost]; host != "" {
		name, value := front.TXTRecord(service.ClientID(), host)
		i.say("to verify %s, Globus looks for this record in DNS: %s TXT %q", host, name, value)
	}
	client, err := globus.New(globus.Config{Issuer: i.values["globus-issuer"], ClientID: i.values["globus-login-client-id"], Version: programVersion()})
	if err != nil {
		return fmt.Errorf("serve init: %w", err)
	}
	if i.as == "" {
		i.say("log in at Globus as an administrator of the service's project, to create the scope %s", i.newScope())
	}
	login, err := i.logIn(ctx, client)
	if login != nil {
		defer i.forget(ctx, client, login)
	}
	if err != nil {
		return hinted(fmt.Errorf("serve init: %w", err), "with --globus-scope and a scope that exists, nobody has to log in")
	}
	token, ok := login.Token("auth.globus.org")
	if !ok {
		return fmt.Errorf("serve init: log in: %w: the response has no token for Globus Auth", globus.ErrMisconfigured)
	}
	scope, err := front.Registration{Admin: client, Access: token.AccessToken, Service: service, Suffix: i.suffix, Host: i.values[verifyHost]}.Register(ctx)
	if err != nil {
		return fmt.Errorf("serve init: %w", err)
	}
	i.values["globus-scope"] = scope
	i.values["operators"] = cmp.Or(i.values["operators"], login.Identity.Subject)
	return nil
}

// logIn logs the user in, with the right to register the service.
func (i *serviceInit) logIn(ctx context.Context, client *globus.Client) (*globus.Login, error) {
	options := globus.LoginOptions{
		Scopes:    []string{globus.ManageProjectsScope},
		In:        i.stdin,
		Out:       terminal.Writer{W: i.stderr},
		NoBrowser: i.noBrowser,
		Browser:   i.browser,
		Getenv:    i.getenv,
		Address:   func(address string) (string, error) { return i.loginAddress(client.Issuer(), address) },
		Message:   "Register the Diaspora Streams service of " + i.values["public-url"],
	}
	if i.as == "" {
		return client.Login(ctx, options)
	}
	secret, err := i.standInSecret(client.Issuer())
	switch {
	case err != nil:
		return nil, err
	case secret == "":
		return nil, misuse("log in without --as", "you run no stand-in for Globus Auth at %s", client.Issuer())
	}
	return globusdev.Login(ctx, client, secret, i.as, options)
}

// loginAddress changes the address of the login: the token is used once, so there is no need for a refresh token.
func (i *serviceInit) loginAddress(issuer, address string) (string, error) {
	u, err := url.Parse(address)
	if err != nil {
		return "", err
	}
	q := u.Query()
	q.Set("access_type", "online")
	u.RawQuery = q.Encode()
	return i.withTicket(issuer, u.String())
}

// forget revokes the tokens of a login.
func (i *serviceInit) forget(ctx context.Context, client *globus.Client, login *globus.Login) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbyeLimit)
	defer cancel()
	if err := client.RevokeLogin(ctx, login); err != nil {
		i.warn("your token could not be revoked, and expires within two days: %v", err)
	}
}

// repeatable adds to an error how to repeat the command without the questions that the user has answered.
func (i *serviceInit) repeatable(err error) error {
	if err == nil || len(i.answered) == 0 {
		return err
	}
	line := "diaspora serve init" + i.flags
	for _, name := range i.answered {
		line += " --" + name + " " + shellWord(cmp.Or(i.values[name], noHost))
	}
	return hinted(err, "to repeat with the same answers: "+line)
}

// initDocument is the result of serve init.
type initDocument struct {
	Config    string   `json:"config"`
	Secrets   []string `json:"secrets"` // the files that were created
	Scope     string   `json:"scope"`
	Operators []string `json:"operators"`
	Kafka     string   `json:"kafka,omitempty"` // the file with the settings of Kafka, if it was created
	Next      []string `json:"next"`            // commands
}

func (i *serviceInit) report() error {
	doc := initDocument{Config: i.file, Secrets: []string{}, Scope: i.values["globus-scope"], Operators: []string{}, Kafka: i.kafkaFile, Next: i.next()}
	if v := i.values["operators"]; v != "" {
		doc.Operators = strings.Split(v, ",")
	}
	text := "settings  " + i.file + "\n"
	for _, name := range secretFiles {
		if _, made := i.secrets[name]; made {
			doc.Secrets = append(doc.Secrets, i.values[name])
			text += "secret    " + i.values[name] + "\n"
		} else if _, _, owned := serviceOwner(); owned {
			i.say("%s existed, and keeps its owner; the user diaspora must be able to read it", i.values[name])
		}
	}
	text += "scope     " + doc.Scope + "\n"
	if i.kafkaFile != "" {
		text += "kafka     " + i.kafkaFile + "\n"
		i.say("%s has all settings of Kafka on this host: install it as /etc/kafka/server.properties, with owner kafka and mode 0600; the ID of the cluster is %s",
			i.kafkaFile, i.values["gateway-audience"])
	} else if _, made := i.secrets["kafka-password-file"]; made {
		i.say("fill in Kafka's server.properties: ADMIN_PASSWORD from %s, GATEWAY_PASSWORD from %s; the ID of the cluster is %s",
			i.values["kafka-password-file"], i.values["gateway-kafka-password-file"], i.values["gateway-audience"])
	}
	if len(doc.Operators) == 0 {
		i.warn("there is no operator, so nobody can block a person: set operators in %s", i.file)
	}
	first := "Once Kafka runs"
	if file := i.values["tls-cert-file"]; file != "" {
		first += " and the certificate is in " + file
	}
	return i.answer(doc, "%s\n%s, type:\n%s\n", text, first, strings.Join(doc.Next, "\n"))
}

// singleNode returns the settings of a new Apache Kafka of one node on this host. ok is false if the cluster is another one,
// or may exist already, because there is a password for it.
func (i *serviceInit) singleNode() (properties string, ok bool) {
	admin, gateway := i.secrets["kafka-password-file"], i.secrets["gateway-kafka-password-file"]
	host, internal, err := net.SplitHostPort(i.values["kafka-brokers"])
	_, gatewayPort, gatewayErr := net.SplitHostPort(i.values["gateway-broker"])
	port, portErr := strconv.Atoi(internal)
	switch {
	case i.kafka != "" || admin == "" || gateway == "" || strings.Contains(i.values["acl-bootstrap"], ","):
		return "", false
	case errors.Join(err, gatewayErr, portErr) != nil || host != "127.0.0.1" && host != "localhost":
		return "", false
	}
	controller := strconv.Itoa(port + 1)
	properties, err = kafka.ServerProperties(map[string]string{
		"ID": "1", "DATA": "/var/lib/kafka/data", "REPLICAS": "1", "MIN_INSYNC": "1", "INTERNAL_PARTITIONS": "",
		"GATEWAY_PORT": gatewayPort, "INTERNAL_PORT": internal, "CONTROLLER_PORT": controller, "CONTROLLERS": "127.0.0.1:" + controller,
		"ADVERTISE": i.values["acl-bootstrap"], "JWKS": "file:" + i.values["gateway-jwks-file"],
		"ISSUER": i.values["gateway-issuer"], "AUDIENCE": i.values["gateway-audience"],
		"ADMIN": i.values["kafka-username"], "ADMIN_PASSWORD": admin.Reveal(),
		"GATEWAY": i.values["gateway-kafka-username"], "GATEWAY_PASSWORD": gateway.Reveal(),
		"BROKER_PASSWORD": newPassword().Reveal(),
	})
	return properties, err == nil && controller != gatewayPort
}

// next returns the three commands that come next.
func (i *serviceInit) next() []string {
	config, check, start := "", "diaspora serve --check", "diaspora serve"
	if i.file != serveSettingsFile {
		config = " --config " + shellWord(i.file)
	} else if _, _, owned := serviceOwner(); owned {
		check, start = "sudo -u diaspora diaspora serve --check", "sudo systemctl enable --now diaspora-acl diaspora-gateway"
	}
	if start == "diaspora serve" {
		start += config
	}
	login := "diaspora login " + shellWord(i.values["public-url"])
	if i.as != "" {
		login += " --as " + shellWord(i.as)
	}
	return []string{check + config, start, login}
}

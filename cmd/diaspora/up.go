package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/inside"
	"github.com/diaspora-streams/diaspora/internal/outcome"
)

var upHelp = help{
	use:   "up",
	short: "run a complete fabric on this machine: a Kafka broker and the services around it",
	examples: `
diaspora up

# in a script, while the fabric runs in another terminal: sign in as a service account
eval "$(diaspora up --print-service-account)"

# a fabric for a group on this machine: Mary logs in with "diaspora login URL --as mary@example.edu"
diaspora up --user mary@example.edu --user john@example.edu

# a second fabric, with its data in memory
diaspora up --memory --profile scratch --kafka-port 0 --http-port 0 --globus-port 0

# with Apache Kafka on this machine (in a clone of the repository; needs Java 17 and Maven)
make kafka-up NODES=3
diaspora up --kafka .kafka/cluster.json`,
	long: `
One process runs
  - an embedded Kafka broker, with its data on disk
  - the gateway, which authenticates Kafka clients
  - the ACL endpoint, where topics are claimed
  - a stand-in for Globus Auth
All of them listen only on 127.0.0.1. The command also signs you in, without a browser, and stores
the login as the profile "local", or as the one in --profile. It becomes the current profile if there
is none. Other users of this machine can connect. To log in, they need the secret of the stand-in,
which is in a file that only you can read, and new at each start. Whoever has it can log in as
anybody, also as you. So give it only to people whom you trust; blocking one of them has no effect.

With --user, the stand-in gets another user, and keeps it for later starts. If the fabric is already
running, the command adds the user to it.

If the fabric is already running, the command prints where, and exits. It fails if flags differ from
what runs, or if the profile belongs to another fabric that is running.

Without flags, a later start runs the same fabric again: with the ports of the last run, because
logins, profiles and key files contain them, and with its --kafka or --sync. Choose ports below 32768:
the system uses higher ones for outgoing connections.

With --print-service-account, the command also prints environment variables with which a script can
sign in as a service account. If the fabric is already running, the command prints only these
variables, for eval, and exits.

With --kafka, there is no embedded broker. Events are stored in the Apache Kafka cluster that
"make kafka-up" has started. A gateway runs in front of each node of the cluster, at the address
that this node announces to clients. Later starts use this cluster without the flag. Use
"diaspora up --kafka none" to return to the embedded broker, which has topics, events and keys of its
own.

The fabric runs until Ctrl-C. Acknowledged events are available again after the next start, even
after kill -9, except with --memory.`,
	exclusive: []string{"kafka memory", "kafka kafka-port", "kafka sync", "memory data"},
}

type upOptions struct {
	data, kafka                     string
	memory                          bool
	kafkaPort, httpPort, globusPort uint16
	syncWrites                      bool
	printAccount                    bool
	users                           []string
	given                           func(flag string) bool // whether the user has set a flag
}

const upProfile = "local"

func (e *env) upCommand() *cobra.Command {
	var o upOptions
	var cmd *cobra.Command
	cmd = e.command(upHelp, func(ctx context.Context, _ []string) error {
		return e.up(ctx, o, func(ports ...portFlag) string { return upLine(cmd.Flags(), ports) })
	})
	flags := cmd.Flags()
	o.given = flags.Changed
	flags.StringVar(&o.data, "data", "", "keep all data in `FOLDER` (default: a folder below ~/.local/share)")
	flags.BoolVar(&o.memory, "memory", false, "keep all data in memory; it is lost when the command ends")
	flags.StringVar(&o.kafka, "kafka", "", "use the Apache Kafka cluster described in `FILE` (a cluster.json); none selects the embedded broker")
	flags.Uint16Var(&o.kafkaPort, kafkaPort, 9092, "listen on `PORT` for Kafka clients; 0 selects a free one; not with --kafka, because its file sets the ports")
	flags.Uint16Var(&o.httpPort, httpPort, 9090, "listen on `PORT` for the ACL endpoint; 0 selects a free one")
	flags.Uint16Var(&o.globusPort, globusPort, 9091, "listen on `PORT` for the Globus Auth stand-in; 0 selects a free one")
	flags.BoolVar(&o.syncWrites, "sync", false, "acknowledge events only once they would survive a power cut; slower")
	flags.StringArrayVar(&o.users, "user", nil, "add the user `NAME`, such as mary@example.edu, to the stand-in; may be repeated")
	flags.BoolVar(&o.printAccount, "print-service-account", false, "print environment variables that let a script sign in")
	return cmd
}

// flagsLine returns the flags that the user has set, as part of a command line, without those that are omitted.
func flagsLine(flags *pflag.FlagSet, omitted func(name string) bool) (line string) {
	flags.Visit(func(f *pflag.Flag) {
		switch value := f.Value.String(); {
		case omitted(f.Name):
		case f.Value.Type() != "bool":
			line += " --" + f.Name + " " + shellWord(value)
		case value == "true":
			line += " --" + f.Name
		}
	})
	return line
}

// portFlag is a flag of another start, such as one that names a port or a cluster, and its value. "" stands for no such
// flag.
type portFlag struct{ name, value string }

// upLine returns the command line of an up with the same flags, but with other ports or another cluster.
func upLine(flags *pflag.FlagSet, ports []portFlag) string {
	line := "diaspora up" + flagsLine(flags, func(name string) bool {
		return name == "user" || slices.ContainsFunc(ports, func(p portFlag) bool { return p.name == name }) // users stay
	})
	for _, p := range ports {
		if p.value != "" {
			line += " --" + p.name + " " + shellWord(p.value)
		}
	}
	return line
}

// up runs a fabric. again returns the command line of this run with other ports.
func (e *env) up(ctx context.Context, o upOptions, again func(...portFlag) string) (err error) {
	began := time.Now()
	name := cmp.Or(e.profile, upProfile)
	if err := diaspora.ValidProfile(name); err != nil {
		return err
	}
	for _, username := range o.users {
		if err := globusdev.CheckUsername(username); err != nil {
			return misuse("a username has the form NAME@DOMAIN, such as mary@example.edu", "up --user: %w", err)
		}
	}
	dir, err := e.upDir(o, name)
	if err != nil {
		return err
	}
	profiles, err := diaspora.UserProfiles(e.getenv)
	if err != nil {
		return err
	}
	if o.kafka = clusterFile(o.kafka); o.kafka == noCluster {
		o.kafka = ""
	}
	running, here := inside.Running(dir)
	info, _ := running.(fabric.Info)
	if info.PID != 0 {
		if err := o.hasNoEffect(info, again); err != nil {
			return err
		}
	}
	if o.printAccount || len(o.users) > 0 { // fabric.Start notices a running fabric only by its folder, which --memory does not have
		if u, ok := runningUp(ctx, profiles, name); ok {
			return e.askRunning(ctx, o, u)
		}
	}
	// Only one fabric at a time can use a profile: another one would replace its addresses and its secret, and nobody
	// could log in to the first any more.
	leave, err := lockGlobusSecret(profiles, name)
	switch {
	case errors.Is(err, disk.ErrInUse) && !here:
		return profileTaken(profiles, name, again)
	case err == nil:
		defer func() { err = errors.Join(err, leave()) }()
	}
	last := readLastRun(dir)
	if err := o.useLast(last); err != nil {
		return err
	}
	cluster := o.kafka // as an absolute path
	if cluster != "" {
		if cluster, err = filepath.Abs(cluster); err != nil {
			return err
		}
	}
	username := e.username()
	var log slog.Handler = slog.NewTextHandler(e.stderr, &slog.HandlerOptions{Level: slog.LevelWarn})
	if cluster != "" {
		log = kafkaHinter{log, cluster}
	}
	cfg := fabric.Config{
		Dir:         dir,
		KafkaAddr:   loopback(o.kafkaPort),
		HTTPAddr:    loopback(o.httpPort),
		GlobusAddr:  loopback(o.globusPort),
		Username:    username,
		Operators:   []string{username},
		SyncWrites:  o.syncWrites && cluster == "",
		Version:     programVersion(),
		Diagnostics: slog.New(log),
	}
	starting := ctx
	if o.kafka != "" {
		cfg.KafkaAddr, cfg.KafkaFile = "", o.kafka
		var cancel context.CancelFunc
		starting, cancel = context.WithTimeout(ctx, startTimeout)
		defer cancel()
	}
	f, err := fabric.Start(starting, cfg)
	if other := (*fabric.InUseError)(nil); errors.As(err, &other) && other.Info.PID != 0 {
		return e.alreadyUp(ctx, o, other, profiles, name)
	}
	if err != nil && ctx.Err() != nil {
		return nil // stopped while it started
	}
	if err != nil {
		if cluster != "" && !o.given("kafka") && len(takenPorts(err)) == 0 {
			err = hinted(err, fmt.Sprintf(`or "%s" runs the embedded broker, which has topics, events and access keys of its own`, again(portFlag{"kafka", noCluster})))
		}
		return upError(err, o.kafka, last, again)
	}
	defer func() { err = errors.Join(err, f.Close()) }()

	u := upDocument{URL: f.URL(), Brokers: f.Brokers(), Globus: f.GlobusURL(), Profile: name, Data: dir, Kafka: cluster, PID: os.Getpid()}
	if o.printAccount {
		secret, err := inside.Of(f).Globus.ClientSecret(globusdev.ServiceClientID)
		if err != nil {
			return err
		}
		u.ServiceAccount = &accountDocument{ClientID: globusdev.ServiceClientID, ClientSecret: secret.Reveal()}
	}
	if err := addUsers(ctx, o.users, u.Globus, inside.Of(f).GlobusSecret); err != nil {
		return err
	}
	secretFile := globusSecretFile(profiles, name)
	if remove, err := saveGlobusSecret(secretFile, inside.Of(f).GlobusSecret); err != nil {
		e.warn("the secret of the local Globus Auth could not be kept, so only this command logs in: %v", err)
	} else {
		u.GlobusSecretFile = secretFile
		defer remove()
	}
	login, err := e.logInLocally(ctx, f, profiles, name, username)
	switch {
	case ctx.Err() != nil:
		return nil // stopped while it started
	case err != nil:
		e.warn("the profile %s could not be written: %v", name, err)
		e.hint(fmt.Sprintf(`"diaspora login %s" in another terminal logs you in`, f.URL()))
	default:
		u.Subject, u.Username = login.Subject, login.Username
	}
	u.Current = isCurrent(profiles, name)
	if err := e.printUp(u); err != nil {
		return err
	}
	e.sayUsers(o.users, u.URL)
	e.tellMoved(dir, last, lastRun{Info: fabric.Info{URL: u.URL, Brokers: u.Brokers, Globus: u.Globus, Kafka: cluster, SyncWrites: o.syncWrites}}, again)
	e.say("ready after %d ms; Ctrl-C stops it", time.Since(began).Milliseconds())
	<-ctx.Done()
	e.say("stopping; requests in flight are finished first")
	return nil
}

// noCluster is the value of --kafka for the embedded broker.
const noCluster = "none"

// clusterFile returns the file of a cluster in a folder, where "make kafka-up" writes it. Any other name is unchanged.
func clusterFile(name string) string {
	if info, err := os.Stat(name); err == nil && info.IsDir() {
		return filepath.Join(name, "cluster.json")
	}
	return name
}

// makeKafkaUp returns the command that starts the cluster of a cluster.json again.
func makeKafkaUp(file string) string {
	if dir := filepath.Dir(file); filepath.Base(dir) != ".kafka" { // where make looks without the variable
		return "KAFKA_DIR=" + shellWord(dir) + " make kafka-up"
	}
	return "make kafka-up"
}

// kafkaHinter adds a hint to messages of a fabric whose Apache Kafka, described in file, does not answer.
type kafkaHinter struct {
	slog.Handler
	file string
}

func (h kafkaHinter) Handle(ctx context.Context, r slog.Record) error {
	down := false
	r.Attrs(func(a slog.Attr) bool {
		if err, ok := a.Value.Any().(error); ok {
			down = errors.Is(err, diaspora.ErrUnavailable) || errors.Is(err, syscall.ECONNREFUSED)
		}
		return !down
	})
	if down {
		r = r.Clone()
		r.AddAttrs(slog.String("hint", fmt.Sprintf(`the Apache Kafka of %s does not answer; "%s" in the clone starts it again, with its events`, h.file, makeKafkaUp(h.file))))
	}
	return h.Handler.Handle(ctx, r)
}

func (h kafkaHinter) WithAttrs(attrs []slog.Attr) slog.Handler {
	return kafkaHinter{h.Handler.WithAttrs(attrs), h.file}
}

func (h kafkaHinter) WithGroup(name string) slog.Handler {
	return kafkaHinter{h.Handler.WithGroup(name), h.file}
}

// addressesFile, in the data folder, has the [lastRun].
const addressesFile = "addresses.json"

// lastRun says where the fabric last ran: its addresses, and the file of its Apache Kafka, if it had one.
// SyncWrites is kept while it runs with an Apache Kafka.
type lastRun struct {
	fabric.Info

	// EmbeddedPort is the port of the embedded broker when it last ran, or "".
	EmbeddedPort string `json:"embedded_port,omitempty"`

	// Ports are those of earlier runs, as in portsOf.
	Ports [][3]string `json:"ports,omitempty"`
}

// embeddedPort returns the port of the embedded broker when it last ran, or "".
func (r lastRun) embeddedPort() string {
	if r.Kafka == "" { // in files of earlier versions, there is no other record of it
		return portsOf(r.Info)[1]
	}
	return r.EmbeddedPort
}

// brokerName says where the events of a run are. kafka is the file of its Apache Kafka, if it had one.
func brokerName(kafka string) string {
	if kafka == "" {
		return "the embedded broker"
	}
	return "--kafka " + shellWord(kafka)
}

// useLast sets what the user has not chosen as in the last run with this data. Logins, profiles and key files contain its
// ports, and with another broker, all topics would seem to be lost.
func (o *upOptions) useLast(last lastRun) error {
	if !o.given("kafka") && !o.memory {
		o.kafka = last.Kafka
	}
	if o.kafka != "" && !o.given("kafka") {
		for _, flag := range []string{kafkaPort, "sync"} {
			if o.given(flag) {
				return misuse(fmt.Sprintf(`leave it out, or use the embedded broker with "--kafka %s", which has topics, events and access keys of its own`, noCluster),
					"up: --%s is for the embedded broker, and the last run used --kafka %s", flag, shellWord(o.kafka))
			}
		}
	}
	if !o.given("sync") {
		o.syncWrites = last.SyncWrites
	}
	ports := portsOf(last.Info)
	for _, p := range []struct {
		flag, last string
		port       *uint16
	}{{httpPort, ports[0], &o.httpPort}, {kafkaPort, last.embeddedPort(), &o.kafkaPort}, {globusPort, ports[2], &o.globusPort}} {
		if n, err := strconv.ParseUint(p.last, 10, 16); err == nil && n > 0 && !o.given(p.flag) {
			*p.port = uint16(n)
		}
	}
	return nil
}

// maxEarlierPorts is how many earlier ports a [lastRun] has at most.
const maxEarlierPorts = 10

// tellMoved warns if the fabric ran before with another broker, because everything then seems to be lost, or on other
// ports, because key files and profiles from then contain the old addresses. A user who goes back to earlier ports is not
// told. It records the current run for the next start. Errors are ignored: the fabric works without this file.
func (e *env) tellMoved(dir string, last, now lastRun, again func(...portFlag) string) {
	if was, is := portsOf(last.Info), portsOf(now.Info); was != [3]string{} {
		at := func(ports [3]string) string { return again(flagsOf(ports, now.Kafka != "")...) }
		now.Ports, now.EmbeddedPort = last.Ports, last.embeddedPort()
		if was != is && !slices.Contains(now.Ports, was) {
			now.Ports = append(now.Ports, was)[max(0, len(now.Ports)+1-maxEarlierPorts):]
		}
		switch {
		case last.Kafka != now.Kafka:
			e.warn("the last run used %s, and this one uses %s; each has topics, events and access keys of its own", brokerName(last.Kafka), brokerName(now.Kafka))
			e.hint(fmt.Sprintf(`to return to those of the last run, end this, and type "%s"`, again(portFlag{"kafka", cmp.Or(last.Kafka, noCluster)}, portFlag{name: kafkaPort}, portFlag{name: "sync"})))
		case slices.Contains(last.Ports, is):
		case now.Kafka != "" && was[0] == is[0] && was[2] == is[2]: // the ports of its gateways were chosen when the cluster was made
			if was[1] != is[1] {
				e.warn("the gateway of the last run was at port %s, and this one is at %s: %s is another cluster, without the topics, events and access keys of that one", was[1], is[1], now.Kafka)
				e.hint("have everybody log in again, claim the topics, and make new key files")
			}
		case was != is && was[0] != "" && was[1] != "" && was[2] != "":
			text, hint := "", fmt.Sprintf(`"%s" runs it there again`, at(was))
			var taken []string
			for i := range was {
				if was[i] != is[i] && !portFree(was[i]) {
					taken = append(taken, was[i])
				}
			}
			if len(taken) > 0 { // most likely the reason for the other ports, so do not suggest to go back
				text = fmt.Sprintf("; %s %s taken by %s", strings.Join(taken, " and "), agree(len(taken), "is", "are"), agree(len(taken), "another program", "other programs"))
				hint = fmt.Sprintf(`make new key files, and keep the ports from now on: "%s"`, at(is))
			}
			e.warn("it last ran on %s, %s and %s; key files and profiles from then have those addresses%s", was[0], was[1], was[2], text)
			e.hint(hint)
		}
	}
	now.write(dir)
}

// readLastRun reads what the last run has recorded in the data folder. It returns the zero value if there was none.
func readLastRun(dir string) (last lastRun) {
	if dir == "" {
		return lastRun{}
	}
	text, err := os.ReadFile(filepath.Join(dir, addressesFile))
	if err != nil || json.Unmarshal(text, &last) != nil {
		return lastRun{}
	}
	return last
}

// write records a run in the data folder.
func (r lastRun) write(dir string) {
	if text, err := json.Marshal(r); err == nil && dir != "" {
		_ = os.WriteFile(filepath.Join(dir, addressesFile), append(text, '\n'), 0o600)
	}
}

// flagsOf returns the flags for ports as in portsOf. fixed means that those of the gateways cannot be chosen.
func flagsOf(ports [3]string, fixed bool) []portFlag {
	flags := []portFlag{{httpPort, ports[0]}, {kafkaPort, ports[1]}, {globusPort, ports[2]}}
	if fixed {
		flags[1].value = ""
	}
	return flags
}

// portsOf returns the ports of the ACL endpoint, of Kafka and of Globus Auth. An unknown port is "".
func portsOf(i fabric.Info) (ports [3]string) {
	kafka := ""
	if len(i.Brokers) > 0 {
		kafka = "//" + i.Brokers[0]
	}
	for n, address := range []string{i.URL, kafka, i.Globus} {
		if u, err := url.Parse(address); err == nil {
			ports[n] = u.Port()
		}
	}
	return ports
}

// portFree reports whether this machine's port is free now.
func portFree(port string) bool {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		return false
	}
	l.Close()
	return true
}

// lowestOutgoing is the first of the ports that Linux gives to outgoing connections. So these ports may be taken at any time.
const lowestOutgoing = 32768

// freePort returns a port of this machine that is free and not among those that are excluded, a fixed distance from a
// taken one: key files and profiles contain the ports, so 0 would make them useless at the next start.
func freePort(taken string, excluded map[string]bool) string {
	const distance, tries, lowest, highest = 10000, 1000, 1024, lowestOutgoing - 1
	n, _ := strconv.Atoi(taken)
	for i := range tries {
		port := strconv.Itoa(lowest + (n+distance+i-lowest)%(highest-lowest+1))
		if !excluded[port] && portFree(port) {
			return port
		}
	}
	return "0"
}

func loopback(port uint16) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))) }

// upDir returns the data folder of the fabric, or "" for --memory.
func (e *env) upDir(o upOptions, name string) (string, error) {
	switch {
	case o.memory:
		return "", nil
	case o.data != "":
		return filepath.Abs(o.data)
	}
	base := e.getenv("XDG_DATA_HOME")
	if !filepath.IsAbs(base) {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", hinted(fmt.Errorf("up: there is no folder for the data: %w", err), "name one with --data DIR, or use --memory")
		}
		base = filepath.Join(home, ".local", "share")
		if runtime.GOOS == "windows" {
			base = filepath.Join(home, "AppData", "Local")
		}
	}
	return filepath.Join(base, "diaspora", name), nil
}

// username returns the username of the local user at the stand-in for Globus Auth.
func (e *env) username() string {
	name := e.getenv("USER")
	if name == "" {
		if u, err := user.Current(); err == nil {
			name = u.Username
		}
	}
	name = strings.ToLower(strings.Trim(plainName(name, "-_.", '_'), "._-"))
	return cmp.Or(name, "you") + "@localhost"
}

// logInLocally creates the profile for this fabric, and logs the local user in unless the profile has a
// valid login.
func (e *env) logInLocally(ctx context.Context, f *fabric.Fabric, profiles *diaspora.Profiles, name, username string) (globus.Identity, error) {
	if err := profiles.Save(diaspora.Profile{Name: name, URL: f.URL(), Discovery: f.Discovery()}); err != nil {
		return globus.Identity{}, err
	}
	if cfg, err := profiles.Config(name); err == nil {
		if client, err := diaspora.NewClient(cfg); err == nil {
			if who, err := client.Identity(ctx); err == nil {
				return who, useIfNone(profiles, name)
			}
		}
	}
	store, err := profiles.Store(name)
	if err != nil {
		return globus.Identity{}, err
	}
	login, err := f.Login(ctx, username)
	if err != nil {
		return globus.Identity{}, err
	}
	// The stored login is useless, even if it is another user's: the Globus Auth that issued it is gone.
	if err := store.Delete(ctx); err != nil {
		return globus.Identity{}, err
	}
	if err := store.Save(ctx, login); err != nil {
		return globus.Identity{}, err
	}
	return login.Identity, useIfNone(profiles, name)
}

// useIfNone makes a profile the current one if there is none.
func useIfNone(profiles *diaspora.Profiles, name string) error {
	if _, err := profiles.Current(); errors.Is(err, diaspora.ErrNoProfile) {
		return profiles.Use(name)
	}
	return nil
}

func isCurrent(profiles *diaspora.Profiles, name string) bool {
	current, err := profiles.Current()
	return err == nil && current == name
}

// upDocument is the output of up.
type upDocument struct {
	URL     string   `json:"url"`
	Brokers []string `json:"brokers"`
	Globus  string   `json:"globus"`
	// GlobusSecretFile is a file with the HTTP header that the stand-in for Globus Auth requires.
	GlobusSecretFile string `json:"globus_secret_file,omitempty"`
	Data             string `json:"data,omitempty"`
	Kafka            string `json:"kafka,omitempty"` // the cluster.json of an Apache Kafka
	Profile          string `json:"profile"`
	Current          bool   `json:"current"` // the profile is the current one
	Subject          string `json:"subject,omitempty"`
	Username         string `json:"username,omitempty"`
	PID              int    `json:"pid,omitempty"`     // 0 if unknown
	Already          bool   `json:"already,omitempty"` // the fabric was already running

	ServiceAccount *accountDocument `json:"service_account,omitempty"` // with --print-service-account
}

// accountDocument is a client at Globus Auth that signs in as itself.
type accountDocument struct {
	ClientID     string `json:"client_id"`
	ClientSecret string `json:"client_secret"`
}

// runningUp returns the fabric that is running for a profile, with its service account. ok is false if none is.
func runningUp(ctx context.Context, profiles *diaspora.Profiles, name string) (u upDocument, ok bool) {
	p, err := profiles.Load(name)
	if err != nil {
		return upDocument{}, false
	}
	file := globusSecretFile(profiles, name)
	account, err := askAccount(ctx, file, p.Discovery.Globus.Issuer)
	if err != nil {
		return upDocument{}, false
	}
	return upDocument{
		URL: p.URL, Brokers: p.Discovery.Brokers, Globus: p.Discovery.Globus.Issuer, Profile: name, Current: isCurrent(profiles, name),
		GlobusSecretFile: file, Already: true, ServiceAccount: account,
	}, true
}

// askAccount requests the service account from the stand-in for Globus Auth. secretFile has the secret of the
// stand-in.
func askAccount(ctx context.Context, secretFile, issuer string) (*accountDocument, error) {
	secret, err := loadGlobusSecret(secretFile)
	if err != nil {
		return nil, err
	}
	id, clientSecret, err := globusdev.ServiceAccount(ctx, issuer, secret)
	if err != nil {
		return nil, err
	}
	return &accountDocument{ClientID: id, ClientSecret: clientSecret.Reveal()}, nil
}

// exports returns shell commands that set the variables for signing in as the service account.
func (u *upDocument) exports() string {
	return fmt.Sprintf("export DIASPORA_URL=%s\nexport DIASPORA_CLIENT_ID=%s\nexport DIASPORA_CLIENT_SECRET=%s\n",
		shellWord(u.URL), shellWord(u.ServiceAccount.ClientID), shellWord(u.ServiceAccount.ClientSecret))
}

// hasNoEffect returns an error if the user has set flags that differ from what runs. A start that ignored them would
// look as if it had done what they say. again is as in up.
func (o upOptions) hasNoEffect(info fabric.Info, again func(...portFlag) string) error {
	ports := portsOf(info)
	other := func(flag string, port uint16, is ...string) bool {
		return o.given(flag) && port != 0 && !slices.Contains(is, strconv.Itoa(int(port)))
	}
	var kafkaPorts []string
	for _, b := range info.Brokers {
		if _, port, err := net.SplitHostPort(b); err == nil {
			kafkaPorts = append(kafkaPorts, port)
		}
	}
	var flags []string
	for _, f := range []struct {
		name    string
		differs bool
	}{
		{"kafka", o.given("kafka") && o.kafka != info.Kafka && !sameFile(o.kafka, info.Kafka)},
		{httpPort, other(httpPort, o.httpPort, ports[0])},
		{globusPort, other(globusPort, o.globusPort, ports[2])},
		{kafkaPort, other(kafkaPort, o.kafkaPort, kafkaPorts...)},
		{"sync", o.given("sync") && o.syncWrites != info.SyncWrites},
	} {
		if f.differs {
			flags = append(flags, "--"+f.name)
		}
	}
	if len(flags) == 0 {
		return nil
	}
	broker, line := "the embedded broker", again()
	if info.Kafka != "" {
		broker = "the Apache Kafka of " + info.Kafka
		if !o.given("kafka") { // the next start has this cluster again, for which there are no such flags
			line = again(portFlag{name: kafkaPort}, portFlag{name: "sync"})
		}
	}
	n := len(flags)
	list := flags[n-1]
	if n > 1 {
		list = strings.Join(flags[:n-1], ", ") + " and " + list
	}
	return fail(diaspora.ErrConflict, fmt.Sprintf(`end that process first, and type "%s"; "diaspora up" without %s shows what runs`, line, agree(n, "this flag", "these flags")),
		"up: process %d already runs this fabric, with %s, at %s; %s %s no effect on it", info.PID, broker, info.URL, list, agree(n, "has", "have"))
}

// sameFile reports whether a path and an absolute path are those of the same file, which need not exist.
func sameFile(a, b string) bool {
	if abs, err := filepath.Abs(a); err == nil && abs == b {
		return true
	}
	i, errA := os.Stat(a)
	j, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(i, j)
}

// profileTaken is the error of a start for a profile that belongs to another fabric, which is running.
func profileTaken(profiles *diaspora.Profiles, name string, again func(...portFlag) string) error {
	which := "a fabric that is running"
	if p, err := profiles.Load(name); err == nil {
		which = "the fabric at " + p.URL + ", which is running"
	}
	other := "scratch"
	if name == other {
		other = "scratch2"
	}
	return fail(diaspora.ErrConflict, fmt.Sprintf(`choose another profile for this one: "%s"`, again(portFlag{"profile", other})),
		"up: the profile %s belongs to %s", name, which)
}

// alreadyUp prints the addresses of a fabric that another process runs.
func (e *env) alreadyUp(ctx context.Context, o upOptions, other *fabric.InUseError, profiles *diaspora.Profiles, name string) error {
	u := upDocument{
		URL: other.Info.URL, Brokers: other.Info.Brokers, Globus: other.Info.Globus, PID: other.Info.PID,
		Data: other.Dir, Kafka: other.Info.Kafka, Profile: name, Current: isCurrent(profiles, name), Already: true,
	}
	secretFile := globusSecretFile(profiles, name)
	if _, err := os.Stat(secretFile); err == nil {
		u.GlobusSecretFile = secretFile
	}
	who := whoIsAt(ctx, profiles, name, u.URL)
	u.Subject, u.Username = who.Subject, who.Username
	if o.printAccount {
		account, err := askAccount(ctx, secretFile, other.Info.Globus)
		if err != nil {
			return hinted(fmt.Errorf("up: process %d runs the fabric, and its service account cannot be read: %w", other.Info.PID, err),
				`restart "diaspora up" there, as the same user and with the same --profile`)
		}
		u.ServiceAccount = account
		return e.answer(u, "%s", u.exports())
	}
	e.say("it is already running, as process %d", other.Info.PID)
	return e.printUp(u)
}

// askRunning adds users to a fabric that is running, or prints its service account.
func (e *env) askRunning(ctx context.Context, o upOptions, u upDocument) error {
	if len(o.users) > 0 {
		secret, err := loadGlobusSecret(u.GlobusSecretFile)
		if err == nil {
			err = addUsers(ctx, o.users, u.Globus, secret)
		}
		if err != nil {
			return err
		}
		e.sayUsers(o.users, u.URL)
	}
	if !o.printAccount {
		return nil
	}
	return e.answer(u, "%s", u.exports())
}

// sayUsers says how users who were added log in.
func (e *env) sayUsers(usernames []string, address string) {
	for _, username := range usernames {
		e.say("%s can log in now: diaspora login %s --as %s", username, shellWord(address), shellWord(username))
	}
}

// addUsers adds users to the stand-in for Globus Auth at issuer.
func addUsers(ctx context.Context, usernames []string, issuer string, secret globus.Secret) error {
	for _, username := range usernames {
		if err := globusdev.AddUser(ctx, issuer, secret, username); err != nil {
			return fmt.Errorf("up --user: %w", err)
		}
	}
	return nil
}

// whoIsAt returns the identity that a profile is logged in with. It is empty after a logout, if the login is no
// longer valid, or if the profile is for another fabric.
func whoIsAt(ctx context.Context, profiles *diaspora.Profiles, name, address string) globus.Identity {
	cfg, err := profiles.Config(name)
	if err != nil || !sameFabric(cfg.URL, address) {
		return globus.Identity{}
	}
	client, err := diaspora.NewClient(cfg)
	if err != nil {
		return globus.Identity{}
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	who, err := client.Identity(ctx)
	switch {
	case err == nil:
		return who
	case outcome.ExitCode(err) == outcome.ExitCode(diaspora.ErrUnauthenticated):
		return globus.Identity{}
	}
	return cfg.Identity // the fabric is not reachable, so assume that the stored login is valid
}

func (e *env) printUp(u upDocument) error {
	events := "in the embedded broker"
	if u.Kafka != "" {
		events = "in the Apache Kafka of " + u.Kafka
	}
	secret := ""
	if u.GlobusSecretFile != "" {
		secret = "\n                 its secret, new at each start, is in " + u.GlobusSecretFile + ":\n" +
			"                 whoever has it can log in as anybody, also as you: diaspora login " + u.URL + " --as USER"
	}
	who := "nobody is logged in"
	if u.Username != "" {
		who = "you are " + u.Username
	}
	text := fmt.Sprintf(`Diaspora Streams runs on this machine.

  ACL endpoint   %s/acl
  Kafka          %s
  Globus Auth    %s   (a stand-in for this machine; not Globus)%s
  Data           %s
  Events         %s
  Profile        %s, where %s

In another terminal:

`, u.URL, strings.Join(u.Brokers, ","), u.Globus, secret, cmp.Or(u.Data, "in memory; lost when this command ends"), events, u.Profile, who)
	if u.Username == "" {
		text += fmt.Sprintf("  diaspora login %s --profile %s\n", u.URL, u.Profile)
	}
	if !u.Current {
		text += fmt.Sprintf("  export DIASPORA_PROFILE=%s\n", u.Profile)
	}
	text += `  diaspora topic claim weather
  echo '{"temperature": 21.5}' | diaspora produce weather
  diaspora consume weather --from start --exit
`
	if u.ServiceAccount != nil {
		text += "\nA script signs in as the service account with:\n\n" + indent(u.exports()) + "\n"
	}
	return e.answer(u, "%s", text)
}

// The flags that name ports.
const (
	kafkaPort  = "kafka-port"
	httpPort   = "http-port"
	globusPort = "globus-port"
)

// portFlags maps the parts of a fabric to the flags with their ports.
var portFlags = map[string]string{"the Kafka gateway": kafkaPort, "the ACL endpoint": httpPort, "Globus Auth": globusPort}

// upError adds hints to the error of a fabric that did not start. last is zero if there was no run before, and again is as in up.
func upError(err error, kafkaFile string, last lastRun, again func(...portFlag) string) error {
	const startKafka = `"make kafka-up" in a clone starts an Apache Kafka, and says where its file is`
	switch {
	case kafkaFile == "":
	case errors.Is(err, fs.ErrNotExist):
		file, absErr := filepath.Abs(kafkaFile)
		if _, stopped := os.Stat(filepath.Join(filepath.Dir(file), "kafka-cluster")); stopped == nil && absErr == nil && filepath.Base(file) == "cluster.json" {
			return hinted(fmt.Errorf("up: the Apache Kafka of %s is stopped; its events are kept", kafkaFile), append([]string{fmt.Sprintf(`"%s" in the clone starts it again`, makeKafkaUp(file))}, hintsOf(err)...)...)
		}
		start := startKafka
		if absErr == nil && filepath.Base(file) == "cluster.json" {
			start = fmt.Sprintf(`"%s" in a clone starts an Apache Kafka there`, makeKafkaUp(file))
		}
		return hinted(fmt.Errorf("up: %w", err), start)
	case errors.Is(err, diaspora.ErrUnavailable):
		file, _ := filepath.Abs(kafkaFile)
		return hinted(fmt.Errorf("up: the Apache Kafka of %s does not answer: %w", kafkaFile, err), fmt.Sprintf(`"%s" in the clone starts it again, with its events`, makeKafkaUp(file)))
	}
	if taken := takenPorts(err); len(taken) > 0 {
		return takenError(taken, last, kafkaFile != "", again)
	}
	if e := (*fabric.InUseError)(nil); errors.As(err, &e) {
		return hinted(fmt.Errorf("up: %w", err), "it is starting or stopping; try again in a moment")
	}
	err = fmt.Errorf("up: %w", err)
	if unwritable(err) {
		return hinted(err, "name a folder where you may write with --data DIR, or use --memory")
	}
	return err
}

// takenPorts returns the errors of all ports that other programs use.
func takenPorts(err error) (taken []*fabric.ListenError) {
	if all, ok := err.(interface{ Unwrap() []error }); ok {
		for _, err := range all.Unwrap() {
			taken = append(taken, takenPorts(err)...)
		}
		return taken
	}
	if e := (*fabric.ListenError)(nil); errors.As(err, &e) && errors.Is(e.Err, syscall.EADDRINUSE) {
		taken = append(taken, e)
	}
	return taken
}

// takenError says which ports are taken, and how to choose others. last is zero if there was no run before. fixed means
// that the ports of the gateways cannot be chosen.
func takenError(taken []*fabric.ListenError, last lastRun, fixed bool, again func(...portFlag) string) error {
	var texts, hints []string
	var free []portFlag
	chosen := map[string]bool{}
	stuck := false
	for _, e := range taken {
		_, port, _ := net.SplitHostPort(e.Addr)
		texts = append(texts, fmt.Sprintf("port %s, for %s", port, e.Service))
		if flag := portFlags[e.Service]; flag == kafkaPort && fixed {
			stuck = true
		} else {
			other := freePort(port, chosen)
			chosen[other] = true
			free = append(free, portFlag{flag, other})
		}
	}
	if stuck {
		hints = append(hints, "end what listens at the gateways; their ports were chosen when the Apache Kafka was made")
	}
	was := portsOf(last.Info)
	known := was[0] != "" && was[1] != "" && was[2] != ""
	fixed = fixed || last.Kafka != "" // the gateways of a cluster are no ports for the embedded broker
	switch {
	case len(free) == 0:
	case known && slices.ContainsFunc(taken, func(e *fabric.ListenError) bool {
		_, port, _ := net.SplitHostPort(e.Addr)
		return slices.Contains(was[:], port)
	}):
		hints = append(hints, fmt.Sprintf("end the other %s, because logins, profiles and key files have %s", agree(len(taken), "program", "programs"), agree(len(taken), "this port", "these ports")),
			fmt.Sprintf(`if you cannot: "%s" uses %s; keep those from then on, and have everybody log in again there and make new key files`, again(free...), agree(len(free), "a free port", "free ports")))
	case known && !stuck && portFree(was[0]) && portFree(was[2]) && (fixed || portFree(was[1])):
		hints = append(hints, fmt.Sprintf(`logins, profiles and key files have the ports of the last run: "%s" uses them again`, again(flagsOf(was, fixed)...)))
	case known && !stuck:
		hints = append(hints, fmt.Sprintf(`logins, profiles and key files have the ports of the last run, some of which are taken, too: try "%s" again in a minute`, again(flagsOf(was, fixed)...)),
			fmt.Sprintf(`otherwise "%s" uses %s; keep those from then on, and have everybody log in again there and make new key files`, again(free...), agree(len(free), "a free port", "free ports")))
	default:
		hints = append(hints, fmt.Sprintf(`"%s" uses %s`, again(free...), agree(len(free), "a free port", "free ports")))
	}
	if slices.ContainsFunc(taken, func(e *fabric.ListenError) bool {
		_, port, _ := net.SplitHostPort(e.Addr)
		n, _ := strconv.Atoi(port)
		return n >= lowestOutgoing
	}) {
		hints = append(hints, fmt.Sprintf("the system also gives ports from %d on to outgoing connections: try again in a minute, or choose lower ports", lowestOutgoing))
	}
	text := fmt.Sprintf("up: %s, %s taken by %s", strings.Join(texts, ", and "), agree(len(taken), "is", "are"), agree(len(taken), "another program", "other programs"))
	return &failure{errors.New(text), diaspora.ErrConflict, hints}
}

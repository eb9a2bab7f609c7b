package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/doctor"
	"github.com/diaspora-streams/diaspora/internal/front"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

// Commands are listed in the order in which users need them, not by name.
func init() { cobra.EnableCommandSorting = false }

// help is the help text of a command. Examples are printed first, because people read them first.
type help struct {
	use      string   // "produce TOPIC [FILE...]"
	short    string   // one line for the list of commands
	examples string   // command lines, each with a comment above it
	long     string   // all other explanations
	formats  []string // the first one is the default; nil means answerFormats
	args     arguments

	exclusive []string // pairs of flags that exclude each other: "memory data"
}

// Output formats of commands that print one result, and of commands that print a stream.
var (
	answerFormats = []string{"text", "json"}
	streamFormats = []string{"text", "json", "ndjson"}
)

// arguments describes the arguments of a command that are not flags.
type arguments struct {
	min, max int    // a max of -1 means any number
	missing  string // error if there are too few: "the topic is missing"
	surplus  string // hint if there are too many; "" refers to the help
}

// oneOf returns an error if the value of a flag is not one of these.
func oneOf(flag, value string, values ...string) error {
	if slices.Contains(values, value) {
		return nil
	}
	return misuse("", "%s %s: choose one of %s", flag, value, strings.Join(values, ", "))
}

// optional returns the argument of a command that takes at most one, or "".
func optional(args []string) string { return strings.Join(args, "") }

// command returns a cobra command with this help text, which runs do.
func (e *env) command(h help, do func(ctx context.Context, args []string) error) *cobra.Command {
	if h.formats == nil {
		h.formats = answerFormats
	}
	cmd := &cobra.Command{
		Use:                   h.use,
		DisableFlagsInUseLine: true,
		Short:                 h.short,
		Example:               indent(h.examples),
		Long:                  strings.TrimSpace(h.long),
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) < h.args.min:
				return misuse(seeHelp(cmd), "%s%s", prefix(cmd), h.args.missing)
			case h.args.max >= 0 && len(args) > h.args.max:
				return misuse(cmp.Or(h.args.surplus, seeHelp(cmd)), "%stoo many arguments, from %q on", prefix(cmd), args[h.args.max])
			}
			if err := oneOf(prefix(cmd)+"-o", e.output, h.formats...); err != nil {
				return err
			}
			given := func(name string) bool {
				f := cmd.Flags().Lookup(name)
				return f.Changed && f.Value.String() != "false"
			}
			for _, pair := range h.exclusive {
				if one, other, _ := strings.Cut(pair, " "); given(one) && given(other) {
					return misuse("", "%s--%s and --%s exclude each other", prefix(cmd), one, other)
				}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Name() != "doctor" { // doctor has a check for this
				e.warnOfVariables()
			}
			return do(cmd.Context(), args)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().StringVarP(&e.output, "output", "o", h.formats[0], "print in `FORMAT`: "+strings.Join(h.formats, ", "))
	cmd.RegisterFlagCompletionFunc("output", fixed(h.formats...))
	return cmd
}

// clientCommand is command for commands that only ask the ACL endpoint.
func (e *env) clientCommand(h help, do func(ctx context.Context, client *diaspora.Client, args []string) error) *cobra.Command {
	return e.command(h, func(ctx context.Context, args []string) error {
		_, client, err := e.client()
		if err != nil {
			return err
		}
		return do(ctx, client, args)
	})
}

func indent(text string) string {
	text = "  " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n  ")
	return strings.ReplaceAll(text, "\n  \n", "\n\n")
}

// prefix returns the prefix of a command's errors: "topic claim: ". The name of the program is left out,
// because it is printed before every error anyway.
func prefix(cmd *cobra.Command) string {
	if _, name, ok := strings.Cut(cmd.CommandPath(), " "); ok {
		return name + ": "
	}
	return ""
}

func seeHelp(cmd *cobra.Command) string {
	return fmt.Sprintf(`see "%s --help"`, cmd.CommandPath())
}

// group returns a command that only has subcommands.
func group(name, short string, below ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: name + " COMMAND", DisableFlagsInUseLine: true, Short: short, Args: unknownCommand, RunE: showHelp}
	cmd.AddCommand(below...)
	return cmd
}

func showHelp(cmd *cobra.Command, _ []string) error { return cmd.Help() }

// guessedCommands maps names that people know from other programs to the commands that they need.
var guessedCommands = map[string]string{
	"diaspora topic grant":     "diaspora topic share",
	"diaspora topic revoke":    "diaspora topic unshare",
	"diaspora topic describe":  "diaspora topic show",
	"diaspora topic alter":     "diaspora topic set",
	"diaspora topic configure": "diaspora topic set",
	"diaspora topic update":    "diaspora topic set",
	"diaspora topic give":      "diaspora topic transfer",
	"diaspora topic undelete":  "diaspora topic restore",

	"diaspora share":   "diaspora topic share",
	"diaspora unshare": "diaspora topic unshare",

	"diaspora init":         "diaspora serve init",
	"diaspora claim":        "diaspora topic claim",
	"diaspora release":      "diaspora topic release",
	"diaspora drain":        "diaspora spool drain",
	"diaspora topic create": "diaspora topic claim",
	"diaspora topic delete": "diaspora topic release",
	"diaspora topic remove": "diaspora topic release",
	"diaspora key delete":   "diaspora key revoke",
	"diaspora key remove":   "diaspora key revoke",
	"diaspora key show":     "diaspora key list",

	"diaspora group describe": "diaspora group show",
	"diaspora group seek":     "diaspora group reset",
	"diaspora group commit":   "diaspora group reset",
	"diaspora group remove":   "diaspora group delete",
}

// noRename is the error for people who look for a way to rename a topic, with the commands that copy one instead.
func noRename(args []string) error {
	from, to := "OLD", "NEW"
	if len(args) == 2 && diaspora.ValidTopic(args[0]) == nil && diaspora.ValidTopic(args[1]) == nil {
		from, to = args[0], args[1]
	}
	return hinted(misuse("", "topic rename: Kafka cannot rename a topic; copy its events to a new one"),
		"first: diaspora topic claim "+to,
		fmt.Sprintf("then: diaspora consume %s --from start --exit -o ndjson | diaspora produce %s --input ndjson", from, to),
		"last: diaspora topic release "+from)
}

// variableFlags are flags that people guess, but that exist only as environment variables. The values are
// hints.
var variableFlags = map[string]string{
	"state-dir": "set the variable DIASPORA_STATE_DIR to the folder for spools",
	"key-file":  "set DIASPORA_KEY_FILE to the name of the key file",
	"key":       "set DIASPORA_KEY_FILE to the name of the key file",
}

// unknownCommand returns an error for an unknown command, with a hint if a similar one exists.
func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	path := cmd.CommandPath() + " " + args[0]
	err := fmt.Sprintf("unknown command %q", path)
	switch other := guessedCommands[path]; {
	case path == "diaspora topic rename":
		return noRename(args[1:])
	case !cmd.HasParent() && args[0] == "watch":
		return misuse(logsFolder, "%s", err)
	case other != "":
		return misuse(fmt.Sprintf(`did you mean "%s"?`, other), "%s", err)
	}
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		best := cmp.Or(doctor.Near(args[0], near), near[0]) // "logut" is logout rather than login
		if i := slices.IndexFunc(near, func(name string) bool { return strings.HasPrefix(name, args[0]) }); i >= 0 {
			best = near[i] // "shar" is share rather than show
		}
		return misuse(fmt.Sprintf(`did you mean "%s %s"?`, cmd.CommandPath(), best), "%s", err)
	}
	return misuse(seeHelp(cmd), "%s", err)
}

// commands returns the root command, with all commands below it.
func (e *env) commands() *cobra.Command {
	root := group("diaspora", "log events to Diaspora Streams, and read them back",
		e.upCommand(),
		e.exampleCommand(),
		e.serveCommand(),
		e.healthcheckCommand(),
		e.loginCommand(),
		e.logoutCommand(),
		e.whoamiCommand(),
		e.tokenCommand(),
		group("profile", "list, select and remove profiles", e.profileCommands()...),
		group("topic", "claim, share, change and release topics", e.topicCommands()...),
		group("key", "create, list and revoke access keys", e.keyCommands()...),
		group("admin", "block and unblock people and service accounts (operators only)", e.adminCommands()...),
		e.produceCommand(),
		e.statusCommand(),
		group("spool", "inspect and send the events that are pending on this machine", e.spoolCommands()...),
		e.consumeCommand(),
		group("group", "list, show, reset and delete your consumer groups", e.groupCommands()...),
		e.doctorCommand(),
		e.completionCommand(),
		e.versionCommand(),
		e.referenceCommand(),
	)
	root.AddCommand(e.helpTopics()...)
	root.Long = `diaspora logs events to Diaspora Streams and reads them back.

On one machine, with nothing else installed:
  diaspora up                             run a complete installation (a fabric) on this machine
  diaspora topic claim weather            in another terminal: claim a topic
  diaspora produce weather                type a line, or pipe a file into it
  diaspora consume weather --from start   read the events

To use the fabric of your institution:
  diaspora login https://diaspora.example.org`
	root.Use = "diaspora COMMAND"
	root.SetHelpCommand(&cobra.Command{Use: "help [COMMAND|TOPIC]", Short: "show the help of a command or a topic", Args: cobra.ArbitraryArgs, RunE: e.help, ValidArgsFunction: completeHelp})
	root.SetHelpTemplate(helpTemplate)
	root.SetUsageTemplate(helpTemplate)
	root.PersistentFlags().StringVar(&e.profile, "profile", "", "use the profile `NAME` instead of the current one")
	root.PersistentFlags().BoolVarP(&e.quiet, "quiet", "q", false, "print only results, warnings and errors")
	root.Version = versionText()
	root.SetVersionTemplate("{{.Version}}\n")
	root.Flags().Bool("version", false, "print the version")
	root.RegisterFlagCompletionFunc("profile", completion(anyArgument, e.profileNames))
	root.CompletionOptions.DisableDefaultCmd = true
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return misuse(cmp.Or(flagHint(cmd, err), seeHelp(cmd)), "%s%v", prefix(cmd), flagError(err))
	})
	root.SetIn(e.stdin)
	root.SetOut(helpOutput{e.stdout})
	root.SetErr(e.stderr)
	return root
}

// logsFolder is a hint for people who look for a command or a flag that logs new files.
const logsFolder = `"diaspora produce TOPIC --watch DIR" logs the files that come into a folder`

// flagError puts an invalid number or an invalid choice into words, rather than in those of Go's parser.
func flagError(err error) error {
	invalid, parser := (*pflag.InvalidValueError)(nil), (*strconv.NumError)(nil)
	if !errors.As(err, &invalid) || !errors.As(err, &parser) {
		return err
	}
	want := "want a whole number"
	switch {
	case errors.Is(parser.Err, strconv.ErrRange):
		want = "this number is too large or too small"
	case invalid.GetFlag().Value.Type() == "bool":
		want = "want true or false"
	}
	return fmt.Errorf("--%s %q: %s", invalid.GetFlag().Name, invalid.GetValue(), want)
}

// flagHint returns a hint for a flag that does not exist, or for a duration without a unit. It returns "" if
// it knows no better.
func flagHint(cmd *cobra.Command, err error) string {
	if missing := (*pflag.NotExistError)(nil); errors.As(err, &missing) {
		name := missing.GetSpecifiedName()
		switch near := nearFlag(cmd, missing); {
		case name == "yes":
			return "omit it: this command does not ask for confirmation"
		case name == "follow" && cmd.Name() == "produce":
			return logsFolder
		case name == "follow" && cmd.Name() == "consume":
			return "omit it: consume continues with new records until Ctrl-C"
		case near != "":
			return fmt.Sprintf("did you mean --%s?", near)
		case cmd.Name() == "serve": // these variables are for clients; serve has its own files and folders
			return ""
		}
		return variableFlags[name]
	}
	invalid := (*pflag.InvalidValueError)(nil)
	switch {
	case !errors.As(err, &invalid):
	case invalid.GetFlag().Name == "by" && cmd.Name() == "reset":
		if _, err := parseAge(strings.TrimLeft(invalid.GetValue(), "+-")); err == nil {
			return fmt.Sprintf("--by counts events; for a time use --to %s, which counts from now", strings.TrimLeft(invalid.GetValue(), "+-"))
		}
	case invalid.GetFlag().Value.Type() == "duration":
		if _, err := time.ParseDuration(invalid.GetValue() + "s"); err == nil {
			return fmt.Sprintf("write --%s %ss, with a unit: ms, s, m or h", invalid.GetFlag().Name, invalid.GetValue())
		}
		return fmt.Sprintf("write --%s 90s or --%[1]s 2m; the units are ms, s, m (minutes) and h", invalid.GetFlag().Name)
	}
	return ""
}

// nearFlag returns the flag that the user may have meant by one that does not exist, or "".
func nearFlag(cmd *cobra.Command, missing *pflag.NotExistError) string {
	if missing.GetSpecifiedShortnames() != "" {
		return ""
	}
	name, names, suffixed := missing.GetSpecifiedName(), []string(nil), []string(nil)
	look := func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		names = append(names, f.Name)
		if strings.HasSuffix(f.Name, "-"+name) {
			suffixed = append(suffixed, f.Name)
		}
	}
	cmd.LocalFlags().VisitAll(look)
	cmd.InheritedFlags().VisitAll(look)
	if near := doctor.Near(strings.ReplaceAll(name, "_", "-"), names); near != "" {
		return near
	}
	if len(suffixed) == 1 {
		return suffixed[0]
	}
	return ""
}

// help prints the help of the command or topic that the arguments name.
func (e *env) help(cmd *cobra.Command, args []string) error {
	found, rest, err := cmd.Root().Find(args)
	switch {
	case err == nil && len(rest) == 0:
		return found.Help()
	case found != nil && found.HasParent():
		return unknownCommand(found, rest)
	case guessedCommands[cmd.Root().Name()+" "+args[0]] != "":
		return unknownCommand(cmd.Root(), args)
	}
	return noHelp(cmd.Root(), args[0])
}

// completeHelp returns the subcommands of the command that the arguments name, for shell completion.
func completeHelp(cmd *cobra.Command, args []string, _ string) (names []string, _ cobra.ShellCompDirective) {
	if found, rest, err := cmd.Root().Find(args); err == nil && len(rest) == 0 {
		for _, below := range found.Commands() {
			if below.IsAvailableCommand() || below.IsAdditionalHelpTopicCommand() {
				names = append(names, below.Name()+"\t"+below.Short)
			}
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// warnOfVariables warns of environment variables that are probably misspelt. The command ignores them, and so
// might sign in with another identity than the user expects.
func (e *env) warnOfVariables() {
	for _, slip := range doctor.MisspeltVariables(e.environ()) {
		e.warn("%s is set, but there is no such variable; did you mean %s?", slip[0], slip[1])
	}
}

// helpTemplate is cobra's template, with the examples before the explanation.
const helpTemplate = `{{if .HasParent}}{{.Short | trimTrailingWhitespaces}}
{{if .Runnable}}
Usage: {{.UseLine}}
{{end}}{{if .HasExample}}
{{.Example}}
{{end}}{{if .Long}}
{{.Long | trimTrailingWhitespaces}}
{{end}}{{else}}{{.Long | trimTrailingWhitespaces}}

Usage: {{.UseLine}}
{{end}}{{if .HasAvailableSubCommands}}
Commands:{{range .Commands}}{{if or .IsAvailableCommand (eq .Name "help")}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}
{{end}}{{if .HasHelpSubCommands}}
Help topics, with "diaspora help TOPIC":{{range .Commands}}{{if .IsAdditionalHelpTopicCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}
{{end}}{{if and .Runnable .HasAvailableLocalFlags}}
Flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}
{{end}}{{if and .Runnable .HasAvailableInheritedFlags}}
Flags of all commands:
{{.InheritedFlags.FlagUsages | trimTrailingWhitespaces}}
{{end}}`

// asksForJSON reports whether a command line asks for JSON. It is for command lines with an error, in which
// the flags could not be parsed, so it looks at the arguments itself.
func asksForJSON(args []string) bool {
	format := ""
	for i, arg := range args {
		value, long := strings.CutPrefix(arg, "--output=")
		switch {
		case arg == "--":
			return format == "json" || format == "ndjson"
		case long:
			format = value
		case (arg == "-o" || arg == "--output") && i+1 < len(args):
			format = args[i+1]
		case strings.HasPrefix(arg, "-o"):
			format = strings.TrimPrefix(arg[2:], "=")
		}
	}
	return format == "json" || format == "ndjson"
}

// run runs the program and returns its exit code.
func run(ctx context.Context, e *env, args []string) int {
	e.openScreen()
	root := e.commands()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	defer e.settled()
	switch {
	case readerLeft(err):
		return 0
	case err == nil:
	case context.Cause(ctx) == errInterrupted && errors.Is(err, context.Canceled):
		e.say("interrupted")
	default:
		if asksForJSON(args) { // flags after an invalid one were not parsed
			e.output = "json"
		}
		e.complain(e.whenAway(ctx, cmd, err), exitCode(ctx, err))
	}
	return exitCode(ctx, err)
}

// withoutFabric are the commands that need no fabric that is already known, or that name another one than the one in use.
var withoutFabric = []string{"login", "up", "doctor", "healthcheck", "serve", "init", "remove"}

// whenAway adds to an error of a command whose fabric is unreachable which fabric that is, and what to do next.
func (e *env) whenAway(ctx context.Context, cmd *cobra.Command, err error) error {
	globusAway := errors.Is(err, globus.ErrUnavailable)
	if !errors.Is(err, diaspora.ErrUnavailable) && !globusAway || slices.Contains(withoutFabric, cmd.Name()) {
		return err
	}
	address, text, here := e.whichFabric()
	if address == "" {
		return err
	}
	hint := ""
	if !globusAway {
		if hint = e.withoutKafka(ctx); hint == "" {
			hint = e.moved(ctx)
		}
	}
	switch {
	case hint != "":
		return hinted(err, hint)
	case here:
		return hinted(err, text+` is on this machine: check that "diaspora up" or "diaspora serve" runs, or see "diaspora doctor"`)
	case globusAway: // it is not part of the fabric
		return err
	}
	return hinted(err, `"diaspora doctor" finds out why `+text+" cannot be reached")
}

// whichFabric returns the address of the fabric in use, what to call it, and whether it is on this machine. The address is
// "" if it is not known.
func (e *env) whichFabric() (address, text string, here bool) {
	address, err := e.address()
	text = "the fabric"
	if address == "" && err == nil {
		profiles, name, err := e.profiles()
		if err != nil || name == "" {
			return "", "", false
		}
		p, err := profiles.Load(name)
		if err != nil {
			return "", "", false
		}
		address, text = p.URL, "the fabric of the profile "+name
		if len(storedProfiles(profiles)) > 1 {
			text += ` ("diaspora profile list" shows the others)`
		}
	}
	u, err := url.Parse(address)
	if err != nil {
		return "", "", false
	}
	return address, text, trust.IsLoopback(u.Hostname())
}

// withoutKafka returns what to do if the fabric runs, but its Apache Kafka does not answer. Otherwise it returns "".
func (e *env) withoutKafka(ctx context.Context) string {
	address, text, here := e.whichFabric()
	switch {
	case address == "" || !e.noKafka(ctx, address):
		return ""
	case here:
		return text + ` runs, but its Apache Kafka does not answer: whoever runs "diaspora up" finds in its output how to start it again`
	}
	return text + " runs, but its Apache Kafka does not answer: tell its operators"
}

// noKafka reports whether an ACL endpoint says that it cannot reach its cluster. A gateway cannot say so to a client.
func (e *env) noKafka(ctx context.Context, address string) bool {
	roots, err := trust.Roots(nil, nil, e.getenv("DIASPORA_CA_FILE"))
	if err != nil {
		return false
	}
	const limit = 3 * time.Second // more than the endpoint waits for the cluster
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err = front.ProbeURL(ctx, address, roots)
	return err != nil && strings.Contains(err.Error(), "ledger: unavailable")
}

// moved returns what to do if the fabric now has other brokers than at the login, which has stored their addresses.
// Otherwise, or if the fabric cannot be asked, it returns "".
func (e *env) moved(ctx context.Context) string {
	cfg, client, err := e.client()
	if err != nil || cfg.Discovery == nil || len(cfg.Brokers) > 0 {
		return ""
	}
	const limit = 2 * time.Second
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	found, err := client.Discover(ctx)
	if err != nil || doctor.SameBrokers(&found, cfg.Discovery) {
		return ""
	}
	again := "diaspora login"
	if e.profile != "" {
		again += " --profile " + e.profile
	}
	if hasStandIn(cfg) {
		again += " --as " + shellWord(cfg.Identity.Username)
	}
	return fmt.Sprintf(`the fabric now has other brokers than at your login: log in again with "%s"`, again)
}

// settled waits until no renewal of a token is in flight: the response may contain a rotated refresh token,
// and would be lost. The wait takes up to 45 s if Globus does not respond, so settled tells the user.
func (e *env) settled() {
	note := time.AfterFunc(settlesIn, func() {
		e.say("waiting for Globus, for 45 s at most: its answer may have the next refresh token")
	})
	defer note.Stop()
	for _, settle := range e.awaitRenewals {
		settle()
	}
}

// settlesIn is how long the program waits for Globus at the end before it tells the user.
const settlesIn = 2 * time.Second

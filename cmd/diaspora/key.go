package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/accesskey"
	"github.com/diaspora-streams/diaspora/internal/doctor"
)

var keyCreateHelp = help{
	use:   "create [NAME]",
	short: "create an access key, for clients that cannot log in with Globus",
	examples: `
# read and write all your topics, until you revoke the key
diaspora key create beamline-7

# for a dashboard: read one topic for ninety days
diaspora key create dashboard --topic weather --read --expires 90d

# a key file for this program, on a machine where nobody is logged in
diaspora key create array --write --save-env array.env
DIASPORA_KEY_FILE=array.env diaspora produce weather

# a file for kcat, and one for Kafka's Java tools
diaspora key create laptop --save-for-kcat kcat.conf
kcat -F kcat.conf -C -t weather
diaspora key create desk --save-for-java desk.properties
kafka-console-producer --bootstrap-server HOST:PORT --command-config desk.properties --topic weather`,
	long: `
An access key consists of an ID and a secret. A Kafka client signs in with them as user name and
password (SASL/PLAIN), which clients in every language support. The secret is printed only once,
because the fabric keeps only its hash. Anybody who has the secret can do what the key allows, until
you revoke the key.

With neither --read nor --write, the key can do both. Without --topic, it is for all topics that you
own now or claim later. No key can claim topics or create other keys.

A key never has more rights than you. To use a topic that somebody shares with you, name it with
--topic. When the share ends, so do the rights of the key.

A key that can read also has access to all your consumer groups, even if it is for one topic only.
Anybody who has the key can join, reset and delete the groups. If several people use the key, each
should use a group ID of their own, or read without a group.

With --save-env, --save-for-kcat or --save-for-java, the command writes the key to a
new file that only you can read, instead of printing it; if FILE is -, to standard output. With any
of these flags, NAME can be omitted, and the key is named after this machine.

Before a long job, "diaspora token --valid-for 72h" checks that the key does not expire too early.

To use a file that --save-env has written, set DIASPORA_KEY_FILE to its name, or load it into a
shell:
  set -a; . FILE; set +a
"diaspora produce" and "diaspora consume" need nothing else, because the
file also has the address of the fabric.

If the fabric has its own certificate authority, its certificates are written to a second file,
FILE.ca.pem. A file for Java includes them.

If a Kafka console tool does not support --command-config, use --producer.config or
--consumer.config instead.`,
	args: arguments{min: 0, max: 1},
}

func (e *env) keyCommands() []*cobra.Command {
	revoke := e.clientCommand(keyRevokeHelp, e.keyRevoke)
	revoke.ValidArgsFunction = completion(1, e.keyNames)
	return []*cobra.Command{e.keyCreateCommand(), e.clientCommand(keyListHelp, e.keyList), revoke}
}

func (e *env) keyCreateCommand() *cobra.Command {
	var req diaspora.AccessKeyRequest
	var expires string
	var cmd *cobra.Command
	cmd = e.command(keyCreateHelp, func(ctx context.Context, args []string) error {
		req.Name = optional(args)
		to, err := keyFileOf(cmd.Flags())
		if err != nil {
			return err
		}
		if req.Name == "" && to.kind == noKeyFile {
			return misuse(`"diaspora key create beamline-7" makes one, named for where it is used`, "key create: the key's name is missing")
		}
		if !req.Read && !req.Write {
			req.Read, req.Write = true, true
		}
		if expires != "" {
			if req.Expires, err = parseExpiry(expires, e.now()); err != nil {
				return misuse("without --expires, the key does not expire", "--expires %q: %v", expires, err)
			}
		}
		cfg, client, err := e.client()
		if err != nil {
			return err
		}
		if to.kind != noKeyFile {
			err = e.keyCreateFile(ctx, cfg, client, req, to)
		} else {
			err = e.keyCreate(ctx, client, req)
		}
		return aboutKeyTopics(ctx, cfg, client, req, err)
	})
	flags := cmd.Flags()
	flags.StringArrayVar(&req.Topics, "topic", nil, "restrict the key to `TOPIC`, which is yours or shared with you; may be repeated")
	flags.BoolVar(&req.Read, "read", false, "allow the key to read, but not to write unless --write is also given")
	flags.BoolVar(&req.Write, "write", false, "allow the key to write, but not to read unless --read is also given")
	flags.StringVar(&expires, "expires", "", "make the key expire after a `TIME` such as 12h, 90d or 1y, or on a date such as 2030-12-31 (default: never)")
	flags.String("save-for-kcat", "", "write the key to `FILE`, for kcat -F and other clients that use librdkafka")
	flags.String("save-for-java", "", "write the key to `FILE`, for Kafka's Java clients and tools")
	flags.String("save-env", "", "write the key to `FILE`, for DIASPORA_KEY_FILE and for shells")
	cmd.RegisterFlagCompletionFunc("topic", completion(anyArgument, e.topicNames))
	return cmd
}

// keyCreate creates a key and prints it.
func (e *env) keyCreate(ctx context.Context, client *diaspora.Client, req diaspora.AccessKeyRequest) error {
	discovery, err := client.Discover(ctx)
	if err != nil {
		return err
	}
	key, err := client.CreateKey(ctx, req)
	if err != nil {
		return explainCreateError(err, req.Name)
	}
	if err := e.printKey(key, discovery); err != nil {
		return errors.Join(err, e.discardKey(ctx, client, key))
	}
	e.sayWhichTopics(key.AccessKey)
	e.say("this is the only time that the secret is shown; %q ends the key", "diaspora key revoke "+key.Name)
	return nil
}

// sayWhichTopics says for which topics a key is if it names none. Otherwise a user would expect that it is also for the
// topics of others.
func (e *env) sayWhichTopics(k diaspora.AccessKey) {
	if len(k.Topics) == 0 {
		e.say("it is for all topics that you own, and not for those that others share with you: name those with --topic")
	}
}

// keyCreateFile saves a key to a file. It prints nothing to stdout, except with -o json.
func (e *env) keyCreateFile(ctx context.Context, cfg diaspora.Config, client *diaspora.Client, req diaspora.AccessKeyRequest, to keyFile) error {
	saved, err := e.saveKey(ctx, cfg, client, req, to)
	if err != nil {
		return err
	}
	if saved.file != "-" {
		e.say("%s has the key; use it as: %s", saved.file, to.kind.exampleCommand(saved))
	}
	e.sayWhichTopics(saved.key.AccessKey)
	if saved.ca != "" {
		e.say("the certificates of the fabric are in %s", saved.ca)
	}
	e.say("anybody who has it can use the key; %q ends it", "diaspora key revoke "+saved.key.Name)
	if !e.json() {
		return nil
	}
	return e.printJSON(struct {
		diaspora.AccessKey
		File string `json:"file"`
	}{saved.key.AccessKey, saved.file})
}

// aboutKeyTopics adds what to do if the key names a topic that nobody has claimed, or on which the caller has fewer
// rights than the key should have.
func aboutKeyTopics(ctx context.Context, cfg diaspora.Config, client *diaspora.Client, req diaspora.AccessKeyRequest, err error) error {
	if !errors.Is(err, diaspora.ErrNotFound) && !errors.Is(err, diaspora.ErrPermission) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	for _, name := range req.Topics {
		s := doctor.AskStanding(ctx, client, name)
		switch {
		case s.Near != "":
			text, _ := explanation(err) // the hint of the service is to list the topics
			return &failure{errors.New(text), diaspora.ErrNotFound, []string{fmt.Sprintf("did you mean %s?", s.Near)}}
		case s.Free:
			text, _ := explanation(err)
			return &failure{errors.New(text), diaspora.ErrNotFound, []string{fmt.Sprintf(`claim it with "diaspora topic claim %s"`, name)}}
		case s.Own && !s.Topic.Released.IsZero():
			return hinted(err, fmt.Sprintf(`you have released it; "diaspora topic restore %s" brings it back`, name))
		case s.Foreign:
			right := "read"
			if req.Write && !req.Read {
				right = "write"
			}
			return hinted(err, s.AskOwner(name, cfg.Identity, right))
		case s.Shared && s.May("read") && !s.May("write") && req.Read && req.Write:
			return hinted(err, "add --read for a key that only reads")
		case s.Shared && s.May("write") && !s.May("read") && req.Read && req.Write:
			return hinted(err, "add --write for a key that only writes")
		case s.Shared && req.Write && !s.May("write"):
			return hinted(err, s.AskOwner(name, cfg.Identity, "write"))
		case s.Shared && req.Read && !s.May("read"):
			return hinted(err, s.AskOwner(name, cfg.Identity, "read"))
		}
	}
	return err
}

// discardKey revokes a key whose secret could not be printed or saved, since nobody can use it.
func (e *env) discardKey(ctx context.Context, client *diaspora.Client, key diaspora.NewAccessKey) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbyeLimit)
	defer cancel()
	if err := client.RevokeKey(ctx, key.ID); err != nil {
		return hinted(err, fmt.Sprintf(`nobody has the secret of the key %s; revoke it with "diaspora key revoke %s"`, key.ID, key.Name))
	}
	e.warn("the key %s was revoked, because it could not be saved", key.ID)
	return nil
}

// printKey prints a key with its secret, and settings to paste.
func (e *env) printKey(key diaspora.NewAccessKey, discovery diaspora.Discovery) error {
	if e.json() {
		return e.printJSON(struct {
			diaspora.AccessKey
			Secret string `json:"secret"`
		}{key.AccessKey, key.Secret.Reveal()})
	}
	topic := keyTopic(key)
	tool, kcat := "kafka-console-producer", "-P"
	if !key.Write {
		tool, kcat = "kafka-console-consumer", "-C"
	}
	brokers := strings.Join(discovery.Brokers, ",")
	kcatLines := librdkafkaProperties(key, discovery)
	if discovery.Security == "tls" && discovery.CA != "" {
		kcatLines += "# ssl.ca.location=FILE with the fabric's certificates, the field \"ca\" of /.well-known/diaspora\n"
	}
	return e.printf(`Access key:  %s (%s)
May:         %s
Secret:      %s

# kcat.conf, for kcat and other programs that use librdkafka: chmod 600, then
# kcat -F kcat.conf %s -t %s
%s
# java.properties, for Java: chmod 600, then
# %s --bootstrap-server %s --command-config java.properties --topic %[6]s
%[10]s`,
		key.ID, key.Name, mayText(key.AccessKey), key.Secret.Reveal(), kcat, topic, kcatLines,
		tool, brokers, javaProperties(key, discovery, certificates(discovery.CA)))
}

// mayText describes what a key may do.
func mayText(k diaspora.AccessKey) string {
	what := "read and write"
	switch {
	case !k.Write:
		what = "read"
	case !k.Read:
		what = "write"
	}
	if len(k.Topics) == 0 {
		return what + " all of your topics"
	}
	return what + " " + strings.Join(k.Topics, ", ")
}

// noAccessText says on which topics a key is useless, because its owner has lost the access.
func noAccessText(k diaspora.AccessKey) string {
	switch len(k.NoAccess) {
	case 0:
		return ""
	case len(k.Topics):
		return " (no access now)"
	}
	return " (no access now to " + strings.Join(k.NoAccess, ", ") + ")"
}

var errNotExpiry = badDuration("12h or 90d, or a day such as 2027-01-31")

// parseExpiry parses an expiry: a duration from now, or a time.
func parseExpiry(text string, now time.Time) (time.Time, error) {
	if strings.HasSuffix(text, "ago") {
		return time.Time{}, errNotExpiry
	}
	if d, err := parseAge(text); err == nil {
		return now.Add(d), nil
	}
	t, err := parseTime(text, now)
	switch {
	case err != nil:
		return time.Time{}, errNotExpiry
	case !t.After(now):
		return time.Time{}, errors.New("this time is in the past")
	}
	return t, nil
}

var keyListHelp = help{
	use:   "list",
	short: "list your access keys",
	examples: `
diaspora key list

# only the IDs of keys that were never used
diaspora key list -o json | jq -r '.keys[] | select(.last_used == null) | .id'`,
	long: `
LAST USED is known to the day. MAY is what a key may do. "no access now" marks topics on which you
have lost the rights of the key, for instance because a topic is not shared with you any more.`,
}

func (e *env) keyList(ctx context.Context, client *diaspora.Client, _ []string) error {
	keys, err := client.Keys(ctx)
	if err != nil {
		return err
	}
	return printList(e, "keys", keys, `you have no access keys, or all were revoked or have expired; make one with "diaspora key create NAME"`,
		[]string{"NAME", "ID", "CREATED", "EXPIRES", "LAST USED", "MAY"}, func(k diaspora.AccessKey) []string {
			return []string{k.Name, k.ID, e.day(k.Created), e.expiryText(k.Expires), e.lastUsedText(k.LastUsed), mayText(k) + noAccessText(k)}
		})
}

func (e *env) expiryText(t time.Time) string {
	switch {
	case t.IsZero():
		return "never"
	case !t.After(e.now()):
		return "expired"
	case t.Sub(e.now()) < 48*time.Hour:
		return e.clock(t)
	}
	return e.day(t)
}

// lastUsedText returns an upper limit of the time since a key was used. The service only records the day in
// UTC, which is not a day in the user's time zone, so no date is shown.
func (e *env) lastUsedText(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	const day = 24 * time.Hour
	return fmt.Sprintf("<%dd ago", max(0, e.now().Sub(t.UTC().Truncate(day)))/day+1)
}

var keyRevokeHelp = help{
	use:   "revoke NAME|ID",
	short: "revoke an access key",
	examples: `
diaspora key revoke dashboard`,
	long: `
After that, nobody can sign in with the key. Open connections that use it are closed within a minute
(within ten seconds with "diaspora up"). Your other keys and your login are not affected.`,
	args: arguments{min: 1, max: 1, missing: "the key's name or ID is missing"},
}

func (e *env) keyRevoke(ctx context.Context, client *diaspora.Client, args []string) error {
	key, err := findKey(ctx, client, args[0])
	if err != nil {
		return err
	}
	if err := client.RevokeKey(ctx, key.ID); err != nil {
		return err
	}
	return e.answer(map[string]any{"id": key.ID, "name": key.Name, "revoked": true}, "%s (%s) is revoked\n", key.Name, key.ID)
}

// findKey returns the caller's key with this name or ID. No name has the form of an ID.
func findKey(ctx context.Context, client *diaspora.Client, which string) (diaspora.AccessKey, error) {
	if accesskey.IsID(which) {
		return client.Key(ctx, which)
	}
	keys, err := client.Keys(ctx)
	if err != nil {
		return diaspora.AccessKey{}, err
	}
	i := slices.IndexFunc(keys, func(k diaspora.AccessKey) bool { return k.Name == which })
	if i < 0 {
		var names []string
		for _, k := range keys {
			names = append(names, k.Name)
		}
		hint := `"diaspora key list" shows yours`
		if near := doctor.Near(which, names); near != "" {
			hint = fmt.Sprintf("did you mean %s? %s", near, hint)
		}
		// The name is not printed, because it may be a secret by mistake.
		return diaspora.AccessKey{}, fail(diaspora.ErrNotFound, hint, "revoke access key: not found: you have no access key of that name")
	}
	return keys[i], nil
}

// machineKeyName returns the default name of a key for this machine, with a prefix for the kind of client.
func machineKeyName(kind keyFileKind) string {
	host, _ := os.Hostname()
	host = plainName(host, "-._", '-')
	prefix := map[keyFileKind]string{forJava: "java-", forKcat: "kcat-", forEnv: "env-"}[kind]
	return strings.TrimSuffix(prefix+host[:min(48, len(host))], "-")
}

// freeKeyName returns the name, with a number appended if a key of that name exists. The existing key is not
// replaced, because somebody may be using it.
func freeKeyName(ctx context.Context, client *diaspora.Client, name string) (string, error) {
	keys, err := client.Keys(ctx)
	if err != nil {
		return "", err
	}
	for free, n := name, 2; ; n++ {
		if !slices.ContainsFunc(keys, func(k diaspora.AccessKey) bool { return k.Name == free }) {
			return free, nil
		}
		free = fmt.Sprintf("%s-%d", name, n)
	}
}

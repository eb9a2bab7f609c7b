package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/claims"
)

var topicClaimHelp = help{
	use:   "claim TOPIC",
	short: "claim a topic and become its owner",
	examples: `
diaspora topic claim weather

# with four partitions, and events that are kept for 30 days
diaspora topic claim readings --partitions 4 --retention 30d --description "beamline 7"`,
	long: `
The name of a topic may contain only letters, digits and underscores, and may not begin with an
underscore. Once the command has succeeded, you can log events to the topic and read them. Events
are kept for 7 days and then deleted, unless --retention or the fabric's operator sets another time.
The command prints how long they are kept.

You claim a topic only once. If you claim it again with the same settings, nothing changes, and the
command says that the topic is yours. If the settings differ, the command fails, because only the
first claim can set them. To change them, release the topic, which deletes its events, and claim it
again. The command also fails if somebody else owns the topic.`,
	formats: answerFormats,
	args:    arguments{min: 1, max: 1, missing: "the topic is missing"},
}

func (e *env) topicClaimCommand() *cobra.Command {
	var claim diaspora.ClaimRequest
	var retention string
	cmd := e.command(topicClaimHelp, func(ctx context.Context, args []string) error {
		claim.Name = args[0]
		if retention != "" {
			var err error
			if claim.RetentionMS, err = parseRetention(retention); err != nil {
				return misuse("", "topic claim: --retention %q: %v", retention, err)
			}
		}
		return e.topicClaim(ctx, claim)
	})
	flags := cmd.Flags()
	flags.IntVar(&claim.Partitions, "partitions", 0, "create `N` partitions (default: set by the fabric)")
	flags.StringVar(&retention, "retention", "", "keep events for this `TIME`, such as 30d, or forever (default: 7d, unless the operator changed it)")
	flags.StringVar(&claim.Description, "description", "", "describe the topic with `TEXT`")
	return cmd
}

func (e *env) topicClaim(ctx context.Context, claim diaspora.ClaimRequest) error {
	if err := validTopic("claim", claim.Name); err != nil { // an invalid name is an error even if nobody is logged in
		return err
	}
	client, err := e.client()
	if err != nil {
		return err
	}
	topic, err := client.Claim(ctx, claim)
	if err != nil {
		return err
	}
	if e.json() {
		return e.printJSON(topic)
	}
	kept := ""
	if topic.RetentionMS != 0 { // 0 if the service does not say
		kept = "; its events are kept " + claims.Kept(topic.RetentionMS)
	}
	if !topic.Created {
		return e.printf("%s is already yours%s\n", topic.Name, kept)
	}
	e.say(`log events with "diaspora produce %s", read them with "diaspora consume %s --from start"`, topic.Name, topic.Name)
	return e.printf("%s is yours now, with %s%s\n", topic.Name, count(int64(topic.Partitions), "partition"), kept)
}

// validTopic returns an error for a name that cannot be claimed, with a similar valid name as a hint.
func validTopic(op, name string) error {
	err := diaspora.ValidTopic(name)
	bad := (*diaspora.TopicError)(nil)
	if !errors.As(err, &bad) {
		return err
	}
	err = &diaspora.TopicError{Op: op, Topic: bad.Topic, Err: bad.Err}
	near := strings.Map(func(r rune) rune {
		if r < 0x80 && (r == '_' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z') {
			return r
		}
		return '_'
	}, name)
	if near = strings.Trim(near, "_"); diaspora.ValidTopic(near) == nil {
		return hinted(err, fmt.Sprintf("try %q", near))
	}
	return err
}

var topicListHelp = help{
	use:   "list",
	short: "list your topics",
	examples: `
diaspora topic list

# only their names, for a script
diaspora topic list -o json | jq -r '.topics[].name'`,
	formats: answerFormats,
}

func (e *env) topicListCommand() *cobra.Command {
	return e.command(topicListHelp, func(ctx context.Context, _ []string) error { return e.topicList(ctx) })
}

func (e *env) topicList(ctx context.Context) error {
	client, err := e.client()
	if err != nil {
		return err
	}
	topics, err := client.Topics(ctx)
	if err != nil {
		return err
	}
	if e.json() {
		if topics == nil {
			topics = []diaspora.Topic{}
		}
		return e.printJSON(diaspora.TopicList{Topics: topics})
	}
	if len(topics) == 0 {
		e.say(`you have no topics; claim one with "diaspora topic claim NAME"`)
		return nil
	}
	rows := [][]string{{"NAME", "PARTITIONS", "RETENTION", "CLAIMED", "DESCRIPTION"}}
	for _, t := range topics {
		rows = append(rows, []string{t.Name, fmt.Sprint(t.Partitions), retentionText(t.RetentionMS), e.day(t.Claimed), t.Description})
	}
	return e.printTable(rows)
}

var topicShowHelp = help{
	use:   "show TOPIC",
	short: "show one of your topics, or any topic if you are an operator",
	examples: `
diaspora topic show weather`,
	formats: answerFormats,
	args:    arguments{min: 1, max: 1, missing: "the topic is missing"},
}

func (e *env) topicShowCommand() *cobra.Command {
	cmd := e.command(topicShowHelp, func(ctx context.Context, args []string) error { return e.topicShow(ctx, args[0]) })
	cmd.ValidArgsFunction = e.completeOneTopic
	return cmd
}

func (e *env) topicShow(ctx context.Context, name string) error {
	cfg, err := e.config()
	if err != nil {
		return err
	}
	client, err := diaspora.NewClient(cfg)
	if err != nil {
		return err
	}
	t, err := client.Topic(ctx, name)
	if err != nil {
		return e.aboutOwnTopic(ctx, cfg, "show", name, err)
	}
	if e.json() {
		return e.printJSON(t)
	}
	text := fmt.Sprintf("Name:        %s\nOwner:       %s\nPartitions:  %d\nRetention:   %s\nClaimed:     %s\n",
		t.Name, e.owner(ctx, client, cfg, t), t.Partitions, retentionText(t.RetentionMS), e.clock(t.Claimed))
	if t.Description != "" {
		text += "Description: " + oneLine(t.Description) + "\n"
	}
	return e.printf("%s", text)
}

// owner returns the owner of a topic, with the username if the caller is the owner.
func (e *env) owner(ctx context.Context, client *diaspora.Client, cfg diaspora.Config, t diaspora.Topic) string {
	who := cfg.Identity
	if who.Subject != t.Owner || who.Username == "" {
		who, _ = client.Identity(ctx)
	}
	if who.Subject != t.Owner || who.Username == "" {
		return t.Owner
	}
	return fmt.Sprintf("%s (%s)", oneLine(who.Username), t.Owner)
}

var topicReleaseHelp = help{
	use:   "release TOPIC",
	short: "give up a topic and delete its events",
	examples: `
diaspora topic release weather

# in a script, without confirmation
diaspora topic release weather --yes`,
	long: `
The topic's events are deleted and cannot be restored. The name is then free for others to claim,
but they cannot read the deleted events. To confirm, you are asked to type the name.`,
	formats: answerFormats,
	args:    arguments{min: 1, max: 1, missing: "the topic is missing"},
}

func (e *env) topicReleaseCommand() *cobra.Command {
	var yes bool
	cmd := e.command(topicReleaseHelp, func(ctx context.Context, args []string) error { return e.topicRelease(ctx, args[0], yes) })
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask for confirmation")
	cmd.ValidArgsFunction = e.completeOneTopic
	return cmd
}

func (e *env) topicRelease(ctx context.Context, name string, yes bool) error {
	cfg, err := e.config()
	if err != nil {
		return err
	}
	client, err := diaspora.NewClient(cfg)
	if err != nil {
		return err
	}
	if !yes {
		if err := e.confirmRelease(ctx, client, name); err != nil {
			return e.aboutOwnTopic(ctx, cfg, "release", name, err)
		}
	}
	if err := client.Release(ctx, name); err != nil {
		return e.aboutOwnTopic(ctx, cfg, "release", name, err)
	}
	if e.json() {
		return e.printJSON(map[string]any{"name": name, "released": true})
	}
	return e.printf("%s is released\n", name)
}

// confirmRelease says what will be lost, and asks the user to type the name.
func (e *env) confirmRelease(ctx context.Context, client *diaspora.Client, name string) error {
	topic, err := client.Topic(ctx, name)
	if err != nil {
		return err
	}
	lost := "all its events"
	if n, err := e.countRecords(ctx, name); err == nil {
		lost = count(n, "event")
	}
	e.warn("releasing %s deletes %s for good, for all who read it; it was claimed on %s", name, lost, e.day(topic.Claimed))
	fmt.Fprintf(e.stderr, "Type the topic's name to release it: ")
	answer, err := readAnswer(ctx, e.stdin)
	if err != nil || answer != name {
		if !e.terminal(e.stdin) {
			fmt.Fprintln(e.stderr)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return &failure{
			text:  fmt.Sprintf("release topic %q: the name was not typed; nothing has changed", name),
			hints: []string{fmt.Sprintf(`"diaspora topic release %s --yes" does not ask`, name)},
		}
	}
	return nil
}

// countRecords returns the current number of records in a topic.
func (e *env) countRecords(ctx context.Context, name string) (int64, error) {
	cfg, err := e.config()
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	consumer, err := diaspora.OpenConsumer(ctx, cfg, diaspora.ConsumerOptions{Topics: []string{name}})
	if err != nil {
		return 0, err
	}
	defer consumer.Close(ctx)
	progress, err := consumer.Progress(ctx)
	return span(progress), err
}

// span returns the number of offsets to read.
func span(progress []diaspora.Progress) (n int64) {
	for _, p := range progress {
		end := p.End
		if p.Until >= 0 {
			end = min(end, p.Until)
		}
		n += max(end-p.Start, 0)
	}
	return n
}

// readAnswer reads a line that the user types. It returns early if ctx ends, for instance after Ctrl-C.
func readAnswer(ctx context.Context, in io.Reader) (string, error) {
	type answer struct {
		line string
		err  error
	}
	answers := make(chan answer, 1) // a read cannot be interrupted
	go func() {
		line, err := bufio.NewReader(io.LimitReader(in, maxAnswerBytes)).ReadString('\n')
		if line != "" && errors.Is(err, io.EOF) {
			err = nil
		}
		answers <- answer{strings.TrimSpace(line), err}
	}()
	select {
	case a := <-answers:
		return a.line, a.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

const maxAnswerBytes = 8 << 10

func (e *env) completeOneTopic(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return e.completeTopics(cmd.Context())
}

// oneLine removes line breaks from text of other people.
func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

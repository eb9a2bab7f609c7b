package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
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
underscore. As soon as the command returns, you can log events to the topic and read them. Events
are kept for 7 days and then deleted, unless --retention or the fabric's operator sets another time.
The command prints how long they are kept.

If you claim your own topic again, nothing changes, and the command says that the topic is yours. If
you name settings that differ from those of the topic, the command fails: "diaspora topic set" changes
them. The command also fails if somebody else owns the topic.`,
	args: arguments{min: 1, max: 1, missing: "the topic is missing"},
}

func (e *env) topicCommands() []*cobra.Command {
	show, accept, restore := e.topicShowCommand(), e.command(topicAcceptHelp, e.topicAccept), e.command(topicRestoreHelp, e.topicRestore)
	show.ValidArgsFunction = completion(1, e.topicNames)
	accept.ValidArgsFunction = completion(1, e.namesOfTopics(func(list diaspora.TopicList) []diaspora.Topic { return list.Offered }))
	restore.ValidArgsFunction = completion(1, e.namesOfTopics(func(list diaspora.TopicList) []diaspora.Topic { return releasedTopics(list.Topics) }))
	share, unshare, set, transfer, release := e.topicShareCommand(), e.topicUnshareCommand(), e.topicSetCommand(), e.topicTransferCommand(), e.topicReleaseCommand()
	for _, cmd := range []*cobra.Command{share, unshare, set} {
		cmd.ValidArgsFunction = completion(1, e.namesOfTopics(func(list diaspora.TopicList) []diaspora.Topic { return slices.Concat(list.Topics, list.Shared) }))
	}
	for _, cmd := range []*cobra.Command{transfer, release} {
		cmd.ValidArgsFunction = completion(1, e.namesOfTopics(func(list diaspora.TopicList) []diaspora.Topic { return list.Topics }))
	}
	log, readers := e.clientCommand(topicLogHelp, e.topicLog), e.clientCommand(topicReadersHelp, e.topicReaders)
	for _, cmd := range []*cobra.Command{log, readers} {
		cmd.ValidArgsFunction = show.ValidArgsFunction
	}
	return []*cobra.Command{
		e.topicClaimCommand(), e.clientCommand(topicListHelp, e.topicList), show, log, readers,
		share, unshare, set, transfer, accept, release, restore,
	}
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
	flags.StringVar(&retention, "retention", "", "keep events for this `TIME`, such as 12h, 30d or 1y, or forever; m means minutes (default: 7d, unless the operator changed it)")
	flags.StringVar(&claim.Description, "description", "", "describe the topic with `TEXT`")
	return cmd
}

func (e *env) topicClaim(ctx context.Context, claim diaspora.ClaimRequest) error {
	if err := validTopic("claim", claim.Name); err != nil { // an invalid name is an error even if nobody is logged in
		return err
	}
	_, client, err := e.client()
	if err != nil {
		return err
	}
	topic, err := client.Claim(ctx, claim)
	if err != nil {
		return err
	}
	kept := ""
	if topic.RetentionMS != 0 { // 0 if the service does not say
		kept = "; its events are kept " + claims.FormatRetention(topic.RetentionMS)
	}
	if !topic.Created {
		return e.answer(topic, "%s is already yours%s\n", topic.Name, kept)
	}
	if !e.json() {
		e.say(`log events with "diaspora produce %s", read them with "diaspora consume %s --from start"`, topic.Name, topic.Name)
	}
	return e.answer(topic, "%s is yours now, with %s%s\n", topic.Name, count(topic.Partitions, "partition"), kept)
}

// validTopic returns an error for a name that cannot be claimed, with a similar valid name as a hint.
func validTopic(op, name string) error {
	err := diaspora.ValidTopic(name)
	bad := (*diaspora.TopicError)(nil)
	if !errors.As(err, &bad) {
		return err
	}
	err = &diaspora.TopicError{Op: op, Topic: bad.Topic, Err: bad.Err}
	near := plainName(name, "_", '_')
	if near = strings.Trim(near, "_"); diaspora.ValidTopic(near) == nil {
		return hinted(err, fmt.Sprintf("try %q", near))
	}
	return err
}

// confirm has the user type the name of a topic before an operation that cannot be undone.
func (e *env) confirm(ctx context.Context, purpose, topic, operation string) error {
	return e.confirmName(ctx, "topic", purpose, topic, operation)
}

// confirmName has the user type the name of a thing, such as a topic, before an operation that cannot be undone.
func (e *env) confirmName(ctx context.Context, thing, purpose, name, operation string) error {
	answer, err := e.ask(ctx, e.stdin, "Type the "+thing+"'s name to "+purpose+": ")
	if err == nil && answer == name {
		return nil
	}
	if !e.terminal(e.stdin) { // which would have echoed the end of the line
		fmt.Fprintln(e.stderr)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fail(nil, "use --yes to skip this question", "%s: the %s's name was not typed; nothing has changed", operation, thing)
}

// countRecords returns the current number of records in a topic.
func countRecords(ctx context.Context, cfg diaspora.Config, name string) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
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

// ask asks the user a question, and returns the line that the user types. It returns early if ctx ends, for
// instance after Ctrl-C.
func (e *env) ask(ctx context.Context, in io.Reader, question string) (string, error) {
	fmt.Fprint(e.stderr, question)
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

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/claims"
)

var topicSetHelp = help{
	use:   "set TOPIC",
	short: "change a topic's settings",
	examples: `
diaspora topic set weather --retention 30d
diaspora topic set weather --retention forever --max-bytes 10GB
diaspora topic set weather --partitions 4 --description "roof of building 7"

# keep only the last event of each key
diaspora topic set stations --compact

# in a script, without confirmation
diaspora topic set weather --retention 12h --yes`,
	long: `
You must own the topic or be allowed to manage it. The command prints each setting that has changed,
before and after. The settings are in force when it returns.

With a shorter --retention, a smaller --max-bytes, or --compact, events are deleted soon afterwards
and cannot be restored. So the command says what would be deleted, and asks you to confirm it. In a
script, --yes confirms it.

` + durationHelp + ` Months are not a unit: write 90d for three months.

--max-bytes is per partition. Sizes have the unit B, kB, MB, GB, TB, KiB, MiB, GiB or TiB.

The number of partitions can only grow. When it does, events with the same key may go to another partition than
before, so readers may see new events of a key before older ones.`,
	args: arguments{min: 1, max: 1, missing: "the topic is missing"},
}

func (e *env) topicSetCommand() *cobra.Command {
	var set diaspora.TopicSettings
	var retention, maxBytes, description string
	var compact, yes bool
	var cmd *cobra.Command
	cmd = e.command(topicSetHelp, func(ctx context.Context, args []string) error {
		given, err := false, error(nil)
		for _, name := range []string{"retention", "max-bytes", "partitions", "description", "compact"} {
			given = given || cmd.Flags().Changed(name)
		}
		switch {
		case !given:
			return misuse("", "topic set: say what to change: --retention, --max-bytes, --partitions, --description, --compact")
		case cmd.Flags().Changed("partitions") && set.Partitions < 1:
			return misuse("", "topic set: --partitions %d: a topic has at least 1 partition", set.Partitions)
		}
		if cmd.Flags().Changed("retention") {
			if set.RetentionMS, err = parseRetention(retention); err != nil {
				return misuse("", "topic set: --retention %q: %v", retention, err)
			}
		}
		if cmd.Flags().Changed("max-bytes") {
			if set.MaxBytes, err = parseMaxBytes(maxBytes); err != nil {
				return misuse("", "topic set: --max-bytes %q: %v", maxBytes, err)
			}
		}
		if cmd.Flags().Changed("description") {
			set.Description = &description
		}
		if cmd.Flags().Changed("compact") {
			set.Compact = &compact
		}
		cfg, client, err := e.client()
		if err != nil {
			return err
		}
		var change diaspora.TopicChange
		if err = e.confirmSet(ctx, client, args[0], set, yes); err == nil {
			change, err = client.Set(ctx, args[0], set)
		}
		if err != nil {
			return e.aboutOwnTopic(ctx, cfg, "set", args[0], err)
		}
		return e.printChange(change)
	})
	flags := cmd.Flags()
	flags.StringVar(&retention, "retention", "", "keep events for this `TIME`, such as 12h, 30d or 1y, or forever; m means minutes")
	flags.StringVar(&maxBytes, "max-bytes", "", "delete the oldest events of a partition above this `SIZE`, such as 10GB, or none for no limit")
	flags.IntVar(&set.Partitions, "partitions", 0, "grow to `N` partitions")
	flags.StringVar(&description, "description", "", "describe the topic with `TEXT`; \"\" removes the description")
	flags.BoolVar(&compact, "compact", false, "keep only the last event of each key; --compact=false keeps all")
	flags.BoolVar(&yes, "yes", false, "do not ask whether events may be deleted")
	return cmd
}

// confirmSet has the user confirm a change of settings that deletes events. It tells how long events are kept in
// words, because 3m is three minutes for us and three months for some.
func (e *env) confirmSet(ctx context.Context, client *diaspora.Client, name string, set diaspora.TopicSettings, yes bool) error {
	if set.RetentionMS <= 0 && set.MaxBytes <= 0 && (set.Compact == nil || !*set.Compact) {
		return nil // deletes nothing, whatever the settings are now
	}
	now, err := client.Topic(ctx, name)
	switch {
	case errors.Is(err, diaspora.ErrPermission), errors.Is(err, diaspora.ErrNotFound):
		return nil // the change is denied, too, and that error is about the change
	case err != nil:
		return err
	case !now.Released.IsZero():
		return nil // denied, too
	case !now.Manage:
		return notManaged("set", name)
	}
	var losses []string
	if set.RetentionMS > 0 && (now.RetentionMS <= 0 || set.RetentionMS < now.RetentionMS) {
		before := ""
		if now.RetentionMS != 0 { // 0 if the service does not say
			before = ", and were kept " + claims.FormatRetention(now.RetentionMS)
		}
		losses = append(losses, fmt.Sprintf("events are kept %s only%s: all older ones are deleted", claims.FormatRetention(set.RetentionMS), before))
	}
	if set.MaxBytes > 0 && (now.MaxBytes <= 0 || set.MaxBytes < now.MaxBytes) {
		losses = append(losses, fmt.Sprintf("at most %s are kept: the oldest events are deleted above that", maxBytesText(set.MaxBytes)))
	}
	if set.Compact != nil && *set.Compact && !now.Compact {
		losses = append(losses, "all events are deleted but the last one of each key")
	}
	if len(losses) == 0 {
		return nil
	}
	text := fmt.Sprintf("%s: %s; they cannot be restored", name, strings.Join(losses, "; "))
	if yes {
		e.say("%s", text)
	} else {
		e.warn("%s", text) // with --quiet, too: the question is about it
	}
	return e.confirmYes(ctx, "Delete these events?", "topic set", "it is not confirmed that events may be deleted", yes)
}

// printChange prints the settings of a topic that have changed.
func (e *env) printChange(change diaspora.TopicChange) error {
	if e.json() {
		return e.printJSON(change)
	}
	rows := [][]string{{"SETTING", "BEFORE", "AFTER"}}
	before, after := change.Before, change.After
	for _, row := range [][]string{
		{"retention", retentionText(before.RetentionMS), retentionText(after.RetentionMS)},
		{"max-bytes", maxBytesText(before.MaxBytes), maxBytesText(after.MaxBytes)},
		{"partitions", fmt.Sprint(before.Partitions), fmt.Sprint(after.Partitions)},
		{"description", fmt.Sprintf("%q", oneLine(before.Description)), fmt.Sprintf("%q", oneLine(after.Description))},
		{"compact", fmt.Sprint(before.Compact), fmt.Sprint(after.Compact)},
	} {
		if row[1] != row[2] {
			rows = append(rows, row)
		}
	}
	if len(rows) == 1 {
		return e.printf("%s has these settings already; nothing has changed\n", after.Name)
	}
	if after.Partitions > before.Partitions {
		e.say("events with the same key may go to another partition from now on")
	}
	return e.printTable(rows)
}

var sizeUnits = map[string]float64{
	"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12,
	"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
}

// parseMaxBytes parses a size in bytes, with or without a unit; "none" is -1.
func parseMaxBytes(text string) (int64, error) {
	lower := strings.ToLower(strings.TrimSpace(text))
	if lower == "none" {
		return -1, nil
	}
	bad := errors.New(`want a size such as 500MB, 10GB or "none"`)
	digits := len(lower) - len(strings.TrimLeft(lower, "0123456789."))
	unit, ok := sizeUnits[strings.TrimSpace(lower[digits:])]
	number, err := strconv.ParseFloat(lower[:digits], 64)
	switch size := math.Round(number * unit); {
	case err != nil || !ok || size < 1:
		return 0, bad
	case size >= 1<<62:
		return 0, errors.New("this size is too large")
	default:
		return int64(size), nil
	}
}

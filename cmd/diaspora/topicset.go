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
)

var topicSetHelp = help{
	use:   "set TOPIC",
	short: "change a topic's settings",
	examples: `
diaspora topic set weather --retention 30d
diaspora topic set weather --retention forever --max-bytes 10GB
diaspora topic set weather --partitions 4 --description "roof of building 7"

# keep only the last event of each key
diaspora topic set stations --compact`,
	long: `
You must own the topic or be allowed to manage it. The command prints each setting that has changed,
before and after. The settings are in force when it returns.

With a shorter --retention, or a smaller --max-bytes, older events are deleted soon afterwards, and
cannot be restored. --max-bytes is per partition. Sizes have the unit B, kB, MB, GB, TB, KiB, MiB,
GiB or TiB.

--partitions can only grow. After that, events with the same key may go to another partition than
before, so readers may see new events of a key before older ones.`,
	args: arguments{min: 1, max: 1, missing: "the topic is missing"},
}

func (e *env) topicSetCommand() *cobra.Command {
	var set diaspora.TopicSettings
	var retention, maxBytes, description string
	var compact bool
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
		change, err := client.Set(ctx, args[0], set)
		if err != nil {
			return e.aboutOwnTopic(ctx, cfg, "set", args[0], err)
		}
		return e.printChange(change)
	})
	flags := cmd.Flags()
	flags.StringVar(&retention, "retention", "", "keep events for this `TIME`, such as 30d, or forever")
	flags.StringVar(&maxBytes, "max-bytes", "", "delete the oldest events of a partition above this `SIZE`, such as 10GB, or none for no limit")
	flags.IntVar(&set.Partitions, "partitions", 0, "grow to `N` partitions")
	flags.StringVar(&description, "description", "", "describe the topic with `TEXT`; \"\" removes the description")
	flags.BoolVar(&compact, "compact", false, "keep only the last event of each key; --compact=false keeps all")
	return cmd
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

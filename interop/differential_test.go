//go:build kafka

package interop

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestDifferential gives the embedded engine and Apache Kafka the same sequences of requests, and
// compares the answers field by field. What may differ is in rules and in designedDifferences.
//
// DIASPORA_DIFF_SEEDS is how many sequences there are, and DIASPORA_DIFF_FROM the seed of the first.
// DIASPORA_DIFF_SEED runs one of them again, and DIASPORA_DIFF_THEME those of one theme. With
// DIASPORA_DIFF_SELF=true Kafka is compared with itself: a difference then is a defect of the suite.
func TestDifferential(t *testing.T) {
	duels := startDuels(t)
	first := numberFrom(t, "DIASPORA_DIFF_FROM", 1)
	last := first + numberFrom(t, "DIASPORA_DIFF_SEEDS", 200) - 1
	if seed := numberFrom(t, "DIASPORA_DIFF_SEED", 0); seed != 0 {
		first, last = seed, seed
	}
	only := os.Getenv("DIASPORA_DIFF_THEME")
	for seed := first; seed <= last; seed++ {
		theme := themes[seed%len(themes)]
		if only != "" && only != theme.name {
			continue
		}
		t.Run(fmt.Sprintf("%d %s", seed, theme.name), func(t *testing.T) {
			t.Parallel()
			d := duels.take(t)
			steps := theme.sequence(seed)
			report := d.play(steps)
			if report == "" {
				return
			}
			t.Errorf("the engines answer differently\n%s\nRun it again: DIASPORA_DIFF_SEED=%d go test -tags kafka -run '^TestDifferential$' ./interop",
				d.shorten(steps, report), seed)
		})
	}
}

// numberFrom returns the positive number in a variable of the environment.
func numberFrom(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%s is not a positive number", name, text)
	}
	return n
}

// shortening bounds how long a failed sequence is played again to find a shorter one.
const shortening = time.Minute

// shorten leaves out steps for as long as the engines go on to differ, and returns the last report.
func (d *duel) shorten(steps []step, report string) string {
	again := d.play(steps)
	if again == "" {
		return report + "When it was played again, this sequence made no difference.\n"
	}
	report = again
	deadline := time.Now().Add(shortening)
	for size := (len(steps) + 1) / 2; size > 0; size /= 2 {
		for at := 0; at < len(steps) && time.Now().Before(deadline); {
			fewer := slices.Delete(slices.Clone(steps), at, min(at+size, len(steps)))
			if r := d.play(fewer); r != "" {
				steps, report = fewer, r
			} else {
				at += size
			}
		}
	}
	return report
}

// A theme is a kind of sequence: which steps, and how many.
type theme struct {
	name  string
	steps int
	draws draws
}

type draws = []func(*rapid.T) step

// sequence draws the steps of a seed.
func (th theme) sequence(seed int) []step {
	one := rapid.Custom(func(t *rapid.T) step { return rapid.SampledFrom(th.draws).Draw(t, "kind")(t) })
	return rapid.SliceOfN(one, th.steps, th.steps).Example(seed)
}

func drawRestart(t *rapid.T) step { return restart{rapid.Bool().Draw(t, "kill")} }

// times repeats a kind of step, so that it is drawn more often.
func times(n int, draw func(*rapid.T) step) (all draws) {
	for range n {
		all = append(all, draw)
	}
	return all
}

// asStrangers draws steps for a subject that has only the rights that the sequence gives it.
func asStrangers(all draws) (strangers draws) {
	for _, draw := range all {
		strangers = append(strangers, func(t *rapid.T) step { return asStranger(draw(t)) })
	}
	return strangers
}

// themes are what sequences are about. A sequence of one theme goes deeper than one of everything.
var themes = []theme{
	{"log", 25, slices.Concat(times(8, drawProduce), times(8, drawFetch), times(4, drawList), times(2, drawDeleteRecords),
		draws{drawInitProducer, drawEpoch, drawLogDirs, drawProducers, drawRestart})},
	{"hostile batches", 20, slices.Concat(times(10, drawHostile), times(2, drawFetch), times(2, drawList), draws{drawProducers, drawRestart})},
	{"topics", 15, slices.Concat(times(4, drawCreateTopics), times(3, drawDeleteTopics), times(2, drawCreatePartitions), times(3, drawMetadata), times(2, drawAlterConfigs),
		draws{drawDescribeConfigs, drawTopicPartitions, drawCluster, drawProduce, drawFetch, drawList, drawReassignments, drawAPIVersions, drawRestart})},
	{"configs", 15, slices.Concat(times(4, drawAlterConfigs), times(2, drawReplaceConfigs), times(4, drawDescribeConfigs), times(2, drawProduce),
		draws{drawRestart, drawCreateTopics, drawConfigResources})},
	{"offsets", 25, slices.Concat(times(6, drawCommit), times(6, drawOffsets), times(2, drawDeleteOffsets), times(2, drawDeleteGroups),
		draws{drawListGroups, drawDescribeGroups, drawCoordinator, drawDeleteTopics, drawRestart})},
	{"classic groups", 30, slices.Concat(times(8, drawJoin), times(6, drawSync), times(4, drawHeartbeat), times(2, drawLeave), times(2, drawMemberCommit),
		draws{drawDescribeGroups, drawListGroups, drawDeleteGroups, drawOffsets, drawDeleteOffsets})},
	{"consumer groups", 25, slices.Concat(times(12, drawConsumer), times(2, drawDescribeConsumers), times(2, drawMemberCommit),
		draws{drawDescribeGroups, drawListGroups, drawDeleteGroups, drawOffsets, drawDeleteTopics, drawCreatePartitions, drawRestart})},
	{"ACLs", 15, slices.Concat(times(4, drawCreateACLs), times(4, drawDescribeACLs), times(3, drawDeleteACLs), draws{drawRestart})},
	{"rights", 25, slices.Concat(times(12, drawGrant), draws{drawRevoke, drawRestart, drawProduce, drawCommit}, asStrangers(draws{
		drawProduce, drawProduce, drawFetch, drawFetch, drawList, drawDeleteRecords, drawInitProducer, drawEpoch, drawLogDirs, drawProducers,
		drawCreateTopics, drawDeleteTopics, drawCreatePartitions, drawMetadata, drawAlterConfigs, drawReplaceConfigs, drawDescribeConfigs,
		drawTopicPartitions, drawCluster, drawReassignments, drawConfigResources, drawCommit, drawOffsets, drawDeleteOffsets, drawDeleteGroups,
		drawListGroups, drawDescribeGroups, drawCoordinator, drawConsumer, drawDescribeConsumers, drawDescribeACLs, drawCreateACLs, drawDeleteACLs,
		drawHeartbeat, drawLeave,
	}))},
	{"everything", 30, slices.Concat(times(4, drawProduce), times(4, drawFetch), times(2, drawList), times(2, drawDeleteRecords), times(2, drawRestart),
		draws{drawInitProducer, drawEpoch, drawLogDirs, drawProducers, drawCreateTopics, drawDeleteTopics, drawCreatePartitions, drawMetadata, drawAlterConfigs,
			drawDescribeConfigs, drawTopicPartitions, drawCommit, drawOffsets, drawDeleteOffsets, drawDeleteGroups, drawListGroups, drawDescribeGroups,
			drawConsumer, drawDescribeConsumers})},
}

package broker

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// topicSettings are the topic settings that affect the engine.
type topicSettings struct {
	segmentBytes    int64
	retention       time.Duration // negative: forever
	retentionBytes  int64         // of each partition; negative: no limit
	maxMessageBytes int32
}

// settingsOf returns the settings that a topic's configs result in. An invalid value, which only
// another engine can have written, is replaced by the default.
func settingsOf(configs map[string]string) topicSettings {
	number := func(name string) int64 {
		c := topicConfigs[name]
		value, err := c.canonical(configs[name])
		if err != nil || c.check(value) != nil {
			value = c.value
		}
		n, _ := strconv.ParseInt(value, 10, 64)
		return n
	}
	s := topicSettings{
		segmentBytes:    number("segment.bytes"),
		retention:       -1,
		retentionBytes:  number("retention.bytes"),
		maxMessageBytes: int32(number("max.message.bytes")),
	}
	if n := number("internal.segment.bytes"); n > 0 {
		s.segmentBytes = n
	}
	if ms := number("retention.ms"); ms >= 0 {
		s.retention = time.Duration(min(ms, math.MaxInt64/int64(time.Millisecond))) * time.Millisecond
	}
	if policy, ok := configs["cleanup.policy"]; ok && !slices.Contains(splitList(policy), "delete") {
		s.retention, s.retentionBytes = -1, -1
	}
	return s
}

// topicConfig is a topic setting of Apache Kafka 4.3.
type topicConfig struct {
	kind     kmsg.ConfigType
	value    string               // of topics that do not set it; that of the first synonym
	source   kmsg.ConfigSource    // of that value
	synonyms []synonym            // the broker settings that value comes from
	valid    func(s string) error // rejects what Apache Kafka rejects; may be nil
	possible func(s string) error // rejects what this engine does not support; may be nil
	hidden   bool                 // not listed unless it is set
	distinct bool                 // a list in which repeated elements count once
}

// synonym is a broker setting that topics use by default.
type synonym struct {
	name, value string
	source      kmsg.ConfigSource
}

// topicConfigs are the settings of topics. To clients the engine looks like an Apache Kafka with
// the settings of deploy/kafka, including like-embedded.properties.
//
// Settings of the file layout, compaction, tiered storage, replication and timestamp limits have no
// effect here. They accept the same values as in Apache Kafka, because they change nothing that a
// client can observe.
var topicConfigs = map[string]topicConfig{
	"cleanup.policy":                          listConfig("delete", "log.cleanup.policy", oneOf("compact", "delete")).distinctElements().supportingOnly("this broker does not support compaction", "delete", ""),
	"compression.gzip.level":                  intConfig("-1", "compression.gzip.level", gzipLevel),
	"compression.lz4.level":                   intConfig("9", "compression.lz4.level", between(1, 17)),
	"compression.type":                        stringConfig("producer", "compression.type", oneOf("uncompressed", "zstd", "lz4", "snappy", "gzip", "producer")).supportingOnly("this broker stores records with the compression of the producer", "producer"),
	"compression.zstd.level":                  intConfig("3", "compression.zstd.level", between(-131072, 22)),
	"delete.retention.ms":                     longConfig("86400000", "log.cleaner.delete.retention.ms", atLeast(0)),
	"file.delete.delay.ms":                    longConfig("60000", "log.segment.delete.delay.ms", atLeast(0)),
	"flush.messages":                          longConfig(maxInt64, "log.flush.interval.messages", atLeast(1)).supportingOnly(syncIsGlobal, maxInt64),
	"flush.ms":                                longConfig(maxInt64, "", atLeast(0)).supportingOnly(syncIsGlobal, maxInt64),
	"follower.replication.throttled.replicas": listConfig("", "", throttled),
	"index.interval.bytes":                    intConfig("4096", "log.index.interval.bytes", atLeast(0)),
	"internal.segment.bytes":                  intConfig("", "", nil).unlisted(),
	"leader.replication.throttled.replicas":   listConfig("", "", throttled),
	"local.retention.bytes":                   longConfig("-2", "log.local.retention.bytes", atLeast(-2)),
	"local.retention.ms":                      longConfig("-2", "log.local.retention.ms", atLeast(-2)),
	"max.compaction.lag.ms":                   longConfig(maxInt64, "log.cleaner.max.compaction.lag.ms", atLeast(1)),
	"max.message.bytes":                       intConfig("1048588", "message.max.bytes", atLeast(0)),
	"message.timestamp.after.max.ms":          longConfig("3600000", "log.message.timestamp.after.max.ms", atLeast(0)),
	"message.timestamp.before.max.ms":         longConfig(maxInt64, "log.message.timestamp.before.max.ms", atLeast(0)),
	"message.timestamp.type":                  stringConfig("CreateTime", "log.message.timestamp.type", oneOf("CreateTime", "LogAppendTime")).supportingOnly("this broker stamps records with the time of their arrival", "LogAppendTime").withDefault("LogAppendTime", kmsg.ConfigSourceStaticBrokerConfig),
	"min.cleanable.dirty.ratio":               doubleConfig("0.5", "log.cleaner.min.cleanable.ratio"),
	"min.compaction.lag.ms":                   longConfig("0", "log.cleaner.min.compaction.lag.ms", atLeast(0)),
	"min.insync.replicas":                     intConfig("1", "min.insync.replicas", atLeast(1)).withDefault("1", kmsg.ConfigSourceStaticBrokerConfig).withDefault("1", kmsg.ConfigSourceDynamicDefaultBrokerConfig),
	"preallocate":                             boolConfig("false", "log.preallocate"),
	"remote.log.copy.disable":                 boolConfig("false", ""),
	"remote.log.delete.on.disable":            boolConfig("false", ""),
	"remote.storage.enable":                   boolConfig("false", "").supportingOnly("this broker has no tiered storage", "false"),
	"retention.bytes":                         longConfig("-1", "log.retention.bytes", nil),
	"retention.ms":                            longConfig("604800000", "", atLeast(-1)),
	"segment.bytes":                           intConfig("1073741824", "log.segment.bytes", atLeast(1<<20)).withDefault("67108864", kmsg.ConfigSourceStaticBrokerConfig),
	"segment.index.bytes":                     intConfig("10485760", "log.index.size.max.bytes", atLeast(4)),
	"segment.jitter.ms":                       longConfig("0", "", atLeast(0)),
	"segment.ms":                              longConfig("604800000", "", atLeast(1)),
	"unclean.leader.election.enable":          boolConfig("false", "unclean.leader.election.enable").withDefault("false", kmsg.ConfigSourceStaticBrokerConfig),
}

var maxInt64 = strconv.FormatInt(math.MaxInt64, 10)

const syncIsGlobal = "when data is flushed to disk is configured for the whole broker"

// newConfig returns a setting with a default. from names the broker setting that the default comes
// from; it may be empty.
func newConfig(kind kmsg.ConfigType, value, from string, valid func(string) error) topicConfig {
	c := topicConfig{kind: kind, value: value, source: kmsg.ConfigSourceDefaultConfig, valid: valid}
	if from != "" {
		c.synonyms = []synonym{{from, value, kmsg.ConfigSourceDefaultConfig}}
	}
	return c
}

func listConfig(value, from string, valid func(string) error) topicConfig {
	return newConfig(kmsg.ConfigTypeList, value, from, valid)
}

func stringConfig(value, from string, valid func(string) error) topicConfig {
	return newConfig(kmsg.ConfigTypeString, value, from, valid)
}

func boolConfig(value, from string) topicConfig {
	return newConfig(kmsg.ConfigTypeBoolean, value, from, nil)
}

func doubleConfig(value, from string) topicConfig {
	return newConfig(kmsg.ConfigTypeDouble, value, from, nil)
}

func intConfig(value, from string, valid func(int64) error) topicConfig {
	return newConfig(kmsg.ConfigTypeInt, value, from, numeric(valid))
}

func longConfig(value, from string, valid func(int64) error) topicConfig {
	return newConfig(kmsg.ConfigTypeLong, value, from, numeric(valid))
}

// withDefault replaces the default of Apache Kafka with the default of this broker.
func (c topicConfig) withDefault(value string, source kmsg.ConfigSource) topicConfig {
	c.value, c.source = value, source
	c.synonyms = append([]synonym{{c.synonyms[0].name, value, source}}, c.synonyms...)
	return c
}

// supportingOnly limits the values to those that this broker supports. why becomes part of the
// error.
func (c topicConfig) supportingOnly(why string, values ...string) topicConfig {
	c.possible = func(value string) error {
		if slices.Contains(values, value) {
			return nil
		}
		return fmt.Errorf("%s; the only possible value is %q", why, values[0])
	}
	return c
}

// unlisted hides the setting from lists unless a topic sets it.
func (c topicConfig) unlisted() topicConfig {
	c.hidden = true
	return c
}

// distinctElements makes repeated elements of a list count once.
func (c topicConfig) distinctElements() topicConfig {
	c.distinct = true
	return c
}

// check returns an error if a canonical value is not valid.
func (c topicConfig) check(value string) error {
	if c.valid == nil || value == "" && c.kind == kmsg.ConfigTypeList {
		return nil
	}
	return c.valid(value)
}

// numeric turns a check of numbers into a check of their decimal text.
func numeric(check func(int64) error) func(string) error {
	if check == nil {
		return nil
	}
	return func(s string) error {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return err
		}
		return check(n)
	}
}

func atLeast(least int64) func(int64) error { return between(least, math.MaxInt64) }

func between(least, most int64) func(int64) error {
	return func(n int64) error {
		switch {
		case n < least:
			return fmt.Errorf("want at least %d", least)
		case n > most:
			return fmt.Errorf("want at most %d", most)
		}
		return nil
	}
}

func gzipLevel(n int64) error {
	if n == -1 {
		return nil
	}
	return between(1, 9)(n)
}

// oneOf returns a check that a value, or each element of a list, is one of the given values.
func oneOf(values ...string) func(string) error {
	return func(s string) error {
		for _, part := range strings.Split(s, ",") {
			if !slices.Contains(values, part) {
				return fmt.Errorf("want one of %s", strings.Join(values, ", "))
			}
		}
		return nil
	}
}

var replicaPattern = regexp.MustCompile(`^([0-9]+:[0-9]+)?$`)

// throttled checks that s is a list of replicas in the form partition:broker, or a star.
func throttled(s string) error {
	parts := strings.Split(s, ",")
	if strings.Join(parts, "") == "*" {
		return nil
	}
	for _, part := range parts {
		if !replicaPattern.MatchString(part) {
			return errors.New("want partition:broker,partition:broker,... or *")
		}
	}
	return nil
}

// javaTrim removes the same characters as String.trim in Java.
func javaTrim(s string) string {
	return strings.TrimFunc(s, func(r rune) bool { return r <= ' ' })
}

var listSeparator = regexp.MustCompile(`\s*,\s*`)

// splitList returns the elements of a list.
func splitList(value string) []string {
	if value = javaTrim(value); value == "" {
		return nil
	}
	return listSeparator.Split(value, -1)
}

// canonical returns a value in the form in which DescribeConfigs shows it. Apache Kafka parses
// values and formats them again.
func (c topicConfig) canonical(value string) (string, error) {
	value = javaTrim(value)
	switch c.kind {
	case kmsg.ConfigTypeBoolean:
		if lower := strings.ToLower(value); lower == "true" || lower == "false" {
			return lower, nil
		}
		return "", errors.New("want true or false")
	case kmsg.ConfigTypeInt, kmsg.ConfigTypeLong:
		bits := 64
		if c.kind == kmsg.ConfigTypeInt {
			bits = 32
		}
		n, err := strconv.ParseInt(value, 10, bits)
		if err != nil {
			return "", fmt.Errorf("want a whole number of %d bits", bits)
		}
		return strconv.FormatInt(n, 10), nil
	case kmsg.ConfigTypeDouble:
		x, err := strconv.ParseFloat(value, 64)
		if err != nil || !(x >= 0 && x <= 1) { // the only setting of this type is a ratio
			return "", errors.New("want a number from 0 to 1")
		}
		return javaDouble(x), nil
	case kmsg.ConfigTypeList:
		list := splitList(value)
		if c.distinct {
			list = distinct(list)
		}
		return strings.Join(list, ","), nil
	default:
		return value, nil
	}
}

// distinct removes repeated elements.
func distinct(all []string) (kept []string) {
	for _, s := range all {
		if !slices.Contains(kept, s) {
			kept = append(kept, s)
		}
	}
	return kept
}

// javaDouble formats a number from 0 to 1 as Java does.
func javaDouble(x float64) string {
	if x != 0 && x < 1e-3 {
		mantissa, exponent, _ := strings.Cut(strconv.FormatFloat(x, 'E', -1, 64), "E-")
		if !strings.Contains(mantissa, ".") {
			mantissa += ".0"
		}
		return mantissa + "E-" + strings.TrimLeft(exponent, "0")
	}
	s := strconv.FormatFloat(x, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}

// maxConfigBytes is the largest size of a setting's value.
const maxConfigBytes = math.MaxInt16

// checkConfigs returns an error if a topic cannot have these settings.
func checkConfigs(configs map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(configs)) {
		if _, ok := topicConfigs[name]; !ok {
			return fmt.Errorf("unknown topic setting %q", name)
		}
	}
	canonical := make(map[string]string)
	for _, name := range slices.Sorted(maps.Keys(configs)) {
		value, c := configs[name], topicConfigs[name]
		if len(value) > maxConfigBytes {
			return fmt.Errorf("%s: the value is longer than %d bytes", name, maxConfigBytes)
		}
		shown, err := c.canonical(value)
		if err == nil {
			err = c.check(shown)
		}
		if err == nil && c.possible != nil {
			err = c.possible(shown)
		}
		if err != nil {
			return fmt.Errorf("%s=%s: %w", name, value, err)
		}
		canonical[name] = shown
	}
	lag := func(name string) int64 {
		value, ok := canonical[name]
		if !ok {
			value = topicConfigs[name].value
		}
		n, _ := strconv.ParseInt(value, 10, 64)
		return n
	}
	if lag("min.compaction.lag.ms") > lag("max.compaction.lag.ms") {
		return errors.New("min.compaction.lag.ms is larger than max.compaction.lag.ms")
	}
	return nil
}
